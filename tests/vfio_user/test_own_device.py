"""Devices declared by their registers, and doorbells that a client's kernel rings."""

from __future__ import annotations

import importlib.util
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import client, open_files, serving

from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel import linux
from vfiokit.machine.reset import ResetKind
from vfiokit.vfio.device import Device
from vfiokit.vfio_user.catalogue import adapt, edu, from_file
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.kernel import SocketBackend, SocketKernel
from vfiokit.vfio_user.own import OwnDevice, Register
from vfiokit.vfio_user.payload import DmaMap, SetIrqs
from vfiokit.vfio_user.server import Server

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "checksum.py"
CONFIG = 7


class Sample(OwnDevice, vendor_id=0x1234, device_id=0x5678, class_code=0x120000, vectors=3):
    """A register of every kind."""

    byte = Register(0x00, width=1, reset=0x5A)
    half = Register(0x02, width=2, mask=0x0FF0)
    word = Register(0x04, reset=0x11223344)
    wide = Register(0x08, width=8)
    fixed = Register(0x10, access="ro", reset=7)
    secret = Register(0x14, access="wo")
    events = Register(0x18, access="w1c", reset=0xFF)
    counted = Register(0x1C, access="ro")
    kick = Register(0x20, eventfd=True)

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, int]] = []
        self.reads = 0

    @word.on_write
    def word_written(self, value: int) -> None:
        self.log.append(("word", value))

    @secret.on_write
    def secret_written(self, value: int) -> None:
        self.log.append(("secret", value))

    @events.on_write
    def events_written(self, cleared: int) -> None:
        self.log.append(("events", cleared))

    @counted.on_read
    def count(self) -> int:
        self.reads += 1
        return self.reads

    @kick.on_write
    def kicked(self, _value: int) -> None:
        self.log.append(("kick", 0))

    def on_reset(self) -> None:
        self.log.append(("reset", 0))


def test_it_shows_what_its_class_line_says() -> None:
    with client(Server(adapt(Sample(), "Sample"))) as peer:
        config = peer.region_read(CONFIG, 0, 64)
        assert config[0:4] == b"\x34\x12\x78\x56"
        assert config[9:12] == b"\0\0\x12"
        assert peer.region_info(0)[0].size == 4096
        assert peer.irq_info(2).count == 3


def test_registers_keep_to_their_access() -> None:
    device = Sample()
    device.mmio_write(0, 0x10, 4, 99)
    assert (device.mmio_read(0, 0x10, 4), device.fixed) == (7, 7)
    device.mmio_write(0, 0x14, 4, 5)
    assert (device.mmio_read(0, 0x14, 4), device.secret) == (0, 5)
    device.mmio_write(0, 0x18, 4, 0x0F)
    assert device.mmio_read(0, 0x18, 4) == 0xF0
    device.mmio_write(0, 0x02, 2, 0xFFFF)
    assert device.half == 0x0FF0
    assert device.mmio_read(0, 0x1C, 4) == 1
    assert device.mmio_read(0, 0x1C, 4) == 2
    assert device.log == [("secret", 5), ("events", 0x0F)]


def test_a_part_of_a_register_is_written_with_the_rest_kept() -> None:
    device = Sample()
    device.mmio_write(0, 0x05, 1, 0xAB)
    assert device.mmio_read(0, 0x04, 4) == 0x1122AB44
    assert device.mmio_read(0, 0x06, 2) == 0x1122
    device.mmio_write(0, 0x0C, 4, 0xDEADBEEF)
    assert device.wide == 0xDEADBEEF << 32
    assert device.log == [("word", 0x1122AB44)]


def test_a_wide_access_reaches_every_register_that_it_covers() -> None:
    device = Sample()
    assert device.mmio_read(0, 0, 8) == 0x1122334400000000 | 0x5A
    device.mmio_write(0, 0, 8, 0xFFFFFFFF_FFFFFFFF)
    assert (device.byte, device.half, device.word) == (0xFF, 0x0FF0, 0xFFFFFFFF)
    assert device.mmio_read(0, 0x100, 8) == 0
    device.mmio_write(0, 0x100, 8, 1)


accesses = st.lists(
    st.tuples(st.integers(0, 47), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)).filter(
        lambda access: access[0] % access[1] == 0
    ),
    max_size=20,
)


