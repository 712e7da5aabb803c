"""Page tables, hardware information, fault queues, and what this hardware does not have."""

from __future__ import annotations

import errno
import struct

import pytest
from iommufd_host import APERTURE, EVERYTHING, MSI, IommufdHost
from kernel_host import EDU, NIC, PAGE, refuses

from vfiokit.abi import iommufd as abi
from vfiokit.machine.iommu.vtd import VtdUnit

NEST, DIRTY, FAULT, PASID = 1, 2, 4, 8


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


@pytest.fixture
def space(host: IommufdHost) -> tuple[int, int, int]:
    """A bound device's descriptor and id, and an IOAS."""
    device, number = host.bound()
    return device, number, host.ioas()


# -- alloc ------------------------------------------------------------------------------------


def test_page_tables_by_hand(host: IommufdHost, space: tuple[int, int, int]) -> None:
    _device, number, ioas = space
    made = host.hwpt(number, ioas)
    assert made == ioas + 1
    with refuses(errno.EBUSY):
        host.destroy(ioas)
    host.destroy(made)
    host.destroy(ioas)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"reserved": 1, "dev_id": 99}, errno.EOPNOTSUPP),
        ({"data_type": 1, "dev_id": 99}, errno.EINVAL),
        ({"data_len": 24, "dev_id": 99}, errno.EINVAL),
        ({"dev_id": 99, "pt_id": 99}, errno.ENOENT),
        ({"dev_id": 0}, errno.ENOENT),
        ({"dev_id": 2}, errno.ENOENT),  # the IOAS
        ({"pt_id": 99}, errno.EINVAL),
        ({"pt_id": 1}, errno.EINVAL),  # the device
        ({"pt_id": 0}, errno.EINVAL),
        ({"flags": NEST}, errno.EOPNOTSUPP),
        ({"flags": DIRTY}, errno.EOPNOTSUPP),
        ({"flags": NEST | FAULT}, errno.EOPNOTSUPP),
        ({"flags": DIRTY | PASID}, errno.EOPNOTSUPP),
        ({"flags": 16}, errno.EOPNOTSUPP),
        ({"flags": FAULT}, errno.ENOENT),
        ({"flags": FAULT, "fault_id": 2}, errno.ENOENT),  # the IOAS
        ({"data_type": 1, "data_len": 24}, errno.EOPNOTSUPP),
        ({"data_type": 77, "data_len": 24}, errno.EOPNOTSUPP),
        ({"pt_id": 3}, errno.EOPNOTSUPP),  # an HWPT, without data
        ({"pt_id": 3, "data_type": 1, "data_len": 24}, errno.EINVAL),  # no nesting parent
        ({"pt_id": 3, "data_type": 1, "data_len": 24, "flags": NEST}, errno.EOPNOTSUPP),
    ],
)
def test_page_table_is_refused(
    host: IommufdHost, space: tuple[int, int, int], fields: dict[str, int], code: int
) -> None:
    _device, number, ioas = space
    host.hwpt(number, ioas)
    with refuses(code):
        host.ask(abi.IOMMU_HWPT_ALLOC, abi.iommu_hwpt_alloc(**({"dev_id": 1, "pt_id": 2} | fields)))
    assert host.ioas() == 4  # nothing was left behind


def test_a_short_struct_makes_a_page_table(host: IommufdHost, space: tuple[int, int, int]) -> None:
    _device, number, ioas = space
    wish = abi.iommu_hwpt_alloc(dev_id=number, pt_id=ioas)
    answer = host.ask(abi.IOMMU_HWPT_ALLOC, wish, size=24)
    assert answer.out_hwpt_id == 3


@pytest.mark.parametrize(
    ("vaddr", "iova", "length", "code"),
    [
        (0x10000, 0x1000, PAGE, errno.EFAULT),
        (0, 0x1000, 5, errno.EADDRINUSE),  # not pages
        (0, 1 << 50, PAGE, errno.EADDRINUSE),
    ],
)
def test_what_the_hardware_cannot_map_refuses_a_page_table(
    host: IommufdHost,
    space: tuple[int, int, int],
    vaddr: int,
    iova: int,
    length: int,
    code: int,
) -> None:
    device, number, ioas = space
    host.map(ioas, vaddr or host.memory().vaddr, length, iova)
    with refuses(code):
        host.hwpt(number, ioas)
    with refuses(code):
        host.attach(device, ioas)
    assert host.ranges(ioas) == ([(0, EVERYTHING)], 1)
    assert host.unmap(ioas) == length
    host.attach(device, ioas)


