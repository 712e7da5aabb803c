"""Where written data should go: processing hints (0x17), lightweight notification (0x1c).

Source: PCI Express Base Specification 6.0 §7.9.13; 5.0 §7.9.17 for lightweight notification,
which 6.0 no longer has.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
    fixed,
    flag,
)

_IN_CAPABILITY = 1

CAPABILITY = Register(
    "capability",
    0x04,
    4,
    (
        flag("no_table_mode", 0),
        flag("interrupt_vector_mode", 1),
        flag("device_specific_mode", 2),
        flag("extended_requester", 8),
        Field("table_location", 10, 9, meaning={0: "none", 1: "capability", 2: "MSI-X table"}),
        Field("table_size", 26, 16, doc="entries minus one"),
    ),
    "§7.9.13.2",
)
CONTROL = Register(
    "control",
    0x08,
    4,
    (
        Field(
            "mode",
            2,
            0,
            "rw",
            {0: "no steering tags", 1: "interrupt vector", 2: "device specific"},
        ),
        Field("requester_enable", 9, 8, "rw", {0: "off", 1: "TPH", 3: "TPH and extended TPH"}),
    ),
    "§7.9.13.3",
)
STEERING_TAG = Register(
    "tag", 0x00, 2, (Field("lower", 7, 0, "rw"), Field("upper", 15, 8, "rw")), "§7.9.13.4"
)


def steering_tags(capability: Capability) -> int:
    """Entries of the steering-tag table inside the capability; 0 where it lies elsewhere."""
    if capability.field(CAPABILITY, "table_location") != _IN_CAPABILITY:
        return 0
    return capability.field(CAPABILITY, "table_size") + 1


PROCESSING_HINTS = Layout(
    "tph",
    "TPH Requester",
    0x17,
    True,
    (CAPABILITY, CONTROL),
    "§7.9.13",
    lambda capability: 0x0C + 2 * steering_tags(capability),
    derive=lambda capability: {"steering_tags": steering_tags(capability)},
    repeated=(Repeated("entry", (STEERING_TAG,), counted(0x0C, 2, steering_tags)),),
)

LIGHTWEIGHT_NOTIFICATION = Layout(
    "ln-requester",
    "LN Requester",
    0x1C,
    True,
    (
        Register(
            "capability",
            0x04,
            2,
            (
                flag("line_64", 0),
                flag("line_128", 1),
                Field("registration_max", 12, 8, unit="log2 lines"),
            ),
        ),
        Register(
            "control",
            0x06,
            2,
            (
                flag("enable", 0, "rw"),
                flag("line_size", 1, "rw", "0: 64 bytes, 1: 128 bytes"),
                Field("registration_limit", 12, 8, "rw", unit="log2 lines"),
            ),
        ),
    ),
    "5.0 §7.9.17",
    fixed(8),
)
