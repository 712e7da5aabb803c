"""The tree of host bridges, buses and functions of one machine, as an immutable value.

Facts that the machine's own kernel recorded (driver, IOMMU group, NUMA node) sit in
:class:`Recorded`, apart from everything computed here from configuration bytes.
Source of the walking rules: Linux ``pci_upstream_bridge``, ``pci_is_root_bus``,
``pci_iov_virtfn_bus`` (virtual buses have no bridge device of their own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError, DeviceNotFoundError
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import Capability, CapabilityList, capabilities
from vfiokit.pci.capability.acs import CAPABILITY as ACS_CAPABILITY
from vfiokit.pci.capability.acs import CONTROL as ACS_CONTROL
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import CAPABILITIES as EXP_CAPABILITIES
from vfiokit.pci.capability.express import DEVICE_CONTROL_2 as EXP_DEVICE_CONTROL_2
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace


class Identity(NamedTuple):
    """Who a function is. A VF's own configuration space does not tell; its PF or sysfs does."""

    vendor_id: int
    device_id: int
    class_code: int
    """24 bits: base class, subclass, programming interface."""
    revision: int = 0
    subsystem_vendor_id: int = 0
    subsystem_device_id: int = 0


class Resource(NamedTuple):
    """One line of sysfs ``resource``: an address range as the kernel assigned it."""

    index: int  # type: ignore[assignment]  # the kernel's word; tuple.index is not missed
    """0 to 5 BARs, 6 expansion ROM, 7 to 12 VF BARs, then bridge windows (Linux numbering)."""
    start: int
    end: int
    """Last byte, inclusive, as the kernel prints it."""
    flags: int
    """``IORESOURCE_*`` bits of ``include/linux/ioport.h``."""

    @property
    def size(self) -> int:
        """Bytes; 0 when the slot is unused."""
        return max(self.end - self.start + 1, 0) if self.flags else 0


class Recorded(NamedTuple):
    """What the machine's own kernel said about a function; ``None`` where it was not recorded."""

    driver: str | None = None
    iommu_group: int | None = None
    numa_node: int | None = None
    irq: int | None = None
    reset_methods: tuple[str, ...] | None = None
    current_link_speed: str | None = None
    current_link_width: int | None = None
    max_link_speed: str | None = None
    max_link_width: int | None = None
    power_state: str | None = None
    enabled: bool | None = None
    driver_override: str | None = None
    names: Mapping[str, str] = {}
    """Names of vendor, device and class where the source carries them."""


class Function:
    """One PCI function: address, configuration bytes, identity, resources, recorded facts."""

    def __init__(
        self,
        bdf: Bdf,
        config: ConfigSpace,
        identity: Identity | None = None,
        *,
        resources: tuple[Resource, ...] = (),
        physfn: Bdf | None = None,
        recorded: Recorded | None = None,
    ) -> None:
        self.bdf = bdf
        self.config = config
        self.identity = identity or _identity(config)
        self.resources = resources
        self.physfn = physfn
        """The PF, when this is a VF."""
        self.recorded = recorded or Recorded()

    def __repr__(self) -> str:
        return f"<Function {self.bdf}>"

    @cached_property
    def capabilities(self) -> CapabilityList:
        """Both capability lists, walked once."""
        return capabilities(self.config)

    @property
    def is_virtual(self) -> bool:
        """Whether this is an SR-IOV virtual function."""
        return self.physfn is not None

    @cached_property
    def header_type(self) -> int:
        """0 endpoint, 1 PCI-to-PCI bridge, 2 CardBus bridge; 0 for a VF or without bytes."""
        if self.is_virtual or not self.config.has(0x0E, 1):
            return 0
        value = self.config.u8(0x0E)
        return 0 if value == 0xFF else value & 0x7F

    @property
    def multifunction_bit(self) -> bool:
        """Bit 7 of the header type register, as captured."""
        return (
            self.config.has(0x0E, 1)
            and self.config.u8(0x0E) not in (0xFF,)
            and bool(self.config.u8(0x0E) & 0x80)
        )

    @property
    def is_bridge(self) -> bool:
        """Whether this function owns a secondary bus."""
        return self.header_type in (1, 2)

    @cached_property
    def secondary_bus(self) -> int | None:
        """Bus number below this bridge; ``None`` for an endpoint or an unconfigured bridge."""
        return self._bus_number(0x19)

    @cached_property
    def subordinate_bus(self) -> int | None:
        """Highest bus number below this bridge."""
        return self._bus_number(0x1A)

    def _bus_number(self, offset: int) -> int | None:
        if not self.is_bridge or not self.config.has(offset, 1):
            return None
        return self.config.u8(offset) or None

    @cached_property
    def express(self) -> Capability | None:
        """The PCI Express capability; ``None`` for conventional PCI."""
        return self.capabilities.find(0x10)

    @cached_property
    def port_type(self) -> PortType | None:
        """Device/port type; ``None`` for conventional PCI or an undefined code."""
        if self.express is None:
            return None
        try:
            return PortType(self.express.field(EXP_CAPABILITIES, "port_type"))
        except (ValueError, ConfigRangeError):
            return None

    @cached_property
    def acs(self) -> Capability | None:
        """The ACS extended capability."""
        return self.capabilities.find_extended(0x0D)

    @cached_property
    def acs_capability(self) -> Acs:
        """Supported ACS bits [6:0]; none without the capability."""
        return self._acs_bits(ACS_CAPABILITY.offset)

    @cached_property
    def acs_control(self) -> Acs:
        """Enabled ACS bits [6:0] as captured; none without the capability."""
        return self._acs_bits(ACS_CONTROL.offset)

    def _acs_bits(self, relative: int) -> Acs:
        if self.acs is None:
            return Acs(0)
        try:
            return Acs(self.acs.raw(relative, 2) & 0x7F)
        except ConfigRangeError:
            return Acs(0)


