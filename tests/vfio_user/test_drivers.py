"""Drivers, unchanged, on devices that are served at a socket."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vfiokit.driver.edu import Edu
from vfiokit.driver.nvme import NvmeController
from vfiokit.errors import KernelError, UsageError
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import MemoryStore, NvmeFunction
from vfiokit.machine.function import Function
from vfiokit.pci.address import Bdf
from vfiokit.vfio_user.function import FunctionDevice
from vfiokit.vfio_user.kernel import open_socket
from vfiokit.vfio_user.listen import Listener, bind
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities

BDF = Bdf.parse("0000:00:00.0")
WAYS = [
    pytest.param(True, True, id="files"),
    pytest.param(False, True, id="messages on a twin socket"),
    pytest.param(False, False, id="messages on one socket"),
]


@contextmanager
def served(function: Function, folder: Path) -> Iterator[str]:
    path = str(folder / "s")
    listener = Listener(Server(FunctionDevice(function)), bind(path))
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        yield path
    finally:
        listener.stop()
        thread.join(10)
    assert not thread.is_alive()


def offer(twin: bool) -> Capabilities:
    return Capabilities(max_msg_fds=16, twin_socket=twin)


@pytest.mark.parametrize(("share", "twin"), WAYS)
def test_nvme_stores_and_reads(tmp_path: Path, share: bool, twin: bool) -> None:
    store = MemoryStore(8 << 20)
    data = hashlib.shake_128(b"disk").digest(1 << 20)
    with (
        served(NvmeFunction.synthetic(BDF, backing=store), tmp_path) as path,
        open_socket(path, share=share, offer=offer(twin)) as device,
        NvmeController(device) as controller,
    ):
        space = controller.namespace(1)
        space.write_bytes(7, data)
        assert space.read_bytes(7, len(data) // space.block_size) == data
    assert bytes(store.read(7 * 512, len(data))) == data


@pytest.mark.parametrize(("share", "twin"), WAYS)
@pytest.mark.parametrize("intx", [False, True])
def test_edu_moves_data_and_interrupts(tmp_path: Path, share: bool, twin: bool, intx: bool) -> None:
    with (
        served(EduFunction(BDF), tmp_path) as path,
        open_socket(path, share=share, offer=offer(twin)) as device,
        Edu(device, intx=intx) as edu,
        edu.allocate(4096) as buffer,
    ):
        for word in (b"first", b"again"):
            buffer.view[:5] = word
            edu.to_device(buffer.iova, 5)
            buffer.view[:5] = bytes(5)
            edu.from_device(buffer.iova, 5)
            assert bytes(buffer.view[:5]) == word
        assert edu.is_alive()
        assert edu.factorial(10) == 3628800
        assert [edu.raise_interrupt(bit) for bit in (1, 4)] == [1, 4]


def test_the_disk_is_there_for_the_next_client(tmp_path: Path) -> None:
    with served(NvmeFunction.synthetic(BDF, backing=MemoryStore(1 << 20)), tmp_path) as path:
        with open_socket(path) as device, NvmeController(device) as controller:
            controller.namespace(1).write_bytes(0, b"kept".ljust(512, b"\0"))
        for _ in range(3):
            with open_socket(path) as device, NvmeController(device) as controller:
                assert controller.namespace(1).read_bytes(0, 1)[:4] == b"kept"


def test_what_was_mapped_and_freed_can_be_mapped_again(tmp_path: Path) -> None:
    with served(EduFunction(BDF), tmp_path) as path, open_socket(path) as device:
        space = device.address_space
        kernel = device.backend.kernel
        for _ in range(3):
            memory = kernel.allocate(8192)
            space.map(memory.vaddr, 8192, iova=0x10000)
            with pytest.raises(KernelError, match="EEXIST"):
                space.map(memory.vaddr, 4096, iova=0x11000)
            space.unmap(0x10000, 8192)
            memory.close()


def test_a_device_of_a_server_that_went_says_so(tmp_path: Path) -> None:
    with served(EduFunction(BDF), tmp_path) as path:
        device = open_socket(path, timeout=5)
    with device:
        with pytest.raises(KernelError) as caught:
            device.region(0)
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(UsageError, match="closed"):
            device.address_space.map(0x1000, 4096)


def test_nobody_at_the_socket_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        open_socket(tmp_path / "nothing")
    assert "vfiokit serve" in str(caught.value.hint)
