"""What a device model sees of a host: memory behind a bus, message interrupts, a pin."""

from __future__ import annotations

from vfiokit.machine.function import Function
from vfiokit.machine.txn import Completion, DmaError, Kind, Txn

BASE = 0x10_0000
MESSAGES = 0xFEE0_0000


class HostMemory:
    """``size`` bytes at IOVA ``BASE``. Reads elsewhere fail, writes elsewhere vanish, and writes
    at ``MESSAGES`` are interrupts."""

    def __init__(self, size: int = 4 << 20) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.messages: list[int] = []
        self.writes = 0
        self.reads = 0

    def _range(self, iova: int, length: int) -> slice | None:
        start = iova - BASE
        return slice(start, start + length) if 0 <= start <= len(self.data) - length else None

    def read(self, iova: int, length: int) -> bytes:
        self.reads += 1
        where = self._range(iova, length)
        if where is None:
            raise DmaError(Txn(Kind.READ, iova, length, 0), Completion.UNSUPPORTED_REQUEST)
        return bytes(self.view[where])

    def read_into(self, iova: int, buffer: memoryview) -> None:
        self.reads += 1
        where = self._range(iova, len(buffer))
        if where is None:
            raise DmaError(Txn(Kind.READ, iova, len(buffer), 0), Completion.UNSUPPORTED_REQUEST)
        buffer[:] = self.view[where]

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        if MESSAGES <= iova < MESSAGES + 0x10_0000:
            self.messages.append(int.from_bytes(data, "little"))
            return
        self.writes += 1
        where = self._range(iova, len(data))
        if where is not None:
            self.view[where] = data


class Pin:
    """An INTx wire that remembers its level and counts rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


def plug(function: Function) -> tuple[HostMemory, Pin]:
    """Give ``function`` memory and a pin, memory decoding and bus mastering."""
    memory, pin = HostMemory(), Pin()
    function.dma = memory
    function.intx = pin
    function.config_write(0x04, 2, 0x0006)
    return memory, pin


def enable_msi(function: Function, data: int = 0x40, *, vectors: int = 1) -> None:
    """Program and enable MSI: vector n sends ``data + n``."""
    assert function.msi is not None
    at = function.msi.offset
    function.config_write(at + 4, 4, MESSAGES)
    function.config_write(at + (0x0C if function.msi.wide else 8), 2, data)
    function.config_write(at + 2, 2, 1 | (vectors.bit_length() - 1) << 4)


def enable_msix(function: Function, data: int = 0x100) -> None:
    """Program every entry (vector n sends ``data + n``), unmask it, enable MSI-X."""
    msix = function.msix
    assert msix is not None
    for vector in range(msix.count):
        at = msix.table_offset + 16 * vector
        for offset, value in ((0, MESSAGES), (4, 0), (8, data + vector), (12, 0)):
            function.bar_write(msix.table_bar, at + offset, 4, value)
    function.config_write(msix.offset + 2, 2, 0x8000)
