"""A modelled PCI function: configuration space, BARs, DMA, interrupts, reset.

A device model subclasses :class:`Function` and implements ``mmio_read`` and ``mmio_write``; the
fabric gives it ``dma`` and ``interrupts`` when it is plugged in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vfiokit.errors import MachineError
from vfiokit.machine import registers
from vfiokit.machine.acs import AcsRegisters
from vfiokit.machine.clock import Clock
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.interrupt import Msi, MsixTable
from vfiokit.machine.reset import ResetKind as ResetKind
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import CapabilityList, capabilities
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace

COMMAND = 0x04
COMMAND_IO = 0x0001
COMMAND_MEMORY = 0x0002
COMMAND_MASTER = 0x0004
COMMAND_INTX_DISABLE = 0x0400


@dataclass(frozen=True, slots=True)
class BarModel:
    """What sits behind one Base Address Register."""

    index: int
    size: int
    """Bytes; a power of two."""
    memory: bool = True
    wide: bool = False
    """64-bit: uses the next index for the upper half."""
    prefetchable: bool = False


class Dma(Protocol):
    """How a device model reaches memory and peers; provided by the fabric.

    Requests carry the function's requester ID. Reads raise
    :class:`~vfiokit.machine.txn.DmaError`; writes are posted and never report anything.
    Bus mastering off means the request never leaves the function: reads raise, writes vanish.
    """

    def read(self, iova: int, length: int) -> bytes:
        """Read ``length`` bytes."""
        ...

    def read_into(self, iova: int, buffer: memoryview) -> None:
        """Read ``len(buffer)`` bytes into ``buffer`` without another copy."""
        ...

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data``, posted."""
        ...


class IntxPin(Protocol):
    """The INTx wire of a function; provided by the fabric."""

    def set(self, level: bool) -> None:
        """Assert or deassert the pin."""
        ...


class Unplugged:
    """DMA of a function that is in no machine yet."""

    def read(self, iova: int, length: int) -> bytes:
        """There is nothing to read from."""
        raise MachineError(f"DMA read of {length} bytes at {iova:#x} by an unplugged function")

    def read_into(self, iova: int, buffer: memoryview) -> None:
        """There is nothing to read from."""
        self.read(iova, len(buffer))

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """There is nothing to write to."""
        self.read(iova, len(data))

    def set(self, level: bool) -> None:
        """Nobody is at the other end of the wire."""


