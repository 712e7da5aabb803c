"""Messages of the vfio-user protocol: header, framing, and who may send what.

Pure: bytes in, values out. Payloads are in :mod:`vfiokit.vfio_user.payload`.

Source: QEMU ``docs/interop/vfio-user.rst`` (header, command table).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from vfiokit.abi import vfio_user as abi
from vfiokit.errors import ProtocolError

HEADER = struct.Struct("<HHIII")
"""Message id, command, size of the whole message, flags, errno."""
HEADER_SIZE = HEADER.size
DEFAULT_LIMIT = (1 << 20) + 4096
"""Bytes of the largest message accepted: the default transfer size, and room for its heads."""


class Command(IntEnum):
    """What a message is about."""

    VERSION = abi.VFIO_USER_VERSION
    DMA_MAP = abi.VFIO_USER_DMA_MAP
    DMA_UNMAP = abi.VFIO_USER_DMA_UNMAP
    DEVICE_GET_INFO = abi.VFIO_USER_DEVICE_GET_INFO
    DEVICE_GET_REGION_INFO = abi.VFIO_USER_DEVICE_GET_REGION_INFO
    DEVICE_GET_REGION_IO_FDS = abi.VFIO_USER_DEVICE_GET_REGION_IO_FDS
    DEVICE_GET_IRQ_INFO = abi.VFIO_USER_DEVICE_GET_IRQ_INFO
    DEVICE_SET_IRQS = abi.VFIO_USER_DEVICE_SET_IRQS
    REGION_READ = abi.VFIO_USER_REGION_READ
    REGION_WRITE = abi.VFIO_USER_REGION_WRITE
    DMA_READ = abi.VFIO_USER_DMA_READ
    DMA_WRITE = abi.VFIO_USER_DMA_WRITE
    DEVICE_RESET = abi.VFIO_USER_DEVICE_RESET
    REGION_WRITE_MULTI = abi.VFIO_USER_REGION_WRITE_MULTI
    DEVICE_FEATURE = abi.VFIO_USER_DEVICE_FEATURE
    MIG_DATA_READ = abi.VFIO_USER_MIG_DATA_READ
    MIG_DATA_WRITE = abi.VFIO_USER_MIG_DATA_WRITE


FROM_SERVER = frozenset({Command.DMA_READ, Command.DMA_WRITE})
"""The commands that the server sends; all others are the client's."""
FROM_CLIENT = frozenset(Command) - FROM_SERVER

_REPLY = abi.VFIO_USER_F_TYPE_REPLY
_TYPE = abi.VFIO_USER_F_TYPE_MASK
_ERROR = abi.VFIO_USER_F_ERROR
_NO_REPLY = abi.VFIO_USER_F_NO_REPLY
_KNOWN_FLAGS = _TYPE | _ERROR | _NO_REPLY
_HEADER_ERROR = _REPLY | _ERROR
_ORDINARY = frozenset({0, _REPLY, _NO_REPLY})


class Message(NamedTuple):
    """One message, as it came or as it goes."""

    id: int
    """Chosen by the sender of the command; the reply repeats it."""
    command: int
    """A :class:`Command`, or a number that is none."""
    flags: int = 0
    errno: int = 0
    """Meaningful in an error reply only."""
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    """Descriptors that travel along. Whoever takes the message out owns them."""

    @property
    def is_reply(self) -> bool:
        """Whether it answers a command."""
        return self.flags & _TYPE == _REPLY

    @property
    def wants_reply(self) -> bool:
        """Whether it is a command whose sender waits for an answer."""
        return not self.flags & (_TYPE | _NO_REPLY)

    @property
    def is_error(self) -> bool:
        """Whether it says that a command failed."""
        return bool(self.flags & _ERROR)

    @property
    def name(self) -> str:
        """The command's name, for people."""
        return command_name(self.command)

    def pack(self) -> bytes:
        """The bytes of the message; descriptors go beside them."""
        size = HEADER_SIZE + len(self.payload)
        return HEADER.pack(self.id, self.command, size, self.flags, self.errno) + self.payload


def command_name(command: int) -> str:
    """``DMA_MAP``, or ``command 14`` for a number that is none."""
    try:
        return Command(command).name
    except ValueError:
        return f"command {command}"


def request(
    number: int, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, reply: bool = True
) -> Message:
    """A command; with ``reply`` false the other end will not answer, even to a failure."""
    return Message(number, command, 0 if reply else _NO_REPLY, 0, payload, tuple(fds))


