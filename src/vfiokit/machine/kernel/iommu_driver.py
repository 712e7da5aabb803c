"""The driver of the machine's VT-d units: domains, context entries, interrupt remapping.

Source: Linux ``drivers/iommu/intel/{iommu,irq_remapping}.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from vfiokit.errors import MachineError
from vfiokit.machine.iommu.remap import MSI_BASE, MSI_END
from vfiokit.machine.iommu.tables import ADDRESS_WIDTH, ContextTables, SecondStage
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import (
    DomainKind,
    IommuGroup,
    PagingDomain,
    UnitRegisters,
)
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.memory import PAGE, PhysicalMemory

PAGE_SIZES = 0x4020_1000
"""4 KiB, 2 MiB and 1 GiB leaves."""

_LARGEST_LEAF = 1 << 30
_REMAP_ENTRIES = 4096
_IDENTITY_DOMAIN = 1
_FIRST_DOMAIN = 2

Range = tuple[int, int]
"""First and last IOVA."""


class Domain:
    """A second-stage page table, and the units that may have cached it."""

    page_sizes = PAGE_SIZES
    enforces_coherency = True

    def __init__(
        self, memory: PhysicalMemory, number: int, on_destroy: Callable[[int], None]
    ) -> None:
        self.number = number
        self._on_destroy = on_destroy
        self.table = SecondStage(memory)
        self.units: dict[VtdUnit, int] = {}
        """Units with context entries for this domain, and how many."""

    @property
    def large_pages(self) -> bool:
        """Whether leaves of more than 4 KiB are made."""
        return self.table.largest_leaf > PAGE

    @large_pages.setter
    def large_pages(self, wanted: bool) -> None:
        self.table.largest_leaf = _LARGEST_LEAF if wanted else PAGE

    def map(self, iova: int, hpa: int, length: int, *, read: bool, write: bool) -> None:
        """Map ``length`` contiguous bytes; ENOMEM when there is no memory for tables."""
        try:
            self.table.map(iova, hpa, length, read=read, write=write)
        except MachineError as error:
            raise failure(errno.ENOMEM, str(error)) from error

    def unmap(self, iova: int, length: int) -> None:
        """Unmap, and invalidate the IOTLBs."""
        self.table.unmap(iova, length)
        for unit in self.units:
            unit.invalidate_iotlb(domain_id=self.number, iova=iova, length=length)

    def destroy(self) -> None:
        """Free the page tables."""
        for unit in self.units:
            unit.invalidate_iotlb(domain_id=self.number)
        self.table.release()
        self._on_destroy(self.number)


class VtdDriver:
    """All VT-d units of the machine.

    ``unit_of`` tells the unit a function's requests pass (``None``: untranslated), ``aliases`` the
    requester IDs they may carry, ``reserved`` the IOVA ranges of a group's functions that firmware
    or hardware keeps for itself.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        units: Iterable[VtdUnit],
        unit_of: Callable[[PciDevice], VtdUnit | None],
        aliases: Callable[[PciDevice], Iterable[int]],
        reserved: Callable[[int], Iterable[Range]],
    ) -> None:
        self.allow_unsafe_interrupts = False
        self._memory = memory
        self._unit_of = unit_of
        self._aliases = aliases
        self._reserved = reserved
        self._contexts = {unit: ContextTables(memory) for unit in units}
        self._attached: dict[tuple[VtdUnit, int], Domain] = {}
        self._numbers: set[int] = set()
        for unit, tables in self._contexts.items():
            unit.remapper.set_table(memory.allocate(16 * _REMAP_ENTRIES), _REMAP_ENTRIES)
            unit.remapper.enabled = True
            unit.set_root_table(tables.root)
            unit.enable_translation()

    def new_domain(self) -> Domain:
        """A domain without mappings; ENOMEM when there is no memory for its table."""
        number = _FIRST_DOMAIN
        while number in self._numbers:
            number += 1
        try:
            domain = Domain(self._memory, number, self._numbers.discard)
        except MachineError as error:
            raise failure(errno.ENOMEM, str(error)) from error
        self._numbers.add(number)
        return domain

    def attach(self, devices: list[PciDevice], domain: PagingDomain | DomainKind) -> None:
        """Write the context entries of ``devices`` and their aliases, then invalidate."""
        for device in devices:
            unit = self._unit_of(device)
            if unit is None:
                continue
            for requester_id in self._aliases(device):
                self._point(unit, requester_id, domain)

    @property
    def aperture(self) -> Range:
        """48 bits."""
        return 0, (1 << ADDRESS_WIDTH) - 1

    def registers(self, device: PciDevice) -> UnitRegisters | None:
        """Capability registers of the unit in front of ``device``."""
        unit = self._unit_of(device)
        return UnitRegisters(unit.cap, unit.ecap) if unit is not None else None

    def reserved_ranges(self, group: IommuGroup) -> list[Range]:
        """The interrupt range and what firmware keeps."""
        return [(MSI_BASE, MSI_END - 1), *self._reserved(group.number)]

    def usable_ranges(self, groups: list[IommuGroup]) -> list[Range]:
        """The aperture without the ranges that ``groups`` reserve."""
        if not groups:
            return []
        ranges = [self.aperture]
        for first, last in (hole for group in groups for hole in self.reserved_ranges(group)):
            ranges = [
                piece
                for low, high in ranges
                for piece in ((low, min(high, first - 1)), (max(low, last + 1), high))
                if piece[0] <= piece[1]
            ]
        return ranges

    def isolates_msi(self, device: PciDevice) -> bool:
        """Whether interrupt remapping checks the messages of ``device``."""
        unit = self._unit_of(device)
        return unit is not None and unit.remapper.enabled

    def _point(self, unit: VtdUnit, requester_id: int, domain: PagingDomain | DomainKind) -> None:
        tables = self._contexts[unit]
        before = self._attached.pop((unit, requester_id), None)
        if domain is DomainKind.IDENTITY:
            tables.attach(requester_id, _IDENTITY_DOMAIN, None)
        elif isinstance(domain, Domain):
            tables.attach(requester_id, domain.number, domain.table.root)
            self._attached[unit, requester_id] = domain
            domain.units[unit] = domain.units.get(unit, 0) + 1
        else:
            tables.detach(requester_id)
        unit.invalidate_context(requester_id=requester_id)
        if before is not None:
            unit.invalidate_iotlb(domain_id=before.number)
            before.units[unit] -= 1
            if not before.units[unit]:
                del before.units[unit]
