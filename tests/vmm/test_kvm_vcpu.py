"""The KVM engine, where this machine has one that runs guests."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from cpu_rig import CODE, MAPPED, TRAPPED, RecordingBus, assemble
from instruction_source import DATA, FLAGS, REGISTERS, Generator, Program

from vfiokit.abi import kvm as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.kernel.port import Memory
from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.engine import chosen, open_vcpu
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.kvm import KvmMachine, KvmReport, probe
from vfiokit.vmm.kvm_vcpu import KvmVcpu

RAM = 0x20000
KERNEL = LinuxKernel()


@lru_cache(maxsize=1)
def report() -> KvmReport:
    return probe(KERNEL)


@pytest.fixture
def memory() -> Iterator[Memory]:
    if not report().real_mode:
        pytest.skip(f"no KVM here: {report().detail}")
    memory = KERNEL.allocate(RAM)
    yield memory
    memory.close()


class Guest:
    """A KVM processor that is about to run ``text``."""

    def __init__(self, machine: KvmMachine, memory: Memory, text: str, bits: int = 16) -> None:
        code = assemble(text, bits)
        memory.view[CODE : CODE + len(code)] = code
        self.bus = RecordingBus()
        self.machine = machine
        self.memory = memory
        self.cpu: KvmVcpu = machine.create_vcpu(self.bus)
        if bits == 64:
            enter_long_mode(self.cpu, memory.view, CODE, tables=0x10000, stack=0x9000)
        else:
            enter_real_mode(self.cpu, CODE, stack=0x9000)

    def until(self, reason: ExitReason) -> Exit:
        leaving = self.cpu.run(1_000_000)
        assert leaving.reason is reason, leaving
        return leaving


def test_the_probe_says_in_words_what_it_found() -> None:
    assert report().detail
    assert not report().long_mode or report().real_mode
    assert not report().real_mode or report().available


def test_a_host_without_kvm_is_an_error_with_a_hint() -> None:
    class NoNode(LinuxKernel):
        def open(self, path: str, flags: int = 2) -> int:
            raise FileNotFoundError(2, "No such file or directory", path)

    with pytest.raises(KernelError, match="/dev/kvm") as caught:
        KvmMachine(NoNode(), [])
    assert "interpreter" in caught.value.hint
    found = probe(NoNode())
    assert (found.available, found.real_mode) == (False, False)
    assert chosen("auto", NoNode()) == "interpreter"


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="no engine 'bochs'"):
        open_vcpu("bochs", [], RecordingBus())


@pytest.mark.parametrize("engine", ["interpreter", "kvm", "auto"])
def test_every_engine_runs_the_decks_first_program(memory: Memory, engine: str) -> None:
    memory.view[CODE : CODE + 4] = b"\xb8\x07\x00\xf4"
    with open_vcpu(engine, [(0, memory.view)], RecordingBus(), long_mode=False) as vcpu:
        enter_real_mode(vcpu, CODE)
        assert vcpu.run(1_000_000).reason is ExitReason.HLT
        assert vcpu.read_register("rax") == 7


def test_ports_leave_and_come_back(memory: Memory) -> None:
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, "mov ax, 0x1234; out 0x10, ax; in al, 0x20; hlt")
        assert guest.until(ExitReason.IO) == Exit(ExitReason.IO, 0x10, 2, write=True, value=0x1234)
        assert guest.until(ExitReason.IO) == Exit(ExitReason.IO, 0x20, 1)
        assert guest.cpu.run(1).reason is ExitReason.FAIL_ENTRY  # it awaits the answer
        guest.cpu.complete(0x155)
        assert guest.cpu.read_register("rax") == 0x1255  # registers are settled without running on
        guest.until(ExitReason.HLT)
        with pytest.raises(UsageError, match="needs no answer"):
            guest.cpu.complete(1)


def test_strings_to_ports_are_exits_one_by_one(memory: Memory) -> None:
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        text = "mov dx, 0x1f0; mov di, 0x5000; mov cx, 3; rep insw; mov si, 0x5000; mov cx, 3;"
        guest = Guest(machine, memory, text + "rep outsw; hlt")
        values = []
        while (leaving := guest.cpu.run(1_000_000)).reason is ExitReason.IO:
            assert (leaving.address, leaving.width) == (0x1F0, 2)
            if leaving.write:
                values.append(leaving.value)
            else:
                guest.cpu.complete(0x1111 * (1 + len(values)))
        assert leaving.reason is ExitReason.HLT
        assert values == [0x1111] * 3


def test_memory_that_is_no_ram_goes_to_the_bus_or_leaves(memory: Memory) -> None:
    # 16-bit code reaches beyond 64 KiB through a segment: 0xffff:0x10 is 0x100000
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(
            machine, memory, "mov bx, 0x20; mov eax, [bx]; inc eax; mov [bx + 4], eax; hlt"
        )
        guest.cpu.write_register("ds.base", MAPPED)
        guest.bus.values[MAPPED + 0x20] = 41
        guest.until(ExitReason.HLT)
        assert guest.bus.accesses == [
            ("read", MAPPED + 0x20, 4, 41), ("write", MAPPED + 0x24, 4, 42),
        ]  # fmt: skip
        guest.cpu.write_register("ds.base", TRAPPED)
        guest.cpu.write_register("rip", CODE)
        assert guest.until(ExitReason.MMIO) == Exit(ExitReason.MMIO, TRAPPED + 0x20, 4)
        guest.cpu.complete(6)
        assert guest.until(ExitReason.MMIO) == Exit(
            ExitReason.MMIO, TRAPPED + 0x24, 4, write=True, value=7
        )
        guest.until(ExitReason.HLT)


def test_an_endless_loop_ends_with_its_budget(memory: Memory) -> None:
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, "1: inc ax; jmp 1b")
        start = time.monotonic()
        assert guest.cpu.run(20_000).reason is ExitReason.INTR
        assert time.monotonic() - start < 10
        assert guest.cpu.read_register("rax")


def test_an_interrupt_is_taken_when_the_guest_allows_it(memory: Memory) -> None:
    memory.view[0x40 * 4 : 0x40 * 4 + 4] = struct.pack("<HH", 0x2000, 0)
    memory.view[0x2000:0x2003] = b"\x43\xcf\x00"  # inc bx; iret
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, "out 0x10, al; inc cx; sti; nop; nop; 1: hlt; jmp 1b")
        guest.until(ExitReason.IO)
        assert not guest.cpu.interruptible
        guest.cpu.inject(0x40)
        guest.until(ExitReason.HLT)
        assert guest.cpu.read_register("rbx") == 1
        guest.cpu.inject(0x40)  # ends the HLT
        guest.until(ExitReason.HLT)
        assert guest.cpu.read_register("rbx") == 2


def test_registers_that_make_no_sense_fail_to_enter(memory: Memory) -> None:
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, "hlt")
        guest.cpu.write_register("cr0", 1 << 31)  # paging without protection
        leaving = guest.cpu.run(1000)
        assert leaving.reason is ExitReason.FAIL_ENTRY
        assert "refuses the registers" in leaving.detail


def test_register_names_are_those_of_the_interpreter(memory: Memory) -> None:
    names = [
        *REGISTERS, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "cs", "ds.base",
        "ss.limit", "gdt.base", "idt.limit", "tr", "eax", "ah", "cpl",
    ]  # fmt: skip
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, "hlt")
        other = Interpreter([(0, memory.view)], guest.bus)
        for name in names:
            assert guest.cpu.read_register(name) >= 0
            assert other.read_register(name) >= 0
        for name in names[:16]:
            guest.cpu.write_register(name, 0x1122334455667788)
            assert guest.cpu.read_register(name) == 0x1122334455667788
        guest.cpu.write_register("ah", 0xFF)
        assert guest.cpu.read_register("ax") == 0xFF88
        for name in ("nonsense", "cs.size", "gdt"):
            with pytest.raises(KeyError):
                guest.cpu.read_register(name)
            with pytest.raises(KeyError):
                guest.cpu.write_register(name, 0)


def test_ioeventfd_takes_the_store_and_there_is_no_exit(memory: Memory) -> None:
    event = KERNEL.eventfd()
    try:
        with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
            if not machine.extension(abi.KVM_CAP_IOEVENTFD):
                pytest.skip("this KVM has no ioeventfd")
            machine.ioeventfd(0xF000_0020, 4, event, value=5)
            text = "mov cx, 100; 1: mov dword ptr [0x20], 5; loop 1b;"
            guest = Guest(machine, memory, text + "mov dword ptr [0x20], 6; hlt")
            guest.cpu.write_register("ds.base", TRAPPED)
            leaving = guest.until(ExitReason.MMIO)
            assert leaving.value == 6
            assert KERNEL.eventfd_read(event) == 100
            guest.until(ExitReason.HLT)
            machine.ioeventfd(0xF000_0020, 4, event, value=5, remove=True)
            guest.cpu.write_register("rip", CODE)
            assert guest.until(ExitReason.MMIO).value == 5
    finally:
        KERNEL.close(event)


def test_irqfd_interrupts_the_guest_without_this_process(memory: Memory) -> None:
    memory.view[0x50 * 4 : 0x50 * 4 + 4] = struct.pack("<HH", 0x2000, 0)
    memory.view[0x2000:0x2004] = b"\xe6\x77\xcf\x00"  # out 0x77, al; iret
    event = KERNEL.eventfd()
    try:
        with KvmMachine(KERNEL, [(0, memory.view)], irqchip=True) as machine:
            guest = Guest(machine, memory, "sti; 1: hlt; jmp 1b")
            with pytest.raises(UsageError, match="irqfd"):
                guest.cpu.inject(0x50)
            apic = bytearray(1024)
            KERNEL.ioctl(guest.cpu.fd, abi.KVM_GET_LAPIC, apic)
            apic[0xF0:0xF4] = struct.pack("<I", 0x1FF)  # software enable
            KERNEL.ioctl(guest.cpu.fd, abi.KVM_SET_LAPIC, apic)
            machine.route_msi(24, 0xFEE0_0000, 0x50)
            machine.irqfd(event, 24)
            KERNEL.eventfd_write(event)
            assert guest.until(ExitReason.IO).address == 0x77
            machine.irqfd(event, 24, remove=True)
    finally:
        KERNEL.close(event)


def test_state_moves_a_guest_to_another_machine(memory: Memory) -> None:
    text = "mov cx, 5; 1: add ax, cx; out 0x10, al; loop 1b; hlt"
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, text)
        guest.until(ExitReason.IO)
        guest.until(ExitReason.IO)
        saved = json.loads(json.dumps(guest.cpu.state()))
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        cpu = machine.create_vcpu(RecordingBus())
        cpu.load(saved)
        values = []
        while (leaving := cpu.run(1_000_000)).reason is ExitReason.IO:
            values.append(leaving.value)
        assert values == [12, 14, 15]
        assert leaving.reason is ExitReason.HLT
        with pytest.raises(UsageError, match="not the state"):
            cpu.load({"engine": "interpreter"})


def test_memory_that_is_not_page_aligned_is_refused(memory: Memory) -> None:
    with pytest.raises(UsageError, match="whole pages"):
        KvmMachine(KERNEL, [(0, memory.view[8 : 8 + 4096])])


def test_a_64_bit_guest_where_they_run(memory: Memory) -> None:
    if not report().long_mode:
        pytest.skip(report().detail)
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        guest = Guest(machine, memory, "mov rax, 0x123456789abcdef; push rax; pop r9; hlt", 64)
        guest.until(ExitReason.HLT)
        assert guest.cpu.read_register("r9") == 0x123456789ABCDEF


# -- against the interpreter --------------------------------------------------------------------


def run_program(vcpu: Any, view: memoryview, program: Program) -> dict[str, Any]:
    """The end of a program on one engine."""
    view[0:0x8000] = bytes(0x8000)
    view[0:0x400] = struct.pack("<HH", 0x7F00, 0) * 256  # exceptions end at a HLT there
    view[0x7F00] = 0xF4
    view[CODE : CODE + len(program.code) + 1] = program.code + b"\xf4"
    view[DATA : DATA + 4096] = program.data
    enter_real_mode(vcpu, CODE)
    for name in REGISTERS:
        vcpu.write_register(name, program.registers[name])
    vcpu.write_register("rflags", program.flags | 2)
    vcpu.write_register("rip", CODE)
    leaving = vcpu.run(100_000)
    found: dict[str, Any] = {name: vcpu.read_register(name) & 0xFFFFFFFF for name in REGISTERS[:8]}
    found["flags"] = vcpu.read_register("rflags") & (FLAGS | 0x400) & ~program.undefined
    found["memory"] = bytes(view[DATA : DATA + 4096])
    found["reason"] = leaving.reason
    found["rip"] = vcpu.read_register("rip")
    return found


def compare_many(memory: Memory, count: int, seed: int) -> None:
    generator = Generator(16, random.Random(seed))
    ram = memoryview(bytearray(RAM))
    compared = 0
    with KvmMachine(KERNEL, [(0, memory.view)]) as machine:
        vcpu = machine.create_vcpu(RecordingBus())
        for _ in range(count):
            program = generator.program(generator.random.randrange(1, 14))
            theirs = run_program(vcpu, memory.view, program)
            if theirs["rip"] != CODE + len(program.code) + 1:
                continue  # it faulted: there are no handlers
            ours = run_program(Interpreter([(0, ram)], RecordingBus()), ram, program)
            wrong = {name: (ours[name], theirs[name]) for name in theirs
                     if ours[name] != theirs[name] and name != "memory"}  # fmt: skip
            assert not wrong, (program.text, wrong, program.registers)
            assert ours["memory"] == theirs["memory"], program.text
            compared += 1
    assert compared > count // 3


def test_random_real_mode_sequences_end_as_on_kvm(memory: Memory) -> None:
    compare_many(memory, 150, 1)


@pytest.mark.slow
def test_thousands_of_real_mode_sequences_end_as_on_kvm(memory: Memory) -> None:
    compare_many(memory, 4000, 2)
