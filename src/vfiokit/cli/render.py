"""Rendering: results to standard output, notes and progress to standard error.

rich is imported only when something is drawn on a terminal; piped output is plain text, never
truncated. ``NO_COLOR``, ``FORCE_COLOR`` and ``TERM=dumb`` are honoured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

_CUT = {"KIND": 2, "DEVICE": 5}
"""Columns of words and their shares of the width that the others leave."""


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

    def document(self, kind: str, host: str, body: Mapping[str, Any]) -> None:
        """Print the one JSON document of a command: ``{"schema": "vfiokit/<kind>/v1", …}``."""
        import json

        json.dump({"schema": f"vfiokit/{kind}/v1", "host": host, **body}, sys.stdout, indent=2)
        sys.stdout.write("\n")

    def line(self, text: str = "") -> None:
        """One line of plain text."""
        sys.stdout.write(text + "\n")

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
