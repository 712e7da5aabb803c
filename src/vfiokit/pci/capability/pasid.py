"""Process Address Space ID (extended id 0x1b).

Source: PCI Express Base Specification 5.0 §7.8.8.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, flag

CAPABILITY = Register(
    "capability",
    0x04,
    2,
    (
        flag("execute", 1),
        flag("privileged", 2),
        flag("translated_requests", 3),
        Field("max_pasid_width", 12, 8, unit="bits"),
    ),
    "§7.8.8.2",
)
CONTROL = Register(
    "control",
    0x06,
    2,
    (
        flag("enable", 0, "rw"),
        flag("execute_enable", 1, "rw"),
        flag("privileged_enable", 2, "rw"),
        flag("translated_requests_enable", 3, "rw"),
    ),
    "§7.8.8.3",
)

LAYOUT = Layout(
    "pasid",
    "Process Address Space ID",
    0x1B,
    True,
    (CAPABILITY, CONTROL),
    "§7.8.8",
    lambda _: 8,
)
