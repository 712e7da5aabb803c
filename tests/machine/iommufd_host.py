"""Short ways to talk to the software kernel's iommufd and device nodes."""

from __future__ import annotations

import struct
from typing import TypeVar

from kernel_host import NIC, PAGE, KernelHost

import vfio_requests
from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio
from vfiokit.abi._layout import CStruct
from vfiokit.kernel.port import Memory
from vfiokit.machine.kernel.process import ProcessMemory
from vfiokit.pci.address import Bdf

FIXED, RW, EVERYTHING = vfio_requests.FIXED, vfio_requests.RW, vfio_requests.EVERYTHING
READ, WRITE = vfio_requests.READABLE, vfio_requests.WRITEABLE
TOP = EVERYTHING - PAGE + 1
"""The last page."""
MSI = 0xFEE0_0000
APERTURE = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 48) - 1)]

Answer = TypeVar("Answer", bound=CStruct)


class IommufdHost(KernelHost):
    """The small machine, with one iommufd open."""

    def __init__(self, **wishes: object) -> None:
        super().__init__(**wishes)
        self.fd = self.kernel.open("/dev/iommu")
        self.page = self.kernel.allocate(PAGE)

    # -- any request --------------------------------------------------------------------------

    def ask(
        self, request: int, wish: Answer, *, fd: int | None = None, size: int | None = None
    ) -> Answer:
        """One command of iommufd; its answer is in the struct that comes back."""
        buffer = wish.pack()
        length = wish.SIZE if size is None else size
        buffer += bytes(max(length - len(buffer), 0))
        buffer[:4] = length.to_bytes(4, "little")
        try:
            self.kernel.ioctl(self.fd if fd is None else fd, request, buffer)
        finally:
            answer = type(wish).unpack_from(buffer)
            self.last = answer
        return answer

    def ask_vfio(self, fd: int, request: int, wish: Answer, argsz: int | None = None) -> Answer:
        """One request of VFIO."""
        buffer = wish.pack()
        length = wish.SIZE if argsz is None else argsz
        buffer += bytes(max(length - len(buffer), 0))
        buffer[:4] = length.to_bytes(4, "little")
        try:
            self.kernel.ioctl(fd, request, buffer)
        finally:
            answer = type(wish).unpack_from(buffer)
            self.last = answer
        return answer

    # -- iommufd ------------------------------------------------------------------------------

    def ioas(self) -> int:
        return self.ask(abi.IOMMU_IOAS_ALLOC, abi.iommu_ioas_alloc()).out_ioas_id

    def destroy(self, number: int) -> None:
        self.ask(abi.IOMMU_DESTROY, abi.iommu_destroy(id=number))

    def map(
        self,
        ioas: int,
        vaddr: int,
        length: int = PAGE,
        iova: int | None = None,
        flags: int = RW,
    ) -> int:
        wish = vfio_requests.ioas_map(ioas, vaddr, length, iova, flags)
        return self.ask(abi.IOMMU_IOAS_MAP, wish).iova

    def map_file(
        self,
        ioas: int,
        file: int,
        length: int = PAGE,
        iova: int | None = 0x10000,
        start: int = 0,
        flags: int = RW,
    ) -> int:
        wish = vfio_requests.ioas_map_file(ioas, file, length, iova, start, flags)
        return self.ask(abi.IOMMU_IOAS_MAP_FILE, wish).iova

    def copy(
        self,
        target: int,
        source: int,
        length: int,
        source_iova: int,
        iova: int | None = None,
        flags: int = RW,
    ) -> int:
        wish = vfio_requests.ioas_copy(target, source, length, source_iova, iova, flags)
        return self.ask(abi.IOMMU_IOAS_COPY, wish).dst_iova

    def unmap(self, ioas: int, iova: int = 0, length: int = EVERYTHING) -> int:
        wish = abi.iommu_ioas_unmap(ioas_id=ioas, iova=iova, length=length)
        return self.ask(abi.IOMMU_IOAS_UNMAP, wish).length

    def ranges(self, ioas: int, room: int = 16) -> tuple[list[tuple[int, int]], int]:
        """Usable ranges and the alignment."""
        wish = abi.iommu_ioas_iova_ranges(
            ioas_id=ioas, num_iovas=room, allowed_iovas=self.page.vaddr
        )
        answer = self.ask(abi.IOMMU_IOAS_IOVA_RANGES, wish)
        found = [
            struct.unpack_from("<QQ", self.page.view, 16 * index)
            for index in range(answer.num_iovas)
        ]
        return found, answer.out_iova_alignment

    def allow(self, ioas: int, *ranges: tuple[int, int]) -> None:
        for index, each in enumerate(ranges):
            struct.pack_into("<QQ", self.page.view, 16 * index, *each)
        wish = abi.iommu_ioas_allow_iovas(
            ioas_id=ioas, num_iovas=len(ranges), allowed_iovas=self.page.vaddr
        )
        self.ask(abi.IOMMU_IOAS_ALLOW_IOVAS, wish)

    def option(self, option: int, object_id: int = 0) -> int:
        wish = abi.iommu_option(option_id=option, op=1, object_id=object_id)
        return self.ask(abi.IOMMU_OPTION, wish).val64

    def set_option(self, option: int, value: int, object_id: int = 0) -> None:
        wish = abi.iommu_option(option_id=option, op=0, object_id=object_id, val64=value)
        self.ask(abi.IOMMU_OPTION, wish)

    def vfio_ioas(self, operation: int, ioas: int = 0) -> int:
        wish = abi.iommu_vfio_ioas(op=operation, ioas_id=ioas)
        return self.ask(abi.IOMMU_VFIO_IOAS, wish).ioas_id

    def hwpt(self, device: int, parent: int, **fields: int) -> int:
        wish = abi.iommu_hwpt_alloc(dev_id=device, pt_id=parent, **fields)
        return self.ask(abi.IOMMU_HWPT_ALLOC, wish).out_hwpt_id

    def memory(self, pages: int = 1) -> ProcessMemory:
        return self.kernel.allocate(pages * PAGE)

    # -- device nodes -------------------------------------------------------------------------

    def cdev(self, bdf: Bdf = NIC) -> int:
        """An open node of a function, which is bound to vfio-pci first if need be."""
        if self.kernel.device(bdf).driver != "vfio-pci":
            self.bind(bdf)
        (name,) = self.kernel.tree.list(f"/sys/bus/pci/devices/{bdf}/vfio-dev")
        return self.kernel.open(f"/dev/vfio/devices/{name}")

    def bind_iommufd(self, device: int, iommufd: int | None = None, **fields: int) -> int:
        """The device's id."""
        wish = vfio.vfio_device_bind_iommufd(
            iommufd=self.fd if iommufd is None else iommufd, **fields
        )
        return self.ask_vfio(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, wish).out_devid

    def bound(self, bdf: Bdf = NIC) -> tuple[int, int]:
        """A device bound to the iommufd: its descriptor and id."""
        fd = self.cdev(bdf)
        return fd, self.bind_iommufd(fd)

    def attach(self, device: int, target: int, pasid: int | None = None) -> int:
        wish = vfio.vfio_device_attach_iommufd_pt(
            flags=0 if pasid is None else 1, pt_id=target, pasid=pasid or 0
        )
        return self.ask_vfio(device, vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, wish).pt_id

    def detach(self, device: int, pasid: int | None = None) -> None:
        wish = vfio.vfio_device_detach_iommufd_pt(flags=0 if pasid is None else 1, pasid=pasid or 0)
        self.ask_vfio(device, vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, wish)

    def attached(self, bdf: Bdf = NIC) -> tuple[int, int]:
        """A device that may send requests, attached to a new IOAS: descriptor and IOAS."""
        fd, _number = self.bound(bdf)
        ioas = self.ioas()
        self.attach(fd, ioas)
        self.enable(fd)
        return fd, ioas

    def enable(self, device: int) -> None:
        """Memory decoding and bus mastering."""
        self.set_config(device, 4, 2, self.config(device, 4, 2) | 6)


def fill(memory: Memory, text: bytes) -> None:
    """Put ``text`` at the start of the memory."""
    memory.view[: len(text)] = text
