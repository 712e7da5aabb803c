"""What a controller may have besides: shadow doorbells, a memory buffer, snapshots."""

from __future__ import annotations

import random
import struct

import pytest
from device_host import BASE
from nvme_host import CAP, CC, CSTS, ENABLE, PAGE, NvmeHost, Queue, ready

from vfiokit.errors import MachineError, UsageError
from vfiokit.machine.device.nvme import Limits, NvmeFunction
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

BDF = Bdf(0, 1, 0, 0)
FLUSH, WRITE, READ = 0, 1, 2
CMBLOC, CMBSZ, CMBMSC, CMBSTS = 0x38, 0x3C, 0x50, 0x58


# -- shadow doorbells -------------------------------------------------------------------------


class Shadow:
    """The host's side of shadow doorbells for queue pair 1, as the specification describes it."""

    def __init__(self, *, msix: bool = True) -> None:
        function = NvmeFunction.synthetic(BDF, limits=Limits(16, shadow_doorbells=True))
        self.host = NvmeHost(function, msix=msix)
        self.host.enable()
        self.queue = self.host.create_queue(entries=4, vector=1 if msix else 0)
        self.shadow, self.events = self.host.allocate(PAGE), self.host.allocate(PAGE)
        assert self.host.admin(0x7C, prp1=self.shadow, prp2=self.events).status == 0
        self.rung = 0

    def _index(self, base: int, slot: int) -> int:
        return int.from_bytes(self.host.peek(base + 4 * slot, 4), "little")

    def _move(self, slot: int, new: int, register: int) -> None:
        old = self._index(self.shadow, slot)
        self.host.poke(self.shadow + 4 * slot, struct.pack("<I", new))
        event = self._index(self.events, slot)
        if (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF:
            self.rung += 1
            self.host.doorbell(register, new)

    def submit(self) -> None:
        self.queue.push(self.host.entry(FLUSH, nsid=1))
        self._move(2, self.queue.tail, 2)

    def reap(self) -> int:
        count = len(self.queue.reap(ring=False))
        if count:
            self._move(3, self.queue.head, 3)
        return count


def test_shadow_doorbells_carry_commands_with_few_writes() -> None:
    shadow = Shadow()
    done = 0
    for _ in range(50):
        shadow.submit()
        done += shadow.reap()
    assert done == 50
    assert shadow.rung < 75  # every tail, and a head only now and then


def test_a_full_queue_asks_for_its_head_doorbell() -> None:
    shadow = Shadow()
    shadow.host.function.clock.auto = False
    for _ in range(3):
        shadow.submit()
    shadow.host.function.clock.auto = True
    shadow.host.function.clock.settle()
    for _ in range(3):
        shadow.submit()
    assert shadow.reap() == 3
    assert shadow.reap() == 3


def test_the_pin_falls_although_heads_are_in_memory() -> None:
    shadow = Shadow(msix=False)
    for _ in range(10):
        shadow.submit()
        assert shadow.host.pin.level
        assert shadow.reap() == 1
        assert not shadow.host.pin.level


def test_nonsense_in_the_shadow_page_is_an_event_not_a_crash() -> None:
    shadow = Shadow()
    host = shadow.host
    host.queues[0].push(host.entry(0x0C, cid=0x700))
    host.queues[0].ring_tail()
    host.poke(shadow.shadow + 8, struct.pack("<I", 0xFFFFFFFF))
    shadow.queue.push(host.entry(FLUSH, nsid=1))
    host.doorbell(2, 1)
    (event,) = host.queues[0].reap()
    assert (event.cid, event.result) == (0x700, 0x010100)
    assert len(shadow.queue.reap(ring=False)) == 1


def test_shadow_pages_are_page_aligned_and_offered_only_if_asked() -> None:
    host = NvmeHost(NvmeFunction.synthetic(BDF, limits=Limits(16, shadow_doorbells=True)))
    host.enable()
    assert struct.unpack_from("<H", host.identify(1), 256)[0] & 1 << 8
    assert host.admin(0x7C, prp1=BASE + 4, prp2=BASE).status == 0x13
    assert host.admin(0x7C, prp1=BASE, prp2=BASE + 4).status == 0x13


def test_shadow_memory_that_cannot_be_read_is_fatal() -> None:
    shadow = Shadow()
    assert shadow.host.admin(0x7C, prp1=0, prp2=0).status == 0
    shadow.queue.push(shadow.host.entry(FLUSH, nsid=1))
    shadow.host.doorbell(2, shadow.queue.tail)
    assert shadow.host.read(CSTS) == 3


# -- controller memory buffer -----------------------------------------------------------------

WINDOW = 0x7000_0000


def buffered() -> NvmeHost:
    host = NvmeHost(NvmeFunction.synthetic(BDF, capacity=1 << 20, cmb_size=0x11000))
    host.write(CMBMSC, 1, 8)
    assert host.read(CMBLOC) & 7 == 2
    size = host.read(CMBSZ)
    assert size & 0x1F == 0x1F
    assert (size >> 12) * (4096 << 4 * (size >> 8 & 15)) == 0x11000
    host.write(CMBMSC + 4, 0)
    host.write(CMBMSC, WINDOW | 3)
    return host


def test_the_buffer_is_hidden_until_it_is_asked_for() -> None:
    host = NvmeHost(NvmeFunction.synthetic(BDF, capacity=1 << 20, cmb_size=0x10000))
    assert host.read(CAP, 8) >> 57 & 1
    assert (host.read(CMBLOC), host.read(CMBSZ)) == (0, 0)
    plain = NvmeHost(NvmeFunction.synthetic(BDF))
    assert not plain.read(CAP, 8) >> 57 & 1
    plain.write(CMBMSC, 3, 8)
    assert (plain.read(CMBMSC, 8), plain.read(CMBSZ)) == (0, 0)


def test_queues_lists_and_data_live_in_the_buffer() -> None:
    host = buffered()
    host.enable()
    function = host.function
    queue = Queue(host, 1, 4)
    queue.sq = WINDOW
    assert host.admin(5, prp1=queue.cq, cdw10=3 << 16 | 1, cdw11=3).status == 0
    assert host.admin(1, prp1=queue.sq, cdw10=3 << 16 | 1, cdw11=1 << 16 | 1).status == 0
    data = random.Random(4).randbytes(12288)
    for offset in range(0, 12288, 8):
        function.bar_write(
            2, 0x2000 + offset, 8, int.from_bytes(data[offset : offset + 8], "little")
        )
    pages = struct.pack("<QQ", WINDOW + 0x3000, WINDOW + 0x4000)
    view = function.bar_view(2, 0x1000, 16)
    assert view is not None
    view[:] = pages
    back = host.allocate(12288)
    entries = (
        host.entry(WRITE, nsid=1, prp1=WINDOW + 0x2000, prp2=WINDOW + 0x1000, cdw12=23),
        host.entry(READ, nsid=1, prp1=back, prp2=_list(host, back), cdw12=23),
    )
    for number, entry in enumerate(entries):
        slot = function.bar_view(2, 64 * number, 64)
        assert slot is not None
        slot[:] = entry
    host.doorbell(2, 2)
    assert [cqe.status for cqe in queue.reap()] == [0, 0]
    assert host.peek(back, 12288) == data


def _list(host: NvmeHost, start: int) -> int:
    page_list = host.allocate(PAGE)
    host.poke(page_list, struct.pack("<QQ", start + PAGE, start + 2 * PAGE))
    return page_list


def test_beyond_the_window_requests_leave_for_the_bus() -> None:
    host = buffered()
    host.enable()
    host.create_queue()
    inside, outside = WINDOW + 0x10000, WINDOW + 0x11000
    assert host.submit(1, WRITE, nsid=1, prp1=inside, cdw12=7).status == 0
    assert host.submit(1, WRITE, nsid=1, prp1=inside, prp2=outside, cdw12=15).status == 0x04
    host.write(CMBMSC, 1)
    assert host.submit(1, WRITE, nsid=1, prp1=inside, cdw12=7).status == 0x04


def test_the_window_survives_controller_resets_only() -> None:
    host = buffered()
    host.function.bar_write(2, 0, 4, 0x1234)
    host.enable()
    host.write(CC, 0)
    assert host.read(CMBMSC, 8) == WINDOW | 3
    assert host.read(CMBSZ)
    assert host.function.bar_read(2, 0, 4) == 0x1234
    host.function.reset(ResetKind.FUNCTION_LEVEL)
    host = NvmeHost(host.function)
    assert host.read(CMBMSC, 8) == host.read(CMBSZ) == 0
    assert host.function.bar_read(2, 0, 4) == 0


def test_a_window_that_wraps_is_refused() -> None:
    host = buffered()
    host.write(CMBMSC, (1 << 64) - 0x1000 | 3, 8)
    assert host.read(CMBSTS) == 1
    host.write(CMBMSC, WINDOW | 3, 8)
    assert host.read(CMBSTS) == 0


def test_the_bar_past_the_buffer_reads_zero() -> None:
    function = buffered().function
    assert function.bar_read(2, 0x11000, 4) == 0
    function.bar_write(2, 0x11000, 4, 1)
    assert function.bar_read(2, 0x11000, 4) == 0


def test_impossible_buffers_are_explained() -> None:
    for size in (100, 4097, 1 << 32):
        with pytest.raises(UsageError):
            NvmeFunction.synthetic(BDF, cmb_size=size)
    plain = NvmeFunction.synthetic(BDF)
    with pytest.raises(MachineError, match="BAR 4"):
        NvmeFunction(BDF, plain.config, tuple(plain.bars.values()), cmb_size=4096, cmb_bar=4)


# -- snapshots --------------------------------------------------------------------------------


def _moved(host: NvmeHost) -> NvmeHost:
    """The same host with a second function in place of its first, loaded from its state."""
    state = host.function.state()
    twin = NvmeFunction.synthetic(
        BDF, backing=host.function.controller.namespace.store, limits=host.function.limits
    )
    successor = NvmeHost(twin)
    twin.dma = host.memory
    successor.memory = host.memory
    successor._next = host._next
    successor.queues = host.queues
    for queue in successor.queues.values():
        queue.host = successor
    twin.load(state)
    assert twin.state() == state
    twin.clock.settle()
    return successor


def test_a_snapshot_continues_where_it_was_taken() -> None:
    limits = Limits(queue_pairs=16, shadow_doorbells=True)
    host = ready(function=NvmeFunction.synthetic(BDF, capacity=1 << 20, limits=limits))
    queue, admin = host.queues[1], host.queues[0]
    for _ in range(20):
        host.submit(1, FLUSH, nsid=1)
    host.submit(1, 0x7F, nsid=1)
    host.admin(0x09, cdw10=4, cdw11=350)
    host.admin(0x09, cdw10=0x0B, cdw11=2)
    admin.push(host.entry(0x0C, cid=0xAE))
    admin.ring_tail()
    host.function.clock.auto = False
    for _ in range(3):
        queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    host = _moved(host)
    assert len(queue.reap()) == 3
    assert host.submit(1, FLUSH, nsid=1).status == 0
    assert host.admin(0x0A, cdw10=4).result == 350
    host.function.controller.set_temperature(360)
    host.function.clock.settle()
    (event,) = admin.reap()
    assert event.cid == 0xAE
    assert host.function.controller.health.error_count == 1


def test_a_snapshot_taken_while_enabling_or_shutting_down_completes() -> None:
    host = NvmeHost(NvmeFunction.synthetic(BDF, capacity=1 << 20))
    host.enable()
    host.write(CC, 0)
    host.function.clock.auto = False
    host.write(CC, ENABLE)
    host = _moved(host)
    assert host.read(CSTS) == 1
    host.function.clock.auto = False
    host.write(CC, ENABLE | 1 << 14)
    host = _moved(host)
    assert host.read(CSTS) == 9
