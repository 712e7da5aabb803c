"""``vfiokit capture``: write everything that matters about a host to one file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, progress_bar
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.host.archive import CaptureSummary

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

_LISTED = 3
"""Unreadable files that are named."""


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
    for line in _lines(summary):
        output.line(line)
    return exit_code.DONE


def _lines(summary: CaptureSummary) -> Iterator[str]:
    from vfiokit.pci.quantity import counted, size_text

    yield f"path       {summary.path}"
    yield f"functions  {summary.functions}"
    yield f"files      {summary.files}, {size_text(summary.size)}"
    yield f"links      {summary.links}"
    yield f"archive    {size_text(summary.archive_size)}"
    if summary.short_config:
        yield (
            f"note: {counted(len(summary.short_config), 'function')} showed only 64 bytes of "
            "configuration space: run it as root, or ACS stays unknown"
        )
    if summary.unreadable:
        first = [f"{path} ({why})" for path, why in list(summary.unreadable.items())[:_LISTED]]
        more = len(summary.unreadable) - len(first)
        tail = f" and {more} more (--json has them)" if more else ""
        count = counted(len(summary.unreadable), "file")
        yield f"note: {count} unreadable: {', '.join(first)}{tail}"
