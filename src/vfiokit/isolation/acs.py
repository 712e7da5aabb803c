"""Does a function keep its peers apart? The kernel's answer, and its reason.

Source: Linux 7.2 ``drivers/pci/pci.c`` (``pci_acs_enabled``, ``pci_acs_path_enabled``,
``pci_enable_acs``) and the device table of :mod:`vfiokit.isolation.quirk`. Bits that an ACS
capability does not have count as satisfied; a port without the capability is not isolated, a
single-function endpoint without it is.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.isolation.platform import CAPTURED, Platform
from vfiokit.isolation.quirk import (
    BROKEN_SOURCE_VALIDATION,
    REQUIRED,
    AcsQuirk,
    Condition,
    acs_quirks,
)
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology

__all__ = [
    "REQUIRED",
    "AcsReason",
    "AcsVerdict",
    "AcsWhy",
    "bit_names",
    "control",
    "enabled",
    "path_enabled",
    "port_type",
    "required_bits_missing",
    "role",
]

_BIT_NAMES = (
    (Acs.SOURCE_VALIDATION, "Source Validation"),
    (Acs.TRANSLATION_BLOCKING, "Translation Blocking"),
    (Acs.REQUEST_REDIRECT, "P2P Request Redirect"),
    (Acs.COMPLETION_REDIRECT, "P2P Completion Redirect"),
    (Acs.UPSTREAM_FORWARDING, "Upstream Forwarding"),
    (Acs.EGRESS_CONTROL, "P2P Egress Control"),
    (Acs.DIRECT_TRANSLATED, "Direct Translated P2P"),
)

_ROLES = {
    PortType.ENDPOINT: "endpoint",
    PortType.LEGACY_ENDPOINT: "legacy endpoint",
    PortType.ROOT_PORT: "root port",
    PortType.UPSTREAM: "switch upstream port",
    PortType.DOWNSTREAM: "switch downstream port",
    PortType.PCIE_TO_PCI_BRIDGE: "PCIe-to-PCI bridge",
    PortType.PCI_TO_PCIE_BRIDGE: "PCI-to-PCIe bridge",
    PortType.RC_INTEGRATED_ENDPOINT: "root complex integrated endpoint",
    PortType.RC_EVENT_COLLECTOR: "root complex event collector",
}

_NEVER = frozenset(
    {PortType.PCIE_TO_PCI_BRIDGE, PortType.PCI_TO_PCIE_BRIDGE, PortType.RC_EVENT_COLLECTOR}
)
_ALWAYS_ASKED = frozenset({PortType.ROOT_PORT, PortType.DOWNSTREAM})
_ASKED_IF_MULTIFUNCTION = frozenset(
    {
        PortType.ENDPOINT,
        PortType.LEGACY_ENDPOINT,
        PortType.UPSTREAM,
        PortType.RC_INTEGRATED_ENDPOINT,
    }
)


class AcsReason(Enum):
    """Which rule of ``pci_acs_enabled`` decided."""

    QUIRK = "quirk"
    """The kernel's device table answered."""
    CONVENTIONAL = "conventional"
    """Conventional PCI cannot have ACS."""
    NO_ACS_TYPE = "no-acs-type"
    """Bridges between PCIe and PCI, and event collectors, cannot have ACS."""
    CONTROL = "control"
    """The ACS Control register answered."""
    NO_CAPABILITY = "no-capability"
    """ACS is asked for and the capability is absent."""
    SINGLE_FUNCTION = "single-function"
    """Nothing to keep apart: the device has one function."""
    NO_PEERS = "no-peers"
    """A port type that the kernel does not ask."""


