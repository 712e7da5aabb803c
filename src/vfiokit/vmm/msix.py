"""The MSI-X table that a guest sees: entries, masks and pending bits kept by the machine.

Source: PCI Express Base Specification 6.0 §6.1.4 (masking and pending), §7.7.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vfiokit.pci.capability.msix import ENTRY_SIZE

_ADDRESS, _UPPER, _DATA, _CONTROL = 0, 4, 8, 12
_MASKED = 1


class Message(NamedTuple):
    """What a vector writes where."""

    address: int
    data: int


class MsixVectors:
    """Table and pending bits of ``count`` vectors.

    ``send(vector, message)`` delivers; ``use(vector)`` is called when a vector may interrupt for
    the first time, and whenever it may again, so that the device's own can be switched on.
    """

    def __init__(
        self, count: int, send: Callable[[int, Message], None], use: Callable[[int], None]
    ) -> None:
        self.count = count
        self.enabled = False
        self.function_masked = False
        self.on_change: Callable[[int], None] | None = None
        """Called with a vector whose message or mask may have changed."""
        self._table = bytearray(count * ENTRY_SIZE)
        self._pending: set[int] = set()
        self._send = send
        self._use = use
        self.reset()

    def reset(self) -> None:
        """Every entry masked and empty, nothing pending."""
        self.enabled = self.function_masked = False
        self._pending.clear()
        self._table[:] = (bytes(_CONTROL) + _MASKED.to_bytes(4, "little")) * self.count

    # -- the table ----------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A load from the table."""
        return int.from_bytes(self._table[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A store to the table; lost unless 4 or 8 bytes wide and aligned, as the device would."""
        if width not in (4, 8) or offset % width:
            return
        end = min(offset + width, len(self._table))
        self._table[offset:end] = value.to_bytes(width, "little")[: end - offset]
        vector = offset // ENTRY_SIZE
        # Reserved bits of Vector Control read 0.
        at = vector * ENTRY_SIZE + _CONTROL
        self._table[at : at + 4] = (self._field(vector, _CONTROL) & _MASKED).to_bytes(4, "little")
        self._settle(vector)

    def message(self, vector: int) -> Message:
        """What ``vector`` writes now."""
        address = self._field(vector, _UPPER) << 32 | self._field(vector, _ADDRESS) & ~3
        return Message(address, self._field(vector, _DATA))

    def masked(self, vector: int) -> bool:
        """Whether ``vector`` may not interrupt: by its own mask, the function's, or MSI-X off."""
        own = self._field(vector, _CONTROL) & _MASKED
        return not self.enabled or self.function_masked or bool(own)

    def _field(self, vector: int, field: int) -> int:
        at = vector * ENTRY_SIZE + field
        return int.from_bytes(self._table[at : at + 4], "little")

    # -- interrupts ---------------------------------------------------------------------------

    def set_control(self, *, enabled: bool, function_masked: bool) -> None:
        """The two bits of Message Control changed."""
        self.enabled, self.function_masked = enabled, function_masked
        if not enabled:
            self._pending.clear()
            return
        for vector in range(self.count):
            self._settle(vector)

    def fire(self, vector: int) -> None:
        """The device raised ``vector``: deliver it, or note it while masked."""
        if not self.enabled:
            return
        if self.masked(vector):
            self._pending.add(vector)
        else:
            self._send(vector, self.message(vector))

    def _settle(self, vector: int) -> None:
        if not self.masked(vector):
            self._use(vector)
            if vector in self._pending:
                self._pending.remove(vector)
                self._send(vector, self.message(vector))
        if self.on_change is not None:
            self.on_change(vector)

    @property
    def pending(self) -> frozenset[int]:
        """Vectors raised while masked."""
        return frozenset(self._pending)

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "enabled": self.enabled,
            "function_masked": self.function_masked,
            "table": bytes(self._table),
            "pending": sorted(self._pending),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described, and deliver what was pending if it may be now."""
        self._table[:] = state["table"]
        self._pending = set(state["pending"])
        self.set_control(enabled=state["enabled"], function_masked=state["function_masked"])


class PendingBits:
    """Handler of the pending bit array: read-only, one bit for each vector."""

    def __init__(self, vectors: MsixVectors) -> None:
        self._vectors = vectors

    def read(self, offset: int, width: int) -> int:
        """A load."""
        first = offset * 8
        return sum(
            1 << vector - first
            for vector in self._vectors.pending
            if first <= vector < first + 8 * width
        )

    def write(self, offset: int, width: int, value: int) -> None:
        """Pending bits cannot be written."""
