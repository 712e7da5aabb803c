"""A function of the host in a guest: what passes through, what is emulated, what is mapped."""

from __future__ import annotations

import pytest
from device_rig import MIB, Host, Registers, nvme, without_mappable_table
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.machine.build import MsiLayout, MsixLayout
from vfiokit.machine.function import BarModel
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import capabilities
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.guest_config import Source
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.root_port import RootPort
from vfiokit.vmm.trap_map import Access, TrapMap


class Set:
    """A function on a bus without a machine around it."""

    def __init__(
        self, device, page_size: int = 4096, below: bool = False, **wishes: object
    ) -> None:
        self.traps, self.ports = TrapMap(page_size), TrapMap(1)
        self.bus = PciBus(self.traps, self.ports)
        self.bus.place_ecam(None)
        port = None
        if below:
            port = RootPort(1)
            self.bus.add(port)
        place = Bdf(0, 0, 0 if below else 4, 0)
        self.function = AssignedFunction(
            device, place, page_size=page_size, on_root_bus=not below, **wishes
        )
        self.bus.add(self.function, port)
        self.config = self.function.config

    def flat(self) -> list[tuple[int, int, Access, str]]:
        return [(each.start, each.end, each.access, each.name) for each in self.traps.flat]


@pytest.fixture
def host():
    return Host(
        lambda bdf: Registers(
            bdf,
            bars=(
                BarModel(0, 0x10000, wide=True),
                BarModel(2, 0x100),
                BarModel(3, 0x20, memory=False),
            ),
            msix=MsixLayout(8, 0, 0x2000),
            msi=MsiLayout(4),
            aer=True,
            ari=True,
            serial_number=0x1122334455667788,
        )
    )


@pytest.fixture
def device(host):
    with host.open() as opened:
        yield opened


def space(config) -> ConfigSpace:
    return ConfigSpace(bytes(config.read(offset, 1) for offset in range(len(config))))


# --- configuration space ---


def test_identity_is_the_devices_and_bars_are_the_guests(device) -> None:
    config = Set(device).config
    assert config.read(0, 4) == device.config.u32(0)
    assert config.read(0x08, 4) == device.config.u32(0x08)
    assert config.read(0x10, 4) == 4
    config.write(0x10, 4, 0xFFFF_FFFF)
    assert config.read(0x10, 4) == 0xFFFF_0004
    assert config.read(0x1C, 4) == 1
    assert device.config.u32(0x10) & ~0xF != 0xFFFF_0000


def test_every_byte_has_a_source_and_they_are_the_four_kinds(device) -> None:
    source = Set(device).config.source
    assert [source[at] for at in (0x00, 0x04, 0x10, 0x34, 0x3C, 0x3D, 0x0C)] == [
        Source.DISCOVERY,
        Source.VIRTUALISED,
        Source.EMULATED,
        Source.EMULATED,
        Source.EMULATED,
        Source.VIRTUALISED,
        Source.PASSED,
    ]
    assert set(source) == set(Source)


def test_writes_pass_through_where_the_register_is_the_devices(device, host) -> None:
    made = Set(device)
    made.config.write(0x04, 2, 0x0006)
    assert host.functions[0].config_read(0x04, 2) & 6 == 6
    made.config.write(0x0C, 1, 0x10)
    assert device.config.u8(0x0C) == 0x10
    made.config.write(0x3C, 1, 11)
    assert made.config.read(0x3C, 1) == 11


def test_command_and_status_in_one_dword_keep_each_other(device) -> None:
    made = Set(device)
    status = made.config.read(0x06, 2)
    made.config.write(0x04, 4, 0x0006)
    assert made.config.read(0x04, 4) == status << 16 | 0x0006


def test_hidden_extended_capabilities_are_out_of_the_list(device) -> None:
    real = [each.id for each in capabilities(device.config.snapshot()) if each.extended]
    shown = [each.id for each in capabilities(space(Set(device).config)) if each.extended]
    assert 0x0E in real
    assert shown == [each for each in real if each != 0x0E]


def test_standard_capabilities_are_all_there_and_without_findings(device) -> None:
    listed = capabilities(space(Set(device).config))
    assert listed.find(0x11) is not None
    assert listed.find(0x05) is not None
    assert listed.findings == ()


def port_type(config) -> int:
    at = capabilities(space(config)).find(0x10).offset
    return config.read(at + 2, 2) >> 4 & 0xF


