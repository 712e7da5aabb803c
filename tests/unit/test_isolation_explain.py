"""Why a function is in its group: rules, registers, remedies, company, and what is unknown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolation_topologies import FULL, OFF, Builder, bdf, switch

from vfiokit.host.source import open_host
from vfiokit.isolation import Rule, predict
from vfiokit.isolation.explain import Explanation, explain
from vfiokit.isolation.remedy import Kind, config_acs, setpci
from vfiokit.isolation.what_if import Change, applied
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Topology


def explained(topology: Topology, address: str, **facts) -> Explanation:
    return explain(topology, predict(topology), bdf(address), **facts)


def kinds(explanation: Explanation) -> list[Kind]:
    return [remedy.kind for remedy in explanation.remedies.remedies]


def remedy(explanation: Explanation, kind: Kind):
    return next(each for each in explanation.remedies.remedies if each.kind is kind)


def two_slots(*, acs=OFF, slots=True, occupied=False) -> Topology:
    """A card below a port without ACS, and a second port with it."""
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=acs)
    builder.root_port("00:02.0", 2, acs=FULL)
    builder.endpoint("01:00.0")
    if occupied:
        builder.endpoint("02:00.0")
    if slots:
        for function in builder.functions[:2]:
            raw = bytearray(function.config.data)
            raw[0x43] |= 0x01  # Slot Implemented
            raw[0x4C:0x50] = (16 << 4 | 3).to_bytes(4, "little")
            function.config.data = bytes(raw)
    return builder.topology()


# --- the kernel parameter and setpci ------------------------------------------------------------


def test_the_parameter_spells_out_every_bit_that_the_port_offers() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=(0x5F, 0x40))
    builder.root_port("00:02.0", 2, acs=(0x15, 0x00))
    changes = (Change(bdf("00:01.0"), Acs(0x1D)), Change(bdf("00:02.0"), Acs(0x15)))
    # Seven flags, DT EC UF CR RR TB SV: an offered bit is 0 or 1, one that is not there x.
    assert config_acs(builder.topology(), changes) == (
        "pci=config_acs=1x11101@0000:00:01.0;xx1x1x1@0000:00:02.0"
    )
    assert setpci(changes) == (
        "setpci -s 0000:00:01.0 ECAP_ACS+6.w=001d:001d",
        "setpci -s 0000:00:02.0 ECAP_ACS+6.w=0015:0015",
    )


def test_a_port_with_acs_off_is_named_with_its_registers() -> None:
    explanation = explained(two_slots(), "01:00.0")
    assert [why.rule for why in explanation.whys] == [Rule.PATH_NOT_ISOLATED]
    assert [(fact.subject, fact.offset, fact.value) for fact in explanation.facts] == [
        (bdf("00:01.0"), 0x104, 0x1F),
        (bdf("00:01.0"), 0x106, 0x00),
    ]
    assert "lacks Source Validation" in explanation.facts[1].text()
    assert explanation.facts[1].text().startswith("0x106 ACS Control = 0x0000: ")
    found = remedy(explanation, Kind.CONFIG_ACS)
    assert found.members == (bdf("01:00.0"),)
    assert found.commands[0] == "pci=config_acs=xx11101@0000:00:01.0"


def test_several_ports_at_once_come_with_a_word_about_quotes() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=OFF)
    builder.upstream("01:00.0", 2)
    builder.downstream("02:00.0", 3, acs=OFF)
    builder.endpoint("03:00.0")
    found = remedy(explained(builder.topology(), "03:00.0"), Kind.CONFIG_ACS)
    assert found.commands[0] == ("pci=config_acs=xx11101@0000:00:01.0;xx11101@0000:02:00.0")
    assert any("in quotes" in cost for cost in found.costs)


def test_only_ports_that_matter_are_named() -> None:
    builder = Builder()
    switch(builder, acs_a=OFF, acs_b=OFF)
    builder.root_port("00:05.0", 5, acs=OFF)
    explanation = explained(builder.topology(), "03:00.0")
    assert [change.bdf for change in remedy(explanation, Kind.CONFIG_ACS).changes] == [
        bdf("02:00.0")
    ]


def test_peers_that_lose_their_direct_way_are_named_and_ways_that_stay_open() -> None:
    builder = Builder()
    switch(builder, acs_a=OFF, acs_b=OFF)
    costs = " ".join(remedy(explained(builder.topology(), "03:00.0"), Kind.CONFIG_ACS).costs)
    assert "from 0000:03:00.0 to 0000:04:00.0 lose the direct way inside the switch" in costs
    assert "can still be reached by 0000:04:00.0" in costs
    assert "until Request Redirect is enabled at 0000:02:01.0" in costs
    assert "groups are made at boot" in costs


def test_where_the_kernel_made_groups_and_acs_is_off_the_command_line_is_suspected() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=OFF, group=1)
    builder.endpoint("01:00.0", group=1)
    explanation = explained(
        builder.topology(), "01:00.0", command_line="ro pci=disable_acs_redir=00:01.0"
    )
    assert "disable_acs_redir=" in remedy(explanation, Kind.KERNEL).text
    assert explanation.notes == ("The kernel's command line sets ACS itself (disable_acs_redir=).",)
    unrecorded = explained(two_slots(), "01:00.0")
    assert "the IOMMU may have been off" in remedy(unrecorded, Kind.KERNEL).text


def test_what_the_kernel_enables_with_a_quirk_is_a_remedy_without_a_parameter() -> None:
    builder = Builder()
    builder.root_port("00:1c.0", 1, acs=None, ids=(0x8086, 0xA110), acs_dwords=(0x0F, 0x00))
    builder.endpoint("01:00.0")
    explanation = explained(builder.topology(), "01:00.0")
    assert kinds(explanation) == [Kind.KERNEL]
    assert "0000:00:1c.0" in explanation.remedies.remedies[0].text


# --- firmware, slots, newer kernels, the override -----------------------------------------------


def test_a_port_without_the_capability_is_a_matter_of_firmware() -> None:
    builder = Builder()
    switch(builder, acs_a=None, acs_b=FULL)
    explanation = explained(builder.topology(), "03:00.0")
    assert kinds(explanation) == [Kind.FIRMWARE, Kind.OVERRIDE]
    found = remedy(explanation, Kind.FIRMWARE)
    assert found.members == (bdf("03:00.0"),)
    assert [change.bdf for change in found.changes] == [bdf("02:00.0")]
    assert explanation.facts[0].text().endswith("the list is empty; no ACS (id 0x000d)")


def test_another_slot_is_found_by_moving_the_card() -> None:
    topology = two_slots(acs=None)
    found = remedy(explained(topology, "01:00.0"), Kind.SLOT)
    assert found.text == (
        "Put it into another slot, if it is a card: below 0000:00:02.0 (x16 8 GT/s)."
    )
    assert len(found.members) == 1
    taken = remedy(explained(two_slots(acs=None, occupied=True), "01:00.0"), Kind.SLOT)
    assert "now holds 0000:02:00.0" in taken.text


def test_a_soldered_device_gets_no_other_slot() -> None:
    assert Kind.SLOT not in kinds(explained(two_slots(acs=None, slots=False), "01:00.0"))


def test_a_kernel_without_the_quirk_is_recognised() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, group=0)
    for function in range(2):  # Intel 82599: the table of Linux 7.2 vouches for it
        builder.endpoint(f"01:00.{function}", ids=(0x8086, 0x10FB), multifunction=True, group=1)
    explanation = explained(builder.topology(), "01:00.0")
    assert explanation.alone
    assert kinds(explanation) == [Kind.NEWER_KERNEL]
    assert "82599" in explanation.remedies.remedies[0].text
    assert [each.bdf for each in explanation.companions] == [bdf("01:00.1")]


def test_the_override_changes_belief_alone_and_names_who_is_exposed() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.endpoint("01:00.0", multifunction=True)
    builder.endpoint("01:00.1", multifunction=True)
    explanation = explained(builder.topology(), "01:00.0")
    found = remedy(explanation, Kind.OVERRIDE)
    assert (found.isolates, found.members) == (False, (bdf("01:00.0"),))
    assert found.commands == ("pcie_acs_override=multifunction",)
    assert (
        "0000:01:00.0 and 0000:01:00.1 can then reach each other inside their device"
        in (found.costs[0])
    )
    assert explanation.remedies.inseparable == (bdf("01:00.1"),)
    assert "has no ACS" in explanation.remedies.reason


def test_functions_that_share_a_requester_id_cannot_be_separated() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.add("01:00.0", PortType.PCIE_TO_PCI_BRIDGE, below=2)
    builder.add("02:01.0")
    builder.add("02:02.0")
    explanation = explained(builder.topology(), "02:01.0")
    assert kinds(explanation) == []
    assert set(explanation.remedies.inseparable) == {bdf("01:00.0"), bdf("02:02.0")}
    assert "requests reach the IOMMU as" in explanation.remedies.reason


# --- alone, unknown, company --------------------------------------------------------------------


def test_a_device_that_is_alone_has_the_registers_that_keep_it_so() -> None:
    explanation = explained(two_slots(acs=FULL), "01:00.0")
    assert explanation.alone
    assert kinds(explanation) == []
    assert [(fact.subject, fact.register) for fact in explanation.facts] == [
        (bdf("01:00.0"), "Header Type"),
        (bdf("00:01.0"), "ACS Control"),
    ]


def test_without_the_deciding_bytes_the_answer_is_unknown_and_nothing_is_advised() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, size=256)
    builder.endpoint("01:00.0")
    explanation = explained(builder.topology(), "01:00.0")
    assert len(explanation.unknown) == 1
    assert explanation.unknown[0].startswith("0000:00:01.0: ")
    assert kinds(explanation) == []


def test_companions_in_the_way_are_told_from_those_that_may_stay() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None, driver="pcieport")
    builder.endpoint("01:00.0", multifunction=True, driver="vfio-pci")
    builder.endpoint("01:00.1", multifunction=True, driver="snd_hda_intel")
    builder.endpoint("01:00.2", multifunction=True)
    companions = explained(builder.topology(), "01:00.0").companions
    assert [(str(each.bdf), each.blocks) for each in companions] == [
        ("0000:00:01.0", False),
        ("0000:01:00.1", True),
        ("0000:01:00.2", False),
    ]
    assert "pcieport: may stay" in companions[0].text
    assert "the host loses it" in companions[1].text
    assert "no driver" in companions[2].text


def test_a_switch_that_leaks_between_groups_is_told() -> None:
    builder = Builder()
    switch(builder)
    (leak,) = explained(builder.topology(), "04:00.0").leaks
    assert (leak.port, leak.peer) == (bdf("02:00.0"), bdf("02:01.0"))


def test_a_way_in_from_a_neighbour_is_closed_at_the_neighbours_port() -> None:
    builder = Builder()
    switch(builder, acs_a=FULL, acs_b=OFF)
    topology = builder.topology()
    explanation = explained(topology, "03:00.0")
    assert explanation.alone
    assert explanation.leaks
    assert kinds(explanation) == [Kind.CLOSE]
    found = explanation.remedies.remedies[0]
    assert found.commands[0] == "pci=config_acs=xx11101@0000:02:01.0"
    assert not any("can still be reached" in cost for cost in found.costs)
    after = applied(topology, found.changes)
    assert not explained(after, "03:00.0").leaks


def test_a_kernel_that_split_further_is_pointed_out() -> None:
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None, group=1)
    builder.endpoint("01:00.0", group=2)
    explanation = explained(builder.topology(), "01:00.0")
    assert explanation.recorded == (bdf("01:00.0"),)
    assert "split the group further" in explanation.notes[0]
    overridden = explained(
        builder.topology(), "01:00.0", command_line="pcie_acs_override=downstream"
    )
    assert overridden.notes == (
        "The kernel ran with pcie_acs_override=: its groups claim more than the hardware keeps.",
    )


@pytest.mark.slow
def test_every_function_of_the_recorded_server_is_explained() -> None:
    topology = open_host("demo").topology()
    grouping = predict(topology)
    for function in topology:
        explanation = explain(topology, grouping, function.bdf)
        assert explanation.recorded == explanation.group.members
        assert not explanation.unknown
        for fact in explanation.facts:
            assert topology[fact.subject].config.read(fact.offset, fact.width) == fact.value
        assert Kind.CONFIG_ACS not in kinds(explanation)  # its kernel enabled what there is