def reply(to: Message, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
    """The answer to ``to``."""
    return Message(to.id, to.command, _REPLY, 0, payload, tuple(fds))


def error_reply(to: Message, errno: int) -> Message:
    """The answer that ``to`` failed: a header and nothing more."""
    return Message(to.id, to.command, _HEADER_ERROR, errno)


def check_header(size: int, flags: int, limit: int) -> None:
    """Refuse a header after which the stream makes no sense.

    Raises :class:`ProtocolError` (fatal): a size below the header's own or above ``limit``, a type
    that is neither command nor reply, flags that do not exist or do not fit the type.
    """
    if not HEADER_SIZE <= size <= limit:
        raise ProtocolError(
            f"a message of {size} bytes; {HEADER_SIZE} to {limit} are accepted", fatal=True
        )
    kind = flags & _TYPE
    if kind > _REPLY or flags & ~_KNOWN_FLAGS:
        raise ProtocolError(f"a message with flags {flags:#x}", fatal=True)
    if kind == _REPLY and flags & _NO_REPLY:
        raise ProtocolError(f"a reply that wants no reply (flags {flags:#x})", fatal=True)
    if flags & _ERROR and (kind != _REPLY or size != HEADER_SIZE):
        raise ProtocolError(
            f"an error flag in a {'reply' if kind else 'command'} of {size} bytes", fatal=True
        )


class Framer:
    """Cuts what a socket gave into messages.

    A chunk may hold part of a message or several. The kernel ends a read within the buffer that
    carried descriptors, so those of a chunk belong to the message that its last byte is part of,
    even if more of that message is still to come.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, *, max_fds: int = 253) -> None:
        self._limit = limit
        self._max_fds = max_fds
        self._wanted = HEADER_SIZE
        self._parts: list[bytes] = []
        self.held = 0
        """Bytes of an incomplete message that are here; 0 between two messages."""
        self._fds: list[int] = []
        self.broken: ProtocolError | None = None
        """Why the stream cannot be followed behind the last message given out."""

    @property
    def needed(self) -> int:
        """Bytes still missing from the message under way, its header first."""
        return self._wanted - self.held

    def feed(self, chunk: bytes, fds: Sequence[int] = ()) -> list[Message]:
        """The messages that ``chunk`` completes, in order; ``fds`` came with it.

        Raises :class:`ProtocolError` (fatal) where the stream cannot be followed. Descriptors that
        no message has taken are then in :meth:`take_fds`.
        """
        length = len(chunk)
        if HEADER_SIZE <= length <= self._limit and not self.held and not self._fds:
            # Most often a chunk is one message, with nothing odd about it.
            number, command, size, flags, errno = HEADER.unpack_from(chunk)
            if size == length and flags in _ORDINARY and len(fds) <= self._max_fds:
                return [Message(number, command, flags, errno, chunk[HEADER_SIZE:], tuple(fds))]
        self.held += length
        if self.held < self._wanted:
            self._parts.append(chunk)
            self._keep(fds)
            return []
        if self._parts:
            self._parts.append(chunk)
            chunk = b"".join(self._parts)
            self._parts.clear()
        try:
            found, at = self._cut(chunk)
        except ProtocolError:
            self._fds.extend(fds)
            raise
        self.held = len(chunk) - at
        if self.held:
            self._parts.append(chunk[at:])
        if found and self._fds:
            found[0] = found[0]._replace(fds=tuple(self._fds))
            self._fds.clear()
        if fds:
            if self.held or not found:
                self._keep(fds)
            else:
                found[-1] = found[-1]._replace(fds=(*found[-1].fds, *fds))
        return found

    def _keep(self, fds: Iterable[int]) -> None:
        """``fds`` are of the message under way."""
        self._fds.extend(fds)
        if len(self._fds) > self._max_fds:
            raise ProtocolError(
                f"{len(self._fds)} descriptors with one message; {self._max_fds} are accepted",
                fatal=True,
            )

    def _cut(self, data: bytes) -> tuple[list[Message], int]:
        """Every whole message of ``data``, and where the first incomplete one begins."""
        found: list[Message] = []
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            number, command, size, flags, errno = HEADER.unpack_from(data, at)
            try:
                check_header(size, flags, self._limit)
            except ProtocolError as error:
                if not found:
                    raise
                self.broken = error
                break
            if at + size > end:
                self._wanted = size
                return found, at
            found.append(Message(number, command, flags, errno, data[at + HEADER_SIZE : at + size]))
            at += size
        self._wanted = HEADER_SIZE
        return found, at

    def take_fds(self) -> list[int]:
        """The descriptors that belong to no whole message, for the caller to close."""
        left, self._fds = self._fds, []
        return left
