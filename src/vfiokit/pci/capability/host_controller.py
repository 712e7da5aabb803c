"""Where host controllers keep registers: USB debug port (0x0a), SATA (0x12).

Source: Enhanced Host Controller Interface 1.0 appendix C, Serial ATA AHCI 1.3.1 §2.4.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, fixed

PORT = Register(
    "port",
    0x02,
    2,
    (Field("offset", 12, 0, unit="bytes"), Field("bar", 15, 13, doc="1 for BAR 0, and so on")),
    "EHCI §C",
)
DEBUG_PORT = Layout(
    "debug-port",
    "Debug Port",
    0x0A,
    False,
    (PORT,),
    "EHCI §C",
    fixed(4),
    derive=lambda capability: {"bar": capability.field(PORT, "bar") - 1},
)

_INLINE = 0xF

REVISION = Register(
    "revision", 0x02, 1, (Field("minor", 3, 0), Field("major", 7, 4)), "AHCI §2.4.1"
)
LOCATION = Register(
    "location",
    0x04,
    4,
    (
        Field("place", 3, 0, meaning={4 + n: f"BAR {n}" for n in range(6)} | {_INLINE: "here"}),
        Field("offset", 23, 4, unit="4 bytes"),
    ),
    "AHCI §2.4.2",
)
INDEX = Register("index", 0x08, 4, (Field("index", 31, 0, "rw"),), "AHCI §2.4")
DATA = Register("data", 0x0C, 4, (Field("data", 31, 0, "rw"),), "AHCI §2.4")


def _inline(capability: Capability) -> bool:
    return capability.field(LOCATION, "place") == _INLINE


SATA = Layout(
    "sata",
    "SATA Configuration",
    0x12,
    False,
    (REVISION, LOCATION, INDEX, DATA),
    "AHCI §2.4",
    lambda capability: 0x10 if _inline(capability) else 0x08,
    lambda capability, register: register.offset < 0x08 or _inline(capability),
)
