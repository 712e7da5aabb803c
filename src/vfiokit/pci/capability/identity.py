"""Who a device and its hierarchy are: serial number (0x03), hierarchy ID (0x28).

Source: PCI Express Base Specification 6.0 §7.9.3 and §7.9.17.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, fixed, flag

SERIAL_LOWER = Register("serial_lower", 0x04, 4, (), "§7.9.3.2")
SERIAL_UPPER = Register("serial_upper", 0x08, 4, (), "§7.9.3.2")


def serial_number(capability: Capability) -> str:
    """The EUI-64, most significant byte first: ``00-1a-11-ff-fe-4c-3c-70``."""
    number = capability.value(SERIAL_UPPER) << 32 | capability.value(SERIAL_LOWER)
    return number.to_bytes(8, "big").hex("-")


SERIAL_NUMBER = Layout(
    "serial-number",
    "Device Serial Number",
    0x03,
    True,
    (SERIAL_LOWER, SERIAL_UPPER),
    "§7.9.3",
    fixed(12),
    derive=lambda capability: {"serial_number": serial_number(capability)},
)

HIERARCHY_STATUS = Register(
    "status",
    0x04,
    4,
    (
        Field("message_requester_id", 15, 0),
        flag("valid", 28),
        flag("writeable", 29),
    ),
    "§7.9.17.2",
)
HIERARCHY_DATA = Register(
    "data",
    0x08,
    4,
    (Field("system_guid_authority_id", 7, 0), Field("hierarchy_id", 31, 16)),
    "§7.9.17.3",
)
HIERARCHY_GUID = tuple(
    Register(f"guid{index + 1}", 0x0C + 4 * index, 4, (), f"§7.9.17.{index + 4}")
    for index in range(5)
)
HIERARCHY = Layout(
    "hierarchy-id",
    "Hierarchy ID",
    0x28,
    True,
    (HIERARCHY_STATUS, HIERARCHY_DATA, *HIERARCHY_GUID),
    "§7.9.17",
    fixed(0x20),
)

DEVICE_CORRELATION = Register(
    "device_correlation",
    0x04,
    4,
    (Field("correlation", 31, 0, doc="written through the trusted configuration space"),),
)
CONFIGURATION_ACCESS = Layout(
    "configuration-access",
    "Configuration Access Correlation",
    0x0C,
    True,
    (DEVICE_CORRELATION,),
    "Trusted Configuration Space ECN",
    fixed(8),
)
