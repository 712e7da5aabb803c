"""What software may change in the capabilities of a modelled function, and what that does.

:func:`attach` walks the capability lists of a function once. Which bits can be written or cleared
is what :mod:`vfiokit.pci.capability` describes; what is here is what the description leaves to the
instance, and the side effects: function-level reset, power states, MSI, MSI-X, ACS, ATS.
Source: PCI Express Base Specification 6.0 §7.5 to §7.9, PCI Bus Power Management 1.2 §3.2.4,
PCI Advanced Features ECN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vfiokit.machine.acs import AcsRegisters
from vfiokit.machine.interrupt import Msi, MsixTable
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.capability.express import PortType

if TYPE_CHECKING:
    from vfiokit.machine.function import Function
    from vfiokit.pci.capability import Capability

_FLR_CAPABLE: Final = 1 << 28  # Device Capabilities
_INITIATE_FLR: Final = 0x8000  # Device Control
_RETRAIN_LINK: Final = 0x0020  # Link Control
_NO_SOFT_RESET: Final = 0x0008  # PMCSR
_D3HOT: Final = 3
_UNDESCRIBED: Final = frozenset({"acs", "msi", "msix", "resizable-bar", "sriov", "vpd"})
"""Capabilities whose writable bits depend on the instance or have a mechanism behind them: modelled
below, or, as the sizes of Resizable BAR and the data of VPD, not at all."""
AER_ACS_VIOLATION: Final = 1 << 21
"""Bit of the AER Uncorrectable Error Status register."""


def attach(function: Function) -> None:
    """Give the capabilities of ``function`` their behaviour."""
    for capability in function.capabilities():
        if capability.name not in _UNDESCRIBED:
            _allow_described(function, capability)
        table = _EXTENDED if capability.extended else _STANDARD
        model = table.get(capability.id)
        if model is not None:
            model(function, capability.offset)


def _allow_described(function: Function, capability: Capability) -> None:
    """Let software write what the capability's description lets it write."""
    config = function.config
    for register in capability.registers():
        at = capability.offset + register.offset
        config.allow(at, register.width, register.writable("rw"))
        config.clear_on_one(at, register.width, register.writable("rw1c"))


def log_acs_violation(function: Function) -> None:
    """Set ACS Violation in the AER status of ``function``, where it has AER."""
    for capability in function.capabilities():
        if capability.extended and capability.id == 0x01:
            at = capability.offset + 4
            function.config.set(at, 4, function.config.read(at, 4) | AER_ACS_VIOLATION)


def _express(function: Function, at: int) -> None:
    config = function.config
    flags = config.read(at + 2, 2)
    kind = flags >> 4 & 0xF
    function.port_type = PortType(kind) if kind in set(PortType) else None
    if config.read(at + 4, 4) & _FLR_CAPABLE:
        _on_bit(function, at + 0x08, 2, _INITIATE_FLR, ResetKind.FUNCTION_LEVEL)
    else:
        config.forbid(at + 0x08, 2, _INITIATE_FLR)
    if function.port_type not in (
        PortType.RC_INTEGRATED_ENDPOINT,
        PortType.RC_EVENT_COLLECTOR,
    ):
        function.port_number = config.read(at + 0x0C, 4) >> 24
        _reads_zero(function, at + 0x10, _RETRAIN_LINK)


def _power(function: Function, at: int) -> None:
    config = function.config
    config.keep(at + 4, 2, 0x0100)  # PME_En
    last = config.read(at + 4, 1) & 3

    def state_written(offset: int, width: int) -> None:
        nonlocal last
        del offset, width
        now = config.read(at + 4, 1) & 3
        before, last = last, now
        if before == _D3HOT and now == 0 and not config.data[at + 4] & _NO_SOFT_RESET:
            function.reset(ResetKind.POWER)
        if before != now:
            function.decoding_changed()

    config.watch(at + 4, 2, state_written)
    function.power_offset = at + 4


def _advanced_features(function: Function, at: int) -> None:
    if function.config.read(at + 3, 1) & 0x02:
        _on_bit(function, at + 4, 1, 0x01, ResetKind.AF_FUNCTION_LEVEL)


def _msi(function: Function, at: int) -> None:
    function.msi = Msi(function, at)


def _msix(function: Function, at: int) -> None:
    function.msix = MsixTable(function, at)


def _acs(function: Function, at: int) -> None:
    config = function.config
    function.acs = AcsRegisters(config, at)
    config.allow(at + 6, 2, config.read(at + 4, 2) & 0x7F)
    vector = (function.acs.vector_bits + 31) // 32 * 4
    config.allow(at + 8, vector, (1 << 8 * vector) - 1)
    _watch_routing(function, at + 6, 2 + vector)


def _ats(function: Function, at: int) -> None:
    function.ats_offset = at
    _watch_routing(function, at + 6, 2)


def _single_root_io_virtualization(function: Function, at: int) -> None:
    config = function.config
    config.allow(at + 0x08, 2, 0x001F)
    config.allow(at + 0x10, 2, 0xFFFF)
    config.allow(at + 0x20, 4, 0xFFFFFFFF)
    _watch_routing(function, at + 0x08, 2)
    _watch_routing(function, at + 0x24, 0x18)  # VF BARs


def _error_reporting(function: Function, at: int) -> None:
    # Status, masks, severity and control survive a reset.
    for offset in (0x04, 0x08, 0x0C, 0x10, 0x14, 0x18):
        function.config.keep(at + offset, 4, 0xFFFFFFFF)


def _on_bit(function: Function, offset: int, width: int, bit: int, kind: ResetKind) -> None:
    """Reset the function when software sets ``bit``, which always reads as zero."""
    config = function.config

    def written(_offset: int, _width: int) -> None:
        value = config.read(offset, width)
        if value & bit:
            config.set(offset, width, value & ~bit)
            function.reset(kind)

    config.watch(offset, width, written)


def _reads_zero(function: Function, offset: int, bit: int) -> None:
    """A bit that starts something which is done at once: it never reads as one."""
    config = function.config

    def written(_offset: int, _width: int) -> None:
        config.set(offset, 2, config.read(offset, 2) & ~bit)

    config.watch(offset, 2, written)


def _watch_routing(function: Function, offset: int, length: int) -> None:
    def written(_offset: int, _width: int) -> None:
        function.decoding_changed()

    function.config.watch(offset, length, written, hardware=True)


_STANDARD: Final[dict[int, Callable[[Function, int], None]]] = {
    0x01: _power,
    0x05: _msi,
    0x10: _express,
    0x11: _msix,
    0x13: _advanced_features,
}
_EXTENDED: Final[dict[int, Callable[[Function, int], None]]] = {
    0x01: _error_reporting,
    0x0D: _acs,
    0x0F: _ats,
    0x10: _single_root_io_virtualization,
}
