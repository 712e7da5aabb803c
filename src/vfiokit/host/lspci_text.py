"""What ``lspci`` decoded of one function: names, ids, the kernel's facts, registers it printed.

Reads ``lspci``, ``-k``, ``-v``, ``-vv`` and ``-vvv``, each with ids (``-n``, ``-nn``) or without.
A fact that the text does not carry is unknown, never 0: registers come from
:mod:`vfiokit.host.lspci_registers`, and what the kernel said goes into
:class:`~vfiokit.pci.topology.Recorded`. Source of the wording: pciutils ``lspci.c``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from vfiokit.host.lspci_registers import (
    Section,
    flags,
    hides_virtual_functions,
    port_type,
    put_capabilities,
    sections,
    tells_acs,
    value_of,
)
from vfiokit.host.partial import DOUBTFUL_SIZE, HEADER_SIZE, Registers
from vfiokit.pci.bar import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    IORESOURCE_UNSET,
)
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Identity, Recorded, Resource

UNKNOWN_ID = 0xFFFF
"""Vendor and device id where the text has none: no vendor has it."""

_CLASS_BRIDGE = 0x0604
_CLASS_CARDBUS = 0x0607

_COMMAND = (
    *("I/O", "Mem", "BusMaster", "SpecCycle", "MemWINV", "VGASnoop", "ParErr", "Stepping"),
    *("SERR", "FastB2B", "DisINTx"),
)
_STATUS = (
    *("", "", "", "INTx", "Cap", "66MHz", "UDF", "FastB2B", "ParErr", "", ""),
    *(">TAbort", "<TAbort", "<MAbort", ">SERR", "<PERR"),
)
_DEVSEL = {"fast": 0, "medium": 1, "slow": 2, "??": 3}
_CAP_LIST = 0x10

_REVISION = re.compile(r" \(rev ([0-9a-f]{2})\)")
_INTERFACE = re.compile(r" \(prog-if ([0-9a-f]{2})")
_IDS = re.compile(r"(.*?) ?\[([0-9a-f]{4}):([0-9a-f]{4})\]|(?:Device )?([0-9a-f]{4}):([0-9a-f]{4})")
_CUT_IDS = re.compile(r"(.*?) ?\[([0-9a-f]{4})[0-9a-f:]*\.\.\.")
_BUSES = re.compile(
    r"Bus: primary=([0-9a-f]{2}), secondary=([0-9a-f]{2}), subordinate=([0-9a-f]{2})"
)
_REGION = re.compile(
    r"(Region [0-5]|Expansion ROM)(?::| at) ?(\[virtual\] )?(?:(Memory|I/O ports) at )?"
    r"([0-9a-f]{1,16}|<[^>]+>)(?: \[virtual\])?(?: \(([^)]*)\))?(.*)"
)
_SIZE = re.compile(r"\[size=(\d{1,9})([KMGTPE]?)\]")
_LINK = re.compile(r"Speed (\d{1,4}(?:\.\d{1,4})?) ?GT/s(?: \(\w+\))?, Width x(\d{1,9})")


class Detail(IntEnum):
    """How much of a function ``lspci`` was asked to print."""

    LIST = 0
    """One line: ids or names only."""
    FLAGS = 1
    """``-v``: capabilities by name."""
    REGISTERS = 2
    """``-vv``, ``-vvv``: capabilities with their registers."""


class Head(NamedTuple):
    """The first line of a function, after its address."""

    class_code: int | None
    """24 bits; the interface is 0 when the line does not show it."""
    class_name: str
    ids: tuple[int, int] | None
    """Vendor and device; :data:`UNKNOWN_ID` for one that was cut off."""
    name: str
    """Of vendor and device; empty where the line has only numbers."""
    revision: int


class Facts(NamedTuple):
    """What a text says of a function."""

    identity: Identity
    named_only: bool
    """Whether the ids are unknown."""
    config: ConfigSpace
    resources: tuple[Resource, ...]
    recorded: Recorded
    detail: Detail
    denied: bool
    """Whether lspci was not allowed to read the capabilities."""
    hides_virtual_functions: bool
    """Whether it may have VFs, and where is not said."""


def read_head(text: str) -> Head:
    """Take the first line apart; what is not there stays unknown."""
    revision, interface = _REVISION.search(text), _INTERFACE.search(text)
    ends = [match.start() for match in (revision, interface) if match is not None]
    class_text, _, device_text = text[: min(ends, default=len(text))].partition(": ")
    class_name, code = _class(class_text.strip())
    ids, name = _ids(device_text.strip())
    if code is not None:
        code = code << 8 | (int(interface[1], 16) if interface is not None else 0)
    return Head(
        code,
        class_name,
        ids,
        name,
        int(revision[1], 16) if revision is not None else 0,
    )


def _class(text: str) -> tuple[str, int | None]:
    """Name and 16-bit code of ``Host bridge [0600]``, ``0600``, ``Class 0600`` or a bare name."""
    match = re.fullmatch(r"(?:(.*?) ?\[([0-9a-f]{4})\]|(?:Class )?([0-9a-f]{4}))", text)
    if match is not None:
        name = match[1] or ""
        return name if name != "Class" else "", int(match[2] or match[3], 16)
    return text, _class_codes().get(text)


_codes: dict[str, int] = {}


def _class_codes() -> dict[str, int]:
    """Codes by name, for those names that stand for one code."""
    if not _codes:
        from vfiokit.pci.ids import class_name

        for base in range(0x41):
            family = class_name(base << 16 | 0xFE00)
            for code in range(base << 8, base << 8 | 0xFF):
                name = class_name(code << 8)
                if name != family:
                    _codes.setdefault(name, code)
    return _codes


def read_facts(
    head_text: str,
    lines: Sequence[str],
    *,
    multifunction: bool | None = None,
    doubtful: bool = False,
) -> Facts:
    """Everything a listing says; odd lines tell nothing, and never raise.

    ``multifunction`` is bit 7 of the header type, which lspci does not print: ``None`` where it
    is not known. ``doubtful``: nothing here settles how the function keeps its peers apart.
    """
    head = read_head(head_text)
    detail = _detail(lines)
    found = sections(lines)
    denied = any(line == "Capabilities: <access denied>" for line in lines)
    subsystem, _ = _ids(value_of(lines, "Subsystem") or "")
    ids = head.ids or (UNKNOWN_ID, UNKNOWN_ID)
    identity = Identity(*ids, head.class_code or 0, head.revision, *(subsystem or (0, 0)))
    doubtful = doubtful or UNKNOWN_ID in ids
    registers = Registers()
    kind = _put_header(registers, head, lines, detail, multifunction=bool(multifunction))
    resources = _resources(lines)
    if not resources and detail is Detail.REGISTERS:
        _put_bars(registers, lines, {0: 6, 1: 2}.get(kind or 0, 0))
    size = HEADER_SIZE
    if detail and not denied and not any(line.startswith("!!! Unknown") for line in lines):
        put_capabilities(registers, found, 0x14 if kind == 2 else 0x34)
        size = _size(registers, found)
        if doubtful or _is_doubtful(found, multifunction=multifunction):
            size = DOUBTFUL_SIZE
    return Facts(
        identity,
        UNKNOWN_ID in ids,
        registers.config(size),
        resources,
        read_recorded(head, lines),
        detail,
        denied,
        any(hides_virtual_functions(section) for section in found),
    )


def _detail(lines: Sequence[str]) -> Detail:
    for line in lines:
        if line.startswith("Control: I/O"):
            return Detail.REGISTERS
        if line.startswith("Flags: "):
            return Detail.FLAGS
    return Detail.LIST


def _ids(text: str) -> tuple[tuple[int, int] | None, str]:
    """Two ids and the name before them, of ``Name [8086:2f00]``, ``8086:2f00`` or a bare name.

    lspci cuts long lines short, in the middle of the ids if need be.
    """
    match = _CUT_IDS.fullmatch(text)
    if match is not None:
        return (int(match[2], 16), UNKNOWN_ID), match[1]
    match = _IDS.fullmatch(text)
    if match is None:
        return None, text
    ids = int(match[2] or match[4], 16), int(match[3] or match[5], 16)
    return ids, (match[1] or "").removesuffix("Device").rstrip()


def _put_header(
    registers: Registers, head: Head, lines: Sequence[str], detail: Detail, *, multifunction: bool
) -> int | None:
    """The common header and the bus numbers; the header's type, where it is known."""
    for offset, value in zip((0x00, 0x02), head.ids or (), strict=False):
        if value != UNKNOWN_ID:
            registers.put(offset, 2, value)
    if head.class_code is not None:
        registers.put(0x0A, 2, head.class_code >> 8)
    if head.class_code is not None and detail:
        registers.put(0x08, 2, head.revision | (head.class_code & 0xFF) << 8)
    command = flags(value_of(lines, "Control"), _COMMAND)
    if command is not None:
        registers.put(0x04, 2, command)
    if detail:
        registers.put(0x06, 2, _status(value_of(lines, "Status"), lines))
    code = None if head.class_code is None else head.class_code >> 8
    buses = next((match for line in lines if (match := _BUSES.match(line))), None)
    kind: int | None = None
    if buses is not None or code in (_CLASS_BRIDGE, _CLASS_CARDBUS):
        kind = 2 if code == _CLASS_CARDBUS else 1
    elif detail:
        kind = 0
    if kind is not None:
        registers.put(0x0E, 1, kind | (0x80 if multifunction else 0))
    for index in range(3) if buses is not None else ():
        registers.put(0x18 + index, 1, int(buses[index + 1], 16))  # type: ignore[index]
    return kind


