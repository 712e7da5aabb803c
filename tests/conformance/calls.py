"""Requests of the VFIO interface in one line each."""

from __future__ import annotations

import struct
from typing import NamedTuple

import vfio_requests
from conformance.host import CONFIG_REGION, Host
from vfiokit.abi import vfio as abi

RW = abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE
INTX, MSI, MSIX = (
    abi.VFIO_PCI_INTX_IRQ_INDEX,
    abi.VFIO_PCI_MSI_IRQ_INDEX,
    abi.VFIO_PCI_MSIX_IRQ_INDEX,
)
ERR, REQ = abi.VFIO_PCI_ERR_IRQ_INDEX, abi.VFIO_PCI_REQ_IRQ_INDEX
NONE, BOOL, EVENTFD = (
    abi.VFIO_IRQ_SET_DATA_NONE,
    abi.VFIO_IRQ_SET_DATA_BOOL,
    abi.VFIO_IRQ_SET_DATA_EVENTFD,
)
MASK, UNMASK, TRIGGER = (
    abi.VFIO_IRQ_SET_ACTION_MASK,
    abi.VFIO_IRQ_SET_ACTION_UNMASK,
    abi.VFIO_IRQ_SET_ACTION_TRIGGER,
)


# --- Groups and containers ---


def node(host: Host, role: str) -> str:
    """The group's device node."""
    return f"/dev/vfio/{host.group(role)}"


def open_group(host: Host, role: str) -> int:
    """The group of a function."""
    return host.open(node(host, role))


def container(host: Host) -> int:
    """A new container."""
    return host.open("/dev/vfio/vfio")


def set_container(host: Host, group: int, fd: int) -> int:
    """``VFIO_GROUP_SET_CONTAINER``."""
    return host.ioctl(group, abi.VFIO_GROUP_SET_CONTAINER, bytearray(struct.pack("<i", fd)))


def unset_container(host: Host, group: int) -> int:
    """``VFIO_GROUP_UNSET_CONTAINER``."""
    return host.ioctl(group, abi.VFIO_GROUP_UNSET_CONTAINER)


def group_flags(host: Host, group: int, argsz: int = 8) -> int:
    """``VFIO_GROUP_GET_STATUS``."""
    buffer = abi.vfio_group_status(argsz=argsz).pack()
    host.ioctl(group, abi.VFIO_GROUP_GET_STATUS, buffer)
    return abi.vfio_group_status.unpack_from(buffer).flags


def set_iommu(host: Host, fd: int, kind: int = abi.VFIO_TYPE1v2_IOMMU) -> int:
    """``VFIO_SET_IOMMU``."""
    return host.ioctl(fd, abi.VFIO_SET_IOMMU, kind)


def join(host: Host, role: str, kind: int = abi.VFIO_TYPE1v2_IOMMU) -> tuple[int, int]:
    """A container with the group of ``role`` in it: ``(container, group)``."""
    group, fd = open_group(host, role), container(host)
    set_container(host, group, fd)
    set_iommu(host, fd, kind)
    return fd, group


def device_fd(host: Host, group: int, name: str) -> int:
    """``VFIO_GROUP_GET_DEVICE_FD``."""
    argument = bytearray(name.encode() + b"\0")
    return host.own(host.ioctl(group, abi.VFIO_GROUP_GET_DEVICE_FD, argument))


class Opened(NamedTuple):
    """A function opened through its group."""

    container: int
    group: int
    fd: int


def open_role(host: Host, role: str, kind: int = abi.VFIO_TYPE1v2_IOMMU) -> Opened:
    """Container, group and device."""
    fd, group = join(host, role, kind)
    opened = Opened(fd, group, device_fd(host, group, str(host.roles[role])))
    settle(host, role, opened.fd)
    return opened


def settle(host: Host, role: str, fd: int) -> None:
    """Acknowledge what an earlier user left asserted: QEMU's edu keeps that across resets."""
    if role in ("edu", "below", "rooted"):
        poke(host, fd, 0, EDU_ACKNOWLEDGE, 0xFFFFFFFF)


def open_device(host: Host, role: str) -> int:
    """Only the device; container and group stay open."""
    return open_role(host, role).fd


# --- type1 ---


def map_dma(
    host: Host,
    fd: int,
    iova: int,
    vaddr: int,
    size: int,
    flags: int = RW,
    argsz: int = abi.vfio_iommu_type1_dma_map.SIZE,
) -> int:
    """``VFIO_IOMMU_MAP_DMA``."""
    wish = abi.vfio_iommu_type1_dma_map(argsz=argsz, flags=flags, vaddr=vaddr, iova=iova, size=size)
    return host.ioctl(fd, abi.VFIO_IOMMU_MAP_DMA, wish.pack())


