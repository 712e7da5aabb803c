"""The guest's page tables: guest-virtual to guest-physical addresses.

Source: Intel SDM volume 3, chapter 4 (formats: figures 4-4, 4-7, 4-11; rights: 4.6; accessed and
dirty flags: 4.8). Protection keys, SMAP and the shadow stack are left out.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from vfiokit.errors import UsageError

PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
LARGE: Final = 1 << 7
GLOBAL: Final = 1 << 8
NO_EXECUTE: Final = 1 << 63

FAULT_PRESENT: Final = 1 << 0
"""The page is there, but not for this access. Bits of the error code a page fault pushes."""
FAULT_WRITE: Final = 1 << 1
FAULT_USER: Final = 1 << 2
FAULT_RESERVED: Final = 1 << 3
FAULT_FETCH: Final = 1 << 4

READ: Final = 0
WRITE: Final = FAULT_WRITE
FETCH: Final = FAULT_FETCH
"""Kinds of access, as the bits they put into the error code."""

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000


class PageTables(NamedTuple):
    """A format of page tables."""

    name: str
    shifts: tuple[int, ...]
    """Lowest address bit that each level's index covers, from the root down."""
    entry_size: int
    """Bytes of an entry."""
    large: tuple[int, ...]
    """Shifts of the levels that may map a large page."""

    @property
    def levels(self) -> int:
        """Tables between the root and a 4 KiB page."""
        return len(self.shifts)


TWO_LEVEL: Final = PageTables("32-bit", (22, 12), 4, (22,))
PAE: Final = PageTables("PAE", (30, 21, 12), 8, (21,))
FOUR_LEVEL: Final = PageTables("4-level", (39, 30, 21, 12), 8, (30, 21))
FIVE_LEVEL: Final = PageTables("5-level", (48, 39, 30, 21, 12), 8, (30, 21))
FORMATS: Final = (TWO_LEVEL, PAE, FOUR_LEVEL, FIVE_LEVEL)


class Rights(NamedTuple):
    """The control bits that decide what an entry permits."""

    write_protect: bool = True
    """CR0.WP: the kernel, too, may not write read-only pages."""
    no_execute: bool = True
    """EFER.NXE: bit 63 means no execution; otherwise it has to be 0."""
    large_pages: bool = True
    """CR4.PSE, for 32-bit tables only."""
    smep: bool = False
    """CR4.SMEP: the kernel does not execute the user's pages."""


class TableMemory(Protocol):
    """Where page tables are read: guest-physical memory."""

    def read(self, gpa: int, width: int) -> int | None:
        """An entry; ``None`` where there is no RAM."""
        ...

    def write(self, gpa: int, width: int, value: int) -> None:
        """Store an entry whose accessed or dirty flag was set."""
        ...


class PageFault(Exception):  # noqa: N818 - the guest's event, not our error
    """No translation; ``error_code`` is what the guest's handler finds on its stack."""

    def __init__(self, vaddr: int, error_code: int) -> None:
        super().__init__(f"page fault at {vaddr:#x}, error code {error_code:#x}")
        self.vaddr = vaddr
        self.error_code = error_code


class Translation(NamedTuple):
    """Where an address leads."""

    gpa: int
    page_size: int
    writable: bool
    user: bool
    executable: bool


def walk(
    memory: TableMemory,
    tables: PageTables,
    root: int,
    vaddr: int,
    access: int = READ,
    rights: Rights = Rights(),  # noqa: B008 - a value
) -> Translation:
    """Translate ``vaddr`` through the tables at ``root`` (CR3) and set accessed and dirty flags.

    ``access`` is :data:`READ`, :data:`WRITE` or :data:`FETCH`, with :data:`FAULT_USER` for user
    mode. Raises :class:`PageFault`. Reads one entry a level; writes those whose flags change.
    """
    size = tables.entry_size
    index_mask = 4096 // size - 1
    table = root & (0xFFFF_FFE0 if tables is PAE else _ADDRESS)
    path: list[tuple[int, int]] = []
    permitted = WRITABLE | USER
    forbidden = 0
    for shift in tables.shifts:
        gpa = table + (vaddr >> shift & index_mask) * size
        entry = memory.read(gpa, size) or 0
        if not entry & PRESENT:
            raise PageFault(vaddr, _code(access, rights))
        if _reserved(entry, shift, tables, rights):
            raise PageFault(vaddr, _code(access, rights) | FAULT_PRESENT | FAULT_RESERVED)
        if not (tables is PAE and shift == 30):  # those four entries have neither rights nor flags
            permitted &= entry
            forbidden |= entry & NO_EXECUTE
            path.append((gpa, entry))
        table = entry & _ADDRESS
        if shift == 12 or _is_large(entry, shift, tables, rights):
            break
    page_size = 1 << shift
    found = Translation(
        _leaf_address(entry, shift, tables) | vaddr & page_size - 1,
        page_size,
        bool(permitted & WRITABLE),
        bool(permitted & USER),
        not forbidden,
    )
    if not _permits(found, access, rights):
        raise PageFault(vaddr, _code(access, rights) | FAULT_PRESENT)
    _mark(memory, path, size, access)
    return found


