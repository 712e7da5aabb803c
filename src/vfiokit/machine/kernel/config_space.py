"""Configuration space as a user of vfio-pci sees it.

Each byte belongs to the header, to a visible capability, or to nobody. Bytes that belong to
nobody (the gaps, and hidden capabilities) are read and written raw: that is what Linux does.

Source: Linux ``drivers/vfio/pci/vfio_pci_config.c``.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import Protocol

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel import config_permission as permission
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import (
    IORESOURCE_IO,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    PciDevice,
)
from vfiokit.pci.topology import Resource

_STANDARD_LOOPS = (regs.PCI_CFG_SPACE_SIZE - regs.PCI_STD_HEADER_SIZEOF) // 4
_BARS = range(regs.PCI_BASE_ADDRESS_0, regs.PCI_BASE_ADDRESS_5 + 4)
_ROM = range(regs.PCI_ROM_ADDRESS, regs.PCI_ROM_ADDRESS + 4)
_DECODING = regs.PCI_COMMAND_MEMORY | regs.PCI_COMMAND_IO
_VPD_FLAG = 0x8000


class ConfigOwner(Protocol):
    """What a write to configuration space can set off."""

    @property
    def msi_enabled(self) -> bool:
        """Whether the user enabled MSI by ``VFIO_DEVICE_SET_IRQS``."""
        ...

    @property
    def msi_qmax(self) -> int:
        """Base 2 logarithm of the enabled MSI vectors."""
        ...

    def set_intx_disabled(self, disabled: bool) -> None:
        """The user's INTx Disable bit changed."""
        ...

    def decoding_changed(self) -> None:
        """The user enabled or disabled memory decoding."""
        ...

    def reset_by_write(self) -> None:
        """The user wrote a function level reset bit."""
        ...

    def set_power_state(self, state: int) -> None:
        """The user asked for D0 to D3hot (0 to 3)."""
        ...


class _Kind(Enum):
    TABLE = "masks decide"
    DIRECT = "read from hardware, not writable"
    RAW_WRITE = "read from hardware, written through"


class _Window:
    """One visible capability, or the header."""

    __slots__ = ("cap_id", "extended", "kind", "length", "start", "virtual", "writable")

    def __init__(
        self,
        cap_id: int,
        start: int,
        length: int,
        kind: _Kind,
        rules: tuple[permission.Rule, ...] = (),
        *,
        extended: bool = False,
    ) -> None:
        self.cap_id = cap_id
        self.start = start
        self.length = length
        self.kind = kind
        self.extended = extended
        self.virtual, self.writable = permission.masks(rules, length) if rules else (b"", b"")


