"""Devices by their own nodes, and which way into the kernel is taken."""

from __future__ import annotations

import errno
import gc
from uuid import UUID

import pytest
from iommufd_fake import BDF, GROUP, PAGE, SECOND, IommufdHost

from vfiokit.abi import vfio as abi
from vfiokit.errors import (
    DeviceBusyError,
    DeviceNotFoundError,
    GroupNotViableError,
    KernelError,
    UsageError,
)
from vfiokit.pci.address import Bdf
from vfiokit.vfio import (
    Cdev,
    CdevBackend,
    Container,
    GroupBackend,
    Hwpt,
    Ioas,
    Iommufd,
    open_address_space,
    open_device,
)
from vfiokit.vfio.cdev import cdev_node
from vfiokit.vfio.hot_reset import AffectedFunction
from vfiokit.vfio.opening import BACKEND_VARIABLE

TOKEN = UUID("2ab74924-c335-45f4-9b16-8569e5b08258")
ADDRESS = Bdf.parse(BDF)


@pytest.fixture(autouse=True)
def no_wish(monkeypatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


@pytest.fixture
def pair() -> IommufdHost:
    return IommufdHost(members={BDF: "vfio-pci", SECOND: "vfio-pci"})


# -- life -----------------------------------------------------------------------------------


def test_device_goes_before_its_iommufd(host: IommufdHost) -> None:
    with open_device(host, BDF, backend="cdev") as device:
        buffer = device.address_space.allocate(PAGE)
        device.msix.enable(2)
        device.set_bus_master(True)
    device.close()
    assert buffer.closed
    assert not host.config[4] & 4
    assert host.closed_order == ["cdev", "iommufd"]
    assert host.open_fds == {}


def test_device_works_as_one_opened_by_its_group(host: IommufdHost) -> None:
    seen = []
    for backend in ("cdev", "group"):
        with open_device(host, BDF, backend=backend) as device:
            mapping = device.region(0).map()
            mapping.write32(8, 0x1234)
            with device.msix.enable(1) as (vector,):
                device.msix.trigger(0)
                seen.append(
                    (
                        device.region(0).read32(8),
                        vector.wait(1),
                        device.can_reset,
                        [region.index for region in device.regions],
                        device.address_space.page_size,
                    )
                )
    assert seen[0] == seen[1]


def test_failure_on_the_way_leaves_nothing_open(host: IommufdHost) -> None:
    host.isolated_msi = False
    with pytest.raises(KernelError) as caught:
        open_device(host, BDF, backend="cdev")
    assert caught.value.errno == errno.EPERM
    assert "iommufd.allow_unsafe_interrupts" in caught.value.hint
    assert host.open_fds == {}


def test_forgotten_node_warns(host: IommufdHost) -> None:
    cdev = Cdev.open(host, ADDRESS)
    with pytest.warns(ResourceWarning, match="unclosed <Cdev"):
        del cdev


def test_shared_ioas_survives_its_devices_and_learns_that_they_left(pair: IommufdHost) -> None:
    with Ioas.open(pair) as space:
        with (
            open_device(pair, BDF, address_space=space) as first,
            open_device(pair, SECOND, address_space=space) as second,
        ):
            assert first.address_space is second.address_space is space
            buffer = space.allocate(PAGE)
            assert len(space.iova_ranges) == 2
        assert len(space.iova_ranges) == 1
        assert not buffer.closed
    assert buffer.closed
    assert pair.open_fds == {}


# -- refusals -------------------------------------------------------------------------------


def test_host_driver_in_the_group_is_named() -> None:
    host = IommufdHost(members={BDF: "vfio-pci", SECOND: "snd_hda_intel"})
    with pytest.raises(GroupNotViableError) as caught:
        open_device(host, BDF, backend="cdev")
    assert caught.value.blockers == {SECOND: "snd_hda_intel"}
    assert host.open_fds == {}


def test_second_opener_is_busy_by_either_way(host: IommufdHost) -> None:
    with open_device(host, BDF, backend="cdev"):
        for backend in ("cdev", "group"):
            with pytest.raises(DeviceBusyError):
                open_device(host, BDF, backend=backend)
    with open_device(host, BDF, backend="group"):
        with pytest.raises(DeviceBusyError, match="EBUSY") as caught:
            open_device(host, BDF, backend="cdev")
        assert "/dev/vfio/<group>" in caught.value.hint


def test_second_function_of_a_group_must_share_the_ioas(pair: IommufdHost) -> None:
    with open_device(pair, BDF, backend="cdev") as first:
        with pytest.raises(KernelError) as caught:
            open_device(pair, SECOND, backend="cdev")
        assert caught.value.errno == errno.EPERM
        assert "one Ioas" in caught.value.hint
        space = first.address_space
        assert isinstance(space, Ioas)
        with Ioas.create(space.iommufd) as other, pytest.raises(KernelError) as caught:
            open_device(pair, SECOND, address_space=other)
        assert caught.value.errno == errno.EINVAL
        assert "share one Ioas" in caught.value.hint


def test_function_without_a_node_says_why(host: IommufdHost) -> None:
    with pytest.raises(DeviceNotFoundError):
        open_device(host, "0000:00:1f.0", backend="cdev")
    unbound = IommufdHost(members={BDF: None})
    with pytest.raises(KernelError, match="VFIO family") as caught:
        open_device(unbound, BDF, backend="cdev")
    assert caught.value.errno == errno.ENOENT
    without = IommufdHost(nodes=False)
    assert cdev_node(without.tree, ADDRESS) is None
    with pytest.raises(KernelError, match="CONFIG_VFIO_DEVICE_CDEV") as caught:
        open_device(without, BDF, backend="cdev")
    assert caught.value.errno == errno.ENODEV
    unsafe = IommufdHost(noiommu=True)
    with pytest.raises(KernelError, match="without an IOMMU"):
        open_device(unsafe, BDF, backend="cdev")


def test_node_that_may_not_be_opened_hints_at_permission(host: IommufdHost) -> None:
    host.unreadable = {"/dev/vfio/devices/vfio0"}
    with pytest.raises(KernelError, match="EACCES") as caught:
        open_device(host, BDF, backend="cdev")
    assert "privilege" in caught.value.hint


# -- VF tokens ------------------------------------------------------------------------------


def test_token_opens_a_guarded_function(host: IommufdHost) -> None:
    host.vf_token = TOKEN.bytes
    for token in (None, UUID(int=5)):
        with pytest.raises(KernelError) as caught:
            open_device(host, BDF, vf_token=token)
        assert caught.value.errno == errno.EACCES
        assert "vf_token" in caught.value.hint
    for given in (TOKEN, str(TOKEN)):
        with open_device(host, BDF, vf_token=given) as device:
            assert isinstance(device.backend, CdevBackend)


def test_token_that_nobody_asked_for_is_einval(host: IommufdHost) -> None:
    with pytest.raises(KernelError, match="with a token") as caught:
        open_device(host, BDF, vf_token=TOKEN)
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, DeviceBusyError)


