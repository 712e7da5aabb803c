"""What an NVMe controller makes of a driver's writes, told from the writes alone.

A :class:`NvmeWatcher` follows the registers, the queues that the driver asks for, and the
completions in the guest's memory. It asks the device nothing, so it disturbs nothing. For a write
that will have no effect it gives the reason.

Source: NVM Express Base Specification 2.0 §3.1.2 (doorbells), §3.1.3 (properties), §3.3.1 (full
queues), §5 (creating and deleting queues).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vfiokit.driver.nvme.status import status_name
from vfiokit.errors import UsageError
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.trace_register import DOORBELLS, Doorbell, doorbell, nvme_name, nvme_register

_SQE_SIZE: Final = 64
_CQE_SIZE: Final = 16
_DELETE_SQ, _CREATE_SQ, _DELETE_CQ, _CREATE_CQ = 0x00, 0x01, 0x04, 0x05
_CC, _CSTS, _AQA, _ASQ, _ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30
_INTMS, _INTMC = 0x0C, 0x10
_STRIDES: Final = tuple(4 << shift for shift in range(16))


@dataclass
class WatchedQueue:
    """One queue that the driver asked for."""

    queue: int
    completion: bool
    iova: int
    size: int
    """Entries."""
    partner: int = 0
    """Of a submission queue: the completion queue that it completes to."""
    tail: int = 0
    """Last valid value of the tail doorbell; of a completion queue, where the next entry will
    be posted."""
    head: int = 0
    phase: int = 1
    refused: str = ""
    """Why the controller did not make it."""
    flying: Counter[int] = field(default_factory=Counter)
    """Identifiers of commands that were submitted and are not known to be complete."""
    sent: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of the admin queue: opcode and dword 10 of commands on the way, by identifier."""

    @property
    def name(self) -> str:
        """Such as ``SQ3``."""
        return f"{'CQ' if self.completion else 'SQ'}{self.queue}"

    @property
    def held(self) -> int:
        """Entries between head and tail."""
        return (self.tail - self.head) % self.size


