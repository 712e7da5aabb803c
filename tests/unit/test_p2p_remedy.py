"""Remedies: kernel parameters, commands, what a client must have, and what it costs in groups."""

from __future__ import annotations

import pytest
from isolation_topologies import Builder, bdf, switch

from vfiokit.p2p import Cpu, MapType, Peers
from vfiokit.p2p.price import price
from vfiokit.p2p.remedy import Way, advise, assignment_note
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.edit import moved, with_acs_control
from vfiokit.pci.topology import Function, Topology

INTEL = Cpu("GenuineIntel", 6, 0x8F)
LINUX = (0x5F, 0x1D)
"""A port with Direct Translated P2P, as Linux leaves it."""


def machine(build, host=(0x8086, 0x09A2)) -> Topology:
    builder = Builder()
    builder.add("00:00.0", PortType.RC_INTEGRATED_ENDPOINT, ids=host, class_code=0x088000)
    build(builder)
    return builder.topology()


def advice_for(topology: Topology, *pairs: tuple[str, str]):
    return advise(Peers(topology, cpu=INTEL), [(bdf(one), bdf(other)) for one, other in pairs])


def with_ats(topology: Topology, control: int, *addresses: str) -> Topology:
    """Give functions an ATS capability at 0x200."""
    functions = []
    for each in topology:
        raw = bytearray(each.config.data)
        if str(each.bdf)[5:] in addresses:
            raw[0x100:0x104] = (0x20010001).to_bytes(4, "little")  # AER, then 0x200
            raw[0x200:0x208] = bytes((0x0F, 0, 1, 0, 0x20, 0)) + control.to_bytes(2, "little")
        functions.append(Function(each.bdf, ConfigSpace(bytes(raw)), each.identity))
    return Topology(functions, [(bridge.domain, bridge.bus) for bridge in topology.host_bridges])


def both_ports(builder: Builder) -> None:
    switch(builder, acs_a=LINUX, acs_b=LINUX)


def test_the_redirects_of_both_ports_go_and_their_other_bits_stay():
    (clear, _) = advice_for(machine(both_ports), ("03:00.0", "04:00.0")).remedies
    assert clear.way is Way.CLEAR_REDIRECT
    assert clear.possible
    assert clear.obstacles == ()
    assert clear.config_acs == "pci=config_acs=0x10001@0000:02:00.0;0x10001@0000:02:01.0"
    assert clear.disable_acs_redir == "pci=disable_acs_redir=0000:02:00.0;0000:02:01.0"
    assert clear.setpci == (
        "setpci -s 0000:02:00.0 106.w=0:c",
        "setpci -s 0000:02:01.0 106.w=0:c",
    )
    assert [(int(change.before), int(change.after)) for change in clear.changes] == [
        (0x1D, 0x11)
    ] * 2


def test_only_the_redirecting_side_changes():
    topology = machine(lambda b: switch(b, acs_a=LINUX, acs_b=(0x5F, 0x11)))
    (clear, _) = advice_for(topology, ("03:00.0", "04:00.0")).remedies
    assert [str(change.function) for change in clear.changes] == ["0000:02:00.0"]


def test_egress_control_is_cleared_too():
    topology = machine(lambda b: switch(b, acs_a=(0x7F, 0x21)))
    (clear, _) = advice_for(topology, ("03:00.0", "04:00.0")).remedies
    assert clear.config_acs == "pci=config_acs=0000001@0000:02:00.0"
    assert clear.setpci == ("setpci -s 0000:02:00.0 106.w=0:20",)


def test_several_pairs_share_their_ports_and_each_is_named_once():
    def build(builder: Builder) -> None:
        both_ports(builder)
        builder.downstream("02:02.0", 5, LINUX)
        builder.endpoint("05:00.0")
        builder.root_port("00:05.0", 9)
        builder.endpoint("09:00.0")

    found = advice_for(
        machine(build),
        ("03:00.0", "04:00.0"),
        ("04:00.0", "03:00.0"),
        ("03:00.0", "05:00.0"),
        ("03:00.0", "03:00.0"),
        ("03:00.0", "09:00.0"),
        ("03:00.0", "04:00.0"),
    )
    clear = found.remedies[0]
    assert [str(change.function)[5:] for change in clear.changes] == [
        "02:00.0",
        "02:01.0",
        "02:02.0",
    ]
    assert len(clear.pairs) == 3
    assert found.direct == ((bdf("03:00.0"), bdf("03:00.0")),)
    ((pair, reason),) = found.hopeless
    assert pair == (bdf("03:00.0"), bdf("09:00.0"))
    assert reason.startswith("no bridge is above both, so no ACS setting matters; the host bridge")
    assert "--what-if move=" in reason


