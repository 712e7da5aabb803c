"""Requests of iommufd and of device nodes in one line each."""

from __future__ import annotations

import struct
from typing import NamedTuple

import vfio_requests
from conformance.calls import settle
from conformance.host import PAGE, Host
from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio as vfio_abi
from vfiokit.abi._layout import CStruct

FIXED, RW, EVERYTHING = vfio_requests.FIXED, vfio_requests.RW, vfio_requests.EVERYTHING
READABLE, WRITEABLE = vfio_requests.READABLE, vfio_requests.WRITEABLE


def iommufd(host: Host) -> int:
    """``/dev/iommu``."""
    return host.open("/dev/iommu")


def call(host: Host, fd: int, request: int, wish: CStruct) -> CStruct:
    """Set ``size`` unless it is set, call, and read the answer."""
    if not wish.size:  # type: ignore[attr-defined]
        wish.size = wish.SIZE  # type: ignore[attr-defined]
    buffer = wish.pack()
    host.ioctl(fd, request, buffer)
    return type(wish).unpack_from(buffer)


def destroy(host: Host, fd: int, number: int) -> None:
    """``IOMMU_DESTROY``."""
    call(host, fd, abi.IOMMU_DESTROY, abi.iommu_destroy(id=number))


def ioas(host: Host, fd: int) -> int:
    """``IOMMU_IOAS_ALLOC``."""
    answer = call(host, fd, abi.IOMMU_IOAS_ALLOC, abi.iommu_ioas_alloc())
    return answer.out_ioas_id  # type: ignore[attr-defined,no-any-return]


def ioas_map(
    host: Host,
    fd: int,
    space: int,
    vaddr: int,
    length: int,
    iova: int | None = None,
    flags: int = RW,
) -> int:
    """``IOMMU_IOAS_MAP``, at ``iova`` or where the kernel wants; where it is."""
    wish = vfio_requests.ioas_map(space, vaddr, length, iova, flags)
    return call(host, fd, abi.IOMMU_IOAS_MAP, wish).iova  # type: ignore[attr-defined,no-any-return]


def ioas_map_file(
    host: Host,
    fd: int,
    space: int,
    file: int,
    length: int,
    iova: int | None = None,
    *,
    start: int = 0,
    flags: int = RW,
) -> int:
    """``IOMMU_IOAS_MAP_FILE``; where it is."""
    wish = vfio_requests.ioas_map_file(space, file, length, iova, start, flags)
    answer = call(host, fd, abi.IOMMU_IOAS_MAP_FILE, wish)
    return answer.iova  # type: ignore[attr-defined,no-any-return]


def ioas_unmap(host: Host, fd: int, space: int, iova: int, length: int) -> int:
    """``IOMMU_IOAS_UNMAP``; the bytes."""
    wish = abi.iommu_ioas_unmap(ioas_id=space, iova=iova, length=length)
    return call(host, fd, abi.IOMMU_IOAS_UNMAP, wish).length  # type: ignore[attr-defined,no-any-return]


def ioas_copy(
    host: Host,
    fd: int,
    source: int,
    source_iova: int,
    target: int,
    length: int,
    iova: int | None = None,
    flags: int = RW,
) -> int:
    """``IOMMU_IOAS_COPY``; where it is."""
    wish = vfio_requests.ioas_copy(target, source, length, source_iova, iova, flags)
    answer = call(host, fd, abi.IOMMU_IOAS_COPY, wish)
    return answer.dst_iova  # type: ignore[attr-defined,no-any-return]


def ioas_allow(host: Host, fd: int, space: int, *ranges: tuple[int, int]) -> None:
    """``IOMMU_IOAS_ALLOW_IOVAS``."""
    memory = host.memory()
    for index, each in enumerate(ranges):
        memory.view[16 * index : 16 * index + 16] = struct.pack("<QQ", *each)
    wish = abi.iommu_ioas_allow_iovas(
        ioas_id=space, num_iovas=len(ranges), allowed_iovas=memory.vaddr
    )
    call(host, fd, abi.IOMMU_IOAS_ALLOW_IOVAS, wish)


class Ranges(NamedTuple):
    """Answer of ``IOMMU_IOAS_IOVA_RANGES``."""

    ranges: list[tuple[int, int]]
    alignment: int


