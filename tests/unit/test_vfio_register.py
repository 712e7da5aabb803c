"""Register maps."""

from __future__ import annotations

import pytest

from vfiokit.errors import UsageError
from vfiokit.vfio import R32, R64, RW32, RW64, W32, W64, RegisterMap


class Recorder:
    """Registers that note every access."""

    def __init__(self) -> None:
        self.accesses: list[tuple[str, int, int]] = []
        self.values: dict[int, int] = {}

    def _read(self, width: int, offset: int) -> int:
        self.accesses.append(("read", width, offset))
        return self.values.get(offset, 0)

    def _write(self, width: int, offset: int, value: int) -> None:
        self.accesses.append(("write", width, offset))
        self.values[offset] = value

    def read32(self, offset: int) -> int:
        return self._read(32, offset)

    def read64(self, offset: int) -> int:
        return self._read(64, offset)

    def write32(self, offset: int, value: int) -> None:
        self._write(32, offset, value)

    def write64(self, offset: int, value: int) -> None:
        self._write(64, offset, value)


class Block(RegisterMap):
    ID = R32(0x00)
    CONTROL = RW32(0x04)
    ACKNOWLEDGE = W32(0x08)
    WHOLE = RW64(0x10)
    HALVES = RW64(0x18, halves=True)
    WIDE_ID = R64(0x20)
    KEY = W64(0x28, halves=True)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_each_access_is_one_of_its_width_at_its_place(recorder: Recorder) -> None:
    block = Block(recorder, start=0x100)
    block.CONTROL = 5
    assert block.CONTROL == 5
    _ = block.ID
    block.WHOLE = 1 << 40
    assert block.WHOLE == 1 << 40
    assert recorder.accesses == [
        ("write", 32, 0x104),
        ("read", 32, 0x104),
        ("read", 32, 0x100),
        ("write", 64, 0x110),
        ("read", 64, 0x110),
    ]


def test_halves_go_low_then_high(recorder: Recorder) -> None:
    block = Block(recorder)
    block.HALVES = 0x1122334455667788
    assert block.HALVES == 0x1122334455667788
    assert recorder.accesses == [
        ("write", 32, 0x18),
        ("write", 32, 0x1C),
        ("read", 32, 0x18),
        ("read", 32, 0x1C),
    ]
    with pytest.raises(ValueError, match="64 bits"):
        block.HALVES = 1 << 64
    assert len(recorder.accesses) == 4


def test_wrong_direction_is_refused_without_an_access(recorder: Recorder) -> None:
    block = Block(recorder)
    with pytest.raises(UsageError, match=r"ACKNOWLEDGE.*write-only"):
        _ = block.ACKNOWLEDGE
    with pytest.raises(UsageError, match=r"KEY.*write-only"):
        _ = block.KEY
    with pytest.raises(UsageError, match=r"ID.*read-only"):
        block.ID = 1
    with pytest.raises(UsageError, match=r"WIDE_ID.*read-only"):
        block.WIDE_ID = 1
    assert recorder.accesses == []


def test_misspelt_register_is_an_error(recorder: Recorder) -> None:
    with pytest.raises(AttributeError):
        Block(recorder).CONTROLL = 1


def test_misaligned_register_cannot_be_declared() -> None:
    with pytest.raises(UsageError):
        R32(0x02)
    with pytest.raises(UsageError):
        RW64(0x04)


def test_layout_lists_registers_by_offset_with_inherited_ones() -> None:
    class More(Block):
        FIRST = RW32(0x0C)

    layout = More.layout()
    assert [register.offset for register in layout.values()] == sorted(
        register.offset for register in layout.values()
    )
    assert layout["FIRST"].writable
    assert not layout["ACKNOWLEDGE"].readable
    assert layout["WHOLE"].width == 8
