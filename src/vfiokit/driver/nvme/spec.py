"""NVMe as numbers: registers, opcodes, data structures.

Source: NVM Express Base Specification 2.0 §3.1.3 (controller properties), §3.3.3 (queue entries),
§5 (admin commands); NVM Command Set Specification 1.0 §3, §4.1.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from vfiokit.vfio.register import R32, R64, RW32, RW64, W32, RegisterMap

DOORBELLS = 0x1000
"""Offset of the first doorbell in BAR 0."""

SQE = struct.Struct("<BBHIQQQQIIIIII")
"""A submission queue entry, 64 bytes: opcode, fuse and PSDT, command id, nsid, cdw2-3, mptr,
prp1, prp2, cdw10 … cdw15."""
SQE_SIZE = 64
CQE_SIZE = 16


class ControllerRegisters(RegisterMap):
    """BAR 0 below the doorbells. 64-bit registers go as halves, which every controller takes."""

    CAP = R64(0x00, halves=True)
    VS = R32(0x08)
    INTMS = RW32(0x0C)
    INTMC = RW32(0x10)
    CC = RW32(0x14)
    CSTS = RW32(0x1C)
    NSSR = W32(0x20)
    AQA = RW32(0x24)
    ASQ = RW64(0x28, halves=True)
    ACQ = RW64(0x30, halves=True)
    CRTO = R32(0x68)


class Capabilities(NamedTuple):
    """CAP, decoded."""

    max_entries: int
    """Largest queue, in entries (MQES + 1)."""
    contiguous_required: bool
    ready_timeout_s: float
    """CAP.TO in seconds."""
    doorbell_stride: int
    """Bytes from one doorbell to the next."""
    command_sets: int
    """CSS: bit 0 NVM, bit 6 I/O command sets, bit 7 none but admin."""
    min_page_size: int
    max_page_size: int
    ready_modes: int
    """CRMS: bit 0 with media, bit 1 independent of media; CRTO is valid when not 0."""

    @classmethod
    def decode(cls, value: int) -> Capabilities:
        """Read the 64-bit register."""
        return cls(
            max_entries=(value & 0xFFFF) + 1,
            contiguous_required=bool(value >> 16 & 1),
            ready_timeout_s=(value >> 24 & 0xFF) * 0.5,
            doorbell_stride=4 << (value >> 32 & 0xF),
            command_sets=value >> 37 & 0xFF,
            min_page_size=1 << 12 + (value >> 48 & 0xF),
            max_page_size=1 << 12 + (value >> 52 & 0xF),
            ready_modes=value >> 59 & 3,
        )


CC_ENABLE = 1 << 0
CC_CSS_SHIFT = 4
CC_MPS_SHIFT = 7
CC_SHUTDOWN_NORMAL = 1 << 14
CC_SHUTDOWN_MASK = 3 << 14
CC_ENTRY_SIZES = 6 << 16 | 4 << 20

CSTS_READY = 1 << 0
CSTS_FATAL = 1 << 1
CSTS_SHUTDOWN_MASK = 3 << 2
CSTS_SHUTDOWN_COMPLETE = 2 << 2
ALL_ONES = 0xFFFFFFFF
"""What a register of a device that left the bus reads."""


class AdminOpcode(IntEnum):
    """Commands of the admin queue."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C


class IoOpcode(IntEnum):
    """Commands of the NVM command set."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Identify(IntEnum):
    """CNS values."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02


class LogPage(IntEnum):
    """Log page identifiers."""

    ERROR = 0x01
    SMART = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04


class Feature(IntEnum):
    """Feature identifiers."""

    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    ASYNC_EVENT_CONFIGURATION = 0x0B


IO_FUA = 1 << 30
"""cdw12: the data is on the media when the command completes."""
CREATE_CONTIGUOUS = 1 << 0
CREATE_INTERRUPTS = 1 << 1


def _text(data: memoryview | bytes) -> str:
    return bytes(data).decode("ascii", "replace").rstrip(" \0")


@dataclass(frozen=True, slots=True)
class ControllerIdentity:
    """Identify Controller data, the fields a driver needs."""

    vendor_id: int
    subsystem_vendor_id: int
    serial_number: str
    model: str
    firmware: str
    max_transfer_exponent: int
    """MDTS: limit of 2**n smallest pages; 0 means none."""
    controller_id: int
    version: int
    shutdown_latency_us: int
    """RTD3E; 0 when not reported."""
    abort_limit: int
    """Outstanding aborts (ACL + 1)."""
    async_event_limit: int
    """Outstanding event requests (AERL + 1)."""
    error_log_entries: int
    """ELPE + 1."""
    max_namespaces: int
    optional_commands: int
    """ONCS: bit 2 dataset management, bit 3 write zeroes."""
    volatile_write_cache: bool
    subsystem_name: str

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ControllerIdentity:
        """Read the 4096-byte structure."""
        vid, ssvid = struct.unpack_from("<HH", data, 0)
        return cls(
            vendor_id=vid,
            subsystem_vendor_id=ssvid,
            serial_number=_text(data[4:24]),
            model=_text(data[24:64]),
            firmware=_text(data[64:72]),
            max_transfer_exponent=data[77],
            controller_id=int.from_bytes(data[78:80], "little"),
            version=int.from_bytes(data[80:84], "little"),
            shutdown_latency_us=int.from_bytes(data[88:92], "little"),
            abort_limit=data[258] + 1,
            async_event_limit=data[259] + 1,
            error_log_entries=data[262] + 1,
            max_namespaces=int.from_bytes(data[516:520], "little"),
            optional_commands=int.from_bytes(data[520:522], "little"),
            volatile_write_cache=bool(data[525] & 1),
            subsystem_name=_text(data[768:1024]),
        )


