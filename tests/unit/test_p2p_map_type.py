"""Linux's rule for peer-to-peer DMA, on worked cases and on each of its surprises.

The cases and their answers are those of the kernel's source; the recorded kernel is in
tests/oracle/test_p2p_table.py.
"""

from __future__ import annotations

import pytest
from isolation_topologies import Builder, bdf, config_bytes, switch

from vfiokit.errors import DeviceNotFoundError
from vfiokit.p2p import Cpu, MapType, Peers, Redirect, Rule, map_type
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

INTEL = Cpu("GenuineIntel", 6, 0x8F)
ZEN = Cpu("AuthenticAMD", 0x17, 1)
ICE_LAKE, HASWELL, HASWELL_PORT, UNLISTED = 0x09A2, 0x2F00, 0x2F01, 0x3405
REDIRECT = (0x7F, 0x1D)
RCIEP = PortType.RC_INTEGRATED_ENDPOINT


def host(builder: Builder, bus: str = "00", device: int = ICE_LAKE, vendor: int = 0x8086) -> None:
    builder.add(f"{bus}:00.0", RCIEP, ids=(vendor, device), class_code=0x088000)


def machine(build, *, bridge: int | None = ICE_LAKE, roots=None) -> Topology:
    builder = Builder()
    if bridge is not None:
        host(builder, device=bridge)
    build(builder)
    return builder.topology(roots)


def ask(topology: Topology, provider: str, client: str, cpu: Cpu = INTEL):
    return map_type(topology, bdf(provider), bdf(client), cpu=cpu)


def one_port(builder: Builder, *, acs=None, own=None) -> None:
    """Two functions of one device below a root port."""
    builder.root_port("00:01.0", 1, acs)
    builder.endpoint("01:00.0", multifunction=True, acs=own)
    builder.endpoint("01:00.1", acs=own)


def two_ports(builder: Builder) -> None:
    builder.root_port("00:01.0", 1, REDIRECT)
    builder.root_port("00:02.0", 2, REDIRECT)
    builder.endpoint("01:00.0")
    builder.endpoint("02:00.0")


# -- the worked vectors


def test_a_function_reaches_itself_by_bus_address_at_distance_0():
    answer = ask(machine(one_port), "01:00.0", "01:00.0")
    assert answer[2:5] == (MapType.BUS_ADDR, 0, bdf("01:00.0"))
    assert answer.path == (bdf("01:00.0"),)
    assert answer.code == "X"
    assert answer.rule is Rule.NO_REDIRECT


@pytest.mark.parametrize(
    ("bridge", "expected"),
    [(ICE_LAKE, MapType.THRU_HOST_BRIDGE), (UNLISTED, MapType.NOT_SUPPORTED)],
)
def test_a_function_that_redirects_does_not_reach_itself_by_bus_address(bridge, expected):
    topology = machine(lambda b: one_port(b, own=REDIRECT), bridge=bridge)
    answer = ask(topology, "01:00.0", "01:00.0")
    assert answer[2:4] == (expected, 0)
    assert answer.redirecting == (bdf("01:00.0"),)


def test_functions_below_a_port_without_redirect_meet_at_it():
    answer = ask(machine(one_port), "01:00.0", "01:00.1")
    assert answer[2:5] == (MapType.BUS_ADDR, 2, bdf("00:01.0"))
    assert answer.path == (bdf("01:00.0"), bdf("00:01.0"), bdf("01:00.1"))
    assert answer.messages == ()


def test_the_common_port_s_own_redirect_counts():
    answer = ask(machine(lambda b: one_port(b, acs=REDIRECT)), "01:00.0", "01:00.1")
    assert answer[2:4] == (MapType.THRU_HOST_BRIDGE, 2)
    assert answer.redirecting == (bdf("00:01.0"),)
    assert answer.rule is Rule.WHITELIST
    assert answer.messages == (
        "0000:01:00.1: ACS redirect is set between the client and provider (0000:01:00.0)",
        "0000:01:00.1: to disable ACS redirect for this path, add the kernel parameter: "
        "pci=disable_acs_redir=0000:00:01.0",
    )


