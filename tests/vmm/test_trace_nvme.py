"""Why a write to an NVMe controller has no effect: each reason made to happen."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nvme_rig import DATA, QUEUES, Guest, booted, job

from vfiokit.driver.nvme.spec import SQE
from vfiokit.machine.device.nvme import Limits
from vfiokit.vmm.nvme_guest import PAGE, Action, Moment, Space
from vfiokit.vmm.trace_nvme import NvmeWatcher, status_text
from vfiokit.vmm.trace_register import Doorbell

ENTRIES = 8
SQ1, CQ1 = 0x1008, 0x100C
ASQ, ACQ = QUEUES, QUEUES + PAGE


@contextmanager
def ready(**wishes: object) -> Iterator[Guest]:
    """The guest's driver has come to its end: the controller runs, with queues of 8 entries."""
    with booted(job(0, entries=ENTRIES), **wishes) as guest:
        guest.run()
        assert guest.outcome.done
        yield guest


def last_reason(guest: Guest, offset: int, value: int, width: int = 4) -> str:
    before = len(guest.tracer.findings)
    guest.store(offset, value, width)
    found = guest.tracer.findings[before:]
    return found[0].reason if found else ""


def command(opcode: int, cid: int, *, prp1: int = 0, cdw10: int = 0, cdw11: int = 0) -> bytes:
    return SQE.pack(opcode, 0, cid, 1, 0, 0, prp1, 0, cdw10, cdw11, 0, 0, 0, 0)


def admin(guest: Guest, *commands: bytes) -> None:
    """Submit admin commands behind the driver's three, and take their completions."""
    tail = guest.model.controller.submission[0].tail
    for each in commands:
        guest.machine.memory.write(ASQ + tail * 64, each)
        tail = (tail + 1) % 64
    assert last_reason(guest, 0x1000, tail) == ""
    assert last_reason(guest, 0x1004, guest.model.controller.completion[0].tail) == ""


def read_command(guest: Guest, slot: int) -> None:
    guest.machine.memory.write(QUEUES + 2 * PAGE + slot * 64, command(2, slot, prp1=DATA))


# -- the controller ---------------------------------------------------------------------------


def test_a_doorbell_before_the_controller_is_enabled() -> None:
    with booted(job(1, actions=[Action(Moment.PLACED, Space.BAR, SQ1, 1)])) as guest:
        guest.run()
        assert guest.reasons == ["the controller is not enabled: CC.EN is 0"]


def test_a_doorbell_before_the_controller_is_ready() -> None:
    with ready() as guest:
        guest.store(0x14, 0)
        guest.host.machine.clock.auto = False
        guest.store(0x14, 0x46_0001)
        assert guest.read(0x1C) == 0
        assert "not ready" in last_reason(guest, 0x1000, 1)
        assert not guest.model.controller.running


def test_a_doorbell_of_a_controller_that_failed() -> None:
    with ready() as guest:
        guest.store(0x14, 0)
        guest.store(0x24, 0)
        guest.store(0x14, 0x46_0001)
        assert guest.read(0x1C) & 2
        assert "CSTS.CFS is 1" in last_reason(guest, 0x1000, 1)


def test_a_reset_takes_the_queues() -> None:
    with ready() as guest:
        guest.store(0x14, 0)
        guest.store(0x14, 0x46_0001)
        guest.read(0x1C)
        assert "SQ1 does not exist: it was never created; there are CQ0, SQ0" in last_reason(
            guest, SQ1, 1
        )


def test_bus_mastering_off() -> None:
    with ready() as guest:
        guest.function.config.write(4, 2, 2)
        read_command(guest, 0)
        assert "bus mastering is off" in last_reason(guest, SQ1, 1)
        assert guest.model.controller.fatal_reason


# -- registers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "width", "said"),
    [
        (0x120, 4, "queue 3 at 0x1018"),
        (0x00, 8, "CAP is read-only"),
        (0x08, 4, "VS is read-only"),
        (0x14, 2, "CC takes accesses of 4 bytes, not 2"),
        (0x28, 2, "ASQ takes accesses of 8 bytes, not 2"),
        (0x2A, 4, "ASQ takes accesses of 8 bytes, not 4 at byte 2"),
        (0x24, 4, "it is 1 already"),
        (0x28, 8, "it is 1 already"),
        (0x34, 4, "it is 1 already"),
        (0x0C, 4, "masked in the MSI-X table"),
        (0xFFC, 4, "there is no register"),
    ],
)
def test_registers_that_take_no_write(offset: int, width: int, said: str) -> None:
    with ready() as guest:
        assert said in last_reason(guest, offset, 0x1000, width)


