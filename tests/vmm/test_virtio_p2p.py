"""The virtio P2P device, by a driver written from the specification; then by hostile ones."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_rig import (
    AVAILABLE,
    BUFFERS,
    DESCRIPTORS,
    INDIRECT,
    MSIX,
    NEXT,
    RAM,
    REGISTERS,
    SIZE,
    WRITE,
    Guest,
)

from vfiokit.pci.address import Bdf
from vfiokit.vmm.p2p import Outcome, Reply
from vfiokit.vmm.virtio_p2p import VirtioP2p
from vfiokit.vmm.virtio_pci import VirtioFunction

ONE, OTHER = 0x0100, 0x0200


@pytest.fixture
def guest() -> Guest:
    made = Guest()
    made.source.answers[ONE, OTHER] = Reply(Outcome.OK, 2, 4)
    return made


@pytest.fixture
def running(guest) -> Guest:
    guest.start()
    return guest


# -- discovery


def test_configuration_space_is_a_modern_virtio_device(guest):
    assert guest.config(0, 4) == 0x107F_1AF4
    assert guest.config(8, 1) >= 1
    assert guest.config(6, 2) & 0x10
    found, at = {}, guest.config(0x34, 1)
    while at:
        identity, following = guest.config(at, 1), guest.config(at + 1, 1)
        if identity == 0x09:
            kind = guest.config(at + 3, 1)
            assert guest.config(at + 2, 1) == (20 if kind in (2, 5) else 16)
            place = (guest.config(at + 4, 1), guest.config(at + 8, 4), guest.config(at + 12, 4))
            found.setdefault(kind, place)
            if kind == 2:
                assert guest.config(at + 16, 4) == 4
        else:
            assert identity == 0x11
            assert guest.config(at + 2, 2) & 0x7FF == 1  # two vectors
        at = following
    assert found == {
        1: (0, 0x0000, 56),
        2: (0, 0x3000, 0x1000),
        3: (0, 0x1000, 1),
        4: (0, 0x2000, 16),
        5: (0, 0, 0),
    }


def test_bars_size_as_the_specification_of_pci_asks(guest):
    for register, size in ((0x10, 0x4000), (0x14, 0x1000)):
        guest.config(register, 4, 0xFFFF_FFFF)
        assert -(guest.config(register, 4) & ~0xF) & 0xFFFF_FFFF == size


def test_device_configuration_tells_version_and_sizes(running):
    fields = [running.read(REGISTERS + 0x2000 + at, 2) for at in (0, 2, 4, 6)]
    assert fields == [1, 16, 16, 1]
    assert running.read(REGISTERS + 0x2008, 4) == 0
    generation = running.common(21, 1)
    running.device.outdate()
    running.function.configuration_changed()
    assert running.read(REGISTERS + 0x2008, 4) == 1
    assert running.common(21, 1) == generation + 1
    assert running.read(REGISTERS + 0x1000, 1) == 2  # configuration changed


# -- negotiation


def test_features_without_version_1_are_refused(guest):
    guest.place()
    assert not guest.negotiate(0)
    assert not guest.negotiate(1 << 28)
    assert guest.negotiate(1 << 32)


def test_features_that_were_not_offered_are_refused(guest):
    guest.place()
    assert not guest.negotiate(1 << 32 | 1 << 5)
    assert not guest.negotiate(1 << 32 | 1 << 34)


def test_offered_features_are_version_1_and_indirect_descriptors(guest):
    guest.place()
    found = 0
    for select in (0, 1, 2, 0xFFFF_FFFF):
        guest.common(0, 4, select)
        value = guest.common(4, 4)
        assert select < 2 or not value
        found |= value << 32 * select if select < 2 else 0
    assert found == 1 << 32 | 1 << 28


def test_features_stay_as_they_were_agreed_on(running):
    running.common(8, 4, 1)
    running.common(12, 4, 0)
    assert running.common(12, 4) == 1


def test_driver_ok_without_features_ok_is_not_taken(guest):
    guest.place()
    guest.common(20, 1, 7)
    assert guest.status == 3


def test_status_bits_are_not_cleared_one_by_one(running):
    running.common(20, 1, 1)
    assert running.status == 0x0F
    running.common(20, 1, 0)
    assert running.status == 0


def test_queue_beyond_the_last_is_absent(running):
    running.common(22, 2, 1)
    assert [running.common(at, 2) for at in (24, 28)] == [0, 0]
    running.common(24, 2, 4)
    running.common(28, 2, 1)
    assert running.common(18, 2) == 1


def test_registers_of_an_enabled_queue_are_fixed(running):
    running.common(32, 4, 0x7000)
    running.common(24, 2, 2)
    assert running.common(32, 4) == DESCRIPTORS
    assert running.common(24, 2) == SIZE
    assert running.common(32, 8) == DESCRIPTORS


def test_queue_is_not_enabled_before_features_are_agreed_on(guest):
    guest.place()
    guest.common(20, 1, 3)
    guest.set_up_queue()
    assert guest.common(28, 2) == 0


# -- questions


def test_question_is_answered(running):
    assert running.query(ONE, OTHER) == (0, 1, 2, 4)
    assert running.source.asked == [(ONE, OTHER)]
    assert running.query(OTHER, ONE) == (1, 1, 0, 0)  # not in the table
    assert running.device.served == 2


def test_request_in_pieces_and_indirect_is_answered(guest):
    guest.start(1 << 32 | 1 << 28)
    request = struct.pack("<HHIII", 1, 1, 0, ONE, OTHER)
    guest.ram.write(BUFFERS, request)
    for number in range(4):
        guest.ram.describe(number, BUFFERS + 4 * number, 4, NEXT, number + 1, table=0x8000)
    guest.ram.describe(4, BUFFERS + 0x100, 6, NEXT | WRITE, 5, table=0x8000)
    guest.ram.describe(5, BUFFERS + 0x200, 64, WRITE, table=0x8000)
    guest.ram.describe(7, 0x8000, 6 * 16, INDIRECT)
    guest.offer(7)
    assert guest.used() == [(7, 16)]
    reply = guest.ram.read(BUFFERS + 0x100, 6) + guest.ram.read(BUFFERS + 0x200, 10)
    assert struct.unpack("<HHII4x", reply) == (0, 1, 2, 4)


def test_many_requests_are_answered_by_one_notification(running):
    for number in range(3):
        running.ram.write(
            BUFFERS + 0x40 * number, struct.pack("<HHIII", 1, 1, 0, ONE, OTHER + number)
        )
        running.ram.describe(2 * number, BUFFERS + 0x40 * number, 16, NEXT, 2 * number + 1)
        running.ram.describe(2 * number + 1, BUFFERS + 0x40 * number + 16, 16, WRITE)
        running.offer(2 * number, notify=False)
    assert running.used() == []
    running.notify()
    assert running.used() == [(0, 16), (2, 16), (4, 16)]
    assert running.source.asked == [(ONE, OTHER + number) for number in range(3)]


@pytest.mark.parametrize(
    ("wish", "outcome"),
    [
        ({"version": 2}, Outcome.BAD_VERSION),
        ({"version": 0}, Outcome.BAD_VERSION),
        ({"command": 2}, Outcome.BAD_REQUEST),
        ({"flags": 1}, Outcome.BAD_REQUEST),
    ],
)
def test_what_it_does_not_know_it_refuses_without_asking(running, wish, outcome):
    assert running.query(ONE, OTHER, **wish) == (outcome, 1, 0, 0)
    assert running.source.asked == []
    assert running.query(ONE, OTHER)[0] == 0


def test_device_that_may_not_answer_says_so(running):
    running.source.enabled = False
    assert running.query(ONE, OTHER) == (Outcome.DENIED, 1, 0, 0)
    assert running.read(REGISTERS + 0x2006, 2) == 0
    assert running.source.asked == []


def test_without_bus_mastering_it_leaves_memory_alone(running):
    running.config(0x04, 2, 0x0002)
    running.ram.write(BUFFERS, struct.pack("<HHIII", 1, 1, 0, ONE, OTHER))
    running.ram.describe(0, BUFFERS, 16, NEXT, 1)
    running.ram.describe(1, BUFFERS + 0x100, 16, WRITE)
    before = bytes(running.ram.bytes)
    running.offer(0)
    running.ram.write(AVAILABLE, before[AVAILABLE : AVAILABLE + 24])
    assert bytes(running.ram.bytes) == before
    running.config(0x04, 2, 0x0006)
    running.ram.write(AVAILABLE + 2, b"\1\0")
    running.notify()
    assert running.used() == [(0, 16)]


# -- interrupts


def test_pin_is_raised_and_lowered_by_reading_the_isr(running):
    running.query(ONE, OTHER)
    assert running.host.level
    assert running.read(REGISTERS + 0x1000, 1) == 1
    assert not running.host.level
    assert running.read(REGISTERS + 0x1000, 1) == 0


def test_driver_that_polls_is_not_interrupted(running):
    running.ram.write(AVAILABLE, b"\1\0")
    running.query(ONE, OTHER)
    assert not running.host.level


def msix(guest: Guest, vector: int, address: int, data: int, masked: bool = False) -> None:
    for at, value in ((0, address), (4, 0), (8, data), (12, int(masked))):
        guest.write(MSIX + 16 * vector + at, 4, value)


def test_message_of_the_queues_vector_is_sent(guest):
    guest.place()
    guest.config(0x42, 2, 0x8000)
    msix(guest, 1, 0xFEE0_0000, 0x41)
    guest.start(vector=1)
    guest.query(ONE, OTHER)
    assert guest.host.messages == [(0xFEE0_0000, 0x41)]
    assert not guest.host.level


def test_masked_vector_is_pending_until_it_is_unmasked(guest):
    guest.place()
    guest.config(0x42, 2, 0x8000)
    msix(guest, 1, 0xFEE0_0000, 0x41, masked=True)
    guest.start(vector=1)
    guest.query(ONE, OTHER)
    assert guest.read(MSIX + 0x800, 4) == 2
    guest.write(MSIX + 16 + 12, 4, 0)
    assert guest.host.messages == [(0xFEE0_0000, 0x41)]
    assert guest.read(MSIX + 0x800, 4) == 0


def test_vector_that_there_is_not_reads_none(guest):
    guest.place()
    guest.negotiate()
    guest.set_up_queue(vector=2)
    guest.common(16, 2, 9)
    assert guest.common(26, 2) == guest.common(16, 2) == 0xFFFF


# -- the window in configuration space


def test_registers_are_reached_through_configuration_space(guest):
    at = 0x34
    while guest.config(at if at == 0x34 else at + 1, 1):
        at = guest.config(at if at == 0x34 else at + 1, 1)
    assert guest.config(at + 3, 1) == 5
    guest.config(at + 4, 1, 0)

    def select(offset: int, width: int) -> None:
        guest.config(at + 8, 4, offset)
        guest.config(at + 12, 4, width)

    select(20, 1)
    guest.config(at + 16, 1, 3)
    assert guest.config(at + 16, 1) == 3
    assert guest.config(at + 16, 4) == 3
    select(18, 2)
    assert guest.config(at + 16, 2) == 1
    for offset, width in ((19, 2), (0x4000, 4), (0, 3), (0, 8)):
        select(offset, width)
        assert guest.config(at + 16, 4) == 0
        guest.config(at + 16, 4, 0xFFFF_FFFF)
    guest.config(at + 4, 1, 5)
    select(20, 1)
    assert guest.config(at + 16, 1) == 0


# -- drivers that break rules


def chain_of(guest: Guest, request: int, reply: int) -> None:
    guest.ram.describe(0, BUFFERS, request, NEXT, 1)
    guest.ram.describe(1, BUFFERS + 0x100, reply, WRITE)
    guest.offer(0)


@pytest.mark.parametrize(("request_size", "reply"), [(15, 16), (17, 16), (16, 15), (16, 1)])
def test_wrong_lengths_need_a_reset(running, request_size, reply):
    chain_of(running, request_size, reply)
    assert running.status == 0x4F
    assert running.used() == []
    assert running.function.failure
    # Nothing is answered any more,
    chain_of(running, 16, 16)
    assert running.used() == []
    assert running.source.asked == []
    # until it was reset.
    running.start()
    running.ram.write(AVAILABLE, bytes(32))
    running.ram.write(0x3000, bytes(68))
    assert running.query(ONE, OTHER) == (0, 1, 2, 4)


def test_only_readable_or_only_writable_needs_a_reset(guest):
    for flags in (0, WRITE):
        guest.start()
        guest.ram.write(AVAILABLE, bytes(32))
        guest.ram.describe(0, BUFFERS, 16, flags)
        guest.offer(0)
        assert guest.status & 0x40


def test_need_of_a_reset_is_told_by_an_interrupt(running):
    chain_of(running, 1, 1)
    assert running.host.level
    assert running.read(REGISTERS + 0x1000, 1) == 2


@pytest.mark.parametrize(
    ("offset", "width", "value"),
    [(24, 2, 3), (24, 2, 0), (24, 2, 128), (32, 4, 8), (44, 4, 1), (52, 4, 0xFFFF_FFFF)],
)
def test_queue_set_up_wrongly_needs_a_reset(guest, offset, width, value):
    guest.place()
    guest.negotiate()
    for at, gpa in ((32, DESCRIPTORS), (40, AVAILABLE), (48, 0x3000)):
        guest.common(at, 8, gpa)
    guest.common(offset, width, value)
    guest.common(28, 2, 1)
    assert guest.status & 0x40
    assert guest.common(28, 2) == 0


def test_reset_of_the_function_clears_everything(running):
    running.query(ONE, OTHER)
    running.function.reset()
    assert running.config(0x04, 2) & 7 == 0
    assert running.traps.find(REGISTERS) is None
    running.start()
    assert running.query(ONE, OTHER)[0] == 0


def test_state_goes_on_in_another_machine(running):
    running.query(ONE, OTHER)
    other = Guest(running.source)
    other.function.load(running.function.state())
    other.ram.bytes[:] = running.ram.bytes
    other.available, other.taken = running.available, running.taken
    assert other.host.level
    assert other.status == 0x0F
    assert other.query(ONE, OTHER) == (0, 1, 2, 4)


# -- anything at all

accesses = st.lists(
    st.tuples(
        st.sampled_from(
            (REGISTERS, REGISTERS + 0x1000, REGISTERS + 0x2000, MSIX, MSIX + 0x800)
        ).flatmap(lambda base: st.integers(0, 63).map(lambda offset: base + offset))
        | st.integers(0, 8).map(lambda index: REGISTERS + 0x3000 + 4 * index),
        st.sampled_from((1, 2, 4, 8)),
        st.booleans(),
        st.one_of(st.integers(0, 15), st.sampled_from((RAM, DESCRIPTORS, AVAILABLE, 0xFFFF)))
        | st.integers(0, (1 << 64) - 1),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(accesses, st.binary(max_size=512), st.booleans())
def test_any_access_leaves_a_device_that_a_reset_brings_back(accessed, memory, started):
    guest = Guest()
    guest.source.answers[ONE, OTHER] = Reply(Outcome.OK, 3, 6)
    if started:
        guest.start(1 << 32 | 1 << 28)
        guest.ram.write(DESCRIPTORS, memory)
        guest.ram.write(AVAILABLE, memory[::-1])
    else:
        guest.place()
    for gpa, width, write, value in accessed:
        if write:
            guest.write(gpa, width, value & (1 << 8 * width) - 1)
        else:
            assert guest.read(gpa, width) >= 0
    for address, data in guest.host.messages:
        assert not address & 3
        assert data < 1 << 32
    guest.ram.bytes[:] = bytes(RAM)
    guest.config(0x42, 2, 0)
    guest.start()
    assert guest.query(ONE, OTHER) == (0, 1, 3, 6)


def test_a_second_device_has_registers_of_its_own(running):
    second = VirtioFunction(Bdf(0, 0, 6, 0), running.ram, VirtioP2p(running.source))
    running.bus.add(second)
    assert int(second.status) == 0
    assert running.status == 0x0F
