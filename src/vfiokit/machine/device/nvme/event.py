"""Asynchronous events: outstanding requests, queued events, masking by type.

Source: NVM Express Base Specification 2.0 §5.2. A reported event masks its type until the host
reads the log page named in the completion with Retain Asynchronous Event cleared.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

ERROR = 0
HEALTH = 1
NOTICE = 2

LOG_ERROR = 0x01
LOG_HEALTH = 0x02
LOG_CHANGED_NAMESPACES = 0x04


class Event(NamedTuple):
    """What dword 0 of an Asynchronous Event Request completion says."""

    kind: int
    information: int
    log_page: int

    @property
    def result(self) -> int:
        """Dword 0 of the completion."""
        return self.log_page << 16 | self.information << 8 | self.kind


INVALID_DOORBELL_REGISTER = Event(ERROR, 0x00, LOG_ERROR)
INVALID_DOORBELL_VALUE = Event(ERROR, 0x01, LOG_ERROR)
TEMPERATURE_THRESHOLD = Event(HEALTH, 0x01, LOG_HEALTH)
NAMESPACE_CHANGED = Event(NOTICE, 0x00, LOG_CHANGED_NAMESPACES)


class EventQueue:
    """Pairs outstanding requests with events; identical waiting events are merged."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.requests: deque[int] = deque()
        """Command identifiers of outstanding requests, oldest first."""
        self.waiting: deque[Event] = deque()
        self.masked: set[int] = set()

    def clear(self) -> None:
        """Forget everything, as a controller reset does."""
        self.requests.clear()
        self.waiting.clear()
        self.masked.clear()

    def report(self, event: Event) -> None:
        """Something happened."""
        if event not in self.waiting:
            self.waiting.append(event)

    def take(self) -> tuple[int, Event] | None:
        """A request's command identifier and the event it completes with, if there is one."""
        if not self.requests:
            return None
        for event in self.waiting:
            if event.kind not in self.masked:
                self.waiting.remove(event)
                self.masked.add(event.kind)
                return self.requests.popleft(), event
        return None

    def acknowledge(self, log_page: int) -> None:
        """The host read ``log_page``: its event type may be reported again."""
        kind = {LOG_ERROR: ERROR, LOG_HEALTH: HEALTH, LOG_CHANGED_NAMESPACES: NOTICE}.get(log_page)
        if kind is not None:
            self.masked.discard(kind)
