"""Where the requests of two functions of one machine meet, and what ACS takes from them.

Source: PCI Express Base Specification 6.0 §6.12 (a switch routes a request between its downstream
ports by address unless P2P Request Redirect sends it up), §2.2.4.1 (routing by address).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology

if TYPE_CHECKING:
    from vfiokit.isolation.group import Grouping
    from vfiokit.isolation.what_if import Change

_NAMED = 4


def between(topology: Topology, one: Function, other: Function) -> str:
    """Where they meet, in words: ``inside the switch 0000:01:00.0``, ``through the root …``."""
    if _device(topology, one) == _device(topology, other):
        return "inside their device"
    above = {bridge.bdf for bridge in topology.path_to_root(other)}
    for bridge in topology.path_to_root(one):
        if bridge.bdf in above:
            if bridge.port_type is PortType.UPSTREAM:
                return f"inside the switch {bridge.bdf}"
            return f"on the bus below {bridge.bdf}"
    top = topology.host_bridge_of(one)
    if top == topology.host_bridge_of(other):
        return f"inside the root complex ({top}), if it forwards between its ports"
    return "between root complexes, if they forward to each other"


def _device(topology: Topology, function: Function) -> tuple[int, int, int]:
    if function.physfn is not None and function.physfn in topology:
        function = topology[function.physfn]
    return function.bdf[:3]


def peers_lost(topology: Topology, changes: Iterable[Change]) -> tuple[str, ...]:
    """Which peers lose their direct path when these bits are enabled, a sentence each."""
    return tuple(text for change in changes for text in _lost_at(topology, change))


def open_ways(
    topology: Topology, grouping: Grouping, bdf: Bdf
) -> tuple[tuple[str, tuple[Bdf, ...]], ...]:
    """Ways past the IOMMU between ``bdf`` and functions of other groups, through its switch.

    For each a sentence with a full stop, and the functions on the other side.
    """
    own = grouping.of(bdf).id
    found = []
    for leak in grouping.leaks(topology):
        if own not in (*leak.groups, *leak.peer_groups):
            continue
        source, target = (leak.port, leak.peer)
        outward = own in leak.groups
        far = target if outward else source
        others = tuple(endpoints_below(topology, topology[far]))
        both = " and be reached by" if leak.mutual else ""
        verb = f"can still reach{both}" if outward else "can still be reached by"
        if leak.mutual and not outward:
            verb = "can still reach and be reached by"
        where = source if not leak.mutual else f"{source} and {target}"
        found.append(
            (
                f"{bdf} {verb} {_listed(list(others))} inside the switch {leak.switch}, until "
                f"Request Redirect is enabled at {where}.",
                others,
            )
        )
    return tuple(found)


def _lost_at(topology: Topology, change: Change) -> Iterator[str]:
    if not change.bits & Acs.REQUEST_REDIRECT:
        return
    function = topology[change.bdf]
    if function.port_type not in (PortType.ROOT_PORT, PortType.DOWNSTREAM):
        yield (
            f"Requests from {change.bdf} to other functions of its device go up to the root "
            "complex and through the IOMMU."
        )
        return
    inside = endpoints_below(topology, function)
    switch = topology.upstream_bridge(function)
    bus = topology.bus_of(function)
    beside: list[Bdf] = []
    if switch is not None and switch.port_type is PortType.UPSTREAM:
        for port in bus.functions:
            if port is not function:
                beside += endpoints_below(topology, port)
    if inside and beside:
        assert switch is not None
        yield (
            f"Peer-to-peer requests from {_listed(inside)} to {_listed(beside)} lose the direct "
            f"way inside the switch {switch.bdf}: they go up to the root complex and through the "
            "IOMMU, if the host bridge forwards them at all."
        )


def endpoints_below(topology: Topology, port: Function) -> list[Bdf]:
    """Physical functions below ``port`` that are no bridges."""
    bus = topology.secondary(port)
    found: list[Bdf] = []
    for function in bus.functions if bus is not None else ():
        if function.is_bridge:
            found += endpoints_below(topology, function)
        elif not function.is_virtual:
            found.append(function.bdf)
    return found


def _listed(bdfs: list[Bdf]) -> str:
    named = ", ".join(str(bdf) for bdf in bdfs[:_NAMED])
    return named + (f" and {len(bdfs) - _NAMED} more" if len(bdfs) > _NAMED else "")
