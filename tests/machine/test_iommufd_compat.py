"""VFIO's container requests on an iommufd, and iommufds as containers of groups."""

from __future__ import annotations

import errno
import struct

import pytest
from iommufd_host import EVERYTHING, MSI, TOP, IommufdHost
from kernel_host import EDU, NIC, PAGE, refuses

from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio

TYPE1, TYPE1V2 = vfio.VFIO_TYPE1_IOMMU, vfio.VFIO_TYPE1v2_IOMMU
SET, GET, CLEAR = abi.IOMMU_VFIO_IOAS_SET, abi.IOMMU_VFIO_IOAS_GET, abi.IOMMU_VFIO_IOAS_CLEAR


class CompatHost(IommufdHost):
    """Container requests on the iommufd."""

    def check(self, extension: int) -> int:
        return self.kernel.ioctl(self.fd, vfio.VFIO_CHECK_EXTENSION, extension)

    def set_iommu(self, kind: int) -> int:
        return self.kernel.ioctl(self.fd, vfio.VFIO_SET_IOMMU, kind)

    def map_dma(self, vaddr: int, iova: int, size: int = PAGE, flags: int = 3) -> None:
        wish = vfio.vfio_iommu_type1_dma_map(flags=flags, vaddr=vaddr, iova=iova, size=size)
        self.ask_vfio(self.fd, vfio.VFIO_IOMMU_MAP_DMA, wish)

    def unmap_dma(self, iova: int = 0, size: int = 0, flags: int = 0) -> int:
        wish = vfio.vfio_iommu_type1_dma_unmap(flags=flags, iova=iova, size=size)
        return self.ask_vfio(self.fd, vfio.VFIO_IOMMU_UNMAP_DMA, wish).size

    def left(self) -> int:
        """Size that the last, refused, unmap wrote back."""
        assert isinstance(self.last, vfio.vfio_iommu_type1_dma_unmap)
        return self.last.size

    def info(self, argsz: int) -> tuple[vfio.vfio_iommu_type1_info, bytes]:
        buffer = bytearray(b"\xaa" * 256)
        buffer[:4] = argsz.to_bytes(4, "little")
        self.kernel.ioctl(self.fd, vfio.VFIO_IOMMU_GET_INFO, buffer)
        return vfio.vfio_iommu_type1_info.unpack_from(buffer), bytes(buffer)


@pytest.fixture
def host() -> CompatHost:
    return CompatHost()


@pytest.fixture
def ready(host: CompatHost) -> CompatHost:
    """With an IOAS."""
    host.vfio_ioas(SET, host.ioas())
    return host


# -- without and with an IOAS -----------------------------------------------------------------


def test_without_ioas_requests_are_checked_then_enodev(host: CompatHost) -> None:
    assert host.kernel.ioctl(host.fd, vfio.VFIO_GET_API_VERSION) == 0
    for kind, code in ((TYPE1, errno.ENODEV), (TYPE1V2, errno.ENODEV), (2, errno.EINVAL)):
        with refuses(code):
            host.set_iommu(kind)
    requests = (
        (vfio.VFIO_IOMMU_GET_INFO, vfio.vfio_iommu_type1_info),
        (vfio.VFIO_IOMMU_MAP_DMA, vfio.vfio_iommu_type1_dma_map),
        (vfio.VFIO_IOMMU_UNMAP_DMA, vfio.vfio_iommu_type1_dma_unmap),
    )
    for request, kind_of in requests:
        with refuses(errno.EINVAL):
            host.ask_vfio(host.fd, request, kind_of(), argsz=8)
        with refuses(errno.ENODEV):
            host.ask_vfio(host.fd, request, kind_of())
    for request, kind_of in requests[1:]:
        with refuses(errno.EINVAL):
            host.ask_vfio(host.fd, request, kind_of(flags=1 << 31))


def test_extensions(host: CompatHost) -> None:
    present = {1, 3, 8, 9}
    assert {number for number in range(12) if number != 4 and host.check(number)} == present
    with refuses(errno.ENODEV):
        host.check(vfio.VFIO_DMA_CC_IOMMU)
    host.vfio_ioas(SET, host.ioas())
    assert host.check(vfio.VFIO_DMA_CC_IOMMU) == 1


def test_dirty_pages_are_enotty(ready: CompatHost) -> None:
    with refuses(errno.ENOTTY):
        ready.ask_vfio(
            ready.fd, vfio.VFIO_IOMMU_DIRTY_PAGES, vfio.vfio_iommu_type1_dirty_bitmap(flags=1)
        )


