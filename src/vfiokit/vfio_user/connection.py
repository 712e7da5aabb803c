"""One end of a connected socket: messages in, messages out, descriptors beside them."""

from __future__ import annotations

import array
import contextlib
import errno
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from vfiokit.errors import DeviceTimeoutError, ProtocolError
from vfiokit.kernel import linux
from vfiokit.vfio_user.wire import DEFAULT_LIMIT, Framer, Message

_CHUNK: Final = 1 << 16
"""Bytes of one read. Twice that would be memory that malloc takes from the kernel each time."""
_INT: Final = struct.calcsize("i")
_TIMEVAL: Final = struct.Struct("ll")
_PIECE: Final = 32768
"""Bytes of one send: libvfio-user takes a body that arrives in parts for a broken one."""
_HELD: Final = 1 << 18
"""Bytes put off at most, lest a client that only asks makes this end grow."""


Handler = Callable[[bytes, int], bytes | None]
"""Takes a message and the descriptor that came with it (-1 without one), which is its own then.

Returns the reply; empty where it was :meth:`Connection.post`ed, ``None`` where it is for others.
"""
_OTHER: Final = -2
"""Other descriptors than one."""


class ClosedError(ConnectionError):
    """The other end is gone."""


class Connection:
    """Messages over ``sock``, which it owns.

    Reads are as large as the kernel gives; :class:`~vfiokit.vfio_user.wire.Framer` knows which
    message descriptors belong to.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        limit: int = DEFAULT_LIMIT,
        max_fds: int = 253,
        timeout: float | None = None,
    ) -> None:
        """``timeout`` is in seconds, for each read; ``None`` waits for ever."""
        self._sock = sock
        self._framer = Framer(limit, max_fds=max_fds)
        self._ancillary = socket.CMSG_SPACE(253 * _INT)
        self._ready: deque[Message] = deque()
        self._out: list[bytes] = []
        self._held = 0
        self._timeout = timeout
        self._fresh = False
        """Whether :meth:`serve_alone` has to end: something was received meanwhile."""
        self.chunk = b""
        """What was received last, if it begins a message and no descriptors came with it."""
        self.at = 0
        """How much of :attr:`chunk` is dealt with: up to here, or beyond its end. Whoever takes a
        message out of it moves this on first, so that :meth:`receive` goes on behind it."""
        sock.setblocking(True)
        if timeout is not None:
            # By the kernel: a select before each read would cost as much as the read.
            seconds = int(timeout)
            limit_of_time = _TIMEVAL.pack(seconds, int((timeout - seconds) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit_of_time)

    def fileno(self) -> int:
        """The socket."""
        return self._sock.fileno()

    # -- in -----------------------------------------------------------------------------------

    def receive(self, deadline: float | None = None) -> Message:
        """The next message; ``deadline`` by the monotonic clock replaces the timeout.

        Raises :class:`ClosedError` at the end of the stream, :class:`ProtocolError` (fatal) where
        it cannot be followed, :class:`DeviceTimeoutError` when it does not come in time.
        """
        ready = self._ready
        while not ready:
            if self.at < len(self.chunk):
                rest, self.chunk = self.chunk[self.at :], b""
                ready.extend(self._framer.feed(rest))
            else:
                self.flush()
                if deadline is not None:
                    self._wait(deadline)
                self._read()
        return ready.popleft()

    def _wait(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise DeviceTimeoutError("the other end did not answer in time")

    @property
    def idle(self) -> bool:
        """Whether nothing is left of what was received but the beginning of a message."""
        return not self._ready and self.at >= len(self.chunk)

    def fill(self) -> bool:
        """Wait for something to come; whether :attr:`chunk` holds it, else :meth:`receive` does."""
        if self._ready:
            return False
        if self.at >= len(self.chunk):
            if self._out:
                self.flush()
            self._read()
        return self.at < len(self.chunk)

    def _read(self) -> None:
        if self._framer.broken is not None:
            raise self._framer.broken
        held = self._framer.held
        try:
            size = max(_CHUNK, self._framer.needed) if held else _CHUNK
            data, control, flags, _address = self._sock.recvmsg(size, self._ancillary)
        except BlockingIOError:
            raise DeviceTimeoutError(f"the other end said nothing for {self._timeout} s") from None
        except ConnectionError as error:
            raise ClosedError(f"the other end is gone: {error}") from None
        self._take(data, control, flags)

    def _take(self, data: bytes, control: list[tuple[int, int, bytes]], flags: int) -> None:
        """What was received goes where :meth:`fill` and :meth:`receive` look."""
        self._fresh = True
        if not data and not control:
            raise ClosedError("the other end closed the connection")
        if flags & socket.MSG_CTRUNC:
            # A mapping without its file, or an interrupt without its eventfd, would be another
            # request than the one that was sent.
            close_all(_descriptors(control))
            raise ProtocolError(
                "descriptors were lost: too many files are open here",
                errno=errno.EMFILE,
                fatal=True,
            )
        if control or self._framer.held:
            self._ready.extend(self._framer.feed(data, _descriptors(control)))
        else:
            self.chunk, self.at = data, 0

    def serve_alone(self, handlers: Mapping[int, Handler]) -> bool:
        """Answer messages that come alone, by their length; the shortest way that one can take.

        Returns when anything else came, or where a handler says ``None``: then :meth:`fill` and
        :meth:`receive` find it. To be called when the stream is :attr:`idle`; false, without
        waiting, within a message.
        """
        if self._framer.held:
            return False
        if self._out:
            self.flush()
        sock, ancillary = self._sock, self._ancillary
        self._fresh = False
        try:
            while True:
                data, control, flags, _address = sock.recvmsg(_CHUNK, ancillary)
                handle = handlers.get(len(data))
                fd = _only_descriptor(control, flags) if control else -1
                answer = handle(data, fd) if handle is not None and fd != _OTHER else None
                if answer is None:
                    self._take(data, control, flags)
                    return True
                if not answer or self._fresh:  # the device waited for the client, and so read on
                    if answer:
                        self.post(answer)
                    return True
                if sock.send(answer) < len(answer):
                    raise ClosedError("the other end takes no whole message")
        except ConnectionError as error:
            raise ClosedError(f"the other end is gone: {error}") from None

    def rouse(self) -> None:
        """End :meth:`serve_alone` after the message at hand."""
        self._fresh = True

    def exchange(
        self, packed: bytes, head: bytes, length: int, fds: Sequence[int] = ()
    ) -> bytes | None:
        """Send a small command; its reply, if that is all that comes and begins with ``head``.

        ``None`` where the stream holds anything else: then :meth:`receive` finds it, the reply
        included. The reply must be one without descriptors.
        """
        if self._out:
            self.flush()
        try:
            if fds:
                self._sock.sendmsg((packed,), _rights(fds))
            else:
                self._sock.send(packed)
            data = self._sock.recv(4096)
        except BlockingIOError:
            raise DeviceTimeoutError(f"the other end said nothing for {self._timeout} s") from None
        except ConnectionError as error:
            raise ClosedError(f"the other end is gone: {error}") from None
        if len(data) == length and data.startswith(head) and not self._framer.held:
            return data
        if not data:
            raise ClosedError("the other end closed the connection")
        self._ready.extend(self._framer.feed(data))
        return None

    # -- out ----------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send now, after what was put off. Descriptors stay the caller's."""
        self.flush()
        self._send(message.pack(), message.fds)

    def post(self, packed: bytes) -> None:
        """Put bytes off until :meth:`flush`, until this end waits, or until they are many."""
        self._out.append(packed)
        self._held += len(packed)
        if self._held > _HELD:
            self.flush()

    def flush(self) -> None:
        """Send what was put off."""
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._held = 0
            self._send(data, ())

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            if fds:
                sent = self._sock.sendmsg((data,), _rights(fds))
            elif len(data) <= _PIECE:
                sent = self._sock.send(data)
            else:
                sent = 0
            if sent < len(data):
                self._sock.sendall(memoryview(data)[sent:])
        except ConnectionError as error:
            raise ClosedError(f"the other end is gone: {error}") from None

    def shut_down(self) -> None:
        """End the stream in both directions; whoever waits at it meets :class:`ClosedError`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took. Idempotent."""
        for message in self._ready:
            close_all(message.fds)
        self._ready.clear()
        close_all(self._framer.take_fds())
        self._out.clear()
        self._sock.close()


def _only_descriptor(control: list[tuple[int, int, bytes]], flags: int) -> int:
    if len(control) != 1 or flags & socket.MSG_CTRUNC:
        return _OTHER
    _level, kind, data = control[0]
    if kind != socket.SCM_RIGHTS or len(data) != _INT:
        return _OTHER
    return int.from_bytes(data, sys.byteorder)


def _rights(fds: Sequence[int]) -> tuple[tuple[int, int, bytes]]:
    data = (
        fds[0].to_bytes(_INT, sys.byteorder) if len(fds) == 1 else array.array("i", fds).tobytes()
    )
    return ((socket.SOL_SOCKET, socket.SCM_RIGHTS, data),)


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    if len(control) == 1 and len(control[0][2]) == _INT:
        return [int.from_bytes(control[0][2], sys.byteorder)]
    found = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _INT])
    return list(found)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came along and are not wanted."""
    for fd in fds:
        with contextlib.suppress(OSError):
            linux.close(fd)
