"""C structs declared as classes.

::

    class vfio_region_info(CStruct):
        argsz: u32
        flags: u32
        ...

gives ``SIZE``, ``OFFSETS``, keyword construction, ``pack()``, ``pack_into()`` and
``unpack_from()``. Natural C alignment is applied; fields of a nested struct or an array are
declared with :func:`array` types or spelled out.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Self, TypeAlias, dataclass_transform

u8: TypeAlias = int
u16: TypeAlias = int
u32: TypeAlias = int
u64: TypeAlias = int
s32: TypeAlias = int
s64: TypeAlias = int

_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q"}


@dataclass_transform(kw_only_default=True, eq_default=True)
class CStruct:
    """Base of every ABI struct; fields are annotations of :data:`u8` … :data:`s64`.

    All fields default to 0. ``unpack_from`` takes any readable buffer.
    """

    SIZE: ClassVar[int] = 0
    """``sizeof`` of the struct."""
    OFFSETS: ClassVar[dict[str, int]] = {}
    """``offsetof`` of every field."""
    _codec: ClassVar[struct.Struct] = struct.Struct("")

    def __init_subclass__(cls) -> None:
        names = [name for name, kind in cls.__annotations__.items() if kind in _CODES]
        codes = [_CODES[cls.__annotations__[name]] for name in names]
        offset, largest, layout = 0, 1, "<"
        offsets: dict[str, int] = {}
        for name, code in zip(names, codes, strict=True):
            width = struct.calcsize(code)
            padding = -offset % width
            layout += f"{padding}x" if padding else ""
            offset += padding
            offsets[name] = offset
            layout += code
            offset += width
            largest = max(largest, width)
        tail = -offset % largest
        layout += f"{tail}x" if tail else ""
        cls._codec = struct.Struct(layout)
        cls.SIZE = cls._codec.size
        cls.OFFSETS = offsets

    def __init__(self, **values: int) -> None:
        for name in self.OFFSETS:
            setattr(self, name, values.pop(name, 0))
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def pack(self) -> bytearray:
        """The struct as a fresh writable buffer, ready for an ioctl."""
        buffer = bytearray(self.SIZE)
        self.pack_into(buffer)
        return buffer

    def pack_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Write the struct into ``buffer`` at ``offset``."""
        self._codec.pack_into(buffer, offset, *(getattr(self, name) for name in self.OFFSETS))

    @classmethod
    def unpack_from(cls, buffer: Any, offset: int = 0) -> Self:  # noqa: ANN401
        """Read a struct from ``buffer`` at ``offset``; ``struct.error`` when it is too short."""
        made = cls.__new__(cls)
        for name, value in zip(cls.OFFSETS, cls._codec.unpack_from(buffer, offset), strict=True):
            setattr(made, name, value)
        return made

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name):#x}" for name in self.OFFSETS)
        return f"{type(self).__name__}({fields})"
