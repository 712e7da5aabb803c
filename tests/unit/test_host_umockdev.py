"""Records of umockdev: the format, the real record, and anything that is not quite one."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit import data
from vfiokit.errors import FormatError
from vfiokit.host import umockdev
from vfiokit.host.compression import read_file
from vfiokit.host.tree import RecordedTree

RECORD = b"""\
P: /devices/pci0000:00/0000:00:02.0/0000:05:00.0
E: DRIVER=nvme
E: SUBSYSTEM=pci
A: class=0x010802\\n
H: config=4D1408A8
L: driver=../../../../bus/pci/drivers/nvme
L: iommu_group=../../../../kernel/iommu_groups/37
A: label=a\\\\b\\t\\"c\\303\\244
A: msi_irqs/24=msix\\n
A: empty=

P: /devices/pci0000:00/0000:00:02.0/0000:05:00.0/nvme/nvme0/nvme0n1
N: nvme0n1
S: disk/by-id/some
E: DEVTYPE=disk
E: MAJOR=259
E: MINOR=0
E: SUBSYSTEM=block

P: /devices/pci0000:00/usb1/1-1
N: bus/usb/001/002=120100
E: MAJOR=189
E: MINOR=1
E: SUBSYSTEM=usb
"""
NVME = "/sys/devices/pci0000:00/0000:00:02.0/0000:05:00.0"


@pytest.fixture(scope="module")
def demo() -> bytes:
    return read_file(data.path_of(data.DEMO_RECORD))


@pytest.fixture(scope="module")
def tree(demo: bytes) -> RecordedTree:
    return umockdev.read(demo)


def test_attributes_are_decoded() -> None:
    tree = umockdev.read(RECORD)
    assert tree.read(f"{NVME}/class") == b"0x010802\n"
    assert tree.read(f"{NVME}/config") == bytes.fromhex("4d1408a8")
    assert tree.read(f"{NVME}/label") == 'a\\b\t"cä'.encode()
    assert tree.read(f"{NVME}/msi_irqs/24") == b"msix\n"
    assert tree.read(f"{NVME}/empty") == b""


def test_properties_become_uevent_and_the_subsystem_link() -> None:
    tree = umockdev.read(RECORD)
    assert tree.read(f"{NVME}/uevent") == b"DRIVER=nvme\nSUBSYSTEM=pci\n"
    assert tree.readlink(f"{NVME}/subsystem") == "../../../../bus/pci"


def test_what_a_kernel_shows_elsewhere_is_synthesised() -> None:
    tree = umockdev.read(RECORD)
    disk = f"{NVME}/nvme/nvme0/nvme0n1"
    for path, real in {
        "/sys/bus/pci/devices/0000:05:00.0": NVME,
        "/sys/bus/pci/drivers/nvme/0000:05:00.0": NVME,
        "/sys/kernel/iommu_groups/37/devices/0000:05:00.0": NVME,
        "/sys/class/block/nvme0n1": disk,
        "/sys/block/nvme0n1": disk,
        "/sys/dev/block/259:0": disk,
        "/sys/bus/usb/devices/1-1": "/sys/devices/pci0000:00/usb1/1-1",
        "/sys/dev/char/189:1": "/sys/devices/pci0000:00/usb1/1-1",
        "/dev/disk/by-id/some": "/dev/nvme0n1",
    }.items():
        assert tree.real_path(path) == real
    assert tree.readlink("/sys/block/nvme0n1").startswith("../devices/")
    assert tree.read("/dev/bus/usb/001/002") == b"\x12\x01\x00"
    assert tree.list("/") == ["dev", "sys"]
    assert "nvme" in tree.list("/sys/devices/pci0000:00/0000:00:02.0/0000:05:00.0")


def test_order_of_questions_does_not_matter(demo: bytes) -> None:
    whole = umockdev.read(demo)
    files, links = dict(whole.files()), dict(whole.links())
    asked = umockdev.read(demo)
    order = random.Random(5).sample([*files, *links], 3000)
    for path in order:
        if path in files:
            assert asked.read(path) == files[path]
        else:
            assert asked.readlink(path) == links[path]
    assert dict(asked.files()) == files
    assert dict(asked.links()) == links


def test_every_line_of_the_demo_record_is_in_its_tree(demo: bytes, tree: RecordedTree) -> None:
    device = ""
    for line in demo.decode().splitlines():
        kind, _, value = line.partition(": ")
        name, _, content = value.partition("=")
        if kind == "P":
            device = "/sys" + value
        elif kind == "H":
            assert tree.read(f"{device}/{name}").hex().upper() == content
        elif kind == "L":
            assert tree.readlink(f"{device}/{name}") == content
        elif kind == "A":
            # Undone in another way than the reader's; the record has no octal escapes in A lines.
            plain = content.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t")
            assert tree.read(f"{device}/{name}").decode() == plain.replace("\0", "\\")
        elif kind == "E":
            assert value in tree.read(f"{device}/uevent").decode().splitlines()


def test_groups_links_and_group_folders_agree(tree: RecordedTree) -> None:
    functions = tree.list("/sys/bus/pci/devices")
    assert len(functions) == 226
    for function in functions:
        group = tree.readlink(f"/sys/bus/pci/devices/{function}/iommu_group").rpartition("/")[2]
        assert function in tree.list(f"/sys/kernel/iommu_groups/{group}/devices")


def test_crlf_comments_blank_lines_and_text_are_fine() -> None:
    expected = dict(umockdev.read(RECORD).files())
    for variant in (
        RECORD.replace(b"\n", b"\r\n"),
        b"# made by hand\n" + RECORD,
        b"\n\n" + RECORD.replace(b"\n\n", b"\n\n\n\n"),
        RECORD.rstrip(b"\n"),
        RECORD.decode(),
        RECORD.replace(b"E: DRIVER", b"M: 0000:05:00.0\nR: 0\nU: pci\nE: DRIVER"),
    ):
        assert dict(umockdev.read(variant).files()) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", 0),
        (b"\n\n", 0),
        (b"# nothing\n", 0),
        (b"A: class=1\n", 1),
        (b"P: /devices/a\nX: what\n", 2),
        (b"P: /devices/a\nE: SUBSYSTEM\n", 2),
        (b"P: /devices/a\nA: =x\n", 2),
        (b"P: /devices/a\nH: config=8\n", 2),
        (b"P: /devices/a\nH: config=8g\n", 2),
        (b"P: /devices/a\nN: x=1\n", 2),
        (b"P: /devices/a\n\nP: /etc/passwd\n", 3),
        (b"P: /devices/a\n\nP: /devices/../../x\n", 3),
        (b"P: /devices/a/\n", 1),
        (b"P: /devices/\n", 1),
        (b"P: /devices/a\nE: SUBSYSTEM=pci\nP: /devices/b\n", 3),
        (b"\x7fELF\x02\x01", 1),
        (b"00:00.0 Host bridge: Intel\n", 1),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(text: bytes, line: int) -> None:
    with pytest.raises(FormatError) as caught:
        umockdev.read(text, "host.umockdev")
    assert caught.value.line == line
    assert "host.umockdev" in str(caught.value)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "power//control", "power/.."])
def test_attribute_names_cannot_leave_their_device(name: str) -> None:
    record = f"P: /devices/a\nE: SUBSYSTEM=pci\nA: fine=1\nA: {name}=1\n"
    with pytest.raises(FormatError) as caught:
        umockdev.read(record).read("/sys/devices/a/fine")
    assert caught.value.line == 4


def test_names_that_contradict_each_other_are_survived() -> None:
    record = (
        "P: /devices/a\nE: SUBSYSTEM=pci\nA: x=1\nA: x/y=2\nA: b=3\nA: b/c=4\n"
        "L: driver=../../../../../../../etc\nL: iommu_group=\n"
        "\nP: /devices/a/b\nE: SUBSYSTEM=../x\n\n"
        "P: /devices/a\nE: SUBSYSTEM=net\nN: ../../etc/passwd\n"
        "\nP: /devices/c\nE: SUBSYSTEM=..\n\nP: /devices/d\nE: SUBSYSTEM=.\nE: SUBSYSTEM=pci\n"
    )
    tree = umockdev.read(record)
    assert all(path.startswith(("/sys/", "/dev/")) for path, _ in tree.files())


def read_all(text: bytes) -> None:
    tree = umockdev.read(text)
    for path, content in tree.files():
        assert tree.read(path) == content
    for path, target in tree.links():
        assert tree.readlink(path) == target
        tree.exists(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_are_read_or_refused_with_format_error(source: st.DataObject) -> None:
    """Whatever a record says, it becomes a tree or a FormatError, never another error."""
    text = bytearray(RECORD)
    for _ in range(source.draw(st.integers(1, 6))):
        at = source.draw(st.integers(0, len(text)))
        until = source.draw(st.integers(at, min(len(text), at + 40)))
        pieces = [b"", b"\n", b"\n\n", b"P: ", b"/", b"..", b"=", b"\\", b"\0", b"A: x/y=", b"\xff"]
        text[at:until] = source.draw(st.sampled_from(pieces) | st.binary(max_size=8))
    with contextlib.suppress(FormatError):
        read_all(bytes(text))


@pytest.mark.slow
def test_damaged_copies_of_the_demo_record_are_read_or_refused(demo: bytes) -> None:
    """Whatever a record says, it becomes a tree or a FormatError, never another error."""
    rng = random.Random(1)
    for _ in range(60):
        text = bytearray(demo[: rng.randrange(len(demo))] if rng.random() < 0.3 else demo)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(text))
            if rng.random() < 0.5:
                del text[at : at + rng.randrange(2000)]
            else:
                text[at : at + 1] = rng.randbytes(rng.randrange(3))
        with contextlib.suppress(FormatError):
            read_all(bytes(text))
