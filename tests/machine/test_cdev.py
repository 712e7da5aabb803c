"""Device nodes: sysfs, binding to an iommufd, attaching, hot reset."""

from __future__ import annotations

import errno
import struct

import pytest
from iommufd_host import IommufdHost
from kernel_host import EDU, FIRST, NIC, PAGE, SECOND, KernelHost, refuses

from vfiokit.abi import vfio
from vfiokit.machine.kernel.iommu_group import DomainKind
from vfiokit.vfio import open_device

OWNED, NOT_OWNED = 0, 0xFFFF_FFFF


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


def folder(bdf: object) -> str:
    return f"/sys/bus/pci/devices/{bdf}/vfio-dev"


# -- nodes ------------------------------------------------------------------------------------


def test_a_bound_function_has_a_node_and_a_folder(host: IommufdHost) -> None:
    host.bind(NIC)
    tree = host.kernel.tree
    assert tree.list(folder(NIC)) == ["vfio0"]
    place = f"{folder(NIC)}/vfio0"
    assert tree.list(place) == ["dev", "device", "subsystem", "uevent"]
    number = tree.read(f"{place}/dev").decode().strip()
    major, minor = number.split(":")
    assert tree.read(f"{place}/uevent").decode().splitlines() == [
        f"MAJOR={major}",
        f"MINOR={minor}",
        "DEVNAME=vfio/devices/vfio0",
    ]
    assert tree.real_path(f"{place}/device") == tree.real_path(f"/sys/bus/pci/devices/{NIC}")
    assert tree.real_path(f"{place}/subsystem") == "/sys/class/vfio-dev"
    assert tree.real_path("/sys/class/vfio-dev/vfio0") == tree.real_path(place)
    assert tree.list("/dev/vfio/devices") == ["vfio0"]


def test_numbers_are_the_lowest_that_are_free(host: IommufdHost) -> None:
    for bdf in (NIC, EDU, FIRST):
        host.bind(bdf)
    host.unbind(NIC)
    host.bind(SECOND)
    assert host.kernel.tree.list(folder(SECOND)) == ["vfio0"]
    assert host.kernel.tree.list("/dev/vfio/devices") == ["vfio0", "vfio1", "vfio2"]


def test_binding_and_unbinding_leaves_no_trace(host: IommufdHost) -> None:
    before = host.kernel.snapshot()

    def leave() -> dict[str, bytes | str]:
        host.unbind(NIC)
        host.kernel.tree.write(f"/sys/bus/pci/devices/{NIC}/driver_override", b"\n")
        return host.kernel.snapshot()

    host.bind(NIC)
    assert leave() == before
    host.kernel.close(host.bound()[0])
    assert leave().keys() == before.keys()


def test_a_kernel_without_device_nodes_has_the_folder_alone() -> None:
    host = IommufdHost(cdev=False)
    host.bind(NIC)
    assert host.kernel.tree.list(f"{folder(NIC)}/vfio0") == ["device", "subsystem", "uevent"]
    assert not host.kernel.tree.exists("/dev/vfio/devices")


def test_a_function_does_not_leave_while_its_node_is_bound(host: IommufdHost) -> None:
    device, _number = host.bound()
    with refuses(errno.EBUSY):
        host.unbind(NIC)
    host.kernel.close(device)
    host.unbind(NIC)


def test_an_idle_function_sleeps_unless_the_parameter_says_otherwise(host: IommufdHost) -> None:
    host.bind(NIC)
    assert host.kernel.device(NIC).power_state == 3
    host.unbind(NIC)
    host.kernel.tree.write("/sys/module/vfio_pci/parameters/disable_idle_d3", b"1")
    assert host.kernel.tree.read("/sys/module/vfio_pci/parameters/disable_idle_d3") == b"Y\n"
    host.bind(NIC)
    assert host.kernel.device(NIC).power_state == 0
    host.kernel.close(host.bound()[0])
    assert host.kernel.device(NIC).power_state == 0


# -- before binding ---------------------------------------------------------------------------


@pytest.mark.parametrize("request_number", [*range(7, 18), 19, 20, 21, 24])
def test_nothing_works_before_it_is_bound(host: IommufdHost, request_number: int) -> None:
    device = host.cdev()
    with refuses(errno.EINVAL):
        host.kernel.ioctl(
            device, vfio.VFIO_GET_API_VERSION + request_number, bytearray(b"\x40" + bytes(63))
        )