def test_version_1_turns_large_pages_off_and_2_does_not_turn_them_on(ready: CompatHost) -> None:
    ioas = ready.vfio_ioas(GET)
    ready.set_iommu(TYPE1V2)
    assert ready.option(abi.IOMMU_OPTION_HUGE_PAGES, ioas) == 1
    ready.set_iommu(TYPE1)
    assert ready.option(abi.IOMMU_OPTION_HUGE_PAGES, ioas) == 0
    ready.set_iommu(TYPE1V2)
    assert ready.option(abi.IOMMU_OPTION_HUGE_PAGES, ioas) == 0


# -- map and unmap ----------------------------------------------------------------------------


def test_map_permits_no_access_at_all_without_device(ready: CompatHost) -> None:
    memory = ready.memory()
    ready.map_dma(memory.vaddr, 0x1000, flags=0)
    with refuses(errno.EEXIST):
        ready.map_dma(memory.vaddr, 0x1000)
    with refuses(errno.EINVAL):
        ready.map_dma(memory.vaddr, 0x2000, flags=vfio.VFIO_DMA_MAP_FLAG_VADDR)
    with refuses(errno.EINVAL):
        ready.map_dma(memory.vaddr, 0x2000, 0)
    with refuses(errno.EOVERFLOW):
        ready.map_dma(memory.vaddr, TOP, 2 * PAGE)
    with refuses(errno.EOVERFLOW):
        ready.map_dma(EVERYTHING, 0x2000, 1)


def test_version_2_does_not_cut(ready: CompatHost) -> None:
    memory = ready.memory(4)
    ready.map_dma(memory.vaddr, 0xF000)
    ready.map_dma(memory.vaddr, 0x10000, 4 * PAGE)
    with refuses(errno.ENOENT):
        ready.unmap_dma(0x11000, PAGE)
    assert ready.left() == 0
    with refuses(errno.ENOENT):
        ready.unmap_dma(0xF000, 2 * PAGE)
    assert ready.left() == PAGE  # what went before the cut
    assert ready.unmap_dma(0xF000, PAGE) == 0
    assert ready.unmap_dma(0, 1 << 20) == 4 * PAGE


def test_version_1_cuts(ready: CompatHost) -> None:
    ready.set_iommu(TYPE1)
    memory = ready.memory(4)
    ready.map_dma(memory.vaddr, 0x10000, 4 * PAGE)
    assert ready.unmap_dma(0x11000, PAGE) == PAGE
    assert ready.unmap_dma(0xF000, 2 * PAGE) == PAGE
    with refuses(errno.EINVAL):
        ready.unmap_dma(0x12800, 0x100)
    assert ready.unmap_dma(flags=vfio.VFIO_DMA_UNMAP_FLAG_ALL) == 2 * PAGE


def test_unmap_checks(ready: CompatHost) -> None:
    everything = vfio.VFIO_DMA_UNMAP_FLAG_ALL
    for fields in (
        {"flags": everything, "size": PAGE},
        {"flags": everything, "iova": PAGE},
        {"flags": vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, "size": PAGE},
        {"flags": vfio.VFIO_DMA_UNMAP_FLAG_VADDR, "size": PAGE},
        {"size": 0},
    ):
        with refuses(errno.EINVAL):
            ready.unmap_dma(**fields)
    with refuses(errno.EOVERFLOW):
        ready.unmap_dma(TOP, 2 * PAGE)
    assert ready.left() == 0
    assert ready.unmap_dma(0x1000, PAGE) == 0
    assert ready.unmap_dma(flags=everything) == 0


# -- information ------------------------------------------------------------------------------


@pytest.mark.parametrize("argsz", [16, 20, 24, 36, 39, 40, 71, 72, 200])
def test_information_writes_what_fits_and_nothing_behind(ready: CompatHost, argsz: int) -> None:
    info, data = ready.info(argsz)
    assert (info.argsz, info.iova_pgsizes) == (72, EVERYTHING - PAGE + 1)
    assert data[argsz:] == b"\xaa" * (256 - argsz)
    if argsz >= 20:
        assert info.cap_offset == (24 if argsz >= 72 else 0)
    if argsz >= 36:  # the first capability comes even when the second does not fit
        head = struct.unpack_from("<HHII", data, 24)
        assert head == (3, 1, 40 if argsz >= 40 else 0, 0xFFFF_FFFF)
    if argsz >= 72:
        assert struct.unpack_from("<HHIIIQQ", data, 40) == (1, 1, 0, 1, 0, 0, EVERYTHING)
    else:
        assert data[40:72] == b"\xaa" * 32 or argsz < 40


def test_information_below_16_bytes_is_einval(ready: CompatHost) -> None:
    with refuses(errno.EINVAL):
        ready.info(15)


# -- as a container ---------------------------------------------------------------------------


