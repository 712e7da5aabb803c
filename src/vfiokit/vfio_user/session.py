"""What both ends of a connection agree on, and what may be said when. No I/O.

Source: QEMU ``docs/interop/vfio-user.rst`` (VERSION); offers of QEMU 11.1, libvfio-user, rust-vmm.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Self

from vfiokit.abi import vfio_user as abi
from vfiokit.errors import ProtocolError
from vfiokit.vfio_user.wire import FROM_CLIENT, FROM_SERVER, Command, Message

_VERSION: Final = struct.Struct("<HH")
_JSON_LIMIT: Final = 65536
_MAX_XFER: Final = 64 << 20
_MAX_FDS: Final = 253
_MAX_MAPS: Final = 1 << 24
_HEADS: Final = 4096
"""Room that a message has beside the data whose size is agreed on."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one end accepts; the defaults are what the protocol assumes of an end that is silent."""

    max_msg_fds: int = 1
    """Descriptors that it takes with one message."""
    max_data_xfer_size: int = 1 << 20
    """Bytes of data in one region, DMA or migration message."""
    max_dma_maps: int = 65535
    """DMA mappings at a time."""
    pgsizes: int = 4096
    """Page sizes for DMA mappings, a bit each."""
    twin_socket: bool = False
    """Whether the server's own requests may use a socket of their own."""
    write_multiple: bool = False
    """Whether it understands ``REGION_WRITE_MULTI``."""

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read the JSON of a VERSION message, without its NUL; unknown keys are ignored.

        Raises :class:`ProtocolError` for what is no JSON object, and for values out of range.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"VERSION with unreadable JSON: {error}") from None
        if not isinstance(document, dict):
            raise ProtocolError("VERSION whose JSON is no object")
        found = document.get("capabilities", {})
        if not isinstance(found, dict):
            raise ProtocolError("VERSION whose capabilities are no object")
        default = cls()
        twin = found.get("twin_socket", {})
        return cls(
            _number(found, "max_msg_fds", default.max_msg_fds, 0, _MAX_FDS),
            _number(found, "max_data_xfer_size", default.max_data_xfer_size, 8, _MAX_XFER),
            _number(found, "max_dma_maps", default.max_dma_maps, 0, _MAX_MAPS),
            _number(found, "pgsizes", default.pgsizes, 1, (1 << 64) - 1),
            bool(isinstance(twin, dict) and twin.get("supported") is True),
            found.get("write_multiple") is True,
        )

    def to_document(self, twin_fd: int | None = None) -> dict[str, Any]:
        """The JSON object of a VERSION message; ``twin_fd`` is where the twin socket travels."""
        found: dict[str, Any] = {
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "max_dma_maps": self.max_dma_maps,
            "pgsizes": self.pgsizes,
        }
        if self.write_multiple:
            found["write_multiple"] = True
        if self.twin_socket:
            found["twin_socket"] = {"supported": True}
            if twin_fd is not None:
                found["twin_socket"]["fd_index"] = twin_fd
        return {"capabilities": found}


