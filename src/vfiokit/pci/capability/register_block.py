"""MMIO Register Block Locator (extended id 0x36): which blocks of registers lie in which BAR.

Source: PCI Express Base Specification 6.1 §7.9.30.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
)

CAPABILITIES = Register(
    "capabilities", 0x04, 4, (Field("length", 11, 0, "hwinit", unit="bytes"),), "§7.9.30.2"
)
LOCATOR = Register(
    "locator",
    0x00,
    4,
    (
        Field("bir", 2, 0, "hwinit"),
        Field("block_id", 15, 8, "hwinit"),
        Field("offset", 31, 16, "hwinit", unit="64 KiB"),
    ),
    "§7.9.30.3",
)
LOCATOR_UPPER = Register("locator_upper", 0x04, 4, (Field("offset", 31, 0, "hwinit"),))


def _blocks(capability: Capability) -> int:
    return max(capability.field(CAPABILITIES, "length") - 8, 0) // 8


def block(capability: Capability, at: int) -> dict[str, object]:
    """The block whose locator lies ``at`` bytes from the header; CXL locators look the same."""
    low, high = capability.raw(at, 4), capability.raw(at + 4, 4)
    return {"bar": low & 7, "id": low >> 8 & 0xFF, "offset": high << 32 | low >> 16 << 16}


LAYOUT = Layout(
    "mmio-register-blocks",
    "MMIO Register Block Locator",
    0x36,
    True,
    (CAPABILITIES,),
    "§7.9.30",
    lambda capability: capability.field(CAPABILITIES, "length"),
    derive=lambda capability: {
        "blocks": [block(capability, 8 + 8 * n) for n in range(_blocks(capability))]
    },
    repeated=(Repeated("block", (LOCATOR, LOCATOR_UPPER), counted(8, 8, _blocks)),),
)
