"""The VT-d unit: every fault by name, caches that stay stale until invalidated."""

from __future__ import annotations

import pytest

from vfiokit.errors import MachineError
from vfiokit.machine.iommu.fault import FaultReason, IommuFault
from vfiokit.machine.iommu.iotlb import Iotlb
from vfiokit.machine.iommu.remap import MSI_BASE, Interrupt, SourceValidation
from vfiokit.machine.iommu.tables import ContextTables, SecondStage
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.memory import PhysicalMemory

RID = 0x0500  # 05:00.0
DID = 42
PAGE, MIB2, GIB = 4096, 1 << 21, 1 << 30
RAM = 64 << 20


class Setup:
    def __init__(self, **unit) -> None:
        self.memory = PhysicalMemory(RAM)
        self.unit = VtdUnit(self.memory, **unit)
        self.stage = SecondStage(self.memory)
        self.contexts = ContextTables(self.memory)
        self.contexts.attach(RID, DID, self.stage.root)
        self.unit.set_root_table(self.contexts.root)
        self.unit.enable_translation()
        self.frame = self.memory.allocate(16 * PAGE)

    def fault(self, iova: int = 0x1000, *, write: bool = False, rid: int = RID) -> FaultReason:
        with pytest.raises(IommuFault) as caught:
            self.unit.translate_one(rid, iova, write)
        assert caught.value.record.requester_id == rid
        return caught.value.record.reason

    def pte(self, iova: int, level: int) -> int:
        """hpa of the entry that translates ``iova`` at a level, 4 the topmost."""
        table = self.stage.root
        for at in range(4, level, -1):
            table = self.memory.read64(table + 8 * (iova >> 12 + 9 * (at - 1) & 511)) & ~0xFFF
        return table + 8 * (iova >> 12 + 9 * (level - 1) & 511)


@pytest.fixture
def setup() -> Setup:
    return Setup()


# -- translation ------------------------------------------------------------------------------


def test_disabled_unit_passes_everything():
    setup = Setup()
    setup.unit.disable_translation()
    assert setup.unit.translate(0x1234, 0xABC000, 0x5000, write=True) == [(0xABC000, 0x5000)]
    assert not setup.unit.faults.records


def test_pass_through_context_translates_nothing_and_caches_nothing(setup):
    setup.contexts.attach(RID, DID, None)
    hpa, room = setup.unit.translate_one(RID, 1 << 50, write=True)
    assert hpa == 1 << 50
    assert room > 1 << 40
    assert len(setup.unit.iotlb) == 0


@pytest.mark.parametrize(
    ("iova", "length", "size"),
    [(0x40000000, GIB, GIB), (0x40000000, MIB2, MIB2), (0x40001000, PAGE, PAGE)],
)
def test_leaf_size_tells_how_far_the_translation_holds(setup, iova, length, size):
    setup.stage.map(iova, 0x200000000 + (iova & (size - 1)), length)
    hpa, room = setup.unit.translate_one(RID, iova + 0x10, write=False)
    assert (hpa - 0x10) % size == (iova & (size - 1))
    assert room == iova + size - (iova + 0x10)


def test_extents_of_a_range_are_merged_over_leaves(setup):
    setup.stage.map(0x1000, setup.frame, 3 * PAGE)
    setup.stage.map(0x4000, setup.frame + 8 * PAGE, PAGE)
    assert setup.unit.translate(RID, 0x1800, 3 * PAGE, write=True) == [
        (setup.frame + 0x800, 0x2800),
        (setup.frame + 8 * PAGE, 0x800),
    ]


def test_fault_in_the_middle_carries_what_came_before(setup):
    setup.stage.map(0x1000, setup.frame, 2 * PAGE)
    with pytest.raises(IommuFault) as caught:
        setup.unit.translate(RID, 0x1800, 0x4000, write=True)
    assert caught.value.record.iova == 0x3000
    assert caught.value.extents == [(setup.frame + 0x800, 0x1800)]


def test_requesters_of_one_domain_share_its_iotlb_entries(setup):
    setup.contexts.attach(0x0600, DID, setup.stage.root)
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.unit.translate_one(0x0600, 0x1000, write=False)
    assert (setup.unit.iotlb.hits, setup.unit.iotlb.misses, setup.unit.walks) == (1, 1, 1)


# -- every DMA fault --------------------------------------------------------------------------


def no_root_entry(setup):
    return setup.fault(rid=0x7700)


