"""The guest's NVMe driver: machine code against a modelled controller, through VFIO."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_rig import BAR, DATA, PLACE, QUEUES, RAM, booted, checksum, expected, job

from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme import Limits
from vfiokit.vmm import nvme_guest
from vfiokit.vmm.machine import Stop
from vfiokit.vmm.nvme_guest import (
    LOW_MEMORY,
    PAGE,
    QUEUE_PAGES,
    Action,
    Moment,
    Space,
    Stage,
)
from vfiokit.vmm.policy import Delivery, Policy

SOURCE = Path(nvme_guest.__file__).parent / "guest" / "nvme.s"


def test_reads_arrive_and_the_driver_sums_them() -> None:
    work = job(20)
    with booted(work) as guest:
        assert guest.run() is Stop.IDLE
        found = guest.outcome
        assert found.done
        assert (found.completed, found.submitted, found.errors) == (20, 20, 0)
        assert guest.machine.memory.read(DATA, work.pages * PAGE) == expected(work)
        assert found.checksum == checksum(work)


def test_the_driver_notes_what_the_controller_is() -> None:
    with booted(job(1), limits=Limits(doorbell_stride=2)) as guest:
        guest.run()
        found, registers = guest.outcome, guest.model.controller.registers
        assert found.done
        assert found.capabilities == registers.read(0, 8)
        assert found.version == registers.read(8, 4)
        assert found.stride == 16
        assert found.bar_size == guest.function.bars[0].size
        assert found.where == 0x8000_0000 | 1 << 11


@settings(max_examples=12, deadline=None)
@given(
    reads=st.integers(0, 40),
    entries=st.integers(2, 64),
    depth=st.integers(1, 63),
    pages=st.integers(1, 40),
    lba=st.integers(0, 100),
    stride=st.integers(0, 3),
    delivery=st.sampled_from([Delivery.POSTED, Delivery.INJECTED]),
)
def test_any_queue_reads_what_the_drive_holds(
    reads: int, entries: int, depth: int, pages: int, lba: int, stride: int, delivery: Delivery
) -> None:
    depth = min(depth, entries - 1, pages)
    work = job(reads, entries=entries, depth=depth, pages=pages, lba=lba)
    with booted(
        work, policy=Policy(delivery=delivery), limits=Limits(doorbell_stride=stride)
    ) as guest:
        guest.run()
        found = guest.outcome
        assert found.done
        assert found.completed == reads
        assert found.checksum == checksum(work)
        assert guest.machine.memory.read(DATA, pages * PAGE) == expected(work)
        assert not guest.reasons


def test_deeper_queues_need_fewer_interrupts() -> None:
    counts = []
    for depth in (1, 8):
        with booted(job(32, depth=depth, pages=32)) as guest:
            guest.run()
            assert guest.outcome.done
            counts.append(guest.outcome.interrupts)
    assert counts == [32, 4]


def test_larger_blocks_are_read_as_pages() -> None:
    work = job(4, block_size=4096, lba=2)
    with booted(work, block_size=4096) as guest:
        guest.run()
        assert guest.outcome.done
        assert guest.machine.memory.read(DATA, work.pages * PAGE) == expected(work)


def test_the_bar_goes_where_it_is_told() -> None:
    with booted(job(2, bar=0xF000_0000)) as guest:
        guest.run()
        assert guest.outcome.done
        (placed,) = guest.function.placed()
        assert placed.address == 0xF000_0000


def test_reads_beyond_the_drive_are_errors_and_the_driver_goes_on() -> None:
    with booted(job(3, lba=1 << 40)) as guest:
        guest.run()
        found = guest.outcome
        assert (found.stage, found.completed, found.errors) == (Stage.DONE, 3, 3)
        assert found.status & 0xFF == 0x80  # LBA Out of Range
        assert not found.done


def test_a_refused_admin_command_ends_the_driver() -> None:
    # 64 entries are more than this controller's queues may have.
    with booted(job(1), limits=Limits(queue_entries=16)) as guest:
        guest.run()
        found = guest.outcome
        assert found.stage is Stage.COMMAND_FAILED
        assert found.status & 0x7FF == 1 << 8 | 0x02  # Invalid Queue Size
        assert "refused" in str(found)


def test_without_msix_the_driver_says_so() -> None:
    with booted(job(1), vectors=None) as guest:
        guest.run()
        assert guest.outcome.stage is Stage.NO_MSIX


def test_without_a_controller_the_driver_says_so() -> None:
    with booted(job(1)) as guest:
        guest.machine.remove(guest.function)
        guest.run()
        assert guest.outcome.stage is Stage.NO_CONTROLLER


def test_a_controller_that_fails_is_noticed() -> None:
    # The action puts nonsense into AQA after the driver's own scan; CC.EN then fails.
    with booted(job(1)) as guest:
        guest.model.controller._configuration_problem = lambda: "broken"
        guest.run()
        assert guest.outcome.stage is Stage.FATAL


def test_an_exception_is_recorded() -> None:
    work = job(1)
    with booted(work) as guest:
        image = bytearray(nvme_guest.image())
        at = image.rindex(b"\xf4\xeb")  # the HLT it ends in, with the jump back
        image[at : at + 2] = b"\x0f\x0b"
        guest.machine.memory.write(nvme_guest.ENTRY, bytes(image))
        guest.run()
        assert guest.outcome.stage is Stage.EXCEPTION
        assert guest.outcome.fault == nvme_guest.ENTRY + at


@pytest.mark.parametrize(
    ("space", "address", "value"),
    [(Space.BAR, 0x0C, 5), (Space.MEMORY, 0x3_0000, 0xABCD), (Space.CONFIG, 0x3C, 0x0B)],
)
def test_actions_are_performed(space: Space, address: int, value: int) -> None:
    with booted(job(1, actions=[Action(Moment.END, space, address, value)])) as guest:
        guest.run()
        assert guest.outcome.done
        if space is Space.BAR:
            assert guest.model.controller.registers.read(0x0C, 4) == value
        elif space is Space.MEMORY:
            assert guest.machine.memory.read_number(address, 4) == value
        else:
            assert guest.function.config.read(address, 1) == value


@pytest.mark.parametrize(("width", "left"), [(1, 0x1111_1122), (2, 0x1111_3322), (4, 0x5544_3322)])
def test_actions_have_their_width(width: int, left: int) -> None:
    gpa = 0x3_0000
    value = 0x5544_3322 & (1 << 8 * width) - 1
    action = Action(Moment.QUEUES, Space.MEMORY, gpa, value, width)
    with booted(job(1, actions=[action])) as guest:
        guest.machine.memory.write_number(gpa, 4, 0x1111_1111)
        guest.run()
        assert guest.machine.memory.read_number(gpa, 4) == left


def test_actions_come_at_their_moment() -> None:
    moments = [Moment.END, Moment.PLACED, Moment.QUEUES, Moment.ENABLED]
    actions = [Action(each, Space.BAR, 0x1FF8, each) for each in moments]
    with booted(job(1, actions=actions)) as guest:
        guest.run()
        seen = [each.value for each in guest.tracer.accesses if each.place.endswith("0x1ff8")]
        assert seen == [Moment.PLACED, Moment.ENABLED, Moment.QUEUES, Moment.END]


@pytest.mark.parametrize(
    "wrong",
    [
        {"entries": 1},
        {"entries": 65},
        {"depth": 64},
        {"depth": 0},
        {"depth": 3, "pages": 2},
        {"pages": 0},
        {"pages": (1 << 16) + 1},
        {"queues": QUEUES + 1},
        {"queues": RAM},
        {"data": RAM - PAGE, "pages": 2},
        {"block_size": 520},
        {"bar": BAR + 0x1000},
        {"bar": 1 << 32},
        {"bar": 0},
        {"actions": [Action(Moment.END, Space.BAR, 0, 0)] * 300},
        {"reads": -1},
    ],
)
def test_work_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with booted(job(1)) as guest:
        work = job(int(wrong.pop("reads", 1)), **wrong)
        with pytest.raises(UsageError):
            nvme_guest.load(guest.machine.memory, work)


def test_the_listing_is_of_the_bytes() -> None:
    """Every byte of the listing is where it says: the image is what a person reads."""
    image = nvme_guest.image()
    listed = 0
    for line in SOURCE.with_suffix(".lst").read_text().splitlines():
        words = line[5:20].split()
        if len(words) >= 2 and len(words[0]) == 4:
            at, data = int(words[0], 16), bytes.fromhex(words[1])
            if any(data):  # addresses are filled in by the linker
                head = data.split(b"\0")[0]
                assert image[at : at + len(head)] == head
                listed += 1
    assert listed > 400


def test_the_driver_fits_below_its_stack() -> None:
    assert nvme_guest.ENTRY + len(nvme_guest.image()) < 0x17000 < LOW_MEMORY
    assert QUEUE_PAGES * PAGE == DATA - QUEUES
    assert PLACE.endswith("01.0")


@pytest.mark.skipif(not shutil.which("as"), reason="needs GNU as")
def test_parameters_are_where_the_source_has_them() -> None:
    text = SOURCE.read_text()
    for line in (
        "p_reads,   PARAM + 0x08",
        "p_actions, PARAM + 0x44",
        "r_stage,   PARAM + 0x80",
        "r_admin,   PARAM + 0xe0",
        "actions,   PARAM + 0x100",
    ):
        assert line in text