def test_registers_that_take_a_write() -> None:
    with ready() as guest:
        assert last_reason(guest, 0x14, 0x46_0000) == ""  # disable
        assert last_reason(guest, 0x24, 0x1F_001F) == ""
        assert last_reason(guest, 0x28, ASQ, 8) == ""
        assert last_reason(guest, 0x30, ACQ) == ""
        assert last_reason(guest, 0x34, 0) == ""
        assert last_reason(guest, 0x14, 0x46_0001) == ""
        watcher = guest.tracer.watcher(guest.function)
        assert watcher is not None
        assert watcher.queues[Doorbell(0, completion=False)].size == 32


# -- doorbells --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value", "width", "said"),
    [
        (0x1018, 1, 4, "SQ3 does not exist: it was never created; there are CQ0, CQ1, SQ0, SQ1"),
        (0x1010, 1, 4, "with a stride of 8 it would be the SQ1 tail doorbell, which is at 0x1008"),
        (0x1020, 1, 4, "with a stride of 16 it would be the SQ1 tail doorbell"),
        (0x1018 + 4, 1, 4, "CQ3 does not exist"),
        (SQ1, ENTRIES, 4, "8 is no entry of SQ1, which has 8"),
        (SQ1, 0, 4, "the tail of SQ1 is 0 already, nothing is submitted"),
        (SQ1, 1, 2, "written with 4 bytes, not 2"),
        (SQ1, 1, 8, "written with 4 bytes, not 8"),
        (SQ1 + 1, 1, 1, "no doorbell begins there: they are 4 bytes apart"),
        (CQ1, ENTRIES, 4, "8 is no entry of CQ1"),
        (CQ1, 0, 4, "the head of CQ1 is 0 already, nothing is released"),
        (CQ1, 1, 4, "nothing was posted at CQ1 up to 1"),
    ],
)
def test_doorbells_that_do_nothing(offset: int, value: int, width: int, said: str) -> None:
    with ready() as guest:
        queues = guest.model.controller.submission[1], guest.model.controller.completion[1]
        assert said in last_reason(guest, offset, value, width)
        assert (queues[0].tail, queues[1].head) == (0, 0)


def test_a_wider_stride_moves_the_doorbells() -> None:
    with ready(limits=Limits(doorbell_stride=1)) as guest:
        assert "they are 8 bytes apart (CAP.DSTRD)" in last_reason(guest, 0x100C, 1)
        # 0x1008 is SQ1 to a driver that takes the stride for 4.
        assert "CQ0" in guest.tracer.watcher(guest.function).name(0x1008, 4)
        read_command(guest, 0)
        assert last_reason(guest, 0x1010, 1) == ""


def test_a_full_queue_takes_no_more() -> None:
    with ready() as guest:
        guest.host.machine.clock.auto = False  # the controller fetches nothing
        assert last_reason(guest, SQ1, 7) == ""
        assert "it holds 7 commands and is full" in last_reason(guest, SQ1, 7)
        assert "SQ1 is full: 1 more commands do not fit, 7 of 7" in last_reason(guest, SQ1, 0)
        assert guest.model.controller.submission[1].tail == 7


def test_identifiers_are_used_again() -> None:
    """A driver that names commands by their slot, and looks at completions rarely."""
    with ready() as guest:
        for slot in range(ENTRIES):
            read_command(guest, slot)
        for tail, head in ((3, None), (6, 5), (1, None), (4, 2), (7, 7)):
            assert last_reason(guest, SQ1, tail) == ""
            if head is not None:
                assert last_reason(guest, CQ1, head) == ""


def test_a_full_completion_queue_stalls_the_others() -> None:
    with ready() as guest:
        for slot in range(ENTRIES):
            read_command(guest, slot)
        assert last_reason(guest, SQ1, 7) == ""
        assert guest.model.controller.completion[1].unconsumed == 7
        reason = last_reason(guest, SQ1, 0)
        assert "CQ1 is full: its head doorbell was not written since 7 completions" in reason
        assert guest.model.controller.submission[1].pending == 1
        assert last_reason(guest, CQ1, 7) == ""
        assert guest.model.controller.submission[1].pending == 0


# -- queues -----------------------------------------------------------------------------------


def test_a_queue_that_was_refused_says_why() -> None:
    with ready() as guest:
        # Queue 3 completing to queue 3, which is not there.
        create = command(1, 40, prp1=DATA, cdw10=7 << 16 | 3, cdw11=3 << 16 | 1)
        admin(guest, create)
        reason = last_reason(guest, 0x1018, 1)
        assert "the controller refused to create it: Completion Queue Invalid" in reason
        assert 3 not in guest.model.controller.submission


