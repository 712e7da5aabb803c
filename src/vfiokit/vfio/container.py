"""The container: an address space shared by the groups attached to it, or none without an IOMMU.

Source: Linux ``drivers/vfio/container.c`` (states, no-IOMMU), ``vfio_iommu_type1.c`` (map, unmap,
dirty pages).
"""

from __future__ import annotations

import errno
from enum import IntEnum

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.dirty import DirtyBitmap, read_bitmap
from vfiokit.vfio.failure import kernel_error, request
from vfiokit.vfio.group import Group
from vfiokit.vfio.info import query
from vfiokit.vfio.mapping import MappedSpace
from vfiokit.vfio.owner import Owner
from vfiokit.vfio.type1_info import IommuInfo, decode_info

_NODE = "/dev/vfio/vfio"
_OPEN_HINTS = {
    errno.ENOENT: "load the vfio module; kernels without CONFIG_VFIO_GROUP have no containers",
    errno.EACCES: f"run with privilege, or give your user the node {_NODE}",
}
# Kernels without the range capability: 39 bits is the narrowest IOMMU in use, and the x86 MSI
# window can never be mapped.
_DEFAULT_RANGES = (IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, (1 << 39) - 1))


class IommuType(IntEnum):
    """What ``VFIO_SET_IOMMU`` accepts here; v2 unmaps whole mappings only."""

    TYPE1 = abi.VFIO_TYPE1_IOMMU
    TYPE1V2 = abi.VFIO_TYPE1v2_IOMMU
    NOIOMMU = abi.VFIO_NOIOMMU_IOMMU
    """Nothing translates and nothing can be mapped; for groups without an IOMMU only."""


