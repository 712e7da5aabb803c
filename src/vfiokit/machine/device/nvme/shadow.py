"""Shadow doorbells: indexes that the host leaves in memory instead of ringing.

Source: NVM Express Base Specification 2.0 §5.8 (Doorbell Buffer Config) and Annex B.5. Two pages:
the host writes its indexes to the first; the controller writes to the second the index at whose
passing it wants a doorbell. Both are laid out as the doorbell registers. Admin queues take no part.
"""

from __future__ import annotations

from vfiokit.machine.function import Dma


class ShadowDoorbells:
    """The two buffers at ``shadow_iova`` and ``event_iova``; ``stride`` bytes per doorbell.

    Reads raise :class:`~vfiokit.machine.txn.DmaError`.
    """

    def __init__(self, memory: Dma, shadow_iova: int, event_iova: int, stride: int) -> None:
        self._memory = memory
        self.shadow_iova = shadow_iova
        self.event_iova = event_iova
        self._stride = stride

    def tail(self, queue_id: int) -> int:
        """The tail of a submission queue, as the host last left it."""
        return self._read(2 * queue_id)

    def head(self, queue_id: int) -> int:
        """The head of a completion queue, as the host last left it."""
        return self._read(2 * queue_id + 1)

    def arm_tail(self, queue_id: int, index: int) -> None:
        """Ask for a doorbell when a submission queue's tail moves past ``index``."""
        self._write(2 * queue_id, index)

    def arm_head(self, queue_id: int, index: int) -> None:
        """Ask for a doorbell when a completion queue's head moves past ``index``."""
        self._write(2 * queue_id + 1, index)

    def _read(self, slot: int) -> int:
        data = self._memory.read(self.shadow_iova + slot * self._stride, 4)
        return int.from_bytes(data, "little")

    def _write(self, slot: int, value: int) -> None:
        self._memory.write(self.event_iova + slot * self._stride, value.to_bytes(4, "little"))
