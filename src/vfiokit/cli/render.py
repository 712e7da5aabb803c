"""Rendering: results to standard output, notes and progress to standard error.

rich is imported only when something is drawn on a terminal; piped output is plain text, never
truncated. ``NO_COLOR``, ``FORCE_COLOR`` and ``TERM=dumb`` are honoured.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from rich.console import Console
    from rich.progress import TaskID

    from vfiokit.cli.column import Value
    from vfiokit.cli.view import View
    from vfiokit.pci.capability.text import Style
    from vfiokit.pci.topology import Function

_CUT = {"KIND": 2, "DEVICE": 5, "NAME": 5, "PATH": 2, "LIMITED BY": 5}
"""Columns of words and their shares of the width that the others leave."""
_LINES_AT_ONCE = 4096


def identifier(kind: str) -> str:
    """What the documents of ``kind`` say that they are."""
    return f"vfiokit/{kind}/v1"


def envelope(kind: str, host: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A document of ``kind`` about ``host``."""
    return {"schema": identifier(kind), "host": host, **body}


def wants_colour(stream_is_terminal: bool) -> bool:
    """Whether colour is wanted, by the environment's conventions."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream_is_terminal and os.environ.get("TERM") != "dumb"


class Output:
    """Where a command's result goes: one JSON document, or text for people."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._console: Console | None = None
        self._errors: Console | None = None
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            # What a terminal without UTF-8 cannot show is written as \\xNN.
            sys.stdout.reconfigure(errors="backslashreplace")

    @property
    def terminal(self) -> bool:
        """Whether the result is read by a person at a terminal."""
        return sys.stdout.isatty()

    @property
    def console(self) -> Console:
        """Rich's console on standard output."""
        if self._console is None:
            self._console = _console(stderr=False)
        return self._console

    @property
    def error_console(self) -> Console:
        """Rich's console on standard error, for progress."""
        if self._errors is None:
            self._errors = _console(stderr=True)
        return self._errors

    def document(
        self, kind: str, host: str, body: Mapping[str, Any], *, one_line: bool = False
    ) -> None:
        """Print the one JSON document of a command: ``{"schema": "vfiokit/<kind>/v1", …}``.

        Commands that print many, one after another, put each on ``one_line``.
        """
        import json

        json.dump(envelope(kind, host, body), sys.stdout, indent=None if one_line else 2)
        sys.stdout.write("\n")

    def line(self, text: str = "") -> None:
        """One line of plain text."""
        sys.stdout.write(text + "\n")

    def lines(self, lines: Iterable[str]) -> None:
        """Lines of plain text, written in large pieces."""
        waiting: list[str] = []
        for line in lines:
            waiting.append(line)
            if len(waiting) >= _LINES_AT_ONCE:
                sys.stdout.write("\n".join(waiting) + "\n")
                waiting.clear()
        if waiting:
            sys.stdout.write("\n".join(waiting) + "\n")

    def cut(self, lines: Iterable[str]) -> Iterator[str]:
        """Lines cut to the terminal's width; whole where nobody watches."""
        from shutil import get_terminal_size

        width = get_terminal_size().columns if self.terminal else 0
        for line in lines:
            yield f"{line[: width - 1]}…" if 0 < width < len(line) else line

    def style(self, *, full: bool) -> Style:
        """How registers are written here: with marks on a terminal only."""
        from vfiokit.pci.capability.text import Style

        if not wants_colour(self.terminal):
            return Style(full)
        return Style(full, ("\x1b[1m", "\x1b[0m"), ("\x1b[2m", "\x1b[0m"))

    def functions(
        self,
        view: View,
        functions: Iterable[Function],
        default: Sequence[str],
        arguments: argparse.Namespace,
        more: Callable[[Function], Mapping[str, Value]] | None = None,
    ) -> None:
        """A list of functions as ``--columns`` and ``--format`` of ``arguments`` ask.

        ``more`` gives facts that the command knows besides the columns, and that go before them.
        """
        from vfiokit.cli.column import COLUMNS, Record, cell, chosen
        from vfiokit.cli.listing import print_records

        found = list(functions)
        known = dict.fromkeys([*(more(found[0]) if more and found else ()), *COLUMNS])
        columns = chosen(arguments.columns, known) if arguments.columns is not None else default
        records = (Record(view, item, more(item) if more else None) for item in found)
        if arguments.format is not None:
            print_records(arguments.format, records, columns, sys.stdout.write)
            return
        rows = (tuple(cell(record, name) for name in columns) for record in records)
        self.table([name.upper() for name in columns], rows)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table: drawn on a terminal, aligned columns with two blanks between when piped."""
        if self.terminal:
            from rich import box
            from rich.table import Table

            cut = not _CUT.keys().isdisjoint(headers)
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", expand=cut)
            for header in headers:
                # One line a row: on a terminal words may be cut, what is copied may not.
                share = _CUT.get(header)
                table.add_column(header, no_wrap=True, overflow="ellipsis", ratio=share)
            for row in rows:
                table.add_row(*(_escape(cell) for cell in row))
            self.console.print(table)
            return
        lines = [list(headers), *(list(row) for row in rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(headers))]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.line("  ".join(cells).rstrip())

    def heading(self, text: str) -> None:
        """A heading between parts of a text result."""
        if self.terminal:
            self.console.print(f"[bold]{_escape(text)}[/bold]")
        else:
            self.line(text)


@contextmanager
def progress_bar(output: Output) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, only where somebody watches.

    Yields what to call with the work's name, how much is done, and how much there is.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.progress import Progress

    with Progress(console=output.error_console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, visible=done < total)

        yield show


def note(text: str) -> None:
    """Something worth knowing, on standard error."""
    sys.stderr.write(text + "\n")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        no_color=not wants_colour(stream.isatty()),
        force_terminal=bool(os.environ.get("FORCE_COLOR")) or None,
        soft_wrap=not stream.isatty(),
        highlight=False,
    )
