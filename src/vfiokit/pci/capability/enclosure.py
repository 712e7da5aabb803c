"""Native PCIe Enclosure Management (extended id 0x29).

Source: PCI Express Base Specification 6.0 §7.9.19, Linux ``drivers/pci/npem.c``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

_INDICATIONS = (
    "ok",
    "locate",
    "fail",
    "rebuild",
    "predicted_failure",
    "hot_spare",
    "critical_array",
    "failed_array",
    "invalid_device",
    "disabled",
)


def _indications(access: str) -> tuple[Field, ...]:
    flags = (flag(name, bit, access) for bit, name in enumerate(_INDICATIONS, 2))
    return (*flags, Field("enclosure_specific", 31, 24, access))


CAPABILITY = Register(
    "capability",
    0x04,
    4,
    (flag("capable", 0, "hwinit"), flag("reset", 1, "hwinit"), *_indications("hwinit")),
    "§7.9.19.2",
)
CONTROL = Register(
    "control",
    0x08,
    4,
    (flag("enable", 0, "rw"), flag("initiate_reset", 1, "rw"), *_indications("rw")),
    "§7.9.19.3",
)
STATUS = Register(
    "status",
    0x0C,
    4,
    (flag("command_completed", 0, "rw1c"), Field("enclosure_specific", 31, 24)),
    "§7.9.19.4",
)

LAYOUT = Layout(
    "npem",
    "Native PCIe Enclosure Management",
    0x29,
    True,
    (CAPABILITY, CONTROL, STATUS),
    "§7.9.19",
    fixed(0x10),
)
