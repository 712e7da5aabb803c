"""Configuration bytes rebuilt from what ``lspci -v`` to ``-vvv`` decoded, and no others.

Source of the wording: pciutils ``ls-caps.c`` and ``ls-ecaps.c``, 3.1 to 3.14; of the registers:
PCI Express Base Specification 6.0 chapter 7. lspci leaves out some bits of the registers it prints
(reserved ones, and those younger than itself): they read 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vfiokit.host.partial import Registers
from vfiokit.pci.capability import acs, ari, ats, express, msi, msix, sriov
from vfiokit.pci.capability.express import PortType


class Section(NamedTuple):
    """The lines of one capability."""

    offset: int
    version: int
    """Of an extended capability; 0 where not printed (``-v``)."""
    title: str
    lines: list[str]

    @property
    def extended(self) -> bool:
        """Whether it lies in extended configuration space."""
        return self.offset >= 0x100

    @property
    def cap_id(self) -> int | None:
        """Its id; ``None`` for a name that is not known here."""
        number = re.match(
            r"#([0-9a-f]{2,4})\b|(?:Extended )?Capability ID 0x([0-9a-f]{2,4})\b", self.title
        )
        if number is not None:
            cap_id = int(number[1] or number[2], 16)
            return cap_id if self.extended or cap_id <= 0xFF else None
        for name, cap_id in _EXTENDED_NAMES if self.extended else _STANDARD_NAMES:
            if self.title.startswith(name):
                return cap_id
        return None

    def line(self, key: str) -> str | None:
        """The rest of the first line that starts with ``key`` and a colon."""
        return value_of(self.lines, key)


# The first that fits wins: a name that another one starts with comes after it.
_STANDARD_NAMES = (
    ("Null", 0x00),
    ("Power Management", 0x01),
    ("AGP version", 0x02),
    ("Vital Product Data", 0x03),
    ("Slot ID", 0x04),
    ("MSI-X", 0x11),
    ("MSI", 0x05),
    ("Message Signalled Interrupts", 0x05),
    ("CompactPCI hot-swap", 0x06),
    ("PCI-X", 0x07),
    ("HyperTransport", 0x08),
    ("Vendor Specific Information", 0x09),
    ("Debug port", 0x0A),
    ("CompactPCI central resource control", 0x0B),
    ("Hot-plug capable", 0x0C),
    ("Subsystem", 0x0D),
    ("AGP3", 0x0E),
    ("Secure device", 0x0F),
    ("Express", 0x10),
    ("SATA HBA", 0x12),
    ("PCI Advanced Features", 0x13),
    ("Enhanced Allocation", 0x14),
    ("Flattening Portal", 0x15),
)
_EXTENDED_NAMES = (
    ("Null", 0x00),
    ("Advanced Error Reporting", 0x01),
    ("Virtual Channel", 0x02),
    ("Device Serial Number", 0x03),
    ("Power Budgeting", 0x04),
    ("Root Complex Link", 0x05),
    ("Root Complex Internal Link", 0x06),
    ("Root Complex Event Collector", 0x07),
    ("Multi-Function Virtual Channel", 0x08),
    ("Root Bridge Control Block", 0x0A),
    ("Vendor Specific Information", 0x0B),
    ("Access Control Services", 0x0D),
    ("Alternative Routing-ID", 0x0E),
    ("Address Translation Service", 0x0F),
    ("Single Root I/O Virtualization", 0x10),
    ("Multi-Root I/O Virtualization", 0x11),
    ("Multicast", 0x12),
    ("Page Request Interface", 0x13),
    ("Physical Resizable BAR", 0x15),
    ("Resizable BAR", 0x15),
    ("Dynamic Power Allocation", 0x16),
    ("Transaction Processing Hints", 0x17),
    ("Latency Tolerance Reporting", 0x18),
    ("Secondary PCI Express", 0x19),
    ("Protocol Multiplexing", 0x1A),
    ("Process Address Space ID", 0x1B),
    ("LN Requester", 0x1C),
    ("Downstream Port Containment", 0x1D),
    ("L1 PM Substates", 0x1E),
    ("Precision Time Measurement", 0x1F),
    ("PCI Express over M_PHY", 0x20),
    ("FRS Queueing", 0x21),
    ("Readiness Time Reporting", 0x22),
    ("Designated Vendor-Specific", 0x23),
    ("Virtual Resizable BAR", 0x24),
    ("Data Link Feature", 0x25),
    ("Physical Layer 16.0 GT/s", 0x26),
    ("Lane Margining", 0x27),
    ("Hierarchy ID", 0x28),
    ("Native PCIe Enclosure Management", 0x29),
    ("Physical Layer 32.0 GT/s", 0x2A),
    ("Alternate Protocol", 0x2B),
    ("System Firmware Intermediary", 0x2C),
    ("Data Object Exchange", 0x2E),
    ("Device 3", 0x2F),
    ("Integrity & Data Encryption", 0x30),
    ("Physical Layer 64.0 GT/s", 0x31),
)

_CAP_LIST = 0x10
_FLAG = re.compile(r"([<>]?[\w/]+)([+-])(?=[\s,;]|$)")
_CAPABILITY = re.compile(r"Capabilities: \[([0-9a-f]{2,3})(?: v(\d{1,9}))?[^\]]*\] ?(.*)")


def value_of(lines: Sequence[str], key: str) -> str | None:
    """What follows ``key`` and its colon in the first line that starts so."""
    for line in lines:
        if line.startswith(key) and line.startswith(":", len(key)):
            return line[len(key) + 1 :].strip()
    return None


def flags(text: str | None, names: Sequence[str]) -> int | None:
    """The bits that ``Name+ Name-`` spell, ``names`` from bit 0 on; an empty name is a gap.

    ``None`` when one of them is not in the text.
    """
    if text is None:
        return None
    found = dict(_FLAG.findall(text))
    if any(name and name not in found for name in names):
        return None
    return sum(1 << bit for bit, name in enumerate(names) if name and found[name] == "+")


def number(text: str | None, key: str, base: int = 10) -> int | None:
    """The number after ``key`` in ``text``: ``Count=64``, ``stride: 2``."""
    digits = r"[0-9a-f]{1,16}" if base == 16 else r"\d{1,9}"
    match = re.search(re.escape(key) + r"[ :=#x]*(" + digits + r")\b", text or "")
    return int(match[1], base) if match is not None else None


def sections(lines: Sequence[str]) -> list[Section]:
    """The capabilities among the lines of a function, in list order, without what lspci rejects."""
    found: list[Section] = []
    taken: set[int] = set()
    for line in lines:
        match = _CAPABILITY.match(line)
        if match is None:
            if found:
                found[-1].lines.append(line)
            continue
        offset = int(match[1], 16)
        if match[3].startswith("<") or offset < 0x40 or offset & 3 or offset in taken:
            continue
        taken.add(offset)
        found.append(Section(offset, int(match[2] or 0) & 0xF, match[3], []))
    return found


def put_capabilities(registers: Registers, found: Sequence[Section], pointer: int) -> None:
    """Both lists, linked from the header's ``pointer`` register and from 0x100."""
    known = [(section, cap_id) for section in found if (cap_id := section.cap_id) is not None]
    standard = [(section, cap_id) for section, cap_id in known if not section.extended]
    extended = [(section, cap_id) for section, cap_id in known if section.extended]
    ends = [section.offset for section, _ in standard]
    for link, (section, cap_id) in zip([pointer, *(at + 1 for at in ends)], standard, strict=False):
        registers.put(link, 1, section.offset)
        registers.put(section.offset, 2, cap_id)
    if not standard and registers.byte(0x06) & _CAP_LIST:
        registers.put(pointer, 1, 0)
    following = [*(section.offset for section, _ in extended[1:]), 0][: len(extended)]
    for (section, cap_id), after in zip(extended, following, strict=True):
        registers.put(section.offset, 4, cap_id | section.version << 16 | after << 20)
    if extended and extended[0][0].offset != 0x100:
        registers.put(0x100, 4, extended[0][0].offset << 20)
    for section, cap_id in known:
        decoder = _DECODERS.get((section.extended, cap_id))
        if decoder is not None:
            decoder(registers, section)


