"""Which I/O virtual addresses are free: a pure first-fit allocator.

Lowest address first, never 0 (a driver may take it for "none"; :meth:`IovaAllocator.reserve` does
give it out). Cursors per request size make a repeated scan of too small holes unnecessary, so an
allocation stays in the microseconds with ten thousand others present.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from vfiokit.errors import IovaConflictError, KernelError, UsageError

_CURSOR_LIMIT = 64


class IovaAllocator:
    """Free ranges of an IOVA space.

    ``ranges`` are ``(start, last)`` pairs, ``last`` included; ``granule`` is the power of two that
    every address and length is a multiple of. Partial granules at the edges of a range are lost.
    """

    __slots__ = ("_cursors", "_ends", "_starts", "granule")

    def __init__(self, ranges: Iterable[tuple[int, int]], granule: int = 4096) -> None:
        if granule < 1 or granule & (granule - 1):
            raise UsageError(f"IOVA granule {granule} is not a power of two")
        self.granule = granule
        # Holes as half-open [start, end), ascending, never touching one another.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._cursors: dict[tuple[int, int], int] = {}
        for start, last in sorted(ranges):
            first = -(-start // granule) * granule
            end = (last + 1) // granule * granule
            if self._ends and first < self._ends[-1]:
                raise UsageError(f"IOVA ranges overlap at {first:#x}")
            if first < end:
                self._insert(first, end)

    def holes(self) -> list[tuple[int, int]]:
        """The free ranges as ``(start, end)``, ``end`` excluded, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    def allocate(self, length: int, alignment: int = 0, max_iova: int | None = None) -> int:
        """Take ``length`` bytes at a multiple of ``alignment``; returns the lowest such IOVA.

        The last byte is at most ``max_iova``. Raises :class:`KernelError` ENOSPC when nothing
        fits, :class:`UsageError` for a length or alignment that makes no sense.
        """
        self._check(length)
        alignment = max(alignment, self.granule)
        if alignment & (alignment - 1):
            raise UsageError(f"IOVA alignment {alignment:#x} is not a power of two")
        key = (length, alignment)
        cursor = self._cursors.get(key, 0)
        starts, ends = self._starts, self._ends
        limit = ends[-1] if max_iova is None and ends else (max_iova or 0) + 1
        for index in range(max(bisect_right(starts, cursor) - 1, 0), len(starts)):
            # Address 0 is skipped: see the module's docstring.
            iova = -(-(starts[index] or 1) // alignment) * alignment
            if iova + length > limit:
                break
            if iova + length <= ends[index]:
                if len(self._cursors) >= _CURSOR_LIMIT:
                    self._cursors.clear()
                self._cursors[key] = iova
                self._take(index, iova, iova + length)
                return iova
        below = "" if max_iova is None else f" at or below {max_iova:#x}"
        raise KernelError(
            "allocate",
            "IOVA space",
            errno.ENOSPC,
            detail=f"no {length:#x} free bytes aligned to {alignment:#x}{below}",
            hint="close buffers that are no longer needed",
        )

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
        self._take(bisect_right(self._starts, iova) - 1, iova, iova + length)

    def is_free(self, iova: int, length: int) -> bool:
        """Whether all of ``[iova, iova + length)`` can be taken."""
        index = bisect_right(self._starts, iova) - 1
        return index >= 0 and iova + length <= self._ends[index]

    def free(self, iova: int, length: int) -> None:
        """Give ``[iova, iova + length)`` back, joining it with free neighbours.

        Raises :class:`UsageError` when a part of it is free already.
        """
        self._check(length)
        index = bisect_left(self._starts, iova)
        end = iova + length
        starts, ends = self._starts, self._ends
        if (index < len(starts) and starts[index] < end) or (index and ends[index - 1] > iova):
            raise UsageError(f"IOVA range [{iova:#x}, {end - 1:#x}] is free already")
        self._insert(iova, end)

    def _check(self, length: int) -> None:
        if length <= 0 or length % self.granule:
            raise UsageError(
                f"IOVA length {length:#x} is not a positive multiple of {self.granule:#x}"
            )

    def _take(self, index: int, start: int, end: int) -> None:
        hole_start, hole_end = self._starts[index], self._ends[index]
        if start == hole_start and end == hole_end:
            del self._starts[index], self._ends[index]
        elif start == hole_start:
            self._starts[index] = end
        else:
            self._ends[index] = start
            if end != hole_end:
                self._starts.insert(index + 1, end)
                self._ends.insert(index + 1, hole_end)

    def _insert(self, start: int, end: int) -> None:
        starts, ends = self._starts, self._ends
        index = bisect_left(starts, start)
        joins_next = index < len(starts) and starts[index] == end
        if index and ends[index - 1] == start:
            index -= 1
            start = starts[index]
            if joins_next:
                ends[index] = ends.pop(index + 1)
                del starts[index + 1]
            else:
                ends[index] = end
        elif joins_next:
            starts[index] = start
        else:
            starts.insert(index, start)
            ends.insert(index, end)
        grown = ends[index] - start
        for key, cursor in self._cursors.items():
            # A hole too short for a request cannot change where its scan should begin.
            if cursor > start and grown >= key[0]:
                self._cursors[key] = start
