"""Which wire a completion queue's interrupt takes: MSI-X, MSI or the INTx pin.

Source: NVM Express Base Specification 2.0 §3.5 (interrupts), PCIe Transport Specification 1.0
§3.5 (pin-based, MSI, MSI-X). INTMS and INTMC mask the pin and MSI; MSI-X masks in its own table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vfiokit.machine.device.nvme.queue import CompletionQueue
from vfiokit.machine.function import Function


class Interrupts:
    """Interrupt delivery of one controller; ``queues`` gives its completion queues."""

    def __init__(self, function: Function, queues: Callable[[], Iterable[CompletionQueue]]) -> None:
        self._function = function
        self._queues = queues
        self.mask = 0
        """The INTMS / INTMC mask, a bit per vector."""
        self.level = False
        """What the pin was last set to."""

    @property
    def vector_count(self) -> int:
        """Vectors a completion queue may name at the moment."""
        function = self._function
        if function.msix is not None and function.msix.enabled:
            return function.msix.count
        if function.msi is not None and function.msi.enabled:
            return function.msi.granted
        return 1

    def reset(self) -> None:
        """No mask, pin deasserted."""
        self.mask = 0
        self._set_level(level=False)

    def post(self, queue: CompletionQueue) -> None:
        """Entries were posted to ``queue``."""
        if not queue.interrupt_enabled:
            return
        function = self._function
        if function.msix is not None and function.msix.enabled:
            # A vector can lie outside the table only if the host switched modes under the queue.
            if queue.vector < function.msix.count:
                function.raise_msix(queue.vector)
        elif function.msi is not None and function.msi.enabled:
            vector = queue.vector if queue.vector < function.msi.granted else 0
            if not self.mask >> vector & 1:
                function.raise_msi(vector)
        else:
            self.refresh()

    def refresh(self) -> None:
        """Recompute the pin: asserted while a queue holds entries the host has not consumed."""
        self._set_level(
            level=self._pin_selected()
            and not self.mask & 1
            and any(queue.interrupt_enabled and queue.unconsumed for queue in self._queues())
        )

    def mask_vectors(self, bits: int) -> None:
        """A write to INTMS."""
        self.mask |= bits
        self.refresh()

    def unmask_vectors(self, bits: int) -> None:
        """A write to INTMC; what was posted meanwhile is signalled now."""
        opened = self.mask & bits
        self.mask &= ~bits
        msi = self._function.msi
        if opened and msi is not None and msi.enabled and not self._msix_enabled():
            for queue in self._queues():
                if queue.unconsumed and opened >> queue.vector & 1:
                    self.post(queue)
        self.refresh()

    def _msix_enabled(self) -> bool:
        msix = self._function.msix
        return msix is not None and msix.enabled

    def _pin_selected(self) -> bool:
        msi = self._function.msi
        return not self._msix_enabled() and not (msi is not None and msi.enabled)

    def _set_level(self, *, level: bool) -> None:
        if level != self.level:
            self.level = level
            self._function.intx.set(level)
