from __future__ import annotations

import struct

import pytest
from device_host import BASE
from nvme_host import PAGE, NvmeHost, ready

from vfiokit.machine.device.nvme import Limits, MemoryStore, NvmeFunction
from vfiokit.pci.address import Bdf

BDF = Bdf(0, 1, 0, 0)
DELETE_SQ, CREATE_SQ, LOG, DELETE_CQ, CREATE_CQ, IDENTIFY = 0, 1, 2, 4, 5, 6
ABORT, SET, GET, AER = 8, 9, 0x0A, 0x0C


def enabled(**arguments: object) -> NvmeHost:
    function = NvmeFunction.synthetic(BDF, **arguments)  # type: ignore[arg-type]
    host = NvmeHost(function)
    host.enable()
    return host


# -- identify: offsets from the specification's tables ------------------------------------------


def test_identify_controller_follows_the_specified_layout() -> None:
    host = enabled(
        capacity=3 << 20, model="Model X", serial="SER 1", firmware="FW", mdts=5, vendor_id=0x1234
    )
    page = host.identify(1)
    u16, u32 = (
        (lambda at: struct.unpack_from("<H", page, at)[0]),
        (lambda at: struct.unpack_from("<I", page, at)[0]),
    )
    assert u16(0) == u16(2) == 0x1234  # VID, SSVID
    assert page[4:24] == b"SER 1".ljust(20)
    assert page[24:64] == b"Model X".ljust(40)
    assert page[64:72] == b"FW".ljust(8)
    assert page[77] == 5  # MDTS
    assert u32(80) == 0x00010400  # VER
    assert u32(92) == 1 << 8  # OAES
    assert page[111] == 1  # CNTRLTYPE
    assert u16(256) == 0  # OACS
    assert (page[258], page[259]) == (3, 3)  # ACL, AERL
    assert page[262] == 63  # ELPE
    assert u16(266) < u16(268)  # WCTEMP, CCTEMP
    assert int.from_bytes(page[280:296], "little") == 3 << 20  # TNVMCAP
    assert (page[512], page[513]) == (0x66, 0x44)  # SQES, CQES
    assert u32(516) == 1  # NN
    assert u16(520) == 0b1001_1101  # ONCS
    assert page[525] & 1  # VWC
    assert u32(536) == 0  # SGLS
    nqn = page[768:1024].rstrip(b"\0").decode()
    assert nqn.startswith("nqn.2014-08.org.nvmexpress:uuid:")
    assert u16(2048) > 0  # power state 0


def test_identify_namespace_follows_the_specified_layout() -> None:
    host = enabled(capacity=(3 << 20) + 700, block_size=512)
    page = host.identify(0, 1)
    blocks = (3 << 20) // 512 + 1
    assert struct.unpack_from("<QQQ", page) == (blocks, blocks, 0)
    assert (page[25], page[26]) == (0, 0)  # NLBAF, FLBAS
    assert page[33] & 7 == 1  # deallocated blocks read zero
    assert any(page[104:120])  # NGUID
    assert struct.unpack_from("<HBB", page, 128) == (0, 9, 0)  # LBAF0
    host.create_queue()
    host.submit(1, 1, nsid=1, prp1=BASE)
    assert struct.unpack_from("<QQQ", host.identify(0, 1))[2] == 2048  # one extent of the store


def test_identify_lists() -> None:
    host = enabled()
    assert host.identify(2, 0) == struct.pack("<I", 1).ljust(PAGE, b"\0")
    assert host.identify(2, 1) == bytes(PAGE)
    page = host.identify(3, 1)
    found, at = {}, 0
    while page[at]:
        kind, length = page[at], page[at + 1]
        found[kind] = page[at + 4 : at + 4 + length]
        at += 4 + length
    assert {kind: len(value) for kind, value in found.items()} == {2: 16, 3: 16, 4: 1}
    assert found[2] == host.identify(0, 1)[104:120]


