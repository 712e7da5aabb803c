"""Containers and groups: the state machine of the legacy VFIO interface."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from kernel_host import EDU, FIRST, GIB, NIC, PORT, SECOND, KernelHost, refuses

from vfiokit.abi import vfio as abi
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import root_port
from vfiokit.pci.address import Bdf


@pytest.fixture
def host() -> KernelHost:
    return KernelHost()


def status(host: KernelHost, group: int) -> int:
    buffer = abi.vfio_group_status(argsz=8).pack()
    host.kernel.ioctl(group, abi.VFIO_GROUP_GET_STATUS, buffer)
    return abi.vfio_group_status.unpack_from(buffer).flags


def test_status_follows_the_container(host: KernelHost) -> None:
    host.bind(NIC)
    group, container = host.open_group(NIC), host.container()
    assert status(host, group) == abi.VFIO_GROUP_FLAGS_VIABLE
    host.set_container(group, container)
    assert status(host, group) == 3
    host.kernel.ioctl(group, abi.VFIO_GROUP_UNSET_CONTAINER)
    assert status(host, group) == abi.VFIO_GROUP_FLAGS_VIABLE


def test_a_bridge_on_pcieport_does_not_make_a_group_unviable(host: KernelHost) -> None:
    host.bind(FIRST)
    host.bind(SECOND)
    assert host.kernel.device(Bdf.parse("0000:00:02.0")).driver == "pcieport"
    group = host.open_group(FIRST)
    assert status(host, group) == abi.VFIO_GROUP_FLAGS_VIABLE
    assert host.set_container(group, host.container()) == 0


def nvme_pair() -> SoftwareKernel:
    """Two NVMe controllers below one port without ACS, both on the nvme driver."""
    machine = Machine(ram=GIB)
    machine.add_host_bridge(iommu=machine.add_iommu())
    machine.add(root_port(PORT, 1, window=(0xE000_0000, 0xE010_0000), acs_capability=None))
    for number in range(2):
        function = NvmeFunction.synthetic(Bdf(0, 1, number, 0))
        machine.add(function)
        function.config_write(0x10, 4, 0xE000_0000 + number * 0x10000)
        if function.bars[0].wide:
            function.config_write(0x14, 4, 0)
    return SoftwareKernel(machine)


def test_a_sibling_on_a_host_driver_makes_the_group_unviable() -> None:
    kernel = nvme_pair()
    tree = kernel.tree
    tree.write("/sys/bus/pci/devices/0000:01:00.0/driver/unbind", b"0000:01:00.0")
    tree.write("/sys/bus/pci/devices/0000:01:00.0/driver_override", b"vfio-pci")
    tree.write("/sys/bus/pci/drivers_probe", b"0000:01:00.0")
    number = kernel.device(Bdf.parse("01:00.0")).group
    group, container = kernel.open(f"/dev/vfio/{number}"), kernel.open("/dev/vfio/vfio")
    buffer = abi.vfio_group_status(argsz=8).pack()
    kernel.ioctl(group, abi.VFIO_GROUP_GET_STATUS, buffer)
    assert abi.vfio_group_status.unpack_from(buffer).flags == 0
    with refuses(errno.EPERM):
        kernel.ioctl(
            group, abi.VFIO_GROUP_SET_CONTAINER, bytearray(container.to_bytes(4, "little"))
        )
    tree.write("/sys/bus/pci/devices/0000:01:01.0/driver/unbind", b"0000:01:01.0")
    kernel.ioctl(group, abi.VFIO_GROUP_SET_CONTAINER, bytearray(container.to_bytes(4, "little")))
    with refuses(errno.EBUSY):  # and now the host driver cannot come back
        tree.write("/sys/bus/pci/drivers/nvme/bind", b"0000:01:01.0")


def test_a_group_opens_once(host: KernelHost) -> None:
    host.bind(NIC)
    group = host.open_group(NIC)
    with refuses(errno.EBUSY):
        host.open_group(NIC)
    host.kernel.close(group)
    host.kernel.close(host.open_group(NIC))


def test_a_group_without_vfio_device_has_no_node(host: KernelHost) -> None:
    with refuses(errno.ENOENT):
        host.open_group(NIC)


def _status_short(host: KernelHost, group: int, container: int) -> object:
    del container
    return host.kernel.ioctl(
        group, abi.VFIO_GROUP_GET_STATUS, abi.vfio_group_status(argsz=7).pack()
    )


Action = Callable[[KernelHost, int, int], object]

BEFORE_CONTAINER: list[tuple[str, Action, int]] = [
    ("status with short argsz", _status_short, errno.EINVAL),
    (
        "status without buffer",
        lambda h, g, _c: h.kernel.ioctl(g, abi.VFIO_GROUP_GET_STATUS, 0),
        errno.EFAULT,
    ),
    ("container -1", lambda h, g, _c: h.set_container(g, -1), errno.EBADF),
    ("container not open", lambda h, g, _c: h.set_container(g, 1 << 29), errno.EBADF),
    ("group as container", lambda h, g, _c: h.set_container(g, g), errno.EBADFD),
    (
        "unset without container",
        lambda h, g, _c: h.kernel.ioctl(g, abi.VFIO_GROUP_UNSET_CONTAINER),
        errno.EINVAL,
    ),
    ("device without container", lambda h, g, _c: h.device_fd(g, str(NIC)), errno.EINVAL),
    ("unknown device", lambda h, g, _c: h.device_fd(g, "0000:09:00.0"), errno.ENODEV),
    ("device of another group", lambda h, g, _c: h.device_fd(g, str(EDU)), errno.ENODEV),
    ("device with odd option", lambda h, g, _c: h.device_fd(g, f"{NIC} x=1"), errno.EINVAL),
    (
        "device with malformed token",
        lambda h, g, _c: h.device_fd(g, f"{NIC} vf_token=123"),
        errno.EINVAL,
    ),
    (
        "token for a function that is neither PF nor VF",
        lambda h, g, _c: h.device_fd(g, f"{NIC} vf_token=00112233-4455-6677-8899-aabbccddeeff"),
        errno.EINVAL,
    ),
    (
        "a device request on a group",
        lambda h, g, _c: h.kernel.ioctl(g, abi.VFIO_DEVICE_GET_INFO, bytearray(24)),
        errno.ENOTTY,
    ),
    (
        "SET_IOMMU without groups",
        lambda h, _g, c: h.kernel.ioctl(c, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU),
        errno.EINVAL,
    ),
    (
        "driver request without driver",
        lambda h, _g, c: h.kernel.ioctl(c, abi.VFIO_IOMMU_GET_INFO, bytearray(24)),
        errno.EINVAL,
    ),
    (
        "unknown request without driver",
        lambda h, _g, c: h.kernel.ioctl(c, 0x3BFF, 0),
        errno.EINVAL,
    ),
    ("read of a container", lambda h, _g, c: h.kernel.pread(c, 4, 0), errno.EINVAL),
    ("write of a group", lambda h, g, _c: h.kernel.pwrite(g, b"1", 0), errno.EINVAL),
    ("mmap of a group", lambda h, g, _c: h.kernel.mmap(g, 4096, 0), errno.ENODEV),
    ("unknown descriptor", lambda h, _g, _c: h.kernel.ioctl(1 << 29, 0, 0), errno.EBADF),
]


@pytest.mark.parametrize(
    ("action", "code"), [row[1:] for row in BEFORE_CONTAINER], ids=[r[0] for r in BEFORE_CONTAINER]
)
def test_refused_before_the_group_has_a_container(
    host: KernelHost, action: Action, code: int
) -> None:
    host.bind(NIC)
    group, container = host.open_group(NIC), host.container()
    with refuses(code):
        action(host, group, container)


AFTER_CONTAINER: list[tuple[str, Action, int]] = [
    ("container set twice", lambda h, g, c: h.set_container(g, c), errno.EINVAL),
    (
        "device without IOMMU",
        lambda h, g, _c: h.device_fd(g, str(NIC)),
        errno.EINVAL,
    ),
    (
        "unknown IOMMU type",
        lambda h, _g, c: h.kernel.ioctl(c, abi.VFIO_SET_IOMMU, 77),
        errno.ENODEV,
    ),
    (
        "SPAPR on a PC",
        lambda h, _g, c: h.kernel.ioctl(c, abi.VFIO_SET_IOMMU, abi.VFIO_SPAPR_TCE_IOMMU),
        errno.ENODEV,
    ),
    (
        "an extension that is no type",
        lambda h, _g, c: h.kernel.ioctl(c, abi.VFIO_SET_IOMMU, abi.VFIO_UNMAP_ALL),
        errno.EINVAL,
    ),
]


@pytest.mark.parametrize(
    ("action", "code"), [row[1:] for row in AFTER_CONTAINER], ids=[r[0] for r in AFTER_CONTAINER]
)
def test_refused_before_the_container_has_an_iommu(
    host: KernelHost, action: Action, code: int
) -> None:
    host.bind(NIC)
    group, container = host.open_group(NIC), host.container()
    host.set_container(group, container)
    with refuses(code):
        action(host, group, container)


def test_set_iommu_twice_is_einval_and_unknown_requests_are_enotty(host: KernelHost) -> None:
    container, _group = host.ready(NIC)
    with refuses(errno.EINVAL):
        host.kernel.ioctl(container, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
    with refuses(errno.ENOTTY):
        host.kernel.ioctl(container, abi.VFIO_IOMMU_ENABLE)


def test_unset_while_a_device_is_open_is_ebusy(host: KernelHost) -> None:
    _container, group = host.ready(NIC)
    fd = host.device_fd(group, str(NIC))
    with refuses(errno.EBUSY):
        host.kernel.ioctl(group, abi.VFIO_GROUP_UNSET_CONTAINER)
    host.kernel.close(fd)
    host.kernel.ioctl(group, abi.VFIO_GROUP_UNSET_CONTAINER)


@pytest.mark.parametrize(
    ("extension", "before", "after"),
    [
        (abi.VFIO_TYPE1_IOMMU, 1, 1),
        (abi.VFIO_TYPE1v2_IOMMU, 1, 1),
        (abi.VFIO_UNMAP_ALL, 1, 1),
        (abi.VFIO_UPDATE_VADDR, 0, 1),
        (abi.VFIO_DMA_CC_IOMMU, 0, 1),
        (abi.VFIO_SPAPR_TCE_IOMMU, 0, 0),
        (abi.VFIO_NOIOMMU_IOMMU, 0, 0),
        (6, 0, 0),
    ],
)
def test_extensions(host: KernelHost, extension: int, before: int, after: int) -> None:
    container = host.container()
    assert host.kernel.ioctl(container, abi.VFIO_CHECK_EXTENSION, extension) == before
    ready, _group = host.ready(NIC)
    assert host.kernel.ioctl(ready, abi.VFIO_CHECK_EXTENSION, extension) == after
    assert host.kernel.ioctl(ready, abi.VFIO_GET_API_VERSION) == 0


def test_an_open_device_keeps_its_closed_group_and_container(host: KernelHost) -> None:
    container, group = host.ready(NIC)
    fd = host.device_fd(group, str(NIC))
    host.kernel.close(container)
    host.kernel.close(group)
    assert host.config(fd, 0, 2) == 0x8086
    with refuses(errno.EBUSY):
        host.open_group(NIC)
    host.kernel.close(fd)
    again = host.open_group(NIC)
    assert status(host, again) == abi.VFIO_GROUP_FLAGS_VIABLE


def test_a_device_opens_several_times_through_its_group(host: KernelHost) -> None:
    _container, group = host.ready(NIC)
    first, second = host.device_fd(group, str(NIC)), host.device_fd(group, str(NIC))
    assert first != second
    host.set_config(first, 4, 2, 0x0006)
    assert host.config(second, 4, 2) == 0x0006
    host.kernel.close(first)
    assert host.config(second, 4, 2) == 0x0006
    host.kernel.close(second)


def test_a_second_group_joins_the_address_space_of_the_first(host: KernelHost) -> None:
    container, _group = host.ready(NIC)
    host.bind(EDU)
    other = host.open_group(EDU)
    host.set_container(other, container)
    assert host.device_fd(other, str(EDU)) > 0


def test_a_closed_descriptor_is_ebadf(host: KernelHost) -> None:
    container = host.container()
    host.kernel.close(container)
    with refuses(errno.EBADF):
        host.kernel.close(container)


def test_unowned_groups_reach_memory_and_owned_ones_are_blocked(host: KernelHost) -> None:
    hpa = host.machine.memory.allocate(4096)
    host.edu.config_write(4, 2, 0x0006)
    host.edu.dma.write(hpa, b"host")
    assert host.machine.memory.read(hpa, 4) == b"host"
    host.bind(EDU)
    group, container = host.open_group(EDU), host.container()
    host.set_container(group, container)
    host.edu.config_write(4, 2, 0x0006)
    host.edu.dma.write(hpa, b"user")
    assert host.machine.memory.read(hpa, 4) == b"host"
    assert host.machine.iommus[0].faults.total == 1


def test_without_interrupt_remapping_set_iommu_is_eperm() -> None:
    host = KernelHost()
    host.machine.iommus[0].remapper.enabled = False
    host.bind(NIC)
    group, container = host.open_group(NIC), host.container()
    host.set_container(group, container)
    with refuses(errno.EPERM):
        host.kernel.ioctl(container, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
    host.kernel.iommus.allow_unsafe_interrupts = True
    host.kernel.ioctl(container, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
