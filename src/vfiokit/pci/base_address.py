"""Base Address Registers as written in configuration space.

The registers say kind and address; sizes are known only to who wrote all ones into them, which
is the kernel's doing (:mod:`vfiokit.pci.bar`). Source: PCI Local Bus Specification 3.0 §6.2.5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["io", "memory32", "memory64"]
"""What a BAR decodes."""


class BaseAddress(NamedTuple):
    """One BAR as its register, or pair of registers, describes it."""

    index: int  # type: ignore[assignment]  # tuple.index is not missed
    """Which register, counted from the first; a 64-bit BAR takes the next one too."""
    kind: Kind
    prefetchable: bool
    address: int
    """Bus address as written; 0 when unassigned."""


def base_addresses(registers: Sequence[int]) -> tuple[BaseAddress, ...]:
    """Decode consecutive 32-bit registers; one that reads 0 is taken for unimplemented.

    The reserved memory type and the old "below 1 MiB" type decode as ``memory32``. A 64-bit BAR
    in the last register has no upper half: a defect of the device, its lower half is reported.
    """
    found: list[BaseAddress] = []
    index = 0
    while index < len(registers):
        value = registers[index]
        at, index = index, index + 1
        if value == 0:
            continue
        if value & 1:
            found.append(BaseAddress(at, "io", False, value & 0xFFFFFFFC))
            continue
        address = value & 0xFFFFFFF0
        kind: Kind = "memory32"
        if value & 0x6 == 0x4:
            kind = "memory64"
            if index < len(registers):
                address |= registers[index] << 32
                index += 1
        found.append(BaseAddress(at, kind, bool(value & 0x8), address))
    return tuple(found)
