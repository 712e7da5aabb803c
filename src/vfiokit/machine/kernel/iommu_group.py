"""IOMMU groups, who owns their DMA, and which domain their devices are attached to.

Source: Linux ``drivers/iommu/iommu.c`` (``iommu_device_use_default_domain``,
``iommu_group_claim_dma_owner``, ``iommu_device_claim_dma_owner``).
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import NamedTuple, Protocol

from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import PciDevice


class DomainKind(Enum):
    """Domains that need no page table, in the words of ``iommu_groups/N/type``."""

    IDENTITY = "identity"
    BLOCKED = "blocked"
    DMA = "DMA"
    """Only what drivers map. The host drivers of this machine map nothing, so it is empty."""
    DMA_QUEUED = "DMA-FQ"
    """The same, with deferred invalidation."""


class UnitRegisters(NamedTuple):
    """Capabilities of a VT-d unit."""

    cap: int
    ecap: int

    @property
    def ats(self) -> bool:
        """Whether it answers translation requests of devices."""
        return bool(self.ecap & 1 << 2)


class PagingDomain(Protocol):
    """An I/O page table that groups can be attached to."""

    large_pages: bool
    """Whether what is mapped from now on may use pages larger than the smallest."""

    @property
    def page_sizes(self) -> int:
        """Bitmap of page sizes."""
        ...

    @property
    def enforces_coherency(self) -> bool:
        """Whether no-snoop requests are made to snoop."""
        ...

    def map(self, iova: int, hpa: int, length: int, *, read: bool, write: bool) -> None:
        """Map ``length`` contiguous bytes."""
        ...

    def unmap(self, iova: int, length: int) -> None:
        """Unmap a range that whole mappings make up, and invalidate it."""
        ...

    def destroy(self) -> None:
        """Free the page tables of a domain that nothing is attached to."""
        ...


class Iommus(Protocol):
    """The IOMMU drivers of the machine."""

    allow_unsafe_interrupts: bool
    """Module parameter of ``vfio_iommu_type1``."""

    def new_domain(self) -> PagingDomain:
        """A domain without mappings."""
        ...

    def attach(self, devices: list[PciDevice], domain: PagingDomain | DomainKind) -> None:
        """Point the context entries of ``devices`` and their aliases at ``domain``."""
        ...

    @property
    def aperture(self) -> tuple[int, int]:
        """First and last IOVA that a domain can translate."""
        ...

    def registers(self, device: PciDevice) -> UnitRegisters | None:
        """What the IOMMU of ``device`` is; ``None`` when it has none."""
        ...

    def reserved_ranges(self, group: IommuGroup) -> list[tuple[int, int]]:
        """IOVA ranges that devices of ``group`` keep for themselves, the MSI window included."""
        ...

    def usable_ranges(self, groups: list[IommuGroup]) -> list[tuple[int, int]]:
        """IOVA ranges ``(first, last)`` that every group can use; empty without groups."""
        ...

    def isolates_msi(self, device: PciDevice) -> bool:
        """Whether interrupt messages of ``device`` are checked (interrupt remapping)."""
        ...


class IommuGroup:
    """One IOMMU group.

    Either host drivers use the default domain (``users`` counts them), or one owner has claimed
    the group for a user; never both.
    """

    def __init__(
        self, number: int, iommus: Iommus, *, default: DomainKind = DomainKind.IDENTITY
    ) -> None:
        self.number = number
        self.devices: list[PciDevice] = []
        self.users = 0
        """Functions bound to drivers that use the DMA API."""
        self.owner: object | None = None
        self.noiommu = False
        """Made up by vfio for a function without IOMMU."""
        self._claims = 0
        self.default = default
        self.domain: PagingDomain | DomainKind = default
        self._iommus = iommus

    def __repr__(self) -> str:
        return f"<IommuGroup {self.number} of {len(self.devices)}>"

    @property
    def type_name(self) -> str:
        """Content of ``type``: of the default domain, whatever is attached now."""
        return self.default.value

    def choose_type(self, data: bytes) -> None:
        """``type`` written by the user (``iommu_group_store_type``).

        EINVAL for an unknown word; EPERM without functions, with a driver or with an owner.
        """
        word = data.decode("utf-8", "replace").removesuffix("\n")
        kinds = {
            "identity": DomainKind.IDENTITY,
            "DMA": DomainKind.DMA,
            "DMA-FQ": DomainKind.DMA_QUEUED,
            "auto": DomainKind.DMA,
        }
        if word not in kinds:
            raise failure(errno.EINVAL, f"{word!r} is no type of domain")
        live = kinds[word] is DomainKind.DMA_QUEUED and self.default is DomainKind.DMA
        if not live and (not self.devices or self.users or self.owner is not None):
            raise failure(errno.EPERM, f"group {self.number} is in use")
        self.default = kinds[word]
        if self.owner is None:
            self._point_at(self.default)

    @property
    def isolated_msi(self) -> bool:
        """Whether no member can forge interrupts."""
        return all(self._iommus.isolates_msi(device) for device in self.devices)

    def use_default_domain(self) -> None:
        """A host driver binds to a member: EBUSY while a user owns the group."""
        if self.owner is not None:
            raise failure(errno.EBUSY, f"group {self.number} belongs to a user")
        self.users += 1

    def unuse_default_domain(self) -> None:
        """A host driver let go of a member."""
        self.users = max(self.users - 1, 0)

    @property
    def claimable(self) -> bool:
        """Whether a user could claim the group now."""
        return self.owner is None and not self.users

    def claim(self, owner: object) -> None:
        """A user takes the group over; EPERM while it has an owner or a host driver."""
        if not self.claimable:
            raise failure(
                errno.EPERM,
                f"group {self.number} "
                + ("has an owner" if self.owner is not None else "is in use by host drivers"),
            )
        self.owner = owner
        self._claims = 1
        self._point_at(DomainKind.BLOCKED)

    def claim_device(self, owner: object) -> None:
        """A user takes a member over; EPERM as :meth:`claim`, except that its own do not count."""
        if self.owner is owner:
            self._claims += 1
        else:
            self.claim(owner)

    def release(self) -> None:
        """The user gave back what it claimed; with the last claim the group is free."""
        self._claims -= 1
        if not self._claims:
            self.owner = None
            self._point_at(self.default)

    def attach(self, domain: PagingDomain) -> None:
        """Let the members translate through ``domain``."""
        self._point_at(domain)

    def detach(self) -> None:
        """Back to the blocking domain of an owned group."""
        self._point_at(DomainKind.BLOCKED if self.owner is not None else self.default)

    def _point_at(self, domain: PagingDomain | DomainKind) -> None:
        self._iommus.attach(self.devices, domain)
        self.domain = domain
