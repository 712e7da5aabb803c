from __future__ import annotations

import struct

import pytest
from device_host import BASE, enable_msi, enable_msix
from nvme_host import ACQ, AQA, ASQ, CAP, CC, CSTS, ENABLE, INTMC, INTMS, PAGE, VS, NvmeHost, ready

from vfiokit.errors import MachineError, UsageError
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.device.nvme import Limits, MemoryStore, NvmeFunction
from vfiokit.machine.function import BarModel
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

BDF = Bdf(0, 1, 0, 0)
FLUSH, READ = 0, 2


def test_capabilities_say_what_the_limits_are() -> None:
    limits = Limits(queue_pairs=3, queue_entries=256, doorbell_stride=2, page_size_max=2)
    host = NvmeHost(NvmeFunction.synthetic(BDF, vectors=4, limits=limits))
    cap = host.read(CAP, 8)
    assert cap & 0xFFFF == 255
    assert cap >> 16 & 1 == 1  # CQR
    assert cap >> 32 & 15 == 2  # DSTRD
    assert cap >> 37 & 0xFF == 1  # CSS: NVM command set
    assert (cap >> 48 & 15, cap >> 52 & 15) == (0, 2)  # MPSMIN, MPSMAX
    assert cap >> 24 & 0xFF >= 1  # TO
    assert host.read(VS) == 0x00010400
    assert host.read(CAP, 4) | host.read(CAP + 4, 4) << 32 == cap


def test_wide_registers_take_halves_and_others_only_their_width() -> None:
    host = NvmeHost()
    host.write(ASQ, 0x2000_1000)
    host.write(ASQ + 4, 0x7)
    assert host.read(ASQ, 8) == 0x7_2000_1000
    host.write(ACQ, 0x1_2345_6000, 8)
    assert (host.read(ACQ), host.read(ACQ + 4)) == (0x2345_6000, 1)
    host.write(AQA, 0x001F001F)
    for width, offset, value in ((1, AQA, 1), (2, AQA, 1), (8, AQA - 4, 0), (4, AQA + 2, 0)):
        host.write(offset, value, width)
    assert host.read(AQA) == 0x001F001F
    assert host.read(AQA, 1) == 0x1F
    assert host.read(VS, 8) == 0x00010400


def test_read_only_registers_stay() -> None:
    host = NvmeHost()
    before = host.read(CAP, 8)
    for offset, width in ((CAP, 8), (VS, 4), (CSTS, 4), (0x38, 4), (0x3C, 4), (0xFFC, 4)):
        host.write(offset, (1 << 8 * width) - 1, width)
    assert host.read(CAP, 8) == before
    assert (host.read(VS), host.read(CSTS), host.read(0x3C)) == (0x00010400, 0, 0)


def test_ready_follows_enable_after_its_latency_and_not_before() -> None:
    host = NvmeHost()
    host.function.clock.auto = False
    host.write(AQA, 0x001F001F)
    host.write(ASQ, BASE, 8)
    host.write(ACQ, BASE + PAGE, 8)
    host.write(CC, ENABLE)
    assert host.read(CSTS) == 0
    host.function.clock.advance(10**9)
    assert host.read(CSTS) == 1
    host.write(CC, 0)
    assert host.read(CSTS) == 0


def test_a_disable_before_ready_wins() -> None:
    host = NvmeHost()
    host.function.clock.auto = False
    host.write(AQA, 0x001F001F)
    host.write(CC, ENABLE)
    host.write(CC, 0)
    host.function.clock.advance(10**9)
    assert host.read(CSTS) == 0


