"""Downstream Port Containment (extended id 0x1d).

Source: PCI Express Base Specification 6.0 §7.9.14, Linux ``drivers/pci/pcie/dpc.c``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

CAPABILITY = Register(
    "capability",
    0x04,
    2,
    (
        Field("interrupt_message_number", 4, 0),
        flag("root_port_extensions", 5),
        flag("poisoned_tlp_egress_blocking", 6),
        flag("software_trigger", 7),
        Field("pio_log_size", 11, 8, unit="dwords"),
        flag("data_link_active_signaling", 12),
        flag("pio_log_size_bit_4", 13),
    ),
    "§7.9.14.2",
)
CONTROL = Register(
    "control",
    0x06,
    2,
    (
        Field("trigger_enable", 1, 0, "rw", {0: "off", 1: "fatal", 2: "nonfatal and fatal"}),
        flag("completion_control", 2, "rw", "0: completer abort, 1: unsupported request"),
        flag("interrupt_enable", 3, "rw"),
        flag("correctable_enable", 4, "rw"),
        flag("poisoned_tlp_egress_blocking_enable", 5, "rw"),
        flag("software_trigger", 6, "rw"),
        flag("data_link_active_enable", 7, "rw"),
        flag("system_firmware_signaling_enable", 8, "rw"),
    ),
    "§7.9.14.3",
)
STATUS = Register(
    "status",
    0x08,
    2,
    (
        flag("triggered", 0, "rw1c"),
        Field(
            "trigger_reason",
            2,
            1,
            meaning={
                0: "unmasked uncorrectable error",
                1: "nonfatal message",
                2: "fatal message",
                3: "see trigger_reason_extension",
            },
        ),
        flag("interrupt", 3, "rw1c"),
        flag("root_port_busy", 4),
        Field("trigger_reason_extension", 6, 5, meaning={0: "root port PIO", 1: "software"}),
        Field("pio_first_error_pointer", 12, 8),
        flag("system_firmware_signaling", 13, "rw1c"),
    ),
    "§7.9.14.4",
)
ERROR_SOURCE = Register("error_source", 0x0A, 2, (Field("requester_id", 15, 0),), "§7.9.14.5")

_PIO_ERRORS = tuple(
    (f"{space}_{error}", 8 * index + bit)
    for index, space in enumerate(("config", "io", "memory"))
    for bit, error in enumerate(("unsupported_request", "completer_abort", "completion_timeout"))
)


def _pio(name: str, offset: int, access: str, spec: str) -> Register:
    fields = tuple(flag(error, bit, access) for error, bit in _PIO_ERRORS)
    return Register(name, offset, 4, fields, spec)


PIO = (
    _pio("pio_status", 0x0C, "rw1c", "§7.9.14.6"),
    _pio("pio_mask", 0x10, "rw", "§7.9.14.7"),
    _pio("pio_severity", 0x14, "rw", "§7.9.14.8"),
    _pio("pio_system_error", 0x18, "rw", "§7.9.14.9"),
    _pio("pio_exception", 0x1C, "rw", "§7.9.14.10"),
)
PIO_HEADER_LOG = tuple(
    Register(f"pio_header_log{index}", 0x20 + 4 * index, 4, (), "§7.9.14.11") for index in range(4)
)
PIO_SPECIFIC_LOG = Register("pio_specific_log", 0x30, 4, (), "§7.9.14.12")
PIO_PREFIX_LOG = tuple(
    Register(f"pio_prefix_log{index}", 0x34 + 4 * index, 4, (), "§7.9.14.13") for index in range(4)
)


def log_size(capability: Capability) -> int:
    """Dwords of the RP PIO log: header, implementation specific, prefixes; 0 without it."""
    if not capability.field(CAPABILITY, "root_port_extensions"):
        return 0
    high = capability.field(CAPABILITY, "pio_log_size_bit_4")
    return capability.field(CAPABILITY, "pio_log_size") | high << 4


def _present(capability: Capability, register: Register) -> bool:
    if register.offset < PIO[0].offset:
        return True
    if not capability.field(CAPABILITY, "root_port_extensions"):
        return False
    logged = (register.offset - PIO_HEADER_LOG[0].offset) // 4
    return logged < 0 or logged < log_size(capability)


def _size(capability: Capability) -> int:
    if not capability.field(CAPABILITY, "root_port_extensions"):
        return 0x0C
    return 0x20 + 4 * log_size(capability)


LAYOUT = Layout(
    "dpc",
    "Downstream Port Containment",
    0x1D,
    True,
    (
        CAPABILITY,
        CONTROL,
        STATUS,
        ERROR_SOURCE,
        *PIO,
        *PIO_HEADER_LOG,
        PIO_SPECIFIC_LOG,
        *PIO_PREFIX_LOG,
    ),
    "§7.9.14",
    _size,
    _present,
)
