"""vfio-pci where there is no IOMMU: refused, unless its user accepts that nothing isolates.

Facts: Linux ``drivers/vfio/{vfio_main,group,container}.c``.
"""

from __future__ import annotations

import errno

from conformance.behaviour import NO_IOMMU, behaviour
from conformance.calls import (
    MSI,
    config,
    container,
    device_fd,
    device_info,
    enable,
    group_flags,
    map_dma,
    node,
    peek,
    set_container,
    set_iommu,
    set_irqs,
    settle,
)
from conformance.host import PAGE, Host
from conformance.iommufd_calls import iommufd
from vfiokit.abi import vfio as abi

SOURCE = "drivers/vfio/vfio_main.c, container.c"
MODE = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
VFIO = "/sys/bus/pci/drivers/vfio-pci"


def case(name: str, *, error: int | tuple[int, ...] = ()):
    """A behaviour of a machine without IOMMU."""
    return behaviour(f"noiommu/{name}", SOURCE, error=error, needs=NO_IOMMU)


def _bound(host: Host) -> str:
    """The edu on vfio-pci in the unsafe mode; path of its group's node."""
    host.write(MODE, "Y")
    host.finally_write(MODE, "N")
    host.bind("edu")
    return f"/dev/vfio/noiommu-{host.group('edu')}"


def _joined(host: Host) -> tuple[int, int]:
    group, fd = host.open(_bound(host)), container(host)
    set_container(host, group, fd)
    set_iommu(host, fd, abi.VFIO_NOIOMMU_IOMMU)
    return fd, group


def _device(host: Host) -> int:
    _fd, group = _joined(host)
    fd = device_fd(host, group, str(host.roles["edu"]))
    settle(host, "edu", fd)
    return fd


@case("functions-have-no-group")
def no_group(host: Host) -> None:
    host.unbind("edu")
    assert not host.kernel.tree.exists(host.path("edu", "iommu_group"))


@case("binding-is-einval", error=errno.EINVAL)
def binding(host: Host) -> None:
    host.unbind("edu")
    host.write(host.path("edu", "driver_override"), "vfio-pci")
    with host.refuses(errno.EINVAL):
        host.write(f"{VFIO}/bind", str(host.roles["edu"]))


@case("unsafe-mode-makes-a-group-by-another-name")
def unsafe(host: Host) -> None:
    path = _bound(host)
    assert host.kernel.tree.exists(path)
    assert not host.kernel.tree.exists(node(host, "edu"))
    name = f"/sys/kernel/iommu_groups/{host.group('edu')}/name"
    assert host.read(name) == "vfio-noiommu"


@case("group-goes-with-the-driver")
def unbound(host: Host) -> None:
    path = _bound(host)
    host.unbind("edu")
    assert not host.kernel.tree.exists(path)
    assert not host.kernel.tree.exists(host.path("edu", "iommu_group"))


@case("group-is-viable")
def viable(host: Host) -> None:
    group = host.open(_bound(host))
    assert group_flags(host, group) == abi.VFIO_GROUP_FLAGS_VIABLE


@case("extensions")
def extensions(host: Host) -> None:
    group, fd = host.open(_bound(host)), container(host)
    set_container(host, group, fd)
    seen = [host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, each) for each in (1, 3, 8)]
    assert seen == [0, 0, 1]


@case("type1-is-enodev", error=errno.ENODEV)
def type1(host: Host) -> None:
    group, fd = host.open(_bound(host)), container(host)
    set_container(host, group, fd)
    for kind in (abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU):
        with host.refuses(errno.ENODEV):
            set_iommu(host, fd, kind)
    set_iommu(host, fd, abi.VFIO_NOIOMMU_IOMMU)


@case("mapping-is-enotty", error=errno.ENOTTY)
def mapping(host: Host) -> None:
    fd, _group = _joined(host)
    with host.refuses(errno.ENOTTY):
        map_dma(host, fd, 0x10000, host.memory().vaddr, PAGE)
    with host.refuses(errno.ENOTTY):
        host.ioctl(fd, abi.VFIO_IOMMU_GET_INFO, bytearray(24))


@case("device-works")
def device(host: Host) -> None:
    fd = _device(host)
    assert config(host, fd, 0, 2) == 0x1234
    assert peek(host, fd, 0, 0) == 0x010000ED
    assert device_info(host, fd).num_irqs == 5


@case("interrupts-work")
def interrupts(host: Host) -> None:
    fd, event = _device(host), host.event()
    enable(host, fd, MSI, [event])
    set_irqs(host, fd, abi.VFIO_IRQ_SET_DATA_NONE | abi.VFIO_IRQ_SET_ACTION_TRIGGER, MSI, 0, 1)
    assert host.fired(event) == 1


@case("empty-container-offers-every-driver")
def empty_container(host: Host) -> None:
    fd = container(host)
    assert host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, abi.VFIO_NOIOMMU_IOMMU) == 0
    _bound(host)
    fd = container(host)
    seen = [host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, each) for each in (1, 3, 8)]
    assert seen == [1, 1, 1]


@case("device-has-no-node-of-its-own")
def no_node(host: Host) -> None:
    _bound(host)
    (name,) = host.kernel.tree.list(host.path("edu", "vfio-dev"))
    assert not host.kernel.tree.exists(f"/dev/vfio/devices/{name}")
    assert not host.kernel.tree.exists(host.path("edu", f"vfio-dev/{name}/dev"))


@case("iommufd-can-stand-in-for-the-container", error=errno.EINVAL)
def iommufd_stands_in(host: Host) -> None:
    group, fd = host.open(_bound(host)), iommufd(host)
    set_container(host, group, fd)
    seen = [host.ioctl(fd, abi.VFIO_CHECK_EXTENSION, each) for each in (1, 3, 8)]
    assert seen == [0, 0, 1]
    with host.refuses(errno.EINVAL):
        set_iommu(host, fd)
    set_iommu(host, fd, abi.VFIO_NOIOMMU_IOMMU)
    device = device_fd(host, group, str(host.roles["edu"]))
    assert config(host, device, 0, 2) == 0x1234


@case("group-tells-nothing-of-its-domain")
def group_files(host: Host) -> None:
    _bound(host)
    folder = f"/sys/kernel/iommu_groups/{host.group('edu')}"
    assert host.read(f"{folder}/type") == "unknown"
    assert host.read(f"{folder}/reserved_regions") == ""
