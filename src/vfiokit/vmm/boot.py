"""Starting a processor where a program expects it: real mode, or 64-bit mode with flat segments.

What firmware and a boot loader would do. Works with every engine, by registers alone.
"""

from __future__ import annotations

from typing import Final

from vfiokit.errors import UsageError
from vfiokit.vmm.paging import TableBuilder
from vfiokit.vmm.vcpu import Vcpu

CODE_SELECTOR: Final = 0x08
DATA_SELECTOR: Final = 0x10
_GDT: Final = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
"""Nothing, 64-bit code, data; flat, ring 0, accessed."""
TABLES_LENGTH: Final = 0x8000
"""Bytes of RAM that :func:`enter_long_mode` needs for its tables."""

_LARGE_PAGE: Final = 1 << 21


def enter_real_mode(vcpu: Vcpu, ip: int, *, stack: int = 0) -> None:
    """Begin at ``ip`` in segment 0, with SP at ``stack``; all segments 0, interrupts off."""
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        vcpu.write_register(name, 0)
        vcpu.write_register(f"{name}.base", 0)
    vcpu.write_register("rip", ip)
    vcpu.write_register("rsp", stack)
    vcpu.write_register("rflags", 2)


def enter_long_mode(
    vcpu: Vcpu,
    ram: memoryview,
    rip: int,
    *,
    tables: int,
    stack: int,
    mapped: int = 1 << 32,
) -> None:
    """Begin at ``rip`` in 64-bit mode, ring 0, interrupts off.

    ``ram`` is the guest's RAM from guest-physical 0 on. A GDT and page tables that map the first
    ``mapped`` bytes onto themselves (2 MiB pages, at most 4 GiB) are written to
    :data:`TABLES_LENGTH` bytes at ``tables``. :class:`UsageError` when that is not whole pages
    within ``ram``. The IDT is empty.
    """
    if tables % 4096 or tables + TABLES_LENGTH > len(ram) or not 0 < mapped <= 1 << 32:
        raise UsageError(f"no room for the tables of 64-bit mode at gpa {tables:#x}")
    ram[tables : tables + 8 * len(_GDT)] = b"".join(each.to_bytes(8, "little") for each in _GDT)
    builder = TableBuilder(ram, tables + 4096)
    for gpa in range(0, mapped, _LARGE_PAGE):
        builder.map(gpa, gpa, _LARGE_PAGE)
    registers = {
        "cr4": 1 << 5,  # PAE
        "cr3": builder.root,
        "efer": 0x500,  # LME, LMA
        "cr0": 0x8000_0033,  # PG, PE, ET, NE, MP
        "gdt.base": tables,
        "gdt.limit": 8 * len(_GDT) - 1,
        "idt.base": 0,
        "idt.limit": 0,
        "cs": CODE_SELECTOR,
        "cs.base": 0,
        "cs.limit": 0xFFFF_FFFF,
        "cs.access": 0xA09B,
    }
    for name in ("ds", "es", "fs", "gs", "ss"):
        registers |= {
            name: DATA_SELECTOR,
            f"{name}.base": 0,
            f"{name}.limit": 0xFFFF_FFFF,
            f"{name}.access": 0xC093,
        }
    registers |= {"rip": rip, "rsp": stack, "rflags": 2}
    for name, value in registers.items():
        vcpu.write_register(name, value)
