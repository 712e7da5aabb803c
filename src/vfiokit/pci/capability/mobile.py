"""PCI Express over M-PHY (extended id 0x20), as far as public register maps have it.

Sources: public register maps of M-PCIe controllers (DesignWare), and Xen ``xen_pt_config_init.c``
for its size. The ECN that defines it is not public.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

CAPABILITIES = Register(
    "capabilities",
    0x04,
    4,
    (
        Field("link_speed", 1, 0),
        flag("configuration_software", 15),
        Field("max_transmit_width", 23, 16, unit="lanes"),
        Field("max_receive_width", 31, 24, unit="lanes"),
    ),
)
CONTROL = Register("control", 0x08, 4, (Field("target_link_speed", 1, 0, "rw"),))
STATUS = Register(
    "status",
    0x0C,
    4,
    (
        Field("link_speed", 1, 0),
        flag("rate_series", 14),
        flag("configuration_software", 15),
        Field("transmit_width", 23, 16, unit="lanes"),
        Field("receive_width", 31, 24, unit="lanes"),
    ),
)
LANE_ERRORS = Register(
    "lane_errors", 0x10, 4, (Field("lanes", 31, 0, "rw1c", doc="bit n: receive lane n"),)
)
PHY_ADDRESS = Register(
    "phy_address",
    0x14,
    4,
    (
        Field("lower_address", 7, 0, "rw"),
        Field("upper_address", 20, 16, "rw"),
        flag("upper_address_5", 24, "rw"),
        Field("location", 27, 25, "rw"),
        flag("read", 30, "rw"),
        flag("configure", 31, "rw"),
    ),
)
PHY_DATA = Register(
    "phy_data",
    0x18,
    4,
    (Field("data", 7, 0, "rw"), flag("error", 29), flag("aborted", 30), flag("pending", 31)),
)

LAYOUT = Layout(
    "m-phy",
    "PCI Express over M-PHY",
    0x20,
    True,
    (CAPABILITIES, CONTROL, STATUS, LANE_ERRORS, PHY_ADDRESS, PHY_DATA),
    "M-PCIe ECN",
    fixed(0x1C),
)
