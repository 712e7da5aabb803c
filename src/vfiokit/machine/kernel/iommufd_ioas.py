"""I/O address spaces of an iommufd, and the requests that map.

Source: Linux ``drivers/iommu/iommufd/ioas.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import iommufd as abi
from vfiokit.machine.kernel.dma_buf import DmaBuf, DmaBufSource
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.io_page_table import IOVA_MAX, IoPageTable, Piece, Range
from vfiokit.machine.kernel.iommufd_context import IommufdContext, IommufdObject
from vfiokit.machine.kernel.memory_file import MemoryFile, MemorySource, UnpinnableSource
from vfiokit.machine.kernel.pages import Pages, Source
from vfiokit.machine.kernel.process import AddressSpace, Extent, Region

_FIXED = abi.IOMMU_IOAS_MAP_FIXED_IOVA
_WRITEABLE = abi.IOMMU_IOAS_MAP_WRITEABLE
_READABLE = abi.IOMMU_IOAS_MAP_READABLE


class Ioas(IommufdObject):
    """``IOMMU_IOAS_ALLOC``."""

    kind = "IOAS"

    def __init__(self, context: IommufdContext) -> None:
        super().__init__()
        self.context = context
        self.table = IoPageTable()
        self.hwpts: list[IommufdObject] = []
        """Page tables over it, oldest first."""

    def destroyed(self) -> None:
        """Unmap everything; VFIO's requests no longer have an IOAS if it was theirs."""
        self.table.unmap_all()
        if self.context.compat_ioas is self:
            self.context.compat_ioas = None


class ProcessSource:
    """Memory of the calling process; EFAULT for device memory, which cannot be pinned."""

    from_file = False
    counted = True

    def __init__(self, process: AddressSpace) -> None:
        self._process = process

    def resolve(self, start: int, length: int) -> tuple[Region, Extent]:
        """The frames behind a vaddr."""
        region, extent = self._process.resolve(start, length)
        if extent.mmio:
            raise failure(errno.EFAULT, f"vaddr {start:#x} is device memory")
        return region, extent

    def hold(self) -> None:
        """The process outlives its iommufds."""

    def drop(self) -> None:
        """The same."""


# -- requests ---------------------------------------------------------------------------------

Respond = Callable[[], None]
"""Writes the struct back before an error is raised."""


def alloc(context: IommufdContext, request: abi.iommu_ioas_alloc, _respond: Respond) -> None:
    """``IOMMU_IOAS_ALLOC``."""
    if request.flags:
        raise failure(errno.EOPNOTSUPP, f"unknown flags {request.flags:#x}")
    request.out_ioas_id = context.objects.add(Ioas(context))


def iova_ranges(
    context: IommufdContext, request: abi.iommu_ioas_iova_ranges, respond: Respond
) -> None:
    """``IOMMU_IOAS_IOVA_RANGES``: EMSGSIZE, with all answers that fit, when the buffer is short."""
    if request.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    table = context.objects.get(request.ioas_id, Ioas).table
    usable, room = table.usable(), request.num_iovas
    for index, (start, last) in enumerate(usable[:room]):
        entry = abi.iommu_iova_range(start=start, last=last)
        at = request.allowed_iovas + index * entry.SIZE
        context.around.process.bytes_at(at, entry.SIZE)[:] = entry.pack()
    request.num_iovas = len(usable)
    request.out_iova_alignment = table.alignment
    if len(usable) > room:
        respond()
        raise failure(errno.EMSGSIZE, f"{len(usable)} ranges do not fit")


def allow_iovas(
    context: IommufdContext, request: abi.iommu_ioas_allow_iovas, _respond: Respond
) -> None:
    """``IOMMU_IOAS_ALLOW_IOVAS``: EINVAL for empty and overlapping ranges, EADDRINUSE."""
    if request.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    table = context.objects.get(request.ioas_id, Ioas).table
    ranges: list[Range] = []
    size = abi.iommu_iova_range.SIZE
    for index in range(request.num_iovas):
        raw = context.around.process.bytes_at(request.allowed_iovas + index * size, size)
        entry = abi.iommu_iova_range.unpack_from(raw)
        if entry.start >= entry.last:
            raise failure(errno.EINVAL, f"{entry.start:#x}-{entry.last:#x} is no range")
        if any(first <= entry.last and entry.start <= last for first, last in ranges):
            raise failure(errno.EINVAL, f"{entry.start:#x}-{entry.last:#x} overlaps another range")
        ranges.append((entry.start, entry.last))
    table.allow(ranges)


def map_user(context: IommufdContext, request: abi.iommu_ioas_map, _respond: Respond) -> None:
    """``IOMMU_IOAS_MAP``."""
    if request.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    _check_flags(request.flags)
    _check_extent(request.iova, request.length)
    _check_permissions(request.flags)
    table = context.objects.get(request.ioas_id, Ioas).table
    _check_memory(request.user_va, request.length)
    source = ProcessSource(context.around.process)
    request.iova = _map(
        context, table, source, request.user_va, request.length, request.iova, request.flags
    )


