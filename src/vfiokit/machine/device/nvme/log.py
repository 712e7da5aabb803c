"""Log pages and the facts they are made of.

Source: NVM Express Base Specification 2.0 §5.16.1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from struct import Struct

from vfiokit.machine.device.nvme.identify import ERROR_LOG_ENTRIES, NSID, Identity

ERROR_INFORMATION = 0x01
HEALTH = 0x02
FIRMWARE_SLOT = 0x03
CHANGED_NAMESPACES = 0x04
COMMANDS_SUPPORTED = 0x05

_ERROR_ENTRY = Struct("<QHHHHQI36x")

_SUPPORTED = 1
_CHANGES_BLOCKS = 1 << 1


@dataclass(slots=True)
class Health:
    """Counters of the SMART / Health Information log; they outlive resets."""

    temperature: int = 310
    """Composite temperature in kelvin."""
    bytes_read: int = 0
    bytes_written: int = 0
    read_commands: int = 0
    write_commands: int = 0
    power_cycles: int = 1
    unsafe_shutdowns: int = 0
    media_errors: int = 0
    error_count: int = 0
    errors: deque[bytes] = field(default_factory=lambda: deque(maxlen=ERROR_LOG_ENTRIES))
    """Error Information log entries, newest first."""

    def record_error(
        self, *, sq_id: int, cid: int, status: int, location: int, lba: int, nsid: int
    ) -> None:
        """Put a failed command into the error log; ``status`` is the 15-bit status field."""
        self.error_count += 1
        self.errors.appendleft(
            _ERROR_ENTRY.pack(self.error_count, sq_id, cid, status << 1, location, lba, nsid)
        )


def error_information(health: Health) -> bytes:
    """Error Information: 64-byte entries, newest first, unused ones zero."""
    return b"".join(health.errors).ljust(ERROR_LOG_ENTRIES * _ERROR_ENTRY.size, b"\0")


def health_information(health: Health, warning: int) -> bytes:
    """SMART / Health Information, 512 bytes; ``warning`` is the Critical Warning byte."""
    page = bytearray(512)
    page[0] = warning
    page[1:3] = health.temperature.to_bytes(2, "little")
    page[3] = 100  # available spare, percent
    page[4] = 10  # its threshold
    for offset, value in (
        (32, -(-health.bytes_read // 512_000)),  # units of 1000 * 512 bytes, rounded up
        (48, -(-health.bytes_written // 512_000)),
        (64, health.read_commands),
        (80, health.write_commands),
        (112, health.power_cycles),
        (144, health.unsafe_shutdowns),
        (160, health.media_errors),
        (176, health.error_count),
    ):
        page[offset : offset + 16] = value.to_bytes(16, "little")
    return bytes(page)


def firmware_slots(identity: Identity) -> bytes:
    """Firmware Slot Information: slot 1 is active and the only one."""
    page = bytearray(512)
    page[0] = 1
    page[8:16] = identity.firmware.encode("ascii").ljust(8)
    return bytes(page)


def changed_namespaces(changed: bool) -> bytes:
    """Changed Namespace List, 1024 entries."""
    return (NSID if changed else 0).to_bytes(4, "little").ljust(4096, b"\0")


def commands_supported(admin: frozenset[int], io: frozenset[int], writing: frozenset[int]) -> bytes:
    """Commands Supported and Effects; ``writing`` are the I/O opcodes that change blocks."""
    page = bytearray(4096)
    for opcode in admin:
        page[4 * opcode] = _SUPPORTED
    for opcode in io:
        page[1024 + 4 * opcode] = _SUPPORTED | (_CHANGES_BLOCKS if opcode in writing else 0)
    return bytes(page)


def critical_warning(health: Health, *, over: int, under: int, read_only: bool) -> int:
    """The Critical Warning byte: temperature outside its thresholds, medium read-only."""
    hot_or_cold = health.temperature >= over or health.temperature <= under
    return (1 << 1 if hot_or_cold else 0) | (1 << 3 if read_only else 0)
