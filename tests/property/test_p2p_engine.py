"""Peer-to-peer answers of random machines: one by one, all at once, and by a plain model.

The model knows the drawn rows, not the bytes: it climbs parents in a dictionary.
"""

from __future__ import annotations

import os
import sys
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from isolation_topologies import Builder, switch

from vfiokit.errors import UsageError
from vfiokit.p2p import Cpu, MapType, Peers
from vfiokit.p2p.matrix import CODES, KINDS
from vfiokit.p2p.price import price
from vfiokit.p2p.remedy import advise
from vfiokit.p2p.what_if import change
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.edit import with_acs_control
from vfiokit.pci.topology import Function, Recorded, Topology

THOROUGH = bool(os.environ.get("VFIOKIT_THOROUGH"))
MACHINES = 10_000 if THOROUGH else 150
AGAIN = 1_000 if THOROUGH else 100
INTEL, ZEN = Cpu("GenuineIntel", 6, 0), Cpu("AuthenticAMD", 0x19, 0)
LISTED, SAME_ONLY, UNLISTED = (0x8086, 0x09A2), (0x8086, 0x2F00), (0x8086, 0x7AA7)
ROOTS = (0x00, 0x60, 0xC0)
ACS = st.sampled_from((None, (0x7F, 0x00), (0x7F, 0x1D), (0x7F, 0x5D), (0x7F, 0x20), (0x7F, 0x53)))


@st.composite
def machines(draw, *, cut: bool = True):
    """Rows of ``Builder.add``, with the parent of each, and a capture size."""
    rows: list[dict] = []
    for root in ROOTS[: draw(st.integers(1, 3))]:
        ids = draw(st.sampled_from((LISTED, SAME_ONLY, UNLISTED)))
        devfn = draw(st.sampled_from(("00.0", "00.0", "00.0", "04.0")))
        first = {"address": f"{root:02x}:{devfn}", "port": PortType.RC_INTEGRATED_ENDPOINT}
        rows.append({**first, "ids": ids, "parent": None, "root": root})
        waiting = [(root, None, 0)]
        next_bus = root + 1
        while waiting:
            bus, parent, depth = waiting.pop(0)
            for device in range(1 if parent is None else 0, draw(st.integers(1, 3))):
                port = device + (4 if parent is None else 0)
                row = {"address": f"{bus:02x}:{port:02x}.0", "parent": parent, "root": root}
                row["acs"] = draw(ACS)
                row["size"] = draw(st.sampled_from((None,) * 9 + (0x40,))) if cut else None
                if depth < 4 and draw(st.booleans()) and next_bus < root + 0x50:
                    kind = (PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM)[
                        0 if parent is None else 1 + (depth + 1) % 2
                    ]
                    rows.append({**row, "port": kind, "below": next_bus})
                    waiting.append((next_bus, row["address"], depth + 1))
                    next_bus += 1
                else:
                    rows.append({**row, "port": PortType.ENDPOINT})
                    for number in range(draw(st.integers(0, 2))):
                        virtual = {**row, "acs": None, "physfn": row["address"]}
                        virtual["address"] = f"{bus:02x}:{16 + port:02x}.{number}"
                        rows.append({**virtual, "port": PortType.ENDPOINT})
    return rows


def build(rows, nodes=()) -> Topology:
    builder = Builder()
    for row in rows:
        fields = {key: value for key, value in row.items() if key not in ("parent", "root")}
        builder.add(fields.pop("address"), fields.pop("port"), **fields)
    roots = sorted({(0, row["root"]) for row in rows})
    topology = builder.topology(roots)
    if not nodes:
        return topology
    functions = [
        Function(
            each.bdf,
            each.config,
            each.identity,
            physfn=each.physfn,
            recorded=Recorded(numa_node=nodes[number % len(nodes)]),
        )
        for number, each in enumerate(topology)
    ]
    return Topology(functions, roots)


class Model:
    """Map type and distance of a pair, from rows."""

    def __init__(self, rows, *, zen: bool) -> None:
        self.rows = {row["address"]: row for row in rows}
        self.zen = zen

    def chain(self, address):
        row = self.rows[address]
        rest = () if row["parent"] is None else self.chain(row["parent"])
        return (address, *rest)

    def redirect(self, address):
        row = self.rows[address]
        if row.get("size"):
            return None
        return bool(row.get("acs") and row["acs"][1] & 0x2C)

    def host(self, address, other):
        """True, False or ``None`` for trusted, not, not known."""
        roots = [self.rows[each]["root"] for each in (address, other)]
        verdicts = []
        for root in dict.fromkeys(roots):
            first = min(each for each in self.rows if each.startswith(f"{root:02x}:"))
            ids = self.rows[first].get("ids")
            if not first.endswith("00.0"):
                ids = None
            same = roots[0] == roots[1]
            verdicts.append(ids == LISTED or (ids == SAME_ONLY and same))
        return self.zen or all(verdicts)

    def decide(self, provider, client):
        ours, theirs = self.chain(provider), self.chain(client)
        common = next((each for each in ours if each in theirs), None)
        through = "thru-host-bridge" if self.host(provider, client) else "not-supported"
        if common is None:
            return through, len(ours) + len(theirs)
        tested = (*ours[: ours.index(common) + 1], *theirs[: theirs.index(common)])
        states = [self.redirect(each) for each in tested]
        distance = ours.index(common) + theirs.index(common)
        if True in states:
            return through, distance
        return "unknown" if None in states else "bus-addr", distance


