"""Enhanced Allocation (id 0x14): fixed resources in place of BARs.

Source: PCI Express Base Specification 6.0 §7.8.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, Repeated, flag

_PROPERTIES = {
    0x00: "memory",
    0x01: "prefetchable memory",
    0x02: "I/O",
    0x03: "VF prefetchable memory",
    0x04: "VF memory",
    0x05: "bridge memory",
    0x06: "bridge prefetchable memory",
    0x07: "bridge I/O",
    0xFD: "reserved memory",
    0xFE: "reserved I/O",
    0xFF: "unavailable",
}
_EQUIVALENTS = (
    {number: f"BAR {number}" for number in range(6)}
    | {6: "behind the bridge", 7: "none", 8: "expansion ROM"}
    | {9 + number: f"VF BAR {number}" for number in range(6)}
)

ENTRIES = Register("entries", 0x02, 1, (Field("count", 5, 0),), "§7.8.5.1")
SECONDARY_BUS = Register(
    "secondary_bus", 0x04, 1, (Field("bus", 7, 0, doc="0: not fixed"),), "§7.8.5.2"
)
SUBORDINATE_BUS = Register(
    "subordinate_bus", 0x05, 1, (Field("bus", 7, 0, doc="0: not fixed"),), "§7.8.5.2"
)
ENTRY = Register(
    "entry",
    0x00,
    4,
    (
        Field("size", 2, 0, unit="dwords after this one"),
        Field("equivalent", 7, 4, meaning=_EQUIVALENTS),
        Field("primary_properties", 15, 8, meaning=_PROPERTIES),
        Field("secondary_properties", 23, 16, meaning=_PROPERTIES),
        flag("writable", 30),
        flag("enable", 31, "rw"),
    ),
    "§7.8.5.3",
)
BASE = Register(
    "base", 0x04, 4, (flag("wide", 1), Field("address", 31, 2, unit="4 bytes")), "§7.8.5.3"
)
MAX_OFFSET = Register(
    "max_offset", 0x08, 4, (flag("wide", 1), Field("offset", 31, 2, unit="4 bytes")), "§7.8.5.3"
)
UPPER = Register("upper", 0x00, 4, (Field("address", 31, 0),), "§7.8.5.3")


class Entry(NamedTuple):
    """One resource: an address range with the meaning of a BAR."""

    at: int
    """Bytes from the capability's header."""
    equivalent: int
    """0 to 5 BARs, 6 behind a bridge, 7 none, 8 ROM, 9 to 14 VF BARs."""
    properties: int
    base: int
    length: int
    """Bytes."""
    enabled: bool
    uppers: tuple[tuple[str, int], ...]
    """Upper halves there are: ``base`` and ``max_offset``, with their places."""


def _is_bridge(capability: Capability) -> bool:
    return capability.config.u8(0x0E) & 0x7F == 1


def entries(capability: Capability) -> Iterator[Entry]:
    """The entries in order; ends where the capture or the standard space ends."""
    at = 8 if _is_bridge(capability) else 4
    for _ in range(capability.field(ENTRIES, "count")):
        end = capability.offset + at + 12
        if end > min(256, len(capability.config)):
            return
        word = capability.raw(at, 4)
        base, limit = capability.raw(at + 4, 4), capability.raw(at + 8, 4)
        uppers: list[tuple[str, int]] = []
        following = at + 12
        high = {"base": 0, "max_offset": 0}
        for name, value in (("base", base), ("max_offset", limit)):
            if value & 2 and capability.config.has(capability.offset + following, 4):
                uppers.append((name, following))
                high[name] = capability.raw(following, 4)
                following += 4
        yield Entry(
            at,
            ENTRY.field("equivalent").extract(word),
            ENTRY.field("primary_properties").extract(word),
            high["base"] << 32 | base & ~3,
            (high["max_offset"] << 32 | limit | 3) + 1,
            bool(word >> 31),
            tuple(uppers),
        )
        at += 4 + 4 * ENTRY.field("size").extract(word)


def _size(capability: Capability) -> int:
    end = 8 if _is_bridge(capability) else 4
    for entry in entries(capability):
        end = entry.at + 4 + 4 * ENTRY.field("size").extract(capability.raw(entry.at, 4))
    return end


def _derive(capability: Capability) -> dict[str, object]:
    return {
        "resources": [
            {
                "equivalent": _EQUIVALENTS.get(entry.equivalent, "reserved"),
                "properties": _PROPERTIES.get(entry.properties, "reserved"),
                "base": entry.base,
                "length": entry.length,
                "enabled": entry.enabled,
            }
            for entry in entries(capability)
        ]
    }


LAYOUT = Layout(
    "enhanced-allocation",
    "Enhanced Allocation",
    0x14,
    False,
    (ENTRIES, SECONDARY_BUS, SUBORDINATE_BUS),
    "§7.8.5",
    _size,
    lambda capability, register: register is ENTRIES or _is_bridge(capability),
    _derive,
    repeated=(
        Repeated(
            "resource",
            (ENTRY, BASE, MAX_OFFSET),
            lambda capability: [
                (str(number), entry.at) for number, entry in enumerate(entries(capability))
            ],
        ),
        Repeated(
            "resource",
            (UPPER,),
            lambda capability: [
                (f"{number}_{name}", place)
                for number, entry in enumerate(entries(capability))
                for name, place in entry.uppers
            ],
        ),
    ),
)
