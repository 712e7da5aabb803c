"""Take a captured server's NVMe drive away from its driver, use it through VFIO, give it back.

Each chapter is a method that does one part of the job with the public rooms and returns what it
saw; :meth:`Story.run` tells them in order. Nothing here knows how to render.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vfiokit.assign.apply import Applied, apply
from vfiokit.assign.document import Plan
from vfiokit.assign.plan import plan
from vfiokit.assign.undo import undo
from vfiokit.demo.chapter import Chapter, Progress, quiet
from vfiokit.demo.drive import drive, prove_isolation
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import Tree
from vfiokit.isolation.compare import compare
from vfiokit.isolation.group import Grouping, predict
from vfiokit.machine.twin import Twin, build_twin
from vfiokit.pci.bar import bars, windows
from vfiokit.pci.selector import select, slot_path
from vfiokit.pci.topology import Function, Topology

_T = TypeVar("_T")


class Story:
    """The whole job on one captured host.

    ``source`` is what :func:`vfiokit.host.source.open_tree` takes; ``journal_folder`` receives the
    journal; ``mebibytes`` is how much is written and read back.
    """

    def __init__(
        self,
        journal_folder: Path,
        *,
        source: str = "demo",
        device: str = "nvme",
        mebibytes: int = 64,
        progress: Progress = quiet,
    ) -> None:
        self._journal_folder = journal_folder
        self._source = source
        self._device = device
        self._mebibytes = mebibytes
        self._progress = progress

    def run(self) -> Iterator[Chapter]:
        """Tell every chapter in order; each is done when it is yielded."""
        tree, topology, grouping, chapter = self._read()
        yield chapter
        chosen, chapter = _timed(lambda: self._choose(topology, grouping))
        yield chapter
        twin, chapter = _timed(lambda: self._build(tree, topology))
        yield chapter
        before = twin.kernel.tree.snapshot()
        applied, chapter = _timed(lambda: self._assign(twin, chosen))
        yield chapter
        yield _timed(lambda: drive(twin, chosen.bdf, self._mebibytes, self._progress))[1]
        yield _timed(lambda: prove_isolation(twin, chosen.bdf))[1]
        yield _timed(lambda: self._give_back(twin, applied, before))[1]

    def _read(self) -> tuple[Tree, Topology, Grouping, Chapter]:
        with _stopwatch() as reading:
            tree = open_tree(self._source)
            topology = read_topology(tree)
        with _stopwatch() as grouping_time:
            grouping = predict(topology)
        comparison = compare(grouping, topology)
        bare = compare(predict(topology, quirks=False), topology)
        bridges = sum(function.is_bridge for function in topology)
        virtual = sum(function.is_virtual for function in topology)
        facts = {
            "functions": len(topology),
            "bridges": bridges,
            "virtual_functions": virtual,
            "host_bridges": [str(bridge) for bridge in topology.host_bridges],
            "groups_predicted": len(grouping.groups),
            "groups_recorded": comparison.total,
            "groups_agree": comparison.agree,
            "groups_agree_without_quirks": bare.agree,
            "read_seconds": reading(),
            "predict_seconds": grouping_time(),
        }
        lines = (
            f"{len(topology)} PCI functions below {len(topology.host_bridges)} host bridges: "
            f"{bridges} bridges, {virtual} virtual functions",
            *_outline(topology),
            f"IOMMU groups, predicted from configuration bytes in "
            f"{grouping_time() * 1e3:.1f} ms and compared with the server's own record: "
            f"{comparison.agree} of {comparison.total} agree",
            f"without the kernel's quirk tables it would be {bare.agree} of {bare.total}",
        )
        ok = comparison.agree == comparison.total > bare.agree
        seconds = reading() + grouping_time()
        return tree, topology, grouping, Chapter(1, "Read the server", facts, lines, seconds, ok)

    def _choose(self, topology: Topology, grouping: Grouping) -> tuple[Function, Chapter]:
        function = select(topology, self._device)[0]
        group = grouping.of(function.bdf)
        ports = [
            {
                "address": str(port.bdf),
                "acs_capability": int(port.acs_capability),
                "acs_control": int(port.acs_control),
            }
            for port in topology.path_to_root(function)
        ]
        cut = [(bar, windows(function, bar)) for bar in bars(function)]
        others = [str(bdf) for bdf in group.members if bdf != function.bdf]
        facts = {
            "address": str(function.bdf),
            "name": " ".join(function.recorded.names.get(key, "") for key in ("vendor", "device")),
            "path": slot_path(topology, function),
            "driver": function.recorded.driver,
            "group": group.id,
            "shares_group_with": others,
            "ports_above": ports,
            "bars": [
                {
                    "index": bar.index,
                    "size": bar.size,
                    "windows": [window._asdict() for window in found],
                }
                for bar, found in cut
            ],
            "interrupts": _interrupts(function),
        }
        lines = (
            f"{function.bdf} {facts['name']}, at {facts['path']}, driver {facts['driver']}",
            f"{'alone in' if not others else 'shares'} IOMMU group {group.id}"
            + (f" with {', '.join(others)}" if others else ""),
            *(
                f"port {port['address']} above it: ACS can {port['acs_capability']:#04x}, "
                f"does {port['acs_control']:#04x}"
                for port in ports
            ),
            *(
                f"BAR {bar.index} {'trap' if window.trapped else 'map '} "
                f"{window.offset:#07x}-{window.offset + window.length - 1:#07x}"
                + (f"  {window.reason}" if window.reason else "")
                for bar, found in cut
                for window in found
            ),
            "interrupts: "
            + ", ".join(f"{name} {count}" for name, count in _interrupts(function).items()),
        )
        return function, Chapter(2, f"Choose {function.bdf}", facts, lines, 0.0)

    def _build(self, tree: Tree, topology: Topology) -> tuple[Twin, Chapter]:
        twin = build_twin(tree)
        same = _same_bytes(topology, read_topology(twin.kernel.tree))
        models: dict[str, int] = {}
        for modelled in twin.machine.functions.values():
            models[type(modelled).__name__] = models.get(type(modelled).__name__, 0) + 1
        facts = {
            "functions": len(twin.machine.functions),
            "models": models,
            "same_configuration": same,
        }
        listed = ", ".join(f"{count} {name}" for name, count in sorted(models.items()))
        lines = (
            f"{len(twin.machine.functions)} functions at their places: {listed}",
            f"{same} of {len(topology)} read back the captured configuration bytes",
        )
        return twin, Chapter(3, "Build the twin", facts, lines, 0.0, same == len(topology))

    def _assign(self, twin: Twin, chosen: Function) -> tuple[Applied, Chapter]:
        made = plan(twin.kernel.tree, [chosen.bdf])
        applied = apply(twin.kernel, made, self._journal_folder)
        bound = read_topology(twin.kernel.tree)[chosen.bdf].recorded.driver
        facts = {
            "plan": made.to_json(),
            "driver_before": chosen.recorded.driver,
            "driver_after": bound,
            "journal": str(applied.journal),
        }
        lines = (*_plan_lines(made), f"applied: the driver is {bound} now")
        return applied, Chapter(4, "Plan, apply", facts, lines, 0.0, bound == "vfio-pci")

    def _give_back(
        self, twin: Twin, applied: Applied, before: dict[str, Any]
    ) -> tuple[None, Chapter]:
        assert applied.journal is not None
        undone = undo(twin.kernel, applied.journal)
        after = twin.kernel.tree.snapshot()
        differing = sorted(
            path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
        )
        steps = [change.describe() for change in undone.changes]
        facts = {
            "steps": steps,
            "files_compared": len(after),
            "files_differing": differing,
        }
        lines = (
            *(f"{number}. {text}" for number, text in enumerate(steps, 1)),
            f"{len(after)} files and links compared with those before: "
            + (f"{len(differing)} differ: {differing[:5]}" if differing else "byte for byte equal"),
        )
        return None, Chapter(7, "Give it back", facts, lines, 0.0, not differing)


def _outline(topology: Topology) -> Iterator[str]:
    """The part of the tree that has something below a port."""
    for bridge in topology.host_bridges:
        bus = topology.buses[bridge.domain, bridge.bus]
        ports = [port for port in bus.functions if _below(topology, port)]
        yield f"  {bridge}: {len(bus.functions)} functions on the root bus"
        for port in ports:
            for function in _below(topology, port):
                name = (
                    function.recorded.names.get("device") or f"{function.identity.class_code:06x}"
                )
                count = len(topology.virtual_functions(function))
                suffix = f" with {count} virtual functions" if count else ""
                yield f"    {port.bdf} -> {function.bdf} {name}{suffix}"


def _below(topology: Topology, port: Function) -> list[Function]:
    bus = topology.secondary(port)
    return [] if bus is None else [each for each in bus.functions if not each.is_virtual]


def _interrupts(function: Function) -> dict[str, int]:
    counts: dict[str, int] = {}
    for capability in function.capabilities:
        if capability.name in ("msi", "msix"):
            vectors = capability.decode().get("vectors")
            counts[capability.title] = vectors if isinstance(vectors, int) else 0
    return counts


def _same_bytes(one: Topology, other: Topology) -> int:
    return sum(
        function.bdf in other and other[function.bdf].config == function.config for function in one
    )


def _plan_lines(made: Plan) -> Iterator[str]:
    for number, step in enumerate(made.steps, 1):
        yield f"{number}. {step.description}"
    yield from (f"the host {loss.text}" for loss in made.losses)
    yield from (f"warning: {text}" for text in made.warnings)
    blockers = made.open_blockers()
    yield from (f"blocked: {blocker.text}" for blocker in blockers)
    if not blockers:
        yield "nothing blocks it"


@contextmanager
def _stopwatch() -> Iterator[Callable[[], float]]:
    begun = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - begun
    ended.append(time.perf_counter())


def _timed(tell: Callable[[], tuple[_T, Chapter]]) -> tuple[_T, Chapter]:
    begun = time.perf_counter()
    result, chapter = tell()
    return result, replace(chapter, seconds=time.perf_counter() - begun)
