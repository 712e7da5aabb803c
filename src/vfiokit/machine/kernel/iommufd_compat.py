"""VFIO's container requests on an iommufd: the old interface over one IOAS.

Source: Linux ``drivers/iommu/iommufd/vfio_compat.c``.
"""

from __future__ import annotations

import errno

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, buffer_of, fetch, store
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.io_page_table import IOVA_MAX, IoPageTable, Piece
from vfiokit.machine.kernel.iommufd_context import IommufdContext
from vfiokit.machine.kernel.iommufd_ioas import Ioas, ProcessSource, check_range, new_pages

_ALWAYS = (
    abi.VFIO_TYPE1_IOMMU,
    abi.VFIO_TYPE1v2_IOMMU,
    abi.VFIO_NOIOMMU_IOMMU,
    abi.VFIO_UNMAP_ALL,
)


def compat_ioas(context: IommufdContext) -> Ioas:
    """The IOAS that the requests act on; ENODEV without any."""
    ioas = context.compat_ioas
    if not isinstance(ioas, Ioas):
        raise failure(errno.ENODEV, "no IOAS is set for VFIO's requests")
    return ioas


def ensure_compat_ioas(context: IommufdContext) -> None:
    """A group got this iommufd as its container: there is an IOAS from now on.

    EINVAL when a group without IOMMU has it.
    """
    if context.no_iommu:
        raise failure(errno.EINVAL, "the iommufd serves groups without IOMMU")
    if context.compat_ioas is None:
        made = Ioas(context)
        context.objects.add(made)
        context.compat_ioas = made


def serve_without_iommu(context: IommufdContext) -> None:
    """A group without IOMMU got this iommufd as its container; EINVAL when there is an IOAS."""
    if context.compat_ioas is not None:
        raise failure(errno.EINVAL, "the iommufd has an IOAS for VFIO already")
    context.no_iommu = True


def vfio_request(context: IommufdContext, request: int, argument: Argument) -> int:
    """A request of :mod:`vfiokit.abi.vfio` on an iommufd; ENOTTY for those it does not have."""
    if request == abi.VFIO_GET_API_VERSION:
        return abi.VFIO_API_VERSION
    if request == abi.VFIO_CHECK_EXTENSION:
        return _check_extension(context, argument)
    if request == abi.VFIO_SET_IOMMU:
        return _set_iommu(context, argument)
    if request == abi.VFIO_IOMMU_GET_INFO:
        return _get_info(context, argument)
    if request == abi.VFIO_IOMMU_MAP_DMA:
        return _map_dma(context, argument)
    if request == abi.VFIO_IOMMU_UNMAP_DMA:
        return _unmap_dma(context, argument)
    raise failure(errno.ENOTTY, f"an iommufd has no ioctl {request:#x}")


def _check_extension(context: IommufdContext, argument: Argument) -> int:
    if argument == abi.VFIO_DMA_CC_IOMMU:
        compat_ioas(context)
        return 1  # every domain of the machine enforces coherency
    if context.no_iommu and argument in (abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU):
        return 0
    return int(argument in _ALWAYS)


def _set_iommu(context: IommufdContext, argument: Argument) -> int:
    if context.no_iommu:
        if argument != abi.VFIO_NOIOMMU_IOMMU:
            raise failure(errno.EINVAL, f"there is no IOMMU for type {argument!r}")
        return 0
    if argument not in (abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU):
        raise failure(errno.EINVAL, f"{argument!r} is no IOMMU type of an iommufd")
    ioas = compat_ioas(context)
    if argument == abi.VFIO_TYPE1_IOMMU:
        ioas.table.set_large_pages(False)
    return 0


