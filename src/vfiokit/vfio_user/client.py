"""The client's end: requests, replies, and the server's own requests for memory meanwhile.

:class:`Client` speaks the protocol; :mod:`vfiokit.vfio_user.kernel` makes a device of
:mod:`vfiokit.vfio` from it, for drivers, suites and hypervisors.

Source: QEMU ``docs/interop/vfio-user.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol, Self, TypeVar

from vfiokit.errors import DeviceTimeoutError, KernelError, ProtocolError, UsageError
from vfiokit.vfio.owner import Closing
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.connection import ClosedError, Connection, close_all
from vfiokit.vfio_user.payload import (
    DeviceInfo,
    DmaAccess,
    DmaMap,
    DmaUnmap,
    Feature,
    IrqInfo,
    MigrationData,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    RegionWrite,
    SetIrqs,
    pack_writes,
    unpack_count,
)
from vfiokit.vfio_user.session import (
    Capabilities,
    Session,
    State,
    Version,
    accept,
    check_reply,
    message_limit,
)
from vfiokit.vfio_user.wire import HEADER, Command, Message

Value = TypeVar("Value")
OFFER: Final = Capabilities(max_msg_fds=16, twin_socket=True, write_multiple=True)
"""What a client accepts unless told otherwise."""
_ACCESS: Final = struct.Struct("<HHIIIQII")
"""Header and head of a region access in one."""
_REGION_READ: Final = int(Command.REGION_READ)
_REGION_WRITE: Final = int(Command.REGION_WRITE)
_SMALL: Final = 64
"""Bytes of an access that goes without ceremony."""
_HEADS: Final = [struct.pack("<III", 32 + length, 1, 0) for length in range(_SMALL + 1)]
"""The rest of the header of a good reply to a read of so many bytes, behind id and command."""
_DONE: Final = struct.pack("<III", 16, 1, 0)
_POSTED: Final = 0x10
_WRITE_PIECE: Final = 32768
"""Bytes of one region write: libvfio-user loses the stream with more (short reads)."""

_BROKEN: Final = (ClosedError, ProtocolError, DeviceTimeoutError)
"""After these the next reply may be to another request: the client closes."""


class ClientMemory(Protocol):
    """What the server reaches by ``DMA_READ`` and ``DMA_WRITE``."""

    def read(self, iova: int, length: int) -> bytes:
        """Read; ``OSError`` (EFAULT, EPERM) is the server's answer."""
        ...

    def write(self, iova: int, data: bytes) -> None:
        """Write; ``OSError`` as for reads."""
        ...


class NoMemory:
    """Memory of a client that gave none."""

    def read(self, iova: int, length: int) -> bytes:
        """EFAULT."""
        raise OSError(errno.EFAULT, f"nothing is mapped at {iova:#x} ({length} bytes)")

    def write(self, iova: int, data: bytes) -> None:
        """EFAULT."""
        raise OSError(errno.EFAULT, f"nothing is mapped at {iova:#x} ({len(data)} bytes)")


