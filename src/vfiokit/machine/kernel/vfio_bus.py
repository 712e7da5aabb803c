"""The vfio-pci driver, and the nodes that groups and functions get, with their place in sysfs.

Source: Linux ``drivers/vfio/{group,vfio_main,device_cdev}.c``, ``vfio_pci_core.c``
(``vfio_pci_core_register_device``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.boot import relative
from vfiokit.machine.kernel.cdev import CdevFile
from vfiokit.machine.kernel.container import GroupFile, VfioGroup
from vfiokit.machine.kernel.device import Host, VfioPciDevice
from vfiokit.machine.kernel.driver import DeviceId, PciDriver
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup
from vfiokit.machine.kernel.noiommu import UnsafeGroups
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.vfs import DeviceNode, File, FileSystem, Link
from vfiokit.pci.address import Bdf

NAME = "vfio-pci"

_MAJOR = 511
_DEVICE_MAJOR = 510
_CLASS = "/sys/class/vfio"
_DEVICE_CLASS = "/sys/class/vfio-dev"
_NODES = "/dev/vfio/devices"
_VIRTUAL = "/sys/devices/virtual/vfio"


class VfioBus:
    """Every function bound to vfio-pci, by group."""

    def __init__(
        self,
        files: FileSystem,
        host: Host,
        group_of: Callable[[PciDevice], IommuGroup | None],
        virtual_functions: Callable[[PciDevice], list[PciDevice]],
        new_container: Callable[[], OpenFile],
        folder_of: Callable[[PciDevice], str],
        unsafe_groups: UnsafeGroups,
        *,
        device_nodes: bool,
        idle_in_d3: Callable[[], bool],
    ) -> None:
        """``folder_of`` a function in sysfs; ``device_nodes``: CONFIG_VFIO_DEVICE_CDEV.

        ``idle_in_d3``: whether functions bound from now on sleep while nobody uses them.
        """
        self._files = files
        self._host = host
        self._group_of = group_of
        self._virtual_functions = virtual_functions
        self._folder_of = folder_of
        self._unsafe_groups = unsafe_groups
        self._device_nodes = device_nodes
        self._idle_in_d3 = idle_in_d3
        self._numbers: dict[Bdf, int] = {}
        self.groups: dict[int, VfioGroup] = {}
        self.devices: dict[Bdf, VfioPciDevice] = {}
        self.disable_virtual: Callable[[PciDevice], None] = lambda _device: None
        """Takes the VFs of a PF away before the PF is unbound."""
        self.driver = PciDriver(
            NAME, [DeviceId(override_only=True)], self._probe, self._remove, managed_dma=True
        )
        files.add("/dev/vfio/vfio", DeviceNode(new_container))
        files.folder(_CLASS)
        files.folder(_DEVICE_CLASS)
        if device_nodes:
            files.folder(_NODES)
        if not files.exists("/sys/class/misc/vfio"):
            files.add("/sys/class/misc/vfio", Link("../../devices/virtual/misc/vfio"))
            files.add("/sys/devices/virtual/misc/vfio/dev", File(b"10:196\n"))

    def _probe(self, device: PciDevice) -> None:
        if device.header_type != regs.PCI_HEADER_TYPE_NORMAL:
            raise failure(errno.EINVAL, f"{device.bdf} is a bridge")
        if self._virtual_functions(device):
            raise failure(errno.EBUSY, f"{device.bdf} has virtual functions")
        iommu = self._group_of(device)
        if iommu is None:
            iommu = self._unsafe_groups.make(device)
        made = VfioPciDevice(device, self._host, idle_in_d3=self._idle_in_d3())
        physical = device.function.physfn
        if physical is not None:
            made.physical = lambda: self.devices.get(physical)
        made.virtual_users = lambda: sum(
            self.devices[other.bdf].open_count
            for other in self._virtual_functions(device)
            if other.bdf in self.devices
        )
        self.devices[device.bdf] = made
        group = self.groups.get(iommu.number)
        if group is None:
            group = self.groups[iommu.number] = VfioGroup(iommu, self._host.file_of)
            self._add_nodes(group)
        group.sources.append(made)
        self._add_device(made, group)
        made.bound()

    def _remove(self, device: PciDevice) -> None:
        made = self.devices[device.bdf]
        if made.open_count:
            made.request()
            raise failure(
                errno.EBUSY,
                f"{device.bdf} is open; a real kernel signals the REQ interrupt and waits here "
                "until the user closes it",
            )
        self.disable_virtual(device)
        made.unbound()
        self._remove_device(device)
        del self.devices[device.bdf]
        for group in list(self.groups.values()):
            if made in group.sources:
                group.sources.remove(made)
                if not group.sources:
                    del self.groups[group.number]
                    self._remove_nodes(group)
        self._unsafe_groups.remove(device)

    def _add_nodes(self, group: VfioGroup) -> None:
        number, name = group.number, _node_name(group)

        def opener() -> GroupFile:
            file = group.open()
            file.install = self._host.install
            return file

        self._files.add(f"/dev/vfio/{name}", DeviceNode(opener))
        folder = f"{_VIRTUAL}/{name}"
        self._files.add(f"{folder}/dev", File(f"{_MAJOR}:{number}\n".encode()))
        self._files.add(f"{folder}/subsystem", Link("../../../../class/vfio"))
        uevent = f"MAJOR={_MAJOR}\nMINOR={number}\nDEVNAME=vfio/{name}\n"
        self._files.add(f"{folder}/uevent", File(uevent.encode()))
        self._files.add(f"{_CLASS}/{name}", Link(f"../../devices/virtual/vfio/{name}"))

    def _remove_nodes(self, group: VfioGroup) -> None:
        name = _node_name(group)
        for path in (f"/dev/vfio/{name}", f"{_CLASS}/{name}", f"{_VIRTUAL}/{name}"):
            self._files.remove(path)

    def _add_device(self, made: VfioPciDevice, group: VfioGroup) -> None:
        """``vfio-dev/vfioN`` of the function, and its node."""
        device = made.device
        parent = f"{self._folder_of(device)}/vfio-dev"
        number = self._numbers[device.bdf] = self._number_for(parent)
        name = f"vfio{number}"
        folder = f"{parent}/{name}"
        uevent = ""
        if self._device_nodes and not group.iommu.noiommu:
            uevent = f"MAJOR={_DEVICE_MAJOR}\nMINOR={number}\nDEVNAME=vfio/devices/{name}\n"
            self._files.add(f"{folder}/dev", File(f"{_DEVICE_MAJOR}:{number}\n".encode()))
            self._files.add(
                f"{_NODES}/{name}", DeviceNode(lambda: CdevFile(made, group, self._host.process))
            )
        self._files.add(f"{folder}/uevent", File(uevent.encode()))
        self._files.add(f"{folder}/device", Link(f"../../../{device.bdf}"))
        self._files.add(f"{folder}/subsystem", Link(relative(f"{folder}/subsystem", _DEVICE_CLASS)))
        link = f"{_DEVICE_CLASS}/{name}"
        self._files.add(link, Link(relative(link, folder)))

    def _number_for(self, parent: str) -> int:
        """The number that was recorded, or the lowest that is free."""
        if self._files.exists(parent):
            for name in self._files.list(parent):
                if name.startswith("vfio") and name[4:].isdecimal():
                    return int(name[4:])
        number = 0
        while number in self._numbers.values() or self._files.exists(
            f"{_DEVICE_CLASS}/vfio{number}"
        ):
            number += 1
        return number

    def _remove_device(self, device: PciDevice) -> None:
        name = f"vfio{self._numbers.pop(device.bdf)}"
        for path in (
            f"{_NODES}/{name}",
            f"{_DEVICE_CLASS}/{name}",
            f"{self._folder_of(device)}/vfio-dev",
        ):
            self._files.remove(path)


def _node_name(group: VfioGroup) -> str:
    """Name of the group's node; it warns where nothing isolates."""
    return f"noiommu-{group.number}" if group.iommu.noiommu else str(group.number)
