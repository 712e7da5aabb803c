"""A device that moves between servers, and the log of what it wrote meanwhile."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import TWIN, Plain, client, open_files

from vfiokit.driver.nvme import NvmeController
from vfiokit.errors import KernelError, ProtocolError
from vfiokit.vfio.device import Device
from vfiokit.vfio_user import migration
from vfiokit.vfio_user.catalogue import edu, nvme
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.feature import DirtyLog
from vfiokit.vfio_user.kernel import SocketBackend, SocketKernel
from vfiokit.vfio_user.payload import DmaMap, Feature, SetIrqs
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, STATE, LOG_START, LOG_STOP, LOG_REPORT = 1, 2, 6, 7, 8
ERROR, STOP, RUNNING, STOP_COPY, RESUMING = range(5)


def go(peer: Client, state: int) -> int:
    reply = peer.feature(Feature(SET | STATE, struct.pack("<Ii", state, -1)))
    return int(struct.unpack_from("<I", reply.data)[0])


def state_of(peer: Client) -> int:
    return int(struct.unpack_from("<I", peer.feature(Feature(GET | STATE, bytes(8))).data)[0])


def read_state(peer: Client, piece: int = 4096) -> bytes:
    data = b""
    while got := peer.migration_read(piece):
        data += got
    return data


@contextlib.contextmanager
def connected(server: Server, offer: Capabilities = TWIN) -> Iterator[Client]:
    """A client whose server outlives the block's errors."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=server.serve, args=(ours,), daemon=True)
    thread.start()
    with Client(theirs, offer=offer) as made:
        yield made
    thread.join(10)
    assert not thread.is_alive()


# -- states -----------------------------------------------------------------------------------


def test_a_device_that_can_move_says_so_and_runs() -> None:
    with client(Server(Plain())) as peer:
        (ways,) = struct.unpack("<Q", peer.feature(Feature(GET | MIGRATION, bytes(8))).data)
        assert ways == 1  # STOP_COPY
        assert state_of(peer) == RUNNING
        peer.feature(Feature(PROBE | SET | STATE))


def test_a_device_that_cannot_move_has_no_such_feature() -> None:
    with client(Server(edu())) as peer, pytest.raises(KernelError) as caught:
        peer.feature(Feature(GET | MIGRATION, bytes(8)))
    assert caught.value.errno == errno.ENOTTY


PATHS = [
    [STOP, RUNNING],
    [STOP_COPY, STOP, RUNNING],
    [STOP_COPY, RUNNING],
    [RESUMING, STOP, RUNNING],
    [RESUMING, RUNNING],
    [STOP, STOP_COPY, RESUMING, STOP_COPY, RUNNING],
]


@pytest.mark.parametrize("path", PATHS)
def test_a_device_stands_still_on_every_way_but_running(path: list[int]) -> None:
    device = Plain()
    with client(Server(device)) as peer:
        for state in path:
            assert go(peer, state) == state
            assert state_of(peer) == state
            assert device.events[-1] == ("resume" if state == RUNNING else "pause")
    assert device.events.count("pause") == device.events.count("resume") == 1


@pytest.mark.parametrize("state", [ERROR, 5, 6, 7, 8, 2**32 - 1])
def test_a_state_that_the_device_lacks_is_refused(state: int) -> None:
    with client(Server(Plain())) as peer:
        with pytest.raises(KernelError) as caught:
            go(peer, state)
        assert caught.value.errno == errno.EINVAL
        assert state_of(peer) == RUNNING


def test_a_client_that_leaves_a_stopped_device_leaves_it_running() -> None:
    device = Plain()
    server = Server(device)
    with client(server) as peer:
        go(peer, STOP_COPY)
    assert device.events[-1] == "resume"
    with client(server) as peer:
        assert state_of(peer) == RUNNING


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
def test_a_state_moves_in_pieces_of_any_size(piece: int) -> None:
    first, second = Plain(), Plain()
    first.data[:] = hashlib.shake_128(b"state").digest(4096)
    with client(Server(first)) as peer:
        go(peer, STOP_COPY)
        data = read_state(peer, piece)
        assert peer.migration_read(piece) == b""
    with client(Server(second)) as peer:
        go(peer, RESUMING)
        for at in range(0, len(data), piece * 100):
            peer.migration_write(data[at : at + piece * 100])
        assert go(peer, RUNNING) == RUNNING
    assert second.data == first.data


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "another kind": lambda data: b"x" + data[1:],
    "noise": lambda data: bytes(range(256)),
    "another size": lambda data: migration.encode({"data": bytes(8), "note": "plain"}),
    "nothing in it": lambda data: migration.encode({}),
    "a number for bytes": lambda data: migration.encode({"data": 7}),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_state_is_an_error_that_only_a_reset_ends(
    damage: Callable[[bytes], bytes],
) -> None:
    device = Plain()
    with client(Server(device)) as peer:
        go(peer, STOP_COPY)
        data = read_state(peer)
        go(peer, RESUMING)
        peer.migration_write(damage(data))
        with pytest.raises(KernelError) as caught:
            go(peer, RUNNING)
        assert caught.value.errno == errno.EINVAL
        assert state_of(peer) == ERROR
        with pytest.raises(KernelError):
            go(peer, RUNNING)
        peer.reset()
        assert state_of(peer) == RUNNING
        assert device.events[-1] == "resume"


