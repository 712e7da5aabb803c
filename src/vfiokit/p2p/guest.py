"""A virtual machine's PCI tree as a value: which ports it has, and which host function sits where.

The tree is a :class:`~vfiokit.pci.blueprint.Blueprint`, so that the software machine and the lab
build the same machine from it; its endpoints stand for functions of the host. What the guest's
kernel will make of the tree is asked of :func:`vfiokit.p2p.guest_topology.topology`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from vfiokit.errors import DeviceNotFoundError, UsageError
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    LAST_DEVICE,
    MAX_FUNCTIONS,
    MIB,
    Blueprint,
    Endpoint,
    HostBridge,
    Ids,
    Model,
    Place,
    RootPort,
    Slot,
)
from vfiokit.pci.topology import Function, Topology

_ROOT_PORTS_SINGLE = LAST_DEVICE - 8
"""Root ports on the first bus that get a device number each; the rest stays free for expanders
and for the machine's own devices."""
_FIRST_ROOT_BUS_DEVICE, _HALF_A_BUS, _LEAST_ROOT_BUS_DEVICE = 0x10, 0x10, 5
"""Without ports, functions are in the upper half of the root bus: the machine's own devices start
from below."""


class Variant(StrEnum):
    """How the guest's tree relates to the host's."""

    FLAT = "flat"
    """Each function below a root port of its own: what management tools build today."""
    REPLICATED = "replicated"
    """Expander bridges, root ports and switches as on the host, built from QEMU's devices."""
    ISLANDS = "islands"
    """Functions that reach one another below one emulated switch, whatever the host's tree: the
    guest's kernel believes in peers below one switch, and in little else."""
    SEED = "seed"
    """The same with ports that show the host port's ACS and are known to the guest's kernel: the
    devices of "PCI P2P inside VM" (Linux Plumbers Conference 2022), which no released QEMU has."""
    ROOT_BUS = "root-bus"
    """Every function on the root bus, for hypervisors without ports."""


class Viommu(StrEnum):
    """What translates DMA in the guest."""

    NONE = "none"
    INTEL = "intel"
    INTEL_PT = "intel-pt"
    """VT-d with ``iommu=pt``: present, and out of the way of the guest's own drivers."""
    VIRTIO = "virtio"

    @property
    def translates(self) -> bool:
        """Whether the guest's drivers hand out addresses of their own."""
        return self in (Viommu.INTEL, Viommu.VIRTIO)


class Machine(NamedTuple):
    """What the machine of a hypervisor can express, and which host bridge it shows."""

    name: str
    host_bridge: Ids
    ports: bool = True
    """Root ports, expander bridges and switches."""
    switch_acs: bool = False
    """A switch port with ACS."""
    port_without_acs: bool = False
    """A root port without ACS."""
    express: bool = True
    """Whether functions keep their PCI Express capability."""
    pins: bool = True
    """Whether a function's address can be given."""


Q35_HOST_BRIDGE = Ids(0x8086, 0x29C0)
QEMU = Machine("qemu", Q35_HOST_BRIDGE, switch_acs=True, port_without_acs=True)
"""``-machine q35``. A switch port with ACS is a ``pcie-root-port`` below ``x3130-upstream``: Linux
takes it for a downstream port, and ``xio3130-downstream`` has no ACS."""
LIBVIRT = Machine("libvirt", Q35_HOST_BRIDGE, port_without_acs=True)
"""The same machine; libvirt plugs root ports into root buses only."""
CLOUD_HYPERVISOR = Machine("cloud-hypervisor", Ids(0x8086, 0x0D57), ports=False, pins=False)
CROSVM = Machine("crosvm", Ids(0x8086, 0x1237), ports=False)
XL = Machine("xl", Ids(0x8086, 0x1237), ports=False, express=False)
"""Xen's HVM guests: QEMU's i440FX."""
MACHINES = {each.name: each for each in (QEMU, LIBVIRT, CLOUD_HYPERVISOR, CROSVM, XL)}


@dataclass(frozen=True)
class GuestPlan:
    """A guest's PCI tree and what its parts stand for."""

    variant: Variant
    blueprint: Blueprint
    """Endpoints are stand-ins (NVMe drives with memory) for the functions of the host."""
    functions: Mapping[str, Bdf]
    """Host function by name of the endpoint, in the order asked for."""
    mirrors: Mapping[str, Bdf]
    """Host port by name of the port, or upstream port by name of the switch, it stands for."""
    machine: Machine = QEMU
    viommu: Viommu = Viommu.NONE
    numa: Mapping[str, int] = field(default_factory=dict)
    """Guest NUMA node by name of the host bridge."""
    nodes: tuple[int, ...] = ()
    """Host NUMA node of each guest node."""
    limits: tuple[str, ...] = ()
    """How the tree falls short of the host's, a sentence each."""

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each node will be found in the guest, by name."""
        return self.blueprint.places()

    @cached_property
    def _names(self) -> dict[Bdf, str]:
        return {bdf: name for name, bdf in self.functions.items()}

    def name(self, host: Bdf) -> str:
        """Name of the endpoint that stands for ``host`` (:class:`DeviceNotFoundError`)."""
        try:
            return self._names[host]
        except KeyError:
            raise DeviceNotFoundError(f"{host} is not assigned to this guest") from None

    def address(self, host: Bdf) -> Bdf:
        """Address in the guest of the host's function (:class:`DeviceNotFoundError`)."""
        return self.places[self.name(host)].bdf

    def host_bridge(self, name: str) -> HostBridge:
        """The host bridge above a node."""
        bus = self.places[name].bus
        return next(each for each in self.blueprint.host_bridges if each.bus == bus)

    def with_viommu(self, viommu: Viommu) -> GuestPlan:
        """The same tree behind another IOMMU."""
        return replace(self, viommu=viommu)


