from __future__ import annotations

import pytest

from vfiokit.pci.ids import Name, class_name, names

FILE = """\
#
# List of PCI ID's
#

0001  SafeNet (wrong ID)
10de  NVIDIA Corporation
\t2330  GH100 [H100 SXM5 80GB]
\t\t10de 16c1  a subsystem, not a device
# a comment inside
\t2331  GH100 [H100 PCIe]
8086  Intel Corporation
\t0953  PCIe Data Center SSD
\t2330  another maker's 2330

C 00  Unclassified device
\t2330  not a device
"""


@pytest.fixture
def database(tmp_path) -> str:
    path = tmp_path / "pci.ids"
    path.write_text(FILE)
    return str(path)


def test_names_come_from_the_file(database):
    asked = [(0x10DE, 0x2330), (0x10DE, 0x2331), (0x8086, 0x0953)]
    assert names(asked, database) == {
        (0x10DE, 0x2330): Name("NVIDIA Corporation", "GH100 [H100 SXM5 80GB]"),
        (0x10DE, 0x2331): Name("NVIDIA Corporation", "GH100 [H100 PCIe]"),
        (0x8086, 0x0953): Name("Intel Corporation", "PCIe Data Center SSD"),
    }


def test_unknown_ids_have_no_names(database):
    assert names([(0x10DE, 0x10DE), (0x1234, 0x11E8)], database) == {
        (0x10DE, 0x10DE): Name("NVIDIA Corporation", None),
        (0x1234, 0x11E8): Name(None, None),
    }


def test_class_section_ends_the_search(database):
    assert names([(0xC, 0x2330)], database)[0xC, 0x2330] == Name(None, None)


def test_nothing_asked_is_nothing_answered(database):
    assert names([], database) == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage\n\t\n\t1\n12\n", b"10de\n\t2330\n"])
def test_damaged_file_knows_no_names(tmp_path, content):
    path = tmp_path / "pci.ids"
    path.write_bytes(content)
    assert names([(0x10DE, 0x2330)], str(path)) == {(0x10DE, 0x2330): Name(None, None)}


def test_missing_file_knows_no_names(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        assert names([(0x10DE, 0x2330)], str(path)) == {(0x10DE, 0x2330): Name(None, None)}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x010802, "Non-Volatile memory controller"),
        (0x030000, "VGA compatible controller"),
        (0x030200, "3D controller"),
        (0x020000, "Ethernet controller"),
        (0x060400, "PCI bridge"),
        (0x060000, "Host bridge"),
        (0x0C0330, "USB controller"),
        (0x028000, "Network controller"),
        (0x080700, "Root Complex Event Collector"),
        (0x0B4000, "Co-processor"),
        (0x120000, "Processing accelerators"),
        (0x777700, "Class 7777"),
    ],
)
def test_class_names_need_no_file(code, name):
    assert class_name(code) == name
