"""Interrupt remapping: a table in machine memory decides what a device's MSI may become.

Source: Intel VT-d Specification 4.1 §5.1.2 (request formats), §5.1.4 (source validation), §9.10
(remapping table entry), §7.1.5 (faults).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from vfiokit.errors import MachineError
from vfiokit.machine.iommu.fault import FaultLog, FaultReason, FaultRecord, IommuFault
from vfiokit.machine.memory import PhysicalMemory

MSI_BASE: Final = 0xFEE0_0000
MSI_END: Final = 0xFEF0_0000

_REMAPPABLE: Final = 1 << 4
_SUBHANDLE_VALID: Final = 1 << 3
_ENTRY_SIZE: Final = 16
_RESERVED_LOW: Final = 0xFF00_7000  # [31:24] and [14:12] of a remapped entry
_RESERVED_HIGH: Final = 0xFFFF_FFFF_FFF0_0000


class SourceValidation(IntEnum):
    """The SVT field of a table entry."""

    NONE = 0
    REQUESTER = 1
    """Compare with the source id, some function bits ignored as the SQ field says."""
    BUS_RANGE = 2
    """The source id holds the first bus ``[15:8]`` and the last bus ``[7:0]``."""


class Interrupt(NamedTuple):
    """What reaches a processor."""

    destination: int
    """Local APIC id."""
    vector: int
    delivery_mode: int = 0
    """0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT."""


def decode_compatibility(address: int, data: int) -> Interrupt:
    """The interrupt that an unremapped MSI asks for."""
    return Interrupt(address >> 12 & 0xFF, data & 0xFF, data >> 8 & 7)


class InterruptRemapper:
    """The interrupt remapping hardware of one unit, with its interrupt entry cache.

    Like the IOTLB, the cache holds entries until they are invalidated.
    """

    def __init__(self, memory: PhysicalMemory, faults: FaultLog) -> None:
        self.memory = memory
        self.faults = faults
        self.enabled = False
        self.allow_compatibility = False
        """Let requests in the unremapped format pass (CFIS)."""
        self.table = 0
        """hpa of the table; 0 before :meth:`set_table`."""
        self.count = 0
        """Entries of the table."""
        self.remapped = 0
        """Requests that passed."""
        self._cache: dict[int, tuple[int, int]] = {}

    def reset(self) -> None:
        """Power-on state: disabled, no table."""
        self.enabled = self.allow_compatibility = False
        self.table = self.count = 0
        self._cache.clear()

    def set_table(self, table: int, count: int) -> None:
        """Use the table of ``count`` entries (a power of two, 2 to 65536) at hpa ``table``."""
        if not 2 <= count <= 65536 or count & (count - 1):
            raise MachineError(f"an interrupt remapping table cannot have {count} entries")
        self.table, self.count = table, count
        self._cache.clear()

    def set_entry(
        self,
        index: int,
        vector: int,
        destination: int,
        *,
        source_id: int = 0,
        validation: SourceValidation = SourceValidation.REQUESTER,
        source_qualifier: int = 0,
    ) -> None:
        """Write a present entry, as a driver does. Invalidate it afterwards."""
        at = self._slot(index)
        high = source_id | source_qualifier << 16 | validation << 18
        self.memory.write64(at + 8, high)
        self.memory.write64(at, 1 | vector << 16 | destination << 32)

    def clear_entry(self, index: int) -> None:
        """Write a non-present entry. Invalidate it afterwards."""
        at = self._slot(index)
        self.memory.write64(at, 0)
        self.memory.write64(at + 8, 0)

    def invalidate(self, index: int | None = None) -> None:
        """Drop one cached entry, or all of them."""
        if index is None:
            self._cache.clear()
        else:
            self._cache.pop(index, None)

    def remap(self, requester_id: int, address: int, data: int) -> Interrupt:
        """The interrupt that a write of ``data`` to ``address`` becomes.

        Raises :class:`IommuFault` (recorded) for what the table does not permit.
        """
        if not address & _REMAPPABLE:
            if not self.allow_compatibility:
                raise self._fault(requester_id, 0, FaultReason.COMPATIBILITY_INTERRUPT_BLOCKED)
            return decode_compatibility(address, data)
        index = address >> 5 & 0x7FFF | (address & 4) << 13
        if address & _SUBHANDLE_VALID:
            if data >> 16:
                raise self._fault(requester_id, index, FaultReason.INTERRUPT_REQUEST_RESERVED)
            index += data
        if index >= self.count:
            raise self._fault(requester_id, index, FaultReason.INTERRUPT_INDEX_BEYOND_TABLE)
        low, high = self._entry(requester_id, index)
        if not self._valid_source(requester_id, high):
            raise self._fault(requester_id, index, FaultReason.INTERRUPT_SOURCE_INVALID)
        self.remapped += 1
        return Interrupt(low >> 32, low >> 16 & 0xFF, low >> 5 & 7)

    def _entry(self, requester_id: int, index: int) -> tuple[int, int]:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        try:
            at = self._slot(index)
            low, high = self.memory.read64(at), self.memory.read64(at + 8)
        except MachineError:
            raise self._fault(requester_id, index, FaultReason.INTERRUPT_TABLE_INVALID) from None
        if not low & 1:
            raise self._fault(requester_id, index, FaultReason.INTERRUPT_ENTRY_NOT_PRESENT)
        if low & _RESERVED_LOW or high & _RESERVED_HIGH or high >> 18 & 3 == 3:
            raise self._fault(requester_id, index, FaultReason.INTERRUPT_ENTRY_RESERVED)
        self._cache[index] = low, high
        return low, high

    @staticmethod
    def _valid_source(requester_id: int, high: int) -> bool:
        source, qualifier, kind = high & 0xFFFF, high >> 16 & 3, high >> 18 & 3
        if kind == SourceValidation.REQUESTER:
            # SQ ignores function bit 2, bits 2:1, or all three.
            ignored = (0, 4, 6, 7)[qualifier]
            return not (source ^ requester_id) & ~ignored
        if kind == SourceValidation.BUS_RANGE:
            return source >> 8 <= requester_id >> 8 <= source & 0xFF
        return True

    def _slot(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise MachineError(f"interrupt remapping entry {index} of {self.count}")
        return self.table + _ENTRY_SIZE * index

    def _fault(self, requester_id: int, index: int, reason: FaultReason) -> IommuFault:
        record = FaultRecord(requester_id, index, True, reason)
        self.faults.add(record)
        return IommuFault(record)
