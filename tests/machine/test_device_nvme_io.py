from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from device_host import BASE
from nvme_host import PAGE, NvmeHost, ready

from vfiokit.machine.device.nvme import FileStore, Limits, MemoryStore, NvmeFunction
from vfiokit.pci.address import Bdf

BDF = Bdf(0, 1, 0, 0)
FLUSH, WRITE, READ, COMPARE, ZEROES, DSM, VERIFY = 0, 1, 2, 5, 8, 9, 0x0C


def write(host: NvmeHost, slba: int, data: bytes, *, scattered: bool = False) -> int:
    prp1, prp2, pages = host.prps(len(data), scattered=scattered)
    for index, page in enumerate(pages):
        host.poke(page, data[PAGE * index : PAGE * (index + 1)])
    return host.submit(
        1, WRITE, nsid=1, prp1=prp1, prp2=prp2, cdw10=slba, cdw12=len(data) // 512 - 1
    ).status


def read(host: NvmeHost, slba: int, length: int, *, scattered: bool = False) -> bytes:
    prp1, prp2, pages = host.prps(length, scattered=scattered)
    cqe = host.submit(1, READ, nsid=1, prp1=prp1, prp2=prp2, cdw10=slba, cdw12=length // 512 - 1)
    assert cqe.status == 0, hex(cqe.status)
    return b"".join(host.peek(page, PAGE) for page in pages)[:length]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("length", [512, 4096, 4608, 8192, 12288, 131072])
def test_data_written_comes_back(length: int, scattered: bool) -> None:
    host = ready()
    data = random.Random(length).randbytes(length)
    assert write(host, 100, data, scattered=scattered) == 0
    assert read(host, 100, length, scattered=not scattered) == data
    assert read(host, 100 + length // 512, 512) == bytes(512)


def test_a_prp1_offset_shortens_the_first_page_only() -> None:
    host = ready()
    data = random.Random(1).randbytes(4096)
    start = host.allocate(2 * PAGE)
    host.poke(start + 512, data)
    for opcode in (WRITE, COMPARE):
        cqe = host.submit(1, opcode, nsid=1, prp1=start + 512, prp2=start + PAGE, cdw12=7)
        assert cqe.status == 0
    assert read(host, 0, 4096) == data


def test_contiguous_pages_are_one_bus_request() -> None:
    host = ready()
    prp1, prp2, _pages = host.prps(131072)
    host.memory.writes = 0
    host.submit(1, READ, nsid=1, prp1=prp1, prp2=prp2, cdw12=255)
    assert host.memory.writes == 2  # the data, the completion entry


def test_transfer_above_mdts_is_an_invalid_field() -> None:
    host = ready(function=NvmeFunction.synthetic(BDF, capacity=16 << 20, mdts=1))
    assert read(host, 0, 8192) == bytes(8192)
    for opcode in (READ, WRITE, COMPARE):
        cqe = host.submit(1, opcode, nsid=1, prp1=BASE, prp2=BASE, cdw12=16)
        assert (cqe.status, cqe.do_not_retry) == (0x02, True)


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE, ZEROES, VERIFY])
def test_a_range_past_the_end_is_lba_out_of_range(opcode: int) -> None:
    host = ready()
    blocks = (16 << 20) // 512
    for slba in (blocks - 7, blocks, 1 << 63, (1 << 64) - 1):
        cqe = host.submit(
            1, opcode, nsid=1, prp1=BASE, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32, cdw12=7
        )
        assert (cqe.status, cqe.do_not_retry) == (0x80, True)
    assert host.submit(1, opcode, nsid=1, prp1=BASE, cdw10=blocks - 8, cdw12=7).status in (0, 0x285)


@pytest.mark.parametrize(
    ("prp1", "prp2", "blocks"),
    [
        (BASE + 2, 0, 1),  # PRP1 not dword aligned
        (BASE, BASE + 512, 16),  # second page with an offset
        (BASE, BASE + PAGE + 4, 32),  # list pointer not qword aligned
    ],
)
def test_a_bad_prp_offset_is_refused(prp1: int, prp2: int, blocks: int) -> None:
    host = ready()
    cqe = host.submit(1, READ, nsid=1, prp1=prp1, prp2=prp2, cdw12=blocks - 1)
    assert (cqe.status, cqe.do_not_retry) == (0x13, True)


def test_a_bad_entry_in_a_prp_list_is_refused() -> None:
    host = ready()
    page_list = host.allocate(PAGE)
    host.poke(page_list, struct.pack("<3Q", BASE, BASE + 8, BASE))
    cqe = host.submit(1, READ, nsid=1, prp1=BASE, prp2=page_list, cdw12=31)
    assert cqe.status == 0x13


