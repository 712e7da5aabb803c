"""``vfiokit vmm``: a small hypervisor, and what it shows; each action has a module."""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, cast

from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from vfiokit.cli.main import Command

DESCRIPTION = """\
A small hypervisor that gives a guest real devices through VFIO. Its guests run on software
twins of captured servers, so nothing of this machine is touched.
"""
EPILOG = """\
'vfiokit vmm ACTION --help' has more.

examples:
  vfiokit vmm plans
  vfiokit vmm trace --mistake no-queue
"""
ACTIONS: dict[str, tuple[str, str]] = {
    "demo1": ("vmm_demo", "run one instruction once, narrated"),
    "demo2": ("vmm_demo", "run it many times, then one that must trap"),
    "walks": ("vmm_walks", "memory references of a guest's page walks: 16, 24 or 25"),
    "mtree": ("vmm_mtree", "what of a function a guest has mapped, and what traps"),
    "plans": ("vmm_plans", "four ways to pass a device through, run and counted"),
    "trace": ("vmm_trace", "what a guest's driver did to its device, and what had no effect"),
    "run": ("vmm_run", "a guest's driver reads from a drive, a twin's or this machine's"),
    "p2p": ("vmm_p2p", "how a guest may learn who reaches whom, in every way, compared"),
}
"""Modules and help texts, in the order of the help."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    parser.set_defaults(host="demo")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, text) in ACTIONS.items():
        command = _load(module)
        action = actions.add_parser(
            name,
            help=text,
            description=command.DESCRIPTION,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # Not main's: a default here would override what was said before the action.
        action.add_argument(
            "--host",
            default=argparse.SUPPRESS,
            metavar="demo|FILE",
            help="whose twin: the packaged capture (default), or a capture of yours",
        )
        action.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="one JSON document on standard output",
        )
        command.configure(action)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Do what the action does; returns the exit code."""
    return _load(ACTIONS[arguments.action][0]).run(arguments, session)


def _load(module: str) -> Command:
    return cast("Command", importlib.import_module(f"vfiokit.cli.{module}"))
