"""The system calls of the software machine's kernel."""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from vfiokit.host.tree import Tree
from vfiokit.kernel import linux
from vfiokit.kernel.port import EFD_CLOEXEC, EFD_NONBLOCK, PROT_READ, PROT_WRITE
from vfiokit.kernel.port import Mapping as DeviceMapping
from vfiokit.machine.clock import Clock
from vfiokit.machine.kernel import boot, native
from vfiokit.machine.kernel.argument import Argument
from vfiokit.machine.kernel.container import Container
from vfiokit.machine.kernel.device import VfioPciDevice, VfioRequests
from vfiokit.machine.kernel.driver import DeviceId, PciBus, PciDriver
from vfiokit.machine.kernel.event import EventWatch
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.hardware import HardwareInterrupts, PciCore
from vfiokit.machine.kernel.iommu_driver import VtdDriver
from vfiokit.machine.kernel.iommu_group import DomainKind, IommuGroup
from vfiokit.machine.kernel.iommufd import IommufdFile
from vfiokit.machine.kernel.iommufd_context import Surroundings
from vfiokit.machine.kernel.locked_memory import LockedMemory
from vfiokit.machine.kernel.memory_file import MemoryFile
from vfiokit.machine.kernel.noiommu import UnsafeGroups
from vfiokit.machine.kernel.open_file import FIRST_FD, OpenFile, foreign_file
from vfiokit.machine.kernel.parameter import ModuleParameters
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.process import PAGE_SIZE, AddressSpace, ProcessMemory
from vfiokit.machine.kernel.sriov import VirtualFunctions
from vfiokit.machine.kernel.sysfs import ConfigFile, live_files, static_files
from vfiokit.machine.kernel.type1 import DMA_ENTRY_LIMIT, Type1
from vfiokit.machine.kernel.vfio_bus import NAME as VFIO_PCI
from vfiokit.machine.kernel.vfio_bus import VfioBus
from vfiokit.machine.kernel.vfs import DeviceNode, File, FileSystem, Link
from vfiokit.machine.machine import Machine
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology

_BRIDGE_CLASS = DeviceId(class_code=0x060400, class_mask=0xFFFF00)
_NVME_CLASS = DeviceId(class_code=0x010802, class_mask=0xFFFFFF)