class Container(Owner, MappedSpace):
    """An open ``/dev/vfio/vfio`` with its groups, its mappings and the DMA memory made for it.

    Implements :class:`~vfiokit.vfio.address_space.AddressSpace` once a group is attached. With a
    no-IOMMU group it is no address space: ``map`` and ``allocate`` raise :class:`KernelError`,
    because the device would reach physical memory, and all of it.
    """

    def __init__(self, kernel: Kernel, fd: int, iommu_type: IommuType | None = None) -> None:
        super().__init__(kernel)
        self.fd = fd
        """The descriptor; -1 once closed."""
        self.iommu_type = iommu_type
        """Type asked for, or found when the first group came; ``None`` before."""
        self._groups: dict[int, tuple[Group, int]] = {}
        self._info: IommuInfo | None = None

    @classmethod
    def open(cls, kernel: Kernel, iommu_type: IommuType | int | None = None) -> Container:
        """Open ``/dev/vfio/vfio`` and check its API version.

        ``iommu_type`` ``None`` takes type1v2 where the kernel has it, and no-IOMMU when the
        first group has none. Raises :class:`KernelError`; ENOENT when the ``vfio`` module is not
        loaded.
        """
        wanted = None if iommu_type is None else IommuType(iommu_type)
        try:
            fd = kernel.open(_NODE)
        except OSError as error:
            hint = _OPEN_HINTS.get(error.errno or 0, "")
            raise kernel_error("open", _NODE, error, hint=hint) from error
        container = cls(kernel, fd, wanted)
        try:
            version = request(kernel, fd, "VFIO_GET_API_VERSION", 0, container)
            if version != abi.VFIO_API_VERSION:
                raise KernelError(
                    "VFIO_GET_API_VERSION",
                    str(container),
                    errno.EPROTO,
                    detail=f"the kernel speaks version {version}, this library version 0",
                )
        except BaseException:
            container.close()
            raise
        return container

    def __str__(self) -> str:
        groups = ", ".join(str(number) for number in self._groups)
        return f"container of group {groups}" if groups else "container"

    def __repr__(self) -> str:
        state = "" if self.fd >= 0 else " closed"
        return f"<Container groups={list(self._groups)} mappings={len(self._mappings)}{state}>"

    @property
    def _holds(self) -> bool:
        return self.fd >= 0

    @property
    def group_fds(self) -> dict[int, int]:
        """Descriptors of the attached groups, by number."""
        return {number: group.fd for number, (group, _users) in self._groups.items()}

    # -- groups -------------------------------------------------------------------------------

    def check_extension(self, extension: int) -> int:
        """``VFIO_CHECK_EXTENSION``: 0 when the kernel does not have ``extension``."""
        return request(self._kernel, self.fd, "VFIO_CHECK_EXTENSION", extension, self)

    def attach(self, number: int) -> Group:
        """Open IOMMU group ``number`` and attach it, or count one more user of it.

        The first group makes the container an address space. Raises
        :class:`GroupNotViableError` and :class:`KernelError`.
        """
        if number in self._groups:
            group, users = self._groups[number]
            self._groups[number] = (group, users + 1)
            return group
        group = Group.open(self._kernel, number)
        try:
            group.require_viable()
            group.set_container(self.fd)
            if not self._groups:
                self._set_iommu(group)
            self._groups[number] = (group, 1)
            self.refresh()
        except BaseException:
            self._groups.pop(number, None)
            group.close()
            raise
        return group

    def detach(self, group: Group) -> None:
        """One user of ``group`` less; the last one detaches and closes it.

        When the container loses its last group, the kernel drops every mapping.
        """
        known, users = self._groups.get(group.number, (None, 0))
        if known is not group:
            raise UsageError(f"{group} is not attached to this {self}")
        if users > 1:
            self._groups[group.number] = (group, users - 1)
            return
        group.unset_container()
        del self._groups[group.number]
        group.close()
        if self._groups:
            self.refresh()
        else:
            self._drop_mappings()
            self._info = self._allocator = None

    def _set_iommu(self, group: Group) -> None:
        if self.iommu_type:
            kinds = [self.iommu_type]
        elif group.noiommu:
            kinds = [IommuType.NOIOMMU]
        else:
            kinds = [IommuType.TYPE1V2, IommuType.TYPE1]
        for kind in kinds:
            if self.check_extension(kind):
                break
        else:
            raise KernelError(
                "VFIO_CHECK_EXTENSION",
                str(self),
                errno.ENODEV,
                detail=f"no support for {', '.join(kind.name for kind in kinds)}",
                hint="the kernel has no CONFIG_VFIO_NOIOMMU"
                if kinds == [IommuType.NOIOMMU]
                else "load the vfio_iommu_type1 module",
            )
        request(self._kernel, self.fd, "VFIO_SET_IOMMU", int(kind), self, kind.name)
        self.iommu_type = kind

    def refresh(self) -> None:
        """Learn ranges and page sizes anew: every attached group may narrow them.

        Where iommufd stands in for the container, opening a device does. Both are seen to by
        :meth:`attach` and ``open_device``.
        """
        if self.iommu_type == IommuType.NOIOMMU:
            return
        self._info = info = self._query()
        # 64 KiB-page kernels report what the IOMMU has, whatever the CPU's page is.
        page_size = info.page_sizes & -info.page_sizes or self._kernel.page_size
        self._renew_allocator(info.iova_ranges or _DEFAULT_RANGES, page_size)

    def _query(self) -> IommuInfo:
        blank = abi.vfio_iommu_type1_info()
        return decode_info(*query(self._kernel, self.fd, "VFIO_IOMMU_GET_INFO", blank, self))

    # -- address space ------------------------------------------------------------------------

    @property
    def info(self) -> IommuInfo:
        """What the kernel says about the IOMMU, asked afresh."""
        self._require_usable()
        return self._query()

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """Ranges that can be mapped; a cautious guess where the kernel does not say.

        None at all without an IOMMU.
        """
        self._require_group()
        if self._info is None:
            return ()
        return self._info.iova_ranges or _DEFAULT_RANGES

    def _ask_map(self, vaddr: int, length: int, iova: int | None, read: bool, write: bool) -> int:
        assert iova is not None
        argument = abi.vfio_iommu_type1_dma_map(
            argsz=abi.vfio_iommu_type1_dma_map.SIZE,
            flags=(abi.VFIO_DMA_MAP_FLAG_READ if read else 0)
            | (abi.VFIO_DMA_MAP_FLAG_WRITE if write else 0),
            vaddr=vaddr,
            iova=iova,
            size=length,
        )
        request(self._kernel, self.fd, "VFIO_IOMMU_MAP_DMA", argument, self)
        return iova

    def unmap(self, iova: int, length: int) -> None:
        """``VFIO_IOMMU_UNMAP_DMA`` of everything mapped in ``[iova, iova + length)``.

        Raises :class:`KernelError`: EINVAL for a part of a type1v2 mapping, ENOENT when nothing
        is mapped there (the kernel calls that success, and unmaps 0 bytes).
        """
        self._ask_unmap(iova, length)

    def _ask_unmap(self, iova: int, length: int, flags: int = 0, tail: bytes = b"") -> None:
        head = abi.vfio_iommu_type1_dma_unmap
        argument = head(argsz=head.SIZE + len(tail), flags=flags, iova=iova, size=length)
        buffer = argument.pack() + tail
        request(self._kernel, self.fd, "VFIO_IOMMU_UNMAP_DMA", buffer, self, argument)
        unmapped = head.unpack_from(buffer).size
        if not unmapped:
            nothing = OSError(errno.ENOENT, "nothing is mapped there")
            raise kernel_error("VFIO_IOMMU_UNMAP_DMA", self, nothing, f"nothing at {iova:#x}")
        if self._mappings.get(iova) == unmapped:
            gone = [iova]
        else:
            # Type1 v1 may take a whole mapping although the request covered its head only.
            end = iova + max(unmapped, length)
            gone = [start for start in self._mappings if iova <= start < end]
        for start in gone:
            self._forget(start)

    def unmap_all(self) -> None:
        """Take every mapping away, in one request where the kernel can."""
        if not self._mappings:
            return
        if self.check_extension(abi.VFIO_UNMAP_ALL):
            argument = abi.vfio_iommu_type1_dma_unmap(
                argsz=abi.vfio_iommu_type1_dma_unmap.SIZE, flags=abi.VFIO_DMA_UNMAP_FLAG_ALL
            )
            request(self._kernel, self.fd, "VFIO_IOMMU_UNMAP_DMA", argument, self)
            for start in list(self._mappings):
                self._forget(start)
        else:
            for start, length in list(self._mappings.items()):
                self.unmap(start, length)

    # -- dirty pages --------------------------------------------------------------------------

    def start_dirty_tracking(self) -> None:
        """``VFIO_IOMMU_DIRTY_PAGES``: note from now on which pages devices may have written.

        Where a group's driver pins nothing by itself, as vfio-pci, the kernel knows no better
        than that every mapped page is dirty. Raises :class:`KernelError` (EACCES for type1 of
        version 1, ENOTTY where iommufd stands in for the container).
        """
        self._ask_dirty(abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_START)

    def stop_dirty_tracking(self) -> None:
        """Stop it."""
        self._ask_dirty(abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP)

    def dirty_bitmap(self, iova: int, length: int) -> DirtyBitmap:
        """The pages of ``[iova, iova + length)`` dirty since tracking began or the last call.

        Pages that are pinned stay dirty in every answer. Raises :class:`KernelError` EINVAL
        unless tracking is on and the range cuts no mapping.
        """

        def ask(vaddr: int, size: int) -> None:
            wanted = abi.vfio_iommu_type1_dirty_bitmap_get(
                iova=iova, size=length, pgsize=self.page_size, bitmap_size=size, data=vaddr
            )
            self._ask_dirty(abi.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, bytes(wanted.pack()))

        return read_bitmap(self._kernel, iova, length, self.page_size, ask)

    def unmap_dirty(self, iova: int, length: int) -> DirtyBitmap:
        """:meth:`unmap`, and which of the pages were dirty; tracking must be on (EINVAL)."""

        def ask(vaddr: int, size: int) -> None:
            wanted = abi.vfio_bitmap(pgsize=self.page_size, size=size, data=vaddr)
            flag = abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
            self._ask_unmap(iova, length, flag, bytes(wanted.pack()))

        return read_bitmap(self._kernel, iova, length, self.page_size, ask)

    def _ask_dirty(self, flag: int, tail: bytes = b"") -> None:
        self._require_usable()
        head = abi.vfio_iommu_type1_dirty_bitmap
        argument = head(argsz=head.SIZE + len(tail), flags=flag)
        buffer = argument.pack() + tail
        request(self._kernel, self.fd, "VFIO_IOMMU_DIRTY_PAGES", buffer, self, argument)

    # -- end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close groups and container; mappings end with them. Idempotent.

        Memory of buffers that are still open is freed, unless slices of it are in use: then it
        lives as long as they do.
        """
        if self.fd < 0:
            return
        for group, _users in self._groups.values():
            group.close()
        self._groups.clear()
        fd, self.fd = self.fd, -1
        self._kernel.close(fd)
        self._drop_mappings()

    def _require_group(self) -> None:
        if self.fd < 0:
            raise UsageError("the container is closed")
        if not self._groups:
            raise UsageError(
                "the container holds no group, so it is no address space yet",
                hint="attach a group first",
            )

    def _require_usable(self) -> None:
        self._require_group()
        if self.iommu_type == IommuType.NOIOMMU:
            raise KernelError(
                "VFIO_IOMMU_MAP_DMA",
                str(self),
                errno.ENOTTY,
                detail="there is no IOMMU between the device and memory, so nothing can be mapped",
                hint="registers and interrupts work; for DMA give the machine an IOMMU",
            )
