"""What Linux knows about single devices that their registers do not say, as data.

Source: Linux 7.2 ``drivers/pci/quirks.c`` (the tables behind ``pci_dev_specific_acs_enabled``
and the DMA alias fixups) and ``arch/x86/pci/common.c`` (VMD). Three families:

* :data:`ACS_QUIRKS` answer whether a function is isolated, before any register is asked;
* :data:`ALIAS_QUIRKS` name further requester IDs that a function uses;
* :class:`BridgeFlag` changes how a bridge takes part in the search for aliases.

Left out because configuration bytes do not decide them: the proxy requester IDs of Switchtec
NTB functions (read from a BAR) and the alias entries of AMD's IVRS table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, Flag, auto
from typing import NamedTuple

from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function

REQUIRED = (
    Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
)
"""The bits that IOMMU grouping asks for (``REQ_ACS_FLAGS``, 0x1d)."""

_ENDPOINT = REQUIRED | Acs.TRANSLATION_BLOCKING | Acs.DIRECT_TRANSLATED
_NOTHING = Acs(0)
_REDIRECT = Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT

_ROOT_PORT = frozenset({PortType.ROOT_PORT})
_PORTS = frozenset({PortType.ROOT_PORT, PortType.DOWNSTREAM})
_INTEGRATED = frozenset({PortType.RC_INTEGRATED_ENDPOINT})


class Condition(Enum):
    """What an ACS quirk asks beyond ids and port type."""

    NONE = "nothing"
    AMD_SOUTHBRIDGE = "multifunction, on a root bus, with an IVRS table"
    INTEL_PCH = "the kernel's enabling workaround ran"
    DWORD_LAYOUT = "the ACS registers are 32 bits wide"


class AcsQuirk(NamedTuple):
    """One row of the kernel's table; a request for bits inside ``claims`` is answered yes.

    A row whose ids, port type or condition do not fit is passed over; one that fits is final.
    """

    name: str
    vendor_id: int
    device_ids: frozenset[int] | None
    """``None``: every device of the vendor."""
    claims: Acs
    port_types: frozenset[PortType] | None = None
    """``None``: whatever the port type."""
    condition: Condition = Condition.NONE
    considered: Acs = Acs(0x7F)
    """Bits of a request that count; the others are dropped from it first."""


class AliasKind(Enum):
    """How an alias quirk finds the devfns it adds."""

    FUNCTION_0 = "function 0 of the same slot"
    FUNCTION_1 = "function 1 of the same slot"
    FIXED = "fixed devfns of the same bus"


class AliasQuirk(NamedTuple):
    """Further requester IDs of a function, always on its own bus."""

    name: str
    vendor_id: int
    device_ids: frozenset[int]
    kind: AliasKind
    devfns: tuple[int, ...] = ()
    """For :attr:`AliasKind.FIXED`."""
    subsystem: tuple[int, int] | None = None
    """Subsystem vendor and device, where the quirk asks for them."""

    def applied(self, devfn: int) -> frozenset[int]:
        """The devfns that a function at ``devfn`` aliases, itself excepted."""
        if self.kind is AliasKind.FUNCTION_0:
            added: Iterable[int] = (devfn & ~7,)
        elif self.kind is AliasKind.FUNCTION_1:
            added = (devfn & ~7 | 1,)
        else:
            added = self.devfns
        return frozenset(added) - {devfn}


class BridgeFlag(Flag):
    """``PCI_DEV_FLAGS_*`` that change the alias walk through a bridge."""

    NONE = 0
    XLATE_ROOT = auto()
    """The translation unit sits at this bridge: nothing above it is seen."""
    NO_ALIAS = auto()
    """A PCIe-to-PCI bridge that passes requester IDs on unchanged."""
    PCIE_BRIDGE_ALIAS = auto()
    """A conventional bridge on PCIe without a PCIe capability: aliases as a PCIe-to-PCI one."""


def _ids(*parts: int | tuple[int, int] | tuple[int, int, int]) -> frozenset[int]:
    """Device ids from numbers, ``(first, last)`` ranges and ``(first, last, step)`` ranges."""
    found: set[int] = set()
    for part in parts:
        if isinstance(part, int):
            found.add(part)
        else:
            found.update(range(part[0], part[1] + 1, part[2] if len(part) == 3 else 1))
    return frozenset(found)


def _endpoint(name: str, vendor_id: int, *parts: int | tuple[int, int]) -> AcsQuirk:
    return AcsQuirk(name, vendor_id, _ids(*parts), _ENDPOINT)


def _southbridge(name: str, vendor_id: int, *parts: int) -> AcsQuirk:
    return AcsQuirk(
        name,
        vendor_id,
        _ids(*parts),
        _REDIRECT,
        condition=Condition.AMD_SOUTHBRIDGE,
        considered=_REDIRECT | Acs.EGRESS_CONTROL | Acs.DIRECT_TRANSLATED,
    )


def _port(
    name: str,
    vendor_id: int,
    *parts: int | tuple[int, int] | tuple[int, int, int],
    port_types: frozenset[PortType] | None = None,
) -> AcsQuirk:
    return AcsQuirk(name, vendor_id, _ids(*parts), REQUIRED, port_types)


ACS_QUIRKS: tuple[AcsQuirk, ...] = (
    # Functions of these south bridges send every request to the IOMMU: no peer traffic inside.
    _southbridge("AMD SB7x0/SB8x0/SB9x0", 0x1002, 0x4385, 0x439C, 0x4383, 0x439D, 0x4384, 0x4399),
    _southbridge("AMD Hudson", 0x1022, 0x780F, 0x7809),
    # Vendors vouch that the functions of these multifunction endpoints cannot reach each other.
    _endpoint("Solarflare SFC9000", 0x1924, 0x0903, 0x0923, 0x0A03),
    _endpoint(
        "Intel 10 GbE (82598, 82599, X540)",
        0x8086,
        *(0x10C6, 0x10DB, 0x10DD, 0x10E1, 0x10F1, (0x10F7, 0x10FC), 0x1507, 0x1514, 0x151C),
        *(0x1529, 0x152A, 0x154D, 0x154F, 0x1551, 0x1558),
    ),
    _endpoint("Intel 82580", 0x8086, 0x1509, (0x150E, 0x1511), 0x1516, 0x1527),
    _endpoint("Intel 82576", 0x8086, 0x10C9, (0x10E6, 0x10E8), 0x150A, 0x150D, 0x1518, 0x1526),
    _endpoint("Intel 82575", 0x8086, 0x10A7, 0x10A9, 0x10D6),
    _endpoint("Intel I350", 0x8086, (0x1521, 0x1524)),
    _endpoint("Intel 82571", 0x8086, 0x105E, 0x105F, 0x1060, 0x10D9),
    _endpoint("Intel I219", 0x8086, 0x15B7, 0x15B8),
    AcsQuirk("Intel root complex integrated endpoint", 0x8086, None, REQUIRED, _INTEGRATED),
    _port("Qualcomm root port", 0x17CB, 0x0400, 0x0401, 0x0115, 0x0111, 0x0120),
    _port("HXT root port", 0x1DBF, 0x0401),
    AcsQuirk(
        "Intel PCH root port",
        0x8086,
        _ids(
            *((0x3B42, 0x3B51), (0x1C10, 0x1C1F), (0x1E10, 0x1E1F), (0x8C10, 0x8C1F)),
            *((0x9C10, 0x9C1B), (0x9C90, 0x9C9B), (0x1D10, 0x1D1E, 2), (0x8D10, 0x8D1E)),
            (0x8C90, 0x8C9E, 2),
        ),
        REQUIRED,
        _ROOT_PORT,
        Condition.INTEL_PCH,
    ),
    AcsQuirk(
        "Intel 100/200 series PCH root port",
        0x8086,
        _ids(
            *((0xA110, 0xA11F), (0xA167, 0xA16A), (0xA290, 0xA29F)),
            *((0xA2E7, 0xA2EE), (0x9D10, 0x9D1B)),
        ),
        _NOTHING,
        _ROOT_PORT,
        Condition.DWORD_LAYOUT,
    ),
    _endpoint("Emulex OneConnect", 0x19A2, 0x0710),
    _endpoint("Emulex Skyhawk-R", 0x10DF, 0x0720),
    _endpoint("Cavium network function", 0x177D, 0xA026, 0xA059, 0xA060),
    _port("Cavium root port", 0x177D, (0xA000, 0xA7FF), 0xAF84, 0xB884, port_types=_ROOT_PORT),
    _port("AppliedMicro X-Gene root port", 0x10E8, 0xE004),
    _port("Ampere root port", 0x1DEF, (0xE005, 0xE00C)),
    _endpoint("Broadcom NetXtreme-E", 0x14E4, 0x16D7, (0x1750, 0x1752), (0x1760, 0x1763)),
    _port("Broadcom PAXB root port", 0x14E4, 0xD714),
    _port("Loongson root port", 0x0014, 0x3C09, 0x3C19, 0x3C29, (0x7A09, 0x7A69, 0x10)),
    _port("Annapurna Labs root port", 0x1C36, 0x0031, port_types=_ROOT_PORT),
    _port(
        "NXP Layerscape root port",
        0x1957,
        *((0x8D80, 0x8D83), (0x8D88, 0x8D8B), (0x8D90, 0x8D93), (0x8D98, 0x8D9B)),
        *(0x8DA0, 0x8DA1, 0x8DA8, 0x8DA9, 0x8DB0, 0x8DB1, 0x8DB8, 0x8DB9),
    ),
    _endpoint("Zhaoxin multifunction endpoint", 0x1D17, 0x3038, 0x3104, 0x9083),
    _port(
        "Zhaoxin port",
        0x1D17,
        *((0x0710, 0x071E), 0x0721, (0x0723, 0x0752)),
        port_types=_PORTS,
    ),
    # The kernel answers no for every port of the vendor that it does not list, ACS or not.
    AcsQuirk("unlisted Zhaoxin port", 0x1D17, None, _NOTHING, _PORTS),
    _port(
        "Wangxun network function",
        0x8088,
        *((0x0100, 0x010F), 0x1001, 0x2001, 0x5010, 0x5025, 0x5040, 0x5110, 0x5125, 0x5140),
    ),
    AcsQuirk("unlisted Wangxun function", 0x8088, None, _NOTHING),
)
"""In the kernel's order within each vendor: the first that fits wins."""


