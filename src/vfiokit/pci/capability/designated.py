"""Designated Vendor-Specific (extended id 0x23): whose it is, CXL's and Intel's for SIOV.

Source: PCI Express Base Specification 6.0 §7.9.6.
"""

from __future__ import annotations

from vfiokit.pci.capability import cxl, scalable
from vfiokit.pci.capability.designated_header import HEADER_1, HEADER_2, length
from vfiokit.pci.capability.register import Capability, Layout, Variant


def _of(vendor_id: int, identifier: int, layout: Layout) -> Variant:
    def applies(capability: Capability) -> bool:
        return (
            capability.field(HEADER_1, "vendor_id") == vendor_id
            and capability.field(HEADER_2, "dvsec_id") == identifier
        )

    return Variant(applies, layout)


LAYOUT = Layout(
    "dvsec",
    "Designated Vendor-Specific",
    0x23,
    True,
    (HEADER_1, HEADER_2),
    "§7.9.6",
    length,
    variants=(
        *(_of(cxl.VENDOR_ID, identifier, layout) for identifier, layout in cxl.LAYOUTS.items()),
        _of(scalable.INTEL_VENDOR_ID, scalable.INTEL_DVSEC_ID, scalable.INTEL),
    ),
)
