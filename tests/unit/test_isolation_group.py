"""``pci_device_group``: which functions share a group, and what is said about it."""

from __future__ import annotations

import pytest
from isolation_topologies import FULL, OFF, Builder, bdf, switch

from vfiokit.errors import DeviceNotFoundError
from vfiokit.isolation import Platform, Rule, compare, predict
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType


def groups(builder, **options):
    grouping = predict(builder.topology(), **options)
    return [{str(member)[5:] for member in group.members} for group in grouping.groups]


def test_isolated_ports_and_endpoints_have_groups_of_their_own():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.root_port("00:02.0", 2)
    builder.endpoint("01:00.0")
    builder.endpoint("02:00.0")
    assert groups(builder) == [{"00:01.0"}, {"00:02.0"}, {"01:00.0"}, {"02:00.0"}]


def test_port_without_acs_shares_its_group_with_everything_below():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None)
    builder.endpoint("01:00.0")
    grouping = predict(builder.topology())
    assert [group.members for group in grouping.groups] == [(bdf("00:01.0"), bdf("01:00.0"))]
    why = grouping.why(bdf("01:00.0"))
    assert why.rule is Rule.PATH_NOT_ISOLATED
    assert why.others == (bdf("00:01.0"),)
    assert why.missing == 0x1D
    assert why.quirk is None
    assert why.text() == (
        "0000:01:00.0 shares group 0 with 0000:00:01.0 because the root port 0000:00:01.0 has no "
        "ACS (Source Validation, P2P Request Redirect, P2P Completion Redirect, Upstream "
        "Forwarding), so its peers could reach it without passing the IOMMU."
    )


def test_fault_far_up_the_path_collects_the_whole_tree():
    builder = Builder()
    switch(builder, acs_a=FULL, acs_b=FULL)
    builder.functions.pop(0)
    builder.root_port("00:01.0", 1, acs=OFF)
    grouping = predict(builder.topology())
    assert len(grouping.groups) == 1
    why = grouping.why(bdf("03:00.0"))
    assert [str(each.subject) for each in why.acs] == ["0000:00:01.0"]
    assert why.others == (bdf("02:00.0"),)


def test_downstream_ports_without_acs_stay_apart_from_each_other():
    builder = Builder()
    switch(builder)
    assert groups(builder) == [
        {"00:01.0"},
        {"01:00.0"},
        {"02:00.0", "03:00.0"},
        {"02:01.0", "04:00.0"},
    ]


def test_functions_below_a_pcie_to_pci_bridge_share_its_group():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.add("01:00.0", PortType.PCIE_TO_PCI_BRIDGE, below=2)
    builder.add("02:00.0")
    builder.add("02:01.0")
    grouping = predict(builder.topology())
    assert [len(group.members) for group in grouping.groups] == [1, 3]
    why = grouping.why(bdf("02:01.0"))
    assert why.rule is Rule.DMA_ALIAS
    assert why.alias.requester_id == 0x0200
    assert "cannot tell them apart" in why.text()


def test_functions_of_one_device_without_acs_share_a_group():
    builder = Builder()
    builder.endpoint("00:03.0", multifunction=True)
    builder.endpoint("00:03.1")
    builder.endpoint("00:03.2", acs=FULL)
    assert groups(builder) == [{"00:03.0", "00:03.1"}, {"00:03.2"}]
    grouping = predict(builder.topology())
    why = grouping.why(bdf("00:03.1"))
    assert why.rule is Rule.MULTIFUNCTION
    assert "like 0000:00:03.0" in why.text()


def test_conventional_function_0_without_the_header_bit_is_still_joined():
    builder = Builder()
    builder.add("00:1f.0")
    builder.add("00:1f.3")
    assert groups(builder) == [{"00:1f.0", "00:1f.3"}]


