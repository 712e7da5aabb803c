"""The IOVA allocator against a model that tries every address in turn."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import IovaConflictError, KernelError, UsageError
from vfiokit.vfio.iova import IovaAllocator

G = 0x1000
RANGES = ((0, 0x1F_FFF), (0x30_000, 0x6F_FFF))


class Naive:
    """Free granules as a set."""

    def __init__(self) -> None:
        self.free = {
            granule for start, last in RANGES for granule in range(start // G, (last + 1) // G)
        }

    def fits(self, iova: int, count: int, alignment: int, max_iova: int | None) -> bool:
        wanted = set(range(iova // G, iova // G + count))
        low_enough = max_iova is None or iova + count * G - 1 <= max_iova
        return iova % alignment == 0 and low_enough and wanted <= self.free

    def places(self, count: int, alignment: int, max_iova: int | None) -> list[int]:
        """Every address above 0 that would do."""
        return [
            first * G
            for first in range(1, 0x70)
            if self.fits(first * G, count, alignment, max_iova)
        ]


operation = st.one_of(
    st.tuples(
        st.just("allocate"),
        st.integers(1, 12),
        st.sampled_from([0, G, 2 * G, 8 * G, 32 * G]),
        st.one_of(st.none(), st.integers(0, 0x80_000)),
    ),
    st.tuples(st.just("free"), st.integers(0, 1000)),
    st.tuples(st.just("reserve"), st.integers(0, 0x72), st.integers(1, 6)),
)


@given(st.lists(operation, max_size=60))
@settings(max_examples=300, deadline=None)
def test_allocator_agrees_with_a_set_of_free_granules(operations) -> None:
    allocator, naive = IovaAllocator(RANGES, G), Naive()
    taken: list[tuple[int, int]] = []
    for step in operations:
        if step[0] == "allocate":
            _, count, alignment, limit = step
            alignment = max(alignment, G)
            places = naive.places(count, alignment, limit)
            if places:
                iova = allocator.allocate(count * G, alignment, limit)
                assert iova in places
                naive.free -= set(range(iova // G, iova // G + count))
                taken.append((iova, count))
            else:
                with pytest.raises(KernelError) as caught:
                    allocator.allocate(count * G, alignment, limit)
                assert caught.value.errno == errno.ENOSPC
        elif step[0] == "free" and taken:
            iova, count = taken.pop(step[1] % len(taken))
            allocator.free(iova, count * G)
            naive.free |= set(range(iova // G, iova // G + count))
        elif step[0] == "reserve":
            _, first, count = step
            wanted = set(range(first, first + count))
            if wanted <= naive.free:
                allocator.reserve(first * G, count * G)
                naive.free -= wanted
                taken.append((first * G, count))
            else:
                with pytest.raises(IovaConflictError):
                    allocator.reserve(first * G, count * G)
        covered = {
            granule for start, end in allocator.holes() for granule in range(start // G, end // G)
        }
        assert covered == naive.free


def test_empty_space_is_filled_from_below_and_a_snug_hole_first() -> None:
    allocator = IovaAllocator([(0, 64 * G - 1)], G)
    assert [allocator.allocate(2 * G) for _ in range(3)] == [G, 3 * G, 5 * G]
    allocator.free(3 * G, 2 * G)
    assert allocator.allocate(4 * G) == 7 * G
    assert allocator.allocate(2 * G) == 3 * G


def test_freed_neighbours_join_into_one_hole() -> None:
    allocator = IovaAllocator([(G, 9 * G - 1)], G)
    first, second, third = (allocator.allocate(2 * G) for _ in range(3))
    allocator.free(first, 2 * G)
    allocator.free(third, 2 * G)
    allocator.free(second, 2 * G)
    assert allocator.holes() == [(G, 9 * G)]


def test_freeing_twice_is_refused() -> None:
    allocator = IovaAllocator([(0, 16 * G - 1)], G)
    iova = allocator.allocate(4 * G)
    allocator.free(iova, 4 * G)
    with pytest.raises(UsageError):
        allocator.free(iova, 4 * G)
    with pytest.raises(UsageError):
        allocator.free(iova + G, G)


def test_partial_granules_at_the_edges_are_lost() -> None:
    assert IovaAllocator([(0x800, 0x27FF)], G).holes() == [(0x1000, 0x2000)]


def test_last_page_of_the_64_bit_space_can_be_taken() -> None:
    allocator = IovaAllocator([((1 << 64) - 2 * G, (1 << 64) - 1)], G)
    allocator.reserve((1 << 64) - G, G)
    assert allocator.allocate(G) == (1 << 64) - 2 * G


@pytest.mark.parametrize("length", [0, -G, 1, G + 1])
def test_lengths_that_are_no_granules_are_refused(length: int) -> None:
    with pytest.raises(UsageError):
        IovaAllocator(RANGES, G).allocate(length)


def test_alignment_must_be_a_power_of_two() -> None:
    with pytest.raises(UsageError):
        IovaAllocator(RANGES, G).allocate(G, 3 * G)


def test_overlapping_ranges_are_refused() -> None:
    with pytest.raises(UsageError):
        IovaAllocator([(0, 0x2FFF), (0x2000, 0x4FFF)], G)
