"""A guest's PCI: ports and memory show the same registers, bridges route, BARs decode."""

from __future__ import annotations

import pytest
from guest_rig import ScriptedVcpu, load, port_in, port_out
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import capabilities
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.guest_function import GuestBar, GuestFunction
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.pci_bus import ECAM_BASE, PciBus
from vfiokit.vmm.root_port import RootPort
from vfiokit.vmm.trap_map import TrapMap

ONES = 0xFFFF_FFFF


class Bytes:
    def __init__(self) -> None:
        self.stored: dict[int, int] = {}

    def read(self, offset: int, width: int) -> int:
        return self.stored.get(offset, 0)

    def write(self, offset: int, width: int, value: int) -> None:
        self.stored[offset] = value


def emulated(device: int = 3, *bars: GuestBar, function: int = 0) -> GuestFunction:
    data = bytearray(4096)
    data[0:4] = b"\xf4\x1a\x41\x10"
    config = GuestConfig(bytes(data))
    config.allow(0x04, 2, 0x0407)
    return GuestFunction(
        Bdf(0, 0, device, function),
        config,
        bars
        or (GuestBar(0, 0x1000, handler=Bytes()), GuestBar(2, 0x20, memory=False, handler=Bytes())),
    )


@pytest.fixture
def bus() -> PciBus:
    return PciBus(TrapMap(), TrapMap(1))


@pytest.fixture
def vm():
    machine = Machine(ram=1 << 28)
    machine.add_host_bridge()
    kernel = SoftwareKernel(machine)
    with VirtualMachine(kernel, GuestMemory.of_size(kernel, 1 << 20)) as made:
        yield made


def run(vm: VirtualMachine, *exits):
    if not vm.vcpus:
        vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
    vcpu = vm.vcpus[0]
    before = len(vcpu.completed)
    vcpu.script += exits
    vm.run(len(exits) + 10)
    return [values[0] for values in vcpu.completed[before:]]


def address(device: int, offset: int, bus: int = 0) -> int:
    return 1 << 31 | bus << 16 | device << 11 | offset


def test_ports_and_memory_show_the_same_registers(vm) -> None:
    vm.pci.add(emulated())
    by_ports = run(vm, port_out(0xCF8, address(3, 0)), port_in(0xCFC), port_in(0xCFE, 2))
    by_memory = run(vm, load(ECAM_BASE + (3 << 15)), load(ECAM_BASE + (3 << 15) + 2, 2))
    assert by_ports == by_memory == [0x1041_1AF4, 0x1041]
    assert vm.exits["config"] == 5


def test_only_a_dword_at_cf8_sets_the_address_and_enable_matters(vm) -> None:
    vm.pci.add(emulated())
    run(vm, port_out(0xCF8, address(3, 0)), port_out(0xCF8, 0, 2), port_out(0xCF9, 0, 1))
    assert run(vm, port_in(0xCF8), port_in(0xCFC)) == [address(3, 0), 0x1041_1AF4]
    run(vm, port_out(0xCF8, address(3, 0) & ~(1 << 31)))
    assert run(vm, port_in(0xCFC)) == [ONES]


def test_absent_functions_read_all_ones_and_swallow_writes(vm) -> None:
    assert run(vm, port_out(0xCF8, address(9, 0)), port_out(0xCFC, 0), port_in(0xCFC)) == [ONES]
    assert run(vm, load(ECAM_BASE + (0x40 << 20))) == [ONES]


def test_guest_sees_the_chipset(vm) -> None:
    assert vm.pci.config_read(0, 0, 0, 4) == 0x29C0_8086
    assert vm.pci.config_read(0, 0x1F << 3, 0x0A, 2) == 0x0601
    vm.pci.config_write(0, 0, 0, 4, 0)
    assert vm.pci.config_read(0, 0, 0, 4) == 0x29C0_8086


