"""The type1 IOMMU driver: map, unmap, dirty pages, information, and what devices then reach."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_host import EDU, NIC, PAGE, KernelHost, refuses

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.iommu_driver import PAGE_SIZES
from vfiokit.machine.kernel.vfs import File
from vfiokit.pci.address import Bdf

READ, WRITE = abi.VFIO_DMA_MAP_FLAG_READ, abi.VFIO_DMA_MAP_FLAG_WRITE
VADDR = abi.VFIO_DMA_MAP_FLAG_VADDR
ALL, GET_DIRTY = abi.VFIO_DMA_UNMAP_FLAG_ALL, abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
U64 = (1 << 64) - 1


class Space:
    """A container with one group, and memory to map."""

    def __init__(self, kind: int = abi.VFIO_TYPE1v2_IOMMU, **wishes: object) -> None:
        self.host = KernelHost(**wishes)
        self.fd, self.group = self.host.ready(NIC, kind)
        self.memory = self.host.kernel.allocate(64 * PAGE)

    def map(
        self,
        iova: int,
        size: int = PAGE,
        flags: int = READ | WRITE,
        vaddr: int | None = None,
        argsz: int = 32,
    ) -> int:
        where = self.memory.vaddr if vaddr is None else vaddr
        request = abi.vfio_iommu_type1_dma_map(
            argsz=argsz, flags=flags, vaddr=where, iova=iova, size=size
        )
        return self.host.kernel.ioctl(self.fd, abi.VFIO_IOMMU_MAP_DMA, request.pack())

    def unmap(
        self,
        iova: int,
        size: int = PAGE,
        flags: int = 0,
        argsz: int | None = None,
        tail: bytes = b"",
    ) -> int:
        request = abi.vfio_iommu_type1_dma_unmap(
            argsz=24 + len(tail) if argsz is None else argsz, flags=flags, iova=iova, size=size
        )
        buffer = request.pack() + tail
        self.host.kernel.ioctl(self.fd, abi.VFIO_IOMMU_UNMAP_DMA, buffer)
        return abi.vfio_iommu_type1_dma_unmap.unpack_from(buffer).size

    def dirty(self, flags: int, iova: int = 0, size: int = PAGE, **fields: int) -> memoryview:
        memory = self.host.kernel.allocate(PAGE)
        get = abi.vfio_iommu_type1_dirty_bitmap_get(
            iova=iova,
            size=size,
            pgsize=fields.get("pgsize", PAGE),
            bitmap_size=fields.get("bitmap_size", 8),
            data=fields.get("data", memory.vaddr),
        )
        head = abi.vfio_iommu_type1_dirty_bitmap(argsz=fields.get("argsz", 48), flags=flags)
        self.host.kernel.ioctl(self.fd, abi.VFIO_IOMMU_DIRTY_PAGES, head.pack() + get.pack())
        return memory.view

    def info(self, argsz: int) -> bytearray:
        buffer = bytearray(max(argsz, 24))
        abi.vfio_iommu_type1_info(argsz=argsz).pack_into(buffer)
        self.host.kernel.ioctl(self.fd, abi.VFIO_IOMMU_GET_INFO, buffer)
        return buffer


@pytest.fixture
def space() -> Space:
    return Space()


# --- map ---


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"iova": 0, "argsz": 31}, errno.EINVAL),
        ({"iova": 0, "flags": 0x8 | READ}, errno.EINVAL),
        ({"iova": 0, "size": 0}, errno.EINVAL),
        ({"iova": U64 - PAGE + 1, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"iova": 0, "size": 2 * PAGE, "vaddr": U64 - PAGE + 1}, errno.EOVERFLOW),
        ({"iova": 0, "flags": 0}, errno.EINVAL),
        ({"iova": 0, "flags": READ | VADDR}, errno.EINVAL),
        ({"iova": 0x800}, errno.EINVAL),
        ({"iova": 0, "size": 0x800}, errno.EINVAL),
        ({"iova": 0xFEE0_0000}, errno.EINVAL),
        ({"iova": 0xFEDF_F000, "size": 2 * PAGE}, errno.EINVAL),
        ({"iova": 0xFEEF_F000, "size": 2 * PAGE}, errno.EINVAL),
        ({"iova": 1 << 48}, errno.EINVAL),
        ({"iova": 0, "vaddr": 0x1000}, errno.EFAULT),
        ({"iova": 0, "size": 65 * PAGE}, errno.EFAULT),
        ({"iova": 0, "flags": VADDR}, errno.ENOENT),
    ],
)
def test_map_is_refused(space: Space, wishes: dict[str, int], code: int) -> None:
    with refuses(code):
        space.map(**wishes)


@pytest.mark.parametrize(("iova", "size"), [(0x5000, 1), (0x4000, 2), (0x6000, 1), (0x3000, 9)])
def test_map_over_existing_iova_is_eexist(space: Space, iova: int, size: int) -> None:
    space.map(0x4000, 3 * PAGE)
    with refuses(errno.EEXIST):
        space.map(iova, size * PAGE)


def test_misaligned_vaddr_is_einval_and_comes_before_efault(space: Space) -> None:
    with refuses(errno.EINVAL):
        space.map(0, PAGE, vaddr=0x10)


def test_eexist_comes_before_enospc_and_enospc_before_a_bad_iova() -> None:
    space = Space(dma_entry_limit=1)
    space.map(0)
    with refuses(errno.EEXIST):
        space.map(0)
    with refuses(errno.ENOSPC):
        space.map(0xFEE0_0000)
    space.unmap(0)
    space.map(PAGE)


def test_memlock_is_counted_in_bytes_and_given_back() -> None:
    space = Space(locked_limit=4 * PAGE)
    space.map(0, 3 * PAGE)
    with refuses(errno.ENOMEM):
        space.map(0x10_0000, 2 * PAGE)
    space.map(0x10_0000, PAGE)
    space.unmap(0, 3 * PAGE)
    space.map(0, 3 * PAGE)


def test_last_page_of_the_aperture_can_be_mapped(space: Space) -> None:
    last = (1 << 48) - PAGE
    space.map(last)
    assert space.unmap(last) == PAGE


def test_part_of_an_allocation_can_be_mapped(space: Space) -> None:
    space.map(0, PAGE, vaddr=space.memory.vaddr + 5 * PAGE)
    space.memory.view[5 * PAGE : 5 * PAGE + 4] = b"five"
    dev = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(dev, 4, 2, 0x0006)
    assert space.host.nic.dma.read(0, 4) == b"five"


def test_two_containers_cannot_share_a_group(space: Space) -> None:
    with refuses(errno.EBUSY):
        space.host.open_group(NIC)


# --- what the device reaches ---


def test_device_reads_and_writes_what_is_mapped_with_that_permission(space: Space) -> None:
    fd = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(fd, 4, 2, 0x0006)
    space.map(0x10000, PAGE, READ)
    space.map(0x20000, PAGE, WRITE, space.memory.vaddr + PAGE)
    space.memory.view[:4] = b"seed"
    dma = space.host.nic.dma
    assert dma.read(0x10000, 4) == b"seed"
    dma.write(0x10000, b"no!!")
    assert bytes(space.memory.view[:4]) == b"seed"
    dma.write(0x20000, b"yes!")
    assert bytes(space.memory.view[PAGE : PAGE + 4]) == b"yes!"
    faults = space.host.machine.iommus[0].faults.total
    assert faults == 1


def test_unmapping_takes_effect_at_once(space: Space) -> None:
    fd = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(fd, 4, 2, 0x0006)
    space.map(0)
    space.host.nic.dma.write(0, b"1")
    space.unmap(0)
    space.host.nic.dma.write(0, b"2")
    assert space.memory.view[0] == ord("1")


def test_large_memory_uses_superpages() -> None:
    space = Space()
    memory = space.host.kernel.allocate(4 << 20)
    assert memory.vaddr % (2 << 20) == 0
    fd = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(fd, 4, 2, 0x0006)
    space.map(0x4000_0000, 4 << 20, vaddr=memory.vaddr)
    space.host.nic.dma.write(0x4000_0000 + (3 << 20), b"far")
    assert bytes(memory.view[3 << 20 : (3 << 20) + 3]) == b"far"
    assert space.host.machine.iommus[0].walks <= 1


def test_memory_stays_while_it_is_mapped_and_is_freed_afterwards(space: Space) -> None:
    fd = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(fd, 4, 2, 0x0006)
    free = space.host.machine.memory.allocated
    memory = space.host.kernel.allocate(PAGE)
    space.map(0, vaddr=memory.vaddr)
    tables = space.host.machine.memory.allocated - free - PAGE
    memory.close()
    space.host.nic.dma.write(0, b"late")  # no fault: the page is still pinned
    assert space.host.machine.iommus[0].faults.total == 0
    assert space.host.machine.memory.allocated == free + PAGE + tables
    space.unmap(0)
    assert space.host.machine.memory.allocated == free
    with refuses(errno.EFAULT):
        space.map(0, vaddr=memory.vaddr)


def test_closing_everything_frees_mappings_and_tables() -> None:
    host = KernelHost()
    before = host.machine.memory.allocated
    container, group = host.ready(NIC)
    memory = host.kernel.allocate(PAGE)
    request = abi.vfio_iommu_type1_dma_map(
        argsz=32, flags=READ, vaddr=memory.vaddr, iova=0, size=PAGE
    )
    host.kernel.ioctl(container, abi.VFIO_IOMMU_MAP_DMA, request.pack())
    host.kernel.close(container)
    host.kernel.close(group)
    memory.close()
    assert host.machine.memory.allocated == before


def test_a_mapped_bar_can_be_mapped_for_a_peer() -> None:
    space = Space()
    fd = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(fd, 4, 2, 0x0006)
    bar = space.host.kernel.mmap(fd, 0x2000, 0)
    space.map(0x9000_0000, PAGE, vaddr=bar.vaddr + PAGE)
    host = space.host
    host.bind(EDU)
    other = host.open_group(EDU)
    host.set_container(other, space.fd)
    edu = host.device_fd(other, str(EDU))
    host.set_config(edu, 4, 2, 0x0006)
    host.edu.dma.write(0x9000_0010, (0xC0FFEE).to_bytes(4, "little"))
    assert host.nic.stored[0, PAGE + 0x10] == (0xC0FFEE, 4)


# --- unmap ---


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"iova": 0, "argsz": 23}, errno.EINVAL),
        ({"iova": 0, "flags": 0x10}, errno.EINVAL),
        ({"iova": 0, "flags": ALL | GET_DIRTY}, errno.EINVAL),
        ({"iova": 0, "flags": ALL}, errno.EINVAL),
        ({"iova": PAGE, "size": 0, "flags": ALL}, errno.EINVAL),
        ({"iova": 0, "size": 0}, errno.EINVAL),
        ({"iova": 0x10}, errno.EINVAL),
        ({"iova": 0, "size": 0x10}, errno.EINVAL),
        ({"iova": U64 - PAGE + 1, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"iova": 0, "flags": GET_DIRTY}, errno.EINVAL),  # no room for the bitmap
    ],
)
def test_unmap_is_refused(space: Space, wishes: dict[str, int], code: int) -> None:
    with refuses(code):
        space.unmap(**wishes)


def test_unmapping_nothing_succeeds_with_size_zero(space: Space) -> None:
    assert space.unmap(0x10000, 16 * PAGE) == 0


@pytest.mark.parametrize(("iova", "size"), [(0x5000, 1), (0x4000, 1), (0x5000, 9), (0x3000, 2)])
def test_v2_refuses_to_cut_a_mapping(space: Space, iova: int, size: int) -> None:
    space.map(0x4000, 3 * PAGE)
    with refuses(errno.EINVAL):
        space.unmap(iova, size * PAGE)


def test_v2_unmaps_every_mapping_inside_the_range(space: Space) -> None:
    for iova in (0x1000, 0x3000, 0x8000):
        space.map(iova)
    assert space.unmap(0, 0x7000) == 2 * PAGE
    assert space.unmap(0, 0x10000) == PAGE


def test_unmap_all_takes_no_range(space: Space) -> None:
    space.map(0)
    space.map(1 << 40, 4 * PAGE)
    assert space.unmap(0, 0, ALL) == 5 * PAGE


def test_failed_unmap_leaves_the_request_untouched(space: Space) -> None:
    space.map(0, 2 * PAGE)
    buffer = abi.vfio_iommu_type1_dma_unmap(argsz=24, iova=0, size=PAGE).pack()
    before = bytes(buffer)
    with refuses(errno.EINVAL):
        space.host.kernel.ioctl(space.fd, abi.VFIO_IOMMU_UNMAP_DMA, buffer)
    assert bytes(buffer) == before


def test_v1_starting_inside_a_mapping_unmaps_nothing() -> None:
    space = Space(abi.VFIO_TYPE1_IOMMU)
    space.map(0x4000, 4 * PAGE)
    assert space.unmap(0x5000, PAGE) == 0
    assert space.unmap(0x5000, 16 * PAGE) == 0


def test_v1_covering_the_first_page_unmaps_the_whole_mapping() -> None:
    space = Space(abi.VFIO_TYPE1_IOMMU)
    space.map(0x4000, 4 * PAGE)
    assert space.unmap(0x4000, PAGE) == 4 * PAGE


def test_vaddr_is_taken_away_once_and_given_back(space: Space) -> None:
    space.map(0, 2 * PAGE)
    flag = abi.VFIO_DMA_UNMAP_FLAG_VADDR
    assert space.unmap(0, 2 * PAGE, flag) == 2 * PAGE
    with refuses(errno.EINVAL):
        space.unmap(0, 2 * PAGE, flag)
    with refuses(errno.EINVAL):
        space.map(0, PAGE, VADDR)
    space.map(0, 2 * PAGE, VADDR)
    with refuses(errno.EINVAL):
        space.map(0, 2 * PAGE, VADDR)


def test_no_group_can_be_attached_while_a_vaddr_is_gone(space: Space) -> None:
    space.map(0)
    space.unmap(0, PAGE, abi.VFIO_DMA_UNMAP_FLAG_VADDR)
    space.host.bind(EDU)
    other = space.host.open_group(EDU)
    with refuses(errno.EBUSY):
        space.host.set_container(other, space.fd)


# --- dirty pages ---


START, STOP, GET = 1, 2, 4


def test_dirty_tracking_needs_v2() -> None:
    with refuses(errno.EACCES):
        Space(abi.VFIO_TYPE1_IOMMU).dirty(START)


@pytest.mark.parametrize(
    ("flags", "fields", "code"),
    [
        (0, {}, errno.EINVAL),
        (START | STOP, {}, errno.EINVAL),
        (8, {}, errno.EINVAL),
        (GET, {"argsz": 47}, errno.EINVAL),
        (GET, {"size": 0}, errno.EINVAL),
        (GET, {"iova": U64 - PAGE + 1, "size": 2 * PAGE}, errno.EOVERFLOW),
        (GET, {"bitmap_size": 0}, errno.EINVAL),
        (GET, {"bitmap_size": 4}, errno.EINVAL),
        (GET, {"size": 65 * PAGE, "bitmap_size": 8}, errno.EINVAL),
        (GET, {"bitmap_size": 1 << 30}, errno.EINVAL),
        (GET, {"pgsize": 2 << 20}, errno.EINVAL),
        (GET, {"iova": 0x10}, errno.EINVAL),
        (GET, {"iova": 0x4000}, errno.EINVAL),  # cuts the mapping
        (GET, {"data": 0x10, "iova": 0, "size": 0x10000}, errno.EFAULT),
    ],
)
def test_dirty_request_is_refused(
    space: Space, flags: int, fields: dict[str, int], code: int
) -> None:
    space.map(0x3000, 4 * PAGE)
    space.dirty(START)
    with refuses(code):
        space.dirty(flags, **fields)


def test_bitmap_without_tracking_is_einval(space: Space) -> None:
    space.map(0)
    with refuses(errno.EINVAL):
        space.dirty(GET)
    space.dirty(START)
    space.dirty(START)
    space.dirty(GET)
    space.dirty(STOP)
    with refuses(errno.EINVAL):
        space.dirty(GET)


def test_every_mapped_page_is_dirty_and_no_other(space: Space) -> None:
    space.map(2 * PAGE, 3 * PAGE)
    space.map(9 * PAGE, 12 * PAGE)
    space.dirty(START)
    view = space.dirty(GET, 0, 64 * PAGE)
    wanted = sum(1 << page for page in (*range(2, 5), *range(9, 21)))
    assert int.from_bytes(view[:8], "little") == wanted


def test_unmap_with_a_bitmap_reports_what_it_removes(space: Space) -> None:
    space.map(PAGE, 2 * PAGE)
    bits = space.host.kernel.allocate(PAGE)
    tail = bytes(abi.vfio_bitmap(pgsize=PAGE, size=8, data=bits.vaddr).pack())
    with refuses(errno.EINVAL):
        space.unmap(0, 4 * PAGE, GET_DIRTY, tail=tail)
    space.dirty(START)
    assert space.unmap(0, 4 * PAGE, GET_DIRTY, tail=tail) == 2 * PAGE
    assert bits.view[0] == 0b110


# --- information ---


def test_info_lists_migration_then_avail_then_ranges(space: Space) -> None:
    space.map(0)
    buffer = space.info(4096)
    info = abi.vfio_iommu_type1_info.unpack_from(buffer)
    assert (info.argsz, info.flags, info.iova_pgsizes) == (4096, 3, PAGE_SIZES)
    at, ids = info.cap_offset, []
    assert at == 24
    while at:
        assert at % 8 == 0
        header = abi.vfio_info_cap_header.unpack_from(buffer, at)
        ids.append(header.id)
        if header.id == abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
            found = abi.vfio_iommu_type1_info_dma_avail.unpack_from(buffer, at)
            assert found.avail == 65534
        if header.id == abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            ranges = [abi.vfio_iova_range.unpack_from(buffer, at + 16 + 16 * i) for i in (0, 1)]
            assert [(each.start, each.end) for each in ranges] == [
                (0, 0xFEDF_FFFF),
                (0xFEF0_0000, (1 << 48) - 1),
            ]
        at = header.next
    assert ids == [2, 3, 1]


@pytest.mark.parametrize("argsz", [16, 24, 25, 64, 119])
def test_info_that_is_too_short_tells_how_much_it_needs(space: Space, argsz: int) -> None:
    buffer = space.info(argsz)
    info = abi.vfio_iommu_type1_info.unpack_from(buffer)
    assert info.argsz == 24 + 32 + 16 + 48
    assert info.cap_offset == 0
    assert info.flags == 3
    assert bytes(buffer[24:]) == bytes(len(buffer) - 24)
    exact = abi.vfio_iommu_type1_info.unpack_from(space.info(info.argsz))
    assert exact.cap_offset == 24


def test_info_below_sixteen_bytes_is_einval(space: Space) -> None:
    with refuses(errno.EINVAL):
        space.info(15)


# --- reserved regions ---

RESERVED = b"""0x0000000010000000 0x0000000010ffffff direct
0x0000000020000000 0x0000000020ffffff direct-relaxable
0x0000000030000000 0x0000000030ffffff reserved
0x00000000fee00000 0x00000000feefffff msi
"""


def reserve(host: KernelHost, bdf: Bdf) -> None:
    path = f"/sys/kernel/iommu_groups/{host.group_number(bdf)}/reserved_regions"
    host.kernel.files.add(path, File(RESERVED))


def test_reserved_regions_cannot_be_mapped_unless_they_may_be_relaxed(space: Space) -> None:
    reserve(space.host, NIC)
    for iova in (0x1000_0000, 0x10FF_F000, 0x3000_0000):
        with refuses(errno.EINVAL):
            space.map(iova)
    space.map(0x2000_0000)
    space.map(0x1100_0000)


def test_a_group_whose_reserved_region_is_mapped_cannot_join(space: Space) -> None:
    space.map(0x1000_0000)
    reserve(space.host, EDU)
    space.host.bind(EDU)
    other = space.host.open_group(EDU)
    with refuses(errno.EINVAL):
        space.host.set_container(other, space.fd)
    space.unmap(0x1000_0000)
    space.host.set_container(other, space.fd)


# --- against a model ---


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["map", "unmap"]), st.integers(0, 15), st.integers(1, 6)),
        max_size=25,
    )
)
def test_random_maps_and_unmaps_agree_with_a_set_of_pages(
    steps: list[tuple[str, int, int]],
) -> None:
    space = Space()
    fd = space.host.device_fd(space.group, str(NIC))
    space.host.set_config(fd, 4, 2, 0x0006)
    owner: dict[int, int] = {}
    for number, (what, first, count) in enumerate(steps):
        pages = range(first, first + count)
        hit = {owner[page] for page in pages if page in owner}
        if what == "map":
            if hit:
                with refuses(errno.EEXIST):
                    space.map(first * PAGE, count * PAGE)
            else:
                space.map(first * PAGE, count * PAGE)
                owner |= dict.fromkeys(pages, number)
        else:
            whole = [page for page, name in owner.items() if name in hit]
            if any(page not in pages for page in whole):
                with refuses(errno.EINVAL):
                    space.unmap(first * PAGE, count * PAGE)
            else:
                assert space.unmap(first * PAGE, count * PAGE) == len(whole) * PAGE
                for page in whole:
                    del owner[page]
    unit = space.host.machine.iommus[0]
    for page in range(24):
        before = unit.faults.total
        space.host.nic.dma.write(page * PAGE, b"x")
        assert (unit.faults.total == before) is (page in owner)
