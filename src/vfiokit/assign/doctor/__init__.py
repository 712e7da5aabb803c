"""Is this machine ready to assign a device? Findings, each with evidence and a remedy.

Everything is read from the host's file tree and its topology, so the answer is the same for a
live host, a capture and a software machine; what they do not hold is ``unknown``, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfiokit.assign.doctor import (
    device,
    driver,
    interrupt,
    iommu,
    isolation,
    kernel,
    memory,
    option,
    reset,
)
from vfiokit.assign.doctor.facts import Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity, Verdict, verdict
from vfiokit.host.tree import Tree
from vfiokit.pci.topology import Function, Topology

__all__ = ["Evidence", "Finding", "Severity", "Verdict", "examine", "verdict"]

_FAMILIES = (iommu, interrupt, option, kernel, memory, isolation, reset, device, driver)


def examine(
    tree: Tree,
    topology: Topology,
    devices: Iterable[Function] = (),
    *,
    memory_size: int | None = None,
    complete: bool | None = None,
) -> tuple[Finding, ...]:
    """Every finding about the host, and about ``devices`` of it, worst first.

    ``memory_size`` is that of the guest in bytes. ``complete`` says whether a file that ``tree``
    lacks is not on the host either; by default that holds for the live host only. Changes nothing
    and raises nothing for odd content.
    """
    facts = Facts(tree, topology, tuple(devices), memory=memory_size, complete=complete)
    found = [finding for family in _FAMILIES for finding in family.check(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity.rank))
