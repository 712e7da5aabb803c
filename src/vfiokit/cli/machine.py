"""``vfiokit machine``: a software twin of a host, with a prompt or a script."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError, VfiokitError

if TYPE_CHECKING:
    from vfiokit.machine.twin import Twin

DESCRIPTION = """\
Build a software machine from a capture and work on it as on the real one: the commands
of vfiokit act on the twin, and its files can be read and written. Nothing of this
machine is touched, and nothing is kept.
"""
EPILOG = """\
at the prompt:
  show, tree, groups, explain, p2p, bandwidth, vm, report, diff, doctor, capture,
  plan, apply, undo                       as on the command line, without --host
  ls PATH, cat PATH, echo TEXT > PATH     the twin's files
  identify DEVICE                         run the user-space NVMe driver on it
  counters, faults                        what the hardware counted and recorded
  help, exit

examples:
  vfiokit machine --host demo
  vfiokit machine --host capture.tar.zst rehearsal.txt
  vfiokit machine --host demo -c 'apply nvme --yes' -c 'identify nvme' -c undo

exit code of a script: that of the first command that failed
"""
_COMMANDS = (
    *("show", "tree", "groups", "explain", "p2p", "bandwidth", "vm", "report"),
    *("diff", "doctor", "capture", "plan", "apply", "undo"),
)
_DUMP = 256
"""Bytes of a binary file that ``cat`` shows."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.set_defaults(host="demo")
    parser.add_argument("script", nargs="?", type=Path, help="commands to run, one a line")
    parser.add_argument(
        "-c", dest="lines", action="append", metavar="COMMAND", help="run this; may be repeated"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Build the twin, then run the script or the prompt."""
    from vfiokit.machine.twin import build_twin

    if session.host == "live":
        raise UsageError(
            "a twin is built from a capture",
            hint="capture this machine first: vfiokit capture FILE",
        )
    begun = time.perf_counter()
    twin = build_twin(session.tree)
    count = len(twin.machine.functions)
    note(f"twin of {session.host}: {count} functions in {time.perf_counter() - begun:.2f} s")
    with tempfile.TemporaryDirectory(prefix="vfiokit-machine-") as folder:
        inside = Session(session.host, twin.kernel, Path(folder))
        prompt = Prompt(twin, inside, json=arguments.json)
        lines = _script(arguments)
        if lines is not None:
            return prompt.script(lines)
        prompt.interact()
    return exit_code.DONE


def _script(arguments: argparse.Namespace) -> list[str] | None:
    if arguments.lines is not None and arguments.script is not None:
        raise UsageError("give a script or -c, not both")
    if arguments.lines is not None:
        return list(arguments.lines)
    if arguments.script is not None:
        return list(arguments.script.read_text(encoding="utf-8").splitlines())
    return None if sys.stdin.isatty() else sys.stdin.read().splitlines()


class Prompt:
    """Reads command lines and runs them on a twin."""

    def __init__(self, twin: Twin, session: Session, *, json: bool = False) -> None:
        self._twin = twin
        self._session = session
        self._output = Output(json=json)

    def script(self, lines: list[str]) -> int:
        """Run lines until one fails; empty lines and ``#`` comments are skipped."""
        for number, line in enumerate(lines, 1):
            words = _words(line)
            if not words:
                continue
            if words[0] == "exit":
                break
            code = self.execute(words)
            if code:
                note(f"line {number} failed with exit code {code}: {line.strip()}")
                return code
        return exit_code.DONE

    def interact(self) -> None:
        """Read from the terminal until ``exit`` or end of file."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # line editing for input()
        note("type help for what there is, exit to leave")
        for line in _input_lines():
            try:
                words = _words(line)
            except UsageError as error:
                note(f"error: {error}")
                continue
            if words and words[0] == "exit":
                return
            if words:
                self.execute(words)

    def execute(self, words: list[str]) -> int:
        """Run one command; errors are reported, not raised."""
        from vfiokit.cli.main import main

        if words[0] in _COMMANDS:
            try:
                return main([*words, *(["--json"] if self._output.json else [])], self._session)
            except SystemExit as stop:  # argparse has said what was wrong
                return stop.code if isinstance(stop.code, int) else exit_code.USAGE
        try:
            return self._builtin(words)
        except VfiokitError as error:
            note(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
            return exit_code.code_for(error)
        except OSError as error:
            note(f"error: {error}")
            return exit_code.code_for(error)

    def _builtin(self, words: list[str]) -> int:
        name, *rest = words
        if name == "help":
            self._output.line(EPILOG)
        elif name == "ls" and len(rest) == 1:
            for entry in self._session.tree.list(rest[0]):
                self._output.line(entry)
        elif name == "cat" and len(rest) == 1:
            self._cat(rest[0])
        elif name == "echo" and len(rest) >= 2 and rest[-2] == ">":
            text = " ".join(rest[:-2])
            self._twin.kernel.tree.write(rest[-1], f"{text}\n".encode())
        elif name == "identify" and len(rest) == 1:
            self._identify(rest[0])
        elif name == "counters" and not rest:
            for key, value in sorted(self._twin.machine.counters().items()):
                self._output.line(f"{key:<32} {value}")
        elif name == "faults" and not rest:
            for iommu in self._twin.machine.iommus:
                for record in iommu.faults.records:
                    self._output.line(str(record))
        else:
            raise UsageError(f"no such command: {shlex.join(words)}", hint="help lists them")
        return exit_code.DONE

    def _cat(self, path: str) -> None:
        data = self._session.tree.read(path)
        try:
            text = data.decode("utf-8")
            printable = text.replace("\n", "").replace("\t", "").isprintable()
        except UnicodeDecodeError:
            printable = False
        if printable:
            self._output.line(text.rstrip("\n"))
            return
        for offset in range(0, min(len(data), _DUMP), 16):
            self._output.line(f"{offset:04x}  {data[offset : offset + 16].hex(' ')}")
        if len(data) > _DUMP:
            self._output.line(f"({len(data) - _DUMP} more bytes)")

    def _identify(self, text: str) -> None:
        from vfiokit.driver.nvme import NvmeController
        from vfiokit.pci.selector import select_one
        from vfiokit.vfio import open_device

        function = select_one(self._session.topology(), text)
        with (
            open_device(self._twin.kernel, function.bdf) as device,
            NvmeController(device) as controller,
        ):
            identity = controller.identity
            self._output.line(f"{identity.model}, serial {identity.serial_number}")
            for namespace in controller.namespaces():
                self._output.line(f"namespace {namespace.nsid}: block size {namespace.block_size}")


def _words(line: str) -> list[str]:
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=">")
        lexer.whitespace_split = True
        lexer.commenters = ""  # 10de:2330#1 is a device
        return list(takewhile(lambda word: not word.startswith("#"), lexer))
    except ValueError as error:
        raise UsageError(f"cannot read {line!r}: {error}") from error


def _input_lines() -> Iterator[str]:
    while True:
        try:
            yield input("twin> ")
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")