def test_ports_of_a_switch_without_redirect_forward_by_bus_address():
    answer = ask(machine(switch), "03:00.0", "04:00.0")
    assert answer[2:5] == (MapType.BUS_ADDR, 4, bdf("01:00.0"))
    assert [str(node)[5:] for node in answer.path] == [
        "03:00.0",
        "02:00.0",
        "01:00.0",
        "02:01.0",
        "04:00.0",
    ]


def test_redirecting_ports_are_listed_provider_s_side_first():
    topology = machine(lambda b: switch(b, acs_a=REDIRECT, acs_b=REDIRECT))
    answer = ask(topology, "03:00.0", "04:00.0")
    assert answer[2:4] == (MapType.THRU_HOST_BRIDGE, 4)
    assert answer.redirecting == (bdf("02:00.0"), bdf("02:01.0"))
    back = ask(topology, "04:00.0", "03:00.0")
    assert back[2:4] == (MapType.THRU_HOST_BRIDGE, 4)
    assert back.redirecting == (bdf("02:01.0"), bdf("02:00.0"))
    assert back.messages[1].endswith("disable_acs_redir=0000:02:01.0;0000:02:00.0")


def test_a_redirect_above_the_common_port_does_not_count():
    topology = machine(switch)  # its root port has 0x1d
    assert topology[bdf("00:01.0")].acs_control & 0x0C
    assert ask(topology, "03:00.0", "04:00.0").map_type is MapType.BUS_ADDR


@pytest.mark.parametrize(
    ("bridge", "cpu", "expected", "rule"),
    [
        (ICE_LAKE, INTEL, MapType.THRU_HOST_BRIDGE, Rule.WHITELIST),
        (HASWELL, INTEL, MapType.THRU_HOST_BRIDGE, Rule.WHITELIST),
        (UNLISTED, INTEL, MapType.NOT_SUPPORTED, Rule.NOT_LISTED),
        (UNLISTED, ZEN, MapType.THRU_HOST_BRIDGE, Rule.CPU),
    ],
)
def test_ports_of_one_root_bus_ask_the_host_bridge(bridge, cpu, expected, rule):
    answer = ask(machine(two_ports, bridge=bridge), "01:00.0", "02:00.0", cpu)
    assert answer[2:5] == (expected, 4, None)
    assert answer.rule is rule
    assert answer.redirecting == ()
    refused = expected is MapType.NOT_SUPPORTED
    # Without a common bridge the kernel says nothing of ACS, nor of the list.
    assert len(answer.messages) == refused
    assert all("do not share an upstream bridge" in words for words in answer.messages)
    assert len(answer.path) == 4


def test_the_chains_add_up_when_nothing_is_common():
    def build(builder: Builder) -> None:
        switch(builder)
        builder.root_port("00:05.0", 9)
        builder.endpoint("09:00.0")

    assert ask(machine(build), "03:00.0", "09:00.0").distance == 6


def test_integrated_endpoints_are_two_apart():
    def build(builder: Builder) -> None:
        builder.add("00:0e.0", RCIEP)
        builder.add("00:0f.0", RCIEP)

    assert ask(machine(build), "00:0e.0", "00:0f.0")[2:4] == (MapType.THRU_HOST_BRIDGE, 2)
    refused = ask(machine(build, bridge=UNLISTED), "00:0e.0", "00:0f.0")
    assert refused[2:4] == (MapType.NOT_SUPPORTED, 2)


def with_vfs(builder: Builder) -> None:
    builder.root_port("00:01.0", 1, None)
    builder.endpoint("01:00.0")
    builder.virtual("01:00.1", "01:00.0")
    builder.virtual("02:00.0", "01:00.0")


@pytest.mark.parametrize(
    ("provider", "client"), [("01:00.1", "02:00.0"), ("01:00.0", "02:00.0"), ("01:00.1", "01:00.0")]
)
def test_virtual_functions_hang_where_their_pf_does(provider, client):
    answer = ask(machine(with_vfs), provider, client)
    assert answer[2:5] == (MapType.BUS_ADDR, 2, bdf("00:01.0"))


def test_virtual_functions_of_an_integrated_pf_are_two_apart():
    def build(builder: Builder) -> None:
        builder.add("00:0e.0", RCIEP)
        builder.add("01:00.0", PortType.ENDPOINT, physfn="00:0e.0")
        builder.add("01:00.1", PortType.ENDPOINT, physfn="00:0e.0")

    answer = ask(machine(build), "01:00.0", "01:00.1")
    assert answer[2:5] == (MapType.THRU_HOST_BRIDGE, 2, None)


