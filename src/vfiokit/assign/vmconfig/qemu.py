"""QEMU's command line for a guest plan.

Ports have chassis and slot numbers of their own, every device an explicit bus and address, so that
the guest's addresses are those of the plan. Source: QEMU ``docs/pcie.txt``,
``docs/pci_expander_bridge.txt``, ``hw/vfio/pci.c``; for the devices of the seed variant LPC 2022
"PCI P2P inside VM".
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vfiokit.assign.vmconfig.settings import MIB, Settings, size_text
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu
from vfiokit.p2p.guest_topology import expander_addresses
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    DownstreamPort,
    Endpoint,
    HostBridge,
    Node,
    RootPort,
    Slot,
    Switch,
    device_numbers,
)

VIRTIO_IOMMU_ADDRESS = "1d.0"
"""Of the virtio-iommu on the first bus."""
IOMMUFD = "iommufd0"


class StandIn(NamedTuple):
    """What to plug in place of an assigned function, where there is no such function."""

    device: str
    """Model and properties, without ``id``, ``bus`` and ``addr``."""
    before: tuple[str, ...] = ()
    """Arguments that the device needs."""


def render(plan: GuestPlan, settings: Settings) -> str:
    """A shell command; one option a line."""
    words = arguments(plan, settings)
    lines = ["qemu-system-x86_64"]
    for word in words:
        if word.startswith("-"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines) + "\n"


def arguments(
    plan: GuestPlan, settings: Settings, stand_ins: Mapping[Bdf, StandIn] | None = None
) -> tuple[str, ...]:
    """Everything after the program's name."""
    return (
        *_machine(plan, settings),
        *numa(plan, settings),
        *_iommu(plan),
        *devices(plan, settings, stand_ins),
    )


def _machine(plan: GuestPlan, settings: Settings) -> Iterator[str]:
    # Interrupt remapping needs the interrupt controllers' upper half in QEMU.
    split = ",kernel-irqchip=split" if plan.viommu in (Viommu.INTEL, Viommu.INTEL_PT) else ""
    yield from ("-name", settings.name)
    yield from ("-machine", f"q35,accel=kvm{split}")
    # Large BARs need the host's physical address width.
    yield from ("-cpu", "host,host-phys-bits=on")
    sockets = len(settings.nodes(plan))
    even = settings.cpus % sockets == 0
    yield from ("-smp", f"{settings.cpus}" + (f",sockets={sockets}" if even else ""))
    yield from ("-m", size_text(settings.memory))
    if settings.hole64:
        yield from ("-global", f"q35-pcihost.pci-hole64-size={size_text(settings.hole64)}")
    if settings.iommufd:
        yield from ("-object", f"iommufd,id={IOMMUFD}")


def numa(plan: GuestPlan, settings: Settings) -> tuple[str, ...]:
    """Memory backends and NUMA nodes; nothing for ordinary memory of one node."""
    if not plan.numa and not settings.hugepages:
        return ()
    found: list[str] = []
    for node in settings.nodes(plan):
        name = f"ram{node.number}"
        backend = f"memory-backend-memfd,id={name},size={size_text(node.memory)},share=on"
        if settings.hugepages:
            backend += f",hugetlb=on,hugetlbsize={size_text(settings.hugepages)},prealloc=on"
        if node.host is not None:
            backend += f",host-nodes={node.host},policy=bind"
        found += ["-object", backend]
        cpus = f",cpus={node.cpu_list}" if plan.numa else ""
        found += ["-numa", f"node,nodeid={node.number}{cpus},memdev={name}"]
    return tuple(found)


def _iommu(plan: GuestPlan) -> tuple[str, ...]:
    if plan.viommu is Viommu.NONE:
        return ()
    if plan.viommu is Viommu.VIRTIO:
        return ("-device", f"virtio-iommu-pci,bus=pcie.0,addr={VIRTIO_IOMMU_ADDRESS}")
    return ("-device", "intel-iommu,intremap=on,caching-mode=on")


def devices(
    plan: GuestPlan, settings: Settings, stand_ins: Mapping[Bdf, StandIn] | None = None
) -> tuple[str, ...]:
    """The tree: expander bridges, ports, switches and the functions themselves."""
    return _Tree(plan, settings, stand_ins or {}).build()


