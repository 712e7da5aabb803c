"""How fast are all pairs of a big machine, against the kernel's loop in C on the same machine?

4,096 functions on 9 PCI domains, switches and all: map type and distance of each of the 16.8
million pairs, on one core. The C loop walks the two chains of every pair as
``calc_map_type_and_dist`` does, over arrays of parents and flags (no register is read in it),
compiled here by ``gcc -O2``; both answers must be the same. Goals: at least half its rate, and
at least 20 million pairs a second. The third line counts from configuration bytes, which the C
loop is given already digested.

Then whole processes: ``vfiokit p2p`` on the packaged capture as a multiple of starting Python, at
most 10 times.

    python benchmarks/bench_p2p.py [--check]
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench_groups import best_of
from vfiokit.p2p import Cpu, Peers
from vfiokit.p2p.answer import MapType
from vfiokit.p2p.chain import Redirect
from vfiokit.p2p.matrix import KINDS, Matrix
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

COUNT = 4096
ROUNDS = 9
GOAL_RATIO = 0.5
GOAL_RATE = 20e6
GOAL_COLD = 10.0
INTEL = Cpu("GenuineIntel", 6, 0x6A)

LOOP = r"""
#include <stdint.h>

void all_pairs(int count, const int *functions, const int *parent, const uint8_t *redirect,
               const int *root, int roots, const uint8_t *approval,
               uint8_t *types, uint16_t *distances)
{
    for (int row = 0; row < count; row++)
        for (int column = 0; column < count; column++) {
            int provider = functions[row], client = functions[column];
            int up = 0, down = 0, found = 0, redirected = 0;
            int a, b;
            for (a = provider; a >= 0; a = parent[a], up++) {
                redirected |= redirect[a];
                for (b = client, down = 0; b >= 0; b = parent[b], down++)
                    if (a == b) { found = 1; break; }
                if (found)
                    break;
            }
            if (found)
                for (b = client; b != a; b = parent[b])
                    redirected |= redirect[b];
            long at = (long)row * count + column;
            distances[at] = up + down;
            types[at] = found && !redirected ? 0 : approval[root[provider] * roots + root[client]];
        }
}
"""


def config(
    ids: tuple[int, int], port: PortType, acs: int | None = None, secondary: int = 0
) -> ConfigSpace:
    raw = bytearray(0x110)
    raw[0:4] = ids[0].to_bytes(2, "little") + ids[1].to_bytes(2, "little")
    raw[0x06], raw[0x34], raw[0x40], raw[0x42] = 0x10, 0x40, 0x10, port << 4 | 2
    if secondary:
        raw[0x0E], raw[0x19], raw[0x1A] = 1, secondary, secondary
    if acs is not None:
        raw[0x100:0x108] = bytes((0x0D, 0, 1, 0, 0x7F, 0, acs, 0))
    return ConfigSpace(bytes(raw))


def machine(count: int) -> Topology:
    """Domains with a host bridge, root ports, and below each a switch of eight ports."""
    chance = random.Random(1)
    functions: list[Function] = []

    def add(*place: int, **more: object) -> None:
        functions.append(Function(Bdf(*place), config(**more)))  # type: ignore[arg-type]

    def acs() -> int:
        return chance.choice((0x00, 0x1D))

    for domain in range(-(-count // 451)):
        host = (0x8086, chance.choice((0x09A2, 0x2F00, 0x1234)))
        add(domain, 0, 0, 0, ids=host, port=PortType.RC_INTEGRATED_ENDPOINT)
        for port in range(25):
            bus = 1 + 10 * port
            ids = (0x8086, 0x352A)
            add(domain, 0, port + 1, 0, ids=ids, port=PortType.ROOT_PORT, acs=acs(), secondary=bus)
            ids = (0x1000, 0xC030)
            add(domain, bus, 0, 0, ids=ids, port=PortType.UPSTREAM, secondary=bus + 1)
            for slot in range(8):
                below = bus + 2 + slot
                place = (domain, bus + 1, slot, 0)
                add(*place, ids=ids, port=PortType.DOWNSTREAM, acs=acs(), secondary=below)
                add(domain, below, 0, 0, ids=(0x10DE, 0x2330), port=PortType.ENDPOINT)
    return Topology(functions[:count])


def c_loop(folder: Path) -> ctypes.CDLL:
    source, library = folder / "loop.c", folder / "loop.so"
    source.write_text(LOOP, encoding="utf-8")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def digest(peers: Peers) -> list[np.ndarray]:
    """The topology as the C loop wants it: functions, parents, flags, root buses, approvals."""
    chains = {bdf: peers.chains.of(bdf) for bdf in peers.topology.functions}
    index = {bdf: number for number, bdf in enumerate(chains)}
    roots = list(dict.fromkeys(chain.root for chain in chains.values()))
    parents = [index[chain.nodes[1]] if chain.nodes[1:] else -1 for chain in chains.values()]
    redirects = [peers.chains.redirect(bdf) is Redirect.YES for bdf in chains]
    approvals = [
        KINDS.index(peers.approval(one, other).map_type) for one in roots for other in roots
    ]
    return [
        np.arange(len(chains), dtype=np.intc),
        np.array(parents, dtype=np.intc),
        np.array(redirects, dtype=np.uint8),
        np.array([roots.index(chain.root) for chain in chains.values()], dtype=np.intc),
        np.array(approvals, dtype=np.uint8),
    ]


def time_c(loop: ctypes.CDLL, arrays: list[np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
    functions, parents, redirects, roots, approvals = arrays
    count = len(functions)
    types = np.zeros((count, count), dtype=np.uint8)
    distances = np.zeros((count, count), dtype=np.uint16)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (functions, parents, redirects)]
    known = int(len(approvals) ** 0.5)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        loop.all_pairs(
            count,
            *pointers,
            roots.ctypes.data_as(ctypes.c_void_p),
            known,
            *(each.ctypes.data_as(ctypes.c_void_p) for each in (approvals, types, distances)),
        )
        best = min(best, time.perf_counter() - start)
    return best, types, distances


def time_ours(peers: Peers) -> tuple[float, Matrix]:
    bdfs = list(peers.topology.functions)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        matrix = peers.matrix(bdfs, bdfs)
        best = min(best, time.perf_counter() - start)
    return best, matrix


def all_pairs() -> bool:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start = time.perf_counter()
    topology = machine(COUNT)
    built = time.perf_counter()
    peers = Peers(topology, cpu=INTEL)
    bdfs = list(topology.functions)
    peers.matrix(bdfs, bdfs)
    cold = time.perf_counter() - built
    with tempfile.TemporaryDirectory() as folder:
        c_time, types, distances = time_c(c_loop(Path(folder)), digest(peers))
    ours, matrix = time_ours(peers)
    pairs = COUNT * COUNT
    same = bool((matrix.map_types == types).all() and (matrix.distances == distances).all())
    counted = ", ".join(f"{kind.value} {count}" for kind, count in matrix.counts().items())
    print(f"{COUNT} functions, {pairs} pairs: {counted} (machine made in {built - start:.2f} s)")
    print(f"C loop, gcc -O2         {c_time * 1e3:7.1f} ms   {pairs / c_time / 1e6:6.1f} M pairs/s")
    ratio = c_time / ours
    print(
        f"vfiokit, numpy          {ours * 1e3:7.1f} ms   {pairs / ours / 1e6:6.1f} M pairs/s   "
        f"{ratio:.2f}x of C's rate (goal >= {GOAL_RATIO}x, >= {GOAL_RATE / 1e6:.0f} M/s)"
    )
    print(f"  from bytes            {cold * 1e3:7.1f} ms   {pairs / cold / 1e6:6.1f} M pairs/s")
    print(f"same answers: {'yes' if same else 'NO'}")
    assert matrix.counts()[MapType.UNKNOWN] == 0
    return same and ratio >= GOAL_RATIO and pairs / ours >= GOAL_RATE


def cold_start() -> bool:
    command = [sys.executable, "-m", "vfiokit", "p2p", "--host", "demo"]
    best = best_of(
        {"python -c pass": [sys.executable, "-c", "pass"], "p2p": command},
        15,
    )
    ratio = best["p2p"] / best["python -c pass"]
    print(f"python -c pass          {best['python -c pass'] * 1e3:7.1f} ms")
    print(f"vfiokit p2p, capture    {best['p2p'] * 1e3:7.1f} ms   {ratio:4.1f}x (goal <= 10x)")
    return ratio <= GOAL_COLD


def main() -> int:
    """Measure and print."""
    met = [cold_start(), all_pairs()]
    return 1 if "--check" in sys.argv and not all(met) else 0


if __name__ == "__main__":
    sys.exit(main())
