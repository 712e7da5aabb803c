"""``/dev/iommu``: the descriptor that all of its objects live in, and options of the whole.

Source: Linux ``drivers/iommu/iommufd/main.c`` (requests, destroy, options).
"""

from __future__ import annotations

import errno
from typing import TypeVar

from vfiokit.abi import iommufd as abi
from vfiokit.abi._layout import CStruct
from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.failure import kernel_error, request
from vfiokit.vfio.owner import Owner

NODE = "/dev/iommu"
_OPEN_HINTS = {
    errno.ENOENT: "load the iommufd module; kernels without CONFIG_IOMMUFD have groups only",
    errno.ENODEV: "load the iommufd module",
    errno.EACCES: f"run with privilege, or give your user the node {NODE}",
}

Argument = TypeVar("Argument", bound=CStruct)


class Iommufd(Owner):
    """An open ``/dev/iommu``. Objects in it have numbers from 1, common to all kinds."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self.kernel = kernel
        """Who understands the descriptor."""
        self.fd = fd
        """The descriptor; -1 once closed."""

    @classmethod
    def open(cls, kernel: Kernel) -> Iommufd:
        """Open the node; raises :class:`KernelError` (ENOENT in kernels without iommufd)."""
        try:
            return cls(kernel, kernel.open(NODE))
        except OSError as error:
            hint = _OPEN_HINTS.get(error.errno or 0, "")
            raise kernel_error("open", NODE, error, hint=hint) from error

    def __str__(self) -> str:
        return "iommufd"

    def __repr__(self) -> str:
        return f"<Iommufd {f'fd={self.fd}' if self.fd >= 0 else 'closed'}>"

    @property
    def _holds(self) -> bool:
        return self.fd >= 0

    def fileno(self) -> int:
        """The descriptor; raises :class:`UsageError` once closed."""
        if self.fd < 0:
            raise UsageError("the iommufd is closed")
        return self.fd

    def request(self, name: str, argument: Argument, subject: object = None) -> Argument:
        """One request ``IOMMU_*``; ``size`` is filled in, and ``argument`` returned.

        It then holds the kernel's answer, also when :class:`KernelError` is raised: some
        requests say in it how far they came.
        """
        vars(argument)["size"] = argument.SIZE
        buffer = argument.pack()
        try:
            request(self.kernel, self.fileno(), name, buffer, subject or self, argument)
        finally:
            vars(argument).update(vars(type(argument).unpack_from(buffer)))
        return argument

    def destroy(self, object_id: int, subject: object = None) -> None:
        """Destroy any object; raises :class:`KernelError` EBUSY while something uses it."""
        argument = abi.iommu_destroy(id=object_id)
        self.request("IOMMU_DESTROY", argument, subject or f"object {object_id}")

    def option(self, option_id: int, object_id: int = 0) -> int:
        """Value of option ``IOMMU_OPTION_*``, of one object or of the whole descriptor."""
        argument = abi.iommu_option(
            option_id=option_id, op=abi.IOMMU_OPTION_OP_GET, object_id=object_id
        )
        return self.request("IOMMU_OPTION", argument).val64

    def set_option(self, option_id: int, value: int, object_id: int = 0) -> None:
        """Set an option; raises :class:`KernelError` (EPERM, EBUSY, EINVAL)."""
        argument = abi.iommu_option(
            option_id=option_id, op=abi.IOMMU_OPTION_OP_SET, object_id=object_id, val64=value
        )
        self.request("IOMMU_OPTION", argument)

    @property
    def accounts_by_process(self) -> bool:
        """Whether pinned memory counts per process, as VFIO's containers do, not per user."""
        return bool(self.option(abi.IOMMU_OPTION_RLIMIT_MODE))

    def account_by_process(self, enabled: bool = True) -> None:
        """Choose how RLIMIT_MEMLOCK is applied; before any object is made (EBUSY after)."""
        self.set_option(abi.IOMMU_OPTION_RLIMIT_MODE, int(enabled))

    def change_process(self) -> None:
        """Count all pinned memory to the calling process; every mapping must be of a file.

        Raises :class:`KernelError` EINVAL otherwise.
        """
        self.request("IOMMU_IOAS_CHANGE_PROCESS", abi.iommu_ioas_change_process())

    # -- the container requests of VFIO on this descriptor -------------------------------------

    @property
    def container_ioas_id(self) -> int | None:
        """The IOAS that VFIO's container requests on this descriptor act on."""
        argument = abi.iommu_vfio_ioas(op=abi.IOMMU_VFIO_IOAS_GET)
        try:
            return self.request("IOMMU_VFIO_IOAS", argument).ioas_id
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def set_container_ioas(self, ioas_id: int | None) -> None:
        """Choose it, or take it away with ``None``."""
        operation = abi.IOMMU_VFIO_IOAS_CLEAR if ioas_id is None else abi.IOMMU_VFIO_IOAS_SET
        self.request("IOMMU_VFIO_IOAS", abi.iommu_vfio_ioas(ioas_id=ioas_id or 0, op=operation))

    def close(self) -> None:
        """Close the descriptor; objects live on while a device uses them. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.kernel.close(fd)
