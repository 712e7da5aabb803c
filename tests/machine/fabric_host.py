"""A function with plain memory behind BAR0, and short names, for tests of the fabric."""

from __future__ import annotations

from vfiokit.machine.build import MsiLayout, MsixLayout, endpoint_config
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.machine import Machine
from vfiokit.machine.txn import AddressType, Completion, Kind, Txn
from vfiokit.pci.address import Bdf

RAM = 64 << 20
SIZE = 0x10000


class Card(Function):
    """64 KiB of memory behind BAR0, reached by single loads and stores that are counted."""

    def __init__(self, bdf: str | Bdf, base: int = 0, *, prefetch: bool = False, **kind) -> None:
        bdf = Bdf.parse(bdf) if isinstance(bdf, str) else bdf
        bar = BarModel(0, SIZE, wide=prefetch, prefetchable=prefetch)
        super().__init__(bdf, endpoint_config(0x1234, 0x5678, 0xFF0000, **kind), (bar,))
        self.ram = bytearray(SIZE)
        self.accesses: list[tuple[str, int, int]] = []
        self.place(base)

    def place(self, base: int) -> None:
        """Program BAR0 and switch decoding and bus mastering on."""
        self.config.write(0x10, 4, base & 0xFFFFFFFF)
        if self.bars[0].wide:
            self.config.write(0x14, 4, base >> 32)
        self.config.write(0x04, 2, 0x0006)

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        self.accesses.append(("read", offset, width))
        return int.from_bytes(self.ram[offset : offset + width], "little")

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.accesses.append(("write", offset, width))
        self.ram[offset : offset + width] = value.to_bytes(width, "little")


def machine() -> Machine:
    """A machine with 64 MiB of RAM and no host bridge yet."""
    return Machine(ram=RAM)


def send(
    host: Machine,
    card: Function,
    address: int,
    data: bytes = b"\x5a" * 8,
    *,
    at: AddressType = AddressType.UNTRANSLATED,
) -> tuple[Completion, Txn]:
    """Route a write of ``card``."""
    txn = Txn(
        Kind.WRITE,
        address,
        len(data),
        card.requester_id,
        domain=card.bdf.domain,
        data=data,
        at=at,
    )
    return host.fabric.route(txn), txn


def fetch(
    host: Machine,
    card: Function,
    address: int,
    length: int = 8,
    *,
    at: AddressType = AddressType.UNTRANSLATED,
) -> tuple[Completion, Txn]:
    """Route a read of ``card``."""
    txn = Txn(Kind.READ, address, length, card.requester_id, domain=card.bdf.domain, at=at)
    return host.fabric.route(txn), txn


def steps(txn: Txn) -> list[str]:
    """``where action`` of every hop."""
    return [f"{hop.where} {hop.action}" for hop in txn.path]


__all__ = ["RAM", "SIZE", "Card", "MsiLayout", "MsixLayout", "fetch", "machine", "send", "steps"]