def test_identify_of_what_is_not_there() -> None:
    host = enabled()
    for nsid in (0, 2, 0xFFFFFFFF):
        assert host.admin(IDENTIFY, nsid=nsid, prp1=BASE, cdw10=0).status == 0x0B
        assert host.admin(IDENTIFY, nsid=nsid, prp1=BASE, cdw10=3).status == 0x0B
    assert host.admin(IDENTIFY, nsid=0xFFFFFFFE, prp1=BASE, cdw10=2).status == 0x0B
    for cns in (0x04, 0x06, 0x10, 0x1C, 0xFF):
        cqe = host.admin(IDENTIFY, nsid=1, prp1=BASE, cdw10=cns)
        assert (cqe.status, cqe.do_not_retry) == (0x02, True)


# -- queues -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cdw10", "cdw11", "prp1", "status"),
    [
        (15 << 16 | 0, 3, BASE, 0x101),  # queue 0 is the admin queue
        (15 << 16 | 17, 3, BASE, 0x101),  # more than granted
        (15 << 16 | 1, 3, BASE, 0x101),  # exists
        (0 << 16 | 2, 3, BASE, 0x102),  # one entry
        (1024 << 16 | 2, 3, BASE, 0x102),  # beyond MQES
        (15 << 16 | 2, 2, BASE, 0x02),  # not contiguous
        (15 << 16 | 2, 3, BASE + 64, 0x13),
        (15 << 16 | 2, 17 << 16 | 3, BASE, 0x108),  # vector
    ],
)
def test_create_completion_queue_errors(cdw10: int, cdw11: int, prp1: int, status: int) -> None:
    host = ready()
    cqe = host.admin(CREATE_CQ, prp1=prp1, cdw10=cdw10, cdw11=cdw11)
    assert (cqe.status, cqe.do_not_retry) == (status, True)
    assert host.admin(CREATE_CQ, prp1=BASE, cdw10=15 << 16 | 2, cdw11=16 << 16 | 3).status == 0


@pytest.mark.parametrize(
    ("cdw10", "cdw11", "prp1", "status"),
    [
        (15 << 16 | 0, 1 << 16 | 1, BASE, 0x101),
        (15 << 16 | 17, 1 << 16 | 1, BASE, 0x101),
        (15 << 16 | 1, 1 << 16 | 1, BASE, 0x101),
        (0 << 16 | 2, 1 << 16 | 1, BASE, 0x102),
        (1024 << 16 | 2, 1 << 16 | 1, BASE, 0x102),
        (15 << 16 | 2, 1 << 16, BASE, 0x02),
        (15 << 16 | 2, 1 << 16 | 1, BASE + 8, 0x13),
        (15 << 16 | 2, 0 << 16 | 1, BASE, 0x101),  # completing to the admin queue
        (15 << 16 | 2, 99 << 16 | 1, BASE, 0x101),  # out of range
        (15 << 16 | 2, 3 << 16 | 1, BASE, 0x100),  # in range, not created
    ],
)
def test_create_submission_queue_errors(cdw10: int, cdw11: int, prp1: int, status: int) -> None:
    host = ready()
    cqe = host.admin(CREATE_SQ, prp1=prp1, cdw10=cdw10, cdw11=cdw11)
    assert (cqe.status, cqe.do_not_retry) == (status, True)
    assert host.admin(CREATE_SQ, prp1=BASE, cdw10=15 << 16 | 2, cdw11=1 << 16 | 1).status == 0


def test_entry_sizes_must_be_configured_before_queues() -> None:
    host = NvmeHost()
    admin = host.enable()
    host.write(0x14, 0)
    host.write(0x14, 1)  # enabled, IOSQES = IOCQES = 0
    admin.tail = admin.head = 0
    host.poke(admin.cq, bytes(512))
    assert host.admin(CREATE_CQ, prp1=BASE, cdw10=15 << 16 | 1, cdw11=1).status == 0x102
    host.write(0x14, 4 << 20 | 5 << 16 | 1)
    assert host.admin(CREATE_CQ, prp1=BASE, cdw10=15 << 16 | 1, cdw11=1).status == 0
    cqe = host.admin(CREATE_SQ, prp1=BASE, cdw10=15 << 16 | 1, cdw11=1 << 16 | 1)
    assert cqe.status == 0x102


