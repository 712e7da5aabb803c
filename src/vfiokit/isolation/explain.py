"""Why a function is in its group, in full: the rule, the registers, the ways out, the company.

What the machine's own kernel recorded and what is computed here stay apart; what rests on bytes
that nobody captured is unknown, and then no remedy is offered.
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.isolation.acs import AcsWhy, enabled
from vfiokit.isolation.evidence import Fact, evidence, multifunction
from vfiokit.isolation.group import Group, Grouping
from vfiokit.isolation.leak import Leak
from vfiokit.isolation.platform import CAPTURED, Platform
from vfiokit.isolation.reason import Rule, Why
from vfiokit.isolation.remedy import Remedies, remedies
from vfiokit.isolation.viability import manages_own_dma
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology

_CLASS_BRIDGE = 0x06
_NO_REMEDIES = Remedies((), (), "")


class Companion(NamedTuple):
    """Another member of the group, and what has to become of it when the group is assigned."""

    bdf: Bdf
    is_bridge: bool
    driver: str | None
    """The driver that the machine's kernel recorded; ``None``: none, or not recorded."""
    blocks: bool
    """Whether that driver keeps the group from being claimed."""
    text: str
    """What to do with it, without a full stop."""


class Explanation(NamedTuple):
    """All there is to say about one function's group."""

    bdf: Bdf
    is_bridge: bool
    """Whether it is a bridge of any kind: a member of a group that is never assigned itself."""
    group: Group
    """Predicted."""
    recorded_group: int | None
    """The number that the machine's kernel gave."""
    recorded: tuple[Bdf, ...] | None
    """Its members there, in address order; ``None`` where no group was recorded."""
    whys: tuple[Why, ...]
    """The rules that joined its members, that of the function itself first."""
    facts: tuple[Fact, ...]
    """The registers that decided."""
    unknown: tuple[str, ...]
    """Which missing bytes leave the answer open, a sentence without a full stop each."""
    remedies: Remedies
    companions: tuple[Companion, ...]
    leaks: tuple[Leak, ...]
    """Where the hardware lets peers of other groups through to it, or it to them."""
    notes: tuple[str, ...]
    """What else bears on the answer, a sentence with a full stop each."""

    @property
    def alone(self) -> bool:
        """Whether the predicted group holds nothing else."""
        return len(self.group.members) == 1


def explain(
    topology: Topology,
    grouping: Grouping,
    bdf: Bdf,
    *,
    platform: Platform = CAPTURED,
    command_line: str | None = None,
) -> Explanation:
    """Explain the group of ``bdf``.

    ``grouping`` was predicted from ``topology`` for ``platform``; ``command_line`` is the one that
    the machine's kernel was started with, where it is known.
    :class:`~vfiokit.errors.DeviceNotFoundError` if there is no such function.
    """
    function = topology[bdf]
    group = grouping.of(bdf)
    recorded = _recorded_members(topology, function)
    unknown = _unknown(topology, grouping, bdf)
    whys = _whys(grouping, group, bdf)
    leaks = tuple(
        leak for leak in grouping.leaks(topology) if group.id in (*leak.groups, *leak.peer_groups)
    )
    found = _NO_REMEDIES
    if not unknown and (leaks or len(group.members) > 1 or len(recorded or ()) > 1):
        found = remedies(topology, bdf, platform=platform, recorded=recorded)
    return Explanation(
        bdf,
        function.is_bridge or function.identity.class_code >> 16 == _CLASS_BRIDGE,
        group,
        function.recorded.iommu_group,
        recorded,
        whys,
        _facts(topology, function, whys, platform.resolve(topology)),
        unknown,
        found,
        _companions(topology, function, recorded or group.members),
        leaks,
        (
            *_notes(group, recorded, unknown, command_line),
            *_virtual_notes(topology, function),
        ),
    )


def _recorded_members(topology: Topology, function: Function) -> tuple[Bdf, ...] | None:
    number = function.recorded.iommu_group
    if number is None:
        return None
    return tuple(each.bdf for each in topology if each.recorded.iommu_group == number)


