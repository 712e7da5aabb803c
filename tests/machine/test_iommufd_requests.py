"""Requests of ``/dev/iommu``: sizes, ids, options."""

from __future__ import annotations

import errno

import pytest
from iommufd_host import EVERYTHING, IommufdHost
from kernel_host import KernelHost, refuses

from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio

RLIMIT_MODE, HUGE_PAGES = abi.IOMMU_OPTION_RLIMIT_MODE, abi.IOMMU_OPTION_HUGE_PAGES
GET, SET, CLEAR = 0, 1, 2


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


# What each request answers when everything but its size is 0, on a descriptor without objects.
ALL_ZERO = {
    abi.IOMMU_DESTROY: errno.ENOENT,
    abi.IOMMU_IOAS_ALLOC: 0,
    abi.IOMMU_IOAS_ALLOW_IOVAS: errno.ENOENT,
    abi.IOMMU_IOAS_COPY: errno.EINVAL,
    abi.IOMMU_IOAS_IOVA_RANGES: errno.ENOENT,
    abi.IOMMU_IOAS_MAP: errno.EINVAL,
    abi.IOMMU_IOAS_UNMAP: errno.ENOENT,
    abi.IOMMU_OPTION: 0,
    abi.IOMMU_VFIO_IOAS: errno.ENODEV,
    abi.IOMMU_HWPT_ALLOC: errno.ENOENT,
    abi.IOMMU_GET_HW_INFO: errno.ENOENT,
    abi.IOMMU_HWPT_SET_DIRTY_TRACKING: errno.ENOENT,
    abi.IOMMU_HWPT_GET_DIRTY_BITMAP: errno.ENOENT,
    abi.IOMMU_HWPT_INVALIDATE: errno.ENOENT,
    abi.IOMMU_FAULT_QUEUE_ALLOC: 0,
    abi.IOMMU_IOAS_MAP_FILE: errno.EINVAL,
    abi.IOMMU_VIOMMU_ALLOC: errno.EOPNOTSUPP,
    abi.IOMMU_VDEVICE_ALLOC: errno.ENOENT,
    abi.IOMMU_IOAS_CHANGE_PROCESS: 0,
    abi.IOMMU_VEVENTQ_ALLOC: errno.EOPNOTSUPP,
    abi.IOMMU_HW_QUEUE_ALLOC: errno.EOPNOTSUPP,
}


def test_every_command_of_the_header_is_known() -> None:
    assert ALL_ZERO.keys() == abi.COMMANDS.keys()


@pytest.mark.parametrize("request_number", abi.COMMANDS, ids=hex)
def test_sizes(host: IommufdHost, request_number: int) -> None:
    kind, least = abi.COMMANDS[request_number]
    expected = ALL_ZERO[request_number]

    def ask(size: int, tail: bytes = b"") -> int:
        host.kernel.close(host.fd)
        host.fd = host.kernel.open("/dev/iommu")
        buffer = bytearray(kind(size=size).pack() + tail)
        try:
            return host.kernel.ioctl(host.fd, request_number, buffer)
        except OSError as error:
            return error.errno or 0

    assert ask(0) == errno.EINVAL
    assert ask(least - 1) == errno.EINVAL
    assert ask(least) == expected
    assert ask(kind.SIZE) == expected
    assert ask(kind.SIZE + 64, bytes(64)) == expected
    assert ask(kind.SIZE + 64, bytes(63) + b"\1") == errno.E2BIG
    assert ask(kind.SIZE + 64, b"\1") == errno.EFAULT  # the buffer ends before size


@pytest.mark.parametrize("number", [0x7F, 0x95, 0xFF])
def test_an_unknown_request_is_enotty(host: IommufdHost, number: int) -> None:
    with refuses(errno.ENOTTY):
        host.kernel.ioctl(host.fd, 0x3B00 + number, bytearray(64))


def test_a_number_in_the_place_of_a_struct_is_efault(host: IommufdHost) -> None:
    with refuses(errno.EFAULT):
        host.kernel.ioctl(host.fd, abi.IOMMU_DESTROY, 0)


def test_it_has_no_contents_and_no_pages(host: IommufdHost) -> None:
    with refuses(errno.EINVAL):
        host.kernel.pread(host.fd, 8, 0)
    with refuses(errno.EINVAL):
        host.kernel.pwrite(host.fd, bytes(8), 0)
    with refuses(errno.ENXIO):
        host.kernel.mmap(host.fd, 4096, 0)


def test_kernel_without_iommufd_has_neither_node() -> None:
    host = KernelHost(iommufd=False)
    with refuses(errno.ENOENT):
        host.kernel.open("/dev/iommu")
    host.bind(host.nic.bdf)
    assert not host.kernel.tree.exists("/dev/vfio/devices")


# -- objects ----------------------------------------------------------------------------------


def test_ids_start_at_1_and_the_lowest_free_one_is_next(host: IommufdHost) -> None:
    assert [host.ioas() for _ in range(3)] == [1, 2, 3]
    host.destroy(2)
    host.destroy(1)
    assert [host.ioas() for _ in range(3)] == [1, 2, 4]


