"""Page Request Interface (extended id 0x13).

Source: PCI Express Base Specification 6.0 §10.5.2.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, flag

CONTROL = Register(
    "control", 0x04, 2, (flag("enable", 0, "rw"), flag("reset", 1, "rw")), "§10.5.2.2"
)
STATUS = Register(
    "status",
    0x06,
    2,
    (
        flag("response_failure", 0, "rw1c"),
        flag("unexpected_group_index", 1, "rw1c"),
        flag("stopped", 8),
        flag("response_pasid_required", 15),
    ),
    "§10.5.2.3",
)
CAPACITY = Register(
    "capacity", 0x08, 4, (Field("outstanding_requests", 31, 0, unit="requests"),), "§10.5.2.4"
)
ALLOCATION = Register(
    "allocation",
    0x0C,
    4,
    (Field("outstanding_requests", 31, 0, "rw", unit="requests"),),
    "§10.5.2.5",
)

LAYOUT = Layout(
    "pri",
    "Page Request Interface",
    0x13,
    True,
    (CONTROL, STATUS, CAPACITY, ALLOCATION),
    "§10.5.2",
    lambda _: 16,
)
