"""Plan an assignment: look at the host, change nothing.

The steps for one function, in this order, so that no other driver can take it in between
(Linux ``Documentation/ABI/testing/sysfs-bus-pci``, ``driver_override``):

1. ``driver_override`` names the driver, and with it the only one that may bind from now on;
2. unbind from the present driver;
3. bind.

Each step carries the writes that take it back. A former driver is bound again with
``driver_override`` naming it, whatever the override was before, because it may match by no id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vfiokit.assign.binding import (
    DEVICES,
    DRIVERS,
    Action,
    Change,
    check_driver_name,
    read_binding,
)
from vfiokit.assign.document import (
    Blocker,
    Fate,
    Loss,
    Member,
    Plan,
    Role,
    Step,
    Target,
)
from vfiokit.assign.survey import (
    Findings,
    GroupMap,
    examine_driver,
    examine_function,
    examine_uses,
    host_fingerprint,
    uses_vfio,
)
from vfiokit.errors import UsageError
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import Tree
from vfiokit.isolation.group import Group
from vfiokit.isolation.viability import blockers as group_blockers
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology

__all__ = ["Blocker", "Fate", "Loss", "Member", "Plan", "Role", "Step", "Target", "plan"]


def plan(
    tree: Tree,
    bdfs: Sequence[Bdf],
    *,
    driver: str = "vfio-pci",
    include_group: bool = False,
    force: Iterable[str] = (),
) -> Plan:
    """What it takes to bind ``bdfs`` to ``driver``, what is lost, and what forbids it.

    ``include_group`` also unbinds the other members of their IOMMU groups from host drivers, and
    keeps those from coming back; bridges and members that do no harm stay as they are.
    ``force`` names blockers to override, each by its id. Raises
    :class:`~vfiokit.errors.DeviceNotFoundError` for an address that is not there and
    :class:`~vfiokit.errors.UsageError` for a driver that cannot exist or no address at all.
    """
    check_driver_name(driver)
    if not bdfs:
        raise UsageError("no device to assign was named")
    topology = read_topology(tree)
    chosen = [topology[bdf] for bdf in dict.fromkeys(bdfs)]
    groups = GroupMap(topology)
    members, findings = _members(topology, groups, chosen, driver, include_group)
    released = [topology[each.bdf] for each in members if each.fate is Fate.RELEASED]
    roles = [
        *((each, Role.RELEASE) for each in released),
        *((each, Role.ASSIGN) for each in chosen),
    ]
    targets = tuple(_target(tree, groups, function, role) for function, role in roles)
    changed = [topology[each.bdf] for each in targets if not _is_done(each, driver)]
    losses, of_uses = examine_uses(tree, changed)
    findings += of_uses
    for function in chosen:
        if function in changed:
            findings += examine_function(tree, topology, function, driver, groups.of(function))
    if changed:
        findings = examine_driver(tree, driver) + findings
    forced = frozenset(force)
    return Plan(
        driver=driver,
        include_group=include_group,
        host=host_fingerprint(tree),
        targets=targets,
        members=members,
        steps=tuple(step for target in targets for step in _steps(target, driver)),
        losses=losses,
        warnings=_warnings(targets, driver, findings, forced),
        blockers=tuple(dict.fromkeys(findings.blockers)),
        forced=forced,
    )


def _members(
    topology: Topology,
    groups: GroupMap,
    chosen: list[Function],
    driver: str,
    include_group: bool,
) -> tuple[tuple[Member, ...], Findings]:
    """Every member of the groups of ``chosen``, and the host drivers in the way."""
    of_chosen = [groups.of(function) for function in chosen]
    wanted = {group.id: group for group in of_chosen if group is not None}
    picked = {function.bdf for function in chosen}
    found: list[Member] = []
    blockers: list[Blocker] = []
    for group in wanted.values():
        # Only VFIO claims a group as a whole.
        bound = group_blockers(topology, group) if uses_vfio(driver) else {}
        for bdf in group.members:
            member = _member(topology[bdf], group, picked, bound, include_group)
            found.append(member)
            if member.fate is Fate.BLOCKS:
                blockers.append(
                    Blocker(
                        f"group-member:{bdf}",
                        f"{bdf} shares IOMMU group {group.id} and is bound to {member.driver}: "
                        "the group cannot be used while it is",
                        True,
                        "assign it too, or have the plan release the rest of the group",
                    )
                )
    return tuple(found), Findings(tuple(blockers))


def _member(
    function: Function, group: Group, picked: set[Bdf], bound: dict[Bdf, str], include_group: bool
) -> Member:
    driver = function.recorded.driver
    bdf = function.bdf
    if bdf in picked:
        return Member(bdf, group.id, driver, Fate.ASSIGNED, "asked for")
    if bdf not in bound:
        kind = "a bridge" if function.is_bridge else "unbound" if driver is None else "no obstacle"
        why = kind if driver is None or not function.is_bridge else f"a bridge on {driver}"
        return Member(bdf, group.id, driver, Fate.STAYS, why)
    if include_group:
        why = f"{driver} would keep the group from being used"
        return Member(bdf, group.id, driver, Fate.RELEASED, why)
    return Member(bdf, group.id, driver, Fate.BLOCKS, f"bound to {driver}")


def _target(tree: Tree, groups: GroupMap, function: Function, role: Role) -> Target:
    binding = read_binding(tree, function.bdf)
    group = groups.of(function)
    words = function.recorded.names
    label = " ".join(filter(None, (words.get("vendor"), words.get("device"))))
    return Target(
        function.bdf,
        role,
        function.identity,
        label or f"class {function.identity.class_code:06x}",
        binding.driver,
        binding.driver_override,
        None if group is None else group.id,
        groups.is_predicted,
    )


def _is_done(target: Target, driver: str) -> bool:
    return target.role is Role.ASSIGN and target.driver == driver


def _steps(target: Target, driver: str) -> Iterator[Step]:
    if _is_done(target, driver):
        return
    bdf, former = target.bdf, target.driver
    folder = f"{DEVICES}/{bdf}"

    def step(do: Change, reads: tuple[str, str | None], *undo: Change) -> Step:
        return Step(f"{bdf}/{do.action}", do.describe(), (reads,), do, undo)

    def override(name: str | None) -> Change:
        return Change(Action.SET_OVERRIDE, bdf, name)

    yield step(
        override(driver),
        (f"{folder}/driver_override", target.driver_override),
        override(target.driver_override),
    )
    if former is not None:
        yield step(
            Change(Action.UNBIND, bdf, former),
            (f"{folder}/driver", former),
            override(former),
            Change(Action.BIND, bdf, former),
        )
    if target.role is Role.ASSIGN:
        yield step(
            Change(Action.BIND, bdf, driver),
            (f"{DRIVERS}/{driver}", "present"),
            Change(Action.UNBIND, bdf, driver),
        )


def _warnings(
    targets: tuple[Target, ...], driver: str, findings: Findings, forced: frozenset[str]
) -> tuple[str, ...]:
    known = {blocker.id: blocker for blocker in findings.blockers}
    said = [
        f"{target.bdf} is already bound to {driver}: nothing to do for it"
        for target in targets
        if _is_done(target, driver)
    ]
    for name in sorted(forced):
        if name not in known:
            said.append(f"{name} was forced, but nothing of that name blocks this plan")
        elif not known[name].forcible:
            said.append(f"{name} was forced, but cannot be overridden")
    return (*findings.warnings, *said)
