"""``vfiokit bandwidth``: how fast DMA between devices goes, what limits it, what would lift it."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError
from vfiokit.pci.quantity import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vfiokit.p2p.bandwidth import Changes, Flow, Lift, Parameters, Prediction, Rate
    from vfiokit.p2p.bandwidth.route import Way
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.capability.acs import Acs
    from vfiokit.pci.topology import Topology

_PORTS = 8
"""Most ports named in a line."""

DESCRIPTION = """\
Predict the bandwidth of DMA between devices and to memory when all the flows run at
once: from links, packet sizes and the way that ACS makes packets take, each link and
direction shared max-min fairly. It says what limits each flow, and computes again what
would lift it.

  'A > B'     A writes to B           'A < B'     A reads from B
  'A <> B'    both at once            'A > memory', 'A > memory:1' (a NUMA node)
  'A > B @100'  at most 100 Gb/s      'A > B x4'  four such flows

A and B are addresses, ids or kinds, as for the other commands. Where both sides name
several functions, each on the left goes with the nearest on the right. Quote flows:
the shell has a meaning of its own for > and <.
"""
EPILOG = """\
examples:
  vfiokit bandwidth 'nvme > memory'
  vfiokit bandwidth 'nic <> gpu' --host capture.tar.zst --redirect off
  vfiokit bandwidth 'nic <> gpu @392' --topology 'rp(sw acs(nvme:gpu0, nvme:nic0))'
  vfiokit bandwidth --parameters

