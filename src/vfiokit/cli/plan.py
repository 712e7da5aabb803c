"""``vfiokit plan``: what assigning devices would change, cost and risk. Changes nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, envelope, note
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from vfiokit.assign.document import Plan

DESCRIPTION = """\
Plan the assignment of devices to a driver: the steps, what the host loses, and what
forbids it. Nothing is changed. The plan can be saved and applied later; apply checks
again that the host is still what the plan was made for.
"""
EPILOG = """\
examples:
  vfiokit plan 05:00.0
  vfiokit plan nvme --host demo
  vfiokit plan 10de:2330#0 --include-group -o gpu.json && vfiokit apply gpu.json

exit codes: 0 planned, 3 blocked; with --exit-code: 0 nothing to do, 9 something to do
"""


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that ``plan`` and ``apply`` share."""
    parser.add_argument("--driver", default="vfio-pci", help="driver to hand the devices to")
    parser.add_argument(
        "--include-group",
        action="store_true",
        help="also release the other members of the IOMMU group from their drivers",
    )
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="ID",
        help="override the blocker of this id; may be repeated",
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("device", nargs="+", help="which functions (see 'vfiokit show --help')")
    add_plan_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="save the plan as JSON")
    parser.add_argument(
        "--exit-code", action="store_true", help="exit with 9 when there is something to do"
    )


def make(arguments: argparse.Namespace, session: Session) -> Plan:
    """The plan that the command line asks for."""
    from vfiokit.assign.plan import plan
    from vfiokit.pci.selector import select

    topology = session.topology()
    bdfs = [function.bdf for text in arguments.device for function in select(topology, text)]
    return plan(
        session.tree,
        bdfs,
        driver=arguments.driver,
        include_group=arguments.include_group,
        force=arguments.force,
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Plan and print."""
    made = make(arguments, session)
    body = {"plan": made.to_json()}
    if arguments.output is not None:
        document = envelope("plan", session.host, body)
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        note(f"plan written to {arguments.output}")
    output = Output(json=arguments.json)
    if output.json:
        output.document("plan", session.host, body)
    else:
        for line in lines(made):
            output.line(line)
    if made.open_blockers():
        return exit_code.NO
    if arguments.exit_code and not made.changes_nothing:
        return exit_code.CHANGES
    return exit_code.DONE


def lines(plan: Plan) -> list[str]:
    """The plan, as a person reads it."""
    found: list[str] = []
    for target in plan.targets:
        found.append(f"{target.role} {target.bdf}  {target.label}")
        where = "no IOMMU group" if target.group is None else f"IOMMU group {target.group}"
        if target.group_predicted and target.group is not None:
            where += " (predicted: the kernel recorded none)"
        found.append(f"  now on {target.driver or 'no driver'}, {where}")
    found += _section(
        "group members",
        [
            f"{member.bdf} {member.driver or 'no driver'}: {member.fate}, {member.why}"
            for member in plan.members
        ],
    )
    steps = [
        f"{number}. {step.description}\n       write {step.do.data.decode()!r} to {step.do.path}"
        for number, step in enumerate(plan.steps, 1)
    ]
    found += _section("steps", steps or ["nothing to do"])
    found += _section("the host loses", [loss.text for loss in plan.losses] or ["nothing"])
    found += _section("warnings", list(plan.warnings))
    blockers = [
        f"{blocker.text}  [{blocker.id}{'' if blocker.forcible else ', cannot be forced'}]"
        + (f"\n       {blocker.hint}" if blocker.hint else "")
        for blocker in plan.open_blockers()
    ]
    found += _section("blocked by", blockers)
    found += _section("ways out", _ways_out(plan))
    return found


def _ways_out(plan: Plan) -> list[str]:
    """The options that get past what blocks the plan."""
    blockers = plan.open_blockers()
    ways: list[str] = []
    if any(blocker.id.startswith("group-member:") for blocker in blockers):
        ways.append("--include-group releases the rest of the group from its drivers")
    forcible = [blocker.id for blocker in blockers if blocker.forcible]
    if forcible and len(forcible) == len(blockers):
        ways.append(" ".join(f"--force={name}" for name in forcible) + " if that is meant")
    return ways


def _section(title: str, entries: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