def map_file(context: IommufdContext, request: abi.iommu_ioas_map_file, _respond: Respond) -> None:
    """``IOMMU_IOAS_MAP_FILE``: any open file is taken; pinning tells if it is memory (EINVAL).

    Of a dma-buf, ENODEV while it is revoked, EOPNOTSUPP for several ranges, EINVAL beyond it.
    """
    _check_flags(request.flags)
    _check_extent(request.iova, request.length)
    _check_permissions(request.flags)
    table = context.objects.get(request.ioas_id, Ioas).table
    _check_memory(request.start, request.length)
    file = context.around.file_of(request.fd)
    source: Source
    if isinstance(file, DmaBuf):
        source = file.source(request.start, request.length)
    elif isinstance(file, MemoryFile):
        source = MemorySource(file)
    else:
        source = UnpinnableSource(file)
    request.iova = _map(
        context, table, source, request.start, request.length, request.iova, request.flags
    )


def copy(context: IommufdContext, request: abi.iommu_ioas_copy, _respond: Respond) -> None:
    """``IOMMU_IOAS_COPY``: ENOENT where the source has a hole, EPERM to write what is read-only."""
    _check_flags(request.flags)
    _check_extent(request.dst_iova, request.length)
    _check_permissions(request.flags)
    source = context.objects.get(request.src_ioas_id, Ioas).table
    target = context.objects.get(request.dst_ioas_id, Ioas).table
    request.dst_iova = target.map(
        source.pieces(request.src_iova, request.length),
        request.dst_iova if request.flags & _FIXED else None,
        readable=bool(request.flags & _READABLE),
        writable=bool(request.flags & _WRITEABLE),
    )


def unmap(context: IommufdContext, request: abi.iommu_ioas_unmap, _respond: Respond) -> None:
    """``IOMMU_IOAS_UNMAP``; what was removed before it met ENOENT stays removed."""
    table = context.objects.get(request.ioas_id, Ioas).table
    if (request.iova, request.length) == (0, IOVA_MAX):
        request.length = table.unmap_all()
        return
    _check_extent(request.iova, request.length)
    check_range(request.iova, request.length)
    removed, trouble = table.unmap(request.iova, request.length)
    if trouble is not None:
        raise trouble
    if not removed:
        raise failure(errno.ENOENT, f"nothing is mapped at iova {request.iova:#x}")
    request.length = removed


def change_process(
    context: IommufdContext, request: abi.iommu_ioas_change_process, _respond: Respond
) -> None:
    """``IOMMU_IOAS_CHANGE_PROCESS``: EINVAL unless all mappings are of files.

    The software machine has one process, so that nothing moves.
    """
    if request.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    for ioas in context.objects.of(Ioas):
        if any(not area.pages.source.from_file for area in ioas.table.areas):
            raise failure(errno.EINVAL, f"IOAS {ioas.id} maps memory of a process")


def check_range(iova: int, length: int) -> None:
    """EINVAL for no bytes, EOVERFLOW beyond the last IOVA."""
    if not length:
        raise failure(errno.EINVAL, "length is 0")
    if iova + length - 1 > IOVA_MAX:
        raise failure(errno.EOVERFLOW, "iova + length wraps around")


def new_pages(context: IommufdContext, source: Source, *, writable: bool) -> Pages:
    """Pages that the context accounts for."""
    return Pages(source, context.account, writable=writable)


def _map(
    context: IommufdContext,
    table: IoPageTable,
    source: Source,
    start: int,
    length: int,
    iova: int,
    flags: int,
) -> int:
    writable = bool(flags & _WRITEABLE)
    pages = new_pages(context, source, writable=writable)
    if isinstance(source, DmaBufSource):
        source.buffer.imported(pages)
    return table.map(
        [Piece(pages, start, length)],
        iova if flags & _FIXED else None,
        readable=bool(flags & _READABLE),
        writable=writable,
    )


def _check_flags(flags: int) -> None:
    if flags & ~(_FIXED | _WRITEABLE | _READABLE):
        raise failure(errno.EOPNOTSUPP, f"unknown flags {flags:#x}")


def _check_extent(iova: int, length: int) -> None:
    if iova >= IOVA_MAX or length >= IOVA_MAX:
        raise failure(errno.EOVERFLOW, "iova or length is 2**64 - 1")


def _check_permissions(flags: int) -> None:
    if not flags & (_WRITEABLE | _READABLE):
        raise failure(errno.EINVAL, "neither READABLE nor WRITEABLE")


def _check_memory(start: int, length: int) -> None:
    if not length:
        raise failure(errno.EINVAL, "length is 0")
    if start + length > IOVA_MAX:
        raise failure(errno.EOVERFLOW, "the memory wraps around")
