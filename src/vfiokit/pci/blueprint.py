"""A PCI topology as a value: what to build, before it is built.

One tree for everybody who builds machines: the software machine, the lab (QEMU) and tests. It has
a short text form, ``Blueprint.parse("rp0(sw acs(nvme:a cmb=16, nvme:b)), rp1(edu)")``; the grammar
is in :mod:`vfiokit.pci.blueprint_text`. Nodes are immutable, compare by value, and every one has
a name that is unique in its blueprint.

::

    Blueprint
    └── HostBridge                 the first is bus 0; more of them have buses of their own
        ├── RootPort               ACS on unless told otherwise
        │   └── one child: Endpoint, Slot, Switch or Bridge
        ├── Slot                   functions 0, 1, … of one device
        ├── Bridge                 conventional bus below: pcie-pci-bridge or pci-bridge
        └── Endpoint               below a host bridge: root-complex integrated
    Switch                         one upstream port, DownstreamPort children
    └── DownstreamPort             ACS off unless told otherwise; one child as RootPort
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from vfiokit.errors import UsageError
from vfiokit.pci.address import Bdf

MIB = 1 << 20

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

FIRST_DEVICE = 2
"""Lowest device number given out on the first root bus; 0 and 1 are the chipset's."""
LAST_DEVICE = 0x1C
"""Highest device number given out on a bus; 1d to 1f of the first root bus are the chipset's."""
MAX_FUNCTIONS = 8
_LAST_BUS = 0xFF

SPEEDS = ("2.5", "5", "8", "16", "32", "64")
"""Link speeds in GT/s (PCI Express Base Specification 6.0 §7.5.3.6)."""
WIDTHS = (1, 2, 4, 8, 12, 16, 32)
"""Link widths in lanes."""


class BlueprintError(UsageError, ValueError):
    """A topology that cannot be: bad text, bad nesting, no room for its buses."""


class Model(StrEnum):
    """What an endpoint is; the names are QEMU's."""

    EDU = "edu"
    NVME = "nvme"
    IGB = "igb"
    E1000E = "e1000e"
    VIRTIO_NET = "virtio-net"
    VIRTIO_BLK = "virtio-blk"
    PCI_TESTDEV = "pci-testdev"
    IVSHMEM = "ivshmem"


class BridgeKind(StrEnum):
    """Bridges to a conventional bus; the names are QEMU's."""

    PCIE_TO_PCI = "pcie-pci-bridge"
    PCI_TO_PCI = "pci-bridge"


class Ids(NamedTuple):
    """Vendor and device id where they differ from the model's own."""

    vendor: int
    device: int

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


DEFAULTS: dict[Model, dict[str, int]] = {
    Model.EDU: {"dma_bits": 28},
    Model.NVME: {"size": 64 * MIB, "cmb": 0, "vfs": 0},
    Model.IGB: {},
    Model.E1000E: {},
    Model.VIRTIO_NET: {},
    Model.VIRTIO_BLK: {"size": 64 * MIB},
    Model.PCI_TESTDEV: {"membar": 0},
    Model.IVSHMEM: {"size": MIB},
}
"""Options that each model takes, with their values when not given; sizes in bytes."""

SIZE_OPTIONS = frozenset({"size", "cmb", "membar"})
"""Options of :data:`DEFAULTS` that are sizes in bytes, a multiple of 4 KiB."""

CONVENTIONAL = frozenset({Model.EDU, Model.PCI_TESTDEV, Model.IVSHMEM})
"""Models without a PCI Express capability, wherever they sit."""