class AcsWhy(NamedTuple):
    """The reason behind an :class:`AcsVerdict`."""

    subject: Bdf
    role: str
    """What the subject is: ``root port``, ``conventional PCI bridge``."""
    reason: AcsReason
    isolated: bool
    missing: Acs
    """Bits asked for and not enforced; none when isolated."""
    quirk: AcsQuirk | None = None
    truncated: bool = False
    """No capability was seen, in bytes too short to hold it."""

    def text(self) -> str:
        """One sentence without a full stop: ``the root port 0000:00:1c.0 has no ACS …``."""
        return f"the {self.role} {self.subject} {self.predicate()}"

    def predicate(self) -> str:
        """The sentence without its subject."""
        if self.reason is AcsReason.QUIRK:
            return self._quirk_predicate()
        cut = ", as far as its configuration space was captured" if self.truncated else ""
        if self.reason in (AcsReason.CONVENTIONAL, AcsReason.NO_ACS_TYPE):
            return f"cannot have ACS{cut}"
        if self.reason is AcsReason.NO_CAPABILITY:
            return f"has no ACS ({bit_names(self.missing)}){cut}"
        if self.reason is AcsReason.SINGLE_FUNCTION:
            return "is single-function: isolated at its own level"
        if self.reason is AcsReason.NO_PEERS:
            return "is of a kind that the kernel takes for isolated"
        if self.isolated:
            return "enables every ACS bit it has of those required"
        return f"does not enable ACS {bit_names(self.missing)}"

    def _quirk_predicate(self) -> str:
        assert self.quirk is not None
        name = self.quirk.name
        if self.isolated:
            return f"is isolated by a kernel quirk ({name})"
        if self.quirk.condition is Condition.INTEL_PCH:
            return f"is isolated only where the kernel's workaround ran ({name}), and it did not"
        if self.quirk.condition is Condition.DWORD_LAYOUT:
            return f"does not enable ACS {bit_names(self.missing)} ({name}, 32-bit registers)"
        return f"is not isolated by a kernel quirk ({name})"


class AcsVerdict(NamedTuple):
    """Whether the flags asked for are enforced; true when they are."""

    isolated: bool
    why: AcsWhy

    def __bool__(self) -> bool:
        return self.isolated


def bit_names(bits: Acs) -> str:
    """The specification's names of ``bits``, joined by commas; ``none`` when empty."""
    return ", ".join(name for bit, name in _BIT_NAMES if bits & bit) or "none"


def port_type(function: Function) -> PortType | None:
    """The port type as the kernel sees it: a VF is an endpoint whatever its bytes tell."""
    return PortType.ENDPOINT if function.is_virtual else function.port_type


def role(function: Function) -> str:
    """What ``function`` is, in the specification's words."""
    if function.is_virtual:
        return "virtual function"
    kind = function.port_type
    if kind is not None:
        return _ROLES[kind]
    if function.express is not None:
        return "PCIe function"
    conventional = "" if _cut(function) else "conventional "
    return f"{conventional}PCI {'bridge' if function.is_bridge else 'function'}"


def _supported(function: Function, quirks: bool) -> Acs:
    supported = function.acs_capability
    if quirks and function.identity[:2] in BROKEN_SOURCE_VALIDATION:
        supported &= ~Acs.SOURCE_VALIDATION
    return supported


def control(function: Function, *, platform: Platform = CAPTURED, quirks: bool = True) -> Acs:
    """ACS Control [6:0]: as captured, or as the kernel would program it (``program_acs``)."""
    return _programmed(function.acs_control, _supported(function, quirks), platform)


def _programmed(value: Acs, supported: Acs, platform: Platform) -> Acs:
    if not (platform.program_acs and platform.acs_requested):
        return value
    wanted = REQUIRED | Acs.TRANSLATION_BLOCKING if platform.noats else REQUIRED
    return value | supported & wanted


