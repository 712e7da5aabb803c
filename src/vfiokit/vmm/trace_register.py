"""Names of registers for people who read a trace: configuration space, MSI-X table, NVMe, APIC.

Sources: the descriptions in :mod:`vfiokit.pci`; NVM Express Base Specification 2.0 §3.1.2
(doorbells), §3.1.3 (controller properties); Intel SDM volume 3 table 10-1 (local APIC registers).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from vfiokit.pci.capability import capabilities
from vfiokit.pci.capability.msix import ENTRY_SIZE
from vfiokit.pci.capability.register import Register
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.header import COMMON, TYPE0

DOORBELLS: Final = 0x1000


class NvmeRegister(NamedTuple):
    """One controller property."""

    name: str
    offset: int
    width: int
    """Bytes."""
    writable: bool


NVME_REGISTERS: Final = (
    NvmeRegister("CAP", 0x00, 8, writable=False),
    NvmeRegister("VS", 0x08, 4, writable=False),
    NvmeRegister("INTMS", 0x0C, 4, writable=True),
    NvmeRegister("INTMC", 0x10, 4, writable=True),
    NvmeRegister("CC", 0x14, 4, writable=True),
    NvmeRegister("CSTS", 0x1C, 4, writable=True),
    NvmeRegister("NSSR", 0x20, 4, writable=True),
    NvmeRegister("AQA", 0x24, 4, writable=True),
    NvmeRegister("ASQ", 0x28, 8, writable=True),
    NvmeRegister("ACQ", 0x30, 8, writable=True),
    NvmeRegister("CMBLOC", 0x38, 4, writable=False),
    NvmeRegister("CMBSZ", 0x3C, 4, writable=False),
    NvmeRegister("BPINFO", 0x40, 4, writable=False),
    NvmeRegister("BPRSEL", 0x44, 4, writable=True),
    NvmeRegister("BPMBL", 0x48, 8, writable=True),
    NvmeRegister("CMBMSC", 0x50, 8, writable=True),
    NvmeRegister("CMBSTS", 0x58, 4, writable=False),
    NvmeRegister("CMBEBS", 0x5C, 4, writable=False),
    NvmeRegister("CMBSWTP", 0x60, 4, writable=False),
    NvmeRegister("NSSD", 0x64, 4, writable=True),
    NvmeRegister("CRTO", 0x68, 4, writable=False),
    NvmeRegister("PMRCAP", 0xE00, 4, writable=False),
    NvmeRegister("PMRCTL", 0xE04, 4, writable=True),
    NvmeRegister("PMRSTS", 0xE08, 4, writable=False),
    NvmeRegister("PMREBS", 0xE0C, 4, writable=False),
    NvmeRegister("PMRSWTP", 0xE10, 4, writable=False),
    NvmeRegister("PMRMSCL", 0xE14, 4, writable=True),
    NvmeRegister("PMRMSCU", 0xE18, 4, writable=True),
)
_APIC: Final = {
    0x20: "ID",
    0x30: "version",
    0x80: "TPR",
    0xA0: "PPR",
    0xB0: "EOI",
    0xD0: "logical destination",
    0xE0: "destination format",
    0xF0: "spurious interrupt vector",
    0x280: "error status",
    0x300: "ICR low",
    0x310: "ICR high",
    0x320: "LVT timer",
    0x350: "LVT LINT0",
    0x360: "LVT LINT1",
    0x370: "LVT error",
}
_ENTRY_FIELDS: Final = ("address", "upper address", "data", "vector control")


class Doorbell(NamedTuple):
    """Which doorbell an offset is."""

    queue: int
    completion: bool
    """Whether it is the head of a completion queue; else the tail of a submission queue."""

    def offset(self, stride: int) -> int:
        """Where it is in BAR 0, with ``stride`` bytes from one to the next."""
        return DOORBELLS + (2 * self.queue + self.completion) * stride

    def __str__(self) -> str:
        return f"{'CQ' if self.completion else 'SQ'}{self.queue} " + (
            "head doorbell" if self.completion else "tail doorbell"
        )


def nvme_register(offset: int) -> NvmeRegister | None:
    """The property that ``offset`` of BAR 0 lies in."""
    return next(
        (each for each in NVME_REGISTERS if each.offset <= offset < each.offset + each.width), None
    )


def doorbell(offset: int, stride: int) -> Doorbell | None:
    """The doorbell at ``offset``; ``None`` below the first and between two."""
    index, rest = divmod(offset - DOORBELLS, stride)
    return None if index < 0 or rest else Doorbell(index >> 1, bool(index & 1))


def nvme_name(offset: int, width: int, stride: int = 4) -> str:
    """What ``width`` bytes at ``offset`` of an NVMe controller's BAR 0 are called."""
    if offset >= DOORBELLS:
        found = doorbell(offset, stride)
        return f"between two doorbells ({offset:#x})" if found is None else str(found)
    register = nvme_register(offset)
    if register is None:
        return f"reserved ({offset:#x})"
    inside = offset - register.offset
    if not inside and width >= register.width:
        return register.name
    if register.width == 8 and width == 4 and inside in (0, 4):
        return f"{register.name} {'upper' if inside else 'lower'} half"
    return f"{register.name} byte {inside}" + (f" to {inside + width - 1}" if width > 1 else "")


