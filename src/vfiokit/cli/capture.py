"""``vfiokit capture``: write everything that matters about a host to one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, progress_bar
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

DESCRIPTION = """\
Write exactly the files that matter about a host's PCI devices to a .tar.zst: nothing
with side effects is read, and nothing else is included. Run it as root, or configuration
space beyond 64 bytes is missing. Every command reads the result with --host FILE;
unpacked, lspci reads it with -O sysfs.path=DIR/sys/bus/pci.
"""
EPILOG = """\
examples:
  sudo vfiokit capture server.tar.zst
  vfiokit groups --host server.tar.zst
  vfiokit machine --host server.tar.zst
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("file", type=Path, help="where to write, such as server.tar.zst")
    parser.add_argument("--replace", action="store_true", help="overwrite an existing file")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Capture and say what could not be read."""
    from vfiokit.host.archive import write_capture

    if arguments.file.exists() and not arguments.replace:
        raise UsageError(f"{arguments.file} exists", hint="choose another name or add --replace")
    output = Output(json=arguments.json)
    with progress_bar(output) as progress:
        summary = write_capture(
            session.tree,
            arguments.file,
            progress=lambda done, total: progress("capturing", done, total),
        )
    if output.json:
        body = {**summary._asdict(), "path": str(summary.path)}
        output.document("capture", session.host, body)
        return exit_code.DONE
    for key, value in summary._asdict().items():
        output.line(f"{key:<12} {value}")
    return exit_code.DONE
