"""Run behaviours on the kernel at hand and print one JSON line for each.

``python -m conformance.run_here [--backend linux|machine|machine-compat] [ID ...]``; identifiers
may be shell patterns. Every behaviour has a process of its own, so that what it leaves open or
mapped goes away with it. Fields of a line: ``id``, ``outcome`` (``pass``, ``fail``, ``missing``),
``detail``, ``seconds``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator

from conformance import areas
from conformance.backend import HOSTS
from conformance.behaviour import BEHAVIOURS, Behaviour
from conformance.host import Host, MissingError

TIME_LIMIT_S = 60.0
PASS, FAIL, MISSING = "pass", "fail", "missing"


def selected(patterns: Iterable[str]) -> list[Behaviour]:
    """Behaviours whose id matches one of ``patterns``; all of them without patterns."""
    areas.load()
    wanted = list(patterns)
    return [
        each
        for each in BEHAVIOURS.values()
        if not wanted or any(fnmatch.fnmatchcase(each.id, pattern) for pattern in wanted)
    ]


def run(host: Host, behaviours: Iterable[Behaviour]) -> Iterator[dict[str, object]]:
    """Run each and yield its line."""
    for each in behaviours:
        begun = time.monotonic()
        lacking = [need for need in each.needs if need not in host.features]
        if lacking:
            outcome, detail = MISSING, f"not there: {', '.join(lacking)}"
        else:
            outcome, detail = _in_a_child(host, each)
        seconds = round(time.monotonic() - begun, 3)
        yield {"id": each.id, "outcome": outcome, "detail": detail, "seconds": seconds}


def _in_a_child(host: Host, behaviour: Behaviour) -> tuple[str, str]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.write(writer, json.dumps(_attempt(host, behaviour)).encode()[:60000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = b""
        deadline = time.monotonic() + TIME_LIMIT_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                os.kill(child, signal.SIGKILL)
                data = json.dumps([FAIL, f"not done after {TIME_LIMIT_S:g} s"]).encode()
                break
            piece = os.read(pipe.fileno(), 65536)
            if not piece:
                break
            data += piece
    _, status = os.waitpid(child, 0)
    if not data:
        return FAIL, f"its process died with status {status:#x}"
    outcome, detail = json.loads(data)
    return outcome, detail


def _attempt(host: Host, behaviour: Behaviour) -> tuple[str, str]:
    try:
        _arrange(host, behaviour)
        with host:
            behaviour.check(host)
        unmet = [code for code in behaviour.errors if code not in host.refused]
        if unmet:
            return FAIL, f"errno {unmet} was declared and never met"
    except MissingError as missing:
        return MISSING, str(missing)
    except Exception as failure:  # noqa: BLE001  # whatever goes wrong is the result
        return FAIL, _describe(failure)
    return PASS, ""


def _describe(failure: Exception) -> str:
    frames = traceback.extract_tb(failure.__traceback__)
    places = [frame for frame in frames if "/areas/" in frame.filename]
    where = f" at {os.path.basename(places[-1].filename)}:{places[-1].lineno}" if places else ""
    line = f" [{places[-1].line}]" if places else ""
    return f"{type(failure).__name__}: {failure}{where}{line}"


def _arrange(host: Host, behaviour: Behaviour) -> None:
    for role in behaviour.native:
        host.restore(role)
    for role in behaviour.binds:
        host.bind(role)


def main(arguments: list[str] | None = None) -> int:
    """Print the lines; 1 when something failed."""
    parser = argparse.ArgumentParser(prog="conformance")
    parser.add_argument("--backend", choices=sorted(HOSTS), default="linux")
    parser.add_argument("ids", nargs="*")
    given = parser.parse_args(arguments)
    host = HOSTS[given.backend]()
    failed = False
    print(json.dumps({"features": sorted(host.features)}))  # noqa: T201
    for line in run(host, selected(given.ids)):
        print(json.dumps(line), flush=True)  # noqa: T201
        failed |= line["outcome"] == FAIL
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
