"""QEMU's educational device: a liveness register, a slow factorial, a DMA engine, interrupts.

Source of the behaviour: QEMU ``docs/specs/edu.rst`` and ``hw/misc/edu.c``. Conventional PCI
1234:11e8 with one memory BAR of 1 MiB, interrupt pin A and one 64-bit MSI message.

=======  ==  ==========================================================================
offset       register (4-byte accesses; from 0x80 on 4 or 8 bytes)
=======  ==  ==========================================================================
0x00     RO  identification 0x010000ed
0x04     RW  liveness: reads back the complement of what was written
0x08     RW  factorial: write n, read n! modulo 2**32 once status bit 0 clears
0x20     RW  status: 0x01 computing (RO), 0x80 interrupt when the factorial is done
0x24     RO  interrupt status
0x60     WO  raise: sets bits of the interrupt status
0x64     WO  acknowledge: clears bits of the interrupt status
0x80     RW  DMA source
0x88     RW  DMA destination
0x90     RW  DMA length in bytes
0x98     RW  DMA command: 0x1 start, 0x2 buffer to RAM (else RAM to buffer), 0x4 interrupt
=======  ==  ==========================================================================

The device's buffer is 4096 bytes at device address 0x40000; only the DMA engine reaches it. DMA
registers ignore writes while a transfer runs. Where a read is refused, zeros arrive. A 4-byte write
to a DMA register clears its upper half. Any other offset or width reads all ones and drops writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vfiokit.machine.build import MsiLayout, endpoint_config
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.machine.txn import DmaError
from vfiokit.pci.address import Bdf

VENDOR_ID: Final = 0x1234
DEVICE_ID: Final = 0x11E8

IDENTIFICATION: Final = 0x00
LIVENESS: Final = 0x04
FACTORIAL: Final = 0x08
STATUS: Final = 0x20
IRQ_STATUS: Final = 0x24
IRQ_RAISE: Final = 0x60
IRQ_ACKNOWLEDGE: Final = 0x64
DMA_SOURCE: Final = 0x80
DMA_DESTINATION: Final = 0x88
DMA_COUNT: Final = 0x90
DMA_COMMAND: Final = 0x98

STATUS_COMPUTING: Final = 0x01
STATUS_IRQ: Final = 0x80
COMMAND_RUN: Final = 0x1
COMMAND_TO_RAM: Final = 0x2
COMMAND_IRQ: Final = 0x4
IRQ_FACTORIAL: Final = 0x001
IRQ_DMA: Final = 0x100

BUFFER_ADDRESS: Final = 0x40000
BUFFER_SIZE: Final = 4096
BAR_SIZE: Final = 1 << 20

_ID_VALUE: Final = 0x010000ED
_WIDE_FROM: Final = 0x80
_PAGE: Final = 4096
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_FIRST_ZERO_FACTORIAL: Final = 34
"""34! is the first factorial that is a multiple of 2**32."""


class EduFunction(Function):
    """The device at ``bdf``.

    ``dma_mask`` are the address bits of its DMA engine (28 by default, so IOVAs from 256 MiB on
    are silently truncated, as on QEMU); ``dma_delay_ns`` and ``factorial_delay_ns`` run on the
    machine's virtual clock. ``config`` replaces the configuration space, for instance by a
    captured one.
    """

    def __init__(
        self,
        bdf: Bdf,
        *,
        dma_mask: int = (1 << 28) - 1,
        config: ConfigModel | None = None,
        dma_delay_ns: int = 100_000_000,
        factorial_delay_ns: int = 1_000,
    ) -> None:
        if config is None:
            config = endpoint_config(
                VENDOR_ID,
                DEVICE_ID,
                0x00FF00,
                revision=0x10,
                subsystem_vendor_id=0x1AF4,
                subsystem_id=0x1100,
                express=False,
                interrupt_pin=1,
                pm=False,
                msi=MsiLayout(1),
            )
        super().__init__(bdf, config, (BarModel(0, BAR_SIZE),))
        self.dma_mask = dma_mask
        self.dma_delay_ns = dma_delay_ns
        self.factorial_delay_ns = factorial_delay_ns
        self.buffer = bytearray(BUFFER_SIZE)
        self.guest_errors: list[str] = []
        """What a driver did wrong, in words; the device itself reports none of it."""
        self._epoch = 0
        self._power_on()
        if self.msi is not None:
            config.watch(self.msi.offset + 2, 2, self._interrupt_mode_changed)

    def _power_on(self) -> None:
        self._liveness = 0
        self._factorial = 0
        self._status = 0
        self._irq_status = 0
        self._dma = {DMA_SOURCE: 0, DMA_DESTINATION: 0, DMA_COUNT: 0, DMA_COMMAND: 0}
        self._epoch += 1  # voids whatever the clock still holds
        self.buffer[:] = bytes(BUFFER_SIZE)

    # -- registers ----------------------------------------------------------------------------

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        """A load; all ones for what is no register or has another width."""
        ones = (1 << 8 * width) - 1
        if bar != 0 or not _width_fits(offset, width):
            return ones
        if offset >= _WIDE_FROM:
            return self._dma.get(offset, ones) & ones
        values = {
            IDENTIFICATION: _ID_VALUE,
            LIVENESS: self._liveness,
            FACTORIAL: self._factorial,
            STATUS: self._status,
            IRQ_STATUS: self._irq_status,
        }
        return values.get(offset, ones)

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store; dropped for what is no register, is read-only, or has another width."""
        if bar != 0 or not _width_fits(offset, width):
            return
        if offset in self._dma:
            self._write_dma(offset, value)
            return
        handler = self._WRITES.get(offset)
        if handler is not None:
            handler(self, value)

    def _write_liveness(self, value: int) -> None:
        self._liveness = ~value & _U32

    def _write_factorial(self, value: int) -> None:
        if self._status & STATUS_COMPUTING:
            return
        self._factorial = value
        self._status |= STATUS_COMPUTING
        self._after(self.factorial_delay_ns, self._factorial_done)

    def _write_status(self, value: int) -> None:
        self._status = self._status & ~STATUS_IRQ | value & STATUS_IRQ

    def _write_raise(self, value: int) -> None:
        self._raise(value)

    def _write_acknowledge(self, value: int) -> None:
        self._irq_status &= ~value
        self._update_pin()

    def _write_dma(self, offset: int, value: int) -> None:
        if self._dma[DMA_COMMAND] & COMMAND_RUN:
            return
        if offset == DMA_COMMAND:
            if not value & COMMAND_RUN:
                return
            self._after(self.dma_delay_ns, self._dma_done)
        self._dma[offset] = value & _U64

    _WRITES: Final[dict[int, Callable[[EduFunction, int], None]]] = {
        LIVENESS: _write_liveness,
        FACTORIAL: _write_factorial,
        STATUS: _write_status,
        IRQ_RAISE: _write_raise,
        IRQ_ACKNOWLEDGE: _write_acknowledge,
    }

    # -- what takes time ----------------------------------------------------------------------

    def _after(self, delay_ns: int, action: Callable[[], None]) -> None:
        epoch = self._epoch
        self.clock.after(delay_ns, lambda: action() if epoch == self._epoch else None)

    def _factorial_done(self) -> None:
        result = 0
        if self._factorial < _FIRST_ZERO_FACTORIAL:
            result = 1
            for factor in range(2, self._factorial + 1):
                result = result * factor & _U32
        self._factorial = result
        self._status &= ~STATUS_COMPUTING
        if self._status & STATUS_IRQ:
            self._raise(IRQ_FACTORIAL)

    def _dma_done(self) -> None:
        command = self._dma[DMA_COMMAND]
        to_ram = bool(command & COMMAND_TO_RAM)
        device_address = self._dma[DMA_SOURCE if to_ram else DMA_DESTINATION]
        iova = self._masked(self._dma[DMA_DESTINATION if to_ram else DMA_SOURCE])
        length = self._dma[DMA_COUNT]
        start = device_address - BUFFER_ADDRESS
        if start < 0 or start + length > BUFFER_SIZE:
            self.guest_errors.append(
                f"DMA of {length:#x} bytes at device address {device_address:#x} leaves the buffer"
            )
        elif length:
            self._transfer(iova, start, length, to_ram=to_ram)
        self._dma[DMA_COMMAND] &= ~COMMAND_RUN
        if command & COMMAND_IRQ:
            self._raise(IRQ_DMA)

    def _transfer(self, iova: int, start: int, length: int, *, to_ram: bool) -> None:
        piece = memoryview(self.buffer)[start : start + length]
        if to_ram:
            self.dma.write(iova, bytes(piece))
            return
        # A request never crosses 4 KiB, so what lies before a bad page still arrives.
        done = 0
        while done < length:
            count = min(length - done, _PAGE - (iova + done) % _PAGE)
            try:
                self.dma.read_into(iova + done, piece[done : done + count])
            except DmaError as error:
                self.guest_errors.append(str(error))
                piece[done : done + count] = bytes(count)
            done += count

    def _masked(self, iova: int) -> int:
        if iova & ~self.dma_mask:
            self.guest_errors.append(f"IOVA {iova:#x} is beyond the DMA mask {self.dma_mask:#x}")
        return iova & self.dma_mask

    # -- interrupts ---------------------------------------------------------------------------

    def _raise(self, bits: int) -> None:
        self._irq_status |= bits
        if self._irq_status and self.msi is not None and self.msi.enabled:
            self.raise_msi(0)
        else:
            self._update_pin()

    def _update_pin(self) -> None:
        by_message = self.msi is not None and self.msi.enabled
        self.intx.set(bool(self._irq_status) and not by_message)

    def _interrupt_mode_changed(self, offset: int, width: int) -> None:
        del offset, width
        self._update_pin()

    # -- reset --------------------------------------------------------------------------------

    def reset(self, kind: ResetKind) -> None:
        """Every kind clears registers and buffer and stops what runs."""
        super().reset(kind)
        self._power_on()


def _width_fits(offset: int, width: int) -> bool:
    return width == 4 or (width == 8 and offset >= _WIDE_FROM)
