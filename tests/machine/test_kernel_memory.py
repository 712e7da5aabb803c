"""Memory of the process, descriptors, eventfds."""

from __future__ import annotations

import errno
import os

import pytest
from kernel_host import NIC, PAGE, KernelHost, refuses

from vfiokit.machine.kernel.process import FIRST_VADDR, AddressSpace
from vfiokit.machine.kernel.surface import FIRST_FD
from vfiokit.machine.memory import PhysicalMemory


@pytest.fixture
def space() -> AddressSpace:
    return AddressSpace(PhysicalMemory(64 << 20))


def test_memory_is_zeroed_and_whole_pages(space: AddressSpace) -> None:
    memory = space.allocate(5000)
    assert memory.length == 2 * PAGE
    assert memory.vaddr >= FIRST_VADDR
    assert memory.vaddr % PAGE == 0
    assert memory.view.format == "B"
    assert not any(memory.view)


def test_regions_never_touch(space: AddressSpace) -> None:
    first, second = space.allocate(PAGE), space.allocate(PAGE)
    assert second.vaddr > first.vaddr + PAGE
    with refuses(errno.EFAULT):
        space.resolve(first.vaddr, PAGE + 1)
    assert space.resolve(first.vaddr + 8, PAGE - 8)[1].length == PAGE - 8


@pytest.mark.parametrize(
    ("length", "huge", "code"),
    [
        (0, 0, errno.EINVAL),
        (-1, 0, errno.EINVAL),
        (PAGE, 8192, errno.EINVAL),
        (1 << 30, 0, errno.ENOMEM),
        (PAGE, 1 << 30, errno.ENOMEM),
    ],
)
def test_allocation_is_refused(space: AddressSpace, length: int, huge: int, code: int) -> None:
    with refuses(code):
        space.allocate(length, huge)


def test_huge_pages_round_and_align(space: AddressSpace) -> None:
    memory = space.allocate(PAGE, 2 << 20)
    assert memory.length == 2 << 20
    assert memory.vaddr % (2 << 20) == 0
    assert space.resolve(memory.vaddr, 1)[1].hpa % (2 << 20) == 0


def test_closing_is_refused_while_a_view_is_in_use(space: AddressSpace) -> None:
    memory = space.allocate(PAGE)
    part = memory.view[16:32]
    with pytest.raises(BufferError):
        memory.close()
    part[0] = 7
    assert memory.view[16] == 7
    part.release()
    memory.close()
    memory.close()
    with refuses(errno.EFAULT):
        space.resolve(memory.vaddr, 1)


def test_descriptors_are_far_from_those_of_the_process() -> None:
    host = KernelHost()
    assert host.container() >= FIRST_FD
    event = host.kernel.eventfd()
    assert os.fstat(event)
    host.kernel.close(event)
    with refuses(errno.EBADF):
        os.fstat(event)
    for unknown in (FIRST_FD + 99, 3):
        with refuses(errno.EBADF):
            host.kernel.ioctl(unknown, 0)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/dev/vfio/99", errno.ENOENT),
        ("/sys", errno.EISDIR),
        ("/dev/vfio/vfio/x", errno.ENOTDIR),
    ],
)
def test_open_is_refused(path: str, code: int) -> None:
    with refuses(code):
        KernelHost().kernel.open(path)


def test_attributes_open_like_files() -> None:
    host = KernelHost()
    vendor = host.kernel.open(f"/sys/bus/pci/devices/{NIC}/vendor")
    assert host.kernel.pread(vendor, 4, 2) == b"8086"
    with refuses(errno.EACCES):
        host.kernel.pwrite(vendor, b"1", 0)
    override = host.kernel.open(f"/sys/bus/pci/devices/{NIC}/driver_override")
    assert host.kernel.pwrite(override, b"vfio-pci", 0) == 8
    assert host.kernel.device(NIC).driver_override == "vfio-pci"


def test_page_size_and_interrupt_vectors_come_back_after_many_opens() -> None:
    host = KernelHost()
    assert host.kernel.page_size == PAGE
    before = host.machine.memory.allocated
    for _ in range(300):
        fd = host.open_device(NIC)
        (event,) = host.events(1)
        host.set_irqs(fd, 0x24, 2, 0, 1, event.to_bytes(4, "little"))
        host.kernel.close(event)
        for each in tuple(host.kernel._descriptors):
            host.kernel.close(each)
    assert host.machine.memory.allocated == before
    assert not host.machine.interrupts._allocations
