"""Cards moved about random machines: who hangs below whom is what was asked for, and no more."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from test_grouping import build, machines

from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.edit import EditError, card, moved, with_acs_control, without
from vfiokit.pci.topology import Topology


def parents(topology: Topology):
    """The bridge right above every function; ``None`` on a root bus."""
    above = {each.bdf: topology.upstream_bridge(each) for each in topology}
    return {bdf: None if bridge is None else bridge.bdf for bdf, bridge in above.items()}


@given(machines(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_moved_card_hangs_below_its_port_and_everything_else_where_it_did(rows, data):
    topology = build(rows)
    bridges = [each.bdf for each in topology if each.is_bridge]
    if not bridges:
        return
    subject = data.draw(st.sampled_from(sorted(topology.functions)))
    port = data.draw(st.sampled_from(bridges))
    before = parents(topology)
    try:
        move = moved(topology, subject, port)
    except EditError:
        return
    after = move.topology
    new = {bdf: move.addresses.get(bdf, bdf) for bdf in topology.functions}
    assert sorted(new.values()) == sorted(after.functions)
    moving = {each.bdf for each in card(topology, subject)}
    moving |= {each.bdf for each in topology if each.physfn in moving}
    expected = {
        new[bdf]: new[port] if bdf in moving else (None if bridge is None else new[bridge])
        for bdf, bridge in before.items()
    }
    assert parents(after) == expected
    assert {after[new[each.bdf]].identity for each in topology} == {
        each.identity for each in topology
    }
    assert parents(topology) == before


@given(machines(), st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_left_without_some_functions_hangs_where_it_did(rows, data):
    topology = build(rows)
    if not len(topology):
        return
    gone = data.draw(st.lists(st.sampled_from(sorted(topology.functions)), max_size=3))
    left = without(topology, gone)
    before = parents(topology)
    assert not set(gone) & set(left.functions)
    for function in left:
        assert parents(left)[function.bdf] == before[function.bdf]
    for bdf in set(topology.functions) - set(left.functions):
        chain = {bdf, *(bridge.bdf for bridge in topology.path_to_root(topology[bdf]))}
        assert chain & set(gone) or topology[bdf].physfn not in left


@given(machines(), st.data())
@settings(max_examples=100, deadline=None)
def test_acs_control_reads_back_as_far_as_it_is_offered(rows, data):
    topology = build(rows)
    offered = [each for each in topology if each.acs is not None]
    bits = st.integers(min_value=0, max_value=0x7F).map(Acs)
    controls = {each.bdf: data.draw(bits) for each in offered}
    edited = with_acs_control(topology, controls)
    for function in topology:
        wanted = controls.get(function.bdf, Acs(0)) & function.acs_capability
        assert edited[function.bdf].acs_control == wanted
