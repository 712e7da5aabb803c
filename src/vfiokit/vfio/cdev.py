"""A device by its own node, ``/dev/vfio/devices/vfioN``, bound to an iommufd.

Source: Linux ``drivers/vfio/device_cdev.c``; the node's name is the folder below ``vfio-dev`` of
the function in sysfs.
"""

from __future__ import annotations

import contextlib
import errno
from uuid import UUID

from vfiokit.abi import vfio as abi
from vfiokit.errors import DeviceBusyError, DeviceNotFoundError, GroupNotViableError, KernelError
from vfiokit.host.tree import Tree
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio.failure import kernel_error, request
from vfiokit.vfio.group import blockers, group_members, group_number, is_noiommu
from vfiokit.vfio.hwpt import Hwpt
from vfiokit.vfio.ioas import Ioas
from vfiokit.vfio.iommufd import Iommufd
from vfiokit.vfio.memory import argument_memory
from vfiokit.vfio.owner import Owner

_DEVICES = "/sys/bus/pci/devices"
_NODES = "/dev/vfio/devices"
_FIND = "find the device node"
_OPEN_HINTS = {
    errno.EACCES: "run with privilege, or give your user the node",
    errno.ENODEV: "the function has just left its driver; bind it to vfio-pci again",
}


def cdev_node(tree: Tree, bdf: Bdf) -> str | None:
    """Path of the function's own node; ``None`` when the kernel or its driver gives it none."""
    folder = f"{_DEVICES}/{bdf}/vfio-dev"
    try:
        names = [name for name in tree.list(folder) if name.startswith("vfio")]
    except OSError:
        return None
    # Without CONFIG_VFIO_DEVICE_CDEV the folder is there, and has no device number.
    found = [name for name in names if tree.exists(f"{folder}/{name}/dev")]
    return f"{_NODES}/{found[0]}" if found else None


def require_cdev_node(tree: Tree, bdf: Bdf) -> str:
    """The same; raises :class:`DeviceNotFoundError` or :class:`KernelError` saying why not."""
    path = cdev_node(tree, bdf)
    if path is not None:
        return path
    if not tree.exists(f"{_DEVICES}/{bdf}"):
        raise DeviceNotFoundError(f"there is no PCI function {bdf} on this host")
    if tree.exists(f"{_DEVICES}/{bdf}/vfio-dev"):
        if is_noiommu(tree, group_number(tree, bdf)):
            detail = "without an IOMMU a device has no node of its own"
        else:
            detail = "this kernel gives devices no nodes of their own (CONFIG_VFIO_DEVICE_CDEV)"
        hint = "open it by its group: backend='group'"
        raise KernelError(_FIND, str(bdf), errno.ENODEV, detail=detail, hint=hint)
    raise KernelError(
        _FIND,
        str(bdf),
        errno.ENOENT,
        detail="no driver of the VFIO family holds the function",
        hint="bind vfio-pci to it first",
    )


