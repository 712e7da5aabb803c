"""The processor in Python: runs blocks, delivers interrupts, leaves for the hypervisor.

A subset of x86-64 in real, protected and long mode: the integer instructions, and what a kernel
needs. Left out: x87 and SSE (#UD), tasks and call gates, virtual-8086 mode, debug exceptions,
segment limits, SMAP and protection keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vfiokit.errors import UsageError
from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.block import Block
from vfiokit.vmm.cpu.core import Core
from vfiokit.vmm.cpu.event import DF, Fault, GuestEvent, Restart, Trap
from vfiokit.vmm.cpu.mmu import Mmu
from vfiokit.vmm.cpu.ram import Ram
from vfiokit.vmm.cpu.registers import read_register, write_register
from vfiokit.vmm.cpu.strings import Strings
from vfiokit.vmm.cpu.system import System
from vfiokit.vmm.cpu.translate import Translator
from vfiokit.vmm.ept import Ept
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.vcpu import Bus

_ANSWERS = {ExitReason.CPUID: 4}
"""Values that :meth:`Interpreter.complete` takes; one for the others."""


class Interpreter:
    """A virtual processor (:class:`vfiokit.vmm.vcpu.Vcpu`) that needs nothing of the host.

    ``memory`` are ``(gpa, view)`` pairs of RAM, writable whole pages; with ``ept``, a second stage
    of translation, they are at host-physical addresses. ``bus`` is asked for everything else.
    It begins in real mode with all registers 0.

    Exits of a store that is trapped, and of OUTS, come before the instruction is done: the next
    :meth:`run` finishes it. Those of OUT, WRMSR and HLT come behind it. DMA into code is seen at
    the next exit or access of a device; call :meth:`invalidate` where that is not enough.
    """

    def __init__(
        self, memory: Iterable[tuple[int, memoryview]], bus: Bus, *, ept: Ept | None = None
    ) -> None:
        self._core = Core()
        self._mmu = Mmu(self._core, Ram(memory), bus, ept)
        self._system = System(self._core, self._mmu)
        strings = Strings(self._core, self._mmu, self._system)
        self._translator = Translator(self._core, self._mmu, self._system, strings)
        self._pending: set[int] = set()
        self._waiting: Exit | None = None
        self._left = 0
        self._dead = ""
        self._core.refresh()

    def close(self) -> None:
        """Let go of guest memory; the processor cannot run any more."""
        self._mmu.release()

    # -- the protocol ---------------------------------------------------------------------------

    @property
    def instructions(self) -> int:
        """Instructions retired so far. A repeated string instruction may count several times."""
        return self._core.retired

    @property
    def interruptible(self) -> bool:
        """Whether an interrupt would be taken at once."""
        core = self._core
        return bool(core.system_flags & fl.IF) and not (core.shadow or core.replay or self._waiting)

    @property
    def pending(self) -> tuple[int, ...]:
        """Vectors that were injected and not yet taken, highest first."""
        return tuple(sorted(self._pending, reverse=True))

    def inject(self, vector: int) -> None:
        """Deliver an external interrupt; :class:`UsageError` unless ``vector`` is 32 to 255.

        Real mode has handlers below 32 as well: there 0 to 255.
        """
        if not (0 if self._core.mode.real else 32) <= vector <= 255:
            raise UsageError(f"vector {vector} is none of an external interrupt (32 to 255)")
        self._pending.add(vector)
        self._core.attention = True

    def complete(self, *values: int) -> None:
        """Finish the last exit; :class:`UsageError` when it takes other values, or none."""
        waiting = self._waiting
        if waiting is None:
            raise UsageError("the last exit needs no answer")
        wanted = _ANSWERS.get(waiting.reason, 1)
        if len(values) != wanted:
            raise UsageError(f"{waiting.reason.value} is answered by {wanted} value(s)")
        self._core.replay += values
        self._waiting = None

    def retry(self) -> None:
        """Repeat the instruction of the last exit from its beginning instead of answering.

        For a hypervisor that changed the second stage after a violation.
        """
        self._waiting = None
        self._core.replay.clear()

    def invalidate(self, gpa: int, length: int) -> None:
        """Forget what was translated from RAM that somebody else wrote.

        With a second stage, ``gpa`` is the host-physical address.
        """
        for page in range(gpa & -4096, gpa + length, 4096):
            self._mmu.drop_code(page)

    def flush(self) -> None:
        """Forget all translations of addresses, as after writing CR3 or INVEPT."""
        self._mmu.flush()

    def read_register(self, name: str) -> int:
        """A register's value; ``KeyError`` for a name that there is not.

        Beside the protocol's names: ``al`` … ``r15d``, ``flags``, ``cs.base``, ``cs.limit``,
        ``cs.access``, ``gdt.base``, ``gdt.limit``, ``idt.base``, ``tr``, ``ldt``, ``dr7``, ``cpl``.
        """
        return read_register(self._core, name)

    def write_register(self, name: str, value: int) -> None:
        """Set a register; takes effect with the next :meth:`run`.

        Writing ``rip`` ends a HLT or a shutdown and forgets an unfinished exit. A segment's
        selector sets its base in real mode; in the other modes set ``cs.base`` and so on, or let
        the guest load it.
        """
        write_register(self._core, name, value)
        if name == "rip":
            self._core.halted = False
            self._dead = ""
            self.retry()
        self._core.refresh()
        self._mmu.flush()

    # -- running --------------------------------------------------------------------------------

    def run(self, budget: int) -> Exit:
        """Run until something has to be decided outside, or ``budget`` instructions are done."""
        core = self._core
        if self._dead:
            return Exit(ExitReason.SHUTDOWN, detail=self._dead)
        if self._waiting is not None:
            return Exit(
                ExitReason.FAIL_ENTRY, detail=f"{self._waiting.reason.value} awaits complete()"
            )
        self._mmu.check_second_stage()
        self._mmu.drop_changed_code()
        core.touched = False
        core.attention = True
        core.budget = self._left = budget
        try:
            leaving = self._run()
        except Trap as trap:
            leaving = self._trapped(trap)
        core.retired += budget - self._left
        core.budget = self._left = 0
        return leaving

    def _run(self) -> Exit:
        core = self._core
        while True:
            leaving = None
            try:
                if core.attention:
                    leaving = self._attend()
                if leaving is None and self._left > 0:
                    self._run_blocks()
                    continue
            except Fault as fault:
                leaving = self._take(fault)
                if leaving is None:
                    continue
            return leaving or Exit(ExitReason.INTR)

    def _run_blocks(self) -> None:
        """Run blocks until something needs attention, or nothing is left to do."""
        core = self._core
        known = self._mmu.fast.get
        left = self._left
        block = None
        try:
            while left > 0:
                block = known(core.rip)
                if block is None or block.length > left or core.shadow:
                    block = self._find(left)
                left = block.function(left)
                if core.attention:
                    break
            self._left = left
        except Restart as event:
            self._left, index = self._stopped(block, event, left)
            if block is not None:
                self._mmu.end_block_at(block.addresses[index])
        except GuestEvent as event:
            self._left, _index = self._stopped(block, event, left)
            raise

    def _find(self, left: int) -> Block:
        """The block to run now, made where there is none."""
        core = self._core
        if core.shadow:
            core.shadow = False
            core.attention = True
            return self._translator.block(1)
        block = self._translator.block()
        if block.length > left:
            return self._translator.block(1)
        self._mmu.fast[core.rip] = block
        return block

    def _stopped(self, block: Block | None, event: GuestEvent, left: int) -> tuple[int, int]:
        """Where in ``block`` an event happened: instructions left, and the one's number."""
        trace = event.__traceback__
        trace = trace.tb_next if trace is not None else None
        if block is None or trace is None or trace.tb_frame.f_code is not block.function.__code__:
            return left, 0  # it could not be fetched
        if block.loops:
            left = trace.tb_frame.f_locals["n"]
        index = block.index_at(trace.tb_lineno)
        self._core.rip = block.rips[index]
        return left - index, index

    def _attend(self) -> Exit | None:
        """What has to be done between two instructions; an exit to leave with."""
        core = self._core
        core.attention = False
        if core.touched:
            core.touched = False
            self._mmu.drop_changed_code()
        if core.leaving is not None:
            leaving, core.leaving = core.leaving, None
            return leaving
        if core.replay:
            return None
        core.journal.clear()
        if self._pending and core.system_flags & fl.IF and not core.shadow:
            self._take_interrupt()
        if core.halted:
            return Exit(ExitReason.HLT)
        return None

    # -- events ---------------------------------------------------------------------------------

    def _trapped(self, trap: Trap) -> Exit:
        core = self._core
        core.attention = True
        core.replay, core.journal = core.journal, []
        if not trap.answered:
            self._waiting = trap.leaving
        elif trap.leaving.width:
            core.replay.append(0)  # a store is finished by repeating everything but itself
        else:
            core.replay.clear()  # nothing was reached yet: repeat everything
        return trap.leaving

    def _take_interrupt(self) -> None:
        vector = max(self._pending)
        self._pending.discard(vector)
        self._core.halted = False
        try:
            self._system.deliver(vector, self._core.rip)
        except Trap as trap:
            self._pending.add(vector)
            self._repeat_after(trap)
            raise

    def _take(self, fault: Fault) -> Exit | None:
        """Deliver an exception, or the one that comes of trying; an exit when all fail."""
        core = self._core
        core.replay.clear()
        core.journal.clear()
        first = fault.vector
        while True:
            if fault.address is not None:
                core.cr2 = fault.address
            try:
                self._system.deliver(fault.vector, core.rip, error_code=fault.error_code)
            except Trap as trap:
                self._repeat_after(trap)
                raise
            except Fault as second:
                if fault.vector == DF:
                    detail = f"triple fault: exception {first} at {core.rip:#x} has no handler"
                    self._dead = detail
                    return Exit(ExitReason.SHUTDOWN, detail=detail)
                fault = Fault(DF) if fault.doubles(second) else second
            else:
                core.attention = True
                return None

    @staticmethod
    def _repeat_after(trap: Trap) -> None:
        # What the processor itself reads and writes to enter a handler is no access of an
        # instruction that could be answered: the hypervisor repairs the tables, and all repeats.
        trap.answered = True
        trap.leaving.width = 0

    # -- state ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of the processor as plain data: numbers, lists and dictionaries."""
        waiting = self._waiting
        return {
            "engine": "interpreter",
            "core": self._core.state(),
            "pending": sorted(self._pending),
            "waiting": None if waiting is None else exit_state(waiting),
            "dead": self._dead,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; :class:`UsageError` for another engine's."""
        if state.get("engine") != "interpreter":
            raise UsageError(f"not the state of an interpreter: {state.get('engine')}")
        self._core.load(state["core"])
        self._pending = set(state["pending"])
        waiting = state["waiting"]
        self._waiting = None if waiting is None else exit_from(waiting)
        self._dead = state["dead"]
        self._mmu.flush()


def exit_state(leaving: Exit) -> dict[str, Any]:
    """An exit as plain data."""
    return {
        "reason": leaving.reason.value,
        "address": leaving.address,
        "width": leaving.width,
        "write": leaving.write,
        "value": leaving.value,
        "arguments": list(leaving.arguments),
        "detail": leaving.detail,
    }


def exit_from(state: dict[str, Any]) -> Exit:
    """The exit that :func:`exit_state` described."""
    facts = dict(state)
    facts["reason"] = ExitReason(facts["reason"])
    facts["arguments"] = tuple(facts["arguments"])
    return Exit(**facts)