def no_context_entry(setup):
    return setup.fault(rid=RID + 1)


def invalid_type(setup):
    setup.memory.write64(setup.contexts.entry(RID), 1 | 3 << 2 | setup.stage.root)
    return setup.fault()


def invalid_width(setup):
    setup.memory.write64(setup.contexts.entry(RID) + 8, DID << 8 | 1)
    return setup.fault()


def beyond_width(setup):
    return setup.fault(1 << 48)


def unmapped_write(setup):
    return setup.fault(write=True)


def read_only_write(setup):
    setup.stage.map(0x1000, setup.frame, PAGE, write=False)
    setup.unit.translate_one(RID, 0x1000, False)
    return setup.fault(write=True)


def unmapped_read(setup):
    return setup.fault()


def write_only_read(setup):
    setup.stage.map(0x1000, setup.frame, PAGE, read=False)
    setup.unit.translate_one(RID, 0x1000, True)
    return setup.fault()


def write_taken_away_above_the_leaf(setup):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.memory.write64(setup.pte(0x1000, 3), setup.memory.read64(setup.pte(0x1000, 3)) & ~2)
    return setup.fault(write=True)


def table_outside_memory(setup):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.memory.write64(setup.pte(0x1000, 4), 0x1000 | 3)
    return setup.fault()


def root_outside_memory(setup):
    setup.unit.set_root_table(0x1000)
    return setup.fault()


def context_table_outside_memory(setup):
    setup.memory.write64(setup.contexts.root + 16 * (RID >> 8), 0x1000 | 1)
    return setup.fault()


def reserved_in_root_entry(setup):
    at = setup.contexts.root + 16 * (RID >> 8)
    setup.memory.write64(at, setup.memory.read64(at) | 0x10)
    return setup.fault()


def reserved_in_context_entry(setup):
    at = setup.contexts.entry(RID)
    setup.memory.write64(at, setup.memory.read64(at) | 0x100)
    return setup.fault()


def misaligned_superpage(setup):
    setup.stage.map(0, 0x200000000, MIB2)
    setup.memory.write64(setup.pte(0, 2), setup.memory.read64(setup.pte(0, 2)) | 0x1000)
    return setup.fault()


def superpage_at_the_top(setup):
    setup.memory.write64(setup.pte(0, 4), 0x83)
    return setup.fault()


def translated_without_ats(setup):
    with pytest.raises(IommuFault) as caught:
        setup.unit.check_translated(RID, setup.frame, write=True)
    return caught.value.record.reason


@pytest.mark.parametrize(
    ("inject", "code", "text"),
    [
        (no_root_entry, 0x01, "Present bit in root entry is clear"),
        (no_context_entry, 0x02, "Present bit in context entry is clear"),
        (invalid_type, 0x03, "Invalid context entry"),
        (invalid_width, 0x03, "Invalid context entry"),
        (beyond_width, 0x04, "Access beyond MGAW"),
        (unmapped_write, 0x05, "PTE Write access is not set"),
        (read_only_write, 0x05, "PTE Write access is not set"),
        (write_taken_away_above_the_leaf, 0x05, "PTE Write access is not set"),
        (unmapped_read, 0x06, "PTE Read access is not set"),
        (write_only_read, 0x06, "PTE Read access is not set"),
        (table_outside_memory, 0x07, "Next page table ptr is invalid"),
        (root_outside_memory, 0x08, "Root table address invalid"),
        (context_table_outside_memory, 0x09, "Context table ptr is invalid"),
        (reserved_in_root_entry, 0x0A, "non-zero reserved fields in RTP"),
        (reserved_in_context_entry, 0x0B, "non-zero reserved fields in CTP"),
        (misaligned_superpage, 0x0C, "non-zero reserved fields in PTE"),
        (superpage_at_the_top, 0x0C, "non-zero reserved fields in PTE"),
        (translated_without_ats, 0x0D, "PCE for translation request specifies blocking"),
    ],
)
def test_every_dma_fault_is_recorded_by_its_code(setup, inject, code, text):
    assert inject(setup) == code
    (record,) = setup.unit.faults.records
    assert record.reason == code
    assert str(record).endswith(f"[fault reason {code:#04x}] {text}")


def test_fault_text_is_the_line_linux_prints(setup):
    setup.fault(0xDEAD128, write=True)
    assert str(setup.unit.faults.records[0]) == (
        "DMAR: [DMA Write NO_PASID] Request device [0000:05:00.0] fault addr 0xdead000 "
        "[fault reason 0x05] PTE Write access is not set"
    )


