"""Where the kernel's groups promise more than the hardware keeps.

The kernel asks for ACS on the way from a function up to the root. Two ports of one switch that lack
Request Redirect fail that test for what sits below them, so each port joins a group with its own
devices; but nothing in the algorithm puts the two ports together. The groups are apart, and the
switch still forwards a request from one to the other without it ever reaching the IOMMU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vfiokit.isolation.acs import AcsWhy, enabled
from vfiokit.isolation.platform import CAPTURED, Platform
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology

if TYPE_CHECKING:
    from vfiokit.isolation.group import Grouping

_PORTS = (PortType.DOWNSTREAM, PortType.ROOT_PORT)


class Leak(NamedTuple):
    """Functions below ``port`` reach functions below ``peer`` inside the switch."""

    switch: Bdf
    """The upstream port of the switch."""
    port: Bdf
    peer: Bdf
    mutual: bool
    """Whether ``peer`` lets requests through to ``port`` as well."""
    why: AcsWhy
    """What ``port`` lacks."""
    groups: tuple[int, ...]
    """Groups of the endpoints below ``port``, sorted."""
    peer_groups: tuple[int, ...]
    """Groups of the endpoints below ``peer`` that are not among ``groups``, sorted."""

    def text(self) -> str:
        """One sentence with a full stop."""
        also = ", and the other way round" if self.mutual else ""
        return (
            f"{_numbered(self.groups).capitalize()} below {self.port} can reach "
            f"{_numbered(self.peer_groups)} below {self.peer} inside the switch {self.switch}{also}"
            f": {self.why.text()}, so requests between its ports need not pass the IOMMU, "
            "although the kernel puts them in different groups."
        )


class _Port(NamedTuple):
    function: Function
    groups: frozenset[int]
    why: AcsWhy | None
    """``None`` when Request Redirect is enforced."""


def find_leaks(
    topology: Topology,
    grouping: Grouping,
    *,
    platform: Platform = CAPTURED,
    quirks: bool = True,
) -> tuple[Leak, ...]:
    """Every pair of ports of one switch whose groups are apart and whose traffic is not."""
    leaks: list[Leak] = []
    for switch in topology:
        if switch.port_type is not PortType.UPSTREAM or switch.is_virtual:
            continue
        ports = _ports(topology, grouping, switch, platform, quirks)
        for index, one in enumerate(ports):
            for other in ports[index + 1 :]:
                leak = _between(switch, one, other)
                if leak is not None:
                    leaks.append(leak)
    return tuple(leaks)


def _ports(
    topology: Topology, grouping: Grouping, switch: Function, platform: Platform, quirks: bool
) -> list[_Port]:
    """Ports of ``switch`` with something below them that can issue or receive requests."""
    bus = topology.secondary(switch)
    ports: list[_Port] = []
    for port in bus.functions if bus is not None else ():
        if port.port_type not in _PORTS:
            continue
        groups = frozenset(grouping.of(bdf).id for bdf in _endpoints_below(topology, port))
        if groups:
            verdict = enabled(
                topology, port, Acs.REQUEST_REDIRECT, platform=platform, quirks=quirks
            )
            ports.append(_Port(port, groups, None if verdict else verdict.why))
    return ports


def _endpoints_below(topology: Topology, port: Function) -> list[Bdf]:
    found: list[Bdf] = []
    waiting = [topology.secondary(port)]
    while waiting:
        bus = waiting.pop()
        for function in bus.functions if bus is not None else ():
            if function.is_bridge:
                waiting.append(topology.secondary(function))
            else:
                found.append(function.bdf)
            found.extend(
                virtual.bdf
                for virtual in topology.virtual_functions(function)
                if virtual.bdf.bus != function.bdf.bus  # the others are on this bus themselves
            )
    return found


def _between(switch: Function, one: _Port, other: _Port) -> Leak | None:
    """The leak between two ports, ``port`` the one without redirect; ``None`` where none is."""
    if one.why is None:
        one, other = other, one
    apart = other.groups - one.groups
    if one.why is None or not apart:
        return None
    return Leak(
        switch.bdf,
        one.function.bdf,
        other.function.bdf,
        other.why is not None,
        one.why,
        tuple(sorted(one.groups)),
        tuple(sorted(apart)),
    )


def _numbered(groups: tuple[int, ...]) -> str:
    noun = "group" if len(groups) == 1 else "groups"
    return f"{noun} {', '.join(map(str, groups))}"
