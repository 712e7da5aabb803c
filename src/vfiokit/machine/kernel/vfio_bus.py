"""The vfio-pci driver and the nodes that groups get: ``/dev/vfio/N`` and its place in sysfs.

Source: Linux ``drivers/vfio/{group,vfio_main}.c``, ``vfio_pci_core.c``
(``vfio_pci_core_register_device``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.container import Container, GroupFile, VfioGroup
from vfiokit.machine.kernel.device import Host, VfioPciDevice
from vfiokit.machine.kernel.driver import DeviceId, PciDriver
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.type1 import Type1
from vfiokit.machine.kernel.vfs import DeviceNode, File, FileSystem, Link
from vfiokit.pci.address import Bdf

NAME = "vfio-pci"

_MAJOR = 511
_CLASS = "/sys/class/vfio"
_VIRTUAL = "/sys/devices/virtual/vfio"


class VfioBus:
    """Every function bound to vfio-pci, by group."""

    def __init__(
        self,
        files: FileSystem,
        host: Host,
        group_of: Callable[[PciDevice], IommuGroup | None],
        virtual_functions: Callable[[PciDevice], list[PciDevice]],
        new_type1: Callable[[bool], Type1],
    ) -> None:
        self._files = files
        self._host = host
        self._group_of = group_of
        self._virtual_functions = virtual_functions
        self.groups: dict[int, VfioGroup] = {}
        self.devices: dict[Bdf, VfioPciDevice] = {}
        self.install: Callable[[OpenFile], int] = lambda _file: -1
        """Gives an open file a descriptor; set by the system call layer."""
        self.driver = PciDriver(
            NAME, [DeviceId(override_only=True)], self._probe, self._remove, managed_dma=True
        )
        files.add("/dev/vfio/vfio", DeviceNode(lambda: Container(new_type1)))
        files.folder(_CLASS)
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
            raise failure(errno.EINVAL, f"{device.bdf} is in no IOMMU group")
        made = VfioPciDevice(device, self._host)
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
        made.unbound()
        del self.devices[device.bdf]
        for group in list(self.groups.values()):
            if made in group.sources:
                group.sources.remove(made)
                if not group.sources:
                    del self.groups[group.number]
                    self._remove_nodes(group)

    def _add_nodes(self, group: VfioGroup) -> None:
        number = group.number

        def opener() -> GroupFile:
            file = group.open()
            file.install = self.install
            return file

        self._files.add(f"/dev/vfio/{number}", DeviceNode(opener))
        folder = f"{_VIRTUAL}/{number}"
        self._files.add(f"{folder}/dev", File(f"{_MAJOR}:{number}\n".encode()))
        self._files.add(f"{folder}/subsystem", Link("../../../../class/vfio"))
        uevent = f"MAJOR={_MAJOR}\nMINOR={number}\nDEVNAME=vfio/{number}\n"
        self._files.add(f"{folder}/uevent", File(uevent.encode()))
        self._files.add(f"{_CLASS}/{number}", Link(f"../../devices/virtual/vfio/{number}"))

    def _remove_nodes(self, group: VfioGroup) -> None:
        for path in (
            f"/dev/vfio/{group.number}",
            f"{_CLASS}/{group.number}",
            f"{_VIRTUAL}/{group.number}",
        ):
            self._files.remove(path)
