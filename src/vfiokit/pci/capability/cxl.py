"""CXL's DVSECs (vendor 0x1e98), by their id.

Source: Compute Express Link Specification 3.1 §8.1.3 to §8.1.10.
"""

from __future__ import annotations

from vfiokit.pci.capability.designated_header import HEADER_1, HEADER_2, length
from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
    flag,
)
from vfiokit.pci.capability.register_block import LOCATOR, LOCATOR_UPPER, block

VENDOR_ID = 0x1E98

_PROTOCOLS = (("cache", 0), ("io", 1), ("mem", 2))
_INTERLEAVE = {
    0: "none",
    1: "256",
    2: "4096",
    3: "512",
    4: "1024",
    5: "2048",
    6: "8192",
    7: "16384",
}
_TIME_SCALES = {
    0: "1 us",
    1: "10 us",
    2: "100 us",
    3: "1 ms",
    4: "10 ms",
    5: "100 ms",
    6: "1 s",
    7: "10 s",
}


def _within(capability: Capability, register: Register) -> bool:
    """Later revisions append registers: those past the length do not exist."""
    return register.offset + register.width <= max(length(capability), 0x0A)


def _layout(
    name: str, title: str, registers: tuple[Register, ...], spec: str, *repeated: Repeated
) -> Layout:
    return Layout(
        name,
        title,
        0x23,
        True,
        (HEADER_1, HEADER_2, *registers),
        spec,
        length,
        _within,
        repeated=repeated,
    )


# --- Id 0: devices ---

DEVICE_CAPABILITY = Register(
    "capability",
    0x0A,
    2,
    (
        *(flag(name, bit) for name, bit in _PROTOCOLS),
        flag("mem_hardware_init", 3),
        Field("hdm_count", 5, 4),
        flag("cache_writeback_invalidate", 6),
        flag("reset", 7),
        Field(
            "reset_timeout",
            10,
            8,
            meaning={0: "10 ms", 1: "100 ms", 2: "1 s", 3: "10 s", 4: "100 s"},
        ),
        flag("reset_memory_clear", 11),
        flag("multiple_logical_device", 13),
        flag("viral", 14),
        flag("pm_init_completion_reporting", 15),
    ),
    "§8.1.3.1",
)
DEVICE_CONTROL = Register(
    "control",
    0x0C,
    2,
    (
        *(flag(name, bit, "rw") for name, bit in _PROTOCOLS),
        Field("snoop_filter_coverage", 7, 3, "rw"),
        Field("snoop_filter_granularity", 10, 8, "rw"),
        flag("clean_eviction_hint", 11, "rw"),
        flag("viral", 14, "rw"),
    ),
    "§8.1.3.2",
)
DEVICE_STATUS = Register("status", 0x0E, 2, (flag("viral", 14, "rw1c"),), "§8.1.3.3")
DEVICE_CONTROL_2 = Register(
    "control_2",
    0x10,
    2,
    (
        flag("disable_caching", 0, "rw"),
        flag("initiate_writeback_invalidate", 1, "rw"),
        flag("initiate_reset", 2, "rw"),
        flag("reset_memory_clear", 3, "rw"),
        flag("desired_volatile_state_after_hot_reset", 4, "rw"),
    ),
    "§8.1.3.4",
)
DEVICE_STATUS_2 = Register(
    "status_2",
    0x12,
    2,
    (
        flag("cache_invalid", 0),
        flag("reset_complete", 1),
        flag("reset_error", 2),
        flag("volatile_preservation_error", 3, "rw1c"),
        flag("pm_init_complete", 15),
    ),
    "§8.1.3.5",
)
DEVICE_LOCK = Register("lock", 0x14, 2, (flag("lock", 0, "rw"),), "§8.1.3.6")
DEVICE_CAPABILITY_2 = Register(
    "capability_2",
    0x16,
    2,
    (
        Field("cache_unit", 3, 0, meaning={0: "not reported", 1: "64 KiB", 2: "1 MiB"}),
        Field("cache_size", 15, 8, unit="cache_unit"),
    ),
    "§8.1.3.7",
)


def _range(number: int, first: int) -> tuple[Register, ...]:
    return (
        Register(f"range{number}_size_upper", first, 4, (Field("size", 31, 0),), "§8.1.3.8.1"),
        Register(
            f"range{number}_size",
            first + 4,
            4,
            (
                flag("valid", 0),
                flag("active", 1),
                Field("media_type", 4, 2, meaning={0: "volatile", 1: "non-volatile", 2: "CDAT"}),
                Field("memory_class", 7, 5, meaning={0: "memory", 1: "storage", 2: "CDAT"}),
                Field("interleave", 12, 8, meaning=_INTERLEAVE, unit="bytes, as named"),
                Field("active_timeout", 15, 13, unit="log4 s"),
                Field("size", 31, 28, unit="256 MiB"),
            ),
            "§8.1.3.8.2",
        ),
        Register(
            f"range{number}_base_upper", first + 8, 4, (Field("base", 31, 0, "rw"),), "§8.1.3.8.3"
        ),
        Register(
            f"range{number}_base",
            first + 12,
            4,
            (Field("base", 31, 28, "rw", unit="256 MiB"),),
            "§8.1.3.8.4",
        ),
    )


