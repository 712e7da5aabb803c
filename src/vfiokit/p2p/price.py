"""What a changed machine costs in isolation: IOMMU groups that come out differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vfiokit.isolation.group import predict
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Topology

_SHOWN = 4


class Regrouping(NamedTuple):
    """Functions whose groups are not what they were: a closed set on both sides."""

    before: tuple[tuple[Bdf, ...], ...]
    after: tuple[tuple[Bdf, ...], ...]
    """Addresses as they are after the change."""

    def text(self) -> str:
        """One sentence without a full stop; of many groups the first and the last are named."""
        noun = "group" if len(self.before) == 1 else f"{len(self.before)} groups"
        if len(self.after) == 1 and len(self.before) > 1:
            return f"{noun} would be one: {_listed(self.before)}"
        return f"{noun} {_listed(self.before)} would be {_listed(self.after) or 'gone'}"


class Price(NamedTuple):
    """Every difference in groups; empty when isolation stays as it is."""

    regroupings: tuple[Regrouping, ...]
    leaks: tuple[str, ...]
    """Groups that Linux would still call apart although a switch lets them reach each other, as
    sentences; only those that the change brings."""


def price(before: Topology, after: Topology, addresses: Mapping[Bdf, Bdf] | None = None) -> Price:
    """Predict the groups of both machines and compare them.

    ``addresses`` maps old to new addresses where functions moved.
    """
    renamed = addresses or {}
    old, new = predict(before), predict(after)
    ours = [tuple(group.members) for group in old.groups]
    theirs = [tuple(group.members) for group in new.groups]
    # By ports: the numbers of groups that a leak is about shift when any group changes.
    leaks = {
        (renamed.get(leak.port, leak.port), renamed.get(leak.peer, leak.peer), leak.mutual)
        for leak in old.leaks()
    }
    fresh = tuple(
        leak.text() for leak in new.leaks() if (leak.port, leak.peer, leak.mutual) not in leaks
    )
    return Price(tuple(_compare(ours, theirs, renamed)), fresh)


def _compare(
    ours: list[tuple[Bdf, ...]], theirs: list[tuple[Bdf, ...]], renamed: Mapping[Bdf, Bdf]
) -> list[Regrouping]:
    """Groups that differ, joined into the smallest sets that are the same on both sides."""
    moved = {group: frozenset(renamed.get(bdf, bdf) for bdf in group) for group in ours}
    kept = set(moved.values()) & {frozenset(group) for group in theirs}
    home = {bdf: group for group, members in moved.items() for bdf in members}
    away = {bdf: group for group in theirs for bdf in group}
    found: list[Regrouping] = []
    done: set[Bdf] = set()
    for first in theirs:
        if frozenset(first) in kept or first[0] in done:
            continue
        befores: set[tuple[Bdf, ...]] = set()
        afters: set[tuple[Bdf, ...]] = set()
        waiting = list(first)
        while waiting:
            bdf = waiting.pop()
            if bdf in done:
                continue
            done.add(bdf)
            if bdf in home:
                befores.add(home[bdf])
                waiting += moved[home[bdf]]
            if bdf in away:
                afters.add(away[bdf])
                waiting += away[bdf]
        found.append(Regrouping(tuple(sorted(befores)), tuple(sorted(afters))))
    return found


def _listed(groups: tuple[tuple[Bdf, ...], ...]) -> str:
    shown = [_members(group) for group in groups]
    if len(shown) > _SHOWN:
        return f"{', '.join(shown[: _SHOWN - 1])} … {shown[-1]}"
    return " and ".join(shown)


def _members(group: tuple[Bdf, ...]) -> str:
    words = [str(bdf) for bdf in group]
    if len(words) > _SHOWN:
        words = [*words[: _SHOWN - 1], f"{len(words) - _SHOWN + 1} more"]
    return "{" + ", ".join(words) + "}"