def test_no_region_before_it_is_bound(host: IommufdHost) -> None:
    device = host.cdev()
    with refuses(errno.EINVAL):
        host.kernel.pread(device, 2, 7 << 40)
    with refuses(errno.EINVAL):
        host.kernel.pwrite(device, bytes(2), 7 << 40)
    with refuses(errno.EINVAL):
        host.kernel.mmap(device, PAGE, 0)


def test_an_open_node_does_not_keep_the_group(host: IommufdHost) -> None:
    device = host.cdev()
    group = host.open_group(NIC)
    with refuses(errno.EBUSY):
        host.bind_iommufd(device)
    host.kernel.close(group)
    host.bind_iommufd(device)
    with refuses(errno.EBUSY):
        host.open_group(NIC)


# -- bind -------------------------------------------------------------------------------------


def test_binding_returns_an_id_and_gives_access(host: IommufdHost) -> None:
    device, number = host.bound()
    assert number == 1
    assert host.config(device, 0, 4) == 0x15728086
    assert not host.config(device, 4, 2) & 4
    with refuses(errno.EBUSY):
        host.destroy(number)
    host.kernel.close(device)
    with refuses(errno.ENOENT):
        host.destroy(number)


@pytest.mark.parametrize(
    ("fields", "argsz", "code"),
    [
        ({}, 15, errno.EINVAL),
        ({"flags": 2}, 24, errno.EINVAL),
        ({"iommufd": -1}, 24, errno.EINVAL),
        ({"iommufd": -2}, 24, errno.EINVAL),
        ({"iommufd": 999}, 24, errno.EBADF),
        ({"iommufd": 1 << 29}, 24, errno.EBADF),
    ],
)
def test_binding_is_refused(
    host: IommufdHost, fields: dict[str, int], argsz: int, code: int
) -> None:
    device = host.cdev()
    wish = vfio.vfio_device_bind_iommufd(**({"iommufd": host.fd} | fields))
    with refuses(code):
        host.ask_vfio(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, wish, argsz)
    host.bind_iommufd(device)


def test_binding_to_anything_but_an_iommufd_is_ebadfd(host: IommufdHost) -> None:
    device, event = host.cdev(), host.kernel.eventfd()
    for other in (device, host.container(), event):
        with refuses(errno.EBADFD):
            host.bind_iommufd(device, other)
    host.kernel.close(event)


def test_bytes_that_are_not_known_are_e2big(host: IommufdHost) -> None:
    device = host.cdev()
    wish = vfio.vfio_device_bind_iommufd(argsz=32, iommufd=host.fd)
    with refuses(errno.E2BIG):
        host.kernel.ioctl(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, wish.pack() + bytes(7) + b"\1")
    host.ask_vfio(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, wish, argsz=16)


def test_a_device_is_bound_once(host: IommufdHost) -> None:
    device, _number = host.bound()
    with refuses(errno.EINVAL):
        host.bind_iommufd(device)
    second = host.cdev()  # opening it is no crime
    with refuses(errno.EINVAL):
        host.bind_iommufd(second)
    host.kernel.close(device)
    assert host.bind_iommufd(second) == 1


def test_a_token_for_a_function_without_sriov_is_einval(host: IommufdHost) -> None:
    device = host.cdev()
    with refuses(errno.EINVAL):
        host.bind_iommufd(device, flags=1, token_uuid_ptr=host.page.vaddr)
    with refuses(errno.EFAULT):
        host.bind_iommufd(device, flags=1, token_uuid_ptr=0x1000)
    host.bind_iommufd(device)


def test_a_group_belongs_to_one_iommufd(host: IommufdHost) -> None:
    first, second = host.cdev(FIRST), host.cdev(SECOND)
    other = host.kernel.open("/dev/iommu")
    assert host.bind_iommufd(first) == 1
    with refuses(errno.EPERM):
        host.bind_iommufd(second, other)
    assert host.bind_iommufd(second) == 2
    host.kernel.close(first)
    host.kernel.close(second)
    host.bind_iommufd(host.cdev(SECOND), other)


def test_a_group_is_free_again_with_its_last_device(host: IommufdHost) -> None:
    group = host.kernel.group_of(host.kernel.device(FIRST))
    assert group is not None
    (first, _), (second, _) = host.bound(FIRST), host.bound(SECOND)
    assert group.domain is DomainKind.BLOCKED
    host.kernel.close(first)
    assert not group.claimable
    host.kernel.close(second)
    assert group.claimable
    assert group.domain is group.default


