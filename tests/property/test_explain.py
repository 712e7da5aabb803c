"""Remedies on random machines: what is promised comes true, and nothing less would do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolation_topologies import OFF
from test_grouping import build, machines

from vfiokit.isolation import Platform, predict
from vfiokit.isolation.explain import explain
from vfiokit.isolation.remedy import Kind
from vfiokit.isolation.what_if import applied
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.edit import with_acs_control

IOMMU_ON = Platform(program_acs=True)
ENTRY = re.compile(r"([01x]{7})@([0-9a-f:.]+)")


def as_linux_reads(text, topology):
    """ACS Control after booting with the parameter: 0 clears, 1 sets, x keeps; right is bit 0."""
    assert text.startswith("pci=config_acs=")
    controls = {}
    for entry in text.removeprefix("pci=config_acs=").split(";"):
        flags, address = ENTRY.fullmatch(entry).groups()
        bdf = Bdf.parse(address)
        value = int(topology[bdf].acs_control)
        for bit, letter in enumerate(reversed(flags)):
            if letter != "x":
                value = value & ~(1 << bit) | int(letter) << bit
        controls[bdf] = Acs(value)
    return controls


def cases(rows, draw_acs):
    """Explanations of every function that shares its group."""
    topology = build(rows, **draw_acs)
    grouping = predict(topology)
    shared = [bdf for group in grouping.groups if len(group.members) > 1 for bdf in group.members]
    for bdf in shared[:6]:
        yield topology, grouping, bdf, explain(topology, grouping, bdf)


FORMS = st.sampled_from(({}, {"acs": OFF}, {"acs": None}))


@given(machines(), FORMS)
@settings(max_examples=40, deadline=None)
def test_the_kernel_parameter_does_what_is_promised_and_no_part_of_it_would(rows, form):
    for topology, grouping, bdf, explanation in cases(rows, form):
        for remedy in explanation.remedies.remedies:
            if remedy.kind is not Kind.CONFIG_ACS:
                continue
            controls = as_linux_reads(remedy.commands[0], topology)
            after = predict(with_acs_control(topology, controls))
            assert after.of(bdf).members == remedy.members
            assert set(remedy.members) < set(grouping.of(bdf).members)
            for port, control in controls.items():
                for bit in control & ~topology[port].acs_control:
                    fewer = controls | {port: control & ~bit}
                    then = predict(with_acs_control(topology, fewer))
                    assert set(then.of(bdf).members) > set(remedy.members)


@given(machines(), FORMS)
@settings(max_examples=40, deadline=None)
def test_firmware_and_the_kernel_itself_do_what_is_promised(rows, form):
    for topology, _, bdf, explanation in cases(rows, form):
        for remedy in explanation.remedies.remedies:
            if remedy.kind is Kind.KERNEL:
                assert predict(topology, platform=IOMMU_ON).of(bdf).members == remedy.members
            if remedy.kind is Kind.FIRMWARE:
                after = applied(topology, remedy.changes)
                assert predict(after, platform=IOMMU_ON).of(bdf).members == remedy.members
                for change in remedy.changes:
                    fewer = [each for each in remedy.changes if each is not change]
                    then = predict(applied(topology, fewer), platform=IOMMU_ON)
                    assert set(then.of(bdf).members) > set(remedy.members)


@given(machines(), FORMS)
@settings(max_examples=40, deadline=None)
def test_what_the_override_pretends_is_told_function_by_function(rows, form):
    for topology, _, bdf, explanation in cases(rows, form):
        start = predict(topology, platform=IOMMU_ON).of(bdf).members
        for remedy in explanation.remedies.remedies:
            assert remedy.isolates == (remedy.kind is not Kind.OVERRIDE)
            if remedy.isolates:
                continue
            told = " ".join(remedy.costs)
            for member in set(start) - set(remedy.members):
                if not topology[member].is_bridge:
                    assert str(member) in told


@given(machines(), FORMS)
@settings(max_examples=40, deadline=None)
def test_what_stays_together_does_so_after_every_remedy_that_isolates(rows, form):
    for _, grouping, bdf, explanation in cases(rows, form):
        found = explanation.remedies
        assert bdf not in found.inseparable
        assert set(found.inseparable) <= set(grouping.of(bdf).members)
        assert bool(found.reason) == bool(found.inseparable)
        for remedy in found.remedies:
            if remedy.isolates and remedy.kind is not Kind.SLOT:
                assert set(found.inseparable) <= set(remedy.members)
        elsewhere = (Kind.SLOT, Kind.CLOSE, Kind.OVERRIDE)
        helped = any(each.kind not in elsewhere for each in found.remedies)
        assert helped or found.inseparable


@given(machines(), FORMS)
@settings(max_examples=30, deadline=None)
def test_every_register_shown_reads_as_shown(rows, form):
    for topology, _, _, explanation in cases(rows, form):
        for fact in explanation.facts:
            config = topology[fact.subject].config
            assert config.read(fact.offset, fact.width) == fact.value
            assert f"{fact.value:x}" in fact.text()


@given(machines(), FORMS)
@settings(max_examples=30, deadline=None)
def test_closing_a_way_inside_a_switch_leaves_fewer_of_them(rows, form):
    topology = build(rows, **form)
    grouping = predict(topology)
    for leak in grouping.leaks()[:2]:
        for bdf in grouping.groups[leak.peer_groups[0]].members[:1]:
            for remedy in explain(topology, grouping, bdf).remedies.remedies:
                if remedy.kind is not Kind.CLOSE:
                    continue
                after = with_acs_control(topology, as_linux_reads(remedy.commands[0], topology))
                then = predict(after)
                assert then.of(bdf).members == remedy.members
                ways = [
                    {(each.port, each.peer) for each in groups.leaks()}
                    for groups in (grouping, then)
                ]
                assert ways[1] < ways[0] or len(then.leaks()) < len(grouping.leaks())
