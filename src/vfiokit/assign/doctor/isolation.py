"""What goes along with a device, and who can reach it from outside its group."""

from __future__ import annotations

from collections.abc import Iterator

from vfiokit.assign.doctor.facts import Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity, loss
from vfiokit.host.usage import uses
from vfiokit.isolation.group import Group
from vfiokit.isolation.leak import Leak
from vfiokit.isolation.reason import Rule
from vfiokit.isolation.viability import manages_own_dma
from vfiokit.pci.quantity import counted
from vfiokit.pci.topology import Function


def check(facts: Facts) -> Iterator[Finding]:
    """Groups as a whole, or the groups of the chosen functions; leaks; made-up isolation."""
    if not facts.devices:
        yield from _summary(facts)
    for function in facts.devices:
        yield from _companions(facts, function)
        yield from _made_up(facts, function)
        yield from _uncertain(facts, function)
    yield from _leaks(facts)


def _is_endpoint(function: Function) -> bool:
    return not function.is_bridge


def _summary(facts: Facts) -> Iterator[Finding]:
    endpoints = [each for each in facts.topology if _is_endpoint(each)]
    if not endpoints:
        return
    alone = 0
    for function in endpoints:
        group = facts.group_map.of(function)
        members = group.members if group is not None else ()
        alone += sum(_is_endpoint(facts.topology[bdf]) for bdf in members) == 1
    source = "predicted from configuration bytes" if facts.group_map.is_predicted else "recorded"
    yield Finding(
        "isolation",
        Severity.OK if alone else Severity.NOTE,
        f"{alone} of {len(endpoints)} endpoints can be assigned without taking others along",
        (Evidence("IOMMU groups", source),),
        "" if alone else "vfiokit groups --why DEVICE says what holds a group together",
    )


def _companions(facts: Facts, function: Function) -> Iterator[Finding]:
    group = facts.group_map.of(function)
    if group is None:
        return
    bdf = function.bdf
    others = [facts.topology[each] for each in group.members if each != bdf]
    taken = [each for each in others if not manages_own_dma(each.recorded.driver or "pci-stub")]
    chosen = {each.bdf for each in facts.devices}
    taken = [each for each in taken if each.bdf not in chosen]
    predicted = " (predicted)" if facts.group_map.is_predicted else ""
    evidence = (_members(group),)
    if not others:
        yield Finding(
            "group",
            Severity.OK,
            f"{bdf} is alone in IOMMU group {group.id}{predicted}",
            evidence,
            device=bdf,
        )
        return
    if not taken:
        yield Finding(
            "group",
            Severity.OK,
            f"{bdf} shares IOMMU group {group.id}{predicted} with "
            f"{counted(len(others), 'function')} that need no change",
            evidence,
            device=bdf,
        )
        return
    listed = ", ".join(f"{each.bdf} ({each.recorded.driver})" for each in taken[:4])
    more = f" and {len(taken) - 4} more" if len(taken) > 4 else ""
    critical = [use for each in taken for use in uses(facts.tree, each) if use.critical]
    yield Finding(
        "group",
        Severity.PROBLEM if critical else Severity.WARNING,
        f"{bdf} takes along {listed}{more}: they share IOMMU group {group.id}{predicted}"
        + (f"; {loss(critical[0])}" if critical else ""),
        (*evidence, _reason(facts, function, taken[0])),
        f"vfiokit groups --why {bdf} says what holds the group together; another slot often "
        "splits it",
        bdf,
    )


def _reason(facts: Facts, function: Function, other: Function) -> Evidence:
    """What puts two functions together; of the one that came first only the other tells."""
    whys = [facts.grouping.why(each.bdf) for each in (function, other)]
    why = next((each for each in whys if each.rule is not Rule.OWN), whys[0])
    return Evidence("by the registers", why.text())


def _members(group: Group) -> Evidence:
    shown = ", ".join(str(bdf) for bdf in group.members[:6])
    more = f" and {len(group.members) - 6} more" if len(group.members) > 6 else ""
    return Evidence(f"/sys/kernel/iommu_groups/{group.id}/devices", shown + more)


def _made_up(facts: Facts, function: Function) -> Iterator[Finding]:
    """A recorded group that is smaller than what the registers allow."""
    group = facts.group_map.of(function)
    if group is None or facts.group_map.is_predicted:
        return
    expected = facts.grouping.of(function.bdf)
    missing = [bdf for bdf in expected.members if bdf not in group.members]
    if function.bdf in facts.grouping.uncertain or not missing:
        return
    override = [value for _, value in facts.options("pcie_acs_override")]
    yield Finding(
        "acs-belief",
        Severity.WARNING,
        f"by its registers {function.bdf} is not isolated from {missing[0]}"
        + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        + ", and the kernel put them in separate groups"
        + (f" (pcie_acs_override={override[0]})" if override else ""),
        (_members(group), Evidence("predicted from registers", ", ".join(map(str, missing[:6])))),
        "do not give these functions to guests that must not reach each other",
        function.bdf,
    )


def _uncertain(facts: Facts, function: Function) -> Iterator[Finding]:
    path = facts.topology.path_to_root(function)
    members = facts.grouping.of(function.bdf).members
    unsure = {*members, *(each.bdf for each in path)} & set(facts.grouping.undecided)
    if unsure:
        yield Finding(
            "acs",
            Severity.UNKNOWN,
            f"ACS of {', '.join(map(str, sorted(unsure)))} cannot be read:"
            " configuration space beyond the first bytes is for root",
            (
                Evidence(
                    f"{min(unsure)} configuration space",
                    f"{len(facts.topology[min(unsure)].config)} bytes",
                ),
            ),
            f"sudo vfiokit doctor {function.bdf}",
            function.bdf,
        )
    elif path:
        words = ", ".join(f"{each.bdf} {int(each.acs_control):#04x}" for each in path)
        yield Finding(
            "acs",
            Severity.OK,
            f"ACS Control on the way up from {function.bdf}: {words}",
            tuple(
                Evidence(
                    f"{each.bdf} ACS Control",
                    f"{int(each.acs_control):#06x} of {int(each.acs_capability):#06x}",
                )
                for each in path
            ),
            device=function.bdf,
        )


def _leaks(facts: Facts) -> Iterator[Finding]:
    wanted = {facts.grouping.of(each.bdf).id for each in facts.devices}
    for leak in facts.grouping.leaks(facts.topology):
        if not wanted or wanted & {*leak.groups, *leak.peer_groups}:
            yield _leak(leak)


def _leak(leak: Leak) -> Finding:
    return Finding(
        "peer-leak",
        Severity.WARNING,
        leak.text().rstrip("."),
        (Evidence(f"{leak.port} ACS Control", leak.why.text()),),
        "give devices below both ports to one guest, or to nobody else",
    )
