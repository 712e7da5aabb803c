"""A PCI Express root port of a guest: a bus below, windows, and a slot that can be emptied.

Registers as of QEMU's ``pcie-root-port``. Source: PCI Express Base Specification 6.0 §7.5.1.3
(bridge header), §7.5.3.9 to §7.5.3.11 (slot), §7.8.4.9 (root errors).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

from vfiokit.abi import pci_regs as regs
from vfiokit.pci.address import Bdf
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.guest_function import COMMAND_IO, COMMAND_MEMORY
from vfiokit.vmm.pci_bus import BridgeFunction, Clip, Segment

EXPRESS = 0x40
ERRORS = 0x100
_SLOT_CAPABILITY = EXPRESS + 0x14
SLOT_CONTROL = EXPRESS + 0x18
SLOT_STATUS = EXPRESS + 0x1A
ROOT_ERROR_COMMAND = ERRORS + 0x2C
ROOT_ERROR_STATUS = ERRORS + 0x30
ERROR_SOURCE = ERRORS + 0x34
_HOT_PLUG_INTERRUPT = 0x0020
_POWER_OFF = 0x0400
_INDICATOR, _INDICATOR_OFF = 0x0300, 0x0300
_PRESENT = 0x0040


class SlotEvent(IntFlag):
    """Bits of the Slot Status register that tell of something."""

    ATTENTION_BUTTON = 0x0001
    PRESENCE_CHANGED = 0x0008
    COMMAND_COMPLETED = 0x0010
    LINK_CHANGED = 0x0100


class RootError(IntFlag):
    """Bits of the Root Error Status register."""

    CORRECTABLE = 0x01
    UNCORRECTABLE = 0x04
    FIRST_FATAL = 0x10
    NON_FATAL = 0x20
    FATAL = 0x40


class RootPort(BridgeFunction):
    """A root port at ``device``.``function`` of the root bus, with an empty slot."""

    def __init__(self, device: int, function: int = 0, *, slot: int = 0) -> None:
        super().__init__(Bdf(0, 0, device, function), _config(slot or device))
        self.name = f"port {device:02x}.{function}"
        self.segment = Segment(self)
        self.powered = True
        """Whether the guest leaves the slot on."""
        config = self.config
        config.watch(0x18, 0x1C, self._windows_changed)
        config.watch(SLOT_CONTROL, 4, self._slot_written)
        config.watch(ROOT_ERROR_COMMAND, 8, self._errors_written)

    # -- routing ------------------------------------------------------------------------------

    @property
    def secondary(self) -> int:
        """Number of the bus below, as the guest gave it."""
        return self.config.get(0x19, 1)

    @property
    def subordinate(self) -> int:
        """Highest number below."""
        return self.config.get(0x1A, 1)

    def clip(self) -> Clip:
        """What the windows let through now."""
        config, memory, ports = self.config, [], []
        if self.command & COMMAND_MEMORY:
            base, limit = config.get(0x20, 2), config.get(0x22, 2)
            memory.append(((base & 0xFFF0) << 16, ((limit & 0xFFF0) << 16) + 0x10_0000))
            base = config.get(0x28, 4) << 32 | (config.get(0x24, 2) & 0xFFF0) << 16
            end = config.get(0x2C, 4) << 32 | (config.get(0x26, 2) & 0xFFF0) << 16
            memory.append((base, end + 0x10_0000))
        if self.command & COMMAND_IO:
            base, limit = config.get(0x1C, 1), config.get(0x1D, 1)
            ports.append(((base & 0xF0) << 8, ((limit & 0xF0) << 8) + 0x1000))
        return Clip(tuple(memory), tuple(ports))

    def open_windows(
        self,
        bus: int,
        memory: tuple[int, int] = (0, 0),
        prefetchable: tuple[int, int] = (0, 0),
        ports: tuple[int, int] = (0, 0),
    ) -> None:
        """Number the bus below and open the windows, as firmware does; half-open ranges."""
        config = self.config
        config.set(0x18, 4, bus << 16 | bus << 8)
        for offset, (start, end) in ((0x20, memory), (0x24, prefetchable)):
            last = end - 1 if end > start else 0
            start = start if end > start else 0xFFF0_0000
            config.set(offset, 2, start >> 16 & 0xFFF0)
            config.set(offset + 2, 2, last >> 16 & 0xFFF0)
            if offset == 0x24:
                config.set(0x28, 4, start >> 32)
                config.set(0x2C, 4, last >> 32)
        if ports[1] > ports[0]:
            config.set(0x1C, 1, ports[0] >> 8 & 0xF0)
            config.set(0x1D, 1, ports[1] - 1 >> 8 & 0xF0)
        config.set(0x04, 2, 0x0107)
        self.update_decoding()

    def _windows_changed(self, offset: int, width: int) -> None:
        del offset, width
        self.update_decoding()

    # -- the slot -----------------------------------------------------------------------------

    def slot_event(self, events: SlotEvent) -> None:
        """Something happened at the slot; interrupts if the guest wants to hear of it."""
        self.config.set(SLOT_STATUS, 2, self.config.get(SLOT_STATUS, 2) | events)
        self._update_line()

    def set_present(self, present: bool) -> None:
        """Whether a card is in the slot; the guest is told when that changed."""
        status = self.config.get(SLOT_STATUS, 2)
        if bool(status & _PRESENT) == present:
            return
        self.config.set(SLOT_STATUS, 2, status ^ _PRESENT)
        self.slot_event(SlotEvent.PRESENCE_CHANGED | SlotEvent.LINK_CHANGED)

    def _slot_written(self, offset: int, width: int) -> None:
        del width
        if offset < SLOT_STATUS:
            powered = self._is_powered()
            ejected, self.powered = self.powered and not powered, powered
            self.slot_event(SlotEvent.COMMAND_COMPLETED)
            if ejected and self.bus is not None:
                for function in tuple(self.segment.functions.values()):
                    self.bus.on_eject(function)
        self._update_line()

    def _is_powered(self) -> bool:
        """Off, and consent to take the card, is power controller and indicator off together."""
        control = self.config.get(SLOT_CONTROL, 2)
        return not (control & _POWER_OFF and control & _INDICATOR == _INDICATOR_OFF)

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        super().load(state)
        self.powered = self._is_powered()
        self._update_line()

    # -- errors -------------------------------------------------------------------------------

    def report_error(self, source: Bdf, error: RootError) -> None:
        """An error message from below; interrupts if the guest asked for this kind."""
        kept = self.config.get(ROOT_ERROR_STATUS, 4)
        if kept & RootError.UNCORRECTABLE:
            error |= RootError(0x08)  # multiple
        else:
            identifiers = self.config.get(ERROR_SOURCE, 4) & 0xFFFF
            self.config.set(ERROR_SOURCE, 4, identifiers | source.requester_id << 16)
        self.config.set(ROOT_ERROR_STATUS, 4, kept | error)
        self._update_line()

    def _errors_written(self, offset: int, width: int) -> None:
        del offset, width
        self._update_line()

    def _update_line(self) -> None:
        control, status = self.config.get(SLOT_CONTROL, 2), self.config.get(SLOT_STATUS, 2)
        slot = control & _HOT_PLUG_INTERRUPT and control & status & 0x11F
        errors = self.config.get(ROOT_ERROR_STATUS, 4)
        wanted = self.config.get(ROOT_ERROR_COMMAND, 4)
        told = (
            (errors & RootError.CORRECTABLE and wanted & 1)
            or (errors & RootError.NON_FATAL and wanted & 2)
            or (errors & RootError.FATAL and wanted & 4)
        )
        level = bool(slot or told)
        word = self.config.get(0x06, 2)
        self.config.set(0x06, 2, word | regs.PCI_STATUS_INTERRUPT if level else word & ~8)
        if self.bus is not None and self.bus.host is not None:
            disabled = self.command & regs.PCI_COMMAND_INTX_DISABLE
            self.bus.host.line(self, level and not disabled)


def _config(slot: int) -> GuestConfig:
    data = bytearray(4096)

    def put(offset: int, width: int, value: int) -> None:
        data[offset : offset + width] = value.to_bytes(width, "little")

    put(0x00, 4, 0x000C_1B36)
    put(0x06, 2, 0x0010)
    put(0x09, 3, 0x060400)
    put(0x0E, 1, 1)
    put(0x1C, 2, 0x00F0)  # windows begin closed: their base is above their limit
    put(0x20, 4, 0x0000_FFF0)
    put(0x24, 4, 0x0001_FFF1)
    put(0x34, 1, EXPRESS)
    put(0x3D, 1, 1)
    put(EXPRESS, 4, 0x0142_0010)  # version 2, root port, slot implemented
    put(EXPRESS + 0x04, 4, 0x0000_8001)
    put(EXPRESS + 0x0C, 4, 0x0010_0145)
    put(EXPRESS + 0x12, 2, 0x2145)
    put(_SLOT_CAPABILITY, 4, slot << 19 | 0x73)
    put(ERRORS, 4, 0x0002_0001)
    config = GuestConfig(bytes(data))
    for offset, width, mask in (
        (0x04, 2, 0x0547),
        (0x0C, 1, 0xFF),
        (0x18, 4, 0x00FF_FFFF),
        (0x1C, 2, 0xF0F0),
        (0x20, 4, 0xFFF0_FFF0),
        (0x24, 4, 0xFFF0_FFF0),
        (0x28, 8, (1 << 64) - 1),
        (0x3C, 1, 0xFF),
        (0x3E, 2, 0x0043),
        (EXPRESS + 0x08, 2, 0x00FF),
        (SLOT_CONTROL, 2, 0x17FF),
        (EXPRESS + 0x1C, 2, 0x001F),
        (ROOT_ERROR_COMMAND, 4, 7),
    ):
        config.allow(offset, width, mask)
    config.clear_on_one(SLOT_STATUS, 2, 0x011F)
    config.clear_on_one(ROOT_ERROR_STATUS, 4, 0x7F)
    config.clear_on_one(EXPRESS + 0x0A, 2, 0x000F)
    return config
