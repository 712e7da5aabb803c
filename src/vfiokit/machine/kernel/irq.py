"""Interrupts of an opened function: ``VFIO_DEVICE_SET_IRQS`` and what devices raise.

Source: Linux ``drivers/vfio/pci/vfio_pci_intrs.c``,
``vfio_main.c:vfio_set_irqs_validate_and_prepare``.
"""

from __future__ import annotations

import errno
import struct
from typing import Protocol

from vfiokit.abi import pci_regs as regs
from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, buffer_of, fetch, store
from vfiokit.machine.kernel.event import Event, EventWatch
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.intx import Intx
from vfiokit.machine.kernel.message import Interrupts, MessageVectors
from vfiokit.machine.kernel.pci_device import PciDevice

INTX, MSI, MSIX, ERR, REQ = range(5)

_NONE = abi.VFIO_IRQ_SET_DATA_NONE
_BOOL = abi.VFIO_IRQ_SET_DATA_BOOL
_EVENTFD = abi.VFIO_IRQ_SET_DATA_EVENTFD
_WIDTHS = {_NONE: 0, _BOOL: 1, _EVENTFD: 4}
_ACTIONS = abi.VFIO_IRQ_SET_ACTION_TYPE_MASK
_KNOWN = abi.VFIO_IRQ_SET_DATA_TYPE_MASK | _ACTIONS


class _Request:
    """A checked ``SET_IRQS``."""

    __slots__ = ("action", "count", "data", "kind", "start")

    def __init__(self, head: abi.vfio_irq_set, view: memoryview) -> None:
        self.action = head.flags & _ACTIONS
        self.kind = head.flags & abi.VFIO_IRQ_SET_DATA_TYPE_MASK
        self.start = head.start
        self.count = head.count
        size = head.count * _WIDTHS[self.kind]
        self.data = bytes(view[abi.vfio_irq_set.SIZE : abi.vfio_irq_set.SIZE + size])

    def fds(self) -> tuple[int, ...]:
        """The descriptors of DATA_EVENTFD."""
        return struct.unpack(f"<{self.count}i", self.data)

    def wanted(self, index: int) -> bool:
        """Whether element ``index`` asks for the action: always for DATA_NONE."""
        return self.kind == _NONE or bool(self.data[index])


class PinSource(Protocol):
    """What the configuration space says about INTx."""

    @property
    def interrupt_pin(self) -> int:
        """The virtual interrupt pin register."""
        ...


