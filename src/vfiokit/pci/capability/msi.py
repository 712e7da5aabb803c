"""Message Signalled Interrupts (id 0x05). Source: PCI Express Base Specification 6.0 §7.7.1.

Four forms: the upper address and the mask and pending bits are optional, and what is absent
moves what follows, so data, mask and pending exist twice here, as in ``linux/pci_regs.h``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

_COUNTS = {code: str(1 << code) for code in range(6)}

CONTROL = Register(
    "control",
    0x02,
    2,
    (
        flag("enable", 0, "rw"),
        Field("multiple_message_capable", 3, 1, meaning=_COUNTS, unit="log2 vectors"),
        Field("multiple_message_enable", 6, 4, "rw", meaning=_COUNTS, unit="log2 vectors"),
        flag("address_64", 7),
        flag("per_vector_mask", 8),
        flag("extended_data_capable", 9),
        flag("extended_data_enable", 10, "rw"),
    ),
    "§7.7.1.2",
)
ADDRESS = Register("address", 0x04, 4, (Field("address", 31, 2, "rw"),), "§7.7.1.3")
ADDRESS_UPPER = Register("address_upper", 0x08, 4, (Field("address", 31, 0, "rw"),), "§7.7.1.4")
DATA_32 = Register("data_32", 0x08, 2, (Field("data", 15, 0, "rw"),), "§7.7.1.5")
DATA_64 = Register("data_64", 0x0C, 2, (Field("data", 15, 0, "rw"),), "§7.7.1.5")
EXTENDED_DATA_32 = Register("extended_data_32", 0x0A, 2, (Field("data", 15, 0, "rw"),), "§7.7.1.6")
EXTENDED_DATA_64 = Register("extended_data_64", 0x0E, 2, (Field("data", 15, 0, "rw"),), "§7.7.1.6")
MASK_32 = Register("mask_32", 0x0C, 4, (Field("mask", 31, 0, "rw"),), "§7.7.1.7")
MASK_64 = Register("mask_64", 0x10, 4, (Field("mask", 31, 0, "rw"),), "§7.7.1.7")
PENDING_32 = Register("pending_32", 0x10, 4, (Field("pending", 31, 0),), "§7.7.1.8")
PENDING_64 = Register("pending_64", 0x14, 4, (Field("pending", 31, 0),), "§7.7.1.8")

_FORM_32 = (DATA_32, EXTENDED_DATA_32, MASK_32, PENDING_32)
_FORM_64 = (ADDRESS_UPPER, DATA_64, EXTENDED_DATA_64, MASK_64, PENDING_64)
_MASKS = (MASK_32, MASK_64, PENDING_32, PENDING_64)
_EXTENDED = (EXTENDED_DATA_32, EXTENDED_DATA_64)


def vectors(capability: Capability) -> int:
    """How many vectors the function can ask for: 1 to 32 (reserved codes count as 32)."""
    return min(1 << capability.field(CONTROL, "multiple_message_capable"), 32)


def _present(capability: Capability, register: Register) -> bool:
    if register in (CONTROL, ADDRESS):
        return True
    wide = bool(capability.field(CONTROL, "address_64"))
    if register not in (_FORM_64 if wide else _FORM_32):
        return False
    if register in _MASKS:
        return bool(capability.field(CONTROL, "per_vector_mask"))
    if register in _EXTENDED:
        return bool(capability.field(CONTROL, "extended_data_capable"))
    return True


def _size(capability: Capability) -> int:
    wide = capability.field(CONTROL, "address_64")
    if capability.field(CONTROL, "per_vector_mask"):
        return 24 if wide else 20
    if capability.field(CONTROL, "extended_data_capable"):
        return 16 if wide else 12
    return 14 if wide else 10


def _derive(capability: Capability) -> dict[str, object]:
    wide = capability.field(CONTROL, "address_64")
    upper = capability.value(ADDRESS_UPPER) if wide else 0
    return {
        "vectors": vectors(capability),
        "vectors_enabled": min(1 << capability.field(CONTROL, "multiple_message_enable"), 32),
        "message_address": upper << 32 | capability.value(ADDRESS) & ~3,
        "message_data": capability.value(DATA_64 if wide else DATA_32),
    }


LAYOUT = Layout(
    "msi",
    "MSI",
    0x05,
    False,
    (CONTROL, ADDRESS, *_FORM_32, *_FORM_64),
    "§7.7.1",
    _size,
    _present,
    _derive,
)
