"""Registers by name, as :class:`vfiokit.vmm.vcpu.Vcpu` offers them."""

from __future__ import annotations

from typing import Final

from vfiokit.vmm.cpu.core import GENERAL, M64, SEGMENTS, Core, Segment

_PLAIN: Final = frozenset(
    {
        *("rip", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "star", "lstar", "cstar", "sfmask"),
        *("kernel_gs_base", "apic_base", "cpl"),
    }
)
_TABLES: Final = {
    "gdt.base": "gdt_base",
    "gdt.limit": "gdt_limit",
    "idt.base": "idt_base",
    "idt.limit": "idt_limit",
}


def _parts() -> dict[str, tuple[int, int, int]]:
    found = {name: (number, 0, 8) for number, name in enumerate(GENERAL)}
    for number, name in enumerate(GENERAL[:8]):
        short = name[1:]
        found[f"e{short}"] = (number, 0, 4)
        found[short] = (number, 0, 2)
        low = short[0] + "l" if short.endswith("x") else short + "l"
        found[low] = (number, 0, 1)
        if short.endswith("x"):
            found[short[0] + "h"] = (number, 8, 1)
    for number in range(8, 16):
        for letter, width in (("d", 4), ("w", 2), ("b", 1)):
            found[f"r{number}{letter}"] = (number, 0, width)
    return found


_GENERAL: Final = _parts()
"""Name → register number, lowest bit, width in bytes."""


def read_register(core: Core, name: str) -> int:
    """A register's value; ``KeyError`` for a name that there is not."""
    if name in _GENERAL:
        number, shift, width = _GENERAL[name]
        return core.R[number] >> shift & (1 << 8 * width) - 1
    if name in ("rflags", "eflags", "flags"):
        return core.rflags
    if name in _PLAIN or name in _TABLES:
        value: int = getattr(core, _TABLES.get(name, name))
        return value
    if name[:2] == "dr" and name[2:] in _DEBUG:
        return core.dr[int(name[2:])]
    segment, field = _segment(core, name)
    found: int = getattr(segment, field)
    return found


def write_register(core: Core, name: str, value: int) -> None:
    """Set a register; ``KeyError`` for a name that there is not."""
    if name in _GENERAL:
        number, shift, width = _GENERAL[name]
        mask = (1 << 8 * width) - 1
        if width == 4:
            core.R[number] = value & mask
        else:
            core.R[number] = core.R[number] & ~(mask << shift) & M64 | (value & mask) << shift
    elif name in ("rflags", "eflags", "flags"):
        core.rflags = value & 0xFFFF_FFFF
    elif name in _PLAIN or name in _TABLES:
        setattr(core, _TABLES.get(name, name), value & M64)
    elif name[:2] == "dr" and name[2:] in _DEBUG:
        core.dr[int(name[2:])] = value & M64
    else:
        segment, field = _segment(core, name)
        setattr(segment, field, value & M64)
        if field == "selector" and core.mode.real:
            segment.base = (value & 0xFFFF) << 4


_DEBUG: Final = frozenset("01234567")


def _segment(core: Core, name: str) -> tuple[Segment, str]:
    register, _dot, field = name.partition(".")
    segments = dict(zip(SEGMENTS, core.segments, strict=True), tr=core.tr, ldt=core.ldt)
    if register not in segments or field not in ("", "base", "limit", "access"):
        raise KeyError(name)
    return segments[register], field or "selector"