def unmap_dma(
    host: Host,
    fd: int,
    iova: int,
    size: int,
    flags: int = 0,
    argsz: int = abi.vfio_iommu_type1_dma_unmap.SIZE,
) -> int:
    """``VFIO_IOMMU_UNMAP_DMA``; the size that came back."""
    buffer = abi.vfio_iommu_type1_dma_unmap(argsz=argsz, flags=flags, iova=iova, size=size).pack()
    host.ioctl(fd, abi.VFIO_IOMMU_UNMAP_DMA, buffer)
    return abi.vfio_iommu_type1_dma_unmap.unpack_from(buffer).size


def iommu_info(host: Host, fd: int, argsz: int = 4096) -> bytearray:
    """``VFIO_IOMMU_GET_INFO``: the buffer."""
    buffer = bytearray(max(argsz, 24))
    buffer[:4] = argsz.to_bytes(4, "little")
    host.ioctl(fd, abi.VFIO_IOMMU_GET_INFO, buffer)
    return buffer


def chain(buffer: bytearray, first: int, limit: int) -> list[tuple[int, bytes]]:
    """Capabilities of an information buffer, ``(id, bytes from its header on)``; links checked."""
    found: list[tuple[int, bytes]] = []
    at, seen = first, set[int]()
    while at:
        assert at not in seen, "the chain is a loop"
        assert at % 8 == 0 or at % 4 == 0, f"a capability at {at}"
        assert at + abi.vfio_info_cap_header.SIZE <= limit, f"a capability at {at} of {limit}"
        seen.add(at)
        head = abi.vfio_info_cap_header.unpack_from(buffer, at)
        found.append((head.id, bytes(buffer[at:limit])))
        at = head.next
    return found


def iova_ranges(host: Host, fd: int) -> list[tuple[int, int]]:
    """Usable IOVA ranges, ``(first, last)``."""
    buffer = iommu_info(host, fd)
    info = abi.vfio_iommu_type1_info.unpack_from(buffer)
    for cap_id, data in chain(buffer, info.cap_offset, len(buffer)):
        if cap_id == abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            (count,) = struct.unpack_from("<I", data, 8)
            return [struct.unpack_from("<QQ", data, 16 + 16 * index) for index in range(count)]
    return []


# --- Devices ---


def device_info(host: Host, fd: int, argsz: int = 24) -> abi.vfio_device_info:
    """``VFIO_DEVICE_GET_INFO``."""
    buffer = bytearray(max(argsz, 24))
    buffer[:4] = argsz.to_bytes(4, "little")
    host.ioctl(fd, abi.VFIO_DEVICE_GET_INFO, buffer)
    return abi.vfio_device_info.unpack_from(buffer)


def region_buffer(host: Host, fd: int, index: int, argsz: int = 32) -> bytearray:
    """``VFIO_DEVICE_GET_REGION_INFO``: the buffer."""
    buffer = bytearray(max(argsz, 32))
    abi.vfio_region_info(argsz=argsz, index=index).pack_into(buffer)
    host.ioctl(fd, abi.VFIO_DEVICE_GET_REGION_INFO, buffer)
    return buffer


def region_info(host: Host, fd: int, index: int, argsz: int = 32) -> abi.vfio_region_info:
    """``VFIO_DEVICE_GET_REGION_INFO``."""
    return abi.vfio_region_info.unpack_from(region_buffer(host, fd, index, argsz))


def irq_info(host: Host, fd: int, index: int, argsz: int = 16) -> abi.vfio_irq_info:
    """``VFIO_DEVICE_GET_IRQ_INFO``."""
    buffer = abi.vfio_irq_info(argsz=argsz, index=index).pack()
    host.ioctl(fd, abi.VFIO_DEVICE_GET_IRQ_INFO, buffer)
    return abi.vfio_irq_info.unpack_from(buffer)


def set_irqs(
    host: Host,
    fd: int,
    flags: int,
    index: int,
    start: int,
    count: int,
    data: bytes = b"",
    argsz: int | None = None,
) -> int:
    """``VFIO_DEVICE_SET_IRQS``."""
    wish = vfio_requests.irq_set(flags, index, start, count, data, argsz)
    return host.ioctl(fd, abi.VFIO_DEVICE_SET_IRQS, wish)


