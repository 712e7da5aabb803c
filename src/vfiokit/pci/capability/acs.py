"""Access Control Services (extended id 0x0d). Source: PCIe Base Specification 6.0 §7.7.11."""

from __future__ import annotations

from enum import IntFlag

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
    flag,
)


class Acs(IntFlag):
    """The bits shared by the ACS Capability and the ACS Control register."""

    SOURCE_VALIDATION = 0x01
    TRANSLATION_BLOCKING = 0x02
    REQUEST_REDIRECT = 0x04
    COMPLETION_REDIRECT = 0x08
    UPSTREAM_FORWARDING = 0x10
    EGRESS_CONTROL = 0x20
    DIRECT_TRANSLATED = 0x40


_NAMES = (
    "source_validation",
    "translation_blocking",
    "request_redirect",
    "completion_redirect",
    "upstream_forwarding",
    "egress_control",
    "direct_translated",
)

CAPABILITY = Register(
    "capability",
    0x04,
    2,
    (
        *(flag(name, bit, "hwinit") for bit, name in enumerate(_NAMES)),
        flag("enhanced", 7, "hwinit"),
        Field("egress_vector_size", 15, 8, "hwinit", unit="bits", doc="0 means 256"),
    ),
    "§7.7.11.2",
)
CONTROL = Register(
    "control",
    0x06,
    2,
    (
        *(flag(name, bit, "rw") for bit, name in enumerate(_NAMES)),
        flag("io_request_blocking", 7, "rw"),
        Field("dsp_memory_target", 9, 8, "rw"),
        Field("usp_memory_target", 11, 10, "rw"),
        flag("unclaimed_redirect", 12, "rw"),
    ),
    "§7.7.11.3",
)


EGRESS_VECTOR = Register(
    "vector",
    0x00,
    4,
    (
        Field(
            "ports",
            31,
            0,
            "rw",
            doc="bit n: peer-to-peer requests to port 32 × index + n are blocked or redirected",
        ),
    ),
    "§7.7.11.4",
)


def _egress_bits(capability: Capability) -> int:
    if not capability.field(CAPABILITY, "egress_control"):
        return 0
    return capability.field(CAPABILITY, "egress_vector_size") or 256


def _egress_dwords(capability: Capability) -> int:
    return (_egress_bits(capability) + 31) // 32


def egress_vector(capability: Capability) -> tuple[int, ...]:
    """The Egress Control Vector as bits, index 0 first; empty without Egress Control."""
    bits: list[int] = []
    for index in range(_egress_bits(capability)):
        dword = capability.raw(0x08 + index // 32 * 4, 4)
        bits.append(dword >> index % 32 & 1)
    return tuple(bits)


LAYOUT = Layout(
    "acs",
    "Access Control Services",
    0x0D,
    True,
    (CAPABILITY, CONTROL),
    "§7.7.11",
    lambda capability: 8 + 4 * _egress_dwords(capability),
    derive=lambda capability: {"egress_vector": list(egress_vector(capability))},
    repeated=(Repeated("egress", (EGRESS_VECTOR,), counted(8, 4, _egress_dwords)),),
)
