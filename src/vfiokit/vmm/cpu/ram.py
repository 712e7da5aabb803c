"""Guest RAM as the processor reaches it, and the pages that hold translated code."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.vmm.cpu.block import Block

PAGE = 4096


class Ram:
    """Ranges of RAM: ``(gpa, view)`` pairs, page aligned, that do not overlap.

    :class:`UsageError` otherwise. Implements :class:`vfiokit.vmm.paging.TableMemory`.
    """

    def __init__(self, ranges: Iterable[tuple[int, memoryview]]) -> None:
        self._ranges = sorted(
            ((gpa, gpa + len(view), view) for gpa, view in ranges), key=lambda each: each[0]
        )
        self._starts = [start for start, _end, _view in self._ranges]
        last = 0
        for start, end, view in self._ranges:
            if start % PAGE or end % PAGE or start < last or view.readonly:
                raise UsageError(
                    f"RAM at gpa {start:#x} has to be writable whole pages that overlap no others"
                )
            last = end

    def page(self, gpa: int) -> memoryview | None:
        """The page that ``gpa`` is in; ``None`` where there is no RAM."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        start, end, view = self._ranges[index]
        if gpa >= end:
            return None
        offset = (gpa - start) & -PAGE
        return view[offset : offset + PAGE]

    def read(self, gpa: int, width: int) -> int | None:
        """A number that does not cross a page; ``None`` where there is no RAM."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        start, end, view = self._ranges[index]
        if gpa >= end:
            return None
        return int.from_bytes(view[gpa - start : gpa - start + width], "little")

    def write(self, gpa: int, width: int, value: int) -> None:
        """Store a number that does not cross a page; nothing happens where there is no RAM."""
        page = self.page(gpa)
        if page is not None:
            offset = gpa & PAGE - 1
            page[offset : offset + width] = value.to_bytes(width, "little")

    def release(self) -> None:
        """Let go of the memory."""
        self._ranges = []
        self._starts = []


class CodePage:
    """What was translated from one page of RAM."""

    __slots__ = ("blocks", "end", "snapshot", "start", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.blocks: list[Block] = []
        self.start = PAGE
        self.end = 0
        """Offsets between which the blocks' bytes are."""
        self.snapshot = b""

    def add(self, block: Block, start: int, end: int) -> None:
        """``block`` was translated from ``[start, end)`` of this page."""
        self.blocks.append(block)
        self.start = min(self.start, start)
        self.end = max(self.end, end)
        self.snapshot = bytes(self.view[self.start : self.end])

    def changed(self) -> bool:
        """Whether somebody wrote other bytes there since."""
        return bytes(self.view[self.start : self.end]) != self.snapshot
