"""Links: between which ports, at what rate, and how sure that is.

A link joins a root or downstream port and the device below it. Its speed and width come from what
the kernel recorded, else from Link Status, else they are assumed. An NCCL topology names devices
only, without the ports: there the link belongs to the device below.
Source: PCI Express Base Specification 6.0 §4.2 (encoding), §7.5.3.6 and §7.5.3.8 (registers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.p2p.bandwidth.parameter import Parameters
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import LINK_CAPABILITIES, LINK_STATUS, PortType
from vfiokit.pci.capability.register import Register
from vfiokit.pci.topology import Function, Topology

SPEED_CODES = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
"""GT/s by the code of the link registers."""
_SPEED = re.compile(r"([0-9.]+) GT/s")
_FLIT_SHARE = 236 / 256
"""Bytes of a flit that carry packets; the others are DLLPs, CRC and ECC (§4.2.3)."""


def encoding(speed: float) -> float:
    """The part of the symbols that carries data: 8b/10b, 128b/130b, or flits from 64 GT/s on."""
    if speed < 8:
        return 8 / 10
    return _FLIT_SHARE if speed >= 64 else 128 / 130


class PortKind(Enum):
    """What a bridge is to the traffic below it."""

    ROOT = "root port"
    UP = "switch upstream port"
    DOWN = "switch downstream port"
    BUS = "bridge to a conventional bus"
    SWITCH = "switch, its ports not told apart"


class Link(NamedTuple):
    """One link."""

    port: Bdf
    """The port above; for NCCL topologies the device below."""
    below: Bdf | None
    """A function below, where there is one."""
    speed: float
    """GT/s per lane."""
    width: int
    """Lanes."""
    best_speed: float
    """GT/s that both ends can."""
    best_width: int
    assumed: bool = False
    """Whether nothing was recorded about it."""

    @property
    def gbps(self) -> float:
        """Gb/s of data per direction after encoding, packet overhead included."""
        return self.speed * encoding(self.speed) * self.width

    @property
    def below_best(self) -> bool:
        """Whether it runs slower than both ends can."""
        return (self.speed, self.width) != (self.best_speed, self.best_width)

    def text(self) -> str:
        """``0000:00:03.0, 8 GT/s x16``."""
        return f"{self.port}, {rate_text(self.speed, self.width)}"


def rate_text(speed: float, width: int) -> str:
    """``8 GT/s x16``."""
    return f"{speed:g} GT/s x{width}"


class Hop(NamedTuple):
    """One step from a function towards its root complex."""

    node: Function
    """The bridge reached."""
    kind: PortKind
    link: Link | None
    """Crossed to get there; ``None`` inside a switch and on a conventional bus."""


class LinkMap:
    """Every link of a topology; ``rates`` and ``best`` are what-if answers."""

    def __init__(
        self,
        topology: Topology,
        parameters: Parameters,
        *,
        rates: Mapping[Bdf, tuple[float, int]] | None = None,
        best: bool = False,
    ) -> None:
        self.topology = topology
        self._parameters = parameters
        self._rates = rates or {}
        self._best = best
        self._links: dict[Bdf, Link] = {}
        self._ascents: dict[Bdf, tuple[Hop, ...]] = {}
        self.ports_left_out = _leaves_out_ports(topology)

    def kind(self, bridge: Function) -> PortKind:
        """What ``bridge`` is; guessed from its place where its registers were not captured."""
        if self.ports_left_out:
            return PortKind.SWITCH
        found = bridge.port_type
        if found is PortType.ROOT_PORT:
            return PortKind.ROOT
        if found is PortType.UPSTREAM:
            return PortKind.UP
        if found in (PortType.DOWNSTREAM, PortType.PCI_TO_PCIE_BRIDGE):
            return PortKind.DOWN
        if found is not None or bridge.config.has(0x40, 1):
            return PortKind.BUS
        depth = len(self.topology.path_to_root(bridge))
        if depth == 0:
            return PortKind.ROOT
        return PortKind.UP if depth % 2 else PortKind.DOWN

    def ascent(self, function: Function) -> tuple[Hop, ...]:
        """The way from ``function`` to its root complex, nearest first."""
        known = self._ascents.get(function.bdf)
        if known is None:
            known = self._ascents[function.bdf] = self._ascend(function)
        return known

    def _ascend(self, function: Function) -> tuple[Hop, ...]:
        hops: list[Hop] = []
        below = function
        for bridge in self.topology.path_to_root(function):
            kind = self.kind(bridge)
            if kind is PortKind.SWITCH:
                link = self._link(_device(self._physical(below)), below, below)
            elif kind in (PortKind.ROOT, PortKind.DOWN):
                link = self._link(bridge.bdf, bridge, self._below(bridge))
            else:
                link = None
            hops.append(Hop(bridge, kind, link))
            below = bridge
        return tuple(hops)

    def top_link(self, function: Function) -> Link | None:
        """For NCCL topologies, the link from the topmost device above ``function`` to its CPU."""
        if not self.ports_left_out:
            return None
        path = self.topology.path_to_root(function)
        top = path[-1] if path else self._physical(function)
        return self._link(_device(top), top, top)

    def _physical(self, function: Function) -> Function:
        if function.physfn is not None and function.physfn in self.topology:
            return self.topology[function.physfn]
        return function

    def _below(self, bridge: Function) -> Function | None:
        bus = self.topology.secondary(bridge)
        return bus.functions[0] if bus is not None and bus.functions else None

    def _link(self, key: Bdf, upper: Function, lower: Function | None) -> Link:
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = self._measure(key, upper, lower)
        return link

    def _measure(self, key: Bdf, upper: Function, lower: Function | None) -> Link:
        ends = [end for end in (lower, upper) if end is not None]
        best_speed = min(filter(None, map(_best_speed, ends)), default=0.0)
        best_width = min(filter(None, map(_best_width, ends)), default=0)
        speed = next(filter(None, map(_speed, ends)), 0.0)
        width = next(filter(None, map(_width, ends)), 0)
        if self._best:
            speed, width = best_speed or speed, best_width or width
        assumed = not ((speed or best_speed) and (width or best_width))
        speed = speed or best_speed or self._parameters["link_speed"]
        width = width or best_width or int(self._parameters["link_width"])
        if key in self._rates:
            speed, width = self._rates[key]
        return Link(
            key,
            lower.bdf if lower is not None and lower.bdf != key else None,
            speed,
            width,
            max(best_speed, speed),
            max(best_width, width),
            assumed and key not in self._rates,
        )


def _leaves_out_ports(topology: Topology) -> bool:
    from vfiokit.host.nccl import NcclTopology

    return isinstance(topology, NcclTopology)


def _device(function: Function) -> Bdf:
    """Function 0 of the device: its functions share a link."""
    bdf = function.bdf
    return Bdf(bdf.domain, bdf.bus, bdf.device, 0)


def _text_speed(text: str | None) -> float:
    found = _SPEED.match(text or "")
    try:
        return float(found[1]) if found is not None else 0.0
    except ValueError:
        return 0.0


def _field(function: Function, register: Register, name: str) -> int:
    """A field of the PCI Express capability; 0 where it was not captured."""
    if function.express is None:
        return 0
    try:
        return function.express.field(register, name)
    except ConfigRangeError:
        return 0


def _speed(function: Function) -> float:
    recorded = _text_speed(function.recorded.current_link_speed)
    return recorded or SPEED_CODES.get(_field(function, LINK_STATUS, "speed"), 0.0)


def _width(function: Function) -> int:
    return function.recorded.current_link_width or _field(function, LINK_STATUS, "width")


def _best_speed(function: Function) -> float:
    recorded = _text_speed(function.recorded.max_link_speed)
    return recorded or SPEED_CODES.get(_field(function, LINK_CAPABILITIES, "max_speed"), 0.0)


def _best_width(function: Function) -> int:
    return function.recorded.max_link_width or _field(function, LINK_CAPABILITIES, "max_width")
