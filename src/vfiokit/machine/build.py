"""Configuration spaces made from scratch, for synthetic machines and device models.

Capabilities are placed one after the other and linked; their registers follow PCI Express Base
Specification 6.0 §7.5 to §7.9 and PCI Local Bus Specification 3.0 §6.8.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vfiokit.errors import MachineError
from vfiokit.machine.config import ConfigModel
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType

_PORTS: Final = frozenset({PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM})
_ENDPOINTS: Final = frozenset(
    {PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.RC_INTEGRATED_ENDPOINT}
)


class MsixLayout(NamedTuple):
    """Where a function keeps its MSI-X table and pending bits."""

    vectors: int
    bar: int
    table_offset: int = 0
    pending_offset: int | None = None
    """``None``: at the next 8-byte boundary after the table."""
    pending_bar: int | None = None
    """``None``: the table's BAR."""


class MsiLayout(NamedTuple):
    """Which forms of MSI a function has."""

    vectors: int = 1
    """1, 2, 4, 8, 16 or 32."""
    wide: bool = True
    """64-bit message address."""
    maskable: bool = False
    """Per-vector mask and pending bits."""


class Link(NamedTuple):
    """Speed and width of a port's link."""

    speed: int = 4
    """1 to 6: 2.5 to 64 GT/s."""
    width: int = 16


DEFAULT_LINK: Final = Link()


