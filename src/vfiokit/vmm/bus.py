"""The guest's view of addresses that are no RAM: loads and stores, by the trap map.

The processor brings every such access here. Where the range is mapped, the access reaches the
device at once and is no exit; else the processor leaves the guest, and the virtual machine brings
the access back to :meth:`GuestBus.trapped_read` or :meth:`GuestBus.trapped_write`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vfiokit.kernel.port import Mapping
from vfiokit.vmm.trap_map import Access, FlatRange, TrapMap

UNCLAIMED = "unclaimed"
"""What an access counts as at an address that belongs to nobody."""


class Seen(NamedTuple):
    """One access as an observer sees it."""

    gpa: int
    width: int
    write: bool
    value: int
    mapped: bool
    """Whether it reached the device without an exit."""
    range: FlatRange | None
    """Who answered; ``None``: nobody, reads are all ones and writes are lost."""


class GuestBus:
    """Implements :class:`vfiokit.vmm.vcpu.Bus` over a trap map."""

    def __init__(self, traps: TrapMap) -> None:
        self.traps = traps
        self.mapped_accesses = 0
        """Accesses that reached a device without an exit."""
        self.observers: list[Callable[[Seen], None]] = []
        """Called after every access, mapped or trapped."""
        self._generation = -1
        self._slot = (0, 0)
        self._last: FlatRange | None = None

    # -- the processor's side -----------------------------------------------------------------

    def read(self, gpa: int, width: int) -> int | None:
        """A load that is no RAM: the value where the range is mapped, ``None`` where it traps."""
        found = self._mapped(gpa, width)
        if found is None:
            return None
        value = _read(found, gpa, width)
        self.mapped_accesses += 1
        if self.observers:
            self._tell(Seen(gpa, width, False, value, True, found))
        return value

    def write(self, gpa: int, width: int, value: int) -> bool:
        """A store that is no RAM: whether the range is mapped; false where it traps."""
        found = self._mapped(gpa, width)
        if found is None:
            return False
        _write(found, gpa, width, value)
        self.mapped_accesses += 1
        if self.observers:
            self._tell(Seen(gpa, width, True, value, True, found))
        return True

    def _mapped(self, gpa: int, width: int) -> FlatRange | None:
        if self._generation != self.traps.generation:
            self._generation, self._slot = self.traps.generation, (0, 0)
        if not (self._slot[0] <= gpa and gpa + width <= self._slot[1]):
            if not self.traps.maps(gpa, width):
                return None
            self._last = self.traps.find(gpa)
            assert self._last is not None
            self._slot = self._last.slot
        return self._last

    # -- the virtual machine's side -----------------------------------------------------------

    def trapped_read(self, gpa: int, width: int) -> tuple[int, str]:
        """A load that trapped: its value, and what it counts as."""
        found = self.traps.find(gpa)
        if found is not None and gpa + width <= found.end:
            value, counter = _read(found, gpa, width), found.wish.counter
        else:
            value, counter = 0, UNCLAIMED
            for index in range(width):
                piece = self.traps.find(gpa + index)
                byte = 0xFF if piece is None else _read(piece, gpa + index, 1)
                value |= byte << 8 * index
                if piece is not None:
                    counter = piece.wish.counter
        if self.observers:
            self._tell(Seen(gpa, width, False, value, False, found))
        return value, counter

    def trapped_write(self, gpa: int, width: int, value: int) -> str:
        """A store that trapped; what it counts as."""
        found = self.traps.find(gpa)
        counter = UNCLAIMED
        # A handler may move what answers here, so the observer is told what was found before.
        if self.observers:
            self._tell(Seen(gpa, width, True, value, False, found))
        if found is not None and gpa + width <= found.end:
            _write(found, gpa, width, value)
            return found.wish.counter
        for index in range(width):
            piece = self.traps.find(gpa + index)
            if piece is not None:
                _write(piece, gpa + index, 1, value >> 8 * index & 0xFF)
                counter = piece.wish.counter
        return counter

    def _tell(self, seen: Seen) -> None:
        for observer in self.observers:
            observer(seen)


class Window:
    """Handler of a mapped part of a region: each access is one load or store of its width.

    ``offset`` 0 is the mapping's. What is not aligned is cut into the largest aligned pieces, as a
    processor cuts it. Where a real machine would raise SIGBUS, because decoding is off or the
    device is gone, loads read all ones and stores are lost.
    """

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self._loads = {
            1: mapping.read8,
            2: mapping.read16,
            4: mapping.read32,
            8: mapping.read64,
        }
        self._stores = {
            1: mapping.write8,
            2: mapping.write16,
            4: mapping.write32,
            8: mapping.write64,
        }

    def read(self, offset: int, width: int) -> int:
        """One load, or several of what is misaligned."""
        try:
            if not offset % width:
                return self._loads[width](offset)
            pieces = aligned_pieces(offset, width)
            return sum(self._loads[w](offset + at) << 8 * at for at, w in pieces)
        except (OSError, ValueError, IndexError):
            return (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """One store, or several of what is misaligned."""
        try:
            if not offset % width:
                self._stores[width](offset, value)
                return
            for at, piece in aligned_pieces(offset, width):
                self._stores[piece](offset + at, value >> 8 * at & (1 << 8 * piece) - 1)
        except (OSError, ValueError, IndexError):
            return


def aligned_pieces(offset: int, width: int) -> list[tuple[int, int]]:
    """``(start, width)`` of the naturally aligned accesses that one of ``width`` bytes takes."""
    pieces: list[tuple[int, int]] = []
    at = 0
    while at < width:
        piece = next(w for w in (8, 4, 2, 1) if at + w <= width and not (offset + at) % w)
        pieces.append((at, piece))
        at += piece
    return pieces


def _read(found: FlatRange, gpa: int, width: int) -> int:
    handler = found.wish.handler
    if handler is None:
        return (1 << 8 * width) - 1
    return handler.read(found.wish.offset + gpa - found.wish.gpa, width) & (1 << 8 * width) - 1


def _write(found: FlatRange, gpa: int, width: int, value: int) -> None:
    handler = found.wish.handler
    if handler is not None and found.access is not Access.RAM:
        handler.write(found.wish.offset + gpa - found.wish.gpa, width, value)
