"""A recording can be read and nothing else."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable

import pytest

from vfiokit.errors import KernelError
from vfiokit.host.tree import RecordedTree
from vfiokit.kernel.port import Kernel
from vfiokit.kernel.recording import RecordingKernel


@pytest.fixture
def kernel() -> Kernel:
    return RecordingKernel(RecordedTree({"/sys/class/x": b"1\n"}, {"/sys/link": "class"}))


def test_files_are_read(kernel: Kernel) -> None:
    assert kernel.tree.read("/sys/link/x") == b"1\n"
    assert kernel.tree.list("/sys") == ["class", "link"]
    assert kernel.tree.readlink("/sys/link") == "class"
    assert kernel.tree.exists("/sys/class")
    assert not kernel.tree.exists("/sys/y")


def test_writes_are_erofs_and_say_why(kernel: Kernel) -> None:
    with pytest.raises(KernelError, match="recording is read-only") as caught:
        kernel.tree.write("/sys/class/x", b"0")
    assert caught.value.errno == errno.EROFS
    assert "software machine" in caught.value.hint
    assert kernel.tree.read("/sys/class/x") == b"1\n"


def test_device_nodes_are_enodev_and_say_why(kernel: Kernel) -> None:
    with pytest.raises(OSError, match="no devices") as caught:
        kernel.open("/dev/vfio/vfio")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    "call",
    [
        lambda kernel: kernel.ioctl(3, 0x3B64, 0),
        lambda kernel: kernel.pread(3, 4, 0),
        lambda kernel: kernel.pwrite(3, b"", 0),
        lambda kernel: kernel.mmap(3, 4096, 0),
        lambda kernel: kernel.close(0),
    ],
)
def test_descriptors_of_others_are_ebadf(kernel: Kernel, call: Callable[[Kernel], object]) -> None:
    with pytest.raises(KernelError) as caught:
        call(kernel)
    assert caught.value.errno == errno.EBADF


def test_eventfds_are_real(kernel: Kernel) -> None:
    fd = kernel.eventfd()
    kernel.eventfd_write(fd, 4)
    assert select.select([fd], [], [], 0)[0] == [fd]
    assert kernel.eventfd_read(fd) == 4
    kernel.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_memory_is_had(kernel: Kernel) -> None:
    memory = kernel.allocate(5)
    assert memory.length == kernel.page_size
    memory.close()
