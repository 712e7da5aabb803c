"""Clients that are broken, hostile or dead: the server answers, drops them, and serves the next."""

# ruff: noqa: E501 - a table with a row for each message
from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import SHARED, TWIN, Peer, Plain, client, conversation, messages, open_files, peer
from served import serving as serving_thread
from served import version as version_bytes

from vfiokit.errors import KernelError, ProtocolError
from vfiokit.kernel import linux
from vfiokit.vfio_user import payload, wire
from vfiokit.vfio_user.catalogue import edu, nvme
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.connection import ClosedError
from vfiokit.vfio_user.dma import DmaFault
from vfiokit.vfio_user.payload import (
    DmaAccess,
    DmaMap,
    DmaUnmap,
    Feature,
    IrqInfo,
    MigrationData,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    SetIrqs,
)
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities, Version
from vfiokit.vfio_user.wire import Command, Message

TRIGGER_EVENTFD = 0x24
CONFIG = 7
GONE = "the other end closed the connection"


@pytest.fixture
def memory() -> Iterator[int]:
    fd = linux.memory_file("test", 8192)
    yield fd
    os.close(fd)


@pytest.fixture
def event() -> Iterator[int]:
    fd = linux.eventfd()
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() <= before + 2  # the fixtures' own


KINDS: dict[Command, bytes] = {
    Command.VERSION: Version(capabilities=SHARED).pack(),
    Command.DMA_MAP: DmaMap(0x10000, 8192).pack(),
    Command.DMA_UNMAP: DmaUnmap(0x10000, 8192).pack(),
    Command.DEVICE_GET_INFO: payload.DeviceInfo().pack(),
    Command.DEVICE_GET_REGION_INFO: RegionInfo(0).pack(),
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds(0).pack(),
    Command.DEVICE_GET_IRQ_INFO: IrqInfo(2).pack(),
    Command.DEVICE_SET_IRQS: SetIrqs(TRIGGER_EVENTFD, 2, 0, 1).pack(),
    Command.REGION_READ: RegionAccess(0, 0, 16).pack(),
    Command.REGION_WRITE: RegionAccess(0x10, 0, 8, b"8 bytes!").pack(),
    Command.DMA_READ: DmaAccess(0, 8).pack(),
    Command.DMA_WRITE: DmaAccess(0, 8, bytes(8)).pack(),
    Command.DEVICE_RESET: b"",
    Command.REGION_WRITE_MULTI: payload.pack_writes(
        [payload.RegionWrite(0, 0, b"1234"), payload.RegionWrite(8, 0, b"12345678")]
    ),
    Command.DEVICE_FEATURE: Feature(1 << 16 | 1).pack(),
    Command.MIG_DATA_READ: MigrationData(64).pack(),
    Command.MIG_DATA_WRITE: MigrationData(8, bytes(8)).pack(),
}


def is_served(server: Server) -> None:
    """The next client finds a working device."""
    info = wire.request(1, Command.DEVICE_GET_INFO, KINDS[Command.DEVICE_GET_INFO]).pack()
    why, answered = conversation(server, version_bytes() + info)
    assert GONE in why
    first, second = messages(answered)
    assert not first.is_error
    assert payload.DeviceInfo.unpack(second.payload).num_regions == 9


def test_every_command_has_a_message_here() -> None:
    assert set(KINDS) == set(Command)


@pytest.mark.parametrize("command", Command, ids=lambda command: command.name)
def test_a_client_may_die_at_any_byte_of_any_message(
    command: Command, memory: int, event: int
) -> None:
    device = Plain()
    server = Server(device)
    fds = {Command.DMA_MAP: [memory], Command.DEVICE_SET_IRQS: [event]}.get(command, [])
    whole = wire.request(7, command, KINDS[command]).pack()
    before = open_files()
    for cut in range(len(whole) + 1):
        ours, theirs = socket.socketpair()
        with theirs:
            if command is not Command.VERSION:
                theirs.send(version_bytes())
            if cut:
                socket.send_fds(theirs, [whole[:cut]], fds)
        server.serve(ours)
        assert open_files() == before, f"after {cut} bytes"
    assert device.events.count("connect") == device.events.count("disconnect")
    is_served(server)


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
@pytest.mark.parametrize("register", [0x100, 0x108], ids=["read", "write"])
def test_a_client_may_die_while_the_device_waits_for_its_memory(
    offer: Capabilities, register: int
) -> None:
    device = Plain()
    server = Server(device)
    for cut in range(33):
        with serving_thread(server) as (sock, _ended):
            raw = Peer(sock, offer=offer)
            raw.ask(Command.DMA_MAP, DmaMap(0x10000, 8192).pack())
            raw.send(
                Command.REGION_WRITE,
                RegionAccess(register, 0, 8, struct.pack("<Q", 0x10000)).pack(),
            )
            link = raw.twin or raw.link
            asked = link.receive()
            reply = wire.reply(asked, asked.payload[:16] + bytes(16)).pack()
            link._sock.send(reply[:cut])
            raw.close()
    is_served(server)


