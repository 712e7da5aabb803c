"""Why devices are isolated or not: the kernel's own reasoning, without its help.

:func:`predict` computes IOMMU groups from a :class:`vfiokit.pci.topology.Topology`. No I/O.
"""

from __future__ import annotations

from vfiokit.isolation.acs import AcsReason, AcsVerdict, AcsWhy
from vfiokit.isolation.alias import Alias, AliasSource, aliases
from vfiokit.isolation.compare import Comparison, Difference, compare
from vfiokit.isolation.group import Group, Grouping, predict
from vfiokit.isolation.leak import Leak
from vfiokit.isolation.platform import Platform
from vfiokit.isolation.quirk import REQUIRED
from vfiokit.isolation.reason import Rule, Step, Why
from vfiokit.isolation.viability import blockers

__all__ = [
    "REQUIRED",
    "AcsReason",
    "AcsVerdict",
    "AcsWhy",
    "Alias",
    "AliasSource",
    "Comparison",
    "Difference",
    "Group",
    "Grouping",
    "Leak",
    "Platform",
    "Rule",
    "Step",
    "Why",
    "aliases",
    "blockers",
    "compare",
    "predict",
]
