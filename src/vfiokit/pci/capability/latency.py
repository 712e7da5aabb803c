"""How long a device can wait: LTR (0x18), L1 PM substates (0x1e).

Source: PCI Express Base Specification 6.0 §7.8.2 and §7.8.3.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, fixed, flag

_SCALES = {code: f"{32**code} ns" for code in range(6)}
_POWER_ON_SCALES = {0: "2 us", 1: "10 us", 2: "100 us"}
_POWER_ON_US = {0: 2, 1: 10, 2: 100}


def _max_latency(name: str, offset: int, spec: str) -> Register:
    fields = (Field("latency", 9, 0, "rw", unit="scale"), Field("scale", 12, 10, "rw", _SCALES))
    return Register(name, offset, 2, fields, spec)


MAX_SNOOP = _max_latency("max_snoop", 0x04, "§7.8.2.2")
MAX_NO_SNOOP = _max_latency("max_no_snoop", 0x06, "§7.8.2.3")


def nanoseconds(latency: int, scale: int) -> int | None:
    """``latency`` in units of 32**scale ns; ``None`` for a reserved scale."""
    return int(latency * 32**scale) if scale in _SCALES else None


def _tolerated(capability: Capability) -> dict[str, object]:
    return {
        f"{register.name}_ns": nanoseconds(
            capability.field(register, "latency"), capability.field(register, "scale")
        )
        for register in (MAX_SNOOP, MAX_NO_SNOOP)
    }


TOLERANCE = Layout(
    "ltr",
    "Latency Tolerance Reporting",
    0x18,
    True,
    (MAX_SNOOP, MAX_NO_SNOOP),
    "§7.8.2",
    fixed(8),
    derive=_tolerated,
)

SUBSTATES_CAPABILITIES = Register(
    "capabilities",
    0x04,
    4,
    (
        flag("pci_pm_l1_2", 0, "hwinit"),
        flag("pci_pm_l1_1", 1, "hwinit"),
        flag("aspm_l1_2", 2, "hwinit"),
        flag("aspm_l1_1", 3, "hwinit"),
        flag("l1_substates", 4, "hwinit"),
        flag("link_activation", 5, "hwinit"),
        Field("common_mode_restore_time", 15, 8, "hwinit", unit="us"),
        Field("power_on_scale", 17, 16, "hwinit", _POWER_ON_SCALES),
        Field("power_on", 23, 19, "hwinit", unit="power_on_scale"),
    ),
    "§7.8.3.2",
)
SUBSTATES_CONTROL_1 = Register(
    "control_1",
    0x08,
    4,
    (
        flag("pci_pm_l1_2", 0, "rw"),
        flag("pci_pm_l1_1", 1, "rw"),
        flag("aspm_l1_2", 2, "rw"),
        flag("aspm_l1_1", 3, "rw"),
        flag("link_activation_interrupt", 4, "rw"),
        flag("link_activation", 5, "rw"),
        Field("common_mode_restore_time", 15, 8, "rw", unit="us"),
        Field("ltr_l1_2_threshold", 25, 16, "rw", unit="threshold_scale"),
        Field("threshold_scale", 31, 29, "rw", _SCALES),
    ),
    "§7.8.3.3",
)
SUBSTATES_CONTROL_2 = Register(
    "control_2",
    0x0C,
    4,
    (
        Field("power_on_scale", 1, 0, "rw", _POWER_ON_SCALES),
        Field("power_on", 7, 3, "rw", unit="power_on_scale"),
    ),
    "§7.8.3.4",
)
SUBSTATES_STATUS = Register("status", 0x10, 4, (flag("link_activation", 0, "rw1c"),), "§7.8.3.5")


def _has_status(capability: Capability) -> bool:
    return bool(capability.field(SUBSTATES_CAPABILITIES, "link_activation"))


def _microseconds(capability: Capability, register: Register) -> int | None:
    scale = _POWER_ON_US.get(capability.field(register, "power_on_scale"))
    return None if scale is None else scale * capability.field(register, "power_on")


def _substates(capability: Capability) -> dict[str, object]:
    return {
        "port_power_on_us": _microseconds(capability, SUBSTATES_CAPABILITIES),
        "power_on_us": _microseconds(capability, SUBSTATES_CONTROL_2),
        "ltr_l1_2_threshold_ns": nanoseconds(
            capability.field(SUBSTATES_CONTROL_1, "ltr_l1_2_threshold"),
            capability.field(SUBSTATES_CONTROL_1, "threshold_scale"),
        ),
    }


L1_SUBSTATES = Layout(
    "l1-substates",
    "L1 PM Substates",
    0x1E,
    True,
    (SUBSTATES_CAPABILITIES, SUBSTATES_CONTROL_1, SUBSTATES_CONTROL_2, SUBSTATES_STATUS),
    "§7.8.3",
    lambda capability: 0x14 if _has_status(capability) else 0x10,
    lambda capability, register: register is not SUBSTATES_STATUS or _has_status(capability),
    _substates,
)
