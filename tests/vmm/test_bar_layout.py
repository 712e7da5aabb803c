"""How BARs are cut: QEMU's rules, by its own examples and over any layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.pci.capability.msix import Structure
from vfiokit.vfio.region import SparseArea
from vfiokit.vmm.bar_layout import (
    BarShape,
    grown_length,
    mappable_areas,
    msix_place,
    relocate_msix,
)

KIB = 1024
WHOLE = SparseArea(0, 64 * KIB)


@pytest.mark.parametrize(
    ("table", "areas"),
    [
        (Structure(0, 0x2000, 0x40), [(0, 0x2000), (0x3000, 0xD000)]),  # seen in QEMU 11.1.3
        (Structure(0, 0, 0x810), [(0x1000, 0xF000)]),
        (Structure(0, 0xF000, 0x100), [(0, 0xF000)]),
        (Structure(0, 0, 64 * KIB), []),
        (Structure(0, 0x1F00, 0x200), [(0, 0x1000), (0x3000, 0xD000)]),
    ],
)
def test_pages_of_the_table_are_cut_out(table, areas) -> None:
    found = mappable_areas(64 * KIB, [WHOLE], table, msix_mappable=False)
    assert list(found) == [SparseArea(*area) for area in areas]
    assert mappable_areas(64 * KIB, [WHOLE], table, msix_mappable=True) == (WHOLE,)


def test_a_64_kib_page_leaves_nothing_of_a_64_kib_bar() -> None:
    table = Structure(0, 0x2000, 0x40)
    assert mappable_areas(64 * KIB, [WHOLE], table, msix_mappable=False, page_size=1 << 16) == ()


def test_areas_that_the_kernel_names_are_taken_as_they_are() -> None:
    named = [SparseArea(0, 0x1000), SparseArea(0x4000, 0), SparseArea(0x8000, 0x1000)]
    found = mappable_areas(64 * KIB, named, Structure(0, 0, 0x40), msix_mappable=False)
    assert found == (named[0], named[2])


@given(
    st.integers(12, 20).map(lambda n: 1 << n),
    st.integers(0, 1 << 17).map(lambda n: n * 8),
    st.integers(1, 2048),
    st.sampled_from([4096, 16384, 65536]),
)
def test_no_area_touches_a_page_of_the_table_and_nothing_else_is_given_up(
    size, offset, count, page_size
) -> None:
    offset %= size
    length = min(count * 16, size - offset)
    table = Structure(0, offset, length)
    areas = mappable_areas(
        size, [SparseArea(0, size)], table, msix_mappable=False, page_size=page_size
    )
    pages = range(offset // page_size, -(-(offset + length) // page_size))
    for page in range(-(-size // page_size)):
        start, end = page * page_size, min((page + 1) * page_size, size)
        covered = any(a.offset <= start and end <= a.offset + a.length for a in areas)
        assert covered == (page not in pages)


def test_small_bar_grows_to_its_page_only_at_the_start_of_one() -> None:
    area = [SparseArea(0, 0x100)]
    assert grown_length(0x100, area, 0xFE00_0000, 4096) == 4096
    assert grown_length(0x100, area, 0xFE00_0100, 4096) == 0
    assert grown_length(0x100, [], 0xFE00_0000, 4096) == 0
    assert grown_length(0x1000, [SparseArea(0, 0x1000)], 0xFE00_0000, 1 << 16) == 1 << 16
    assert grown_length(0x2000, [SparseArea(0, 0x2000)], 0xFE00_0000, 4096) == 0


PLACE = msix_place(3, 3 | 0x1000, 129)
NONE = BarShape(0)
XL710 = (BarShape(8 << 20, wide=True), NONE, NONE, BarShape(0x8000, wide=True), NONE, NONE)


def test_registers_say_where_table_and_pending_bits_are() -> None:
    assert PLACE.table == Structure(3, 0, 129 * 16)
    assert PLACE.pending == Structure(3, 0x1000, 24)


def test_relocation_doubles_a_bar_and_takes_the_upper_half() -> None:
    shapes, place = relocate_msix(XL710, PLACE, "bar3")
    assert shapes[3].size == 0x10000
    assert place.table == Structure(3, 0x8000, 129 * 16)
    assert place.pending.offset == 0x8000 + 129 * 16
    assert place.relocated


def test_relocation_makes_a_bar_64_bit_where_the_next_is_free() -> None:
    bare = (*XL710[:3], NONE, NONE, NONE)
    shapes, place = relocate_msix(bare, PLACE, "bar2")
    assert shapes[2] == BarShape(0x1000, wide=True, prefetchable=True)
    assert place.table.offset == 0
    shapes, _place = relocate_msix(bare, PLACE, "bar5")
    assert shapes[5] == BarShape(0x1000, wide=False, prefetchable=False)


@pytest.mark.parametrize("choice", ["off", "auto"])
def test_relocation_off_and_auto_change_nothing(choice) -> None:
    assert relocate_msix(XL710, PLACE, choice) == (XL710, PLACE)


@pytest.mark.parametrize(
    ("shapes", "choice", "message"),
    [
        (XL710, "bar1", "upper half"),
        (XL710, "bar9", "none of"),
        ((BarShape(0x20, memory=False), *XL710[1:]), "bar0", "I/O"),
        ((BarShape(2 << 30), *XL710[1:]), "bar0", "too large"),
    ],
)
def test_relocation_to_an_impossible_bar_is_refused(shapes, choice, message) -> None:
    with pytest.raises(UsageError, match=message):
        relocate_msix(shapes, PLACE, choice)
