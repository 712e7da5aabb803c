"""Container, group and DMA memory on the fake host."""

from __future__ import annotations

import errno

import pytest
from vfio_fake import BDF, GROUP, PAGE, FakeHost

from vfiokit.abi import iommufd
from vfiokit.abi import vfio as abi
from vfiokit.errors import (
    DeviceBusyError,
    DeviceNotFoundError,
    GroupNotViableError,
    IovaConflictError,
    KernelError,
    UsageError,
)
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Container, IommuType, IovaRange
from vfiokit.vfio.failure import _HINTS
from vfiokit.vfio.group import Group, group_number


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def space(host: FakeHost):
    with Container.open(host) as container:
        container.attach(GROUP)
        yield container


def test_every_hint_names_an_operation_that_exists() -> None:
    plain = {"open", "read", "write", "mmap"}
    known = {*dir(abi), *dir(iommufd), *plain}
    assert {name for name, _ in _HINTS} <= known


def test_first_group_chooses_type1v2(host: FakeHost, space: Container) -> None:
    assert host.iommu == IommuType.TYPE1V2
    assert space.iommu_type is IommuType.TYPE1V2
    assert space.iova_ranges == tuple(IovaRange(*pair) for pair in host.iova_ranges)


def test_kernel_without_v2_gets_type1() -> None:
    host = FakeHost(extensions={1})
    with Container.open(host) as container:
        container.attach(GROUP)
        assert host.iommu == IommuType.TYPE1


def test_type_that_the_kernel_lacks_is_enodev_and_leaves_nothing_open() -> None:
    host = FakeHost(extensions={1})
    with Container.open(host, IommuType.TYPE1V2) as container, pytest.raises(KernelError) as caught:
        container.attach(GROUP)
    assert caught.value.errno == errno.ENODEV
    assert host.open_fds == {}


def test_allocation_is_mapped_zeroed_and_unmapped_on_close(host, space) -> None:
    with space.allocate(5000) as buffer:
        assert host.mappings == {buffer.iova: (2 * PAGE, buffer.vaddr)}
        assert buffer.length == len(buffer) == len(buffer.view) == 2 * PAGE
        assert not any(buffer.view)
        assert buffer.iova
    assert host.mappings == {}
    assert buffer.closed
    with pytest.raises(UsageError):
        _ = buffer.view


def test_allocation_respects_max_iova(space: Container) -> None:
    limit = (1 << 28) - 1
    buffers = [space.allocate(PAGE, max_iova=limit) for _ in range(5)]
    assert all(buffer.iova + buffer.length - 1 <= limit for buffer in buffers)
    assert len({buffer.iova for buffer in buffers}) == 5


def test_allocation_never_lands_in_a_hole_of_the_ranges() -> None:
    host = FakeHost(iova_ranges=[(0, 3 * PAGE - 1), (8 * PAGE, 20 * PAGE - 1)])
    with Container.open(host) as space:
        space.attach(GROUP)
        assert space.allocate(2 * PAGE).iova == PAGE
        assert space.allocate(2 * PAGE).iova == 8 * PAGE


def test_large_mappings_are_aligned_for_large_pages(space: Container) -> None:
    space.allocate(PAGE)
    memory = space._kernel.allocate(1 << 21)
    assert space.map(memory.vaddr, 1 << 21) % (1 << 21) == 0


def test_fixed_iova_that_is_taken_names_the_mapping_in_its_way(space: Container) -> None:
    space.allocate(4 * PAGE, iova=0x10000)
    with pytest.raises(IovaConflictError) as caught:
        space.allocate(PAGE, iova=0x12000)
    assert caught.value.errno == errno.EEXIST
    assert "0x10000" in str(caught.value)
    assert caught.value.hint
    assert list(space.mappings) == [0x10000]


def test_memlock_limit_is_enomem_with_a_hint_and_gives_the_iova_back() -> None:
    host = FakeHost(memlock_bytes=2 * PAGE)
    with Container.open(host) as space:
        space.attach(GROUP)
        first = space.allocate(2 * PAGE)
        with pytest.raises(KernelError) as caught:
            space.allocate(PAGE)
        assert caught.value.errno == errno.ENOMEM
        assert "RLIMIT_MEMLOCK" in caught.value.hint
        iova = first.iova
        first.close()
        assert space.allocate(PAGE).iova == iova


