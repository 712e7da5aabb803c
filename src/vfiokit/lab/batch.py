"""Python functions as scenarios: many of them in one boot."""

from __future__ import annotations

import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vfiokit.errors import UsageError
from vfiokit.lab import guest_system
from vfiokit.lab.failure import ScenarioError

Target: TypeAlias = str | Callable[..., object]
"""``module:function``, or a function at the top level of an importable module."""

DEFAULT_SCENARIO_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A function to call in the guest. Arguments and result must be what JSON can carry."""

    target: Target
    arguments: Sequence[object] = ()
    keywords: Mapping[str, object] = field(default_factory=dict)
    timeout_s: float = DEFAULT_SCENARIO_TIMEOUT_S

    def call(self) -> dict[str, Any]:
        """What :mod:`vfiokit.lab.guest` reads; raises :class:`UsageError`."""
        module, file, function = locate(self.target)
        call = {
            "module": module,
            "file": file,
            "function": function,
            "arguments": list(self.arguments),
            "keywords": dict(self.keywords),
            "timeout_s": self.timeout_s,
        }
        try:
            json.dumps(call)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{module}:{function}: JSON cannot carry its arguments") from error
        return call

    def __str__(self) -> str:
        module, _file, function = locate(self.target)
        return f"{module}:{function}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a scenario."""

    name: str
    value: Any = None
    """What the function returned."""
    error: str = ""
    """Empty when it returned."""
    traceback: str = ""
    output: str = ""
    """What it printed."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the function returned."""
        return not self.error

    def require(self) -> Any:  # noqa: ANN401  # whatever the function returned
        """The value; raises :class:`ScenarioError` with the guest's traceback and output."""
        if self.error:
            details = "\n".join(part for part in (self.traceback, self.output) if part)
            raise ScenarioError(f"{self.name} failed in the guest: {self.error}", details)
        return self.value


def locate(target: Target) -> tuple[str, str, str]:
    """Module, its file (may be empty) and qualified name of a target."""
    if isinstance(target, str):
        module, colon, function = target.partition(":")
        if not colon or not module or not function:
            raise UsageError(f"{target!r} is not of the form module:function")
        return module, "", function
    function = target.__qualname__
    if "<" in function:
        raise UsageError(
            f"{function} cannot be called in a guest", hint="make it a function of a module"
        )
    module = target.__module__
    file = inspect.getsourcefile(target) or ""
    if module == "__main__":
        module = Path(file).stem
    return module, str(Path(file).absolute()) if file else "", function


def files(calls: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The batch as a file of the lab's own, where the guest looks for it."""
    return {"batch.json": json.dumps(list(calls)).encode()}


def sources(calls: Iterable[Mapping[str, Any]]) -> list[str]:
    """Folders that Python finds the calls' modules in, for an image; of an installed package only
    the folder of the module.
    """
    installed = set(sysconfig.get_paths().values())
    searched = {os.path.abspath(folder) for folder in sys.path} - installed
    found: dict[str, None] = {}
    for place in {os.path.dirname(call["file"]): None for call in calls if call["file"]}:
        above = [folder for folder in searched if f"{place}/".startswith(f"{folder}/")]
        found[max(above, key=len, default=place)] = None
    return list(found)


def command() -> tuple[str, ...]:
    """What runs the batch in the guest: this Python."""
    script = Path(__file__).with_name("guest.py")
    # -P: the script's own folder must not shadow modules of the same name.
    return (sys.executable, "-P", str(script), guest_system.CONTROL)


def environment() -> dict[str, str]:
    """Variables that make this process's modules importable in the guest."""
    folders = [os.path.abspath(folder) for folder in sys.path]
    return {"PYTHONPATH": os.pathsep.join(folder for folder in folders if os.path.exists(folder))}


def read(folder: Path, scenarios: Sequence[Scenario], trouble: str = "") -> tuple[Outcome, ...]:
    """Outcomes left in ``folder``; ``trouble`` is what ended the guest early, if something did.

    The first scenario without a result is the one that was at work then.
    """
    outcomes: list[Outcome] = []
    for number, scenario in enumerate(scenarios):
        printed = folder / f"output-{number}"
        output = printed.read_text("utf-8", "replace") if printed.exists() else ""
        path = folder / f"result-{number}.json"
        if path.exists():
            fields = json.loads(path.read_text("utf-8"))
        else:
            fields = {"error": trouble or "the guest ended during it"}
            trouble = "not run, because the guest ended before it"
        outcomes.append(Outcome(str(scenario), output=output, **fields))
    return tuple(outcomes)
