"""What the host tells of an assigned device beside its interrupts: errors, and the wish to have it.

Both come as eventfds of VFIO. An error is passed on to the guest as its root port would report it,
or ends the run where there is no port, as QEMU ends it always. A request asks the guest to let go,
and after ``patience`` more of them the device is taken; the kernel repeats it every ten seconds.
Source: Linux ``vfio_pci_core.c`` (``vfio_pci_aer_err_detected``, ``vfio_pci_core_request``), QEMU
``hw/vfio/pci.c`` (``vfio_err_notifier_handler``, ``vfio_req_notifier_handler``).
"""

from __future__ import annotations

from collections.abc import Callable

from vfiokit.vfio import Vector
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.hotplug import HotPlug, Kind, Notice
from vfiokit.vmm.pci_bus import InterruptHost
from vfiokit.vmm.root_port import RootError, RootPort

PATIENCE = 3
"""Requests of the host that a guest may leave unanswered."""


class Sideband:
    """The two eventfds of one assigned function."""

    def __init__(
        self,
        function: AssignedFunction,
        host: InterruptHost,
        hotplug: HotPlug,
        notify: Callable[[Notice], None],
        fail: Callable[[str], None],
        *,
        patience: int = PATIENCE,
    ) -> None:
        self._function = function
        self._host = host
        self._hotplug = hotplug
        self._notify = notify
        self._fail = fail
        self._patience = patience
        self._requests = 0
        self._watched: list[int] = []
        device = function.device
        for irq, action in ((device.error_irq, self._error), (device.request_irq, self._request)):
            if irq.count:
                (vector,) = irq.enable()
                self._watch(vector, action)

    def _watch(self, vector: Vector, action: Callable[[], None]) -> None:
        self._watched.append(vector.fileno())

        def signalled() -> None:
            if vector.poll():
                action()

        self._host.watch(vector.fileno(), signalled)

    def _error(self) -> None:
        function = self._function
        bus = function.bus
        port = None if bus is None else bus.segment_of(function).bridge
        self._notify(Notice(Kind.ERROR, function.name, "the host saw an uncorrectable error"))
        if bus is None or not isinstance(port, RootPort):
            self._fail(f"{function.name} had an uncorrectable error, and no port can report it")
            return
        error = RootError.UNCORRECTABLE | RootError.FIRST_FATAL | RootError.FATAL
        port.report_error(bus.guest_address(function), error)

    def _request(self) -> None:
        self._requests += 1
        text = f"the host wants the device back, request {self._requests}"
        self._notify(Notice(Kind.REQUEST, self._function.name, text))
        if self._requests > self._patience:
            self._hotplug.take(self._function)
        else:
            self._hotplug.ask(self._function)

    def close(self) -> None:
        """Stop listening; the device disables the interrupts at its own end. Idempotent."""
        while self._watched:
            self._host.unwatch(self._watched.pop())