def link(config) -> int:
    at = capabilities(space(config)).find(0x10).offset
    return config.read(at + 0x0C, 4)


def test_endpoint_on_the_root_bus_becomes_integrated_without_a_link(device) -> None:
    made = Set(device)
    assert port_type(made.config) == PortType.RC_INTEGRATED_ENDPOINT
    assert link(made.config) == 0


def test_endpoint_below_a_port_stays_one_with_its_link(device) -> None:
    made = Set(device, below=True)
    assert port_type(made.config) == PortType.ENDPOINT
    assert link(made.config) != 0


def test_integrated_endpoint_below_a_port_gets_a_link() -> None:
    kind = PortType.RC_INTEGRATED_ENDPOINT
    host = Host(lambda bdf: Registers(bdf, express=kind))
    with host.open() as device:
        made = Set(device, below=True)
        assert port_type(made.config) == PortType.ENDPOINT
        assert link(made.config) & 0x3FF == 0x11


def test_multifunction_bit_is_the_guests(device) -> None:
    assert Set(device).config.read(0x0E, 1) == 0


def test_msi_and_msix_begin_off_whatever_the_device_had(device) -> None:
    made = Set(device)
    listed = capabilities(space(made.config))
    assert made.config.read(listed.find(0x11).offset + 2, 2) == 7
    assert made.config.read(listed.find(0x05).offset + 2, 2) & 0x71 == 0


def test_device_that_vanished_reads_all_ones_and_nothing_breaks(device) -> None:
    made = Set(device)
    place_everything(made.bus)

    class Gone:
        def read(self, offset, width):
            raise OSError(19, "gone")

        def write(self, offset, width, value):
            raise OSError(19, "gone")

    made.config.device = Gone()
    assert made.config.read(0, 4) == 0xFFFF_FFFF
    made.config.write(0x04, 2, 7)
    assert made.flat() == []


# --- BARs ---


def test_bars_are_mapped_trapped_or_ports_as_they_allow(device) -> None:
    made = Set(without_mappable_table(device))
    place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
    name = str(device)
    direct, trap = Access.DIRECT, Access.TRAP
    assert made.flat() == [
        (0xFE00_0000, 0xFE00_2000, direct, f"{name} BAR 0 mmaps[0]"),
        (0xFE00_2000, 0xFE00_2080, trap, "msix-table"),
        (0xFE00_2080, 0xFE00_3000, trap, f"{name} BAR 0"),
        (0xFE00_3000, 0xFE01_0000, direct, f"{name} BAR 0 mmaps[1]"),
        (0xFE01_0000, 0xFE01_1000, direct, f"{name} BAR 2 mmaps[0]"),
    ]
    assert [(e.start, e.end, e.name) for e in made.ports.flat if "BAR" in e.name] == [
        (0xC000, 0xC020, f"{name} BAR 3")
    ]


def test_small_bar_off_a_page_start_traps(device) -> None:
    made = Set(device)
    place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
    assert made.traps.maps(0xFE01_0000, 4)
    made.config.write(0x18, 4, 0xFE01_0100)
    assert not made.traps.maps(0xFE01_0100, 4)
    # QEMU lists it as ramd without the mark KVM, since no whole page is left to map.
    assert made.traps.find(0xFE01_0100).name == f"{device} BAR 2 mmaps[0]"
    assert made.traps.find(0xFE01_0200) is None


def test_grown_page_gives_way_to_what_else_is_in_it(device) -> None:
    made = Set(device)
    place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
    made.config.write(0x10, 4, 0xFE10_0000)
    made.config.write(0x18, 4, 0xFE10_0000)  # both at the start of one page
    assert made.traps.find(0xFE10_0000).name == f"{device} BAR 0 mmaps[0]"


def test_pages_of_64_kib_trap_what_is_smaller(device) -> None:
    made = Set(without_mappable_table(device), page_size=1 << 16)
    place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
    assert all(each.access is Access.TRAP for each in made.traps.flat if "BAR 0" in each.name)


def test_bars_asked_not_to_be_mapped_trap(device) -> None:
    made = Set(device, no_map=frozenset({0}))
    place_everything(made.bus)
    assert all("BAR 0 mmaps" not in each.name for each in made.traps.flat)


