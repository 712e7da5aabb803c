"""Edited topologies: what changes, and that nothing else does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolation_topologies import FULL, OFF, Builder, bdf, switch

from vfiokit import data
from vfiokit.errors import ConfigRangeError, DeviceNotFoundError
from vfiokit.host.source import open_host
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.edit import (
    EditError,
    card,
    moved,
    with_acs_capability,
    with_acs_control,
    with_register,
    without,
)
from vfiokit.pci.topology import Topology


@pytest.fixture(scope="module")
def demo() -> Topology:
    return open_host(str(data.path_of(data.DEMO_RECORD))).topology()


def machine(**switch_options) -> Builder:
    builder = Builder()
    switch(builder, **switch_options)
    builder.root_port("00:02.0", 5)
    builder.root_port("00:03.0", 6)
    builder.endpoint("06:00.0")
    return builder


def snapshot(topology: Topology):
    return {each.bdf: each.config.data for each in topology}


def hierarchy(topology: Topology):
    """Which function hangs below which, by identity of the functions."""
    return {
        each.bdf: tuple(bridge.bdf for bridge in topology.path_to_root(each)) for each in topology
    }


def test_acs_control_changes_at_the_named_ports_alone() -> None:
    topology = machine(acs_a=OFF, acs_b=OFF).topology()
    before = snapshot(topology)
    edited = with_acs_control(topology, {bdf("02:00.0"): Acs(0x1D)})
    assert edited[bdf("02:00.0")].acs_control == Acs(0x1D)
    assert snapshot(topology) == before
    changed = {each for each, raw in snapshot(edited).items() if raw != before[each]}
    assert changed == {bdf("02:00.0")}
    assert hierarchy(edited) == hierarchy(topology)


def test_bits_that_the_port_does_not_have_stay_clear() -> None:
    topology = machine(acs_a=(0x15, 0x00)).topology()
    edited = with_acs_control(topology, {bdf("02:00.0"): Acs(0x7F)})
    assert edited[bdf("02:00.0")].acs_control == Acs(0x15)


def test_acs_cannot_be_set_where_there_is_none() -> None:
    topology = machine().topology()
    with pytest.raises(EditError, match="no ACS capability"):
        with_acs_control(topology, {bdf("02:00.0"): Acs(0x1D)})
    with pytest.raises(DeviceNotFoundError):
        with_acs_control(topology, {bdf("77:00.0"): Acs(0x1D)})


def test_a_function_can_be_given_an_acs_capability(demo) -> None:
    for function in demo:
        if function.express is None or function.acs is not None or len(function.config) < 0x1000:
            continue
        if function.is_virtual:
            continue
        edited = with_acs_capability(demo, {function.bdf: Acs(0x1D)})[function.bdf]
        assert (edited.acs_capability, edited.acs_control) == (Acs(0x1D), Acs(0x1D))
        before = [(each.id, each.offset) for each in function.capabilities]
        after = [(each.id, each.offset) for each in edited.capabilities if each.id != 0x0D]
        assert after == [each for each in before if each[0] != 0x0D]
        assert not edited.capabilities.findings or function.capabilities.findings


def test_acs_cannot_be_given_twice_nor_to_conventional_functions() -> None:
    builder = machine(acs_a=OFF)
    builder.add("00:1f.0")
    topology = builder.topology()
    with pytest.raises(EditError, match="already"):
        with_acs_capability(topology, {bdf("02:00.0"): Acs(0x1D)})
    with pytest.raises(EditError, match="no extended configuration space"):
        with_acs_capability(topology, {bdf("00:1f.0"): Acs(0x1D)})
    edited = with_acs_capability(topology, {bdf("02:01.0"): Acs(0x1D)})
    assert edited[bdf("02:01.0")].acs_control == Acs(0x1D)


def test_a_register_outside_the_capture_cannot_be_set() -> None:
    builder = Builder()
    builder.endpoint("00:01.0", size=64)
    with pytest.raises(ConfigRangeError):
        with_register(builder.topology(), bdf("00:01.0"), 0x100, 4, 1)


def test_a_bridge_leaves_with_everything_below_it() -> None:
    topology = machine().topology()
    assert set(without(topology, [bdf("02:00.0")]).functions) == set(topology.functions) - {
        bdf("02:00.0"),
        bdf("03:00.0"),
    }


def test_a_physical_function_leaves_with_its_virtual_ones(demo) -> None:
    physical = next(each for each in demo if demo.virtual_functions(each))
    left = without(demo, [physical.bdf])
    virtual = {each.bdf for each in demo.virtual_functions(physical)}
    assert virtual
    assert set(demo.functions) - set(left.functions) == virtual | {physical.bdf}


def test_a_card_moves_to_an_empty_slot_and_nothing_else_is_renumbered() -> None:
    topology = machine().topology()
    move = moved(topology, bdf("06:00.0"), bdf("00:02.0"))
    assert move.addresses == {bdf("06:00.0"): bdf("05:00.0")}
    assert [each.bdf for each in move.topology.path_to_root(move.topology[bdf("05:00.0")])] == [
        bdf("00:02.0")
    ]
    assert bdf("06:00.0") not in move.topology
    assert len(move.topology) == len(topology)


def test_a_switch_moves_with_all_below_it_and_buses_are_numbered_anew() -> None:
    topology = machine(acs_a=FULL, acs_b=FULL).topology()
    move = moved(topology, bdf("01:00.0"), bdf("00:02.0"))
    after = move.topology
    # Depth first: the emptied port keeps one bus, then the switch with its three, then the last.
    assert move.addresses == {
        bdf("01:00.0"): bdf("02:00.0"),
        bdf("02:00.0"): bdf("03:00.0"),
        bdf("02:01.0"): bdf("03:01.0"),
        bdf("03:00.0"): bdf("04:00.0"),
        bdf("04:00.0"): bdf("05:00.0"),
    }
    assert [each.bdf for each in after.path_to_root(after[bdf("05:00.0")])] == [
        bdf("03:01.0"),
        bdf("02:00.0"),
        bdf("00:02.0"),
    ]
    assert_windows_nest(after)


def assert_windows_nest(topology: Topology) -> None:
    for function in topology:
        if not function.is_bridge or function.secondary_bus is None:
            continue
        first, last = function.secondary_bus, function.subordinate_bus
        assert function.bdf.bus < first <= last
        for other in topology:
            if function in topology.path_to_root(other):
                assert first <= other.bdf.bus <= last
                if other.secondary_bus is not None and other.subordinate_bus is not None:
                    assert first <= other.secondary_bus <= other.subordinate_bus <= last


def test_virtual_functions_keep_their_distance_from_the_physical_one(demo) -> None:
    physical = next(each for each in demo if demo.virtual_functions(each))
    port = empty_port(demo)
    move = moved(demo, physical.bdf, port)
    new = move.topology[move.addresses[physical.bdf]]
    assert move.topology.upstream_bridge(new).bdf == port
    before = [each.bdf.requester_id for each in demo.virtual_functions(physical)]
    after = [each.bdf.requester_id for each in move.topology.virtual_functions(new)]
    shift = new.bdf.requester_id - physical.bdf.requester_id
    assert after == [requester_id + shift for requester_id in before]
    assert len(move.topology) == len(demo)


def empty_port(topology: Topology):
    for function in topology:
        bus = topology.secondary(function)
        if function.port_type is PortType.ROOT_PORT and bus is not None and not bus.functions:
            return function.bdf
    raise AssertionError("no empty port")


def test_what_was_recorded_of_the_old_place_does_not_move_along(demo) -> None:
    drive = bdf("05:00.0")
    assert demo[drive].recorded.iommu_group is not None
    move = moved(demo, drive, empty_port(demo))
    after = move.topology[move.addresses[drive]]
    assert after.recorded.driver == demo[drive].recorded.driver
    assert after.recorded.iommu_group is None
    assert after.recorded.current_link_speed is None
    assert after.identity == demo[drive].identity
    assert [each.size for each in after.resources] == [each.size for each in demo[drive].resources]


@pytest.mark.parametrize(
    ("what", "where", "reason"),
    [
        ("00:01.0", "00:02.0", "part of the root complex"),
        ("02:00.0", "00:02.0", "the switch moves as a whole"),
        ("06:00.0", "00:03.0", "is below 0000:00:03.0 already"),
        ("01:00.0", "02:00.0", "a part of what would be moved"),
        ("06:00.0", "03:00.0", "no port that a card can be put below"),
        ("06:00.0", "01:00.0", "no port that a card can be put below"),
        ("06:00.0", "02:00.0", "there is already 0000:03:00.0"),
    ],
)
def test_a_move_that_cannot_be_says_why(what, where, reason) -> None:
    topology = machine().topology()
    with pytest.raises(EditError, match=reason):
        moved(topology, bdf(what), bdf(where))


def test_conventional_cards_and_pcie_slots_do_not_fit() -> None:
    builder = machine()
    builder.root_port("00:04.0", 7)
    builder.add("07:00.0", PortType.PCIE_TO_PCI_BRIDGE, below=8)
    builder.add("08:01.0")
    builder.add("00:05.0", below=9)
    topology = builder.topology()
    with pytest.raises(EditError, match="is conventional PCI"):
        moved(topology, bdf("08:01.0"), bdf("00:02.0"))
    with pytest.raises(EditError, match="is PCIe"):
        moved(topology, bdf("06:00.0"), bdf("00:05.0"))
    move = moved(topology, bdf("08:01.0"), bdf("00:05.0"))
    assert move.addresses == {bdf("08:01.0"): bdf("09:01.0")}


def test_a_hierarchy_without_bus_numbers_left_is_refused() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 0xFE)
    builder.root_port("00:02.0", 0xFF)
    builder.add("fe:00.0", PortType.UPSTREAM, below=0xFF)
    builder.root_port("fd:00.0", 0xFE)
    topology = builder.topology(root_buses=[(0, 0), (0, 1), (0, 0xFD)])
    with pytest.raises(EditError, match="too few bus numbers"):
        moved(topology, bdf("fe:00.0"), bdf("00:02.0"))


def test_all_functions_on_a_link_are_one_card() -> None:
    builder = machine()
    builder.endpoint("05:00.0", multifunction=True)
    builder.endpoint("05:00.1")
    builder.virtual("05:01.0", "05:00.0")
    topology = builder.topology()
    assert [each.bdf for each in card(topology, bdf("05:01.0"))] == [bdf("05:00.0"), bdf("05:00.1")]
