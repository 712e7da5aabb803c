"""Memory that areas of I/O address spaces map, pinned once however often it is mapped.

Source: Linux ``drivers/iommu/iommufd/pages.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vfiokit.machine.kernel.locked_memory import LockedMemory
from vfiokit.machine.kernel.process import PAGE_SIZE, Extent, Region


class Source(Protocol):
    """Where the bytes are: the process, or a file."""

    from_file: bool
    """Whether the mapping survives the process."""
    counted: bool
    """Whether the bytes count as locked memory."""

    def resolve(self, start: int, length: int) -> tuple[Region, Extent]:
        """The frames behind ``length`` bytes at vaddr or offset ``start``."""
        ...

    def hold(self) -> None:
        """An area maps it."""
        ...

    def drop(self) -> None:
        """An area maps it no longer."""
        ...


class Account:
    """Whom an iommufd counts its pinned memory to (``IOMMU_OPTION_RLIMIT_MODE``)."""

    def __init__(self, locked: LockedMemory) -> None:
        self.by_process = False
        self._locked = locked

    def charge(self, length: int, *, user: bool) -> None:
        """ENOMEM beyond the limit."""
        self._locked.charge(length, user=user)

    def uncharge(self, length: int, *, user: bool) -> None:
        """Undo :meth:`charge`."""
        self._locked.uncharge(length, user=user)


class Pin:
    """Frames that stay while an IOMMU may reach them."""

    __slots__ = ("end", "extent", "region", "start")

    def __init__(self, start: int, end: int, region: Region, extent: Extent) -> None:
        self.start = start
        self.end = end
        self.region = region
        self.extent = extent


class Pages:
    """What one ``IOMMU_IOAS_MAP`` named, shared by the areas that were copied from it."""

    def __init__(self, source: Source, account: Account, *, writable: bool) -> None:
        self.source = source
        self.writable = writable
        """Whether a copy may be writable."""
        self._account = account
        self._user = not account.by_process
        self.revoked = False
        """Whether the memory is gone for good: areas stay, translations do not."""
        self._areas: dict[object, Callable[[], None]] = {}
        self._pins: list[Pin] = []
        self._charged = 0

    def entered(self, area: object, withdraw: Callable[[], None]) -> None:
        """``area`` maps it; ``withdraw`` takes its translations away."""
        self._areas[area] = withdraw
        self.source.hold()

    def left(self, area: object) -> None:
        """``area`` maps it no longer."""
        del self._areas[area]
        self.source.drop()

    def revoke(self) -> None:
        """The memory's owner takes it back."""
        self.revoked = True
        for withdraw in self._areas.values():
            withdraw()

    def pin(self, start: int, length: int) -> Pin:
        """Pin ``length`` bytes at ``start`` and whatever shares their first and last page.

        EFAULT or EINVAL where there is no such memory, ENOMEM beyond RLIMIT_MEMLOCK. Frames that
        are pinned already need not be mapped in the process any more.
        """
        first = start & -PAGE_SIZE
        end = -(-(start + length) // PAGE_SIZE) * PAGE_SIZE
        region, extent = self._find(first, end - first)
        pin = Pin(first, end, region, extent)
        self._pins.append(pin)
        try:
            self._settle()
        except OSError:
            self._pins.remove(pin)
            raise
        region.pin()
        return pin

    def unpin(self, pin: Pin) -> None:
        """Undo one :meth:`pin`."""
        self._pins.remove(pin)
        self._settle()
        pin.region.unpin()

    def _find(self, first: int, length: int) -> tuple[Region, Extent]:
        for pin in self._pins:
            if pin.start <= first and first + length <= pin.end:
                hpa = pin.extent.hpa + first - pin.start
                return pin.region, Extent(hpa, length, pin.extent.mmio)
        return self.source.resolve(first, length)

    def _settle(self) -> None:
        """Charge for what is pinned at least once."""
        total = reached = 0
        for pin in sorted(self._pins, key=lambda each: each.start):
            total += max(pin.end - max(pin.start, reached), 0)
            reached = max(reached, pin.end)
        total *= self.source.counted
        if total > self._charged:
            self._account.charge(total - self._charged, user=self._user)
        else:
            self._account.uncharge(self._charged - total, user=self._user)
        self._charged = total