def test_mapped_and_trapped_accesses_reach_the_same_registers(device, host) -> None:
    made = Set(device)
    place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
    mapped, trapped = made.traps.find(0xFE00_0000), made.function._registers[0]
    mapped.wish.handler.write(0x40, 4, 0x11223344)
    assert trapped.read(0x40, 4) == 0x11223344
    trapped.write(0x43, 4, 0xAABBCCDD)  # misaligned
    assert mapped.wish.handler.read(0x43, 4) == 0xAABBCCDD
    ports = made.ports.find(0xC000).wish.handler
    ports.write(4, 4, 0x55)
    assert host.functions[0].stored[3, 4] == 0x55


def test_accesses_while_decoding_is_off_read_ones_and_are_lost(device) -> None:
    made = Set(device)
    place_everything(made.bus)
    handler = made.function._windows[0][0]
    made.config.write(0x04, 2, 0)
    assert handler.read(0, 4) == 0xFFFF_FFFF
    assert handler.read(1, 4) == 0xFFFF_FFFF
    handler.write(0, 4, 1)
    made.config.write(0x04, 2, 2)
    assert handler.read(0, 4) == 0


def test_device_asleep_decodes_nothing_until_it_wakes(device) -> None:
    made = Set(device)
    place_everything(made.bus)
    before = made.flat()
    power = capabilities(space(made.config)).find(0x01).offset + 4
    made.config.write(power, 2, 3)
    assert made.flat() == []
    made.config.write(power, 2, 0)
    assert made.flat() == before != []


def test_relocated_table_leaves_the_bar_whole_and_still_works(device) -> None:
    made = Set(without_mappable_table(device), msix_relocation="bar4")
    place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
    table = capabilities(space(made.config)).find(0x11)
    assert table.decode()["vector_table"]["bar"] == 4
    by_name = {each.name: each for each in made.traps.flat}
    start, end, *_rest = by_name[f"{device} BAR 0 mmaps[0]"]
    assert end - start == 0x10000
    handler = by_name["msix-table"].wish.handler
    handler.write(16 + 8, 4, 0x41)
    assert handler.read(16 + 8, 4) == 0x41
    assert "msix-pba" in by_name


def test_relocation_to_a_taken_upper_half_is_refused(device) -> None:
    with pytest.raises(UsageError):
        Set(device, msix_relocation="bar1")


def test_reset_takes_everything_back(device, host) -> None:
    made = Set(device)
    place_everything(made.bus)
    made.bus.host = None
    assert made.flat()
    made.function._windows[0][0].write(0x40, 4, 7)
    made.function.reset()
    assert made.flat() == []
    assert made.config.read(0x10, 4) == 4
    assert made.config.read(0x04, 2) & 7 == 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x3F), st.integers(0, 4095)),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=60,
    )
)
def test_no_configuration_write_breaks_a_function(writes) -> None:
    host = Host(lambda bdf: Registers(bdf, msix=MsixLayout(8, 0, 0x2000), msi=MsiLayout(4)))
    with host.open() as device:
        made = Set(device)
        for offset, width, value in writes:
            made.config.write(offset, width, value & (1 << 8 * width) - 1)
            made.config.read(offset, width)
        assert made.config.read(0, 2) == 0x8086
        fresh = TrapMap()
        fresh.ask(made.function, made.traps.wishes.get(made.function, ()))
        ours = [each for each in made.traps.flat if each.name != "pcie-mmcfg-mmio"]
        assert [e[:3] for e in ours] == [e[:3] for e in fresh.flat]


def test_nvme_of_the_machine_is_mapped_but_for_its_table() -> None:
    host = Host(nvme)
    with host.open() as device:
        made = Set(device)
        place_everything(made.bus, low=(0xFE00_0000, 0xFF00_0000))
        assert made.traps.maps(0xFE00_1000, 8)
        table = next(each for each in made.traps.flat if each.name == "msix-table")
        assert table.end - table.start == 16 * device.msix.count
        capability = made.traps.find(0xFE00_0000).wish.handler.read(0, 8)
        assert capability == device.region(0).read64(0)


def test_bar_beyond_what_firmware_has_goes_high() -> None:
    bars = (BarModel(0, 32 * MIB, wide=True, prefetchable=True),)
    host = Host(lambda bdf: Registers(bdf, bars=bars))
    with host.open() as device:
        made = Set(device)
        place_everything(made.bus, low=(0xFE00_0000, 0xFE10_0000))
        (found,) = made.traps.flat
        assert found.start >= 1 << 38
