"""Submission and completion queues as the controller sees them.

Source: NVM Express Base Specification 2.0 §3.3.1 (rings, full and empty, phase), §3.1.2.1
(doorbells).
"""

from __future__ import annotations

from vfiokit.machine.device.nvme.command import COMPLETION_SIZE, ENTRY_SIZE


class CompletionQueue:
    """A ring of ``size`` completion entries at ``iova``; the controller owns the tail."""

    __slots__ = (
        "head",
        "interrupt_enabled",
        "iova",
        "phase",
        "queue_id",
        "size",
        "submitters",
        "tail",
        "vector",
    )

    def __init__(
        self, queue_id: int, iova: int, size: int, *, vector: int, interrupt_enabled: bool
    ) -> None:
        self.queue_id = queue_id
        self.iova = iova
        self.size = size
        """Entries."""
        self.vector = vector
        self.interrupt_enabled = interrupt_enabled
        self.head = 0
        self.tail = 0
        self.phase = 1
        self.submitters: set[int] = set()
        """Submission queues that complete here."""

    @property
    def room(self) -> int:
        """Entries that can be posted before the ring is full."""
        return (self.head - self.tail - 1) % self.size

    @property
    def unconsumed(self) -> int:
        """Entries posted that the host has not acknowledged by its head doorbell."""
        return (self.tail - self.head) % self.size

    def accepts_head(self, value: int) -> bool:
        """Whether a head doorbell value is possible: within the ring, not past the tail."""
        return value < self.size and (value - self.head) % self.size <= self.unconsumed

    @property
    def next_iova(self) -> int:
        """Where the next entry goes; its phase is :attr:`phase`."""
        return self.iova + self.tail * COMPLETION_SIZE

    def advance(self) -> None:
        """An entry was made for the next slot; the phase flips with each wrap."""
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1


class SubmissionQueue:
    """A ring of ``size`` submission entries at ``iova``; the controller owns the head."""

    __slots__ = ("completions", "head", "iova", "queue_id", "size", "tail")

    def __init__(self, queue_id: int, iova: int, size: int, completions: CompletionQueue) -> None:
        self.queue_id = queue_id
        self.iova = iova
        self.size = size
        """Entries."""
        self.completions = completions
        self.head = 0
        self.tail = 0

    @property
    def pending(self) -> int:
        """Entries submitted and not yet fetched."""
        return (self.tail - self.head) % self.size

    def accepts_tail(self, value: int) -> bool:
        """Whether a tail doorbell value is possible: within the ring, and not backwards.

        Moving the tail back over entries already submitted is the same as submitting almost a
        full ring; what distinguishes it is that the ring would hold more than it can.
        """
        if value >= self.size:
            return False
        return self.pending + (value - self.tail) % self.size < self.size

    def contiguous(self, limit: int) -> tuple[int, int]:
        """IOVA and count of the next at most ``limit`` entries that do not wrap."""
        count = min(self.pending, limit, self.size - self.head)
        return self.iova + self.head * ENTRY_SIZE, count

    def consume(self) -> int:
        """One entry was fetched: the new head, as completions report it."""
        self.head += 1
        if self.head == self.size:
            self.head = 0
        return self.head
