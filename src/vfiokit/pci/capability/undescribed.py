"""Capabilities known by name only: empty, deprecated, or specified where the public cannot read.

Source: PCI Code and ID Assignment Specification 1.15 and later.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Layout, fixed


def _named(cap_id: int, name: str, title: str) -> Layout:
    return Layout(name, title, cap_id, True, (), "", fixed(4))


NULL = Layout("null", "Null", 0x00, False, (), "§7.9.27", fixed(2))
MULTI_ROOT = _named(0x11, "mriov", "Multi-Root I/O Virtualization")
RATE_128GT = _named(0x39, "physical-128gt", "Physical Layer 128.0 GT/s")
CAPTURED_DATA = _named(0x3A, "captured-data", "Captured Data")
