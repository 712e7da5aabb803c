"""The host's end of the serial port on which a guest sends files back.

:mod:`vfiokit.lab.guest_agent` is the other end. A guest is not trusted: names that lead out of the
folder, and bytes that are no frame, are refused.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from vfiokit.lab.failure import LabError
from vfiokit.lab.guest_agent import COMPRESSED, HEADER, MAGIC, PIECE

_READ = 1 << 20
_LONGEST = HEADER.size + (COMPRESSED - 1) + PIECE


class Piece(NamedTuple):
    """A part of a file."""

    name: str
    """Relative to the folder that is mirrored."""
    mode: int
    offset: int
    data: bytes


def take_piece(buffer: bytes | bytearray) -> tuple[Piece, int] | None:
    """The first piece in ``buffer`` and how many bytes it took; ``None`` while it is not all there.

    Raises :class:`~vfiokit.lab.failure.LabError` for anything else.
    """
    if len(buffer) < HEADER.size:
        return None
    magic, name_length, mode, offset, length, data_sum, name_sum = HEADER.unpack_from(buffer)
    compressed, name_length = name_length & COMPRESSED, name_length & ~COMPRESSED
    if magic != MAGIC or length > PIECE:
        raise _garbled()
    end = HEADER.size + name_length + length
    if len(buffer) < end:
        return None
    encoded = bytes(buffer[HEADER.size : HEADER.size + name_length])
    data = bytes(buffer[HEADER.size + name_length : end])
    if zlib.crc32(data) != data_sum or zlib.crc32(encoded) != name_sum:
        raise _garbled()
    name = os.fsdecode(encoded)
    if not name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise LabError(f"the guest sends a file by the name {name!r}")
    return Piece(name, mode & 0o777, offset, _unpacked(data) if compressed else data), end


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, PIECE)
    except zlib.error as error:
        raise _garbled() from error
    if not unpacker.eof:
        raise _garbled()
    return found


def _garbled() -> LabError:
    return LabError(
        "what the guest sends back is garbled",
        hint="something in the guest writes to its second serial port",
    )


class Receiver:
    """Rebuilds a guest's files in ``folder`` from what its serial port wrote to ``source``."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._read = 0
        """Bytes of the source taken so far."""
        self._buffer = bytearray()

    def poll(self) -> None:
        """Take what has come; raises :class:`~vfiokit.lab.failure.LabError`."""
        if not self._source.exists():
            return
        with self._source.open("rb", buffering=0) as file:
            file.seek(self._read)
            while data := file.read(_READ):
                self._read += len(data)
                self._take(data)

    def _take(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while (taken := take_piece(self._buffer[at : at + _LONGEST])) is not None:
            piece, length = taken
            self._store(piece)
            at += length
        del self._buffer[:at]

    def _store(self, piece: Piece) -> None:
        path = self._folder / piece.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if piece.offset > (path.stat().st_size if path.exists() else 0):
                raise _garbled()
            with path.open("r+b" if path.exists() else "wb") as file:
                file.seek(piece.offset)
                file.write(piece.data)
                file.truncate()
            path.chmod(piece.mode | 0o600)
        except OSError as error:
            raise LabError(f"{piece.name} of the guest cannot be stored: {error}") from error