def test_a_host_driver_in_the_group_is_eperm(host: IommufdHost) -> None:
    group = host.kernel.group_of(host.kernel.device(FIRST))
    assert group is not None
    device = host.cdev(FIRST)
    group.use_default_domain()
    with refuses(errno.EPERM):
        host.bind_iommufd(device)
    group.unuse_default_domain()
    host.bind_iommufd(device)
    with refuses(errno.EBUSY):
        group.use_default_domain()


def test_without_isolated_interrupts_binding_is_eperm() -> None:
    host = IommufdHost()
    host.machine.iommus[0].remapper.enabled = False
    device = host.cdev()
    with refuses(errno.EPERM):
        host.bind_iommufd(device)
    tree = host.kernel.tree
    tree.write("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", b"Y")
    with refuses(errno.EPERM):  # that is the containers' parameter
        host.bind_iommufd(device)
    tree.write("/sys/module/iommufd/parameters/allow_unsafe_interrupts", b"Y\n")
    host.bind_iommufd(device)


def test_a_bound_device_keeps_its_iommufd(host: IommufdHost) -> None:
    device, _number = host.bound()
    ioas = host.ioas()
    memory = host.memory()
    memory.view[:2] = b"ok"
    host.map(ioas, memory.vaddr, PAGE, 0x5000)
    host.enable(device)
    host.kernel.close(host.fd)
    host.attach(device, ioas)
    assert host.nic.dma.read(0x5000, 2) == b"ok"
    mapping = host.kernel.mmap(device, PAGE, 0)
    host.kernel.close(device)
    assert host.nic.dma.read(0x5000, 2) == b"ok"  # the mapping holds the file
    mapping.close()
    host.bind_iommufd(host.cdev(), host.kernel.open("/dev/iommu"))
    memory.close()


# -- attach -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "argsz", "code"),
    [
        ({}, 11, errno.EINVAL),
        ({"flags": 2}, 16, errno.EINVAL),
        ({"flags": 1, "pasid": 1}, 12, errno.EINVAL),
        ({"flags": 1, "pasid": 1}, 16, errno.EINVAL),  # an IOAS is not for PASIDs
        ({"pt_id": 0}, 16, errno.ENOENT),
        ({"pt_id": 0xFFFF_FFFF}, 16, errno.ENOENT),
        ({"pt_id": 1}, 16, errno.EINVAL),  # the device itself
    ],
)
def test_attaching_is_refused(
    host: IommufdHost, fields: dict[str, int], argsz: int, code: int
) -> None:
    device, _number = host.bound()
    wish = vfio.vfio_device_attach_iommufd_pt(**({"pt_id": host.ioas()} | fields))
    with refuses(code):
        host.ask_vfio(device, vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, wish, argsz)


def test_attaching_names_the_page_table(host: IommufdHost) -> None:
    device, _number = host.bound()
    first, second = host.ioas(), host.ioas()
    assert host.attach(device, first) == 4
    assert host.attach(device, first) == 4
    for used in (first, 4):
        with refuses(errno.EBUSY):
            host.destroy(used)
    assert host.attach(device, second) == 5  # made before the other went
    host.destroy(first)
    host.detach(device)
    host.detach(device)
    host.destroy(second)


@pytest.mark.parametrize(
    ("fields", "argsz"), [({}, 7), ({"flags": 2}, 12), ({"flags": 1, "pasid": 1}, 8)]
)
def test_detaching_is_refused(host: IommufdHost, fields: dict[str, int], argsz: int) -> None:
    device, _number = host.bound()
    wish = vfio.vfio_device_detach_iommufd_pt(**fields)
    with refuses(errno.EINVAL):
        host.ask_vfio(device, vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, wish, argsz)


def test_a_group_has_one_page_table(host: IommufdHost) -> None:
    (first, number), (second, _) = host.bound(FIRST), host.bound(SECOND)
    one, two = host.ioas(), host.ioas()
    shared = host.attach(first, one)
    with refuses(errno.EINVAL):
        host.attach(second, two)
    assert host.attach(second, one) == shared
    moved = host.attach(first, two)  # replaces that of the whole group
    by_hand = host.hwpt(number, one)
    assert host.attach(second, two) == moved
    assert host.attach(second, by_hand) == by_hand
    host.detach(first)
    with refuses(errno.EINVAL):
        host.attach(first, one)
    assert host.attach(first, by_hand) == by_hand
    host.detach(first)
    host.detach(second)
    host.destroy(by_hand)
    host.destroy(one)
    host.destroy(two)


