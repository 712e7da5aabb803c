"""Packed files of unknown origin: told by content, bounded, and never another error."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import FormatError, SourceError, UnsafeArchiveError
from vfiokit.host import compression
from vfiokit.host.compression import decompress, read_file


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstd,
    "zstd with its size": zstandard.compress,
    "gzip": gzip.compress,
    "xz": lzma.compress,
}


@pytest.fixture(params=sorted(PACKERS))
def pack(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    return PACKERS[request.param]


@pytest.mark.parametrize("size", [0, 1, 5000, 3_000_000])
def test_content_comes_back(pack: Callable[[bytes], bytes], size: int) -> None:
    content = os.urandom(size // 2) + bytes(size - size // 2)
    assert decompress(pack(content)) == content


def test_several_streams_in_a_row_are_one_content(pack: Callable[[bytes], bytes]) -> None:
    assert decompress(pack(b"one ") + pack(b"two ") + pack(b"three")) == b"one two three"


def test_unpacked_content_is_left_alone() -> None:
    assert decompress(b"P: /devices/x\n") == b"P: /devices/x\n"


def test_cut_off_data_is_a_format_error(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(os.urandom(100_000))
    for length in (len(packed) - 1, len(packed) // 2, 7):
        with pytest.raises(FormatError, match=r"host\.x"):
            decompress(packed[:length], "host.x")


def test_bomb_is_refused_before_it_fills_memory(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(compression.RATIO_FLOOR_BYTES * 4))
    with pytest.raises(UnsafeArchiveError, match="bomb"):
        decompress(bomb)


def test_total_is_bounded_whatever_the_ratio(
    pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MAX_TOTAL_BYTES", 1 << 20)
    monkeypatch.setattr(compression, "RATIO_FLOOR_BYTES", 1 << 20)
    assert len(decompress(pack(os.urandom(1 << 20)))) == 1 << 20
    with pytest.raises(UnsafeArchiveError):
        decompress(pack(os.urandom((1 << 20) + 1)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PACKERS)), st.data())
def test_damage_is_content_or_format_error(kind: str, source: st.DataObject) -> None:
    packed = bytearray(PACKERS[kind](b"a line of text\n" * 50 + bytes(range(256))))
    for _ in range(source.draw(st.integers(1, 4))):
        packed[source.draw(st.integers(4, len(packed) - 1))] = source.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError, UnsafeArchiveError):
        decompress(bytes(packed))


def test_read_file_reads_packed_files(tmp_path: Path) -> None:
    (tmp_path / "host").write_bytes(zstd(b"content"))
    assert read_file(str(tmp_path / "host")) == b"content"


def test_missing_file_and_folder_and_fifo_are_source_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe", tmp_path / ("n" * 300)):
        with pytest.raises(SourceError, match=path.name[:20]):
            read_file(str(path))


def test_file_larger_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MAX_FILE_BYTES", 10)
    (tmp_path / "host").write_bytes(b"0123456789")
    assert read_file(str(tmp_path / "host")) == b"0123456789"
    (tmp_path / "host").write_bytes(b"0123456789a")
    with pytest.raises(UnsafeArchiveError, match="larger than"):
        read_file(str(tmp_path / "host"))
