"""Runs each backend once for all tests that want it, and prints the table at the end."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import backends

Lines = dict[str, dict[str, Any]]
_WAIT_S = 700.0
_TEST = re.compile(r"test_conformance\.py::test_behaviour\[(?P<name>\S+/\S+)\]")


@pytest.fixture(scope="session")
def conformance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[backends.Backend], Lines]:
    """Lines of a backend by behaviour; the first to ask runs it, pytest's workers share them."""
    selected: dict[str, list[str]] = {}
    for item in request.session.items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if "behaviour" in given:
            selected.setdefault(given["backend"].name, []).append(given["behaviour"].id)
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    known: dict[str, Lines] = {}

    def lines_of(backend: backends.Backend) -> Lines:
        if backend.name not in known:
            known[backend.name] = _once(shared, backend, selected[backend.name])
        return known[backend.name]

    return lines_of


def _once(folder: Path, backend: backends.Backend, ids: list[str]) -> Lines:
    """Run a backend, or wait for the worker that does."""
    result = folder / f"conformance-{backend.name}.json"
    try:
        (folder / f"conformance-{backend.name}.lock").mkdir()
    except FileExistsError:
        deadline = time.monotonic() + _WAIT_S
        while not result.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        answer: dict[str, object] = {}
        try:
            answer["lines"] = backends.run(backend, ids)
        except backends.UnavailableError as reason:
            answer["unavailable"] = str(reason)
        except Exception as failure:  # noqa: BLE001  # every test of the backend reports it
            answer["error"] = f"{type(failure).__name__}: {failure}"
        draft = result.with_suffix(".draft")
        draft.write_text(json.dumps(answer), encoding="utf-8")
        draft.rename(result)
    answer = json.loads(result.read_text(encoding="utf-8"))
    if "unavailable" in answer:
        raise backends.UnavailableError(answer["unavailable"])
    assert "error" not in answer, answer["error"]
    return answer["lines"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: passed of all by area and backend, what is missing, where backends disagree."""
    outcomes: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.getreports(outcome):
            match = _TEST.search(getattr(report, "nodeid", ""))
            if match:
                backend, identifier = _split(match["name"])
                outcomes.setdefault(backend, {})[identifier] = outcome
    if sum(map(len, outcomes.values())) < 2:
        return
    terminalreporter.section("conformance")
    for line in table(outcomes):
        terminalreporter.write_line(line)


def _split(name: str) -> tuple[str, str]:
    """Backend and behaviour of a test; some backends' names begin with another's."""
    known = [each.name for each in backends.BACKENDS if name.startswith(f"{each.name}-")]
    backend = max(known, key=len)
    return backend, name.removeprefix(f"{backend}-")


def table(outcomes: dict[str, dict[str, str]]) -> list[str]:
    """Lines of text for outcomes by backend and behaviour."""
    areas = sorted({name.partition("/")[0] for each in outcomes.values() for name in each})
    names = [each.name for each in backends.BACKENDS if each.name in outcomes]
    rows = [["area", *names]]
    for area in [*areas, "all"]:
        row = [area]
        for name in names:
            mine = [
                result
                for identifier, result in outcomes[name].items()
                if area in ("all", identifier.partition("/")[0])
            ]
            count = Counter(mine)
            row.append(f"{count['passed']}/{len(mine)}" if mine else "")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(names) + 1)]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    judged = ("passed", "failed")
    differing = sorted(
        identifier
        for identifier in {name for each in outcomes.values() for name in each}
        if len({each[identifier] for each in outcomes.values() if each.get(identifier) in judged})
        > 1
    )
    lines.append(f"disagreements between backends: {len(differing)}")
    lines += [f"  {identifier}" for identifier in differing]
    skipped = sum(
        result == "skipped"
        for each in backends.SOFTWARE
        for result in outcomes.get(each.name, {}).values()
    )
    if skipped:
        lines.append(f"missing on the software machine: {skipped}")
    return lines
