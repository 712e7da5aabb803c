"""Devices by their own nodes, attached to I/O address spaces and page tables.

Facts: Linux ``drivers/vfio/{device_cdev,iommufd}.c``, ``drivers/iommu/iommufd/{device,
hw_pagetable,pages}.c``.
"""

from __future__ import annotations

import errno
import struct

from conformance.behaviour import CDEV, IOMMUFD, behaviour
from conformance.calls import (
    bar,
    config,
    device_fd,
    device_info,
    edu_master,
    edu_reads,
    edu_writes,
    feature,
    open_group,
    peek,
    set_config,
    set_container,
)
from conformance.host import PAGE, Host
from conformance.iommufd_calls import (
    EVERYTHING,
    attach,
    attached,
    bind,
    bound,
    call,
    cdev_path,
    destroy,
    detach,
    hwpt,
    ioas,
    ioas_allow,
    ioas_copy,
    ioas_map,
    ioas_map_file,
    ioas_ranges,
    ioas_unmap,
    iommufd,
    open_cdev,
    option,
)
from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio as vfio_abi

SOURCE = "drivers/vfio/device_cdev.c"
SPACES = "drivers/iommu/iommufd/device.c, hw_pagetable.c"
IOVA = 0x100000


def case(
    name: str,
    *,
    error: int | tuple[int, ...] = (),
    binds: str | tuple[str, ...] = "edu",
    native: str | tuple[str, ...] = (),
    source: str = SOURCE,
):
    """A behaviour of a device node."""
    return behaviour(name, source, binds=binds, native=native, error=error, needs=(IOMMUFD, CDEV))


# --- Nodes ---


@case("cdev/node-is-named-below-the-function")
def node(host: Host) -> None:
    path = cdev_path(host, "edu")
    assert host.kernel.tree.exists(path)
    name = path.rpartition("/")[2]
    assert name.startswith("vfio")
    assert host.kernel.tree.exists(f"/sys/class/vfio-dev/{name}")


@case("cdev/node-goes-with-the-driver", error=errno.ENOENT)
def node_gone(host: Host) -> None:
    path = cdev_path(host, "edu")
    host.unbind("edu")
    with host.refuses(errno.ENOENT):
        host.open(path)


@case("cdev/unbound-does-nothing", error=errno.EINVAL)
def unbound(host: Host) -> None:
    fd = open_cdev(host, "edu")
    for request in (
        vfio_abi.VFIO_DEVICE_GET_INFO,
        vfio_abi.VFIO_DEVICE_RESET,
        vfio_abi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
        0x3BFF,
    ):
        with host.refuses(errno.EINVAL):
            host.ioctl(fd, request, bytearray(struct.pack("<I", 32) + bytes(60)))
    with host.refuses(errno.EINVAL):
        host.kernel.pread(fd, 4, 7 << 40)
    with host.refuses(errno.EINVAL):
        host.kernel.pwrite(fd, b"1234", 7 << 40)
    with host.refuses(errno.EINVAL):
        host.kernel.mmap(fd, PAGE, bar(0))


# --- Binding ---


@case("cdev/bind")
def binding(host: Host) -> None:
    made = bound(host, "edu")
    assert made.device >= 1
    assert device_info(host, made.fd).num_regions == 9
    assert config(host, made.fd, 0, 2) == 0x1234
    assert peek(host, made.fd, 0, 0) == 0x010000ED


@case("cdev/bind-with-short-argsz-is-einval", error=errno.EINVAL)
def bind_argsz(host: Host) -> None:
    fd, context = open_cdev(host, "edu"), iommufd(host)
    for argsz in (0, 15):
        with host.refuses(errno.EINVAL):
            bind(host, fd, context, argsz=argsz)
    bind(host, fd, context, argsz=16)


@case("cdev/bind-with-unknown-flag-is-einval", error=errno.EINVAL)
def bind_flags(host: Host) -> None:
    fd, context = open_cdev(host, "edu"), iommufd(host)
    for flags in (2, 1 << 31):
        with host.refuses(errno.EINVAL):
            bind(host, fd, context, flags)


@case("cdev/bind-to-no-descriptor-is-einval", error=errno.EINVAL)
def bind_negative(host: Host) -> None:
    fd = open_cdev(host, "edu")
    for context in (-1, -2):
        with host.refuses(errno.EINVAL):
            bind(host, fd, context)


@case("cdev/bind-to-closed-descriptor-is-ebadf", error=errno.EBADF)
def bind_closed(host: Host) -> None:
    fd = open_cdev(host, "edu")
    with host.refuses(errno.EBADF):
        bind(host, fd, 999)


@case("cdev/bind-to-another-file", error=errno.EBADFD)
def bind_other(host: Host) -> None:
    fd = open_cdev(host, "edu")
    for other in (fd, host.event()):
        with host.refuses(errno.EBADFD):
            bind(host, fd, other)


