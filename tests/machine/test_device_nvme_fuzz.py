"""Whatever a host does, the model answers: it never raises, and completes what it fetched."""

from __future__ import annotations

import struct

from device_host import BASE
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_host import CSTS, PAGE, NvmeHost

from vfiokit.machine.device.nvme import Limits, NvmeFunction
from vfiokit.pci.address import Bdf

LIMITS = Limits(queue_pairs=4, queue_entries=64, shadow_doorbells=True)

offsets = st.one_of(
    st.sampled_from([0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34]),
    st.integers(0x1000, 0x1040),
    st.integers(0, 0x4000),
)
widths = st.sampled_from([1, 2, 4, 8])
values = st.one_of(
    st.sampled_from([0, 1, 0x00460001, 0x001F001F, BASE, 0xFFFFFFFF]), st.integers(0, 2**64 - 1)
)


def make() -> NvmeFunction:
    return NvmeFunction.synthetic(Bdf(0, 1, 0, 0), vectors=5, capacity=1 << 20, limits=LIMITS)


@given(st.lists(st.tuples(st.booleans(), offsets, widths, values), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_register_access_is_survived(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    host = NvmeHost(make())
    for is_write, offset, width, value in accesses:
        if is_write:
            host.write(offset, value & (1 << 8 * width) - 1, width)
        else:
            assert 0 <= host.read(offset, width) < 1 << 8 * width
    host.enable()
    assert host.admin(0x0A, cdw10=7).status == 0


pages = st.one_of(
    st.integers(0, 1023).map(lambda page: BASE + page * PAGE),
    st.sampled_from([0, 4, BASE + 2, BASE + 8, BASE + 4092, 2**64 - 4, 2**64 - 4096]),
    st.integers(0, 2**64 - 1),
)
words = st.one_of(st.integers(0, 300), st.sampled_from([0xFFFF, 0x10001, 0xFFFFFFFF]))


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """A submission entry: plausible in every field, valid or not; its CID is filled in later."""
    opcode = draw(st.one_of(st.sampled_from([1, 2, 6, 9, 10, 5, 8, 0, 12]), st.integers(0, 255)))
    return struct.pack(
        "<BBHIQQQQ6I",
        opcode,
        draw(st.sampled_from([0, 0, 0, 0, 0x40, 0xC3])),
        0,
        draw(st.sampled_from([1, 1, 1, 0, 2, 0xFFFFFFFF])),
        0,
        0,
        draw(pages),
        draw(pages),
        *(draw(words) for _ in range(6)),
    )


garbage = st.binary(min_size=64, max_size=64)


def is_admin_hazard(entry: bytes) -> bool:
    """Admin commands after which counting on one completion each would be wrong."""
    return entry[0] in (0x0C, 0x08, 0x00, 0x01, 0x04, 0x05, 0x7C)


def out_of_the_rings(host: NvmeHost, entry: bytes) -> bytes:
    """Keep data phases away from the first pages, where the queues are."""
    prp1, prp2 = struct.unpack_from("<QQ", entry, 24)
    moved = [
        prp | 0x20_0000 if BASE <= prp < BASE + len(host.memory.data) else prp
        for prp in (prp1, prp2)
    ]
    return entry[:24] + struct.pack("<QQ", *moved) + entry[40:]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.one_of(entries(), garbage)), max_size=40),
    st.integers(1, 15),
)
@settings(max_examples=150, deadline=None)
def test_every_command_completes_once_with_its_identifier(
    commands: list[tuple[int, bytes]], batch: int
) -> None:
    host = NvmeHost(make())
    host.memory.data[0x10_0000:] = b"\x5a" * (len(host.memory.data) - 0x10_0000)
    host.enable()
    for queue_id in (1, 2):
        host.create_queue(queue_id, vector=queue_id)
    expected: dict[int, list[int]] = {0: [], 1: [], 2: []}
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, (queue_id, entry) in enumerate(commands):
        if queue_id == 0 and is_admin_hazard(entry):
            continue
        entry = out_of_the_rings(host, entry[:2] + struct.pack("<H", number) + entry[4:])
        queue = host.queues[queue_id]
        queue.push(entry)
        expected[queue_id].append(number)
        if number % batch == 0:
            for other in host.queues.values():
                other.ring_tail()
                for cqe in other.reap():
                    assert cqe.sq_id == other.queue_id
                    seen[cqe.sq_id].append(cqe.cid)
    for queue in host.queues.values():
        queue.ring_tail()
        seen[queue.queue_id] += [cqe.cid for cqe in queue.reap()]
    assert seen == expected
    assert host.read(CSTS) == 1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 2), st.one_of(garbage, entries())),
            st.tuples(st.just("ring"), st.integers(0, 12), st.integers(0, 40)),
            st.tuples(st.just("write"), offsets, values),
            st.tuples(st.just("advance"), st.integers(0, 3), st.integers(0, 10**7)),
        ),
        max_size=40,
    )
)
@settings(max_examples=150, deadline=None)
def test_garbage_everywhere_is_survived(actions: list[tuple[str, int, int | bytes]]) -> None:
    host = NvmeHost(make())
    host.enable()
    for queue_id in (1, 2):
        host.create_queue(queue_id, vector=queue_id)
    for kind, first, second in actions:
        host.function.clock.auto = kind != "advance"
        if kind == "push":
            assert isinstance(second, bytes)
            host.queues[first].push(second)
            host.queues[first].ring_tail()
        else:
            assert isinstance(second, int)
            if kind == "ring":
                host.write(0x1000 + 4 * first, second)
            elif kind == "write":
                host.write(first, second & 0xFFFFFFFF)
            else:
                host.function.clock.advance(second)
    host.function.clock.auto = True
    host.function.clock.settle()
    host._next = BASE
    host.memory.data[:] = bytes(len(host.memory.data))
    host.enable()
    assert host.admin(0x0A, cdw10=7).status == 0
