"""Alternative Routing-ID Interpretation (extended id 0x0e).

Source: PCI Express Base Specification 5.0 §7.8.7.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, flag

CAPABILITY = Register(
    "capability",
    0x04,
    2,
    (
        flag("mfvc_function_groups", 0),
        flag("acs_function_groups", 1),
        Field("next_function", 15, 8, doc="0 ends the list"),
    ),
    "§7.8.7.2",
)
CONTROL = Register(
    "control",
    0x06,
    2,
    (
        flag("mfvc_function_groups_enable", 0, "rw"),
        flag("acs_function_groups_enable", 1, "rw"),
        Field("function_group", 6, 4, "rw"),
    ),
    "§7.8.7.3",
)

LAYOUT = Layout(
    "ari",
    "Alternative Routing-ID Interpretation",
    0x0E,
    True,
    (CAPABILITY, CONTROL),
    "§7.8.7",
    lambda _: 8,
)
