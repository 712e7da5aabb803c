"""The PCI tree of a planned guest, put on the bus of a virtual machine.

Ports, switches and expander bridges have the registers that
:func:`vfiokit.p2p.guest_topology.topology` computes for them, with the bus numbers that firmware
would give out; assigned functions are the devices themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from vfiokit.errors import UsageError
from vfiokit.p2p import guest_topology
from vfiokit.p2p.guest import GuestPlan
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology
from vfiokit.vfio import Device
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.guest_function import GuestFunction
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.pci_bus import BridgeFunction, Clip, Segment

_EVERYTHING = Clip(((0, 1 << 64),), ((0, 1 << 16),))


class TreePort(BridgeFunction):
    """A port or switch of the tree. What decodes below is not its business here."""

    def __init__(self, function: Function) -> None:
        config = GuestConfig(bytes(function.config.data))
        config.allow(0x04, 2, 0x0547)
        config.allow(0x18, 4, 0x00FF_FFFF)
        super().__init__(function.bdf, config)
        self.segment = Segment(self)

    @property
    def secondary(self) -> int:
        """Number of the bus below, as the guest gave it."""
        return self.config.get(0x19, 1)

    @property
    def subordinate(self) -> int:
        """Highest number below."""
        return self.config.get(0x1A, 1)

    def clip(self) -> Clip:
        """All addresses pass."""
        return _EVERYTHING


class Expander(BridgeFunction):
    """An expander bridge: a function of the root bus, and a root bus of its own."""

    def __init__(self, function: Function, first: int, last: int) -> None:
        super().__init__(function.bdf, GuestConfig(bytes(function.config.data)))
        self.segment = Segment(self)
        self._buses = first, last

    @property
    def secondary(self) -> int:
        """The root bus."""
        return self._buses[0]

    @property
    def subordinate(self) -> int:
        """Highest number below it."""
        return self._buses[1]

    def clip(self) -> Clip:
        """All addresses pass."""
        return _EVERYTHING


def build(
    vm: VirtualMachine, plan: GuestPlan, host: Topology, devices: Mapping[Bdf, Device]
) -> dict[Bdf, AssignedFunction]:
    """Put the tree of ``plan`` on the machine's bus; assigned functions by address on the host.

    ``host`` is the topology that the plan was made for, ``devices`` are by address on the host
    (:class:`UsageError` when one is missing). The machine closes them in the end.
    """
    missing = [bdf for bdf in plan.functions.values() if bdf not in devices]
    if missing:
        raise UsageError(f"{missing[0]} is planned for the guest, and not open")
    guest = guest_topology.topology(plan, host)
    assigned = {plan.address(bdf): bdf for bdf in plan.functions.values()}
    above: dict[int, BridgeFunction | None] = {0: None}
    for expander in _expanders(plan, guest):
        vm.pci.add(expander)
        above[expander.secondary] = expander
    made: dict[Bdf, AssignedFunction] = {}
    # Addresses ascend with the depth: firmware numbers a bus after the one it hangs on.
    for function in guest:
        below = above[function.bdf.bus]
        segment = vm.pci.root if below is None else below.segment
        if function.bdf in assigned:
            host_bdf = assigned[function.bdf]
            made[host_bdf] = _assign(vm, function, devices[host_bdf], below)
        elif function.is_bridge:
            port = TreePort(function)
            vm.pci.add(port, below)
            above[port.secondary] = port
        elif function.bdf.devfn in segment.functions:
            # One of the machine's own, which may be of several functions here.
            own = segment.functions[function.bdf.devfn].config
            own.set(0x0E, 1, own.get(0x0E, 1) | 0x80 * function.multifunction_bit)
        else:
            config = GuestConfig(bytes(function.config.data))
            vm.pci.add(GuestFunction(function.bdf, config), below)
    return made


def _assign(
    vm: VirtualMachine, function: Function, device: Device, below: BridgeFunction | None
) -> AssignedFunction:
    if vm.policy.translate:
        vm.memory.map_for(device.address_space)
    made = AssignedFunction(
        device,
        function.bdf,
        on_root_bus=below is None,
        multifunction=function.multifunction_bit,
        delivery=vm.policy.delivery,
        page_size=vm.traps.page_size,
    )
    vm.pci.add(made, below)
    return made


def _expanders(plan: GuestPlan, guest: Topology) -> list[Expander]:
    """Expander bridges with the buses below each."""
    starts = sorted(bridge.bus for bridge in plan.blueprint.host_bridges)
    found = []
    places = guest_topology.expander_addresses(plan)
    for bridge in plan.blueprint.host_bridges[1:]:
        after = [start for start in starts if start > bridge.bus]
        last = (after[0] if after else 0x100) - 1
        found.append(Expander(guest[places[bridge.name]], bridge.bus, last))
    return found
