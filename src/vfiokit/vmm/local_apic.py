"""A processor's interrupt controller: what waits, what is in service, and which comes next.

Source: Intel 64 and IA-32 Architectures SDM volume 3, chapter "Advanced Programmable Interrupt
Controller (APIC)". No timer, no local interrupt pins, and no delivery modes but fixed and lowest
priority.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

APIC_BASE = 0xFEE0_0000
APIC_SIZE = 0x1000
ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
_FIRST_LVT, _LAST_LVT, _LVT_MASKED = 0x320, 0x370, 1 << 16
_ENABLED = 0x100
_LOWEST_VECTOR = 16
_STORED = frozenset({0x380, 0x3E0})  # the timer's registers keep what is written, and do nothing

SendIpi = Callable[["LocalApic", int, int], None]
"""Called with the sender, the low and the high half of the interrupt command."""


class LocalApic:
    """The controller of the processor with ``apic_id``.

    It begins enabled, as firmware leaves it. ``on_level_end(vector)`` is called at the end of a
    level-triggered interrupt.
    """

    def __init__(self, apic_id: int) -> None:
        self.id = apic_id
        self.irr = 0
        """Bit n: vector n waits."""
        self.isr = 0
        """Bit n: vector n is being served."""
        self.tmr = 0
        """Bit n: vector n came by a level."""
        self.tpr = 0
        self.on_level_end: Callable[[int], None] | None = None
        self.send_ipi: SendIpi | None = None
        self._registers: dict[int, int] = {
            LDR: 0,
            DFR: 0xFFFF_FFFF,
            SVR: _ENABLED | 0xFF,
            ICR: 0,
            ICR_HIGH: 0,
        }
        for lvt in range(_FIRST_LVT, _LAST_LVT + 0x10, 0x10):
            self._registers[lvt] = _LVT_MASKED

    # -- interrupts ---------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether it takes interrupts at all."""
        return bool(self._registers[SVR] & _ENABLED)

    def accept(self, vector: int, *, level: bool = False) -> bool:
        """Let ``vector`` (16 to 255) wait; whether it was taken."""
        if not self.enabled or not _LOWEST_VECTOR <= vector <= 255:
            return False
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        return True

    @property
    def priority(self) -> int:
        """Processor priority: only a vector of a higher class comes through."""
        serving = self.isr.bit_length() - 1 if self.isr else 0
        return self.tpr if self.tpr >> 4 >= serving >> 4 else serving & 0xF0

    def next_vector(self) -> int | None:
        """The vector to deliver now; ``None`` when none may interrupt."""
        if not self.irr:
            return None
        vector = self.irr.bit_length() - 1
        return vector if vector >> 4 > self.priority >> 4 else None

    def take(self) -> int:
        """The processor takes :meth:`next_vector`: it is in service from now on."""
        vector = self.next_vector()
        assert vector is not None
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        return vector

    def end_of_interrupt(self) -> None:
        """The guest finished the highest that is in service."""
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        self.isr &= ~(1 << vector)
        if self.tmr >> vector & 1 and self.on_level_end is not None:
            self.on_level_end(vector)

    def is_addressed(self, destination: int, *, logical: bool) -> bool:
        """Whether an interrupt for ``destination`` (8 bits) is for this processor."""
        if not logical:
            return destination in (self.id, 0xFF)
        mine = self._registers[LDR] >> 24
        if self._registers[DFR] >> 28 == 0xF:
            return bool(destination & mine)
        same_cluster = destination >> 4 in (mine >> 4, 0xF)
        return same_cluster and bool(destination & mine & 0xF)

    # -- registers ----------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A load from the controller's page; registers are 4 bytes each 16."""
        if offset % 16 >= 4:
            return 0
        value = self._read(offset & ~0xF)
        return value >> 8 * (offset % 16) & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """A store to the controller's page; lost unless it is a whole register."""
        if offset % 16 or width not in (4, 8):
            return
        value &= 0xFFFF_FFFF
        if offset == EOI:
            self.end_of_interrupt()
        elif offset == TPR:
            self.tpr = value & 0xFF
        elif offset == ICR:
            self._registers[ICR] = value & ~0x1000
            if self.send_ipi is not None:
                self.send_ipi(self, value, self._registers[ICR_HIGH])
        elif offset == SVR:
            self._registers[SVR] = value & 0x11FF
        elif offset == DFR:
            self._registers[DFR] = value | 0x0FFF_FFFF
        elif offset in (LDR, ICR_HIGH):
            self._registers[offset] = value & 0xFF00_0000
        elif _FIRST_LVT <= offset <= _LAST_LVT or offset in _STORED:
            self._registers[offset] = value

    def _read(self, register: int) -> int:
        for first, bits in ((ISR, self.isr), (TMR, self.tmr), (IRR, self.irr)):
            if first <= register < first + 0x80:
                return bits >> (register - first) * 2 & 0xFFFF_FFFF
        fixed = {ID: self.id << 24, VERSION: 0x0005_0014, TPR: self.tpr, PPR: self.priority}
        return fixed.get(register, self._registers.get(register, 0))

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        bits = {"irr": self.irr, "isr": self.isr, "tmr": self.tmr, "tpr": self.tpr}
        return {**bits, "id": self.id, "registers": dict(self._registers)}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.irr, self.isr, self.tmr = state["irr"], state["isr"], state["tmr"]
        self.tpr, self.id = state["tpr"], state["id"]
        self._registers = {int(key): value for key, value in state["registers"].items()}
