"""iommufd, address spaces, page tables and fault queues on the fake host."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iommufd_answers import ALONE, ATTACHED, alone, attached
from iommufd_fake import BDF, PAGE, IommufdHost

from vfiokit.abi import iommufd as abi
from vfiokit.errors import FormatError, IovaConflictError, KernelError, UsageError
from vfiokit.vfio import (
    CdevBackend,
    Device,
    FaultQueue,
    Hwpt,
    Ioas,
    Iommufd,
    IovaRange,
    hardware_info,
    open_device,
)
from vfiokit.vfio.fault import decode_faults, encode_response

EVERYTHING = (1 << 64) - 1


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


@pytest.fixture
def iommufd(host: IommufdHost):
    with Iommufd.open(host) as opened:
        yield opened


@pytest.fixture
def space(iommufd: Iommufd):
    with Ioas.create(iommufd) as made:
        yield made


@pytest.fixture
def device(host: IommufdHost, space: Ioas):
    with open_device(host, BDF, address_space=space) as opened:
        yield opened


def number_of(device: Device) -> int:
    assert isinstance(device.backend, CdevBackend)
    return device.backend.cdev.device_id


# -- the same answers as a real kernel ------------------------------------------------------


def test_ioas_without_a_device_answers_as_linux_does(host: IommufdHost) -> None:
    assert alone(host, BDF) == ALONE
    assert host.open_fds == {}


def test_ioas_with_a_device_answers_as_linux_does() -> None:
    host = IommufdHost(tracks_dirty=False)
    assert attached(host, BDF) == ATTACHED
    assert host.open_fds == {}


# -- iommufd --------------------------------------------------------------------------------


def test_kernel_without_iommufd_is_enoent_with_a_hint() -> None:
    with pytest.raises(KernelError, match="/dev/iommu") as caught:
        Iommufd.open(IommufdHost(has_iommufd=False))
    assert caught.value.errno == errno.ENOENT
    assert "iommufd" in caught.value.hint


def test_request_that_the_kernel_lacks_says_so(iommufd: Iommufd) -> None:
    with pytest.raises(KernelError) as caught:
        iommufd.request("IOMMU_VDEVICE_ALLOC", abi.iommu_vdevice_alloc())
    assert caught.value.errno == errno.ENOTTY
    assert "does not have" in caught.value.hint


def test_fields_beyond_an_older_kernel_s_struct_are_e2big_with_a_hint() -> None:
    class Old:
        def ioctl(self, fd: int, request: int, argument: bytearray) -> int:
            raise OSError(errno.E2BIG, "too big")

        def close(self, fd: int) -> None:
            pass

    with Iommufd(Old(), 3) as iommufd, pytest.raises(KernelError) as caught:
        iommufd.request("IOMMU_HWPT_ALLOC", abi.iommu_hwpt_alloc())
    assert "older" in caught.value.hint


def test_size_of_every_request_is_filled_in(iommufd: Iommufd) -> None:
    made = iommufd.request("IOMMU_IOAS_ALLOC", abi.iommu_ioas_alloc())
    assert made.size == abi.iommu_ioas_alloc.SIZE
    iommufd.destroy(made.out_ioas_id)


def test_container_ioas_can_be_set_and_cleared(iommufd: Iommufd, space: Ioas) -> None:
    iommufd.set_container_ioas(space.id)
    assert iommufd.container_ioas_id == space.id
    iommufd.set_container_ioas(None)
    assert iommufd.container_ioas_id is None


def test_closed_iommufd_refuses_further_use(host: IommufdHost) -> None:
    iommufd = Iommufd.open(host)
    space = Ioas.create(iommufd)
    iommufd.close()
    iommufd.close()
    with pytest.raises(UsageError):
        iommufd.fileno()
    with pytest.raises(UsageError):
        space.allocate(PAGE)
    space.close()


def test_forgotten_objects_warn(host: IommufdHost) -> None:
    iommufd = Iommufd.open(host)
    space = Ioas.create(iommufd)
    with pytest.warns(ResourceWarning, match="unclosed <Ioas"):
        del space
    with pytest.warns(ResourceWarning, match="unclosed <Iommufd"):
        del iommufd


# -- address space --------------------------------------------------------------------------


def test_allocation_is_mapped_zeroed_and_unmapped_on_close(host, space) -> None:
    with space.allocate(5000) as buffer:
        (ioas,) = host.objects[space.iommufd.fd].values()
        assert ioas.areas == {buffer.iova: (2 * PAGE, ("memory", buffer.vaddr, 0))}
        assert buffer.length == 2 * PAGE
        assert not any(buffer.view)
        assert buffer.iova
    assert ioas.areas == {}
    assert space.mappings == {}


def test_allocation_respects_max_iova_and_alignment(device: Device, space: Ioas) -> None:
    low = space.allocate(PAGE, max_iova=(1 << 28) - 1)
    high = space.allocate(PAGE, alignment=1 << 20)
    assert low.iova + PAGE <= 1 << 28
    assert high.iova % (1 << 20) == 0


def test_iovas_keep_clear_of_what_the_device_reserves(host: IommufdHost) -> None:
    host.reserved = ((2 * PAGE, 8 * PAGE - 1),)
    with open_device(host, BDF) as device:
        space = device.address_space
        assert space.iova_ranges[1].start == 8 * PAGE
        assert space.allocate(2 * PAGE).iova == 8 * PAGE
        assert space.allocate(PAGE).iova == PAGE


def test_more_ranges_than_the_first_buffer_holds_are_all_learned(host: IommufdHost) -> None:
    host.reserved = tuple((n * 16 * PAGE, n * 16 * PAGE + PAGE - 1) for n in range(1, 100))
    with open_device(host, BDF) as device:
        ranges = device.address_space.iova_ranges
    assert len(ranges) == 100
    assert ranges[-1] == IovaRange(99 * 16 * PAGE + PAGE, host.aperture)


def test_kernel_chooses_iovas_when_asked_to_and_nothing_else_is_said(host, iommufd) -> None:
    host.lowest_choice = 0x100000
    with Ioas.create(iommufd, kernel_chooses=True) as space:
        assert space.allocate(PAGE).iova == 0x100000
        assert space.allocate(4 * PAGE).iova == 0x101000
        assert space.allocate(PAGE, max_iova=0xFFFF).iova == PAGE
        assert space.allocate(PAGE, iova=0x7000).iova == 0x7000
        with pytest.raises(KernelError) as caught:
            space.allocate(PAGE, alignment=1 << 20, max_iova=0x1FFFFF)
        assert caught.value.errno == errno.ENOSPC


def test_conflict_names_the_mapping_in_its_way(space: Ioas) -> None:
    buffer = space.allocate(4 * PAGE, iova=0x10000)
    with pytest.raises(IovaConflictError, match="0x10000, 0x13fff") as caught:
        space.allocate(PAGE, iova=0x12000)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.hint
    buffer.close()


def test_mapping_that_fails_gives_its_iova_back(device: Device, space: Ioas) -> None:
    with pytest.raises(KernelError) as caught:
        space.map(0x1000, PAGE)
    assert caught.value.errno == errno.EFAULT
    assert "dma-buf" in caught.value.hint
    assert space.allocate(PAGE).iova == PAGE


def test_unmap_over_a_foreign_mapping_takes_the_known_ones_and_says_so(host, iommufd, space):
    """What the kernel does in that case cannot be asked; the records must not lie."""
    memory = host.allocate(8 * PAGE)
    space.map(memory.vaddr, PAGE, iova=0x10000)
    iommufd.request(
        "IOMMU_IOAS_MAP",
        abi.iommu_ioas_map(
            flags=7, ioas_id=space.id, user_va=memory.vaddr, length=4 * PAGE, iova=0x11000
        ),
    )
    with pytest.raises(KernelError) as caught:
        space.unmap(0x10000, 2 * PAGE)
    assert caught.value.errno == errno.ENOENT
    assert space.mappings == {}
    assert space.map(memory.vaddr, PAGE, iova=0x10000) == 0x10000


def test_iovas_are_chosen_in_the_allowed_ranges_while_there_are_any(device, space) -> None:
    space.allow_iovas([IovaRange(0x800000, 0x80FFFF), IovaRange(0x100000, 0x101FFF)])
    assert space.allocate(2 * PAGE).iova == 0x100000
    assert space.allocate(4 * PAGE).iova == 0x800000
    outside = space.allocate(PAGE, iova=0x10000)
    with pytest.raises(KernelError) as caught:
        space.allocate(PAGE << 8)
    assert caught.value.errno == errno.ENOSPC
    outside.close()
    space.allow_iovas([])
    assert space.allocate(PAGE).iova == PAGE


def test_copy_needs_one_iommufd(host: IommufdHost, space: Ioas) -> None:
    with Ioas.open(host) as other, pytest.raises(UsageError, match="different"):
        other.copy_from(space, PAGE, PAGE)


def test_mapping_that_allows_nothing_is_refused(space: Ioas) -> None:
    for question in (space.map, space.map_file):
        with pytest.raises(UsageError):
            question(0, PAGE, read=False, write=False)


def test_ioas_that_owns_its_iommufd_closes_it_and_frees_buffers(host: IommufdHost) -> None:
    space = Ioas.open(host)
    buffer = space.allocate(PAGE)
    space.close()
    space.close()
    assert buffer.closed
    assert host.open_fds == {}


def test_large_pages_can_be_forbidden(space: Ioas) -> None:
    assert space.uses_large_pages
    space.use_large_pages(False)
    assert not space.uses_large_pages


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("maux"), st.integers(0, 20), st.integers(1, 6)), max_size=40
    ),
    st.booleans(),
)
def test_records_and_kernel_agree_whatever_is_mapped(steps, kernel_chooses) -> None:
    host = IommufdHost()
    memory = host.allocate(8 * PAGE)
    with Ioas.open(host, kernel_chooses=kernel_chooses) as space:
        (ioas,) = host.objects[space.iommufd.fd].values()
        for what, page, pages in steps:
            failure = 0
            try:
                if what == "m":
                    space.map(memory.vaddr, pages * PAGE, iova=page * PAGE)
                elif what == "a":
                    space.map(memory.vaddr, pages * PAGE)
                elif what == "u":
                    space.unmap(page * PAGE, pages * PAGE)
                else:
                    space.unmap_all()
            except KernelError as error:
                failure = error.errno or 0
            assert failure == 0 or (what, failure) in {("m", errno.EEXIST), ("u", errno.ENOENT)}
            assert space.mappings == {iova: size for iova, (size, _) in ioas.areas.items()}
        space.unmap_all()
        assert space._allocator.holes() == [(0, (1 << 64) // PAGE * PAGE)]
    memory.close()


# -- page tables ----------------------------------------------------------------------------


def test_dirty_pages_are_told_and_cleared(host, space, device) -> None:
    with Hwpt.create(space, number_of(device), dirty_tracking=True) as table:
        device.backend.attach(table)
        table.start_dirty_tracking()
        host.dirty |= {0x10000, 0x12000, 0x51000}
        kept = table.dirty_bitmap(0x10000, 0x44000, clear=False)
        assert list(kept) == [0x10000, 0x12000, 0x51000]
        assert list(table.dirty_bitmap(0x10000, 0x4000)) == [0x10000, 0x12000]
        assert list(table.dirty_bitmap(0x10000, 0x44000)) == [0x51000]
        table.stop_dirty_tracking()
        with pytest.raises(KernelError) as caught:
            table.dirty_bitmap(0x10800, PAGE)
        assert caught.value.errno == errno.EINVAL
        device.backend.attach(space)


def test_replacing_the_page_table_keeps_the_address_space(space, device) -> None:
    with Hwpt.create(space, number_of(device)) as table:
        assert device.backend.attach(table) == table.id
        assert device.address_space is space
        with Ioas.create(space.iommufd) as other:
            device.backend.attach(other)
            assert device.address_space is other
            assert space.iova_ranges == (IovaRange(0, EVERYTHING),)
            assert other.page_size == PAGE
            device.backend.attach(space)


def test_nested_table_takes_the_guest_s_data_and_invalidations(host, space, device) -> None:
    host.nests = True
    number = number_of(device)
    data = bytes(abi.iommu_hwpt_vtd_s1(pgtbl_addr=0x1000, addr_width=48).pack())
    with (
        Hwpt.create(space, number, nest_parent=True) as parent,
        Hwpt.create(parent, number, data_type=abi.IOMMU_HWPT_DATA_VTD_S1, data=data) as nested,
    ):
        assert host.nested_data == data
        assert nested.ioas is space
        good = bytes(abi.iommu_hwpt_vtd_s1_invalidate(npages=1).pack())
        bad = bytes(abi.iommu_hwpt_vtd_s1_invalidate(flags=2).pack())
        assert nested.invalidate(0, good * 3, len(good)) == 3
        with pytest.raises(KernelError, match="took 1 of 3"):
            nested.invalidate(0, good + bad + good, len(good))
        with pytest.raises(UsageError):
            nested.invalidate(0, good, 7)
        with pytest.raises(KernelError) as caught:
            Hwpt.create(nested, number)
        assert caught.value.errno == errno.EINVAL


def test_hardware_info_is_decoded_by_its_type(iommufd, device) -> None:
    info = hardware_info(iommufd, number_of(device))
    registers = info.registers
    assert isinstance(registers, abi.iommu_hw_info_vtd)
    assert registers.cap_reg == 0xD2008C222F0686
    assert info.tracks_dirty_pages
    assert len(info.data) == abi.iommu_hw_info_vtd.SIZE
    assert info._replace(type=99).registers is None


# -- faults ---------------------------------------------------------------------------------


def test_fault_records_are_decoded_and_answered() -> None:
    first = struct.pack("<IIIIIIQII", 1, 2, 77, 9, 1, 0, 0x5000, 4096, 11)
    last = struct.pack("<IIIIIIQII", 2, 2, 77, 9, 3, 0, 0x6000, 0, 12)
    one, two = decode_faults(first + last)
    assert (one.pasid, one.last, one.iova, one.length) == (77, False, 0x5000, 4096)
    assert (two.pasid, two.last, two.permissions, two.cookie) == (None, True, 3, 12)
    assert encode_response(two, resolved=True) == struct.pack("<II", 12, 0)
    assert encode_response(two, resolved=False) == struct.pack("<II", 12, 1)
    with pytest.raises(FormatError):
        decode_faults(first[:-1])


def test_fault_queue_closes_its_stream_before_it_is_destroyed(host, iommufd) -> None:
    with FaultQueue.create(iommufd) as queue:
        assert host.open_fds[queue.fileno()] == "faults"
    queue.close()
    assert "faults" not in host.open_fds.values()
    assert host.objects[iommufd.fd] == {}


def test_page_table_with_a_fault_queue_names_it(iommufd, space, device) -> None:
    with (
        FaultQueue.create(iommufd) as queue,
        Hwpt.create(space, number_of(device), fault_queue=queue) as table,
    ):
        assert table.id > queue.id