def test_a_pair_that_passes_needs_nothing():
    found = advice_for(machine(switch), ("03:00.0", "04:00.0"))
    assert found.remedies == ()
    assert len(found.direct) == 1


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ((0x8086, 0x1234), "does not trust the host bridge"),
        ((0x8086, 0x09A2), "the host bridge forwards between them"),
    ],
)
def test_without_a_common_bridge_there_is_no_remedy_by_acs(host, words):
    def build(builder: Builder) -> None:
        builder.root_port("00:01.0", 1)
        builder.root_port("00:02.0", 2)
        builder.endpoint("01:00.0")
        builder.endpoint("02:00.0")

    ((_, reason),) = advice_for(machine(build, host), ("01:00.0", "02:00.0")).hopeless
    assert words in reason


def test_a_pair_with_unknown_ports_has_no_remedy_yet():
    topology = machine(switch)
    functions = [
        Function(each.bdf, ConfigSpace(each.config.data[:0x40]), each.identity)
        if str(each.bdf) == "0000:02:00.0"
        else each
        for each in topology
    ]
    found = advice_for(Topology(functions), ("03:00.0", "04:00.0"))
    assert found.remedies == ()
    assert found.hopeless[0][1] == "not known: whether 0000:02:00.0 has an ACS redirect set"


# -- what it costs


def test_clearing_redirects_merges_what_is_below_each_port_with_it():
    (clear, _) = advice_for(machine(both_ports), ("03:00.0", "04:00.0")).remedies
    merged = clear.price.regroupings
    assert [each.text() for each in merged] == [
        "2 groups would be one: {0000:02:00.0} and {0000:03:00.0}",
        "2 groups would be one: {0000:02:01.0} and {0000:04:00.0}",
    ]
    # Linux would still call the two sides apart, and they are not: said as well.
    assert any("inside the switch 0000:01:00.0" in leak for leak in clear.price.leaks)


def test_translated_requests_cost_no_isolation():
    topology = with_ats(machine(both_ports), 0x8000, "04:00.0")
    (_, translated) = advice_for(topology, ("03:00.0", "04:00.0")).remedies
    assert translated.price.regroupings == ()
    assert translated.price.leaks == ()


def test_a_price_follows_functions_to_their_new_addresses():
    def build(builder: Builder) -> None:
        both_ports(builder)
        builder.root_port("00:05.0", 9, None)

    topology = machine(build)
    move = moved(topology, bdf("03:00.0"), bdf("00:05.0"))
    (found,) = price(topology, move.topology, move.addresses).regroupings
    new = move.addresses[bdf("03:00.0")]
    assert set(found.before) == {(bdf("00:05.0"),), (bdf("03:00.0"),)}
    assert found.after == ((bdf("00:05.0"), new),)


def test_nothing_changed_costs_nothing():
    topology = machine(both_ports)
    same = with_acs_control(topology, {bdf("02:00.0"): Acs(0x1D)})
    assert price(topology, same) == ((), ())


# -- ATS with Direct Translated P2P


def test_direct_translated_goes_on_the_bridges_of_the_way_and_nowhere_else():
    def build(builder: Builder) -> None:
        both_ports(builder)
        builder.downstream("02:02.0", 5, LINUX)
        builder.endpoint("05:00.0")

    topology = with_ats(machine(build), 0x8000, "04:00.0")
    (_, translated) = advice_for(topology, ("03:00.0", "04:00.0")).remedies
    assert translated.way is Way.TRANSLATED
    assert translated.possible
    assert translated.obstacles == ()
    assert translated.config_acs == "pci=config_acs=1x11101@0000:02:00.0;1x11101@0000:02:01.0"
    assert translated.setpci == (
        "setpci -s 0000:02:00.0 106.w=40:40",
        "setpci -s 0000:02:01.0 106.w=40:40",
    )
    assert {int(change.after) for change in translated.changes} == {0x5D}


def test_translation_blocking_and_egress_control_go_for_translated_requests():
    topology = machine(lambda b: switch(b, acs_a=(0x7F, 0x3F), acs_b=(0x7F, 0x5D)))
    (_, translated) = advice_for(with_ats(topology, 0, "04:00.0"), ("03:00.0", "04:00.0")).remedies
    (change,) = translated.changes
    assert change.parameter == "1011101@0000:02:00.0"
    assert change.setpci == "setpci -s 0000:02:00.0 106.w=40:62"


