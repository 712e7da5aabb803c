"""iommufd in the place of a VFIO container.

Facts: Linux ``drivers/iommu/iommufd/vfio_compat.c``.
"""

from __future__ import annotations

import errno
import struct

from conformance.behaviour import COMPAT_NODE, IOMMUFD, behaviour
from conformance.calls import (
    RW,
    bar,
    chain,
    container,
    device_fd,
    edu_master,
    edu_reads,
    edu_writes,
    group_flags,
    iommu_info,
    map_dma,
    open_group,
    set_container,
    set_iommu,
    settle,
    unmap_dma,
    unset_container,
)
from conformance.host import PAGE, Host
from conformance.iommufd_calls import call, ioas, ioas_map, ioas_unmap, iommufd, option
from vfiokit.abi import iommufd as iommufd_abi
from vfiokit.abi import vfio as abi

SOURCE = "drivers/iommu/iommufd/vfio_compat.c"
IOVA = 0x100000
V1, V2 = abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU


def case(
    name: str,
    *,
    error: int | tuple[int, ...] = (),
    binds: str | tuple[str, ...] = (),
    needs: str = IOMMUFD,
):
    """A behaviour of this area."""
    return behaviour(f"compat/{name}", SOURCE, binds=binds, error=error, needs=needs)


def _joined(host: Host, role: str = "edu", kind: int = V2) -> tuple[int, int]:
    fd, group = iommufd(host), open_group(host, role)
    set_container(host, group, fd)
    set_iommu(host, fd, kind)
    return fd, group


@case("api-version-is-0")
def version(host: Host) -> None:
    assert host.ioctl(iommufd(host), abi.VFIO_GET_API_VERSION) == 0


@case("extensions", error=errno.ENODEV)
def extensions(host: Host) -> None:
    fd = iommufd(host)
    answers = {V1: 1, V2: 1, abi.VFIO_UNMAP_ALL: 1, abi.VFIO_UPDATE_VADDR: 0, 2: 0, 99: 0}
    seen = {each: host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, each) for each in answers}
    assert seen == answers
    with host.refuses(errno.ENODEV):
        host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, abi.VFIO_DMA_CC_IOMMU)


@case("nothing-works-before-there-is-a-space", error=errno.ENODEV)
def no_space(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.ENODEV):
        set_iommu(host, fd)
    with host.refuses(errno.ENODEV):
        map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    with host.refuses(errno.ENODEV):
        unmap_dma(host, fd, IOVA, PAGE)
    with host.refuses(errno.ENODEV):
        iommu_info(host, fd)


def _vfio_ioas(host: Host, fd: int, operation: int, number: int = 0) -> int:
    wish = iommufd_abi.iommu_vfio_ioas(ioas_id=number, op=operation)
    answer = call(host, fd, iommufd_abi.IOMMU_VFIO_IOAS, wish)
    return answer.ioas_id  # type: ignore[attr-defined,no-any-return]


GET, SET, CLEAR = (
    iommufd_abi.IOMMU_VFIO_IOAS_GET,
    iommufd_abi.IOMMU_VFIO_IOAS_SET,
    iommufd_abi.IOMMU_VFIO_IOAS_CLEAR,
)


@case("space-is-set-told-and-cleared", error=(errno.ENODEV, errno.ENOENT))
def vfio_ioas(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.ENODEV):
        _vfio_ioas(host, fd, GET)
    for number in (0, 99):
        with host.refuses(errno.ENOENT):
            _vfio_ioas(host, fd, SET, number)
    space = ioas(host, fd)
    _vfio_ioas(host, fd, SET, space)
    assert _vfio_ioas(host, fd, GET) == space
    _vfio_ioas(host, fd, CLEAR)
    with host.refuses(errno.ENODEV):
        _vfio_ioas(host, fd, GET)


@case("unknown-space-operation-is-eopnotsupp", error=errno.EOPNOTSUPP)
def vfio_ioas_operation(host: Host) -> None:
    fd = iommufd(host)
    with host.refuses(errno.EOPNOTSUPP):
        _vfio_ioas(host, fd, 3)


@case("space-that-is-set-is-mapped", error=errno.ENOENT)
def set_space(host: Host) -> None:
    fd = iommufd(host)
    space = ioas(host, fd)
    _vfio_ioas(host, fd, SET, space)
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    assert ioas_unmap(host, fd, space, IOVA, PAGE) == PAGE
    with host.refuses(errno.ENOENT):
        ioas_unmap(host, fd, space, IOVA, PAGE)


@case("joining-makes-a-space", binds="edu")
def join_makes(host: Host) -> None:
    fd, group = iommufd(host), open_group(host, "edu")
    set_container(host, group, fd)
    assert _vfio_ioas(host, fd, GET) >= 1
    assert group_flags(host, group) == 3
    unset_container(host, group)
    assert group_flags(host, group) == 1


