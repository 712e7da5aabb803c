"""The fuzz targets of vfio-user, run on messages that were changed at random."""

from __future__ import annotations

import random

import fuzz_vfio_user
import fuzz_vfio_user_server
import pytest

from vfiokit.vfio_user import wire
from vfiokit.vfio_user.payload import DmaMap, Feature, RegionAccess, SetIrqs
from vfiokit.vfio_user.wire import Command

SEEDS = [
    wire.request(1, Command.DMA_MAP, DmaMap(0x10000, 8192).pack()),
    wire.request(2, Command.DEVICE_SET_IRQS, SetIrqs(0x24, 1, 0, 1).pack()),
    wire.request(3, Command.REGION_WRITE, RegionAccess(0x98, 0, 8, b"\5" + bytes(7)).pack()),
    wire.request(4, Command.REGION_READ, RegionAccess(0, 7, 64).pack()),
    wire.request(5, Command.DEVICE_FEATURE, Feature(1 << 17 | 2, b"\3\0\0\0" + bytes(4)).pack()),
    wire.request(6, Command.DEVICE_RESET),
]


def changed(source: random.Random) -> bytes:
    data = bytearray(b"".join(source.choice(SEEDS).pack() for _ in range(source.randrange(1, 6))))
    for _ in range(source.randrange(4)):
        at = source.randrange(len(data))
        data[at : at + source.randrange(3)] = source.randbytes(source.randrange(3))
    return bytes(data)


@pytest.mark.parametrize(
    "target", [fuzz_vfio_user, fuzz_vfio_user_server], ids=lambda t: t.__name__
)
def test_the_target_stands_changed_messages(target) -> None:
    source = random.Random(7)
    for _ in range(400):
        target.one_input(bytes([source.randrange(32)]) + changed(source))
    for length in range(80):
        target.one_input(source.randbytes(length))
