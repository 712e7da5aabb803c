"""Configuration space of a virtio function: ids, and the capabilities that say where what is.

Source: VIRTIO 1.2 §4.1.2 (ids), §4.1.4 (capabilities), §4.1.4.9 (the window in configuration
space).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from vfiokit.errors import UsageError
from vfiokit.vmm.guest_config import GuestConfig

if TYPE_CHECKING:
    from vfiokit.vmm.guest_function import GuestFunction

VENDOR_ID = 0x1AF4
FIRST_DEVICE_ID = 0x1040
"""Plus the type of device."""
LAST_DEVICE_TYPE = 0x3F
"""Device ids end at 0x107f."""

REGISTER_BAR, MSIX_BAR = 0, 1
REGISTER_SIZE = 0x4000
COMMON_SIZE = 56
PENDING_AT = 0x800
"""Where the pending bits are in the BAR of the MSI-X table."""

_MSIX_AT, _VENDOR_AT = 0x40, 0x50
MSIX_CONTROL = _MSIX_AT + 2
_NOTIFY_MULTIPLIER = 4
_VENDOR_CAPABILITY, _MSIX_CAPABILITY = 0x09, 0x11
_WINDOW_SIZE = 20


class Part(IntEnum):
    """Where the structures begin in the BAR: a page each, so that one can be mapped alone."""

    COMMON = 0x0000
    ISR = 0x1000
    DEVICE = 0x2000
    NOTIFY = 0x3000


class CapabilityType(IntEnum):
    """``cfg_type`` of a virtio capability."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5


def build_config(device_type: int, vectors: int, device_size: int) -> bytes:
    """The 256 bytes for a device of ``device_type`` with ``vectors`` MSI-X vectors.

    ``device_size`` is the length of its own registers in bytes. :class:`UsageError` for a type
    beyond :data:`LAST_DEVICE_TYPE`.
    """
    if not 0 < device_type <= LAST_DEVICE_TYPE:
        raise UsageError(f"virtio device type {device_type} has no PCI device id")
    data = bytearray(256)
    struct.pack_into("<HHHHI", data, 0, VENDOR_ID, FIRST_DEVICE_ID + device_type, 0, 0x10, 0)
    data[0x08:0x0C] = bytes((1, 0x00, 0x80, 0x08))  # revision 1, class: system peripheral
    struct.pack_into("<HH", data, 0x2C, VENDOR_ID, 0x1100)
    data[0x34], data[0x3D] = _MSIX_AT, 1
    control = vectors - 1
    struct.pack_into(
        "<BBHII", data, _MSIX_AT, _MSIX_CAPABILITY, _VENDOR_AT, control, MSIX_BAR, PENDING_AT | 1
    )
    at = _VENDOR_AT
    for kind, part, length in (
        (CapabilityType.COMMON, Part.COMMON, COMMON_SIZE),
        (CapabilityType.ISR, Part.ISR, 1),
        (CapabilityType.DEVICE, Part.DEVICE, device_size),
        (CapabilityType.NOTIFY, Part.NOTIFY, REGISTER_SIZE - Part.NOTIFY),
        (CapabilityType.PCI, 0, 0),
    ):
        size = 16 + 4 * (kind in (CapabilityType.NOTIFY, CapabilityType.PCI))
        following = 0 if kind is CapabilityType.PCI else at + size
        head = (_VENDOR_CAPABILITY, following, size, kind, REGISTER_BAR, 0, 0, part, length)
        struct.pack_into("<BBBBBBHII", data, at, *head)
        if kind is CapabilityType.NOTIFY:
            struct.pack_into("<I", data, at + 16, _NOTIFY_MULTIPLIER)
        at += size
    return bytes(data)


_WINDOW_AT = _VENDOR_AT + 16 + 16 + 16 + 20
_WINDOW_DATA = _WINDOW_AT + 16


class ConfigWindow:
    """The capability by which firmware reaches BARs that it cannot map.

    The driver writes BAR, offset and length (1, 2 or 4), then reads or writes the data.
    """

    def __init__(self, function: Callable[[], GuestFunction]) -> None:
        self._function = function

    def declare(self, config: GuestConfig) -> None:
        """Let the guest write the capability's fields, and bring its data here."""
        config.allow(_WINDOW_AT + 4, 1, 0xFF)
        config.allow(_WINDOW_AT + 8, 8, (1 << 64) - 1)
        config.pass_through(_WINDOW_DATA, 4)

    def _target(self) -> tuple[int, int, int] | None:
        """BAR, offset and width that the fields name, if they make sense."""
        function = self._function()
        bar = function.config.get(_WINDOW_AT + 4, 1)
        offset = function.config.get(_WINDOW_AT + 8, 4)
        width = function.config.get(_WINDOW_AT + 12, 4)
        found = function.bars.get(bar)
        if found is None or width not in (1, 2, 4) or offset % width or offset + width > found.size:
            return None
        return bar, offset, width

    def read(self, offset: int, width: int) -> int:
        """A load of the data."""
        target = self._target()
        if target is None or offset != _WINDOW_DATA or width < target[2]:
            return 0
        bar, at, length = target
        handler = self._function().bars[bar].handler
        return 0 if handler is None else handler.read(at, length)

    def write(self, offset: int, width: int, value: int) -> None:
        """A store to the data."""
        target = self._target()
        if target is None or offset != _WINDOW_DATA or width < target[2]:
            return
        bar, at, length = target
        handler = self._function().bars[bar].handler
        if handler is not None:
            handler.write(at, length, value & (1 << 8 * length) - 1)
