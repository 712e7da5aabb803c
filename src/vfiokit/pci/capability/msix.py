"""MSI-X (id 0x11). Source: PCI Express Base Specification 6.0 §7.7.2."""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

CONTROL = Register(
    "control",
    0x02,
    2,
    (
        Field("table_size", 10, 0, doc="vectors minus one"),
        flag("function_mask", 14, "rw"),
        flag("enable", 15, "rw"),
    ),
    "§7.7.2.2",
)
TABLE = Register(
    "table", 0x04, 4, (Field("bir", 2, 0), Field("offset", 31, 3, unit="8 bytes")), "§7.7.2.3"
)
PBA = Register(
    "pba", 0x08, 4, (Field("bir", 2, 0), Field("offset", 31, 3, unit="8 bytes")), "§7.7.2.4"
)

ENTRY_SIZE = 16
"""Bytes of one table entry: address, upper address, data, vector control."""


class Structure(NamedTuple):
    """Where the vector table or the pending bit array lies."""

    bar: int
    """BAR index, 0 to 5; 6 and 7 are reserved and name none."""
    offset: int
    """Bytes from the start of the BAR."""
    length: int
    """Bytes."""


def vectors(capability: Capability) -> int:
    """Entries of the vector table: 1 to 2048."""
    return capability.field(CONTROL, "table_size") + 1


def table(capability: Capability) -> Structure:
    """The vector table: 16 bytes for each vector."""
    value = capability.value(TABLE)
    return Structure(value & 7, value & ~7, vectors(capability) * ENTRY_SIZE)


def pba(capability: Capability) -> Structure:
    """The pending bit array: one bit for each vector, in whole quadwords."""
    value = capability.value(PBA)
    return Structure(value & 7, value & ~7, (vectors(capability) + 63) // 64 * 8)


def _derive(capability: Capability) -> dict[str, object]:
    return {
        "vectors": vectors(capability),
        "vector_table": table(capability)._asdict(),
        "pending_bits": pba(capability)._asdict(),
    }


LAYOUT = Layout(
    "msix",
    "MSI-X",
    0x11,
    False,
    (CONTROL, TABLE, PBA),
    "§7.7.2",
    lambda _: 12,
    derive=_derive,
)
