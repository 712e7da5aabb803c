"""The guest's PCI: configuration space by ports and by memory, buses, bridges' windows.

Source: PCI Local Bus Specification 3.0 §3.2.2.3.2 (ports 0xcf8 and 0xcfc), PCI Express Base
Specification 6.0 §7.2.2 (ECAM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from vfiokit.errors import UsageError
from vfiokit.pci.address import Bdf
from vfiokit.vmm.bypass import Bypass
from vfiokit.vmm.guest_function import GuestFunction, Placed
from vfiokit.vmm.trap_map import Access, Strength, TrapMap, Wish

ADDRESS_PORT = 0xCF8
DATA_PORT = 0xCFC
ECAM_BASE = 0xE000_0000
"""Where configuration space lies in memory until the guest moves it."""
ECAM_SIZE = 256 << 20
_ENABLE = 1 << 31


class Clip(NamedTuple):
    """What a bridge lets through, as half-open ranges."""

    memory: tuple[tuple[int, int], ...]
    ports: tuple[tuple[int, int], ...]

    def allowed(self, start: int, end: int, *, memory: bool) -> bool:
        """Whether all of ``[start, end)`` passes."""
        return any(
            low <= start and end <= high for low, high in (self.memory if memory else self.ports)
        )


class InterruptHost(Protocol):
    """Where functions send their interrupts, and how they hear of eventfds: the machine."""

    bypass: Bypass | None
    """What lets a device's eventfds interrupt the guest by themselves, where there is it."""

    def message(self, function: GuestFunction, address: int, data: int) -> None:
        """A message of MSI or MSI-X: a 4-byte write of ``data`` to ``address``."""
        ...

    def line(self, function: GuestFunction, level: bool) -> None:
        """The interrupt pin of ``function`` changed."""
        ...

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` is readable and the machine looks."""
        ...

    def unwatch(self, fd: int) -> None:
        """Stop that."""
        ...


class Overlay(Protocol):
    """Adds wishes to those of a function: the policy's."""

    def __call__(self, function: GuestFunction, placed: Placed) -> Iterator[Wish]:
        """The wishes for one BAR."""
        ...


class Segment:
    """The functions on one bus."""

    def __init__(self, bridge: BridgeFunction | None) -> None:
        self.bridge = bridge
        """The port above; ``None`` for the root bus."""
        self.functions: dict[int, GuestFunction] = {}
        """By device and function number, as one byte."""


class BridgeFunction(GuestFunction):
    """A function with a bus below."""

    segment: Segment

    @property
    def secondary(self) -> int:
        """Number of the bus below."""
        raise NotImplementedError

    @property
    def subordinate(self) -> int:
        """Highest number below."""
        raise NotImplementedError

    def clip(self) -> Clip:
        """What of the addresses reaches the bus below."""
        raise NotImplementedError


class PciBus:
    """The host bridge of a guest with all that is below it."""

    def __init__(self, traps: TrapMap, ports: TrapMap, overlay: Overlay | None = None) -> None:
        self._traps = traps
        self._ports = ports
        self._overlay = overlay
        self._refreshing = False
        self.host: InterruptHost | None = None
        """Set by the machine."""
        self.root = Segment(None)
        self.config_address = 0
        """What the guest wrote to port 0xcf8."""
        self.on_eject: Callable[[GuestFunction], None] = self.remove
        """Called when the guest let go of a function."""
        self.observers: list[Callable[[Bdf, int, int, bool, int], None]] = []
        """Called after every access of configuration space: function, offset, width, write,
        value."""
        address, data = _AddressPort(self), _DataPort(self)
        platform = Strength.PLATFORM
        ports.ask(
            "pci-conf",
            [
                Wish(ADDRESS_PORT, 4, Access.TRAP, platform, "pci-conf-idx", address, 0, "config"),
                Wish(DATA_PORT, 4, Access.TRAP, platform, "pci-conf-data", data, 0, "config"),
            ],
        )
        self.place_ecam(ECAM_BASE)

    def place_ecam(self, base: int | None, size: int = ECAM_SIZE) -> None:
        """Show configuration space in memory at ``base``; ``None`` takes it away."""
        wishes = []
        if base is not None:
            name, handler = "pcie-mmcfg-mmio", _Ecam(self)
            wishes = [
                Wish(base, size, Access.TRAP, Strength.PLATFORM, name, handler, counter="config")
            ]
        self._traps.ask("ecam", wishes)

    # -- functions ----------------------------------------------------------------------------

    def segments(self) -> Iterator[Segment]:
        """Every bus, the root first."""
        waiting = [self.root]
        while waiting:
            segment = waiting.pop(0)
            yield segment
            waiting += [
                function.segment
                for function in segment.functions.values()
                if isinstance(function, BridgeFunction)
            ]

    def functions(self) -> Iterator[GuestFunction]:
        """Every function."""
        for segment in self.segments():
            yield from segment.functions.values()

    def add(self, function: GuestFunction, below: BridgeFunction | None = None) -> None:
        """Plug ``function`` in at its device and function number, below a port or on bus 0.

        Raises :class:`UsageError` when the place is taken.
        """
        segment = self.root if below is None else below.segment
        devfn = function.bdf.devfn
        if devfn in segment.functions:
            taken = segment.functions[devfn]
            raise UsageError(f"{taken!r} is at {devfn >> 3:02x}.{devfn & 7} already")
        segment.functions[devfn] = function
        function.bus = self
        function.added()
        self.refresh()

    def remove(self, function: GuestFunction) -> None:
        """Take ``function`` out; its place reads all ones from now on."""
        for segment in self.segments():
            if segment.functions.get(function.bdf.devfn) is function:
                del segment.functions[function.bdf.devfn]
                self._traps.ask(function, ())
                self._ports.ask(function, ())
                function.removed()
                function.bus = None
                return
        raise UsageError(f"{function!r} is not on this bus")

    def segment_of(self, function: GuestFunction) -> Segment:
        """The bus that ``function`` is on; :class:`UsageError` when it is on none."""
        for segment in self.segments():
            if segment.functions.get(function.bdf.devfn) is function:
                return segment
        raise UsageError(f"{function!r} is not on this bus")

    def find(self, bus: int, devfn: int) -> GuestFunction | None:
        """The function that a configuration request reaches, by the numbers of the bridges."""
        segment = self._segment(self.root, 0, bus)
        return None if segment is None else segment.functions.get(devfn)

    def guest_address(self, function: GuestFunction) -> Bdf:
        """Where the guest finds ``function`` with the bus numbers that it gave out."""
        bridge = self.segment_of(function).bridge
        bus = 0 if bridge is None else bridge.secondary
        return Bdf(0, bus, function.bdf.device, function.bdf.function)

    def _segment(self, segment: Segment, number: int, wanted: int) -> Segment | None:
        if number == wanted:
            return segment
        for function in segment.functions.values():
            if (
                isinstance(function, BridgeFunction)
                and 0 < function.secondary <= wanted <= function.subordinate
            ):
                return self._segment(function.segment, function.secondary, wanted)
        return None

    # -- configuration requests ---------------------------------------------------------------

    def config_read(self, bus: int, devfn: int, offset: int, width: int) -> int:
        """A configuration read; all ones where there is no function."""
        function = self.find(bus, devfn)
        value = (1 << 8 * width) - 1
        if function is not None:
            value = function.config.read(offset, width)
        for observer in self.observers:
            observer(Bdf(0, bus, devfn >> 3, devfn & 7), offset, width, False, value)
        return value

    def config_write(self, bus: int, devfn: int, offset: int, width: int, value: int) -> None:
        """A configuration write; lost where there is no function."""
        function = self.find(bus, devfn)
        if function is not None:
            function.config.write(offset, width, value)
        for observer in self.observers:
            observer(Bdf(0, bus, devfn >> 3, devfn & 7), offset, width, True, value)

    # -- decoding -----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Ask every function anew what it wants where, as far as the bridges above let it."""
        if self._refreshing:
            return
        self._refreshing = True
        try:
            for segment in tuple(self.segments()):
                clip = None if segment.bridge is None else segment.bridge.clip()
                for function in tuple(segment.functions.values()):
                    self._place(function, clip)
        finally:
            self._refreshing = False

    def _place(self, function: GuestFunction, clip: Clip | None) -> None:
        memory: list[Wish] = []
        ports: list[Wish] = []
        for placed in function.placed():
            start, end = placed.address, placed.address + placed.bar.size
            if clip is not None and not clip.allowed(start, end, memory=placed.bar.memory):
                continue
            wanted = ports if not placed.bar.memory else memory
            wanted += function.wishes(placed)
            if self._overlay is not None and placed.bar.memory:
                wanted += self._overlay(function, placed)
        self._traps.ask(function, memory)
        self._ports.ask(function, ports)


class _AddressPort:
    """Port 0xcf8: which register the data port means. Only whole dwords count."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, width: int) -> int:
        """The address that was written."""
        return self._bus.config_address >> 8 * offset & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """Another address."""
        if offset == 0 and width == 4:
            self._bus.config_address = value


class _DataPort:
    """Ports 0xcfc to 0xcff: the register chosen at 0xcf8."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, width: int) -> int:
        """The register; all ones while the enable bit is clear."""
        address = self._bus.config_address
        if not address & _ENABLE:
            return (1 << 8 * width) - 1
        register = (address & 0xFC) + offset
        return self._bus.config_read(address >> 16 & 0xFF, address >> 8 & 0xFF, register, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Set the register; lost while the enable bit is clear."""
        address = self._bus.config_address
        if address & _ENABLE:
            bus, devfn = address >> 16 & 0xFF, address >> 8 & 0xFF
            self._bus.config_write(bus, devfn, (address & 0xFC) + offset, width, value)


class _Ecam:
    """Configuration space in memory: bus ``[27:20]``, device, function, register ``[11:0]``."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, width: int) -> int:
        """One register."""
        return self._bus.config_read(
            offset >> 20 & 0xFF, offset >> 12 & 0xFF, offset & 0xFFF, width
        )

    def write(self, offset: int, width: int, value: int) -> None:
        """Set one register."""
        bus, devfn = offset >> 20 & 0xFF, offset >> 12 & 0xFF
        self._bus.config_write(bus, devfn, offset & 0xFFF, width, value)
