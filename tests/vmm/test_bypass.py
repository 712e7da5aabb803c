"""Interrupts that pass the machine by: eventfds that raise vectors, and when they must not."""

from __future__ import annotations

import struct

import pytest
from device_rig import Host, Registers
from guest_rig import ScriptedVcpu

from vfiokit.abi import kvm as abi
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.machine.build import MsixLayout
from vfiokit.vmm.bypass import KvmBypass
from vfiokit.vmm.exit import ExitReason
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.kvm import KvmMachine, probe
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory

MESSAGE = 0xFEE0_0000


class Recorded:
    """A bypass that only notes what goes through it."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int, int]] = {}
        self.sent: list[tuple[int, int]] = []
        self._handles = iter(range(100, 1000))

    def attach(self, eventfd: int, address: int, data: int) -> int:
        handle = next(self._handles)
        self.routes[handle] = (eventfd, address, data)
        return handle

    def detach(self, eventfd: int, handle: int) -> None:
        assert self.routes.pop(handle)[0] == eventfd

    def message(self, address: int, data: int) -> bool:
        self.sent.append((address, data))
        return True


@pytest.fixture
def host() -> Host:
    return Host(lambda bdf: Registers(bdf, msix=MsixLayout(4, 0, 0x2000)))


class Setup:
    def __init__(self, host: Host, bypass) -> None:
        self.vm = VirtualMachine(host.kernel, GuestMemory.of_size(host.kernel, 1 << 20))
        self.vm.bypass = bypass
        self.function = self.vm.assign(host.open())
        place_everything(self.vm.pci)
        self.bar = next(self.function.placed()).address

    def entry(self, vector: int, data: int, control: int = 0) -> None:
        for field, value in ((0, MESSAGE), (8, data), (12, control)):
            at = self.bar + 0x2000 + 16 * vector + field
            self.vm.bus.trapped_write(at, 4, value)

    def control(self, value: int) -> None:
        self.function.config.write(self.function.interrupts._msix_at + 2, 2, value)


def test_unmasked_vector_is_routed_and_the_machine_no_longer_sees_it(host) -> None:
    bypass = Recorded()
    made = Setup(host, bypass)
    with made.vm as vm:
        vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        made.control(0x8000)
        made.entry(1, 0x51)
        ((fd, address, data),) = bypass.routes.values()
        assert (address, data) == (MESSAGE, 0x51)
        host.functions[0].raise_msix(1)
        assert vm.poll_interrupts() == 0
        assert host.kernel.eventfd_read(fd) == 1
    assert bypass.routes == {}


def test_changed_message_is_routed_anew_and_masked_vector_comes_back(host) -> None:
    bypass = Recorded()
    made = Setup(host, bypass)
    with made.vm as vm:
        made.control(0x8000)
        made.entry(1, 0x51)
        made.entry(1, 0x61)
        assert [data for _fd, _address, data in bypass.routes.values()] == [0x61]
        made.entry(1, 0x61, control=1)
        assert bypass.routes == {}
        host.functions[0].raise_msix(1)
        vm.poll_interrupts()
        assert made.function.interrupts.msix.pending == {1}
        made.entry(1, 0x61)
        assert bypass.sent == [(MESSAGE, 0x61)]
        assert len(bypass.routes) == 1


def test_function_mask_and_disabling_take_every_route_away(host) -> None:
    bypass = Recorded()
    made = Setup(host, bypass)
    with made.vm:
        for vector in range(4):
            made.entry(vector, 0x50 + vector)
        made.control(0x8000)
        assert len(bypass.routes) == 4
        made.control(0xC000)
        assert bypass.routes == {}
        made.control(0x8000)
        assert len(bypass.routes) == 4
        made.control(0)
        assert bypass.routes == {}


def test_device_of_a_twin_interrupts_a_guest_of_kvm(host) -> None:
    report = probe(LinuxKernel())
    if not report.real_mode:
        pytest.skip(report.detail)
    memory = GuestMemory.of_size(host.kernel, 1 << 20)
    memory.write(0x51 * 4, struct.pack("<HH", 0x2000, 0))
    memory.write(0x2000, b"\xe6\x77\xcf")  # out 0x77, al; iret
    memory.write(0x1000, b"\xfb\xf4\xeb\xfd")  # sti; hlt; jmp back to it
    with KvmMachine(LinuxKernel(), memory, irqchip=True) as machine:
        vm = VirtualMachine(host.kernel, memory)
        vm.bypass = KvmBypass(machine)
        with vm:
            cpu = vm.add_vcpu(lambda _memory, bus: machine.create_vcpu(bus))
            apic = bytearray(1024)
            LinuxKernel().ioctl(cpu.fd, abi.KVM_GET_LAPIC, apic)
            apic[0xF0:0xF4] = struct.pack("<I", 0x1FF)  # enabled, as firmware leaves it
            LinuxKernel().ioctl(cpu.fd, abi.KVM_SET_LAPIC, apic)
            for name, value in (("rip", 0x1000), ("rsp", 0x8000), ("rflags", 2)):
                cpu.write_register(name, value)
            function = vm.assign(host.open())
            place_everything(vm.pci)
            bar = next(function.placed()).address
            for field, value in ((0, MESSAGE), (8, 0x51), (12, 0)):
                vm.bus.trapped_write(bar + 0x2000 + field, 4, value)
            function.config.write(function.interrupts._msix_at + 2, 2, 0x8000)
            for _ in range(3):
                host.functions[0].raise_msix(0)
                leaving = cpu.run(10_000_000)
                while leaving.reason is ExitReason.INTR:
                    leaving = cpu.run(10_000_000)
                assert (leaving.reason, leaving.address) == (ExitReason.IO, 0x77)
            assert vm.exits["inject"] == vm.events["posted"] == 0
