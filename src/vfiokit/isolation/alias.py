"""Every requester ID under which the DMA of one function may reach the IOMMU.

Source: Linux 7.2 ``drivers/pci/search.c`` (``pci_for_each_dma_alias``) and
``drivers/pci/pci.c`` (``pci_devs_are_dma_aliases``).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from vfiokit.isolation.quirk import (
    VMD_FIRST_DOMAIN,
    VMD_IDS,
    AliasQuirk,
    BridgeFlag,
    alias_quirk,
    bridge_flag,
)
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Bus, Function, Topology


class AliasSource(Enum):
    """Why a requester ID is used."""

    OWN = "its own requester ID"
    VMD = "the requester ID of the VMD device it sits behind"
    QUIRK = "a requester ID that a kernel quirk adds"
    PCIE_TO_PCI_BRIDGE = "the requester ID of the bus below a PCIe-to-PCI bridge"
    PCI_TO_PCIE_BRIDGE = "the requester ID of a PCI-to-PCIe bridge"
    CONVENTIONAL_BRIDGE = "the requester ID of a conventional PCI bridge"


class Alias(NamedTuple):
    """One requester ID, in the order in which the kernel visits them."""

    requester_id: int
    """16 bits, as on the wire."""
    source: AliasSource
    device: Bdf
    """The function that the kernel holds responsible: the function itself or a bridge above."""
    quirk: AliasQuirk | None = None

    def text(self) -> str:
        """One sentence fragment: ``0000:05:00.0, the requester ID of …``."""
        bdf = Bdf.from_requester_id(self.requester_id, self.device.domain)
        detail = f" ({self.quirk.name})" if self.quirk is not None else ""
        if self.device != bdf and self.source is not AliasSource.QUIRK:
            detail = f" ({self.device})"
        return f"{bdf}, {self.source.value}{detail}"


def real_dma_device(topology: Topology, function: Function) -> Function:
    """``pci_real_dma_dev``: the VMD device for a function in a VMD domain, else itself.

    Which device owns which domain is not in the configuration bytes; VMD numbers its domains
    in the order of its devices, and so does this.
    """
    if function.bdf.domain < VMD_FIRST_DOMAIN:
        return function
    return vmd_devices(topology).get(function.bdf.domain, function)


def vmd_devices(topology: Topology) -> dict[int, Function]:
    """The VMD device of every VMD domain."""
    domains = sorted({bus.domain for bus in topology.buses.values()})
    domains = [domain for domain in domains if domain >= VMD_FIRST_DOMAIN]
    if not domains:
        return {}
    devices = [
        function
        for function in topology
        if function.identity.vendor_id == 0x8086
        and function.identity.device_id in VMD_IDS
        and function.bdf.domain < VMD_FIRST_DOMAIN
        and function.recorded.driver in (None, "vmd")
    ]
    return dict(zip(domains, devices, strict=False))


def for_each_alias(
    topology: Topology, function: Function, *, quirks: bool = True
) -> Iterator[Alias]:
    """Visit the requester IDs of ``function`` as ``pci_for_each_dma_alias`` does."""
    device = real_dma_device(topology, function)
    own = AliasSource.OWN if device is function else AliasSource.VMD
    yield Alias(device.bdf.requester_id, own, device.bdf)
    if quirks:
        row = alias_quirk(device)
        if row is not None:
            bus = device.bdf.bus << 8
            for devfn in sorted(row.applied(device.bdf.devfn)):
                yield Alias(bus | devfn, AliasSource.QUIRK, device.bdf, row)
    yield from bridge_aliases(topology, device, quirks=quirks)


def bridge_aliases(
    topology: Topology, function: Function, *, quirks: bool = True
) -> Iterator[Alias]:
    """The requester IDs that the bridges above ``function`` put in place of its own."""
    for bus, bridge in buses_above(topology, function):
        flag = BridgeFlag.NONE
        if quirks:
            flag = bridge_flag(bridge, topology.upstream_bridge(bridge))
        if flag is BridgeFlag.XLATE_ROOT:
            return
        alias = _bridge_alias(bridge, bus.number, flag)
        if alias is not None:
            yield alias


def buses_above(topology: Topology, function: Function) -> Iterator[tuple[Bus, Function]]:
    """The buses from that of ``function`` up to the root bus, each with the bridge that owns it.

    Virtual SR-IOV buses have none and are left out. Ends on captures whose buses go round.
    """
    bus: Bus | None = topology.bus_of(function)
    seen: set[int] = set()
    while bus is not None and not bus.is_root and bus.number not in seen:
        seen.add(bus.number)
        if bus.bridge is not None:
            yield bus, bus.bridge
        bus = topology.parent_bus(bus)


def _bridge_alias(bridge: Function, subordinate: int, flag: BridgeFlag) -> Alias | None:
    if bridge.express is None:
        if flag is BridgeFlag.PCIE_BRIDGE_ALIAS:
            return Alias(subordinate << 8, AliasSource.PCIE_TO_PCI_BRIDGE, bridge.bdf)
        return Alias(bridge.bdf.requester_id, AliasSource.CONVENTIONAL_BRIDGE, bridge.bdf)
    kind = bridge.port_type
    if kind is PortType.PCIE_TO_PCI_BRIDGE and flag is not BridgeFlag.NO_ALIAS:
        return Alias(subordinate << 8, AliasSource.PCIE_TO_PCI_BRIDGE, bridge.bdf)
    if kind is PortType.PCI_TO_PCIE_BRIDGE:
        return Alias(bridge.bdf.requester_id, AliasSource.PCI_TO_PCIE_BRIDGE, bridge.bdf)
    return None


def aliases(topology: Topology, function: Function, *, quirks: bool = True) -> tuple[Alias, ...]:
    """Every distinct requester ID of ``function``, its own first."""
    seen: dict[int, Alias] = {}
    for alias in for_each_alias(topology, function, quirks=quirks):
        seen.setdefault(alias.requester_id, alias)
    return tuple(seen.values())


def alias_devfns(function: Function, *, quirks: bool = True) -> frozenset[int]:
    """Devfns of its own bus that ``function`` aliases by quirk (``dma_alias_mask``)."""
    row = alias_quirk(function) if quirks else None
    return row.applied(function.bdf.devfn) if row is not None else frozenset()


def are_dma_aliases(one: Function, other: Function, *, quirks: bool = True) -> bool:
    """``pci_devs_are_dma_aliases`` for two functions of one bus: either aliases the other."""
    return other.bdf.devfn in alias_devfns(one, quirks=quirks) or one.bdf.devfn in alias_devfns(
        other, quirks=quirks
    )
