"""A page table in hardware that mirrors an IOAS.

Source: Linux ``drivers/iommu/iommufd/hw_pagetable.c``.
"""

from __future__ import annotations

from vfiokit.machine.kernel.iommufd_context import IommufdContext, IommufdObject
from vfiokit.machine.kernel.iommufd_ioas import Ioas


class Hwpt(IommufdObject):
    """An HWPT: made by hand, or ``auto`` for a device attached to an IOAS.

    One that is ``auto`` goes away with the last device. ``faults`` is the queue of one that
    handles page faults.
    """

    kind = "HWPT"

    def __init__(
        self,
        context: IommufdContext,
        ioas: Ioas,
        *,
        pasid: bool = False,
        faults: IommufdObject | None = None,
        auto: bool = False,
    ) -> None:
        super().__init__()
        self.context = context
        self.ioas = ioas
        self.pasid = pasid
        """Whether PASIDs can be attached to it, and beside it."""
        self.faults = faults
        self.auto = auto
        self.domain = context.around.iommus.new_domain()
        self._mirrored = False
        context.objects.add(self)
        ioas.users += 1
        ioas.hwpts.append(self)
        if faults is not None:
            faults.users += 1

    def mirror(self) -> None:
        """Map what the IOAS maps.

        EADDRINUSE when the IOAS maps or allows what the hardware cannot, EFAULT, ENOMEM.
        """
        self.ioas.table.add_domain(self.domain, self.context.around.iommus.aperture)
        self._mirrored = True

    def taken(self) -> None:
        """A device uses it."""
        self.users += 1

    def left(self) -> None:
        """A device uses it no longer."""
        self.users -= 1
        if self.auto and not self.users and self.id:
            self.context.objects.remove(self)

    def destroyed(self) -> None:
        """Free the page table."""
        if self._mirrored:
            self.ioas.table.remove_domain(self.domain)
        self.domain.destroy()
        self.ioas.hwpts.remove(self)
        self.ioas.users -= 1
        if self.faults is not None:
            self.faults.users -= 1
