"""Decoding of NVMe registers and data structures; offsets are those of the specification."""

from __future__ import annotations

import struct

import pytest

from vfiokit.driver.nvme.admin import check_status
from vfiokit.driver.nvme.spec import (
    SQE,
    AsyncEvent,
    Capabilities,
    ControllerIdentity,
    ErrorLogEntry,
    LbaFormat,
    NamespaceIdentity,
    SmartLog,
)
from vfiokit.driver.nvme.status import status_name
from vfiokit.errors import NvmeCommandError


def test_submission_entry_has_the_size_and_order_of_the_specification() -> None:
    raw = SQE.pack(0xAA, 0x41, 0x1234, 7, 0, 0, 1 << 40, 1 << 41, 10, 11, 12, 13, 14, 15)
    assert SQE.size == 64
    assert (raw[0], raw[1], raw[2:4], raw[4:8]) == (0xAA, 0x41, b"\x34\x12", b"\7\0\0\0")
    assert struct.unpack_from("<QQ", raw, 24) == (1 << 40, 1 << 41)
    assert struct.unpack_from("<6I", raw, 40) == (10, 11, 12, 13, 14, 15)


def test_capabilities_decode() -> None:
    value = 0x3FF | 1 << 16 | 20 << 24 | 2 << 32 | 1 << 37 | 1 << 48 | 4 << 52 | 1 << 59
    caps = Capabilities.decode(value)
    assert caps.max_entries == 0x400
    assert caps.contiguous_required
    assert caps.ready_timeout_s == 10.0
    assert caps.doorbell_stride == 16
    assert caps.command_sets == 1
    assert (caps.min_page_size, caps.max_page_size) == (8192, 65536)
    assert caps.ready_modes == 1


def test_controller_identity_decodes() -> None:
    data = bytearray(4096)
    struct.pack_into("<HH", data, 0, 0x1B36, 0x1AF4)
    data[4:24] = b"SERIAL".ljust(20)
    data[24:64] = b"A Model".ljust(40)
    data[64:72] = b"1.0".ljust(8)
    data[77] = 5
    struct.pack_into("<HI", data, 78, 9, 0x10400)
    struct.pack_into("<I", data, 88, 2_000_000)
    data[258], data[259], data[262] = 3, 7, 63
    struct.pack_into("<IH", data, 516, 256, 0x0C)
    data[525] = 1
    data[768:800] = b"nqn.2019-08.org:x".ljust(32, b"\0")
    found = ControllerIdentity.decode(bytes(data))
    assert (found.vendor_id, found.subsystem_vendor_id) == (0x1B36, 0x1AF4)
    assert (found.serial_number, found.model, found.firmware) == ("SERIAL", "A Model", "1.0")
    assert (found.max_transfer_exponent, found.controller_id, found.version) == (5, 9, 0x10400)
    assert found.shutdown_latency_us == 2_000_000
    assert (found.abort_limit, found.async_event_limit, found.error_log_entries) == (4, 8, 64)
    assert (found.max_namespaces, found.optional_commands) == (256, 0x0C)
    assert found.volatile_write_cache
    assert found.subsystem_name == "nqn.2019-08.org:x"


def test_namespace_identity_decodes_its_format() -> None:
    data = bytearray(4096)
    struct.pack_into("<QQQ", data, 0, 1000, 900, 800)
    data[25], data[26] = 2, 0x11
    struct.pack_into("<III", data, 128, 9 << 16, 12 << 16 | 8, 0)
    found = NamespaceIdentity.decode(bytes(data))
    assert (found.size, found.capacity, found.utilization) == (1000, 900, 800)
    assert found.format == LbaFormat(4096, 8)
    assert found.formats == (LbaFormat(512, 0), LbaFormat(4096, 8), LbaFormat(0, 0))
    assert found.extended_metadata


def test_logs_decode() -> None:
    data = bytearray(512)
    data[0] = 4
    struct.pack_into("<H", data, 1, 310)
    data[3], data[4], data[5] = 100, 10, 2
    for offset, value in ((32, 1 << 70), (64, 7), (112, 8), (160, 9)):
        data[offset : offset + 16] = value.to_bytes(16, "little")
    smart = SmartLog.decode(bytes(data))
    assert smart.temperature_kelvin == 310
    assert smart.data_units_read == 1 << 70
    assert (smart.host_reads, smart.power_cycles, smart.media_errors) == (7, 8, 9)

    entry = struct.pack("<QHHHHQI", 5, 1, 77, 0x4002 << 1 | 1, 0x28, 123, 1).ljust(64, b"\0")
    assert ErrorLogEntry.decode_all(entry + bytes(64)) == (
        ErrorLogEntry(5, 1, 77, 0x4002, 0x28, 123, 1),
    )
    assert AsyncEvent.decode(0x02_01_01) == AsyncEvent(1, 1, 2)


def test_error_status_is_named() -> None:
    assert check_status("Read", 2, (0, 0, 42)) == 42
    with pytest.raises(NvmeCommandError, match="LBA Out of Range") as got:
        check_status("Read", 2, (0, 0x4080, 0))
    error = got.value
    assert (error.status_type, error.status_code, error.do_not_retry) == (0, 0x80, True)
    assert status_name(1, 1) == "Invalid Queue Identifier"
    assert status_name(2, 0x81) == "Unrecovered Read Error"
    assert status_name(7, 0x12) == "Vendor Specific"
    assert status_name(5, 0x12) == ""
