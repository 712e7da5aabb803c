"""Whatever functions hold, each pair has an answer, and the matrix says the same.

Run with ``python tests/fuzz/fuzz_p2p.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

from fuzzing import fuzz

STEP = 0x130
"""Bytes for each function: two for its address, one for its PF, the rest configuration space."""


def one_input(data: bytes) -> None:
    """Build a machine of at most eight functions and ask for every pair."""
    from vfiokit.p2p import Cpu, Peers
    from vfiokit.p2p.matrix import KINDS
    from vfiokit.p2p.remedy import advise
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.config import ConfigSpace
    from vfiokit.pci.topology import Function, Topology

    Cpu.from_cpuinfo(data.decode("utf-8", "replace"))
    functions = []
    for start in range(0, min(len(data), 8 * STEP), STEP):
        head = data[start : start + 3].ljust(3, b"\0")
        bdf = Bdf(0, head[0] & 7, head[1] >> 3, head[1] & 7)
        physfn = Bdf(0, head[2] & 7, 0, 0) if head[2] & 0x80 else None
        config = ConfigSpace(data[start + 3 : start + STEP])
        functions.append(Function(bdf, config, physfn=None if physfn == bdf else physfn))
    peers = Peers(Topology(functions))
    bdfs = list(peers.topology.functions)
    matrix = peers.matrix(bdfs, bdfs)
    for row, provider in enumerate(bdfs):
        for column, client in enumerate(bdfs):
            answer = peers.map_type(provider, client)
            assert KINDS[matrix.map_types[row, column]] is answer.map_type
            assert matrix.distances[row, column] == answer.distance
    advise(peers, [(one, other) for one in bdfs for other in bdfs])


if __name__ == "__main__":
    fuzz(one_input)