def test_a_bridge_above_the_client_is_where_they_meet():
    answer = ask(machine(switch), "01:00.0", "03:00.0")
    assert answer[2:5] == (MapType.BUS_ADDR, 2, bdf("01:00.0"))
    assert ask(machine(switch), "03:00.0", "01:00.0").distance == 2


# -- which bits count


@pytest.mark.parametrize("bit", range(7))
def test_request_and_completion_redirect_and_egress_control_count_and_no_other(bit):
    topology = machine(lambda b: switch(b, acs_a=(0x7F, 1 << bit)))
    found = ask(topology, "03:00.0", "04:00.0").map_type
    expected = MapType.THRU_HOST_BRIDGE if bit in (2, 3, 5) else MapType.BUS_ADDR
    assert found is expected


@pytest.mark.parametrize("side", ["01:00.0", "01:00.1"])
def test_the_endpoints_own_redirect_counts_on_both_sides(side):
    def build(builder: Builder) -> None:
        builder.root_port("00:01.0", 1, None)
        for number in ("01:00.0", "01:00.1"):
            builder.endpoint(number, multifunction=True, acs=REDIRECT if number == side else None)

    answer = ask(machine(build), "01:00.0", "01:00.1")
    assert answer.redirecting == (bdf(side),)
    assert answer.map_type is MapType.THRU_HOST_BRIDGE


def test_a_quirk_that_isolates_groups_redirects_nothing():
    def build(builder: Builder) -> None:
        builder.root_port("00:1c.0", 1, None, ids=(0x8086, 0x8D10))  # PCH: no ACS, quirk
        builder.endpoint("01:00.0", multifunction=True)
        builder.endpoint("01:00.1")

    assert ask(machine(build), "01:00.0", "01:00.1").map_type is MapType.BUS_ADDR


def test_conventional_bridges_are_bridges():
    def build(builder: Builder) -> None:
        builder.add("00:1e.0", None, below=1)
        builder.add("01:02.0", None)
        builder.add("01:03.0", None)

    assert ask(machine(build), "01:02.0", "01:03.0")[2:4] == (MapType.BUS_ADDR, 2)


def test_the_tenth_port_is_cut_off_in_the_kernel_s_message():
    builder = Builder()
    host(builder, device=UNLISTED)
    builder.root_port("00:02.0", 0x60, REDIRECT)
    builder.upstream("60:00.0", 0x61)
    for side, start in ((0, 0x70), (1, 0x90)):
        bus = 0x61
        for level in range(5):
            builder.downstream(f"{bus:02x}:{side if not level else 0:02x}.0", start, REDIRECT)
            bus, start = start, start + 1
        builder.endpoint(f"{bus:02x}:00.0")
    answer = ask(builder.topology(), "74:00.0", "94:00.0")
    assert len(answer.redirecting) == 10
    listed = answer.messages[1].partition("disable_acs_redir=")[2]
    assert len(listed) == 127
    assert listed == ";".join(map(str, answer.redirecting))[:127]
    assert answer.messages[2] == "0000:00:00.0: Host bridge not in P2PDMA whitelist: 8086:3405"


# -- host bridges and processors


def sockets(first: int, second: int) -> Topology:
    builder = Builder()
    host(builder, "00", first)
    host(builder, "80", second)
    builder.root_port("00:01.0", 1)
    builder.root_port("80:01.0", 0x81)
    builder.endpoint("01:00.0")
    builder.endpoint("81:00.0")
    return builder.topology([(0, 0), (0, 0x80)])


