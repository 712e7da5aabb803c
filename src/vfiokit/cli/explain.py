"""``vfiokit explain``: why a device is in its IOMMU group, and what would split it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.describe import device_text
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfiokit.isolation.evidence import Fact
    from vfiokit.isolation.explain import Explanation
    from vfiokit.isolation.remedy import Remedy

DESCRIPTION = """\
Explain the IOMMU group of a device: the rule, the port and the register bits that decided, what
would make the group smaller, what each remedy costs, and what becomes of the other members when
the group is assigned whole. Every remedy is computed: the machine is edited and its groups are
predicted again.
"""
EPILOG = """\
examples:
  vfiokit explain gpu                   every GPU of this machine
  vfiokit explain 01:00.1 --host demo   a function that shares its group
  vfiokit explain nvme --host report.txt   from the output of lspci

exit codes: 0 explained, whatever the answer
"""

_REASONS = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("device", nargs="+", help="an address, ids, a path or a kind, as in show")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Explain and print."""
    from vfiokit.isolation.explain import explain
    from vfiokit.isolation.group import predict
    from vfiokit.pci.selector import select

    topology = session.topology()
    grouping = predict(topology)
    line = command_line(session)
    chosen = dict.fromkeys(
        function.bdf for text in arguments.device for function in select(topology, text)
    )
    found = [explain(topology, grouping, bdf, command_line=line) for bdf in chosen]
    output = Output(json=arguments.json)
    if output.json:
        body = {"limits": list(session.limits), "devices": [document(each) for each in found]}
        output.document("explain", session.host, body)
        return exit_code.DONE
    for index, explanation in enumerate(found):
        if index:
            output.line()
        first, *rest = lines(explanation, device_text(topology, topology[explanation.bdf]))
        output.heading(first)
        for text in rest:
            output.line(text)
    return exit_code.DONE


def command_line(session: Session) -> str | None:
    """What the host's kernel was started with; ``None`` where its description lacks it."""
    from vfiokit.errors import SourceError
    from vfiokit.host.tree import read_text

    try:
        return read_text(session.tree, "/proc/cmdline")
    except (OSError, SourceError):
        return None


def lines(explanation: Explanation, name: str = "") -> Iterator[str]:
    """The explanation as text; ``name`` says what the device is."""
    yield _headline(explanation)
    if name:
        yield f"  device    {name}"
    if explanation.recorded is not None:
        yield f"  recorded  {_recorded(explanation)}"
    for text in explanation.unknown:
        yield f"  unknown   {text}"
    if explanation.unknown:
        yield "            as root, 'vfiokit capture FILE' and 'lspci -nnvvvxxxx' record it"
        return
    for why in () if explanation.alone else explanation.whys[:_REASONS]:
        yield f"  because   {why.text()}"
    if len(explanation.whys) > _REASONS:
        yield f"            and {len(explanation.whys) - _REASONS} more like these (--json has all)"
    yield from _facts(explanation.facts)
    told: dict[str, int] = {}
    for number, remedy in enumerate(_real(explanation), 1):
        yield from _remedy(number, remedy, told)
    if explanation.remedies.inseparable:
        together = ", ".join(map(str, explanation.remedies.inseparable))
        said = any(explanation.remedies.reason in why.text() for why in explanation.whys)
        yield f"  for good  nothing separates it from {together}" + ("" if said else ":")
        if not said:
            yield f"            {explanation.remedies.reason}"
    for remedy in explanation.remedies.remedies:
        if not remedy.isolates:
            yield f"  beware    {' '.join(remedy.commands)}"
            yield f"            {remedy.text}"
            yield from (f"            {cost}" for cost in remedy.costs)
    yield from _whole(explanation)
    yield from (f"  leak      {leak.text()}" for leak in explanation.leaks)
    yield from (f"  note      {note}" for note in explanation.notes)


def _headline(explanation: Explanation) -> str:
    bdf, group = explanation.bdf, explanation.group
    if explanation.unknown:
        return f"{bdf}: unknown whether it shares its IOMMU group"
    others = len(group.members) - 1
    if not others:
        return (
            f"{bdf} is alone in IOMMU group {group.id}: no bridge above it and no function beside "
            "it breaks its isolation"
        )
    return f"{bdf} shares IOMMU group {group.id} with {others} other{'s' if others > 1 else ''}"


