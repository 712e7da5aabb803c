"""The twin of a recorded server."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest
from kernel_host import refuses

from vfiokit.errors import UsageError
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import RecordedTree
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.port import Bridge
from vfiokit.machine.twin import Twin, build_twin
from vfiokit.pci.address import Bdf

DRIVE = Bdf.parse("0000:05:00.0")
DRIVE_GROUP = 37
GPU, FIRST_VF = Bdf.parse("0000:08:00.0"), Bdf.parse("0000:08:00.4")


@pytest.fixture
def twin() -> Twin:
    return build_twin(open_tree("demo"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Twin]:
    """For tests that change nothing."""
    made = build_twin(open_tree("demo"))
    before = made.kernel.snapshot()
    yield made
    assert made.kernel.snapshot() == before


def unbind(kernel: SoftwareKernel, bdf: Bdf) -> None:
    kernel.tree.write(f"/sys/bus/pci/devices/{bdf}/driver/unbind", str(bdf).encode())


def bind(kernel: SoftwareKernel, bdf: Bdf, driver: str) -> None:
    kernel.tree.write(f"/sys/bus/pci/devices/{bdf}/driver_override", driver.encode())
    kernel.tree.write(f"/sys/bus/pci/drivers/{driver}/bind", str(bdf).encode())
    kernel.tree.write(f"/sys/bus/pci/devices/{bdf}/driver_override", b"\n")


def test_twin_shows_the_topology_of_the_capture(shared: Twin) -> None:
    recorded, alive = read_topology(open_tree("demo")), shared.topology()
    assert len(alive) == 226
    assert alive.host_bridges == recorded.host_bridges
    for function in recorded:
        other = alive[function.bdf]
        assert other.config == function.config, function.bdf
        assert other.identity == function.identity
        assert other.resources == function.resources
        assert other.physfn == function.physfn
        assert other.recorded == function.recorded


def test_every_recorded_file_and_link_is_there_unchanged(shared: Twin) -> None:
    tree = open_tree("demo")
    assert isinstance(tree, RecordedTree)
    shown = shared.kernel.snapshot()
    wanted: dict[str, bytes | str] = {**dict(tree.files()), **dict(tree.links())}
    changed = {path for path, content in wanted.items() if shown.get(path) != content}
    assert changed == {"/dev/vfio/vfio"}  # a file in the record, a device here


def test_machine_has_the_hierarchy_of_the_capture(shared: Twin) -> None:
    fabric, topology = shared.machine.fabric, shared.topology()
    for function in topology:
        model = fabric.functions[function.bdf]
        assert isinstance(model, Bridge) is function.is_bridge
        path = [bridge.bdf for bridge in fabric.root_path(model)]
        assert path == [bridge.bdf for bridge in topology.path_to_root(function)]
    assert {str(each) for each in fabric.host_bridges.values()} == {
        str(each) for each in topology.host_bridges
    }


def test_each_host_bridge_has_the_iommu_that_its_functions_named(shared: Twin) -> None:
    units = {str(b): b.iommu.name for b in shared.machine.fabric.host_bridges.values() if b.iommu}
    tree = open_tree("demo")
    for bdf in (DRIVE, GPU):
        name = tree.readlink(f"/sys/bus/pci/devices/{bdf}/iommu").rpartition("/")[2]
        bridge = shared.topology().host_bridge_of(shared.topology()[bdf])
        assert units[str(bridge)] == name
    assert len(shared.machine.iommus) == 2


def test_groups_are_those_the_kernel_recorded(shared: Twin) -> None:
    recorded = read_topology(open_tree("demo"))
    for function in recorded:
        assert shared.kernel.device(function.bdf).group == function.recorded.iommu_group


def test_the_drive_is_a_working_controller_of_its_size(shared: Twin) -> None:
    model = shared.machine.functions[DRIVE]
    assert isinstance(model, NvmeFunction)
    assert model.bar_address(0) == 0x94700000
    assert model.bars[0].size == 0x4000


def test_ram_lies_above_every_captured_range(shared: Twin) -> None:
    ends = [res.end for function in shared.topology() for res in function.resources]
    assert shared.machine.memory.base > max(ends)


@pytest.mark.slow
def test_building_takes_at_most_half_a_second() -> None:
    tree = open_tree("demo")
    best = min(_seconds(tree) for _ in range(3))
    assert best <= 0.5


def _seconds(tree: object) -> float:
    start = time.perf_counter()
    build_twin(tree)  # type: ignore[arg-type]
    return time.perf_counter() - start


def test_progress_counts_every_function() -> None:
    seen: list[tuple[int, int]] = []
    build_twin(open_tree("demo"), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 226) for number in range(1, 227)]


def test_unbinding_the_drive_takes_its_folders_and_links_away(twin: Twin) -> None:
    tree, device = twin.kernel.tree, f"/sys/bus/pci/devices/{DRIVE}"
    links = [
        "/sys/class/nvme/nvme0",
        "/sys/block/nvme0n1",
        "/sys/class/block/nvme0n1",
        "/sys/class/hwmon/hwmon0",
        "/sys/dev/block/259:0",
    ]
    assert all(tree.exists(link) for link in links)
    unbind(twin.kernel, DRIVE)
    for gone in (*links, f"{device}/nvme", f"{device}/msi_irqs", f"{device}/driver"):
        with refuses(errno.ENOENT):
            tree.lookup(gone, follow=False)
    assert tree.exists(f"{device}/power/control")
    assert b"DRIVER=" not in tree.read(f"{device}/uevent")
    assert tree.read(f"{device}/enable") == b"0\n"


def test_rebinding_the_drive_restores_every_byte(twin: Twin) -> None:
    before = twin.kernel.snapshot()
    unbind(twin.kernel, DRIVE)
    assert twin.kernel.snapshot() != before
    bind(twin.kernel, DRIVE, "nvme")
    assert twin.kernel.snapshot() == before


def test_a_whole_assignment_leaves_no_trace(twin: Twin) -> None:
    kernel = twin.kernel
    before = kernel.snapshot()
    unbind(kernel, DRIVE)
    bind(kernel, DRIVE, "vfio-pci")
    group, container = kernel.open(f"/dev/vfio/{DRIVE_GROUP}"), kernel.open("/dev/vfio/vfio")
    kernel.ioctl(group, 0x3B68, bytearray(container.to_bytes(4, "little")))
    kernel.ioctl(container, 0x3B66, 3)
    device = kernel.ioctl(group, 0x3B6A, bytearray(f"{DRIVE}\0".encode()))
    kernel.pwrite(device, b"\x06\x00", (7 << 40) + 4)
    registers = kernel.mmap(device, 0x4000, 0)
    assert registers.read32(8) == 0x00010400  # NVMe version 1.4: the model answers
    registers.close()
    for fd in (device, group, container):
        kernel.close(fd)
    unbind(kernel, DRIVE)
    bind(kernel, DRIVE, "nvme")
    assert kernel.snapshot() == before


def test_a_bound_vf_can_be_opened_and_its_bars_answer(twin: Twin) -> None:
    kernel = twin.kernel
    number = kernel.device(FIRST_VF).group
    if kernel.device(FIRST_VF).driver is not None:
        unbind(kernel, FIRST_VF)
    bind(kernel, FIRST_VF, "vfio-pci")
    group, container = kernel.open(f"/dev/vfio/{number}"), kernel.open("/dev/vfio/vfio")
    kernel.ioctl(group, 0x3B68, bytearray(container.to_bytes(4, "little")))
    kernel.ioctl(container, 0x3B66, 3)
    device = kernel.ioctl(group, 0x3B6A, bytearray(f"{FIRST_VF}\0".encode()))
    assert kernel.pread(device, 2, 7 << 40) == b"\xde\x10"
    assert int.from_bytes(kernel.pread(device, 2, (7 << 40) + 4), "little") & 2
    assert kernel.pread(device, 4, 0) == bytes(4)
    with refuses(errno.EBUSY):  # a PF whose VFs are enabled cannot be taken
        unbind(kernel, GPU)
        bind(kernel, GPU, "vfio-pci")


@pytest.mark.parametrize("bdf", ["0000:03:00.0", "0000:00:1f.3", "0000:08:00.0"])
def test_any_bound_function_goes_and_comes_back(twin: Twin, bdf: str) -> None:
    address = Bdf.parse(bdf)
    driver = twin.kernel.device(address).driver
    assert driver is not None
    before = twin.kernel.snapshot()
    unbind(twin.kernel, address)
    bind(twin.kernel, address, driver)
    assert twin.kernel.snapshot() == before


def test_a_function_recorded_on_vfio_pci_can_be_opened_at_once() -> None:
    recorded = open_tree("demo")
    assert isinstance(recorded, RecordedTree)
    links = {
        path: target.replace("/drivers/nvme", "/drivers/vfio-pci")
        for path, target in recorded.links()
        if "/nvme/" not in path
    }
    twin = build_twin(RecordedTree(dict(recorded.files()), links))
    assert twin.topology()[DRIVE].recorded.driver == "vfio-pci"
    group = twin.kernel.open(f"/dev/vfio/{DRIVE_GROUP}")
    twin.kernel.close(group)
    unbind(twin.kernel, DRIVE)
    assert twin.topology()[DRIVE].recorded.driver is None


def test_a_host_recorded_without_iommu_gets_one_to_rehearse_on() -> None:
    recorded = open_tree("demo")
    assert isinstance(recorded, RecordedTree)
    files = {
        path: data
        for path, data in recorded.files()
        if path.startswith(("/sys/devices/pci", "/sys/bus/pci"))
    }
    links = {
        path: target
        for path, target in recorded.links()
        if path.startswith(("/sys/devices/pci", "/sys/bus/pci"))
        and not path.endswith(("/iommu", "/iommu_group"))
    }
    twin = build_twin(RecordedTree(files, links))
    assert [unit.name for unit in twin.machine.iommus] == ["dmar0"]
    group = twin.topology()[DRIVE].recorded.iommu_group
    assert group is not None
    assert twin.kernel.tree.list(f"/sys/kernel/iommu_groups/{group}/devices") == [str(DRIVE)]


def test_a_capture_made_without_privilege_still_builds() -> None:
    recorded = open_tree("demo")
    assert isinstance(recorded, RecordedTree)
    files = {
        path: data[:64] if path.endswith("/config") else data for path, data in recorded.files()
    }
    twin = build_twin(RecordedTree(files, dict(recorded.links())))
    assert len(twin.kernel.tree.read(f"/sys/bus/pci/devices/{DRIVE}/config")) == 64
    unbind(twin.kernel, DRIVE)
    bind(twin.kernel, DRIVE, "vfio-pci")


def test_a_recording_without_pci_is_refused() -> None:
    with pytest.raises(UsageError, match="no PCI function"):
        build_twin(RecordedTree({"/sys/kernel/x": b""}, {}))