def _status(text: str | None, lines: Sequence[str]) -> int:
    """The status register; with ``-v``, which does not show it, whether there are capabilities."""
    value = flags(text, _STATUS)
    if text is None or value is None:
        return _CAP_LIST if any(line.startswith("Capabilities: [") for line in lines) else 0
    timing = re.search(r"DEVSEL=(\S+)", text)
    return value | _DEVSEL.get(timing[1] if timing is not None else "", 0) << 9


def _size(registers: Registers, found: Sequence[Section]) -> int:
    """How far the configuration space is known; what says too little of ACS is forgotten.

    Where no extended capability is listed, none may be there, or none was readable.
    """
    extended = [section for section in found if section.extended]
    if any(section.cap_id == 0x0D and not tells_acs(section) for section in extended):
        registers.forget(0x100)
        return 0x100
    return 0x1000 if extended else 0x100


def _is_doubtful(found: Sequence[Section], *, multifunction: bool | None) -> bool:
    """Whether grouping would need to know more of this function than the text tells.

    An upstream port must have ACS if bit 7 of its header type is set.
    """
    for section in found:
        if section.cap_id == 0x10 and not section.extended:
            kind = port_type(section)
            return kind is None or (kind is PortType.UPSTREAM and multifunction is None)
    return False


def read_recorded(head: Head, lines: Sequence[str]) -> Recorded:
    """What the kernel said, and the state of the link as it was."""
    short = value_of(lines, "Flags") or ""
    names = {"class": head.class_name, "device": head.name}
    now, best = (_link(value_of(lines, key)) for key in ("LnkSta", "LnkCap"))
    return Recorded(
        driver=value_of(lines, "Kernel driver in use") or None,
        iommu_group=_count(value_of(lines, "IOMMU group"), short, r"IOMMU group (\d{1,9})"),
        numa_node=_count(value_of(lines, "NUMA node"), short, r"NUMA node (\d{1,9})"),
        irq=_count(value_of(lines, "Interrupt"), short, r"IRQ (\d{1,9})"),
        current_link_speed=now[0],
        current_link_width=now[1],
        max_link_speed=best[0],
        max_link_width=best[1],
        names={key: name for key, name in names.items() if name},
    )


