"""Devices of a software machine, opened through VFIO, for guests to have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vfiokit.machine.build import MsiLayout, MsixLayout, endpoint_config
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import root_port
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device, open_device

FIRST, SECOND = Bdf.parse("0000:01:00.0"), Bdf.parse("0000:02:00.0")
MIB = 1 << 20


class Registers(Function):
    """A function that remembers what was stored, and interrupts or does DMA when it is told to."""

    def __init__(
        self,
        bdf: Bdf,
        *,
        bars: tuple[BarModel, ...] = (BarModel(0, 0x10000, wide=True),),
        msix: MsixLayout | None = None,
        msi: MsiLayout | None = None,
        pin: int = 1,
        device_id: int = 0x1572,
        **wishes: object,
    ) -> None:
        config = endpoint_config(
            0x8086, device_id, 0x020000, interrupt_pin=pin, msix=msix, msi=msi, **wishes
        )
        super().__init__(bdf, config, bars)
        self.stored: dict[tuple[int, int], int] = {}

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        value = 0
        for index in range(width):
            value |= self.stored.get((bar, offset + index), 0) << 8 * index
        return value

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        for index in range(width):
            self.stored[bar, offset + index] = value >> 8 * index & 0xFF


class Host:
    """A machine with a port for each function, all bound to vfio-pci.

    ``makers`` are called with the function's address: bus 1 upwards, or those of ``at``.
    """

    def __init__(
        self, *makers: Callable[[Bdf], Function], at: tuple[Bdf, ...] = (), **wishes: object
    ) -> None:
        self.machine = Machine(ram=512 * MIB)
        self.machine.add_host_bridge(iommu=self.machine.add_iommu())
        self.functions: list[Function] = []
        places = at or tuple(Bdf(0, number, 0, 0) for number in range(1, len(makers) + 1))
        for number, (make, bdf) in enumerate(zip(makers, places, strict=True), 1):
            low = 0xC000_0000 + 64 * MIB * number
            window = (low, low + 64 * MIB)
            self.machine.add(root_port(Bdf(0, 0, number, 0), bdf.bus, window=window))
            function = make(bdf)
            self.machine.add(function)
            _place(function, low)
            self.functions.append(function)
        self.kernel = SoftwareKernel(self.machine, native_drivers=False, **wishes)
        for function in self.functions:
            tree = self.kernel.tree
            tree.write(f"/sys/bus/pci/devices/{function.bdf}/driver_override", b"vfio-pci")
            tree.write("/sys/bus/pci/drivers_probe", str(function.bdf).encode())

    def open(self, number: int = 0, **wishes: object) -> Device:
        return open_device(self.kernel, self.functions[number].bdf, **wishes)


def _place(function: Function, address: int) -> None:
    port = 0x3000
    for bar in sorted(function.bars.values(), key=lambda each: -each.size):
        register = 0x10 + 4 * bar.index
        if not bar.memory:
            function.config_write(register, 4, port)
            port += bar.size
            continue
        address = -(-address // max(bar.size, 4096)) * max(bar.size, 4096)
        function.config_write(register, 4, address)
        if bar.wide:
            function.config_write(register + 4, 4, 0)
        address += bar.size


def nvme(bdf: Bdf) -> Function:
    return NvmeFunction.synthetic(bdf)


def without_mappable_table(device: Device) -> Device:
    """As kernels before 4.16 answered: nothing is said of mapping the MSI-X table along."""
    for index in range(6):
        region = device.region(index)
        region.info = replace(region.info, msix_mappable=False)
    return device
