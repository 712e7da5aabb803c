"""Archives for an initial RAM file system, written without privilege.

Format: "newc", as Linux ``Documentation/driver-api/early-userspace/buffer-format.rst`` describes
it. Device nodes are entries like any other, so that none has to exist on the host.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4


class Archive:
    """A growing archive. Folders above an entry are added when they are missing.

    Time stamps are kept for files taken from the host: Python takes a ``.pyc`` for stale when
    its source's time differs by a second.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._present: set[str] = {""}

    def folder(self, path: str, mode: int = 0o755) -> None:
        """A folder; one that is there already stays as it is."""
        name = path.strip("/")
        if name not in self._present:
            self._add(name, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        """A regular file; ``mtime`` in seconds since 1970."""
        self._add(path.strip("/"), stat.S_IFREG | mode, content, mtime=mtime)

    def link(self, path: str, target: str) -> None:
        """A symbolic link to ``target``."""
        self._add(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._add(path.strip("/"), stat.S_IFCHR | mode, b"", device=(major, minor))

    def copy(self, source: Path, path: str) -> None:
        """A file or symbolic link of the host, under the name ``path``; others are left out."""
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            self.link(path, os.readlink(source))
        elif stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            self.file(path, source.read_bytes(), mode, int(status.st_mtime))

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._present

    def to_bytes(self) -> bytes:
        """The archive with its trailer, padded so that another one can follow."""
        return b"".join([*self._parts, _entry(_TRAILER, 0, 0, b"", 0, (0, 0))])

    def write(self, path: Path) -> int:
        """Write the archive to a file; returns its size in bytes."""
        with path.open("wb") as file:
            file.writelines(self._parts)
            file.write(_entry(_TRAILER, 0, 0, b"", 0, (0, 0)))
            return file.tell()

    def _add(
        self,
        name: str,
        mode: int,
        content: bytes,
        *,
        mtime: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        parent = name.rpartition("/")[0]
        if parent not in self._present:
            self.folder(parent)
        self._inode += 1
        self._present.add(name)
        self._parts.append(_entry(name, self._inode, mode, content, mtime, device))


def _entry(
    name: str, inode: int, mode: int, content: bytes, mtime: int, device: tuple[int, int]
) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (
        *(inode, mode, 0, 0, links, mtime & 0xFFFFFFFF),
        *(len(content), 0, 0, *device, len(encoded), 0),
    )
    header = _MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
