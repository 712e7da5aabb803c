"""Which functions a matrix is about, and which of them may share a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vfiokit.p2p.peers import Peers
from vfiokit.pci.address import Bdf
from vfiokit.pci.selector import is_class
from vfiokit.pci.topology import Function, Topology

KINDS = ("gpu", "nic", "nvme", "accelerator")
"""What a matrix shows when nothing is chosen: devices that move data by themselves."""

_COPROCESSOR = 0x0B40
_OTHER_DISPLAY = 0x0380


class Row(NamedTuple):
    """Functions that stand for each other: one, or VFs of one PF that are alike."""

    bdf: Bdf
    """The one that is asked about; the first of several."""
    members: tuple[Bdf, ...]
    kind: str

    def other_than(self, bdf: Bdf) -> Bdf:
        """A member that is not ``bdf``, where there is one."""
        return next((member for member in self.members if member != bdf), self.bdf)


def usual(topology: Topology) -> tuple[Bdf, ...]:
    """GPUs, NICs, NVMe drives and accelerators, in address order."""
    return tuple(function.bdf for function in topology if kind_of(function) in KINDS)


def kind_of(function: Function) -> str:
    """``gpu``, ``nic``, ``nvme``, ``accelerator``, ``bridge``, or ``other``."""
    code = function.identity.class_code >> 8
    if code == _COPROCESSOR:
        return "accelerator"
    if code == _OTHER_DISPLAY:
        return "gpu"
    kinds = (*KINDS, "bridge")
    return next((kind for kind in kinds if is_class(function, kind)), "other")


def separate(peers: Peers, bdfs: Sequence[Bdf]) -> tuple[Row, ...]:
    """One row for every function."""
    return tuple(Row(bdf, (bdf,), kind_of(peers.topology[bdf])) for bdf in bdfs)


def fold(peers: Peers, bdfs: Sequence[Bdf]) -> tuple[Row, ...]:
    """One row for the VFs of a PF that answer alike, one for every other function."""
    together: dict[object, list[Bdf]] = {}
    for bdf in bdfs:
        physical = peers.topology[bdf].physfn
        key: object = bdf if physical is None else (physical, peers.likeness(bdf))
        together.setdefault(key, []).append(bdf)
    return tuple(
        Row(members[0], tuple(members), kind_of(peers.topology[members[0]]))
        for members in together.values()
    )