@pytest.mark.parametrize(
    ("first", "second", "cpu", "expected", "rule"),
    [
        (ICE_LAKE, ICE_LAKE, INTEL, MapType.THRU_HOST_BRIDGE, Rule.WHITELIST),
        (ICE_LAKE, 0x0B25, INTEL, MapType.THRU_HOST_BRIDGE, Rule.WHITELIST),
        (HASWELL, HASWELL_PORT, INTEL, MapType.NOT_SUPPORTED, Rule.SAME_BRIDGE_ONLY),
        (ICE_LAKE, HASWELL, INTEL, MapType.NOT_SUPPORTED, Rule.SAME_BRIDGE_ONLY),
        (ICE_LAKE, UNLISTED, INTEL, MapType.NOT_SUPPORTED, Rule.NOT_LISTED),
        (HASWELL, UNLISTED, ZEN, MapType.THRU_HOST_BRIDGE, Rule.CPU),
    ],
)
def test_both_host_bridges_must_be_trusted_between_sockets(first, second, cpu, expected, rule):
    topology = sockets(first, second)
    for pair in (("01:00.0", "81:00.0"), ("81:00.0", "01:00.0")):
        answer = ask(topology, *pair, cpu)
        assert answer.map_type is expected
        assert answer.rule is rule
        assert answer.distance == 4


def test_google_s_host_bridges_are_trusted_whatever_their_device_id():
    builder = Builder()
    host(builder, vendor=0x1AE0, device=0x4242)
    two_ports(builder)
    answer = ask(builder.topology(), "01:00.0", "02:00.0", Cpu("CPU implementer", 0, 0))
    assert answer.map_type is MapType.THRU_HOST_BRIDGE


@pytest.mark.parametrize(
    ("cpu", "trusted"),
    [
        (Cpu("AuthenticAMD", 0x17, 0), True),
        (Cpu("AuthenticAMD", 0x1A, 0), True),
        (Cpu("AuthenticAMD", 0x16, 0), False),
        (Cpu("HygonGenuine", 0x18, 0), False),
        (Cpu("GenuineIntel", 0x17, 0), False),
        (Cpu("0x41", 0, 0), False),
    ],
)
def test_only_amd_from_zen_on_trusts_every_host_bridge(cpu, trusted):
    answer = ask(machine(two_ports, bridge=UNLISTED), "01:00.0", "02:00.0", cpu)
    assert (answer.map_type is MapType.THRU_HOST_BRIDGE) == trusted


def test_a_root_port_that_comes_first_is_the_host_bridge():
    topology = machine(
        lambda b: [
            b.root_port("00:01.0", 1, ids=(0x8086, 0x2030)),
            b.root_port("00:02.0", 2),
            b.endpoint("01:00.0"),
            b.endpoint("02:00.0"),
        ],
        bridge=None,
    )
    assert ask(topology, "01:00.0", "02:00.0").map_type is MapType.THRU_HOST_BRIDGE


def test_a_function_that_comes_first_and_is_neither_is_no_host_bridge():
    def build(builder: Builder) -> None:
        builder.add("00:00.1", RCIEP, ids=(0x8086, ICE_LAKE))
        two_ports(builder)

    answer = ask(machine(build, bridge=None), "01:00.0", "02:00.0")
    assert answer.map_type is MapType.NOT_SUPPORTED
    assert answer.rule is Rule.NO_HOST_BRIDGE
    assert "neither 00.0 nor a root port" in answer.reason


def test_the_list_is_said_only_where_a_redirect_led_to_it():
    topology = machine(lambda b: one_port(b, acs=REDIRECT), bridge=UNLISTED)
    messages = ask(topology, "01:00.0", "01:00.1").messages
    assert messages[2:] == (
        "0000:00:00.0: Host bridge not in P2PDMA whitelist: 8086:3405",
        "0000:01:00.1: cannot be used for peer-to-peer DMA as the client and provider "
        "(0000:01:00.0) do not share an upstream bridge or whitelisted host bridge",
    )


# -- what is not known


def test_a_processor_that_nothing_tells_leaves_the_answer_open():
    builder = Builder()
    host(builder, vendor=0x1022, device=0x1234)
    two_ports(builder)
    peers = Peers(builder.topology())
    answer = peers.map_type(bdf("01:00.0"), bdf("02:00.0"))
    assert peers.cpu is None
    assert answer.map_type is MapType.UNKNOWN
    assert answer.unknown == ("the processor (no /proc/cpuinfo)",)
    assert answer.messages == ()