BAD: list[tuple[str, Command | int, bytes, int]] = [
    ("an unknown command", 99, b"", errno.ENOTSUP),
    ("the removed command 14", 14, b"", errno.ENOTSUP),
    ("VERSION again", Command.VERSION, KINDS[Command.VERSION], errno.EINVAL),
    ("a command of the server's", Command.DMA_READ, KINDS[Command.DMA_READ], errno.EINVAL),
    ("RESET with a payload", Command.DEVICE_RESET, b"x", errno.EINVAL),
    ("a map of nothing", Command.DMA_MAP, DmaMap(0, 0).pack(), errno.EINVAL),
    ("a map off a page", Command.DMA_MAP, DmaMap(1, 4096).pack(), errno.EINVAL),
    ("a map of part of a page", Command.DMA_MAP, DmaMap(0, 100).pack(), errno.EINVAL),
    ("a map past the top", Command.DMA_MAP, DmaMap(2**64 - 4096, 8192).pack(), errno.EINVAL),
    ("a map with unknown flags", Command.DMA_MAP, DmaMap(0, 4096, 0x40).pack(), errno.EINVAL),
    ("a file flag without a file", Command.DMA_MAP, DmaMap(0, 4096, 7).pack(), errno.EINVAL),
    ("a short map", Command.DMA_MAP, DmaMap(0, 4096).pack()[:-1], errno.EINVAL),
    ("a long map", Command.DMA_MAP, DmaMap(0, 4096).pack() + b"x", errno.EINVAL),
    ("an unmap of what is not there", Command.DMA_UNMAP, DmaUnmap(0, 4096).pack(), errno.ENOENT),
    ("an unmap of all, with an address", Command.DMA_UNMAP, DmaUnmap(1, 0, 2).pack(), errno.EINVAL),
    ("the old dirty bitmap", Command.DMA_UNMAP, DmaUnmap(0, 4096, 1).pack(), errno.ENOTSUP),
    ("region 9", Command.DEVICE_GET_REGION_INFO, RegionInfo(9).pack(), errno.EINVAL),
    ("region 2**32-1", Command.DEVICE_GET_REGION_INFO, RegionInfo(2**32 - 1).pack(), errno.EINVAL),
    ("doorbells of region 9", Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(9).pack(), errno.EINVAL),
    ("interrupt index 5", Command.DEVICE_GET_IRQ_INFO, IrqInfo(5).pack(), errno.EINVAL),
    ("a vector too many", Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 4, 1).pack(), errno.EINVAL),
    ("vectors past 2**32", Command.DEVICE_SET_IRQS, SetIrqs(0x21, 2, 2**32 - 1, 2**32 - 1).pack(), errno.EINVAL),
    ("no vector", Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 0, 0).pack(), errno.EINVAL),
    ("two data types", Command.DEVICE_SET_IRQS, SetIrqs(0x23, 2, 0, 1).pack(), errno.EINVAL),
    ("two actions", Command.DEVICE_SET_IRQS, SetIrqs(0x31, 2, 0, 1).pack(), errno.EINVAL),
    ("no action", Command.DEVICE_SET_IRQS, SetIrqs(0x01, 2, 0, 1).pack(), errno.EINVAL),
    ("values missing", Command.DEVICE_SET_IRQS, SetIrqs(0x22, 2, 0, 2, b"x").pack(), errno.EINVAL),
    ("a masked vector", Command.DEVICE_SET_IRQS, SetIrqs(0x09, 2, 0, 1).pack(), errno.EINVAL),
    ("interrupts of index 9", Command.DEVICE_SET_IRQS, SetIrqs(0x21, 9, 0, 0).pack(), errno.EINVAL),
    ("a read past the end", Command.REGION_READ, RegionAccess(4096 - 3, 0, 4).pack(), errno.EINVAL),
    ("a read at the far end", Command.REGION_READ, RegionAccess(2**64 - 4, 0, 4).pack(), errno.EINVAL),
    ("a read of a region of no size", Command.REGION_READ, RegionAccess(0, 3, 4).pack(), errno.EINVAL),
    ("a read of region 2**32-1", Command.REGION_READ, RegionAccess(0, 2**32 - 1, 4).pack(), errno.EINVAL),
    ("a read of 4 GiB", Command.REGION_READ, RegionAccess(0, 0, 2**32 - 1).pack(), errno.EINVAL),
    ("a write past the end", Command.REGION_WRITE, RegionAccess(4093, 0, 4, b"xxxx").pack(), errno.EINVAL),
    ("a write that lacks data", Command.REGION_WRITE, RegionAccess(0, 0, 8, b"xxxx").pack(), errno.EINVAL),
    ("a write with too much data", Command.REGION_WRITE, RegionAccess(0, 0, 2, b"xxxx").pack(), errno.EINVAL),
    ("many writes that are none", Command.REGION_WRITE_MULTI, struct.pack("<Q", 2**64 - 1), errno.EINVAL),
    ("a write of 9 bytes among many", Command.REGION_WRITE_MULTI, struct.pack("<QQIIQ", 1, 0, 0, 9, 0), errno.EINVAL),
    ("feature 999", Command.DEVICE_FEATURE, Feature(1 << 16 | 999).pack(), errno.ENOTTY),
    ("a feature that nobody uses", Command.DEVICE_FEATURE, Feature(1).pack(), errno.EINVAL),
    ("migration state 99", Command.DEVICE_FEATURE, Feature(1 << 17 | 2, struct.pack("<Ii", 99, -1)).pack(), errno.EINVAL),
    ("a state without a state", Command.DEVICE_FEATURE, Feature(1 << 17 | 2).pack(), errno.EINVAL),
    ("a log in pages of 3", Command.DEVICE_FEATURE, Feature(1 << 17 | 6, struct.pack("<QII", 3, 0, 0)).pack(), errno.EINVAL),
    ("a log of ranges that are missing", Command.DEVICE_FEATURE, Feature(1 << 17 | 6, struct.pack("<QII", 4096, 2**32 - 1, 0)).pack(), errno.EINVAL),
    ("a report without a log", Command.DEVICE_FEATURE, Feature(1 << 16 | 8, struct.pack("<QQQ", 0, 4096, 4096)).pack(), errno.EINVAL),
    ("a device state while running", Command.MIG_DATA_READ, MigrationData(8).pack(), errno.EINVAL),
    ("state data while running", Command.MIG_DATA_WRITE, MigrationData(8, bytes(8)).pack(), errno.EINVAL),
    *[
        (f"{command.name} cut short", command, KINDS[command][:-1], errno.EINVAL)
        for command in Command
        if KINDS[command] and command is not Command.VERSION
    ],
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "body", "code"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD]
)
def test_a_malformed_message_is_refused_and_the_next_is_served(
    command: int, body: bytes, code: int
) -> None:
    bad = wire.request(5, command, body).pack()
    good = wire.request(6, Command.DEVICE_GET_INFO, KINDS[Command.DEVICE_GET_INFO]).pack()
    why, answered = conversation(Server(Plain()), version_bytes() + bad + good)
    assert GONE in why
    _version, refused, served = messages(answered)
    assert (refused.id, refused.command, refused.errno) == (5, command, code)
    assert refused.is_error
    assert (served.id, served.is_error) == (6, False)