class HostBridge(NamedTuple):
    """A root bus: what Linux calls ``pciDDDD:BB``."""

    domain: int
    bus: int

    def __str__(self) -> str:
        return f"pci{self.domain:04x}:{self.bus:02x}"


class Bus:
    """One bus: its functions in devfn order, and the bridge that owns it."""

    __slots__ = ("bridge", "domain", "functions", "number", "virtual_of")

    def __init__(
        self,
        domain: int,
        number: int,
        functions: tuple[Function, ...],
        bridge: Function | None,
        virtual_of: int | None,
    ) -> None:
        self.domain = domain
        self.number = number
        self.functions = functions
        self.bridge = bridge
        """The bridge function above; ``None`` on a root bus and on a virtual SR-IOV bus."""
        self.virtual_of = virtual_of
        """For a virtual SR-IOV bus, the number of the bus that its PFs sit on."""

    @property
    def is_root(self) -> bool:
        """Whether the bus hangs from a host bridge."""
        return self.bridge is None and self.virtual_of is None

    def __repr__(self) -> str:
        return f"<Bus {self.domain:04x}:{self.number:02x}>"


class Topology:
    """All functions of a machine and how they hang together. Immutable by convention."""

    stray: frozenset[tuple[int, int]] = frozenset()
    """``(domain, bus)`` of buses that look like root buses here and are not: something leads to
    them that the source does not describe."""

    def __init__(
        self, functions: Iterable[Function], root_buses: Iterable[tuple[int, int]] | None = None
    ) -> None:
        """Build the tree.

        ``root_buses`` are ``(domain, bus)`` pairs where the source knows them; otherwise a bus
        that no bridge claims and no VF lives on alone is taken for a root bus.
        """
        self.functions: dict[Bdf, Function] = {
            function.bdf: function for function in sorted(functions, key=lambda item: item.bdf)
        }
        self.buses = _build_buses(self.functions, root_buses)
        self.host_bridges = tuple(
            HostBridge(bus.domain, bus.number) for bus in self.buses.values() if bus.is_root
        )
        self._virtual_functions: dict[Bdf, tuple[Function, ...]] = {}
        for function in self.functions.values():
            if function.physfn is not None:
                known = self._virtual_functions.get(function.physfn, ())
                self._virtual_functions[function.physfn] = (*known, function)

    def with_functions(self, functions: Iterable[Function]) -> Topology:
        """The same kind of topology of other functions, with the same root buses."""
        roots = [(bridge.domain, bridge.bus) for bridge in self.host_bridges]
        found = type(self)(functions, roots)
        found.stray = self.stray
        return found

    def __iter__(self) -> Iterator[Function]:
        return iter(self.functions.values())

    def __len__(self) -> int:
        return len(self.functions)

    def __contains__(self, bdf: object) -> bool:
        return bdf in self.functions

    def __getitem__(self, bdf: Bdf) -> Function:
        try:
            return self.functions[bdf]
        except KeyError:
            raise DeviceNotFoundError(f"there is no PCI function {bdf} on this host") from None

    def bus_of(self, function: Function) -> Bus:
        """The bus that ``function`` sits on."""
        return self.buses[function.bdf.domain, function.bdf.bus]

    def parent_bus(self, bus: Bus) -> Bus | None:
        """The bus above: a bridge's own bus, the PF's bus for a virtual bus, ``None`` at a root."""
        if bus.bridge is not None:
            return self.bus_of(bus.bridge)
        if bus.virtual_of is not None:
            return self.buses.get((bus.domain, bus.virtual_of))
        return None

    def upstream_bridge(self, function: Function) -> Function | None:
        """Linux ``pci_upstream_bridge``: the PF stands in for a VF; ``None`` on a root bus."""
        if function.physfn is not None and function.physfn in self.functions:
            function = self.functions[function.physfn]
        return self.bus_of(function).bridge

    def path_to_root(self, function: Function) -> tuple[Function, ...]:
        """Bridges above ``function``, nearest first."""
        path: list[Function] = []
        seen: set[Bdf] = set()
        bridge = self.upstream_bridge(function)
        while bridge is not None and bridge.bdf not in seen:
            seen.add(bridge.bdf)
            path.append(bridge)
            bridge = self.upstream_bridge(bridge)
        return tuple(path)

    def host_bridge_of(self, function: Function) -> HostBridge:
        """The host bridge whose hierarchy ``function`` belongs to."""
        path = self.path_to_root(function)
        top = path[-1] if path else function
        if top.physfn is not None and top.physfn in self.functions:
            top = self.functions[top.physfn]
        return HostBridge(top.bdf.domain, top.bdf.bus)

    def secondary(self, bridge: Function) -> Bus | None:
        """The bus below ``bridge``, where it has one."""
        number = bridge.secondary_bus
        if number is None:
            return None
        bus = self.buses.get((bridge.bdf.domain, number))
        return bus if bus is not None and bus.bridge is bridge else None

    def virtual_functions(self, function: Function) -> tuple[Function, ...]:
        """The VFs of a PF, in address order."""
        return self._virtual_functions.get(function.bdf, ())

    def slot(self, function: Function) -> tuple[Function, ...]:
        """Every function of the same device number on the same bus, itself included."""
        return tuple(
            other
            for other in self.bus_of(function).functions
            if other.bdf.device == function.bdf.device
        )

    def is_multifunction(self, function: Function) -> bool:
        """Linux ``pdev->multifunction``: bit 7 of function 0, or any function above 0; never a VF.

        Source: ``pci_scan_slot`` and ``pci_iov_add_virtfn``.
        """
        if function.is_virtual:
            return False
        number = function.bdf.function
        bridge = self.bus_of(function).bridge
        # With ARI the device number holds the upper bits of the function number.
        if bridge is not None and _forwards_ari(bridge):
            number = function.bdf.devfn
        return number > 0 or function.multifunction_bit