RANGES = (_range(1, 0x18), _range(2, 0x28))
DEVICE_CAPABILITY_3 = Register(
    "capability_3",
    0x38,
    2,
    (
        flag("volatile_after_cold_reset", 0),
        flag("volatile_after_warm_reset", 1),
        flag("volatile_after_hot_reset", 2),
        flag("hot_reset_configurable", 3),
        flag("direct_peer_to_peer_mem", 4),
    ),
    "§8.1.3.9",
)


def _memory_range(capability: Capability, registers: tuple[Register, ...]) -> dict[str, object]:
    size_upper, size, base_upper, base = (capability.value(register) for register in registers)
    return {
        "base": base_upper << 32 | base & 0xF0000000,
        "size": size_upper << 32 | size & 0xF0000000,
        "valid": size & 1,
        "active": size >> 1 & 1,
        "active_timeout_seconds": 4 ** (size >> 13 & 7),
    }


def _device(capability: Capability) -> dict[str, object]:
    if length(capability) < 0x38:  # revision 0 has no complete ranges
        return {}
    return {"ranges": [_memory_range(capability, registers) for registers in RANGES]}


DEVICE = _layout(
    "cxl-device",
    "CXL Device",
    (
        DEVICE_CAPABILITY,
        DEVICE_CONTROL,
        DEVICE_STATUS,
        DEVICE_CONTROL_2,
        DEVICE_STATUS_2,
        DEVICE_LOCK,
        DEVICE_CAPABILITY_2,
        *RANGES[0],
        *RANGES[1],
        DEVICE_CAPABILITY_3,
    ),
    "CXL §8.1.3",
)._replace(derive=_device)

# --- Id 2: which functions of the device are not CXL's ---

FUNCTION_MAP = _layout(
    "cxl-function-map",
    "CXL Non-CXL Function Map",
    tuple(
        Register(
            f"map{n}",
            0x0C + 4 * n,
            4,
            (Field("functions", 31, 0, doc=f"bit n: function {32 * n} + n is not CXL"),),
            "§8.1.4",
        )
        for n in range(8)
    ),
    "CXL §8.1.4",
)

# --- Id 3: ports ---

PORT = _layout(
    "cxl-port",
    "CXL Extensions for Ports",
    (
        Register(
            "status",
            0x0A,
            2,
            (flag("pm_init_complete", 0), flag("viral", 14, "rw1c")),
            "§8.1.5.1",
        ),
        Register(
            "control",
            0x0C,
            2,
            (
                flag("unmask_bus_reset", 0, "rw"),
                flag("unmask_link_disable", 1, "rw"),
                flag("alternate_memory_and_id", 2, "rw"),
                flag("alternate_bus_master", 3, "rw"),
                flag("unordered_io_to_hdm", 4, "rw"),
                flag("viral", 14, "rw"),
            ),
            "§8.1.5.2",
        ),
        Register("alternate_bus_base", 0x0E, 1, (Field("bus", 7, 0, "rw"),), "§8.1.5.3"),
        Register("alternate_bus_limit", 0x0F, 1, (Field("bus", 7, 0, "rw"),), "§8.1.5.4"),
        Register("alternate_memory_base", 0x10, 2, (Field("address", 15, 4, "rw"),), "§8.1.5.5"),
        Register("alternate_memory_limit", 0x12, 2, (Field("address", 15, 4, "rw"),), "§8.1.5.6"),
        Register("alternate_prefetch_base", 0x14, 2, (Field("address", 15, 4, "rw"),), "§8.1.5.7"),
        Register("alternate_prefetch_limit", 0x16, 2, (Field("address", 15, 4, "rw"),), "§8.1.5.8"),
        Register("alternate_prefetch_base_upper", 0x18, 4, (Field("address", 31, 0, "rw"),)),
        Register("alternate_prefetch_limit_upper", 0x1C, 4, (Field("address", 31, 0, "rw"),)),
        Register("rcrb_base", 0x20, 4, (flag("enable", 0, "rw"), Field("address", 31, 13, "rw"))),
        Register("rcrb_base_upper", 0x24, 4, (Field("address", 31, 0, "rw"),)),
    ),
    "CXL §8.1.5",
)

# --- Ids 4 and 5: global persistent flush ---


