"""What is said about one pair of functions: the kernel's verdict, and how it came about."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vfiokit.pci.address import Bdf


class MapType(Enum):
    """How DMA of one function to a BAR of another is mapped (``enum pci_p2pdma_map_type``)."""

    BUS_ADDR = "bus-addr"
    """Below a common bridge, by bus address; the IOMMU never sees it."""
    THRU_HOST_BRIDGE = "thru-host-bridge"
    """Up to the host bridge and down again, mapped as memory is."""
    NOT_SUPPORTED = "not-supported"
    """The kernel refuses (``EREMOTEIO`` from the DMA API)."""
    UNKNOWN = "unknown"
    """What decides is not in the description of the host."""


class Rule(Enum):
    """Which rule of ``calc_map_type_and_dist`` decided."""

    NO_REDIRECT = "no-redirect"
    """A bridge is common, and no function on the way has an ACS redirect set."""
    CPU = "cpu"
    """AMD Zen: every host bridge is trusted."""
    WHITELIST = "whitelist"
    """Every host bridge concerned is on the kernel's list."""
    SAME_BRIDGE_ONLY = "same-bridge-only"
    """The host bridge is on the list for peers below the same host bridge; these are not."""
    NOT_LISTED = "not-listed"
    """A host bridge is not on the list."""
    NO_HOST_BRIDGE = "no-host-bridge"
    """The first function of a root bus is neither 00.0 nor a root port: nothing to look up."""
    UNKNOWN = "unknown"
    """Not decided."""


class Verdict(NamedTuple):
    """The kernel's answer alone."""

    map_type: MapType
    distance: int


class Answer(NamedTuple):
    """The kernel's answer for one pair, and everything that led to it."""

    provider: Bdf
    """Whose BAR is read or written."""
    client: Bdf
    """Who does the DMA."""
    map_type: MapType
    distance: int | None
    """Steps from one to the other through common bridges; without one, the nodes of both
    chains. The kernel uses it to choose the nearest of several providers."""
    common: Bdf | None
    """Where the two chains meet; ``None`` when only a host bridge is above both."""
    path: tuple[Bdf, ...]
    """From the provider to the client, both included, through the bridges."""
    redirecting: tuple[Bdf, ...]
    """Functions on the way with an ACS redirect set, in the kernel's order. The kernel does not
    look when there is no common bridge: then it is empty."""
    rule: Rule
    messages: tuple[str, ...]
    """What the kernel logs, as ``address: words``; it puts the driver's name in front."""
    unknown: tuple[str, ...]
    """What is missing from the description and could change the answer."""
    code: str
    """NVIDIA's word for the distance: X PIX PXB PHB NODE SYS."""
    reason: str
    """The rule that decided and what it was decided on, a sentence without its full stop."""

    def text(self) -> str:
        """The story in sentences."""
        lines = [f"{self._verdict_text()} {self._way_text()}"]
        if self.redirecting:
            many = len(self.redirecting) > 1
            lines.append(
                f"ACS redirect is set on {', '.join(map(str, self.redirecting))}: "
                f"{'these send' if many else 'it sends'} peer-to-peer requests up to the host "
                "bridge."
            )
        if self.provider != self.client and self.provider[:3] == self.client[:3]:
            lines.append(
                "They are functions of one device: what it forwards inside itself no port sees, "
                "whatever Linux says."
            )
        lines.append(f"{self.reason[:1].upper()}{self.reason[1:]}.")
        if self.unknown:
            lines.append(f"Not known: {'; '.join(self.unknown)}.")
        return "\n".join(lines)

    def _verdict_text(self) -> str:
        pair = f"DMA of {self.client} to a BAR of {self.provider}"
        return {
            MapType.BUS_ADDR: f"{pair} goes by bus address, below the host bridge.",
            MapType.THRU_HOST_BRIDGE: f"{pair} goes through the host bridge.",
            MapType.NOT_SUPPORTED: f"The kernel refuses {pair}.",
            MapType.UNKNOWN: f"Whether the kernel allows {pair} cannot be told.",
        }[self.map_type]

    def _way_text(self) -> str:
        if self.provider == self.client:
            return f"They are one function (distance 0, {self.code})."
        if self.common is None:
            return f"No bridge is above both (distance {self.distance}, {self.code})."
        return f"They meet at {self.common} (distance {self.distance}, {self.code})."


class Distances(NamedTuple):
    """One provider and several clients (``pci_p2pdma_distance_many``)."""

    total: int | None
    """Sum of the distances; -1 when there is no client or one is refused; ``None`` when one is
    unknown and none is refused."""
    answers: tuple[Answer, ...]
    """In the order of the clients."""