def test_token_goes_along_with_the_name_by_the_group(host, monkeypatch) -> None:
    names = []
    original = IommufdHost._group_6

    def record(self, buffer: bytearray) -> int:
        name, _, rest = bytes(buffer).rstrip(b"\0").partition(b" ")
        names.append(rest)
        return original(self, bytearray(name + b"\0"))

    monkeypatch.setattr(IommufdHost, "_group_6", record)
    with open_device(host, BDF, backend="group", vf_token=TOKEN):
        assert names == [b"vf_token=2ab74924-c335-45f4-9b16-8569e5b08258"]


def test_token_that_is_no_uuid_is_a_usage_error(host: IommufdHost) -> None:
    with pytest.raises(UsageError, match="no UUID"):
        open_device(host, BDF, vf_token="secret")


# -- which way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "kind"),
    [
        ({}, CdevBackend),
        ({"has_iommufd": False}, GroupBackend),
        ({"nodes": False}, GroupBackend),
        ({"unreadable": {"/dev/iommu"}}, GroupBackend),
        ({"unreadable": {"/dev/vfio/devices/vfio0"}}, GroupBackend),
    ],
)
def test_auto_takes_the_node_where_both_can_be_opened(wishes, kind) -> None:
    host = IommufdHost(**wishes)
    with open_device(host, BDF) as device:
        assert isinstance(device.backend, kind)
    assert host.open_fds == {}


def test_kernel_without_groups_shows_what_keeps_the_node_shut() -> None:
    host = IommufdHost(groups_exist=False, unreadable={"/dev/iommu"})
    with pytest.raises(KernelError, match="/dev/iommu: EACCES"):
        open_device(host, BDF)
    assert host.open_fds == {}


def test_environment_says_what_auto_means(host, monkeypatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "group")
    with open_device(host, BDF) as device:
        assert isinstance(device.backend, GroupBackend)
    with open_device(host, BDF, backend="cdev") as device:
        assert isinstance(device.backend, CdevBackend)
    with open_address_space(host, BDF) as space:
        assert isinstance(space, Container)
    monkeypatch.setenv(BACKEND_VARIABLE, "nonsense")
    with pytest.raises(UsageError, match=BACKEND_VARIABLE):
        open_device(host, BDF)
    monkeypatch.setenv(BACKEND_VARIABLE, "")
    with open_device(host, BDF) as device:
        assert isinstance(device.backend, CdevBackend)


def test_iommu_type_takes_the_group(host: IommufdHost) -> None:
    with open_device(host, BDF, iommu_type=abi.VFIO_TYPE1_IOMMU) as device:
        assert isinstance(device.backend, GroupBackend)
    with pytest.raises(UsageError, match="contradicts"):
        open_device(host, BDF, iommu_type=1, backend="cdev")


def test_address_space_decides_the_way(host: IommufdHost) -> None:
    with Container.open(host) as container:
        with open_device(host, BDF, address_space=container) as device:
            assert isinstance(device.backend, GroupBackend)
        with pytest.raises(UsageError, match="contradicts"):
            open_device(host, BDF, address_space=container, backend="cdev")
        with pytest.raises(UsageError, match="iommu_type"):
            open_device(host, BDF, address_space=container, iommu_type=1)
    with Ioas.open(host) as space, pytest.raises(UsageError, match="contradicts"):
        open_device(host, BDF, address_space=space, backend="group")
    assert host.open_fds == {}


