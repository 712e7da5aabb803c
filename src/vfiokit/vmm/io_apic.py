"""The controller of interrupt wires: levels in, messages to processors out.

Source: Intel 82093AA datasheet (registers), ICH9 datasheet §13.5 (EOI register). The polarity bit
is kept and not obeyed: inputs are given as asserted or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

IO_APIC_BASE = 0xFEC0_0000
IO_APIC_SIZE = 0x1000
INPUTS = 24
_SELECT, _WINDOW, _EOI = 0x00, 0x10, 0x40
_ID, _VERSION, _ARBITRATION, _TABLE = 0x00, 0x01, 0x02, 0x10
_VECTOR, _LOGICAL, _STATUS = 0xFF, 1 << 11, 1 << 12
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
_READ_ONLY = _STATUS | REMOTE_IRR
_WRITABLE = 0xFF00_0000_0001_AFFF

Deliver = Callable[[int, int, bool, bool], None]
"""Called with vector, destination, whether that is logical, whether it came by a level."""


class IoApic:
    """24 inputs with a redirection entry each.

    ``deliver`` sends an interrupt on its way; every one of ``on_end`` is called with the number of
    an input when the guest finished a level-triggered interrupt that came from it.
    """

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self.on_end: list[Callable[[int], None]] = []
        self._select = 0
        self._id = 0
        self.entries = [MASKED] * INPUTS
        """Redirection entries, 64 bits each."""
        self._asserted: list[set[str]] = [set() for _ in range(INPUTS)]
        self._missed = 0

    # -- inputs -------------------------------------------------------------------------------

    def set_input(self, number: int, source: str, level: bool) -> None:
        """``source`` asserts input ``number`` or not; the input is high while anyone does."""
        if not 0 <= number < INPUTS:
            return
        asserted = self._asserted[number]
        before = bool(asserted)
        (asserted.add if level else asserted.discard)(source)
        if asserted and not before:
            self._rise(number)

    def _rise(self, number: int) -> None:
        entry = self.entries[number]
        if not entry & LEVEL and entry & MASKED:
            self._missed |= 1 << number  # an edge while masked comes with the unmasking
            return
        self._service(number)

    def _service(self, number: int) -> None:
        entry = self.entries[number]
        if entry & MASKED or (entry & LEVEL and (entry & REMOTE_IRR or not self._asserted[number])):
            return
        if entry & LEVEL:
            self.entries[number] = entry | REMOTE_IRR
        destination, logical = entry >> 56 & 0xFF, bool(entry & _LOGICAL)
        self._deliver(entry & _VECTOR, destination, logical, bool(entry & LEVEL))

    def end_of_interrupt(self, vector: int) -> None:
        """A processor finished ``vector``: inputs that are still high interrupt again."""
        for number, entry in enumerate(self.entries):
            if entry & LEVEL and entry & REMOTE_IRR and entry & _VECTOR == vector:
                self.entries[number] = entry & ~REMOTE_IRR
                for listener in tuple(self.on_end):
                    listener(number)
                self._service(number)

    # -- registers ----------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A load from the controller's page."""
        del width
        if offset == _SELECT:
            return self._select
        if offset != _WINDOW:
            return 0
        if self._select in (_ID, _ARBITRATION):
            return self._id
        if self._select == _VERSION:
            return (INPUTS - 1) << 16 | 0x20
        number, high = divmod(self._select - _TABLE, 2)
        if 0 <= number < INPUTS:
            return self.entries[number] >> (32 if high else 0) & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """A store to the controller's page."""
        del width
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _EOI:
            self.end_of_interrupt(value & 0xFF)
        elif offset == _WINDOW:
            self._write_register(value & 0xFFFF_FFFF)

    def _write_register(self, value: int) -> None:
        if self._select == _ID:
            self._id = value & 0x0F00_0000
            return
        number, high = divmod(self._select - _TABLE, 2)
        if not 0 <= number < INPUTS:
            return
        old = self.entries[number]
        half = 32 if high else 0
        kept = old & ~(0xFFFF_FFFF << half) | value << half
        entry = kept & _WRITABLE | old & _READ_ONLY
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR
        self.entries[number] = entry
        if entry & LEVEL:
            self._service(number)
        elif not entry & MASKED and self._missed >> number & 1:
            self._missed &= ~(1 << number)
            self._service(number)

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "select": self._select,
            "id": self._id,
            "entries": list(self.entries),
            "asserted": [sorted(each) for each in self._asserted],
            "missed": self._missed,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._select, self._id, self._missed = state["select"], state["id"], state["missed"]
        self.entries = list(state["entries"])
        self._asserted = [set(each) for each in state["asserted"]]
