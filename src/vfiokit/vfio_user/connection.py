"""One end of a connected socket: messages in, messages out, descriptors beside them."""

from __future__ import annotations

import array
import contextlib
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from vfiokit.errors import DeviceTimeoutError
from vfiokit.kernel import linux
from vfiokit.vfio_user.wire import DEFAULT_LIMIT, Framer, Message

_CHUNK: Final = 65536
_INT: Final = struct.calcsize("i")
_PIECE: Final = 32768
"""Bytes of one send: libvfio-user takes a body that arrives in parts for a broken one."""
_HELD: Final = 1 << 18
"""Bytes put off at most, lest a client that only asks makes this end grow."""


class ClosedError(ConnectionError):
    """The other end is gone."""


class Connection:
    """Messages over ``sock``, which it owns.

    Reads are as large as the kernel gives; :class:`~vfiokit.vfio_user.wire.Framer` knows which
    message descriptors belong to.
    """

    def __init__(
        self, sock: socket.socket, *, limit: int = DEFAULT_LIMIT, max_fds: int = 253
    ) -> None:
        self._sock = sock
        self._framer = Framer(limit, max_fds=max_fds)
        self._ancillary = socket.CMSG_SPACE(253 * _INT)
        self._ready: deque[Message] = deque()
        self._out: list[bytes] = []
        self._held = 0
        self.timeout: float | None = None
        """Seconds to wait for the other end; ``None`` waits for ever."""
        sock.setblocking(True)

    def fileno(self) -> int:
        """The socket, for a selector; look at :attr:`waiting` first."""
        return self._sock.fileno()

    @property
    def waiting(self) -> bool:
        """Whether a message is here already."""
        return bool(self._ready)

    # -- in -----------------------------------------------------------------------------------

    def receive(self) -> Message:
        """The next message.

        Raises :class:`ClosedError` at the end of the stream, :class:`ProtocolError` (fatal) where
        it cannot be followed, :class:`DeviceTimeoutError` when nothing comes in time.
        """
        ready = self._ready
        if not ready:
            self.flush()
            deadline = None if self.timeout is None else time.monotonic() + self.timeout
            while not ready:
                if deadline is not None:
                    self._await(deadline)
                self._read()
        return ready.popleft()

    def _await(self, deadline: float) -> None:
        left = max(deadline - time.monotonic(), 0)
        if not select.select([self._sock], [], [], left)[0]:
            raise DeviceTimeoutError(f"the other end said nothing for {self.timeout} s")

    def _read(self) -> None:
        size = max(_CHUNK, self._framer.needed)
        try:
            data, control, _flags, _address = self._sock.recvmsg(size, self._ancillary)
        except ConnectionError as error:
            raise ClosedError(f"the other end is gone: {error}") from None
        if not data:
            raise ClosedError("the other end closed the connection")
        self._ready.extend(self._framer.feed(data, _descriptors(control) if control else ()))

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
                sent = socket.send_fds(self._sock, [data], fds)
            elif len(data) <= _PIECE:
                sent = self._sock.send(data)
            else:
                sent = 0
            if sent < len(data):
                self._sock.sendall(memoryview(data)[sent:])
        except ConnectionError as error:
            raise ClosedError(f"the other end is gone: {error}") from None

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took. Idempotent."""
        for message in self._ready:
            close_all(message.fds)
        self._ready.clear()
        close_all(self._framer.take_fds())
        self._out.clear()
        self._sock.close()


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
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