def test_a_state_without_end_is_refused_before_it_fills_memory(monkeypatch: Any) -> None:
    monkeypatch.setattr(migration, "_MOST", 1 << 20)
    with client(Server(Plain())) as peer:
        go(peer, RESUMING)
        peer.migration_write(bytes(1 << 20))
        with pytest.raises(KernelError) as caught:
            peer.migration_write(b"x")
        assert caught.value.errno == errno.ENOSPC


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


def _without_places(value: object) -> bool:
    """Whether no dictionary looks like the place of bytes."""
    if isinstance(value, dict):
        return value.keys() != {"bytes"} and all(map(_without_places, value.values()))
    return not isinstance(value, list) or all(map(_without_places, value))


@given(st.dictionaries(st.text(), plain, max_size=6).filter(_without_places))
def test_plain_data_survives_the_way(state: dict[str, Any]) -> None:
    assert migration.decode(migration.encode(state)) == state


@settings(max_examples=150)
@given(st.binary(max_size=200), st.integers(0, 200), st.binary(max_size=8))
def test_whatever_comes_for_a_state_is_one_or_a_protocol_error(
    noise: bytes, at: int, change: bytes
) -> None:
    good = migration.encode({"a": [1, b"bytes", {"b": b"more"}], "c": None})
    for data in (noise, good[:at] + change + good[at + len(change) :]):
        with contextlib.suppress(ProtocolError):
            assert isinstance(migration.decode(data), dict)


# -- an NVMe controller, from one server to another -------------------------------------------


def move(source: Client, target: Client) -> None:
    go(source, STOP_COPY)
    data = read_state(source, 1 << 16)
    go(target, RESUMING)
    target.migration_write(data)
    go(target, RUNNING)


@pytest.mark.parametrize("share", [True, False], ids=["shared memory", "memory by message"])
def test_an_nvme_controller_moves_while_its_driver_goes_on(tmp_path, share: bool) -> None:
    image = tmp_path / "disk"
    servers = [Server(nvme(backing=image, size=4 << 20, cmb_size=16384)) for _ in range(2)]
    before = open_files()
    with connected(servers[0]) as first, connected(servers[1]) as second:
        kernel = SocketKernel(first, share=share)
        backend = SocketBackend(kernel)
        device = Device(backend, "moving")
        with NvmeController(device) as controller:
            drive = controller.namespace(1)
            drive.write_bytes(8, b"before" + bytes(506))
            queue_before = [queue.queue_id for queue in controller.io_queues]

            # What a hypervisor does: the same memory and eventfds for the new server.
            space = backend.address_space
            for iova, (length, flags, memory, start) in space._views.items():
                fd = memory.fd if share else -1
                second.dma_map(DmaMap(iova, length, flags, start if share else 0), fd)
            second.memory = space
            move(first, second)
            for number, vector in device.msix.vectors.items():
                second.set_irqs(SetIrqs(0x24, 2, number, 1), [vector.fileno()])
            kernel.client = second
            kernel._infos.clear()

            assert drive.read_bytes(8, 1)[:6] == b"before"
            for number in range(200):  # the rings go round
                drive.write_bytes(number, bytes([number]) * 512)
            for number in range(200):
                assert drive.read_bytes(number, 1) == bytes([number]) * 512
            assert [queue.queue_id for queue in controller.io_queues] == queue_before
        device.close()
    assert open_files() <= before
    for server in servers:
        server.device.close()
    assert image.read_bytes()[512:1024] == b"\1" * 512


@pytest.mark.parametrize(
    "other",
    [lambda: nvme(size=1 << 20, vectors=3), lambda: nvme(size=1 << 20, cmb_size=4096)],
    ids=["fewer vectors", "with a memory buffer"],
)
def test_a_state_of_another_controller_is_refused(other: Callable[[], Any]) -> None:
    with connected(Server(nvme(size=1 << 20))) as source, connected(Server(other())) as target:
        go(source, STOP_COPY)
        data = read_state(source)
        go(target, RESUMING)
        target.migration_write(data)
        with pytest.raises(KernelError):
            go(target, RUNNING)
        assert state_of(target) == ERROR
        target.reset()
        assert target.region_read(0, 0x1C, 4) == bytes(4)


