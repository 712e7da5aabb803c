"""Configuration space as bytes with typed reads.

Source: PCI Local Bus Specification 3.0 §6.1 (header), PCI Express Base Specification 6.0 §7.2
(4 KiB extended space). Registers are little endian.
"""

from __future__ import annotations

from vfiokit.errors import ConfigRangeError


class ConfigSpace:
    """The configuration bytes of one function, as far as they were captured.

    ``data`` is 64 bytes (captured without privilege), 256 (conventional) or 4096 (PCIe), but any
    length up to 4096 is accepted; reads past the end raise :class:`ConfigRangeError`.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data[:4096])

    def __len__(self) -> int:
        return len(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigSpace) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"ConfigSpace({len(self.data)} bytes)"

    def has(self, offset: int, width: int) -> bool:
        """Whether ``width`` bytes at ``offset`` were captured."""
        return offset >= 0 and offset + width <= len(self.data)

    def u8(self, offset: int) -> int:
        """The byte at ``offset``."""
        return self.read(offset, 1)

    def u16(self, offset: int) -> int:
        """The 16-bit word at ``offset``."""
        return self.read(offset, 2)

    def u32(self, offset: int) -> int:
        """The 32-bit dword at ``offset``."""
        return self.read(offset, 4)

    def read(self, offset: int, width: int) -> int:
        """``width`` bytes at ``offset`` as an unsigned number."""
        if offset < 0 or offset + width > len(self.data):
            raise ConfigRangeError(offset, width, len(self.data))
        return int.from_bytes(self.data[offset : offset + width], "little")
