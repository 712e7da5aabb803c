"""The Controller Memory Buffer: memory of the controller in a BAR, for queues, lists and data.

The host reaches it through the BAR; commands reach it by addresses in a window that the host
chooses with CMBMSC, usually the BAR's own bus address. Peers write to it as to any BAR.

Source: NVM Express Base Specification 2.0 §8.5, §3.1.3.11 to §3.1.3.17.
"""

from __future__ import annotations

from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme.registers import (
    CMBLOC,
    CMBMSC,
    CMBSTS,
    CMBSZ,
    RegisterFile,
    compose,
)
from vfiokit.machine.function import Function

_UNIT = 4096


class MemoryBuffer:
    """``size`` bytes (a multiple of 4 KiB, below 4 GiB) at the start of BAR ``bar``.

    ``memory`` are the bytes, where they shall be somebody else's too; all zero at first.
    """

    def __init__(self, size: int, bar: int, memory: memoryview | None = None) -> None:
        if size < _UNIT or size % _UNIT or size >= 1 << 32:
            raise UsageError(
                f"a controller memory buffer of {size:#x} bytes is impossible",
                hint="use a multiple of 4 KiB below 4 GiB",
            )
        if memory is not None and len(memory) != size:
            raise UsageError(f"{len(memory):#x} bytes for a buffer of {size:#x}")
        self.size = size
        self.bar = bar
        self.view = memoryview(bytearray(size)) if memory is None else memory
        self.start = 0
        """Address that commands use for the first byte."""
        self.window = 0
        """Bytes that commands can address: all once CMBMSC.CMSE is set with a usable base."""

    def configure(self, registers: RegisterFile) -> None:
        """Follow CMBMSC: show the location registers, open or close the window."""
        shown = registers.field(CMBMSC, "cre")
        registers.set(CMBLOC, self._location() if shown else 0)
        registers.set(CMBSZ, self._size() if shown else 0)
        self.start = registers.field(CMBMSC, "cba") << 12
        valid = self.start + self.size <= 1 << 64
        opened = shown and registers.field(CMBMSC, "cmse") and valid
        self.window = self.size if opened else 0
        registers.set(CMBSTS, 0 if valid else 1)

    def clear(self) -> None:
        """Lose the contents and the window, as a function reset does."""
        self.view[:] = bytes(self.size)
        self.window = 0

    def _location(self) -> int:
        unrestricted = dict.fromkeys(("cqmms", "cqpds", "cdpmls", "cdpcils", "cdmmms"), 1)
        return compose(CMBLOC, bir=self.bar, **unrestricted)

    def _size(self) -> int:
        return compose(CMBSZ, sqs=1, cqs=1, lists=1, rds=1, wds=1, sz=self.size // _UNIT)


class BufferedMemory:
    """The controller's view of memory: the buffer where its window is open, else the bus.

    A request that reaches past the window's end leaves for the bus as a whole.
    """

    def __init__(self, function: Function, buffer: MemoryBuffer) -> None:
        self._function = function
        self._buffer = buffer

    def read(self, iova: int, length: int) -> bytes:
        """As :meth:`vfiokit.machine.function.Dma.read`."""
        start = iova - self._buffer.start
        if 0 <= start <= self._buffer.window - length:
            return bytes(self._buffer.view[start : start + length])
        return self._function.dma.read(iova, length)

    def read_into(self, iova: int, buffer: memoryview) -> None:
        """As :meth:`vfiokit.machine.function.Dma.read_into`."""
        start = iova - self._buffer.start
        if 0 <= start <= self._buffer.window - len(buffer):
            buffer[:] = self._buffer.view[start : start + len(buffer)]
        else:
            self._function.dma.read_into(iova, buffer)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """As :meth:`vfiokit.machine.function.Dma.write`."""
        start = iova - self._buffer.start
        if 0 <= start <= self._buffer.window - len(data):
            self._buffer.view[start : start + len(data)] = data
        else:
            self._function.dma.write(iova, data)
