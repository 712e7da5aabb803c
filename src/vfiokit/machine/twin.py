"""A software machine built from a recorded host: its twin.

Every function gets its captured configuration space, its BARs and its place in the hierarchy;
NVMe controllers and QEMU's educational device get a model that works, all others answer from
their registers alone. On top runs a :class:`~vfiokit.machine.kernel.SoftwareKernel` that shows the
files of the recording, so that what is rehearsed here meets what the host will show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vfiokit.errors import MachineError, UsageError
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import Tree, read_text
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.device.edu import DEVICE_ID as EDU_DEVICE
from vfiokit.machine.device.edu import VENDOR_ID as EDU_VENDOR
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.device.passive import PassiveFunction
from vfiokit.machine.function import BarModel
from vfiokit.machine.function import Function as ModelledFunction
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.kernel.boot import folders
from vfiokit.machine.kernel.pci_device import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
)
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import Bridge
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.sriov import TOTAL_VFS
from vfiokit.pci.topology import Bus, Function, Topology

_GIB = 1 << 30
_BARS = 6
_VIRTUAL_BARS = 7  # PCI_IOV_RESOURCES
_NVME_CLASS = 0x010802
_DISPLAY, _ACCELERATOR = 0x03, 0x12

Progress = Callable[[int, int], None]
"""Called with the number of functions built so far, and of all."""


class Twin(NamedTuple):
    """A recorded host, alive."""

    machine: Machine
    kernel: SoftwareKernel

    def topology(self) -> Topology:
        """What the twin's sysfs shows now."""
        return read_topology(self.kernel.tree)


def build_twin(
    tree: Tree,
    *,
    progress: Progress | None = None,
    ram: int = 64 * _GIB,
    locked_limit: int | None = None,
) -> Twin:
    """Build the twin of the host whose files ``tree`` holds.

    ``ram`` bytes of sparse memory lie above every captured BAR. Groups are those that the host's
    kernel formed where it recorded them, else the predicted ones; a host recorded without IOMMU
    gets one, so that an assignment can be rehearsed. ``locked_limit`` is RLIMIT_MEMLOCK in bytes.
    Raises :class:`UsageError` when ``tree`` shows no PCI function.
    """
    topology = read_topology(tree)
    if not len(topology):
        raise UsageError("the recording shows no PCI function: there is nothing to build")
    machine = Machine(ram=ram, ram_base=_ram_base(topology))
    places = folders(topology, tree)
    _add_host_bridges(machine, tree, topology, places)
    for done, function in enumerate(_in_plugging_order(topology), 1):
        machine.add(_model(tree, function, places[function.bdf]))
        if progress is not None:
            progress(done, len(topology))
    kernel = SoftwareKernel(
        machine,
        base=tree,
        topology=topology,
        groups=_recorded_groups(topology),
        native_drivers=False,
        locked_limit=locked_limit,
    )
    return Twin(machine, kernel)


