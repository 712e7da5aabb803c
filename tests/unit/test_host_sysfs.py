"""The topology of a host from its sysfs: the recorded server, odd places, missing files."""

from __future__ import annotations

from collections import Counter

import pytest

from vfiokit.errors import SourceError
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import RecordedTree, Tree
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import HostBridge, Recorded, Topology

VF = Bdf.parse("0000:08:00.4")
PF = Bdf.parse("0000:08:00.0")
NVME = Bdf.parse("0000:05:00.0")


class Mutable:
    """A tree that may change, over one that does not."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def read(self, path: str) -> bytes:
        return self.tree.read(path)

    def list(self, path: str) -> list[str]:
        return self.tree.list(path)

    def readlink(self, path: str) -> str:
        return self.tree.readlink(path)

    def exists(self, path: str) -> bool:
        return self.tree.exists(path)


@pytest.fixture(scope="module")
def server() -> Topology:
    return read_topology(open_tree("demo"))


def function_files(folder: str, **attributes: str) -> dict[str, bytes]:
    """Attribute files of a function below /sys/devices."""
    return {f"/sys/devices/{folder}/{name}": text.encode() for name, text in attributes.items()}


def function_link(folder: str) -> dict[str, str]:
    name = folder.rpartition("/")[2]
    return {f"/sys/bus/pci/devices/{name}": f"../../../devices/{folder}"}


def test_recorded_server_has_the_documented_size(server: Topology) -> None:
    assert len(server) == 226
    assert Counter(len(function.config) for function in server) == {4096: 77, 256: 149}
    assert len({function.recorded.iommu_group for function in server}) == 106
    assert len(server.virtual_functions(server[PF])) == 16


def test_root_buses_come_from_the_real_paths(server: Topology) -> None:
    assert server.host_bridges == tuple(HostBridge(0, bus) for bus in (0x00, 0x7F, 0x80, 0xFF))


def test_identity_of_a_vf_comes_from_its_files(server: Topology) -> None:
    assert server[VF].config.u32(0) == 0xFFFFFFFF
    identity = server[VF].identity
    assert (identity.vendor_id, identity.device_id) == (0x10DE, 0x25B6)
    assert identity.class_code == 0x030200
    assert server[VF].physfn == PF


def test_recorded_facts_of_the_nvme_drive(server: Topology) -> None:
    assert server[NVME].recorded == Recorded(
        driver="nvme",
        iommu_group=37,
        numa_node=0,
        irq=16,
        reset_methods=("flr", "bus"),
        current_link_speed="8.0 GT/s PCIe",
        current_link_width=4,
        max_link_speed="8.0 GT/s PCIe",
        max_link_width=4,
        power_state="D0",
        enabled=True,
        driver_override=None,
        names={
            "vendor": "Samsung Electronics Co Ltd",
            "device": "NVMe SSD Controller SM981/PM981/PM983 (SSD 970 EVO Plus 1TB)",
            "class": "Non-Volatile memory controller",
        },
    )


def test_resources_are_the_ranges_the_kernel_assigned(server: Topology) -> None:
    bar = server[NVME].resources[0]
    assert (bar.index, bar.size, bar.start) == (0, 0x4000, 0x94700000)
    assert server[NVME].resources[1].size == 0
    assert len(server[PF].resources) == 13


def test_unknown_links_are_no_facts(server: Topology) -> None:
    integrated = server[Bdf.parse("0000:80:05.2")].recorded
    assert (integrated.current_link_speed, integrated.max_link_width) == (None, None)


def test_tree_that_can_change_is_read_at_once(server: Topology) -> None:
    mutable = Mutable(open_tree("demo"))
    topology = read_topology(mutable)
    mutable.tree = RecordedTree({}, {})
    for function in topology:
        same = server[function.bdf]
        assert function.config == same.config
        assert function.identity == same.identity
        assert function.resources == same.resources
        assert function.recorded == same.recorded
        assert function.physfn == same.physfn


@pytest.mark.parametrize(
    ("folder", "bridge"),
    [
        ("pci0000:00/0000:00:01.0", HostBridge(0, 0)),
        ("platform/40000000.pcie/pci0001:00/0001:00:00.0", HostBridge(1, 0)),
        ("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0", HostBridge(0x10000, 0xE0)),
        ("LNXSYSTM:00/VMBUS:00/47505500-0001/pci74f5:00/74f5:00:02.0", HostBridge(0x74F5, 0)),
        ("pcib:00/0000:03:00.0", HostBridge(0, 3)),  # nothing told: its own bus
    ],
)
def test_host_bridges_are_found_wherever_they_hang(folder: str, bridge: HostBridge) -> None:
    tree = RecordedTree(function_files(folder, vendor="0x8086\n"), function_link(folder))
    assert read_topology(tree).host_bridges == (bridge,)


def test_missing_files_leave_facts_unknown() -> None:
    folder = "pci0000:00/0000:00:01.0"
    tree = RecordedTree(function_files(folder, irq="x\n", numa_node="-1\n"), function_link(folder))
    function = read_topology(tree)[Bdf(0, 0, 1, 0)]
    assert function.recorded == Recorded()
    assert function.resources == ()
    assert len(function.config) == 0
    assert function.identity.vendor_id == 0xFFFF
    assert function.physfn is None


def test_config_without_attribute_files_still_identifies() -> None:
    folder = "pci0000:00/0000:00:01.0"
    config = bytes.fromhex("8680fb1000000000010000020000000000") + bytes(47)
    tree = RecordedTree({f"/sys/devices/{folder}/config": config}, function_link(folder))
    identity = read_topology(tree)[Bdf(0, 0, 1, 0)].identity
    assert (identity.vendor_id, identity.device_id, identity.class_code) == (
        0x8086,
        0x10FB,
        0x020000,
    )


def test_garbage_in_attributes_is_no_crash() -> None:
    folder = "pci0000:00/0000:00:01.0"
    junk = "\0\udcff one two\n"
    names = (
        "vendor device class revision resource irq numa_node reset_method enable power_state "
        "current_link_speed current_link_width driver_override uevent config"
    )
    files = {
        f"/sys/devices/{folder}/{name}": junk.encode("utf-8", "surrogateescape")
        for name in names.split()
    }
    links = function_link(folder) | {
        f"/sys/devices/{folder}/{name}": "../../what/ever" for name in ("iommu_group", "physfn")
    }
    function = read_topology(RecordedTree(files, links))[Bdf(0, 0, 1, 0)]
    assert function.recorded.iommu_group is None
    assert function.recorded.irq is None
    assert function.physfn is None
    assert function.resources == ()


def test_names_that_are_no_addresses_are_left_out() -> None:
    tree = RecordedTree({"/sys/bus/pci/devices/not-a-bdf/vendor": b"0x8086\n"}, {})
    assert len(read_topology(tree)) == 0


def test_host_without_pci_is_an_empty_topology() -> None:
    assert len(read_topology(RecordedTree({"/proc/version": b""}, {}))) == 0


def test_unreadable_device_folder_is_a_source_error() -> None:
    class Locked(Mutable):
        def list(self, path: str) -> list[str]:
            raise PermissionError(13, "Permission denied", path)

    with pytest.raises(SourceError, match="/sys/bus/pci/devices: Permission denied"):
        read_topology(Locked(RecordedTree({}, {})))


def test_unreadable_files_do_not_hide_the_function() -> None:
    class Broken(Mutable):
        def read(self, path: str) -> bytes:
            raise OSError(5, "Input/output error", path)

    topology = read_topology(Broken(open_tree("demo")))
    assert len(topology) == 226
    assert topology[NVME].recorded.driver == "nvme"
    assert topology[NVME].recorded.irq is None
