"""Groups and containers: who may open them, and in which order they come together.

Facts: Linux ``drivers/vfio/group.c``, ``container.c``, ``vfio_main.c``.
"""

from __future__ import annotations

import errno

from conformance.behaviour import CONTAINER, behaviour
from conformance.calls import (
    container,
    device_fd,
    group_flags,
    join,
    map_dma,
    node,
    open_group,
    open_role,
    set_container,
    set_iommu,
    unmap_dma,
    unset_container,
)
from conformance.host import Host
from vfiokit.abi import vfio as abi

VIABLE, SET = abi.VFIO_GROUP_FLAGS_VIABLE, abi.VFIO_GROUP_FLAGS_CONTAINER_SET
_TOKEN = "00112233-4455-6677-8899-aabbccddeeff"
SOURCE = "drivers/vfio/group.c, container.c"


@behaviour("group/has-no-node-before-binding", SOURCE, native="edu", error=errno.ENOENT)
def no_node(host: Host) -> None:
    host.unbind("edu")
    with host.refuses(errno.ENOENT):
        open_group(host, "edu")


@behaviour("group/node-appears-with-binding", SOURCE, binds="edu")
def node_appears(host: Host) -> None:
    assert host.kernel.tree.exists(node(host, "edu"))
    open_group(host, "edu")


@behaviour("group/opens-once", SOURCE, binds="edu", error=errno.EBUSY)
def opens_once(host: Host) -> None:
    first = open_group(host, "edu")
    with host.refuses(errno.EBUSY):
        open_group(host, "edu")
    host.close(first)
    open_group(host, "edu")


@behaviour("group/status-follows-the-container", SOURCE, binds="edu", needs=CONTAINER)
def status(host: Host) -> None:
    group, fd = open_group(host, "edu"), container(host)
    assert group_flags(host, group) == VIABLE
    set_container(host, group, fd)
    assert group_flags(host, group) == VIABLE | SET
    unset_container(host, group)
    assert group_flags(host, group) == VIABLE


@behaviour("group/status-with-short-argsz-is-einval", SOURCE, binds="edu", error=errno.EINVAL)
def status_short(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EINVAL):
        group_flags(host, group, argsz=7)


@behaviour("group/status-without-buffer-is-efault", SOURCE, binds="edu", error=errno.EFAULT)
def status_null(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EFAULT):
        host.ioctl(group, abi.VFIO_GROUP_GET_STATUS, 0)


@behaviour("group/unknown-request-is-enotty", SOURCE, binds="edu", error=errno.ENOTTY)
def unknown_request(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.ENOTTY):
        host.ioctl(group, 0x3BFF)
    with host.refuses(errno.ENOTTY):
        host.ioctl(group, abi.VFIO_DEVICE_GET_INFO, bytearray(24))


@behaviour("group/container-minus-one-is-ebadf", SOURCE, binds="edu", error=errno.EBADF)
def container_negative(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EBADF):
        set_container(host, group, -1)


@behaviour("group/container-that-is-not-open-is-ebadf", SOURCE, binds="edu", error=errno.EBADF)
def container_closed(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EBADF):
        set_container(host, group, 999)


@behaviour("group/another-file-as-container-is-ebadfd", SOURCE, binds="edu", error=errno.EBADFD)
def container_wrong(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EBADFD):
        set_container(host, group, group)
    with host.refuses(errno.EBADFD):
        set_container(host, group, host.event())


@behaviour(
    "group/container-set-twice-is-einval",
    SOURCE,
    binds="edu",
    error=errno.EINVAL,
    needs=CONTAINER,
)
def container_twice(host: Host) -> None:
    group, fd = open_group(host, "edu"), container(host)
    set_container(host, group, fd)
    with host.refuses(errno.EINVAL):
        set_container(host, group, fd)
    with host.refuses(errno.EINVAL):
        set_container(host, group, container(host))


@behaviour("group/unset-without-container-is-einval", SOURCE, binds="edu", error=errno.EINVAL)
def unset_early(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EINVAL):
        unset_container(host, group)


@behaviour(
    "group/unset-with-an-open-device-is-ebusy",
    SOURCE,
    binds="edu",
    error=errno.EBUSY,
    needs=CONTAINER,
)
def unset_busy(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EBUSY):
        unset_container(host, opened.group)
    host.close(opened.fd)
    unset_container(host, opened.group)