def test_only_vector_zero_without_message_interrupts() -> None:
    host = NvmeHost(msix=False)
    host.enable()
    assert host.admin(CREATE_CQ, prp1=BASE, cdw10=15 << 16 | 1, cdw11=1 << 16 | 3).status == 0x108
    assert host.admin(CREATE_CQ, prp1=BASE, cdw10=15 << 16 | 1, cdw11=3).status == 0


def test_queues_are_deleted_submission_first() -> None:
    host = ready()
    assert host.admin(DELETE_CQ, cdw10=1).status == 0x10C
    assert host.admin(DELETE_SQ, cdw10=1).status == 0
    assert host.admin(DELETE_SQ, cdw10=1).status == 0x101
    assert host.admin(DELETE_CQ, cdw10=1).status == 0
    for opcode in (DELETE_SQ, DELETE_CQ):
        for queue_id in (0, 1, 99):
            assert host.admin(opcode, cdw10=queue_id).status == 0x101
    host.create_queue()
    assert host.submit(1, 0, nsid=1).status == 0


def test_commands_of_a_deleted_queue_never_complete() -> None:
    host = ready()
    queue = host.queues[1]
    host.function.clock.auto = False
    admin = host.queues[0]
    admin.push(host.entry(DELETE_SQ, cdw10=1))
    admin.ring_tail()
    host.function.clock.advance(10**6)
    queue.push(host.entry(0, nsid=1))
    queue.ring_tail()
    host.function.clock.advance(10**6)
    assert queue.reap() == []
    assert len(admin.reap()) == 1


# -- features ---------------------------------------------------------------------------------


def test_queue_count_is_granted_up_to_the_limit_and_bounds_queue_ids() -> None:
    host = enabled(limits=Limits(queue_pairs=8))
    assert host.admin(GET, cdw10=7).result == 0x00070007
    assert host.admin(SET, cdw10=7, cdw11=63 << 16 | 63).result == 0x00070007
    assert host.admin(SET, cdw10=7, cdw11=1 << 16 | 2).result == 0x00010002
    assert host.admin(GET, cdw10=7).result == 0x00010002
    assert host.admin(GET, cdw10=7 | 1 << 8).result == 0x00070007
    assert host.admin(CREATE_CQ, prp1=BASE, cdw10=15 << 16 | 3, cdw11=3).status == 0x101
    assert host.admin(SET, cdw10=7, cdw11=0xFFFF).status == 0x02
    host.create_queue()
    cqe = host.admin(SET, cdw10=7, cdw11=0)
    assert (cqe.status, cqe.do_not_retry) == (0x0C, False)


@pytest.mark.parametrize(
    ("fid", "value", "stored"),
    [
        (0x01, 0x01020305, 0x01020305),
        (0x02, 0, 0),
        (0x04, 350, 350),
        (0x04, 1 << 20 | 280, 280),
        (0x06, 0xFFFFFFFE, 0),
        (0x08, 0x0203, 0x0203),
        (0x09, 1 << 16 | 3, 1 << 16 | 3),
        (0x0A, 1, 1),
        (0x0B, 0x1FF, 0x1FF),
    ],
)
def test_features_keep_what_is_set_and_know_their_default(
    fid: int, value: int, stored: int
) -> None:
    host = enabled()
    selector = value & 0x3F0000 if fid == 4 else value & 0xFFFF if fid == 9 else 0
    default = host.admin(GET, cdw10=fid, cdw11=selector).result
    assert host.admin(SET, cdw10=fid, cdw11=value).status == 0
    assert host.admin(GET, cdw10=fid, cdw11=selector).result == stored
    assert host.admin(GET, cdw10=fid | 1 << 8, cdw11=selector).result == default
    assert host.admin(GET, cdw10=fid | 2 << 8, cdw11=selector).result == default
    assert host.admin(GET, cdw10=fid | 3 << 8, cdw11=selector).result == 0b100
    assert host.admin(SET, cdw10=fid | 1 << 31, cdw11=value).status == 0x10D