class NvmeWatcher:
    """Follows one controller through what its driver reads and writes.

    ``memory`` is the guest's; ``mastering`` tells whether the function may do DMA now.
    """

    def __init__(self, memory: GuestMemory, mastering: Callable[[], bool] = lambda: True) -> None:
        self._memory = memory
        self._mastering = mastering
        self._shadow = bytearray(DOORBELLS)
        self._looked = False
        self.msix = False
        """Whether the function's MSI-X is enabled; the tracer says so."""
        self.queues: dict[Doorbell, WatchedQueue] = {}
        self.deleted: set[Doorbell] = set()

    @property
    def stride(self) -> int:
        """Bytes from doorbell to doorbell: as CAP said, 4 until it was read."""
        return 4 << (self._get(0x04, 4) & 0xF)

    @property
    def enabled(self) -> bool:
        """CC.EN as the driver wrote it."""
        return bool(self._get(_CC, 4) & 1)

    def name(self, offset: int, width: int) -> str:
        """The register or doorbell at ``offset`` of BAR 0."""
        return nvme_name(offset, width, self.stride)

    def _get(self, offset: int, width: int) -> int:
        return int.from_bytes(self._shadow[offset : offset + width], "little")

    # -- what the driver does -----------------------------------------------------------------

    def saw_read(self, offset: int, width: int, value: int) -> None:
        """The driver read ``value``."""
        if offset + width <= DOORBELLS:
            self._shadow[offset : offset + width] = value.to_bytes(width, "little")
            if offset <= _CSTS < offset + width:
                self._looked = True

    def saw_write(self, offset: int, width: int, value: int) -> str:
        """The driver wrote ``value``; why that has no effect, or nothing."""
        if offset >= DOORBELLS:
            return self._saw_doorbell(offset, width, value)
        reason = self._register_reason(offset, width)
        if reason:
            return reason
        was_enabled = self.enabled
        kept = self._get(_CSTS, 4)
        self._shadow[offset : offset + width] = value.to_bytes(width, "little")
        self._shadow[_CSTS : _CSTS + 4] = kept.to_bytes(4, "little")
        if self.enabled and not was_enabled:
            self._enable()
        elif was_enabled and not self.enabled:
            self._reset()
        return self._late_reason(offset, was_enabled=was_enabled)

    def _enable(self) -> None:
        aqa = self._get(_AQA, 4)
        self._reset()
        # What CSTS said before is over; a read will tell.
        self._shadow[_CSTS : _CSTS + 4] = bytes(4)
        self._looked = False
        sizes = ((aqa & 0xFFF) + 1, (aqa >> 16 & 0xFFF) + 1)
        for completion, at, size in ((False, _ASQ, sizes[0]), (True, _ACQ, sizes[1])):
            made = WatchedQueue(0, completion, self._get(at, 8) & ~0xFFF, size)
            self.queues[Doorbell(0, completion)] = made

    def _reset(self) -> None:
        self.queues.clear()
        self.deleted.clear()

    # -- registers ----------------------------------------------------------------------------

    def _register_reason(self, offset: int, width: int) -> str:
        register = nvme_register(offset)
        if register is None:
            place = Doorbell(3, completion=False)
            return (
                f"there is no register at {offset:#x}: doorbells begin at {DOORBELLS:#x}, the tail "
                f"of queue N at {DOORBELLS:#x} + 2N * {self.stride}, so that of queue 3 at "
                f"{place.offset(self.stride):#x}"
            )
        if not register.writable:
            return f"{register.name} is read-only"
        inside = offset - register.offset
        fits = width == register.width or (register.width == 8 and width == 4)
        if not fits or inside % width:
            return f"{register.name} takes accesses of {register.width} bytes, not {width}" + (
                f" at byte {inside}" if inside else ""
            )
        if offset in (_INTMS, _INTMC) and self.msix:
            return "interrupts are masked in the MSI-X table while MSI-X is enabled"
        return ""

    def _late_reason(self, offset: int, *, was_enabled: bool) -> str:
        if offset in (_AQA, _ASQ, _ASQ + 4, _ACQ, _ACQ + 4) and was_enabled:
            return "the admin queues are taken over when CC.EN becomes 1; it is 1 already"
        return ""

    # -- doorbells ----------------------------------------------------------------------------

    def _saw_doorbell(self, offset: int, width: int, value: int) -> str:
        found = doorbell(offset, self.stride)
        if found is None:
            return (
                f"no doorbell begins there: they are {self.stride} bytes apart (CAP.DSTRD)"
                f"{self._other_stride(offset)}"
            )
        if width != 4:
            return f"a doorbell is written with 4 bytes, not {width}"
        problem = self._controller_reason()
        if problem:
            return problem
        queue = self.queues.get(found)
        new = [] if queue is None else self._entries(queue, value)
        self._scan(found.queue, new)
        queue = self.queues.get(found)
        if queue is None or queue.refused:
            return self._missing_reason(found, queue, offset)
        reason = (self._head_reason if found.completion else self._tail_reason)(queue, value)
        if not reason:
            self._ring(queue, value, new)
        return reason or self._stalled(queue)

    def _controller_reason(self) -> str:
        if not self.enabled:
            return "the controller is not enabled: CC.EN is 0"
        status = self._get(_CSTS, 4)
        if self._looked and not status & 3:
            return "the controller is not ready: CSTS.RDY was 0 when the driver looked"
        if status & 2:
            return "the controller has stopped: CSTS.CFS is 1, and only a reset helps"
        return ""

    def _missing_reason(self, found: Doorbell, queue: WatchedQueue | None, offset: int) -> str:
        name = f"{'CQ' if found.completion else 'SQ'}{found.queue}"
        if queue is not None:
            return f"{name} does not exist: the controller refused to create it: {queue.refused}"
        if found in self.deleted:
            return f"{name} does not exist any more: the driver deleted it"
        listed = ", ".join(sorted(each.name for each in self.queues.values() if not each.refused))
        return (
            f"{name} does not exist: it was never created; there are {listed}"
            f"{self._other_stride(offset, found)}"
        )

    def _other_stride(self, offset: int, found: Doorbell | None = None) -> str:
        """Whether the offset makes sense to a driver that took another doorbell stride."""
        for stride in _STRIDES:
            meant = doorbell(offset, stride)
            # The first doorbells are near one another with every stride.
            if stride == self.stride or meant is None or not meant.queue:
                continue
            if found is not None and found.completion != meant.completion:
                continue
            queue = self.queues.get(meant)
            if queue is not None and not queue.refused:
                return (
                    f"; with a stride of {stride} it would be the {meant}, which is at "
                    f"{meant.offset(self.stride):#x}"
                )
        return ""

    def _tail_reason(self, queue: WatchedQueue, value: int) -> str:
        if value >= queue.size:
            return f"{value} is no entry of {queue.name}, which has {queue.size}"
        room = queue.size - 1 - queue.held
        if value == queue.tail:
            full = f": it holds {queue.held} commands and is full" if not room else ""
            return f"the tail of {queue.name} is {value} already, nothing is submitted{full}"
        wanted = (value - queue.tail) % queue.size
        if wanted > room:
            return (
                f"{queue.name} is full: {wanted} more commands do not fit, {queue.held} of "
                f"{queue.size - 1} are not fetched yet (head {queue.head}, tail {queue.tail})"
            )
        if not self._mastering():
            return "the controller may not fetch the command: bus mastering is off"
        return ""

    def _head_reason(self, queue: WatchedQueue, value: int) -> str:
        if value >= queue.size:
            return f"{value} is no entry of {queue.name}, which has {queue.size}"
        if value == queue.head:
            return f"the head of {queue.name} is {value} already, nothing is released"
        if (value - queue.head) % queue.size > queue.held:
            return (
                f"nothing was posted at {queue.name} up to {value} (head {queue.head}, "
                f"{queue.held} completions)"
            )
        return ""

    def _stalled(self, queue: WatchedQueue) -> str:
        """Of a submission queue that was rung: whether its completions have no room."""
        if queue.completion:
            return ""
        completions = self.queues.get(Doorbell(queue.partner, completion=True))
        if completions is not None and completions.held == completions.size - 1:
            return (
                f"{completions.name} is full: its head doorbell was not written since "
                f"{completions.held} completions"
            )
        return ""

    # -- queues -------------------------------------------------------------------------------

    def _ring(self, queue: WatchedQueue, value: int, new: list[bytes]) -> None:
        if queue.completion:
            queue.head = value
            return
        queue.tail = value
        for entry in new:
            queue.flying[_cid(entry)] += 1
            if not queue.queue:
                self._note_command(queue, entry)

    def _entries(self, queue: WatchedQueue, value: int) -> list[bytes]:
        """The commands between the tail and ``value``."""
        found: list[bytes] = []
        index = queue.tail
        while not queue.completion and value < queue.size and index != value:
            entry = self._read(queue.iova + index * _SQE_SIZE, _SQE_SIZE)
            if entry is not None:
                found.append(entry)
            index = (index + 1) % queue.size
        return found

    def _note_command(self, queue: WatchedQueue, entry: bytes) -> None:
        """Take an admin command, if it creates a queue or deletes one."""
        opcode, prp1 = entry[0], int.from_bytes(entry[24:32], "little")
        cdw10, cdw11 = struct.unpack_from("<II", entry, 40)
        queue.sent[_cid(entry)] = opcode, cdw10
        if opcode in (_CREATE_SQ, _CREATE_CQ):
            self._create(opcode == _CREATE_CQ, prp1, cdw10, cdw11)

    def _create(self, completion: bool, iova: int, cdw10: int, cdw11: int) -> None:
        key = Doorbell(cdw10 & 0xFFFF, completion)
        known = self.queues.get(key)
        if known is None or known.refused:
            self.queues[key] = WatchedQueue(
                key.queue,
                completion,
                iova,
                (cdw10 >> 16) + 1,
                partner=0 if completion else cdw11 >> 16,
            )

    def _scan(self, submitter: int, new: list[bytes]) -> None:
        """Read the completions that were posted, but none of ``new`` commands of a queue.

        Those are only now being sent; by the time that this is asked they may be complete.
        """
        fresh = {(submitter, _cid(entry)) for entry in new}
        for queue in tuple(self.queues.values()):
            if queue.completion and not queue.refused:
                while self._take_completion(queue, fresh):
                    pass

    def _take_completion(self, queue: WatchedQueue, fresh: set[tuple[int, int]]) -> bool:
        entry = self._read(queue.iova + queue.tail * _CQE_SIZE, _CQE_SIZE)
        if entry is None or queue.held == queue.size - 1:
            return False
        head, submitter, cid, status = struct.unpack_from("<HHHH", entry, 8)
        if status & 1 != queue.phase:
            return False
        submissions = self.queues.get(Doorbell(submitter, completion=False))
        older = submissions is not None and submissions.flying[cid] > 0
        if not older and (submitter, cid) in fresh:
            return False
        queue.tail = (queue.tail + 1) % queue.size
        if not queue.tail:
            queue.phase ^= 1
        if submissions is not None and head < submissions.size:
            submissions.head = head
            submissions.flying[cid] -= older
            sent = submissions.sent.pop(cid, None)
            if sent is not None:
                self._admin_completed(*sent, status >> 1)
        return True

    def _admin_completed(self, opcode: int, cdw10: int, status: int) -> None:
        key = Doorbell(cdw10 & 0xFFFF, opcode in (_CREATE_CQ, _DELETE_CQ))
        if opcode in (_CREATE_SQ, _CREATE_CQ):
            queue = self.queues.get(key)
            if queue is not None and status & 0x7FF:
                queue.refused = status_text(status)
        elif opcode in (_DELETE_SQ, _DELETE_CQ) and not status & 0x7FF and key.queue:
            self.queues.pop(key, None)
            self.deleted.add(key)

    def _read(self, gpa: int, length: int) -> bytes | None:
        try:
            return self._memory.read(gpa, length)
        except UsageError:
            return None


def _cid(entry: bytes) -> int:
    """The identifier of a submission queue entry."""
    return int.from_bytes(entry[2:4], "little")


def status_text(status: int) -> str:
    """A completion's status field in words."""
    kind, code = status >> 8 & 7, status & 0xFF
    name = status_name(kind, code)
    return f"{name} ({kind}/{code:#04x})" if name else f"status {kind}/{code:#04x}"
