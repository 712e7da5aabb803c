"""Page tables of the IOMMU as objects of their own, and what the hardware can do.

An :class:`~vfiokit.vfio.ioas.Ioas` needs none of this: attaching a device to it makes a page
table by itself. One made by hand tracks dirty pages, takes PASIDs, is the parent of a guest's
own tables, or is such a guest's table.

Source: Linux ``drivers/iommu/iommufd/{hw_pagetable,device}.c``.
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.abi import iommufd as abi
from vfiokit.abi._layout import CStruct
from vfiokit.errors import KernelError, UsageError
from vfiokit.vfio.dirty import DirtyBitmap, read_bitmap
from vfiokit.vfio.fault import FaultQueue
from vfiokit.vfio.ioas import Ioas
from vfiokit.vfio.iommufd import Iommufd
from vfiokit.vfio.memory import argument_memory
from vfiokit.vfio.owner import Owner

_INFO_SIZE = 256
_INFO_KINDS: dict[int, type[CStruct]] = {
    abi.IOMMU_HW_INFO_TYPE_INTEL_VTD: abi.iommu_hw_info_vtd,
    abi.IOMMU_HW_INFO_TYPE_ARM_SMMUV3: abi.iommu_hw_info_arm_smmuv3,
    abi.IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV: abi.iommu_hw_info_tegra241_cmdqv,
    abi.IOMMU_HW_INFO_TYPE_AMD: abi.iommu_hw_info_amd,
}


class HardwareInfo(NamedTuple):
    """Answer of ``IOMMU_GET_HW_INFO`` for the IOMMU in front of one device."""

    type: int
    """``IOMMU_HW_INFO_TYPE_*``; 0 when the driver tells nothing more."""
    data: bytes
    """Raw registers, by type."""
    capabilities: int
    """``IOMMU_HW_CAP_*``."""
    max_pasid_bits: int
    """Width of PASIDs; 0 without PASIDs."""

    @property
    def registers(self) -> CStruct | None:
        """:attr:`data` as the struct of its type; ``None`` for a type not known here."""
        kind = _INFO_KINDS.get(self.type)
        if kind is None or len(self.data) < kind.SIZE:
            return None
        return kind.unpack_from(self.data)

    @property
    def tracks_dirty_pages(self) -> bool:
        """Whether page tables with ``dirty_tracking`` can be made for the device."""
        return bool(self.capabilities & abi.IOMMU_HW_CAP_DIRTY_TRACKING)


def hardware_info(iommufd: Iommufd, device_id: int, data_type: int | None = None) -> HardwareInfo:
    """What the IOMMU of a bound device can do; ``data_type`` asks for one kind of data.

    Raises :class:`KernelError`: ENOENT for an unknown device, EOPNOTSUPP for a type of data
    that its IOMMU does not have.
    """
    with argument_memory(iommufd.kernel, size=_INFO_SIZE) as memory:
        argument = abi.iommu_hw_info(
            flags=0 if data_type is None else abi.IOMMU_HW_INFO_FLAG_INPUT_TYPE,
            dev_id=device_id,
            data_len=_INFO_SIZE,
            data_uptr=memory.vaddr,
            out_data_type=data_type or 0,
        )
        iommufd.request("IOMMU_GET_HW_INFO", argument, f"device {device_id}")
        return HardwareInfo(
            argument.out_data_type,
            bytes(memory.view[: min(argument.data_len, _INFO_SIZE)]),
            argument.out_capabilities,
            argument.out_max_pasid_log2,
        )


class Hwpt(Owner):
    """A page table: of the kernel's making over an IOAS, or nested in such a one."""

    def __init__(self, iommufd: Iommufd, hwpt_id: int, parent: Ioas | Hwpt) -> None:
        """Take over the page table ``hwpt_id``; :meth:`create` makes one."""
        self.iommufd = iommufd
        """The descriptor it lives in."""
        self.id = hwpt_id
        """Its number there; 0 once closed."""
        self.parent = parent
        """What it was made over; kept alive by it in the kernel."""

    @classmethod
    def create(
        cls,
        parent: Ioas | Hwpt,
        device_id: int,
        *,
        nest_parent: bool = False,
        dirty_tracking: bool = False,
        pasid: bool = False,
        fault_queue: FaultQueue | None = None,
        data_type: int = abi.IOMMU_HWPT_DATA_NONE,
        data: bytes = b"",
    ) -> Hwpt:
        """A page table for the IOMMU of ``device_id``.

        Over an :class:`Ioas` it maps what that maps. Over a :class:`Hwpt` made with
        ``nest_parent`` it is a guest's table, which ``data`` of ``data_type``
        (``IOMMU_HWPT_DATA_*``) describes. ``pasid`` lets it be attached per PASID;
        ``fault_queue`` gets its recoverable faults. Raises :class:`KernelError` (EOPNOTSUPP
        when the IOMMU cannot, EINVAL for what does not go together, ENOENT).
        """
        flags = (
            (abi.IOMMU_HWPT_ALLOC_NEST_PARENT if nest_parent else 0)
            | (abi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING if dirty_tracking else 0)
            | (abi.IOMMU_HWPT_ALLOC_PASID if pasid else 0)
            | (abi.IOMMU_HWPT_FAULT_ID_VALID if fault_queue is not None else 0)
        )
        iommufd = parent.iommufd
        with argument_memory(iommufd.kernel, data) as memory:
            argument = abi.iommu_hwpt_alloc(
                flags=flags,
                dev_id=device_id,
                pt_id=parent.id,
                data_type=data_type,
                data_len=len(data),
                data_uptr=memory.vaddr if data else 0,
                fault_id=0 if fault_queue is None else fault_queue.id,
            )
            iommufd.request("IOMMU_HWPT_ALLOC", argument, f"{parent}, device {device_id}")
        return cls(iommufd, argument.out_hwpt_id, parent)

    def __str__(self) -> str:
        return f"HWPT {self.id}" if self.id else "closed HWPT"

    def __repr__(self) -> str:
        return f"<Hwpt {self.id or 'closed'} over {self.parent}>"

    @property
    def _holds(self) -> bool:
        return bool(self.id) and self.iommufd.fd >= 0

    @property
    def ioas(self) -> Ioas:
        """The IOAS below it, below its parent if nested."""
        below = self.parent
        return below if isinstance(below, Ioas) else below.ioas

    # -- dirty pages --------------------------------------------------------------------------

    def start_dirty_tracking(self) -> None:
        """Note from now on which pages are written; what was noted before is dropped.

        Raises :class:`KernelError` EOPNOTSUPP unless made with ``dirty_tracking``.
        """
        self._set_tracking(abi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE)

    def stop_dirty_tracking(self) -> None:
        """Stop it."""
        self._set_tracking(0)

    def _set_tracking(self, flags: int) -> None:
        argument = abi.iommu_hwpt_set_dirty_tracking(flags=flags, hwpt_id=self.id)
        self.iommufd.request("IOMMU_HWPT_SET_DIRTY_TRACKING", argument, self)

    def dirty_bitmap(
        self, iova: int, length: int, *, page_size: int = 0, clear: bool = True
    ) -> DirtyBitmap:
        """The pages of ``[iova, iova + length)`` written since the last call that cleared them.

        ``page_size`` in bytes, the smallest by default. A hole in the mappings of the range
        hides what lies behind it: the kernel reports no error then. Raises
        :class:`KernelError` EINVAL unless iova and length are multiples of the page.
        """
        size = page_size or self.ioas.page_size

        def ask(vaddr: int, _size: int) -> None:
            argument = abi.iommu_hwpt_get_dirty_bitmap(
                hwpt_id=self.id,
                flags=0 if clear else abi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
                iova=iova,
                length=length,
                page_size=size,
                data=vaddr,
            )
            self.iommufd.request("IOMMU_HWPT_GET_DIRTY_BITMAP", argument, self)

        return read_bitmap(self.iommufd.kernel, iova, length, size, ask)

    # -- nesting ------------------------------------------------------------------------------

    def invalidate(self, data_type: int, entries: bytes, entry_length: int) -> int:
        """Tell the IOMMU which entries of a guest's table changed; returns how many it took.

        ``entries`` are structs of ``entry_length`` bytes of ``IOMMU_HWPT_INVALIDATE_DATA_*``.
        Raises :class:`KernelError` with the number in its detail when it stopped early.
        """
        if entry_length < 1 or len(entries) % entry_length:
            raise UsageError(f"{len(entries)} bytes are no entries of {entry_length} bytes")
        count = len(entries) // entry_length
        with argument_memory(self.iommufd.kernel, entries) as memory:
            argument = abi.iommu_hwpt_invalidate(
                hwpt_id=self.id,
                data_uptr=memory.vaddr if count else 0,
                data_type=data_type,
                entry_len=entry_length,
                entry_num=count,
            )
            try:
                self.iommufd.request("IOMMU_HWPT_INVALIDATE", argument, self)
            except KernelError as error:
                raise KernelError(
                    error.operation,
                    error.subject,
                    error.errno or 0,
                    detail=f"took {argument.entry_num} of {count} entries",
                    hint=error.hint,
                ) from error
            return argument.entry_num

    def close(self) -> None:
        """Destroy it. Idempotent; raises :class:`KernelError` EBUSY while a device uses it."""
        if self.id and self.iommufd.fd >= 0:
            self.iommufd.destroy(self.id, self)
        self.id = 0
