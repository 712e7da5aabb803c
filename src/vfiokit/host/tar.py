"""The part of the tar format that captures use, read strictly and written reproducibly.

Regular files, folders and symbolic links, with names of any length; anything else (hard links,
devices, FIFOs, sparse files) has no business in a capture and is refused. Source: POSIX.1-2017
pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar's ``L`` and ``K`` members.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.errors import FormatError, UnsafeArchiveError

MAX_MEMBERS = 1_000_000
"""Most members of an archive."""

MAX_MEMBER_BYTES = 16 << 20
"""Largest file in an archive; the largest in a capture is about 100 KiB."""

MAX_NAME_BYTES = 1 << 16
"""Longest extended header: names and targets of a member."""

_BLOCK = 512
_FILE_KINDS = (b"0", b"\0")
_LINK, _FOLDER, _PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_TARGET = b"2", b"5", b"x", b"g", b"L", b"K"
_REFUSED = {
    b"1": "a hard link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """One member: its name as stored, and content (file), target (link) or ``None`` (folder)."""

    name: str
    content: bytes | str | None


def is_tar(data: bytes) -> bool:
    """Whether ``data`` starts with a tar header (its checksum is right)."""
    return len(data) >= _BLOCK and any(data[:_BLOCK]) and _checksum_is_right(data[:_BLOCK])


def members(data: bytes, path: str = "") -> Iterator[Member]:
    """Every member of the archive ``data``; ``path`` names it in errors.

    Raises :class:`FormatError` when it is damaged or cut off, :class:`UnsafeArchiveError` for a
    kind of member that is not read, or beyond the limits of this module.
    """
    reader = _Reader(data, path)
    while (member := reader.next()) is not None:
        yield member


def member_blocks(member: Member, mtime: int) -> bytes:
    """The blocks that store ``member``, owned by root; ``mtime`` in seconds since 1970."""
    name = member.name.encode()
    if isinstance(member.content, bytes):
        kind, target, content, mode = b"0", b"", member.content, 0o644
    elif isinstance(member.content, str):
        kind, target, content, mode = _LINK, member.content.encode(), b"", 0o777
    else:
        kind, target, content, mode = _FOLDER, b"", b"", 0o755
    extended = b""
    if len(name) > 100:
        extended += _pax_record(b"path", name)
    if len(target) > 100:
        extended += _pax_record(b"linkpath", target)
    blocks = _header(name[:100], kind, target[:100], len(content), mode, mtime) + _padded(content)
    if extended:
        start = _header(b"././@PaxHeader", _PAX, b"", len(extended), 0o644, mtime)
        blocks = start + _padded(extended) + blocks
    return blocks


END_BLOCKS = bytes(2 * _BLOCK)
"""What ends an archive."""


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _BLOCK)


def _pax_record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # blank, equals sign, newline
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _header(name: bytes, kind: bytes, target: bytes, size: int, mode: int, mtime: int) -> bytes:
    fields = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            b"%011o\0" % size,
            b"%011o\0" % mtime,
            b"        ",
            kind,
            target.ljust(100, b"\0"),
            b"ustar\00000",
            b"root".ljust(32, b"\0"),
            b"root".ljust(32, b"\0"),
        )
    )
    checksum = b"%06o\0 " % sum(fields)
    return (fields[:148] + checksum + fields[156:]).ljust(_BLOCK, b"\0")


def _checksum_is_right(header: bytes) -> bool:
    stored = header[148:156].strip(b" \0")
    if not stored or not stored.isdigit():
        return False
    try:
        return int(stored, 8) == sum(header) - sum(header[148:156]) + 8 * 0x20
    except ValueError:
        return False


class _Reader:
    """Walks the headers of one archive."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path
        self._position = 0
        self._count = 0

    def next(self) -> Member | None:
        """The next member, its extended headers applied; ``None`` at the end."""
        extended: dict[str, str] = {}
        while True:
            start = self._position
            header = self._take(_BLOCK)
            if not any(header):
                return None
            if not _checksum_is_right(header):
                raise FormatError(f"damaged tar header at byte {start:#x}", path=self._path)
            self._count += 1
            if self._count > MAX_MEMBERS:
                raise UnsafeArchiveError(f"{self._path}: more than {MAX_MEMBERS} members")
            kind = header[156:157]
            size = self._size(header, extended)
            if kind == _PAX:
                extended.update(self._pax(self._content(size, MAX_NAME_BYTES)))
            elif kind == _PAX_GLOBAL:
                self._content(size, MAX_NAME_BYTES)
            elif kind in (_GNU_NAME, _GNU_TARGET):
                key = "path" if kind == _GNU_NAME else "linkpath"
                extended[key] = self._decode(self._content(size, MAX_NAME_BYTES).rstrip(b"\0"))
            else:
                return self._member(header, kind, size, extended)

    def _member(self, header: bytes, kind: bytes, size: int, extended: dict[str, str]) -> Member:
        name = extended.get("path")
        if name is None:
            name = self._decode(header[:100].partition(b"\0")[0])
            if header[257:263] == b"ustar\0" and header[345]:
                name = self._decode(header[345:500].partition(b"\0")[0]) + "/" + name
        if kind in _FILE_KINDS and not name.endswith("/"):
            return Member(name, self._content(size, MAX_MEMBER_BYTES))
        if kind == _FOLDER or kind in _FILE_KINDS:  # the oldest tars mark a folder by its slash
            return Member(name.rstrip("/"), None)
        if kind == _LINK:
            target = extended.get("linkpath")
            if target is None:
                target = self._decode(header[157:257].partition(b"\0")[0])
            return Member(name, target)
        what = _REFUSED.get(kind, f"of unknown type {kind!r}")
        raise UnsafeArchiveError(f"{self._path}: member {name!r} is {what}")

    def _size(self, header: bytes, extended: dict[str, str]) -> int:
        if header[156:157] in (_LINK, _FOLDER):
            return 0
        text = extended.get("size") or header[124:136].strip(b" \0").decode("latin-1") or "0"
        try:
            size = int(text, 10 if "size" in extended else 8)
        except ValueError:  # GNU's binary sizes begin at 8 GiB
            raise FormatError(f"unreadable member size {text!r}", path=self._path) from None
        if size < 0:
            raise FormatError(f"negative member size {text!r}", path=self._path)
        return size

    def _pax(self, content: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        while content:
            digits, blank, _ = content.partition(b" ")
            length = int(digits) if blank and digits.isdigit() and len(digits) < 8 else 0
            key, equals, value = content[len(digits) + 1 : length].partition(b"=")
            if not equals or length > len(content) or not value.endswith(b"\n"):
                raise FormatError("damaged extended tar header", path=self._path)
            if key.startswith(b"GNU.sparse"):
                raise UnsafeArchiveError(f"{self._path}: holds a sparse file")
            if key in (b"path", b"linkpath", b"size"):
                found[key.decode()] = self._decode(value[:-1])
            content = content[length:]
        return found

    def _content(self, size: int, limit: int) -> bytes:
        if size > limit:
            raise UnsafeArchiveError(
                f"{self._path}: a member of {size} bytes is larger than {limit}"
            )
        content = self._take(size)
        self._position += -size % _BLOCK
        return content

    def _take(self, size: int) -> bytes:
        taken = self._data[self._position : self._position + size]
        if len(taken) < size:
            raise FormatError("the archive ends too early", path=self._path)
        self._position += size
        return taken

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise FormatError(f"a name is not UTF-8: {text[:60]!r}", path=self._path) from None
