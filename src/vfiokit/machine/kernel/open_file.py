"""What a file descriptor of the software machine refers to."""

from __future__ import annotations

import errno
import os

from vfiokit.kernel.port import Mapping
from vfiokit.machine.kernel.argument import Argument
from vfiokit.machine.kernel.failure import failure

FIRST_FD = 1 << 20
"""Descriptors of the software machine start here, far from those of the process."""


class OpenFile:
    """An open file description: counted, and released with its last reference.

    References are descriptors, and other files that the kernel makes hold on to this one (an
    open device keeps its group, an attached group its container).
    """

    name = "file"
    """What it is, for messages."""

    def __init__(self) -> None:
        self._references = 1

    def hold(self) -> None:
        """Count one more reference."""
        self._references += 1

    def drop(self) -> None:
        """Count one reference less; the last one releases the file."""
        self._references -= 1
        if self._references == 0:
            self.release()

    def release(self) -> None:
        """The last reference is gone."""

    def ioctl(self, request: int, argument: Argument) -> int:
        """``ioctl(2)``; ENOTTY for requests this kind of file does not know."""
        del argument
        raise failure(errno.ENOTTY, f"{self.name} has no ioctl {request:#x}")

    def pread(self, length: int, offset: int) -> bytes:
        """``pread(2)``; EINVAL where the file has no contents."""
        del length, offset
        raise failure(errno.EINVAL, f"{self.name} cannot be read")

    def pwrite(self, data: bytes, offset: int) -> int:
        """``pwrite(2)``; EINVAL where the file has no contents."""
        del data, offset
        raise failure(errno.EINVAL, f"{self.name} cannot be written")

    def mmap(self, length: int, offset: int, protection: int) -> Mapping:
        """``mmap(2)`` shared; ENODEV where the file cannot be mapped."""
        del length, offset, protection
        raise failure(errno.ENODEV, f"{self.name} cannot be mapped")


class Stream(OpenFile):
    """A file without offsets: a pipe, a queue, an eventfd."""

    def pread(self, length: int, offset: int) -> bytes:
        """ESPIPE."""
        del length, offset
        raise failure(errno.ESPIPE, f"{self.name} is a stream")

    def pwrite(self, data: bytes, offset: int) -> int:
        """ESPIPE."""
        del data, offset
        raise failure(errno.ESPIPE, f"{self.name} is a stream")


class ForeignFile(Stream):
    """A descriptor of the process that is none of the machine's, such as an eventfd."""

    name = "a file of the process"


def foreign_file(fd: int) -> ForeignFile:
    """The process's own descriptor ``fd``; EBADF when it is not open."""
    try:
        os.fstat(fd)
    except OSError:
        raise failure(errno.EBADF, f"descriptor {fd}") from None
    return ForeignFile()
