"""Memory that a device can reach: one object for the bytes, the vaddr and the IOVA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel, Memory
from vfiokit.vfio.owner import Closing


@contextmanager
def argument_memory(kernel: Kernel, content: bytes = b"", size: int = 0) -> Iterator[Memory]:
    """Memory that a request points to: ``content``, then zeros up to ``size`` bytes or more.

    Made through the seam, so that every backend resolves its ``vaddr``.
    """
    memory = kernel.allocate(max(len(content), size, 1))
    try:
        memory.view[: len(content)] = content
        yield memory
    finally:
        memory.close()


class DmaBuffer(Closing):
    """Process memory mapped into an address space; made by ``AddressSpace.allocate``.

    ``close`` (or leaving the ``with`` block) first takes the mapping away, so that the device can
    no longer reach the bytes, then frees them. It raises ``BufferError`` while slices of
    :attr:`view` are alive; the mapping is gone then, and a later ``close`` frees the memory.
    """

    __slots__ = ("_memory", "_unmap", "_view", "iova", "length")

    def __init__(self, memory: Memory, iova: int, unmap: Callable[[int, int], None]) -> None:
        self._memory: Memory | None = memory
        self._unmap: Callable[[int, int], None] | None = unmap
        self._view: memoryview | None = memory.view
        self.iova = iova
        """Address of the first byte as the device sees it."""
        self.length: int = memory.length
        """Bytes, a multiple of the page size."""

    @property
    def view(self) -> memoryview:
        """The bytes, writable, format ``B``."""
        if self._view is None:
            raise UsageError(f"DMA buffer at IOVA {self.iova:#x} is closed")
        return self._view

    @property
    def vaddr(self) -> int:
        """Address of the first byte in this process."""
        if self._memory is None:
            raise UsageError(f"DMA buffer at IOVA {self.iova:#x} is closed")
        return self._memory.vaddr

    @property
    def closed(self) -> bool:
        """Whether the memory is gone."""
        return self._memory is None

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<DmaBuffer iova={self.iova:#x} length={self.length:#x}{state}>"

    def close(self) -> None:
        """Unmap, then free. Idempotent."""
        if self._unmap is not None:
            self._unmap(self.iova, self.length)
            self._unmap = None
        if self._memory is not None:
            self._view = None
            self._memory.close()
            self._memory = None

    def forget_mapping(self) -> None:
        """Note that the mapping is gone already, with the address space or by ``unmap_all``."""
        self._unmap = None
