"""Page tables of an iommufd (HWPT), fault queues, and what the hardware is.

The hardware is VT-d without first-stage translation: no nesting, no dirty tracking, no virtual
IOMMUs. Source: Linux ``drivers/iommu/iommufd/{hw_pagetable,device,eventq,viommu}.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import iommufd as abi
from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.io_page_table import IOVA_MAX
from vfiokit.machine.kernel.iommufd_context import IommufdContext, IommufdObject
from vfiokit.machine.kernel.iommufd_device import IommufdDevice
from vfiokit.machine.kernel.iommufd_ioas import Ioas
from vfiokit.machine.kernel.iommufd_page_table import Hwpt
from vfiokit.machine.kernel.open_file import Stream
from vfiokit.machine.kernel.process import PAGE_SIZE

_NEST_PARENT = abi.IOMMU_HWPT_ALLOC_NEST_PARENT
_DIRTY = abi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
_FAULT = abi.IOMMU_HWPT_FAULT_ID_VALID
_PASID = abi.IOMMU_HWPT_ALLOC_PASID
_ENTRIES_MAX = 1 << 19

Respond = Callable[[], None]


class FaultQueue(IommufdObject):
    """``IOMMU_FAULT_QUEUE_ALLOC``; used by its file and by page tables."""

    kind = "fault queue"


class FaultFile(Stream):
    """The stream of a fault queue. No function of the machine asks for pages, so it stays empty."""

    name = "a fault queue"

    def __init__(self, context: IommufdContext, queue: FaultQueue) -> None:
        super().__init__()
        self._context = context
        self._queue = queue
        queue.users += 1
        context.hold()

    def release(self) -> None:
        """The queue may be destroyed now."""
        self._queue.users -= 1
        self._context.drop()


# -- page tables ------------------------------------------------------------------------------


def alloc(context: IommufdContext, request: abi.iommu_hwpt_alloc, _respond: Respond) -> None:
    """``IOMMU_HWPT_ALLOC``."""
    if request.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    if bool(request.data_type) is not bool(request.data_len):
        raise failure(errno.EINVAL, "data_type and data_len do not go together")
    context.objects.get(request.dev_id, IommufdDevice)
    try:
        parent = context.objects.get(request.pt_id, IommufdObject)
    except OSError as error:
        raise failure(errno.EINVAL, f"no object {request.pt_id}") from error
    if isinstance(parent, Hwpt):
        if request.flags & ~(_FAULT | _PASID) or not request.data_len:
            raise failure(errno.EOPNOTSUPP, "a nested table needs data, and has no such flags")
        raise failure(errno.EINVAL, f"HWPT {parent.id} is no nesting parent")
    if not isinstance(parent, Ioas):
        raise failure(errno.EINVAL, f"{parent.kind} {parent.id} is nothing to make a table of")
    if request.flags & ~(_FAULT | _PASID):
        raise failure(errno.EOPNOTSUPP, f"the IOMMU has no tables with flags {request.flags:#x}")
    if request.data_len:
        raise failure(errno.EOPNOTSUPP, f"the IOMMU has no tables of type {request.data_type}")
    queue = None
    if request.flags & _FAULT:
        queue = context.objects.get(request.fault_id, FaultQueue)
    made = Hwpt(context, parent, pasid=bool(request.flags & _PASID), faults=queue)
    try:
        made.mirror()
    except OSError:
        context.objects.remove(made)
        raise
    request.out_hwpt_id = made.id


def set_dirty_tracking(
    context: IommufdContext, request: abi.iommu_hwpt_set_dirty_tracking, _respond: Respond
) -> None:
    """``IOMMU_HWPT_SET_DIRTY_TRACKING``: no table here tracks."""
    if request.flags & ~abi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE or request.reserved:
        raise failure(errno.EOPNOTSUPP, "unknown flags, or reserved is not 0")
    context.objects.get(request.hwpt_id, Hwpt)
    raise failure(errno.EOPNOTSUPP, "the IOMMU does not track dirty pages")


def get_dirty_bitmap(
    context: IommufdContext, request: abi.iommu_hwpt_get_dirty_bitmap, _respond: Respond
) -> None:
    """``IOMMU_HWPT_GET_DIRTY_BITMAP``: no table here tracks, but the range is checked first."""
    if request.flags & ~abi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or request.reserved:
        raise failure(errno.EOPNOTSUPP, "unknown flags, or reserved is not 0")
    hwpt = context.objects.get(request.hwpt_id, Hwpt)
    last = request.iova + (request.length - 1 & IOVA_MAX)
    if last > IOVA_MAX:
        raise failure(errno.EOVERFLOW, "iova + length wraps around")
    sizes = (hwpt.ioas.table.alignment, request.page_size)
    if not request.page_size or any((request.iova | last + 1) & (size - 1) for size in sizes):
        raise failure(errno.EINVAL, "the range is not made of pages of page_size")
    raise failure(errno.EOPNOTSUPP, "the IOMMU does not track dirty pages")


def invalidate(
    context: IommufdContext, request: abi.iommu_hwpt_invalidate, respond: Respond
) -> None:
    """``IOMMU_HWPT_INVALIDATE``: there are no nested tables; ``entry_num`` returns 0."""
    count = request.entry_num
    if request.reserved:
        request.entry_num = 0
        respond()
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    request.entry_num = 0
    respond()
    if count and (not request.data_uptr or not request.entry_len):
        raise failure(errno.EINVAL, "entries without length or address")
    if count > _ENTRIES_MAX or request.entry_len > PAGE_SIZE:
        raise failure(errno.EINVAL, "too many entries, or too large ones")
    found = context.objects.get(request.hwpt_id, IommufdObject)
    raise failure(errno.EINVAL, f"{found.kind} {found.id} is no nested table")


# -- hardware ---------------------------------------------------------------------------------


def hw_info(context: IommufdContext, request: abi.iommu_hw_info, _respond: Respond) -> None:
    """``IOMMU_GET_HW_INFO``: the capability registers of the VT-d unit of a device."""
    if request.flags & ~abi.IOMMU_HW_INFO_FLAG_INPUT_TYPE:
        raise failure(errno.EOPNOTSUPP, f"unknown flags {request.flags:#x}")
    if request.reserved0 or request.reserved1 or request.reserved2:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    asked = request.out_data_type if request.flags else abi.IOMMU_HW_INFO_TYPE_DEFAULT
    device = context.objects.get(request.dev_id, IommufdDevice).device
    registers = context.around.iommus.registers(device)
    data, kind = b"", abi.IOMMU_HW_INFO_TYPE_NONE
    if registers is not None:
        kind = abi.IOMMU_HW_INFO_TYPE_INTEL_VTD
        info = abi.iommu_hw_info_vtd(
            flags=abi.IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
            cap_reg=registers.cap,
            ecap_reg=registers.ecap,
        )
        data = bytes(info.pack())
    if asked not in (abi.IOMMU_HW_INFO_TYPE_DEFAULT, kind):
        raise failure(errno.EOPNOTSUPP, f"the IOMMU has no data of type {asked}")
    if request.data_len:
        view = context.around.process.bytes_at(request.data_uptr, request.data_len)
        view[:] = data[: len(view)].ljust(len(view), b"\0")
    request.data_len = len(data)
    request.out_data_type = kind
    request.out_max_pasid_log2 = 0
    request.out_capabilities = 0
    if registers is None or not registers.ats or not device.find_extended(regs.PCI_EXT_CAP_ID_ATS):
        request.out_capabilities = abi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED


def fault_queue_alloc(
    context: IommufdContext, request: abi.iommu_fault_alloc, _respond: Respond
) -> None:
    """``IOMMU_FAULT_QUEUE_ALLOC``."""
    if request.flags:
        raise failure(errno.EOPNOTSUPP, f"unknown flags {request.flags:#x}")
    queue = FaultQueue()
    request.out_fault_id = context.objects.add(queue)
    request.out_fault_fd = context.around.install(FaultFile(context, queue))


# -- virtual IOMMUs: none of this hardware's ---------------------------------------------------


def viommu_alloc(
    context: IommufdContext, request: abi.iommu_viommu_alloc, _respond: Respond
) -> None:
    """``IOMMU_VIOMMU_ALLOC``: VT-d has none."""
    if request.flags or request.reserved or request.type == abi.IOMMU_VIOMMU_TYPE_DEFAULT:
        raise failure(errno.EOPNOTSUPP, "unknown flags or type, or reserved is not 0")
    context.objects.get(request.dev_id, IommufdDevice)
    raise failure(errno.EOPNOTSUPP, f"the IOMMU has no vIOMMU of type {request.type}")


def vdevice_alloc(
    _context: IommufdContext, request: abi.iommu_vdevice_alloc, _respond: Respond
) -> None:
    """``IOMMU_VDEVICE_ALLOC``: there is no vIOMMU to put it in."""
    raise failure(errno.ENOENT, f"no vIOMMU has the id {request.viommu_id}")


def veventq_alloc(
    _context: IommufdContext, request: abi.iommu_veventq_alloc, _respond: Respond
) -> None:
    """``IOMMU_VEVENTQ_ALLOC``: there is no vIOMMU to listen to."""
    if request.flags or request.reserved or request.type == abi.IOMMU_VEVENTQ_TYPE_DEFAULT:
        raise failure(errno.EOPNOTSUPP, "unknown flags or type, or reserved is not 0")
    if not 0 < request.veventq_depth <= _ENTRIES_MAX:
        raise failure(errno.EINVAL, f"a queue of {request.veventq_depth} events")
    raise failure(errno.ENOENT, f"no vIOMMU has the id {request.viommu_id}")


def hw_queue_alloc(
    _context: IommufdContext, request: abi.iommu_hw_queue_alloc, _respond: Respond
) -> None:
    """``IOMMU_HW_QUEUE_ALLOC``: there is no vIOMMU to give it to."""
    if request.flags or request.type == abi.IOMMU_HW_QUEUE_TYPE_DEFAULT:
        raise failure(errno.EOPNOTSUPP, "unknown flags or type")
    if not request.length:
        raise failure(errno.EINVAL, "length is 0")
    if request.nesting_parent_iova + request.length - 1 > IOVA_MAX:
        raise failure(errno.EOVERFLOW, "iova + length wraps around")
    raise failure(errno.ENOENT, f"no vIOMMU has the id {request.viommu_id}")
