"""A function without behaviour: its captured configuration space, and BARs nobody answers for.

It stands for the devices of a recorded machine that have no model of their own. Configuration
space behaves as for any modelled function: BAR sizing, power states, function-level reset, MSI
and MSI-X registers work; only what the device would do is missing.
"""

from __future__ import annotations

from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

_CHUNK = 1 << 21


class PassiveFunction(Function):
    """Answers from ``config``; register BARs read zero and ignore writes.

    Zeros and not all ones, because all ones is what a bus answers for a device that is gone, and
    drivers and hot-plug code take it for that.

    BARs named in ``memory_bars`` hold what is written to them, as a graphics card's aperture
    does, so that peers can move data there; memory that was never written costs nothing.
    """

    def __init__(
        self,
        bdf: Bdf,
        config: ConfigModel,
        bars: tuple[BarModel, ...] = (),
        *,
        memory_bars: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(bdf, config, bars)
        self._memory: dict[int, dict[int, bytearray]] = {
            index: {} for index in memory_bars & self.bars.keys()
        }

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        """A load: from a memory BAR what was stored, from any other zero."""
        if offset // _CHUNK not in self._memory.get(bar, ()):
            return 0
        view = self.bar_view(bar, offset, width)
        return 0 if view is None else int.from_bytes(view, "little")

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store: kept by a memory BAR, dropped by any other."""
        view = self.bar_view(bar, offset, width)
        if view is not None:
            view[:] = value.to_bytes(width, "little")

    def bar_view(self, bar: int, offset: int, length: int) -> memoryview | None:
        """The bytes behind part of a memory BAR, within one aligned chunk of 2 MiB."""
        chunks = self._memory.get(bar)
        if chunks is None:
            return None
        index, start = divmod(offset, _CHUNK)
        if start + length > _CHUNK or offset + length > self.bars[bar].size:
            return None
        chunk = chunks.get(index)
        if chunk is None:
            chunk = chunks[index] = bytearray(min(_CHUNK, self.bars[bar].size))
        return memoryview(chunk)[start : start + length]

    def reset(self, kind: ResetKind) -> None:
        """A reset loses what memory BARs held, except a change of power state."""
        super().reset(kind)
        if kind is not ResetKind.POWER:
            for chunks in self._memory.values():
                chunks.clear()