def msix_entry_name(offset: int) -> str:
    """The field of the MSI-X table at ``offset`` bytes from its start."""
    vector, inside = divmod(offset, ENTRY_SIZE)
    return f"MSI-X entry {vector} {_ENTRY_FIELDS[inside // 4]}"


def plausible_entry(offset: int, value: int) -> bool:
    """Whether ``value`` makes sense at ``offset`` of an MSI-X table, as far as one can tell."""
    field = offset % ENTRY_SIZE // 4
    if field == 0:
        return not value or value >> 20 & 0xFFF == 0xFEE
    return value <= (0, 0, 0xFFFF, 1)[field]


def apic_name(offset: int) -> str:
    """The local APIC's register at ``offset`` of its page."""
    name = _APIC.get(offset & ~0xF)
    return f"local APIC {name or f'register {offset:#x}'}"


class ConfigNames:
    """Names in the configuration space of one function; ``data`` are its bytes as read now."""

    def __init__(self, data: bytes) -> None:
        self._named: list[tuple[int, int, str]] = []
        self._add((*COMMON, *TYPE0), 0, "")
        for capability in capabilities(ConfigSpace(data)).capabilities:
            label = f"{capability.title} "
            self._named.append((capability.offset, capability.offset + 2, f"{label}header"))
            self._add(capability.registers(), capability.offset, label)
        self._named.sort()

    def _add(self, registers: Iterable[Register], base: int, prefix: str) -> None:
        for register in registers:
            start, name = base + register.offset, register.name.replace("_", " ")
            self._named.append((start, start + register.width, prefix + name))

    def name(self, offset: int, width: int) -> str:
        """What the bytes are called: every register that they touch."""
        touched = [
            name for start, end, name in self._named if start < offset + width and offset < end
        ]
        if not touched:
            return f"offset {offset:#x}"
        return ", ".join(dict.fromkeys(touched))


_FIELDS: Final[dict[str, tuple[tuple[str, int, int], ...]]] = {
    "CAP": (("MQES", 15, 0), ("TO", 31, 24), ("DSTRD", 35, 32), ("MPSMAX", 55, 52)),
    "CC": (("EN", 0, 0), ("CSS", 6, 4), ("MPS", 10, 7), ("IOSQES", 19, 16), ("IOCQES", 23, 20)),
    "CSTS": (("RDY", 0, 0), ("CFS", 1, 1), ("SHST", 3, 2)),
    "AQA": (("ASQS", 11, 0), ("ACQS", 27, 16)),
    "VS": (("major", 31, 16), ("minor", 15, 8)),
    "command, status": (("memory", 1, 1), ("master", 2, 2)),
    "command": (("memory", 1, 1), ("master", 2, 2)),
    "MSI-X control": (("function mask", 14, 14), ("enable", 15, 15)),
    "MSI-X header, MSI-X control": (("function mask", 30, 30), ("enable", 31, 31)),
}
"""``(name, high bit, low bit)`` of what is worth reading at once."""


def value_text(name: str, value: int) -> str:
    """The fields of a register's value; empty where nothing is known of it."""
    return ", ".join(
        f"{field} {value >> low & (1 << high - low + 1) - 1}"
        for field, high, low in _FIELDS.get(name, ())
    )
