"""``vfiokit show``: list functions, or everything about some of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.card import EVERYTHING, document, lines
from vfiokit.cli.listing import add_options
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.cli.view import View

if TYPE_CHECKING:
    from vfiokit.pci.topology import Function

DESCRIPTION = """\
List PCI functions, or show everything about the ones named.

Three depths, for one function, some, or without a name all of them:
  -v     every register and field of the header and of every capability
  -vv    also sections of the specification, reserved bits, raw bytes of each
         capability, what is wrong with them, and vital product data
  -vvv   also the whole configuration space in hexadecimal: the output is a
         description of the host that --host (and lspci -F) can read again
"""
EPILOG = """\
devices are named by address (05:00.0), ids (144d:a808, 10de:2330#1), path
(pci0000:00/02.0/00.0) or kind (nvme, gpu, nic, bridge, usb, sata, audio, all)

examples:
  vfiokit show                       one line for every function
  vfiokit show nvme --host demo      BARs, what a VMM may map, interrupts, ports above
  vfiokit show 05:00.0 -v            with every register of every capability
  vfiokit show -vvv > machine.txt    all there is to know
  vfiokit show nic --format '{address} {driver} {speed}'
  vfiokit show gpu --format csv --columns address,id,numa
"""

LIST = ("address", "kind", "device", "driver", "group", "numa")
"""Columns of the list."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("device", nargs="*", help="which functions; all in one line each if none")
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="deeper: -v, -vv or -vvv, see above"
    )
    add_options(parser, ",".join(LIST))


def run(arguments: argparse.Namespace, session: Session) -> int:
    """List or show."""
    view = View(session)
    output = Output(json=arguments.json)
    listed = arguments.columns is not None or arguments.format is not None
    if not output.json and (listed or not (arguments.device or arguments.verbose)):
        output.functions(view, _chosen(view, arguments.device), LIST, arguments)
        return exit_code.DONE
    functions = _chosen(view, arguments.device)
    if output.json:
        documents = [document(view, function) for function in functions]
        body = {"limits": list(session.limits), "devices": documents}
        output.document("show", session.host, body)
    else:
        output.lines(_cards(view, functions, min(arguments.verbose, 3), output))
    return exit_code.DONE


def _chosen(view: View, devices: list[str]) -> list[Function]:
    from vfiokit.pci.selector import select

    if not devices:
        return list(view.topology)
    found = (function for text in devices for function in select(view.topology, text))
    return list(dict.fromkeys(found))


def _cards(view: View, functions: list[Function], depth: int, output: Output) -> Iterator[str]:
    style = output.style(full=depth >= EVERYTHING)
    for function in functions:
        yield from lines(view, function, depth, style)
        yield ""
