"""The client, with servers that answer as they like."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Plain, client, open_files

from vfiokit.abi import vfio_user as abi
from vfiokit.errors import DeviceTimeoutError, KernelError, ProtocolError, UsageError
from vfiokit.kernel import linux
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.connection import ClosedError, Connection
from vfiokit.vfio_user.payload import (
    DmaAccess,
    DmaMap,
    DmaUnmap,
    Feature,
    RegionAccess,
    RegionInfo,
    RegionWrite,
    SetIrqs,
)
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities, Version
from vfiokit.vfio_user.wire import Command, Message

Answer = Callable[[Connection, Message], None]


@contextmanager
def answered(
    answer: Answer, *, timeout: float = 5.0, offer: Capabilities | None = None, **options: object
) -> Iterator[Client]:
    """A client whose server agrees on a version and then does what ``answer`` does."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        link = Connection(theirs)
        try:
            first = link.receive()
            link.send(wire.reply(first, Version(capabilities=Capabilities(8)).pack()))
            while True:
                answer(link, link.receive())
        except (OSError, ProtocolError):
            pass
        finally:
            link.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        with Client(
            ours,
            offer=offer or Capabilities(16),
            timeout=timeout,
            **options,  # type: ignore[arg-type]
        ) as made:
            yield made
    finally:
        thread.join(10)
    assert not thread.is_alive()


def read(client: Client) -> bytes:
    return client.region_read(0, 0, 4)


def good(message: Message, data: bytes = b"data") -> Message:
    return wire.reply(message, message.payload[:16] + data)


# -- errors ---------------------------------------------------------------------------------------


def test_an_error_reply_is_its_errno_and_the_connection_goes_on() -> None:
    codes = [errno.EPERM, errno.ENOSPC, 0]

    def answer(link: Connection, message: Message) -> None:
        link.send(wire.error_reply(message, codes.pop(0)) if codes else good(message))

    with answered(answer) as client:
        for expected in (errno.EPERM, errno.ENOSPC, errno.EIO):
            with pytest.raises(KernelError) as caught:
                read(client)
            assert caught.value.errno == expected
        assert read(client) == b"data"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda message: message._replace(id=message.id ^ 1, flags=1),
        lambda message: Message(message.id, int(Command.DEVICE_RESET), 1),
        lambda message: Message(message.id, message.command, 0x11),
        lambda message: Message(message.id, message.command, 0x21, 5, b"more"),
        lambda message: Message(message.id, message.command, 2),
    ],
)
def test_a_reply_to_something_else_ends_the_connection(
    wrong: Callable[[Message], Message],
) -> None:
    with answered(lambda link, message: link.send(wrong(message))) as client:
        with pytest.raises(ProtocolError):
            read(client)
        assert client.closed
        with pytest.raises(UsageError, match="closed"):
            read(client)


@pytest.mark.parametrize("length", [0, 3, 5, 4096])
def test_a_read_with_another_length_is_refused(length: int) -> None:
    with answered(lambda link, message: link.send(good(message, bytes(length)))) as client:
        with pytest.raises(KernelError) as caught:
            read(client)
        assert caught.value.errno == errno.EPROTO


def test_a_message_larger_than_agreed_ends_the_connection() -> None:
    def answer(link: Connection, message: Message) -> None:
        link.post(struct.pack("<HHIII", message.id, message.command, 0x7FFFFFFF, 1, 0))
        link.flush()

    with answered(answer) as client, pytest.raises(ProtocolError):
        read(client)


def test_silence_ends_the_connection_when_the_time_is_over() -> None:
    with answered(lambda _link, _message: None, timeout=0.1) as client:
        with pytest.raises(DeviceTimeoutError):
            read(client)
        # The reply could still come, and would be taken for another's.
        assert client.closed


@pytest.mark.parametrize("cut", range(0, 36, 5))
def test_a_server_that_dies_within_a_reply_is_a_closed_connection(cut: int) -> None:
    def answer(link: Connection, message: Message) -> None:
        link.post(good(message).pack()[:cut])
        link.flush()
        link.close()

    with answered(answer) as client:
        with pytest.raises(ClosedError):
            read(client)
        assert client.closed


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    def answer(link: Connection, message: Message) -> None:
        if message.command == Command.DEVICE_GET_REGION_INFO:
            packed = RegionInfo(0, 7, 4096).pack(32)
            link.send(wire.reply(message, packed, [0, 0, 0]))
        elif message.command == Command.DEVICE_GET_INFO:
            link.send(wire.error_reply(message, 5)._replace(fds=(0, 0)))

    with answered(answer) as client:
        before = open_files()
        info, file = client.region_info(0)
        assert info.size == 4096
        linux.close(file)
        with pytest.raises(KernelError):
            client.device_info()
        assert open_files() == before


