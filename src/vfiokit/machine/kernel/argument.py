"""Arguments of ioctls: what ``copy_from_user`` and ``copy_to_user`` do with a buffer."""

from __future__ import annotations

import errno
from typing import TypeAlias, TypeVar

from vfiokit.abi._layout import CStruct
from vfiokit.machine.kernel.failure import failure

Argument: TypeAlias = "int | bytearray | memoryview"

Struct = TypeVar("Struct", bound=CStruct)


def buffer_of(argument: Argument, minimum: int) -> memoryview:
    """The caller's buffer as bytes; EFAULT for a number or for fewer than ``minimum`` bytes."""
    if isinstance(argument, int):
        raise failure(errno.EFAULT, "a number is no buffer")
    view = memoryview(argument).cast("B")
    if len(view) < minimum:
        raise failure(errno.EFAULT, f"the buffer holds {len(view)} of {minimum} bytes")
    return view


def fetch(
    kind: type[Struct], argument: Argument, minimum: int | None = None
) -> tuple[Struct, memoryview]:
    """Read a struct that starts with ``argsz``, and the buffer it came from.

    ``minimum`` is the least ``argsz`` (default: the struct's size); less is EINVAL, and so is
    nothing else here. A buffer shorter than its ``argsz`` is EFAULT: a real kernel would run over
    its end.
    """
    least = kind.SIZE if minimum is None else minimum
    view = buffer_of(argument, min(least, 4))
    argsz = int.from_bytes(view[:4], "little")
    if argsz < least:
        raise failure(errno.EINVAL, f"argsz is {argsz}, at least {least} is needed")
    if len(view) < least or len(view) < min(argsz, kind.SIZE):
        raise failure(errno.EFAULT, f"argsz is {argsz}, but the buffer holds {len(view)} bytes")
    padded = bytes(view[: min(argsz, kind.SIZE)]).ljust(kind.SIZE, b"\0")
    return kind.unpack_from(padded), view


def store(struct: CStruct, view: memoryview, length: int | None = None) -> None:
    """Write the first ``length`` bytes of ``struct`` (all by default) back to the caller."""
    data = struct.pack()
    count = min(len(data) if length is None else length, len(view))
    view[:count] = data[:count]


def append_chain(
    capabilities: list[bytes], view: memoryview, argsz: int, start: int
) -> tuple[int, int]:
    """Lay out a capability chain behind a struct of ``start`` bytes.

    Each of ``capabilities`` begins with a ``vfio_info_cap_header`` whose ``next`` is filled in
    here; each starts 8-byte aligned. Returns ``(cap_offset, argsz)`` for the struct: where the
    chain does not fit into ``argsz`` nothing is written, ``cap_offset`` is 0 and ``argsz`` what
    would be needed. Source: ``vfio_info_cap_add``, ``vfio_info_cap_shift``.
    """
    sizes = [(len(capability) + 7) & ~7 for capability in capabilities]
    needed = start + sum(sizes)
    if not capabilities:
        return 0, argsz
    if argsz < needed:
        return 0, needed
    if len(view) < needed:
        raise failure(errno.EFAULT, f"argsz is {argsz}, but the buffer holds {len(view)} bytes")
    at = start
    for index, capability in enumerate(capabilities):
        following = at + sizes[index] if index + 1 < len(capabilities) else 0
        data = bytearray(capability.ljust(sizes[index], b"\0"))
        data[4:8] = following.to_bytes(4, "little")
        view[at : at + sizes[index]] = data
        at += sizes[index]
    return start, argsz
