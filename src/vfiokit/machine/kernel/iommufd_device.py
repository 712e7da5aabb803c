"""Devices bound to an iommufd, and what their DMA is attached to.

Source: Linux ``drivers/iommu/iommufd/device.c``, ``drivers/vfio/iommufd.c``.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup
from vfiokit.machine.kernel.iommufd_context import IommufdContext, IommufdObject
from vfiokit.machine.kernel.iommufd_ioas import Ioas
from vfiokit.machine.kernel.iommufd_page_table import Hwpt
from vfiokit.machine.kernel.pci_device import PciDevice

_PASID_MAX = (1 << 31) - 1


class GroupState:
    """What the devices of one IOMMU group have in common: the owner and the page table."""

    def __init__(self, group: IommuGroup) -> None:
        self.group = group
        self.bound: list[IommufdDevice] = []
        self.attached: list[IommufdDevice] = []
        self.hwpt: Hwpt | None = None

    @property
    def pasids_in_use(self) -> bool:
        """Whether any member has a PASID attached."""
        return any(device.pasids for device in self.bound)


class IommufdDevice(IommufdObject):
    """``VFIO_DEVICE_BIND_IOMMUFD``, or a group's device opened with an iommufd as container.

    Always in use, so that only unbinding takes it away.
    """

    kind = "device"

    def __init__(self, context: IommufdContext, device: PciDevice, state: GroupState) -> None:
        super().__init__()
        self.context = context
        self.device = device
        self.state = state
        self.pasids: dict[int, Hwpt] = {}
        self.users = 1
        self._by_pasid_0 = False
        context.objects.add(self)
        state.bound.append(self)

    @property
    def is_attached(self) -> bool:
        """Whether its requests without PASID are translated."""
        return self in self.state.attached

    # -- attach -------------------------------------------------------------------------------

    def attach(self, page_table_id: int) -> int:
        """Attach to an IOAS or an HWPT, or replace what it is attached to; the HWPT's id.

        ENOENT for no such object; EINVAL for one of another kind, for a second page table in one
        group, for a table without PASID beside attached PASIDs; EADDRINUSE, EFAULT, ENOMEM.
        """
        target = self.context.objects.get(page_table_id, IommufdObject)
        if self._by_pasid_0:
            raise failure(errno.EBUSY, "attached as PASID 0")
        if isinstance(target, Hwpt):
            self._use(target)
            return target.id
        if not isinstance(target, Ioas):
            raise failure(errno.EINVAL, f"one does not attach to {target.kind} {page_table_id}")
        for hwpt in target.hwpts:
            if isinstance(hwpt, Hwpt) and hwpt.auto:
                try:
                    self._use(hwpt)
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        continue
                    raise
                return hwpt.id
        return self._use_new(target)

    def _use_new(self, ioas: Ioas) -> int:
        made = Hwpt(self.context, ioas, auto=True)
        number = made.id
        try:
            if self.is_attached:
                made.mirror()
                self._replace(made)
            else:
                self._attach(made)
                made.mirror()
        except OSError:
            if self.state.hwpt is made:
                self.detach()
            else:
                self.context.objects.remove(made)
            raise
        return number

    def _use(self, hwpt: Hwpt) -> None:
        if self.is_attached:
            self._replace(hwpt)
        else:
            self._attach(hwpt)

    def _attach(self, hwpt: Hwpt) -> None:
        state = self.state
        self._check(hwpt)
        if state.hwpt is not None and state.hwpt is not hwpt:
            raise failure(errno.EINVAL, f"{state.group!r} is attached to HWPT {state.hwpt.id}")
        hwpt.ioas.table.reserve(self, self.reserved)
        if state.hwpt is None:
            state.group.attach(hwpt.domain)
            state.hwpt = hwpt
        state.attached.append(self)
        hwpt.taken()

    def _replace(self, hwpt: Hwpt) -> None:
        """Attach every attached member of the group elsewhere, in one step."""
        state = self.state
        before = state.hwpt
        assert before is not None
        if hwpt is before:
            return
        self._check(hwpt)
        if hwpt.ioas is not before.ioas:
            with ExitStack() as undo:
                for member in state.attached:
                    hwpt.ioas.table.reserve(member, member.reserved)
                    undo.callback(hwpt.ioas.table.unreserve, member)
                undo.pop_all()
        state.group.attach(hwpt.domain)
        state.hwpt = hwpt
        for member in state.attached:
            hwpt.taken()
            if hwpt.ioas is not before.ioas:
                before.ioas.table.unreserve(member)
        for _member in state.attached:
            before.left()

    def _check(self, hwpt: Hwpt) -> None:
        if hwpt.faults is not None and not self.device.find_extended(regs.PCI_EXT_CAP_ID_PRI):
            raise failure(errno.ENODEV, f"{self.device.bdf} makes no page requests")
        if self.state.pasids_in_use and not hwpt.pasid:
            raise failure(errno.EINVAL, f"PASIDs are attached, and HWPT {hwpt.id} is not for them")

    @property
    def reserved(self) -> list[tuple[int, int]]:
        """IOVA ranges that nothing may be mapped in while it is attached."""
        return self.context.around.iommus.reserved_ranges(self.state.group)

    def detach(self) -> None:
        """Requests without PASID fault from now on, once the whole group is detached. Idempotent.

        It leaves attached PASIDs alone.
        """
        state, hwpt = self.state, self.state.hwpt
        if not self.is_attached or hwpt is None:
            return
        self._by_pasid_0 = False
        state.attached.remove(self)
        hwpt.ioas.table.unreserve(self)
        if not state.attached:
            state.hwpt = None
            state.group.detach()
        hwpt.left()

    # -- PASIDs -------------------------------------------------------------------------------

    def attach_pasid(self, pasid: int, page_table_id: int) -> int:
        """Attach what carries ``pasid``, or replace that; the HWPT's id.

        No function of the machine sends PASIDs, so that Linux only takes note. ENOSPC for a
        number that is no PASID; ENOENT; EINVAL unless the HWPT, and that of requests without
        PASID, were made for PASIDs; EBUSY for PASID 0 while those are attached.
        """
        if pasid > _PASID_MAX:
            raise failure(errno.ENOSPC, f"{pasid:#x} is no PASID")
        target = self.context.objects.get(page_table_id, IommufdObject)
        if not pasid:
            if self.is_attached:
                raise failure(errno.EBUSY, "PASID 0 is that of requests without PASID")
            number = self.attach(page_table_id)
            self._by_pasid_0 = True
            return number
        if not isinstance(target, Hwpt) or not target.pasid:
            raise failure(errno.EINVAL, f"{target.kind} {page_table_id} is not for PASIDs")
        if self.state.hwpt is not None and not self.state.hwpt.pasid:
            raise failure(errno.EINVAL, f"HWPT {self.state.hwpt.id} is not for PASIDs")
        before = self.pasids.get(pasid)
        target.taken()
        self.pasids[pasid] = target
        if before is not None:
            before.left()
        return target.id

    def detach_pasid(self, pasid: int) -> None:
        """Undo :meth:`attach_pasid`. Idempotent."""
        if not pasid and self._by_pasid_0:
            self.detach()
        hwpt = self.pasids.pop(pasid, None)
        if hwpt is not None:
            hwpt.left()

    # -- end ----------------------------------------------------------------------------------

    def unbind(self) -> None:
        """Detach everything and give the device back; the group with its last device."""
        for pasid in list(self.pasids):
            self.detach_pasid(pasid)
        self.detach()
        self.state.bound.remove(self)
        if not self.state.bound:
            del self.context.groups[self.state.group.number]
        self.context.objects.remove(self)
        self.state.group.release()
        self.context.drop()


def bind(context: IommufdContext, device: PciDevice, group: IommuGroup) -> IommufdDevice:
    """Take a device over: EPERM without isolated MSI, or when others use its group."""
    if not group.isolated_msi and not context.around.unsafe_interrupts():
        raise failure(errno.EPERM, "no interrupt remapping (allow_unsafe_interrupts=0)")
    group.claim_device(context)
    context.hold()
    state = context.groups.get(group.number)
    if state is None:
        state = context.groups[group.number] = GroupState(group)
    assert isinstance(state, GroupState)
    return IommufdDevice(context, device, state)


def has_group(context: IommufdContext, group: IommuGroup | None) -> bool:
    """Whether a member of ``group`` is bound to ``context`` (``iommufd_ctx_has_group``)."""
    return group is not None and group.number in context.groups
