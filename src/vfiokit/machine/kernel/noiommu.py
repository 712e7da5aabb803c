"""vfio-pci without an IOMMU (``enable_unsafe_noiommu_mode``): groups made up for it.

Nothing isolates the function: its DMA reaches all memory, and there is nothing to map.

Source: Linux ``drivers/vfio/group.c`` (``vfio_noiommu_group_alloc``), ``container.c``
(``vfio_noiommu_ops``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument
from vfiokit.machine.kernel.boot import GROUPS, add_link
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup, Iommus
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.vfs import File, FileSystem

GROUP_NAME = "vfio-noiommu"


class NoIommu:
    """The IOMMU driver of a container with such groups: it maps nothing."""

    @staticmethod
    def probe_extension(argument: Argument, *, enabled: bool) -> int:
        """``VFIO_CHECK_EXTENSION``; ``enabled`` is the module parameter."""
        return int(enabled and argument == abi.VFIO_NOIOMMU_IOMMU)

    def check_extension(self, argument: Argument) -> int:
        """``VFIO_CHECK_EXTENSION`` of a container with this driver."""
        return self.probe_extension(argument, enabled=True)

    def ioctl(self, request: int, argument: Argument) -> int:
        """ENOTTY, whatever it is."""
        del argument
        raise failure(errno.ENOTTY, f"there is no IOMMU for request {request:#x}")

    def attach_group(self, group: IommuGroup) -> None:
        """Nothing to do."""

    def detach_group(self, group: IommuGroup) -> None:
        """Nothing to do."""

    def unmap_everything(self) -> None:
        """Nothing is mapped."""


class UnsafeGroups:
    """Makes and removes the groups, with their place in sysfs."""

    def __init__(
        self,
        files: FileSystem,
        groups: dict[int, IommuGroup],
        iommus: Iommus,
        folder_of: Callable[[PciDevice], str],
        enabled: Callable[[], bool],
    ) -> None:
        """``enabled`` is the module parameter."""
        self._files = files
        self._groups = groups
        self._iommus = iommus
        self._folder_of = folder_of
        self.enabled = enabled

    def make(self, device: PciDevice) -> IommuGroup:
        """A group for a function that has none; EINVAL unless that is allowed."""
        if not self.enabled():
            raise failure(
                errno.EINVAL,
                f"{device.bdf} is in no IOMMU group, and vfio.enable_unsafe_noiommu_mode is N",
            )
        number = next(each for each in range(len(self._groups) + 1) if each not in self._groups)
        group = self._groups[number] = IommuGroup(number, self._iommus)
        group.noiommu = True
        group.devices.append(device)
        device.group = number
        folder, place = f"{GROUPS}/{number}", self._folder_of(device)
        add_link(self._files, f"{folder}/devices/{device.bdf}", place)
        add_link(self._files, f"{place}/iommu_group", folder)
        self._files.add(f"{folder}/name", File(f"{GROUP_NAME}\n".encode()))
        self._files.add(f"{folder}/type", File(b"unknown\n"))
        self._files.add(f"{folder}/reserved_regions", File(b""))
        return group

    def remove(self, device: PciDevice) -> None:
        """Undo :meth:`make`, if ``device`` is in such a group."""
        number = device.group
        if number is None or not self._groups[number].noiommu:
            return
        device.group = None
        del self._groups[number]
        self._files.remove(f"{self._folder_of(device)}/iommu_group")
        self._files.remove(f"{GROUPS}/{number}")
