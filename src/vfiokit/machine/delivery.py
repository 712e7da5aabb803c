"""The far end of a request: IOMMU, interrupts, memory, and the way down to a BAR.

Source: PCI Express Base Specification 6.0 §2.2.4 (routing by address), §6.12.1.1 (Completion
Redirect), §10.2 (ATS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfiokit.machine.acs import Decision, decide_completion
from vfiokit.machine.function import Function
from vfiokit.machine.host_bridge import HostBridge, P2pPolicy
from vfiokit.machine.iommu.fault import IommuFault
from vfiokit.machine.iommu.remap import MSI_BASE, MSI_END
from vfiokit.machine.port import Bridge
from vfiokit.machine.txn import AddressType, Completion, Kind, Txn

if TYPE_CHECKING:
    from vfiokit.machine.fabric import Claim, Fabric


def bar_at(fabric: Fabric, function: Function, address: int) -> Claim | None:
    """The BAR of ``function`` that claims ``address`` now."""
    for claim in fabric.bar_claims(function):
        if claim.start <= address < claim.end:
            return claim
    return None


def answers(fabric: Fabric, function: Function, address: int) -> bool:
    """Whether ``function`` claims ``address`` on its bus, by a window or by a BAR."""
    if isinstance(function, Bridge) and function.claims(address):
        return True
    return bar_at(fabric, function, address) is not None


class Delivery:
    """Carries requests from where they were routed to what answers them."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    # -- at the top ---------------------------------------------------------------------------

    def at_root(
        self, function: Function, txn: Txn, bridge: HostBridge, address: int, data: memoryview
    ) -> Completion:
        """Translate what reached ``bridge``, or take it for an interrupt, and deliver it.

        ``data`` is the part of the request that starts at ``address``.
        """
        fabric = self.fabric
        if MSI_BASE <= address < MSI_END and txn.at is AddressType.UNTRANSLATED:
            return self._message(txn, bridge, address, data)
        iommu = bridge.iommu
        write = txn.kind is Kind.WRITE
        extents = [(address, len(data))]
        if txn.at is AddressType.TRANSLATION_REQUEST:
            return self._translation_request(function, txn, bridge, address, data)
        if txn.at is AddressType.TRANSLATED and not function.ats_enabled:
            return self._block(txn, str(bridge), "translated request without ATS")
        if iommu is not None and iommu.enabled:
            try:
                if txn.at is AddressType.TRANSLATED:
                    iommu.check_translated(txn.requester_id, address, write)
                else:
                    extents = iommu.translate(txn.requester_id, address, len(data), write)
                    txn.hop(iommu.name, "translate", _extents_text(address, extents))
            except IommuFault as fault:
                fabric.counters.faults += 1
                txn.hop(iommu.name, "fault", str(fault))
                if write:
                    self._complete(txn, bridge, fault.extents, data)
                return Completion.UNSUPPORTED_REQUEST
        return self._complete(txn, bridge, extents, data)

    def _message(self, txn: Txn, bridge: HostBridge, address: int, data: memoryview) -> Completion:
        """A request to the interrupt range: writes are messages, reads are not supported."""
        if txn.kind is Kind.READ:
            return self._block(txn, str(bridge), "the interrupt range cannot be read")
        self.fabric.counters.interrupts += 1
        one = txn
        if (address, len(data)) != (txn.address, txn.length):
            one = Txn(txn.kind, address, len(data), txn.requester_id, domain=txn.domain, data=data)
            one.path = txn.path
        self.fabric.interrupts.deliver(one)
        return Completion.SUCCESS

    def _translation_request(
        self, function: Function, txn: Txn, bridge: HostBridge, address: int, data: memoryview
    ) -> Completion:
        """ATS: the completion carries one 8-byte entry, as §10.2.3.2 lays it out."""
        iommu = bridge.iommu
        if iommu is None or not iommu.enabled or not function.ats_enabled or len(data) < 8:
            return self._block(txn, str(bridge), "translation requests are not supported here")
        try:
            answer = iommu.answer_ats(txn.requester_id, address)
        except IommuFault as fault:
            self.fabric.counters.faults += 1
            txn.hop(iommu.name, "fault", str(fault))
            return Completion.UNSUPPORTED_REQUEST
        txn.hop(iommu.name, "translate", f"ATS {address:#x} -> {answer.hpa:#x}")
        entry = answer.hpa & ~0xFFF | (1 if answer.read else 0) | (2 if answer.write else 0)
        data[:8] = entry.to_bytes(8, "big")
        return Completion.SUCCESS

    def _complete(
        self, txn: Txn, bridge: HostBridge, extents: list[tuple[int, int]], data: memoryview
    ) -> Completion:
        """Deliver to memory and to BARs by host physical address."""
        memory = self.fabric.memory
        done = 0
        worst = Completion.SUCCESS
        for start, length in extents:
            hpa, end = start, start + length
            while hpa < end:
                claim = None
                if memory.contains(hpa):
                    stop = min(end, memory.end)
                    self._to_memory(txn, hpa, data[done : done + stop - hpa])
                elif (claim := self.fabric.decode(hpa)) is not None:
                    stop = min(end, claim.end)
                    piece = data[done : done + stop - hpa]
                    completion = self._through_host_bridge(txn, bridge, claim, hpa, piece)
                    worst = worst if completion is Completion.SUCCESS else completion
                else:
                    following = self._next_target(hpa)
                    # Past the last address nothing follows: a request may run over 2**64.
                    stop = min(end, following) if following > hpa else end
                    self.fabric.counters.unclaimed += 1
                    txn.hop(str(bridge), "unclaimed", f"{hpa:#x}+{stop - hpa:#x}")
                    worst = Completion.UNSUPPORTED_REQUEST
                done += stop - hpa
                hpa = stop
        return worst

    def _next_target(self, hpa: int) -> int:
        base = self.fabric.memory.base
        following = self.fabric.next_claim(hpa)
        return min(base, following) if hpa < base else following

    def _to_memory(self, txn: Txn, hpa: int, data: memoryview) -> None:
        txn.hop("memory", "deliver", f"{hpa:#x}+{len(data):#x}")
        if txn.kind is Kind.WRITE:
            self.fabric.memory.write(hpa, data)
        else:
            data[:] = self.fabric.memory.slice(hpa, len(data))

    def _through_host_bridge(
        self, txn: Txn, bridge: HostBridge, claim: Claim, hpa: int, data: memoryview
    ) -> Completion:
        target_bridge = self.fabric.host_bridge_of(claim.function)
        if P2pPolicy.REFUSED in (bridge.p2p, target_bridge.p2p):
            return self._block(txn, str(bridge), f"peer-to-peer to {claim.function.bdf} refused")
        self.fabric.counters.through_host_bridge += 1
        txn.hop(str(target_bridge), "down")
        for port in reversed(self.fabric.root_path(claim.function)):
            txn.hop(str(port.bdf), "down")
        return self._to_bar(txn, claim, hpa, data)

    # -- downstream ---------------------------------------------------------------------------

    def to_peer(self, txn: Txn, peer: Function, address: int, data: memoryview) -> Completion:
        """Deliver below the host bridge, and bring the completion of a read back."""
        fabric, node = self.fabric, peer
        while (claim := bar_at(fabric, node, address)) is None:
            txn.hop(str(node.bdf), "down")
            children = fabric.children(node)
            below = next((item for item in children if answers(fabric, item, address)), None)
            if below is None:
                fabric.counters.unclaimed += 1
                txn.hop(str(node.bdf), "unclaimed", f"{address:#x}")
                return Completion.UNSUPPORTED_REQUEST
            node = below
        completion = self._to_bar(txn, claim, address, data)
        if txn.kind is Kind.READ and decide_completion(peer) is Decision.REDIRECT:
            return self._redirect_completion(txn, peer, completion)
        return completion

    def _redirect_completion(self, txn: Txn, peer: Function, completion: Completion) -> Completion:
        """P2P Completion Redirect: the data comes back through the root complex, if it can."""
        bridge = self.fabric.host_bridge_of(peer)
        self.fabric.counters.redirected += 1
        txn.hop(str(peer.bdf), "redirect", "completion redirect")
        if bridge.p2p is P2pPolicy.REFUSED:
            return self._block(txn, str(bridge), "peer-to-peer completion refused")
        txn.hop(str(bridge), "down", "completion")
        return completion

    def _to_bar(self, txn: Txn, claim: Claim, address: int, data: memoryview) -> Completion:
        function, bar = claim.function, claim.bar
        offset = address - claim.start
        txn.hop(str(function.bdf), "deliver", f"BAR{bar}+{offset:#x}")
        covered = function.msix is not None and bar in (
            function.msix.table_bar,
            function.msix.pending_bar,
        )
        view = None if covered else function.bar_view(bar, offset, len(data))
        if view is not None:
            if txn.kind is Kind.WRITE:
                view[:] = data
            else:
                data[:] = view
            return Completion.SUCCESS
        at = 0
        while at < len(data):
            width = _access_width(offset + at, len(data) - at)
            if txn.kind is Kind.WRITE:
                value = int.from_bytes(data[at : at + width], "little")
                function.bar_write(bar, offset + at, width, value)
            else:
                value = function.bar_read(bar, offset + at, width)
                data[at : at + width] = value.to_bytes(width, "little")
            at += width
        return Completion.SUCCESS

    def _block(self, txn: Txn, where: str, reason: str) -> Completion:
        self.fabric.counters.blocked += 1
        txn.hop(where, "block", reason)
        return Completion.UNSUPPORTED_REQUEST


def _access_width(offset: int, length: int) -> int:
    """The widest naturally aligned access of at most 8 bytes."""
    width = 8
    while offset % width or width > length:
        width >>= 1
    return width


def _extents_text(iova: int, extents: list[tuple[int, int]]) -> str:
    first = f"{iova:#x} -> {extents[0][0]:#x}"
    return first if len(extents) == 1 else f"{first} and {len(extents) - 1} more"
