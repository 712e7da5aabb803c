"""The address space of an IOAS: areas, reserved and allowed ranges, the domains that mirror it.

Areas are kept whether or not a domain exists; memory is pinned only while one does.
Source: Linux ``drivers/iommu/iommufd/io_pagetable.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import PagingDomain
from vfiokit.machine.kernel.iova_set import IovaSet
from vfiokit.machine.kernel.pages import Pages, Pin
from vfiokit.machine.kernel.process import HUGE_PAGE_SIZES, PAGE_SIZE

IOVA_MAX = (1 << 64) - 1
"""``ULONG_MAX``: the last IOVA, and the length that stands for everything."""

Range = tuple[int, int]
"""First and last IOVA."""


class Piece:
    """Bytes to map: ``length`` of ``pages`` from ``start`` on."""

    __slots__ = ("length", "pages", "start")

    def __init__(self, pages: Pages, start: int, length: int) -> None:
        self.pages = pages
        self.start = start
        self.length = length


class Area:
    """One mapped range; ``pin`` is there while a domain maps it."""

    __slots__ = ("iova", "length", "pages", "pin", "readable", "start", "writable")

    def __init__(self, iova: int, piece: Piece, *, readable: bool, writable: bool) -> None:
        self.iova = iova
        self.length = piece.length
        self.pages = piece.pages
        self.start = piece.start
        self.readable = readable
        self.writable = writable
        self.pin: Pin | None = None

    @property
    def last(self) -> int:
        """The last IOVA."""
        return self.iova + self.length - 1


class IoPageTable:
    """Everything that one IOAS maps."""

    def __init__(self) -> None:
        self.areas: IovaSet[Area] = IovaSet()
        self.large_pages = True
        self._allowed: list[Range] = []
        self._reserved: list[tuple[object, int, int]] = []
        self._domains: list[PagingDomain] = []
        self._packed = PAGE_SIZE
        """From the first page to here everything is mapped: no use to look for room."""

    @property
    def alignment(self) -> int:
        """What IOVAs and lengths must be multiples of."""
        least = [domain.page_sizes & -domain.page_sizes for domain in self._domains]
        return max([1 if self.large_pages else PAGE_SIZE, *least])

    @property
    def page_sizes(self) -> int:
        """Bitmap of the page sizes that every domain has, from a page of the host up."""
        sizes = IOVA_MAX & -PAGE_SIZE
        for domain in self._domains:
            sizes &= domain.page_sizes
        return sizes

    @property
    def mirrored(self) -> bool:
        """Whether there is a domain."""
        return bool(self._domains)

    # -- ranges -------------------------------------------------------------------------------

    def usable(self) -> list[Range]:
        """Everything that is not reserved."""
        reserved = ((first, last) for _owner, first, last in self._reserved)
        return list(_holes(0, IOVA_MAX, reserved))

    def reserve(self, owner: object, ranges: Iterable[Range]) -> None:
        """Keep ``ranges`` free as long as ``owner`` needs; EADDRINUSE if mapped or allowed."""
        wanted = [(owner, first, last) for first, last in ranges]
        for _owner, first, last in wanted:
            if self.areas.overlapping(first, last) or _overlaps(self._allowed, first, last):
                raise failure(
                    errno.EADDRINUSE, f"iova {first:#x}-{last:#x} is mapped, and reserved now"
                )
        self._reserved += wanted

    def unreserve(self, owner: object) -> None:
        """Undo :meth:`reserve`."""
        self._reserved = [each for each in self._reserved if each[0] is not owner]

    def allow(self, ranges: list[Range]) -> None:
        """Ranges that must stay usable, and where IOVAs are chosen; EADDRINUSE if reserved."""
        for _owner, first, last in self._reserved:
            if _overlaps(ranges, first, last):
                raise failure(errno.EADDRINUSE, f"iova {first:#x}-{last:#x} is reserved")
        self._allowed = sorted(ranges)

    def set_large_pages(self, wanted: bool) -> None:
        """``IOMMU_OPTION_HUGE_PAGES``.

        Turning them off is EINVAL while a domain maps something, EADDRINUSE when something is
        mapped at less than a page.
        """
        if not wanted and self.large_pages:
            if self._domains and self.areas:
                raise failure(errno.EINVAL, "there are mappings in hardware")
            self._require_aligned(max(self.alignment, PAGE_SIZE))
        self.large_pages = wanted
        for domain in self._domains:
            domain.large_pages = wanted

    def _require_aligned(self, alignment: int) -> None:
        for area in self.areas:
            if (area.iova | area.length | area.start % PAGE_SIZE) & (alignment - 1):
                raise failure(errno.EADDRINUSE, f"iova {area.iova:#x} is not aligned")

    # -- domains ------------------------------------------------------------------------------

    def add_domain(self, domain: PagingDomain, aperture: Range) -> None:
        """Mirror everything into ``domain``; EADDRINUSE, EFAULT, ENOMEM, and nothing changed."""
        self._require_aligned(max(self.alignment, domain.page_sizes & -domain.page_sizes))
        first, last = aperture
        outside = [(0, first - 1)] if first else []
        if last < IOVA_MAX:
            outside.append((last + 1, IOVA_MAX))
        domain.large_pages = self.large_pages
        with ExitStack() as undo:
            self.reserve(domain, outside)
            undo.callback(self.unreserve, domain)
            for area in self.areas:
                if area.pin is None:
                    area.pin = area.pages.pin(area.start, area.length)
                    undo.callback(_unpin, area)
                _map(area, area.pin, domain)
                undo.callback(domain.unmap, area.iova, area.length)
            undo.pop_all()
        self._domains.append(domain)

    def remove_domain(self, domain: PagingDomain) -> None:
        """Stop mirroring into ``domain``, which is about to be destroyed."""
        self._domains.remove(domain)
        self.unreserve(domain)
        if not self._domains:
            for area in self.areas:
                _unpin(area)

    # -- map ----------------------------------------------------------------------------------

    def map(self, pieces: list[Piece], iova: int | None, *, readable: bool, writable: bool) -> int:
        """Map ``pieces`` one behind the other, at ``iova`` or wherever there is room.

        Returns the IOVA. Errors in the kernel's order: EINVAL, EOVERFLOW, EINVAL (reserved),
        EEXIST; or ENOSPC; then EPERM; and what pinning meets.
        """
        length = sum(piece.length for piece in pieces)
        alignment = self.alignment
        if not length or length & (alignment - 1):
            raise failure(errno.EINVAL, f"length {length:#x} is no multiple of {alignment}")
        if iova is None:
            iova = self._choose(pieces[0].start, length)
        else:
            self._require_free(iova, length)
        if pieces[0].start % PAGE_SIZE & (alignment - 1):
            raise failure(errno.EINVAL, f"the memory is not aligned to {alignment}")
        if writable and not all(piece.pages.writable for piece in pieces):
            raise failure(errno.EPERM, "the memory was mapped read-only")
        at = iova
        with ExitStack() as undo:
            for piece in pieces:
                area = Area(at, piece, readable=readable, writable=writable)
                self._fill(area)
                self._insert(area)
                undo.callback(self._remove, area)
                at += piece.length
            undo.pop_all()
        return iova

    def pieces(self, iova: int, length: int) -> list[Piece]:
        """What is mapped in a range, to map it elsewhere; ENOENT where there is a hole."""
        if not length:
            raise failure(errno.EINVAL, "length is 0")
        if iova + length - 1 > IOVA_MAX:
            raise failure(errno.EOVERFLOW, "iova + length wraps around")
        found: list[Piece] = []
        at, end = iova, iova + length
        for area in self.areas.overlapping(iova, end - 1):
            if area.iova > at:
                break
            stop = min(area.last + 1, end)
            found.append(Piece(area.pages, area.start + at - area.iova, stop - at))
            at = stop
        if at != end:
            raise failure(errno.ENOENT, f"nothing is mapped at iova {at:#x}")
        return found

    def _fill(self, area: Area) -> None:
        """Pin the memory and map it into every domain."""
        if not self._domains:
            return
        with ExitStack() as undo:
            area.pin = area.pages.pin(area.start, area.length)
            undo.callback(_unpin, area)
            for domain in self._domains:
                _map(area, area.pin, domain)
                undo.callback(domain.unmap, area.iova, area.length)
            undo.pop_all()

    def _require_free(self, iova: int, length: int) -> None:
        last = iova + length - 1
        if iova & (self.alignment - 1):
            raise failure(errno.EINVAL, f"iova {iova:#x} is no multiple of {self.alignment}")
        if last > IOVA_MAX:
            raise failure(errno.EOVERFLOW, "iova + length wraps around")
        if any(first <= last and iova <= end for _owner, first, end in self._reserved):
            raise failure(errno.EINVAL, f"iova {iova:#x}-{last:#x} is partly reserved")
        if self.areas.overlapping(iova, last):
            raise failure(errno.EEXIST, f"iova {iova:#x}-{last:#x} is partly mapped")

    def _choose(self, start: int, length: int) -> int:
        """The lowest IOVA with room, aligned as the memory is; never 0, nor near the end."""
        if length >= IOVA_MAX // 2:
            raise failure(errno.EOVERFLOW, f"no range of {length:#x} bytes")
        wanted = 1 << (length - 1).bit_length()
        if start:
            wanted = min(wanted, start & -start)
        wanted = min(wanted, HUGE_PAGE_SIZES[0])
        if wanted < self.alignment:
            raise failure(errno.EINVAL, f"the memory is not aligned to {self.alignment}")
        for first, last in _merged(self._allowed) or [(0, IOVA_MAX)]:
            span = (max(first, self._packed), min(last, IOVA_MAX - PAGE_SIZE))
            for hole, end in self._free(*span):
                at = (hole + wanted - 1) & -wanted | start % PAGE_SIZE
                if at < end and end - at >= length - 1:
                    return at
        raise failure(errno.ENOSPC, f"no room for {length:#x} bytes aligned to {wanted:#x}")

    def _free(self, first: int, last: int) -> Iterator[Range]:
        for hole, end in _holes(
            first, last, ((start, stop) for _owner, start, stop in self._reserved)
        ):
            at = hole
            for area in self.areas.overlapping(hole, end):
                if area.iova > at:
                    yield at, area.iova - 1
                at = area.last + 1
            if at <= end:
                yield at, end

    # -- unmap --------------------------------------------------------------------------------

    def unmap(self, iova: int, length: int) -> tuple[int, OSError | None]:
        """Remove the areas in a range: the bytes removed, and why it stopped.

        It stops with ENOENT at the first area that the range covers in part. What came before is
        gone then.
        """
        removed = 0
        last = iova + length - 1
        for area in self.areas.overlapping(iova, last):
            if area.iova < iova or area.last > last:
                why = f"iova {area.iova:#x}-{area.last:#x} is not all in the range"
                return removed, failure(errno.ENOENT, why)
            self._remove(area)
            removed += area.length
        return removed, None

    def unmap_all(self) -> int:
        """Remove every area; the bytes removed."""
        return self.unmap(0, IOVA_MAX + 1)[0]

    def cut(self, iova: int) -> None:
        """Split the area that contains ``iova`` and more behind it; EINVAL unless aligned.

        Only without large pages, whose leaves cannot be cut.
        """
        area = self.areas.at(iova)
        if area is None or area.last == iova:
            return
        if (iova + 1) & (self.alignment - 1):
            raise failure(errno.EINVAL, f"iova {iova + 1:#x} is no multiple of {self.alignment}")
        kept = iova + 1 - area.iova
        halves = (
            (area.iova, Piece(area.pages, area.start, kept)),
            (iova + 1, Piece(area.pages, area.start + kept, area.length - kept)),
        )
        self.areas.remove(area)
        for at, piece in halves:
            half = Area(at, piece, readable=area.readable, writable=area.writable)
            if area.pin is not None:
                half.pin = half.pages.pin(half.start, half.length)
            self._insert(half)
        _unpin(area)
        area.pages.left(area)

    def _insert(self, area: Area) -> None:
        self.areas.add(area)
        area.pages.entered(area, lambda: self._withdraw(area))
        while (packed := self.areas.at(self._packed)) is not None:
            self._packed = packed.last + 1

    def _withdraw(self, area: Area) -> None:
        for domain in self._domains:
            domain.unmap(area.iova, area.length)

    def _remove(self, area: Area) -> None:
        self._withdraw(area)
        _unpin(area)
        self.areas.remove(area)
        area.pages.left(area)
        self._packed = max(min(self._packed, area.iova), PAGE_SIZE)


def _map(area: Area, pin: Pin, domain: PagingDomain) -> None:
    if not area.readable and not area.writable:
        raise failure(errno.EINVAL, "a mapping in hardware permits reads, writes or both")
    if area.pages.revoked:
        return
    domain.map(
        area.iova,
        pin.extent.hpa + area.start - pin.start,
        area.length,
        read=area.readable,
        write=area.writable,
    )


def _unpin(area: Area) -> None:
    if area.pin is not None:
        area.pages.unpin(area.pin)
        area.pin = None


def _overlaps(ranges: Iterable[Range], first: int, last: int) -> bool:
    return any(low <= last and first <= high for low, high in ranges)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """``ranges`` in order, neighbours and overlaps as one."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _holes(first: int, last: int, taken: Iterable[Range]) -> Iterator[Range]:
    """What of ``[first, last]`` is not in ``taken``."""
    at = first
    for low, high in _merged(taken):
        if high < at or low > last:
            continue
        if low > at:
            yield at, low - 1
        at = high + 1
    if at <= last:
        yield at, last
