"""The loop of a virtual machine: every exit handled, counted, and only once."""

from __future__ import annotations

import pytest
from guest_rig import ScriptedVcpu, load, port_in, port_out, store

from vfiokit.errors import UsageError
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.machine import CONSOLE, Stop, VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.policy import Delivery, Policy


@pytest.fixture
def kernel() -> SoftwareKernel:
    machine = Machine(ram=1 << 30)
    machine.add_host_bridge(iommu=machine.add_iommu())
    return SoftwareKernel(machine)


@pytest.fixture
def vm(kernel):
    with VirtualMachine(kernel, GuestMemory.of_size(kernel, 1 << 20)) as made:
        yield made


def script(vm: VirtualMachine, *exits: Exit) -> ScriptedVcpu:
    vcpu = vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu(exits))
    assert isinstance(vcpu, ScriptedVcpu)
    return vcpu


def test_without_processor_there_is_nothing_to_run(vm) -> None:
    with pytest.raises(UsageError):
        vm.run()


def test_addresses_of_nobody_read_all_ones(vm) -> None:
    vcpu = script(vm, load(0xC000_0000, 4), store(0xC000_0000, 1), port_in(0x1234, 2))
    assert vm.run(100) is Stop.BUDGET
    assert vcpu.completed == [(0xFFFFFFFF,), (0xFFFF,)]
    assert vm.exits == {"unclaimed": 2, "io": 1}


def test_console_collects_what_the_guest_prints(vm) -> None:
    script(vm, *(port_out(0xE9, ord(character), 1) for character in "hello"))
    vm.run(100)
    assert vm.debug.console == b"hello"
    assert vm.exits["console"] == 5


def test_msr_reads_back_and_hypercalls_are_answered(vm) -> None:
    vm.hypercalls[7] = lambda machine, vcpu, arguments: sum(arguments)
    vcpu = script(
        vm,
        Exit(ExitReason.WRMSR, 0x1B, 8, True, 0xFEE0_0900),
        Exit(ExitReason.RDMSR, 0x1B, 8),
        Exit(ExitReason.HYPERCALL, 7, arguments=(1, 2, 3, 4)),
        Exit(ExitReason.HYPERCALL, 8),
    )
    vm.run(100)
    assert vcpu.completed == [(0xFEE0_0900,), (10,), ((1 << 64) - 1000,)]


def test_halt_of_all_is_idle_and_counts_by_policy(kernel) -> None:
    for delivery, exits in ((Delivery.POSTED, 0), (Delivery.INJECTED, 1)):
        memory = GuestMemory.of_size(kernel, 1 << 20)
        with VirtualMachine(kernel, memory, policy=Policy(delivery=delivery)) as vm:
            script(vm, Exit(ExitReason.HLT))
            assert vm.run() is Stop.IDLE
            assert vm.exits["hlt"] == exits


@pytest.mark.parametrize(
    ("reason", "stop"),
    [(ExitReason.SHUTDOWN, Stop.SHUTDOWN), (ExitReason.FAIL_ENTRY, Stop.FAILED)],
)
def test_end_of_a_processor_says_why(vm, reason, stop) -> None:
    script(vm, Exit(reason, detail="because"))
    assert vm.run() is stop
    assert vm.failure == "because"


def test_handler_can_stop_the_run(vm) -> None:
    vm.hypercalls[1] = lambda machine, vcpu, arguments: machine.stop() or 0
    script(vm, Exit(ExitReason.HYPERCALL, 1), load(0))
    assert vm.run() is Stop.ASKED
    assert vm.exits == {"hypercall": 1}


def test_guest_cannot_make_the_machine_grow(vm) -> None:
    for number in range(CONSOLE * 2 + 10):
        vm.debug.write(0, 1, number & 0xFF)
    assert CONSOLE <= len(vm.debug.console) < 2 * CONSOLE
    assert vm.debug.console[-1] == (CONSOLE * 2 + 9) & 0xFF
    script(vm, *(Exit(ExitReason.WRMSR, number, 8, True, 1) for number in range(5000)))
    vm.run(6000)
    assert len(vm.msrs) <= 4096