def test_every_reason_has_a_text():
    setup = Setup()
    for reason in FaultReason:
        record = setup.unit.faults
        assert record is not None
        from vfiokit.machine.iommu.fault import FaultRecord

        assert f"[fault reason {reason:#04x}]" in str(FaultRecord(RID, 0, True, reason))


def test_fault_processing_disable_refuses_in_silence(setup):
    setup.contexts.attach(RID, DID, setup.stage.root, fault_processing=False)
    assert setup.fault() is FaultReason.READ_NOT_PERMITTED
    assert setup.unit.faults.total == 0


def test_full_fault_log_keeps_the_oldest_and_flags_the_overflow():
    setup = Setup(fault_capacity=2)
    told = []
    setup.unit.faults.on_fault = told.append
    for page in range(4):
        setup.fault(page * PAGE)
    log = setup.unit.faults
    assert ([record.iova for record in log.records], log.overflow) == ([0, PAGE], True)
    assert (log.total, len(told), len(log)) == (4, 4, 2)
    assert len(log.drain()) == 2
    assert (len(log), log.overflow) == (0, False)


# -- staleness --------------------------------------------------------------------------------


def test_missing_iotlb_invalidation_leaves_the_old_translation_in_use(setup):
    setup.stage.map(0x1000, setup.frame, PAGE)
    assert setup.unit.translate_one(RID, 0x1000, write=True) == (setup.frame, PAGE)
    setup.stage.unmap(0x1000, PAGE)
    setup.stage.map(0x1000, setup.frame + PAGE, PAGE)
    assert setup.unit.translate_one(RID, 0x1000, write=True) == (setup.frame, PAGE)
    setup.unit.invalidate_iotlb(domain_id=DID, iova=0x1000, length=PAGE)
    assert setup.unit.translate_one(RID, 0x1000, write=True) == (setup.frame + PAGE, PAGE)


@pytest.mark.parametrize("scope", [{}, {"domain_id": DID}, {"domain_id": DID, "iova": 0x1000}])
def test_every_granularity_removes_the_entry(setup, scope):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.stage.unmap(0x1000, PAGE)
    setup.unit.invalidate_iotlb(**scope)
    assert setup.fault(0x1000) is FaultReason.READ_NOT_PERMITTED


@pytest.mark.parametrize(
    "scope", [{"domain_id": DID + 1}, {"domain_id": DID, "iova": 0x2000, "length": PAGE}]
)
def test_invalidation_of_something_else_leaves_the_entry(setup, scope):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.stage.unmap(0x1000, PAGE)
    setup.unit.invalidate_iotlb(**scope)
    assert setup.unit.translate_one(RID, 0x1000, write=False) == (setup.frame, PAGE)


def test_page_invalidation_inside_a_superpage_drops_all_of_it(setup):
    setup.stage.map(GIB, 0x200000000 & -GIB, GIB)
    for offset in (0, 5 * MIB2, 500 * MIB2):
        setup.unit.translate_one(RID, GIB + offset, write=False)
    assert len(setup.unit.iotlb) == 3
    setup.unit.invalidate_iotlb(domain_id=DID, iova=GIB + 77 * PAGE, length=PAGE)
    assert len(setup.unit.iotlb) == 0


