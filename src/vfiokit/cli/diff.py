"""``vfiokit diff``: what changed between two hosts, or between a host then and now."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfiokit.host.difference import Change, HostDifference
    from vfiokit.isolation.regroup import GroupChanges, Regrouping
    from vfiokit.pci.address import Bdf

DESCRIPTION = """\
Compare two hosts, or two captures of one: devices, ACS, links, drivers, virtual functions, reset
methods, BARs, NUMA nodes, error masks, every other register, and the IOMMU groups, those recorded
and those predicted apart. What only one description can know is listed as not comparable.
"""
EPILOG = """\
each side is what --host takes: live, demo, or a file of any kind

examples:
  vfiokit capture before.tar.zst && …   then, after a change:
  vfiokit diff before.tar.zst live      what the change did
  vfiokit diff good.txt bad.txt -v      two outputs of lspci, field by field

exit codes: 0 nothing differs, 3 something does
"""

_TITLES = {
    "DEVICES": "devices",
    "ACS": "ACS",
    "LINKS": "links",
    "DRIVERS": "drivers",
    "SRIOV": "virtual functions",
    "RESET": "reset methods",
    "BARS": "BARs",
    "NUMA": "NUMA nodes",
    "AER": "error reporting",
    "HOST": "host",
    "OTHER": "other registers and facts",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("before", metavar="A", help="the one: live, demo or a file")
    parser.add_argument("after", metavar="B", help="the other")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="each of the other registers, by name"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Compare and print."""
    from vfiokit.host.difference import difference
    from vfiokit.isolation.regroup import group_changes

    sides = _session(session, arguments.before), _session(session, arguments.after)
    before, after = (side.topology() for side in sides)
    found = difference(before, after, *(_facts(side) for side in sides))
    groups = group_changes(before, after, found.matching)
    same = not (found.changes or groups.recorded or groups.predicted)
    output = Output(json=arguments.json)
    if output.json:
        body = {"before": sides[0].host, "after": sides[1].host, "same": same}
        output.document("diff", sides[0].host, body | document(found, groups))
    else:
        names = arguments.before, arguments.after
        for line in lines(found, groups, names, verbose=arguments.verbose):
            output.line(line)
    return exit_code.DONE if same else exit_code.NO


def _session(session: Session, name: str) -> Session:
    """At the prompt of a software machine, that machine is what is live."""
    return session if name == "live" and session.is_machine else Session(name)


def _facts(session: Session) -> dict[str, str]:
    from vfiokit.errors import SourceError
    from vfiokit.host.facts import host_facts

    try:
        return host_facts(session.tree)
    except SourceError:  # a description without files
        return {}


def lines(
    found: HostDifference, groups: GroupChanges, names: tuple[str, str], *, verbose: bool = False
) -> Iterator[str]:
    """The comparison as text, the most important first."""
    from vfiokit.host.difference import Area

    if not (found.changes or groups.recorded or groups.predicted):
        yield f"nothing differs in {len(found.matching.pairs)} functions"
    areas: dict[Area, list[Change]] = {area: [] for area in Area}
    for change in found.changes:
        areas[change.area].append(change)
    for area, changes in areas.items():
        if area is Area.OTHER and changes and not verbose:
            places = len({(change.address, change.new_address) for change in changes})
            yield f"{_TITLES[area.name]}: {len(changes)} at {places} functions; -v lists them"
        elif changes:
            yield _TITLES[area.name]
            yield from (f"  {_place(change)}{change.text()}" for change in changes)
        if area is Area.DEVICES:
            yield from _group_lines("groups as the kernels made them", groups.recorded)
            yield from _group_lines("groups as predicted", groups.predicted)
    yield from _missing_lines(found, groups, names)


def _place(change: Change) -> str:
    """Where it is, in two columns; nothing for the host as a whole."""
    if change.address is None and change.new_address is None:
        return ""
    if change.what in ("gone", "new"):
        return f"{change.address or change.new_address}  {change.what:<5}"
    return f"{change.address}  "


def _group_lines(title: str, changes: tuple[Regrouping, ...]) -> Iterator[str]:
    if changes:
        yield title
        yield from (f"  {change.text()}" for change in changes)


def _missing_lines(
    found: HostDifference, groups: GroupChanges, names: tuple[str, str]
) -> Iterator[str]:
    """What could not be compared, and who knows it."""
    for name, in_before in zip(names, (True, False), strict=True):
        only = [missing.what for missing in found.missing if missing.in_before is in_before]
        if groups.recorded_in == (in_before, not in_before):
            only.append("recorded groups")
        if only:
            yield f"not comparable, only in {name}: {', '.join(only)}"
    if groups.uncertain:
        yield (
            f"not comparable: the predicted groups of {groups.uncertain} functions, for lack of "
            "configuration bytes"
        )


def document(found: HostDifference, groups: GroupChanges) -> dict[str, object]:
    """The comparison as data."""
    return {
        "functions": {
            "paired": len(found.matching.pairs),
            "gone": [str(function.bdf) for function in found.matching.gone],
            "new": [str(function.bdf) for function in found.matching.new],
            "moved": {
                str(one.bdf): str(other.bdf)
                for one, other in found.matching.pairs
                if one.bdf != other.bdf
            },
        },
        "changes": [
            {
                "area": change.area.name.lower(),
                "address": _address(change.address),
                "new_address": _address(change.new_address),
                "what": change.what,
                "before": change.before,
                "after": change.after,
                "flags_lost": list(change.lost),
                "flags_gained": list(change.gained),
            }
            for change in found.changes
        ],
        "groups": {
            "recorded": _regroupings(groups.recorded) if all(groups.recorded_in) else None,
            "predicted": _regroupings(groups.predicted),
            "uncertain": groups.uncertain,
        },
        "not_comparable": [
            {"what": missing.what, "only_in": "before" if missing.in_before else "after"}
            for missing in found.missing
        ],
    }


def _address(bdf: Bdf | None) -> str | None:
    return None if bdf is None else str(bdf)


def _regroupings(changes: Iterable[Regrouping]) -> list[dict[str, object]]:
    return [
        {
            "kind": change.kind,
            "before": [[str(bdf) for bdf in group] for group in change.before],
            "after": [[str(bdf) for bdf in group] for group in change.after],
        }
        for change in changes
    ]
