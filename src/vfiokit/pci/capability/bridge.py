"""Bridges: their subsystem ids (0x0d), flattening portal (0x15).

Source: PCI Express Base Specification 6.0 §7.9.23 and §7.8.11.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

SUBSYSTEM = Layout(
    "subsystem",
    "Bridge Subsystem Vendor ID",
    0x0D,
    False,
    (
        Register("vendor_id", 0x04, 2, (), "§7.9.23.2"),
        Register("subsystem_id", 0x06, 2, (), "§7.9.23.2"),
    ),
    "§7.9.23",
    fixed(8),
)

_VECTOR_SIZES = {code: str(256 << code) for code in range(6)}
_RID_GRANULARITY = {0: "1", 3: "8", 5: "64", 8: "256"}
_GRANULARITY = {code: f"{1 << code} MiB" for code in range(9)}


def _vector_control(name: str, offset: int, start: Field, spec: str) -> Register:
    fields = (
        flag("decode_enable", 0, "rw"),
        Field("granularity", 7, 4, "rw", _GRANULARITY),
        start,
    )
    return Register(name, offset, 4, fields, spec)


FLATTENING_PORTAL = Layout(
    "flattening-portal",
    "Flattening Portal Bridge",
    0x15,
    False,
    (
        Register(
            "capabilities",
            0x04,
            4,
            (
                flag("rid_decode", 0, "hwinit"),
                flag("memory_low_decode", 1, "hwinit"),
                flag("memory_high_decode", 2, "hwinit"),
                Field("secondary_devices", 7, 3, "hwinit", doc="minus one"),
                Field("rid_vector_size", 10, 8, "hwinit", _VECTOR_SIZES, "bits, as named"),
                Field("memory_low_vector_size", 18, 16, "hwinit", _VECTOR_SIZES, "bits, as named"),
                Field("memory_high_vector_size", 26, 24, "hwinit", _VECTOR_SIZES, "bits, as named"),
            ),
            "§7.8.11.2",
        ),
        Register(
            "rid_vector_control_1",
            0x08,
            4,
            (
                flag("decode_enable", 0, "rw"),
                Field("granularity", 7, 4, "rw", _RID_GRANULARITY),
                Field("start", 31, 19, "rw"),
            ),
            "§7.8.11.3",
        ),
        Register(
            "rid_vector_control_2", 0x0C, 4, (Field("secondary_start", 15, 3, "rw"),), "§7.8.11.4"
        ),
        _vector_control("memory_low_control", 0x10, Field("start", 31, 20, "rw"), "§7.8.11.5"),
        _vector_control("memory_high_control_1", 0x14, Field("start", 31, 28, "rw"), "§7.8.11.6"),
        Register(
            "memory_high_control_2", 0x18, 4, (Field("start_upper", 31, 0, "rw"),), "§7.8.11.7"
        ),
        Register(
            "vector_access_control",
            0x1C,
            4,
            (
                Field("offset", 7, 0, "rw"),
                Field(
                    "select", 15, 14, "rw", {0: "requester IDs", 1: "memory low", 2: "memory high"}
                ),
            ),
            "§7.8.11.8",
        ),
        Register("vector_access_data", 0x20, 4, (Field("data", 31, 0, "rw"),), "§7.8.11.9"),
    ),
    "§7.8.11",
    fixed(0x24),
)
