"""MSI and MSI-X of a modelled function.

A vector is raised by sending the programmed message as a posted 4-byte write, like any other DMA
of the function: bus mastering, ACS and interrupt remapping apply to it. Masked vectors become
pending and are sent when they are unmasked.
Source: PCI Local Bus Specification 3.0 §6.8, PCIe Base Specification 6.0 §6.1.4 and §7.7.1-2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vfiokit.errors import MachineError

if TYPE_CHECKING:
    from vfiokit.machine.function import Function

ENTRY_SIZE: Final = 16

_MSIX_FUNCTION_MASK: Final = 0x4000
_MSIX_ENABLE: Final = 0x8000
_MSI_ENABLE: Final = 0x0001
_MSI_64BIT: Final = 0x0080
_MSI_MASKABLE: Final = 0x0100


class MsixTable:
    """The MSI-X table and pending bits of a function, as its capability describes them.

    Each entry is 16 bytes: address, upper address, data, vector control (bit 0 masks).
    """

    def __init__(self, function: Function, offset: int) -> None:
        config = function.config
        self.function = function
        self.offset = offset
        self.count = (config.read(offset + 2, 2) & 0x7FF) + 1
        table, pending = config.read(offset + 4, 4), config.read(offset + 8, 4)
        self.table_bar, self.table_offset = table & 7, table & ~7
        self.pending_bar, self.pending_offset = pending & 7, pending & ~7
        self.table_size = self.count * ENTRY_SIZE
        self.pending_size = (self.count + 63) // 64 * 8
        self.table = bytearray(self.table_size)
        self.pending: set[int] = set()
        self.dropped = 0
        """Vectors raised while MSI-X was disabled."""
        self.sink: Callable[[int], None] | None = None
        """Takes the vectors in place of memory, masks and all: an eventfd behind each, say."""
        config.allow(offset + 2, 2, _MSIX_ENABLE | _MSIX_FUNCTION_MASK)
        config.watch(offset + 2, 2, self._control_written)
        self.reset()

    @property
    def enabled(self) -> bool:
        """MSI-X Enable of the message control register."""
        return bool(self.function.config.data[self.offset + 3] & _MSIX_ENABLE >> 8)

    @property
    def function_masked(self) -> bool:
        """Function Mask of the message control register."""
        return bool(self.function.config.data[self.offset + 3] & _MSIX_FUNCTION_MASK >> 8)

    def masked(self, vector: int) -> bool:
        """Whether ``vector`` cannot be sent now: its own mask bit or the function's."""
        return self.function_masked or bool(self.table[vector * ENTRY_SIZE + 12] & 1)

    def raise_vector(self, vector: int) -> None:
        """Send the message of ``vector``, or mark it pending while masked.

        Dropped while MSI-X is disabled. :class:`MachineError` for a vector the table lacks.
        """
        if not 0 <= vector < self.count:
            raise MachineError(f"{self.function.bdf} raised MSI-X vector {vector} of {self.count}")
        if self.sink is not None:
            self.sink(vector)
        elif not self.enabled:
            self.dropped += 1
        elif self.masked(vector):
            self.pending.add(vector)
        else:
            self._send(vector)

    def covers(self, bar: int, offset: int) -> bool:
        """Whether an access at ``offset`` of ``bar`` belongs to the table or the pending bits."""
        return (bar == self.table_bar and 0 <= offset - self.table_offset < self.table_size) or (
            bar == self.pending_bar and 0 <= offset - self.pending_offset < self.pending_size
        )

    def read(self, bar: int, offset: int, width: int) -> int:
        """A load from the table or the pending bit array."""
        at = offset - self.table_offset
        if bar == self.table_bar and 0 <= at < self.table_size:
            return int.from_bytes(self.table[at : at + width], "little")
        bits = sum(1 << vector for vector in self.pending)
        shift = 8 * (offset - self.pending_offset)
        return bits >> shift & ((1 << 8 * width) - 1)

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store to the table; pending bits are read-only. Unmasking sends what is pending."""
        at = offset - self.table_offset
        if bar != self.table_bar or not 0 <= at <= self.table_size - width:
            return
        self.table[at : at + width] = value.to_bytes(width, "little")
        vector = at // ENTRY_SIZE
        control = vector * ENTRY_SIZE + 12
        # Only bit 0 of vector control exists; message addresses are 4-byte aligned.
        self.table[control : control + 4] = (self.table[control] & 1).to_bytes(4, "little")
        self.table[vector * ENTRY_SIZE] &= 0xFC
        self._deliver_pending()

    def reset(self) -> None:
        """Power-on state: every entry zero and masked, nothing pending, MSI-X disabled."""
        self.table[:] = bytes(self.table_size)
        for vector in range(self.count):
            self.table[vector * ENTRY_SIZE + 12] = 1
        self.pending.clear()
        control = self.function.config.read(self.offset + 2, 2)
        self.function.config.set(self.offset + 2, 2, control & 0x07FF)

    def _send(self, vector: int) -> None:
        self.pending.discard(vector)
        at = vector * ENTRY_SIZE
        address = int.from_bytes(self.table[at : at + 8], "little")
        self.function.dma.write(address, bytes(self.table[at + 8 : at + 12]))

    def _deliver_pending(self) -> None:
        if not self.pending or not self.enabled or self.function_masked:
            return
        for vector in sorted(self.pending):
            if not self.masked(vector):
                self._send(vector)

    def _control_written(self, offset: int, width: int) -> None:
        del offset, width
        self._deliver_pending()


class Msi:
    """The MSI capability of a function, with mask and pending bits where it has them."""

    def __init__(self, function: Function, offset: int) -> None:
        config = function.config
        self.function = function
        self.offset = offset
        control = config.read(offset + 2, 2)
        self.wide = bool(control & _MSI_64BIT)
        self.maskable = bool(control & _MSI_MASKABLE)
        self.count = 1 << min(control >> 1 & 7, 5)
        """Vectors the function is capable of."""
        self.dropped = 0
        """Vectors raised while MSI was disabled, or beyond the granted number."""
        self.sink: Callable[[int], None] | None = None
        """Takes the vectors in place of memory, masks and all."""
        self._data = offset + (0x0C if self.wide else 0x08)
        self._mask = offset + (0x10 if self.wide else 0x0C)
        config.allow(offset + 2, 2, 0x0071)
        config.allow(offset + 4, 4, 0xFFFFFFFC)
        if self.wide:
            config.allow(offset + 8, 4, 0xFFFFFFFF)
        config.allow(self._data, 2, 0xFFFF)
        if self.maskable:
            config.allow(self._mask, 4, (1 << self.count) - 1)
            config.watch(self._mask, 4, self._mask_written)
        config.watch(offset + 2, 2, self._mask_written)

    @property
    def enabled(self) -> bool:
        """MSI Enable of the message control register."""
        return bool(self.function.config.data[self.offset + 2] & _MSI_ENABLE)

    @property
    def granted(self) -> int:
        """Vectors software granted (Multiple Message Enable), never more than :attr:`count`."""
        return min(1 << (self.function.config.data[self.offset + 2] >> 4 & 7), self.count)

    @property
    def pending(self) -> int:
        """The pending bits; 0 without per-vector masking."""
        return self.function.config.read(self._mask + 4, 4) if self.maskable else 0

    def masked(self, vector: int) -> bool:
        """Whether the mask bit of ``vector`` is set."""
        return self.maskable and bool(self.function.config.read(self._mask, 4) >> vector & 1)

    def raise_vector(self, vector: int) -> None:
        """Send the message of ``vector``, or mark it pending while masked.

        Dropped while MSI is disabled. A vector beyond the granted number is sent as vector 0, as a
        function granted fewer messages shares them. :class:`MachineError` beyond :attr:`count`.
        """
        if not 0 <= vector < self.count:
            raise MachineError(f"{self.function.bdf} raised MSI vector {vector} of {self.count}")
        if self.sink is not None:
            self.sink(vector)
            return
        if not self.enabled:
            self.dropped += 1
            return
        vector = vector if vector < self.granted else 0
        if self.masked(vector):
            self._set_pending(self.pending | 1 << vector)
        else:
            self._send(vector)

    def reset(self) -> None:
        """Power-on state: disabled, nothing masked or pending, one vector granted."""
        config = self.function.config
        control = config.read(self.offset + 2, 2)
        config.set(self.offset + 2, 2, control & ~0x0071)
        config.set(self.offset + 4, 4, 0)
        if self.wide:
            config.set(self.offset + 8, 4, 0)
        config.set(self._data, 2, 0)
        if self.maskable:
            config.set(self._mask, 4, 0)
            self._set_pending(0)

    def _send(self, vector: int) -> None:
        config = self.function.config
        address = config.read(self.offset + 4, 8 if self.wide else 4)
        data = config.read(self._data, 2) & ~(self.granted - 1) | vector
        self.function.dma.write(address, data.to_bytes(4, "little"))

    def _set_pending(self, bits: int) -> None:
        self.function.config.set(self._mask + 4, 4, bits)

    def _mask_written(self, offset: int, width: int) -> None:
        del offset, width
        if not self.enabled or not self.maskable:
            return
        for vector in range(self.granted):
            if self.pending >> vector & 1 and not self.masked(vector):
                self._set_pending(self.pending & ~(1 << vector))
                self._send(vector)
