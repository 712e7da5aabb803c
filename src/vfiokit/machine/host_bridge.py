"""Host bridges: the top of a hierarchy, where requests meet the IOMMU and memory."""

from __future__ import annotations

from enum import Enum

from vfiokit.machine.iommu.core import Iommu


class P2pPolicy(Enum):
    """What a host bridge does with a request for another function's BAR."""

    ALLOWED = "allowed"
    REFUSED = "refused"


class HostBridge:
    """The top of one hierarchy: a root bus, its IOMMU, its peer-to-peer policy."""

    def __init__(self, domain: int, bus: int, iommu: Iommu | None, p2p: P2pPolicy) -> None:
        self.domain = domain
        self.bus = bus
        self.iommu = iommu
        self.p2p = p2p

    def __str__(self) -> str:
        return f"pci{self.domain:04x}:{self.bus:02x}"

    def __repr__(self) -> str:
        return f"<HostBridge {self}>"
