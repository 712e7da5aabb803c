"""Trees in memory and over folders, held against what the kernel does with the same files."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.host.tree import FolderTree, RecordedTree, Tree, read_text, resolve

SYSFS_FILES = {
    "/sys/devices/pci0000:00/0000:00:01.0/class": b"0x060400\n",
    "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/class": b"0x010802\n",
    "/proc/cmdline": b"quiet\n",
}
SYSFS_LINKS = {
    "/sys/bus/pci/devices/0000:01:00.0": ("../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0"),
    "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/subsystem": "../../../../bus/pci",
    "/sys/devices/pci0000:00/0000:00:01.0/absolute": "/proc",
    "/sys/loop": "loop2",
    "/sys/loop2": "loop",
    "/sys/dangling": "nowhere/at/all",
}


def on_disk(root: Path, files: dict[str, bytes], links: dict[str, str]) -> None:
    for path, content in files.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for path, target in links.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


@pytest.fixture(params=["recorded", "folder"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    if request.param == "recorded":
        return RecordedTree(SYSFS_FILES, SYSFS_LINKS)
    on_disk(tmp_path, SYSFS_FILES, SYSFS_LINKS)
    return FolderTree(str(tmp_path))


def test_links_are_followed_in_every_component(tree: Tree) -> None:
    assert tree.read("/sys/bus/pci/devices/0000:01:00.0/class") == b"0x010802\n"
    assert tree.read("/sys/bus/pci/devices/0000:01:00.0/../class") == b"0x060400\n"
    through = "/sys/bus/pci/devices/0000:01:00.0/subsystem/devices/0000:01:00.0/class"
    assert tree.read(through) == b"0x010802\n"
    assert tree.list("/sys/bus/pci/devices/0000:01:00.0") == ["class", "subsystem"]
    assert read_text(tree, "/proc/cmdline") == "quiet"


def test_resolve_leads_to_the_real_folder(tree: Tree) -> None:
    assert (
        resolve(tree, "/sys/bus/pci/devices/0000:01:00.0")
        == "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    )


def test_absolute_target_starts_at_the_root_of_the_tree(tree: Tree) -> None:
    assert tree.read("/sys/devices/pci0000:00/0000:00:01.0/absolute/cmdline") == b"quiet\n"


@pytest.mark.parametrize(
    ("call", "path", "code"),
    [
        ("read", "/sys/nothing", errno.ENOENT),
        ("read", "/sys/dangling", errno.ENOENT),
        ("read", "/sys/bus", errno.EISDIR),
        ("read", "/proc/cmdline/x", errno.ENOTDIR),
        ("read", "/sys/loop", errno.ELOOP),
        ("read", "/sys/loop/x", errno.ELOOP),
        ("list", "/proc/cmdline", errno.ENOTDIR),
        ("list", "/nothing", errno.ENOENT),
        ("readlink", "/proc/cmdline", errno.EINVAL),
        ("readlink", "/sys/bus", errno.EINVAL),
        ("readlink", "/sys/nothing", errno.ENOENT),
    ],
)
def test_failures_carry_the_errno_of_the_kernel(
    tree: Tree, call: str, path: str, code: int
) -> None:
    with pytest.raises(OSError, match=f"Errno {code}]"):
        getattr(tree, call)(path)


def test_exists_follows_links_and_never_raises(tree: Tree) -> None:
    assert tree.exists("/sys/bus/pci/devices/0000:01:00.0/subsystem")
    assert tree.exists("/")
    for absent in ("/sys/dangling", "/sys/loop", "/proc/cmdline/x", "/x/y"):
        assert not tree.exists(absent)


def test_recorded_tree_gives_back_what_it_was_made_of() -> None:
    tree = RecordedTree(SYSFS_FILES, SYSFS_LINKS)
    assert dict(tree.files()) == SYSFS_FILES
    assert dict(tree.links()) == SYSFS_LINKS


def test_folder_wins_over_a_file_of_the_same_name() -> None:
    for files in ({"/a": b"1", "/a/b": b"2"}, {"/a/b": b"2", "/a": b"1"}):
        assert dict(RecordedTree(files, {}).files()) == {"/a/b": b"2"}


@pytest.mark.parametrize("path", ["a", "", "a/b", "/a//b", "/a/../b", "/a/.", "/a/"])
def test_recorded_tree_refuses_paths_that_are_not_normalised(path: str) -> None:
    with pytest.raises(ValueError, match="normalised"):
        RecordedTree({path: b""}, {})


def test_prefix_shows_a_bare_copy_of_sysfs_at_sys(tmp_path: Path) -> None:
    on_disk(tmp_path, SYSFS_FILES, SYSFS_LINKS)
    tree = FolderTree(str(tmp_path / "sys"), prefix="/sys")
    assert tree.read("/sys/bus/pci/devices/0000:01:00.0/class") == b"0x010802\n"
    assert tree.list("/sys/bus/pci/devices/0000:01:00.0/subsystem/devices") == ["0000:01:00.0"]
    assert not tree.exists("/proc/cmdline")
    assert not tree.exists("/sysx")
    assert tree.read("/sys/../sys/devices/../devices/pci0000:00/0000:00:01.0/class")
    with pytest.raises(FileNotFoundError):
        tree.list("/")


def test_folder_tree_never_leaves_its_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "host"
    (root / "sys").mkdir(parents=True)
    (root / "sys" / "up").symlink_to("../../secret")
    (root / "sys" / "absolute").symlink_to(tmp_path / "secret")
    (root / "sys" / "folder").symlink_to("../..")
    tree = FolderTree(str(root))
    for path in (
        "/sys/up",
        "/sys/absolute",
        "/sys/folder/secret",
        "/../secret",
        "/sys/../../secret",
    ):
        with pytest.raises(FileNotFoundError):
            tree.read(path)
    assert tree.list("/sys/folder") == ["sys"]


def test_fifo_in_a_folder_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}]"):
        FolderTree(str(tmp_path)).read("/pipe")


def test_live_tree_reads_this_machine() -> None:
    tree = FolderTree("/")
    assert tree.read("/proc/self/comm") == Path("/proc/self/comm").read_bytes()
    assert tree.readlink("/proc/self") == str(os.getpid())
    assert "cmdline" in tree.list("/proc")


NAMES = st.sampled_from(["a", "b", "c"])
PLACES = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
TARGETS = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4)
PATHS = st.lists(st.sampled_from(["a", "b", "c", "a", "b", "c", "..", "."]), max_size=5).map(
    lambda parts: "/" + "/".join(parts)
)


def outcome(call: Callable[[str], object], path: str) -> object:
    try:
        return call(path)
    except OSError as failure:
        return failure.errno


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(PLACES, st.binary(max_size=4), max_size=5),
    st.dictionaries(PLACES, TARGETS.map("/".join), max_size=4),
    st.lists(PATHS, min_size=1, max_size=6),
)
def test_trees_agree_with_the_kernel(
    files: dict[str, bytes], links: dict[str, str], paths: list[str]
) -> None:
    recorded = RecordedTree(files, links)
    files, links = dict(recorded.files()), dict(recorded.links())
    with tempfile.TemporaryDirectory() as base:
        root = Path(base, "root")
        root.mkdir()
        on_disk(root, files, links)
        folder = FolderTree(str(root))

        def kernel_read(path: str) -> bytes:
            with open(f"{root}{path}", "rb") as file:  # Path would tidy the path up
                return file.read()

        for path in paths:
            if _lowest(recorded, path) < 0:
                continue  # a tree ends at its root, a folder of this machine does not
            assert outcome(recorded.read, path) == outcome(kernel_read, path), path
            expected = outcome(lambda name: sorted(os.listdir(f"{root}{name}")), path)
            assert outcome(recorded.list, path) == expected, path
            expected = outcome(lambda name: os.readlink(f"{root}{name}"), path)
            assert outcome(recorded.readlink, path) == expected, path
            assert recorded.exists(path) == os.path.exists(f"{root}{path}"), path
            if not path.endswith("."):
                assert outcome(folder.read, path) == outcome(kernel_read, path), path
                assert folder.exists(path) == os.path.exists(f"{root}{path}"), path


def _lowest(tree: RecordedTree, path: str) -> int:
    """Lowest depth that a textual walk over ``path`` reaches; below 0 is above the root."""
    pending = path.split("/")[::-1]
    where: list[str] = []
    lowest, hops, outside = 0, 0, 0
    links = dict(tree.links())
    while pending and hops < 60:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if where:
                where.pop()
            else:
                outside += 1
                lowest = -outside
            continue
        where.append(part)
        target = links.get("/" + "/".join(where))
        if target is not None:
            hops += 1
            where.pop()
            pending.extend(reversed(target.split("/")))
    return lowest
