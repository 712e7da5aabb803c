"""Files of memory (``memfd_create``).

Source: Linux ``mm/memfd.c:memfd_pin_folios``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.errors import MachineError
from vfiokit.kernel.port import Mapping
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.process import PAGE_SIZE, AddressSpace, Extent, Region
from vfiokit.machine.kernel.width_access import WidthAccess
from vfiokit.machine.memory import PhysicalMemory


class MemoryFile(OpenFile):
    """A memfd of ``length`` bytes, all of them zero at first."""

    name = "a file of memory"

    def __init__(self, process: AddressSpace, memory: PhysicalMemory, length: int) -> None:
        """EINVAL for no bytes (a memfd cannot grow here), ENOMEM."""
        super().__init__()
        if length <= 0:
            raise failure(errno.EINVAL, f"a file of {length} bytes holds nothing")
        self.length = length
        pages = -(-length // PAGE_SIZE) * PAGE_SIZE
        try:
            hpa = memory.allocate(pages)
        except MachineError as error:
            raise failure(errno.ENOMEM, str(error)) from error
        self._process = process
        self._memory = memory
        self._region = Region(0, pages, hpa, mmio=False, on_free=lambda: memory.free(hpa, pages))

    def resolve(self, start: int, length: int) -> tuple[Region, Extent]:
        """Frames of the file; EINVAL beyond its last page."""
        if start + length > self._region.length:
            raise failure(errno.EINVAL, f"{length:#x} bytes at {start:#x} are beyond the file")
        return self._region, Extent(self._region.hpa + start, length, False)

    def pread(self, length: int, offset: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        length = max(min(length, self.length - offset), 0)
        return bytes(self._memory.slice(self._region.hpa + offset, length)) if length else b""

    def pwrite(self, data: bytes, offset: int) -> int:
        """Store bytes; ENOSPC beyond the end, where a real memfd would grow."""
        if offset + len(data) > self.length:
            raise failure(errno.ENOSPC, "the file cannot grow")
        self._memory.write(self._region.hpa + offset, data)
        return len(data)

    def mmap(self, length: int, offset: int, protection: int) -> Mapping:
        """Give the file a vaddr; EINVAL beyond its end, where a real access would be SIGBUS."""
        del protection
        pages = -(-length // PAGE_SIZE) * PAGE_SIZE
        if length <= 0 or offset % PAGE_SIZE or offset + pages > self._region.length:
            raise failure(errno.EINVAL, f"{length:#x} bytes at {offset:#x} are not in the file")
        hpa = self._region.hpa + offset
        vaddr, unmap = self._process.map_frames(self._region, hpa, pages)
        return MemoryMapping(self._memory.slice(hpa, length), vaddr, unmap)

    def release(self) -> None:
        """Free the frames that nothing has pinned or mapped."""
        self._region.close()


class MemoryMapping(WidthAccess):
    """A mapped file of memory; implements :class:`vfiokit.kernel.port.Mapping`."""

    def __init__(self, view: memoryview, vaddr: int, unmap: Callable[[], None]) -> None:
        self.length = len(view)
        self.vaddr = vaddr
        self.view: memoryview | None = view
        self._unmap: Callable[[], None] | None = unmap

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._unmap is not None:
            unmap, self._unmap = self._unmap, None
            self.view = None
            unmap()

    def _load(self, offset: int, width: int) -> int:
        return int.from_bytes(self._word(offset, width), "little")

    def _store(self, offset: int, width: int, value: int) -> None:
        if value < 0 or value >> 8 * width:
            raise ValueError(f"{value:#x} does not fit in {width} bytes")
        self._word(offset, width)[:] = value.to_bytes(width, "little")

    def _word(self, offset: int, width: int) -> memoryview:
        if self.view is None:
            raise ValueError("the mapping is closed")
        if offset < 0 or offset % width or offset + width > self.length:
            raise IndexError(f"no {width}-byte word at {offset:#x} of {self.length:#x} bytes")
        return self.view[offset : offset + width]


class MemorySource:
    """Bytes of a file of memory."""

    from_file = True
    counted = True

    def __init__(self, file: MemoryFile) -> None:
        self.resolve = file.resolve
        self.hold = file.hold
        self.drop = file.drop


class UnpinnableSource:
    """Any other file: EINVAL comes when it is pinned."""

    from_file = True
    counted = True

    def __init__(self, file: OpenFile) -> None:
        self._name = file.name
        self.hold = file.hold
        self.drop = file.drop

    def resolve(self, start: int, length: int) -> tuple[Region, Extent]:
        """EINVAL."""
        raise failure(errno.EINVAL, f"{self._name} is no memory: {length:#x} bytes at {start:#x}")
