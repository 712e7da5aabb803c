"""An architectural IOTLB: bounded, tagged by domain id, and stale until software invalidates it.

It is not a speed-up that may be forgotten: a driver that changes page tables without the
invalidation the specification asks for goes on using the old translation, here as on hardware.
Source: Intel VT-d Specification 4.1 §6.2.5 (IOTLB), §6.5.2.3 (invalidation granularity).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from vfiokit.errors import MachineError

SMALL_SHIFT: Final = 12
LARGE_SHIFT: Final = 21

Entry = tuple[int, int, int, int]
"""hpa minus iova, end of the leaf (iova), permissions (1 read, 2 write), leaf size in bytes."""

DomainTlb = tuple[dict[int, Entry], dict[int, Entry]]
"""Entries of one domain: 4 KiB leaves by ``iova >> 12``, larger ones by ``iova >> 21``.

A 1 GiB leaf takes an entry for every 2 MiB of it that is used, as hardware without 1 GiB entries
does.
"""


class Iotlb:
    """At most ``capacity`` entries over all domains; the oldest makes room for a new one."""

    def __init__(self, capacity: int = 65536) -> None:
        if capacity < 1:
            raise MachineError(f"an IOTLB of {capacity} entries holds nothing")
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._domains: dict[int, DomainTlb] = {}
        self._count = 0
        # Insertion order. Entries that were invalidated stay in it until they reach the front.
        self._order: deque[tuple[dict[int, Entry], int, Entry]] = deque()

    def __len__(self) -> int:
        return self._count

    def domain(self, domain_id: int) -> DomainTlb:
        """The entries of a domain. The same object for as long as the IOTLB lives."""
        return self._domains.setdefault(domain_id, ({}, {}))

    def insert(self, domain_id: int, iova: int, entry: Entry) -> None:
        """Remember the leaf that ``iova`` lies in, evicting the oldest entry when full."""
        small, large = self.domain(domain_id)
        table, key = (
            (small, iova >> SMALL_SHIFT) if entry[3] == 4096 else (large, iova >> LARGE_SHIFT)
        )
        if key not in table:
            if self._count >= self.capacity:
                self._evict()
            self._count += 1
        table[key] = entry
        self._order.append((table, key, entry))
        if len(self._order) > 2 * self.capacity + 64:
            self._order = deque(item for item in self._order if item[0].get(item[1]) is item[2])

    def invalidate_all(self) -> None:
        """Global invalidation."""
        for domain_id in self._domains:
            self.invalidate_domain(domain_id)

    def invalidate_domain(self, domain_id: int) -> None:
        """Domain-selective invalidation."""
        for table in self.domain(domain_id):
            self._count -= len(table)
            table.clear()

    def invalidate_range(self, domain_id: int, iova: int, length: int) -> None:
        """Page-selective invalidation: every entry whose leaf overlaps the range."""
        end = iova + length
        small, large = self.domain(domain_id)
        first, last = iova >> SMALL_SHIFT, (end - 1) >> SMALL_SHIFT
        if last - first < len(small):
            stale = [key for key in range(first, last + 1) if key in small]
        else:
            stale = [key for key in small if first <= key <= last]
        for key in stale:
            del small[key]
        gone = [
            key for key, (_, stop, _, size) in large.items() if stop > iova and stop - size < end
        ]
        for key in gone:
            del large[key]
        self._count -= len(stale) + len(gone)

    def _evict(self) -> None:
        while True:
            table, key, entry = self._order.popleft()
            if table.get(key) is entry:
                del table[key]
                self._count -= 1
                self.evictions += 1
                return
