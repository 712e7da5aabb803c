"""The kernel of this host: the only module that opens device nodes, maps them and calls ioctls.

Every descriptor is close-on-exec. Errors are the ``OSError`` of the system call. Source of the
access rules: CPython's ``memoryview`` moves one item of a ``cast`` view with one load or store of
its width; slices, ``struct`` and ``ctypes`` do not (``tests/unit/test_kernel_access_width.py``
counts the accesses of every method here).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import stat

from vfiokit.host.tree import FolderTree
from vfiokit.kernel.port import EFD_CLOEXEC, EFD_NONBLOCK, PROT_READ, PROT_WRITE, WritableTree

# include/uapi/asm-generic/mman-common.h, mman.h; older Pythons do not name them.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MAP_HUGETLB = getattr(mmap, "MAP_HUGETLB", 0x40000)
_MAP_HUGE_SHIFT = 26  # log2 of the huge page size sits in bits [31:26] of the flags


class LinuxTree(FolderTree):
    """The live file tree; writes go to files that exist, in one ``write(2)``."""

    def write(self, path: str, data: bytes) -> None:
        """Write ``data`` to the file at ``path``, which is neither created nor truncated.

        A store to a sysfs attribute is one ``write(2)`` or it is something else; a kernel that
        takes only part of it is an EIO.
        """
        fd = os.open(self.locate(path), os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
        if written != len(data):
            raise OSError(errno.EIO, f"only {written} of {len(data)} bytes were taken", path)


class LinuxMapping:
    """A mapping of a file descriptor, accessed by exact widths.

    ``readN`` and ``writeN`` are one load or store each. ``IndexError`` for an offset that is
    negative, misaligned or out of range, ``ValueError`` for a value that does not fit or a
    mapping that is closed, ``TypeError`` for a write to a read-only mapping.
    """

    __slots__ = (
        *("_mask2", "_mask4", "_mask8", "_pages", "_plain", "_u8", "_u16", "_u32", "_u64"),
        "length",
    )

    def __init__(self, pages: mmap.mmap, *, plain: bool = False) -> None:
        """Take over ``pages``; ``plain`` says that they are memory, not registers."""
        self._pages = pages
        self._plain = plain
        self.length = len(pages)
        """Bytes mapped."""
        # One AND finds a misaligned offset, a negative one (whose high bits are all ones) and one
        # beyond the next power of two; the view itself refuses what lies between.
        high = -1 << self.length.bit_length()
        self._mask2, self._mask4, self._mask8 = high | 1, high | 3, high | 7
        self._make_views()

    def _make_views(self) -> None:
        # A length that is no multiple of the width leaves a tail that only narrower accesses
        # reach: the cast view ends before it.
        length = self.length
        with memoryview(self._pages) as whole:
            self._u8 = whole[:]
            self._u16 = whole[: length & ~1].cast("H")
            self._u32 = whole[: length & ~3].cast("I")
            self._u64 = whole[: length & ~7].cast("Q")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.length:#x} bytes>"

    @property
    def view(self) -> memoryview | None:
        """The bytes where this is plain memory; ``None`` for registers."""
        return self._u8 if self._plain else None

    def read8(self, offset: int) -> int:
        """One 8-bit load."""
        if offset < 0:
            self._refuse(offset, 1)
        return self._u8[offset]

    def read16(self, offset: int) -> int:
        """One 16-bit load."""
        if offset & self._mask2:
            self._refuse(offset, 2)
        return self._u16[offset >> 1]

    def read32(self, offset: int) -> int:
        """One 32-bit load."""
        if offset & self._mask4:
            self._refuse(offset, 4)
        return self._u32[offset >> 2]

    def read64(self, offset: int) -> int:
        """One 64-bit load."""
        if offset & self._mask8:
            self._refuse(offset, 8)
        return self._u64[offset >> 3]

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit store."""
        if offset < 0:
            self._refuse(offset, 1)
        self._u8[offset] = value

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit store."""
        if offset & self._mask2:
            self._refuse(offset, 2)
        self._u16[offset >> 1] = value

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit store."""
        if offset & self._mask4:
            self._refuse(offset, 4)
        self._u32[offset >> 2] = value

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit store."""
        if offset & self._mask8:
            self._refuse(offset, 8)
        self._u64[offset >> 3] = value

    def _refuse(self, offset: int, width: int) -> None:
        reason = "misaligned" if offset >= 0 and offset % width else "outside"
        raise IndexError(
            f"{8 * width}-bit access at {offset:#x} is {reason}: the mapping has "
            f"{self.length:#x} bytes"
        )

    def close(self) -> None:
        """Unmap; idempotent.

        ``BufferError``, and nothing changes, while a slice of :attr:`view` or an array over it is
        in use: unmapping under it would turn its next access into a crash.
        """
        if self._pages.closed:
            return
        self._u8.release()  # refuses when an array lies over it
        self._u16.release()
        self._u32.release()
        self._u64.release()
        try:
            self._pages.close()
        except BufferError:
            self._make_views()
            raise


class LinuxMemory:
    """Memory of this process, zeroed, page aligned, and free until it is touched."""

    __slots__ = ("_pages", "_vaddr", "_view", "length")

    def __init__(self, pages: mmap.mmap) -> None:
        self._pages = pages
        self._view = memoryview(pages)
        self._vaddr = 0
        self.length = len(pages)
        """Bytes, a multiple of the page size."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.length:#x} bytes>"

    @property
    def vaddr(self) -> int:
        """Process virtual address of the first byte; ``ValueError`` once closed."""
        if not self._vaddr:
            self._vaddr = address_of(self._view)
        return self._vaddr

    @property
    def view(self) -> memoryview:
        """The bytes, writable, format ``B``; always the same object, released by ``close``."""
        return self._view

    def close(self) -> None:
        """Free the memory; idempotent.

        ``BufferError``, and nothing changes, while a slice of :attr:`view` or an array over it is
        in use.
        """
        if self._pages.closed:
            return
        self._view.release()
        try:
            self._pages.close()
        except BufferError:
            self._view = memoryview(self._pages)
            raise
        self._vaddr = 0


