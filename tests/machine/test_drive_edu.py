"""The edu driver on the software machine, through its kernel's VFIO."""

from __future__ import annotations

import math

import pytest
from drive_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.driver.edu import BUFFER_SIZE, MAX_IOVA, Edu
from vfiokit.errors import DeviceTimeoutError, DriverError, UsageError
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import NvmeFunction


@pytest.fixture
def rig():
    with Rig(EduFunction) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["msi", "intx"])
def edu(request, rig):
    with Edu(rig.device, intx=request.param) as started:
        yield started


def test_device_identifies_and_is_alive(edu) -> None:
    assert edu.version == (1, 0)
    assert edu.is_alive()
    assert edu.is_alive(0)


@pytest.mark.parametrize("interrupt", [True, False])
@pytest.mark.parametrize("number", [0, 1, 5, 12, 13, 40])
def test_factorial_wraps_at_32_bits(edu, number: int, interrupt: bool) -> None:
    expected = math.factorial(number) & 0xFFFFFFFF
    assert edu.factorial(number, interrupt=interrupt) == expected


@pytest.mark.parametrize("interrupt", [True, False])
def test_bytes_travel_to_the_device_and_back(edu, interrupt: bool) -> None:
    with edu.allocate() as buffer:
        assert buffer.iova + buffer.length - 1 <= MAX_IOVA
        buffer.view[:] = bytes(range(256)) * 16
        edu.to_device(buffer.iova, BUFFER_SIZE, interrupt=interrupt)
        buffer.view[:] = bytes(BUFFER_SIZE)
        edu.from_device(buffer.iova + 10, 100, 50, interrupt=interrupt)
        assert bytes(buffer.view[:120]) == bytes(10) + bytes(range(50, 150)) + bytes(10)


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 64)), max_size=5))
@settings(max_examples=20, deadline=None)
def test_device_buffer_behaves_as_memory(pieces) -> None:
    with Rig(EduFunction) as rig, Edu(rig.device) as edu, edu.allocate(8192) as buffer:
        model = bytearray(BUFFER_SIZE)
        for serial, (offset, count) in enumerate(pieces, 1):
            count = min(count, BUFFER_SIZE - offset)
            buffer.view[:count] = bytes([serial]) * count
            edu.to_device(buffer.iova, count, offset)
            model[offset : offset + count] = bytes([serial]) * count
        edu.from_device(buffer.iova + 4096, BUFFER_SIZE)
        assert bytes(buffer.view[4096:]) == bytes(model)


def test_interrupts_come_one_after_the_other(edu) -> None:
    assert [edu.raise_interrupt(bits) for bits in (0x2, 0x4, 0x80000000)] == [2, 4, 0x80000000]


def test_addresses_that_the_device_would_cut_are_refused(edu) -> None:
    with pytest.raises(UsageError, match="cannot address") as caught:
        edu.to_device(MAX_IOVA, 2)
    assert "max_iova" in caught.value.hint


@pytest.mark.parametrize(("count", "offset"), [(0, 0), (4097, 0), (1, 4096), (1, -1)])
def test_ranges_outside_the_device_buffer_are_refused(edu, count: int, offset: int) -> None:
    with pytest.raises(UsageError, match="do not fit"):
        edu.from_device(0x1000, count, offset)


def test_device_that_never_answers_times_out(rig) -> None:
    with Edu(rig.device, timeout_s=0.05) as edu, edu.allocate() as buffer:
        rig.freeze()
        with pytest.raises(DeviceTimeoutError):
            edu.to_device(buffer.iova, 16)
        with pytest.raises(DeviceTimeoutError):
            edu.to_device(buffer.iova, 16, interrupt=False)
        rig.thaw()


def test_driver_outside_its_block_refuses(rig) -> None:
    edu = Edu(rig.device)
    with pytest.raises(UsageError, match="not started"):
        edu.factorial(3)
    with edu:
        assert edu.factorial(3) == 6
    assert not rig.function.bus_master
    with pytest.raises(UsageError, match="not started"):
        edu.factorial(3)
    with edu:
        assert edu.factorial(4) == 24


def test_other_devices_are_not_taken_for_edu() -> None:
    with (
        Rig(NvmeFunction.synthetic) as rig,
        pytest.raises(DriverError, match="is no edu"),
        Edu(rig.device),
    ):
        pass
