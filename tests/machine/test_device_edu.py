from __future__ import annotations

import math

import pytest
from device_host import BASE, HostMemory, Pin, enable_msi, plug
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

BUFFER = 0x40000
ONES = 0xFFFFFFFF


class Edu:
    def __init__(self, **arguments: int) -> None:
        self.function = EduFunction(Bdf(0, 0, 4, 0), **arguments)
        self.memory: HostMemory
        self.pin: Pin
        self.memory, self.pin = plug(self.function)
        self.clock = self.function.clock

    def read(self, offset: int, width: int = 4) -> int:
        return self.function.bar_read(0, offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.function.bar_write(0, offset, width, value)

    def transfer(self, source: int, destination: int, count: int, command: int) -> None:
        for offset, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
            self.write(offset, value, 8)
        self.clock.settle()


def test_it_is_found_as_qemus_device() -> None:
    function = Edu().function
    assert function.config_read(0, 4) == 0x11E81234
    assert function.config_read(8, 4) == 0x00FF0010
    assert function.config_read(0x2C, 4) == 0x11001AF4
    assert function.config_read(0x3D, 1) == 1
    assert function.msix is None
    assert function.msi is not None
    assert function.msi.count == 1
    assert function.msi.wide
    function.config_write(0x10, 4, ONES)
    assert function.config_read(0x10, 4) == 0xFFF00000  # 1 MiB, 32-bit, not prefetchable


def test_identification_and_liveness() -> None:
    edu = Edu()
    assert edu.read(0x00) == 0x010000ED
    edu.write(0x04, 0x12345678)
    assert edu.read(0x04) == 0xEDCBA987
    edu.write(0x00, 0)
    assert edu.read(0x00) == 0x010000ED


@pytest.mark.parametrize("number", [0, 1, 5, 12, 13, 20, 33, 34, 0xFFFFFFFF])
def test_factorial_wraps_at_32_bits(number: int) -> None:
    edu = Edu()
    edu.write(0x08, number)
    assert edu.read(0x20) == 1
    edu.clock.settle()
    assert edu.read(0x20) == 0
    assert edu.read(0x08) == (math.factorial(number) % 2**32 if number < 1000 else 0)


def test_factorial_ignores_writes_while_computing() -> None:
    edu = Edu()
    edu.write(0x08, 5)
    edu.write(0x08, 6)
    edu.clock.settle()
    assert edu.read(0x08) == 120


def test_factorial_interrupts_only_when_asked() -> None:
    edu = Edu()
    edu.write(0x08, 3)
    edu.clock.settle()
    assert not edu.pin.level
    edu.write(0x20, 0xFF)
    assert edu.read(0x20) == 0x80  # computing is read-only
    edu.write(0x08, 3)
    edu.clock.settle()
    assert edu.pin.level
    assert edu.read(0x24) == 1
    edu.write(0x64, 1)
    assert not edu.pin.level


def test_the_pin_stays_until_every_bit_is_acknowledged() -> None:
    edu = Edu()
    edu.write(0x60, 0x11)
    edu.write(0x60, 0x06)
    assert edu.read(0x24) == 0x17
    edu.write(0x64, 0x16)
    assert edu.pin.level
    edu.write(0x64, 0x01)
    assert not edu.pin.level
    assert edu.pin.edges == 1


def test_msi_replaces_the_pin() -> None:
    edu = Edu()
    edu.write(0x60, 1)
    assert edu.pin.level
    enable_msi(edu.function, data=0x33)
    assert not edu.pin.level
    edu.write(0x60, 2)
    assert edu.memory.messages == [0x33]
    assert edu.read(0x24) == 3
    edu.write(0x64, 3)
    assert edu.read(0x24) == 0


def test_data_goes_to_the_buffer_and_back() -> None:
    edu = Edu()
    edu.memory.view[0:4096] = bytes(range(256)) * 16
    edu.transfer(BASE, BUFFER, 4096, 0x1)
    assert edu.read(0x24) == 0
    edu.transfer(BUFFER + 16, BASE + 0x2000, 4080, 0x1 | 0x2 | 0x4)
    assert edu.memory.data[0x2000 : 0x2000 + 4080] == (bytes(range(256)) * 16)[16:]
    assert edu.read(0x24) == 0x100
    assert edu.pin.level
    assert edu.read(0x98, 8) == 0x6


def test_a_transfer_takes_100_ms_and_locks_its_registers() -> None:
    edu = Edu()
    edu.clock.auto = False
    edu.transfer(BASE, BUFFER, 16, 0x1 | 0x4)
    for offset in (0x80, 0x88, 0x90, 0x98):
        edu.write(offset, 0x7777, 8)
    assert edu.read(0x90, 8) == 16
    edu.clock.advance(99_999_999)
    assert edu.read(0x98, 8) == 5
    edu.clock.advance(1)
    assert edu.read(0x98, 8) == 4
    assert edu.read(0x24) == 0x100


def test_a_command_without_start_is_ignored() -> None:
    edu = Edu()
    edu.transfer(BASE, BUFFER, 16, 0x6)
    assert edu.read(0x98, 8) == 0
    assert not edu.clock.pending


def test_addresses_lose_the_bits_beyond_the_mask() -> None:
    edu = Edu(dma_mask=(1 << 28) - 1)
    edu.memory.view[0:4] = b"mask"
    edu.transfer(BASE | 1 << 28, BUFFER, 4, 0x1)
    assert edu.function.buffer[:4] == b"mask"
    assert len(edu.function.guest_errors) == 1
    wide = Edu(dma_mask=(1 << 64) - 1)
    wide.transfer(BASE | 1 << 28, BUFFER, 4, 0x1)
    assert wide.function.buffer[:4] == bytes(4)  # nothing is mapped there


@pytest.mark.parametrize(
    ("device_address", "count"), [(0, 4), (BUFFER - 1, 4), (BUFFER + 4095, 2), (BUFFER, 1 << 62)]
)
@pytest.mark.parametrize("command", [0x1, 0x3])
def test_transfers_outside_the_buffer_move_nothing(
    device_address: int, count: int, command: int
) -> None:
    edu = Edu()
    edu.memory.writes = edu.memory.reads = 0
    ends = (device_address, BASE) if command & 2 else (BASE, device_address)
    edu.transfer(*ends, count, command | 4)
    assert edu.memory.writes == edu.memory.reads == 0
    assert edu.function.guest_errors
    assert edu.read(0x24) == 0x100  # the device itself reports completion all the same


def test_access_widths_are_those_of_the_device() -> None:
    edu = Edu()
    edu.write(0x04, 0)
    for offset, width in ((0x00, 1), (0x00, 2), (0x00, 8), (0x80, 1), (0x80, 2), (0x84, 4)):
        assert edu.read(offset, width) == (1 << 8 * width) - 1
        edu.write(offset, 0, width)
    edu.write(0x04, 1, 2)
    assert edu.read(0x04) == ONES
    edu.write(0x80, 0x1_0000_0002, 8)
    assert (edu.read(0x80), edu.read(0x80, 8)) == (2, 0x1_0000_0002)
    edu.write(0x80, 3, 4)
    assert edu.read(0x80, 8) == 3
    for offset in (0x0C, 0x60, 0x64, 0xA0, BUFFER):
        assert edu.read(offset) == ONES


@pytest.mark.parametrize("kind", list(ResetKind))
def test_reset_stops_everything(kind: ResetKind) -> None:
    edu = Edu()
    edu.clock.auto = False
    edu.write(0x60, 1)
    edu.transfer(BASE, BUFFER, 16, 0x1 | 0x4)
    edu.write(0x08, 4)
    edu.function.reset(kind)
    assert not edu.pin.level
    edu.function.config_write(4, 2, 6)
    edu.clock.advance(10**9)
    assert (edu.read(0x24), edu.read(0x98, 8), edu.read(0x08), edu.read(0x20)) == (0, 0, 0, 0)


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.sampled_from([0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98]),
                st.integers(0, (1 << 20) - 8),
            ),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(st.integers(0, 7), st.integers(0, 2**64 - 1)),
        ),
        max_size=40,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_access_is_survived(accesses: list[tuple[bool, int, int, int]]) -> None:
    edu = Edu()
    for is_write, offset, width, value in accesses:
        if is_write:
            edu.write(offset, value & (1 << 8 * width) - 1, width)
        else:
            assert 0 <= edu.read(offset, width) < 1 << 8 * width
        edu.clock.settle()
    assert edu.read(0x00) == 0x010000ED
