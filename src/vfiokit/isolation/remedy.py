"""What would make the group of a function smaller, and what each such remedy costs.

Every remedy here was computed: the machine was edited, and its groups predicted again. Sources:
Linux 7.2 ``drivers/pci/pci.c`` (``pci_enable_acs``, ``config_acs=``), ``Documentation/admin-guide/
kernel-parameters.txt``; PCI Express Base Specification 6.0 §6.12 (ACS); for
``pcie_acs_override=``, which no released kernel has, the patch that distributions carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from vfiokit.isolation.acs import enabled
from vfiokit.isolation.group import predict
from vfiokit.isolation.path import between, open_ways, peers_lost
from vfiokit.isolation.place import Place, places
from vfiokit.isolation.platform import Platform
from vfiokit.isolation.what_if import (
    PORTS,
    Change,
    Found,
    applied,
    concerned,
    enabling,
    equipped_everywhere,
    equipping,
    hierarchy,
    least,
    members,
)
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import CONTROL, Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology

_DEVICES = frozenset(
    {
        PortType.ENDPOINT,
        PortType.LEGACY_ENDPOINT,
        PortType.UPSTREAM,
        PortType.RC_INTEGRATED_ENDPOINT,
    }
)
_OVERRIDES = (
    ("downstream", PORTS),
    ("multifunction", _DEVICES),
    ("downstream,multifunction", PORTS | _DEVICES),
)


class Kind(Enum):
    """What has to be changed."""

    KERNEL = "kernel"
    """The kernel sets the bits itself, once its IOMMU driver asks for it."""
    CONFIG_ACS = "config_acs"
    """The kernel parameter ``pci=config_acs=`` sets them."""
    CLOSE = "close"
    """The group stays; ACS at other ports of the switch closes ways past the IOMMU."""
    FIRMWARE = "firmware"
    """Ports that show no ACS capability; firmware may hide it."""
    NEWER_KERNEL = "newer-kernel"
    """A later kernel knows the device for isolated."""
    SLOT = "slot"
    """Another slot of this machine."""
    OVERRIDE = "acs-override"
    """``pcie_acs_override=``: the kernel believes otherwise, the hardware stays as it is."""


class Remedy(NamedTuple):
    """One way to a smaller group."""

    kind: Kind
    members: tuple[Bdf, ...]
    """The group afterwards, predicted anew; the function alone at best. After a change of
    slot, only the function itself keeps a meaning: addresses are new."""
    text: str
    """What to do, a sentence with a full stop."""
    commands: tuple[str, ...] = ()
    """Text to type, a line each."""
    costs: tuple[str, ...] = ()
    """What it costs, a sentence with a full stop each."""
    changes: tuple[Change, ...] = ()
    """The ACS bits it enables."""
    isolates: bool = True
    """Whether the hardware then keeps apart what the groups keep apart."""


class Remedies(NamedTuple):
    """All remedies for one function, and what none of them separates."""

    remedies: tuple[Remedy, ...]
    """Those that change least first."""
    inseparable: tuple[Bdf, ...]
    """Other functions that stay in the group when every ACS bit there could be is enabled."""
    reason: str
    """Why, as the end of a sentence, with a full stop; empty without such functions."""


def remedies(
    topology: Topology, bdf: Bdf, *, platform: Platform, recorded: tuple[Bdf, ...] | None = None
) -> Remedies:
    """What would make the group of ``bdf`` smaller.

    ``recorded`` is its group as the machine's own kernel made it, where that is known.
    """
    platform = platform.resolve(topology)
    part = hierarchy(topology, topology[bdf])
    now = members(part, bdf, platform=platform)
    found = least(
        part,
        bdf,
        enabling(part, concerned(part, now, bdf), platform=platform),
        platform=platform,
    )
    # Where no IOMMU was in use, what Linux enables with one comes first; the rest builds on it.
    base = platform
    if recorded is None:
        base = platform._replace(program_acs=True, acs_requested=True)
    start = members(part, bdf, platform=base)
    functions = concerned(part, start, bdf)
    candidates = (
        *equipping(part, functions, platform=base),
        *enabling(part, functions, platform=base),
    )
    equipped = least(part, bdf, candidates, platform=base)
    listed: list[Remedy] = []
    listed += _by_kernel(part, bdf, found, now, platform, recorded is not None)
    if found.changes:
        listed.append(_by_parameter(part, bdf, found, platform))
    listed += _by_closing(part, bdf, found, platform)
    listed += _by_newer_kernel(part, bdf, now, recorded, platform)
    if any(change.new_capability for change in equipped.changes):
        listed.append(_by_firmware(part, bdf, equipped, base))
    if not topology[bdf].is_bridge:
        listed += _by_slot(topology, bdf, start, base)
        listed += _by_override(part, bdf, start, base)
    return _judged(tuple(listed), bdf, equipped, base)


def _judged(listed: tuple[Remedy, ...], bdf: Bdf, equipped: Found, platform: Platform) -> Remedies:
    """With what stays together whatever is enabled."""
    left = tuple(member for member in equipped.members if member != bdf)
    reason = ""
    if left:
        why = predict(equipped.topology, platform=platform)
        reason = next(
            each.text()
            for each in map(why.why, (bdf, *left))
            if each.others and (each.acs or each.alias)
        )
        # Its head names a group number, which means nothing on a part of an edited machine.
        reason = reason.partition(" because ")[2]
    return Remedies(listed, left, reason)


def config_acs(topology: Topology, changes: Iterable[Change]) -> str:
    """The kernel parameter that enables ``changes``: ``pci=config_acs=xx11101@0000:02:00.0;…``.

    Seven flags to a port, DT EC UF CR RR TB SV from left to right: every bit that the port offers
    is explicit, as it is now or 1; ``x`` leaves the others as firmware had them.
    """
    parts = []
    for change in changes:
        function = topology[change.bdf]
        wanted = function.acs_control | change.bits
        flags = "".join(
            ("1" if wanted & bit else "0") if function.acs_capability & bit else "x"
            for bit in reversed(Acs)
        )
        parts.append(f"{flags}@{change.bdf}")
    return "pci=config_acs=" + ";".join(parts)


def setpci(changes: Iterable[Change]) -> tuple[str, ...]:
    """Commands that enable ``changes`` in hardware at once."""
    return tuple(
        f"setpci -s {change.bdf} ECAP_ACS+{CONTROL.offset}.w={change.bits:04x}:{change.bits:04x}"
        for change in changes
    )


def _by_kernel(
    topology: Topology,
    bdf: Bdf,
    found: Found,
    now: tuple[Bdf, ...],
    platform: Platform,
    grouped: bool,
) -> Iterator[Remedy]:
    """What Linux does by itself when its IOMMU driver asks for ACS."""
    asked = platform._replace(program_acs=True, acs_requested=True)
    then = members(topology, bdf, platform=asked)
    if not set(then) < set(now):
        return
    # Some ports have enabling of their own, which no control register as we know it shows.
    ports = [change.bdf for change in found.changes] or [
        each.bdf
        for each in concerned(topology, now, bdf)
        if not enabled(topology, each, platform=platform)
        and enabled(topology, each, platform=asked)
    ]
    named = " and ".join(map(str, ports))
    if grouped:
        text = (
            f"Linux enables ACS at {named} by itself, and it is off: look for config_acs= or "
            "disable_acs_redir= on its command line, or for a script that runs setpci."
        )
    else:
        text = (
            "No groups are recorded here: the IOMMU may have been off. Linux started with it "
            "on (intel_iommu=on; AMD's is on unless switched off) enables ACS by itself at "
            f"{named}, and at every other port that has it."
        )
    costs = (*peers_lost(topology, found.changes), *_still_open(topology, bdf, asked))
    yield Remedy(Kind.KERNEL, then, text, (), costs, found.changes)


def _by_parameter(topology: Topology, bdf: Bdf, found: Found, platform: Platform) -> Remedy:
    ports = " and ".join(str(change.bdf) for change in found.changes)
    return Remedy(
        Kind.CONFIG_ACS,
        found.members,
        f"Enable ACS on the kernel's command line (Linux 6.11 or later) at {ports}.",
        (config_acs(topology, found.changes), *setpci(found.changes)),
        (
            *peers_lost(topology, found.changes),
            *_still_open(found.topology, bdf, platform),
            "The setpci lines act at once and last until the next reset of the port; groups are "
            "made at boot, so only the kernel parameter changes them.",
            *_quoting(found.changes),
        ),
        found.changes,
    )


def _quoting(changes: tuple[Change, ...]) -> tuple[str, ...]:
    if len(changes) < 2:
        return ()
    return ("Boot loaders take a bare ; for the end of the line: put the parameter in quotes.",)


def _by_closing(topology: Topology, bdf: Bdf, found: Found, platform: Platform) -> Iterator[Remedy]:
    """Request Redirect at ports of the switch that let peers through, whatever the groups."""
    grouping = predict(topology, platform=platform)
    own = grouping.of(bdf).id
    ports: dict[Bdf, None] = {}
    for leak in grouping.leaks(topology):
        if own in (*leak.groups, *leak.peer_groups):
            ports.update(dict.fromkeys((leak.port, leak.peer) if leak.mutual else (leak.port,)))
    changes = enabling(topology, map(topology.__getitem__, sorted(ports)), platform=platform)
    if not changes or set(changes) <= set(found.changes):
        return
    after = applied(topology, changes)
    left = _still_open(after, bdf, platform)
    if len(left) >= len(_still_open(topology, bdf, platform)):
        return
    named = " and ".join(str(change.bdf) for change in changes)
    yield Remedy(
        Kind.CLOSE,
        members(after, bdf, platform=platform),
        f"Close the way inside the switch: enable ACS at {named} (Linux 6.11 or later).",
        (config_acs(topology, changes), *setpci(changes)),
        (*peers_lost(topology, changes), *left, *_quoting(changes)),
        changes,
    )


def _still_open(topology: Topology, bdf: Bdf, platform: Platform) -> tuple[str, ...]:
    """What the hardware still lets through after a change, whatever the groups say."""
    grouping = predict(topology, platform=platform)
    return tuple(text for text, _ in open_ways(topology, grouping, bdf))


def _by_firmware(topology: Topology, bdf: Bdf, found: Found, platform: Platform) -> Remedy:
    hidden = [change for change in found.changes if change.new_capability]
    named = " and ".join(str(change.bdf) for change in hidden)
    show = "show" if len(hidden) > 1 else "shows"
    others = [change for change in found.changes if not change.new_capability]
    also = (config_acs(topology, others),) if others else ()
    return Remedy(
        Kind.FIRMWARE,
        found.members,
        f"{named} {show} no ACS capability: if the hardware has it, firmware decides. Look for "
        "an ACS setting, or a later version; then Linux enables it.",
        also,
        (
            *peers_lost(topology, found.changes),
            *_still_open(found.topology, bdf, platform),
        ),
        found.changes,
    )


def _by_newer_kernel(
    topology: Topology,
    bdf: Bdf,
    now: tuple[Bdf, ...],
    recorded: tuple[Bdf, ...] | None,
    platform: Platform,
) -> Iterator[Remedy]:
    """The machine's kernel lacks a quirk: its group is what the registers alone give."""
    if recorded is None or not set(now) < set(recorded):
        return
    if members(topology, bdf, platform=platform, quirks=False) != recorded:
        return
    names = sorted(
        {
            verdict.why.quirk.name
            for verdict in (
                enabled(topology, each, platform=platform)
                for each in concerned(topology, recorded, bdf)
            )
            if verdict.why.quirk is not None and verdict.isolated
        }
    )
    yield Remedy(
        Kind.NEWER_KERNEL,
        now,
        "This machine's kernel made the group from the registers alone; Linux 7.2 knows the "
        f"hardware for isolated ({', '.join(names)}), and so may a kernel before it.",
    )


