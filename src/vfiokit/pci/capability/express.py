"""PCI Express capability (id 0x10). Source: PCI Express Base Specification 6.0 §7.5.3.

Which registers exist depends on the version and on the port type; the rules are those of Linux
``drivers/pci/access.c`` (``pcie_capability_reg_implemented``).
"""

from __future__ import annotations

from enum import IntEnum

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag


class PortType(IntEnum):
    """Device/Port Type, bits [7:4] of the PCI Express Capabilities register."""

    ENDPOINT = 0x0
    LEGACY_ENDPOINT = 0x1
    ROOT_PORT = 0x4
    UPSTREAM = 0x5
    DOWNSTREAM = 0x6
    PCIE_TO_PCI_BRIDGE = 0x7
    PCI_TO_PCIE_BRIDGE = 0x8
    RC_INTEGRATED_ENDPOINT = 0x9
    RC_EVENT_COLLECTOR = 0xA


SPEEDS = {1: "2.5 GT/s", 2: "5 GT/s", 3: "8 GT/s", 4: "16 GT/s", 5: "32 GT/s", 6: "64 GT/s"}
"""Link speeds by their code."""
_PAYLOADS = {code: str(128 << code) for code in range(6)}
ASPM = {0: "none", 1: "L0s", 2: "L1", 3: "L0s and L1"}
"""Active state power management: which states."""
_TIMEOUTS = {
    0x0: "50 us to 50 ms",
    0x1: "50 us to 100 us",
    0x2: "1 ms to 10 ms",
    0x5: "16 ms to 55 ms",
    0x6: "65 ms to 210 ms",
    0x9: "260 ms to 900 ms",
    0xA: "1 s to 3.5 s",
    0xD: "4 s to 13 s",
    0xE: "17 s to 64 s",
}
_INDICATOR = {1: "on", 2: "blink", 3: "off"}
_L0S_ACCEPTABLE = dict(
    enumerate(("64 ns", "128 ns", "256 ns", "512 ns", "1 us", "2 us", "4 us", "no limit"))
)
_L1_ACCEPTABLE = dict(
    enumerate(("1 us", "2 us", "4 us", "8 us", "16 us", "32 us", "64 us", "no limit"))
)
_L0S_EXIT = dict(
    enumerate(("64 ns", "128 ns", "256 ns", "512 ns", "1 us", "2 us", "4 us", "above 4 us"))
)
_L1_EXIT = dict(
    enumerate(("1 us", "2 us", "4 us", "8 us", "16 us", "32 us", "64 us", "above 64 us"))
)
_POWER_SCALES = {0: "1.0", 1: "0.1", 2: "0.01", 3: "0.001"}
_OBFF = {0: "none", 1: "message", 2: "WAKE#", 3: "WAKE# and message"}
_OBFF_ENABLE = {0: "off", 1: "message A", 2: "message B", 3: "WAKE#"}

