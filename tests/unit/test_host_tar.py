"""The tar reader and writer, held against the standard library's."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import FormatError, UnsafeArchiveError
from vfiokit.host import tar
from vfiokit.host.tar import Member

NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=6,
).map("/".join)
TARGETS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)
CONTENTS = st.binary(max_size=1500) | TARGETS | st.none()


def packed(members: dict[str, bytes | str | None]) -> bytes:
    blocks = (tar.member_blocks(Member(name, content), 5) for name, content in members.items())
    return b"".join(blocks) + tar.END_BLOCKS


def packed_by_library(members: dict[str, bytes | str | None], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
                info.linkname = content or ""
                archive.addfile(info)
    return buffer.getvalue()


@settings(deadline=None)
@given(st.dictionaries(NAMES, CONTENTS, max_size=6))
def test_library_reads_what_we_write(members: dict[str, bytes | str | None]) -> None:
    found: dict[str, bytes | str | None] = {}
    with tarfile.open(fileobj=io.BytesIO(packed(members))) as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isreg() else None
            found[info.name] = (
                file.read() if file is not None else info.linkname if info.issym() else None
            )
            assert info.mtime == 5
    assert found == members


@settings(deadline=None)
@given(
    st.dictionaries(NAMES, CONTENTS, max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_we_read_what_the_library_writes(members: dict[str, bytes | str | None], kind: int) -> None:
    found = list(tar.members(packed_by_library(members, kind)))
    assert dict(found) == members


def test_ustar_prefix_is_part_of_the_name() -> None:
    name = "sys/" + "d" * 90 + "/" + "f" * 50
    data = packed_by_library({name: b"x"}, tarfile.USTAR_FORMAT)
    assert list(tar.members(data)) == [Member(name, b"x")]


def test_is_tar_knows_a_header_by_its_checksum() -> None:
    data = packed({"sys/a": b"1"})
    assert tar.is_tar(data)
    assert not tar.is_tar(b"x" + data[1:])
    assert not tar.is_tar(bytes(1024))
    assert not tar.is_tar(b"")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown type"),
    ],
)
def test_other_kinds_of_members_are_refused(kind: bytes, word: str) -> None:
    info = tarfile.TarInfo("sys/evil")
    info.type = kind
    data = info.tobuf(tarfile.GNU_FORMAT) + tar.END_BLOCKS
    with pytest.raises(UnsafeArchiveError, match=word):
        list(tar.members(data, "x.tar"))


def test_sparse_file_of_the_pax_kind_is_refused() -> None:
    info = tarfile.TarInfo("sys/evil")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
    with pytest.raises(UnsafeArchiveError, match="sparse"):
        list(tar.members(info.tobuf(tarfile.PAX_FORMAT) + tar.END_BLOCKS))


def test_file_larger_than_the_limit_is_refused_by_its_header() -> None:
    info = tarfile.TarInfo("sys/huge")
    info.size = tar.MAX_MEMBER_BYTES + 1
    with pytest.raises(UnsafeArchiveError, match="larger"):
        list(tar.members(info.tobuf() + tar.END_BLOCKS))


@pytest.mark.parametrize("size", [1 << 33, 1 << 60])
def test_binary_sizes_are_refused(size: int) -> None:
    info = tarfile.TarInfo("sys/huge")
    info.size = size
    with pytest.raises((FormatError, UnsafeArchiveError)):
        list(tar.members(info.tobuf(tarfile.GNU_FORMAT) + tar.END_BLOCKS))


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 3)
    assert len(list(tar.members(packed({str(n): b"" for n in range(3)})))) == 3
    with pytest.raises(UnsafeArchiveError, match="members"):
        list(tar.members(packed({str(n): b"" for n in range(4)})))


@pytest.mark.parametrize("cut", [1, 100, 512, 600, 1024, 1500])
def test_archive_that_ends_too_early_is_a_format_error(cut: int) -> None:
    data = packed({"sys/a": b"1" * 600})[: -len(tar.END_BLOCKS)]
    with pytest.raises(FormatError, match="too early"):
        list(tar.members(data[: len(data) - cut + 1]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_members_or_an_error_of_ours(source: st.DataObject) -> None:
    data = bytearray(
        packed_by_library({"sys/" + "n" * 120: b"1" * 600, "sys/b": "../c", "d": None}, 2)
    )
    for _ in range(source.draw(st.integers(1, 5))):
        data[source.draw(st.integers(0, len(data) - 1))] = source.draw(st.integers(0, 255))
        if source.draw(st.booleans()):  # with a checksum that is right again
            start = source.draw(st.integers(0, len(data) // 512 - 1)) * 512
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    with contextlib.suppress(FormatError, UnsafeArchiveError):
        list(tar.members(bytes(data)))
