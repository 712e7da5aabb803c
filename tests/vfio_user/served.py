"""Servers and raw peers for tests: both ends in one process, over a socketpair."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence

from vfiokit.vfio_user import wire
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.connection import Connection
from vfiokit.vfio_user.device import NUM_IRQS, Device, Host, ServedRegion
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities, Version
from vfiokit.vfio_user.wire import Command, Message

SHARED = Capabilities(max_msg_fds=16, write_multiple=True)
"""An offer without a twin socket: everything on one stream."""
TWIN = Capabilities(max_msg_fds=16, twin_socket=True, write_multiple=True)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Plain:
    """A device whose region 0 is memory and whose register 0x100 copies from the client: the IOVA
    is written, 16 bytes go to offset 0x200.
    """

    name = "plain"
    irq_counts: Sequence[int] = (1, 1, 4, 1, 1)

    def __init__(self) -> None:
        self.data = bytearray(4096)
        self.regions: Sequence[ServedRegion] = (
            ServedRegion(4096),
            *[ServedRegion()] * 6,
            ServedRegion(256),
            ServedRegion(),
        )
        self.events: list[str] = []
        self.host: Host | None = None

    def connect(self, host: Host) -> None:
        self.host = host
        self.events.append("connect")

    def disconnect(self) -> None:
        self.host = None
        self.events.append("disconnect")

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        if offset == 0x100:
            assert self.host is not None
            self.data[0x200:0x210] = self.host.dma_read(int.from_bytes(data, "little"), 16)
        elif offset == 0x108:
            assert self.host is not None
            self.host.dma_write(int.from_bytes(data, "little"), b"sixteen bytes ..")
        else:
            self.data[offset : offset + len(data)] = data

    def irqs_changed(self, index: int, vectors: frozenset[int]) -> None:
        self.events.append(f"irqs {index} {sorted(vectors)}")

    def reset(self) -> None:
        self.data[:] = bytes(4096)
        self.events.append("reset")

    movable = True

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def state(self) -> dict[str, object]:
        return {"data": bytes(self.data), "note": "plain"}

    def load(self, state: dict[str, object]) -> None:
        data = state["data"]
        if not isinstance(data, bytes) or len(data) != 4096:
            raise OSError(22, "a state of another size")
        self.data[:] = data


assert isinstance(NUM_IRQS, int)
_device: Device = Plain()  # mypy checks that it is one


class Ended:
    """How a client's visit went, once it is over."""

    why = ""


@contextlib.contextmanager
def serving(server: Server) -> Iterator[tuple[socket.socket, Ended]]:
    """Serve one client in a thread; the other end of its socket, and how it ended."""
    ours, theirs = socket.socketpair()
    ended = Ended()

    def serve() -> None:
        ended.why = server.serve(ours)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield theirs, ended
    finally:
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
        theirs.close()
        thread.join(10)
        assert not thread.is_alive(), "the server hangs"


class Peer:
    """A client that says whatever a test wants."""

    def __init__(self, sock: socket.socket, *, offer: Capabilities | None = SHARED) -> None:
        self.link = Connection(sock, timeout=5.0)
        self._number = 0
        self.twin: Connection | None = None
        if offer is not None:
            reply = self.ask(Command.VERSION, Version(capabilities=offer).pack())
            assert not reply.is_error
            if reply.fds:
                self.twin = Connection(socket.socket(fileno=reply.fds[0]), timeout=5.0)

    def send(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> int:
        self._number += 1
        self.link.send(Message(self._number, command, flags, 0, payload, tuple(fds)))
        return self._number

    def ask(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        number = self.send(command, payload, fds)
        reply = self.link.receive()
        assert (reply.id, reply.command, reply.is_reply) == (number, command, True)
        return reply

    def close(self) -> None:
        self.link.close()
        if self.twin is not None:
            self.twin.close()


@contextlib.contextmanager
def peer(server: Server, offer: Capabilities | None = SHARED) -> Iterator[Peer]:
    """A raw client of ``server``."""
    with serving(server) as (sock, _ended):
        made = Peer(sock, offer=offer)
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def client(server: Server, offer: Capabilities = SHARED, **options: object) -> Iterator[Client]:
    """This package's client of ``server``."""
    with serving(server) as (sock, _ended), Client(sock, offer=offer, **options) as made:  # type: ignore[arg-type]
        yield made


def conversation(server: Server, data: bytes, fds: Sequence[int] = ()) -> tuple[str, bytes]:
    """Send ``data`` (with descriptors at its first byte) and close; why the server ended, and what
    it had answered. All in this thread.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        theirs.settimeout(5.0)
        if data:
            socket.send_fds(theirs, [data], fds)
        theirs.shutdown(socket.SHUT_WR)
        why = server.serve(ours)
        answered = b""
        while piece := theirs.recv(1 << 20):
            answered += piece
    return why, answered


def messages(data: bytes) -> list[Message]:
    """Whole messages out of ``data``."""
    return wire.Framer().feed(data)


def version(offer: Capabilities = SHARED) -> bytes:
    return wire.request(0, Command.VERSION, Version(capabilities=offer).pack()).pack()