def _changed(value: Any, path: list[int], new: object) -> Any:
    """``value`` with what ``path`` leads to exchanged."""
    if not path or not isinstance(value, list | dict) or not value:
        return new
    if isinstance(value, list):
        at = path[0] % len(value)
        return [*value[:at], _changed(value[at], path[1:], new), *value[at + 1 :]]
    key = sorted(value)[path[0] % len(value)]
    return {**value, key: _changed(value[key], path[1:], new)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(-(2**70), 2**70)
    | st.none()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=3),
)
def test_a_forged_nvme_state_is_refused_or_works(path: list[int], new: object) -> None:
    """Whatever a state says, the controller answers registers and comes out of a reset."""
    device = nvme(size=1 << 20)
    state = migration.decode(migration.encode(device.state()))
    with contextlib.suppress(Exception):  # the server reports any as EINVAL
        device.load(_changed(state, path, new))
    device.resume()
    device.region_write(0, 0x1000, bytes(4))
    assert len(device.region_read(0, 0, 8)) == 8
    device.reset()
    assert device.region_read(0, 0x1C, 4) == bytes(4)


# -- the log of writes ------------------------------------------------------------------------


def start_log(peer: Client, page: int, ranges: list[tuple[int, int]]) -> None:
    body = struct.pack("<QII", page, len(ranges), 0)
    body += b"".join(struct.pack("<QQ", *each) for each in ranges)
    peer.feature(Feature(SET | LOG_START, body))


def report(peer: Client, iova: int, length: int, page: int = 4096) -> list[int]:
    reply = peer.feature(
        Feature(GET | LOG_REPORT, struct.pack("<QQQ", iova, length, page), 1 << 16)
    )
    bits = int.from_bytes(reply.data[24:], "little")
    return [page for page in range(length // page) if bits >> page & 1]


class Memory:
    def read(self, iova: int, length: int) -> bytes:
        return bytes(length)

    def write(self, iova: int, data: bytes) -> None:
        pass


def test_the_log_has_the_pages_that_the_device_wrote_once() -> None:
    with client(Server(Plain()), memory=Memory()) as peer:
        peer.dma_map(DmaMap(0, 1 << 20))
        start_log(peer, 4096, [(0, 0x40000)])
        for iova in (0x1000, 0x5000 - 8, 0x50000):  # one page, two pages, outside
            peer.region_write(0, 0x108, struct.pack("<Q", iova))
        peer.region_write(0, 0x100, struct.pack("<Q", 0x9000))  # a read
        assert report(peer, 0, 1 << 20) == [1, 4, 5]
        assert report(peer, 0, 1 << 20) == []
        peer.feature(Feature(SET | LOG_STOP))
        with pytest.raises(KernelError):
            report(peer, 0, 4096)


def test_a_second_log_has_to_wait_for_the_first() -> None:
    with client(Server(Plain())) as peer:
        start_log(peer, 4096, [])
        with pytest.raises(KernelError) as caught:
            start_log(peer, 4096, [])
        assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("page", [0, 1, 2048, 4097, 1 << 41])
def test_a_log_in_strange_pages_is_refused(page: int) -> None:
    with client(Server(Plain())) as peer, pytest.raises(KernelError) as caught:
        start_log(peer, page, [])
    assert caught.value.errno == errno.EINVAL


writes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 9000)), max_size=8)


@given(writes, st.sampled_from([4096, 8192]), st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 15)), max_size=3
))  # fmt: skip
def test_the_log_agrees_with_a_count_of_bytes(
    done: list[tuple[int, int]], page: int, ranges: list[tuple[int, int]]
) -> None:
    log = DirtyLog(page, ranges)
    expected = set()
    for iova, length in done:
        log.note(iova, length)
        for at in range(iova, iova + length):
            if not ranges or any(start <= at < start + size for start, size in ranges):
                expected.add(at // page)
    bits = int.from_bytes(log.report(0, 1 << 18, page), "little")
    assert {at for at in range((1 << 18) // page) if bits >> at & 1} == expected
    assert not any(log.report(0, 1 << 18, page))


def test_a_log_that_nobody_reads_stays_small_and_says_all() -> None:
    log = DirtyLog(4096, [])
    for at in range(0, 1 << 34, 1 << 30):
        log.note(at, 1 << 29)
    assert log.report(0, 64 * 4096, 4096) == b"\xff" * 8


def test_a_report_of_all_memory_is_refused() -> None:
    log = DirtyLog(4096, [])
    with pytest.raises(ProtocolError) as caught:
        log.report(0, 1 << 52, 4096)
    assert caught.value.errno == errno.E2BIG
