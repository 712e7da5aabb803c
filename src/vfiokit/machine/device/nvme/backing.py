"""Where the blocks of a namespace live.

Stores know bytes, not logical blocks: the namespace checks ranges before it calls them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vfiokit.errors import UsageError

_CHUNK = 1 << 20

Buffer = bytes | bytearray | memoryview


class BlockStore(Protocol):
    """What a namespace asks of its medium. Offsets and lengths are bytes within :attr:`size`.

    Every method may raise ``OSError``; the command then ends with a media error.
    """

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        ...

    def read(self, offset: int, length: int) -> Buffer:
        """``length`` bytes at ``offset``; may be a view that a later write changes."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Store ``data`` at ``offset``; the data is copied."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make ``length`` bytes read as zeros, giving storage back where possible."""
        ...

    def flush(self) -> None:
        """Make everything written so far durable."""
        ...

    def used(self) -> int:
        """Bytes of storage that hold data; for the namespace's utilization."""
        ...


class MemoryStore:
    """Sparse memory: an extent takes space once it is written, and none after it is zeroed.

    ``size`` is the capacity in bytes (at least 1), ``extent_size`` a power of two.
    """

    def __init__(self, size: int, *, extent_size: int = 1 << 20, read_only: bool = False) -> None:
        if size < 1 or extent_size < 1 or extent_size & extent_size - 1:
            raise UsageError(
                f"no such memory store: {size} bytes in extents of {extent_size}",
                hint="the size is at least 1, the extent size a power of two",
            )
        self._size = size
        self._extent_size = extent_size
        self._read_only = read_only
        self._extents: dict[int, bytearray] = {}
        self._zeros = memoryview(bytes(extent_size))

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self._size

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._read_only

    def read(self, offset: int, length: int) -> Buffer:
        """``length`` bytes at ``offset``; a view, without a copy, inside one extent."""
        index, start = divmod(offset, self._extent_size)
        if start + length <= self._extent_size:
            return self._view(index)[start : start + length]
        return b"".join(
            self._view(at)[first : first + count]
            for at, first, count in self._pieces(offset, length)
        )

    def write(self, offset: int, data: Buffer) -> None:
        """Copy ``data`` in; raises ``PermissionError`` on a read-only store."""
        self._check_writable()
        view = memoryview(data)
        done = 0
        for index, start, count in self._pieces(offset, len(view)):
            extent = self._extents.get(index)
            if extent is None:
                extent = self._extents[index] = bytearray(self._extent_size)
            extent[start : start + count] = view[done : done + count]
            done += count

    def zero(self, offset: int, length: int) -> None:
        """Drop whole extents, zero the rest; raises ``PermissionError`` when read-only."""
        self._check_writable()
        for index, start, count in self._pieces(offset, length):
            extent = self._extents.get(index)
            if extent is None:
                continue
            if count == self._extent_size:
                del self._extents[index]
            else:
                extent[start : start + count] = self._zeros[:count]

    def flush(self) -> None:
        """Nothing to do: memory is as durable as it gets."""

    def used(self) -> int:
        """Bytes in extents that exist."""
        return min(len(self._extents) * self._extent_size, self._size)

    def _view(self, index: int) -> memoryview:
        extent = self._extents.get(index)
        return self._zeros if extent is None else memoryview(extent)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Extent index, offset within it and bytes, for every extent touched."""
        end = offset + length
        while offset < end:
            index, start = divmod(offset, self._extent_size)
            count = min(self._extent_size - start, end - offset)
            yield index, start, count
            offset += count

    def _check_writable(self) -> None:
        if self._read_only:
            raise PermissionError("the store is read-only")


class FileStore:
    """A disk image: byte ``n`` of the file is byte ``n`` of the medium; holes read as zeros.

    Made by :meth:`open` or :meth:`create`; :meth:`close` (or ``with``) releases the file.
    """

    def __init__(self, file: io.FileIO, size: int, *, read_only: bool) -> None:
        self._file = file
        self._size = size
        self._read_only = read_only

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False) -> FileStore:
        """Use an existing file as it is; ``OSError`` if that is impossible."""
        file = io.FileIO(str(path), "rb" if read_only else "rb+")
        size = file.seek(0, io.SEEK_END)
        if not size:
            file.close()
            raise UsageError(
                f"{path} is empty, so it holds no blocks", hint="create it with a size"
            )
        return cls(file, size, read_only=read_only)

    @classmethod
    def create(cls, path: str | Path, size: int) -> FileStore:
        """Make a new file of ``size`` bytes, all hole; ``FileExistsError`` if there is one."""
        if size < 1:
            raise UsageError(f"a disk image of {size} bytes is impossible")
        file = io.FileIO(str(path), "xb+")
        try:
            file.truncate(size)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                Path(path).unlink()
            raise
        return cls(file, size, read_only=False)

    @property
    def size(self) -> int:
        """Capacity in bytes: the file's size when it was opened."""
        return self._size

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._read_only

    def read(self, offset: int, length: int) -> Buffer:
        """``length`` bytes at ``offset``; what lies past a shrunken file's end reads zero."""
        data = bytearray(length)
        view = memoryview(data)
        self._file.seek(offset)
        done = 0
        while done < length:
            count = self._file.readinto(view[done:])
            if not count:
                break
            done += count
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Write ``data``; raises ``PermissionError`` on a read-only store."""
        if self._read_only:
            raise PermissionError("the store is read-only")
        view = memoryview(data)
        self._file.seek(offset)
        while view:
            view = view[self._file.write(view) :]

    def zero(self, offset: int, length: int) -> None:
        """Write zeros where there is data, so that holes stay holes."""
        end = offset + length
        while (offset := self._seek(offset, os.SEEK_DATA)) < end:
            stop = min(self._seek(offset, os.SEEK_HOLE), end, offset + _CHUNK)
            zeros = bytes(stop - offset)
            if self.read(offset, len(zeros)) != zeros:
                self.write(offset, zeros)
            offset = stop

    def _seek(self, offset: int, what: int) -> int:
        """Where data or a hole begins at or after ``offset``; the size if there is no more."""
        try:
            return os.lseek(self._file.fileno(), offset, what)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self._size

    def flush(self) -> None:
        """``fdatasync``: what a Flush command or a shutdown completed survives the host."""
        if not self._read_only:
            os.fdatasync(self._file.fileno())

    def used(self) -> int:
        """Bytes the file system has allocated to the file."""
        return min(os.fstat(self._file.fileno()).st_blocks * 512, self._size)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