def _count(line: str | None, short: str, pattern: str) -> int | None:
    match = re.search(pattern, short) if line is None else re.search(r"\b(\d{1,9})$", line)
    return int(match[1]) if match is not None else None


def _link(line: str | None) -> tuple[str | None, int | None]:
    """Speed in the kernel's words and lanes; unknown where there is no link."""
    match = _LINK.search(line or "")
    if match is None or match[2] == "0":
        return None, None
    return f"{float(match[1]):.1f} GT/s PCIe", int(match[2])


def _resources(lines: Sequence[str]) -> tuple[Resource, ...]:
    """BARs and ROM, as far as their sizes are shown."""
    found: list[Resource] = []
    for index, match in _regions(lines):
        size = _SIZE.search(match[6])
        if size is None:
            continue
        length = int(size[1]) << 10 * " KMGTPE".index(size[2] or " ")
        bits = IORESOURCE_IO if match[3] == "I/O ports" else IORESOURCE_MEM
        kind = match[5] or ""
        bits |= IORESOURCE_MEM_64 if "64-bit" in kind else 0
        bits |= IORESOURCE_PREFETCH if _is_prefetchable(kind) else 0
        start = 0
        if match[4].startswith("<"):
            bits |= IORESOURCE_UNSET
        else:
            start = int(match[4], 16)
        if length:
            found.append(Resource(index, start, start + length - 1, bits))
    return tuple(sorted(found))


def _regions(lines: Sequence[str]) -> list[tuple[int, re.Match[str]]]:
    """Regions by BAR number, those of SR-IOV capabilities left out; 6 is the expansion ROM."""
    found: dict[int, re.Match[str]] = {}
    for line in lines:
        if line.startswith("Capabilities: "):
            break
        match = _REGION.fullmatch(line)
        if match is not None and (match[3] or match[1].startswith("Expansion")):
            found.setdefault(6 if match[3] is None else int(match[1][-1]), match)
    return list(found.items())


def _put_bars(registers: Registers, lines: Sequence[str], count: int) -> None:
    """The ``count`` BAR registers, up to one that the text does not show; unlisted ones are 0.

    For a text that shows them and nothing of the kernel's, as of a dump.
    """
    shown = dict(_regions(lines))
    index = 0
    while shown and index < count:
        match = shown.get(index)
        value = 0 if match is None else _bar_value(match)
        if value is None:
            return
        wide = match is not None and "64-bit" in (match[5] or "") and index + 1 < count
        registers.put(0x10 + 4 * index, 4, value & 0xFFFFFFFF)
        if wide:
            registers.put(0x14 + 4 * index, 4, value >> 32 & 0xFFFFFFFF)
        index += 2 if wide else 1


def _bar_value(match: re.Match[str]) -> int | None:
    """What the register, or the pair, reads; ``None`` where the address is the kernel's alone."""
    if "[virtual]" in match[0] or match[4] == "<ignored>":
        return None
    address, kind = 0 if match[4].startswith("<") else int(match[4], 16), match[5] or ""
    if match[3] == "I/O ports":
        return address & ~3 | 1
    value = address & ~0xF | (0x4 if "64-bit" in kind else 0x2 if "low-1M" in kind else 0)
    return value | (0x8 if _is_prefetchable(kind) else 0)


def _is_prefetchable(kind: str) -> bool:
    return "prefetchable" in kind and "non-prefetchable" not in kind