class Cdev(Owner):
    """An open device node, its binding to an iommufd, and what it is attached to."""

    def __init__(self, kernel: Kernel, fd: int, bdf: Bdf) -> None:
        """Take over the open descriptor ``fd``, not bound yet."""
        self._kernel = kernel
        self.fd = fd
        """The descriptor; -1 once closed."""
        self.bdf = bdf
        self.device_id = 0
        """The device's number in :attr:`iommufd`, for ``Hwpt.create``; 0 before."""
        self.iommufd: Iommufd | None = None
        """What it is bound to, for good: until it is closed."""

    @classmethod
    def open(cls, kernel: Kernel, bdf: Bdf) -> Cdev:
        """Open the function's node; raises :class:`DeviceNotFoundError`, :class:`KernelError`."""
        path = require_cdev_node(kernel.tree, bdf)
        try:
            return cls(kernel, kernel.open(path), bdf)
        except OSError as error:
            hint = _OPEN_HINTS.get(error.errno or 0, "")
            raise kernel_error("open", path, error, hint=hint) from error

    def __str__(self) -> str:
        return str(self.bdf)

    def __repr__(self) -> str:
        state = f"id={self.device_id}" if self.fd >= 0 else "closed"
        return f"<Cdev {self.bdf} {state}>"

    @property
    def _holds(self) -> bool:
        return self.fd >= 0

    def bind(self, iommufd: Iommufd, vf_token: UUID | None = None) -> int:
        """``VFIO_DEVICE_BIND_IOMMUFD``: own the device; returns its number in ``iommufd``.

        ``vf_token`` is the secret shared with the owner of the physical function. Raises
        :class:`DeviceBusyError` when the device or its group is open elsewhere,
        :class:`GroupNotViableError` when a host driver holds another member of the group,
        :class:`KernelError` (EPERM without isolated MSI, EACCES without the right token).
        """
        content = vf_token.bytes if vf_token is not None else b""
        with argument_memory(self._kernel, content) as memory:
            argument = abi.vfio_device_bind_iommufd(
                argsz=abi.vfio_device_bind_iommufd.SIZE,
                flags=abi.VFIO_DEVICE_BIND_FLAG_TOKEN if content else 0,
                iommufd=iommufd.fileno(),
                token_uuid_ptr=memory.vaddr if content else 0,
            )
            buffer = argument.pack()
            try:
                request(self._kernel, self.fd, "VFIO_DEVICE_BIND_IOMMUFD", buffer, self, argument)
            except KernelError as error:
                raise self._why_not_bound(error, with_token=bool(content)) from error
        self.device_id = type(argument).unpack_from(buffer).out_devid
        self.iommufd = iommufd
        return self.device_id

    def _why_not_bound(self, error: KernelError, *, with_token: bool) -> KernelError:
        if error.errno == errno.EPERM:
            with contextlib.suppress(OSError):
                number = group_number(self._kernel.tree, self.bdf)
                guilty = blockers(group_members(self._kernel.tree, number))
                if guilty:
                    return GroupNotViableError(number, guilty)
        if error.errno == errno.EINVAL and self.device_id == 0:
            if with_token:
                hint = (
                    "only functions with SR-IOV, and virtual ones of a PF on vfio-pci, take one; "
                    "older kernels take it by the group only: backend='group'"
                )
                return KernelError(
                    error.operation, error.subject, errno.EINVAL, detail="with a token", hint=hint
                )
            # Every argument is right, so it is the device that cannot be opened twice.
            return DeviceBusyError(
                error.operation, error.subject, errno.EINVAL, detail="in use", hint=error.hint
            )
        return error

    def attach(self, target: Ioas | Hwpt, pasid: int | None = None) -> int:
        """``VFIO_DEVICE_ATTACH_IOMMUFD_PT``: let the device's DMA go through ``target``.

        Replaces what it was attached to, without a moment between. ``pasid`` attaches only what
        the device sends with that PASID. Returns the number of the page table, the kernel's own
        for an :class:`Ioas`. Raises :class:`KernelError` (EINVAL when a function of the same
        group is attached elsewhere, EADDRINUSE when something is mapped where the platform
        reserves IOVAs).
        """
        with_pasid = pasid is not None
        argument = abi.vfio_device_attach_iommufd_pt(
            # Kernels before PASIDs know the first three fields.
            argsz=abi.vfio_device_attach_iommufd_pt.SIZE if with_pasid else 12,
            flags=abi.VFIO_DEVICE_ATTACH_PASID if with_pasid else 0,
            pt_id=target.id,
            pasid=pasid or 0,
        )
        buffer = argument.pack()
        name = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"
        request(self._kernel, self.fd, name, buffer, f"{self}, {target}", argument)
        return type(argument).unpack_from(buffer).pt_id

    def detach(self, pasid: int | None = None) -> None:
        """``VFIO_DEVICE_DETACH_IOMMUFD_PT``: all of the device's DMA faults then. Idempotent."""
        with_pasid = pasid is not None
        argument = abi.vfio_device_detach_iommufd_pt(
            argsz=abi.vfio_device_detach_iommufd_pt.SIZE if with_pasid else 8,
            flags=abi.VFIO_DEVICE_DETACH_PASID if with_pasid else 0,
            pasid=pasid or 0,
        )
        request(self._kernel, self.fd, "VFIO_DEVICE_DETACH_IOMMUFD_PT", argument, self)

    def close(self) -> None:
        """Detach, unbind and close, which the kernel does in one. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._kernel.close(fd)
