"""Arguments of VFIO's and iommufd's requests that tests on several kernels build alike."""

from __future__ import annotations

from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio

FIXED = abi.IOMMU_IOAS_MAP_FIXED_IOVA
READABLE, WRITEABLE = abi.IOMMU_IOAS_MAP_READABLE, abi.IOMMU_IOAS_MAP_WRITEABLE
RW = READABLE | WRITEABLE
EVERYTHING = (1 << 64) - 1


def _place(flags: int, iova: int | None) -> tuple[int, int]:
    """Flags and IOVA of a mapping at ``iova``, or where the kernel wants."""
    return (flags, 0) if iova is None else (flags | FIXED, iova)


def ioas_map(
    ioas: int, vaddr: int, length: int, iova: int | None = None, flags: int = RW
) -> abi.iommu_ioas_map:
    """For ``IOMMU_IOAS_MAP``."""
    flags, place = _place(flags, iova)
    return abi.iommu_ioas_map(flags=flags, ioas_id=ioas, user_va=vaddr, length=length, iova=place)


def ioas_map_file(
    ioas: int, file: int, length: int, iova: int | None = None, start: int = 0, flags: int = RW
) -> abi.iommu_ioas_map_file:
    """For ``IOMMU_IOAS_MAP_FILE``."""
    flags, place = _place(flags, iova)
    return abi.iommu_ioas_map_file(
        flags=flags, ioas_id=ioas, fd=file, start=start, length=length, iova=place
    )


def ioas_copy(
    target: int,
    source: int,
    length: int,
    source_iova: int,
    iova: int | None = None,
    flags: int = RW,
) -> abi.iommu_ioas_copy:
    """For ``IOMMU_IOAS_COPY``."""
    flags, place = _place(flags, iova)
    return abi.iommu_ioas_copy(
        flags=flags,
        dst_ioas_id=target,
        src_ioas_id=source,
        length=length,
        dst_iova=place,
        src_iova=source_iova,
    )


def irq_set(
    flags: int, index: int, start: int, count: int, data: bytes = b"", argsz: int | None = None
) -> bytearray:
    """For ``VFIO_DEVICE_SET_IRQS``, with its data behind it."""
    size = vfio.vfio_irq_set.SIZE + len(data) if argsz is None else argsz
    head = vfio.vfio_irq_set(argsz=size, flags=flags, index=index, start=start, count=count)
    return head.pack() + data
