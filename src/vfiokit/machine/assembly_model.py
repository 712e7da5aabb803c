"""Functions as QEMU shows them to its guest: identities, capabilities, BARs.

A machine assembled from a blueprint has the ids and the capability lists of the lab's, so that a
program meets the same devices on both. Registers are as after power-on.
Source: configuration spaces of QEMU 7.2, and for igb ``hw/net/igb.c`` of QEMU 9.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vfiokit.machine.build import ConfigBuilder
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
_POWER, _SLOT_ID, _MSI, _VENDOR, _HOT_PLUG = 0x01, 0x04, 0x05, 0x09, 0x0C
_SUBSYSTEM, _EXPRESS, _MSIX, _SATA = 0x0D, 0x10, 0x11, 0x12
_AER, _SERIAL, _ACS, _ARI, _SRIOV = 0x01, 0x03, 0x0D, 0x0E, 0x10
_BRIDGE_CLASS: Final = 0x060400


class Registers(NamedTuple):
    """One capability: where it sits, and its bytes after the header."""

    offset: int
    """From 0x100 on it is an extended one."""
    id: int
    body: bytes
    version: int = 1


class Shape(NamedTuple):
    """What a function looks like before anything is assigned to it."""

    vendor: int
    device: int
    class_code: int
    """24 bits."""
    capabilities: tuple[Registers, ...] = ()
    """In the order of their lists."""
    bars: tuple[BarModel, ...] = ()
    revision: int = 0
    subsystem: tuple[int, int] = (0x1AF4, 0x1100)
    pin: int = 0
    """Interrupt pin: 0 none, 1 INTA."""

    @property
    def is_express(self) -> bool:
        """Whether it has a PCI Express capability, and so 4096 bytes."""
        return any(each.id == _EXPRESS and each.offset < 0x100 for each in self.capabilities)

    def integrated(self) -> Shape:
        """The same function on a root bus: an endpoint there is a part of the root complex."""
        changed = tuple(
            each._replace(body=_with_type(each.body, PortType.RC_INTEGRATED_ENDPOINT))
            if each.id == _EXPRESS and each.offset < 0x100
            else each
            for each in self.capabilities
        )
        return self._replace(capabilities=changed)

    def build(self, *, multifunction: bool = False) -> ConfigModel:
        """Fresh configuration space."""
        builder = ConfigBuilder(self.vendor, self.device, self.class_code, extended=self.is_express)
        bridge = self.class_code == _BRIDGE_CLASS
        builder.put(0x08, 1, self.revision)
        builder.put(0x0E, 1, (0x80 if multifunction else 0) | (1 if bridge else 0))
        builder.put(0x3D, 1, self.pin)
        if not bridge:
            builder.put(0x2C, 2, self.subsystem[0])
            builder.put(0x2E, 2, self.subsystem[1])
        link = 0x34
        extended_link = 0
        for offset, cap_id, body, version in self.capabilities:
            if offset < 0x100:
                builder.put(0x06, 1, builder.data[0x06] | 0x10)
                builder.put(link, 1, offset)
                builder.put(offset, 1, cap_id)
                builder.data[offset + 2 : offset + 2 + len(body)] = body
                link = offset + 1
            else:
                if extended_link:
                    head = builder.data[extended_link + 2 : extended_link + 4]
                    builder.put(extended_link + 2, 2, int.from_bytes(head, "little") | offset << 4)
                builder.put(offset, 4, version << 16 | cap_id)
                builder.data[offset + 4 : offset + 4 + len(body)] = body
                extended_link = offset
        return builder.build()


def _with_type(body: bytes, kind: PortType) -> bytes:
    """The body of a PCI Express capability with another port type."""
    flags = int.from_bytes(body[:2], "little") & ~0xF0 | kind << 4
    return flags.to_bytes(2, "little") + body[2:]


def _words(*pairs: tuple[int, int]) -> bytes:
    """Registers of the given widths and values, one after the other."""
    return b"".join(value.to_bytes(width, "little") for width, value in pairs)


# --- Capabilities ---


def _express(
    offset: int,
    kind: PortType,
    *,
    flr: bool = False,
    speed: int = 1,
    width: int = 1,
    slot: int | None = None,
) -> Registers:
    """Version 2 of the capability; ``slot`` is the number of the slot that a port leads to."""
    forwards = 0x20 if kind in (PortType.ROOT_PORT, PortType.DOWNSTREAM) else 0
    return Registers(
        offset,
        _EXPRESS,
        _words(
            (2, 2 | kind << 4 | (0x100 if slot is not None else 0)),
            (4, 0x8000 | (1 << 28 if flr else 0)),
            (4, 0),
            (4, (0x0030_0400 if slot is not None else 0x400) | width << 4 | speed),
            (2, 0),
            (2, width << 4 | speed),
            (4, 0 if slot is None else 0x0002_007B | slot << 19),
            (2, 0 if slot is None else 0x01C0),
            (2, 0),
            (8, 0),  # root control and status
            (4, 0x0030_0000 | forwards),  # TLP prefixes; ARI forwarding of a port
            (4, 0),
            (4, ((1 << speed) - 1) << 1 if slot is not None else 0),
            (2, speed if slot is not None else 0),
            (10, 0),
        ),
    )


def _msix(offset: int, vectors: int, bar: int, table: int, pending: int) -> Registers:
    return Registers(offset, _MSIX, _words((2, vectors - 1), (4, table | bar), (4, pending | bar)))


def _msi(offset: int, *, maskable: bool = False) -> Registers:
    """One vector with a 64-bit address."""
    flags, size = (0x0180, 20) if maskable else (0x0080, 10)
    return Registers(offset, _MSI, _words((2, flags), (size, 0)))


def _power(offset: int, *, capability: int = 0x0003, soft_reset: bool = False) -> Registers:
    return Registers(
        offset, _POWER, _words((2, capability), (2, 0 if soft_reset else 0x0008), (2, 0))
    )


def _aer(*, multiple: bool = True, version: int = 2) -> Registers:
    """Error reporting at 0x100; ``multiple``: its header log is a queue."""
    capability = 0x02A0 if multiple else 0x00A0
    body = _words((4, 0), (4, 0), (4, 0x0046_2030), (4, 0), (4, 0xE000), (4, capability), (0x30, 0))
    return Registers(0x100, _AER, body, version)


# --- Endpoints ---

EDU = Shape(0x1234, 0x11E8, 0x00FF00, (_msi(0x40),), (BarModel(0, _MIB),), revision=0x10, pin=1)
_NIC_BARS = (
    BarModel(0, 128 * _KIB),
    BarModel(1, 128 * _KIB),
    BarModel(2, 32, memory=False),
    BarModel(3, 16 * _KIB),
)
E1000E = Shape(
    0x8086,
    0x10D3,
    0x020000,
    (
        _power(0xC8, capability=0x0022, soft_reset=True),
        _msi(0xD0),
        Registers(
            0xE0, _EXPRESS, _words((2, 1), (4, 0x8000), (4, 0), (4, 0x411), (2, 0), (2, 0x11))
        ),
        _msix(0xA0, 5, 3, 0, 0x2000),
        _aer(multiple=False),
        Registers(0x140, _SERIAL, bytes.fromhex("563412ffff005452")),
    ),
    _NIC_BARS,
    subsystem=(0x8086, 0),
    pin=1,
)


def _sriov(
    offset: int, count: int, first: int, stride: int, device: int, bars: tuple[int, int]
) -> Registers:
    """``count`` VFs from ``first`` on, with 64-bit BARs 0 and 3; ``bars`` are their flag bits."""
    return Registers(
        offset,
        _SRIOV,
        _words(
            (4, 0),
            (2, 0x0010),  # the lowest-numbered PF forwards by ARI
            (2, 0),
            *((2, count), (2, count), (2, 0), (2, 0)),
            *((2, first), (2, stride), (2, 0), (2, device)),
            *((4, 0x553), (4, 1)),  # page sizes: supported, in use
            *((4, bars[0]), (4, 0), (4, 0), (4, bars[1]), (4, 0), (4, 0)),
            (4, 0),
        ),
    )


IGB = Shape(
    0x8086,
    0x10C9,
    0x020000,
    (
        _power(0x40, capability=0x0023),
        _msi(0x50, maskable=True),
        _msix(0x70, 10, 3, 0, 0x2000),
        _express(0xA0, PortType.ENDPOINT, flr=True),
        _aer(multiple=False),
        Registers(0x150, _ARI, _words((4, 0))),
        _sriov(0x160, 7, 0x80, 2, 0x10CA, (0xC, 0xC)),
    ),
    _NIC_BARS,
    revision=1,
    subsystem=(0x8086, 0),
    pin=1,
)

VF_BAR_SIZE: Final = 16 * _KIB
"""Bytes of every BAR of a virtual function: BAR 0, and for igb BAR 3."""
_VF_BARS = 0x24


def virtual_bars(shape: Shape) -> dict[int, tuple[int, int]]:
    """BARs of the virtual functions: size and count by the offset of the register."""
    found: dict[int, tuple[int, int]] = {}
    for each in shape.capabilities:
        if each.id == _SRIOV and each.offset >= 0x100:
            count = int.from_bytes(each.body[0x0E - 4 : 0x10 - 4], "little")
            indices = (0, 3) if shape.device == IGB.device else (0,)
            for index in indices:
                found[each.offset + _VF_BARS + 4 * index] = (VF_BAR_SIZE, count)
    return found


def virtual_bar_models(shape: Shape) -> tuple[BarModel, ...]:
    """What sits behind the BARs of each virtual function."""
    found: list[BarModel] = []
    for each in shape.capabilities:
        if each.id == _SRIOV and each.offset >= 0x100:
            for index in (0, 3):
                register = each.offset + _VF_BARS + 4 * index
                if register in virtual_bars(shape):
                    at = _VF_BARS + 4 * index - 4
                    prefetchable = bool(each.body[at] & 8)
                    found.append(BarModel(index, VF_BAR_SIZE, wide=True, prefetchable=prefetchable))
    return tuple(found)


def nvme(cmb_size: int, virtual_functions: int) -> Shape:
    """The NVMe controller, with a controller memory buffer in BAR 2 or with SR-IOV."""
    # With SR-IOV most interrupt vectors are the VFs'.
    capabilities = [
        _msix(0x40, 3 if virtual_functions else 65, 0, 0x2000, 0x3000),
        _express(0x80, PortType.ENDPOINT, flr=True),
        _power(0x60),
    ]
    bars = [BarModel(0, 16 * _KIB, wide=True)]
    if cmb_size:
        bars.append(BarModel(2, cmb_size, wide=True, prefetchable=True))
    if virtual_functions:
        capabilities.append(Registers(0x100, _ARI, _words((4, 0x0100))))
        capabilities.append(_sriov(0x120, virtual_functions, 1, 1, 0x0010, (4, 0)))
    return Shape(0x1B36, 0x0010, 0x010802, tuple(capabilities), tuple(bars), revision=2, pin=1)


def virtio(device: int, class_code: int, vectors: int, *, express: bool) -> Shape:
    """A modern virtio function; conventional, it has neither PCI Express nor power management."""

    def window(offset: int, length: int, kind: int, at: int, tail: bytes = b"") -> Registers:
        body = _words((1, length), (1, kind), (1, 4), (3, 0), (4, at), (4, 0x1000))
        return Registers(offset, _VENDOR, body + tail)

    capabilities = [
        _msix(0xDC, vectors, 1, 0, 0x800),
        Registers(0xC8, _VENDOR, _words((1, 20), (1, 5), (16, 0))),
        window(0xB4, 20, 2, 0x3000, _words((4, 4))),
        window(0xA4, 16, 4, 0x2000),
        window(0x94, 16, 3, 0x1000),
        window(0x84, 16, 1, 0),
    ]
    if express:
        capabilities.append(_power(0x7C, soft_reset=True))
        capabilities.append(_express(0x40, PortType.ENDPOINT, flr=True))
    bars = (BarModel(1, 4 * _KIB), BarModel(4, 16 * _KIB, wide=True, prefetchable=True))
    return Shape(0x1AF4, device, class_code, tuple(capabilities), bars, revision=1, pin=1)


def ivshmem(size: int) -> Shape:
    """Shared memory of ``size`` bytes in BAR 2; the registers of BAR 0 do nothing."""
    bars = (BarModel(0, 256), BarModel(2, size, wide=True, prefetchable=True))
    return Shape(0x1AF4, 0x1110, 0x050000, bars=bars, revision=1)


def pci_testdev(memory: int) -> Shape:
    """QEMU's PCI test device: a page of registers, I/O ports, and ``memory`` bytes in BAR 2."""
    bars = [BarModel(0, 4 * _KIB), BarModel(1, 256, memory=False)]
    if memory:
        bars.append(BarModel(2, memory, wide=True, prefetchable=True))
    return Shape(0x1B36, 0x0005, 0x00FF00, bars=tuple(bars))


