"""Hot reset: everything below one bus or slot at once.

Source: Linux ``vfio_pci_core.c`` ``vfio_pci_ioctl_get_pci_hot_reset_info`` and
``vfio_pci_ioctl_pci_hot_reset``.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio.failure import request

_INFO = "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"


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


def hot_reset(kernel: Kernel, fd: int, group_fds: tuple[int, ...], subject: str) -> None:
    """Reset bus or slot; ``group_fds`` prove that all affected groups are ours."""
    head = abi.vfio_pci_hot_reset
    size = head.SIZE + 4 * len(group_fds)
    buffer = head(argsz=size, count=len(group_fds)).pack()
    buffer += struct.pack(f"<{len(group_fds)}i", *group_fds)
    request(kernel, fd, "VFIO_DEVICE_PCI_HOT_RESET", buffer, subject, f"groups {len(group_fds)}")
