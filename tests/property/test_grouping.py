"""Groups of random machines, held against a plain union-find reading of the rules."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from isolation_topologies import FULL, OFF, Builder

from vfiokit.isolation import Rule, predict
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Topology

PORTS = (PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM)
ODD_BRIDGES = (PortType.PCIE_TO_PCI_BRIDGE, PortType.PCI_TO_PCIE_BRIDGE, None)
EXPECTED_BELOW = {
    PortType.ROOT_PORT: PortType.UPSTREAM,
    PortType.UPSTREAM: PortType.DOWNSTREAM,
    PortType.DOWNSTREAM: PortType.UPSTREAM,
}
LEAVES = (
    PortType.ENDPOINT,
    PortType.LEGACY_ENDPOINT,
    PortType.RC_INTEGRATED_ENDPOINT,
    PortType.RC_EVENT_COLLECTOR,
    None,
)
ACS = st.sampled_from((None, FULL, OFF, (0x15, 0x11), (0x00, 0x00)))


@st.composite
def machines(draw):
    """Keyword arguments for ``Builder.add``: a random tree of at most 40 functions."""
    rows = []
    open_buses = [(0, PortType.ROOT_PORT)]
    next_bus = 1
    while open_buses and len(rows) < 40:
        bus, expected = open_buses.pop(0)
        for device in range(draw(st.sampled_from((2, 1, 3, 4, 0)))):
            count = draw(st.sampled_from((1, 1, 1, 2, 3)))
            multifunction = draw(st.booleans()) if count == 1 else draw(st.sampled_from((1, 1, 0)))
            for function in range(count):
                is_bridge = next_bus < 200 and draw(st.sampled_from((1, 0)))
                likely = (expected,) * 8 + PORTS + ODD_BRIDGES
                port = draw(st.sampled_from(likely if is_bridge else LEAVES))
                row = {
                    "address": f"{bus:02x}:{device:02x}.{function}",
                    "port": port,
                    "acs": draw(ACS) if port is not None else None,
                    "multifunction": bool(multifunction),
                }
                if is_bridge:
                    row["below"] = next_bus
                    open_buses.append((next_bus, EXPECTED_BELOW.get(port, PortType.ROOT_PORT)))
                    next_bus += 1
                elif port is PortType.ENDPOINT and draw(st.sampled_from((0, 0, 0, 1))):
                    virtual = [f"{bus:02x}:1f.{n}" for n in range(8)]
                    used = {each["address"] for each in rows}
                    free = [address for address in virtual if address not in used][:2]
                    rows.extend(
                        {"address": address, "port": port, "physfn": row["address"]}
                        for address in free
                    )
                rows.append(row)
    return rows


def build(rows, **change) -> Topology:
    builder = Builder()
    for row in rows:
        fields = row | (change if row["port"] is not None else {})
        builder.add(fields.pop("address"), fields.pop("port"), **fields)
    return builder.topology()


class Oracle:
    """Union-find over "shares", written from the rules in words, for machines without quirks."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.leader = {function.bdf: function.bdf for function in topology}
        for function in topology:
            self.join(function.bdf, self.anchor(function).bdf)
            for other in topology.slot(function):
                if (
                    topology.is_multifunction(function)
                    and not self.isolated(function)
                    and not self.isolated(other)
                ):
                    self.join(function.bdf, other.bdf)

    def isolated(self, function) -> bool:
        if function.is_virtual:
            return True
        kind = function.port_type
        if kind is None or kind.name.startswith("PCI") or kind is PortType.RC_EVENT_COLLECTOR:
            return False
        port = kind in (PortType.ROOT_PORT, PortType.DOWNSTREAM)
        if not port and not self.topology.is_multifunction(function):
            return True
        if function.acs is None:
            return False
        offered = int(function.acs_capability) & 0x1D
        return int(function.acs_control) & offered == offered

    def anchor(self, function):
        """The topmost bridge that hides, or does not keep apart, what ``function`` sends."""
        top = function
        for bridge in self.topology.path_to_root(function):
            kind = bridge.port_type
            hides = kind is None or kind.name.startswith("PCI")
            if hides or not self.isolated(bridge):
                top = bridge
        return top

    def find(self, bdf):
        while self.leader[bdf] != bdf:
            bdf = self.leader[bdf]
        return bdf

    def join(self, one, other) -> None:
        self.leader[self.find(one)] = self.find(other)

    def partition(self):
        found = {}
        for bdf in self.leader:
            found.setdefault(self.find(bdf), set()).add(bdf)
        return {frozenset(members) for members in found.values()}


def partition(grouping):
    return {frozenset(group.members) for group in grouping.groups}


@given(machines())
@settings(max_examples=300, deadline=None)
def test_every_function_is_in_exactly_one_group_and_ids_are_dense(rows):
    topology = build(rows)
    grouping = predict(topology)
    members = [bdf for group in grouping.groups for bdf in group.members]
    assert sorted(members) == sorted(topology.functions)
    assert [group.id for group in grouping.groups] == list(range(len(grouping.groups)))
    for group in grouping.groups:
        assert all(grouping.of(bdf) is group for bdf in group.members)


@given(machines())
@settings(max_examples=500, deadline=None)
def test_groups_are_the_classes_of_the_shares_relation(rows):
    topology = build(rows)
    assert partition(predict(topology)) == Oracle(topology).partition()


@given(machines())
@settings(max_examples=200, deadline=None)
def test_full_acs_everywhere_never_merges_groups(rows):
    before = predict(build(rows, acs=None))
    after = predict(build(rows, acs=FULL))
    for group in after.groups:
        assert len({before.of(bdf).id for bdf in group.members}) == 1


@given(machines())
@settings(max_examples=200, deadline=None)
def test_every_reason_agrees_with_the_groups(rows):
    grouping = predict(build(rows))
    openers = set()
    for group in grouping.groups:
        for bdf in group.members:
            why = grouping.why(bdf)
            assert why.group == group.id
            assert set(why.others) <= set(group.members) - {bdf}
            assert str(bdf) in why.text()
            assert grouping.steps(bdf)[-1].passed == (why.rule is Rule.OWN)
            if why.rule is Rule.OWN:
                openers.add(group.id)
            elif why.rule is not Rule.DMA_ALIAS:
                assert why.acs
                assert not any(each.isolated for each in why.acs)
    assert openers == {group.id for group in grouping.groups}


@given(machines())
@settings(max_examples=200, deadline=None)
def test_leaks_name_groups_that_are_apart(rows):
    topology = build(rows)
    grouping = predict(topology)
    for leak in grouping.leaks():
        assert not set(leak.groups) & set(leak.peer_groups)
        assert topology.upstream_bridge(topology[leak.port]).bdf == leak.switch
        assert topology.upstream_bridge(topology[leak.peer]).bdf == leak.switch


@given(st.lists(st.binary(min_size=0, max_size=4096), max_size=8))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_grouped_without_an_error(blobs):
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.config import ConfigSpace
    from vfiokit.pci.topology import Function

    functions = [
        Function(Bdf(0, index // 2, 0, index % 2), ConfigSpace(blob))
        for index, blob in enumerate(blobs)
    ]
    grouping = predict(Topology(functions))
    assert sum(len(group.members) for group in grouping.groups) == len(blobs)
    for function in functions:
        assert grouping.why(function.bdf).text()
        assert grouping.steps(function.bdf)
    grouping.leaks()