def _phase(name: str, offset: int, access: str, spec: str) -> Register:
    fields = (
        Field("time", 3, 0, access, unit="scale"),
        Field("scale", 11, 8, access, _TIME_SCALES),
    )
    return Register(name, offset, 2, fields, spec)


FLUSH_PORT = _layout(
    "cxl-flush-port",
    "CXL GPF Port",
    (
        _phase("phase_1_timeout", 0x0C, "rw", "§8.1.6.1"),
        _phase("phase_2_timeout", 0x0E, "rw", "§8.1.6.2"),
    ),
    "CXL §8.1.6",
)
FLUSH_DEVICE = _layout(
    "cxl-flush-device",
    "CXL GPF Device",
    (
        _phase("phase_2_duration", 0x0A, "ro", "§8.1.7.1"),
        Register("phase_2_power", 0x0C, 4, (Field("power", 31, 0, unit="mW"),), "§8.1.7.2"),
    ),
    "CXL §8.1.7",
)

# --- Id 7: Flex Bus port ---

_FLITS = (
    ("flit_68b", 5),
    ("multiple_logical_device", 6),
    ("flit_256b", 13),
    ("pbr_flit", 14),
)
_BUFFERS = (("sync_header_bypass", 3), ("drift_buffer", 4))
FLEX_BUS_CAPABILITY = Register(
    "capability",
    0x0A,
    2,
    tuple(flag(name, bit) for name, bit in (*_PROTOCOLS, *_FLITS)),
    "§8.2.1.3.1",
)
FLEX_BUS_CONTROL = Register(
    "control",
    0x0C,
    2,
    (
        *(flag(name, bit, "rw") for name, bit in (*_PROTOCOLS, *_BUFFERS, *_FLITS)),
        flag("restricted_training_disable", 7, "rw"),
        flag("retimer_1", 8, "rw"),
        flag("retimer_2", 9, "rw"),
    ),
    "§8.2.1.3.2",
)
FLEX_BUS_STATUS = Register(
    "status",
    0x0E,
    2,
    tuple(flag(name, bit) for name, bit in (*_PROTOCOLS, *_BUFFERS, *_FLITS)),
    "§8.2.1.3.3",
)
FLEX_BUS = _layout(
    "cxl-flex-bus",
    "CXL Flex Bus Port",
    (
        FLEX_BUS_CAPABILITY,
        FLEX_BUS_CONTROL,
        FLEX_BUS_STATUS,
        Register("received_training", 0x10, 4, (Field("data", 23, 0),), "§8.2.1.3.4"),
        Register("capability_2", 0x14, 4, (flag("nop_hint", 0),), "§8.2.1.3.5"),
        Register("control_2", 0x18, 4, (flag("nop_hint", 0, "rw"),), "§8.2.1.3.6"),
        Register("status_2", 0x1C, 4, (), "§8.2.1.3.7"),
    ),
    "CXL §8.2.1.3",
)

# --- Id 8: register locator ---

_BLOCK_IDS = {
    0: "empty",
    1: "component registers",
    2: "BAR virtualization",
    3: "device registers",
    4: "performance monitoring",
    0xFF: "vendor specific",
}


def _blocks(capability: Capability) -> int:
    return max(length(capability) - 0x0C, 0) // 8


def _located(capability: Capability) -> dict[str, object]:
    blocks = [block(capability, 0x0C + 8 * number) for number in range(_blocks(capability))]
    return {"blocks": [found for found in blocks if found["id"]]}


REGISTER_LOCATOR = _layout(
    "cxl-register-locator",
    "CXL Register Locator",
    (),
    "CXL §8.1.9",
    Repeated(
        "block",
        (
            LOCATOR._replace(
                fields=tuple(
                    field._replace(meaning=_BLOCK_IDS) if field.name == "block_id" else field
                    for field in LOCATOR.fields
                ),
                spec="§8.1.9.1",
            ),
            LOCATOR_UPPER._replace(spec="§8.1.9.2"),
        ),
        counted(0x0C, 8, _blocks),
    ),
)._replace(derive=_located)

# --- Id 9: multi-logical devices ---

MULTI_LOGICAL_DEVICE = _layout(
    "cxl-multi-logical-device",
    "CXL Multi-Logical Device",
    (Register("logical_devices", 0x0A, 2, (Field("count", 15, 0),), "§8.1.10.1"),),
    "CXL §8.1.10",
)

LAYOUTS = {
    0x0: DEVICE,
    0x2: FUNCTION_MAP,
    0x3: PORT,
    0x4: FLUSH_PORT,
    0x5: FLUSH_DEVICE,
    0x7: FLEX_BUS,
    0x8: REGISTER_LOCATOR,
    0x9: MULTI_LOGICAL_DEVICE,
}
"""Layouts by DVSEC id."""
