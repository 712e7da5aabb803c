"""Runs each backend once for all tests that want it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import backends

Lines = dict[str, dict[str, Any]]
_WAIT_S = 700.0


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
