"""A host with one IOMMU group and one device, reached through the seam.

Small, but coherent: groups, container, type1 mappings, regions and interrupts keep state and
answer with the kernel's errno (Linux ``container.c``, ``group.c``, ``vfio_iommu_type1.c``,
``vfio_pci_intrs.c``). Eventfds and memory are real.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field

from vfiokit.abi import vfio as abi
from vfiokit.kernel.linux import LinuxKernel

BDF = "0000:00:04.0"
GROUP = 7
PAGE = 4096


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FakeTree:
    """Links and folders of sysfs, from a table of members and their drivers."""

    def __init__(self, members: dict[str, str | None]) -> None:
        self.members = members

    def exists(self, path: str) -> bool:
        return path.removeprefix("/sys/bus/pci/devices/") in self.members

    def list(self, path: str) -> list[str]:
        if path != f"/sys/kernel/iommu_groups/{GROUP}/devices":
            raise error(errno.ENOENT)
        return sorted(self.members)

    def readlink(self, path: str) -> str:
        parts = path.split("/")
        if parts[-1] == "iommu_group" and parts[-2] in self.members:
            return f"../../../kernel/iommu_groups/{GROUP}"
        if parts[-1] == "driver" and self.members.get(parts[-2]):
            return f"../../../../bus/pci/drivers/{self.members[parts[-2]]}"
        raise error(errno.ENOENT)

    def read(self, path: str) -> bytes:
        raise error(errno.ENOENT)

    def write(self, path: str, data: bytes) -> None:
        raise error(errno.EACCES)


@dataclass
class FakeMapping:
    """A window on the bytes of a region."""

    data: bytearray
    start: int
    length: int
    closed: bool = False
    view = None

    def _access(self, offset: int, width: int, value: int | None = None) -> int:
        if self.closed:
            raise ValueError("mapping is closed")
        if offset < 0 or offset % width or offset + width > self.length:
            raise IndexError(offset)
        place = slice(self.start + offset, self.start + offset + width)
        if value is not None:
            if not 0 <= value < 1 << 8 * width:
                raise ValueError(value)
            self.data[place] = value.to_bytes(width, "little")
        return int.from_bytes(self.data[place], "little")

    def read8(self, offset: int) -> int:
        return self._access(offset, 1)

    def read16(self, offset: int) -> int:
        return self._access(offset, 2)

    def read32(self, offset: int) -> int:
        return self._access(offset, 4)

    def read64(self, offset: int) -> int:
        return self._access(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        self._access(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self._access(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        self._access(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        self._access(offset, 8, value)

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeHost:
    """The seam's :class:`Kernel` for that host; its fields are what a test may vary and look at."""

    members: dict[str, str | None] = field(default_factory=lambda: {BDF: "vfio-pci"})
    iova_ranges: list[tuple[int, int]] = field(
        default_factory=lambda: [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)]
    )
    extensions: set[int] = field(default_factory=lambda: {1, 3, abi.VFIO_UNMAP_ALL})
    bars: dict[int, bytearray] = field(default_factory=lambda: {0: bytearray(4 * PAGE)})
    sparse: list[tuple[int, int]] | None = None
    irq_counts: tuple[int, ...] = (1, 1, 8, 0, 1)
    irqs_to_give: int = 8
    memlock_bytes: int = 1 << 40
    page_size: int = PAGE

    def __post_init__(self) -> None:
        self.real = LinuxKernel()
        self.tree = FakeTree(self.members)
        self.open_fds: dict[int, str] = {}
        self.closed_order: list[str] = []
        self.attached = False
        self.iommu = 0
        self.mappings: dict[int, tuple[int, int]] = {}
        self.config = bytearray(256)
        self.active: dict[int, dict[int, int]] = {}
        self.masked = False
        self.resample = -1
        self.resets = 0
        self.calls: list[int] = []
        self._next_fd = 1000

    # -- files ------------------------------------------------------------------------------

    def _new_fd(self, kind: str) -> int:
        self._next_fd += 1
        self.open_fds[self._next_fd] = kind
        return self._next_fd

    def open(self, path: str, flags: int = 2) -> int:
        if path == "/dev/vfio/vfio":
            return self._new_fd("container")
        if path == f"/dev/vfio/{GROUP}":
            if "group" in self.open_fds.values():
                raise error(errno.EBUSY)
            return self._new_fd("group")
        raise error(errno.ENOENT)

    def close(self, fd: int) -> None:
        if fd not in self.open_fds:
            self.real.close(fd)
            return
        kind = self.open_fds.pop(fd)
        self.closed_order.append(kind)
        if kind == "container":
            self.mappings.clear()
        if kind == "group":
            self.attached = False

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        self.calls.append(request)
        handler = getattr(self, f"_{self.open_fds[fd]}_{request - 0x3B64}", None)
        if handler is None:
            raise error(errno.ENOTTY)
        return int(handler(argument) or 0)

    # -- container --------------------------------------------------------------------------

    def _container_0(self, _argument: int) -> int:
        return abi.VFIO_API_VERSION

    def _container_1(self, extension: int) -> int:
        return int(extension in self.extensions)

    def _container_2(self, kind: int) -> None:
        if not self.attached or self.iommu:
            raise error(errno.EINVAL)
        self.iommu = kind

    def _container_12(self, buffer: bytearray) -> None:
        needed = 24 + 16 + 16 * len(self.iova_ranges)
        argsz = struct.unpack_from("<I", buffer)[0]
        fits = argsz >= needed
        struct.pack_into("<IIQII", buffer, 0, needed, 3, PAGE, 24 if fits else 0, 0)
        if fits:
            struct.pack_into("<HHIII", buffer, 24, 1, 1, 0, len(self.iova_ranges), 0)
            for index, pair in enumerate(self.iova_ranges):
                struct.pack_into("<QQ", buffer, 40 + 16 * index, *pair)

    def _container_13(self, buffer: bytearray) -> None:
        _argsz, flags, vaddr, iova, size = struct.unpack("<IIQQQ", buffer)
        if not size or (size | iova | vaddr) % PAGE or not flags & 3:
            raise error(errno.EINVAL)
        if any(
            start < iova + size and iova < start + length
            for start, (length, _) in self.mappings.items()
        ):
            raise error(errno.EEXIST)
        if not any(start <= iova and iova + size - 1 <= last for start, last in self.iova_ranges):
            raise error(errno.EINVAL)
        if sum(length for length, _ in self.mappings.values()) + size > self.memlock_bytes:
            raise error(errno.ENOMEM)
        self.mappings[iova] = (size, vaddr)

    def _container_14(self, buffer: bytearray) -> None:
        _argsz, flags, iova, size = struct.unpack_from("<IIQQ", buffer)
        if flags & abi.VFIO_DMA_UNMAP_FLAG_ALL:
            gone = list(self.mappings)
        else:
            if not size or (iova | size) % PAGE:
                raise error(errno.EINVAL)
            end = iova + size
            for start, (length, _) in self.mappings.items():
                overlaps = start < end and iova < start + length
                if overlaps and (start < iova or start + length > end):
                    raise error(errno.EINVAL)
            gone = [start for start in self.mappings if iova <= start < end]
        struct.pack_into("<Q", buffer, 16, sum(self.mappings.pop(start)[0] for start in gone))

    # -- group ------------------------------------------------------------------------------

    def _group_3(self, buffer: bytearray) -> None:
        viable = all(driver in (None, "vfio-pci", "pcieport") for driver in self.members.values())
        struct.pack_into("<I", buffer, 4, int(viable) | (2 if self.attached else 0))

    def _group_4(self, buffer: bytearray) -> None:
        if self.open_fds.get(struct.unpack("<i", buffer)[0]) != "container":
            raise error(errno.EBADF)
        if self.attached:
            raise error(errno.EINVAL)
        self.attached = True

    def _group_5(self, _argument: int) -> None:
        if not self.attached:
            raise error(errno.EINVAL)
        if "device" in self.open_fds.values():
            raise error(errno.EBUSY)
        self.attached = False
        self.iommu = 0
        self.mappings.clear()

    def _group_6(self, buffer: bytearray) -> int:
        if not self.attached or not self.iommu:
            raise error(errno.EINVAL)
        name = bytes(buffer).split(b"\0")[0].decode()
        if self.members.get(name) != "vfio-pci":
            raise error(errno.ENODEV)
        return self._new_fd("device")

    # -- device -----------------------------------------------------------------------------

    def _device_7(self, buffer: bytearray) -> None:
        struct.pack_into("<IIII", buffer, 0, 24, 3, 9, 5)

    def _size(self, index: int) -> int:
        return len(self.config) if index == 7 else len(self.bars.get(index, b""))

    def _device_8(self, buffer: bytearray) -> None:
        argsz, _flags, index = struct.unpack_from("<III", buffer)
        if index >= 8:  # the function is no VGA
            raise error(errno.EINVAL)
        size = self._size(index)
        flags = (3 if size else 0) | (4 if index in self.bars else 0)
        areas = self.sparse if self.sparse is not None and index in self.bars else None
        needed = 32 if areas is None else 48 + 16 * len(areas)
        offset = 32 if areas is not None and argsz >= needed else 0
        flags |= 8 if areas is not None else 0
        struct.pack_into("<IIIIQQ", buffer, 0, needed, flags, index, offset, size, index << 40)
        if offset and areas is not None:
            struct.pack_into("<HHIII", buffer, 32, 1, 1, 0, len(areas), 0)
            for number, area in enumerate(areas):
                struct.pack_into("<QQ", buffer, 48 + 16 * number, *area)

    def _device_9(self, buffer: bytearray) -> None:
        index = struct.unpack_from("<I", buffer, 8)[0]
        flags = 7 if index == 0 else 9
        struct.pack_into("<IIII", buffer, 0, 16, flags, index, self.irq_counts[index])

    def _device_10(self, buffer: bytearray) -> int:
        argsz, flags, index, start, count = struct.unpack_from("<IIIII", buffer)
        if index >= 5 or start >= self.irq_counts[index] or start + count > self.irq_counts[index]:
            raise error(errno.EINVAL)
        data, action = flags & 7, flags & 0x38
        fds = struct.unpack_from(f"<{count}i", buffer, 20) if data == 4 else ()
        if argsz < 20 + 4 * len(fds):
            raise error(errno.EINVAL)
        exclusive = set(self.active) & {0, 1, 2}
        if index < 3 and exclusive - {index}:
            raise error(errno.EINVAL)
        if action != abi.VFIO_IRQ_SET_ACTION_TRIGGER:
            return self._mask(index, action, fds)
        if data == 1 and count == 0:
            self.active.pop(index, None)
        elif data == 1:
            for vector in range(start, start + count):
                if index not in self.active or vector not in self.active[index]:
                    raise error(errno.EINVAL)
                self.signal(index, vector)
        else:
            if count > self.irqs_to_give:
                return self.irqs_to_give
            self.active.setdefault(index, {}).update(
                zip(range(start, start + count), fds, strict=True)
            )
        return 0

    def _mask(self, index: int, action: int, fds: tuple[int, ...]) -> int:
        if index != 0:
            raise error(errno.ENOTTY)
        if 0 not in self.active:
            raise error(errno.EINVAL)
        if fds:
            self.resample = fds[0]
        else:
            self.masked = action == abi.VFIO_IRQ_SET_ACTION_MASK
        return 0

    def signal(self, index: int, vector: int) -> None:
        """The device interrupts; INTx masks itself."""
        if index == 0 and self.masked:
            return
        self.masked = index == 0
        self.eventfd_write(self.active[index][vector])

    def _device_11(self, _argument: int) -> None:
        self.resets += 1

    def _device_17(self, buffer: bytearray) -> int:
        _argsz, flags = struct.unpack_from("<II", buffer)
        feature, operation = flags & 0xFFFF, flags & ~0xFFFF
        if feature != abi.VFIO_DEVICE_FEATURE_MIGRATION:
            raise error(errno.ENOTTY)
        if operation & abi.VFIO_DEVICE_FEATURE_SET:
            raise error(errno.EINVAL)
        if not operation & abi.VFIO_DEVICE_FEATURE_PROBE:
            struct.pack_into("<Q", buffer, 8, abi.VFIO_MIGRATION_STOP_COPY)
        return 0

    # -- data -------------------------------------------------------------------------------

    def _bytes(self, offset: int) -> tuple[bytearray, int]:
        index = offset >> 40
        data = self.config if index == 7 else self.bars.get(index)
        if data is None or offset & ((1 << 40) - 1) >= len(data):
            raise error(errno.EINVAL)
        return data, offset & ((1 << 40) - 1)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        data, start = self._bytes(offset)
        return bytes(data[start : start + min(length, 100)])

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        target, start = self._bytes(offset)
        part = bytes(data[:100])
        target[start : start + len(part)] = part
        return len(part)

    def mmap(self, fd: int, length: int, offset: int, protection: int = 3) -> FakeMapping:
        data, start = self._bytes(offset)
        if start + length > len(data):
            raise error(errno.EINVAL)
        return FakeMapping(data, start, length)

    def allocate(self, length: int, *, huge_page_size: int = 0):
        return self.real.allocate(length, huge_page_size=huge_page_size)

    def eventfd(self, initial: int = 0, flags: int = 0o2004000) -> int:
        return self.real.eventfd(initial, flags)

    def eventfd_read(self, fd: int) -> int:
        return self.real.eventfd_read(fd)

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        self.real.eventfd_write(fd, value)
