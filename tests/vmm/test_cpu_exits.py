"""Why and how the interpreter leaves the guest, and goes on with the answer."""

from __future__ import annotations

import pytest
from cpu_rig import CODE, MAPPED, TRAPPED, Rig

from vfiokit.errors import UsageError
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.exit import Exit, ExitReason


def test_out_leaves_with_port_value_and_the_instruction_done() -> None:
    rig = Rig("mov ax, 0x1234; mov dx, 0x3f8; out dx, ax; hlt", 16)
    assert rig.run() == Exit(ExitReason.IO, 0x3F8, 2, write=True, value=0x1234)
    assert rig["rip"] == CODE + 7
    rig.until(ExitReason.HLT)


def test_in_takes_the_value_of_complete() -> None:
    rig = Rig("mov rax, -1; in al, 0x60; in eax, 0x61; hlt")
    assert rig.run() == Exit(ExitReason.IO, 0x60, 1)
    rig.cpu.complete(0x142)
    assert rig.run() == Exit(ExitReason.IO, 0x61, 4)
    assert rig["rax"] == 0xFFFFFFFF_FFFFFF42
    rig.cpu.complete(0x8000_0001)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 0x8000_0001


def test_a_mapped_register_is_read_and_written_without_an_exit() -> None:
    rig = Rig(f"mov rbx, {MAPPED:#x}; mov eax, [rbx+4]; mov [rbx+8], rax; hlt")
    rig.bus.values[MAPPED + 4] = 77
    rig.until(ExitReason.HLT)
    assert rig.bus.accesses == [("read", MAPPED + 4, 4, 77), ("write", MAPPED + 8, 8, 77)]


def test_a_trapped_load_is_finished_by_complete() -> None:
    rig = Rig(f"mov rbx, {TRAPPED:#x}; movzx eax, word ptr [rbx+2]; hlt")
    assert rig.run() == Exit(ExitReason.MMIO, TRAPPED + 2, 2)
    rig.cpu.complete(0xABCD)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 0xABCD


def test_a_trapped_store_happens_once_and_is_finished_by_the_next_run() -> None:
    rig = Rig(f"mov rbx, {TRAPPED:#x}; mov dword ptr [rbx], 5; mov al, 1; hlt")
    assert rig.run() == Exit(ExitReason.MMIO, TRAPPED, 4, write=True, value=5)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 1


def test_read_modify_write_of_a_trapped_register_is_two_exits() -> None:
    rig = Rig(f"mov rbx, {TRAPPED:#x}; add dword ptr [rbx], 5; setc al; hlt")
    assert rig.run() == Exit(ExitReason.MMIO, TRAPPED, 4)
    rig.cpu.complete(0xFFFF_FFFE)
    assert rig.run() == Exit(ExitReason.MMIO, TRAPPED, 4, write=True, value=3)
    rig.until(ExitReason.HLT)
    assert rig["al"] == 1


def test_a_copy_from_mapped_to_trapped_reads_the_register_once() -> None:
    rig = Rig(f"mov rsi, {MAPPED:#x}; mov rdi, {TRAPPED:#x}; mov ecx, 2; rep movsd; hlt")
    rig.bus.values = {MAPPED: 1, MAPPED + 4: 2}
    assert rig.run() == Exit(ExitReason.MMIO, TRAPPED, 4, write=True, value=1)
    assert rig.run() == Exit(ExitReason.MMIO, TRAPPED + 4, 4, write=True, value=2)
    rig.until(ExitReason.HLT)
    assert [each[1] for each in rig.bus.accesses] == [MAPPED, MAPPED + 4]
    assert (rig["rsi"], rig["rdi"], rig["rcx"]) == (MAPPED + 8, TRAPPED + 8, 0)


def test_a_push_from_a_trapped_register_moves_the_stack_once() -> None:
    rig = Rig(f"mov rbx, {TRAPPED:#x}; push qword ptr [rbx]; hlt")
    rig.until(ExitReason.MMIO)
    rig.cpu.complete(99)
    rig.until(ExitReason.HLT)
    assert rig["rsp"] == 0x8FF8
    assert rig.number(0x8FF8) == 99


@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_a_hypercall_has_number_and_arguments_and_gets_rax(instruction: str) -> None:
    rig = Rig(f"mov eax, 5; mov ebx, 1; mov ecx, 2; mov edx, 3; mov esi, 4; {instruction}; hlt")
    assert rig.run() == Exit(ExitReason.HYPERCALL, 5, arguments=(1, 2, 3, 4))
    rig.cpu.complete(2**64 - 22)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 2**64 - 22


def test_cpuid_gets_four_registers() -> None:
    rig = Rig("mov eax, 7; mov ecx, 1; cpuid; hlt")
    assert rig.run() == Exit(ExitReason.CPUID, 7, value=1)
    rig.cpu.complete(10, 11, 12, 13)
    rig.until(ExitReason.HLT)
    assert [rig[name] for name in ("rax", "rbx", "rcx", "rdx")] == [10, 11, 12, 13]


