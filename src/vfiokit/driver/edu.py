"""Driver of QEMU's teaching device ``edu`` (PCI 1234:11e8).

Source: QEMU ``docs/specs/edu.rst`` and ``hw/misc/edu.c``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vfiokit.errors import DeviceTimeoutError, DriverError, UsageError
from vfiokit.kernel.port import Mapping
from vfiokit.vfio import (
    R32,
    RW32,
    RW64,
    W32,
    Device,
    DmaBuffer,
    IrqIndex,
    Region,
    RegisterMap,
    Vector,
)

MAX_IOVA = (1 << 28) - 1
"""The device masks DMA addresses to 28 bits and says nothing when one was cut."""

BUFFER_OFFSET = 0x40000
BUFFER_SIZE = 4096

_STATUS_COMPUTING = 0x01
_STATUS_INTERRUPT = 0x80
_IRQ_FACTORIAL = 0x001
_IRQ_DMA = 0x100
_DMA_RUN = 0x1
_DMA_TO_RAM = 0x2
_DMA_INTERRUPT = 0x4


class EduRegisters(RegisterMap):
    """BAR 0."""

    ID = R32(0x00)
    LIVENESS = RW32(0x04)
    FACTORIAL = RW32(0x08)
    STATUS = RW32(0x20)
    IRQ_STATUS = R32(0x24)
    IRQ_RAISE = W32(0x60)
    IRQ_ACKNOWLEDGE = W32(0x64)
    DMA_SOURCE = RW64(0x80)
    DMA_DESTINATION = RW64(0x88)
    DMA_COUNT = RW64(0x90)
    DMA_COMMAND = RW64(0x98)


class Edu:
    """The device at work; use it in a ``with`` block around an open :class:`Device`.

    Entering checks the identification, turns on bus mastering and enables one interrupt: MSI, or
    the pin with ``intx=True``. Every operation waits at most ``timeout_s`` seconds and raises
    :class:`DeviceTimeoutError` after that.
    """

    def __init__(self, device: Device, *, intx: bool = False, timeout_s: float = 5.0) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._irq: IrqIndex = device.intx if intx or not device.msi.count else device.msi
        self._vector: Vector | None = None
        self._registers: EduRegisters | None = None
        self._window: Mapping | Region | None = None

    def __enter__(self) -> Self:
        window = self._device.region(0).window()
        registers = EduRegisters(window)
        if registers.ID & 0xFF != 0xED:
            raise DriverError(
                f"{self._device} is no edu device: it identifies as {registers.ID:#x}"
            )
        self._window, self._registers = window, registers
        self._device.set_bus_master(True)
        if self._irq.count:
            self._acknowledge()
            (self._vector,) = self._irq.enable(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._vector is not None:
            self._irq.disable()
            self._vector = None
        self._device.set_bus_master(False)
        self._registers = None
        if self._window is not None:
            self._window.close()
            self._window = None

    @property
    def registers(self) -> EduRegisters:
        """The registers; raises :class:`UsageError` outside the ``with`` block."""
        if self._registers is None:
            raise UsageError("the edu driver is not started", hint="use it in a with block")
        return self._registers

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of the device."""
        identification = self.registers.ID
        return identification >> 24, identification >> 16 & 0xFF

    def is_alive(self, pattern: int = 0x5A5A1234) -> bool:
        """Whether the device answers with the complement of ``pattern``."""
        self.registers.LIVENESS = pattern
        return self.registers.LIVENESS ^ pattern == 0xFFFFFFFF

    def factorial(self, number: int, *, interrupt: bool = True) -> int:
        """``number!`` modulo 2**32, computed by the device."""
        if not 0 <= number < 1 << 32:
            raise UsageError(f"{number} is not a 32-bit number")
        registers = self.registers
        wanted = interrupt and self._vector is not None
        registers.STATUS = _STATUS_INTERRUPT if wanted else 0
        registers.FACTORIAL = number
        if wanted:
            self._wait_interrupt(_IRQ_FACTORIAL)
        self._wait_while(lambda: bool(registers.STATUS & _STATUS_COMPUTING), "factorial")
        return registers.FACTORIAL

    def allocate(self, length: int = BUFFER_SIZE) -> DmaBuffer:
        """DMA memory that the device can address."""
        return self._device.address_space.allocate(length, max_iova=MAX_IOVA)

    def to_device(self, iova: int, count: int, offset: int = 0, *, interrupt: bool = True) -> None:
        """Copy ``count`` bytes from ``iova`` into the device's buffer at ``offset``."""
        self._check(iova, count, offset)
        self._transfer(iova, BUFFER_OFFSET + offset, count, 0, interrupt)

    def from_device(
        self, iova: int, count: int, offset: int = 0, *, interrupt: bool = True
    ) -> None:
        """Copy ``count`` bytes from the device's buffer at ``offset`` to ``iova``."""
        self._check(iova, count, offset)
        self._transfer(BUFFER_OFFSET + offset, iova, count, _DMA_TO_RAM, interrupt)

    def raise_interrupt(self, bits: int = 0x2) -> int:
        """Make the device interrupt with ``bits`` and take it; returns the status it showed."""
        self.registers.IRQ_RAISE = bits
        return self._wait_interrupt(bits)

    def _check(self, iova: int, count: int, offset: int) -> None:
        if count < 1 or offset < 0 or offset + count > BUFFER_SIZE:
            raise UsageError(f"{count} bytes at {offset} do not fit the {BUFFER_SIZE}-byte buffer")
        if not 0 <= iova <= MAX_IOVA - count + 1:
            raise UsageError(
                f"edu cannot address {count} bytes at IOVA {iova:#x}",
                hint=f"allocate with max_iova={MAX_IOVA:#x}",
            )

    def _transfer(
        self, source: int, destination: int, count: int, direction: int, interrupt: bool
    ) -> None:
        registers = self.registers
        wanted = interrupt and self._vector is not None
        registers.DMA_SOURCE = source
        registers.DMA_DESTINATION = destination
        registers.DMA_COUNT = count
        registers.DMA_COMMAND = _DMA_RUN | direction | (_DMA_INTERRUPT if wanted else 0)
        if wanted:
            self._wait_interrupt(_IRQ_DMA)
        self._wait_while(lambda: bool(registers.DMA_COMMAND & _DMA_RUN), "DMA")

    def _wait_interrupt(self, bits: int) -> int:
        if self._vector is None:
            raise UsageError(f"{self._device} has no interrupt enabled")
        deadline = time.monotonic() + self._timeout_s
        while True:
            self._vector.wait(max(deadline - time.monotonic(), 0))
            status = self._acknowledge()
            if status & bits:
                return status

    def _acknowledge(self) -> int:
        """Clear the device's status, then unmask the pin: the level must be low by then."""
        status = self.registers.IRQ_STATUS
        self.registers.IRQ_ACKNOWLEDGE = status
        if self._vector is not None and self._irq is self._device.intx:
            self._irq.unmask()
        return status

    def _wait_while(self, busy: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while busy():
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(
                    f"{self._device}: {what} not done within {self._timeout_s} s, "
                    f"status {self.registers.STATUS:#x}"
                )
            time.sleep(0.0005)
