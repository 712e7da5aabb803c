"""Physical memory and its frame allocator."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import MachineError
from vfiokit.machine.memory import PhysicalMemory

PAGE = 4096
PAGES = 64
BASE = 1 << 32


def small() -> PhysicalMemory:
    return PhysicalMemory(PAGES * PAGE, BASE)


def test_memory_of_64_gib_costs_nothing_until_used():
    memory = PhysicalMemory(64 << 30)
    memory.write(memory.end - 4, b"last")
    assert memory.read(memory.end - 4, 4) == b"last"
    assert memory.read(memory.base, 8) == bytes(8)


def test_words_and_bytes_are_the_same_memory():
    memory = small()
    memory.write64(BASE + 16, 0x1122334455667788)
    assert memory.read(BASE + 16, 8) == bytes.fromhex("8877665544332211")
    assert memory.words[2] == memory.read64(BASE + 16)


@pytest.mark.parametrize(("hpa", "length"), [(BASE - 1, 2), (BASE + PAGES * PAGE - 1, 2), (0, 1)])
def test_access_outside_ram_is_refused(hpa, length):
    memory = small()
    assert not memory.contains(hpa, length)
    for access in (
        lambda: memory.read(hpa, length),
        lambda: memory.write(hpa, bytes(length)),
        lambda: memory.slice(hpa, length),
    ):
        with pytest.raises(MachineError, match="not in RAM"):
            access()


@pytest.mark.parametrize("hpa", [BASE + 4, BASE - 8, BASE + PAGES * PAGE])
def test_misaligned_or_outside_word_is_refused(hpa):
    memory = small()
    with pytest.raises(MachineError):
        memory.read64(hpa)
    with pytest.raises(MachineError):
        memory.write64(hpa, 1)


def test_reused_frames_read_as_zero():
    memory = small()
    frame = memory.allocate(2 * PAGE)
    memory.slice(frame, 2 * PAGE)[:] = b"\xa5" * (2 * PAGE)
    memory.free(frame, 2 * PAGE)
    again = memory.allocate(2 * PAGE)
    assert again == frame
    assert memory.read(again, 2 * PAGE) == bytes(2 * PAGE)


def test_frames_that_a_stray_write_touched_read_as_zero():
    memory = small()
    memory.write(BASE + 40 * PAGE, b"stray")
    whole = memory.allocate(PAGES * PAGE)
    assert memory.read(whole, PAGES * PAGE) == bytes(PAGES * PAGE)


def test_exhausted_memory_says_so():
    memory = small()
    memory.allocate(PAGES * PAGE)
    with pytest.raises(MachineError, match="no 0x1000 free bytes"):
        memory.allocate(1)


def test_freeing_twice_is_refused():
    memory = small()
    frame = memory.allocate(4 * PAGE)
    memory.free(frame + PAGE, PAGE)
    for hpa, length in ((frame + PAGE, PAGE), (frame, 4 * PAGE), (BASE + 8 * PAGE, PAGE)):
        with pytest.raises(MachineError, match="freed twice"):
            memory.free(hpa, length)
    memory.free(frame, PAGE)
    memory.free(frame + 2 * PAGE, 2 * PAGE)
    assert memory.free_ranges() == [(BASE, PAGES * PAGE)]


@pytest.mark.parametrize(("length", "alignment"), [(0, PAGE), (-1, PAGE), (PAGE, 3), (PAGE, 0)])
def test_impossible_allocation_is_refused(length, alignment):
    with pytest.raises(MachineError):
        small().allocate(length, alignment)


def test_memory_not_made_of_pages_is_refused():
    with pytest.raises(MachineError):
        PhysicalMemory(PAGE + 1)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 9), st.sampled_from([1, 2, 4, 8])),
        st.tuples(st.just("give"), st.integers(0, 30), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_allocations_never_overlap_and_frees_merge(plan):
    memory = small()
    held: list[tuple[int, int]] = []
    for verb, number, alignment in plan:
        if verb == "give":
            if held:
                hpa, pages = held.pop(number % len(held))
                memory.free(hpa, pages * PAGE)
            continue
        try:
            hpa = memory.allocate(number * PAGE - 1, alignment * PAGE)
        except MachineError:
            # Refused only when no aligned run of free pages exists: counted page by page.
            used = {page for at, count in held for page in range(at // PAGE, at // PAGE + count)}
            first = BASE // PAGE
            assert not any(
                page % alignment == 0
                and page + number <= first + PAGES
                and used.isdisjoint(range(page, page + number))
                for page in range(first, first + PAGES)
            )
            continue
        assert hpa % (alignment * PAGE) == 0
        held.append((hpa, number))
    pages = [page for at, count in held for page in range(at // PAGE, at // PAGE + count)]
    assert len(pages) == len(set(pages))
    assert memory.allocated == len(pages) * PAGE
    free = memory.free_ranges()
    assert sum(length for _hpa, length in free) == (PAGES - len(pages)) * PAGE
    assert all(one + length < other for (one, length), (other, _) in pairwise(free))
    for hpa, count in held:
        memory.free(hpa, count * PAGE)
    assert memory.free_ranges() == [(BASE, PAGES * PAGE)]