def _by_slot(
    topology: Topology, bdf: Bdf, now: tuple[Bdf, ...], platform: Platform
) -> Iterator[Remedy]:
    if len(now) == 1:
        return
    found = [place for place in places(topology, bdf, platform=platform) if place.size < len(now)]
    if not found:
        return
    best = min(place.size for place in found)
    found = [place for place in found if place.size == best]
    named = "; ".join(map(_place_text, found[:4]))
    more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
    yield Remedy(
        Kind.SLOT, found[0].members, f"Put it into another slot, if it is a card: {named}{more}."
    )


def _place_text(place: Place) -> str:
    facts = [place.link] if place.link else []
    if place.occupant is not None:
        facts.append(f"now holds {place.occupant}")
    return f"below {place.port}" + (f" ({', '.join(facts)})" if facts else "")


def _by_override(
    topology: Topology, bdf: Bdf, now: tuple[Bdf, ...], platform: Platform
) -> Iterator[Remedy]:
    if len(now) == 1:
        return
    outcomes = [
        (name, members(equipped_everywhere(topology, kinds), bdf, platform=platform))
        for name, kinds in _OVERRIDES
    ]
    best = min(len(outcome) for _, outcome in outcomes)
    if best >= len(now):
        return
    name, then = next(each for each in outcomes if len(each[1]) == best)
    apart = [topology[member] for member in now if member not in then]
    exposed = {each.bdf: each for each in apart if not each.is_bridge}
    for _, others in open_ways(topology, predict(topology, platform=platform), bdf):
        exposed.update((each, topology[each]) for each in others)
    costs = tuple(_exposures(topology, topology[bdf], exposed.values()))
    yield Remedy(
        Kind.OVERRIDE,
        then,
        "A kernel patched for it would split the group, in its own belief only: no register "
        "changes, and the hardware routes as before.",
        (f"pcie_acs_override={name}",),
        costs or ("No other function here is where it could reach it past the IOMMU.",),
        isolates=False,
    )


def _exposures(topology: Topology, function: Function, others: Iterable[Function]) -> Iterator[str]:
    routes: dict[str, list[str]] = {}
    for other in others:
        routes.setdefault(between(topology, function, other), []).append(str(other.bdf))
    for route, named in routes.items():
        yield (
            f"{function.bdf} and {', '.join(named)} can then reach each other {route}, past the "
            "IOMMU, although their groups are apart."
        )
