"""The type1 IOMMU: mapping, unmapping, information, dirty pages.

Facts: Linux ``drivers/vfio/vfio_iommu_type1.c``.
"""

from __future__ import annotations

import errno
import struct

from conformance.behaviour import CONTAINER, behaviour
from conformance.calls import (
    RW,
    bar,
    chain,
    device_fd,
    edu_master,
    edu_reads,
    edu_writes,
    iommu_info,
    iova_ranges,
    join,
    map_dma,
    open_group,
    open_role,
    set_container,
    unmap_dma,
)
from conformance.host import PAGE, Host
from vfiokit.abi import vfio as abi

SOURCE = "drivers/vfio/vfio_iommu_type1.c"
IOVA = 0x100000
ALL = abi.VFIO_DMA_UNMAP_FLAG_ALL
VADDR = abi.VFIO_DMA_UNMAP_FLAG_VADDR
MAP_VADDR = abi.VFIO_DMA_MAP_FLAG_VADDR
READ, WRITE = abi.VFIO_DMA_MAP_FLAG_READ, abi.VFIO_DMA_MAP_FLAG_WRITE
V1 = abi.VFIO_TYPE1_IOMMU


def case(name: str, *, error: int | tuple[int, ...] = (), binds: str | tuple[str, ...] = "edu"):
    """A behaviour of this area."""
    return behaviour(f"type1/{name}", SOURCE, binds=binds, error=error, needs=CONTAINER)


# --- DMA ---


@case("device-reads-and-writes-mapped-memory")
def dma(host: Host) -> None:
    opened = open_role(host, "edu")
    memory = host.memory(2 * PAGE)
    map_dma(host, opened.container, IOVA, memory.vaddr, 2 * PAGE)
    edu_master(host, opened.fd)
    memory.view[:16] = b"sixteen byteslong"[:16]
    edu_reads(host, opened.fd, IOVA, 16)
    edu_writes(host, opened.fd, IOVA + PAGE, 16)
    assert bytes(memory.view[PAGE : PAGE + 16]) == bytes(memory.view[:16])


@case("device-cannot-write-without-write-permission")
def dma_read_only(host: Host) -> None:
    opened = open_role(host, "edu")
    memory = host.memory()
    map_dma(host, opened.container, IOVA, memory.vaddr, PAGE, READ)
    edu_master(host, opened.fd)
    memory.view[:8] = b"untouche"
    edu_reads(host, opened.fd, IOVA, 4)
    edu_writes(host, opened.fd, IOVA + 4, 4)
    assert bytes(memory.view[:8]) == b"untouche"


@case("device-cannot-reach-unmapped-memory")
def dma_unmapped(host: Host) -> None:
    opened = open_role(host, "edu")
    memory = host.memory()
    map_dma(host, opened.container, IOVA, memory.vaddr, PAGE)
    edu_master(host, opened.fd)
    edu_writes(host, opened.fd, IOVA, 4)
    unmap_dma(host, opened.container, IOVA, PAGE)
    memory.view[:4] = b"kept"
    edu_writes(host, opened.fd, IOVA, 4)
    assert bytes(memory.view[:4]) == b"kept"


@case("device-needs-bus-mastering")
def dma_no_master(host: Host) -> None:
    opened = open_role(host, "edu")
    memory = host.memory()
    map_dma(host, opened.container, IOVA, memory.vaddr, PAGE)
    memory.view[:4] = b"kept"
    edu_writes(host, opened.fd, IOVA, 4)
    assert bytes(memory.view[:4]) == b"kept"


# --- MAP_DMA ---


