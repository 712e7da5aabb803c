"""Hold predicted groups against the groups that the machine's own kernel recorded."""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.isolation.group import Grouping
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Topology


class Difference(NamedTuple):
    """One recorded group that was not predicted as it is."""

    recorded_id: int
    recorded: tuple[Bdf, ...]
    predicted: tuple[tuple[Bdf, ...], ...]
    """The predicted groups that hold any of these functions."""

    def text(self) -> str:
        """One sentence with a full stop."""
        sides = " and ".join(_listed(group) for group in self.predicted)
        return f"Group {self.recorded_id} is {_listed(self.recorded)}; predicted was {sides}."


class Comparison(NamedTuple):
    """How many recorded groups were predicted with exactly their members."""

    total: int
    """Groups recorded; 0 when the source carries none."""
    agree: int
    differences: tuple[Difference, ...]


def compare(grouping: Grouping, topology: Topology) -> Comparison:
    """Compare group for group, as sets of functions; ids do not count.

    Functions without a recorded group take no part, on either side.
    """
    recorded: dict[int, list[Bdf]] = {}
    for function in topology:
        number = function.recorded.iommu_group
        if number is not None:
            recorded.setdefault(number, []).append(function.bdf)
    known = {bdf for members in recorded.values() for bdf in members}
    differences: list[Difference] = []
    for number in sorted(recorded):
        members = tuple(sorted(recorded[number]))
        groups = {group.id: group for group in map(grouping.of, members)}
        predicted = tuple(
            tuple(bdf for bdf in groups[each].members if bdf in known) for each in sorted(groups)
        )
        if predicted != (members,):
            differences.append(Difference(number, members, predicted))
    return Comparison(len(recorded), len(recorded) - len(differences), tuple(differences))


def _listed(members: tuple[Bdf, ...]) -> str:
    return "{" + ", ".join(str(bdf) for bdf in members) + "}"