@pytest.mark.parametrize(
    ("ids", "vendor"),
    [
        ((0x8086, 0x2F00), "GenuineIntel"),
        ((0x1022, 0x1480), "AuthenticAMD"),
        ((0x1D94, 0x1450), "HygonGenuine"),
        ((0x8086, 0x29C0), None),  # QEMU has it with any processor
        ((0x8086, 0x1237), None),
        ((0x1022, 0x1601), None),  # family 15h
        ((0x10DE, 0x22B2), None),
    ],
)
def test_host_bridges_that_are_part_of_a_processor_give_it_away(ids, vendor):
    builder = Builder()
    host(builder, vendor=ids[0], device=ids[1])
    peers = Peers(builder.topology())
    assert (peers.cpu.vendor if peers.cpu else None) == vendor
    assert peers.cpu_deduced_from == (bdf("00:00.0") if vendor else None)
    assert Peers(builder.topology(), cpu=ZEN).cpu_deduced_from is None


def cut(topology: Topology, sizes: dict[str, int]) -> Topology:
    """The same machine captured with less privilege."""
    functions = [
        Function(
            each.bdf,
            ConfigSpace(each.config.data[: sizes.get(str(each.bdf)[5:], 4096)]),
            each.identity,
            physfn=each.physfn,
        )
        for each in topology
    ]
    return Topology(functions, [(bridge.domain, bridge.bus) for bridge in topology.host_bridges])


def test_a_port_whose_acs_was_not_captured_leaves_the_answer_open():
    topology = cut(machine(switch), {"02:00.0": 0x40})
    answer = ask(topology, "03:00.0", "04:00.0")
    assert answer.map_type is MapType.UNKNOWN
    assert answer.rule is Rule.UNKNOWN
    assert answer.distance == 4
    assert answer.unknown == ("whether 0000:02:00.0 has an ACS redirect set",)


def test_a_known_redirect_decides_whatever_else_is_not_known():
    whole = machine(lambda b: switch(b, acs_b=REDIRECT))
    answer = ask(cut(whole, {"02:00.0": 0x40}), "03:00.0", "04:00.0")
    assert answer.map_type is MapType.THRU_HOST_BRIDGE
    assert answer.unknown == ("whether 0000:02:00.0 has an ACS redirect set",)


def test_acs_does_not_matter_without_a_common_bridge():
    topology = cut(machine(two_ports), {"01:00.0": 0, "00:01.0": 0x40})
    # A port that was cut after its header is still the way to its bus.
    answer = ask(topology, "01:00.0", "02:00.0")
    assert answer.map_type is MapType.THRU_HOST_BRIDGE
    assert answer.unknown == ()


@pytest.mark.parametrize(
    ("port", "size", "expected"),
    [
        (PortType.ENDPOINT, 0x1000, Redirect.NO),
        (PortType.ENDPOINT, 0x100, Redirect.UNKNOWN),
        (PortType.ENDPOINT, 0x40, Redirect.UNKNOWN),
        (None, 0x100, Redirect.NO),
        (None, 0x40, Redirect.UNKNOWN),
        (None, 0, Redirect.UNKNOWN),
    ],
)
def test_what_cannot_have_acs_is_known_not_to_redirect(port, size, expected):
    from vfiokit.p2p import redirect

    builder = Builder()
    builder.add("00:05.0", port, size=size)
    assert redirect(builder.functions[0]) is expected


def test_an_acs_capability_cut_before_its_control_register_is_unknown():
    from vfiokit.p2p import redirect

    raw = config_bytes(
        vendor=1,
        device=2,
        class_code=0,
        header=0,
        port=PortType.ENDPOINT,
        acs=REDIRECT,
        acs_dwords=None,
        secondary=0,
        size=0x106,
    )
    assert redirect(Function(bdf("01:00.0"), ConfigSpace(raw))) is Redirect.UNKNOWN


def test_a_host_bridge_that_was_not_described_leaves_the_answer_open():
    topology = machine(two_ports)
    blank = Function(bdf("00:00.0"), ConfigSpace(b""), Identity(0xFFFF, 0xFFFF, 0))
    functions = [blank if each.bdf == blank.bdf else each for each in topology]
    answer = map_type(Topology(functions), bdf("01:00.0"), bdf("02:00.0"), cpu=INTEL)
    assert answer.map_type is MapType.UNKNOWN
    assert answer.unknown == ("the host bridge of pci0000:00",)
    # Zen needs no host bridge.
    zen = map_type(Topology(functions), bdf("01:00.0"), bdf("02:00.0"), cpu=ZEN)
    assert zen.map_type is MapType.THRU_HOST_BRIDGE


