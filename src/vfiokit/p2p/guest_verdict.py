"""What the host's fabric does with a guest's peer-to-peer DMA, against what the guest believes.

A guest's driver writes guest-physical addresses (or those of its own IOMMU) into a device; VFIO
has the host's IOMMU translate them, BARs of assigned peers included, and asks nobody whether the
peers can reach one another. The guest's kernel decides by the rule of Linux's ``p2pdma.c`` on the
tree that its hypervisor shows. Source: Linux 7.2 ``drivers/pci/p2pdma.c``,
``drivers/vfio/vfio_iommu_type1.c``; PCI Express Base Specification 6.0 §6.12 (ACS), §10 (ATS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import combinations
from typing import NamedTuple

from vfiokit.p2p.answer import Answer, MapType
from vfiokit.p2p.chain import Redirect, redirect
from vfiokit.p2p.guest import GuestPlan
from vfiokit.p2p.peers import Peers
from vfiokit.p2p.remedy import assignment_note
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function

_ATS = 0x0F
_ATS_CONTROL, _ATS_ENABLE = 0x06, 0x8000


class Route(Enum):
    """Which way the host's fabric sends a guest's request to a peer's BAR."""

    TRANSLATED = "translated"
    """The client asks for translations (ATS), and the switch forwards translated requests
    directly: ACS Direct Translated P2P."""
    UNTRANSLATED = "untranslated"
    """No port on the way redirects: a bridge compares the guest's address with the host's windows
    before any IOMMU sees it, and passes it up only where none fits."""
    IOMMU = "iommu"
    """Up to the IOMMU, translated there, and down again if the root complex forwards."""
    UNKNOWN = "unknown"
    """The bytes at hand end before the ACS of a port on the way."""

    def text(self) -> str:
        """What the hardware does, a clause."""
        return {
            Route.TRANSLATED: "the switch forwards requests that ATS translated, directly",
            Route.UNTRANSLATED: (
                "the bridge in common looks at the guest's address before any IOMMU does"
            ),
            Route.IOMMU: "the request goes up to the IOMMU and back down through the root complex",
            Route.UNKNOWN: "the ACS of ports on the way is not in this description",
        }[self]


class Verdict(Enum):
    """How the guest's belief about a pair stands to the host's truth."""

    AGREES = "agrees"
    CORRUPTS = "believes P2P that the host forbids (data corruption)"
    MISSES = "misses P2P that works (lost bandwidth)"
    UNKNOWN = "cannot be told from this description of the host"


class Pair(NamedTuple):
    """One pair of assigned functions."""

    one: Bdf
    """On the host."""
    other: Bdf
    host: Answer
    route: Route
    """The worst of both directions."""
    works: bool | None
    """Whether peer-to-peer DMA between the two works for a guest; ``None``: not known."""
    guest: Answer
    """Of the guest's kernel, in addresses of the guest."""
    verdict: Verdict
    notes: tuple[str, ...]
    """Sentences without a full stop."""


def has_ats(function: Function) -> bool:
    """Whether ``function`` can ask for translations."""
    return function.capabilities.find_extended(_ATS) is not None


def ats_enabled(function: Function) -> bool:
    """Whether ``function`` asks for translations, as captured."""
    ats = function.capabilities.find_extended(_ATS)
    if ats is None or not function.config.has(ats.offset + _ATS_CONTROL, 2):
        return False
    return bool(function.config.u16(ats.offset + _ATS_CONTROL) & _ATS_ENABLE)


def meets_in_switch(host: Peers, answer: Answer) -> bool:
    """Whether the way of a pair turns round inside a switch."""
    if answer.common is None:
        return False
    return host.topology[answer.common].port_type in (PortType.UPSTREAM, PortType.DOWNSTREAM)


