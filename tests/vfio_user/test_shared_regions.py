"""Regions that a client maps: the controller memory buffer of a served NVMe controller."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from served import client, open_files, peer, serving

from vfiokit.driver.nvme import NvmeController
from vfiokit.driver.nvme.spec import IoOpcode
from vfiokit.errors import UsageError
from vfiokit.vfio.device import Device
from vfiokit.vfio_user.catalogue import nvme
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.function import FunctionDevice
from vfiokit.vfio_user.kernel import SocketBackend, SocketKernel
from vfiokit.vfio_user.payload import RegionInfo, SparseArea
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities
from vfiokit.vfio_user.wire import Command

SIZE = 3 << 14  # no power of two, so that the BAR is larger than what can be mapped
BUFFER = 2
MMAP, CAPS = 4, 8


@pytest.fixture
def device() -> Iterator[FunctionDevice]:
    before = open_files()
    made = nvme(size=1 << 20, cmb_size=SIZE)
    yield made
    made.close()
    made.close()
    assert open_files() == before


def test_the_buffer_is_a_file_whose_bytes_are_the_devices(device: FunctionDevice) -> None:
    with client(Server(device)) as made:
        info, fd = made.region_info(BUFFER)
        assert info.size == 1 << 16
        assert info.flags & MMAP
        assert info.sparse_areas == (SparseArea(0, SIZE),)
        with mmap.mmap(fd, SIZE, offset=info.offset) as mapped:
            mapped[0x100:0x105] = b"hello"
            assert made.region_read(BUFFER, 0x100, 5) == b"hello"
            made.region_write(BUFFER, SIZE - 4, b"last")
            assert mapped[SIZE - 4 :] == b"last"
            assert made.region_read(BUFFER, SIZE, 4) == bytes(4)
            made.reset()
            assert mapped[0x100:0x105] == bytes(5)
        with pytest.raises(OSError):  # noqa: PT011  # sealed: nobody can cut it under the server
            os.ftruncate(fd, 0)
        os.close(fd)


def test_registers_have_no_file(device: FunctionDevice) -> None:
    with client(Server(device)) as made:
        info, fd = made.region_info(0)
        assert (info.flags & MMAP, info.sparse_areas, fd) == (0, None, -1)


def test_a_client_without_room_for_the_capability_is_told_how_much(device: FunctionDevice) -> None:
    with peer(Server(device)) as raw:
        for room in (32, 40, 63):
            short = raw.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(BUFFER, argsz=room).pack())
            argsz, flags = struct.unpack_from("<II", short.payload)
            assert (len(short.payload), argsz, flags & CAPS, short.fds) == (32, 64, 0, ())
        whole = raw.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(BUFFER, argsz=64).pack())
        assert len(whole.payload) == 64
        (fd,) = whole.fds
        os.close(fd)


def test_a_client_that_takes_no_descriptors_gets_none(device: FunctionDevice) -> None:
    with peer(Server(device), Capabilities(max_msg_fds=0)) as raw:
        reply = raw.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(BUFFER, argsz=64).pack())
        info = RegionInfo.unpack(reply.payload)
        assert (reply.fds, info.flags & MMAP) == ((), 0)


def test_commands_use_what_the_client_wrote_into_its_mapping(device: FunctionDevice) -> None:
    """A write command whose data lies in the buffer: the driver fills it by plain stores."""
    with serving(Server(device)) as (sock, _ended):
        opened = Device(SocketBackend(SocketKernel(Client(sock))), "nvme")
        with opened, NvmeController(opened) as controller:
            base, registers = 0x10_0000_0000, opened.region(0).window()
            mapped = opened.region(BUFFER).map(0, SIZE)
            registers.write64(0x50, base | 3)  # CMBMSC: where commands see it, and that they do
            assert registers.read32(0x38) & 7 == BUFFER  # CMBLOC.BIR
            for at in range(0, 512, 8):
                mapped.write64(at, 0x0102030405060708 + at)
            drive = controller.namespace(1)
            drive._run("Write", IoOpcode.WRITE, 5, 1, base)
            expected = b"".join(
                struct.pack("<Q", 0x0102030405060708 + at) for at in range(0, 512, 8)
            )
            assert drive.read_bytes(5, 1) == expected
            drive._run("Read", IoOpcode.READ, 5, 1, base + 0x1000)
            assert mapped.read64(0x1008) == 0x0102030405060710
            mapped.close()
            registers.close()


@pytest.mark.parametrize("size", [1, 100, 4095, 2 << 30])
def test_a_buffer_of_no_pages_or_too_many_is_refused(size: int) -> None:
    before = open_files()
    with pytest.raises(UsageError):
        nvme(size=1 << 20, cmb_size=size)
    assert open_files() == before
