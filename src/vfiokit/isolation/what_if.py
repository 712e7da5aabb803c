"""Groups of a machine that is not there yet: the same prediction, on an edited topology.

Nothing here goes by rules of thumb. A change counts for what :func:`vfiokit.isolation.predict` says
of the machine after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vfiokit.isolation.acs import AcsReason, AcsVerdict, enabled
from vfiokit.isolation.group import predict
from vfiokit.isolation.platform import Platform
from vfiokit.isolation.quirk import REQUIRED, VMD_FIRST_DOMAIN
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.edit import EditError, with_acs_capability, with_acs_control
from vfiokit.pci.topology import Function, Topology

PORTS = frozenset({PortType.ROOT_PORT, PortType.DOWNSTREAM})
"""Port types that lead to a link of their own."""


class Change(NamedTuple):
    """ACS as it could be at one function."""

    bdf: Bdf
    bits: Acs
    """Bits to enable beside those that are enabled now."""
    new_capability: bool = False
    """Whether the function has no ACS capability yet."""


class Found(NamedTuple):
    """The least that makes a group as small as it can be."""

    changes: tuple[Change, ...]
    """Empty where no change helps."""
    members: tuple[Bdf, ...]
    """The group of the function then, in address order."""
    topology: Topology
    """The machine after the changes, as far as it matters for the group."""


def hierarchy(topology: Topology, function: Function) -> Topology:
    """The part of ``topology`` that can decide the group of ``function``: its host bridge's.

    Everything where a volume management device joins hierarchies.
    """
    if any(bridge.domain >= VMD_FIRST_DOMAIN for bridge in topology.host_bridges):
        return topology
    top = topology.host_bridge_of(function)
    kept = [each for each in topology if topology.host_bridge_of(each) == top]
    return type(topology)(kept, [(top.domain, top.bus)])


def members(
    topology: Topology, bdf: Bdf, *, platform: Platform, quirks: bool = True
) -> tuple[Bdf, ...]:
    """The predicted group of ``bdf``."""
    return predict(topology, platform=platform, quirks=quirks).of(bdf).members


def applied(topology: Topology, changes: Iterable[Change]) -> Topology:
    """``topology`` after ``changes``; :class:`~vfiokit.pci.edit.EditError` where one cannot be."""
    enable = {}
    offer = {}
    for change in changes:
        if change.new_capability:
            offer[change.bdf] = change.bits
        else:
            enable[change.bdf] = topology[change.bdf].acs_control | change.bits
    if enable:
        topology = with_acs_control(topology, enable)
    return with_acs_capability(topology, offer) if offer else topology


def least(
    topology: Topology, bdf: Bdf, candidates: Sequence[Change], *, platform: Platform
) -> Found:
    """The least of ``candidates`` that does for the group of ``bdf`` what all of them would.

    Enabling more ACS never makes a group larger, so leaving out one after the other what is not
    needed ends with a set of which every part is; the first in the list are left out first.
    """
    now = members(topology, bdf, platform=platform)
    if not candidates:
        return Found((), now, topology)
    goal = members(applied(topology, candidates), bdf, platform=platform)
    if goal == now:
        return Found((), now, topology)
    kept = list(candidates)
    for candidate in candidates:
        fewer = [each for each in kept if each is not candidate]
        if members(applied(topology, fewer), bdf, platform=platform) == goal:
            kept = fewer
    kept.sort()
    return Found(tuple(kept), goal, applied(topology, kept))


def concerned(topology: Topology, group: Iterable[Bdf], bdf: Bdf) -> tuple[Function, ...]:
    """Functions whose ACS may matter for the group of ``bdf``, those nearest to it last."""
    found: dict[Bdf, Function] = {}
    for member in (*group, bdf):
        function = topology[member]
        for each in (
            *topology.slot(function),
            function,
            *reversed(topology.path_to_root(function)),
        ):
            found.setdefault(each.bdf, each)
    own = topology[bdf]
    near = [own.bdf, *(bridge.bdf for bridge in topology.path_to_root(own))]
    far = [each for each in found.values() if each.bdf not in near]
    return (*reversed(far), *(found[each] for each in reversed(near)))


def enabling(
    topology: Topology, functions: Iterable[Function], *, platform: Platform
) -> tuple[Change, ...]:
    """What could be enabled: required bits that these functions offer and do not enforce."""
    found = []
    for function in functions:
        verdict = enabled(topology, function, platform=platform)
        bits = verdict.why.missing & function.acs_capability
        if verdict.why.reason is AcsReason.CONTROL and bits:
            found.append(Change(function.bdf, bits))
    return tuple(found)


def equipping(
    topology: Topology, functions: Iterable[Function], *, platform: Platform
) -> tuple[Change, ...]:
    """Ports among these functions that show no ACS capability and might: a matter of firmware."""
    return tuple(
        change
        for function in functions
        if function.port_type in PORTS
        for change in _equipped(function, enabled(topology, function, platform=platform))
    )


def equipped_everywhere(topology: Topology, kinds: frozenset[PortType]) -> Topology:
    """``topology`` where every PCIe function of these kinds without ACS has all of it."""
    offers = {
        function.bdf: REQUIRED
        for function in topology
        if function.port_type in kinds
        and not function.is_virtual
        and function.acs is None
        and (function.port_type in PORTS or topology.is_multifunction(function))
        and _has_room(function)
    }
    return with_acs_capability(topology, offers)


def _has_room(function: Function) -> bool:
    """Whether a capability could be put into its configuration space."""
    try:
        with_acs_capability(Topology([function]), {function.bdf: REQUIRED})
    except EditError:
        return False
    return True


def _equipped(function: Function, verdict: AcsVerdict) -> tuple[Change, ...]:
    if verdict.why.reason is not AcsReason.NO_CAPABILITY or verdict.why.truncated:
        return ()
    if not _has_room(function):
        return ()
    return (Change(function.bdf, REQUIRED, new_capability=True),)
