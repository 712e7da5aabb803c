"""The client's memory as a server knows it: mappings by IOVA, files behind them, and a log.

A mapping with a descriptor is reached directly, one without by asking the client. A file that its
owner can still shrink is read and written by system call: a mapping of it would turn the client's
``ftruncate`` into a SIGBUS of the server.
"""

from __future__ import annotations

import errno
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vfiokit.abi import vfio_user as abi
from vfiokit.errors import ProtocolError
from vfiokit.kernel import linux
from vfiokit.kernel.port import PROT_READ, PROT_WRITE
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap

READ: Final = abi.VFIO_USER_F_DMA_REGION_READ
WRITE: Final = abi.VFIO_USER_F_DMA_REGION_WRITE
_FILE_FLAGS: Final = abi.VFIO_USER_F_DMA_REGION_MMAP | abi.VFIO_USER_F_DMA_REGION_FILE_IO
_KNOWN: Final = READ | WRITE | _FILE_FLAGS
_TOP: Final = 1 << 64
_PAGE: Final = 4096
_LARGE: Final = 1 << 20
"""Bytes from which a mapping may be a guest's memory, not a buffer."""
_MOST: Final = 64 << 20
"""Bytes of one read or write of a device."""

Ask = Callable[[int, int], bytes]
"""Reads from the client by message: IOVA and length."""
Tell = Callable[[int, bytes], None]
"""Writes to the client by message."""


class DmaFault(OSError):  # noqa: N818  # what an IOMMU calls it
    """A device reached for memory that its client has not given it."""

    def __init__(
        self, what: str, iova: int, length: int, reason: str, code: int = errno.EFAULT
    ) -> None:
        super().__init__(code, f"DMA {what} of {length} bytes at IOVA {iova:#x}: {reason}")
        self.iova = iova
        self.length = length


