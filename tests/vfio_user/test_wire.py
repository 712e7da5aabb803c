"""Framing and headers: any way of cutting a stream gives the same messages and descriptors."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import ProtocolError
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.wire import Command, Framer, Message

messages = st.builds(
    Message,
    id=st.integers(0, 0xFFFF),
    command=st.sampled_from([*map(int, Command), 14, 99]),
    flags=st.sampled_from([0, 1, 0x10]),
    errno=st.just(0),
    payload=st.binary(max_size=200),
    fds=st.lists(st.integers(3, 1000), max_size=3).map(tuple),
)


@given(st.lists(messages, min_size=1, max_size=8), st.data())
def test_any_chunks_give_the_messages_and_their_descriptors(
    sent: list[Message], data: st.DataObject
) -> None:
    # The kernel's rule: a read never goes past the buffer that carried descriptors.
    framer, found = Framer(), []
    stream = [(message.pack(), message.fds) for message in sent]
    while stream:
        chunk, fds = b"", ()
        room = data.draw(st.integers(1, 400))
        while stream and room and not fds:
            piece, fds = stream.pop(0)
            if len(piece) > room:
                stream.insert(0, (piece[room:], ()))
                piece = piece[:room]
            chunk += piece
            room -= len(piece)
        found += framer.feed(chunk, fds)
    assert found == sent
    assert not framer.held
    assert not framer.take_fds()


def test_the_kernel_ends_a_read_with_the_buffer_that_carried_descriptors() -> None:
    # What the rule above rests on, asked of this kernel.
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        first, second = wire.request(1, Command.DMA_MAP, b"a" * 32), wire.request(2, 4, b"b" * 16)
        ours.send(wire.request(0, 4, b"c" * 16).pack())
        socket.send_fds(ours, [first.pack()], [null.fileno()])
        ours.send(second.pack())
        framer, found, got = Framer(), [], []
        while len(found) < 3:
            chunk, fds, _flags, _address = socket.recv_fds(theirs, 4096, 8)
            got += fds
            found += framer.feed(chunk, fds)
    assert [len(message.fds) for message in found] == [0, 1, 0]
    for fd in got:
        socket.close(fd)


def test_needed_leads_a_reader_through_header_and_body() -> None:
    framer, packed = Framer(), wire.request(7, Command.REGION_READ, b"x" * 16).pack()
    steps = []
    at = 0
    found: list[Message] = []
    while not found:
        steps.append(framer.needed)
        found = framer.feed(packed[at : at + framer.needed])
        at += steps[-1]
    assert steps == [16, 16]
    assert found[0].payload == b"x" * 16


@pytest.mark.parametrize(
    ("size", "flags", "words"),
    [
        (15, 0, "15 bytes"),
        (0, 0, "0 bytes"),
        (wire.DEFAULT_LIMIT + 1, 0, "accepted"),
        (16, 2, "flags 0x2"),
        (16, 0x40, "flags 0x40"),
        (16, 0x11, "wants no reply"),
        (16, 0x20, "error flag in a command"),
        (20, 0x21, "error flag in a reply of 20"),
    ],
)
def test_a_header_that_makes_no_sense_ends_the_stream(size: int, flags: int, words: str) -> None:
    header = struct.pack("<HHIII", 1, 4, size, flags, 0)
    with pytest.raises(ProtocolError, match=words) as caught:
        Framer().feed(header)
    assert caught.value.fatal


def test_descriptors_of_a_refused_message_are_handed_back() -> None:
    framer = Framer()
    assert framer.feed(b"\0" * 4, [10, 11]) == []
    with pytest.raises(ProtocolError):
        framer.feed(b"\0" * 12, [12])
    assert framer.take_fds() == [10, 11, 12]
    assert framer.take_fds() == []


def test_more_descriptors_than_fit_end_the_stream() -> None:
    framer = Framer(max_fds=2)
    with pytest.raises(ProtocolError, match="3 descriptors"):
        framer.feed(b"\0", [1, 2, 3])
    assert framer.take_fds() == [1, 2, 3]


def test_replies_echo_and_errors_are_headers_only() -> None:
    asked = wire.request(77, Command.DMA_MAP, b"p" * 32)
    assert asked.wants_reply
    assert not wire.request(1, 10, reply=False).wants_reply
    done = wire.reply(asked, b"ok")
    assert (done.id, done.command, done.is_reply, done.is_error) == (77, 2, True, False)
    failed = wire.error_reply(asked, 17)
    assert failed.is_error
    assert failed.pack() == struct.pack("<HHIII", 77, 2, 16, 0x21, 17)


def test_every_command_is_sent_by_one_side() -> None:
    assert set(Command) == wire.FROM_CLIENT | wire.FROM_SERVER
    assert not wire.FROM_CLIENT & wire.FROM_SERVER
    assert {14, 0, 19}.isdisjoint(map(int, Command))
    assert wire.command_name(14) == "command 14"
    assert [wire.command_name(value) for value in (1, 18)] == ["VERSION", "MIG_DATA_WRITE"]


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1))
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    framer, whole = Framer(), 0
    sizes = itertools.cycle(cuts)
    at = 0
    with contextlib.suppress(ProtocolError):
        while at < len(data):
            size = next(sizes)
            for message in framer.feed(data[at : at + size]):
                whole += len(message.pack())
            at += size
        assert (not framer.held) == (whole == len(data))
    assert whole <= len(data)
