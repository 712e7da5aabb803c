"""``vfiokit undo``: take back what apply did, also after a crash."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.apply import add_journal_argument, journal_folder
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.assign.journal import JournalRecord
    from vfiokit.assign.undo import Undone

DESCRIPTION = """\
Take back what apply did: the newest journal that is not undone, one that is named, or
all. Works after a crash at any point, because it looks at the host and not only at the
journal's last line. Doing it twice changes nothing.
"""
EPILOG = """\
examples:
  vfiokit undo
  vfiokit undo --list
  vfiokit undo --all
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("which", nargs="?", type=Path, help="a journal file; default: the newest")
    parser.add_argument("--list", action="store_true", help="only list what could be undone")
    parser.add_argument("--all", action="store_true", help="undo every journal, newest first")
    parser.add_argument(
        "--force", action="append", default=[], metavar="ID", help="override this refusal"
    )
    add_journal_argument(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """List or undo."""
    from vfiokit.assign.undo import pending, undo

    output = Output(json=arguments.json)
    records = pending(journal_folder(arguments, session))
    if arguments.list:
        _print_list(output, session, records)
        return exit_code.DONE
    chosen = _choose(arguments, records)
    if not chosen:
        note("nothing to undo")
    results = [undo(session.kernel, path, force=arguments.force) for path in chosen]
    if output.json:
        documents = [_document(result) for result in results]
        output.document("undo", session.host, {"undone": documents})
    else:
        for result in results:
            for line in _lines(result):
                output.line(line)
    return exit_code.DONE


def _choose(arguments: argparse.Namespace, records: tuple[JournalRecord, ...]) -> list[Path]:
    if arguments.which is not None:
        if not arguments.which.exists():
            raise UsageError(
                f"there is no journal {arguments.which}", hint="'vfiokit undo --list' lists them"
            )
        return [arguments.which]
    newest_first = [record.path for record in reversed(records)]
    return newest_first if arguments.all else newest_first[:1]


def _print_list(output: Output, session: Session, records: tuple[JournalRecord, ...]) -> None:
    rows = [
        (
            record.begun,
            "applied" if record.is_applied else "interrupted",
            ", ".join(str(target.bdf) for target in record.plan.targets),
            str(record.path),
        )
        for record in records
    ]
    if output.json:
        keys = ("begun", "state", "devices", "journal")
        entries = [dict(zip(keys, row, strict=True)) for row in rows]
        output.document("undo-list", session.host, {"journals": entries})
    elif rows:
        output.table(("BEGUN", "STATE", "DEVICES", "JOURNAL"), rows)
    else:
        note("nothing to undo")


def _lines(result: Undone) -> list[str]:
    if result.already:
        return [f"{result.journal.name}: was undone before"]
    if result.rebooted:
        return [f"{result.journal.name}: a reboot had undone it"]
    found = [f"{result.journal.name}: undone in {len(result.changes)} steps"]
    found += [f"  {change.describe()}" for change in result.changes]
    found += [f"  {bdf} is no longer on this host" for bdf in result.gone]
    return found


def _document(result: Undone) -> dict[str, object]:
    return {
        "journal": str(result.journal),
        "changes": [change.describe() for change in result.changes],
        "gone": [str(bdf) for bdf in result.gone],
        "already": result.already,
        "rebooted": result.rebooted,
    }
