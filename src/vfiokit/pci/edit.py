"""Topologies as they would be: another ACS setting, a card less, a card in another slot.

Pure: every function here returns a new :class:`~vfiokit.pci.topology.Topology` and leaves the
given one as it was. What cannot be done to the machine raises :class:`EditError` with the reason.
Sources: PCI Express Base Specification 6.0 §7.7.11 (ACS), §7.5.1.3 (bus numbers of bridges), §9.3.3
(where virtual functions lie).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError, UsageError
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import CONTROL as ACS_CONTROL
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Recorded, Resource, Topology

ACS_CAPABILITY_ID = 0x0D
"""Extended capability id of Access Control Services."""

_ACS_BITS = 0x7F
_EXTENDED_START = 0x100
_PLACES = range(0xFF8, _EXTENDED_START, -8)
_PRIMARY_BUS = 0x18
_IORESOURCE_UNSET = 0x20000000
_SLOT_PORTS = (PortType.ROOT_PORT, PortType.DOWNSTREAM)


class EditError(UsageError, ValueError):
    """A change that this machine cannot have."""


class Move(NamedTuple):
    """A machine after a card was put elsewhere."""

    topology: Topology
    addresses: dict[Bdf, Bdf]
    """Old to new address of every function whose address changed; the card's are among them."""


def with_register(topology: Topology, bdf: Bdf, offset: int, width: int, value: int) -> Topology:
    """``topology`` with ``width`` bytes at ``offset`` of one function's configuration space set.

    :class:`~vfiokit.errors.ConfigRangeError` where those bytes are not known.
    """
    function = topology[bdf]
    config = _with_bytes(function.config, offset, width, value)
    return _rebuilt(topology, {bdf: _with_config(function, config)})


def with_acs_control(topology: Topology, controls: Mapping[Bdf, Acs]) -> Topology:
    """``topology`` with ACS Control ``[6:0]`` of some functions set to what is given for them.

    Bits that a function's ACS Capability does not offer stay 0, as they do in hardware; those above
    bit 6 stay as they are. :class:`EditError` for a function without the capability,
    :class:`~vfiokit.errors.DeviceNotFoundError` for one that is not there.
    """
    changed: dict[Bdf, Function] = {}
    for bdf, control in controls.items():
        function = topology[bdf]
        if function.acs is None:
            raise EditError(f"{bdf} has no ACS capability, so nothing can be enabled there")
        offset = function.acs.offset + ACS_CONTROL.offset
        try:
            rest = function.config.u16(offset) & ~_ACS_BITS
        except ConfigRangeError as error:
            raise EditError(f"ACS Control of {bdf} is not known: {error}") from None
        value = rest | int(control & function.acs_capability)
        config = _with_bytes(function.config, offset, ACS_CONTROL.width, value)
        changed[bdf] = _with_config(function, config)
    return _rebuilt(topology, changed)


def with_acs_capability(topology: Topology, offers: Mapping[Bdf, Acs]) -> Topology:
    """``topology`` where some functions have an ACS capability that offers and enables these bits.

    It is put where their extended configuration space is free. :class:`EditError` for a
    function that has one, or whose extended space is full or not known.
    """
    changed = {
        bdf: _with_config(topology[bdf], _offering(topology[bdf], bits))
        for bdf, bits in offers.items()
    }
    return _rebuilt(topology, changed)


def _offering(function: Function, bits: Acs) -> ConfigSpace:
    config = function.config
    if function.acs is not None:
        raise EditError(f"{function.bdf} has an ACS capability already")
    if function.express is None or not config.has(0, 0x1000):
        raise EditError(f"{function.bdf} has no extended configuration space that is known")
    present = [each for each in function.capabilities if each.extended]
    offset = _EXTENDED_START
    if present or config.u32(_EXTENDED_START):
        used = {each.offset + index for each in present for index in range(max(each.size, 8))}
        used.update(range(_EXTENDED_START, _EXTENDED_START + 4))
        offset = next((place for place in _PLACES if _is_free(config, place, used)), 0)
    if not offset:
        raise EditError(f"the extended configuration space of {function.bdf} is full")
    value = ACS_CAPABILITY_ID | 1 << 16 | int(bits) << 32 | int(bits) << 48
    if offset != _EXTENDED_START:
        # Right after the first entry of the list, whatever that is.
        header = config.u32(_EXTENDED_START)
        value |= header >> 20 << 20
        header = header & 0xFFFFF | offset << 20
        config = _with_bytes(config, _EXTENDED_START, 4, header)
    return _with_bytes(config, offset, 8, value)


def _is_free(config: ConfigSpace, offset: int, used: set[int]) -> bool:
    return not config.read(offset, 8) and used.isdisjoint(range(offset, offset + 8))


