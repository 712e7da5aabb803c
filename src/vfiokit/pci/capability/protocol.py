"""Other protocols and other software at a port: PMUX (0x1a), alternate protocols (0x2b), system
firmware (0x2c), shadow functions (0x2d).

Source: PCI Express Base Specification 5.0 appendix G (PMUX), 6.0 §7.9.20, §7.9.22, §7.9.25.
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

PMUX_CAPABILITY = Register(
    "capability",
    0x04,
    4,
    (
        Field("protocols", 5, 0, doc="entries of the protocol array"),
        Field("supported_speeds", 15, 8, doc="bit n: speed code n + 1"),
    ),
)


def _protocols(capability: Capability) -> int:
    return capability.field(PMUX_CAPABILITY, "protocols")


MULTIPLEXING = Layout(
    "protocol-multiplexing",
    "Protocol Multiplexing",
    0x1A,
    True,
    (
        PMUX_CAPABILITY,
        Register(
            "control",
            0x08,
            4,
            tuple(
                Field(
                    f"channel_{number}_assignment",
                    8 * number + 5,
                    8 * number,
                    "rw",
                    doc="entry of the protocol array, counted from 1; 0: none",
                )
                for number in range(4)
            ),
        ),
        Register("status", 0x0C, 4),
    ),
    "5.0 §G",
    lambda capability: 0x10 + 4 * _protocols(capability),
    repeated=(
        Repeated(
            "protocol",
            (
                Register(
                    "entry",
                    0x00,
                    4,
                    (Field("protocol_id", 15, 0), Field("authority_id", 31, 16)),
                ),
            ),
            counted(0x10, 4, _protocols),
        ),
    ),
)

ALTERNATE_CAPABILITIES = Register(
    "capabilities",
    0x04,
    4,
    (Field("protocols", 7, 0, "hwinit"), flag("selective_enable", 8, "hwinit")),
    "§7.9.20.2",
)


def _selectable(capability: Capability) -> bool:
    return bool(capability.field(ALTERNATE_CAPABILITIES, "selective_enable"))


ALTERNATE = Layout(
    "alternate-protocol",
    "Alternate Protocol",
    0x2B,
    True,
    (
        ALTERNATE_CAPABILITIES,
        Register(
            "control",
            0x08,
            4,
            (Field("index", 7, 0, "rw"), flag("negotiation_enable", 8, "rw")),
            "§7.9.20.3",
        ),
        Register(
            "data_1",
            0x0C,
            4,
            (Field("usage", 2, 0), Field("details", 15, 5), Field("vendor_id", 31, 16)),
            "§7.9.20.4",
        ),
        Register("data_2", 0x10, 4, (Field("information_2", 23, 0),), "§7.9.20.5"),
        Register(
            "selective_enable_mask",
            0x14,
            4,
            (Field("protocols", 31, 0, "rw", doc="bit n: protocol n"),),
            "§7.9.20.6",
        ),
    ),
    "§7.9.20",
    lambda capability: 0x18 if _selectable(capability) else 0x14,
    lambda capability, register: register.offset < 0x14 or _selectable(capability),
)

SYSTEM_FIRMWARE = Layout(
    "system-firmware",
    "System Firmware Intermediary",
    0x2C,
    True,
    (
        Register("capability", 0x04, 2, (flag("out_of_band_presence", 0, "hwinit"),), "§7.9.22.2"),
        Register(
            "control",
            0x06,
            2,
            (
                flag("presence_state_mask", 0, "rw"),
                flag("data_link_state_mask", 1, "rw"),
                flag("out_of_band_presence_changed_enable", 2, "rw"),
                flag("data_link_state_changed_enable", 3, "rw"),
                flag("readiness_mask", 4, "rw"),
                flag("readiness_signaling_enable", 5, "rw"),
            ),
            "§7.9.22.3",
        ),
        Register("status", 0x08, 4, (), "§7.9.22.4"),
        Register("access_address", 0x0C, 4, (), "§7.9.22.5"),
        Register("access_data", 0x10, 4, (), "§7.9.22.6"),
    ),
    "§7.9.22",
    fixed(0x14),
)

SHADOW_FUNCTIONS = Layout(
    "shadow-functions",
    "Shadow Functions",
    0x2D,
    True,
    (
        Register("capability", 0x04, 4, (), "§7.9.25.2"),
        Register("control", 0x08, 4, (), "§7.9.25.3"),
        *(Register(f"instance{n}", 0x0C + 4 * n, 4, (), "§7.9.25.4") for n in range(4)),
    ),
    "§7.9.25",
    fixed(0x1C),
)
