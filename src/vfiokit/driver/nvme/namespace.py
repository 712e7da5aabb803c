"""Reading and writing a namespace.

Source: NVM Command Set Specification 1.0 §3.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfiokit.driver.nvme.admin import check_status
from vfiokit.driver.nvme.prp import build_prps
from vfiokit.driver.nvme.queue import Completion, QueuePair
from vfiokit.driver.nvme.spec import IO_FUA, IoOpcode
from vfiokit.errors import UsageError
from vfiokit.vfio.memory import DmaBuffer

if TYPE_CHECKING:
    from vfiokit.driver.nvme.controller import NvmeController

_MAX_BLOCKS = 1 << 16
_MAX_BYTES = 1 << 20
"""Most bytes of one command where the controller sets no limit: bounds the PRP lists."""


class Namespace:
    """Logical blocks of one namespace, through one queue pair.

    Transfers of any length are cut at the controller's limit (MDTS) and kept in flight together.
    All commands raise :class:`NvmeCommandError`, :class:`DeviceTimeoutError` and
    :class:`ControllerFatalError`.
    """

    def __init__(self, controller: NvmeController, nsid: int, queue: QueuePair) -> None:
        self._controller = controller
        self._queue = queue
        self.nsid = nsid
        self.identity = controller.admin.identify_namespace(nsid)
        if not self.identity.size:
            raise UsageError(f"namespace {nsid} of {controller.device} is not active")
        form = self.identity.format
        self.block_size = form.block_size
        """Bytes of a logical block."""
        self.block_count = self.identity.size
        """Logical blocks."""
        if form.metadata_size or not 9 <= form.block_size.bit_length() - 1 <= 30:
            raise UsageError(
                f"namespace {nsid} of {controller.device} is formatted with blocks of "
                f"{form.block_size} bytes and {form.metadata_size} bytes of metadata",
                hint="format it without metadata",
            )

    def __repr__(self) -> str:
        return f"<Namespace {self.nsid} of {self._controller.device}: {self.block_count} blocks>"

    @property
    def max_blocks(self) -> int:
        """Most blocks that one command may move."""
        limit = self._controller.max_transfer or _MAX_BYTES
        return max(min(limit // self.block_size, _MAX_BLOCKS), 1)

    def read(self, lba: int, count: int, buffer: DmaBuffer, *, offset: int = 0) -> None:
        """Read ``count`` blocks from ``lba`` on into ``buffer`` at byte ``offset``."""
        self._run("Read", IoOpcode.READ, lba, count, self._place(buffer, offset, count))

    def write(
        self, lba: int, count: int, buffer: DmaBuffer, *, offset: int = 0, force: bool = False
    ) -> None:
        """Write ``count`` blocks from ``buffer``; ``force`` bypasses the volatile cache (FUA)."""
        iova = self._place(buffer, offset, count)
        self._run("Write", IoOpcode.WRITE, lba, count, iova, IO_FUA if force else 0)

    async def read_async(self, lba: int, count: int, buffer: DmaBuffer, *, offset: int = 0) -> None:
        """As :meth:`read`, in asyncio; many may be under way at once, each part by part."""
        iova = self._place(buffer, offset, count)
        await self._run_async("Read", IoOpcode.READ, lba, count, iova, 0)

    async def write_async(
        self, lba: int, count: int, buffer: DmaBuffer, *, offset: int = 0, force: bool = False
    ) -> None:
        """As :meth:`write`, in asyncio; many may be under way at once."""
        iova = self._place(buffer, offset, count)
        await self._run_async("Write", IoOpcode.WRITE, lba, count, iova, IO_FUA if force else 0)

    def read_bytes(self, lba: int, count: int) -> bytes:
        """``count`` blocks from ``lba`` on, through a buffer of its own."""
        length = self._length(count)
        with self._controller.device.address_space.allocate(length) as buffer:
            self.read(lba, count, buffer)
            return bytes(buffer.view[:length])

    def write_bytes(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data``, a whole number of blocks, from ``lba`` on."""
        count, rest = divmod(len(data), self.block_size)
        if rest:
            raise UsageError(
                f"{len(data)} bytes are no whole number of {self.block_size}-byte blocks"
            )
        with self._controller.device.address_space.allocate(self._length(count)) as buffer:
            buffer.view[: len(data)] = data
            self.write(lba, count, buffer)

    def write_zeroes(self, lba: int, count: int) -> None:
        """Make ``count`` blocks read as zeroes, where the controller has the command."""
        self._length(count)
        while count:
            part = min(count, _MAX_BLOCKS)
            self._execute("Write Zeroes", IoOpcode.WRITE_ZEROES, *_lba_words(lba, part))
            lba, count = lba + part, count - part

    def flush(self) -> None:
        """Put everything written so far on the media."""
        self._execute("Flush", IoOpcode.FLUSH)

    def _execute(self, operation: str, opcode: int, *words: int) -> None:
        timeout_s = self._controller.timeout_s
        prps = (0, 0) if words else ()
        done = self._queue.execute(timeout_s, opcode, self.nsid, *prps, *words)
        check_status(self._describe(operation), opcode, done)

    def _describe(self, operation: str) -> str:
        return f"{operation} of {self._controller.device} namespace {self.nsid}"

    def _length(self, count: int) -> int:
        if count < 1:
            raise UsageError(f"{count} blocks cannot be transferred")
        return count * self.block_size

    def _place(self, buffer: DmaBuffer, offset: int, count: int) -> int:
        length = self._length(count)
        if offset < 0 or offset % 4 or offset + length > buffer.length:
            raise UsageError(
                f"{length} bytes at offset {offset} do not fit a buffer of {buffer.length} bytes",
                hint="the offset is a multiple of 4",
            )
        return buffer.iova + offset

    def _parts(self, lba: int, count: int, iova: int) -> Iterator[tuple[int, int, int]]:
        if not 0 <= lba < 1 << 64:
            raise UsageError(f"{lba} is no logical block address")
        step = self.max_blocks
        for done in range(0, count, step):
            yield lba + done, min(step, count - done), iova + done * self.block_size

    def _submit(self, opcode: int, lba: int, count: int, iova: int, flags: int) -> int:
        queue = self._queue
        pool = self._controller.list_pool
        prp1, prp2, pages = build_prps(iova, count * self.block_size, pool)
        low, high, blocks = _lba_words(lba, count)
        try:
            cid = queue.submit(opcode, self.nsid, prp1, prp2, low, high, blocks | flags)
        except BaseException:
            pool.give_back(pages)
            raise
        queue.attach_list(cid, pages)
        return cid

    def _run(
        self, operation: str, opcode: int, lba: int, count: int, iova: int, flags: int = 0
    ) -> None:
        queue, timeout_s = self._queue, self._controller.timeout_s
        outstanding: deque[int] = deque()
        finished: list[Completion] = []
        try:
            for first, blocks, place in self._parts(lba, count, iova):
                while not queue.free_slots and outstanding:
                    finished.append(queue.wait(outstanding.popleft(), timeout_s))
                outstanding.append(self._submit(opcode, first, blocks, place, flags))
            queue.ring()
            while outstanding:
                finished.append(queue.wait(outstanding.popleft(), timeout_s))
        finally:
            for cid in outstanding:
                queue.abandon(cid)
        for done in finished:
            check_status(self._describe(operation), opcode, done)

    async def _run_async(
        self, operation: str, opcode: int, lba: int, count: int, iova: int, flags: int
    ) -> None:
        queue, timeout_s = self._queue, self._controller.timeout_s
        for first, blocks, place in self._parts(lba, count, iova):
            await queue.room_async(timeout_s)
            cid = self._submit(opcode, first, blocks, place, flags)
            done = await queue.wait_async(cid, timeout_s)
            check_status(self._describe(operation), opcode, done)


def _lba_words(lba: int, count: int) -> tuple[int, int, int]:
    """cdw10, cdw11 and the block count of cdw12."""
    return lba & 0xFFFFFFFF, lba >> 32, count - 1
