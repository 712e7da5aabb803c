"""Accesses of exact width, on whatever a mapping is made of."""

from __future__ import annotations


class WidthAccess:
    """The eight accesses of :class:`vfiokit.kernel.port.Mapping`, by one load and one store."""

    def read8(self, offset: int) -> int:
        """One 8-bit load."""
        return self._load(offset, 1)

    def read16(self, offset: int) -> int:
        """One 16-bit load."""
        return self._load(offset, 2)

    def read32(self, offset: int) -> int:
        """One 32-bit load."""
        return self._load(offset, 4)

    def read64(self, offset: int) -> int:
        """One 64-bit load."""
        return self._load(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit store."""
        self._store(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit store."""
        self._store(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit store."""
        self._store(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit store."""
        self._store(offset, 8, value)

    def _load(self, offset: int, width: int) -> int:
        raise NotImplementedError

    def _store(self, offset: int, width: int, value: int) -> None:
        raise NotImplementedError