CAPABILITIES = Register(
    "capabilities",
    0x02,
    2,
    (
        Field("version", 3, 0),
        Field("port_type", 7, 4, meaning={kind: kind.name.lower() for kind in PortType}),
        flag("slot_implemented", 8, "hwinit"),
        Field("interrupt_message_number", 13, 9),
        flag("flit_mode", 15, "hwinit"),
    ),
    "§7.5.3.2",
)
DEVICE_CAPABILITIES = Register(
    "device_capabilities",
    0x04,
    4,
    (
        Field("max_payload_size", 2, 0, meaning=_PAYLOADS, unit="bytes, as named"),
        Field("phantom_functions", 4, 3),
        flag("extended_tag", 5),
        Field("l0s_acceptable_latency", 8, 6, meaning=_L0S_ACCEPTABLE),
        Field("l1_acceptable_latency", 11, 9, meaning=_L1_ACCEPTABLE),
        flag("attention_button", 12, doc="bits 12 to 14: defined by version 1 only"),
        flag("attention_indicator", 13),
        flag("power_indicator", 14),
        flag("role_based_error_reporting", 15),
        flag("error_correctable_subclass", 16),
        flag("rx_max_payload_fixed", 17),
        Field("slot_power_limit", 25, 18, unit="slot_power_limit_scale W"),
        Field("slot_power_limit_scale", 27, 26, meaning=_POWER_SCALES),
        flag("function_level_reset", 28),
        flag("mixed_max_payload", 29),
        flag("tee_io", 30, "hwinit"),
    ),
    "§7.5.3.3",
)
DEVICE_CONTROL = Register(
    "device_control",
    0x08,
    2,
    (
        flag("correctable_error_reporting", 0, "rw"),
        flag("nonfatal_error_reporting", 1, "rw"),
        flag("fatal_error_reporting", 2, "rw"),
        flag("unsupported_request_reporting", 3, "rw"),
        flag("relaxed_ordering", 4, "rw"),
        Field("max_payload_size", 7, 5, "rw", meaning=_PAYLOADS, unit="bytes, as named"),
        flag("extended_tag", 8, "rw"),
        flag("phantom_functions", 9, "rw"),
        flag("aux_power", 10, "rw"),
        flag("no_snoop", 11, "rw"),
        Field("max_read_request_size", 14, 12, "rw", meaning=_PAYLOADS, unit="bytes, as named"),
        flag(
            "initiate_function_level_reset",
            15,
            "rw",
            "reads 0; Bridge Configuration Retry Enable on a PCIe-to-PCI bridge",
        ),
    ),
    "§7.5.3.4",
)
DEVICE_STATUS = Register(
    "device_status",
    0x0A,
    2,
    (
        flag("correctable_error", 0, "rw1c"),
        flag("nonfatal_error", 1, "rw1c"),
        flag("fatal_error", 2, "rw1c"),
        flag("unsupported_request", 3, "rw1c"),
        flag("aux_power", 4),
        flag("transactions_pending", 5),
        flag("emergency_power_reduction", 6, "rw1c"),
    ),
    "§7.5.3.5",
)
LINK_CAPABILITIES = Register(
    "link_capabilities",
    0x0C,
    4,
    (
        Field("max_speed", 3, 0, meaning=SPEEDS),
        Field("max_width", 9, 4, unit="lanes"),
        Field("aspm", 11, 10, meaning=ASPM),
        Field("l0s_exit_latency", 14, 12, meaning=_L0S_EXIT),
        Field("l1_exit_latency", 17, 15, meaning=_L1_EXIT),
        flag("clock_power_management", 18),
        flag("surprise_down_reporting", 19),
        flag("data_link_layer_active_reporting", 20),
        flag("bandwidth_notification", 21),
        flag("aspm_optionality", 22, "hwinit"),
        Field("port_number", 31, 24, "hwinit"),
    ),
    "§7.5.3.6",
)
LINK_CONTROL = Register(
    "link_control",
    0x10,
    2,
    (
        Field("aspm", 1, 0, "rw", meaning=ASPM),
        flag("read_completion_boundary", 3, "rw", "0: 64 bytes, 1: 128 bytes"),
        flag("link_disable", 4, "rw"),
        flag("retrain_link", 5, "rw"),
        flag("common_clock", 6, "rw"),
        flag("extended_synch", 7, "rw"),
        flag("clock_power_management", 8, "rw"),
        flag("autonomous_width_disable", 9, "rw"),
        flag("bandwidth_management_interrupt", 10, "rw"),
        flag("autonomous_bandwidth_interrupt", 11, "rw"),
        flag("sris_clocking", 12, "rw"),
        flag("flit_mode_disable", 13, "rw"),
        Field("drs_signaling", 15, 14, "rw"),
    ),
    "§7.5.3.7",
)
LINK_STATUS = Register(
    "link_status",
    0x12,
    2,
    (
        Field("speed", 3, 0, meaning=SPEEDS),
        Field("width", 9, 4, unit="lanes"),
        flag("training_error", 10, doc="defined by version 1 only"),
        flag("training", 11),
        flag("slot_clock", 12, "hwinit"),
        flag("data_link_layer_active", 13),
        flag("bandwidth_management", 14, "rw1c"),
        flag("autonomous_bandwidth", 15, "rw1c"),
    ),
    "§7.5.3.8",
)
SLOT_CAPABILITIES = Register(
    "slot_capabilities",
    0x14,
    4,
    (
        flag("attention_button", 0, "hwinit"),
        flag("power_controller", 1, "hwinit"),
        flag("mrl_sensor", 2, "hwinit"),
        flag("attention_indicator", 3, "hwinit"),
        flag("power_indicator", 4, "hwinit"),
        flag("hot_plug_surprise", 5, "hwinit"),
        flag("hot_plug", 6, "hwinit"),
        Field("power_limit", 14, 7, "hwinit", unit="power_limit_scale W"),
        Field("power_limit_scale", 16, 15, "hwinit", _POWER_SCALES),
        flag("electromechanical_interlock", 17, "hwinit"),
        flag("no_command_completed", 18, "hwinit"),
        Field("physical_slot_number", 31, 19, "hwinit"),
    ),
    "§7.5.3.9",
)
SLOT_CONTROL = Register(
    "slot_control",
    0x18,
    2,
    (
        flag("attention_button_interrupt", 0, "rw"),
        flag("power_fault_interrupt", 1, "rw"),
        flag("mrl_sensor_interrupt", 2, "rw"),
        flag("presence_interrupt", 3, "rw"),
        flag("command_completed_interrupt", 4, "rw"),
        flag("hot_plug_interrupt", 5, "rw"),
        Field("attention_indicator", 7, 6, "rw", meaning=_INDICATOR),
        Field("power_indicator", 9, 8, "rw", meaning=_INDICATOR),
        flag("power_off", 10, "rw"),
        flag("interlock", 11, "rw"),
        flag("data_link_layer_interrupt", 12, "rw"),
        flag("auto_power_limit_disable", 13, "rw"),
        flag("inband_presence_disable", 14, "rw"),
    ),
    "§7.5.3.10",
)
SLOT_STATUS = Register(
    "slot_status",
    0x1A,
    2,
    (
        flag("attention_button_pressed", 0, "rw1c"),
        flag("power_fault", 1, "rw1c"),
        flag("mrl_sensor_changed", 2, "rw1c"),
        flag("presence_changed", 3, "rw1c"),
        flag("command_completed", 4, "rw1c"),
        flag("mrl_open", 5),
        flag("present", 6),
        flag("interlock_engaged", 7),
        flag("data_link_layer_changed", 8, "rw1c"),
    ),
    "§7.5.3.11",
)
ROOT_CONTROL = Register(
    "root_control",
    0x1C,
    2,
    (
        flag("system_error_on_correctable", 0, "rw"),
        flag("system_error_on_nonfatal", 1, "rw"),
        flag("system_error_on_fatal", 2, "rw"),
        flag("pme_interrupt", 3, "rw"),
        flag("retry_status_visibility", 4, "rw"),
    ),
    "§7.5.3.12",
)
ROOT_CAPABILITIES = Register(
    "root_capabilities", 0x1E, 2, (flag("retry_status_visibility", 0),), "§7.5.3.13"
)
ROOT_STATUS = Register(
    "root_status",
    0x20,
    4,
    (Field("pme_requester_id", 15, 0), flag("pme_status", 16, "rw1c"), flag("pme_pending", 17)),
    "§7.5.3.14",
)
DEVICE_CAPABILITIES_2 = Register(
    "device_capabilities_2",
    0x24,
    4,
    (
        Field("completion_timeout_ranges", 3, 0, "hwinit"),
        flag("completion_timeout_disable", 4),
        flag("ari_forwarding", 5),
        flag("atomic_op_routing", 6),
        flag("atomic_op_completer_32", 7),
        flag("atomic_op_completer_64", 8),
        flag("atomic_op_completer_128", 9),
        flag("no_relaxed_ordering_peer_to_peer", 10, "hwinit"),
        flag("latency_tolerance_reporting", 11),
        Field("tph_completer", 13, 12, meaning={1: "TPH", 3: "TPH and extended TPH"}),
        Field("ln_system_cls", 15, 14, "hwinit", {0: "none", 1: "64 bytes", 2: "128 bytes"}),
        flag("tag_10bit_completer", 16, "hwinit"),
        flag("tag_10bit_requester", 17, "hwinit"),
        Field("obff", 19, 18, "hwinit", _OBFF),
        flag("extended_fmt", 20),
        flag("end_end_tlp_prefix", 21, "hwinit"),
        Field("max_end_end_tlp_prefixes", 23, 22, "hwinit", doc="0 means 4"),
        Field("emergency_power_reduction", 25, 24, "hwinit"),
        flag("emergency_power_reduction_initialization", 26, "hwinit"),
        flag("deferrable_write_completer", 28, "hwinit"),
        Field("deferrable_write_lengths", 30, 29, "hwinit"),
        flag("function_readiness_status", 31, "hwinit"),
    ),
    "§7.5.3.15",
)
DEVICE_CONTROL_2 = Register(
    "device_control_2",
    0x28,
    2,
    (
        Field("completion_timeout", 3, 0, "rw", meaning=_TIMEOUTS),
        flag("completion_timeout_disable", 4, "rw"),
        flag("ari_forwarding", 5, "rw"),
        flag("atomic_op_requester", 6, "rw"),
        flag("atomic_op_egress_block", 7, "rw"),
        flag("id_based_ordering_request", 8, "rw"),
        flag("id_based_ordering_completion", 9, "rw"),
        flag("latency_tolerance_reporting", 10, "rw"),
        flag("emergency_power_reduction_request", 11, "rw"),
        flag("tag_10bit_requester", 12, "rw"),
        Field("obff", 14, 13, "rw", _OBFF_ENABLE),
        flag("end_end_tlp_prefix_block", 15, "rw"),
    ),
    "§7.5.3.16",
)
DEVICE_STATUS_2 = Register("device_status_2", 0x2A, 2, (), "§7.5.3.17")
LINK_CAPABILITIES_2 = Register(
    "link_capabilities_2",
    0x2C,
    4,
    (
        Field("supported_speeds", 7, 1, "hwinit", doc="bit n: speed code n + 1"),
        flag("crosslink", 8),
        Field("lower_skp_generation", 15, 9, "hwinit"),
        Field("lower_skp_reception", 22, 16, "hwinit"),
        flag("retimer_detection", 23, "hwinit"),
        flag("two_retimers_detection", 24, "hwinit"),
        flag("device_readiness_status", 31, "hwinit"),
    ),
    "§7.5.3.18",
)
LINK_CONTROL_2 = Register(
    "link_control_2",
    0x30,
    2,
    (
        Field("target_speed", 3, 0, "rw", meaning=SPEEDS),
        flag("enter_compliance", 4, "rw"),
        flag("autonomous_speed_disable", 5, "rw"),
        flag("selectable_deemphasis", 6, "hwinit"),
        Field("transmit_margin", 9, 7, "rw"),
        flag("enter_modified_compliance", 10, "rw"),
        flag("compliance_sos", 11, "rw"),
        Field("compliance_preset", 15, 12, "rw"),
    ),
    "§7.5.3.19",
)
LINK_STATUS_2 = Register(
    "link_status_2",
    0x32,
    2,
    (
        flag("current_deemphasis", 0),
        flag("equalization_complete", 1),
        flag("equalization_phase_1", 2),
        flag("equalization_phase_2", 3),
        flag("equalization_phase_3", 4),
        flag("equalization_request", 5, "rw1c"),
        flag("retimer_present", 6),
        flag("two_retimers_present", 7),
        Field("crosslink_resolution", 9, 8),
        flag("flit_mode", 10),
        Field("downstream_component_presence", 14, 12),
        flag("drs_message_received", 15, "rw1c"),
    ),
    "§7.5.3.20",
)
SLOT_CAPABILITIES_2 = Register(
    "slot_capabilities_2", 0x34, 4, (flag("inband_presence_disable", 0, "hwinit"),), "§7.5.3.21"
)
SLOT_CONTROL_2 = Register("slot_control_2", 0x38, 2, (), "§7.5.3.22")
SLOT_STATUS_2 = Register("slot_status_2", 0x3A, 2, (), "§7.5.3.23")

