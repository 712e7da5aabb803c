"""Software machines from a topology as text: ``assemble("rp0(edu), rp1(nvme cmb=16M)")``.

The machine is what the lab makes of the same text, as far as a kernel can tell: the same
addresses, ids and capabilities, BARs and windows assigned, IOMMU groups formed by isolation, and
the drivers bound that Linux would bind. Two things differ on purpose: a switch port with ACS is a
real downstream port, where QEMU has to use a root port, and the lab's own devices for sharing
files are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from vfiokit.host.sysfs import read_topology
from vfiokit.machine import assembly_model as model
from vfiokit.machine.assembly_window import Need, assign, bridge_need, function_need
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.device.passive import PassiveFunction
from vfiokit.machine.function import COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, Function
from vfiokit.machine.iommu.core import Iommu
from vfiokit.machine.kernel import SoftwareKernel, boot
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import Bridge
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    SPEEDS,
    Blueprint,
    BridgeKind,
    DownstreamPort,
    Endpoint,
    HostBridge,
    Ids,
    Model,
    Node,
    Place,
    RootPort,
    Slot,
    Switch,
    device_numbers,
)
from vfiokit.pci.blueprint import Bridge as BridgeNode
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function as FunctionValue
from vfiokit.pci.topology import Recorded, Topology

_GIB: Final = 1 << 30
_COMMAND_SERR: Final = 0x0100
_DRIVERS: Final = {
    Model.E1000E: "e1000e",
    Model.IGB: "igb",
    Model.VIRTIO_NET: "virtio-pci",
    Model.VIRTIO_BLK: "virtio-pci",
}
"""Drivers besides nvme and pcieport that Linux would bind."""


class Assembly(NamedTuple):
    """A machine built from a blueprint, with its kernel up."""

    machine: Machine
    kernel: SoftwareKernel
    blueprint: Blueprint
    places: Mapping[str, Place]
    """Where the nodes of the blueprint are, by name."""

    def topology(self) -> Topology:
        """What the machine's sysfs shows now."""
        return read_topology(self.kernel.tree)

    def __getitem__(self, name: str) -> Bdf:  # type: ignore[override]
        """The address of a node (``KeyError`` when there is none of that name)."""
        return self.places[name].bdf


