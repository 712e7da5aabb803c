"""One device behind an IOMMU, bound to vfio-pci and opened: what a driver starts from."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from vfiokit.machine.function import Function
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device, open_device

BDF = Bdf.parse("0000:00:04.0")
BAR = 0xE000_0000

Model = TypeVar("Model", bound=Function)


class Rig(Generic[Model]):
    """A machine with the function that ``make`` builds; :attr:`device` inside the block."""

    def __init__(self, make: Callable[[Bdf], Model], **kernel_wishes: object) -> None:
        self.machine = Machine(ram=256 << 20)
        self.machine.add_host_bridge(iommu=self.machine.add_iommu())
        self.function = make(BDF)
        self.machine.add(self.function)
        assert list(self.function.bars) == [0]
        self.function.config_write(0x10, 4, BAR)
        if self.function.bars[0].wide:
            self.function.config_write(0x14, 4, 0)
        self.function.config_write(0x04, 2, 0x0002)
        self.kernel = SoftwareKernel(self.machine, native_drivers=False, **kernel_wishes)
        tree = self.kernel.tree
        tree.write(f"/sys/bus/pci/devices/{BDF}/driver_override", b"vfio-pci")
        tree.write("/sys/bus/pci/drivers_probe", str(BDF).encode())
        self.device: Device

    def __enter__(self) -> Rig[Model]:
        self.device = open_device(self.kernel, BDF)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.thaw()
        self.device.close()

    def freeze(self) -> None:
        """Stop the clock: the device gets no time to work."""
        self.machine.clock.auto = False

    def thaw(self) -> None:
        """Let the clock run again."""
        self.machine.clock.auto = True