@case("cdev/bind-twice-is-einval", error=errno.EINVAL)
def bind_twice(host: Host) -> None:
    made = bound(host, "edu")
    for context in (made.context, iommufd(host)):
        with host.refuses(errno.EINVAL):
            bind(host, made.fd, context)


@case("cdev/bind-by-a-second-descriptor-is-einval", error=errno.EINVAL)
def bind_second(host: Host) -> None:
    made = bound(host, "edu")
    second = open_cdev(host, "edu")
    with host.refuses(errno.EINVAL):
        bind(host, second, made.context)
    host.close(made.fd)
    bind(host, second, made.context)


@case("cdev/bind-with-token-of-a-plain-device-is-einval", error=errno.EINVAL)
def bind_token(host: Host) -> None:
    fd, context = open_cdev(host, "edu"), iommufd(host)
    with host.refuses(errno.EINVAL):
        bind(host, fd, context, vfio_abi.VFIO_DEVICE_BIND_FLAG_TOKEN, token=host.memory().vaddr)


@case("cdev/bind-while-the-group-is-open-is-ebusy", error=errno.EBUSY)
def bind_group(host: Host) -> None:
    fd, context = open_cdev(host, "edu"), iommufd(host)
    group = open_group(host, "edu")
    with host.refuses(errno.EBUSY):
        bind(host, fd, context)
    host.close(group)
    bind(host, fd, context)


@case("cdev/group-while-a-device-is-bound-is-ebusy", error=errno.EBUSY)
def group_bound(host: Host) -> None:
    made = bound(host, "edu")
    with host.refuses(errno.EBUSY):
        open_group(host, "edu")
    host.close(made.fd)
    open_group(host, "edu")


@case("cdev/bind-on-a-group-device-is-einval", error=errno.EINVAL)
def bind_by_group(host: Host) -> None:

    group, context = open_group(host, "edu"), iommufd(host)
    set_container(host, group, context)
    fd = device_fd(host, group, str(host.roles["edu"]))
    with host.refuses(errno.EINVAL):
        bind(host, fd, context)


@case(
    "cdev/bind-beside-a-host-driver-is-eperm",
    binds="first",
    native="second",
    error=errno.EPERM,
)
def bind_not_viable(host: Host) -> None:
    fd, context = open_cdev(host, "first"), iommufd(host)
    with host.refuses(errno.EPERM):
        bind(host, fd, context)
    host.unbind("second")
    bind(host, fd, context)


@case("cdev/group-belongs-to-one-iommufd", binds=("first", "second"), error=errno.EPERM)
def bind_two(host: Host) -> None:
    made = bound(host, "first")
    second = open_cdev(host, "second")
    with host.refuses(errno.EPERM):
        bind(host, second, iommufd(host))
    assert bind(host, second, made.context) != made.device


@case("cdev/device-id-cannot-be-destroyed", error=errno.EBUSY)
def device_destroy(host: Host) -> None:
    made = bound(host, "edu")
    with host.refuses(errno.EBUSY):
        destroy(host, made.context, made.device)


@case("cdev/device-id-goes-with-the-descriptor", error=errno.ENOENT)
def device_gone(host: Host) -> None:
    made = bound(host, "edu")
    host.close(made.fd)
    with host.refuses(errno.ENOENT):
        destroy(host, made.context, made.device)


@case("cdev/device-keeps-its-iommufd")
def device_keeps(host: Host) -> None:
    made = attached(host, "edu")
    host.close(made.context)
    assert peek(host, made.fd, 0, 0) == 0x010000ED


# --- Attaching ---


@case("attach/to-an-address-space-makes-a-page-table", source=SPACES)
def attaching(host: Host) -> None:
    made = attached(host, "edu")
    assert made.table not in (made.space, made.device)


@case("attach/device-reaches-what-is-mapped", source=SPACES)
def dma(host: Host) -> None:
    made = attached(host, "edu")
    memory = host.memory(2 * PAGE)
    ioas_map(host, made.context, made.space, memory.vaddr, 2 * PAGE, IOVA)
    edu_master(host, made.fd)
    memory.view[:8] = b"attached"
    edu_reads(host, made.fd, IOVA, 8)
    edu_writes(host, made.fd, IOVA + PAGE, 8)
    assert bytes(memory.view[PAGE : PAGE + 8]) == b"attached"


