"""Completion statuses of the NVMe model.

A status here is ``SCT << 8 | SC``. Source: NVM Express Base Specification 2.0 §3.3.3.2 and
NVM Command Set Specification 1.0 §3.2.1.
"""

from __future__ import annotations

from enum import IntEnum

from vfiokit.errors import MachineError


class Status(IntEnum):
    """Status code type in bits ``[10:8]``, status code in bits ``[7:0]``."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    ABORT_REQUESTED = 0x007
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_PRP_OFFSET = 0x013
    NAMESPACE_WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    INVALID_COMPLETION_QUEUE = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    EVENT_REQUEST_LIMIT = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


#: A host may repeat these and meet another outcome, so their completions carry no DNR bit.
RETRYABLE = frozenset(
    {
        Status.SUCCESS,
        Status.DATA_TRANSFER_ERROR,
        Status.ABORT_REQUESTED,
        Status.COMMAND_SEQUENCE_ERROR,
        Status.WRITE_FAULT,
        Status.UNRECOVERED_READ_ERROR,
    }
)

_MORE = 1 << 13
_DO_NOT_RETRY = 1 << 14


class CommandFailedError(MachineError):
    """Executing a command ended with an error status; it becomes the completion entry.

    Never leaves the controller model. ``location`` is the byte of the submission entry that was
    wrong (error log, Parameter Error Location), ``lba`` the first logical block concerned.
    """

    def __init__(self, status: Status, *, location: int = 0xFFFF, lba: int = 0) -> None:
        super().__init__(f"command failed: {status.name}")
        self.status = status
        self.location = location
        self.lba = lba


def status_field(status: Status) -> int:
    """The 15-bit status field of a completion entry, phase bit excluded.

    More is set on errors (each is in the error log); Do Not Retry on those that would repeat.
    """
    if status is Status.SUCCESS:
        return 0
    return status | _MORE | (0 if status in RETRYABLE else _DO_NOT_RETRY)
