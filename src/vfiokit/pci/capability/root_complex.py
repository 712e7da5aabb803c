"""What is particular to a root complex: links (0x05, 0x06), events (0x07), registers (0x0a).

Source: PCI Express Base Specification 6.0 §7.9.7 to §7.9.10.
"""

from __future__ import annotations

from vfiokit.pci.capability.express import ASPM, SPEEDS
from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
    fixed,
    flag,
)

SELF_DESCRIPTION = Register(
    "self_description",
    0x04,
    4,
    (
        Field(
            "element_type",
            3,
            0,
            meaning={0: "configuration space", 1: "system egress", 2: "internal link"},
        ),
        Field("links", 15, 8),
        Field("component_id", 23, 16, "hwinit"),
        Field("port_number", 31, 24),
    ),
    "§7.9.8.2",
)
LINK_DESCRIPTION = Register(
    "description",
    0x00,
    4,
    (
        flag("valid", 0, "hwinit"),
        flag("link_type", 1, "hwinit", "0: memory-mapped RCRB, 1: configuration space"),
        flag("associate_rcrb", 2, "hwinit"),
        Field("target_component_id", 23, 16, "hwinit"),
        Field("target_port_number", 31, 24, "hwinit"),
    ),
    "§7.9.8.3.1",
)
LINK_ADDRESS = Register("address", 0x08, 4, (), "§7.9.8.3.2")
LINK_ADDRESS_UPPER = Register("address_upper", 0x0C, 4, (), "§7.9.8.3.2")


def _links(capability: Capability) -> int:
    return capability.field(SELF_DESCRIPTION, "links")


def _link(capability: Capability, first: int) -> dict[str, object]:
    low, high = capability.raw(first + 8, 4), capability.raw(first + 12, 4)
    link: dict[str, object] = {"address": high << 32 | low}
    if capability.raw(first, 4) & 2:
        bits = low & 7 or 8
        link = {
            "bus": low >> 20 & (1 << bits) - 1,
            "device": low >> 15 & 0x1F,
            "function": low >> 12 & 7,
            "ecam_base": high << 32 | low >> (20 + bits) << (20 + bits),
        }
    return link


LINK_DECLARATION = Layout(
    "root-complex-link",
    "Root Complex Link Declaration",
    0x05,
    True,
    (SELF_DESCRIPTION,),
    "§7.9.8",
    lambda capability: 0x10 + 0x10 * _links(capability),
    derive=lambda capability: {
        "links": [_link(capability, 0x10 + 0x10 * n) for n in range(_links(capability))]
    },
    repeated=(
        Repeated(
            "link",
            (LINK_DESCRIPTION, LINK_ADDRESS, LINK_ADDRESS_UPPER),
            counted(0x10, 0x10, _links),
        ),
    ),
)

INTERNAL_LINK = Layout(
    "root-complex-internal-link",
    "Root Complex Internal Link Control",
    0x06,
    True,
    (
        Register(
            "capabilities",
            0x04,
            4,
            (
                Field("max_speed", 3, 0, meaning=SPEEDS),
                Field("max_width", 9, 4, unit="lanes"),
                Field("aspm", 11, 10, meaning=ASPM),
                Field("l0s_exit_latency", 14, 12),
                Field("l1_exit_latency", 17, 15),
                Field("supported_speeds", 24, 18, doc="bit n: speed code n + 1"),
            ),
            "§7.9.9.2",
        ),
        Register(
            "control",
            0x08,
            2,
            (Field("aspm", 1, 0, "rw", ASPM), flag("extended_synch", 7, "rw")),
            "§7.9.9.3",
        ),
        Register(
            "status",
            0x0A,
            2,
            (Field("speed", 3, 0, meaning=SPEEDS), Field("width", 9, 4, unit="lanes")),
            "§7.9.9.4",
        ),
    ),
    "§7.9.9",
    fixed(0x0C),
)

ASSOCIATION = Register(
    "association",
    0x04,
    4,
    (Field("devices", 31, 0, "hwinit", doc="bit n: device n of the collector's own bus"),),
    "§7.9.10.2",
)
ASSOCIATED_BUSES = Register(
    "associated_buses",
    0x08,
    4,
    (Field("next_bus", 15, 8, "hwinit"), Field("last_bus", 23, 16, "hwinit")),
    "§7.9.10.3",
)


def _collected(capability: Capability) -> dict[str, object]:
    devices = capability.value(ASSOCIATION)
    buses: list[int] = []
    if capability.version >= 2:
        following = capability.field(ASSOCIATED_BUSES, "next_bus")
        last = capability.field(ASSOCIATED_BUSES, "last_bus")
        if following <= last:  # 0xff to 0x00 says none
            buses = [following, last]
    return {
        "devices": [number for number in range(32) if devices >> number & 1],
        "buses": buses,
    }


EVENT_COLLECTOR = Layout(
    "event-collector",
    "Root Complex Event Collector Endpoint Association",
    0x07,
    True,
    (ASSOCIATION, ASSOCIATED_BUSES),
    "§7.9.10",
    lambda capability: 0x0C if capability.version >= 2 else 0x08,
    lambda capability, register: register is not ASSOCIATED_BUSES or capability.version >= 2,
    _collected,
)

REGISTER_BLOCK = Layout(
    "rcrb",
    "Root Complex Register Block Header",
    0x0A,
    True,
    (
        Register("vendor_id", 0x04, 2, (), "§7.9.7.2"),
        Register("device_id", 0x06, 2, (), "§7.9.7.2"),
        Register("capabilities", 0x08, 4, (flag("retry_status_visibility", 0),), "§7.9.7.3"),
        Register("control", 0x0C, 4, (flag("retry_status_visibility", 0, "rw"),), "§7.9.7.4"),
    ),
    "§7.9.7",
    fixed(0x14),
)
