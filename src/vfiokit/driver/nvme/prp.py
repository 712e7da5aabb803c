"""Physical Region Pages: how a command names its data.

Source: NVM Express Base Specification 2.0 §4.1.1.
"""

from __future__ import annotations

import struct

from vfiokit.errors import UsageError
from vfiokit.vfio.address_space import AddressSpace
from vfiokit.vfio.memory import DmaBuffer


class ListPage:
    """One page for PRP entries: where to write it, and where the controller finds it."""

    __slots__ = ("buffer", "iova", "offset")

    def __init__(self, buffer: DmaBuffer, offset: int) -> None:
        self.buffer = buffer
        self.offset = offset
        self.iova = buffer.iova + offset


class ListPool:
    """Pages for PRP lists, made ``chunk`` at a time and used again."""

    def __init__(self, space: AddressSpace, page_size: int, chunk: int = 16) -> None:
        self._space = space
        self._chunk = chunk
        self._buffers: list[DmaBuffer] = []
        self._free: list[ListPage] = []
        self.page_size = page_size
        """Bytes; the controller's memory page size."""

    @property
    def free_pages(self) -> int:
        """Pages that can be taken without allocating."""
        return len(self._free)

    @property
    def total_pages(self) -> int:
        """Pages made so far."""
        return len(self._buffers) * self._chunk

    def take(self) -> ListPage:
        """A page whose content is undefined."""
        if not self._free:
            buffer = self._space.allocate(
                self._chunk * self.page_size, alignment=self.page_size, write=False
            )
            self._buffers.append(buffer)
            self._free = [
                ListPage(buffer, index * self.page_size) for index in reversed(range(self._chunk))
            ]
        return self._free.pop()

    def give_back(self, pages: list[ListPage]) -> None:
        """Return pages that no command uses any more."""
        self._free.extend(pages)

    def close(self) -> None:
        """Free all pages. Idempotent."""
        self._free.clear()
        while self._buffers:
            self._buffers.pop().close()


def build_prps(iova: int, length: int, pool: ListPool) -> tuple[int, int, list[ListPage]]:
    """PRP1, PRP2 and the list pages for ``[iova, iova + length)``, contiguous in IOVA.

    ``iova`` must be a multiple of 4. The pages belong to the caller until the command completes.
    """
    page_size = pool.page_size
    if length < 1:
        raise UsageError(f"a transfer of {length} bytes has no PRPs")
    if iova & 3:
        raise UsageError(f"PRP1 {iova:#x} is not aligned to 4 bytes")
    first_end = (iova // page_size + 1) * page_size
    end = iova + length
    if end <= first_end:
        return iova, 0, []
    if end <= first_end + page_size:
        return iova, first_end, []
    remaining = -(-(end - first_end) // page_size)
    per_page = page_size // 8
    pages = [pool.take()]
    entry = first_end
    while True:
        page = pages[-1]
        # The last slot is a pointer to the next list page only while data does not fit without.
        chained = remaining > per_page
        count = per_page - 1 if chained else remaining
        entries = list(range(entry, entry + count * page_size, page_size))
        entry += count * page_size
        remaining -= count
        if chained:
            pages.append(pool.take())
            entries.append(pages[-1].iova)
        struct.pack_into(f"<{len(entries)}Q", page.buffer.view, page.offset, *entries)
        if not chained:
            return iova, pages[0].iova, pages
