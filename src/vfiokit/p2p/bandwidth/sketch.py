"""A machine that is only described: a text of :mod:`vfiokit.pci.blueprint` as registers.

The links of the ports have the speed and width that the text gives them; a port without takes
those of the port above it, a root port 32 GT/s x16. A port with ACS redirects, as Linux leaves it
when an IOMMU is in use; one without does not. Every host bridge is a socket of its own. What kind
an endpoint is plays no role, except that a name that starts with ``gpu`` or ``nic`` makes it one.
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.p2p.bandwidth.link import SPEED_CODES
from vfiokit.p2p.guest_topology import ENABLED, PORT_ACS
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import (
    Blueprint,
    Bridge,
    BridgeKind,
    DownstreamPort,
    Endpoint,
    HostBridge,
    Node,
    RootPort,
    Slot,
    Switch,
    children,
)
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Recorded, Topology

TOP_LINK = (32.0, 16)
"""GT/s and lanes of a root port whose text says nothing."""

_CLASSES = {"gpu": 0x030200, "nic": 0x020000, "nvme": 0x010802}
_BRIDGE_CLASS, _OTHER_CLASS = 0x060400, 0xFF0000
_VENDOR, _DEVICE = 0x1AF4, 0x1000
_EXPRESS_AT = 0x40
_DEVICE_CAPABILITIES = 0x22  # 512 bytes of payload, extended tags
_DEVICE_CONTROL = 0x2120  # 256 bytes of payload, 512-byte reads, extended tags

_Rate = tuple[float, int]


class Sketch(NamedTuple):
    """A described machine."""

    topology: Topology
    names: dict[str, Bdf]
    """Addresses by the names of the text; a switch's name is its upstream port's."""


def sketch(blueprint: Blueprint | str) -> Sketch:
    """Make registers of a description.

    Raises :class:`~vfiokit.pci.blueprint.BlueprintError` for a text that is none.
    """
    plan = Blueprint.parse(blueprint) if isinstance(blueprint, str) else blueprint
    places = {name: place.bdf for name, place in plan.places().items()}
    drawer = _Drawer(places)
    for socket, bridge in enumerate(plan.host_bridges):
        drawer.draw_below(bridge, TOP_LINK, socket)
    roots = [(0, bridge.bus) for bridge in plan.host_bridges]
    return Sketch(Topology(drawer.functions, roots), places)


class _Drawer:
    def __init__(self, places: dict[str, Bdf]) -> None:
        self._places = places
        self.functions: list[Function] = []

    def draw_below(self, node: Node, link: _Rate, socket: int) -> None:
        for child in children(node):
            self._draw(child, link, socket, root=isinstance(node, HostBridge))

    def _draw(self, node: Node, link: _Rate, socket: int, *, root: bool) -> None:
        if isinstance(node, Slot):
            for function in node.functions:
                self._draw(function, link, socket, root=root)
            return
        kind: PortType | None = None
        if isinstance(node, RootPort | DownstreamPort):
            kind = PortType.ROOT_PORT if isinstance(node, RootPort) else PortType.DOWNSTREAM
            above = TOP_LINK if isinstance(node, RootPort) else link
            link = (float(node.speed) if node.speed else above[0], node.width or above[1])
        elif isinstance(node, Switch):
            kind = PortType.UPSTREAM
        elif isinstance(node, Bridge):
            kind = PortType.PCIE_TO_PCI_BRIDGE if node.kind is BridgeKind.PCIE_TO_PCI else None
        else:
            kind = PortType.RC_INTEGRATED_ENDPOINT if root else PortType.ENDPOINT
        acs = isinstance(node, RootPort | DownstreamPort) and node.acs
        raw = self._registers(node, kind, link, acs=acs)
        self.functions.append(
            Function(self._places[node.name], ConfigSpace(raw), recorded=Recorded(numa_node=socket))
        )
        self.draw_below(node, link, socket)

    def _registers(self, node: Node, kind: PortType | None, link: _Rate, *, acs: bool) -> bytes:
        raw = bytearray(4096 if kind is not None else 256)

        def put(offset: int, width: int, value: int) -> None:
            raw[offset : offset + width] = value.to_bytes(width, "little")

        put(0x00, 2, _VENDOR)
        put(0x02, 2, _DEVICE)
        put(0x09, 3, _class_code(node))
        if not isinstance(node, Endpoint):
            put(0x0E, 1, 1)
            put(0x18, 1, self._places[node.name].bus)
            put(0x19, 1, self._bus_below(node))
            put(0x1A, 1, max([self._bus_below(node), *self._buses_below(node)]))
        if kind is not None:
            put(0x06, 1, 0x10)
            put(0x34, 1, _EXPRESS_AT)
            status = link[1] << 4 | _code(link[0])
            for offset, width, value in (
                (0x00, 2, 0x10),
                (0x02, 2, 2 | kind << 4),
                (0x04, 4, _DEVICE_CAPABILITIES),
                (0x08, 2, _DEVICE_CONTROL),
                (0x0C, 4, status),
                (0x12, 2, status),
            ):
                put(_EXPRESS_AT + offset, width, value)
        if isinstance(node, Endpoint) and kind is not None:
            put(0x100, 4, 0x0001_000F)  # ATS, not enabled
        if acs:
            put(0x100, 4, 0x0001_000D)
            put(0x104, 2, int(PORT_ACS))
            put(0x106, 2, int(ENABLED))
        return bytes(raw)

    def _bus_below(self, node: Node) -> int:
        return min(self._buses_below(node), default=0)

    def _buses_below(self, node: Node) -> list[int]:
        buses: list[int] = []
        for child in children(node):
            if not isinstance(child, Slot):
                buses.append(self._places[child.name].bus)
            buses += self._buses_below(child)
        return buses


def _class_code(node: Node) -> int:
    if not isinstance(node, Endpoint):
        return _BRIDGE_CLASS
    for word in (node.name, str(node.model)):
        for prefix, code in _CLASSES.items():
            if word.startswith(prefix):
                return code
    return _OTHER_CLASS


def _code(speed: float) -> int:
    return next(code for code, known in SPEED_CODES.items() if known == speed)
