"""What a failed VFIO operation means: errno in, :class:`KernelError` with a hint out.

Source of the meanings: Linux ``drivers/vfio/{vfio_main,container,group,device_cdev}.c``,
``vfio_iommu_type1.c``, ``pci/vfio_pci_{core,intrs,dmabuf}.c``, ``drivers/iommu/iommufd/``.
"""

from __future__ import annotations

import errno

from vfiokit.abi import iommufd, vfio
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
    (
        "VFIO_GROUP_GET_DEVICE_FD",
        errno.EACCES,
    ): "the physical function is on vfio-pci: pass the vf_token that its owner has set",
    (
        "VFIO_GROUP_GET_DEVICE_FD",
        errno.EINVAL,
    ): "only functions with SR-IOV, and virtual ones of a PF on vfio-pci, take a VF token",
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
    ("VFIO_IOMMU_UNMAP_DMA", errno.ENOENT): "unmap what was mapped, each mapping as a whole",
    ("VFIO_IOMMU_DIRTY_PAGES", errno.ENOTTY): "iommufd stands in for the container: use an Ioas, "
    "and a Hwpt with dirty_tracking",
    ("VFIO_IOMMU_DIRTY_PAGES", errno.EACCES): "type1 of version 1 does not track",
    ("VFIO_IOMMU_DIRTY_PAGES", errno.EINVAL): "start tracking first; the range covers whole "
    "mappings and pages",
    (
        "VFIO_DEVICE_BIND_IOMMUFD",
        errno.EPERM,
    ): "either the platform does not isolate MSI (see iommufd.allow_unsafe_interrupts), or another "
    "iommufd owns the group: open all its functions in one Ioas",
    (
        "VFIO_DEVICE_BIND_IOMMUFD",
        errno.EBUSY,
    ): "a process holds the group by /dev/vfio/<group>; close it there",
    (
        "VFIO_DEVICE_BIND_IOMMUFD",
        errno.EINVAL,
    ): "the device is open by its own node already, here or in another process",
    (
        "VFIO_DEVICE_BIND_IOMMUFD",
        errno.EACCES,
    ): "the physical function is on vfio-pci: pass the vf_token that its owner has set",
    (
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        errno.EINVAL,
    ): "a function of the same group may be attached elsewhere: they must share one Ioas; PASIDs "
    "need page tables made for them",
    (
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        errno.EADDRINUSE,
    ): "something is mapped or allowed at IOVAs that the platform reserves or that this IOMMU "
    "cannot translate; unmap it",
    (
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        errno.EBUSY,
    ): "the function is being reset, or this PASID is in use; try again",
    (
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        errno.EFAULT,
    ): "memory mapped before this attach cannot be pinned: its process or its file is gone",
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.ENODEV): "the device makes no recoverable faults",
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.ENOENT): "there is no Ioas or Hwpt of this number",
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.EOPNOTSUPP): "this driver knows no PASIDs",
    ("IOMMU_DESTROY", errno.EBUSY): "close what uses it first: devices, page tables",
    ("IOMMU_DESTROY", errno.ENOENT): "it is gone already",
    ("IOMMU_IOAS_MAP", errno.EEXIST): "unmap the other range first, or let the IOVA be chosen",
    ("IOMMU_IOAS_MAP", errno.ENOMEM): "raise RLIMIT_MEMLOCK (ulimit -l), or run with CAP_IPC_LOCK",
    (
        "IOMMU_IOAS_MAP",
        errno.EFAULT,
    ): "the memory cannot be pinned, or is a BAR: map a peer's BAR by a dma-buf and map_file",
    ("IOMMU_IOAS_MAP", errno.EINVAL): "the IOVA range is reserved, or not aligned",
    ("IOMMU_IOAS_MAP", errno.ENOSPC): "no free IOVA range of this length",
    ("IOMMU_IOAS_MAP_FILE", errno.EEXIST): "unmap the other range first, or let the IOVA be chosen",
    (
        "IOMMU_IOAS_MAP_FILE",
        errno.EINVAL,
    ): "the range leaves the file, is reserved, or is not aligned; a dma-buf has its own length",
    (
        "IOMMU_IOAS_MAP_FILE",
        errno.EOPNOTSUPP,
    ): "a memfd, or a dma-buf of a VFIO device with exactly one range",
    (
        "IOMMU_IOAS_MAP_FILE",
        errno.ENODEV,
    ): "the dma-buf is revoked: memory decoding of its device is off, or it sleeps",
    ("IOMMU_IOAS_COPY", errno.ENOENT): "not all of the source range is mapped",
    ("IOMMU_IOAS_COPY", errno.EPERM): "the source cannot be written, so the copy cannot either",
    ("IOMMU_IOAS_UNMAP", errno.ENOENT): "unmap whole mappings; iommufd never cuts one",
    ("IOMMU_IOAS_UNMAP", errno.EBUSY): "a hardware queue lies in the range",
    ("IOMMU_IOAS_ALLOW_IOVAS", errno.EADDRINUSE): "an attached device reserves a part of it",
    (
        "IOMMU_IOAS_ALLOW_IOVAS",
        errno.EINVAL,
    ): "ranges must not overlap and hold more than one byte each",
    ("IOMMU_OPTION", errno.EPERM): "needs CAP_SYS_RESOURCE",
    ("IOMMU_OPTION", errno.EINVAL): "choose before devices are attached and memory is mapped",
    ("IOMMU_OPTION", errno.EBUSY): "choose before anything else is made of this /dev/iommu",
    (
        "IOMMU_HWPT_ALLOC",
        errno.EOPNOTSUPP,
    ): "this IOMMU does not make page tables of that kind; hw_info says what it can do",
    (
        "IOMMU_HWPT_ALLOC",
        errno.EINVAL,
    ): "nested tables need a parent made with nest_parent, others an Ioas",
    (
        "IOMMU_HWPT_SET_DIRTY_TRACKING",
        errno.EOPNOTSUPP,
    ): "make the page table with dirty_tracking",
    (
        "IOMMU_HWPT_GET_DIRTY_BITMAP",
        errno.EOPNOTSUPP,
    ): "make the page table with dirty_tracking",
    ("IOMMU_VFIO_IOAS", errno.ENODEV): "no Ioas was set for the container requests",
    ("IOMMU_VFIO_IOAS", errno.EOPNOTSUPP): "this kernel has no IOMMUFD_VFIO_CONTAINER",
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