def enabled(
    topology: Topology,
    function: Function,
    flags: Acs = REQUIRED,
    *,
    platform: Platform = CAPTURED,
    quirks: bool = True,
) -> AcsVerdict:
    """``pci_acs_enabled``: does ``function`` enforce ``flags`` towards its peers?"""
    if quirks:
        for row in acs_quirks(function):
            missing = _quirk_missing(topology, function, flags, row, platform)
            if missing is not None:
                return _verdict(function, AcsReason.QUIRK, missing, row)
    kind = port_type(function)
    if function.express is None and not function.is_virtual:
        return _verdict(function, AcsReason.CONVENTIONAL, flags)
    if kind in _NEVER:
        return _verdict(function, AcsReason.NO_ACS_TYPE, flags)
    if kind in _ASKED_IF_MULTIFUNCTION:
        if not topology.is_multifunction(function):
            return _verdict(function, AcsReason.SINGLE_FUNCTION, Acs(0))
    elif kind not in _ALWAYS_ASKED:
        return _verdict(function, AcsReason.NO_PEERS, Acs(0))
    if function.acs is None:
        # Asking for nothing still fails here, as it does in the kernel.
        return _verdict(function, AcsReason.NO_CAPABILITY, flags, isolated=False)
    asked = flags & (_supported(function, quirks) | Acs.EGRESS_CONTROL)
    missing = asked & ~control(function, platform=platform, quirks=quirks)
    return _verdict(function, AcsReason.CONTROL, missing)


def _verdict(
    function: Function,
    reason: AcsReason,
    missing: Acs,
    quirk: AcsQuirk | None = None,
    *,
    isolated: bool | None = None,
) -> AcsVerdict:
    if isolated is None:
        isolated = not missing and reason not in (AcsReason.CONVENTIONAL, AcsReason.NO_ACS_TYPE)
    truncated = reason in (AcsReason.NO_CAPABILITY, AcsReason.CONVENTIONAL) and _cut(function)
    return AcsVerdict(
        isolated,
        AcsWhy(function.bdf, role(function), reason, isolated, missing, quirk, truncated),
    )


def _cut(function: Function) -> bool:
    """Whether the bytes at hand stop before the ACS capability could have been seen."""
    if function.express is None:
        return len(function.config) < 0x100 and not function.is_virtual
    return not function.config.has(0x100, 4)


def _quirk_missing(
    topology: Topology, function: Function, flags: Acs, row: AcsQuirk, platform: Platform
) -> Acs | None:
    """Flags that ``row`` denies; ``None`` when the row does not fit ``function``."""
    if row.port_types is not None and port_type(function) not in row.port_types:
        return None
    claims = row.claims
    if row.condition is Condition.AMD_SOUTHBRIDGE:
        if not (
            topology.is_multifunction(function)
            and topology.bus_of(function).is_root
            and platform.resolve(topology).ivrs
        ):
            return None
    elif row.condition is Condition.INTEL_PCH:
        if not platform.acs_requested:
            claims = Acs(0)
    elif row.condition is Condition.DWORD_LAYOUT:
        return _dword_missing(function, flags, platform)
    return flags & row.considered & ~claims


def _dword_missing(function: Function, flags: Acs, platform: Platform) -> Acs | None:
    """Ports whose ACS capability has 32-bit registers: capability at +4, control at +8."""
    if function.acs is None:
        return None
    try:
        supported = Acs(function.acs.raw(0x04, 4) & 0x7F)
        value = Acs(function.acs.raw(0x08, 4) & 0x7F)
    except ConfigRangeError:
        return None
    asked = flags & (supported | Acs.EGRESS_CONTROL)
    return asked & ~_programmed(value, supported, platform)


def path_enabled(
    topology: Topology,
    start: Function,
    flags: Acs = REQUIRED,
    *,
    platform: Platform = CAPTURED,
    quirks: bool = True,
) -> AcsVerdict:
    """``pci_acs_path_enabled``: ``start`` and every bridge above it, up to the root bus.

    The verdict is that of the first function that fails, or of the last one asked.
    """
    verdict = enabled(topology, start, flags, platform=platform, quirks=quirks)
    for bridge in topology.path_to_root(start):
        if not verdict:
            break
        verdict = enabled(topology, bridge, flags, platform=platform, quirks=quirks)
    return verdict


def required_bits_missing(
    topology: Topology,
    function: Function,
    *,
    platform: Platform = CAPTURED,
    quirks: bool = True,
) -> Acs:
    """The bits of :data:`REQUIRED` that ``function`` does not enforce; none when isolated."""
    return enabled(topology, function, platform=platform, quirks=quirks).why.missing
