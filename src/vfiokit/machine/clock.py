"""Virtual time: a deterministic queue of events, no threads.

In ``auto`` mode (the default) the kernel surface settles the clock after each entry, so work that
a device schedules is done before the caller looks again. Tests that want to see a device busy set
``auto = False`` and call :meth:`Clock.advance` themselves.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from vfiokit.errors import MachineError

_SETTLE_LIMIT = 1_000_000


class Clock:
    """Virtual nanoseconds since the machine was switched on."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.auto = True
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._running = False

    @property
    def pending(self) -> bool:
        """Whether anything is scheduled."""
        return bool(self._events)

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run ``action`` when ``delay_ns`` virtual nanoseconds have passed."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now_ns + max(delay_ns, 0), self._sequence, action))

    def advance(self, duration_ns: int) -> None:
        """Let time pass, running what falls due, in order."""
        end = self.now_ns + duration_ns
        self._run(end)
        self.now_ns = max(self.now_ns, end)

    def settle(self) -> None:
        """Run until nothing is scheduled, if in ``auto`` mode. Nested calls do nothing."""
        if self.auto and self._events and not self._running:
            self._run(None)

    def _run(self, end: int | None) -> None:
        if self._running:
            return
        self._running = True
        try:
            for _ in range(_SETTLE_LIMIT):
                if not self._events or (end is not None and self._events[0][0] > end):
                    return
                due, _sequence, action = heapq.heappop(self._events)
                self.now_ns = max(self.now_ns, due)
                action()
            raise MachineError(
                f"{_SETTLE_LIMIT} events without the machine coming to rest",
                hint="a device model reschedules itself for ever; set clock.auto = False",
            )
        finally:
            self._running = False
