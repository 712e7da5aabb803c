"""Privileged instructions, each an explicit case; segments, far transfers, ports, MSRs."""

from __future__ import annotations

from typing import Final

from vfiokit.vmm.cpu import core as cr
from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.core import CS, FS, GS, SS, Segment
from vfiokit.vmm.cpu.delivery import Delivery
from vfiokit.vmm.cpu.event import DE, GP, UD, Fault, Trap
from vfiokit.vmm.exit import Exit, ExitReason

MSR_TSC: Final = 0x10
MSR_APIC_BASE: Final = 0x1B
_SPECIAL: Final = {
    0xC000_0080: "efer",
    0xC000_0081: "star",
    0xC000_0082: "lstar",
    0xC000_0083: "cstar",
    0xC000_0084: "sfmask",
    0xC000_0102: "kernel_gs_base",
    MSR_APIC_BASE: "apic_base",
}
_SEGMENT_BASES: Final = {0xC000_0100: FS, 0xC000_0101: GS}
_EFER: Final = cr.EFER_SCE | cr.EFER_LME | cr.EFER_NXE
_FLUSHING_CR0: Final = cr.CR0_PG | cr.CR0_WP | cr.CR0_PE
_FLUSHING_CR4: Final = cr.CR4_PAE | cr.CR4_PSE | cr.CR4_SMEP | cr.CR4_LA57 | 1 << 7
_LOW: Final = 0xFFFF_FFFF