def test_a_region_that_asks_for_ever_more_room_is_an_error() -> None:
    def answer(link: Connection, message: Message) -> None:
        room = int.from_bytes(message.payload[:4], "little")
        packed = bytearray(RegionInfo(0, 7, 4096).pack(32))
        packed[:4] = (room + 8).to_bytes(4, "little")
        link.send(wire.reply(message, bytes(packed)))

    with answered(answer) as client, pytest.raises(KernelError, match="room"):
        client.region_info(0)


# -- the server's own requests --------------------------------------------------------------------


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(b"0123456789abcdef" * 16)

    def read(self, iova: int, length: int) -> bytes:
        if iova + length > len(self.data):
            raise OSError(errno.EFAULT, "beyond")
        return bytes(self.data[iova : iova + length])

    def write(self, iova: int, data: bytes) -> None:
        raise OSError(errno.EPERM, "read only")


def test_requests_of_the_server_are_answered_while_a_reply_is_waited_for() -> None:
    memory = Memory()
    got: list[tuple[bool, int, bytes]] = []
    asked = [
        (Command.DMA_READ, DmaAccess(4, 6)),
        (Command.DMA_READ, DmaAccess(1 << 40, 6)),
        (Command.DMA_WRITE, DmaAccess(0, 2, b"xx")),
        (Command.DMA_READ, DmaAccess(0, 1 << 30)),
        (Command.DEVICE_RESET, None),
    ]

    def answer(link: Connection, message: Message) -> None:
        for number, (command, access) in enumerate(asked):
            packed = b"" if access is None else access.pack()
            link.send(wire.request(number, command, packed))
            reply = link.receive()
            assert (reply.id, reply.command) == (number, command)
            got.append((reply.is_error, reply.errno, reply.payload))
        link.send(good(message))

    with answered(answer, memory=memory) as client:
        assert read(client) == b"data"
    assert got[0] == (False, 0, struct.pack("<QQ", 4, 6) + b"456789")
    assert [(error, code) for error, code, _payload in got[1:]] == [
        (True, errno.EFAULT),
        (True, errno.EPERM),
        (True, errno.E2BIG),
        (True, errno.EINVAL),
    ]


def test_a_client_without_memory_answers_efault() -> None:
    codes: list[int] = []

    def answer(link: Connection, message: Message) -> None:
        link.send(wire.request(9, Command.DMA_READ, DmaAccess(0, 4).pack()))
        codes.append(link.receive().errno)
        link.send(good(message))

    with answered(answer) as client:
        read(client)
    assert codes == [errno.EFAULT]


def test_a_twin_socket_that_was_not_asked_for_is_refused() -> None:
    ours, theirs = socket.socketpair()
    before = open_files()

    def serve() -> None:
        link = Connection(theirs)
        version = Version(capabilities=Capabilities(8, twin_socket=True), twin_fd=0)
        link.send(wire.reply(link.receive(), version.pack(), [0]))
        link.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ProtocolError, match="twin"):
        Client(ours, offer=Capabilities(16, twin_socket=False))
    thread.join(10)
    assert open_files() == before - 2


# -- good manners ---------------------------------------------------------------------------------


def test_large_writes_go_in_pieces_that_others_can_take() -> None:
    sizes: list[int] = []

    def answer(link: Connection, message: Message) -> None:
        sizes.append(len(message.payload) - 16)
        link.send(wire.reply(message, message.payload[:16]))

    with answered(answer) as client:
        client.region_write(0, 0, bytes(100_000))
    assert sizes == [32768, 32768, 32768, 100_000 - 3 * 32768]


def test_eventfds_go_in_messages_of_as_many_as_the_server_takes() -> None:
    starts: list[tuple[int, int, int]] = []

    def answer(link: Connection, message: Message) -> None:
        request = SetIrqs.unpack(message.payload)
        starts.append((request.start, request.count, len(message.fds)))
        for fd in message.fds:
            linux.close(fd)
        link.send(wire.reply(message))

    event = linux.eventfd()
    with answered(answer) as client:
        client.set_irqs(SetIrqs(0x24, 2, 3, 20), [event] * 20)
    linux.close(event)
    assert starts == [(3, 8, 8), (11, 8, 8), (19, 4, 4)]


