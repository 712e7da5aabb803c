"""``vfiokit watch``: hotplug, drivers, links, errors and power, as they happen."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vfiokit.host.observation import Event
    from vfiokit.host.uevent import UeventSource
    from vfiokit.host.watch import Watcher
    from vfiokit.pci.address import Bdf

DESCRIPTION = """\
Follow a host's PCI functions: what comes and goes, drivers that bind and unbind, VFIO
device nodes, virtual functions, link speed and width, power states, and errors that the
devices report (AER). The kernel's uevents are heard at once; what has no uevent is looked
at every --interval seconds. Nothing is changed, and no sleeping device is woken up.
"""
EPILOG = """\
examples:
  vfiokit watch
  vfiokit watch 05:00.0 --interval 0.2
  vfiokit watch --json --for 60 | jq 'select(.kind == "aer")'

On a terminal a table is drawn; piped, each event is a line, with --json a JSON object
(vfiokit/watch-event/v1) each.

exit codes: 0 after --count or --for, 130 when stopped with Ctrl-C
"""

_RECENT = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="functions to follow; all")
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="between looks (default 1)"
    )
    parser.add_argument("--count", type=_count, metavar="N", help="stop after N events")
    parser.add_argument(
        "--for", dest="duration", type=_seconds, metavar="SECONDS", help="stop after that time"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 1e9 seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of events")
    return value


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Follow and print until told to stop."""
    from vfiokit.host.watch import Watcher

    chosen = _chosen(arguments.devices, session)
    output = Output(json=arguments.json)
    source, silence = _source(session)
    try:
        watcher = Watcher(session.tree, source, chosen)
        told = "only looking, every" if silence else "hearing uevents, and looking every"
        note(f"watching {len(watcher.state.functions)} functions, {told} {arguments.interval:g} s"
             + (f" ({silence})" if silence else ""))  # fmt: skip
        batches = _batches(watcher, arguments)
        if output.terminal and not output.json:
            _draw(output, watcher, batches)
        else:
            _print(output, session.host, batches)
    finally:
        source.close()
    return exit_code.DONE


def _chosen(texts: list[str], session: Session) -> frozenset[Bdf] | None:
    """Addresses to follow. An address may be named before its function is there."""
    from vfiokit.errors import AddressError
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.selector import select

    if not texts:
        return None
    topology = session.topology()
    found: set[Bdf] = set()
    for text in texts:
        try:
            found.add(Bdf.parse(text))
        except AddressError:
            found.update(function.bdf for function in select(topology, text))
    return frozenset(found)


def _source(session: Session) -> tuple[UeventSource, str]:
    """Where uevents come from, and why there are none."""
    from vfiokit.errors import SourceError
    from vfiokit.host.tree import FolderTree
    from vfiokit.host.uevent_socket import NoUevents, UeventSocket
    from vfiokit.host.watch import why_silent

    tree = session.tree
    if not (isinstance(tree, FolderTree) and tree.root == "/" and not tree.prefix):
        return NoUevents(), "this is not the running host"
    silence = why_silent(tree)
    if silence:
        return NoUevents(), silence
    try:
        return UeventSocket(), ""
    except SourceError as error:
        return NoUevents(), str(error)


def _batches(watcher: Watcher, arguments: argparse.Namespace) -> Iterator[list[Event]]:
    """Events as they come; stops after ``--for`` or ``--count``."""
    deadline = None if arguments.duration is None else time.monotonic() + arguments.duration
    left = arguments.count
    for events in watcher.follow(arguments.interval, deadline):
        yield events if left is None else events[:left]
        if left is not None:
            left -= len(events)
            if left <= 0:
                return


def _now() -> str:
    from datetime import datetime

    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def _print(output: Output, host: str, batches: Iterator[list[Event]]) -> None:
    import sys

    for events in batches:
        for event in events:
            if output.json:
                body = {"time": _now(), **event._asdict()}
                output.document("watch-event", host, body, one_line=True)
            else:
                output.line(f"{_now()}  {event.subject:<12}  {event.kind:<12}  {event.text}")
        if events:
            sys.stdout.flush()  # whoever reads the pipe wants it now


def _draw(output: Output, watcher: Watcher, batches: Iterator[list[Event]]) -> None:
    from rich.live import Live

    recent: deque[tuple[str, Event]] = deque(maxlen=_RECENT)
    totals: dict[str, dict[str, int]] = {}
    with Live(_table(recent, totals, watcher), console=output.console, auto_refresh=False) as live:
        for events in batches:
            for event in events:
                recent.append((_now()[11:23], event))
                counts = totals.setdefault(event.subject, {})
                counts[event.kind] = counts.get(event.kind, 0) + 1
            live.update(_table(recent, totals, watcher), refresh=True)


def _table(
    recent: deque[tuple[str, Event]], totals: dict[str, dict[str, int]], watcher: Watcher
) -> RenderableType:
    """Recent events above, and below what happened to whom, with error counters."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    events = Table("TIME", "SUBJECT", "KIND", "EVENT", box=box.SIMPLE_HEAD, pad_edge=False)
    for when, event in recent:
        events.add_row(when, event.subject, event.kind, escape(event.text))
    counts = Table("SUBJECT", "DRIVER", "LINK", "EVENTS", "ERRORS", box=box.SIMPLE_HEAD,
                   pad_edge=False)  # fmt: skip
    states = {str(bdf): state for bdf, state in watcher.state.functions.items()}
    for subject in sorted({*totals, *(name for name, state in states.items() if state.errors)}):
        state = states.get(subject)
        counts.add_row(
            subject,
            (state.driver if state else None) or "-",
            (state.link if state else None) or "-",
            ", ".join(f"{kind} {count}" for kind, count in totals.get(subject, {}).items()) or "-",
            str(sum(state.errors.values())) if state else "-",
        )
    return Group(events, counts)