@settings(max_examples=30, deadline=None)
@given(accesses)
def test_plain_registers_are_bytes_whatever_the_width(done: list[tuple[int, int, int]]) -> None:
    class Bytes(OwnDevice, vendor_id=1, device_id=1, class_code=0):
        a = Register(0, width=8)
        b = Register(8, width=4)
        c = Register(12, width=2)
        d = Register(14, width=1)
        e = Register(16, width=8)

    device, memory = Bytes(), bytearray(64)
    holes = {15, *range(24, 64)}
    for offset, width, value in done:
        device.mmio_write(0, offset, width, value & (1 << 8 * width) - 1)
        memory[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        for hole in holes:
            memory[hole] = 0
        for size in (1, 2, 4, 8):
            for at in range(0, 48, size):
                expected = int.from_bytes(memory[at : at + size], "little")
                assert device.mmio_read(0, at, size) == expected


def test_a_reset_returns_every_register() -> None:
    device = Sample()
    device.word, device.events = 1, 0
    device.reset(ResetKind.FUNCTION_LEVEL)
    assert (device.word, device.events, device.byte) == (0x11223344, 0xFF, 0x5A)
    assert device.log == [("reset", 0)]


def test_a_subclass_has_its_bases_registers_and_may_replace_them() -> None:
    class More(Sample, device_id=0x5679):
        extra = Register(0x2000, reset=1)
        fixed = Register(0x10, access="ro", reset=8)

        def word_written(self, value: int) -> None:
            self.log.append(("more", value))

    device = More()
    device.mmio_write(0, 4, 4, 6)
    assert (device.fixed, device.extra, device.log) == (8, 1, [("more", 6)])
    assert device.bars[0].size == 0x4000
    assert device.config.read(0, 4) == 0x56791234


def declare(**registers: Any) -> type:
    return type("Wrong", (OwnDevice,), registers, vendor_id=1, device_id=2, class_code=3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Register(2), "4 bytes at 0x2"),
        (lambda: Register(0, width=3), "3 bytes at 0x0"),
        (lambda: Register(-4), "at -0x4"),
        (lambda: Register(0, reset=1 << 32), "reset 0x100000000"),
        (lambda: Register(0, access="x"), "access 'x'"),  # type: ignore[arg-type]
        (lambda: declare(a=Register(0), b=Register(0)), "b and a overlap"),
        (lambda: declare(a=Register(0, width=8), b=Register(4)), "b and a overlap"),
        (lambda: declare(a=Register(1 << 30)), "a BAR has 1 GiB"),
        (lambda: type("X", (OwnDevice,), {}, vendor_id=1 << 16), "vendor_id 0x10000"),
        (lambda: type("X", (OwnDevice,), {}, vectors=2049), "vectors"),
        (lambda: type("X", (OwnDevice,), {}, bar_size=5000), "a BAR of 0x1388 bytes"),
        (lambda: type("X", (OwnDevice,), {}, vendor_id=1)(), "has no class_code, device_id"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_state_moves_and_another_devices_is_refused() -> None:
    first, second = Sample(), Sample()
    first.word = 42
    second.load(first.state())
    assert second.word == 42
    for wrong in ({"word": 1}, {**first.values, "word": -1}, {**first.values, "word": "x"}):
        with pytest.raises(UsageError):
            second.load({"registers": wrong})


# -- the example ------------------------------------------------------------------------------


def checksum_device() -> Any:
    spec = importlib.util.spec_from_file_location("checksum_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_as_short_as_the_tutorial_says() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("share", [True, False], ids=["shared memory", "memory by message"])
def test_the_example_computes_what_zlib_does(share: bool) -> None:
    with serving(Server(from_file(f"{EXAMPLE}:Checksum"))) as (sock, _ended):
        backend = SocketBackend(SocketKernel(Client(sock), share=share))
        with Device(backend, "checksum") as device:
            space = device.address_space
            device.set_bus_master(True)
            (vector,) = device.msix.enable(1)
            with space.allocate(8192) as buffer:
                registers = device.region(0).window()
                buffer.view[:] = os.urandom(8192)
                expected = zlib.crc32(bytes(buffer.view[100:5100]))
                registers.write64(0x08, buffer.iova + 100)
                registers.write32(0x10, 5000)
                registers.write32(0x1000, 1)
                assert vector.wait(5) == 1
                assert registers.read32(0x04) == 1
                assert registers.read32(0x14) == expected
                registers.write32(0x04, 1)
                assert registers.read32(0x04) == 0
                registers.write64(0x08, 1 << 40)  # nothing is mapped there
                registers.write32(0x1000, 1)
                assert vector.wait(5) == 1
                assert registers.read32(0x04) == 2
            device.msix.disable()


def test_a_hook_whose_dma_fails_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Careless(OwnDevice, vendor_id=1, device_id=2, class_code=3):
        go = Register(0)

        @go.on_write
        def read(self, value: int) -> None:
            self.dma.read(value, 4096)

    with client(Server(adapt(Careless(), "Careless"))) as peer:
        peer.region_write(CONFIG, 4, b"\6\0")
        peer.region_write(0, 0, struct.pack("<I", 0x1000))
    assert "Careless: " in caplog.text


def test_a_hook_with_a_mistake_is_an_error_reply(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(OwnDevice, vendor_id=1, device_id=2, class_code=3):
        go = Register(0)

        @go.on_write
        def divide(self, value: int) -> None:
            self.go = 1 // value

    with client(Server(adapt(Wrong(), "Wrong"))) as peer:
        with pytest.raises(KernelError):
            peer.region_write(0, 0, bytes(4))
        peer.region_write(0, 0, b"\1\0\0\0")
        assert peer.region_read(0, 0, 4) == b"\1\0\0\0"
    assert "ZeroDivisionError" in caplog.text


# -- doorbells --------------------------------------------------------------------------------


def until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_doorbell_is_rung_by_its_eventfd() -> None:
    device = Sample()
    before = open_files()
    with client(Server(adapt(device, "Sample"))) as peer:
        for _ in range(2):  # asked for twice, it is still one
            reply, fds = peer.region_io_fds(0)
            (entry,) = reply.entries
            assert (entry.offset, entry.size, entry.fd_index, entry.flags) == (0x20, 4, 0, 0)
            os.eventfd_write(fds[0], 1)
            until(lambda: ("kick", 0) in device.log)
            assert peer.region_read(0, 0x10, 4) == b"\7\0\0\0"  # messages are served meanwhile
            assert device.log == [("kick", 0)]
            device.log.clear()
            os.close(fds[0])
        assert peer.region_io_fds(1) == (peer.region_io_fds(1)[0], ())
    assert open_files() == before


def test_edu_starts_its_dma_by_the_eventfd_of_the_value() -> None:
    memory, event = linux.memory_file("test", 4096), linux.eventfd()
    with client(Server(edu())) as peer:
        reply, fds = peer.region_io_fds(0)
        values = {entry.datamatch: fds[entry.fd_index] for entry in reply.entries}
        assert values.keys() == {1, 3, 5, 7}
        assert all(entry.flags == 1 and entry.offset == 0x98 for entry in reply.entries)
        peer.dma_map(DmaMap(0x1000, 4096), memory)
        os.pwrite(memory, b"sixteen bytes ..", 0)
        peer.region_write(CONFIG, 4, b"\6\0")
        peer.set_irqs(SetIrqs(0x24, 1, 0, 1), [event])
        for value, source, destination in ((5, 0x1000, 0x40000), (7, 0x40000, 0x1100)):
            for offset, number in ((0x80, source), (0x88, destination), (0x90, 16)):
                peer.region_write(0, offset, struct.pack("<Q", number))
            os.eventfd_write(values[value], 1)
            until(lambda: _signalled(event))
            peer.region_write(0, 0x64, struct.pack("<I", 0x100))
        assert os.pread(memory, 16, 0x100) == b"sixteen bytes .."
    for fd in (*fds, memory, event):
        os.close(fd)


def _signalled(event: int) -> bool:
    try:
        return os.eventfd_read(event) > 0
    except BlockingIOError:
        return False


def test_the_pin_is_unmasked_by_an_eventfd() -> None:
    """As KVM does it at the end of a guest's interrupt; a pin that is still high rings again."""
    pin, unmask = linux.eventfd(), linux.eventfd()
    with client(Server(edu())) as peer:
        peer.set_irqs(SetIrqs(0x24, 0, 0, 1), [pin])
        peer.set_irqs(SetIrqs(0x14, 0, 0, 1), [unmask])
        peer.region_write(0, 0x60, b"\1\0\0\0")
        assert _signalled(pin)
        peer.region_write(0, 0x60, b"\2\0\0\0")
        assert not _signalled(pin)  # masked by itself
        os.eventfd_write(unmask, 1)
        until(lambda: _signalled(pin))
        peer.region_write(0, 0x64, b"\3\0\0\0")
        os.eventfd_write(unmask, 1)
        peer.region_read(0, 0, 4)
        peer.set_irqs(SetIrqs(0x14, 0, 0, 1))  # taken away again
        assert not _signalled(pin)
    os.close(pin)
    os.close(unmask)
