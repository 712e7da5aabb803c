"""DMA of a plugged function: what a device model calls to reach memory and peers.

Requests that no peer can claim on the way take a short path: one translation, one slice copy. What
makes it short is remembered from a routed probe and dropped with the fabric's epoch, so it always
agrees with :meth:`vfiokit.machine.fabric.Fabric.route`, which carries everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfiokit.machine.iommu.core import AtsAnswer, Iommu
from vfiokit.machine.iommu.fault import IommuFault
from vfiokit.machine.iommu.remap import MSI_BASE, MSI_END
from vfiokit.machine.routing import LocalRanges, emission
from vfiokit.machine.txn import AddressType, Completion, DmaError, Kind, Txn

if TYPE_CHECKING:
    from vfiokit.machine.fabric import Fabric
    from vfiokit.machine.function import Function


class DmaPort:
    """The :class:`~vfiokit.machine.function.Dma` of one function.

    Buffers are bytes-like with format ``B``. ``at`` lets a device with ATS send translated
    requests.
    """

    def __init__(self, fabric: Fabric, function: Function) -> None:
        self.function = function
        self._fabric = fabric
        self._memory = fabric.memory
        self._counters = fabric.counters
        self._epoch = -1
        self._requester_id = function.requester_id
        self._iommu: Iommu | None = None
        self._probe: Txn | None = None
        self._local: LocalRanges | None = None

    def read(self, iova: int, length: int, *, at: AddressType = AddressType.UNTRANSLATED) -> bytes:
        """Read ``length`` bytes; :class:`DmaError` when the request fails."""
        buffer = bytearray(length)
        self.read_into(iova, memoryview(buffer), at=at)
        return bytes(buffer)

    def read_into(
        self, iova: int, buffer: memoryview, *, at: AddressType = AddressType.UNTRANSLATED
    ) -> None:
        """Read ``len(buffer)`` bytes into ``buffer``; :class:`DmaError` when it fails."""
        length = len(buffer)
        if at or not self._plain(iova, length):
            self._carry(Kind.READ, iova, buffer, at)
            return
        memory, counters, iommu = self._memory, self._counters, self._iommu
        if iommu is None or not iommu.enabled:
            hpa, room = iova, length
        else:
            try:
                hpa, room = iommu.translate_one(self._requester_id, iova, False)
            except IommuFault as fault:
                raise self._refused(iommu, fault, iova, buffer) from None
        if room < length or not memory.base <= hpa <= memory.end - length:
            self._carry(Kind.READ, iova, buffer, at)
            return
        counters.reads += 1
        counters.bytes_read += length
        start = hpa - memory.base
        buffer[:] = memory.view[start : start + length]

    def write(
        self,
        iova: int,
        data: bytes | bytearray | memoryview,
        *,
        at: AddressType = AddressType.UNTRANSLATED,
    ) -> None:
        """Write ``data``, posted: nothing tells the device how it ended."""
        length = len(data)
        if at or not self._plain(iova, length):
            self._carry(Kind.WRITE, iova, data, at)
            return
        memory, counters, iommu = self._memory, self._counters, self._iommu
        if iommu is None or not iommu.enabled:
            hpa, room = iova, length
        else:
            try:
                hpa, room = iommu.translate_one(self._requester_id, iova, True)
            except IommuFault:
                counters.writes += 1
                counters.faults += 1
                return
        if room < length or not memory.base <= hpa <= memory.end - length:
            self._carry(Kind.WRITE, iova, data, at)
            return
        counters.writes += 1
        counters.bytes_written += length
        memory.write(hpa, data)

    def translate(self, iova: int) -> AtsAnswer:
        """An ATS Translation Request for the page of ``iova``; :class:`DmaError` when refused.

        The function needs ATS with Enable set, and an IOMMU that permits it.
        """
        buffer = bytearray(8)
        self._carry(Kind.READ, iova & ~0xFFF, buffer, AddressType.TRANSLATION_REQUEST)
        entry = int.from_bytes(buffer, "big")
        return AtsAnswer(entry & ~0xFFF, 0x1000, bool(entry & 1), bool(entry & 2))

    # -- inside -------------------------------------------------------------------------------

    def _plain(self, iova: int, length: int) -> bool:
        """Whether a request there climbs to the root without meeting a peer."""
        fabric = self._fabric
        if self._epoch != fabric.epoch:
            self._refresh()
        if self._local is None or fabric.trace_enabled or not length:
            return False
        return not self._local.overlaps(iova, iova + length)

    def _refresh(self) -> None:
        fabric = self._fabric
        self._epoch = fabric.epoch
        self._probe = fabric.probe(self.function)
        self._local = None
        if self._probe is not None:
            self._local = fabric.local_ranges(self.function)
            self._requester_id = self._probe.requester_id
            self._iommu = fabric.host_bridge_of(self.function).iommu

    def _carry(
        self, kind: Kind, iova: int, data: bytes | bytearray | memoryview, at: AddressType
    ) -> None:
        """Route a request that needs more than one copy; :class:`DmaError` for a failed read."""
        if not len(data):
            return
        txn = Txn(
            kind,
            iova,
            len(data),
            self.function.requester_id,
            domain=self.function.bdf.domain,
            data=data,
            at=at,
        )
        message = MSI_BASE <= iova <= MSI_END - len(data)
        if (
            self._probe is not None
            and not at
            and not self._fabric.trace_enabled
            and (message or self._plain(iova, len(data)))
        ):
            self._adopt(txn)
            completion = self._fabric.route_from_root(self.function, txn)
        else:
            completion = self._fabric.route(txn)
        if kind is Kind.READ and completion is not Completion.SUCCESS:
            raise DmaError(txn, completion)

    def _adopt(self, txn: Txn) -> None:
        """Give ``txn`` the way to the root that the probe took."""
        assert self._probe is not None
        txn.hop(*emission(self.function, txn, txn.address))
        txn.path += self._probe.path[1:]
        txn.requester_id = self._requester_id

    def _refused(self, iommu: Iommu, fault: IommuFault, iova: int, buffer: memoryview) -> DmaError:
        self._counters.reads += 1
        self._counters.faults += 1
        txn = Txn(
            Kind.READ,
            iova,
            len(buffer),
            self.function.requester_id,
            domain=self.function.bdf.domain,
            data=buffer,
        )
        self._adopt(txn)
        txn.hop(iommu.name, "fault", str(fault))
        return DmaError(txn, Completion.UNSUPPORTED_REQUEST)
