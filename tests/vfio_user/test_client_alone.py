"""The server's short way for a read that comes alone: what else comes, and what goes wrong."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vfiokit.errors import KernelError
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.device import NUM_IRQS, Host, ServedRegion
from vfiokit.vfio_user.payload import DmaMap, RegionAccess
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities
from vfiokit.vfio_user.wire import Command, request

READ_FAILS, READ_ASKS, READ_SHORT = 0x10, 0x20, 0x30


class Registers:
    """Register n reads as n; some fail, ask the client, or give too little."""

    name = "registers"
    regions = (ServedRegion(4096), ServedRegion(64, readable=False), *[ServedRegion()] * 7)
    irq_counts = (0,) * NUM_IRQS

    def connect(self, host: Host) -> None:
        self._host = host

    def disconnect(self) -> None:
        pass

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        if offset == READ_FAILS:
            raise OSError(5, "broken")
        if offset == READ_ASKS:
            return self._host.dma_read(0x1000, length)
        return offset.to_bytes(length - (offset == READ_SHORT), "little")

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        pass

    def irqs_changed(self, index: int, vectors: frozenset[int]) -> None:
        pass

    def reset(self) -> None:
        pass


class Memory:
    def read(self, iova: int, length: int) -> bytes:
        return b"\x5a" * length

    def write(self, iova: int, data: bytes) -> None:
        raise AssertionError("nobody writes")


@contextmanager
def connected(twin: bool = False) -> Iterator[tuple[Client, socket.socket]]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Server(Registers()).serve, args=(theirs,))
    thread.start()
    raw = ours.dup()
    try:
        with Client(ours, offer=Capabilities(16, twin_socket=twin), memory=Memory()) as client:
            yield client, raw
    finally:
        raw.close()
        thread.join(10)
    assert not thread.is_alive()


def read(client: Client, offset: int) -> int:
    return int.from_bytes(client.region_read(0, offset, 4), "little")


def test_a_read_that_fails_answers_its_errno_and_the_next_is_served() -> None:
    with connected() as (client, _raw):
        for _ in range(2):
            assert read(client, 4) == 4
            with pytest.raises(KernelError) as caught:
                read(client, READ_FAILS)
            assert caught.value.errno == 5
            with pytest.raises(KernelError):
                read(client, READ_SHORT)
    assert read_beyond_is_refused()


def read_beyond_is_refused() -> bool:
    with connected() as (client, _raw):
        for region, offset in ((0, 4094), (1, 0), (2, 0), (9, 0)):
            with pytest.raises(KernelError):
                client.region_read(region, offset, 4)
        return read(client, 8) == 8


@pytest.mark.parametrize("twin", [False, True])
def test_a_read_may_ask_the_client_for_memory(twin: bool) -> None:
    with connected(twin) as (client, _raw):
        client.dma_map(DmaMap(0x1000, 4096))
        for _ in range(3):
            assert read(client, READ_ASKS) == 0x5A5A5A5A
            assert read(client, 12) == 12


@pytest.mark.parametrize("cut", [1, 15, 16, 31])
def test_a_read_that_arrives_in_parts_is_served(cut: int) -> None:
    message = request(77, Command.REGION_READ, RegionAccess(0x44, 0, 4).pack()).pack()
    with connected() as (client, raw):
        assert read(client, 4) == 4
        for _ in range(2):
            raw.sendall(message[:cut])
            # Time for the server to take the first part alone.
            threading.Event().wait(0.02)
            raw.sendall(message[cut:])
            head = raw.recv(36, socket.MSG_WAITALL)
            assert struct.unpack_from("<HHII", head) == (77, 9, 36, 1)
            assert head[32:] == b"\x44\0\0\0"
        assert read(client, 16 + 4) == 20


def test_a_read_ahead_of_another_message_is_answered_first() -> None:
    first = request(1, Command.REGION_READ, RegionAccess(4, 0, 4).pack()).pack()
    second = request(2, Command.DEVICE_RESET).pack()
    with connected() as (client, raw):
        assert read(client, 4) == 4
        raw.sendall(first + second)
        answer = raw.recv(36 + 16, socket.MSG_WAITALL)
        assert struct.unpack_from("<HH", answer) == (1, 9)
        assert struct.unpack_from("<HH", answer, 36) == (2, 13)


def test_a_client_that_leaves_while_a_read_asks_for_memory_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(Server(Registers()).serve(theirs)))
    thread.start()
    raw = ours.dup()
    client = Client(ours, offer=Capabilities(16), memory=Memory())
    client.dma_map(DmaMap(0x1000, 4096))
    raw.sendall(request(1, Command.REGION_READ, RegionAccess(READ_ASKS, 0, 4).pack()).pack())
    assert raw.recv(16, socket.MSG_WAITALL)[2:4] == b"\x0b\0"  # DMA_READ
    client.close()
    raw.close()
    thread.join(10)
    assert len(ended) == 1
