"""The client's memory as a server knows it, held to an array of bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import open_files

from vfiokit.errors import ProtocolError
from vfiokit.kernel import linux
from vfiokit.vfio_user.dma import DmaFault, DmaTable
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap

PAGE = 4096
SIZE = 8 * PAGE
READ, WRITE = 1, 2


class Side:
    """Memory that the client keeps, and what it was asked for."""

    def __init__(self) -> None:
        self.data = bytearray(os.urandom(SIZE))
        self.asked: list[tuple[int, int]] = []

    def read(self, iova: int, length: int) -> bytes:
        self.asked.append((iova, length))
        return bytes(self.data[iova : iova + length])

    def write(self, iova: int, data: bytes) -> None:
        self.data[iova : iova + len(data)] = data


@pytest.fixture
def table() -> Iterator[DmaTable]:
    before = open_files()
    made = DmaTable()
    yield made
    made.clear()
    assert open_files() <= before


def sealed(data: bytes) -> int:
    fd = linux.memory_file("test", len(data))
    os.pwrite(fd, data, 0)
    return fd


kinds = st.lists(st.sampled_from(["sealed", "file", "message"]), min_size=8, max_size=8)


@settings(max_examples=40, deadline=None)
@given(kinds, st.integers(0, SIZE - 1), st.integers(1, SIZE), st.binary(min_size=1, max_size=64))
def test_an_access_crosses_mappings_of_every_kind(
    tmp_path_factory: pytest.TempPathFactory, each: list[str], at: int, length: int, piece: bytes
) -> None:
    side, table = Side(), DmaTable()
    path = tmp_path_factory.mktemp("dma") / "file"
    path.write_bytes(bytes(SIZE))
    model = bytearray(SIZE)
    for page, kind in enumerate(each):
        start = page * PAGE
        content = os.urandom(PAGE)
        model[start : start + PAGE] = content
        if kind == "sealed":
            table.add(DmaMap(start, PAGE), (sealed(content),))
        elif kind == "file":
            fd = os.open(path, os.O_RDWR)
            os.pwrite(fd, content, start)
            table.add(DmaMap(start, PAGE, offset=start), (fd,))
        else:
            side.data[start : start + PAGE] = content
            table.add(DmaMap(start, PAGE), ())
    length = min(length, SIZE - at)
    assert table.read(at, length, side.read) == model[at : at + length]
    data = (piece * (length // len(piece) + 1))[:length]
    table.write(at, data, side.write)
    model[at : at + length] = data
    assert table.read(0, SIZE, side.read) == model
    assert all(each[iova // PAGE] == "message" for iova, _length in side.asked)
    table.clear()


def test_a_write_that_cannot_end_does_not_begin(table: DmaTable) -> None:
    fd = sealed(bytes(PAGE))
    table.add(DmaMap(0, PAGE), (os.dup(fd),))
    with pytest.raises(DmaFault, match="nothing is mapped at 0x1000"):
        table.write(PAGE - 4, b"12345678", Side().write)
    assert os.pread(fd, 4, PAGE - 4) == bytes(4)
    os.close(fd)


def test_mappings_forbid_what_they_do_not_allow(table: DmaTable) -> None:
    table.add(DmaMap(0, PAGE, READ), ())
    table.add(DmaMap(PAGE, PAGE, WRITE), ())
    table.add(DmaMap(2 * PAGE, PAGE, 0), ())
    side = Side()
    table.read(0, 4, side.read)
    table.write(PAGE, b"data", side.write)
    for refused in (
        lambda: table.write(0, b"data", side.write),
        lambda: table.read(PAGE, 4, side.read),
        lambda: table.read(2 * PAGE, 4, side.read),
        lambda: table.read(PAGE - 2, 4, side.read),
    ):
        with pytest.raises(DmaFault, match="forbids it"):
            refused()


def test_an_identical_mapping_takes_the_place_of_the_old(table: DmaTable) -> None:
    table.add(DmaMap(0, PAGE), (sealed(b"a" * PAGE),))
    assert table.read(0, 1, Side().read) == b"a"
    table.add(DmaMap(0, PAGE), (sealed(b"b" * PAGE),))
    assert table.read(0, 1, Side().read) == b"b"
    assert len(table) == 1


@pytest.mark.parametrize(("at", "count"), [(0, 2), (1, 1), (3, 1), (0, 8), (1, 2), (3, 4)])
def test_an_overlap_is_eexist(table: DmaTable, at: int, count: int) -> None:
    table.add(DmaMap(PAGE, 3 * PAGE), ())
    with pytest.raises(ProtocolError) as caught:
        table.add(DmaMap(at * PAGE, count * PAGE), ())
    assert caught.value.errno == 17
    table.add(DmaMap(0, PAGE), ())
    table.add(DmaMap(4 * PAGE, PAGE), ())


@pytest.mark.parametrize(("at", "count"), [(0, 1), (1, 1), (1, 2), (2, 1), (0, 8), (1, 4)])
def test_a_part_of_a_mapping_cannot_be_taken_away(table: DmaTable, at: int, count: int) -> None:
    table.add(DmaMap(PAGE, 3 * PAGE), ())
    with pytest.raises(ProtocolError) as caught:
        table.remove(DmaUnmap(at * PAGE, count * PAGE))
    assert caught.value.errno == 2
    table.remove(DmaUnmap(PAGE, 3 * PAGE))
    assert len(table) == 0


def test_memory_up_to_the_last_address_can_be_mapped(table: DmaTable) -> None:
    table.add(DmaMap(2**64 - PAGE, PAGE), (sealed(b"z" * PAGE),))
    assert table.read(2**64 - 1, 1, Side().read) == b"z"
    with pytest.raises(DmaFault):
        table.read(2**64 - 1, 2, Side().read)


def test_a_file_that_is_too_short_is_refused(table: DmaTable) -> None:
    fd = sealed(bytes(PAGE))
    for offset, size in ((0, 2 * PAGE), (PAGE, PAGE), (1 << 63, PAGE), (512, PAGE)):
        with pytest.raises(ProtocolError):
            table.add(DmaMap(0, size, offset=offset), (fd,))
    os.close(fd)


def test_what_is_unmapped_is_let_go(table: DmaTable) -> None:
    before = open_files()
    for number in range(100):
        table.add(DmaMap(number * PAGE, PAGE), (sealed(bytes(PAGE)),))
        table.read(number * PAGE, 4, Side().read)
    assert open_files() > before
    for number in range(100):
        table.remove(DmaUnmap(number * PAGE, PAGE))
    assert open_files() == before
