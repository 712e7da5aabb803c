"""The split virtqueue: good chains come back once, and no hostile one does more than reset it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_rig import AVAILABLE, BUFFERS, DESCRIPTORS, INDIRECT, NEXT, RAM, SIZE, USED, WRITE, Ram

from vfiokit.errors import UsageError
from vfiokit.vmm.virtio_config import build_config
from vfiokit.vmm.virtio_queue import Chain, Piece, QueueError, SplitQueue

TABLE = 0x5000


@pytest.fixture
def ram() -> Ram:
    return Ram()


@pytest.fixture
def queue(ram) -> SplitQueue:
    made = SplitQueue(ram, SIZE)
    made.setup.descriptors, made.setup.driver, made.setup.device = DESCRIPTORS, AVAILABLE, USED
    return made


def offer(ram: Ram, *heads: int, start: int = 0) -> None:
    for number, head in enumerate(heads, start):
        ram.write(AVAILABLE + 4 + 2 * (number % SIZE), struct.pack("<H", head))
    ram.write(AVAILABLE + 2, struct.pack("<H", start + len(heads) & 0xFFFF))


def test_chain_is_taken_in_order_and_given_back(ram, queue):
    ram.describe(3, BUFFERS, 16, NEXT, 5)
    ram.describe(5, BUFFERS + 0x100, 8, NEXT | WRITE, 1)
    ram.describe(1, BUFFERS + 0x200, 8, WRITE)
    ram.write(BUFFERS, bytes(range(16)))
    offer(ram, 3)
    (chain,) = queue.pending()
    assert chain == Chain(
        3,
        (Piece(BUFFERS, 16),),
        (Piece(BUFFERS + 0x100, 8), Piece(BUFFERS + 0x200, 8)),
    )
    assert (chain.request_size, chain.reply_room) == (16, 16)
    assert queue.gather(chain, 10) == bytes(range(10))
    assert queue.scatter(chain, b"0123456789") == 10
    assert ram.read(BUFFERS + 0x100, 8) == b"01234567"
    assert ram.read(BUFFERS + 0x200, 2) == b"89"
    queue.use(chain, 10)
    assert ram.read(USED, 12) == struct.pack("<HHII", 0, 1, 3, 10)
    assert list(queue.pending()) == []


def test_scatter_says_how_much_had_room(ram, queue):
    ram.describe(0, BUFFERS, 4, WRITE)
    offer(ram, 0)
    (chain,) = queue.pending()
    assert queue.scatter(chain, b"abcdefgh") == 4
    assert ram.read(BUFFERS, 5) == b"abcd\0"


def test_indices_wrap_after_65536_chains(ram, queue):
    ram.describe(0, BUFFERS, 4, WRITE)
    queue.load({**queue.state(), "next_available": 0xFFFE, "next_used": 0xFFFE})
    for number in range(0xFFFE, 0x10003):
        offer(ram, 0, start=number & 0xFFFF)
        (chain,) = queue.pending()
        queue.use(chain, number & 0xF)
    assert ram.read(USED + 2, 2) == struct.pack("<H", 3)


def test_indirect_table_is_followed_when_negotiated(ram, queue):
    ram.describe(2, TABLE, 32, INDIRECT)
    ram.describe(0, BUFFERS, 16, NEXT, 1, table=TABLE)
    ram.describe(1, BUFFERS + 0x100, 16, WRITE, table=TABLE)
    offer(ram, 2)
    queue.indirect = True
    (chain,) = queue.pending()
    assert chain == Chain(2, (Piece(BUFFERS, 16),), (Piece(BUFFERS + 0x100, 16),))


def test_driver_decides_whether_it_is_interrupted(ram, queue):
    assert queue.wants_interrupt
    ram.write(AVAILABLE, b"\1\0")
    assert not queue.wants_interrupt


def broken(number: int, queue: SplitQueue, ram: Ram) -> None:
    """Chain 0 with one thing wrong."""
    ram.describe(0, BUFFERS, 16, NEXT, 1)
    ram.describe(1, BUFFERS + 0x100, 16, WRITE)
    offer(ram, 0)
    queue.indirect = True
    match number:
        case 0:  # loop of one
            ram.describe(0, BUFFERS, 16, NEXT, 0)
        case 1:  # loop of two
            ram.describe(1, BUFFERS, 16, NEXT, 0)
        case 2:
            ram.describe(0, BUFFERS, 16, NEXT, SIZE)
        case 3:
            offer(ram, SIZE)
        case 4:
            ram.describe(0, RAM - 8, 16, NEXT, 1)
        case 5:
            ram.describe(0, (1 << 64) - 8, 16, NEXT, 1)
        case 6:
            ram.describe(0, 0, 0xFFFF_FFFF, NEXT, 1)
        case 7:
            ram.describe(0, BUFFERS, 0, NEXT, 1)
        case 8:  # readable after writable
            ram.describe(0, BUFFERS, 16, NEXT | WRITE, 1)
            ram.describe(1, BUFFERS, 16)
        case 9:  # more chains than the queue holds
            offer(ram, *[0] * SIZE, 0)
        case 10:
            ram.describe(0, TABLE, 32, INDIRECT)
            queue.indirect = False
        case 11:
            ram.describe(0, TABLE, 32, INDIRECT | NEXT, 1)
        case 12:
            ram.describe(0, TABLE, 24, INDIRECT)
        case 13:
            ram.describe(0, TABLE, 0, INDIRECT)
        case 14:
            ram.describe(0, RAM, 32, INDIRECT)
        case 15:  # nested
            ram.describe(0, TABLE, 16, INDIRECT)
            ram.describe(0, TABLE, 16, INDIRECT, table=TABLE)
        case 16:  # loop in an indirect table
            ram.describe(0, TABLE, 32, INDIRECT)
            ram.describe(0, BUFFERS, 4, NEXT, 1, table=TABLE)
            ram.describe(1, BUFFERS, 4, NEXT, 0, table=TABLE)
        case 17:
            ram.describe(0, TABLE, 16, INDIRECT)
            ram.describe(0, BUFFERS, 4, NEXT, 1, table=TABLE)


@pytest.mark.parametrize("number", range(18))
def test_broken_chain_is_refused(ram, queue, number):
    broken(number, queue, ram)
    with pytest.raises(QueueError):
        list(queue.pending())
    assert ram.read(USED, 68) == bytes(68)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 0),
        ("size", 3),
        ("size", 2 * SIZE),
        ("size", 0xFFFF),
        ("descriptors", DESCRIPTORS + 8),
        ("driver", AVAILABLE + 1),
        ("device", USED + 2),
        ("descriptors", RAM - 16),
        ("driver", RAM - 4),
        ("device", RAM - 8),
        ("device", (1 << 64) - 4),
    ],
)
def test_queue_that_is_set_up_wrongly_is_refused(queue, name, value):
    setattr(queue.setup, name, value)
    with pytest.raises(QueueError):
        queue.check()
    with pytest.raises(QueueError):
        list(queue.pending())


def test_chain_of_4_gib_is_refused(ram, queue, monkeypatch):
    monkeypatch.setattr(ram, "contains", lambda _gpa, _length=1: True)
    ram.describe(0, BUFFERS, 1 << 31, NEXT, 1)
    ram.describe(1, BUFFERS, 1 << 31, WRITE)
    offer(ram, 0)
    with pytest.raises(QueueError, match="4 GiB"):
        list(queue.pending())


@pytest.mark.parametrize("kind", [0, 64])
def test_device_type_without_a_pci_id_is_refused(kind):
    with pytest.raises(UsageError):
        build_config(kind, 1, 4)


@pytest.mark.parametrize("size", [0, -1, 3, 65536])
def test_queue_cannot_be_made_of_any_size(ram, size):
    with pytest.raises(UsageError):
        SplitQueue(ram, size)


def test_state_goes_on_where_it_stopped(ram, queue):
    ram.describe(0, BUFFERS, 4, WRITE)
    offer(ram, 0, 0)
    chains = queue.pending()
    queue.use(next(chains), 1)
    other = SplitQueue(ram, SIZE)
    other.load(queue.state())
    (last,) = other.pending()
    other.use(last, 2)
    assert ram.read(USED, 20) == struct.pack("<HHIIII", 0, 2, 0, 1, 0, 2)
    other.reset()
    assert other.state() == SplitQueue(ram, SIZE).state()


# -- anything at all


@st.composite
def chains(draw):
    """Good chains for distinct descriptors, and what they hold."""
    order = draw(st.permutations(range(SIZE)))
    made, at, gpa = [], 0, BUFFERS
    while at < SIZE and (not made or draw(st.booleans())):
        count = draw(st.integers(1, SIZE - at))
        readable = draw(st.integers(0, count))
        pieces = []
        for index in order[at : at + count]:
            length = draw(st.integers(1, 64))
            pieces.append((index, gpa, length))
            gpa += length
        made.append((pieces, readable))
        at += count
    return made


@settings(max_examples=150, deadline=None)
@given(chains())
def test_every_good_chain_is_read_as_it_was_written(made):
    ram = Ram()
    queue = SplitQueue(ram, SIZE)
    queue.setup.descriptors, queue.setup.driver, queue.setup.device = DESCRIPTORS, AVAILABLE, USED
    for pieces, readable in made:
        for number, (index, gpa, length) in enumerate(pieces):
            last = number == len(pieces) - 1
            flags = (0 if last else NEXT) | (WRITE if number >= readable else 0)
            ram.describe(index, gpa, length, flags, 0 if last else pieces[number + 1][0])
    offer(ram, *(pieces[0][0] for pieces, _readable in made))
    for (pieces, readable), chain in zip(made, queue.pending(), strict=True):
        found = tuple(Piece(gpa, length) for _index, gpa, length in pieces)
        assert chain == Chain(pieces[0][0], found[:readable], found[readable:])


descriptors = st.tuples(
    st.one_of(st.integers(0, RAM), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1)),
    st.integers(0, 8),
    st.integers(0, SIZE + 1),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    st.lists(st.integers(0, SIZE), min_size=SIZE, max_size=SIZE),
    st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
    st.booleans(),
)
def test_hostile_queue_ends_in_an_error_or_in_chains_within_ram(table, heads, index, indirect):
    ram = Ram()
    for number, (gpa, length, flags, following) in enumerate(table):
        ram.describe(number, gpa, length, flags, following)
    ram.write(AVAILABLE + 2, struct.pack(f"<H{SIZE}H", index, *heads))
    queue = SplitQueue(ram, SIZE)
    queue.setup.descriptors, queue.setup.driver, queue.setup.device = DESCRIPTORS, AVAILABLE, USED
    queue.indirect = indirect
    taken = []
    try:
        for chain in queue.pending():
            taken.append(chain)
            queue.use(chain, 0)
    except QueueError:
        pass
    else:
        assert len(taken) == index
    for chain in taken:
        assert chain.head < SIZE
        assert 0 < len(chain.readable) + len(chain.writable) <= 2 * SIZE
        assert all(ram.contains(*piece) for piece in (*chain.readable, *chain.writable))
    assert int.from_bytes(ram.read(USED + 2, 2), "little") == len(taken)
