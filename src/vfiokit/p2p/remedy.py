"""What would let chosen pairs reach each other below the host bridge, and what it costs.

Two ways: take the ACS redirects off the way, or leave them and let translated requests pass (ATS
with ACS Direct Translated P2P). Both change as few ports as can be: every redirecting function on
the way of a pair must change, and no other is touched.

Source: Linux 7.2 ``drivers/pci/pci.c`` (``config_acs=``, ``disable_acs_redir=``); PCI Express Base
Specification 6.0 §6.12.3 (which requests are redirected), §7.7.11.3 (ACS Control).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.p2p.answer import Answer, MapType, Rule
from vfiokit.p2p.chain import REDIRECTING
from vfiokit.p2p.peers import Peers
from vfiokit.p2p.price import Price, price
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import CONTROL, Acs
from vfiokit.pci.edit import with_acs_control
from vfiokit.pci.topology import Function, Topology

TRANSLATED = Acs(0x5D)
"""Everything Linux enables for isolation, and Direct Translated P2P: SV, RR, CR, UF, DT."""

_FLAGS = 7
_ATS, _ATS_CONTROL, _ATS_ENABLE = 0x0F, 0x06, 0x8000

Pair = tuple[Bdf, Bdf]
"""Provider and client."""


class Way(Enum):
    """How a remedy lets requests pass."""

    CLEAR_REDIRECT = "clear-redirect"
    """No port on the way redirects: Linux then says ``bus-addr``."""
    TRANSLATED = "ats-direct-translated"
    """Ports redirect untranslated requests and pass translated ones. Linux's answer stays; a
    client that uses ATS goes straight to its peer."""


class Change(NamedTuple):
    """One function's ACS Control, before and after."""

    function: Bdf
    offset: int
    """Of the ACS Control register in configuration space."""
    capability: Acs
    before: Acs
    after: Acs

    @property
    def parameter(self) -> str:
        """``FLAGS@address`` of ``config_acs=``: bit 6 first, every bit that the port has."""
        flags = "".join(
            ("1" if self.after & bit else "0") if self.capability & bit else "x"
            for bit in (Acs(1 << number) for number in reversed(range(_FLAGS)))
        )
        return f"{flags}@{self.function}"

    @property
    def setpci(self) -> str:
        """A command that writes only the bits that change."""
        mask = self.before ^ self.after
        return f"setpci -s {self.function} {self.offset:x}.w={self.after & mask:x}:{mask:x}"


class Remedy(NamedTuple):
    """One way to let the pairs pass."""

    way: Way
    pairs: tuple[Pair, ...]
    """What it was made for."""
    changes: tuple[Change, ...]
    """In address order; empty when only the clients' ATS is missing."""
    obstacles: tuple[str, ...]
    """Why it does not work on this machine, or not yet; empty when nothing is in the way."""
    price: Price

    @property
    def config_acs(self) -> str:
        """The kernel parameter that sets every bit explicitly."""
        return "pci=config_acs=" + ";".join(change.parameter for change in self.changes)

    @property
    def disable_acs_redir(self) -> str:
        """The older parameter; it also takes back what the kernel had enabled on those ports."""
        return "pci=disable_acs_redir=" + ";".join(str(change.function) for change in self.changes)

    @property
    def setpci(self) -> tuple[str, ...]:
        """Commands for this boot; the kernel's groups do not follow."""
        return tuple(change.setpci for change in self.changes)


class Advice(NamedTuple):
    """What can be done for some pairs."""

    remedies: tuple[Remedy, ...]
    """The ones for all pairs that need and can have one."""
    direct: tuple[Pair, ...]
    """Pairs that need none."""
    hopeless: tuple[tuple[Pair, str], ...]
    """Pairs that no ACS setting helps, and why."""


def advise(peers: Peers, pairs: Sequence[Pair]) -> Advice:
    """The least that lets every one of ``pairs`` pass below the host bridge.

    :class:`~vfiokit.errors.DeviceNotFoundError` for a function that is not there.
    """
    direct: list[Pair] = []
    hopeless: list[tuple[Pair, str]] = []
    open_answers: list[Answer] = []
    for pair in dict.fromkeys(pairs):
        answer = peers.map_type(*pair)
        if answer.map_type is MapType.BUS_ADDR:
            direct.append(pair)
        elif answer.common is None:
            hopeless.append((pair, _apart(answer)))
        elif not answer.redirecting:
            hopeless.append((pair, f"not known: {'; '.join(answer.unknown)}"))
        else:
            open_answers.append(answer)
    remedies: tuple[Remedy, ...] = ()
    if open_answers:
        remedies = (_clear(peers, open_answers), _translate(peers, open_answers))
    return Advice(remedies, tuple(direct), tuple(hopeless))


