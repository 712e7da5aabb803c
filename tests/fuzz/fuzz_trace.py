"""Whatever a guest writes to an NVMe controller and to its queues, the tracer only explains.

Run with ``python tests/fuzz/fuzz_trace.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

from fuzzing import fuzz

_SIZE = 0x4000
_WIDTHS = (1, 2, 4, 8)


class _Memory:
    """Four pages of RAM at 0, as much of the guest's memory as a watcher asks for."""

    def __init__(self) -> None:
        self.data = bytearray(_SIZE)

    def read(self, gpa: int, length: int) -> bytes:
        """The bytes; :class:`UsageError` outside, as of a guest's memory."""
        from vfiokit.errors import UsageError

        if gpa < 0 or gpa + length > _SIZE:
            raise UsageError("no RAM")
        return bytes(self.data[gpa : gpa + length])


def one_input(data: bytes) -> None:
    """Eight bytes a step: stores to RAM, reads and writes of registers, of any width."""
    from typing import cast

    from vfiokit.vmm.memory import GuestMemory
    from vfiokit.vmm.trace_nvme import NvmeWatcher

    memory = _Memory()
    watcher = NvmeWatcher(cast("GuestMemory", memory))
    # A driver as it begins, so that doorbells mean something.
    for offset, width, value in ((0x24, 4, 0x3_0003), (0x28, 8, 0), (0x30, 8, 0x1000)):
        watcher.saw_write(offset, width, value)
    watcher.saw_write(0x14, 4, 0x46_0001)
    watcher.saw_read(0x1C, 4, 1)
    for start in range(0, len(data) - 7, 8):
        step = data[start : start + 8]
        place = int.from_bytes(step[1:3], "little")
        width = _WIDTHS[step[0] >> 4 & 3]
        value = int.from_bytes(step[3:8] * 2, "little") & (1 << 8 * width) - 1
        kind = step[0] & 3
        if kind == 0:
            at = place % (_SIZE - 8)
            memory.data[at : at + 5] = step[3:8]
        elif kind == 1:
            watcher.saw_read(place % 0x1100, width, value)
        else:
            offset = place % 0x1100 if kind == 2 else 0x1000 + place % 8 * 4
            reason = watcher.saw_write(offset, width, value if kind == 2 else value & 7)
            assert isinstance(reason, str)
        for queue in watcher.queues.values():
            assert 0 <= queue.tail < queue.size, queue
            assert 0 <= queue.head < queue.size, queue


if __name__ == "__main__":
    fuzz(one_input)
