"""The way that packets take between two functions, as the hardware routes them.

A request meets ACS where it enters a component that leads to its target: at the downstream port
it came in by. There it goes straight to the peer, or, redirected, up to the root complex and down
again: the same links once up and once down. Completions are routed by the completer's port.
Source: PCI Express Base Specification 6.0 §6.12.1 (services), §6.12.3 (how they combine), §7.7.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.isolation.acs import control
from vfiokit.p2p.bandwidth.link import Hop, Link, LinkMap, PortKind
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs, egress_vector
from vfiokit.pci.capability.ats import CONTROL as ATS_CONTROL
from vfiokit.pci.capability.express import LINK_CAPABILITIES
from vfiokit.pci.topology import Function

REDIRECTING = Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT
"""The bits whose redirection costs bandwidth."""


class Direction(StrEnum):
    """On a link, seen from the root complex."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"
    """A conventional bus has one direction at a time."""


class Step(NamedTuple):
    """One link, or conventional bus, crossed in one direction."""

    place: Link | Bdf
    direction: Direction


class Decision(Enum):
    """What a port does with a request to a peer."""

    DIRECT = "direct"
    REDIRECT = "redirect"
    BLOCK = "block"


class Way(NamedTuple):
    """The way of one kind of packet, from its sender to its receiver."""

    steps: tuple[Step, ...]
    redirecting: tuple[Bdf, ...] = ()
    """Ports that sent it upstream although a peer was meant."""
    root_complex: Bdf | None = None
    """The root port by which it enters the root complex; ``None`` when it does not."""
    sockets: tuple[int, int] | None = None
    """NUMA nodes of sender and receiver, where it goes from one to another."""
    switches: int = 0
    """Switches passed."""
    blocked: str = ""
    """Why it does not arrive; empty when it does."""


class Memory(NamedTuple):
    """Main memory as an end of a flow."""

    node: int | None = None
    """NUMA node; ``None``: that of the other end."""

    def __str__(self) -> str:
        return "memory" if self.node is None else f"memory:{self.node}"


class AcsView:
    """ACS and ATS as captured, or as a what-if question has them."""

    def __init__(
        self,
        *,
        redirect: bool | None = None,
        overrides: Mapping[Bdf, Acs] | None = None,
        ats: bool | None = None,
    ) -> None:
        """``redirect`` turns Request and Completion Redirect on or off at every switch port.

        ``overrides`` are ACS Control values by port, which win; ``ats`` says whether functions
        use translated addresses, whatever was captured.
        """
        self._redirect = redirect
        self._overrides = overrides or {}
        self._ats = ats
        self._bits: dict[tuple[Bdf, PortKind | None], Acs] = {}
        self._translates: dict[Bdf, bool] = {}

    def bits(self, port: Function, kind: PortKind | None) -> Acs:
        """The services in force at ``port``."""
        known = self._bits.get((port.bdf, kind))
        if known is None:
            known = self._bits[port.bdf, kind] = self._in_force(port, kind)
        return known

    def _in_force(self, port: Function, kind: PortKind | None) -> Acs:
        if port.bdf in self._overrides:
            return self._overrides[port.bdf]
        bits = control(port) & port.acs_capability
        if self._redirect is False:
            return bits & ~(REDIRECTING | Acs.EGRESS_CONTROL)
        if self._redirect and kind in (PortKind.DOWN, PortKind.SWITCH):
            return bits | REDIRECTING | Acs.UPSTREAM_FORWARDING
        return bits

    def translates(self, function: Function) -> bool:
        """Whether ``function`` asks for translations and uses them: ATS is enabled."""
        if self._ats is not None:
            return self._ats
        known = self._translates.get(function.bdf)
        if known is None:
            known = self._translates[function.bdf] = self._ats_enabled(function)
        return known

    @staticmethod
    def _ats_enabled(function: Function) -> bool:
        capability = function.capabilities.find_extended(0x0F)
        if capability is None:
            return False
        try:
            return bool(capability.field(ATS_CONTROL, "enable"))
        except ConfigRangeError:
            return False

    def decide(
        self, port: Function, kind: PortKind | None, target: Function, *, translated: bool
    ) -> Decision:
        """Where ``port`` sends a request from below to the peer port ``target``."""
        bits = self.bits(port, kind)
        if kind is not None and translated and bits & Acs.TRANSLATION_BLOCKING:
            return Decision.BLOCK
        changed = port.bdf in self._overrides or self._redirect is not None
        if port.acs is not None and not changed and not port.acs_capability & Acs.REQUEST_REDIRECT:
            # The service is mandatory for what routes to peers, so this component does not.
            return Decision.REDIRECT
        if translated and bits & Acs.DIRECT_TRANSLATED:
            return Decision.DIRECT
        redirect = bool(bits & Acs.REQUEST_REDIRECT)
        if bits & Acs.EGRESS_CONTROL and not _egress_bit(port, kind, target):
            return Decision.DIRECT
        if bits & Acs.EGRESS_CONTROL and not redirect:
            return Decision.BLOCK
        return Decision.REDIRECT if redirect else Decision.DIRECT