def test_memory_that_cannot_be_read_is_a_data_transfer_error() -> None:
    host = ready()
    for fields in ({"prp1": 0x10, "cdw12": 0}, {"prp1": BASE, "prp2": 0x1000, "cdw12": 31}):
        cqe = host.submit(1, WRITE, nsid=1, **fields)
        assert (cqe.status, cqe.do_not_retry) == (0x04, False)
    assert host.submit(1, READ, nsid=1, prp1=0x10, cdw12=0).status == 0  # posted: nobody knows
    assert host.submit(1, FLUSH, nsid=1).status == 0


def test_unknown_opcode_namespace_and_sgl_are_refused() -> None:
    host = ready()
    for opcode in (0x03, 0x04, 0x7F, 0xFF):
        cqe = host.submit(1, opcode, nsid=1)
        assert (cqe.status, cqe.do_not_retry) == (0x01, True)
    for nsid in (0, 2, 0xFFFFFFFF):
        assert host.submit(1, READ, nsid=nsid, prp1=BASE).status == 0x0B
    assert host.submit(1, FLUSH, nsid=0xFFFFFFFF).status == 0
    for flags in (0x40, 0x80, 0x01):
        assert host.submit(1, READ, nsid=1, flags=flags, prp1=BASE).status == 0x02


def test_compare_tells_equal_from_different() -> None:
    host = ready()
    assert write(host, 0, b"a" * 512) == 0
    page = host.allocate(PAGE)
    host.poke(page, b"a" * 512)
    assert host.submit(1, COMPARE, nsid=1, prp1=page).status == 0
    host.poke(page, b"b")
    cqe = host.submit(1, COMPARE, nsid=1, prp1=page)
    assert cqe.status == 0x285


def test_write_zeroes_clears_only_its_range() -> None:
    host = ready()
    assert write(host, 0, b"x" * 2048) == 0
    assert host.submit(1, ZEROES, nsid=1, cdw10=1, cdw12=1).status == 0
    assert read(host, 0, 2048) == b"x" * 512 + bytes(1024) + b"x" * 512


def test_deallocate_gives_storage_back_and_checks_every_range_first() -> None:
    store = MemoryStore(16 << 20)
    host = ready(function=NvmeFunction.synthetic(BDF, backing=store))
    assert write(host, 0, b"x" * 4096) == 0
    page = host.allocate(PAGE)
    host.poke(page, struct.pack("<IIQIIQ", 0, 2048, 0, 0, 1, 1 << 40))
    assert host.submit(1, DSM, nsid=1, prp1=page, cdw10=1, cdw11=4).status == 0x80
    assert store.used() == 1 << 20
    host.poke(page, struct.pack("<IIQIIQ", 0, 2048, 0, 0, 0, 5))
    assert host.submit(1, DSM, nsid=1, prp1=page, cdw10=1, cdw11=0).status == 0
    assert store.used() == 1 << 20  # only advice without the deallocate attribute
    assert host.submit(1, DSM, nsid=1, prp1=page, cdw10=1, cdw11=4).status == 0
    assert store.used() == 0
    assert read(host, 0, 4096) == bytes(4096)


def test_a_read_only_medium_refuses_writes_and_says_so_in_identify() -> None:
    store = MemoryStore(1 << 20, read_only=True)
    host = ready(function=NvmeFunction.synthetic(BDF, backing=store))
    assert host.submit(1, WRITE, nsid=1, prp1=BASE).status == 0x20
    assert host.submit(1, ZEROES, nsid=1).status == 0x20
    assert host.submit(1, READ, nsid=1, prp1=BASE + PAGE * 900).status == 0
    assert host.identify(0, 1)[99] & 1


class FailingStore(MemoryStore):
    def read(self, offset: int, length: int) -> bytes:
        raise OSError("head crash")

    def write(self, offset: int, data: object) -> None:
        raise OSError("head crash")

    def zero(self, offset: int, length: int) -> None:
        raise OSError("head crash")

    def flush(self) -> None:
        raise OSError("head crash")


def test_media_errors_become_media_statuses() -> None:
    host = ready(function=NvmeFunction.synthetic(BDF, backing=FailingStore(1 << 20)))
    page = host.allocate(PAGE)
    assert host.submit(1, READ, nsid=1, prp1=page).status == 0x281
    assert host.submit(1, WRITE, nsid=1, prp1=page).status == 0x280
    assert host.submit(1, ZEROES, nsid=1).status == 0x280
    assert host.submit(1, FLUSH, nsid=1).status == 0x280
    assert host.function.controller.health.media_errors == 4