def without(topology: Topology, bdfs: Iterable[Bdf]) -> Topology:
    """``topology`` without some functions, all that hangs below them, and their VFs."""
    gone: set[Bdf] = set()
    waiting = [topology[bdf] for bdf in bdfs]
    while waiting:
        function = waiting.pop()
        if function.bdf in gone:
            continue
        gone.add(function.bdf)
        waiting += topology.virtual_functions(function)
        bus = topology.secondary(function)
        waiting += bus.functions if bus is not None else ()
    return topology.with_functions(each for each in topology if each.bdf not in gone)


def card(topology: Topology, bdf: Bdf) -> tuple[Function, ...]:
    """The functions that leave their place together with ``bdf``, VFs and subtrees left out.

    Below a PCIe port everything on the link is one device; elsewhere a device is its device number.
    """
    function = topology[bdf]
    if function.physfn is not None and function.physfn in topology:
        function = topology[function.physfn]
    bus = topology.bus_of(function)
    whole = bus.bridge is not None and bus.bridge.port_type in _SLOT_PORTS
    return tuple(
        other
        for other in bus.functions
        if not _follows(topology, other) and (whole or other.bdf.device == function.bdf.device)
    )


def moved(topology: Topology, bdf: Bdf, to_port: Bdf) -> Move:
    """``topology`` with the card of ``bdf``, and all below it, in the empty slot below ``to_port``.

    Bus numbers of everything else stay as they are where the card fits into those that
    ``to_port`` has; otherwise the whole hierarchy of that host bridge is numbered anew, depth
    first. What the kernel recorded of the card's old place (group, link, node) is left out of
    the result, and its BARs have no address. :class:`EditError` where the card cannot go.
    """
    functions = card(topology, bdf)
    port = topology[to_port]
    _check(topology, functions, port)
    numbering = _Numbering(topology, functions, port)
    numbering.run()
    riders = numbering.riders(functions)
    changed: dict[Bdf, Function] = {}
    for old in topology:
        new = numbering.addresses.get(old.bdf, old.bdf)
        window = numbering.windows.get(old.bdf)
        if new != old.bdf or window is not None or old.bdf in riders:
            changed[old.bdf] = _at(old, new, window, numbering.addresses, old.bdf in riders)
    result = _rebuilt(topology, changed)
    if len(result) != len(topology):
        raise EditError(f"after a move below {to_port} two functions would have one address")
    addresses = {old: new for old, new in numbering.addresses.items() if old != new}
    return Move(result, addresses)


def _check(topology: Topology, functions: tuple[Function, ...], port: Function) -> None:
    """:class:`EditError` unless the card can be pulled and fits the port."""
    first = functions[0]
    above = topology.upstream_bridge(first)
    if above is None:
        raise EditError(f"{first.bdf} is a part of the root complex, not a card")
    if first.port_type is PortType.DOWNSTREAM:
        raise EditError(f"{first.bdf} is a port of a switch: the switch moves as a whole")
    if above is port:
        raise EditError(f"{first.bdf} is below {port.bdf} already")
    if any(function in (port, *topology.path_to_root(port)) for function in functions):
        raise EditError(f"{port.bdf} is a part of what would be moved")
    if not port.is_bridge or port.port_type not in (*_SLOT_PORTS, None):
        raise EditError(f"{port.bdf} is no port that a card can be put below")
    bus = topology.secondary(port)
    present = bus.functions if bus is not None else ()
    if port.port_type in _SLOT_PORTS:
        if present:
            raise EditError(f"below {port.bdf} there is already {present[0].bdf}")
        if first.express is None and above.port_type not in _SLOT_PORTS:
            raise EditError(f"{first.bdf} is conventional PCI, and below {port.bdf} is PCIe")
    elif above.port_type in _SLOT_PORTS or first.express is not None:
        raise EditError(f"{first.bdf} is PCIe, and below {port.bdf} is conventional PCI")
    elif any(other.bdf.device == first.bdf.device for other in present):
        raise EditError(f"device number {first.bdf.device:#x} below {port.bdf} is taken")


def _follows(topology: Topology, function: Function) -> bool:
    """Whether it is a VF whose PF says where it is."""
    return function.physfn is not None and function.physfn in topology