EXPRESS_ONLY = frozenset({Model.NVME, Model.IGB, Model.E1000E})
"""Models that cannot sit on a conventional bus."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A function with a model. An option left 0 takes the model's default."""

    model: Model
    name: str
    at: int | None = None
    """Device number on a root or conventional bus; ``None``: the next free one."""
    ids: Ids | None = None
    size: int = 0
    """Bytes of storage (nvme, virtio-blk) or shared memory (ivshmem)."""
    cmb: int = 0
    """Bytes of controller memory buffer (nvme)."""
    vfs: int = 0
    """Virtual functions that SR-IOV can enable (nvme; igb always has 7)."""
    membar: int = 0
    """Bytes of the memory BAR (pci-testdev)."""
    dma_bits: int = 0
    """Width of DMA addresses (edu)."""

    def __post_init__(self) -> None:
        allowed = DEFAULTS[self.model]
        for option in ("size", "cmb", "vfs", "membar", "dma_bits"):
            value = getattr(self, option)
            if option not in allowed:
                if value:
                    raise BlueprintError(f"{self.model} takes no {option}=")
                continue
            if not value:
                object.__setattr__(self, option, allowed[option])
            else:
                _check_option(f"{self.name}: {option}", option, value)


def _check_option(what: str, option: str, value: int) -> None:
    if option in SIZE_OPTIONS:
        if value < 0 or value % 4096:
            raise BlueprintError(f"{what}={value} is not a positive multiple of 4096 bytes")
        if option != "size" and value & (value - 1):
            raise BlueprintError(f"{what}={value:#x}: a BAR is a power of two")
    elif option == "dma_bits" and not 12 <= value <= 64:
        raise BlueprintError(f"{what}={value} is not between 12 and 64")
    elif option == "vfs" and not 1 <= value <= 127:
        raise BlueprintError(f"{what}={value} is not between 1 and 127")


@dataclass(frozen=True, slots=True)
class Slot:
    """A multifunction device: the children are its functions 0, 1, …"""

    name: str
    functions: tuple[Endpoint | RootPort, ...]
    at: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.functions) <= MAX_FUNCTIONS:
            raise BlueprintError(f"{self.name}: a slot holds 1 to {MAX_FUNCTIONS} functions")
        for function in self.functions:
            if function.at is not None:
                raise BlueprintError(f"{function.name}: at= belongs to the slot, {self.name}")


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge with a conventional bus below it."""

    kind: BridgeKind
    name: str
    items: tuple[Endpoint | Slot | Bridge, ...] = ()
    at: int | None = None

    def __post_init__(self) -> None:
        for item in self.items:
            if isinstance(item, Bridge) and item.kind is BridgeKind.PCIE_TO_PCI:
                raise BlueprintError(
                    f"{item.name}: a {item.kind} sits on PCI Express, not below {self.name}",
                    hint=f"use {BridgeKind.PCI_TO_PCI}",
                )
            for function in item.functions if isinstance(item, Slot) else (item,):
                if isinstance(function, RootPort):
                    raise BlueprintError(f"{function.name}: root ports sit below host bridges")
                if isinstance(function, Endpoint) and function.model in EXPRESS_ONLY:
                    raise BlueprintError(
                        f"{function.name}: {function.model} is a PCI Express function and "
                        f"cannot sit on the conventional bus below {self.name}"
                    )


@dataclass(frozen=True, slots=True)
class Switch:
    """A PCI Express switch: one upstream port and the downstream ports given."""

    name: str
    ports: tuple[DownstreamPort, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ports) > 32:
            raise BlueprintError(f"{self.name}: a switch has at most 32 downstream ports")


Child: TypeAlias = Endpoint | Slot | Switch | Bridge
"""What sits below a root or downstream port."""


@dataclass(frozen=True, slots=True)
class RootPort:
    """A root port and what its link leads to."""

    name: str
    child: Child | None = None
    acs: bool = True
    at: int | None = None
    ids: Ids | None = None
    speed: str = ""
    """Link speed in GT/s, of :data:`SPEEDS`; empty: the builder's choice."""
    width: int = 0
    """Lanes, of :data:`WIDTHS`; 0: the builder's choice."""

    def __post_init__(self) -> None:
        _check_port(self)