exit codes: 0 predicted, 3 a flow does not get through at all
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("flows", nargs="*", metavar="FLOW", help="as above, in quotes")
    parser.add_argument(
        "--topology",
        metavar="TEXT|FILE",
        help="a described machine instead of --host ('vfiokit lab run --help' has the grammar)",
    )
    parser.add_argument(
        "--redirect",
        choices=("on", "off"),
        help="as if ACS redirect were on, or off, at every switch port",
    )
    parser.add_argument("--ats", choices=("on", "off"), help="as if devices did, or did not, ATS")
    parser.add_argument(
        "--acs",
        action="append",
        default=[],
        metavar="BITS@PORT",
        help="as if ACS Control of a port were this, for example 0x5d@02:00.0",
    )
    parser.add_argument(
        "--links",
        choices=("captured", "best"),
        default="captured",
        help="links as they were trained, or at the best that both ends can",
    )
    parser.add_argument(
        "--all-pairs", action="store_true", help="each on the left with each on the right"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="set a parameter"
    )
    parser.add_argument("--params", metavar="FILE", help="parameters from a TOML file")
    parser.add_argument(
        "--parameters", action="store_true", help="list the parameters and their sources"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="ways, other limits, and every link's load"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Predict and print."""
    from vfiokit.p2p.bandwidth import Parameters, parse_settings, read_parameters

    given = read_parameters(arguments.params) if arguments.params else {}
    parameters = Parameters({**given, **parse_settings(arguments.set)})
    output = Output(json=arguments.json)
    if arguments.parameters:
        _print_parameters(output, parameters)
        return exit_code.DONE
    if not arguments.flows:
        raise UsageError("no flow", hint="for example: vfiokit bandwidth 'nvme > memory'")
    return _predict(arguments, session, parameters, output)


def _predict(
    arguments: argparse.Namespace, session: Session, parameters: Parameters, output: Output
) -> int:
    from vfiokit.p2p.bandwidth import Changes, lifts, parse_flows, predict

    topology, names = _machine(arguments, session)
    flows = parse_flows(topology, arguments.flows, names=names, all_pairs=arguments.all_pairs)
    changes = Changes(
        acs=_acs(topology, arguments.acs, names or {}),
        redirect=_switch(arguments.redirect),
        ats=_switch(arguments.ats),
        best_links=arguments.links == "best",
    )
    prediction = predict(topology, flows, parameters, changes)
    remedies = lifts(topology, flows, prediction, parameters, changes)
    if output.json:
        host = session.host if arguments.topology is None else "topology"
        body = _document(prediction, remedies, parameters, changes)
        shown = {name: str(bdf) for name, bdf in (names or {}).items()}
        output.document("bandwidth", host, {**body, "names": shown})
    else:
        _Text(output, names or {}).print(prediction, remedies, verbose=arguments.verbose)
    blocked = any(rate.limit == "blocked" for rate in prediction.rates)
    return exit_code.NO if blocked else exit_code.DONE


def _machine(
    arguments: argparse.Namespace, session: Session
) -> tuple[Topology, dict[str, Bdf] | None]:
    if arguments.topology is None:
        return session.topology(), None
    import os

    from vfiokit.p2p.bandwidth.sketch import sketch

    text = arguments.topology
    if os.path.isfile(text):
        with open(text, encoding="utf-8", errors="replace") as file:
            text = file.read()
    drawn = sketch(text)
    return drawn.topology, drawn.names


def _acs(topology: Topology, texts: list[str], names: Mapping[str, Bdf]) -> dict[Bdf, Acs]:
    """ACS Control by port, from ``BITS@PORT`` texts."""
    from vfiokit.pci.capability.acs import Acs
    from vfiokit.pci.selector import select

    found: dict[Bdf, Acs] = {}
    for text in texts:
        number, at, port = text.partition("@")
        try:
            bits = int(number, 0)
        except ValueError:
            bits = -1
        if not at or not 0 <= bits <= 0x7F:
            raise UsageError(
                f"{text!r} is no BITS@PORT", hint="bits are 0 to 0x7f, for example 0x5d@02:00.0"
            )
        ports = [names[port]] if port in names else [each.bdf for each in select(topology, port)]
        found.update(dict.fromkeys(ports, Acs(bits)))
    return found


def _switch(choice: str | None) -> bool | None:
    return None if choice is None else choice == "on"


# -- text -----------------------------------------------------------------------------------------


class _Text:
    """The answer for people; functions of a described machine go by their names."""

    def __init__(self, output: Output, names: Mapping[str, Bdf]) -> None:
        self._output = output
        self._names = [(str(bdf), name) for name, bdf in names.items()]

    def _named(self, text: str) -> str:
        for address, name in self._names:
            text = text.replace(address, name)
        return text

    def _line(self, text: str) -> None:
        self._output.line(self._named(text))

    def print(self, prediction: Prediction, remedies: tuple[Lift, ...], *, verbose: bool) -> None:
        """Everything."""
        self._print_rates(prediction)
        if verbose:
            self._print_details(prediction)
        if remedies:
            self._output.heading("what would lift it:")
            for lift in remedies:
                total = _gbps(lift.prediction.total)
                self._line(f"  {total} Gb/s in all, {_gain(lift)}: {lift.text}")
                self._print_commands(lift)
        if prediction.assumptions:
            self._output.heading("assumed:")
            for text in prediction.assumptions:
                self._line(f"  {text}")

    def _print_commands(self, lift: Lift) -> None:
        from vfiokit.p2p.remedy import config_acs

        if lift.acs and not self._names:  # a described machine has nothing to type them into
            self._output.line(f"      {config_acs(lift.acs)}")
            for change in lift.acs:
                self._output.line(f"      {change.setpci}")

    def _print_rates(self, prediction: Prediction) -> None:
        # Flows that are the same get the same.
        alike: dict[Flow, list[Rate]] = {}
        for rate in prediction.rates:
            alike.setdefault(rate.flow, []).append(rate)
        rows = [
            (
                self._named(str(flow)) + (f" x{len(rates)}, each" if len(rates) > 1 else ""),
                _gbps(rates[0].gbps),
                _gigabytes(rates[0].gbps),
                self._named(rates[0].text),
            )
            for flow, rates in alike.items()
        ]
        if len(prediction.rates) > 1:
            total = prediction.total
            name = f"all {len(prediction.rates)} flows"
            rows.append((name, _gbps(total), _gigabytes(total), ""))
        self._output.table(("FLOW", "Gb/s", "GB/s", "LIMITED BY"), rows)
        redirected = [rate for rate in prediction.rates if rate.redirecting]
        ports = sorted({port for rate in redirected for port in rate.redirecting})
        if ports:
            shown = ", ".join(map(str, ports[:_PORTS]))
            more = f" and {len(ports) - _PORTS} more" if ports[_PORTS:] else ""
            flows = counted(len(redirected), "flow")
            self._line(
                f"ACS redirect at {shown}{more} sends {flows} up to the root complex and down "
                "again: links above are used twice"
            )

    def _print_details(self, prediction: Prediction) -> None:
        for rate in {rate.flow: rate for rate in prediction.rates}.values():
            self._output.heading(self._named(f"{rate.flow}"))
            self._line(f"  way        {_way_text(rate.request)}")
            if rate.answer is not None:
                self._line(f"  data come  {_way_text(rate.answer)}")
            self._line(f"  round trip {rate.rtt_ns:.0f} ns")
            for limit in rate.limits:
                self._line(f"  alone      {_gbps(limit.gbps)} Gb/s by {limit.text}")
        self._output.heading("shared:")
        rows = (
            (
                self._named(load.resource.text()),
                f"{load.link.speed:g} GT/s x{load.link.width}" if load.link else "-",
                _gbps(load.capacity),
                f"{load.used / load.capacity:.0%}",
                str(len(load.flows)),
            )
            for load in prediction.loads
        )
        self._output.table(("WHERE", "LINK", "Gb/s", "USED", "FLOWS"), rows)


def _way_text(way: Way) -> str:
    if way.blocked:
        return f"blocked: {way.blocked}"
    steps = [f"{step.direction.value} {_place(step.place)}" for step in way.steps]
    return ", ".join(steps) or "no link is crossed"


def _place(place: object) -> str:
    return str(getattr(place, "port", place))


def _gbps(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"


def _gigabytes(value: float) -> str:
    return f"{value / 8:.2f}" if math.isfinite(value) else "-"


def _gain(lift: Lift) -> str:
    return f"{lift.gain:.2f} times" if math.isfinite(lift.gain) else "from nothing"


def _print_parameters(output: Output, parameters: Parameters) -> None:
    rows = [
        {
            "name": parameter.name,
            "value": value,
            "default": parameter.default,
            "unit": parameter.unit,
            "meaning": parameter.meaning,
            "source": parameter.source,
        }
        for parameter, value in parameters.items()
    ]
    if output.json:
        output.document("bandwidth-parameters", "", {"parameters": rows})
        return
    for row in rows:
        output.heading(f"{row['name']} = {row['value']:g} {row['unit']}")
        output.line(f"  {row['meaning']}")
        output.line(f"  source: {row['source']}")


# -- JSON -----------------------------------------------------------------------------------------


def _document(
    prediction: Prediction,
    remedies: tuple[Lift, ...],
    parameters: Parameters,
    changes: Changes,
) -> dict[str, object]:
    from vfiokit.p2p.remedy import config_acs

    return {
        "flows": [_flow_document(rate) for rate in prediction.rates],
        "total_gbps": _number(prediction.total),
        "loads": [
            {
                "resource": load.resource.text(),
                "kind": load.resource.kind,
                "name": load.resource.name,
                "direction": load.resource.direction.value,
                "speed_gts": load.link.speed if load.link else None,
                "width": load.link.width if load.link else None,
                "capacity_gbps": load.capacity,
                "used_gbps": load.used,
                "flows": list(load.flows),
            }
            for load in prediction.loads
        ],
        "lifts": [
            {
                "kind": lift.kind,
                "text": lift.text,
                "total_gbps": lift.prediction.total,
                "gain": _number(lift.gain),
                "gbps": [_number(rate.gbps) for rate in lift.prediction.rates],
                "config_acs": config_acs(lift.acs) if lift.acs else None,
                "setpci": [change.setpci for change in lift.acs],
            }
            for lift in remedies
        ],
        "what_if": {
            "redirect": changes.redirect,
            "acs": {str(port): int(bits) for port, bits in changes.acs.items()},
            "ats": changes.ats,
            "best_links": changes.best_links,
        },
        "assumptions": list(prediction.assumptions),
        "parameters": {parameter.name: value for parameter, value in parameters.items()},
    }


def _flow_document(rate: Rate) -> dict[str, object]:
    return {
        "source": str(rate.flow.source),
        "destination": str(rate.flow.destination),
        "kind": rate.flow.kind.value,
        "demand_gbps": rate.flow.demand,
        "gbps": _number(rate.gbps),
        "limited_by": rate.limit,
        "bottleneck": rate.bottleneck.text() if rate.bottleneck else None,
        "why": rate.text,
        "redirecting": [str(port) for port in rate.redirecting],
        "rtt_ns": rate.rtt_ns,
        "request": _way_document(rate.request),
        "answer": _way_document(rate.answer) if rate.answer is not None else None,
        "limits": [limit._asdict() for limit in rate.limits],
    }


def _way_document(way: Way) -> dict[str, object]:
    return {
        "steps": [
            {"place": _place(step.place), "direction": step.direction.value} for step in way.steps
        ],
        "root_complex": str(way.root_complex) if way.root_complex is not None else None,
        "sockets": list(way.sockets) if way.sockets is not None else None,
        "blocked": way.blocked or None,
    }


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
