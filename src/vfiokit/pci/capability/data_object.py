"""Data Object Exchange (extended id 0x2e): a mailbox in configuration space.

Source: PCI Express Base Specification 6.0 §7.9.24.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

CAPABILITIES = Register(
    "capabilities",
    0x04,
    4,
    (flag("interrupt", 0), Field("interrupt_message_number", 11, 1)),
    "§7.9.24.2",
)
CONTROL = Register(
    "control",
    0x08,
    4,
    (flag("abort", 0, "rw"), flag("interrupt_enable", 1, "rw"), flag("go", 31, "rw")),
    "§7.9.24.3",
)
STATUS = Register(
    "status",
    0x0C,
    4,
    (
        flag("busy", 0),
        flag("interrupt", 1, "rw1c"),
        flag("error", 2),
        flag("object_ready", 31),
    ),
    "§7.9.24.4",
)
WRITE_MAILBOX = Register("write_mailbox", 0x10, 4, (Field("data", 31, 0, "rw"),), "§7.9.24.5")
READ_MAILBOX = Register("read_mailbox", 0x14, 4, (Field("data", 31, 0, "rw"),), "§7.9.24.6")

LAYOUT = Layout(
    "doe",
    "Data Object Exchange",
    0x2E,
    True,
    (CAPABILITIES, CONTROL, STATUS, WRITE_MAILBOX, READ_MAILBOX),
    "§7.9.24",
    fixed(0x18),
)