def _forwards_ari(bridge: Function) -> bool:
    if bridge.express is None:
        return False
    try:
        return bool(bridge.express.field(EXP_DEVICE_CONTROL_2, "ari_forwarding"))
    except ConfigRangeError:
        return False


def _identity(config: ConfigSpace) -> Identity:
    if len(config) < 0x40:
        return Identity(0xFFFF, 0xFFFF, 0)
    subsystem = _subsystem(config)
    return Identity(
        config.u16(0x00),
        config.u16(0x02),
        config.u32(0x08) >> 8,
        config.u8(0x08),
        config.u16(subsystem) if config.has(subsystem, 4) else 0,
        config.u16(subsystem + 2) if config.has(subsystem, 4) else 0,
    )


def _subsystem(config: ConfigSpace) -> int:
    """Where the subsystem ids lie; past the end where there are none.

    A PCI-to-PCI bridge has them in a capability, the others in the header (Linux
    ``pci_setup_device``).
    """
    kind = config.u8(0x0E) & 0x7F
    if kind == 1:
        capability = capabilities(config).find(0x0D)
        return capability.offset + 4 if capability is not None else len(config)
    return {0: 0x2C, 2: 0x40}.get(kind, len(config))


def _build_buses(
    functions: Mapping[Bdf, Function], root_buses: Iterable[tuple[int, int]] | None
) -> dict[tuple[int, int], Bus]:
    members: dict[tuple[int, int], list[Function]] = {}
    owners: dict[tuple[int, int], Function] = {}
    for function in functions.values():
        members.setdefault((function.bdf.domain, function.bdf.bus), []).append(function)
        secondary = function.secondary_bus
        # A bridge cannot own the bus it sits on or one before it: such numbers are left over
        # from firmware that never configured it.
        if secondary is not None and secondary > function.bdf.bus:
            owners.setdefault((function.bdf.domain, secondary), function)
    roots = set(root_buses) if root_buses is not None else set()
    for key in roots:
        members.setdefault(key, [])
        owners.pop(key, None)
    for key in owners:
        members.setdefault(key, [])
    buses: dict[tuple[int, int], Bus] = {}
    for key in sorted(members):
        present = tuple(members[key])
        virtual_of: int | None = None
        if key not in owners and key not in roots and present:
            physical = present[0].physfn
            # VFs come after their PF, so the number falls with every step up: no walk can loop.
            if physical is not None and physical.domain == key[0] and physical.bus < key[1]:
                virtual_of = physical.bus
        buses[key] = Bus(key[0], key[1], present, owners.get(key), virtual_of)
    return buses
