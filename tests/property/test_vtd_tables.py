"""Second-stage tables against a dictionary of pages, and the walker against the tables."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import MachineError
from vfiokit.machine.iommu.fault import IommuFault
from vfiokit.machine.iommu.iotlb import Iotlb
from vfiokit.machine.iommu.tables import ContextTables, SecondStage
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.memory import PhysicalMemory

PAGE = 4096
MIB2 = 1 << 21
GIB = 1 << 30
RID = 0x0310

# Boundaries of every level, so that ranges straddle tables and fill whole superpages.
anchors = st.sampled_from(
    [0, PAGE, MIB2, GIB, GIB - MIB2, 3 * GIB, (1 << 39) - MIB2, (1 << 48) - GIB]
)
pages = st.one_of(st.integers(1, 4), st.sampled_from([511, 512, 513, 1024, 1030]))
lengths = st.one_of(pages.map(lambda count: count * PAGE), st.sampled_from([GIB, GIB + MIB2]))


@st.composite
def ranges(draw):
    iova = draw(anchors) + draw(st.integers(-3, 3)) * PAGE
    length = draw(lengths)
    iova = max(0, min(iova, (1 << 48) - length))
    return iova, length


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("map"),
            ranges(),
            st.sampled_from([0, PAGE, MIB2]),
            st.sampled_from(["r", "w", "rw"]),
        ),
        st.tuples(st.just("unmap"), ranges(), st.just(0), st.just("")),
    ),
    max_size=12,
)


class Extents:
    """The model: disjoint ``iova -> (length, hpa, rights)``, no pages, no tables."""

    def __init__(self):
        self.parts: list[tuple[int, int, int, str]] = []

    def overlaps(self, iova, length):
        return any(at < iova + length and iova < at + size for at, size, _h, _r in self.parts)

    def map(self, iova, length, hpa, rights):
        self.parts.append((iova, length, hpa, rights))

    def unmap(self, iova, length):
        kept, removed = [], 0
        for at, size, hpa, rights in self.parts:
            low, high = max(at, iova), min(at + size, iova + length)
            if low >= high:
                kept.append((at, size, hpa, rights))
                continue
            removed += high - low
            if at < low:
                kept.append((at, low - at, hpa, rights))
            if high < at + size:
                kept.append((high, at + size - high, hpa + high - at, rights))
        self.parts = kept
        return removed

    def lookup(self, iova):
        for at, size, hpa, rights in self.parts:
            if at <= iova < at + size:
                return hpa + iova - at, rights
        return None


def tables_needed(stage: SecondStage) -> int:
    """Table pages that the leaves need: counted from the leaves alone."""
    needed = {("root",)}
    for leaf in stage.leaves():
        for shift in (39, 30, 21):
            if leaf.size < 1 << shift:
                needed.add((shift, leaf.iova >> shift))
    return len(needed)


def probes(model: Extents):
    for at, size, _hpa, _rights in model.parts:
        yield from (at - PAGE, at, at + 0x123, at + size // 2, at + size - 1, at + size)


@settings(deadline=None)
@given(operations, st.sampled_from([PAGE, MIB2, GIB]))
def test_tables_agree_with_a_dictionary_and_free_what_they_do_not_need(plan, largest):
    memory = PhysicalMemory(16 << 20)
    stage = SecondStage(memory, largest_leaf=largest)
    model = Extents()
    for verb, (iova, length), shift, rights in plan:
        if verb == "unmap":
            assert stage.unmap(iova, length) == model.unmap(iova, length)
        elif model.overlaps(iova, length):
            before = list(stage.leaves())
            with pytest.raises(MachineError, match="mapped already"):
                stage.map(iova, 0x1000_0000, length)
            assert list(stage.leaves()) == before
        else:
            if largest == PAGE and length > 64 * MIB2:
                continue
            hpa = (8 << 40) + (iova & (GIB - 1)) + shift
            stage.map(iova, hpa, length, read="r" in rights, write="w" in rights)
            model.map(iova, length, hpa, rights)
        assert stage.table_count == tables_needed(stage)
        assert memory.allocated == stage.table_count * PAGE
        for probe in probes(model):
            if not 0 <= probe < 1 << 48:
                continue
            leaf, want = stage.lookup(probe), model.lookup(probe)
            if want is None:
                assert leaf is None
                continue
            assert leaf is not None
            assert leaf.size <= largest
            assert leaf.hpa + probe - leaf.iova == want[0]
            assert (leaf.read, leaf.write) == ("r" in want[1], "w" in want[1])
    stage.release()
    assert memory.allocated == 0


@settings(deadline=None)
@given(operations)
def test_walker_translates_what_the_model_maps_and_faults_elsewhere(plan):
    memory = PhysicalMemory(16 << 20)
    stage, contexts, unit = SecondStage(memory), ContextTables(memory), VtdUnit(memory)
    contexts.attach(RID, 7, stage.root)
    unit.set_root_table(contexts.root)
    unit.enable_translation()
    model = Extents()
    for verb, (iova, length), shift, rights in plan:
        if verb == "unmap":
            model.unmap(iova, length)
            stage.unmap(iova, length)
            unit.invalidate_iotlb(domain_id=7, iova=iova, length=length)
        elif not model.overlaps(iova, length):
            hpa = (8 << 40) + (iova & (GIB - 1)) + shift
            stage.map(iova, hpa, length, read="r" in rights, write="w" in rights)
            model.map(iova, length, hpa, rights)
        for probe in probes(model):
            if not 0 <= probe < 1 << 48:
                continue
            want = model.lookup(probe)
            for write in (False, True):
                if want is None or ("w" if write else "r") not in want[1]:
                    with pytest.raises(IommuFault):
                        unit.translate_one(RID, probe, write)
                else:
                    assert unit.translate_one(RID, probe, write)[0] == want[0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=6), st.data()
)
def test_extents_cover_the_range_once_and_neighbours_are_merged(pieces, data):
    memory = PhysicalMemory(16 << 20)
    stage, contexts, unit = SecondStage(memory), ContextTables(memory), VtdUnit(memory)
    contexts.attach(RID, 1, stage.root)
    unit.set_root_table(contexts.root)
    unit.enable_translation()
    iova, flat = 0x40000000, []
    at = iova
    for frame, count in pieces:
        stage.map(at, memory.base + frame * PAGE, count * PAGE)
        flat += [memory.base + (frame + index) * PAGE for index in range(count)]
        at += count * PAGE
    start = data.draw(st.integers(iova, at - 1))
    length = data.draw(st.integers(1, at - start))
    extents = unit.translate(RID, start, length, write=True)
    want = [
        flat[(start + index - iova) // PAGE] + (start + index) % PAGE for index in range(length)
    ]
    got = [hpa + index for hpa, size in extents for index in range(size)]
    assert got == want
    assert all(one + size != other for (one, size), (other, _) in pairwise(extents))


@given(
    st.integers(1, 5),
    st.lists(
        st.one_of(
            st.tuples(st.just("insert"), st.integers(1, 3), st.integers(0, 9), st.booleans()),
            st.tuples(st.just("range"), st.integers(1, 3), st.integers(0, 9), st.booleans()),
            st.tuples(st.just("domain"), st.integers(1, 3), st.just(0), st.booleans()),
        ),
        max_size=40,
    ),
)
def test_iotlb_never_exceeds_its_capacity_and_evicts_the_oldest(capacity, plan):
    tlb = Iotlb(capacity)
    model: dict[tuple[int, bool, int], int] = {}  # insertion order is age
    evictions = 0
    for verb, domain, page, large in plan:
        size = MIB2 if large else PAGE
        iova = page * size
        if verb == "insert":
            key = (domain, large, page)
            if key not in model and len(model) == capacity:
                del model[next(iter(model))]
                evictions += 1
            model.pop(key, None)
            model[key] = iova + size
            tlb.insert(domain, iova, (0, iova + size, 3, size))
        elif verb == "range":
            tlb.invalidate_range(domain, iova, size)
            model = {
                (did, big, number): end
                for (did, big, number), end in model.items()
                if did != domain or end <= iova or end - (MIB2 if big else PAGE) >= iova + size
            }
        else:
            tlb.invalidate_domain(domain)
            model = {key: end for key, end in model.items() if key[0] != domain}
        assert len(tlb) == len(model) <= capacity
        held = {
            (did, large, key)
            for did in (1, 2, 3)
            for large, table in enumerate(tlb.domain(did))
            for key in table
        }
        assert held == {(did, int(big), number) for did, big, number in model}
    assert tlb.evictions == evictions
