"""Comparing random machines: none differs from itself, and the way back is the inverse."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolation_topologies import OFF
from test_grouping import build, machines

from vfiokit.host.difference import difference
from vfiokit.isolation import predict
from vfiokit.isolation.explain import explain
from vfiokit.isolation.regroup import group_changes
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

FORMS = st.sampled_from(({}, {"acs": OFF}, {"acs": None}))


@given(machines(), FORMS)
@settings(max_examples=60, deadline=None)
def test_a_machine_does_not_differ_from_itself(rows, form):
    before, after = build(rows, **form), build(rows, **form)
    found = difference(before, after)
    assert (found.changes, found.missing) == ((), ())
    groups = group_changes(before, after, found.matching)
    assert (groups.recorded, groups.predicted) == ((), ())


@given(machines(), FORMS, machines(), FORMS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_other_way_round_is_the_inverse(rows, form, other_rows, other_form, same):
    before = build(rows, **form)
    after = build(rows if same else other_rows, **other_form)
    there, back = difference(before, after), difference(after, before)
    assert {each.swapped() for each in there.changes} == set(back.changes)
    assert {(each.what, not each.in_before) for each in there.missing} == set(back.missing)
    assert there.matching.gone == back.matching.new
    assert {(two.bdf, one.bdf) for one, two in there.matching.pairs} == {
        (one.bdf, two.bdf) for one, two in back.matching.pairs
    }
    groups = group_changes(before, after, there.matching)
    inverse = group_changes(after, before, back.matching)
    kinds = {"merged": "split", "split": "merged", "redrawn": "redrawn"}
    assert sorted(kinds[each.kind] for each in groups.predicted) == sorted(
        each.kind for each in inverse.predicted
    )


@given(machines(), FORMS, machines(), FORMS)
@settings(max_examples=60, deadline=None)
def test_every_function_is_paired_once_or_gone_or_new(rows, form, other_rows, other_form):
    before, after = build(rows, **form), build(other_rows, **other_form)
    found = difference(before, after).matching
    left = [one.bdf for one, _ in found.pairs] + [each.bdf for each in found.gone]
    right = [two.bdf for _, two in found.pairs] + [each.bdf for each in found.new]
    assert sorted(left) == sorted(before.functions)
    assert sorted(right) == sorted(after.functions)
    assert all(one.identity[:2] == two.identity[:2] for one, two in found.pairs)


def host(blobs) -> Topology:
    return Topology(
        Function(Bdf(0, index // 2, 0, index % 2), ConfigSpace(blob))
        for index, blob in enumerate(blobs)
    )


BLOBS = st.lists(st.binary(min_size=0, max_size=4096), max_size=6)


@given(BLOBS, BLOBS)
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_are_compared_and_explained_without_an_error(one, other):
    before, after = host(one), host(other)
    found = difference(before, after)
    assert all(change.text() for change in found.changes)
    group_changes(before, after, found.matching)
    grouping = predict(before)
    for function in before:
        assert explain(before, grouping, function.bdf).whys