@behaviour("group/device-without-container-is-einval", SOURCE, binds="edu", error=errno.EINVAL)
def device_early(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EINVAL):
        device_fd(host, group, str(host.roles["edu"]))


@behaviour(
    "group/device-before-set-iommu-is-einval",
    SOURCE,
    binds="edu",
    error=errno.EINVAL,
    needs=CONTAINER,
)
def device_without_iommu(host: Host) -> None:
    group = open_group(host, "edu")
    set_container(host, group, container(host))
    with host.refuses(errno.EINVAL):
        device_fd(host, group, str(host.roles["edu"]))


@behaviour(
    "group/device-of-unknown-name-is-enodev",
    SOURCE,
    binds="edu",
    error=errno.ENODEV,
    needs=CONTAINER,
)
def device_unknown(host: Host) -> None:
    _fd, group = join(host, "edu")
    for name in ("0000:7f:00.0", "edu", ""):
        with host.refuses(errno.ENODEV):
            device_fd(host, group, name)


@behaviour(
    "group/device-of-another-group-is-enodev",
    SOURCE,
    binds=("edu", "below"),
    error=errno.ENODEV,
    needs=CONTAINER,
)
def device_elsewhere(host: Host) -> None:
    _fd, group = join(host, "edu")
    with host.refuses(errno.ENODEV):
        device_fd(host, group, str(host.roles["below"]))


@behaviour(
    "group/device-name-must-be-spelled-exactly",
    SOURCE,
    binds="edu",
    error=errno.ENODEV,
    needs=CONTAINER,
)
def device_spelling(host: Host) -> None:
    _fd, group = join(host, "edu")
    name = str(host.roles["edu"])
    for other in (name.removeprefix("0000:"), name + "0", " " + name):
        with host.refuses(errno.ENODEV):
            device_fd(host, group, other)


@behaviour(
    "group/token-for-a-plain-device-is-einval",
    SOURCE,
    binds="edu",
    error=errno.EINVAL,
    needs=CONTAINER,
)
def device_token(host: Host) -> None:
    _fd, group = join(host, "edu")
    name = str(host.roles["edu"])
    for words in (f"vf_token={_TOKEN}", "vf_token=123", "option=1"):
        with host.refuses(errno.EINVAL):
            device_fd(host, group, f"{name} {words}")


@behaviour("group/blank-after-a-device-name-is-ignored", SOURCE, binds="edu", needs=CONTAINER)
def device_blank(host: Host) -> None:
    _fd, group = join(host, "edu")
    device_fd(host, group, f"{host.roles['edu']} ")


@behaviour("group/device-opens-several-times", SOURCE, binds="edu", needs=CONTAINER)
def device_again(host: Host) -> None:
    opened = open_role(host, "edu")
    second = device_fd(host, opened.group, str(host.roles["edu"]))
    assert second != opened.fd
    host.close(opened.fd)
    assert host.kernel.pread(second, 2, 7 << 40) == b"\x34\x12"


@behaviour(
    "group/open-device-keeps-closed-group-and-container",
    SOURCE,
    binds="edu",
    error=errno.EBUSY,
    needs=CONTAINER,
)
def device_keeps(host: Host) -> None:
    opened = open_role(host, "edu")
    host.close(opened.container)
    host.close(opened.group)
    assert host.kernel.pread(opened.fd, 2, 7 << 40) == b"\x34\x12"
    with host.refuses(errno.EBUSY):
        open_group(host, "edu")
    host.close(opened.fd)
    open_group(host, "edu")


@behaviour(
    "group/with-a-host-driver-is-not-viable",
    SOURCE,
    binds="first",
    native="second",
    error=errno.EPERM,
    needs=CONTAINER,
)
def not_viable(host: Host) -> None:
    group = open_group(host, "first")
    assert group_flags(host, group) == 0
    with host.refuses(errno.EPERM):
        set_container(host, group, container(host))
    host.unbind("second")
    assert group_flags(host, group) == VIABLE
    set_container(host, group, container(host))


@behaviour(
    "group/in-use-refuses-a-host-driver",
    SOURCE,
    binds="first",
    native="second",
    error=errno.EBUSY,
    needs=CONTAINER,
)
def refuses_driver(host: Host) -> None:
    host.unbind("second")
    group = open_group(host, "first")
    set_container(host, group, container(host))
    with host.refuses(errno.EBUSY):
        host.write("/sys/bus/pci/drivers/nvme/bind", str(host.roles["second"]))
    assert host.driver("second") == ""
    unset_container(host, group)
    host.write("/sys/bus/pci/drivers/nvme/bind", str(host.roles["second"]))
    assert host.driver("second") == "nvme"


