"""Power Management (id 0x01). Source: PCI Express Base Specification 6.0 §7.5.2."""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

CAPABILITIES = Register(
    "capabilities",
    0x02,
    2,
    (
        Field("version", 2, 0),
        flag("pme_clock", 3),
        flag("immediate_readiness", 4, doc="ready at once when back in D0"),
        flag("device_specific_initialization", 5),
        Field(
            "aux_current",
            8,
            6,
            meaning=dict(enumerate(("0", "55", "100", "160", "220", "270", "320", "375"))),
            unit="mA at 3.3 V, as named",
        ),
        flag("d1", 9),
        flag("d2", 10),
        Field("pme_support", 15, 11, doc="one bit for each of D0, D1, D2, D3hot, D3cold"),
    ),
    "§7.5.2.1",
)
CONTROL = Register(
    "control",
    0x04,
    2,
    (
        Field("power_state", 1, 0, "rw", meaning=dict(enumerate(("D0", "D1", "D2", "D3hot")))),
        flag("no_soft_reset", 3, doc="D3hot to D0 keeps the function's state"),
        flag("pme_enable", 8, "rw"),
        Field("data_select", 12, 9, "rw"),
        Field("data_scale", 14, 13),
        flag("pme_status", 15, "rw1c"),
    ),
    "§7.5.2.2",
)
BRIDGE_EXTENSIONS = Register(
    "bridge_extensions", 0x06, 1, (flag("b2_b3", 6), flag("bus_power_clock_control", 7)), "§7.5.2.2"
)
DATA = Register("data", 0x07, 1, (), "§7.5.2.3")

_STATES = ("D0", "D1", "D2", "D3hot", "D3cold")


def _derive(capability: Capability) -> dict[str, object]:
    support = capability.field(CAPABILITIES, "pme_support")
    return {"pme_from": [state for bit, state in enumerate(_STATES) if support >> bit & 1]}


LAYOUT = Layout(
    "power",
    "Power Management",
    0x01,
    False,
    (CAPABILITIES, CONTROL, BRIDGE_EXTENSIONS, DATA),
    "§7.5.2",
    lambda _: 8,
    derive=_derive,
)
