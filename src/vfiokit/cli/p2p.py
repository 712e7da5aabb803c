"""``vfiokit p2p``: who can do DMA to whom, why, and what would change it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli import processor
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.p2p.answer import Answer
    from vfiokit.p2p.peers import Peers
    from vfiokit.p2p.price import Price
    from vfiokit.p2p.remedy import Advice, Remedy
    from vfiokit.p2p.selection import Row
    from vfiokit.p2p.what_if import Consequences
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.topology import Topology

DESCRIPTION = """\
Say which PCI functions can do DMA to each other's BARs, by the rules of Linux:
below the host bridge by bus address, through the host bridge, or not at all. Rows
are providers (whose BAR it is), columns are clients (who does the DMA).
"""
EPILOG = """\
devices are named by address, ids, path or kind, as in 'vfiokit show'

examples:
  vfiokit p2p                              GPUs, NICs, NVMe drives, accelerators
  vfiokit p2p --from gpu --to nic          some of them
  vfiokit p2p 08:00.0 04:00.0              the story of one pair, and remedies
  vfiokit p2p 05:00.0 nic                  one provider for several clients
  vfiokit p2p --remedy --from gpu --to nic the fewest ports to change for all of these
  vfiokit p2p --what-if acs=0x11@00:02.2 --what-if cpu=amd:0x19
  vfiokit p2p --what-if bridge=8086:09a2@pci0000:80 --what-if move=05:00.0@80:01.0

