"""The registers behind a verdict: where they are, what was read, what it means.

Sources: PCI Express Base Specification 6.0 §7.5.1.1.9 (header type), §7.5.3.2 (port type), §7.7.11
(ACS), §7.6.3 (extended capability list).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.isolation.acs import REQUIRED, AcsReason, AcsWhy, bit_names, role
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import CAPABILITY, CONTROL, Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology

_HEADER_TYPE = 0x0E
_CAPABILITIES_POINTER = 0x34
_EXTENDED_START = 0x100
_MULTIFUNCTION = 0x80
_DWORD_CONTROL = 0x08


class Fact(NamedTuple):
    """One register of one function, as it was read."""

    subject: Bdf
    role: str
    """What the function is: ``root port``."""
    offset: int
    """In configuration space."""
    width: int
    """Bytes."""
    register: str
    """The specification's name."""
    value: int
    meaning: str

    def text(self) -> str:
        """``0x116 ACS Control = 0x001d: …``."""
        digits = 2 + 2 * self.width
        return f"{self.offset:#05x} {self.register} = {self.value:#0{digits}x}: {self.meaning}"


def evidence(topology: Topology, why: AcsWhy) -> tuple[Fact, ...]:
    """What was read to come to ``why``; empty where nothing of it was captured."""
    function = topology[why.subject]
    if why.reason is AcsReason.QUIRK:
        return tuple(_quirk(function, why))
    if why.reason is AcsReason.CONTROL:
        found = tuple(_acs(function))
        return found[-1:] if why.isolated else found
    if why.reason is AcsReason.NO_CAPABILITY:
        is_port = function.port_type in (PortType.ROOT_PORT, PortType.DOWNSTREAM)
        several = () if is_port else tuple(multifunction(topology, function))
        return (*several, *_extended_list(function))
    if why.reason is AcsReason.CONVENTIONAL:
        return (*multifunction(topology, function), *_standard_list(function))
    if why.reason is AcsReason.SINGLE_FUNCTION:
        return tuple(multifunction(topology, function))
    return tuple(_port_type(function))


def _fact(function: Function, offset: int, width: int, register: str, meaning: str) -> Fact:
    value = function.config.read(offset, width)
    return Fact(function.bdf, role(function), offset, width, register, value, meaning)


def _acs(function: Function) -> Iterator[Fact]:
    acs = function.acs
    if acs is None:
        return
    offered, enabled = function.acs_capability, function.acs_control
    for offset, register, meaning in (
        (CAPABILITY.offset, "ACS Capability", f"offers {bit_names(offered)}"),
        (CONTROL.offset, "ACS Control", _control_text(offered, enabled)),
    ):
        if function.config.has(acs.offset + offset, 2):
            yield _fact(function, acs.offset + offset, 2, register, meaning)


def _control_text(offered: Acs, enabled: Acs) -> str:
    lacking = REQUIRED & offered & ~enabled
    if lacking:
        return f"lacks {bit_names(lacking)}"
    return f"enables {bit_names(enabled)}" if enabled else "nothing asked for is offered"


def _quirk(function: Function, why: AcsWhy) -> Iterator[Fact]:
    if why.quirk is None or not function.config.has(0, 4):
        return
    yield _fact(
        function, 0x00, 4, "Device and Vendor ID", f"in the kernel's table: {why.quirk.name}"
    )
    acs = function.acs
    if acs is not None and not why.isolated and function.config.has(acs.offset + _DWORD_CONTROL, 4):
        meaning = f"lacks {bit_names(why.missing)}"
        yield _fact(function, acs.offset + _DWORD_CONTROL, 4, "ACS Control (32 bits)", meaning)


def multifunction(topology: Topology, function: Function) -> Iterator[Fact]:
    """What says whether ``function`` is one of several of its device."""
    if function.is_virtual or not function.config.has(_HEADER_TYPE, 1):
        return
    bit = function.config.u8(_HEADER_TYPE) & _MULTIFUNCTION
    if not topology.is_multifunction(function):
        meaning = "bit 7 is clear: the only function of its device"
    elif bit:
        meaning = "bit 7 is set: one of several functions of a device"
    else:
        meaning = f"function {function.bdf.function} of a device: one of several"
    yield _fact(function, _HEADER_TYPE, 1, "Header Type", meaning)


def _extended_list(function: Function) -> Iterator[Fact]:
    if not function.config.has(_EXTENDED_START, 4):
        return
    listed = [each.title for each in function.capabilities if each.extended]
    found = f"the list has {', '.join(listed)}" if listed else "the list is empty"
    meaning = f"{found}; no ACS (id 0x000d)"
    yield _fact(function, _EXTENDED_START, 4, "first extended capability", meaning)


def _standard_list(function: Function) -> Iterator[Fact]:
    if not function.config.has(_CAPABILITIES_POINTER, 1):
        return
    listed = [each.title for each in function.capabilities if not each.extended]
    found = f"the list has {', '.join(listed)}" if listed else "the list is empty"
    meaning = f"{found}; no PCI Express (id 0x10), so no ACS"
    yield _fact(function, _CAPABILITIES_POINTER, 1, "Capabilities Pointer", meaning)


def _port_type(function: Function) -> Iterator[Fact]:
    express = function.express
    if express is None or not function.config.has(express.offset + 2, 2):
        return
    meaning = f"type {function.config.u16(express.offset + 2) >> 4 & 0xF}: {role(function)}"
    yield _fact(function, express.offset + 2, 2, "PCI Express Capabilities", meaning)
