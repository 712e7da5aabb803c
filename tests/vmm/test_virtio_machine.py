"""The virtio device in a whole machine: interrupts that arrive, and a state taken anywhere."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from virtio_rig import Source

from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.pci.address import Bdf
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.machine import Stop, VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.p2p import Outcome, Reply, guest_address
from vfiokit.vmm.p2p_guest import (
    RAM_SIZE,
    GuestProgramError,
    Program,
    finish,
    functions_found,
    run,
    start,
)
from vfiokit.vmm.virtio_p2p import VirtioP2p
from vfiokit.vmm.virtio_pci import VirtioFunction

ONE, OTHER = Bdf(0, 1, 0, 0), Bdf(0, 2, 0, 0)
PAIRS = [(ONE, OTHER), (OTHER, ONE), (ONE, ONE)] * 4
ANSWERS = {
    (guest_address(ONE), guest_address(OTHER)): Reply(Outcome.OK, 2, 4),
    (guest_address(OTHER), guest_address(ONE)): Reply(Outcome.OK, 3, 70_000),
}
EXPECTED = (*ANSWERS.values(), Reply(Outcome.NO_FUNCTION)) * 4


@pytest.fixture(scope="module")
def kernel() -> SoftwareKernel:
    machine = Machine(ram=1 << 30)
    machine.add_host_bridge(iommu=machine.add_iommu())
    return SoftwareKernel(machine)


@contextmanager
def guest(kernel):
    """A machine with the device and nothing else."""
    with VirtualMachine(kernel, GuestMemory.of_size(kernel, RAM_SIZE)) as vm:
        function = VirtioFunction(Bdf(0, 0, 3, 0), vm.memory, VirtioP2p(Source(dict(ANSWERS))))
        vm.pci.add(function)
        place_everything(vm.pci)
        yield vm, function


def test_driver_asks_twelve_times(kernel):
    with guest(kernel) as (vm, _function):
        assert run(vm, Program.VIRTIO, PAIRS) == EXPECTED
        # A second driver resets the device and starts anew.
        assert run(vm, Program.VIRTIO, PAIRS[:1]) == EXPECTED[:1]


@pytest.mark.parametrize("budget", [1, 120, 300, 420, 440, 460, 480, 500, 520, 560])
def test_state_loaded_anywhere_loses_no_question(kernel, budget):
    with guest(kernel) as (vm, function):
        start(vm, Program.VIRTIO, PAIRS)
        assert vm.run(budget) is Stop.BUDGET
        state = vm.state()
        asked = len(function.device._source.asked)
    with guest(kernel) as (vm, function):
        vm.add_vcpu(Interpreter)
        vm.load(state)
        assert finish(vm, Program.VIRTIO, len(PAIRS)) == EXPECTED
        assert asked + len(function.device._source.asked) == len(PAIRS)


def test_message_of_the_device_is_posted_to_the_guest(kernel):
    with guest(kernel) as (vm, function):
        vm.add_vcpu(Interpreter)
        for at, value in ((0, 0xFEE0_0000), (4, 0), (8, 0x41), (12, 0)):
            function.msix.write(16 + at, 4, value)
        function.config.write(0x42, 2, 0x8000)
        function.msix.fire(1)
        assert vm.events["posted"] == 1


def test_guest_with_another_device_there_finds_none(kernel):
    with VirtualMachine(kernel, GuestMemory.of_size(kernel, RAM_SIZE)) as vm:
        with pytest.raises(GuestProgramError, match="found no virtio"):
            run(vm, Program.VIRTIO, PAIRS)
        run(vm, Program.TOPOLOGY, [])
        assert functions_found(vm.memory) == len(list(vm.pci.functions()))


def test_driver_gives_up_on_a_device_that_breaks_down(kernel):
    with guest(kernel) as (vm, function):
        function.device.serve = lambda *_: function.break_down("told to") or 0
        # The chain comes back all the same, so the driver goes on; the next one does not.
        with pytest.raises(GuestProgramError, match="needs a reset"):
            run(vm, Program.VIRTIO, PAIRS)
        assert function.failure == "told to"


def test_program_that_never_ends_is_said_to(kernel, monkeypatch):
    monkeypatch.setattr("vfiokit.vmm.p2p_guest._BUDGET", 100)
    with guest(kernel) as (vm, _function), pytest.raises(GuestProgramError, match="not finish"):
        run(vm, Program.VIRTIO, PAIRS)
