"""The host's tree, as far as it leads to some functions, rebuilt for a guest.

One expander bridge (``pxb-pcie``) for each host bridge and NUMA node, so that the guest sees the
same pairs below one host bridge as the host does, and the same NUMA nodes; below it root ports and
switches in the places of the host's. What emulated ports cannot be is said in the plan's limits.
Source of what QEMU offers: its devices ``pxb-pcie``, ``pcie-root-port``, ``x3130-upstream``,
``xio3130-downstream``; LPC 2022 "PCI P2P inside VM" for the variant with ports of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from vfiokit.p2p.chain import Redirect, redirect
from vfiokit.p2p.guest import (
    QEMU,
    GuestPlan,
    Machine,
    Names,
    Variant,
    Viommu,
    flat,
    host_nodes,
    named,
    share_devices,
    stand_in,
)
from vfiokit.p2p.guest_clique import takes_clique
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    MAX_FUNCTIONS,
    Blueprint,
    BlueprintError,
    Child,
    DownstreamPort,
    HostBridge,
    RootPort,
    Slot,
    Switch,
    children,
)
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology
from vfiokit.pci.topology import HostBridge as HostHostBridge

FIRST_EXPANDER_BUS = 0x20
"""Buses below it are left to the first host bridge, for the machine's own devices."""
_EXPANDER_ALIGNMENT = 8
_LAST_BUS = 0xFF


def replicated(
    topology: Topology,
    functions: Sequence[Function],
    *,
    machine: Machine = QEMU,
    viommu: Viommu = Viommu.NONE,
    numa: bool = True,
    seed: bool = False,
) -> GuestPlan:
    """The host's tree above ``functions``, for a guest.

    ``seed`` is for ports that take their ACS from the host (:attr:`Variant.SEED`). Where the
    machine has no ports, this is :func:`~vfiokit.p2p.guest.flat`. Raises
    :class:`~vfiokit.errors.UsageError`, also when the tree needs more buses than there are.
    """
    if not machine.ports:
        return flat(functions, machine=machine, viommu=viommu)
    builder = _Builder(topology, functions, machine, numa=numa, seed=seed)
    blueprint = Blueprint(tuple(builder.host_bridges()))
    blueprint.places()
    return GuestPlan(
        Variant.SEED if seed else Variant.REPLICATED,
        blueprint,
        builder.assigned,
        builder.mirrors,
        machine,
        viommu,
        builder.numa,
        builder.nodes,
        tuple(dict.fromkeys(builder.limits)),
    )


class _Port:
    """A port of the host (``None``: one that the source leaves out) and what is below it."""

    def __init__(self, function: Function | None) -> None:
        self.function = function
        self.switches: dict[Bdf, _Switch] = {}
        self.devices: dict[tuple[int, ...], list[str]] = {}
        """Endpoint names by device; a virtual function is a device of its own."""


class _Switch:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.ports: dict[object, _Port] = {}


