"""Address Translation Services (extended id 0x0f).

Source: PCI Express Base Specification 6.0 §10.5.1.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

CAPABILITY = Register(
    "capability",
    0x04,
    2,
    (
        Field("invalidate_queue_depth", 4, 0, unit="requests", doc="0 means 32"),
        flag("page_aligned_request", 5),
        flag("global_invalidate", 6),
        flag("relaxed_ordering", 7),
    ),
    "§10.5.1.2",
)
CONTROL = Register(
    "control",
    0x06,
    2,
    (
        Field("smallest_translation_unit", 4, 0, "rw", unit="log2 4 KiB"),
        flag("enable", 15, "rw"),
    ),
    "§10.5.1.3",
)


def _derive(capability: Capability) -> dict[str, object]:
    return {
        "queue_depth": capability.field(CAPABILITY, "invalidate_queue_depth") or 32,
        "translation_unit": 4096 << capability.field(CONTROL, "smallest_translation_unit"),
    }


LAYOUT = Layout(
    "ats",
    "Address Translation Services",
    0x0F,
    True,
    (CAPABILITY, CONTROL),
    "§10.5.1",
    lambda _: 8,
    derive=_derive,
)
