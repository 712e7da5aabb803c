"""Integrity and Data Encryption (extended id 0x30): link and selective streams.

Source: PCI Express Base Specification 6.1 §7.9.26.
"""

from __future__ import annotations

from collections.abc import Iterator

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
    flag,
)

_ALGORITHMS = {0: "AES-GCM, 256-bit key, 96-bit MAC"}
_AGGREGATION = {0: "none", 1: "up to 2 TLPs", 2: "up to 4 TLPs", 3: "up to 8 TLPs"}
_HEADERS = {
    0: "none",
    1: "address [17:2]",
    2: "address [25:2]",
    3: "address [33:2]",
    4: "address [41:2]",
}
_STATES = {0: "insecure", 2: "secure"}

CAPABILITY = Register(
    "capability",
    0x04,
    4,
    (
        flag("link_streams", 0, "hwinit"),
        flag("selective_streams", 1, "hwinit"),
        flag("flow_through", 2, "hwinit"),
        flag("partial_header_encryption", 3, "hwinit"),
        flag("aggregation", 4, "hwinit"),
        flag("pcrc", 5, "hwinit"),
        flag("key_management", 6, "hwinit"),
        flag("selective_configuration", 7, "hwinit"),
        Field("algorithm", 12, 8, "hwinit", _ALGORITHMS),
        Field("link_traffic_classes", 15, 13, "hwinit", doc="minus one"),
        Field("selective_stream_count", 23, 16, "hwinit", doc="minus one"),
        flag("tee_limited", 24, "hwinit"),
        flag("xt", 25, "hwinit"),
    ),
    "§7.9.26.2",
)
CONTROL = Register("control", 0x08, 4, (flag("flow_through_enable", 2, "rw"),), "§7.9.26.3")

_STREAM_CONTROL = (
    flag("enable", 0, "rw"),
    flag("xt_enable", 1, "rw"),
    Field("aggregation_nonposted", 3, 2, "rw", _AGGREGATION),
    Field("aggregation_posted", 5, 4, "rw", _AGGREGATION),
    Field("aggregation_completion", 7, 6, "rw", _AGGREGATION),
    flag("pcrc_enable", 8, "rw"),
)
_STREAM_SELECTION = (
    Field("partial_header_encryption", 13, 10, "rw", _HEADERS),
    Field("algorithm", 18, 14, "rw", _ALGORITHMS),
    Field("traffic_class", 21, 19, "rw"),
)
_STREAM_ID = Field("stream_id", 31, 24, "rw")
_STREAM_STATUS = (
    Field("state", 3, 0, meaning=_STATES),
    flag("integrity_check_fail_received", 31, "rw1c"),
)

LINK_STREAM = (
    Register("control", 0x00, 4, (*_STREAM_CONTROL, *_STREAM_SELECTION, _STREAM_ID), "§7.9.26.4.1"),
    Register("status", 0x04, 4, _STREAM_STATUS, "§7.9.26.4.2"),
)
SELECTIVE_CAPABILITY = Register(
    "capability", 0x00, 4, (Field("address_blocks", 3, 0, "hwinit"),), "§7.9.26.5.1"
)
SELECTIVE_STREAM = (
    SELECTIVE_CAPABILITY,
    Register(
        "control",
        0x04,
        4,
        (
            *_STREAM_CONTROL,
            flag("configuration_enable", 9, "rw"),
            *_STREAM_SELECTION,
            flag("default_stream", 22, "rw"),
            flag("tee_limited", 23, "rw"),
            _STREAM_ID,
        ),
        "§7.9.26.5.2",
    ),
    Register("status", 0x08, 4, _STREAM_STATUS, "§7.9.26.5.3"),
    Register("rid_association_1", 0x0C, 4, (Field("limit", 23, 8, "rw"),), "§7.9.26.5.4.1"),
    Register(
        "rid_association_2",
        0x10,
        4,
        (
            flag("valid", 0, "rw"),
            Field("base", 23, 8, "rw"),
            Field("segment_base", 31, 24, "rw"),
        ),
        "§7.9.26.5.4.2",
    ),
)
ADDRESS_BLOCK = (
    Register(
        "lower",
        0x00,
        4,
        (
            flag("valid", 0, "rw"),
            Field("base_lower", 19, 8, "rw", doc="address [31:20]"),
            Field("limit_lower", 31, 20, "rw", doc="address [31:20]"),
        ),
        "§7.9.26.5.5.1",
    ),
    Register("limit_upper", 0x04, 4, (Field("address", 31, 0, "rw"),), "§7.9.26.5.5.2"),
    Register("base_upper", 0x08, 4, (Field("address", 31, 0, "rw"),), "§7.9.26.5.5.3"),
)

_STREAM_LENGTH = 0x14
_ADDRESS_LENGTH = 0x0C


def link_streams(capability: Capability) -> int:
    """How many link streams the capability has registers for: one each traffic class."""
    if not capability.field(CAPABILITY, "link_streams"):
        return 0
    return capability.field(CAPABILITY, "link_traffic_classes") + 1


def _selective(capability: Capability) -> Iterator[tuple[int, int, int]]:
    """Number, place and address blocks of each selective stream, as far as was captured."""
    if not capability.field(CAPABILITY, "selective_streams"):
        return
    at = 0x0C + 8 * link_streams(capability)
    for number in range(capability.field(CAPABILITY, "selective_stream_count") + 1):
        if not capability.config.has(capability.offset + at, 4):
            return
        blocks = SELECTIVE_CAPABILITY.fields[0].extract(capability.raw(at, 4))
        yield number, at, blocks
        at += _STREAM_LENGTH + _ADDRESS_LENGTH * blocks


def _address_blocks(capability: Capability) -> Iterator[tuple[str, int]]:
    for number, at, blocks in _selective(capability):
        for block in range(blocks):
            yield f"{number}_address{block}", at + _STREAM_LENGTH + _ADDRESS_LENGTH * block


def _address(capability: Capability, at: int) -> dict[str, object]:
    lower = capability.raw(at, 4)
    base, limit = capability.raw(at + 8, 4), capability.raw(at + 4, 4)
    return {
        "valid": lower & 1,
        "base": base << 32 | (lower >> 8 & 0xFFF) << 20,
        "limit": limit << 32 | lower >> 20 << 20 | 0xFFFFF,
    }


def _derive(capability: Capability) -> dict[str, object]:
    return {
        "selective_streams": [
            {
                "addresses": [
                    _address(capability, at + _STREAM_LENGTH + _ADDRESS_LENGTH * block)
                    for block in range(blocks)
                ]
            }
            for _, at, blocks in _selective(capability)
        ]
    }


def _size(capability: Capability) -> int:
    end = 0x0C + 8 * link_streams(capability)
    for _, at, blocks in _selective(capability):
        end = at + _STREAM_LENGTH + _ADDRESS_LENGTH * blocks
    return end


LAYOUT = Layout(
    "ide",
    "Integrity and Data Encryption",
    0x30,
    True,
    (CAPABILITY, CONTROL),
    "§7.9.26",
    _size,
    derive=_derive,
    repeated=(
        Repeated("link", LINK_STREAM, counted(0x0C, 8, link_streams)),
        Repeated(
            "selective",
            SELECTIVE_STREAM,
            lambda capability: [(str(number), at) for number, at, _ in _selective(capability)],
        ),
        Repeated("selective", ADDRESS_BLOCK, _address_blocks),
    ),
)
