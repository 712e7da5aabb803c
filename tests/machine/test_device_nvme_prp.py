"""PRP walks against a reference that looks at one page at a time."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.machine.device.nvme.prp import extents
from vfiokit.machine.device.nvme.status import CommandFailedError, Status


class Built(NamedTuple):
    prp1: int
    prp2: int
    memory: dict[int, bytes]
    addresses: list[tuple[int, int]]
    """Every page's piece of the transfer, in order."""


@st.composite
def transfers(draw: st.DrawFn) -> tuple[int, int, Built]:
    page_size = draw(st.sampled_from([4096, 8192]))
    length = draw(st.one_of(st.integers(1, 4 * page_size), st.integers(1, 1100 * page_size)))
    offset = draw(st.integers(0, page_size // 4 - 1)) * 4
    count = -(-(offset + length) // page_size)
    contiguous = draw(st.booleans())
    start = draw(st.integers(0x100, 0x10000)) * page_size
    if contiguous:
        pages = [start + index * page_size for index in range(count)]
    else:
        spread = draw(st.permutations(range(min(count, 24))))
        pages = [
            start + (index // 24 * 24 + spread[index % 24 % len(spread)]) * 2 * page_size
            for index in range(count)
        ]
    list_offset = draw(st.integers(0, page_size // 8 - 1)) * 8
    return page_size, length, _build(pages, offset, length, page_size, list_offset)


def _build(pages: list[int], offset: int, length: int, page_size: int, list_offset: int) -> Built:
    pieces, rest = [], length
    for index, page in enumerate(pages):
        start = page + (offset if index == 0 else 0)
        step = min(rest, page + page_size - start)
        pieces.append((start, step))
        rest -= step
    prp1, tail = pages[0] + offset, pages[1:]
    if len(tail) <= 1:
        return Built(prp1, tail[0] if tail else 0xDEAD, {}, pieces)
    memory: dict[int, bytes] = {}
    at = first = 0x4000_0000_0000 + list_offset
    while True:
        slots = (page_size - at % page_size) // 8
        if len(tail) <= slots:
            memory[at] = struct.pack(f"<{len(tail)}Q", *tail)
            break
        following = (at // page_size + 7) * page_size
        memory[at] = struct.pack(f"<{slots}Q", *tail[: slots - 1], following)
        tail, at = tail[slots - 1 :], following
    return Built(prp1, first, memory, pieces)


@given(transfers())
@settings(max_examples=200, deadline=None)
def test_extents_cover_exactly_the_pages_in_order(transfer: tuple[int, int, Built]) -> None:
    page_size, length, built = transfer
    reads = []

    def read(iova: int, size: int) -> bytes:
        reads.append((iova, size))
        return built.memory[iova][:size]

    found = extents(built.prp1, built.prp2, length, page_size, read)
    expected: list[tuple[int, int]] = []
    for iova, size in built.addresses:
        if expected and sum(expected[-1]) == iova:
            expected[-1] = (expected[-1][0], expected[-1][1] + size)
        else:
            expected.append((iova, size))
    assert [tuple(extent) for extent in found] == expected
    # Each list is read once, and never more of it than the transfer needs.
    assert reads == [(iova, len(data)) for iova, data in built.memory.items()]


@pytest.mark.parametrize("pages", [511, 512, 513, 514, 1023, 1024, 1025])
@pytest.mark.parametrize("slots", [1, 2, 510, 511, 512])
def test_the_last_slot_of_a_list_chains_only_if_pages_remain(pages: int, slots: int) -> None:
    addresses = [0x1000_0000 + 0x2000 * index for index in range(pages)]
    built = _build(addresses, 0, 4096 * pages, 4096, 4096 - 8 * slots)

    def read(iova: int, size: int) -> bytes:
        return built.memory[iova][:size]

    found = extents(built.prp1, built.prp2, 4096 * pages, 4096, read)
    assert [extent.iova for extent in found] == addresses


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, 1 << 21),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_or_covers_the_length(
    prp1: int, prp2: int, length: int, random: object
) -> None:
    def read(iova: int, size: int) -> bytes:
        del iova
        return random.randbytes(size)  # type: ignore[attr-defined,no-any-return]

    status, total = Status.SUCCESS, length
    try:
        total = sum(extent.length for extent in extents(prp1, prp2, length, 4096, read))
    except CommandFailedError as error:
        status = error.status
    assert status in (Status.SUCCESS, Status.INVALID_PRP_OFFSET)
    assert total == length


def test_a_list_that_chains_to_itself_ends() -> None:
    page = 0x10000

    def read(iova: int, size: int) -> bytes:
        del iova
        return struct.pack("<Q", page) * (size // 8)

    found = extents(0x4000, page, 4096 * 3000, 4096, read)
    assert sum(extent.length for extent in found) == 4096 * 3000


def test_a_chain_pointer_inside_a_page_is_refused() -> None:
    def read(iova: int, size: int) -> bytes:
        del iova
        return struct.pack("<Q", 0x20008) * (size // 8)

    with pytest.raises(CommandFailedError) as caught:
        extents(0x4000, 0x10000 - 8, 4096 * 4, 4096, read)
    assert caught.value.status is Status.INVALID_PRP_OFFSET