class _Numbering:
    """Addresses after a move, and the bus numbers that bridges then hold."""

    def __init__(self, topology: Topology, functions: tuple[Function, ...], port: Function) -> None:
        self.topology = topology
        self.card = functions
        self.port = port
        self.addresses: dict[Bdf, Bdf] = {}
        """Old to new, of everything that was numbered."""
        self.windows: dict[Bdf, tuple[int, int, int]] = {}
        """Primary, secondary and subordinate bus by the bridge's old address."""

    def run(self) -> None:
        first, last = self.port.secondary_bus, self.port.subordinate_bus
        if first is not None:
            end = self._place(self._below(self.port), self.port.bdf.domain, first)
            if end <= max(first, last or 0):
                return
        self.addresses.clear()
        self.windows.clear()
        root = self.topology.host_bridge_of(self.port)
        bus = self.topology.buses[root.domain, root.bus]
        others = [other.bus for other in self.topology.host_bridges if other.domain == root.domain]
        limit = min((number for number in others if number > root.bus), default=0x100)
        functions = [each for each in bus.functions if not self._is_elsewhere(each)]
        if self._place(functions, root.domain, root.bus) >= limit:
            raise EditError(f"{root} has too few bus numbers for that")

    def riders(self, functions: Iterable[Function]) -> set[Bdf]:
        """The card, all below it, and their VFs."""
        found: set[Bdf] = set()
        for function in functions:
            found.add(function.bdf)
            found.update(virtual.bdf for virtual in self.topology.virtual_functions(function))
            found |= self.riders(self._below(function))
        return found

    def _is_elsewhere(self, function: Function) -> bool:
        return function in self.card or _follows(self.topology, function)

    def _below(self, bridge: Function) -> tuple[Function, ...]:
        """Physical functions right below ``bridge`` after the move."""
        bus = self.topology.secondary(bridge)
        present = bus.functions if bus is not None else ()
        staying = tuple(each for each in present if not self._is_elsewhere(each))
        return (*staying, *self.card) if bridge is self.port else staying

    def _place(self, functions: Iterable[Function], domain: int, bus: int) -> int:
        """Number a bus and all below it; returns the last bus number used."""
        last = bus
        bridges: list[Function] = []
        for function in functions:
            # Numbers past 0xff are told by the caller, so they must not raise here.
            new = Bdf(domain, bus, function.bdf.device, function.bdf.function)
            self.addresses[function.bdf] = new
            for virtual in self.topology.virtual_functions(function):
                distance = virtual.bdf.requester_id - function.bdf.requester_id
                requester_id = new.requester_id + distance
                self.addresses[virtual.bdf] = Bdf(
                    domain, requester_id >> 8, requester_id >> 3 & 0x1F, requester_id & 7
                )
                last = max(last, requester_id >> 8)
            if function.is_bridge and (function.secondary_bus or function is self.port):
                bridges.append(function)
        for bridge in bridges:
            secondary = last + 1
            last = self._place(self._below(bridge), domain, secondary)
            self.windows[bridge.bdf] = (bus & 0xFF, secondary & 0xFF, last & 0xFF)
        return last


def _at(
    function: Function,
    bdf: Bdf,
    window: tuple[int, int, int] | None,
    addresses: Mapping[Bdf, Bdf],
    elsewhere: bool,
) -> Function:
    """``function`` at another address; ``elsewhere``: in another place too."""
    config = function.config
    for index, number in enumerate(window or ()):
        if config.has(_PRIMARY_BUS + index, 1):
            config = _with_bytes(config, _PRIMARY_BUS + index, 1, number)
    recorded, resources = function.recorded, function.resources
    if elsewhere:
        known = recorded
        recorded = Recorded(
            driver=known.driver,
            reset_methods=known.reset_methods,
            max_link_speed=known.max_link_speed,
            max_link_width=known.max_link_width,
            driver_override=known.driver_override,
            names=known.names,
        )
        resources = tuple(map(_unplaced, resources))
    physfn = function.physfn
    if physfn is not None:
        physfn = addresses.get(physfn, physfn)
    return Function(
        bdf, config, function.identity, resources=resources, physfn=physfn, recorded=recorded
    )


def _unplaced(resource: Resource) -> Resource:
    if not resource.size:
        return resource
    flags = resource.flags | _IORESOURCE_UNSET
    return Resource(resource.index, 0, resource.size - 1, flags)


def _with_config(function: Function, config: ConfigSpace) -> Function:
    return Function(
        function.bdf,
        config,
        function.identity,
        resources=function.resources,
        physfn=function.physfn,
        recorded=function.recorded,
    )


def _with_bytes(config: ConfigSpace, offset: int, width: int, value: int) -> ConfigSpace:
    """A copy that keeps what its kind knows about itself, such as which bytes are known."""
    config.read(offset, width)
    data = bytearray(config.data)
    data[offset : offset + width] = value.to_bytes(width, "little")
    edited = copy(config)
    edited.data = bytes(data)
    return edited


def _rebuilt(topology: Topology, changed: Mapping[Bdf, Function]) -> Topology:
    return topology.with_functions(changed.get(each.bdf, each) for each in topology)
