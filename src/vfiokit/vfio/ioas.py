"""An I/O address space of iommufd: what :class:`Container` is to groups, for devices' own nodes.

Source: Linux ``drivers/iommu/iommufd/ioas.c`` and ``io_pagetable.c``.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable

from vfiokit.abi import iommufd as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.failure import kernel_error
from vfiokit.vfio.iommufd import Iommufd
from vfiokit.vfio.mapping import MappedSpace
from vfiokit.vfio.memory import argument_memory
from vfiokit.vfio.owner import Owner

_EVERYTHING = (1 << 64) - 1
_MAX_RANGES = 1 << 16


class Ioas(Owner, MappedSpace):
    """One IOAS: mappings that every device attached to it sees.

    Usable at once; attaching a device may take IOVAs away (:meth:`refresh` learns which, and
    opening a device in it does so by itself). IOVAs are chosen by vfiokit, which keeps to
    ``max_iova`` and ``alignment``; with ``kernel_chooses`` by the kernel where neither is given.
    """

    def __init__(
        self,
        iommufd: Iommufd,
        ioas_id: int,
        *,
        owns_iommufd: bool = False,
        kernel_chooses: bool = False,
    ) -> None:
        """Take over the IOAS ``ioas_id``; :meth:`create` and :meth:`open` make one."""
        super().__init__(iommufd.kernel)
        self.iommufd = iommufd
        """The descriptor it lives in."""
        self.id = ioas_id
        """Its number there; 0 once closed."""
        self._owns_iommufd = owns_iommufd
        self._kernel_chooses = kernel_chooses
        self._ranges: tuple[IovaRange, ...] = ()
        self._allowed: tuple[IovaRange, ...] = ()

    @classmethod
    def create(
        cls, iommufd: Iommufd, *, owns_iommufd: bool = False, kernel_chooses: bool = False
    ) -> Ioas:
        """A new IOAS in ``iommufd``, closed along with it if it owns that.

        Raises :class:`KernelError`.
        """
        made = iommufd.request("IOMMU_IOAS_ALLOC", abi.iommu_ioas_alloc())
        ioas = cls(
            iommufd, made.out_ioas_id, owns_iommufd=owns_iommufd, kernel_chooses=kernel_chooses
        )
        try:
            ioas.refresh()
        except BaseException:
            ioas.close()
            raise
        return ioas

    @classmethod
    def open(cls, kernel: Kernel, *, kernel_chooses: bool = False) -> Ioas:
        """A new IOAS in a ``/dev/iommu`` of its own; raises :class:`KernelError`."""
        iommufd = Iommufd.open(kernel)
        try:
            return cls.create(iommufd, owns_iommufd=True, kernel_chooses=kernel_chooses)
        except BaseException:
            iommufd.close()
            raise

    def __str__(self) -> str:
        return f"IOAS {self.id}" if self.id else "closed IOAS"

    def __repr__(self) -> str:
        return f"<Ioas {self.id or 'closed'} mappings={len(self._mappings)}>"

    @property
    def _holds(self) -> bool:
        return bool(self.id) and self.iommufd.fd >= 0

    # -- ranges -------------------------------------------------------------------------------

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """Ranges that can be mapped: all of 64 bits until a device is attached."""
        self._require_usable()
        return self._ranges

    def refresh(self) -> None:
        """Learn ranges and page size anew: devices that come and go change them."""
        self._require_usable()
        self._ranges, alignment = self._ask_ranges()
        # Without a device the kernel would map single bytes; no device can follow that.
        page_size = alignment if alignment > 1 else self._kernel.page_size
        allowed = self._allowed or (IovaRange(0, _EVERYTHING),)
        self._renew_allocator(_common(self._ranges, allowed), page_size)

    def _ask_ranges(self) -> tuple[tuple[IovaRange, ...], int]:
        entry = abi.iommu_iova_range.SIZE
        count = 32
        while count <= _MAX_RANGES:
            with argument_memory(self._kernel, size=count * entry) as memory:
                argument = abi.iommu_ioas_iova_ranges(
                    ioas_id=self.id, num_iovas=count, allowed_iovas=memory.vaddr
                )
                try:
                    self.iommufd.request("IOMMU_IOAS_IOVA_RANGES", argument, self)
                except KernelError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
                    count = max(argument.num_iovas, count + 1)
                    continue
                content = bytes(memory.view[: argument.num_iovas * entry])
                found = sorted(IovaRange(*pair) for pair in struct.iter_unpack("<QQ", content))
                return tuple(found), argument.out_iova_alignment
        raise KernelError(
            "IOMMU_IOAS_IOVA_RANGES", str(self), errno.EPROTO, detail="ever more ranges"
        )

    def allow_iovas(self, ranges: Iterable[IovaRange]) -> None:
        """Ranges that must stay usable, whichever device is attached; replaces those before.

        The kernel then refuses a device that reserves a part of them. IOVAs are chosen in them
        only; fixed ones may lie elsewhere. None at all lifts the demand. Raises
        :class:`KernelError` (EADDRINUSE when a device attached already reserves some, EINVAL for
        ranges of one byte or that overlap).
        """
        self._require_usable()
        wanted = list(ranges)
        content = b"".join(struct.pack("<QQ", start, last) for start, last in wanted)
        with argument_memory(self._kernel, content) as memory:
            argument = abi.iommu_ioas_allow_iovas(
                ioas_id=self.id,
                num_iovas=len(wanted),
                allowed_iovas=memory.vaddr if wanted else 0,
            )
            detail = ", ".join(map(str, wanted))
            self.iommufd.request("IOMMU_IOAS_ALLOW_IOVAS", argument, f"{self} {detail}")
        self._allowed = tuple(sorted(wanted))
        self.refresh()

    # -- mappings -----------------------------------------------------------------------------

    def map_file(
        self,
        fd: int,
        length: int,
        *,
        start: int = 0,
        iova: int | None = None,
        max_iova: int | None = None,
        alignment: int = 0,
        read: bool = True,
        write: bool = True,
    ) -> int:
        """Map ``length`` bytes from ``start`` of a memfd, or of a VFIO device's dma-buf.

        The latter is how one device reaches another's BAR. When it is revoked (memory decoding
        switched off, reset, sleep) its mapping is gone for the device and does not come back:
        unmap and map again. Returns the IOVA; raises as :meth:`map`, also EOPNOTSUPP for other
        files, ENODEV for a revoked dma-buf.
        """
        self._require_access(read, write)

        def ask(chosen: int | None) -> int:
            argument = abi.iommu_ioas_map_file(
                flags=_flags(chosen, read, write),
                ioas_id=self.id,
                fd=fd,
                start=start,
                length=length,
                iova=chosen or 0,
            )
            return self.iommufd.request("IOMMU_IOAS_MAP_FILE", argument, self).iova

        return self._place(ask, length, iova, max_iova, alignment)

    def copy_from(
        self,
        source: Ioas,
        source_iova: int,
        length: int,
        *,
        iova: int | None = None,
        max_iova: int | None = None,
        alignment: int = 0,
        read: bool = True,
        write: bool = True,
    ) -> int:
        """Map here what ``source`` has mapped at ``source_iova``; memory is pinned only once.

        Both are in one :class:`Iommufd` (:class:`UsageError`). Returns the IOVA; raises as
        :meth:`map`, also ENOENT unless the whole source range is mapped.
        """
        self._require_access(read, write)
        if source.iommufd is not self.iommufd:
            raise UsageError(f"{self} and {source} are of different iommufds")

        def ask(chosen: int | None) -> int:
            argument = abi.iommu_ioas_copy(
                flags=_flags(chosen, read, write),
                dst_ioas_id=self.id,
                src_ioas_id=source.id,
                length=length,
                dst_iova=chosen or 0,
                src_iova=source_iova,
            )
            return self.iommufd.request("IOMMU_IOAS_COPY", argument, self).dst_iova

        return self._place(ask, length, iova, max_iova, alignment)

    def unmap(self, iova: int, length: int) -> None:
        """``IOMMU_IOAS_UNMAP`` of everything mapped in ``[iova, iova + length)``.

        Raises :class:`KernelError` ENOENT when nothing is mapped there, or only a part of a
        mapping lies in the range; mappings known here are then all left, or, where the range
        cuts one made through another object, all gone.
        """
        if self._mappings.get(iova) == length:
            inside = [iova]
        else:
            self._require_whole(iova, iova + length)
            inside = [start for start in self._mappings if iova <= start < iova + length]
        try:
            self._ask_unmap(iova, length)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                self._finish_unmap(inside)
            raise
        for start in inside:
            self._forget(start)

    def _require_whole(self, first: int, end: int) -> None:
        """Raise what the kernel would, before it takes away what lies before the cut."""
        for start, size in self._mappings.items():
            overlaps = start < end and first < start + size
            if overlaps and not (first <= start and start + size <= end):
                detail = f"[{first:#x}, {end - 1:#x}] cuts [{start:#x}, {start + size - 1:#x}]"
                raise kernel_error(
                    "IOMMU_IOAS_UNMAP", self, OSError(errno.ENOENT, "part of a mapping"), detail
                )

    def _finish_unmap(self, starts: list[int]) -> None:
        """After a request that stopped somewhere: some of ``starts`` are gone, others not."""
        for start in starts:
            try:
                self._ask_unmap(start, self._mappings[start])
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    continue
            self._forget(start)

    def unmap_all(self) -> None:
        """Take every mapping away, those made through other objects too."""
        self._require_usable()
        self._ask_unmap(0, _EVERYTHING)
        for start in list(self._mappings):
            self._forget(start)

    def _ask_unmap(self, iova: int, length: int) -> None:
        self._require_usable()
        argument = abi.iommu_ioas_unmap(ioas_id=self.id, iova=iova, length=length)
        self.iommufd.request("IOMMU_IOAS_UNMAP", argument, self)

    def _ask_map(self, vaddr: int, length: int, iova: int | None, read: bool, write: bool) -> int:
        argument = abi.iommu_ioas_map(
            flags=_flags(iova, read, write),
            ioas_id=self.id,
            user_va=vaddr,
            length=length,
            iova=iova or 0,
        )
        return self.iommufd.request("IOMMU_IOAS_MAP", argument, self).iova

    def _place(
        self,
        ask: Callable[[int | None], int],
        length: int,
        iova: int | None,
        max_iova: int | None,
        alignment: int,
    ) -> int:
        if not self._kernel_chooses or iova is not None or max_iova is not None or alignment:
            return super()._place(ask, length, iova, max_iova, alignment)
        self._require_usable()
        chosen = ask(None)
        assert self._allocator is not None
        self._note(chosen, length, self._reserve(self._allocator, chosen, length))
        return chosen

    # -- options and end ----------------------------------------------------------------------

    @property
    def uses_large_pages(self) -> bool:
        """Whether the kernel may merge neighbouring pages into large ones, as it does at first."""
        return bool(self.iommufd.option(abi.IOMMU_OPTION_HUGE_PAGES, self.id))

    def use_large_pages(self, enabled: bool = True) -> None:
        """Allow or forbid that; before devices are attached or memory is mapped (EINVAL after)."""
        self.iommufd.set_option(abi.IOMMU_OPTION_HUGE_PAGES, int(enabled), self.id)

    def close(self) -> None:
        """Destroy the IOAS, and the iommufd if it is its own; mappings end with it. Idempotent.

        Raises :class:`KernelError` EBUSY, and nothing changes, while a device or a page table
        uses an IOAS of a shared iommufd. Memory of open buffers is freed as by a container.
        """
        if not self.id:
            return
        if self._owns_iommufd:
            self.iommufd.close()
        elif self.iommufd.fd >= 0:
            self.iommufd.destroy(self.id, self)
        self.id = 0
        self._drop_mappings()

    def _require_usable(self) -> None:
        if not self.id or self.iommufd.fd < 0:
            raise UsageError("the IOAS is closed")


def _flags(iova: int | None, read: bool, write: bool) -> int:
    return (
        (0 if iova is None else abi.IOMMU_IOAS_MAP_FIXED_IOVA)
        | (abi.IOMMU_IOAS_MAP_READABLE if read else 0)
        | (abi.IOMMU_IOAS_MAP_WRITEABLE if write else 0)
    )


def _common(first: tuple[IovaRange, ...], second: tuple[IovaRange, ...]) -> tuple[IovaRange, ...]:
    """The addresses that are in both."""
    pairs = ((max(a.start, b.start), min(a.last, b.last)) for a in first for b in second)
    return tuple(IovaRange(start, last) for start, last in sorted(pairs) if start <= last)