@pytest.mark.parametrize(
    ("command", "body", "code"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD]
)
def test_a_malformed_message_that_wants_no_reply_gets_none(
    command: int, body: bytes, code: int
) -> None:
    del code
    bad = wire.request(5, command, body, reply=False).pack()
    good = wire.request(6, Command.DEVICE_GET_INFO, KINDS[Command.DEVICE_GET_INFO]).pack()
    _why, answered = conversation(Server(Plain()), version_bytes() + bad + good)
    assert [message.id for message in messages(answered)] == [0, 6]


HEADERS = {
    "a size below the header": struct.pack("<HHIII", 1, 4, 15, 0, 0),
    "a size of nothing": struct.pack("<HHIII", 1, 4, 0, 0, 0),
    "a size of 4 GiB": struct.pack("<HHIII", 1, 4, 2**32 - 1, 0, 0),
    "a type that does not exist": struct.pack("<HHIII", 1, 4, 16, 5, 0),
    "a flag that does not exist": struct.pack("<HHIII", 1, 4, 16, 0x40, 0),
    "an error in a command": struct.pack("<HHIII", 1, 4, 16, 0x20, 5),
    "a reply that nobody asked for": struct.pack("<HHIII", 1, 4, 16, 1, 0),
    "a reply that wants no reply": struct.pack("<HHIII", 1, 4, 16, 0x11, 0),
    "noise": bytes(range(64)),
}