def joined(host: CompatHost, bdf: object = NIC) -> int:
    """A group whose container is the iommufd."""
    host.bind(bdf)  # type: ignore[arg-type]
    group = host.open_group(bdf)  # type: ignore[arg-type]
    host.set_container(group, host.fd)
    return group


def status(host: CompatHost, group: int) -> int:
    return host.ask_vfio(group, vfio.VFIO_GROUP_GET_STATUS, vfio.vfio_group_status()).flags


def test_a_group_takes_an_iommufd_as_container(host: CompatHost) -> None:
    group = joined(host)
    assert host.vfio_ioas(GET) == 1  # made for it
    assert status(host, group) == 3
    with refuses(errno.EINVAL):
        host.set_container(group, host.fd)
    device = host.device_fd(group, str(NIC))  # without VFIO_SET_IOMMU
    assert host.ranges(1)[1] == PAGE
    with refuses(errno.EBUSY):
        host.destroy(1)
    again = host.device_fd(group, str(NIC))
    host.kernel.close(device)
    assert host.ranges(1)[1] == PAGE
    host.kernel.close(again)
    assert host.ranges(1)[1] == 1
    host.destroy(1)


def test_a_device_of_such_a_group_reaches_what_is_mapped(host: CompatHost) -> None:
    device = host.device_fd(joined(host), str(NIC))
    host.enable(device)
    host.set_iommu(TYPE1V2)
    memory = host.memory()
    memory.view[:5] = b"hello"
    host.map_dma(memory.vaddr, 0x5000)
    assert host.nic.dma.read(0x5000, 5) == b"hello"
    info, data = host.info(256)
    assert (info.iova_pgsizes, info.argsz) == (0x4020_1000, 88)
    assert struct.unpack_from("<QQQQ", data, 56) == (0, MSI - 1, MSI + 0x100000, (1 << 48) - 1)
    for iova, vaddr, code in (
        (MSI, memory.vaddr, errno.EINVAL),
        (1 << 50, memory.vaddr, errno.EINVAL),
        (0x8001, memory.vaddr, errno.EINVAL),
        (0x8000, 0x10000, errno.EFAULT),
    ):
        with refuses(code):
            host.map_dma(vaddr, iova)
    with refuses(errno.EINVAL):
        host.map_dma(memory.vaddr, 0x8000, flags=0)
    with refuses(errno.EINVAL):  # something is mapped in hardware
        host.set_iommu(TYPE1)


def test_its_devices_have_no_requests_of_device_nodes(host: CompatHost) -> None:
    device = host.device_fd(joined(host), str(NIC))
    with refuses(errno.EINVAL):
        host.bind_iommufd(device)
    with refuses(errno.EFAULT):
        host.kernel.ioctl(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, 0)
    with refuses(errno.ENOTTY):
        host.attach(device, 1)
    with refuses(errno.ENOTTY):
        host.detach(device)


def test_leaving_it_is_possible_with_open_devices(host: CompatHost) -> None:
    group = joined(host)
    device = host.device_fd(group, str(NIC))
    host.kernel.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    with refuses(errno.EINVAL):
        host.kernel.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    with refuses(errno.EINVAL):
        host.device_fd(group, str(NIC))
    assert host.region_info(device, 7).size == 4096
    with refuses(errno.EPERM):  # the device still belongs to the iommufd
        host.set_container(group, host.container())
    host.kernel.close(device)
    host.set_container(group, host.container())


def test_without_ioas_its_devices_do_not_open(host: CompatHost) -> None:
    group = joined(host)
    host.vfio_ioas(CLEAR)
    with refuses(errno.ENODEV):
        host.device_fd(group, str(NIC))
    iommu = host.kernel.group_of(host.kernel.device(NIC))
    assert iommu is not None
    assert iommu.claimable


def test_groups_share_its_ioas(host: CompatHost) -> None:
    first, second = joined(host, NIC), joined(host, EDU)
    host.device_fd(first, str(NIC))
    host.device_fd(second, str(EDU))
    memory = host.memory()
    host.map_dma(memory.vaddr, 0x5000)
    ranges, alignment = host.ranges(1)
    assert (len(ranges), alignment) == (2, PAGE)


def test_the_container_node_may_be_an_iommufd() -> None:
    host = CompatHost(iommufd_compat_container=True)
    host.fd = host.container()
    with refuses(errno.ENODEV):
        host.check(vfio.VFIO_DMA_CC_IOMMU)
    device = host.device_fd(joined(host), str(NIC))
    host.enable(device)
    memory = host.memory()
    memory.view[:2] = b"ok"
    host.set_iommu(TYPE1)
    host.map_dma(memory.vaddr, 0x5000)
    assert host.nic.dma.read(0x5000, 2) == b"ok"
