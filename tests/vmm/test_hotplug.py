"""Devices that leave a running guest, and what the host tells of them."""

from __future__ import annotations

import pytest
from device_rig import Host, Registers
from guest_rig import ScriptedVcpu, load, port_in, port_out, store

from vfiokit.errors import UsageError
from vfiokit.machine.build import MsixLayout
from vfiokit.machine.txn import DmaError
from vfiokit.pci.address import Bdf
from vfiokit.vfio import open_address_space
from vfiokit.vmm.chipset import FIRST_PIRQ_GSI
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.hotplug import EVENT_PORT, HOTPLUG_PORT, SCI, Kind
from vfiokit.vmm.io_apic import IO_APIC_BASE, LEVEL
from vfiokit.vmm.local_apic import APIC_BASE
from vfiokit.vmm.machine import Stop, VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.pci_bus import ECAM_BASE
from vfiokit.vmm.root_port import (
    ERROR_SOURCE,
    ROOT_ERROR_COMMAND,
    ROOT_ERROR_STATUS,
    SLOT_CONTROL,
    SLOT_STATUS,
    RootPort,
    SlotEvent,
)

PORT = ECAM_BASE + (2 << 15)
PORT_GSI = FIRST_PIRQ_GSI + 4 + 2
PRESENT = 0x40


@pytest.fixture
def host():
    return Host(lambda bdf: Registers(bdf, msix=MsixLayout(4, 0, 0x2000), aer=True))


@pytest.fixture
def vm(host):
    memory = GuestMemory.of_size(host.kernel, 1 << 20)
    with VirtualMachine(host.kernel, memory) as made:
        made.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        yield made


def run(vm: VirtualMachine, *exits) -> list[int]:
    """Values read; see ``taken`` of the processor for interrupts."""
    vcpu = vm.vcpus[0]
    before = len(vcpu.completed)
    vcpu.script += exits
    for _ in range(3):
        vm.run(len(exits) + 10)
    return [values[0] for values in vcpu.completed[before:]]


def route(gsi: int, vector: int) -> list:
    return [
        store(IO_APIC_BASE, 0x10 + 2 * gsi),
        store(IO_APIC_BASE + 0x10, vector | LEVEL),
    ]


@pytest.fixture
def below(vm, host):
    """A device in the slot of a port whose interrupts the guest takes."""
    port = RootPort(2)
    vm.pci.add(port)
    device = host.open()
    function = vm.assign(device, Bdf(0, 0, 0, 0), below=port)
    place_everything(vm.pci)
    run(
        vm,
        *route(PORT_GSI, 0x60),
        store(PORT + SLOT_STATUS, 0xFFFF, 2),
        store(PORT + SLOT_CONTROL, 0x0029, 2),  # button, presence, interrupt
        store(PORT + SLOT_STATUS, 0xFFFF, 2),
        store(APIC_BASE + 0xB0, 0),
    )
    vm.vcpus[0].taken.clear()
    vm.notices.clear()
    return port, function, device


def test_guest_consents_by_switching_its_slot_off(vm, below) -> None:
    port, function, device = below
    vm.unplug(function)
    run(vm)
    assert vm.vcpus[0].taken == [0x60]
    (status,) = run(vm, load(PORT + SLOT_STATUS, 2))
    assert status & SlotEvent.ATTENTION_BUTTON
    assert not device.closed
    run(vm, store(PORT + SLOT_STATUS, status, 2), store(PORT + SLOT_CONTROL, 0x0429, 2))
    assert not device.closed  # power off alone is not yet consent: the indicator is still on
    run(vm, store(PORT + SLOT_CONTROL, 0x0729, 2))
    assert device.closed
    assert not port.config.read(SLOT_STATUS, 2) & PRESENT
    assert [notice.kind for notice in vm.notices] == [Kind.ASKED, Kind.EJECTED]
    assert run(vm, load(ECAM_BASE + (1 << 20))) == [0xFFFF_FFFF]
    assert not any("BAR" in each.name for each in vm.traps.flat)


def test_guest_that_does_not_answer_keeps_its_device(vm, below) -> None:
    _port, function, device = below
    vm.unplug(function)
    run(vm, load(ECAM_BASE + (1 << 20)))
    assert not device.closed
    assert function.bus is vm.pci


def test_surprise_takes_the_device_and_tells_the_guest_afterwards(vm, below) -> None:
    port, function, device = below
    vm.unplug(function, consent=False)
    assert device.closed
    run(vm)
    assert vm.vcpus[0].taken == [0x60]
    status = port.config.read(SLOT_STATUS, 2)
    assert status & SlotEvent.PRESENCE_CHANGED
    assert not status & PRESENT
    with pytest.raises(UsageError):
        vm.unplug(function)


def test_slot_takes_a_device_again(vm, below, host) -> None:
    port, function, _device = below
    vm.unplug(function, consent=False)
    again = vm.assign(host.open(), Bdf(0, 0, 0, 0), below=port)
    assert port.config.read(SLOT_STATUS, 2) & PRESENT
    assert vm.pci.find(1, 0) is again


