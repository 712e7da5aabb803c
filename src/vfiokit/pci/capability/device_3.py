"""Device 3 (extended id 0x2f). Source: PCI Express Base Specification 6.1 §7.7.9."""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

_L0P_LATENCIES = {0: "below 1 us"} | {
    code: f"{1 << code - 1} us to {1 << code} us" for code in range(1, 7)
}
_L0P_LATENCIES[7] = "above 64 us"
_WIDTHS = {0: "x1", 1: "x2", 2: "x4", 3: "x8", 4: "x16"}

CAPABILITIES = Register(
    "capabilities",
    0x04,
    4,
    (
        flag("deferrable_write_routing", 0, "hwinit"),
        flag("tag_14bit_completer", 1, "hwinit"),
        flag("tag_14bit_requester", 2, "hwinit"),
        flag("l0p", 3, "hwinit"),
        Field("port_l0p_exit_latency", 6, 4, "hwinit", _L0P_LATENCIES),
        Field("retimer_l0p_exit_latency", 9, 7, "hwinit", _L0P_LATENCIES),
        flag("unordered_io_completer", 10, "hwinit"),
        flag("unordered_io_requester", 11, "hwinit"),
    ),
    "§7.7.9.2",
)
CONTROL = Register(
    "control",
    0x08,
    4,
    (
        flag("deferrable_write_requester_enable", 0, "rw"),
        flag("deferrable_write_egress_blocking", 1, "rw"),
        flag("tag_14bit_requester_enable", 2, "rw"),
        flag("l0p_enable", 3, "rw"),
        Field("target_width", 6, 4, "rw", _WIDTHS | {7: "dynamic"}),
        flag("unordered_io_requester_enable", 7, "rw"),
        flag("unordered_io_256_byte_boundary_disable", 8, "rw"),
    ),
    "§7.7.9.3",
)
STATUS = Register(
    "status",
    0x0C,
    4,
    (
        Field("initial_width", 2, 0, meaning=_WIDTHS),
        flag("segment_captured", 3),
        flag("remote_l0p", 4),
    ),
    "§7.7.9.4",
)

LAYOUT = Layout(
    "device-3",
    "Device 3",
    0x2F,
    True,
    (CAPABILITIES, CONTROL, STATUS),
    "§7.7.9",
    fixed(0x10),
)
