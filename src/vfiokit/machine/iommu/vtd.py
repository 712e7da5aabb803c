"""A VT-d remapping unit in legacy mode: 4-level second-stage translation of DMA.

The unit reads what a driver wrote into machine memory: root table, context tables, page tables.
Context cache and IOTLB keep what was read until they are invalidated.
Source: Intel VT-d Specification 4.1 §3.4 (requester to domain), §3.7 (second stage), §6 (caching),
§9.1, §9.3, §9.8 (formats), §11.4.2 and §11.4.3 (capability registers).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vfiokit.machine.iommu.core import AtsAnswer, Extent
from vfiokit.machine.iommu.fault import FaultLog, FaultReason, FaultRecord, IommuFault
from vfiokit.machine.iommu.iotlb import DomainTlb, Entry, Iotlb
from vfiokit.machine.iommu.remap import InterruptRemapper
from vfiokit.machine.iommu.tables import (
    ADDRESS_MASK,
    ADDRESS_WIDTH,
    PRESENT,
    READ,
    SUPERPAGE,
    WRITE,
    TranslationType,
)
from vfiokit.machine.memory import PhysicalMemory

_LIMIT: Final = 1 << ADDRESS_WIDTH
_AW_48: Final = 2
_ROOT_RESERVED: Final = 0xFFE
_CONTEXT_RESERVED_LOW: Final = 0xFF0
_CONTEXT_RESERVED_HIGH: Final = 0xFFFF_FFFF_FF00_0080

_CAPABILITIES: Final = (
    6  # 65536 domains
    | 1 << 10  # 4-level tables of 48 bits
    | (ADDRESS_WIDTH - 1) << 16
    | 0x22 << 24  # fault recording registers at 0x220
    | 3 << 34  # superpages of 2 MiB and 1 GiB
    | 1 << 39  # page-selective invalidation
    | 7 << 40  # 8 fault recording registers
    | 18 << 48  # largest page-selective invalidation: 2^18 pages
    | 3 << 54  # drains writes and reads
)
_EXTENDED_CAPABILITIES: Final = (
    1 << 1  # queued invalidation
    | 1 << 2  # device IOTLB (ATS)
    | 1 << 3  # interrupt remapping
    | 1 << 6  # pass-through
    | 1 << 7  # snoop control
    | 0x20 << 8  # IOTLB registers at 0x200
    | 15 << 20
)


class Context(NamedTuple):
    """A context entry as the hardware decoded it."""

    domain_id: int
    table: int
    kind: TranslationType
    fault_processing: bool


class VtdUnit:
    """One DMA remapping unit; serves the requester IDs of the host bridges it is given to."""

    def __init__(
        self,
        memory: PhysicalMemory,
        name: str = "dmar0",
        *,
        address: int = 0xFED9_0000,
        iotlb_capacity: int = 65536,
        fault_capacity: int = 256,
    ) -> None:
        self.memory = memory
        self.name = name
        self.address = address
        """Register base, shown in sysfs; the registers themselves are the methods here."""
        self.version = 0x10
        self.cap = _CAPABILITIES
        self.ecap = _EXTENDED_CAPABILITIES
        self.faults = FaultLog(fault_capacity)
        self.remapper = InterruptRemapper(memory, self.faults)
        self.iotlb = Iotlb(iotlb_capacity)
        self.enabled = False
        self.root_table = 0
        self.walks = 0
        """Page table walks done."""
        self._contexts: dict[int, Context] = {}
        self._attached: dict[int, DomainTlb] = {}

    def __repr__(self) -> str:
        return f"<VtdUnit {self.name} {'enabled' if self.enabled else 'disabled'}>"

    # -- registers ----------------------------------------------------------------------------

    def set_root_table(self, hpa: int) -> None:
        """Load the root table pointer. Caches keep their content until invalidated."""
        self.root_table = hpa & ADDRESS_MASK

    def enable_translation(self) -> None:
        """Translate from now on."""
        self.enabled = True
        for requester_id, context in self._contexts.items():
            self._attach(requester_id, context)

    def disable_translation(self) -> None:
        """Let every request pass untranslated. The caches keep their entries."""
        self.enabled = False
        self._attached.clear()

    def reset(self) -> None:
        """Power-on state: nothing enabled, nothing cached, no table known."""
        self.disable_translation()
        self.root_table = 0
        self._contexts.clear()
        self.iotlb.invalidate_all()
        self.faults.drain()
        self.remapper.reset()

    def invalidate_context(
        self, *, domain_id: int | None = None, requester_id: int | None = None
    ) -> None:
        """Context cache invalidation: global, of one domain, or of one device."""
        for known, context in list(self._contexts.items()):
            if (domain_id is None or context.domain_id == domain_id) and (
                requester_id is None or known == requester_id
            ):
                del self._contexts[known]
                self._attached.pop(known, None)

    def invalidate_iotlb(
        self, *, domain_id: int | None = None, iova: int | None = None, length: int = 4096
    ) -> None:
        """IOTLB invalidation: global, of one domain, or of ``length`` bytes at ``iova`` in it."""
        if domain_id is None:
            self.iotlb.invalidate_all()
        elif iova is None:
            self.iotlb.invalidate_domain(domain_id)
        else:
            self.iotlb.invalidate_range(domain_id, iova, length)

    # -- requests -----------------------------------------------------------------------------

    def translate_one(self, requester_id: int, iova: int, write: bool) -> tuple[int, int]:
        """The host physical address of ``iova`` and the bytes to the end of its leaf.

        Raises :class:`IommuFault` (recorded) for what is not permitted.
        """
        tlb = self._attached.get(requester_id)
        if tlb is not None:
            entry = tlb[0].get(iova >> 12) or tlb[1].get(iova >> 21)
            if entry is not None and entry[2] & (2 if write else 1):
                self.iotlb.hits += 1
                return iova + entry[0], entry[1] - iova
        return self._miss(requester_id, iova, write)

    def translate(self, requester_id: int, iova: int, length: int, write: bool) -> list[Extent]:
        """``[iova, iova + length)`` as host physical extents, neighbours merged.

        Raises :class:`IommuFault` for the first address that is not permitted; its ``extents`` are
        the pieces before that.
        """
        hpa, room = self.translate_one(requester_id, iova, write)
        if room >= length:
            return [(hpa, length)]
        extents: list[Extent] = []
        done = room
        start, size = hpa, room
        try:
            while done < length:
                hpa, room = self.translate_one(requester_id, iova + done, write)
                room = min(room, length - done)
                if hpa == start + size:
                    size += room
                else:
                    extents.append((start, size))
                    start, size = hpa, room
                done += room
        except IommuFault as fault:
            fault.extents = [*extents, (start, size)]
            raise
        extents.append((start, size))
        return extents

    def check_translated(self, requester_id: int, hpa: int, write: bool) -> None:
        """Let a request with AT=TRANSLATED pass if the context entry permits ATS."""
        if not self.enabled:
            return
        context = self._context(requester_id, hpa, write)
        if context.kind is not TranslationType.ALL:
            raise self._fault(
                requester_id, hpa, write, FaultReason.TRANSLATED_BLOCKED, context.fault_processing
            )

    def answer_ats(self, requester_id: int, iova: int) -> AtsAnswer:
        """Answer an ATS Translation Request; unmapped pages answer without permissions.

        Raises :class:`IommuFault` where the context entry does not permit ATS.
        """
        self.check_translated(requester_id, iova, write=False)
        context = self._context(requester_id, iova, False)
        walked = self._walk(context.table, iova) if iova < _LIMIT else FaultReason(4)
        if isinstance(walked, FaultReason):
            return AtsAnswer(0, 4096, False, False)
        delta, end, permissions, _size = walked
        return AtsAnswer(
            iova + delta, end - iova, bool(permissions & READ), bool(permissions & WRITE)
        )

    # -- walking ------------------------------------------------------------------------------

    def _miss(self, requester_id: int, iova: int, write: bool) -> tuple[int, int]:
        if not self.enabled:
            return iova, (1 << 64) - iova
        known = requester_id in self._attached
        context = self._context(requester_id, iova, write)
        if context.kind is TranslationType.PASS_THROUGH:
            return iova, (1 << 64) - iova
        if not known and requester_id in self._attached:
            return self.translate_one(requester_id, iova, write)
        if iova >= _LIMIT:
            raise self._fault(
                requester_id,
                iova,
                write,
                FaultReason.ADDRESS_BEYOND_WIDTH,
                context.fault_processing,
            )
        self.iotlb.misses += 1
        walked = self._walk(context.table, iova)
        if not isinstance(walked, FaultReason) and not walked[2] & (WRITE if write else READ):
            walked = FaultReason.READ_NOT_PERMITTED
        if isinstance(walked, FaultReason):
            if walked is FaultReason.READ_NOT_PERMITTED and write:
                walked = FaultReason.WRITE_NOT_PERMITTED
            raise self._fault(requester_id, iova, write, walked, context.fault_processing)
        self.iotlb.insert(context.domain_id, iova, walked)
        return iova + walked[0], walked[1] - iova

    def _attach(self, requester_id: int, context: Context) -> None:
        if context.kind is not TranslationType.PASS_THROUGH:
            self._attached[requester_id] = self.iotlb.domain(context.domain_id)

    def _walk(self, table: int, iova: int) -> Entry | FaultReason:
        """Follow the page tables; :attr:`FaultReason.READ_NOT_PERMITTED` for an empty entry."""
        self.walks += 1
        memory = self.memory
        words, base, end = memory.words, memory.base, memory.end
        permissions = READ | WRITE
        for shift in (39, 30, 21, 12):
            if not base <= table < end:
                return FaultReason.PAGE_TABLE_INVALID
            entry: int = words[((table - base) >> 3) + (iova >> shift & 511)]
            permissions &= entry
            if not permissions:
                return FaultReason.READ_NOT_PERMITTED
            address = entry & ADDRESS_MASK
            if shift == 12 or entry & SUPERPAGE:
                size = 1 << shift
                if shift == 39 or address & (size - 1):
                    return FaultReason.PAGE_ENTRY_RESERVED
                start = iova & -size
                return address - start, start + size, permissions, size
            table = address
        raise AssertionError("the last level always ends the walk")

    def _context(self, requester_id: int, iova: int, write: bool) -> Context:
        context = self._contexts.get(requester_id)
        if context is None:
            read = self._read_context(requester_id)
            if isinstance(read, FaultReason):
                low = self._context_word(requester_id)
                raise self._fault(requester_id, iova, write, read, not low & 2)
            context = self._contexts[requester_id] = read
            self._attach(requester_id, context)
        return context

    def _read_context(self, requester_id: int) -> Context | FaultReason:
        memory = self.memory
        if not memory.contains(self.root_table, 4096):
            return FaultReason.ROOT_TABLE_INVALID
        root = memory.read64(self.root_table + 16 * (requester_id >> 8))
        if not root & PRESENT:
            return FaultReason.ROOT_ENTRY_NOT_PRESENT
        if root & _ROOT_RESERVED:
            return FaultReason.ROOT_ENTRY_RESERVED
        at = (root & ADDRESS_MASK) + 16 * (requester_id & 0xFF)
        if not memory.contains(at, 16):
            return FaultReason.CONTEXT_TABLE_INVALID
        low, high = memory.read64(at), memory.read64(at + 8)
        if not low & PRESENT:
            return FaultReason.CONTEXT_ENTRY_NOT_PRESENT
        if low & _CONTEXT_RESERVED_LOW or high & _CONTEXT_RESERVED_HIGH:
            return FaultReason.CONTEXT_ENTRY_RESERVED
        if low >> 2 & 3 == 3 or high & 7 != _AW_48:
            return FaultReason.CONTEXT_ENTRY_INVALID
        return Context(
            high >> 8 & 0xFFFF, low & ADDRESS_MASK, TranslationType(low >> 2 & 3), not low & 2
        )

    def _context_word(self, requester_id: int) -> int:
        """The low word of a context entry that could not be used; 0 where it cannot be read."""
        memory = self.memory
        if not memory.contains(self.root_table, 4096):
            return 0
        root = memory.read64(self.root_table + 16 * (requester_id >> 8))
        at = (root & ADDRESS_MASK) + 16 * (requester_id & 0xFF)
        return memory.read64(at) if root & PRESENT and memory.contains(at, 16) else 0

    def _fault(
        self,
        requester_id: int,
        iova: int,
        write: bool,
        reason: FaultReason,
        fault_processing: bool,
    ) -> IommuFault:
        record = FaultRecord(requester_id, iova & ~0xFFF, write, reason)
        if fault_processing:
            self.faults.add(record)
        return IommuFault(record)
