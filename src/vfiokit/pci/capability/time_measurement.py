"""Precision Time Measurement (extended id 0x1f).

Source: PCI Express Base Specification 6.0 §7.9.15.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

CAPABILITY = Register(
    "capability",
    0x04,
    4,
    (
        flag("requester", 0, "hwinit"),
        flag("responder", 1, "hwinit"),
        flag("root", 2, "hwinit"),
        flag("enhanced", 3, "hwinit"),
        flag("propagation_delay_adaptation", 4, "hwinit"),
        Field(
            "clock_granularity", 15, 8, "hwinit", {0: "none", 255: "more than 254 ns"}, unit="ns"
        ),
    ),
    "§7.9.15.2",
)
CONTROL = Register(
    "control",
    0x08,
    4,
    (
        flag("enable", 0, "rw"),
        flag("root_select", 1, "rw"),
        Field(
            "effective_granularity",
            15,
            8,
            "rw",
            {0: "unknown", 255: "more than 254 ns"},
            unit="ns",
        ),
    ),
    "§7.9.15.3",
)

LAYOUT = Layout(
    "ptm",
    "Precision Time Measurement",
    0x1F,
    True,
    (CAPABILITY, CONTROL),
    "§7.9.15",
    fixed(12),
)
