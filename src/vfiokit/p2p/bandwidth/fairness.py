"""Max-min fair sharing of many resources, by progressive filling.

All rates grow together; when a resource is full, the flows on it keep the rate they have, and the
others grow on. No flow can then get more without one getting less that has no more than it.
Source of the method: Bertsekas and Gallager, Data Networks, 2nd edition, §6.5.2; costs per unit
make it work for flows that use a resource in different amounts.

Any number type does: floats for speed, fractions for exact answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple


class Demand(NamedTuple):
    """What one flow asks for."""

    costs: Mapping[Any, Any]
    """Units of each resource that one unit of the flow's rate takes; positive."""
    bound: Any = None
    """The most that the flow takes by itself; ``None``: as much as there is."""


class Share(NamedTuple):
    """What one flow gets."""

    rate: Any
    """Infinite when nothing limits the flow."""
    limit: Hashable | None
    """The resource that is full; ``None`` when the flow's own bound limits it, or nothing."""


def max_min(capacities: Mapping[Any, Any], demands: Sequence[Demand]) -> list[Share]:
    """The max-min fair rates; ``KeyError`` for a cost on a resource without a capacity."""
    users: dict[Hashable, list[int]] = {}
    for index, demand in enumerate(demands):
        for resource in demand.costs:
            users.setdefault(resource, []).append(index)
    left = {resource: capacities[resource] for resource in users}
    weight = {
        resource: sum(demands[index].costs[resource] for index in found)
        for resource, found in users.items()
    }
    active = {resource: len(found) for resource, found in users.items()}
    bounded = sorted(
        (index for index, demand in enumerate(demands) if demand.bound is not None),
        key=lambda index: demands[index].bound,
        reverse=True,
    )
    shares: list[Share | None] = [None] * len(demands)
    level: Any = 0

    def freeze(index: int, limit: Hashable | None) -> None:
        shares[index] = Share(level, limit)
        for resource, cost in demands[index].costs.items():
            left[resource] -= cost * level
            weight[resource] -= cost
            active[resource] -= 1
            if not active[resource]:
                del active[resource]

    while True:
        while bounded and shares[bounded[-1]] is not None:
            bounded.pop()
        fullest = min(active, key=lambda each: left[each] / weight[each], default=None)
        reached = left[fullest] / weight[fullest] if fullest is not None else None
        bound = demands[bounded[-1]].bound if bounded else None
        if bound is not None and (reached is None or bound <= reached):
            level = max(level, bound)
            freeze(bounded.pop(), None)
        elif fullest is not None:
            level = max(level, reached)
            for index in users[fullest]:
                if shares[index] is None:
                    freeze(index, fullest)
        else:
            break
    return [share or Share(float("inf"), None) for share in shares]
