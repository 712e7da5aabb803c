"""``lspci -vvv`` output taken apart, knowing its form and nothing of any capability."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?= )")
_CAPABILITY = re.compile(r"\s+Capabilities: \[([0-9a-f]+)(?: v(\d+))?\] (.*)")
_LABEL = re.compile(r"([A-Za-z][\w/#]*(?:[ -][\w/#]+)*):(?=\s|$)")
_ROW = re.compile(r"([0-9a-f]{2,3}): ((?:[0-9a-f]{2} ?){16})\s*")
_CHANNEL = re.compile(r"(VC\d|Link\d|Entry \d+)$")
_FLAG = re.compile(r"(?<![\w<>-])([<>]?[A-Za-z0-9][\w./()-]*?):?([+-])(?=[\s,;)]|$)")


def flags(text: str) -> Iterator[tuple[str, bool]]:
    """``Name+`` and ``Name-``, also ``Name:+``, wherever they stand."""
    for name, sign in _FLAG.findall(text):
        yield name, sign == "+"


class Line(NamedTuple):
    """One labelled statement: ``LnkCtl`` and all that follows up to the next label."""

    label: str
    text: str


class Block(NamedTuple):
    """What lspci writes about one capability."""

    function: str
    offset: int
    version: int
    title: str
    """The rest of the first line."""
    lines: tuple[Line, ...]

    @property
    def extended(self) -> bool:
        return self.offset >= 0x100


def functions(dump: str) -> dict[str, bytes]:
    """Configuration bytes by address, of the hexadecimal rows of a ``lspci -xxx`` dump."""
    found: dict[str, bytes] = {}
    function = ""
    for line in dump.splitlines():
        head, row = _HEAD.match(line), _ROW.fullmatch(line)
        if head:
            function = address(head[0])
        elif row and function:
            found[function] = found.get(function, b"") + bytes.fromhex(row[2])
    return found


def address(text: str) -> str:
    """An address with its domain, which lspci leaves out where all are 0."""
    return text if text.count(":") == 2 else f"0000:{text}"


def blocks(text: str) -> Iterator[Block]:
    """The capabilities of every function in ``text``, in order."""
    function = ""
    current: Block | None = None
    pending: list[str] = []
    for line in [*text.splitlines(), ""]:
        head = _HEAD.match(line)
        match = _CAPABILITY.match(line)
        inside = re.match(r"\t\t|\s{10}", line) is not None and not match
        if current is not None and not inside:
            yield current._replace(lines=_lines(pending))
            current, pending = None, []
        if head:
            function = address(head[0])
        elif match:
            current = Block(function, int(match[1], 16), int(match[2] or 0), match[3], ())
        elif current is not None:
            pending.append(line)


def _lines(raw: list[str]) -> tuple[Line, ...]:
    found: list[Line] = []
    channel = ""
    for line in raw:
        text = line.strip()
        if not line.startswith(("\t\t\t", "\t\t ", " " * 17)):
            channel = ""
        match = _LABEL.match(text)
        if match and _CHANNEL.match(match[1]):
            channel = match[1] + " "
            inner = _LABEL.match(text[match.end() :].strip())
            if inner:
                text = text[match.end() :].strip()
                match = inner
            else:
                found.append(Line(match[1], text[match.end() :].strip()))
                continue
        if match:
            found.append(Line(channel + match[1], text[match.end() :].strip()))
        elif found:
            found[-1] = found[-1]._replace(text=f"{found[-1].text} {text}")
        else:
            found.append(Line("", text))
    return tuple(found)
