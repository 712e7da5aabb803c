"""Multicast (extended id 0x12). Source: PCI Express Base Specification 6.0 §7.9.11."""

from __future__ import annotations

from vfiokit.pci.capability.express import PortType, port_type
from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

CAPABILITY = Register(
    "capability",
    0x04,
    2,
    (
        Field("max_group", 5, 0, doc="groups minus one"),
        Field("window_size_requested", 13, 8, unit="log2 bytes", doc="endpoints only"),
        flag("ecrc_regeneration", 15),
    ),
    "§7.9.11.2",
)
CONTROL = Register(
    "control",
    0x06,
    2,
    (Field("num_group", 5, 0, "rw", doc="groups minus one"), flag("enable", 15, "rw")),
    "§7.9.11.3",
)
BASE_ADDRESS = Register(
    "base_address",
    0x08,
    4,
    (Field("index_position", 5, 0, "rw"), Field("address", 31, 12, "rw", unit="4 KiB")),
    "§7.9.11.4",
)
BASE_ADDRESS_UPPER = Register(
    "base_address_upper", 0x0C, 4, (Field("address", 31, 0, "rw"),), "§7.9.11.4"
)


def _vector(name: str, offset: int, spec: str) -> tuple[Register, Register]:
    return (
        Register(name, offset, 4, (Field("groups", 31, 0, "rw"),), spec),
        Register(f"{name}_upper", offset + 4, 4, (Field("groups", 31, 0, "rw"),), spec),
    )


RECEIVE = _vector("receive", 0x10, "§7.9.11.5")
BLOCK_ALL = _vector("block_all", 0x18, "§7.9.11.6")
BLOCK_UNTRANSLATED = _vector("block_untranslated", 0x20, "§7.9.11.7")
OVERLAY = (
    Register(
        "overlay",
        0x28,
        4,
        (
            Field("size", 5, 0, "rw", unit="log2 bytes", doc="below 6: off"),
            Field("address", 31, 6, "rw", unit="64 bytes"),
        ),
        "§7.9.11.8",
    ),
    Register("overlay_upper", 0x2C, 4, (Field("address", 31, 0, "rw"),), "§7.9.11.8"),
)
_WITH_OVERLAY = (PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM)


def _pair(capability: Capability, pair: tuple[Register, Register]) -> int:
    return capability.value(pair[1]) << 32 | capability.value(pair[0])


def _derive(capability: Capability) -> dict[str, object]:
    facts: dict[str, object] = {
        "max_groups": capability.field(CAPABILITY, "max_group") + 1,
        "groups": capability.field(CONTROL, "num_group") + 1,
        "window_base": _pair(capability, (BASE_ADDRESS, BASE_ADDRESS_UPPER)) & ~0xFFF,
        "receive_groups": _pair(capability, RECEIVE),
        "block_all_groups": _pair(capability, BLOCK_ALL),
        "block_untranslated_groups": _pair(capability, BLOCK_UNTRANSLATED),
    }
    if port_type(capability) in _WITH_OVERLAY:
        facts["overlay_base"] = _pair(capability, OVERLAY) & ~0x3F
    return facts


LAYOUT = Layout(
    "multicast",
    "Multicast",
    0x12,
    True,
    (
        CAPABILITY,
        CONTROL,
        BASE_ADDRESS,
        BASE_ADDRESS_UPPER,
        *RECEIVE,
        *BLOCK_ALL,
        *BLOCK_UNTRANSLATED,
        *OVERLAY,
    ),
    "§7.9.11",
    lambda capability: 0x30 if port_type(capability) in _WITH_OVERLAY else 0x28,
    lambda capability, register: register not in OVERLAY or port_type(capability) in _WITH_OVERLAY,
    _derive,
)