_LINK = (LINK_CAPABILITIES.offset, LINK_CONTROL.offset, LINK_STATUS.offset)
_LINK_2 = (LINK_CAPABILITIES_2.offset, LINK_CONTROL_2.offset, LINK_STATUS_2.offset)
_SLOT = (SLOT_CAPABILITIES.offset, SLOT_CONTROL.offset, SLOT_STATUS.offset)
_SLOT_2 = (SLOT_CAPABILITIES_2.offset, SLOT_CONTROL_2.offset, SLOT_STATUS_2.offset)
_ROOT = (ROOT_CONTROL.offset, ROOT_CAPABILITIES.offset, ROOT_STATUS.offset)

_WITHOUT_LINK = (PortType.RC_INTEGRATED_ENDPOINT, PortType.RC_EVENT_COLLECTOR)
_WITH_SLOT = (PortType.ROOT_PORT, PortType.DOWNSTREAM, PortType.PCI_TO_PCIE_BRIDGE)
_WITH_ROOT = (PortType.ROOT_PORT, PortType.RC_EVENT_COLLECTOR)


def _present(capability: Capability, register: Register) -> bool:
    flags = capability.value(CAPABILITIES)
    version, kind, offset = flags & 0xF, flags >> 4 & 0xF, register.offset
    if offset >= DEVICE_CAPABILITIES_2.offset and version < 2:
        return False
    if offset in _LINK or offset in _LINK_2:
        return kind not in _WITHOUT_LINK
    if offset in _SLOT or offset in _SLOT_2:
        return kind in _WITH_SLOT and bool(flags & 0x100)
    if offset in _ROOT:
        return kind in _WITH_ROOT
    return True


