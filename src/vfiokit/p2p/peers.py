"""Can two functions do DMA to each other: Linux's own algorithm, on configuration bytes.

Source: Linux 7.2 ``drivers/pci/p2pdma.c`` (``calc_map_type_and_dist``,
``pci_p2pdma_distance_many``). Direction matters in what is said, and in which functions' ACS is
looked at first; map type and distance are the same both ways.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.host.processor import Cpu
from vfiokit.p2p import code
from vfiokit.p2p.answer import Answer, Distances, MapType, Rule, Verdict
from vfiokit.p2p.chain import Chain, Chains, Redirect
from vfiokit.p2p.host_bridge import Approval, approve, deduce_cpu
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import HostBridge, Topology

if TYPE_CHECKING:
    from vfiokit.p2p.matrix import Matrix

_MESSAGE_ROOM = 127
"""Characters of the list of ports in the kernel's message: a buffer of 128, its NUL included."""


class _Meeting(NamedTuple):
    """How two chains meet."""

    common: Bdf | None
    ours: int
    """Nodes of the provider's chain below ``common``; all of them without one."""
    theirs: int
    """The same of the client's chain."""


class Peers:
    """Everything about peer-to-peer DMA on one topology."""

    def __init__(self, topology: Topology, *, cpu: Cpu | None = None) -> None:
        """``cpu`` is the host's processor; where it is not known, the host's functions are asked
        (:func:`~vfiokit.p2p.host_bridge.deduce_cpu`).
        """
        self.topology = topology
        deduced = deduce_cpu(topology) if cpu is None else None
        self.cpu = cpu if deduced is None else deduced.cpu
        """The processor that the answers rest on; ``None`` when nothing tells."""
        self.cpu_deduced_from = None if deduced is None else deduced.by
        """The function that gave the processor away; ``None`` when it was given, or nothing did."""
        self.chains = Chains(topology)
        self._approvals: dict[tuple[HostBridge, HostBridge], Approval] = {}
        self._verdicts: dict[tuple[Hashable, Hashable], Verdict] = {}
        self._classes: dict[Bdf, Hashable] = {}
        self._single_node: bool | None = None

    def verdict(self, provider: Bdf, client: Bdf) -> Verdict:
        """Map type and distance alone, shared among functions that hang on the same bus.

        :class:`~vfiokit.errors.DeviceNotFoundError` for a function that is not there.
        """
        one, other = self.likeness(provider), self.likeness(client)
        key = (one, None if provider == client else other)
        known = self._verdicts.get(key)
        if known is None:
            known = self._verdicts[key] = self._decide(provider, client)
        return known

    def map_type(self, provider: Bdf, client: Bdf) -> Answer:
        """Everything about DMA of ``client`` to a BAR of ``provider``.

        :class:`~vfiokit.errors.DeviceNotFoundError` for a function that is not there.
        """
        ours, theirs = self.chains.of(provider), self.chains.of(client)
        meeting = _meet(ours, theirs)
        tested = _tested(ours, theirs, meeting)
        redirecting = tuple(bdf for bdf in tested if self._redirect(bdf) is Redirect.YES)
        unseen = tuple(bdf for bdf in tested if self._redirect(bdf) is Redirect.UNKNOWN)
        missing = tuple(f"whether {bdf} has an ACS redirect set" for bdf in unseen)
        approval = self.approval(ours.root, theirs.root)
        messages: list[str] = []
        if meeting.common is None or redirecting:
            kind, rule = approval.map_type, approval.rule
            reason, unknown = approval.reason, (*missing, *approval.unknown)
            if redirecting:
                messages += _acs_messages(provider, client, redirecting)
                if approval.warning:
                    messages.append(approval.warning)
            if kind is MapType.NOT_SUPPORTED:
                messages.append(_refusal(provider, client))
        elif unseen:
            kind, rule, unknown = MapType.UNKNOWN, Rule.UNKNOWN, (*missing, *approval.unknown)
            reason = (
                "configuration space that decides is not in this description: bus-addr if no "
                f"redirect is set there, else {approval.map_type.value}"
            )
        else:
            kind, rule, unknown = MapType.BUS_ADDR, Rule.NO_REDIRECT, ()
            reason = f"no function on the way up to {meeting.common} has an ACS redirect set"
        return Answer(
            provider,
            client,
            kind,
            meeting.ours + meeting.theirs,
            meeting.common,
            _path(ours, theirs, meeting),
            redirecting,
            rule,
            tuple(messages),
            unknown,
            self.code(provider, client),
            reason,
        )

    def distance_many(self, provider: Bdf, clients: Sequence[Bdf]) -> Distances:
        """One provider for several clients: all must be able to reach it."""
        answers = tuple(self.map_type(provider, client) for client in clients)
        kinds = {answer.map_type for answer in answers}
        total: int | None = sum(answer.distance or 0 for answer in answers)
        if not answers or MapType.NOT_SUPPORTED in kinds:
            total = -1
        elif MapType.UNKNOWN in kinds:
            total = None
        return Distances(total, answers)

    def matrix(self, providers: Sequence[Bdf], clients: Sequence[Bdf]) -> Matrix:
        """Every pair at once, by numpy; see :class:`~vfiokit.p2p.matrix.Matrix`."""
        from vfiokit.p2p.matrix import Matrix

        return Matrix(self, providers, clients)

    def code(self, provider: Bdf, client: Bdf) -> str:
        """NVIDIA's word for how far apart the two are: X PIX PXB PHB NODE SYS."""
        if provider == client:
            return code.SELF
        ours, theirs = self.chains.of(provider), self.chains.of(client)
        meeting = _meet(ours, theirs)
        if meeting.common is not None:
            passed = (
                *(bdf for bdf in ours.nodes[: meeting.ours] if bdf != provider),
                meeting.common,
                *(bdf for bdf in theirs.nodes[: meeting.theirs] if bdf != client),
            )
            ends = (provider, client)
            return code.within(self.topology, tuple(bdf for bdf in passed if bdf not in ends))
        if ours.root == theirs.root:
            return code.PHB
        node, far = (code.numa_node(self.topology, chain) for chain in (ours, theirs))
        return code.across(node, far, self.single_node)

    @property
    def single_node(self) -> bool:
        """Whether no function of the host tells of a NUMA node."""
        if self._single_node is None:
            self._single_node = all(
                function.recorded.numa_node is None for function in self.topology
            )
        return self._single_node

    def approval(self, provider: HostBridge, client: HostBridge) -> Approval:
        """What the host-bridge test says of two root buses."""
        known = self._approvals.get((provider, client))
        if known is None:
            known = approve(self.topology, provider, client, self.cpu)
            self._approvals[provider, client] = known
        return known

    def _redirect(self, bdf: Bdf) -> Redirect:
        return self.chains.redirect(bdf)

    def likeness(self, bdf: Bdf) -> Hashable:
        """What functions have in common that every third function sees alike; compare, not read."""
        known = self._classes.get(bdf)
        if known is None:
            chain, function = self.chains.of(bdf), self.topology[bdf]
            if function.is_bridge or self.topology.secondary(function) is not None:
                known = bdf  # others may hang below it
            else:
                known = (chain.nodes[1:2] or chain.root, self._redirect(bdf))
            self._classes[bdf] = known
        return known

    def _decide(self, provider: Bdf, client: Bdf) -> Verdict:
        ours, theirs = self.chains.of(provider), self.chains.of(client)
        meeting = _meet(ours, theirs)
        distance = meeting.ours + meeting.theirs
        worst = Redirect.YES
        if meeting.common is not None:
            worst = max(self._redirect(bdf) for bdf in _tested(ours, theirs, meeting))
        if worst is Redirect.NO:
            return Verdict(MapType.BUS_ADDR, distance)
        if worst is Redirect.UNKNOWN:
            return Verdict(MapType.UNKNOWN, distance)
        return Verdict(self.approval(ours.root, theirs.root).map_type, distance)


