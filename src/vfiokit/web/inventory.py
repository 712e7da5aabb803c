"""What a picture says of every function, collected once and free of the objects it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vfiokit.isolation.group import predict
from vfiokit.p2p import Redirect, redirect
from vfiokit.p2p.chain import REDIRECTING
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.selector import is_class

if TYPE_CHECKING:
    from vfiokit.isolation.group import Grouping
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.topology import Function, HostBridge, Topology

KINDS: tuple[tuple[str, str], ...] = (
    ("gpu", "GPU"),
    ("nic", "NIC"),
    ("nvme", "NVMe"),
    ("accelerator", "ACC"),
    ("usb", "USB"),
    ("sata", "SATA"),
    ("audio", "AUD"),
)
"""Kinds of device as selectors name them, and their short labels."""
PEER_KINDS = ("gpu", "nic", "nvme", "accelerator")
"""Kinds that talk to each other, and so are in the matrix from the start."""
_PORTS = {
    PortType.ROOT_PORT: "RP",
    PortType.UPSTREAM: "USP",
    PortType.DOWNSTREAM: "DSP",
    PortType.PCIE_TO_PCI_BRIDGE: "PCI",
    PortType.PCI_TO_PCIE_BRIDGE: "PCIe",
}
_PORT_WORDS = {
    "RP": "root port",
    "USP": "upstream port",
    "DSP": "downstream port",
    "PCI": "PCIe to PCI bridge",
    "PCIe": "PCI to PCIe bridge",
    "BR": "bridge",
}


class Link(NamedTuple):
    """A link as it runs, and as it could."""

    speed: str
    """``16 GT/s``."""
    width: int
    """Lanes."""
    best: str
    """``16 GT/s ×16`` where the link could do more than it does; else empty."""

    @property
    def text(self) -> str:
        """``16 GT/s ×8``."""
        return f"{self.speed} ×{self.width}"

    @property
    def rate(self) -> float:
        """GT/s of all lanes together."""
        return float(self.speed.split()[0]) * self.width


class Item(NamedTuple):
    """One function."""

    number: int
    """Its place in the inventory, from 0."""
    bdf: Bdf
    address: str
    """Without the domain where all functions are of domain 0."""
    kind: str
    """A name of :data:`KINDS`, ``bridge`` or ``other``."""
    class_name: str
    vendor: str
    device: str
    ids: str
    driver: str
    group: int
    recorded_group: int | None
    certain: bool
    """Whether the bytes that decide about the group are known."""
    numa_node: int | None
    host: int
    """Which of :attr:`Inventory.hosts` it hangs from."""
    parent: int | None
    """The bridge above; for a VF that of its PF; ``None`` on a root bus."""
    physfn: int | None
    """The PF of a VF."""
    port: str
    """``RP``, ``USP``, ``DSP``, ``BR`` …; empty for what is no bridge."""
    acs_control: int | None
    """Enabled ACS bits; ``None`` without the capability."""
    acs_known: bool
    """Whether the bytes that tell of ACS are known."""
    link: Link | None

    @property
    def redirects(self) -> bool:
        """Whether Linux's P2P rules see an ACS redirect in it."""
        return self.acs_control is not None and bool(self.acs_control & REDIRECTING)

    @property
    def name(self) -> str:
        """What people call it: the class stands in for a device that nobody knows by name."""
        return f"{self.vendor} {self.device or self.class_name}".strip()

    @property
    def acs_text(self) -> str:
        """``no ACS``, ``ACS off``, or the bits by their usual letters: ``ACS RR CR UF``."""
        if not self.acs_known:
            return "ACS not known"
        if self.acs_control is None:
            return "no ACS"
        letters = ("SV", "TB", "RR", "CR", "UF", "EC", "DT")
        on = [name for bit, name in enumerate(letters) if self.acs_control >> bit & 1]
        return "ACS " + (" ".join(on) or "off")

    @property
    def role(self) -> str:
        """The kind of port in words, or the class."""
        return _PORT_WORDS.get(self.port, self.class_name) if self.port else self.class_name

    @property
    def title(self) -> str:
        """Everything in a few lines, for a tooltip."""
        lines = [f"{self.bdf} {self.role}", f"{self.name} [{self.ids}]"]
        certain = "" if self.certain else ", uncertain"
        lines.append(f"group {self.group}{certain}")
        lines.append(f"driver {self.driver}" if self.driver else "no driver")
        if self.numa_node is not None:
            lines.append(f"NUMA node {self.numa_node}")
        if self.link is not None:
            best = f", could be {self.link.best}" if self.link.best else ""
            lines.append(self.link.text + best)
        if self.port or self.acs_control is not None:
            lines.append(self.acs_text)
        return "\n".join(lines)


class HostItem(NamedTuple):
    """One root complex, as Linux counts them: by root bus."""

    name: str
    """``pci0000:00``."""
    domain: int
    bus: int
    numa_node: int | None


class GroupItem(NamedTuple):
    """One predicted IOMMU group."""

    id: int
    members: tuple[int, ...]
    """Numbers of :class:`Item`."""
    why: tuple[str, ...]
    """A sentence a member, in the order of members."""
    certain: bool