@behaviour("group/members-share-one-node", SOURCE, binds=("first", "second"), needs=CONTAINER)
def members(host: Host) -> None:
    assert node(host, "first") == node(host, "second")
    _fd, group = join(host, "first")
    for role in ("first", "second"):
        device_fd(host, group, str(host.roles[role]))


@behaviour("group/bridge-on-pcieport-does-not-matter", SOURCE, binds="below", needs=CONTAINER)
def with_bridge(host: Host) -> None:
    folder = f"/sys/kernel/iommu_groups/{host.group('below')}/devices"
    assert len(host.kernel.tree.list(folder)) == 2
    group = open_group(host, "below")
    assert group_flags(host, group) == VIABLE
    set_container(host, group, container(host))


@behaviour("group/read-and-write-are-einval", SOURCE, binds="edu", error=errno.EINVAL)
def no_data(host: Host) -> None:
    group = open_group(host, "edu")
    with host.refuses(errno.EINVAL):
        host.kernel.pread(group, 4, 0)
    with host.refuses(errno.EINVAL):
        host.kernel.pwrite(group, b"1", 0)


# --- Containers ---


@behaviour("container/api-version-is-0", SOURCE)
def api_version(host: Host) -> None:
    assert host.ioctl(container(host), abi.VFIO_GET_API_VERSION) == abi.VFIO_API_VERSION


@behaviour(
    "container/extensions-before-set-iommu",
    "drivers/vfio/container.c, vfio_iommu_type1.c",
    needs=CONTAINER,
)
def extensions_before(host: Host) -> None:
    fd = container(host)
    answers = {
        abi.VFIO_TYPE1_IOMMU: 1,
        abi.VFIO_SPAPR_TCE_IOMMU: 0,
        abi.VFIO_TYPE1v2_IOMMU: 1,
        abi.VFIO_DMA_CC_IOMMU: 0,
        abi.VFIO_EEH: 0,
        6: 0,
        abi.VFIO_SPAPR_TCE_v2_IOMMU: 0,
        abi.VFIO_NOIOMMU_IOMMU: 0,
        abi.VFIO_UNMAP_ALL: 1,
        abi.VFIO_UPDATE_VADDR: 0,
        99: 0,
    }
    seen = {each: host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, each) for each in answers}
    assert seen == answers


@behaviour(
    "container/extensions-after-set-iommu",
    "drivers/vfio/container.c, vfio_iommu_type1.c",
    binds="edu",
    needs=CONTAINER,
)
def extensions_after(host: Host) -> None:
    fd, _group = join(host, "edu")
    answers = {
        abi.VFIO_TYPE1_IOMMU: 1,
        abi.VFIO_TYPE1v2_IOMMU: 1,
        6: 0,
        abi.VFIO_UNMAP_ALL: 1,
        abi.VFIO_UPDATE_VADDR: 1,
        99: 0,
    }
    seen = {each: host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, each) for each in answers}
    assert seen == answers


@behaviour(
    "container/coherency-is-what-the-iommu-can-enforce",
    "drivers/vfio/container.c, vfio_iommu_type1.c",
    binds="edu",
    needs=CONTAINER,
)
def coherency(host: Host) -> None:
    snoop_control = 1 << 7  # VT-d extended capability register, SC
    extended = int(host.read("/sys/class/iommu/dmar0/intel-iommu/ecap"), 16)
    fd, _group = join(host, "edu")
    enforced = host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, abi.VFIO_DMA_CC_IOMMU)
    assert enforced == bool(extended & snoop_control)


@behaviour(
    "container/set-iommu-without-group-is-einval", SOURCE, error=errno.EINVAL, needs=CONTAINER
)
def iommu_early(host: Host) -> None:
    fd = container(host)
    with host.refuses(errno.EINVAL):
        set_iommu(host, fd)


@behaviour(
    "container/set-iommu-twice-is-einval", SOURCE, binds="edu", error=errno.EINVAL, needs=CONTAINER
)
def iommu_twice(host: Host) -> None:
    fd, _group = join(host, "edu")
    for kind in (abi.VFIO_TYPE1v2_IOMMU, abi.VFIO_TYPE1_IOMMU, 77):
        with host.refuses(errno.EINVAL):
            set_iommu(host, fd, kind)