def test_pcie_function_0_without_the_header_bit_is_left_alone():
    builder = Builder()
    builder.endpoint("00:03.0")
    builder.endpoint("00:03.1")
    builder.endpoint("00:03.2")
    assert groups(builder) == [{"00:03.0"}, {"00:03.1", "00:03.2"}]


def test_root_ports_of_one_device_without_acs_share_a_group_with_all_below():
    builder = Builder()
    builder.root_port("00:1c.0", 1, acs=None, multifunction=True)
    builder.root_port("00:1c.4", 2, acs=None)
    builder.endpoint("01:00.0")
    builder.endpoint("02:00.0")
    assert len(groups(builder)) == 1


def test_virtual_functions_are_alone_and_numbered_last():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.endpoint("01:00.0", multifunction=True)
    builder.endpoint("01:00.1")
    builder.virtual("01:00.4", "01:00.0")
    builder.virtual("02:00.0", "01:00.0")
    builder.root_port("00:02.0", 3)
    builder.endpoint("03:00.0")
    assert groups(builder) == [
        {"00:01.0"},
        {"00:02.0"},
        {"01:00.0", "01:00.1"},
        {"03:00.0"},
        {"01:00.4"},
        {"02:00.0"},
    ]


def test_virtual_function_on_its_own_bus_depends_on_the_path_of_its_pf():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None)
    builder.endpoint("01:00.0")
    builder.virtual("02:00.0", "01:00.0")
    assert groups(builder) == [{"00:01.0", "01:00.0", "02:00.0"}]


def test_alias_quirk_joins_functions_of_one_bus():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.endpoint("01:00.0", ids=(0x1B4B, 0x9230))
    builder.endpoint("01:00.1", acs=FULL)
    assert groups(builder) == [{"00:01.0"}, {"01:00.0", "01:00.1"}]
    assert len(groups(builder, quirks=False)) == 3
    why = predict(builder.topology()).why(bdf("01:00.1"))
    assert why.rule is Rule.ALIAS_SIBLING
    assert why.quirk == "Marvell SATA controller"
    assert "Marvell SATA controller" in why.text()


def test_alias_chain_through_an_ungrouped_function_is_followed():
    builder = Builder()
    builder.endpoint("00:03.0", multifunction=True)
    builder.endpoint("00:03.1", acs=FULL)
    builder.endpoint("00:03.2", ids=(0x1180, 0xE476), acs=FULL)
    # Function 2 aliases function 0, which has a group; function 1 keeps its own.
    assert groups(builder) == [{"00:03.0", "00:03.2"}, {"00:03.1"}]


def test_alias_of_an_ungrouped_function_leads_on_to_its_device():
    builder = Builder()
    builder.endpoint("00:12.0", multifunction=True)
    builder.endpoint("00:12.2", ids=(0x8086, 0x2260), acs=FULL)  # also requests as 12.3
    builder.endpoint("00:12.3")
    assert groups(builder) == [{"00:12.0", "00:12.2", "00:12.3"}]
    why = predict(builder.topology()).why(bdf("00:12.2"))
    assert why.rule is Rule.ALIAS_SIBLING
    assert why.others == (bdf("00:12.0"),)
    assert "0000:00:12.3" in why.text()


def test_function_that_aliases_its_whole_bus_does_not_exhaust_the_stack():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    for devfn in range(256):
        builder.endpoint(f"01:{devfn >> 3:02x}.{devfn & 7}", ids=(0x10B5, 0x87B0))
    assert [len(group) for group in groups(builder)] == [1, 256]


def test_vmd_children_share_the_group_of_their_vmd_device():
    builder = Builder()
    builder.add("00:0e.0", PortType.RC_INTEGRATED_ENDPOINT, ids=(0x8086, 0x9A0B))
    builder.add("10000:e0:1d.0", PortType.ROOT_PORT, below=0xE1, acs=FULL)
    builder.endpoint("10000:e1:00.0")
    grouping = predict(builder.topology())
    assert len(grouping.groups) == 1
    why = grouping.why(bdf("10000:e1:00.0"))
    assert why.rule is Rule.DMA_ALIAS
    assert "VMD" in why.text()
    assert any("VMD" in step.text() for step in grouping.steps(bdf("10000:e1:00.0")))


