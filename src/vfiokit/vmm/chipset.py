"""What a guest's PC has on its root bus: the host bridge, and the bridge that routes pins.

Just enough registers for a driver: where configuration space lies in memory, and which interrupt
each of the eight PIRQ wires goes to. Source: Intel 82G33 datasheet §5.1 (PCIEXBAR), ICH9 datasheet
§13.1.17 (PIRQ routing); which interrupt that becomes, QEMU ``hw/isa/lpc_ich9.c``
``ich9_route_intx_pin_to_irq``.
"""

from __future__ import annotations

from collections.abc import Callable

from vfiokit.pci.address import Bdf
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.guest_function import GuestFunction
from vfiokit.vmm.pci_bus import ECAM_BASE

FIRST_PIRQ_GSI = 16
"""Input of the IOAPIC that PIRQA is wired to."""
_PCIEXBAR = 0x60
_PIRQ_REGISTERS = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)
_NOT_ROUTED = 0x80
_MINIMUM_SIZES = {0: 256 << 20, 1: 128 << 20, 2: 64 << 20}


def _header(vendor_id: int, device_id: int, class_code: int, header_type: int = 0) -> bytearray:
    data = bytearray(256)
    data[0:2] = vendor_id.to_bytes(2, "little")
    data[2:4] = device_id.to_bytes(2, "little")
    data[9:12] = class_code.to_bytes(3, "little")
    data[0x0E] = header_type
    return data


class HostBridge(GuestFunction):
    """00:00.0, with the register that places configuration space in memory."""

    def __init__(self) -> None:
        config = GuestConfig(bytes(_header(0x8086, 0x29C0, 0x060000)))
        config.set(_PCIEXBAR, 8, ECAM_BASE | 1)
        config.allow(_PCIEXBAR, 8, 0xF_FC00_0007)
        super().__init__(Bdf(0, 0, 0, 0), config)
        self.name = "mch"
        config.watch(_PCIEXBAR, 8, self._ecam_moved)

    def _ecam_moved(self, offset: int, width: int) -> None:
        del offset, width
        self._place()

    def _place(self) -> None:
        if self.bus is None:
            return
        value = self.config.get(_PCIEXBAR, 8)
        size = _MINIMUM_SIZES.get(value >> 1 & 3)
        enabled = value & 1 and size is not None
        base = value & 0xF_FC00_0000 & ~((size or 1) - 1)
        self.bus.place_ecam(base if enabled else None, size or 1)

    def update_decoding(self) -> None:
        """Place configuration space where the register says."""
        self._place()
        super().update_decoding()


class IsaBridge(GuestFunction):
    """00:1f.0, with the routing of the eight PIRQ wires.

    A wire goes to the interrupt whose number its register holds, or, while bit 7 of it is set as
    after power-on, to an IOAPIC input of its own.
    """

    def __init__(self) -> None:
        config = GuestConfig(bytes(_header(0x8086, 0x2918, 0x060100)))
        for register in _PIRQ_REGISTERS:
            config.set(register, 1, _NOT_ROUTED)
            config.allow(register, 1, 0x8F)
            config.watch(register, 1, self._routing_changed)
        super().__init__(Bdf(0, 0, 0x1F, 0), config)
        self.name = "lpc"
        self.on_routing_change: Callable[[], None] = lambda: None
        """Called after the guest changed where a wire goes."""

    def _routing_changed(self, offset: int, width: int) -> None:
        del offset, width
        self.on_routing_change()

    def gsi_of(self, pirq: int) -> int:
        """The global interrupt that wire ``pirq`` (0 to 7) goes to."""
        value = self.config.get(_PIRQ_REGISTERS[pirq], 1)
        return FIRST_PIRQ_GSI + pirq if value & _NOT_ROUTED else value & 0xF


def pirq_of(device: int, pin: int) -> int:
    """The wire of interrupt pin ``pin`` (0 for INTA) of ``device`` on the root bus.

    Two ranges as on Q35: slots 0 to 24 on PIRQE to PIRQH, the chipset's own on PIRQA to PIRQD.
    """
    return (device + pin) % 4 + (4 if device < 25 else 0)


def swizzle(device: int, pin: int) -> int:
    """The pin of a bridge that pin ``pin`` of ``device`` below comes out of (``pci_swizzle``).

    Source: PCI-to-PCI Bridge Architecture Specification 1.2 §9.1.
    """
    return (pin + device) % 4