def _size(capability: Capability) -> int:
    flags = capability.value(CAPABILITIES)
    kind = flags >> 4 & 0xF
    if flags & 0xF >= 2:
        return 0x3C
    # Version 1 ends after the last group of registers that the port type has.
    if kind in _WITH_ROOT:
        return 0x24
    if kind in _WITH_SLOT and flags & 0x100:
        return 0x1C
    return 0x0C if kind in _WITHOUT_LINK else 0x14


_POWER_ABOVE = {0xF0: 250, 0xF1: 275, 0xF2: 300, 0xF3: 325, 0xF4: 350, 0xF5: 375, 0xF6: 400}
_POWER_ABOVE |= {0xF7: 425, 0xF8: 450, 0xF9: 475, 0xFA: 500, 0xFB: 525, 0xFC: 550, 0xFD: 575}
_POWER_ABOVE |= {0xFE: 600}


def power_limit(value: int, scale: int) -> int | None:
    """Milliwatts of a Slot Power Limit (§7.5.3.9); ``None`` for a reserved code.

    At scale 0, codes from 0xf0 on are steps of 25 W from 250 W.
    """
    if scale == 0 and value >= 0xF0:
        watts = _POWER_ABOVE.get(value)
        return None if watts is None else 1000 * watts
    return value * (1000, 100, 10, 1)[scale]