def test_replacing_moves_the_reservations_of_the_whole_group(host: IommufdHost) -> None:
    (first, _), (second, _) = host.bound(FIRST), host.bound(SECOND)
    one, two = host.ioas(), host.ioas()
    host.attach(first, one)
    host.attach(second, one)
    host.map(two, host.memory().vaddr, PAGE, 0xFEE0_0000)
    with refuses(errno.EADDRINUSE):
        host.attach(second, two)
    assert len(host.ranges(one)[0]) == 2
    host.unmap(two)
    host.attach(second, two)
    assert host.ranges(one) == ([(0, (1 << 64) - 1)], 1)
    host.detach(first)
    assert len(host.ranges(two)[0]) == 2
    host.detach(second)
    assert host.ranges(two) == ([(0, (1 << 64) - 1)], 1)


def test_devices_of_other_groups_share_a_page_table(host: IommufdHost) -> None:
    (nic, _), (edu, _) = host.bound(NIC), host.bound(EDU)
    ioas = host.ioas()
    assert host.attach(nic, ioas) == host.attach(edu, ioas)


# -- hot reset --------------------------------------------------------------------------------


def reset_info(host: IommufdHost, device: int, argsz: int = 64) -> tuple[int, list[int]]:
    """Flags and the ids."""
    buffer = bytearray(argsz.to_bytes(4, "little") + bytes(60))
    host.kernel.ioctl(device, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
    _argsz, flags, count = struct.unpack_from("<III", buffer)
    return flags, [struct.unpack_from("<I", buffer, 12 + 8 * i)[0] for i in range(count)]


def hot_reset(host: IommufdHost, device: int, *fds: int, flags: int = 0) -> None:
    head = struct.pack("<III", 12 + 4 * len(fds), flags, len(fds))
    request = bytearray(head + struct.pack(f"<{len(fds)}i", *fds))
    host.kernel.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, request)


def test_hot_reset_by_iommufd(host: IommufdHost) -> None:
    first, number = host.bound(FIRST)
    assert reset_info(host, first) == (1, [number, NOT_OWNED])
    with refuses(errno.EINVAL):  # SECOND is with no driver
        hot_reset(host, first)
    short = bytearray(struct.pack("<III", 12, 0, 0))
    with refuses(errno.ENOSPC):
        host.kernel.ioctl(first, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, short)
    assert struct.unpack("<III", short) == (12, 0, 2)
    host.bind(SECOND)
    assert reset_info(host, first) == (3, [number, OWNED])
    hot_reset(host, first)
    second = host.cdev(SECOND)
    assert reset_info(host, first) == (3, [number, OWNED])
    other = host.bind_iommufd(second)
    assert reset_info(host, first) == (3, [number, other])
    assert reset_info(host, second) == (3, [number, other])
    hot_reset(host, second)


def test_hot_reset_by_iommufd_takes_no_groups(host: IommufdHost) -> None:
    device, _number = host.bound(NIC)
    with refuses(errno.EINVAL):
        hot_reset(host, device, host.fd)
    with refuses(errno.EINVAL):
        hot_reset(host, device, flags=1)
    hot_reset(host, device)


def test_hot_reset_of_a_function_on_the_root_bus_is_enodev(host: IommufdHost) -> None:
    device, _number = host.bound(EDU)
    with refuses(errno.ENODEV):
        reset_info(host, device)
    with refuses(errno.ENODEV):
        hot_reset(host, device)


def test_a_group_with_an_iommufd_still_names_groups(host: IommufdHost) -> None:
    host.bind(NIC)
    group = host.open_group(NIC)
    host.set_container(group, host.fd)
    device = host.device_fd(group, str(NIC))
    flags, ids = reset_info(host, device)
    assert (flags, ids) == (0, [host.group_number(NIC)])
    with refuses(errno.EINVAL):
        hot_reset(host, device)
    hot_reset(host, device, group)


# -- the library ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cdev", "group"])
def test_the_library_finds_either_way(backend: str) -> None:
    host = KernelHost()
    host.bind(NIC)
    with open_device(host.kernel, NIC, backend=backend) as device:
        device.set_bus_master(True)
        with device.address_space.allocate(PAGE) as buffer:
            buffer.view[:4] = b"same"
            assert host.nic.dma.read(buffer.iova, 4) == b"same"