class Irqs:
    """All interrupts of one opened function. INTx, MSI and MSI-X exclude each other."""

    def __init__(
        self, device: PciDevice, interrupts: Interrupts, watch: EventWatch, pins: PinSource
    ) -> None:
        self._device = device
        self._pins = pins
        self.active: int | None = None
        """Index of the enabled kind: INTx, MSI or MSI-X; ``None`` when none is."""
        self.intx = Intx(device, interrupts, watch)
        self._messages = {
            MSI: MessageVectors(device, interrupts, msix=False),
            MSIX: MessageVectors(device, interrupts, msix=True),
        }
        self._single: dict[int, Event] = {}
        self.msi_qmax = 0

    # -- information --------------------------------------------------------------------------

    def count(self, index: int) -> int:
        """How many interrupts there are at ``index``."""
        if index == INTX:
            return int(self._pins.interrupt_pin != 0)
        if index in self._messages:
            return self._messages[index].capacity
        if index == ERR:
            return int(self._device.is_express)
        return 1

    def get_info(self, argument: Argument) -> int:
        """``VFIO_DEVICE_GET_IRQ_INFO``."""
        info, view = fetch(abi.vfio_irq_info, argument)
        if info.index > REQ:
            raise failure(errno.EINVAL, f"no interrupt index {info.index}")
        if info.index == ERR and not self._device.is_express:
            raise failure(errno.EINVAL, "error interrupts need PCI Express")
        info.flags = abi.VFIO_IRQ_INFO_EVENTFD
        if info.index == INTX:
            info.flags |= abi.VFIO_IRQ_INFO_MASKABLE | abi.VFIO_IRQ_INFO_AUTOMASKED
        elif info.index != MSIX:
            info.flags |= abi.VFIO_IRQ_INFO_NORESIZE
        info.count = self.count(info.index)
        store(info, view)
        return 0

    # -- SET_IRQS -----------------------------------------------------------------------------

    def set_irqs(self, argument: Argument) -> int:
        """``VFIO_DEVICE_SET_IRQS``; a positive result is how many vectors could be had."""
        head, view = fetch(abi.vfio_irq_set, argument)
        self._check(head)
        buffer_of(view, abi.vfio_irq_set.SIZE + head.count * _WIDTHS[head.flags & 7])
        request = _Request(head, view)
        if head.index in self._messages and request.action == abi.VFIO_IRQ_SET_ACTION_TRIGGER:
            return self._trigger_messages(head.index, request)
        if head.index == INTX and request.action in (
            abi.VFIO_IRQ_SET_ACTION_MASK,
            abi.VFIO_IRQ_SET_ACTION_UNMASK,
            abi.VFIO_IRQ_SET_ACTION_TRIGGER,
        ):
            self._set_intx(request)
            return 0
        if (
            head.index in (ERR, REQ)
            and request.action == abi.VFIO_IRQ_SET_ACTION_TRIGGER
            and (head.index == REQ or self._device.is_express)
        ):
            self._set_single(head.index, request)
            return 0
        raise failure(errno.ENOTTY, f"no action {request.action:#x} for index {head.index}")

    def _check(self, head: abi.vfio_irq_set) -> None:
        """What VFIO checks for every kind of device; all of it is EINVAL."""
        kind = head.flags & abi.VFIO_IRQ_SET_DATA_TYPE_MASK
        available = self.count(head.index) if head.index <= REQ else 0
        if head.flags & ~_KNOWN or head.index > REQ:
            raise failure(errno.EINVAL, f"flags {head.flags:#x}, index {head.index}")
        if head.start >= available or head.start + head.count > available:
            raise failure(
                errno.EINVAL,
                f"vectors {head.start}+{head.count} of {available} at index {head.index}",
            )
        if kind not in _WIDTHS:
            raise failure(errno.EINVAL, "exactly one kind of data is needed")
        if head.argsz - abi.vfio_irq_set.SIZE < head.count * _WIDTHS[kind]:
            raise failure(errno.EINVAL, f"argsz leaves no room for {head.count} elements")

    def _trigger_messages(self, index: int, request: _Request) -> int:
        vectors = self._messages[index]
        if self.active == index and not request.count and request.kind == _NONE:
            self.disable()
            return 0
        if self.active not in (None, index):
            raise failure(errno.EINVAL, "another kind of interrupt is active")
        if request.kind == _EVENTFD:
            fresh = self.active is None
            if fresh:
                had = vectors.enable(request.start + request.count)
                if had:
                    return had
                self.active = index
                if index == MSI:
                    self.msi_qmax = (2 * (request.start + request.count) - 1).bit_length() - 1
            try:
                vectors.set_block(request.start, request.fds())
            except OSError:
                if fresh:
                    self.disable()
                raise
            return 0
        if self.active != index:
            raise failure(errno.EINVAL, "no vectors are enabled")
        for offset in range(request.count):
            if request.wanted(offset):
                vectors.fire(request.start + offset)
        return 0

    def _set_intx(self, request: _Request) -> None:
        enabled = self.active == INTX
        if request.action == abi.VFIO_IRQ_SET_ACTION_TRIGGER:
            if enabled and not request.count and request.kind == _NONE:
                self.disable()
                return
            if self.active not in (None, INTX) or request.count != 1:
                raise failure(errno.EINVAL, "another kind of interrupt is active, or count is 0")
            if request.kind == _EVENTFD:
                (fd,) = request.fds()
                event = Event(fd) if fd >= 0 else None
                if enabled:
                    self.intx.set_trigger(event)
                else:
                    self.active = INTX
                    self.intx.enable(event)
                return
            if not enabled:
                raise failure(errno.EINVAL, "INTx is not enabled")
            if request.wanted(0):
                self.intx.fire()
            return
        if not enabled or request.count != 1:
            raise failure(errno.EINVAL, "INTx is not enabled, or count is not 1")
        masking = request.action == abi.VFIO_IRQ_SET_ACTION_MASK
        if request.kind == _EVENTFD:
            if masking:
                raise failure(errno.ENOTTY, "INTx cannot be masked by an eventfd")
            self.intx.set_resample(request.fds()[0])
        elif request.wanted(0):
            self.intx.mask() if masking else self.intx.unmask()

    def _set_single(self, index: int, request: _Request) -> None:
        """ERR and REQ: one eventfd each (``vfio_pci_set_ctx_trigger_single``)."""
        present = self._single.get(index)
        if request.kind == _NONE:
            if present is None:
                raise failure(errno.EINVAL, "no eventfd is set")
            if request.count:
                present.signal()
            else:
                self._clear_single(index)
            return
        if not request.count:
            raise failure(errno.EINVAL, "count is 0")
        if request.kind == _BOOL:
            if request.wanted(0) and present is not None:
                present.signal()
            return
        (fd,) = request.fds()
        if fd < -1:
            raise failure(errno.EINVAL, f"{fd} is no descriptor")
        event = Event(fd) if fd >= 0 else None
        self._clear_single(index)
        if event is not None:
            self._single[index] = event

    def _clear_single(self, index: int) -> None:
        event = self._single.pop(index, None)
        if event is not None:
            event.close()

    # -- the rest of the kernel ---------------------------------------------------------------

    def signal_single(self, index: int) -> bool:
        """Signal the ERR or REQ eventfd; whether one was set."""
        event = self._single.get(index)
        if event is not None:
            event.signal()
        return event is not None

    def disable(self) -> None:
        """Disable whichever of INTx, MSI and MSI-X is active."""
        if self.active == INTX:
            self.intx.disable()
        elif self.active is not None:
            self._messages[self.active].disable()
        self.active = None

    def restore_messages(self) -> None:
        """After a reset: write the messages of active vectors to the hardware again."""
        if self.active in self._messages:
            self._messages[self.active].restore()

    def close(self) -> None:
        """The last user closed the device."""
        self.disable()
        for index in tuple(self._single):
            self._clear_single(index)


def msix_place(device: PciDevice) -> tuple[int, int, int] | None:
    """``(bar, offset, size)`` of the MSI-X table; ``None`` without MSI-X."""
    at = device.find_capability(regs.PCI_CAP_ID_MSIX)
    if not at:
        return None
    table = device.read(at + regs.PCI_MSIX_TABLE, 4)
    count = (device.read(at + regs.PCI_MSIX_FLAGS, 2) & regs.PCI_MSIX_FLAGS_QSIZE) + 1
    return table & 7, table & ~7, count * regs.PCI_MSIX_ENTRY_SIZE