def _apart(answer: Answer) -> str:
    way = {
        MapType.THRU_HOST_BRIDGE: "the host bridge forwards between them",
        MapType.NOT_SUPPORTED: "the kernel does not trust the host bridge to forward",
        MapType.UNKNOWN: "whether the host bridge forwards is not known",
    }[answer.map_type]
    only = ""
    if answer.rule is Rule.SAME_BRIDGE_ONLY:
        only = ", as it would below the same host bridge"
    return (
        f"no bridge is above both, so no ACS setting matters; {way}{only}. "
        "A card in another slot would meet its peer: try --what-if move=DEVICE@PORT"
    )


def _clear(peers: Peers, answers: Sequence[Answer]) -> Remedy:
    topology = peers.topology
    ports = sorted({bdf for answer in answers for bdf in answer.redirecting})
    changes = tuple(
        _change(topology[bdf], topology[bdf].acs_control & ~REDIRECTING) for bdf in ports
    )
    obstacles = tuple(
        f"for {answer.client} to {answer.provider}: {missing}"
        for answer in answers
        for missing in answer.unknown
    )
    return _remedy(peers, Way.CLEAR_REDIRECT, answers, changes, obstacles)


def _translate(peers: Peers, answers: Sequence[Answer]) -> Remedy:
    topology = peers.topology
    obstacles: list[str] = []
    changes: list[Change] = []
    for bdf in sorted({bdf for answer in answers for bdf in _on_the_way(topology, answer)}):
        function = topology[bdf]
        change = _change(function, TRANSLATED & function.acs_capability)
        if not function.acs_capability & Acs.DIRECT_TRANSLATED:
            obstacles.append(f"{bdf} has no Direct Translated P2P")
        if change.before != change.after:
            changes.append(change)
    for bdf in sorted({answer.client for answer in answers}):
        obstacles += _ats_obstacle(topology[bdf])
    return _remedy(peers, Way.TRANSLATED, answers, tuple(changes), tuple(obstacles))


def _on_the_way(topology: Topology, answer: Answer) -> set[Bdf]:
    """Bridges of the path that have ACS, and whatever else redirects there."""
    bridges = {
        bdf
        for bdf in answer.path
        if bdf not in (answer.provider, answer.client) and topology[bdf].acs is not None
    }
    return bridges | set(answer.redirecting)


def _ats_obstacle(client: Function) -> list[str]:
    ats = client.capabilities.find_extended(_ATS)
    if ats is None:
        return [f"the client {client.bdf} has no ATS, so it cannot send translated requests"]
    try:
        if ats.raw(_ATS_CONTROL, 2) & _ATS_ENABLE:
            return []
    except ConfigRangeError:
        return [f"whether ATS of the client {client.bdf} is enabled is not known"]
    return [
        f"ATS of the client {client.bdf} is off: its driver or VFIO enables it where the IOMMU "
        "supports it, and the card's firmware may have to be told"
    ]


def _change(function: Function, after: Acs) -> Change:
    assert function.acs is not None
    return Change(
        function.bdf,
        function.acs.offset + CONTROL.offset,
        function.acs_capability,
        function.acs_control,
        after,
    )


def _remedy(
    peers: Peers,
    way: Way,
    answers: Sequence[Answer],
    changes: tuple[Change, ...],
    obstacles: tuple[str, ...],
) -> Remedy:
    edited = with_acs_control(peers.topology, {change.function: change.after for change in changes})
    pairs = tuple((answer.provider, answer.client) for answer in answers)
    return Remedy(way, pairs, changes, obstacles, price(peers.topology, edited))


def assignment_note(answer: Answer) -> str:
    """What becomes of the pair when a VMM maps the provider's BAR for the client, in sentences.

    VFIO (type1) and iommufd (dma-buf) put a peer's BAR into the client's address space without
    asking the rule of the kernel's DMA API.
    """
    head = "VFIO and iommufd map a peer's BAR without asking this rule"
    if answer.map_type is MapType.BUS_ADDR:
        return (
            f"{head}: an assigned {answer.client} sends IOVAs, which the ports on the way compare "
            "with their windows as if they were bus addresses. Guest memory at an address that is "
            f"a window's here never reaches the IOMMU: it lands in a peer (data corruption). Keep "
            "the guest's memory map clear of the host's BARs, or the redirects on."
        )
    if answer.map_type is MapType.THRU_HOST_BRIDGE:
        return f"{head}; here that agrees: requests go up, are translated, and come down."
    return (
        f"{head}: the mapping succeeds although the kernel's own drivers would be refused. Whether "
        "data arrives depends on the root complex: test it with data before relying on it."
    )
