"""The driver's side of virtio, from the specification: rings in memory, registers by the bus."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from vfiokit.pci.address import Bdf
from vfiokit.vmm.p2p import Outcome, Reply
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.trap_map import TrapMap
from vfiokit.vmm.virtio_p2p import VirtioP2p
from vfiokit.vmm.virtio_pci import VirtioFunction

NEXT, WRITE, INDIRECT = 1, 2, 4
RAM = 0x10000
DESCRIPTORS, AVAILABLE, USED, BUFFERS = 0x1000, 0x2000, 0x3000, 0x4000
REGISTERS, MSIX = 0xF000_0000, 0xF001_0000
SIZE = 8


class Ram:
    """``RAM`` bytes from 0 on."""

    def __init__(self, size: int = RAM) -> None:
        self.bytes = bytearray(size)

    def contains(self, gpa: int, length: int = 1) -> bool:
        return gpa >= 0 and gpa + length <= len(self.bytes)

    def read(self, gpa: int, length: int) -> bytes:
        assert self.contains(gpa, length), "the device left RAM"
        return bytes(self.bytes[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        assert self.contains(gpa, len(data)), "the device left RAM"
        self.bytes[gpa : gpa + len(data)] = data

    def describe(
        self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0,
        table: int = DESCRIPTORS,
    ) -> None:  # fmt: skip
        self.write(table + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))


class Host:
    """Where messages and lines go."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.level = False

    def message(self, function: object, address: int, data: int) -> None:
        self.messages.append((address, data))

    def line(self, function: object, level: bool) -> None:
        self.level = level

    def watch(self, fd: int, callback: object) -> None: ...

    def unwatch(self, fd: int) -> None: ...


@dataclass
class Source:
    """Answers from a table."""

    answers: dict[tuple[int, int], Reply] = field(default_factory=dict)
    asked: list[tuple[int, int]] = field(default_factory=list)
    enabled: bool = True

    def ask(self, provider: int, client: int) -> Reply:
        self.asked.append((provider, client))
        return self.answers.get((provider, client), Reply(Outcome.NO_FUNCTION))


class Guest:
    """A guest with nothing but the P2P device at 00:05.0, and a driver for it."""

    def __init__(self, source: Any = None) -> None:
        self.ram = Ram()
        self.source = Source() if source is None else source
        self.traps = TrapMap()
        self.host = Host()
        self.bus = PciBus(self.traps, TrapMap(1))
        self.bus.host = self.host
        self.device = VirtioP2p(self.source)
        self.function = VirtioFunction(Bdf(0, 0, 5, 0), self.ram, self.device)
        self.bus.add(self.function)
        self.available = self.taken = 0

    # -- registers

    def config(self, offset: int, width: int, value: int | None = None) -> int:
        if value is None:
            return self.bus.config_read(0, 5 << 3, offset, width)
        self.bus.config_write(0, 5 << 3, offset, width, value)
        return 0

    def read(self, gpa: int, width: int) -> int:
        found = self.traps.find(gpa)
        assert found is not None
        return found.wish.handler.read(found.offset + gpa - found.start, width)

    def write(self, gpa: int, width: int, value: int) -> None:
        found = self.traps.find(gpa)
        assert found is not None
        found.wish.handler.write(found.offset + gpa - found.start, width, value)

    def common(self, offset: int, width: int, value: int | None = None) -> int:
        if value is None:
            return self.read(REGISTERS + offset, width)
        self.write(REGISTERS + offset, width, value)
        return 0

    @property
    def status(self) -> int:
        return self.common(20, 1)

    def place(self) -> None:
        self.config(0x10, 4, REGISTERS)
        self.config(0x14, 4, MSIX)
        self.config(0x04, 2, 0x0006)

    def negotiate(self, features: int = 1 << 32) -> bool:
        self.common(20, 1, 0)
        self.common(20, 1, 1)
        self.common(20, 1, 3)
        for select in (0, 1):
            self.common(8, 4, select)
            self.common(12, 4, features >> 32 * select & 0xFFFF_FFFF)
        self.common(20, 1, 0x0B)
        return bool(self.status & 8)

    def set_up_queue(self, size: int = SIZE, vector: int = 0xFFFF) -> None:
        self.common(22, 2, 0)
        self.common(24, 2, size)
        self.common(26, 2, vector)
        for offset, gpa in ((32, DESCRIPTORS), (40, AVAILABLE), (48, USED)):
            self.common(offset, 4, gpa & 0xFFFF_FFFF)
            self.common(offset + 4, 4, gpa >> 32)
        self.common(28, 2, 1)

    def start(self, features: int = 1 << 32, vector: int = 0xFFFF) -> None:
        """All of the way to DRIVER_OK."""
        self.place()
        assert self.negotiate(features)
        self.set_up_queue(vector=vector)
        self.common(20, 1, 0x0F)
        self.available = self.taken = 0

    # -- requests

    def notify(self, queue: int = 0) -> None:
        self.write(REGISTERS + 0x3000 + 4 * queue, 2, queue)

    def offer(self, head: int, *, notify: bool = True) -> None:
        """Make a chain available."""
        self.ram.write(AVAILABLE + 4 + 2 * (self.available % SIZE), struct.pack("<H", head))
        self.available = self.available + 1 & 0xFFFF
        self.ram.write(AVAILABLE + 2, struct.pack("<H", self.available))
        if notify:
            self.notify()

    def used(self) -> list[tuple[int, int]]:
        """Chains that came back: head and bytes written."""
        found = []
        index = int.from_bytes(self.ram.read(USED + 2, 2), "little")
        while self.taken != index:
            slot = USED + 4 + 8 * (self.taken % SIZE)
            found.append(struct.unpack("<II", self.ram.read(slot, 8)))
            self.taken = self.taken + 1 & 0xFFFF
        return found

    def query(
        self, provider: int, client: int, *, version: int = 1, command: int = 1, flags: int = 0
    ) -> tuple[int, int, int, int]:
        """Ask by a chain of two descriptors: outcome, device's version, map type, distance."""
        request = struct.pack("<HHIII", version, command, flags, provider, client)
        self.ram.write(BUFFERS, request)
        self.ram.write(BUFFERS + 0x100, b"\xa5" * 16)
        self.ram.describe(0, BUFFERS, len(request), NEXT, 1)
        self.ram.describe(1, BUFFERS + 0x100, 16, WRITE)
        self.offer(0)
        assert self.used() == [(0, 16)]
        outcome, told, map_type, distance = struct.unpack(
            "<HHII4x", self.ram.read(BUFFERS + 0x100, 16)
        )
        return outcome, told, map_type, distance
