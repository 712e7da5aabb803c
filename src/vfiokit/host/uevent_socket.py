"""The netlink socket that uevents arrive on.

Plain ``socket``, not pyroute2: its uevent socket hides who sent a message, and so takes what any
privileged program multicasts for the kernel's word; it wraps an asyncio loop, and has no timeout.
What is left, without netlink's usual headers, is one ``recvfrom``. Source: Linux
``lib/kobject_uevent.c`` (group 1, anybody may listen), netlink(7).
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from vfiokit.errors import FormatError, SourceError
from vfiokit.host.uevent import Received, Uevent, parse

if TYPE_CHECKING:
    import socket

_NETLINK_KOBJECT_UEVENT = 15
_GROUP_KERNEL = 1
_SO_RCVBUFFORCE = 33
_BUFFER = 4 << 20
"""Bytes of queue to ask for: a switch full of drives that comes back sends thousands at once."""
_MESSAGE = 1 << 16


class UeventSocket:
    """Uevents of this machine's kernel; implements :class:`~vfiokit.host.uevent.UeventSource`.

    :class:`SourceError` where there is no such socket, as in some sandboxes. Messages that did
    not come from the kernel are dropped, as udev does.
    """

    def __init__(self, *, buffer_size: int = _BUFFER) -> None:
        import socket

        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT
            )
        except OSError as failure:
            raise SourceError(f"no uevents: {failure.strerror}") from failure
        try:
            self._enlarge(self._socket, buffer_size)
            self._socket.bind((0, _GROUP_KERNEL))
        except OSError as failure:
            self._socket.close()
            raise SourceError(f"no uevents: {failure.strerror}") from failure

    @staticmethod
    def _enlarge(sock: socket.socket, size: int) -> None:
        import socket

        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except OSError:  # needs CAP_NET_ADMIN; without it the system's limit holds
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def wait(self, timeout_s: float) -> Received:
        """Messages that came, or none after ``timeout_s`` seconds."""
        import select

        deadline = time.monotonic() + max(timeout_s, 0.0)
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            ready, _, _ = select.select([self._socket], [], [], left)
            received = self._drain() if ready else Received()
            # What is dropped, such as a forged message, is no reason to return early.
            if received.uevents or received.lost or time.monotonic() >= deadline:
                return received

    def _drain(self) -> Received:
        import socket

        found: list[Uevent] = []
        lost = False
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return Received(tuple(found), lost)
            except OSError as failure:
                if failure.errno != errno.ENOBUFS:
                    reason = os.strerror(failure.errno or errno.EIO)
                    raise SourceError(f"uevents stopped: {reason}") from failure
                lost = True
                continue
            if sender:
                continue
            try:
                found.append(parse(data))
            except FormatError:
                continue

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class NoUevents:
    """For hosts whose kernel does not talk to us: captures, software machines, sandboxes."""

    def wait(self, timeout_s: float) -> Received:
        """Nothing, after the whole time."""
        time.sleep(max(timeout_s, 0.0))
        return Received()

    def close(self) -> None:
        """Nothing to do."""
