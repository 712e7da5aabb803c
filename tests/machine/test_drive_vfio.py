"""Containers, groups, devices and interrupts against the software machine's kernel."""

from __future__ import annotations

import errno

import pytest
from drive_rig import BDF, Rig

from vfiokit.driver.edu import Edu
from vfiokit.driver.nvme import NvmeController
from vfiokit.errors import (
    DeviceBusyError,
    GroupNotViableError,
    IovaConflictError,
    KernelError,
)
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import root_port
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import capabilities
from vfiokit.vfio import Container, open_device
from vfiokit.vfio.group import group_number
from vfiokit.vfio.hot_reset import AffectedFunction


@pytest.fixture
def rig():
    with Rig(NvmeFunction.synthetic) as made:
        yield made


def test_info_regions_and_interrupts_are_those_of_the_function(rig) -> None:
    device = rig.device
    assert device.can_reset
    assert {region.index for region in device.regions} == {0, 7}
    assert device.region(0).size == rig.function.bars[0].size
    assert device.region(0).msix_mappable
    assert device.msix.count == rig.function.msix.count
    assert device.intx.count == 1
    space = device.config.snapshot()
    assert len(space) == 4096
    assert capabilities(space).find(0x11) is not None


def test_mapping_and_system_call_read_the_same_register(rig) -> None:
    region = rig.device.region(0)
    assert region.map().read32(8) == region.read32(8) == 0x00010400


def test_second_opener_is_busy(rig) -> None:
    with pytest.raises(DeviceBusyError):
        open_device(rig.kernel, BDF)


def test_everything_is_given_back_on_close() -> None:
    rig = Rig(NvmeFunction.synthetic)
    for _ in range(3):
        with open_device(rig.kernel, BDF) as device:
            device.address_space.allocate(1 << 20)
            device.msix.enable(4)
            device.region(0).map()


def test_group_whose_function_left_vfio_has_no_node() -> None:
    rig = Rig(NvmeFunction.synthetic)
    tree = rig.kernel.tree
    device = f"/sys/bus/pci/devices/{BDF}"
    number = group_number(tree, BDF)
    tree.write(f"{device}/driver/unbind", str(BDF).encode())
    with pytest.raises(KernelError) as caught:
        open_device(rig.kernel, BDF)
    assert caught.value.errno == errno.ENOENT
    assert f"/dev/vfio/{number}" in str(caught.value)


def test_conflict_and_limits_are_the_kernel_s(rig) -> None:
    space = rig.device.address_space
    with space.allocate(8192, iova=0x10000), pytest.raises(IovaConflictError, match="0x10000"):
        space.allocate(4096, iova=0x11000)
    with pytest.raises(KernelError) as caught:
        space.allocate(4096, iova=0xFEE00000)
    assert caught.value.errno == errno.EINVAL


def test_memory_lock_limit_is_enomem_with_a_hint() -> None:
    rig = Rig(EduFunction, locked_limit=64 << 10)
    with rig:
        space = rig.device.address_space
        space.allocate(32 << 10)
        with pytest.raises(KernelError) as caught:
            space.allocate(64 << 10)
        assert caught.value.errno == errno.ENOMEM
        assert "RLIMIT_MEMLOCK" in caught.value.hint


def test_unmapped_buffer_is_out_of_the_device_s_reach() -> None:
    with Rig(EduFunction) as rig, Edu(rig.device) as edu:
        buffer = edu.allocate()
        buffer.view[:4] = b"data"
        edu.to_device(buffer.iova, 4)
        iova = buffer.iova
        before = rig.machine.counters()["dmar0_faults"]
        buffer.close()
        edu.from_device(iova, 4)
        assert rig.machine.counters()["dmar0_faults"] == before + 1


def test_shared_container_shows_one_buffer_to_both_of_its_users(rig) -> None:
    rig.device.close()
    with Container.open(rig.kernel) as space:
        with open_device(rig.kernel, BDF, address_space=space) as first:
            buffer = first.address_space.allocate(4096)
            with open_device(rig.kernel, BDF, address_space=space) as second:
                assert second.address_space is space
            assert space.mappings == {buffer.iova: 4096}
        assert buffer.closed


def test_loopback_trigger(rig) -> None:
    with rig.device.msix.enable(4) as vectors:
        rig.device.msix.trigger(2)
        assert [vector.poll() for vector in vectors] == [0, 0, 1, 0]


def test_kinds_of_interrupts_exclude_each_other(rig) -> None:
    with rig.device.msix.enable(1), pytest.raises(KernelError) as caught:
        rig.device.intx.enable(1)
    assert caught.value.errno == errno.EINVAL
    rig.device.intx.enable(1)
    rig.device.intx.disable()


