"""What a failed VFIO operation means: errno in, :class:`KernelError` with a hint out.

Source of the meanings: Linux ``drivers/vfio/{vfio_main,container,group}.c``,
``vfio_iommu_type1.c``, ``pci/vfio_pci_{core,intrs}.c``.
"""

from __future__ import annotations

import errno

from vfiokit.abi import vfio as abi
from vfiokit.abi._layout import CStruct
from vfiokit.errors import DeviceBusyError, IovaConflictError, KernelError
from vfiokit.kernel.port import Kernel

_HINTS: dict[tuple[str, int], str] = {
    (
        "open",
        errno.ENOENT,
    ): "no driver of the VFIO family holds a function of this group; bind vfio-pci first",
    ("open", errno.ENODEV): "load the vfio-pci module and bind a function of this group to it",
    ("open", errno.EACCES): "run with privilege, or give your user the node /dev/vfio/<group>",
    ("open", errno.EPERM): "no-IOMMU groups need CAP_SYS_RAWIO",
    ("open", errno.EBUSY): "another process holds this group, or a device of it by its own node",
    (
        "VFIO_SET_IOMMU",
        errno.ENODEV,
    ): "load the vfio_iommu_type1 module; check that the IOMMU is on",
    (
        "VFIO_SET_IOMMU",
        errno.EPERM,
    ): "the platform does not isolate MSI; see vfio_iommu_type1.allow_unsafe_interrupts",
    (
        "VFIO_GROUP_SET_CONTAINER",
        errno.EPERM,
    ): "a host driver owns a member of the group: bind all members to vfio-pci",
    ("VFIO_GROUP_SET_CONTAINER", errno.EINVAL): "the group is already in a container",
    (
        "VFIO_GROUP_SET_CONTAINER",
        errno.ENODEV,
    ): "no function of the group is bound to vfio-pci any more",
    ("VFIO_GROUP_UNSET_CONTAINER", errno.EBUSY): "close the devices of this group first",
    ("VFIO_GROUP_GET_DEVICE_FD", errno.ENODEV): "the function is not bound to vfio-pci",
    ("VFIO_GROUP_GET_DEVICE_FD", errno.EACCES): "the VF token of the PF's owner is needed",
    ("VFIO_GROUP_GET_DEVICE_FD", errno.EAGAIN): "the function is being reset; try again",
    (
        "VFIO_IOMMU_MAP_DMA",
        errno.ENOMEM,
    ): "raise RLIMIT_MEMLOCK (ulimit -l), or run with CAP_IPC_LOCK",
    ("VFIO_IOMMU_MAP_DMA", errno.ENOSPC): "too many mappings; see vfio_iommu_type1.dma_entry_limit",
    (
        "VFIO_IOMMU_MAP_DMA",
        errno.EINVAL,
    ): "the IOVA range is reserved, too high or not page aligned",
    ("VFIO_IOMMU_MAP_DMA", errno.EFAULT): "the memory cannot be pinned, or is not of this process",
    ("VFIO_IOMMU_MAP_DMA", errno.EEXIST): "unmap the other range first, or let the IOVA be chosen",
    ("VFIO_IOMMU_UNMAP_DMA", errno.EINVAL): "a type1v2 mapping can only be unmapped as a whole",
    ("VFIO_DEVICE_RESET", errno.EINVAL): "the function has no reset of its own; try a hot reset",
    ("VFIO_DEVICE_RESET", errno.EAGAIN): "the function is in use by another reset; try again",
    (
        "VFIO_DEVICE_SET_IRQS",
        errno.EINVAL,
    ): "one of INTx, MSI and MSI-X may be active at a time; disable the other one first",
    ("VFIO_DEVICE_SET_IRQS", errno.ENOTTY): "this interrupt index does not know that action",
    (
        "VFIO_DEVICE_PCI_HOT_RESET",
        errno.EINVAL,
    ): "every affected function must be bound to vfio-pci and its group be passed along",
    ("VFIO_DEVICE_FEATURE", errno.ENOTTY): "neither this kernel nor this device has the feature",
    ("mmap", errno.EINVAL): "vfio-pci maps memory BARs of a page or more, page by page",
    ("read", errno.EIO): "memory decoding is off or the function sleeps: set bit 1 of its command "
    "register",
    ("write", errno.EIO): "memory decoding is off or the function sleeps: set bit 1 of its command "
    "register",
}

_BUSY_OPERATIONS = frozenset({"open", "VFIO_GROUP_GET_DEVICE_FD"})


def kernel_error(
    operation: str, subject: object, error: OSError, detail: object = ""
) -> KernelError:
    """The :class:`KernelError` for ``error``, raised by ``operation`` on ``subject``.

    ``detail`` is any object whose text helps: decoded arguments of the request. An error that
    is already a :class:`KernelError` comes back unchanged.
    """
    if isinstance(error, KernelError):
        return error
    number = error.errno or errno.EIO
    kind: type[KernelError] = KernelError
    if operation == "VFIO_IOMMU_MAP_DMA" and number == errno.EEXIST:
        kind = IovaConflictError
    elif operation in _BUSY_OPERATIONS and number == errno.EBUSY:
        kind = DeviceBusyError
    hint = _HINTS.get((operation, number), "")
    return kind(operation, str(subject), number, detail=str(detail), hint=hint)


def request(
    kernel: Kernel,
    fd: int,
    name: str,
    argument: CStruct | bytearray | int,
    subject: object,
    detail: object = "",
) -> int:
    """One ioctl by its C ``name``, such as ``VFIO_IOMMU_MAP_DMA``; returns the kernel's result.

    A struct is sent packed, with its fields as the error's detail, and its fields are *not*
    read back; pass the packed buffer where the kernel answers in it. Raises
    :class:`KernelError`.
    """
    number: int = getattr(abi, name)
    if isinstance(argument, CStruct):
        buffer: bytearray | int = argument.pack()
    else:
        buffer = argument
    try:
        return kernel.ioctl(fd, number, buffer)
    except OSError as error:
        if not detail and isinstance(argument, CStruct):
            detail = argument
        raise kernel_error(name, subject, error, detail) from error