class Client(Closing):
    """A connection to a server, negotiated.

    ``memory`` answers the server's own requests: with a twin socket in a thread of its own, without
    one while a reply is waited for. ``timeout`` is in seconds, for every reply. An error reply
    raises :class:`KernelError` with its errno; a broken stream :class:`ProtocolError`,
    :class:`ClosedError` or, where nothing comes in time, :class:`DeviceTimeoutError`, after which
    the client is closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str = "vfio-user device",
        offer: Capabilities = OFFER,
        memory: ClientMemory | None = None,
        timeout: float | None = 10.0,
    ) -> None:
        self.name = name
        self.memory: ClientMemory = memory or NoMemory()
        self._session = Session(False, offer)
        self._link = Connection(sock, limit=message_limit(offer), timeout=timeout)
        self._twin: _TwinThread | None = None
        self._exchange = self._link.exchange
        self._numbers = itertools.count()
        """Message ids, 16 bits of each."""
        self._open = False
        self._lock = threading.RLock()
        try:
            self.version = self._negotiate(Version(capabilities=offer))
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        offer: Capabilities = OFFER,
        memory: ClientMemory | None = None,
        timeout: float | None = 10.0,
    ) -> Self:
        """Connect to the socket at ``path``.

        Raises :class:`KernelError` where nobody listens: ENOENT, ECONNREFUSED.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            code = error.errno or errno.ETIMEDOUT
            hints = {
                errno.ENOENT: "start the server first: vfiokit serve",
                errno.ECONNREFUSED: "the socket is stale: no server listens at it",
            }
            raise KernelError("connect", os.fspath(path), code, hint=hints.get(code, "")) from error
        return cls(sock, name=os.fspath(path), offer=offer, memory=memory, timeout=timeout)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._session.state is State.CLOSED

    @property
    def agreed(self) -> Capabilities:
        """What the server accepts."""
        return self._session.peer

    def fileno(self) -> int:
        """The socket."""
        return self._link.fileno()

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._session.state = State.CLOSED
        self._open = False
        self._link.close()
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.stop()

    # -- exchange -----------------------------------------------------------------------------

    def _negotiate(self, offer: Version) -> Version:
        number = next(self._numbers) & 0xFFFF
        self._link.send(wire.request(number, Command.VERSION, offer.pack()))
        message = self._reply(number, Command.VERSION)
        self._raise_error(message)
        fds = list(message.fds)
        try:
            version = accept(offer, Version.unpack(message.payload))
            self._session.agreed(version, version.capabilities)
            self._open = True
            if version.twin_fd is not None:
                if version.twin_fd >= len(fds):
                    raise ProtocolError("the server names a twin socket that it did not send")
                self._twin = _TwinThread(self, socket.socket(fileno=fds.pop(version.twin_fd)))
        finally:
            close_all(fds)
        return version

    def request(self, command: Command, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a command and wait for its reply, whose descriptors are the caller's then."""
        with self._lock:
            self._require_open()
            number = next(self._numbers) & 0xFFFF
            try:
                self._link.send(wire.request(number, command, payload, fds))
                message = self._reply(number, command)
            except _BROKEN:
                self.close()
                raise
        self._raise_error(message)
        return message

    def ask(self, command: Command, payload: bytes = b"") -> bytes:
        """Send a command and wait for its reply's payload; descriptors with it are nobody's."""
        message = self.request(command, payload)
        close_all(message.fds)
        return message.payload

    def order(self, command: Command, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a command whose good reply is a header and no more, and wait for it."""
        with self._lock:
            if not self._open:
                self._require_open()
            number = next(self._numbers) & 0xFFFF
            packed = HEADER.pack(number, command, 16 + len(payload), 0, 0) + payload
            try:
                if self._exchange(packed, packed[:4] + _DONE, 16, fds) is not None:
                    return
                message = self._reply(number, command)
            except _BROKEN:
                self.close()
                raise
        self._raise_error(message)
        close_all(message.fds)

    def post(self, command: Command, payload: bytes = b"") -> None:
        """Send a command without a reply; it goes out with the next that wants one, or at
        :meth:`flush`.
        """
        with self._lock:
            self._require_open()
            number = next(self._numbers) & 0xFFFF
            self._link.post(wire.request(number, command, payload, reply=False).pack())

    def flush(self) -> None:
        """Send what was posted."""
        with self._lock:
            self._require_open()
            self._link.flush()

    def pipeline(self, commands: Sequence[tuple[Command, bytes]]) -> list[Message]:
        """Send several commands at once and wait for their replies, in order; errors included."""
        with self._lock:
            self._require_open()
            numbers = [next(self._numbers) & 0xFFFF for _ in commands]
            try:
                for number, (command, payload) in zip(numbers, commands, strict=True):
                    self._link.post(wire.request(number, command, payload).pack())
                return [
                    self._reply(number, command)
                    for number, (command, _payload) in zip(numbers, commands, strict=True)
                ]
            except _BROKEN:
                self.close()
                raise

    def _require_open(self) -> None:
        if self.closed:
            raise UsageError(f"the connection to {self.name} is closed")

    def _reply(self, number: int, command: int) -> Message:
        while True:
            message = self._link.receive()
            if message.is_reply:
                try:
                    check_reply(message, number, command)
                except ProtocolError:
                    close_all(message.fds)
                    raise
                return message
            self._link.send(self.answer(message))

    def _raise_error(self, message: Message) -> None:
        if message.is_error:
            close_all(message.fds)
            raise KernelError(f"VFIO_USER_{message.name}", self.name, message.errno or errno.EIO)

    @staticmethod
    def _unpacked(unpack: Callable[[bytes], Value], message: Message) -> Value:
        """The payload read; its descriptors are closed where it makes no sense."""
        try:
            return unpack(message.payload)
        except ProtocolError:
            close_all(message.fds)
            raise

    def answer(self, message: Message) -> Message:
        """The reply to a command of the server's: its reads and writes of memory."""
        try:
            command = self._session.check_command(message)
            access = DmaAccess.unpack(message.payload, data=command is Command.DMA_WRITE)
            if access.count > self._session.own.max_data_xfer_size:
                raise ProtocolError(f"{message.name} of {access.count} bytes", errno=errno.E2BIG)
            if command is Command.DMA_WRITE:
                self.memory.write(access.address, access.data)
                done = DmaAccess(access.address, access.count)
            else:
                data = self.memory.read(access.address, access.count)
                done = DmaAccess(access.address, access.count, data)
        except ProtocolError as error:
            close_all(message.fds)
            return wire.error_reply(message, error.errno)
        except OSError as error:
            return wire.error_reply(message, error.errno or errno.EIO)
        return wire.reply(message, done.pack())

    # -- commands -----------------------------------------------------------------------------

    def device_info(self) -> DeviceInfo:
        """Flags, how many regions, how many interrupt indices."""
        return DeviceInfo.unpack(self.ask(Command.DEVICE_GET_INFO, DeviceInfo().pack()))

    def region_info(self, index: int) -> tuple[RegionInfo, int]:
        """A region and the file that it can be mapped from, the caller's to close; -1 without."""
        room = RegionInfo(index).argsz
        for _ in range(3):
            request = RegionInfo(index, argsz=room)
            message = self.request(Command.DEVICE_GET_REGION_INFO, request.pack())
            info = self._unpacked(RegionInfo.unpack, message)
            if info.argsz <= room:
                close_all(message.fds[1:])
                return info, message.fds[0] if message.fds else -1
            close_all(message.fds)
            room = min(info.argsz, 1 << 20)
        raise KernelError(
            "VFIO_USER_DEVICE_GET_REGION_INFO",
            self.name,
            errno.EPROTO,
            detail=f"region {index} asks for ever more room",
        )

    def region_io_fds(self, index: int) -> tuple[RegionIoFds, tuple[int, ...]]:
        """The eventfds that stand for writes to a region, the caller's to close."""
        room = RegionIoFds(index).argsz
        for _ in range(3):
            request = RegionIoFds(index, argsz=room)
            message = self.request(Command.DEVICE_GET_REGION_IO_FDS, request.pack())
            reply = self._unpacked(RegionIoFds.unpack, message)
            if reply.argsz <= room:
                return reply, message.fds
            close_all(message.fds)
            room = min(reply.argsz, 1 << 20)
        raise KernelError(
            "VFIO_USER_DEVICE_GET_REGION_IO_FDS",
            self.name,
            errno.EPROTO,
            detail=f"region {index} asks for ever more room",
        )

    def irq_info(self, index: int) -> IrqInfo:
        """Flags and vectors of an interrupt index."""
        return IrqInfo.unpack(self.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index).pack()))

    def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """``DEVICE_SET_IRQS``; more descriptors than the server takes go in several messages."""
        most = max(self.agreed.max_msg_fds, 1)
        if len(fds) <= most:
            self.order(Command.DEVICE_SET_IRQS, request.pack(), fds)
            return
        for at in range(0, len(fds), most):
            part = list(fds[at : at + most])
            piece = SetIrqs(request.flags, request.index, request.start + at, len(part))
            self.order(Command.DEVICE_SET_IRQS, piece.pack(), part)

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        """Read registers, in as many messages as the agreed size asks for."""
        if not 0 < length <= _SMALL:
            return self._read_large(region, offset, length)
        # A register or two: one pack, one send, one receive, one comparison.
        with self._lock:
            if not self._open:
                self._require_open()
            number = next(self._numbers) & 0xFFFF
            packed = _ACCESS.pack(number, _REGION_READ, 32, 0, 0, offset, region, length)
            try:
                data = self._exchange(packed, packed[:4] + _HEADS[length], 32 + length)
                if data is not None:
                    return data[32:]
                message = self._reply(number, _REGION_READ)
            except _BROKEN:
                self.close()
                raise
        self._raise_error(message)
        close_all(message.fds)
        return self._checked(message.payload, length)

    def _read_large(self, region: int, offset: int, length: int) -> bytes:
        most = self.agreed.max_data_xfer_size
        parts = []
        for at in range(0, length, most):
            count = min(most, length - at)
            request = RegionAccess(offset + at, region, count)
            payload = self.ask(Command.REGION_READ, request.pack())
            parts.append(self._checked(payload, count))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _checked(self, payload: bytes, length: int) -> bytes:
        """The data of a reply to ``REGION_READ``."""
        if len(payload) != 16 + length:
            raise KernelError(
                "VFIO_USER_REGION_READ",
                self.name,
                errno.EPROTO,
                detail=f"{len(payload)} bytes for {length}",
            )
        return payload[16:]

    def region_write(
        self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False
    ) -> None:
        """Write registers. ``posted`` waits for nothing, and learns of no failure."""
        length = len(data)
        if posted and length <= _SMALL:
            with self._lock:
                if not self._open:
                    self._require_open()
                number = next(self._numbers) & 0xFFFF
                head = _ACCESS.pack(
                    number, _REGION_WRITE, 32 + length, _POSTED, 0, offset, region, length
                )
                self._link.post(head + bytes(data))
            return
        most = min(self.agreed.max_data_xfer_size, _WRITE_PIECE)
        view = memoryview(data)
        for at in range(0, length, most):
            piece = bytes(view[at : at + most])
            payload = RegionAccess(offset + at, region, len(piece), piece).pack()
            if posted:
                self.post(Command.REGION_WRITE, payload)
            else:
                self.ask(Command.REGION_WRITE, payload)

    def region_write_multi(self, writes: Sequence[RegionWrite]) -> int:
        """Several small writes in one message; returns how many were done."""
        return unpack_count(self.ask(Command.REGION_WRITE_MULTI, pack_writes(writes)))

    def reset(self) -> None:
        """A function-level reset."""
        self.order(Command.DEVICE_RESET)

    def feature(self, request: Feature) -> Feature:
        """Probe, get or set a device feature."""
        return Feature.unpack(self.ask(Command.DEVICE_FEATURE, request.pack()))

    def dma_map(self, request: DmaMap, fd: int = -1) -> None:
        """Give the server memory: with a descriptor directly, without one by message."""
        self.order(Command.DMA_MAP, request.pack(), () if fd < 0 else (fd,))

    def dma_unmap(self, request: DmaUnmap) -> None:
        """Take memory back; the server does not touch it any more once this returns."""
        self.ask(Command.DMA_UNMAP, request.pack())

    def migration_read(self, size: int) -> bytes:
        """The next bytes of the device's state; fewer than ``size`` at its end."""
        payload = self.ask(Command.MIG_DATA_READ, MigrationData(size).pack())
        return MigrationData.unpack(payload, data=True).data

    def migration_write(self, data: bytes) -> None:
        """More bytes of the state that the device is to have."""
        most = self.agreed.max_data_xfer_size
        for at in range(0, len(data), most):
            piece = data[at : at + most]
            self.order(Command.MIG_DATA_WRITE, MigrationData(len(piece), piece).pack())


class _TwinThread:
    """Answers the server's requests on the socket that it made for them."""

    def __init__(self, client: Client, sock: socket.socket) -> None:
        self._client = client
        self._sock = sock
        self._link = Connection(sock, limit=message_limit(client.agreed))
        self._thread = threading.Thread(target=self._serve, name=f"{client.name} DMA", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                self._link.send(self._client.answer(self._link.receive()))
        except (ClosedError, ProtocolError, OSError, ValueError):
            return

    def stop(self) -> None:
        """Close the socket and wait for the thread, unless this is it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._link.close()
