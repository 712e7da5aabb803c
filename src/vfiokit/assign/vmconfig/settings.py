"""What a virtual machine needs beside its PCI tree: memory, processors, windows, IOMMU objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vfiokit.errors import UsageError
from vfiokit.p2p.guest import GuestPlan
from vfiokit.pci.address import Bdf

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_UNITS = {"K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
HUGE_PAGES = (2 * MIB, GIB)
"""Sizes of huge pages on x86-64."""


class Node(NamedTuple):
    """One NUMA node of the guest."""

    number: int
    host: int | None
    """The host's node that its memory comes from; ``None``: no matter which."""
    memory: int
    """Bytes."""
    first_cpu: int
    cpus: int

    @property
    def cpu_list(self) -> str:
        """Its processors: ``0-3``."""
        last = self.first_cpu + self.cpus - 1
        return str(last) if self.cpus == 1 else f"{self.first_cpu}-{last}"


@dataclass(frozen=True)
class Settings:
    """The machine around the devices."""

    name: str = "guest"
    memory: int = 16 * GIB
    """Bytes, a multiple of 1 MiB for each NUMA node."""
    cpus: int = 8
    hugepages: int = 0
    """Size of the huge pages behind the guest's memory in bytes; 0: ordinary memory."""
    iommufd: bool = False
    """Assign through iommufd, not through the container."""
    hole64: int = 0
    """Bytes of the 64-bit window for BARs; 0: the machine's own size is enough."""
    cliques: Mapping[Bdf, int] = field(default_factory=dict)
    """NVIDIA GPUDirect clique by host function."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name[:40]!r} is no name for a machine: letters, digits, '.', '_', '+', '-'"
            )
        if self.memory < 128 * MIB or self.memory % MIB:
            raise UsageError("a guest has at least 128 MiB of memory, in whole MiB")
        if self.cpus < 1:
            raise UsageError("a guest has at least one processor")
        if self.hugepages and (self.hugepages not in HUGE_PAGES or self.memory % self.hugepages):
            raise UsageError(
                "huge pages are of 2 MiB or 1 GiB, and the memory is a whole number of them"
            )

    def nodes(self, plan: GuestPlan) -> tuple[Node, ...]:
        """Memory and processors by NUMA node of ``plan``; one node where it has none.

        Raises :class:`~vfiokit.errors.UsageError` when there is less than one processor for each.
        """
        hosts: tuple[int | None, ...] = plan.nodes if plan.numa else (None,)
        count = len(hosts)
        if self.cpus < count:
            raise UsageError(
                f"{count} NUMA nodes need {count} processors at least",
                hint="give more with --cpus, or leave NUMA out with --no-numa",
            )
        unit = self.hugepages or MIB
        pages = self.memory // unit
        if pages < count:
            raise UsageError(f"{count} NUMA nodes need {count} pages of memory at least")
        found: list[Node] = []
        first = 0
        for number, host in enumerate(hosts):
            cpus = self.cpus // count + (number < self.cpus % count)
            memory = (pages // count + (number < pages % count)) * unit
            found.append(Node(number, host, memory, first, cpus))
            first += cpus
        return tuple(found)


def parse_size(text: str) -> int:
    """Bytes of ``64G``, ``512M`` or a plain number of MiB; :class:`UsageError` for others."""
    unit = _UNITS.get(text[-1:].upper(), 0)
    digits = text[:-1] if unit else text
    if not digits.isdecimal() or not digits.isascii() or len(digits) > 12 or not int(digits):
        raise UsageError(f"{text!r} is no size", hint="write 64G, 512M or a number of MiB")
    return int(digits) * (unit or MIB)


def size_text(size: int) -> str:
    """``size`` bytes with the largest unit that leaves a whole number: ``16G``, ``1M``, ``100``."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