def test_pin_is_unmasked_by_the_resample_descriptor() -> None:
    with Rig(EduFunction) as rig:
        device = rig.device
        registers = device.region(0)
        with device.intx.enable(1) as (vector,):
            fd = device.intx.resample_fd()
            for bits in (1, 2):
                registers.write32(0x60, bits)
                assert vector.wait(1) == 1
                registers.write32(0x64, bits)
                rig.kernel.eventfd_write(fd)
                # The kernel takes the counter when it next runs.
                registers.read32(0x24)


def test_reset_clears_the_command_register_but_for_what_vfio_keeps(rig) -> None:
    rig.device.set_bus_master(True)
    rig.device.region(0).write32(0x24, 0x00010001)
    rig.device.reset()
    assert rig.device.region(0).read32(0x24) == 0


def test_hot_reset_is_refused_where_there_is_no_bus_to_reset(rig) -> None:
    with pytest.raises(KernelError) as caught:
        rig.device.hot_reset_affects()
    assert caught.value.errno == errno.ENODEV


def test_features_that_the_device_lacks(rig) -> None:
    assert not rig.device.features.probe(1, get=True)


# -- two functions below one root port ------------------------------------------------------

FIRST, SECOND = Bdf.parse("0000:01:00.0"), Bdf.parse("0000:01:00.1")


def two_functions(groups: dict[Bdf, int], *, second_on_vfio: bool = True) -> SoftwareKernel:
    """Two NVMe controllers of one slot; ``nvme`` keeps the second unless it is on vfio-pci."""
    machine = Machine(ram=64 << 20)
    machine.add_host_bridge(iommu=machine.add_iommu())
    machine.add(root_port(Bdf.parse("0000:00:01.0"), 1, window=(0xE000_0000, 0xE010_0000)))
    for number, bdf in enumerate((FIRST, SECOND)):
        function = machine.add(NvmeFunction.synthetic(bdf, vectors=3))
        function.config_write(0x10, 4, 0xE000_0000 + number * function.bars[0].size)
        function.config_write(0x14, 4, 0)
        function.config_write(0x04, 2, 0x0002)
    machine.functions[Bdf.parse("0000:00:01.0")].config_write(0x04, 2, 0x0006)
    kernel = SoftwareKernel(machine, groups=groups)
    for bdf in (FIRST, SECOND) if second_on_vfio else (FIRST,):
        folder = f"/sys/bus/pci/devices/{bdf}"
        if kernel.tree.exists(f"{folder}/driver"):
            kernel.tree.write(f"{folder}/driver/unbind", str(bdf).encode())
        kernel.tree.write(f"{folder}/driver_override", b"vfio-pci")
        kernel.tree.write("/sys/bus/pci/drivers_probe", str(bdf).encode())
    return kernel


def test_group_with_a_host_driver_names_function_and_driver() -> None:
    kernel = two_functions({FIRST: 4, SECOND: 4}, second_on_vfio=False)
    with pytest.raises(GroupNotViableError) as caught:
        open_device(kernel, FIRST)
    assert caught.value.blockers == {str(SECOND): "nvme"}


def test_two_devices_of_one_group_share_a_container() -> None:
    kernel = two_functions({FIRST: 4, SECOND: 4})
    with (
        Container.open(kernel) as space,
        open_device(kernel, FIRST, address_space=space) as first,
        open_device(kernel, SECOND, address_space=space) as second,
        NvmeController(first) as one,
        NvmeController(second) as other,
        space.allocate(4096) as buffer,
    ):
        buffer.view[:] = b"\x37" * 4096
        one.namespace(1).write(0, 8, buffer)
        other.namespace(1).write(8, 8, buffer)
        assert one.namespace(1).read_bytes(0, 8) == other.namespace(1).read_bytes(8, 8)


def test_hot_reset_takes_the_whole_bus_when_all_of_it_is_owned() -> None:
    kernel = two_functions({FIRST: 4, SECOND: 5})
    with (
        Container.open(kernel) as space,
        open_device(kernel, FIRST, address_space=space) as first,
    ):
        assert set(first.hot_reset_affects()) == {
            AffectedFunction(FIRST, 4),
            AffectedFunction(SECOND, 5),
        }
        with pytest.raises(KernelError, match=str(SECOND)) as caught:
            first.hot_reset()
        assert caught.value.errno == errno.EINVAL
        with open_device(kernel, SECOND, address_space=space) as second:
            second.region(0).write32(0x24, 0x00010001)
            first.hot_reset()
            assert second.region(0).read32(0x24) == 0
