"""Whatever a driver leaves in memory and registers, the device answers, or asks for a reset.

Run with ``python tests/fuzz/fuzz_virtqueue.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import struct

from fuzzing import fuzz

HEAD = 16
"""Bytes that choose registers; the rest is what the driver left in memory."""
RAM = 0x3000
DESCRIPTORS, AVAILABLE, USED = 0x0000, 0x0800, 0x1000
REGISTERS = 0xF000_0000


class Memory:
    """RAM that refuses what is outside it as the machine's own does."""

    def __init__(self, content: bytes) -> None:
        self.bytes = bytearray(content[:RAM].ljust(RAM, b"\0"))

    def contains(self, gpa: int, length: int = 1) -> bool:
        return gpa >= 0 and gpa + length <= RAM

    def read(self, gpa: int, length: int) -> bytes:
        assert self.contains(gpa, length), "the device read outside RAM"
        return bytes(self.bytes[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        assert self.contains(gpa, len(data)), "the device wrote outside RAM"
        self.bytes[gpa : gpa + len(data)] = data


def one_input(data: bytes) -> None:
    """Start the device on that memory, with rings at the usual places or at those of the input."""
    from vfiokit.pci.address import Bdf
    from vfiokit.vmm.p2p import Outcome, Reply
    from vfiokit.vmm.pci_bus import PciBus
    from vfiokit.vmm.trap_map import TrapMap
    from vfiokit.vmm.virtio_p2p import VirtioP2p
    from vfiokit.vmm.virtio_pci import VirtioFunction

    class Source:
        enabled = True

        def ask(self, provider: int, client: int) -> Reply:
            assert 0 <= provider < 1 << 32
            assert 0 <= client < 1 << 32
            return Reply(Outcome.OK, 2, 4)

    head = data[:HEAD].ljust(HEAD, b"\0")
    options, size, status, notified = struct.unpack_from("<BHBB", head)
    places = struct.unpack_from("<3H", head, 6)
    memory = Memory(data[HEAD:])
    traps = TrapMap()
    bus = PciBus(traps, TrapMap(1))
    made = VirtioFunction(Bdf(0, 0, 1, 0), memory, VirtioP2p(Source()))
    bus.add(made)
    made.config.write(0x10, 4, REGISTERS)
    made.config.write(0x04, 2, 0x0006)

    def write(offset: int, width: int, value: int) -> None:
        found = traps.find(REGISTERS + offset)
        assert found is not None
        assert found.wish.handler is not None
        found.wish.handler.write(offset, width, value)

    write(20, 1, 3)
    for select, features in enumerate((1 << 28 if options & 1 else 0, 1)):
        write(8, 4, select)
        write(12, 4, features)
    write(20, 1, 0x0B)
    write(24, 2, size if options & 2 else 16)
    usual = (DESCRIPTORS, AVAILABLE, USED)
    for index, gpa in enumerate(places if options & 4 else usual):
        write(32 + 8 * index, 4, gpa)
    write(28, 2, 1)
    write(20, 1, 0x0F if not options & 8 else status)
    for _ in range(notified & 3):
        write(0x3000, 2, 0)
    needs_reset = bool(made.status & 0x40)
    assert needs_reset == bool(made.failure)
    assert made.device.served <= 3 * 64
    # Whatever it was, a reset ends it.
    write(20, 1, 0)
    assert not made.status
    assert not made.failure


if __name__ == "__main__":
    fuzz(one_input)
