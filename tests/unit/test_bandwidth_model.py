"""The bandwidth model on small machines: rates by hand, ways, limits, remedies."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation_topologies import FULL, OFF, Builder, switch

from vfiokit.errors import DeviceNotFoundError, FormatError, UsageError
from vfiokit.host.lspci import read as read_lspci
from vfiokit.host.nccl import read as read_nccl
from vfiokit.host.source import open_host
from vfiokit.p2p import MapType, Peers
from vfiokit.p2p.bandwidth import (
    Changes,
    Flow,
    Kind,
    Memory,
    Parameters,
    lifts,
    parse_flows,
    predict,
)
from vfiokit.p2p.bandwidth.link import LinkMap, PortKind, encoding
from vfiokit.p2p.bandwidth.sketch import sketch
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import BlueprintError
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

PURE = {"dllp_share": 0, "skp_share": 0}
"""Parameters that leave headers and framing alone, so that rates are easy by hand."""
PAIR = "rp0(sw:s acs(nvme:gpu0, nvme:nic0))"


def run(text, *flows, given=None, all_pairs=False, **changes):
    drawn = sketch(text)
    parsed = parse_flows(drawn.topology, flows, names=drawn.names, all_pairs=all_pairs)
    return predict(drawn.topology, parsed, Parameters(given or PURE), Changes(**changes))


def remedies(text, *flows, given=None, **changes):
    drawn = sketch(text)
    parsed = parse_flows(drawn.topology, flows, names=drawn.names)
    parameters, what_if = Parameters(given or PURE), Changes(**changes)
    before = predict(drawn.topology, parsed, parameters, what_if)
    return before, lifts(drawn.topology, parsed, before, parameters, what_if)


# -- packets and links ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speed", "gigabytes"),
    # 2.5 to 32 GT/s x16, writes of 256 bytes with 24 around them: computed by hand.
    [("2.5", 3.657), ("5", 7.314), ("8", 14.40), ("16", 28.81), ("32", 57.61)],
)
def test_writes_of_one_link_by_generation(speed, gigabytes):
    prediction = run(f"rp0 speed={speed} width=16(nvme:a)", "a > memory")
    assert prediction.total / 8 == pytest.approx(gigabytes, rel=1e-3)


def test_flits_have_no_framing_and_their_own_share():
    prediction = run("rp0 speed=64 width=16(nvme:a)", "a > memory")
    assert prediction.total == pytest.approx(64 * 16 * 236 / 256 * 256 / (256 + 16))
    assert encoding(64) == 236 / 256


def test_a_read_has_its_data_in_the_other_direction_and_requests_in_this_one():
    prediction = run("rp0 speed=8 width=1(nvme:a)", "a < memory")
    raw = 8 * 128 / 130
    (rate,) = prediction.rates
    assert rate.gbps == pytest.approx(raw * 256 / (256 + 12 + 8))
    used = {load.resource.direction.value: load.used for load in prediction.loads}
    assert used["down"] == pytest.approx(raw)
    assert used["up"] == pytest.approx(rate.gbps * 24 / 512)


def test_reads_and_writes_share_each_direction_by_what_they_cost():
    prediction = run("rp0 speed=8 width=1(nvme:a)", "a <> memory")
    raw = 8 * 128 / 130
    write, read = prediction.rates
    # Up carries the writes and the read requests, down only completions: up fills first.
    assert write.gbps == pytest.approx(raw / (280 / 256 + 24 / 512))
    assert read.gbps == pytest.approx(write.gbps)


@pytest.mark.parametrize(
    ("given", "payload", "around"),
    [
        ({"mps": 512}, 512, 24),
        ({"mps": 128}, 128, 24),
        ({"request_header": 12}, 256, 20),
        ({"ecrc": 4}, 256, 28),
        ({"framing": 10}, 256, 26),
    ],
)
def test_what_is_set_changes_the_packets(given, payload, around):
    prediction = run("rp0 speed=8 width=1(nvme:a)", "a > memory", given={**PURE, **given})
    assert prediction.total == pytest.approx(8 * 128 / 130 * payload / (payload + around))


def test_acknowledgements_travel_against_the_data():
    alone = run("rp0 speed=8 width=1(nvme:a)", "a > memory", given={**PURE, "dllp_share": 0.1})
    both = run(
        "rp0 speed=8 width=1(nvme:a), rp1 speed=8 width=1(nvme:b)",
        "a > b",
        "b > a",
        given={**PURE, "dllp_share": 0.1},
    )
    assert both.rates[0].gbps == pytest.approx(alone.rates[0].gbps / 1.1)


def test_more_payload_and_more_lanes_never_cost_bandwidth():
    totals = [
        run(
            f"rp0 speed=16 width={width}(nvme:a)", "a > memory", given={**PURE, "mps": payload}
        ).total
        for width in (1, 2, 4, 8, 16)
        for payload in (128, 256, 512)
    ]
    assert totals == sorted(totals)


# -- ways -----------------------------------------------------------------------------------------


def test_redirect_uses_the_uplink_once_in_each_direction():
    off = run(PAIR, "nic0 > gpu0", redirect=False)
    on = run(PAIR, "nic0 > gpu0")
    assert [load.resource.text() for load in off.loads if load.used] == [
        "link 0000:02:01.0 up",
        "link 0000:02:00.0 down",
    ]
    assert [load.resource.text() for load in on.loads if load.used] == [
        "link 0000:02:01.0 up",
        "link 0000:00:02.0 up",
        "link 0000:00:02.0 down",
        "link 0000:02:00.0 down",
    ]
    assert on.rates[0].redirecting == (Bdf.parse("02:01.0"),)
    assert on.rates[0].gbps == off.rates[0].gbps  # one way, one pair: nothing is lost


def test_two_redirected_directions_share_what_one_had():
    on = run(PAIR, "nic0 > gpu0", "gpu0 > nic0")
    off = run(PAIR, "nic0 > gpu0", "gpu0 > nic0", redirect=False)
    assert on.total == pytest.approx(off.total / 2)
    assert "shared by 2 flows" in on.rates[0].text


def test_direct_translated_needs_ats_and_the_bit():
    ports = {Bdf.parse("02:01.0"): Acs(0x5D)}
    for changes, through in (
        ({"ats": True}, True),
        ({"acs": ports}, True),
        ({"ats": True, "acs": ports}, False),
    ):
        (rate,) = run(PAIR, "nic0 > gpu0", **changes).rates
        assert (rate.request.root_complex is not None) == through


def test_completions_of_translated_reads_are_redirected_unless_relaxed():
    ports = {Bdf.parse(f"02:0{number}.0"): Acs(0x5D) for number in (0, 1)}
    (strict,) = run(PAIR, "nic0 < gpu0", ats=True, acs=ports).rates
    (relaxed,) = run(
        PAIR, "nic0 < gpu0", ats=True, acs=ports, given={**PURE, "relaxed_ordering": 1}
    ).rates
    assert strict.request.root_complex is None
    assert strict.answer.root_complex == Bdf.parse("00:02.0")
    assert relaxed.answer.root_complex is None


def test_translation_blocking_stops_translated_requests():
    ports = {Bdf.parse("02:01.0"): Acs.TRANSLATION_BLOCKING}
    (peer,) = run(PAIR, "nic0 > gpu0", ats=True, acs=ports).rates
    (memory,) = run(PAIR, "nic0 > memory", ats=True, acs=ports).rates
    assert (peer.gbps, peer.limit) == (0, "blocked")
    assert (memory.gbps, memory.limit) == (0, "blocked")
    assert "Translation Blocking" in memory.text


def test_without_upstream_forwarding_a_redirected_request_is_lost_at_a_switch_above():
    text = "rp0(sw:top acs(sw:leaf acs(nvme:a, nvme:b)))"
    drawn = sketch(text)
    upper = next(
        function.bdf
        for function in drawn.topology
        if function.acs and len(drawn.topology.path_to_root(function)) == 2
    )
    (through,) = run(text, "a > b").rates
    assert {str(step.place.port) for step in through.request.steps} >= {"0000:00:02.0", str(upper)}
    (lost,) = run(text, "a > b", acs={upper: Acs.REQUEST_REDIRECT}).rates
    assert lost.gbps == 0
    assert "Upstream Forwarding" in lost.text


def test_a_root_complex_that_refuses_stops_peers_and_not_memory():
    given = {**PURE, "rc_p2p_allowed": 0}
    peer, memory = run("rp0(nvme:a), rp1(nvme:b)", "a > b", "a > memory", given=given).rates
    assert (peer.gbps, peer.limit) == (0, "blocked")
    assert memory.gbps > 0


def test_a_cap_of_the_root_complex_is_shared_by_the_flows_of_one_root_port():
    text = "rp0(sw(nvme:a, nvme:b)), rp1(nvme:c), rp2(nvme:d)"
    prediction = run(text, "a > c", "b > d", given={**PURE, "rc_p2p_gbps": 56})
    assert [rate.gbps for rate in prediction.rates] == pytest.approx([28, 28])
    assert prediction.rates[0].limit == "root-complex"


def test_the_link_between_sockets_is_said_to_be_unknown_or_limits():
    text = "rp0(nvme:a), hb bus=0x80(rp1(nvme:b))"
    assert any("socket" in line for line in run(text, "a > b").assumptions)
    limited = run(text, "a > b", "b > a", given={**PURE, "socket_gbps": 100})
    assert [rate.gbps for rate in limited.rates] == [100, 100]
    assert limited.rates[0].bottleneck.text() == "between NUMA nodes 0 to 1"
    away = run(text, "a > memory:1", "a < memory:1", given={**PURE, "socket_gbps": 100})
    assert [rate.bottleneck.name for rate in away.rates] == ["0 to 1", "1 to 0"]


def test_functions_of_one_device_do_not_cross_a_link():
    (rate,) = run("rp0(slot(nvme:a, nvme:b))", "a > b").rates
    assert math.isinf(rate.gbps)
    assert rate.limit == "none"


def test_a_conventional_bus_has_one_direction_for_all():
    text = "rp0(pcie-pci-bridge(edu:a, edu:b))"
    prediction = run(text, "a > memory", "b < memory")
    assert prediction.total == pytest.approx(1.064)
    assert prediction.rates[0].limit == "bus"


def test_ways_agree_with_what_linux_calls_a_bus_address():
    for acs in (None, FULL, OFF):
        builder = Builder()
        switch(builder, acs_a=acs, acs_b=acs)
        topology = builder.topology()
        one, other = Bdf.parse("03:00.0"), Bdf.parse("04:00.0")
        kind = Peers(topology).verdict(one, other).map_type
        (rate,) = predict(topology, [Flow(one, other)]).rates
        assert (kind is MapType.BUS_ADDR) == (rate.request.root_complex is None)


def test_what_linux_calls_a_bus_address_stays_below_the_root_complex_of_a_real_host():
    topology = open_host("demo").topology()
    peers = Peers(topology)
    ends = [each.bdf for each in topology if not each.is_bridge and topology.path_to_root(each)]
    below = 0
    for one, other in itertools.permutations(ends, 2):
        if peers.verdict(one, other).map_type is not MapType.BUS_ADDR:
            continue
        below += 1
        (rate,) = predict(topology, [Flow(one, other)], changes=Changes(ats=False)).rates
        assert rate.request.root_complex is None, f"{one} -> {other}"
    assert below


# -- limits by themselves -------------------------------------------------------------------------


def test_reads_are_bound_by_what_is_in_flight():
    given = {**PURE, "tags": 32, "mrrs": 512, "endpoint_ns": 1000, "root_complex_ns": 250}
    (rate,) = run("rp0(nvme:a)", "a < memory", given=given).rates
    assert rate.rtt_ns == 1500
    assert rate.gbps == pytest.approx(32 * 512 * 8 / 1500)  # 87 Gb/s
    assert rate.limit == "latency"


def test_writes_are_bound_by_credits_where_they_are_known():
    given = {**PURE, "posted_credit_bytes": 4096}
    (rate,) = run("rp0(nvme:a)", "a > memory", given=given).rates
    assert rate.gbps == pytest.approx(4096 * 8 / rate.rtt_ns)
    assert rate.limit == "credits"


def test_a_working_set_beyond_the_iotlb_costs_and_large_pages_recover_it():
    given = {"working_set": 1 << 30, "transfer": 64}
    before, found = remedies("rp0 speed=8 width=8(nvme:a)", "a < memory", given=given)
    assert before.rates[0].limit == "iotlb"
    # Reported of a 64-entry IOTLB with 330 ns a miss: reads of 64 bytes lose 70 %, of 512 nothing.
    plain = run("rp0 speed=8 width=8(nvme:a)", "a < memory")
    assert before.total < 0.3 * plain.total
    larger = {**given, "transfer": 512}
    assert run("rp0 speed=8 width=8(nvme:a)", "a < memory", given=larger).total > 0.8 * plain.total
    assert "pages" in {lift.kind for lift in found}
    fits = run("rp0 speed=8 width=8(nvme:a)", "a < memory", given={"working_set": 64 * 4096})
    assert fits.rates[0].limit == "link"


def test_flows_of_one_iommu_share_its_misses_and_translated_ones_do_not_ask_it():
    given = {**PURE, "working_set": 1e12, "transfer": 64}
    text = "rp0(nvme:a), rp1(nvme:b)"
    alone = run(text, "a > memory", given=given).total
    assert run(text, "a > memory", "b > memory", given=given).total == pytest.approx(alone)
    assert run(text, "a > memory", given=given, ats=True).rates[0].limit == "link"


def test_a_demand_is_never_exceeded_and_leaves_the_rest_to_others():
    prediction = run("rp0 speed=8 width=1(nvme:a)", "a > memory @1", "a > memory")
    slow, fast = prediction.rates
    assert (slow.gbps, slow.limit) == (1, "demand")
    assert slow.gbps + fast.gbps == pytest.approx(8 * 128 / 130 * 256 / 280)


def test_every_other_limit_is_listed_tightest_first():
    (rate,) = run(PAIR, "nic0 < gpu0 @100").rates
    values = [limit.gbps for limit in rate.limits]
    assert values == sorted(values)
    assert {"demand", "latency", "link"} <= {limit.kind for limit in rate.limits}


# -- remedies -------------------------------------------------------------------------------------


def test_a_remedy_is_what_the_prediction_gives_when_it_is_done():
    before, found = remedies(PAIR, "nic0 <> gpu0")
    off = run(PAIR, "nic0 <> gpu0", redirect=False)
    by_kind = {lift.kind: lift for lift in reversed(found)}
    assert by_kind["acs"].prediction.total == pytest.approx(off.total)
    assert by_kind["acs"].gain == pytest.approx(off.total / before.total)
    larger = run(PAIR, "nic0 <> gpu0", given={**PURE, "mps": 512})
    assert by_kind["mps"].prediction.total == pytest.approx(larger.total)
    gains = [lift.gain for lift in found]
    assert gains == sorted(gains, reverse=True)


def test_nothing_is_offered_where_nothing_gains():
    _, found = remedies("rp0(nvme:a)", "a > memory @1")
    assert found == ()


def test_a_flow_that_is_blocked_gains_from_nothing():
    before, found = remedies(PAIR, "nic0 > gpu0", given={**PURE, "rc_p2p_allowed": 0})
    assert before.total == 0
    assert math.isinf(found[0].gain)
    assert found[0].kind == "acs"


def test_a_link_below_its_best_is_offered_at_its_best():
    topology = open_host("demo").topology()
    flows = parse_flows(topology, ["08:00.0 > memory"])
    found = {lift.kind: lift for lift in lifts(topology, flows, predict(topology, flows))}
    best = predict(topology, flows, changes=Changes(best_links=True))
    assert "0000:00:03.0 from 2.5 GT/s x8 to 8 GT/s x16" in found["link"].text
    assert found["link"].prediction.total == pytest.approx(best.total)


# -- sources --------------------------------------------------------------------------------------


def test_packet_sizes_and_links_of_a_capture_are_its_own():
    topology = open_host("demo").topology()
    prediction = predict(topology, parse_flows(topology, ["05:00.0 > memory"]), Parameters(PURE))
    # lspci: LnkSta 8GT/s x4, MaxPayload 256 bytes.
    assert prediction.total == pytest.approx(8 * 4 * 128 / 130 * 256 / 280)
    assert prediction.assumptions == ()


def test_a_capture_without_privilege_still_has_links_and_says_what_it_lacks():
    """Link speed and width are world-readable in sysfs; configuration space ends after 64 bytes."""
    whole = open_host("demo").topology()
    cut = Topology(
        (
            Function(
                each.bdf,
                ConfigSpace(each.config.data[:64]),
                each.identity,
                physfn=each.physfn,
                recorded=each.recorded,
            )
            for each in whole
        ),
        [(bridge.domain, bridge.bus) for bridge in whole.host_bridges],
    )
    flows = parse_flows(cut, ["05:00.0 > 08:00.0"])
    prediction = predict(cut, flows, Parameters(PURE))
    assert prediction.total == pytest.approx(predict(whole, flows, Parameters(PURE)).total)
    lacking = " ".join(prediction.assumptions)
    assert "Device Control was not captured" in lacking
    assert "ACS was not captured" in lacking
    assert predict(whole, flows).assumptions == ()


def test_a_virtual_function_uses_the_link_and_the_packet_sizes_of_its_physical_one():
    topology = open_host("demo").topology()
    physical, virtual = (
        predict(topology, parse_flows(topology, [f"{address} > memory"]))
        for address in ("08:00.0", "08:00.4")
    )
    assert topology[Bdf.parse("08:00.4")].is_virtual
    assert virtual.total == physical.total
    assert virtual.assumptions == ()


NCCL = """<system version="1"><cpu numaid="0" arch="x86_64">
<pci busid="0000:01:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="8">
  <pci busid="0000:02:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16"/>
  <pci busid="0000:03:00.0" class="0x020000" link_speed="16.0 GT/s PCIe" link_width="16"/>
