"""Where a host description comes from, told by what it is rather than by its name."""

from __future__ import annotations

import os
import re

from vfiokit.errors import FormatError, SourceError
from vfiokit.host.tree import FolderTree, RecordedTree, Tree

_LSPCI = re.compile(rb"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7] \S")
_HINT = "give a capture, a umockdev record, a folder with sys/ in it, 'live' or 'demo'"


def open_tree(source: str) -> Tree:
    """The files of the host that ``source`` names.

    ``live`` is this machine, ``demo`` the recorded server that ships with vfiokit. Otherwise a
    path: a folder with ``sys/`` in it (an unpacked capture) or a copy of sysfs itself, a capture
    archive, or a umockdev record, the latter two also packed with zstd, gzip or xz. Raises
    :class:`SourceError` when there is nothing to read and :class:`FormatError` when it is none of
    these, saying what it is instead.
    """
    if source == "live":
        return FolderTree("/")
    if source == "demo":
        from vfiokit import data

        return _recorded(data.path_of(data.DEMO_RECORD))
    if os.path.isdir(source):
        return _folder(source)
    return _recorded(source)


def _folder(path: str) -> FolderTree:
    for marker, prefix in (("sys", ""), (os.path.join("bus", "pci"), "/sys")):
        if os.path.isdir(os.path.join(path, marker)):
            return FolderTree(path, prefix)
    raise SourceError(f"{path}: a folder without sys/ in it", hint=_HINT)


def _recorded(path: str) -> RecordedTree:
    from vfiokit.host.compression import read_file

    data = read_file(path)
    if not data.strip():
        raise FormatError("the file is empty", path=path, hint=_HINT)
    lines = data[:4096].splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith(b"#")), b"")
    if first.startswith((b"P: ", b"E: ")):
        from vfiokit.host import umockdev

        return umockdev.read(data, path)
    from vfiokit.host import archive, tar

    if tar.is_tar(data):
        return archive.unpack(data, path)
    raise FormatError(_described(data, first), path=path, hint=_HINT)


def _described(data: bytes, first: bytes) -> str:
    """What the content looks like, for one who expected something else."""
    if _LSPCI.match(first):
        return "the output of lspci: not supported yet"
    if data.startswith((b"<system", b"<?xml")):
        return "an XML file: not a description of a host's files"
    if data.startswith(b"PK\x03\x04"):
        return "a zip archive: captures are tar archives"
    shown = first[:40].decode("utf-8", "replace")
    if not shown.isprintable():
        return "a binary file of unknown format"
    return f"neither a capture nor a umockdev record: it starts with {shown!r}"
