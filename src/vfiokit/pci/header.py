"""The standard configuration header, types 0, 1 and 2, as declarative registers.

Sources: PCI Local Bus Specification 3.0 §6.1 and §6.2 (type 0), PCI Express Base Specification
6.0 §7.5.1 (common part, type 1), PC Card Standard 8.0 volume 7 (type 2, CardBus bridges).
Register offsets count from the start of configuration space.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Register, flag
from vfiokit.pci.config import ConfigSpace

VENDOR_ID = Register("vendor_id", 0x00, 2, (), "§7.5.1.1.1")
DEVICE_ID = Register("device_id", 0x02, 2, (), "§7.5.1.1.2")
COMMAND = Register(
    "command",
    0x04,
    2,
    (
        flag("io_space", 0, "rw"),
        flag("memory_space", 1, "rw"),
        flag("bus_master", 2, "rw"),
        flag("special_cycle", 3),
        flag("memory_write_invalidate", 4),
        flag("vga_palette_snoop", 5),
        flag("parity_error_response", 6, "rw"),
        flag("idsel_stepping", 7),
        flag("system_error", 8, "rw"),
        flag("fast_back_to_back", 9),
        flag("interrupt_disable", 10, "rw"),
    ),
    "§7.5.1.1.3",
)
_STATUS_FIELDS = (
    flag("interrupt", 3),
    flag("capabilities_list", 4),
    flag("capable_66mhz", 5),
    flag("fast_back_to_back", 7),
    flag("master_data_parity_error", 8, "rw1c"),
    Field("devsel_timing", 10, 9, meaning={0: "fast", 1: "medium", 2: "slow"}),
    flag("signaled_target_abort", 11, "rw1c"),
    flag("received_target_abort", 12, "rw1c"),
    flag("received_master_abort", 13, "rw1c"),
    flag("signaled_system_error", 14, "rw1c"),
    flag("detected_parity_error", 15, "rw1c"),
)
STATUS = Register(
    "status", 0x06, 2, (flag("immediate_readiness", 0), *_STATUS_FIELDS), "§7.5.1.1.4"
)
REVISION_ID = Register("revision_id", 0x08, 1, (), "§7.5.1.1.5")
CLASS_CODE = Register(
    "class_code",
    0x08,
    4,
    (Field("base", 31, 24), Field("subclass", 23, 16), Field("interface", 15, 8)),
    "§7.5.1.1.6",
)
CACHE_LINE_SIZE = Register(
    "cache_line_size", 0x0C, 1, (Field("size", 7, 0, "rw", unit="dwords"),), "§7.5.1.1.7"
)
LATENCY_TIMER = Register("latency_timer", 0x0D, 1, (), "§7.5.1.1.8")
HEADER_TYPE = Register(
    "header_type",
    0x0E,
    1,
    (
        Field("layout", 6, 0, meaning={0: "endpoint", 1: "pci bridge", 2: "cardbus bridge"}),
        flag("multifunction", 7),
    ),
    "§7.5.1.1.9",
)
BIST = Register(
    "bist",
    0x0F,
    1,
    (Field("completion_code", 3, 0), flag("start", 6, "rw"), flag("capable", 7)),
    "§7.5.1.1.10",
)

COMMON = (
    VENDOR_ID,
    DEVICE_ID,
    COMMAND,
    STATUS,
    REVISION_ID,
    CLASS_CODE,
    CACHE_LINE_SIZE,
    LATENCY_TIMER,
    HEADER_TYPE,
    BIST,
)
"""Registers that every header has."""

BARS = tuple(Register(f"bar{index}", 0x10 + 4 * index, 4, (), "§7.5.1.2.1") for index in range(6))
CAPABILITIES_POINTER = Register("capabilities_pointer", 0x34, 1, (), "§7.5.1.1.11")
INTERRUPT_LINE = Register("interrupt_line", 0x3C, 1, (), "§7.5.1.1.12")
INTERRUPT_PIN = Register(
    "interrupt_pin",
    0x3D,
    1,
    (Field("pin", 7, 0, meaning={0: "none", 1: "A", 2: "B", 3: "C", 4: "D"}),),
    "§7.5.1.1.13",
)
_ROM_FIELDS = (flag("enable", 0, "rw"), Field("address", 31, 11, "rw", unit="2 KiB"))

CARDBUS_CIS = Register("cardbus_cis", 0x28, 4, (), "§7.5.1.2.2")
SUBSYSTEM_VENDOR_ID = Register("subsystem_vendor_id", 0x2C, 2, (), "§7.5.1.2.3")
SUBSYSTEM_ID = Register("subsystem_id", 0x2E, 2, (), "§7.5.1.2.3")
EXPANSION_ROM = Register("expansion_rom", 0x30, 4, _ROM_FIELDS, "§7.5.1.2.4")
MIN_GRANT = Register("min_grant", 0x3E, 1, (), "§7.5.1.2.5")
MAX_LATENCY = Register("max_latency", 0x3F, 1, (), "§7.5.1.2.5")

TYPE0 = (
    *BARS,
    CARDBUS_CIS,
    SUBSYSTEM_VENDOR_ID,
    SUBSYSTEM_ID,
    EXPANSION_ROM,
    CAPABILITIES_POINTER,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    MIN_GRANT,
    MAX_LATENCY,
)
"""What an endpoint adds."""

PRIMARY_BUS = Register("primary_bus", 0x18, 1, (), "§7.5.1.3.2")
SECONDARY_BUS = Register("secondary_bus", 0x19, 1, (), "§7.5.1.3.3")
SUBORDINATE_BUS = Register("subordinate_bus", 0x1A, 1, (), "§7.5.1.3.4")
SECONDARY_LATENCY_TIMER = Register("secondary_latency_timer", 0x1B, 1, (), "§7.5.1.3.5")
_IO_FIELDS = (Field("address", 7, 4, "rw", unit="4 KiB"), Field("wide", 3, 0, doc="1: 32 bits"))
_MEMORY_FIELDS = (Field("address", 15, 4, "rw", unit="1 MiB"),)
_PREFETCH_FIELDS = (*_MEMORY_FIELDS, Field("wide", 3, 0, doc="1: 64 bits"))
IO_BASE = Register("io_base", 0x1C, 1, _IO_FIELDS, "§7.5.1.3.6")
IO_LIMIT = Register("io_limit", 0x1D, 1, _IO_FIELDS, "§7.5.1.3.6")
SECONDARY_STATUS = Register("secondary_status", 0x1E, 2, _STATUS_FIELDS[2:], "§7.5.1.3.7")
MEMORY_BASE = Register("memory_base", 0x20, 2, _MEMORY_FIELDS, "§7.5.1.3.8")
MEMORY_LIMIT = Register("memory_limit", 0x22, 2, _MEMORY_FIELDS, "§7.5.1.3.8")
PREFETCH_BASE = Register("prefetch_base", 0x24, 2, _PREFETCH_FIELDS, "§7.5.1.3.9")
PREFETCH_LIMIT = Register("prefetch_limit", 0x26, 2, _PREFETCH_FIELDS, "§7.5.1.3.9")
PREFETCH_BASE_UPPER = Register("prefetch_base_upper", 0x28, 4, (), "§7.5.1.3.10")
PREFETCH_LIMIT_UPPER = Register("prefetch_limit_upper", 0x2C, 4, (), "§7.5.1.3.10")
IO_BASE_UPPER = Register("io_base_upper", 0x30, 2, (), "§7.5.1.3.11")
IO_LIMIT_UPPER = Register("io_limit_upper", 0x32, 2, (), "§7.5.1.3.11")
BRIDGE_EXPANSION_ROM = Register("expansion_rom", 0x38, 4, _ROM_FIELDS, "§7.5.1.3.12")
_BRIDGE_CONTROL_FIELDS = (
    flag("parity_error_response", 0, "rw"),
    flag("system_error", 1, "rw"),
    flag("isa", 2, "rw"),
    flag("vga", 3, "rw"),
    flag("vga_16bit", 4, "rw"),
    flag("master_abort_mode", 5, "rw"),
    flag("secondary_bus_reset", 6, "rw"),
    flag("fast_back_to_back", 7),
)
BRIDGE_CONTROL = Register("bridge_control", 0x3E, 2, _BRIDGE_CONTROL_FIELDS, "§7.5.1.3.13")

TYPE1 = (
    *BARS[:2],
    PRIMARY_BUS,
    SECONDARY_BUS,
    SUBORDINATE_BUS,
    SECONDARY_LATENCY_TIMER,
    IO_BASE,
    IO_LIMIT,
    SECONDARY_STATUS,
    MEMORY_BASE,
    MEMORY_LIMIT,
    PREFETCH_BASE,
    PREFETCH_LIMIT,
    PREFETCH_BASE_UPPER,
    PREFETCH_LIMIT_UPPER,
    IO_BASE_UPPER,
    IO_LIMIT_UPPER,
    CAPABILITIES_POINTER,
    BRIDGE_EXPANSION_ROM,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    BRIDGE_CONTROL,
)
"""What a PCI-to-PCI bridge adds."""

TYPE2 = (
    Register("socket_base", 0x10, 4, (Field("address", 31, 12, "rw", unit="4 KiB"),)),
    Register("capabilities_pointer", 0x14, 1),
    Register("secondary_status", 0x16, 2, _STATUS_FIELDS[2:]),
    PRIMARY_BUS._replace(spec=""),
    Register("card_bus", 0x19, 1),
    SUBORDINATE_BUS._replace(spec=""),
    Register("card_latency_timer", 0x1B, 1),
    Register("memory_base_0", 0x1C, 4),
    Register("memory_limit_0", 0x20, 4),
    Register("memory_base_1", 0x24, 4),
    Register("memory_limit_1", 0x28, 4),
    Register("io_base_0", 0x2C, 4),
    Register("io_limit_0", 0x30, 4),
    Register("io_base_1", 0x34, 4),
    Register("io_limit_1", 0x38, 4),
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    Register(
        "bridge_control",
        0x3E,
        2,
        (
            *_BRIDGE_CONTROL_FIELDS[:4],
            flag("master_abort_mode", 5, "rw"),
            flag("card_reset", 6, "rw"),
            flag("legacy_interrupts", 7, "rw"),
            flag("memory_0_prefetchable", 8, "rw"),
            flag("memory_1_prefetchable", 9, "rw"),
            flag("write_posting", 10, "rw"),
        ),
    ),
    Register("subsystem_vendor_id", 0x40, 2),
    Register("subsystem_id", 0x42, 2),
    Register("legacy_base", 0x44, 4),
)
"""What a CardBus bridge adds."""

_BY_TYPE = {0: TYPE0, 1: TYPE1, 2: TYPE2}


def described(kind: int) -> tuple[Register, ...]:
    """The registers of headers of type ``kind``; of an unknown one the common part."""
    return (*COMMON, *_BY_TYPE.get(kind, ()))


def registers(config: ConfigSpace) -> tuple[Register, ...]:
    """The header registers that exist here and were captured.

    Of an unknown header type only the common part.
    """
    kind = config.u8(0x0E) & 0x7F if config.has(0x0E, 1) else 0
    return tuple(
        register for register in described(kind) if config.has(register.offset, register.width)
    )


def decode(config: ConfigSpace) -> dict[str, dict[str, int]]:
    """Every header register by name, as :meth:`Register.decode` gives it. Never raises."""
    return {
        register.name: register.decode(config.read(register.offset, register.width))
        for register in registers(config)
    }
