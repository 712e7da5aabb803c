"""What a TLB miss of a guest costs: memory references of two-dimensional page walks, counted.

The guest's tables hold guest-physical addresses, so that every one of its entries is found only
after a walk of the second stage, and so is the page itself.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.vmm.cpu.ram import Ram
from vfiokit.vmm.ept import READ, WRITE, Ept
from vfiokit.vmm.paging import (
    FIVE_LEVEL,
    FOUR_LEVEL,
    PAE,
    TWO_LEVEL,
    PageTables,
    TableBuilder,
    walk,
)

GUEST_FORMATS: Final[dict[int, PageTables | None]] = {
    0: None, 2: TWO_LEVEL, 3: PAE, 4: FOUR_LEVEL, 5: FIVE_LEVEL,
}  # fmt: skip
"""Levels of the guest's tables; 0: paging is off."""
HOST_LEVELS: Final = (0, 1, 2, 3, 4, 5)
"""Levels of the second stage; 0: there is none, as on the host itself."""

_RAM: Final = 1 << 21
_TABLES: Final = 0x10_0000
_VADDR: Final = 0x4000_5678
_GPA: Final = 0x5000


class Walk(NamedTuple):
    """One measured translation."""

    guest_levels: int
    host_levels: int
    guest_references: int
    """Entries of the guest's tables that were read."""
    host_references: int
    """Entries of the second stage that were read."""

    @property
    def references(self) -> int:
        """All memory references before the access itself."""
        return self.guest_references + self.host_references

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {**self._asdict(), "references": self.references}


class TwoStageMemory:
    """Guest-physical memory behind a second stage, which counts what is read.

    Implements :class:`vfiokit.vmm.paging.TableMemory`.
    """

    def __init__(self, ram: Ram, ept: Ept | None) -> None:
        self._ram = ram
        self._ept = ept
        self.references = 0
        """Entries of the guest's tables read so far."""

    def host_physical(self, gpa: int, access: int = READ) -> int:
        """Through the second stage, where there is one."""
        return gpa if self._ept is None else self._ept.translate(gpa, access)[0]

    def read(self, gpa: int, width: int) -> int | None:
        """An entry of the guest's tables."""
        hpa = self.host_physical(gpa)
        self.references += 1
        return self._ram.read(hpa, width)

    def write(self, gpa: int, width: int, value: int) -> None:
        """Store an entry whose flags changed."""
        self._ram.write(self.host_physical(gpa, WRITE), width, value)


def measure(
    guest_levels: int, host_levels: int, *, guest_page: int = 4096, host_page: int = 4096
) -> Walk:
    """Build both stages, translate one address with nothing cached, and count.

    ``UsageError`` for levels or page sizes that there are not. The flags that the first walk sets
    are already set: the walk only reads.
    """
    if guest_levels not in GUEST_FORMATS or host_levels not in HOST_LEVELS:
        raise UsageError(
            f"no walk of {guest_levels} × {host_levels} levels",
            hint="the guest's tables have 0, 2, 3, 4 or 5 levels, the second stage 0 to 5",
        )
    tables = GUEST_FORMATS[guest_levels]
    view = memoryview(bytearray(_RAM))
    ept = _second_stage(host_levels, host_page) if host_levels else None
    memory = TwoStageMemory(Ram([(0, view)]), ept)
    vaddr, root = _VADDR, 0
    if tables is not None:
        builder = TableBuilder(view, _TABLES, tables)
        builder.map(vaddr & -guest_page, _GPA & -guest_page, guest_page)
        root = builder.root
    _translate(memory, tables, root, vaddr)
    memory.references = 0
    before = ept.references if ept else 0
    _translate(memory, tables, root, vaddr)
    return Walk(guest_levels, host_levels, memory.references, ept.references - before if ept else 0)


def _second_stage(levels: int, page: int) -> Ept:
    ept = Ept(levels)
    ept.map(0, 0, max(min(_RAM, ept.limit) & -page, page), page_size=page)
    return ept


def _translate(memory: TwoStageMemory, tables: PageTables | None, root: int, vaddr: int) -> int:
    gpa = _GPA if tables is None else walk(memory, tables, root, vaddr).gpa
    return memory.host_physical(gpa)


def table() -> list[Walk]:
    """Every combination of levels, with 4 KiB pages.

    The measured guest has 2 MiB, which a second stage of one level can just map.
    """
    return [measure(guest, host) for guest in GUEST_FORMATS for host in HOST_LEVELS]


def large_pages(levels: int = 4) -> list[tuple[int, int, Walk]]:
    """``levels`` × ``levels`` with larger pages on either side: page sizes and the walk."""
    sizes = (4096, 1 << 21, 1 << 30)
    return [
        (guest, host, measure(levels, levels, guest_page=guest, host_page=host))
        for guest in sizes
        for host in sizes
    ]