def _ram_base(topology: Topology) -> int:
    """A host physical address above every BAR and window."""
    end = max(
        (
            resource.end
            for function in topology
            for resource in function.resources
            if resource.flags & IORESOURCE_MEM
        ),
        default=0,
    )
    return max(-(-(end + 1) // _GIB) * _GIB, 4 * _GIB)


def _recorded_groups(topology: Topology) -> dict[Bdf, int] | None:
    groups = {
        function.bdf: function.recorded.iommu_group
        for function in topology
        if function.recorded.iommu_group is not None
    }
    return groups or None


# --- Host bridges and IOMMUs ---


def _add_host_bridges(
    machine: Machine, tree: Tree, topology: Topology, places: dict[Bdf, str]
) -> None:
    """A unit for every recorded one; each host bridge gets the one that most of it uses."""
    votes: dict[tuple[int, int], Counter[str]] = {}
    for function in topology:
        name = _unit_name(tree, places[function.bdf])
        bridge = topology.host_bridge_of(function)
        if name:
            votes.setdefault((bridge.domain, bridge.bus), Counter())[name] += 1
    names = sorted({name for counter in votes.values() for name in counter})
    units: dict[str, VtdUnit] = {}
    for name in names or ["dmar0"]:
        units[name] = machine.add_iommu()
        units[name].name = name
    for bridge in topology.host_bridges:
        counter = votes.get((bridge.domain, bridge.bus))
        name = counter.most_common(1)[0][0] if counter else next(iter(units))
        machine.add_host_bridge(bridge.domain, bridge.bus, iommu=units[name])


def _unit_name(tree: Tree, place: str) -> str:
    try:
        return tree.readlink(f"{place}/iommu").rpartition("/")[2]
    except OSError:
        return ""


# --- Functions ---


def _in_plugging_order(topology: Topology) -> Iterator[Function]:
    """Bridges before what is below them, PFs before their VFs."""
    done: set[Bdf] = set()

    def physical(bus: Bus) -> Iterator[Function]:
        for function in bus.functions:
            if function.is_virtual or function.bdf in done:
                continue
            done.add(function.bdf)
            yield function
            below = topology.secondary(function)
            if below is not None:
                yield from physical(below)

    for bus in topology.buses.values():
        if bus.is_root:
            yield from physical(bus)
    for function in topology:
        if function.is_virtual and function.physfn in done:
            yield function


def _model(tree: Tree, function: Function, place: str) -> ModelledFunction:
    """The model of one recorded function."""
    config = ConfigModel(_config_bytes(function))
    # A VF's BARs are its PF's: its own registers hold zeros.
    bars = () if function.is_virtual else tuple(_bars(function))
    made: ModelledFunction
    identity = function.identity
    if function.is_bridge:
        made = Bridge(function.bdf, config, bars)
    elif identity.class_code == _NVME_CLASS and not function.is_virtual:
        made = _nvme(tree, function, place, config, bars)
    elif (identity.vendor_id, identity.device_id) == (EDU_VENDOR, EDU_DEVICE):
        made = EduFunction(function.bdf, config=config)
    else:
        memory = frozenset(
            bar.index
            for bar in bars
            if bar.prefetchable and identity.class_code >> 16 in (_DISPLAY, _ACCELERATOR)
        )
        made = PassiveFunction(function.bdf, config, bars, memory_bars=memory)
    made.physfn = function.physfn
    made.virtual_bars = tuple(_virtual_bars(function))
    # Models come up as after power-on; the recorded host had its interrupts enabled.
    captured = function.config.data
    made.config.data[: len(captured)] = captured
    return made


def _config_bytes(function: Function) -> bytes:
    """The captured space, filled up to a size that exists; a header where none was captured."""
    captured = function.config.data
    size = 4096 if len(captured) > 256 else 256
    if captured:
        return captured.ljust(size, b"\0")
    identity = function.identity
    header = bytearray(size)
    header[0:2] = identity.vendor_id.to_bytes(2, "little")
    header[2:4] = identity.device_id.to_bytes(2, "little")
    header[8] = identity.revision
    header[9:12] = identity.class_code.to_bytes(3, "little")
    return bytes(header)


def _bars(function: Function) -> Iterator[BarModel]:
    for resource in function.resources:
        if resource.index >= _BARS or not resource.size:
            continue
        memory = not resource.flags & IORESOURCE_IO
        size = 1 << (resource.size - 1).bit_length()
        wide = bool(resource.flags & IORESOURCE_MEM_64) and resource.index < _BARS - 1
        yield BarModel(
            resource.index,
            size,
            memory=memory,
            wide=wide,
            prefetchable=bool(resource.flags & IORESOURCE_PREFETCH),
        )


def _virtual_bars(function: Function) -> Iterator[BarModel]:
    """BARs of each VF of a PF: the kernel's resources are those of all VFs together."""
    sriov = function.capabilities.find_extended(0x10)
    if sriov is None or not function.config.has(sriov.offset + TOTAL_VFS.offset, 2):
        return
    total = sriov.value(TOTAL_VFS)
    for resource in function.resources:
        index = resource.index - _VIRTUAL_BARS
        if not total or not 0 <= index < _BARS or resource.size < total:
            continue
        size = 1 << (resource.size // total).bit_length() - 1
        wide = bool(resource.flags & IORESOURCE_MEM_64) and index < _BARS - 1
        prefetchable = bool(resource.flags & IORESOURCE_PREFETCH)
        yield BarModel(index, size, wide=wide, prefetchable=prefetchable)


def _nvme(
    tree: Tree, function: Function, place: str, config: ConfigModel, bars: tuple[BarModel, ...]
) -> ModelledFunction:
    """A working controller with the recorded names and size, or a passive function."""
    recorded = _NvmeFacts.read(tree, place)
    try:
        return NvmeFunction(
            function.bdf,
            config,
            bars,
            capacity=recorded.capacity,
            block_size=recorded.block_size,
            model=recorded.model,
            serial=recorded.serial,
            firmware=recorded.firmware,
        )
    except (MachineError, UsageError):
        # A BAR that was not assigned, or names that Identify cannot hold.
        return PassiveFunction(function.bdf, ConfigModel(_config_bytes(function)), bars)


class _NvmeFacts(NamedTuple):
    """What the nvme driver of the recorded host said about a controller."""

    model: str = "vfiokit NVMe"
    serial: str | None = None
    firmware: str = "1.0"
    capacity: int = _GIB
    block_size: int = 512

    @classmethod
    def read(cls, tree: Tree, place: str) -> _NvmeFacts:
        """From ``nvme/nvmeN`` below the function's folder; defaults where it has none."""
        try:
            controller = f"{place}/nvme/{tree.list(f'{place}/nvme')[0]}"
            facts = cls(
                read_text(tree, f"{controller}/model").strip(),
                read_text(tree, f"{controller}/serial").strip(),
                read_text(tree, f"{controller}/firmware_rev").strip(),
            )
            namespace = next(
                name
                for name in tree.list(controller)
                if name.startswith("nvme") and "n" in name[4:]
            )
            sectors = int(read_text(tree, f"{controller}/{namespace}/size"))
            block_size = int(read_text(tree, f"{controller}/{namespace}/queue/logical_block_size"))
        except (OSError, ValueError, IndexError, StopIteration):
            return cls()
        return facts._replace(capacity=sectors * 512, block_size=block_size)