@case("device-opens-through-its-group", binds="edu")
def device(host: Host) -> None:
    _fd, group = _joined(host)
    device_node = device_fd(host, group, str(host.roles["edu"]))
    assert host.kernel.pread(device_node, 2, 7 << 40) == b"\x34\x12"


@case("device-reaches-what-is-mapped", binds="edu")
def dma(host: Host) -> None:
    fd, group = _joined(host)
    node = device_fd(host, group, str(host.roles["edu"]))
    settle(host, "edu", node)
    memory = host.memory(2 * PAGE)
    map_dma(host, fd, IOVA, memory.vaddr, 2 * PAGE)
    edu_master(host, node)
    memory.view[:6] = b"compat"
    edu_reads(host, node, IOVA, 6)
    edu_writes(host, node, IOVA + PAGE, 6)
    assert bytes(memory.view[PAGE : PAGE + 6]) == b"compat"


@case("unknown-iommu-type-is-einval", binds="edu", error=errno.EINVAL)
def iommu_type(host: Host) -> None:
    fd, group = iommufd(host), open_group(host, "edu")
    set_container(host, group, fd)
    for kind in (2, 8, 77):
        with host.refuses(errno.EINVAL):
            set_iommu(host, fd, kind)
    set_iommu(host, fd)


@case("set-iommu-again-is-no-error", binds="edu")
def iommu_again(host: Host) -> None:
    fd, _group = _joined(host)
    set_iommu(host, fd)
    set_iommu(host, fd, V1)


@case("type1-turns-huge-pages-off", binds="edu")
def huge_pages(host: Host) -> None:
    fd, _group = _joined(host, kind=V1)
    space = _vfio_ioas(host, fd, GET)
    assert option(host, fd, iommufd_abi.IOMMU_OPTION_HUGE_PAGES, object_id=space) == 0


@case("map-over-existing-is-eexist", binds="edu", error=errno.EEXIST)
def map_over(host: Host) -> None:
    fd, _group = _joined(host)
    memory = host.memory()
    map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    with host.refuses(errno.EEXIST):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE)


@case("map-past-the-last-iova-is-eoverflow", binds="edu", error=errno.EOVERFLOW)
def map_wrap(host: Host) -> None:
    fd, _group = _joined(host)
    with host.refuses(errno.EOVERFLOW):
        map_dma(host, fd, (1 << 64) - PAGE, host.memory(2 * PAGE).vaddr, 2 * PAGE)
    with host.refuses(errno.EOVERFLOW):
        unmap_dma(host, fd, (1 << 64) - PAGE, 2 * PAGE)


@case("map-of-a-mapped-bar-is-efault", binds="edu", error=errno.EFAULT)
def map_bar(host: Host) -> None:
    fd, group = _joined(host)
    node = device_fd(host, group, str(host.roles["edu"]))
    window = host.map(node, PAGE, bar(0))
    window.read32(0)
    with host.refuses(errno.EFAULT):
        map_dma(host, fd, IOVA, host.vaddr(window), PAGE)


@case("map-with-short-argsz-or-unknown-flag-is-einval", binds="edu", error=errno.EINVAL)
def map_argsz(host: Host) -> None:
    fd, _group = _joined(host)
    memory = host.memory()
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE, argsz=1)
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE, RW | 1 << 31)
    with host.refuses(errno.EINVAL):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE, abi.VFIO_DMA_MAP_FLAG_VADDR)


@case("unmap-of-nothing-is-0-bytes", binds="edu")
def unmap_nothing(host: Host) -> None:
    fd, _group = _joined(host)
    assert unmap_dma(host, fd, IOVA, PAGE) == 0