def _number(found: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = found.get(key, default)
    if type(value) is not int or value < least:
        raise ProtocolError(f"VERSION with {key} {value!r}")
    return min(value, most)


@dataclass(frozen=True, slots=True)
class Version:
    """A VERSION message, command or reply."""

    minor: int = abi.VFIO_USER_MINOR
    capabilities: Capabilities = Capabilities()
    major: int = abi.VFIO_USER_MAJOR
    twin_fd: int | None = None
    """In a reply: which of its descriptors is the twin socket."""

    def pack(self) -> bytes:
        """Version and JSON. The JSON is always there: rust-vmm's client fails without."""
        text = json.dumps(self.capabilities.to_document(self.twin_fd), separators=(",", ":"))
        return _VERSION.pack(self.major, self.minor) + text.encode() + b"\0"

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read either payload; without JSON every capability has its default."""
        if len(payload) < _VERSION.size:
            raise ProtocolError(f"VERSION of {len(payload)} bytes")
        major, minor = _VERSION.unpack_from(payload)
        text, zero, rest = payload[_VERSION.size :].partition(b"\0")
        if not text and not zero:
            return cls(minor, Capabilities(), major)
        if not zero or rest or len(text) > _JSON_LIMIT:
            raise ProtocolError("VERSION whose JSON does not end with the message's only NUL")
        return cls(minor, Capabilities.from_json(text), major, _twin_fd(text))


def _twin_fd(text: bytes) -> int | None:
    twin = json.loads(text).get("capabilities", {}).get("twin_socket")
    index = twin.get("fd_index") if isinstance(twin, dict) else None
    if index is not None and (type(index) is not int or index < 0):
        raise ProtocolError(f"VERSION with a twin socket at descriptor {index!r}")
    return index


def answer(offer: Version, own: Capabilities) -> Version:
    """The server's reply to ``offer``: what both can do.

    What the client takes limits what the server sends, and the reply says what the server takes,
    never more than the protocol lets it. Raises :class:`ProtocolError` (fatal) for another major.
    """
    if offer.major != abi.VFIO_USER_MAJOR:
        raise ProtocolError(
            f"the client speaks version {offer.major}.{offer.minor}; "
            f"this server {abi.VFIO_USER_MAJOR}.{abi.VFIO_USER_MINOR}",
            fatal=True,
        )
    theirs = offer.capabilities
    agreed = replace(
        own,
        max_data_xfer_size=min(own.max_data_xfer_size, theirs.max_data_xfer_size),
        max_dma_maps=min(own.max_dma_maps, theirs.max_dma_maps),
        pgsizes=own.pgsizes & theirs.pgsizes or own.pgsizes,
        twin_socket=own.twin_socket and theirs.twin_socket and theirs.max_msg_fds > 0,
        write_multiple=own.write_multiple and theirs.write_multiple,
    )
    return Version(min(offer.minor, abi.VFIO_USER_MINOR), agreed)


def accept(offer: Version, reply: Version) -> Version:
    """The client's look at the server's reply to its ``offer``; returns the reply.

    Raises :class:`ProtocolError` (fatal) for a version that was not offered, or a twin socket that
    was not asked for.
    """
    if reply.major != offer.major or reply.minor > offer.minor:
        raise ProtocolError(
            f"the server answers version {reply.major}.{reply.minor} to an offer of "
            f"{offer.major}.{offer.minor}",
            fatal=True,
        )
    if reply.twin_fd is not None and not offer.capabilities.twin_socket:
        raise ProtocolError("the server sends a twin socket that was not asked for", fatal=True)
    return reply


def message_limit(own: Capabilities) -> int:
    """Bytes of the largest message to accept."""
    return own.max_data_xfer_size + _HEADS


class State(Enum):
    """Where a connection stands."""

    FRESH = "fresh"
    """Nothing but VERSION may be said."""
    AGREED = "agreed"
    """Every command but VERSION."""
    CLOSED = "closed"
    """Nothing any more."""


ALLOWED: Final[Mapping[State, frozenset[Command]]] = {
    State.FRESH: frozenset({Command.VERSION}),
    State.AGREED: frozenset(Command) - {Command.VERSION},
    State.CLOSED: frozenset(),
}
"""Which commands a state allows, whoever sends them."""

_EXPECTED: Final[Mapping[tuple[bool, State], Mapping[int, Command]]] = {
    (server, state): {
        int(command): command for command in allowed & (FROM_CLIENT if server else FROM_SERVER)
    }
    for server in (False, True)
    for state, allowed in ALLOWED.items()
}
"""The commands that the server (or client) may get in a state, by number."""
_HEADER_ONLY: Final = frozenset({Command.DEVICE_RESET})
_WITH_FDS: Final = frozenset({Command.DMA_MAP, Command.DEVICE_SET_IRQS})


@dataclass(slots=True)
class Session:
    """One connection as one of its ends sees it."""

    server: bool
    """Whether this end is the server."""
    own: Capabilities
    """What this end accepts."""
    state: State = State.FRESH
    peer: Capabilities = Capabilities()
    """What the other end accepts; the protocol's defaults until it says."""
    minor: int = abi.VFIO_USER_MINOR
    _next: int = 0

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, or has to."""
        return self.state is State.CLOSED

    def next_id(self) -> int:
        """A number for the next command of this end."""
        number = self._next
        self._next = (number + 1) & 0xFFFF
        return number

    def agreed(self, version: Version, peer: Capabilities) -> None:
        """The versions are agreed on: ``version`` is the reply, ``peer`` what the other takes."""
        self.state, self.minor, self.peer = State.AGREED, version.minor, peer

    def check_command(self, message: Message) -> Command:
        """Whether the other end may send ``message`` now; returns its command.

        Raises :class:`ProtocolError`: EINVAL, or ENOTSUP for a command that does not exist. Fatal
        while no version is agreed on, as there is nothing that the other end could go on with.
        """
        command = _EXPECTED[self.server, self.state].get(message.command)
        if command is None:
            raise self._unexpected(message)
        if command in _HEADER_ONLY and message.payload:
            raise ProtocolError(f"{message.name} with a payload")
        if message.fds and command not in _WITH_FDS:
            raise ProtocolError(f"{message.name} with {len(message.fds)} descriptors")
        if len(message.fds) > self.own.max_msg_fds:
            raise ProtocolError(
                f"{message.name} with {len(message.fds)} descriptors; {self.own.max_msg_fds} fit"
            )
        return command

    def _unexpected(self, message: Message) -> ProtocolError:
        """What is wrong with a command that may not be sent."""
        fatal = self.state is not State.AGREED
        try:
            command = Command(message.command)
        except ValueError:
            return ProtocolError(f"{message.name} is unknown", errno=errno.ENOTSUP, fatal=fatal)
        if command not in ALLOWED[self.state]:
            return ProtocolError(
                f"{message.name} while the connection is {self.state.value}", fatal=fatal
            )
        sender = "server" if self.server else "client"
        return ProtocolError(f"{message.name} is the {sender}'s to send", fatal=fatal)


def check_reply(message: Message, number: int, command: int) -> None:
    """Whether ``message`` answers command ``command`` with id ``number``.

    Raises :class:`ProtocolError` (fatal) where it does not.
    """
    if not message.is_reply or message.id != number or message.command != command:
        raise ProtocolError(
            f"{message.name} with id {message.id} where the reply to message {number} was due",
            fatal=True,
        )
