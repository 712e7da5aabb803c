"""Commands are handled in the order they were sent, also while the device asks for memory."""

from __future__ import annotations

import socket
import threading

import pytest

from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.device import NUM_IRQS, Host, ServedRegion
from vfiokit.vfio_user.payload import DmaMap
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities


class Notebook:
    """Reads the client's memory at each write of register 0, then notes what was written."""

    name = "notebook"
    regions = (ServedRegion(4096), *[ServedRegion()] * 8)
    irq_counts = (0,) * NUM_IRQS

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.lengths: set[int] = set()

    def connect(self, host: Host) -> None:
        self._host = host

    def disconnect(self) -> None:
        pass

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        return len(self.seen).to_bytes(length, "little")

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        if offset == 0:
            self.lengths.add(len(self._host.dma_read(0x10000, 0x10000)))
        self.seen.append(int.from_bytes(data, "little"))

    def irqs_changed(self, index: int, vectors: frozenset[int]) -> None:
        pass

    def reset(self) -> None:
        pass


class Memory:
    """Answers the server's reads with zeros, and notes how much was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, iova: int, length: int) -> bytes:
        self.asked.append(length)
        return bytes(length)

    def write(self, iova: int, data: bytes) -> None:
        raise AssertionError("nobody writes")


@pytest.mark.parametrize("twin", [False, True])
def test_posted_writes_stay_in_order_while_the_device_reads_memory(twin: bool) -> None:
    notebook, memory = Notebook(), Memory()
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Server(notebook).serve, args=(theirs,))
    thread.start()
    with Client(ours, offer=Capabilities(16, twin_socket=twin), memory=memory) as client:
        client.dma_map(DmaMap(0x10000, 0x10000))
        for value in range(200):
            # Some reach the server together with the one before, some alone.
            client.region_write(
                0, 0 if value % 3 == 0 else 8, value.to_bytes(4, "little"), posted=True
            )
            if value % 7 == 0:
                client.flush()
        assert int.from_bytes(client.region_read(0, 16, 4), "little") == 200
    thread.join(10)
    assert notebook.seen == list(range(200))
    assert notebook.lengths == {0x10000}


def test_memory_is_asked_for_in_pieces_that_a_socket_takes_whole() -> None:
    notebook, memory = Notebook(), Memory()
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Server(notebook).serve, args=(theirs,))
    thread.start()
    with Client(ours, offer=Capabilities(16), memory=memory) as client:
        client.dma_map(DmaMap(0x10000, 0x10000))
        client.region_write(0, 0, bytes(4))
    thread.join(10)
    # QEMU gives up the rest of a reply that its socket takes in parts.
    assert memory.asked == [32768, 32768]
