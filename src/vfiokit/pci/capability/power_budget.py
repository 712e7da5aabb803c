"""What a device draws: Power Budgeting (0x04), Dynamic Power Allocation (0x16).

Source: PCI Express Base Specification 6.0 §7.8.1 and §7.9.12.
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

_SCALES = {0: "1.0", 1: "0.1", 2: "0.01", 3: "0.001"}
_HIGH_POWER = {0xF0: 250, 0xF1: 275, 0xF2: 300}
"""Base power from 0xf0 on, at scale 0, in watts (§7.8.1.4)."""

DATA_SELECT = Register("data_select", 0x04, 1, (Field("index", 7, 0, "rw"),), "§7.8.1.2")
DATA = Register(
    "data",
    0x08,
    4,
    (
        Field("base_power", 7, 0),
        Field("scale", 9, 8, meaning=_SCALES),
        Field("substate", 12, 10, doc="0: default"),
        Field("power_state", 14, 13, meaning={0: "D0", 1: "D1", 2: "D2", 3: "D3"}),
        Field(
            "operating_condition",
            17,
            15,
            meaning={
                0: "PME auxiliary",
                1: "auxiliary",
                2: "idle",
                3: "sustained",
                4: "sustained, emergency reduction",
                5: "maximum, emergency reduction",
                7: "maximum",
            },
        ),
        Field(
            "power_rail",
            20,
            18,
            meaning={0: "12 V", 1: "3.3 V", 2: "1.5 V or 1.8 V", 3: "48 V", 4: "5 V", 7: "thermal"},
        ),
    ),
    "§7.8.1.4",
)
CAPABILITY = Register("capability", 0x0C, 1, (flag("system_allocated", 0, "hwinit"),), "§7.8.1.5")


def milliwatts(capability: Capability) -> int | None:
    """The power of the entry selected, in mW; ``None`` for a reserved code."""
    base, scale = capability.field(DATA, "base_power"), capability.field(DATA, "scale")
    if scale == 0 and base >= 0xF0:
        watts = _HIGH_POWER.get(base)
        return None if watts is None else watts * 1000
    return int(base * 10 ** (3 - scale))


BUDGETING = Layout(
    "power-budgeting",
    "Power Budgeting",
    0x04,
    True,
    (DATA_SELECT, DATA, CAPABILITY),
    "§7.8.1",
    fixed(0x10),
    derive=lambda capability: {"selected_milliwatts": milliwatts(capability)},
)

DPA_CAPABILITY = Register(
    "capability",
    0x04,
    4,
    (
        Field("max_substate", 4, 0),
        Field("latency_unit", 9, 8, meaning={0: "1 ms", 1: "10 ms", 2: "100 ms"}),
        Field("power_scale", 13, 12, meaning={0: "10", 1: "1", 2: "0.1", 3: "0.01"}, unit="W"),
        Field("latency_0", 23, 16, unit="latency_unit"),
        Field("latency_1", 31, 24, unit="latency_unit"),
    ),
    "§7.9.12.2",
)
DPA_LATENCY_INDICATOR = Register(
    "latency_indicator",
    0x08,
    4,
    (Field("indicators", 31, 0, doc="bit n: substate n takes latency_1"),),
    "§7.9.12.3",
)
DPA_STATUS = Register(
    "status", 0x0C, 2, (Field("substate", 4, 0), flag("control_enabled", 8, "rw1c")), "§7.9.12.4"
)
DPA_CONTROL = Register("control", 0x0E, 2, (Field("substate", 4, 0, "rw"),), "§7.9.12.5")
SUBSTATE_POWER = Register(
    "power", 0x00, 1, (Field("allocation", 7, 0, unit="power_scale"),), "§7.9.12.6"
)


def _substates(capability: Capability) -> int:
    return capability.field(DPA_CAPABILITY, "max_substate") + 1


def _derive(capability: Capability) -> dict[str, object]:
    unit = 10_000 // 10 ** capability.field(DPA_CAPABILITY, "power_scale")
    count = _substates(capability)
    return {"substate_milliwatts": [capability.raw(0x10 + n, 1) * unit for n in range(count)]}


DYNAMIC_ALLOCATION = Layout(
    "dynamic-power",
    "Dynamic Power Allocation",
    0x16,
    True,
    (DPA_CAPABILITY, DPA_LATENCY_INDICATOR, DPA_STATUS, DPA_CONTROL),
    "§7.9.12",
    lambda capability: 0x10 + _substates(capability),
    derive=_derive,
    repeated=(Repeated("substate", (SUBSTATE_POWER,), counted(0x10, 1, _substates)),),
)
