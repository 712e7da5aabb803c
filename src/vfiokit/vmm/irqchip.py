"""A guest's interrupt controllers together, and the way from a message to a processor.

Source: Intel SDM volume 3, "Message Signalled Interrupts" (format of address and data).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from vfiokit.vmm.io_apic import IoApic
from vfiokit.vmm.local_apic import LocalApic

_MESSAGES = 0xFEE
_FIXED, _LOWEST_PRIORITY = 0, 1
_LEVEL_TRIGGERED, _ASSERT = 1 << 15, 1 << 14


class Target(NamedTuple):
    """What a message asks for."""

    vector: int
    destination: int
    """8 bits: the number of a processor, or a set of them."""
    logical: bool
    mode: int
    """Delivery mode: 0 fixed, 1 lowest priority, others are not deliverable here."""
    level: bool


def decode_message(address: int, data: int) -> Target | None:
    """What a write of ``data`` to ``address`` interrupts; ``None`` for an address that is memory.

    The redirection hint is honoured by taking lowest priority, as KVM does.
    """
    if address >> 20 != _MESSAGES:
        return None
    mode = data >> 8 & 7
    if address & 8 and mode == _FIXED:
        mode = _LOWEST_PRIORITY
    level = bool(data & _LEVEL_TRIGGERED and data & _ASSERT)
    return Target(data & 0xFF, address >> 12 & 0xFF, bool(address & 4), mode, level)


class IrqChip:
    """The IOAPIC and a local APIC for each processor."""

    def __init__(self) -> None:
        self.apics: list[LocalApic] = []
        self.io_apic = IoApic(self._from_wire)
        self.current = 0
        """Number of the processor that runs: the local page is its own."""
        self.lost: Counter[str] = Counter()
        """Interrupts that reached nobody, by why."""
        self.delivered: Counter[int] = Counter()
        """Interrupts that a processor accepted, by its number."""

    def add_processor(self) -> LocalApic:
        """One more local APIC; its ID is its number."""
        apic = LocalApic(len(self.apics))
        apic.on_level_end = self.io_apic.end_of_interrupt
        apic.send_ipi = self._send_ipi
        self.apics.append(apic)
        return apic

    # -- delivery -----------------------------------------------------------------------------

    def message(self, address: int, data: int) -> bool:
        """A device's message; whether a processor accepted it."""
        target = decode_message(address, data)
        if target is None:
            self.lost["message to memory"] += 1
            return False
        return self._deliver(target)

    def _from_wire(self, vector: int, destination: int, logical: bool, level: bool) -> None:
        self._deliver(Target(vector, destination, logical, _FIXED, level))

    def _deliver(self, target: Target) -> bool:
        if target.mode not in (_FIXED, _LOWEST_PRIORITY):
            self.lost["delivery mode"] += 1
            return False
        addressed = list(self._addressed(target))
        if not addressed:
            self.lost["no such processor"] += 1
            return False
        if target.mode == _LOWEST_PRIORITY:
            addressed = [min(addressed, key=lambda apic: (apic.priority, apic.id))]
        taken = False
        for apic in addressed:
            if apic.accept(target.vector, level=target.level):
                self.delivered[apic.id] += 1
                taken = True
        if not taken:
            self.lost["vector or processor not enabled"] += 1
        return taken

    def _addressed(self, target: Target) -> Iterator[LocalApic]:
        for apic in self.apics:
            if apic.is_addressed(target.destination, logical=target.logical):
                yield apic

    def _send_ipi(self, sender: LocalApic, low: int, high: int) -> None:
        mode, shorthand = low >> 8 & 7, low >> 18 & 3
        if mode not in (_FIXED, _LOWEST_PRIORITY):
            self.lost["delivery mode"] += 1
            return
        if not shorthand:
            self._deliver(Target(low & 0xFF, high >> 24, bool(low & 1 << 11), mode, False))
            return
        for apic in self.apics:
            is_self = apic is sender
            if shorthand == 2 or is_self == (shorthand == 1):
                apic.accept(low & 0xFF)

    # -- the local page -----------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A load from the page of the processor that runs."""
        return self.apics[self.current].read(offset, width) if self.apics else 0

    def write(self, offset: int, width: int, value: int) -> None:
        """A store to the page of the processor that runs."""
        if self.apics:
            self.apics[self.current].write(offset, width, value)

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        apics = [apic.state() for apic in self.apics]
        return {"apics": apics, "io_apic": self.io_apic.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        for apic, saved in zip(self.apics, state["apics"], strict=True):
            apic.load(saved)
        self.io_apic.load(state["io_apic"])
