"""RAM of a guest: where it lies, who reaches it, what is left of it."""

from __future__ import annotations

import pytest

from vfiokit.errors import UsageError
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.vmm.memory import HIGH_START, LOW_LIMIT, GuestMemory

MIB = 1 << 20


@pytest.fixture
def kernel() -> SoftwareKernel:
    machine = Machine(ram=8 << 30)
    machine.add_host_bridge(iommu=machine.add_iommu())
    return SoftwareKernel(machine)


def test_ram_beyond_3_gib_continues_at_4_gib(kernel: SoftwareKernel) -> None:
    with GuestMemory.of_size(kernel, LOW_LIMIT + MIB) as memory:
        assert [(each.gpa, each.length) for each in memory.ranges] == [
            (0, LOW_LIMIT),
            (HIGH_START, MIB),
        ]
        assert memory.size == LOW_LIMIT + MIB
        memory.write(HIGH_START, b"up here")
        assert memory.read(HIGH_START, 7) == b"up here"
        assert not memory.contains(LOW_LIMIT - 2, 4)


@pytest.mark.parametrize(
    "layout", [[(0, 100)], [(1, 4096)], [(0, 0)], [(0, 8192), (4096, 4096)]], ids=str
)
def test_layout_of_broken_or_overlapping_pages_is_refused(kernel, layout) -> None:
    with pytest.raises(UsageError):
        GuestMemory(kernel, layout)


@pytest.mark.parametrize(("gpa", "length"), [(-1, 1), (MIB, 1), (MIB - 1, 2), (1 << 63, 8)])
def test_access_outside_ram_is_refused(kernel, gpa, length) -> None:
    with GuestMemory.of_size(kernel, MIB) as memory, pytest.raises(UsageError):
        memory.read(gpa, length)


def test_writes_are_told_to_listeners(kernel) -> None:
    told = []
    with GuestMemory.of_size(kernel, MIB) as memory:
        memory.listen(lambda gpa, length: told.append((gpa, length)))
        memory.write_number(0x1000, 8, 0x1122334455667788)
        assert told == [(0x1000, 8)]
        assert memory.read_number(0x1004, 4) == 0x11223344


def test_state_comes_back_and_other_layouts_are_refused(kernel) -> None:
    with GuestMemory.of_size(kernel, MIB) as memory, GuestMemory.of_size(kernel, 2 * MIB) as other:
        memory.write(0x7000, b"kept")
        state = memory.state()
        memory.write(0x7000, b"gone")
        memory.load(state)
        assert memory.read(0x7000, 4) == b"kept"
        with pytest.raises(UsageError):
            other.load(state)


def test_close_waits_for_views_and_gives_everything_back(kernel) -> None:
    before = kernel.machine.memory.allocated
    memory = GuestMemory.of_size(kernel, MIB)
    memory.close()
    memory.close()
    assert memory.ranges == ()
    assert kernel.machine.memory.allocated == before
