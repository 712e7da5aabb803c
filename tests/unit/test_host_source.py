"""Sources are told by what they are, and what they are not is said."""

from __future__ import annotations

import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from vfiokit import data
from vfiokit.errors import FormatError, SourceError
from vfiokit.host.archive import write_capture
from vfiokit.host.compression import read_file
from vfiokit.host.source import open_host, open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import FolderTree, RecordedTree


@pytest.fixture(scope="module")
def record() -> bytes:
    return read_file(data.path_of(data.DEMO_RECORD))


def functions(source: Path | str) -> int:
    return len(read_topology(open_tree(str(source))))


def test_live_is_this_machine() -> None:
    tree = open_tree("live")
    assert isinstance(tree, FolderTree)
    assert tree.root == "/"


def test_demo_is_the_packaged_server() -> None:
    assert isinstance(open_tree("demo"), RecordedTree)
    assert functions("demo") == 226


def test_packaged_record_comes_with_its_notice() -> None:
    notice = Path(data.path_of("NOTICE")).read_text()
    assert data.DEMO_RECORD in notice
    assert "Apache" in notice
    assert "harvester/pcidevices" in notice


@pytest.mark.parametrize("kind", ["plain", "zstd", "gzip", "xz"])
def test_records_are_known_by_content(tmp_path: Path, record: bytes, kind: str) -> None:
    pack = {
        "plain": bytes,
        "zstd": zstandard.compress,
        "gzip": gzip.compress,
        "xz": lambda content: lzma.compress(content, preset=0),
    }[kind]
    path = tmp_path / "named.jpg"
    path.write_bytes(pack(record))
    assert functions(path) == 226


def test_captures_and_unpacked_captures_are_read(tmp_path: Path) -> None:
    folder = "pci0000:00/0000:00:01.0"
    host = RecordedTree(
        {
            f"/sys/devices/{folder}/vendor": b"0x8086\n",
            f"/sys/devices/{folder}/device": b"0x2f02\n",
        },
        {"/sys/bus/pci/devices/0000:00:01.0": f"../../../devices/{folder}"},
    )
    archive = tmp_path / "host"
    write_capture(host, str(archive))
    plain = tmp_path / "plain"
    plain.write_bytes(read_file(str(archive)))
    with tarfile.open(plain) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    for place in (archive, plain, tmp_path / "unpacked", tmp_path / "unpacked" / "sys"):
        (function,) = read_topology(open_tree(str(place)))
        assert function.identity.vendor_id == 0x8086
        assert function.bdf == (0, 0, 1, 0)


def test_record_with_comments_first_is_known(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "x").write_bytes(b"# by hand\n\n" + record)
    assert functions(tmp_path / "x") == 226


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"Slot:\t0000:00:00.0\nClass:\t0600\n", "lspci -m"),
        (b'<system version="1">\n', "XML"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x7fELF\x02\x01\x01\x00", "binary"),
        (b"hello world\n", "starts with 'hello world'"),
        (b"# only a comment\n", "neither"),
        (b"E: SUBSYSTEM=pci\n", "P: /devices"),
        (gzip.compress(b"", mtime=0), "empty"),
        (gzip.compress(b"hello", mtime=0), "hello"),
        (b"\x1f\x8b\x08 damaged", "damaged"),
    ],
)
def test_what_is_no_host_is_described(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=word) as caught:
        open_tree(str(path))
    assert str(path) in str(caught.value)


def test_absent_file_and_folder_without_sys_are_source_errors(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    for path in (tmp_path / "absent", tmp_path / "home"):
        with pytest.raises(SourceError, match=path.name) as caught:
            open_tree(str(path))
        assert "'demo'" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"00:00.0 Host bridge: Intel Corporation\n00: 86 80\n", "lspci"),
        (b"0000:00:00.0 0600: 8086:2f00\n", "lspci"),
        (b"log\n" * 50_000 + b"0000:00:00.0 0600: 8086:2f00\n00: 86 80\n", "lspci"),
        (b'\n<system version="1"><cpu arch="x"><pci busid="1:2.0"/></cpu></system>', "nccl"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_descriptions_without_files_have_a_topology_only(
    tmp_path: Path, content: bytes, kind: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "host"
    path.write_bytes(pack(content))
    host = open_host(str(path))
    assert (host.kind, host.tree, len(host.topology())) == (kind, None, 1)
    assert host.limits
    with pytest.raises(SourceError, match="none of the host's files") as caught:
        open_tree(str(path))
    assert "vfiokit capture" in caught.value.hint


def test_hosts_with_files_have_both_and_say_what_is_cut(tmp_path: Path) -> None:
    assert (open_host("demo").kind, open_host("live").kind) == ("record", "live")
    assert open_host("demo").limits == ()
    folder = tmp_path / "sys/bus/pci/devices/0000:00:01.0"
    folder.mkdir(parents=True)
    (folder / "config").write_bytes(bytes(64))
    host = open_host(str(tmp_path))
    assert host.kind == "folder"
    assert host.limits[0].startswith("1 function cut before the capabilities")
