"""The header that every DVSEC starts with. Source: PCI Express Base Specification 6.0 §7.9.6."""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Register

HEADER_1 = Register(
    "header_1",
    0x04,
    4,
    (
        Field("vendor_id", 15, 0),
        Field("revision", 19, 16),
        Field("length", 31, 20, unit="bytes"),
    ),
    "§7.9.6.2",
)
HEADER_2 = Register("header_2", 0x08, 2, (Field("dvsec_id", 15, 0),), "§7.9.6.3")


def length(capability: Capability) -> int:
    """Bytes of the whole DVSEC, as its header says."""
    return capability.field(HEADER_1, "length")


def revision(capability: Capability) -> int:
    """Which version of its own format the DVSEC follows."""
    return capability.field(HEADER_1, "revision")
