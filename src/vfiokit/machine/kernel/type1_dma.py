"""The mappings of a type1 container: an ordered set of IOVA ranges that never overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from vfiokit.machine.kernel.process import Extent, Region


class Dma:
    """One mapping: ``size`` bytes at ``iova`` onto ``extent``."""

    __slots__ = ("extent", "iova", "readable", "region", "size", "vaddr", "vaddr_valid", "writable")

    def __init__(
        self,
        iova: int,
        size: int,
        vaddr: int,
        region: Region,
        extent: Extent,
        *,
        readable: bool,
        writable: bool,
    ) -> None:
        self.iova = iova
        self.size = size
        self.vaddr = vaddr
        self.region = region
        self.extent = extent
        self.readable = readable
        self.writable = writable
        self.vaddr_valid = True

    @property
    def last(self) -> int:
        """The last IOVA of the mapping."""
        return self.iova + self.size - 1


class DmaSet:
    """Mappings by IOVA."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._entries: list[Dma] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Dma]:
        return iter(tuple(self._entries))

    def at(self, iova: int) -> Dma | None:
        """The mapping that contains ``iova``."""
        index = bisect_right(self._starts, iova) - 1
        if index >= 0 and self._entries[index].last >= iova:
            return self._entries[index]
        return None

    def overlapping(self, first: int, last: int) -> list[Dma]:
        """Every mapping that shares an IOVA with ``[first, last]``, in order."""
        start = bisect_right(self._starts, first) - 1
        if start < 0 or self._entries[start].last < first:
            start += 1
        return self._entries[start : bisect_right(self._starts, last)]

    def bisected_by(self, first: int, last: int) -> bool:
        """Whether ``[first, last]`` cuts a mapping at either end."""
        head, tail = self.at(first), self.at(last)
        return (head is not None and head.iova != first) or (tail is not None and tail.last != last)

    def add(self, dma: Dma) -> None:
        """Insert a mapping that overlaps no other."""
        index = bisect_left(self._starts, dma.iova)
        self._starts.insert(index, dma.iova)
        self._entries.insert(index, dma)

    def remove(self, dma: Dma) -> None:
        """Take a mapping out."""
        index = bisect_left(self._starts, dma.iova)
        del self._starts[index], self._entries[index]