def test_a_queue_that_was_created_takes_commands() -> None:
    with ready() as guest:
        admin(
            guest,
            command(5, 40, prp1=DATA + PAGE, cdw10=7 << 16 | 3, cdw11=1),
            command(1, 41, prp1=DATA, cdw10=7 << 16 | 3, cdw11=3 << 16 | 1),
        )
        guest.machine.memory.write(DATA, command(0, 1))
        assert last_reason(guest, 0x1018, 1) == ""
        assert guest.model.controller.submission[3].tail == 1
        assert last_reason(guest, 0x101C, 1) == ""


def test_a_queue_may_be_refused_and_then_created() -> None:
    with ready() as guest:
        admin(guest, command(1, 40, prp1=DATA + 8, cdw10=7 << 16 | 3, cdw11=1 << 16 | 1))
        assert "refused" in last_reason(guest, 0x1018, 1)
        admin(guest, command(1, 41, prp1=DATA, cdw10=7 << 16 | 3, cdw11=1 << 16 | 1))
        guest.machine.memory.write(DATA, command(0, 1))
        assert last_reason(guest, 0x1018, 1) == ""


def test_a_queue_that_was_deleted_is_gone() -> None:
    with ready() as guest:
        admin(guest, command(0, 40, cdw10=1))
        assert "the driver deleted it" in last_reason(guest, SQ1, 1)
        assert 1 not in guest.model.controller.submission


def test_a_deletion_that_was_refused_changes_nothing() -> None:
    with ready() as guest:
        admin(guest, command(4, 40, cdw10=1))  # its submission queue still completes there
        read_command(guest, 0)
        assert last_reason(guest, SQ1, 1) == ""


def test_queues_outside_memory_are_no_harm() -> None:
    with ready() as guest:
        watcher = NvmeWatcher(guest.machine.memory)
        watcher.saw_write(0x24, 4, 0x3F_003F)
        watcher.saw_write(0x28, 8, 1 << 50)
        watcher.saw_write(0x30, 8, 1 << 51)
        watcher.saw_write(0x14, 4, 0x46_0001)
        assert watcher.saw_write(0x1000, 4, 5) == ""
        assert "nothing was posted" in watcher.saw_write(0x1004, 4, 1)


def test_statuses_have_the_names_of_the_specification() -> None:
    assert status_text(0x01) == "Invalid Command Opcode (0/0x01)"
    assert status_text(7 << 8 | 0x12) == "Vendor Specific (7/0x12)"
    assert status_text(5 << 8 | 0x99) == "status 5/0x99"


# -- the controller as oracle -----------------------------------------------------------------

_DOORBELLS = st.tuples(
    st.sampled_from([0x1000, 0x1004, SQ1, CQ1, 0x1010, 0x1014, 0x1018, 0x120, 0x1009]),
    st.integers(0, ENTRIES + 1),
    st.sampled_from([4, 4, 4, 2]),
)


@settings(max_examples=20, deadline=None)
@example(writes=[(0x1000, 0, 4), (0x1000, 4, 4)])
@given(writes=st.lists(_DOORBELLS, max_size=40))
def test_a_reason_is_given_exactly_when_the_controller_does_nothing(
    writes: list[tuple[int, int, int]],
) -> None:
    """Doorbells of every kind: the controller's own indices tell whether one had an effect."""
    with ready() as guest:
        controller = guest.model.controller

        def state() -> tuple[object, ...]:
            submission, completion = controller.submission, controller.completion
            return tuple((submission[queue].tail, completion[queue].head) for queue in (0, 1))

        for slot in range(ENTRIES):
            read_command(guest, slot)
        for slot in range(ENTRIES + 2):
            guest.machine.memory.write(ASQ + slot * 64, command(6, slot, prp1=DATA, cdw10=1))
        for offset, value, width in writes:
            before = state()
            reason = last_reason(guest, offset, value, width)
            if "is full: its head doorbell" in reason:
                assert state() != before  # taken, and waits
            else:
                assert bool(reason) == (state() == before), (hex(offset), value, width, reason)


def test_completions_carry_what_the_watcher_reads() -> None:
    """The layout of a completion, against the specification's figure."""
    with ready() as guest:
        read_command(guest, 5)
        guest.machine.memory.write(QUEUES + 2 * PAGE, command(2, 77, prp1=DATA))
        guest.store(SQ1, 1)
        raw = guest.machine.memory.read(QUEUES + 3 * PAGE, 16)
        _result, _reserved, head, submitter, cid, status = struct.unpack("<IIHHHH", raw)
        assert (head, submitter, cid, status & 1) == (1, 1, 77, 1)
