"""INTx of an opened function: level-triggered, masked by every interrupt until unmasked.

Source: Linux ``vfio_pci_intrs.c`` (``vfio_intx_*``), ``drivers/pci/irq.c``
(``pci_check_and_mask_intx``).
"""

from __future__ import annotations

import errno

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.event import Event, EventWatch
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.message import Interrupts
from vfiokit.machine.kernel.pci_device import PciDevice


class Intx:
    """The one INTx interrupt."""

    def __init__(self, device: PciDevice, interrupts: Interrupts, watch: EventWatch) -> None:
        self._device = device
        self._interrupts = interrupts
        self._watch = watch
        self._trigger: Event | None = None
        self._resample: Event | None = None
        self._enabled = False
        self._masked = False
        self._user_disabled = False

    def enable(self, trigger: Event | None) -> None:
        """Start delivering; ``None`` counts interrupts for nobody."""
        self._trigger = trigger
        self._enabled = True
        self._masked = self._user_disabled
        self._set_disable_bit(self._masked)
        self._interrupts.connect_intx(self._device, self._level_changed)

    def disable(self) -> None:
        """Stop delivering and let go of both eventfds."""
        self._interrupts.connect_intx(self._device, None)
        self.set_trigger(None)
        self.set_resample(-1)
        self._enabled = False

    def set_trigger(self, event: Event | None) -> None:
        """Deliver to another eventfd, or to none."""
        if self._trigger is not None:
            self._trigger.close()
        self._trigger = event

    def set_resample(self, fd: int) -> None:
        """Unmask whenever this eventfd is signalled; -1 removes it, EBUSY when one is set."""
        if fd < 0:
            if self._resample is not None:
                self._watch.remove(self._resample)
                self._resample = None
            return
        if self._resample is not None:
            raise failure(errno.EBUSY, "an unmask eventfd is set already")
        self._resample = Event(fd)
        self._watch.add(self._resample, self.unmask)

    def fire(self) -> None:
        """Signal the eventfd, unless the user disabled INTx in the command register."""
        if self._enabled and not self._user_disabled and self._trigger is not None:
            self._trigger.signal()

    def mask(self) -> None:
        """Mask; idempotent."""
        if self._enabled and not self._masked:
            self._masked = True
            self._set_disable_bit(True)

    def unmask(self) -> None:
        """Unmask, unless the user disabled INTx; a pin still asserted interrupts again."""
        if not self._enabled or not self._masked or self._user_disabled:
            return
        self._masked = False
        # A pin that is still asserted drives the wire again, which calls _level_changed.
        self._set_disable_bit(False)

    def set_user_disabled(self, disabled: bool) -> None:
        """The emulated INTx Disable bit changed; it is the real one while INTx is off."""
        self._user_disabled = disabled
        if not self._enabled:
            self._set_disable_bit(disabled)
        elif disabled:
            self.mask()
        else:
            self.unmask()

    def _level_changed(self, level: bool) -> None:
        # The wire is shared: the status register tells whether it was this function.
        pending = self._device.read(regs.PCI_STATUS, 2) & regs.PCI_STATUS_INTERRUPT
        if level and pending and not self._masked:
            self.mask()
            self.fire()

    def _set_disable_bit(self, on: bool) -> None:
        bit = regs.PCI_COMMAND_INTX_DISABLE
        self._device.update(regs.PCI_COMMAND, 2, clear=bit, set_bits=bit if on else 0)
