"""Hot reset: which functions a bus reset takes along, and doing it.

Source: Linux ``vfio_pci_core.c`` (``vfio_pci_ioctl_get_pci_hot_reset_info``,
``vfio_pci_dev_set_hot_reset``).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, buffer_of, fetch, store
from vfiokit.machine.kernel.container import GroupFile
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.pci_device import D0, PciDevice


class Buses(Protocol):
    """The part of the PCI core that a hot reset needs."""

    def bridge_above(self, device: PciDevice) -> PciDevice | None:
        """The bridge that owns the bus of ``device``."""
        ...

    def below(self, bridge: PciDevice) -> list[PciDevice]:
        """Every function below ``bridge``, subordinate buses included, nearest first."""
        ...

    def bus_reset(self, device: PciDevice) -> None:
        """Pulse the secondary bus reset of the bridge above ``device``."""
        ...


class ByIommufd(Protocol):
    """A device opened by its own node: its iommufd tells what the user owns."""

    def number(self, device: PciDevice) -> int:
        """Id of ``device`` in the iommufd, or ``VFIO_PCI_DEVID_OWNED`` or ``_NOT_OWNED``."""
        ...


class ByGroups:
    """A device opened through its group: the user passes the groups that it owns."""

    def __init__(self, file_of: Callable[[int], OpenFile]) -> None:
        self._file_of = file_of

    def groups(self, fds: Iterable[int]) -> set[int]:
        """Numbers of the groups behind descriptors; EBADF, EINVAL."""
        found: set[int] = set()
        for fd in fds:
            file = self._file_of(fd)
            if not isinstance(file, GroupFile):
                raise failure(errno.EINVAL, f"descriptor {fd} is no VFIO group")
            found.add(file.group.number)
        return found


def get_info(
    device: PciDevice, buses: Buses, argument: Argument, ownership: ByIommufd | None
) -> int:
    """``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO``: groups, or with ``ownership`` devices."""
    info, view = fetch(abi.vfio_pci_hot_reset_info, argument)
    affected = _affected(device, buses)
    start, size = abi.vfio_pci_hot_reset_info.SIZE, abi.vfio_pci_dependent_device.SIZE
    info.flags, info.count = 0, len(affected)
    if info.argsz < start + size * len(affected):
        store(info, view)
        raise failure(errno.ENOSPC, f"{len(affected)} functions do not fit")
    numbers = [
        _group_number(each) if ownership is None else ownership.number(each) for each in affected
    ]
    if ownership is not None:
        info.flags = abi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID
        if abi.VFIO_PCI_DEVID_NOT_OWNED not in numbers:
            info.flags |= abi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED
    entries = bytearray()
    for each, number in zip(affected, numbers, strict=True):
        entry = abi.vfio_pci_dependent_device(
            group_id=number & 0xFFFF_FFFF,
            segment=each.bdf.domain & 0xFFFF,
            bus=each.bdf.bus,
            devfn=each.bdf.devfn,
        )
        entries += entry.pack()
    store(info, view)
    buffer_of(view, start + len(entries))[start : start + len(entries)] = entries
    return 0


def _group_number(device: PciDevice) -> int:
    if device.group is None:
        raise failure(errno.EPERM, f"{device.bdf} is in no IOMMU group")
    return device.group


def reset(
    device: PciDevice,
    buses: Buses,
    argument: Argument,
    ownership: ByIommufd | ByGroups,
    bound: Callable[[PciDevice], bool],
    after: Callable[[PciDevice], None],
) -> int:
    """``VFIO_DEVICE_PCI_HOT_RESET``: with group descriptors, or none for an iommufd's device.

    ``bound`` tells whether a function is on vfio-pci; ``after`` runs for each one that was reset.
    """
    request, view = fetch(abi.vfio_pci_hot_reset, argument)
    if request.flags:
        raise failure(errno.EINVAL, f"unknown flags {request.flags:#x}")
    affected = _affected(device, buses)
    if bool(request.count) is not isinstance(ownership, ByGroups) or request.count > len(affected):
        raise failure(errno.EINVAL, f"{request.count} groups for {len(affected)} functions")
    if isinstance(ownership, ByGroups):
        start = abi.vfio_pci_hot_reset.SIZE
        data = bytes(buffer_of(view, start + 4 * request.count)[start : start + 4 * request.count])
        groups = ownership.groups(struct.unpack(f"<{request.count}i", data))
        owned = [each.group in groups for each in affected]
    else:
        owned = [ownership.number(each) != abi.VFIO_PCI_DEVID_NOT_OWNED for each in affected]
    for each, mine in zip(affected, owned, strict=True):
        if not bound(each) or not mine:
            raise failure(errno.EINVAL, f"{each.bdf} is not on vfio-pci, or not the user's")
    if any(each.resetting for each in affected):
        raise failure(errno.EBUSY, "a reset of an affected function is running")
    reset_bus(device, buses, affected)
    for each in affected:
        after(each)
    return 0


def reset_bus(device: PciDevice, buses: Buses, affected: Iterable[PciDevice]) -> None:
    """``pci_reset_bus``: save every affected function, reset the bus, restore."""
    for each in affected:
        each.set_power(D0)
    saved = [(each, each.save()) for each in affected]
    buses.bus_reset(device)
    for each, state in saved:
        each.power_state = D0
        each.restore(state)


def _affected(device: PciDevice, buses: Buses) -> list[PciDevice]:
    bridge = buses.bridge_above(device)
    if bridge is None:
        raise failure(errno.ENODEV, "neither its slot nor its bus can be reset")
    return buses.below(bridge)
