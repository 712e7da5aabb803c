"""The recorded server as lspci sees it, beside the topology we read of it.

``hpe-gen9-vgpu-node.lspci`` is the output of ``lspci -O sysfs.path=FOLDER/sys/bus/pci -Dvmmnk``
(pciutils 3.9.0) on an unpacked capture of the demo record.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiokit.host.archive import write_capture
from vfiokit.host.compression import read_file
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.pci.topology import Function

GOLDEN = Path(__file__).with_name("hpe-gen9-vgpu-node.lspci")


def lspci_fields(function: Function) -> Iterator[tuple[str, str]]:
    """What ``lspci -Dvmmnk`` says of a function."""
    identity, recorded = function.identity, function.recorded
    yield "Slot", str(function.bdf)
    yield "Class", f"{identity.class_code >> 8:04x}"
    yield "Vendor", f"{identity.vendor_id:04x}"
    yield "Device", f"{identity.device_id:04x}"
    if function.header_type == 0 and identity.subsystem_vendor_id not in (0, 0xFFFF):
        yield "SVendor", f"{identity.subsystem_vendor_id:04x}"
        yield "SDevice", f"{identity.subsystem_device_id:04x}"
    if identity.revision:
        yield "Rev", f"{identity.revision:02x}"
    yield "ProgIf", f"{identity.class_code & 0xFF:02x}"
    if recorded.driver is not None:
        yield "Driver", recorded.driver
    if recorded.numa_node is not None:
        yield "NUMANode", str(recorded.numa_node)
    if recorded.iommu_group is not None:
        yield "IOMMUGroup", str(recorded.iommu_group)


def parsed(text: str) -> list[dict[str, str]]:
    return [
        {
            key: value
            for key, _, value in (line.partition(":\t") for line in block.splitlines())
            # Slot names, modules and bridges' subsystems come from elsewhere than the topology.
            if key not in ("PhySlot", "Module")
        }
        for block in text.strip().split("\n\n")
    ]


def ours() -> list[dict[str, str]]:
    return [dict(lspci_fields(function)) for function in read_topology(open_tree("demo"))]


def without_defaults(record: dict[str, str]) -> dict[str, str]:
    """lspci leaves out what is 0; bridges' subsystems it takes from a capability."""
    bridge = record["Class"] == "0604"
    return {
        key: value
        for key, value in record.items()
        if not (key == "ProgIf" and value == "00")
        and not (bridge and key in ("SVendor", "SDevice"))
    }


def test_topology_is_what_lspci_said_of_the_recorded_server() -> None:
    expected = [without_defaults(record) for record in parsed(GOLDEN.read_text())]
    assert [without_defaults(record) for record in ours()] == expected


def test_lspci_reads_an_unpacked_capture(tmp_path: Path) -> None:
    lspci = shutil.which("lspci")
    if lspci is None:
        if os.environ.get("CI"):
            pytest.fail("lspci is not installed; apt-get install pciutils")
        pytest.skip("lspci is not installed (pciutils)")
    write_capture(open_tree("demo"), str(tmp_path / "host.tar.zst"))
    (tmp_path / "host.tar").write_bytes(read_file(str(tmp_path / "host.tar.zst")))
    with tarfile.open(tmp_path / "host.tar") as archive:
        archive.extractall(tmp_path / "host", filter="data")
    result = subprocess.run(
        [lspci, "-O", f"sysfs.path={tmp_path}/host/sys/bus/pci", "-Dvmmnk"],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [without_defaults(record) for record in parsed(result.stdout)]
    assert [without_defaults(record) for record in ours()] == expected
