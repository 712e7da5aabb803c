"""Configuration space as a guest sees it: which bits are the machine's, and which the device's.

Four kinds of bits meet here. Those of *discovery* tell what the function is; those *passed through*
are read from the device and written to it; *emulated* ones are kept here; *virtualised* ones
come from the device too, but the kernel's VFIO keeps them (Linux ``vfio_pci_config.c``).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol


class Source(Enum):
    """Where a byte of configuration space comes from."""

    DISCOVERY = "discovery"
    """The device's identity, read once."""
    PASSED = "passed through"
    """The device's register."""
    EMULATED = "emulated"
    """The virtual machine's."""
    VIRTUALISED = "virtualised"
    """The device's as VFIO shows it: partly hardware, partly the kernel's own memory."""


class Registers(Protocol):
    """Configuration space of a real function; :class:`vfiokit.vfio.ConfigRegion` is one."""

    def read(self, offset: int, width: int) -> int:
        """Read ``width`` bytes."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Write ``width`` bytes."""
        ...


Watcher = Callable[[int, int], None]
"""Called with offset and width after the guest wrote there."""


class GuestConfig:
    """``size`` bytes of configuration space (256 or 4096).

    Bits are emulated unless :meth:`pass_through` gives them to ``device``.
    """

    def __init__(self, data: bytes, device: Registers | None = None) -> None:
        size = 4096 if len(data) > 256 else 256
        self.data = bytearray(data.ljust(size, b"\0"))
        """Emulated values; bits that are passed through mean nothing."""
        self.writable = bytearray(size)
        """Emulated bits that the guest may change."""
        self.cleared = bytearray(size)
        """Emulated bits that the guest clears by writing 1."""
        self.passed = bytearray(size)
        """Bits read from the device, and written to it."""
        self.source = [Source.EMULATED] * size
        """What each byte is, for people."""
        self.device = device
        self._watchers: list[tuple[int, int, Watcher]] = []

    def __len__(self) -> int:
        return len(self.data)

    # -- building -----------------------------------------------------------------------------

    def allow(self, offset: int, width: int, mask: int) -> None:
        """Let the guest change these emulated bits."""
        self._set(self.writable, offset, width, mask)

    def clear_on_one(self, offset: int, width: int, mask: int) -> None:
        """Let the guest clear these emulated bits by writing 1."""
        self._set(self.cleared, offset, width, mask)

    def pass_through(
        self, offset: int, width: int, mask: int = -1, source: Source = Source.PASSED
    ) -> None:
        """Let these bits be the device's."""
        self._set(self.passed, offset, width, mask & (1 << 8 * width) - 1)
        self.source[offset : offset + width] = [source] * width

    def emulate(self, offset: int, width: int, source: Source = Source.EMULATED) -> None:
        """Let these bytes be the machine's, read-only unless :meth:`allow` follows."""
        for masks in (self.passed, self.writable, self.cleared):
            masks[offset : offset + width] = bytes(width)
        self.source[offset : offset + width] = [source] * width

    def watch(self, offset: int, width: int, watcher: Watcher) -> None:
        """Call ``watcher`` after every write of the guest that touches these bytes."""
        self._watchers.append((offset, offset + width, watcher))

    @staticmethod
    def _set(masks: bytearray, offset: int, width: int, mask: int) -> None:
        masks[offset : offset + width] = mask.to_bytes(width, "little")

    # -- the machine's access -----------------------------------------------------------------

    def get(self, offset: int, width: int) -> int:
        """Emulated bytes as a number."""
        return int.from_bytes(self.data[offset : offset + width], "little")

    def set(self, offset: int, width: int, value: int) -> None:
        """Store emulated bytes, whatever the guest may write."""
        self.data[offset : offset + width] = value.to_bytes(width, "little")

    # -- the guest's access -------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """What the guest reads: all ones outside, and where the device is gone."""
        if offset < 0 or offset + width > len(self.data):
            return (1 << 8 * width) - 1
        value = self.get(offset, width)
        passed = int.from_bytes(self.passed[offset : offset + width], "little")
        if passed and self.device is not None:
            try:
                real = self.device.read(offset, width)
            except OSError:
                real = (1 << 8 * width) - 1
            value = value & ~passed | real & passed
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """What the guest writes: to the device, to the emulated bits, then watchers are told."""
        if offset < 0 or offset + width > len(self.data):
            return
        self._write_device(offset, width, value)
        for index in range(width):
            at, byte = offset + index, value >> 8 * index & 0xFF
            writable, cleared = self.writable[at], self.cleared[at]
            if writable:
                self.data[at] = self.data[at] & ~writable | byte & writable
            if cleared:
                self.data[at] &= ~(byte & cleared)
        for start, end, watcher in tuple(self._watchers):
            if offset < end and start < offset + width:
                watcher(offset, width)

    def _write_device(self, offset: int, width: int, value: int) -> None:
        passed = int.from_bytes(self.passed[offset : offset + width], "little")
        if not passed or self.device is None:
            return
        try:
            if passed != (1 << 8 * width) - 1:
                # Bits that are not the device's must not change there. Status bits that a one
                # clears live in registers that are passed through whole.
                value = value & passed | self.device.read(offset, width) & ~passed
            self.device.write(offset, width, value)
        except OSError:
            return

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The emulated bytes as plain data."""
        return {"data": bytes(self.data)}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; watchers are not told."""
        self.data[:] = state["data"]
