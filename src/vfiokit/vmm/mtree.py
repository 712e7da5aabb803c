"""The text of ``info mtree -f``: a trap map written as QEMU writes it, and QEMU's text read.

Source: QEMU ``system/memory.c`` (``mtree_print_flatview``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from vfiokit.errors import FormatError
from vfiokit.vmm.trap_map import Access, FlatRange

_LINE = re.compile(
    r"^\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio (-?\d+), ([^)]*)\): (.*?)"
    r"(?: @([0-9a-f]{16,18}))?( KVM)?\s*$"
)
_VIEW = re.compile(r"^\s*FlatView #(\d+)")
_SPACE = re.compile(r'^\s*AS "([^"]*)", root: (.*)$')
_ROOT = re.compile(r"^\s*Root memory region: (.*)$")


class Line(NamedTuple):
    """One range of a flat view."""

    start: int
    last: int
    """The last address, as QEMU writes it."""
    kind: str
    """``ram``, ``ramd`` (mapped to a device), ``i/o`` (trapped), ``rom``, …"""
    name: str
    offset: int = 0
    """Where in the named region the range begins, in bytes."""
    mapped: bool = False
    """Whether the processor has a map of exactly this range (``KVM``)."""
    priority: int = 0

    @property
    def traps(self) -> bool:
        """Whether an access leaves the guest."""
        return self.kind not in ("ram", "ramd", "rom", "romd")

    @property
    def kind_and_name(self) -> str:
        """What is said of the addresses, without them."""
        return f"{self.kind}: {self.name}" + (f" @{self.offset:#x}" if self.offset else "")


class View(NamedTuple):
    """One flat view and the address spaces that it is of."""

    number: int
    spaces: tuple[str, ...]
    root: str
    lines: tuple[Line, ...]


def lines(flat: Iterable[FlatRange]) -> Iterator[Line]:
    """The ranges of a trap map as QEMU would list them."""
    for each in flat:
        mapped = each.access is not Access.TRAP and each.whole
        yield Line(each.start, each.end - 1, each.access.value, each.name, each.offset, mapped)


def render(flat: Iterable[FlatRange], *, view: int = 0, kvm: bool = True) -> str:
    """The text of one flat view; ``kvm`` marks what a processor maps."""
    head = [f"FlatView #{view}", ' AS "memory", root: system', " Root memory region: system"]
    body = [line_text(line, kvm=kvm) for line in lines(flat)]
    return "\n".join(head + (body or ["  No rendered FlatView"])) + "\n"


def line_text(line: Line, *, kvm: bool = True) -> str:
    """One line as QEMU writes it."""
    offset = f" @{line.offset:016x}" if line.offset else ""
    mark = " KVM" if line.mapped and kvm else ""
    return (
        f"  {line.start:016x}-{line.last:016x} (prio {line.priority}, {line.kind}): "
        f"{line.name}{offset}{mark}"
    )


def parse_line(text: str) -> Line | None:
    """One line of a flat view; ``None`` for any other text."""
    found = _LINE.match(text)
    if found is None:
        return None
    start, last, priority, kind, name, offset, mark = found.groups()
    if int(last, 16) < int(start, 16):
        return None
    # A slide of QEMU's own output has been seen with 18 digits here.
    at = int(offset, 16) if offset else 0
    return Line(int(start, 16), int(last, 16), kind, name, at, mark is not None, int(priority))


def parse(text: str) -> tuple[View, ...]:
    """Every flat view in what ``info mtree -f`` printed.

    Lines that belong to no view are ignored, as prompts and echoes are. Raises
    :class:`FormatError` when there is no view, or a view's ranges overlap.
    """
    views: list[View] = []
    for number, line in enumerate(text.splitlines(), 1):
        head = _VIEW.match(line)
        if head is not None:
            views.append(View(int(head[1]), (), "", ()))
            continue
        if not views:
            continue
        view = views[-1]
        space, root, found = _SPACE.match(line), _ROOT.match(line), parse_line(line)
        if space is not None:
            view = view._replace(spaces=(*view.spaces, space[1]))
        elif root is not None:
            view = view._replace(root=root[1])
        elif found is not None:
            if view.lines and found.start <= view.lines[-1].last:
                raise FormatError("a range begins before the last one ended", line=number)
            view = view._replace(lines=(*view.lines, found))
        views[-1] = view
    if not views:
        raise FormatError("there is no FlatView in this text", hint="print it by info mtree -f")
    return tuple(views)


def memory_view(views: Iterable[View]) -> View:
    """The view of the address space ``memory``: what processors see.

    Behind a bridge the same lines show again in views of other spaces. Raises
    :class:`FormatError` when it is not there.
    """
    for view in views:
        if "memory" in view.spaces:
            return view
    raise FormatError('no view is of the address space "memory"')


class Difference(NamedTuple):
    """Where two listings say otherwise of the same addresses."""

    start: int
    last: int
    one: Line | None
    other: Line | None


def differences(one: Iterable[Line], other: Iterable[Line]) -> list[Difference]:
    """Address by address, where kinds or names differ; order and priorities do not matter."""
    first, second = list(one), list(other)
    edges = sorted({edge for line in first + second for edge in (line.start, line.last + 1)})
    found: list[Difference] = []
    for start, end in pairwise(edges):
        a, b = _at(first, start), _at(second, start)
        if _says(a, start) == _says(b, start):
            continue
        last = found[-1] if found else None
        if last is not None and last.last + 1 == start and (last.one, last.other) == (a, b):
            found[-1] = last._replace(last=end - 1)
        else:
            found.append(Difference(start, end - 1, a, b))
    return found


def _at(listed: list[Line], address: int) -> Line | None:
    return next((line for line in listed if line.start <= address <= line.last), None)


def _says(line: Line | None, address: int) -> tuple[str, str, int] | None:
    if line is None:
        return None
    return line.kind, line.name, line.offset + address - line.start