def test_feature_errors() -> None:
    host = enabled()
    for fid in (0x00, 0x03, 0x0C, 0x0D, 0x0E, 0x0F, 0x80, 0xC0):
        assert host.admin(GET, cdw10=fid).status == 0x02
        assert host.admin(SET, cdw10=fid).status == 0x02
    assert host.admin(GET, cdw10=1 | 4 << 8).status == 0x02
    assert host.admin(SET, cdw10=2, cdw11=1).status == 0x02  # power state 1
    assert host.admin(SET, cdw10=4, cdw11=5 << 16).status == 0x02  # temperature sensor 5
    assert host.admin(SET, cdw10=4, cdw11=2 << 20).status == 0x02
    assert host.admin(SET, cdw10=9, cdw11=99).status == 0x02  # vector
    assert host.admin(SET, cdw10=1, nsid=1).status == 0x10F
    assert host.admin(SET, cdw10=1, nsid=7).status == 0x0B
    assert host.admin(SET, cdw10=5, nsid=0).status == 0x0B  # error recovery is per namespace
    assert host.admin(SET, cdw10=5, nsid=1, cdw11=7).status == 0
    assert host.admin(GET, cdw10=5, nsid=1).result == 7
    assert host.admin(GET, cdw10=5 | 3 << 8, nsid=1).result == 0b110


# -- log pages --------------------------------------------------------------------------------


def log(host: NvmeHost, page: int, length: int, *, nsid: int = 0, offset: int = 0) -> bytes:
    prp1, prp2, _ = host.prps(length)
    dwords = length // 4 - 1
    cqe = host.admin(
        LOG,
        nsid=nsid,
        prp1=prp1,
        prp2=prp2,
        cdw10=(dwords & 0xFFFF) << 16 | page,
        cdw11=dwords >> 16,
        cdw12=offset & 0xFFFFFFFF,
        cdw13=offset >> 32,
    )
    assert cqe.status == 0, hex(cqe.status)
    return host.peek(prp1, length)


def test_health_log_counts_what_happened() -> None:
    host = ready()
    page = host.allocate(PAGE)
    for _ in range(3):
        host.submit(1, 1, nsid=1, prp1=page, cdw12=7)
    host.submit(1, 2, nsid=1, prp1=page)
    host.submit(1, 0x7F, nsid=1)
    health = log(host, 2, 512, nsid=0xFFFFFFFF)

    def count(at: int) -> int:
        return int.from_bytes(health[at : at + 16], "little")

    assert health[0] == 0
    assert 273 < int.from_bytes(health[1:3], "little") < 343
    assert (health[3], health[4], health[5]) == (100, 10, 0)
    assert (count(32), count(48)) == (1, 1)  # thousands of 512-byte units, rounded up
    assert (count(64), count(80)) == (1, 3)
    assert count(176) == 1


def test_error_log_has_the_newest_failure_first() -> None:
    host = ready()
    first = host.submit(1, 0x7F, nsid=1)
    host.submit(1, 2, nsid=1, prp1=BASE, cdw10=0xFFFFFFFF, cdw12=3)
    entries = log(host, 1, 64 * 64)
    count, sq_id, cid, status, location, lba, nsid = struct.unpack_from("<QHHHHQI", entries)
    assert (count, sq_id, cid, lba, nsid) == (2, 1, first.cid + 1, 0xFFFFFFFF, 1)
    assert status >> 1 & 0x7FF == 0x80
    assert location == 40
    assert struct.unpack_from("<QHH", entries, 64) == (1, 1, first.cid)
    assert entries[128:] == bytes(62 * 64)


def test_firmware_and_effects_logs() -> None:
    host = enabled(firmware="1.2.3")
    slots = log(host, 3, 512)
    assert slots[0] & 7 == 1
    assert slots[8:16] == b"1.2.3".ljust(8)
    effects = struct.unpack("<1024I", log(host, 5, 4096))
    assert [opcode for opcode in range(256) if effects[opcode] & 1] == [
        0, 1, 2, 4, 5, 6, 8, 9, 10, 12,
    ]  # fmt: skip
    assert [opcode for opcode in range(256) if effects[256 + opcode] & 1] == [0, 1, 2, 5, 8, 9, 12]
    assert [opcode for opcode in range(256) if effects[256 + opcode] & 2] == [1, 8, 9]


