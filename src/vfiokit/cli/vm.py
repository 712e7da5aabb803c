"""``vfiokit vm plan``: a virtual machine for devices, and what its kernel will believe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli import processor
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.assign.vmconfig.assessment import Assessment, View
    from vfiokit.host.processor import Cpu
    from vfiokit.p2p.guest_verdict import Pair

DESCRIPTION = """\
Plan a virtual machine that gets some devices of this host. What the machine's kernel
and NCCL will conclude about peer-to-peer DMA is computed with the kernel's own rules
on the guest's tree, for each way to build that tree, and held against what the host's
fabric does:

  flat        each device below a root port of its own, as tools build it today
  replicated  expander bridges, root ports and switches as on the host
  islands     devices that reach one another below one switch, whatever the host's tree
  seed        ports that show the host's ACS (they need a QEMU and a kernel that
              know them)

With --vmm it prints the machine for a hypervisor, or the topology file for NCCL in
the guest. Nothing is changed.
"""
EPILOG = """\
devices are named by address, ids, path or kind, as in 'vfiokit show'

examples:
  vfiokit vm plan gpu nic --p2p                    compare the variants
  vfiokit vm plan gpu nic --p2p --vmm libvirt -o guest.xml
  vfiokit vm plan gpu nic --p2p --vmm nccl -o topo.xml
  vfiokit vm plan 08:00.0 04:00.0 --viommu intel-pt --memory 64G --hugepages 1G

exit codes: 0 planned; 3 the guest would believe P2P that the host forbids
"""

_SHORT = {
    "AGREES": "agrees",
    "CORRUPTS": "CORRUPTS",
    "MISSES": "misses",
    "UNKNOWN": "unknown",
}

_MANY = 28
"""Pairs of eight functions: more are not listed one by one."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("action", choices=("plan",), help="what to do")
    parser.add_argument("device", nargs="+", metavar="DEVICE", help="functions for the guest")
    parser.add_argument(
        "--p2p",
        action="store_true",
        help="plan for peer-to-peer DMA: the variant that tells the guest most of the truth, and "
        "NVIDIA GPUDirect cliques",
    )
    parser.add_argument(
        "--variant",
        choices=("flat", "replicated", "islands", "seed"),
        help="default: flat, or with --p2p the recommended one",
    )
    parser.add_argument(
        "--vmm",
        choices=("qemu", "libvirt", "cloud-hypervisor", "crosvm", "xl", "nccl"),
        help="print the machine for it; nccl: the topology file for NCCL in the guest",
    )
    parser.add_argument(
        "--viommu",
        default="none",
        choices=("none", "intel", "intel-pt", "virtio"),
        help="the guest's IOMMU; intel-pt: with iommu=pt in the guest",
    )
    parser.add_argument(
        "--cpu",
        metavar="amd|intel|other[:FAMILY]",
        help="the processor of host and guest, where the description of the host does not tell",
    )
    parser.add_argument("--memory", default="16G", metavar="SIZE", help="default: 16G")
    parser.add_argument("--cpus", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--numa",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give the guest the host's NUMA nodes where its tree is replicated (default)",
    )
    parser.add_argument("--hugepages", metavar="2M|1G", help="huge pages behind its memory")
    parser.add_argument("--iommufd", action="store_true", help="assign through iommufd")
    parser.add_argument("--name", default="guest", help="of the machine")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it to a file")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Plan, compare or render, print."""
    from vfiokit.p2p.guest import Variant

    if arguments.output is not None and arguments.vmm is None:
        raise UsageError("-o goes with --vmm", hint="choose what to write: --vmm qemu")
    cpu = processor.chosen(arguments.cpu, session)
    made = _assess(arguments, session, cpu)
    wanted = arguments.variant or (made.recommended if arguments.p2p else Variant.FLAT)
    chosen = made.view(Variant(wanted))
    output = Output(json=arguments.json)
    if arguments.vmm is not None:
        _write(arguments, session, output, made, chosen)
    elif output.json:
        _document(output, session, made, None)
    else:
        for line in lines(made, chosen):
            output.line(line) if isinstance(line, str) else output.table(*line)
    return exit_code.NO if chosen.score.corrupts else exit_code.DONE


def _assess(arguments: argparse.Namespace, session: Session, cpu: Cpu | None) -> Assessment:
    from vfiokit.assign.vmconfig.assessment import assess
    from vfiokit.assign.vmconfig.settings import Settings, parse_size
    from vfiokit.assign.vmconfig.writing import machine_of
    from vfiokit.p2p.guest import Viommu
    from vfiokit.pci.selector import select

    topology = session.topology()
    named = {
        function.bdf: function for text in arguments.device for function in select(topology, text)
    }
    settings = Settings(
        arguments.name,
        parse_size(arguments.memory),
        arguments.cpus,
        parse_size(arguments.hugepages) if arguments.hugepages else 0,
        arguments.iommufd,
    )
    return assess(
        topology,
        list(named.values()),
        cpu=cpu,
        machine=machine_of(arguments.vmm or "qemu"),
        viommu=Viommu(arguments.viommu),
        numa=arguments.numa,
        settings=settings,
        p2p=arguments.p2p,
    )


def _write(
    arguments: argparse.Namespace,
    session: Session,
    output: Output,
    made: Assessment,
    chosen: View,
) -> None:
    from vfiokit.assign.vmconfig.writing import render

    host = made.host
    text = render(arguments.vmm, chosen.plan, made.settings, host.topology, host.cpu)
    for warning in warnings(made, chosen):
        note(f"note: {warning}")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
        note(f"{arguments.vmm} ({chosen.plan.variant}) written to {arguments.output}")
    if output.json:
        _document(output, session, made, {"vmm": arguments.vmm, "text": text})
    elif arguments.output is None:
        output.line(text.rstrip("\n"))


