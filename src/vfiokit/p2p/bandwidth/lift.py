"""What would lift a prediction: each remedy computed again, not guessed.

A remedy that gains less than a hundredth is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vfiokit.p2p.bandwidth.flow import Flow, Kind
from vfiokit.p2p.bandwidth.link import SPEED_CODES, Link, LinkMap, rate_text
from vfiokit.p2p.bandwidth.parameter import Parameters
from vfiokit.p2p.bandwidth.predict import (
    AS_CAPTURED,
    Changes,
    Prediction,
    listed,
    predict,
)
from vfiokit.p2p.bandwidth.route import REDIRECTING, AcsView
from vfiokit.p2p.bandwidth.tlp import limits, payload_capability
from vfiokit.p2p.remedy import Change, acs_change
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.topology import Function, Topology

_WORTH = 1.01
_FULL = 0.999
_HUGE_PAGE = 2 << 20
_LARGEST_READ = 4096


class Lift(NamedTuple):
    """One remedy and what it gives."""

    kind: str
    """``acs``, ``ats``, ``link``, ``generation``, ``mps``, ``mrrs`` or ``pages``."""
    text: str
    """What to do, without a full stop."""
    prediction: Prediction
    gain: float
    """The new total divided by the old one; infinite from nothing."""
    acs: tuple[Change, ...] = ()
    """ACS Control of the ports to change, for :func:`vfiokit.p2p.remedy.config_acs`."""


class _Remedy(NamedTuple):
    kind: str
    text: str
    parameters: Parameters
    changes: Changes
    acs: tuple[Change, ...] = ()


def lifts(
    topology: Topology,
    flows: Sequence[Flow],
    prediction: Prediction,
    parameters: Parameters | None = None,
    changes: Changes = AS_CAPTURED,
) -> tuple[Lift, ...]:
    """Remedies that gain, the best first; arguments as for the prediction they shall better."""
    if not math.isfinite(prediction.total):
        return ()
    bench = _Bench(topology, flows, prediction, parameters or Parameters(), changes)
    found: list[Lift] = []
    for remedy in bench.remedies():
        again = predict(topology, flows, remedy.parameters, remedy.changes)
        gain = again.total / prediction.total if prediction.total else math.inf
        as_good = any(lift.kind == remedy.kind and lift.gain >= gain for lift in found)
        if again.total and gain >= _WORTH and not as_good:
            found.append(Lift(remedy.kind, remedy.text, again, gain, remedy.acs))
    return tuple(sorted(found, key=lambda lift: -lift.gain))


class _Bench:
    """Thinks of remedies for one prediction."""

    def __init__(
        self,
        topology: Topology,
        flows: Sequence[Flow],
        prediction: Prediction,
        parameters: Parameters,
        changes: Changes,
    ) -> None:
        self._topology = topology
        self._flows = flows
        self._prediction = prediction
        self._parameters = parameters
        self._changes = changes

    def remedies(self) -> Iterator[_Remedy]:
        """Everything worth computing."""
        yield from self._acs()
        yield from self._links()
        yield from self._packets()
        if any(rate.limit == "iotlb" for rate in self._prediction.rates):
            yield _Remedy(
                "pages",
                "map with pages of 2 MiB, so that the IOTLB covers more",
                self._parameters.replace(iommu_page=_HUGE_PAGE),
                self._changes,
            )

    def _acs(self) -> Iterator[_Remedy]:
        ports = sorted({port for rate in self._prediction.rates for port in rate.redirecting})
        if not ports:
            return
        names = _listed(ports)
        cleared = REDIRECTING | Acs.EGRESS_CONTROL
        off = self._with_acs(ports, lambda bits: bits & ~cleared)
        yield _Remedy(
            "acs",
            f"ACS Request and Completion Redirect off at {names}: "
            "no isolation between what is below them, and their IOMMU groups merge",
            self._parameters,
            off,
            self._registers(ports, off),
        )
        direct = self._with_acs(
            ports, lambda bits: (bits | Acs.DIRECT_TRANSLATED) & ~Acs.TRANSLATION_BLOCKING
        )._replace(ats=True)
        entries = sorted(
            {port for rate in self._prediction.rates for port in rate.request.redirecting}
        )
        text = f"ATS on in {self._requesters()}"
        text += f", and ACS Direct Translated on at {_listed(entries)}" if entries else ""
        registers = self._registers(entries, direct)
        yield _Remedy("ats", f"{text}: isolation stays", self._parameters, direct, registers)
        reads = any(flow.kind is Kind.READ for flow in self._flows)
        if reads and not self._parameters["relaxed_ordering"]:
            yield _Remedy(
                "ats",
                f"{text}, with relaxed ordering, which Completion Redirect spares: isolation stays",
                self._parameters.replace(relaxed_ordering=1),
                direct,
                registers,
            )

    def _requesters(self) -> str:
        sources = sorted({rate.flow.source for rate in self._prediction.rates if rate.redirecting})
        lacking = [
            bdf for bdf in sources if self._topology[bdf].capabilities.find_extended(0x0F) is None
        ]
        text = _listed(sources)
        if lacking and not _is_sparse(self._topology[lacking[0]]):
            text += f" (no ATS capability: {_listed(lacking)})"
        return text

    def _with_acs(self, ports: Sequence[Bdf], change: Callable[[Acs], Acs]) -> Changes:
        view = AcsView(redirect=self._changes.redirect, overrides=self._changes.acs)
        links = LinkMap(self._topology, self._parameters)
        values = dict(self._changes.acs)
        for port in ports:
            function = self._topology[port]
            kind = links.kind(function) if function.is_bridge else None
            values[port] = change(view.bits(function, kind))
        return self._changes._replace(acs=values)

    def _registers(self, ports: Sequence[Bdf], changes: Changes) -> tuple[Change, ...]:
        """What to write where; nothing for a port whose registers were not captured."""
        functions = [self._topology[port] for port in ports]
        return tuple(
            acs_change(function, changes.acs[function.bdf])
            for function in functions
            if function.acs is not None and changes.acs[function.bdf] != function.acs_control
        )

    def _links(self) -> Iterator[_Remedy]:
        used = {load.link.port: load.link for load in self._prediction.loads if load.link}
        slow = {port: link for port, link in used.items() if link.below_best}
        if slow:
            rates = {port: (link.best_speed, link.best_width) for port, link in slow.items()}
            yield _Remedy(
                "link",
                "links at the best that both ends can (GPUs slow theirs down while idle): "
                + _rates(slow, rates),
                self._parameters,
                self._changes._replace(links={**self._changes.links, **rates}),
            )
        full = {
            load.link.port: load.link
            for load in self._prediction.loads
            if load.link and load.used >= _FULL * load.capacity
        }
        faster = {port: _next(link) for port, link in full.items()}
        if faster:
            yield _Remedy(
                "generation",
                "other hardware: " + _rates(full, faster),
                self._parameters,
                self._changes._replace(links={**self._changes.links, **faster}),
            )

    def _packets(self) -> Iterator[_Remedy]:
        payload = self._payload()
        sent = [limits(self._sender(flow), self._parameters).mps for flow in self._flows]
        if payload > max(sent, default=0):
            yield _Remedy(
                "mps",
                f"Max_Payload_Size {payload}, which everything on the way can",
                self._parameters.replace(mps=payload),
                self._changes,
            )
        if any(flow.kind is Kind.READ for flow in self._flows):
            yield _Remedy(
                "mrrs",
                f"Max_Read_Request_Size {_LARGEST_READ}",
                self._parameters.replace(mrrs=_LARGEST_READ),
                self._changes,
            )

    def _sender(self, flow: Flow) -> Function:
        function = self._topology[flow.source]
        if function.physfn is not None and function.physfn in self._topology:
            return self._topology[function.physfn]
        return function

    def _payload(self) -> int:
        """The payload that every function on the way can; 0 where one is not known."""
        found: list[int] = []
        for flow in self._flows:
            for end in (flow.source, flow.destination):
                if not isinstance(end, Bdf):
                    continue
                function = self._topology[end]
                way = (function, *self._topology.path_to_root(function))
                found += [payload_capability(each) or 0 for each in way if not each.is_virtual]
        return min(found, default=0)


def _is_sparse(function: Function) -> bool:
    """Whether the extended configuration space was not captured."""
    return not function.config.has(0x100, 4)


def _next(link: Link) -> tuple[float, int]:
    """A full x16 where it is narrower, else the next generation."""
    if link.width < 16:
        return link.speed, 16
    faster = [speed for speed in SPEED_CODES.values() if speed > link.speed]
    return (min(faster), link.width) if faster else (link.speed, link.width)


def _rates(links: dict[Bdf, Link], rates: dict[Bdf, tuple[float, int]]) -> str:
    shown = [
        f"{port} from {rate_text(link.speed, link.width)} to {rate_text(*rates[port])}"
        for port, link in sorted(links.items())
    ]
    return listed(shown)


def _listed(addresses: Sequence[Bdf]) -> str:
    return listed([str(bdf) for bdf in addresses])
