"""The registers of one processor, as the generated code and its routines share them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.exit import Exit

GENERAL: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs")
"""In the order of the encoding."""
ES, CS, SS, DS, FS, GS = range(6)
SYSTEM_SEGMENTS: Final = ("tr", "ldt")

M64: Final = (1 << 64) - 1

CR0_PE: Final = 1 << 0
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR0_ET: Final = 1 << 4
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
CR4_SMEP: Final = 1 << 20
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11

PRESENT: Final = 0x80
"""P of a segment's access rights (the descriptor's bits [55:40], its limit's bits cleared)."""
LONG: Final = 1 << 13
BIG: Final = 1 << 14

_CONTROL: Final = (
    *("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "star", "lstar", "cstar", "sfmask"),
    *("kernel_gs_base", "tsc_offset", "apic_base"),
    *("gdt_base", "gdt_limit", "idt_base", "idt_limit"),
)


class Mode(NamedTuple):
    """What an instruction's meaning depends on besides its bytes."""

    bits: int
    """Default operand and address size: 16, 32 or 64."""
    stack_bits: int
    cpl: int
    real: bool


class Segment:
    """A segment register with its hidden part."""

    __slots__ = ("access", "base", "limit", "selector")

    def __init__(
        self, selector: int = 0, base: int = 0, limit: int = 0xFFFF, access: int = 0x93
    ) -> None:
        self.selector = selector
        self.base = base
        self.limit = limit
        """In bytes, inclusive."""
        self.access = access
        """Type [3:0], S, DPL [6:5], P, AVL [12], L [13], D/B [14], G [15]."""

    def state(self) -> list[int]:
        """Plain data."""
        return [self.selector, self.base, self.limit, self.access]

    def load(self, state: list[int]) -> None:
        """Become what :meth:`state` described."""
        self.selector, self.base, self.limit, self.access = state


class Core:
    """All that an instruction can read or change, except memory.

    ``R`` are the 16 general registers, ``B`` the bases of the six segments as linear addresses are
    made from them; both keep their identity, because generated code holds them.
    """

    def __init__(self) -> None:
        self.R = [0] * 16
        self.B = [0] * 6
        self.rip = 0
        self.L: fl.Lazy = (fl.EXPLICIT, 0, 0, 0)
        self.C: fl.Lazy = self.L
        self.system_flags = 0
        """Flags that are no arithmetic ones; bit 1, which is always set, is not kept."""
        self.cr0 = CR0_ET
        self.cr2 = self.cr3 = self.cr4 = self.cr8 = 0
        self.efer = self.star = self.lstar = self.cstar = self.sfmask = 0
        self.kernel_gs_base = self.tsc_offset = 0
        self.apic_base = 0xFEE0_0900
        self.gdt_base = self.idt_base = 0
        self.gdt_limit = self.idt_limit = 0xFFFF
        self.dr = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.segments = [Segment() for _ in SEGMENTS]
        self.segments[CS].access = 0x9B
        self.tr = Segment(access=0x8B)
        self.ldt = Segment(access=0x82)
        self.cpl = 0
        self.mode = Mode(16, 16, 0, real=True)
        self.retired = 0
        """Instructions done."""
        self.budget = 0
        """Instructions this run may still do; kept up between blocks only."""
        self.halted = False
        self.shadow = False
        """No interrupt before one more instruction: after STI and loads of SS."""
        self.attention = False
        """The loop has to look at the fields below before the next block."""
        self.touched = False
        """A device was reached: its DMA may have changed code."""
        self.leaving: Exit | None = None
        self.journal: list[int] = []
        """What the devices answered to the current instruction so far."""
        self.replay: list[int] = []
        """Answers for the instruction that is repeated."""

    # -- flags ----------------------------------------------------------------------------------

    def flags(self) -> int:
        """The arithmetic flags, worked out."""
        if self.L[0] or self.L is not self.C:
            value = fl.arithmetic(self.L) | fl.carry(self.C)
            self.L = self.C = (fl.EXPLICIT, value, 0, 0)
            return value
        return self.L[1]

    def set_flags(self, value: int) -> None:
        """Replace the arithmetic flags."""
        self.L = self.C = (fl.EXPLICIT, value & fl.ARITHMETIC, 0, 0)

    @property
    def rflags(self) -> int:
        """All flags."""
        return self.flags() | self.system_flags | 2

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.set_flags(value)
        self.system_flags = value & ~fl.ARITHMETIC & ~2
        self.attention = True

    # -- mode -----------------------------------------------------------------------------------

    @property
    def long_mode(self) -> bool:
        """EFER.LMA: four-level paging and 64-bit system structures."""
        return bool(self.efer & EFER_LMA)

    def refresh(self) -> None:
        """Work out what follows from control registers and segments."""
        if self.cr0 & CR0_PG and self.efer & EFER_LME:
            self.efer |= EFER_LMA
        else:
            self.efer &= ~EFER_LMA
        code, stack = self.segments[CS].access, self.segments[SS].access
        real = not self.cr0 & CR0_PE
        if self.long_mode and code & LONG:
            bits = stack_bits = 64
        else:
            bits = 32 if code & BIG else 16
            stack_bits = 32 if stack & BIG else 16
        self.mode = Mode(bits, stack_bits, self.cpl, real)
        for index, segment in enumerate(self.segments):
            self.B[index] = segment.base if bits != 64 or index >= FS else 0

    @property
    def linear_rip(self) -> int:
        """Where the next instruction is, before paging."""
        if self.mode.bits == 64:
            return self.rip
        return (self.B[CS] + self.rip) & 0xFFFF_FFFF

    # -- state ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "general": list(self.R),
            "rip": self.rip,
            "rflags": self.rflags,
            "control": {name: getattr(self, name) for name in _CONTROL},
            "debug": list(self.dr),
            "segments": [each.state() for each in self.segments],
            "tr": self.tr.state(),
            "ldt": self.ldt.state(),
            "cpl": self.cpl,
            "retired": self.retired,
            "halted": self.halted,
            "shadow": self.shadow,
            "replay": list(self.replay),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.R[:] = state["general"]
        self.rip = state["rip"]
        self.rflags = state["rflags"]
        for name in _CONTROL:
            setattr(self, name, state["control"][name])
        self.dr[:] = state["debug"]
        for segment, saved in zip(self.segments, state["segments"], strict=True):
            segment.load(saved)
        self.tr.load(state["tr"])
        self.ldt.load(state["ldt"])
        self.cpl = state["cpl"]
        self.retired = state["retired"]
        self.halted = state["halted"]
        self.shadow = state["shadow"]
        self.replay = list(state["replay"])
        self.journal = []
        self.attention = True
        self.leaving = None
        self.refresh()
