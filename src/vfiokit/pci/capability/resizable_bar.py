"""Resizable BARs of a function (0x15) and of its VFs (0x24).

Source: PCI Express Base Specification 6.0 §7.8.6 and §7.8.7.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
)

CAPABILITY = Register(
    "capability",
    0x00,
    4,
    (Field("sizes", 31, 4, doc="bit n: 1 MiB << n, up to 128 TiB"),),
    "§7.8.6.2",
)
CONTROL = Register(
    "control",
    0x04,
    4,
    (
        Field("bar", 2, 0),
        Field("count", 7, 5, doc="resizable BARs; in the first entry only"),
        Field("size", 13, 8, "rw", unit="log2 MiB"),
        Field("larger_sizes", 31, 16, doc="bit n: 256 TiB << n"),
    ),
    "§7.8.6.3",
)


def count(capability: Capability) -> int:
    """How many BARs can be resized: at most 6, whatever is written there."""
    return min(CONTROL.field("count").extract(capability.raw(0x08, 4)), 6)


def _bar(capability: Capability, first: int) -> dict[str, object]:
    offered, control = capability.raw(first, 4), capability.raw(first + 4, 4)
    sizes = offered >> 4 | control >> 16 << 28
    return {
        "bar": CONTROL.field("bar").extract(control),
        "size": 1 << 20 + CONTROL.field("size").extract(control),
        "sizes": [1 << 20 + bit for bit in range(44) if sizes >> bit & 1],
    }


LAYOUT = Layout(
    "resizable-bar",
    "Resizable BAR",
    0x15,
    True,
    (),
    "§7.8.6",
    lambda capability: 4 + 8 * count(capability),
    derive=lambda capability: {
        "bars": [_bar(capability, 4 + 8 * n) for n in range(count(capability))]
    },
    repeated=(Repeated("entry", (CAPABILITY, CONTROL), counted(4, 8, count)),),
)
VIRTUAL = LAYOUT._replace(
    name="vf-resizable-bar", title="VF Resizable BAR", cap_id=0x24, spec="§7.8.7"
)