def route(host: Peers, answer: Answer) -> Route:
    """Which way requests of ``answer``'s client take on the host, for a guest.

    One port decides: where the request enters what both functions are below. Redirects further
    down send it up, where it goes anyway, and those above the provider concern its own requests;
    the kernel's rule counts them all.
    """
    topology = host.topology
    if answer.common is None:
        return Route.IOMMU
    port = topology[answer.common]
    if port.port_type not in (PortType.ROOT_PORT, PortType.DOWNSTREAM):
        port = topology[answer.path[answer.path.index(answer.common) + 1]]
    found = redirect(port) if port.is_bridge else Redirect.NO
    if found is Redirect.UNKNOWN:
        return Route.UNKNOWN
    if found is Redirect.NO:
        return Route.UNTRANSLATED
    passes = bool(port.acs_control & Acs.DIRECT_TRANSLATED)
    if passes and ats_enabled(topology[answer.client]) and meets_in_switch(host, answer):
        return Route.TRANSLATED
    return Route.IOMMU


_WORST_FIRST = (Route.UNTRANSLATED, Route.UNKNOWN, Route.IOMMU, Route.TRANSLATED)


def compare(host: Peers, plan: GuestPlan, guest: Peers) -> tuple[Pair, ...]:
    """Every pair of the plan's functions, in the order of the plan.

    ``guest`` answers for :func:`vfiokit.p2p.guest_topology.topology` of the plan.
    """
    return tuple(
        _pair(host, plan, guest, one, other)
        for one, other in combinations(plan.functions.values(), 2)
    )


def _pair(host: Peers, plan: GuestPlan, guest: Peers, one: Bdf, other: Bdf) -> Pair:
    truth = host.map_type(one, other)
    back = host.map_type(other, one)
    ways = {route(host, truth), route(host, back)}
    way = next(each for each in _WORST_FIRST if each in ways)
    works: bool | None = truth.map_type in (MapType.BUS_ADDR, MapType.THRU_HOST_BRIDGE)
    if truth.map_type is MapType.UNKNOWN:
        works = None
    if way is Route.TRANSLATED:
        works = True
    belief = guest.map_type(plan.address(one), plan.address(other))
    bypasses = belief.map_type is MapType.BUS_ADDR and plan.viommu.translates
    verdict = _verdict(works, belief.map_type, bypasses=bypasses)
    notes = tuple(_notes(host, truth, way, bypasses=bypasses))
    return Pair(one, other, truth, way, works, belief, verdict, notes)


def _verdict(works: bool | None, belief: MapType, *, bypasses: bool) -> Verdict:
    if bypasses:
        return Verdict.CORRUPTS
    if works is None or belief is MapType.UNKNOWN:
        return Verdict.UNKNOWN
    believes = belief in (MapType.BUS_ADDR, MapType.THRU_HOST_BRIDGE)
    if believes == works:
        return Verdict.AGREES
    return Verdict.CORRUPTS if believes else Verdict.MISSES


def _notes(host: Peers, truth: Answer, way: Route, *, bypasses: bool) -> Iterator[str]:
    if bypasses:
        yield (
            "the guest's kernel goes around its own IOMMU by bus address, and the host maps only "
            "what that IOMMU maps: the DMA faults or lands elsewhere; let the guest use iommu=pt"
        )
    if way is not Route.TRANSLATED and truth.map_type in (
        MapType.BUS_ADDR,
        MapType.NOT_SUPPORTED,
    ):
        yield assignment_note(truth).rstrip(".")
    root = host.chains.of(truth.provider).root
    approval = host.approval(root, root)
    if way is Route.UNTRANSLATED and approval.map_type is not MapType.THRU_HOST_BRIDGE:
        yield (
            "what a guest calls the peer's address is no bus address of the host, so requests go "
            "up to the IOMMU all the same, and come down if the root complex forwards, for which "
            f"Linux does not vouch: {approval.reason}"
        )
    if way is Route.UNTRANSLATED and truth.redirecting:
        yield (
            "ACS redirects in one direction only: in the other, guest addresses that fall into a "
            f"window of the host below {truth.common} reach the peer without the IOMMU"
        )


class Score(NamedTuple):
    """How a variant does; the least is best."""

    corrupts: int
    misses: int
    unknown: int
    agrees: int = 0


def score(pairs: Sequence[Pair]) -> Score:
    """Pairs by verdict."""
    counts = [pair.verdict for pair in pairs]
    return Score(
        counts.count(Verdict.CORRUPTS),
        counts.count(Verdict.MISSES),
        counts.count(Verdict.UNKNOWN),
        counts.count(Verdict.AGREES),
    )
