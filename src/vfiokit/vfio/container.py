"""The type1 container: an address space shared by the groups attached to it.

Source: Linux ``drivers/vfio/container.c`` (states), ``vfio_iommu_type1.c`` (map and unmap).
"""

from __future__ import annotations

import errno
import warnings
from enum import IntEnum
from types import TracebackType
from typing import NamedTuple, Self

from vfiokit.abi import vfio as abi
from vfiokit.errors import IovaConflictError, KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.failure import kernel_error, request
from vfiokit.vfio.group import Group
from vfiokit.vfio.info import chain, query
from vfiokit.vfio.iova import IovaAllocator
from vfiokit.vfio.memory import DmaBuffer

_NODE = "/dev/vfio/vfio"
_PERMISSIONS = {
    (True, True): abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE,
    (True, False): abi.VFIO_DMA_MAP_FLAG_READ,
    (False, True): abi.VFIO_DMA_MAP_FLAG_WRITE,
}
# Kernels without the range capability: 39 bits is the narrowest IOMMU in use, and the x86 MSI
# window can never be mapped.
_DEFAULT_RANGES = (IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, (1 << 39) - 1))
_HUGE_PAGES = (1 << 30, 1 << 21)


class IommuType(IntEnum):
    """What ``VFIO_SET_IOMMU`` accepts here; v2 unmaps whole mappings only."""

    TYPE1 = abi.VFIO_TYPE1_IOMMU
    TYPE1V2 = abi.VFIO_TYPE1v2_IOMMU


class DirtyTracking(NamedTuple):
    """The MIGRATION capability."""

    page_sizes: int
    """Bitmap of the page sizes a dirty bitmap may have."""
    max_bitmap_size: int
    """Bytes."""


class IommuInfo(NamedTuple):
    """Answer of ``VFIO_IOMMU_GET_INFO``, decoded."""

    page_sizes: int
    """Bitmap: bit n set means mappings of 2**n bytes."""
    iova_ranges: tuple[IovaRange, ...]
    """Empty when the kernel does not say."""
    dma_avail: int | None
    """How many more mappings fit; ``None`` when the kernel does not say."""
    dirty_tracking: DirtyTracking | None


def decode_info(info: abi.vfio_iommu_type1_info, buffer: bytearray) -> IommuInfo:
    """Read the struct and its capability chain."""
    ranges: tuple[IovaRange, ...] = ()
    avail: int | None = None
    dirty: DirtyTracking | None = None
    start = info.cap_offset if info.flags & abi.VFIO_IOMMU_INFO_CAPS else 0
    for capability in chain(buffer, start):
        offset = capability.offset
        if capability.id == abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            kind = abi.vfio_iommu_type1_info_cap_iova_range
            count = kind.unpack_from(buffer, offset).nr_iovas
            entries = (
                abi.vfio_iova_range.unpack_from(
                    buffer, offset + kind.SIZE + index * abi.vfio_iova_range.SIZE
                )
                for index in range(count)
            )
            ranges = tuple(IovaRange(entry.start, entry.end) for entry in entries)
        elif capability.id == abi.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION:
            found = abi.vfio_iommu_type1_info_cap_migration.unpack_from(buffer, offset)
            dirty = DirtyTracking(found.pgsize_bitmap, found.max_dirty_bitmap_size)
        elif capability.id == abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
            avail = abi.vfio_iommu_type1_info_dma_avail.unpack_from(buffer, offset).avail
    sizes = info.iova_pgsizes if info.flags & abi.VFIO_IOMMU_INFO_PGSIZES else 4096
    return IommuInfo(sizes, ranges, avail, dirty)


