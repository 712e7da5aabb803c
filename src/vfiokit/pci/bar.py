"""BARs with their sizes, and which of their bytes a virtual machine may map.

Sizes come from the kernel's record of the device (:class:`~vfiokit.pci.topology.Resource`):
finding them anew would mean writing to the device.
Sources: Linux ``include/linux/ioport.h`` (flags), ``drivers/vfio/pci/vfio_pci_core.c``
(``vfio_pci_probe_mmaps``: which BARs can be mapped).
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.errors import ConfigRangeError, UsageError
from vfiokit.pci.base_address import Kind, base_addresses
from vfiokit.pci.capability import msix
from vfiokit.pci.topology import Function, Resource

IORESOURCE_IO = 0x100
IORESOURCE_MEM = 0x200
IORESOURCE_PREFETCH = 0x2000
IORESOURCE_MEM_64 = 0x100000
IORESOURCE_UNSET = 0x20000000

_ROM_INDEX = 6
_BAR_COUNT = {0: 6, 1: 2}


class Bar(NamedTuple):
    """One BAR of a function, or its expansion ROM."""

    index: int  # type: ignore[assignment]  # tuple.index is not missed
    """0 to 5, counted in registers; 6 for the ROM, as Linux counts resources."""
    kind: Kind
    prefetchable: bool
    address: int
    """Where the kernel placed it (bytes); the register's content where that was not recorded.

    0 when unassigned.
    """
    size: int | None
    """Bytes; ``None`` when only configuration bytes are known."""


class Window(NamedTuple):
    """A byte range of a BAR that is either mapped into a virtual machine or trapped."""

    offset: int
    """Bytes from the start of the BAR."""
    length: int
    """Bytes."""
    trapped: bool
    """Whether accesses must go to the hypervisor."""
    reason: str
    """Why it is trapped, or what to heed when mapping; empty for plain device memory."""


def bars(function: Function) -> tuple[Bar, ...]:
    """The BARs that ``function`` has, in index order; never raises.

    From the kernel's record where there is one. Without it from the registers, which cannot tell
    sizes, nor an unassigned 32-bit BAR from none. A VF's registers read 0 by specification: it
    has BARs only where the kernel recorded them.
    """
    if function.resources:
        return tuple(
            _recorded(resource)
            for resource in sorted(function.resources)
            if 0 <= resource.index < _ROM_INDEX and _is_bar(resource)
        )
    if function.is_virtual or _is_absent(function):
        return ()
    config = function.config
    count = _BAR_COUNT.get(function.header_type, 0)
    values = [
        config.u32(0x10 + 4 * index) for index in range(count) if config.has(0x10 + 4 * index, 4)
    ]
    return tuple(Bar(*found, None) for found in base_addresses(values))


def rom(function: Function) -> Bar | None:
    """The expansion ROM of ``function``, where it has one; never raises."""
    if function.resources:
        for resource in function.resources:
            if resource.index == _ROM_INDEX and _is_bar(resource):
                # The kernel may flag a ROM prefetchable; its register has no such bit.
                return _recorded(resource)._replace(prefetchable=False)
        return None
    offset = {0: 0x30, 1: 0x38}.get(function.header_type)
    if offset is None or function.is_virtual or _is_absent(function):
        return None
    if not function.config.has(offset, 4):
        return None
    address = function.config.u32(offset) & 0xFFFFF800
    return Bar(_ROM_INDEX, "memory32", False, address, None) if address else None


def windows(function: Function, bar: Bar, page_size: int = 4096) -> tuple[Window, ...]:
    """Split ``bar`` into what a hypervisor may map and what it must trap, in order.

    The MSI-X vector table is trapped, since its entries name interrupts of the host, and with it
    everything else in its pages: a page is mapped whole or not at all. The pending bit array is
    mapped unless it shares such a page. I/O BARs are trapped always, and so are BARs without
    an address. A memory BAR below one page is mapped only if it starts a page, which then must
    hold nothing else.

    ``page_size`` is the host's, in bytes, a power of two (:class:`UsageError` otherwise). Empty
    when the size is not known.
    """
    if page_size <= 0 or page_size & page_size - 1:
        raise UsageError(f"{page_size} bytes is no page size: it must be a power of two")
    if not bar.size:
        return ()
    if bar.kind == "io":
        return (Window(0, bar.size, True, "I/O ports"),)
    if not bar.address:
        return (Window(0, bar.size, True, "has no address"),)
    if bar.size < page_size:
        return (_below_page(function, bar, bar.size, page_size),)
    table = _vector_table(function, bar, bar.size)
    if table is None:
        return (Window(0, bar.size, False, ""),)
    start, end = table
    first_page = start // page_size * page_size
    last_page = min(-(-end // page_size) * page_size, bar.size)
    shared = "shares a page with the MSI-X table"
    split = (
        Window(0, first_page, False, ""),
        Window(first_page, start - first_page, True, shared),
        Window(start, end - start, True, "MSI-X table"),
        Window(end, last_page - end, True, shared),
        Window(last_page, bar.size - last_page, False, ""),
    )
    return tuple(window for window in split if window.length)


def _below_page(function: Function, bar: Bar, size: int, page_size: int) -> Window:
    if _vector_table(function, bar, size) is not None:
        return Window(0, size, True, "holds the MSI-X table")
    if bar.address % page_size:
        return Window(0, size, True, "smaller than a page and not at the start of one")
    end = bar.address + page_size
    for other in bars(function):
        if other.kind != "io" and bar.address < other.address < end:
            return Window(0, size, True, f"shares its page with BAR {other.index}")
    return Window(0, size, False, "the rest of its page must hold nothing else")


def _vector_table(function: Function, bar: Bar, size: int) -> tuple[int, int] | None:
    """First and one past the last byte of the MSI-X table within ``bar``."""
    capability = function.capabilities.find(0x11)
    if capability is None:
        return None
    try:
        table = msix.table(capability)
    except ConfigRangeError:
        return None
    if table.bar != bar.index or table.offset >= size:
        return None
    return table.offset, min(table.offset + table.length, size)


def _is_bar(resource: Resource) -> bool:
    return bool(resource.flags & (IORESOURCE_IO | IORESOURCE_MEM)) and resource.size > 0


def _is_absent(function: Function) -> bool:
    """Whether a captured header reads all ones: the device did not answer."""
    return function.config.has(0x04, 4) and function.config.u32(0x04) == 0xFFFFFFFF


def _recorded(resource: Resource) -> Bar:
    kind: Kind = "memory32"
    if resource.flags & IORESOURCE_IO:
        kind = "io"
    elif resource.flags & IORESOURCE_MEM_64:
        kind = "memory64"
    return Bar(
        resource.index,
        kind,
        bool(resource.flags & IORESOURCE_PREFETCH),
        0 if resource.flags & IORESOURCE_UNSET else resource.start,
        resource.size,
    )