def test_a_first_function_cut_before_its_port_type_leaves_the_answer_open():
    whole = machine(two_ports, bridge=None)
    answer = ask(cut(whole, {"00:01.0": 0x40}), "01:00.0", "02:00.0")
    assert answer.map_type is MapType.UNKNOWN


def test_a_function_that_is_not_there_is_an_error():
    with pytest.raises(DeviceNotFoundError, match="0000:42:00"):
        ask(machine(switch), "03:00.0", "42:00.0")


# -- several clients


def test_the_distances_of_several_clients_add_up():
    peers = Peers(machine(switch), cpu=INTEL)
    found = peers.distance_many(bdf("03:00.0"), [bdf("04:00.0"), bdf("02:00.0"), bdf("03:00.0")])
    assert found.total == 4 + 1 + 0
    assert [answer.distance for answer in found.answers] == [4, 1, 0]


def test_no_client_or_a_refused_one_is_minus_one():
    peers = Peers(machine(two_ports, bridge=UNLISTED), cpu=INTEL)
    assert peers.distance_many(bdf("01:00.0"), []).total == -1
    found = peers.distance_many(bdf("01:00.0"), [bdf("01:00.0"), bdf("02:00.0")])
    assert found.total == -1
    assert len(found.answers) == 2


def test_an_unknown_client_leaves_the_sum_open_unless_one_is_refused():
    topology = cut(machine(lambda b: [switch(b)], bridge=UNLISTED), {"02:01.0": 0x40})
    peers = Peers(topology, cpu=INTEL)
    assert peers.distance_many(bdf("03:00.0"), [bdf("04:00.0")]).total is None
    refused = peers.distance_many(bdf("03:00.0"), [bdf("04:00.0"), bdf("00:00.0")])
    assert refused.total == -1


# -- words


def numa(topology: Topology, nodes: dict[str, int]) -> Topology:
    functions = [
        Function(
            each.bdf,
            each.config,
            each.identity,
            physfn=each.physfn,
            recorded=Recorded(numa_node=nodes.get(str(each.bdf)[5:])),
        )
        for each in topology
    ]
    return Topology(functions, [(bridge.domain, bridge.bus) for bridge in topology.host_bridges])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ({}, "NODE"),
        ({"01:00.0": 0, "81:00.0": 0}, "NODE"),
        ({"01:00.0": 0, "81:00.0": 1}, "SYS"),
        ({"01:00.0": 0}, "SYS"),
        ({"01:00.0": 0, "80:01.0": 0}, "NODE"),  # the port above tells
        ({"00:00.0": 0}, "SYS"),
    ],
)
def test_different_host_bridges_are_node_or_sys_by_numa_node(nodes, expected):
    peers = Peers(numa(sockets(ICE_LAKE, ICE_LAKE), nodes), cpu=INTEL)
    assert peers.code(bdf("01:00.0"), bdf("81:00.0")) == expected
    assert peers.map_type(bdf("01:00.0"), bdf("81:00.0")).code == expected


def test_a_vf_is_on_its_pf_s_numa_node():
    topology = sockets(ICE_LAKE, ICE_LAKE)
    virtual = Function(bdf("81:00.4"), ConfigSpace(b""), Identity(1, 2, 0), physfn=bdf("81:00.0"))
    functions = [*numa(topology, {"01:00.0": 1, "81:00.0": 1}), virtual]
    peers = Peers(Topology(functions, [(0, 0), (0, 0x80)]))
    assert peers.code(bdf("01:00.0"), bdf("81:00.4")) == "NODE"


def nested(builder: Builder) -> None:
    """A switch below a switch."""
    builder.root_port("00:01.0", 1)
    builder.upstream("01:00.0", 2)
    builder.downstream("02:00.0", 3)
    builder.downstream("02:01.0", 4)
    builder.endpoint("03:00.0")
    builder.upstream("04:00.0", 5)
    builder.downstream("05:00.0", 6)
    builder.downstream("05:01.0", 7)
    builder.endpoint("06:00.0")
    builder.endpoint("07:00.0")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("06:00.0", "07:00.0", "PIX"),
        ("03:00.0", "06:00.0", "PXB"),
        ("03:00.0", "03:00.0", "X"),
        ("03:00.0", "00:00.0", "PHB"),
        ("01:00.0", "03:00.0", "PIX"),
    ],
)
def test_switches_on_the_way_are_counted(one, other, expected):
    peers = Peers(machine(nested), cpu=INTEL)
    assert peers.code(bdf(one), bdf(other)) == expected
    assert peers.code(bdf(other), bdf(one)) == expected


