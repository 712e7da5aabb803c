"""What a guest's kernel will see of a plan, as a topology: ids, port types and ACS of QEMU's ports.

Registers that no decision of Linux's about groups and peer-to-peer DMA rests on are left zero.
Sources: configuration spaces of QEMU 7.2's devices; Linux 7.2 ``pci_enable_acs`` (an IOMMU driver
makes the kernel turn on Source Validation, both redirects and Upstream Forwarding); QEMU
``hw/vfio/pci.c`` (``vfio_add_ext_cap`` drops ARI and SR-IOV of an assigned function, and
``vfio_setup_pcie_cap`` makes an endpoint of what the root complex integrates, and the other way
round).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.isolation.group import Grouping, predict
from vfiokit.p2p.chain import Redirect, redirect
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu
from vfiokit.p2p.host_bridge import host_bridge_function
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    LAST_DEVICE,
    DownstreamPort,
    Endpoint,
    HostBridge,
    Ids,
    Node,
    RootPort,
    Slot,
    Switch,
    children,
    device_numbers,
)
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

EXPANDER = Ids(0x1B36, 0x000B)
"""``pxb-pcie``, as its function on the first bus."""
PORT = Ids(0x1B36, 0x000C)
"""``pcie-root-port``."""
UPSTREAM = Ids(0x104C, 0x8232)
"""``x3130-upstream``."""
DOWNSTREAM = Ids(0x104C, 0x8233)
"""``xio3130-downstream``."""

PORT_ACS = (
    Acs.SOURCE_VALIDATION
    | Acs.TRANSLATION_BLOCKING
    | Acs.REQUEST_REDIRECT
    | Acs.COMPLETION_REDIRECT
    | Acs.UPSTREAM_FORWARDING
    | Acs.DIRECT_TRANSLATED
)
"""ACS Capability of ``pcie-root-port``."""
ENABLED = (
    Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
)
"""What ``pci_enable_acs`` sets of what a port has."""

_CLASS_HOST, _CLASS_BRIDGE = 0x060000, 0x060400
_Q35 = {(0x1F, 0): (0x2918, 0x060100), (0x1F, 2): (0x2922, 0x010601), (0x1F, 3): (0x2930, 0x0C0500)}
_EXPRESS_AT, _ACS_AT = 0x54, 0x148


class _Bytes(NamedTuple):
    """What decides in a function's configuration space."""

    ids: Ids
    class_code: int
    kind: PortType | None = None
    """``None``: conventional."""
    acs: tuple[int, int] | None = None
    """Capability and Control."""
    buses: tuple[int, int, int] | None = None
    """Primary, secondary and subordinate of a bridge."""
    multifunction: bool = False

    def config(self) -> ConfigSpace:
        data = bytearray(256 if self.kind is None else 4096)

        def put(offset: int, width: int, value: int) -> None:
            data[offset : offset + width] = value.to_bytes(width, "little")

        put(0x00, 2, self.ids.vendor)
        put(0x02, 2, self.ids.device)
        put(0x09, 3, self.class_code)
        put(0x0E, 1, (0x80 if self.multifunction else 0) | (1 if self.buses else 0))
        for index, number in enumerate(self.buses or ()):
            put(0x18 + index, 1, number)
        if self.kind is not None:
            put(0x06, 2, 0x10)
            put(0x34, 1, _EXPRESS_AT)
            put(_EXPRESS_AT, 2, 0x10)
            put(_EXPRESS_AT + 2, 2, 2 | self.kind << 4)
            put(0x100, 4, 0x0002_0001)
            if self.acs is not None:
                put(0x100, 4, _ACS_AT << 20 | 0x0002_0001)
                put(_ACS_AT, 4, 0x0001_000D)
                put(_ACS_AT + 4, 2, self.acs[0])
                put(_ACS_AT + 6, 2, self.acs[1])
        return ConfigSpace(bytes(data))


def topology(plan: GuestPlan, host: Topology) -> Topology:
    """What the guest's kernel will have in sysfs after boot, without devices of its own.

    Functions carry the host function's identity at the guest's address; NUMA nodes are the
    guest's. ``host`` is the topology that the plan was made for.
    """
    return _Synthesis(plan, host).topology()


def groups(plan: GuestPlan, guest: Topology) -> Grouping | None:
    """IOMMU groups that the guest's kernel will form; ``None`` without an IOMMU."""
    return None if plan.viommu is Viommu.NONE else predict(guest)


