"""NVIDIA's words for how far apart two functions are: X, PIX, PXB, PHB, NODE, SYS.

Source: the legend of ``nvidia-smi topo -m``. A switch, or a conventional bridge, counts once
whatever ports of it are passed; a root port is part of the host bridge.
"""

from __future__ import annotations

from vfiokit.p2p.chain import Chain
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Topology

SELF, PIX, PXB, PHB, NODE, SYS = "X", "PIX", "PXB", "PHB", "NODE", "SYS"

LEGEND = {
    SELF: "the same function",
    PIX: "at most one switch or bridge between them",
    PXB: "several switches or bridges, and no host bridge",
    PHB: "a host bridge: different ports of the same root bus",
    NODE: "different host bridges of one NUMA node",
    SYS: "different NUMA nodes, or not known to be the same",
}

_PASSED = frozenset({PortType.ROOT_PORT, PortType.DOWNSTREAM})


def counts_as_bridge(topology: Topology, bdf: Bdf) -> bool:
    """Whether a bridge of a chain is one of those that PIX and PXB count."""
    return topology[bdf].port_type not in _PASSED


def numa_node(topology: Topology, chain: Chain) -> int | None:
    """The NUMA node of a function, asking its PF and the bridges above it; ``None`` if not told."""
    function = topology[chain.nodes[0]]
    physical = () if function.physfn is None else (function.physfn,)
    for bdf in (chain.nodes[0], *physical, *chain.nodes[1:]):
        if bdf in topology and (node := topology[bdf].recorded.numa_node) is not None:
            return node
    return None


def across(one: int | None, other: int | None, single: bool) -> str:
    """NODE or SYS for two host bridges on these NUMA nodes.

    ``single``: the host tells of no NUMA node at all, so it has one.
    """
    if one is None and other is None and single:
        return NODE
    return NODE if one is not None and one == other else SYS


def within(topology: Topology, passed: tuple[Bdf, ...]) -> str:
    """PIX or PXB for a way through the bridges ``passed``, the common one among them."""
    return PIX if sum(counts_as_bridge(topology, bdf) for bdf in passed) <= 1 else PXB
