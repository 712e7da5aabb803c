"""PRPs against a walk that follows them as a controller does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_memory import MemorySpace

from vfiokit.driver.nvme.prp import ListPool, build_prps
from vfiokit.errors import UsageError


def walk(space: MemorySpace, page_size: int, prp1: int, prp2: int, length: int):
    """The byte ranges that a controller would transfer, by the text of the specification.

    Follows list pages only as far as data remains, and insists on page-aligned entries.
    """
    ranges = []
    first = min(page_size - prp1 % page_size, length)
    ranges.append((prp1, first))
    left = length - first
    if not left:
        return ranges
    if left <= page_size:
        assert prp2 % page_size == 0
        return [*ranges, (prp2, left)]
    entry = prp2
    while left:
        assert entry % 8 == 0
        value = struct.unpack("<Q", space.read(entry, 8))[0]
        last_of_page = entry % page_size == page_size - 8
        if last_of_page and left > page_size:
            entry = value
            assert entry % page_size == 0
            continue
        assert value % page_size == 0
        part = min(page_size, left)
        ranges.append((value, part))
        left -= part
        entry += 8
    return ranges


@given(
    st.sampled_from([4096, 8192]),
    st.integers(0, 8191),
    st.one_of(
        st.integers(1, 40 * 4096),
        # Around the places where a list page fills and chains.
        st.tuples(st.integers(510, 514) | st.integers(1020, 1030), st.integers(-8, 8)).map(
            lambda pair: pair[0] * 4096 + pair[1]
        ),
    ),
)
@settings(max_examples=300, deadline=None)
def test_prps_cover_exactly_the_bytes_asked_for(page_size, offset, length) -> None:
    space = MemorySpace()
    pool = ListPool(space, page_size, chunk=2)
    iova = 0x7000_0000_0000 + offset // 4 * 4
    prp1, prp2, pages = build_prps(iova, length, pool)
    ranges = walk(space, page_size, prp1, prp2, length)
    at = iova
    for start, part in ranges:
        assert start == at
        at += part
    assert at == iova + length
    touched = (iova + length - 1) // page_size - iova // page_size + 1
    assert len(ranges) == touched
    # No page more than needed: n entries and a pointer in each but the last page.
    per_page = page_size // 8
    entries = touched - 1
    needed = 0 if touched <= 2 else max(1, -(-(entries - 1) // (per_page - 1)))
    assert len(pages) == needed


@pytest.mark.parametrize(("pages_of_data", "list_pages"), [(513, 1), (514, 2)])
def test_last_slot_holds_data_when_it_is_the_last_entry(pages_of_data, list_pages) -> None:
    space = MemorySpace()
    _prp1, _prp2, pages = build_prps(0x1000_0000_0000, pages_of_data * 4096, ListPool(space, 4096))
    assert len(pages) == list_pages


def test_one_and_two_pages_need_no_list() -> None:
    pool = ListPool(MemorySpace(), 4096)
    assert build_prps(0x5000, 4096, pool) == (0x5000, 0, [])
    assert build_prps(0x5800, 2048, pool) == (0x5800, 0, [])
    assert build_prps(0x5800, 2052, pool) == (0x5800, 0x6000, [])
    assert build_prps(0x5000, 8192, pool) == (0x5000, 0x6000, [])


def test_misaligned_or_empty_transfers_are_refused() -> None:
    pool = ListPool(MemorySpace(), 4096)
    with pytest.raises(UsageError):
        build_prps(0x5002, 512, pool)
    with pytest.raises(UsageError):
        build_prps(0x5000, 0, pool)


def test_pool_uses_pages_again_and_frees_them_at_its_end() -> None:
    space = MemorySpace()
    pool = ListPool(space, 4096, chunk=2)
    pages = [pool.take() for _ in range(3)]
    assert len({page.iova for page in pages}) == 3
    assert pool.total_pages == 4
    pool.give_back(pages)
    assert [pool.take() for _ in range(4)]
    assert pool.total_pages == 4
    pool.close()
    assert space.buffers == {}
