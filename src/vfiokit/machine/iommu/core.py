"""What the fabric asks of any IOMMU."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vfiokit.machine.iommu.fault import FaultLog
from vfiokit.machine.iommu.remap import InterruptRemapper

Extent = tuple[int, int]
"""Host physical address and length in bytes."""


class AtsAnswer(NamedTuple):
    """Completion of an ATS Translation Request; neither permission means "not mapped"."""

    hpa: int
    """What the IOVA asked for translates to."""
    length: int
    """Bytes from there to the end of the leaf."""
    read: bool
    write: bool


class Iommu(Protocol):
    """A translation agent for the requests of some requester IDs.

    Refusals raise :class:`~vfiokit.machine.iommu.fault.IommuFault` after recording the fault.
    """

    @property
    def name(self) -> str:
        """What Linux calls it: ``dmar0``."""
        ...

    @property
    def enabled(self) -> bool:
        """Whether DMA is translated; otherwise every IOVA is a host physical address."""
        ...

    @property
    def faults(self) -> FaultLog:
        """Recorded faults, of DMA and of interrupts."""
        ...

    @property
    def remapper(self) -> InterruptRemapper:
        """Interrupt remapping of the same requesters."""
        ...

    def translate_one(self, requester_id: int, iova: int, write: bool) -> tuple[int, int]:
        """The host physical address of ``iova`` and the bytes to the end of its leaf."""
        ...

    def translate(self, requester_id: int, iova: int, length: int, write: bool) -> list[Extent]:
        """``[iova, iova + length)`` as host physical extents, neighbours merged."""
        ...

    def check_translated(self, requester_id: int, hpa: int, write: bool) -> None:
        """Let a request with AT=TRANSLATED pass, or fault it."""
        ...

    def answer_ats(self, requester_id: int, iova: int) -> AtsAnswer:
        """Answer an ATS Translation Request."""
        ...
