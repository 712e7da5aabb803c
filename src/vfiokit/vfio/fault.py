"""I/O page faults that a device waits for the answer to: records, responses, their queue.

The queue's descriptor is a stream of its own: readable when faults wait, ``read(2)`` gives whole
groups of :attr:`FaultQueue.RECORD_SIZE` bytes per record, ``write(2)`` takes responses. The seam
has no ``read`` of streams, so here are the descriptor and the codecs::

    if select.select([queue], [], [], timeout_s)[0]:
        for fault in decode_faults(os.read(queue.fileno(), 64 * queue.RECORD_SIZE)):
            if fault.last:
                os.write(queue.fileno(), encode_response(fault, resolved=True))

Source: Linux ``drivers/iommu/iommufd/eventq.c``.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from vfiokit.abi import iommufd as abi
from vfiokit.errors import FormatError
from vfiokit.vfio.iommufd import Iommufd
from vfiokit.vfio.owner import Owner


class PageFault(NamedTuple):
    """One fault; a group of them is answered once, by its last."""

    device_id: int
    """The bound device's number."""
    pasid: int | None
    group: int
    """Number of the group, the device's own."""
    last: bool
    """Whether the group ends here."""
    permissions: int
    """``IOMMU_PGFAULT_PERM_*`` that the access needs."""
    iova: int
    length: int
    """Bytes that the device will want, a hint; 0 for none."""
    cookie: int
    """What a response is addressed to."""


def decode_faults(data: bytes) -> list[PageFault]:
    """The records that were read; raises :class:`FormatError` for a part of one."""
    size = abi.iommu_hwpt_pgfault.SIZE
    if len(data) % size:
        raise FormatError(f"{len(data)} bytes are no fault records of {size} bytes")
    faults = []
    for offset in range(0, len(data), size):
        record = abi.iommu_hwpt_pgfault.unpack_from(data, offset)
        faults.append(
            PageFault(
                record.dev_id,
                record.pasid if record.flags & abi.IOMMU_PGFAULT_FLAGS_PASID_VALID else None,
                record.grpid,
                bool(record.flags & abi.IOMMU_PGFAULT_FLAGS_LAST_PAGE),
                record.perm,
                record.addr,
                record.length,
                record.cookie,
            )
        )
    return faults


def encode_response(fault: PageFault, *, resolved: bool) -> bytes:
    """The answer to the group that ``fault`` ends: try again, or give up."""
    code = abi.IOMMUFD_PAGE_RESP_SUCCESS if resolved else abi.IOMMUFD_PAGE_RESP_INVALID
    return bytes(abi.iommu_hwpt_page_response(cookie=fault.cookie, code=code).pack())


class FaultQueue(Owner):
    """Where page tables made with it put the faults of their devices."""

    RECORD_SIZE: ClassVar[int] = abi.iommu_hwpt_pgfault.SIZE
    """Bytes of one fault; reads are multiples of it."""

    def __init__(self, iommufd: Iommufd, queue_id: int, fd: int) -> None:
        self.iommufd = iommufd
        """The descriptor it lives in."""
        self.id = queue_id
        """Its number there; 0 once closed."""
        self._fd = fd

    @classmethod
    def create(cls, iommufd: Iommufd) -> FaultQueue:
        """A new queue; raises :class:`KernelError`."""
        made = iommufd.request("IOMMU_FAULT_QUEUE_ALLOC", abi.iommu_fault_alloc())
        return cls(iommufd, made.out_fault_id, made.out_fault_fd)

    def __str__(self) -> str:
        return f"fault queue {self.id}" if self.id else "closed fault queue"

    def __repr__(self) -> str:
        return f"<FaultQueue {self.id or 'closed'}>"

    @property
    def _holds(self) -> bool:
        return bool(self.id) and self.iommufd.fd >= 0

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the stream and destroy the queue. Idempotent; EBUSY while a page table uses it."""
        if not self.id:
            return
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self.iommufd.kernel.close(fd)
        if self.iommufd.fd >= 0:
            self.iommufd.destroy(self.id, self)
        self.id = 0
