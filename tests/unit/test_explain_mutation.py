"""Real configuration spaces, damaged at random: explained and compared without an error."""

from __future__ import annotations

import random

import pytest

from vfiokit.host.difference import difference
from vfiokit.host.source import open_host
from vfiokit.isolation import predict
from vfiokit.isolation.explain import explain
from vfiokit.isolation.regroup import group_changes
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

DECISIVE = (0x06, 0x0E, 0x18, 0x19, 0x1A, 0x34, 0x40, 0x41, 0x42, 0x43, 0x100, 0x101, 0x103, 0x114)
"""Bytes where damage changes what hangs where, and what isolates."""


@pytest.fixture(scope="module")
def demo() -> Topology:
    return open_host("demo").topology()


def damaged(topology: Topology, dice: random.Random, spots: int) -> Topology:
    functions = list(topology)
    for _ in range(spots):
        index = dice.randrange(len(functions))
        old = functions[index]
        data = bytearray(old.config.data)
        place = dice.choice(DECISIVE) if dice.random() < 0.7 else dice.randrange(len(data))
        if place < len(data):
            data[place] = dice.randrange(256)
        if dice.random() < 0.1:
            data = data[: dice.choice((0, 16, 64, 256))]
        functions[index] = Function(
            old.bdf,
            ConfigSpace(bytes(data)),
            old.identity,
            resources=old.resources,
            physfn=old.physfn,
            recorded=old.recorded,
        )
    roots = [(bridge.domain, bridge.bus) for bridge in topology.host_bridges]
    return Topology(functions, roots if dice.random() < 0.5 else None)


def try_one(demo: Topology, seed: int) -> None:
    dice = random.Random(seed)
    broken = damaged(demo, dice, dice.choice((1, 5, 40)))
    found, back = difference(demo, broken), difference(broken, demo)
    assert {change.swapped() for change in found.changes} == set(back.changes)
    assert all(change.text() for change in found.changes)
    group_changes(demo, broken, found.matching)
    grouping = predict(broken)
    for bdf in dice.sample(sorted(broken.functions), 6):
        explanation = explain(broken, grouping, bdf)
        assert explanation.whys
        for remedy in explanation.remedies.remedies:
            assert remedy.text
            assert bdf in remedy.members or remedy.kind.value == "slot"


@pytest.mark.parametrize("seed", range(12))
def test_damaged_configuration_spaces_are_explained_and_compared(demo, seed) -> None:
    try_one(demo, seed)


@pytest.mark.slow
def test_many_damaged_configuration_spaces_are_explained_and_compared(demo) -> None:
    for seed in range(100, 160):
        try_one(demo, seed)