def anonymous_memory(length: int) -> LinuxMemory:
    """Private memory of at least ``length`` bytes for a guest or a machine to have as RAM.

    Nothing is reserved for it: 64 GiB cost nothing until they are touched.
    """
    return LinuxMemory(_anonymous(length, mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PAGESIZE))


def _anonymous(length: int, flags: int, page_size: int) -> mmap.mmap:
    if length <= 0:
        raise OSError(errno.EINVAL, f"cannot allocate {length} bytes")
    rounded = -(-length // page_size) * page_size
    flags |= mmap.MAP_ANONYMOUS
    if flags >= 1 << 31:  # mmap.mmap takes a C int
        flags -= 1 << 32
    try:
        return mmap.mmap(-1, rounded, flags=flags, prot=PROT_READ | PROT_WRITE)
    except OverflowError:
        raise OSError(errno.ENOMEM, f"cannot allocate {length:#x} bytes") from None


def eventfd(initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
    """``eventfd(2)``; close-on-exec is added. Every backend hands out these."""
    return os.eventfd(initial, flags | EFD_CLOEXEC)


def eventfd_read(fd: int) -> int:
    """Take the counter of an eventfd; ``BlockingIOError`` when it is 0 and non-blocking."""
    return os.eventfd_read(fd)


def eventfd_write(fd: int, value: int = 1) -> None:
    """Add to the counter of an eventfd."""
    os.eventfd_write(fd, value)


def close(fd: int) -> None:
    """``close(2)``."""
    os.close(fd)


def address_of(view: memoryview) -> int:
    """Where the first byte of writable memory is in this process."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def memory_file(name: str, length: int) -> int:
    """A ``memfd`` of ``length`` zeros that can neither shrink nor grow, for others to map."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def file_facts(fd: int) -> tuple[int, int, bool]:
    """Mode and size of an open file, and whether it is sealed against shrinking.

    A mapping of a file that is not sealed can turn into SIGBUS by its owner's ``ftruncate``.
    """
    facts = os.fstat(fd)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL: no memfd
        seals = 0
    return facts.st_mode, facts.st_size, bool(seals & fcntl.F_SEAL_SHRINK)


def is_eventfd(fd: int) -> bool:
    """Whether an open file is an eventfd; true where ``/proc`` is not there to say."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return True


def signal_eventfd(fd: int) -> None:
    """Add 1 to the counter of an eventfd that somebody else made; never waits.

    One whose counter is at its limit has been signalled often enough.
    """
    if os.get_blocking(fd):
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(0):
            return
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)


class LinuxKernel:
    """The kernel that runs this process. Constructing it changes and opens nothing."""

    def __init__(self, tree: WritableTree | None = None) -> None:
        """``tree`` replaces the live file tree, for rehearsals on a copy of one."""
        self._tree = LinuxTree("/") if tree is None else tree

    @property
    def tree(self) -> WritableTree:
        """The live file tree."""
        return self._tree

    @property
    def page_size(self) -> int:
        """Bytes in a page of the host."""
        return mmap.PAGESIZE

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        """``open(2)`` of a device node."""
        return os.open(path, flags | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """``close(2)``. A mapping keeps its own duplicate of the descriptor until it is closed."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        """``ioctl(2)``: an integer by value, or a writable buffer updated in place.

        ``TypeError`` for a buffer that cannot be written: the kernel's answer would be lost.
        """
        if isinstance(argument, int):
            if -0x80000000 <= argument <= 0x7FFFFFFF:
                return fcntl.ioctl(fd, request, argument)
            return _ioctl_with_long(fd, request, argument)
        if not isinstance(argument, bytearray) and (
            not isinstance(argument, memoryview) or argument.readonly
        ):
            raise TypeError(f"an ioctl needs a writable buffer, not {type(argument).__name__}")
        result: int = fcntl.ioctl(fd, request, argument, True)
        return result

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``pread(2)``."""
        return os.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """``pwrite(2)``; returns the bytes written."""
        return os.pwrite(fd, data, offset)

    def mmap(
        self, fd: int, length: int, offset: int, protection: int = PROT_READ | PROT_WRITE
    ) -> LinuxMapping:
        """``mmap(2)`` shared; :attr:`LinuxMapping.view` is there when ``fd`` is a file."""
        plain = stat.S_ISREG(os.fstat(fd).st_mode)
        try:
            if length <= 0:  # 0 would mean "all of it" to the mmap module
                raise ValueError(f"cannot map {length} bytes")
            pages = mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=protection, offset=offset)
        except (ValueError, OverflowError) as failure:
            raise OSError(errno.EINVAL, f"mmap: {failure}") from failure
        return LinuxMapping(pages, plain=plain)

    def allocate(self, length: int, *, huge_page_size: int = 0) -> LinuxMemory:
        """Zeroed shared memory, page aligned, that a forked child does not inherit.

        Without that, a fork would leave the device writing to one copy of a page and this
        process reading another. ``huge_page_size`` is a power of two (``ValueError``).
        """
        flags = mmap.MAP_SHARED
        if huge_page_size:
            if huge_page_size < mmap.PAGESIZE or huge_page_size & huge_page_size - 1:
                raise ValueError(f"{huge_page_size} is not the size of a huge page")
            flags |= _MAP_HUGETLB | (huge_page_size.bit_length() - 1) << _MAP_HUGE_SHIFT
        pages = _anonymous(length, flags, huge_page_size or mmap.PAGESIZE)
        pages.madvise(mmap.MADV_DONTFORK)
        return LinuxMemory(pages)

    def eventfd(self, initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
        """``eventfd(2)``."""
        return eventfd(initial, flags)

    def eventfd_read(self, fd: int) -> int:
        """Take the counter of an eventfd; ``BlockingIOError`` when it is 0 and non-blocking."""
        return os.eventfd_read(fd)

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        """Add to the counter of an eventfd."""
        os.eventfd_write(fd, value)


def _ioctl_with_long(fd: int, request: int, argument: int) -> int:
    """``fcntl.ioctl`` takes a C int; some arguments of KVM are addresses."""
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).ioctl
    function.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
    result = function(fd, request, argument)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