@behaviour(
    "container/unknown-iommu-type-is-enodev",
    SOURCE,
    binds="edu",
    error=errno.ENODEV,
    needs=CONTAINER,
)
def iommu_unknown(host: Host) -> None:
    group, fd = open_group(host, "edu"), container(host)
    set_container(host, group, fd)
    for kind in (77, abi.VFIO_SPAPR_TCE_IOMMU, abi.VFIO_NOIOMMU_IOMMU, 6):
        with host.refuses(errno.ENODEV):
            set_iommu(host, fd, kind)
    set_iommu(host, fd)


@behaviour(
    "container/extension-as-iommu-type-is-einval",
    SOURCE,
    binds="edu",
    error=errno.EINVAL,
    needs=CONTAINER,
)
def iommu_extension(host: Host) -> None:
    group, fd = open_group(host, "edu"), container(host)
    set_container(host, group, fd)
    with host.refuses(errno.EINVAL):
        set_iommu(host, fd, abi.VFIO_UNMAP_ALL)


@behaviour(
    "container/driver-request-before-set-iommu-is-einval",
    SOURCE,
    error=errno.EINVAL,
    needs=CONTAINER,
)
def request_early(host: Host) -> None:
    fd = container(host)
    for request in (abi.VFIO_IOMMU_GET_INFO, abi.VFIO_IOMMU_MAP_DMA, 0x3BFF):
        with host.refuses(errno.EINVAL):
            host.ioctl(fd, request, bytearray(64))


@behaviour(
    "container/unknown-request-is-enotty", SOURCE, binds="edu", error=errno.ENOTTY, needs=CONTAINER
)
def request_unknown(host: Host) -> None:
    fd, _group = join(host, "edu")
    for request in (0x3BFF, abi.VFIO_IOMMU_ENABLE, abi.VFIO_GROUP_GET_STATUS):
        with host.refuses(errno.ENOTTY):
            host.ioctl(fd, request, bytearray(64))


@behaviour("container/type1-v1-is-still-there", SOURCE, binds="edu", needs=CONTAINER)
def version_1(host: Host) -> None:
    open_role(host, "edu", abi.VFIO_TYPE1_IOMMU)


@behaviour(
    "container/second-group-joins-the-address-space",
    SOURCE,
    binds=("edu", "below"),
    needs=CONTAINER,
)
def second_group(host: Host) -> None:
    fd, _group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, 0x10000, memory.vaddr, 0x1000)
    other = open_group(host, "below")
    set_container(host, other, fd)
    device_fd(host, other, str(host.roles["below"]))
    assert unmap_dma(host, fd, 0x10000, 0x1000) == 0x1000


@behaviour(
    "container/last-group-takes-the-iommu-along",
    SOURCE,
    binds="edu",
    error=errno.EINVAL,
    needs=CONTAINER,
)
def last_group(host: Host) -> None:
    fd, group = join(host, "edu")
    memory = host.memory()
    map_dma(host, fd, 0x10000, memory.vaddr, 0x1000)
    unset_container(host, group)
    with host.refuses(errno.EINVAL):
        unmap_dma(host, fd, 0x10000, 0x1000)
    set_container(host, group, fd)
    set_iommu(host, fd)
    assert unmap_dma(host, fd, 0x10000, 0x1000) == 0


@behaviour(
    "container/mapping-survives-one-of-two-groups", SOURCE, binds=("edu", "below"), needs=CONTAINER
)
def one_of_two(host: Host) -> None:
    fd, _group = join(host, "edu")
    other = open_group(host, "below")
    set_container(host, other, fd)
    memory = host.memory()
    map_dma(host, fd, 0x10000, memory.vaddr, 0x1000)
    unset_container(host, other)
    assert unmap_dma(host, fd, 0x10000, 0x1000) == 0x1000


@behaviour("container/mmap-is-enodev", SOURCE, error=errno.ENODEV, needs=CONTAINER)
def no_mmap(host: Host) -> None:
    fd = container(host)
    with host.refuses(errno.ENODEV):
        host.kernel.mmap(fd, 4096, 0)


@behaviour(
    "container/group-request-is-einval-without-iommu", SOURCE, error=errno.EINVAL, needs=CONTAINER
)
def group_request(host: Host) -> None:
    fd = container(host)
    with host.refuses(errno.EINVAL):
        host.ioctl(fd, abi.VFIO_GROUP_GET_STATUS, bytearray(8))