def test_failed_fixed_map_outside_the_ranges_leaves_the_allocator_alone(space) -> None:
    with pytest.raises(KernelError) as caught:
        space.allocate(PAGE, iova=1 << 40)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(KernelError):
        space.allocate(PAGE, iova=0xFEE00000)
    assert space._allocator.holes()[-1][1] == 1 << 39


def test_unmap_of_nothing_is_enoent_and_of_a_part_einval(space: Container) -> None:
    buffer = space.allocate(2 * PAGE)
    with pytest.raises(KernelError) as caught:
        space.unmap(buffer.iova, PAGE)
    assert caught.value.errno == errno.EINVAL
    space.unmap(buffer.iova, 2 * PAGE)
    with pytest.raises(KernelError) as caught:
        space.unmap(buffer.iova, 2 * PAGE)
    assert caught.value.errno == errno.ENOENT
    buffer.close()


@pytest.mark.parametrize("extensions", [{1, 3, abi.VFIO_UNMAP_ALL}, {1, 3}])
def test_unmap_all_frees_every_iova(extensions: set[int]) -> None:
    host = FakeHost(extensions=extensions)
    with Container.open(host) as space:
        space.attach(GROUP)
        buffers = [space.allocate(PAGE) for _ in range(3)]
        space.unmap_all()
        assert host.mappings == {} == space.mappings
        assert space.allocate(PAGE).iova == buffers[0].iova


def test_closing_the_container_frees_forgotten_buffers(host: FakeHost) -> None:
    container = Container.open(host)
    container.attach(GROUP)
    buffer = container.allocate(PAGE)
    container.close()
    container.close()
    assert buffer.closed
    assert host.open_fds == {}
    assert host.closed_order == ["group", "container"]


def test_buffer_with_a_living_slice_cannot_be_freed_but_is_unmapped(host, space) -> None:
    buffer = space.allocate(PAGE)
    piece = buffer.view[:10]
    with pytest.raises(BufferError):
        buffer.close()
    assert host.mappings == {}
    piece[0] = 7
    del piece
    buffer.close()
    assert buffer.closed


def test_two_users_of_one_group_share_it_until_the_last(host, space) -> None:
    again = space.attach(GROUP)
    space.detach(again)
    assert host.attached
    buffer = space.allocate(PAGE)
    space.detach(again)
    assert not host.attached
    assert buffer.closed
    with pytest.raises(UsageError):
        space.allocate(PAGE)


def test_container_without_a_group_is_no_address_space(host: FakeHost) -> None:
    with Container.open(host) as container, pytest.raises(UsageError):
        container.allocate(PAGE)


def test_forgotten_container_warns(host: FakeHost) -> None:
    container = Container.open(host)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del container


def test_group_with_host_drivers_names_them() -> None:
    members = {BDF: "vfio-pci", "0000:00:04.1": "snd_hda_intel", "0000:00:01.0": "pcieport"}
    host = FakeHost(members=members)
    with Container.open(host) as container, pytest.raises(GroupNotViableError) as caught:
        container.attach(GROUP)
    assert caught.value.blockers == {"0000:00:04.1": "snd_hda_intel"}
    assert host.open_fds == {}


def test_group_that_is_open_already_is_busy(host: FakeHost) -> None:
    Group.open(host, GROUP)
    with Container.open(host) as container, pytest.raises(DeviceBusyError):
        container.attach(GROUP)


def test_group_without_a_node_hints_at_vfio_pci(host: FakeHost) -> None:
    with pytest.raises(KernelError, match="/dev/vfio/8") as caught:
        Group.open(host, 8)
    assert "vfio-pci" in caught.value.hint


def test_group_number_of_an_unknown_function_is_not_found(host: FakeHost) -> None:
    assert group_number(host.tree, Bdf.parse(BDF)) == GROUP
    with pytest.raises(DeviceNotFoundError):
        group_number(host.tree, Bdf.parse("0000:00:1f.0"))
