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


def get_info(device: PciDevice, buses: Buses, argument: Argument) -> int:
    """``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`` for a device opened through its group."""
    info, view = fetch(abi.vfio_pci_hot_reset_info, argument)
    affected = _affected(device, buses)
    start, size = abi.vfio_pci_hot_reset_info.SIZE, abi.vfio_pci_dependent_device.SIZE
    info.flags, info.count = 0, len(affected)
    entries = bytearray()
    for each in affected:
        if each.group is None:
            raise failure(errno.EPERM, f"{each.bdf} is in no IOMMU group")
        entry = abi.vfio_pci_dependent_device(
            group_id=each.group,
            segment=each.bdf.domain & 0xFFFF,
            bus=each.bdf.bus,
            devfn=each.bdf.devfn,
        )
        entries += entry.pack()
    short = info.argsz < start + size * len(affected)
    store(info, view)
    if short:
        raise failure(errno.ENOSPC, f"{len(affected)} functions do not fit")
    buffer_of(view, start + len(entries))[start : start + len(entries)] = entries
    return 0


def reset(
    device: PciDevice,
    buses: Buses,
    argument: Argument,
    file_of: Callable[[int], OpenFile],
    bound: Callable[[PciDevice], bool],
    after: Callable[[PciDevice], None],
) -> int:
    """``VFIO_DEVICE_PCI_HOT_RESET`` with group descriptors.

    ``bound`` tells whether a function is on vfio-pci; ``after`` runs for each one that was reset.
    """
    request, view = fetch(abi.vfio_pci_hot_reset, argument)
    if request.flags:
        raise failure(errno.EINVAL, f"unknown flags {request.flags:#x}")
    affected = _affected(device, buses)
    if not request.count or request.count > len(affected):
        raise failure(errno.EINVAL, f"{request.count} groups for {len(affected)} functions")
    start = abi.vfio_pci_hot_reset.SIZE
    data = bytes(buffer_of(view, start + 4 * request.count)[start : start + 4 * request.count])
    groups = _owned(struct.unpack(f"<{request.count}i", data), file_of)
    for each in affected:
        if not bound(each) or each.group not in groups:
            raise failure(errno.EINVAL, f"{each.bdf} is not on vfio-pci, or its group not passed")
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


def _owned(fds: Iterable[int], file_of: Callable[[int], OpenFile]) -> set[int]:
    groups: set[int] = set()
    for fd in fds:
        file = file_of(fd)
        if not isinstance(file, GroupFile):
            raise failure(errno.EINVAL, f"descriptor {fd} is no VFIO group")
        groups.add(file.group.number)
    return groups


def _affected(device: PciDevice, buses: Buses) -> list[PciDevice]:
    bridge = buses.bridge_above(device)
    if bridge is None:
        raise failure(errno.ENODEV, "neither its slot nor its bus can be reset")
    return buses.below(bridge)
