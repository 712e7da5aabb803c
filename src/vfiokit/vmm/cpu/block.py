"""A basic block: guest instructions in a row as one Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Block(NamedTuple):
    """Translated instructions; the last may leave the row.

    ``function(left)`` runs them with ``left`` instructions to go, at least ``length``, and returns
    what is left then. It raises :class:`~vfiokit.vmm.cpu.event.GuestEvent` from the line of the
    instruction that did not complete.
    """

    key: tuple[object, ...]
    function: Callable[[int], int]
    length: int
    """Instructions."""
    rips: tuple[int, ...]
    """Instruction pointer of each."""
    addresses: tuple[int, ...]
    """Where in RAM each begins."""
    lines: tuple[int, ...]
    """Line of the function's source at which each begins."""
    loops: bool
    """Whether the function goes round by itself."""
    pieces: tuple[tuple[int, int], ...]
    """Ranges of RAM with the instructions' bytes: address and length."""

    def overlaps(self, address: int, length: int) -> bool:
        """Whether any of the bytes are among those at ``address``."""
        return any(
            address < start + size and start < address + length for start, size in self.pieces
        )

    def contains_inside(self, address: int) -> bool:
        """Whether an instruction other than the last begins at ``address``."""
        return address in self.addresses[:-1]

    def index_at(self, line: int) -> int:
        """The instruction that a line of the source belongs to."""
        index = 0
        for number, start in enumerate(self.lines):
            if start <= line:
                index = number
        return index
