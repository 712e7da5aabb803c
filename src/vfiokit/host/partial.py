"""Functions of which a source tells only some registers: the others stay unknown, not 0."""

from __future__ import annotations

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

HEADER_SIZE = 0x3F
"""Size of a configuration space whose capability lists were not shown: it ends before their
pointer."""

DOUBTFUL_SIZE = 0xFC
"""Size of one whose capabilities are known, but not all that decides how it keeps peers apart."""


class PartialConfig(ConfigSpace):
    """Configuration space of which only some bytes are known; the others cannot be read.

    ``size`` is what ``len()`` answers: below 256 where what is known does not settle how well the
    function keeps its peers apart, as for any capture that ends before the capabilities do.
    """

    __slots__ = ("_known", "_size")

    def __init__(self, data: bytes, known: bytes, size: int) -> None:
        super().__init__(data)
        self._known = bytes(known[:4096])
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartialConfig) and (self.data, self._known, self._size) == (
            other.data,
            other._known,
            other._size,
        )

    def __hash__(self) -> int:
        return hash((self.data, self._known))

    def __repr__(self) -> str:
        return f"PartialConfig({self._known.count(1)} bytes known)"

    def has(self, offset: int, width: int) -> bool:
        """Whether all ``width`` bytes at ``offset`` are known."""
        return offset >= 0 and self._known[offset : offset + width] == b"\1" * width

    def read(self, offset: int, width: int) -> int:
        """``width`` bytes at ``offset``; :class:`ConfigRangeError` where not all are known."""
        if not self.has(offset, width):
            raise ConfigRangeError(offset, width, self._size)
        return int.from_bytes(self.data[offset : offset + width], "little")


class Registers:
    """Configuration space in the making."""

    def __init__(self) -> None:
        self._data = bytearray(4096)
        self._known = bytearray(4096)

    def put(self, offset: int, width: int, value: int) -> None:
        """Make ``width`` bytes at ``offset`` known."""
        if offset + width <= 4096:
            self._data[offset : offset + width] = value.to_bytes(width, "little")
            self._known[offset : offset + width] = b"\1" * width

    def byte(self, offset: int) -> int:
        """The byte at ``offset``; 0 while it is not known."""
        return self._data[offset]

    def forget(self, start: int) -> None:
        """Make every byte from ``start`` on unknown."""
        self._known[start:] = bytes(4096 - start)

    def config(self, size: int) -> PartialConfig:
        """What is known."""
        return PartialConfig(bytes(self._data), bytes(self._known), size)


class PartialTopology(Topology):
    """Functions whose header type is not known may be one of several of their device.

    Whether they need ACS is then unknown, which ``Grouping.uncertain`` says of them.
    """

    def is_multifunction(self, function: Function) -> bool:
        """As :class:`Topology` has it, and for a physical function without a header type."""
        if not function.is_virtual and not function.config.has(0x0E, 1):
            return True
        return super().is_multifunction(function)
