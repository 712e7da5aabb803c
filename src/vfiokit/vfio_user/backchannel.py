"""The server's own requests: reading and writing the client's memory by message.

They go over the twin socket where there is one. Without, they share the stream with the client's
commands, which then wait in :attr:`BackChannel.later` until the reply is there.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from vfiokit.errors import DeviceTimeoutError, ProtocolError
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.connection import Connection, close_all
from vfiokit.vfio_user.dma import DmaFault
from vfiokit.vfio_user.payload import DmaAccess
from vfiokit.vfio_user.session import Session, State, check_reply
from vfiokit.vfio_user.wire import HEADER_SIZE, Command, Message

_PIECE: Final = 32768
"""Bytes asked for or sent by one message: QEMU loses the rest of a reply that the kernel takes in
parts, and up to here it takes it whole or not at all (Linux ``unix_stream_sendmsg``)."""
_LATER_BYTES: Final = 16 << 20
_LATER_COUNT: Final = 65536
"""What may wait: a client that sends and sends instead of answering is no client."""


class BackChannel:
    """Requests to the client at the other end of ``link``."""

    def __init__(self, link: Connection, session: Session, *, timeout: float) -> None:
        """``timeout`` is in seconds, for each reply."""
        self._link = link
        self._session = session
        self._timeout = timeout
        self.twin: Connection | None = None
        """The socket for requests and their replies alone."""
        self.later: deque[Message] = deque()
        """The client's commands that came while a reply was waited for, in order."""
        self._later_bytes = 0
        self.notice: Callable[[int], None] | None = None
        """Told the IOVA of each request."""
        self.broken = ""
        """Why there will be no more replies, in words."""

    def read(self, iova: int, length: int) -> bytes:
        """``DMA_READ`` in as many messages as it takes; :class:`DmaFault`."""
        most, parts = min(self._session.peer.max_data_xfer_size, _PIECE), []
        for at in range(0, length, most):
            count = min(most, length - at)
            payload = self._exchange(Command.DMA_READ, DmaAccess(iova + at, count))
            try:
                got = DmaAccess.unpack(payload, data=True)
                if (got.address, got.count) != (iova + at, count):
                    raise ProtocolError("a reply to another DMA_READ than was asked")
            except ProtocolError as error:
                raise self._lost("read", iova, length, str(error)) from None
            parts.append(got.data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, iova: int, data: bytes) -> None:
        """``DMA_WRITE`` in as many messages as it takes; :class:`DmaFault`."""
        most = min(self._session.peer.max_data_xfer_size, _PIECE)
        for at in range(0, len(data), most):
            piece = data[at : at + most]
            # What the reply repeats differs between clients, so it is not looked at.
            self._exchange(Command.DMA_WRITE, DmaAccess(iova + at, len(piece), piece))

    def _exchange(self, command: Command, request: DmaAccess) -> bytes:
        what = command.name.removeprefix("DMA_").lower()
        where = (what, request.address, request.count)
        if self._session.state is not State.AGREED:
            raise DmaFault(*where, "the client is gone")
        if self.notice is not None:
            self.notice(request.address)
        number = self._session.next_id()
        link = self.twin or self._link
        deadline = time.monotonic() + self._timeout
        try:
            link.send(wire.request(number, command, request.pack()))
            while not (message := link.receive(deadline)).is_reply:
                self._put_off(message)
            close_all(message.fds)
            check_reply(message, number, command)
        except (OSError, ProtocolError, DeviceTimeoutError) as error:
            raise self._lost(*where, str(error)) from None
        if message.is_error:
            reason = f"the client answers errno {message.errno}"
            known = 0 < message.errno < 4096
            raise DmaFault(*where, reason, message.errno if known else errno.EIO)
        return message.payload

    def _lost(self, what: str, iova: int, length: int, reason: str) -> DmaFault:
        """The client cannot be talked to any more."""
        self._session.state = State.CLOSED
        self._link.rouse()
        self.broken = self.broken or f"no answer to a DMA {what}: {reason}"
        return DmaFault(what, iova, length, f"the client is gone: {reason}")

    def _put_off(self, message: Message) -> None:
        self.later.append(message)
        if self.twin is not None:
            raise ProtocolError(f"{message.name} on the socket of the server's requests")
        self._later_bytes += HEADER_SIZE + len(message.payload)
        if self._later_bytes > _LATER_BYTES or len(self.later) > _LATER_COUNT:
            raise ProtocolError("the client sends commands instead of the reply that is due")

    def take(self) -> Message:
        """The first of :attr:`later`."""
        message = self.later.popleft()
        self._later_bytes -= HEADER_SIZE + len(message.payload)
        return message

    def close(self) -> None:
        """Let go of the twin socket, and of descriptors that came with commands not done."""
        for message in self.later:
            close_all(message.fds)
        self.later.clear()
        if self.twin is not None:
            self.twin.close()