class Inventory(NamedTuple):
    """A machine as the pictures see it."""

    items: tuple[Item, ...]
    hosts: tuple[HostItem, ...]
    groups: tuple[GroupItem, ...]
    leaks: tuple[str, ...]
    """Where groups promise more than the hardware keeps, a sentence each."""

    def endpoints(self) -> tuple[Item, ...]:
        """What is no bridge."""
        return tuple(item for item in self.items if not item.port)


def collect(topology: Topology) -> Inventory:
    """Look at every function of ``topology`` once; never raises for odd bytes."""
    return _Collector(topology).run()


class _Collector:
    def __init__(self, topology: Topology) -> None:
        from vfiokit.pci import ids

        self.topology = topology
        self.grouping: Grouping = predict(topology)
        self.uncertain = frozenset(self.grouping.uncertain)
        self.numbers = {function.bdf: number for number, function in enumerate(topology)}
        self.hosts = {bridge: index for index, bridge in enumerate(topology.host_bridges)}
        self.named = ids.names(
            (function.identity.vendor_id, function.identity.device_id)
            for function in topology
            if "device" not in function.recorded.names
        )
        self.short = all(function.bdf.domain == 0 for function in topology)

    def run(self) -> Inventory:
        items = tuple(self._item(function) for function in self.topology)
        return Inventory(
            items,
            tuple(self._host(bridge, items) for bridge in self.hosts),
            tuple(self._groups(items)),
            tuple(leak.text() for leak in self.grouping.leaks(self.topology)),
        )

    def _item(self, function: Function) -> Item:
        identity, recorded = function.identity, function.recorded
        known = self.named.get((identity.vendor_id, identity.device_id))
        above = self.topology.upstream_bridge(function)
        address = str(function.bdf)
        return Item(
            number=self.numbers[function.bdf],
            bdf=function.bdf,
            address=address.partition(":")[2] if self.short else address,
            kind=_kind(function),
            class_name=recorded.names.get("class") or _class_name(identity.class_code),
            vendor=recorded.names.get("vendor") or (known.vendor if known else None) or "",
            device=recorded.names.get("device") or (known.device if known else None) or "",
            ids=f"{identity.vendor_id:04x}:{identity.device_id:04x}",
            driver=recorded.driver or "",
            group=self.grouping.of(function.bdf).id,
            recorded_group=recorded.iommu_group,
            certain=self._is_certain(function),
            numa_node=recorded.numa_node,
            host=self._host_of(function),
            parent=self.numbers[above.bdf] if above is not None else None,
            physfn=self.numbers.get(function.physfn) if function.physfn else None,
            port=_port(function),
            acs_control=int(function.acs_control) if function.acs is not None else None,
            acs_known=redirect(function) is not Redirect.UNKNOWN,
            link=_link(function),
        )

    def _is_certain(self, function: Function) -> bool:
        if not self.uncertain:
            return True
        deciding = {function.bdf, *(port.bdf for port in self.topology.path_to_root(function))}
        return self.uncertain.isdisjoint(deciding)

    def _host_of(self, function: Function) -> int:
        bridge = self.topology.host_bridge_of(function)
        # A bus that nothing claims, below bridges that loop: it still has to hang somewhere.
        return self.hosts.setdefault(bridge, len(self.hosts))

    def _host(self, bridge: HostBridge, items: tuple[Item, ...]) -> HostItem:
        mine = self.hosts[bridge]
        nodes = [item.numa_node for item in items if item.host == mine]
        known = [node for node in nodes if node is not None and node >= 0]
        node = max(set(known), key=known.count) if known else None
        return HostItem(str(bridge), bridge.domain, bridge.bus, node)

    def _groups(self, items: tuple[Item, ...]) -> list[GroupItem]:
        found: list[GroupItem] = []
        for group in self.grouping.groups:
            members = tuple(self.numbers[bdf] for bdf in group.members)
            found.append(
                GroupItem(
                    group.id,
                    members,
                    tuple(self.grouping.why(bdf).text() for bdf in group.members),
                    all(items[number].certain for number in members),
                )
            )
        return found


def _class_name(class_code: int) -> str:
    from vfiokit.pci import ids

    return ids.class_name(class_code)


def _kind(function: Function) -> str:
    if function.is_bridge:
        return "bridge"
    for kind, _label in KINDS:
        if is_class(function, kind):
            return kind
    return "other"


def _port(function: Function) -> str:
    if not function.is_bridge:
        return ""
    return _PORTS.get(function.port_type, "BR") if function.port_type is not None else "BR"


def _link(function: Function) -> Link | None:
    """The link as the kernel recorded it; the best known where it did not record the present."""
    recorded = function.recorded
    speed, width = recorded.current_link_speed, recorded.current_link_width
    best_speed, best_width = recorded.max_link_speed, recorded.max_link_width
    if speed is None and width is None:
        speed, width = best_speed, best_width
    if not speed or not width or not speed[0].isdigit():
        return None
    text = _speed(speed)
    best = f"{_speed(best_speed)} ×{best_width}" if best_speed and best_width else ""
    return Link(text, width, "" if best == f"{text} ×{width}" else best)


def _speed(text: str) -> str:
    """``8.0 GT/s PCIe`` as ``8 GT/s``."""
    number = text.split()[0]
    try:
        return f"{float(number):g} GT/s"
    except ValueError:
        return "0 GT/s"