@pytest.mark.parametrize("agreed", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_stream_that_cannot_be_followed_is_closed(header: bytes, agreed: bool) -> None:
    server = Server(Plain())
    why, answered = conversation(server, (version_bytes() if agreed else b"") + header)
    assert why.startswith("the client broke the protocol: ")
    assert len(messages(answered)) == agreed
    is_served(server)


VERSIONS = {
    "nothing": b"",
    "half a version": b"\0\0\0",
    "another major": b"\1\0\0\0{}\0",
    "no end": b"\0\0\0\0{}",
    "two ends": b"\0\0\0\0{}\0{}\0",
    "no JSON": b"\0\0\0\0{\0",
    "a list": b"\0\0\0\0[]\0",
    "a deep list": b"\0\0\0\0" + b"[" * 50000 + b"\0",
    "a long text": b"\0\0\0\0" + b'{"x": "' + b"y" * 70000 + b'"}\0',
    "a long number": b'\0\0\0\0{"capabilities": {"max_msg_fds": ' + b"9" * 5000 + b"}}\0",
    "not a number": b'\0\0\0\0{"capabilities": {"max_msg_fds": NaN}}\0',
    "infinity": b'\0\0\0\0{"capabilities": {"max_dma_maps": 1e999}}\0',
    "a truth": b'\0\0\0\0{"capabilities": {"max_dma_maps": true}}\0',
    "a negative size": b'\0\0\0\0{"capabilities": {"max_data_xfer_size": -1}}\0',
    "a size of 0": b'\0\0\0\0{"capabilities": {"max_data_xfer_size": 0}}\0',
    "no text": b"\0\0\0\0\xff\xfe\0",
    "a twin in a strange place": b'\0\0\0\0{"capabilities": {"twin_socket": {"fd_index": -1}}}\0',
}


@pytest.mark.parametrize("body", VERSIONS.values(), ids=VERSIONS)
def test_a_version_that_makes_no_sense_is_refused(body: bytes) -> None:
    server = Server(Plain())
    _why, answered = conversation(server, wire.request(0, Command.VERSION, body).pack())
    (refused,) = messages(answered)
    assert (refused.is_error, refused.errno) == (True, errno.EINVAL)
    is_served(server)


def test_nothing_is_said_before_the_version() -> None:
    info = wire.request(1, Command.DEVICE_GET_INFO, KINDS[Command.DEVICE_GET_INFO]).pack()
    why, answered = conversation(Server(Plain()), info)
    assert "the client broke the protocol" in why
    assert messages(answered)[0].errno == errno.EINVAL


# -- descriptors ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", Command, ids=lambda command: command.name)
@pytest.mark.parametrize("count", [1, 3, 17, 200])
def test_descriptors_that_nobody_wants_are_closed(
    command: Command, count: int, memory: int
) -> None:
    before = open_files()
    first = b"" if command is Command.VERSION else version_bytes()
    server = Server(Plain())
    ours, theirs = socket.socketpair()
    with theirs:
        if first:
            theirs.send(first)
        socket.send_fds(theirs, [wire.request(5, command, KINDS[command]).pack()], [memory] * count)
        theirs.shutdown(socket.SHUT_WR)
        server.serve(ours)
    assert open_files() == before
    is_served(server)


def test_descriptors_that_find_no_room_end_the_connection(event: int) -> None:
    """Without them the message would be another: an eventfd less is an interrupt taken away."""
    server = Server(Plain())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(version_bytes())
        request = wire.request(5, Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 0, 4).pack())
        socket.send_fds(theirs, [request.pack()], [event] * 4)
        theirs.shutdown(socket.SHUT_WR)
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        free = (number for number in itertools.count() if number not in used)
        # The limit is a number, not a count: below it two are free, and the folder's just now.
        resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, 2, 3)), limits[1]))
        try:
            why = server.serve(ours)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "too many files are open" in why
    is_served(server)


def test_a_file_that_is_no_eventfd_is_no_interrupt(memory: int) -> None:
    with peer(Server(Plain())) as raw:
        request = SetIrqs(TRIGGER_EVENTFD, 2, 0, 1).pack()
        assert raw.ask(Command.DEVICE_SET_IRQS, request, [memory]).errno == errno.EINVAL