class System(Delivery):
    """The routines that generated code calls for what it does not do itself."""

    # -- leaving the guest ----------------------------------------------------------------------

    def ask(self, leaving: Exit, *, answered: bool = False) -> int:
        """The answer from outside to ``leaving``: leave now, or return it the second time."""
        core = self.core
        core.attention = True
        if core.replay:
            value = core.replay.pop(0)
            core.journal.append(value)
            return value
        raise Trap(leaving, answered=answered)

    def _leave(self, leaving: Exit) -> None:
        self.core.leaving = leaving
        self.core.attention = True

    def privileged(self) -> None:
        """Refuse everything above ring 0."""
        if self.core.cpl:
            raise Fault(GP)

    def _may_do_io(self) -> None:
        core = self.core
        if not core.mode.real and core.cpl > (core.system_flags & fl.IOPL) >> 12:
            raise Fault(GP)  # there is no I/O permission bitmap here

    def halt(self) -> None:
        """HLT."""
        self.privileged()
        self.core.halted = True
        self._leave(Exit(ExitReason.HLT))

    def port_in(self, port: int, width: int) -> int:
        """IN and INS."""
        self._may_do_io()
        return self.ask(Exit(ExitReason.IO, port, width)) & (1 << 8 * width) - 1

    def port_out(self, port: int, width: int, value: int) -> None:
        """OUT: the exit comes with the instruction done."""
        self._may_do_io()
        self._leave(Exit(ExitReason.IO, port, width, write=True, value=value))

    def port_out_again(self, port: int, width: int, value: int) -> None:
        """OUTS: the exit comes first, because registers change afterwards."""
        self._may_do_io()
        self.ask(Exit(ExitReason.IO, port, width, write=True, value=value), answered=True)

    def cpuid(self) -> None:
        """CPUID: four answers, RAX to RDX."""
        core = self.core
        core.attention = True
        if not core.replay:
            raise Trap(
                Exit(ExitReason.CPUID, core.R[0] & _LOW, value=core.R[1] & _LOW), answered=False
            )
        for number in (0, 3, 1, 2):  # EAX, EBX, ECX, EDX by their numbers
            core.R[number] = core.replay.pop(0) & _LOW

    def hypercall(self) -> None:
        """VMCALL, VMMCALL: ring 0 only, as Linux has it."""
        self.privileged()
        registers = self.core.R
        arguments = (registers[3], registers[1], registers[2], registers[6])
        leaving = Exit(ExitReason.HYPERCALL, registers[0], arguments=arguments)
        registers[0] = self.ask(leaving) & cr.M64

    # -- flags ----------------------------------------------------------------------------------

    def clear_interrupts(self) -> None:
        """CLI."""
        self._may_do_io()
        self.core.system_flags &= ~fl.IF

    def set_interrupts(self) -> None:
        """STI: interrupts come after one more instruction."""
        self._may_do_io()
        core = self.core
        if not core.system_flags & fl.IF:
            core.system_flags |= fl.IF
            core.shadow = True
        core.attention = True

    def load_flags(self, value: int, width: int) -> None:
        """POPF: what the privilege level may change."""
        core = self.core
        allowed = fl.WRITABLE if width > 2 else fl.WRITABLE & 0xFFFF
        if core.cpl:
            allowed &= ~fl.IOPL
            if core.cpl > (core.system_flags & fl.IOPL) >> 12:
                allowed &= ~fl.IF
        core.rflags = core.rflags & ~allowed | value & allowed

    def clear_task_switched(self) -> None:
        """CLTS."""
        self.privileged()
        self.core.cr0 &= ~8

    # -- registers of the system ----------------------------------------------------------------

    def selector(self, number: int) -> int:
        """A segment register's selector."""
        return self.core.segments[number].selector

    def read_control(self, number: int) -> int:
        """MOV from CR0 to CR8."""
        self.privileged()
        if number not in (0, 2, 3, 4, 8):
            raise Fault(UD)
        value: int = getattr(self.core, f"cr{number}")
        return value if self.core.mode.bits == 64 else value & _LOW

    def write_control(self, number: int, value: int) -> None:
        """MOV to CR0 to CR8."""
        self.privileged()
        core = self.core
        if number == 0:
            self._write_cr0(value & _LOW)
        elif number == 2:
            core.cr2 = value
        elif number == 3:
            core.cr3 = value & ~(1 << 63)
            self.mmu.flush()
        elif number == 4:
            if core.long_mode and not value & cr.CR4_PAE:
                raise Fault(GP)
            changed, core.cr4 = core.cr4 ^ value, value
            if changed & _FLUSHING_CR4:
                self.mmu.flush()
        elif number == 8:
            core.cr8 = value & 15
        else:
            raise Fault(UD)

    def _write_cr0(self, value: int) -> None:
        core = self.core
        if value & cr.CR0_PG:
            if not value & cr.CR0_PE:
                raise Fault(GP)
            if core.efer & cr.EFER_LME and not core.cr4 & cr.CR4_PAE:
                raise Fault(GP)
        elif core.mode.bits == 64:
            raise Fault(GP)
        changed, core.cr0 = core.cr0 ^ value, value | cr.CR0_ET
        core.refresh()
        if changed & _FLUSHING_CR0:
            self.mmu.flush()

    def load_machine_status(self, value: int) -> None:
        """LMSW: sets PE but never clears it."""
        self.privileged()
        self._write_cr0(self.core.cr0 & ~14 | value & 15)

    def read_debug(self, number: int) -> int:
        """MOV from a debug register; breakpoints have no effect."""
        self.privileged()
        return self.core.dr[number]

    def write_debug(self, number: int, value: int) -> None:
        """MOV to a debug register."""
        self.privileged()
        self.core.dr[number] = value

    def invalidate_page(self, linear: int) -> None:
        """INVLPG."""
        self.privileged()
        self.mmu.flush_page(linear)

    def load_table(self, name: str, linear: int) -> None:
        """LGDT and LIDT."""
        self.privileged()
        core = self.core
        limit = self.mmu.load_last(linear, 2)
        base = self.mmu.load_last(linear + 2, 8 if core.mode.bits == 64 else 4)
        setattr(core, f"{name}_limit", limit)
        setattr(core, f"{name}_base", base)

    def store_table(self, name: str, linear: int) -> None:
        """SGDT and SIDT."""
        core = self.core
        self.mmu.store_last(linear, 2, getattr(core, f"{name}_limit"))
        width = 8 if core.mode.bits == 64 else 4
        base: int = getattr(core, f"{name}_base")
        self.mmu.store_last(linear + 2, width, base & (1 << 8 * width) - 1)

    def load_task(self, selector: int) -> None:
        """LTR: the segment becomes busy."""
        self.privileged()
        if not selector & ~3 or self.core.mode.real:
            raise Fault(UD if self.core.mode.real else GP)
        self.core.tr.load(self._system_descriptor(selector).state())
        self.core.tr.access |= 2

    def load_ldt(self, selector: int) -> None:
        """LLDT."""
        self.privileged()
        if self.core.mode.real:
            raise Fault(UD)
        if selector & ~3:
            self.core.ldt.load(self._system_descriptor(selector).state())
        else:
            self.core.ldt.load([selector, 0, 0, 0])

    def _system_descriptor(self, selector: int) -> Segment:
        low = self.descriptor(selector)
        made = self.decode_descriptor(selector, low)
        if made.access & 0x10 or not made.access & cr.PRESENT:
            raise Fault(GP, selector & ~3)
        if self.core.long_mode:
            address = self.core.gdt_base + (selector & ~7) + 8
            made.base |= self.supervisor_load(address, 4) << 32
        return made

    # -- model-specific registers ---------------------------------------------------------------

    def read_tsc(self, left: int) -> None:
        """RDTSC: one tick an instruction."""
        ticks = self.core.retired + (self.core.budget - left) + self.core.tsc_offset
        self.core.R[0] = ticks & _LOW
        self.core.R[2] = ticks >> 32 & _LOW

    def read_msr(self) -> None:
        """RDMSR: those of the processor here, all others outside."""
        self.privileged()
        core = self.core
        number = core.R[1] & _LOW
        if number in _SPECIAL:
            value: int = getattr(core, _SPECIAL[number])
        elif number in _SEGMENT_BASES:
            value = core.segments[_SEGMENT_BASES[number]].base
        elif number == MSR_TSC:
            value = core.retired + core.tsc_offset
        else:
            value = self.ask(Exit(ExitReason.RDMSR, number, 8))
        core.R[0] = value & _LOW
        core.R[2] = value >> 32 & _LOW

    def write_msr(self) -> None:
        """WRMSR: those of the processor here, all others outside, with the instruction done."""
        self.privileged()
        core = self.core
        number = core.R[1] & _LOW
        value = (core.R[2] & _LOW) << 32 | core.R[0] & _LOW
        if number in _SPECIAL:
            self._write_special(number, value)
        elif number in _SEGMENT_BASES:
            core.segments[_SEGMENT_BASES[number]].base = value
            core.refresh()
        elif number == MSR_TSC:
            core.tsc_offset = value - core.retired
        else:
            self._leave(Exit(ExitReason.WRMSR, number, 8, write=True, value=value))

    def _write_special(self, number: int, value: int) -> None:
        core = self.core
        if _SPECIAL[number] == "efer":
            if value & ~(_EFER | cr.EFER_LMA):
                raise Fault(GP)
            value = value & _EFER | core.efer & cr.EFER_LMA
            if (value ^ core.efer) & cr.EFER_LME and core.cr0 & cr.CR0_PG:
                raise Fault(GP)
            if (value ^ core.efer) & cr.EFER_NXE:
                self.mmu.flush()
        setattr(core, _SPECIAL[number], value)

    def swap_gs(self) -> None:
        """SWAPGS."""
        if self.core.mode.bits != 64:
            raise Fault(UD)
        self.privileged()
        core = self.core
        gs = core.segments[GS]
        gs.base, core.kernel_gs_base = core.kernel_gs_base, gs.base
        core.refresh()

    # -- segments and far transfers -------------------------------------------------------------

    def load_segment(self, number: int, selector: int) -> None:
        """MOV and POP to a segment register."""
        core = self.core
        if number == CS:
            raise Fault(UD)
        segment = core.segments[number]
        if core.mode.real:
            segment.selector, segment.base = selector, selector << 4
        elif not selector & ~3:
            if number == SS and core.mode.bits != 64:
                raise Fault(GP)
            base = segment.base if number >= FS and core.long_mode else 0
            segment.load([selector, base, 0, 0])
        else:
            made = self.decode_descriptor(selector, self.descriptor(selector))
            self._check_data_segment(number, made)
            segment.load(made.state())
        if number == SS:
            core.shadow = core.attention = True
        before = core.mode
        core.refresh()
        if core.mode != before:
            self.mmu.fast.clear()

    def _check_data_segment(self, number: int, made: Segment) -> None:
        access, error = made.access, made.selector & ~3
        writable = access & 0x1A == 0x12
        if number == SS:
            if not writable or access >> 5 & 3 != self.core.cpl:
                raise Fault(GP, error)
        elif not access & 0x10 or access & 0x0A == 8:
            raise Fault(GP, error)
        if not access & cr.PRESENT:
            raise Fault(12 if number == SS else 11, error)

    def far_jump(self, selector: int, offset: int) -> None:
        """JMP to another code segment."""
        self.load_code(selector, self.core.cpl)
        self.core.rip = offset

    def far_call(self, selector: int, offset: int, width: int, following: int) -> None:
        """CALL of another code segment; call gates and tasks are a #GP."""
        core = self.core
        core.R[4] = self.push_values(
            [core.segments[CS].selector, following], width, core.R[4], core.segments[SS].base
        )
        self.load_code(selector, core.cpl)
        core.rip = offset

    def far_return(self, width: int, extra: int) -> None:
        """RETF, to the same or an outer ring."""
        self._return(width, extra, with_flags=False)

    def interrupt_return(self, width: int) -> None:
        """IRET, IRETD, IRETQ."""
        self._return(width, 0, with_flags=True)

    def _return(self, width: int, extra: int, *, with_flags: bool) -> None:
        core = self.core
        count = 3 if with_flags else 2
        values = self.peek(width, count)
        rip, selector = values[0], values[1] & 0xFFFF
        outer = not core.mode.real and selector & 3 > core.cpl
        popped = count * width + extra
        with_stack = outer or (with_flags and core.mode.bits == 64)
        if with_stack:
            values = self.peek(width, count + 2)
        flags = values[2] if with_flags else 0
        cpl = core.cpl
        if core.mode.real:
            segment = core.segments[CS]
            segment.selector, segment.base = selector, selector << 4
            core.refresh()
            self.mmu.fast.clear()
        else:
            self.load_code(selector, selector & 3)
        if with_stack:
            self._return_stack(values[count], values[count + 1] & 0xFFFF)
        else:
            core.R[4] = self.moved_stack(core.R[4], popped)
        core.rip = rip
        if with_flags:
            self._return_flags(flags, width, cpl)

    def _return_stack(self, stack: int, selector: int) -> None:
        core = self.core
        segment = core.segments[SS]
        if selector & ~3:
            made = self.decode_descriptor(selector, self.descriptor(selector))
            segment.load(made.state())
        else:
            segment.load([selector, 0, 0, cr.PRESENT | core.cpl << 5])
        core.R[4] = stack
        core.refresh()

    def _return_flags(self, value: int, width: int, cpl: int) -> None:
        core = self.core
        allowed = fl.WRITABLE if width > 2 else fl.WRITABLE & 0xFFFF
        if cpl:
            allowed &= ~fl.IOPL
            if cpl > (core.system_flags & fl.IOPL) >> 12:
                allowed &= ~fl.IF
        core.rflags = core.rflags & ~allowed | value & allowed

    def software_interrupt(self, vector: int, following: int) -> None:
        """INT n and INT3: return to the instruction after it."""
        self.deliver(vector, following, software=True)

    def undefined(self) -> None:
        """UD2 and what this processor does not have."""
        raise Fault(UD)

    def system_call(self, following: int) -> None:
        """SYSCALL in 64-bit mode."""
        core = self.core
        if not core.efer & cr.EFER_SCE or core.mode.bits != 64:
            raise Fault(UD)
        core.R[1] = following
        core.R[11] = core.rflags & ~fl.RF
        selector = core.star >> 32 & 0xFFFC
        core.cpl = 0
        core.segments[CS].load([selector, 0, _LOW, 0xA09B])
        core.segments[SS].load([selector + 8, 0, _LOW, 0xC093])
        core.rip = core.lstar
        core.rflags = core.rflags & ~core.sfmask
        core.refresh()
        self.mmu.flush()

    def system_return(self, width: int) -> None:
        """SYSRET to 64-bit mode; to compatibility mode it is a #UD here."""
        core = self.core
        self.privileged()
        if not core.efer & cr.EFER_SCE or core.mode.bits != 64 or width != 8:
            raise Fault(UD)
        selector = core.star >> 48 & 0xFFFF
        core.cpl = 3
        core.segments[CS].load([selector + 16 | 3, 0, _LOW, 0xA0FB])
        core.segments[SS].load([selector + 8 | 3, 0, _LOW, 0xC0F3])
        core.rip = core.R[1]
        core.rflags = core.R[11] & fl.WRITABLE
        core.refresh()
        self.mmu.flush()

    # -- PUSHA and POPA -------------------------------------------------------------------------

    def push_all(self, width: int) -> None:
        """PUSHA: eight registers, with the stack pointer as it was."""
        core = self.core
        core.R[4] = self.push_values(list(core.R[:8]), width, core.R[4], core.segments[SS].base)

    def pop_all(self, width: int) -> None:
        """POPA: the stack pointer's place is skipped."""
        core = self.core
        values = self.peek(width, 8)
        stack = self.moved_stack(core.R[4], 8 * width)
        mask = (1 << 8 * width) - 1
        for number, value in zip(reversed(range(8)), values, strict=True):
            core.R[number] = core.R[number] & ~mask & cr.M64 | value
        core.R[4] = stack


def divide(dividend: int, divisor: int, width: int) -> tuple[int, int]:
    """DIV: quotient and remainder; #DE when there is none that fits."""
    if not divisor:
        raise Fault(DE)
    quotient, remainder = divmod(dividend, divisor)
    if quotient >> 8 * width:
        raise Fault(DE)
    return quotient, remainder


def divide_signed(dividend: int, divisor: int, width: int) -> tuple[int, int]:
    """IDIV: towards zero; the remainder has the dividend's sign."""
    bits = 8 * width
    if dividend >> 2 * bits - 1:
        dividend -= 1 << 2 * bits
    if divisor >> bits - 1:
        divisor -= 1 << bits
    if not divisor:
        raise Fault(DE)
    quotient = abs(dividend) // abs(divisor)
    if (dividend < 0) is not (divisor < 0):
        quotient = -quotient
    if not -(1 << bits - 1) <= quotient < 1 << bits - 1:
        raise Fault(DE)
    remainder = dividend - quotient * divisor
    mask = (1 << bits) - 1
    return quotient & mask, remainder & mask
