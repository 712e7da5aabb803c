"""What firmware does before a guest's own code: number buses, open windows, place BARs.

A guest that enumerates PCI by itself needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vfiokit.errors import UsageError
from vfiokit.vmm.guest_function import COMMAND, GuestBar, GuestFunction
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.root_port import RootPort

LOW_WINDOW = (0xF000_0000, 0xFEC0_0000)
HIGH_WINDOW = (1 << 38, 1 << 39)
PORT_WINDOW = (0xC000, 0x1_0000)
_MEMORY_GRANULE, _IO_GRANULE = 1 << 20, 0x1000


class _Room:
    """Addresses handed out from below, aligned to powers of two."""

    def __init__(self, window: tuple[int, int]) -> None:
        self.next, self.end = window

    def take(self, size: int, alignment: int) -> int | None:
        start = -(-self.next // alignment) * alignment
        if start + size > self.end:
            return None
        self.next = start + size
        return start

    def align(self, alignment: int) -> int:
        self.next = -(-self.next // alignment) * alignment
        return self.next


def place_everything(
    bus: PciBus,
    *,
    low: tuple[int, int] = LOW_WINDOW,
    high: tuple[int, int] = HIGH_WINDOW,
    command: int = 0x0006,
) -> None:
    """Give every BAR an address and switch decoding on, by ``command``; ROMs stay off.

    64-bit prefetchable BARs that the window ``low`` has no room for go to ``high``. Raises
    :class:`UsageError` when something fits nowhere.
    """
    rooms = _Room(low), _Room(high), _Room(PORT_WINDOW)
    number = 0
    for function in tuple(bus.root.functions.values()):
        if isinstance(function, RootPort):
            number += 1
            _place_below(function, number, rooms)
        _place(function, rooms)
    for function in bus.functions():
        if not isinstance(function, RootPort) and function.bars:
            wanted = command | (1 if any(not bar.memory for bar in function.bars.values()) else 0)
            function.config.write(COMMAND, 2, wanted)
    bus.refresh()


def _place_below(port: RootPort, number: int, rooms: tuple[_Room, _Room, _Room]) -> None:
    starts = (
        rooms[0].align(_MEMORY_GRANULE),
        rooms[1].align(_MEMORY_GRANULE),
        rooms[2].align(_IO_GRANULE),
    )
    for function in port.segment.functions.values():
        _place(function, rooms)
    ends = (
        rooms[0].align(_MEMORY_GRANULE),
        rooms[1].align(_MEMORY_GRANULE),
        rooms[2].align(_IO_GRANULE),
    )
    memory, prefetchable, ports = zip(starts, ends, strict=True)
    port.open_windows(number, memory, prefetchable, ports)


def _place(function: GuestFunction, rooms: tuple[_Room, _Room, _Room]) -> None:
    for bar in _by_size(function.bars.values()):
        address = _address(bar, rooms)
        if address is None:
            raise UsageError(
                f"{function.name}: no address is left for the {bar.size:#x} bytes of BAR "
                f"{bar.index}"
            )
        function.config.write(bar.register, 4, address & 0xFFFF_FFFF)
        if bar.wide:
            function.config.write(bar.register + 4, 4, address >> 32)


def _address(bar: GuestBar, rooms: tuple[_Room, _Room, _Room]) -> int | None:
    low, high, ports = rooms
    if not bar.memory:
        return ports.take(bar.size, bar.size)
    # A page for each, so that small BARs can be mapped.
    alignment = max(bar.size, 4096)
    address = low.take(bar.size, alignment)
    if address is None and bar.wide:
        return high.take(bar.size, alignment)
    return address


def _by_size(bars: Iterable[GuestBar]) -> Iterator[GuestBar]:
    yield from sorted(bars, key=lambda bar: -bar.size)
