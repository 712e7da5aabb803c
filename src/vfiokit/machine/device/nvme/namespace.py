"""The namespace: a block store seen as logical blocks."""

from __future__ import annotations

from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme.backing import BlockStore, Buffer
from vfiokit.machine.device.nvme.command import CDW10_LOCATION
from vfiokit.machine.device.nvme.status import CommandFailedError, Status


class Namespace:
    """``store`` in logical blocks of ``1 << block_shift`` bytes; a partial last block is unused.

    Methods raise :class:`CommandFailedError`: LBA Out of Range, Namespace is Write Protected,
    or a media error where the store raised ``OSError``.
    """

    def __init__(self, store: BlockStore, block_shift: int) -> None:
        self.store = store
        self.block_shift = block_shift
        self.block_count = store.size >> block_shift
        if not self.block_count:
            raise UsageError(
                f"a store of {store.size} bytes holds no block of {1 << block_shift} bytes"
            )

    def check(self, slba: int, count: int) -> None:
        """Refuse a range that reaches beyond the last block."""
        if slba + count > self.block_count:
            raise CommandFailedError(Status.LBA_OUT_OF_RANGE, location=CDW10_LOCATION, lba=slba)

    def check_writable(self) -> None:
        """Refuse to change a read-only medium."""
        if self.store.read_only:
            raise CommandFailedError(Status.NAMESPACE_WRITE_PROTECTED)

    def read(self, slba: int, count: int) -> Buffer:
        """The bytes of ``count`` checked blocks."""
        try:
            return self.store.read(slba << self.block_shift, count << self.block_shift)
        except OSError as error:
            raise CommandFailedError(Status.UNRECOVERED_READ_ERROR, lba=slba) from error

    def write(self, slba: int, data: Buffer) -> None:
        """Store whole blocks into a checked range."""
        try:
            self.store.write(slba << self.block_shift, data)
        except OSError as error:
            raise CommandFailedError(Status.WRITE_FAULT, lba=slba) from error

    def zero(self, slba: int, count: int) -> None:
        """Make ``count`` checked blocks read as zeros, giving their storage back."""
        try:
            self.store.zero(slba << self.block_shift, count << self.block_shift)
        except OSError as error:
            raise CommandFailedError(Status.WRITE_FAULT, lba=slba) from error

    def flush(self) -> None:
        """Make what was written durable."""
        try:
            self.store.flush()
        except OSError as error:
            raise CommandFailedError(Status.WRITE_FAULT) from error

    def used_blocks(self) -> int:
        """Blocks' worth of storage in use."""
        return -(-self.store.used() >> self.block_shift)