def test_log_offsets_and_errors() -> None:
    host = enabled()
    whole = log(host, 2, 512)
    assert log(host, 2, 256, offset=256) == whole[256:]
    assert log(host, 2, 1024)[512:] == bytes(512)
    dwords = 127 << 16
    assert host.admin(LOG, prp1=BASE, cdw10=dwords | 2, cdw12=2).status == 0x02
    assert host.admin(LOG, prp1=BASE, cdw10=dwords | 2, cdw12=1024).status == 0x02
    assert host.admin(LOG, prp1=BASE, cdw10=dwords | 2, cdw13=1).status == 0x02
    assert host.admin(LOG, prp1=BASE, cdw10=0xFFFF0002, cdw11=0xFFFF).status == 0x02  # MDTS
    assert host.admin(LOG, prp1=BASE, cdw10=dwords | 2, nsid=5).status == 0x0B
    for page in (0x06, 0x70, 0xC0, 0xFF):
        assert host.admin(LOG, prp1=BASE, cdw10=dwords | page).status == 0x109


# -- events and abort -------------------------------------------------------------------------


def test_event_requests_have_a_limit_and_can_be_aborted() -> None:
    host = enabled()
    admin = host.queues[0]
    for cid in range(0x40, 0x45):
        admin.push(host.entry(AER, cid=cid))
    admin.ring_tail()
    (cqe,) = admin.reap()
    assert (cqe.cid, cqe.status, cqe.do_not_retry) == (0x44, 0x105, True)
    admin.push(host.entry(ABORT, cid=0x99, cdw10=0x41 << 16))
    admin.ring_tail()
    abort, aborted = admin.reap()
    assert (abort.cid, abort.result, abort.status) == (0x99, 0, 0)
    assert (aborted.cid, aborted.status) == (0x41, 0x07)
    assert host.admin(ABORT, cdw10=0x41 << 16).result == 1
    assert host.admin(ABORT, cdw10=0x40 << 16 | 1).result == 1


def test_temperature_events_wait_for_configuration_and_for_the_log_to_be_read() -> None:
    host = enabled()
    admin = host.queues[0]
    for cid in (1, 2):
        admin.push(host.entry(AER, cid=cid))
    admin.ring_tail()
    host.function.controller.set_temperature(400)
    host.function.clock.settle()
    assert admin.reap() == []
    admin.push(host.entry(SET, cdw10=0x0B, cdw11=0x02))
    admin.ring_tail()
    _, event = admin.reap()
    assert (event.cid, event.result) == (1, 0x020101)
    host.function.controller.set_temperature(401)
    host.function.clock.settle()
    assert admin.reap() == []
    page = host.allocate(PAGE)
    retain = 1 << 15
    assert host.admin(LOG, prp1=page, cdw10=127 << 16 | retain | 2).status == 0
    assert host.peek(page, 1)[0] & 2
    admin.push(host.entry(LOG, prp1=page, cdw10=127 << 16 | 2))
    admin.ring_tail()
    _, event = admin.reap()
    assert (event.cid, event.result) == (2, 0x020101)


def test_a_new_medium_is_announced_and_listed_until_read() -> None:
    host = enabled(capacity=1 << 20)
    admin = host.queues[0]
    host.admin(SET, cdw10=0x0B, cdw11=0x100)
    admin.push(host.entry(AER, cid=0x77))
    admin.ring_tail()
    host.function.replace_medium(MemoryStore(2 << 20))
    host.function.clock.settle()
    (event,) = admin.reap()
    assert (event.cid, event.result) == (0x77, 0x040002)
    assert int.from_bytes(host.identify(0, 1)[:8], "little") == 4096
    assert log(host, 4, 4096) == struct.pack("<I", 1).ljust(4096, b"\0")
    assert log(host, 4, 4096) == bytes(4096)


def test_unknown_admin_commands_are_refused() -> None:
    host = enabled()
    for opcode in (0x03, 0x0D, 0x10, 0x18, 0x7C, 0x80, 0xC0):
        cqe = host.admin(opcode)
        assert (cqe.status, cqe.do_not_retry) == (0x01, True)
    assert host.admin(IDENTIFY, prp1=BASE, cdw10=1, flags=0x40).status == 0x02
