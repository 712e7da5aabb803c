"""What differs between two hosts: each kind of change, and what is no change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolation_topologies import FULL, OFF, Builder, bdf, switch

from vfiokit.host.difference import Area, Missing, difference
from vfiokit.host.match import match
from vfiokit.host.source import open_host
from vfiokit.isolation.regroup import group_changes, regrouped
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import LINK_STATUS
from vfiokit.pci.edit import moved, with_acs_control, with_register, without
from vfiokit.pci.topology import Function, Recorded, Resource, Topology


@pytest.fixture(scope="module")
def demo() -> Topology:
    return open_host("demo").topology()


def changed(topology: Topology, address: str, **recorded) -> Topology:
    """One function's recorded facts or resources replaced."""

    def edited(function: Function) -> Function:
        if function.bdf != bdf(address):
            return function
        resources = recorded.pop("resources", function.resources)
        return Function(
            function.bdf,
            function.config,
            function.identity,
            resources=resources,
            physfn=function.physfn,
            recorded=function.recorded._replace(**recorded),
        )

    return Topology([edited(each) for each in topology])


def told(before: Topology, after: Topology) -> list[tuple[Area, str, str]]:
    found = difference(before, after).changes
    return [(each.area, str(each.address or each.new_address), each.text()) for each in found]


def test_a_host_does_not_differ_from_itself(demo) -> None:
    found = difference(demo, demo)
    assert (found.changes, found.missing) == ((), ())
    assert len(found.matching.pairs) == len(demo)


@pytest.mark.parametrize(
    ("facts", "area", "text"),
    [
        ({"driver": "vfio-pci"}, Area.DRIVERS, "driver nvme → vfio-pci"),
        ({"driver": None}, Area.DRIVERS, "driver nvme → none"),
        ({"driver_override": "vfio-pci"}, Area.DRIVERS, "driver override none → vfio-pci"),
        ({"reset_methods": ("bus",)}, Area.RESET, "reset methods flr bus → bus"),
        ({"numa_node": 1}, Area.NUMA, "NUMA node 0 → 1"),
        ({"power_state": "D3cold"}, Area.OTHER, "power state D0 → D3cold"),
    ],
)
def test_what_the_kernel_recorded_is_compared(demo, facts, area, text) -> None:
    after = changed(demo, "05:00.0", **facts)
    assert told(demo, after) == [(area, "0000:05:00.0", text)]


def test_recorded_groups_are_not_told_as_a_fact_of_the_function(demo) -> None:
    assert told(demo, changed(demo, "05:00.0", iommu_group=99)) == []


def test_a_link_that_trained_lower_is_told(demo) -> None:
    drive = demo[bdf("05:00.0")]
    offset = drive.express.offset + LINK_STATUS.offset
    value = drive.config.u16(offset) & ~0x3FF | 0x11
    after = with_register(demo, drive.bdf, offset, 2, value)
    assert told(demo, after) == [(Area.LINKS, "0000:05:00.0", "link 8 GT/s x4 → 2.5 GT/s x1")]


def test_acs_bits_are_told_by_name(demo) -> None:
    after = with_acs_control(demo, {bdf("00:03.0"): Acs(0x19)})
    (change,) = difference(demo, after).changes
    assert change.area is Area.ACS
    assert (change.lost, change.gained) == (("request redirect",), ())
    assert change.text() == "ACS control 0x001d → 0x0019 (request redirect off)"


def test_a_card_in_another_slot_is_moved_not_gone(demo) -> None:
    move = moved(demo, bdf("05:00.0"), bdf("80:02.0"))
    found = difference(demo, move.topology)
    devices = [each.text() for each in found.changes if each.area is Area.DEVICES]
    assert devices == [f"moved to {move.addresses[bdf('05:00.0')]}"]
    assert not found.matching.gone
    assert not found.matching.new


def test_a_card_that_left_and_one_that_came(demo) -> None:
    less = without(demo, [bdf("05:00.0")])
    assert [
        (each.what, each.address, each.new_address) for each in difference(demo, less).changes
    ] == [("gone", bdf("05:00.0"), None)]
    assert [
        (each.what, each.address, each.new_address) for each in difference(less, demo).changes
    ] == [("new", None, bdf("05:00.0"))]


def test_virtual_functions_are_counted_not_listed(demo) -> None:
    physical = next(each for each in demo if demo.virtual_functions(each))
    sriov = physical.capabilities.find_extended(0x10)
    none = without(demo, [each.bdf for each in demo.virtual_functions(physical)])
    none = with_register(none, physical.bdf, sriov.offset + 0x10, 2, 0)
    texts = [each.text() for each in difference(demo, none).changes if each.area is Area.SRIOV]
    assert texts == [f"virtual functions {len(demo.virtual_functions(physical))} → 0"]
    assert not [each for each in difference(demo, none).changes if each.area is Area.DEVICES]


def test_a_bar_that_moved_or_grew_is_told(demo) -> None:
    old = demo[bdf("05:00.0")].resources
    first = old[0]
    grown = Resource(0, first.start, first.start + 0x7FFF, first.flags)
    after = changed(demo, "05:00.0", resources=(grown, *old[1:]))
    assert told(demo, after) == [
        (
            Area.BARS,
            "0000:05:00.0",
            "BAR 0 memory64 at 0x94700000 size 0x4000 → memory64 at 0x94700000 size 0x8000",
        )
    ]


def test_error_masks_are_an_area_of_their_own(demo) -> None:
    port = demo[bdf("00:03.0")]
    aer = port.capabilities.find_extended(0x01)
    value = port.config.u32(aer.offset + 0x08)
    after = with_register(demo, port.bdf, aer.offset + 0x08, 4, value ^ 1 << 21)
    (change,) = difference(demo, after).changes
    assert change.area is Area.AER
    assert "acs violation" in (*change.lost, *change.gained)


