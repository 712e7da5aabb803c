"""I/O address spaces: mapping, unmapping, copying, ranges, and where the kernel maps by itself."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iommufd_host import APERTURE, EVERYTHING, FIXED, MSI, READ, RW, TOP, WRITE, IommufdHost
from kernel_host import EDU, NIC, PAGE, refuses

from vfiokit.abi import iommufd as abi
from vfiokit.machine.iommu.tables import SecondStage
from vfiokit.machine.kernel.iommu_driver import Domain


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


# -- ranges -----------------------------------------------------------------------------------


def test_ranges_follow_the_attached_devices(host: IommufdHost) -> None:
    device, _number = host.bound()
    ioas = host.ioas()
    assert host.ranges(ioas) == ([(0, EVERYTHING)], 1)
    host.attach(device, ioas)
    assert host.ranges(ioas) == (APERTURE, PAGE)
    host.detach(device)
    assert host.ranges(ioas) == ([(0, EVERYTHING)], 1)


def test_a_page_table_without_device_reserves_what_it_cannot_reach(host: IommufdHost) -> None:
    _device, number = host.bound()
    ioas = host.ioas()
    host.hwpt(number, ioas)
    assert host.ranges(ioas) == ([(0, (1 << 48) - 1)], PAGE)


def test_too_little_room_is_emsgsize_and_says_how_much(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    host.page.view[:32] = b"\xaa" * 32
    with refuses(errno.EMSGSIZE):
        host.ranges(ioas, room=1)
    answer = host.last
    assert isinstance(answer, abi.iommu_ioas_iova_ranges)
    assert (answer.num_iovas, answer.out_iova_alignment) == (2, PAGE)
    assert host.page.view[:16] != b"\xaa" * 16
    assert host.page.view[16:32] == b"\xaa" * 16


def test_ranges_checks(host: IommufdHost) -> None:
    ioas = host.ioas()
    kind, request = abi.iommu_ioas_iova_ranges, abi.IOMMU_IOAS_IOVA_RANGES
    with refuses(errno.EOPNOTSUPP):
        host.ask(request, kind(ioas_id=99, num_iovas=1, reserved=1))
    with refuses(errno.ENOENT):
        host.ask(request, kind(ioas_id=99))
    with refuses(errno.EFAULT):
        host.ask(request, kind(ioas_id=ioas, num_iovas=1, allowed_iovas=0x1000))


@pytest.mark.parametrize(
    ("ranges", "code"),
    [
        ([(0x1000, 0x1000)], errno.EINVAL),  # one byte
        ([(0x2000, 0x1000)], errno.EINVAL),
        ([(0x1000, 0x1FFF), (0x1800, 0x3FFF)], errno.EINVAL),
        ([(0x3000, 0x4FFF), (0x1000, 0x1FFF)], 0),
        ([(0x1000, 0x1FFF), (0x2000, 0x2FFF)], 0),
        ([(0, EVERYTHING)], 0),
        ([], 0),
    ],
)
def test_allowed_ranges(host: IommufdHost, ranges: list[tuple[int, int]], code: int) -> None:
    ioas = host.ioas()
    if code:
        with refuses(code):
            host.allow(ioas, *ranges)
    else:
        host.allow(ioas, *ranges)
    assert host.ranges(ioas) == ([(0, EVERYTHING)], 1)


def test_allowing_what_is_reserved_is_eaddrinuse(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    host.allow(ioas, (0, 0xFF_FFFF))
    for reserved in ((MSI, MSI + 0xFFFFF), (0, EVERYTHING), (1 << 48, 1 << 49)):
        with refuses(errno.EADDRINUSE):
            host.allow(ioas, reserved)


def test_allowed_ranges_keep_a_device_out_that_reserves_them(host: IommufdHost) -> None:
    device, _number = host.bound()
    ioas = host.ioas()
    host.allow(ioas, (MSI, MSI + PAGE))
    with refuses(errno.EADDRINUSE):
        host.attach(device, ioas)
    host.allow(ioas)
    host.attach(device, ioas)


# -- map --------------------------------------------------------------------------------------

MAP_ERRORS: list[tuple[str, dict[str, int], int]] = [
    ("unknown flag beats everything", {"flags": 8, "ioas_id": 99}, errno.EOPNOTSUPP),
    ("reserved beats permissions", {"flags": FIXED, "reserved": 1}, errno.EOPNOTSUPP),
    ("last iova beats permissions", {"flags": FIXED, "iova": EVERYTHING}, errno.EOVERFLOW),
    ("longest length", {"length": EVERYTHING}, errno.EOVERFLOW),
    ("permissions beat the IOAS", {"flags": FIXED, "ioas_id": 99}, errno.EINVAL),
    ("the IOAS beats the length", {"ioas_id": 99, "length": 0}, errno.ENOENT),
    ("no length", {"length": 0}, errno.EINVAL),
    ("memory wraps", {"user_va": TOP, "length": 2 * PAGE}, errno.EOVERFLOW),
    ("memory ends at the last address", {"user_va": TOP}, errno.EOVERFLOW),
    ("iova wraps", {"iova": TOP, "length": 2 * PAGE}, errno.EOVERFLOW),
]


@pytest.mark.parametrize(
    ("fields", "code"), [case[1:] for case in MAP_ERRORS], ids=[case[0] for case in MAP_ERRORS]
)
def test_map_is_refused(host: IommufdHost, fields: dict[str, int], code: int) -> None:
    ioas, memory = host.ioas(), host.memory(2)
    wish = {"flags": FIXED | RW, "ioas_id": ioas, "user_va": memory.vaddr, "length": PAGE}
    wish["iova"] = 0x10000
    with refuses(code):
        host.ask(abi.IOMMU_IOAS_MAP, abi.iommu_ioas_map(**(wish | fields)))


def test_without_device_single_bytes_and_any_address_are_mapped(host: IommufdHost) -> None:
    ioas, memory = host.ioas(), host.memory()
    for iova in (0, 0x1001, EVERYTHING - 1, MSI, 1 << 60):
        assert host.map(ioas, memory.vaddr + 3, 1, iova) == iova
    assert host.map(ioas, 0x1234, 7, 0x9000) == 0x9000  # what is not memory, too
    assert host.unmap(ioas) == 5 + 7


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"length": 1}, errno.EINVAL),
        ({"length": PAGE + 1}, errno.EINVAL),
        ({"iova": 0x1001}, errno.EINVAL),
        ({"offset": 1}, errno.EINVAL),
        ({"iova": MSI}, errno.EINVAL),
        ({"iova": MSI - PAGE, "length": 2 * PAGE}, errno.EINVAL),
        ({"iova": 1 << 48}, errno.EINVAL),
        ({"iova": (1 << 48) - PAGE, "length": 2 * PAGE}, errno.EINVAL),
        ({"iova": TOP, "length": 2 * PAGE}, errno.EOVERFLOW),
        ({"iova": 0x1000}, errno.EEXIST),
        ({"vaddr": 0x10000}, errno.EFAULT),
        ({"vaddr": 0}, errno.EFAULT),
    ],
)
def test_with_device_map_is_refused(host: IommufdHost, fields: dict[str, int], code: int) -> None:
    _device, ioas = host.attached()
    memory = host.memory(4)
    host.map(ioas, memory.vaddr, PAGE, 0x1000)
    vaddr = fields.get("vaddr", memory.vaddr) + fields.get("offset", 0)
    with refuses(code):
        host.map(ioas, vaddr, fields.get("length", PAGE), fields.get("iova", 0x7000))
    assert host.unmap(ioas) == PAGE


def test_reserved_beats_overlap(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    memory = host.memory(2)
    host.map(ioas, memory.vaddr, PAGE, MSI - PAGE)
    with refuses(errno.EINVAL):
        host.map(ioas, memory.vaddr, 2 * PAGE, MSI - PAGE)


def test_the_last_page_of_the_aperture_is_mapped(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    iova = (1 << 48) - PAGE
    assert host.map(ioas, host.memory().vaddr, PAGE, iova) == iova


@pytest.mark.parametrize(("start", "pages"), [(16, 4), (15, 2), (17, 1), (19, 2), (15, 8)])
def test_overlap_is_eexist(host: IommufdHost, start: int, pages: int) -> None:
    ioas, memory = host.ioas(), host.memory(8)
    host.map(ioas, memory.vaddr, 4 * PAGE, 16 * PAGE)
    with refuses(errno.EEXIST):
        host.map(ioas, memory.vaddr, pages * PAGE, start * PAGE)
    host.map(ioas, memory.vaddr, PAGE, 15 * PAGE)
    host.map(ioas, memory.vaddr, PAGE, 20 * PAGE)


# -- chosen IOVAs -----------------------------------------------------------------------------


def test_chosen_iovas_are_aligned_as_memory_and_length_are(host: IommufdHost) -> None:
    ioas, base = host.ioas(), 0x7F00_0020_0000  # never touched without a device
    sizes = [PAGE, 2 * PAGE, PAGE, 3 * PAGE, 5 * PAGE, 2 << 20, 3 << 20, 4 << 20]
    starts = [base, base, base + PAGE, base, base, base, base, base]
    chosen = [host.map(ioas, vaddr, size) for vaddr, size in zip(starts, sizes, strict=True)]
    assert chosen == [0x1000, 0x2000, 0x4000, 0x8000, 0x10000, 0x200000, 0x400000, 0x800000]


def test_chosen_iovas_keep_the_offset_in_the_page(host: IommufdHost) -> None:
    ioas, base = host.ioas(), 0x7F00_0020_0000
    assert host.map(ioas, base + 0x123, PAGE) == 0x1123
    assert host.map(ioas, base + 0x20, 0x10) == 0x1020
    assert host.map(ioas, base + 0x21, 0x10) == 0x1031  # the first hole's start, bits set


def test_chosen_iovas_lie_in_what_is_allowed(host: IommufdHost) -> None:
    ioas, base = host.ioas(), 0x7F00_0020_0000
    host.allow(ioas, (0x100000, 0x10FFFF))
    assert host.map(ioas, base, PAGE) == 0x100000
    with refuses(errno.ENOSPC):
        host.map(ioas, base, 0x10000)
    assert host.map(ioas, base, 0x8000) == 0x108000
    assert host.map(ioas, base, PAGE, 0x500000) == 0x500000  # FIXED is not asked about


def test_page_0_is_never_chosen(host: IommufdHost) -> None:
    ioas = host.ioas()
    host.allow(ioas, (0, PAGE - 1), (0x10000, 0x10FFF))
    assert host.map(ioas, 0x7F00_0020_0000) == 0x10000
    with refuses(errno.ENOSPC):
        host.map(ioas, 0x7F00_0020_0000)


def test_the_longest_chosen_range(host: IommufdHost) -> None:
    ioas = host.ioas()
    with refuses(errno.EOVERFLOW):
        host.map(ioas, 0x1000, EVERYTHING >> 1)
    host.map(ioas, 0x1000, (EVERYTHING >> 1) - 1)
    with refuses(errno.ENOSPC):
        host.map(ioas, 0x1000, (EVERYTHING >> 1) - PAGE)


def test_memory_that_alignment_forbids_is_einval(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    with refuses(errno.EINVAL):
        host.map(ioas, host.memory(2).vaddr + 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=24))
def test_the_lowest_fit_is_chosen(wishes: list[tuple[int, int]]) -> None:
    host = IommufdHost()
    ioas, base = host.ioas(), 0x7F00_0020_0000
    first, last = 16, 79
    host.allow(ioas, (first * PAGE, (last + 1) * PAGE - 1))
    taken: set[int] = set()
    for pages, offset in wishes:
        alignment = 1 << (pages - 1).bit_length()
        while offset and offset % alignment:
            alignment >>= 1
        fits = [
            start
            for start in range(first, last + 2 - pages)
            if start % alignment == 0 and not taken & set(range(start, start + pages))
        ]
        if not fits:
            with refuses(errno.ENOSPC):
                host.map(ioas, base + offset * PAGE, pages * PAGE)
            continue
        assert host.map(ioas, base + offset * PAGE, pages * PAGE) == fits[0] * PAGE
        taken |= set(range(fits[0], fits[0] + pages))


# -- unmap ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iova", "length", "code"),
    [
        (0x1000, PAGE, errno.ENOENT),
        (0x10000, PAGE, errno.ENOENT),
        (0x11000, PAGE, errno.ENOENT),
        (0x13000, PAGE, errno.ENOENT),
        (0x10000, 0, errno.EINVAL),
        (TOP, 2 * PAGE, errno.EOVERFLOW),
        (EVERYTHING, PAGE, errno.EOVERFLOW),
        (1, EVERYTHING, errno.EOVERFLOW),
    ],
)
def test_unmap_is_refused(host: IommufdHost, iova: int, length: int, code: int) -> None:
    ioas = host.ioas()
    host.map(ioas, host.memory(4).vaddr, 4 * PAGE, 0x10000)
    with refuses(code):
        host.unmap(ioas, iova, length)
    assert isinstance(host.last, abi.iommu_ioas_unmap)
    assert host.last.length == length  # not written back
    assert host.unmap(ioas) == 4 * PAGE


def test_unmap_without_ioas_is_enoent_before_anything(host: IommufdHost) -> None:
    for iova, length in ((0, EVERYTHING), (TOP, 2 * PAGE), (1, EVERYTHING)):
        with refuses(errno.ENOENT):
            host.unmap(99, iova, length)


def test_unmap_that_stops_leaves_what_came_before_removed(host: IommufdHost) -> None:
    ioas, memory = host.ioas(), host.memory(4)
    host.map(ioas, memory.vaddr, PAGE, 0xF000)
    host.map(ioas, memory.vaddr, 4 * PAGE, 0x10000)
    with refuses(errno.ENOENT):
        host.unmap(ioas, 0xF000, 2 * PAGE)
    with refuses(errno.ENOENT):
        host.unmap(ioas, 0xF000, PAGE)
    assert host.unmap(ioas, 0x10000, 4 * PAGE) == 4 * PAGE


def test_unmap_passes_over_holes(host: IommufdHost) -> None:
    ioas, memory = host.ioas(), host.memory()
    host.map(ioas, memory.vaddr, PAGE, 0x1000)
    host.map(ioas, memory.vaddr, PAGE, 0x3000)
    assert host.unmap(ioas, 0, 0x10000) == 2 * PAGE


def test_unmapping_everything_succeeds_when_there_is_nothing(host: IommufdHost) -> None:
    ioas = host.ioas()
    host.map(ioas, host.memory().vaddr)
    assert host.unmap(ioas) == PAGE
    assert host.unmap(ioas) == 0


# -- copy -------------------------------------------------------------------------------------


@pytest.fixture
def pair(host: IommufdHost) -> tuple[int, int]:
    """Two address spaces; the first has 4 pages at 0x10000 and 4 others behind them."""
    source, target = host.ioas(), host.ioas()
    memory = host.memory(12)
    host.map(source, memory.vaddr, 4 * PAGE, 0x10000)
    host.map(source, memory.vaddr + 8 * PAGE, 4 * PAGE, 0x14000)
    return source, target


def test_copy_spans_mappings_at_any_byte(host: IommufdHost, pair: tuple[int, int]) -> None:
    source, target = pair
    assert host.copy(target, source, 8 * PAGE, 0x10000, 0x40000) == 0x40000
    assert host.copy(target, source, 3, 0x13FFE, 0x60000) == 0x60000
    assert host.unmap(target, 0x40000, 4 * PAGE) == 4 * PAGE  # two areas, one of each mapping
    assert host.unmap(target, 0x60000, 3) == 3
    assert host.unmap(target) == 4 * PAGE


@pytest.mark.parametrize(
    ("length", "source_iova", "iova", "code"),
    [
        (9 * PAGE, 0x10000, 0x70000, errno.ENOENT),
        (2 * PAGE, 0xF000, 0x70000, errno.ENOENT),
        (0, 0x10000, 0x70000, errno.EINVAL),
        (PAGE, EVERYTHING, 0x70000, errno.EOVERFLOW),
        (PAGE, 0x10000, EVERYTHING, errno.EOVERFLOW),
        (EVERYTHING, 0x10000, 0x70000, errno.EOVERFLOW),
        (PAGE, 0x10000, 0x20000, errno.EEXIST),
    ],
)
def test_copy_is_refused(
    host: IommufdHost,
    pair: tuple[int, int],
    length: int,
    source_iova: int,
    iova: int,
    code: int,
) -> None:
    source, target = pair
    host.copy(target, source, PAGE, 0x10000, 0x20000)
    with refuses(code):
        host.copy(target, source, length, source_iova, iova)
    assert host.unmap(target) == PAGE


def test_copy_checks_flags_permissions_then_objects(
    host: IommufdHost, pair: tuple[int, int]
) -> None:
    source, target = pair
    with refuses(errno.EOPNOTSUPP):
        host.copy(99, 98, PAGE, 0x10000, 0x20000, flags=8)
    with refuses(errno.EINVAL):
        host.copy(99, 98, PAGE, 0x10000, 0x20000, flags=0)
    for wrong in ((99, source), (target, 99)):
        with refuses(errno.ENOENT):
            host.copy(*wrong, PAGE, 0x10000, 0x20000)


def test_a_copy_of_what_is_read_only_cannot_be_writable(host: IommufdHost) -> None:
    source, target = host.ioas(), host.ioas()
    host.map(source, host.memory().vaddr, PAGE, 0x1000, flags=READ)
    with refuses(errno.EPERM):
        host.copy(target, source, PAGE, 0x1000, 0x1000)
    host.copy(target, source, PAGE, 0x1000, 0x1000, flags=READ)
    with refuses(errno.EEXIST):  # beats EPERM
        host.copy(target, source, PAGE, 0x1000, 0x1000)


def test_a_copy_of_what_is_write_only_can_be_readable(host: IommufdHost) -> None:
    source, target = host.ioas(), host.ioas()
    host.map(source, host.memory().vaddr, PAGE, 0x1000, flags=WRITE)
    assert host.copy(target, source, PAGE, 0x1000, 0x1000, flags=READ) == 0x1000


def test_a_copy_outlives_its_source(host: IommufdHost, pair: tuple[int, int]) -> None:
    source, target = pair
    host.copy(target, source, 4 * PAGE, 0x10000, 0x20000)
    host.unmap(source)
    with refuses(errno.ENOENT):
        host.copy(target, source, PAGE, 0x10000, 0x30000)
    assert host.copy(source, target, 4 * PAGE, 0x20000, 0x10000) == 0x10000


# -- hardware ---------------------------------------------------------------------------------


def tables_of(host: IommufdHost, *bdfs: object) -> list[SecondStage]:
    """Page tables of the functions' groups."""
    found = []
    for bdf in bdfs:
        device = host.kernel.device(bdf)  # type: ignore[arg-type]
        group = host.kernel.group_of(device)
        assert group is not None
        assert isinstance(group.domain, Domain)
        found.append(group.domain.table)
    return found