# --- Bridges ---

_ACS_OF_A_PORT: Final = (
    Acs.SOURCE_VALIDATION
    | Acs.TRANSLATION_BLOCKING
    | Acs.REQUEST_REDIRECT
    | Acs.COMPLETION_REDIRECT
    | Acs.UPSTREAM_FORWARDING
    | Acs.DIRECT_TRANSLATED
)


def port(kind: PortType, slot: int, *, acs: bool, speed: int = 4, width: int = 32) -> Shape:
    """QEMU's generic port, leading to ``slot``; ``speed`` is 1 (2.5 GT/s) to 6 (64 GT/s)."""
    capabilities = [
        _express(0x54, kind, speed=speed, width=width, slot=slot),
        _msix(0x48, 1, 0, 0, 0x800),
        Registers(0x40, _SUBSYSTEM, _words((2, 0), (2, 0x1B36), (2, 0))),
        _aer(),
    ]
    if acs:
        capabilities.append(Registers(0x148, _ACS, _words((2, int(_ACS_OF_A_PORT)), (2, 0))))
    bars = (BarModel(0, 4 * _KIB),)
    return Shape(0x1B36, 0x000C, _BRIDGE_CLASS, tuple(capabilities), bars, pin=1)


def _xio3130(kind: PortType, device: int, revision: int, slot: int | None) -> Shape:
    capabilities = (
        _express(0x90, kind, slot=slot, flr=True),
        Registers(0x80, _SUBSYSTEM, _words((6, 0))),
        _msi(0x70),
        _aer(),
    )
    return Shape(0x104C, device, _BRIDGE_CLASS, capabilities, revision=revision)


