"""Slots and their hot plug before PCI Express (ids 0x04, 0x06, 0x0b, 0x0c).

Source: PCI-to-PCI Bridge Architecture Specification 1.2 §13, CompactPCI Hot Swap PICMG 2.1,
PCI Standard Hot-Plug Controller 1.0.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

IDENTIFICATION = Layout(
    "slot-id",
    "Slot Identification",
    0x04,
    False,
    (
        Register(
            "expansion",
            0x02,
            1,
            (Field("slots", 4, 0, "hwinit"), flag("first_in_chassis", 5, "hwinit")),
        ),
        Register("chassis", 0x03, 1, (Field("number", 7, 0, "rw"),)),
    ),
    "Bridge §13",
    fixed(4),
)

COMPACT_HOT_SWAP = Layout(
    "compact-hot-swap",
    "CompactPCI Hot Swap",
    0x06,
    False,
    (
        Register(
            "control_status",
            0x02,
            1,
            (
                flag("device_hiding_arm", 0, "rw"),
                flag("enum_mask", 1, "rw"),
                flag("pending", 2),
                flag("led", 3, "rw"),
                Field("programming_interface", 5, 4),
                flag("extraction", 6, "rw1c"),
                flag("insertion", 7, "rw1c"),
            ),
        ),
    ),
    "PICMG 2.1",
    fixed(4),
)

COMPACT_RESOURCE = Layout(
    "compact-resource",
    "CompactPCI Central Resource Control",
    0x0B,
    False,
    (),
    "PICMG 2.13",
    fixed(2),
)

HOT_PLUG = Layout(
    "hot-plug",
    "Standard Hot-Plug Controller",
    0x0C,
    False,
    (
        Register("select", 0x02, 1, (Field("dword", 7, 0, "rw"),)),
        Register(
            "pending",
            0x03,
            1,
            (flag("system_error", 6), flag("interrupt", 7)),
        ),
        Register("data", 0x04, 4, (Field("data", 31, 0, "rw"),)),
    ),
    "SHPC 1.0",
    fixed(8),
)