@case("unmap-of-a-part-is-enoent", binds="edu", error=errno.ENOENT)
def unmap_part(host: Host) -> None:
    fd, _group = _joined(host)
    map_dma(host, fd, IOVA, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    with host.refuses(errno.ENOENT):
        unmap_dma(host, fd, IOVA, 2 * PAGE)
    assert unmap_dma(host, fd, IOVA, 4 * PAGE) == 4 * PAGE


@case("v1-unmap-cuts", binds="edu")
def unmap_cut(host: Host) -> None:
    fd, _group = _joined(host, kind=V1)
    map_dma(host, fd, IOVA, host.memory(4 * PAGE).vaddr, 4 * PAGE)
    assert unmap_dma(host, fd, IOVA + PAGE, PAGE) == PAGE
    assert unmap_dma(host, fd, IOVA, 4 * PAGE) == 3 * PAGE


@case("unmap-all", binds="edu", error=errno.EINVAL)
def unmap_all(host: Host) -> None:
    fd, _group = _joined(host)
    memory = host.memory()
    for page in (0, 4):
        map_dma(host, fd, IOVA + page * PAGE, memory.vaddr, PAGE)
    for iova, size in ((IOVA, 0), (0, PAGE)):
        with host.refuses(errno.EINVAL):
            unmap_dma(host, fd, iova, size, abi.VFIO_DMA_UNMAP_FLAG_ALL)
    assert unmap_dma(host, fd, 0, 0, abi.VFIO_DMA_UNMAP_FLAG_ALL) == 2 * PAGE


@case("unmap-with-other-flags-is-einval", binds="edu", error=errno.EINVAL)
def unmap_flags(host: Host) -> None:
    fd, _group = _joined(host)
    for flags in (abi.VFIO_DMA_UNMAP_FLAG_VADDR, 1, 1 << 31):
        with host.refuses(errno.EINVAL):
            unmap_dma(host, fd, IOVA, PAGE, flags)


def _capabilities(host: Host, fd: int) -> dict[int, bytes]:
    buffer = iommu_info(host, fd)
    told = abi.vfio_iommu_type1_info.unpack_from(buffer)
    assert told.flags == abi.VFIO_IOMMU_INFO_PGSIZES | abi.VFIO_IOMMU_INFO_CAPS
    return dict(chain(buffer, told.cap_offset, told.argsz))


def _ranges(host: Host, fd: int) -> list[tuple[int, int]]:
    data = _capabilities(host, fd)[abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE]
    (count,) = struct.unpack_from("<I", data, 8)
    return [struct.unpack_from("<QQ", data, 16 + 16 * index) for index in range(count)]


@case("info-has-mappings-left-and-ranges", binds="edu")
def info(host: Host) -> None:
    fd, _group = _joined(host)
    found = _capabilities(host, fd)
    available = abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
    assert list(found) == [available, abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE]
    assert struct.unpack_from("<I", found[available], 8) == (0xFFFFFFFF,)


@case("ranges-are-bounded-by-the-open-device", binds="edu")
def info_ranges(host: Host) -> None:
    fd, group = _joined(host)
    assert _ranges(host, fd) == [(0, (1 << 64) - 1)]
    device_fd(host, group, str(host.roles["edu"]))
    assert _ranges(host, fd) == [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1)]


@case("info-never-writes-beyond-argsz", binds="edu", error=errno.EINVAL)
def info_sizes(host: Host) -> None:
    fd, _group = _joined(host)
    needed = abi.vfio_iommu_type1_info.unpack_from(iommu_info(host, fd)).argsz
    for size in range(24, needed + 1, 4):
        buffer = bytearray(struct.pack("<I", size) + b"\xaa" * 200)
        host.ioctl(fd, abi.VFIO_IOMMU_GET_INFO, buffer)
        assert buffer[size:] == b"\xaa" * (204 - size)
        told = abi.vfio_iommu_type1_info.unpack_from(buffer)
        assert told.argsz == needed
        chain(buffer, told.cap_offset, size)
    with host.refuses(errno.EINVAL):
        iommu_info(host, fd, 1)


@case("dirty-pages-are-enotty", binds="edu", error=errno.ENOTTY)
def dirty(host: Host) -> None:
    fd, _group = _joined(host)
    wish = abi.vfio_iommu_type1_dirty_bitmap(argsz=8, flags=1)
    with host.refuses(errno.ENOTTY):
        host.ioctl(fd, abi.VFIO_IOMMU_DIRTY_PAGES, wish.pack())


@case("spaces-of-iommufd-and-vfio-are-one", binds="edu", error=errno.EEXIST)
def one_space(host: Host) -> None:
    fd, _group = _joined(host)
    space = _vfio_ioas(host, fd, GET)
    memory = host.memory()
    ioas_map(host, fd, space, memory.vaddr, PAGE, IOVA)
    with host.refuses(errno.EEXIST):
        map_dma(host, fd, IOVA, memory.vaddr, PAGE)
    assert unmap_dma(host, fd, IOVA, PAGE) == PAGE


@case("two-groups-share-the-space", binds=("edu", "below"))
def two_groups(host: Host) -> None:
    fd, _group = _joined(host)
    other = open_group(host, "below")
    set_container(host, other, fd)
    device_fd(host, other, str(host.roles["below"]))
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)


@case("node-of-the-container-is-iommufd", needs=COMPAT_NODE)
def compat_node(host: Host) -> None:
    fd = container(host)
    assert ioas(host, fd) >= 1


@case("node-of-the-container-serves-groups", binds="edu", needs=COMPAT_NODE)
def compat_join(host: Host) -> None:
    fd, group = container(host), open_group(host, "edu")
    set_container(host, group, fd)
    set_iommu(host, fd)
    map_dma(host, fd, IOVA, host.memory().vaddr, PAGE)
    device_fd(host, group, str(host.roles["edu"]))
