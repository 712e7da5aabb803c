"""Parts of a BAR as a dma-buf: what another device's address space maps to reach them.

Source: Linux ``drivers/vfio/pci/vfio_pci_dmabuf.c``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vfiokit.abi import vfio as abi
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.feature import Features
from vfiokit.vfio.owner import Owner
from vfiokit.vfio.region import SparseArea

_O_RDWR = 0o2
_O_CLOEXEC = 0o2000000


class RegionExport(Owner):
    """A dma-buf of a device's memory; give :meth:`fileno` and :attr:`length` to ``Ioas.map_file``.

    It is revoked while the device's memory decoding is off, while it sleeps or is reset, and for
    good when it is closed: other devices' accesses fault then.
    """

    def __init__(self, kernel: Kernel, fd: int, name: str, areas: tuple[SparseArea, ...]) -> None:
        """Take over the dma-buf ``fd``; :func:`export_region` makes one."""
        self._kernel = kernel
        self._fd = fd
        self._name = name
        self.areas = areas
        """The parts of the region, in the order they have in the dma-buf."""

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<RegionExport {self._name}{'' if self._fd >= 0 else ' closed'}>"

    @property
    def _holds(self) -> bool:
        return self._fd >= 0

    @property
    def length(self) -> int:
        """Bytes in the dma-buf."""
        return sum(area.length for area in self.areas)

    def fileno(self) -> int:
        """The dma-buf's descriptor; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; mappings made of it stay. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._kernel.close(fd)


def export_region(
    features: Features, region_index: int, areas: Sequence[SparseArea]
) -> RegionExport:
    """A dma-buf of ``areas`` (bytes within the region, multiples of the page).

    iommufd maps those of exactly one area. Raises :class:`KernelError`: ENOTTY in kernels
    without it, EOPNOTSUPP by a driver without it, ENODEV for a region that is no BAR, EINVAL
    for no area, unaligned ones or ones beyond the region.
    """
    head = abi.vfio_device_feature_dma_buf(
        region_index=region_index, open_flags=_O_RDWR | _O_CLOEXEC, nr_ranges=len(areas)
    )
    ranges = b"".join(
        bytes(abi.vfio_region_dma_range(offset=area.offset, length=area.length).pack())
        for area in areas
    )
    fd, _payload = features.get(abi.VFIO_DEVICE_FEATURE_DMA_BUF, bytes(head.pack()) + ranges)
    name = f"region {region_index} of {features}"
    return RegionExport(features.kernel, fd, name, tuple(areas))