class _Tree:
    def __init__(
        self, plan: GuestPlan, settings: Settings, stand_ins: Mapping[Bdf, StandIn]
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._stand_ins = stand_ins
        self._arguments: list[str] = []
        self._chassis = 0

    def build(self) -> tuple[str, ...]:
        first, *others = self._plan.blueprint.host_bridges
        expanders = expander_addresses(self._plan)
        for bridge in others:
            properties = [f"bus_nr={bridge.bus}"]
            if bridge.name in self._plan.numa:
                properties.append(f"numa_node={self._plan.numa[bridge.name]}")
            at = expanders[bridge.name]
            self._add("pxb-pcie", bridge.name, "pcie.0", f"{at.device:02x}.0", *properties)
        for bridge in self._plan.blueprint.host_bridges:
            self._items(bridge, "pcie.0" if bridge is first else bridge.name)
        return tuple(self._arguments)

    def _add(self, model: str, name: str, bus: str, address: str, *properties: str) -> None:
        words = [model, f"id={name}", f"bus={bus}", f"addr={address}", *properties]
        self._arguments += ["-device", ",".join(words)]

    def _items(self, bridge: HostBridge, bus: str) -> None:
        for number, item in device_numbers(bridge):
            self._device(item, bus, number)

    def _device(self, item: Node, bus: str, device: int) -> None:
        parts = item.functions if isinstance(item, Slot) else (item,)
        for number, part in enumerate(parts):
            shared = ("multifunction=on",) if len(parts) > 1 and number == 0 else ()
            self._node(part, bus, f"{device:02x}.{number}", *shared)

    def _node(self, node: Node, bus: str, address: str, *shared: str) -> None:
        match node:
            case RootPort() | DownstreamPort():
                self._port(node, bus, address, *shared)
            case Switch():
                seed = self._is_seed(node.name)
                model = "pcie-switch-p2p" if seed else "x3130-upstream"
                self._add(model, node.name, bus, address, *self._host(node.name))
                for number, port in enumerate(node.ports):
                    self._port(port, node.name, f"{number:02x}.0")
            case Endpoint():
                self._function(node.name, bus, address, *shared)
            case _:
                raise AssertionError(node)

    def _port(self, port: RootPort | DownstreamPort, bus: str, address: str, *shared: str) -> None:
        self._chassis += 1
        properties = [f"chassis={self._chassis}", f"slot={self._chassis}", *shared]
        root = isinstance(port, RootPort)
        if self._is_seed(port.name):
            model = "pcie-root-port-p2p" if root else "pcie-switch-p2p-downstream"
            properties += self._host(port.name)
        elif root or port.acs:
            model = "pcie-root-port"
            if not port.acs:
                properties.append("disable-acs=on")
            if port.speed:
                properties.append(f"x-speed={port.speed}")
        else:
            model = "xio3130-downstream"
        self._add(model, port.name, bus, address, *properties)
        if port.child is not None:
            self._device(port.child, port.name, 0)

    def _is_seed(self, name: str) -> bool:
        return self._plan.variant is Variant.SEED and name in self._plan.mirrors

    def _host(self, name: str) -> tuple[str, ...]:
        """The host's port that a port of the seed variant takes its registers from."""
        return (f"host={self._plan.mirrors[name]}",) if self._is_seed(name) else ()

    def _function(self, name: str, bus: str, address: str, *shared: str) -> None:
        host = self._plan.functions[name]
        stand_in = self._stand_ins.get(host)
        if stand_in is not None:
            self._arguments += stand_in.before
            model, _comma, rest = stand_in.device.partition(",")
            self._add(model, name, bus, address, *([rest] if rest else []), *shared)
            return
        properties = [f"host={host}", *shared]
        if self._settings.iommufd:
            properties.append(f"iommufd={IOMMUFD}")
        if host in self._settings.cliques:
            properties.append(f"x-nv-gpudirect-clique={self._settings.cliques[host]}")
        self._add("vfio-pci", name, bus, address, *properties)


def nvme_stand_in(number: int, path: str, cmb: int = 2 * MIB) -> StandIn:
    """An NVMe drive with a memory buffer of ``cmb`` bytes, backed by the file ``path``.

    It takes part in P2PDMA on both sides; ``number`` tells drives apart.
    """
    node = f"stand-in-disk{number}"
    file = path.replace(",", ",,")
    return StandIn(
        f"nvme,serial=fn{number},cmb_size_mb={cmb // MIB},drive={node}",
        ("-blockdev", f"driver=raw,node-name={node},file.driver=file,file.filename={file}"),
    )
