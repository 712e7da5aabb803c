"""The prediction: every flow's cost on every link, the other limits, and the fair share.

A flow costs each link and direction that its packets cross the bytes of
:mod:`~vfiokit.p2p.bandwidth.tlp`; a redirected one crosses the links above its switch once up and
once down. Rates are max-min fair (:mod:`~vfiokit.p2p.bandwidth.fairness`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vfiokit.errors import UsageError
from vfiokit.p2p.bandwidth.fairness import Demand, Share, max_min
from vfiokit.p2p.bandwidth.flow import Flow, Kind
from vfiokit.p2p.bandwidth.link import Link, LinkMap
from vfiokit.p2p.bandwidth.parameter import Parameters
from vfiokit.p2p.bandwidth.route import AcsView, Direction, Memory, Router, Way
from vfiokit.p2p.bandwidth.tlp import (
    Limits,
    Packet,
    completion,
    limits,
    read_request,
    write,
)
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.topology import Function, Topology

_NS = 1e-9
_NAMED = 6
_GIGA = 1e9


def listed(texts: Sequence[str]) -> str:
    """The first few of ``texts``, and how many more there are."""
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


class Changes(NamedTuple):
    """What is different from the machine as captured."""

    redirect: bool | None = None
    """ACS Request and Completion Redirect at every switch port; ``None``: as captured."""
    acs: Mapping[Bdf, Acs] = {}
    """ACS Control by port; wins over ``redirect``."""
    ats: bool | None = None
    """Whether functions use translated addresses; ``None``: where ATS is enabled."""
    links: Mapping[Bdf, tuple[float, int]] = {}
    """Speed in GT/s and width of links, by :attr:`Link.port`."""
    best_links: bool = False
    """Every link at the best that both its ends can."""


AS_CAPTURED = Changes()


class Resource(NamedTuple):
    """What flows share."""

    kind: str
    """``link``, ``bus``, ``root-complex``, ``iotlb`` or ``socket``."""
    name: str
    """Address of the port or bridge; ``0 to 1`` for NUMA nodes."""
    direction: Direction

    def text(self) -> str:
        """``link 0000:00:03.0 down``."""
        if self.kind == "link":
            return f"link {self.name} {self.direction.value}"
        if self.kind == "bus":
            return f"conventional bus below {self.name}"
        if self.kind == "root-complex":
            return f"root complex at {self.name}"
        if self.kind == "iotlb":
            return f"misses of the IOTLB of {self.name}"
        return f"between NUMA nodes {self.name}"


class Limit(NamedTuple):
    """One thing that limits a flow, if it were alone with it."""

    kind: str
    """Of a :class:`Resource`, or ``demand``, ``latency``, ``credits``, ``blocked``."""
    gbps: float
    text: str


class Rate(NamedTuple):
    """What one flow gets."""

    flow: Flow
    gbps: float
    """Gb/s of data; infinite when it never crosses a link."""
    limit: str
    """The kind of limit that binds, of :class:`Limit`; ``none`` where nothing does."""
    bottleneck: Resource | None
    """The full resource, where one binds."""
    text: str
    """What limits it, for people."""
    limits: tuple[Limit, ...]
    """Everything considered, tightest first, each as if the flow were alone."""
    request: Way
    answer: Way | None
    """The way of a read's completions."""
    rtt_ns: float
    """Round trip of a read, or of a write and its credits, unloaded."""

    @property
    def redirecting(self) -> tuple[Bdf, ...]:
        """Ports that send the flow's packets upstream although a peer is meant."""
        ports = (*self.request.redirecting, *(self.answer.redirecting if self.answer else ()))
        return tuple(dict.fromkeys(ports))


class Load(NamedTuple):
    """What one shared resource carries."""

    resource: Resource
    link: Link | None
    capacity: float
    """Gb/s, packet overhead included; of an IOTLB, of data that all misses."""
    used: float
    flows: tuple[int, ...]
    """Which of the flows."""


class Prediction(NamedTuple):
    """The answer."""

    rates: tuple[Rate, ...]
    """In the order of the flows asked for."""
    loads: tuple[Load, ...]
    assumptions: tuple[str, ...]
    """What was not captured, a sentence without a full stop each."""

    @property
    def total(self) -> float:
        """Gb/s of all flows."""
        return sum(rate.gbps for rate in self.rates)


