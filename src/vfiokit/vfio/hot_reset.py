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
_NOT_OWNED = abi.VFIO_PCI_DEVID_NOT_OWNED & 0xFFFF_FFFF


class AffectedFunction(NamedTuple):
    """A function that a hot reset takes along."""

    bdf: Bdf
    group: int | None
    """Its IOMMU group; ``None`` where the kernel answers with numbers of an iommufd."""
    owned: bool | None = None
    """Whether this process' iommufd owns it; ``None`` where the kernel answers with groups."""


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
        numbered = bool(info.flags & abi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
        found = (
            entry.unpack_from(buffer, head.SIZE + index * entry.SIZE) for index in range(info.count)
        )
        return tuple(
            AffectedFunction(
                Bdf.of(one.segment, one.bus, one.devfn >> 3, one.devfn & 7),
                None if numbered else one.group_id,
                one.group_id != _NOT_OWNED if numbered else None,
            )
            for one in found
        )
    raise KernelError(_INFO, subject, errno.EAGAIN, detail="the list keeps growing")


def hot_reset(kernel: Kernel, fd: int, group_fds: Mapping[int, int], subject: str) -> None:
    """Reset bus or slot; ``group_fds`` are the groups that we own, by number.

    There are none for a device opened by its own node. Raises :class:`KernelError` EINVAL,
    naming the functions, when one that is not owned here would be reset along.
    """
    affected = affected_functions(kernel, fd, subject)
    strangers = [
        one.bdf
        for one in affected
        if (one.owned is False) or (one.group is not None and one.group not in group_fds)
    ]
    if strangers:
        raise KernelError(
            _RESET,
            subject,
            errno.EINVAL,
            detail=f"it would reset {', '.join(map(str, strangers))}, not owned here",
            hint="bind these functions to vfio-pci and open them in the same address space",
        )
    # The kernel takes the groups that are affected, and no others.
    groups = sorted({one.group for one in affected if one.group is not None})
    head = abi.vfio_pci_hot_reset
    size = head.SIZE + 4 * len(groups)
    buffer = head(argsz=size, count=len(groups)).pack()
    buffer += struct.pack(f"<{len(groups)}i", *(group_fds[group] for group in groups))
    named = ", ".join(map(str, groups))
    request(kernel, fd, _RESET, buffer, subject, f"groups {named}" if groups else "")