UPSTREAM_PORT = _xio3130(PortType.UPSTREAM, 0x8232, 2, None)


def downstream_port(slot: int) -> Shape:
    """A switch port without ACS."""
    return _xio3130(PortType.DOWNSTREAM, 0x8233, 1, slot)


PCIE_TO_PCI = Shape(
    0x1B36,
    0x000E,
    _BRIDGE_CLASS,
    (
        _msi(0x8C, maskable=True),
        _power(0x84, soft_reset=True),
        _express(0x48, PortType.PCIE_TO_PCI_BRIDGE),
        Registers(0x40, _HOT_PLUG, _words((6, 0))),
        _aer(multiple=False),
    ),
    (BarModel(0, 256, wide=True),),
    pin=1,
)
PCI_TO_PCI = Shape(
    0x1B36,
    0x0001,
    _BRIDGE_CLASS,
    (
        _msi(0x4C, maskable=True),
        Registers(0x48, _SLOT_ID, _words((1, 0x20), (1, 4))),
        Registers(0x40, _HOT_PLUG, _words((6, 0))),
    ),
    (BarModel(0, 256, wide=True),),
    pin=1,
)

# --- The chipset ---

HOST_BRIDGE = Shape(0x8086, 0x29C0, 0x060000)
CHIPSET: Final = {
    (0x1F, 0): Shape(0x8086, 0x2918, 0x060100, revision=2),
    (0x1F, 2): Shape(
        0x8086,
        0x2922,
        0x010601,
        (_msi(0x80), Registers(0xA8, _SATA, _words((2, 0x10), (4, 0x48)))),
        (BarModel(4, 32, memory=False), BarModel(5, 4 * _KIB)),
        revision=2,
        pin=1,
    ),
    (0x1F, 3): Shape(
        0x8086, 0x2930, 0x0C0500, bars=(BarModel(4, 64, memory=False),), revision=2, pin=1
    ),
}
"""What QEMU's q35 has on bus 0 besides the host bridge, by device and function number."""
