"""Which libraries a program needs, found as the dynamic loader finds them, without running it.

Sources: System V ABI, ELF-64 (program headers, dynamic section); ``ld.so(8)`` (order of search).
Only what x86-64 Linux runs is looked into; other files need nothing.
"""

from __future__ import annotations

import functools
import glob
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_X86_64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_CONFIGURATION = "/etc/ld.so.conf"
_STANDARD = ("/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib",
             "/usr/lib")  # fmt: skip


class Linkage(NamedTuple):
    """What a file asks of the dynamic loader."""

    interpreter: str
    """The loader itself; empty for a library and for a static program."""
    needed: tuple[str, ...]
    """Names of libraries."""
    search: tuple[str, ...]
    """Folders to look into first; may hold ``$ORIGIN``."""


NOTHING = Linkage("", (), ())


def read_linkage(data: bytes) -> Linkage:
    """What the ELF file ``data`` asks for; :data:`NOTHING` for any other or a broken file."""
    if data[:6] != _X86_64_LITTLE_ENDIAN:
        return NOTHING
    try:
        return _read(data)
    except (struct.error, ValueError, OverflowError):
        return NOTHING


def _read(data: bytes) -> Linkage:
    (table,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    segments = [_PROGRAM_HEADER.unpack_from(data, table + size * index) for index in range(count)]
    interpreter = ""
    entries: list[tuple[int, int]] = []
    for kind, _flags, offset, _vaddr, _paddr, length, *_rest in segments:
        if kind == _PT_INTERP:
            interpreter = _text(data, offset)
        elif kind == _PT_DYNAMIC:
            held = data[offset : offset + length]
            entries = list(struct.iter_unpack("<QQ", held[: len(held) & ~15]))
    loads = [(vaddr, offset, length) for kind, _f, offset, vaddr, _p, length, *_ in segments
             if kind == _PT_LOAD]  # fmt: skip
    tables = [value for tag, value in entries if tag == _DT_STRTAB]
    if not tables:
        return Linkage(interpreter, (), ())
    texts = _file_offset(tables[0], loads)
    needed = [_text(data, texts + value) for tag, value in entries if tag == _DT_NEEDED]
    search = [
        folder
        for tag, value in entries
        if tag in (_DT_RPATH, _DT_RUNPATH)
        for folder in _text(data, texts + value).split(":")
        if folder
    ]
    return Linkage(interpreter, tuple(needed), tuple(search))


def _file_offset(vaddr: int, loads: list[tuple[int, int, int]]) -> int:
    for start, offset, length in loads:
        if start <= vaddr < start + length:
            return vaddr - start + offset
    raise ValueError("a table outside every segment")


def _text(data: bytes, offset: int) -> str:
    if not 0 <= offset < len(data):
        raise ValueError("a text beyond the end")
    return data[offset : data.index(b"\0", offset)].decode("utf-8", "surrogateescape")


def libraries(path: str, data: bytes, search: list[str]) -> Iterator[str]:
    """Paths of the loader and the libraries that the file ``data`` at ``path`` names itself.

    ``search`` are folders that the programs looked at before had the loader search; those of this
    one are added, because a library is found through its program's. What is nowhere is left out:
    a program may do without.
    """
    linkage = read_linkage(data)
    if linkage.interpreter:
        yield linkage.interpreter
    origin = os.path.dirname(os.path.realpath(path))
    for folder in linkage.search:
        expanded = folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin)
        if expanded not in search:
            search.append(expanded)
    for name in linkage.needed:
        folders = [""] if "/" in name else [*search, *system_folders()]
        found = (os.path.join(folder, name) for folder in folders)
        yield from [place for place in found if os.path.exists(place)][:1]


@functools.cache
def system_folders() -> tuple[str, ...]:
    """Where the system's loader looks: ``LD_LIBRARY_PATH``, its configuration, the standard."""
    mine = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return tuple(dict.fromkeys([*mine, *_configured(_CONFIGURATION), *_STANDARD]))


def _configured(path: str) -> Iterator[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        word, _blank, rest = line.partition("#")[0].strip().partition(" ")
        if word == "include":
            for included in sorted(glob.glob(os.path.join(os.path.dirname(path), rest.strip()))):
                yield from _configured(included)
        elif word:
            yield word