@pytest.mark.parametrize(
    ("client", "words", "possible"),
    [
        ("none", "no ATS, so no translated requests, in 0000:04:00.0", False),
        ("off", "ATS is off in 0000:04:00.0: ", True),
        ("cut", "not known whether ATS is enabled in 0000:04:00.0", True),
    ],
)
def test_what_the_client_lacks_is_said(client, words, possible):
    topology = machine(both_ports)
    if client == "off":
        topology = with_ats(topology, 0, "04:00.0")
    if client == "cut":
        functions = [
            Function(each.bdf, ConfigSpace(each.config.data[:0x100]), each.identity)
            if str(each.bdf) == "0000:04:00.0"
            else each
            for each in topology
        ]
        topology = Topology(functions)
    (_, translated) = advice_for(topology, ("03:00.0", "04:00.0")).remedies
    assert any(obstacle.startswith(words) for obstacle in translated.obstacles)
    assert translated.possible == possible


def test_the_provider_needs_no_ats():
    topology = with_ats(machine(both_ports), 0x8000, "04:00.0")
    assert advice_for(topology, ("03:00.0", "04:00.0")).remedies[1].possible
    assert not advice_for(topology, ("04:00.0", "03:00.0")).remedies[1].possible


def test_a_port_without_direct_translated_cannot_have_it():
    topology = with_ats(machine(lambda b: switch(b, acs_a=(0x1F, 0x1D))), 0x8000, "04:00.0")
    (_, translated) = advice_for(topology, ("03:00.0", "04:00.0")).remedies
    assert not translated.possible
    assert translated.obstacles == ("no Direct Translated P2P in 0000:02:00.0",)


def test_long_lists_of_functions_are_cut():
    def build(builder: Builder) -> None:
        builder.root_port("00:01.0", 1, LINUX)
        for number in range(8):
            builder.endpoint(f"01:00.{number}", multifunction=True)

    topology = machine(build)
    pairs = [("01:00.0", f"01:00.{number}") for number in range(1, 8)]
    (_, translated) = advice_for(topology, *pairs).remedies
    assert translated.obstacles[0].endswith("0000:01:00.6 and 1 more")


def test_a_port_with_the_kernel_s_own_workaround_is_marked():
    def build(builder: Builder) -> None:
        # Sunrise Point PCH root port: 32-bit ACS registers, which the kernel's rule misreads.
        builder.root_port("00:1c.0", 1, (0x7F, 0x1D), ids=(0x8086, 0xA110))
        builder.endpoint("01:00.0", multifunction=True)
        builder.endpoint("01:00.1")

    (clear, _) = advice_for(machine(build), ("01:00.0", "01:00.1")).remedies
    assert any("a workaround of its own" in obstacle for obstacle in clear.obstacles)


def test_ports_that_have_it_all_leave_only_ats_to_be_enabled():
    topology = machine(lambda b: switch(b, acs_a=(0x5F, 0x5D), acs_b=(0x5F, 0x5D)))
    (_, translated) = advice_for(with_ats(topology, 0, "04:00.0"), ("03:00.0", "04:00.0")).remedies
    assert translated.possible
    assert translated.changes == ()
    assert translated.obstacles[0].startswith("ATS is off in 0000:04:00.0")


def test_setting_redirects_splits_a_group():
    topology = machine(lambda b: switch(b, acs_a=(0x5F, 0x00)))
    split = with_acs_control(topology, {bdf("02:00.0"): Acs(0x1D)})
    (found,) = price(topology, split).regroupings
    assert found.text() == (
        "group {0000:02:00.0, 0000:03:00.0} would be {0000:02:00.0} and {0000:03:00.0}"
    )


def test_a_large_group_is_named_by_its_first_members():
    def build(builder: Builder) -> None:
        builder.root_port("00:01.0", 1, LINUX)
        for number in range(7):
            builder.endpoint(f"01:00.{number}", multifunction=True)

    topology = machine(build)
    (clear, _) = advice_for(topology, ("01:00.0", "01:00.1")).remedies
    (found,) = clear.price.regroupings
    assert found.text() == (
        "2 groups would be one: {0000:00:01.0} and "
        "{0000:01:00.0, 0000:01:00.1, 0000:01:00.2, 4 more}"
    )


# -- assigned devices


def test_what_vfio_does_is_said_for_every_map_type():
    topology = machine(both_ports, (0x8086, 0x1234))
    peers = Peers(topology, cpu=INTEL)
    refused = peers.map_type(bdf("03:00.0"), bdf("04:00.0"))
    assert refused.map_type is MapType.NOT_SUPPORTED
    assert "the mapping succeeds although" in assignment_note(refused)
    direct = Peers(machine(switch)).map_type(bdf("03:00.0"), bdf("04:00.0"))
    assert "data corruption" in assignment_note(direct)
    through = Peers(machine(both_ports)).map_type(bdf("03:00.0"), bdf("04:00.0"))
    assert "come down" in assignment_note(through)
    unknown = direct._replace(map_type=MapType.UNKNOWN)
    assert "test it with data" in assignment_note(unknown)
    assert "refused" not in assignment_note(unknown)
