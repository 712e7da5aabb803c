"""Memory of the calling process: synthetic virtual addresses over frames of the machine.

A map request names memory by its ``vaddr``. Here that is memory allocated from the machine's RAM,
or a mapping of a device's BAR; any other address is EFAULT, as for a real kernel.
"""

from __future__ import annotations

import ctypes
import errno
import weakref
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from vfiokit.errors import MachineError
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.memory import PhysicalMemory

PAGE_SIZE = 4096
HUGE_PAGE_SIZES = (1 << 21, 1 << 30)
FIRST_VADDR = 0x7F00_0000_0000


class Extent(NamedTuple):
    """Physically contiguous memory behind a range of virtual addresses."""

    hpa: int
    length: int
    mmio: bool


class Region:
    """A range of virtual addresses and what lies behind it.

    The frames stay while the region is open or pinned by a mapping of an IOMMU.
    """

    __slots__ = ("_on_free", "_open", "_pins", "hpa", "length", "mmio", "vaddr")

    def __init__(
        self, vaddr: int, length: int, hpa: int, *, mmio: bool, on_free: Callable[[], None]
    ) -> None:
        self.vaddr = vaddr
        self.length = length
        self.hpa = hpa
        self.mmio = mmio
        self._pins = 0
        self._open = True
        self._on_free = on_free

    def pin(self) -> None:
        """Keep the frames."""
        self._pins += 1

    def unpin(self) -> None:
        """Undo one :meth:`pin`."""
        self._pins -= 1
        self._free_if_unused()

    def close(self) -> None:
        """The process unmapped it."""
        self._open = False
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        if not self._open and not self._pins:
            self._on_free()


class AddressSpace:
    """The virtual address space of the one process that uses this machine."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._next = FIRST_VADDR
        self._starts: list[int] = []
        self._regions: list[Region] = []

    def allocate(self, length: int, huge_page_size: int = 0) -> ProcessMemory:
        """Zeroed memory of at least ``length`` bytes; see :meth:`Kernel.allocate`."""
        if length <= 0:
            raise failure(errno.EINVAL, f"cannot allocate {length} bytes")
        if huge_page_size and huge_page_size not in HUGE_PAGE_SIZES:
            raise failure(errno.EINVAL, f"no huge pages of {huge_page_size:#x} bytes")
        granule = huge_page_size or PAGE_SIZE
        length = -(-length // granule) * granule
        alignment = max(granule, HUGE_PAGE_SIZES[0] if length >= HUGE_PAGE_SIZES[0] else 0)
        try:
            hpa = self._memory.allocate(length, alignment)
        except MachineError as error:
            raise failure(errno.ENOMEM, str(error)) from error
        region = self._insert(
            length, hpa, alignment, mmio=False, on_free=lambda: self._memory.free(hpa, length)
        )
        return ProcessMemory(region, self._memory, lambda: self._unmap(region))

    def map_device(self, hpa: int, length: int) -> tuple[int, Callable[[], None]]:
        """Give ``length`` bytes of a device at ``hpa`` a virtual address; and how to unmap it."""
        region = self._insert(length, hpa, PAGE_SIZE, mmio=True, on_free=lambda: None)
        return region.vaddr, lambda: self._unmap(region)

    def map_frames(self, owner: Region, hpa: int, length: int) -> tuple[int, Callable[[], None]]:
        """Give frames of ``owner`` a virtual address; and how to unmap them."""
        owner.pin()
        region = self._insert(length, hpa, PAGE_SIZE, mmio=False, on_free=owner.unpin)
        return region.vaddr, lambda: self._unmap(region)

    def resolve(self, vaddr: int, length: int) -> tuple[Region, Extent]:
        """The region and the memory behind ``[vaddr, vaddr + length)``.

        EFAULT where any of it is unmapped. Regions never touch, so that a range lies in one.
        """
        index = bisect_right(self._starts, vaddr) - 1
        if index >= 0:
            region = self._regions[index]
            if vaddr + length <= region.vaddr + region.length:
                hpa = region.hpa + vaddr - region.vaddr
                return region, Extent(hpa, length, region.mmio)
        raise failure(
            errno.EFAULT, f"{length:#x} bytes at vaddr {vaddr:#x} are no memory of this process"
        )

    def bytes_at(self, vaddr: int, length: int) -> memoryview:
        """The bytes at ``vaddr``, writable; EFAULT for anything but plain memory."""
        _region, extent = self.resolve(vaddr, length)
        if extent.mmio:
            raise failure(errno.EFAULT, f"vaddr {vaddr:#x} is device memory")
        return self._memory.slice(extent.hpa, length)

    def _insert(
        self, length: int, hpa: int, alignment: int, *, mmio: bool, on_free: Callable[[], None]
    ) -> Region:
        vaddr = -(-self._next // alignment) * alignment
        self._next = vaddr + -(-length // PAGE_SIZE) * PAGE_SIZE + PAGE_SIZE
        region = Region(vaddr, length, hpa, mmio=mmio, on_free=on_free)
        self._starts.append(vaddr)  # addresses only grow, so the lists stay sorted
        self._regions.append(region)
        return region

    def _unmap(self, region: Region) -> None:
        index = bisect_right(self._starts, region.vaddr) - 1
        del self._starts[index], self._regions[index]
        region.close()


class ProcessMemory:
    """Allocated memory; implements :class:`vfiokit.kernel.port.Memory`."""

    def __init__(self, region: Region, memory: PhysicalMemory, unmap: Callable[[], None]) -> None:
        self.vaddr = region.vaddr
        self.length = region.length
        self._unmap: Callable[[], None] | None = unmap
        # A view of its own buffer object, so that slices taken by others can be noticed.
        start = region.hpa - memory.base
        memory.slice(region.hpa, region.length)
        self._buffer: ctypes.Array[ctypes.c_ubyte] | None = (
            ctypes.c_ubyte * region.length
        ).from_buffer(memory.view, start)
        self._view = memoryview(self._buffer).cast("B")

    @property
    def view(self) -> memoryview:
        """The bytes, writable, format ``B``; ``ValueError`` once closed."""
        return self._view

    def close(self) -> None:
        """Free the memory. Idempotent; ``BufferError`` while views of it are in use."""
        if self._unmap is None or self._buffer is None:
            return
        watch = weakref.ref(self._buffer)
        self._view.release()
        self._buffer = None
        alive = watch()
        if alive is not None:
            self._buffer = alive
            self._view = memoryview(alive).cast("B")
            raise BufferError(f"{self.length:#x} bytes at {self.vaddr:#x} are still in use")
        unmap, self._unmap = self._unmap, None
        unmap()
