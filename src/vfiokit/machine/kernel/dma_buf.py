"""Parts of a BAR as a dma-buf, for the address space of another device.

Source: Linux ``drivers/vfio/pci/vfio_pci_dmabuf.c``, ``drivers/iommu/iommufd/pages.c``
(``iopt_alloc_dmabuf_pages``).
"""

from __future__ import annotations

import errno
import struct
import weakref

from vfiokit.abi import vfio as abi
from vfiokit.kernel.port import Mapping
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.open_file import Stream
from vfiokit.machine.kernel.pages import Pages
from vfiokit.machine.kernel.pci_device import IORESOURCE_MEM, PciDevice
from vfiokit.machine.kernel.process import PAGE_SIZE, Extent, Region

_BARS = 6
_HEAD = abi.vfio_device_feature_dma_buf
_RANGE = abi.vfio_region_dma_range


class DmaBuf(Stream):
    """An open dma-buf: ``extents`` of a device's memory as hpa and length."""

    name = "a dma-buf"

    def __init__(self, extents: list[tuple[int, int]], *, revoked: bool) -> None:
        super().__init__()
        self.extents = extents
        self.revoked = revoked
        """Whether new mappings are refused (ENODEV)."""
        self._importers: weakref.WeakSet[Pages] = weakref.WeakSet()

    @property
    def length(self) -> int:
        """Bytes."""
        return sum(length for _hpa, length in self.extents)

    def mmap(self, length: int, offset: int, protection: int) -> Mapping:
        """EINVAL: it is for devices, not for the processor."""
        del length, offset, protection
        raise failure(errno.EINVAL, "a dma-buf of a BAR is not mapped by the processor")

    def source(self, start: int, length: int) -> DmaBufSource:
        """Its memory for an IOAS.

        EOPNOTSUPP for more than one range, EINVAL beyond the end, ENODEV while revoked.
        """
        if len(self.extents) > 1:
            raise failure(errno.EOPNOTSUPP, f"a dma-buf of {len(self.extents)} ranges")
        if start + length > self.length:
            raise failure(errno.EINVAL, f"{length:#x} bytes at {start:#x} are beyond the dma-buf")
        if self.revoked:
            raise failure(errno.ENODEV, "the dma-buf is revoked")
        return DmaBufSource(self)

    def imported(self, pages: Pages) -> None:
        """``pages`` loses its mappings when this is revoked."""
        self._importers.add(pages)

    def revoke(self) -> None:
        """Take every mapping away; they do not come back by themselves."""
        self.revoked = True
        for pages in tuple(self._importers):
            pages.revoke()
        self._importers.clear()


class DmaBufSource:
    """The memory of a dma-buf of one range."""

    from_file = False
    counted = False

    def __init__(self, buffer: DmaBuf) -> None:
        self.buffer = buffer
        self.hold = buffer.hold
        self.drop = buffer.drop

    def resolve(self, start: int, length: int) -> tuple[Region, Extent]:
        """Device memory, which nothing needs to pin."""
        hpa, size = self.buffer.extents[0]
        region = Region(0, size, hpa, mmio=True, on_free=lambda: None)
        return region, Extent(hpa + start, length, True)


class Exports:
    """Every dma-buf of one opened function."""

    def __init__(self, device: PciDevice) -> None:
        self._device = device
        self._buffers: weakref.WeakSet[DmaBuf] = weakref.WeakSet()

    def add(self, payload: bytes, *, accessible: bool) -> DmaBuf:
        """``VFIO_DEVICE_FEATURE_DMA_BUF``: ``payload`` is the struct and its ranges.

        EINVAL for no range, flags, ranges that are not pages of a memory BAR; ENODEV for a region
        that is no BAR in use; EFAULT when the buffer ends before the ranges; EOVERFLOW.
        """
        head = _HEAD.unpack_from(payload)
        if not head.nr_ranges or head.flags:
            raise failure(errno.EINVAL, "no ranges, or unknown flags")
        if head.region_index >= _BARS or not self._device.resource(head.region_index).size:
            raise failure(errno.ENODEV, f"region {head.region_index} is no BAR in use")
        if len(payload) < _HEAD.SIZE + head.nr_ranges * _RANGE.SIZE:
            raise failure(errno.EFAULT, f"the buffer ends before {head.nr_ranges} ranges")
        words = struct.unpack_from(f"<{2 * head.nr_ranges}Q", payload, _HEAD.SIZE)
        bar = self._device.resource(head.region_index)
        extents: list[tuple[int, int]] = []
        for offset, length in zip(words[::2], words[1::2], strict=True):
            if not length or (offset | length) % PAGE_SIZE:
                raise failure(errno.EINVAL, f"{length:#x} bytes at {offset:#x} are no pages")
            if offset + length >> 64:
                raise failure(errno.EOVERFLOW, "offset + length wraps around")
            if offset + length > bar.size:
                raise failure(errno.EINVAL, f"{length:#x} bytes at {offset:#x} are not in the BAR")
            extents.append((bar.start + offset, length))
        if not bar.flags & IORESOURCE_MEM:
            raise failure(errno.EINVAL, f"BAR {head.region_index} is no memory")
        made = DmaBuf(extents, revoked=not accessible)
        self._buffers.add(made)
        return made

    def revoke(self) -> None:
        """The memory is out of reach, or is about to be."""
        for buffer in tuple(self._buffers):
            buffer.revoke()

    def restore(self) -> None:
        """The memory is back: new mappings may be made."""
        for buffer in tuple(self._buffers):
            buffer.revoked = False

    def close(self) -> None:
        """The function is closed: revoke for good."""
        self.revoke()
        self._buffers.clear()