def test_root_bus_slot_is_ejected_through_acpis_ports(vm, host) -> None:
    device = host.open()
    function = vm.assign(device, "0000:00:05.0")
    run(vm, *route(SCI, 0x90), port_out(EVENT_PORT + 2, 2, 2))
    assert run(vm, port_in(HOTPLUG_PORT), port_in(HOTPLUG_PORT)) == [1 << 5, 0]
    run(vm, port_out(EVENT_PORT, 2, 2), store(APIC_BASE + 0xB0, 0))
    vm.vcpus[0].taken.clear()
    vm.unplug(function)
    run(vm)
    assert vm.vcpus[0].taken == [0x90]
    assert run(vm, port_in(HOTPLUG_PORT + 4), port_in(HOTPLUG_PORT + 12)) == [1 << 5, 1 << 5]
    run(vm, port_out(HOTPLUG_PORT + 8, 1 << 0 | 1 << 31))  # what cannot be removed stays
    assert not device.closed
    run(vm, port_out(HOTPLUG_PORT + 8, 1 << 5))
    assert device.closed
    assert run(vm, port_in(HOTPLUG_PORT + 4), port_in(HOTPLUG_PORT + 12)) == [0, 0]


def test_error_of_the_host_is_reported_by_the_port(vm, below, host) -> None:
    port, function, _device = below
    run(vm, store(PORT + ROOT_ERROR_COMMAND, 7))
    host.kernel.vfio_device(host.kernel.device(host.functions[0].bdf)).report_error()
    assert vm.run(20) is Stop.BUDGET
    run(vm)
    assert vm.vcpus[0].taken == [0x60]
    status, source = run(vm, load(PORT + ROOT_ERROR_STATUS), load(PORT + ERROR_SOURCE))
    assert status & 0x44 == 0x44
    assert source >> 16 == vm.pci.guest_address(function).requester_id
    run(vm, store(PORT + ROOT_ERROR_STATUS, 0x7F), store(APIC_BASE + 0xB0, 0))
    assert port.config.read(ROOT_ERROR_STATUS, 4) == 0
    assert vm.vcpus[0].taken == [0x60]
    assert vm.notices[-1].kind is Kind.ERROR


def test_error_without_a_port_ends_the_run_and_says_so(vm, host) -> None:
    vm.assign(host.open(), "0000:00:05.0")
    host.kernel.vfio_device(host.kernel.device(host.functions[0].bdf)).report_error()
    assert vm.run(20) is Stop.FAILED
    assert "0000:01:00.0" in vm.failure


def test_request_of_the_host_asks_and_takes_when_patience_ends(vm, below, host) -> None:
    _port, _function, device = below
    bdf = host.functions[0].bdf
    unbind = f"/sys/bus/pci/devices/{bdf}/driver/unbind"
    for _ in range(3):
        with pytest.raises(OSError, match="open"):
            host.kernel.tree.write(unbind, str(bdf).encode())
        run(vm)
    assert not device.closed
    assert [notice.kind for notice in vm.notices] == [Kind.REQUEST, Kind.ASKED] * 3
    with pytest.raises(OSError, match="open"):
        host.kernel.tree.write(unbind, str(bdf).encode())
    run(vm)
    assert device.closed
    assert vm.notices[-1].kind is Kind.TAKEN
    host.kernel.tree.write(unbind, str(bdf).encode())


def test_closing_gives_everything_back(host) -> None:
    before = host.machine.memory.allocated
    for _ in range(3):
        memory = GuestMemory.of_size(host.kernel, 1 << 20)
        with VirtualMachine(host.kernel, memory) as vm:
            vm.assign(host.open(), "0000:00:05.0")
            place_everything(vm.pci)
        assert host.machine.memory.allocated == before


@pytest.mark.parametrize("backend", ["group", "cdev"])
def test_device_that_leaves_takes_no_memory_from_one_that_shares_its_space(backend) -> None:
    host = Host(Registers, Registers)
    bdfs = [function.bdf for function in host.functions]
    space = open_address_space(host.kernel, *bdfs, backend=backend)
    memory = GuestMemory.of_size(host.kernel, 1 << 20)
    memory.write(0x4000, b"for both")
    with space, VirtualMachine(host.kernel, memory) as vm:
        functions = [
            vm.assign(host.open(number, address_space=space), Bdf(0, 0, 4 + number, 0))
            for number in range(2)
        ]
        place_everything(vm.pci)
        vm.unplug(functions[0], consent=False)
        assert host.functions[1].dma.read(0x4000, 8) == b"for both"
        with pytest.raises(DmaError):
            host.functions[0].dma.read(0x4000, 8)


def test_device_refused_is_left_open_and_without_the_guests_memory(vm, host) -> None:
    with host.open() as device:
        with pytest.raises(UsageError, match="already"):
            vm.assign(device, "0000:00:1f.0")
        with pytest.raises(UsageError, match="relocation"):
            vm.assign(device, "0000:00:05.0", msix_relocation="nowhere")
        assert not device.closed
        device.set_bus_master(True)
        faults = host.machine.iommus[0].faults
        before = faults.total
        with pytest.raises(DmaError):
            host.functions[0].dma.read(0, 8)
        assert faults.total == before + 1
        assert "BAR" not in str(vm.traps.flat)
    vm.assign(host.open(), "0000:00:05.0")
