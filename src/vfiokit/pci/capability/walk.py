"""Safe walks of the standard and the extended capability list.

Loops, bad pointers and truncation become findings, never exceptions.
Source: PCI Local Bus Specification 3.0 §6.7, PCI Express Base Specification 6.0 §7.6.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.capability.register import Capability
from vfiokit.pci.config import ConfigSpace

_STATUS_CAP_LIST = 0x10
_HEADER_TYPE_MASK = 0x7F
_CARDBUS = 2
_EXTENDED_START = 0x100


class Finding(NamedTuple):
    """Something wrong with what was read: where, what, in words."""

    offset: int
    code: str
    """Stable word for programs: ``loop``, ``bad-pointer``, ``truncated``, ``no-function``;
    of contents ``bad-length``, ``past-end``, ``overlap``."""
    text: str


class CapabilityList:
    """The capabilities of one function, in list order, and what was wrong on the way."""

    __slots__ = ("capabilities", "findings")

    def __init__(self, capabilities: tuple[Capability, ...], findings: tuple[Finding, ...]) -> None:
        self.capabilities = capabilities
        self.findings = findings

    def find(self, cap_id: int) -> Capability | None:
        """The first standard capability with this id."""
        for capability in self.capabilities:
            if capability.id == cap_id and not capability.extended:
                return capability
        return None

    def find_extended(self, cap_id: int) -> Capability | None:
        """The first extended capability with this id."""
        for capability in self.capabilities:
            if capability.id == cap_id and capability.extended:
                return capability
        return None

    def examine(self) -> tuple[Finding, ...]:
        """The findings of the walk, then those of the contents, for which families are loaded.

        A capability may be cut off by the capture, claim fewer bytes than its registers take,
        reach past its space, or reach into another capability.
        """
        found = list(self.findings)
        for capability in self.capabilities:
            found += _examine(capability, self.capabilities)
        return tuple(found)

    def __iter__(self) -> Iterator[Capability]:
        return iter(self.capabilities)

    def __len__(self) -> int:
        return len(self.capabilities)


def walk(config: ConfigSpace) -> CapabilityList:
    """Collect every capability of ``config``, without looking into them."""
    capabilities: list[Capability] = []
    findings: list[Finding] = []
    # A VF's vendor and device ID read all ones as well; a status register never does.
    if len(config) >= 8 and config.data[:8] == b"\xff" * 8:
        findings.append(Finding(0, "no-function", "configuration space reads all ones"))
        return CapabilityList((), tuple(findings))
    _walk_standard(config, capabilities, findings)
    _walk_extended(config, capabilities, findings)
    return CapabilityList(tuple(capabilities), tuple(findings))


def _examine(capability: Capability, others: tuple[Capability, ...]) -> Iterator[Finding]:
    layout, start = capability.layout, capability.offset
    if layout is None:
        return
    name = f"{layout.title} at {start:#x}"
    try:
        end = start + layout.size(capability)
    except ConfigRangeError as error:
        yield Finding(start, "truncated", f"{name}: {error}")
        return
    fixed = [
        start + register.offset + register.width
        for register in capability.registers()
        if register in layout.registers
    ]
    space = 4096 if capability.extended else 256
    if end < max(fixed, default=start):
        text = f"{name} claims {end - start} bytes; its registers take {max(fixed) - start}"
        yield Finding(start, "bad-length", text)
    elif end > space:
        yield Finding(start, "past-end", f"{name} reaches past the end of its space, to {end:#x}")
    elif end > len(capability.config):
        yield Finding(start, "truncated", f"{name} was captured in part only")
    for other in others:
        if start < other.offset < min(end, space):
            text = f"{name} reaches to {end:#x}, over a capability at {other.offset:#x}"
            yield Finding(start, "overlap", text)


def _walk_standard(
    config: ConfigSpace, capabilities: list[Capability], findings: list[Finding]
) -> None:
    if len(config) < 0x40 or not config.u16(0x06) & _STATUS_CAP_LIST:
        return
    cardbus = config.u8(0x0E) & _HEADER_TYPE_MASK == _CARDBUS
    source = 0x14 if cardbus else 0x34
    offset = config.u8(source) & ~3
    seen: set[int] = set()
    while offset:
        if offset < 0x40:
            findings.append(
                Finding(source, "bad-pointer", f"capability pointer {offset:#x} is below 0x40")
            )
            return
        if offset in seen:
            findings.append(Finding(source, "loop", f"capability list loops back to {offset:#x}"))
            return
        if not config.has(offset, 2):
            findings.append(
                Finding(source, "truncated", f"capability at {offset:#x} was not captured")
            )
            return
        seen.add(offset)
        cap_id = config.u8(offset)
        if cap_id == 0xFF:
            findings.append(Finding(offset, "bad-pointer", f"no capability at {offset:#x}"))
            return
        capabilities.append(
            Capability(config, offset, cap_id, extended=False, version=0, siblings=capabilities)
        )
        source = offset + 1
        offset = config.u8(source) & ~3


def _walk_extended(
    config: ConfigSpace, capabilities: list[Capability], findings: list[Finding]
) -> None:
    if not config.has(_EXTENDED_START, 4):
        return
    offset = _EXTENDED_START
    source = offset
    seen: set[int] = set()
    while offset:
        if offset < _EXTENDED_START:
            findings.append(
                Finding(
                    source, "bad-pointer", f"extended capability pointer {offset:#x} is below 0x100"
                )
            )
            return
        if offset in seen:
            findings.append(
                Finding(source, "loop", f"extended capability list loops back to {offset:#x}")
            )
            return
        if not config.has(offset, 4):
            findings.append(
                Finding(source, "truncated", f"extended capability at {offset:#x} was not captured")
            )
            return
        seen.add(offset)
        header = config.u32(offset)
        if header == 0 and offset == _EXTENDED_START:
            return
        if header == 0xFFFFFFFF:
            if offset != _EXTENDED_START:
                text = f"no extended capability at {offset:#x}: it reads all ones"
                findings.append(Finding(offset, "bad-pointer", text))
            return
        cap_id = header & 0xFFFF
        if cap_id:  # id 0 is a placeholder that only carries the next pointer
            capabilities.append(
                Capability(
                    config,
                    offset,
                    cap_id,
                    extended=True,
                    version=header >> 16 & 0xF,
                    siblings=capabilities,
                )
            )
        source = offset + 2
        offset = header >> 20 & ~3
