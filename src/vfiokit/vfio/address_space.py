"""What drivers know of an address space: memory goes in, IOVAs come out.

:class:`~vfiokit.vfio.container.Container` (type1) is one; others can stand in its place without
a change to a driver.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vfiokit.vfio.memory import DmaBuffer


class IovaRange(NamedTuple):
    """I/O virtual addresses from ``start`` to ``last``, both included, as the kernel gives them."""

    start: int
    last: int

    @property
    def length(self) -> int:
        """Bytes in the range."""
        return self.last - self.start + 1

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.last:#x}]"


class AddressSpace(Protocol):
    """The addresses a device can reach by DMA, and what they lead to."""

    @property
    def page_size(self) -> int:
        """Smallest mapping in bytes; IOVAs and lengths are multiples of it."""
        ...

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """Ranges that can be mapped, ascending."""
        ...

    def allocate(
        self,
        length: int,
        *,
        iova: int | None = None,
        max_iova: int | None = None,
        alignment: int = 0,
        read: bool = True,
        write: bool = True,
        huge_page_size: int = 0,
    ) -> DmaBuffer:
        """Zeroed memory of at least ``length`` bytes, mapped for the device.

        ``iova`` fixes the address; otherwise one is chosen at a multiple of ``alignment`` whose
        last byte is at most ``max_iova``. ``read`` and ``write`` say what the device may do.
        """
        ...

    def map(
        self,
        vaddr: int,
        length: int,
        *,
        iova: int | None = None,
        max_iova: int | None = None,
        alignment: int = 0,
        read: bool = True,
        write: bool = True,
    ) -> int:
        """Map memory of this process; returns its IOVA. ``length`` is a multiple of the page."""
        ...

    def unmap(self, iova: int, length: int) -> None:
        """Take one mapping away again; from then on the device faults there."""
        ...

    def unmap_all(self) -> None:
        """Take every mapping away."""
        ...
