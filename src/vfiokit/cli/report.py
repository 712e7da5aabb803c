"""``vfiokit report``: the host as one page, or its topology as a picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from vfiokit.host.tree import Tree
    from vfiokit.web.page import Content

DESCRIPTION = """\
Write one HTML page with everything about a host: its topology drawn, the peer-to-peer
matrix, IOMMU groups and why, and what deserves attention. The page is complete in itself
and loads nothing. The topology alone can be had as SVG or as DOT for graphviz.
"""
EPILOG = """\
examples:
  vfiokit report server.html --host demo
  vfiokit report tree.svg                       this host's topology, by the file's ending
  vfiokit report page.html --svg tree.svg --dot tree.dot
  vfiokit report - --format dot | dot -Tpng -o tree.png

exit codes: 0 written, 1 the host could not be read or a file not be written, 2 usage
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="where to; - is standard output")
    parser.add_argument(
        "--format",
        choices=("html", "svg", "dot"),
        help="of FILE; otherwise its ending tells, and html it is",
    )
    parser.add_argument("--svg", metavar="FILE", help="also the topology as SVG")
    parser.add_argument("--dot", metavar="FILE", help="also the topology as DOT")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Collect once, write every file asked for."""
    from vfiokit.errors import UsageError
    from vfiokit.web.report import render

    wanted = _wanted(arguments)
    if not wanted:
        raise UsageError(
            "no file to write is named", hint="name one, such as report.html; - is standard output"
        )
    if sum(path == "-" for _kind, path in wanted) + arguments.json > 1:
        raise UsageError("standard output can hold one document, and more are asked for")
    content = _collect(session)
    written: list[dict[str, object]] = []
    for kind, path in wanted:
        size = _write(path, render(kind, content))
        written.append({"format": kind, "file": path, "size": size})
        if path != "-" and not arguments.json:
            note(f"{path}: {len(content.inventory.items)} functions, {max(size // 1024, 1)} KiB")
    if arguments.json:
        body = {"functions": len(content.inventory.items), "files": written}
        Output(json=True).document("report", session.host, body)
    return exit_code.DONE


def _wanted(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Format and file of everything asked for."""
    from vfiokit.web.report import format_of

    wanted: list[tuple[str, str]] = []
    if arguments.file:
        wanted.append((arguments.format or format_of(arguments.file), arguments.file))
    wanted += [(kind, path) for kind in ("svg", "dot") if (path := getattr(arguments, kind))]
    return wanted


def _collect(session: Session) -> Content:
    from vfiokit.errors import SourceError
    from vfiokit.web.report import describe

    topology = session.topology()
    tree: Tree | None = None
    with contextlib.suppress(SourceError):  # descriptions without files
        tree = session.tree
    return describe(topology, host=_name(session), tree=tree, limits=session.limits)


def _name(session: Session) -> str:
    """What the host is called: its own name where this is it, else its description's."""
    import os
    import socket

    return socket.gethostname() if session.host == "live" else os.path.basename(session.host)


def _write(path: str, text: str) -> int:
    """Write a report; returns its bytes. A file that is there is replaced."""
    content = text.encode("utf-8")
    if path == "-":
        sys.stdout.buffer.write(content)
    else:
        with open(path, "wb") as file:
            file.write(content)
    return len(content)
