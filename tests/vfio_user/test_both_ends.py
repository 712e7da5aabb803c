"""Client and server together, in any order of requests, against a model of what a device is."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from served import SHARED, TWIN, Plain, open_files, serving

from vfiokit.errors import KernelError
from vfiokit.kernel import linux
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap, Feature, SetIrqs
from vfiokit.vfio_user.server import Server

PAGE = 4096
PAGES = 8
READ, WRITE = 1, 2
STOP, RUNNING = 1, 2
pages = st.integers(0, PAGES - 1)
offsets = st.integers(0, 0xF8)


class Memory:
    """The client's memory where the server has no file of it: the same bytes as the file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, iova: int, length: int) -> bytes:
        return os.pread(self.fd, length, iova)

    def write(self, iova: int, data: bytes) -> None:
        os.pwrite(self.fd, data, iova)


class BothEnds(RuleBasedStateMachine):
    """A device with 256 bytes of registers, DMA of 16 bytes, four vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.files = open_files()
        self.stack = contextlib.ExitStack()
        self.server = Server(Plain())
        self.memory = linux.memory_file("both", PAGE * PAGES)
        self.stack.callback(os.close, self.memory)
        self.events = [linux.eventfd() for _ in range(4)]
        for fd in self.events:
            self.stack.callback(os.close, fd)
        self.registers = bytearray(PAGE)
        self.bytes = bytearray(PAGE * PAGES)
        self.connection = contextlib.ExitStack()
        self.maps: dict[int, tuple[int, int]] = {}
        self.vectors: dict[int, int] = {}
        self.running = True
        self.client: Client

    @initialize(twin=st.booleans())
    def connect(self, twin: bool) -> None:
        sock, _ended = self.connection.enter_context(serving(self.server))
        memory = Memory(self.memory)
        self.client = self.connection.enter_context(
            Client(sock, offer=TWIN if twin else SHARED, memory=memory)
        )

    @rule(twin=st.booleans())
    def reconnect(self, twin: bool) -> None:
        """The device keeps its registers; memory and interrupts are gone."""
        self.connection.close()
        self.maps.clear()
        self.vectors.clear()
        self.running = True
        self.connect(twin)

    @rule(offset=offsets, data=st.binary(min_size=1, max_size=8), posted=st.booleans())
    def write(self, offset: int, data: bytes, posted: bool) -> None:
        self.client.region_write(0, offset, data[: 0x100 - offset], posted=posted)
        self.registers[offset : offset + len(data[: 0x100 - offset])] = data[: 0x100 - offset]

    @rule(offset=offsets, length=st.integers(1, 200))
    def read(self, offset: int, length: int) -> None:
        found = self.client.region_read(0, offset, length)
        assert found == self.registers[offset : offset + length]

    @rule(first=pages, count=st.integers(1, 3), flags=st.integers(1, 3), share=st.booleans())
    def map(self, first: int, count: int, flags: int, share: bool) -> None:
        count = min(count, PAGES - first)
        clash = any(
            at < first + count and first < at + size for at, (size, _flags) in self.maps.items()
        )
        same = first in self.maps and self.maps[first][0] == count
        request = DmaMap(first * PAGE, count * PAGE, flags, first * PAGE if share else 0)
        try:
            self.client.dma_map(request, self.memory if share else -1)
        except KernelError as error:
            assert (error.errno, clash, same) == (errno.EEXIST, True, False)  # noqa: PT017
        else:
            assert same or not clash
            self.maps[first] = (count, flags)

    @rule(first=pages, count=st.integers(1, 3))
    def unmap(self, first: int, count: int) -> None:
        held = self.maps.get(first, (0, 0))[0] == count
        try:
            self.client.dma_unmap(DmaUnmap(first * PAGE, count * PAGE))
        except KernelError as error:
            assert (error.errno, held) == (errno.ENOENT, False)  # noqa: PT017
        else:
            assert held
            del self.maps[first]

    @rule()
    def unmap_all(self) -> None:
        self.client.dma_unmap(DmaUnmap(0, 0, 2))
        self.maps.clear()

    def _may(self, iova: int, need: int) -> bool:
        """Whether 16 bytes at ``iova`` are mapped for ``need``."""
        allowed = {
            page: flags
            for first, (count, flags) in self.maps.items()
            for page in range(first, first + count)
        }
        touched = {iova // PAGE, (iova + 15) // PAGE}
        return all(allowed.get(page, 0) & need for page in touched)

    @rule(iova=st.integers(0, PAGE * PAGES - 16) | pages.map(lambda page: page * PAGE + PAGE - 8))
    def device_reads(self, iova: int) -> None:
        try:
            self.client.region_write(0, 0x100, struct.pack("<Q", iova))
        except KernelError as error:
            assert (error.errno, self._may(iova, READ)) == (errno.EFAULT, False)  # noqa: PT017
        else:
            assert self._may(iova, READ)
            self.registers[0x200:0x210] = self.bytes[iova : iova + 16]

    @rule(iova=st.integers(0, PAGE * PAGES - 16) | pages.map(lambda page: page * PAGE + PAGE - 8))
    def device_writes(self, iova: int) -> None:
        try:
            self.client.region_write(0, 0x108, struct.pack("<Q", iova))
        except KernelError as error:
            assert (error.errno, self._may(iova, WRITE)) == (errno.EFAULT, False)  # noqa: PT017
        else:
            assert self._may(iova, WRITE)
            self.bytes[iova : iova + 16] = b"sixteen bytes .."

    @rule(at=st.integers(0, PAGE * PAGES - 8), data=st.binary(min_size=8, max_size=8))
    def client_writes_memory(self, at: int, data: bytes) -> None:
        os.pwrite(self.memory, data, at)
        self.bytes[at : at + 8] = data

    @rule(start=st.integers(0, 3), count=st.integers(1, 4), order=st.permutations(range(4)))
    def give_eventfds(self, start: int, count: int, order: list[int]) -> None:
        chosen = order[: min(count, 4 - start)]
        self.client.set_irqs(
            SetIrqs(0x24, 2, start, len(chosen)), [self.events[each] for each in chosen]
        )
        self.vectors.update({start + at: each for at, each in enumerate(chosen)})

    @rule(start=st.integers(0, 3))
    def take_eventfd(self, start: int) -> None:
        self.client.set_irqs(SetIrqs(0x24, 2, start, 1))
        self.vectors.pop(start, None)

    @rule()
    def disable(self) -> None:
        self.client.set_irqs(SetIrqs(0x21, 2, 0, 0))
        self.vectors.clear()

    @rule(vector=st.integers(0, 3))
    def trigger(self, vector: int) -> None:
        self.client.set_irqs(SetIrqs(0x21, 2, vector, 1))
        for number, event in enumerate(self.events):
            try:
                count = os.eventfd_read(event)
            except BlockingIOError:
                count = 0
            assert count == (self.vectors.get(vector) == number)

    @rule()
    def reset(self) -> None:
        self.client.reset()
        self.registers[:] = bytes(PAGE)
        self.running = True

    @rule(run=st.booleans())
    def pause_or_run(self, run: bool) -> None:
        state = struct.pack("<Ii", RUNNING if run else STOP, -1)
        self.client.feature(Feature(1 << 17 | 2, state))
        self.running = run

    @precondition(lambda self: hasattr(self, "client"))
    @invariant()
    def both_know_the_state(self) -> None:
        reply = self.client.feature(Feature(1 << 16 | 2, bytes(8)))
        assert struct.unpack_from("<I", reply.data)[0] == (RUNNING if self.running else STOP)
        assert self.client.region_read(0, 0x200, 16) == self.registers[0x200:0x210]
        assert os.pread(self.memory, PAGE * PAGES, 0) == self.bytes

    def teardown(self) -> None:
        self.connection.close()
        self.stack.close()
        assert open_files() <= self.files


TestBothEnds: Any = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
