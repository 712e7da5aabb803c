"""Published measurements of DMA bandwidth, and what the model says about the same machine.

The table of docs/bandwidth.md is made from here: ``python tests/golden/bandwidth_points.py``
prints it, ``--write`` puts it into the page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vfiokit.p2p.bandwidth import (
    AS_CAPTURED,
    Changes,
    Parameters,
    Prediction,
    parse_flows,
    predict,
)
from vfiokit.p2p.bandwidth.sketch import Sketch, sketch
from vfiokit.pci.capability.acs import Acs

DIRECT_TRANSLATED = Acs(0x5D)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "bandwidth.md"

BANDWIDTH = "rtx6kpro pcie-bandwidth.md"
ASUS = "rtx6kpro asus-esc8000a-e13p-broadcom-switches.md"
CPAYNE = "rtx6kpro wrx90-cpayne-microchip-switches.md"

DIRECT = "rp0(nvme:gpu0), rp1(nvme:gpu1)"
"""Two cards on root ports of one socket."""
SOCKETS = "rp0(nvme:gpu0), hb bus=0x80(rp1(nvme:gpu1))"
SWITCH = "rp0(sw:sa acs(nvme:gpu0, nvme:gpu1))"
SWITCH_OPEN = "rp0 noacs(sw:sa(nvme:gpu0, nvme:gpu1))"
NARROW = (
    "rp0 width=4(sw:sa acs(port width=16(nvme:gpu0), port width=16(nvme:gpu1)))"
    ", rp1(sw:sb acs(nvme:gpu2, nvme:gpu3))"
)
SLOW_UPLINK = (
    "rp0 speed=5(sw:sa(port speed=32(nvme:gpu0))), "
    "hb bus=0x80(rp1 speed=5(sw:sb(port speed=32(nvme:gpu1))))"
)
LEAVES = (
    "rp0 noacs(sw:root("
    "sw:l1(nvme:gpu0, nvme:gpu1), sw:l2(nvme:gpu2, nvme:gpu3), "
    "sw:l3(nvme:gpu4, nvme:gpu5), sw:l4(nvme:gpu6, nvme:gpu7)))"
)
TWO_SWITCHES = (
    "rp0 noacs(sw:root(sw:l1(nvme:gpu0, nvme:gpu1, nvme:gpu2, nvme:gpu3), "
    "sw:l2(nvme:gpu4, nvme:gpu5, nvme:gpu6, nvme:gpu7)))"
)
FOUR = "rp0 noacs(sw:one(nvme:gpu0, nvme:gpu1, nvme:gpu2, nvme:gpu3))"
GEN3_X8 = "rp0 speed=8 width=8(nvme:card)"
PAIR_GEN4 = "rp0 speed=16(sw:sa acs(nvme:gpu0, nvme:nic0))"
BOX = "rp0(sw:sa acs(nvme:gpu0, nvme:gpu1, nvme:nic0, nvme:nic1))"
"""A quarter of the eight-GPU machine: one switch with two pairs below."""
BOTH = ("gpu0 > gpu1", "gpu1 > gpu0")


def direct(drawn: Sketch) -> Changes:
    """ATS in use, and ACS as NVIDIA advises for virtual machines: Direct Translated as well."""
    ports = {function.bdf: DIRECT_TRANSLATED for function in drawn.topology if function.acs}
    return Changes(ats=True, acs=ports)


def total(prediction: Prediction) -> float:
    """GB/s of all flows."""
    return prediction.total / 8


def slowest(prediction: Prediction) -> float:
    """Gb/s of the slowest flow."""
    return min(rate.gbps for rate in prediction.rates)


def equal_bytes(prediction: Prediction) -> float:
    """GB/s when every flow moves as many bytes and the last one to finish stops the clock."""
    return slowest(prediction) * len(prediction.rates) / 8


class Point(NamedTuple):
    """One published number."""

    name: str
    source: str
    unit: str
    measured: float
    bound: float
    """Largest error that the test lets pass, of the measured value."""
    topology: str
    flows: tuple[str, ...]
    value: Callable[[Prediction], float] = total
    parameters: Parameters = Parameters()
    all_pairs: bool = False
    direct_translated: bool = False
    note: str = ""

    def prediction(self) -> Prediction:
        """What the model says."""
        drawn = sketch(self.topology)
        flows = parse_flows(drawn.topology, self.flows, names=drawn.names, all_pairs=self.all_pairs)
        changes = direct(drawn) if self.direct_translated else AS_CAPTURED
        return predict(drawn.topology, flows, self.parameters, changes)

    def predicted(self) -> float:
        """In :attr:`unit`."""
        return self.value(self.prediction())

    def error(self) -> float:
        """Of the measured value; positive where the model promises more."""
        return self.predicted() / self.measured - 1


def _share_of_alone(prediction: Prediction) -> float:
    """Bidirectional by unidirectional total of the redirected pair."""
    drawn = sketch(SWITCH)
    alone = predict(drawn.topology, parse_flows(drawn.topology, BOTH[:1], names=drawn.names))
    return prediction.total / alone.total


def _of_200(prediction: Prediction) -> float:
    return slowest(prediction) / 200 * 100


POINTS = (
    Point(
        "peer writes, 32 GT/s x16, two root ports of one socket, one way",
        BANDWIDTH,
        "GB/s",
        56.57,
        0.03,
        DIRECT,
        BOTH[:1],
    ),
    Point(
        "the same both ways",
        BANDWIDTH,
        "GB/s",
        111.38,
        0.03,
        DIRECT,
        BOTH,
        note="`dllp_share` was calibrated on this pair of rows",
    ),
    Point(
        "peer writes through two switches without ACS, both ways",
        CPAYNE,
        "GB/s",
        104,
        0.10,
        LEAVES,
        ("gpu0 > gpu4", "gpu4 > gpu0"),
    ),
    Point(
        "two below one switch, ACS redirect off, both ways",
        ASUS,
        "GB/s",
        103,
        0.11,
        SWITCH_OPEN,
        BOTH,
    ),
    Point(
        "the same two, ACS redirect on",
        ASUS,
        "GB/s",
        50.7,
        0.13,
        SWITCH,
        BOTH,
        note="the uplink carries each byte twice",
    ),
    Point(
        "the same two, ACS redirect on, uplink x4",
        ASUS,
        "GB/s",
        13.5,
        0.06,
        NARROW,
        BOTH,
        note="which uplink was x4 is deduced, here and in the next row",
    ),
    Point(
        "two switches, one uplink x4, both ways",
        ASUS,
        "GB/s",
        27.2,
        0.06,
        NARROW,
        ("gpu0 > gpu2", "gpu2 > gpu0"),
    ),
    Point(
        "two switches on two sockets, uplinks at 5 GT/s, both ways",
        ASUS,
        "GB/s",
        14,
        0.05,
        SLOW_UPLINK,
        BOTH,
    ),
    Point(
        "two flows out of one leaf switch, to two others",
        CPAYNE,
        "GB/s",
        53.9,
        0.08,
        LEAVES,
        ("gpu0 > gpu4", "gpu1 > gpu6"),
    ),
    Point(
        "two flows out of two leaf switches",
        CPAYNE,
        "GB/s",
        107.8,
        0.08,
        LEAVES,
        ("gpu0 > gpu4", "gpu2 > gpu6"),
    ),
    Point(
        "four flows, one of each card of two leaf switches",
        CPAYNE,
        "GB/s",
        108.6,
        0.08,
        LEAVES,
        ("gpu0 > gpu4", "gpu1 > gpu5", "gpu2 > gpu6", "gpu3 > gpu7"),
    ),
    Point(
        "16 flows, 4 cards to 4 cards behind other leaf switches",
        CPAYNE,
        "GB/s",
        99.6,
        0.17,
        LEAVES,
        tuple(f"gpu{one} > gpu{other}" for one in range(4) for other in range(4, 8)),
    ),
    Point(
        "two sockets (51 GB/s given), both ways",
        BANDWIDTH,
        "GB/s",
        99.4,
        0.04,
        SOCKETS,
        BOTH,
        parameters=Parameters({"socket_gbps": 408}),
        note="dual EPYC Turin",
    ),
    Point(
        "two sockets (39 GB/s given), both ways",
        BANDWIDTH,
        "GB/s",
        64,
        0.25,
        SOCKETS,
        BOTH,
        parameters=Parameters({"socket_gbps": 312}),
        note="dual EPYC 9374F; a miss: its directions are not independent",
    ),
    Point(
        "redirected pair, both ways by one way",
        "hiascend.com mindcluster toolboxug_0254",
        "ratio",
        1.0,
        0.03,
        SWITCH,
        BOTH,
        _share_of_alone,
        note='"almost the same"',
    ),
    Point(
        "8 cards, each reading from all, two switches below a third",
        "lukealonso/p2pmark",
        "GB/s",
        191.8,
        0.08,
        TWO_SWITCHES,
        ("gpu < gpu",),
        equal_bytes,
        all_pairs=True,
        note="how the switches hang together is a guess; see below",
    ),
    Point(
        "4 cards, each reading from all, one switch",
        "lukealonso/p2pmark",
        "GB/s",
        138.3,
        0.70,
        FOUR,
        ("gpu < gpu",),
        equal_bytes,
        all_pairs=True,
        note="a miss: no link is shared, so the cards themselves must limit",
    ),
    Point(
        "8 cards, each writing to all, four leaf switches",
        CPAYNE,
        "GB/s",
        232.8,
        0.20,
        LEAVES,
        ("gpu > gpu",),
        equal_bytes,
        all_pairs=True,
    ),
    Point(
        "packets of 8 GT/s x8, 256 bytes, update rates of the specification",
        "pcie-bench/pcie-model (computed, not measured)",
        "Gb/s",
        57.88,
        0.01,
        GEN3_X8,
        ("card > memory", "card < memory"),
        lambda prediction: prediction.loads[0].capacity / (1 + 16 / 203),
        parameters=Parameters({"dllp_share": 16 / 203}),
    ),
    Point(
        "card on 400 Gb/s Ethernet beside its GPU, ATS and Direct Translated",
        "NVIDIA/nccl 1464",
        "Gb/s",
        395.07,
        0.01,
        "rp0(sw:sa acs(nvme:gpu0, nvme:nic0))",
        ("nic0 > gpu0 @396",),
        slowest,
        direct_translated=True,
        note="limited by the network; the links would carry more",
    ),
    Point(
        "A100 and 200 Gb/s card in a VM, ACS redirect, both ways",
        "NVIDIA/nccl 949",
        "% of 200",
        56,
        0.05,
        PAIR_GEN4,
        ("nic0 <> gpu0 @200",),
        _of_200,
        note="how they hang together is not published: one pair per uplink fits",
    ),
)


class Scenario(NamedTuple):
    """One line of the 85 Gb/s case."""

    name: str
    flows: tuple[str, ...]
    low: float
    high: float
    """Gb/s per flow: the range that the test lets pass."""
    parameters: Parameters = Parameters()
    changes: Changes = AS_CAPTURED
    direct_translated: bool = False

    def gbps(self) -> float:
        """Of the slowest flow."""
        drawn = sketch(BOX)
        flows = parse_flows(drawn.topology, self.flows, names=drawn.names)
        changes = direct(drawn) if self.direct_translated else self.changes
        return slowest(predict(drawn.topology, flows, self.parameters, changes))


PAIR = ("nic0 <> gpu0 @392",)
PAIRS = ("nic0 <> gpu0 @392", "nic1 <> gpu1 @392")
SCENARIOS = (
    Scenario(
        "redirect off, two pairs, both ways", PAIRS, 391, 393, changes=Changes(redirect=False)
    ),
    Scenario("redirect on, one pair, one way", ("nic0 > gpu0 @392",), 391, 393),
    Scenario("redirect on, one pair, both ways", PAIR, 210, 235),
    Scenario("redirect on, two pairs, one way", ("nic0 > gpu0 @392", "nic1 > gpu1 @392"), 210, 235),
    Scenario("**redirect on, two pairs, both ways**", PAIRS, 100, 120),
    Scenario(
        "the same with completions of 64 bytes",
        PAIRS,
        92,
        108,
        Parameters({"completion_payload": 64}),
    ),
    Scenario(
        "the same with 8 % for acknowledgements and credits",
        PAIRS,
        88,
        105,
        Parameters({"completion_payload": 64, "dllp_share": 0.08}),
    ),
    Scenario(
        "two pairs, both ways, and 32 reads of 512 bytes in flight",
        PAIRS,
        70,
        85,
        Parameters({"tags": 32}),
    ),
    Scenario(
        "two pairs, both ways, ATS and Direct Translated",
        PAIRS,
        210,
        330,
        direct_translated=True,
    ),
    Scenario(
        "the same with relaxed ordering",
        PAIRS,
        391,
        393,
        Parameters({"relaxed_ordering": 1}),
        direct_translated=True,
    ),
)


def table() -> str:
    """The table of the page, in Markdown."""
    lines = [
        "| what | source | measured | predicted | error | asserted within |",
        "|---|---|---|---|---|---|",
    ]
    for point in POINTS:
        name = f"{point.name} ({point.note})" if point.note else point.name
        unit = "" if point.unit == "ratio" else f" {point.unit}"
        lines.append(
            f"| {name} | {point.source} | {point.measured:g}{unit} | "
            f"{point.predicted():.4g}{unit} | {point.error():+.1%} | {point.bound:.0%} |"
        )
    return "\n".join(lines) + "\n"


def scenario_table() -> str:
    """The table of the 85 Gb/s case, in Markdown."""
    lines = ["| what | Gb/s per flow |", "|---|---|"]
    lines += [f"| {each.name} | {each.gbps():.0f} |" for each in SCENARIOS]
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """``text`` of the page with both tables as they are now."""
    for name, content in (("points", table()), ("scenarios", scenario_table())):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        head, rest = text.split(begin)
        text = head + begin + content + end + rest.split(end)[1]
    return text


def main() -> None:
    """Print the tables, or put them into the page."""
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(table() + "\n" + scenario_table())


if __name__ == "__main__":
    main()