def test_an_eventfd_at_its_limit_holds_nobody_up() -> None:
    full = linux.eventfd(0, 0)
    os.set_blocking(full, True)
    os.eventfd_write(full, 2**64 - 2)
    try:
        with peer(Server(Plain())) as raw:
            request = SetIrqs(TRIGGER_EVENTFD, 2, 0, 1).pack()
            assert not raw.ask(Command.DEVICE_SET_IRQS, request, [full]).is_error
            trigger = SetIrqs(0x21, 2, 0, 1).pack()
            assert not raw.ask(Command.DEVICE_SET_IRQS, trigger).is_error
    finally:
        os.close(full)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "eventfd", "device"])
def test_memory_is_a_file(kind: str) -> None:
    first, second = {
        "pipe": os.pipe,
        "socket": lambda: [end.detach() for end in socket.socketpair()],
        "folder": lambda: (os.open("/", os.O_RDONLY), -1),
        "eventfd": lambda: (linux.eventfd(), -1),
        "device": lambda: (os.open("/dev/zero", os.O_RDWR), -1),
    }[kind]()
    try:
        with peer(Server(Plain())) as raw:
            reply = raw.ask(Command.DMA_MAP, DmaMap(0, 4096).pack(), [first])
            assert reply.errno == errno.EINVAL
    finally:
        for fd in (first, second):
            if fd >= 0:
                os.close(fd)


def test_a_file_that_its_owner_cuts_is_no_sigbus(tmp_path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(8192))
    device = Plain()
    with open(path, "r+b") as file, client(Server(device)) as made:
        made.dma_map(DmaMap(0x10000, 8192), file.fileno())
        made.region_write(0, 0x100, struct.pack("<Q", 0x10000))
        file.truncate(0)
        with pytest.raises(KernelError) as caught:
            made.region_write(0, 0x100, struct.pack("<Q", 0x10000))
        assert caught.value.errno == errno.EFAULT
        assert made.region_read(0, 0, 4) == bytes(4)


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_a_file_that_cannot_be_written_or_read_is_a_fault(tmp_path, mode: str) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(8192))
    with open(path, mode) as file, client(Server(Plain())) as made:
        made.dma_map(DmaMap(0x10000, 8192), file.fileno())
        register = 0x108 if mode == "rb" else 0x100
        with pytest.raises(KernelError) as caught:
            made.region_write(0, register, struct.pack("<Q", 0x10000))
        assert caught.value.errno == errno.EFAULT


# -- the server's own requests ----------------------------------------------------------------


def start_dma(raw: Peer, register: int = 0x100) -> Message:
    """Let the device ask for memory; its request."""
    raw.ask(Command.DMA_MAP, DmaMap(0x10000, 8192).pack())
    body = RegionAccess(register, 0, 8, struct.pack("<Q", 0x10000)).pack()
    raw.send(Command.REGION_WRITE, body)
    return (raw.twin or raw.link).receive()


def ends(raw: Peer) -> None:
    """Whatever still comes, the connection ends."""
    for _ in range(100):
        try:
            raw.link.receive()
        except (ClosedError, ProtocolError):
            return
    raise AssertionError("the connection goes on")


REPLIES = {
    "another id": lambda asked: asked._replace(id=asked.id + 1, flags=1),
    "another command": lambda asked: asked._replace(command=12, flags=1),
    "another address": lambda asked: wire.reply(asked, DmaAccess(0x11000, 16, bytes(16)).pack()),
    "another count": lambda asked: wire.reply(asked, DmaAccess(0x10000, 8, bytes(8)).pack()),
    "too few bytes": lambda asked: wire.reply(asked, DmaAccess(0x10000, 16, bytes(15)).pack()),
    "too many bytes": lambda asked: wire.reply(asked, DmaAccess(0x10000, 16, bytes(17)).pack()),
    "no payload": lambda asked: wire.reply(asked),
}


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
@pytest.mark.parametrize("make", REPLIES.values(), ids=REPLIES)
def test_a_wrong_answer_to_a_dma_read_ends_the_connection(make, offer: Capabilities) -> None:
    server = Server(Plain())
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock, offer=offer)
        asked = start_dma(raw)
        (raw.twin or raw.link).send(make(asked))
        ends(raw)
        raw.close()
    assert "no answer to a DMA read" in ended.why
    is_served(server)


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
@pytest.mark.parametrize("code", [errno.EFAULT, errno.EPERM, 0, 2**32 - 1])
def test_an_error_in_answer_to_a_dma_read_is_the_devices(code: int, offer: Capabilities) -> None:
    with peer(Server(Plain()), offer) as raw:
        asked = start_dma(raw)
        (raw.twin or raw.link).send(wire.error_reply(asked, code))
        refused = raw.link.receive()
        assert refused.errno == (code if 0 < code < 4096 else errno.EIO)
        assert not raw.ask(Command.DEVICE_RESET).is_error


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
def test_a_client_that_never_answers_is_dropped(offer: Capabilities) -> None:
    server = Server(Plain(), dma_timeout=0.1)
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock, offer=offer)
        start_dma(raw)
        ends(raw)
        raw.close()
    assert "did not answer in time" in ended.why
    is_served(server)