@dataclass(frozen=True, slots=True)
class DownstreamPort:
    """A downstream port of a switch and what its link leads to."""

    name: str
    child: Child | None = None
    acs: bool = False
    ids: Ids | None = None
    speed: str = ""
    width: int = 0

    def __post_init__(self) -> None:
        _check_port(self)


def _check_port(port: RootPort | DownstreamPort) -> None:
    if port.speed and port.speed not in SPEEDS:
        raise BlueprintError(f"{port.name}: speed={port.speed} is none of {', '.join(SPEEDS)}")
    if port.width and port.width not in WIDTHS:
        raise BlueprintError(f"{port.name}: width={port.width} is none of {WIDTHS}")
    child = port.child
    if isinstance(child, Bridge) and child.kind is BridgeKind.PCI_TO_PCI:
        raise BlueprintError(
            f"{child.name}: a {child.kind} cannot sit on a PCI Express link",
            hint=f"use {BridgeKind.PCIE_TO_PCI}",
        )
    inside = child.functions if isinstance(child, Slot) else (child,)
    for item in inside:
        if isinstance(item, RootPort):
            raise BlueprintError(f"{item.name}: root ports sit below host bridges")
        if getattr(item, "at", None) or getattr(child, "at", None):
            raise BlueprintError(f"{port.name}: what is below a port is always device 0, not at=")


@dataclass(frozen=True, slots=True)
class HostBridge:
    """A root bus of the machine."""

    name: str
    items: tuple[RootPort | Slot | Bridge | Endpoint, ...] = ()
    bus: int = 0
    ids: Ids | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.bus <= _LAST_BUS:
            raise BlueprintError(f"{self.name}: bus={self.bus:#x} is not between 0 and 0xff")