class _Synthesis:
    def __init__(self, plan: GuestPlan, host: Topology) -> None:
        self._plan = plan
        self._host = host

    def topology(self) -> Topology:
        roots = [(0, bridge.bus) for bridge in self._plan.blueprint.host_bridges]
        return Topology([*self._chipset(), *self._nodes()], roots)

    def _chipset(self) -> Iterator[Function]:
        bridge = self._plan.machine.host_bridge
        yield _function(Bdf(0, 0, 0, 0), _Bytes(bridge, _CLASS_HOST))
        if not self._plan.machine.ports:
            return
        for (device, number), (device_id, class_code) in _Q35.items():
            row = _Bytes(Ids(0x8086, device_id), class_code, multifunction=True)
            yield _function(Bdf(0, 0, device, number), row)
        for bdf in expander_addresses(self._plan).values():
            yield _function(bdf, _Bytes(EXPANDER, _CLASS_HOST))

    def _nodes(self) -> Iterator[Function]:
        for bridge in self._plan.blueprint.host_bridges:
            numa_node = self._plan.numa.get(bridge.name)
            for item in bridge.items:
                yield from self._device(item, numa_node, root=bridge)

    def _device(
        self, item: Node, numa_node: int | None, root: HostBridge | None = None
    ) -> Iterator[Function]:
        parts = item.functions if isinstance(item, Slot) else (item,)
        for part in parts:
            row = self._row(part, root, shared=len(parts) > 1)
            yield _function(self._plan.places[part.name].bdf, row, numa_node)
            if not isinstance(part, Endpoint):
                for child in children(part):
                    yield from self._device(child, numa_node)

    def _row(self, node: Node, root: HostBridge | None, *, shared: bool) -> _Bytes:
        match node:
            case RootPort() | DownstreamPort():
                return self._port(node, shared=shared)
            case Switch():
                buses = self._buses(node)
                mirrored = self._mirrored(node.name)
                return _Bytes(UPSTREAM, _CLASS_BRIDGE, PortType.UPSTREAM, mirrored, buses)
            case Endpoint():
                return self._endpoint(node, shared=shared, root=root is not None)
            case _:
                raise AssertionError(node)

    def _port(self, port: RootPort | DownstreamPort, *, shared: bool) -> _Bytes:
        at_root = isinstance(port, RootPort)
        kind = PortType.ROOT_PORT if at_root else PortType.DOWNSTREAM
        if self._plan.variant is Variant.SEED and port.name in self._plan.mirrors:
            ids = self._seed_ids(port.name) if at_root else DOWNSTREAM
            acs = self._mirrored(port.name)
        else:
            # A switch port with ACS is a root port in its place, whose type it keeps.
            kind = PortType.ROOT_PORT if at_root or port.acs else PortType.DOWNSTREAM
            ids = PORT if at_root or port.acs else DOWNSTREAM
            acs = (int(PORT_ACS), int(self._control(PORT_ACS))) if port.acs else None
        return _Bytes(ids, _CLASS_BRIDGE, kind, acs, self._buses(port), shared)

    def _control(self, supported: Acs) -> Acs:
        """ACS Control after boot: the kernel turns ACS on for an IOMMU only."""
        return Acs(0) if self._plan.viommu is Viommu.NONE else supported & ENABLED

    def _mirrored(self, name: str) -> tuple[int, int] | None:
        """The host port's ACS registers, which the seed's ports show."""
        if self._plan.variant is not Variant.SEED:
            return None
        function = self._host[self._plan.mirrors[name]]
        if function.acs is None:
            return None
        return int(function.acs_capability), int(function.acs_control)

    def _seed_ids(self, name: str) -> Ids:
        """The ids by which the kernel judges the host bridge above the host's port."""
        port = self._host[self._plan.mirrors[name]]
        judged = host_bridge_function(self._host, self._host.host_bridge_of(port))
        if judged is None:
            return PORT
        return Ids(judged.identity.vendor_id, judged.identity.device_id)

    def _buses(self, node: RootPort | DownstreamPort | Switch) -> tuple[int, int, int]:
        first = self._secondary(node)
        pending: list[Node] = [node]
        buses = 0
        while pending:
            current = pending.pop()
            buses += isinstance(current, RootPort | DownstreamPort | Switch)
            pending += children(current)
        return self._plan.places[node.name].bdf.bus, first, first + buses - 1

    def _secondary(self, node: RootPort | DownstreamPort | Switch) -> int:
        """Firmware numbers buses in the order in which it meets bridges, from the root bus on."""
        root = self._plan.places[node.name].bus
        order = [
            place.bdf
            for name, place in self._plan.places.items()
            if place.bus == root and name not in self._plan.functions
        ]
        # places() lists functions in the order of the walk.
        return root + 1 + order.index(self._plan.places[node.name].bdf)

    def _endpoint(self, node: Endpoint, *, shared: bool, root: bool) -> _Bytes:
        function = self._host[self._plan.functions[node.name]]
        identity = function.identity
        ids = Ids(identity.vendor_id, identity.device_id)
        express = function.express is not None or not len(function.capabilities)
        kind = PortType.RC_INTEGRATED_ENDPOINT if root else PortType.ENDPOINT
        acs = None
        if redirect(function) is not Redirect.UNKNOWN and function.acs is not None:
            acs = (int(function.acs_capability), int(function.acs_control))
        if not express or not self._plan.machine.express:
            kind, acs = None, None  # type: ignore[assignment]
        return _Bytes(ids, identity.class_code, kind, acs, multifunction=shared)


def _function(bdf: Bdf, row: _Bytes, numa_node: int | None = None) -> Function:
    identity = Identity(row.ids.vendor, row.ids.device, row.class_code)
    return Function(bdf, row.config(), identity, recorded=Recorded(numa_node=numa_node))


def expander_addresses(plan: GuestPlan) -> dict[str, Bdf]:
    """Where the expander bridges are on the first bus, by name: from the top down."""
    first, *others = plan.blueprint.host_bridges
    taken = {number for number, _item in device_numbers(first)}
    free = (number for number in range(LAST_DEVICE, 0, -1) if number not in taken)
    return {bridge.name: Bdf(0, 0, next(free), 0) for bridge in others}
