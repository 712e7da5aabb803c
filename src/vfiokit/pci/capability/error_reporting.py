"""Advanced Error Reporting (extended id 0x01).

Source: PCI Express Base Specification 6.0 §7.8.4; which ports have the root registers is that of
Linux ``drivers/pci/pcie/aer.c``.
"""

from __future__ import annotations

from vfiokit.pci.capability.express import DEVICE_CAPABILITIES_2, PortType, port_type, sibling
from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

_UNCORRECTABLE = (
    ("training", 0),
    ("data_link_protocol", 4),
    ("surprise_down", 5),
    ("poisoned_tlp", 12),
    ("flow_control_protocol", 13),
    ("completion_timeout", 14),
    ("completer_abort", 15),
    ("unexpected_completion", 16),
    ("receiver_overflow", 17),
    ("malformed_tlp", 18),
    ("ecrc", 19),
    ("unsupported_request", 20),
    ("acs_violation", 21),
    ("internal", 22),
    ("multicast_blocked", 23),
    ("atomic_op_egress_blocked", 24),
    ("tlp_prefix_blocked", 25),
    ("poisoned_tlp_egress_blocked", 26),
    ("deferrable_write_egress_blocked", 27),
    ("ide_check_failed", 28),
    ("misrouted_ide_tlp", 29),
    ("pcrc_check_failed", 30),
    ("translation_egress_blocked", 31),
)
_CORRECTABLE = (
    ("receiver", 0),
    ("bad_tlp", 6),
    ("bad_dllp", 7),
    ("replay_number_rollover", 8),
    ("replay_timer_timeout", 12),
    ("advisory_nonfatal", 13),
    ("internal", 14),
    ("header_log_overflow", 15),
)


def _errors(names: tuple[tuple[str, int], ...], access: str) -> tuple[Field, ...]:
    return tuple(flag(name, bit, access) for name, bit in names)


UNCORRECTABLE_STATUS = Register(
    "uncorrectable_status", 0x04, 4, _errors(_UNCORRECTABLE, "rw1c"), "§7.8.4.2"
)
UNCORRECTABLE_MASK = Register(
    "uncorrectable_mask", 0x08, 4, _errors(_UNCORRECTABLE, "rw"), "§7.8.4.3"
)
UNCORRECTABLE_SEVERITY = Register(
    "uncorrectable_severity", 0x0C, 4, _errors(_UNCORRECTABLE, "rw"), "§7.8.4.4"
)
CORRECTABLE_STATUS = Register(
    "correctable_status", 0x10, 4, _errors(_CORRECTABLE, "rw1c"), "§7.8.4.5"
)
CORRECTABLE_MASK = Register("correctable_mask", 0x14, 4, _errors(_CORRECTABLE, "rw"), "§7.8.4.6")
CONTROL = Register(
    "control",
    0x18,
    4,
    (
        Field("first_error_pointer", 4, 0, doc="bit of the uncorrectable status"),
        flag("ecrc_generation", 5),
        flag("ecrc_generation_enable", 6, "rw"),
        flag("ecrc_check", 7),
        flag("ecrc_check_enable", 8, "rw"),
        flag("multiple_header_recording", 9),
        flag("multiple_header_recording_enable", 10, "rw"),
        flag("tlp_prefix_log_present", 11),
        flag("completion_timeout_header_log", 12),
        flag("flit_mode_log", 18),
        Field("log_size", 23, 19, unit="dwords", doc="of a TLP logged in Flit Mode"),
    ),
    "§7.8.4.7",
)
HEADER_LOG = tuple(
    Register(f"header_log{index}", 0x1C + 4 * index, 4, (), "§7.8.4.8") for index in range(4)
)
ROOT_COMMAND = Register(
    "root_command",
    0x2C,
    4,
    (
        flag("correctable_reporting", 0, "rw"),
        flag("nonfatal_reporting", 1, "rw"),
        flag("fatal_reporting", 2, "rw"),
    ),
    "§7.8.4.9",
)
ROOT_STATUS = Register(
    "root_status",
    0x30,
    4,
    (
        flag("correctable_received", 0, "rw1c"),
        flag("multiple_correctable_received", 1, "rw1c"),
        flag("uncorrectable_received", 2, "rw1c"),
        flag("multiple_uncorrectable_received", 3, "rw1c"),
        flag("first_uncorrectable_fatal", 4, "rw1c"),
        flag("nonfatal_received", 5, "rw1c"),
        flag("fatal_received", 6, "rw1c"),
        Field("correctable_subclass", 8, 7, "rw1c"),
        Field("interrupt_message_number", 31, 27),
    ),
    "§7.8.4.10",
)
CORRECTABLE_SOURCE = Register("correctable_source", 0x34, 2, (Field("requester_id", 15, 0),))
UNCORRECTABLE_SOURCE = Register("uncorrectable_source", 0x36, 2, (Field("requester_id", 15, 0),))
PREFIX_LOG = tuple(
    Register(f"prefix_log{index}", 0x38 + 4 * index, 4, (), "§7.8.4.12") for index in range(4)
)

_ROOT = (ROOT_COMMAND, ROOT_STATUS, CORRECTABLE_SOURCE, UNCORRECTABLE_SOURCE)
_WITH_ROOT = (PortType.ROOT_PORT, PortType.RC_EVENT_COLLECTOR)


def _logs_prefixes(capability: Capability) -> bool:
    express = sibling(capability)
    return express is not None and bool(express.field(DEVICE_CAPABILITIES_2, "end_end_tlp_prefix"))


def _present(capability: Capability, register: Register) -> bool:
    if register in _ROOT:
        return port_type(capability) in _WITH_ROOT
    return register not in PREFIX_LOG or _logs_prefixes(capability)


def _size(capability: Capability) -> int:
    if _logs_prefixes(capability):
        return 0x48
    return 0x38 if port_type(capability) in _WITH_ROOT else 0x2C


def _derive(capability: Capability) -> dict[str, object]:
    status, mask = capability.value(UNCORRECTABLE_STATUS), capability.value(UNCORRECTABLE_MASK)
    corrected = capability.value(CORRECTABLE_STATUS)
    return {
        "uncorrectable_errors": [name for name, bit in _UNCORRECTABLE if status >> bit & 1],
        "uncorrectable_masked": [name for name, bit in _UNCORRECTABLE if mask >> bit & 1],
        "correctable_errors": [name for name, bit in _CORRECTABLE if corrected >> bit & 1],
    }


LAYOUT = Layout(
    "aer",
    "Advanced Error Reporting",
    0x01,
    True,
    (
        UNCORRECTABLE_STATUS,
        UNCORRECTABLE_MASK,
        UNCORRECTABLE_SEVERITY,
        CORRECTABLE_STATUS,
        CORRECTABLE_MASK,
        CONTROL,
        *HEADER_LOG,
        *_ROOT,
        *PREFIX_LOG,
    ),
    "§7.8.4",
    _size,
    _present,
    _derive,
)
