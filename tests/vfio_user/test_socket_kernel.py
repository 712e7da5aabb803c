"""A served device behind the seam: requests, regions, and memory as the server reaches it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import SHARED, Plain, serving

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel import linux
from vfiokit.vfio import Device
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.device import ServedRegion
from vfiokit.vfio_user.kernel import DEVICE_FD, SocketBackend, SocketKernel
from vfiokit.vfio_user.payload import SparseArea
from vfiokit.vfio_user.server import Server

PAGE = 4096
CONFIG = abi.VFIO_PCI_CONFIG_REGION_INDEX << abi.VFIO_PCI_OFFSET_SHIFT


@contextmanager
def opened(device: Plain, *, share: bool = True) -> Iterator[SocketBackend]:
    with serving(Server(device)) as (sock, _ended):
        backend = SocketBackend(SocketKernel(Client(sock, offer=SHARED), share=share))
        try:
            yield backend
        finally:
            backend.close()


def test_accesses_are_clipped_and_refused_as_vfio_pci_does() -> None:
    with opened(Plain()) as backend:
        kernel = backend.kernel
        assert kernel.pwrite(DEVICE_FD, b"12345678", 4092) == 4
        assert kernel.pread(DEVICE_FD, 8, 4092) == b"1234"
        for offset, code in ((PAGE, errno.EINVAL), (CONFIG + 254, errno.EFAULT)):
            with pytest.raises(OSError, match="bytes") as caught:
                kernel.pread(DEVICE_FD, 4, offset)
            assert caught.value.errno == code
        with pytest.raises(OSError, match="Bad") as caught:
            kernel.pread(77, 4, 0)
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("request_number", [abi.VFIO_DEVICE_IOEVENTFD, 0x3B71, 12345])
def test_requests_that_the_protocol_lacks_are_enotty(request_number: int) -> None:
    with opened(Plain()) as backend, pytest.raises(OSError, match="no such request") as caught:
        backend.kernel.ioctl(DEVICE_FD, request_number, bytearray(64))
    assert caught.value.errno == errno.ENOTTY


@pytest.mark.parametrize(
    ("request_number", "length"),
    [
        (abi.VFIO_DEVICE_GET_INFO, 8),
        (abi.VFIO_DEVICE_GET_REGION_INFO, 16),
        (abi.VFIO_DEVICE_GET_IRQ_INFO, 8),
        (abi.VFIO_DEVICE_SET_IRQS, 12),
        (abi.VFIO_DEVICE_FEATURE, 4),
    ],
)
def test_a_buffer_that_is_too_short_is_einval(request_number: int, length: int) -> None:
    with opened(Plain()) as backend:
        buffer = bytearray(length)
        struct.pack_into("<I", buffer, 0, length)
        with pytest.raises(OSError, match="argsz") as caught:
            backend.kernel.ioctl(DEVICE_FD, request_number, buffer)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="buffer"):
            backend.kernel.ioctl(DEVICE_FD, request_number, 0)


def test_a_region_with_a_file_is_mapped_from_it() -> None:
    fd = linux.memory_file("bar", 3 * PAGE)
    device = Plain()
    regions = list(device.regions)
    areas = (SparseArea(0, PAGE), SparseArea(PAGE, PAGE))
    regions[2] = ServedRegion(2 * PAGE, areas=areas, fd=fd, fd_offset=PAGE)
    device.regions = regions
    with opened(device) as backend:
        kernel = backend.kernel
        place = 2 << abi.VFIO_PCI_OFFSET_SHIFT
        mapping = kernel.mmap(DEVICE_FD, PAGE, place + PAGE)
        mapping.write32(8, 0x12345678)
        mapping.close()
        assert linux.LinuxKernel().pread(fd, 4, 2 * PAGE + 8) == b"\x78\x56\x34\x12"
        for length, offset in ((PAGE, place + 2 * PAGE), (PAGE, 0)):
            with pytest.raises(OSError, match="cannot be mapped") as caught:
                kernel.mmap(DEVICE_FD, length, offset)
            assert caught.value.errno == errno.EINVAL
    linux.close(fd)


def test_memory_of_others_cannot_be_mapped() -> None:
    with opened(Plain()) as backend:
        space = backend.address_space
        with pytest.raises(KernelError, match="EFAULT"):
            space.map(0x7000_0000_0000, PAGE, iova=0)
        memory = backend.kernel.allocate(PAGE)
        with pytest.raises(KernelError, match="EFAULT"):
            space.map(memory.vaddr, 2 * PAGE, iova=0)
        memory.close()
        with pytest.raises(OSError, match="huge"):
            backend.kernel.allocate(PAGE, huge_page_size=2 << 20)


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.integers(0, 15), min_size=1, max_size=12),
    st.integers(0, 16 * PAGE),
    st.integers(1, 5 * PAGE),
)
def test_the_server_reads_what_is_mapped_and_no_more(
    pages: set[int], start: int, length: int
) -> None:
    with opened(Plain(), share=False) as backend:
        memory = backend.kernel.allocate(16 * PAGE)
        memory.view[:] = b"".join(bytes([page]) * PAGE for page in range(16))
        space = backend.address_space
        for page in pages:
            # The other way round in memory, so that neighbours are no neighbours there.
            space.map(memory.vaddr + (15 - page) * PAGE, PAGE, iova=page * PAGE)
        wanted = range(start // PAGE, (start + length - 1) // PAGE + 1)
        if pages.issuperset(wanted):
            model = b"".join(bytes([15 - page]) * PAGE for page in range(16))
            assert space.read(start, length) == model[start : start + length]
            space.write(start, b"\xff" * length)
            assert space.read(start, length) == b"\xff" * length
        else:
            with pytest.raises(OSError, match="nothing is mapped") as caught:
                space.read(start, length)
            assert caught.value.errno == errno.EFAULT
            del caught  # its frames hold slices of the memory
        for page in pages:
            space.unmap(page * PAGE, PAGE)
        with pytest.raises(OSError, match="nothing is mapped"):
            space.read(min(pages) * PAGE, 1)
        memory.close()


def test_a_mapping_that_forbids_it_is_eperm() -> None:
    with opened(Plain(), share=False) as backend:
        memory = backend.kernel.allocate(PAGE)
        backend.address_space.map(memory.vaddr, PAGE, iova=0, write=False)
        with pytest.raises(OSError, match="forbids") as caught:
            backend.address_space.write(0, b"x")
        assert caught.value.errno == errno.EPERM
        backend.address_space.unmap_all()
        memory.close()


def test_a_closed_device_is_closed_for_its_address_space_too() -> None:
    with opened(Plain()) as backend:
        with Device(backend, "plain") as device:
            memory = backend.kernel.allocate(PAGE)
            device.address_space.map(memory.vaddr, PAGE, iova=0)
        with pytest.raises(UsageError, match="closed"):
            device.address_space.map(memory.vaddr, PAGE, iova=0)
        memory.close()
        with pytest.raises(OSError, match="ended") as caught:
            backend.kernel.ioctl(DEVICE_FD, abi.VFIO_DEVICE_RESET)
        assert caught.value.errno == errno.ENODEV


def test_eventfds_come_in_runs() -> None:
    device = Plain()
    with opened(device) as backend:
        event = backend.kernel.eventfd()
        wish = struct.pack("<IIIII4i", 36, 0x24, 2, 0, 4, event, event, -1, event)
        backend.kernel.ioctl(DEVICE_FD, abi.VFIO_DEVICE_SET_IRQS, bytearray(wish))
        assert device.events[-1] == "irqs 2 [0, 1, 3]"
        bad = struct.pack("<IIIII2i", 28, 0x24, 2, 0, 2, event, -2)
        with pytest.raises(OSError, match="-1") as caught:
            backend.kernel.ioctl(DEVICE_FD, abi.VFIO_DEVICE_SET_IRQS, bytearray(bad))
        assert caught.value.errno == errno.EINVAL
        backend.kernel.close(event)
