"""``vfiokit vmm p2p``: how a guest may learn who reaches whom, run in every way and compared."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.host.processor import Cpu
    from vfiokit.vmm.p2p_run import Comparison, Result

DESCRIPTION = """\
Give the same devices to a guest in each of the ways by which it may learn whether two of
them can do peer-to-peer DMA, let machine code in the guest ask about every pair, and hold
what it is told against what the host's kernel says:

  alone       the usual machine, and nobody to ask: the guest judges its own tree
  replicated  proposal 1 with ports that exist: the host's tree of emulated ports
  seed        proposal 1 as proposed: ports that show the host's ACS
  hypercall   proposal 2: two guest addresses, resolved and answered by the host's kernel
  virtio      proposal 3: a device with a queue, answered by the hypervisor

The proposals are those of "PCI P2P inside VM" (Linux Plumbers Conference 2022).
"""
EPILOG = """\
examples:
  vfiokit vmm p2p                                an NVMe drive and a NIC of the demo host
  vfiokit vmm p2p 08:00.4 08:00.5 nvme --pairs   each pair, too
  vfiokit vmm p2p --way hypercall --way virtio
  vfiokit vmm p2p --machine 'rp0(sw(nvme:a, nvme:b)), rp1(nvme:c)' a b c
  vfiokit vmm p2p --json | jq '.ways[].exits_each'

exit codes: 0 hypercall and virtio tell the truth; 3 one does not
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "device", nargs="*", metavar="DEVICE", help="2 to 16 functions (default: nvme nic)"
    )
    parser.add_argument(
        "--way",
        dest="ways",
        action="append",
        metavar="NAME",
        help="only this one; may be repeated",
    )
    parser.add_argument("--pairs", action="store_true", help="list what was told of each pair")
    parser.add_argument(
        "--machine",
        metavar="TEXT",
        help="a host made to order instead of a twin: 'rp0(nvme:a), rp1(nvme:b)'; devices may "
        "then be named as in the text",
    )
    parser.add_argument(
        "--cpu",
        metavar="amd|intel|other[:FAMILY]",
        help="the host's processor, where its description does not tell",
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Run the ways, print the table."""
    from vfiokit.vmm.p2p_run import WAYS

    known = {way.name: way for way in WAYS}
    wanted = arguments.ways or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"there is no way {unknown[0]!r}", hint=f"ways: {', '.join(known)}")
    comparison = _comparison(arguments, session)
    results = [comparison.run(known[name]) for name in dict.fromkeys(wanted)]
    output = Output(json=arguments.json)
    if output.json:
        body = {
            "functions": [str(bdf) for bdf in comparison.functions],
            "pairs": len(comparison.pairs),
            "ways": [each.document() for each in results],
        }
        output.document("vmm-p2p", session.host, body)
    else:
        _print(output, results, pairs=arguments.pairs)
    told = [each for each in results if each.way.proposal > 1]
    right = all(each.correct == len(each.told) for each in told)
    return exit_code.DONE if right else exit_code.NO


def _comparison(arguments: argparse.Namespace, session: Session) -> Comparison:
    from vfiokit.cli.vmm_plans import check_host
    from vfiokit.vmm.p2p_host import on_machine, on_twin

    cpu = _cpu(arguments)
    if arguments.machine is not None:
        return on_machine(arguments.machine, arguments.device or ["nvme"], cpu=cpu)
    check_host(session)
    return on_twin(session.tree, arguments.device or ["nvme", "nic"], cpu=cpu)


def _cpu(arguments: argparse.Namespace) -> Cpu | None:
    if arguments.cpu is None:
        return None
    from vfiokit.p2p.what_if import parse_cpu

    return parse_cpu(arguments.cpu)


def _print(output: Output, results: list[Result], *, pairs: bool) -> None:
    headers = (
        *("WAY", "PROPOSAL", "TYPE RIGHT", "AND DISTANCE"),
        *("EXITS BEFORE", "EXITS EACH", "TIME EACH"),
    )
    rows = []
    for each in results:
        count = len(each.told)
        rows.append(
            (
                each.way.name,
                str(each.way.proposal or "-"),
                f"{each.correct_types}/{count}",
                f"{each.correct}/{count}",
                str(sum(each.exits_before.values())),
                f"{each.exits_each:.2f}",
                f"{1e6 * each.seconds_each:.0f} µs",
            )
        )
    output.table(headers, rows)
    for each in results:
        output.heading(f"{each.way.name}: {each.way.title}")
        output.line(f"  machine: {'; '.join(each.changed) or 'as it is'}")
        output.line(f"  the guest learns: {'; '.join(each.exposed)}")
    if pairs:
        _print_pairs(output, results)


def _print_pairs(output: Output, results: list[Result]) -> None:
    from vfiokit.vmm.p2p_run import reply_text

    headers = ("PROVIDER", "CLIENT", "HOST", *(each.way.name.upper() for each in results))
    output.heading("pairs")
    output.table(
        headers,
        (
            (
                str(row[0].provider),
                str(row[0].client),
                reply_text(row[0].truth),
                *(each.text() for each in row),
            )
            for row in zip(*(each.told for each in results), strict=True)
        ),
    )
