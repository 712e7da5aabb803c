"""Which pages a device has written: bitmaps, as VFIO and iommufd give them.

One bit per page from the lowest address on, in 64-bit little-endian words (Linux
``include/uapi/linux/vfio.h`` ``struct vfio_bitmap``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.memory import argument_memory

_NONZERO = re.compile(rb"[^\0]+")


class DirtyBitmap:
    """The dirty pages of ``[iova, iova + length)``; iterating gives their IOVAs, ascending.

    ``bits`` are the bytes of the bitmap, least significant bit first. ``UsageError`` for a page
    size that is no power of two or bytes that are too few.
    """

    __slots__ = ("bits", "iova", "length", "page_size")

    def __init__(self, iova: int, length: int, page_size: int, bits: bytes) -> None:
        if page_size < 1 or page_size & (page_size - 1):
            raise UsageError(f"page size {page_size} is not a power of two")
        self.iova = iova
        self.length = length
        self.page_size = page_size
        pages = -(-length // page_size)
        if len(bits) * 8 < pages:
            raise UsageError(f"{len(bits)} bytes are no bitmap of {pages} pages")
        kept = bytearray(bits[: -(-pages // 8)])
        if pages % 8:
            kept[-1] &= (1 << pages % 8) - 1
        self.bits = bytes(kept)

    def __repr__(self) -> str:
        return f"<DirtyBitmap iova={self.iova:#x} length={self.length:#x} dirty={len(self)}>"

    def __len__(self) -> int:
        """How many pages are dirty."""
        return int.from_bytes(self.bits, "little").bit_count()

    def __contains__(self, iova: int) -> bool:
        """Whether the page that holds ``iova`` is dirty."""
        page = (iova - self.iova) // self.page_size
        if not 0 <= page < len(self.bits) * 8:
            return False
        return bool(self.bits[page >> 3] >> (page & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        for run in _NONZERO.finditer(self.bits):
            for index in range(*run.span()):
                byte = self.bits[index]
                for bit in range(8):
                    if byte >> bit & 1:
                        yield self.iova + (index * 8 + bit) * self.page_size

    def ranges(self) -> Iterator[IovaRange]:
        """The dirty pages joined with their neighbours, ascending."""
        start = end = -1
        for page in self:
            if page != end:
                if end > start:
                    yield IovaRange(start, end - 1)
                start = page
            end = page + self.page_size
        if end > start:
            yield IovaRange(start, end - 1)


def read_bitmap(
    kernel: Kernel, iova: int, length: int, page_size: int, ask: Callable[[int, int], object]
) -> DirtyBitmap:
    """Have ``ask(vaddr, size)`` fill a bitmap of ``size`` bytes at ``vaddr``, and return it."""
    if length <= 0 or page_size < 1 or page_size & (page_size - 1):
        raise UsageError(f"no dirty bitmap of {length:#x} bytes in pages of {page_size:#x}")
    pages = -(-length // page_size)
    size = -(-pages // 64) * 8
    with argument_memory(kernel, size=size) as memory:
        ask(memory.vaddr, size)
        return DirtyBitmap(iova, length, page_size, bytes(memory.view[:size]))
