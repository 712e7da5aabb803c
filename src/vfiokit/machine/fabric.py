"""The PCI fabric: what is plugged where, which addresses it answers, how requests travel.

The fabric believes the configuration bytes alone: windows, bus numbers, command registers and ACS
control are read live, and anything derived from them is dropped when one of them changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from vfiokit.errors import MachineError
from vfiokit.machine.clock import Clock
from vfiokit.machine.dma import DmaPort
from vfiokit.machine.function import COMMAND, Function, Unplugged
from vfiokit.machine.host_bridge import HostBridge as HostBridge
from vfiokit.machine.host_bridge import P2pPolicy as P2pPolicy
from vfiokit.machine.iommu.core import Iommu
from vfiokit.machine.iommu.remap import InterruptRemapper
from vfiokit.machine.irq import InterruptSystem, Pin
from vfiokit.machine.memory import PhysicalMemory
from vfiokit.machine.port import Bridge
from vfiokit.machine.routing import LocalRanges, Router
from vfiokit.machine.txn import Completion, Txn
from vfiokit.pci.address import Bdf

TRACE_LENGTH: Final = 1024


class Claim(NamedTuple):
    """Host physical addresses ``[start, end)`` that a BAR answers."""

    start: int
    end: int
    function: Function
    bar: int


@dataclass(slots=True)
class Counters:
    """What happened on the fabric since power-on."""

    reads: int = 0
    writes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    direct: int = 0
    """Requests delivered to a peer below the host bridge."""
    through_host_bridge: int = 0
    """Requests delivered to a peer by a host bridge."""
    redirected: int = 0
    """Decisions of ACS to send a request upstream that a peer claimed."""
    blocked: int = 0
    """Requests that a port or host bridge refused."""
    unclaimed: int = 0
    """Requests that nobody answered."""
    faults: int = 0
    """Requests that an IOMMU refused."""
    interrupts: int = 0
    """Message interrupts that reached the root complex."""

    def as_dict(self) -> dict[str, int]:
        """Name and value of every counter."""
        return asdict(self)


class Fabric:
    """Host bridges, functions and the wires between them."""

    def __init__(self, memory: PhysicalMemory, clock: Clock | None = None) -> None:
        self.memory = memory
        self.clock = clock or Clock()
        self.interrupts = InterruptSystem(self)
        self.functions: dict[Bdf, Function] = {}
        self.host_bridges: dict[tuple[int, int], HostBridge] = {}
        self.counters = Counters()
        self.trace: deque[Txn] = deque(maxlen=TRACE_LENGTH)
        """The last transactions, oldest first, while :attr:`trace_enabled`."""
        self.trace_enabled = False
        self.epoch = 0
        """Grows whenever a configuration change may alter routing."""
        self._router = Router(self)
        self._parents: dict[Bdf, Bridge | None] = {}
        self._roots: dict[Bdf, HostBridge] = {}
        self._segments: dict[Bdf | tuple[int, int], list[Function]] = {}
        self._decoded = -1
        self._claims: list[Claim] = []
        self._starts: list[int] = []

    # -- building -----------------------------------------------------------------------------

    def add_host_bridge(
        self,
        domain: int = 0,
        bus: int = 0,
        *,
        iommu: Iommu | None = None,
        p2p: P2pPolicy = P2pPolicy.ALLOWED,
    ) -> HostBridge:
        """A host bridge whose root bus is ``bus`` of ``domain``; ``iommu`` serves all below it."""
        if (domain, bus) in self.host_bridges:
            raise MachineError(f"there is a host bridge pci{domain:04x}:{bus:02x} already")
        made = HostBridge(domain, bus, iommu, p2p)
        self.host_bridges[domain, bus] = made
        return made

    def plug(self, function: Function, bus: int | None = None) -> Function:
        """Connect ``function`` to the bus of its address and give it DMA, INTx and the clock.

        ``bus`` names the bus it hangs on where that differs: the virtual buses of SR-IOV. A VF
        hangs where its PF does. Bridges come before what is below them. Raises
        :class:`MachineError` when the address is taken or no bridge leads to the bus.
        """
        bdf = function.bdf
        if bdf in self.functions:
            raise MachineError(f"there is a function {bdf} already")
        parent, root = self._place(function, bdf.bus if bus is None else bus)
        self.functions[bdf] = function
        self._parents[bdf], self._roots[bdf] = parent, root
        segment = self._segments.setdefault(self._segment_key(bdf), [])
        segment.append(function)
        segment.sort(key=lambda item: item.bdf)
        pin = Pin(self.interrupts, function)
        function.dma, function.intx, function.clock = DmaPort(self, function), pin, self.clock
        function.on_config_change = self._changed
        function.config.watch(COMMAND, 2, lambda _offset, _width: pin.evaluate(), hardware=True)
        if isinstance(function, Bridge):
            function.below = lambda: self.below(function)
        self.epoch += 1
        return function

    def unplug(self, bdf: Bdf) -> Function:
        """Take a function out, with everything below it; it can do no DMA from then on."""
        function = self._known(bdf)
        virtual = [item for item in self.functions.values() if item.physfn == bdf]
        for other in (*virtual, *self.children(function)):
            if other.bdf in self.functions:
                self.unplug(other.bdf)
        function.intx.set(False)
        self._segments[self._segment_key(bdf)].remove(function)
        del self.functions[bdf], self._parents[bdf], self._roots[bdf]
        function.dma = function.intx = Unplugged()
        function.on_config_change = None
        if isinstance(function, Bridge):
            function.below = tuple
        self.epoch += 1
        return function

    # -- topology -----------------------------------------------------------------------------

    def function_at(self, bdf: Bdf) -> Function | None:
        """The function plugged at an address."""
        return self.functions.get(bdf)

    def parent(self, function: Function) -> Bridge | None:
        """The bridge right above; ``None`` on a root bus."""
        return self._parents[function.bdf]

    def host_bridge_of(self, function: Function) -> HostBridge:
        """The host bridge whose hierarchy ``function`` is in."""
        return self._roots[function.bdf]

    def root_path(self, function: Function) -> tuple[Bridge, ...]:
        """Bridges above ``function``, nearest first."""
        path: list[Bridge] = []
        bridge = self._parents.get(function.bdf)
        while bridge is not None:
            path.append(bridge)
            bridge = self._parents[bridge.bdf]
        return tuple(path)

    def siblings(self, function: Function) -> list[Function]:
        """Everything on the same bus, itself included, in address order."""
        return self._segments[self._segment_key(function.bdf)]

    def children(self, bridge: Function) -> list[Function]:
        """Everything directly below a bridge."""
        return self._segments.get(bridge.bdf, [])

    def root_functions(self, bridge: HostBridge) -> list[Function]:
        """Everything on the root bus of a host bridge, in address order."""
        return self._segments.get((bridge.domain, bridge.bus), [])

    def below(self, function: Function) -> Iterator[Function]:
        """Everything below, nearest first."""
        for child in self.children(function):
            yield child
            yield from self.below(child)

    def remapper_of(self, requester_id: int, domain: int = 0) -> InterruptRemapper | None:
        """The interrupt remapping hardware that sees the messages of a requester."""
        iommu = self.iommu_of(requester_id, domain)
        return None if iommu is None else iommu.remapper

    def iommu_of(self, requester_id: int, domain: int = 0) -> Iommu | None:
        """The IOMMU that sees the requests of a requester, aliases of bridges included."""
        function = self.functions.get(Bdf.from_requester_id(requester_id, domain))
        if function is not None:
            return self._roots[function.bdf].iommu
        for bridge in self.functions.values():
            if (
                isinstance(bridge, Bridge)
                and bridge.bdf.domain == domain
                and bridge.secondary == requester_id >> 8
            ):
                return self._roots[bridge.bdf].iommu
        root = self.host_bridges.get((domain, requester_id >> 8))
        return None if root is None else root.iommu

    def wire_id(self, requester_id: int, domain: int = 0) -> int:
        """The requester ID that reaches the root complex: bridges to PCIe put their own there."""
        function = self.functions.get(Bdf.from_requester_id(requester_id, domain))
        return requester_id if function is None else self._router.wire_id(function)

    # -- configuration ------------------------------------------------------------------------

    def reachable(self, function: Function) -> bool:
        """Whether configuration requests get there: every bridge above covers its bus."""
        return all(
            bridge.secondary <= function.bdf.bus <= bridge.subordinate and bridge.secondary
            for bridge in self.root_path(function)
        )

    def config_read(self, bdf: Bdf, offset: int, width: int) -> int:
        """A configuration read by address; all ones where nothing answers."""
        function = self.functions.get(bdf)
        if function is None or not self.reachable(function):
            return (1 << 8 * width) - 1
        return function.config_read(offset, width)

    def config_write(self, bdf: Bdf, offset: int, width: int, value: int) -> None:
        """A configuration write by address; dropped where nothing answers."""
        function = self.functions.get(bdf)
        if function is not None and self.reachable(function):
            function.config_write(offset, width, value)

    # -- decoding -----------------------------------------------------------------------------

    def decode(self, hpa: int) -> Claim | None:
        """The BAR that answers ``hpa`` when it is asked from the top."""
        claims = self._decode_map()
        at = bisect_right(self._starts, hpa) - 1
        return claims[at] if at >= 0 and hpa < claims[at].end else None

    def next_claim(self, hpa: int) -> int:
        """Start of the first BAR above ``hpa``; a very large number when there is none."""
        self._decode_map()
        at = bisect_right(self._starts, hpa)
        return self._starts[at] if at < len(self._starts) else 1 << 64

    def bar_claims(self, function: Function) -> list[Claim]:
        """The memory BARs of ``function`` that decode now. A BAR at 0 is not programmed."""
        if not function.bars or not function.memory_enabled:
            return []
        return [
            Claim(start, start + bar.size, function, index)
            for index, bar in function.bars.items()
            if bar.memory and (start := function.bar_address(index))
        ]

    def local_ranges(self, function: Function) -> LocalRanges:
        """Ranges that something below the host bridge may claim from ``function``'s requests.

        The interrupt range is among them: it never takes the plain way to memory.
        """
        return self._router.local_ranges(function)

    def cpu_read(self, hpa: int, width: int) -> int:
        """A load by a processor: RAM, or a BAR through the windows above it; all ones elsewhere."""
        if self.memory.contains(hpa, width):
            return int.from_bytes(self.memory.read(hpa, width), "little")
        claim = self.decode(hpa)
        if claim is None:
            return (1 << 8 * width) - 1
        return claim.function.bar_read(claim.bar, hpa - claim.start, width)

    def cpu_write(self, hpa: int, width: int, value: int) -> None:
        """A store by a processor; dropped where nothing answers."""
        if self.memory.contains(hpa, width):
            self.memory.write(hpa, value.to_bytes(width, "little"))
            return
        claim = self.decode(hpa)
        if claim is not None:
            claim.function.bar_write(claim.bar, hpa - claim.start, width, value)

    # -- requests -----------------------------------------------------------------------------

    def route(self, txn: Txn, sender: Function | None = None) -> Completion:
        """Carry out a request of a device, recording every hop in ``txn.path``.

        ``sender`` is where it enters the fabric: the function whose requester ID it carries,
        unless that ID is forged.

        A read fills ``txn.data`` (a writable buffer, made when it is ``None``). Writes are posted:
        their completion tells the caller what the device never learns.
        """
        return self._router.route(txn, sender)

    def dma_port(self, function: Function) -> DmaPort:
        """How ``function`` reaches memory and peers."""
        port = function.dma
        if not isinstance(port, DmaPort):
            raise MachineError(f"{function.bdf} is not plugged in")
        return port

    def route_from_root(self, function: Function, txn: Txn) -> Completion:
        """Finish a request of ``function`` whose path, from :meth:`probe`, reached the root."""
        return self._router.route_from_root(function, txn)

    def probe(self, function: Function) -> Txn | None:
        """A request that no peer claims, climbed to the host bridge but not carried out.

        ``None`` if a port refuses it on the way.
        """
        return self._router.dry_climb(function)

    # -- inside -------------------------------------------------------------------------------

    def _changed(self, function: Function) -> None:
        del function
        self.epoch += 1

    def _known(self, bdf: Bdf) -> Function:
        function = self.functions.get(bdf)
        if function is None:
            raise MachineError(f"there is no function {bdf} in this machine")
        return function

    def _segment_key(self, bdf: Bdf) -> Bdf | tuple[int, int]:
        parent = self._parents[bdf]
        if parent is not None:
            return parent.bdf
        root = self._roots[bdf]
        return root.domain, root.bus

    def _place(self, function: Function, bus: int) -> tuple[Bridge | None, HostBridge]:
        domain = function.bdf.domain
        if function.physfn is not None:
            physical = self._known(function.physfn)
            return self._parents[physical.bdf], self._roots[physical.bdf]
        root = self.host_bridges.get((domain, bus))
        if root is not None:
            return None, root
        for bridge in self.functions.values():
            if (
                isinstance(bridge, Bridge)
                and bridge.bdf.domain == domain
                and bridge.secondary == bus
            ):
                return bridge, self._roots[bridge.bdf]
        raise MachineError(
            f"nothing leads to bus {bus:02x} of domain {domain:04x}, where {function.bdf} sits",
            hint="add its host bridge first, or the bridge whose secondary bus it is",
        )

    def _decode_map(self) -> list[Claim]:
        if self._decoded != self.epoch:
            self._claims = sorted(
                self._reachable_claims(self.functions.values()), key=lambda claim: claim.start
            )
            self._starts = [claim.start for claim in self._claims]
            self._decoded = self.epoch
        return self._claims

    def _reachable_claims(self, functions: Iterable[Function]) -> Iterator[Claim]:
        for function in functions:
            path = self.root_path(function)
            for claim in self.bar_claims(function):
                if all(
                    bridge.claims(claim.start) and bridge.claims(claim.end - 1) for bridge in path
                ):
                    yield claim