def map_type(topology: Topology, provider: Bdf, client: Bdf, *, cpu: Cpu | None = None) -> Answer:
    """Everything about DMA of ``client`` to a BAR of ``provider``; :class:`Peers` for many."""
    return Peers(topology, cpu=cpu).map_type(provider, client)


def _meet(ours: Chain, theirs: Chain) -> _Meeting:
    for up, bdf in enumerate(ours.nodes):
        if bdf in theirs.nodes:
            return _Meeting(bdf, up, theirs.nodes.index(bdf))
    return _Meeting(None, len(ours.nodes), len(theirs.nodes))


def _tested(ours: Chain, theirs: Chain, meeting: _Meeting) -> tuple[Bdf, ...]:
    """Whose ACS the kernel looks at, in its order; nobody's without a common bridge."""
    if meeting.common is None:
        return ()
    return (*ours.nodes[: meeting.ours + 1], *theirs.nodes[: meeting.theirs])


def _path(ours: Chain, theirs: Chain, meeting: _Meeting) -> tuple[Bdf, ...]:
    common = () if meeting.common is None else (meeting.common,)
    down = theirs.nodes[: meeting.theirs][::-1]
    return (*ours.nodes[: meeting.ours], *common, *down)


def _acs_messages(provider: Bdf, client: Bdf, redirecting: tuple[Bdf, ...]) -> list[str]:
    listed = ";".join(map(str, redirecting))[:_MESSAGE_ROOM]
    return [
        f"{client}: ACS redirect is set between the client and provider ({provider})",
        f"{client}: to disable ACS redirect for this path, add the kernel parameter: "
        f"pci=disable_acs_redir={listed}",
    ]


def _refusal(provider: Bdf, client: Bdf) -> str:
    return (
        f"{client}: cannot be used for peer-to-peer DMA as the client and provider ({provider}) "
        "do not share an upstream bridge or whitelisted host bridge"
    )
