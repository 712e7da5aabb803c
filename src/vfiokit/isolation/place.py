"""Slots of a machine, and the group that a card would have in each.

Source: PCI Express Base Specification 6.0 §7.5.3.2 (Slot Implemented) and §7.5.3.6 (Link
Capabilities); the groups come from predicting the machine after the move.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.isolation.group import predict
from vfiokit.isolation.platform import Platform
from vfiokit.isolation.what_if import PORTS, hierarchy
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import CAPABILITIES, LINK_CAPABILITIES, SPEEDS
from vfiokit.pci.edit import EditError, moved, without
from vfiokit.pci.topology import Function, Topology


class Place(NamedTuple):
    """A slot, with what it would mean for a card."""

    port: Bdf
    """The port above the slot."""
    link: str
    """What its link can do: ``x16 8 GT/s``; empty when unknown."""
    occupant: Bdf | None
    """Who sits there now."""
    members: tuple[Bdf, ...]
    """The card's group there, by new addresses."""

    @property
    def size(self) -> int:
        """How many functions share that group."""
        return len(self.members)


def has_slot(port: Function) -> bool | None:
    """Whether a connector hangs from ``port``; ``None`` when its registers do not tell."""
    if port.express is None:
        return None
    try:
        return bool(port.express.field(CAPABILITIES, "slot_implemented"))
    except ConfigRangeError:
        return None


def places(topology: Topology, bdf: Bdf, *, platform: Platform) -> tuple[Place, ...]:
    """The other slots that the card of ``bdf`` could go to; empty ones first, then by port.

    Nothing where the card is soldered, or no part that can move at all.
    """
    function = topology[bdf]
    above = topology.upstream_bridge(function)
    if above is None or has_slot(above) is not True:
        return ()
    found = [place for port in topology for place in _place(topology, bdf, port, platform)]
    return tuple(sorted(found, key=lambda place: (place.occupant is not None, place.port)))


def _place(topology: Topology, bdf: Bdf, port: Function, platform: Platform) -> Iterator[Place]:
    if port.port_type not in PORTS or has_slot(port) is not True:
        return
    bus = topology.secondary(port)
    occupant = bus.functions[0].bdf if bus is not None and bus.functions else None
    try:
        cleared = (
            without(topology, [occupant, *_beside(topology, occupant)]) if occupant else topology
        )
        move = moved(cleared, bdf, port.bdf)
    except (EditError, LookupError):
        return
    new = move.addresses.get(bdf, bdf)
    part = hierarchy(move.topology, move.topology[new])
    grouping = predict(part, platform=platform)
    if new not in grouping.uncertain:
        yield Place(port.bdf, _link(port), occupant, grouping.of(new).members)


def _beside(topology: Topology, bdf: Bdf) -> list[Bdf]:
    return [each.bdf for each in topology.bus_of(topology[bdf]).functions]


def _link(port: Function) -> str:
    if port.express is None:
        return ""
    try:
        width = port.express.field(LINK_CAPABILITIES, "max_width")
        speed = port.express.field(LINK_CAPABILITIES, "max_speed")
    except ConfigRangeError:
        return ""
    return f"x{width} {SPEEDS[speed]}" if speed in SPEEDS else f"x{width}"