def test_a_client_that_answers_a_byte_at_a_time_is_dropped() -> None:
    server = Server(Plain(), dma_timeout=0.3)
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock)
        asked = start_dma(raw)
        begun = time.monotonic()
        packed = wire.reply(asked, DmaAccess(0x10000, 16, bytes(16)).pack()).pack()
        with contextlib.suppress(OSError):  # it stops listening
            for byte in packed:
                sock.send(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - begun < 3
        raw.close()
    assert "did not answer in time" in ended.why


def test_a_client_that_talks_instead_of_answering_is_dropped() -> None:
    server = Server(Plain())
    reset = wire.request(9, Command.DEVICE_RESET, reply=False).pack() * 4096
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock)
        start_dma(raw)
        with contextlib.suppress(OSError):  # it stops listening
            for _ in range(64):
                sock.sendall(reset)
        raw.close()
    assert "commands instead of the reply" in ended.why
    is_served(server)


def test_a_command_on_the_twin_socket_ends_the_connection() -> None:
    server = Server(Plain())
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock, offer=TWIN)
        start_dma(raw)
        assert raw.twin is not None
        raw.twin.send(wire.request(1, Command.DEVICE_RESET))
        ends(raw)
        raw.close()
    assert "DEVICE_RESET on the socket of the server's requests" in ended.why


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
def test_stop_ends_a_wait_for_the_clients_memory(offer: Capabilities) -> None:
    server = Server(Plain())
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock, offer=offer)
        start_dma(raw)
        server.stop()
        ends(raw)
        raw.close()
    assert ended.why


def test_an_nvme_controller_outlives_a_client_that_dies_in_its_dma() -> None:
    """The device asks for its queue's entry when the doorbell rings, and nobody answers."""
    device = nvme(size=1 << 20)
    server = Server(device)
    for _ in range(3):
        with serving_thread(server) as (sock, _ended):
            raw = Peer(sock)
            raw.ask(Command.DMA_MAP, DmaMap(0, 1 << 20).pack())
            for region, offset, value, width in (
                (CONFIG, 4, 6, 2),
                (0, 0x14, 0, 4),
                (0, 0x24, 0x000F000F, 4),
                (0, 0x28, 0x1000, 8),
                (0, 0x30, 0x2000, 8),
                (0, 0x14, 0x00460001, 4),
            ):
                body = RegionAccess(offset, region, width, value.to_bytes(width, "little")).pack()
                assert not raw.ask(Command.REGION_WRITE, body).is_error
            raw.send(Command.REGION_WRITE, RegionAccess(0x1000, 0, 4, b"\1\0\0\0").pack())
            asked = raw.link.receive()
            assert (asked.command, asked.payload[:8]) == (
                Command.DMA_READ,
                (0x1000).to_bytes(8, "little"),
            )
            raw.close()
    with client(server) as made:
        made.reset()
        assert made.region_read(0, 0x1C, 4) == bytes(4)


# -- devices with mistakes of their own -------------------------------------------------------


class Faulty(Plain):
    """Fails as it is told by its registers."""

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        answers = {0: b"", 8: bytes(length + 1), 16: None, 24: "text"}
        return answers.get(offset, bytes(length))  # type: ignore[return-value]

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        errors: dict[int, Exception] = {
            0: ValueError("a mistake"),
            8: OSError("no number"),
            16: OSError(-5, "a strange number"),
            24: OSError(10**12, "a large number"),
            32: MemoryError(),
            40: RecursionError(),
            48: KeyError("x"),
            56: DmaFault("read", 0, 4, "nothing is there"),
            64: PermissionError(errno.EPERM, "not allowed"),
        }
        raise errors[offset]

    def disconnect(self) -> None:
        super().disconnect()
        raise RuntimeError("even here")

    def reset(self) -> None:
        raise RuntimeError("and here")

    def irqs_changed(self, index: int, vectors: frozenset[int]) -> None:
        raise RuntimeError("and there")


