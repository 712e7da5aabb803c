"""PCI-X (id 0x07), for functions and for bridges.

Source: PCI-X Protocol Addendum 2.0 §7.2 (functions) and §8.6.2 (bridges), ``linux/pci_regs.h``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, Variant, flag

_READ_BYTES = dict(enumerate(("512", "1024", "2048", "4096")))
_SPLITS = dict(enumerate(("1", "2", "3", "4", "8", "12", "16", "32")))
_CUMULATIVE = {code: str(1024 << code) for code in range(8)}
_FREQUENCIES = {
    0: "conventional",
    1: "66 MHz",
    2: "100 MHz",
    3: "133 MHz",
    9: "266 mode, 66 MHz",
    10: "266 mode, 100 MHz",
    11: "266 mode, 133 MHz",
    13: "533 mode, 66 MHz",
    14: "533 mode, 100 MHz",
    15: "533 mode, 133 MHz",
}
_WHERE = (Field("function", 2, 0), Field("device", 7, 3), Field("bus", 15, 8))

COMMAND = Register(
    "command",
    0x02,
    2,
    (
        flag("parity_error_recovery", 0, "rw"),
        flag("relaxed_ordering", 1, "rw"),
        Field("max_read_bytes", 3, 2, "rw", _READ_BYTES, "bytes, as named"),
        Field("max_splits", 6, 4, "rw", _SPLITS, "transactions, as named"),
        Field("version", 13, 12),
    ),
    "§7.2.3",
)
STATUS = Register(
    "status",
    0x04,
    4,
    (
        *_WHERE,
        flag("wide", 16),
        flag("mhz_133", 17),
        flag("split_completion_discarded", 18, "rw1c"),
        flag("unexpected_split_completion", 19, "rw1c"),
        flag("complex", 20),
        Field("designed_read_bytes", 22, 21, meaning=_READ_BYTES, unit="bytes, as named"),
        Field("designed_splits", 25, 23, meaning=_SPLITS, unit="transactions, as named"),
        Field("designed_cumulative_read", 28, 26, meaning=_CUMULATIVE, unit="bytes, as named"),
        flag("split_completion_error", 29, "rw1c"),
        flag("mhz_266", 30),
        flag("mhz_533", 31),
    ),
    "§7.2.4",
)


def _ecc(first: int, spec: str) -> tuple[Register, ...]:
    return (
        Register("ecc_control", first, 4, (), spec),
        Register("ecc_first_address", first + 4, 4, (), spec),
        Register("ecc_second_address", first + 8, 4, (), spec),
        Register("ecc_attribute", first + 12, 4, (), spec),
    )


_ECC = _ecc(0x08, "§7.2.5")
SECONDARY_STATUS = Register(
    "secondary_status",
    0x02,
    2,
    (
        flag("wide", 0),
        flag("mhz_133", 1),
        flag("split_completion_discarded", 2, "rw1c"),
        flag("unexpected_split_completion", 3, "rw1c"),
        flag("split_completion_overrun", 4, "rw1c"),
        flag("split_request_delayed", 5, "rw1c"),
        Field("frequency", 9, 6, meaning=_FREQUENCIES),
        Field("version", 13, 12),
        flag("mhz_266", 14),
        flag("mhz_533", 15),
    ),
    "§8.6.2.3",
)
BRIDGE_STATUS = Register(
    "status",
    0x04,
    4,
    (
        *_WHERE,
        flag("wide", 16),
        flag("mhz_133", 17),
        flag("split_completion_discarded", 18, "rw1c"),
        flag("unexpected_split_completion", 19, "rw1c"),
        flag("split_completion_overrun", 20, "rw1c"),
        flag("split_request_delayed", 21, "rw1c"),
        flag("mhz_266", 30),
        flag("mhz_533", 31),
    ),
    "§8.6.2.4",
)


def _splits(name: str, offset: int, spec: str) -> Register:
    fields = (
        Field("capacity", 15, 0, unit="ADQs"),
        Field("commitment_limit", 31, 16, "rw", unit="ADQs"),
    )
    return Register(name, offset, 4, fields, spec)


UPSTREAM = _splits("upstream", 0x08, "§8.6.2.5")
DOWNSTREAM = _splits("downstream", 0x0C, "§8.6.2.6")
_BRIDGE_ECC = _ecc(0x10, "§8.6.2.7")


def _is_bridge(capability: Capability) -> bool:
    return capability.config.u8(0x0E) & 0x7F == 1


def _has_ecc(capability: Capability) -> bool:
    return bool(capability.raw(0x02, 2) >> 12 & 3)


BRIDGE = Layout(
    "pci-x-bridge",
    "PCI-X bridge",
    0x07,
    False,
    (SECONDARY_STATUS, BRIDGE_STATUS, UPSTREAM, DOWNSTREAM, *_BRIDGE_ECC),
    "PCI-X §8.6.2",
    lambda capability: 0x20 if _has_ecc(capability) else 0x10,
    lambda capability, register: register.offset < 0x10 or _has_ecc(capability),
)
LAYOUT = Layout(
    "pci-x",
    "PCI-X",
    0x07,
    False,
    (COMMAND, STATUS, *_ECC),
    "PCI-X §7.2",
    lambda capability: 0x18 if _has_ecc(capability) else 0x08,
    lambda capability, register: register.offset < 0x08 or _has_ecc(capability),
    variants=(Variant(_is_bridge, BRIDGE),),
)
