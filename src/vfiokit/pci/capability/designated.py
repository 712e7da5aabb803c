"""Designated Vendor-Specific (extended id 0x23): whose it is, and CXL's (:mod:`.cxl`).

Source: PCI Express Base Specification 6.0 §7.9.6.
"""

from __future__ import annotations

from vfiokit.pci.capability import cxl
from vfiokit.pci.capability.designated_header import HEADER_1, HEADER_2, length
from vfiokit.pci.capability.register import Capability, Layout, Variant


def _cxl(identifier: int) -> Variant:
    def applies(capability: Capability) -> bool:
        return (
            capability.field(HEADER_1, "vendor_id") == cxl.VENDOR_ID
            and capability.field(HEADER_2, "dvsec_id") == identifier
        )

    return Variant(applies, cxl.LAYOUTS[identifier])


LAYOUT = Layout(
    "dvsec",
    "Designated Vendor-Specific",
    0x23,
    True,
    (HEADER_1, HEADER_2),
    "§7.9.6",
    length,
    variants=tuple(_cxl(identifier) for identifier in cxl.LAYOUTS),
)