@pytest.mark.parametrize(
    ("register", "width", "value", "cc"),
    [
        (AQA, 4, 0x0000001F, ENABLE),  # completion queue of one entry
        (AQA, 4, 0x001F0000, ENABLE),  # submission queue of one entry
        (ASQ, 8, BASE + 64, ENABLE),
        (ACQ, 8, BASE + 0x800, ENABLE),
        (ASQ, 8, BASE + PAGE, ENABLE | 1 << 7),  # 8 KiB pages, 4 KiB aligned
        (ASQ, 8, BASE, ENABLE | 5 << 7),  # beyond MPSMAX
        (ASQ, 8, BASE, ENABLE | 1 << 4),  # command set
        (ASQ, 8, BASE, ENABLE | 1 << 11),  # weighted round robin
    ],
)
def test_impossible_configurations_are_fatal_and_a_reset_recovers(
    register: int, width: int, value: int, cc: int
) -> None:
    host = NvmeHost()
    host.write(AQA, 0x001F001F)
    host.write(ACQ, BASE + 2 * PAGE, 8)
    host.write(register, value, width)
    host.write(CC, cc)
    assert host.read(CSTS) & 3 == 2
    assert host.function.controller.fatal_reason
    host.write(CC, 0)
    assert host.read(CSTS) == 0
    host.enable()


def test_controller_reset_drops_queues_and_keeps_the_admin_registers() -> None:
    host = ready()
    registers = (host.read(AQA), host.read(ASQ, 8), host.read(ACQ, 8))
    host.admin(0x09, cdw10=8, cdw11=0x0101)
    host.write(CC, 0)
    assert (host.read(AQA), host.read(ASQ, 8), host.read(ACQ, 8)) == registers
    host.enable()
    assert host.admin(0x0A, cdw10=8).result == 0
    assert host.admin(0x00, cdw10=1).status == 0x101  # the I/O queue is gone


@pytest.mark.parametrize("kind", list(ResetKind))
def test_a_function_reset_clears_registers_and_keeps_the_data(kind: ResetKind) -> None:
    host = ready()
    page = host.allocate(PAGE)
    host.poke(page, b"kept" * 128)
    assert host.submit(1, 1, nsid=1, prp1=page).status == 0
    function = host.function
    function.reset(kind)
    assert function.bar_read(0, CAP, 4) == 0xFFFFFFFF  # memory decoding is off
    again = NvmeHost(function)
    for offset, width in ((CC, 4), (CSTS, 4), (AQA, 4), (ASQ, 8), (ACQ, 8), (INTMS, 4)):
        assert again.read(offset, width) == 0
    again.enable()
    again.create_queue()
    page = again.allocate(PAGE)
    assert again.submit(1, READ, nsid=1, prp1=page).status == 0
    assert again.peek(page, 512) == b"kept" * 128


def test_flr_through_configuration_space_resets_the_controller() -> None:
    host = ready()
    express = host.function.capabilities().find(0x10)
    assert express is not None
    host.function.config_write(express.offset + 8, 2, 0xA810)
    assert host.function.config_read(express.offset + 8, 2) & 0x8000 == 0
    assert not host.function.controller.running
    assert not host.function.controller.submission


def test_shutdown_flushes_reports_and_stops_commands() -> None:
    flushed = []

    class Store(MemoryStore):
        def flush(self) -> None:
            flushed.append(True)

    host = ready(function=NvmeFunction.synthetic(BDF, backing=Store(1 << 20)))
    queue = host.queues[1]
    host.function.clock.auto = False
    host.write(CC, ENABLE | 1 << 14)
    assert host.read(CSTS) == 1 << 2 | 1
    host.function.clock.advance(10**9)
    assert host.read(CSTS) == 2 << 2 | 1
    assert flushed
    host.function.clock.auto = True
    queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    assert queue.reap() == []
    host.enable()
    assert host.read(CSTS) == 1


def test_a_submission_queue_that_cannot_be_read_is_fatal() -> None:
    host = ready()
    assert host.admin(0x01, prp1=0x1000, cdw10=15 << 16 | 2, cdw11=1 << 16 | 1).status == 0
    host.doorbell(4, 1)
    assert host.read(CSTS) == 3
    assert "submission queue 2" in host.function.controller.fatal_reason
    host.enable()


def test_a_controller_reset_in_the_middle_of_a_command_leaves_no_completion() -> None:
    host = ready()
    queue = host.queues[1]
    write = host.memory.write

    def peer(iova: int, data: bytes) -> None:
        if iova == 0x8000_0000:  # the data phase of the command, routed to the register itself
            host.function.bar_write(0, CC, 4, 0)
        write(iova, data)

    host.memory.write = peer  # type: ignore[method-assign]
    for prp1 in (0x8000_0000, BASE):
        queue.push(host.entry(READ, nsid=1, prp1=prp1))
    queue.ring_tail()
    assert queue.reap() == []
    assert host.read(CSTS) == 0
    host.enable()


