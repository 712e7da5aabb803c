"""Which configuration bits vfio-pci emulates, and which ones a user may write: as data.

A bit that is *virtual* reads from the emulated copy; a *writable* bit goes to that copy where it
is virtual and to the hardware where it is not. Capabilities without rules of their own are read
from the hardware, their identity and their link excepted, and cannot be written.

Source: Linux ``drivers/vfio/pci/vfio_pci_config.c``, the functions named beside each table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from vfiokit.abi import pci_regs as regs

ConfigRead: TypeAlias = Callable[[int, int], int]
"""Reads the hardware: ``(offset, width) -> value``."""

Length: TypeAlias = "int | Callable[[ConfigRead, int], int]"
"""Bytes a capability occupies, or how to find out given where it starts; 0 hides it."""

_ALL8, _ALL16, _ALL32 = 0xFF, 0xFFFF, 0xFFFF_FFFF


class Rule(NamedTuple):
    """One register of a capability: offset from its header, width, and two masks."""

    offset: int
    width: int
    virtual: int
    writable: int


_NEXT = Rule(regs.PCI_CAP_LIST_NEXT, 1, _ALL8, 0)
_EXT_HEADER = Rule(0, 4, _ALL32, 0)

_PME_BITS = regs.PCI_PM_CTRL_PME_ENABLE | regs.PCI_PM_CTRL_PME_STATUS

HEADER_RULES: tuple[Rule, ...] = (  # init_pci_cap_basic_perm
    Rule(regs.PCI_VENDOR_ID, 2, _ALL16, 0),
    Rule(regs.PCI_DEVICE_ID, 2, _ALL16, 0),
    Rule(regs.PCI_COMMAND, 2, regs.PCI_COMMAND_INTX_DISABLE, _ALL16),
    Rule(regs.PCI_STATUS, 2, regs.PCI_STATUS_CAP_LIST, 0),
    Rule(regs.PCI_CACHE_LINE_SIZE, 1, 0, _ALL8),
    Rule(regs.PCI_LATENCY_TIMER, 1, 0, _ALL8),
    Rule(regs.PCI_BIST, 1, 0, _ALL8),
    *(Rule(regs.PCI_BASE_ADDRESS_0 + 4 * index, 4, _ALL32, _ALL32) for index in range(6)),
    Rule(regs.PCI_ROM_ADDRESS, 4, _ALL32, _ALL32),
    Rule(regs.PCI_CAPABILITY_LIST, 1, _ALL8, 0),
    Rule(regs.PCI_INTERRUPT_LINE, 1, _ALL8, _ALL8),
    Rule(regs.PCI_INTERRUPT_PIN, 1, _ALL8, 0),
)

STANDARD_RULES: Mapping[int, tuple[Rule, ...]] = {
    regs.PCI_CAP_ID_PM: (  # init_pci_cap_pm_perm
        _NEXT,
        Rule(regs.PCI_PM_PMC, 2, regs.PCI_PM_CAP_PME_MASK, 0),
        Rule(regs.PCI_PM_CTRL, 4, _PME_BITS, _ALL32 & ~(_PME_BITS | regs.PCI_PM_CTRL_STATE_MASK)),
    ),
    regs.PCI_CAP_ID_VPD: (  # init_pci_cap_vpd_perm
        _NEXT,
        Rule(2, 2, _ALL16, _ALL16),
        Rule(4, 4, _ALL32, _ALL32),
    ),
    regs.PCI_CAP_ID_PCIX: (_NEXT, Rule(2, 2, 0, _ALL16), Rule(8, 4, 0, _ALL32)),
    regs.PCI_CAP_ID_EXP: (  # init_pci_cap_exp_perm
        _NEXT,
        Rule(
            regs.PCI_EXP_DEVCTL,
            2,
            regs.PCI_EXP_DEVCTL_BCR_FLR | regs.PCI_EXP_DEVCTL_PAYLOAD | regs.PCI_EXP_DEVCTL_READRQ,
            _ALL16 & ~regs.PCI_EXP_DEVCTL_PHANTOM,
        ),
        Rule(regs.PCI_EXP_DEVCTL2, 2, 0, _ALL16 & ~regs.PCI_EXP_DEVCTL2_ARI),
    ),
    regs.PCI_CAP_ID_AF: (  # init_pci_cap_af_perm
        _NEXT,
        Rule(regs.PCI_AF_CTRL, 1, regs.PCI_AF_CTRL_FLR, regs.PCI_AF_CTRL_FLR),
    ),
}
"""Standard capabilities with rules of their own; MSI's depend on its form (:func:`msi_rules`)."""

