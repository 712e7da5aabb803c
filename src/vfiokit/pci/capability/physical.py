"""Links at their rates: equalization at 8, 16, 32 and 64 GT/s, data link features, margining.

Source: PCI Express Base Specification 6.0 §7.7.3 to §7.7.7 and §7.7.10.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfiokit.pci.capability.express import lanes
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

_LANES = Field("lanes", 31, 0, "rw1c", doc="bit n: lane n")
_PRESETS = (
    Field("downstream_transmitter_preset", 3, 0, "hwinit"),
    Field("upstream_transmitter_preset", 7, 4, "hwinit"),
)

SECONDARY = Layout(
    "secondary-express",
    "Secondary PCI Express",
    0x19,
    True,
    (
        Register(
            "link_control_3",
            0x04,
            4,
            (
                flag("perform_equalization", 0, "rw"),
                flag("equalization_interrupt", 1, "rw"),
                Field("lower_skp_generation", 15, 9, "rw", doc="bit n: speed code n + 1"),
            ),
            "§7.7.3.2",
        ),
        Register("lane_error_status", 0x08, 4, (_LANES,), "§7.7.3.3"),
    ),
    "§7.7.3",
    lambda capability: 0x0C + (2 * lanes(capability) + 3) // 4 * 4,
    repeated=(
        Repeated(
            "lane",
            (
                Register(
                    "equalization",
                    0x00,
                    2,
                    (
                        Field("downstream_transmitter_preset", 3, 0, "hwinit"),
                        Field("downstream_receiver_hint", 6, 4, "hwinit"),
                        Field("upstream_transmitter_preset", 11, 8, "hwinit"),
                        Field("upstream_receiver_hint", 14, 12, "hwinit"),
                    ),
                    "§7.7.3.4",
                ),
            ),
            counted(0x0C, 2, lanes),
        ),
    ),
)

_FEATURES = (
    flag("scaled_flow_control", 0),
    flag("immediate_readiness", 1),
    Field("extended_vc_count", 4, 2),
    Field("l0p_exit_latency", 7, 5),
)
DATA_LINK_FEATURE = Layout(
    "data-link-feature",
    "Data Link Feature",
    0x25,
    True,
    (
        Register(
            "capabilities",
            0x04,
            4,
            (*_FEATURES, flag("exchange_enable", 31, "hwinit")),
            "§7.7.4.2",
        ),
        Register("status", 0x08, 4, (*_FEATURES, flag("remote_valid", 31)), "§7.7.4.3"),
    ),
    "§7.7.4",
    fixed(12),
)

_EQUALIZATION = (
    flag("complete", 0),
    flag("phase_1", 1),
    flag("phase_2", 2),
    flag("phase_3", 3),
    flag("request", 4, "rw1c"),
)


def _preset_lanes(first: int, spec: str) -> Repeated:
    register = Register("equalization", 0x00, 1, _PRESETS, spec)
    return Repeated("lane", (register,), counted(first, 1, lanes))


def _after_lanes(first: int, capability: Capability) -> int:
    return first + (lanes(capability) + 3) // 4 * 4


RATE_16GT = Layout(
    "physical-16gt",
    "Physical Layer 16.0 GT/s",
    0x26,
    True,
    (
        Register("capabilities", 0x04, 4, (), "§7.7.5.2"),
        Register("control", 0x08, 4, (), "§7.7.5.3"),
        Register("status", 0x0C, 4, _EQUALIZATION, "§7.7.5.4"),
        Register("local_parity_mismatch", 0x10, 4, (_LANES,), "§7.7.5.5"),
        Register("first_retimer_parity_mismatch", 0x14, 4, (_LANES,), "§7.7.5.6"),
        Register("second_retimer_parity_mismatch", 0x18, 4, (_LANES,), "§7.7.5.7"),
    ),
    "§7.7.5",
    lambda capability: _after_lanes(0x20, capability),
    repeated=(_preset_lanes(0x20, "§7.7.5.9"),),
)

_TRAINING_MODES = {0: "PCI Express", 1: "training set messages", 2: "alternate protocol"}
_TRAINING_DATA_1 = (
    Field("usage_mode", 2, 0, meaning=_TRAINING_MODES),
    Field("information_1", 15, 3),
    Field("vendor_id", 31, 16),
)
_TRAINING_DATA_2 = (
    Field("information_2", 23, 0),
    Field("alternate_protocol_negotiation", 25, 24),
)
RATE_32GT = Layout(
    "physical-32gt",
    "Physical Layer 32.0 GT/s",
    0x2A,
    True,
    (
        Register(
            "capabilities",
            0x04,
            4,
            (
                flag("equalization_bypass", 0, "hwinit"),
                flag("no_equalization_needed", 1, "hwinit"),
                flag("modified_ts_mode_0", 8, "hwinit"),
                flag("modified_ts_mode_1", 9, "hwinit"),
                flag("modified_ts_mode_2", 10, "hwinit"),
            ),
            "§7.7.6.2",
        ),
        Register(
            "control",
            0x08,
            4,
            (
                flag("equalization_bypass_disable", 0, "rw"),
                flag("no_equalization_needed_disable", 1, "rw"),
                Field("modified_ts_mode", 10, 8, "rw", _TRAINING_MODES),
            ),
            "§7.7.6.3",
        ),
        Register(
            "status",
            0x0C,
            4,
            (
                *_EQUALIZATION,
                flag("modified_ts_received", 5),
                Field(
                    "enhanced_link_behavior",
                    7,
                    6,
                    meaning={
                        0: "full equalization",
                        1: "equalization bypass",
                        2: "no equalization needed",
                        3: "modified TS1/TS2 supported",
                    },
                ),
                flag("transmitter_precoding_on", 8),
                flag("transmitter_precoding_request", 9),
                flag("no_equalization_needed_received", 10),
            ),
            "§7.7.6.4",
        ),
        Register("received_training_1", 0x10, 4, _TRAINING_DATA_1, "§7.7.6.5"),
        Register("received_training_2", 0x14, 4, _TRAINING_DATA_2, "§7.7.6.6"),
        Register("transmitted_training_1", 0x18, 4, _TRAINING_DATA_1, "§7.7.6.7"),
        Register("transmitted_training_2", 0x1C, 4, _TRAINING_DATA_2, "§7.7.6.8"),
    ),
    "§7.7.6",
    lambda capability: _after_lanes(0x20, capability),
    repeated=(_preset_lanes(0x20, "§7.7.6.9"),),
)

RATE_64GT = Layout(
    "physical-64gt",
    "Physical Layer 64.0 GT/s",
    0x31,
    True,
    (
        Register("capabilities", 0x04, 4, (), "§7.7.7.2"),
        Register("control", 0x08, 4, (), "§7.7.7.3"),
        Register(
            "status",
            0x0C,
            4,
            (
                *_EQUALIZATION,
                flag("transmitter_precoding_on", 5),
                flag("transmitter_precoding_request", 6),
                flag("no_equalization_needed_received", 7),
            ),
            "§7.7.7.4",
        ),
    ),
    "§7.7.7",
    lambda capability: _after_lanes(0x10, capability),
    repeated=(_preset_lanes(0x10, "§7.7.7.5"),),
)

_RECEIVERS = {0: "broadcast"} | {number: f"receiver {chr(64 + number)}" for number in range(1, 7)}


def _margining(access: str) -> Iterable[Field]:
    return (
        Field("receiver", 2, 0, access, _RECEIVERS),
        Field("margin_type", 5, 3, access),
        flag("usage_model", 6, access),
        Field("payload", 15, 8, access),
    )


LANE_MARGINING = Layout(
    "lane-margining",
    "Lane Margining at the Receiver",
    0x27,
    True,
    (
        Register("capabilities", 0x04, 2, (flag("driver_software", 0, "hwinit"),), "§7.7.10.2"),
        Register("status", 0x06, 2, (flag("ready", 0), flag("software_ready", 1)), "§7.7.10.3"),
    ),
    "§7.7.10",
    lambda capability: 8 + 4 * lanes(capability),
    repeated=(
        Repeated(
            "lane",
            (
                Register("control", 0x00, 2, tuple(_margining("rw")), "§7.7.10.4"),
                Register("status", 0x02, 2, tuple(_margining("ro")), "§7.7.10.5"),
            ),
            counted(8, 4, lanes),
        ),
    ),
)
