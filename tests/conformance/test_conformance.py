"""Every behaviour on every backend: the software machine has to do what Linux does.

A backend runs all behaviours that were selected in one go, the lab's in one boot; each pair of
behaviour and backend is a test of its own. What the software machine does not do yet is listed in
``missing.txt``: a behaviour listed there that passes fails its test, so that the list only shrinks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import areas, backends
from conformance.behaviour import BEHAVIOURS, Behaviour
from conformance.run_here import MISSING, PASS

areas.load()
MISSING_LIST = Path(__file__).with_name("missing.txt")

Outcome = dict[str, Any]


def expected_missing() -> set[str]:
    lines = MISSING_LIST.read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def pairs() -> list[Any]:
    """Every behaviour with every backend that it concerns."""
    found = []
    for backend in backends.BACKENDS:
        marks = [pytest.mark.xdist_group(backend.name)]
        if backend.image:
            # The first test of a backend waits for all behaviours in the guest.
            marks += [pytest.mark.slow, pytest.mark.timeout(backends.LAB_TIMEOUT_S + 120)]
        for each in BEHAVIOURS.values():
            if backend.concerns(each):
                name = f"{backend.name}-{each.id}"
                found.append(pytest.param(backend, each, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("backend", "behaviour"), pairs())
def test_behaviour(
    backend: backends.Backend,
    behaviour: Behaviour,
    conformance: Callable[[backends.Backend], dict[str, Outcome]],
) -> None:
    try:
        lines = conformance(backend)
    except backends.UnavailableError as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    line = lines.get(behaviour.id)
    assert line is not None, "the runner ended before it"
    outcome, detail = line["outcome"], line["detail"]
    if backend in backends.SOFTWARE:
        if behaviour.id in expected_missing():
            assert outcome != PASS, f"it is there now: take it off {MISSING_LIST.name}"
            pytest.skip(f"missing on the machine: {detail}")
        assert outcome != MISSING, f"missing on the machine and not listed: {detail}"
    assert outcome == PASS, f"{detail} [{behaviour.source}]"


def test_errors_are_a_large_part_of_the_behaviours() -> None:
    assert len(BEHAVIOURS) >= 150
    assert sum(1 for each in BEHAVIOURS.values() if each.errors) >= 60


def test_missing_and_differing_behaviours_exist() -> None:
    assert expected_missing() <= set(BEHAVIOURS)
    for backend in backends.BACKENDS:
        assert set(backend.differs) <= set(BEHAVIOURS)
