"""``VFIO_DEVICE_IOEVENTFD``: an eventfd whose signal becomes a write to a BAR.

Source: Linux ``vfio_pci_rdwr.c:vfio_pci_ioeventfd``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, fetch
from vfiokit.machine.kernel.event import Event, EventWatch
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.region import BARS, OpenState

LIMIT = 1000

_WIDTHS = {1: 1, 2: 2, 4: 4, 8: 8}


class IoEventfds:
    """The registered eventfds of one opened function."""

    def __init__(self, device: PciDevice, state: OpenState, watch: EventWatch) -> None:
        self._device = device
        self._state = state
        self._watch = watch
        self._active: dict[tuple[int, int, int, int], Event] = {}

    def set(self, argument: Argument) -> int:
        """Register, or with ``fd`` -1 remove."""
        kind = abi.vfio_device_ioeventfd
        request, _view = fetch(kind, argument, kind.OFFSETS["reserved"])
        width = _WIDTHS.get(request.flags)
        if width is None or request.fd < -1:
            raise failure(errno.EINVAL, "one width and a descriptor are needed")
        bar = request.offset >> abi.VFIO_PCI_OFFSET_SHIFT
        position = request.offset & abi.VFIO_PCI_OFFSET_MASK
        if bar >= BARS or position + width > self._device.resource(bar).size:
            raise failure(errno.EINVAL, "not within a BAR")
        table = self._state.msix
        inside = table and table[0] == bar and position < table[1] + table[2]
        if inside and table and position + width > table[1]:
            raise failure(errno.EINVAL, "the MSI-X table cannot be written")
        if width == 8:
            raise failure(errno.EINVAL, "8-byte writes are not supported")
        key = (bar, position, request.data, width)
        known = self._active.get(key)
        if request.fd < 0:
            if known is None:
                raise failure(errno.ENODEV, "no such eventfd is registered")
            self._watch.remove(self._active.pop(key))
            return 0
        if known is not None:
            raise failure(errno.EEXIST, "such an eventfd is registered already")
        if len(self._active) >= LIMIT:
            raise failure(errno.ENOSPC, f"{LIMIT} eventfds are registered")
        event = Event(request.fd)
        self._active[key] = event
        self._watch.add(event, self._write(*key))
        return 0

    def close(self) -> None:
        """Remove all."""
        for event in self._active.values():
            self._watch.remove(event)
        self._active.clear()

    def _write(self, bar: int, position: int, data: int, width: int) -> Callable[[], None]:
        def act() -> None:
            if self._state.memory_accessible:
                value = data & ((1 << 8 * width) - 1)
                self._device.store(bar, position, width, value)
                self._device.settle()

        return act
