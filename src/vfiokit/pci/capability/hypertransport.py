"""HyperTransport (id 0x08): a dozen kinds of capability under one id.

Source: HyperTransport I/O Link Specification 3.10 §7, ``linux/pci_regs.h``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Variant,
    fixed,
    flag,
)

_WIDTHS = {0: "8", 1: "16", 3: "32", 4: "2", 5: "4", 7: "not connected"}
_FREQUENCIES = dict(
    enumerate(("200", "300", "400", "500", "600", "800", "1000", "1200", "1400", "1600"))
) | {
    10: "1800",
    11: "2000",
    12: "2200",
    13: "2400",
    14: "2600",
    15: "vendor specific",
}

COMMAND = Register("command", 0x02, 2, (Field("type", 15, 11),), "§7")


def _layout(
    name: str, title: str, registers: tuple[Register, ...], length: int, spec: str
) -> Layout:
    return Layout(
        f"hypertransport-{name}",
        f"HyperTransport {title}",
        0x08,
        False,
        registers,
        spec,
        fixed(length),
    )


def _link_control(name: str, offset: int) -> Register:
    fields = (
        flag("crc_flood", 1, "rw"),
        flag("crc_start_test", 2, "rw"),
        flag("crc_force_error", 3, "rw"),
        flag("link_failure", 4, "rw1c"),
        flag("initialized", 5),
        flag("end_of_chain", 6, "rw"),
        flag("transmitter_off", 7, "rw"),
        Field("crc_error", 11, 8, "rw1c", doc="bit n: byte lane n"),
        flag("isochronous_flow_control", 12, "rw"),
        flag("ldtstop_tristate", 13, "rw"),
        flag("extended_ctl_time", 14, "rw"),
        flag("addressing_64", 15, "rw"),
    )
    return Register(name, offset, 2, fields, "§7.5")


def _link_config(name: str, offset: int) -> Register:
    fields = (
        Field("max_width_in", 2, 0, meaning=_WIDTHS, unit="bits, as named"),
        flag("doubleword_in", 3),
        Field("max_width_out", 6, 4, meaning=_WIDTHS, unit="bits, as named"),
        flag("doubleword_out", 7),
        Field("width_in", 10, 8, "rw", _WIDTHS, "bits, as named"),
        flag("doubleword_in_enable", 11, "rw"),
        Field("width_out", 14, 12, "rw", _WIDTHS, "bits, as named"),
        flag("doubleword_out_enable", 15, "rw"),
    )
    return Register(name, offset, 2, fields, "§7.5")


def _revision(offset: int) -> Register:
    return Register("revision", offset, 1, (Field("minor", 4, 0), Field("major", 7, 5)), "§7.5")


def _frequency(name: str, offset: int) -> Register:
    fields = (
        Field("frequency", 3, 0, "rw", _FREQUENCIES, "MHz, as named"),
        flag("protocol_error", 4, "rw1c"),
        flag("overflow_error", 5, "rw1c"),
        flag("end_of_chain_error", 6, "rw1c"),
        flag("ctl_timeout", 7, "rw"),
    )
    return Register(name, offset, 1, fields, "§7.5")


def _frequencies(name: str, offset: int) -> Register:
    fields = (
        *(flag(f"mhz_{mhz}", code) for code, mhz in _FREQUENCIES.items() if code < 15),
        flag("vendor_specific", 15),
    )
    return Register(name, offset, 2, fields, "§7.5")


_FEATURES = (
    flag("isochronous", 0),
    flag("ldtstop", 1),
    flag("crc_test_mode", 2),
    flag("extended_ctl_time", 3),
    flag("addressing_64", 4),
    flag("unit_id_reorder_disable", 5, "rw"),
)
_ERRORS = ("protocol", "overflow")
_FATAL = (*_ERRORS, "end_of_chain", "response", "crc", "system")


def _error_handling(offset: int) -> Register:
    fields = (
        *(flag(f"{error}_flood", bit, "rw") for bit, error in enumerate(_ERRORS)),
        *(flag(f"{error}_fatal", 2 + bit, "rw") for bit, error in enumerate(_FATAL)),
        flag("chain_fail", 8),
        flag("response_error", 9, "rw1c"),
        *(flag(f"{error}_nonfatal", 10 + bit, "rw") for bit, error in enumerate(_FATAL)),
    )
    return Register("error_handling", offset, 2, fields, "§7.5")


def _byte(name: str, offset: int, spec: str) -> Register:
    return Register(name, offset, 1, (Field("bits", 7, 0, "rw"),), spec)


PRIMARY = _layout(
    "primary",
    "Slave or Primary Interface",
    (
        Register(
            "command",
            0x02,
            2,
            (
                Field("base_unit_id", 4, 0, "rw"),
                Field("unit_count", 9, 5),
                flag("master_host", 10),
                flag("default_direction", 11, "rw"),
                flag("drop_on_uninitialized", 12, "rw"),
                Field("type", 15, 13),
            ),
            "§7.5",
        ),
        _link_control("link_control_0", 0x04),
        _link_config("link_config_0", 0x06),
        _link_control("link_control_1", 0x08),
        _link_config("link_config_1", 0x0A),
        _revision(0x0C),
        _frequency("frequency_0", 0x0D),
        _frequencies("frequencies_0", 0x0E),
        Register("features", 0x10, 1, _FEATURES, "§7.5"),
        _frequency("frequency_1", 0x11),
        _frequencies("frequencies_1", 0x12),
        Register("scratchpad", 0x14, 2, (Field("bits", 15, 0, "rw"),), "§7.5"),
        _error_handling(0x16),
        _byte("memory_base_upper", 0x18, "§7.5"),
        _byte("memory_limit_upper", 0x19, "§7.5"),
        _byte("bus_number", 0x1A, "§7.5"),
    ),
    0x1C,
    "HT §7.5",
)
SECONDARY = _layout(
    "secondary",
    "Host or Secondary Interface",
    (
        Register(
            "command",
            0x02,
            2,
            (
                flag("warm_reset", 0, "rw"),
                flag("double_ended", 1, "rw"),
                Field("device_number", 6, 2, "rw"),
                flag("chain_side", 7),
                flag("host_hide", 8, "rw"),
                flag("act_as_slave", 10, "rw"),
                flag("inbound_end_of_chain_error", 11, "rw1c"),
                flag("drop_on_uninitialized", 12, "rw"),
                Field("type", 15, 13),
            ),
            "§7.5",
        ),
        _link_control("link_control", 0x04),
        _link_config("link_config", 0x06),
        _revision(0x08),
        _frequency("frequency", 0x09),
        _frequencies("frequencies", 0x0A),
        Register(
            "features",
            0x0C,
            2,
            (*_FEATURES, flag("extended_registers", 8), flag("upstream_configuration", 9, "rw")),
            "§7.5",
        ),
        Register("scratchpad", 0x10, 2, (Field("bits", 15, 0, "rw"),), "§7.5"),
        _error_handling(0x12),
        _byte("memory_base_upper", 0x14, "§7.5"),
        _byte("memory_limit_upper", 0x15, "§7.5"),
    ),
    0x18,
    "HT §7.5",
)
SWITCH = _layout(
    "switch",
    "Switch",
    (
        Register(
            "command",
            0x02,
            2,
            (
                flag("virtual_inbound_error", 7, "rw1c"),
                flag("virtual_inbound_flood", 8, "rw"),
                flag("virtual_inbound_fatal", 9, "rw"),
                flag("virtual_inbound_nonfatal", 10, "rw"),
                Field("type", 15, 11),
            ),
            "§7",
        ),
        Register("partition_mask", 0x04, 4, (Field("bits", 31, 0, "rw"),), "§7"),
        Register(
            "information",
            0x08,
            4,
            (
                Field("default_port", 4, 0, "rw"),
                flag("enable_decode", 5, "rw"),
                flag("cold_reset", 6, "rw"),
                Field("counter_index", 11, 8, "rw"),
                Field("range_index", 17, 12, "rw"),
                flag("hot_plug", 18, "rw"),
                flag("hide_port", 19, "rw"),
            ),
            "§7",
        ),
        Register("counter_data", 0x0C, 4, (), "§7"),
        Register("range_data", 0x10, 4, (Field("bits", 31, 0, "rw"),), "§7"),
        Register("secondary_base_data", 0x14, 4, (Field("bits", 31, 0, "rw"),), "§7"),
    ),
    0x18,
    "HT §7",
)
INTERRUPT = _layout(
    "interrupt",
    "Interrupt Discovery and Configuration",
    (
        _byte("index", 0x02, "§7"),
        Register("data", 0x04, 4, (Field("bits", 31, 0, "rw"),), "§7"),
    ),
    8,
    "HT §7",
)
REVISION_ID = _layout("revision", "Revision ID", (_revision(0x02),), 4, "HT §7")
CLUMPING = _layout(
    "unit-id-clumping",
    "UnitID Clumping",
    (
        Register("support", 0x04, 4, (Field("units", 31, 1),), "§7"),
        Register("enable", 0x08, 4, (Field("units", 31, 1, "rw"),), "§7"),
    ),
    12,
    "HT §7",
)
EXTENDED_CONFIGURATION = _layout(
    "extended-configuration",
    "Extended Configuration Space Access",
    (
        Register(
            "address",
            0x04,
            4,
            (
                Field("register", 11, 2, "rw"),
                Field("function", 14, 12, "rw"),
                Field("device", 19, 15, "rw"),
                Field("bus", 27, 20, "rw"),
                flag("type", 28, "rw"),
            ),
            "§7",
        ),
        Register("data", 0x08, 4, (Field("bits", 31, 0, "rw"),), "§7"),
    ),
    12,
    "HT §7",
)
ADDRESS_MAPPING = _layout(
    "address-mapping",
    "Address Mapping",
    (
        Register(
            "command",
            0x02,
            2,
            (
                Field("dma_mappings", 3, 0),
                Field("io_size", 8, 4),
                Field("map_type", 10, 9, meaning={0: "40 bits", 1: "64 bits"}),
                Field("type", 15, 11),
            ),
            "§7",
        ),
        Register("window_0", 0x04, 4, (Field("bits", 31, 0, "rw"),), "§7"),
        Register("window_1", 0x08, 4, (Field("bits", 31, 0, "rw"),), "§7"),
    ),
    12,
    "HT §7",
)
MSI_ENABLE = Register(
    "command",
    0x02,
    2,
    (flag("enable", 0, "rw"), flag("fixed", 1), Field("type", 15, 11)),
    "§7",
)
MSI_ADDRESS = Register("address", 0x04, 4, (Field("address", 31, 20, "rw"),), "§7")
MSI_ADDRESS_UPPER = Register("address_upper", 0x08, 4, (Field("address", 31, 0, "rw"),), "§7")
FIXED_MSI_ADDRESS = 0xFEE00000
"""Where MSIs are mapped from when the capability has no address registers."""


def _fixed_mapping(capability: Capability) -> bool:
    return bool(capability.field(MSI_ENABLE, "fixed"))


def msi_address(capability: Capability) -> int:
    """The address whose writes become interrupts on HyperTransport."""
    if _fixed_mapping(capability):
        return FIXED_MSI_ADDRESS
    high, low = capability.value(MSI_ADDRESS_UPPER), capability.value(MSI_ADDRESS)
    return high << 32 | low & ~0xFFFFF


MSI_MAPPING = Layout(
    "hypertransport-msi-mapping",
    "HyperTransport MSI Mapping",
    0x08,
    False,
    (MSI_ENABLE, MSI_ADDRESS, MSI_ADDRESS_UPPER),
    "HT §7",
    lambda capability: 4 if _fixed_mapping(capability) else 12,
    lambda capability, register: register is MSI_ENABLE or not _fixed_mapping(capability),
    lambda capability: {"mapped_address": msi_address(capability)},
)
DIRECT_ROUTE = _layout(
    "direct-route",
    "DirectRoute",
    (
        Register(
            "command",
            0x02,
            2,
            (Field("spaces", 3, 0), Field("index", 8, 4, "rw"), Field("type", 15, 11)),
            "§7",
        ),
        Register("enable", 0x04, 4, (Field("bits", 31, 0, "rw"),), "§7"),
        Register("data", 0x08, 4, (Field("bits", 31, 0, "rw"),), "§7"),
    ),
    12,
    "HT §7",
)
CHANNEL_SET = _layout(
    "vcset",
    "VCSet",
    (
        Register("supported", 0x04, 1, (Field("sets", 7, 0),), "§7"),
        _byte("link_1_enabled", 0x05, "§7"),
        _byte("link_0_enabled", 0x06, "§7"),
        _byte("stream_depth", 0x08, "§7"),
        _byte("stream_interval", 0x09, "§7"),
        Register(
            "streaming",
            0x0A,
            1,
            (Field("channels", 1, 0, meaning={0: "0", 1: "0 to 3", 2: "0 to 15"}),),
            "§7",
        ),
        _byte("non_flow_depth", 0x0C, "§7"),
        _byte("non_flow_interval", 0x0D, "§7"),
    ),
    16,
    "HT §7",
)


def _retry(link: int) -> tuple[Register, Register]:
    control = (
        flag("retry_enable", 0, "rw"),
        flag("force_single_error", 1, "rw"),
        flag("rollover_nonfatal", 2, "rw"),
        flag("force_single_stomp", 3, "rw"),
        flag("retry_nonfatal", 4, "rw"),
        flag("retry_fatal", 5, "rw"),
        Field("allowed_attempts", 7, 6, "rw"),
    )
    status = (
        flag("retry_sent", 0, "rw1c"),
        flag("count_rollover", 1, "rw1c"),
        flag("stomp_received", 2, "rw1c"),
    )
    return (
        Register(f"control_{link}", 0x04 + 2 * link, 1, control, "§7"),
        Register(f"status_{link}", 0x05 + 2 * link, 1, status, "§7"),
    )


RETRY = _layout(
    "retry",
    "Retry Mode",
    (
        *_retry(0),
        *_retry(1),
        *(
            Register(f"count_{link}", 0x08 + 2 * link, 2, (Field("retries", 15, 0, "rw1c"),))
            for link in range(2)
        ),
    ),
    12,
    "HT §7",
)
GENERATION_3 = _layout("gen3", "Generation 3", (COMMAND,), 4, "HT §7")
POWER = _layout("power", "Power Management", (COMMAND,), 4, "HT §7")

# The first two kinds are told by the upper three bits, the others by five.
_KINDS = {
    0x08: SWITCH,
    0x10: INTERRUPT,
    0x11: REVISION_ID,
    0x12: CLUMPING,
    0x13: EXTENDED_CONFIGURATION,
    0x14: ADDRESS_MAPPING,
    0x15: MSI_MAPPING,
    0x16: DIRECT_ROUTE,
    0x17: CHANNEL_SET,
    0x18: RETRY,
    0x1A: GENERATION_3,
    0x1C: POWER,
}


def _kind(code: int, layout: Layout) -> Variant:
    return Variant(lambda capability: capability.field(COMMAND, "type") == code, layout)


LAYOUT = Layout(
    "hypertransport",
    "HyperTransport",
    0x08,
    False,
    (COMMAND,),
    "HT §7",
    fixed(4),
    variants=(
        Variant(lambda capability: capability.field(COMMAND, "type") >> 2 == 0, PRIMARY),
        Variant(lambda capability: capability.field(COMMAND, "type") >> 2 == 1, SECONDARY),
        *(_kind(code, layout) for code, layout in _KINDS.items()),
    ),
)
