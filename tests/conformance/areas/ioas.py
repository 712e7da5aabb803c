"""iommufd without devices: objects, I/O address spaces, options.

Facts: Linux ``drivers/iommu/iommufd/{main,ioas,io_pagetable}.c``.
"""

from __future__ import annotations

import errno
import struct

from conformance.behaviour import IOMMUFD, behaviour
from conformance.host import PAGE, Host
from conformance.iommufd_calls import (
    EVERYTHING,
    FIXED,
    READABLE,
    RW,
    WRITEABLE,
    call,
    destroy,
    hwpt,
    ioas,
    ioas_allow,
    ioas_copy,
    ioas_map,
    ioas_map_file,
    ioas_ranges,
    ioas_unmap,
    iommufd,
    option,
)
from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio as vfio_abi

SOURCE = "drivers/iommu/iommufd/ioas.c, io_pagetable.c"
IOVA = 0x100000


def case(name: str, *, error: int | tuple[int, ...] = ()):
    """A behaviour that needs no device."""
    return behaviour(name, SOURCE, error=error, needs=IOMMUFD)


def _space(host: Host) -> tuple[int, int]:
    fd = iommufd(host)
    return fd, ioas(host, fd)


# --- Requests and objects ---


@case("iommufd/request-without-buffer-is-efault", error=errno.EFAULT)
def null(host: Host) -> None:
    fd = iommufd(host)
    for request in (abi.IOMMU_DESTROY, abi.IOMMU_IOAS_ALLOC):
        with host.refuses(errno.EFAULT):
            host.ioctl(fd, request, 0)


@case("iommufd/unknown-request-is-enotty", error=errno.ENOTTY)
def unknown(host: Host) -> None:
    fd = iommufd(host)
    for request in (0x3B7F, 0x3BF0, 0x1234, vfio_abi.VFIO_GROUP_GET_STATUS):
        with host.refuses(errno.ENOTTY):
            host.ioctl(fd, request, bytearray(64))


@case("iommufd/size-below-the-least-is-einval", error=errno.EINVAL)
def size_small(host: Host) -> None:
    fd = iommufd(host)
    for request, least in (
        (abi.IOMMU_DESTROY, 8),
        (abi.IOMMU_IOAS_ALLOC, 12),
        (abi.IOMMU_IOAS_MAP, 40),
        (abi.IOMMU_IOAS_UNMAP, 24),
        (abi.IOMMU_IOAS_COPY, 40),
        (abi.IOMMU_IOAS_IOVA_RANGES, 32),
        (abi.IOMMU_IOAS_ALLOW_IOVAS, 24),
        (abi.IOMMU_OPTION, 24),
        (abi.IOMMU_VFIO_IOAS, 12),
        (abi.IOMMU_HWPT_ALLOC, 24),
        (abi.IOMMU_GET_HW_INFO, 32),
        (abi.IOMMU_FAULT_QUEUE_ALLOC, 16),
        (abi.IOMMU_IOAS_MAP_FILE, 40),
    ):
        for size in (0, 4, least - 1):
            with host.refuses(errno.EINVAL):
                host.ioctl(fd, request, bytearray(struct.pack("<I", size) + bytes(96)))


@case("iommufd/zeros-beyond-the-struct-are-fine")
def size_zeros(host: Host) -> None:
    fd = iommufd(host)
    buffer = bytearray(struct.pack("<I", 64) + bytes(60))
    host.ioctl(fd, abi.IOMMU_IOAS_ALLOC, buffer)
    assert struct.unpack_from("<I", buffer, 8)[0]


@case("iommufd/data-beyond-the-struct-is-e2big", error=errno.E2BIG)
def size_data(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.E2BIG):
        host.ioctl(fd, abi.IOMMU_IOAS_ALLOC, bytearray(struct.pack("<I", 64) + bytes(59) + b"\1"))


@case("iommufd/destroy-of-nothing-is-enoent", error=errno.ENOENT)
def destroy_nothing(host: Host) -> None:
    fd = iommufd(host)
    for number in (0, 1, 99, 0xFFFFFFFF):
        with host.refuses(errno.ENOENT):
            destroy(host, fd, number)