exit codes: 0 done, or the client reaches the provider; 3 Linux refuses it, or it cannot be told
"""

WORDS = {
    "bus-addr": ("bus", "below the host bridge, by bus address"),
    "thru-host-bridge": ("host", "through the host bridge"),
    "not-supported": ("no", "refused by the kernel"),
    "unknown": ("?", "not known: what decides is not in this description"),
}
"""A short word for each map type, and what it means."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "device", nargs="*", metavar="DEVICE", help="a provider and its client, or clients"
    )
    parser.add_argument("--from", dest="providers", metavar="SEL", help="rows: whose BARs")
    parser.add_argument("--to", dest="clients", metavar="SEL", help="columns: who does the DMA")
    shown = parser.add_mutually_exclusive_group()
    for name, what in (
        ("codes", "NVIDIA's codes only: X PIX PXB PHB NODE SYS"),
        ("types", "Linux's map types only"),
        ("distance", "the kernel's distances"),
    ):
        shown.add_argument(
            f"--{name}", dest="shown", action="store_const", const=name, help=f"show {what}"
        )
    parser.add_argument(
        "--cpu",
        metavar="amd|intel|other[:FAMILY]",
        help="the host's processor, where its description does not tell",
    )
    parser.add_argument("--vfs", action="store_true", help="a row for every virtual function")
    parser.add_argument(
        "--remedy", action="store_true", help="what would let the chosen pairs pass, and its price"
    )
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="CHANGE",
        help="acs=VALUE@DEVICE, cpu=amd|intel[:FAMILY], bridge=VENDOR:DEVICE@BUS or "
        "move=DEVICE@PORT: show only what would differ (may be repeated)",
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Decide, print."""
    from vfiokit.p2p.peers import Peers

    peers = Peers(session.topology(), cpu=processor.chosen(arguments.cpu, session))
    output = Output(json=arguments.json)
    providers, clients = _chosen(arguments, peers)
    if arguments.what_if:
        return _run_what_if(arguments, session, output, peers, providers, clients)
    if arguments.remedy:
        return _run_remedy(session, output, peers, providers, clients)
    if arguments.device and len(clients) == 1:
        return _run_pair(session, output, peers, providers[0], clients[0])
    if arguments.device:
        return _run_many(session, output, peers, providers[0], clients)
    if output.json:
        from vfiokit.p2p import document

        output.document("p2p", session.host, document.matrix(peers, providers, clients))
    else:
        _print_matrix(arguments, output, peers, providers, clients)
    return exit_code.DONE


def _chosen(arguments: argparse.Namespace, peers: Peers) -> tuple[tuple[Bdf, ...], tuple[Bdf, ...]]:
    """Providers and clients, by arguments or by kind."""
    from vfiokit.p2p.selection import usual
    from vfiokit.pci.selector import select

    topology = peers.topology
    if arguments.device:
        if arguments.providers or arguments.clients:
            raise UsageError("name devices, or use --from and --to: not both")
        if len(arguments.device) < 2:
            raise UsageError(
                "a pair has two devices: the provider, whose BAR it is, and the client",
                hint=f"'vfiokit p2p --from {arguments.device[0]}' shows all of its clients",
            )
        first, *rest = arguments.device
        clients = [each.bdf for text in rest for each in select(topology, text)]
        named = select(topology, first)
        if len(named) > 1:
            raise UsageError(
                f"the provider is one function, and {first!r} names {len(named)} functions",
                hint=f"'vfiokit p2p --from {first} --to {','.join(rest)}' shows all of them",
            )
        return (named[0].bdf,), tuple(dict.fromkeys(clients))
    sides = []
    for text in (arguments.providers, arguments.clients):
        chosen = usual(topology) if text is None else _selected(topology, text)
        sides.append(chosen)
    return sides[0], sides[1]


def _selected(topology: Topology, text: str) -> tuple[Bdf, ...]:
    from vfiokit.pci.selector import select

    parts = [part for part in text.split(",") if part]
    found = [each.bdf for part in parts for each in select(topology, part)]
    return tuple(sorted(set(found)))


# -- the matrix


def _print_matrix(
    arguments: argparse.Namespace,
    output: Output,
    peers: Peers,
    providers: Sequence[Bdf],
    clients: Sequence[Bdf],
) -> None:
    from vfiokit.p2p.selection import fold, separate

    if not providers or not clients:
        output.line("there is no GPU, NIC, NVMe drive or accelerator on this host")
        return
    rows, columns = (
        (separate if arguments.vfs else fold)(peers, each) for each in (providers, clients)
    )
    numbers = {row: f"#{number}" for number, row in enumerate(dict.fromkeys((*columns, *rows)))}
    used: set[str] = set()
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            cell = _cell(arguments.shown, peers, row.bdf, column.other_than(row.bdf))
            used.update(cell)
            cells.append(" ".join(cell))
        lines.append(((numbers[row], *_named(peers, row)), cells))
    _print_cells(output, [numbers[column] for column in columns], lines)
    for column in columns:
        if column not in rows:
            output.line(f"{numbers[column]}  {'  '.join(_named(peers, column))}")
    _print_legend(output, used)
    _print_processor(output, peers)


def _cell(shown: str | None, peers: Peers, provider: Bdf, client: Bdf) -> tuple[str, ...]:
    verdict = peers.verdict(provider, client)
    word = WORDS[verdict.map_type.value][0]
    if shown == "distance":
        return (str(verdict.distance),)
    if shown == "types":
        return (word,)
    code = peers.code(provider, client)
    return (code,) if shown == "codes" else (code, word)


def _print_cells(
    output: Output, columns: Sequence[str], lines: Sequence[tuple[tuple[str, ...], list[str]]]
) -> None:
    """One table; on a terminal that is too narrow, several: cells are read, and may not be cut."""
    headers: tuple[str, ...] = ("", "ADDRESS", "CLASS", "NUMA")
    start = 0
    while start < len(columns):
        end = start + _fitting(output, headers, lines) if output.terminal else len(columns)
        output.table(
            (*headers, *columns[start:end]),
            ((*names[: len(headers)], *cells[start:end]) for names, cells in lines),
        )
        # From the second on the number of a row stands for its name.
        start, headers = end, ("",)


def _fitting(
    output: Output,
    headers: tuple[str, ...],
    lines: Sequence[tuple[tuple[str, ...], Sequence[str]]],
) -> int:
    """How many columns of cells fit beside those of ``headers``; at least one."""
    gap = 3
    taken = sum(
        max(len(header), *(len(names[index]) for names, _ in lines)) + gap
        for index, header in enumerate(headers)
    )
    cell = max(len(cell) for _, cells in lines for cell in cells) + gap
    return max((output.console.width - taken) // max(cell, 3 + gap), 1)


def _print_legend(output: Output, used: set[str]) -> None:
    from vfiokit.p2p.code import LEGEND

    for word, meaning in (*LEGEND.items(), *WORDS.values()):
        if word in used:
            output.line(f"{word:<5} {meaning}")


def _named(peers: Peers, row: Row) -> tuple[str, str, str]:
    more = f" + {len(row.members) - 1} VFs" if len(row.members) > 1 else ""
    node = peers.topology[row.bdf].recorded.numa_node
    return f"{row.bdf}{more}", row.kind, "-" if node is None else str(node)


def _print_processor(output: Output, peers: Peers) -> None:
    if peers.cpu is None:
        output.line(
            "the processor is not known, and on AMD Zen the kernel trusts every host bridge: "
            "--cpu says what it is"
        )
    elif peers.cpu_deduced_from is not None:
        output.line(
            f"the processor is taken for {peers.cpu.vendor}, by the host bridge "
            f"{peers.cpu_deduced_from}: this description has no /proc/cpuinfo"
        )


# -- one provider


def _run_many(
    session: Session, output: Output, peers: Peers, provider: Bdf, clients: Sequence[Bdf]
) -> int:
    found = peers.distance_many(provider, clients)
    if output.json:
        from vfiokit.p2p import document

        answers = [document.answer(peers, each) for each in found.answers]
        body = {"cpu": document.processor(peers), "total": found.total, "answers": answers}
        output.document("p2p-clients", session.host, body)
    else:
        rows = (
            (
                str(each.client),
                each.map_type.value,
                each.code,
                str(each.distance),
                each.rule.value,
            )
            for each in found.answers
        )
        output.table(("CLIENT", "MAP TYPE", "CODE", "DISTANCE", "RULE"), rows)
        output.line(_total_text(provider, found.total))
        _print_processor(output, peers)
    return exit_code.DONE if found.total is not None and found.total >= 0 else exit_code.NO


def _total_text(provider: Bdf, total: int | None) -> str:
    if total is None:
        return f"{provider}: whether all of these reach it cannot be told"
    if total < 0:
        return f"{provider} cannot serve all of these: the kernel refuses some (distance -1)"
    return f"{provider} can serve all of these; the sum of the distances is {total}"


def _run_pair(session: Session, output: Output, peers: Peers, provider: Bdf, client: Bdf) -> int:
    from vfiokit.p2p.answer import MapType
    from vfiokit.p2p.remedy import advise, assignment_note

    found = peers.map_type(provider, client)
    back = peers.map_type(client, provider)
    advice = advise(peers, [(provider, client)])
    if output.json:
        from vfiokit.p2p import document

        body = {
            "cpu": document.processor(peers),
            "answer": document.answer(peers, found),
            "reverse": document.answer(peers, back),
            "advice": document.advice(advice),
            "assignment": assignment_note(found),
        }
        output.document("p2p-pair", session.host, body)
    else:
        _print_story(output, peers, found, back)
        output.heading("as assigned devices")
        output.line(f"  {assignment_note(found)}")
        _print_advice(output, advice)
        _print_processor(output, peers)
    reached = found.map_type in (MapType.BUS_ADDR, MapType.THRU_HOST_BRIDGE)
    return exit_code.DONE if reached else exit_code.NO


def _print_story(output: Output, peers: Peers, found: Answer, back: Answer) -> None:
    output.heading(
        f"provider {found.provider}, client {found.client}: {found.map_type.value}, "
        f"{found.code}, distance {found.distance}"
    )
    for line in found.text().splitlines():
        output.line(f"  {line}")
    output.heading("the way")
    for bdf in found.path:
        output.line(f"  {_port_text(peers, bdf, found)}")
    if found.common is None:
        roots = [peers.chains.of(bdf).root for bdf in (found.provider, found.client)]
        output.line(f"  across the host bridge of {' and '.join(dict.fromkeys(map(str, roots)))}")
    if found.messages:
        output.heading("the kernel logs, with the driver's name in front")
        for message in found.messages:
            output.line(f"  {message}")
    output.heading(f"the other way: provider {back.provider}, client {back.client}")
    output.line(f"  {_reverse_text(found, back)}")


def _port_text(peers: Peers, bdf: Bdf, found: Answer) -> str:
    from vfiokit.isolation.acs import bit_names, role
    from vfiokit.p2p.chain import REDIRECTING, Redirect

    port = peers.topology[bdf]
    part = {found.provider: ", the provider", found.client: ", the client"}.get(bdf, "")
    if bdf == found.common and not part:
        part = ", where they meet"
    if port.acs is None:
        told = peers.chains.redirect(bdf) is not Redirect.UNKNOWN
        acs = "no ACS" if told else "ACS not known"
    else:
        acs = f"ACS can {port.acs_capability:#04x} does {port.acs_control:#04x}"
        if port.acs_control & REDIRECTING:
            acs += f": {bit_names(port.acs_control & REDIRECTING)}"
    looked = "" if found.common is not None else " (not looked at)"
    return f"{bdf} {role(port)}{part}; {acs}{looked if port.acs is not None else ''}"


def _reverse_text(found: Answer, back: Answer) -> str:
    text = f"{back.map_type.value}, distance {back.distance}: always the same both ways"
    if len(found.redirecting) > 1:
        listed = ";".join(map(str, back.redirecting))
        text += f"; the kernel logs on {back.client}, and lists {listed}"
    elif found.messages:
        text += f"; the kernel logs on {back.client}"
    return text


# -- remedies


def _run_remedy(
    session: Session,
    output: Output,
    peers: Peers,
    providers: Sequence[Bdf],
    clients: Sequence[Bdf],
) -> int:
    from vfiokit.p2p.remedy import advise

    pairs = [(one, other) for one in providers for other in clients if one != other]
    advice = advise(peers, pairs)
    if output.json:
        from vfiokit.p2p import document

        body = {"cpu": document.processor(peers), **document.advice(advice)}
        output.document("p2p-remedy", session.host, body)
        return exit_code.DONE
    output.line(
        f"{len(pairs)} pairs: {len(advice.direct)} pass below the host bridge already, "
        f"{len(advice.remedies[0].pairs) if advice.remedies else 0} could, "
        f"{len(advice.hopeless)} cannot by any ACS setting"
    )
    _print_advice(output, advice)
    return exit_code.DONE


def _print_advice(output: Output, advice: Advice) -> None:
    for number, remedy in enumerate(advice.remedies, 1):
        _print_remedy(output, number, remedy)
    told = set()
    for (provider, client), reason in advice.hopeless:
        if reason not in told:
            told.add(reason)
            more = sum(1 for _, other in advice.hopeless if other == reason) - 1
            also = f" (and {more} more pairs)" if more else ""
            output.line(f"no remedy by ACS for {client} to {provider}{also}: {reason}")


_HEADS = {
    "clear-redirect": "take the redirects off the way: Linux then says bus-addr",
    "ats-direct-translated": "ATS with ACS 0x5d on the bridges of the way only (Direct "
    "Translated): Linux still says what it says, a client that uses ATS passes directly",
}


def _print_remedy(output: Output, number: int, remedy: Remedy) -> None:
    output.heading(f"remedy {number}: {_HEADS[remedy.way.value]}")
    for obstacle in remedy.obstacles:
        output.line(f"  in the way: {obstacle}")
    if not remedy.possible:
        output.line("  not possible on this machine")
        return
    if not remedy.changes:
        output.line("  no port has to change")
        return
    output.line("  on the kernel's command line (quote the ';' for the boot loader's shell):")
    output.line(f"    {remedy.config_acs}")
    if remedy.way.value == "clear-redirect":
        output.line("  or, which also puts the ports' other ACS bits back to the firmware's value:")
        output.line(f"    {remedy.disable_acs_redir}")
    output.line("  or for this boot; the kernel's groups and remembered answers do not follow:")
    for command in remedy.setpci:
        output.line(f"    {command}")
    _print_price(output, remedy.price, "  price: ")


def _print_price(output: Output, price: Price, head: str) -> None:
    if not price.regroupings:
        output.line(f"{head}IOMMU groups stay as they are")
    for each in price.regroupings:
        output.line(f"{head}{each.text()}")
    for leak in price.leaks:
        output.line(f"{head}{leak}")


# -- what if


def _run_what_if(
    arguments: argparse.Namespace,
    session: Session,
    output: Output,
    peers: Peers,
    providers: Sequence[Bdf],
    clients: Sequence[Bdf],
) -> int:
    from vfiokit.p2p import document
    from vfiokit.p2p.what_if import change, consequences

    machine = change(peers.topology, peers.cpu, arguments.what_if)
    found = consequences(peers, machine, providers, clients)
    if output.json:
        output.document("p2p-what-if", session.host, document.what_if(found))
        return exit_code.DONE
    for words in machine.changes:
        output.line(f"what if: {words}")
    for old, new in machine.addresses.items():
        output.line(f"address: {old} → {new}")
    _print_price(output, found.price, "groups: ")
    _print_differences(output, found, len(providers) * len(clients))
    return exit_code.DONE


def _print_differences(output: Output, found: Consequences, count: int) -> None:
    if not found.differences:
        output.line(f"pairs: all {count} answers stay as they are")
        return
    output.table(
        ("PROVIDER", "CLIENT", "BEFORE", "AFTER"),
        (
            (
                str(each.provider),
                str(each.client),
                f"{each.codes[0]} {each.before.map_type.value} {each.before.distance}",
                f"{each.codes[1]} {each.after.map_type.value} {each.after.distance}",
            )
            for each in found.differences
        ),
    )
    output.line(f"pairs: {len(found.differences)} of {count} answers differ")
