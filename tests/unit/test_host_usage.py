"""What depends on a function: disks, links, screens, USB, virtual functions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from assign_host import AUDIO, GPU, NIC, NVME, PCI, add_disk, add_link, build, link, put

from vfiokit.assign.plan import Plan, plan
from vfiokit.data import DEMO_RECORD, path_of
from vfiokit.host import umockdev
from vfiokit.host.compression import read_file
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import FolderTree, Tree
from vfiokit.host.usage import Opener, Use, openers, uses
from vfiokit.pci.address import Bdf


def used(root: Path, bdf: str) -> dict[tuple[str, str], Use]:
    tree = FolderTree(str(root))
    found = uses(tree, read_topology(tree)[Bdf.parse(bdf)])
    return {(use.kind, use.name): use for use in found}


def test_mounted_partition_makes_the_disk_used(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "/boot")
    found = used(tmp_path, NVME)
    disk = found["disk", "nvme0n1"]
    assert (disk.critical, disk.in_use) == (True, True)
    assert disk.loss == "loses disk nvme0n1 (Samsung SSD 970 EVO Plus 2TB, 1.8 TiB)"
    assert disk.nodes == ("/dev/nvme0n1", "/dev/nvme0n1p1")
    assert found["mount", "/boot"].detail == "ext4 on nvme0n1p1"


def test_mount_through_device_mapper_is_found_by_name_without_numbers(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "", device_mapper=True)
    (tmp_path / "proc/self/mountinfo").unlink()
    put(tmp_path, "proc/mounts", "/dev/mapper/vg-root /data\\040disk ext4 rw 0 0\n")
    found = used(tmp_path, NVME)
    assert found["mount", "/data disk"].detail == "ext4 on dm-0"
    assert not found["disk", "nvme0n1"].critical


def test_assembled_but_unmounted_stack_is_in_use(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "", device_mapper=True)
    disk = used(tmp_path, NVME)["disk", "nvme0n1"]
    assert disk.in_use
    assert "carries dm-0" in disk.detail


def test_swap_is_critical(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "", device_mapper=True)
    put(tmp_path, "proc/swaps", "Filename Type Size Used Priority\n/dev/dm-0 partition 1 0 -2\n")
    found = used(tmp_path, NVME)
    assert found["swap", "dm-0"].critical
    assert found["disk", "nvme0n1"].in_use


def test_second_disk_of_a_btrfs_is_in_use(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "")
    put(tmp_path, "proc/self/mountinfo", "1 0 0:42 / / rw - btrfs /dev/sdz1 rw\n")
    for member in ("sdz1", "nvme0n1p1"):
        put(tmp_path, f"sys/fs/btrfs/uuid/devices/{member}/size", "1\n")
    assert used(tmp_path, NVME)["disk", "nvme0n1"].critical


def test_zfs_leaves_an_idle_disk_in_doubt(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "")
    put(tmp_path, "proc/self/mountinfo", "1 0 0:42 / /tank rw - zfs tank rw\n")
    assert used(tmp_path, NVME)["disk", "nvme0n1"].in_use is None


def test_multipath_namespace_is_found_below_its_subsystem(tmp_path: Path) -> None:
    build(tmp_path)
    put(tmp_path, f"{PCI}/{NVME}/nvme/nvme0/nvme0c0n1/hidden", "1\n")
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    put(tmp_path, f"{subsystem}/nvme0n1/dev", "259:0\n")
    put(tmp_path, f"{subsystem}/model", "Shared\n")
    link(tmp_path, f"{subsystem}/nvme0", f"../../../pci0000:00/{NVME}/nvme/nvme0")
    put(tmp_path, "proc/self/mountinfo", "1 0 259:0 / / rw - ext4 /dev/nvme0n1 rw\n")
    found = used(tmp_path, NVME)
    assert [name for kind, name in found if kind == "disk"] == ["nvme0n1"]
    assert found["disk", "nvme0n1"].critical
    link(tmp_path, f"{subsystem}/nvme1", f"../../../pci0000:00/{NIC}/nvme/nvme1")
    disk = used(tmp_path, NVME)["disk", "nvme0n1"]
    assert not disk.critical
    assert disk.loss.startswith("loses one of 2 paths")


def test_scsi_disk_deep_below_its_adapter_is_found(tmp_path: Path) -> None:
    build(tmp_path)
    target = f"{PCI}/{NVME}/ata1/host0/target0:0:0/0:0:0:0"
    put(tmp_path, f"{target}/model", "WDC WD40 \n")
    put(tmp_path, f"{target}/vendor", "ATA     \n")
    put(tmp_path, f"{target}/block/sda/dev", "8:0\n")
    link(tmp_path, f"{target}/block/sda/device", "../../../0:0:0:0")
    assert used(tmp_path, NVME)["disk", "sda"].loss == "loses disk sda (WDC WD40)"


@pytest.mark.parametrize(("bond", "carrier"), [(False, "eno1"), (True, "bond0")])
def test_default_route_is_followed_down(tmp_path: Path, bond: bool, carrier: str) -> None:
    build(tmp_path)
    add_link(tmp_path, default_route=True, bond=bond)
    found = used(tmp_path, NIC)
    assert found["default-route", carrier].detail == "over eno1"
    assert found["network", "eno1"].critical
    assert ("below bond0" in found["network", "eno1"].detail) == bond


def test_ipv6_default_route_counts(tmp_path: Path) -> None:
    build(tmp_path)
    add_link(tmp_path)
    zeros = "0" * 32
    line = f"{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 1 0 00000003"
    put(tmp_path, "proc/net/ipv6_route", f"{line}     eno1\n")
    assert ("default-route", "eno1") in used(tmp_path, NIC)


def test_link_without_proc_is_up_and_its_routes_are_unknown(tmp_path: Path) -> None:
    build(tmp_path)
    add_link(tmp_path)
    (tmp_path / "proc/net/route").unlink()
    use = used(tmp_path, NIC)["network", "eno1"]
    assert use.in_use
    assert "routes unknown" in use.detail


def test_interface_in_another_namespace_is_told(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / PCI / NIC / "net").mkdir()
    (use,) = used(tmp_path, NIC).values()
    assert use.in_use is None
    assert "namespace" in use.detail


def test_display_with_a_connected_screen_is_in_use(tmp_path: Path) -> None:
    build(tmp_path)
    put(tmp_path, f"{PCI}/{GPU}/drm/card0/card0-HDMI-A-1/status", "connected\n")
    put(tmp_path, f"{PCI}/{GPU}/drm/renderD128/dev", "226:128\n")
    put(tmp_path, f"{PCI}/{GPU}/graphics/fb0/dev", "29:0\n")
    found = used(tmp_path, GPU)
    display = found["display", "card0"]
    assert display.in_use
    assert display.detail == "displays on card0-HDMI-A-1"
    assert "/dev/dri/renderD128" in display.nodes
    assert found["console", GPU].critical


def test_compute_gpu_of_a_private_driver_is_known_by_its_node(tmp_path: Path) -> None:
    build(tmp_path)
    put(
        tmp_path,
        f"proc/driver/nvidia/gpus/{GPU}/information",
        "Model: X\nDevice Minor:  3\n",
    )
    assert used(tmp_path, GPU)["display", "nvidia3"].nodes == ("/dev/nvidia3",)


def test_usb_controller_counts_the_devices_below_hubs_too(tmp_path: Path) -> None:
    build(tmp_path)
    bus = f"{PCI}/{AUDIO}/usb1"
    put(tmp_path, f"{bus}/1-0:1.0/bInterfaceNumber", "00\n")
    put(tmp_path, f"{bus}/1-3/product", "Hub\n")
    put(tmp_path, f"{bus}/1-3/1-3.2/product", "Keyboard\n")
    put(tmp_path, f"{bus}/1-3/1-3.2/1-3.2:1.0/bInterfaceNumber", "00\n")
    assert used(tmp_path, AUDIO)["usb", "usb1"].loss == "loses 2 USB devices (Hub, Keyboard)"


def test_virtual_functions_and_mediated_devices_disappear(tmp_path: Path) -> None:
    build(tmp_path)
    put(tmp_path, f"{PCI}/{GPU}/sriov_numvfs", "16\n")
    uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    put(tmp_path, f"{PCI}/{GPU}/{uuid}/mdev_type/name", "GRID\n")
    put(tmp_path, f"{PCI}/{GPU}/mdev_supported_types/nvidia-1/name", "GRID\n")
    found = used(tmp_path, GPU)
    assert found["sriov", GPU].loss == "its 16 virtual functions disappear"
    assert ("mdev", uuid) in found


def test_bridge_does_not_claim_what_is_below_it(tmp_path: Path) -> None:
    build(tmp_path)
    put(tmp_path, f"{PCI}/{NIC}/0000:01:00.0/net/eth9/operstate", "up\n")
    assert used(tmp_path, NIC) == {}


def test_volume_management_device_owns_the_disks_of_its_domain(tmp_path: Path) -> None:
    build(tmp_path)
    below = f"{PCI}/{NVME}/pci10000:e0/10000:e0:06.0/10000:e1:00.0"
    put(tmp_path, f"{below}/nvme/nvme0/nvme0n1/dev", "259:0\n")
    assert ("disk", "nvme0n1") in used(tmp_path, NVME)


def test_mount_in_the_first_namespace_counts(tmp_path: Path) -> None:
    build(tmp_path)
    add_disk(tmp_path, "")
    put(tmp_path, "proc/1/mountinfo", "1 0 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n")
    assert used(tmp_path, NVME)["disk", "nvme0n1"].critical


def test_openers_are_found_by_node(tmp_path: Path) -> None:
    build(tmp_path)
    tree = FolderTree(str(tmp_path))
    assert openers(tree, ["/dev/sda"]) is None
    put(tmp_path, "proc/12/comm", "dd\n")
    link(tmp_path, "proc/12/fd/1", "/dev/sda")
    link(tmp_path, "proc/12/fd/2", "/dev/null")
    assert openers(tree, ["/dev/sda"]) == (Opener(12, "dd", "/dev/sda"),)
    assert openers(tree, []) == ()


@cache
def capture() -> Tree:
    return umockdev.read(read_file(path_of(DEMO_RECORD)))


def of_capture(bdf: str) -> dict[str, Use]:
    return {use.kind: use for use in uses(capture(), read_topology(capture())[Bdf.parse(bdf)])}


def plan_of_capture(bdf: str) -> Plan:
    return plan(capture(), [Bdf.parse(bdf)])


def test_record_tells_the_disk_and_not_whether_it_is_mounted() -> None:
    disk = of_capture("0000:05:00.0")["disk"]
    assert disk.loss == "loses disk nvme0n1 (Samsung SSD 970 EVO Plus 2TB, 1.8 TiB)"
    assert disk.in_use is None
    raid = of_capture("0000:03:00.0")["disk"]
    assert raid.name == "sda"
    assert "6 partitions" in raid.detail
    assert raid.in_use is None


def test_record_tells_links_bonds_and_the_only_console() -> None:
    assert of_capture("0000:04:00.0")["network"].name == "eno49"
    assert of_capture("0000:01:00.1")["console"].critical
    assert of_capture("0000:00:1a.0")["usb"].detail.startswith("1 USB device")


def test_plan_over_the_record_names_what_the_kernel_would_refuse() -> None:
    physical = plan_of_capture("0000:08:00.0")
    assert "vfs-enabled:0000:08:00.0" in {each.id for each in physical.blockers}
    console = plan_of_capture("0000:01:00.1")
    assert "console:0000:01:00.1" in {each.id for each in console.blockers}
    disk = plan_of_capture("0000:05:00.0")
    assert disk.targets[0].group == 37
    assert [step.do.action.value for step in disk.steps] == ["set-override", "unbind", "bind"]
    assert any("nvme0n1" in warning for warning in disk.warnings)
