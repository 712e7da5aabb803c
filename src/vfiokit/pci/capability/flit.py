"""Flit mode: logging (0x32), performance (0x33), error injection (0x34), NOP flits (0x37).

Source: PCI Express Base Specification 6.1 §7.7.8 and §7.8.12 to §7.8.14.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

_WIDTHS = {0: "x1", 1: "x2", 2: "x4", 3: "x8", 4: "x16"}


def _counters(first: int, offset: int, spec: str) -> Register:
    """Two lanes' correctable error counters in one dword."""
    fields = (Field(f"lane_{first}", 15, 0), Field(f"lane_{first + 1}", 31, 16))
    return Register(f"lanes_{first}_{first + 1}", offset, 4, fields, spec)


LOGGING = Layout(
    "flit-logging",
    "Flit Logging",
    0x32,
    True,
    (
        Register(
            "error_log_1",
            0x04,
            4,
            (
                flag("valid", 0, "rw1c"),
                Field("link_width", 3, 1, meaning=_WIDTHS),
                Field("offset", 7, 4, unit="flits"),
                Field("consecutive_errors", 12, 8),
                flag("more_entries", 13),
                flag("unrecognized", 14),
                flag("uncorrectable", 15),
                Field("group_0_parity", 23, 16),
                Field("group_0_check", 31, 24),
            ),
            "§7.7.8.2",
        ),
        Register(
            "error_log_2",
            0x08,
            4,
            (
                Field("group_1_parity", 7, 0),
                Field("group_1_check", 15, 8),
                Field("group_2_parity", 23, 16),
                Field("group_2_check", 31, 24),
            ),
            "§7.7.8.3",
        ),
        Register(
            "counter_control",
            0x0C,
            2,
            (
                flag("enable", 0, "rw"),
                flag("interrupt_enable", 1, "rw"),
                Field("events", 3, 2, "rw"),
                Field("trigger_count", 11, 4, "rw"),
            ),
            "§7.7.8.4",
        ),
        Register(
            "counter_status",
            0x0E,
            2,
            (
                Field("link_width", 2, 0, meaning=_WIDTHS),
                flag("interrupt", 3, "rw1c"),
                Field("count", 15, 8),
            ),
            "§7.7.8.5",
        ),
        Register(
            "measurement_control",
            0x10,
            4,
            (
                flag("enable", 0, "rw"),
                flag("clear", 1, "rw"),
                Field("granularity", 3, 2, "rw"),
            ),
            "§7.7.8.6",
        ),
        Register("flit_counter", 0x14, 4, (Field("flits", 31, 0),), "§7.7.8.7"),
        Register("invalid_counter", 0x18, 4, (Field("flits", 15, 0),), "§7.7.8.8"),
        *(_counters(2 * pair, 0x1C + 4 * pair, f"§7.7.8.{9 + pair}") for pair in range(8)),
    ),
    "§7.7.8",
    fixed(0x3C),
)

PERFORMANCE = Layout(
    "flit-performance",
    "Flit Performance Measurement",
    0x33,
    True,
    (
        Register("capability", 0x04, 4, (), "§7.8.12.2"),
        Register("control", 0x08, 4, (), "§7.8.12.3"),
        Register("status", 0x0C, 4, (), "§7.8.12.4"),
        *(Register(f"ltssm_status{n}", 0x10 + 4 * n, 4, (), "§7.8.12.5") for n in range(5)),
    ),
    "§7.8.12",
    fixed(0x24),
)

_RATES = ("2_5", "5", "8", "16", "32", "64")
_ORDERED_SETS = (
    "ts0",
    "ts1",
    "ts2",
    "skp",
    "eieos",
    "eios",
    "sds",
    "polling",
    "configuration",
    "l0",
    "recovery",
    "equalization_phases_0_1",
    "equalization_phase_2",
    "equalization_phase_3",
)
_INJECTION = {0: "none", 1: "started", 2: "completed", 3: "error"}


def _injection_status(name: str, offset: int, spec: str) -> Register:
    fields = tuple(
        Field(what, 2 * index + 1, 2 * index, meaning=_INJECTION)
        for index, what in enumerate(_ORDERED_SETS)
    )
    return Register(name, offset, 4, fields, spec)


ERROR_INJECTION = Layout(
    "flit-error-injection",
    "Flit Error Injection",
    0x34,
    True,
    (
        Register("capability", 0x04, 4, (), "§7.8.13.2"),
        Register(
            "control_1",
            0x08,
            4,
            (
                flag("enable", 0, "rw"),
                flag("transmitted", 1, "rw"),
                flag("received", 2, "rw"),
                *(flag(f"rate_{rate}gt", 6 + bit, "rw") for bit, rate in enumerate(_RATES)),
                Field("errors", 20, 16, "rw"),
                Field("spacing", 28, 21, "rw"),
                Field("flit_type", 30, 29, "rw"),
            ),
            "§7.8.13.3",
        ),
        Register(
            "control_2",
            0x0C,
            4,
            (
                Field("consecutive", 2, 0, "rw"),
                Field("error_type", 4, 3, "rw"),
                Field("offset", 11, 5, "rw"),
                Field("magnitude", 19, 12, "rw"),
            ),
            "§7.8.13.4",
        ),
        Register(
            "status",
            0x10,
            4,
            (
                Field("transmitted", 1, 0, meaning=_INJECTION),
                Field("received", 3, 2, meaning=_INJECTION),
            ),
            "§7.8.13.5",
        ),
        Register(
            "ordered_set_control_1",
            0x14,
            4,
            (
                flag("enable", 0, "rw"),
                flag("transmitted", 1, "rw"),
                flag("received", 2, "rw"),
                Field("errors", 7, 3, "rw"),
                Field("spacing", 15, 8, "rw"),
                *(flag(what, 16 + bit, "rw") for bit, what in enumerate(_ORDERED_SETS)),
            ),
            "§7.8.13.6",
        ),
        Register(
            "ordered_set_control_2",
            0x18,
            4,
            (Field("bytes", 15, 0, "rw"), Field("lanes", 31, 16, "rw")),
            "§7.8.13.7",
        ),
        _injection_status("ordered_set_transmit_status", 0x1C, "§7.8.13.8"),
        _injection_status("ordered_set_receive_status", 0x20, "§7.8.13.9"),
    ),
    "§7.8.13",
    fixed(0x24),
)

NOP = Layout(
    "nop-flit",
    "NOP Flit",
    0x37,
    True,
    (
        Register("capabilities", 0x04, 4, (), "§7.8.14.2"),
        Register("control_1", 0x08, 4, (), "§7.8.14.3"),
        Register("control_2", 0x0C, 4, (), "§7.8.14.4"),
        Register("status", 0x10, 4, (), "§7.8.14.5"),
    ),
    "§7.8.14",
    fixed(0x14),
)
