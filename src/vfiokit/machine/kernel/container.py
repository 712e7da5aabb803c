"""``/dev/vfio/vfio`` and ``/dev/vfio/N``: containers and groups, and how they go together.

Source: Linux ``drivers/vfio/container.c``, ``drivers/vfio/group.c``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Protocol

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, buffer_of, fetch, store
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup
from vfiokit.machine.kernel.iommufd_compat import ensure_compat_ioas, serve_without_iommu
from vfiokit.machine.kernel.iommufd_context import IommufdContext
from vfiokit.machine.kernel.noiommu import NoIommu
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.type1 import Type1

_TOKEN = "vf_token="
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Container(OpenFile):
    """An open ``/dev/vfio/vfio``."""

    name = "a VFIO container"

    def __init__(
        self, new_driver: Callable[[bool], Type1], unsafe_noiommu: Callable[[], bool]
    ) -> None:
        """``unsafe_noiommu`` is the module parameter."""
        super().__init__()
        self._new_driver = new_driver
        self._unsafe_noiommu = unsafe_noiommu
        self.driver: Type1 | NoIommu | None = None
        self.groups: list[VfioGroup] = []

    @property
    def noiommu(self) -> bool:
        """Whether its groups have no IOMMU; all of them or none."""
        return any(group.iommu.noiommu for group in self.groups)

    def ioctl(self, request: int, argument: Argument) -> int:
        """``VFIO_GET_API_VERSION`` to ``VFIO_SET_IOMMU``; the rest is the IOMMU driver's."""
        if request == abi.VFIO_GET_API_VERSION:
            return abi.VFIO_API_VERSION
        if request == abi.VFIO_CHECK_EXTENSION:
            if self.driver is not None:
                return self.driver.check_extension(argument)
            return self._probe_extension(argument)
        if request == abi.VFIO_SET_IOMMU:
            return self._set_iommu(argument)
        if self.driver is None:
            raise failure(errno.EINVAL, "the container has no IOMMU driver yet")
        return self.driver.ioctl(request, argument)

    def _probe_extension(self, argument: Argument) -> int:
        """What drivers that suit the groups say; without groups, any driver."""
        found = 0
        if not self.noiommu:
            found = Type1.probe_extension(argument)
        if not found and (self.noiommu or not self.groups):
            found = NoIommu.probe_extension(argument, enabled=self._unsafe_noiommu())
        return found

    def _set_iommu(self, argument: Argument) -> int:
        if not self.groups or self.driver is not None:
            raise failure(errno.EINVAL, "no group attached, or an IOMMU is set already")
        if not self._probe_extension(argument):
            raise failure(errno.ENODEV, f"no driver for IOMMU type {argument!r}")
        driver: Type1 | NoIommu
        if self.noiommu:
            driver = NoIommu()
        elif argument in (abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU):
            driver = self._new_driver(argument == abi.VFIO_TYPE1v2_IOMMU)
        else:
            raise failure(errno.EINVAL, f"{argument!r} is an extension, no IOMMU type")
        attached: list[VfioGroup] = []
        try:
            for group in self.groups:
                driver.attach_group(group.iommu)
                attached.append(group)
        except OSError:
            for group in attached:
                driver.detach_group(group.iommu)
            raise
        self.driver = driver
        return 0

    def attach(self, group: VfioGroup) -> None:
        """``vfio_container_attach_group``: claim the group, and attach it if an IOMMU is set.

        EPERM for a group without IOMMU beside one with, and what claiming and attaching meet.
        """
        if self.groups and self.noiommu is not group.iommu.noiommu:
            raise failure(errno.EPERM, "groups with and without IOMMU do not mix")
        group.iommu.claim(group)
        if self.driver is not None:
            try:
                self.driver.attach_group(group.iommu)
            except OSError:
                group.iommu.release()
                raise
        self.groups.append(group)
        self.hold()

    def detach(self, group: VfioGroup) -> None:
        """Undo :meth:`attach`; without groups the container loses its IOMMU driver."""
        self.groups.remove(group)
        if self.driver is not None:
            self.driver.detach_group(group.iommu)
            if not self.groups:
                self.driver = None
        group.iommu.release()
        self.drop()

    def release(self) -> None:
        """Groups hold the container, so none is left: drop what is mapped."""
        if self.driver is not None:
            self.driver.unmap_everything()
            self.driver = None


class VfioDeviceSource(Protocol):
    """A function bound to vfio-pci, as its group sees it."""

    device: PciDevice

    def check_token(self, token: str | None) -> None:
        """EACCES or EINVAL when a VF token is missing, wrong or out of place."""
        ...

    def open(self, group: VfioGroup) -> OpenFile:
        """A new open file of the device."""
        ...