# What every iommufd request may answer (drivers/iommu/iommufd/main.c).
_IOMMUFD_HINTS = {
    errno.E2BIG: "this kernel is older than the request and does not know all of its fields",
    errno.ENOTTY: "this kernel's iommufd does not have the request",
    errno.ENOENT: "there is no such object, or it is of another kind",
}

_BUSY_OPERATIONS = frozenset({"open", "VFIO_GROUP_GET_DEVICE_FD", "VFIO_DEVICE_BIND_IOMMUFD"})
_MAP_OPERATIONS = frozenset(
    {"VFIO_IOMMU_MAP_DMA", "IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_COPY"}
)


def kernel_error(
    operation: str, subject: object, error: OSError, detail: object = "", hint: str = ""
) -> KernelError:
    """The :class:`KernelError` for ``error``, raised by ``operation`` on ``subject``.

    ``detail`` is any object whose text helps: decoded arguments of the request. ``hint``
    replaces the usual one for that errno. An error that is already a :class:`KernelError` comes
    back unchanged.
    """
    if isinstance(error, KernelError):
        return error
    number = error.errno or errno.EIO
    kind: type[KernelError] = KernelError
    if operation in _MAP_OPERATIONS and number == errno.EEXIST:
        kind = IovaConflictError
    elif operation in _BUSY_OPERATIONS and number == errno.EBUSY:
        kind = DeviceBusyError
    if not hint:
        general = _IOMMUFD_HINTS.get(number, "") if operation.startswith("IOMMU_") else ""
        hint = _HINTS.get((operation, number), general)
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
    number: int = getattr(iommufd if name.startswith("IOMMU_") else vfio, name)
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