def test_functions_of_one_card_are_pix():
    assert Peers(machine(one_port)).code(bdf("01:00.0"), bdf("01:00.1")) == "PIX"


def test_the_story_names_the_ports_the_rule_and_what_the_device_does_inside():
    text = ask(machine(lambda b: one_port(b, acs=REDIRECT)), "01:00.0", "01:00.1").text()
    assert text.splitlines() == [
        "DMA of 0000:01:00.1 to a BAR of 0000:01:00.0 goes through the host bridge. "
        "They meet at 0000:00:01.0 (distance 2, PIX).",
        "ACS redirect is set on 0000:00:01.0: it sends peer-to-peer requests up to the host "
        "bridge.",
        "They are functions of one device: what it forwards inside itself no port sees, whatever "
        "Linux says.",
        "On the kernel's list of host bridges: 0000:00:00.0 [8086:09a2] of pci0000:00.",
    ]


def test_the_story_of_an_open_answer_says_what_is_missing():
    text = ask(cut(machine(switch), {"02:00.0": 0x40}), "03:00.0", "04:00.0").text()
    assert "cannot be told" in text
    assert "bus-addr if no redirect is set there, else thru-host-bridge" in text
    assert "Not known: whether 0000:02:00.0 has an ACS redirect set." in text


# -- selections and the matrix


def test_what_moves_data_by_itself_is_chosen_and_named():
    from vfiokit.p2p.selection import fold, usual

    builder = Builder()
    builder.root_port("00:01.0", 1)
    kinds = {
        "01:00.0": (0x030200, "gpu"),
        "01:01.0": (0x038000, "gpu"),
        "01:02.0": (0x020700, "nic"),
        "01:03.0": (0x010802, "nvme"),
        "01:04.0": (0x120000, "accelerator"),
        "01:05.0": (0x0B4000, "accelerator"),
        "01:06.0": (0x010700, None),
        "01:07.0": (0x0C0330, None),
    }
    for address, (class_code, _) in kinds.items():
        builder.endpoint(address, class_code=class_code)
    peers = Peers(builder.topology())
    chosen = usual(peers.topology)
    assert [str(each)[5:] for each in chosen] == [each for each, kind in kinds.items() if kind[1]]
    rows = fold(peers, chosen)
    assert [row.kind for row in rows] == [kind for _, kind in kinds.values() if kind]


def test_vfs_share_a_row_only_when_they_answer_alike():
    from vfiokit.p2p.selection import fold, separate

    def build(builder: Builder) -> None:
        with_vfs(builder)
        builder.virtual("02:00.1", "01:00.0", acs=REDIRECT)

    peers = Peers(machine(build))
    everyone = [bdf(each) for each in ("01:00.0", "01:00.1", "02:00.0", "02:00.1")]
    rows = fold(peers, everyone)
    assert [row.members for row in rows] == [
        (everyone[0],),
        (everyone[1], everyone[2]),
        (everyone[3],),
    ]
    assert rows[1].other_than(everyone[1]) == everyone[2]
    assert rows[0].other_than(everyone[0]) == everyone[0]
    assert len(separate(peers, everyone)) == 4


def test_a_cell_of_the_matrix_can_be_asked_by_address():
    peers = Peers(machine(switch), cpu=INTEL)
    matrix = peers.matrix([bdf("03:00.0")], [bdf("04:00.0"), bdf("00:00.0")])
    assert matrix.verdict(bdf("03:00.0"), bdf("04:00.0")) == (MapType.BUS_ADDR, 4)
    assert matrix.counts()[MapType.THRU_HOST_BRIDGE] == 1
    with pytest.raises(ValueError, match="not in tuple"):
        matrix.verdict(bdf("04:00.0"), bdf("04:00.0"))