class VirtualConfig:
    """The emulated configuration space of one opened function.

    :meth:`read` and :meth:`write` take any range inside the space and raise ``OSError`` EFAULT
    beyond it.
    """

    def __init__(self, device: PciDevice, owner: ConfigOwner, *, has_intx: bool) -> None:
        self._device = device
        self._owner = owner
        self._size = device.config_size
        self._bytes = bytearray(self._size)
        self._map: list[_Window | None] = [None] * self._size
        self._bars_dirty = True
        self._intx_disabled = False
        self._fill(0, regs.PCI_STD_HEADER_SIZEOF)
        header = _Window(0, 0, regs.PCI_STD_HEADER_SIZEOF, _Kind.TABLE, permission.HEADER_RULES)
        self._map[: regs.PCI_STD_HEADER_SIZEOF] = [header] * regs.PCI_STD_HEADER_SIZEOF
        self._saved_bars = tuple(device.read(offset, 4) for offset in _BARS[::4])
        self._saved_rom = device.read(regs.PCI_ROM_ADDRESS, 4)
        if device.is_virtual:
            self._put(regs.PCI_VENDOR_ID, 2, device.vendor_id)
            self._put(regs.PCI_DEVICE_ID, 2, device.device_id)
        if device.no_command_memory:
            self._put(regs.PCI_COMMAND, 2, self.command | regs.PCI_COMMAND_MEMORY)
        if device.is_virtual or not has_intx:
            self._bytes[regs.PCI_INTERRUPT_PIN] = 0
        self._add_standard()
        self._add_extended()

    # -- what others ask ----------------------------------------------------------------------

    @property
    def command(self) -> int:
        """The user's idea of the command register."""
        return self._get(regs.PCI_COMMAND, 2)

    @property
    def memory_enabled(self) -> bool:
        """Whether the user enabled memory decoding."""
        return bool(self.command & regs.PCI_COMMAND_MEMORY)

    @property
    def interrupt_pin(self) -> int:
        """The user's idea of the interrupt pin; 0 when INTx is hidden."""
        return self._bytes[regs.PCI_INTERRUPT_PIN]

    # -- system calls -------------------------------------------------------------------------

    def read(self, position: int, length: int) -> bytes:
        """``length`` bytes at ``position``, in naturally aligned steps of at most 4 bytes."""
        self._check(position, length)
        taken = bytearray()
        while length:
            width = self._step(position, length)
            taken += self._read(position, width).to_bytes(width, "little")
            position += width
            length -= width
        return bytes(taken)

    def write(self, position: int, data: bytes) -> None:
        """Write ``data`` at ``position``, in naturally aligned steps of at most 4 bytes."""
        self._check(position, len(data))
        done = 0
        while done < len(data):
            width = self._step(position + done, len(data) - done)
            value = int.from_bytes(data[done : done + width], "little")
            self._write(position + done, width, value)
            done += width

    def _check(self, position: int, length: int) -> None:
        if position < 0 or position >= self._size or position + length > self._size:
            raise failure(errno.EFAULT, f"beyond the {self._size} bytes of configuration space")

    def _step(self, position: int, length: int) -> int:
        window, span = self._map[position], 1
        while (position + span) % 4 and position + span < self._size:
            if self._map[position + span] is not window:
                break
            span += 1
        span = min(span, length)
        if span >= 4 and position % 4 == 0:
            return 4
        return 2 if span >= 2 and position % 2 == 0 else 1

    # -- reading ------------------------------------------------------------------------------

    def _read(self, at: int, width: int) -> int:
        window = self._map[at]
        if window is None:
            return self._device.read(at, width)
        if window.start == 0 and (at in _BARS or at in _ROM):
            self._fix_bars()
        if window.kind is not _Kind.TABLE:
            return self._read_direct(window, at, width)
        relative = at - window.start
        virtual = int.from_bytes(window.virtual[relative : relative + width], "little")
        value = self._get(at, width)
        if virtual != (1 << 8 * width) - 1:
            value = self._device.read(at, width) & ~virtual | value & virtual
        if at == regs.PCI_COMMAND and self._device.no_command_memory:
            value |= self.command & regs.PCI_COMMAND_MEMORY
        return value

    def _read_direct(self, window: _Window, at: int, width: int) -> int:
        value = bytearray(self._device.read(at, width).to_bytes(width, "little"))
        relative = at - window.start
        emulated = 4 if window.extended else regs.PCI_CAP_FLAGS
        for index in range(width):
            if relative + index < emulated:
                value[index] = self._bytes[at + index]
        return int.from_bytes(value, "little")

    def _fix_bars(self) -> None:
        """Make the BARs read as hardware would after a write: sized, with their type bits."""
        if not self._bars_dirty:
            return
        self._bars_dirty = False
        index = 0
        while index < regs.PCI_STD_NUM_BARS:
            index += self._fix_bar(index)
        rom = self._device.resource(regs.PCI_STD_NUM_BARS)
        value = self._get(regs.PCI_ROM_ADDRESS, 4)
        keep = ~(rom.size - 1) | regs.PCI_ROM_ADDRESS_ENABLE
        self._put(regs.PCI_ROM_ADDRESS, 4, value & keep if rom.start else 0)

    def _fix_bar(self, index: int) -> int:
        resource = self._device.resource(index)
        offset = regs.PCI_BASE_ADDRESS_0 + 4 * index
        if not resource.start:
            self._put(offset, 4, 0)
            return 1
        mask, flags = ~(resource.size - 1), _bar_flags(resource)
        self._put(offset, 4, self._get(offset, 4) & mask | flags)
        if not flags & regs.PCI_BASE_ADDRESS_MEM_TYPE_64:
            return 1
        if index + 1 < regs.PCI_STD_NUM_BARS:
            self._put(offset + 4, 4, self._get(offset + 4, 4) & mask >> 32)
        return 2

    # -- writing ------------------------------------------------------------------------------

    def _write(self, at: int, width: int, value: int) -> None:
        window = self._map[at]
        if window is None or window.kind is _Kind.RAW_WRITE:
            self._device.write(at, width, value)
        elif window.kind is _Kind.TABLE:
            if window.extended:
                self._write_masked(window, at, width, value)
            elif window.start == 0:
                self._write_header(window, at, width, value)
            else:
                self._write_standard(window, at, width, value)

    def _write_masked(self, window: _Window, at: int, width: int, value: int) -> None:
        relative = at - window.start
        writable = int.from_bytes(window.writable[relative : relative + width], "little")
        virtual = int.from_bytes(window.virtual[relative : relative + width], "little")
        if emulated := writable & virtual:
            self._put(at, width, self._get(at, width) & ~emulated | value & emulated)
        if real := writable & ~virtual:
            present = self._device.read(at, width)
            self._device.write(at, width, present & ~real | value & real)

    def _write_header(self, window: _Window, at: int, width: int, value: int) -> None:
        if at == regs.PCI_COMMAND:
            self._recover(value)
        self._write_masked(window, at, width, value)
        if at == regs.PCI_COMMAND:
            enabled = self.memory_enabled
            command = self.command & ~_DECODING | value & _DECODING
            self._put(regs.PCI_COMMAND, 2, command)
            if self.memory_enabled is not enabled:
                self._owner.decoding_changed()
        if at in (regs.PCI_COMMAND, regs.PCI_COMMAND + 1):
            disabled = bool(self.command & regs.PCI_COMMAND_INTX_DISABLE)
            if disabled is not self._intx_disabled:
                self._intx_disabled = disabled
                self._owner.set_intx_disabled(disabled)
        if at in _BARS or at in _ROM:
            self._bars_dirty = True

    def _recover(self, new: int) -> None:
        """Restore BARs lost to a reset behind vfio-pci's back before decoding is enabled."""
        if self._device.is_virtual:
            return
        real = self._device.read(regs.PCI_COMMAND, 2)
        lost = new & self.command & ~real & _DECODING
        if self._device.no_command_memory:
            lost &= ~regs.PCI_COMMAND_MEMORY
        moved = any(
            saved and self._device.read(offset, 4) != saved
            for offset, saved in zip(_BARS[::4], self._saved_bars, strict=True)
        )
        if lost or moved:
            for offset, saved in zip(_BARS[::4], self._saved_bars, strict=True):
                self._device.write(offset, 4, saved)
            self._device.write(regs.PCI_ROM_ADDRESS, 4, self._saved_rom)

    def _write_standard(self, window: _Window, at: int, width: int, value: int) -> None:
        before = self._get(window.start + regs.PCI_EXP_DEVCTL, 2) if _is_express(window) else 0
        self._write_masked(window, at, width, value)
        relative = at - window.start
        if window.cap_id == regs.PCI_CAP_ID_PM and relative == regs.PCI_PM_CTRL:
            self._owner.set_power_state(value & regs.PCI_PM_CTRL_STATE_MASK)
        elif window.cap_id == regs.PCI_CAP_ID_EXP:
            self._after_express(window.start, before)
        elif window.cap_id == regs.PCI_CAP_ID_AF:
            self._after_advanced_features(window.start)
        elif window.cap_id == regs.PCI_CAP_ID_MSI:
            if relative <= regs.PCI_MSI_FLAGS < relative + width:
                self._after_msi(window.start)
        elif window.cap_id == regs.PCI_CAP_ID_VPD and relative <= 3 < relative + width:
            self._after_vpd(window.start)

    def _after_express(self, start: int, before: int) -> None:
        at = start + regs.PCI_EXP_DEVCTL
        control = self._get(at, 2)
        if control & regs.PCI_EXP_DEVCTL_BCR_FLR:
            control &= ~regs.PCI_EXP_DEVCTL_BCR_FLR
            self._put(at, 2, control)
            if self._device.read(start + regs.PCI_EXP_DEVCAP, 4) & regs.PCI_EXP_DEVCAP_FLR:
                self._owner.reset_by_write()
        if (control ^ before) & regs.PCI_EXP_DEVCTL_READRQ:
            real = self._device.read(at, 2)
            request = (control & regs.PCI_EXP_DEVCTL_READRQ) >> 12
            payload = (real & regs.PCI_EXP_DEVCTL_PAYLOAD) >> 5
            real = real & ~regs.PCI_EXP_DEVCTL_READRQ | max(request, payload) << 12
            self._device.write(at, 2, real)

    def _after_advanced_features(self, start: int) -> None:
        at = start + regs.PCI_AF_CTRL
        if not self._bytes[at] & regs.PCI_AF_CTRL_FLR:
            return
        self._bytes[at] &= ~regs.PCI_AF_CTRL_FLR
        needed = regs.PCI_AF_CAP_FLR | regs.PCI_AF_CAP_TP
        if self._device.read(start + regs.PCI_AF_CAP, 1) & needed == needed:
            self._owner.reset_by_write()

    def _after_msi(self, start: int) -> None:
        at = start + regs.PCI_MSI_FLAGS
        flags = self._get(at, 2)
        if not self._owner.msi_enabled:
            flags &= ~regs.PCI_MSI_FLAGS_ENABLE
        if (flags & regs.PCI_MSI_FLAGS_QSIZE) >> 4 > self._owner.msi_qmax:
            flags = flags & ~regs.PCI_MSI_FLAGS_QSIZE | self._owner.msi_qmax << 4
        self._put(at, 2, flags)
        self._device.write(at, 2, flags)

    def _after_vpd(self, start: int) -> None:
        """Carry out a VPD access; the flag only toggles when the device answers."""
        address = self._get(start + 2, 2)
        target, writing = address & ~_VPD_FLAG, bool(address & _VPD_FLAG)
        if writing:
            self._device.write(start + 4, 4, self._get(start + 4, 4))
        self._device.write(start + 2, 2, address)
        self._device.settle()
        if bool(self._device.read(start + 2, 2) & _VPD_FLAG) is writing:
            return
        if not writing:
            self._put(start + 4, 4, self._device.read(start + 4, 4))
        self._put(start + 2, 2, target | (0 if writing else _VPD_FLAG))

    # -- building the map ---------------------------------------------------------------------

    def _add_standard(self) -> None:
        if not self._device.read(regs.PCI_STATUS, 2) & regs.PCI_STATUS_CAP_LIST:
            return
        link = regs.PCI_CAPABILITY_LIST
        at = self._device.read(link, 1) & ~3
        shown = 0
        for _ in range(_STANDARD_LOOPS):
            if at < regs.PCI_STD_HEADER_SIZEOF:
                break
            cap_id = self._device.read(at, 1)
            following = self._device.read(at + regs.PCI_CAP_LIST_NEXT, 1) & ~3
            length = permission.length_of(
                permission.STANDARD_LENGTHS, cap_id, self._device.read, at
            )
            if not length:
                self._bytes[link] = following
            else:
                self._claim(self._standard_window(cap_id, at, length))
                link = at + regs.PCI_CAP_LIST_NEXT
                shown += 1
            at = following
        if not shown:
            status = self._get(regs.PCI_STATUS, 2)
            self._put(regs.PCI_STATUS, 2, status & ~regs.PCI_STATUS_CAP_LIST)

    def _standard_window(self, cap_id: int, at: int, length: int) -> _Window:
        rules = permission.STANDARD_RULES.get(cap_id, ())
        if cap_id == regs.PCI_CAP_ID_MSI:
            rules = permission.msi_rules(self._device.read(at + regs.PCI_MSI_FLAGS, 2))
        kind = _Kind.TABLE if rules else _Kind.DIRECT
        if cap_id in permission.STANDARD_RAW_WRITES:
            kind = _Kind.RAW_WRITE
        return _Window(cap_id, at, length, kind, rules)

    def _add_extended(self) -> None:
        start = regs.PCI_CFG_SPACE_SIZE
        if self._size <= start or not self._has_extended() or not self._device.read(start, 4):
            return
        at, link, shown = start, 0, 0
        for _ in range((self._size - start) // 4):
            if at < start or at >= self._size:
                break
            header = self._device.read(at, 4)
            following = header >> 20 & ~3
            cap_id = header & 0xFFFF
            length = permission.length_of(
                permission.EXTENDED_LENGTHS, cap_id, self._device.read, at
            )
            hidden = not length
            if hidden and link:
                kept = self._get(link, 4) & 0xF_FFFF
                self._put(link, 4, kept | following << 20)
            else:
                self._claim(self._extended_window(cap_id, at, length or 4))
                if hidden:
                    self._put(at, 4, self._get(at, 4) & 0xFFC << 20)
                else:
                    shown += 1
                link = at
            at = following
        if not shown:
            self._put(start, 4, 0)

    def _extended_window(self, cap_id: int, at: int, length: int) -> _Window:
        rules = permission.EXTENDED_RULES.get(cap_id, ())
        kind = _Kind.TABLE if rules else _Kind.DIRECT
        if cap_id in permission.EXTENDED_RAW_WRITES:
            kind = _Kind.RAW_WRITE
        return _Window(cap_id, at, length, kind, rules, extended=True)

    def _has_extended(self) -> bool:
        """Extended space is looked at only for a visible PCI Express or PCI-X 2 capability."""
        return any(
            window is not None
            and (
                window.cap_id == regs.PCI_CAP_ID_EXP
                or (window.cap_id == regs.PCI_CAP_ID_PCIX and window.length > 8)
            )
            for window in self._map[regs.PCI_STD_HEADER_SIZEOF : regs.PCI_CFG_SPACE_SIZE]
        )

    def _claim(self, window: _Window) -> None:
        end = min(window.start + window.length, self._size)
        self._map[window.start : end] = [window] * (end - window.start)
        self._fill(window.start, end - window.start)
        if window.cap_id == regs.PCI_CAP_ID_PM and not window.extended:
            capabilities = self._get(window.start + regs.PCI_PM_PMC, 2)
            self._put(window.start + regs.PCI_PM_PMC, 2, capabilities & ~regs.PCI_PM_CAP_PME_MASK)
            pme = regs.PCI_PM_CTRL_PME_ENABLE | regs.PCI_PM_CTRL_PME_STATUS
            control = self._get(window.start + regs.PCI_PM_CTRL, 2)
            self._put(window.start + regs.PCI_PM_CTRL, 2, control & ~pme)

    # -- bytes --------------------------------------------------------------------------------

    def _fill(self, start: int, length: int) -> None:
        for at in range(start, start + length):
            self._bytes[at] = self._device.read(at, 1)

    def _get(self, at: int, width: int) -> int:
        return int.from_bytes(self._bytes[at : at + width], "little")

    def _put(self, at: int, width: int, value: int) -> None:
        mask = (1 << 8 * width) - 1
        self._bytes[at : at + width] = (value & mask).to_bytes(width, "little")


def _is_express(window: _Window) -> bool:
    return window.cap_id == regs.PCI_CAP_ID_EXP


def _bar_flags(resource: Resource) -> int:
    """The read-only low bits of the BAR behind a resource (``vfio_generate_bar_flags``)."""
    if resource.flags & IORESOURCE_IO:
        return regs.PCI_BASE_ADDRESS_SPACE_IO
    flags = regs.PCI_BASE_ADDRESS_SPACE_MEMORY
    if resource.flags & IORESOURCE_PREFETCH:
        flags |= regs.PCI_BASE_ADDRESS_MEM_PREFETCH
    if resource.flags & IORESOURCE_MEM_64:
        flags |= regs.PCI_BASE_ADDRESS_MEM_TYPE_64
    return flags
