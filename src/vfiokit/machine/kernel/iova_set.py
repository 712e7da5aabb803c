"""Mappings by IOVA: an ordered set of ranges that never overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class IovaRange(Protocol):
    """A mapping."""

    @property
    def iova(self) -> int:
        """The first IOVA."""
        ...

    @property
    def last(self) -> int:
        """The last IOVA."""
        ...


Mapped = TypeVar("Mapped", bound=IovaRange)


class IovaSet(Generic[Mapped]):
    """Mappings by IOVA."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._entries: list[Mapped] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Mapped]:
        return iter(tuple(self._entries))

    def at(self, iova: int) -> Mapped | None:
        """The mapping that contains ``iova``."""
        index = bisect_right(self._starts, iova) - 1
        if index >= 0 and self._entries[index].last >= iova:
            return self._entries[index]
        return None

    def overlapping(self, first: int, last: int) -> list[Mapped]:
        """Every mapping that shares an IOVA with ``[first, last]``, in order."""
        start = bisect_right(self._starts, first) - 1
        if start < 0 or self._entries[start].last < first:
            start += 1
        return self._entries[start : bisect_right(self._starts, last)]

    def bisected_by(self, first: int, last: int) -> bool:
        """Whether ``[first, last]`` cuts a mapping at either end."""
        head, tail = self.at(first), self.at(last)
        return (head is not None and head.iova != first) or (tail is not None and tail.last != last)

    def add(self, mapping: Mapped) -> None:
        """Insert a mapping that overlaps no other."""
        index = bisect_left(self._starts, mapping.iova)
        self._starts.insert(index, mapping.iova)
        self._entries.insert(index, mapping)

    def remove(self, mapping: Mapped) -> None:
        """Take a mapping out."""
        index = bisect_left(self._starts, mapping.iova)
        del self._starts[index], self._entries[index]