def test_other_registers_are_told_by_capability_register_and_flag(demo) -> None:
    command = demo[bdf("05:00.0")].config.u16(0x04)
    after = with_register(demo, bdf("05:00.0"), 0x04, 2, command & ~4)
    (change,) = difference(demo, after).changes
    assert (change.area, change.what, change.lost) == (Area.OTHER, "command", ("bus master",))


def test_facts_of_one_source_only_are_not_changes(demo) -> None:
    bare = Topology(
        [Function(each.bdf, each.config, each.identity, physfn=each.physfn) for each in demo]
    )
    found = difference(demo, bare)
    assert found.changes == ()
    assert {each.what for each in found.missing} >= {"drivers", "NUMA nodes", "BAR sizes"}
    assert all(each.in_before for each in found.missing)
    assert {each.in_before for each in difference(bare, demo).missing} == {False}


def test_a_shorter_capture_takes_nothing_away(demo) -> None:
    from vfiokit.pci.config import ConfigSpace

    cut = Topology(
        [
            Function(
                each.bdf,
                ConfigSpace(each.config.data[:64]),
                each.identity,
                resources=each.resources,
                physfn=each.physfn,
                recorded=each.recorded,
            )
            for each in demo
        ]
    )
    found = difference(demo, cut)
    assert found.changes == ()
    assert Missing("registers from 0x100", True) in found.missing


def test_words_of_the_command_line_are_told_apart() -> None:
    empty = Topology([])
    found = difference(
        empty, empty, {"kernel command line": "ro quiet"}, {"kernel command line": "ro iommu=pt"}
    )
    (change,) = found.changes
    assert (change.area, change.lost, change.gained) == (Area.HOST, ("quiet",), ("iommu=pt",))
    found = difference(empty, empty, {"kernel release": "6.1"}, {})
    assert (found.changes, found.missing) == ((), (Missing("kernel release", True),))


def test_cards_with_serial_numbers_are_followed_through_a_swap() -> None:
    def host(first: int, second: int) -> Topology:
        builder = Builder()
        builder.root_port("00:01.0", 1)
        builder.root_port("00:02.0", 2)
        for address, serial in (("01:00.0", first), ("02:00.0", second)):
            builder.endpoint(address, ids=(0x15B3, 0x1021))
            raw = bytearray(builder.functions[-1].config.data)
            raw[0x100:0x10C] = (0x00010003).to_bytes(4, "little") + serial.to_bytes(8, "little")
            builder.functions[-1].config.data = bytes(raw)
        return builder.topology()

    before, after = host(1, 2), host(2, 1)
    assert [(one.bdf, two.bdf) for one, two in match(before, after).pairs if one.bdf.bus] == [
        (bdf("01:00.0"), bdf("02:00.0")),
        (bdf("02:00.0"), bdf("01:00.0")),
    ]
    replaced = difference(before, host(1, 3)).changes
    assert [each.what for each in replaced] == ["serial number"]


# --- groups -------------------------------------------------------------------------------------


def test_groups_that_merge_are_shown_with_both_sides() -> None:
    def host(acs) -> Topology:
        builder = Builder()
        switch(builder, acs_a=acs, acs_b=FULL)
        return builder.topology()

    before, after = host(FULL), host(OFF)
    found = group_changes(before, after, match(before, after))
    assert found.recorded == ()
    (change,) = found.predicted
    assert change.kind == "merged"
    assert change.after == ((bdf("02:00.0"), bdf("03:00.0")),)
    assert change.text() == ("merged: 0000:02:00.0 | 0000:03:00.0 → 0000:02:00.0 0000:03:00.0")
    back = group_changes(after, before, match(after, before))
    assert [each.kind for each in back.predicted] == ["split"]


def test_group_numbers_do_not_count_and_crossed_groups_are_redrawn() -> None:
    a, b, c, d = (bdf(f"0{n}:00.0") for n in range(1, 5))
    pairs = [(each, each) for each in (a, b, c, d)]
    assert regrouped({a: 1, b: 1, c: 2}, {a: 7, b: 7, c: 9}, pairs) == ()
    (change,) = regrouped({a: 1, b: 1, c: 2, d: 2}, {a: 1, b: 2, c: 1, d: 2}, pairs)
    assert change.kind == "redrawn"


def test_recorded_groups_are_compared_with_recorded_ones_alone(demo) -> None:
    after = changed(demo, "05:00.0", iommu_group=demo[bdf("00:02.0")].recorded.iommu_group)
    found = group_changes(demo, after, match(demo, after))
    assert found.predicted == ()
    assert [each.kind for each in found.recorded] == ["merged"]
    bare = Topology([Function(each.bdf, each.config, each.identity) for each in demo])
    assert group_changes(demo, bare, match(demo, bare)).recorded_in == (True, False)


def test_uncertain_functions_take_no_part_in_the_comparison_of_predictions() -> None:
    def host(size) -> Topology:
        builder = Builder()
        builder.root_port("00:01.0", 1, size=size)
        builder.endpoint("01:00.0")
        return builder.topology()

    before, after = host(None), host(256)
    found = group_changes(before, after, match(before, after))
    assert (found.predicted, found.uncertain) == ((), 2)


def test_a_recorded_link_counts_where_registers_do_not_tell() -> None:
    def host(width: int) -> Topology:
        builder = Builder()
        builder.endpoint("00:01.0", size=64)
        builder.functions[0].recorded = Recorded(
            current_link_speed="8.0 GT/s PCIe", current_link_width=width
        )
        return builder.topology()

    assert [each[2] for each in told(host(16), host(8))] == [
        "link 8.0 GT/s PCIe x16 → 8.0 GT/s PCIe x8"
    ]
