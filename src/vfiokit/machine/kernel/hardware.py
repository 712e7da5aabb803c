"""The kernel's hold on the hardware: buses, interrupts.

Source: Linux ``drivers/pci/pci.c`` (``pci_reset_secondary_bus``), ``kernel/irq``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from vfiokit.abi import pci_regs as regs
from vfiokit.errors import MachineError
from vfiokit.machine.fabric import Fabric
from vfiokit.machine.irq import IntxConnection
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.message import Message
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.pci.address import Bdf


class PciCore:
    """Every function of the machine, and how they hang together."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.devices: dict[Bdf, PciDevice] = {}

    def on_bus(self, device: PciDevice) -> list[PciDevice]:
        """Every function on the bus of ``device``, itself included."""
        return [
            self.devices[function.bdf]
            for function in self._fabric.siblings(device.function)
            if function.bdf in self.devices and function.bdf.bus == device.bdf.bus
        ]

    def bridge_above(self, device: PciDevice) -> PciDevice | None:
        """The bridge that owns the bus of ``device``."""
        bridge = self._fabric.parent(device.function)
        return None if bridge is None else self.devices.get(bridge.bdf)

    def below(self, bridge: PciDevice) -> list[PciDevice]:
        """Every function below ``bridge``, nearest first."""
        return [
            self.devices[function.bdf]
            for function in self._fabric.below(bridge.function)
            if function.bdf in self.devices
        ]

    def bus_reset(self, device: PciDevice) -> None:
        """Pulse the secondary bus reset of the bridge above ``device``; ENOTTY on a root bus."""
        bridge = self.bridge_above(device)
        if bridge is None:
            raise failure(errno.ENOTTY, f"no bridge above {device.bdf}")
        bit = regs.PCI_BRIDGE_CTL_BUS_RESET
        bridge.update(regs.PCI_BRIDGE_CONTROL, 2, set_bits=bit)
        bridge.update(regs.PCI_BRIDGE_CONTROL, 2, clear=bit)

    def virtual_functions(self, device: PciDevice) -> list[PciDevice]:
        """The VFs of a PF."""
        return [other for other in self.devices.values() if other.function.physfn == device.bdf]


class HardwareInterrupts:
    """Interrupt allocation on the machine's interrupt system."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._connections: dict[Bdf, IntxConnection] = {}

    def allocate(self, device: PciDevice, handlers: Sequence[Callable[[], None]]) -> list[Message]:
        """A message for each handler; ENOSPC when vectors run out."""
        # Blocks are powers of two; vectors beyond what was asked for interrupt nobody.
        size = 1 << (len(handlers) - 1).bit_length()
        padded = [*handlers, *[_nobody] * (size - len(handlers))]
        try:
            made = self._fabric.interrupts.allocate_block(
                device.bdf.requester_id, padded, domain=device.bdf.domain
            )
        except MachineError as error:
            raise failure(errno.ENOSPC, str(error)) from error
        messages = [Message(each.address, each.data, (each.handle,)) for each in made]
        spare = [each.handle for each in made[len(handlers) :]]
        if spare:
            last = messages[len(handlers) - 1]
            messages[len(handlers) - 1] = last._replace(handle=(*_handles(last), *spare))
        return messages[: len(handlers)]

    def free(self, messages: Sequence[Message]) -> None:
        """Release messages."""
        for message in messages:
            for handle in _handles(message):
                self._fabric.interrupts.free(handle)

    def multiple_msi(self, device: PciDevice) -> bool:
        """Whether several MSI vectors can be had: x86 needs interrupt remapping for that."""
        remapper = self._fabric.remapper_of(device.bdf.requester_id, device.bdf.domain)
        return remapper is not None and remapper.enabled

    def connect_intx(self, device: PciDevice, handler: Callable[[bool], None] | None) -> None:
        """Listen to the INTx wire of ``device``, or stop; ENODEV when it has none."""
        known = self._connections.pop(device.bdf, None)
        if known is not None:
            known.close()
        if handler is None:
            return
        try:
            made = self._fabric.interrupts.connect_intx(device.function, handler)
        except MachineError as error:
            raise failure(errno.ENODEV, str(error)) from error
        self._connections[device.bdf] = made


def _nobody() -> None:
    """Handler of a vector that was not asked for."""


def _handles(message: Message) -> tuple[int, ...]:
    handle = message.handle
    assert isinstance(handle, tuple)
    return handle
