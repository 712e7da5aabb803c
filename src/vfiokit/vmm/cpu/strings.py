"""String instructions: one element, or as many as stay within a page and reach no device.

Each returns whether the instruction is done; otherwise it is executed again from where the
registers then point, which is where an interrupt is taken.
"""

from __future__ import annotations

from vfiokit.vmm import paging
from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.core import DS, ES, FS, M64, Core
from vfiokit.vmm.cpu.mmu import Mmu
from vfiokit.vmm.cpu.system import System

_RCX, _RSI, _RDI = 1, 6, 7
_AT_ONCE = 4096
"""Elements before the loop gets to look for interrupts."""


class Strings:
    """The routines of MOVS, STOS, LODS, CMPS, SCAS, INS and OUTS.

    All take ``width`` of an element in bytes, ``rep`` (0 none, 1 REP or REPE, 2 REPNE), the
    number of the source's ``segment`` and the bytes of an ``address``.
    """

    def __init__(self, core: Core, mmu: Mmu, system: System) -> None:
        self._core = core
        self._mmu = mmu
        self._system = system

    # -- registers ------------------------------------------------------------------------------

    def _get(self, number: int, address: int) -> int:
        return self._core.R[number] & (1 << 8 * address) - 1

    def _set(self, number: int, address: int, value: int) -> None:
        registers = self._core.R
        mask = (1 << 8 * address) - 1
        if address == 2:
            registers[number] = registers[number] & ~mask | value & mask
        else:
            registers[number] = value & mask

    def _linear(self, segment: int, offset: int) -> int:
        core = self._core
        if core.mode.bits == 64:
            return offset if segment < FS else core.B[segment] + offset & M64
        return core.B[segment] + offset & 0xFFFF_FFFF

    def _advance(self, number: int, address: int, width: int, elements: int = 1) -> None:
        step = -width if self._core.system_flags & fl.DF else width
        self._set(number, address, self._get(number, address) + step * elements)

    def _repeat(self, rep: int, address: int) -> bool:
        """Whether one more element is due."""
        return not rep or self._get(_RCX, address) != 0

    def _count(self, rep: int, address: int, elements: int = 1) -> None:
        if rep:
            self._set(_RCX, address, self._get(_RCX, address) - elements)

    def _done(self, rep: int, address: int) -> bool:
        return not rep or self._get(_RCX, address) == 0

    def _pause(self, elements: int) -> bool:
        return self._core.touched or elements >= _AT_ONCE

    # -- moves ----------------------------------------------------------------------------------

    def movs(self, width: int, rep: int, segment: int, address: int) -> bool:
        """Copy from the source to ES:RDI."""
        elements = 0
        while self._repeat(rep, address):
            source = self._linear(segment, self._get(_RSI, address))
            target = self._linear(ES, self._get(_RDI, address))
            moved = self._copy_run(source, target, width, address) if rep else 0
            if not moved:
                self._core.journal.clear()
                value = self._mmu.load_last(source, width)
                self._mmu.store_last(target, width, value)
                moved = 1
            self._advance(_RSI, address, width, moved)
            self._advance(_RDI, address, width, moved)
            self._count(rep, address, moved)
            elements += moved
            if not rep or self._pause(elements):
                break
        return self._done(rep, address)

    def _copy_run(self, source: int, target: int, width: int, address: int) -> int:
        """Copy whole elements within both pages at once; 0 when that does not work."""
        run = self._run(width, address, source, target)
        if 0 < target - source < run * width:
            run = (target - source) // width  # what was just written is read again
        if run < 2:
            return 0
        from_page = self._mmu.view(source, paging.READ)
        to_page = self._mmu.view(target, paging.WRITE)
        if from_page is None or to_page is None:
            return 0
        start, to, length = source & 4095, target & 4095, run * width
        to_page[to : to + length] = bytes(from_page[start : start + length])
        return run

    def _run(self, width: int, address: int, *starts: int) -> int:
        if self._core.system_flags & fl.DF or self._core.replay:
            return 0
        limit = min((4096 - (start & 4095)) // width for start in starts)
        if address == 2:  # offsets may go round within the page
            limit = min(limit, *((0x10000 - self._get(each, 2)) // width for each in (_RSI, _RDI)))
        return min(self._get(_RCX, address), limit)

    def stos(self, width: int, rep: int, segment: int, address: int) -> bool:
        """Store the accumulator at ES:RDI."""
        del segment
        elements = 0
        value = self._core.R[0] & (1 << 8 * width) - 1
        while self._repeat(rep, address):
            target = self._linear(ES, self._get(_RDI, address))
            stored = self._fill_run(target, width, address, value) if rep else 0
            if not stored:
                self._core.journal.clear()
                self._mmu.store_last(target, width, value)
                stored = 1
            self._advance(_RDI, address, width, stored)
            self._count(rep, address, stored)
            elements += stored
            if not rep or self._pause(elements):
                break
        return self._done(rep, address)

    def _fill_run(self, target: int, width: int, address: int, value: int) -> int:
        run = self._run(width, address, target)
        page = self._mmu.view(target, paging.WRITE) if run > 1 else None
        if page is None:
            return 0
        start = target & 4095
        page[start : start + run * width] = value.to_bytes(width, "little") * run
        return run

    def lods(self, width: int, rep: int, segment: int, address: int) -> bool:
        """Load the accumulator."""
        while self._repeat(rep, address):
            self._core.journal.clear()
            source = self._linear(segment, self._get(_RSI, address))
            value = self._mmu.load_last(source, width)
            self._set(0, width, value) if width > 1 else self._set_al(value)
            self._advance(_RSI, address, width)
            self._count(rep, address)
            if not rep or self._core.touched:
                break
        return self._done(rep, address)

    def _set_al(self, value: int) -> None:
        self._core.R[0] = self._core.R[0] & ~0xFF | value

    # -- comparisons ----------------------------------------------------------------------------

    def cmps(self, width: int, rep: int, segment: int, address: int) -> bool:
        """Compare the source with ES:RDI."""
        elements = 0
        while self._repeat(rep, address):
            self._core.journal.clear()
            source = self._linear(segment, self._get(_RSI, address))
            target = self._linear(ES, self._get(_RDI, address))
            a = self._mmu.load_last(source, width)
            b = self._mmu.load_last(target, width)
            self._advance(_RSI, address, width)
            if self._compared(a, b, width, rep, address):
                return True
            elements += 1
            if self._pause(elements):
                break
        return self._done(rep, address)

    def scas(self, width: int, rep: int, segment: int, address: int) -> bool:
        """Compare the accumulator with ES:RDI."""
        del segment
        elements = 0
        while self._repeat(rep, address):
            self._core.journal.clear()
            target = self._linear(ES, self._get(_RDI, address))
            b = self._mmu.load_last(target, width)
            a = self._core.R[0] & (1 << 8 * width) - 1
            if self._compared(a, b, width, rep, address):
                return True
            elements += 1
            if self._pause(elements):
                break
        return self._done(rep, address)

    def _compared(self, a: int, b: int, width: int, rep: int, address: int) -> bool:
        """Set flags and registers after one element; whether it was the last."""
        self._advance(_RDI, address, width)
        self._count(rep, address)
        core = self._core
        difference = a - b & (1 << 8 * width) - 1
        core.L = core.C = (fl.code(fl.SUB, width), a, b, difference)
        return not rep or (difference == 0) is (rep == 2)

    # -- ports ----------------------------------------------------------------------------------

    def ins(self, width: int, rep: int, segment: int, address: int) -> bool:
        """From a port to ES:RDI."""
        del segment
        if not self._repeat(rep, address):
            return True
        target = self._linear(ES, self._get(_RDI, address))
        self._mmu.check_writable(target, width)  # before the device gives up its data
        value = self._system.port_in(self._core.R[2] & 0xFFFF, width)
        self._mmu.store_last(target, width, value)
        self._advance(_RDI, address, width)
        self._count(rep, address)
        return self._done(rep, address)

    def outs(self, width: int, rep: int, segment: int, address: int) -> bool:
        """From the source to a port."""
        if not self._repeat(rep, address):
            return True
        value = self._mmu.load_last(self._linear(segment, self._get(_RSI, address)), width)
        self._system.port_out_again(self._core.R[2] & 0xFFFF, width, value)
        self._advance(_RSI, address, width)
        self._count(rep, address)
        return self._done(rep, address)


__all__ = ["DS", "Strings"]
