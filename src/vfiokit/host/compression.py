"""Files of unknown origin, read and decompressed within limits.

The format is told by the first bytes, never by the name. Source of the magic numbers: RFC 8878
§3.1.1 (zstd), RFC 1952 §2.3.1 (gzip), the .xz file format 1.1 §2.1.1.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from vfiokit.errors import FormatError, SourceError, UnsafeArchiveError

MAX_FILE_BYTES = 256 << 20
"""Largest file that is read at all, compressed or not."""

MAX_TOTAL_BYTES = 1 << 30
"""Most bytes that a file may decompress to: a capture of ten thousand functions fits."""

MAX_RATIO = 1000
"""Most bytes out for a byte in. Captures reach about 100; zero-filled bombs exceed it."""

RATIO_FLOOR_BYTES = 16 << 20
"""Up to here the ratio does not matter: small files may be as regular as they like."""

_MAX_WINDOW_BYTES = 128 << 20  # what zstd --long=27 and xz -9 need
_PIECE_BYTES = 1 << 20
# One zstd block of 4 bytes gives up to 128 KiB, and a call cannot be stopped half-way.
_ZSTD_INPUT_BYTES = 2048

_ZSTD = b"\x28\xb5\x2f\xfd"
_GZIP = b"\x1f\x8b\x08"
_XZ = b"\xfd7zXZ\x00"


def read_file(path: str) -> bytes:
    """The decompressed content of the file at ``path``.

    :class:`SourceError` when it cannot be read, :class:`FormatError` when it is damaged,
    :class:`UnsafeArchiveError` when it is, or becomes, too large.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for a writer
            raise SourceError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as failure:
        raise SourceError(
            f"{path}: {failure.strerror}",
            hint="give a capture, a umockdev record, a folder with sys/ in it, 'live' or 'demo'",
        ) from failure
    if len(data) > MAX_FILE_BYTES:
        raise UnsafeArchiveError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
    return decompress(data, path)


def decompress(data: bytes, path: str = "") -> bytes:
    """``data`` unpacked when it is zstd, gzip or xz, else as it is; ``path`` names it in errors."""
    if data.startswith(_ZSTD):
        pieces = _unzstd(data)
    elif data.startswith(_GZIP):
        pieces = _gunzip(data)
    elif data.startswith(_XZ):
        pieces = _unxz(data)
    else:
        return data
    limit = max(RATIO_FLOOR_BYTES, min(MAX_TOTAL_BYTES, len(data) * MAX_RATIO))
    found: list[bytes] = []
    total = 0
    try:
        for piece in pieces:
            total += len(piece)
            if total > limit:
                raise UnsafeArchiveError(
                    f"{path or 'the file'}: {len(data)} bytes unpack to more than "
                    f"{limit >> 20} MiB, as a decompression bomb does"
                )
            found.append(piece)
    except _DamagedError as failure:
        raise FormatError(f"damaged compressed data: {failure}", path=path) from failure
    return b"".join(found)


class _DamagedError(Exception):
    """What zlib, lzma and zstandard say, in one type."""


_CUT_OFF = "it ends too early"


def _unzstd(data: bytes) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    if 0 < _stated_size(data) <= RATIO_FLOOR_BYTES:
        try:  # in one go, into a buffer of the size that the frame states
            yield decompressor.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError:
            pass  # more frames follow, or it is damaged: the slow way tells
        else:
            return
    while data.startswith(_ZSTD):
        frame = decompressor.decompressobj()
        position = 0
        while not frame.eof:
            if position >= len(data):
                raise _DamagedError(_CUT_OFF)
            try:
                piece = frame.decompress(data[position : position + _ZSTD_INPUT_BYTES])
            except zstandard.ZstdError as failure:
                raise _DamagedError(str(failure)) from failure
            yield piece
            position += _ZSTD_INPUT_BYTES
        data = frame.unused_data + data[position:]


def _stated_size(data: bytes) -> int:
    """Content size in a zstd frame's header; -1 when it states none or is damaged."""
    import zstandard

    try:
        return zstandard.frame_content_size(data)
    except zstandard.ZstdError:
        return -1


def _gunzip(data: bytes) -> Iterator[bytes]:
    import zlib

    while data.startswith(_GZIP):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                piece = member.decompress(data, _PIECE_BYTES)
            except zlib.error as failure:
                raise _DamagedError(str(failure)) from failure
            data = member.unconsumed_tail
            if not piece and not data and not member.eof:
                raise _DamagedError(_CUT_OFF)
            yield piece
        data = member.unused_data


def _unxz(data: bytes) -> Iterator[bytes]:
    import lzma

    while data.startswith(_XZ):
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * _MAX_WINDOW_BYTES)
        while not stream.eof:
            try:
                piece = stream.decompress(data, _PIECE_BYTES)
            except lzma.LZMAError as failure:
                raise _DamagedError(str(failure)) from failure
            data = b""
            if not piece and stream.needs_input and not stream.eof:
                raise _DamagedError(_CUT_OFF)
            yield piece
        data = stream.unused_data.lstrip(b"\0")