RELAXED = settings(
    max_examples=MACHINES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.timeout(1800)
@settings(RELAXED, max_examples=AGAIN)
@given(machines(), st.booleans())
def test_every_answer_is_what_a_plain_model_says(rows, zen):
    topology = build(rows)
    peers = Peers(topology, cpu=ZEN if zen else INTEL)
    model = Model(rows, zen=zen)
    for one in model.rows:
        for other in model.rows:
            verdict = peers.verdict(Bdf.parse(one), Bdf.parse(other))
            assert (verdict.map_type.value, verdict.distance) == model.decide(one, other)


@pytest.mark.timeout(1800)
@RELAXED
@given(machines(), st.lists(st.sampled_from((None, 0, 1)), min_size=1, max_size=5), st.data())
def test_the_matrix_equals_the_answers_one_by_one(rows, nodes, data):
    topology = build(rows, nodes)
    cpu = data.draw(st.sampled_from((INTEL, ZEN, None)))
    peers = Peers(topology, cpu=cpu)
    everyone = list(topology.functions)
    # Any order, any subset, the same one more than once.
    picked = st.lists(st.sampled_from(everyone), max_size=60)
    providers, clients = data.draw(picked), data.draw(st.permutations(everyone))
    matrix = peers.matrix(providers, clients)
    assert matrix.map_types.shape == matrix.distances.shape == (len(providers), len(clients))
    for row, provider in enumerate(providers):
        for column, client in enumerate(clients):
            answer = peers.map_type(provider, client)
            assert KINDS[matrix.map_types[row, column]] is answer.map_type
            assert matrix.distances[row, column] == answer.distance
            assert CODES[matrix.codes[row, column]] == answer.code
            assert peers.verdict(provider, client) == (answer.map_type, answer.distance)
    assert sum(matrix.counts().values()) == len(providers) * len(clients)


@settings(max_examples=60, deadline=None)
@given(machines())
def test_direction_changes_messages_and_nothing_else(rows):
    topology = build(rows)
    peers = Peers(topology, cpu=INTEL)
    for one, other in combinations(list(topology.functions)[:25], 2):
        there, back = peers.map_type(one, other), peers.map_type(other, one)
        assert there[2:5] == back[2:5]
        assert there.path == back.path[::-1]
        # Of two host bridges that fail, the first one asked is named.
        assert there.code == back.code
        assert set(there.redirecting) == set(back.redirecting)
        assert len(there.messages) == len(back.messages)
        assert there.text()


@settings(max_examples=80, deadline=None)
@given(machines(cut=False), st.data())
def test_a_remedy_works_and_nothing_less_does(rows, data):
    topology = build(rows)
    peers = Peers(topology, cpu=INTEL)
    bdfs = st.sampled_from(list(topology.functions))
    pairs = data.draw(st.lists(st.tuples(bdfs, bdfs), min_size=1, max_size=4))
    advice = advise(peers, pairs)
    named = [*advice.direct, *(pair for pair, _ in advice.hopeless)]
    named += advice.remedies[0].pairs if advice.remedies else ()
    assert sorted(named) == sorted(set(pairs))
    for pair, _ in advice.hopeless:
        assert peers.map_type(*pair).common is None
    if not advice.remedies:
        return
    remedy = advice.remedies[0]
    controls = {change.function: change.after for change in remedy.changes}
    after = Peers(with_acs_control(topology, controls), cpu=INTEL)
    for pair in remedy.pairs:
        assert peers.map_type(*pair).map_type is not MapType.BUS_ADDR
        assert after.map_type(*pair).map_type is MapType.BUS_ADDR
    for left_out in controls:
        fewer = {bdf: acs for bdf, acs in controls.items() if bdf != left_out}
        partly = Peers(with_acs_control(topology, fewer), cpu=INTEL)
        assert any(partly.map_type(*p).map_type is not MapType.BUS_ADDR for p in remedy.pairs)
    for each in remedy.changes:
        # Only redirects go; everything else stays.
        assert each.before & ~each.after & ~0x2C == 0
        assert each.after & ~each.before == 0
        # The parameter, read as the kernel reads it, gives the same bits whatever firmware left.
        flags = each.parameter.partition("@")[0]
        for firmware in (0x00, 0x7F, 0x1D):
            assert applied(flags, firmware) & each.capability == each.after
        assert written(each.setpci, each.before) == each.after


def applied(flags: str, firmware: int) -> int:
    """``config_acs=``: flags from the right are bits from 0 up; ``x`` keeps firmware's."""
    value = firmware
    for bit, flag in enumerate(reversed(flags)):
        if flag in "01":
            value = value & ~(1 << bit) | int(flag) << bit
    return value


def written(command: str, before: int) -> int:
    """What ``setpci`` leaves: ``value:mask`` replaces the bits of the mask."""
    value, mask = (int(number, 16) for number in command.partition(".w=")[2].split(":"))
    return before & ~mask | value & mask


@settings(max_examples=60, deadline=None)
@given(machines(cut=False), st.data())
def test_a_price_names_exactly_the_groups_that_changed(rows, data):
    from vfiokit.isolation import predict

    topology = build(rows)
    ports = [each.bdf for each in topology if each.acs is not None]
    chosen = data.draw(st.lists(st.sampled_from(ports), max_size=3)) if ports else []
    wanted = data.draw(st.sampled_from((0x00, 0x1D, 0x5D)))
    edited = with_acs_control(topology, {bdf: Acs(wanted) for bdf in chosen})
    before = {frozenset(group.members) for group in predict(topology).groups}
    after = {frozenset(group.members) for group in predict(edited).groups}
    found = price(topology, edited).regroupings
    assert {frozenset(group) for each in found for group in each.before} == before - after
    assert {frozenset(group) for each in found for group in each.after} == after - before
    for each in found:
        assert {b for group in each.before for b in group} == {
            b for group in each.after for b in group
        }
        assert "would be" in each.text()


def test_a_matrix_of_nothing_is_empty():
    topology = Topology([Function(Bdf.parse("00:00.0"), ConfigSpace(bytes(256)))])
    matrix = Peers(topology).matrix([], [Bdf.parse("00:00.0")])
    assert matrix.map_types.shape == (0, 1)
    assert matrix.codes.shape == (0, 1)


# -- odd input


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(0, 1),
            st.binary(max_size=0x140),
            st.sampled_from((None, 0x06, 0x34, 0x0E, 0x19)),
            st.integers(0, 5),
        ),
        max_size=12,
    ),
    st.sampled_from((INTEL, ZEN, None)),
)
def test_odd_bytes_get_the_same_answers_one_by_one_and_at_once(drawn, cpu):
    functions = {}
    for bus, device, number, raw, poked, value in drawn:
        content = bytearray(raw)
        if poked is not None and poked < len(content):
            content[poked] = value
        bdf = Bdf(0, bus, device, number)
        physfn = None if value else Bdf(0, max(bus - 1, 0), 0, 0)
        physfn = None if physfn == bdf else physfn
        functions[bdf] = Function(bdf, ConfigSpace(bytes(content)), physfn=physfn)
    topology = Topology(functions.values())
    peers = Peers(topology, cpu=cpu)
    bdfs = list(topology.functions)
    matrix = peers.matrix(bdfs, bdfs)
    for row, provider in enumerate(bdfs):
        for column, client in enumerate(bdfs):
            answer = peers.map_type(provider, client)
            assert KINDS[matrix.map_types[row, column]] is answer.map_type
            assert (matrix.distances[row, column], CODES[matrix.codes[row, column]]) == (
                answer.distance,
                answer.code,
            )
            assert answer.text()
    advise(peers, [(one, other) for one in bdfs for other in bdfs])


TEXT = (
    "acs cpu bridge move = @ : 0x1d amd 8086 00 pci0000:00 00:00.0 01:00.0 03:00.0 / . -1 999999 é"
)
WORDS = st.sampled_from(TEXT.split(" "))


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=8).map("".join) | st.text(max_size=20))
def test_a_change_is_made_or_refused_with_a_reason(text):
    builder = Builder()
    switch(builder, acs_a=(0x7F, 0x1D))
    topology = builder.topology()
    try:
        machine = change(topology, INTEL, [text])
    except UsageError:
        return
    assert len(machine.changes) == 1
    assert len(machine.topology) == len(topology)


@given(
    st.text()
    | st.lists(st.sampled_from(("vendor_id", "cpu family", ":", "\t", "\n", "23"))).map("".join)
)
def test_any_text_is_a_processor_or_none(text):
    cpu = Cpu.from_cpuinfo(text)
    assert cpu is None or (cpu.family >= 0 and str(cpu))
