"""Interrupts and exceptions through the IVT or IDT; descriptors; stacks they need.

Source: Intel SDM volume 3, chapters 5 and 6. Tasks are left out: a task gate is a #GP.
"""

from __future__ import annotations

from vfiokit.vmm.cpu import core as cr
from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.core import CS, SS, Core, Segment
from vfiokit.vmm.cpu.event import GP, NP, TS, WITH_ERROR_CODE, Fault
from vfiokit.vmm.cpu.mmu import Mmu

_INTERRUPT_GATES = frozenset({6, 14})
_TRAP_GATES = frozenset({7, 15})


class Delivery:
    """Loads descriptors, pushes and pops, and enters handlers."""

    def __init__(self, core: Core, mmu: Mmu) -> None:
        self.core = core
        self.mmu = mmu

    # -- memory of the system -------------------------------------------------------------------

    def supervisor_load(self, linear: int, width: int) -> int:
        """A load by the processor itself: privileged whatever runs."""
        core, cpl = self.core, self.core.cpl
        if not cpl:
            return self.mmu.load_last(linear, width)
        core.cpl = 0
        try:
            number = self.mmu.load_last(linear, width)
        finally:
            core.cpl = cpl
            self.mmu.flush()
        return number

    def peek(self, width: int, count: int) -> list[int]:
        """``count`` values of ``width`` bytes from the top of the stack on."""
        core = self.core
        return [
            self.mmu.load_last(
                self._stack_linear(
                    self.moved_stack(core.R[4], number * width), core.segments[SS].base
                ),
                width,
            )
            for number in range(count)
        ]

    def moved_stack(self, stack: int, by: int) -> int:
        """RSP moved within the width that the stack segment gives it."""
        bits = self.core.mode.stack_bits
        mask = (1 << bits) - 1
        return stack & ~mask & cr.M64 | stack + by & mask if bits == 16 else stack + by & mask

    def _stack_linear(self, stack: int, base: int) -> int:
        bits = self.core.mode.stack_bits
        if bits == 64:
            return stack
        return base + (stack & (1 << bits) - 1) & 0xFFFF_FFFF

    def push_values(self, values: list[int], width: int, stack: int, base: int) -> int:
        """Push in order; the new RSP. Nothing is kept when one of them faults."""
        mask = (1 << 8 * width) - 1
        places = []
        for value in values:
            stack = self.moved_stack(stack, -width)
            places.append((self._stack_linear(stack, base), value & mask))
        for linear, _value in places:
            self.mmu.check_writable(linear, width)
        for linear, value in places:
            self.mmu.store_last(linear, width, value)
        return stack

    # -- descriptors ----------------------------------------------------------------------------

    def descriptor(self, selector: int) -> int:
        """The eight bytes that a selector names; #GP outside the table."""
        core = self.core
        base, limit = core.gdt_base, core.gdt_limit
        if selector & 4:
            base, limit = core.ldt.base, core.ldt.limit
        if (selector | 7) > limit:
            raise Fault(GP, selector & ~3)
        return self.supervisor_load(base + (selector & ~7), 8)

    @staticmethod
    def decode_descriptor(selector: int, descriptor: int) -> Segment:
        """A segment register's content from a descriptor."""
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
        if descriptor >> 55 & 1:
            limit = limit << 12 | 0xFFF
        base = descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56 & 0xFF) << 24
        return Segment(selector, base, limit, descriptor >> 40 & 0xF0FF)

    def load_code(self, selector: int, cpl: int) -> None:
        """Load CS for a transfer that ends in ring ``cpl``; the caller sets RIP."""
        core = self.core
        segment = core.segments[CS]
        if core.mode.real:
            segment.selector, segment.base = selector, selector << 4
        else:
            if not selector & ~3:
                raise Fault(GP)
            made = self.decode_descriptor(selector, self.descriptor(selector))
            level = made.access >> 5 & 3
            conforming = made.access & 4
            if made.access & 0x18 != 0x18 or (level > cpl if conforming else level != cpl):
                raise Fault(GP, selector & ~3)
            if not made.access & cr.PRESENT:
                raise Fault(NP, selector & ~3)
            made.selector = selector & ~3 | cpl
            segment.load(made.state())
        changed = core.cpl != cpl
        core.cpl = cpl
        core.refresh()
        if changed:
            self.mmu.flush()
        else:
            self.mmu.fast.clear()

    # -- delivery -------------------------------------------------------------------------------

    def deliver(
        self, vector: int, rip: int, *, error_code: int | None = None, software: bool = False
    ) -> None:
        """Enter the handler of ``vector``; ``rip`` is where it will return to.

        Raises :class:`Fault` when the tables do not permit it, with nothing changed.
        """
        if self.core.mode.real:
            self._deliver_real(vector, rip)
            return
        if vector not in WITH_ERROR_CODE or software:
            error_code = None
        self._deliver_protected(vector, rip, error_code, software=software)

    def _deliver_real(self, vector: int, rip: int) -> None:
        core = self.core
        if vector * 4 + 3 > core.idt_limit:
            raise Fault(GP)
        entry = self.mmu.load_last(core.idt_base + vector * 4, 4)
        values = [core.rflags, core.segments[CS].selector, rip]
        core.R[4] = self.push_values(values, 2, core.R[4], core.segments[SS].base)
        core.system_flags &= ~(fl.IF | fl.TF | fl.AC)
        segment = core.segments[CS]
        segment.selector, segment.base = entry >> 16, entry >> 16 << 4
        core.rip = entry & 0xFFFF
        core.refresh()
        self.mmu.fast.clear()

    def _deliver_protected(
        self, vector: int, rip: int, error_code: int | None, *, software: bool
    ) -> None:
        core = self.core
        size = 16 if core.long_mode else 8
        outside = vector * 8 + 2 + (0 if software else 1)
        if vector * size + size - 1 > core.idt_limit:
            raise Fault(GP, outside)
        gate = self.supervisor_load(core.idt_base + vector * size, 8)
        kind = gate >> 40 & 0x1F
        if kind not in _INTERRUPT_GATES | _TRAP_GATES or (size == 16 and kind < 14):
            raise Fault(GP, outside)
        if software and gate >> 45 & 3 < core.cpl:
            raise Fault(GP, outside)
        if not gate >> 47 & 1:
            raise Fault(NP, outside)
        offset = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000
        if size == 16:
            offset |= self.supervisor_load(core.idt_base + vector * size + 8, 4) << 32
        elif kind < 14:
            offset &= 0xFFFF
        self._enter(gate, offset, rip, error_code, 8 if size == 16 else 4 if kind >= 14 else 2)

    def _enter(self, gate: int, offset: int, rip: int, error_code: int | None, width: int) -> None:
        core = self.core
        selector = gate >> 16 & 0xFFFF
        if not selector & ~3:
            raise Fault(GP)
        made = self.decode_descriptor(selector, self.descriptor(selector))
        level = core.cpl if made.access & 4 else made.access >> 5 & 3
        if made.access & 0x18 != 0x18 or level > core.cpl:
            raise Fault(GP, selector & ~3)
        if not made.access & cr.PRESENT:
            raise Fault(NP, selector & ~3)
        saved = core.state()
        old_flags, old_stack = core.rflags, core.R[4]
        old_selectors = core.segments[SS].selector, core.segments[CS].selector
        inner = level < core.cpl
        try:
            stack = self._switch_stack(level, gate >> 32 & 7, width, inner=inner)
            made.selector = selector & ~3 | level
            core.segments[CS].load(made.state())
            core.cpl = level
            core.refresh()
            if inner:
                self.mmu.flush()
            values = [old_flags, old_selectors[1], rip]
            if inner or width == 8:
                values = [old_selectors[0], old_stack, *values]
            if error_code is not None:
                values.append(error_code)
            core.R[4] = self.push_values(values, width, stack, core.segments[SS].base)
        except Fault:
            core.load(saved)
            self.mmu.flush()
            raise
        core.system_flags &= ~(fl.TF | fl.NT | fl.RF | fl.VM)
        if gate >> 40 & 0x1F in _INTERRUPT_GATES:
            core.system_flags &= ~fl.IF
        core.rip = offset
        self.mmu.fast.clear()

    def _switch_stack(self, level: int, ist: int, width: int, *, inner: bool) -> int:
        """The handler's stack pointer, after loading SS where the ring changes."""
        core = self.core
        if width == 8:
            stack = core.R[4]
            if ist:
                stack = self._task_field(0x24 + 8 * (ist - 1), 8)
            elif inner:
                stack = self._task_field(4 + 8 * level, 8)
            if inner:
                core.segments[SS].load([level, 0, 0, cr.PRESENT | level << 5])
            return stack & ~15
        if not inner:
            return core.R[4]
        stack = self._task_field(4 + 8 * level, 4)
        selector = self._task_field(8 + 8 * level, 2)
        made = self.decode_descriptor(selector, self.descriptor(selector))
        if made.access & 0x9A != 0x92 or made.access >> 5 & 3 != level:
            raise Fault(TS, selector & ~3)
        core.segments[SS].load(made.state())
        return stack

    def _task_field(self, offset: int, width: int) -> int:
        tr = self.core.tr
        if offset + width - 1 > tr.limit:
            raise Fault(TS, tr.selector & ~3)
        return self.supervisor_load(tr.base + offset, width)
