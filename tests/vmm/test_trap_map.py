"""The trap map: every address once, the strongest wish, and never a trace of how it came about."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.vmm.bus import GuestBus, aligned_pieces
from vfiokit.vmm.trap_map import Access, Strength, TrapMap, Wish, flatten

SPAN = 0x6000
STRENGTHS = [0, 10, 20, 30, 40]

wishes = st.builds(
    Wish,
    gpa=st.integers(0, SPAN - 1),
    length=st.integers(1, SPAN),
    access=st.sampled_from([Access.DIRECT, Access.TRAP]),
    strength=st.sampled_from(STRENGTHS),
    name=st.sampled_from(["a", "b", "c"]),
    offset=st.integers(0, 0x100),
)
askers = st.dictionaries(st.integers(0, 4), st.lists(wishes, max_size=4), max_size=5)


def winner(every: list[Wish], gpa: int) -> Wish | None:
    """The strongest by brute force: strength, then a trap before a map."""
    covering = [wish for wish in every if wish.gpa <= gpa < wish.end]
    return max(covering, key=lambda wish: wish.rank, default=None)


@given(st.lists(wishes, max_size=8))
def test_every_address_is_covered_once_and_by_the_strongest(every) -> None:
    flat = flatten(every)
    assert all(one.end <= other.start for one, other in pairwise(flat))
    edges = {edge for wish in every for edge in (wish.gpa, wish.end - 1, wish.end)}
    for gpa in sorted(edges | {0, SPAN // 2, 2 * SPAN}):
        found = [each for each in flat if each.start <= gpa < each.end]
        best = winner(every, gpa)
        assert [each.wish for each in found] == ([best] if best is not None else [])
        if best is not None:
            assert found[0].offset == best.offset + found[0].start - best.gpa


@given(st.lists(wishes, min_size=1, max_size=8))
def test_among_the_strongest_a_trap_wins(every) -> None:
    for each in flatten(every):
        covering = [w for w in every if w.gpa <= each.start < w.end]
        strongest = max(w.strength for w in covering)
        traps = any(w.access is Access.TRAP for w in covering if w.strength == strongest)
        assert each.wish.strength == strongest
        assert (each.access is Access.TRAP) == traps


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(wishes, max_size=3)), max_size=12))
def test_recomputed_after_moves_equals_from_scratch(moves) -> None:
    traps = TrapMap()
    last: dict[int, list[Wish]] = {}
    for asker, wanted in moves:
        traps.ask(asker, wanted)
        last[asker] = wanted
        assert isinstance(traps.flat, tuple)
    fresh = TrapMap()
    for asker in sorted(last, reverse=True):
        fresh.ask(asker, last[asker])
    assert traps.flat == fresh.flat


@given(st.lists(wishes, max_size=8), st.integers(0, 2 * SPAN))
def test_found_range_holds_the_address(every, gpa) -> None:
    traps = TrapMap()
    traps.ask("x", every)
    found = traps.find(gpa)
    assert (found.wish if found else None) == winner(every, gpa)
    assert found is None or found.start <= gpa < found.end


@given(st.lists(wishes, max_size=6), st.sampled_from([0x100, 0x1000, 0x10000]))
def test_mapped_pages_hold_nothing_else(every, page_size) -> None:
    traps = TrapMap(page_size)
    traps.ask("x", every)
    for page in range(0, SPAN * 2, page_size):
        inside = {
            winner(every, gpa)
            for gpa in {page, page + page_size - 1}
            | {e for w in every for e in (w.gpa, w.end) if page <= e < page + page_size}
        }
        alone = len(inside) == 1 and next(iter(inside)) is not None
        maps = alone and next(iter(inside)).access is Access.DIRECT
        assert traps.maps(page, 1) == maps
        assert traps.maps(page, page_size) == maps


def test_generation_grows_only_with_a_change() -> None:
    traps = TrapMap()
    wish = Wish(0, 0x1000, Access.TRAP, Strength.REGION, "x")
    traps.ask("a", [wish])
    before = traps.generation
    traps.ask("a", [wish])
    assert traps.generation == before
    traps.ask("a", [])
    assert traps.generation == before + 1
    assert traps.flat == ()


@pytest.mark.parametrize(("gpa", "length"), [(0, 0), (-1, 1), (1 << 64, 1), ((1 << 64) - 1, 2)])
def test_wish_outside_the_address_space_is_refused(gpa, length) -> None:
    with pytest.raises(UsageError):
        Wish(gpa, length, Access.TRAP, 0, "x")


@pytest.mark.parametrize("size", [0, -1, 3, 0x1800])
def test_page_size_is_a_power_of_two(size) -> None:
    with pytest.raises(UsageError):
        TrapMap(size)


class Memory:
    """A handler over bytes that remembers its accesses."""

    def __init__(self, size: int = 0x10000) -> None:
        self.data = bytearray(size)
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        self.accesses.append(("read", offset, width))
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        self.accesses.append(("write", offset, width))
        self.data[offset : offset + width] = value.to_bytes(width, "little")


def test_bus_maps_and_traps_by_the_map_and_follows_its_changes() -> None:
    traps = TrapMap()
    memory = Memory()
    mapped = Wish(0x1000, 0x2000, Access.DIRECT, Strength.MAPPED, "map", memory)
    trap = Wish(0x2800, 0x10, Access.TRAP, Strength.OVERLAY, "table", memory, 0x8000, "msix")
    traps.ask("x", [mapped, trap])
    bus = GuestBus(traps)
    assert bus.write(0x1010, 4, 0x11223344)
    assert bus.read(0x1010, 4) == 0x11223344
    assert memory.accesses == [("write", 0x10, 4), ("read", 0x10, 4)]
    # The page that the table shares traps, and still reaches the right place.
    assert bus.read(0x2000, 4) is None
    assert bus.trapped_read(0x2000, 4) == (0, "bar")
    assert memory.accesses[-1] == ("read", 0x1000, 4)
    assert bus.trapped_write(0x2804, 4, 7) == "msix"
    assert memory.accesses[-1] == ("write", 0x8004, 4)
    traps.ask("x", [])
    assert bus.read(0x1010, 4) is None
    assert bus.trapped_read(0x1010, 4) == (0xFFFFFFFF, "unclaimed")
    assert bus.mapped_accesses == 2


def test_access_across_two_ranges_is_cut_into_bytes() -> None:
    traps = TrapMap()
    low, high = Memory(), Memory()
    traps.ask("x", [Wish(0, 6, Access.TRAP, 0, "low", low), Wish(6, 6, Access.TRAP, 0, "h", high)])
    bus = GuestBus(traps)
    bus.trapped_write(4, 4, 0x44332211)
    assert low.data[4:6] == b"\x11\x22"
    assert high.data[0:2] == b"\x33\x44"
    assert bus.trapped_read(4, 4)[0] == 0x44332211
    assert bus.trapped_read(10, 4) == (0xFFFF0000, "bar")


def test_observer_sees_value_range_and_whether_it_was_an_exit() -> None:
    traps = TrapMap()
    memory = Memory()
    traps.ask("x", [Wish(0, 0x1000, Access.DIRECT, 20, "map", memory)])
    bus = GuestBus(traps)
    seen = []
    bus.observers.append(seen.append)
    bus.write(8, 4, 5)
    bus.read(8, 4)
    bus.trapped_write(0x5000, 4, 9)
    assert [(s.gpa, s.write, s.value, s.mapped, s.range and s.range.name) for s in seen] == [
        (8, True, 5, True, "map"),
        (8, False, 5, True, "map"),
        (0x5000, True, 9, False, None),
    ]


@given(st.integers(0, 64), st.sampled_from([1, 2, 4, 8]))
def test_pieces_are_aligned_and_complete(offset, width) -> None:
    pieces = aligned_pieces(offset, width)
    assert [at for at, _w in pieces] == [sum(w for _a, w in pieces[:i]) for i in range(len(pieces))]
    assert sum(w for _at, w in pieces) == width
    assert all((offset + at) % w == 0 for at, w in pieces)
