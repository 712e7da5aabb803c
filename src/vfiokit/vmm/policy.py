"""What a virtual machine traps, translates and injects: the knobs of the plans.

A policy is asked for wishes on top of those that a function states by itself, so it can override
any of them; see :class:`~vfiokit.vmm.trap_map.Strength` for which wish beats which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from vfiokit.vmm.trap_map import Handler, Wish


class Delivery(Enum):
    """How an interrupt of a device reaches the guest."""

    POSTED = "posted"
    """By hardware: no exit for the interrupt, for the end of it, or for HLT."""
    INJECTED = "injected"
    """By software: an exit for each of the three."""
    UNTOUCHED = "untouched"
    """Not at all: the guest programs the device's own table, and messages go to the host."""


class PlacedBar(NamedTuple):
    """A BAR where the guest put it, as a policy sees it."""

    device: str
    index: int  # type: ignore[assignment]  # tuple.index is not missed
    gpa: int
    size: int
    registers: Handler
    """All of it by system calls: what a trap goes to."""
    windows: tuple[tuple[int, int, Handler], ...]
    """What can be mapped: ``(offset, length, handler)``; a handler's offset 0 is the window's."""


@dataclass(frozen=True)
class Policy:
    """The usual policy, and base of others."""

    name: str = "assignment"
    translate: bool = True
    """Whether the IOMMU maps guest-physical addresses to the guest's memory."""
    delivery: Delivery = Delivery.POSTED

    def wishes(self, bar: PlacedBar) -> Iterable[Wish]:
        """What it wants beyond the function's own wishes."""
        del bar
        return ()
