"""Groups of one machine at two times, or of two machines: which merged, which split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vfiokit.host.match import Matching
from vfiokit.isolation.group import predict
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Topology


class Regrouping(NamedTuple):
    """Functions whose groups were drawn differently; addresses are those of the first machine."""

    before: tuple[tuple[Bdf, ...], ...]
    """The groups that hold them in the first, each in address order."""
    after: tuple[tuple[Bdf, ...], ...]
    """And in the second."""

    @property
    def kind(self) -> str:
        """``merged``, ``split``, or ``redrawn`` when it is neither alone."""
        if len(self.after) == 1:
            return "merged"
        return "split" if len(self.before) == 1 else "redrawn"

    def text(self) -> str:
        """``merged: 0000:03:00.0 | 0000:04:00.0 → 0000:03:00.0 0000:04:00.0``, long lists cut."""
        return f"{self.kind}: {_sides(self.before)} → {_sides(self.after)}"


_SHOWN = 4


class GroupChanges(NamedTuple):
    """What the kernels recorded and what is predicted, each compared with its like."""

    recorded: tuple[Regrouping, ...]
    """Empty also where either side recorded none."""
    predicted: tuple[Regrouping, ...]
    uncertain: int
    """Functions left out of the prediction, for lack of bytes on either side."""
    recorded_in: tuple[bool, bool]
    """Which sides have recorded groups at all."""


def group_changes(before: Topology, after: Topology, matching: Matching) -> GroupChanges:
    """Compare the groups of two machines over the functions that both have."""
    addresses = [(one.bdf, other.bdf) for one, other in matching.pairs]
    recorded = _recorded(before), _recorded(after)
    predicted = []
    unsure = []
    for topology in (before, after):
        grouping = predict(topology)
        predicted.append({bdf: group.id for group in grouping.groups for bdf in group.members})
        unsure.append(set(grouping.uncertain))
    certain = [
        (one, two) for one, two in addresses if one not in unsure[0] and two not in unsure[1]
    ]
    return GroupChanges(
        regrouped(*recorded, addresses),
        regrouped(predicted[0], predicted[1], certain),
        len(addresses) - len(certain),
        (bool(recorded[0]), bool(recorded[1])),
    )


def _recorded(topology: Topology) -> dict[Bdf, int]:
    groups = {function.bdf: function.recorded.iommu_group for function in topology}
    return {bdf: group for bdf, group in groups.items() if group is not None}


def _sides(groups: tuple[tuple[Bdf, ...], ...]) -> str:
    shown = " | ".join(_members(group) for group in groups[:_SHOWN])
    left = len(groups) - _SHOWN
    return f"{shown} | {left} more groups" if left > 0 else shown


def _members(group: tuple[Bdf, ...]) -> str:
    shown = " ".join(map(str, group[:_SHOWN]))
    left = len(group) - _SHOWN
    return f"{shown} and {left} more" if left > 0 else shown


def regrouped(
    before: Mapping[Bdf, int], after: Mapping[Bdf, int], pairs: Iterable[tuple[Bdf, Bdf]]
) -> tuple[Regrouping, ...]:
    """Compare two groupings, given as group numbers, over the functions that both have.

    ``pairs`` are the addresses of each function in the first and in the second. Numbers do not
    count, nor do functions that one side has not.
    """
    places = [
        (one, before[one], after[two]) for one, two in pairs if one in before and two in after
    ]
    mine: dict[int, set[Bdf]] = {}
    theirs: dict[int, set[Bdf]] = {}
    numbers: dict[Bdf, tuple[int, int]] = {}
    for bdf, left, right in places:
        mine.setdefault(left, set()).add(bdf)
        theirs.setdefault(right, set()).add(bdf)
        numbers[bdf] = (left, right)
    found: list[Regrouping] = []
    seen: set[Bdf] = set()
    for bdf, left, right in sorted(places):
        if bdf in seen or mine[left] == theirs[right]:
            continue
        together = _connected(bdf, mine, theirs, numbers)
        seen |= together
        found.append(
            Regrouping(
                _groups(mine[numbers[each][0]] for each in together),
                _groups(theirs[numbers[each][1]] for each in together),
            )
        )
    return tuple(found)


def _groups(groups: Iterable[set[Bdf]]) -> tuple[tuple[Bdf, ...], ...]:
    return tuple(sorted({tuple(sorted(group)) for group in groups}))


def _connected(
    start: Bdf,
    mine: Mapping[int, set[Bdf]],
    theirs: Mapping[int, set[Bdf]],
    numbers: Mapping[Bdf, tuple[int, int]],
) -> set[Bdf]:
    """Everything reached from ``start`` by going from group to overlapping group."""
    found: set[Bdf] = set()
    waiting = {start}
    while waiting:
        bdf = waiting.pop()
        found.add(bdf)
        left, right = numbers[bdf]
        waiting |= (mine[left] | theirs[right]) - found
    return found