def assemble(
    topology: Blueprint | str,
    *,
    iommu: bool = True,
    ram: int = 4 * _GIB,
    native_drivers: bool = True,
    locked_limit: int | None = None,
    chipset: bool = True,
    compat_container: bool = False,
) -> Assembly:
    """Build the machine of a blueprint and bring its kernel up.

    One VT-d unit serves all host bridges, or with ``iommu=False`` none. ``ram`` are bytes of sparse
    memory from 4 GiB on, ``locked_limit`` is RLIMIT_MEMLOCK in bytes (``None``: unlimited), and
    ``chipset`` adds the functions that a q35 has on bus 0, ``compat_container`` builds the kernel
    with iommufd in the place of the VFIO container. Raises
    :class:`~vfiokit.pci.blueprint.BlueprintError` for a text that is none, and for a topology whose
    buses or BARs do not fit.
    """
    blueprint = Blueprint.parse(topology) if isinstance(topology, str) else topology
    places = blueprint.places()
    machine = Machine(ram=ram)
    builder = _Builder(machine, places)
    unit = machine.add_iommu() if iommu else None
    for bridge in blueprint.host_bridges:
        builder.host_bridge(bridge, unit, chipset=chipset)
    high = -(-machine.memory.end // _GIB) * _GIB
    assign(builder.roots, high)
    builder.enable()
    boot.enable_acs(machine.fabric)
    kernel = SoftwareKernel(
        machine,
        topology=_driven(machine, blueprint, places) if native_drivers else None,
        native_drivers=native_drivers,
        locked_limit=locked_limit,
        iommufd_compat_container=compat_container,
    )
    return Assembly(machine, kernel, blueprint, places)


def _driven(machine: Machine, blueprint: Blueprint, places: Mapping[str, Place]) -> Topology:
    """The machine's functions, those with a driver of Linux's that is not modelled on it."""
    drivers = {
        places[node.name].bdf: _DRIVERS[node.model]
        for node in blueprint.endpoints()
        if node.model in _DRIVERS
    }
    for bdf in drivers:
        function = machine.functions[bdf]
        command = function.config_read(COMMAND, 2)
        function.config_write(COMMAND, 2, command | COMMAND_MASTER)
    topology = boot.topology_of(machine.fabric)
    functions = [
        FunctionValue(
            each.bdf,
            each.config,
            resources=each.resources,
            physfn=each.physfn,
            recorded=Recorded(driver=drivers.get(each.bdf), enabled=each.bdf in drivers),
        )
        for each in topology
    ]
    return Topology(functions, tuple(machine.fabric.host_bridges))


class _Builder:
    """Plugs functions in, and gathers what each bus needs."""

    def __init__(self, machine: Machine, places: Mapping[str, Place]) -> None:
        self._machine = machine
        self._places = places
        self._slot = 0
        self._last_bus = 0
        self.roots: list[Need] = []

    def host_bridge(self, node: HostBridge, unit: Iommu | None, *, chipset: bool) -> None:
        """Build everything below a host bridge."""
        self._machine.add_host_bridge(0, node.bus, iommu=unit)
        self._last_bus = node.bus
        need = Need()
        self.roots.append(need)
        extra: dict[tuple[int, int], model.Shape] = {}
        if chipset and not node.bus:
            extra = {(0, 0): model.HOST_BRIDGE, **model.CHIPSET}
        if node.ids is not None:
            extra[0, 0] = model.HOST_BRIDGE
        for (device, number), shape in extra.items():
            ids = node.ids if (device, number) == (0, 0) else None
            config = _with_ids(shape, ids).build(multifunction=device == 0x1F)
            function = PassiveFunction(Bdf(0, node.bus, device, number), config, shape.bars)
            self._plug(function, need)
        for _device, item in device_numbers(node):
            self._device(item, need, root=True)

    def enable(self) -> None:
        """What firmware leaves in the command registers."""
        for function in self._machine.functions.values():
            master = COMMAND_MASTER if isinstance(function, Bridge) else 0
            command = COMMAND_IO | COMMAND_MEMORY | _COMMAND_SERR | master
            function.config_write(COMMAND, 2, command)

    # -- the tree -----------------------------------------------------------------------------

    def _device(self, item: Node, need: Need, *, root: bool = False, express: bool = True) -> None:
        functions = item.functions if isinstance(item, Slot) else (item,)
        shared = len(functions) > 1
        for function in functions:
            match function:
                case Endpoint():
                    self._endpoint(function, need, shared=shared, root=root, express=express)
                case RootPort() | DownstreamPort():
                    self._port(function, need, shared=shared)
                case Switch():
                    self._switch(function, need)
                case BridgeNode():
                    self._bridge(function, need)
                case _:
                    raise AssertionError(function)

    def _port(self, node: RootPort | DownstreamPort, need: Need, *, shared: bool = False) -> None:
        self._slot += 1
        speed = SPEEDS.index(node.speed) + 1 if node.speed else 4
        width = node.width or 32
        if isinstance(node, RootPort):
            kind = PortType.ROOT_PORT
            shape = model.port(kind, self._slot, acs=node.acs, speed=speed, width=width)
        elif node.acs or node.speed or node.width:
            kind = PortType.DOWNSTREAM
            shape = model.port(kind, self._slot, acs=node.acs, speed=speed, width=width)
        else:
            shape = model.downstream_port(self._slot)
        child = node.child

        def build(below: Need) -> None:
            if child is not None:
                self._device(child, below)

        self._bridge_function(node.name, _with_ids(shape, node.ids), need, build, shared=shared)

    def _switch(self, node: Switch, need: Need) -> None:
        def build(below: Need) -> None:
            for port in node.ports:
                self._port(port, below)

        self._bridge_function(node.name, model.UPSTREAM_PORT, need, build)

    def _bridge(self, node: BridgeNode, need: Need) -> None:
        conventional = node.kind is BridgeKind.PCI_TO_PCI

        def build(below: Need) -> None:
            for _device, item in device_numbers(node):
                self._device(item, below, express=False)

        shape = model.PCI_TO_PCI if conventional else model.PCIE_TO_PCI
        self._bridge_function(node.name, shape, need, build)

    def _bridge_function(
        self,
        name: str,
        shape: model.Shape,
        need: Need,
        build: Callable[[Need], None],
        *,
        shared: bool = False,
    ) -> None:
        bdf = self._places[name].bdf
        self._last_bus += 1
        secondary = self._last_bus
        bridge = Bridge(bdf, shape.build(multifunction=shared), shape.bars)
        for offset, number in ((0x18, bdf.bus), (0x19, secondary), (0x1A, secondary)):
            bridge.config.set(offset, 1, number)
        bridge.set_window(1, 0)
        bridge.set_window(1, 0, prefetchable=True)
        self._plug(bridge, need)
        below = Need()
        build(below)
        bridge.config.set(0x1A, 1, self._last_bus)
        bridge_need(bridge, below, need)

    # -- endpoints ----------------------------------------------------------------------------

    def _endpoint(
        self, node: Endpoint, need: Need, *, shared: bool, root: bool, express: bool
    ) -> None:
        bdf = self._places[node.name].bdf
        shape = _with_ids(_shape(node, express=express and not root), node.ids)
        if root:
            shape = shape.integrated()
        config = shape.build(multifunction=shared)
        function: Function
        match node.model:
            case Model.EDU:
                mask = (1 << node.dma_bits) - 1
                function = EduFunction(bdf, config=config, dma_mask=mask)
            case Model.NVME:
                function = NvmeFunction(
                    bdf,
                    config,
                    shape.bars,
                    capacity=node.size,
                    cmb_size=node.cmb,
                    serial=node.name[:20],
                    model="QEMU NVMe Ctrl",
                )
            case _:
                memory = frozenset({2}) if node.model is Model.IVSHMEM else frozenset[int]()
                function = PassiveFunction(bdf, config, shape.bars, memory_bars=memory)
        function.virtual_bars = model.virtual_bar_models(shape)
        self._plug(function, need, model.virtual_bars(shape))

    def _plug(
        self, function: Function, need: Need, virtual: Mapping[int, tuple[int, int]] = {}
    ) -> None:
        self._machine.add(function)
        function_need(function, need, virtual)


def _with_ids(shape: model.Shape, ids: Ids | None) -> model.Shape:
    return shape if ids is None else shape._replace(vendor=ids.vendor, device=ids.device)


def _shape(node: Endpoint, *, express: bool) -> model.Shape:
    """What the function of ``node`` looks like; ``express``: it sits below a port."""
    match node.model:
        case Model.EDU:
            return model.EDU
        case Model.NVME:
            return model.nvme(node.cmb, node.vfs)
        case Model.IGB:
            return model.IGB
        case Model.E1000E:
            return model.E1000E
        case Model.VIRTIO_NET:
            return model.virtio(0x1041, 0x020000, 4, express=express)
        case Model.VIRTIO_BLK:
            return model.virtio(0x1042, 0x010000, 2, express=express)
        case Model.PCI_TESTDEV:
            return model.pci_testdev(node.membar)
        case Model.IVSHMEM:
            return model.ivshmem(node.size)
