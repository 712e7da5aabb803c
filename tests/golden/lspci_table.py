"""Which of our registers and fields each word of lspci means.

Keys are the beginnings of lspci's titles and the labels below them. A place is ``register.field``,
``register`` for its whole value, or ``@key`` for a fact derived from several registers; ``a|b`` is
whichever exists, ``key=value`` the element of a list where it holds, ``!`` the opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

Convert = Callable[[str], int | str | None] | Mapping[str, int | str | None]


class Number(NamedTuple):
    """A value that lspci writes: where ours is and how its text becomes a number.

    A conversion to ``None`` means that lspci does not say.
    """

    pattern: str
    place: str
    convert: Convert = int


class Words(NamedTuple):
    """What the words under one label mean."""

    register: str
    flags: Mapping[str, str] = {}
    numbers: tuple[Number, ...] = ()
    without: str = ""
    """Text to leave out before flags are looked for."""

    def meanings(self) -> set[tuple[str, str]]:
        """Every word with the field it stands for, every pattern with its place."""
        return {*self.flags.items(), *((number.pattern, number.place) for number in self.numbers)}


def hexadecimal(text: str) -> int:
    return int(text, 16)


def size(text: str) -> int:
    """``16MB`` in bytes."""
    unit = {"MB": 20, "GB": 30, "TB": 40}[text[-2:]]
    return int(text[:-2]) << unit


def sizes(text: str) -> str:
    return str([size(word) for word in text.split()])


def milliwatts(text: str) -> int:
    return round(1000 * float(text))


def microseconds(text: str) -> int:
    return int(text.removesuffix("us"))


def numbered(words: str, start: int = 0) -> dict[str, int | str | None]:
    return {word: code for code, word in enumerate(words.split(","), start)}


BYTES = {str(128 << code): code for code in range(6)}
SPEEDS: dict[str, int | str | None] = {
    "2.5GT/s": 1,
    "5GT/s": 2,
    "8GT/s": 3,
    "16GT/s": 4,
    "32GT/s": 5,
    "64GT/s": 6,
    "unknown": None,
}
L0S = numbered("<64ns,<128ns,<256ns,<512ns,<1us,<2us,<4us,unlimited")
L1 = numbered("<1us,<2us,<4us,<8us,<16us,<32us,<64us,unlimited")
ASPM = {"not supported": 0, "L0s": 1, "L1": 2, "L0s L1": 3}
ASPM_ENABLED = {"Disabled": 0, "L0s Enabled": 1, "L1 Enabled": 2, "L0s L1 Enabled": 3}
TIMEOUTS = {
    "50us to 50ms": 0x0,
    "50us to 100us": 0x1,
    "1ms to 10ms": 0x2,
    "16ms to 55ms": 0x5,
    "65ms to 210ms": 0x6,
    "260ms to 900ms": 0x9,
    "1s to 3.5s": 0xA,
    "4s to 13s": 0xD,
    "17s to 64s": 0xE,
}
TIMEOUT_RANGES = {
    "Not Supported": 0,
    "Range A": 1,
    "Range B": 2,
    "Range AB": 3,
    "Range BC": 6,
    "Range ABC": 7,
    "Range BCD": 14,
    "Range ABCD": 15,
}
PORTS = {
    "Endpoint": 0x0,
    "Legacy Endpoint": 0x1,
    "Root Port": 0x4,
    "Upstream Port": 0x5,
    "Downstream Port": 0x6,
    "PCI-Express to PCI/PCI-X Bridge": 0x7,
    "PCI/PCI-X to PCI-Express Bridge": 0x8,
    "Root Complex Integrated Endpoint": 0x9,
    "Root Complex Event Collector": 0xA,
}
INDICATORS = {"Unknown": 0, "On": 1, "Blink": 2, "Off": 3}
OBFF = {
    "Not Supported": 0,
    "Via message": 1,
    "Via WAKE#": 2,
    "Via message/WAKE#": 3,
}
OBFF_ENABLED = numbered("Disabled,Via message A,Via message B,Via WAKE#")
# Speeds up to the fastest; bit n of the register is speed code n + 1.
SUPPORTED_SPEEDS = {
    "2.5-5GT/s": 0b11,
    "2.5-8GT/s": 0b111,
    "2.5-16GT/s": 0b1111,
    "2.5-32GT/s": 0b11111,
}
HT_WIDTHS = {"8bit": 0, "16bit": 1, "32bit": 3, "2bit": 4, "4bit": 5, "N/C": 7}
HT_FREQUENCIES = numbered("200MHz,300MHz,400MHz,500MHz,600MHz,800MHz,1.0GHz,1.2GHz,1.4GHz,1.6GHz")
HT_FREQUENCIES["[e]"] = 14
SCHEMES = numbered("Fixed,WRR32,WRR64,WRR128,TWRR128,WRR256")
EQUIVALENTS = {f"BAR {n}": n for n in range(6)} | {f"VF-BAR {n}": 9 + n for n in range(6)}
PROPERTIES = {
    "memory space, non-prefetchable": 0,
    "memory space, prefetchable": 1,
    "I/O space": 2,
    "VF memory space, prefetchable": 3,
    "VF memory space, non-prefetchable": 4,
    "entry unavailable for use, PrimaryProperties should be used": 0xFF,
}


def range_size(text: str) -> int:
    """Bytes of ``first-last``; all ones for the last of nothing."""
    first, end = text.split("-")
    return (int(end, 16) - int(first, 16) + 1) % (1 << 64)


def power_states(text: str) -> int:
    """``D0+,D1-,…``: one bit for each state."""
    return sum((word[-1] == "+") << bit for bit, word in enumerate(text.split(",")))


def lanes(text: str) -> int:
    return sum(1 << int(word) for word in text.split())


UNCORRECTABLE = {
    "DLP": "data_link_protocol",
    "SDES": "surprise_down",
    "TLP": "poisoned_tlp",
    "FCP": "flow_control_protocol",
    "CmpltTO": "completion_timeout",
    "CmpltAbrt": "completer_abort",
    "UnxCmplt": "unexpected_completion",
    "RxOF": "receiver_overflow",
    "MalfTLP": "malformed_tlp",
    "ECRC": "ecrc",
    "UnsupReq": "unsupported_request",
    "ACSViol": "acs_violation",
}
CORRECTABLE = {
    "RxErr": "receiver",
    "BadTLP": "bad_tlp",
    "BadDLLP": "bad_dllp",
    "Rollover": "replay_number_rollover",
    "Timeout": "replay_timer_timeout",
    "AdvNonFatalErr": "advisory_nonfatal",
}
ACS = {
    "SrcValid": "source_validation",
    "TransBlk": "translation_blocking",
    "ReqRedir": "request_redirect",
    "CmpltRedir": "completion_redirect",
    "UpstreamFwd": "upstream_forwarding",
    "EgressCtrl": "egress_control",
    "DirectTrans": "direct_translated",
}
SUBSTATES = {
    "PCI-PM_L1.2": "pci_pm_l1_2",
    "PCI-PM_L1.1": "pci_pm_l1_1",
    "ASPM_L1.2": "aspm_l1_2",
    "ASPM_L1.1": "aspm_l1_1",
}
ARBITRATION = {
    "Fixed": "fixed",
    "WRR32": "wrr32",
    "WRR64": "wrr64",
    "WRR128": "wrr128",
    "TWRR128": "twrr128",
    "WRR256": "wrr256",
}
PCI_X_STATUS = {
    "64bit": "wide",
    "133MHz": "mhz_133",
    "SCD": "split_completion_discarded",
    "USC": "unexpected_split_completion",
    "SCO": "split_completion_overrun",
    "SRD": "split_request_delayed",
    "RSCEM": "split_completion_error",
    "266MHz": "mhz_266",
    "533MHz": "mhz_533",
}
PCI_X_PLACE = (
    Number(r"Dev=([0-9a-f]{2}):", "status.bus", hexadecimal),
    Number(r"Dev=..:([0-9a-f]{2})\.", "status.device", hexadecimal),
    Number(r"Dev=..:..\.(\d)", "status.function"),
)
SPLITS = (
    Number(r"Capacity=(\d+)", "{register}.capacity"),
    Number(r"CommitmentLimit=(\d+)", "{register}.commitment_limit"),
)
HT_CONTROL = {
    "CFlE": "crc_flood",
    "CST": "crc_start_test",
    "CFE": "crc_force_error",
    "<LkFail": "link_failure",
    "Init": "initialized",
    "EOC": "end_of_chain",
    "TXO": "transmitter_off",
    "IsocEn": "isochronous_flow_control",
    "LSEn": "ldtstop_tristate",
    "ExtCTL": "extended_ctl_time",
    "64b": "addressing_64",
}
HT_CONTROL_NUMBERS = (Number(r"<CRCErr=(\w+)", "{register}.crc_error", hexadecimal),)
HT_CONFIG = {
    "DwFcIn": "doubleword_in",
    "DwFcOut": "doubleword_out",
    "DwFcInEn": "doubleword_in_enable",
    "DwFcOutEn": "doubleword_out_enable",
}
HT_CONFIG_NUMBERS = (
    Number(r"MLWI=(\S+)", "{register}.max_width_in", HT_WIDTHS),
    Number(r"MLWO=(\S+)", "{register}.max_width_out", HT_WIDTHS),
    Number(r"\bLWI=(\S+)", "{register}.width_in", HT_WIDTHS),
    Number(r"\bLWO=(\S+)", "{register}.width_out", HT_WIDTHS),
)
HT_ERROR = {
    "<Prot": "protocol_error",
    "<Ovfl": "overflow_error",
    "<EOC": "end_of_chain_error",
    "CTLTm": "ctl_timeout",
}
HT_RATES = {
    "200MHz": "mhz_200",
    "300MHz": "mhz_300",
    "400MHz": "mhz_400",
    "500MHz": "mhz_500",
    "600MHz": "mhz_600",
    "800MHz": "mhz_800",
    "1.0GHz": "mhz_1000",
    "1.2GHz": "mhz_1200",
    "1.4GHz": "mhz_1400",
    "1.6GHz": "mhz_1600",
    "Vend": "vendor_specific",
}
HT_FEATURES = {
    "IsocFC": "isochronous",
    "LDTSTOP": "ldtstop",
    "CRCTM": "crc_test_mode",
    "ECTLT": "extended_ctl_time",
    "64bA": "addressing_64",
    "UIDRD": "unit_id_reorder_disable",
    "ExtRS": "extended_registers",
    "UCnfE": "upstream_configuration",
}
HT_REVISION = Words(
    "revision",
    numbers=(
        Number(r"(\d+)\.", "revision.major"),
        Number(r"\.(\d+)", "revision.minor", hexadecimal),
    ),
)
CXL_PROTOCOLS = {"Cache": "cache", "IO": "io", "Mem": "mem", "Viral": "viral"}
FLEX_BUS = {
    **CXL_PROTOCOLS,
    "SynHdrByp": "sync_header_bypass",
    "DrftBuf": "drift_buffer",
    "68BFlit": "flit_68b",
    "MltLogDev": "multiple_logical_device",
    "RCD": "restricted_training_disable",
    "Retimer1": "retimer_1",
    "Retimer2": "retimer_2",
}


def cxl_range(index: int) -> Words:
    register, ours = f"range{index + 1}_size", f"@ranges.{index}"
    return Words(
        register,
        {"Valid": "valid", "Active": "active"},
        (
            Number(r"^([0-9a-f]+)-", f"{ours}.base", hexadecimal),
            Number(r"^([0-9a-f]+-[0-9a-f]+)", f"{ours}.size", range_size),
            Number(r"Type=(\S+)", f"{register}.media_type", numbered("Volatile,Non-volatile,CDAT")),
            Number(r"Class=(\S+)", f"{register}.memory_class", numbered("DRAM,Storage,CDAT")),
            Number(r"interleave=(\d+)", f"{register}.interleave", {"0": 0, "256": 1, "4096": 2}),
            Number(r"timeout=(\d+)s", f"{ours}.active_timeout_seconds"),
        ),
    )


def resizable(index: int) -> Words:
    ours = f"@bars.bar={index}"
    return Words(
        "",
        numbers=(
            Number(r"current size: (\w+)", f"{ours}.size", size),
            Number(r"supported: ([\w ]+)", f"{ours}.sizes", sizes),
        ),
    )


def channel(index: int) -> dict[str, Words]:
    name = f"vc{index}"
    return {
        f"VC{index} Caps": Words(
            f"{name}_capability",
            {"RejSnoopTrans": "reject_snoop"},
            (
                Number(
                    r"PATOffset=(\w+)", f"{name}_capability.arbitration_table_offset", hexadecimal
                ),
                Number(
                    r"MaxTimeSlots=(\d+)",
                    f"{name}_capability.max_time_slots",
                    lambda text: int(text) - 1,
                ),
            ),
        ),
        f"VC{index} Arb": Words(f"{name}_capability", ARBITRATION),
        f"VC{index} Ctrl": Words(
            f"{name}_control",
            {"Enable": "enable"},
            (
                Number(r"ID=(\d+)", f"{name}_control.id"),
                Number(r"ArbSelect=(\w+)", f"{name}_control.arbitration_select", SCHEMES),
                Number(r"TC/VC=(\w+)", f"{name}_control.traffic_classes", hexadecimal),
            ),
        ),
        f"VC{index} Status": Words(
            f"{name}_status",
            {"NegoPending": "negotiation_pending", "InProgress": "arbitration_table_loading"},
        ),
    }


def complex_link(index: int) -> dict[str, Words]:
    name = f"link{index}_description"
    return {
        f"Link{index} Desc": Words(
            name,
            {"AssocRCRB": "associate_rcrb", "LinkValid": "valid"},
            (
                Number(r"TargetPort=(\w+)", f"{name}.target_port_number", hexadecimal),
                Number(r"TargetComponent=(\w+)", f"{name}.target_component_id", hexadecimal),
                Number(r"LinkType=(\w+)", f"{name}.link_type", {"MemMapped": 0, "Config": 1}),
            ),
        ),
        f"Link{index} Addr": Words(
            "", numbers=(Number(r"(\w+)", f"@links.{index}.address", hexadecimal),)
        ),
    }


def entry(index: int) -> dict[str, Words]:
    name = f"resource{index}_entry"
    return {
        f"Entry {index}": Words(
            name,
            {"Enable": "enable", "Writable": "writable"},
            (Number(r"EntrySize=(\d+)", f"{name}.size"),),
        ),
        f"Entry {index} BAR Equivalent Indicator": Words(
            "", numbers=(Number(r"(.+)", f"{name}.equivalent", EQUIVALENTS),)
        ),
        f"Entry {index} PrimaryProperties": Words(
            "", numbers=(Number(r"(.+)", f"{name}.primary_properties", PROPERTIES),)
        ),
        f"Entry {index} SecondaryProperties": Words(
            "", numbers=(Number(r"(.+)", f"{name}.secondary_properties", PROPERTIES),)
        ),
        f"Entry {index} Base": Words(
            "", numbers=(Number(r"(\w+)", f"@resources.{index}.base", hexadecimal),)
        ),
        f"Entry {index} MaxOffset": Words(
            "",
            numbers=(
                Number(r"(\w+)", f"@resources.{index}.length", lambda text: hexadecimal(text) + 1),
            ),
        ),
    }


def vf_bar(index: int) -> Words:
    return Words(
        "",
        numbers=(
            Number(r"Memory at (\w+)", f"@vf_bars.index={index}.address", hexadecimal),
            Number(
                r"\((\d+)-bit", f"@vf_bars.index={index}.kind", {"32": "memory32", "64": "memory64"}
            ),
            Number(
                r"bit, ([\w-]+)\)",
                f"@vf_bars.index={index}.prefetchable",
                {"prefetchable": 1, "non-prefetchable": 0},
            ),
        ),
    )


def hypertransport_link(suffix: str) -> dict[str, Words]:
    word = f" {suffix}" if suffix else ""
    end = f"_{suffix}" if suffix else ""
    return {
        f"Link Control{word}": Words(f"link_control{end}", HT_CONTROL, HT_CONTROL_NUMBERS),
        f"Link Config{word}": Words(f"link_config{end}", HT_CONFIG, HT_CONFIG_NUMBERS),
        f"Link Frequency{word}": Words(
            f"frequency{end}", numbers=(Number(r"(.+)", "{register}.frequency", HT_FREQUENCIES),)
        ),
        f"Link Error{word}": Words(f"frequency{end}", HT_ERROR),
        f"Link Frequency Capability{word}": Words(f"frequencies{end}", HT_RATES),
    }


def header_log(index: int) -> Number:
    return Number(rf"^(?:\w+ ){{{index}}}(\w+)", f"header_log{index}", hexadecimal)


EXPRESS = {
    "": Words(
        "capabilities",
        {"Slot": "slot_implemented"},
        (
            Number(r"^\(v(\d)\)", "capabilities.version"),
            Number(r"^\(v\d\) ([^(,]+?)(?: \(Slot|,)", "capabilities.port_type", PORTS),
            Number(
                r"(?:MSI|IntMsgNum) (\w+)$", "capabilities.interrupt_message_number", hexadecimal
            ),
        ),
    ),
    "DevCap": Words(
        "device_capabilities",
        {
            "ExtTag": "extended_tag",
            "AttnBtn": "attention_button",
            "AttnInd": "attention_indicator",
            "PwrInd": "power_indicator",
            "RBE": "role_based_error_reporting",
            "FLReset": "function_level_reset",
            "TEE-IO": "tee_io",
        },
        (
            Number(r"MaxPayload (\d+) bytes", "device_capabilities.max_payload_size", BYTES),
            Number(r"PhantFunc (\d)", "device_capabilities.phantom_functions"),
            Number(r"Latency L0s (\S+),", "device_capabilities.l0s_acceptable_latency", L0S),
            Number(r", L1 (\S+)", "device_capabilities.l1_acceptable_latency", L1),
            Number(r"SlotPowerLimit ([\d.]+)W", "@captured_power_limit_milliwatts", milliwatts),
        ),
    ),
    "DevCtl": Words(
        "device_control",
        {
            "CorrErr": "correctable_error_reporting",
            "NonFatalErr": "nonfatal_error_reporting",
            "FatalErr": "fatal_error_reporting",
            "UnsupReq": "unsupported_request_reporting",
            "RlxdOrd": "relaxed_ordering",
            "ExtTag": "extended_tag",
            "PhantFunc": "phantom_functions",
            "AuxPwr": "aux_power",
            "NoSnoop": "no_snoop",
            "FLReset": "initiate_function_level_reset",
        },
        (
            Number(r"MaxPayload (\d+) bytes", "device_control.max_payload_size", BYTES),
            Number(r"MaxReadReq (\d+) bytes", "device_control.max_read_request_size", BYTES),
        ),
    ),
    "DevSta": Words(
        "device_status",
        {
            "CorrErr": "correctable_error",
            "NonFatalErr": "nonfatal_error",
            "FatalErr": "fatal_error",
            "UnsupReq": "unsupported_request",
            "AuxPwr": "aux_power",
            "TransPend": "transactions_pending",
        },
    ),
    "LnkCap": Words(
        "link_capabilities",
        {
            "ClockPM": "clock_power_management",
            "Surprise": "surprise_down_reporting",
            "LLActRep": "data_link_layer_active_reporting",
            "BwNot": "bandwidth_notification",
            "ASPMOptComp": "aspm_optionality",
        },
        (
            Number(r"Port #(\d+)", "link_capabilities.port_number"),
            Number(r"Speed ([^,]+)", "link_capabilities.max_speed", SPEEDS),
            Number(r"Width x(\d+)", "link_capabilities.max_width"),
            Number(r"ASPM ([^,]+?)(?:,| ClockPM)", "link_capabilities.aspm", ASPM),
            Number(r"Latency L0s (\S+?)(?:,|\s)", "link_capabilities.l0s_exit_latency", L0S),
            Number(r"Latency .*?L1 (\S+)", "link_capabilities.l1_exit_latency", L1),
        ),
    ),
    "LnkCtl": Words(
        "link_control",
        {
            "Disabled": "link_disable",
            "LnkDisable": "link_disable",
            "CommClk": "common_clock",
            "ExtSynch": "extended_synch",
            "ClockPM": "clock_power_management",
            "AutWidDis": "autonomous_width_disable",
            "BWInt": "bandwidth_management_interrupt",
            "AutBWInt": "autonomous_bandwidth_interrupt",
        },
        (
            Number(r"ASPM ([^;]+);", "link_control.aspm", ASPM_ENABLED),
            Number(r"RCB (\d+)", "link_control.read_completion_boundary", {"64": 0, "128": 1}),
        ),
    ),
    "LnkSta": Words(
        "link_status",
        {
            "TrErr": "training_error",
            "Train": "training",
            "SlotClk": "slot_clock",
            "DLActive": "data_link_layer_active",
            "BWMgmt": "bandwidth_management",
            "ABWMgmt": "autonomous_bandwidth",
        },
        (
            Number(r"Speed ([^ ,]+)", "link_status.speed", SPEEDS),
            Number(r"Width x(\d+)", "link_status.width"),
        ),
    ),
    "SltCap": Words(
        "slot_capabilities",
        {
            "AttnBtn": "attention_button",
            "PwrCtrl": "power_controller",
            "MRL": "mrl_sensor",
            "AttnInd": "attention_indicator",
            "PwrInd": "power_indicator",
            "HotPlug": "hot_plug",
            "Surprise": "hot_plug_surprise",
            "Interlock": "electromechanical_interlock",
            "NoCompl": "no_command_completed",
        },
        (
            Number(r"Slot #(\d+)", "slot_capabilities.physical_slot_number"),
            Number(r"PowerLimit ([\d.]+)W", "@slot_power_limit_milliwatts", milliwatts),
        ),
    ),
    "SltCtl": Words(
        "slot_control",
        {
            "AttnBtn": "attention_button_interrupt",
            "PwrFlt": "power_fault_interrupt",
            "MRL": "mrl_sensor_interrupt",
            "PresDet": "presence_interrupt",
            "CmdCplt": "command_completed_interrupt",
            "HPIrq": "hot_plug_interrupt",
            "LinkChg": "data_link_layer_interrupt",
        },
    ),
    "Control": Words(
        "slot_control",
        {"Power": "power_off", "Interlock": "interlock"},
        (
            Number(r"AttnInd (\w+)", "slot_control.attention_indicator", INDICATORS),
            Number(r"PwrInd (\w+)", "slot_control.power_indicator", INDICATORS),
        ),
    ),
    "SltSta": Words(
        "slot_status",
        {
            "AttnBtn": "attention_button_pressed",
            "PowerFlt": "power_fault",
            "MRL": "mrl_open",
            "CmdCplt": "command_completed",
            "PresDet": "present",
            "Interlock": "interlock_engaged",
        },
    ),
    "Changed": Words(
        "slot_status",
        {
            "MRL": "mrl_sensor_changed",
            "PresDet": "presence_changed",
            "LinkState": "data_link_layer_changed",
        },
    ),
    "RootCap": Words("root_capabilities", {"CRSVisible": "retry_status_visibility"}),
    "RootCtl": Words(
        "root_control",
        {
            "ErrCorrectable": "system_error_on_correctable",
            "ErrNon-Fatal": "system_error_on_nonfatal",
            "ErrFatal": "system_error_on_fatal",
            "PMEIntEna": "pme_interrupt",
            "CRSVisible": "retry_status_visibility",
        },
    ),
    "RootSta": Words(
        "root_status",
        {"PMEStatus": "pme_status", "PMEPending": "pme_pending"},
        (Number(r"PME ReqID (\w+)", "root_status.pme_requester_id", hexadecimal),),
    ),
    "DevCap2": Words(
        "device_capabilities_2",
        {
            "TimeoutDis": "completion_timeout_disable",
            "NROPrPrP": "no_relaxed_ordering_peer_to_peer",
            "LTR": "latency_tolerance_reporting",
            "10BitTagComp": "tag_10bit_completer",
            "10BitTagReq": "tag_10bit_requester",
            "ExtFmt": "extended_fmt",
            "EETLPPrefix": "end_end_tlp_prefix",
            "EmergencyPowerReductionInit": "emergency_power_reduction_initialization",
            "FRS": "function_readiness_status",
            "ARIFwd": "ari_forwarding",
        },
        (
            Number(
                r"Completion Timeout: ([^,]+)",
                "device_capabilities_2.completion_timeout_ranges",
                TIMEOUT_RANGES,
            ),
            Number(r"OBFF ([^,]+),", "device_capabilities_2.obff", OBFF),
            Number(
                r"MaxEETLPPrefixes (\d)",
                "device_capabilities_2.max_end_end_tlp_prefixes",
                lambda text: int(text) % 4,
            ),
            Number(
                r"EmergencyPowerReduction ([^,]+),",
                "device_capabilities_2.emergency_power_reduction",
                {"Not Supported": 0},
            ),
            Number(
                r"LN System CLS ([^,]+),",
                "device_capabilities_2.ln_system_cls",
                {"Not Supported": 0},
            ),
            # Two words for one field: 1 is TPH, 3 TPH and extended TPH.
            Number(
                r"(TPHComp. ExtTPHComp.)",
                "device_capabilities_2.tph_completer",
                {
                    "TPHComp- ExtTPHComp-": 0,
                    "TPHComp+ ExtTPHComp-": 1,
                    "TPHComp+ ExtTPHComp+": 3,
                },
            ),
        ),
        without=r"TPHComp. ExtTPHComp.",
    ),
    "AtomicOpsCap": Words(
        "device_capabilities_2",
        {
            "Routing": "atomic_op_routing",
            "32bit": "atomic_op_completer_32",
            "64bit": "atomic_op_completer_64",
            "128bitCAS": "atomic_op_completer_128",
        },
    ),
    "DevCtl2": Words(
        "device_control_2",
        {
            "TimeoutDis": "completion_timeout_disable",
            "LTR": "latency_tolerance_reporting",
            "10BitTagReq": "tag_10bit_requester",
            "ARIFwd": "ari_forwarding",
        },
        (
            Number(r"Completion Timeout: ([^,]+)", "device_control_2.completion_timeout", TIMEOUTS),
            Number(r"OBFF ([^,]+),", "device_control_2.obff", OBFF_ENABLED),
        ),
    ),
    # Later versions go on with other bits of the register behind this label.
    "AtomicOpsCtl": Words(
        "device_control_2",
        {
            "ReqEn": "atomic_op_requester",
            "EgressBlck": "atomic_op_egress_block",
            "IDOReq": "id_based_ordering_request",
            "IDOCompl": "id_based_ordering_completion",
            "LTR": "latency_tolerance_reporting",
            "EmergencyPowerReductionReq": "emergency_power_reduction_request",
            "10BitTagReq": "tag_10bit_requester",
            "EETLPPrefixBlk": "end_end_tlp_prefix_block",
        },
        (Number(r"OBFF ([^,]+),", "device_control_2.obff", OBFF_ENABLED),),
    ),
    "LnkCap2": Words(
        "link_capabilities_2",
        {
            "Crosslink": "crosslink",
            "Retimer": "retimer_detection",
            "2Retimers": "two_retimers_detection",
            "DRS": "device_readiness_status",
        },
        (Number(r"Speeds: ([^,]+)", "link_capabilities_2.supported_speeds", SUPPORTED_SPEEDS),),
    ),
    "LnkCtl2": Words(
        "link_control_2",
        {"EnterCompliance": "enter_compliance", "SpeedDis": "autonomous_speed_disable"},
        (
            Number(r"Target Link Speed: ([^,]+)", "link_control_2.target_speed", SPEEDS),
            Number(
                r"Selectable De-emphasis: (\S+)",
                "link_control_2.selectable_deemphasis",
                {"-6dB": 0, "-3.5dB": 1},
            ),
        ),
    ),
    "Transmit Margin": Words(
        "link_control_2",
        {
            "EnterModifiedCompliance": "enter_modified_compliance",
            "ComplianceSOS": "compliance_sos",
        },
        (Number(r"^([^,]+)", "link_control_2.transmit_margin", {"Normal Operating Range": 0}),),
    ),
    "Compliance Preset/De-emphasis": Words(
        "link_control_2",
        numbers=(
            Number(
                r"(.+)",
                "link_control_2.compliance_preset",
                {"-6dB de-emphasis, 0dB preshoot": 0, "-3.5dB de-emphasis, 0dB preshoot": 1},
            ),
        ),
    ),
    "LnkSta2": Words(
        "link_status_2",
        {
            "EqualizationComplete": "equalization_complete",
            "EqualizationPhase1": "equalization_phase_1",
            "EqualizationPhase2": "equalization_phase_2",
            "EqualizationPhase3": "equalization_phase_3",
            "LinkEqualizationRequest": "equalization_request",
            "Retimer": "retimer_present",
            "2Retimers": "two_retimers_present",
        },
        (
            Number(
                r"De-emphasis Level: (\S+),",
                "link_status_2.current_deemphasis",
                {"-6dB": 0, "-3.5dB": 1},
            ),
            Number(
                r"CrosslinkRes: (\w+)", "link_status_2.crosslink_resolution", {"unsupported": 0}
            ),
        ),
    ),
}

TABLE: dict[str, dict[str, Words]] = {
    "Null": {"": Words("")},
    "Power Management": {
        "": Words("", numbers=(Number(r"version (\d)", "capabilities.version"),)),
        "Flags": Words(
            "capabilities",
            {
                "PMEClk": "pme_clock",
                "DSI": "device_specific_initialization",
                "D1": "d1",
                "D2": "d2",
            },
            (
                Number(
                    r"AuxCurrent=(\d+)mA",
                    "capabilities.aux_current",
                    numbered("0,55,100,160,220,270,320,375"),
                ),
                Number(r"PME\((.*)\)", "capabilities.pme_support", power_states),
            ),
            without=r"PME\(.*\)",
        ),
        "Status": Words(
            "control",
            {"NoSoftRst": "no_soft_reset", "PME-Enable": "pme_enable", "PME": "pme_status"},
            (
                Number(r"^(D\d)", "control.power_state", numbered("D0,D1,D2,D3")),
                Number(r"DSel=(\d+)", "control.data_select"),
                Number(r"DScale=(\d+)", "control.data_scale"),
            ),
        ),
        "Bridge": Words("bridge_extensions", {"PM": "bus_power_clock_control", "B3": "!b2_b3"}),
    },
    "AGP": {
        "": Words(
            "",
            numbers=(
                Number(r"version (\d+)\.", "version.major"),
                Number(r"version \d+\.(\d+)", "version.minor"),
            ),
        ),
        "Status": Words(
            "status",
            {
                "Iso": "isochronous",
                "SBA": "sideband",
                "ITACoh": "aperture_coherent",
                "GART64": "gart_64",
                "HTrans": "no_host_translation",
                "64bit": "over_4g",
                "FW": "fast_write",
                "AGP3": "agp3",
            },
            (
                Number(r"RQ=(\d+)", "status.request_queue", lambda text: int(text) - 1),
                Number(r"ArqSz=(\d+)", "status.request_size"),
                Number(r"Cal=(\d+)", "status.calibration"),
                Number(r"Rate=(\S+)", "status.rates", {"x1,x2": 3, "x1,x2,x4": 7}),
            ),
        ),
        "Command": Words(
            "command",
            {
                "SBA": "sideband",
                "AGP": "enable",
                "GART64": "gart_64",
                "64bit": "over_4g",
                "FW": "fast_write",
            },
            (
                Number(r"RQ=(\d+)", "command.request_queue", lambda text: int(text) - 1),
                Number(r"ArqSz=(\d+)", "command.request_size"),
                Number(r"Cal=(\d+)", "command.calibration"),
                Number(r"Rate=(\S+)", "command.rate", {"<none>": 0}),
            ),
        ),
    },
    "MSI:": {
        "": Words(
            "control",
            {"Enable": "enable", "Maskable": "per_vector_mask", "64bit": "address_64"},
            (
                Number(r"Count=(\d+)/", "@vectors_enabled"),
                Number(
                    r"Count=\d+/(\d+)",
                    "control.multiple_message_capable",
                    {str(1 << code): code for code in range(6)},
                ),
            ),
        ),
        "Address": Words(
            "",
            numbers=(
                Number(r"^(\w+)", "@message_address", hexadecimal),
                Number(r"Data: (\w+)", "@message_data", hexadecimal),
            ),
        ),
        "Masking": Words(
            "",
            numbers=(
                Number(r"^(\w+)", "mask_32.mask|mask_64.mask", hexadecimal),
                Number(r"Pending: (\w+)", "pending_32.pending|pending_64.pending", hexadecimal),
            ),
        ),
    },
    "MSI-X:": {
        "": Words(
            "control",
            {"Enable": "enable", "Masked": "function_mask"},
            (Number(r"Count=(\d+)", "@vectors"),),
        ),
        "Vector table": Words(
            "",
            numbers=(
                Number(r"BAR=(\d)", "@vector_table.bar"),
                Number(r"offset=(\w+)", "@vector_table.offset", hexadecimal),
            ),
        ),
        "PBA": Words(
            "",
            numbers=(
                Number(r"BAR=(\d)", "@pending_bits.bar"),
                Number(r"offset=(\w+)", "@pending_bits.offset", hexadecimal),
            ),
        ),
    },
    "Express": EXPRESS,
    "Subsystem:": {
        "": Words(
            "",
            numbers=(
                Number(r"^(\w{4}):", "vendor_id", hexadecimal),
                Number(r":(\w{4})$", "subsystem_id", hexadecimal),
            ),
        )
    },
    "Debug port:": {
        "": Words(
            "",
            numbers=(
                Number(r"BAR=(\d)", "port.bar"),
                Number(r"offset=(\w+)", "port.offset", hexadecimal),
            ),
        )
    },
    "SATA HBA": {
        "": Words(
            "",
            numbers=(
                Number(r"v(\d+)\.", "revision.major"),
                Number(r"v\d+\.(\d+)", "revision.minor"),
                Number(r"BAR(\d)", "location.place", lambda text: int(text) + 4),
                Number(r"Offset=(\w+)", "location.offset", hexadecimal),
            ),
        )
    },
    "Hot-plug capable": {"": Words("")},
    "CompactPCI hot-swap": {"": Words("")},
    "Vital Product Data": {"": Words("")},
    "PCI Advanced Features": {
        "": Words(""),
        "AFCap": Words(
            "capabilities", {"TP": "transactions_pending", "FLR": "function_level_reset"}
        ),
        "AFCtrl": Words("control", {"FLR": "initiate_function_level_reset"}),
        "AFStatus": Words("status", {"TP": "transactions_pending"}),
    },
    "PCI-X bridge": {
        "": Words(""),
        "Secondary Status": Words(
            "secondary_status",
            PCI_X_STATUS,
            (
                Number(
                    r"Freq=(\S+)",
                    "secondary_status.frequency",
                    {"conv": 0, "66MHz": 1, "100MHz": 2, "133MHz": 3},
                ),
            ),
        ),
        "Status": Words("status", PCI_X_STATUS, PCI_X_PLACE),
        "Upstream": Words("upstream", numbers=SPLITS),
        "Downstream": Words("downstream", numbers=SPLITS),
    },
    "PCI-X non-bridge": {
        "": Words(""),
        "Command": Words(
            "command",
            {"DPERE": "parity_error_recovery", "ERO": "relaxed_ordering"},
            (
                Number(r"RBC=(\d+)", "command.max_read_bytes", numbered("512,1024,2048,4096")),
                Number(r"OST=(\d+)", "command.max_splits", numbered("1,2,3,4,8,12,16,32")),
            ),
        ),
        "Status": Words(
            "status",
            PCI_X_STATUS,
            (
                *PCI_X_PLACE,
                Number(r"DC=(\w+)", "status.complex", {"simple": 0, "bridge": 1}),
                Number(
                    r"DMMRBC=(\d+)", "status.designed_read_bytes", numbered("512,1024,2048,4096")
                ),
                Number(r"DMOST=(\d+)", "status.designed_splits", numbered("1,2,3,4,8,12,16,32")),
                Number(
                    r"DMCRS=(\d+)",
                    "status.designed_cumulative_read",
                    {str(8 << code): code for code in range(8)},
                ),
            ),
        ),
    },
    "HyperTransport: Slave or Primary": {
        "": Words(""),
        "Command": Words(
            "command",
            {
                "MastHost": "master_host",
                "DefDir": "default_direction",
                "DUL": "drop_on_uninitialized",
            },
            (
                Number(r"BaseUnitID=(\d+)", "command.base_unit_id"),
                Number(r"UnitCnt=(\d+)", "command.unit_count"),
            ),
        ),
        "Revision ID": HT_REVISION,
        "Feature Capability": Words("features", HT_FEATURES),
        **hypertransport_link("0"),
        **hypertransport_link("1"),
        "Error Handling": Words(
            "error_handling",
            {
                "PFlE": "protocol_flood",
                "OFlE": "overflow_flood",
                "PFE": "protocol_fatal",
                "OFE": "overflow_fatal",
                "EOCFE": "end_of_chain_fatal",
                "RFE": "response_fatal",
                "CRCFE": "crc_fatal",
                "SERRFE": "system_fatal",
                "CF": "chain_fail",
                "RE": "response_error",
                "PNFE": "protocol_nonfatal",
                "ONFE": "overflow_nonfatal",
                "EOCNFE": "end_of_chain_nonfatal",
                "RNFE": "response_nonfatal",
                "CRCNFE": "crc_nonfatal",
                "SERRNFE": "system_nonfatal",
            },
        ),
        "Prefetchable memory behind bridge Upper": Words(
            "",
            numbers=(
                Number(r"^(\w+)-", "memory_base_upper", hexadecimal),
                Number(r"-(\w+)$", "memory_limit_upper", hexadecimal),
            ),
        ),
        "Bus Number": Words("", numbers=(Number(r"(\w+)", "bus_number", hexadecimal),)),
    },
    "HyperTransport: Host or Secondary": {
        "": Words(""),
        "Command": Words(
            "command",
            {
                "WarmRst": "warm_reset",
                "DblEnd": "double_ended",
                "ChainSide": "chain_side",
                "HostHide": "host_hide",
                "Slave": "act_as_slave",
                "<EOCErr": "inbound_end_of_chain_error",
                "DUL": "drop_on_uninitialized",
            },
            (Number(r"DevNum=(\d+)", "command.device_number"),),
        ),
        "Revision ID": HT_REVISION,
        "Feature Capability": Words("features", HT_FEATURES),
        **hypertransport_link(""),
    },
    "HyperTransport: MSI Mapping": {
        "": Words("command", {"Enable": "enable", "Fixed": "fixed"}),
        "Mapping Address Base": Words(
            "", numbers=(Number(r"(\w+)", "@mapped_address", hexadecimal),)
        ),
    },
    "HyperTransport: Retry Mode": {"": Words("")},
    "HyperTransport: UnitID Clumping": {"": Words("")},
    "HyperTransport: #1a": {"": Words("")},
    "Enhanced Allocation": {
        "": Words("", numbers=(Number(r"NumEntries=(\d+)", "entries.count"),)),
        **entry(0),
        **entry(1),
        **entry(2),
        **entry(3),
    },
    "Vendor Specific Information: VirtIO": {
        "": Words(
            "",
            numbers=(
                Number(
                    r"VirtIO: (.+)",
                    "structure_type.type",
                    {"CommonCfg": 1, "Notify": 2, "ISR": 3, "DeviceCfg": 4, "<unknown>": None},
                ),
                Number(r"BAR=(\d)", "bar"),
                Number(r"offset=(\w+)", "offset", hexadecimal),
                Number(r"size=(\w+)", "structure_length", hexadecimal),
                Number(r"multiplier=(\w+)", "notify_multiplier", hexadecimal),
            ),
        )
    },
    "Vendor Specific Information: Len": {
        "": Words("", numbers=(Number(r"Len=(\w+)", "length", hexadecimal),))
    },
    "Vendor Specific Information: ID": {
        "": Words(
            "",
            numbers=(
                Number(r"ID=(\w+)", "header.vsec_id", hexadecimal),
                Number(r"Rev=(\d+)", "header.revision"),
                Number(r"Len=(\w+)", "header.length", hexadecimal),
            ),
        )
    },
    "Advanced Error Reporting": {
        "": Words(""),
        "UESta": Words("uncorrectable_status", UNCORRECTABLE),
        "UEMsk": Words("uncorrectable_mask", UNCORRECTABLE),
        "UESvrt": Words("uncorrectable_severity", UNCORRECTABLE),
        "CESta": Words("correctable_status", CORRECTABLE),
        "CEMsk": Words("correctable_mask", CORRECTABLE),
        "AERCap": Words(
            "control",
            {
                "ECRCGenCap": "ecrc_generation",
                "ECRCGenEn": "ecrc_generation_enable",
                "ECRCChkCap": "ecrc_check",
                "ECRCChkEn": "ecrc_check_enable",
                "MultHdrRecCap": "multiple_header_recording",
                "MultHdrRecEn": "multiple_header_recording_enable",
                "TLPPfxPres": "tlp_prefix_log_present",
                "HdrLogCap": "completion_timeout_header_log",
            },
            (Number(r"Pointer: (\w+)", "control.first_error_pointer", hexadecimal),),
        ),
        "HeaderLog": Words("", numbers=tuple(header_log(index) for index in range(4))),
        "RootCmd": Words(
            "root_command",
            {
                "CERptEn": "correctable_reporting",
                "NFERptEn": "nonfatal_reporting",
                "FERptEn": "fatal_reporting",
            },
        ),
        "RootSta": Words(
            "root_status",
            {
                "CERcvd": "correctable_received",
                "MultCERcvd": "multiple_correctable_received",
                "UERcvd": "uncorrectable_received",
                "MultUERcvd": "multiple_uncorrectable_received",
                "FirstFatal": "first_uncorrectable_fatal",
                "NonFatalMsg": "nonfatal_received",
                "FatalMsg": "fatal_received",
            },
            (Number(r"IntMsg (\d+)", "root_status.interrupt_message_number"),),
        ),
        "ErrorSrc": Words(
            "",
            numbers=(
                Number(r"ERR_COR: (\w+)", "correctable_source", hexadecimal),
                Number(r"NONFATAL: (\w+)", "uncorrectable_source", hexadecimal),
            ),
        ),
    },
    "Virtual Channel": {
        "": Words(""),
        "Caps": Words(
            "port_capability_1",
            numbers=(
                Number(r"LPEVC=(\d)", "port_capability_1.low_priority_channels"),
                Number(r"RefClk=(\w+)", "port_capability_1.reference_clock", {"100ns": 0}),
                Number(
                    r"PATEntryBits=(\d)",
                    "port_capability_1.arbitration_entry_size",
                    {"1": 0, "2": 1, "4": 2, "8": 3},
                ),
            ),
        ),
        "Arb": Words("port_capability_2", ARBITRATION),
        "Ctrl": Words(
            "port_control",
            numbers=(Number(r"ArbSelect=(\w+)", "port_control.arbitration_select", SCHEMES),),
        ),
        "Status": Words("port_status", {"InProgress": "arbitration_table_loading"}),
        **channel(0),
        **channel(1),
    },
    "Device Serial Number": {
        "": Words("", numbers=(Number(r"([0-9a-f-]{23})", "@serial_number", str),))
    },
    "Power Budgeting": {"": Words("")},
    "Root Complex Link": {
        "": Words(""),
        "Desc": Words(
            "self_description",
            numbers=(
                Number(r"PortNumber=(\w+)", "self_description.port_number", hexadecimal),
                Number(r"ComponentID=(\w+)", "self_description.component_id", hexadecimal),
                Number(
                    r"EltType=(\w+)",
                    "self_description.element_type",
                    {"Config": 0, "Egress": 1, "Internal": 2},
                ),
            ),
        ),
        **complex_link(0),
    },
    "Root Complex Event Collector": {
        "": Words(""),
        "RCiEPBitmap": Words("", numbers=(Number(r"(\w+)", "association", hexadecimal),)),
        "AssociatedBusNumbers": Words(
            "",
            numbers=(
                Number(r"^(\w+)-", "associated_buses.next_bus", hexadecimal),
                Number(r"-(\w+)", "associated_buses.last_bus", hexadecimal),
            ),
        ),
    },
    "Access Control Services": {
        "": Words(""),
        "ACSCap": Words("capability", ACS),
        "ACSCtl": Words("control", ACS),
    },
    "Alternative Routing-ID": {
        "": Words(""),
        "ARICap": Words(
            "capability",
            {"MFVC": "mfvc_function_groups", "ACS": "acs_function_groups"},
            (Number(r"Next Function: (\d+)", "capability.next_function"),),
        ),
        "ARICtl": Words(
            "control",
            {"MFVC": "mfvc_function_groups_enable", "ACS": "acs_function_groups_enable"},
            (Number(r"Function Group: (\d+)", "control.function_group"),),
        ),
    },
    "Address Translation Service": {
        "": Words(""),
        "ATSCap": Words(
            "",
            numbers=(Number(r"Depth: (\w+)", "capability.invalidate_queue_depth", hexadecimal),),
        ),
        "ATSCtl": Words(
            "control",
            {"Enable": "enable"},
            (Number(r"Unit: (\w+)", "control.smallest_translation_unit", hexadecimal),),
        ),
    },
    "Single Root I/O Virtualization": {
        "": Words(""),
        "IOVCap": Words(
            "capabilities",
            {"Migration": "vf_migration_capable", "10BitTagReq": "vf_10bit_tag_requester"},
            (
                Number(
                    r"(?:Number:|IntMsgNum) (\w+)",
                    "capabilities.vf_migration_interrupt_message_number",
                    hexadecimal,
                ),
            ),
        ),
        "IOVCtl": Words(
            "control",
            {
                "Enable": "vf_enable",
                "Migration": "vf_migration_enable",
                "Interrupt": "vf_migration_interrupt_enable",
                "MSE": "vf_memory_space_enable",
                "ARIHierarchy": "ari_capable_hierarchy",
                "10BitTagReq": "vf_10bit_tag_requester_enable",
            },
        ),
        "IOVSta": Words("status", {"Migration": "vf_migration_status"}),
        "Initial VFs": Words(
            "",
            numbers=(
                Number(r"^(\d+)", "initial_vfs.count"),
                Number(r"Total VFs: (\d+)", "total_vfs.count"),
                Number(r"Number of VFs: (\d+)", "num_vfs.count"),
                Number(r"Link: (\w+)", "function_dependency_link.function", hexadecimal),
            ),
        ),
        "VF offset": Words(
            "",
            numbers=(
                Number(r"^(\d+)", "first_vf_offset.offset"),
                Number(r"stride: (\d+)", "vf_stride.stride"),
                Number(r"Device ID: (\w+)", "vf_device_id.device_id", hexadecimal),
            ),
        ),
        "Supported Page Size": Words(
            "",
            numbers=(
                Number(r"^(\w+)", "supported_page_sizes.sizes", hexadecimal),
                Number(r"System Page Size: (\w+)", "system_page_size.size", hexadecimal),
            ),
        ),
        "VF Migration": Words(
            "",
            numbers=(
                Number(
                    r"offset: (\w+)",
                    "migration_state_array.offset",
                    lambda text: hexadecimal(text) >> 3,
                ),
                Number(r"BIR: (\d)", "migration_state_array.bir"),
            ),
        ),
        **{f"Region {index}": vf_bar(index) for index in (0, 1, 2, 3, 4)},
    },
    "Multicast": {
        "": Words(""),
        "McastCap": Words(
            "capability",
            {"ECRCRegen": "ecrc_regeneration", "Enable": "control.enable"},
            (
                Number(r"MaxGroups (\d+)", "@max_groups"),
                Number(r"WindowSz (\d+)", "capability.window_size_requested"),
                Number(r"NumGroups (\d+)", "@groups"),
            ),
        ),
        "McastCtl": Words(
            "control", {"Enable": "enable"}, (Number(r"NumGroups (\d+)", "@groups"),)
        ),
        "McastBAR": Words(
            "",
            numbers=(
                Number(r"IndexPos (\d+)", "base_address.index_position"),
                Number(r"BaseAddr (\w+)", "@window_base", hexadecimal),
            ),
        ),
        "McastReceiveVec": Words("", numbers=(Number(r"(\w+)", "@receive_groups", hexadecimal),)),
        "McastBlockAllVec": Words(
            "", numbers=(Number(r"(\w+)", "@block_all_groups", hexadecimal),)
        ),
        "McastBlockUntransVec": Words(
            "", numbers=(Number(r"(\w+)", "@block_untranslated_groups", hexadecimal),)
        ),
        "McastOverlayBAR": Words(
            "",
            numbers=(
                Number(r"OverlaySize (\d+)", "overlay.size"),
                Number(r"BaseAddr (\w+)", "@overlay_base", hexadecimal),
            ),
        ),
    },
    "Page Request Interface": {
        "": Words(""),
        "PRICtl": Words("control", {"Enable": "enable", "Reset": "reset"}),
        "PRISta": Words(
            "status",
            {
                "RF": "response_failure",
                "UPRGI": "unexpected_group_index",
                "Stopped": "stopped",
            },
        ),
        "Page Request Capacity": Words(
            "",
            numbers=(
                Number(r"^(\w+)", "capacity.outstanding_requests", hexadecimal),
                Number(r"Allocation: (\w+)", "allocation.outstanding_requests", hexadecimal),
            ),
        ),
    },
    "Physical Resizable BAR": {"": Words("")}
    | {f"BAR {index}": resizable(index) for index in (0, 1, 3, 4)},
    "Transaction Processing Hints": {
        "": Words(
            "",
            numbers=(
                Number(r"(Extended requester)", "capability.extended_requester", lambda _: 1),
                Number(
                    r"Steering table in (.+)",
                    "capability.table_location",
                    {"TPH capability structure": 1, "MSI-X table": 2},
                ),
            ),
        )
    },
    "Latency Tolerance Reporting": {
        "": Words(""),
        "Max snoop latency": Words("", numbers=(Number(r"(\d+)ns", "@max_snoop_ns"),)),
        "Max no snoop latency": Words("", numbers=(Number(r"(\d+)ns", "@max_no_snoop_ns"),)),
    },
    "Secondary PCI Express": {
        "": Words(""),
        "LnkCtl3": Words(
            "link_control_3",
            {
                "LnkEquIntrruptEn": "equalization_interrupt",
                "PerformEqu": "perform_equalization",
            },
        ),
        "LaneErrStat": Words(
            "lane_error_status",
            numbers=(
                Number(r"^(0)$", "lane_error_status.lanes"),
                Number(r"at lane: ([\d ]+)", "lane_error_status.lanes", lanes),
            ),
        ),
    },
    "Process Address Space ID": {
        "": Words(""),
        "PASIDCap": Words(
            "capability",
            {"Exec": "execute", "Priv": "privileged"},
            (Number(r"Width: (\w+)", "capability.max_pasid_width", hexadecimal),),
        ),
        "PASIDCtl": Words(
            "control",
            {"Enable": "enable", "Exec": "execute_enable", "Priv": "privileged_enable"},
        ),
    },
    "L1 PM Substates": {
        "": Words(""),
        "L1SubCap": Words(
            "capabilities",
            SUBSTATES | {"L1_PM_Substates": "l1_substates"},
            (
                Number(
                    r"PortCommonModeRestoreTime=(\w+)",
                    "capabilities.common_mode_restore_time",
                    microseconds,
                ),
                Number(r"PortTPowerOnTime=(\w+)", "@port_power_on_us", microseconds),
            ),
        ),
        "L1SubCtl1": Words(
            "control_1",
            SUBSTATES,
            (
                Number(r"T_CommonMode=(\w+)", "control_1.common_mode_restore_time", microseconds),
                Number(r"LTR1.2_Threshold=(\d+)ns", "@ltr_l1_2_threshold_ns"),
            ),
        ),
        "L1SubCtl2": Words("", numbers=(Number(r"T_PwrOn=(\w+)", "@power_on_us", microseconds),)),
    },
    "Precision Time Measurement": {
        "": Words(""),
        "PTMCap": Words(
            "capability", {"Requester": "requester", "Responder": "responder", "Root": "root"}
        ),
        "PTMClockGranularity": Words(
            "",
            numbers=(
                Number(r"(\d+)ns", "capability.clock_granularity"),
                Number(r"(Unimplemented)", "capability.clock_granularity", {"Unimplemented": 0}),
            ),
        ),
        "PTMControl": Words("control", {"Enabled": "enable", "RootSelected": "root_select"}),
        "PTMEffectiveGranularity": Words(
            "",
            numbers=(Number(r"(Unknown)", "control.effective_granularity", {"Unknown": 0}),),
        ),
    },
    "Data Object Exchange": {
        "": Words(""),
        "DOECap": Words(
            "capabilities",
            {"IntSup": "interrupt"},
            (Number(r"Number (\w+)", "capabilities.interrupt_message_number", hexadecimal),),
        ),
        "DOECtl": Words("control", {"IntEn": "interrupt_enable"}),
        "DOESta": Words(
            "status",
            {
                "Busy": "busy",
                "IntSta": "interrupt",
                "Error": "error",
                "ObjectReady": "object_ready",
            },
        ),
    },
    "Designated Vendor-Specific": {
        "": Words(
            "",
            numbers=(
                Number(r"Vendor=(\w+)", "header_1.vendor_id", hexadecimal),
                Number(r"ID=(\w+)", "header_2.dvsec_id", hexadecimal),
                Number(r"Rev=(\d+)", "header_1.revision"),
                Number(r"Len=(\d+)", "header_1.length"),
            ),
        ),
        "CXLCap": Words(
            "capability",
            CXL_PROTOCOLS | {"Init": "mem_hardware_init"},
            (Number(r"HDMCount (\d)", "capability.hdm_count"),),
        ),
        "CXLCtl": Words(
            "control",
            CXL_PROTOCOLS | {"Clean": "clean_eviction_hint"},
            (
                Number(r"SF Cov (\d+)", "control.snoop_filter_coverage"),
                Number(r"SF Gran (\d+)", "control.snoop_filter_granularity"),
            ),
        ),
        "CXLSta": Words("status", CXL_PROTOCOLS),
        "CXLSta2": Words(
            "status_2",
            {
                "ResetComplete": "reset_complete",
                "ResetError": "reset_error",
                "PMComplete": "pm_init_complete",
            },
            (Number(r"Cache Size (.+)", "capability_2.cache_unit", {"Not Reported": 0}),),
        ),
        "Range1": cxl_range(0),
        "Range2": cxl_range(1),
        "FBCap": Words("capability", FLEX_BUS),
        "FBCtl": Words("control", FLEX_BUS),
        "FBSta": Words("status", FLEX_BUS),
        "FBModTS": Words(
            "", numbers=(Number(r"Data: (\w+)", "received_training.data", hexadecimal),)
        ),
        **{
            f"Block{number}": Words(
                "",
                numbers=(
                    Number(r"BIR: bar(\d)", f"@blocks.{number - 1}.bar"),
                    Number(
                        r"ID: ([^,]+)",
                        f"@blocks.{number - 1}.id",
                        {
                            "component registers": 1,
                            "BAR virtualization": 2,
                            "CXL device registers": 3,
                        },
                    ),
                    Number(r"offset: (\w+)", f"@blocks.{number - 1}.offset", hexadecimal),
                ),
            )
            for number in (1, 2)
        },
        "GPF Phase 2 Duration": Words(
            "",
            numbers=(
                Number(
                    r"(\w+)",
                    "phase_2_duration.time",
                    lambda text: int(text.removesuffix("us")) // 100,
                ),
            ),
        ),
        "GPF Phase 2 Power": Words("", numbers=(Number(r"(\d+)mW", "phase_2_power.power"),)),
    },
    "Integrity & Data Encryption": {
        "": Words(""),
        "IDECap": Words(
            "capability",
            {
                "FlowThru": "flow_through",
                "PartHdr": "partial_header_encryption",
                "Aggr": "aggregation",
                "PCPC": "pcrc",
                "IDE_KM": "key_management",
                "SelCfg": "selective_configuration",
                "TeeLim": "tee_limited",
                "XT": "xt",
            },
            (
                Number(r"Lnk=(\d)", "capability.link_streams"),
                Number(
                    r"Sel=(\d+)",
                    "capability.selective_stream_count",
                    lambda text: int(text) - 1,
                ),
                Number(r"Alg='(.+?)'", "capability.algorithm", {"AES-GCM-256-96b": 0}),
                Number(r"TCs=(\d)", "capability.link_traffic_classes", lambda text: int(text) - 1),
            ),
        ),
        "IDECtl": Words("control", {"FTEn": "flow_through_enable"}),
        "SelectiveIDE#0 Cap": Words(
            "", numbers=(Number(r"RID#=(\d+)", "selective0_capability.address_blocks"),)
        ),
        "SelectiveIDE#0 Ctl": Words(
            "selective0_control",
            {
                "En": "enable",
                "XT": "xt_enable",
                "NPR": "aggregation_nonposted",
                "PR": "aggregation_posted",
                "CPL": "aggregation_completion",
                "PCRC": "pcrc_enable",
                "CFG": "configuration_enable",
                "TeeLim": "tee_limited",
            },
            (
                Number(r"HdrEnc=(\w+)", "selective0_control.partial_header_encryption", {"no": 0}),
                Number(r"Alg='(.+?)'", "selective0_control.algorithm", {"AES-GCM-256-96b": 0}),
                Number(r"TC(\d)", "selective0_control.traffic_class"),
                Number(r"ID(\d+)", "selective0_control.stream_id"),
            ),
        ),
        "SelectiveIDE#0 Sta": Words(
            "selective0_status",
            {"RecvChkFail": "integrity_check_fail_received"},
            (Number(r"^(\w+)", "selective0_status.state", {"insecure": 0, "secure": 2}),),
        ),
        "SelectiveIDE#0 RID": Words(
            "selective0_rid_association_2",
            {"Valid": "valid"},
            (
                Number(r" Base=(\w+)", "{register}.base", hexadecimal),
                Number(r"Limit=(\w+)", "selective0_rid_association_1.limit", hexadecimal),
                Number(r"SegBase=(\w+)", "{register}.segment_base", hexadecimal),
            ),
        ),
        "SelectiveIDE#0 RID#0": Words(
            "selective0_address0_lower",
            {"Valid": "valid"},
            (
                Number(r"Base=(\w+)", "@selective_streams.0.addresses.0.base", hexadecimal),
                Number(r"Limit=(\w+)", "@selective_streams.0.addresses.0.limit", hexadecimal),
            ),
        ),
    },
    "Multi-Function Virtual Channel": {"": Words("")},
    "Data Link Feature": {"": Words("")},
    "Physical Layer": {"": Words("")},
    "Lane Margining at the Receiver": {
        "": Words(""),
        "PortCap": Words("capabilities", {"Driver": "driver_software"}),
        "PortSta": Words("status", {"MargReady": "ready", "MargSoftReady": "software_ready"}),
    },
    "Extended Capability ID": {"": Words("")},
}
