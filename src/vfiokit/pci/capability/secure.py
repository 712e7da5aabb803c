"""Secure Device (id 0x0f), and the AMD IOMMU's capability, which carries the same id.

Source: AMD I/O Virtualization Technology (IOMMU) Specification 3.07 §3.2.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Variant,
    fixed,
    flag,
)

_AMD_VENDORS = (0x1022, 0x1D94)
"""AMD, and Hygon with the same unit."""
_IOMMU = 3

HEADER = Register(
    "header",
    0x02,
    2,
    (
        Field("type", 2, 0, meaning={_IOMMU: "IOMMU"}),
        Field("revision", 7, 3),
        flag("remote_tlb", 8),
        flag("hypertransport_tunnel", 9),
        flag("caches_not_present", 10),
        flag("extended_features", 11),
        flag("extension", 12),
    ),
    "IOMMU §3.2.1",
)
BASE = Register(
    "base", 0x04, 4, (flag("enable", 0, "rw"), Field("address", 31, 14, "rw")), "IOMMU §3.2.2"
)
BASE_UPPER = Register("base_upper", 0x08, 4, (Field("address", 31, 0, "rw"),), "IOMMU §3.2.3")
RANGE = Register(
    "range",
    0x0C,
    4,
    (
        Field("unit_id", 4, 0),
        flag("valid", 7),
        Field("bus", 15, 8),
        Field("first_devfn", 23, 16),
        Field("last_devfn", 31, 24),
    ),
    "IOMMU §3.2.4",
)
MISCELLANEOUS_0 = Register(
    "miscellaneous_0",
    0x10,
    4,
    (
        Field("msi_number", 4, 0),
        Field("guest_address_size", 7, 5, meaning={2: "48"}, unit="bits, as named"),
        Field("physical_address_size", 14, 8, unit="bits"),
        Field("virtual_address_size", 21, 15, unit="bits"),
        flag("hypertransport_ats_reserved", 22, "rw"),
        Field("page_request_msi_number", 31, 27),
    ),
    "IOMMU §3.2.5",
)
MISCELLANEOUS_1 = Register(
    "miscellaneous_1", 0x14, 4, (Field("guest_interrupt_msi_number", 4, 0),), "IOMMU §3.2.6"
)


def _is_iommu(capability: Capability) -> bool:
    return capability.config.u16(0) in _AMD_VENDORS and capability.field(HEADER, "type") == _IOMMU


def _extended(capability: Capability) -> bool:
    return bool(capability.field(HEADER, "extension"))


IOMMU = Layout(
    "amd-iommu",
    "AMD IOMMU",
    0x0F,
    False,
    (HEADER, BASE, BASE_UPPER, RANGE, MISCELLANEOUS_0, MISCELLANEOUS_1),
    "IOMMU §3.2",
    lambda capability: 0x18 if _extended(capability) else 0x14,
    lambda capability, register: register is not MISCELLANEOUS_1 or _extended(capability),
    lambda capability: {
        "mmio_base": capability.value(BASE_UPPER) << 32 | capability.value(BASE) & ~0x3FFF
    },
)
LAYOUT = Layout(
    "secure", "Secure Device", 0x0F, False, (), "", fixed(2), variants=(Variant(_is_iommu, IOMMU),)
)
