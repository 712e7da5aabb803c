"""One interrupt vector: an eventfd whose counter is the number of interrupts."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vfiokit.errors import DeviceTimeoutError, UsageError
from vfiokit.kernel.port import Kernel

if TYPE_CHECKING:
    import asyncio


class Vector:
    """An interrupt that can be waited for: blocking, polled, by selector, or in asyncio.

    Counts are never lost: each way of taking them returns how many interrupts came since the last
    time, whichever way that was.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._fd = kernel.eventfd()
        self._name = name
        self._pending = 0
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: deque[asyncio.Future[int]] = deque()
        self._callbacks: list[Callable[[int], None]] = []

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<Vector {self._name}{'' if self._fd >= 0 else ' closed'}>"

    def fileno(self) -> int:
        """The eventfd, readable when interrupts came: for ``select`` and ``selectors``."""
        if self._fd < 0:
            raise UsageError(f"{self._name} is disabled")
        return self._fd

    def poll(self) -> int:
        """Interrupts since last taken, without waiting; 0 when there were none."""
        count, self._pending = self._pending, 0
        try:
            return count + self._kernel.eventfd_read(self.fileno())
        except BlockingIOError:
            return count

    def wait(self, timeout_s: float | None = None) -> int:
        """Block until an interrupt came; returns how many since last taken, at least 1.

        Raises :class:`DeviceTimeoutError` after ``timeout_s`` seconds without one.
        """
        count = self.poll()
        if count:
            return count
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not count:
            if deadline is None:
                self._poll.poll()
            else:
                left = deadline - time.monotonic()
                if not self._poll.poll(max(left, 0) * 1000) and left <= 0:
                    raise self._timeout(timeout_s)
            count = self.poll()
        return count

    async def wait_async(self, timeout_s: float | None = None) -> int:
        """As :meth:`wait`, in asyncio; several tasks may wait, each interrupt wakes the first."""
        count = self.poll()
        if count:
            return count
        loop = self._join_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._waiters.append(future)
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._expire, future)
        try:
            return await future
        except DeviceTimeoutError:
            raise self._timeout(timeout_s) from None
        finally:
            if timer is not None:
                timer.cancel()
            if future.cancelled() and future in self._waiters:
                self._waiters.remove(future)

    def subscribe(self, callback: Callable[[int], None]) -> None:
        """Call ``callback(count)`` from the running asyncio loop on every wake-up.

        Subscribers get the counts that no waiting task takes. Subscribing twice changes nothing,
        but moves the vector to the loop that runs now.
        """
        self._join_loop()
        if callback not in self._callbacks:
            self._callbacks.append(callback)

    def unsubscribe(self, callback: Callable[[int], None]) -> None:
        """Stop calling ``callback``. Idempotent."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def close(self) -> None:
        """Leave the loop and close the eventfd; tasks that wait get :class:`UsageError`."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._leave_loop(fd)
        self._poll.unregister(fd)
        self._kernel.close(fd)

    # -- asyncio ------------------------------------------------------------------------------

    def _join_loop(self) -> asyncio.AbstractEventLoop:
        """Register with the running loop once; a new loop takes over from an old one."""
        from asyncio import get_running_loop

        loop = get_running_loop()
        if loop is not self._loop:
            self._leave_loop(self.fileno())
            loop.add_reader(self._fd, self._ready)
            self._loop = loop
        return loop

    def _leave_loop(self, fd: int) -> None:
        loop, self._loop = self._loop, None
        if loop is None or loop.is_closed():
            self._waiters.clear()
            return
        loop.remove_reader(fd)
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_exception(UsageError(f"{self._name} was disabled while waited for"))

    def _ready(self) -> None:
        try:
            self._deliver(self._kernel.eventfd_read(self._fd))
        except BlockingIOError:
            return

    def _deliver(self, count: int) -> None:
        count += self._pending
        self._pending = 0
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(count)
                return
        if not self._callbacks:
            self._pending = count
        for callback in tuple(self._callbacks):
            callback(count)

    def _expire(self, future: asyncio.Future[int]) -> None:
        if not future.done():
            self._waiters.remove(future)
            future.set_exception(DeviceTimeoutError())

    def _timeout(self, timeout_s: float | None) -> DeviceTimeoutError:
        return DeviceTimeoutError(f"no interrupt on {self._name} within {timeout_s} s")
