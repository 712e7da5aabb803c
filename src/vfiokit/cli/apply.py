"""``vfiokit apply``: carry out a plan, journaled step by step."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli import plan as plan_command
from vfiokit.cli.render import Output, identifier, note
from vfiokit.cli.session import Session
from vfiokit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from vfiokit.assign.document import Plan
    from vfiokit.assign.progress import Progress

DESCRIPTION = """\
Carry out a plan: one that was saved, or one made now for the devices named. Each step
is journaled before it is done, checked after, and taken back if a later one fails.
"""
EPILOG = """\
examples:
  vfiokit apply 05:00.0            plan, show, ask, apply
  vfiokit apply gpu.json --yes     a saved plan, without asking
  vfiokit undo                     take it back

exit codes: 3 blocked, 4 needs privilege, 5 busy, 6 failed and rolled back,
7 failed and not fully rolled back, 8 the host is not what the plan was made for
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("device", nargs="+", help="functions, or one saved plan (a .json file)")
    plan_command.add_plan_arguments(parser)
    add_journal_argument(parser)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def add_journal_argument(parser: argparse.ArgumentParser) -> None:
    """Where journals live, shared with ``undo``."""
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="DIR",
        help="folder of the journals (default: /var/lib/vfiokit/journal for root)",
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Show, ask, apply."""
    from vfiokit.assign.apply import apply

    made = _load(arguments, session)
    output = Output(json=arguments.json)
    if not output.json:
        for line in plan_command.lines(made):
            output.line(line)
    if not made.changes_nothing and not made.open_blockers(arguments.force):
        _confirm(arguments)
    applied = apply(
        session.kernel,
        made,
        journal_folder(arguments, session),
        force=arguments.force,
        observer=None if output.json else _show_progress,
    )
    if output.json:
        output.document(
            "apply",
            session.host,
            {
                "plan": made.to_json(),
                "steps_done": [step.id for step in applied.steps],
                "journal": str(applied.journal) if applied.journal else None,
                "seconds": applied.elapsed_s,
            },
        )
    elif applied.journal is not None:
        output.line(f"applied in {applied.elapsed_s * 1e3:.1f} ms; 'vfiokit undo' takes it back")
    return exit_code.DONE


def journal_folder(arguments: argparse.Namespace, session: Session) -> Path | None:
    """The folder of journals: as asked, the machine's own, or the default."""
    folder: Path | None = arguments.journal
    return folder if folder is not None else session.journal_folder


def _load(arguments: argparse.Namespace, session: Session) -> Plan:
    from vfiokit.assign.document import Plan

    if len(arguments.device) == 1 and arguments.device[0].endswith(".json"):
        path = Path(arguments.device[0])
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"not a saved plan: {error}", path=str(path)) from error
        found = document.get("schema") if isinstance(document, dict) else None
        if found != identifier("plan"):
            raise FormatError(
                f"not a saved plan: its schema is {found!r}, not {identifier('plan')!r}",
                path=str(path),
            )
        return Plan.from_json(document.get("plan"), path=str(path))
    return plan_command.make(arguments, session)


def _confirm(arguments: argparse.Namespace) -> None:
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "apply changes this host, and there is no terminal to ask on",
            hint="look at 'vfiokit plan' and add --yes",
        )
    sys.stderr.write("Apply this plan? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not applied")


def _show_progress(progress: Progress) -> None:
    if progress.state != "started":
        verb = "undo: " if progress.undoing else ""
        took = f"{progress.elapsed_s * 1e3:.1f} ms"
        note(f"  {verb}{progress.description}: {progress.state}, {took}")