def test_unknown_msrs_go_outside_and_the_processors_own_stay() -> None:
    rig = Rig(
        "mov ecx, 0x1b0; rdmsr; mov ecx, 0x277; mov eax, 6; mov edx, 7; wrmsr;"
        "mov ecx, 0xc0000100; wrmsr; hlt"
    )
    assert rig.run() == Exit(ExitReason.RDMSR, 0x1B0, 8)
    rig.cpu.complete(0x1_0000_0002)
    assert rig.run() == Exit(ExitReason.WRMSR, 0x277, 8, write=True, value=0x7_0000_0006)
    rig.until(ExitReason.HLT)
    assert rig["fs.base"] == 0x7_0000_0006


def test_hlt_stays_until_an_interrupt() -> None:
    rig = Rig("hlt; nop")
    rig.until(ExitReason.HLT)
    rig.until(ExitReason.HLT)
    assert rig.cpu.instructions == 1


def test_the_budget_is_exact() -> None:
    rig = Rig("1: inc rax; add rbx, 2; dec rcx; jmp 1b")
    for budget in (1, 2, 3, 7, 100):
        before = rig.cpu.instructions
        rig.until(ExitReason.INTR, budget)
        assert rig.cpu.instructions - before == budget
    assert rig["rax"] == 29  # ⌈113 / 4⌉


def test_run_without_the_answer_fails_to_enter() -> None:
    rig = Rig("in al, 0x60; hlt")
    rig.until(ExitReason.IO)
    assert rig.run().reason is ExitReason.FAIL_ENTRY
    rig.cpu.complete(1)
    rig.until(ExitReason.HLT)


def test_wrong_answers_are_refused() -> None:
    rig = Rig("cpuid; hlt")
    with pytest.raises(UsageError, match="needs no answer"):
        rig.cpu.complete(1)
    rig.run()
    with pytest.raises(UsageError, match="4 value"):
        rig.cpu.complete(1)


def test_a_triple_fault_is_a_shutdown_that_stays() -> None:
    rig = Rig("ud2")
    leaving = rig.until(ExitReason.SHUTDOWN)
    assert "exception 6" in leaving.detail
    rig.until(ExitReason.SHUTDOWN)
    rig["rip"] = CODE
    rig.until(ExitReason.SHUTDOWN)


def test_instructions_are_not_fetched_from_devices() -> None:
    rig = Rig(f"mov rax, {MAPPED:#x}; jmp rax")
    leaving = rig.until(ExitReason.MMIO)
    assert leaving.address == MAPPED
    assert "fetched" in leaving.detail


def test_ins_and_outs_move_strings_through_ports() -> None:
    rig = Rig("mov edx, 0x1f0; mov edi, 0x5000; mov ecx, 2; rep insw; mov esi, 0x5000;"
              "mov ecx, 2; rep outsw; hlt")  # fmt: skip
    for value in (0x1111, 0x2222):
        assert rig.run() == Exit(ExitReason.IO, 0x1F0, 2)
        rig.cpu.complete(value)
    for value in (0x1111, 0x2222):
        assert rig.run() == Exit(ExitReason.IO, 0x1F0, 2, write=True, value=value)
    rig.until(ExitReason.HLT)
    assert rig.number(0x5000, 4) == 0x2222_1111


def test_unknown_registers_are_a_key_error() -> None:
    cpu = Rig("hlt").cpu
    for name in ("rxx", "cs.size", "st0", ""):
        with pytest.raises(KeyError):
            cpu.read_register(name)
        with pytest.raises(KeyError):
            cpu.write_register(name, 0)


def test_parts_of_registers_are_read_and_written() -> None:
    rig = Rig("hlt")
    rig["rax"] = 0x1122_3344_5566_7788
    assert (rig["eax"], rig["ax"], rig["al"], rig["ah"]) == (0x5566_7788, 0x7788, 0x88, 0x77)
    rig["ah"] = 0xEE
    assert rig["rax"] == 0x1122_3344_5566_EE88
    rig["eax"] = 1
    assert rig["rax"] == 1
    rig["r9b"] = 0x1FF
    assert rig["r9"] == 0xFF


def test_memory_has_to_be_whole_pages_that_do_not_overlap() -> None:
    page = memoryview(bytearray(4096))
    bus = Rig("hlt").bus
    for ranges in (
        [(1, page)],
        [(0, page[:100])],
        [(0, page), (0, page)],
        [(0, page.toreadonly())],
    ):
        with pytest.raises(UsageError):
            Interpreter(ranges, bus)


@pytest.mark.parametrize(
    ("text", "rounds", "count"),
    [
        ("mov ecx, 3; 1: inc eax; test edx, edx; loope 1b; setae bl; hlt", 3, 0),
        ("mov ecx, 3; 1: inc eax; test edx, edx; loopne 1b; setae bl; hlt", 1, 2),
        ("mov ecx, 3; 1: inc eax; cmp eax, 2; loopne 1b; setae bl; hlt", 2, 1),
        ("mov ecx, 3; 1: inc eax; loop 1b; setae bl; hlt", 3, 0),
    ],
)
def test_loops_count_down_and_leave_the_flags(text: str, rounds: int, count: int) -> None:
    rig = Rig(text)
    rig.until(ExitReason.HLT)
    assert (rig["rax"], rig["rcx"], rig["bl"]) == (rounds, count, 1)