def test_high_domain_without_vmd_device_is_grouped_on_its_own():
    builder = Builder()
    builder.endpoint("10000:00:00.0")
    builder.endpoint("10000:00:01.0")
    assert len(groups(builder)) == 2


def test_intel_pch_ports_depend_on_the_platform():
    builder = Builder()
    builder.root_port("00:1c.0", 1, acs=None, multifunction=True, ids=(0x8086, 0x8D10))
    builder.root_port("00:1c.4", 2, acs=None, ids=(0x8086, 0x8D18))
    assert len(groups(builder)) == 2
    assert len(groups(builder, platform=Platform(acs_requested=False))) == 1


def test_groups_after_switching_the_iommu_on_can_be_asked_for():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=OFF)
    builder.endpoint("01:00.0")
    assert len(groups(builder)) == 1
    assert len(groups(builder, platform=Platform(program_acs=True))) == 2


def test_recorded_groups_are_no_input():
    plain, marked = Builder(), Builder()
    for builder, number in ((plain, None), (marked, 7)):
        builder.root_port("00:01.0", 1, group=number)
        builder.endpoint("01:00.0", group=number)
    assert groups(plain) == groups(marked)


def test_opener_of_a_group_names_those_who_joined():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None)
    for device in range(6):
        builder.endpoint(f"01:{device:02x}.0")
    why = predict(builder.topology()).why(bdf("00:01.0"))
    assert why.rule is Rule.OWN
    assert len(why.others) == 6
    assert "and 2 more" in why.text()


def test_steps_tell_what_passed_and_what_did_not():
    builder = Builder()
    switch(builder)
    steps = predict(builder.topology()).steps(bdf("03:00.0"))
    told = {(step.subject, step.passed) for step in steps}
    assert (bdf("02:00.0"), False) in told
    assert (bdf("01:00.0"), True) in told
    assert (bdf("00:01.0"), True) in told
    assert steps[-1].text() == "0000:03:00.0 joins group 2 of 0000:02:00.0"


def test_steps_of_an_isolated_function_say_so():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.endpoint("01:00.0")
    grouping = predict(builder.topology())
    texts = [step.text() for step in grouping.steps(bdf("01:00.0"))]
    assert "0000:01:00.0 is single-function: isolated at its own level" in texts
    assert texts[-1] == "0000:01:00.0 opens group 1"
    assert all(step.passed for step in grouping.steps(bdf("01:00.0")))


def test_unknown_function_is_device_not_found():
    grouping = predict(Builder().topology())
    assert grouping.groups == ()
    for ask in (grouping.of, grouping.why, grouping.steps):
        with pytest.raises(DeviceNotFoundError):
            ask(bdf("00:00.0"))


def test_bytes_too_short_to_tell_are_listed():
    builder = Builder()
    builder.root_port("00:01.0", 1, size=64)
    builder.root_port("00:02.0", 2, size=256)
    builder.root_port("00:03.0", 3)
    builder.endpoint("01:00.0", size=64)
    builder.endpoint("02:00.0")
    assert predict(builder.topology()).undecided == (bdf("00:01.0"), bdf("00:02.0"))


def test_what_sits_below_an_uncertain_bridge_is_uncertain_too():
    builder = Builder()
    builder.root_port("00:01.0", 1, size=64)
    builder.upstream("01:00.0", 2)
    builder.downstream("02:00.0", 3, acs=FULL)
    builder.endpoint("03:00.0")
    builder.virtual("03:00.1", "03:00.0")
    builder.root_port("00:03.0", 4)
    builder.endpoint("04:00.0")
    grouping = predict(builder.topology())
    assert grouping.undecided == (bdf("00:01.0"),)
    assert grouping.uncertain == tuple(
        bdf(text) for text in ("00:01.0", "01:00.0", "02:00.0", "03:00.0", "03:00.1")
    )