def test_ecam_moves_and_goes_with_its_register(vm) -> None:
    vm.pci.config_write(0, 0, 0x60, 4, 0xD000_0001)
    assert run(vm, load(0xD000_0000), load(ECAM_BASE)) == [0x29C0_8086, ONES]
    vm.pci.config_write(0, 0, 0x60, 4, 0xD000_0000)
    assert run(vm, load(0xD000_0000)) == [ONES]


def test_place_taken_twice_is_refused_and_gone_ones_are_gone(bus) -> None:
    function = emulated()
    bus.add(function)
    with pytest.raises(UsageError):
        bus.add(emulated())
    bus.remove(function)
    assert bus.config_read(0, 3 << 3, 0, 4) == ONES
    with pytest.raises(UsageError):
        bus.remove(function)


# --- BARs ---


def names(traps: TrapMap) -> list[tuple[int, int]]:
    return [(each.start, each.end) for each in traps.flat if "BAR" in each.name]


def setup(*bars: GuestBar):
    traps, ports = TrapMap(), TrapMap(1)
    bus = PciBus(traps, ports)
    function = emulated(3, *bars)
    bus.add(function)
    return traps, ports, bus, function


def test_bar_tells_its_size_and_decodes_only_where_it_was_put() -> None:
    traps, ports, _bus, function = setup()
    config = function.config
    config.write(0x10, 4, ONES)
    config.write(0x18, 4, ONES)
    assert config.read(0x10, 4) == 0xFFFF_F000
    assert config.read(0x18, 4) == 0xFFFF_FFE1
    config.write(0x04, 2, 3)
    assert names(traps) == []  # still at the top, as the sizing left it
    config.write(0x10, 4, 0xFEB0_0FFF)
    config.write(0x18, 4, 0xC01F)
    assert names(traps) == [(0xFEB0_0000, 0xFEB0_1000)]
    assert names(ports) == [(0xC000, 0xC020)]
    config.write(0x04, 2, 1)
    assert names(traps) == []
    assert names(ports) == [(0xC000, 0xC020)]


def test_wide_bar_is_two_registers() -> None:
    traps, _ports, _bus, function = setup(GuestBar(2, 1 << 33, wide=True, prefetchable=True))
    config = function.config
    config.write(0x18, 4, ONES)
    config.write(0x1C, 4, ONES)
    assert (config.read(0x18, 4), config.read(0x1C, 4)) == (0xC, 0xFFFF_FFFE)
    config.write(0x18, 4, 0)
    config.write(0x1C, 4, 0x40)
    config.write(0x04, 2, 2)
    assert names(traps) == [(0x40_0000_0000, 0x42_0000_0000)]


def test_byte_by_byte_writes_move_a_bar() -> None:
    traps, _ports, _bus, function = setup()
    function.config.write(0x04, 2, 2)
    for index, byte in enumerate((0x00, 0x10, 0xB0, 0xFE)):
        function.config.write(0x10 + index, 1, byte)
    assert names(traps) == [(0xFEB0_1000, 0xFEB0_2000)]


def test_rom_needs_its_own_enable_bit() -> None:
    traps, _ports, _bus, function = setup(GuestBar(6, 0x10000, handler=Bytes()))
    function.config.write(0x04, 2, 2)
    function.config.write(0x30, 4, ONES & ~1)
    assert function.config.read(0x30, 4) == 0xFFFF_0000
    function.config.write(0x30, 4, 0xFEA0_0000)
    assert names(traps) == []
    function.config.write(0x30, 4, 0xFEA0_0001)
    assert names(traps) == [(0xFEA0_0000, 0xFEA1_0000)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x04, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30, 0x0C, 0x3C]),
            st.sampled_from([1, 2, 4]),
            st.integers(0, ONES),
        ),
        max_size=30,
    )
)
def test_moves_of_bars_leave_the_map_as_from_scratch(writes) -> None:
    bars = (
        GuestBar(0, 0x4000, wide=True, handler=Bytes()),
        GuestBar(2, 0x100, handler=Bytes()),
        GuestBar(3, 0x40, memory=False, handler=Bytes()),
        GuestBar(6, 0x800, handler=Bytes()),
    )
    traps, ports, _bus, function = setup(*bars)
    for offset, width, value in writes:
        function.config.write(offset, width, value & (1 << 8 * width) - 1)
    fresh_traps, fresh_ports, fresh_bus, fresh = setup(*bars)
    fresh.config.data[:] = function.config.data
    fresh_bus.refresh()
    for one, other in ((traps, fresh_traps), (ports, fresh_ports)):
        assert [(e.start, e.end, e.name) for e in one.flat] == [
            (e.start, e.end, e.name) for e in other.flat
        ]
    assert function.config.read(0, 4) == 0x1041_1AF4


