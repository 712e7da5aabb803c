"""What two ends agree on, and what may be said when."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import ProtocolError
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.session import (
    Capabilities,
    Session,
    State,
    Version,
    accept,
    answer,
    check_reply,
    message_limit,
)
from vfiokit.vfio_user.wire import Command, Message

capabilities = st.builds(
    Capabilities,
    st.integers(0, 253),
    st.integers(8, 64 << 20),
    st.integers(0, 1 << 24),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.booleans(),
)
QEMU = (
    b"\0\0\0\0"
    b'{"capabilities": {"max_msg_fds": 16, "max_data_xfer_size": 1048576, "max_dma_maps": 65535, '
    b'"pgsizes": 4096, "write_multiple": true, "migration": {"pgsize": 4096, '
    b'"max_bitmap_size": 268435456}}}\0'
)


@given(capabilities, st.integers(0, 9), st.none() | st.integers(0, 3))
def test_versions_survive(own: Capabilities, minor: int, twin: int | None) -> None:
    version = Version(minor, own, 0, twin if own.twin_socket else None)
    assert Version.unpack(version.pack()) == version


def test_the_offer_of_qemu_is_understood() -> None:
    offer = Version.unpack(QEMU)
    assert (offer.major, offer.minor) == (0, 0)
    assert offer.capabilities == Capabilities(16, 1 << 20, 65535, 4096, False, True)


def test_a_silent_end_has_the_protocols_defaults() -> None:
    assert Version.unpack(b"\0\0\1\0").capabilities == Capabilities()
    assert Version.unpack(b"\0\0\1\0{}\0").capabilities == Capabilities()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0{}",
        b"\0\0\0\0{}\0x",
        b"\0\0\0\0[]\0",
        b"\0\0\0\0{\0",
        b"\0\0\0\0" + b"[" * 60000 + b"\0",
        b'\0\0\0\0{"capabilities": 3}\0',
        b'\0\0\0\0{"capabilities": {"max_msg_fds": -1}}\0',
        b'\0\0\0\0{"capabilities": {"max_msg_fds": "8"}}\0',
        b'\0\0\0\0{"capabilities": {"max_msg_fds": true}}\0',
        b'\0\0\0\0{"capabilities": {"max_data_xfer_size": 0}}\0',
        b'\0\0\0\0{"capabilities": {"twin_socket": {"supported": true, "fd_index": -1}}}\0',
        b'\0\0\0\0{"capabilities": {}}' + b" " * 70000 + b"\0",
        b"\0\0\0\0\xff\xfe\0",
    ],
)
def test_a_version_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        Version.unpack(payload)


@given(capabilities, capabilities, st.integers(0, 9))
def test_the_answer_never_exceeds_the_offer(
    own: Capabilities, theirs: Capabilities, minor: int
) -> None:
    offer = Version(minor, theirs)
    reply = answer(offer, own)
    assert reply.major == 0
    assert reply.minor <= minor
    agreed = reply.capabilities
    assert agreed.max_data_xfer_size == min(own.max_data_xfer_size, theirs.max_data_xfer_size)
    assert agreed.max_dma_maps <= min(own.max_dma_maps, theirs.max_dma_maps)
    possible = own.twin_socket and theirs.twin_socket and theirs.max_msg_fds > 0
    assert agreed.twin_socket == possible
    assert agreed.write_multiple == (own.write_multiple and theirs.write_multiple)
    assert agreed.pgsizes
    assert accept(offer, Version.unpack(reply.pack())) == reply
    assert message_limit(own) > own.max_data_xfer_size


def test_another_major_is_refused_by_both_ends() -> None:
    with pytest.raises(ProtocolError, match=r"speaks version 1\.0") as caught:
        answer(Version(0, Capabilities(), 1), Capabilities())
    assert caught.value.fatal
    with pytest.raises(ProtocolError, match=r"answers version 1\.0"):
        accept(Version(), Version(0, Capabilities(), 1))
    with pytest.raises(ProtocolError, match=r"answers version 0\.9"):
        accept(Version(2), Version(9))
    with pytest.raises(ProtocolError, match="not asked for"):
        accept(Version(), Version(twin_fd=0))


def test_the_reply_names_the_twin_socket_only_where_one_travels() -> None:
    own = replace(Capabilities(), twin_socket=True)
    text = Version(2, own, 0, 0).pack()[4:-1]
    assert json.loads(text)["capabilities"]["twin_socket"] == {"supported": True, "fd_index": 0}
    text = Version(2, own).pack()[4:-1]
    assert json.loads(text)["capabilities"]["twin_socket"] == {"supported": True}


def _session(*, server: bool = True) -> Session:
    session = Session(server, Capabilities(max_msg_fds=2))
    session.agreed(Version(), Capabilities())
    return session


@pytest.mark.parametrize("command", sorted(set(Command) - {Command.VERSION}))
def test_nothing_but_the_version_may_come_first(command: Command) -> None:
    with pytest.raises(ProtocolError, match="fresh") as caught:
        Session(True, Capabilities()).check_command(wire.request(0, command))
    assert caught.value.fatal


@pytest.mark.parametrize("command", list(Command))
@pytest.mark.parametrize("server", [True, False])
def test_each_end_sends_its_own_commands(command: Command, server: bool) -> None:
    session = _session(server=server)
    theirs = wire.FROM_CLIENT if server else wire.FROM_SERVER
    if command in theirs - {Command.VERSION}:
        assert session.check_command(wire.request(0, command)) is command
    else:
        with pytest.raises(ProtocolError) as caught:
            session.check_command(wire.request(0, command))
        assert not caught.value.fatal


def test_an_unknown_command_is_not_supported_and_the_stream_goes_on() -> None:
    with pytest.raises(ProtocolError, match="command 14") as caught:
        _session().check_command(Message(1, 14))
    assert caught.value.errno == 95
    assert not caught.value.fatal


def test_descriptors_nobody_asked_for_are_refused() -> None:
    with pytest.raises(ProtocolError, match="2 descriptors") as caught:
        _session().check_command(wire.request(1, Command.REGION_READ, b"", [3, 4]))
    assert not caught.value.fatal
    with pytest.raises(ProtocolError, match="3 descriptors; 2 fit"):
        _session().check_command(wire.request(1, Command.DEVICE_SET_IRQS, b"", [3, 4, 5]))


def test_a_reset_has_no_payload() -> None:
    with pytest.raises(ProtocolError, match="payload"):
        _session().check_command(wire.request(1, Command.DEVICE_RESET, b"x"))


def test_nothing_is_allowed_after_the_end() -> None:
    session = _session()
    session.state = State.CLOSED
    with pytest.raises(ProtocolError, match="closed"):
        session.check_command(wire.request(1, Command.REGION_READ))


def test_ids_count_and_wrap() -> None:
    session = _session()
    numbers = [session.next_id() for _ in range(0x10001)]
    assert numbers[:3] == [0, 1, 2]
    assert numbers[0xFFFF:] == [0xFFFF, 0]


def test_only_the_right_reply_is_one() -> None:
    asked = wire.request(5, Command.DEVICE_GET_INFO)
    check_reply(wire.reply(asked), 5, Command.DEVICE_GET_INFO)
    check_reply(wire.error_reply(asked, 22), 5, Command.DEVICE_GET_INFO)
    for wrong in (asked, wire.reply(asked)._replace(id=6), wire.reply(asked)._replace(command=9)):
        with pytest.raises(ProtocolError):
            check_reply(wrong, 5, Command.DEVICE_GET_INFO)