@case("same-memory-at-two-iovas")
def two_iovas(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    map_dma(host, fd, IOVA + PAGE, memory.vaddr, PAGE)
    assert unmap_dma(host, fd, IOVA, 2 * PAGE) == 2 * PAGE


@case("map-over-existing-is-eexist", error=errno.EEXIST)
def map_same(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    with host.refuses(errno.EEXIST):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE)


def _overlap(host: Host, start: int, pages: int) -> None:
    """Map pages 2 and 3, then ``pages`` from page ``start`` on, which meets them."""
    fd, _group = join(host, "edu")
    memory = host.memory(8 * PAGE)
    map_dma(host, fd, IOVA + 2 * PAGE, memory.vaddr, 2 * PAGE)
    with host.refuses(errno.EEXIST):
        map_dma(host, fd, IOVA + start * PAGE, memory.vaddr, pages * PAGE)
    assert unmap_dma(host, fd, IOVA, 8 * PAGE) == 2 * PAGE


@case("map-over-the-start-of-a-mapping-is-eexist", error=errno.EEXIST)
def map_start(host: Host) -> None:
    _overlap(host, 1, 2)


@case("map-over-the-end-of-a-mapping-is-eexist", error=errno.EEXIST)
def map_end(host: Host) -> None:
    _overlap(host, 3, 2)


@case("map-around-a-mapping-is-eexist", error=errno.EEXIST)
def map_around(host: Host) -> None:
    _overlap(host, 0, 6)


@case("map-inside-a-mapping-is-eexist", error=errno.EEXIST)
def map_inside(host: Host) -> None:
    _overlap(host, 3, 1)


@case("neighbours-are-no-overlap")
def map_neighbours(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    for page in (1, 0, 2):
        map_dma(host, fd, IOVA + page * PAGE, memory.vaddr, PAGE)


@case("map-of-nothing-is-einval", error=errno.EINVAL)
def map_empty(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, host.memory().vaddr, 0)


@case("map-of-unaligned-iova-is-einval", error=errno.EINVAL)
def map_iova(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA + 0x800, host.memory().vaddr, PAGE)


@case("map-of-unaligned-vaddr-is-einval", error=errno.EINVAL)
def map_vaddr(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, host.memory(2 * PAGE).vaddr + 8, PAGE)


@case("map-of-unaligned-size-is-einval", error=errno.EINVAL)
def map_size(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, host.memory().vaddr, 0x800)


@case("map-past-the-last-iova-is-eoverflow", error=errno.EOVERFLOW)
def map_wrap(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EOVERFLOW):
        map_dma(host, fd, (1 << 64) - PAGE, host.memory().vaddr, 2 * PAGE)


@case("map-past-the-last-vaddr-is-eoverflow", error=errno.EOVERFLOW)
def map_vaddr_wrap(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EOVERFLOW):
        map_dma(host, fd, IOVA, (1 << 64) - PAGE, 2 * PAGE)


@case("map-without-permission-is-einval", error=errno.EINVAL)
def map_no_access(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, host.memory().vaddr, PAGE, 0)


@case("map-with-unknown-flag-is-einval", error=errno.EINVAL)
def map_flag(host: Host) -> None:
    fd, _group = join(host, "edu")
    for flag in (8, 1 << 31):
        with host.refuses(errno.EINVAL):
            map_dma(host, fd, IOVA, host.memory().vaddr, PAGE, RW | flag)


@case("map-with-short-argsz-is-einval", error=errno.EINVAL)
def map_argsz(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, host.memory().vaddr, PAGE, argsz=31)


@case("map-takes-a-longer-argsz")
def map_long(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE, argsz=4096)


@case("map-without-buffer-is-efault", error=errno.EFAULT)
def map_null(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EFAULT):
        host.ioctl(fd, abi.VFIO_IOMMU_MAP_DMA, 0)


@case("map-of-the-interrupt-range-is-einval", error=errno.EINVAL)
def map_interrupts(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory(2 * PAGE)
    for iova, pages in ((0xFEE0_0000, 1), (0xFEDF_F000, 2), (0xFEEF_F000, 2)):
        with host.refuses(errno.EINVAL):
            map_dma(host, fd, iova, memory.vaddr, pages * PAGE)


@case("map-beside-the-interrupt-range")
def map_beside(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, 0xFEDF_F000, memory.vaddr, PAGE)
    map_dma(host, fd, 0xFEF0_0000, memory.vaddr, PAGE)


@case("map-beyond-the-aperture-is-einval", error=errno.EINVAL)
def map_beyond(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory(2 * PAGE)
    last = iova_ranges(host, fd)[-1][1]
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, last + 1, memory.vaddr, PAGE)
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, last + 1 - PAGE, memory.vaddr, 2 * PAGE)


@case("map-of-the-last-page-of-the-aperture")
def map_last(host: Host) -> None:
    fd, _group = join(host, "edu")
    last = iova_ranges(host, fd)[-1][1]
    map_dma(host, fd, last + 1 - PAGE, host.memory().vaddr, PAGE)
    assert unmap_dma(host, fd, last + 1 - PAGE, PAGE) == PAGE


@case("map-of-iova-0")
def map_zero(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, 0, host.memory().vaddr, PAGE)
    assert unmap_dma(host, fd, 0, PAGE) == PAGE


@case("overlap-is-found-before-permission-to-map", error=(errno.EEXIST, errno.EFAULT))
def map_order(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    with host.refuses(errno.EEXIST):
        map_dma(host, fd, IOVA, PAGE, PAGE)
    with host.refuses(errno.EFAULT):
        map_dma(host, fd, IOVA + PAGE, PAGE, PAGE)


@case("map-of-no-memory-is-efault", error=errno.EFAULT)
def map_nowhere(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EFAULT):
        map_dma(host, fd, IOVA, PAGE, PAGE)
    assert unmap_dma(host, fd, IOVA, PAGE) == 0


@case("map-that-fails-half-way-leaves-nothing", error=errno.EFAULT)
def map_half(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    with host.refuses(errno.EFAULT):
        map_dma(host, fd, 1 << 32, memory.vaddr, 1 << 40)
    assert unmap_dma(host, fd, 0, 0, ALL) == 0
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)


@case("mapped-bar-can-be-mapped-for-dma", binds=("edu", "shm"))
def map_bar(host: Host) -> None:
    opened = open_role(host, "edu")
    group = open_group(host, "shm")
    set_container(host, group, opened.container)
    peer = device_fd(host, group, str(host.roles["shm"]))
    window = host.map(peer, PAGE, bar(2))
    map_dma(host, opened.container, IOVA, host.vaddr(window), PAGE)
    edu_master(host, opened.fd)
    window.write32(0, 0x12345678)
    window.write32(8, 0)
    edu_reads(host, opened.fd, IOVA, 4)
    edu_writes(host, opened.fd, IOVA + 8, 4)
    assert window.read32(8) == 0x12345678


# --- Updating vaddr ---


@case("vaddr-can-be-replaced")
def vaddr(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    assert unmap_dma(host, fd, IOVA, PAGE, VADDR) == PAGE
    map_dma(host, fd, IOVA, memory.vaddr, PAGE, MAP_VADDR)
    assert unmap_dma(host, fd, IOVA, PAGE) == PAGE


@case("vaddr-of-no-mapping-is-enoent", error=errno.ENOENT)
def vaddr_none(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.ENOENT):
        map_dma(host, fd, IOVA, host.memory().vaddr, PAGE, MAP_VADDR)


@case("vaddr-that-is-valid-cannot-be-replaced", error=errno.EINVAL)
def vaddr_valid(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE, MAP_VADDR)


@case("vaddr-with-permissions-is-einval", error=errno.EINVAL)
def vaddr_permissions(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, host.memory().vaddr, PAGE, MAP_VADDR | RW)


@case("vaddr-of-another-size-is-einval", error=errno.EINVAL)
def vaddr_size(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory(2 * PAGE)
    map_dma(host, fd, IOVA, memory.vaddr, 2 * PAGE)
    unmap_dma(host, fd, IOVA, 2 * PAGE, VADDR)
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE, MAP_VADDR)


@case("vaddr-taken-away-twice-is-einval", error=errno.EINVAL)
def vaddr_twice(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    unmap_dma(host, fd, IOVA, PAGE, VADDR)
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, IOVA, PAGE, VADDR)


@case("group-cannot-join-without-vaddr", binds=("edu", "below"), error=errno.EBUSY)
def vaddr_attach(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    unmap_dma(host, fd, IOVA, PAGE, VADDR)
    with host.refuses(errno.EBUSY):
        set_container(host, open_group(host, "below"), fd)


# --- UNMAP_DMA ---


@case("unmap-tells-the-bytes")
def unmap(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    assert unmap_dma(host, fd, IOVA, 4 * PAGE) == 4 * PAGE


@case("unmap-of-nothing-is-0-bytes")
def unmap_nothing(host: Host) -> None:
    fd, _group = join(host, "edu")
    assert unmap_dma(host, fd, IOVA, PAGE) == 0


@case("unmap-of-more-than-is-mapped")
def unmap_more(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, IOVA + PAGE, memory.vaddr, PAGE)
    map_dma(host, fd, IOVA + 3 * PAGE, memory.vaddr, PAGE)
    assert unmap_dma(host, fd, IOVA, 16 * PAGE) == 2 * PAGE


@case("unmap-of-the-first-half-is-einval", error=errno.EINVAL)
def unmap_first(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(2 * PAGE).vaddr, 2 * PAGE)
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, IOVA, PAGE)
    assert unmap_dma(host, fd, IOVA, 2 * PAGE) == 2 * PAGE


@case("unmap-of-the-second-half-is-einval", error=errno.EINVAL)
def unmap_second(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(2 * PAGE).vaddr, 2 * PAGE)
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, IOVA + PAGE, PAGE)
    assert unmap_dma(host, fd, IOVA, 2 * PAGE) == 2 * PAGE


@case("unmap-that-bisects-removes-nothing", error=errno.EINVAL)
def unmap_bisect(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory(2 * PAGE)
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    map_dma(host, fd, IOVA + PAGE, memory.vaddr, 2 * PAGE)
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, IOVA, 2 * PAGE)
    assert unmap_dma(host, fd, IOVA, 3 * PAGE) == 3 * PAGE


@case("unmap-of-0-bytes-is-einval", error=errno.EINVAL)
def unmap_empty(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, IOVA, 0)


@case("unmap-unaligned-is-einval", error=errno.EINVAL)
def unmap_unaligned(host: Host) -> None:
    fd, _group = join(host, "edu")
    for iova, size in ((IOVA + 1, PAGE), (IOVA, PAGE + 1), (IOVA + 0x800, 0x800)):
        with host.refuses(errno.EINVAL):
            unmap_dma(host, fd, iova, size)


@case("unmap-past-the-last-iova-is-eoverflow", error=errno.EOVERFLOW)
def unmap_wrap(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EOVERFLOW):
        unmap_dma(host, fd, (1 << 64) - PAGE, 2 * PAGE)


@case("unmap-with-short-argsz-is-einval", error=errno.EINVAL)
def unmap_argsz(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, IOVA, PAGE, argsz=23)


@case("unmap-with-unknown-flag-is-einval", error=errno.EINVAL)
def unmap_flag(host: Host) -> None:
    fd, _group = join(host, "edu")
    for flag in (8, 1 << 31):
        with host.refuses(errno.EINVAL):
            unmap_dma(host, fd, IOVA, PAGE, flag)


@case("refused-unmap-leaves-the-buffer-alone", error=errno.EINVAL)
def unmap_buffer(host: Host) -> None:
    fd, _group = join(host, "edu")
    buffer = abi.vfio_iommu_type1_dma_unmap(argsz=24, iova=IOVA + 1, size=PAGE).pack()
    before = bytes(buffer)
    with host.refuses(errno.EINVAL):
        host.ioctl(fd, abi.VFIO_IOMMU_UNMAP_DMA, buffer)
    assert bytes(buffer) == before


@case("unmap-all-tells-the-total")
def unmap_all(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    for iova in (0, IOVA, 1 << 40):
        map_dma(host, fd, iova, memory.vaddr, PAGE)
    assert unmap_dma(host, fd, 0, 0, ALL) == 3 * PAGE
    assert unmap_dma(host, fd, 0, 0, ALL) == 0


@case("unmap-all-with-a-range-is-einval", error=errno.EINVAL)
def unmap_all_range(host: Host) -> None:
    fd, _group = join(host, "edu")
    for iova, size in ((PAGE, 0), (0, PAGE), (PAGE, PAGE)):
        with host.refuses(errno.EINVAL):
            unmap_dma(host, fd, iova, size, ALL)


@case("unmap-all-with-bitmap-is-einval", error=errno.EINVAL)
def unmap_all_bitmap(host: Host) -> None:
    fd, _group = join(host, "edu")
    wish = abi.vfio_iommu_type1_dma_unmap(
        argsz=48, flags=ALL | abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
    )
    with host.refuses(errno.EINVAL):
        host.ioctl(fd, abi.VFIO_IOMMU_UNMAP_DMA, wish.pack() + bytearray(24))


@case("unmap-with-bitmap-without-tracking-is-einval", error=errno.EINVAL)
def unmap_bitmap(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    wish = abi.vfio_iommu_type1_dma_unmap(
        argsz=48, flags=abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, iova=IOVA, size=PAGE
    )
    bitmap = abi.vfio_bitmap(pgsize=PAGE, size=8, data=host.memory().vaddr)
    with host.refuses(errno.EINVAL):
        host.ioctl(fd, abi.VFIO_IOMMU_UNMAP_DMA, wish.pack() + bitmap.pack())
    assert unmap_dma(host, fd, IOVA, PAGE) == PAGE


# --- Version 1 ---


@case("v1-unmap-inside-a-mapping-is-0-bytes")
def v1_inside(host: Host) -> None:
    fd, _group = join(host, "edu", V1)
    map_dma(host, fd, IOVA, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    assert unmap_dma(host, fd, IOVA + PAGE, PAGE) == 0
    assert unmap_dma(host, fd, IOVA, 4 * PAGE) == 4 * PAGE


@case("v1-unmap-of-the-first-page-removes-the-whole-mapping")
def v1_first(host: Host) -> None:
    fd, _group = join(host, "edu", V1)
    map_dma(host, fd, IOVA, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    assert unmap_dma(host, fd, IOVA, PAGE) == 4 * PAGE
    assert unmap_dma(host, fd, IOVA, 4 * PAGE) == 0


@case("v1-unmap-from-before-removes-the-whole-mapping")
def v1_before(host: Host) -> None:
    fd, _group = join(host, "edu", V1)
    map_dma(host, fd, IOVA + PAGE, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    assert unmap_dma(host, fd, IOVA, 2 * PAGE) == 4 * PAGE


@case("v1-overlap-is-eexist-too", error=errno.EEXIST)
def v1_overlap(host: Host) -> None:
    fd, _group = join(host, "edu", V1)
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    with host.refuses(errno.EEXIST):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE)


# --- Information ---


def _info(host: Host, fd: int, argsz: int = 4096) -> tuple[abi.vfio_iommu_type1_info, bytearray]:
    buffer = iommu_info(host, fd, argsz)
    return abi.vfio_iommu_type1_info.unpack_from(buffer), buffer


@case("info-tells-page-sizes-and-capabilities")
def info(host: Host) -> None:
    fd, _group = join(host, "edu")
    told, buffer = _info(host, fd)
    assert told.flags == abi.VFIO_IOMMU_INFO_PGSIZES | abi.VFIO_IOMMU_INFO_CAPS
    assert told.iova_pgsizes & -told.iova_pgsizes == PAGE
    assert told.cap_offset >= abi.vfio_iommu_type1_info.SIZE
    ids = [cap_id for cap_id, _data in chain(buffer, told.cap_offset, len(buffer))]
    assert ids == [
        abi.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
        abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
        abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    ]


@case("info-leaves-a-sufficient-argsz-alone")
def info_argsz(host: Host) -> None:
    fd, _group = join(host, "edu")
    assert _info(host, fd)[0].argsz == 4096


@case("info-with-little-room-tells-the-size")
def info_short(host: Host) -> None:
    fd, _group = join(host, "edu")
    told, _buffer = _info(host, fd, 24)
    assert told.cap_offset == 0
    assert told.flags & abi.VFIO_IOMMU_INFO_CAPS
    full, buffer = _info(host, fd, told.argsz)
    assert full.cap_offset
    assert len(chain(buffer, full.cap_offset, told.argsz)) == 3
    assert _info(host, fd, told.argsz - 1)[0].cap_offset == 0


@case("info-of-the-first-version-of-the-struct")
def info_oldest(host: Host) -> None:
    fd, _group = join(host, "edu")
    buffer = bytearray(b"\xaa" * 32)
    struct.pack_into("<I", buffer, 0, 16)
    host.ioctl(fd, abi.VFIO_IOMMU_GET_INFO, buffer)
    assert struct.unpack_from("<Q", buffer, 8)[0] & PAGE
    assert buffer[16:] == b"\xaa" * 16, "it writes beyond argsz"


@case("info-with-short-argsz-is-einval", error=errno.EINVAL)
def info_einval(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        iommu_info(host, fd, 15)


@case("iova-ranges-leave-out-the-interrupts")
def ranges(host: Host) -> None:
    fd, _group = join(host, "edu")
    told = iova_ranges(host, fd)
    assert told == sorted(told)
    assert told[0] == (0, 0xFEDF_FFFF)
    assert told[1][0] == 0xFEF0_0000
    assert len(told) == 2
    assert all(first < last for first, last in told)


@case("iova-ranges-end-with-48-bits")
def ranges_end(host: Host) -> None:
    fd, _group = join(host, "edu")
    assert iova_ranges(host, fd)[-1][1] == (1 << 48) - 1


def _available(host: Host, fd: int) -> int:
    told, buffer = _info(host, fd)
    for cap_id, data in chain(buffer, told.cap_offset, len(buffer)):
        if cap_id == abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
            (count,) = struct.unpack_from("<I", data, 8)
            return count
    raise AssertionError("DMA_AVAIL is not there")


@case("available-mappings-are-counted")
def available(host: Host) -> None:
    fd, _group = join(host, "edu")
    assert _available(host, fd) == 65535
    memory = host.memory(2 * PAGE)
    map_dma(host, fd, IOVA, memory.vaddr, 2 * PAGE)
    assert _available(host, fd) == 65534
    unmap_dma(host, fd, IOVA, 2 * PAGE)
    assert _available(host, fd) == 65535


@case("mappings-beyond-the-limit-are-enospc", error=errno.ENOSPC)
def limit(host: Host) -> None:
    host.change("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "3")
    fd, _group = join(host, "edu")
    memory = host.memory()
    for page in range(3):
        map_dma(host, fd, IOVA + page * PAGE, memory.vaddr, PAGE)
    with host.refuses(errno.ENOSPC):
        map_dma(host, fd, IOVA + 3 * PAGE, memory.vaddr, PAGE)
    unmap_dma(host, fd, IOVA, PAGE)
    map_dma(host, fd, IOVA + 3 * PAGE, memory.vaddr, PAGE)


@case("migration-capability-tells-page-size-and-largest-bitmap")
def migration(host: Host) -> None:
    fd, _group = join(host, "edu")
    told, buffer = _info(host, fd)
    for cap_id, data in chain(buffer, told.cap_offset, len(buffer)):
        if cap_id == abi.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION:
            cap = abi.vfio_iommu_type1_info_cap_migration.unpack_from(data)
            assert cap.pgsize_bitmap == PAGE
            assert cap.max_dirty_bitmap_size == 1 << 28


# --- Locked memory ---


@case("mapping-within-the-limit-of-locked-memory")
def locked(host: Host) -> None:
    host.limit_locked_memory(8 * PAGE)
    fd, _group = join(host, "edu")
    memory = host.memory(8 * PAGE)
    for _ in range(2):  # unmapping gives it back
        map_dma(host, fd, IOVA, memory.vaddr, 8 * PAGE)
        unmap_dma(host, fd, IOVA, 8 * PAGE)


@case("mapping-beyond-the-limit-of-locked-memory-is-enomem", error=errno.ENOMEM)
def locked_too_much(host: Host) -> None:
    host.limit_locked_memory(8 * PAGE)
    fd, _group = join(host, "edu")
    memory = host.memory(16 * PAGE)
    with host.refuses(errno.ENOMEM):
        map_dma(host, fd, IOVA, memory.vaddr, 9 * PAGE)
    map_dma(host, fd, IOVA, memory.vaddr, 8 * PAGE)
    with host.refuses(errno.ENOMEM):
        map_dma(host, fd, IOVA + (1 << 20), memory.vaddr + 8 * PAGE, PAGE)


@case("same-memory-mapped-twice-is-locked-twice", error=errno.ENOMEM)
def locked_twice(host: Host) -> None:
    host.limit_locked_memory(8 * PAGE)
    fd, _group = join(host, "edu")
    memory = host.memory(8 * PAGE)
    map_dma(host, fd, IOVA, memory.vaddr, 5 * PAGE)
    with host.refuses(errno.ENOMEM):
        map_dma(host, fd, IOVA + (1 << 20), memory.vaddr, 5 * PAGE)


@case("mapped-bar-is-not-locked-memory", binds=("edu", "shm"))
def locked_bar(host: Host) -> None:
    host.limit_locked_memory(PAGE)
    opened = open_role(host, "shm")
    window = host.map(opened.fd, 16 * PAGE, bar(2))
    map_dma(host, opened.container, IOVA, host.vaddr(window), 16 * PAGE)


# --- Dirty pages ---

START, STOP, GET = (
    abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
    abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
)


def _dirty(host: Host, fd: int, flags: int, argsz: int = 8) -> int:
    wish = abi.vfio_iommu_type1_dirty_bitmap(argsz=argsz, flags=flags)
    return host.ioctl(fd, abi.VFIO_IOMMU_DIRTY_PAGES, wish.pack() + bytearray(40))


def _bitmap(
    host: Host,
    fd: int,
    iova: int,
    size: int,
    *,
    page_size: int = PAGE,
    bitmap_size: int = 8,
    argsz: int = 48,
) -> bytes:
    memory = host.memory()
    head = abi.vfio_iommu_type1_dirty_bitmap(argsz=argsz, flags=GET)
    body = abi.vfio_iommu_type1_dirty_bitmap_get(
        iova=iova, size=size, pgsize=page_size, bitmap_size=bitmap_size, data=memory.vaddr
    )
    host.ioctl(fd, abi.VFIO_IOMMU_DIRTY_PAGES, head.pack() + body.pack())
    return bytes(memory.view[:bitmap_size])


@case("dirty-tracking-starts-and-stops")
def dirty(host: Host) -> None:
    fd, _group = join(host, "edu")
    for flags in (START, START, STOP, STOP):
        _dirty(host, fd, flags)


@case("dirty-tracking-of-v1-is-eacces", error=errno.EACCES)
def dirty_v1(host: Host) -> None:
    fd, _group = join(host, "edu", V1)
    with host.refuses(errno.EACCES):
        _dirty(host, fd, START)


@case("dirty-pages-want-exactly-one-flag", error=errno.EINVAL)
def dirty_flags(host: Host) -> None:
    fd, _group = join(host, "edu")
    for flags in (0, START | STOP, 8):
        with host.refuses(errno.EINVAL):
            _dirty(host, fd, flags)


@case("dirty-pages-with-short-argsz-is-einval", error=errno.EINVAL)
def dirty_argsz(host: Host) -> None:
    fd, _group = join(host, "edu")
    with host.refuses(errno.EINVAL):
        _dirty(host, fd, START, argsz=7)


@case("every-mapped-page-is-dirty")
def dirty_all(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(3 * PAGE).vaddr, 3 * PAGE)
    _dirty(host, fd, START)
    assert _bitmap(host, fd, IOVA, 3 * PAGE)[0] == 0b111
    assert _bitmap(host, fd, IOVA, 3 * PAGE)[0] == 0b111


@case("dirty-bitmap-without-tracking-is-einval", error=errno.EINVAL)
def dirty_off(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    with host.refuses(errno.EINVAL):
        _bitmap(host, fd, IOVA, PAGE)


@case("dirty-bitmap-of-nothing-is-einval", error=errno.EINVAL)
def dirty_nothing(host: Host) -> None:
    fd, _group = join(host, "edu")
    _dirty(host, fd, START)
    with host.refuses(errno.EINVAL):
        _bitmap(host, fd, IOVA, 0)


@case("dirty-bitmap-past-the-last-iova-is-eoverflow", error=errno.EOVERFLOW)
def dirty_wrap(host: Host) -> None:
    fd, _group = join(host, "edu")
    _dirty(host, fd, START)
    with host.refuses(errno.EOVERFLOW):
        _bitmap(host, fd, (1 << 64) - PAGE, 2 * PAGE)


@case("dirty-bitmap-with-another-page-size-is-einval", error=errno.EINVAL)
def dirty_page_size(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    _dirty(host, fd, START)
    for page_size in (0, 2 * PAGE, 1 << 21):
        with host.refuses(errno.EINVAL):
            _bitmap(host, fd, IOVA, PAGE, page_size=page_size)


@case("dirty-bitmap-that-is-too-small-is-einval", error=errno.EINVAL)
def dirty_small(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(128 * PAGE).vaddr, 128 * PAGE)
    _dirty(host, fd, START)
    for size in (0, 8):
        with host.refuses(errno.EINVAL):
            _bitmap(host, fd, IOVA, 128 * PAGE, bitmap_size=size)
    assert _bitmap(host, fd, IOVA, 128 * PAGE, bitmap_size=16) == b"\xff" * 16


@case("dirty-bitmap-unaligned-is-einval", error=errno.EINVAL)
def dirty_unaligned(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    _dirty(host, fd, START)
    for iova, size in ((IOVA + 8, PAGE), (IOVA, 0x800)):
        with host.refuses(errno.EINVAL):
            _bitmap(host, fd, iova, size)


@case("dirty-bitmap-of-half-a-mapping-is-einval", error=errno.EINVAL)
def dirty_half(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    _dirty(host, fd, START)
    for page in (0, 2):
        with host.refuses(errno.EINVAL):
            _bitmap(host, fd, IOVA + page * PAGE, 2 * PAGE)


@case("unmap-returns-the-dirty-pages")
def dirty_unmap(host: Host) -> None:
    fd, _group = join(host, "edu")
    map_dma(host, fd, IOVA, host.memory(3 * PAGE).vaddr, 3 * PAGE)
    _dirty(host, fd, START)
    memory = host.memory()
    wish = abi.vfio_iommu_type1_dma_unmap(
        argsz=48, flags=abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, iova=IOVA, size=3 * PAGE
    )
    bitmap = abi.vfio_bitmap(pgsize=PAGE, size=8, data=memory.vaddr)
    host.ioctl(fd, abi.VFIO_IOMMU_UNMAP_DMA, wish.pack() + bitmap.pack())
    assert memory.view[0] == 0b111
