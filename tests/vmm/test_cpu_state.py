"""A processor saved between any two runs and loaded into another goes on as if nothing was."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from cpu_rig import CODE, MAPPED, TRAPPED, RecordingBus, Rig
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_source import DATA, REGISTERS, Generator

from vfiokit.errors import UsageError
from vfiokit.vmm.boot import enter_long_mode
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.exit import ExitReason

PROGRAM = f"""
        mov rbx, {MAPPED:#x}
        mov rsi, {TRAPPED:#x}
        mov ecx, 6
        sti
again:  add dword ptr [rbx], 3
        add dword ptr [rsi], 5
        adc r8, rcx
        in al, 0x10
        out 0x11, eax
        mov rdi, 0x5000
        push rcx
        mov ecx, 4
        rep movsb
        pop rcx
        mov rsi, {TRAPPED:#x}
        sub r9, rax
        dec ecx
        jnz again
        hlt
        .quad 0x1122334455667788
        inc r15
        iretq
"""


def copied(rig: Rig) -> Rig:
    """Another processor, over a copy of the memory, from plain data."""
    saved = json.loads(json.dumps(rig.cpu.state()))
    other = Rig(PROGRAM)
    other.ram[:] = rig.ram
    other.bus = rig.bus
    other.cpu.close()
    other.cpu = Interpreter([(0, other.view)], rig.bus)
    other.cpu.load(saved)
    return other


def play(seed: int, moves: set[int]) -> tuple[dict[str, Any], list[Any]]:
    """Run the program, answering and interrupting by ``seed``; move at the runs in ``moves``."""
    choice = random.Random(seed)
    rig = Rig(PROGRAM)
    rig.gate(0x40, rig.label(0x1122334455667788))
    seen: list[Any] = []
    for number in range(2000):
        leaving = rig.cpu.run(choice.randrange(1, 6))
        if leaving.reason is not ExitReason.INTR:
            seen.append((leaving.reason, leaving.address, leaving.write, leaving.value))
        if number in moves:  # before the answer: half an instruction moves along
            rig = copied(rig)
        if leaving.reason in (ExitReason.MMIO, ExitReason.IO) and not leaving.write:
            rig.cpu.complete(choice.getrandbits(8 * leaving.width))
        if choice.randrange(20) == 0:
            rig.cpu.inject(0x40)
        if number + 1000 in moves:
            rig = copied(rig)
        if leaving.reason is ExitReason.HLT and not rig.cpu.pending:
            break
    registers = {name: rig[name] for name in (*REGISTERS, "rip", "rflags")}
    return registers | {"memory": bytes(rig.ram), "count": rig.cpu.instructions}, [
        *seen, *rig.bus.accesses
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.integers(0, 1300), max_size=400))
def test_moving_at_any_moment_changes_nothing(seed: int, moves: set[int]) -> None:
    assert play(seed, moves) == play(seed, set())


def test_a_device_is_not_asked_twice_by_an_instruction_that_moves_in_its_middle() -> None:
    text = f"mov rsi, {MAPPED:#x}; mov rdi, {TRAPPED:#x}; movsd; hlt"
    rig = Rig(text)
    rig.bus.values[MAPPED] = 9
    assert rig.until(ExitReason.MMIO).value == 9
    saved = rig.cpu.state()
    other = Interpreter([(0, rig.view)], rig.bus)
    other.load(saved)
    assert other.run(100).reason is ExitReason.HLT
    assert rig.bus.accesses == [("read", MAPPED, 4, 9)]


def test_a_waiting_exit_is_still_waiting_after_loading() -> None:
    rig = Rig("in al, 0x60; hlt")
    rig.until(ExitReason.IO)
    other = Interpreter([(0, rig.view)], rig.bus)
    other.load(rig.cpu.state())
    assert other.run(1).reason is ExitReason.FAIL_ENTRY
    other.complete(5)
    assert other.run(10).reason is ExitReason.HLT
    assert other.read_register("rax") == 5


def test_state_is_plain_data_and_comes_back_equal() -> None:
    rig = Rig("mov rax, -1; add rax, 1; hlt")
    rig.until(ExitReason.HLT)
    rig.cpu.inject(0x99)
    rig["fs.base"] = 1 << 60
    state = rig.cpu.state()
    other = Interpreter([(0, rig.view)], rig.bus)
    other.load(json.loads(json.dumps(state)))
    assert other.state() == state
    assert other.pending == (0x99,)


def test_another_engines_state_is_refused() -> None:
    with pytest.raises(UsageError, match="not the state of an interpreter"):
        Rig("hlt").cpu.load({"engine": "kvm"})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 5), max_size=20))
def test_single_steps_and_moves_end_as_one_run(seed: int, budgets: list[int]) -> None:
    """Blocks cut short anywhere, with the lazy flags saved, end as the whole."""
    program = Generator(64, random.Random(seed)).program(12)

    def fresh() -> tuple[Interpreter, bytearray]:
        ram = bytearray(0x20000)
        ram[CODE : CODE + len(program.code) + 1] = program.code + b"\xf4"
        ram[DATA : DATA + 4096] = program.data
        vcpu = Interpreter([(0, memoryview(ram))], RecordingBus())
        enter_long_mode(vcpu, memoryview(ram), CODE, tables=0x10000, stack=0, mapped=1 << 21)
        for name in REGISTERS:
            vcpu.write_register(name, program.registers[name])
        vcpu.write_register("rflags", program.flags | 2)
        return vcpu, ram

    whole, whole_ram = fresh()
    last = whole.run(10_000)
    part, part_ram = fresh()
    for budget in budgets:
        leaving = part.run(budget)
        if leaving.reason is not ExitReason.INTR:
            break
        moved = Interpreter([(0, memoryview(part_ram))], RecordingBus())
        moved.load(part.state())
        part = moved
    else:
        leaving = part.run(10_000)
    assert leaving.reason is last.reason
    assert part_ram == whole_ram
    assert part.state() == whole.state()
