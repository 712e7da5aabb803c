"""RLIMIT_MEMLOCK: how much memory the process and its user have locked.

VFIO's containers count per process (``mm->locked_vm``). iommufd counts per user
(``user->locked_vm``) unless ``IOMMU_OPTION_RLIMIT_MODE`` says otherwise, so that the two add up
to more than the limit. Source: Linux ``drivers/iommu/iommufd/pages.c:do_update_pinned``,
``drivers/vfio/vfio_iommu_type1.c:mm_lock_acct``.
"""

from __future__ import annotations

import errno

from vfiokit.machine.kernel.failure import failure


class LockedMemory:
    """The two counters; ``limit`` is RLIMIT_MEMLOCK in bytes, ``None`` with CAP_IPC_LOCK."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.by_process = 0
        """Bytes."""
        self.by_user = 0
        """Bytes."""

    def charge(self, length: int, *, user: bool = False) -> None:
        """Count ``length`` bytes more; ENOMEM, and nothing changes, beyond the limit."""
        locked = (self.by_user if user else self.by_process) + length
        if length and self.limit is not None and locked > self.limit:
            raise failure(
                errno.ENOMEM, f"{locked:#x} bytes locked, RLIMIT_MEMLOCK is {self.limit:#x}"
            )
        self._add(length, user)

    def uncharge(self, length: int, *, user: bool = False) -> None:
        """Count ``length`` bytes less."""
        self._add(-length, user)

    def _add(self, length: int, user: bool) -> None:
        if user:
            self.by_user += length
        else:
            self.by_process += length
