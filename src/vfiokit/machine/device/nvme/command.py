"""Submission and completion entries.

Source: NVM Express Base Specification 2.0 §3.3.3.1 (64-byte submission entry) and §3.3.3.2
(16-byte completion entry).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from vfiokit.machine.device.nvme.status import CommandFailedError, Status

ENTRY_SIZE = 64
"""Bytes of a submission entry, ``2 ** CC.IOSQES``."""

COMPLETION_SIZE = 16
"""Bytes of a completion entry, ``2 ** CC.IOCQES``."""

_ENTRY = Struct("<BBHIIIQQQIIIIII")
_COMPLETION = Struct("<IIHHHH")

_OPCODE_LOCATION = 0
_FLAGS_LOCATION = 1
NSID_LOCATION = 4
CDW10_LOCATION = 40
CDW11_LOCATION = 44
CDW12_LOCATION = 48

BROADCAST_NSID = 0xFFFFFFFF


class Command(NamedTuple):
    """A submission entry, as fetched."""

    opcode: int
    flags: int
    """FUSE ``[1:0]``, PSDT ``[7:6]``."""
    cid: int
    nsid: int
    cdw2: int
    cdw3: int
    mptr: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @property
    def slba(self) -> int:
        """Starting logical block of a read, write, compare, verify or write zeroes command."""
        return self.cdw10 | self.cdw11 << 32

    @property
    def block_count(self) -> int:
        """Logical blocks of such a command (the field is 0-based)."""
        return (self.cdw12 & 0xFFFF) + 1


def parse(entries: bytes) -> list[Command]:
    """Every submission entry in ``entries``, a multiple of 64 bytes."""
    return [Command._make(fields) for fields in _ENTRY.iter_unpack(entries)]


def check_flags(command: Command) -> None:
    """Refuse fused commands and SGLs, which the model does not offer (FUSES, SGLS are 0)."""
    if command.flags & 0xC3:
        raise CommandFailedError(Status.INVALID_FIELD, location=_FLAGS_LOCATION)


def unknown_opcode() -> CommandFailedError:
    """The error for an opcode the controller does not know."""
    return CommandFailedError(Status.INVALID_OPCODE, location=_OPCODE_LOCATION)


def completion(result: int, sq_head: int, sq_id: int, cid: int, status: int, phase: int) -> bytes:
    """A completion entry; ``status`` is the 15-bit field, ``result`` fills dwords 0 and 1."""
    return _COMPLETION.pack(
        result & 0xFFFFFFFF, result >> 32, sq_head, sq_id, cid, status << 1 | phase
    )
