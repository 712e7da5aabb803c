"""Transactions: what travels on the fabric, annotated hop by hop.

One :class:`Txn` stands for a whole memory request, however many TLPs a real link would cut it
into. Every port and agent that sees it appends a :class:`Hop`; tests, tracing and cost models all
read that one list.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

from vfiokit.errors import MachineError


class Kind(Enum):
    """Memory requests. Messages and configuration requests do not travel as transactions."""

    READ = "read"
    WRITE = "write"


class AddressType(IntEnum):
    """The AT field of a request (PCIe Base Specification 6.0 §10.2.1)."""

    UNTRANSLATED = 0
    TRANSLATION_REQUEST = 1
    TRANSLATED = 2


class Completion(Enum):
    """How a request ended (PCIe Base Specification 6.0 §2.2.9)."""

    SUCCESS = "SC"
    UNSUPPORTED_REQUEST = "UR"
    COMPLETER_ABORT = "CA"


class Hop(NamedTuple):
    """One step of a transaction."""

    where: str
    """Who decided: an address, ``pci0000:00`` for a host bridge, ``dmar0``, ``memory``."""
    action: str
    """What it did: ``emit``, ``up``, ``down``, ``direct``, ``redirect``, ``block``, ``translate``,
    ``fault``, ``deliver``, ``interrupt``, ``unclaimed``."""
    detail: str = ""


class Txn:
    """A memory request by one requester.

    ``address`` is whatever the requester put on the bus (an IOVA until an IOMMU translates it);
    ``length`` bytes; ``data`` is what a write carries.
    """

    __slots__ = ("address", "at", "data", "domain", "kind", "length", "path", "requester_id")

    def __init__(
        self,
        kind: Kind,
        address: int,
        length: int,
        requester_id: int,
        *,
        domain: int = 0,
        data: memoryview | bytes | bytearray | None = None,
        at: AddressType = AddressType.UNTRANSLATED,
    ) -> None:
        self.kind = kind
        self.address = address
        self.length = length
        self.requester_id = requester_id
        self.domain = domain
        """PCI domain of the requester."""
        self.data = data
        self.at = at
        self.path: list[Hop] = []

    def hop(self, where: str, action: str, detail: str = "") -> None:
        """Record one step."""
        self.path.append(Hop(where, action, detail))

    def __repr__(self) -> str:
        return (
            f"<Txn {self.kind.value} {self.address:#x}+{self.length:#x} "
            f"by {self.requester_id:#06x}>"
        )


class DmaError(MachineError):
    """A non-posted request (a read) of a device ended without success.

    Posted writes never raise this: the device is not told, exactly as on real hardware.
    """

    def __init__(self, txn: Txn, completion: Completion) -> None:
        super().__init__(
            f"{txn.kind.value} of {txn.length} bytes at {txn.address:#x} by requester "
            f"{txn.requester_id:#06x} completed with {completion.value}"
        )
        self.txn = txn
        self.completion = completion
