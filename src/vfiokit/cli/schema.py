"""``vfiokit schema``: the JSON Schemas of what ``--json`` prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session

DESCRIPTION = """\
Print the JSON Schema (draft 2020-12) of a document that --json prints, or list
the documents. A document names its own: "schema": "vfiokit/groups/v1".
"""
EPILOG = """\
examples:
  vfiokit schema                     which documents there are
  vfiokit schema groups              the schema of 'vfiokit groups --json'
  vfiokit schema --write docs/schema every schema into a folder, as KIND-v1.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("kind", nargs="?", help="which document; without it all are listed")
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write every schema to a file in FOLDER"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Print, list or write."""
    from vfiokit.cli.schema_source import kinds, schema

    output = Output(json=arguments.json)
    if arguments.write is not None:
        arguments.write.mkdir(parents=True, exist_ok=True)
        for kind in kinds():
            (arguments.write / f"{kind}-v1.json").write_text(text(kind), encoding="utf-8")
        note(f"{len(kinds())} schemas written to {arguments.write}")
    elif arguments.kind is not None:
        output.line(text(arguments.kind).rstrip("\n"))
    elif output.json:
        listed = [
            {"schema": f"vfiokit/{kind}/v1", "title": schema(kind)["title"]} for kind in kinds()
        ]
        output.document("schema", session.host, {"documents": listed})
    else:
        rows = ((kind, f"vfiokit/{kind}/v1", schema(kind)["title"]) for kind in kinds())
        output.table(("KIND", "SCHEMA", "WHAT IT IS"), rows)
    return exit_code.DONE


def text(kind: str) -> str:
    """The schema of one kind, as its file has it."""
    from vfiokit.cli.schema_source import schema

    return json.dumps(schema(kind), indent=1, ensure_ascii=False) + "\n"