def _is_large(entry: int, shift: int, tables: PageTables, rights: Rights) -> bool:
    if not entry & LARGE or shift not in tables.large:
        return False
    return tables is not TWO_LEVEL or rights.large_pages


def _reserved(entry: int, shift: int, tables: PageTables, rights: Rights) -> bool:
    if tables is TWO_LEVEL:
        return False
    if entry & NO_EXECUTE and not rights.no_execute:
        return True
    if not entry & LARGE or shift == 12:
        return False
    # A large page starts at a multiple of its size; bit 12 is an attribute there. PS has to be 0
    # where there are no large pages.
    return shift not in tables.large or bool(entry & (1 << shift) - (1 << 13))


def _leaf_address(entry: int, shift: int, tables: PageTables) -> int:
    if tables is TWO_LEVEL and shift == 22:
        return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
    return entry & _ADDRESS & -1 << shift


def _permits(found: Translation, access: int, rights: Rights) -> bool:
    user = access & FAULT_USER
    if user and not found.user:
        return False
    if access & WRITE and not found.writable:
        return not user and not rights.write_protect
    if access & FETCH:
        return found.executable and not (rights.smep and not user and found.user)
    return True


def _code(access: int, rights: Rights) -> int:
    if access & FETCH and not (rights.no_execute or rights.smep):
        access &= ~FETCH  # without NX the processor does not tell fetches apart
    return access


def _mark(memory: TableMemory, path: list[tuple[int, int]], size: int, access: int) -> None:
    last = len(path) - 1
    for number, (gpa, entry) in enumerate(path):
        wanted = entry | ACCESSED
        if access & WRITE and number == last:
            wanted |= DIRTY
        if wanted != entry:
            memory.write(gpa, size, wanted)


class TableBuilder:
    """Writes page tables into guest memory, taking pages one after the other.

    ``view`` is the guest's RAM from ``base`` on; tables start at ``next_table`` (guest-physical,
    page aligned). :class:`UsageError` when they do not fit.
    """

    def __init__(
        self, view: memoryview, next_table: int, tables: PageTables = FOUR_LEVEL, base: int = 0
    ) -> None:
        self._view = view
        self._base = base
        self.tables = tables
        self.next_table = next_table
        self.root = self._new_table()
        """What goes into CR3."""

    def _new_table(self) -> int:
        gpa = self.next_table
        if gpa % 4096 or gpa < self._base or gpa + 4096 > self._base + len(self._view):
            raise UsageError(f"no RAM for a page table at gpa {gpa:#x}")
        self._view[gpa - self._base : gpa - self._base + 4096] = bytes(4096)
        self.next_table += 4096
        return gpa

    def map(
        self, vaddr: int, gpa: int, page_size: int = 4096, rights: int = WRITABLE | USER
    ) -> None:
        """Map one page; ``rights`` are the entry's bits, which go to the tables above as well."""
        size = self.tables.entry_size
        table = self.root
        wanted = page_size.bit_length() - 1
        if wanted != 12 and wanted not in self.tables.large:
            raise UsageError(f"{self.tables.name} tables have no pages of {page_size:#x} bytes")
        for shift in self.tables.shifts:
            slot = table + (vaddr >> shift & 4096 // size - 1) * size
            if shift == wanted:
                self._store(slot, gpa | rights | PRESENT | (LARGE if shift != 12 else 0))
                return
            entry = self._load(slot)
            if not entry & PRESENT:
                above = 0 if self.tables is PAE and shift == 30 else WRITABLE | USER
                entry = self._new_table() | PRESENT | above
                self._store(slot, entry)
            table = entry & _ADDRESS

    def _load(self, gpa: int) -> int:
        start = gpa - self._base
        return int.from_bytes(self._view[start : start + self.tables.entry_size], "little")

    def _store(self, gpa: int, entry: int) -> None:
        start = gpa - self._base
        size = self.tables.entry_size
        self._view[start : start + size] = entry.to_bytes(size, "little")