@dataclass(frozen=True, slots=True)
class LbaFormat:
    """One way a namespace can be formatted."""

    block_size: int
    """Bytes of a logical block; 0 for an unused format."""
    metadata_size: int
    """Bytes of metadata per block."""


@dataclass(frozen=True, slots=True)
class NamespaceIdentity:
    """Identify Namespace data of the NVM command set."""

    size: int
    """Logical blocks addressed."""
    capacity: int
    """Logical blocks that can be allocated."""
    utilization: int
    """Logical blocks allocated."""
    formats: tuple[LbaFormat, ...]
    format_index: int
    extended_metadata: bool
    """Metadata travels at the end of each block instead of in a buffer of its own."""
    nguid: bytes
    eui64: bytes

    @property
    def format(self) -> LbaFormat:
        """The format in use."""
        return self.formats[self.format_index]

    @classmethod
    def decode(cls, data: bytes | memoryview) -> NamespaceIdentity:
        """Read the 4096-byte structure."""
        size, capacity, utilization = struct.unpack_from("<QQQ", data, 0)
        index = data[26] & 0xF | data[26] >> 1 & 0x30
        count = max(data[25], index) + 1
        words = struct.unpack_from(f"<{min(count, 64)}I", data, 128)
        formats = tuple(
            LbaFormat(1 << (word >> 16 & 0xFF) if word >> 16 & 0xFF else 0, word & 0xFFFF)
            for word in words
        )
        return cls(
            size=size,
            capacity=capacity,
            utilization=utilization,
            formats=formats,
            format_index=index,
            extended_metadata=bool(data[26] & 0x10),
            nguid=bytes(data[104:120]),
            eui64=bytes(data[120:128]),
        )


@dataclass(frozen=True, slots=True)
class SmartLog:
    """SMART / Health Information (log page 02h)."""

    critical_warning: int
    """Bits: 0 spare low, 1 temperature, 2 degraded, 3 read only, 4 backup failed."""
    temperature_kelvin: int
    available_spare_percent: int
    spare_threshold_percent: int
    percentage_used: int
    data_units_read: int
    """Thousands of 512-byte units, rounded up."""
    data_units_written: int
    host_reads: int
    host_writes: int
    power_cycles: int
    power_on_hours: int
    unsafe_shutdowns: int
    media_errors: int
    error_log_entries: int

    @classmethod
    def decode(cls, data: bytes | memoryview) -> SmartLog:
        """Read the 512-byte structure."""

        def wide(offset: int) -> int:
            return int.from_bytes(data[offset : offset + 16], "little")

        return cls(
            critical_warning=data[0],
            temperature_kelvin=int.from_bytes(data[1:3], "little"),
            available_spare_percent=data[3],
            spare_threshold_percent=data[4],
            percentage_used=data[5],
            data_units_read=wide(32),
            data_units_written=wide(48),
            host_reads=wide(64),
            host_writes=wide(80),
            power_cycles=wide(112),
            power_on_hours=wide(128),
            unsafe_shutdowns=wide(144),
            media_errors=wide(160),
            error_log_entries=wide(176),
        )


class ErrorLogEntry(NamedTuple):
    """One entry of Error Information (log page 01h)."""

    number: int
    """Error count: newest entry has the highest."""
    queue_id: int
    command_id: int
    status: int
    """Status field, phase bit removed: SC 7:0, SCT 10:8, DNR 14."""
    parameter_offset: int
    lba: int
    nsid: int

    @classmethod
    def decode_all(cls, data: bytes | memoryview) -> tuple[ErrorLogEntry, ...]:
        """Read 64-byte entries, leaving out unused ones."""
        entries = []
        for offset in range(0, len(data) - 63, 64):
            number, sqid, cid, status, where, lba, nsid = struct.unpack_from(
                "<QHHHHQI", data, offset
            )
            if number:
                entries.append(cls(number, sqid, cid, status >> 1, where, lba, nsid))
        return tuple(entries)


class AsyncEvent(NamedTuple):
    """Completion dword 0 of an Asynchronous Event Request."""

    type: int
    """0 error, 1 SMART, 2 notice, 6 I/O command set, 7 vendor."""
    information: int
    log_page: int
    """Reading it clears the event."""

    @classmethod
    def decode(cls, result: int) -> AsyncEvent:
        """Read the dword."""
        return cls(result & 7, result >> 8 & 0xFF, result >> 16 & 0xFF)