def _by_vendor(table: tuple[AcsQuirk, ...]) -> Mapping[int, tuple[AcsQuirk, ...]]:
    index: dict[int, tuple[AcsQuirk, ...]] = {}
    for row in table:
        index[row.vendor_id] = (*index.get(row.vendor_id, ()), row)
    return index


_ACS_BY_VENDOR = _by_vendor(ACS_QUIRKS)

BROKEN_SOURCE_VALIDATION = frozenset({(0x111D, 0x80B5), (0x111D, 0x8090)})
"""IDT switches whose Source Validation must stay off: the kernel forgets they have the bit."""


def _fixed(
    name: str,
    vendor_id: int,
    device_ids: frozenset[int],
    devfns: Iterable[int],
    subsystem: tuple[int, int] | None = None,
) -> AliasQuirk:
    return AliasQuirk(name, vendor_id, device_ids, AliasKind.FIXED, tuple(devfns), subsystem)


def _function_1(name: str, vendor_id: int, *device_ids: int) -> AliasQuirk:
    return AliasQuirk(name, vendor_id, frozenset(device_ids), AliasKind.FUNCTION_1)


def _function_0(name: str, vendor_id: int, *device_ids: int) -> AliasQuirk:
    return AliasQuirk(name, vendor_id, frozenset(device_ids), AliasKind.FUNCTION_0)


