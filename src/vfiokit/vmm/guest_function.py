"""A PCI function of a guest: configuration space, BARs where the guest put them.

Source: PCI Local Bus Specification 3.0 §6.2.5; which written addresses decode, QEMU
``hw/pci/pci.c`` ``pci_bar_address``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vfiokit.pci.address import Bdf
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.trap_map import Access, Handler, Strength, Wish

if TYPE_CHECKING:
    from vfiokit.vmm.pci_bus import PciBus

COMMAND = 0x04
COMMAND_IO = 0x0001
COMMAND_MEMORY = 0x0002
COMMAND_MASTER = 0x0004
COMMAND_INTX_DISABLE = 0x0400
_BARS = 0x10
_ROM = 6
_ROM_REGISTER = 0x30
_IO_LIMIT = 0x1_0000


@dataclass(frozen=True, slots=True)
class GuestBar:
    """A BAR register, and what answers behind it."""

    index: int
    """0 to 5; 6 for the expansion ROM."""
    size: int
    """Bytes, a power of two."""
    memory: bool = True
    wide: bool = False
    """64-bit: uses the next index for the upper half."""
    prefetchable: bool = False
    handler: Handler | None = None
    """Of a function that is emulated: who answers at its BAR."""

    @property
    def register(self) -> int:
        """Offset in configuration space."""
        return _ROM_REGISTER if self.index == _ROM else _BARS + 4 * self.index


class Placed(NamedTuple):
    """A BAR that decodes."""

    bar: GuestBar
    address: int


class GuestFunction:
    """Base of every function on a guest's bus; by itself one whose BARs are all emulated."""

    name: str
    removable = False
    """Whether it can be taken out while the guest runs."""

    def __init__(self, bdf: Bdf, config: GuestConfig, bars: Sequence[GuestBar] = ()) -> None:
        self.bdf = bdf
        """Where the guest finds it: bus 0, or the bus number at the time it was plugged in."""
        self.name = str(bdf)
        self.config = config
        self.bars = {bar.index: bar for bar in bars}
        self.bus: PciBus | None = None
        """Set by the bus that the function is on."""
        for bar in bars:
            self._allow(bar)
        if len(config) > 0x0E and config.data[0x0E] & 0x7F == 0:
            config.watch(_BARS, 0x24, self._decoding_changed)
        config.watch(COMMAND, 2, self._decoding_changed)

    def _allow(self, bar: GuestBar) -> None:
        config, mask = self.config, ~(bar.size - 1)
        config.emulate(bar.register, 8 if bar.wide else 4)
        if bar.index == _ROM:
            config.allow(bar.register, 4, mask & 0xFFFFF800 | 1)
            return
        flags = 1 if not bar.memory else (4 if bar.wide else 0) | (8 if bar.prefetchable else 0)
        config.set(bar.register, 4, flags)
        config.allow(bar.register, 4, mask & (0xFFFFFFF0 if bar.memory else 0xFFFFFFFC))
        if bar.wide:
            config.set(bar.register + 4, 4, 0)
            config.allow(bar.register + 4, 4, mask >> 32 & 0xFFFFFFFF)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # -- decoding -----------------------------------------------------------------------------

    @property
    def command(self) -> int:
        """The command register as far as the machine keeps it."""
        return self.config.get(COMMAND, 2)

    def address_of(self, bar: GuestBar) -> int | None:
        """Where ``bar`` decodes now; ``None`` while it does not."""
        if not self.command & (COMMAND_MEMORY if bar.memory else COMMAND_IO):
            return None
        value = self.config.get(bar.register, 8 if bar.wide else 4)
        if bar.index == _ROM:
            return value & 0xFFFFF800 if value & 1 and value & 0xFFFFF800 else None
        address = value & ~(0xF if bar.memory else 0x3) & ~(bar.size - 1)
        last = address + bar.size - 1
        limit = _IO_LIMIT if not bar.memory else (1 << 63) if bar.wide else (1 << 32) - 1
        # All ones is a guest that asks for the size, 0 a BAR that nobody placed.
        return address if address and last < limit else None

    def placed(self) -> Iterator[Placed]:
        """The BARs that decode now."""
        for bar in self.bars.values():
            address = self.address_of(bar)
            if address is not None:
                yield Placed(bar, address)

    def wishes(self, placed: Placed) -> Iterator[Wish]:
        """What a placed BAR wants: here, that all of it traps."""
        bar = placed.bar
        name = f"{self.name} BAR {bar.index}"
        yield Wish(
            placed.address, bar.size, Access.TRAP, Strength.REGION, name, bar.handler, counter="bar"
        )

    def _decoding_changed(self, offset: int, width: int) -> None:
        del offset, width
        self.update_decoding()

    def update_decoding(self) -> None:
        """Tell the bus that BARs may decode elsewhere now."""
        if self.bus is not None:
            self.bus.refresh()

    # -- life ---------------------------------------------------------------------------------

    @property
    def interrupt_pin(self) -> int:
        """1 to 4 for INTA to INTD, 0 for none."""
        return self.config.get(0x3D, 1)

    def end_of_interrupt(self) -> None:
        """The guest finished an interrupt that this function's pin asserts."""

    def reset(self) -> None:
        """As at power-on: nothing decodes."""
        self.config.set(COMMAND, 2, self.command & ~0x0447)
        self.update_decoding()

    def added(self) -> None:
        """Called when the function has come onto the bus."""

    def removed(self) -> None:
        """Called when the function is leaving the bus; it decodes nothing any more."""

    def state(self) -> dict[str, Any]:
        """All that :meth:`load` needs, as plain data."""
        return {"config": self.config.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.config.load(state["config"])
        self.update_decoding()