def enable(host: Host, fd: int, index: int, events: list[int], start: int = 0) -> int:
    """Give vectors their eventfds (-1: none)."""
    data = struct.pack(f"<{len(events)}i", *events)
    return set_irqs(host, fd, EVENTFD | TRIGGER, index, start, len(events), data)


def disable(host: Host, fd: int, index: int) -> int:
    """Disable a whole index."""
    return set_irqs(host, fd, NONE | TRIGGER, index, 0, 0)


def bar(index: int, offset: int = 0) -> int:
    """File offset of a byte of a BAR."""
    return (index << abi.VFIO_PCI_OFFSET_SHIFT) + offset


def peek(host: Host, fd: int, index: int, offset: int, width: int = 4) -> int:
    """A load from a BAR by ``pread``."""
    return int.from_bytes(host.kernel.pread(fd, width, bar(index, offset)), "little")


def poke(host: Host, fd: int, index: int, offset: int, value: int, width: int = 4) -> None:
    """A store to a BAR by ``pwrite``."""
    written = host.kernel.pwrite(fd, value.to_bytes(width, "little"), bar(index, offset))
    assert written == width


def config(host: Host, fd: int, offset: int, width: int) -> int:
    """Emulated configuration space."""
    data = host.kernel.pread(fd, width, CONFIG_REGION + offset)
    assert len(data) == width
    return int.from_bytes(data, "little")


def set_config(host: Host, fd: int, offset: int, width: int, value: int) -> None:
    """Write emulated configuration space."""
    written = host.kernel.pwrite(fd, value.to_bytes(width, "little"), CONFIG_REGION + offset)
    assert written == width


def real_config(host: Host, role: str, offset: int, width: int) -> int:
    """The hardware's configuration space, by sysfs."""
    data = host.kernel.tree.read(host.path(role, "config"))
    return int.from_bytes(data[offset : offset + width], "little")


def capability(host: Host, fd: int, wanted: int) -> int:
    """Offset of a standard capability in emulated configuration space; 0 when it is not shown."""
    at = config(host, fd, 0x34, 1) if config(host, fd, 0x06, 2) & 0x10 else 0
    for _ in range(48):
        if not at:
            return 0
        if config(host, fd, at, 1) == wanted:
            return at
        at = config(host, fd, at + 1, 1)
    raise AssertionError("the capability list is a loop")


def extended_capability(host: Host, fd: int, wanted: int) -> int:
    """Offset of an extended capability in emulated configuration space; 0 when it is not shown."""
    at = 0x100
    for _ in range(64):
        head = config(host, fd, at, 4)
        if not head:
            return 0
        if head & 0xFFFF == wanted:
            return at
        at = head >> 20
        if not at:
            return 0
    raise AssertionError("the extended capability list is a loop")


def feature(
    host: Host, fd: int, flags: int, payload: bytes = b"", argsz: int | None = None
) -> tuple[int, bytes]:
    """``VFIO_DEVICE_FEATURE``: result and payload."""
    size = abi.vfio_device_feature.SIZE
    buffer = abi.vfio_device_feature(
        argsz=size + len(payload) if argsz is None else argsz, flags=flags
    ).pack()
    buffer += payload
    result = host.ioctl(fd, abi.VFIO_DEVICE_FEATURE, buffer)
    return result, bytes(buffer[size:])


# --- The educational device ---

EDU_ID, EDU_LIVENESS = 0x00, 0x04
EDU_STATUS, EDU_IRQ_STATUS, EDU_RAISE, EDU_ACKNOWLEDGE = 0x20, 0x24, 0x60, 0x64
EDU_BUFFER = 0x40000
_FROM_RAM, _TO_RAM = 1, 3


def edu_master(host: Host, fd: int) -> None:
    """Allow the device to do DMA."""
    set_config(host, fd, 0x04, 2, config(host, fd, 0x04, 2) | 0x6)


def edu_dma(host: Host, fd: int, source: int, destination: int, length: int, command: int) -> None:
    """One transfer, until the device says that it is done."""
    for offset, value in ((0x80, source), (0x88, destination), (0x90, length), (0x98, command)):
        poke(host, fd, 0, offset, value, 8)
    assert host.until(lambda: not peek(host, fd, 0, 0x98, 8) & 1), "the transfer does not end"


def edu_reads(host: Host, fd: int, iova: int, length: int) -> None:
    """From memory into the device's buffer."""
    edu_dma(host, fd, iova, EDU_BUFFER, length, _FROM_RAM)


def edu_writes(host: Host, fd: int, iova: int, length: int) -> None:
    """From the device's buffer to memory."""
    edu_dma(host, fd, EDU_BUFFER, iova, length, _TO_RAM)
