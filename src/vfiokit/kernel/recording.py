"""A recorded host as a kernel: its files can be read, and there is nothing else.

Memory and eventfds belong to this process, not to a host, so they work here as everywhere; no
device node opens and no file changes.
"""

from __future__ import annotations

import errno

from vfiokit.errors import KernelError
from vfiokit.host.tree import Tree
from vfiokit.kernel.port import EFD_CLOEXEC, EFD_NONBLOCK, PROT_READ, PROT_WRITE, Mapping, Memory

_HINT = "use the host itself, or a software machine built from this recording"


class ReadOnlyTree:
    """A tree whose every write is EROFS."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read(self, path: str) -> bytes:
        """Whole content of the file at ``path``."""
        return self._tree.read(path)

    def list(self, path: str) -> list[str]:
        """Sorted names in the folder at ``path``."""
        return self._tree.list(path)

    def readlink(self, path: str) -> str:
        """Target of the link at ``path``."""
        return self._tree.readlink(path)

    def exists(self, path: str) -> bool:
        """Whether ``path`` names something."""
        return self._tree.exists(path)

    def write(self, path: str, data: bytes) -> None:
        """Refuse, with EROFS."""
        raise KernelError(
            "write",
            path,
            errno.EROFS,
            detail=f"a recording is read-only; {data[:40]!r} was not written",
            hint=_HINT,
        )


class RecordingKernel:
    """The kernel of a recorded host."""

    def __init__(self, tree: Tree) -> None:
        self._tree = ReadOnlyTree(tree)
        self._eventfds: set[int] = set()

    @property
    def tree(self) -> ReadOnlyTree:
        """The recorded files."""
        return self._tree

    @property
    def page_size(self) -> int:
        """Bytes in a page of this process; a recording does not tell its host's."""
        from vfiokit.kernel import linux

        return linux.LinuxKernel().page_size

    def open(self, path: str, flags: int = 2) -> int:  # noqa: ARG002
        """Refuse with ENODEV."""
        raise KernelError(
            "open",
            path,
            errno.ENODEV,
            detail="a recording has files but no devices",
            hint=_HINT,
        )

    def close(self, fd: int) -> None:
        """Close an eventfd of this kernel; EBADF for anything else."""
        from vfiokit.kernel import linux

        if fd not in self._eventfds:
            raise self._no_descriptor("close", fd)
        self._eventfds.discard(fd)
        linux.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:  # noqa: ARG002
        """Refuse with EBADF: no device was ever opened."""
        raise self._no_descriptor(f"ioctl {request:#x}", fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:  # noqa: ARG002
        """Refuse with EBADF: no device was ever opened."""
        raise self._no_descriptor("pread", fd)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:  # noqa: ARG002
        """Refuse with EBADF: no device was ever opened."""
        raise self._no_descriptor("pwrite", fd)

    def mmap(
        self,
        fd: int,
        length: int,  # noqa: ARG002
        offset: int,  # noqa: ARG002
        protection: int = PROT_READ | PROT_WRITE,  # noqa: ARG002
    ) -> Mapping:
        """Refuse with EBADF: no device was ever opened."""
        raise self._no_descriptor("mmap", fd)

    def allocate(self, length: int, *, huge_page_size: int = 0) -> Memory:
        """Zeroed shared memory of this process."""
        from vfiokit.kernel import linux

        return linux.LinuxKernel().allocate(length, huge_page_size=huge_page_size)

    def eventfd(self, initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
        """``eventfd(2)``."""
        from vfiokit.kernel import linux

        fd = linux.eventfd(initial, flags)
        self._eventfds.add(fd)
        return fd

    def eventfd_read(self, fd: int) -> int:
        """Take the counter of an eventfd; ``BlockingIOError`` when it is 0 and non-blocking."""
        from vfiokit.kernel import linux

        return linux.eventfd_read(fd)

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        """Add to the counter of an eventfd."""
        from vfiokit.kernel import linux

        linux.eventfd_write(fd, value)

    def _no_descriptor(self, operation: str, fd: int) -> KernelError:
        return KernelError(
            operation,
            f"descriptor {fd}",
            errno.EBADF,
            detail="a recording has files but no devices",
            hint=_HINT,
        )
