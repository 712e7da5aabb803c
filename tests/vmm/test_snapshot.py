"""A machine saved in the middle of its work, and another that finishes it."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from device_rig import Host, Registers, nvme
from guest_rig import ScriptedVcpu, store

from vfiokit.errors import UsageError
from vfiokit.machine.build import MsiLayout, MsixLayout
from vfiokit.machine.function import BarModel
from vfiokit.pci.capability import capabilities
from vfiokit.vfio import Device
from vfiokit.vfio_user import catalogue
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.kernel import SocketBackend, SocketKernel
from vfiokit.vfio_user.server import Server
from vfiokit.vmm import nvme_guest
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.io_apic import IO_APIC_BASE, LEVEL
from vfiokit.vmm.local_apic import APIC_BASE
from vfiokit.vmm.machine import Stop, VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.nvme_guest import Job
from vfiokit.vmm.policy import Delivery, Policy

RAM = 2 << 20
READS, PAGES, DEPTH = 120, 32, 4
JOB = Job(reads=READS, queues=0x10_0000, data=0x11_0000, pages=PAGES, depth=DEPTH)
CONTENT = random.Random(7).randbytes(READS * 4096)


def expected() -> bytes:
    """What the last reads leave in the pages that are used in turn."""
    pages = [b""] * PAGES
    for number in range(READS):
        pages[number % PAGES] = CONTENT[number * 4096 : (number + 1) * 4096]
    return b"".join(pages)


def boot(device: Device, kernel: Any, delivery: Delivery = Delivery.POSTED) -> VirtualMachine:
    memory = GuestMemory.of_size(kernel, RAM)
    vm = VirtualMachine(kernel, memory, policy=Policy(delivery=delivery))
    vm.add_vcpu(Interpreter)
    vm.assign(device, "0000:00:01.0")
    nvme_guest.load(memory, JOB)
    vm.vcpus[0].write_register("rip", nvme_guest.ENTRY)
    return vm


def finish(vm: VirtualMachine) -> nvme_guest.Outcome:
    for _ in range(50):
        vm.run(200_000, idle_s=0.5)
        found = nvme_guest.outcome(vm.memory)
        if found.stage >= nvme_guest.Stage.DONE:
            break
    return found


def check(vm: VirtualMachine) -> None:
    found = nvme_guest.outcome(vm.memory)
    assert found.done, str(found)
    assert (found.completed, found.submitted, found.errors) == (READS, READS, 0)
    assert vm.memory.read(JOB.data, PAGES * 4096) == expected()


# --- in place: device and memory stay ---


def twin_drive() -> Host:
    host = Host(nvme)
    host.functions[0].controller.namespace.store.write(0, CONTENT)
    return host


@pytest.mark.parametrize("delivery", [Delivery.POSTED, Delivery.INJECTED])
@pytest.mark.parametrize("seed", range(3))
def test_processor_exchanged_at_any_moment_loses_no_command(seed, delivery) -> None:
    dice = random.Random(seed)
    host = twin_drive()
    with boot(host.open(), host.kernel, delivery) as vm:
        moments = 0
        while nvme_guest.outcome(vm.memory).stage < nvme_guest.Stage.DONE and moments < 400:
            vm.run(dice.randrange(1, 900))
            state = vm.state(in_place=True)
            old = vm.vcpus[0]
            vm._processors[0].vcpu = Interpreter(vm.memory, vm.bus)
            old.close()
            vm.load(state)
            assert vm.state(in_place=True) == state
            moments += 1
        assert moments > 10
        check(vm)


def test_interrupts_signalled_between_save_and_load_in_place_are_kept() -> None:
    host = Host(lambda bdf: Registers(bdf, msix=MsixLayout(4, 0, 0x2000)))
    with VirtualMachine(host.kernel, GuestMemory.of_size(host.kernel, 1 << 20)) as vm:
        cpu: Any = vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        function = vm.assign(host.open())
        place_everything(vm.pci)
        bar = next(function.placed()).address
        for field, value in ((0, 0xFEE0_0000), (8, 0x51), (12, 0)):
            vm.bus.trapped_write(bar + 0x2000 + field, 4, value)
        at = function.interrupts._msix_at
        function.config.write(at + 2, 2, 0x8000)
        state = vm.state(in_place=True)
        host.functions[0].raise_msix(0)
        vm.load(state)
        vm.run(10)
        assert cpu.taken == [0x51]


class Switching:
    """A device that a guest drives by any of its three kinds of interrupts."""

    def __init__(self) -> None:
        self.host = Host(
            lambda bdf: Registers(
                bdf, msix=MsixLayout(4, 0, 0x2000), msi=MsiLayout(4, maskable=True)
            )
        )
        memory = GuestMemory.of_size(self.host.kernel, 1 << 20)
        self.vm = VirtualMachine(self.host.kernel, memory)
        self.cpu: Any = self.vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        self.function = self.vm.assign(self.host.open(), "0000:00:04.0")
        place_everything(self.vm.pci)
        self.model = self.host.functions[0]
        bar = next(self.function.placed()).address
        for field, value in ((0, 0xFEE0_0000), (8, 0x51), (12, 0)):
            self.vm.bus.trapped_write(bar + 0x2000 + field, 4, value)
        self.cpu.script += [store(IO_APIC_BASE, 0x38), store(IO_APIC_BASE + 0x10, 0x70 | LEVEL)]
        self.vm.run(20)
        listed = capabilities(self.function.device.config.snapshot())
        self.msix_at, self.msi_at = listed.find(0x11).offset, listed.find(0x05).offset
        self.write(self.msi_at + 4, 4, 0xFEE0_0000)
        self.write(self.msi_at + 12, 2, 0x60)

    def write(self, offset: int, width: int, value: int) -> None:
        self.function.config.write(offset, width, value)

    def switch(self, kind: str) -> None:
        self.write(self.msix_at + 2, 2, 0x8000 if kind == "msix" else 0)
        self.write(self.msi_at + 2, 2, 0 if kind in ("intx", "msix") else 0x21)

    def interrupt(self, kind: str) -> list[int]:
        """Let the device interrupt in the way that it is switched to; what arrives."""
        before = len(self.cpu.taken)
        if kind == "msix":
            self.model.raise_msix(0)
        elif kind == "msi":
            self.model.raise_msi(1)
        else:
            self.model.intx.set(True)
        self.vm.run(20)
        self.model.intx.set(False)
        self.cpu.script.append(store(APIC_BASE + 0xB0, 0))
        self.vm.run(20)
        return self.cpu.taken[before:]


VECTORS = {"msix": 0x51, "msi": 0x61, "intx": 0x70}


@pytest.mark.parametrize("later", list(VECTORS))
@pytest.mark.parametrize("saved", list(VECTORS))
def test_kind_of_interrupt_comes_back_whatever_the_guest_switched_to(saved, later) -> None:
    made = Switching()
    with made.vm as vm:
        made.switch(saved)
        assert made.interrupt(saved) == [VECTORS[saved]]
        state = vm.state(in_place=True)
        made.switch(later)
        assert made.interrupt(later) == [VECTORS[later]]
        vm.load(state)
        assert made.function.interrupts.mode.value == saved
        assert vm.state(in_place=True) == state
        assert made.interrupt(saved) == [VECTORS[saved]]
        made.switch(later)
        assert made.interrupt(later) == [VECTORS[later]]


def test_fewer_messages_come_back_as_they_were() -> None:
    made = Switching()
    with made.vm as vm:
        made.switch("msi")
        state = vm.state(in_place=True)
        made.write(made.msi_at + 2, 2, 0)
        made.write(made.msi_at + 2, 2, 0x01)
        vm.load(state)
        assert len(made.function.device.msi.vectors) == 4
        assert made.interrupt("msi") == [0x61]


def test_pin_in_service_is_saved_with_its_level() -> None:
    host = Host(lambda bdf: Registers(bdf, bars=(BarModel(0, 0x1000),)))
    with VirtualMachine(
        host.kernel,
        GuestMemory.of_size(host.kernel, 1 << 20),
        policy=Policy(delivery=Delivery.INJECTED),
    ) as vm:
        cpu: Any = vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        function = vm.assign(host.open(), "0000:00:04.0")
        cpu.script += [store(IO_APIC_BASE, 0x38), store(IO_APIC_BASE + 0x10, 0x70 | LEVEL)]
        vm.run(20)
        wire = host.functions[0].intx
        wire.set(True)
        vm.run(20)
        assert cpu.taken == [0x70]
        state = vm.state(in_place=True)
        # The guest goes on, ends the interrupt; then all of that is undone.
        wire.set(False)
        cpu.script.append(store(APIC_BASE + 0xB0, 0))
        vm.run(20)
        assert not function.interrupts.asserted
        vm.load(state)
        assert function.interrupts.asserted
        assert vm.state(in_place=True) == state
        cpu.script.append(store(APIC_BASE + 0xB0, 0))
        vm.run(20)
        assert not function.interrupts.asserted
        wire.set(True)
        vm.run(20)
        assert cpu.taken == [0x70, 0x70]


@pytest.mark.parametrize("backend", ["group", "cdev"])
def test_guest_reads_its_drive_by_either_interface_of_the_kernel(backend) -> None:
    host = twin_drive()
    with boot(host.open(backend=backend), host.kernel) as vm:
        finish(vm)
        check(vm)
        assert host.machine.iommus[0].faults.total == 0


# --- whole: another machine with another device ---


@contextlib.contextmanager
def served() -> Iterator[tuple[Device, SocketKernel]]:
    """An NVMe controller that can migrate, and its client."""
    device = catalogue.nvme(size=len(CONTENT))
    device.function.controller.namespace.store.write(0, CONTENT)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Server(device).serve, args=(ours,), daemon=True)
    thread.start()
    kernel = SocketKernel(Client(theirs))
    yield Device(SocketBackend(kernel), "served"), kernel
    thread.join(10)
    assert not thread.is_alive()
    device.close()


@pytest.mark.parametrize("instructions", [3_000, 7_100, 9_000, 12_000])
def test_other_machine_with_other_device_finishes_what_one_began(instructions) -> None:
    with served() as (first, kernel), boot(first, kernel) as one:
        one.run(instructions, idle_s=0.5)
        state = one.state()
        begun = nvme_guest.outcome(one.memory)
        finish(one)  # the first goes on: what it does must not matter
        check(one)
    # Reads were on the way, but for the first, which was cut while the page tables were made.
    assert begun.submitted - begun.completed == (DEPTH if instructions > 7_000 else 0)
    with served() as (second, kernel), boot(second, kernel) as other:
        other.load(state)
        assert nvme_guest.outcome(other.memory) == begun
        finish(other)
        check(other)
        assert other.state().keys() == state.keys()


# --- what is refused ---


def test_whole_state_needs_devices_that_tell_theirs() -> None:
    host = twin_drive()
    with boot(host.open(), host.kernel) as vm:
        with pytest.raises(UsageError, match="cannot tell its state"):
            vm.state()
        assert finish(vm).done


def machine(host: Host, cpus: int = 1) -> VirtualMachine:
    vm = VirtualMachine(host.kernel, GuestMemory.of_size(host.kernel, 1 << 20))
    for _ in range(cpus):
        vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
    return vm


def test_state_of_another_machine_is_refused_before_anything_changes() -> None:
    host = twin_drive()
    with machine(host) as one, machine(host, cpus=2) as two, machine(host) as three:
        state = one.state()
        three.load(state)
        assert three.state() == state
        with pytest.raises(UsageError, match="processors"):
            two.load(state)
        three.pci.remove(three.isa_bridge)
        with pytest.raises(UsageError, match=r"1f\.0"):
            three.load(state)
        with pytest.raises(UsageError, match="version"):
            one.load({**state, "version": 99})


def test_budget_cut_short_goes_on_where_it_stopped() -> None:
    host = twin_drive()
    with boot(host.open(), host.kernel) as vm:
        assert vm.run(500) is Stop.BUDGET
        finish(vm)
        check(vm)