_PORT_TYPES = (
    ("Legacy Endpoint", PortType.LEGACY_ENDPOINT),
    ("Endpoint", PortType.ENDPOINT),
    ("Root Port", PortType.ROOT_PORT),
    ("Upstream Port", PortType.UPSTREAM),
    ("Downstream Port", PortType.DOWNSTREAM),
    ("PCI-Express to PCI/PCI-X Bridge", PortType.PCIE_TO_PCI_BRIDGE),
    ("PCI/PCI-X to PCI-Express Bridge", PortType.PCI_TO_PCIE_BRIDGE),
    ("Root Complex Integrated Endpoint", PortType.RC_INTEGRATED_ENDPOINT),
    ("Root Complex Event Collector", PortType.RC_EVENT_COLLECTOR),
)
_EXPRESS = re.compile(
    r"Express (?:\(v(\d{1,9})\) )?(.*?)(?: \(Slot([+-])\))?"
    r"(?:, (?:MSI ([0-9a-f]{2})|IntMsgNum (\d{1,9})).*)?"
)
_TIMEOUTS = {
    "50us to 50ms": 0x0,
    "50us to 100us": 0x1,
    "1ms to 10ms": 0x2,
    "16ms to 55ms": 0x5,
    "65ms to 210ms": 0x6,
    "260ms to 900ms": 0x9,
    "1s to 3.5s": 0xA,
    "4s to 13s": 0xD,
    "17s to 64s": 0xE,
}


