"""Letting an idle device sleep.

While it does, its BARs answer EIO, mapped ones end the process with SIGBUS, and dma-bufs of it are
revoked; other requests wake it for their duration. A kernel without CONFIG_PM accepts all of this
and lets the device run. Source: Linux ``vfio_pci_core.c``
``vfio_pci_core_pm_entry``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vfiokit.abi import vfio as abi
from vfiokit.vfio.feature import Features
from vfiokit.vfio.vector import Vector


class LowPower:
    """Low power of one device."""

    def __init__(self, features: Features) -> None:
        self._features = features

    @property
    def supported(self) -> bool:
        """Whether the device has it."""
        return self._features.probe(abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, set=True)

    def enter(self) -> None:
        """Let it sleep; raises :class:`KernelError` EINVAL when it does already."""
        self._features.set(abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)

    def enter_until_woken(self) -> Vector:
        """Let it sleep until the host has to wake it, and tell by the vector returned.

        The device has left low power for good then. The caller closes the vector.
        """
        vector = Vector(self._features.kernel, f"wakeup of {self._features}")
        payload = abi.vfio_device_low_power_entry_with_wakeup(wakeup_eventfd=vector.fileno())
        feature = abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP
        try:
            self._features.set(feature, bytes(payload.pack()))
        except BaseException:
            vector.close()
            raise
        return vector

    def exit(self) -> None:
        """Wake it; nothing happens if it does not sleep."""
        self._features.set(abi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Let it sleep for the length of a ``with`` block."""
        self.enter()
        try:
            yield
        finally:
            self.exit()
