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
from vfiokit.isolation.quirk import Condition, acs_quirks
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
_EXTENDED = 0x100
_SHOWN = 6

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


def config_acs(changes: Sequence[Change]) -> str:
    """The kernel parameter that sets every bit of ``changes`` explicitly."""
    return "pci=config_acs=" + ";".join(change.parameter for change in changes)


class Remedy(NamedTuple):
    """One way to let the pairs pass."""

    way: Way
    pairs: tuple[Pair, ...]
    """What it was made for."""
    changes: tuple[Change, ...]
    """In address order; empty when only the clients' ATS is missing."""
    possible: bool
    """Whether this machine can have it: ports and clients offer what it takes."""
    obstacles: tuple[str, ...]
    """Why it does not work on this machine, or not yet; empty when nothing is in the way."""
    price: Price

    @property
    def config_acs(self) -> str:
        """The kernel parameter that sets every bit explicitly."""
        return config_acs(self.changes)

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
        acs_change(topology[bdf], topology[bdf].acs_control & ~REDIRECTING) for bdf in ports
    )
    missing = {each for answer in answers for each in answer.unknown}
    obstacles = [f"not known: {each}" for each in sorted(missing)]
    obstacles += [
        f"for {bdf} the kernel has a workaround of its own, which clears the redirects and takes "
        "no bits from config_acs="
        for bdf in ports
        if any(row.condition is Condition.DWORD_LAYOUT for row in acs_quirks(topology[bdf]))
    ]
    return _remedy(peers, Way.CLEAR_REDIRECT, answers, changes, (True, obstacles))


def _translate(peers: Peers, answers: Sequence[Answer]) -> Remedy:
    topology = peers.topology
    ports = sorted({bdf for answer in answers for bdf in _on_the_way(topology, answer)})
    clients = sorted({answer.client for answer in answers})
    lacking = [bdf for bdf in ports if not topology[bdf].acs_capability & Acs.DIRECT_TRANSLATED]
    states = {bdf: _ats(topology[bdf]) for bdf in clients}
    changes = tuple(
        change
        for bdf in ports
        if (change := acs_change(topology[bdf], TRANSLATED & topology[bdf].acs_capability)).before
        != change.after
    )
    obstacles: list[str] = []
    if lacking:
        obstacles.append(f"no Direct Translated P2P in {_listed(lacking)}")
    for state, words in _ATS_WORDS.items():
        concerned = [bdf for bdf in clients if states[bdf] is state]
        if concerned:
            obstacles.append(words.format(_listed(concerned)))
    possible = not lacking and _Ats.ABSENT not in states.values()
    return _remedy(peers, Way.TRANSLATED, answers, changes, (possible, obstacles))


class _Ats(Enum):
    """What a client can do about translated requests."""

    ABSENT = 0
    UNKNOWN = 1
    OFF = 2
    ON = 3


_ATS_WORDS = {
    _Ats.ABSENT: "no ATS, so no translated requests, in {}",
    _Ats.UNKNOWN: "not known whether ATS is enabled in {}",
    _Ats.OFF: "ATS is off in {}: the kernel enables it with the device's IOMMU domain, and the "
    "card's firmware may have to offer it first",
}


def _ats(client: Function) -> _Ats:
    ats = client.capabilities.find_extended(_ATS)
    if ats is None:
        return _Ats.ABSENT if client.config.has(_EXTENDED, 4) else _Ats.UNKNOWN
    try:
        return _Ats.ON if ats.raw(_ATS_CONTROL, 2) & _ATS_ENABLE else _Ats.OFF
    except ConfigRangeError:
        return _Ats.UNKNOWN


def _listed(bdfs: Sequence[Bdf]) -> str:
    more = f" and {len(bdfs) - _SHOWN} more" if len(bdfs) > _SHOWN else ""
    return ", ".join(map(str, bdfs[:_SHOWN])) + more


def _on_the_way(topology: Topology, answer: Answer) -> set[Bdf]:
    """Bridges of the path that have ACS, and whatever else redirects there."""
    bridges = {
        bdf
        for bdf in answer.path
        if bdf not in (answer.provider, answer.client) and topology[bdf].acs is not None
    }
    return bridges | set(answer.redirecting)


def acs_change(function: Function, after: Acs) -> Change:
    """ACS Control of ``function``, which has the capability, from what it is to ``after``."""
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
    standing: tuple[bool, list[str]],
) -> Remedy:
    """``standing``: whether it is possible, and what is in the way."""
    edited = with_acs_control(peers.topology, {change.function: change.after for change in changes})
    pairs = tuple((answer.provider, answer.client) for answer in answers)
    possible, obstacles = standing
    cost = price(peers.topology, edited)
    return Remedy(way, pairs, changes, possible, tuple(obstacles), cost)


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
    if answer.map_type is MapType.NOT_SUPPORTED:
        head += ": the mapping succeeds although the kernel's own drivers are refused"
    return (
        f"{head}. Whether data arrives depends on the ports and the root complex: test it with "
        "data before relying on it."
    )
