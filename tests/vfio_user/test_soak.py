"""Many requests, good and bad: nothing grows."""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
import time
from pathlib import Path

import pytest
from served import SHARED, TWIN, Peer, Plain, client, conversation, open_files, serving
from served import version as version_bytes

from vfiokit.kernel import linux
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.catalogue import edu, nvme
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap, RegionAccess, SetIrqs
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.wire import Command

PAGES = os.sysconf("SC_PAGE_SIZE")
READ = RegionAccess(4, 0, 4).pack()
GROWTH = 4 << 20
"""Bytes that the allocator may keep; a leak of 16 bytes a request would be four times that."""


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGES


class Steady:
    """Nothing may grow between the first turn and the last."""

    def __init__(self) -> None:
        self._memory, self._files = resident(), open_files()

    def check(self) -> None:
        assert open_files() <= self._files
        grown = resident() - self._memory
        assert grown < GROWTH, f"{grown >> 10} KiB more"


def _requests(peer: Peer, count: int) -> None:
    """``count`` pipelined requests of several kinds, their replies read and checked."""
    kinds = [
        (Command.REGION_READ, READ),
        (Command.REGION_WRITE, RegionAccess(4, 0, 4, b"soak").pack()),
        (Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 2, 0)),
        (Command.REGION_READ, RegionAccess(0, 7, 64).pack()),
    ]
    batch = b"".join(
        wire.request(number, *kinds[number % len(kinds)]).pack() for number in range(64)
    )
    for _ in range(count // 64):
        peer.link.post(batch)
        for number in range(64):
            reply = peer.link.receive()
            assert reply.id == number
            assert not reply.is_error


def _soak(total: int) -> float:
    with serving(Server(edu())) as (sock, _ended):
        peer = Peer(sock)
        _requests(peer, 20_000)
        steady, begun = Steady(), time.perf_counter()
        for _ in range(10):
            _requests(peer, total // 10)
        steady.check()
        peer.close()
    return total / (time.perf_counter() - begun)


def test_a_hundred_thousand_requests_leave_nothing_behind() -> None:
    _soak(100_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_requests_leave_nothing_behind() -> None:
    _soak(1_000_000)


def _map_and_unmap(peer: Peer, memory: int, event: int, count: int) -> None:
    request, away = DmaMap(0x10000, 4096).pack(), DmaUnmap(0x10000, 4096).pack()
    for _ in range(count):
        assert not peer.ask(Command.DMA_MAP, request, [memory]).is_error
        assert not peer.ask(
            Command.DEVICE_SET_IRQS, SetIrqs(0x24, 1, 0, 1).pack(), [event]
        ).is_error
        assert not peer.ask(Command.DMA_UNMAP, away).is_error
        assert not peer.ask(Command.DEVICE_SET_IRQS, SetIrqs(0x24, 1, 0, 1).pack()).is_error


def test_mappings_and_eventfds_come_and_go() -> None:
    memory, event = linux.memory_file("test", 4096), linux.eventfd()
    with serving(Server(edu())) as (sock, _ended):
        peer = Peer(sock)
        _map_and_unmap(peer, memory, event, 500)
        steady = Steady()
        _map_and_unmap(peer, memory, event, 4000)
        steady.check()
        peer.close()
    os.close(memory)
    os.close(event)


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
def test_clients_come_and_go(offer) -> None:
    device = Plain()
    server = Server(device)
    sent = version_bytes(offer)
    for _ in range(100):
        conversation(server, sent)
    device.events.clear()
    steady = Steady()
    for _ in range(2000):
        conversation(server, sent)
        device.events.clear()
    steady.check()


def _malformed(source: random.Random) -> bytes:
    """A message that a server has to refuse, or a header that it cannot follow."""
    command = source.randrange(0, 20)
    body = source.randbytes(source.choice([0, 1, 7, 8, 15, 16, 20, 23, 24, 31, 32, 33, 64]))
    flags = source.choice([0, 0, 0, 0x10])
    return wire.HEADER.pack(source.randrange(65536), command, 16 + len(body), flags, 0) + body


def _attack(server: Server, source: random.Random, count: int) -> None:
    """``count`` malformed messages, a few hundred for each connection; each ends somehow."""
    while count > 0:
        part = [_malformed(source) for _ in range(min(200, count))]
        if not source.randrange(4):
            part.append(source.randbytes(40))  # ends the connection
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.sendall(version_bytes() + b"".join(part))
            theirs.shutdown(socket.SHUT_WR)
            server.serve(ours)
        count -= len(part)


@pytest.mark.parametrize(
    "make", [Plain, edu, lambda: nvme(size=1 << 20)], ids=["plain", "edu", "nvme"]
)
def test_ten_thousand_malformed_messages_leave_a_server(make) -> None:
    _stand(make(), 10_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_malformed_messages_leave_a_server() -> None:
    _stand(edu(), 100_000)


def _stand(device, count: int) -> None:
    server, source = Server(device), random.Random(20260101)
    _attack(server, source, 2000)
    steady = Steady()
    _attack(server, source, count)
    if isinstance(device, Plain):
        device.events.clear()
    steady.check()
    with client(server) as peer:
        assert peer.device_info().num_regions == 9
        peer.reset()
        peer.region_read(0, 0, 4)
