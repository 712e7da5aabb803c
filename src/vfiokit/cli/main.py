"""Entry point: find the subcommand, load only its module, run it, turn errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from vfiokit import __version__
from vfiokit.cli import exit as exit_code
from vfiokit.cli.session import Session
from vfiokit.errors import VfiokitError

COMMANDS: dict[str, str] = {
    "show": "list PCI functions, or everything about some of them",
    "tree": "draw the PCI tree with drivers and groups",
    "groups": "predict IOMMU groups, say why, compare with the kernel's",
    "explain": "why a device is in its group, and what would split it",
    "p2p": "who can do DMA to whom, why, and what would change it",
    "bandwidth": "predict how fast DMA between devices goes, and what limits it",
    "report": "write the host as one HTML page, or its topology as SVG or DOT",
    "diff": "what changed between two hosts or two captures",
    "plan": "what assigning a device would change, cost and risk",
    "apply": "carry out a plan, journaled step by step",
    "undo": "take back what apply did, also after a crash",
    "vm": "plan a virtual machine for devices, and what its kernel will believe",
    "doctor": "is this machine ready to assign a device",
    "watch": "follow hotplug, drivers, links and errors as they happen",
    "capture": "write everything that matters about this host to a file",
    "lab": "run a command on a real kernel in QEMU, with devices made to order",
    "serve": "serve a device over vfio-user: NVMe, edu, or one of your own, for QEMU",
    "machine": "start a software twin of a host, with a prompt or a script",
    "vmm": "a small hypervisor on a twin: plans A to D, a tracer of a guest's driver",
    "demo": "take a captured server's NVMe drive through VFIO and give it back",
    "schema": "print the JSON Schemas of what --json prints",
    "completion": "print a completion script for your shell",
}
"""Subcommands in the order of the help text; each lives in the module of its name."""


class Command(Protocol):
    """What a subcommand's module offers."""

    DESCRIPTION: str
    EPILOG: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare arguments."""

    def run(self, arguments: argparse.Namespace, session: Session) -> int:
        """Do it; returns the exit code."""


def load(name: str) -> Command:
    """Import the module of one subcommand."""
    return cast("Command", importlib.import_module(f"vfiokit.cli.{name}"))


def _top_level() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfiokit",
        description="PCI device assignment for Linux: see, plan, apply, undo, drive, rehearse.",
        epilog="'vfiokit COMMAND --help' has examples. Try 'vfiokit demo': it needs no hardware.",
    )
    parser.add_argument("--version", action="version", version=f"vfiokit {__version__}")
    return parser


def _add(parsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    command = load(name)
    parser = parsers.add_parser(
        name,
        help=COMMANDS[name],
        description=command.DESCRIPTION,
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, host=name != "diff")
    command.configure(parser)


def add_common(parser: argparse.ArgumentParser, *, host: bool = True) -> None:
    """Options that every command has; ``--host`` but for those that name their hosts otherwise."""
    if host:
        parser.add_argument(
            "--host",
            default="live",
            metavar="live|demo|FILE",
            help="this machine (default), the packaged capture, or a file: a capture, a record, "
            "the output of lspci, an NCCL topology; or a folder",
        )
    else:
        parser.set_defaults(host="live")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser; with ``only``, a parser of just that subcommand: no other module is imported."""
    parser = _top_level()
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS if only is None else (only,):
        _add(parsers, name)
    return parser


def _overview() -> argparse.ArgumentParser:
    """The parser that lists the subcommands, without importing any of them."""
    parser = _top_level()
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, help_text in COMMANDS.items():
        parsers.add_parser(name, help=help_text, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None, session: Session | None = None) -> int:
    """Run one command line; returns the exit code. ``session`` overrides ``--host``."""
    words = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser(named) if named in COMMANDS else _overview()
    arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.print_help()
        return exit_code.USAGE
    try:
        code = load(arguments.command).run(arguments, session or Session(arguments.host))
        sys.stdout.flush()
    except VfiokitError as error:
        return _report(error, error.hint)
    except KeyboardInterrupt:
        sys.stderr.write("vfiokit: interrupted\n")
        return exit_code.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) left; there is nobody to tell.
        sys.stderr.close()
        return exit_code.DONE
    except OSError as error:
        return _report(error, "")
    return code


def _report(error: Exception, hint: str) -> int:
    sys.stderr.write(f"vfiokit: error: {error}\n")
    if hint:
        sys.stderr.write(f"vfiokit: hint: {hint}\n")
    return exit_code.code_for(error)
