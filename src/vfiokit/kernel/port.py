"""The seam: everything vfiokit asks of a Linux kernel.

A host shows PCI devices as a tree of small files and as a few nodes with ioctls, maps and
eventfds. :class:`Kernel` is exactly that, and everything above it runs unchanged on a live
host (:mod:`vfiokit.kernel.linux`), a recording (:mod:`vfiokit.kernel.recording`) and the
software machine (:mod:`vfiokit.machine`). Errors are ``OSError`` with the kernel's errno on
every backend.
"""

from __future__ import annotations

from typing import Protocol

from vfiokit.host.tree import Tree

PROT_READ = 1
PROT_WRITE = 2

EFD_CLOEXEC = 0o2000000
EFD_NONBLOCK = 0o4000
EFD_SEMAPHORE = 1


class WritableTree(Tree, Protocol):
    """A file tree that accepts writes: live sysfs, or the software machine's."""

    def write(self, path: str, data: bytes) -> None:
        """Write ``data`` to the file at ``path`` in one ``write(2)``; ``OSError`` as the kernel."""
        ...


class Mapping(Protocol):
    """A mapped range of a file descriptor.

    Offsets are bytes from the start of the mapping. Each ``readN``/``writeN`` is exactly one
    load or store of its width. A misaligned, negative or out-of-range offset raises
    ``IndexError``; a value that does not fit raises ``ValueError``.
    """

    @property
    def length(self) -> int:
        """Bytes mapped."""
        ...

    @property
    def view(self) -> memoryview | None:
        """The bytes themselves where this is plain memory; ``None`` for device registers."""
        ...

    def read8(self, offset: int) -> int:
        """One 8-bit load."""
        ...

    def read16(self, offset: int) -> int:
        """One 16-bit load."""
        ...

    def read32(self, offset: int) -> int:
        """One 32-bit load."""
        ...

    def read64(self, offset: int) -> int:
        """One 64-bit load."""
        ...

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit store."""
        ...

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit store."""
        ...

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit store."""
        ...

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit store."""
        ...

    def close(self) -> None:
        """Unmap. Idempotent."""
        ...


class Memory(Protocol):
    """Memory of this process that a map request may name by its ``vaddr``."""

    @property
    def vaddr(self) -> int:
        """Process virtual address of the first byte, page aligned."""
        ...

    @property
    def length(self) -> int:
        """Bytes, a multiple of the page size."""
        ...

    @property
    def view(self) -> memoryview:
        """The bytes, writable, format ``B``."""
        ...

    def close(self) -> None:
        """Free the memory. Idempotent; ``BufferError`` while views of it are in use."""
        ...


class Kernel(Protocol):
    """The system calls vfiokit needs, and no others.

    File descriptors are small integers that only this kernel understands, except that eventfds
    are real descriptors of this process on every backend: they can be polled and selected.
    """

    @property
    def tree(self) -> WritableTree:
        """Files by absolute path: ``/sys/...`` and the few of ``/proc`` that matter."""
        ...

    @property
    def page_size(self) -> int:
        """Bytes in a page of the host."""
        ...

    def open(self, path: str, flags: int = 2) -> int:
        """``open(2)`` of a device node; ``flags`` default to ``O_RDWR``, close-on-exec is added."""
        ...

    def close(self, fd: int) -> None:
        """``close(2)``, eventfds included."""
        ...

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        """``ioctl(2)``: an integer by value, or a writable buffer updated in place.

        Returns the kernel's result (0 or positive).
        """
        ...

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``pread(2)``."""
        ...

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """``pwrite(2)``; returns the bytes written."""
        ...

    def mmap(
        self, fd: int, length: int, offset: int, protection: int = PROT_READ | PROT_WRITE
    ) -> Mapping:
        """``mmap(2)`` shared."""
        ...

    def allocate(self, length: int, *, huge_page_size: int = 0) -> Memory:
        """Zeroed shared memory of at least ``length`` bytes, page aligned.

        ``huge_page_size`` asks for huge pages of that many bytes (``OSError`` ENOMEM when there
        are none).
        """
        ...

    def eventfd(self, initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
        """``eventfd(2)``."""
        ...

    def eventfd_read(self, fd: int) -> int:
        """Take the counter of an eventfd; ``BlockingIOError`` when it is 0 and non-blocking."""
        ...

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        """Add to the counter of an eventfd."""
        ...
