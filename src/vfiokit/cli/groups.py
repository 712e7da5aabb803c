"""``vfiokit groups``: IOMMU groups as the kernel's rules make them, and why."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.listing import add_options
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.cli.view import View
from vfiokit.pci.quantity import counted

if TYPE_CHECKING:
    from vfiokit.cli.column import Value
    from vfiokit.isolation.compare import Comparison
    from vfiokit.isolation.group import Grouping
    from vfiokit.pci.topology import Function, Topology

DESCRIPTION = """\
Predict the IOMMU groups of a host from its configuration bytes, by the kernel's
rules and quirk tables, and compare them with the groups that the host's own kernel
recorded. The recorded answer is never an input of the prediction.
"""
EPILOG = """\
examples:
  vfiokit groups                        this machine
  vfiokit groups --host capture.tar.zst --why 05:00.0
  vfiokit groups --host demo --no-quirks   what a tool without the quirk tables would say
  vfiokit groups --format '{predicted} {address} {why}'

exit codes: 0 predicted and recorded groups agree (or none were recorded), 3 they differ
"""

COLUMNS = ("predicted", "address", "class", "id", "driver", "recorded")
"""Columns by default; ``why`` and those of every list can be chosen too."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--why", metavar="DEVICE", help="say which rule, port and bit decided for a device"
    )
    parser.add_argument(
        "--no-quirks", action="store_true", help="ignore the kernel's tables of known devices"
    )
    add_options(parser, ",".join(COLUMNS))


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Predict, compare, print."""
    from vfiokit.isolation.compare import compare
    from vfiokit.isolation.group import predict

    view = View(session)
    topology = view.topology
    grouping = predict(topology, quirks=not arguments.no_quirks)
    comparison = compare(grouping, topology)
    output = Output(json=arguments.json)
    if arguments.why:
        _print_why(output, session, topology, grouping, arguments.why)
        return exit_code.DONE
    if output.json:
        output.document("groups", session.host, _document(topology, grouping, comparison))
    elif arguments.columns is not None or arguments.format is not None:
        members = (topology[bdf] for group in grouping.groups for bdf in group.members)
        facts = partial(_facts, grouping)
        output.functions(view, members, COLUMNS, arguments, facts)
    else:
        _print_groups(output, topology, grouping, comparison)
    return exit_code.DONE if comparison.agree == comparison.total else exit_code.NO


def _facts(grouping: Grouping, function: Function) -> dict[str, Value]:
    """The columns that ``groups`` has besides those of every list, or knows better."""
    return {
        "predicted": grouping.of(function.bdf).id,
        "uncertain": function.bdf in grouping.uncertain,
        "recorded": function.recorded.iommu_group,
        "why": grouping.why(function.bdf).text(),
    }


def _print_groups(
    output: Output, topology: Topology, grouping: Grouping, comparison: Comparison
) -> None:
    from vfiokit.cli.column import predicted_text

    unsure = frozenset(grouping.uncertain)
    rows = (
        _row(predicted_text(group.id, uncertain=bdf in unsure), topology[bdf])
        for group in grouping.groups
        for bdf in group.members
    )
    output.table([name.upper() for name in COLUMNS], rows)
    leaks = grouping.leaks(topology)
    for leak in leaks:
        output.line(f"note: {leak.text()}")
    if grouping.uncertain:
        count = len(grouping.uncertain)
        output.line(
            f"? unknown whether {counted(count, 'function')} share{'s' * (count == 1)} a group: "
            "what decides is not in this description"
        )
    if comparison.total:
        output.line(f"{comparison.agree} of {comparison.total} recorded groups agree")
        for difference in comparison.differences:
            output.line(f"differs: {difference.text()}")
    else:
        output.line(
            f"{counted(len(grouping.groups), 'group')} predicted; the host's kernel recorded none"
        )


def _row(predicted: str, function: Function) -> tuple[str, ...]:
    identity = function.identity
    recorded = function.recorded.iommu_group
    return (
        predicted,
        str(function.bdf),
        f"{identity.class_code:06x}",
        f"{identity.vendor_id:04x}:{identity.device_id:04x}",
        function.recorded.driver or "-",
        "-" if recorded is None else str(recorded),
    )


def _print_why(
    output: Output, session: Session, topology: Topology, grouping: Grouping, text: str
) -> None:
    from vfiokit.pci.selector import select

    functions = select(topology, text)
    if output.json:
        output.document(
            "groups-why",
            session.host,
            {"devices": [_why_document(grouping, function) for function in functions]},
        )
        return
    for function in functions:
        group = grouping.of(function.bdf)
        others = len(group.members) - 1
        if function.bdf in grouping.uncertain:
            output.heading(f"{function.bdf}: unknown whether it shares its group")
            output.line(
                "  what decides is not in this description; where it is missing, what follows "
                "takes bridges, ACS and PCI Express to be missing too"
            )
        else:
            output.heading(f"{function.bdf} is in group {group.id}, with {others} more")
        output.line(f"  {grouping.why(function.bdf).text()}")
        for step in grouping.steps(function.bdf):
            output.line(f"  - {step.text()}")


def _why_document(grouping: Grouping, function: Function) -> dict[str, object]:
    group = grouping.of(function.bdf)
    return {
        "address": str(function.bdf),
        "group": group.id,
        "members": [str(bdf) for bdf in group.members],
        "uncertain": function.bdf in grouping.uncertain,
        "why": grouping.why(function.bdf).text(),
        "steps": [step.text() for step in grouping.steps(function.bdf)],
    }


def _document(topology: Topology, grouping: Grouping, comparison: Comparison) -> dict[str, object]:
    unsure = frozenset(grouping.uncertain)
    return {
        "groups": [
            {
                "id": group.id,
                "members": [
                    {
                        "address": str(bdf),
                        "recorded_group": topology[bdf].recorded.iommu_group,
                        "uncertain": bdf in unsure,
                        "why": grouping.why(bdf).text(),
                    }
                    for bdf in group.members
                ],
            }
            for group in grouping.groups
        ],
        "recorded": {
            "total": comparison.total,
            "agree": comparison.agree,
            "differences": [difference.text() for difference in comparison.differences],
        },
        "uncertain": [str(bdf) for bdf in grouping.uncertain],
        "leaks": [leak.text() for leak in grouping.leaks(topology)],
    }
