"""A device that notes itself which memory it writes, for migration without IOMMU tracking.

Source: Linux ``vfio_main.c`` ``vfio_ioctl_device_feature_logging_*``; only drivers with log
operations have it (mlx5, pds, qat), plain vfio-pci has not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from vfiokit.abi import vfio as abi
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.dirty import DirtyBitmap, read_bitmap
from vfiokit.vfio.feature import Features
from vfiokit.vfio.memory import argument_memory


class DmaLog:
    """The log of one device."""

    def __init__(self, features: Features) -> None:
        self._features = features

    @property
    def supported(self) -> bool:
        """Whether the device has it."""
        return self._features.probe(abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START, set=True)

    def start(self, ranges: Iterable[IovaRange], page_size: int = 4096) -> int:
        """Watch ``ranges`` in pages of ``page_size``; returns the page size the device took.

        Raises :class:`KernelError`: EINVAL for none, overlapping or unaligned ranges, E2BIG for
        more than a page of them holds (256), EOVERFLOW, ENOTTY without support.
        """
        wanted = list(ranges)
        content = b"".join(struct.pack("<QQ", one.start, one.length) for one in wanted)
        with argument_memory(self._features.kernel, content) as memory:
            control = abi.vfio_device_feature_dma_logging_control(
                page_size=page_size, num_ranges=len(wanted), ranges=memory.vaddr
            )
            payload = self._features.set(
                abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START, bytes(control.pack())
            )
        return abi.vfio_device_feature_dma_logging_control.unpack_from(payload).page_size

    def stop(self) -> None:
        """Stop watching."""
        self._features.set(abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP)

    def dirty_bitmap(self, iova: int, length: int, page_size: int = 4096) -> DirtyBitmap:
        """Pages of ``[iova, iova + length)`` written since the start or the last call.

        Raises :class:`KernelError`: EINVAL when not watched, EOVERFLOW.
        """

        def ask(vaddr: int, _size: int) -> None:
            report = abi.vfio_device_feature_dma_logging_report(
                iova=iova, length=length, page_size=page_size, bitmap=vaddr
            )
            self._features.get(abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, bytes(report.pack()))

        return read_bitmap(self._features.kernel, iova, length, page_size, ask)