# -- interrupts -------------------------------------------------------------------------------


def test_msix_uses_the_vector_of_the_completion_queue() -> None:
    host = ready()
    host.memory.messages.clear()
    host.submit(1, FLUSH, nsid=1)
    assert host.memory.messages == [0x101]
    host.admin(0x0A, cdw10=7)
    assert host.memory.messages == [0x101, 0x100]


def test_a_queue_without_interrupts_is_silent() -> None:
    host = NvmeHost()
    host.enable()
    host.create_queue(interrupts=False)
    host.memory.messages.clear()
    assert host.submit(1, FLUSH, nsid=1).status == 0
    assert host.memory.messages == []


def test_the_pin_stays_asserted_until_the_head_doorbell() -> None:
    host = NvmeHost(msix=False)
    host.enable()
    queue = host.create_queue(vector=0)
    queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    assert host.pin.level
    host.write(INTMS, 1)
    assert not host.pin.level
    assert host.read(INTMS) == host.read(INTMC) == 1
    host.write(INTMC, 1)
    assert host.pin.level
    queue.reap()
    assert not host.pin.level
    assert host.memory.messages == []


def test_enabling_msi_releases_the_pin_and_masks_apply() -> None:
    host = NvmeHost(NvmeFunction.synthetic(BDF, vectors=None, msi=4), msix=False)
    host.enable()
    enable_msi(host.function, vectors=4)
    queue = host.create_queue(vector=2)
    host.memory.messages.clear()
    host.write(INTMS, 1 << 2)
    queue.push(host.entry(FLUSH, nsid=1))
    queue.ring_tail()
    assert host.memory.messages == []
    host.write(INTMC, 1 << 2)
    assert host.memory.messages == [0x42]
    queue.reap()
    host.write(INTMC, 1 << 2)
    assert host.memory.messages == [0x42]
    assert not host.pin.level


def test_switching_to_msix_releases_an_asserted_pin() -> None:
    host = NvmeHost(msix=False)
    admin = host.enable()
    admin.push(host.entry(0x0A, cdw10=7))
    admin.ring_tail()
    assert host.pin.level
    enable_msix(host.function)
    assert not host.pin.level


# -- doorbells --------------------------------------------------------------------------------


def test_invalid_doorbells_become_error_events() -> None:
    host = ready()
    admin = host.queues[0]
    for cid in (0x500, 0x501):
        admin.push(host.entry(0x0C, cid=cid))
    admin.ring_tail()
    assert admin.reap() == []
    host.doorbell(2 * 9, 1)  # no such queue
    (cqe,) = admin.reap()
    assert (cqe.cid, cqe.result, cqe.status) == (0x500, 0x010000, 0)
    host.doorbell(2, 16)  # beyond the ring of queue 1; its type is masked until the log is read
    assert admin.reap() == []
    page = host.allocate(PAGE)
    admin.push(host.entry(0x02, prp1=page, cdw10=15 << 16 | 1, cid=0x600))
    admin.ring_tail()
    first, second = admin.reap()
    assert (first.cid, first.status) == (0x600, 0)
    assert (second.cid, second.result) == (0x501, 0x010100)
    assert host.submit(1, FLUSH, nsid=1).status == 0


@pytest.mark.parametrize("index", [2, 3])
def test_impossible_doorbell_values_change_nothing(index: int) -> None:
    host = ready()
    host.submit(1, FLUSH, nsid=1)
    for value in (16, 0xFFFF, 0xFFFFFFFF) + ((7,) if index == 3 else ()):
        host.doorbell(index, value)
        assert host.submit(1, FLUSH, nsid=1).status == 0


def test_doorbells_need_four_aligned_bytes() -> None:
    host = ready()
    queue = host.queues[1]
    queue.push(host.entry(FLUSH, nsid=1))
    for offset, width in ((0x1008, 1), (0x1008, 2), (0x1008, 8), (0x100A, 4)):
        host.write(offset, 1, width)
    assert queue.reap() == []
    host.write(0x1008, 1)
    assert len(queue.reap()) == 1
    assert host.read(0x1008) == 0


