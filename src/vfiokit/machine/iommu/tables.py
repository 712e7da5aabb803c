"""VT-d tables in machine memory: second-stage page tables, root and context tables.

These are what a driver of the IOMMU builds; the hardware side (:mod:`.vtd`) only reads the bytes.
Source: Intel VT-d Specification 4.1 §9.1 (root entry), §9.3 (context entry), §9.8 (second-stage
paging entries), §3.7 (second-stage translation).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from vfiokit.errors import MachineError
from vfiokit.machine.memory import PAGE, PhysicalMemory

ADDRESS_WIDTH: Final = 48
READ: Final = 1
WRITE: Final = 2
SUPERPAGE: Final = 0x80
ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000
PRESENT: Final = 1
_TOP_SHIFT: Final = 39
_EMPTY: Final = bytes(PAGE)
_LEAF_SHIFTS: Final = frozenset({12, 21, 30})


class TranslationType(IntEnum):
    """The TT field of a context entry."""

    UNTRANSLATED_ONLY = 0
    ALL = 1
    """Also ATS translation requests and translated requests."""
    PASS_THROUGH = 2


class Leaf(NamedTuple):
    """One leaf of a second-stage table."""

    iova: int
    hpa: int
    size: int
    read: bool
    write: bool


class SecondStage:
    """A 4-level second-stage table that maps IOVAs to host physical addresses.

    Mappings use the largest leaves that alignment allows; tables that become empty are freed.
    Nothing here invalidates an IOTLB: that is the owner's duty.
    """

    def __init__(self, memory: PhysicalMemory, *, largest_leaf: int = 1 << 30) -> None:
        """``largest_leaf`` is 4 KiB, 2 MiB or 1 GiB in bytes."""
        if largest_leaf not in {1 << shift for shift in _LEAF_SHIFTS}:
            raise MachineError(f"leaves have 4 KiB, 2 MiB or 1 GiB, not {largest_leaf} bytes")
        self.memory = memory
        self.largest_leaf = largest_leaf
        self.table_count = 1
        """Table pages in use, the root included."""
        self.root = memory.allocate(PAGE)

    def map(
        self, iova: int, hpa: int, length: int, *, read: bool = True, write: bool = True
    ) -> None:
        """Map ``length`` bytes. All values are multiples of 4 KiB.

        :class:`MachineError` when nothing is permitted, the range does not fit in 48 bits, part of
        it is mapped already (nothing changes then), or memory for tables runs out.
        """
        self._check(iova, length)
        if hpa % PAGE or not 0 <= hpa <= (1 << 52) - length:
            raise MachineError(f"{length:#x} bytes at hpa {hpa:#x} cannot be mapped")
        flags = (READ if read else 0) | (WRITE if write else 0)
        if not flags:
            raise MachineError("a mapping permits reads, writes or both")
        taken = self._first(self.root, _TOP_SHIFT, iova, iova + length)
        if taken is not None:
            raise MachineError(f"iova {taken:#x} is mapped already")
        try:
            self._fill(self.root, _TOP_SHIFT, iova, hpa - iova, iova + length, flags)
        except MachineError:
            self.unmap(iova, length)
            raise

    def unmap(self, iova: int, length: int) -> int:
        """Remove every mapping in the range; the number of bytes that were mapped.

        Holes are fine. A superpage that the range covers in part is split first.
        """
        self._check(iova, length)
        return self._clear(self.root, _TOP_SHIFT, iova, iova + length)

    def lookup(self, iova: int) -> Leaf | None:
        """The leaf that translates ``iova``; ``None`` where nothing is mapped."""
        table = self.root
        for shift in (39, 30, 21, 12):
            entry = self.memory.read64(table + 8 * (iova >> shift & 511))
            if not entry & (READ | WRITE):
                return None
            if _is_leaf(entry, shift):
                return _leaf(iova >> shift << shift, entry, shift)
            table = entry & ADDRESS_MASK
        return None

    def leaves(self) -> Iterator[Leaf]:
        """Every leaf, in IOVA order."""
        yield from self._leaves(self.root, _TOP_SHIFT, 0)

    def release(self) -> None:
        """Free every table; the object is of no use afterwards."""
        self.unmap(0, 1 << ADDRESS_WIDTH)
        self._free(self.root)

    # -- walking ------------------------------------------------------------------------------

    def _check(self, iova: int, length: int) -> None:
        if iova % PAGE or length % PAGE or length <= 0 or iova < 0:
            raise MachineError(f"iova {iova:#x}+{length:#x} is not made of {PAGE}-byte pages")
        if iova + length > 1 << ADDRESS_WIDTH:
            raise MachineError(f"iova {iova:#x}+{length:#x} needs more than {ADDRESS_WIDTH} bits")

    def _first(self, table: int, shift: int, iova: int, end: int) -> int | None:
        """The first mapped IOVA in ``[iova, end)``."""
        words = self.memory.words
        base = (table - self.memory.base) >> 3
        span = 1 << shift
        while iova < end:
            stop = min(end, (iova | span - 1) + 1)
            entry = words[base + (iova >> shift & 511)]
            if entry:
                if _is_leaf(entry, shift):
                    return iova
                found = self._first(entry & ADDRESS_MASK, shift - 9, iova, stop)
                if found is not None:
                    return found
            iova = stop
        return None

    def _fill(self, table: int, shift: int, iova: int, delta: int, end: int, flags: int) -> None:
        words = self.memory.words
        base = (table - self.memory.base) >> 3
        if shift == 12:
            first = base + (iova >> 12 & 511)
            count = (end - iova) >> 12
            words[first : first + count] = array(
                "Q", range(iova + delta | flags, end + delta | flags, PAGE)
            )
            return
        span = 1 << shift
        while iova < end:
            stop = min(end, (iova | span - 1) + 1)
            at = base + (iova >> shift & 511)
            if (
                span <= self.largest_leaf
                and stop - iova == span
                and not (iova + delta) & (span - 1)
            ):
                words[at] = iova + delta | flags | SUPERPAGE
            else:
                child = words[at] & ADDRESS_MASK or self._new_table(at)
                self._fill(child, shift - 9, iova, delta, stop, flags)
            iova = stop

    def _clear(self, table: int, shift: int, iova: int, end: int) -> int:
        words = self.memory.words
        base = (table - self.memory.base) >> 3
        if shift == 12:
            first, count = base + (iova >> 12 & 511), (end - iova) >> 12
            mapped = count - words[first : first + count].tolist().count(0)
            words[first : first + count] = array("Q", bytes(8 * count))
            return mapped * PAGE
        removed = 0
        span = 1 << shift
        while iova < end:
            stop = min(end, (iova | span - 1) + 1)
            at = base + (iova >> shift & 511)
            entry = words[at]
            if entry and _is_leaf(entry, shift) and stop - iova == span:
                words[at] = 0
                removed += span
            elif entry:
                child = self._split(at, shift) if _is_leaf(entry, shift) else entry & ADDRESS_MASK
                removed += self._clear(child, shift - 9, iova, stop)
                if self.memory.slice(child, PAGE) == _EMPTY:
                    words[at] = 0
                    self._free(child)
            iova = stop
        return removed

    def _split(self, at: int, shift: int) -> int:
        """Replace the superpage at word ``at`` by a table of leaves one size smaller."""
        entry = self.memory.words[at]
        step = 1 << (shift - 9)
        flags = entry & (READ | WRITE) | (SUPERPAGE if shift > 21 else 0)
        start = entry & ADDRESS_MASK
        child = self._new_table(at)
        first = (child - self.memory.base) >> 3
        self.memory.words[first : first + 512] = array(
            "Q", range(start | flags, (start | flags) + 512 * step, step)
        )
        return child

    def _leaves(self, table: int, shift: int, iova: int) -> Iterator[Leaf]:
        base = (table - self.memory.base) >> 3
        for index, entry in enumerate(self.memory.words[base : base + 512].tolist()):
            at = iova + (index << shift)
            if entry and _is_leaf(entry, shift):
                yield _leaf(at, entry, shift)
            elif entry:
                yield from self._leaves(entry & ADDRESS_MASK, shift - 9, at)

    def _new_table(self, at: int) -> int:
        table = self.memory.allocate(PAGE)
        self.table_count += 1
        self.memory.words[at] = table | READ | WRITE
        return table

    def _free(self, table: int) -> None:
        self.memory.free(table, PAGE)
        self.table_count -= 1


class ContextTables:
    """Root and context tables of one VT-d unit: which requester uses which second stage."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.root = memory.allocate(PAGE)

    def attach(
        self,
        requester_id: int,
        domain_id: int,
        second_stage: int | None,
        *,
        ats: bool = False,
        fault_processing: bool = True,
    ) -> None:
        """Point ``requester_id`` to the table at hpa ``second_stage``; ``None`` passes through.

        ``ats`` permits translation requests and translated requests.
        """
        if not 0 <= domain_id <= 0xFFFF:
            raise MachineError(f"domain id {domain_id} has more than 16 bits")
        if second_stage is None:
            kind = TranslationType.PASS_THROUGH
        else:
            kind = TranslationType.ALL if ats else TranslationType.UNTRANSLATED_ONLY
        low = PRESENT | (0 if fault_processing else 2) | kind << 2 | (second_stage or 0)
        entry = self.entry(requester_id)
        self.memory.write64(entry + 8, domain_id << 8 | 2)  # AW 010b: 48 bits, 4 levels
        self.memory.write64(entry, low)

    def detach(self, requester_id: int) -> None:
        """Clear the context entry: requests of ``requester_id`` fault."""
        entry = self.entry(requester_id)
        self.memory.write64(entry, 0)
        self.memory.write64(entry + 8, 0)

    def entry(self, requester_id: int) -> int:
        """The hpa of a context entry, making its bus' context table if needed."""
        slot = self.root + 16 * (requester_id >> 8)
        root = self.memory.read64(slot)
        if not root & PRESENT:
            root = self.memory.allocate(PAGE) | PRESENT
            self.memory.write64(slot, root)
        return (root & ADDRESS_MASK) + 16 * (requester_id & 0xFF)

    def release(self) -> None:
        """Free every table."""
        for bus in range(256):
            root = self.memory.read64(self.root + 16 * bus)
            if root & PRESENT:
                self.memory.free(root & ADDRESS_MASK, PAGE)
        self.memory.free(self.root, PAGE)


def _is_leaf(entry: int, shift: int) -> bool:
    return shift == 12 or (bool(entry & SUPERPAGE) and shift < _TOP_SHIFT)


def _leaf(iova: int, entry: int, shift: int) -> Leaf:
    return Leaf(iova, entry & ADDRESS_MASK, 1 << shift, bool(entry & READ), bool(entry & WRITE))
