"""Capabilities, one file per family; :func:`capabilities` walks and describes them all."""

from __future__ import annotations

from vfiokit.pci.capability import (
    acs,
    advanced,
    ari,
    ats,
    express,
    msi,
    msix,
    named,
    pasid,
    power,
    pri,
    sriov,
)
from vfiokit.pci.capability.register import Capability, Field, Layout, Register
from vfiokit.pci.capability.walk import CapabilityList, Finding, walk
from vfiokit.pci.config import ConfigSpace

__all__ = [
    "EXTENDED",
    "STANDARD",
    "Capability",
    "CapabilityList",
    "Field",
    "Finding",
    "Layout",
    "Register",
    "capabilities",
]

_LAYOUTS = (
    power.LAYOUT,
    msi.LAYOUT,
    express.LAYOUT,
    msix.LAYOUT,
    advanced.LAYOUT,
    acs.LAYOUT,
    ari.LAYOUT,
    ats.LAYOUT,
    sriov.LAYOUT,
    pri.LAYOUT,
    pasid.LAYOUT,
    *named.LAYOUTS,
)

STANDARD = {layout.cap_id: layout for layout in _LAYOUTS if not layout.extended}
"""Known standard capabilities by id; some by name only, without registers."""

EXTENDED = {layout.cap_id: layout for layout in _LAYOUTS if layout.extended}
"""Known extended capabilities by id; some by name only, without registers."""


def capabilities(config: ConfigSpace) -> CapabilityList:
    """Walk both capability lists of ``config``; never raises."""
    return walk(config, STANDARD, EXTENDED)