def _unknown(topology: Topology, grouping: Grouping, bdf: Bdf) -> tuple[str, ...]:
    if bdf not in grouping.uncertain:
        return ()
    undecided = set(grouping.undecided)
    concerned = {
        *grouping.of(bdf).members,
        *(bridge.bdf for bridge in topology.path_to_root(topology[bdf])),
    }
    stray = {(each.domain, each.bus) for each in concerned} & topology.stray
    return (
        *(
            f"bus {domain:04x}:{bus:02x}: the bridge that leads to it is not in this description"
            for domain, bus in sorted(stray)
        ),
        *(
            f"{each}: what its capabilities say about ACS is not in this description"
            for each in sorted(concerned & undecided)
            if (each.domain, each.bus) not in stray
        ),
    )


def _whys(grouping: Grouping, group: Group, bdf: Bdf) -> tuple[Why, ...]:
    """That of ``bdf``, then those of members that were joined to it; one for the same cause."""
    own = grouping.why(bdf)
    found = {_cause(own): own}
    if own.rule is Rule.OWN:
        found = {}
    for member in group.members:
        why = grouping.why(member)
        if member != bdf and why.rule is not Rule.OWN:
            found.setdefault(_cause(why), why)
    return tuple(found.values()) or (own,)


def _cause(why: Why) -> tuple[object, ...]:
    alias = (why.alias.device, why.alias.source) if why.alias is not None else None
    causes = tuple(sorted((each.reason.value, each.missing) for each in why.acs))
    where = frozenset(each.subject for each in why.acs if why.rule is Rule.PATH_NOT_ISOLATED)
    return (why.rule, alias, causes, where, why.subject[:3] if why.acs else ())


def _facts(
    topology: Topology, function: Function, whys: tuple[Why, ...], platform: Platform
) -> tuple[Fact, ...]:
    """Of those that broke isolation; where nothing did, of those that keep it."""
    causes: dict[Bdf, AcsWhy] = {}
    for why in whys:
        for each in why.acs:
            causes.setdefault(each.subject, each)
    if not causes and whys[0].rule is Rule.OWN:
        for asked in (function, *topology.path_to_root(function)):
            causes[asked.bdf] = enabled(topology, asked, platform=platform).why
    found: list[Fact] = []
    for cause in causes.values():
        subject = topology[cause.subject]
        if cause.isolated or subject.is_bridge or topology.is_multifunction(subject):
            found += evidence(topology, cause)
        else:  # conventional PCI by itself: that there is no ACS does not matter
            found += multifunction(topology, subject)
    return tuple(found)


def _companions(
    topology: Topology, function: Function, members: tuple[Bdf, ...]
) -> tuple[Companion, ...]:
    known = any(each.recorded.driver for each in topology)
    found = []
    for bdf in members:
        if bdf == function.bdf:
            continue
        other = topology[bdf]
        driver = other.recorded.driver
        blocks = bool(driver) and not manages_own_dma(driver or "")
        found.append(
            Companion(bdf, other.is_bridge, driver, blocks, _duty(other, driver, blocks, known))
        )
    return tuple(found)


def _duty(other: Function, driver: str | None, blocks: bool, known: bool) -> str:
    if blocks:
        return f"bound to {driver}: unbind it, or bind it to vfio-pci; the host loses it"
    if driver:
        return f"bound to {driver}: may stay"
    if known:
        return "no driver: may stay so"
    return "driver unknown; pcieport may stay" if other.is_bridge else "driver unknown"


def _virtual_notes(topology: Topology, function: Function) -> list[str]:
    count = len(topology.virtual_functions(function))
    if not count:
        return []
    return [f"It has {count} virtual functions enabled; they have to go before it is assigned."]


def _notes(
    group: Group,
    recorded: tuple[Bdf, ...] | None,
    unknown: tuple[str, ...],
    command_line: str | None,
) -> list[str]:
    notes = []
    overridden = command_line is not None and "pcie_acs_override=" in command_line
    if overridden:
        notes.append(
            "The kernel ran with pcie_acs_override=: its groups claim more than the hardware keeps."
        )
    split_further = recorded is not None and set(recorded) < set(group.members)
    if split_further and not unknown and not overridden:
        notes.append(
            "The machine's kernel split the group further than Linux 7.2 would: "
            "pcie_acs_override=, registers changed since boot, or a quirk of its own."
        )
    notes += [
        f"The kernel's command line sets ACS itself ({option})."
        for option in ("config_acs=", "disable_acs_redir=")
        if command_line is not None and option in command_line
    ]
    return notes
