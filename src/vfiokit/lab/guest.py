"""Runs in the guest, as a script: calls functions, each in a process of its own.

``python guest.py FOLDER`` reads ``FOLDER/batch.json``, a list of objects with ``module``, ``file``,
``function``, ``arguments``, ``keywords`` and ``timeout_s``. Call N leaves ``result-N.json``
(``value``, or ``error`` and ``traceback``; and ``seconds``) and ``output-N``, what it printed.
A process of its own each: a mapping that Python still holds would keep a device busy.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from types import ModuleType
from typing import Any

_POLL_S = 0.005


def load(name: str, file: str) -> ModuleType:
    """The module ``name``, from ``file`` when the import system does not know it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name not in (name, top) or not file:
            raise
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def invoke(call: dict[str, Any]) -> dict[str, Any]:
    """Make one call; never raises."""
    begun = time.monotonic()
    result: dict[str, Any]
    try:
        function: Any = load(call["module"], call["file"])
        for part in call["function"].split("."):
            function = getattr(function, part)
        # A pytest fixture or decorator may hide the function itself.
        value = function(*call["arguments"], **call["keywords"])
        json.dumps(value)
        result = {"value": value}
    except BaseException as error:  # noqa: BLE001  # whatever it raised is the answer
        name = type(error).__name__
        result = {"error": f"{name}: {error}", "traceback": traceback.format_exc()}
    return {**result, "seconds": time.monotonic() - begun}


def _become(folder: str, number: int, call: dict[str, Any]) -> None:
    """In the child: make the call, leave the result, end."""
    with open(f"{folder}/output-{number}", "ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    result = invoke(call)
    sys.stdout.flush()
    sys.stderr.flush()
    _leave(folder, number, result)


def _leave(folder: str, number: int, result: dict[str, Any]) -> None:
    path = f"{folder}/result-{number}.json"
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.rename(f"{path}.part", path)


def _wait(pid: int, timeout_s: float) -> str:
    """Wait for a child; says why it left no result, if it did not."""
    deadline = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"not done after {timeout_s:g} s"
        time.sleep(_POLL_S)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with status {code} and no result"


def main(folder: str) -> int:
    """Make every call of the batch; exit status 0."""
    with open(f"{folder}/batch.json", encoding="utf-8") as file:
        calls = json.load(file)
    for module, path in {(call["module"], call["file"]): None for call in calls}:
        try:
            load(module, path)
        except BaseException:  # noqa: BLE001  # each call will meet it again and report it
            continue
    for number, call in enumerate(calls):
        pid = os.fork()
        if pid == 0:
            try:
                _become(folder, number, call)
            finally:
                os._exit(0)
        trouble = _wait(pid, call["timeout_s"])
        if not os.path.exists(f"{folder}/result-{number}.json"):
            _leave(folder, number, {"error": trouble, "traceback": "", "seconds": 0.0})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
