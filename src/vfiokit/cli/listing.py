"""``--format`` and ``--columns`` of commands that print a list.

A template is text with ``{field}`` in it, as Python writes it: ``{driver:<10}`` pads, ``{{`` is a
brace. It can name fields and nothing else: no attribute, no index, no call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vfiokit.errors import UsageError

ROWS = ("csv", "tsv", "jsonl")
"""Formats with a name; any other is a template."""


def add_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare ``--columns`` and ``--format``."""
    parser.add_argument(
        "--columns", metavar="NAME,…", help=f"which columns, in this order (default: {default})"
    )
    parser.add_argument(
        "--format",
        metavar="TEMPLATE|csv|tsv|jsonl",
        help="one line for each function: a template such as '{address} {driver}', or all "
        "columns as comma- or tab-separated values or JSON",
    )


def print_records(
    form: str,
    records: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    write: Callable[[str], object],
) -> None:
    """Write every record as ``form`` says; ``columns`` are those of the named formats.

    :class:`UsageError` for a template that names what no record has, or that is none.
    """
    if form in ("csv", "tsv"):
        _print_separated(form, records, columns, write)
    elif form == "jsonl":
        from json import dumps

        for record in records:
            write(dumps({name: record[name] for name in columns}) + "\n")
    else:
        fill = template(form)
        for record in records:
            write(fill(record) + "\n")


def _print_separated(
    form: str,
    records: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    write: Callable[[str], object],
) -> None:
    import csv
    from io import StringIO

    text = StringIO()
    dialect: type[csv.Dialect] = csv.excel if form == "csv" else csv.excel_tab
    writer = csv.writer(text, dialect, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow(["" if record[name] is None else record[name] for name in columns])
        write(text.getvalue())
        text.seek(0)
        text.truncate()
    write(text.getvalue())


def template(text: str) -> Callable[[Mapping[str, Any]], str]:
    """What fills ``text`` from a record; :class:`UsageError` where it is no template."""
    from string import Formatter

    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"--format {text!r}: {error}", hint="write {{ for a brace") from None
    for _, name, _, _ in parts:
        if name is not None and not name.replace("_", "").isalnum():
            raise UsageError(
                f"--format {text!r}: {{{name}}} names no field",
                hint="a field is a name in braces, such as {address} or {driver:<10}",
            )
    if not any(name for _, name, _, _ in parts):
        raise UsageError(
            f"--format {text!r} names no field",
            hint=f"a template such as '{{address}} {{driver}}', or one of {', '.join(ROWS)}",
        )
    return lambda record: "".join(
        literal + ("" if name is None else _filled(text, record, name, spec or "", conversion))
        for literal, name, spec, conversion in parts
    )


def _filled(
    text: str, record: Mapping[str, Any], name: str, spec: str, conversion: str | None
) -> str:
    if name not in record:
        known = ", ".join(record)
        raise UsageError(f"--format {text!r}: there is no field {name!r}", hint=f"fields: {known}")
    if "{" in spec or conversion:
        raise UsageError(
            f"--format {text!r}: {{{name}}} asks for more than a width",
            hint="after a colon: alignment and width, such as {driver:<10}",
        )
    value = record[name]
    if value is None or isinstance(value, bool):
        value = {None: "-", True: "yes", False: "no"}[value]
    try:
        return format(value, spec)
    except ValueError as error:
        raise UsageError(f"--format {text!r}: {{{name}:{spec}}}: {error}") from None
