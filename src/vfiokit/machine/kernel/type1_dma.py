"""A mapping of a type1 container."""

from __future__ import annotations

from vfiokit.machine.kernel.process import Extent, Region


class Dma:
    """One mapping: ``size`` bytes at ``iova`` onto ``extent``."""

    __slots__ = ("extent", "iova", "readable", "region", "size", "vaddr", "vaddr_valid", "writable")

    def __init__(
        self,
        iova: int,
        size: int,
        vaddr: int,
        region: Region,
        extent: Extent,
        *,
        readable: bool,
        writable: bool,
    ) -> None:
        self.iova = iova
        self.size = size
        self.vaddr = vaddr
        self.region = region
        self.extent = extent
        self.readable = readable
        self.writable = writable
        self.vaddr_valid = True

    @property
    def last(self) -> int:
        """The last IOVA of the mapping."""
        return self.iova + self.size - 1