Node: TypeAlias = HostBridge | RootPort | DownstreamPort | Switch | Bridge | Slot | Endpoint


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below ``node``, in order."""
    match node:
        case HostBridge() | Bridge():
            return node.items
        case RootPort() | DownstreamPort():
            return (node.child,) if node.child is not None else ()
        case Switch():
            return node.ports
        case Slot():
            return node.functions
        case Endpoint():
            return ()


class Place(NamedTuple):
    """Where a function will be found."""

    bus: int
    """Root bus number of its host bridge."""
    path: tuple[tuple[int, int], ...]
    """Device and function numbers from the root bus down."""
    bdf: Bdf
    """The address that a depth-first firmware such as SeaBIOS gives it."""

    @property
    def selector(self) -> str:
        """A selector (:mod:`vfiokit.pci.selector`) that holds whatever the bus numbers are."""
        steps = "/".join(f"{device:02x}.{function}" for device, function in self.path)
        return f"pci0000:{self.bus:02x}/{steps}"


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A topology: host bridges, the first of which is on bus 0."""

    host_bridges: tuple[HostBridge, ...]

    def __post_init__(self) -> None:
        if not self.host_bridges or self.host_bridges[0].bus != 0:
            raise BlueprintError("the first host bridge of a blueprint is on bus 0")
        buses = [bridge.bus for bridge in self.host_bridges]
        if buses != sorted(set(buses)):
            raise BlueprintError("host bridges come in the order of their buses, all different")
        seen: set[str] = set()
        for node in self.walk():
            if not _NAME.fullmatch(node.name):
                raise BlueprintError(
                    f"{node.name!r} is no name: a letter, then letters, digits, '.', '_', '-'"
                )
            if node.name in seen:
                raise BlueprintError(f"two nodes are named {node.name!r}")
            seen.add(node.name)

    @classmethod
    def parse(cls, text: str) -> Blueprint:
        """Read the text form; :class:`BlueprintError` says where it is wrong."""
        from vfiokit.pci.blueprint_text import parse

        return parse(text)

    def __str__(self) -> str:
        from vfiokit.pci.blueprint_text import render

        return render(self)

    def walk(self) -> Iterator[Node]:
        """Every node, parents before children, in order."""
        pending: list[Node] = list(reversed(self.host_bridges))
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(children(node)))

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint in order."""
        return tuple(node for node in self.walk() if isinstance(node, Endpoint))

    def __getitem__(self, name: str) -> Node:
        """The node named so; :class:`KeyError` when there is none."""
        for node in self.walk():
            if node.name == name:
                return node
        raise KeyError(name)

    def places(self) -> dict[str, Place]:
        """Where each function will be, by name; a switch's name stands for its upstream port.

        Bus numbers are predicted as SeaBIOS gives them: depth first in the order of device and
        function numbers. Raises :class:`BlueprintError` when devices or buses do not fit.
        """
        found: dict[str, Place] = {}
        last = -1
        for bridge in self.host_bridges:
            if bridge.bus <= last:
                raise BlueprintError(
                    f"{bridge.name}: bus {bridge.bus:#x} is taken by an earlier host bridge, "
                    f"whose buses reach {last:#x}",
                    hint="give it a higher bus=",
                )
            last = _Survey(bridge.bus, found).root(bridge)
        return found


def device_numbers(
    parent: HostBridge | Bridge,
) -> list[tuple[int, RootPort | Slot | Bridge | Endpoint]]:
    """Device number of each item on the bus of ``parent``, ascending.

    ``at=`` is kept, the others take the lowest free numbers: from :data:`FIRST_DEVICE` on bus 0,
    from 1 elsewhere (slot 0 of a QEMU bridge has no hot-plug controller), to
    :data:`LAST_DEVICE`.
    """
    on_first_bus = isinstance(parent, HostBridge) and parent.bus == 0
    fixed = [item.at for item in parent.items if item.at is not None]
    for number in fixed:
        if fixed.count(number) > 1:
            raise BlueprintError(f"{parent.name}: two items at={number:x}")
        if not (1 if on_first_bus else 0) <= number <= 0x1F:
            raise BlueprintError(f"{parent.name}: at={number:x} is not a free device number")
    first = FIRST_DEVICE if on_first_bus else 1
    free = iter([number for number in range(first, LAST_DEVICE + 1) if number not in fixed])
    placed: list[tuple[int, RootPort | Slot | Bridge | Endpoint]] = []
    for item in parent.items:
        number = item.at if item.at is not None else next(free, -1)
        if number < 0:
            raise BlueprintError(
                f"{parent.name}: no device number left for {item.name}",
                hint="put some of the functions into one slot(...)",
            )
        placed.append((number, item))
    return sorted(placed, key=lambda pair: pair[0])


_Path: TypeAlias = tuple[tuple[int, int], ...]


class _Survey:
    """Walks the buses below one host bridge and numbers them."""

    def __init__(self, root: int, found: dict[str, Place]) -> None:
        self._root = root
        self._last = root
        self._found = found

    def root(self, bridge: HostBridge) -> int:
        """Place everything; the last bus number used."""
        self._bus(bridge, bridge.bus, ())
        return self._last

    def _bus(self, parent: HostBridge | Bridge, bus: int, above: _Path) -> None:
        for device, item in device_numbers(parent):
            self._device(item, bus, device, above)

    def _device(self, item: Node, bus: int, device: int, above: _Path) -> None:
        functions = item.functions if isinstance(item, Slot) else (item,)
        for number, function in enumerate(functions):
            self._function(function, bus, device, number, above)

    def _function(self, node: Node, bus: int, device: int, number: int, above: _Path) -> None:
        path = (*above, (device, number))
        bdf = Bdf(0, bus, device, number)
        self._found[node.name] = Place(self._root, path, bdf)
        if isinstance(node, Endpoint):
            return
        self._last += 1
        if self._last > _LAST_BUS:
            raise BlueprintError(f"{node.name}: the machine has more than 256 buses")
        below = self._last
        match node:
            case RootPort(child=child) | DownstreamPort(child=child) if child is not None:
                self._device(child, below, 0, path)
            case Switch():
                for index, port in enumerate(node.ports):
                    self._function(port, below, index, 0, path)
            case Bridge():
                self._bus(node, below, path)