class Container:
    """An open ``/dev/vfio/vfio`` with its groups, its mappings and the DMA memory made for it.

    Implements :class:`~vfiokit.vfio.address_space.AddressSpace` once a group is attached.
    """

    def __init__(self, kernel: Kernel, fd: int, iommu_type: IommuType | None = None) -> None:
        self._kernel = kernel
        self.fd = fd
        """The descriptor; -1 once closed."""
        self.iommu_type = iommu_type
        """Type asked for, or found when the first group came; ``None`` before."""
        self._groups: dict[int, tuple[Group, int]] = {}
        self._mappings: dict[int, int] = {}
        self._unreserved: set[int] = set()
        self._buffers: dict[int, DmaBuffer] = {}
        self._info: IommuInfo | None = None
        self._allocator: IovaAllocator | None = None
        self._page_size = kernel.page_size
        self._sized = False

    @classmethod
    def open(cls, kernel: Kernel, iommu_type: IommuType | int | None = None) -> Container:
        """Open ``/dev/vfio/vfio`` and check its API version.

        ``iommu_type`` ``None`` takes type1v2 where the kernel has it. Raises
        :class:`KernelError`; ENOENT when the ``vfio`` module is not loaded.
        """
        wanted = None if iommu_type is None else IommuType(iommu_type)
        try:
            fd = kernel.open(_NODE)
        except OSError as error:
            raise kernel_error("open", _NODE, error) from error
        container = cls(kernel, fd, wanted)
        try:
            version = request(kernel, fd, "VFIO_GET_API_VERSION", 0, container)
            if version != abi.VFIO_API_VERSION:
                raise KernelError(
                    "VFIO_GET_API_VERSION",
                    str(container),
                    errno.EPROTO,
                    detail=f"the kernel speaks version {version}, this library version 0",
                )
        except BaseException:
            container.close()
            raise
        return container

    def __str__(self) -> str:
        groups = ", ".join(str(number) for number in self._groups)
        return f"container of group {groups}" if groups else "container"

    def __repr__(self) -> str:
        state = "" if self.fd >= 0 else " closed"
        return f"<Container groups={list(self._groups)} mappings={len(self._mappings)}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

    @property
    def group_fds(self) -> dict[int, int]:
        """Descriptors of the attached groups, by number."""
        return {number: group.fd for number, (group, _users) in self._groups.items()}

    # -- groups -------------------------------------------------------------------------------

    def check_extension(self, extension: int) -> int:
        """``VFIO_CHECK_EXTENSION``: 0 when the kernel does not have ``extension``."""
        return request(self._kernel, self.fd, "VFIO_CHECK_EXTENSION", extension, self)

    def attach(self, number: int) -> Group:
        """Open IOMMU group ``number`` and attach it, or count one more user of it.

        The first group makes the container an address space. Raises
        :class:`GroupNotViableError` and :class:`KernelError`.
        """
        if number in self._groups:
            group, users = self._groups[number]
            self._groups[number] = (group, users + 1)
            return group
        group = Group.open(self._kernel, number)
        try:
            group.require_viable()
            group.set_container(self.fd)
            if not self._groups:
                self._set_iommu()
            self._groups[number] = (group, 1)
            self._refresh()
        except BaseException:
            self._groups.pop(number, None)
            group.close()
            raise
        return group

    def detach(self, group: Group) -> None:
        """One user of ``group`` less; the last one detaches and closes it.

        When the container loses its last group, the kernel drops every mapping.
        """
        known, users = self._groups.get(group.number, (None, 0))
        if known is not group:
            raise UsageError(f"{group} is not attached to this {self}")
        if users > 1:
            self._groups[group.number] = (group, users - 1)
            return
        group.unset_container()
        del self._groups[group.number]
        group.close()
        if self._groups:
            self._refresh()
        else:
            self._drop_mappings()
            self._info = self._allocator = None

    def _set_iommu(self) -> None:
        kinds = [self.iommu_type] if self.iommu_type else [IommuType.TYPE1V2, IommuType.TYPE1]
        for kind in kinds:
            if self.check_extension(kind):
                self.iommu_type = kind
                break
        else:
            raise KernelError(
                "VFIO_CHECK_EXTENSION",
                str(self),
                errno.ENODEV,
                detail=f"no support for {', '.join(kind.name for kind in kinds)}",
                hint="load the vfio_iommu_type1 module",
            )
        request(self._kernel, self.fd, "VFIO_SET_IOMMU", int(kind), self, kind.name)

    def _refresh(self) -> None:
        """Learn ranges and page sizes anew: every attached group may narrow them."""
        self._info = info = self._query()
        # 64 KiB-page kernels report what the IOMMU has, whatever the CPU's page is.
        self._page_size = info.page_sizes & -info.page_sizes or self._kernel.page_size
        self._allocator = IovaAllocator(info.iova_ranges or _DEFAULT_RANGES, self._page_size)
        self._unreserved.clear()
        for iova, length in self._mappings.items():
            if self._allocator.is_free(iova, length):
                self._allocator.reserve(iova, length)
            else:
                self._unreserved.add(iova)

    def _query(self) -> IommuInfo:
        blank = abi.vfio_iommu_type1_info()
        return decode_info(*query(self._kernel, self.fd, "VFIO_IOMMU_GET_INFO", blank, self))

    # -- address space ------------------------------------------------------------------------

    @property
    def info(self) -> IommuInfo:
        """What the kernel says about the IOMMU, asked afresh."""
        self._require_group()
        return self._query()

    @property
    def page_size(self) -> int:
        """Smallest mapping in bytes."""
        return self._page_size

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """Ranges that can be mapped; a cautious guess where the kernel does not say."""
        self._require_group()
        assert self._info is not None
        return self._info.iova_ranges or _DEFAULT_RANGES

    @property
    def mappings(self) -> dict[int, int]:
        """Length of every mapping by IOVA, a copy."""
        return dict(self._mappings)

    def allocate(
        self,
        length: int,
        *,
        iova: int | None = None,
        max_iova: int | None = None,
        alignment: int = 0,
        read: bool = True,
        write: bool = True,
        huge_page_size: int = 0,
    ) -> DmaBuffer:
        """Zeroed memory of at least ``length`` bytes, mapped for the device.

        See :meth:`AddressSpace.allocate`. Raises :class:`KernelError` (ENOMEM beyond
        RLIMIT_MEMLOCK, ENOSPC without free IOVA), :class:`IovaConflictError`,
        :class:`UsageError`. The container's end closes buffers that are still open.
        """
        if length <= 0:
            raise UsageError(f"cannot allocate {length} bytes of DMA memory")
        self._require_group()
        granule = max(self.page_size, self._kernel.page_size, huge_page_size)
        padded = -(-length // granule) * granule
        try:
            memory = self._kernel.allocate(padded, huge_page_size=huge_page_size)
        except OSError as error:
            raise kernel_error("allocate", f"{padded:#x} bytes", error) from error
        try:
            chosen = self.map(
                memory.vaddr,
                memory.length,
                iova=iova,
                max_iova=max_iova,
                alignment=alignment,
                read=read,
                write=write,
            )
        except BaseException:
            memory.close()
            raise
        buffer = DmaBuffer(memory, chosen, self.unmap)
        self._buffers[chosen] = buffer
        return buffer

    def map(
        self,
        vaddr: int,
        length: int,
        *,
        iova: int | None = None,
        max_iova: int | None = None,
        alignment: int = 0,
        read: bool = True,
        write: bool = True,
    ) -> int:
        """``VFIO_IOMMU_MAP_DMA``; returns the IOVA. See :meth:`AddressSpace.map`.

        Large mappings are aligned so that the IOMMU can use its large pages.
        """
        flags = _PERMISSIONS.get((read, write))
        if flags is None:
            raise UsageError("a mapping that the device may neither read nor write is useless")
        self._require_group()
        assert self._allocator is not None
        allocator = self._allocator
        if iova is None:
            alignment = alignment or next((size for size in _HUGE_PAGES if length >= size), 0)
            chosen = allocator.allocate(length, alignment, max_iova)
            reserved = True
        else:
            if max_iova is not None and iova + length - 1 > max_iova:
                raise UsageError(f"IOVA {iova:#x} and {length:#x} bytes exceed {max_iova:#x}")
            chosen = iova
            # The kernel is the judge of a fixed address; the allocator only keeps step.
            aligned = not (iova % self.page_size or length % self.page_size) and length > 0
            reserved = aligned and allocator.is_free(iova, length)
            if reserved:
                allocator.reserve(iova, length)
        argument = abi.vfio_iommu_type1_dma_map(
            argsz=abi.vfio_iommu_type1_dma_map.SIZE,
            flags=flags,
            vaddr=vaddr,
            iova=chosen,
            size=length,
        )
        try:
            request(self._kernel, self.fd, "VFIO_IOMMU_MAP_DMA", argument, self)
        except KernelError as error:
            if reserved:
                allocator.free(chosen, length)
            if isinstance(error, IovaConflictError):
                raise self._name_conflict(error, chosen, length) from error.__cause__
            raise
        self._mappings[chosen] = length
        if not reserved:
            self._unreserved.add(chosen)
        return chosen

    def unmap(self, iova: int, length: int) -> None:
        """``VFIO_IOMMU_UNMAP_DMA`` of everything mapped in ``[iova, iova + length)``.

        Raises :class:`KernelError`: EINVAL for a part of a type1v2 mapping, ENOENT when nothing
        is mapped there (the kernel calls that success, and unmaps 0 bytes).
        """
        argument = abi.vfio_iommu_type1_dma_unmap(
            argsz=abi.vfio_iommu_type1_dma_unmap.SIZE, iova=iova, size=length
        )
        buffer = argument.pack()
        request(self._kernel, self.fd, "VFIO_IOMMU_UNMAP_DMA", buffer, self, argument)
        unmapped = abi.vfio_iommu_type1_dma_unmap.unpack_from(buffer).size
        if not unmapped:
            raise KernelError(
                "VFIO_IOMMU_UNMAP_DMA", str(self), errno.ENOENT, detail=f"nothing at {iova:#x}"
            )
        if self._mappings.get(iova) == unmapped:
            gone = [iova]
        else:
            # Type1 v1 may take a whole mapping although the request covered its head only.
            end = iova + max(unmapped, length)
            gone = [start for start in self._mappings if iova <= start < end]
        for start in gone:
            self._forget(start)

    def unmap_all(self) -> None:
        """Take every mapping away, in one request where the kernel can."""
        if not self._mappings:
            return
        if self.check_extension(abi.VFIO_UNMAP_ALL):
            argument = abi.vfio_iommu_type1_dma_unmap(
                argsz=abi.vfio_iommu_type1_dma_unmap.SIZE, flags=abi.VFIO_DMA_UNMAP_FLAG_ALL
            )
            request(self._kernel, self.fd, "VFIO_IOMMU_UNMAP_DMA", argument, self)
            for start in list(self._mappings):
                self._forget(start)
        else:
            for start, length in list(self._mappings.items()):
                self.unmap(start, length)

    def close(self) -> None:
        """Close groups and container; mappings end with them. Idempotent.

        Memory of buffers that are still open is freed, unless slices of it are in use: then it
        lives as long as they do.
        """
        if self.fd < 0:
            return
        for group, _users in self._groups.values():
            group.close()
        self._groups.clear()
        fd, self.fd = self.fd, -1
        self._kernel.close(fd)
        self._drop_mappings()

    def _require_group(self) -> None:
        if self.fd < 0:
            raise UsageError("the container is closed")
        if not self._groups:
            raise UsageError(
                "the container holds no group, so it is no address space yet",
                hint="attach a group first",
            )

    def _forget(self, iova: int) -> None:
        length = self._mappings.pop(iova)
        if iova in self._unreserved:
            self._unreserved.discard(iova)
        elif self._allocator is not None:
            self._allocator.free(iova, length)
        buffer = self._buffers.pop(iova, None)
        if buffer is not None:
            buffer.forget_mapping()

    def _drop_mappings(self) -> None:
        """The kernel took all mappings away: note it and free what nobody holds."""
        buffers = list(self._buffers.values())
        self._mappings.clear()
        self._unreserved.clear()
        self._buffers.clear()
        for buffer in buffers:
            buffer.forget_mapping()
            try:
                buffer.close()
            except BufferError:
                continue

    def _name_conflict(self, error: IovaConflictError, iova: int, length: int) -> IovaConflictError:
        end = iova + length
        listed = ", ".join(
            f"[{start:#x}, {start + size - 1:#x}]"
            for start, size in sorted(self._mappings.items())
            if start < end and start + size > iova
        )
        detail = f"{error.detail}; overlaps {listed or 'a mapping of another user'}"
        return IovaConflictError(
            error.operation, error.subject, errno.EEXIST, detail=detail, hint=error.hint
        )
