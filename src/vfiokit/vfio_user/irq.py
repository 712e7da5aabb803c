"""The eventfds that a client gave for a device's interrupts, and the pin's level behind one.

Source: Linux ``include/uapi/linux/vfio.h`` (``VFIO_DEVICE_SET_IRQS``); libvfio-user's refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vfiokit.abi import vfio as abi
from vfiokit.errors import ProtocolError
from vfiokit.kernel import linux
from vfiokit.vfio_user.payload import IrqInfo, SetIrqs
from vfiokit.vfio_user.poller import Poller

INTX: Final = abi.VFIO_PCI_INTX_IRQ_INDEX
_SINGLE: Final = (abi.VFIO_PCI_ERR_IRQ_INDEX, abi.VFIO_PCI_REQ_IRQ_INDEX)
_NONE: Final = abi.VFIO_IRQ_SET_DATA_NONE
_BOOL: Final = abi.VFIO_IRQ_SET_DATA_BOOL
_EVENTFD: Final = abi.VFIO_IRQ_SET_DATA_EVENTFD
_MASK: Final = abi.VFIO_IRQ_SET_ACTION_MASK
_UNMASK: Final = abi.VFIO_IRQ_SET_ACTION_UNMASK
_TRIGGER: Final = abi.VFIO_IRQ_SET_ACTION_TRIGGER


class IrqTable:
    """Interrupts of one connection; ``counts`` are the device's vectors by index.

    ``poller`` listens to the eventfds by which a client masks and unmasks the pin without a
    message, as KVM does it at the end of a guest's interrupt.
    """

    def __init__(self, counts: Sequence[int], poller: Poller) -> None:
        self._counts = tuple(counts)
        self._poller = poller
        self._pin_fds: dict[int, int] = {}
        self._eventfds: list[dict[int, int]] = [{} for _ in self._counts]
        self._level = False
        self._masked = False

    def info(self, index: int) -> IrqInfo:
        """The reply to ``DEVICE_GET_IRQ_INFO``; :class:`ProtocolError` beyond the last index."""
        count = self._counts[self._known(index)]
        if not count:
            return IrqInfo(index)
        flags = abi.VFIO_IRQ_INFO_EVENTFD
        if index == INTX:
            flags |= abi.VFIO_IRQ_INFO_MASKABLE | abi.VFIO_IRQ_INFO_AUTOMASKED
        elif index not in _SINGLE:
            flags |= abi.VFIO_IRQ_INFO_NORESIZE
        return IrqInfo(index, flags, count)

    def vectors(self, index: int) -> frozenset[int]:
        """The vectors of ``index`` that have an eventfd; :class:`ProtocolError` as :meth:`info`."""
        return frozenset(self._eventfds[self._known(index)])

    def set(self, request: SetIrqs, fds: Sequence[int]) -> None:
        """Do what ``DEVICE_SET_IRQS`` asks; descriptors that are kept are this table's.

        ``fds`` that are not kept are closed. Raises :class:`ProtocolError` (EINVAL); then the
        caller still owns them all.
        """
        index = self._known(request.index)
        self._check(request, fds)
        kind = request.flags & abi.VFIO_IRQ_SET_DATA_TYPE_MASK
        action = request.flags & abi.VFIO_IRQ_SET_ACTION_TYPE_MASK
        numbers = range(request.start, request.start + request.count)
        if action != _TRIGGER:
            # Here for the pin only: all others are refused above.
            if kind == _EVENTFD:
                self._mask_by(action, fds[0] if fds else -1)
            elif kind == _NONE or request.values[0]:
                self._mask_pin(action == _MASK)
        elif kind == _EVENTFD:
            self._assign(index, numbers, fds)
        elif kind == _NONE and not request.count:
            self._assign(index, range(self._counts[index]), ())
            if index == INTX:
                for way in (_MASK, _UNMASK):
                    self._mask_by(way, -1)
        else:
            for number in numbers:
                if kind == _NONE or request.values[number - request.start]:
                    self.signal(index, number)

    def _known(self, index: int) -> int:
        if not 0 <= index < len(self._counts):
            raise ProtocolError(f"interrupt index {index}; there are {len(self._counts)}")
        return index

    def _check(self, request: SetIrqs, fds: Sequence[int]) -> None:
        kind = request.flags & abi.VFIO_IRQ_SET_DATA_TYPE_MASK
        action = request.flags & abi.VFIO_IRQ_SET_ACTION_TYPE_MASK
        available = self._counts[request.index]
        if request.start + request.count > available:
            raise ProtocolError(
                f"DEVICE_SET_IRQS of {request.count} from {request.start}; index {request.index} "
                f"has {available}"
            )
        if not request.count and not (kind == _NONE and action == _TRIGGER and not request.start):
            raise ProtocolError("DEVICE_SET_IRQS of no vector")
        if fds and (kind != _EVENTFD or len(fds) != request.count):
            raise ProtocolError(f"DEVICE_SET_IRQS of {request.count} with {len(fds)} descriptors")
        if not all(map(linux.is_eventfd, fds)):
            raise ProtocolError("DEVICE_SET_IRQS with a descriptor that is no eventfd")
        if request.index in _SINGLE and action != _TRIGGER:
            raise ProtocolError(f"index {request.index} can only be triggered")
        if request.index != INTX and action != _TRIGGER:
            raise ProtocolError(f"index {request.index} cannot be masked by message")

    def _assign(self, index: int, numbers: range, fds: Sequence[int]) -> None:
        table = self._eventfds[index]
        for position, number in enumerate(numbers):
            before = table.pop(number, -1)
            if before >= 0:
                linux.close(before)
            if fds:
                table[number] = fds[position]
        if index == INTX and not table:
            self._masked = False
        elif index == INTX:
            self._signal_pin()

    # -- what the device does -----------------------------------------------------------------

    def signal(self, index: int, vector: int) -> bool:
        """Signal a vector; false where it has no eventfd."""
        fd = self._eventfds[index].get(vector, -1)
        if fd < 0:
            return False
        linux.signal_eventfd(fd)
        return True

    def set_level(self, level: bool) -> None:
        """The pin: signalled once when it rises, then masked until the client unmasks."""
        self._level = level
        self._signal_pin()

    def _signal_pin(self) -> None:
        if self._level and not self._masked and self.signal(INTX, 0):
            self._masked = True

    def _mask_by(self, action: int, fd: int) -> None:
        """Mask or unmask the pin whenever ``fd`` is written; -1 ends that."""
        before = self._pin_fds.pop(action, -1)
        if before >= 0:
            self._poller.forget(before)
            linux.close(before)
        if fd >= 0:
            self._pin_fds[action] = fd
            self._poller.watch(fd, lambda: self._mask_pin(action == _MASK))

    def _mask_pin(self, masked: bool) -> None:
        self._masked = masked
        self._signal_pin()

    def clear(self) -> None:
        """Close every eventfd."""
        for action in (_MASK, _UNMASK):
            self._mask_by(action, -1)
        for table in self._eventfds:
            while table:
                _number, fd = table.popitem()
                linux.close(fd)
        self._masked = False
