"""A submission and completion queue pair: the path that every command takes.

Source: NVM Express Base Specification 2.0 §3.3 (queues, phase tag), §3.1.3.17 (doorbells).

Completions are plain tuples and commands are packed by one precompiled codec, because everything
here is paid per command.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from vfiokit.driver.nvme.prp import ListPage, ListPool
from vfiokit.driver.nvme.spec import CQE_SIZE, DOORBELLS, SQE, SQE_SIZE
from vfiokit.errors import DeviceTimeoutError, DriverError, UsageError
from vfiokit.vfio.address_space import AddressSpace
from vfiokit.vfio.register import Registers
from vfiokit.vfio.vector import Vector

if TYPE_CHECKING:
    import asyncio

Completion: TypeAlias = tuple[int, int, int]
"""Command id, status (phase removed: SC 7:0, SCT 10:8, DNR 14; 0 is success), dword 0."""

Command: TypeAlias = tuple[int, int, int, int, int, int, int]
"""Opcode, nsid, PRP1, PRP2, cdw10, cdw11, cdw12."""

_pack = SQE.pack_into
_WANTED = 1
_ABANDONED = 2
_CHECK_INTERVAL_S = 1.0


def no_check(doing: str) -> str:
    """The check of a queue that belongs to no controller: finds nothing."""
    del doing
    return ""


class QueuePair:
    """Queue pair ``queue_id`` with ``entries`` slots in each direction.

    At most ``entries - 1`` commands are outstanding; that alone keeps both queues from
    overflowing. ``check`` is called when a wait finds nothing: it raises
    :class:`~vfiokit.errors.ControllerFatalError` if the controller is dead, and returns its state
    in words. One thread at a time.
    """

    def __init__(
        self,
        space: AddressSpace,
        registers: Registers,
        queue_id: int,
        entries: int,
        *,
        doorbell_stride: int = 4,
        page_size: int = 4096,
        vector: Vector | None = None,
        pool: ListPool | None = None,
        check: Callable[[str], str] = no_check,
    ) -> None:
        if not 2 <= entries <= 65536:
            raise UsageError(f"a queue has 2 to 65536 entries, not {entries}")
        self.queue_id = queue_id
        self.entries = entries
        self.vector = vector
        """Signals completions; ``None``: they are polled for."""
        self._check = check
        self._pool = pool
        sq_length = -(-entries * SQE_SIZE // page_size) * page_size
        cq_length = -(-entries * CQE_SIZE // page_size) * page_size
        self._memory = space.allocate(sq_length + cq_length, alignment=page_size)
        self.sq_iova = self._memory.iova
        self.cq_iova = self._memory.iova + sq_length
        self._cq_bytes = self._memory.view[sq_length : sq_length + cq_length]
        self._sq = self._memory.view[:sq_length]
        self._cq = self._cq_bytes.cast("I")
        self._write32 = registers.write32
        self._sq_doorbell = DOORBELLS + 2 * queue_id * doorbell_stride
        self._cq_doorbell = self._sq_doorbell + doorbell_stride
        self._lists: dict[int, list[ListPage]] = {}
        self._results: dict[int, Completion] = {}
        self._futures: dict[int, asyncio.Future[Completion]] = {}
        self._turns: deque[asyncio.Future[None]] = deque()
        self.restart()

    def restart(self) -> None:
        """Forget everything outstanding: what a controller reset does to the queue.

        Only while the controller does not use the queue.
        """
        self._memory.view[:] = bytes(self._memory.length)
        for pages in self._lists.values():
            assert self._pool is not None
            self._pool.give_back(pages)
        self._lists.clear()
        self._results.clear()
        self._fail_waiters()
        self._tail = 0
        self._rung = 0
        self._head = 0
        self._phase = 1 << 16
        # Command ids from 0 up; the slot above is never used, so a full queue is no empty one.
        self._free = list(range(self.entries - 2, -1, -1))
        self._busy = bytearray(self.entries)

    def __repr__(self) -> str:
        return f"<QueuePair {self}>"

    def __str__(self) -> str:
        return (
            f"queue {self.queue_id}: {self.outstanding} of {self.entries - 1} commands "
            f"outstanding, tail {self._tail} (told {self._rung}), head {self._head}, "
            f"phase {self._phase >> 16}"
        )

    @property
    def outstanding(self) -> int:
        """Commands submitted and not completed."""
        return self.entries - 1 - len(self._free) - len(self._results)

    @property
    def free_slots(self) -> int:
        """How many more commands can be submitted now."""
        return len(self._free)

    # -- submission ---------------------------------------------------------------------------

    def submit(
        self,
        opcode: int,
        nsid: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
        cdw13: int = 0,
        cdw14: int = 0,
        cdw15: int = 0,
    ) -> int:
        """Place one command; returns its id. The controller learns of it by :meth:`ring`.

        Raises :class:`UsageError` when :attr:`free_slots` is 0.
        """
        if not self._free:
            raise UsageError(f"{self} is full", hint="reap completions first")
        cid = self._free.pop()
        tail = self._tail
        _pack(
            self._sq, tail << 6, opcode, 0, cid, nsid, 0, 0, prp1, prp2,
            cdw10, cdw11, cdw12, cdw13, cdw14, cdw15,
        )  # fmt: skip
        self._busy[cid] = _WANTED
        tail += 1
        self._tail = tail if tail != self.entries else 0
        return cid

    def submit_many(self, commands: Iterable[Command]) -> list[int]:
        """Place commands and ring once; returns their ids, in order.

        Raises :class:`UsageError` when they do not all fit; those that did are outstanding then.
        """
        free, busy, sq, entries, tail = self._free, self._busy, self._sq, self.entries, self._tail
        cids: list[int] = []
        pack = _pack
        try:
            for opcode, nsid, prp1, prp2, cdw10, cdw11, cdw12 in commands:
                cid = free.pop()
                pack(
                    sq, tail << 6, opcode, 0, cid, nsid, 0, 0, prp1, prp2,
                    cdw10, cdw11, cdw12, 0, 0, 0,
                )  # fmt: skip
                busy[cid] = _WANTED
                cids.append(cid)
                tail += 1
                if tail == entries:
                    tail = 0
        except IndexError:
            raise UsageError(f"{self} is full", hint="reap completions first") from None
        finally:
            self._tail = tail
            self.ring()
        return cids

    def ring(self) -> None:
        """Tell the controller about everything placed since the last time."""
        tail = self._tail
        # A doorbell written twice with one value is an error to the controller.
        if tail != self._rung:
            self._rung = tail
            self._write32(self._sq_doorbell, tail)

    def attach_list(self, cid: int, pages: list[ListPage]) -> None:
        """Give ``pages`` back to the pool when command ``cid`` completes."""
        if pages:
            self._lists[cid] = pages

    # -- completion ---------------------------------------------------------------------------

    def poll(self) -> Completion | None:
        """The next completion, if there is one."""
        head = self._head
        slot = head << 2
        word = self._cq[slot + 3]
        if word & 0x10000 != self._phase:
            return None
        cid = word & 0xFFFF
        state = self._busy[cid] if cid < self.entries else 0
        if not state:
            raise self._unknown(cid)
        result = self._cq[slot]
        head += 1
        if head == self.entries:
            head = 0
            self._phase ^= 0x10000
        self._head = head
        self._write32(self._cq_doorbell, head)
        self._busy[cid] = 0
        self._free.append(cid)
        if self._lists:
            self._release_list(cid)
        if state == _ABANDONED:
            return self.poll()
        return cid, word >> 17, result

    def reap(self, limit: int = 65536) -> list[Completion]:
        """Up to ``limit`` completions, with one write of the doorbell."""
        cq, busy, free, entries = self._cq, self._busy, self._free, self.entries
        head, phase = self._head, self._phase
        found: list[Completion] = []
        try:
            while len(found) < limit:
                slot = head << 2
                word = cq[slot + 3]
                if word & 0x10000 != phase:
                    break
                cid = word & 0xFFFF
                state = busy[cid] if cid < entries else 0
                if state != _WANTED:
                    if not state:
                        raise self._unknown(cid)
                    self._release_list(cid)
                else:
                    found.append((cid, word >> 17, cq[slot]))
                busy[cid] = 0
                free.append(cid)
                head += 1
                if head == entries:
                    head = 0
                    phase ^= 0x10000
        finally:
            if head != self._head:
                self._head, self._phase = head, phase
                self._write32(self._cq_doorbell, head)
        if self._lists:
            for done in found:
                self._release_list(done[0])
        return found

    def take(self, cid: int) -> Completion | None:
        """The completion of ``cid`` if it arrived, without waiting; others are kept."""
        done = self._results.pop(cid, None)
        if done is not None:
            self._free.append(cid)
            return done
        while True:
            done = self.poll()
            if done is None or done[0] == cid:
                return done
            self._keep(done)

    def take_any(self, cids: Sequence[int]) -> Completion | None:
        """As :meth:`take`, for whichever of ``cids`` arrived."""
        for cid in cids:
            done = self.take(cid)
            if done is not None:
                return done
        return None

    def wait(self, cid: int, timeout_s: float) -> Completion:
        """The completion of command ``cid``; others that arrive are kept for their own wait.

        Sleeps on the queue's vector, or polls without one. Raises :class:`DeviceTimeoutError`
        after ``timeout_s`` seconds; the command stays outstanding then, and its late completion
        is dropped.
        """
        self._require(cid)
        self.ring()
        done = self.take(cid)
        if done is not None:
            return done
        try:
            return self.wait_any((cid,), timeout_s)
        except BaseException:
            self.abandon(cid)
            raise

    def wait_any(self, cids: Sequence[int], timeout_s: float) -> Completion:
        """The first completion among ``cids``; after a timeout all are still waited for."""
        self.ring()
        now = time.monotonic()
        deadline, check_at = now + timeout_s, now + _CHECK_INTERVAL_S
        while (done := self.take_any(cids)) is None:
            now = time.monotonic()
            if now >= deadline:
                raise self._timeout(cids, timeout_s)
            if now >= check_at:
                check_at = now + _CHECK_INTERVAL_S
                self._check(f"waiting on {self}")
            self._pause(min(deadline, check_at) - now)
        return done

    def wait_many(self, cids: Iterable[int], timeout_s: float) -> list[Completion]:
        """The completions of all ``cids``, in that order, within ``timeout_s`` seconds together."""
        deadline = time.monotonic() + timeout_s
        return [self.wait(cid, max(deadline - time.monotonic(), 0)) for cid in cids]

    async def wait_async(self, cid: int, timeout_s: float) -> Completion:
        """As :meth:`wait`, in asyncio; any number of tasks may wait on one queue."""
        import asyncio

        self._require(cid)
        self.ring()
        if self.vector is not None:
            # Before the look into the queue: an interrupt after it finds the subscriber.
            self.vector.subscribe(self._deliver)
        done = self.take(cid)
        if done is not None:
            return done
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._futures[cid] = future
        try:
            async with asyncio.timeout(timeout_s):
                while self.vector is None and not future.done():
                    self._deliver(0)
                    await asyncio.sleep(0)
                return await future
        except TimeoutError:
            raise self._timeout((cid,), timeout_s) from None
        finally:
            if self._futures.pop(cid, None) is not None:
                self.abandon(cid)
            self._wake_one()

    async def room_async(self, timeout_s: float) -> None:
        """Wait until a command can be submitted, while other tasks wait for theirs."""
        import asyncio

        try:
            async with asyncio.timeout(timeout_s):
                while not self._free:
                    await self._turn()
        except TimeoutError:
            raise DeviceTimeoutError(f"no free slot within {timeout_s} s; {self}") from None

    async def _turn(self) -> None:
        import asyncio

        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # A turn that was granted to a task that no longer wants it goes to the next one.
            if turn in self._turns:
                self._turns.remove(turn)
            else:
                self._wake_one()
            raise

    def abandon(self, cid: int) -> None:
        """Drop the completion of ``cid``, now or whenever it comes."""
        if self._results.pop(cid, None) is not None:
            self._free.append(cid)
        elif self._busy[cid]:
            self._busy[cid] = _ABANDONED

    def execute(self, timeout_s: float, opcode: int, nsid: int = 0, *words: int) -> Completion:
        """Submit, ring and wait for one command; arguments after ``opcode`` as :meth:`submit`."""
        cid = self.submit(opcode, nsid, *words)
        return self.wait(cid, timeout_s)

    def close(self) -> None:
        """Free the queue's memory. Idempotent. The controller must not use it any more."""
        if self._memory.closed:
            return
        if self.vector is not None:
            self.vector.unsubscribe(self._deliver)
        self._fail_waiters()
        self._cq.release()
        self._cq_bytes.release()
        self._sq.release()
        for pages in self._lists.values():
            assert self._pool is not None
            self._pool.give_back(pages)
        self._lists.clear()
        self._memory.close()

    # -- inside -------------------------------------------------------------------------------

    def _wake_one(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _fail_waiters(self) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(DriverError(f"queue {self.queue_id} was reset or closed"))
        self._futures.clear()

    def _require(self, cid: int) -> None:
        if cid in self._results:
            return
        if not (0 <= cid < self.entries and self._busy[cid] == _WANTED):
            raise UsageError(f"queue {self.queue_id}: command {cid} is not outstanding")

    def _keep(self, done: Completion) -> None:
        """Hold a completion that :meth:`poll` just returned until its own wait asks for it."""
        cid = done[0]
        future = self._futures.pop(cid, None)
        if future is not None:
            if not future.done():
                future.set_result(done)
            return
        # The id stays taken, or a new command under it would find this completion.
        self._free.pop()
        self._results[cid] = done

    def _deliver(self, count: int) -> None:
        """An interrupt came, in asyncio: hand out whatever completed."""
        del count
        while (done := self.poll()) is not None:
            self._keep(done)

    def _pause(self, left_s: float) -> None:
        """Sleep until the next interrupt, or just yield when there is none to come."""
        if self.vector is None:
            time.sleep(0)
            return
        with contextlib.suppress(DeviceTimeoutError):
            self.vector.wait(max(left_s, 0))

    def _release_list(self, cid: int) -> None:
        pages = self._lists.pop(cid, None)
        if pages is not None:
            assert self._pool is not None
            self._pool.give_back(pages)

    def _unknown(self, cid: int) -> DriverError:
        return DriverError(
            f"queue {self.queue_id}: the controller completed command {cid}, which is not "
            f"outstanding ({self})",
            hint="reset the controller",
        )

    def _timeout(self, cids: Sequence[int], timeout_s: float) -> DeviceTimeoutError:
        state = self._check(f"waiting on {self}")
        names = ", ".join(str(cid) for cid in cids)
        return DeviceTimeoutError(
            f"no completion of command {names} within {timeout_s} s; {self}"
            f"{'; ' if state else ''}{state}"
        )