def port_type(section: Section) -> PortType | None:
    """The port type that the line of an Express capability names."""
    match = _EXPRESS.fullmatch(section.title)
    return dict(_PORT_TYPES).get(match[2]) if match is not None else None


def _put_express(registers: Registers, section: Section) -> None:
    match, kind = _EXPRESS.fullmatch(section.title), port_type(section)
    if match is None or kind is None:
        return
    message = int(match[4], 16) if match[4] else int(match[5] or 0)
    value = int(match[1] or 0) & 0xF | kind << 4 | (message & 0x1F) << 9
    at = section.offset
    registers.put(at + express.CAPABILITIES.offset, 2, value | (0x100 if match[3] == "+" else 0))
    control = section.line("DevCtl2")
    forwards = flags(control, ("ARIFwd",))
    if control is None or forwards is None:
        return  # of ports only, and only there does it matter
    bits = dict(_FLAG.findall(control))
    timeout = re.search(r"Completion Timeout: ([^,]*)", control)
    value = _TIMEOUTS.get(timeout[1], 0) if timeout is not None else 0
    for name, bit in (("TimeoutDis", 4), ("ARIFwd", 5), ("LTR", 10), ("10BitTagReq", 12)):
        value |= (bits.get(name) == "+") << bit
    atomic = dict(_FLAG.findall(section.line("AtomicOpsCtl") or ""))
    value |= (atomic.get("ReqEn") == "+") << 6 | (atomic.get("EgressBlck") == "+") << 7
    registers.put(at + express.DEVICE_CONTROL_2.offset, 2, value)


def _put_msi(registers: Registers, section: Section) -> None:
    count = re.search(r"(?:Count|Queue)=(\d{1,9})/(\d{1,9})", section.title)
    bits = dict(_FLAG.findall(section.title))
    if count is None or not {"Enable", "64bit"} <= bits.keys():
        return
    enabled, capable = (int(text).bit_length() - 1 & 7 for text in count.groups())
    value = (bits["Enable"] == "+") | capable << 1 | enabled << 4 | (bits["64bit"] == "+") << 7
    value |= (bits.get("Maskable", bits.get("Mask")) == "+") << 8
    registers.put(section.offset + msi.CONTROL.offset, 2, value)


def _put_msix(registers: Registers, section: Section) -> None:
    count = number(section.title, "Count") or number(section.title, "TabSize")
    bits = dict(_FLAG.findall(section.title))
    masked = bits.get("Masked", bits.get("Mask"))
    if not count or "Enable" not in bits or masked is None:
        return
    value = count - 1 & 0x7FF | (masked == "+") << 14 | (bits["Enable"] == "+") << 15
    registers.put(section.offset + msix.CONTROL.offset, 2, value)
    for key, register in (("Vector table", msix.TABLE), ("PBA", msix.PBA)):
        line = section.line(key)
        bar, offset = number(line, "BAR"), number(line, "offset", 16)
        if bar is not None and offset is not None:
            registers.put(section.offset + register.offset, 4, offset & 0xFFFFFFF8 | bar & 7)


