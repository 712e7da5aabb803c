"""The in-memory file system: lookups, errors, overlays."""

from __future__ import annotations

import errno

import pytest
from kernel_host import refuses

from vfiokit.host.tree import RecordedTree
from vfiokit.machine.kernel.vfs import DeviceNode, Dir, File, FileSystem, Link


def build() -> FileSystem:
    files = FileSystem()
    files.add("/sys/devices/a/vendor", File(b"0x8086\n"))
    files.add("/sys/devices/a/reset", File(None, lambda _data: None))
    files.add("/sys/devices/a/subsystem", Link("../../bus/pci"))
    files.add("/sys/bus/pci/devices/a", Link("../../../devices/a"))
    files.add("/sys/loop", Link("loop"))
    files.add("/dev/node", DeviceNode(object))
    return files


def test_links_are_followed_in_every_component() -> None:
    files = build()
    path = "/sys/bus/pci/devices/a/subsystem/devices/a/vendor"
    assert files.read(path) == b"0x8086\n"
    assert files.real_path(path) == "/sys/devices/a/vendor"


def test_a_link_is_read_as_text_and_not_followed() -> None:
    assert build().readlink("/sys/bus/pci/devices/a") == "../../../devices/a"


def test_dot_dot_above_a_followed_link_is_the_real_parent() -> None:
    assert build().list("/sys/bus/pci/devices/a/..") == ["a"]
    assert build().list("/../..") == ["dev", "sys"]


@pytest.mark.parametrize(
    ("operation", "path", "code"),
    [
        ("read", "/sys/devices/b/vendor", errno.ENOENT),
        ("read", "relative", errno.ENOENT),
        ("read", "/sys/devices/a", errno.EISDIR),
        ("read", "/sys/devices/a/vendor/x", errno.ENOTDIR),
        ("read", "/sys/devices/a/reset", errno.EACCES),
        ("read", "/sys/loop", errno.ELOOP),
        ("read", "/sys/loop/x", errno.ELOOP),
        ("read", "/dev/node", errno.EINVAL),
        ("list", "/sys/devices/a/vendor", errno.ENOTDIR),
        ("list", "/sys/nothing", errno.ENOENT),
        ("readlink", "/sys/devices/a/vendor", errno.EINVAL),
        ("readlink", "/sys/devices/a", errno.EINVAL),
        ("readlink", "/sys/nothing", errno.ENOENT),
    ],
)
def test_reading_fails_as_the_kernel_does(operation: str, path: str, code: int) -> None:
    with refuses(code):
        getattr(build(), operation)(path)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/sys/devices/a/vendor", errno.EACCES),
        ("/sys/devices/a", errno.EISDIR),
        ("/sys/devices/b", errno.ENOENT),
        ("/dev/node", errno.EINVAL),
    ],
)
def test_writing_fails_as_the_kernel_does(path: str, code: int) -> None:
    with refuses(code):
        build().write(path, b"1")


def test_errors_carry_the_path() -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        build().read("/sys/devices/a/reset")
    assert caught.value.filename == "/sys/devices/a/reset"


def test_exists_follows_links() -> None:
    files = build()
    files.add("/sys/dangling", Link("nowhere"))
    assert files.exists("/sys/bus/pci/devices/a/vendor")
    assert not files.exists("/sys/dangling")
    assert not files.exists("/sys/loop")


def test_overlay_shows_replaces_and_hides_entries_of_the_tree_below() -> None:
    below = RecordedTree(
        {"/sys/x/one": b"1", "/sys/x/two": b"2", "/sys/x/deep/three": b"3"},
        {"/sys/y": "x"},
    )
    files = FileSystem(below)
    files.add("/sys/x/two", File(b"new"))
    files.remove("/sys/x/one")
    assert files.list("/sys/y") == ["deep", "two"]
    assert files.read("/sys/y/two") == b"new"
    assert files.read("/sys/y/deep/three") == b"3"
    with refuses(errno.ENOENT):
        files.read("/sys/x/one")
    assert below.read("/sys/x/one") == b"1"


def test_a_removed_folder_comes_back_as_it_was() -> None:
    files = FileSystem(RecordedTree({"/a/b/c": b"1", "/a/d": b"2"}, {"/a/b/l": "../d"}))
    before = files.snapshot()
    node = files.remove("/a/b")
    assert isinstance(node, Dir)
    assert files.snapshot() == {"/a/d": b"2"}
    files.add("/a/b", node)
    assert files.snapshot() == before


def test_snapshot_holds_every_file_and_link_once() -> None:
    assert build().snapshot() == {
        "/dev/node": "device node",
        "/sys/bus/pci/devices/a": "../../../devices/a",
        "/sys/devices/a/reset": b"",
        "/sys/devices/a/subsystem": "../../bus/pci",
        "/sys/devices/a/vendor": b"0x8086\n",
        "/sys/loop": "loop",
    }
