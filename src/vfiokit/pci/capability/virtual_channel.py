"""Virtual channels (extended ids 0x02, 0x08, 0x09, 0x35) and their arbitration tables.

Source: PCI Express Base Specification 6.0 §7.9.1, §7.9.2 and §7.9.29.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import (
    Capability,
    Field,
    Layout,
    Register,
    Repeated,
    counted,
    flag,
)

_SELECTS = {0: "fixed", 1: "WRR32", 2: "WRR64", 3: "WRR128", 4: "TWRR128", 5: "WRR256"}
_PHASES = {1: 32, 2: 64, 3: 128, 4: 128, 5: 256}

PORT_CAPABILITY_1 = Register(
    "port_capability_1",
    0x04,
    4,
    (
        Field("extended_channels", 2, 0, doc="channels besides VC0"),
        Field("low_priority_channels", 6, 4),
        Field("reference_clock", 9, 8, meaning={0: "100 ns"}),
        Field("arbitration_entry_size", 11, 10, unit="log2 bits"),
    ),
    "§7.9.1.2",
)
PORT_CAPABILITY_2 = Register(
    "port_capability_2",
    0x08,
    4,
    (
        flag("fixed", 0),
        flag("wrr32", 1),
        flag("wrr64", 2),
        flag("wrr128", 3),
        Field("arbitration_table_offset", 31, 24, unit="16 bytes", doc="0: no table"),
    ),
    "§7.9.1.3",
)
PORT_CONTROL = Register(
    "port_control",
    0x0C,
    2,
    (flag("load_arbitration_table", 0, "rw"), Field("arbitration_select", 3, 1, "rw", _SELECTS)),
    "§7.9.1.4",
)
PORT_STATUS = Register("port_status", 0x0E, 2, (flag("arbitration_table_loading", 0),), "§7.9.1.5")

RESOURCE_CAPABILITY = Register(
    "capability",
    0x00,
    4,
    (
        flag("fixed", 0),
        flag("wrr32", 1),
        flag("wrr64", 2),
        flag("wrr128", 3),
        flag("twrr128", 4),
        flag("wrr256", 5),
        flag("reject_snoop", 15, "hwinit"),
        Field("max_time_slots", 22, 16, "hwinit", doc="minus one"),
        Field("arbitration_table_offset", 31, 24, unit="16 bytes", doc="0: no table"),
    ),
    "§7.9.1.6",
)
RESOURCE_CONTROL = Register(
    "control",
    0x04,
    4,
    (
        Field("traffic_classes", 7, 0, "rw", doc="bit n: traffic class n uses this channel"),
        flag("load_arbitration_table", 16, "rw"),
        Field("arbitration_select", 19, 17, "rw", _SELECTS),
        Field("id", 26, 24, "rw"),
        flag("enable", 31, "rw"),
    ),
    "§7.9.1.7",
)
RESOURCE_STATUS = Register(
    "status",
    0x0A,
    2,
    (flag("arbitration_table_loading", 0), flag("negotiation_pending", 1)),
    "§7.9.1.8",
)


def channels(capability: Capability) -> int:
    """How many virtual channels there are, VC0 included: 1 to 8."""
    return capability.field(PORT_CAPABILITY_1, "extended_channels") + 1


def arbitration_table(capability: Capability, channel: int | None = None) -> list[int]:
    """The phases of an arbitration table in order; empty without one.

    ``channel`` is a resource number for its Port (or Function) Arbitration Table, whose phases
    name ports; ``None`` for the VC Arbitration Table, whose phases name channels. The length
    follows from the scheme selected (PCIe §7.9.1.9, §7.9.1.10).
    """
    if channel is None:
        start = capability.field(PORT_CAPABILITY_2, "arbitration_table_offset") * 16
        select, bits = capability.field(PORT_CONTROL, "arbitration_select"), 4
    else:
        first = 0x10 + 0x0C * channel
        start = RESOURCE_CAPABILITY.field("arbitration_table_offset").extract(
            capability.raw(first, 4)
        )
        start *= 16
        select = RESOURCE_CONTROL.field("arbitration_select").extract(
            capability.raw(first + RESOURCE_CONTROL.offset, 4)
        )
        bits = 1 << capability.field(PORT_CAPABILITY_1, "arbitration_entry_size")
    if not start or select not in _PHASES:
        return []
    length = _PHASES[select] * bits // 8
    packed = int.from_bytes(bytes(capability.raw(start + at, 1) for at in range(length)), "little")
    return [packed >> phase * bits & (1 << bits) - 1 for phase in range(_PHASES[select])]


def _size(capability: Capability) -> int:
    size = 0x10 + 0x0C * channels(capability)
    table = capability.field(PORT_CAPABILITY_2, "arbitration_table_offset") * 16
    if table:
        supported = capability.value(PORT_CAPABILITY_2)
        phases = max((32 << bit for bit in range(3) if supported >> (bit + 1) & 1), default=0)
        size = max(size, table + phases // 2)
    entry = 1 << capability.field(PORT_CAPABILITY_1, "arbitration_entry_size")
    for channel in range(channels(capability)):
        resource = capability.raw(0x10 + 0x0C * channel, 4)
        table = RESOURCE_CAPABILITY.field("arbitration_table_offset").extract(resource) * 16
        phases = max((_PHASES[bit] for bit in _PHASES if resource >> bit & 1), default=0)
        if table:
            size = max(size, table + phases * entry // 8)
    return size


def _derive(capability: Capability) -> dict[str, object]:
    count = channels(capability)
    return {
        "channels": count,
        "arbitration_table": arbitration_table(capability),
        "port_arbitration_tables": [arbitration_table(capability, n) for n in range(count)],
    }


_PORT = (PORT_CAPABILITY_1, PORT_CAPABILITY_2, PORT_CONTROL, PORT_STATUS)
_RESOURCES = Repeated(
    "vc",
    (RESOURCE_CAPABILITY, RESOURCE_CONTROL, RESOURCE_STATUS),
    counted(0x10, 0x0C, channels),
)

LAYOUT = Layout(
    "virtual-channel",
    "Virtual Channel",
    0x02,
    True,
    _PORT,
    "§7.9.1",
    _size,
    derive=_derive,
    repeated=(_RESOURCES,),
)
LAYOUT_9 = LAYOUT._replace(
    name="virtual-channel-9", title="Virtual Channel (with MFVC)", cap_id=0x09
)
MULTIFUNCTION = LAYOUT._replace(
    name="multifunction-virtual-channel",
    title="Multi-Function Virtual Channel",
    cap_id=0x08,
    spec="§7.9.2",
)

STREAMLINED = Layout(
    "streamlined-virtual-channel",
    "Streamlined Virtual Channel",
    0x35,
    True,
    (
        Register(
            "port_capability_1",
            0x04,
            4,
            (Field("extended_channels", 2, 0, doc="channels besides VC0"),),
            "§7.9.29.2",
        ),
        Register("port_capability_2", 0x08, 4, (), "§7.9.29.3"),
        Register("port_control", 0x0C, 4, (), "§7.9.29.4"),
        Register("port_status", 0x10, 4, (), "§7.9.29.5"),
    ),
    "§7.9.29",
    lambda capability: 0x14 + 0x0C * channels(capability),
    repeated=(
        Repeated(
            "vc",
            (
                Register("capability", 0x00, 4, (), "§7.9.29.6"),
                Register("control", 0x04, 4, (), "§7.9.29.7"),
                Register("status", 0x08, 4, (), "§7.9.29.8"),
            ),
            counted(0x14, 0x0C, channels),
        ),
    ),
)
