"""How a request climbs: up through ports until a peer claims it or the host bridge has it.

Every step is a hop in ``txn.path``. Where a port could hand the request to a peer,
:func:`vfiokit.machine.acs.judge` decides and nothing else does.
What happens then is in :mod:`vfiokit.machine.delivery`.
Source: PCI Express Base Specification 6.0 §2.2.4 (routing by address), §6.12 (ACS);
PCI Express to PCI/PCI-X Bridge Specification 1.0 §2.3 (taking ownership of requester IDs).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from vfiokit.machine import registers
from vfiokit.machine.acs import Decision, Verdict, judge
from vfiokit.machine.delivery import Delivery, answers
from vfiokit.machine.function import Function
from vfiokit.machine.host_bridge import HostBridge
from vfiokit.machine.iommu.remap import MSI_BASE, MSI_END
from vfiokit.machine.port import Bridge
from vfiokit.machine.txn import AddressType, Completion, Hop, Kind, Txn
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType

if TYPE_CHECKING:
    from vfiokit.machine.fabric import Fabric

_NOWHERE: Final = -1  # an address that no BAR and no window claims
_SWITCH_PORTS: Final = frozenset({PortType.ROOT_PORT, PortType.DOWNSTREAM})


class AtRoot(NamedTuple):
    """The request reached the top."""

    host_bridge: HostBridge


class AtPeer(NamedTuple):
    """A port hands the request to ``peer`` below the host bridge."""

    peer: Function


class Refused(NamedTuple):
    """A port refuses the request."""

    port: Function
    reason: str
    violation: bool = False
    unclaimed: bool = False


Outcome = AtRoot | AtPeer | Refused


class LocalRanges:
    """Addresses that something below the host bridge may claim, and the interrupt range."""

    __slots__ = ("_ends", "_starts", "bounds")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """``ranges`` are half-open and may overlap."""
        ordered = sorted(ranges)
        self.bounds = sorted({bound for pair in ordered for bound in pair})
        """Every start and end, in order: where a request is cut."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ordered:
            if self._starts and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether ``[start, end)`` meets any of the ranges."""
        at = bisect_left(self._starts, end)
        return at > 0 and self._ends[at - 1] > start


class Router:
    """Routes requests over one fabric."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self._delivery = Delivery(fabric)
        self._epoch = -1
        self._local: dict[Bdf, LocalRanges] = {}

    def local_ranges(self, function: Function) -> LocalRanges:
        """What may claim the requests of ``function`` before the host bridge does."""
        if self._epoch != self.fabric.epoch:
            self._epoch = self.fabric.epoch
            self._local.clear()
        known = self._local.get(function.bdf)
        if known is None:
            known = self._local[function.bdf] = LocalRanges(self._claimable(function))
        return known

    def _claimable(self, function: Function) -> list[tuple[int, int]]:
        fabric = self.fabric
        path = fabric.root_path(function)
        top: Function = path[-1] if path else function
        ranges = [(MSI_BASE, MSI_END)]
        for node in fabric.siblings(top):
            if node.bdf.device != top.bdf.device:
                continue
            for item in (node, *fabric.below(node)):
                ranges += [(claim.start, claim.end) for claim in fabric.bar_claims(item)]
                if isinstance(item, Bridge):
                    ranges += item.windows()
        return ranges

    # -- whole requests -----------------------------------------------------------------------

    def route(self, txn: Txn, sender: Function | None = None) -> Completion:
        """Carry out a request; see :meth:`Fabric.route`."""
        fabric = self.fabric
        counters = fabric.counters
        if txn.kind is Kind.READ:
            counters.reads += 1
            if txn.data is None:
                txn.data = bytearray(txn.length)
        else:
            counters.writes += 1
        if fabric.trace_enabled:
            fabric.trace.append(txn)
        claimed = Bdf.from_requester_id(txn.requester_id, txn.domain)
        function = sender or fabric.functions.get(claimed)
        if function is None:
            txn.hop(f"{txn.requester_id:#06x}", "block", "no such requester")
            counters.blocked += 1
            return Completion.UNSUPPORTED_REQUEST
        data = memoryview(txn.data if txn.data is not None else b"")
        emitter = txn.requester_id
        worst = Completion.SUCCESS
        for start, end in self._pieces(function, txn.address, txn.length):
            txn.requester_id = emitter
            piece = data[start - txn.address : end - txn.address]
            completion = self._route_piece(function, txn, start, piece)
            if completion is not Completion.SUCCESS:
                worst = completion
        return self._count(txn, worst)

    def route_from_root(self, function: Function, txn: Txn) -> Completion:
        """Finish a request that is known to reach the host bridge; its path leads there."""
        if txn.kind is Kind.READ:
            self.fabric.counters.reads += 1
        else:
            self.fabric.counters.writes += 1
        data = memoryview(txn.data if txn.data is not None else b"")
        bridge = self.fabric.host_bridge_of(function)
        return self._count(txn, self._delivery.at_root(function, txn, bridge, txn.address, data))

    def _count(self, txn: Txn, completion: Completion) -> Completion:
        if completion is Completion.SUCCESS:
            if txn.kind is Kind.READ:
                self.fabric.counters.bytes_read += txn.length
            else:
                self.fabric.counters.bytes_written += txn.length
        return completion

    def dry_climb(self, function: Function) -> Txn | None:
        """A request that no peer claims, climbed to the root; ``None`` if a port refuses it."""
        txn = Txn(Kind.READ, _NOWHERE, 0, function.requester_id, domain=function.bdf.domain)
        return txn if isinstance(self._climb(function, txn, _NOWHERE), AtRoot) else None

    def wire_id(self, function: Function) -> int:
        """The requester ID of ``function``'s requests at the root complex."""
        requester_id = function.requester_id
        for bridge in self.fabric.root_path(function):
            requester_id = _owner(bridge, requester_id)
        return requester_id

    def _pieces(self, function: Function, address: int, length: int) -> list[tuple[int, int]]:
        """Cut a request where it enters or leaves a range that something may claim."""
        end = address + length
        bounds = self.local_ranges(function).bounds
        inside = bounds[bisect_right(bounds, address) : bisect_left(bounds, end)]
        cuts = [address, *inside, end]
        return list(pairwise(cuts))

    def _route_piece(
        self, function: Function, txn: Txn, address: int, data: memoryview
    ) -> Completion:
        outcome = self._climb(function, txn, address)
        if isinstance(outcome, AtPeer):
            self.fabric.counters.direct += 1
            return self._delivery.to_peer(txn, outcome.peer, address, data)
        if isinstance(outcome, AtRoot):
            return self._delivery.at_root(function, txn, outcome.host_bridge, address, data)
        if outcome.unclaimed:
            self.fabric.counters.unclaimed += 1
        else:
            self.fabric.counters.blocked += 1
        if outcome.violation:
            registers.log_acs_violation(outcome.port)
        return Completion.UNSUPPORTED_REQUEST

    # -- upstream -----------------------------------------------------------------------------

    def _climb(self, function: Function, txn: Txn, address: int) -> Outcome:
        """Send a request up, hop by hop, until someone takes or refuses it."""
        fabric = self.fabric
        txn.hop(*emission(function, txn, address))
        if not function.bus_master:
            return _refuse(txn, function, "bus mastering is off")
        node = function
        redirected = False
        while True:
            bridge = fabric.parent(node)
            if bridge is None or not bridge.conventional:
                peer = self._slot_peer(node, address)
                if peer is not None:
                    verdict = judge(node, txn, peer)
                    if verdict.decision is not Decision.REDIRECT:
                        return self._settle(txn, node, peer, verdict)
                    self._redirect(txn, node, verdict)
                    redirected = True
            if bridge is None:
                return AtRoot(fabric.host_bridge_of(node))
            step = self._through(bridge, node, txn, address, redirected=redirected)
            if not isinstance(step, bool):
                return step
            redirected = step
            node = bridge

    def _through(
        self, bridge: Bridge, node: Function, txn: Txn, address: int, *, redirected: bool
    ) -> Outcome | bool:
        """Pass ``bridge`` upwards; whether the request is redirected by now."""
        if not bridge.bus_master:
            return _refuse(txn, bridge, "bus mastering is off")
        if bridge.port_type in _SWITCH_PORTS:
            return self._port(bridge, txn, address, redirected=redirected)
        if bridge.port_type is PortType.UPSTREAM:
            if node.port_type is not PortType.DOWNSTREAM:
                peer = self._bus_peer(node, address)
                if peer is not None:
                    return self._settle(txn, node, peer, Verdict(Decision.DIRECT, ""))
        else:
            peer = self._bus_peer(node, address)
            if peer is not None:
                return self._settle(txn, node, peer, Verdict(Decision.DIRECT, "shared bus"))
        if not redirected and bridge.claims(address):
            txn.hop(str(bridge.bdf), "unclaimed", "nobody below claims the address")
            return Refused(bridge, "nobody below claims the address", unclaimed=True)
        owner = _owner(bridge, txn.requester_id)
        detail = ""
        if owner != txn.requester_id:
            txn.requester_id = owner
            detail = f"as requester {Bdf.from_requester_id(owner, txn.domain)}"
        txn.hop(str(bridge.bdf), "up", detail)
        return redirected

    def _port(self, port: Bridge, txn: Txn, address: int, *, redirected: bool) -> Outcome | bool:
        """A root port or switch downstream port receives a request from below."""
        target: Function | None = None
        if port.claims(address):
            target = port
        elif port.port_type is PortType.DOWNSTREAM:
            target = self._bus_peer(port, address)
        verdict = judge(port, txn, target)
        if verdict.decision is Decision.REDIRECT:
            self._redirect(txn, port, verdict)
            return True
        if verdict.decision is Decision.BLOCK:
            return _refuse(txn, port, verdict.reason, violation=verdict.violation)
        if target is not None and target is not port:
            return self._settle(txn, port, target, verdict)
        txn.hop(str(port.bdf), "up")
        return redirected

    def _settle(self, txn: Txn, node: Function, peer: Function, verdict: Verdict) -> Outcome:
        if verdict.decision is Decision.BLOCK:
            return _refuse(txn, node, verdict.reason, violation=verdict.violation)
        detail = f"to {peer.bdf}" + (f", {verdict.reason}" if verdict.reason else "")
        txn.hop(str(node.bdf), "direct", detail)
        return AtPeer(peer)

    def _redirect(self, txn: Txn, node: Function, verdict: Verdict) -> None:
        self.fabric.counters.redirected += 1
        txn.hop(str(node.bdf), "redirect", verdict.reason)

    def _slot_peer(self, node: Function, address: int) -> Function | None:
        """Another function of the same device that claims the address."""
        if not node.multifunction or node.port_type in _SWITCH_PORTS:
            return None
        for peer in self.fabric.siblings(node):
            if (
                peer is not node
                and peer.physfn is None
                and peer.bdf.bus == node.bdf.bus
                and peer.bdf.device == node.bdf.device
                and answers(self.fabric, peer, address)
            ):
                return peer
        return None

    def _bus_peer(self, node: Function, address: int) -> Function | None:
        """Anything else on the same bus that claims the address."""
        for peer in self.fabric.siblings(node):
            if peer is not node and answers(self.fabric, peer, address):
                return peer
        return None


def emission(function: Function, txn: Txn, address: int) -> Hop:
    """The first hop of a request."""
    kind = f"{txn.kind.value} {address:#x}"
    if txn.at is not AddressType.UNTRANSLATED:
        kind += f", {txn.at.name.lower().replace('_', ' ')}"
    return Hop(str(function.bdf), "emit", kind)


def _refuse(txn: Txn, port: Function, reason: str, *, violation: bool = False) -> Refused:
    txn.hop(str(port.bdf), "block", reason)
    return Refused(port, reason, violation)


def _owner(bridge: Bridge, requester_id: int) -> int:
    """The requester ID after ``bridge``: express ports keep it, others put one of theirs."""
    kind = bridge.port_type
    if kind is PortType.PCIE_TO_PCI_BRIDGE:
        return bridge.secondary << 8
    if kind is None or kind is PortType.PCI_TO_PCIE_BRIDGE:
        return bridge.requester_id
    return requester_id