def _egress_bit(port: Function, kind: PortKind | None, target: Function) -> bool:
    if port.acs is None:
        return False
    try:
        vector = egress_vector(port.acs)
        index = target.bdf.function
        if kind is not None:
            if target.express is None:
                return False
            index = target.express.field(LINK_CAPABILITIES, "port_number")
    except ConfigRangeError:
        return False
    return index < len(vector) and bool(vector[index])


class Router:
    """Finds ways through one topology."""

    def __init__(self, links: LinkMap, acs: AcsView) -> None:
        self.links = links
        self.acs = acs
        self._topology = links.topology

    def to_memory(self, function: Function, memory: Memory) -> Way:
        """The way of a request from ``function`` to main memory."""
        barred = self._barred(function)
        if barred:
            return Way((), blocked=barred)
        up = self._climb(function)
        return up._replace(sockets=self._crossing(self._node(function), memory.node))

    def from_memory(self, function: Function, memory: Memory) -> Way:
        """The way of data from main memory to ``function``."""
        way = self.to_memory(function, memory)
        turned = tuple(Step(step.place, _opposite(step.direction)) for step in reversed(way.steps))
        sockets = (way.sockets[1], way.sockets[0]) if way.sockets is not None else None
        return way._replace(steps=turned, sockets=sockets)

    def request(self, source: Function, target: Function) -> Way:
        """The way of a memory request from ``source`` to a BAR of ``target``."""
        translated = self.acs.translates(source)
        way = self._request(source, target, translated=translated)
        barred = self._barred(source) if way.root_complex is not None else ""
        return Way((), way.redirecting, blocked=barred) if barred else way

    def _request(self, source: Function, target: Function, *, translated: bool) -> Way:
        apex = self._apex(source, target)
        if apex is None:
            return self._on_root_bus(source, target, translated=translated)
        decision, port = self._meet(source, target, apex, translated=translated)
        if decision is Decision.DIRECT:
            return self._below(source, target, apex)
        if decision is Decision.BLOCK:
            return Way((), blocked=f"ACS of {port} blocks it")
        redirecting = [port]
        for hop in self.links.ascent(source)[apex[0] :]:
            if hop.kind is PortKind.DOWN:
                bits = self.acs.bits(hop.node, hop.kind)
                if not bits & Acs.UPSTREAM_FORWARDING:
                    return Way(
                        (),
                        tuple(redirecting),
                        blocked=f"redirected at {port}, and {hop.node.bdf} above does not forward "
                        "it upstream (ACS Upstream Forwarding is off)",
                    )
                redirecting.append(hop.node.bdf)
        return self._through_root_complex(source, target, tuple(redirecting))

    def completion(self, completer: Function, requester: Function, *, relaxed: bool) -> Way:
        """The way of a read completion from ``completer`` back to ``requester``."""
        apex = self._apex(completer, requester)
        if apex is None:
            redirects = self.acs.bits(completer, None) & Acs.COMPLETION_REDIRECT
            if _one_device(completer, requester) and (relaxed or not redirects):
                return Way(())
            return self._through_root_complex(completer, requester, ())
        port, kind = self._ingress(completer, apex)
        redirects = self.acs.bits(port, kind) & Acs.COMPLETION_REDIRECT
        if redirects and not relaxed:
            return self._through_root_complex(completer, requester, (port.bdf,))
        return self._below(completer, requester, apex)

    # -- parts ------------------------------------------------------------------------------------

    def _apex(self, source: Function, target: Function) -> tuple[int, int] | None:
        """Where the two ascents meet, as an index into each; ``None``: in the root complex."""
        others = {hop.node.bdf: index for index, hop in enumerate(self.links.ascent(target))}
        for index, hop in enumerate(self.links.ascent(source)):
            if hop.node.bdf in others:
                return index, others[hop.node.bdf]
        return None

    def _barred(self, source: Function) -> str:
        """Why requests of ``source`` do not get to the root complex; empty when they do."""
        if not self.acs.translates(source):
            return ""
        for hop in self.links.ascent(source):
            if hop.link is not None and (
                self.acs.bits(hop.node, hop.kind) & Acs.TRANSLATION_BLOCKING
            ):
                return f"{hop.node.bdf} lets no translated requests pass (ACS Translation Blocking)"
        return ""

    def _on_root_bus(self, source: Function, target: Function, *, translated: bool) -> Way:
        """Where no bridge is common: inside an integrated device, or through the root complex."""
        if not _one_device(source, target):
            return self._through_root_complex(source, target, ())
        decision = self.acs.decide(source, None, target, translated=translated)
        if decision is Decision.DIRECT:
            return Way(())
        if decision is Decision.BLOCK:
            return Way((), blocked=f"ACS of {source.bdf} blocks it")
        return self._through_root_complex(source, target, (source.bdf,))

    def _ingress(
        self, function: Function, apex: tuple[int, int]
    ) -> tuple[Function, PortKind | None]:
        """The port by which packets of ``function`` enter the component where ways part.

        Below one root or downstream port that is the function itself: the device is the component.
        """
        ascent = self.links.ascent(function)
        hop = ascent[apex[0]]
        if hop.kind is PortKind.SWITCH:
            return hop.node, hop.kind
        if hop.kind is PortKind.UP and apex[0] > 0:
            below = ascent[apex[0] - 1]
            return below.node, below.kind
        return function, None

    def _meet(
        self, source: Function, target: Function, apex: tuple[int, int], *, translated: bool
    ) -> tuple[Decision, Bdf]:
        if self.links.ascent(source)[apex[0]].kind is PortKind.BUS:
            return Decision.DIRECT, source.bdf
        port, kind = self._ingress(source, apex)
        peer, _ = self._ingress(target, (apex[1], apex[0]))
        return self.acs.decide(port, kind, peer, translated=translated), port.bdf

    def _below(self, source: Function, target: Function, apex: tuple[int, int]) -> Way:
        """Straight through the component where the ways part."""
        up = self.links.ascent(source)
        down = self.links.ascent(target)
        at = up[apex[0]]
        inner = 1 if at.kind is PortKind.SWITCH else 0
        first = up[: apex[0] + inner]
        second = down[: apex[1] + inner]
        steps = [*_rising(first), *_sinking(second)]
        if at.kind is PortKind.BUS:
            steps.append(Step(at.node.bdf, Direction.BOTH))
        passed = (*up[: apex[0]], *down[: apex[1]], at)
        return Way(tuple(steps), switches=_switches(passed))

    def _climb(self, function: Function) -> Way:
        ascent = self.links.ascent(function)
        steps = _rising(ascent)
        top = self.links.top_link(function)
        if top is not None:
            steps = (*steps, Step(top, Direction.UP))
        entry = ascent[-1].node.bdf if ascent else function.bdf
        return Way(steps, root_complex=entry, switches=_switches(ascent))

    def _through_root_complex(
        self, source: Function, target: Function, redirecting: tuple[Bdf, ...]
    ) -> Way:
        up, down = self._climb(source), self._climb(target)
        turned = tuple(Step(step.place, _opposite(step.direction)) for step in reversed(down.steps))
        return Way(
            (*up.steps, *turned),
            redirecting,
            up.root_complex,
            self._crossing(self._node(source), self._node(target)),
            up.switches + down.switches,
        )

    def _node(self, function: Function) -> int | None:
        for each in (function, *self._topology.path_to_root(function)):
            node = each.recorded.numa_node
            if node is not None and node >= 0:
                return node
        return None

    @staticmethod
    def _crossing(source: int | None, target: int | None) -> tuple[int, int] | None:
        if source is None or target is None or source == target:
            return None
        return source, target


def _one_device(one: Function, other: Function) -> bool:
    """Whether two functions on a root bus belong to one device."""
    return (one.bdf.domain, one.bdf.bus, one.bdf.device) == (
        other.bdf.domain,
        other.bdf.bus,
        other.bdf.device,
    )


def _opposite(direction: Direction) -> Direction:
    if direction is Direction.BOTH:
        return direction
    return Direction.DOWN if direction is Direction.UP else Direction.UP


def _rising(hops: tuple[Hop, ...]) -> tuple[Step, ...]:
    return tuple(step for hop in hops for step in _steps(hop, Direction.UP))


def _sinking(hops: tuple[Hop, ...]) -> tuple[Step, ...]:
    return tuple(step for hop in reversed(hops) for step in _steps(hop, Direction.DOWN))


def _steps(hop: Hop, direction: Direction) -> tuple[Step, ...]:
    if hop.link is not None:
        return (Step(hop.link, direction),)
    if hop.kind is PortKind.BUS:
        return (Step(hop.node.bdf, Direction.BOTH),)
    return ()


def _switches(hops: tuple[Hop, ...]) -> int:
    return sum(1 for hop in hops if hop.kind in (PortKind.UP, PortKind.SWITCH))
