"""A tree of small files: what a Linux host shows of itself.

Paths are absolute (``/sys/bus/pci/devices/0000:00:00.0/config``, ``/proc/mounts``) whatever
the tree is made of: the live machine, a folder, an archive, a record, a software machine.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from typing import Protocol, TypeAlias


class Tree(Protocol):
    """Read access to a host's files. Every method raises ``OSError`` with the kernel's errno."""

    def read(self, path: str) -> bytes:
        """Whole content of the file at ``path``; symbolic links are followed."""
        ...

    def list(self, path: str) -> list[str]:
        """Sorted names in the folder at ``path``; symbolic links are followed."""
        ...

    def readlink(self, path: str) -> str:
        """Target text of the symbolic link at ``path`` (``EINVAL`` when it is no link)."""
        ...

    def exists(self, path: str) -> bool:
        """Whether ``path`` names something, links followed."""
        ...


def resolve(tree: Tree, path: str) -> str:
    """The path with every symbolic link of its *last* component followed.

    Enough for sysfs, where links lead straight to real folders. Raises ``OSError`` ELOOP after 40
    hops.
    """
    for _ in range(40):
        try:
            target = tree.readlink(path)
        except OSError:
            return path
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def read_text(tree: Tree, path: str) -> str:
    """Content of a text file without its trailing newline; undecodable bytes are replaced."""
    return tree.read(path).decode("utf-8", "replace").rstrip("\n")


Entry: TypeAlias = "bytes | str | None"
"""What a folder holds under a name: a file's bytes, a link's target, ``None`` for a folder."""

_MAX_LINKS = 40  # the kernel's MAXSYMLINKS


# Absent files are asked for by the thousand, and strerror is what costs most of the answer.
_NO_SUCH_FILE = os.strerror(errno.ENOENT)


def _error(code: int, path: str) -> OSError:
    return OSError(code, _NO_SUCH_FILE if code == errno.ENOENT else os.strerror(code), path)


def _joined(folder: str, target: str) -> str:
    """Path of a link's ``target`` in the real ``folder``; only leading ``..`` are resolved."""
    if target.startswith("/"):
        return target
    while target.startswith("../"):
        folder, target = folder.rpartition("/")[0], target[3:].lstrip("/")
    return f"{folder}/{target}"