def predict(
    topology: Topology,
    flows: Sequence[Flow],
    parameters: Parameters | None = None,
    changes: Changes = AS_CAPTURED,
) -> Prediction:
    """How fast ``flows`` go when all run at once.

    Raises :class:`UsageError` for a flow that makes no sense, and
    :class:`~vfiokit.errors.DeviceNotFoundError` for an address that is not there.
    """
    return _Model(topology, parameters or Parameters(), changes).predict(flows)


class _Traffic(NamedTuple):
    """One flow, worked out."""

    costs: dict[Resource, float]
    limits: tuple[Limit, ...]
    request: Way
    answer: Way | None
    rtt_ns: float


class _Model:
    def __init__(self, topology: Topology, parameters: Parameters, changes: Changes) -> None:
        self._topology = topology
        self._parameters = parameters
        self._links = LinkMap(topology, parameters, rates=changes.links, best=changes.best_links)
        acs = AcsView(redirect=changes.redirect, overrides=changes.acs, ats=changes.ats)
        self._acs = acs
        self._redirect = changes.redirect
        self._router = Router(self._links, acs)
        self._capacities: dict[Resource, float] = {}
        self._link_of: dict[Resource, Link] = {}
        self._assumptions: dict[str, dict[str, None]] = {}
        self._known: dict[Flow, _Traffic] = {}

    def predict(self, flows: Sequence[Flow]) -> Prediction:
        """Work every flow out, and share."""
        traffic = [self._traffic(flow) for flow in flows]
        demands = [
            Demand(each.costs, min((limit.gbps for limit in each.limits), default=None))
            for each in traffic
        ]
        shares = max_min(self._capacities, demands)
        loads = self._loads(traffic, shares)
        by_resource = {load.resource: load for load in loads}
        rates = tuple(
            self._rate(flow, each, share, by_resource)
            for flow, each, share in zip(flows, traffic, shares, strict=True)
        )
        return Prediction(rates, loads, self._assumed())

    # -- one flow ---------------------------------------------------------------------------------

    def _traffic(self, flow: Flow) -> _Traffic:
        known = self._known.get(flow)
        if known is None:
            known = self._known[flow] = self._work_out(flow)
        return known

    def _work_out(self, flow: Flow) -> _Traffic:
        source = self._end(flow.source)
        sender = self._limits_of(source)
        request, answer = self._ways(flow, source)
        if not isinstance(flow.destination, Memory):
            self._assume_no_acs(request)
        costs: dict[Resource, float] = {}
        if flow.kind is Kind.WRITE:
            self._charge(costs, request, write(sender, self._parameters))
        else:
            memory = isinstance(flow.destination, Memory)
            other = self._root_complex_limits(sender, request) if memory else self._completer(flow)
            assert answer is not None
            self._charge(costs, request, read_request(sender, self._parameters))
            self._charge(costs, answer, completion(sender, other, self._parameters))
        self._charge_root_complex(costs, flow, request, answer)
        if request.root_complex is not None and not self._acs.translates(source):
            self._charge_iommu(costs, source)
        rtt = self._rtt(request, answer)
        bounds = self._bounds(flow, sender, request, answer, rtt)
        return _Traffic(costs, bounds, request, answer, rtt)

    def _end(self, bdf: Bdf) -> Function:
        function = self._topology[bdf]
        if function.is_bridge:
            raise UsageError(f"{bdf} is a bridge, which moves no data of its own")
        return function

    def _ways(self, flow: Flow, source: Function) -> tuple[Way, Way | None]:
        reads = flow.kind is Kind.READ
        if isinstance(flow.destination, Memory):
            back = self._router.from_memory(source, flow.destination) if reads else None
            return self._router.to_memory(source, flow.destination), back
        if flow.source == flow.destination:
            raise UsageError(f"{flow}: a flow leads from one function to another")
        target = self._end(flow.destination)
        request = self._router.request(source, target)
        if not reads:
            return request, None
        relaxed = bool(self._parameters["relaxed_ordering"])
        return request, self._router.completion(target, source, relaxed=relaxed)

    def _limits_of(self, function: Function) -> Limits:
        owner = function
        if function.physfn is not None and function.physfn in self._topology:
            owner = self._topology[function.physfn]
        found = limits(owner, self._parameters)
        if found.assumed:
            self._assume(
                "Device Control was not captured, so packets of "
                f"{found.mps} bytes, read requests of {found.mrrs}, {found.tags} in flight",
                owner.bdf,
            )
        return found

    def _root_complex_limits(self, reader: Limits, way: Way) -> Limits:
        """What answers reads of memory: the root port, which sends no more than its setting."""
        port = self._topology.functions.get(way.root_complex) if way.root_complex else None
        found = limits(port, self._parameters)
        return found._replace(mps=reader.mps) if found.assumed else found

    def _completer(self, flow: Flow) -> Limits:
        assert isinstance(flow.destination, Bdf)
        return self._limits_of(self._topology[flow.destination])

    def _assume(self, text: str, about: Bdf | None = None) -> None:
        self._assumptions.setdefault(text, {})
        if about is not None:
            self._assumptions[text][str(about)] = None

    def _assumed(self) -> tuple[str, ...]:
        return tuple(
            f"{text}: {listed(tuple(about))}" if about else text
            for text, about in self._assumptions.items()
        )

    def _assume_no_acs(self, way: Way) -> None:
        """Ports whose ACS registers were not captured are taken for ones that do not redirect."""
        if self._redirect is not None:
            return
        for place, _ in way.steps:
            port = self._topology.functions.get(place.port) if isinstance(place, Link) else None
            if port is not None and not port.config.has(0x100, 4):
                self._assume("ACS was not captured, so no redirect", port.bdf)

    # -- costs ------------------------------------------------------------------------------------

    def _charge(self, costs: dict[Resource, float], way: Way, packet: Packet) -> None:
        """Add what the packets of one byte of data cost, and their acknowledgements."""
        share = self._parameters["dllp_share"]
        for place, direction in way.steps:
            if isinstance(place, Bdf):
                resource = Resource("bus", str(place), Direction.BOTH)
                self._capacities[resource] = self._parameters["conventional_gbps"]
                if packet.carried:
                    costs[resource] = costs.get(resource, 0.0) + 1.0
                continue
            cost = packet.cost(place.speed)
            there = self._link_resource(place, direction)
            costs[there] = costs.get(there, 0.0) + cost
            if share and place.speed < 64:
                opposite = Direction.UP if direction is Direction.DOWN else Direction.DOWN
                back = self._link_resource(place, opposite)
                costs[back] = costs.get(back, 0.0) + cost * share

    def _link_resource(self, link: Link, direction: Direction) -> Resource:
        resource = Resource("link", str(link.port), direction)
        if resource not in self._capacities:
            skipped = self._parameters["skp_share"] if link.speed >= 8 else 0.0
            self._capacities[resource] = link.gbps * (1 - skipped)
            self._link_of[resource] = link
            if link.assumed:
                self._assume(
                    f"speed or width was not captured, so {link.speed:g} GT/s x{link.width}",
                    link.port,
                )
        return resource

    def _charge_root_complex(
        self, costs: dict[Resource, float], flow: Flow, request: Way, answer: Way | None
    ) -> None:
        data = request if answer is None else answer
        peer = not isinstance(flow.destination, Memory)
        cap = self._parameters["rc_p2p_gbps"]
        if peer and cap and data.root_complex is not None:
            resource = Resource("root-complex", str(data.root_complex), Direction.BOTH)
            self._capacities[resource] = cap
            costs[resource] = costs.get(resource, 0.0) + 1.0
        if data.sockets is None:
            return
        if not self._parameters["socket_gbps"]:
            self._assume(
                "a flow goes from one socket to another, whose link is taken for unlimited "
                "(socket_gbps)"
            )
            return
        name = f"{data.sockets[0]} to {data.sockets[1]}"
        resource = Resource("socket", name, Direction.BOTH)
        self._capacities[resource] = self._parameters["socket_gbps"]
        costs[resource] = costs.get(resource, 0.0) + 1.0

    def _charge_iommu(self, costs: dict[Resource, float], source: Function) -> None:
        """Misses of the IOTLB of the source's host bridge, where the working set outgrows it."""
        given = self._parameters
        reach = given["iotlb_entries"] * given["iommu_page"]
        if not given["iommu"] or given["working_set"] <= reach:
            return
        page = given["iommu_page"]
        visit = min(given["transfer"] or page, page)
        seconds = given["iotlb_miss_ns"] * _NS / given["iotlb_walkers"]
        host_bridge = self._topology.host_bridge_of(source)
        resource = Resource("iotlb", str(host_bridge), Direction.BOTH)
        self._capacities[resource] = visit * 8 / seconds / _GIGA
        costs[resource] = 1 - reach / given["working_set"]

    # -- limits of a flow by itself ---------------------------------------------------------------

    def _rtt(self, request: Way, answer: Way | None) -> float:
        total = self._parameters["endpoint_ns"]
        for way in (request, answer or request):
            total += way.switches * self._parameters["switch_ns"]
            if way.root_complex is not None:
                total += self._parameters["root_complex_ns"]
            if way.sockets is not None:
                total += self._parameters["socket_ns"]
        return total

    def _bounds(
        self,
        flow: Flow,
        sender: Limits,
        request: Way,
        answer: Way | None,
        rtt_ns: float,
    ) -> tuple[Limit, ...]:
        bounds: list[Limit] = []
        blocked = self._blocked(flow, request, answer)
        if blocked:
            bounds.append(Limit("blocked", 0.0, blocked))
        if flow.demand is not None:
            bounds.append(Limit("demand", flow.demand, "the rate asked for"))
        crosses = bool(request.steps or (answer is not None and answer.steps))
        if not crosses:
            return tuple(bounds)
        if flow.kind is Kind.READ:
            in_flight = sender.tags * sender.mrrs
            bounds.append(
                Limit(
                    "latency",
                    in_flight * 8 / (rtt_ns * _NS) / _GIGA,
                    f"latency: {sender.tags} reads of {sender.mrrs} bytes in {rtt_ns:.0f} ns",
                )
            )
        elif self._parameters["posted_credit_bytes"]:
            flying = self._parameters["posted_credit_bytes"]
            gbps = flying * 8 / (rtt_ns * _NS) / _GIGA
            bounds.append(Limit("credits", gbps, f"credits: {flying:.0f} bytes in {rtt_ns:.0f} ns"))
        return tuple(bounds)

    def _blocked(self, flow: Flow, request: Way, answer: Way | None) -> str:
        for way in (request, answer):
            if way is not None and way.blocked:
                return way.blocked
        crosses = request.root_complex is not None or (answer and answer.root_complex is not None)
        peer = not isinstance(flow.destination, Memory)
        if peer and crosses and not self._parameters["rc_p2p_allowed"]:
            return "the root complex does not forward between devices (rc_p2p_allowed)"
        return ""

    # -- the answer -------------------------------------------------------------------------------

    def _loads(self, traffic: Sequence[_Traffic], shares: Sequence[Share]) -> tuple[Load, ...]:
        used = dict.fromkeys(self._capacities, 0.0)
        users: dict[Resource, list[int]] = {resource: [] for resource in self._capacities}
        for index, (each, share) in enumerate(zip(traffic, shares, strict=True)):
            for resource, cost in each.costs.items():
                used[resource] += cost * share.rate
                users[resource].append(index)
        return tuple(
            Load(
                resource,
                self._link_of.get(resource),
                capacity,
                used[resource],
                tuple(users[resource]),
            )
            for resource, capacity in self._capacities.items()
        )

    def _rate(
        self, flow: Flow, traffic: _Traffic, share: Share, loads: Mapping[Resource, Load]
    ) -> Rate:
        alone = [
            Limit(resource.kind, self._capacities[resource] / cost, self._place(resource))
            for resource, cost in traffic.costs.items()
        ]
        considered = tuple(sorted((*alone, *traffic.limits), key=lambda limit: limit.gbps))
        bottleneck = share.limit if isinstance(share.limit, Resource) else None
        if bottleneck is not None:
            kind, text = bottleneck.kind, self._shared(loads[bottleneck])
        elif traffic.limits:
            binding = min(traffic.limits, key=lambda limit: limit.gbps)
            kind, text = binding.kind, binding.text
        else:
            kind, text = "none", f"stays {nowhere(flow)}: no link is crossed"
        return Rate(
            flow,
            share.rate,
            kind,
            bottleneck,
            text,
            considered,
            traffic.request,
            traffic.answer,
            traffic.rtt_ns,
        )

    def _place(self, resource: Resource) -> str:
        link = self._link_of.get(resource)
        if link is None:
            return resource.text()
        return f"{resource.text()}, {link.speed:g} GT/s x{link.width}"

    def _shared(self, load: Load) -> str:
        text = self._place(load.resource)
        if len(load.flows) > 1:
            text += f", shared by {len(load.flows)} flows"
        return text


def nowhere(flow: Flow) -> str:
    """Where a flow stays that crosses no link."""
    if isinstance(flow.destination, Memory):
        return "inside the root complex"
    return "inside the device"
