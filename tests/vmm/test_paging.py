"""Guest page tables and the second stage, by themselves and under the processor."""

from __future__ import annotations

import pytest
from cpu_rig import CODE, RAM, TABLES, Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.vmm import ept as second
from vfiokit.vmm import paging
from vfiokit.vmm.cpu.ram import Ram
from vfiokit.vmm.ept import Ept, EptViolation
from vfiokit.vmm.exit import ExitReason
from vfiokit.vmm.paging import (
    FETCH,
    FIVE_LEVEL,
    FORMATS,
    FOUR_LEVEL,
    NO_EXECUTE,
    PAE,
    READ,
    TWO_LEVEL,
    USER,
    WRITABLE,
    WRITE,
    PageFault,
    PageTables,
    Rights,
    TableBuilder,
    walk,
)

SIZES = {
    TWO_LEVEL: (4096, 1 << 22),
    PAE: (4096, 1 << 21),
    FOUR_LEVEL: (4096, 1 << 21, 1 << 30),
    FIVE_LEVEL: (4096, 1 << 21, 1 << 30),
}


def memory() -> tuple[memoryview, Ram]:
    view = memoryview(bytearray(1 << 20))
    return view, Ram([(0, view)])


@pytest.mark.parametrize("tables", FORMATS, ids=lambda each: each.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_was_mapped_is_found_and_nothing_else(tables: PageTables, data: st.DataObject) -> None:
    view, ram = memory()
    builder = TableBuilder(view, 0x1000, tables)
    bits = 32 if tables in (TWO_LEVEL, PAE) else tables.shifts[0] + 9
    size = data.draw(st.sampled_from(SIZES[tables]))
    top = 32 if tables is TWO_LEVEL else 40
    vaddr = data.draw(st.integers(0, (1 << bits) // size - 1)) * size
    gpa = data.draw(st.integers(0, (1 << top) // size - 1)) * size
    builder.map(vaddr, gpa, size)
    offset = data.draw(st.integers(0, size - 1))
    found = walk(ram, tables, builder.root, vaddr + offset)
    assert (found.gpa, found.page_size) == (gpa + offset, size)
    other = data.draw(st.integers(0, (1 << bits) - 1))
    if not vaddr <= other < vaddr + size:
        with pytest.raises(PageFault) as caught:
            walk(ram, tables, builder.root, other, WRITE)
        assert (caught.value.vaddr, caught.value.error_code) == (other, WRITE)


def fault(rights: int, access: int, **bits: bool) -> int | None:
    """Error code of an access to a page with these rights; ``None`` when it is permitted."""
    view, ram = memory()
    builder = TableBuilder(view, 0x1000)
    builder.map(0x5000, 0x6000, rights=rights)
    try:
        walk(ram, FOUR_LEVEL, builder.root, 0x5123, access, Rights(**bits))
    except PageFault as caught:
        return caught.error_code
    return None


def test_rights_are_those_of_the_manual() -> None:
    user = paging.FAULT_USER
    assert fault(WRITABLE | USER, WRITE | user) is None
    assert fault(WRITABLE, READ) is None
    assert fault(WRITABLE, READ | user) == 5
    assert fault(USER, WRITE | user) == 7
    assert fault(USER, WRITE) == 3
    assert fault(USER, WRITE, write_protect=False) is None
    assert fault(USER, WRITE | user, write_protect=False) == 7
    assert fault(WRITABLE | NO_EXECUTE, FETCH) == 0x11
    assert fault(WRITABLE | NO_EXECUTE, READ) is None
    assert fault(WRITABLE | NO_EXECUTE, READ, no_execute=False) == 9
    assert fault(USER, FETCH, smep=True) == 0x11
    assert fault(USER, FETCH | user, smep=True) is None


def test_a_right_missing_at_any_level_is_missing() -> None:
    for level in range(3):
        view, ram = memory()
        builder = TableBuilder(view, 0x1000)
        builder.map(0x5000, 0x6000)
        slot = 0x1000 * (level + 1)
        view[slot] &= ~WRITABLE & 0xFF
        with pytest.raises(PageFault) as caught:
            walk(ram, FOUR_LEVEL, builder.root, 0x5000, WRITE)
        assert caught.value.error_code == 3


def test_accessed_and_dirty_are_set_where_they_belong() -> None:
    view, ram = memory()
    builder = TableBuilder(view, 0x1000)
    builder.map(0x5000, 0x6000)
    leaf = 0x4000 + 5 * 8
    walk(ram, FOUR_LEVEL, builder.root, 0x5000)
    assert [view[slot] & 0x60 for slot in (0x1000, 0x2000, 0x3000, leaf)] == [0x20] * 4
    walk(ram, FOUR_LEVEL, builder.root, 0x5000, WRITE)
    assert [view[slot] & 0x60 for slot in (0x1000, 0x2000, 0x3000, leaf)] == [0x20] * 3 + [0x60]


def test_a_refused_access_sets_no_flag() -> None:
    view, ram = memory()
    builder = TableBuilder(view, 0x1000)
    builder.map(0x5000, 0x6000, rights=0)
    with pytest.raises(PageFault):
        walk(ram, FOUR_LEVEL, builder.root, 0x5000, WRITE)
    assert not view[0x4000 + 5 * 8] & 0x60


def test_reserved_bits_fault() -> None:
    view, ram = memory()
    builder = TableBuilder(view, 0x1000)
    builder.map(0, 0, 1 << 21)
    view[0x3000 + 2] |= 1  # bit 16 of a 2 MiB page
    with pytest.raises(PageFault) as caught:
        walk(ram, FOUR_LEVEL, builder.root, 0)
    assert caught.value.error_code == 9


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 7)), max_size=20), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_second_stage_permits_what_was_set_last(
    changes: list[tuple[int, int]], levels: int
) -> None:
    ept = Ept(levels)
    large = 1 << 21 if levels > 1 else 4096
    ept.map(0, 1 << 30, 1 << 21, page_size=large)
    expected = dict.fromkeys(range(64), second.ALL)
    for page, permissions in changes:
        ept.protect(page * 4096, 4096, permissions)
        expected[page] = permissions
    for page, permissions in expected.items():
        for access in (second.READ, second.WRITE, second.EXECUTE):
            if permissions & access:
                assert ept.translate(page * 4096 + 5, access)[0] == (1 << 30) + page * 4096 + 5
            else:
                with pytest.raises(EptViolation, match=f"gpa {page * 4096 + 5:#x}"):
                    ept.translate(page * 4096 + 5, access)


def test_the_second_stage_refuses_what_it_cannot_map() -> None:
    for levels in (0, 6):
        with pytest.raises(UsageError):
            Ept(levels)
    ept = Ept(2)
    with pytest.raises(UsageError, match="pages of 0x40000000"):
        ept.map(0, 0, 1 << 30, page_size=1 << 30)
    with pytest.raises(UsageError, match="cannot be mapped"):
        ept.map(1 << 30, 0, 4096)
    with pytest.raises(UsageError, match="not mapped"):
        ept.protect(0, 4096, 0)
    with pytest.raises(EptViolation, match="not mapped"):
        ept.translate(0, second.READ)
    ept.map(0, 0x7000, 0x2000)
    ept.unmap(0x1000, 0x1000)
    assert ept.translate(0xFFF, second.READ) == (0x7FFF, 4096)
    with pytest.raises(EptViolation):
        ept.translate(0x1000, second.READ)


# -- under the processor ------------------------------------------------------------------------


def with_ept(text: str) -> tuple[Rig, Ept]:
    ept = Ept()
    ept.map(0, 0, RAM)
    return Rig(text, ept=ept), ept


def test_clearing_write_traps_stores_only() -> None:
    rig, ept = with_ept("mov rax, [0x5000]; mov qword ptr [0x5008], 9; mov ebx, 1; hlt")
    ept.protect(0x5000, 0x1000, second.READ)
    leaving = rig.until(ExitReason.MMIO)
    assert (leaving.address, leaving.write, leaving.width, leaving.value) == (0x5008, True, 8, 9)
    assert "write of gpa 0x5008, which is mapped r--" in leaving.detail
    rig.until(ExitReason.HLT)  # the hypervisor chose to swallow the store
    assert rig["rbx"] == 1
    assert rig.number(0x5008) == 0


def test_clearing_read_traps_loads_which_the_hypervisor_answers() -> None:
    rig, ept = with_ept("mov eax, [0x5004]; hlt")
    ept.protect(0x5000, 0x1000, 0)
    leaving = rig.until(ExitReason.MMIO)
    assert (leaving.address, leaving.write, leaving.width) == (0x5004, False, 4)
    rig.cpu.complete(0x1234)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 0x1234


def test_clearing_execute_traps_the_fetch_and_retries_after_repair() -> None:
    rig, ept = with_ept("mov eax, 1; hlt")
    ept.protect(CODE, 0x1000, second.READ | second.WRITE)
    leaving = rig.until(ExitReason.MMIO)
    assert "execute of gpa 0x1000" in leaving.detail
    ept.protect(CODE, 0x1000, second.ALL)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 1


def test_a_change_of_the_second_stage_is_seen_by_the_next_run() -> None:
    rig, ept = with_ept("mov ecx, 2; 1: mov [0x5000], rcx; out 0x10, al; dec ecx; jnz 1b; hlt")
    rig.until(ExitReason.IO)
    ept.protect(0x5000, 0x1000, second.READ)
    rig.until(ExitReason.MMIO)
    ept.protect(0x5000, 0x1000, second.ALL)
    rig.cpu.retry()
    rig.until(ExitReason.IO)
    rig.until(ExitReason.HLT)
    assert rig.number(0x5000) == 1


def test_a_walk_through_page_tables_the_second_stage_hides_traps() -> None:
    rig, ept = with_ept("mov rax, [0x5000]; hlt")
    ept.protect(TABLES + 4096, 4096, 0)
    leaving = rig.until(ExitReason.MMIO)
    assert "page tables" in leaving.detail
    ept.protect(TABLES + 4096, 4096, second.ALL)
    rig.until(ExitReason.HLT)


def test_the_guest_sees_the_host_page_the_second_stage_names() -> None:
    rig, ept = with_ept("mov rax, [0x5000]; hlt")
    rig.store(0x8000, 77)
    ept.map(0x5000, 0x8000, 0x1000)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 77


def test_a_stale_translation_lives_until_it_is_invalidated() -> None:
    text = """
        mov rax, [0x205000]
        mov qword ptr [{entry}], 0x83
        mov rbx, [0x205000]
        invlpg [0x205000]
        mov rcx, [0x205000]
        hlt
    """
    rig = Rig("hlt")
    directory = TABLES + 4096 * 3
    rig = Rig(text.format(entry=f"{directory + 8:#x}"))
    rig.store(directory + 8, 0x20_0083)
    far = memoryview(bytearray(1 << 21))
    from vfiokit.vmm.boot import enter_long_mode
    from vfiokit.vmm.cpu import Interpreter

    cpu = Interpreter([(0, rig.view), (0x20_0000, far)], rig.bus)
    enter_long_mode(cpu, rig.view, CODE, tables=TABLES, stack=0x9000)
    far[0x5000] = 11
    rig.ram[0x5000] = 22
    assert cpu.run(100).reason is ExitReason.HLT
    assert [cpu.read_register(name) for name in ("rax", "rbx", "rcx")] == [11, 11, 22]


@pytest.mark.parametrize(("tables", "cr4"), [(TWO_LEVEL, 0x10), (PAE, 0x20)])
def test_32_bit_paging_translates(tables: PageTables, cr4: int) -> None:
    rig = Rig("mov eax, [0x7000]; mov [0x7004], eax; hlt", 32)
    builder = TableBuilder(rig.view, 0x18000, tables)
    builder.map(CODE, CODE)
    builder.map(0x7000, 0x6000)
    for name, value in {
        "efer": 0, "cr3": builder.root, "cr4": cr4, "cr0": 0x8000_0011, "cs.access": 0xC09B,
        "ss.access": 0xC093, "ds.base": 0, "cs.base": 0,
    }.items():  # fmt: skip
        rig[name] = value
    rig["rip"] = CODE
    rig.store(0x6000, 0x55AA, 4)
    rig.until(ExitReason.HLT)
    assert rig.number(0x6004, 4) == 0x55AA