def _get_info(context: IommufdContext, argument: Argument) -> int:
    kind = abi.vfio_iommu_type1_info
    info, view = fetch(kind, argument, kind.OFFSETS["cap_offset"])
    asked = info.argsz
    table = compat_ioas(context).table
    info.flags = abi.VFIO_IOMMU_INFO_PGSIZES | abi.VFIO_IOMMU_INFO_CAPS
    info.pad = 0
    info.iova_pgsizes = table.page_sizes
    chain = _capabilities(table)
    needed = kind.SIZE + sum(-(-len(each) // 8) * 8 for each in chain)
    info.cap_offset = kind.SIZE if asked >= needed else 0
    info.argsz = needed
    store(info, view, min(asked, kind.SIZE))
    _write_chain(chain, buffer_of(view, min(asked, needed)), asked, kind.SIZE)
    return 0


def _write_chain(chain: list[bytes], view: memoryview, argsz: int, start: int) -> None:
    """Every capability that fits is written, linked to where the next one would be."""
    at = start
    link: int | None = None
    for each in chain:
        if link is not None and at <= argsz:
            view[link : link + 4] = at.to_bytes(4, "little")
        if at + len(each) > argsz:
            return
        view[at : at + len(each)] = each
        link = at + abi.vfio_info_cap_header.OFFSETS["next"]
        at += -(-len(each) // 8) * 8


def _capabilities(table: IoPageTable) -> list[bytes]:
    avail = abi.vfio_iommu_type1_info_dma_avail(
        id=abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version=1, avail=0xFFFF_FFFF
    )
    usable = table.usable()
    head = abi.vfio_iommu_type1_info_cap_iova_range(
        id=abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version=1, nr_iovas=len(usable)
    )
    entries = (abi.vfio_iova_range(start=first, end=last).pack() for first, last in usable)
    return [bytes(avail.pack()), bytes(head.pack()) + b"".join(bytes(each) for each in entries)]


def _map_dma(context: IommufdContext, argument: Argument) -> int:
    request, _view = fetch(abi.vfio_iommu_type1_dma_map, argument)
    readable = bool(request.flags & abi.VFIO_DMA_MAP_FLAG_READ)
    writable = bool(request.flags & abi.VFIO_DMA_MAP_FLAG_WRITE)
    if request.flags & ~(abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE):
        raise failure(errno.EINVAL, f"unknown flags {request.flags:#x}")
    table = compat_ioas(context).table
    if not request.size:
        raise failure(errno.EINVAL, "size is 0")
    if request.vaddr + request.size > IOVA_MAX:
        raise failure(errno.EOVERFLOW, "vaddr + size wraps around")
    source = ProcessSource(context.around.process)
    pages = new_pages(context, source, writable=writable)
    table.map(
        [Piece(pages, request.vaddr, request.size)],
        request.iova,
        readable=readable,
        writable=writable,
    )
    return 0


def _unmap_dma(context: IommufdContext, argument: Argument) -> int:
    request, view = fetch(abi.vfio_iommu_type1_dma_unmap, argument)
    if request.flags & ~abi.VFIO_DMA_UNMAP_FLAG_ALL:
        raise failure(errno.EINVAL, f"unknown flags {request.flags:#x}")
    table = compat_ioas(context).table
    if request.flags & abi.VFIO_DMA_UNMAP_FLAG_ALL:
        if request.iova or request.size:
            raise failure(errno.EINVAL, "ALL takes neither iova nor size")
        request.size = table.unmap_all()
        store(request, view)
        return 0
    trouble: OSError | None = None
    try:
        _cut_ends(table, request.iova, request.size)
        iova, size, request.size = request.iova, request.size, 0
        check_range(iova, size)
        request.size, trouble = table.unmap(iova, size)
    except OSError as error:
        trouble = error
    store(request, view)
    if trouble is not None:
        raise trouble
    return 0


def _cut_ends(table: IoPageTable, iova: int, size: int) -> None:
    """Version 1 of the interface may unmap part of a mapping."""
    if table.large_pages:
        return
    table.cut(iova + size - 1 & IOVA_MAX)
    if iova:
        table.cut(iova - 1)