@pytest.mark.parametrize(
    ("wishes", "kind"),
    [({}, Ioas), ({"has_iommufd": False}, Container), ({"nodes": False}, Container)],
)
def test_address_space_for_several_devices_fits_all_of_them(wishes, kind) -> None:
    host = IommufdHost(members={BDF: "vfio-pci", SECOND: "vfio-pci"}, **wishes)
    with (
        open_address_space(host, BDF, ADDRESS) as space,
        open_device(host, BDF, address_space=space) as first,
        open_device(host, SECOND, address_space=space) as second,
    ):
        assert isinstance(space, kind)
        assert first.address_space is second.address_space


# -- PASIDs, hot reset ----------------------------------------------------------------------


def test_pasid_is_attached_beside_the_device_s_own_table(host: IommufdHost) -> None:
    with open_device(host, BDF, backend="cdev") as device:
        backend, space = device.backend, device.address_space
        assert isinstance(backend, CdevBackend)
        assert isinstance(space, Ioas)
        with Hwpt.create(space, backend.cdev.device_id, pasid=True) as table:
            assert backend.attach(table, pasid=7) == table.id
            (bound,) = host.bound.values()
            assert set(bound.pasids) == {7}
            assert device.address_space is space
            backend.detach(pasid=7)
            assert bound.pasids == {}


def test_hot_reset_by_node_passes_no_groups_and_names_strangers(host, monkeypatch) -> None:
    owned = {0: 0, 1: 0}
    requests = []

    def info(_self, buffer: bytearray) -> None:
        head, entry = abi.vfio_pci_hot_reset_info, abi.vfio_pci_dependent_device
        head(argsz=len(buffer), flags=1, count=2).pack_into(buffer)
        if len(buffer) < head.SIZE + 2 * entry.SIZE:
            raise OSError(errno.ENOSPC, "short")
        for index, number in owned.items():
            offset = head.SIZE + index * entry.SIZE
            entry(group_id=number & 0xFFFF_FFFF, bus=3, devfn=index).pack_into(buffer, offset)

    monkeypatch.setattr(IommufdHost, "_device_12", info, raising=False)
    monkeypatch.setattr(
        IommufdHost, "_device_13", lambda _self, buffer: requests.append(bytes(buffer)), False
    )
    with open_device(host, BDF, backend="cdev") as device:
        device.hot_reset()
        assert requests == [bytes(abi.vfio_pci_hot_reset(argsz=12).pack())]
        owned[1] = abi.VFIO_PCI_DEVID_NOT_OWNED
        assert device.hot_reset_affects()[1] == AffectedFunction(
            Bdf.parse("0000:03:00.1"), None, False
        )
        with pytest.raises(KernelError, match=r"0000:03:00\.1") as caught:
            device.hot_reset()
        assert caught.value.errno == errno.EINVAL
        assert len(requests) == 1


# -- no IOMMU -------------------------------------------------------------------------------


def test_device_without_iommu_opens_and_refuses_to_map() -> None:
    host = IommufdHost(noiommu=True, extensions={abi.VFIO_NOIOMMU_IOMMU})
    with open_device(host, BDF) as device:
        assert host.iommu == abi.VFIO_NOIOMMU_IOMMU
        device.region(0).write32(0, 7)
        space = device.address_space
        assert space.iova_ranges == ()
        assert space.page_size == PAGE
        for question in (
            lambda: space.allocate(PAGE),
            lambda: space.map(0x1000, PAGE),
            lambda: space.map(0x1000, PAGE, iova=0x1000),
        ):
            with pytest.raises(KernelError, match="no IOMMU") as caught:
                question()
            assert caught.value.errno == errno.ENOTTY
        space.unmap_all()
    assert host.open_fds == {}


def test_group_of_a_device_without_iommu_has_a_node_of_another_name() -> None:
    host = IommufdHost(noiommu=True, extensions=set())
    with pytest.raises(KernelError, match="NOIOMMU"):
        open_device(host, BDF)
    assert host.open_fds == {}
    with Container.open(host) as container, pytest.raises(KernelError):
        container.attach(GROUP + 1)


def test_bound_node_answers_through_the_seam_only_after_bind(host: IommufdHost) -> None:
    with Iommufd.open(host) as iommufd, Cdev.open(host, ADDRESS) as cdev:
        with pytest.raises(OSError, match="Invalid") as caught:
            host.ioctl(cdev.fd, abi.VFIO_DEVICE_GET_INFO, bytearray(24))
        assert caught.value.errno == errno.EINVAL
        assert cdev.bind(iommufd) == cdev.device_id == 1
        assert cdev.iommufd is iommufd
        host.ioctl(cdev.fd, abi.VFIO_DEVICE_GET_INFO, bytearray(24))
    gc.collect()