def test_doorbell_stride_spreads_the_doorbells() -> None:
    limits = Limits(queue_pairs=2, doorbell_stride=3)
    host = ready(function=NvmeFunction.synthetic(BDF, limits=limits))
    assert host.submit(1, FLUSH, nsid=1).status == 0
    assert host.admin(0x0A, cdw10=7).result == 0x00010001


def test_large_host_pages_stretch_prps() -> None:
    host = NvmeHost()
    host.write(AQA, 0x001F001F)
    admin = host.enable()
    host.write(CC, 0)
    sq, cq = host.allocate(8 * PAGE), host.allocate(8 * PAGE)
    base = -(-sq // 0x4000) * 0x4000
    cq = -(-cq // 0x4000) * 0x4000
    host.write(ASQ, base, 8)
    host.write(ACQ, cq, 8)
    host.write(CC, ENABLE | 2 << 7)  # 16 KiB
    admin = type(admin)(host, 0, 32)
    admin.sq, admin.cq = base, cq
    host.queues = {0: admin}
    page = -(-host.allocate(8 * PAGE) // 0x4000) * 0x4000
    # One PRP is enough for 4 KiB anywhere inside a 16 KiB page, even across a 4 KiB boundary.
    assert host.admin(0x06, prp1=page + 0x3000, cdw10=1).status == 0
    assert host.peek(page + 0x3000, 2) == struct.pack("<H", 0x1B36)
    assert host.admin(0x06, prp1=page + 0x3004, prp2=page + 0x4004, cdw10=1).status == 0x13


# -- construction -----------------------------------------------------------------------------


def test_a_captured_configuration_space_places_the_msix_structures() -> None:
    config = bytearray(4096)
    struct.pack_into("<HH", config, 0, 0x144D, 0xA808)
    config[6] = 0x10
    config[0x34] = 0xB0
    # MSI-X as a running host left it: enabled, 33 vectors, table 0x3000, pending bits 0x2000.
    struct.pack_into("<BBHII", config, 0xB0, 0x11, 0, 0x8020, 0x3000, 0x2000)
    bars = (BarModel(0, 16384, wide=True),)
    host = NvmeHost(NvmeFunction(BDF, ConfigModel(bytes(config)), bars, capacity=1 << 20))
    host.enable()
    host.create_queue(queue_id=32, vector=32)
    host.queues[1] = host.queues[32]
    host.memory.messages.clear()
    assert host.submit(32, FLUSH, nsid=1).status == 0
    assert host.memory.messages == [0x120]
    assert struct.unpack_from("<H", host.identify(1))[0] == 0x144D


def test_wrong_construction_is_explained() -> None:
    config = ConfigModel(bytes(256))
    with pytest.raises(MachineError, match="BAR 0"):
        NvmeFunction(BDF, config, ())
    with pytest.raises(MachineError, match="BAR 0"):
        NvmeFunction(BDF, config, (BarModel(0, 4096),))
    with pytest.raises(UsageError, match="serial"):
        NvmeFunction.synthetic(BDF, serial="x" * 21)
    with pytest.raises(UsageError, match="model"):
        NvmeFunction.synthetic(BDF, model="Gerät")
    with pytest.raises(UsageError):
        NvmeFunction.synthetic(BDF, block_size=256)
    with pytest.raises(MachineError):
        NvmeFunction.synthetic(BDF, block_size=1000)
    with pytest.raises(UsageError):
        NvmeFunction.synthetic(BDF, capacity=100)
    with pytest.raises(UsageError):
        Limits(queue_entries=1)


def test_two_functions_differ_in_serial_number_and_namespace_id() -> None:
    hosts = [NvmeHost(NvmeFunction.synthetic(Bdf(0, 1, 0, index))) for index in (0, 1)]
    for host in hosts:
        host.enable()
    first, second = (host.identify(1) for host in hosts)
    assert first[4:24] != second[4:24]
    assert first[768:1024] != second[768:1024]
    assert hosts[0].identify(0, 1)[104:120] != hosts[1].identify(0, 1)[104:120]
