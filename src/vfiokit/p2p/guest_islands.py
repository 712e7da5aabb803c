"""A tree that says who reaches whom, not what the host looks like.

Linux in a guest trusts two things: peers below one switch without redirection, and processors or
host bridges that it knows, which an emulated one is not. So functions that do reach one another on
the host, through its switches or its root complex, are put below one emulated switch; the address
that a guest uses for a peer is the same either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vfiokit.p2p.guest import (
    QEMU,
    GuestPlan,
    Machine,
    Names,
    Variant,
    Viommu,
    flat,
    host_nodes,
    named,
    share_devices,
    stand_in,
)
from vfiokit.p2p.guest_clique import partition
from vfiokit.p2p.guest_tree import (
    FIRST_EXPANDER_BUS,
    expander,
    next_expander_bus,
    switch_limits,
)
from vfiokit.p2p.guest_verdict import Pair
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    Blueprint,
    DownstreamPort,
    Endpoint,
    HostBridge,
    RootPort,
    Switch,
)
from vfiokit.pci.topology import Function, Topology

MAX_PORTS = 32
"""Downstream ports of a switch: device numbers of its bus."""


def islands(
    topology: Topology,
    functions: Sequence[Function],
    pairs: Sequence[Pair],
    *,
    machine: Machine = QEMU,
    viommu: Viommu = Viommu.NONE,
    numa: bool = True,
) -> GuestPlan:
    """A switch for each set of functions that all reach one another, the largest first.

    ``pairs`` are of :func:`vfiokit.p2p.guest_verdict.compare`, for any plan of ``functions``. The
    rest gets a root port each. Raises :class:`~vfiokit.errors.UsageError`.
    """
    if not machine.ports:
        return flat(functions, machine=machine, viommu=viommu)
    assigned = named(functions)
    works = {frozenset((pair.one, pair.other)) for pair in pairs if pair.works}
    parts = partition(list(assigned.values()), lambda one, other: frozenset((one, other)) in works)
    alone = [bdf for bdf in assigned.values() if not any(bdf in part for part in parts)]
    nodes = host_nodes(topology, functions) if numa else ()
    placed: dict[int, list[tuple[Bdf, ...]]] = {}
    limits = list(switch_limits(functions)) if parts else []
    for part in (*parts, *((bdf,) for bdf in alone)):
        found = host_nodes(topology, [topology[bdf] for bdf in part])
        if numa and len(found) > 1:
            listed = ", ".join(map(str, part))
            limits.append(
                f"{listed} reach one another across NUMA nodes; the guest has them on one"
            )
        placed.setdefault(found[0] if found and numa else -1, []).append(part)
    names = {bdf: name for name, bdf in assigned.items()}
    bridges = tuple(_host_bridges(placed, names))
    numbers = {
        f"pxb{number}": nodes.index(node)
        for number, node in enumerate(sorted(placed))
        if node in nodes
    }
    blueprint = Blueprint((HostBridge("hb0"), *bridges))
    blueprint.places()
    return GuestPlan(
        Variant.ISLANDS, blueprint, assigned, {}, machine, viommu, numbers, nodes, tuple(limits)
    )


def _host_bridges(
    placed: Mapping[int, Sequence[tuple[Bdf, ...]]], names: Mapping[Bdf, str]
) -> Iterator[HostBridge]:
    given = Names()
    bus = FIRST_EXPANDER_BUS
    for node in sorted(placed):
        ports = tuple(_root_port(part, names, given) for part in placed[node])
        bridge = expander(given.next("pxb"), share_devices(ports, given), bus)
        yield bridge
        bus = next_expander_bus(bridge)


def _root_port(part: tuple[Bdf, ...], names: Mapping[Bdf, str], given: Names) -> RootPort:
    port = given.next("rp")
    if len(part) == 1:
        return RootPort(port, stand_in(names[part[0]]))
    return RootPort(port, _switch([names[bdf] for bdf in part], given))


def _switch(members: Sequence[str], given: Names) -> Switch:
    """A switch with a port for each; switches below it where it has too few."""
    switch = given.next("sw")
    below: list[Endpoint | Switch] = [stand_in(name) for name in members]
    if len(members) > MAX_PORTS:
        below = [
            _switch(members[start : start + MAX_PORTS], given)
            for start in range(0, len(members), MAX_PORTS)
        ]
    ports = tuple(DownstreamPort(f"{switch}.{number}", child) for number, child in enumerate(below))
    return Switch(switch, ports)
