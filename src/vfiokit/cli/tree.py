"""``vfiokit tree``: the PCI tree, with columns to choose."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.cli import exit as exit_code
from vfiokit.cli.listing import add_options
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.cli.view import View

if TYPE_CHECKING:
    from vfiokit.pci.topology import Bus, Function, Topology

DESCRIPTION = "Draw the PCI tree: host bridges, ports, functions, with the columns you choose."
EPILOG = """\
columns: address kind class device name id subsystem revision driver group predicted
uncertain iommu numa speed link_speed link_width max_link_speed max_link_width acs
acs_capability acs_control msi msix port parent path physical_function reset
power_state irq

The ACS column has a letter for each of source Validation, translation Blocking,
Request redirect, Completion redirect, Upstream forwarding, Egress control and
Direct translated: capital when it is on, small when it could be, '.' when it
cannot; '-' is no ACS at all, '?' is not known.

examples:
  vfiokit tree
  vfiokit tree --host demo --bridges     only what has something below it
  vfiokit tree --columns acs,speed,name  is every port isolated, and at full speed?
  vfiokit tree --format '{address} {acs}'
"""

COLUMNS = ("group", "driver", "speed", "numa", "acs", "kind", "device")
"""Columns by default; the predicted group where the kernel recorded none."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--bridges",
        action="store_true",
        help="leave out the many functions that sit on a root bus with nothing below them",
    )
    add_options(parser, ",".join(COLUMNS))


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Draw, or print as nested JSON."""
    from vfiokit.cli.column import chosen

    view = View(session)
    output = Output(json=arguments.json)
    if output.json:
        buses = view.topology.buses.values()
        bridges = [_bus_document(view, bus) for bus in buses if bus.is_root]
        output.document("tree", session.host, {"host_bridges": bridges})
        return exit_code.DONE
    default = COLUMNS if view.has_recorded_groups else ("predicted", *COLUMNS[1:])
    branches = list(_branches(view.topology, bridges_only=arguments.bridges))
    if arguments.format is not None:
        functions = [branch.function for branch in branches if branch.function is not None]
        output.functions(view, functions, ("address", *default), arguments)
        return exit_code.DONE
    names = default if arguments.columns is None else chosen(arguments.columns)
    output.lines(output.cut(_drawn(view, branches, names)))
    return exit_code.DONE


class Branch(NamedTuple):
    """One line of the tree: what stands left of the columns, and whose it is."""

    text: str
    function: Function | None


def _drawn(view: View, branches: list[Branch], names: tuple[str, ...]) -> Iterator[str]:
    """The lines: the tree, then its columns, each as wide as it must be."""
    from vfiokit.cli.column import row

    table = [("", *(name.upper() for name in names))]
    table += [
        (text, *(row(view, function, names) if function is not None else ("",) * len(names)))
        for text, function in branches
    ]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _branches(topology: Topology, *, bridges_only: bool) -> Iterator[Branch]:
    """The tree from the root buses down."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    marks = ("├─ ", "└─ ", "│  ", "   ") if unicode else ("|- ", "`- ", "|  ", "   ")
    for bus in topology.buses.values():
        if not bus.is_root:
            continue
        yield Branch(f"pci{bus.domain:04x}:{bus.number:02x}", None)
        shown = _physical(bus)
        if bridges_only:
            shown = [function for function in shown if topology.secondary(function) is not None]
        hidden = len(_physical(bus)) - len(shown)
        yield from _below(topology, shown, "", marks, more=hidden > 0)
        if hidden:
            yield Branch(f"{marks[1]}({hidden} more functions of the root complex)", None)


def _below(
    topology: Topology,
    functions: list[Function],
    indent: str,
    marks: tuple[str, str, str, str],
    *,
    more: bool = False,
) -> Iterator[Branch]:
    for index, function in enumerate(functions):
        last = index == len(functions) - 1 and not more
        yield Branch(f"{indent}{marks[1] if last else marks[0]}{function.bdf}", function)
        bus = topology.secondary(function)
        children = _physical(bus) if bus is not None else []
        children += topology.virtual_functions(function)
        yield from _below(topology, children, indent + (marks[3] if last else marks[2]), marks)


def _physical(bus: Bus) -> list[Function]:
    """Functions of a bus without VFs, which are drawn below their PF."""
    return [function for function in bus.functions if not function.is_virtual]


def _bus_document(view: View, bus: Bus) -> dict[str, object]:
    return {
        "domain": bus.domain,
        "bus": bus.number,
        "functions": [_function_document(view, function) for function in _physical(bus)],
    }


def _function_document(view: View, function: Function) -> dict[str, object]:
    from vfiokit.cli.column import record

    document: dict[str, object] = {**record(view, function)}
    virtual = view.topology.virtual_functions(function)
    if virtual:
        document["virtual_functions"] = [_function_document(view, item) for item in virtual]
    below = view.topology.secondary(function)
    if below is not None:
        document["below"] = _bus_document(view, below)
    return document
