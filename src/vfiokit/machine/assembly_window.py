"""Addresses for BARs and bridge windows, as firmware gives them to a machine that comes up.

Bottom-up every bridge learns how much it needs, top-down it is told where: what needs the largest
alignment first, so that everything is naturally aligned and little is wasted.
Source: PCI-to-PCI Bridge Architecture Specification 1.2 §3.2.5 (granularity of windows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.port import Bridge
from vfiokit.pci.blueprint import BlueprintError

LOW: Final = (0xC000_0000, 0xFEC0_0000)
"""Addresses for devices below 4 GiB, ``[start, end)``: up to the interrupt controllers."""
PORTS: Final = (0x1000, 0x1_0000)
"""I/O ports for devices."""
_IO_WINDOW: Final = 0x1C
_IO_GRANULARITY: Final = 0x1000
_MEMORY_GRANULARITY: Final = 0x10_0000


class Space(Enum):
    """The three kinds of window that a bridge has."""

    IO = "I/O ports"
    MEMORY = "memory"
    PREFETCH = "prefetchable memory"


@dataclass(slots=True)
class Claim:
    """``size`` bytes that want a place; ``put`` is told where."""

    size: int
    alignment: int
    put: Callable[[int], None]


@dataclass(slots=True)
class Need:
    """What a bus, or everything below a bridge, asks for in each space."""

    claims: dict[Space, list[Claim]] = field(default_factory=lambda: {each: [] for each in Space})

    def add(self, space: Space, claim: Claim) -> None:
        """One more range."""
        self.claims[space].append(claim)

    def extent(self, space: Space, granularity: int = 1) -> tuple[int, int]:
        """Bytes and alignment of a window that holds all of it; 0 bytes when there is nothing."""
        end = _pack(0, self.claims[space], put=False)
        alignment = max((claim.alignment for claim in self.claims[space]), default=1)
        return -(-end // granularity) * granularity, max(alignment, granularity)

    def place(self, space: Space, start: int) -> None:
        """Give everything its place from ``start`` on."""
        _pack(start, self.claims[space], put=True)


def _pack(start: int, claims: Iterable[Claim], *, put: bool) -> int:
    """Where the last claim ends when they are laid from ``start`` on."""
    at = start
    for claim in sorted(claims, key=lambda claim: (-claim.alignment, -claim.size)):
        at = -(-at // claim.alignment) * claim.alignment
        if put:
            claim.put(at)
        at += claim.size
    return at


def function_need(function: Function, need: Need, virtual: Mapping[int, tuple[int, int]]) -> None:
    """Ask for the BARs of ``function``.

    ``virtual`` are its virtual functions' BARs: offset of the register, ``(size, count)``.
    """
    for bar in function.bars.values():
        space = Space.IO
        if bar.memory:
            space = Space.PREFETCH if bar.prefetchable and bar.wide else Space.MEMORY
        need.add(space, Claim(bar.size, bar.size, _bar_writer(function, bar)))
    for offset, (size, count) in virtual.items():
        prefetchable = bool(function.config.read(offset, 1) & 8)
        space = Space.PREFETCH if prefetchable else Space.MEMORY
        need.add(space, Claim(size * count, size, _register_writer(function, offset)))


def _bar_writer(function: Function, bar: BarModel) -> Callable[[int], None]:
    def put(start: int) -> None:
        at = 0x10 + 4 * bar.index
        function.config_write(at, 4, start & 0xFFFF_FFFF)
        if bar.wide:
            function.config_write(at + 4, 4, start >> 32)

    return put


def _register_writer(function: Function, offset: int) -> Callable[[int], None]:
    def put(start: int) -> None:
        config = function.config
        config.set(offset, 8, config.read(offset, 8) & 0xF | start)

    return put


def bridge_need(bridge: Bridge, below: Need, need: Need) -> None:
    """Ask for the windows of ``bridge`` that hold what is ``below``."""
    for space in Space:
        granularity = _IO_GRANULARITY if space is Space.IO else _MEMORY_GRANULARITY
        size, alignment = below.extent(space, granularity)
        if size:
            need.add(space, Claim(size, alignment, _window_writer(bridge, below, space, size)))


def _window_writer(bridge: Bridge, below: Need, space: Space, size: int) -> Callable[[int], None]:
    def put(start: int) -> None:
        last = start + size - 1
        if space is Space.IO:
            bridge.config.set(_IO_WINDOW, 1, start >> 8 & 0xF0 | 1)
            bridge.config.set(_IO_WINDOW + 1, 1, last >> 8 & 0xF0 | 1)
        else:
            bridge.set_window(start, start + size, prefetchable=space is Space.PREFETCH)
        below.place(space, start)

    return put


def assign(roots: Iterable[Need], high: int) -> None:
    """Place everything; 64-bit prefetchable memory goes above ``high`` if it must.

    Raises :class:`BlueprintError` when a space is too small.
    """
    needs = list(roots)
    for space, (start, end) in ((Space.IO, PORTS), (Space.MEMORY, LOW)):
        at = _place_all(needs, space, start)
        if at > end:
            raise BlueprintError(
                f"{at - start:#x} bytes of {space.value} do not fit between {start:#x} and {end:#x}"
            )
    below_4g = _pack_all(needs, Space.PREFETCH, at)
    _place_all(needs, Space.PREFETCH, at if below_4g <= LOW[1] else high)


def _place_all(needs: list[Need], space: Space, start: int) -> int:
    at = start
    for need in needs:
        size, alignment = need.extent(space)
        at = -(-at // alignment) * alignment
        need.place(space, at)
        at += size
    return at


def _pack_all(needs: list[Need], space: Space, start: int) -> int:
    at = start
    for need in needs:
        size, alignment = need.extent(space)
        at = -(-at // alignment) * alignment + size
    return at