# --- bridges ---


def bridged():
    traps, ports = TrapMap(), TrapMap(1)
    bus = PciBus(traps, ports)
    port = RootPort(2)
    bus.add(port)
    function = emulated(0)
    bus.add(function, port)
    return traps, bus, port, function


def test_bus_numbers_are_what_the_guest_writes() -> None:
    _traps, bus, port, function = bridged()
    assert bus.find(1, 0) is None
    bus.config_write(0, 2 << 3, 0x18, 4, 0x00_05_04_00)
    assert port.secondary == 4
    assert bus.find(4, 0) is function
    assert bus.find(5, 0) is None
    assert bus.guest_address(function) == Bdf(0, 4, 0, 0)


def test_bar_outside_the_windows_does_not_decode() -> None:
    traps, _bus, port, function = bridged()
    function.config.write(0x10, 4, 0xFE00_0000)
    function.config.write(0x04, 2, 2)
    assert names(traps) == []
    port.open_windows(1, memory=(0xFE00_0000, 0xFE10_0000))
    assert names(traps) == [(0xFE00_0000, 0xFE00_1000)]
    function.config.write(0x10, 4, 0xFE10_0000)
    assert names(traps) == []
    port.open_windows(1, prefetchable=(0xFE10_0000, 0xFE20_0000))
    assert names(traps) == [(0xFE10_0000, 0xFE10_1000)]
    port.config.write(0x04, 2, 0)
    assert names(traps) == []


def test_firmware_places_everything_apart(bus) -> None:
    port = RootPort(2)
    bus.add(port)
    wide = GuestBar(0, 1 << 33, wide=True, prefetchable=True)
    functions = [emulated(3), emulated(4, wide), emulated(0)]
    bus.add(functions[0])
    bus.add(functions[1])
    bus.add(functions[2], port)
    place_everything(bus)
    placed = [
        (each.address, each.address + each.bar.size)
        for f in functions
        for each in f.placed()
        if each.bar.memory
    ]
    assert len(placed) == 3
    assert all(a[1] <= b[0] or b[1] <= a[0] for a in placed for b in placed if a is not b)
    assert bus.guest_address(functions[2]) == Bdf(0, 1, 0, 0)
    assert placed[1][0] >= 1 << 38


def test_firmware_says_what_has_no_room(bus) -> None:
    bus.add(emulated(3, GuestBar(0, 1 << 31)))
    with pytest.raises(UsageError, match="BAR 0"):
        place_everything(bus)


def test_port_shows_express_slot_and_errors(bus) -> None:
    port = RootPort(2, slot=7)
    data = bytes(port.config.read(offset, 1) for offset in range(4096))
    listed = capabilities(ConfigSpace(data))
    assert [each.id for each in listed] == [0x10, 0x01]
    assert port.config.read(0x42, 2) >> 4 & 0xF == PortType.ROOT_PORT
    assert port.config.read(0x54, 4) >> 19 == 7


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4095), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)
        ),
        max_size=40,
    )
)
def test_no_configuration_write_breaks_a_port(writes) -> None:
    _traps, bus, port, _function = bridged()
    for offset, width, value in writes:
        bus.config_write(0, 2 << 3, offset, width, value & (1 << 8 * width) - 1)
        assert 0 <= bus.config_read(0, 2 << 3, offset, width) < 1 << 8 * width
    assert port.config.read(0, 4) == 0x000C_1B36
