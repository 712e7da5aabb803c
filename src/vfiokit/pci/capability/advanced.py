"""Conventional PCI Advanced Features (id 0x13): reset for functions without PCI Express.

Source: PCI-SIG Engineering Change Notice "Advanced Capabilities for Conventional PCI" (2006),
PCI Express Base Specification 6.0 §7.9.21.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, flag

LENGTH = Register("length", 0x02, 1, (Field("length", 7, 0, unit="bytes"),))
CAPABILITIES = Register(
    "capabilities", 0x03, 1, (flag("transactions_pending", 0), flag("function_level_reset", 1))
)
CONTROL = Register("control", 0x04, 1, (flag("initiate_function_level_reset", 0, "rw"),))
STATUS = Register("status", 0x05, 1, (flag("transactions_pending", 0),))

LAYOUT = Layout(
    "advanced",
    "PCI Advanced Features",
    0x13,
    False,
    (LENGTH, CAPABILITIES, CONTROL, STATUS),
    "§7.9.21",
    lambda _: 6,
)