class SoftwareKernel:
    """The kernel of a :class:`~vfiokit.machine.machine.Machine`; implements :class:`Kernel`.

    Without ``base`` the kernel boots: it enables ACS, forms groups, makes sysfs from the modelled
    functions and binds ``pcieport`` and ``nvme`` (not with ``native_drivers=False``). With
    ``base`` it shows the files of that recording, and ``topology`` tells what was recorded of each
    function. ``groups`` overrides the IOMMU group of every function. ``locked_limit`` is
    RLIMIT_MEMLOCK in bytes (``None``: unlimited), ``dma_entry_limit`` the module parameter.
    How the kernel is configured: ``iommufd`` gives ``/dev/iommu``, ``cdev`` (with it) nodes of
    devices, ``iommufd_compat_container`` makes ``/dev/vfio/vfio`` another ``/dev/iommu``.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        base: Tree | None = None,
        topology: Topology | None = None,
        groups: Mapping[Bdf, int] | None = None,
        native_drivers: bool = True,
        default_domain: DomainKind = DomainKind.IDENTITY,
        locked_limit: int | None = None,
        dma_entry_limit: int = DMA_ENTRY_LIMIT,
        allow_unsafe_interrupts: bool = False,
        iommufd: bool = True,
        cdev: bool = True,
        iommufd_compat_container: bool = False,
    ) -> None:
        self.machine = machine
        self.files = FileSystem(base)
        self.process = AddressSpace(machine.memory)
        self.locked = LockedMemory(locked_limit)
        self.watch = EventWatch()
        self.modules: dict[str, object] = {}
        self.vfio_requests: VfioRequests = {}
        self.interrupts = HardwareInterrupts(machine.fabric)
        self.core = PciCore(machine.fabric)
        self.groups: dict[int, IommuGroup] = {}
        self._descriptors: dict[int, OpenFile] = {}
        self._next_fd = FIRST_FD
        self._footprints: dict[Bdf, native.Footprint] = {}
        if topology is None:
            boot.enable_acs(machine.fabric)
            topology = boot.topology_of(machine.fabric)
        self._topology = topology
        self._default_domain = default_domain
        self._places = boot.folders(topology, base)
        self.iommus = self._find_iommus()
        self.parameters = ModuleParameters(
            self.iommus,
            dma_entry_limit=dma_entry_limit,
            allow_unsafe_interrupts=allow_unsafe_interrupts,
        )
        for function in topology:
            self._add_device(function)
        self._add_groups(groups, topology, default_domain)
        self.bus = PciBus(self.core.devices, self.group_of, self._driver_changed)
        container = self._new_iommufd if iommufd_compat_container else self._new_container
        self.vfio = self._vfio_bus(container, device_nodes=iommufd and cdev)
        self.sriov = VirtualFunctions(machine.fabric, self)
        self.vfio.disable_virtual = self.sriov.disable
        if iommufd:
            boot.add_iommufd(self.files, self._new_iommufd)
        self._add_drivers(topology, native_drivers=native_drivers)
        self._add_files(topology, recorded_tree=base is not None)

    # -- what the rest of the kernel uses -----------------------------------------------------

    @property
    def clock(self) -> Clock:
        """Virtual time."""
        return self.machine.clock

    @property
    def buses(self) -> PciCore:
        """The PCI core."""
        return self.core

    @property
    def enable_sriov(self) -> bool:
        """Whether vfio-pci lets its PFs have VFs."""
        return self.parameters.enable_sriov

    def group_of(self, device: PciDevice) -> IommuGroup | None:
        """The IOMMU group of a function."""
        return None if device.group is None else self.groups.get(device.group)

    def vfio_device(self, device: PciDevice) -> VfioPciDevice | None:
        """The vfio-pci state of a function; ``None`` when it is bound to something else."""
        return self.vfio.devices.get(device.bdf)

    def file_of(self, fd: int) -> OpenFile:
        """The open file behind a descriptor that a request names; EBADF.

        Descriptors of the process stand for themselves, so that the answer to an eventfd in the
        place of a container is that it is none.
        """
        if fd < FIRST_FD:
            return foreign_file(fd)
        return self._file(fd)

    def _file(self, fd: int) -> OpenFile:
        """The open file behind a descriptor of a system call; EBADF."""
        try:
            return self._descriptors[fd]
        except KeyError:
            raise failure(errno.EBADF, f"descriptor {fd}") from None

    def device(self, bdf: Bdf) -> PciDevice:
        """The kernel's record of a function (``KeyError`` when there is none)."""
        return self.core.devices[bdf]

    def snapshot(self) -> dict[str, bytes | str]:
        """Every file and link of the machine; see :meth:`FileSystem.snapshot`."""
        return self.files.snapshot()

    # -- system calls -------------------------------------------------------------------------

    @property
    def tree(self) -> FileSystem:
        """Files by absolute path."""
        return self.files

    @property
    def page_size(self) -> int:
        """4096."""
        return PAGE_SIZE

    def open(self, path: str, flags: int = 2) -> int:
        """``open(2)`` of a device node or of an attribute in sysfs."""
        del flags
        node = self.files.lookup(path)
        if isinstance(node, DeviceNode):
            file = node.opener()
            assert isinstance(file, OpenFile)
            return self.install(file)
        if path.startswith("/dev/"):
            raise failure(errno.ENXIO, "no driver of this machine answers there", path)
        if isinstance(node, File):
            return self.install(_Attribute(node))
        raise failure(errno.EISDIR, path=path)

    def close(self, fd: int) -> None:
        """``close(2)``; descriptors of the process (eventfds) are closed there."""
        if fd < FIRST_FD:
            linux.close(fd)
            return
        file = self._file(fd)
        del self._descriptors[fd]
        file.drop()
        self._settle()

    def ioctl(self, fd: int, request: int, argument: Argument = 0) -> int:
        """``ioctl(2)``."""
        self.watch.poll()
        result = self._file(fd).ioctl(request, argument)
        self._settle()
        return result

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``pread(2)``."""
        self.watch.poll()
        data = self._file(fd).pread(length, offset)
        self._settle()
        return data

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """``pwrite(2)``."""
        self.watch.poll()
        written = self._file(fd).pwrite(bytes(data), offset)
        self._settle()
        return written

    def mmap(
        self, fd: int, length: int, offset: int, protection: int = PROT_READ | PROT_WRITE
    ) -> DeviceMapping:
        """``mmap(2)``, shared."""
        return self._file(fd).mmap(length, offset, protection)

    def allocate(self, length: int, *, huge_page_size: int = 0) -> ProcessMemory:
        """Memory of the machine that map requests may name."""
        return self.process.allocate(length, huge_page_size)

    def memfd(self, length: int) -> int:
        """A file of ``length`` zeroed bytes of the machine's memory (``memfd_create``)."""
        return self.install(MemoryFile(self.process, self.machine.memory, length))

    def eventfd(self, initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
        """A real eventfd of this process."""
        return linux.eventfd(initial, flags)

    def eventfd_read(self, fd: int) -> int:
        """Take the counter."""
        return linux.eventfd_read(fd)

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        """Add to the counter; whoever in the kernel watches the eventfd acts at once."""
        linux.eventfd_write(fd, value)
        self.watch.poll()
        self._settle()

    def install(self, file: OpenFile) -> int:
        """Give an open file a descriptor."""
        fd = self._next_fd
        self._next_fd += 1
        self._descriptors[fd] = file
        return fd

    def _settle(self) -> None:
        if self.clock.pending:
            self.clock.settle()

    def _vfio_bus(self, container: Callable[[], OpenFile], *, device_nodes: bool) -> VfioBus:
        return VfioBus(
            self.files,
            self,
            self.group_of,
            self.core.virtual_functions,
            container,
            self._place_of,
            UnsafeGroups(
                self.files,
                self.groups,
                self.iommus,
                self._place_of,
                lambda: self.parameters.unsafe_noiommu,
            ),
            device_nodes=device_nodes,
            idle_in_d3=lambda: self.parameters.idle_in_d3,
        )

    def _find_iommus(self) -> VtdDriver:
        fabric = self.machine.fabric
        return VtdDriver(
            self.machine.memory,
            self.machine.iommus,
            lambda device: boot.unit_of(fabric, device.bdf),
            lambda device: boot.requester_ids(fabric, self._topology, device.bdf),
            lambda number: boot.reserved_regions(self.files, number),
        )

    def _new_container(self) -> OpenFile:
        return Container(self._new_type1, lambda: self.parameters.unsafe_noiommu)

    def _place_of(self, device: PciDevice) -> str:
        return self._places[device.bdf]

    def _new_type1(self, v2: bool) -> Type1:
        return Type1(
            self.process,
            self.iommus,
            v2=v2,
            locked=self.locked,
            entry_limit=self.parameters.dma_entry_limit,
            large_pages=self.parameters.type1_large_pages,
        )

    def _new_iommufd(self) -> OpenFile:
        return IommufdFile(
            Surroundings(
                self.process,
                self.iommus,
                self.locked,
                self.file_of,
                self.install,
                lambda: self.parameters.iommufd_unsafe_interrupts,
            )
        )

    # -- coming up ----------------------------------------------------------------------------

    def _add_device(self, function: Function) -> None:
        made = PciDevice(
            self.machine.functions[function.bdf],
            identity=function.identity,
            resources=function.resources,
            reset_methods=function.recorded.reset_methods,
            neighbours=self.core,
            settle=self._settle,
        )
        made.driver_override = function.recorded.driver_override
        self.core.devices[function.bdf] = made
        # Linux looks for them as it finds the function: its later siblings do not count yet.
        made.find_reset_methods()

    def _add_groups(
        self, groups: Mapping[Bdf, int] | None, topology: Topology, default: DomainKind
    ) -> None:
        if groups is None:
            groups = boot.predicted_groups(self.machine.fabric, topology)
        for bdf, number in groups.items():
            group = self.groups.get(number)
            if group is None:
                group = self.groups[number] = IommuGroup(number, self.iommus, default=default)
            group.devices.append(self.core.devices[bdf])
            self.core.devices[bdf].group = number
        for group in self.groups.values():
            self.iommus.attach(group.devices, default)
        kinds = {number: _type_file(group) for number, group in self.groups.items()}
        boot.add_groups(self.files, groups, self._places, kinds)

    def _add_drivers(self, topology: Topology, *, native_drivers: bool) -> None:
        ids: dict[str, set[DeviceId]] = {"pcieport": {_BRIDGE_CLASS}}
        if native_drivers:
            ids["nvme"] = {_NVME_CLASS}
        for name in self._recorded_drivers():
            ids.setdefault(name, set())
        for function in topology:
            driver = function.recorded.driver
            if driver is not None and driver != VFIO_PCI:
                identity = function.identity
                entry = DeviceId(identity.vendor_id, identity.device_id)
                known = ids.setdefault(driver, set())
                if not any(each.matches(self.core.devices[function.bdf]) for each in known):
                    known.add(entry)
        for name, entries in ids.items():
            self.bus.register(
                PciDriver(
                    name,
                    sorted(entries),
                    self._start_native,
                    self._stop_native,
                    managed_dma=name == "pcieport",
                )
            )
        self.bus.register(self.vfio.driver)
        for name in self.bus.drivers:
            self._add_driver_files(name)

    def _recorded_drivers(self) -> list[str]:
        """Drivers that the recorded host had loaded, whether or not they drove anything."""
        if not self.files.exists(boot.DRIVERS):
            return []
        return [name for name in self.files.list(boot.DRIVERS) if name != VFIO_PCI]

    def _add_driver_files(self, name: str) -> None:
        actions: dict[str, Callable[[str, bytes], None]] = {
            "bind": self.bus.write_bind,
            "unbind": self.bus.write_unbind,
            "new_id": self.bus.write_new_id,
            "remove_id": self.bus.write_remove_id,
        }
        for attribute, action in actions.items():
            self.files.add(
                f"{boot.DRIVERS}/{name}/{attribute}",
                File(None, lambda data, action=action: action(name, data)),  # type: ignore[misc]
            )

    def _add_files(self, topology: Topology, *, recorded_tree: bool) -> None:
        boot.add_iommus(self.files, self.machine.fabric, self._places)
        boot.add_modules(self.files, self.parameters.files())
        bus = "/sys/bus/pci"
        self.files.add(f"{bus}/drivers_probe", File(None, self.bus.write_drivers_probe))
        self.files.add(
            f"{bus}/drivers_autoprobe",
            File(lambda: b"%d\n" % self.bus.autoprobe, self.bus.write_autoprobe),
        )
        for function in topology:
            device = self.core.devices[function.bdf]
            recorded = function.recorded
            place = self._places[function.bdf]
            folder = self.files.folder(place)
            if recorded.driver not in (None, VFIO_PCI):
                self._adopt(device, recorded.driver, enabled=bool(recorded.enabled))
            if folder.get("vendor") is None:
                for name, node in static_files(device).items():
                    folder.set(name, node)
                boot.add_link(self.files, f"{place}/subsystem", bus)
                boot.add_link(self.files, f"{boot.DEVICES}/{function.bdf}", place)
                self._add_virtual_links(device, place)
            self._add_live_files(device, recorded_tree=recorded_tree)
        for function in topology:
            device = self.core.devices[function.bdf]
            if function.recorded.driver == VFIO_PCI:
                self.bus.attach(self.vfio.driver, device)
            elif not recorded_tree:
                self.bus.probe(device)

    def _add_virtual_links(self, device: PciDevice, place: str) -> None:
        physical = device.function.physfn
        if physical is not None:
            boot.add_link(self.files, f"{place}/physfn", self._places[physical])
            order = self.core.virtual_functions(self.core.devices[physical])
            self.link_virtual(device, order.index(device))

    def _add_live_files(self, device: PciDevice, *, recorded_tree: bool = False) -> None:
        folder = self.files.folder(self._places[device.bdf])
        shown = len(self._topology[device.bdf].config)
        for name, file in live_files(device, folder, shown, self.bus.write_override).items():
            folder.set(name, file)
        for name, file in self.sriov.files(device, folder, recorded=recorded_tree).items():
            folder.set(name, file)

    # -- functions that come and go -----------------------------------------------------------

    def virtual_functions(self, device: PciDevice) -> list[PciDevice]:
        """The VFs of a PF, in the order of their numbers."""
        return self.core.virtual_functions(device)

    def appear(self, functions: Sequence[Function]) -> list[PciDevice]:
        """Functions that were plugged in just now: groups and files for them, no driver yet."""
        self._scan([*self._topology, *functions])
        groups = boot.predicted_groups(self.machine.fabric, self._topology)
        made: list[PciDevice] = []
        for function in functions:
            beside = self._places[function.physfn] if function.physfn is not None else ""
            self._places[function.bdf] = f"{posixpath.dirname(beside)}/{function.bdf}"
            self._add_device(function)
            device = self.core.devices[function.bdf]
            if function.bdf in groups:
                self._join(device, groups)
            place = self._places[function.bdf]
            boot.add_iommus(self.files, self.machine.fabric, {function.bdf: place})
            for name, node in static_files(device).items():
                self.files.add(f"{place}/{name}", node)
            boot.add_link(self.files, f"{place}/subsystem", "/sys/bus/pci")
            boot.add_link(self.files, f"{boot.DEVICES}/{function.bdf}", place)
            self._add_live_files(device)
            made.append(device)
        return made

    def vanish(self, device: PciDevice) -> None:
        """Take the driver of a function away (EBUSY while it is open), and all trace of it."""
        if device.driver is not None:
            self.bus.detach(device)
        bdf, place = device.bdf, self._places[device.bdf]
        group = self.group_of(device)
        if group is not None:
            self.iommus.attach([device], DomainKind.BLOCKED)
            group.devices.remove(device)
            folder = f"{boot.GROUPS}/{group.number}"
            self.files.remove(f"{folder}/devices/{bdf}")
            if not group.devices:
                del self.groups[group.number]
                self.files.remove(folder)
        if device.function.physfn is not None:
            home = self._places[device.function.physfn]
            for name in self.files.list(home):
                if name.startswith("virtfn") and self.files.real_path(f"{home}/{name}") == place:
                    self.files.remove(f"{home}/{name}")
        self.files.remove(f"{boot.DEVICES}/{bdf}")
        self.files.remove(place)
        self._footprints.pop(bdf, None)
        del self.core.devices[bdf], self._places[bdf]
        self.machine.remove(bdf)
        self._scan([function for function in self._topology if function.bdf != bdf])

    def link_virtual(self, device: PciDevice, index: int) -> None:
        """``virtfnN`` of the PF, and ``physfn``."""
        physical = device.function.physfn
        assert physical is not None
        place, home = self._places[device.bdf], self._places[physical]
        boot.add_link(self.files, f"{place}/physfn", home)
        boot.add_link(self.files, f"{home}/virtfn{index}", place)

    def _scan(self, functions: Sequence[Function]) -> None:
        self._topology = Topology(functions, tuple(self.machine.fabric.host_bridges))

    def _join(self, device: PciDevice, predicted: Mapping[Bdf, int]) -> None:
        """The group of the functions that ``device`` is not isolated from, or one of its own."""
        with_it = [bdf for bdf, number in predicted.items() if number == predicted[device.bdf]]
        known = {self.core.devices[bdf].group for bdf in with_it if bdf in self.core.devices}
        numbers = sorted(number for number in known if number is not None)
        number = numbers[0] if numbers else next(n for n in count() if n not in self.groups)
        group = self.groups.get(number)
        if group is None:
            group = IommuGroup(number, self.iommus, default=self._default_domain)
            self.groups[number] = group
        group.devices.append(device)
        device.group = number
        self.iommus.attach([device], group.domain)
        kinds = {number: _type_file(group)}
        boot.add_groups(self.files, {device.bdf: number}, self._places, kinds)

    def _adopt(self, device: PciDevice, name: str, *, enabled: bool) -> None:
        """The function was bound to ``name`` when it was recorded."""
        device.driver = name
        device.enable_count = int(enabled)
        group = self.group_of(device)
        driver = self.bus.drivers[name]
        if group is not None and not driver.managed_dma:
            group.users += 1
        place = self._places[device.bdf]
        boot.add_link(self.files, f"{boot.DRIVERS}/{name}/{device.bdf}", place)
        boot.add_link(self.files, f"{place}/driver", f"{boot.DRIVERS}/{name}")

    # -- drivers ------------------------------------------------------------------------------

    def _start_native(self, device: PciDevice) -> None:
        native.start(device, self.files, self._footprints.pop(device.bdf, None))

    def _stop_native(self, device: PciDevice) -> None:
        place = self._places[device.bdf]
        self._footprints[device.bdf] = native.stop(device, self.files, place)

    def _driver_changed(self, device: PciDevice, before: str | None) -> None:
        place = self._places[device.bdf]
        if before is not None:
            self.files.remove(f"{place}/driver")
            self.files.remove(f"{boot.DRIVERS}/{before}/{device.bdf}")
        if device.driver is not None:
            home = f"{boot.DRIVERS}/{device.driver}"
            self.files.add(f"{place}/driver", Link(boot.relative(f"{place}/driver", home)))
            link = f"{home}/{device.bdf}"
            self.files.add(link, Link(boot.relative(link, place)))


def _type_file(group: IommuGroup) -> File:
    return File(lambda: f"{group.type_name}\n".encode(), group.choose_type)


class _Attribute(OpenFile):
    """An open file of sysfs."""

    name = "an attribute"

    def __init__(self, node: File) -> None:
        super().__init__()
        self._node = node

    def pread(self, length: int, offset: int) -> bytes:
        """Part of the content."""
        return self._node.read()[offset : offset + length]

    def pwrite(self, data: bytes, offset: int) -> int:
        """One write; only ``config`` heeds the offset."""
        if isinstance(self._node, ConfigFile):
            self._node.write_at(data, offset)
        elif self._node.on_write is None:
            raise failure(errno.EACCES, "this attribute can only be read")
        else:
            self._node.on_write(data)
        return len(data)
