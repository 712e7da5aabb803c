"""The device's side of a split virtqueue, on memory that a guest may have filled with anything.

Source: Virtual I/O Device (VIRTIO) Version 1.2 §2.7. What the specification forbids the driver
raises :class:`QueueError`; nothing that the guest writes can do worse, and each chain costs at most
as many steps as the queue has entries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from vfiokit.errors import UsageError

MAX_SIZE = 32768
"""Entries that a split queue may have at most."""

NEXT, WRITE, INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1

_DESCRIPTOR = struct.Struct("<QIHH")
DESCRIPTOR_SIZE = _DESCRIPTOR.size


class QueueError(Exception):
    """The driver broke a rule of the queue: the device has to be reset."""


class Dma(Protocol):
    """Guest memory as a device reaches it; :class:`~vfiokit.vmm.memory.GuestMemory` is one."""

    def contains(self, gpa: int, length: int = 1) -> bool:
        """Whether ``[gpa, gpa + length)`` is RAM."""
        ...

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        ...

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data``."""
        ...


class Piece(NamedTuple):
    """A buffer of a chain."""

    gpa: int
    length: int
    """Bytes."""


class Chain(NamedTuple):
    """What one entry of the available ring leads to."""

    head: int
    """Index of the first descriptor."""
    readable: tuple[Piece, ...]
    """For the device to read."""
    writable: tuple[Piece, ...]
    """For the device to write."""

    @property
    def request_size(self) -> int:
        """Bytes that the driver wrote for the device."""
        return sum(piece.length for piece in self.readable)

    @property
    def reply_room(self) -> int:
        """Bytes that the device may write."""
        return sum(piece.length for piece in self.writable)


@dataclass(slots=True)
class QueueSetup:
    """What the driver says of a queue before it enables it; addresses are guest-physical."""

    size: int = 0
    """Entries."""
    vector: int = 0xFFFF
    """MSI-X vector; 0xffff for none."""
    enabled: bool = False
    descriptors: int = 0
    """Descriptor table."""
    driver: int = 0
    """Available ring."""
    device: int = 0
    """Used ring."""