@case("attach/device-reaches-what-was-mapped-before", source=SPACES)
def dma_before(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    memory = host.memory()
    ioas_map(host, made.context, space, memory.vaddr, PAGE, IOVA)
    attach(host, made.fd, space)
    edu_master(host, made.fd)
    edu_writes(host, made.fd, IOVA, 4)


@case("attach/unmapped-memory-is-out-of-reach", source=SPACES)
def dma_unmapped(host: Host) -> None:
    made = attached(host, "edu")
    memory = host.memory()
    ioas_map(host, made.context, made.space, memory.vaddr, PAGE, IOVA)
    edu_master(host, made.fd)
    edu_writes(host, made.fd, IOVA, 4)
    ioas_unmap(host, made.context, made.space, IOVA, PAGE)
    memory.view[:4] = b"kept"
    edu_writes(host, made.fd, IOVA, 4)
    assert bytes(memory.view[:4]) == b"kept"


@case("attach/bound-but-not-attached-reaches-nothing", source=SPACES)
def dma_blocked(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    memory = host.memory()
    ioas_map(host, made.context, space, memory.vaddr, PAGE, IOVA)
    memory.view[:4] = b"kept"
    edu_master(host, made.fd)
    edu_writes(host, made.fd, IOVA, 4)
    assert bytes(memory.view[:4]) == b"kept"


@case("attach/another-space-replaces-the-first", source=SPACES)
def replace(host: Host) -> None:
    made = attached(host, "edu")
    other = ioas(host, made.context)
    first, second = host.memory(), host.memory()
    ioas_map(host, made.context, made.space, first.vaddr, PAGE, IOVA)
    ioas_map(host, made.context, other, second.vaddr, PAGE, IOVA)
    assert attach(host, made.fd, other) != made.table
    first.view[:4] = second.view[:4] = b"kept"
    edu_master(host, made.fd)
    edu_writes(host, made.fd, IOVA, 4)
    assert bytes(first.view[:4]) == b"kept"
    assert bytes(second.view[:4]) != b"kept"


@case("attach/same-space-again-is-the-same-table", source=SPACES)
def attach_again(host: Host) -> None:
    made = attached(host, "edu")
    assert attach(host, made.fd, made.space) == made.table


@case("attach/devices-share-the-table-of-a-space", source=SPACES, binds=("edu", "below"))
def attach_share(host: Host) -> None:
    made = attached(host, "edu")
    other = bound(host, "below", made.context)
    assert attach(host, other.fd, made.space) == made.table


@case("attach/to-a-page-table", source=SPACES)
def attach_table(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    table = hwpt(host, made.context, made.device, space)
    assert attach(host, made.fd, table) == table


@case("attach/to-nothing-is-enoent", source=SPACES, error=errno.ENOENT)
def attach_nothing(host: Host) -> None:
    made = bound(host, "edu")
    for table in (0, 99, 0xFFFFFFFF):
        with host.refuses(errno.ENOENT):
            attach(host, made.fd, table)


@case("attach/to-a-device-is-einval", source=SPACES, error=errno.EINVAL)
def attach_device(host: Host) -> None:
    made = bound(host, "edu")
    with host.refuses(errno.EINVAL):
        attach(host, made.fd, made.device)


@case("attach/with-short-argsz-or-flags-is-einval", source=SPACES, error=errno.EINVAL)
def attach_argsz(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    with host.refuses(errno.EINVAL):
        attach(host, made.fd, space, argsz=11)
    with host.refuses(errno.EINVAL):
        attach(host, made.fd, space, flags=2)


@case("attach/detach-and-attach-again", source=SPACES)
def detaching(host: Host) -> None:
    made = attached(host, "edu")
    detach(host, made.fd)
    detach(host, made.fd)
    attach(host, made.fd, made.space)


@case("attach/detached-device-reaches-nothing", source=SPACES)
def detached(host: Host) -> None:
    made = attached(host, "edu")
    memory = host.memory()
    ioas_map(host, made.context, made.space, memory.vaddr, PAGE, IOVA)
    memory.view[:4] = b"kept"
    detach(host, made.fd)
    edu_master(host, made.fd)
    edu_writes(host, made.fd, IOVA, 4)
    assert bytes(memory.view[:4]) == b"kept"


@case("attach/detach-with-short-argsz-or-flags-is-einval", source=SPACES, error=errno.EINVAL)
def detach_argsz(host: Host) -> None:
    made = attached(host, "edu")
    with host.refuses(errno.EINVAL):
        detach(host, made.fd, argsz=7)
    with host.refuses(errno.EINVAL):
        detach(host, made.fd, flags=2)


@case("attach/space-in-use-cannot-be-destroyed", source=SPACES, error=errno.EBUSY)
def destroy_used(host: Host) -> None:
    made = attached(host, "edu")
    with host.refuses(errno.EBUSY):
        destroy(host, made.context, made.space)
    detach(host, made.fd)
    destroy(host, made.context, made.space)


@case("attach/table-of-a-space-goes-with-its-last-device", source=SPACES, error=errno.ENOENT)
def table_gone(host: Host) -> None:
    made = attached(host, "edu")
    detach(host, made.fd)
    with host.refuses(errno.ENOENT):
        destroy(host, made.context, made.table)


@case(
    "attach/members-of-a-group-share-one-table",
    source=SPACES,
    binds=("first", "second"),
    error=errno.EINVAL,
)
def attach_members(host: Host) -> None:
    made = attached(host, "first")
    second = bound(host, "second", made.context)
    with host.refuses(errno.EINVAL):
        attach(host, second.fd, ioas(host, made.context))
    assert attach(host, second.fd, made.space) == made.table


@case("attach/ranges-leave-out-the-interrupts", source=SPACES)
def ranges(host: Host) -> None:
    made = attached(host, "edu")
    told = ioas_ranges(host, made.context, made.space)
    assert told.alignment == PAGE
    assert told.ranges == [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1)]


@case("attach/ranges-come-back-when-detached", source=SPACES)
def ranges_back(host: Host) -> None:
    made = attached(host, "edu")
    detach(host, made.fd)
    assert ioas_ranges(host, made.context, made.space) == ([(0, EVERYTHING)], 1)


@case("attach/map-of-the-interrupts-is-einval", source=SPACES, error=errno.EINVAL)
def map_interrupts(host: Host) -> None:
    made = attached(host, "edu")
    memory = host.memory(2 * PAGE)
    for iova in (0xFEE00000, 0xFEDFF000):
        with host.refuses(errno.EINVAL):
            ioas_map(host, made.context, made.space, memory.vaddr, 2 * PAGE, iova)


@case("attach/map-of-unaligned-length-is-einval", source=SPACES, error=errno.EINVAL)
def map_unaligned(host: Host) -> None:
    made = attached(host, "edu")
    memory = host.memory(2 * PAGE)
    for vaddr, length, iova in (
        (memory.vaddr, 64, IOVA),
        (memory.vaddr, PAGE, IOVA + 64),
        (memory.vaddr + 64, PAGE, IOVA),
    ):
        with host.refuses(errno.EINVAL):
            ioas_map(host, made.context, made.space, vaddr, length, iova)


@case("attach/map-of-no-memory-is-efault", source=SPACES, error=errno.EFAULT)
def map_nowhere(host: Host) -> None:
    made = attached(host, "edu")
    with host.refuses(errno.EFAULT):
        ioas_map(host, made.context, made.space, PAGE, PAGE, IOVA)
    assert ioas_unmap(host, made.context, made.space, 0, EVERYTHING) == 0


@case("attach/with-no-memory-behind-a-mapping-is-efault", source=SPACES, error=errno.EFAULT)
def attach_nowhere(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    ioas_map(host, made.context, space, PAGE, PAGE, IOVA)
    with host.refuses(errno.EFAULT):
        attach(host, made.fd, space)
    ioas_unmap(host, made.context, space, IOVA, PAGE)
    attach(host, made.fd, space)


@case("attach/with-interrupts-mapped-is-eaddrinuse", source=SPACES, error=errno.EADDRINUSE)
def attach_interrupts(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    ioas_map(host, made.context, space, host.memory().vaddr, PAGE, 0xFEE00000)
    with host.refuses(errno.EADDRINUSE):
        attach(host, made.fd, space)


@case("attach/with-interrupts-allowed-is-eaddrinuse", source=SPACES, error=errno.EADDRINUSE)
def attach_allowed(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    ioas_allow(host, made.context, space, (0xFEE00000, 0xFEE0FFFF))
    with host.refuses(errno.EADDRINUSE):
        attach(host, made.fd, space)


@case("attach/allow-of-the-interrupts-is-eaddrinuse", source=SPACES, error=errno.EADDRINUSE)
def allow_interrupts(host: Host) -> None:
    made = attached(host, "edu")
    with host.refuses(errno.EADDRINUSE):
        ioas_allow(host, made.context, made.space, (0xFEE00000, 0xFEE0FFFF))


@case("attach/with-misaligned-mapping-is-eaddrinuse", source=SPACES, error=errno.EADDRINUSE)
def attach_misaligned(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    ioas_map(host, made.context, space, host.memory().vaddr, 64, IOVA)
    with host.refuses(errno.EADDRINUSE):
        attach(host, made.fd, space)


@case("attach/huge-pages-stay-as-they-are-with-mappings", source=SPACES, error=errno.EINVAL)
def option_mapped(host: Host) -> None:
    made = attached(host, "edu")
    ioas_map(host, made.context, made.space, host.memory().vaddr, PAGE, IOVA)
    with host.refuses(errno.EINVAL):
        option(host, made.context, abi.IOMMU_OPTION_HUGE_PAGES, 0, made.space)


@case(
    "attach/map-of-a-mapped-bar-is-efault", source=SPACES, binds=("edu", "shm"), error=errno.EFAULT
)
def map_bar(host: Host) -> None:
    made = attached(host, "edu")
    peer = bound(host, "shm", made.context)
    window = host.map(peer.fd, PAGE, bar(2))
    window.read32(0)
    with host.refuses(errno.EFAULT):
        ioas_map(host, made.context, made.space, host.vaddr(window), PAGE, IOVA)


@case("attach/by-pasid-to-a-space-is-einval", source=SPACES, error=errno.EINVAL)
def attach_pasid(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    flag = vfio_abi.VFIO_DEVICE_ATTACH_PASID
    with host.refuses(errno.EINVAL):
        attach(host, made.fd, space, flag, argsz=12)
    with host.refuses(errno.EINVAL):
        attach(host, made.fd, space, flag, pasid=1)


# --- Page tables ---


@case("hwpt/plain", source=SPACES)
def table(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    number = hwpt(host, made.context, made.device, space)
    assert number not in (space, made.device)
    destroy(host, made.context, number)
    destroy(host, made.context, space)


@case("hwpt/keeps-its-space", source=SPACES, error=errno.EBUSY)
def table_keeps(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    hwpt(host, made.context, made.device, space)
    with host.refuses(errno.EBUSY):
        destroy(host, made.context, space)


@case("hwpt/in-use-cannot-be-destroyed", source=SPACES, error=errno.EBUSY)
def table_used(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    number = hwpt(host, made.context, made.device, space)
    attach(host, made.fd, number)
    with host.refuses(errno.EBUSY):
        destroy(host, made.context, number)
    detach(host, made.fd)
    destroy(host, made.context, number)


@case("hwpt/unknown-flag-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def table_flag(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    with host.refuses(errno.EOPNOTSUPP):
        hwpt(host, made.context, made.device, space, 1 << 8)


@case("hwpt/nesting-without-hardware-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def table_nesting(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    with host.refuses(errno.EOPNOTSUPP):
        hwpt(host, made.context, made.device, space, abi.IOMMU_HWPT_ALLOC_NEST_PARENT)


@case("hwpt/dirty-tracking-without-hardware-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def table_dirty(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    with host.refuses(errno.EOPNOTSUPP):
        hwpt(host, made.context, made.device, space, abi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
    number = hwpt(host, made.context, made.device, space)
    for flags in (0, 1):
        with host.refuses(errno.EOPNOTSUPP):
            call(
                host,
                made.context,
                abi.IOMMU_HWPT_SET_DIRTY_TRACKING,
                abi.iommu_hwpt_set_dirty_tracking(hwpt_id=number, flags=flags),
            )


@case("hwpt/dirty-bitmap-without-tracking-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def table_bitmap(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    number = hwpt(host, made.context, made.device, space)
    wish = abi.iommu_hwpt_get_dirty_bitmap(
        hwpt_id=number, iova=0, length=PAGE, page_size=PAGE, data=host.memory().vaddr
    )
    with host.refuses(errno.EOPNOTSUPP):
        call(host, made.context, abi.IOMMU_HWPT_GET_DIRTY_BITMAP, wish)


@case("hwpt/of-nothing-is-einval", source=SPACES, error=errno.EINVAL)
def table_nothing(host: Host) -> None:
    made = bound(host, "edu")
    for each in (0, 99, made.device):
        with host.refuses(errno.EINVAL):
            hwpt(host, made.context, made.device, each)


@case("hwpt/inside-a-plain-table-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def table_of_table(host: Host) -> None:
    made = bound(host, "edu")
    number = hwpt(host, made.context, made.device, ioas(host, made.context))
    with host.refuses(errno.EOPNOTSUPP):
        hwpt(host, made.context, made.device, number)


@case("hwpt/data-without-type-is-einval", source=SPACES, error=errno.EINVAL)
def table_data(host: Host) -> None:
    made = bound(host, "edu")
    space = ioas(host, made.context)
    memory = host.memory()
    with host.refuses(errno.EINVAL):
        hwpt(host, made.context, made.device, space, data_len=24, data_uptr=memory.vaddr)
    with host.refuses(errno.EINVAL):
        hwpt(host, made.context, made.device, space, data_type=abi.IOMMU_HWPT_DATA_VTD_S1)


@case("hwpt/invalidation-of-a-plain-table-is-einval", source=SPACES, error=errno.EINVAL)
def table_invalidate(host: Host) -> None:
    made = bound(host, "edu")
    number = hwpt(host, made.context, made.device, ioas(host, made.context))
    wish = abi.iommu_hwpt_invalidate(hwpt_id=number, entry_len=24, entry_num=0)
    with host.refuses(errno.EINVAL):
        call(host, made.context, abi.IOMMU_HWPT_INVALIDATE, wish)


@case("hwinfo/tells-vt-d", source=SPACES)
def hw_info(host: Host) -> None:
    made = bound(host, "edu")
    memory = host.memory()
    wish = abi.iommu_hw_info(dev_id=made.device, data_len=64, data_uptr=memory.vaddr)
    memory.view[:64] = b"\xaa" * 64
    answer = call(host, made.context, abi.IOMMU_GET_HW_INFO, wish)
    assert answer.out_data_type == abi.IOMMU_HW_INFO_TYPE_INTEL_VTD  # type: ignore[attr-defined]
    assert answer.data_len == 24  # type: ignore[attr-defined]
    told = abi.iommu_hw_info_vtd.unpack_from(memory.view)
    assert told.cap_reg == int(host.read("/sys/class/iommu/dmar0/intel-iommu/cap"), 16)
    assert told.ecap_reg == int(host.read("/sys/class/iommu/dmar0/intel-iommu/ecap"), 16)
    assert bytes(memory.view[24:64]) == bytes(40), "what is left of the buffer is zero"


@case("hwinfo/without-buffer-tells-the-length", source=SPACES)
def hw_info_length(host: Host) -> None:
    made = bound(host, "edu")
    wish = abi.iommu_hw_info(dev_id=made.device)
    answer = call(host, made.context, abi.IOMMU_GET_HW_INFO, wish)
    assert answer.data_len == 24  # type: ignore[attr-defined]


@case("hwinfo/unknown-flag-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def hw_info_flag(host: Host) -> None:
    made = bound(host, "edu")
    with host.refuses(errno.EOPNOTSUPP):
        call(
            host,
            made.context,
            abi.IOMMU_GET_HW_INFO,
            abi.iommu_hw_info(dev_id=made.device, flags=2),
        )


@case("viommu/of-vt-d-is-eopnotsupp", source=SPACES, error=errno.EOPNOTSUPP)
def viommu(host: Host) -> None:
    made = bound(host, "edu")
    number = hwpt(host, made.context, made.device, ioas(host, made.context))
    wish = abi.iommu_viommu_alloc(
        type=abi.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, dev_id=made.device, hwpt_id=number
    )
    with host.refuses(errno.EOPNOTSUPP):
        call(host, made.context, abi.IOMMU_VIOMMU_ALLOC, wish)


# --- Files ---


@case("mapfile/device-reaches-the-file", source=SPACES)
def file_dma(host: Host) -> None:
    made = attached(host, "edu")
    file = host.memfd(2 * PAGE)
    host.kernel.pwrite(file, b"in the file", PAGE)
    ioas_map_file(host, made.context, made.space, file, PAGE, IOVA, start=PAGE)
    edu_master(host, made.fd)
    edu_reads(host, made.fd, IOVA, 11)
    edu_writes(host, made.fd, IOVA + 64, 11)
    assert host.kernel.pread(file, 11, PAGE + 64) == b"in the file"


@case("mapfile/beyond-the-end-is-einval", source=SPACES, error=errno.EINVAL)
def file_beyond(host: Host) -> None:
    made = attached(host, "edu")
    file = host.memfd(2 * PAGE)
    with host.refuses(errno.EINVAL):
        ioas_map_file(host, made.context, made.space, file, 3 * PAGE, IOVA)
    with host.refuses(errno.EINVAL):
        ioas_map_file(host, made.context, made.space, file, PAGE, IOVA, start=2 * PAGE)


@case("mapfile/of-another-kind-of-file-is-einval", source=SPACES, error=errno.EINVAL)
def file_kind(host: Host) -> None:
    made = attached(host, "edu")
    for file in (host.event(), made.fd, made.context):
        with host.refuses(errno.EINVAL):
            ioas_map_file(host, made.context, made.space, file, PAGE, IOVA)


def _dma_buf(host: Host, fd: int, *ranges: tuple[int, int], region: int = 2) -> int:
    payload = struct.pack("<IIII", region, 0o2000002, 0, len(ranges))
    payload += b"".join(struct.pack("<QQ", *each) for each in ranges)
    flags = vfio_abi.VFIO_DEVICE_FEATURE_DMA_BUF | vfio_abi.VFIO_DEVICE_FEATURE_GET
    return host.own(feature(host, fd, flags, payload)[0])


@case("mapfile/device-reaches-the-bar-of-a-peer", source=SPACES, binds=("edu", "shm"))
def file_peer(host: Host) -> None:
    made = attached(host, "edu")
    peer = bound(host, "shm", made.context)
    buffer = _dma_buf(host, peer.fd, (0, 4 * PAGE))
    ioas_map_file(host, made.context, made.space, buffer, 4 * PAGE, IOVA)
    host.kernel.pwrite(peer.fd, b"of a peer", bar(2, PAGE))
    edu_master(host, made.fd)
    edu_reads(host, made.fd, IOVA + PAGE, 9)
    edu_writes(host, made.fd, IOVA + 2 * PAGE, 9)
    assert host.kernel.pread(peer.fd, 9, bar(2, 2 * PAGE)) == b"of a peer"


@case(
    "mapfile/beyond-the-dma-buffer-is-einval",
    source=SPACES,
    binds=("edu", "shm"),
    error=errno.EINVAL,
)
def file_peer_beyond(host: Host) -> None:
    made = attached(host, "edu")
    peer = bound(host, "shm", made.context)
    buffer = _dma_buf(host, peer.fd, (0, 2 * PAGE))
    for length, start in ((3 * PAGE, 0), (PAGE, 2 * PAGE)):
        with host.refuses(errno.EINVAL):
            ioas_map_file(host, made.context, made.space, buffer, length, IOVA, start=start)


@case(
    "mapfile/dma-buffer-of-two-ranges-is-eopnotsupp",
    source=SPACES,
    binds=("edu", "shm"),
    error=errno.EOPNOTSUPP,
)
def file_peer_ranges(host: Host) -> None:
    made = attached(host, "edu")
    peer = bound(host, "shm", made.context)
    buffer = _dma_buf(host, peer.fd, (0, PAGE), (4 * PAGE, PAGE))
    with host.refuses(errno.EOPNOTSUPP):
        ioas_map_file(host, made.context, made.space, buffer, PAGE, IOVA)


@case(
    "mapfile/revoked-dma-buffer-is-enodev",
    source=SPACES,
    binds=("edu", "shm"),
    error=errno.ENODEV,
)
def file_peer_revoked(host: Host) -> None:
    made = attached(host, "edu")
    peer = bound(host, "shm", made.context)
    buffer = _dma_buf(host, peer.fd, (0, PAGE))
    command = config(host, peer.fd, 4, 2)
    set_config(host, peer.fd, 4, 2, command & ~2)
    with host.refuses(errno.ENODEV):
        ioas_map_file(host, made.context, made.space, buffer, PAGE, IOVA)
    set_config(host, peer.fd, 4, 2, command)
    ioas_map_file(host, made.context, made.space, buffer, PAGE, IOVA)


@case("mapfile/revoking-stops-the-device", source=SPACES, binds=("edu", "shm"))
def file_peer_stop(host: Host) -> None:
    made = attached(host, "edu")
    peer = bound(host, "shm", made.context)
    buffer = _dma_buf(host, peer.fd, (0, PAGE))
    ioas_map_file(host, made.context, made.space, buffer, PAGE, IOVA)
    edu_master(host, made.fd)
    edu_writes(host, made.fd, IOVA, 4)
    host.kernel.pwrite(peer.fd, b"kept", bar(2))
    command = config(host, peer.fd, 4, 2)
    set_config(host, peer.fd, 4, 2, command & ~2)
    set_config(host, peer.fd, 4, 2, command)
    edu_writes(host, made.fd, IOVA, 4)
    assert host.kernel.pread(peer.fd, 4, bar(2)) == b"kept"
    ioas_unmap(host, made.context, made.space, IOVA, PAGE)
    ioas_map_file(host, made.context, made.space, buffer, PAGE, IOVA)
    edu_writes(host, made.fd, IOVA, 4)
    assert host.kernel.pread(peer.fd, 4, bar(2)) != b"kept"


# --- Locked memory ---


@case("locked/within-the-limit", source=SPACES)
def locked(host: Host) -> None:
    host.limit_locked_memory(8 * PAGE)
    made = attached(host, "edu")
    memory = host.memory(8 * PAGE)
    for _ in range(2):
        ioas_map(host, made.context, made.space, memory.vaddr, 8 * PAGE, IOVA)
        ioas_unmap(host, made.context, made.space, IOVA, 8 * PAGE)


@case("locked/beyond-the-limit-is-enomem", source=SPACES, error=errno.ENOMEM)
def locked_more(host: Host) -> None:
    host.limit_locked_memory(8 * PAGE)
    made = attached(host, "edu")
    memory = host.memory(9 * PAGE)
    with host.refuses(errno.ENOMEM):
        ioas_map(host, made.context, made.space, memory.vaddr, 9 * PAGE, IOVA)
    ioas_map(host, made.context, made.space, memory.vaddr, 8 * PAGE, IOVA)


@case("locked/same-memory-copied-is-locked-once", source=SPACES)
def locked_copy(host: Host) -> None:

    host.limit_locked_memory(8 * PAGE)
    made = attached(host, "edu")
    memory = host.memory(8 * PAGE)
    ioas_map(host, made.context, made.space, memory.vaddr, 8 * PAGE, IOVA)
    ioas_copy(host, made.context, made.space, IOVA, made.space, 8 * PAGE, 4 * IOVA)


@case("locked/same-memory-mapped-twice-is-locked-twice", source=SPACES, error=errno.ENOMEM)
def locked_twice(host: Host) -> None:
    host.limit_locked_memory(8 * PAGE)
    made = attached(host, "edu")
    memory = host.memory(8 * PAGE)
    ioas_map(host, made.context, made.space, memory.vaddr, 5 * PAGE, IOVA)
    with host.refuses(errno.ENOMEM):
        ioas_map(host, made.context, made.space, memory.vaddr, 5 * PAGE, 4 * IOVA)


@case("locked/without-device-nothing-is-locked", source=SPACES)
def locked_nothing(host: Host) -> None:
    host.limit_locked_memory(PAGE)
    fd = iommufd(host)
    ioas_map(host, fd, ioas(host, fd), host.memory(8 * PAGE).vaddr, 8 * PAGE, IOVA)


@case("locked/attaching-locks-what-is-mapped", source=SPACES, error=errno.ENOMEM)
def locked_attach(host: Host) -> None:
    host.limit_locked_memory(4 * PAGE)
    made = bound(host, "edu")
    space = ioas(host, made.context)
    ioas_map(host, made.context, space, host.memory(8 * PAGE).vaddr, 8 * PAGE, IOVA)
    with host.refuses(errno.ENOMEM):
        attach(host, made.fd, space)


@case("locked/files-are-locked-memory-too", source=SPACES, error=errno.ENOMEM)
def locked_file(host: Host) -> None:
    host.limit_locked_memory(4 * PAGE)
    made = attached(host, "edu")
    file = host.memfd(8 * PAGE)
    with host.refuses(errno.ENOMEM):
        ioas_map_file(host, made.context, made.space, file, 8 * PAGE, IOVA)
    ioas_map_file(host, made.context, made.space, file, 4 * PAGE, IOVA)


@case("locked/by-process-is-limited-as-well", source=SPACES, error=errno.ENOMEM)
def locked_mm(host: Host) -> None:
    host.limit_locked_memory(4 * PAGE)
    context = iommufd(host)
    option(host, context, abi.IOMMU_OPTION_RLIMIT_MODE, 1)
    made = attached(host, "edu", context)
    memory = host.memory(8 * PAGE)
    with host.refuses(errno.ENOMEM):
        ioas_map(host, context, made.space, memory.vaddr, 5 * PAGE, IOVA)
    ioas_map(host, context, made.space, memory.vaddr, 4 * PAGE, IOVA)


@case("locked/accounting-by-process-needs-privilege", source=SPACES)
def locked_privilege(host: Host) -> None:
    context = iommufd(host)
    option(host, context, abi.IOMMU_OPTION_RLIMIT_MODE, 1)


# --- Hot reset ---


def _hot_info(host: Host, fd: int, room: int = 8) -> tuple[int, list[tuple[int, int, int, int]]]:
    buffer = bytearray(12 + 8 * room)
    struct.pack_into("<I", buffer, 0, len(buffer))
    host.ioctl(fd, vfio_abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
    _argsz, flags, count = struct.unpack_from("<III", buffer)
    return flags, [struct.unpack_from("<iHBB", buffer, 12 + 8 * index) for index in range(count)]


_DEV_ID, _OWNED = (
    vfio_abi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID,
    vfio_abi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
)


def _hot_reset(host: Host, fd: int, *fds: int) -> int:
    head = struct.pack("<III", 12 + 4 * len(fds), 0, len(fds))
    return host.ioctl(
        fd,
        vfio_abi.VFIO_DEVICE_PCI_HOT_RESET,
        bytearray(head + struct.pack(f"<{len(fds)}i", *fds)),
    )


@case("hotreset/of-a-bound-device-tells-ids")
def hot_info(host: Host) -> None:
    made = bound(host, "edu")
    flags, rows = _hot_info(host, made.fd)
    assert flags == _DEV_ID | _OWNED
    assert [row[0] for row in rows] == [made.device]


@case("hotreset/unbound-sibling-is-owned-with-the-group", binds=("first", "second"))
def hot_sibling(host: Host) -> None:
    made = bound(host, "first")
    flags, rows = _hot_info(host, made.fd)
    assert flags == _DEV_ID | _OWNED
    assert sorted(row[0] for row in rows) == [vfio_abi.VFIO_PCI_DEVID_OWNED, made.device]
    assert _hot_reset(host, made.fd) == 0


@case("hotreset/of-a-bound-device-takes-no-groups", error=errno.EINVAL)
def hot_groups(host: Host) -> None:
    made = bound(host, "edu")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, made.fd, made.context)
    assert _hot_reset(host, made.fd) == 0


@case(
    "hotreset/with-a-sibling-on-no-driver-is-einval",
    binds="first",
    native="second",
    error=errno.EINVAL,
)
def hot_unbound(host: Host) -> None:
    host.unbind("second")
    made = bound(host, "first")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, made.fd)
