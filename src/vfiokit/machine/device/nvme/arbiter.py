"""Doorbells, arbitration, fetching commands and posting completions.

A doorbell write only notes the new index and schedules work ``latency_ns`` later on the virtual
clock. One piece of work is one round over the submission queues that hold commands: each gets a
burst (Arbitration Burst) and the next round is scheduled while commands remain, so that virtual
time passes between rounds and no feedback through the fabric can keep one round alive for ever.

Source: NVM Express Base Specification 2.0 §3.4.4 (round robin), §3.3.1, §3.1.2.1.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vfiokit.machine.device.nvme import admin, io
from vfiokit.machine.device.nvme.command import ENTRY_SIZE, Command, completion, parse
from vfiokit.machine.device.nvme.event import (
    INVALID_DOORBELL_REGISTER,
    INVALID_DOORBELL_VALUE,
    Event,
)
from vfiokit.machine.device.nvme.queue import CompletionQueue, SubmissionQueue
from vfiokit.machine.device.nvme.shadow import ShadowDoorbells
from vfiokit.machine.device.nvme.status import CommandFailedError, Status, status_field
from vfiokit.machine.txn import DmaError

if TYPE_CHECKING:
    from vfiokit.machine.device.nvme.controller import Controller


class Arbiter:
    """Moves commands from submission queues to their handlers and completions back."""

    def __init__(self, controller: Controller, latency_ns: int) -> None:
        self._controller = controller
        self.latency_ns = latency_ns
        self.shadow: ShadowDoorbells | None = None
        self._ready: dict[int, SubmissionQueue] = {}
        self._owed: deque[tuple[int, int, int]] = deque()
        """Admin completions not tied to a fetch: command identifier, status field, result."""
        self._scheduled = False
        self.epoch = 0
        """Counts resets; work scheduled in an earlier epoch is void."""

    def reset(self) -> None:
        """Forget all work; what is scheduled for the old queues will find nothing to do."""
        self.epoch += 1
        self._scheduled = False
        self._ready.clear()
        self._owed.clear()
        self.shadow = None

    # -- doorbells ----------------------------------------------------------------------------

    def ring(self, index: int, value: int) -> None:
        """A doorbell write: even indexes are tails of submission queues, odd heads of completion
        queues. An invalid register or value becomes an asynchronous event and changes nothing.

        Writing the value a doorbell already has is accepted, though a controller may object.
        """
        controller = self._controller
        if not controller.running:
            return
        queue_id = index >> 1
        if index & 1:
            completions = controller.completion.get(queue_id)
            if completions is None:
                self.report(INVALID_DOORBELL_REGISTER)
            else:
                self._set_head(completions, value)
                controller.interrupts.refresh()
                if self._ready or not queue_id:  # something may have waited for the room
                    self.wake()
        else:
            submissions = controller.submission.get(queue_id)
            if submissions is None:
                self.report(INVALID_DOORBELL_REGISTER)
            else:
                self._set_tail(submissions, value)
                self.wake()

    def report(self, event: Event) -> None:
        """Queue an asynchronous event and see to its delivery."""
        self._controller.events.report(event)
        self.wake()

    def owe(self, cid: int, status: Status, result: int = 0) -> None:
        """Complete an admin command that was fetched earlier."""
        self._owed.append((cid, status_field(status), result))

    def wake(self) -> None:
        """Schedule a round, unless one is."""
        if not self._scheduled:
            self._scheduled = True
            epoch = self.epoch
            self._controller.after(self.latency_ns, lambda: self._round(epoch))

    def owed_completions(self) -> list[tuple[int, int, int]]:
        """What :meth:`owe` was given and is not posted yet, for snapshots."""
        return list(self._owed)

    def resume(self, owed: list[tuple[int, int, int]]) -> None:
        """Take up owed completions and queues with commands, after a snapshot was loaded."""
        self._owed.extend(owed)
        self._ready.update(self._controller.submission)
        self.wake()

    def _set_tail(self, queue: SubmissionQueue, value: int) -> None:
        if not queue.accepts_tail(value):
            self.report(INVALID_DOORBELL_VALUE)
            return
        queue.tail = value
        if queue.pending:
            self._ready[queue.queue_id] = queue

    def _set_head(self, queue: CompletionQueue, value: int) -> None:
        if not queue.accepts_head(value):
            self.report(INVALID_DOORBELL_VALUE)
            return
        queue.head = value

    # -- rounds -------------------------------------------------------------------------------

    def _round(self, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self._scheduled = False
        controller = self._controller
        more = False
        for queue_id, queue in tuple(self._ready.items()):
            if not controller.running:
                return
            if controller.submission.get(queue_id) is not queue:
                self._ready.pop(queue_id, None)
                continue
            try:
                self._burst(queue)
            except DmaError as error:
                # A real controller cannot go on either: it lost a queue it depends on.
                controller.fail(f"submission queue {queue_id} cannot be read: {error}")
            if epoch != self.epoch:
                return
            if not queue.pending:
                self._ready.pop(queue_id, None)
            elif queue.completions.room:
                more = True
        if controller.running:
            self._deliver()
            if more:
                self.wake()

    def _burst(self, queue: SubmissionQueue) -> None:
        """Fetch and run one turn of ``queue``; a full completion queue stalls it."""
        completions = queue.completions
        self._synchronise(queue)
        room = completions.room
        iova, count = queue.contiguous(min(self._controller.features.burst, room))
        if not count:
            return
        entries = self._controller.memory.read(iova, count * ENTRY_SIZE)
        self._run(queue, parse(entries))
        if self.shadow is not None and queue.queue_id and not queue.pending:
            # Ask for a doorbell, then look again: the host may have moved on in between.
            self.shadow.arm_tail(queue.queue_id, queue.tail)
            self._set_tail(queue, self.shadow.tail(queue.queue_id))

    def _run(self, queue: SubmissionQueue, commands: list[Command]) -> None:
        epoch = self.epoch
        completions = queue.completions
        posted = bytearray()
        start = 0
        for command in commands:
            head = queue.consume()
            outcome = self._execute(queue.queue_id, command)
            if epoch != self.epoch:
                return
            if outcome is None:
                continue
            if not posted:
                start = completions.next_iova
            posted += completion(
                outcome[0], head, queue.queue_id, command.cid, outcome[1], completions.phase
            )
            completions.advance()
            if not completions.tail:
                self._controller.memory.write(start, posted)
                posted = bytearray()
        if posted:
            self._controller.memory.write(start, posted)
        self._signal(completions)

    def _execute(self, queue_id: int, command: Command) -> tuple[int, int] | None:
        """Result and status field of a command; ``None`` when it completes later."""
        controller = self._controller
        location, lba = 0xFFFF, 0
        try:
            if queue_id:
                return io.execute(controller, command), 0
            result = admin.execute(controller, command)
        except CommandFailedError as error:
            status, location, lba = error.status, error.location, error.lba
        except DmaError:
            status = Status.DATA_TRANSFER_ERROR
        else:
            return None if result is None else (result, 0)
        field = status_field(status)
        if status in (Status.WRITE_FAULT, Status.UNRECOVERED_READ_ERROR):
            controller.health.media_errors += 1
        controller.health.record_error(
            sq_id=queue_id,
            cid=command.cid,
            status=field,
            location=location,
            lba=lba,
            nsid=command.nsid,
        )
        return 0, field

    def _deliver(self) -> None:
        """Post owed completions and events to the admin queue, as far as there is room."""
        controller = self._controller
        queue = controller.submission[0]
        completions = queue.completions
        posted = False
        while completions.room:
            if self._owed:
                cid, status, result = self._owed.popleft()
            else:
                pair = controller.events.take()
                if pair is None:
                    break
                cid, status, result = pair[0], 0, pair[1].result
            entry = completion(result, queue.head, 0, cid, status, completions.phase)
            controller.memory.write(completions.next_iova, entry)
            completions.advance()
            posted = True
        if posted:
            self._signal(completions)

    def _signal(self, completions: CompletionQueue) -> None:
        controller = self._controller
        controller.interrupts.post(completions)
        if self.shadow is not None and completions.queue_id and controller.interrupts.level:
            # The pin falls on a head doorbell, so every one of them is wanted.
            self.shadow.arm_head(completions.queue_id, completions.head)

    def _synchronise(self, queue: SubmissionQueue) -> None:
        """Take tail and, when it matters, head from the shadow doorbells."""
        shadow = self.shadow
        if shadow is None or not queue.queue_id:
            return
        self._set_tail(queue, shadow.tail(queue.queue_id))
        completions = queue.completions
        if not completions.room:
            self._set_head(completions, shadow.head(completions.queue_id))
        if not completions.room:
            shadow.arm_head(completions.queue_id, completions.head)
            self._set_head(completions, shadow.head(completions.queue_id))
