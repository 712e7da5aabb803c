"""A trace says in register names what a client does."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from served import client

from vfiokit.kernel import linux
from vfiokit.vfio_user.catalogue import edu, from_file, nvme
from vfiokit.vfio_user.device import Device
from vfiokit.vfio_user.payload import DmaMap, SetIrqs
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.trace import Event, Trace

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "checksum.py"
CONFIG = 7


class Seen:
    """A device served with a trace, and what the trace had to say."""

    def __init__(self, device: Device) -> None:
        self.events: list[Event] = []
        self.server = Server(device, observer=Trace(device, self.events.append))

    def lines(self) -> list[str]:
        found = [str(event) for event in self.events]
        self.events.clear()
        return found


NVME = [
    (0, 0x00, 8, "BAR 0 0x0000 CAP"),
    (0, 0x04, 4, "BAR 0 0x0004 CAP +4"),
    (0, 0x08, 4, "BAR 0 0x0008 VS = 0x00010400"),
    (0, 0x1C, 4, "BAR 0 0x001c CSTS = 0x00000000: shst 0"),
    (0, 0x44, 4, "BAR 0 0x0044 = 0x00000000"),
    (0, 0x1000, 4, "BAR 0 0x1000 SQ0 tail doorbell"),
    (0, 0x1004, 4, "BAR 0 0x1004 CQ0 head doorbell"),
    (0, 0x1018, 4, "BAR 0 0x1018 SQ3 tail doorbell"),
    (0, 0x2000, 4, "BAR 0 0x2000 MSI-X entry 0 address"),
    (0, 0x201C, 4, "BAR 0 0x201c MSI-X entry 1 control = 0x00000001"),
    (0, 0x3000, 8, "BAR 0 0x3000 MSI-X pending bits"),
    (CONFIG, 0x00, 2, "config 0x0000 vendor_id = 0x1b36"),
    (CONFIG, 0x04, 2, "config 0x0004 command = 0x0000"),
    (CONFIG, 0x05, 1, "config 0x0005 command +1 = 0x00"),
    (CONFIG, 0x34, 1, "config 0x0034 "),
    (CONFIG, 0x00, 256, "config 0x0000: 256 bytes"),
]


@pytest.mark.parametrize(("region", "offset", "length", "line"), NVME)
def test_reads_of_an_nvme_controller_have_names(
    region: int, offset: int, length: int, line: str
) -> None:
    seen = Seen(nvme(size=1 << 20))
    with client(seen.server) as peer:
        peer.region_read(region, offset, length)
    assert seen.lines()[0].startswith(f"read      {line}")


def test_capabilities_are_named_with_their_registers() -> None:
    device = nvme(size=1 << 20)
    table = device.function.msix
    assert table is not None
    seen = Seen(device)
    with client(seen.server) as peer:
        peer.region_write(CONFIG, table.offset + 2, struct.pack("<H", 0xC010))
    (line,) = seen.lines()
    assert f"config {table.offset + 2:#06x} msix.control = 0xc010: " in line
    assert "enable+" in line
    assert "function_mask+" in line


def test_edu_at_work_is_told_access_by_access() -> None:
    seen = Seen(edu())
    memory, event = linux.memory_file("test", 4096), linux.eventfd()
    try:
        with client(seen.server) as peer:
            peer.dma_map(DmaMap(0x1000, 4096), memory)
            peer.set_irqs(SetIrqs(0x24, 1, 0, 1), [event])
            peer.region_write(CONFIG, 4, b"\6\0")
            for offset, value in ((0x80, 0x1000), (0x88, 0x40000), (0x90, 16), (0x98, 5)):
                peer.region_write(0, offset, struct.pack("<Q", value))
            peer.reset()
    finally:
        os.close(memory)
        os.close(event)
    assert [line.split(":")[0] for line in seen.lines()] == [
        "write     config 0x0004 command = 0x0006",
        "write     BAR 0 0x0080 dma_source = 0x0000000000001000",
        "write     BAR 0 0x0088 dma_destination = 0x0000000000040000",
        "write     BAR 0 0x0090 dma_count = 0x0000000000000010",
        "write     BAR 0 0x0098 dma_command = 0x0000000000000005",
        "dma read  memory 0x1000",
        "signal    MSI vector 0",
        "reset",
    ]


def test_a_device_of_ones_own_is_told_in_its_own_names() -> None:
    seen = Seen(from_file(f"{EXAMPLE}:Checksum"))
    with client(seen.server) as peer:
        peer.region_read(0, 0, 4)
        peer.region_write(0, 8, bytes(8))
        peer.region_read(0, 12, 4)
        peer.region_read(2, 12, 4)
        peer.region_read(0, 0x20, 4)
    assert seen.lines() == [
        "read      BAR 0 0x0000 identity = 0x43524333",
        "write     BAR 0 0x0008 source = 0x0000000000000000",
        "read      BAR 0 0x000c source +4 = 0x00000000",
        "read      BAR 2 0x000c MSI-X entry 0 control = 0x00000001",
        "read      BAR 0 0x0020 = 0x00000000",
    ]


def test_every_byte_of_configuration_space_can_be_traced() -> None:
    for device in (nvme(size=1 << 20), edu(), from_file(f"{EXAMPLE}:Checksum")):
        trace = Trace(device, print)
        size = device.regions[CONFIG].size
        named = sum(bool(trace.event("read", CONFIG, at, b"\0").name) for at in range(size))
        assert named >= 0x40