@pytest.mark.parametrize("twin", [False, True])
def test_every_command_reaches_our_own_server(twin: bool) -> None:
    device, memory = Plain(), linux.memory_file("page", 4096)
    offer = Capabilities(16, twin_socket=twin, write_multiple=True)
    with client(Server(device), offer=offer, memory=Memory()) as peer:
        assert peer.device_info().num_irqs == 5
        assert peer.region_info(0)[0].size == 4096
        assert peer.region_io_fds(0)[1] == ()
        assert peer.irq_info(2).count == 4
        peer.set_irqs(SetIrqs(0x21, 2, 0, 0))
        peer.dma_map(DmaMap(0x1000, 4096), memory)
        peer.dma_unmap(DmaUnmap(0x1000, 4096))
        peer.dma_map(DmaMap(0, 4096))
        peer.region_write(0, 0x100, bytes(8))  # it reads 16 bytes of the memory above
        assert peer.region_read(0, 0x200, 16) == b"0123456789abcdef"
        with pytest.raises(KernelError):
            peer.region_write(0, 0x108, bytes(8))  # which cannot be written
        peer.dma_unmap(DmaUnmap(0, 0, abi.VFIO_DMA_UNMAP_FLAG_ALL))
        assert peer.region_write_multi([RegionWrite(0, 0, b"ab"), RegionWrite(2, 0, b"cd")]) == 2
        assert peer.region_read(0, 0, 4) == b"abcd"
        probed = peer.feature(Feature(1 << 16 | 1, bytes(8)))
        assert int.from_bytes(probed.data[:8], "little") & 1
        peer.reset()
        assert peer.region_read(0, 0, 4) == bytes(4)
    linux.close(memory)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=96), st.integers(0, 2))
def test_no_bytes_of_a_server_do_more_than_raise(data: bytes, fds: int) -> None:
    ours, theirs = socket.socketpair()
    before = open_files()
    with theirs:
        link = Connection(theirs.dup())
        thread = threading.Thread(target=lambda: _junk(link, data, fds))
        thread.start()
        client = Client(ours, offer=Capabilities(16), timeout=2)
        for ask in (lambda: read(client), lambda: client.region_info(0)):
            with suppress(OSError, ProtocolError, DeviceTimeoutError, UsageError):
                ask()
        client.close()
        thread.join(10)
        link.close()
        assert open_files() <= before


def _junk(link: Connection, data: bytes, fds: int) -> None:
    try:
        link.send(wire.reply(link.receive(), Version(capabilities=Capabilities(8)).pack()))
        message = link.receive()
        # The right head first, so that it is what follows that is wrong.
        packed = struct.pack("<HHIII", message.id, message.command, 16 + len(data), 1, 0) + data
        socket.send_fds(link._sock, [packed], [0] * fds)
        link._sock.shutdown(socket.SHUT_RDWR)
    except (OSError, ProtocolError):
        pass


def test_ids_go_round() -> None:
    numbers: list[int] = []

    def answer(link: Connection, message: Message) -> None:
        numbers.append(message.id)
        link.send(good(message))

    with answered(answer) as client:
        client._numbers = iter(range(65534, 65540))  # type: ignore[assignment]
        for _ in range(4):
            read(client)
    assert numbers == [65534, 65535, 0, 1]


def test_pipelined_errors_come_back_in_their_places() -> None:
    def answer(link: Connection, message: Message) -> None:
        access = RegionAccess.unpack(message.payload, data=False)
        fine = access.offset != 8
        link.send(good(message) if fine else wire.error_reply(message, errno.EPERM))

    commands = [(Command.REGION_READ, RegionAccess(4 * n, 0, 4).pack()) for n in range(4)]
    with answered(answer) as client:
        replies = client.pipeline(commands)
        assert [reply.errno for reply in replies] == [0, 0, errno.EPERM, 0]
        assert read(client) == b"data"


def test_a_client_closed_twice_leaves_nothing() -> None:
    before = open_files()
    with client(Server(Plain())) as peer:
        peer.close()
        peer.close()
        assert peer.closed
    assert open_files() <= before
