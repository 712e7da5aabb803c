"""Faults of an IOMMU: what is recorded, how much fits, how Linux words it.

Source: Intel VT-d Specification 4.1 §7.1 (reason codes), §7.2 (recording and overflow); Linux
``drivers/iommu/intel/dmar.c`` for the texts that operators know from ``dmesg``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

from vfiokit.errors import MachineError


class FaultReason(IntEnum):
    """VT-d fault reason codes; 0x20 and above are interrupt remapping."""

    ROOT_ENTRY_NOT_PRESENT = 0x01
    CONTEXT_ENTRY_NOT_PRESENT = 0x02
    CONTEXT_ENTRY_INVALID = 0x03
    ADDRESS_BEYOND_WIDTH = 0x04
    WRITE_NOT_PERMITTED = 0x05
    READ_NOT_PERMITTED = 0x06
    PAGE_TABLE_INVALID = 0x07
    ROOT_TABLE_INVALID = 0x08
    CONTEXT_TABLE_INVALID = 0x09
    ROOT_ENTRY_RESERVED = 0x0A
    CONTEXT_ENTRY_RESERVED = 0x0B
    PAGE_ENTRY_RESERVED = 0x0C
    TRANSLATED_BLOCKED = 0x0D
    INTERRUPT_REQUEST_RESERVED = 0x20
    INTERRUPT_INDEX_BEYOND_TABLE = 0x21
    INTERRUPT_ENTRY_NOT_PRESENT = 0x22
    INTERRUPT_TABLE_INVALID = 0x23
    INTERRUPT_ENTRY_RESERVED = 0x24
    COMPATIBILITY_INTERRUPT_BLOCKED = 0x25
    INTERRUPT_SOURCE_INVALID = 0x26


_TEXTS: Final = {
    FaultReason.ROOT_ENTRY_NOT_PRESENT: "Present bit in root entry is clear",
    FaultReason.CONTEXT_ENTRY_NOT_PRESENT: "Present bit in context entry is clear",
    FaultReason.CONTEXT_ENTRY_INVALID: "Invalid context entry",
    FaultReason.ADDRESS_BEYOND_WIDTH: "Access beyond MGAW",
    FaultReason.WRITE_NOT_PERMITTED: "PTE Write access is not set",
    FaultReason.READ_NOT_PERMITTED: "PTE Read access is not set",
    FaultReason.PAGE_TABLE_INVALID: "Next page table ptr is invalid",
    FaultReason.ROOT_TABLE_INVALID: "Root table address invalid",
    FaultReason.CONTEXT_TABLE_INVALID: "Context table ptr is invalid",
    FaultReason.ROOT_ENTRY_RESERVED: "non-zero reserved fields in RTP",
    FaultReason.CONTEXT_ENTRY_RESERVED: "non-zero reserved fields in CTP",
    FaultReason.PAGE_ENTRY_RESERVED: "non-zero reserved fields in PTE",
    FaultReason.TRANSLATED_BLOCKED: "PCE for translation request specifies blocking",
    FaultReason.INTERRUPT_REQUEST_RESERVED: (
        "Detected reserved fields in the decoded interrupt-remapped request"
    ),
    FaultReason.INTERRUPT_INDEX_BEYOND_TABLE: (
        "Interrupt index exceeded the interrupt-remapping table size"
    ),
    FaultReason.INTERRUPT_ENTRY_NOT_PRESENT: "Present field in the IRTE entry is clear",
    FaultReason.INTERRUPT_TABLE_INVALID: (
        "Error accessing interrupt-remapping table pointed by IRTA_REG"
    ),
    FaultReason.INTERRUPT_ENTRY_RESERVED: "Detected reserved fields in the IRTE entry",
    FaultReason.COMPATIBILITY_INTERRUPT_BLOCKED: (
        "Blocked a compatibility format interrupt request"
    ),
    FaultReason.INTERRUPT_SOURCE_INVALID: (
        "Blocked an interrupt request due to source-id verification failure"
    ),
}


class FaultRecord(NamedTuple):
    """One fault, as the recording registers hold it."""

    requester_id: int
    iova: int
    """Page of the untranslated address (registers keep bits 63:12), or the interrupt index."""
    write: bool
    reason: FaultReason
    segment: int = 0
    """PCI domain of the IOMMU's functions, by ACPI's word for it."""

    @property
    def bdf(self) -> str:
        """The requester as ``bus:device.function``, without its domain."""
        rid = self.requester_id
        return f"{rid >> 8:02x}:{rid >> 3 & 0x1F:02x}.{rid & 7}"

    @property
    def interrupt(self) -> bool:
        """Whether this is an interrupt remapping fault."""
        return self.reason >= FaultReason.INTERRUPT_REQUEST_RESERVED

    def __str__(self) -> str:
        """The line Linux 7.2 prints, without its timestamp."""
        device = f"{self.segment:04x}:{self.bdf}"
        tail = f"[fault reason {self.reason:#04x}] {_TEXTS[self.reason]}"
        if self.interrupt:
            return f"DMAR: [INTR-REMAP] Request device [{device}] fault index {self.iova:#x} {tail}"
        kind = "Write" if self.write else "Read"
        return (
            f"DMAR: [DMA {kind} NO_PASID] Request device [{device}] "
            f"fault addr {self.iova:#x} {tail}"
        )


class IommuFault(MachineError):  # noqa: N818  # the specification's word; "FaultError" says it twice
    """A request that the IOMMU refused.

    ``record`` says what was wrong; ``extents`` are the ``(hpa, length)`` pieces in front of the
    faulting address that did translate: a posted write lands there before it faults.
    """

    def __init__(self, record: FaultRecord) -> None:
        super().__init__(str(record))
        self.record = record
        self.extents: list[tuple[int, int]] = []


class FaultLog:
    """Fault recording registers: a bounded list that keeps the oldest and flags the overflow."""

    def __init__(self, capacity: int = 256) -> None:
        self.capacity = capacity
        self.records: list[FaultRecord] = []
        self.overflow = False
        """Primary Fault Overflow: faults were lost since the last :meth:`drain`."""
        self.total = 0
        """Faults since power-on, lost ones included."""
        self.on_fault: Callable[[FaultRecord], None] | None = None
        """Called for every fault, lost or not: where a kernel surface writes its log."""

    def add(self, record: FaultRecord) -> None:
        """Record a fault, or flag the overflow when every register is taken."""
        self.total += 1
        if len(self.records) < self.capacity:
            self.records.append(record)
        else:
            self.overflow = True
        if self.on_fault is not None:
            self.on_fault(record)

    def drain(self) -> list[FaultRecord]:
        """Take the records and clear the overflow flag, as a fault handler does."""
        taken, self.records, self.overflow = self.records, [], False
        return taken

    def __len__(self) -> int:
        return len(self.records)