def test_missing_context_invalidation_keeps_the_old_domain(setup):
    other = SecondStage(setup.memory)
    setup.stage.map(0x1000, setup.frame, PAGE)
    other.map(0x1000, setup.frame + PAGE, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.contexts.attach(RID, DID + 1, other.root)
    assert setup.unit.translate_one(RID, 0x1000, write=False)[0] == setup.frame
    setup.unit.invalidate_context(requester_id=RID + 1)
    assert setup.unit.translate_one(RID, 0x1000, write=False)[0] == setup.frame
    setup.unit.invalidate_context(requester_id=RID)
    assert setup.unit.translate_one(RID, 0x1000, write=False)[0] == setup.frame + PAGE


@pytest.mark.parametrize("scope", [{}, {"domain_id": DID}, {"requester_id": RID}])
def test_detached_requester_faults_after_context_invalidation(setup, scope):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.contexts.detach(RID)
    setup.unit.invalidate_context(**scope)
    assert setup.fault() is FaultReason.CONTEXT_ENTRY_NOT_PRESENT


def test_entries_survive_disabling_and_enabling_translation(setup):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.stage.unmap(0x1000, PAGE)
    setup.unit.disable_translation()
    assert setup.unit.translate_one(RID, 0x1000, write=False)[0] == 0x1000
    setup.unit.enable_translation()
    assert setup.unit.translate_one(RID, 0x1000, write=False)[0] == setup.frame


def test_permission_added_later_is_found_by_a_new_walk(setup):
    """A cached entry that forbids the access is walked again, never trusted to refuse."""
    setup.stage.map(0x1000, setup.frame, PAGE, write=False)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.memory.write64(setup.pte(0x1000, 1), setup.frame | 3)
    assert setup.unit.translate_one(RID, 0x1000, write=True)[0] == setup.frame


def test_small_iotlb_evicts_and_counts():
    setup = Setup(iotlb_capacity=4)
    setup.stage.map(0, setup.frame, 8 * PAGE)
    for _round in range(2):
        for page in range(8):
            setup.unit.translate_one(RID, page * PAGE, write=False)
    tlb = setup.unit.iotlb
    assert (len(tlb), tlb.hits, tlb.misses, tlb.evictions) == (4, 0, 16, 12)
    for page in range(4, 8):
        setup.unit.translate_one(RID, page * PAGE, write=False)
    assert tlb.hits == 4


def test_iotlb_of_no_entries_is_refused():
    with pytest.raises(MachineError):
        Iotlb(0)


def test_reset_forgets_everything(setup):
    setup.stage.map(0x1000, setup.frame, PAGE)
    setup.unit.translate_one(RID, 0x1000, write=False)
    setup.unit.reset()
    assert (setup.unit.enabled, len(setup.unit.iotlb), setup.unit.root_table) == (False, 0, 0)
    setup.unit.enable_translation()
    assert setup.fault() is FaultReason.ROOT_TABLE_INVALID


# -- tables -----------------------------------------------------------------------------------


def test_unmapping_part_of_a_superpage_splits_it(setup):
    setup.stage.map(0, 0x200000000 & -GIB, GIB)
    assert setup.stage.table_count == 2
    assert setup.stage.unmap(5 * MIB2 + 3 * PAGE, PAGE) == PAGE
    assert setup.stage.table_count == 4
    sizes = [leaf.size for leaf in setup.stage.leaves()]
    assert (sizes.count(MIB2), sizes.count(PAGE)) == (511, 511)
    assert setup.stage.unmap(0, GIB) == GIB - PAGE
    assert setup.stage.table_count == 1


def test_running_out_of_table_memory_leaves_nothing_mapped():
    memory = PhysicalMemory(4 * PAGE)
    stage = SecondStage(memory)
    memory.allocate(PAGE)
    with pytest.raises(MachineError, match="free bytes"):
        stage.map(0x1000, 0x5000, PAGE)
    assert list(stage.leaves()) == []
    assert stage.table_count == 1


@pytest.mark.parametrize(
    ("iova", "hpa", "length"),
    [(1, 0, PAGE), (0, 1, PAGE), (0, 0, 100), (0, 0, 0), ((1 << 48) - PAGE, 0, 2 * PAGE)],
)
def test_impossible_mapping_is_refused(setup, iova, hpa, length):
    with pytest.raises(MachineError):
        setup.stage.map(iova, hpa, length)


def test_mapping_without_permissions_is_refused(setup):
    with pytest.raises(MachineError, match="reads, writes or both"):
        setup.stage.map(0, 0, PAGE, read=False, write=False)
    with pytest.raises(MachineError, match="4 KiB, 2 MiB or 1 GiB"):
        SecondStage(setup.memory, largest_leaf=12345)
    with pytest.raises(MachineError, match="16 bits"):
        setup.contexts.attach(RID, 1 << 16, None)


def test_released_tables_give_all_memory_back():
    memory = PhysicalMemory(RAM)
    stage, contexts = SecondStage(memory), ContextTables(memory)
    stage.map(0, 0x100000, 600 * PAGE)
    for bus in (0, 3, 255):
        contexts.attach(bus << 8, 1, stage.root)
    stage.release()
    contexts.release()
    assert memory.allocated == 0


# -- interrupt remapping ----------------------------------------------------------------------


class Remapping(Setup):
    def __init__(self) -> None:
        super().__init__()
        self.table = self.memory.allocate(PAGE)
        self.remapper = self.unit.remapper
        self.remapper.set_table(self.table, 256)
        self.remapper.enabled = True
        self.remapper.set_entry(5, 0x41, 3, source_id=RID)

    def send(self, index: int, *, rid: int = RID, data: int = 0, subhandle: bool = False):
        address = MSI_BASE | 0x10 | (8 if subhandle else 0) | (index & 0x7FFF) << 5
        return self.remapper.remap(rid, address | index >> 13 & 4, data)

    def reason(self, *args, **kwargs) -> int:
        with pytest.raises(IommuFault) as caught:
            self.send(*args, **kwargs)
        assert self.unit.faults.records[-1] == caught.value.record
        return caught.value.record.reason


@pytest.fixture
def remapping() -> Remapping:
    return Remapping()


def test_remappable_message_becomes_what_the_entry_says(remapping):
    assert remapping.send(5) == Interrupt(3, 0x41)
    assert remapping.send(2, data=3, subhandle=True) == Interrupt(3, 0x41)
    assert remapping.remapper.remapped == 2


def test_handle_bit_15_lies_apart_from_the_rest():
    remapping = Remapping()
    big = remapping.memory.allocate(65536 * 16)
    remapping.remapper.set_table(big, 65536)
    remapping.remapper.set_entry(0x8005, 0x77, 1, source_id=RID)
    assert remapping.send(0x8005) == Interrupt(1, 0x77)


def test_every_interrupt_fault_is_recorded_by_its_code(remapping):
    assert remapping.reason(5, data=0x10000, subhandle=True) == 0x20
    assert remapping.reason(256) == 0x21
    assert remapping.reason(255, data=1, subhandle=True) == 0x21
    assert remapping.reason(6) == 0x22
    assert remapping.reason(5, rid=0x0600) == 0x26
    remapping.memory.write64(remapping.table + 7 * 16, 1 | 1 << 12)
    assert remapping.reason(7) == 0x24
    remapping.remapper.set_table(0x1000, 256)
    assert remapping.reason(5) == 0x23
    with pytest.raises(IommuFault):
        remapping.remapper.remap(RID, MSI_BASE, 0x41)
    assert remapping.unit.faults.records[-1].reason == 0x25


def test_fault_text_of_an_interrupt_is_the_line_linux_prints(remapping):
    remapping.reason(5, rid=0x0608)
    assert str(remapping.unit.faults.records[-1]) == (
        "DMAR: [INTR-REMAP] Request device [0000:06:01.0] fault index 0x5 [fault reason 0x26] "
        "Blocked an interrupt request due to source-id verification failure"
    )


def test_compatibility_format_passes_where_it_is_allowed(remapping):
    remapping.remapper.allow_compatibility = True
    assert remapping.remapper.remap(RID, MSI_BASE | 9 << 12, 0x141) == Interrupt(9, 0x41, 1)


@pytest.mark.parametrize(
    ("qualifier", "accepted"),
    [(0, {0}), (1, {0, 4}), (2, {0, 2, 4, 6}), (3, set(range(8)))],
)
def test_source_qualifier_ignores_function_bits(remapping, qualifier, accepted):
    remapping.remapper.set_entry(9, 0x50, 0, source_id=RID, source_qualifier=qualifier)
    passed = set()
    for function in range(8):
        try:
            remapping.send(9, rid=RID + function)
            passed.add(function)
        except IommuFault:
            pass
    assert passed == accepted


def test_source_may_be_a_range_of_buses_or_anyone(remapping):
    remapping.remapper.set_entry(
        10, 0x51, 0, source_id=0x0508, validation=SourceValidation.BUS_RANGE
    )
    assert remapping.send(10, rid=0x08FF).vector == 0x51
    assert remapping.reason(10, rid=0x0900) == 0x26
    remapping.remapper.set_entry(11, 0x52, 0, validation=SourceValidation.NONE)
    assert remapping.send(11, rid=0xFFFF).vector == 0x52


def test_missing_entry_invalidation_leaves_the_old_interrupt_in_use(remapping):
    remapping.send(5)
    remapping.remapper.clear_entry(5)
    assert remapping.send(5) == Interrupt(3, 0x41)
    remapping.remapper.invalidate(5)
    assert remapping.reason(5) == 0x22


def test_impossible_table_is_refused(remapping):
    for count in (0, 1, 3, 1 << 17):
        with pytest.raises(MachineError):
            remapping.remapper.set_table(remapping.table, count)
    with pytest.raises(MachineError):
        remapping.remapper.set_entry(256, 0x41, 0)
