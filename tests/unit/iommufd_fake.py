"""The host of ``vfio_fake`` with ``/dev/iommu`` and device nodes.

Answers with the errno of Linux 7.2 (``drivers/iommu/iommufd/``, ``drivers/vfio/device_cdev.c``),
in its order of checks. ``tests/lab/test_iommufd.py`` puts the same questions to a real kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass, field
from typing import Any

from vfio_fake import BDF, GROUP, PAGE, FakeHost, FakeTree, error

from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio
from vfiokit.abi.iommufd import COMMANDS

EVERYTHING = (1 << 64) - 1
SECOND = "0000:00:04.1"


class CdevTree(FakeTree):
    """Adds ``vfio-dev`` below every function that vfio-pci holds."""

    def __init__(self, members: dict[str, str | None], *, nodes: bool, noiommu: bool) -> None:
        super().__init__(members)
        self.nodes = nodes
        self.noiommu = noiommu

    def _name(self, bdf: str) -> str | None:
        if self.members.get(bdf) != "vfio-pci":
            return None
        return f"vfio{sorted(self.members).index(bdf)}"

    def exists(self, path: str) -> bool:
        parts = path.split("/")
        if "vfio-dev" not in parts:
            return super().exists(path)
        name = self._name(parts[5])
        return name is not None and (parts[-1] != "dev" or (self.nodes and not self.noiommu))

    def list(self, path: str) -> list[str]:
        if path.endswith("/vfio-dev"):
            name = self._name(path.split("/")[5])
            if name is None:
                raise error(errno.ENOENT)
            return [name, "power"]
        return super().list(path)

    def read(self, path: str) -> bytes:
        if self.noiommu and path == f"/sys/kernel/iommu_groups/{GROUP}/name":
            return b"vfio-noiommu\n"
        return super().read(path)


@dataclass(eq=False)
class FakeIoas:
    areas: dict[int, tuple[int, object]] = field(default_factory=dict)
    allowed: list[tuple[int, int]] = field(default_factory=list)
    large_pages: bool = True
    users: int = 0
    auto_hwpt: int = 0


@dataclass(eq=False)
class FakeHwpt:
    ioas: FakeIoas
    automatic: bool = False
    tracks: bool = False
    pasid: bool = False
    parent: FakeHwpt | None = None
    nest_parent: bool = False
    tracking: bool = False
    users: int = 0


@dataclass(eq=False)
class FakeFaults:
    users: int = 1  # its descriptor


@dataclass(eq=False)
class FakeDevice:
    bdf: str
    iommufd: int
    hwpt: FakeHwpt | None = None
    pasids: dict[int, FakeHwpt] = field(default_factory=dict)


@dataclass
class IommufdHost(FakeHost):
    """Fields: which nodes there are, what the IOMMU can do, what the platform reserves."""

    nodes: bool = True
    has_iommufd: bool = True
    noiommu: bool = False
    groups_exist: bool = True
    isolated_msi: bool = True
    reserved: tuple[tuple[int, int], ...] = ((0xFEE00000, 0xFEEFFFFF),)
    aperture: int = (1 << 48) - 1
    lowest_choice: int = PAGE
    tracks_dirty: bool = True
    nests: bool = False
    vf_token: bytes | None = None
    unreadable: set[str] = field(default_factory=set)
    dmabufs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tree = CdevTree(self.members, nodes=self.nodes, noiommu=self.noiommu)
        self.objects: dict[int, dict[int, object]] = {}
        self.numbers: dict[int, int] = {}
        self.bound: dict[int, FakeDevice] = {}
        self.cdevs: dict[int, str] = {}
        self.options: dict[int, int] = {}
        self.fault_fds: dict[int, FakeFaults] = {}
        self.memory: list[tuple[int, int]] = []
        self.dirty: set[int] = set()
        self.compat_ioas: dict[int, int] = {}

    # -- files ------------------------------------------------------------------------------

    def open(self, path: str, flags: int = 2) -> int:
        if path in self.unreadable:
            raise error(errno.EACCES)
        if path == "/dev/iommu" and self.has_iommufd:
            fd = self._new_fd("iommufd")
            self.objects[fd] = {}
            self.numbers[fd] = 0
            return fd
        if path.startswith("/dev/vfio/devices/vfio") and self.nodes and not self.noiommu:
            for bdf in self.members:
                if path.endswith(f"/{self.tree._name(bdf)}"):
                    fd = self._new_fd("cdev")
                    self.cdevs[fd] = bdf
                    return fd
        if path.startswith("/dev/vfio/") and not self.groups_exist:
            raise error(errno.ENOENT)
        if path == f"/dev/vfio/{GROUP}" and self.bound:
            raise error(errno.EBUSY)
        if self.noiommu:
            if path == f"/dev/vfio/{GROUP}":
                raise error(errno.ENOENT)
            if path == f"/dev/vfio/noiommu-{GROUP}":
                return super().open(f"/dev/vfio/{GROUP}", flags)
        return super().open(path, flags)

    def close(self, fd: int) -> None:
        device = self.bound.pop(fd, None)
        if device is not None:
            self._leave(device)
            numbers = self.objects.get(device.iommufd, {})
            for number in [one for one, thing in numbers.items() if thing is device]:
                del numbers[number]
        if fd in self.fault_fds:
            self.fault_fds.pop(fd).users -= 1
        self.objects.pop(fd, None)
        super().close(fd)

    def allocate(self, length: int, *, huge_page_size: int = 0):
        memory = super().allocate(length, huge_page_size=huge_page_size)
        self.memory.append((memory.vaddr, memory.length))
        return memory

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        kind = self.open_fds.get(fd)
        if kind == "iommufd":
            return self._iommufd(fd, request, argument)
        if kind == "cdev":
            self.calls.append(request)
            if request == vfio.VFIO_DEVICE_BIND_IOMMUFD:
                return self._bind(fd, argument)
            if fd not in self.bound:
                raise error(errno.EINVAL)
            if request == vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT:
                return self._attach(fd, argument)
            if request == vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT:
                return self._detach(fd, argument)
            return int(getattr(self, f"_device_{request - 0x3B64}")(argument) or 0)
        return super().ioctl(fd, request, argument)

    # -- device nodes -----------------------------------------------------------------------

    def _bind(self, fd: int, buffer: bytearray) -> int:
        head = vfio.vfio_device_bind_iommufd.unpack_from(buffer)
        bdf = self.cdevs[fd]
        if "group" in self.open_fds.values():
            raise error(errno.EBUSY)
        if self.open_fds.get(head.iommufd) != "iommufd":
            raise error(errno.EBADF)
        if fd in self.bound or any(device.bdf == bdf for device in self.bound.values()):
            raise error(errno.EINVAL)
        token = None
        if head.flags & vfio.VFIO_DEVICE_BIND_FLAG_TOKEN:
            token = ctypes.string_at(head.token_uuid_ptr, 16)
        if self.vf_token is not None and token != self.vf_token:
            raise error(errno.EACCES)
        if self.vf_token is None and token is not None:
            raise error(errno.EINVAL)
        strangers = {device.iommufd for device in self.bound.values()} - {head.iommufd}
        drivers = {driver for driver in self.members.values() if driver}
        if not self.isolated_msi or strangers or drivers - {"vfio-pci", "pcieport"}:
            raise error(errno.EPERM)
        device = FakeDevice(bdf, head.iommufd)
        self.bound[fd] = device
        struct.pack_into("<I", buffer, 12, self._number(head.iommufd, device))
        return 0

    def _attach(self, fd: int, buffer: bytearray) -> int:
        head = vfio.vfio_device_attach_iommufd_pt.unpack_from(bytes(buffer).ljust(16, b"\0"))
        device = self.bound[fd]
        target = self.objects[device.iommufd].get(head.pt_id)
        if not isinstance(target, FakeIoas | FakeHwpt):
            raise error(errno.ENOENT)
        if head.flags & vfio.VFIO_DEVICE_ATTACH_PASID:
            if not head.pasid or not isinstance(target, FakeHwpt) or not target.pasid:
                raise error(errno.EINVAL)
            device.pasids[head.pasid] = target
            return 0
        self._check_fit(target if isinstance(target, FakeIoas) else target.ioas)
        hwpt = self._table(device.iommufd, target)
        others = [one for one in self.bound.values() if one is not device and one.hwpt]
        if any(one.hwpt is not hwpt for one in others):
            self._release(device.iommufd, hwpt)
            raise error(errno.EINVAL)
        self._leave(device)
        device.hwpt = hwpt
        hwpt.users += 1
        number = next(n for n, thing in self.objects[device.iommufd].items() if thing is hwpt)
        struct.pack_into("<I", buffer, 8, number)
        return 0

    def _table(self, fd: int, target: FakeIoas | FakeHwpt) -> FakeHwpt:
        if isinstance(target, FakeHwpt):
            return target
        for thing in self.objects[fd].values():
            if isinstance(thing, FakeHwpt) and thing.automatic and thing.ioas is target:
                return thing
        hwpt = FakeHwpt(target, automatic=True)
        target.users += 1
        self._number(fd, hwpt)
        return hwpt

    def _check_fit(self, ioas: FakeIoas) -> None:
        taken = [(iova, iova + length - 1) for iova, (length, _) in ioas.areas.items()]
        for start, last in [*taken, *ioas.allowed]:
            if last > self.aperture or any(a <= last and start <= b for a, b in self.reserved):
                raise error(errno.EADDRINUSE)
        for iova, (length, source) in ioas.areas.items():
            if (iova | length) % PAGE:
                raise error(errno.EADDRINUSE)
            self._pin(source, length)

    def _leave(self, device: FakeDevice) -> None:
        hwpt, device.hwpt = device.hwpt, None
        if hwpt is None:
            return
        hwpt.users -= 1
        self._release(device.iommufd, hwpt)

    def _release(self, fd: int, hwpt: FakeHwpt) -> None:
        if hwpt.automatic and not hwpt.users:
            hwpt.ioas.users -= 1
            numbers = self.objects.get(fd, {})
            for number in [one for one, thing in numbers.items() if thing is hwpt]:
                del numbers[number]

    def _detach(self, fd: int, buffer: bytearray) -> int:
        _argsz, flags = struct.unpack_from("<II", buffer)
        if flags & vfio.VFIO_DEVICE_DETACH_PASID:
            self.bound[fd].pasids.pop(struct.unpack_from("<I", buffer, 8)[0], None)
        else:
            self._leave(self.bound[fd])
        return 0

    # -- iommufd ----------------------------------------------------------------------------

    def _number(self, fd: int, thing: object) -> int:
        self.numbers[fd] += 1
        self.objects[fd][self.numbers[fd]] = thing
        return self.numbers[fd]

    def _find(self, fd: int, number: int, kind: type) -> Any:
        thing = self.objects[fd].get(number)
        if not isinstance(thing, kind):
            raise error(errno.ENOENT)
        return thing

    def _iommufd(self, fd: int, request: int, buffer: bytearray) -> int:
        self.calls.append(request)
        if request not in COMMANDS:
            raise error(errno.ENOTTY)
        kind, least = COMMANDS[request]
        size = struct.unpack_from("<I", buffer)[0]
        if size < least:
            raise error(errno.EINVAL)
        argument = kind.unpack_from(bytes(buffer).ljust(kind.SIZE, b"\0"))
        handler = getattr(self, f"_{kind.__name__}", None)
        if handler is None:
            raise error(errno.ENOTTY)
        try:
            handler(fd, argument)
        finally:
            buffer[:] = argument.pack()[: len(buffer)]
        return 0

    def _iommu_destroy(self, fd: int, argument: abi.iommu_destroy) -> None:
        thing = self.objects[fd].get(argument.id)
        if thing is None:
            raise error(errno.ENOENT)
        if isinstance(thing, FakeDevice) or getattr(thing, "users", 0):
            raise error(errno.EBUSY)
        if isinstance(thing, FakeHwpt):
            thing.ioas.users -= 1
        del self.objects[fd][argument.id]

    def _iommu_ioas_alloc(self, fd: int, argument: abi.iommu_ioas_alloc) -> None:
        argument.out_ioas_id = self._number(fd, FakeIoas())

    def _iommu_ioas_iova_ranges(self, fd: int, argument: abi.iommu_ioas_iova_ranges) -> None:
        ioas = self._find(fd, argument.ioas_id, FakeIoas)
        ranges = self._ranges(ioas)
        room, argument.num_iovas = argument.num_iovas, len(ranges)
        argument.out_iova_alignment = self._alignment(ioas)
        content = b"".join(struct.pack("<QQ", *pair) for pair in ranges[:room])
        ctypes.memmove(argument.allowed_iovas, content, len(content))
        if room < len(ranges):
            raise error(errno.EMSGSIZE)

    def _ranges(self, ioas: FakeIoas) -> list[tuple[int, int]]:
        if not self._attached(ioas):
            return [(0, EVERYTHING)]
        ranges, start = [], 0
        for first, last in sorted(self.reserved):
            if start < first:
                ranges.append((start, first - 1))
            start = last + 1
        return [*ranges, (start, self.aperture)]

    def _attached(self, ioas: FakeIoas) -> bool:
        return any(one.hwpt and one.hwpt.ioas is ioas for one in self.bound.values())

    def _alignment(self, ioas: FakeIoas) -> int:
        return PAGE if self._attached(ioas) or not ioas.large_pages else 1

    def _iommu_ioas_allow_iovas(self, fd: int, argument: abi.iommu_ioas_allow_iovas) -> None:
        ioas = self._find(fd, argument.ioas_id, FakeIoas)
        content = ctypes.string_at(argument.allowed_iovas, 16 * argument.num_iovas)
        ranges = sorted(struct.iter_unpack("<QQ", content))
        ends = [-1, *(last for _, last in ranges)]
        if any(start >= last or start <= end for (start, last), end in zip(ranges, ends)):  # noqa: B905
            raise error(errno.EINVAL)
        if self._attached(ioas) and any(
            start <= b and a <= last for start, last in ranges for a, b in self.reserved
        ):
            raise error(errno.EADDRINUSE)
        ioas.allowed = ranges

    def _pin(self, source: object, length: int) -> None:
        kind, value, _start = source
        if kind == "file":
            if value in self.dmabufs and self.dmabufs[value]["revoked"]:
                raise error(errno.ENODEV)
            return
        if not any(a <= value and value + length <= a + size for a, size in self.memory):
            raise error(errno.EFAULT)

    def _place(self, ioas: FakeIoas, flags: int, iova: int, length: int, source: object) -> int:
        alignment = self._alignment(ioas)
        if max(iova, length) >= EVERYTHING:
            raise error(errno.EOVERFLOW)
        if not flags & (abi.IOMMU_IOAS_MAP_READABLE | abi.IOMMU_IOAS_MAP_WRITEABLE):
            raise error(errno.EINVAL)
        if not length or length % alignment:
            raise error(errno.EINVAL)
        if flags & abi.IOMMU_IOAS_MAP_FIXED_IOVA:
            last = iova + length - 1
            if iova % alignment:
                raise error(errno.EINVAL)
            if last > EVERYTHING:
                raise error(errno.EOVERFLOW)
            if not any(a <= iova and last <= b for a, b in self._ranges(ioas)):
                raise error(errno.EINVAL)
            if self._overlaps(ioas, iova, length):
                raise error(errno.EEXIST)
        else:
            iova = self._first_fit(ioas, length)
        if self._attached(ioas):
            self._pin(source, length)
        ioas.areas[iova] = (length, source)
        return iova

    @staticmethod
    def _overlaps(ioas: FakeIoas, iova: int, length: int) -> list[int]:
        return [a for a, (size, _) in ioas.areas.items() if a < iova + length and iova < a + size]

    def _first_fit(self, ioas: FakeIoas, length: int) -> int:
        for start, last in self._ranges(ioas):
            iova = max(start, self.lowest_choice)
            while iova + length - 1 <= last:
                hits = self._overlaps(ioas, iova, length)
                if not hits:
                    return iova
                iova = -(-max(a + ioas.areas[a][0] for a in hits) // PAGE) * PAGE
        raise error(errno.ENOSPC)

    def _iommu_ioas_map(self, fd: int, argument: abi.iommu_ioas_map) -> None:
        ioas = self._find(fd, argument.ioas_id, FakeIoas)
        source = ("memory", argument.user_va, 0)
        argument.iova = self._place(ioas, argument.flags, argument.iova, argument.length, source)

    def _iommu_ioas_map_file(self, fd: int, argument: abi.iommu_ioas_map_file) -> None:
        ioas = self._find(fd, argument.ioas_id, FakeIoas)
        dmabuf = self.dmabufs.get(argument.fd)
        if dmabuf is None:
            try:
                os.fstat(argument.fd)
            except OSError:
                raise error(errno.EBADF) from None
        elif len(dmabuf["ranges"]) != 1:
            raise error(errno.EOPNOTSUPP)
        elif dmabuf["revoked"]:
            raise error(errno.ENODEV)
        elif argument.start + argument.length > dmabuf["ranges"][0][1]:
            raise error(errno.EINVAL)
        source = ("file", argument.fd, argument.start)
        argument.iova = self._place(ioas, argument.flags, argument.iova, argument.length, source)

    def _iommu_ioas_copy(self, fd: int, argument: abi.iommu_ioas_copy) -> None:
        source = self._find(fd, argument.src_ioas_id, FakeIoas)
        target = self._find(fd, argument.dst_ioas_id, FakeIoas)
        reached = argument.src_iova
        for iova, (length, _) in sorted(source.areas.items()):
            if iova <= reached < iova + length:
                reached = iova + length
        if not argument.length:
            raise error(errno.EINVAL)
        if reached < argument.src_iova + argument.length:
            raise error(errno.ENOENT)
        kept = ("memory", self.memory[0][0], 0)
        argument.dst_iova = self._place(
            target, argument.flags, argument.dst_iova, argument.length, kept
        )

    def _iommu_ioas_unmap(self, fd: int, argument: abi.iommu_ioas_unmap) -> None:
        ioas = self._find(fd, argument.ioas_id, FakeIoas)
        iova, length = argument.iova, argument.length
        whole = iova == 0 and length == EVERYTHING
        hits = sorted(ioas.areas) if whole else sorted(self._overlaps(ioas, iova, length))
        gone = 0
        for start in hits:
            size = ioas.areas[start][0]
            if not whole and not (iova <= start and start + size <= iova + length):
                raise error(errno.ENOENT)
            del ioas.areas[start]
            gone += size
        if not gone and not whole:
            raise error(errno.ENOENT)
        argument.length = gone

    def _iommu_ioas_change_process(self, fd: int, _argument: object) -> None:
        for thing in self.objects[fd].values():
            if isinstance(thing, FakeIoas):
                kinds = {source[0] for _, source in thing.areas.values()}
                if kinds - {"file"}:
                    raise error(errno.EINVAL)

    def _iommu_option(self, fd: int, argument: abi.iommu_option) -> None:
        setting = argument.op == abi.IOMMU_OPTION_OP_SET
        if argument.option_id == abi.IOMMU_OPTION_RLIMIT_MODE:
            if setting and self.objects[fd]:
                raise error(errno.EBUSY)
            if setting and argument.val64 > 1:
                raise error(errno.EINVAL)
            if setting:
                self.options[fd] = argument.val64
            argument.val64 = self.options.get(fd, 0)
        elif argument.option_id == abi.IOMMU_OPTION_HUGE_PAGES:
            ioas = self._find(fd, argument.object_id, FakeIoas)
            if setting and (argument.val64 > 1 or (self._attached(ioas) and ioas.areas)):
                raise error(errno.EINVAL)
            if setting:
                ioas.large_pages = bool(argument.val64)
            argument.val64 = int(ioas.large_pages)
        else:
            raise error(errno.EOPNOTSUPP)

    def _iommu_vfio_ioas(self, fd: int, argument: abi.iommu_vfio_ioas) -> None:
        if argument.op == abi.IOMMU_VFIO_IOAS_SET:
            self._find(fd, argument.ioas_id, FakeIoas)
            self.compat_ioas[fd] = argument.ioas_id
        elif argument.op == abi.IOMMU_VFIO_IOAS_CLEAR:
            self.compat_ioas.pop(fd, None)
        elif fd not in self.compat_ioas:
            raise error(errno.ENODEV)
        else:
            argument.ioas_id = self.compat_ioas[fd]

    def _iommu_hwpt_alloc(self, fd: int, argument: abi.iommu_hwpt_alloc) -> None:
        self._find(fd, argument.dev_id, FakeDevice)
        below = self.objects[fd].get(argument.pt_id)
        if not isinstance(below, FakeIoas | FakeHwpt):
            raise error(errno.EINVAL)
        if bool(argument.data_len) != bool(argument.data_type):
            raise error(errno.EINVAL)
        if argument.flags & abi.IOMMU_HWPT_FAULT_ID_VALID:
            self._find(fd, argument.fault_id, FakeFaults)
        nested = isinstance(below, FakeHwpt)
        wants = argument.flags & (abi.IOMMU_HWPT_ALLOC_NEST_PARENT) or nested
        if wants and not self.nests:
            raise error(errno.EOPNOTSUPP)
        if nested and not below.nest_parent:
            raise error(errno.EINVAL)
        if argument.flags & abi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING and not self.tracks_dirty:
            raise error(errno.EOPNOTSUPP)
        self.nested_data = ctypes.string_at(argument.data_uptr, argument.data_len)
        hwpt = FakeHwpt(
            below.ioas if nested else below,
            tracks=bool(argument.flags & abi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING),
            pasid=bool(argument.flags & abi.IOMMU_HWPT_ALLOC_PASID),
            nest_parent=bool(argument.flags & abi.IOMMU_HWPT_ALLOC_NEST_PARENT),
            parent=below if nested else None,
        )
        hwpt.ioas.users += 1
        argument.out_hwpt_id = self._number(fd, hwpt)

    def _iommu_hw_info(self, fd: int, argument: abi.iommu_hw_info) -> None:
        self._find(fd, argument.dev_id, FakeDevice)
        if argument.flags and argument.out_data_type not in (0, 1):
            raise error(errno.EOPNOTSUPP)
        data = bytes(abi.iommu_hw_info_vtd(cap_reg=0xD2008C222F0686, ecap_reg=0xF00F4A).pack())
        room = argument.data_len
        ctypes.memmove(argument.data_uptr, data.ljust(room, b"\0"), room)
        argument.data_len = len(data)
        argument.out_data_type = abi.IOMMU_HW_INFO_TYPE_INTEL_VTD
        argument.out_capabilities = abi.IOMMU_HW_CAP_DIRTY_TRACKING if self.tracks_dirty else 0

    def _iommu_hwpt_set_dirty_tracking(
        self, fd: int, argument: abi.iommu_hwpt_set_dirty_tracking
    ) -> None:
        hwpt = self._find(fd, argument.hwpt_id, FakeHwpt)
        if argument.flags & ~1 or not hwpt.tracks:
            raise error(errno.EOPNOTSUPP)
        hwpt.tracking = bool(argument.flags)
        self.dirty.clear()

    def _iommu_hwpt_get_dirty_bitmap(
        self, fd: int, argument: abi.iommu_hwpt_get_dirty_bitmap
    ) -> None:
        hwpt = self._find(fd, argument.hwpt_id, FakeHwpt)
        if not hwpt.tracks:
            raise error(errno.EOPNOTSUPP)
        iova, length, page = argument.iova, argument.length, argument.page_size
        if not page or iova % page or length % page:
            raise error(errno.EINVAL)
        bits = 0
        for address in list(self.dirty):
            if hwpt.tracking and iova <= address < iova + length:
                bits |= 1 << (address - iova) // page
                if not argument.flags & abi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR:
                    self.dirty.discard(address)
        size = -(-length // page // 8) or 1
        ctypes.memmove(argument.data, bits.to_bytes(size, "little"), size)

    def _iommu_hwpt_invalidate(self, fd: int, argument: abi.iommu_hwpt_invalidate) -> None:
        hwpt = self._find(fd, argument.hwpt_id, FakeHwpt)
        wanted, argument.entry_num = argument.entry_num, 0
        if hwpt.parent is None or argument.entry_len != abi.iommu_hwpt_vtd_s1_invalidate.SIZE:
            raise error(errno.EINVAL)
        for index in range(wanted):
            place = argument.data_uptr + index * argument.entry_len
            entry = ctypes.string_at(place, argument.entry_len)
            if abi.iommu_hwpt_vtd_s1_invalidate.unpack_from(entry).flags & ~1:
                raise error(errno.EOPNOTSUPP)
            argument.entry_num += 1

    def _iommu_fault_alloc(self, fd: int, argument: abi.iommu_fault_alloc) -> None:
        queue = FakeFaults()
        argument.out_fault_id = self._number(fd, queue)
        argument.out_fault_fd = self._new_fd("faults")
        self.fault_fds[argument.out_fault_fd] = queue


__all__ = ["BDF", "GROUP", "PAGE", "SECOND", "IommufdHost", "error"]