def test_only_a_device_reserves_the_interrupt_range(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, number, ioas = space
    made = host.hwpt(number, ioas)
    host.map(ioas, host.memory().vaddr, PAGE, MSI)
    with refuses(errno.EADDRINUSE):
        host.attach(device, made)
    host.unmap(ioas)
    host.attach(device, made)
    assert host.ranges(ioas)[0] == APERTURE


def test_an_automatic_page_table_goes_with_its_last_device(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, _number, ioas = space
    other, _ = host.bound(EDU)
    automatic = host.attach(device, ioas)
    assert host.attach(other, ioas) == automatic
    host.detach(device)
    with refuses(errno.EBUSY):
        host.destroy(automatic)
    host.detach(other)
    with refuses(errno.ENOENT):
        host.destroy(automatic)
    host.destroy(ioas)


def test_an_automatic_page_table_is_never_one_made_by_hand(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, number, ioas = space
    by_hand = host.hwpt(number, ioas)
    assert host.attach(device, ioas) != by_hand
    assert host.attach(device, by_hand) == by_hand
    host.detach(device)
    host.destroy(by_hand)


# -- hardware information ---------------------------------------------------------------------


def info(host: IommufdHost, device: int, length: int = 24, **fields: int) -> abi.iommu_hw_info:
    host.page.view[:64] = b"\xaa" * 64
    wish = abi.iommu_hw_info(dev_id=device, data_len=length, **fields)
    if length:
        wish.data_uptr = host.page.vaddr
    return host.ask(abi.IOMMU_GET_HW_INFO, wish)


def test_hardware_is_vtd(host: IommufdHost, space: tuple[int, int, int]) -> None:
    answer = info(host, space[1])
    assert (answer.out_data_type, answer.data_len) == (abi.IOMMU_HW_INFO_TYPE_INTEL_VTD, 24)
    assert (answer.out_capabilities, answer.out_max_pasid_log2) == (8, 0)
    unit = host.machine.iommus[0]
    assert isinstance(unit, VtdUnit)
    assert struct.unpack_from("<IIQQ", host.page.view) == (1, 0, unit.cap, unit.ecap)


@pytest.mark.parametrize("length", [0, 8, 24, 40])
def test_information_is_cut_or_followed_by_zeros(
    host: IommufdHost, space: tuple[int, int, int], length: int
) -> None:
    assert info(host, space[1], length).data_len == 24
    data = bytes(host.page.view[:64])
    assert data[length:] == b"\xaa" * (64 - length)
    assert data[24:length] == bytes(max(length - 24, 0))
    assert not length or data[:4] == b"\1\0\0\0"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"flags": 2, "dev_id": 99}, errno.EOPNOTSUPP),
        ({"reserved0": 1, "dev_id": 99}, errno.EOPNOTSUPP),
        ({"reserved2": 1, "dev_id": 99}, errno.EOPNOTSUPP),
        ({"dev_id": 99}, errno.ENOENT),
        ({"dev_id": 2}, errno.ENOENT),
        ({"flags": 1, "out_data_type": 2}, errno.EOPNOTSUPP),
        ({"flags": 1, "out_data_type": 77}, errno.EOPNOTSUPP),
        ({"data_len": 24}, errno.EFAULT),
        ({"data_len": 24, "data_uptr": 0x1000}, errno.EFAULT),
    ],
)
def test_information_is_refused(
    host: IommufdHost, space: tuple[int, int, int], fields: dict[str, int], code: int
) -> None:
    del space
    with refuses(code):
        host.ask(abi.IOMMU_GET_HW_INFO, abi.iommu_hw_info(**({"dev_id": 1} | fields)))


