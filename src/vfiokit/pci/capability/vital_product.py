"""Vital Product Data (id 0x03): the window to it. What lies behind is :mod:`vfiokit.pci.vpd`'s.

Source: PCI Express Base Specification 6.0 §7.9.18.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

ADDRESS = Register(
    "address",
    0x02,
    2,
    (
        Field("address", 14, 0, "rw", unit="bytes"),
        flag("flag", 15, "rw", "set by hardware after a read, cleared after a write"),
    ),
    "§7.9.18.1",
)
DATA = Register("data", 0x04, 4, (Field("data", 31, 0, "rw"),), "§7.9.18.2")

LAYOUT = Layout("vpd", "Vital Product Data", 0x03, False, (ADDRESS, DATA), "§7.9.18", fixed(8))