@pytest.mark.parametrize("number", [0, 2, 0xFFFF_FFFF])
def test_destroying_what_is_not_there_is_enoent(host: IommufdHost, number: int) -> None:
    host.ioas()
    with refuses(errno.ENOENT):
        host.destroy(number)


def test_descriptors_have_objects_of_their_own(host: IommufdHost) -> None:
    host.ioas()
    host.fd = host.kernel.open("/dev/iommu")
    with refuses(errno.ENOENT):
        host.destroy(1)


def test_ioas_with_flags_is_eopnotsupp(host: IommufdHost) -> None:
    with refuses(errno.EOPNOTSUPP):
        host.ask(abi.IOMMU_IOAS_ALLOC, abi.iommu_ioas_alloc(flags=1))


# -- options ----------------------------------------------------------------------------------


def test_rlimit_mode_is_set_before_any_object(host: IommufdHost) -> None:
    assert host.option(RLIMIT_MODE) == 0
    host.set_option(RLIMIT_MODE, 1)
    assert host.option(RLIMIT_MODE) == 1
    with refuses(errno.EINVAL):
        host.set_option(RLIMIT_MODE, 2)
    ioas = host.ioas()
    with refuses(errno.EBUSY):
        host.set_option(RLIMIT_MODE, 2)
    assert host.option(RLIMIT_MODE) == 1
    host.destroy(ioas)
    host.set_option(RLIMIT_MODE, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"option_id": RLIMIT_MODE, "op": 1, "object_id": 1},
        {"option_id": RLIMIT_MODE, "op": 0, "object_id": 1},
        {"option_id": RLIMIT_MODE, "op": 2},
        {"option_id": RLIMIT_MODE, "op": 1, "reserved": 1},
        {"option_id": HUGE_PAGES, "op": 2, "object_id": 1},
        {"option_id": HUGE_PAGES, "op": 1, "object_id": 1, "reserved": 1},
        {"option_id": 2, "op": 1},
    ],
)
def test_option_is_eopnotsupp(host: IommufdHost, fields: dict[str, int]) -> None:
    host.ioas()
    with refuses(errno.EOPNOTSUPP):
        host.ask(abi.IOMMU_OPTION, abi.iommu_option(**fields))


def test_huge_pages_belong_to_an_ioas(host: IommufdHost) -> None:
    ioas = host.ioas()
    assert host.option(HUGE_PAGES, ioas) == 1
    host.set_option(HUGE_PAGES, 0, ioas)
    assert host.option(HUGE_PAGES, ioas) == 0
    assert host.ranges(ioas) == ([(0, EVERYTHING)], 4096)
    with refuses(errno.EINVAL):
        host.set_option(HUGE_PAGES, 2, ioas)
    for wrong in (0, 99):
        with refuses(errno.ENOENT):
            host.option(HUGE_PAGES, wrong)


def test_huge_pages_stay_while_bytes_are_mapped(host: IommufdHost) -> None:
    ioas, memory = host.ioas(), host.memory()
    host.map(ioas, memory.vaddr + 1, 5, 0x1001)
    with refuses(errno.EADDRINUSE):
        host.set_option(HUGE_PAGES, 0, ioas)
    assert host.option(HUGE_PAGES, ioas) == 1
    host.unmap(ioas)
    host.set_option(HUGE_PAGES, 0, ioas)
    with refuses(errno.EINVAL):
        host.map(ioas, memory.vaddr, 5, 0x2000)


# -- VFIO's IOAS ------------------------------------------------------------------------------


def test_vfio_ioas_is_set_cleared_and_destroyed(host: IommufdHost) -> None:
    with refuses(errno.ENODEV):
        host.vfio_ioas(GET)
    host.vfio_ioas(CLEAR)
    with refuses(errno.ENOENT):
        host.vfio_ioas(SET, 1)
    ioas = host.ioas()
    host.vfio_ioas(SET, ioas)
    assert host.vfio_ioas(GET) == ioas
    host.destroy(ioas)  # that it is set does not hold it
    with refuses(errno.ENODEV):
        host.vfio_ioas(GET)
    for fields in ({"op": 3}, {"op": GET, "reserved": 1}):
        with refuses(errno.EOPNOTSUPP):
            host.ask(abi.IOMMU_VFIO_IOAS, abi.iommu_vfio_ioas(**fields))


def test_vfio_requests_of_groups_and_devices_are_enotty(host: IommufdHost) -> None:
    container = {
        vfio.VFIO_GET_API_VERSION,
        vfio.VFIO_CHECK_EXTENSION,
        vfio.VFIO_SET_IOMMU,
        vfio.VFIO_IOMMU_GET_INFO,
        vfio.VFIO_IOMMU_MAP_DMA,
        vfio.VFIO_IOMMU_UNMAP_DMA,
    }
    for request in range(vfio.VFIO_GET_API_VERSION, vfio.VFIO_GET_API_VERSION + 22):
        if request not in container:
            with refuses(errno.ENOTTY):
                host.kernel.ioctl(host.fd, request, bytearray(64))
