"""A device of one's own: it computes the CRC-32 of the client's memory.

vfiokit serve examples/checksum.py:Checksum --socket /tmp/checksum.sock --trace
"""

import zlib

from vfiokit.machine.txn import DmaError
from vfiokit.vfio_user.own import OwnDevice, Register

DONE, FAILED = 1, 2


class Checksum(OwnDevice, vendor_id=0x1234, device_id=0xC3C3, class_code=0x120000, vectors=1):
    """Write source and length, ring the doorbell, wait for the interrupt, read the result."""

    identity = Register(0x00, access="ro", reset=0x43524333)
    status = Register(0x04, access="w1c", doc="1 done, 2 failed")
    source = Register(0x08, width=8, doc="IOVA of the data")
    length = Register(0x10, mask=0xFFFFFF, doc="bytes")
    result = Register(0x14, access="ro")
    doorbell = Register(0x1000, access="wo", eventfd=True)

    def __init__(self, start: str = "0") -> None:
        super().__init__()
        self.start = int(start, 0)

    @doorbell.on_write
    def go(self, _value: int) -> None:
        """Read the data, compute, interrupt."""
        try:
            self.result = zlib.crc32(self.dma.read(self.source, self.length), self.start)
            self.status |= DONE
        except DmaError:
            self.status |= FAILED
        self.raise_msix(0)