class VfioGroup:
    """A group with at least one function bound to vfio-pci: what ``/dev/vfio/N`` is."""

    def __init__(self, iommu: IommuGroup, file_of: Callable[[int], OpenFile]) -> None:
        self.iommu = iommu
        self.sources: list[VfioDeviceSource] = []
        self.container: Container | None = None
        self.iommufd: IommufdContext | None = None
        """An iommufd in the place of a container."""
        self.opened: GroupFile | None = None
        self.open_devices = 0
        self.bound_devices = 0
        """Members that are in use by their own nodes."""
        self._file_of = file_of

    @property
    def number(self) -> int:
        """The group's number."""
        return self.iommu.number

    def open(self) -> GroupFile:
        """``open("/dev/vfio/N")``: ENODEV without devices; EBUSY while it is open.

        EBUSY, too, while a member is bound by its own node.
        """
        if not self.sources:
            raise failure(errno.ENODEV, f"group {self.number} has no function on vfio-pci")
        if self.opened is not None or self.bound_devices:
            raise failure(errno.EBUSY, f"group {self.number} is open already")
        self.opened = GroupFile(self)
        return self.opened

    def status(self) -> int:
        """Flags of ``VFIO_GROUP_GET_STATUS``."""
        if self.container is not None or self.iommufd is not None:
            return abi.VFIO_GROUP_FLAGS_CONTAINER_SET | abi.VFIO_GROUP_FLAGS_VIABLE
        return abi.VFIO_GROUP_FLAGS_VIABLE if self.iommu.claimable else 0

    def set_container(self, fd: int) -> None:
        """``VFIO_GROUP_SET_CONTAINER``: a container, or an iommufd that acts as one."""
        file = self._file_of(fd)
        if self.container is not None or self.iommufd is not None:
            raise failure(errno.EINVAL, f"group {self.number} has a container already")
        if isinstance(file, IommufdContext):
            if self.iommu.noiommu:
                serve_without_iommu(file)
            else:
                ensure_compat_ioas(file)
            file.hold()
            self.iommufd = file
        elif isinstance(file, Container):
            file.attach(self)
            self.container = file
        else:
            raise failure(errno.EBADFD, f"{file.name} is no container")

    def unset_container(self) -> None:
        """``VFIO_GROUP_UNSET_CONTAINER``."""
        if self.iommufd is not None:
            self.leave_container()  # even with open devices
        elif self.container is None:
            raise failure(errno.EINVAL, f"group {self.number} has no container")
        elif self.open_devices:
            raise failure(errno.EBUSY, f"a device of group {self.number} is open")
        else:
            self.leave_container()

    def leave_container(self) -> None:
        """Out of the container or the iommufd, if it is in one."""
        if self.container is not None:
            container, self.container = self.container, None
            container.detach(self)
        if self.iommufd is not None:
            iommufd, self.iommufd = self.iommufd, None
            iommufd.drop()

    def device_file(self, request: str) -> OpenFile:
        """The open file behind ``VFIO_GROUP_GET_DEVICE_FD``."""
        source = self._find(request)
        ready = self.container is not None and self.container.driver is not None
        if not ready and self.iommufd is None:
            raise failure(errno.EINVAL, f"group {self.number} has no container with an IOMMU")
        file = source.open(self)
        assert self.opened is not None
        self.opened.hold()
        self.open_devices += 1
        return file

    def device_closed(self) -> None:
        """One open device file less."""
        self.open_devices -= 1
        if self.opened is not None:
            self.opened.drop()

    def _find(self, request: str) -> VfioDeviceSource:
        name, _, options = request.partition(" ")
        for source in self.sources:
            if str(source.device.bdf) == name:
                source.check_token(_token(options))
                return source
        raise failure(errno.ENODEV, f"group {self.number} has no device {name!r} on vfio-pci")


class GroupFile(OpenFile):
    """An open ``/dev/vfio/N``."""

    name = "a VFIO group"

    def __init__(self, group: VfioGroup) -> None:
        super().__init__()
        self.group = group
        self.install: Callable[[OpenFile], int] = lambda _file: -1
        """Gives a new open file a descriptor; set by the system call layer."""

    def ioctl(self, request: int, argument: Argument) -> int:
        """The four requests of a group."""
        if request == abi.VFIO_GROUP_GET_STATUS:
            status, view = fetch(abi.vfio_group_status, argument)
            status.flags = self.group.status()
            store(status, view)
            return 0
        if request == abi.VFIO_GROUP_SET_CONTAINER:
            self.group.set_container(
                int.from_bytes(buffer_of(argument, 4)[:4], "little", signed=True)
            )
            return 0
        if request == abi.VFIO_GROUP_UNSET_CONTAINER:
            self.group.unset_container()
            return 0
        if request == abi.VFIO_GROUP_GET_DEVICE_FD:
            text = bytes(buffer_of(argument, 1)).split(b"\0", 1)[0].decode("utf-8", "replace")
            return self.install(self.group.device_file(text))
        return super().ioctl(request, argument)

    def release(self) -> None:
        """Open devices hold the group, so none is left: leave the container."""
        self.group.opened = None
        self.group.leave_container()


def _token(options: str) -> str | None:
    """The UUID of ``vf_token=<uuid>``; EINVAL for anything else behind the device's name."""
    token: str | None = None
    for option in options.split():
        text = option.removeprefix(_TOKEN)
        if token is not None or text == option or not _UUID.fullmatch(text):
            raise failure(errno.EINVAL, f"unknown or repeated option {option!r}")
        token = text.lower()
    return token