_UNCORRECTABLE = 0x03FF_F031
_CORRECTABLE = 0x0000_F1C1

EXTENDED_RULES: Mapping[int, tuple[Rule, ...]] = {
    regs.PCI_EXT_CAP_ID_ERR: (  # init_pci_ext_cap_err_perm
        _EXT_HEADER,
        Rule(0x04, 4, 0, _UNCORRECTABLE),
        Rule(0x08, 4, 0, _UNCORRECTABLE),
        Rule(0x0C, 4, 0, _UNCORRECTABLE),
        Rule(0x10, 4, 0, _CORRECTABLE),
        Rule(0x14, 4, 0, _CORRECTABLE),
        Rule(0x18, 4, 0, 0x140),
    ),
    regs.PCI_EXT_CAP_ID_PWR: (_EXT_HEADER, Rule(4, 1, 0, _ALL8)),
}

STANDARD_RAW_WRITES = frozenset({regs.PCI_CAP_ID_VNDR})
"""Standard capabilities whose writes all reach the hardware."""

EXTENDED_RAW_WRITES = frozenset({0x0B, 0x23})
"""Extended capabilities whose writes all reach the hardware: vendor-specific, DVSEC."""


def msi_rules(flags: int) -> tuple[Rule, ...]:
    """The rules of an MSI capability whose message control register reads ``flags``.

    Source: ``init_pci_cap_msi_perm``.
    """
    rules = [
        _NEXT,
        Rule(regs.PCI_MSI_FLAGS, 1, _ALL8, _ALL8),
        Rule(regs.PCI_MSI_ADDRESS_LO, 4, _ALL32, _ALL32),
    ]
    data = regs.PCI_MSI_DATA_32
    if flags & regs.PCI_MSI_FLAGS_64BIT:
        rules.append(Rule(regs.PCI_MSI_ADDRESS_HI, 4, _ALL32, _ALL32))
        data = regs.PCI_MSI_DATA_64
    rules.append(Rule(data, 2, _ALL16, _ALL16))
    if flags & regs.PCI_MSI_FLAGS_MASKBIT:
        rules += [Rule(data + 4, 4, 0, _ALL32), Rule(data + 8, 4, 0, _ALL32)]
    return tuple(rules)


@lru_cache(maxsize=256)
def masks(rules: tuple[Rule, ...], length: int) -> tuple[bytes, bytes]:
    """``(virtual, writable)``, a byte per byte of a capability ``length`` bytes long."""
    virtual, writable = bytearray(length + 4), bytearray(length + 4)
    for rule in rules:
        end = rule.offset + rule.width
        if end <= length:
            virtual[rule.offset : end] = rule.virtual.to_bytes(rule.width, "little")
            writable[rule.offset : end] = rule.writable.to_bytes(rule.width, "little")
    return bytes(virtual[:length]), bytes(writable[:length])


# --- Lengths: vfio_cap_len, vfio_ext_cap_len ---


def _msi(read: ConfigRead, at: int) -> int:
    flags = read(at + regs.PCI_MSI_FLAGS, 2)
    length = 10
    if flags & regs.PCI_MSI_FLAGS_64BIT:
        length += 4
    if flags & regs.PCI_MSI_FLAGS_MASKBIT:
        length += 10
    return length


def _pcix(read: ConfigRead, at: int) -> int:
    return 24 if read(at + 2, 2) >> 12 & 3 else 8


