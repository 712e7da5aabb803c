"""Memory of a guest: ranges of RAM at guest-physical addresses.

The bytes are allocated through the kernel seam, so that they can be mapped for the guest's devices:
with the IOMMU's address equal to the guest-physical one, DMA arrives where the guest's driver means
it to.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel, Memory
from vfiokit.vfio import AddressSpace
from vfiokit.vfio.owner import Closing

LOW_LIMIT = 0xC000_0000
"""Where RAM of a large guest ends below 4 GiB; devices have the addresses from here on."""
HIGH_START = 1 << 32


class RamRange(NamedTuple):
    """One range of RAM."""

    gpa: int
    """Guest-physical address of the first byte."""
    length: int
    """Bytes, a multiple of the host's page size."""
    vaddr: int
    """Address of the first byte in this process, as the kernel knows it."""
    view: memoryview
    """The bytes, writable, format ``B``."""

    @property
    def end(self) -> int:
        """One past the last guest-physical address."""
        return self.gpa + self.length


class GuestMemory(Closing):
    """The RAM of one guest; use it in a ``with`` block.

    ``layout`` are ``(gpa, length)`` pairs in bytes, whole pages that do not overlap
    (:class:`UsageError` otherwise). ``OSError`` ENOMEM when the host has not that much.
    """

    def __init__(self, kernel: Kernel, layout: Sequence[tuple[int, int]]) -> None:
        _check_layout(layout, kernel.page_size)
        self._memories: list[Memory] = []
        self._mapped: list[AddressSpace] = []
        self._listeners: list[Callable[[int, int], None]] = []
        try:
            for _gpa, length in sorted(layout):
                self._memories.append(kernel.allocate(length))
        except BaseException:
            self.close()
            raise
        self.ranges: tuple[RamRange, ...] = tuple(
            RamRange(gpa, length, memory.vaddr, memory.view[:length])
            for (gpa, length), memory in zip(sorted(layout), self._memories, strict=True)
        )
        """Ascending."""
        self._starts = [each.gpa for each in self.ranges]

    @classmethod
    def of_size(cls, kernel: Kernel, size: int) -> GuestMemory:
        """``size`` bytes as a PC has them: from 0 up to 3 GiB, the rest from 4 GiB on."""
        low = min(size, LOW_LIMIT)
        layout = [(0, low)]
        if size > low:
            layout.append((HIGH_START, size - low))
        return cls(kernel, layout)

    def __repr__(self) -> str:
        listed = ", ".join(f"{each.gpa:#x}-{each.end - 1:#x}" for each in self.ranges)
        return f"<GuestMemory {listed}>"

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return sum(each.length for each in self.ranges)

    def __iter__(self) -> Iterator[tuple[int, memoryview]]:
        """``(gpa, view)`` of every range, ascending."""
        return ((each.gpa, each.view) for each in self.ranges)

    # -- access -------------------------------------------------------------------------------

    def contains(self, gpa: int, length: int = 1) -> bool:
        """Whether ``[gpa, gpa + length)`` is RAM, all of it in one range."""
        return self._range(gpa, length) is not None

    def slice(self, gpa: int, length: int) -> memoryview:
        """The bytes of ``[gpa, gpa + length)``, writable; :class:`UsageError` outside RAM.

        What is written through it, listeners are not told of.
        """
        found = self._range(gpa, length)
        if found is None:
            raise UsageError(f"{length:#x} bytes at gpa {gpa:#x} are no RAM of this guest")
        return found.view[gpa - found.gpa : gpa - found.gpa + length]

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes; :class:`UsageError` outside RAM."""
        return bytes(self.slice(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` and tell who listens; :class:`UsageError` outside RAM."""
        self.slice(gpa, len(data))[:] = data
        for listener in self._listeners:
            listener(gpa, len(data))

    def read_number(self, gpa: int, width: int) -> int:
        """``width`` bytes as a little-endian number."""
        return int.from_bytes(self.slice(gpa, width), "little")

    def write_number(self, gpa: int, width: int, value: int) -> None:
        """Store a little-endian number of ``width`` bytes."""
        self.write(gpa, value.to_bytes(width, "little"))

    def listen(self, listener: Callable[[int, int], None]) -> None:
        """Call ``listener(gpa, length)`` after every :meth:`write`: a processor's cached code."""
        self._listeners.append(listener)

    def _range(self, gpa: int, length: int) -> RamRange | None:
        index = bisect_right(self._starts, gpa) - 1
        if index < 0 or length < 0:
            return None
        found = self.ranges[index]
        return found if gpa + length <= found.end else None

    # -- DMA ----------------------------------------------------------------------------------

    def map_for(self, space: AddressSpace) -> None:
        """Let the devices of ``space`` reach all RAM, at IOVA = guest-physical address.

        Once for each space, however often it is asked. Raises :class:`KernelError`, with nothing
        left mapped: EINVAL where the IOMMU cannot have an address, ENOMEM beyond
        RLIMIT_MEMLOCK.
        """
        if any(each is space for each in self._mapped):
            return
        with ExitStack() as undo:
            for each in self.ranges:
                space.map(each.vaddr, each.length, iova=each.gpa)
                undo.callback(space.unmap, each.gpa, each.length)
            undo.pop_all()
        self._mapped.append(space)

    def unmap_from(self, space: AddressSpace) -> None:
        """Take the RAM away from the devices of ``space``; nothing where it is not mapped."""
        if not any(each is space for each in self._mapped):
            return
        self._mapped = [each for each in self._mapped if each is not space]
        for each in self.ranges:
            space.unmap(each.gpa, each.length)

    # -- state and end ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All bytes, compressed, as plain data."""
        return {
            "ranges": [
                {"gpa": each.gpa, "length": each.length, "zlib": zlib.compress(each.view, 1)}
                for each in self.ranges
            ]
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; :class:`UsageError` for RAM of another layout."""
        saved = [(each["gpa"], each["length"]) for each in state["ranges"]]
        if saved != [(each.gpa, each.length) for each in self.ranges]:
            raise UsageError(f"the saved guest has other RAM than {self!r}")
        for each in state["ranges"]:
            self.write(each["gpa"], zlib.decompress(each["zlib"]))

    def close(self) -> None:
        """Unmap and free. Idempotent; ``BufferError`` while somebody holds views of it."""
        for space in tuple(self._mapped):
            self.unmap_from(space)
        for each in getattr(self, "ranges", ()):
            each.view.release()
        self.ranges = ()
        self._starts = []
        while self._memories:
            self._memories[-1].close()
            self._memories.pop()


def _check_layout(layout: Sequence[tuple[int, int]], page_size: int) -> None:
    end = 0
    for gpa, length in sorted(layout):
        if gpa % page_size or length % page_size or length <= 0:
            raise UsageError(
                f"RAM of {length:#x} bytes at gpa {gpa:#x} is not made of {page_size:#x}-byte pages"
            )
        if gpa < end:
            raise UsageError(f"two ranges of RAM overlap at gpa {gpa:#x}")
        end = gpa + length
