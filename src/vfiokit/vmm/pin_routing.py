"""Interrupt pins: from a function's INTA to INTD, through bridges and PIRQ wires, to an input.

Levels and ends travel opposite ways: a pin that rises raises an input of the IOAPIC, and the end of
the interrupt there comes back to the functions whose pins hold that input high. When the guest
routes a wire elsewhere, what is asserted moves along. Source: Linux ``drivers/pci/irq.c``
(``pci_swizzle_interrupt_pin``), QEMU ``hw/vfio/pci.c`` (``vfio_intx_update``).
"""

from __future__ import annotations

from vfiokit.vmm.chipset import IsaBridge, pirq_of, swizzle
from vfiokit.vmm.guest_function import GuestFunction
from vfiokit.vmm.io_apic import IoApic
from vfiokit.vmm.pci_bus import PciBus


class PinRouter:
    """The wires of one guest."""

    def __init__(self, bus: PciBus, bridge: IsaBridge, io_apic: IoApic) -> None:
        self._bus = bus
        self._bridge = bridge
        self._io_apic = io_apic
        self._asserted: dict[GuestFunction, int] = {}
        bridge.on_routing_change = self.reroute
        io_apic.on_end.append(self._ended)

    def gsi_of(self, function: GuestFunction) -> int | None:
        """The input that the pin of ``function`` goes to now; ``None`` without a pin."""
        pin = function.interrupt_pin - 1
        if not 0 <= pin < 4:
            return None
        device = function.bdf.device
        bridge = self._bus.segment_of(function).bridge
        while bridge is not None:
            pin, device = swizzle(device, pin), bridge.bdf.device
            bridge = self._bus.segment_of(bridge).bridge
        return self._bridge.gsi_of(pirq_of(device, pin))

    def set_level(self, function: GuestFunction, level: bool) -> None:
        """The pin of ``function`` rose or fell."""
        before = self._asserted.pop(function, None)
        gsi = self.gsi_of(function) if level else None
        if before is not None and before != gsi:
            self._io_apic.set_input(before, _source(function), False)
        if gsi is not None:
            self._asserted[function] = gsi
            self._io_apic.set_input(gsi, _source(function), True)

    def reroute(self) -> None:
        """The guest changed where wires go: asserted pins follow."""
        for function in tuple(self._asserted):
            self.set_level(function, True)

    def _ended(self, gsi: int) -> None:
        for function, asserted in tuple(self._asserted.items()):
            if asserted == gsi:
                function.end_of_interrupt()


def _source(function: GuestFunction) -> str:
    return f"{function.bdf} {function.name}"
