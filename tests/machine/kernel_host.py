"""A small machine with a kernel, and short ways to talk to its VFIO."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import vfio_requests
from vfiokit.abi import vfio as abi
from vfiokit.machine.build import MsiLayout, MsixLayout, endpoint_config
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import root_port
from vfiokit.pci.address import Bdf

PORT = Bdf.parse("0000:00:01.0")
NIC = Bdf.parse("0000:01:00.0")  # PCIe, FLR, MSI-X, MSI, INTx
SHARED_PORT = Bdf.parse("0000:00:02.0")  # no ACS: what is below shares its group
FIRST, SECOND = Bdf.parse("0000:02:00.0"), Bdf.parse("0000:02:00.1")
EDU = Bdf.parse("0000:00:04.0")  # conventional PCI

NIC_BAR = 0xE000_0000
NIC_SMALL_BAR = 0xE002_0000
NIC_IO_BAR = 0x3000
TABLE_OFFSET = 0x2000
VECTORS = 8
PAGE = 4096
GIB = 1 << 30


class Nic(Function):
    """Registers that remember what was stored, and whatever interrupts a test asks for."""

    def __init__(self, bdf: Bdf) -> None:
        config = endpoint_config(
            0x8086,
            0x1572,
            0x020000,
            revision=2,
            subsystem_vendor_id=0x8086,
            subsystem_id=0x0001,
            interrupt_pin=1,
            no_soft_reset=False,
            msi=MsiLayout(4, maskable=True),
            msix=MsixLayout(VECTORS, 0, TABLE_OFFSET),
            aer=True,
            serial_number=0x1122334455667788,
        )
        super().__init__(
            bdf,
            config,
            (
                BarModel(0, 0x10000, wide=True),
                BarModel(2, 0x100),
                BarModel(3, 0x20, memory=False),
            ),
        )
        self.stored: dict[tuple[int, int], tuple[int, int]] = {}

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        return self.stored.get((bar, offset), (0, width))[0] & ((1 << 8 * width) - 1)

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.stored[bar, offset] = (value, width)


class KernelHost:
    """The machine, its kernel, and what a test opened."""

    def __init__(self, *, iommu: bool = True, **wishes: object) -> None:
        self.machine = machine = Machine(ram=GIB)
        unit = machine.add_iommu() if iommu else None
        machine.add_host_bridge(iommu=unit)
        machine.add(root_port(PORT, 1, window=(0xE000_0000, 0xE010_0000)))
        machine.add(
            root_port(SHARED_PORT, 2, window=(0xE020_0000, 0xE040_0000), acs_capability=None)
        )
        self.nic = Nic(NIC)
        machine.add(self.nic)
        for number, bdf in enumerate((FIRST, SECOND)):
            config = endpoint_config(0x1AF4, 0x1041, 0x020000, multifunction=True)
            each = Function(bdf, config, (BarModel(0, 0x10000),))
            machine.add(each)
            each.config_write(0x10, 4, 0xE020_0000 + number * 0x10000)
        self.edu = EduFunction(EDU)
        machine.add(self.edu)
        self.nic.config_write(0x10, 4, NIC_BAR)
        self.nic.config_write(0x18, 4, NIC_SMALL_BAR)
        self.nic.config_write(0x1C, 4, NIC_IO_BAR)
        self.edu.config_write(0x10, 4, 0xE100_0000)
        self.kernel = SoftwareKernel(machine, **wishes)

    # -- sysfs --------------------------------------------------------------------------------

    def bind(self, bdf: Bdf, driver: str = "vfio-pci") -> None:
        tree = self.kernel.tree
        tree.write(f"/sys/bus/pci/devices/{bdf}/driver_override", driver.encode())
        tree.write(f"/sys/bus/pci/drivers/{driver}/bind", f"{bdf}\n".encode())

    def unbind(self, bdf: Bdf) -> None:
        self.kernel.tree.write(f"/sys/bus/pci/devices/{bdf}/driver/unbind", str(bdf).encode())

    def group_number(self, bdf: Bdf) -> int:
        link = self.kernel.tree.readlink(f"/sys/bus/pci/devices/{bdf}/iommu_group")
        return int(link.rpartition("/")[2])

    # -- VFIO ---------------------------------------------------------------------------------

    def open_group(self, bdf: Bdf) -> int:
        return self.kernel.open(f"/dev/vfio/{self.group_number(bdf)}")

    def container(self) -> int:
        return self.kernel.open("/dev/vfio/vfio")

    def set_container(self, group: int, container: int) -> int:
        return self.kernel.ioctl(
            group, abi.VFIO_GROUP_SET_CONTAINER, bytearray(struct.pack("<i", container))
        )

    def ready(self, bdf: Bdf, kind: int = abi.VFIO_TYPE1v2_IOMMU) -> tuple[int, int]:
        """Bound, opened and attached: ``(container, group)``."""
        if self.kernel.device(bdf).driver != "vfio-pci":
            self.bind(bdf)
        group, container = self.open_group(bdf), self.container()
        self.set_container(group, container)
        self.kernel.ioctl(container, abi.VFIO_SET_IOMMU, kind)
        return container, group

    def open_device(self, bdf: Bdf) -> int:
        _container, group = self.ready(bdf)
        return self.device_fd(group, str(bdf))

    def device_fd(self, group: int, name: str) -> int:
        return self.kernel.ioctl(
            group, abi.VFIO_GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0")
        )

    def region_info(self, fd: int, index: int, argsz: int = 32) -> abi.vfio_region_info:
        buffer = bytearray(max(argsz, 32))
        abi.vfio_region_info(argsz=argsz, index=index).pack_into(buffer)
        self.kernel.ioctl(fd, abi.VFIO_DEVICE_GET_REGION_INFO, buffer)
        return abi.vfio_region_info.unpack_from(buffer)

    def set_irqs(
        self,
        fd: int,
        flags: int,
        index: int,
        start: int,
        count: int,
        data: bytes = b"",
        argsz: int | None = None,
    ) -> int:
        wish = vfio_requests.irq_set(flags, index, start, count, data, argsz)
        return self.kernel.ioctl(fd, abi.VFIO_DEVICE_SET_IRQS, wish)

    def config(self, fd: int, offset: int, width: int) -> int:
        return int.from_bytes(self.kernel.pread(fd, width, (7 << 40) + offset), "little")

    def set_config(self, fd: int, offset: int, width: int, value: int) -> None:
        self.kernel.pwrite(fd, value.to_bytes(width, "little"), (7 << 40) + offset)

    def events(self, count: int) -> list[int]:
        return [self.kernel.eventfd() for _ in range(count)]

    def taken(self, event: int) -> int:
        """The counter of an eventfd; 0 when nothing happened."""
        try:
            return self.kernel.eventfd_read(event)
        except BlockingIOError:
            return 0


def fds(*numbers: int) -> bytes:
    """Data of DATA_EVENTFD."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


@contextmanager
def refuses(code: int) -> Iterator[None]:
    """The block raises ``OSError`` with exactly this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    names = errno.errorcode
    assert caught.value.errno == code, (
        f"{names.get(caught.value.errno or 0)} instead of {names[code]}: {caught.value}"
    )
