"""Registers of a device, declared once by offset, width and direction.

::

    class Edu(RegisterMap):
        ID = R32(0x00)
        LIVENESS = RW32(0x04)
        IRQ_ACK = W32(0x64)
        DMA_SOURCE = RW64(0x80)

    edu = Edu(device.region(0).map())
    edu.LIVENESS = 1

Each access is one load or store of the register's width; a 64-bit register declared with
``halves=True`` is two 32-bit ones, the low half first.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol, Self, overload

from vfiokit.errors import UsageError


class Registers(Protocol):
    """What a register map needs: a kernel ``Mapping`` or a :class:`~vfiokit.vfio.region.Region`."""

    def read32(self, offset: int) -> int:
        """One 32-bit load."""
        ...

    def read64(self, offset: int) -> int:
        """One 64-bit load."""
        ...

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit store."""
        ...

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit store."""
        ...


class _SlottedMeta(type):
    """Gives every register map empty ``__slots__``: a misspelt register is an AttributeError."""

    def __new__(
        cls, name: str, parents: tuple[type, ...], namespace: dict[str, Any]
    ) -> _SlottedMeta:
        namespace.setdefault("__slots__", ())
        return super().__new__(cls, name, parents, namespace)


class RegisterMap(metaclass=_SlottedMeta):
    """Base of every register map; ``start`` is the offset of the block in ``registers``."""

    __slots__ = ("read32", "read64", "registers", "start", "write32", "write64")

    def __init__(self, registers: Registers, start: int = 0) -> None:
        self.registers = registers
        self.start = start
        # Bound once: looking the methods up on every access would cost as much as the access.
        self.read32 = registers.read32
        self.read64 = registers.read64
        self.write32 = registers.write32
        self.write64 = registers.write64

    @classmethod
    def layout(cls) -> dict[str, Register]:
        """The declared registers by name, in order of offset."""
        found = {
            name: value
            for kind in reversed(cls.__mro__)
            for name, value in vars(kind).items()
            if isinstance(value, Register)
        }
        return dict(sorted(found.items(), key=lambda item: item[1].offset))


class Register:
    """One register; use the subclasses, which say width and direction."""

    __slots__ = ("name", "offset")

    width = 4
    """Bytes."""
    readable = True
    writable = True

    def __init__(self, offset: int) -> None:
        if offset < 0 or offset % self.width:
            raise UsageError(f"{8 * self.width}-bit register at misaligned offset {offset:#x}")
        self.offset = offset
        self.name = f"register {offset:#x}"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> int: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> Self | int:
        """The register itself on the class, its value on an instance."""
        if instance is None:
            return self
        return instance.read32(instance.start + self.offset)

    def __set__(self, instance: RegisterMap, value: int) -> None:
        instance.write32(instance.start + self.offset, value)

    def _refusal(self, verb: str) -> UsageError:
        kind = "write-only" if verb == "read" else "read-only"
        return UsageError(f"cannot {verb} {self.name}: the register at {self.offset:#x} is {kind}")


class RW32(Register):
    """A 32-bit register to read and write."""

    __slots__ = ()


class R32(Register):
    """A 32-bit register to read."""

    __slots__ = ()
    writable = False

    def __set__(self, instance: RegisterMap, value: int) -> None:
        raise self._refusal("write")


class W32(Register):
    """A 32-bit register to write; reading it raises :class:`UsageError`."""

    __slots__ = ()
    readable = False

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> NoReturn: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> Self:
        """The register itself on the class; refuses on an instance."""
        if instance is None:
            return self
        raise self._refusal("read")


class RW64(Register):
    """A 64-bit register to read and write, whole or as two ``halves``, low half first."""

    __slots__ = ("halves",)
    width = 8

    def __init__(self, offset: int, *, halves: bool = False) -> None:
        super().__init__(offset)
        self.halves = halves

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> int: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> Self | int:
        """The register itself on the class, its value on an instance."""
        if instance is None:
            return self
        offset = instance.start + self.offset
        if self.halves:
            low = instance.read32(offset)
            return low | instance.read32(offset + 4) << 32
        return instance.read64(offset)

    def __set__(self, instance: RegisterMap, value: int) -> None:
        offset = instance.start + self.offset
        if not self.halves:
            instance.write64(offset, value)
            return
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{value:#x} does not fit into the 64 bits of {self.name}")
        instance.write32(offset, value & 0xFFFFFFFF)
        instance.write32(offset + 4, value >> 32)


class R64(RW64):
    """A 64-bit register to read, whole or as two ``halves``."""

    __slots__ = ()
    writable = False

    def __set__(self, instance: RegisterMap, value: int) -> None:
        raise self._refusal("write")


class W64(RW64):
    """A 64-bit register to write, whole or as two ``halves``; reading is refused."""

    __slots__ = ()
    readable = False

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> NoReturn: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> Self:
        """The register itself on the class; refuses on an instance."""
        if instance is None:
            return self
        raise self._refusal("read")