class RecordedTree:
    """An immutable tree held in memory; folders are implied by the paths of files and links.

    ``files`` maps absolute paths to contents, ``links`` absolute paths to target texts. Links are
    followed in every component of a path, as the kernel does. Where a path is both a file (or
    link) and the folder of another path, it is a folder. ``ValueError`` for a path that is not
    absolute or not normalised.
    """

    def __init__(self, files: dict[str, bytes], links: dict[str, str]) -> None:
        self._folders: dict[str, dict[str, Entry]] = {"/": {}}
        self._real_paths: dict[str, str] = {}
        for path, content in files.items():
            self._add(path, content)
        for path, target in links.items():
            self._add(path, target)

    def _add(self, path: str, entry: Entry) -> None:
        head, slash, name = path.rpartition("/")
        entries = self._folders.get(head or "/")
        if entries is None:
            entries = self._add_folder(head)
        if not slash or name in ("", ".", ".."):
            raise ValueError(f"{path!r} is not an absolute, normalised path")
        if name not in entries or entries[name] is not None:
            entries[name] = entry

    def _add_folder(self, path: str) -> dict[str, Entry]:
        """Make ``path`` a folder, its parents too; links and files in the way give way."""
        made: dict[str, Entry] = {}
        self._folders[path] = made
        while path:
            head, slash, name = path.rpartition("/")
            if not slash or name in ("", ".", ".."):
                raise ValueError(f"{path!r} is not an absolute, normalised path")
            known = self._folders.get(head or "/")
            if known is not None:
                known[name] = None
                break
            self._folders[head] = {name: None}
            path = head
        return made

    def _folder(self, path: str) -> dict[str, Entry] | None:
        """Entries of the real folder ``path``; ``None`` when there is no such folder."""
        return self._folders.get(path)

    def _content(self, entry: bytes) -> bytes:
        """The bytes a reader sees of a stored file; records decode here, on demand."""
        return entry

    def _load_everything(self) -> None:
        """Make ``_folders`` complete, for those who walk the whole tree."""

    def real_path(self, path: str) -> str:
        """``path`` with the links of every component followed.

        ``OSError``: ENOENT, ENOTDIR, or ELOOP after 40 links.
        """
        known = self._real_paths.get(path)
        if known is None:
            known = self._real_paths[path] = self._walk(path)
        return known

    def _is_folder(self, path: str) -> bool:
        """Whether ``path`` is known to be a real folder, without loading anything."""
        return path in self._folders

    def _walk(self, path: str) -> str:
        hops = 0
        while True:
            real, pending = self._known_part(path)
            link = None
            while pending and link is None:
                part = pending.pop()
                entries = self._folder(real or "/")
                if entries is None:
                    raise _error(errno.ENOTDIR, path)
                if part in ("", "."):
                    continue
                if part == "..":
                    real = real.rpartition("/")[0]
                elif part not in entries:
                    raise _error(errno.ENOENT, path)
                elif isinstance(entry := entries[part], str):
                    link = entry
                else:
                    real = f"{real}/{part}"
            if link is None:
                return real or "/"
            hops += 1
            if hops > _MAX_LINKS:
                raise _error(errno.ELOOP, path)
            path = "/".join((_joined(real, link), *reversed(pending)))

    def _known_part(self, path: str) -> tuple[str, list[str]]:
        """The longest start of ``path`` that is a known folder, and what is left, last part first.

        It saves walking ``/sys/devices/...`` from the root for every link of ``/sys/bus``.
        """
        if not path.startswith("/"):
            raise _error(errno.ENOENT, path)
        pending: list[str] = []
        while path and not self._is_folder(path):
            path, _, part = path.rpartition("/")
            pending.append(part)
        return path.rstrip("/"), pending

    def _entry(self, path: str) -> Entry:
        """What ``path`` names, its last component not followed."""
        head, slash, name = path.rpartition("/")
        if not slash or name in ("", ".", ".."):
            self.real_path(path)
            return None
        entries = self._folder(head or "/")
        if entries is None:  # not a real folder by this spelling: some component is a link
            entries = self._folder(self.real_path(head))
            if entries is None:
                raise _error(errno.ENOTDIR, path)
        try:
            return entries[name]
        except KeyError:
            raise _error(errno.ENOENT, path) from None

    def read(self, path: str) -> bytes:
        """Whole content of the file at ``path``; EISDIR for a folder."""
        entry = self._entry(path)
        if isinstance(entry, str):
            entry = self._entry(self.real_path(path))
        if not isinstance(entry, bytes):
            raise _error(errno.EISDIR, path)
        return self._content(entry)

    def list(self, path: str) -> list[str]:
        """Sorted names in the folder at ``path``; ENOTDIR for a file."""
        entries = self._folder(path)
        if entries is None:
            entries = self._folder(self.real_path(path))
            if entries is None:
                raise _error(errno.ENOTDIR, path)
        return sorted(entries)

    def readlink(self, path: str) -> str:
        """Target of the link at ``path``; EINVAL when it is something else."""
        entry = self._entry(path)
        if not isinstance(entry, str):
            raise _error(errno.EINVAL, path)
        return entry

    def peek(self, folder: str, name: str) -> bytes | str | None:
        """What ``name`` is in the real ``folder``: a file's content, a link's target, or nothing.

        For those who ask for many small files that may be absent: no links, no ``OSError``.
        """
        entries = self._folder(folder)
        entry = None if entries is None else entries.get(name)
        return self._content(entry) if isinstance(entry, bytes) else entry

    def exists(self, path: str) -> bool:
        """Whether ``path`` names something, links followed."""
        try:
            self.real_path(path)
        except OSError:
            return False
        return True

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every file as ``(absolute path, content)``, folder by folder."""
        self._load_everything()
        for folder, entries in self._folders.items():
            for name, entry in entries.items():
                if isinstance(entry, bytes):
                    yield f"{folder.rstrip('/')}/{name}", self._content(entry)

    def links(self) -> Iterator[tuple[str, str]]:
        """Every symbolic link as ``(absolute path, target text)``."""
        self._load_everything()
        for folder, entries in self._folders.items():
            for name, entry in entries.items():
                if isinstance(entry, str):
                    yield f"{folder.rstrip('/')}/{name}", entry


class FolderTree:
    """A tree over a real folder: the live machine (``/``) or an unpacked capture.

    ``prefix`` is the path in this tree where ``root`` sits: ``FolderTree("copy", prefix="/sys")``
    shows a bare copy of sysfs at ``/sys``. Unless ``root`` is ``/``, links are followed inside
    the root only, as ``chroot(2)`` would: an absolute target starts at the root, and ``..`` stops
    there. Only regular files are read, so that a stray FIFO cannot block.
    """

    def __init__(self, root: str = "/", prefix: str = "") -> None:
        self.root = os.path.abspath(root)
        self.prefix = prefix.rstrip("/")
        self._live = self.root == "/" and not self.prefix
        # Folders on the way somewhere that are no links. They are taken to stay so: only the
        # live tree changes its shape, and it is not walked.
        self._no_links: set[str] = set()

    def __repr__(self) -> str:
        return f"FolderTree({self.root!r}, prefix={self.prefix!r})"

    def locate(self, path: str, *, follow: bool = True) -> str:
        """The path on this machine that ``path`` means, its links resolved inside the root.

        With ``follow=False`` a link in the last component is left alone. ``OSError`` ENOENT,
        ENOTDIR or ELOOP as the kernel.
        """
        if self._live:
            return path
        pending = path.split("/")[::-1]
        place, hops = "", 0  # in the tree; "" is its root
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not self._is_above_root(place) and not os.path.isdir(self._outside(place, path)):
                    raise _error(errno.ENOTDIR, path)
                place = place.rpartition("/")[0]
                continue
            child = f"{place}/{part}"
            if child in self._no_links or (not pending and not follow):
                place = child
                continue
            target = self._target(child, path)
            if target is None:
                if pending:
                    self._no_links.add(child)
                place = child
                continue
            hops += 1
            if hops > _MAX_LINKS:
                raise _error(errno.ELOOP, path)
            if target.startswith("/"):
                place = ""
            pending.extend(reversed(target.split("/")))
        return self._outside(place, path)

    def _is_above_root(self, place: str) -> bool:
        """Whether ``place`` is the root or a folder above it, which exists in name only."""
        return (self.prefix + "/").startswith(place + "/")

    def _outside(self, place: str, path: str) -> str:
        """The path on this machine of ``place`` in the tree; ENOENT when it is not below root."""
        if not (place + "/").startswith(self.prefix + "/"):
            raise _error(errno.ENOENT, path)
        return self.root + place[len(self.prefix) :]

    def _target(self, place: str, path: str) -> str | None:
        """Where the link at ``place`` leads; ``None`` when it is no link."""
        if self._is_above_root(place):
            return None
        try:
            return os.readlink(self._outside(place, path))
        except OSError as failure:
            if failure.errno == errno.EINVAL:
                return None
            raise _error(failure.errno or errno.EIO, path) from None

    def read(self, path: str) -> bytes:
        """Whole content of the file at ``path``, in as few ``read(2)`` as it takes."""
        place = self.locate(path)
        if not self._live:
            mode = os.lstat(place).st_mode
            if not stat.S_ISREG(mode):
                raise _error(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, path)
        with open(place, "rb", buffering=0) as file:
            return file.read()

    def list(self, path: str) -> list[str]:
        """Sorted names in the folder at ``path``."""
        return sorted(os.listdir(self.locate(path)))

    def readlink(self, path: str) -> str:
        """Target of the link at ``path``; EINVAL when it is something else."""
        return os.readlink(self.locate(path, follow=False))

    def exists(self, path: str) -> bool:
        """Whether ``path`` names something, links followed."""
        try:
            os.stat(self.locate(path))
        except OSError:
            return False
        return True