def test_larger_blocks_and_pages_work() -> None:
    function = NvmeFunction.synthetic(BDF, capacity=8 << 20, block_size=4096)
    host = ready(function=function)
    data = random.Random(2).randbytes(8192)
    prp1, prp2, _ = host.prps(8192)
    host.poke(prp1, data)
    assert host.submit(1, WRITE, nsid=1, prp1=prp1, prp2=prp2, cdw10=2047, cdw12=0).status == 0
    assert host.submit(1, WRITE, nsid=1, prp1=prp1, prp2=prp2, cdw10=2047, cdw12=1).status == 0x80
    assert int.from_bytes(host.identify(0, 1)[0:8], "little") == 2048


def test_a_full_completion_queue_stalls_until_its_head_moves() -> None:
    host = NvmeHost()
    host.enable()
    queue = host.create_queue(entries=4)
    for _ in range(3):
        queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    first = queue.reap(ring=False)
    assert len(first) == 3
    for _ in range(3):
        queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    assert queue.reap(ring=False) == []
    queue.ring_head()
    second = queue.reap()
    assert [cqe.cid for cqe in second] == [first[-1].cid + 1 + index for index in range(3)]


def test_phase_flips_with_every_wrap() -> None:
    host = ready()
    phases = [host.submit(1, FLUSH, nsid=1).phase for _ in range(40)]
    assert phases == [1] * 16 + [0] * 16 + [1] * 8


def test_submission_head_in_completions_follows_the_queue() -> None:
    host = NvmeHost()
    host.enable()
    queue = host.create_queue(entries=8)
    for _ in range(5):
        queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    assert [cqe.sq_head for cqe in queue.reap()] == [1, 2, 3, 4, 5]


def test_queues_take_turns() -> None:
    host = NvmeHost(
        NvmeFunction.synthetic(BDF, capacity=1 << 20, limits=Limits(queue_pairs=2)), msix=True
    )
    host.enable()
    order: list[int] = []
    host.admin(0x09, cdw10=1, cdw11=0)  # arbitration burst: one command per turn
    both = [host.create_queue(queue_id, vector=queue_id) for queue_id in (1, 2)]
    host.function.clock.auto = False
    for queue in both:
        for _ in range(3):
            queue.push(host.entry(FLUSH, nsid=1))
        queue.ring_tail()
    original = host.memory.write

    def spy(iova: int, data: bytes) -> None:
        if len(data) == 16:
            order.append(struct.unpack("<QHHHH", data)[2])
        original(iova, data)

    host.memory.write = spy  # type: ignore[method-assign]
    host.function.clock.advance(10**9)
    assert order == [1, 2, 1, 2, 1, 2]


def test_two_submission_queues_may_share_a_completion_queue() -> None:
    host = ready()
    second = host.allocate(64 * 16)
    assert host.admin(0x01, prp1=second, cdw10=15 << 16 | 2, cdw11=1 << 16 | 1).status == 0
    host.poke(second, host.entry(FLUSH, nsid=1, cid=0x1234))
    host.doorbell(4, 1)
    (cqe,) = host.queues[1].reap()
    assert (cqe.sq_id, cqe.cid, cqe.sq_head) == (2, 0x1234, 1)


def test_a_file_holds_the_blocks_and_keeps_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with FileStore.create(path, 4 << 20) as store:
        host = ready(function=NvmeFunction.synthetic(BDF, backing=store))
        assert write(host, 8, b"y" * 4096) == 0
        assert host.submit(1, ZEROES, nsid=1, cdw10=1024, cdw12=0xFFF).status == 0
        assert read(host, 8, 4096) == b"y" * 4096
        assert host.submit(1, FLUSH, nsid=1).status == 0
    assert path.stat().st_size == 4 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    assert path.read_bytes()[4096:8192] == b"y" * 4096
    with FileStore.open(path, read_only=True) as store:
        host = ready(function=NvmeFunction.synthetic(BDF, backing=store))
        assert host.submit(1, WRITE, nsid=1, prp1=BASE).status == 0x20
        assert read(host, 8, 4096) == b"y" * 4096


def test_transfers_cross_the_extents_of_a_memory_store() -> None:
    store = MemoryStore(1 << 20, extent_size=4096)
    host = ready(function=NvmeFunction.synthetic(BDF, backing=store))
    data = random.Random(3).randbytes(16384)
    assert write(host, 3, data) == 0
    assert read(host, 3, 16384) == data
    assert store.used() == 5 * 4096
