"""Physical memory of the software machine, and the allocator of its frames.

All RAM is one sparse mapping of the process, so a translated DMA is one slice copy and page
tables are read as 64-bit words in place.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from vfiokit.errors import MachineError

PAGE: Final = 4096
_ZEROS: Final = bytes(1 << 20)


class PhysicalMemory:
    """``size`` bytes of RAM at host physical address ``base``.

    ``view`` is all of it as bytes, ``words`` as 64-bit little-endian words (index
    ``(hpa - base) >> 3``). Memory that was never written costs nothing.

    ``backing`` replaces the sparse mapping with memory of the caller's, at least ``size`` bytes.
    """

    def __init__(
        self, size: int, base: int = 1 << 32, *, backing: memoryview | None = None
    ) -> None:
        if size <= 0 or size % PAGE or base % PAGE:
            raise MachineError(
                f"memory of {size:#x} bytes at {base:#x} is not made of {PAGE}-byte pages"
            )
        self.base = base
        self.size = size
        self.end = base + size
        if backing is None:
            from vfiokit.kernel.linux import anonymous_memory

            self._mapping = anonymous_memory(size)
            backing = self._mapping.view
        self.view: memoryview = backing[:size]
        self.words: memoryview = self.view.cast("Q")
        self.allocated = 0
        """Bytes handed out by :meth:`allocate` and not yet freed."""
        # Free ranges as two parallel sorted lists: never adjacent, never empty.
        self._starts: list[int] = [base]
        self._ends: list[int] = [self.end]
        self._touched = base  # everything at or above this still reads as zero

    def __repr__(self) -> str:
        return f"<PhysicalMemory {self.base:#x}-{self.end:#x}, {self.allocated:#x} allocated>"

    # -- access -------------------------------------------------------------------------------

    def contains(self, hpa: int, length: int = 1) -> bool:
        """Whether ``[hpa, hpa + length)`` is all RAM."""
        return self.base <= hpa and hpa + length <= self.end

    def slice(self, hpa: int, length: int) -> memoryview:
        """The bytes of ``[hpa, hpa + length)``, writable; :class:`MachineError` outside RAM."""
        start = hpa - self.base
        if start < 0 or length < 0 or hpa + length > self.end:
            raise self._outside(hpa, length)
        if hpa + length > self._touched:
            self._touched = hpa + length
        return self.view[start : start + length]

    def read(self, hpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes at ``hpa``; :class:`MachineError` outside RAM."""
        start = hpa - self.base
        if start < 0 or length < 0 or hpa + length > self.end:
            raise self._outside(hpa, length)
        return bytes(self.view[start : start + length])

    def write(self, hpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``hpa``; :class:`MachineError` outside RAM."""
        start = hpa - self.base
        end = hpa + len(data)
        if start < 0 or end > self.end:
            raise self._outside(hpa, len(data))
        if end > self._touched:
            self._touched = end
        self.view[start : start + len(data)] = data

    def read64(self, hpa: int) -> int:
        """The 64-bit word at ``hpa``, which is a multiple of 8; :class:`MachineError` outside."""
        if not self.base <= hpa < self.end or hpa & 7:
            raise self._outside(hpa, 8)
        word: int = self.words[(hpa - self.base) >> 3]
        return word

    def write64(self, hpa: int, value: int) -> None:
        """Store a 64-bit word at ``hpa``, which is a multiple of 8."""
        if not self.base <= hpa < self.end or hpa & 7:
            raise self._outside(hpa, 8)
        if hpa >= self._touched:
            self._touched = hpa + 8
        self.words[(hpa - self.base) >> 3] = value

    # -- frames -------------------------------------------------------------------------------

    def allocate(self, length: int, alignment: int = PAGE) -> int:
        """Take ``length`` zeroed bytes, rounded up to pages; the hpa of the first.

        The lowest address that fits is taken. ``alignment`` is a power of two. Raises
        :class:`MachineError` when no free range is large enough.
        """
        if length <= 0 or alignment <= 0 or alignment & (alignment - 1):
            raise MachineError(f"cannot allocate {length} bytes aligned to {alignment}")
        length = -(-length // PAGE) * PAGE
        alignment = max(alignment, PAGE)
        for index, free_start in enumerate(self._starts):
            start = (free_start + alignment - 1) & -alignment
            if start + length <= self._ends[index]:
                self._take(index, start, start + length)
                self._zero(start, start + length)
                self.allocated += length
                return start
        raise MachineError(
            f"the machine's memory has no {length:#x} free bytes aligned to {alignment:#x}",
            hint=f"{self.allocated:#x} of {self.size:#x} bytes are in use; build it with more RAM",
        )

    def free(self, hpa: int, length: int) -> None:
        """Give back ``[hpa, hpa + length)``, all or part of what :meth:`allocate` returned.

        ``length`` is rounded up to pages. Raises :class:`MachineError` for memory that is not
        allocated.
        """
        length = -(-length // PAGE) * PAGE
        end = hpa + length
        if length <= 0 or hpa % PAGE or not self.contains(hpa, length):
            raise MachineError(f"cannot free {length:#x} bytes at {hpa:#x}: no such frames")
        after = bisect_right(self._starts, hpa)
        if (after and self._ends[after - 1] > hpa) or (
            after < len(self._starts) and self._starts[after] < end
        ):
            raise MachineError(f"{length:#x} bytes at {hpa:#x} are freed twice")
        joins_left = after > 0 and self._ends[after - 1] == hpa
        joins_right = after < len(self._starts) and self._starts[after] == end
        if joins_left and joins_right:
            self._ends[after - 1] = self._ends.pop(after)
            self._starts.pop(after)
        elif joins_left:
            self._ends[after - 1] = end
        elif joins_right:
            self._starts[after] = hpa
        else:
            self._starts.insert(after, hpa)
            self._ends.insert(after, end)
        self.allocated -= length

    def free_ranges(self) -> list[tuple[int, int]]:
        """Free ``(hpa, length)`` ranges in address order, merged."""
        return [(start, end - start) for start, end in zip(self._starts, self._ends, strict=True)]

    def _take(self, index: int, start: int, end: int) -> None:
        free_start, free_end = self._starts[index], self._ends[index]
        pieces = [piece for piece in ((free_start, start), (end, free_end)) if piece[0] < piece[1]]
        self._starts[index : index + 1] = [piece[0] for piece in pieces]
        self._ends[index : index + 1] = [piece[1] for piece in pieces]

    def _zero(self, start: int, end: int) -> None:
        # Memory above _touched was never written, so it is zero and stays unbacked.
        stop = min(end, self._touched)
        at = start
        while at < stop:
            step = min(stop - at, len(_ZEROS))
            self.view[at - self.base : at - self.base + step] = _ZEROS[:step]
            at += step
        self._touched = max(self._touched, end)

    def _outside(self, hpa: int, length: int) -> MachineError:
        return MachineError(
            f"{length:#x} bytes at hpa {hpa:#x} are not in RAM ({self.base:#x}-{self.end:#x})"
        )