def test_a_device_that_fails_is_an_error_reply(event: int) -> None:
    server = Server(Faulty())
    for size in (4, 100):  # the short way and the long
        with peer(server) as raw:
            for offset in range(0, 32, 8):
                reply = raw.ask(Command.REGION_READ, RegionAccess(offset, 0, size).pack())
                assert reply.errno == errno.EIO
            codes = [
                raw.ask(Command.REGION_WRITE, RegionAccess(at, 0, size, bytes(size)).pack()).errno
                for at in range(0, 72, 8)
            ]
            assert codes == [errno.EIO] * 7 + [errno.EFAULT, errno.EPERM]
            assert raw.ask(Command.DEVICE_RESET).errno == errno.EIO
            set_irqs = SetIrqs(TRIGGER_EVENTFD, 2, 0, 1).pack()
            assert raw.ask(Command.DEVICE_SET_IRQS, set_irqs, [event]).errno == errno.EIO
            assert not raw.ask(Command.REGION_READ, RegionAccess(96, 0, size).pack()).is_error
    is_served(server)


def test_a_device_that_cannot_connect_is_an_error_reply() -> None:
    class Shy(Plain):
        def connect(self, host: object) -> None:
            raise RuntimeError("not now")

    _why, answered = conversation(Server(Shy()), version_bytes())
    assert messages(answered)[0].errno == errno.EIO


# -- anything at all --------------------------------------------------------------------------

bodies = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(list(KINDS.values())),
    st.tuples(st.sampled_from(list(KINDS.values())), st.integers(0, 63), st.binary(max_size=8)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
    ),
)
anything = st.lists(
    st.tuples(st.integers(0, 20) | st.integers(0, 65535), bodies, st.booleans()), max_size=12
)


@pytest.mark.parametrize(
    "make", [Plain, edu, lambda: nvme(size=1 << 20)], ids=["plain", "edu", "nvme"]
)
@settings(max_examples=150, deadline=None)
@given(commands=anything)
def test_whatever_a_client_says_each_command_has_its_answer(make, commands) -> None:
    server = Server(make())
    sent = version_bytes()
    for number, (command, body, wants_reply) in enumerate(commands, 1):
        sent += wire.request(number, command, body, reply=wants_reply).pack()
    before = open_files()
    why, answered = conversation(server, sent)
    assert open_files() == before
    replies = [message for message in messages(answered) if message.is_reply]
    expected = [0, *(number for number, (_c, _b, wanted) in enumerate(commands, 1) if wanted)]
    found = [message.id for message in replies]
    if GONE in why:
        assert found == expected
    else:  # the device asked for memory, and nobody was there
        assert found == expected[: len(found)]
    is_served(server)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_whatever_bytes_come_the_next_client_is_served(noise: bytes, agreed: bool) -> None:
    server = Server(Plain())
    before = open_files()
    conversation(server, (version_bytes() if agreed else b"") + noise)
    assert open_files() == before
    is_served(server)


@settings(max_examples=60, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from([
            "capabilities", "max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes",
            "twin_socket", "supported", "fd_index", "write_multiple", "migration",
        ]),
        inner,
        max_size=5,
    ),
    max_leaves=20,
))  # fmt: skip
def test_whatever_a_client_offers_it_has_an_answer(document: object) -> None:
    body = b"\0\0\1\0" + json.dumps(document).encode() + b"\0"
    server = Server(Plain())
    _why, answered = conversation(server, wire.request(0, Command.VERSION, body).pack())
    (reply,) = messages(answered)
    assert reply.is_reply
    if not reply.is_error:
        Version.unpack(reply.payload)
    is_served(server)


def test_two_clients_at_a_time_wait_for_each_other() -> None:
    """A server serves one: the second is served when the first is gone."""
    server = Server(Plain())
    order: list[str] = []
    first, second = socket.socketpair(), socket.socketpair()

    def serve() -> None:
        for ours, _theirs in (first, second):
            server.serve(ours)
            order.append("gone")

    thread = threading.Thread(target=serve)
    thread.start()
    with Client(first[1]) as one:
        one.region_write(0, 0x20, b"kept")
        order.append("written")
    with Client(second[1]) as two:
        order.append("read")
        assert two.region_read(0, 0x20, 4) == b"kept"
    thread.join()
    assert order == ["written", "gone", "read", "gone"] or order == [
        "written",
        "read",
        "gone",
        "gone",
    ]


