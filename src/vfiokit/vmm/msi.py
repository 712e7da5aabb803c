"""The MSI capability that a guest sees, kept by the machine.

Source: PCI Express Base Specification 6.0 §7.7.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vfiokit.pci.capability import Capability
from vfiokit.pci.capability import msi as layout
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.msix import Message

ENABLE = 0x0001


class MsiVectors:
    """Address, data, masks and pending bits of one function's MSI, in its configuration space.

    ``send(vector, message)`` delivers; ``changed()`` is called when it was switched on or off.
    """

    def __init__(
        self,
        config: GuestConfig,
        capability: Capability,
        send: Callable[[int, Message], None],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._at = capability.offset
        self._send = send
        self._changed = changed
        self.available = layout.vectors(capability)
        """Vectors that the device has."""
        control = capability.value(layout.CONTROL)
        self._wide = bool(control & 0x80)
        self._maskable = bool(control & 0x100)
        self._data_at = self._at + (0x0C if self._wide else 0x08)
        self._mask_at = self._data_at + 4
        size = (24 if self._wide else 20) if self._maskable else 14 if self._wide else 10
        config.emulate(self._at, size)
        config.set(self._at + 2, 2, control & 0x18E)
        config.set(self._at + 4, size - 4, 0)
        config.allow(self._at + 2, 2, 0x71)
        config.allow(self._at + 4, 4, 0xFFFF_FFFC)
        if self._wide:
            config.allow(self._at + 8, 4, 0xFFFF_FFFF)
        config.allow(self._data_at, 2, 0xFFFF)
        if self._maskable:
            config.allow(self._mask_at, 4, (1 << self.available) - 1)
            config.watch(self._mask_at, 4, self._masks_written)
        self._enabled = False
        config.watch(self._at + 2, 2, self._control_written)

    # -- registers ----------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether the guest switched MSI on."""
        return bool(self._config.get(self._at + 2, 2) & ENABLE)

    @property
    def count(self) -> int:
        """Vectors that the guest enabled, at most those available."""
        wanted = 1 << (self._config.get(self._at + 2, 2) >> 4 & 7)
        return min(wanted, self.available)

    def message(self, vector: int) -> Message:
        """What ``vector`` writes: its number replaces the low bits of the data."""
        config = self._config
        upper = config.get(self._at + 8, 4) if self._wide else 0
        data = config.get(self._data_at, 2)
        return Message(upper << 32 | config.get(self._at + 4, 4), data & ~(self.count - 1) | vector)

    def masked(self, vector: int) -> bool:
        """Whether ``vector`` may not interrupt now."""
        own = self._maskable and self._config.get(self._mask_at, 4) >> vector & 1
        return not self.enabled or bool(own)

    def _control_written(self, offset: int, width: int) -> None:
        del offset, width
        if self.enabled != self._enabled:
            self._enabled = self.enabled
            self._changed()

    # -- interrupts ---------------------------------------------------------------------------

    def fire(self, vector: int) -> None:
        """The device raised ``vector``: deliver it, or note it while masked."""
        if not self.enabled or vector >= self.available:
            return
        if not self.masked(vector):
            self._send(vector, self.message(vector % self.count))
        elif self._maskable:
            self._set_pending(self._pending | 1 << vector)

    @property
    def _pending(self) -> int:
        return self._config.get(self._mask_at + 4, 4)

    def _set_pending(self, bits: int) -> None:
        self._config.set(self._mask_at + 4, 4, bits)

    def _masks_written(self, offset: int, width: int) -> None:
        del offset, width
        for vector in range(self.available):
            if self._pending >> vector & 1 and not self.masked(vector):
                self._set_pending(self._pending & ~(1 << vector))
                self._send(vector, self.message(vector))

    def reset(self) -> None:
        """Off, nothing masked, nothing pending."""
        self._config.set(self._at + 2, 2, self._config.get(self._at + 2, 2) & 0x18E)
        if self._maskable:
            self._config.set(self._mask_at, 8, 0)
        self._enabled = False

    def state(self) -> dict[str, Any]:
        """What configuration space does not hold, as plain data."""
        return {"enabled": self._enabled}

    def load(self, state: dict[str, Any]) -> None:
        """After configuration space was loaded: switch on what was on."""
        self._enabled = state["enabled"]
        self._changed()
