"""What a type1 container says of its IOMMU: page sizes, ranges, limits.

Source: Linux ``vfio_iommu_type1.c`` ``vfio_iommu_type1_get_info``.
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.info import chain


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