class _Builder:
    def __init__(
        self,
        topology: Topology,
        functions: Sequence[Function],
        machine: Machine,
        *,
        numa: bool,
        seed: bool,
    ) -> None:
        self._topology = topology
        self._functions = functions
        self._machine = machine
        self._seed = seed
        self._names = Names()
        self.assigned = named(functions)
        self.mirrors: dict[str, Bdf] = {}
        self.limits: list[str] = []
        self.nodes = host_nodes(topology, functions) if numa else ()
        self.numa: dict[str, int] = {}

    def host_bridges(self) -> Iterator[HostBridge]:
        """The first, empty one, then one for each of the host's."""
        yield HostBridge("hb0")
        roots: dict[tuple[HostHostBridge, int], dict[object, _Port]] = {}
        for name, function in zip(self.assigned, self._functions, strict=True):
            key = self._topology.host_bridge_of(function), self._node_of(function)
            self._place(roots.setdefault(key, {}), function, name)
        bus = FIRST_EXPANDER_BUS
        for key in sorted(roots):
            name = self._names.next("pxb")
            ports = tuple(port for node in roots[key].values() for port in self._root_ports(node))
            if key[1] in self.nodes:
                self.numa[name] = self.nodes.index(key[1])
            made = expander(name, share_devices(ports, self._names), bus)
            yield made
            bus = next_expander_bus(made)

    def _node_of(self, function: Function) -> int:
        """Host NUMA node of what is on the root bus above ``function``; -1 when not known."""
        found = host_nodes(self._topology, [function])
        return found[0] if found else -1

    # -- reading the host's tree ----------------------------------------------------------------

    def _place(self, roots: dict[object, _Port], function: Function, name: str) -> None:
        """Walk from the root down to where ``function`` is, and leave ``name`` there."""
        above = list(reversed(self._topology.path_to_root(function)))
        port: _Port | None = None
        switch: _Switch | None = None
        if above and _is_root_port(self._topology, above[0]):
            top = above.pop(0)
            port = roots.setdefault(top.bdf, _Port(top))
        elif not above:
            self.limits.append(
                f"{function.bdf} is part of the root complex; QEMU's expander bridge takes root "
                "ports only, so the guest has it below one"
            )
        for bridge in above:
            kind = bridge.port_type
            if kind is PortType.DOWNSTREAM and switch is not None:
                port, switch = switch.ports.setdefault(bridge.bdf, _Port(bridge)), None
            elif kind is PortType.UPSTREAM or _is_unknown(bridge):
                port = self._port_below(roots, port, switch, bridge.bdf)
                switch = port.switches.setdefault(bridge.bdf, _Switch(bridge))
            else:
                self.limits.append(f"the conventional bridge {bridge.bdf} is left out")
        device: tuple[int, ...] = function.bdf[:3]
        if function.is_virtual:
            device = tuple(function.bdf)
        below = self._port_below(roots, port, switch, device)
        below.devices.setdefault(device, []).append(name)

    @staticmethod
    def _port_below(
        roots: dict[object, _Port], port: _Port | None, switch: _Switch | None, key: object
    ) -> _Port:
        """The port that leads on from here; one that the source leaves out where it must be."""
        if switch is not None:
            return switch.ports.setdefault(key, _Port(None))
        return port if port is not None else roots.setdefault(key, _Port(None))

    # -- building the guest's -------------------------------------------------------------------

    def _root_ports(self, node: _Port) -> Iterator[RootPort]:
        for child in self._loads(node):
            name = self._names.next("rp")
            acs = True
            if node.function is not None:
                self.mirrors[name] = node.function.bdf
                absent = node.function.acs is None and redirect(node.function) is Redirect.NO
                acs = not absent or not self._machine.port_without_acs
                self._note_root_port(node.function)
            yield RootPort(name, child, acs or self._seed)

    def _switch(self, node: _Switch) -> Switch:
        name = self._names.next("sw")
        self.mirrors[name] = node.function.bdf
        if not self._seed:
            self.limits += switch_limits(self._functions)
        numbers = count()
        ports = []
        for port in node.ports.values():
            acs = port.function is not None and redirect(port.function) is Redirect.YES
            for child in self._loads(port):
                port_name = f"{name}.{next(numbers)}"
                if port.function is not None:
                    self.mirrors[port_name] = port.function.bdf
                    self._note_switch_port(port.function, redirects=acs)
                with_acs = acs and self._machine.switch_acs and not self._seed
                ports.append(DownstreamPort(port_name, child, with_acs))
        return Switch(name, tuple(ports))

    def _loads(self, port: _Port) -> Iterator[Child]:
        """What is below the ports that stand for ``port``: a link leads to one device."""
        for switch in port.switches.values():
            yield self._switch(switch)
        if len(port.devices) > 1 and any(len(device) == 4 for device in port.devices):
            self.limits.append(
                "virtual functions get a port each: as functions of one device they would share "
                "an IOMMU group in the guest"
            )
        for names in port.devices.values():
            for start in range(0, len(names), MAX_FUNCTIONS):
                part = names[start : start + MAX_FUNCTIONS]
                if len(part) == 1:
                    yield stand_in(part[0])
                else:
                    yield Slot(self._names.next("slot"), tuple(map(stand_in, part)))

    # -- what cannot be mirrored ----------------------------------------------------------------

    def _note_root_port(self, port: Function) -> None:
        if redirect(port) is Redirect.UNKNOWN:
            self.limits.append(f"whether the host's root port {port.bdf} has ACS is not known")
        elif not self._seed and port.acs is None and not self._machine.port_without_acs:
            self.limits.append(
                f"the host's root port {port.bdf} has no ACS, the guest's has: {self._machine.name}"
                " cannot take it away"
            )

    def _note_switch_port(self, port: Function, *, redirects: bool) -> None:
        if self._seed:
            return
        if redirects and not self._machine.switch_acs:
            self.limits.append(
                f"the host's switch port {port.bdf} redirects by ACS; the guest's has none: an "
                "emulated root port has ACS, an emulated switch port has not"
            )
        elif redirects:
            self.limits.append(
                f"the host's switch port {port.bdf} redirects by ACS; the guest's is a root port "
                "in its place, because QEMU's xio3130-downstream has no ACS"
            )
        elif port.acs is not None:
            self.limits.append(
                f"the host's switch port {port.bdf} has ACS without redirection; the guest's has "
                "none, so that no kernel in the guest turns redirection on"
            )


def switch_limits(functions: Sequence[Function]) -> tuple[str, ...]:
    """What every plan with an emulated switch falls short in."""
    found = [
        "emulated switches show links of 2.5 GT/s x1, which NCCL believes: give it a topology file"
    ]
    if any(takes_clique(function) for function in functions):
        found.append(
            "NVIDIA's driver takes no emulated switch for one it trusts: GPUs need cliques to "
            "reach one another"
        )
    return tuple(found)


def expander(name: str, items: tuple[RootPort | Slot, ...], bus: int) -> HostBridge:
    """An expander bridge with root bus ``bus`` (:class:`BlueprintError` beyond the last)."""
    if bus > _LAST_BUS:
        raise BlueprintError(
            "the guest's tree needs more than 256 buses",
            hint="assign fewer functions, or use the flat variant",
        )
    return HostBridge(name, items, bus)


def next_expander_bus(bridge: HostBridge) -> int:
    """Where the root bus after ``bridge`` may be."""
    used = sum(isinstance(each, RootPort | DownstreamPort | Switch) for each in _walk(bridge))
    return bridge.bus + -(-(used + 1) // _EXPANDER_ALIGNMENT) * _EXPANDER_ALIGNMENT


def _is_root_port(topology: Topology, bridge: Function) -> bool:
    """Whether the topmost bridge is a root port; sources without capabilities leave it open."""
    if bridge.port_type is not None:
        return bridge.port_type is PortType.ROOT_PORT
    below = topology.secondary(bridge)
    # A link leads to one device: more of them are below a switch whose ports are not shown.
    return below is None or len({each.bdf[:3] for each in below.functions}) < 2


def _is_unknown(bridge: Function) -> bool:
    """Whether the source tells of no capability at all, so that this may be a switch."""
    return not len(bridge.capabilities)


def _walk(bridge: HostBridge) -> Iterator[object]:
    pending: list[object] = [bridge]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(children(node))  # type: ignore[arg-type]