@dataclass(slots=True)
class Mapped:
    """One DMA mapping; the descriptor is this object's."""

    address: int
    size: int
    flags: int
    fd: int = -1
    offset: int = 0
    sealed: bool = False
    """Whether the file cannot shrink, so that it may be mapped into this process."""
    _mapping: linux.LinuxMapping | None = field(default=None, repr=False)

    @property
    def end(self) -> int:
        """The first IOVA after it."""
        return self.address + self.size

    def view(self) -> memoryview | None:
        """The memory itself, mapped on first use; ``None`` where it may not or cannot be."""
        if self._mapping is None:
            if not self.sealed:
                return None
            protection = PROT_READ | (PROT_WRITE if self.flags & WRITE else 0)
            try:
                self._mapping = linux.LinuxKernel().mmap(
                    self.fd, self.size, self.offset, protection
                )
            except OSError:
                self.sealed = False  # system calls still work
                return None
        return self._mapping.view

    def close(self) -> None:
        """Let go of the memory and its file."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            linux.close(fd)


class DmaTable:
    """Every mapping of one client, and what was written while a log ran."""

    def __init__(self, *, max_maps: int = 65535, page_sizes: int = _PAGE) -> None:
        self._starts: list[int] = []
        self._maps: list[Mapped] = []
        self._max_maps = max_maps
        self._page = page_sizes & -page_sizes
        self.is_useless: Callable[[int, int], bool] | None = None
        """Given the descriptor and IOVA of each large mapping of a file, says whether the client's
        own memory is elsewhere: then the client is asked, as if there were no file.
        """
        self._doubtful = False
        """Whether there was such a file: then small mappings, as behind a virtual IOMMU, may be of
        it too.
        """
        self.log: Callable[[int, int], None] | None = None
        """Told the IOVA and length of each write of the device while dirty pages are logged."""

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[Mapped]:
        return iter(self._maps)

    # -- what the client does -----------------------------------------------------------------

    def add(self, request: DmaMap, fds: tuple[int, ...]) -> Mapped:
        """Take a ``DMA_MAP``; its descriptor, if any, belongs to the mapping then.

        Raises :class:`ProtocolError`: EINVAL for sizes, flags and files that make no sense, EEXIST
        for an overlap (an identical one is taken in place of the old), ENOSPC beyond the limit.
        """
        self._check(request, fds)
        at = bisect_right(self._starts, request.address)
        before = self._maps[at - 1] if at else None
        if before is not None and before.end > request.address:
            if (before.address, before.size) != (request.address, request.size):
                raise ProtocolError(
                    f"DMA_MAP of [{request.address:#x}, {request.address + request.size:#x}) "
                    f"overlaps the mapping at {before.address:#x}",
                    errno=errno.EEXIST,
                )
            at -= 1
        elif at < len(self._maps) and self._starts[at] < request.address + request.size:
            raise ProtocolError(
                f"DMA_MAP of [{request.address:#x}, {request.address + request.size:#x}) "
                f"overlaps the mapping at {self._starts[at]:#x}",
                errno=errno.EEXIST,
            )
        elif len(self._maps) >= self._max_maps:
            raise ProtocolError(
                f"DMA_MAP beyond the {self._max_maps} mappings agreed on", errno=errno.ENOSPC
            )
        made = self._mapped(request, fds)
        if at < len(self._maps) and self._starts[at] == made.address:
            self._maps[at].close()
            self._maps[at] = made
        else:
            self._starts.insert(at, made.address)
            self._maps.insert(at, made)
        ask, fd = self.is_useless, made.fd
        large = made.size >= _LARGE or self._doubtful
        if ask is not None and fd >= 0 and large and ask(fd, made.address):
            made.close()
            made.sealed = False
            self._doubtful = True
        return made

    def _check(self, request: DmaMap, fds: tuple[int, ...]) -> None:
        if not request.size or request.address + request.size > _TOP:
            raise ProtocolError(f"DMA_MAP of {request.size} bytes at {request.address:#x}")
        if (request.address | request.size) % self._page:
            raise ProtocolError(
                f"DMA_MAP of {request.size:#x} bytes at {request.address:#x}: pages have "
                f"{self._page:#x}"
            )
        if request.flags & ~_KNOWN or (request.flags & _FILE_FLAGS and not fds):
            raise ProtocolError(f"DMA_MAP with flags {request.flags:#x} and {len(fds)} descriptors")
        if len(fds) > 1:
            raise ProtocolError(f"DMA_MAP with {len(fds)} descriptors")

    @staticmethod
    def _mapped(request: DmaMap, fds: tuple[int, ...]) -> Mapped:
        made = Mapped(request.address, request.size, request.flags)
        if not fds:
            return made
        try:
            kind, size, sealed = linux.file_facts(fds[0])
        except OSError as error:
            raise ProtocolError(f"DMA_MAP with a descriptor that cannot be used: {error}") from None
        if not stat.S_ISREG(kind):
            raise ProtocolError("DMA_MAP with a descriptor that is no file")
        if request.offset % _PAGE or request.offset + request.size > size:
            raise ProtocolError(
                f"DMA_MAP of {request.size:#x} bytes at offset {request.offset:#x} of a file of "
                f"{size:#x}"
            )
        made.fd, made.offset, made.sealed = fds[0], request.offset, sealed
        return made

    def remove(self, request: DmaUnmap) -> None:
        """Take a ``DMA_UNMAP``: exactly one mapping, or all.

        Raises :class:`ProtocolError`: ENOENT unless a mapping has just that address and size,
        EINVAL for flags that make no sense, ENOTSUP for the old dirty bitmap.
        """
        if request.flags & abi.VFIO_DMA_UNMAP_FLAG_ALL:
            if request.address or request.size or request.flags & ~abi.VFIO_DMA_UNMAP_FLAG_ALL:
                raise ProtocolError("DMA_UNMAP of everything that also names an address")
            self.clear()
            return
        if request.flags & abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP:
            raise ProtocolError("DMA_UNMAP with a dirty bitmap", errno=errno.ENOTSUP)
        if request.flags:
            raise ProtocolError(f"DMA_UNMAP with flags {request.flags:#x}")
        at = bisect_right(self._starts, request.address) - 1
        found = self._maps[at] if at >= 0 else None
        if found is None or (found.address, found.size) != (request.address, request.size):
            raise ProtocolError(
                f"DMA_UNMAP of [{request.address:#x}, {request.address + request.size:#x}), which "
                "is no mapping",
                errno=errno.ENOENT,
            )
        del self._starts[at], self._maps[at]
        found.close()

    def clear(self) -> None:
        """Drop every mapping."""
        while self._maps:
            self._maps.pop().close()
        self._starts.clear()

    # -- what the device does -----------------------------------------------------------------

    def _pieces(
        self, what: str, iova: int, length: int, need: int
    ) -> Iterator[tuple[Mapped, int, int]]:
        """The mappings that hold the range, each with a start within it and a length."""
        at, left = iova, length
        while left:
            index = bisect_right(self._starts, at) - 1
            mapped = self._maps[index] if index >= 0 else None
            if mapped is None or at >= mapped.end:
                raise DmaFault(what, iova, length, f"nothing is mapped at {at:#x}")
            if not mapped.flags & need:
                raise DmaFault(what, iova, length, f"the mapping at {mapped.address:#x} forbids it")
            taken = min(left, mapped.end - at)
            yield mapped, at - mapped.address, taken
            at += taken
            left -= taken

    def read(self, iova: int, length: int, ask: Ask) -> bytes:
        """Memory of the client; ``ask`` gets what no descriptor leads to. :class:`DmaFault`."""
        _check_length("read", iova, length)
        parts: list[bytes] = []
        for mapped, start, taken in list(self._pieces("read", iova, length, READ)):
            view = mapped.view()
            if view is not None:
                parts.append(bytes(view[start : start + taken]))
            elif mapped.fd >= 0:
                parts.append(_read_file(mapped, start, taken))
            else:
                parts.append(ask(mapped.address + start, taken))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, iova: int, data: bytes | bytearray | memoryview, tell: Tell) -> None:
        """Memory of the client; ``tell`` sends what no descriptor leads to. :class:`DmaFault`."""
        at, source = 0, memoryview(data).cast("B")
        _check_length("write", iova, len(source))
        # Looked up before the first byte goes: a write that cannot end does not begin.
        pieces = list(self._pieces("write", iova, len(source), WRITE))
        if self.log is not None:
            self.log(iova, len(source))
        for mapped, start, taken in pieces:
            piece = source[at : at + taken]
            view = mapped.view()
            if view is not None:
                view[start : start + taken] = piece
            elif mapped.fd >= 0:
                _write_file(mapped, start, piece)
            else:
                tell(mapped.address + start, bytes(piece))
            at += taken


def _check_length(what: str, iova: int, length: int) -> None:
    """A client's registers say how much; what it can ask for has an end."""
    if not 0 <= length <= _MOST:
        raise DmaFault(what, iova, length, f"more than {_MOST:#x} bytes at once", errno.E2BIG)


def _read_file(mapped: Mapped, start: int, length: int) -> bytes:
    at = mapped.address + start
    try:
        data = linux.LinuxKernel().pread(mapped.fd, length, mapped.offset + start)
    except OSError as error:
        raise DmaFault("read", at, length, f"the client's file: {error.strerror}") from error
    if len(data) != length:
        raise DmaFault("read", at, length, "the client's file has shrunk")
    return data


def _write_file(mapped: Mapped, start: int, piece: memoryview) -> None:
    at = mapped.address + start
    try:
        written = linux.LinuxKernel().pwrite(mapped.fd, piece, mapped.offset + start)
    except OSError as error:
        raise DmaFault("write", at, len(piece), f"the client's file: {error.strerror}") from error
    if written != len(piece):
        raise DmaFault("write", at, len(piece), "the client's file is full")