ALIAS_QUIRKS: tuple[AliasQuirk, ...] = (
    _function_0("Ricoh card reader", 0x1180, 0xE832, 0xE476),
    _function_0("Glenfly audio", 0x6766, 0x3D40, 0x3D41),
    _function_1(
        "Marvell SATA controller",
        0x1B4B,
        *(0x9120, 0x9123, 0x9125, 0x9128, 0x9130, 0x9170, 0x9172, 0x917A),
        *(0x9182, 0x9183, 0x91A0, 0x9215, 0x9220, 0x9230, 0x9235),
    ),
    _function_1("HighPoint SATA controller", 0x1103, 0x0642, 0x0645),
    _function_1("JMicron card reader", 0x197B, 0x2392),
    _function_1("Lite-On SSD", 0x1C28, 0x0122),
    _fixed("Adaptec 3405", 0x9005, _ids(0x0285), (0x08,), (0x9005, 0x02BB)),
    _fixed("Adaptec 3805", 0x9005, _ids(0x0285), (0x08,), (0x9005, 0x02BC)),
    _fixed("Intel Xeon Phi x200 NTB", 0x8086, _ids(0x2260, 0x2264), (0x80, 0x88, 0x93)),
    _fixed(
        "Intel Visual Compute Accelerator",
        0x8086,
        _ids((0x2954, 0x2956), 0x2958, 0x2959, 0x295A),
        (slot << 3 | function for slot in range(32) for function in range(5)),
    ),
    _fixed("PLX NTB", 0x10B5, _ids(0x87B0, 0x87B1), range(256)),
)
"""Requests of these functions carry the requester ID of another devfn of their bus."""

