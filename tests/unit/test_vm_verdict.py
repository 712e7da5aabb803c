"""What a guest believes against what the host does, cliques, prerequisites, recommendations."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm_hosts import GPU, INTEL, NIC, REDIRECTING, SPREAD, SWITCH, ZEN, Host, host_texts

from vfiokit.assign.vmconfig.assessment import assess
from vfiokit.assign.vmconfig.prerequisite import (
    hole64,
    memory_ranges,
    overlaps,
    travel_together,
)
from vfiokit.assign.vmconfig.settings import GIB, KIB, MIB, Settings, parse_size, size_text
from vfiokit.errors import UsageError
from vfiokit.host.processor import Cpu
from vfiokit.machine.txn import Kind, Txn
from vfiokit.p2p import MapType, Peers
from vfiokit.p2p.guest import QEMU, GuestPlan, Variant, Viommu, flat
from vfiokit.p2p.guest_clique import MAX_CLIQUES, cliques, partition, takes_clique
from vfiokit.p2p.guest_topology import topology
from vfiokit.p2p.guest_tree import replicated
from vfiokit.p2p.guest_verdict import Pair, Route, Verdict, compare, route, score
from vfiokit.p2p.remedy import Way
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Resource, Topology


def judged(host: Host, plan: GuestPlan, cpu: Cpu) -> dict[tuple[str, str], Pair]:
    guest = Peers(topology(plan, host.topology), cpu=cpu)
    names = {bdf: name for name, bdf in host.names.items()}
    return {
        (names[pair.one], names[pair.other]): pair
        for pair in compare(Peers(host.topology, cpu=cpu), plan, guest)
    }


# -- verdicts ---------------------------------------------------------------------------------


def test_a_flat_guest_on_intel_misses_the_switch() -> None:
    host = Host(SWITCH)
    pair = judged(host, flat(host.functions), INTEL)["a", "b"]
    assert (pair.host.map_type, pair.works) == (MapType.BUS_ADDR, True)
    assert (pair.guest.map_type, pair.verdict) == (MapType.NOT_SUPPORTED, Verdict.MISSES)
    assert pair.route is Route.UNTRANSLATED
    assert any("data corruption" in note for note in pair.notes)


def test_behind_a_plain_switch_the_root_complex_still_matters() -> None:
    host = Host(SWITCH)
    told = judged(host, flat(host.functions), INTEL)["a", "b"].notes
    assert any("Linux does not vouch: the host bridge 0000:00:00.0" in note for note in told)
    told = judged(host, flat(host.functions), ZEN)["a", "b"].notes
    assert not any("does not vouch" in note for note in told)


def test_a_replicated_guest_believes_the_switch() -> None:
    host = Host(SWITCH)
    pairs = judged(host, replicated(host.topology, host.functions), INTEL)
    assert {key: pair.verdict for key, pair in pairs.items()} == {
        ("a", "b"): Verdict.AGREES,
        ("a", "c"): Verdict.AGREES,  # both refuse
        ("b", "c"): Verdict.AGREES,
    }
    assert pairs["a", "c"].works is False


def test_a_switch_shown_where_the_host_redirects_to_an_unlisted_bridge_corrupts() -> None:
    host = Host(REDIRECTING)
    pair = judged(host, replicated(host.topology, host.functions), INTEL)["a", "b"]
    assert (pair.host.map_type, pair.route) == (MapType.NOT_SUPPORTED, Route.IOMMU)
    assert (pair.guest.map_type, pair.verdict) == (MapType.BUS_ADDR, Verdict.CORRUPTS)
    assert any("without asking this rule" in note for note in pair.notes)
    behind = replicated(host.topology, host.functions, viommu=Viommu.INTEL)
    assert judged(host, behind, INTEL)["a", "b"].verdict is Verdict.AGREES


def test_by_bus_address_around_the_guest_s_own_iommu_corrupts() -> None:
    host = Host(SWITCH)
    for viommu, verdict in (
        (Viommu.INTEL, Verdict.CORRUPTS),
        (Viommu.VIRTIO, Verdict.CORRUPTS),
        (Viommu.INTEL_PT, Verdict.AGREES),
    ):
        plan = replicated(host.topology, host.functions, viommu=viommu)
        pair = judged(host, plan, INTEL)["a", "b"]
        assert pair.verdict is verdict
        assert any("goes around its own IOMMU" in note for note in pair.notes) == (
            verdict is Verdict.CORRUPTS
        )


def test_zen_believes_everything_on_both_sides() -> None:
    host = Host(SPREAD)
    for plan in (flat(host.functions), replicated(host.topology, host.functions)):
        assert {pair.verdict for pair in judged(host, plan, ZEN).values()} == {Verdict.AGREES}


def test_what_the_description_leaves_open_stays_open() -> None:
    host = Host(REDIRECTING)
    cut = Topology(
        [
            Function(
                each.bdf,
                ConfigSpace(each.config.data[:256]),
                each.identity,
            )
            for each in host.topology
        ],
        [(0, 0)],
    )
    functions = [cut[bdf] for bdf in host.names.values()]
    plan = flat(functions)
    guest = Peers(topology(plan, cut), cpu=INTEL)
    pairs = compare(Peers(cut, cpu=INTEL), plan, guest)
    assert pairs[0].works is None
    assert pairs[0].verdict is Verdict.UNKNOWN
    assert score(pairs).unknown >= 1


def with_ats(host: Host, names: str, *, enabled: bool = True) -> None:
    """Give drives an ATS capability."""
    changed = {}
    for name in names:
        function = host.topology[host[name]]
        data = bytearray(function.config.data)
        data[0x100:0x108] = (0x0001_000F).to_bytes(4, "little") + bytes([0x60, 0, 0, 0])
        data[0x107] = 0x80 if enabled else 0
        changed[function.bdf] = Function(
            function.bdf,
            ConfigSpace(bytes(data)),
            function.identity,
            resources=function.resources,
        )
    host.topology = Topology(
        [changed.get(each.bdf, each) for each in host.topology],
        [(0, each.bus) for each in host.topology.host_bridges],
    )


def test_ats_with_direct_translated_p2p_works_although_linux_refuses() -> None:
    host = Host(REDIRECTING)
    with_ats(host, "ab")
    host.set_acs({"sw0.0": 0x5D, "sw0.1": 0x5D})
    pair = judged(host, replicated(host.topology, host.functions), INTEL)["a", "b"]
    assert pair.host.map_type is MapType.NOT_SUPPORTED
    assert (pair.route, pair.works) == (Route.TRANSLATED, True)
    assert pair.verdict is Verdict.AGREES
    assert judged(host, flat(host.functions), INTEL)["a", "b"].verdict is Verdict.MISSES


@pytest.mark.parametrize(
    ("clients", "ports"), [("a", (0x5D, 0x5D)), ("ab", (0x5D, 0x1D)), ("ab", (0x1D, 0x1D))]
)
def test_direct_translated_p2p_takes_both_functions_and_both_ports(
    clients: str, ports: tuple[int, int]
) -> None:
    host = Host(REDIRECTING)
    with_ats(host, clients)
    host.set_acs(dict(zip(("sw0.0", "sw0.1"), ports, strict=True)))
    pair = judged(host, replicated(host.topology, host.functions), INTEL)["a", "b"]
    assert (pair.route, pair.works) == (Route.IOMMU, False)


def test_ats_that_is_off_does_not_count() -> None:
    host = Host(REDIRECTING)
    with_ats(host, "ab", enabled=False)
    host.set_acs({"sw0.0": 0x5D, "sw0.1": 0x5D})
    assert judged(host, flat(host.functions), INTEL)["a", "b"].route is Route.IOMMU


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(host_texts())
def test_the_fabric_sends_a_request_the_way_that_is_told(text: str) -> None:
    """The software machine's fabric, hop by hop, for a request at a peer's BAR."""
    host = Host(text)
    machine = host.assembly.machine
    peers = Peers(host.topology, cpu=ZEN)
    for one in host.functions:
        machine.fabric.config_write(one.bdf, 0x04, 2, 0x0006)
    for provider, client in permutations(host.functions, 2):
        if provider.bdf[:3] == client.bdf[:3]:
            continue  # functions of one device need not use the link at all
        claim = machine.fabric.bar_claims(machine.functions[provider.bdf])[0]
        txn = Txn(Kind.WRITE, claim.start, 4, client.bdf.requester_id, data=bytes(4))
        machine.fabric.route(txn)
        # A port without ACS above may stop a redirected request whose address is below it.
        upwards = any(
            hop.action == "redirect" or hop.where.startswith(("pci", "dmar")) for hop in txn.path
        )
        told = route(peers, peers.map_type(provider.bdf, client.bdf))
        assert told is (Route.IOMMU if upwards else Route.UNTRANSLATED), txn.path


def test_a_redirect_on_one_side_works_in_one_direction() -> None:
    host = Host("rp0(sw0(port acs(nvme:a), port(nvme:b)))")
    peers = Peers(host.topology, cpu=INTEL)
    assert route(peers, peers.map_type(host["b"], host["a"])) is Route.IOMMU
    assert route(peers, peers.map_type(host["a"], host["b"])) is Route.UNTRANSLATED
    pair = judged(host, flat(host.functions), INTEL)["a", "b"]
    assert pair.route is Route.UNTRANSLATED
    assert any("in one direction only" in note for note in pair.notes)


def test_a_redirect_below_the_switch_in_common_does_not_keep_peers_apart() -> None:
    host = Host("rp0(sw0(port(sw1 acs(nvme:a)), port(nvme:b)))")
    peers = Peers(host.topology, cpu=INTEL)
    answer = peers.map_type(host["b"], host["a"])
    assert answer.map_type is MapType.NOT_SUPPORTED
    assert answer.redirecting == (host["sw1.0"],)
    assert route(peers, answer) is Route.UNTRANSLATED


# -- cliques ----------------------------------------------------------------------------------


def bdf_of(number: int) -> Bdf:
    return Bdf(0, number, 0, 0)


@given(st.integers(0, 9), st.data())
def test_a_partition_is_of_disjoint_cliques(count: int, data: st.DataObject) -> None:
    members = [bdf_of(number) for number in range(count)]
    edges = {
        frozenset(pair) for pair in combinations(members, 2) if data.draw(st.booleans(), str(pair))
    }

    def reaches(one: Bdf, other: Bdf) -> bool:
        return frozenset((one, other)) in edges

    parts = partition(members, reaches)
    found = [member for part in parts for member in part]
    assert len(found) == len(set(found))
    assert [len(part) for part in parts] == sorted(map(len, parts), reverse=True)
    for part in parts:
        assert len(part) >= 2
        assert all(reaches(one, other) for one, other in combinations(part, 2))
    # Nobody left out could be with another one left out.
    rest = [member for member in members if member not in found]
    assert not any(reaches(one, other) for one, other in combinations(rest, 2))


@given(st.lists(st.integers(0, 4), max_size=24))
def test_islands_come_out_whole(islands: list[int]) -> None:
    members = [bdf_of(number) for number in range(len(islands))]
    parts = partition(members, lambda one, other: islands[one.bus] == islands[other.bus])
    expected = {
        frozenset(member for member in members if islands[member.bus] == island)
        for island in islands
    }
    assert {frozenset(part) for part in parts} == {part for part in expected if len(part) > 1}


def gpus(text: str, names: str, cpu: Cpu = INTEL) -> tuple[Host, dict[str, int]]:
    host = Host(text, **dict.fromkeys(names, GPU))
    plan = replicated(host.topology, host.functions)
    pairs = judged(host, plan, cpu).values()
    numbers = cliques(host.functions, pairs).numbers
    named = {bdf: name for name, bdf in host.names.items()}
    return host, {named[bdf]: number for bdf, number in numbers.items()}


def test_gpus_of_one_switch_are_a_clique_and_others_are_not() -> None:
    text = "rp0(sw0(nvme:a, nvme:b, nvme:c)), rp1(sw1(nvme:d, nvme:e)), rp2(nvme:f)"
    assert gpus(text, "abdef")[1] == {"a": 0, "b": 0, "d": 1, "e": 1}
    assert set(gpus(text, "abdef", ZEN)[1].values()) == {0}


def test_only_nvidia_display_devices_take_a_clique() -> None:
    def function(identity: Identity) -> Function:
        return Function(bdf_of(1), ConfigSpace(bytes(64)), identity)

    assert takes_clique(function(GPU))
    assert takes_clique(function(GPU._replace(class_code=0x030000)))
    assert not takes_clique(function(NIC))
    assert not takes_clique(function(GPU._replace(class_code=0x040300)))
    assert not takes_clique(function(GPU._replace(vendor_id=0x1002)))


def test_the_seventeenth_clique_is_left_out_with_a_word() -> None:
    functions = [Function(bdf_of(n), ConfigSpace(bytes(64)), GPU) for n in range(40)]

    class Works:
        def __init__(self, one: Bdf, other: Bdf) -> None:
            self.one, self.other, self.works = one, other, True

    pairs = [Works(bdf_of(2 * n), bdf_of(2 * n + 1)) for n in range(20)]
    found = cliques(functions, pairs)
    assert set(found.numbers.values()) == set(range(MAX_CLIQUES))
    assert len(found.left_out) == 4
    assert all("only 16 clique numbers" in text for text in found.left_out)


def test_a_gpu_torn_between_cliques_is_told_of() -> None:
    functions = [Function(bdf_of(n), ConfigSpace(bytes(64)), GPU) for n in range(3)]

    class Works:
        works = True

        def __init__(self, one: int, other: int) -> None:
            self.one, self.other = bdf_of(one), bdf_of(other)

    found = cliques(functions, [Works(0, 1), Works(1, 2)])
    assert found.numbers == {bdf_of(0): 0, bdf_of(1): 0}
    assert found.left_out == (
        "0000:02:00.0 reaches 0000:01:00.0, whose clique it cannot join as a whole",
    )


# -- settings and prerequisites ---------------------------------------------------------------


@given(st.integers(1, 1 << 40))
def test_sizes_survive_the_way_through_text(size: int) -> None:
    text = size_text(size)
    if text[-1] in "KMGT":
        assert parse_size(text) == size
    else:
        assert text == str(size)


def test_sizes_are_read_as_people_write_them() -> None:
    assert parse_size("64G") == 64 * GIB
    assert parse_size("512m") == 512 * MIB
    assert parse_size("2048") == 2 * GIB
    for text in ("", "G", "0", "-1G", "1.5G", "12X", "1" * 13, "²G"):
        with pytest.raises(UsageError, match="is no size"):
            parse_size(text)


@given(st.integers(1, 6), st.integers(1, 64), st.integers(128, 4096), st.booleans())
def test_nodes_share_out_memory_and_processors(
    count: int, cpus: int, mebibytes: int, huge: bool
) -> None:
    host = Host(SWITCH)
    base = flat(host.functions)
    plan = GuestPlan(
        Variant.REPLICATED,
        base.blueprint,
        base.functions,
        {},
        QEMU,
        numa={f"pxb{n}": n for n in range(count)},
        nodes=tuple(range(count)),
    )
    pages = 2 * MIB if huge else 0
    memory = (mebibytes + (mebibytes & 1 if huge else 0)) * MIB
    given = Settings(memory=memory, cpus=cpus, hugepages=pages)
    if cpus < count:
        with pytest.raises(UsageError, match="NUMA nodes need"):
            given.nodes(plan)
        return
    nodes = given.nodes(plan)
    assert sum(node.memory for node in nodes) == memory
    assert sum(node.cpus for node in nodes) == cpus
    assert [node.first_cpu for node in nodes] == [
        sum(each.cpus for each in nodes[:number]) for number in range(count)
    ]
    assert all(node.memory % (pages or MIB) == 0 for node in nodes)


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {"name": "-x"}, {"name": "a,b"}, {"name": "a b"},
     {"memory": 64 * MIB}, {"memory": GIB + KIB}, {"cpus": 0}, {"hugepages": 4 * MIB},
     {"memory": 3 * GIB // 2, "hugepages": GIB}],
)  # fmt: skip
def test_impossible_machines_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


def with_bars(function: Function, *bars: tuple[int, int, int]) -> Function:
    """``bars`` are index, start and size; 64-bit from 4 GiB on."""
    resources = tuple(
        Resource(index, start, start + size - 1, 0x102200 if start >= 4 * GIB else 0x200)
        for index, start, size in bars
    )
    return Function(function.bdf, function.config, function.identity, resources=resources)


def test_the_window_grows_with_the_bars() -> None:
    function = Host(SWITCH).functions[0]
    assert hole64([with_bars(function, (1, 64 * GIB, 16 * GIB))]) == 0
    assert hole64([with_bars(function, (1, 256 * GIB, 128 * GIB))]) == 256 * GIB
    eight = [with_bars(function, (1, 1024 * GIB, 128 * GIB), (3, 512 * GIB, 32 * MIB))] * 8
    # 128 GiB and a little, aligned to 128 GiB: 256 GiB for each of eight.
    assert hole64(eight) == 4096 * GIB


def test_memory_has_a_gap_below_4_gib() -> None:
    assert memory_ranges(2 * GIB) == ((0, 2 * GIB),)
    assert memory_ranges(16 * GIB) == ((0, 2 * GIB), (4 * GIB, 18 * GIB))


def test_guest_memory_at_the_address_of_a_bar_below_a_plain_switch_is_found() -> None:
    host = Host(SWITCH)
    places = {"a": 0x4000_0000, "b": 0x9000_0000, "c": 0x5000_0000}
    changed = {
        host[name]: with_bars(host.topology[host[name]], (0, at, MIB))
        for name, at in places.items()
    }
    known = Topology([changed.get(each.bdf, each) for each in host.topology], [(0, 0)])
    functions = [known[bdf] for bdf in host.names.values()]
    plan = flat(functions)
    guest = Peers(topology(plan, known), cpu=INTEL)
    pairs = compare(Peers(known, cpu=INTEL), plan, guest)
    # b's BAR is above the memory, c is behind another port.
    (found,) = overlaps(known, pairs, 2 * GIB)
    assert (found.function, found.start, found.size) == (host["a"], 0x4000_0000, MIB)
    assert found.port == host["sw0"]
    assert "data corruption" in found.text()
    assert overlaps(known, pairs, GIB) == ()


def test_groups_are_assigned_whole() -> None:
    host = Host("rp0 noacs(slot(nvme:a, nvme:b)), rp1(nvme:c)")
    plan = flat([host.topology[host["a"]], host.topology[host["c"]]])
    (found,) = travel_together(host.topology, plan)
    assert (found.assigned, found.others) == ((host["a"],), (host["b"],))
    assert travel_together(host.topology, flat(host.functions)) == ()


# -- recommendations --------------------------------------------------------------------------


def test_replication_is_recommended_where_it_tells_more() -> None:
    host = Host(SWITCH)
    made = assess(host.topology, host.functions, cpu=INTEL)
    assert made.recommended is Variant.REPLICATED
    assert "misses P2P that works in 0 of 3 pairs, not 1" in made.why
    variants = [view.plan.variant for view in made.views]
    assert variants == ["flat", "replicated", "islands", "seed"]
    assert made.view(Variant.SEED).score.corrupts == 0


def test_flat_is_recommended_where_replication_would_mislead() -> None:
    host = Host(REDIRECTING)
    made = assess(host.topology, host.functions, cpu=INTEL)
    assert made.recommended is Variant.FLAT
    assert made.view(Variant.REPLICATED).score.corrupts == 1
    assert made.remedy is not None
    assert made.remedy.way is Way.TRANSLATED
    assert made.remedy.config_acs.endswith(f"1x11101@{host['sw0.1']}")
    assert any("no ATS" in each for each in made.remedy.obstacles)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(host_texts(), st.sampled_from([INTEL, ZEN]))
def test_islands_never_claim_what_does_not_work(text: str, cpu: Cpu) -> None:
    host = Host(text, numa=True)
    made = assess(host.topology, host.functions, cpu=cpu)
    view = made.view(Variant.ISLANDS)
    assert view.score.corrupts == 0
    assert view.score[:3] <= made.views[0].score[:3]
    works = {frozenset((pair.one, pair.other)) for pair in view.pairs if pair.works}
    if all(pair.verdict is not Verdict.MISSES for pair in view.pairs):
        return
    # Only where reaching is no equivalence can one tree not tell all of it.
    assert any(
        frozenset((a, b)) in works and frozenset((b, c)) in works and frozenset((a, c)) not in works
        for a, b, c in permutations(host.names.values(), 3)
    )


def test_islands_are_recommended_where_the_root_complex_forwards() -> None:
    host = Host("rp0(nvme:a), rp1(nvme:b)")
    painted = [
        Function(
            each.bdf, each.config, Identity(0x8086, 0x2020, 0x060000), resources=each.resources
        )
        if each.bdf.bus == 0 and each.bdf.devfn == 0
        else each
        for each in host.topology
    ]
    known = Topology(painted, [(0, 0)])
    made = assess(known, [known[bdf] for bdf in host.names.values()], cpu=INTEL)
    assert made.views[0].pairs[0].host.map_type is MapType.THRU_HOST_BRIDGE
    assert made.recommended is Variant.ISLANDS
    assert str(made.view(Variant.ISLANDS).plan.blueprint) == (
        "hb:pxb0 bus=0x20(rp0(sw0(nvme:fn0 cmb=2M, nvme:fn1 cmb=2M)))"
    )
    assert made.view(Variant.REPLICATED).score.misses == 1


def test_islands_across_numa_nodes_are_on_one_and_say_so() -> None:
    host = Host(SPREAD, numa=True)
    plan = assess(host.topology, host.functions, cpu=ZEN).view(Variant.ISLANDS).plan
    assert plan.numa == {"pxb0": 0}
    assert plan.nodes == (0, 1)
    assert any("across NUMA nodes" in limit for limit in plan.limits)


def test_a_large_island_takes_switches_below_a_switch() -> None:
    text = ", ".join(f"rp{n}(slot({', '.join(['edu'] * 8)}))" for n in range(5))
    host = Host(text)
    made = assess(host.topology, host.functions, cpu=ZEN)
    view = made.view(Variant.ISLANDS)
    answers = {pair.guest.map_type for pair in view.pairs}
    assert answers == {MapType.BUS_ADDR}
    assert len(view.plan.functions) == 40


def test_a_variant_without_room_is_left_out_and_the_others_stay() -> None:
    # Each far function takes a pxb with buses of its own, eight at least.
    far = ", ".join(f"hb bus={0x10 + 7 * n:#x}(rp(nvme))" for n in range(30))
    host = Host(f"rp(nvme), {far}")
    made = assess(host.topology, host.functions, cpu=INTEL)
    assert set(made.omitted) == {Variant.REPLICATED, Variant.SEED}
    assert all("256 buses" in why for why in made.omitted.values())
    assert made.recommended is Variant.FLAT
    with pytest.raises(UsageError, match="256 buses"):
        made.view(Variant.REPLICATED)


def test_flat_is_recommended_where_all_tell_the_same() -> None:
    host = Host(SPREAD)
    made = assess(host.topology, host.functions, cpu=ZEN)
    assert made.recommended is Variant.FLAT
    assert made.remedy is None


def test_one_function_has_no_pairs() -> None:
    host = Host(SWITCH)
    made = assess(host.topology, host.functions[:1])
    assert made.recommended is Variant.FLAT
    assert made.views[0].pairs == ()


def test_cliques_are_for_those_who_plan_p2p() -> None:
    host = Host(SWITCH, a=GPU, b=GPU)
    assert assess(host.topology, host.functions, cpu=INTEL).settings.cliques == {}
    made = assess(host.topology, host.functions, cpu=INTEL, p2p=True)
    assert made.settings.cliques == {host["a"]: 0, host["b"]: 0}


def test_a_plan_tells_what_must_be_so_before_the_guest_starts() -> None:
    host = Host(SWITCH)
    settings = Settings(memory=2 * GIB, hugepages=GIB, iommufd=True)
    made = assess(host.topology, host.functions, cpu=INTEL, settings=settings)
    told = "\n".join(made.prerequisites)
    assert f"vfiokit plan {host['a']} {host['b']} {host['c']}" in told
    assert "2 huge pages of 1G" in told
    assert "kernel 6.19" in told
    behind = assess(host.topology, host.functions, cpu=INTEL, viommu=Viommu.INTEL)
    assert any("lock 48G" in each for each in behind.prerequisites)
