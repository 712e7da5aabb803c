"""Module parameters that can be changed while the kernel runs.

Source: Linux ``kernel/params.c``, ``lib/kstrtox.c:kstrtobool``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import Iommus
from vfiokit.machine.kernel.vfs import File

_TRUE = ("y", "Y", "t", "T", "1", "on", "oN", "On", "ON")
_FALSE = ("n", "N", "f", "F", "0", "of", "oF", "Of", "OF")


def flag(read: Callable[[], bool], write: Callable[[bool], None]) -> File:
    """A ``bool`` parameter: ``Y`` or ``N``; EINVAL for what is neither."""

    def store(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for value, words in ((True, _TRUE), (False, _FALSE)):
            if text.startswith(words):
                write(value)
                return
        raise failure(errno.EINVAL, f"{text!r} is neither Y nor N")

    return File(lambda: b"Y\n" if read() else b"N\n", store)


def number(read: Callable[[], int], write: Callable[[int], None]) -> File:
    """A ``uint`` parameter; EINVAL for what is no number, ERANGE beyond 32 bits."""

    def store(data: bytes) -> None:
        try:
            value = int(data.decode("ascii", "replace").strip(), 0)
        except ValueError:
            raise failure(errno.EINVAL, f"{data!r} is no number") from None
        if not 0 <= value < 1 << 32:
            raise failure(errno.ERANGE if value > 0 else errno.EINVAL, f"{value} does not fit")
        write(value)

    return File(lambda: b"%d\n" % read(), store)


class ModuleParameters:
    """The parameters that something of the machine heeds."""

    def __init__(
        self, iommus: Iommus, *, dma_entry_limit: int, allow_unsafe_interrupts: bool
    ) -> None:
        """``allow_unsafe_interrupts`` is for containers and for iommufd."""
        self._iommus = iommus
        iommus.allow_unsafe_interrupts = allow_unsafe_interrupts
        self.iommufd_unsafe_interrupts = allow_unsafe_interrupts
        self.dma_entry_limit = dma_entry_limit
        self.type1_large_pages = True
        self.idle_in_d3 = True
        self.enable_sriov = False
        self.unsafe_noiommu = False

    def files(self) -> dict[str, File]:
        """The parameters as files, by ``module/name``."""
        return {
            "vfio_iommu_type1/allow_unsafe_interrupts": flag(
                lambda: self._iommus.allow_unsafe_interrupts,
                lambda value: setattr(self._iommus, "allow_unsafe_interrupts", value),
            ),
            "vfio_iommu_type1/dma_entry_limit": number(
                lambda: self.dma_entry_limit, lambda value: setattr(self, "dma_entry_limit", value)
            ),
            "vfio_iommu_type1/disable_hugepages": self._flag("type1_large_pages", inverted=True),
            "vfio_pci/disable_idle_d3": self._flag("idle_in_d3", inverted=True),
            "vfio_pci/enable_sriov": self._flag("enable_sriov"),
            "vfio/enable_unsafe_noiommu_mode": self._flag("unsafe_noiommu"),
            "iommufd/allow_unsafe_interrupts": self._flag("iommufd_unsafe_interrupts"),
        }

    def _flag(self, name: str, *, inverted: bool = False) -> File:
        return flag(
            lambda: getattr(self, name) is not inverted,
            lambda value: setattr(self, name, value is not inverted),
        )
