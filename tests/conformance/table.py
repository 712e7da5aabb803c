"""The table at the end of a test run: passed of all by area and backend."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from conformance import backends

_TEST = re.compile(r"test_conformance\.py::test_behaviour\[(?P<name>\S+/\S+)\]")


def write(terminalreporter: pytest.TerminalReporter) -> None:
    """Passed of all by area and backend, what is missing, where backends disagree."""
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