class Function:
    """Base of every modelled function; by itself it answers from its configuration bytes only.

    ``bdf`` is where it sits. BAR registers get their sizing masks and flag bits from ``bars``; the
    command register's usual bits and those of the capabilities found in ``config`` are writable
    (:mod:`vfiokit.machine.registers`). The bytes at construction are the power-on state.
    """

    def __init__(self, bdf: Bdf, config: ConfigModel, bars: tuple[BarModel, ...] = ()) -> None:
        self.bdf = bdf
        self.config = config
        self.bars: dict[int, BarModel] = {bar.index: bar for bar in bars}
        self.clock = Clock()
        self.dma: Dma = Unplugged()
        self.intx: IntxPin = Unplugged()
        self.physfn: Bdf | None = None
        self.virtual_bars: tuple[BarModel, ...] = ()
        """BARs of each virtual function that it can have."""
        self.on_config_change: Callable[[Function], None] | None = None
        """Set by the fabric: called when decoding may have changed (command, BARs, windows)."""
        self.acs: AcsRegisters | None = None
        """The ACS capability, live; ``None`` without one."""
        self.msix: MsixTable | None = None
        self.msi: Msi | None = None
        self.port_type: PortType | None = None
        """Device/port type; ``None`` for conventional PCI."""
        self.port_number = 0
        """Port number of the Link Capabilities register: the index in egress control vectors."""
        self.ats_offset = 0
        """Offset of the ATS capability; 0 without one."""
        self.power_offset = 0
        """Offset of the Power Management Control/Status register; 0 without one."""
        self._allow_header()
        registers.attach(self)
        config.remember()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.bdf}>"

    # -- identity -----------------------------------------------------------------------------

    @property
    def requester_id(self) -> int:
        """The 16-bit ID its requests carry."""
        return self.bdf.requester_id

    def capabilities(self) -> CapabilityList:
        """The capability lists, walked afresh over the present bytes."""
        return capabilities(ConfigSpace(bytes(self.config.data)))

    @property
    def command(self) -> int:
        """The command register."""
        return self.config.data[COMMAND] | self.config.data[COMMAND + 1] << 8

    @property
    def memory_enabled(self) -> bool:
        """Whether memory BARs decode: the command register's bit, in power state D0."""
        return bool(self.config.data[COMMAND] & COMMAND_MEMORY) and not self.power_state

    @property
    def bus_master(self) -> bool:
        """Whether the function may issue requests: the command register's bit, in D0."""
        return bool(self.config.data[COMMAND] & COMMAND_MASTER) and not self.power_state

    @property
    def power_state(self) -> int:
        """Power state 0 (D0) to 3 (D3hot); 0 without the power management capability."""
        at = self.power_offset
        return self.config.data[at] & 3 if at else 0

    @property
    def ats_enabled(self) -> bool:
        """Whether the function may use translated requests (ATS Control, Enable)."""
        at = self.ats_offset
        return bool(at and self.config.data[at + 7] & 0x80)

    @property
    def multifunction(self) -> bool:
        """Whether it shares its device with peers it may talk to; never a VF."""
        return self.physfn is None and bool(self.bdf.function or self.config.data[0x0E] & 0x80)

    def bar_address(self, index: int) -> int:
        """The bus address programmed into a BAR, flag bits removed."""
        bar = self.bars[index]
        offset = 0x10 + 4 * index
        value = self.config.read(offset, 8 if bar.wide else 4)
        return value & ~0xF if bar.memory else value & ~0x3

    # -- what software does -------------------------------------------------------------------

    def config_read(self, offset: int, width: int) -> int:
        """A configuration read request of 1, 2 or 4 bytes."""
        return self.config.read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        """A configuration write request of 1, 2 or 4 bytes."""
        self.config.write(offset, width, value)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """A load of ``width`` bytes at ``offset`` of a BAR, as it arrives from the bus.

        All ones while memory decoding is off or outside the BAR; the MSI-X table and pending bits
        answer for themselves.
        """
        model = self.bars.get(bar)
        if model is None or not self._decodes(model) or not 0 <= offset <= model.size - width:
            return (1 << 8 * width) - 1
        if self.msix is not None and self.msix.covers(bar, offset):
            return self.msix.read(bar, offset, width)
        return self.mmio_read(bar, offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store of ``width`` bytes, as it arrives from the bus; dropped where not decoded."""
        model = self.bars.get(bar)
        if model is None or not self._decodes(model) or not 0 <= offset <= model.size - width:
            return
        if self.msix is not None and self.msix.covers(bar, offset):
            self.msix.write(bar, offset, width, value)
        else:
            self.mmio_write(bar, offset, width, value)

    def bar_view(self, bar: int, offset: int, length: int) -> memoryview | None:
        """The bytes behind part of a BAR where it is plain memory; ``None`` for registers.

        Subclasses with memory of their own override this, so that long transfers need no loop.
        """
        del bar, offset, length
        return None

    def raise_msix(self, vector: int) -> None:
        """Signal an MSI-X vector; :class:`MachineError` without the capability."""
        if self.msix is None:
            raise MachineError(f"{self.bdf} has no MSI-X capability")
        self.msix.raise_vector(vector)

    def raise_msi(self, vector: int = 0) -> None:
        """Signal an MSI vector; :class:`MachineError` without the capability."""
        if self.msi is None:
            raise MachineError(f"{self.bdf} has no MSI capability")
        self.msi.raise_vector(vector)

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        """One load of ``width`` bytes (1, 2, 4, 8) at ``offset`` of a BAR; all ones by default."""
        del bar, offset
        return (1 << 8 * width) - 1

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """One store of ``width`` bytes at ``offset`` of a BAR; dropped by default."""

    def reset(self, kind: ResetKind) -> None:
        """Return to the power-on state; subclasses call this first.

        Writable registers go back to their values at construction, the command register, BARs,
        MSI and MSI-X to zero; sticky and hardware-initialised fields stay.
        """
        del kind
        self.intx.set(level=False)
        self.config.restore()
        if self.msix is not None:
            self.msix.reset()
        if self.msi is not None:
            self.msi.reset()
        self.config.set(COMMAND, 2, 0)
        for bar in self.bars.values():
            flags = self.config.read(0x10 + 4 * bar.index, 4) & (0xF if bar.memory else 0x3)
            self.config.set(0x10 + 4 * bar.index, 4, flags)
            if bar.wide:
                self.config.set(0x14 + 4 * bar.index, 4, 0)
        self._changed(COMMAND, 2)

    # -- construction -------------------------------------------------------------------------

    def _allow_header(self) -> None:
        self.config.allow(COMMAND, 2, 0x0547)
        self.config.clear_on_one(0x06, 2, 0xF900)
        self.config.allow(0x0C, 1, 0xFF)
        self.config.allow(0x3C, 1, 0xFF)
        for bar in self.bars.values():
            offset = 0x10 + 4 * bar.index
            if not self.config.data[offset] & 0xF:
                flags = (4 if bar.wide else 0) | (8 if bar.prefetchable else 0)
                self.config.data[offset] |= flags if bar.memory else 1
            mask = ~(bar.size - 1)
            self.config.allow(offset, 4, mask & (0xFFFFFFF0 if bar.memory else 0xFFFFFFFC))
            if bar.wide:
                self.config.allow(offset + 4, 4, mask >> 32 & 0xFFFFFFFF)
        self.config.watch(COMMAND, 2, self._changed, hardware=True)
        self.config.watch(0x10, 0x20, self._changed, hardware=True)

    def _decodes(self, bar: BarModel) -> bool:
        if not bar.memory:
            return bool(self.config.data[COMMAND] & COMMAND_IO)
        return self.memory_enabled

    def decoding_changed(self) -> None:
        """Tell the fabric that routing may have changed."""
        self._changed(0, 0)

    def _changed(self, offset: int, width: int) -> None:
        del offset, width
        if self.on_config_change is not None:
            self.on_config_change(self)