_ALIAS_BY_ID: Mapping[tuple[int, int], tuple[AliasQuirk, ...]] = {
    (row.vendor_id, device_id): tuple(
        other
        for other in ALIAS_QUIRKS
        if other.vendor_id == row.vendor_id and device_id in other.device_ids
    )
    for row in ALIAS_QUIRKS
    for device_id in row.device_ids
}

_XLATE_ROOT = frozenset({(0x14E4, 0x9000), (0x14E4, 0x9084)})  # Cavium ThunderX2
_NO_ALIAS = frozenset({(0x1A03, 0x1150)})  # ASPEED AST1150
_PCIE_BRIDGE_ALIAS = frozenset(
    {
        (0x1B21, 0x1080),  # ASMedia ASM1083/1085
        (0x10E3, 0x8113),  # Tundra
        (0x1283, 0x8892),  # ITE
        (0x1283, 0x8893),
        (0x8086, 0x244E),  # Intel 82801
    }
)

VMD_IDS = frozenset(
    {0x201D, 0x28C0, 0x467F, 0x4C3D, 0x7D0B, 0x9A0B, 0xA77F, 0xAD0B, 0xB06F, 0xB60B}
)
"""Intel (0x8086) Volume Management Devices: everything below requests with their ID."""

VMD_FIRST_DOMAIN = 0x10000
"""VMD numbers its PCI domains from here."""


def acs_quirks(function: Function) -> tuple[AcsQuirk, ...]:
    """The ACS rows whose ids fit ``function``, in the kernel's order."""
    vendor_id, device_id = function.identity[:2]
    return tuple(
        row
        for row in _ACS_BY_VENDOR.get(vendor_id, ())
        if row.device_ids is None or device_id in row.device_ids
    )


def alias_quirk(function: Function) -> AliasQuirk | None:
    """The alias row that fits ``function``, if one does."""
    identity = function.identity
    for row in _ALIAS_BY_ID.get(identity[:2], ()):
        if row.subsystem is None or row.subsystem == (
            identity.subsystem_vendor_id,
            identity.subsystem_device_id,
        ):
            return row
    return None


def bridge_flag(bridge: Function, above: Function | None) -> BridgeFlag:
    """The flag of ``bridge``, whose own upstream bridge is ``above`` (``None`` on a root bus)."""
    ids = bridge.identity[:2]
    if ids in _XLATE_ROOT:
        return BridgeFlag.XLATE_ROOT
    if ids in _NO_ALIAS:
        return BridgeFlag.NO_ALIAS
    if (
        ids in _PCIE_BRIDGE_ALIAS
        and bridge.header_type == 1
        and bridge.express is None
        and above is not None
        and above.express is not None
        and above.port_type is not PortType.PCIE_TO_PCI_BRIDGE
    ):
        return BridgeFlag.PCIE_BRIDGE_ALIAS
    return BridgeFlag.NONE
