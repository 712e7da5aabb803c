"""Registers of a KVM processor by name: fetched when asked for, stored before the next run."""

from __future__ import annotations

from typing import Any, Final

from vfiokit.abi import kvm
from vfiokit.kernel.port import Kernel

_SEGMENT: Final = kvm.kvm_segment
_TABLE: Final = kvm.kvm_dtable
_SEGMENTS_END: Final = _SEGMENT.SIZE * len(kvm.KVM_SREGS_SEGMENTS)
_TABLES_END: Final = _SEGMENTS_END + _TABLE.SIZE * len(kvm.KVM_SREGS_TABLES)
_CONTROL: Final = {
    name: _TABLES_END + 8 * number for number, name in enumerate(kvm.KVM_SREGS_CONTROL)
}
_ACCESS: Final = (
    ("type", 0, 15), ("s", 4, 1), ("dpl", 5, 3), ("present", 7, 1), ("avl", 12, 1), ("l", 13, 1),
    ("db", 14, 1), ("g", 15, 1),
)  # fmt: skip
"""Fields of a segment's access rights: name, lowest bit, mask."""


def _parts() -> dict[str, tuple[str, int, int]]:
    found: dict[str, tuple[str, int, int]] = {}
    for name in kvm.kvm_regs.OFFSETS:
        found[name] = (name, 0, 64)
    for letter in "abcd":
        found[f"{letter}l"] = (f"r{letter}x", 0, 8)
        found[f"{letter}h"] = (f"r{letter}x", 8, 8)
        found[f"{letter}x"] = (f"r{letter}x", 0, 16)
        found[f"e{letter}x"] = (f"r{letter}x", 0, 32)
    for short in ("si", "di", "bp", "sp"):
        found[short] = (f"r{short}", 0, 16)
        found[f"e{short}"] = (f"r{short}", 0, 32)
    found["eflags"] = found["flags"] = ("rflags", 0, 64)
    return found


_GENERAL: Final = _parts()


class Registers:
    """The registers of the processor behind ``fd``."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self._fd = fd
        self._general: kvm.kvm_regs | None = None
        self._special: bytearray | None = None
        self._changed_general = self._changed_special = False

    def forget(self) -> None:
        """The processor ran: what was fetched is old."""
        self._general = self._special = None

    @property
    def changed(self) -> bool:
        """Whether :meth:`flush` has anything to store."""
        return self._changed_general or self._changed_special

    def flush(self) -> None:
        """Store what was changed; ``OSError`` when KVM finds no sense in it."""
        if self._changed_special and self._special is not None:
            self._kernel.ioctl(self._fd, kvm.KVM_SET_SREGS, self._special)
        if self._changed_general and self._general is not None:
            self._kernel.ioctl(self._fd, kvm.KVM_SET_REGS, self._general.pack())
        self._changed_general = self._changed_special = False

    # -- by name --------------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """A register's value; ``KeyError`` for a name that there is not."""
        if name in _GENERAL:
            register, shift, bits = _GENERAL[name]
            value: int = getattr(self._fetch_general(), register)
            return value >> shift & (1 << bits) - 1
        if name in _CONTROL:
            start = _CONTROL[name]
            return int.from_bytes(self._fetch_special()[start : start + 8], "little")
        if name == "cpl":
            return self.read("ss.access") >> 5 & 3
        register, field = self._place(name)
        if register in kvm.KVM_SREGS_TABLES:
            number: int = getattr(self._table(register), field)
            return number
        segment = self._segment(register)
        if field == "access":
            return sum(getattr(segment, part) << shift for part, shift, _mask in _ACCESS)
        found: int = getattr(segment, field)
        return found

    def write(self, name: str, value: int) -> None:
        """Set a register; ``KeyError`` for a name that there is not."""
        if name in _GENERAL:
            register, shift, bits = _GENERAL[name]
            mask = (1 << bits) - 1
            general = self._fetch_general()
            old: int = getattr(general, register)
            kept = 0 if bits == 32 else old & ~(mask << shift)
            setattr(general, register, kept | (value & mask) << shift)
            self._changed_general = True
            return
        special = self._fetch_special()
        if name in _CONTROL:
            start = _CONTROL[name]
            special[start : start + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
        else:
            self._write_place(special, *self._place(name), value)
        self._changed_special = True

    def _write_place(self, special: bytearray, register: str, field: str, value: int) -> None:
        if register in kvm.KVM_SREGS_TABLES:
            table = self._table(register)
            setattr(table, field, value)
            table.pack_into(special, self._table_offset(register))
            return
        segment = self._segment(register)
        if field == "access":
            for part, shift, mask in _ACCESS:
                setattr(segment, part, value >> shift & mask)
            segment.unusable = 0 if segment.present else 1
        else:
            setattr(segment, field, value & (0xFFFF if field == "selector" else (1 << 64) - 1))
        if field == "selector" and not self.read("cr0") & 1:
            segment.base = (value & 0xFFFF) << 4  # as loading it in real mode does
        segment.pack_into(special, self._segment_offset(register))

    @staticmethod
    def _place(name: str) -> tuple[str, str]:
        register, _dot, field = name.partition(".")
        if register in kvm.KVM_SREGS_SEGMENTS and field in ("", "base", "limit", "access"):
            return register, field or "selector"
        if register in kvm.KVM_SREGS_TABLES and field in ("base", "limit"):
            return register, field
        raise KeyError(name)

    @staticmethod
    def _segment_offset(register: str) -> int:
        return kvm.KVM_SREGS_SEGMENTS.index(register) * _SEGMENT.SIZE

    @staticmethod
    def _table_offset(register: str) -> int:
        return _SEGMENTS_END + kvm.KVM_SREGS_TABLES.index(register) * _TABLE.SIZE

    def _segment(self, register: str) -> kvm.kvm_segment:
        return _SEGMENT.unpack_from(self._fetch_special(), self._segment_offset(register))

    def _table(self, register: str) -> kvm.kvm_dtable:
        return _TABLE.unpack_from(self._fetch_special(), self._table_offset(register))

    def _fetch_general(self) -> kvm.kvm_regs:
        if self._general is None:
            buffer = bytearray(kvm.kvm_regs.SIZE)
            self._kernel.ioctl(self._fd, kvm.KVM_GET_REGS, buffer)
            self._general = kvm.kvm_regs.unpack_from(buffer)
        return self._general

    def _fetch_special(self) -> bytearray:
        if self._special is None:
            self._special = bytearray(kvm.KVM_SREGS_SIZE)
            self._kernel.ioctl(self._fd, kvm.KVM_GET_SREGS, self._special)
        return self._special

    # -- state ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of them as plain data."""
        general = self._fetch_general()
        return {
            "general": {name: getattr(general, name) for name in kvm.kvm_regs.OFFSETS},
            "special": bytes(self._fetch_special()).hex(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described, with the next run."""
        self._general = kvm.kvm_regs(**state["general"])
        self._special = bytearray.fromhex(state["special"])
        self._changed_general = self._changed_special = True