def _document(
    output: Output, session: Session, made: Assessment, rendered: dict[str, str] | None
) -> None:
    from vfiokit.assign.vmconfig.document import body

    output.document("vm-plan", session.host, {**body(made), "rendered": rendered})


def warnings(made: Assessment, chosen: View) -> Iterator[str]:
    """What to heed about the chosen variant, sentences without a full stop."""
    pairs = len(chosen.pairs)
    if chosen.score.corrupts:
        yield (
            f"the guest believes P2P that the host forbids in {chosen.score.corrupts} of {pairs} "
            "pairs (data corruption)"
        )
    if chosen.score.misses:
        yield (
            f"the guest misses P2P that works in {chosen.score.misses} of {pairs} pairs (lost "
            "bandwidth)"
        )
    if chosen.plan.variant is not made.recommended and made.why:
        yield f"{made.recommended} is recommended: {made.why}"
    for overlap in made.overlaps[:3]:
        yield overlap.text()
    if len(made.overlaps) > 3:
        yield f"and {len(made.overlaps) - 3} more BARs overlap the guest's memory"
    yield from (each.text() for each in made.together)
    yield from (f"no {variant} variant: {why}" for variant, why in made.omitted.items())
    yield from made.cliques.left_out
    yield from chosen.plan.limits


_Line = str | tuple[tuple[str, ...], list[tuple[str, ...]]]


def lines(made: Assessment, chosen: View) -> Iterator[_Line]:
    """The comparison, as a person reads it: lines, and tables as headers with rows."""
    variants = [str(view.plan.variant) for view in made.views]
    yield ("HOST", "DEVICE", *(each.upper() for each in variants)), _function_rows(made)
    if chosen.pairs:
        yield ""
        headers = ("PAIR", "HOST", "FABRIC", *(each.upper() for each in variants))
        yield headers, _pair_rows(made)
        yield ""
        yield from _legend(made)
        yield ""
    yield f"recommended: {made.recommended}, because {made.why}"
    if chosen.plan.variant is not made.recommended:
        yield f"chosen: {chosen.plan.variant}"
    yield from _section("warnings", dict.fromkeys(warnings(made, chosen)))
    yield from _section("about pairs", _notes(chosen))
    yield from _section("before it starts", made.prerequisites)
    yield from _section("on the host, for direct P2P by ATS", _host_settings(made))
    numbers = made.cliques.numbers
    yield from _section(
        "GPUDirect cliques", [f"{bdf} in clique {number}" for bdf, number in numbers.items()]
    )


def _function_rows(made: Assessment) -> list[tuple[str, ...]]:
    from vfiokit.cli.describe import device_text

    topology = made.host.topology
    return [
        (
            str(bdf),
            device_text(topology, topology[bdf]),
            *(str(view.plan.address(bdf)) for view in made.views),
        )
        for bdf in made.views[0].plan.functions.values()
    ]


def _pair_rows(made: Assessment) -> list[tuple[str, ...]]:
    """A row for each pair; where there are many, one for those that are alike."""
    pairs = made.views[0].pairs
    rows: dict[object, list[tuple[str, ...]]] = {}
    for index, pair in enumerate(pairs):
        cells = [_cell(view.pairs[index]) for view in made.views]
        way = f"{pair.host.map_type.value} ({pair.host.code})"
        row = (f"{pair.one} {pair.other}", way, pair.route.value, *cells)
        rows.setdefault(index if len(pairs) <= _MANY else row[1:], []).append(row)
    return [
        (f"{first[0]} and {len(more)} more" if more else first[0], *first[1:])
        for first, *more in rows.values()
    ]


def _cell(pair: Pair) -> str:
    belief = f"{pair.guest.map_type.value} ({pair.guest.code})"
    return f"{belief}: {_SHORT[pair.verdict.name]}"


def _legend(made: Assessment) -> Iterator[str]:
    """What the words in the table mean, those that are there."""
    from vfiokit.p2p.guest_verdict import Route, Verdict

    pairs = [pair for view in made.views for pair in view.pairs]
    for route in Route:
        if any(pair.route is route for pair in pairs):
            yield f"{route.value}: {route.text()}"
    for verdict in Verdict:
        if verdict is not Verdict.AGREES and any(pair.verdict is verdict for pair in pairs):
            yield f"{_SHORT[verdict.name]}: {verdict.value}"


def _notes(chosen: View) -> list[str]:
    """Sentences about pairs; the same one about many is said once."""
    subjects: dict[str, list[str]] = {}
    for pair in chosen.pairs:
        for text in pair.notes:
            plain = text.replace(str(pair.host.client), "a client")
            subjects.setdefault(plain, []).append(f"{pair.one} {pair.other}")
    return [
        f"{pairs[0]}{f' and {len(pairs) - 1} more' if len(pairs) > 1 else ''}: {text}"
        for text, pairs in subjects.items()
    ]


def _host_settings(made: Assessment) -> list[str]:
    remedy = made.remedy
    if remedy is None:
        return []
    changes = [remedy.config_acs, *remedy.setpci] if remedy.changes else []
    return [*changes, *remedy.obstacles]


def _section(title: str, entries: object) -> Iterator[str]:
    listed = [str(entry) for entry in entries]  # type: ignore[attr-defined]
    if listed:
        yield f"{title}:"
        yield from (f"  {entry}" for entry in listed)