def _recorded(explanation: Explanation) -> str:
    recorded = explanation.recorded or ()
    head = f"group {explanation.recorded_group} by this machine's kernel"
    if recorded == explanation.group.members:
        return f"{head}, the same members"
    others = [str(bdf) for bdf in recorded if bdf != explanation.bdf]
    shared = f"shared with {', '.join(others)}" if others else "alone"
    return f"{head}, {shared}" + ("" if explanation.unknown else ": not as predicted")


def _facts(facts: tuple[Fact, ...]) -> Iterator[str]:
    subject = None
    for fact in facts:
        if fact.subject != subject:
            subject = fact.subject
            yield f"  read      {subject} ({fact.role})"
        yield f"              {fact.text()}"


def _real(explanation: Explanation) -> list[Remedy]:
    return [remedy for remedy in explanation.remedies.remedies if remedy.isolates]


def _remedy(number: int, remedy: Remedy, told: dict[str, int]) -> Iterator[str]:
    """``told``: the costs said already, and with which remedy."""
    left = len(remedy.members) - 1
    then = f"leaves {left} other{'s' if left > 1 else ''}" if left else "then alone"
    yield f"  remedy {number}  {remedy.text} ({then})"
    yield from (f"              {command}" for command in remedy.commands)
    same = sorted({told[cost] for cost in remedy.costs if cost in told})
    if same:
        yield f"            costs what remedy {' and '.join(map(str, same))} costs"
    for cost in remedy.costs:
        if told.setdefault(cost, number) == number:
            yield f"            costs: {cost}"


def _whole(explanation: Explanation) -> Iterator[str]:
    """What it takes to assign the group as it is."""
    companions = explanation.companions
    if explanation.is_bridge:
        return
    if not companions:
        group = "" if explanation.recorded is not None else ", if the kernel groups as predicted"
        yield f"  assign    it can be assigned by itself{group}"
        return
    blocking = sum(1 for companion in companions if companion.blocks)
    verdict = f", {blocking} of them in the way" if blocking else ""
    yield f"  assign    the group goes whole, with {len(companions)} more{verdict}:"
    duties: dict[str, list[str]] = {}
    for each in companions:
        duties.setdefault(each.text, []).append(str(each.bdf))
    yield from (f"              {', '.join(bdfs)}  {text}" for text, bdfs in duties.items())


def document(explanation: Explanation) -> dict[str, object]:
    """The explanation as data; recorded and predicted facts apart."""
    found = explanation.remedies
    recorded = explanation.recorded
    return {
        "address": str(explanation.bdf),
        "recorded": {
            "group": explanation.recorded_group,
            "members": None if recorded is None else [str(bdf) for bdf in recorded],
        },
        "predicted": {
            "known": not explanation.unknown,
            "group": explanation.group.id,
            "members": [str(bdf) for bdf in explanation.group.members],
            "alone": None if explanation.unknown else explanation.alone,
        },
        "unknown": list(explanation.unknown),
        "because": [
            {
                "rule": why.rule.value,
                "subject": str(why.subject),
                "with": [str(bdf) for bdf in why.others],
                "not_isolating": [str(each.subject) for each in why.acs],
                "missing_bits": int(why.missing),
                "quirk": why.quirk,
                "text": why.text(),
            }
            for why in explanation.whys
        ],
        "facts": [{**fact._asdict(), "subject": str(fact.subject)} for fact in explanation.facts],
        "remedies": [_remedy_document(remedy) for remedy in found.remedies],
        "inseparable": {
            "members": [str(bdf) for bdf in found.inseparable],
            "reason": found.reason,
        },
        "companions": [
            {
                "address": str(each.bdf),
                "bridge": each.is_bridge,
                "driver": each.driver,
                "blocks": each.blocks,
                "text": each.text,
            }
            for each in explanation.companions
        ],
        "leaks": [leak.text() for leak in explanation.leaks],
        "notes": list(explanation.notes),
    }


def _remedy_document(remedy: Remedy) -> dict[str, object]:
    return {
        "kind": remedy.kind.value,
        "isolates": remedy.isolates,
        "members": [str(bdf) for bdf in remedy.members],
        "text": remedy.text,
        "commands": list(remedy.commands),
        "costs": list(remedy.costs),
        "changes": [
            {
                "address": str(change.bdf),
                "bits": int(change.bits),
                "new_capability": change.new_capability,
            }
            for change in remedy.changes
        ],
    }
