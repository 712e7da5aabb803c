"""Eventfds that the kernel side holds: signalled by devices, or watched for the caller's signal.

The descriptors are real, so a program can poll them. The kernel keeps its own duplicate, as Linux
keeps a reference: closing the program's descriptor does not take the event away.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from contextlib import suppress

from vfiokit.kernel.linux import close, eventfd_read, eventfd_write
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.open_file import FIRST_FD


class Event:
    """A reference to an eventfd (``eventfd_ctx_fdget``).

    Raises ``OSError`` EBADF for a descriptor that is not open, EINVAL for one of another kind.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        if fd >= FIRST_FD:
            raise failure(errno.EINVAL, f"descriptor {fd} is a file of this machine, no eventfd")
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            raise failure(errno.EBADF, f"descriptor {fd} is not open") from None
        if target != "anon_inode:[eventfd]":
            raise failure(errno.EINVAL, f"descriptor {fd} is no eventfd")
        self._fd = os.dup(fd)

    def signal(self) -> None:
        """Add 1 to the counter, unless it is full."""
        with suppress(BlockingIOError):
            eventfd_write(self._fd, 1)

    def take(self) -> bool:
        """Take the counter, without ever blocking; whether it was not 0."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if not poller.poll(0):
            return False
        eventfd_read(self._fd)
        return True

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()

    def close(self) -> None:
        """Let go of the eventfd. Idempotent."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class EventWatch:
    """Eventfds on which the kernel acts when the program signals them (``virqfd.c``).

    Linux is woken by the write; here the system call layer calls :meth:`poll` on every entry.
    """

    def __init__(self) -> None:
        self._watched: dict[Event, Callable[[], None]] = {}

    def add(self, event: Event, action: Callable[[], None]) -> None:
        """Run ``action`` whenever ``event`` was signalled."""
        self._watched[event] = action

    def remove(self, event: Event) -> None:
        """Stop watching, and close the event."""
        self._watched.pop(event, None)
        event.close()

    def poll(self) -> None:
        """Act on every event signalled since the last call."""
        for event, action in tuple(self._watched.items()):
            if event.take():
                action()