class Names:
    """Names for the nodes of a plan: the kind and a number."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def next(self, kind: str) -> str:
        """The next name of a kind."""
        number = self._next.get(kind, 0)
        self._next[kind] = number + 1
        return f"{kind}{number}"


def stand_in(name: str) -> Endpoint:
    """The endpoint of a blueprint that stands for an assigned function.

    An NVMe drive with a memory buffer takes part in P2PDMA on both sides.
    """
    return Endpoint(Model.NVME, name, cmb=2 * MIB)


def named(functions: Sequence[Function]) -> dict[str, Bdf]:
    """Endpoint names for host functions, in their order: ``fn0``, ``fn1``, …

    Raises :class:`UsageError` for bridges, for a function named twice and for none at all.
    """
    if not functions:
        raise UsageError("no function to assign")
    for function in functions:
        if function.is_bridge:
            raise UsageError(
                f"{function.bdf} is a bridge, and bridges stay with the host",
                hint="name the functions below it",
            )
    found = {f"fn{number}": function.bdf for number, function in enumerate(functions)}
    if len(set(found.values())) < len(found):
        raise UsageError("a function is named twice")
    return found


def flat(
    functions: Sequence[Function], *, machine: Machine = QEMU, viommu: Viommu = Viommu.NONE
) -> GuestPlan:
    """Each function below a root port of its own on the first bus.

    Beyond what the first bus has room for, root ports share a device, eight to each. Where the
    machine has no ports, the functions are on the root bus. Raises
    :class:`~vfiokit.errors.UsageError`, also when there are more than the buses can hold.
    """
    assigned = named(functions)
    if not machine.ports:
        return _root_bus(assigned, machine, viommu)
    ports = [RootPort(f"rp{number}", stand_in(name)) for number, name in enumerate(assigned)]
    items = share_devices(ports, Names())
    blueprint = Blueprint((HostBridge("hb0", items),))
    blueprint.places()
    return GuestPlan(Variant.FLAT, blueprint, assigned, {}, machine, viommu)


def share_devices(ports: Sequence[RootPort], names: Names) -> tuple[RootPort | Slot, ...]:
    """``ports`` for a root bus: eight to a device where there are more than devices."""
    if len(ports) <= _ROOT_PORTS_SINGLE:
        return tuple(ports)
    return tuple(
        Slot(names.next("ports"), tuple(ports[start : start + MAX_FUNCTIONS]))
        for start in range(0, len(ports), MAX_FUNCTIONS)
    )


def _root_bus(assigned: Mapping[str, Bdf], machine: Machine, viommu: Viommu) -> GuestPlan:
    limits = [f"{machine.name} has no root ports or switches to mirror the host's with"]
    if not machine.express:
        limits.append(f"{machine.name}'s machine is conventional PCI: no PCI Express capability")
    if not machine.pins:
        limits.append(f"{machine.name} chooses the guest's addresses; those shown tell their order")
    count = len(assigned)
    first = _FIRST_ROOT_BUS_DEVICE if count <= _HALF_A_BUS else 0x20 - count
    if first < _LEAST_ROOT_BUS_DEVICE:
        raise UsageError(f"{machine.name} has no room for {count} functions on its root bus")
    items = tuple(
        replace(stand_in(name), at=first + number) for number, name in enumerate(assigned)
    )
    bridge = HostBridge("hb0", items, ids=machine.host_bridge)
    blueprint = Blueprint((bridge,))
    blueprint.places()
    return GuestPlan(
        Variant.ROOT_BUS, blueprint, assigned, {}, machine, viommu, limits=tuple(limits)
    )


def host_nodes(topology: Topology, functions: Iterable[Function]) -> tuple[int, ...]:
    """Host NUMA nodes that ``functions`` hang on, ascending; those that are known."""
    found = set()
    for function in functions:
        above = (*topology.path_to_root(function)[-1:], function)
        known = (each.recorded.numa_node for each in above)
        found.add(next((node for node in known if node is not None and node >= 0), -1))
    return tuple(sorted(found - {-1}))
