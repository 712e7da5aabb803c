from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vfiokit.pci import ids
from vfiokit.pci.ids import PACKAGED, Name, class_name, names

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


def test_without_a_system_file_the_package_knows_names(monkeypatch, tmp_path):
    monkeypatch.setattr(ids, "DATABASES", (str(tmp_path / "absent"),))
    asked = [(0x10DE, 0x2330), (0x8086, 0x0953), (0x1AF4, 0x1041), (0x10DE, 0x10DE)]
    assert names(asked) == {
        (0x10DE, 0x2330): Name("NVIDIA Corporation", "GH100[H100 SXM5 80GB]"),
        (0x8086, 0x0953): Name("Intel Corporation", "PCIe Data Center SSD"),
        (0x1AF4, 0x1041): Name("Red Hat, Inc.", "Virtio 1.0 network device"),
        (0x10DE, 0x10DE): Name("NVIDIA Corporation", None),
    }


def test_the_system_file_comes_first(monkeypatch, database):
    monkeypatch.setattr(ids, "DATABASES", (database,))
    assert names([(0x1234, 1), (0x1AF4, 0x1041)])[0x1AF4, 0x1041] == Name(None, None)


@pytest.mark.parametrize("content", [b"", b"no zstd at all", b"\x28\xb5\x2f\xfd\x00\x00"])
def test_damaged_compressed_file_knows_no_names(tmp_path, content):
    path = tmp_path / "pci.ids.zst"
    path.write_bytes(content)
    assert names([(0x10DE, 0x2330)], str(path)) == {(0x10DE, 0x2330): Name(None, None)}


def test_the_package_s_copy_is_the_system_s_file():
    system = Path("/usr/share/misc/pci.ids")
    if not system.exists() or "Version: 2023.04.10" not in system.read_text("utf-8")[:200]:
        pytest.skip("Debian 12's pci.ids is not here")
    asked = [
        (vendor, device)
        for vendor in (0x1002, 0x1022, 0x10DE, 0x14E4, 0x15B3, 0x8086)
        for device in range(0, 0x10000, 7)
    ]
    assert names(asked, PACKAGED) == names(asked, str(system))


def test_names_cost_nothing_until_they_are_asked_for():
    code = "import sys, vfiokit.pci.ids; print('zstandard' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n"


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