class SplitQueue:
    """One queue. The driver's registers are :attr:`setup`; the rings are in ``memory``.

    ``max_size`` is a power of two up to :data:`MAX_SIZE` (:class:`UsageError` otherwise).
    """

    def __init__(self, memory: Dma, max_size: int) -> None:
        if not 0 < max_size <= MAX_SIZE or max_size & max_size - 1:
            raise UsageError(f"a queue cannot have {max_size} entries")
        self._memory = memory
        self.max_size = max_size
        self.setup = QueueSetup(max_size)
        self._next_available = 0
        self._next_used = 0
        self.indirect = False
        """Whether ``VIRTIO_F_INDIRECT_DESC`` was negotiated."""

    def reset(self) -> None:
        """As after power-on."""
        self.setup = QueueSetup(self.max_size)
        self._next_available = self._next_used = 0
        self.indirect = False

    # -- rules --------------------------------------------------------------------------------

    def check(self) -> None:
        """The rules that the driver's registers must meet before the queue is used."""
        setup = self.setup
        if not 0 < setup.size <= self.max_size or setup.size & setup.size - 1:
            raise QueueError(f"a queue of {setup.size} entries: no power of two up to the maximum")
        for name, gpa, alignment, length in (
            ("descriptor table", setup.descriptors, 16, DESCRIPTOR_SIZE * setup.size),
            ("available ring", setup.driver, 2, 6 + 2 * setup.size),
            ("used ring", setup.device, 4, 6 + 8 * setup.size),
        ):
            if gpa % alignment:
                raise QueueError(f"the {name} at gpa {gpa:#x} is not aligned to {alignment} bytes")
            self._require(gpa, length, name)

    def _require(self, gpa: int, length: int, name: str) -> None:
        if not self._memory.contains(gpa, length):
            raise QueueError(f"the {name}, {length:#x} bytes at gpa {gpa:#x}, is outside RAM")

    # -- the rings ----------------------------------------------------------------------------

    def pending(self) -> Iterator[Chain]:
        """Take the chains that the driver made available; each is to be given back by :meth:`use`.

        At most as many as the queue has entries, however fast the driver adds new ones.
        """
        self.check()
        for _ in range(self.setup.size):
            chain = self._take()
            if chain is None:
                return
            yield chain

    def _take(self) -> Chain | None:
        ring, size = self.setup.driver, self.setup.size
        index = int.from_bytes(self._memory.read(ring + 2, 2), "little")
        waiting = index - self._next_available & 0xFFFF
        if not waiting:
            return None
        if waiting > size:
            raise QueueError(f"{waiting} chains available in a queue of {size} entries")
        slot = ring + 4 + 2 * (self._next_available % size)
        head = int.from_bytes(self._memory.read(slot, 2), "little")
        chain = self._walk(head)
        self._next_available = self._next_available + 1 & 0xFFFF
        return chain

    def _walk(self, head: int) -> Chain:
        readable: list[Piece] = []
        writable: list[Piece] = []
        for gpa, length, flags in self._descriptors(head):
            piece = Piece(gpa, length)
            self._require(gpa, length, "buffer")
            if flags & WRITE:
                writable.append(piece)
            elif writable:
                raise QueueError("a buffer to be read follows one to be written")
            else:
                readable.append(piece)
        if sum(piece.length for piece in (*readable, *writable)) >= 1 << 32:
            raise QueueError("a chain of 4 GiB or more")
        return Chain(head, tuple(readable), tuple(writable))

    def _descriptors(self, head: int) -> Iterator[tuple[int, int, int]]:
        """Address, length and flags of each buffer of a chain, indirect ones in their place."""
        table, count, index = self.setup.descriptors, self.setup.size, head
        indirect = False
        steps = 0
        while True:
            if index >= count:
                raise QueueError(f"descriptor {index} of {count}")
            if steps >= self.setup.size:
                raise QueueError("a chain longer than the queue: its descriptors form a loop")
            steps += 1
            raw = self._memory.read(table + DESCRIPTOR_SIZE * index, DESCRIPTOR_SIZE)
            gpa, length, flags, following = _DESCRIPTOR.unpack(raw)
            if flags & INDIRECT:
                table, count = self._indirect(gpa, length, flags, nested=indirect)
                indirect, index, steps = True, 0, 0
                continue
            if not length:
                raise QueueError("a buffer of no bytes")
            yield gpa, length, flags
            if not flags & NEXT:
                return
            index = following

    def _indirect(self, gpa: int, length: int, flags: int, *, nested: bool) -> tuple[int, int]:
        if not self.indirect:
            raise QueueError("an indirect descriptor, which was not negotiated")
        if nested:
            raise QueueError("an indirect descriptor in an indirect table")
        if flags & NEXT:
            raise QueueError("an indirect descriptor that has a next one")
        if not length or length % DESCRIPTOR_SIZE:
            raise QueueError(f"an indirect table of {length} bytes")
        self._require(gpa, length, "indirect table")
        return gpa, length // DESCRIPTOR_SIZE

    def use(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back with ``written`` bytes in its writable buffers."""
        ring, size = self.setup.device, self.setup.size
        slot = ring + 4 + 8 * (self._next_used % size)
        self._memory.write(slot, struct.pack("<II", chain.head, written))
        self._next_used = self._next_used + 1 & 0xFFFF
        # The index last: a driver that sees it finds the entry complete.
        self._memory.write(ring + 2, self._next_used.to_bytes(2, "little"))

    @property
    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of used buffers; a hint."""
        flags = int.from_bytes(self._memory.read(self.setup.driver, 2), "little")
        return not flags & _NO_INTERRUPT

    # -- buffers ------------------------------------------------------------------------------

    def gather(self, chain: Chain, limit: int) -> bytes:
        """The driver's bytes, at most ``limit`` of them."""
        found = bytearray()
        for piece in chain.readable:
            found += self._memory.read(piece.gpa, min(piece.length, limit - len(found)))
            if len(found) >= limit:
                break
        return bytes(found)

    def scatter(self, chain: Chain, data: bytes) -> int:
        """Write ``data`` into the writable buffers; how much of it had room."""
        done = 0
        for piece in chain.writable:
            part = data[done : done + piece.length]
            if not part:
                break
            self._memory.write(piece.gpa, part)
            done += len(part)
        return done

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that :meth:`load` needs, as plain data."""
        return {
            "setup": asdict(self.setup),
            "next_available": self._next_available,
            "next_used": self._next_used,
            "indirect": self.indirect,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.setup = QueueSetup(**state["setup"])
        self._next_available = state["next_available"]
        self._next_used = state["next_used"]
        self.indirect = state["indirect"]