@case("iommufd/destroy", error=errno.ENOENT)
def destroy_space(host: Host) -> None:
    fd, space = _space(host)
    destroy(host, fd, space)
    with host.refuses(errno.ENOENT):
        destroy(host, fd, space)


@case("iommufd/destroy-takes-mappings-along")
def destroy_mapped(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    destroy(host, fd, space)


@case("iommufd/ids-are-of-one-descriptor", error=errno.ENOENT)
def ids(host: Host) -> None:
    _fd, space = _space(host)
    other = iommufd(host)
    with host.refuses(errno.ENOENT):
        destroy(host, other, space)


@case("iommufd/opens-many-times")
def opens(host: Host) -> None:
    first, second = iommufd(host), iommufd(host)
    assert ioas(host, first) == ioas(host, second) >= 1


@case("ioas/flags-are-eopnotsupp", error=errno.EOPNOTSUPP)
def alloc_flags(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EOPNOTSUPP):
        call(host, fd, abi.IOMMU_IOAS_ALLOC, abi.iommu_ioas_alloc(flags=1))


@case("ioas/ids-differ")
def alloc_many(host: Host) -> None:
    fd = iommufd(host)
    spaces = [ioas(host, fd) for _ in range(4)]
    assert len(set(spaces)) == 4
    assert min(spaces) >= 1


# --- Ranges ---


@case("ioas/new-space-has-every-iova")
def ranges(host: Host) -> None:
    fd, space = _space(host)
    assert ioas_ranges(host, fd, space) == ([(0, EVERYTHING)], 1)


@case("ioas/ranges-without-room-are-emsgsize", error=errno.EMSGSIZE)
def ranges_room(host: Host) -> None:
    fd, space = _space(host)
    buffer = abi.iommu_ioas_iova_ranges(size=32, ioas_id=space).pack()
    with host.refuses(errno.EMSGSIZE):
        host.ioctl(fd, abi.IOMMU_IOAS_IOVA_RANGES, buffer)
    assert abi.iommu_ioas_iova_ranges.unpack_from(buffer).num_iovas == 1


@case("ioas/ranges-of-nothing-is-enoent", error=errno.ENOENT)
def ranges_unknown(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.ENOENT):
        ioas_ranges(host, fd, 99)


@case("ioas/ranges-with-reserved-field-is-eopnotsupp", error=errno.EOPNOTSUPP)
def ranges_reserved(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EOPNOTSUPP):
        call(
            host,
            fd,
            abi.IOMMU_IOAS_IOVA_RANGES,
            abi.iommu_ioas_iova_ranges(ioas_id=space, reserved=1),
        )


@case("ioas/allowed-ranges-bound-automatic-iovas", error=errno.ENOSPC)
def allow(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory(2 * PAGE)
    ioas_allow(host, fd, space, (0x40000, 0x40000 + PAGE - 1))
    assert ioas_map(host, fd, space, memory.vaddr, PAGE) == 0x40000
    with host.refuses(errno.ENOSPC):
        ioas_map(host, fd, space, memory.vaddr, PAGE)
    ioas_allow(host, fd, space)
    ioas_map(host, fd, space, memory.vaddr, PAGE)


@case("ioas/allowed-ranges-do-not-bind-fixed-iovas")
def allow_fixed(host: Host) -> None:
    fd, space = _space(host)
    ioas_allow(host, fd, space, (0x40000, 0x4FFFF))
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)


@case("ioas/allowed-ranges-replace-earlier-ones")
def allow_replace(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    ioas_allow(host, fd, space, (0x40000, 0x4FFFF), (0x80000, 0x8FFFF))
    ioas_allow(host, fd, space, (0x80000, 0x8FFFF))
    assert 0x80000 <= ioas_map(host, fd, space, memory.vaddr, PAGE) <= 0x8FFFF


@case("ioas/allowed-ranges-do-not-change-the-ranges-told")
def allow_told(host: Host) -> None:
    fd, space = _space(host)
    ioas_allow(host, fd, space, (0x40000, 0x4FFFF))
    assert ioas_ranges(host, fd, space).ranges == [(0, EVERYTHING)]


@case("ioas/allowed-range-of-one-byte-is-einval", error=errno.EINVAL)
def allow_byte(host: Host) -> None:
    fd, space = _space(host)
    for each in ((5, 5), (6, 5)):
        with host.refuses(errno.EINVAL):
            ioas_allow(host, fd, space, each)


@case("ioas/allowed-ranges-that-overlap-are-einval", error=errno.EINVAL)
def allow_overlap(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EINVAL):
        ioas_allow(host, fd, space, (0, 0xFFFF), (0x8000, 0x1FFFF))


@case("ioas/allowed-ranges-of-nothing-is-enoent", error=errno.ENOENT)
def allow_unknown(host: Host) -> None:
    with host.refuses(errno.ENOENT):
        ioas_allow(host, iommufd(host), 99, (0, 0xFFFF))


# --- Map ---


@case("ioas/map-at-a-fixed-iova")
def map_fixed(host: Host) -> None:
    fd, space = _space(host)
    assert ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA) == IOVA


@case("ioas/map-at-iova-0")
def map_zero(host: Host) -> None:
    fd, space = _space(host)
    assert ioas_map(host, fd, space, host.memory().vaddr, PAGE, 0) == 0


@case("ioas/automatic-iova-is-never-0-and-never-twice")
def map_auto(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    found = [ioas_map(host, fd, space, memory.vaddr, PAGE) for _ in range(8)]
    assert all(found)
    assert len(set(found)) == 8
    assert all(iova % PAGE == 0 for iova in found)


@case("ioas/automatic-iova-is-the-first-that-fits")
def map_first(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    first = ioas_map(host, fd, space, memory.vaddr, PAGE)
    second = ioas_map(host, fd, space, memory.vaddr, PAGE)
    assert (first, second) == (PAGE, 2 * PAGE)
    ioas_unmap(host, fd, space, first, PAGE)
    assert ioas_map(host, fd, space, memory.vaddr, PAGE) == first


@case("ioas/automatic-iova-is-aligned-to-its-length")
def map_aligned(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory(2 << 20)
    start = -(-memory.vaddr // 0x10000) * 0x10000
    assert ioas_map(host, fd, space, start, 0x10000) % 0x10000 == 0
    assert ioas_map(host, fd, space, start, 0x8000) % 0x8000 == 0


@case("ioas/automatic-iova-has-the-address-within-the-page")
def map_offset(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory(2 * PAGE)
    assert ioas_map(host, fd, space, memory.vaddr + 0x123, 64) % PAGE == 0x123


@case("ioas/map-of-any-length-without-device")
def map_bytes(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    ioas_map(host, fd, space, memory.vaddr, 3, IOVA)
    ioas_map(host, fd, space, memory.vaddr + 3, 1, IOVA + 3)
    assert ioas_unmap(host, fd, space, IOVA, 4) == 4


@case("ioas/memory-is-not-looked-at-without-device")
def map_lazy(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, PAGE, PAGE, IOVA)
    assert ioas_unmap(host, fd, space, IOVA, PAGE) == PAGE


@case("ioas/map-over-existing-is-eexist", error=errno.EEXIST)
def map_overlap(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory(8 * PAGE)
    ioas_map(host, fd, space, memory.vaddr, 2 * PAGE, IOVA)
    for start, pages in ((0, 2), (-1, 2), (1, 2), (-1, 4), (1, 1)):
        with host.refuses(errno.EEXIST):
            ioas_map(host, fd, space, memory.vaddr, pages * PAGE, IOVA + start * PAGE)


@case("ioas/map-with-unknown-flag-is-eopnotsupp", error=errno.EOPNOTSUPP)
def map_flag(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EOPNOTSUPP):
        ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA, RW | 8)


@case("ioas/map-with-reserved-field-is-eopnotsupp", error=errno.EOPNOTSUPP)
def map_reserved(host: Host) -> None:
    fd, space = _space(host)
    wish = abi.iommu_ioas_map(
        flags=RW | FIXED, ioas_id=space, reserved=1, user_va=host.memory().vaddr, length=PAGE
    )
    with host.refuses(errno.EOPNOTSUPP):
        call(host, fd, abi.IOMMU_IOAS_MAP, wish)


@case("ioas/map-without-permission-is-einval", error=errno.EINVAL)
def map_nothing(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EINVAL):
        ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA, 0)


@case("ioas/map-for-reading-or-writing-only")
def map_either(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA, READABLE)
    ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA + PAGE, WRITEABLE)


@case("ioas/map-into-nothing-is-enoent", error=errno.ENOENT)
def map_unknown(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.ENOENT):
        ioas_map(host, fd, 99, host.memory().vaddr, PAGE, IOVA)


@case("ioas/map-of-0-bytes-is-einval", error=errno.EINVAL)
def map_empty(host: Host) -> None:
    fd, space = _space(host)
    for iova in (IOVA, None):
        with host.refuses(errno.EINVAL):
            ioas_map(host, fd, space, host.memory().vaddr, 0, iova)


@case("ioas/map-past-the-last-iova-is-eoverflow", error=errno.EOVERFLOW)
def map_wrap(host: Host) -> None:
    fd, space = _space(host)
    vaddr = host.memory(2 * PAGE).vaddr
    for iova, length in (
        (EVERYTHING - PAGE + 1, 2 * PAGE),
        (EVERYTHING, PAGE),
        (IOVA, EVERYTHING),
    ):
        with host.refuses(errno.EOVERFLOW):
            ioas_map(host, fd, space, vaddr, length, iova)


@case("ioas/map-past-the-last-vaddr-is-eoverflow", error=errno.EOVERFLOW)
def map_vaddr_wrap(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EOVERFLOW):
        ioas_map(host, fd, space, EVERYTHING - PAGE + 1, 2 * PAGE, IOVA)


# --- Unmap ---


@case("ioas/unmap-tells-the-bytes")
def unmap(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory(4 * PAGE).vaddr, 4 * PAGE, IOVA)
    assert ioas_unmap(host, fd, space, IOVA, 4 * PAGE) == 4 * PAGE


@case("ioas/unmap-of-several-mappings")
def unmap_several(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    for page in (0, 1, 4):
        ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA + page * PAGE)
    assert ioas_unmap(host, fd, space, IOVA, 8 * PAGE) == 3 * PAGE


@case("ioas/unmap-of-nothing-is-enoent", error=errno.ENOENT)
def unmap_nothing(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.ENOENT):
        ioas_unmap(host, fd, space, IOVA, PAGE)


@case("ioas/unmap-of-a-part-is-enoent", error=errno.ENOENT)
def unmap_part(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory(4 * PAGE).vaddr, 4 * PAGE, IOVA)
    for start, pages in ((0, 2), (2, 2), (1, 2), (-1, 2)):
        with host.refuses(errno.ENOENT):
            ioas_unmap(host, fd, space, IOVA + start * PAGE, pages * PAGE)
    assert ioas_unmap(host, fd, space, IOVA, 4 * PAGE) == 4 * PAGE


@case("ioas/unmap-that-fails-later-has-unmapped-the-earlier", error=errno.ENOENT)
def unmap_half(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory(4 * PAGE)
    ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA)
    ioas_map(host, fd, space, memory.vaddr, 2 * PAGE, IOVA + PAGE)
    buffer = abi.iommu_ioas_unmap(size=24, ioas_id=space, iova=IOVA, length=2 * PAGE).pack()
    with host.refuses(errno.ENOENT):
        host.ioctl(fd, abi.IOMMU_IOAS_UNMAP, buffer)
    assert abi.iommu_ioas_unmap.unpack_from(buffer).length == 2 * PAGE
    with host.refuses(errno.ENOENT):
        ioas_unmap(host, fd, space, IOVA, PAGE)
    assert ioas_unmap(host, fd, space, IOVA + PAGE, 2 * PAGE) == 2 * PAGE


@case("ioas/unmap-of-everything")
def unmap_all(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    for iova in (0, IOVA, 1 << 60):
        ioas_map(host, fd, space, memory.vaddr, PAGE, iova)
    assert ioas_unmap(host, fd, space, 0, EVERYTHING) == 3 * PAGE
    assert ioas_unmap(host, fd, space, 0, EVERYTHING) == 0


@case("ioas/unmap-of-0-bytes-is-einval", error=errno.EINVAL)
def unmap_empty(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EINVAL):
        ioas_unmap(host, fd, space, IOVA, 0)


@case("ioas/unmap-past-the-last-iova-is-eoverflow", error=errno.EOVERFLOW)
def unmap_wrap(host: Host) -> None:
    fd, space = _space(host)
    for iova, length in ((EVERYTHING - PAGE + 1, 2 * PAGE), (EVERYTHING, 1), (1, EVERYTHING)):
        with host.refuses(errno.EOVERFLOW):
            ioas_unmap(host, fd, space, iova, length)


@case("ioas/unmap-in-nothing-is-enoent", error=errno.ENOENT)
def unmap_unknown(host: Host) -> None:
    with host.refuses(errno.ENOENT):
        ioas_unmap(host, iommufd(host), 99, IOVA, PAGE)


# --- Copy ---


@case("ioas/copy-within-and-between-spaces")
def copy(host: Host) -> None:
    fd, space = _space(host)
    other = ioas(host, fd)
    ioas_map(host, fd, space, host.memory(4 * PAGE).vaddr, 4 * PAGE, IOVA)
    assert ioas_copy(host, fd, space, IOVA, space, PAGE, 2 * IOVA) == 2 * IOVA
    assert ioas_copy(host, fd, space, IOVA + PAGE, other, 2 * PAGE, IOVA) == IOVA
    assert ioas_copy(host, fd, space, IOVA, other, PAGE)
    ioas_unmap(host, fd, space, 0, EVERYTHING)
    assert ioas_unmap(host, fd, other, IOVA, 2 * PAGE) == 2 * PAGE


@case("ioas/copy-of-what-is-not-mapped-is-enoent", error=errno.ENOENT)
def copy_hole(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    for start, length in ((IOVA + PAGE, PAGE), (IOVA, 2 * PAGE), (IOVA - PAGE, 2 * PAGE)):
        with host.refuses(errno.ENOENT):
            ioas_copy(host, fd, space, start, space, length, 4 * IOVA)


@case("ioas/copy-across-mappings")
def copy_across(host: Host) -> None:
    fd, space = _space(host)
    memory = host.memory()
    ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA)
    ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA + PAGE)
    assert ioas_copy(host, fd, space, IOVA, space, 2 * PAGE, 4 * IOVA) == 4 * IOVA


@case("ioas/copy-over-existing-is-eexist", error=errno.EEXIST)
def copy_overlap(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    with host.refuses(errno.EEXIST):
        ioas_copy(host, fd, space, IOVA, space, PAGE, IOVA)


@case("ioas/copy-of-0-bytes-is-einval", error=errno.EINVAL)
def copy_empty(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    with host.refuses(errno.EINVAL):
        ioas_copy(host, fd, space, IOVA, space, 0, 4 * IOVA)


@case("ioas/writable-copy-of-read-only-is-eperm", error=errno.EPERM)
def copy_writable(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA, READABLE)
    with host.refuses(errno.EPERM):
        ioas_copy(host, fd, space, IOVA, space, PAGE, 4 * IOVA)
    ioas_copy(host, fd, space, IOVA, space, PAGE, 4 * IOVA, READABLE)


@case("ioas/copy-without-permission-is-einval", error=errno.EINVAL)
def copy_nothing(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    with host.refuses(errno.EINVAL):
        ioas_copy(host, fd, space, IOVA, space, PAGE, 4 * IOVA, 0)


@case("ioas/copy-past-the-end-is-eoverflow", error=errno.EOVERFLOW)
def copy_wrap(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EOVERFLOW):
        ioas_copy(host, fd, space, IOVA, space, EVERYTHING, 4 * IOVA)


@case("ioas/copy-between-nothing-is-enoent", error=errno.ENOENT)
def copy_unknown(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    for source, target in ((99, space), (space, 99)):
        with host.refuses(errno.ENOENT):
            ioas_copy(host, fd, source, IOVA, target, PAGE, 4 * IOVA)


# --- Options ---

MODE, HUGE = abi.IOMMU_OPTION_RLIMIT_MODE, abi.IOMMU_OPTION_HUGE_PAGES


@case("option/accounting-counts-by-user-at-first")
def mode(host: Host) -> None:
    fd = iommufd(host)
    assert option(host, fd, MODE) == 0
    option(host, fd, MODE, 1)
    assert option(host, fd, MODE) == 1


@case("option/accounting-cannot-change-once-there-are-objects", error=errno.EBUSY)
def mode_busy(host: Host) -> None:
    fd, _space_id = _space(host)
    with host.refuses(errno.EBUSY):
        option(host, fd, MODE, 1)
    assert option(host, fd, MODE) == 0


@case("option/accounting-has-two-modes", error=errno.EINVAL)
def mode_value(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EINVAL):
        option(host, fd, MODE, 2)


@case("option/accounting-is-of-no-object", error=errno.EOPNOTSUPP)
def mode_object(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EOPNOTSUPP):
        option(host, fd, MODE, object_id=space)


@case("option/huge-pages-are-on-at-first")
def huge(host: Host) -> None:
    fd, space = _space(host)
    assert option(host, fd, HUGE, object_id=space) == 1
    option(host, fd, HUGE, 0, space)
    assert option(host, fd, HUGE, object_id=space) == 0
    option(host, fd, HUGE, 1, space)


@case("option/huge-pages-are-on-or-off", error=errno.EINVAL)
def huge_value(host: Host) -> None:
    fd, space = _space(host)
    with host.refuses(errno.EINVAL):
        option(host, fd, HUGE, 2, space)


@case("option/huge-pages-of-nothing-is-enoent", error=errno.ENOENT)
def huge_nothing(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.ENOENT):
        option(host, fd, HUGE)


@case("option/without-huge-pages-everything-is-page-aligned", error=errno.EINVAL)
def huge_alignment(host: Host) -> None:
    fd, space = _space(host)
    option(host, fd, HUGE, 0, space)
    assert ioas_ranges(host, fd, space).alignment == PAGE
    with host.refuses(errno.EINVAL):
        ioas_map(host, fd, space, host.memory().vaddr, 64, IOVA)


@case("option/huge-pages-stay-with-misaligned-mappings", error=errno.EADDRINUSE)
def huge_misaligned(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, 64, IOVA)
    with host.refuses(errno.EADDRINUSE):
        option(host, fd, HUGE, 0, space)


@case("option/unknown-is-eopnotsupp", error=errno.EOPNOTSUPP)
def option_unknown(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EOPNOTSUPP):
        option(host, fd, 99)


@case("option/reserved-field-is-eopnotsupp", error=errno.EOPNOTSUPP)
def option_reserved(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EOPNOTSUPP):
        call(host, fd, abi.IOMMU_OPTION, abi.iommu_option(op=1, reserved=1))


@case("option/unknown-operation-is-eopnotsupp", error=errno.EOPNOTSUPP)
def option_operation(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EOPNOTSUPP):
        call(host, fd, abi.IOMMU_OPTION, abi.iommu_option(op=2))


# --- Files of memory ---


@case("mapfile/of-memory")
def map_file(host: Host) -> None:

    fd, space = _space(host)
    file = host.memfd(4 * PAGE)
    assert ioas_map_file(host, fd, space, file, 4 * PAGE, IOVA) == IOVA
    assert ioas_map_file(host, fd, space, file, PAGE, start=PAGE)
    assert ioas_unmap(host, fd, space, IOVA, 4 * PAGE) == 4 * PAGE


@case("mapfile/of-0-bytes-is-einval", error=errno.EINVAL)
def map_file_empty(host: Host) -> None:

    fd, space = _space(host)
    with host.refuses(errno.EINVAL):
        ioas_map_file(host, fd, space, host.memfd(PAGE), 0, IOVA)


@case("mapfile/past-the-last-offset-is-eoverflow", error=errno.EOVERFLOW)
def map_file_wrap(host: Host) -> None:

    fd, space = _space(host)
    file = host.memfd(PAGE)
    with host.refuses(errno.EOVERFLOW):
        ioas_map_file(host, fd, space, file, 2 * PAGE, IOVA, start=EVERYTHING - PAGE + 1)


@case("mapfile/of-no-file-is-ebadf", error=errno.EBADF)
def map_file_closed(host: Host) -> None:

    fd, space = _space(host)
    with host.refuses(errno.EBADF):
        ioas_map_file(host, fd, space, 999, PAGE, IOVA)
    with host.refuses(errno.EBADF):
        ioas_map_file(host, fd, space, -1, PAGE, IOVA)


@case("mapfile/with-unknown-flag-is-eopnotsupp", error=errno.EOPNOTSUPP)
def map_file_flag(host: Host) -> None:

    fd, space = _space(host)
    with host.refuses(errno.EOPNOTSUPP):
        ioas_map_file(host, fd, space, host.memfd(PAGE), PAGE, IOVA, flags=RW | 8)


# --- Objects that want a device ---


@case("fault/queue-is-a-file", error=errno.EOPNOTSUPP)
def fault_queue(host: Host) -> None:
    fd = iommufd(host)
    answer = call(host, fd, abi.IOMMU_FAULT_QUEUE_ALLOC, abi.iommu_fault_alloc())
    queue = host.own(answer.out_fault_fd)  # type: ignore[attr-defined]
    assert answer.out_fault_id >= 1  # type: ignore[attr-defined]
    assert queue > 2
    with host.refuses(errno.EOPNOTSUPP):
        call(host, fd, abi.IOMMU_FAULT_QUEUE_ALLOC, abi.iommu_fault_alloc(flags=1))


@case("hwpt/of-no-device-is-enoent", error=errno.ENOENT)
def hwpt_unknown(host: Host) -> None:

    fd, space = _space(host)
    for device in (0, space, 99):
        with host.refuses(errno.ENOENT):
            hwpt(host, fd, device, space)


@case("hwinfo/of-no-device-is-enoent", error=errno.ENOENT)
def hw_info_unknown(host: Host) -> None:
    fd, space = _space(host)
    for device in (0, space, 99):
        with host.refuses(errno.ENOENT):
            call(host, fd, abi.IOMMU_GET_HW_INFO, abi.iommu_hw_info(dev_id=device))


@case("viommu/of-no-device-is-enoent", error=errno.ENOENT)
def viommu_unknown(host: Host) -> None:
    fd = iommufd(host)
    wish = abi.iommu_viommu_alloc(type=abi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, dev_id=99)
    with host.refuses(errno.ENOENT):
        call(host, fd, abi.IOMMU_VIOMMU_ALLOC, wish)


@case("vdevice/of-no-viommu-is-enoent", error=errno.ENOENT)
def vdevice_unknown(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.ENOENT):
        call(host, fd, abi.IOMMU_VDEVICE_ALLOC, abi.iommu_vdevice_alloc(viommu_id=99))


@case("iommufd/mappings-of-memory-cannot-change-process", error=errno.EINVAL)
def change_process(host: Host) -> None:
    fd, space = _space(host)
    ioas_map(host, fd, space, host.memory().vaddr, PAGE, IOVA)
    with host.refuses(errno.EINVAL):
        call(host, fd, abi.IOMMU_IOAS_CHANGE_PROCESS, abi.iommu_ioas_change_process())


@case("iommufd/mappings-of-files-can-change-process")
def change_process_file(host: Host) -> None:

    fd, space = _space(host)
    ioas_map_file(host, fd, space, host.memfd(PAGE), PAGE, IOVA)
    call(host, fd, abi.IOMMU_IOAS_CHANGE_PROCESS, abi.iommu_ioas_change_process())


@case("iommufd/read-and-mmap", error=(errno.EINVAL, errno.ENXIO))
def no_data(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EINVAL):
        host.kernel.pread(fd, 8, 0)
    with host.refuses(errno.ENXIO):
        host.kernel.mmap(fd, PAGE, 0)
