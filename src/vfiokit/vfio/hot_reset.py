"""Hot reset: everything below one bus or slot at once.

Source: Linux ``vfio_pci_core.c`` ``vfio_pci_ioctl_get_pci_hot_reset_info`` and
``vfio_pci_ioctl_pci_hot_reset``.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from typing import NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio.failure import request

_INFO = "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"
_RESET = "VFIO_DEVICE_PCI_HOT_RESET"


class AffectedFunction(NamedTuple):
    """A function that a hot reset takes along."""

    bdf: Bdf
    group: int | None
    """Its IOMMU group; ``None`` where the kernel answers with iommufd ids."""


def affected_functions(kernel: Kernel, fd: int, subject: str) -> tuple[AffectedFunction, ...]:
    """Which functions a hot reset of this device resets, itself included.

    Raises :class:`KernelError`: ENODEV when neither slot nor bus can be reset.
    """
    head, entry = abi.vfio_pci_hot_reset_info, abi.vfio_pci_dependent_device
    count = 0
    for _ in range(8):
        size = head.SIZE + count * entry.SIZE
        buffer = bytearray(size)
        head(argsz=size).pack_into(buffer)
        try:
            request(kernel, fd, _INFO, buffer, subject)
        except KernelError as error:
            if error.errno != errno.ENOSPC:
                raise
            count = head.unpack_from(buffer).count
            continue
        info = head.unpack_from(buffer)
        named = not info.flags & abi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID
        found = (
            entry.unpack_from(buffer, head.SIZE + index * entry.SIZE) for index in range(info.count)
        )
        return tuple(
            AffectedFunction(
                Bdf.of(one.segment, one.bus, one.devfn >> 3, one.devfn & 7),
                one.group_id if named else None,
            )
            for one in found
        )
    raise KernelError(_INFO, subject, errno.EAGAIN, detail="the list keeps growing")


def hot_reset(kernel: Kernel, fd: int, group_fds: Mapping[int, int], subject: str) -> None:
    """Reset bus or slot; ``group_fds`` are the groups that we own, by number.

    Raises :class:`KernelError` EINVAL, naming the functions, when one of another group would be
    reset along.
    """
    affected = affected_functions(kernel, fd, subject)
    strangers = [
        one.bdf for one in affected if one.group is not None and one.group not in group_fds
    ]
    if strangers:
        raise KernelError(
            _RESET,
            subject,
            errno.EINVAL,
            detail=f"it would reset {', '.join(map(str, strangers))}, of groups not owned here",
            hint="attach their groups to the same container",
        )
    # The kernel takes the groups that are affected, and no others.
    groups = sorted({one.group for one in affected if one.group is not None})
    head = abi.vfio_pci_hot_reset
    size = head.SIZE + 4 * len(groups)
    buffer = head(argsz=size, count=len(groups)).pack()
    buffer += struct.pack(f"<{len(groups)}i", *(group_fds[group] for group in groups))
    request(kernel, fd, _RESET, buffer, subject, f"groups {', '.join(map(str, groups))}")
