"""A libvirt domain for a guest plan.

Controllers get the index of the bus that they carry, so that every ``address`` names its bus by
it, and libvirt adds nothing between. What libvirt has no element for (GPUDirect cliques, root
ports without ACS) goes through ``qemu:override``. Source: libvirt's ``formatdomain`` and
``pci-addresses`` pages; its RNG schemas are what the tests validate against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfiokit.assign.vmconfig.settings import GIB, KIB, Settings
from vfiokit.errors import UsageError
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu
from vfiokit.p2p.guest_topology import expander_addresses
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

if TYPE_CHECKING:
    from vfiokit.pci.address import Bdf

_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def render(plan: GuestPlan, settings: Settings) -> str:
    """The domain's XML, for ``virsh define``; it has no disk and no network yet.

    Raises :class:`~vfiokit.errors.UsageError` for the seed variant: libvirt starts no devices that
    it does not know.
    """
    if plan.variant is Variant.SEED:
        raise UsageError(
            "libvirt has no element for the ports of the seed variant",
            hint="--vmm qemu prints them",
        )
    return "\n".join(_Domain(plan, settings).lines()) + "\n"


class _Domain:
    def __init__(self, plan: GuestPlan, settings: Settings) -> None:
        self._plan = plan
        self._settings = settings
        self._devices: list[str] = []
        self._overrides: list[str] = []
        self._index = 0
        self._chassis = 0

    def lines(self) -> Iterator[str]:
        self._build()
        settings = self._settings
        namespace = f" xmlns:qemu='{_NAMESPACE}'" if self._overrides else ""
        yield f"<domain type='kvm'{namespace}>"
        yield f"  <name>{settings.name}</name>"
        yield f"  <memory unit='KiB'>{settings.memory // KIB}</memory>"
        yield from _indented(2, self._backing())
        yield f"  <vcpu placement='static'>{settings.cpus}</vcpu>"
        yield from _indented(2, self._tuning())
        yield "  <os>"
        yield "    <type arch='x86_64' machine='q35'>hvm</type>"
        yield "  </os>"
        yield "  <features>"
        yield "    <acpi/>"
        yield "    <apic/>"
        if self._plan.viommu in (Viommu.INTEL, Viommu.INTEL_PT):
            yield "    <ioapic driver='qemu'/>"
        yield "  </features>"
        yield from _indented(2, self._processor())
        yield "  <devices>"
        yield from _indented(4, self._devices)
        yield from _indented(4, self._iommu())
        yield "  </devices>"
        if self._overrides:
            yield "  <qemu:override>"
            yield from _indented(4, self._overrides)
            yield "  </qemu:override>"
        yield "</domain>"

    # -- memory and processors ------------------------------------------------------------------

    def _backing(self) -> Iterator[str]:
        pages = self._settings.hugepages
        if not pages:
            return
        unit, size = ("G", pages // GIB) if pages >= GIB else ("M", pages // (KIB * KIB))
        yield "<memoryBacking>"
        yield "  <hugepages>"
        yield f"    <page size='{size}' unit='{unit}'/>"
        yield "  </hugepages>"
        yield "</memoryBacking>"

    def _tuning(self) -> Iterator[str]:
        nodes = [node for node in self._settings.nodes(self._plan) if node.host is not None]
        if not nodes:
            return
        yield "<numatune>"
        for node in nodes:
            yield f"  <memnode cellid='{node.number}' mode='strict' nodeset='{node.host}'/>"
        yield "</numatune>"

    def _processor(self) -> Iterator[str]:
        yield "<cpu mode='host-passthrough'>"
        # Large BARs need the host's physical address width.
        yield "  <maxphysaddr mode='passthrough'/>"
        if self._plan.numa:
            yield "  <numa>"
            for node in self._settings.nodes(self._plan):
                yield (
                    f"    <cell id='{node.number}' cpus='{node.cpu_list}' "
                    f"memory='{node.memory // KIB}' unit='KiB'/>"
                )
            yield "  </numa>"
        yield "</cpu>"

    def _iommu(self) -> Iterator[str]:
        if self._plan.viommu is Viommu.VIRTIO:
            yield "<iommu model='virtio'/>"
        elif self._plan.viommu is not Viommu.NONE:
            yield "<iommu model='intel'>"
            yield "  <driver intremap='on' caching_mode='on'/>"
            yield "</iommu>"

    # -- the tree -------------------------------------------------------------------------------

    def _build(self) -> None:
        hole = self._settings.hole64
        if hole:
            self._devices += [
                "<controller type='pci' index='0' model='pcie-root'>",
                f"  <pcihole64 unit='KiB'>{hole // KIB}</pcihole64>",
                "</controller>",
            ]
        else:
            self._devices.append("<controller type='pci' index='0' model='pcie-root'/>")
        first, *others = self._plan.blueprint.host_bridges
        expanders = expander_addresses(self._plan)
        indices = {}
        for bridge in others:
            node = self._plan.numa.get(bridge.name)
            target = f"<target busNr='{bridge.bus}'"
            inside = [f"{target}/>"]
            if node is not None:
                inside = [f"{target}>", f"  <node>{node}</node>", "</target>"]
            at = expanders[bridge.name]
            indices[bridge.name] = self._controller(
                "pcie-expander-bus", bridge.name, inside, (0, at.device, 0)
            )
        for bridge in self._plan.blueprint.host_bridges:
            self._items(bridge, 0 if bridge is first else indices[bridge.name])

    def _controller(
        self, model: str, name: str, inside: list[str], at: tuple[int, int, int], *shared: str
    ) -> int:
        """Add a controller; returns its index, the number that addresses call its bus by."""
        self._index += 1
        self._devices += [
            f"<controller type='pci' index='{self._index}' model='{model}'>",
            *(f"  {line}" for line in inside),
            f"  <alias name='{_alias(name)}'/>",
            f"  {_address(at, *shared)}",
            "</controller>",
        ]
        return self._index

    def _items(self, bridge: HostBridge, bus: int) -> None:
        for number, item in device_numbers(bridge):
            self._device(item, bus, number)

    def _device(self, item: Node, bus: int, device: int) -> None:
        parts = item.functions if isinstance(item, Slot) else (item,)
        for number, part in enumerate(parts):
            shared = ("multifunction='on'",) if len(parts) > 1 and number == 0 else ()
            at = (bus, device, number)
            match part:
                case RootPort() | DownstreamPort():
                    self._port(part, at, *shared)
                case Switch():
                    below = self._controller("pcie-switch-upstream-port", part.name, [], at)
                    for index, port in enumerate(part.ports):
                        self._port(port, (below, index, 0))
                case Endpoint():
                    self._function(part.name, at, *shared)
                case _:
                    raise AssertionError(part)

    def _port(
        self, port: RootPort | DownstreamPort, at: tuple[int, int, int], *shared: str
    ) -> None:
        self._chassis += 1
        root = isinstance(port, RootPort)
        model = "pcie-root-port" if root else "pcie-switch-downstream-port"
        if root and not port.acs:
            self._override(port.name, "disable-acs", "bool", "true")
        target = f"<target chassis='{self._chassis}' port='{self._chassis:#x}'/>"
        below = self._controller(model, port.name, [target], at, *shared)
        if port.child is not None:
            self._device(port.child, below, 0)

    def _function(self, name: str, at: tuple[int, int, int], *shared: str) -> None:
        host = self._plan.functions[name]
        self._devices += [
            "<hostdev mode='subsystem' type='pci' managed='yes'>",
            "  <driver name='vfio'/>",
            "  <source>",
            f"    {_host_address(host)}",
            "  </source>",
            f"  <alias name='{_alias(name)}'/>",
            f"  {_address(at, *shared)}",
            "</hostdev>",
        ]
        if host in self._settings.cliques:
            clique = str(self._settings.cliques[host])
            self._override(name, "x-nv-gpudirect-clique", "unsigned", clique)
        if self._settings.iommufd:
            raise UsageError(
                "libvirt's iommufd support is younger than the schemas this is written for",
                hint="leave --iommufd out, or use --vmm qemu",
            )

    def _override(self, name: str, key: str, kind: str, value: str) -> None:
        self._overrides += [
            f"<qemu:device alias='{_alias(name)}'>",
            "  <qemu:frontend>",
            f"    <qemu:property name='{key}' type='{kind}' value='{value}'/>",
            "  </qemu:frontend>",
            "</qemu:device>",
        ]


def _alias(name: str) -> str:
    """A user's alias has a prefix, and no dot."""
    return "ua-" + name.replace(".", "-")


def _address(at: tuple[int, int, int], *shared: str) -> str:
    bus, device, function = at
    words = [
        "type='pci'",
        "domain='0x0000'",
        f"bus='{bus:#04x}'",
        f"slot='{device:#04x}'",
        f"function='{function:#x}'",
        *shared,
    ]
    return f"<address {' '.join(words)}/>"


def _host_address(host: Bdf) -> str:
    return (
        f"<address domain='{host.domain:#06x}' bus='{host.bus:#04x}' "
        f"slot='{host.device:#04x}' function='{host.function:#x}'/>"
    )


def _indented(width: int, lines: Iterator[str] | list[str]) -> Iterator[str]:
    for line in lines:
        yield " " * width + line
