"""Capabilities, a module per family; :func:`capabilities` finds a function's.

Families are loaded when a capability is asked for its description (:mod:`.catalog`).
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    Variant,
)
from vfiokit.pci.capability.walk import CapabilityList, Finding, walk
from vfiokit.pci.config import ConfigSpace

__all__ = [
    "Capability",
    "CapabilityList",
    "Field",
    "Finding",
    "Layout",
    "Register",
    "Repeated",
    "Variant",
    "capabilities",
]


def capabilities(config: ConfigSpace) -> CapabilityList:
    """Walk both capability lists of ``config``; never raises."""
    return walk(config)