def _put_subsystem(registers: Registers, section: Section) -> None:
    ids = re.search(r"(?:\[|^Subsystem: (?:Device )?)([0-9a-f]{4}):([0-9a-f]{4})", section.title)
    if ids is not None:
        registers.put(section.offset + 4, 4, int(ids[1], 16) | int(ids[2], 16) << 16)


_ACS = (
    *("SrcValid", "TransBlk", "ReqRedir", "CmpltRedir", "UpstreamFwd", "EgressCtrl"),
    "DirectTrans",
)


def _put_acs(registers: Registers, section: Section) -> None:
    capability = flags(section.line("ACSCap"), _ACS)
    control = flags(section.line("ACSCtl"), _ACS)
    if capability is not None and control is not None:
        registers.put(section.offset + acs.CAPABILITY.offset, 2, capability)
        registers.put(section.offset + acs.CONTROL.offset, 2, control)


def tells_acs(section: Section) -> bool:
    """Whether the lines of an ACS capability say what it can and what it does."""
    return all(flags(section.line(key), _ACS) is not None for key in ("ACSCap", "ACSCtl"))


def _put_ari(registers: Registers, section: Section) -> None:
    line = section.line("ARICap")
    bits, following = flags(line, ("MFVC", "ACS")), number(line, "Next Function")
    if bits is not None and following is not None:
        registers.put(section.offset + ari.CAPABILITY.offset, 2, bits | (following & 0xFF) << 8)
    line = section.line("ARICtl")
    bits, group = flags(line, ("MFVC", "ACS")), number(line, "Function Group")
    if bits is not None and group is not None:
        registers.put(section.offset + ari.CONTROL.offset, 2, bits | (group & 7) << 4)


def _put_ats(registers: Registers, section: Section) -> None:
    line = section.line("ATSCtl")
    enable, unit = flags(line, ("Enable",)), number(line, "Smallest Translation Unit", 16)
    if enable is not None and unit is not None:
        registers.put(section.offset + ats.CONTROL.offset, 2, enable << 15 | unit & 0x1F)


_VIRTUALISATION = ("Enable", "Migration", "Interrupt", "MSE", "ARIHierarchy")
_COUNTS = (
    ("Initial VFs", 10, sriov.INITIAL_VFS),
    ("Total VFs", 10, sriov.TOTAL_VFS),
    ("Number of VFs", 10, sriov.NUM_VFS),
    ("Function Dependency Link", 16, sriov.FUNCTION_DEPENDENCY_LINK),
    ("VF offset", 10, sriov.FIRST_VF_OFFSET),
    ("stride", 10, sriov.VF_STRIDE),
    ("Device ID", 16, sriov.VF_DEVICE_ID),
    ("Supported Page Size", 16, sriov.SUPPORTED_PAGE_SIZES),
    ("System Page Size", 16, sriov.SYSTEM_PAGE_SIZE),
)


def _put_sriov(registers: Registers, section: Section) -> None:
    line = section.line("IOVCtl")
    control = flags(line, _VIRTUALISATION)
    if line is not None and control is not None:
        control |= (flags(line, ("10BitTagReq",)) or 0) << 5
        registers.put(section.offset + sriov.CONTROL.offset, 2, control)
    text = "\n".join(section.lines)
    for key, base, register in _COUNTS:
        value = number(text, key, base)
        if value is not None and value < 1 << 8 * register.width:
            registers.put(section.offset + register.offset, register.width, value)


def hides_virtual_functions(section: Section) -> bool:
    """Whether this is an SR-IOV capability whose lines do not say where its VFs are."""
    if not section.extended or section.cap_id != 0x10:
        return False
    text = "\n".join(section.lines)
    told = (number(text, "Number of VFs"), number(text, "VF offset"), number(text, "stride"))
    return None in told or flags(section.line("IOVCtl"), _VIRTUALISATION) is None


_DECODERS: dict[tuple[bool, int], Callable[[Registers, Section], None]] = {
    (False, 0x05): _put_msi,
    (False, 0x0D): _put_subsystem,
    (False, 0x10): _put_express,
    (False, 0x11): _put_msix,
    (True, 0x0D): _put_acs,
    (True, 0x0E): _put_ari,
    (True, 0x0F): _put_ats,
    (True, 0x10): _put_sriov,
}