class ConfigBuilder:
    """Configuration bytes under construction: a header, then capabilities in order."""

    def __init__(self, vendor_id: int, device_id: int, class_code: int, *, extended: bool) -> None:
        """``class_code`` is 24 bits: base class, subclass, programming interface."""
        self.data = bytearray(4096 if extended else 256)
        self._next = 0x40
        self._link = 0x34
        self._extended_next = 0x100
        self._extended_link = 0
        self.put(0x00, 2, vendor_id)
        self.put(0x02, 2, device_id)
        self.put(0x09, 3, class_code)

    def put(self, offset: int, width: int, value: int) -> None:
        """Store a register."""
        self.data[offset : offset + width] = value.to_bytes(width, "little")

    def capability(self, cap_id: int, size: int) -> int:
        """Place and link a standard capability of ``size`` bytes; its offset."""
        at = self._next
        if at + size > 0x100:
            raise MachineError(f"no room for capability {cap_id:#04x} of {size} bytes")
        self.data[at] = cap_id
        self.data[self._link] = at
        self.data[0x06] |= 0x10
        self._link, self._next = at + 1, (at + size + 3) & ~3
        return at

    def extended(self, cap_id: int, size: int, version: int = 1) -> int:
        """Place and link an extended capability of ``size`` bytes; its offset."""
        at = self._extended_next
        if at + size > len(self.data):
            raise MachineError(f"no room for extended capability {cap_id:#06x} of {size} bytes")
        self.put(at, 4, version << 16 | cap_id)
        if self._extended_link:
            header = int.from_bytes(
                self.data[self._extended_link : self._extended_link + 4], "little"
            )
            self.put(self._extended_link, 4, header | at << 20)
        self._extended_link, self._extended_next = at, (at + size + 3) & ~3
        return at

    def express(
        self, port_type: PortType, *, link: Link, port_number: int = 0, flr: bool = False
    ) -> None:
        """The PCI Express capability, version 2."""
        at = self.capability(0x10, 0x3C)
        slot = 0x0100 if port_type in (PortType.ROOT_PORT, PortType.DOWNSTREAM) else 0
        self.put(at + 0x02, 2, 2 | port_type << 4 | slot)
        self.put(at + 0x04, 4, 0x8002 | (1 << 28 if flr else 0))  # 512-byte payloads
        self.put(at + 0x08, 2, 0x2810)
        if port_type is not PortType.RC_INTEGRATED_ENDPOINT:
            self.put(at + 0x0C, 4, port_number << 24 | link.width << 4 | link.speed)
            self.put(at + 0x12, 2, link.width << 4 | link.speed)
            self.put(at + 0x2C, 4, ((1 << link.speed) - 1) << 1)
            self.put(at + 0x30, 2, link.speed)

    def msi(self, layout: MsiLayout) -> None:
        """The MSI capability."""
        exponent = layout.vectors.bit_length() - 1
        if layout.vectors != 1 << exponent or exponent > 5:
            raise MachineError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {layout.vectors}")
        size = 0x0A + (4 if layout.wide else 0) + (0x0A if layout.maskable else 0)
        at = self.capability(0x05, size)
        flags = (0x80 if layout.wide else 0) | (0x100 if layout.maskable else 0)
        self.put(at + 2, 2, exponent << 1 | flags)

    def msix(self, layout: MsixLayout) -> None:
        """The MSI-X capability."""
        if not 1 <= layout.vectors <= 2048:
            raise MachineError(f"MSI-X has 1 to 2048 vectors, not {layout.vectors}")
        pending = layout.pending_offset
        if pending is None:
            pending = layout.table_offset + layout.vectors * 16 + 7 & ~7
        pending_bar = layout.bar if layout.pending_bar is None else layout.pending_bar
        if layout.table_offset & 7 or pending & 7:
            raise MachineError("the MSI-X table and pending bits are 8-byte aligned")
        at = self.capability(0x11, 0x0C)
        self.put(at + 2, 2, layout.vectors - 1)
        self.put(at + 4, 4, layout.table_offset | layout.bar)
        self.put(at + 8, 4, pending | pending_bar)

    def power_management(self, *, no_soft_reset: bool = True) -> None:
        """The power management capability: D0 and D3hot."""
        at = self.capability(0x01, 8)
        self.put(at + 2, 2, 0x0003)
        self.put(at + 4, 2, 0x0008 if no_soft_reset else 0)

    def acs(self, capability: int, control: int = 0, vector_bits: int = 0) -> None:
        """The ACS capability; ``vector_bits`` size the egress control vector where supported."""
        controlled = bool(capability & Acs.EGRESS_CONTROL)
        bits = (vector_bits or 32) if controlled else 0
        at = self.extended(0x0D, 8 + (bits + 31) // 32 * 4)
        self.put(at + 4, 2, capability & 0x7F | (bits & 0xFF) << 8)
        self.put(at + 6, 2, control & capability & 0x7F)

    def error_reporting(self) -> None:
        """The AER capability, version 2."""
        self.extended(0x01, 0x48, version=2)

    def serial_number(self, value: int) -> None:
        """The Device Serial Number capability."""
        self.put(self.extended(0x03, 0x0C) + 4, 8, value)

    def ari(self) -> None:
        """The ARI capability."""
        self.extended(0x0E, 8)

    def ats(self) -> None:
        """The ATS capability: page aligned requests, global invalidation."""
        self.put(self.extended(0x0F, 8) + 4, 2, 0x0060)

    def build(self) -> ConfigModel:
        """The finished space."""
        return ConfigModel(bytes(self.data))


def endpoint_config(
    vendor_id: int,
    device_id: int,
    class_code: int,
    *,
    revision: int = 0,
    subsystem_vendor_id: int = 0,
    subsystem_id: int = 0,
    express: bool | PortType = True,
    multifunction: bool = False,
    interrupt_pin: int = 0,
    link: Link = DEFAULT_LINK,
    flr: bool = True,
    pm: bool = True,
    no_soft_reset: bool = True,
    msi: MsiLayout | int | None = None,
    msix: MsixLayout | None = None,
    aer: bool = False,
    acs: int | None = None,
    acs_control: int = 0,
    ari: bool = False,
    ats: bool = False,
    serial_number: int | None = None,
) -> ConfigModel:
    """Configuration space of an endpoint.

    ``class_code`` is 24 bits (``0x010802`` for NVMe), ``interrupt_pin`` 0 for none or 1 to 4 for
    INTA to INTD, ``express`` a port type, or ``False`` for conventional PCI (256 bytes). ``msi`` as
    a number means that many vectors. ``acs`` is the ACS Capability register, ``None`` for no ACS.
    Raises :class:`MachineError` for extended capabilities on a conventional function.
    """
    wants_extended = acs is not None or ari or ats or aer or serial_number is not None
    kind = _endpoint_type(express, wants_extended=wants_extended)
    builder = ConfigBuilder(vendor_id, device_id, class_code, extended=kind is not None)
    for offset, width, value in (
        (0x08, 1, revision),
        (0x0E, 1, 0x80 if multifunction else 0),
        (0x2C, 2, subsystem_vendor_id),
        (0x2E, 2, subsystem_id),
        (0x3D, 1, interrupt_pin),
    ):
        builder.put(offset, width, value)
    if pm:
        builder.power_management(no_soft_reset=no_soft_reset)
    if msi is not None:
        builder.msi(MsiLayout(msi) if isinstance(msi, int) else msi)
    if kind is not None:
        builder.express(kind, link=link, flr=flr)
    if msix is not None:
        builder.msix(msix)
    for wanted, place in (
        (aer, builder.error_reporting),
        (serial_number is not None, lambda: builder.serial_number(serial_number or 0)),
        (acs is not None, lambda: builder.acs(acs or 0, acs_control)),
        (ari, builder.ari),
        (ats, builder.ats),
    ):
        if wanted:
            place()
    return builder.build()


def _endpoint_type(express: bool | PortType, *, wants_extended: bool) -> PortType | None:
    """The port type asked for; ``None`` for conventional PCI."""
    if isinstance(express, PortType):
        if express not in _ENDPOINTS:
            raise MachineError(
                f"{express.name} is no endpoint", hint="ports are built in machine.port"
            )
        return express
    if express:
        return PortType.ENDPOINT
    if wants_extended:
        raise MachineError("a conventional PCI function has no extended capabilities")
    return None


def bridge_config(
    port_type: PortType | None,
    *,
    vendor_id: int,
    device_id: int,
    primary: int,
    secondary: int,
    subordinate: int,
    acs_capability: int | None = None,
    acs_control: int = 0,
    port_number: int = 0,
    multifunction: bool = False,
    link: Link = DEFAULT_LINK,
) -> ConfigModel:
    """Configuration space of a bridge (header type 1), windows closed, decoding enabled.

    ``port_type`` is ``None`` for a conventional PCI-to-PCI bridge.
    """
    builder = ConfigBuilder(vendor_id, device_id, 0x060400, extended=port_type is not None)
    builder.put(0x04, 2, 0x0006)
    builder.put(0x0E, 1, 0x81 if multifunction else 0x01)
    for offset, value in ((0x18, primary), (0x19, secondary), (0x1A, subordinate)):
        builder.put(offset, 1, value)
    builder.power_management()
    if port_type is not None:
        builder.express(port_type, link=link, port_number=port_number)
        if port_type in _PORTS:
            builder.error_reporting()
    if acs_capability is not None:
        if port_type is None:
            raise MachineError("a conventional bridge has no ACS capability")
        builder.acs(acs_capability, acs_control)
    return builder.build()
