"""The interpreter against an independent processor: registers, defined flags, memory."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from instruction_source import CODE, DATA, FLAGS, REGISTERS, SIZE, Generator, Program

from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.exit import ExitReason

unicorn = pytest.importorskip("unicorn", reason="a development dependency")
x86 = pytest.importorskip("unicorn.x86_const")

SEED = int(os.environ.get("VFIOKIT_SEED", "20261121"))
TABLES = 0x10000


class NoDevices:
    """A bus with nothing on it."""

    def read(self, gpa: int, width: int) -> int | None:
        raise AssertionError(f"load of {width} bytes at {gpa:#x}")

    def write(self, gpa: int, width: int, value: int) -> bool:
        raise AssertionError(f"store of {value:#x}, {width} bytes at {gpa:#x}")


class Unicorn:
    """Unicorn, as an oracle for one program at a time."""

    def __init__(self, bits: int) -> None:
        self.mode = unicorn.UC_MODE_64 if bits == 64 else unicorn.UC_MODE_16
        self.renew()
        self.pointer = x86.UC_X86_REG_RIP if bits == 64 else x86.UC_X86_REG_EIP
        self.names = {
            name: getattr(
                x86, f"UC_X86_REG_{name.upper() if bits == 64 else 'E' + name[1:].upper()}"
            )
            for name in (REGISTERS if bits == 64 else REGISTERS[:8])
        }

    def renew(self) -> None:
        """A fresh engine: after an exception that nobody handles, it stops wherever it likes."""
        self.engine = unicorn.Uc(unicorn.UC_ARCH_X86, self.mode)
        self.engine.mem_map(0, SIZE)

    def run(self, program: Program) -> dict[str, Any] | None:
        """State at the end; ``None`` where the program faults, ``{}`` where it did not end."""
        engine = self.engine
        engine.mem_write(0, bytes(SIZE))
        engine.mem_write(CODE, program.code)
        engine.mem_write(DATA, program.data)
        for name, number in self.names.items():
            engine.reg_write(number, program.registers[name])
        engine.reg_write(x86.UC_X86_REG_EFLAGS, program.flags | 2)
        engine.ctl_flush_tb()
        end = CODE + len(program.code)
        try:
            engine.emu_start(CODE, end)
        except unicorn.UcError as error:
            self.renew()
            # It takes REX.R for part of the opcode of MOV with an immediate: processors do not.
            return {} if error.errno == unicorn.UC_ERR_INSN_INVALID else None
        if engine.reg_read(self.pointer) != end:
            self.renew()
            return {}  # an exception in 16-bit code only stops it
        found: dict[str, Any] = {name: engine.reg_read(each) for name, each in self.names.items()}
        found["flags"] = engine.reg_read(x86.UC_X86_REG_EFLAGS) & (FLAGS | 0x400)
        found["memory"] = bytes(engine.mem_read(DATA, 4096))
        return found


def interpret(bits: int, program: Program) -> dict[str, Any] | None:
    """State at the end of ``program`` on the interpreter; ``None`` where it faults (64-bit)."""
    ram = bytearray(0x20000)
    ram[CODE : CODE + len(program.code) + 1] = program.code + b"\xf4"
    ram[DATA : DATA + 4096] = program.data
    vcpu = Interpreter([(0, memoryview(ram))], NoDevices())
    if bits == 64:
        enter_long_mode(vcpu, memoryview(ram), CODE, tables=TABLES, stack=0, mapped=1 << 21)
    else:
        enter_real_mode(vcpu, CODE)
    for name in REGISTERS:
        vcpu.write_register(name, program.registers[name])
    vcpu.write_register("rflags", program.flags | 2)
    leaving = vcpu.run(10_000)
    if bits == 64 and leaving.reason is ExitReason.SHUTDOWN:
        return None
    assert leaving.reason is ExitReason.HLT, (leaving, program.text)
    found: dict[str, Any] = {name: vcpu.read_register(name) for name in REGISTERS}
    found["flags"] = vcpu.read_register("rflags") & (FLAGS | 0x400)
    found["memory"] = bytes(ram[DATA : DATA + 4096])
    return found


def compare(program: Program, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Everything that is defined is the same."""
    for side in (ours, theirs):
        side["flags"] &= ~program.undefined
    wrong = [name for name in theirs if theirs[name] != ours[name]]
    differences = ", ".join(
        f"{name}: {ours[name]:#x} instead of {theirs[name]:#x}"
        if name != "memory"
        else _first_difference(ours[name], theirs[name])
        for name in wrong
    )
    assert not wrong, f"{program.text}\n{differences}\nfrom {program.registers}"


def _first_difference(ours: bytes, theirs: bytes) -> str:
    place = next(number for number in range(4096) if ours[number] != theirs[number])
    return f"memory at {DATA + place:#x}: {ours[place]:#x} instead of {theirs[place]:#x}"


def run_many(bits: int, count: int, length: int, seed: int) -> None:
    generator = Generator(bits, random.Random(seed))
    oracle = Unicorn(bits)
    compared = 0
    for _ in range(count):
        program = generator.program(generator.random.randrange(1, length))
        theirs = oracle.run(program)
        if theirs == {} or (theirs is None and bits == 16):
            continue  # handlers at 0:0 would run
        ours = interpret(bits, program)
        assert (ours is None) is (theirs is None), program.text
        if ours is None or theirs is None:
            continue
        compare(program, ours, theirs)
        compared += 1
    assert compared > count // 3


@pytest.mark.parametrize("bits", [16, 64])
def test_random_sequences_end_as_on_unicorn(bits: int) -> None:
    run_many(bits, 150, 12, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("bits", [16, 64])
def test_thousands_of_random_sequences_end_as_on_unicorn(bits: int, part: int) -> None:
    run_many(bits, 1500, 16, SEED + 1 + part)