def _ht(read: ConfigRead, at: int) -> int:
    return 24 if read(at + 3, 1) & 0xE0 else 28


def _vendor(read: ConfigRead, at: int) -> int:
    return read(at + regs.PCI_CAP_FLAGS, 1)


def _express(read: ConfigRead, at: int) -> int:
    flags = read(at + regs.PCI_EXP_FLAGS, 2)
    integrated = (flags & regs.PCI_EXP_FLAGS_TYPE) >> 4 == regs.PCI_EXP_TYPE_RC_END
    if flags & regs.PCI_EXP_FLAGS_VERS == 1:
        return 0x0C if integrated else 0x14
    return 0x2C if integrated else 0x34


def _sata(read: ConfigRead, at: int) -> int:
    return 16 if read(at + 4, 1) & 0x0F == 0x0F else 8


def _virtual_channel(read: ConfigRead, at: int) -> int:
    extra = read(at + 4, 4) & 7
    arbitration = read(at + 8, 4)
    length = 0x10 + (1 + extra) * 0x0C
    for bit, phases in ((0x8, 128), (0x4, 64), (0x2, 32)):
        if arbitration & bit:
            return (length + 15) // 16 * 16 + phases * 4 // 8
    return length


def _acs(read: ConfigRead, at: int) -> int:
    if not read(at + 4, 1) & 0x20:
        return 8
    bits = read(at + 5, 1)
    return 8 + ((bits + 31) // 32 * 32 if bits else 256) // 8


def _rebar(read: ConfigRead, at: int) -> int:
    return 4 + (read(at + 8, 1) >> 5) * 8


def _power_allocation(read: ConfigRead, at: int) -> int:
    return 16 + (read(at + 4, 1) & 0x1F) + 1


def _tph(read: ConfigRead, at: int) -> int:
    capability = read(at + 4, 4)
    if capability & 0x600 == 0x200:
        return 0x0C + (capability >> 16 & 0x7FF) * 2 + 2
    return 0x0C


def _designated(read: ConfigRead, at: int) -> int:
    return read(at + 4, 4) >> 20


STANDARD_LENGTHS: Mapping[int, Length] = {
    regs.PCI_CAP_ID_PM: 8,
    regs.PCI_CAP_ID_AGP: 12,
    regs.PCI_CAP_ID_VPD: 8,
    regs.PCI_CAP_ID_MSI: _msi,
    regs.PCI_CAP_ID_PCIX: _pcix,
    regs.PCI_CAP_ID_HT: _ht,
    regs.PCI_CAP_ID_VNDR: _vendor,
    regs.PCI_CAP_ID_EXP: _express,
    regs.PCI_CAP_ID_MSIX: 12,
    regs.PCI_CAP_ID_SATA: _sata,
    regs.PCI_CAP_ID_AF: 6,
}
"""Standard capabilities that a user sees; every other one is unlinked."""

EXTENDED_LENGTHS: Mapping[int, Length] = {
    0x01: 0x2C,  # AER
    0x02: _virtual_channel,
    0x03: 12,  # device serial number
    0x04: 0x10,  # power budgeting
    0x08: _virtual_channel,  # multi-function virtual channel
    0x09: _virtual_channel,
    0x0B: _designated,  # vendor-specific: its length sits where DVSEC's does
    0x0D: _acs,
    0x0E: 8,  # ARI
    0x0F: 8,  # ATS
    0x10: 0x40,  # SR-IOV
    0x12: 40,  # multicast
    0x13: 16,  # PRI
    0x15: _rebar,
    0x16: _power_allocation,
    0x17: _tph,
    0x18: 8,  # LTR
    0x23: _designated,
}
"""Extended capabilities that a user sees; every other one is unlinked, PASID among them."""


def length_of(table: Mapping[int, Length], cap_id: int, read: ConfigRead, at: int) -> int:
    """Bytes of the capability ``cap_id`` at ``at``; 0 when it is hidden."""
    length = table.get(cap_id, 0)
    return length if isinstance(length, int) else length(read, at)