def test_functions_grouped_with_an_uncertain_one_are_uncertain_too():
    # Whether 00:02.1 has ACS is not known; if it does, 00:02.0 is in another group than it.
    builder = Builder()
    builder.endpoint("00:02.0", multifunction=True)
    builder.endpoint("00:02.1", size=256)
    builder.endpoint("00:03.0")
    grouping = predict(builder.topology())
    assert grouping.undecided == (bdf("00:02.1"),)
    assert grouping.uncertain == (bdf("00:02.0"), bdf("00:02.1"))


def test_nothing_is_uncertain_where_everything_was_captured():
    builder = Builder()
    switch(builder)
    grouping = predict(builder.topology())
    assert grouping.undecided == grouping.uncertain == ()


# --- comparison with what a kernel recorded ----------------------------------------------------


def test_comparison_counts_groups_and_shows_both_sides():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None, group=5)
    builder.endpoint("01:00.0", group=6)
    builder.root_port("00:02.0", 2, group=9)
    topology = builder.topology()
    result = compare(predict(topology), topology)
    assert (result.total, result.agree) == (3, 1)
    first = result.differences[0]
    assert first.recorded_id == 5
    assert first.recorded == (bdf("00:01.0"),)
    assert first.predicted == ((bdf("00:01.0"), bdf("01:00.0")),)
    assert "0000:01:00.0" in first.text()


def test_functions_without_record_take_no_part_in_the_comparison():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None, group=0)
    builder.endpoint("01:00.0")
    topology = builder.topology()
    assert compare(predict(topology), topology) == (1, 1, ())


def test_machine_without_records_compares_nothing():
    builder = Builder()
    builder.endpoint("00:01.0")
    topology = builder.topology()
    assert compare(predict(topology), topology) == (0, 0, ())


# --- where the kernel believes too much --------------------------------------------------------


def test_switch_without_acs_leaks_between_its_ports():
    builder = Builder()
    switch(builder)
    topology = builder.topology()
    (leak,) = predict(topology).leaks(topology)
    assert (leak.switch, leak.port, leak.peer) == (bdf("01:00.0"), bdf("02:00.0"), bdf("02:01.0"))
    assert leak.mutual
    assert (leak.groups, leak.peer_groups) == ((2,), (3,))
    assert "different groups" in leak.text()


def test_leak_starts_at_the_port_without_redirect():
    builder = Builder()
    switch(builder, acs_a=FULL)
    (leak,) = predict(builder.topology()).leaks()
    assert (leak.port, leak.peer, leak.mutual) == (bdf("02:01.0"), bdf("02:00.0"), False)
    assert (leak.groups, leak.peer_groups) == ((3,), (4,))
    assert leak.why.missing == Acs.REQUEST_REDIRECT


def test_switch_with_redirect_on_both_ports_does_not_leak():
    builder = Builder()
    switch(builder, acs_a=FULL, acs_b=FULL)
    assert predict(builder.topology()).leaks() == ()


def test_switch_below_a_port_without_acs_is_one_group_and_no_leak():
    builder = Builder()
    switch(builder)
    builder.functions.pop(0)
    builder.root_port("00:01.0", 1, acs=None)
    assert predict(builder.topology()).leaks() == ()


def test_port_with_nothing_below_is_no_leak():
    builder = Builder()
    switch(builder)
    builder.functions.pop()
    assert predict(builder.topology()).leaks() == ()


def test_leak_reaches_virtual_functions_on_their_own_bus():
    builder = Builder()
    switch(builder, acs_a=FULL)
    builder.virtual("05:00.0", "03:00.0")
    (leak,) = predict(builder.topology()).leaks()
    assert len(leak.peer_groups) == 2
