"""Flows: who moves data to whom; and how they are written down.

::

    A > B           A writes to B
    A < B           A reads from B
    A <> B          both at once, A being the one that asks
    A > memory      to the memory of its own socket; memory:1 is that of NUMA node 1
    A > B @100      at most 100 Gb/s
    A > B x4        four such flows

A and B are selectors. One that names several functions makes several flows: each of one side with
the one function of the other, or, where both sides are many, each on the left with the nearest on
the right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from vfiokit.errors import UsageError
from vfiokit.p2p.bandwidth.route import Memory
from vfiokit.pci.address import Bdf
from vfiokit.pci.selector import select
from vfiokit.pci.topology import Function, Topology

MAX_FLOWS = 16384
"""Most flows of one question."""

_HINT = "write 'A > B' (A writes to B), 'A < B' (A reads from B) or 'A <> B', in quotes"
_OPERATOR = re.compile(r"<>|>|<")
_TAIL = re.compile(r"(?:\s*@\s*(?P<rate>[0-9]*\.?[0-9]+))?(?:\s+[x×]\s*(?P<count>[0-9]{1,6}))?\s*$")
_MEMORY = re.compile(r"memory(?::([0-9]{1,4}))?", re.IGNORECASE)


class Kind(Enum):
    """What the source does."""

    WRITE = "write"
    READ = "read"


End = Bdf | Memory


class Flow(NamedTuple):
    """A stream of DMA by ``source``: the function that asks, whichever way the data go."""

    source: Bdf
    destination: End
    kind: Kind = Kind.WRITE
    demand: float | None = None
    """Gb/s of data that the flow takes at most; ``None``: as much as it gets."""

    def __str__(self) -> str:
        arrow = ">" if self.kind is Kind.WRITE else "<"
        asked = "" if self.demand is None else f" @{self.demand:g}"
        return f"{self.source} {arrow} {self.destination}{asked}"


def distance(topology: Topology, one: Function, other: Function) -> int:
    """Bridges on the way between two functions; those that share none are farthest."""
    above = [bridge.bdf for bridge in topology.path_to_root(one)]
    for count, bridge in enumerate(topology.path_to_root(other)):
        if bridge.bdf in above:
            return count + above.index(bridge.bdf)
    same_root = topology.host_bridge_of(one) == topology.host_bridge_of(other)
    same_node = one.recorded.numa_node == other.recorded.numa_node
    return 1000 + (0 if same_root else 1000) + (0 if same_node else 10_000)


def parse_flows(
    topology: Topology,
    texts: Sequence[str],
    *,
    names: Mapping[str, Bdf] | None = None,
    all_pairs: bool = False,
) -> list[Flow]:
    """The flows that ``texts`` describe; ``names`` are further names of functions.

    ``all_pairs`` joins every function of the left with every one of the right. Raises
    :class:`UsageError` for a text that is no flow, and what
    :func:`~vfiokit.pci.selector.select` raises.
    """

    def find(text: str) -> tuple[Function, ...]:
        if names and text in names:
            return (topology[names[text]],)
        found = tuple(item for item in select(topology, text) if not item.is_bridge)
        if not found:
            raise UsageError(f"{text!r} names bridges only, which move no data of their own")
        return found

    flows: list[Flow] = []
    for text in texts:
        flows += _parse(topology, text, find, all_pairs=all_pairs)
        if len(flows) > MAX_FLOWS:
            raise UsageError(f"more than {MAX_FLOWS} flows")
    return flows


def _parse(
    topology: Topology, text: str, find: Callable[[str], tuple[Function, ...]], *, all_pairs: bool
) -> list[Flow]:
    operators = list(_OPERATOR.finditer(text))
    if len(operators) != 1:
        raise UsageError(f"{text!r} is no flow", hint=_HINT)
    operator = operators[0]
    left, rest = text[: operator.start()].strip(), text[operator.end() :]
    tail = _TAIL.search(rest)
    assert tail is not None  # it matches nothing at all, too
    right = rest[: tail.start()].strip()
    if not left or not right or "@" in right:
        raise UsageError(f"{text!r} is no flow", hint=_HINT)
    if _MEMORY.fullmatch(left):
        raise UsageError(
            f"{text!r}: memory asks for nothing by itself",
            hint="turn it round: 'A < memory' is A reading from memory",
        )
    demand = float(tail["rate"]) if tail["rate"] else None
    count = int(tail["count"]) if tail["count"] else 1
    if demand == 0 or not 1 <= count <= MAX_FLOWS:
        raise UsageError(f"{text!r}: a rate and a number of flows are at least above 0")
    kinds = {">": (Kind.WRITE,), "<": (Kind.READ,), "<>": (Kind.WRITE, Kind.READ)}
    pairs = _pairs(topology, text, find(left), _destinations(right, find), all_pairs=all_pairs)
    return [
        Flow(source, destination, kind, demand)
        for source, destination in pairs
        for kind in kinds[operator.group()]
        for _ in range(count)
    ]


def _destinations(
    text: str, find: Callable[[str], tuple[Function, ...]]
) -> tuple[Function, ...] | Memory:
    memory = _MEMORY.fullmatch(text)
    if memory is not None:
        return Memory(int(memory[1]) if memory[1] else None)
    return find(text)


def _pairs(
    topology: Topology,
    text: str,
    left: tuple[Function, ...],
    right: tuple[Function, ...] | Memory,
    *,
    all_pairs: bool,
) -> list[tuple[Bdf, End]]:
    if isinstance(right, Memory):
        return [(source.bdf, right) for source in left]
    if all_pairs or len(left) == 1 or len(right) == 1:
        pairs = [(one, other) for one in left for other in right if one.bdf != other.bdf]
    else:
        pairs = _nearest(topology, left, right)
    if not pairs:
        raise UsageError(f"{text!r} joins a function with itself")
    return [(one.bdf, other.bdf) for one, other in pairs]


def _nearest(
    topology: Topology, left: tuple[Function, ...], right: tuple[Function, ...]
) -> list[tuple[Function, Function]]:
    """Each on the left with the nearest on the right, of equally near ones with the least used."""
    used = {other.bdf: 0 for other in right}
    pairs: list[tuple[Function, Function]] = []
    for one in left:
        candidates = [other for other in right if other.bdf != one.bdf]
        if not candidates:
            continue
        chosen = min(
            candidates,
            key=lambda other: (distance(topology, one, other), used[other.bdf], other.bdf),
        )
        used[chosen.bdf] += 1
        pairs.append((one, chosen))
    return pairs
