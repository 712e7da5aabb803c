"""Mistakes that drivers make, for the guest's driver to make on purpose, and how to name writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.pci.capability.msix import Structure
from vfiokit.vmm.nvme_guest import Action, Moment, Space

_BAR, _MEMORY, _CONFIG = Space.BAR, Space.MEMORY, Space.CONFIG
_COMMAND: Final = 0x04
_DECODING, _MASTERING = 2, 4
_SQ1: Final = 0x1008
_QUEUES: Final = Moment.QUEUES
_ENTRIES: Final = 64

Build = Callable[[Structure, int], tuple[Action, ...]]
"""Makes the writes, from where the MSI-X table is and where BAR 0 ends."""


class Mistake(NamedTuple):
    """One of them."""

    title: str
    build: Build


def _always(*actions: Action) -> Build:
    return lambda _table, _end: actions


MISTAKES: Final[dict[str, Mistake]] = {
    "not-a-doorbell": Mistake(
        "ring queue 3 at BAR 0 + 0x120", _always(Action(_QUEUES, _BAR, 0x120, 1))
    ),
    "no-queue": Mistake(
        "ring the doorbell of queue 3, which was never created",
        _always(Action(_QUEUES, _BAR, 0x1018, 1)),
    ),
    "stride": Mistake(
        "ring queue 1 as if doorbells were 8 bytes apart",
        _always(Action(_QUEUES, _BAR, 0x1010, 1)),
    ),
    "out-of-range": Mistake(
        "write a tail that the queue does not have",
        _always(Action(_QUEUES, _BAR, _SQ1, _ENTRIES)),
    ),
    "nothing-new": Mistake(
        "write the tail that the queue has already",
        _always(Action(_QUEUES, _BAR, _SQ1, 0)),
    ),
    "narrow": Mistake(
        "write a doorbell with two bytes", _always(Action(_QUEUES, _BAR, _SQ1, 1, width=2))
    ),
    "not-enabled": Mistake(
        "ring queue 1 before the controller is enabled",
        _always(Action(Moment.PLACED, _BAR, _SQ1, 1)),
    ),
    "decoding-off": Mistake(
        "ring queue 1 while memory decoding is off",
        _always(
            Action(_QUEUES, _CONFIG, _COMMAND, _MASTERING),
            Action(_QUEUES, _BAR, _SQ1, 1),
            Action(_QUEUES, _CONFIG, _COMMAND, _DECODING | _MASTERING),
        ),
    ),
    "mastering-off": Mistake(
        "ring queue 1 while bus mastering is off",
        _always(
            Action(Moment.END, _CONFIG, _COMMAND, _DECODING),
            Action(Moment.END, _BAR, _SQ1, 63),
        ),
    ),
    "msix-page": Mistake(
        "ring a doorbell that lies in the MSI-X table",
        lambda table, _end: (Action(_QUEUES, _BAR, table.offset, 1),),
    ),
    "not-mapped": Mistake(
        "write just behind BAR 0", lambda _table, end: (Action(_QUEUES, _MEMORY, end, 1),)
    ),
    "read-only": Mistake("write the version register", _always(Action(_QUEUES, _BAR, 0x08, 1))),
    "too-late": Mistake(
        "move the admin queue while the controller runs",
        _always(Action(_QUEUES, _BAR, 0x28, 0x1000)),
    ),
}

_WRITE: Final = re.compile(
    r"(?P<space>bar0|config|gpa)\s*\+\s*(?P<address>\w+)\s*=\s*(?P<value>\w+)"
    r"(?:/(?P<width>[124]))?(?:@(?P<moment>\w+))?",
    re.IGNORECASE,
)
_SPACES: Final = {"bar0": Space.BAR, "config": Space.CONFIG, "gpa": Space.MEMORY}


def find_mistake(name: str) -> Mistake:
    """The mistake called so; :class:`UsageError` for none."""
    found = MISTAKES.get(name)
    if found is None:
        raise UsageError(
            f"there is no mistake {name!r}", hint=f"there are {', '.join(sorted(MISTAKES))}"
        )
    return found


def parse_write(text: str) -> Action:
    """A write such as ``bar0+0x120=1/4@queues``: where, what, bytes (4), moment (``queues``).

    Places are ``bar0``, ``config`` and ``gpa``; moments those of :class:`Moment`. Raises
    :class:`UsageError`.
    """
    found = _WRITE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no write", hint="such as bar0+0x1018=1@queues")
    space = _SPACES[found["space"].lower()]
    moment = found["moment"] or "queues"
    known = {each.name.lower(): each for each in Moment}
    if moment.lower() not in known:
        raise UsageError(f"there is no moment {moment!r}", hint=f"there are {', '.join(known)}")
    width = int(found["width"] or 4)
    address, value = _number(found["address"]), _number(found["value"])
    if address >= 1 << (64 if space is Space.MEMORY else 32) or value >= 1 << 8 * width:
        raise UsageError(f"{text!r}: {value:#x} at {address:#x} does not fit")
    if space is Space.CONFIG and (width != 4 or address % 4 or address >= 0x100):
        raise UsageError(f"{text!r}: configuration space is written in dwords, below 0x100")
    return Action(known[moment.lower()], space, address, value, width)


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is no number") from None
