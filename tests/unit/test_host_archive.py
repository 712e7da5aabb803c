"""Captures: what goes in comes out, and nothing hostile comes in."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import FormatError, SourceError, UnsafeArchiveError
from vfiokit.host import tar
from vfiokit.host.archive import MANIFEST, CaptureSummary, read_capture, unpack, write_capture
from vfiokit.host.compression import read_file
from vfiokit.host.facts import host_facts
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tar import Member
from vfiokit.host.tree import FolderTree, RecordedTree
from vfiokit.host.usage import uses

FOLDER = "/sys/devices/pci0000:00/0000:00:01.0"
SMALL_FILES = {
    f"{FOLDER}/vendor": b"0x8086\n",
    f"{FOLDER}/config": bytes(64),
    "/proc/cmdline": b"quiet\n",
    "/proc/sys/kernel/osrelease": b"6.12.0\n",
}
SMALL_LINKS = {"/sys/bus/pci/devices/0000:00:01.0": "../../../devices/pci0000:00/0000:00:01.0"}


def packed(*members: tuple[str, bytes | str | None]) -> bytes:
    blocks = (tar.member_blocks(Member(name, content), 0) for name, content in members)
    return b"".join(blocks) + tar.END_BLOCKS


@pytest.fixture(scope="module")
def demo() -> RecordedTree:
    tree = open_tree("demo")
    assert isinstance(tree, RecordedTree)
    return tree


@pytest.fixture(scope="module")
def written(demo: RecordedTree, tmp_path_factory: pytest.TempPathFactory) -> CaptureSummary:
    path = tmp_path_factory.mktemp("capture") / "host.tar.zst"
    return write_capture(demo, str(path), host_name="node1")


@pytest.fixture(scope="module")
def capture(written: CaptureSummary) -> RecordedTree:
    return read_capture(written.path)


def test_capture_keeps_the_topology_and_every_recorded_fact(
    demo: RecordedTree, capture: RecordedTree
) -> None:
    before, after = read_topology(demo), read_topology(capture)
    assert list(after.functions) == list(before.functions)
    assert after.host_bridges == before.host_bridges
    for function in before:
        again = after[function.bdf]
        assert again.config.data == function.config.data
        assert again.identity == function.identity
        assert again.resources == function.resources
        assert again.physfn == function.physfn
        assert again.recorded == function.recorded


def test_capture_keeps_what_depends_on_each_device(
    demo: RecordedTree, capture: RecordedTree
) -> None:
    found = [uses(capture, function) for function in read_topology(capture)]
    assert found == [uses(demo, function) for function in read_topology(demo)]
    assert any(found)


def test_captured_files_and_links_are_those_of_the_host(
    demo: RecordedTree, capture: RecordedTree
) -> None:
    for path, content in capture.files():
        if path != MANIFEST:
            assert demo.read(path) == content
    for path, target in capture.links():
        assert demo.readlink(path) == target


def test_files_with_side_effects_are_not_read(tmp_path: Path) -> None:
    harmful = ("rom", "resource0", "resource2_wc", "remove", "rescan", "reset", "power/control")
    allowed = {f"{FOLDER}/{name}": b"1" for name in ("vendor", "resource", "resource1_resize")}

    class Watched(RecordedTree):
        def read(self, path: str) -> bytes:
            assert not path.startswith(FOLDER) or path in allowed, path
            return super().read(path)

    files = allowed | {f"{FOLDER}/{name}": b"1" for name in harmful}
    path = str(tmp_path / "x.tar.zst")
    write_capture(Watched(files, SMALL_LINKS), path)
    assert {p for p, _ in read_capture(path).files() if p.startswith(FOLDER)} == set(allowed)


def test_summary_counts_what_the_archive_holds(
    written: CaptureSummary, capture: RecordedTree
) -> None:
    contents = {path: content for path, content in capture.files() if path != MANIFEST}
    assert written.functions == 226
    assert written.files == len(contents)
    assert written.links == len(list(capture.links()))
    assert written.size == sum(map(len, contents.values()))
    assert written.archive_size == Path(written.path).stat().st_size
    assert written.unreadable == {}


def test_manifest_says_what_when_and_where(capture: RecordedTree) -> None:
    facts = json.loads(capture.read(MANIFEST))
    assert facts["format"] == 1
    assert facts["host"] == "node1"
    assert facts["functions"] == 226
    assert facts["captured"].endswith("Z")
    assert facts["tool"].startswith("vfiokit ")


def test_unreadable_and_short_files_are_reported(tmp_path: Path) -> None:
    class Locked(RecordedTree):
        def read(self, path: str) -> bytes:
            if path.endswith("/vendor"):
                raise PermissionError(13, "Permission denied", path)
            return super().read(path)

    path = str(tmp_path / "x.tar.zst")
    summary = write_capture(Locked(SMALL_FILES, SMALL_LINKS), path)
    assert summary.unreadable == {f"{FOLDER}/vendor": "Permission denied"}
    assert summary.short_config == ("0000:00:01.0",)
    facts = json.loads(read_capture(path).read(MANIFEST))
    assert facts["unreadable"] == summary.unreadable
    assert facts["short_config"] == ["0000:00:01.0"]
    assert facts["kernel"] == "6.12.0"
    assert "host" not in facts


def test_iommu_that_is_a_pci_function_is_captured_once(tmp_path: Path) -> None:
    # As on AMD's servers: the unit lies below its function and links back to it.
    unit = f"{FOLDER}/iommu/ivhd0"
    files = {**SMALL_FILES, f"{unit}/amd-iommu/cap": b"90000000\n"}
    links = {
        **SMALL_LINKS,
        f"{unit}/device": "../../../0000:00:01.0",
        f"{FOLDER}/firmware_node": "../../LNXSYSTM:00/device:00",
        "/sys/class/iommu/ivhd0": "../../devices/pci0000:00/0000:00:01.0/iommu/ivhd0",
    }
    path = str(tmp_path / "x.tar.zst")
    write_capture(RecordedTree(files, links), path)
    found = read_capture(path)
    assert found.readlink(f"{unit}/device") == "../../../0000:00:01.0"
    assert found.read("/sys/class/iommu/ivhd0/amd-iommu/cap") == b"90000000\n"


def test_firmware_and_model_are_captured_and_no_serial_number(tmp_path: Path) -> None:
    dmi = "/sys/devices/virtual/dmi/id"
    secret = {f"{dmi}/product_serial": b"S1\n", f"{dmi}/product_uuid": b"U1\n"}
    told = {f"{dmi}/bios_version": b"P89\n", f"{dmi}/product_name": b"DL360\n"}
    links = {"/sys/class/dmi/id": "../../devices/virtual/dmi/id"}
    path = str(tmp_path / "host.tar.zst")
    files = {**SMALL_FILES, **secret, **told}
    write_capture(RecordedTree(files, {**SMALL_LINKS, **links}), path)
    again = open_tree(path)
    facts = host_facts(again)
    assert (facts["machine model"], facts["firmware version"]) == ("DL360", "P89")
    assert not any(again.exists(each) for each in secret)


def test_progress_reaches_its_total(demo: RecordedTree, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_capture(
        demo, str(tmp_path / "x"), progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 226) for done in range(227)]


def test_failed_capture_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "host.tar.zst"
    path.write_bytes(b"old")
    with pytest.raises(SourceError, match="no PCI function"):
        write_capture(RecordedTree({"/proc/version": b""}, {}), str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_live_host_can_be_captured(tmp_path: Path) -> None:
    live = FolderTree("/")
    if not live.exists("/sys/bus/pci/devices") or not live.list("/sys/bus/pci/devices"):
        pytest.skip("this machine shows no PCI functions")
    path = str(tmp_path / "live.tar.zst")
    write_capture(live, path)
    tree = read_capture(path)
    assert list(read_topology(tree).functions) == list(read_topology(live).functions)
    assert tree.read("/proc/cmdline") == live.read("/proc/cmdline")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "folder"])
def test_re_packed_captures_are_read(written: CaptureSummary, tmp_path: Path, suffix: str) -> None:
    data = read_file(written.path)
    if suffix == "tar.gz":
        data = gzip.compress(data)
    elif suffix == "tar.xz":
        data = lzma.compress(data, preset=0)
    elif suffix == "folder":
        blocks = [packed(("./node1", None))[: -len(tar.END_BLOCKS)]]
        for member in tar.members(data):
            blocks.append(tar.member_blocks(Member("./node1/" + member.name, member.content), 0))
        data = b"".join(blocks) + tar.END_BLOCKS
    path = tmp_path / "named-wrongly.txt"
    path.write_bytes(data)
    assert len(read_topology(read_capture(str(path)))) == 226


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("/etc/passwd", b"")], "absolute"),
        ([("sys/../../etc/passwd", b"")], "leads out"),
        ([("sys/a", "/etc/passwd")], "leads out"),
        ([("sys/a", "../../etc")], "leads out"),
        ([("sys/a", "b/../../../etc")], "leads out"),
        ([("a", "..")], "leads out"),
        ([("sys/a", "")], "leads out"),
        ([("sys/a", b"1"), ("sys/a", b"2")], "twice"),
        ([("sys/a", b"1"), ("sys/./a", b"2")], "twice"),
        ([("sys/a", None), ("sys/a", "b")], "twice"),
        ([("sys/a", "b"), ("sys/a/x", b"1")], "below"),
        ([("sys/a/x", b"1"), ("sys/a", "b")], "below"),
        ([("sys/a", b""), ("sys/a/b/c", b"1")], "below"),
        ([("sys/" + "d/" * 80 + "x", b"")], "deeper"),
    ],
)
def test_hostile_archive_is_refused(
    members: list[tuple[str, bytes | str | None]], word: str
) -> None:
    with pytest.raises(UnsafeArchiveError, match=word):
        unpack(packed(("sys/ok", b""), *members), "evil.tar")


def test_re_packing_does_not_loosen_the_links() -> None:
    with pytest.raises(UnsafeArchiveError, match="leads out"):
        unpack(packed(("top/sys/a", "../../up")), "evil.tar")


def test_folders_may_be_listed_twice() -> None:
    tree = unpack(packed(("sys/", None), ("sys", None), ("sys/a", b"1")))
    assert dict(tree.files()) == {"/sys/a": b"1"}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not a tar"),
        (b"hello", "not a tar"),
        (packed(("etc/passwd", b"")), "no sys/"),
        (packed(("sys/a", b"1"))[:600], "too early"),
        (packed(("sys/a", b""), ("vfiokit.json", b"{")), "manifest"),
        (packed(("sys/a", b""), ("vfiokit.json", b"[]")), "manifest"),
        (packed(("sys/a", b""), ("vfiokit.json", b"[" * 100_000)), "manifest"),
        (packed(("sys/a", b""), ("vfiokit.json", b'{"format": 2}')), "not known"),
    ],
)
def test_what_is_no_capture_is_a_format_error(data: bytes, word: str) -> None:
    with pytest.raises(FormatError, match=word):
        unpack(data, "x.tar")


PARTS = st.sampled_from(["sys", "a", "b", "..", ".", "", "proc"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=3) | NAMES), max_size=5))
def test_accepted_archives_stay_inside(members: list[tuple[str, bytes | str | None]]) -> None:
    """What unpack accepts, an unpacker that trusts it cannot be led out with."""
    try:
        tree = unpack(packed(("sys/x", b""), *members))
    except (UnsafeArchiveError, FormatError):
        return
    links = dict(tree.links())
    for path, target in links.items():
        where = path.split("/")[1:-1]
        for part in target.split("/"):
            if part == "..":
                assert where, (path, target)
                where.pop()
            elif part not in ("", "."):
                where.append(part)
    for path, _ in tree.files():
        parts = path.split("/")
        assert not any("/".join(parts[:end]) in links for end in range(2, len(parts)))