def test_large_pages_are_used_unless_they_are_off(host: IommufdHost) -> None:
    device, ioas = host.attached()
    memory = host.kernel.allocate(4 << 20)
    host.map(ioas, memory.vaddr, 4 << 20, 4 << 20)
    (table,) = tables_of(host, NIC)
    assert {leaf.size for leaf in table.leaves()} == {2 << 20}
    with refuses(errno.EINVAL):  # not while something is mapped in hardware
        host.set_option(abi.IOMMU_OPTION_HUGE_PAGES, 0, ioas)
    host.unmap(ioas)
    host.set_option(abi.IOMMU_OPTION_HUGE_PAGES, 0, ioas)
    host.map(ioas, memory.vaddr, 4 << 20, 4 << 20)
    assert {leaf.size for leaf in table.leaves()} == {PAGE}
    host.detach(device)


Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["map", "map", "unmap", "copy", "all", "attach", "detach", "other"]),
        st.integers(0, 15),
        st.integers(1, 5),
        st.integers(0, 15),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_hardware_maps_what_the_model_says(steps: list[Step]) -> None:
    host = IommufdHost()
    (nic, _), (edu, _) = host.bound(NIC), host.bound(EDU)
    ioas = host.ioas()
    host.attach(edu, ioas)
    memory = host.memory(24)
    group = host.kernel.group_of(host.kernel.device(EDU))
    assert group is not None
    _region, extent = host.kernel.process.resolve(memory.vaddr, memory.length)
    model: dict[int, tuple[int, int]] = {}  # page → (page of the memory, id of the mapping)
    for number, (what, first, pages, other) in enumerate(steps):
        span = range(first, first + pages)
        refused = 0
        try:
            if what == "map":
                host.map(ioas, memory.vaddr + other * PAGE, pages * PAGE, first * PAGE)
            elif what == "copy":
                host.copy(ioas, ioas, pages * PAGE, other * PAGE, first * PAGE)
            elif what == "unmap":
                host.unmap(ioas, first * PAGE, pages * PAGE)
            elif what == "all":
                host.unmap(ioas)
            elif what == "detach":
                host.detach(nic)
            else:
                host.attach(nic, ioas if what == "attach" else host.ioas())
        except OSError as error:
            refused = error.errno or 0
        taken = bool(model.keys() & set(span))
        if what == "map":
            assert refused == (errno.EEXIST if taken else 0)
            if not refused:
                model.update({page: (other + page - first, number) for page in span})
        elif what == "copy":
            sources = [model.get(other + page - first) for page in span]
            wanted = errno.ENOENT if None in sources else errno.EEXIST if taken else 0
            assert refused == wanted
            if not refused:  # a copy of several mappings is several mappings
                model.update(
                    {
                        page: (source[0], number * 1000 + source[1])
                        for page, source in zip(span, sources, strict=True)
                        if source is not None
                    }
                )
        elif what == "unmap":
            whole = _unmap_in_model(model, span)
            assert refused == (0 if whole and taken else errno.ENOENT)
        else:
            assert not refused
            if what == "all":
                model.clear()
        assert isinstance(group.domain, Domain)
        real = {
            (leaf.iova + at) // PAGE: (leaf.hpa + at - extent.hpa) // PAGE
            for leaf in group.domain.table.leaves()
            for at in range(0, leaf.size, PAGE)
        }
        assert real == {page: where for page, (where, _number) in model.items()}


def _unmap_in_model(model: dict[int, tuple[int, int]], span: range) -> bool:
    """Mappings go one by one, up to the first that the range does not cover; whether none is."""
    for page in span:
        if page in model:
            number = model[page][1]
            whole = [other for other, (_at, owner) in model.items() if owner == number]
            if not set(whole) <= set(span):
                return False
            for other in whole:
                del model[other]
    return True
