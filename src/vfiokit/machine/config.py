"""Configuration space of a modelled function: bytes, write mask, write-one-to-clear mask.

Source of the model: PCIe Base Specification 6.0 §7.5 register access types. Registers with side
effects are watched: a watcher is called after a write that touched its range.
"""

from __future__ import annotations

from collections.abc import Callable

Watcher = Callable[[int, int], None]
"""Called with the offset and width of a write that touched the watched range."""


class ConfigModel:
    """``size`` bytes of configuration space with per-bit access rules.

    All bits are read-only until :meth:`allow` or :meth:`clear_on_one` says otherwise.
    """

    def __init__(self, data: bytes, *, size: int | None = None) -> None:
        length = size if size is not None else len(data)
        self.data = bytearray(data[:length].ljust(length, b"\0"))
        self.write_mask = bytearray(length)
        self.clear_mask = bytearray(length)
        self.sticky_mask = bytearray(length)
        self._power_on = bytes(self.data)
        self._watchers: list[tuple[int, int, Watcher]] = []
        self._hardware_watchers: list[tuple[int, int, Watcher]] = []

    def __len__(self) -> int:
        return len(self.data)

    def allow(self, offset: int, width: int, mask: int) -> None:
        """Make the bits of ``mask`` in the ``width``-byte register at ``offset`` writable."""
        self._set(self.write_mask, offset, width, mask)

    def clear_on_one(self, offset: int, width: int, mask: int) -> None:
        """Make the bits of ``mask`` write-one-to-clear."""
        self._set(self.clear_mask, offset, width, mask)

    def forbid(self, offset: int, width: int, mask: int) -> None:
        """Make the bits of ``mask`` read-only again."""
        for index in range(width):
            self.write_mask[offset + index] &= ~(mask >> 8 * index) & 0xFF

    def keep(self, offset: int, width: int, mask: int) -> None:
        """Make the bits of ``mask`` sticky: :meth:`restore` leaves them alone."""
        self._set(self.sticky_mask, offset, width, mask)

    def remember(self) -> None:
        """Take the present bytes for the power-on values that :meth:`restore` returns to."""
        self._power_on = bytes(self.data)

    def restore(self) -> None:
        """Return every writable bit that is not sticky to its power-on value. No watchers run."""
        writable = int.from_bytes(self.write_mask) & ~int.from_bytes(self.sticky_mask)
        present, power_on = int.from_bytes(self.data), int.from_bytes(self._power_on)
        self.data[:] = (present & ~writable | power_on & writable).to_bytes(len(self.data))

    def watch(self, offset: int, length: int, watcher: Watcher, *, hardware: bool = False) -> None:
        """Call ``watcher`` after every write that touches ``[offset, offset + length)``.

        ``hardware`` extends that to changes made with :meth:`set`.
        """
        entry = (offset, offset + length, watcher)
        self._watchers.append(entry)
        if hardware:
            self._hardware_watchers.append(entry)

    def read(self, offset: int, width: int) -> int:
        """``width`` bytes at ``offset``; all ones outside the space, as a bus would answer."""
        if offset < 0 or offset + width > len(self.data):
            return (1 << 8 * width) - 1
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A configuration write as software does it: masks apply, watchers run."""
        if offset < 0 or offset + width > len(self.data):
            return
        for index in range(width):
            at = offset + index
            new = value >> 8 * index & 0xFF
            mask = self.write_mask[at]
            kept = self.data[at] & ~mask | new & mask
            self.data[at] = kept & ~(new & self.clear_mask[at])
        for start, end, watcher in self._watchers:
            if offset < end and offset + width > start:
                watcher(offset, width)

    def set(self, offset: int, width: int, value: int) -> None:
        """Hardware changes a register by itself: no masks, no watchers but ``hardware`` ones."""
        self.data[offset : offset + width] = value.to_bytes(width, "little")
        for start, end, watcher in self._hardware_watchers:
            if offset < end and offset + width > start:
                watcher(offset, width)

    @staticmethod
    def _set(masks: bytearray, offset: int, width: int, mask: int) -> None:
        for index in range(min(width, len(masks) - offset)):
            masks[offset + index] |= mask >> 8 * index & 0xFF
