"""Info requests that answer in a struct followed by a chain of capabilities.

Source: Linux ``include/uapi/linux/vfio.h`` (``argsz``, ``vfio_info_cap_header``),
``vfio_info_add_capability``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from vfiokit.abi._layout import CStruct
from vfiokit.abi.vfio import vfio_info_cap_header
from vfiokit.errors import KernelError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.failure import request

_MAX_ARGSZ = 1 << 20
_MAX_CAPABILITIES = 256

Info = TypeVar("Info", bound=CStruct)


class InfoCapability(NamedTuple):
    """One capability of an info buffer: its numbers, and where it starts."""

    id: int
    version: int
    offset: int


def query(
    kernel: Kernel, fd: int, name: str, info: Info, subject: object
) -> tuple[Info, bytearray]:
    """Ask ``name`` with a growing buffer until the kernel says that everything fitted.

    ``info`` holds the input fields; ``argsz`` is filled in. Returns the struct as answered and
    the whole buffer. Raises :class:`KernelError`, EPROTO if the answer never fits.
    """
    size = info.SIZE
    head = info.pack()
    for _ in range(4):
        buffer = bytearray(size)
        buffer[: len(head)] = head
        buffer[0:4] = size.to_bytes(4, "little")
        request(kernel, fd, name, buffer, subject, type(info).unpack_from(buffer))
        needed = int.from_bytes(buffer[0:4], "little")
        if needed <= size:
            return type(info).unpack_from(buffer), buffer
        if needed > _MAX_ARGSZ:
            break
        size = needed
    raise KernelError(name, str(subject), errno.EPROTO, detail=f"asks for ever larger argsz {size}")


def chain(buffer: bytearray, cap_offset: int) -> Iterator[InfoCapability]:
    """The capabilities of an info buffer in chain order; stops at a pointer that leads nowhere."""
    seen: set[int] = set()
    offset = cap_offset
    while offset and offset not in seen and len(seen) < _MAX_CAPABILITIES:
        if offset + vfio_info_cap_header.SIZE > len(buffer):
            return
        seen.add(offset)
        header = vfio_info_cap_header.unpack_from(buffer, offset)
        yield InfoCapability(header.id, header.version, offset)
        offset = header.next
