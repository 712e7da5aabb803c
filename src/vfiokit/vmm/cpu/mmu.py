"""Loads and stores: translation look-aside buffers, RAM, devices, and stores to code.

The buffers map a page's number to a view of the page cast to the width of the access, so that the
generated code reaches RAM by two look-ups. They hold only what needs no look at anything else: a
page that code was translated from is not in the writers' one, so that stores to code come here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from vfiokit.vmm import ept as second_stage
from vfiokit.vmm import paging
from vfiokit.vmm.cpu import core as cr
from vfiokit.vmm.cpu.core import Core
from vfiokit.vmm.cpu.event import GP, PF, Fault, Restart, Trap
from vfiokit.vmm.cpu.ram import CodePage, Ram
from vfiokit.vmm.ept import Ept, EptViolation
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.vcpu import Bus

if TYPE_CHECKING:
    from vfiokit.vmm.cpu.block import Block

_FORMAT: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_SECOND: Final = {
    paging.READ: second_stage.READ,
    paging.WRITE: second_stage.WRITE,
    paging.FETCH: second_stage.EXECUTE,
}


class Mmu:
    """Memory as the processor sees it.

    With ``ept`` the addresses of ``ram`` are host-physical, otherwise guest-physical.
    """

    def __init__(self, core: Core, ram: Ram, bus: Bus, ept: Ept | None) -> None:
        self.core = core
        self.ram = ram
        self.bus = bus
        self.ept = ept
        self.readers: dict[int, dict[int, memoryview]] = {width: {} for width in _FORMAT}
        self.writers: dict[int, dict[int, memoryview]] = {width: {} for width in _FORMAT}
        self._pages: dict[int, int] = {}
        """Linear page and kind of access, packed → guest-physical page."""
        self.fast: dict[int, Block] = {}
        """Instruction pointer → block, under the present translation and mode."""
        self.blocks: dict[tuple[object, ...], Block] = {}
        """Every block that is still true."""
        self.code: dict[int, CodePage] = {}
        """Address of a page in RAM → what was translated from it."""
        self.sites: set[int] = set()
        """Addresses in RAM of instructions that end their block."""
        self._generation = 0

    # -- translation ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all translations: CR3 was written, or rights changed."""
        for each in (*self.readers.values(), *self.writers.values()):
            each.clear()
        self._pages.clear()
        self.fast.clear()

    def flush_page(self, linear: int) -> None:
        """Forget the translation of one page (INVLPG)."""
        for each in (*self.readers.values(), *self.writers.values()):
            each.pop(linear >> 12, None)
        for access in range(32):
            self._pages.pop(linear >> 12 << 5 | access, None)
        self.fast.clear()

    def check_second_stage(self) -> None:
        """Forget translations that the hypervisor changed."""
        if self.ept is not None and self.ept.generation != self._generation:
            self._generation = self.ept.generation
            self.flush()

    def physical(self, linear: int, access: int) -> int:
        """Guest-physical address; raises :class:`Fault`."""
        core = self.core
        if not core.cr0 & cr.CR0_PG:
            return linear & 0xFFFF_FFFF
        if core.cpl == 3:
            access |= paging.FAULT_USER
        key = linear >> 12 << 5 | access
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = self._walk(linear, access) & -4096
        return page | linear & 4095

    def _walk(self, linear: int, access: int) -> int:
        core = self.core
        tables = paging.TWO_LEVEL
        if core.cr4 & cr.CR4_PAE:
            tables = paging.PAE
        if core.long_mode:
            tables = paging.FIVE_LEVEL if core.cr4 & cr.CR4_LA57 else paging.FOUR_LEVEL
            width = 57 if tables is paging.FIVE_LEVEL else 48
            if (linear >> width - 1) + 1 & (1 << 65 - width) - 2:
                raise Fault(GP)
        rights = paging.Rights(
            bool(core.cr0 & cr.CR0_WP),
            bool(core.efer & cr.EFER_NXE),
            bool(core.cr4 & cr.CR4_PSE),
            bool(core.cr4 & cr.CR4_SMEP),
        )
        try:
            return paging.walk(self, tables, core.cr3, linear, access, rights).gpa
        except paging.PageFault as fault:
            raise Fault(PF, fault.error_code, linear) from None

    def read(self, gpa: int, width: int) -> int | None:
        """An entry of the page tables (:class:`vfiokit.vmm.paging.TableMemory`)."""
        return self.ram.read(self._table_address(gpa, second_stage.READ), width)

    def write(self, gpa: int, width: int, value: int) -> None:
        """Store an entry of the page tables."""
        self.ram.write(self._table_address(gpa, second_stage.WRITE), width, value)

    def _table_address(self, gpa: int, access: int) -> int:
        if self.ept is None:
            return gpa
        try:
            return self.ept.translate(gpa, access)[0]
        except EptViolation as violation:
            raise Trap(
                Exit(
                    ExitReason.MMIO,
                    gpa,
                    write=access == second_stage.WRITE,
                    detail=f"{violation.detail}, by a walk of the guest's page tables",
                ),
                answered=True,
            ) from None

    def _host(self, gpa: int, access: int) -> int | None:
        """Address in RAM; ``None`` where the second stage does not permit a load or a store."""
        if self.ept is None:
            return gpa
        try:
            return self.ept.translate(gpa, _SECOND[access])[0]
        except EptViolation as violation:
            if self.core.replay and access != paging.FETCH:
                return None
            raise Trap(Exit(ExitReason.MMIO, gpa, detail=violation.detail), answered=True) from None

    def fetch(self, linear: int) -> tuple[int, memoryview]:
        """Address in RAM of code, and its page; raises :class:`Fault` or :class:`Trap`."""
        gpa = self.physical(linear, paging.FETCH)
        address = self._host(gpa, paging.FETCH)
        page = None if address is None else self.ram.page(address)
        if address is None or page is None:
            raise Trap(
                Exit(ExitReason.MMIO, gpa, detail="instructions cannot be fetched from a device"),
                answered=True,
            )
        return address, page

    # -- loads ----------------------------------------------------------------------------------

    def load(self, linear: int, width: int) -> int:
        """A load by an instruction that is not the last of its block."""
        return self._load(linear, width, last=False)

    def load_last(self, linear: int, width: int) -> int:
        """A load by the last instruction of a block, which may reach a device."""
        return self._load(linear, width, last=True)

    def load_modify(self, linear: int, width: int) -> int:
        """As :meth:`load`, for what is stored there again: a page fault is one of a store."""
        self.physical(linear, paging.WRITE)
        return self._load(linear, width, last=False)

    def load_modify_last(self, linear: int, width: int) -> int:
        """As :meth:`load_last`, for what is stored there again."""
        self.physical(linear, paging.WRITE)
        return self._load(linear, width, last=True)

    def _load(self, linear: int, width: int, *, last: bool) -> int:
        offset = linear & 4095
        if offset + width > 4096:
            return self._load_across(linear, width, last=last)
        gpa = self.physical(linear, paging.READ)
        try:
            address = self._host(gpa, paging.READ)
        except Trap as trap:
            raise self._data_trap(trap, width, last=last) from None
        page = None if address is None else self.ram.page(address)
        if page is None:
            if not last:
                raise Restart
            return self._device_load(gpa, width)
        if not offset % width:
            view = self.readers[width][linear >> 12] = page.cast(_FORMAT[width])
            return view[offset // width]
        return int.from_bytes(page[offset : offset + width], "little")

    def _load_across(self, linear: int, width: int, *, last: bool) -> int:
        mask = cr.M64 if self.core.mode.bits == 64 else 0xFFFF_FFFF
        parts = (
            self._load(linear + number & mask, 1, last=last) << 8 * number
            for number in range(width)
        )
        return sum(parts)

    def _device_load(self, gpa: int, width: int) -> int:
        core = self.core
        core.attention = True
        if core.replay:
            value: int | None = core.replay.pop(0)
        else:
            core.touched = True
            value = self.bus.read(gpa, width)
        if value is None:
            raise Trap(Exit(ExitReason.MMIO, gpa, width), answered=False)
        core.journal.append(value)
        return value & (1 << 8 * width) - 1

    def _data_trap(
        self, trap: Trap, width: int, *, last: bool, write: bool = False, value: int = 0
    ) -> Trap | Restart:
        if not last:
            return Restart()
        leaving = trap.leaving
        leaving.width, leaving.write, leaving.value = width, write, value
        trap.answered = write
        return trap

    # -- stores ---------------------------------------------------------------------------------

    def store(self, linear: int, width: int, value: int) -> None:
        """A store by an instruction that is not the last of its block."""
        self._store(linear, width, value, last=False)

    def store_last(self, linear: int, width: int, value: int) -> None:
        """A store by the last instruction of a block: it may reach a device, or change code."""
        self._store(linear, width, value, last=True)

    def _store(self, linear: int, width: int, value: int, *, last: bool) -> None:
        offset = linear & 4095
        if offset + width > 4096:
            self._store_across(linear, width, value, last=last)
            return
        gpa = self.physical(linear, paging.WRITE)
        try:
            address = self._host(gpa, paging.WRITE)
        except Trap as trap:
            raise self._data_trap(trap, width, last=last, write=True, value=value) from None
        page = None if address is None else self.ram.page(address)
        if address is None or page is None:
            if not last:
                raise Restart
            self._device_store(gpa, width, value)
            return
        code = self.code.get(address & -4096)
        if code is not None:
            self._store_to_code(code, address, width, value, last=last)
        elif offset % width:
            page[offset : offset + width] = value.to_bytes(width, "little")
        else:
            view = self.writers[width][linear >> 12] = page.cast(_FORMAT[width])
            view[offset // width] = value

    def _store_across(self, linear: int, width: int, value: int, *, last: bool) -> None:
        mask = cr.M64 if self.core.mode.bits == 64 else 0xFFFF_FFFF
        self.physical(linear + width - 1 & mask, paging.WRITE)  # a fault leaves nothing half done
        for number in range(width):
            self._store(linear + number & mask, 1, value >> 8 * number & 0xFF, last=last)

    def _device_store(self, gpa: int, width: int, value: int) -> None:
        core = self.core
        core.attention = True
        if core.replay:
            core.journal.append(core.replay.pop(0))
            return
        core.touched = True
        if not self.bus.write(gpa, width, value):
            raise Trap(Exit(ExitReason.MMIO, gpa, width, write=True, value=value), answered=True)
        core.journal.append(0)

    def view(self, linear: int, access: int) -> memoryview | None:
        """The page at ``linear`` for many bytes at once; ``None`` for what needs a closer look.

        Raises what a load or store there raises.
        """
        gpa = self.physical(linear, access)
        if self.ept is not None:
            try:
                gpa = self.ept.translate(gpa, _SECOND[access])[0]
            except EptViolation:
                return None
        if access == paging.WRITE and gpa & -4096 in self.code:
            return None
        return self.ram.page(gpa)

    def check_writable(self, linear: int, width: int) -> None:
        """Raise what a store there would raise, if it is RAM or nothing at all."""
        if linear >> 12 not in self.writers[width] or linear & width - 1:
            self.physical(linear, paging.WRITE)

    # -- code -----------------------------------------------------------------------------------

    def _store_to_code(
        self, code: CodePage, address: int, width: int, value: int, *, last: bool
    ) -> None:
        offset = address & 4095
        hits = (
            offset < code.end
            and offset + width > code.start
            and any(block.overlaps(address, width) for block in code.blocks)
        )
        if hits and not last:
            raise Restart
        code.view[offset : offset + width] = value.to_bytes(width, "little")
        if hits:
            self.drop_code(address & -4096)
        else:
            code.snapshot = bytes(code.view[code.start : code.end])

    def keep(self, block: Block) -> None:
        """Remember a new block, and watch the pages that it was translated from."""
        self.blocks[block.key] = block
        for address, length in block.pieces:
            page = address & -4096
            code = self.code.get(page)
            if code is None:
                view = self.ram.page(page)
                if view is None:  # unreachable: it was fetched from there
                    continue
                code = self.code[page] = CodePage(view)
                for each in self.writers.values():
                    each.clear()
            code.add(block, address - page, address - page + length)

    def drop_code(self, page: int) -> None:
        """Forget what was translated from the page at ``page``, an address in RAM."""
        code = self.code.pop(page, None)
        if code is None:
            return
        for block in code.blocks:
            if self.blocks.get(block.key) is block:
                del self.blocks[block.key]
        self.fast.clear()

    def drop_changed_code(self) -> None:
        """Forget what was translated from bytes that are others now: somebody did DMA there."""
        changed = [page for page, code in self.code.items() if code.changed()]
        for page in changed:
            self.drop_code(page)

    def end_block_at(self, address: int) -> None:
        """From now on the instruction at ``address`` in RAM is the last of its block."""
        self.sites.add(address)
        code = self.code.get(address & -4096)
        for block in code.blocks if code else ():
            if block.contains_inside(address):
                self.blocks.pop(block.key, None)
        self.fast.clear()

    def release(self) -> None:
        """Let go of guest memory."""
        self.flush()
        self.blocks.clear()
        self.code.clear()
        self.ram.release()
