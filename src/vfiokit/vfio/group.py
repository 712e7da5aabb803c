"""IOMMU groups: which one a function is in, whether it can be owned, its file descriptor.

Source: Linux ``drivers/vfio/group.c``; members and drivers by the links of sysfs.
"""

from __future__ import annotations

import errno
import posixpath

from vfiokit.abi import vfio as abi
from vfiokit.errors import DeviceNotFoundError, GroupNotViableError, KernelError
from vfiokit.host.tree import Tree
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio.failure import kernel_error, request

_DEVICES = "/sys/bus/pci/devices"
_GROUPS = "/sys/kernel/iommu_groups"
_NOIOMMU_NAME = "vfio-noiommu"
_HARMLESS_DRIVERS = frozenset({"pcieport", "pci-stub"})
"""Drivers with ``driver_managed_dma``: they leave the DMA of the group to its owner."""


def group_number(tree: Tree, bdf: Bdf) -> int:
    """The IOMMU group of a function, by its ``iommu_group`` link.

    Raises :class:`DeviceNotFoundError` for an unknown function, :class:`KernelError` ENODEV when
    it is in no group (no IOMMU, or switched off).
    """
    folder = f"{_DEVICES}/{bdf}"
    if not tree.exists(folder):
        raise DeviceNotFoundError(f"there is no PCI function {bdf} on this host")
    try:
        target = tree.readlink(f"{folder}/iommu_group")
    except OSError as error:
        raise KernelError(
            "find the IOMMU group",
            str(bdf),
            errno.ENODEV,
            detail="the function is in no IOMMU group",
            hint="turn the IOMMU on in firmware and kernel (intel_iommu=on on Intel)",
        ) from error
    name = posixpath.basename(target)
    if not name.isdecimal():
        raise KernelError("find the IOMMU group", str(bdf), errno.EINVAL, detail=f"link {target!r}")
    return int(name)


def group_members(tree: Tree, number: int) -> dict[str, str | None]:
    """Every device of a group and the name of its driver, ``None`` without one."""
    drivers: dict[str, str | None] = {}
    for name in tree.list(f"{_GROUPS}/{number}/devices"):
        try:
            link = tree.readlink(f"{_GROUPS}/{number}/devices/{name}/driver")
            drivers[name] = posixpath.basename(link)
        except OSError:
            drivers[name] = None
    return drivers


def blockers(members: dict[str, str | None]) -> dict[str, str]:
    """The members whose drivers keep the group from being owned by user space."""
    return {
        name: driver
        for name, driver in members.items()
        if driver is not None and driver not in _HARMLESS_DRIVERS and "vfio" not in driver
    }


def is_noiommu(tree: Tree, number: int) -> bool:
    """Whether VFIO made up this group for a device without IOMMU."""
    try:
        return tree.read(f"{_GROUPS}/{number}/name").decode().strip() == _NOIOMMU_NAME
    except OSError:
        return False


class Group:
    """An open IOMMU group: ``/dev/vfio/<number>``, or ``/dev/vfio/noiommu-<number>``."""

    def __init__(self, kernel: Kernel, fd: int, number: int, *, noiommu: bool = False) -> None:
        self._kernel = kernel
        self.fd = fd
        """The descriptor; -1 once closed."""
        self.number = number
        self.noiommu = noiommu
        """Whether nothing stands between the device and physical memory."""

    @classmethod
    def open(cls, kernel: Kernel, number: int) -> Group:
        """Open the node of group ``number``.

        Raises :class:`KernelError`: ENOENT when no member is bound to a VFIO driver, EACCES
        without permission; :class:`DeviceBusyError` when the group is open already.
        """
        noiommu = is_noiommu(kernel.tree, number)
        path = f"/dev/vfio/{'noiommu-' if noiommu else ''}{number}"
        try:
            fd = kernel.open(path)
        except OSError as error:
            raise kernel_error("open", path, error) from error
        return cls(kernel, fd, number, noiommu=noiommu)

    def __repr__(self) -> str:
        return f"<Group {self.number}{'' if self.fd >= 0 else ' closed'}>"

    def __str__(self) -> str:
        return f"group {self.number}"

    @property
    def status(self) -> int:
        """``VFIO_GROUP_FLAGS_*``: viable, in a container."""
        buffer = abi.vfio_group_status(argsz=abi.vfio_group_status.SIZE).pack()
        request(self._kernel, self.fd, "VFIO_GROUP_GET_STATUS", buffer, self)
        return abi.vfio_group_status.unpack_from(buffer).flags

    @property
    def viable(self) -> bool:
        """Whether every member is free for user space."""
        return bool(self.status & abi.VFIO_GROUP_FLAGS_VIABLE)

    def require_viable(self) -> None:
        """Raise :class:`GroupNotViableError`, naming members and drivers, unless viable."""
        if self.viable:
            return
        raise GroupNotViableError(self.number, blockers(self.members()))

    def members(self) -> dict[str, str | None]:
        """Every device of the group and its driver, from the tree."""
        return group_members(self._kernel.tree, self.number)

    def set_container(self, container_fd: int) -> None:
        """Attach to a container; raises :class:`KernelError`."""
        argument = bytearray(container_fd.to_bytes(4, "little", signed=True))
        request(self._kernel, self.fd, "VFIO_GROUP_SET_CONTAINER", argument, self)

    def unset_container(self) -> None:
        """Detach from the container; its last group takes all mappings along."""
        request(self._kernel, self.fd, "VFIO_GROUP_UNSET_CONTAINER", 0, self)

    def device_fd(self, name: str) -> int:
        """Descriptor of the device ``name`` (``0000:03:00.0``, optionally with a VF token)."""
        argument = bytearray(name.encode("ascii") + b"\0")
        return request(self._kernel, self.fd, "VFIO_GROUP_GET_DEVICE_FD", argument, self, name)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._kernel.close(fd)