def ioas_ranges(host: Host, fd: int, space: int) -> Ranges:
    """``IOMMU_IOAS_IOVA_RANGES`` with room for all."""
    memory = host.memory()
    wish = abi.iommu_ioas_iova_ranges(
        ioas_id=space, num_iovas=PAGE // 16, allowed_iovas=memory.vaddr
    )
    answer = call(host, fd, abi.IOMMU_IOAS_IOVA_RANGES, wish)
    count: int = answer.num_iovas  # type: ignore[attr-defined]
    ranges = [struct.unpack_from("<QQ", memory.view, 16 * index) for index in range(count)]
    return Ranges(ranges, answer.out_iova_alignment)  # type: ignore[attr-defined,arg-type]


def option(host: Host, fd: int, number: int, value: int | None = None, object_id: int = 0) -> int:
    """``IOMMU_OPTION``: set with ``value``, else get."""
    wish = abi.iommu_option(
        option_id=number,
        op=abi.IOMMU_OPTION_OP_GET if value is None else abi.IOMMU_OPTION_OP_SET,
        object_id=object_id,
        val64=value or 0,
    )
    return call(host, fd, abi.IOMMU_OPTION, wish).val64  # type: ignore[attr-defined,no-any-return]


def hwpt(host: Host, fd: int, device: int, table: int, flags: int = 0, **more: int) -> int:
    """``IOMMU_HWPT_ALLOC``."""
    wish = abi.iommu_hwpt_alloc(flags=flags, dev_id=device, pt_id=table, **more)
    answer = call(host, fd, abi.IOMMU_HWPT_ALLOC, wish)
    return answer.out_hwpt_id  # type: ignore[attr-defined,no-any-return]


# --- Device nodes ---


def cdev_path(host: Host, role: str) -> str:
    """The node of a function bound to vfio-pci."""
    (name,) = host.kernel.tree.list(host.path(role, "vfio-dev"))
    return f"/dev/vfio/devices/{name}"


def open_cdev(host: Host, role: str) -> int:
    """The node, not bound yet."""
    return host.open(cdev_path(host, role))


def bind(host: Host, fd: int, context: int, flags: int = 0, argsz: int = 24, token: int = 0) -> int:
    """``VFIO_DEVICE_BIND_IOMMUFD``; the device's id."""
    buffer = vfio_abi.vfio_device_bind_iommufd(
        argsz=argsz, flags=flags, iommufd=context, token_uuid_ptr=token
    ).pack()
    host.ioctl(fd, vfio_abi.VFIO_DEVICE_BIND_IOMMUFD, buffer)
    return vfio_abi.vfio_device_bind_iommufd.unpack_from(buffer).out_devid


def attach(host: Host, fd: int, table: int, flags: int = 0, argsz: int = 16, pasid: int = 0) -> int:
    """``VFIO_DEVICE_ATTACH_IOMMUFD_PT``; the page table it is attached to."""
    buffer = vfio_abi.vfio_device_attach_iommufd_pt(
        argsz=argsz, flags=flags, pt_id=table, pasid=pasid
    ).pack()
    host.ioctl(fd, vfio_abi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, buffer)
    return vfio_abi.vfio_device_attach_iommufd_pt.unpack_from(buffer).pt_id


def detach(host: Host, fd: int, flags: int = 0, argsz: int = 12) -> None:
    """``VFIO_DEVICE_DETACH_IOMMUFD_PT``."""
    wish = vfio_abi.vfio_device_detach_iommufd_pt(argsz=argsz, flags=flags)
    host.ioctl(fd, vfio_abi.VFIO_DEVICE_DETACH_IOMMUFD_PT, wish.pack())


class Bound(NamedTuple):
    """A device bound to an iommufd."""

    context: int
    fd: int
    device: int


def bound(host: Host, role: str, context: int | None = None) -> Bound:
    """Open and bind a function by its node."""
    context = iommufd(host) if context is None else context
    fd = open_cdev(host, role)
    device = bind(host, fd, context)
    settle(host, role, fd)
    return Bound(context, fd, device)


class Attached(NamedTuple):
    """A device attached to an address space."""

    context: int
    fd: int
    device: int
    space: int
    table: int


def attached(host: Host, role: str, context: int | None = None) -> Attached:
    """Open, bind, and attach to a new address space."""
    made = bound(host, role, context)
    space = ioas(host, made.context)
    return Attached(*made, space, attach(host, made.fd, space))
