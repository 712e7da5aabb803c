"""When a function is ready: FRS queueing (0x21), readiness time reporting (0x22).

Source: PCI Express Base Specification 6.0 §7.8.10 and §7.9.16.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, fixed, flag

STATUS_QUEUEING = Layout(
    "frs-queueing",
    "FRS Queueing",
    0x21,
    True,
    (
        Register(
            "capability",
            0x04,
            4,
            (
                Field("max_depth", 11, 0, "hwinit", unit="messages"),
                Field("interrupt_message_number", 20, 16),
            ),
            "§7.8.10.2",
        ),
        Register(
            "status",
            0x08,
            2,
            (flag("received", 0, "rw1c"), flag("overflow", 1, "rw1c")),
            "§7.8.10.3",
        ),
        Register("control", 0x0A, 2, (flag("interrupt_enable", 0, "rw"),), "§7.8.10.4"),
        Register(
            "queue",
            0x0C,
            4,
            (
                Field("function_id", 15, 0, doc="requester ID of the oldest message"),
                Field(
                    "reason",
                    19,
                    16,
                    meaning={
                        1: "DRS message received",
                        2: "D3hot to D0",
                        3: "function-level reset",
                        8: "VF enabled",
                        9: "VF disabled",
                    },
                ),
                Field("depth", 31, 20, unit="messages", doc="0: empty"),
            ),
            "§7.8.10.5",
        ),
    ),
    "§7.8.10",
    fixed(0x10),
)

_ENCODING = "bits [8:0] times 32**bits [11:9] ns"

TIMES_1 = Register(
    "times_1",
    0x04,
    4,
    (
        Field("reset_time", 11, 0, "hwinit", doc=_ENCODING),
        Field("data_link_up_time", 23, 12, "hwinit", doc=_ENCODING),
        flag("valid", 31, "hwinit"),
    ),
    "§7.9.16.2",
)
TIMES_2 = Register(
    "times_2",
    0x08,
    4,
    (
        Field("function_level_reset_time", 11, 0, "hwinit", doc=_ENCODING),
        Field("d3hot_to_d0_time", 23, 12, "hwinit", doc=_ENCODING),
    ),
    "§7.9.16.3",
)


def _derive(capability: Capability) -> dict[str, object]:
    times = {
        field.name: field.extract(capability.value(register))
        for register in (TIMES_1, TIMES_2)
        for field in register.fields
        if field.name != "valid"
    }
    return {f"{name}_ns": (code & 0x1FF) * 32 ** (code >> 9) for name, code in times.items()}


TIME_REPORTING = Layout(
    "readiness-time",
    "Readiness Time Reporting",
    0x22,
    True,
    (TIMES_1, TIMES_2),
    "§7.9.16",
    fixed(12),
    derive=_derive,
)
