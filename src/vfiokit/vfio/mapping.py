"""What every address space of the kernel needs beside its own requests: which IOVAs are taken.

The kernel is the judge of every mapping; the records here choose addresses, name what is in the
way of a mapping that was refused, and free memory whose mapping is gone.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable

from vfiokit.errors import IovaConflictError, KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.failure import kernel_error
from vfiokit.vfio.iova import IovaAllocator
from vfiokit.vfio.memory import DmaBuffer

_HUGE_PAGES = (1 << 30, 1 << 21)


class MappedSpace(ABC):
    """An :class:`~vfiokit.vfio.address_space.AddressSpace` with the records of its mappings."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._page_size = kernel.page_size
        self._allocator: IovaAllocator | None = None
        self._mappings: dict[int, int] = {}
        self._unreserved: set[int] = set()
        self._buffers: dict[int, DmaBuffer] = {}

    # -- what a kind of address space adds ------------------------------------------------------

    @property
    @abstractmethod
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """Ranges that can be mapped, ascending."""

    @abstractmethod
    def unmap(self, iova: int, length: int) -> None:
        """Take away everything mapped in ``[iova, iova + length)``; raises :class:`KernelError`."""

    @abstractmethod
    def unmap_all(self) -> None:
        """Take every mapping away."""

    @abstractmethod
    def _ask_map(self, vaddr: int, length: int, iova: int | None, read: bool, write: bool) -> int:
        """Ask the kernel to map, anywhere if ``iova`` is ``None``; returns where.

        ``None`` comes only to those that override :meth:`_place`. Raises :class:`KernelError`.
        """

    @abstractmethod
    def _require_usable(self) -> None:
        """Raise :class:`UsageError` while nothing can be mapped here."""

    # -- address space ------------------------------------------------------------------------

    @property
    def page_size(self) -> int:
        """Smallest mapping in bytes."""
        return self._page_size

    @property
    def mappings(self) -> dict[int, int]:
        """Length of every mapping made here, by IOVA; a copy."""
        return dict(self._mappings)

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

        See :meth:`AddressSpace.allocate`. Raises :class:`KernelError` (ENOMEM beyond
        RLIMIT_MEMLOCK, ENOSPC without free IOVA), :class:`IovaConflictError`,
        :class:`UsageError`. The end of the address space closes buffers that are still open.
        """
        if length <= 0:
            raise UsageError(f"cannot allocate {length} bytes of DMA memory")
        self._require_usable()
        granule = max(self.page_size, self._kernel.page_size, huge_page_size)
        padded = -(-length // granule) * granule
        try:
            memory = self._kernel.allocate(padded, huge_page_size=huge_page_size)
        except OSError as error:
            raise kernel_error("allocate", f"{padded:#x} bytes", error) from error
        try:
            chosen = self.map(
                memory.vaddr,
                memory.length,
                iova=iova,
                max_iova=max_iova,
                alignment=alignment,
                read=read,
                write=write,
            )
        except BaseException:
            memory.close()
            raise
        buffer = DmaBuffer(memory, chosen, self.unmap)
        self._buffers[chosen] = buffer
        return buffer

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
        """Map memory of this process; returns the IOVA. See :meth:`AddressSpace.map`.

        Large mappings are aligned so that the IOMMU can use its large pages. Raises
        :class:`KernelError`, :class:`IovaConflictError`, :class:`UsageError`.
        """
        self._require_access(read, write)

        def ask(chosen: int | None) -> int:
            return self._ask_map(vaddr, length, chosen, read, write)

        return self._place(ask, length, iova, max_iova, alignment)

    # -- records ------------------------------------------------------------------------------

    @staticmethod
    def _require_access(read: bool, write: bool) -> None:
        if not read and not write:
            raise UsageError("a mapping that the device may neither read nor write is useless")

    def _place(
        self,
        ask: Callable[[int | None], int],
        length: int,
        iova: int | None,
        max_iova: int | None,
        alignment: int,
    ) -> int:
        """Choose an IOVA, or take the one given, have ``ask`` map there, and note the mapping."""
        self._require_usable()
        assert self._allocator is not None
        allocator = self._allocator
        if iova is None:
            alignment = alignment or next((size for size in _HUGE_PAGES if length >= size), 0)
            chosen = allocator.allocate(length, alignment, max_iova)
            reserved = True
        else:
            if max_iova is not None and iova + length - 1 > max_iova:
                raise UsageError(f"IOVA {iova:#x} and {length:#x} bytes exceed {max_iova:#x}")
            chosen = iova
            # The kernel is the judge of a fixed address; the allocator only keeps step.
            reserved = self._reserve(allocator, iova, length)
        try:
            ask(chosen)
        except KernelError as error:
            if reserved:
                allocator.free(chosen, length)
            if isinstance(error, IovaConflictError):
                raise self._name_conflict(error, chosen, length) from error.__cause__
            raise
        self._note(chosen, length, reserved)
        return chosen

    def _note(self, iova: int, length: int, reserved: bool) -> None:
        self._mappings[iova] = length
        if not reserved:
            self._unreserved.add(iova)

    @staticmethod
    def _reserve(allocator: IovaAllocator, iova: int, length: int) -> bool:
        """Take the range out of the allocator's hands if it is in them, whole."""
        whole = length > 0 and not (iova % allocator.granule or length % allocator.granule)
        free = whole and allocator.is_free(iova, length)
        if free:
            allocator.reserve(iova, length)
        return free

    def _renew_allocator(self, ranges: tuple[IovaRange, ...], page_size: int) -> None:
        """Start from other ranges or another page size, around the mappings there are."""
        self._page_size = page_size
        self._allocator = allocator = IovaAllocator(ranges, page_size)
        self._unreserved = {
            iova
            for iova, length in self._mappings.items()
            if not self._reserve(allocator, iova, length)
        }

    def _forget(self, iova: int) -> None:
        """The kernel took one mapping away."""
        length = self._mappings.pop(iova)
        if iova in self._unreserved:
            self._unreserved.discard(iova)
        elif self._allocator is not None:
            self._allocator.free(iova, length)
        buffer = self._buffers.pop(iova, None)
        if buffer is not None:
            buffer.forget_mapping()

    def _drop_mappings(self) -> None:
        """The kernel took all mappings away: note it and free what nobody holds."""
        buffers = list(self._buffers.values())
        self._mappings.clear()
        self._unreserved.clear()
        self._buffers.clear()
        for buffer in buffers:
            buffer.forget_mapping()
            try:
                buffer.close()
            except BufferError:
                continue

    def _name_conflict(self, error: IovaConflictError, iova: int, length: int) -> IovaConflictError:
        end = iova + length
        listed = ", ".join(
            f"[{start:#x}, {start + size - 1:#x}]"
            for start, size in sorted(self._mappings.items())
            if start < end and start + size > iova
        )
        detail = f"{error.detail}; overlaps {listed or 'a mapping of another user'}"
        return IovaConflictError(
            error.operation, error.subject, errno.EEXIST, detail=detail, hint=error.hint
        )
