"""Which I/O virtual addresses are free: a pure allocator.

Holes are kept by address, to join neighbours, and by class of size (powers of two), to find one
that fits without a look at all the others: microseconds with ten thousand mappings. A small hole
that fits is preferred to a large one, and a low one to a high one. Address 0 is never chosen,
because a driver may take it for "none"; :meth:`IovaAllocator.reserve` does give it out.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

from vfiokit.errors import IovaConflictError, KernelError, UsageError

_TRIES = 8
"""Holes of a class that may be too small that are looked at before larger classes are."""


class IovaAllocator:
    """Free ranges of an IOVA space.

    ``ranges`` are ``(start, last)`` pairs, ``last`` included; ``granule`` is the power of two that
    every address and length is a multiple of. Partial granules at the edges of a range are lost.
    """

    __slots__ = ("_classes", "_end", "_starts", "_zero_free", "granule")

    def __init__(self, ranges: Iterable[tuple[int, int]], granule: int = 4096) -> None:
        if granule < 1 or granule & (granule - 1):
            raise UsageError(f"IOVA granule {granule} is not a power of two")
        self.granule = granule
        # Holes [start, end) never touch one another, and never hold the granule at 0.
        self._starts: list[int] = []
        self._end: dict[int, int] = {}
        # Starts of the holes of 2**n to 2**(n + 1) - 1 bytes, ascending, at index n.
        self._classes: list[list[int]] = [[] for _ in range(65)]
        self._zero_free = False
        reached = -1
        for start, last in sorted(ranges):
            if start <= reached:
                raise UsageError(f"IOVA ranges overlap at {start:#x}")
            reached = last
            first = -(-start // granule) * granule
            end = (last + 1) // granule * granule
            if first < end:
                self._give(first, end)

    def holes(self) -> list[tuple[int, int]]:
        """The free ranges as ``(start, end)``, ``end`` excluded, ascending."""
        found = [(start, self._end[start]) for start in self._starts]
        if self._zero_free:
            joined = found and found[0][0] == self.granule
            found[: int(bool(joined))] = [(0, found[0][1] if joined else self.granule)]
        return found

    def allocate(self, length: int, alignment: int = 0, max_iova: int | None = None) -> int:
        """Take ``length`` bytes at a multiple of ``alignment``; returns the IOVA.

        The last byte is at most ``max_iova``. Raises :class:`KernelError` ENOSPC when nothing
        fits, :class:`UsageError` for a length or alignment that makes no sense.
        """
        self._check(length)
        alignment = max(alignment, self.granule)
        if alignment & (alignment - 1):
            raise UsageError(f"IOVA alignment {alignment:#x} is not a power of two")
        limit = 1 << 64 if max_iova is None else max_iova + 1
        start = self._find(length, alignment, limit)
        if start is None:
            below = "" if max_iova is None else f" at or below {max_iova:#x}"
            raise KernelError(
                "allocate",
                "IOVA space",
                errno.ENOSPC,
                detail=f"no {length:#x} free bytes aligned to {alignment:#x}{below}",
                hint="close buffers that are no longer needed",
            )
        iova = -(-start // alignment) * alignment
        self._cut(start, iova, iova + length)
        return iova

    def reserve(self, iova: int, length: int) -> None:
        """Take exactly ``[iova, iova + length)``.

        Raises :class:`IovaConflictError` when a part of it is taken or outside the space.
        """
        self._check(length)
        if iova < 0 or iova % self.granule:
            raise UsageError(f"IOVA {iova:#x} is not a multiple of {self.granule:#x}")
        if not self.is_free(iova, length):
            raise IovaConflictError(
                "reserve",
                "IOVA space",
                errno.EEXIST,
                detail=f"[{iova:#x}, {iova + length - 1:#x}] is taken or outside the space",
            )
        end = iova + length
        if iova == 0:
            self._zero_free = False
            iova = self.granule
        if iova < end:
            self._cut(self._starts[bisect_right(self._starts, iova) - 1], iova, end)

    def is_free(self, iova: int, length: int) -> bool:
        """Whether all of ``[iova, iova + length)`` can be taken."""
        end = iova + length
        if iova < self.granule:
            if not self._zero_free:
                return False
            iova = self.granule
        index = bisect_right(self._starts, iova) - 1
        return end <= iova or (index >= 0 and end <= self._end[self._starts[index]])

    def free(self, iova: int, length: int) -> None:
        """Give ``[iova, iova + length)`` back, joining it with free neighbours.

        Raises :class:`UsageError` when a part of it is free already.
        """
        self._check(length)
        end = iova + length
        starts = self._starts
        index = bisect_left(starts, iova)
        if (
            (iova < self.granule and self._zero_free)
            or (index < len(starts) and starts[index] < end)
            or (index and self._end[starts[index - 1]] > iova)
        ):
            raise UsageError(f"IOVA range [{iova:#x}, {end - 1:#x}] is free already")
        self._give(iova, end)

    def _check(self, length: int) -> None:
        if length <= 0 or length % self.granule:
            raise UsageError(
                f"IOVA length {length:#x} is not a positive multiple of {self.granule:#x}"
            )

    def _find(self, length: int, alignment: int, limit: int) -> int | None:
        """Start of a hole that holds ``length`` aligned bytes below ``limit``."""
        classes, ends = self._classes, self._end
        smallest = length.bit_length() - 1
        # Any hole of this size holds an aligned piece, wherever it starts.
        surely = (length + alignment - self.granule - 1).bit_length()
        for start in classes[smallest][:_TRIES]:
            top = -(-start // alignment) * alignment + length
            if top <= ends[start] and top <= limit:
                return start
        for holes in classes[surely:]:
            # All of them fit; if the lowest one is too high for the limit, so are the others.
            if holes and -(-holes[0] // alignment) * alignment + length <= limit:
                return holes[0]
        for holes in classes[smallest:surely]:
            for start in holes:
                top = -(-start // alignment) * alignment + length
                if top > limit:
                    break
                if top <= ends[start]:
                    return start
        return None

    def _cut(self, start: int, first: int, end: int) -> None:
        """Take ``[first, end)`` out of the hole at ``start``."""
        hole_end = self._end[start]
        index = bisect_left(self._starts, start)
        self._unlist(start, hole_end)
        if start == first and end == hole_end:
            del self._starts[index]
        elif start == first:
            self._starts[index] = end
            self._list(end, hole_end)
        else:
            self._list(start, first)
            if end != hole_end:
                self._starts.insert(index + 1, end)
                self._list(end, hole_end)

    def _give(self, start: int, end: int) -> None:
        """Make ``[start, end)`` free."""
        if start == 0:
            self._zero_free = True
            start = self.granule
            if start == end:
                return
        starts = self._starts
        index = bisect_left(starts, start)
        if index < len(starts) and starts[index] == end:
            end = self._end[end]
            self._unlist(starts.pop(index), end)
        if index and self._end[starts[index - 1]] == start:
            before = starts[index - 1]
            self._unlist(before, start)
            start = before
        else:
            starts.insert(index, start)
        self._list(start, end)

    def _list(self, start: int, end: int) -> None:
        self._end[start] = end
        insort(self._classes[(end - start).bit_length() - 1], start)

    def _unlist(self, start: int, end: int) -> None:
        del self._end[start]
        holes = self._classes[(end - start).bit_length() - 1]
        del holes[bisect_left(holes, start)]