# -- a register whose value lies in the client's memory -----------------------------------------


class Reader(Plain):
    """Offset 0x300 reads the client's memory at 0x10000."""

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        if offset != 0x300:
            return super().region_read(region, offset, length)
        assert self.host is not None
        return self.host.dma_read(0x10000, length)


def start_read(raw: Peer) -> Message:
    raw.ask(Command.DMA_MAP, DmaMap(0x10000, 8192).pack())
    raw.ask(Command.REGION_READ, RegionAccess(0, 0, 4).pack())  # alone, and so the short way
    raw.send(Command.REGION_READ, RegionAccess(0x300, 0, 4).pack())
    return (raw.twin or raw.link).receive()


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
def test_a_read_that_needs_the_client_is_answered_in_turn(offer: Capabilities) -> None:
    with peer(Server(Reader()), offer) as raw:
        asked = start_read(raw)
        behind = raw.send(Command.DEVICE_GET_INFO, KINDS[Command.DEVICE_GET_INFO])
        (raw.twin or raw.link).send(wire.reply(asked, DmaAccess(0x10000, 4, b"live").pack()))
        first, second = raw.link.receive(), raw.link.receive()
        assert first.payload[16:] == b"live"
        assert (second.id, second.is_error) == (behind, False)


@pytest.mark.parametrize("offer", [SHARED, TWIN], ids=["one stream", "twin socket"])
@pytest.mark.parametrize("how", ["silence", "a wrong answer", "half an answer"])
def test_a_read_whose_client_fails_ends_the_connection(offer: Capabilities, how: str) -> None:
    server = Server(Reader(), dma_timeout=0.2 if how == "silence" else 5.0)
    with serving_thread(server) as (sock, ended):
        raw = Peer(sock, offer=offer)
        asked = start_read(raw)
        link = raw.twin or raw.link
        if how == "a wrong answer":
            link.send(wire.reply(asked, DmaAccess(0x20000, 4, b"live").pack()))
        elif how == "half an answer":
            link._sock.send(wire.reply(asked, DmaAccess(0x10000, 4, b"live").pack()).pack()[:20])
            link._sock.shutdown(socket.SHUT_WR)
        ends(raw)
        raw.close()
    assert "no answer to a DMA read" in ended.why
    is_served(server)


# -- limits -------------------------------------------------------------------------------------


def test_mappings_beyond_the_limit_are_refused_until_one_goes() -> None:
    limits = Capabilities(max_msg_fds=16, max_dma_maps=3)
    with peer(Server(Plain(), limits=limits)) as raw:
        answers = [raw.ask(Command.DMA_MAP, DmaMap(at << 12, 4096).pack()).errno for at in range(4)]
        assert answers == [0, 0, 0, errno.ENOSPC]
        assert raw.ask(Command.DMA_MAP, DmaMap(0, 4096).pack()).errno == 0  # the same again
        assert raw.ask(Command.DMA_UNMAP, DmaUnmap(0, 4096).pack()).errno == 0
        assert raw.ask(Command.DMA_MAP, DmaMap(3 << 12, 4096).pack()).errno == 0


def test_a_transfer_beyond_the_limit_is_refused() -> None:
    limits = Capabilities(max_msg_fds=16, max_data_xfer_size=64)
    with peer(Server(Plain(), limits=limits)) as raw:
        assert raw.ask(Command.REGION_READ, RegionAccess(0, 0, 64).pack()).errno == 0
        assert raw.ask(Command.REGION_READ, RegionAccess(0, 0, 65).pack()).errno == errno.EINVAL
        body = RegionAccess(0, 0, 65, bytes(65)).pack()
        assert raw.ask(Command.REGION_WRITE, body).errno == errno.EINVAL
        assert raw.ask(Command.MIG_DATA_READ, MigrationData(65).pack()).errno == errno.EINVAL


def test_a_device_that_asks_for_everything_gets_a_fault() -> None:
    class Greedy(Plain):
        def region_write(self, region: int, offset: int, data: bytes) -> None:
            assert self.host is not None
            self.host.dma_read(0, int.from_bytes(data, "little"))

    with peer(Server(Greedy())) as raw:
        raw.ask(Command.DMA_MAP, DmaMap(0, 1 << 63).pack())
        body = RegionAccess(0, 0, 8, struct.pack("<Q", 1 << 62)).pack()
        assert raw.ask(Command.REGION_WRITE, body).errno == errno.E2BIG
