"""Memory that a client shares badly is warned about, once."""

from __future__ import annotations

import logging
import mmap
import os

import pytest
from served import Plain, client

from vfiokit.kernel import linux
from vfiokit.vfio_user.client_memory import is_private
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap
from vfiokit.vfio_user.server import Server

SIZE = 4 << 20


@pytest.mark.parametrize(("flags", "private"), [(mmap.MAP_PRIVATE, True), (mmap.MAP_SHARED, False)])
def test_private_memory_is_found_and_said(
    flags: int, private: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fd = linux.memory_file("guest", SIZE)
    with mmap.mmap(fd, SIZE, flags) as memory, client(Server(Plain())) as peer:
        memory[:4] = b"boot"
        peer.dma_map(DmaMap(0, SIZE // 2), fd)
        peer.dma_map(DmaMap(1 << 32, SIZE // 2, offset=SIZE // 2), fd)
        peer.device_info()
        facts = os.fstat(fd)
        assert is_private(os.getpid(), facts.st_dev, facts.st_ino) == private
    os.close(fd)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == private
    assert all("share=on" in warning for warning in warnings)


def test_a_process_that_is_not_there_has_nothing_private() -> None:
    assert not is_private(2**22 + 1, 1, 1)


class Memory:
    def read(self, iova: int, length: int) -> bytes:
        return bytes(length)

    def write(self, iova: int, data: bytes) -> None:
        pass


class Private:
    """Answers from a private map of the file, as QEMU does with share=off."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory

    def read(self, iova: int, length: int) -> bytes:
        return self.memory[iova : iova + length]

    def write(self, iova: int, data: bytes) -> None:
        self.memory[iova : iova + len(data)] = data


def test_private_memory_is_asked_for_by_message(caplog: pytest.LogCaptureFixture) -> None:
    fd = linux.memory_file("guest", SIZE)
    with mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE) as memory:
        memory[:16] = b"what a guest has"
        with client(Server(Plain()), memory=Private(memory)) as peer:
            peer.dma_map(DmaMap(0, SIZE), fd)
            peer.region_write(0, 0x100, bytes(8))
            assert peer.region_read(0, 0x200, 16) == b"what a guest has"
            # A small part of the same file, as behind a virtual IOMMU.
            peer.dma_unmap(DmaUnmap(0, SIZE))
            memory[:16] = b"what is new here"
            peer.dma_map(DmaMap(0, 4096), fd)
            peer.region_write(0, 0x100, bytes(8))
            assert peer.region_read(0, 0x200, 16) == b"what is new here"
    os.close(fd)
    (record,) = caplog.records
    assert "private" in record.getMessage()


def test_dma_by_message_is_said_once_and_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with client(Server(Plain()), memory=Memory()) as peer:
        peer.dma_map(DmaMap(0, SIZE))
        assert not caplog.records
        for _ in range(3):
            peer.region_write(0, 0x100, bytes(8))
            peer.region_write(0, 0x108, bytes(8))
    (record,) = caplog.records
    assert "DMA goes by message" in record.getMessage()
