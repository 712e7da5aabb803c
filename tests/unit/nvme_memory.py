"""DMA memory whose IOVAs are known, and a completer that answers commands by the specification."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from vfiokit.driver.nvme.queue import QueuePair
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.memory import DmaBuffer


class MemorySpace:
    """An address space over plain memory: IOVAs count up from ``start``."""

    page_size = 4096
    iova_ranges = (IovaRange(0, (1 << 48) - 1),)

    def __init__(self, start: int = 0x1000_0000) -> None:
        self.kernel = LinuxKernel()
        self.next = start
        self.buffers: dict[int, DmaBuffer] = {}

    def allocate(self, length: int, *, alignment: int = 0, **_wishes: object) -> DmaBuffer:
        alignment = max(alignment, 4096)
        memory = self.kernel.allocate(length)
        iova = -(-self.next // alignment) * alignment
        self.next = iova + memory.length
        buffer = DmaBuffer(memory, iova, lambda iova, _length: self.buffers.pop(iova))
        self.buffers[iova] = buffer
        return buffer

    def read(self, iova: int, length: int) -> bytes:
        """As a device's DMA would; ``LookupError`` where nothing is mapped."""
        for start, buffer in self.buffers.items():
            if start <= iova and iova + length <= start + buffer.length:
                return bytes(buffer.view[iova - start : iova - start + length])
        raise LookupError(f"DMA read of {length} bytes at {iova:#x}")

    def write(self, iova: int, data: bytes) -> None:
        for start, buffer in self.buffers.items():
            if start <= iova and iova + len(data) <= start + buffer.length:
                buffer.view[iova - start : iova - start + len(data)] = data
                return
        raise LookupError(f"DMA write of {len(data)} bytes at {iova:#x}")


class Completer:
    """The controller's side of one queue pair: doorbells in, completions out.

    Fetches entries when the tail doorbell is written and holds them in :attr:`fetched`;
    :meth:`complete` posts the completion of any of them. Fails on what the specification
    forbids: a doorbell out of range or written twice with one value, a full completion queue.
    """

    def __init__(self, space: MemorySpace, entries: int, queue_id: int = 1) -> None:
        self.space = space
        self.entries = entries
        self.tail_doorbell = 0x1000 + 8 * queue_id
        self.queue_id = queue_id
        self.sq_head = self.cq_tail = self.cq_head = 0
        self.phase = 1
        self.fetched: deque[tuple[int, ...]] = deque()
        self.on_command: Callable[[tuple[int, ...]], None] | None = None
        self.doorbells: list[tuple[int, int]] = []
        self.queue: QueuePair | None = None

    def write32(self, offset: int, value: int) -> None:
        assert self.queue is not None
        assert 0 <= value < self.entries
        self.doorbells.append((offset, value))
        if offset == self.tail_doorbell:
            assert value != self.sq_head, "the same tail twice"
            while self.sq_head != value:
                raw = self.space.read(self.queue.sq_iova + 64 * self.sq_head, 64)
                self.sq_head = (self.sq_head + 1) % self.entries
                command = struct.unpack("<BBHIQQQQIIIIII", raw)
                self.fetched.append(command)
                if self.on_command is not None:
                    self.on_command(command)
        else:
            assert offset == self.tail_doorbell + 4
            assert value != self.cq_head, "the same head twice"
            self.cq_head = value

    def write64(self, offset: int, value: int) -> None:
        raise AssertionError("doorbells are 32 bits wide")

    def read32(self, offset: int) -> int:
        raise AssertionError("doorbells are not read")

    read64 = read32

    def complete(self, command_id: int, status: int = 0, result: int = 0) -> None:
        assert self.queue is not None
        assert (self.cq_tail + 1) % self.entries != self.cq_head, "completion queue overflows"
        entry = struct.pack(
            "<IIHHHH",
            result,
            0,
            self.sq_head,
            self.queue_id,
            command_id,
            status << 1 | self.phase,
        )
        self.space.write(self.queue.cq_iova + 16 * self.cq_tail, entry)
        self.cq_tail += 1
        if self.cq_tail == self.entries:
            self.cq_tail, self.phase = 0, self.phase ^ 1


def new_queue(entries: int = 8, **wishes: object) -> tuple[QueuePair, Completer]:
    space = MemorySpace()
    completer = Completer(space, entries)
    queue = QueuePair(space, completer, 1, entries, **wishes)
    completer.queue = queue
    return queue, completer