def supported_speeds(capability: Capability) -> list[str]:
    """The link speeds supported; without Link Capabilities 2, all up to the maximum (§7.5.3.18)."""
    limit = capability.field(LINK_CAPABILITIES, "max_speed")
    vector = 0
    if capability.field(CAPABILITIES, "version") >= 2:
        vector = capability.field(LINK_CAPABILITIES_2, "supported_speeds")
    codes = (code for code in SPEEDS if (vector >> (code - 1) & 1 if vector else code <= limit))
    return [SPEEDS[code] for code in codes]


def _derive(capability: Capability) -> dict[str, object]:
    kind = capability.field(CAPABILITIES, "port_type")
    power = capability.value(DEVICE_CAPABILITIES)
    facts: dict[str, object] = {
        "captured_power_limit_milliwatts": power_limit(power >> 18 & 0xFF, power >> 26 & 3)
    }
    if kind not in _WITHOUT_LINK:
        facts["supported_speeds"] = supported_speeds(capability)
    if _present(capability, SLOT_CAPABILITIES):
        slot = capability.value(SLOT_CAPABILITIES)
        facts["slot_power_limit_milliwatts"] = power_limit(slot >> 7 & 0xFF, slot >> 15 & 3)
    return facts


LAYOUT = Layout(
    "express",
    "PCI Express",
    0x10,
    False,
    (
        CAPABILITIES,
        DEVICE_CAPABILITIES,
        DEVICE_CONTROL,
        DEVICE_STATUS,
        LINK_CAPABILITIES,
        LINK_CONTROL,
        LINK_STATUS,
        SLOT_CAPABILITIES,
        SLOT_CONTROL,
        SLOT_STATUS,
        ROOT_CONTROL,
        ROOT_CAPABILITIES,
        ROOT_STATUS,
        DEVICE_CAPABILITIES_2,
        DEVICE_CONTROL_2,
        DEVICE_STATUS_2,
        LINK_CAPABILITIES_2,
        LINK_CONTROL_2,
        LINK_STATUS_2,
        SLOT_CAPABILITIES_2,
        SLOT_CONTROL_2,
        SLOT_STATUS_2,
    ),
    "§7.5.3",
    _size,
    _present,
    _derive,
)


def sibling(capability: Capability) -> Capability | None:
    """The PCI Express capability of the function that ``capability`` belongs to."""
    for other in capability.siblings:
        if other.id == LAYOUT.cap_id and not other.extended:
            return other
    return None


def port_type(capability: Capability) -> PortType | None:
    """The port type of the function that ``capability`` belongs to.

    ``None`` for conventional PCI and for an undefined code; raises :class:`ConfigRangeError`
    where it was not captured.
    """
    express = sibling(capability)
    if express is None:
        return None
    code = express.field(CAPABILITIES, "port_type")
    return PortType(code) if code in set(PortType) else None


def lanes(capability: Capability) -> int:
    """How many lanes the function that ``capability`` belongs to has: 0 to 32."""
    express = sibling(capability)
    return min(express.field(LINK_CAPABILITIES, "max_width"), 32) if express is not None else 0