</pci></cpu></system>"""


def test_an_nccl_topology_has_links_per_device_and_says_that_acs_is_unknown():
    topology = read_nccl(NCCL).topology()
    assert LinkMap(topology, Parameters()).ports_left_out
    flows = parse_flows(topology, ["nic > gpu", "gpu > nic"])
    direct = predict(topology, flows, Parameters(PURE))
    narrow = 16 * 16 * 128 / 130 * 256 / 280
    assert [rate.gbps for rate in direct.rates] == pytest.approx([narrow, narrow])
    assert any("ACS was not captured" in line for line in direct.assumptions)
    redirected = predict(topology, flows, Parameters(PURE), Changes(redirect=True))
    # The switch's own link, x8 at 16 GT/s, carries both flows in both directions.
    assert [rate.gbps for rate in redirected.rates] == pytest.approx([narrow / 4, narrow / 4])


SHARED = Path(os.environ.get("VFIOKIT_SHARED") or Path(__file__).resolve().parents[2] / "../shared")


@pytest.mark.parametrize(
    "name",
    [
        "aws-p4d.24xl.xml",
        "aws-p5.48xl-2026.xml",
        "azure-ndv4-topo.xml",
        "azure-ndv5-topo.xml",
        "oci-H100-topology.xml",
    ],
)
def test_published_nccl_topologies_are_predicted_and_lose_by_redirect(name):
    path = SHARED / "data" / "nccl" / name
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing")
        pytest.skip(f"{path} is not here")
    topology = read_nccl(path.read_bytes()).topology()
    flows = parse_flows(topology, ["nic <> gpu"])
    direct = predict(topology, flows)
    redirected = predict(topology, flows, changes=Changes(redirect=True))
    assert 0 < redirected.total <= direct.total
    for prediction in (direct, redirected):
        assert all(load.used <= load.capacity * (1 + 1e-9) for load in prediction.loads)
    below_one_switch = [rate for rate in redirected.rates if rate.redirecting]
    assert len(below_one_switch) == len(flows)


def test_ports_without_registers_are_told_by_their_place():
    listing = "\n".join(
        f"{address} {words}\n\tBus: primary={primary}, secondary={below}, subordinate=05\n"
        for address, words, primary, below in (
            ("00:01.0", "PCI bridge: One", "00", "01"),
            ("01:00.0", "PCI bridge: Two", "01", "02"),
            ("02:00.0", "PCI bridge: Three", "02", "03"),
        )
    )
    topology = read_lspci([listing.encode()]).topology
    links = LinkMap(topology, Parameters())
    assert [links.kind(function) for function in topology] == [
        PortKind.ROOT,
        PortKind.UP,
        PortKind.DOWN,
    ]


def test_a_link_about_which_nothing_is_known_is_assumed_and_said():
    builder = Builder()
    switch(builder)
    topology = builder.topology()
    flow = Flow(Bdf.parse("03:00.0"), Bdf.parse("04:00.0"))
    prediction = predict(topology, [flow], Parameters({"link_speed": 8, "link_width": 4}))
    assert prediction.loads[0].link.assumed
    assert any("8 GT/s x4" in line and "02:00.0" in line for line in prediction.assumptions)


# -- flows as text --------------------------------------------------------------------------------

MANY = "rp0(sw(nvme:gpu0, nvme:nic0)), rp1(sw(nvme:nic1, nvme:gpu1)), hb bus=0x80(rp2(nvme:gpu2))"


def texts(*flows, all_pairs=False, text=MANY):
    drawn = sketch(text)
    known = {bdf: name for name, bdf in drawn.names.items()}
    return [
        (known[flow.source], flow.kind.value, known.get(flow.destination, str(flow.destination)))
        for flow in parse_flows(drawn.topology, flows, names=drawn.names, all_pairs=all_pairs)
    ]


def test_kinds_on_both_sides_pair_the_nearest():
    assert texts("nic > gpu") == [("nic0", "write", "gpu0"), ("nic1", "write", "gpu1")]


def test_equally_near_ones_are_used_in_turn():
    text = "rp0(sw(nvme:gpu0, nvme:gpu1, nvme:nic0, nvme:nic1))"
    assert texts("nic > gpu", text=text) == [
        ("nic0", "write", "gpu0"),
        ("nic1", "write", "gpu1"),
    ]


def test_one_on_a_side_goes_with_each_of_the_other():
    assert texts("nic0 < gpu") == [("nic0", "read", f"gpu{number}") for number in range(3)]
    assert len(texts("nic > gpu0")) == 2


def test_all_pairs_joins_each_with_each_but_itself():
    assert len(texts("gpu > gpu", all_pairs=True)) == 6
    assert len(texts("nic <> gpu", all_pairs=True)) == 12


@pytest.mark.parametrize("text", ["nic0>memory:1@5 x3", "nic0 > memory:1 @5.0 x3"])
def test_rates_counts_and_nodes_are_read_with_and_without_blanks(text):
    drawn = sketch(MANY)
    flows = parse_flows(drawn.topology, [text], names=drawn.names)
    assert flows == [Flow(drawn.names["nic0"], Memory(1), Kind.WRITE, 5.0)] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu0",
        "gpu0 >",
        "> gpu0",
        "gpu0 > gpu1 > gpu2",
        "gpu0 - gpu1",
        "gpu0 > gpu1 @",
        "gpu0 > gpu1 @fast",
        "gpu0 > gpu1 @0",
        "gpu0 > gpu1 x0",
        "gpu0 > gpu1 @1 @2",
        "gpu0 > gpu0",
        "memory > gpu0",
        "gpu0 > nothing",
        "bridge > memory",
        "gpu0 > memory x99999",
    ],
)
def test_a_text_that_is_no_flow_is_a_usage_error(text):
    drawn = sketch(MANY)
    with pytest.raises(UsageError):
        parse_flows(drawn.topology, [text], names=drawn.names)


def test_flows_made_by_hand_are_checked_too():
    drawn = sketch(MANY)
    gpu = drawn.names["gpu0"]
    with pytest.raises(UsageError):
        predict(drawn.topology, [Flow(gpu, gpu)])
    with pytest.raises(UsageError):
        predict(drawn.topology, [Flow(drawn.names["rp0"], gpu)])
    with pytest.raises(DeviceNotFoundError):
        predict(drawn.topology, [Flow(gpu, Bdf.parse("ff:1f.7"))])
    assert predict(drawn.topology, []).rates == ()


@settings(deadline=None)
@given(st.text(alphabet="gpunic0123456789 ><@x.:memory", max_size=30))
def test_any_text_is_flows_or_a_usage_error(text):
    drawn = sketch(MANY)
    try:
        flows = parse_flows(drawn.topology, [text], names=drawn.names)
    except UsageError:
        return
    assert flows
    assert all(flow.source in drawn.topology for flow in flows)


# -- parameters and sketches ----------------------------------------------------------------------


def test_a_parameter_that_is_none_or_out_of_range_is_a_usage_error():
    for wrong in ({"nonsense": 1}, {"mps": 64}, {"dllp_share": 2}, {"mps": float("nan")}):
        with pytest.raises(UsageError):
            Parameters(wrong)


def test_values_set_on_purpose_win_over_captured_ones():
    topology = open_host("demo").topology()
    flows = parse_flows(topology, ["05:00.0 > memory"])
    captured = predict(topology, flows, Parameters(PURE)).total
    assert predict(topology, flows, Parameters({**PURE, "mps": 128})).total < captured
    assert predict(topology, flows, Parameters({**PURE, "mps": 256})).total == captured


def test_parameters_are_read_from_toml(tmp_path: Path):
    from vfiokit.p2p.bandwidth import parse_settings, read_parameters

    file = tmp_path / "given.toml"
    file.write_text("[bandwidth]\nmps = 512\nrc_p2p_allowed = false\n")
    assert read_parameters(str(file)) == {"mps": 512, "rc_p2p_allowed": 0}
    file.write_text("mps = 512\n")
    assert read_parameters(str(file)) == {"mps": 512}
    for text, error in (("mps 512", FormatError), ("mps = 'x'", UsageError), ("a = 1", UsageError)):
        file.write_text(text)
        with pytest.raises(error):
            read_parameters(str(file))
    file.write_bytes(b"mps = \xff")
    with pytest.raises(FormatError):
        read_parameters(str(file))
    file.write_text("bandwidth = 3")
    with pytest.raises(FormatError):
        read_parameters(str(file))
    with pytest.raises(OSError, match="nowhere"):
        read_parameters(str(tmp_path / "nowhere"))
    assert parse_settings(["mps=512", "tags = 32"]) == {"mps": 512, "tags": 32}
    for text in ("mps", "mps=", "mps=many", "=1", "mps=nan"):
        with pytest.raises(UsageError):
            parse_settings([text])


def test_a_sketch_has_the_places_of_the_blueprint_and_its_links():
    drawn = sketch("rp0 speed=16 width=8(sw:s acs(nvme:a, port width=4(nvme:b)))")
    assert str(drawn.names["a"]) == "0000:03:00.0"
    hops = LinkMap(drawn.topology, Parameters()).ascent(drawn.topology[drawn.names["b"]])
    links = [(hop.link.speed, hop.link.width) for hop in hops if hop.link]
    assert links == [(16, 4), (16, 8)]
    assert [hop.kind for hop in hops] == [PortKind.DOWN, PortKind.UP, PortKind.ROOT]


def test_a_sketch_of_no_topology_is_an_error():
    with pytest.raises(BlueprintError):
        sketch("rp0(")
