"""The type1 IOMMU driver of VFIO: map, unmap, dirty pages, information.

Every ioctl checks in the kernel's order, so that a request with several faults gets the same errno.
Source: Linux ``drivers/vfio/vfio_iommu_type1.c``.
"""

from __future__ import annotations

import errno

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, append_chain, buffer_of, fetch, store
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup, Iommus, PagingDomain
from vfiokit.machine.kernel.iova_set import IovaSet
from vfiokit.machine.kernel.locked_memory import LockedMemory
from vfiokit.machine.kernel.process import AddressSpace
from vfiokit.machine.kernel.type1_dma import Dma

DMA_ENTRY_LIMIT = 65535
"""Default of the module parameter ``dma_entry_limit``."""

_U64 = 1 << 64
_MAP_FLAGS = abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE
_UNMAP_DIRTY = abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
_UNMAP_ALL = abi.VFIO_DMA_UNMAP_FLAG_ALL
_UNMAP_VADDR = abi.VFIO_DMA_UNMAP_FLAG_VADDR
_BITMAP_PAGES_MAX = 0x7FFF_FFFF
_BITMAP_SIZE_MAX = (_BITMAP_PAGES_MAX + 63) // 64 * 8


class Type1:
    """The address space of one container.

    ``v2`` is ``VFIO_TYPE1v2_IOMMU``: unmapping may not cut a mapping. Its memory counts as the
    process's in ``locked``. ``large_pages`` false is the module parameter ``disable_hugepages``.
    """

    def __init__(
        self,
        process: AddressSpace,
        iommus: Iommus,
        *,
        v2: bool,
        locked: LockedMemory,
        entry_limit: int = DMA_ENTRY_LIMIT,
        large_pages: bool = True,
    ) -> None:
        self._process = process
        self._iommus = iommus
        self._v2 = v2
        self._locked = locked
        self._available = entry_limit
        self._large_pages = large_pages
        self._mappings: IovaSet[Dma] = IovaSet()
        self._domain: PagingDomain | None = None
        self._groups: list[IommuGroup] = []
        self._tracking = False

    # -- groups -------------------------------------------------------------------------------

    def attach_group(self, group: IommuGroup) -> None:
        """Let the devices of ``group`` reach this address space.

        EBUSY while a vaddr is invalid; EINVAL when a mapping lies where the group's hardware has
        no usable IOVA; EPERM without interrupt remapping.
        """
        if any(not dma.vaddr_valid for dma in self._mappings):
            raise failure(errno.EBUSY, "a mapping has no valid vaddr")
        usable = self._iommus.usable_ranges([*self._groups, group])
        for dma in self._mappings:
            if not _within(usable, dma.iova, dma.last):
                raise failure(errno.EINVAL, f"iova {dma.iova:#x} is reserved for the new group")
        if not group.isolated_msi and not self._iommus.allow_unsafe_interrupts:
            raise failure(errno.EPERM, "no interrupt remapping (allow_unsafe_interrupts=0)")
        if self._domain is None:
            self._domain = self._iommus.new_domain()
            self._domain.large_pages = self._large_pages
            for dma in self._mappings:
                self._map(dma)
        group.attach(self._domain)
        self._groups.append(group)

    def detach_group(self, group: IommuGroup) -> None:
        """Take ``group`` out; the last one takes every mapping with it."""
        self._groups.remove(group)
        group.detach()
        if not self._groups:
            self.unmap_everything()

    def unmap_everything(self) -> None:
        """Remove every mapping and the page tables."""
        for dma in self._mappings:
            self._remove(dma)
        if self._domain is not None:
            self._domain.destroy()
            self._domain = None

    # -- ioctls -------------------------------------------------------------------------------

    def ioctl(self, request: int, argument: Argument) -> int:
        """An ioctl of the container that is this driver's; ENOTTY for unknown ones."""
        if request == abi.VFIO_CHECK_EXTENSION:
            return self.check_extension(argument)
        if request == abi.VFIO_IOMMU_GET_INFO:
            return self._get_info(argument)
        if request == abi.VFIO_IOMMU_MAP_DMA:
            return self._map_dma(argument)
        if request == abi.VFIO_IOMMU_UNMAP_DMA:
            return self._unmap_dma(argument)
        if request == abi.VFIO_IOMMU_DIRTY_PAGES:
            return self._dirty_pages(argument)
        raise failure(errno.ENOTTY, f"type1 has no ioctl {request:#x}")

    @staticmethod
    def probe_extension(argument: Argument) -> int:
        """``VFIO_CHECK_EXTENSION`` before an IOMMU is set."""
        return int(argument in (abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU, abi.VFIO_UNMAP_ALL))

    def check_extension(self, argument: Argument) -> int:
        """``VFIO_CHECK_EXTENSION`` of a container with this driver."""
        if argument == abi.VFIO_UPDATE_VADDR:
            return 1
        if argument == abi.VFIO_DMA_CC_IOMMU:
            return int(self._domain is not None and self._domain.enforces_coherency)
        return self.probe_extension(argument)

    @property
    def page_sizes(self) -> int:
        """Bitmap of the page sizes; without a domain anything from a page up."""
        if self._domain is None:
            return _U64 - 4096
        sizes = self._domain.page_sizes
        below = sizes & 4095
        return sizes & ~4095 | (4096 if below else 0)

    @property
    def page_size(self) -> int:
        """The smallest page."""
        return self.page_sizes & -self.page_sizes

    def _get_info(self, argument: Argument) -> int:
        kind = abi.vfio_iommu_type1_info
        info, view = fetch(kind, argument, kind.OFFSETS["cap_offset"])
        asked = info.argsz
        info.flags = abi.VFIO_IOMMU_INFO_PGSIZES | abi.VFIO_IOMMU_INFO_CAPS
        info.pad = 0
        info.iova_pgsizes = self.page_sizes
        info.cap_offset, info.argsz = append_chain(self._capabilities(), view, asked, kind.SIZE)
        store(info, view, min(asked, kind.SIZE))
        return 0

    def _capabilities(self) -> list[bytes]:
        migration = abi.vfio_iommu_type1_info_cap_migration(
            id=abi.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
            version=1,
            pgsize_bitmap=self.page_size,
            max_dirty_bitmap_size=_BITMAP_SIZE_MAX,
        )
        avail = abi.vfio_iommu_type1_info_dma_avail(
            id=abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version=1, avail=self._available
        )
        chain = [bytes(migration.pack()), bytes(avail.pack())]
        ranges = self._iommus.usable_ranges(self._groups)
        if ranges:
            head = abi.vfio_iommu_type1_info_cap_iova_range(
                id=abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version=1, nr_iovas=len(ranges)
            )
            entries = (abi.vfio_iova_range(start=first, end=last) for first, last in ranges)
            chain.append(bytes(head.pack()) + b"".join(bytes(entry.pack()) for entry in entries))
        return chain

    # -- map ----------------------------------------------------------------------------------

    def _map_dma(self, argument: Argument) -> int:
        request, _view = fetch(abi.vfio_iommu_type1_dma_map, argument)
        update = bool(request.flags & abi.VFIO_DMA_MAP_FLAG_VADDR)
        if request.flags & ~(_MAP_FLAGS | abi.VFIO_DMA_MAP_FLAG_VADDR):
            raise failure(errno.EINVAL, f"unknown flags {request.flags:#x}")
        if not request.size:
            raise failure(errno.EINVAL, "size is 0")
        for what, start in (("iova", request.iova), ("vaddr", request.vaddr)):
            if start + request.size - 1 >= _U64:
                raise failure(errno.EOVERFLOW, f"{what} + size wraps around")
        if bool(request.flags & _MAP_FLAGS) is update:
            raise failure(errno.EINVAL, "needs either READ or WRITE, or VADDR alone")
        if (request.size | request.iova | request.vaddr) & (self.page_size - 1):
            raise failure(errno.EINVAL, f"iova, vaddr or size is no multiple of {self.page_size}")
        if update:
            self._update_vaddr(request)
        else:
            self._add(request)
        return 0

    def _update_vaddr(self, request: abi.vfio_iommu_type1_dma_map) -> None:
        found = self._mappings.overlapping(request.iova, request.iova + request.size - 1)
        if not found:
            raise failure(errno.ENOENT, f"nothing is mapped at iova {request.iova:#x}")
        dma = found[0]
        if dma.vaddr_valid or dma.iova != request.iova or dma.size != request.size:
            raise failure(errno.EINVAL, "not exactly a mapping whose vaddr was taken away")
        dma.vaddr, dma.vaddr_valid = request.vaddr, True

    def _add(self, request: abi.vfio_iommu_type1_dma_map) -> None:
        last = request.iova + request.size - 1
        if self._mappings.overlapping(request.iova, last):
            raise failure(errno.EEXIST, f"iova {request.iova:#x}-{last:#x} is partly mapped")
        if not self._available:
            raise failure(errno.ENOSPC, "dma_entry_limit is reached")
        usable = self._iommus.usable_ranges(self._groups)
        if usable and not _within(usable, request.iova, last):
            raise failure(errno.EINVAL, f"iova {request.iova:#x}-{last:#x} is not usable")
        region, extent = self._process.resolve(request.vaddr, request.size)
        accounted = 0 if extent.mmio else request.size
        dma = Dma(
            request.iova,
            request.size,
            request.vaddr,
            region,
            extent,
            readable=bool(request.flags & abi.VFIO_DMA_MAP_FLAG_READ),
            writable=bool(request.flags & abi.VFIO_DMA_MAP_FLAG_WRITE),
        )
        self._locked.charge(accounted)
        try:
            self._map(dma)
        except OSError:
            self._locked.uncharge(accounted)
            raise
        region.pin()
        self._available -= 1
        self._mappings.add(dma)

    def _map(self, dma: Dma) -> None:
        if self._domain is not None:
            self._domain.map(
                dma.iova, dma.extent.hpa, dma.size, read=dma.readable, write=dma.writable
            )

    def _remove(self, dma: Dma) -> None:
        if self._domain is not None:
            self._domain.unmap(dma.iova, dma.size)
        self._mappings.remove(dma)
        self._available += 1
        self._locked.uncharge(0 if dma.extent.mmio else dma.size)
        dma.region.unpin()

    # -- unmap --------------------------------------------------------------------------------

    def _unmap_dma(self, argument: Argument) -> int:
        request, view = fetch(abi.vfio_iommu_type1_dma_unmap, argument)
        flags = request.flags
        if flags & ~(_UNMAP_DIRTY | _UNMAP_ALL | _UNMAP_VADDR):
            raise failure(errno.EINVAL, f"unknown flags {flags:#x}")
        if flags & _UNMAP_DIRTY and flags & (_UNMAP_ALL | _UNMAP_VADDR):
            raise failure(errno.EINVAL, "a dirty bitmap is not for ALL or VADDR")
        bitmap = self._unmap_bitmap(request, view) if flags & _UNMAP_DIRTY else None
        first, last = self._unmap_range(request)
        if bitmap is not None and (not self._tracking or bitmap.pgsize != self.page_size):
            raise failure(errno.EINVAL, "dirty tracking is off, or of another page size")
        if self._v2 and not flags & _UNMAP_ALL and self._mappings.bisected_by(first, last):
            raise failure(errno.EINVAL, "the range cuts a mapping")
        found = self._mappings.overlapping(first, last)
        if not self._v2 and found and found[0].iova < first:
            found = []  # v1: starting inside a mapping unmaps nothing, and is no error
        if flags & _UNMAP_VADDR:
            if any(not dma.vaddr_valid for dma in found):
                raise failure(errno.EINVAL, "a vaddr is already invalid")
            for dma in found:
                dma.vaddr_valid = False
        else:
            if bitmap is not None:
                self._write_bitmap(bitmap, first, found)
            for dma in found:
                self._remove(dma)
        request.size = sum(dma.size for dma in found)
        store(request, view)
        return 0

    def _unmap_range(self, request: abi.vfio_iommu_type1_dma_unmap) -> tuple[int, int]:
        if request.flags & _UNMAP_ALL:
            if request.iova or request.size:
                raise failure(errno.EINVAL, "ALL takes neither iova nor size")
            return 0, _U64 - 1
        if not request.size:
            raise failure(errno.EINVAL, "size is 0")
        if request.iova + request.size - 1 >= _U64:
            raise failure(errno.EOVERFLOW, "iova + size wraps around")
        if (request.iova | request.size) & (self.page_size - 1):
            raise failure(errno.EINVAL, f"iova or size is no multiple of {self.page_size}")
        return request.iova, request.iova + request.size - 1

    def _unmap_bitmap(
        self, request: abi.vfio_iommu_type1_dma_unmap, view: memoryview
    ) -> abi.vfio_bitmap:
        at = abi.vfio_iommu_type1_dma_unmap.SIZE
        if request.argsz < at + abi.vfio_bitmap.SIZE:
            raise failure(errno.EINVAL, "argsz leaves no room for the bitmap")
        buffer_of(view, at + abi.vfio_bitmap.SIZE)
        bitmap = abi.vfio_bitmap.unpack_from(view, at)
        pages = request.size // self.page_size
        self._check_bitmap_size(pages, bitmap.size)
        self._process.bytes_at(bitmap.data, bitmap.size)
        return bitmap

    # -- dirty pages --------------------------------------------------------------------------

    def _dirty_pages(self, argument: Argument) -> int:
        if not self._v2:
            raise failure(errno.EACCES, "dirty tracking needs VFIO_TYPE1v2_IOMMU")
        request, view = fetch(abi.vfio_iommu_type1_dirty_bitmap, argument)
        if request.flags == abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
            self._tracking = True
        elif request.flags == abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
            self._tracking = False
        elif request.flags == abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
            self._get_bitmap(request, view)
        else:
            raise failure(errno.EINVAL, "exactly one of START, STOP, GET_BITMAP")
        return 0

    def _get_bitmap(self, request: abi.vfio_iommu_type1_dirty_bitmap, view: memoryview) -> None:
        head, kind = abi.vfio_iommu_type1_dirty_bitmap.SIZE, abi.vfio_iommu_type1_dirty_bitmap_get
        if request.argsz < head + kind.SIZE:
            raise failure(errno.EINVAL, "argsz leaves no room for the range")
        buffer_of(view, head + kind.SIZE)
        asked = kind.unpack_from(view, head)
        if not asked.size:
            raise failure(errno.EINVAL, "size is 0")
        last = asked.iova + asked.size - 1
        if last >= _U64:
            raise failure(errno.EOVERFLOW, "iova + size wraps around")
        page = self.page_size
        self._check_bitmap_size(asked.size // page, asked.bitmap_size)
        if asked.pgsize != page:
            raise failure(errno.EINVAL, f"pgsize is not {page}")
        if (asked.iova | asked.size) & (page - 1):
            raise failure(errno.EINVAL, f"iova or size is no multiple of {page}")
        if not self._tracking:
            raise failure(errno.EINVAL, "dirty tracking is off")
        if self._mappings.bisected_by(asked.iova, last):
            raise failure(errno.EINVAL, "the range cuts a mapping")
        bitmap = abi.vfio_bitmap(pgsize=page, size=asked.bitmap_size, data=asked.data)
        self._write_bitmap(bitmap, asked.iova, self._mappings.overlapping(asked.iova, last))

    def _check_bitmap_size(self, pages: int, size: int) -> None:
        needed = (pages + 63) // 64 * 8
        if not pages or not size or size > _BITMAP_SIZE_MAX or size < needed:
            raise failure(errno.EINVAL, f"{size} bytes of bitmap for {pages} pages")

    def _write_bitmap(self, bitmap: abi.vfio_bitmap, base: int, found: list[Dma]) -> None:
        """Set a bit for every mapped page.

        No device here pins its pages, so that all that is mapped may have been written
        (``vfio_iommu_type1.c:update_user_bitmap``, ``num_non_pinned_groups``).
        """
        view = self._process.bytes_at(bitmap.data, bitmap.size)
        for dma in found:
            start = (dma.iova - base) // bitmap.pgsize
            _set_bits(view, start, start + dma.size // bitmap.pgsize)


def _within(ranges: list[tuple[int, int]], first: int, last: int) -> bool:
    return any(low <= first and last <= high for low, high in ranges)


def _set_bits(view: memoryview, start: int, end: int) -> None:
    """Set bits ``[start, end)``, whole bytes at once."""
    head, tail = min(-(-start // 8) * 8, end), max(end // 8 * 8, start)
    if head < tail:
        view[head >> 3 : tail >> 3] = b"\xff" * ((tail - head) >> 3)
    else:
        tail = head
    for bit in (*range(start, head), *range(tail, end)):
        view[bit >> 3] |= 1 << (bit & 7)