def test_information_of_a_type_that_is_asked_for(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    for wanted in (abi.IOMMU_HW_INFO_TYPE_DEFAULT, abi.IOMMU_HW_INFO_TYPE_INTEL_VTD):
        assert info(host, space[1], flags=1, out_data_type=wanted).out_data_type == 1
    assert info(host, space[1], out_data_type=77).out_data_type == 1  # not asked without the flag


# -- dirty tracking, nesting, virtual IOMMUs ---------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"flags": 2, "hwpt_id": 99}, errno.EOPNOTSUPP),
        ({"reserved": 1, "hwpt_id": 99}, errno.EOPNOTSUPP),
        ({"flags": 1, "hwpt_id": 99}, errno.ENOENT),
        ({"flags": 1, "hwpt_id": 2}, errno.ENOENT),
        ({"flags": 1, "hwpt_id": 3}, errno.EOPNOTSUPP),
        ({"flags": 0, "hwpt_id": 3}, errno.EOPNOTSUPP),
    ],
)
def test_dirty_tracking(
    host: IommufdHost, space: tuple[int, int, int], fields: dict[str, int], code: int
) -> None:
    host.hwpt(space[1], space[2])
    with refuses(code):
        host.ask(abi.IOMMU_HWPT_SET_DIRTY_TRACKING, abi.iommu_hwpt_set_dirty_tracking(**fields))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"flags": 2, "hwpt_id": 99}, errno.EOPNOTSUPP),
        ({"hwpt_id": 99}, errno.ENOENT),
        ({"iova": EVERYTHING}, errno.EOVERFLOW),
        ({"page_size": 0}, errno.EINVAL),
        ({"iova": 1}, errno.EINVAL),
        ({"length": 0x800}, errno.EINVAL),
        ({"page_size": 2 << 20}, errno.EINVAL),
        ({}, errno.EOPNOTSUPP),
    ],
)
def test_dirty_bitmap(
    host: IommufdHost, space: tuple[int, int, int], fields: dict[str, int], code: int
) -> None:
    host.hwpt(space[1], space[2])
    wish = {"hwpt_id": 3, "length": PAGE, "page_size": PAGE, "data": host.page.vaddr}
    with refuses(code):
        host.ask(
            abi.IOMMU_HWPT_GET_DIRTY_BITMAP, abi.iommu_hwpt_get_dirty_bitmap(**(wish | fields))
        )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"reserved": 1, "hwpt_id": 99}, errno.EOPNOTSUPP),
        ({"hwpt_id": 99}, errno.ENOENT),
        ({"hwpt_id": 99, "entry_num": 1}, errno.EINVAL),
        ({"hwpt_id": 99, "entry_num": 1, "entry_len": 24, "data_uptr": 64}, errno.ENOENT),
        ({"hwpt_id": 99, "entry_num": 1, "entry_len": 8192, "data_uptr": 64}, errno.EINVAL),
        ({"hwpt_id": 3, "entry_num": 1 << 20, "entry_len": 24, "data_uptr": 64}, errno.EINVAL),
        ({"hwpt_id": 3}, errno.EINVAL),
        ({"hwpt_id": 2}, errno.EINVAL),
    ],
)
def test_invalidation(
    host: IommufdHost, space: tuple[int, int, int], fields: dict[str, int], code: int
) -> None:
    host.hwpt(space[1], space[2])
    with refuses(code):
        host.ask(abi.IOMMU_HWPT_INVALIDATE, abi.iommu_hwpt_invalidate(**fields))
    assert isinstance(host.last, abi.iommu_hwpt_invalidate)
    assert host.last.entry_num == 0


@pytest.mark.parametrize(
    ("request_number", "wish", "code"),
    [
        (abi.IOMMU_VIOMMU_ALLOC, abi.iommu_viommu_alloc(dev_id=99), errno.EOPNOTSUPP),
        (abi.IOMMU_VIOMMU_ALLOC, abi.iommu_viommu_alloc(type=1, dev_id=99), errno.ENOENT),
        (abi.IOMMU_VIOMMU_ALLOC, abi.iommu_viommu_alloc(type=1, dev_id=1), errno.EOPNOTSUPP),
        (abi.IOMMU_VDEVICE_ALLOC, abi.iommu_vdevice_alloc(dev_id=1), errno.ENOENT),
        (
            abi.IOMMU_VEVENTQ_ALLOC,
            abi.iommu_veventq_alloc(type=1, veventq_depth=0),
            errno.EINVAL,
        ),
        (
            abi.IOMMU_VEVENTQ_ALLOC,
            abi.iommu_veventq_alloc(type=1, veventq_depth=1),
            errno.ENOENT,
        ),
        (abi.IOMMU_HW_QUEUE_ALLOC, abi.iommu_hw_queue_alloc(type=1), errno.EINVAL),
        (
            abi.IOMMU_HW_QUEUE_ALLOC,
            abi.iommu_hw_queue_alloc(type=1, length=2, nesting_parent_iova=EVERYTHING),
            errno.EOVERFLOW,
        ),
        (abi.IOMMU_HW_QUEUE_ALLOC, abi.iommu_hw_queue_alloc(type=1, length=1), errno.ENOENT),
    ],
)
def test_virtual_iommus(
    host: IommufdHost,
    space: tuple[int, int, int],
    request_number: int,
    wish: abi.iommu_viommu_alloc,
    code: int,
) -> None:
    del space
    with refuses(code):
        host.ask(request_number, wish)


