"""A guest planned in every variant, and which of them tells its kernel the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vfiokit.assign.vmconfig.prerequisite import (
    Overlap,
    Together,
    hole64,
    overlaps,
    prerequisites,
    travel_together,
)
from vfiokit.assign.vmconfig.settings import Settings
from vfiokit.errors import UsageError
from vfiokit.host.processor import Cpu
from vfiokit.isolation.group import Grouping
from vfiokit.p2p.guest import QEMU, GuestPlan, Machine, Variant, Viommu, flat
from vfiokit.p2p.guest_clique import Cliques, cliques
from vfiokit.p2p.guest_islands import islands
from vfiokit.p2p.guest_topology import groups, topology
from vfiokit.p2p.guest_tree import replicated
from vfiokit.p2p.guest_verdict import Pair, Score, compare, meets_in_switch, score
from vfiokit.p2p.peers import Peers
from vfiokit.p2p.remedy import Remedy, Way, advise
from vfiokit.pci.blueprint import BlueprintError
from vfiokit.pci.topology import Function, Topology


class View(NamedTuple):
    """One variant: the plan, and what the guest's kernel makes of it."""

    plan: GuestPlan
    topology: Topology
    """The guest's."""
    pairs: tuple[Pair, ...]
    grouping: Grouping | None
    """The guest's IOMMU groups; ``None`` without an IOMMU in the guest."""

    @property
    def score(self) -> Score:
        """Pairs by verdict."""
        return score(self.pairs)


@dataclass(frozen=True)
class Assessment:
    """Everything to know before writing a guest down."""

    host: Peers
    views: tuple[View, ...]
    """By variant, today's first."""
    recommended: Variant
    why: str
    """A sentence without its full stop."""
    settings: Settings
    """As asked for, with window and cliques filled in."""
    cliques: Cliques
    together: tuple[Together, ...]
    overlaps: tuple[Overlap, ...]
    prerequisites: tuple[str, ...]
    remedy: Remedy | None
    """What to set on the host so that switches forward directly: ATS, and ACS on the path."""
    omitted: Mapping[Variant, str]
    """Variants that cannot be built, and why."""

    def view(self, variant: Variant) -> View:
        """The view of ``variant``; where a machine has no ports, its only one.

        Raises :class:`~vfiokit.errors.UsageError` for one that cannot be built.
        """
        if variant in self.omitted:
            raise UsageError(f"{variant}: {self.omitted[variant]}")
        for view in self.views:
            if view.plan.variant is variant:
                return view
        return self.views[0]


def assess(
    host: Topology,
    functions: Sequence[Function],
    *,
    cpu: Cpu | None = None,
    machine: Machine = QEMU,
    viommu: Viommu = Viommu.NONE,
    numa: bool = True,
    settings: Settings | None = None,
    p2p: bool = False,
) -> Assessment:
    """Plan ``functions`` of ``host`` for a guest, in every variant that ``machine`` can show.

    ``cpu`` is the processor of host and guest (``None``: as the host's functions give it away).
    ``p2p`` adds GPUDirect cliques. Raises :class:`~vfiokit.errors.UsageError`.
    """
    given = settings if settings is not None else Settings()
    peers = Peers(host, cpu=cpu)
    today = _view(peers, flat(functions, machine=machine, viommu=viommu))
    others, omitted = _others(peers, functions, today, numa=numa)
    views = (today, *others)
    recommended, why = _recommend(views)
    pairs = views[0].pairs
    found = cliques(functions, pairs) if p2p else Cliques({})
    complete = Settings(
        given.name,
        given.memory,
        given.cpus,
        given.hugepages,
        given.iommufd,
        given.hole64 or hole64(functions),
        found.numbers,
    )
    chosen = next(view for view in views if view.plan.variant is recommended)
    return Assessment(
        peers,
        views,
        recommended,
        why,
        complete,
        found,
        travel_together(host, chosen.plan),
        overlaps(host, pairs, complete.memory),
        prerequisites(host, chosen.plan, complete),
        _translated(peers, pairs),
        omitted,
    )


def _others(
    peers: Peers, functions: Sequence[Function], today: View, *, numa: bool
) -> tuple[list[View], dict[Variant, str]]:
    """The variants beside ``today``, and those that cannot be built, with the reason."""
    host, machine, viommu = peers.topology, today.plan.machine, today.plan.viommu
    views: list[View] = []
    omitted: dict[Variant, str] = {}

    def mirror(*, seed: bool) -> GuestPlan:
        return replicated(host, functions, machine=machine, viommu=viommu, numa=numa, seed=seed)

    def group() -> GuestPlan:
        return islands(host, functions, today.pairs, machine=machine, viommu=viommu, numa=numa)

    makers: dict[Variant, Callable[[], GuestPlan]] = {
        Variant.REPLICATED: lambda: mirror(seed=False),
        Variant.ISLANDS: group,
        Variant.SEED: lambda: mirror(seed=True),
    }
    for variant, make in makers.items() if machine.ports else ():
        try:
            views.append(_view(peers, make()))
        except BlueprintError as error:  # more ports or buses than there can be
            omitted[variant] = str(error)
    return views, omitted


def _view(peers: Peers, plan: GuestPlan) -> View:
    guest = topology(plan, peers.topology)
    # Without the host's processor, the guest's host bridge gives none away either.
    pairs = compare(peers, plan, Peers(guest, cpu=peers.cpu))
    return View(plan, guest, pairs, groups(plan, guest))


def _recommend(views: Sequence[View]) -> tuple[Variant, str]:
    """The variant that misleads least; today's where others do no better."""
    real = [view for view in views if view.plan.variant is not Variant.SEED]
    if not real:
        raise UsageError("there is no variant to choose from")
    best = min(real, key=lambda view: view.score[:3])
    first = real[0]
    if len(real) == 1:
        return best.plan.variant, "the machine can show no other"
    if not best.pairs:
        return best.plan.variant, "there is no pair to tell the guest about"
    if best is first:
        return best.plan.variant, "no other variant tells the guest more of the truth"
    before, after = first.score, best.score
    gains = [
        f"{what} in {now} of {len(best.pairs)} pairs, not {was}"
        for what, was, now in (
            ("it believes P2P that the host forbids", before.corrupts, after.corrupts),
            ("it misses P2P that works", before.misses, after.misses),
            ("its belief cannot be judged", before.unknown, after.unknown),
        )
        if was != now
    ]
    return best.plan.variant, "; ".join(gains)


def _translated(peers: Peers, pairs: Sequence[Pair]) -> Remedy | None:
    """For both directions of every pair that meets in a switch that redirects."""
    wanted = [
        (provider, client)
        for pair in pairs
        if pair.host.redirecting and meets_in_switch(peers, pair.host)
        for provider, client in ((pair.one, pair.other), (pair.other, pair.one))
    ]
    if not wanted:
        return None
    remedies = advise(peers, wanted).remedies
    return next((each for each in remedies if each.way is Way.TRANSLATED), None)
