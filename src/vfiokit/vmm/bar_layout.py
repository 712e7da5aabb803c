"""How a BAR is cut into what is mapped and what traps, by QEMU's rules.

Source: QEMU ``hw/vfio/region.c`` (``vfio_region_setup``), ``hw/vfio/pci.c``
(``vfio_pci_fixup_msix_region``, ``vfio_pci_relocate_msix``, ``vfio_sub_page_bar_update_mapping``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vfiokit.errors import UsageError
from vfiokit.pci.capability.msix import ENTRY_SIZE, Structure
from vfiokit.vfio.region import SparseArea

_GIB = 1 << 30
RELOCATIONS = ("off", "auto", *(f"bar{index}" for index in range(6)))


class BarShape(NamedTuple):
    """A BAR as the device has it, or as the guest shall see it."""

    size: int
    """Bytes; 0 for none."""
    memory: bool = True
    wide: bool = False
    prefetchable: bool = False


class MsixPlace(NamedTuple):
    """Where the guest finds table and pending bits of MSI-X."""

    table: Structure
    pending: Structure
    relocated: bool = False
    """Whether they are elsewhere than the device has them."""


def mappable_areas(
    size: int,
    areas: Sequence[SparseArea],
    table: Structure | None,
    *,
    msix_mappable: bool,
    page_size: int = 4096,
) -> tuple[SparseArea, ...]:
    """The parts of a BAR of ``size`` bytes to map; ``areas`` are those that the kernel offers.

    Where the kernel does not say that the MSI-X ``table`` may be mapped along, its pages are cut
    out of a map of the whole BAR. A kernel that names several areas is taken at its word.
    """
    offered = tuple(area for area in areas if area.length)
    if table is None or msix_mappable or offered != (SparseArea(0, size),):
        return offered
    start = table.offset // page_size * page_size
    end = min(-(-(table.offset + table.length) // page_size) * page_size, size)
    cut = (SparseArea(0, start), SparseArea(end, size - end))
    return tuple(area for area in cut if area.length > 0)


def grown_length(size: int, areas: Sequence[SparseArea], address: int, page_size: int) -> int:
    """Bytes to map for a BAR below one page: the page, if the guest put it at a page's start.

    What else lies in that page wins over it. 0 where nothing is grown.
    """
    if size >= page_size or tuple(areas) != (SparseArea(0, size),) or address % page_size:
        return 0
    return page_size


def relocate_msix(
    shapes: Sequence[BarShape], place: MsixPlace, choice: str, page_size: int = 4096
) -> tuple[tuple[BarShape, ...], MsixPlace]:
    """Move table and pending bits to where they cost no map; ``choice`` as ``x-msix-relocation``.

    A BAR that the device lacks is made for them; one that it has is doubled, and they get the
    upper half. ``auto`` knows of no device that needs it, as in QEMU. Raises :class:`UsageError`
    for a BAR that cannot take them.
    """
    if choice not in RELOCATIONS:
        raise UsageError(f"MSI-X relocation {choice!r} is none of {', '.join(RELOCATIONS)}")
    if choice in ("off", "auto"):
        return tuple(shapes), place
    target = int(choice[3:])
    shape = shapes[target]
    if shape.size and not shape.memory:
        raise UsageError(f"BAR {target} is of I/O ports: MSI-X cannot move there")
    if target and shapes[target - 1].size and shapes[target - 1].wide:
        raise UsageError(f"BAR {target} is the upper half of BAR {target - 1}")
    if not shape.wide and shape.size > _GIB:
        raise UsageError(f"BAR {target} is 32-bit and too large to be doubled")
    needed = -(-(place.table.length + place.pending.length) // page_size) * page_size
    needed = 1 << (needed - 1).bit_length()
    if shape.size:
        size = max(shape.size * 2, needed * 2)
        made, offset = shape._replace(size=size), size // 2
    else:
        wide = target < 5 and not shapes[target + 1].size
        made, offset = BarShape(needed, wide=wide, prefetchable=wide), 0
    moved = tuple(made if index == target else each for index, each in enumerate(shapes))
    table = Structure(target, offset, place.table.length)
    pending = Structure(target, offset + place.table.length, place.pending.length)
    return moved, MsixPlace(table, pending, relocated=True)


def msix_place(table_register: int, pending_register: int, count: int) -> MsixPlace:
    """Where the capability's registers say that table and pending bits of ``count`` vectors are."""
    pending_length = (count + 63) // 64 * 8
    return MsixPlace(
        Structure(table_register & 7, table_register & ~7, count * ENTRY_SIZE),
        Structure(pending_register & 7, pending_register & ~7, pending_length),
    )