# -- fault queues -----------------------------------------------------------------------------


def test_a_fault_queue_is_used_by_its_stream_and_by_page_tables(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, number, ioas = space
    answer = host.ask(abi.IOMMU_FAULT_QUEUE_ALLOC, abi.iommu_fault_alloc())
    queue, stream = answer.out_fault_id, answer.out_fault_fd
    with refuses(errno.EBUSY):
        host.destroy(queue)
    made = host.hwpt(number, ioas, flags=FAULT, fault_id=queue)
    host.kernel.close(stream)
    with refuses(errno.EBUSY):
        host.destroy(queue)
    with refuses(errno.ENODEV):  # the function makes no page requests
        host.attach(device, made)
    host.destroy(made)
    host.destroy(queue)


def test_a_fault_queue_is_a_stream(host: IommufdHost) -> None:
    with refuses(errno.EOPNOTSUPP):
        host.ask(abi.IOMMU_FAULT_QUEUE_ALLOC, abi.iommu_fault_alloc(flags=1))
    stream = host.ask(abi.IOMMU_FAULT_QUEUE_ALLOC, abi.iommu_fault_alloc()).out_fault_fd
    with refuses(errno.ESPIPE):
        host.kernel.pread(stream, 40, 0)
    with refuses(errno.ESPIPE):
        host.kernel.pwrite(stream, bytes(8), 0)
    with refuses(errno.ENOTTY):
        host.kernel.ioctl(stream, abi.IOMMU_DESTROY, bytearray(8))


# -- PASIDs -----------------------------------------------------------------------------------


def test_pasids_need_page_tables_made_for_them(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, number, ioas = space
    plain, first, second = (host.hwpt(number, ioas, flags=flags) for flags in (0, PASID, PASID))
    for wrong in (plain, ioas, number):
        with refuses(errno.EINVAL):
            host.attach(device, wrong, pasid=1)
    with refuses(errno.ENOENT):
        host.attach(device, 99, pasid=1)
    assert host.attach(device, first, pasid=1) == first
    for wrong in (plain, ioas):  # requests without PASID, too, now
        with refuses(errno.EINVAL):
            host.attach(device, wrong)
    assert host.attach(device, first) == first
    assert host.attach(device, second, pasid=1) == second
    host.detach(device)
    with refuses(errno.EBUSY):
        host.destroy(second)
    host.detach(device, pasid=1)
    host.detach(device, pasid=1)
    host.destroy(second)
    host.attach(device, plain)
    with refuses(errno.EINVAL):
        host.attach(device, first, pasid=1)


def test_pasid_0_is_that_of_requests_without_one(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, number, ioas = space
    made = host.hwpt(number, ioas, flags=PASID)
    host.attach(device, made)
    with refuses(errno.EBUSY):
        host.attach(device, made, pasid=0)
    with refuses(errno.ENOSPC):
        host.attach(device, made, pasid=0xFFFF_FFFF)
    host.detach(device)
    host.attach(device, made, pasid=0)
    with refuses(errno.EBUSY):
        host.attach(device, made)
    host.detach(device, pasid=0)
    host.attach(device, made)


def test_closing_a_device_lets_go_of_its_pasids(
    host: IommufdHost, space: tuple[int, int, int]
) -> None:
    device, number, ioas = space
    made = host.hwpt(number, ioas, flags=PASID)
    host.attach(device, made, pasid=7)
    host.kernel.close(device)
    host.destroy(made)
    assert host.kernel.device(NIC).driver == "vfio-pci"
