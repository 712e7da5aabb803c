"""``vfiokit tree``: the PCI tree, with drivers and groups."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.describe import class_text, device_text
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from vfiokit.pci.topology import Bus, Function, Topology

DESCRIPTION = "Draw the PCI tree: host bridges, ports, functions, with group and driver."
EPILOG = """\
examples:
  vfiokit tree
  vfiokit tree --host demo --bridges     only what has something below it
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--bridges",
        action="store_true",
        help="leave out the many functions that sit on a root bus with nothing below them",
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Draw, or print as nested JSON."""
    topology = session.topology()
    output = Output(json=arguments.json)
    if output.json:
        bridges = [_bus_document(topology, bus) for bus in topology.buses.values() if bus.is_root]
        output.document("tree", session.host, {"host_bridges": bridges})
        return exit_code.DONE
    for line in draw(topology, bridges_only=arguments.bridges):
        output.line(line)
    return exit_code.DONE


def draw(topology: Topology, *, bridges_only: bool = False) -> Iterator[str]:
    """The lines of the tree."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    marks = ("├─ ", "└─ ", "│  ", "   ") if unicode else ("|- ", "`- ", "|  ", "   ")
    for bus in topology.buses.values():
        if not bus.is_root:
            continue
        yield f"pci{bus.domain:04x}:{bus.number:02x}"
        hidden = 0
        shown = []
        for function in _physical(bus):
            if bridges_only and topology.secondary(function) is None:
                hidden += 1
            else:
                shown.append(function)
        yield from _draw(topology, shown, "", marks)
        if hidden:
            yield f"{marks[1]}({hidden} more functions of the root complex)"


def _draw(
    topology: Topology, functions: list[Function], indent: str, marks: tuple[str, str, str, str]
) -> Iterator[str]:
    for index, function in enumerate(functions):
        last = index == len(functions) - 1
        yield indent + (marks[1] if last else marks[0]) + _label(topology, function)
        below = topology.secondary(function)
        children = _physical(below) if below is not None else []
        children += topology.virtual_functions(function)
        yield from _draw(topology, children, indent + (marks[3] if last else marks[2]), marks)


def _physical(bus: Bus) -> list[Function]:
    """Functions of a bus without VFs, which are drawn below their PF."""
    return [function for function in bus.functions if not function.is_virtual]


def _label(topology: Topology, function: Function) -> str:
    parts = [str(function.bdf), class_text(function), device_text(topology, function)]
    if function.recorded.iommu_group is not None:
        parts.append(f"group {function.recorded.iommu_group}")
    if function.recorded.driver:
        parts.append(f"[{function.recorded.driver}]")
    return "  ".join(parts)


def _bus_document(topology: Topology, bus: Bus) -> dict[str, object]:
    return {
        "domain": bus.domain,
        "bus": bus.number,
        "functions": [_function_document(topology, function) for function in _physical(bus)],
    }


def _function_document(topology: Topology, function: Function) -> dict[str, object]:
    document: dict[str, object] = {
        "address": str(function.bdf),
        "class": f"{function.identity.class_code:06x}",
        "device": f"{function.identity.vendor_id:04x}:{function.identity.device_id:04x}",
        "driver": function.recorded.driver,
        "iommu_group": function.recorded.iommu_group,
    }
    virtual = topology.virtual_functions(function)
    if virtual:
        document["virtual_functions"] = [_function_document(topology, item) for item in virtual]
    below = topology.secondary(function)
    if below is not None:
        document["below"] = _bus_document(topology, below)
    return document
