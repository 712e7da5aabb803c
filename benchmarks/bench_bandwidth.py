"""What does sharing cost, next to the plain loop that the definition is, and per flow in all?

All pairs of 64 cards below 16 switches of four sockets, 4032 flows, shared two ways in the same
run: by the solver, which keeps sums from round to round, and by the loop that adds everything up
anew in each round. Both must find the same rates.

    python benchmarks/bench_bandwidth.py [--check]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from vfiokit.p2p.bandwidth import parse_flows, predict
from vfiokit.p2p.bandwidth.fairness import Demand, max_min
from vfiokit.p2p.bandwidth.predict import Resource
from vfiokit.p2p.bandwidth.sketch import sketch

LOOP_RATIO = 10.0  # times faster than the plain loop, at least
FLOW_RATE = 1500.0  # flows per second from nothing to the answer, at least
ROUNDS = 3


def box() -> str:
    """Four sockets with four switches of four cards each; uplinks differ, so rates do."""
    sockets = []
    for socket in range(4):
        ports = []
        for switch in range(4):
            name = f"{socket}{switch}"
            cards = ", ".join(
                f"port width={(4, 8, 16, 16)[card]}(nvme:c{name}{card})" for card in range(4)
            )
            ports.append(f"rp{name} width={(8, 16)[switch % 2]}(sw:s{name} acs({cards}))")
        inside = ", ".join(ports)
        sockets.append(f"hb bus={0x40 * socket:#x}({inside})" if socket else inside)
    return ", ".join(sockets)


def plain_loop(capacities: Mapping[Resource, float], demands: Sequence[Demand]) -> list[float]:
    """Max-min fair rates as the definition has them."""
    rates: list[float | None] = [None] * len(demands)
    while None in rates:
        level = float("inf")
        full = None
        for resource, capacity in capacities.items():
            left, slope = capacity, 0.0
            for rate, demand in zip(rates, demands, strict=True):
                cost = demand.costs.get(resource, 0.0)
                if rate is None:
                    slope += cost
                else:
                    left -= cost * rate
            if slope > 1e-9 and left / slope < level:
                level, full = left / slope, resource
        for index, demand in enumerate(demands):
            if rates[index] is None and full in demand.costs:
                rates[index] = level
    return [rate or 0.0 for rate in rates]


def main() -> int:
    """Measure and print."""
    drawn = sketch(box())
    flows = parse_flows(drawn.topology, ["nvme > nvme"], all_pairs=True)
    start = time.perf_counter()
    prediction = predict(drawn.topology, flows)
    whole = time.perf_counter() - start
    capacities = {load.resource: load.capacity for load in prediction.loads}
    costs: list[dict[Resource, float]] = [{} for _ in flows]
    for load in prediction.loads:
        for index in load.flows:
            alone = next(
                limit.gbps
                for limit in prediction.rates[index].limits
                if limit.text.startswith(load.resource.text())
            )
            costs[index][load.resource] = load.capacity / alone
    demands = [Demand(each) for each in costs]
    solver = loop = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        shares = max_min(capacities, demands)
        solver = min(solver, time.perf_counter() - start)
    start = time.perf_counter()
    expected = plain_loop(capacities, demands)
    loop = time.perf_counter() - start
    for share, rate in zip(shares, expected, strict=True):
        assert abs(share.rate - rate) <= 1e-6 * rate
    print(f"{len(flows)} flows over {len(capacities)} links and directions")
    print(f"solver     {solver * 1e3:8.1f} ms")
    print(f"plain loop {loop * 1e3:8.1f} ms   {loop / solver:.0f} times the solver")
    print(f"in all     {whole * 1e3:8.1f} ms   {len(flows) / whole:.0f} flows/s")
    good = loop / solver >= LOOP_RATIO and len(flows) / whole >= FLOW_RATE
    return 0 if good or "--check" not in sys.argv else 1


if __name__ == "__main__":
    sys.exit(main())
