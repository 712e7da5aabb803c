"""A driver as small as it can be, for tests: raw registers, raw entries, one wait."""

from __future__ import annotations

import struct
from typing import NamedTuple

from device_host import BASE, HostMemory, Pin, enable_msix, plug

from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.pci.address import Bdf

PAGE = 4096
CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = (
    0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30,
)  # fmt: skip
ENABLE = 4 << 20 | 6 << 16 | 1

DNR = 1 << 14
MORE = 1 << 13


class Cqe(NamedTuple):
    """A completion entry, decoded by its documented offsets."""

    result: int
    sq_head: int
    sq_id: int
    cid: int
    phase: int
    status: int
    """SCT and SC."""
    do_not_retry: bool


class Queue:
    """A submission queue with a completion queue of its own."""

    def __init__(self, host: NvmeHost, queue_id: int, size: int) -> None:
        self.host, self.queue_id, self.size = host, queue_id, size
        self.sq = host.allocate(64 * size)
        self.cq = host.allocate(16 * size)
        self.tail = self.head = 0
        self.phase = 1
        self.last_sq_head = 0

    def push(self, entry: bytes) -> None:
        """Put an entry into the ring; the doorbell is separate."""
        assert len(entry) == 64
        self.host.poke(self.sq + 64 * self.tail, entry)
        self.tail = (self.tail + 1) % self.size

    def ring_tail(self) -> None:
        self.host.doorbell(2 * self.queue_id, self.tail)

    def ring_head(self) -> None:
        self.host.doorbell(2 * self.queue_id + 1, self.head)

    def reap(self, *, ring: bool = True) -> list[Cqe]:
        """Every completion that is there."""
        found = []
        while True:
            at = self.cq + 16 * self.head
            result, sq_head, sq_id, cid, status = struct.unpack("<QHHHH", self.host.peek(at, 16))
            if status & 1 != self.phase:
                break
            status, phase = status >> 1, status & 1
            found.append(
                Cqe(result, sq_head, sq_id, cid, phase, status & 0x7FF, bool(status & DNR))
            )
            self.head += 1
            if self.head == self.size:
                self.head, self.phase = 0, self.phase ^ 1
        if found and ring:
            self.ring_head()
        return found


class NvmeHost:
    """Drives one controller; ``settle`` runs the clock as the software machine does."""

    def __init__(self, function: NvmeFunction | None = None, *, msix: bool = True) -> None:
        self.function = function or NvmeFunction.synthetic(Bdf(0, 1, 0, 0), capacity=16 << 20)
        self.memory: HostMemory
        self.pin: Pin
        self.memory, self.pin = plug(self.function)
        if msix:
            enable_msix(self.function)
        self._next = BASE
        self.cid = 0
        self.queues: dict[int, Queue] = {}

    # -- memory and registers -----------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """Zeroed pages; their IOVA."""
        iova, self._next = self._next, self._next + -(-size // PAGE) * PAGE
        assert self._next <= BASE + len(self.memory.data)
        return iova

    def poke(self, iova: int, data: bytes) -> None:
        self.memory.view[iova - BASE : iova - BASE + len(data)] = data

    def peek(self, iova: int, length: int) -> bytes:
        return bytes(self.memory.view[iova - BASE : iova - BASE + length])

    def read(self, offset: int, width: int = 4) -> int:
        return self.function.bar_read(0, offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.function.bar_write(0, offset, width, value)
        self.function.clock.settle()

    def doorbell(self, index: int, value: int) -> None:
        stride = 4 << (self.read(CAP, 8) >> 32 & 15)
        self.write(0x1000 + index * stride, value)

    # -- bring-up -----------------------------------------------------------------------------

    def enable(self, entries: int = 32) -> Queue:
        """Reset and enable the controller with an admin queue pair."""
        self.write(CC, 0)
        admin = Queue(self, 0, entries)
        self.write(AQA, entries - 1 << 16 | entries - 1)
        self.write(ASQ, admin.sq, 8)
        self.write(ACQ, admin.cq, 8)
        self.write(CC, ENABLE)
        assert self.read(CSTS) == 1
        self.queues = {0: admin}
        return admin

    def entry(self, opcode: int, **fields: int) -> bytes:
        """A submission entry; names as in the specification, ``cdw10`` to ``cdw15``."""
        self.cid = (self.cid + 1) & 0xFFFF
        values = [fields.pop(f"cdw{number}", 0) for number in range(10, 16)]
        packed = struct.pack(
            "<BBHIQQQQ6I",
            opcode,
            fields.pop("flags", 0),
            fields.pop("cid", self.cid),
            fields.pop("nsid", 0),
            0,
            0,
            fields.pop("prp1", 0),
            fields.pop("prp2", 0),
            *values,
        )
        assert not fields, fields
        return packed

    def submit(self, queue_id: int, opcode: int, **fields: int) -> Cqe:
        """Run one command and return its completion, checking what must always hold."""
        queue = self.queues[queue_id]
        entry = self.entry(opcode, **fields)
        queue.push(entry)
        queue.ring_tail()
        completions = queue.reap()
        assert len(completions) == 1, completions
        (cqe,) = completions
        assert cqe.cid == int.from_bytes(entry[2:4], "little")
        assert cqe.sq_id == queue_id
        assert cqe.sq_head == queue.tail
        return cqe

    def admin(self, opcode: int, **fields: int) -> Cqe:
        return self.submit(0, opcode, **fields)

    def create_queue(
        self, queue_id: int = 1, entries: int = 16, vector: int = 1, *, interrupts: bool = True
    ) -> Queue:
        """A completion queue and a submission queue with the same id."""
        queue = Queue(self, queue_id, entries)
        size = (entries - 1) << 16 | queue_id
        cdw11 = vector << 16 | interrupts << 1 | 1
        assert self.admin(0x05, prp1=queue.cq, cdw10=size, cdw11=cdw11).status == 0
        assert self.admin(0x01, prp1=queue.sq, cdw10=size, cdw11=queue_id << 16 | 1).status == 0
        self.queues[queue_id] = queue
        return queue

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        page = self.allocate(PAGE)
        cqe = self.admin(0x06, nsid=nsid, prp1=page, cdw10=cns)
        assert cqe.status == 0, hex(cqe.status)
        return self.peek(page, PAGE)

    def prps(self, length: int, *, scattered: bool = False) -> tuple[int, int, list[int]]:
        """Pages for a transfer: PRP1, PRP2 and the page addresses in order."""
        count = -(-length // PAGE)
        start = self.allocate(count * PAGE)
        pages = [start + PAGE * index for index in range(count)]
        if scattered:
            pages.reverse()
        if count == 1:
            return pages[0], 0, pages
        if count == 2:
            return pages[0], pages[1], pages
        page_list = self.allocate(8 * (count - 1))
        self.poke(page_list, struct.pack(f"<{count - 1}Q", *pages[1:]))
        return pages[0], page_list, pages


def ready(**arguments: object) -> NvmeHost:
    """An enabled controller with I/O queue pair 1."""
    host = NvmeHost(**arguments)  # type: ignore[arg-type]
    host.enable()
    host.create_queue()
    return host
