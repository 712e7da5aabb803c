"""Queue pairs against a controller's side that checks the rules of the specification."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_memory import new_queue

from vfiokit.driver.nvme.prp import ListPool, build_prps
from vfiokit.errors import ControllerFatalError, DeviceTimeoutError, DriverError, UsageError
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.vfio.vector import Vector

step = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 5)),
    st.tuples(st.just("batch"), st.integers(1, 5)),
    st.tuples(st.just("complete"), st.integers(0, 100)),
    st.tuples(st.just("poll"), st.just(0)),
    st.tuples(st.just("reap"), st.integers(1, 6)),
)


@given(st.integers(2, 9), st.lists(step, max_size=120))
@settings(max_examples=300, deadline=None)
def test_every_command_completes_once_with_its_own_result(entries, steps) -> None:
    queue, controller = new_queue(entries)
    sent: dict[int, int] = {}
    posted: list[tuple[int, int, int]] = []
    serial = 0
    for kind, number in steps:
        if kind in ("submit", "batch"):
            count = min(number, queue.free_slots)
            commands = [(2, 1, 0, 0, serial + index, 0, 0) for index in range(count)]
            serial += count
            if kind == "batch":
                cids = queue.submit_many(commands)
            else:
                cids = [queue.submit(*command) for command in commands]
                queue.ring()
            for cid, command in zip(cids, commands, strict=True):
                assert cid not in sent
                sent[cid] = command[4]
        elif kind == "complete" and controller.fetched:
            controller.fetched.rotate(number)
            command = controller.fetched.popleft()
            assert sent[command[2]] == command[8]
            controller.complete(command[2], number, command[8] ^ 0xFFFF)
            posted.append((command[2], number, command[8] ^ 0xFFFF))
        elif kind == "poll":
            expected = posted.pop(0) if posted else None
            assert queue.poll() == expected
            if expected:
                del sent[expected[0]]
        elif kind == "reap":
            expected_all, posted = posted[:number], posted[number:]
            assert queue.reap(number) == expected_all
            for done in expected_all:
                del sent[done[0]]
        assert queue.outstanding == len(sent)
        assert queue.free_slots == entries - 1 - len(sent)


def test_full_queue_refuses_more() -> None:
    queue, _controller = new_queue(4)
    for _ in range(3):
        queue.submit(2)
    with pytest.raises(UsageError, match="full"):
        queue.submit(2)


def test_batch_that_does_not_fit_keeps_what_fitted() -> None:
    queue, controller = new_queue(4)
    with pytest.raises(UsageError, match="full"):
        queue.submit_many([(2, 1, 0, 0, index, 0, 0) for index in range(5)])
    assert [command[8] for command in controller.fetched] == [0, 1, 2]
    assert queue.outstanding == 3


def test_batch_rings_once() -> None:
    queue, controller = new_queue(16)
    queue.submit_many([(2, 1, 0, 0, index, 0, 0) for index in range(10)])
    assert controller.doorbells == [(0x1008, 10)]
    queue.ring()
    assert len(controller.doorbells) == 1


def test_doorbells_follow_stride_and_queue_id() -> None:
    queue, controller = new_queue(8)
    assert (queue._sq_doorbell, queue._cq_doorbell) == (0x1008, 0x100C)
    space = controller.space
    wide = type(queue)(space, controller, 3, 8, doorbell_stride=16)
    assert (wide._sq_doorbell, wide._cq_doorbell) == (0x1000 + 6 * 16, 0x1000 + 7 * 16)


def test_both_queues_start_at_a_controller_page() -> None:
    _queue, controller = new_queue(8)
    space = controller.space
    large = type(_queue)(space, controller, 1, 1000, page_size=16384)
    assert large.sq_iova % 16384 == large.cq_iova % 16384 == 0
    assert large.cq_iova >= large.sq_iova + 64000


def test_waits_out_of_order_find_their_own_completions() -> None:
    queue, controller = new_queue(8)
    controller.on_command = lambda command: controller.complete(command[2], 0, command[8])
    first, second, third = queue.submit_many([(2, 1, 0, 0, index, 0, 0) for index in (7, 8, 9)])
    assert queue.wait(third, 1)[2] == 9
    # The ids of kept completions are not given to new commands.
    fourth = queue.submit(2, 1, 0, 0, 10)
    assert fourth not in (first, second)
    assert queue.wait_many([first, fourth, second], 1) == [
        (first, 0, 7),
        (fourth, 0, 10),
        (second, 0, 8),
    ]
    assert queue.free_slots == 7


def test_wait_for_a_silent_controller_times_out_with_the_state() -> None:
    queue, _controller = new_queue(8, check=lambda doing: "CSTS 0x1 (ready)")
    cid = queue.submit(2)
    start = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match=r"CSTS 0x1.*") as caught:
        queue.wait(cid, 0.05)
    assert time.monotonic() - start < 5
    assert "1 of 7 commands outstanding" in str(caught.value)


def test_late_completion_of_an_abandoned_command_is_dropped() -> None:
    queue, controller = new_queue(8)
    late = queue.submit(2)
    with pytest.raises(DeviceTimeoutError):
        queue.wait(late, 0)
    with pytest.raises(UsageError, match="not outstanding"):
        queue.wait(late, 1)
    assert queue.free_slots == 6
    controller.complete(late)
    fresh = queue.submit(2)
    queue.ring()
    controller.complete(fresh, 0, 5)
    assert queue.wait(fresh, 1) == (fresh, 0, 5)
    assert queue.free_slots == 7
    assert queue.reap() == []


def test_reap_drops_abandoned_completions_too() -> None:
    queue, controller = new_queue(8)
    cids = queue.submit_many([(2, 1, 0, 0, 0, 0, 0)] * 3)
    queue.abandon(cids[1])
    for cid in cids:
        controller.complete(cid)
    assert [done[0] for done in queue.reap()] == [cids[0], cids[2]]
    assert queue.free_slots == 7


@pytest.mark.parametrize("cid", [5, 6, 7, 1000])
def test_completion_of_an_unknown_command_is_an_error(cid: int) -> None:
    queue, controller = new_queue(8)
    queue.submit(2)
    queue.ring()
    controller.complete(cid)
    with pytest.raises(DriverError, match="not outstanding"):
        queue.poll()
    with pytest.raises(DriverError, match="not outstanding"):
        queue.reap()


def test_dead_controller_ends_a_long_wait(monkeypatch) -> None:
    def dead(doing: str) -> str:
        raise ControllerFatalError("CSTS.CFS")

    monkeypatch.setattr("vfiokit.driver.nvme.queue._CHECK_INTERVAL_S", 0.02)
    queue, _controller = new_queue(8, check=dead)
    cid = queue.submit(2)
    start = time.monotonic()
    with pytest.raises(ControllerFatalError):
        queue.wait(cid, 60)
    assert time.monotonic() - start < 10


def test_restart_forgets_and_begins_with_phase_one() -> None:
    queue, controller = new_queue(4)
    controller.on_command = lambda command: controller.complete(command[2])
    for _ in range(6):
        queue.wait(queue.submit(2), 1)
    queue.submit(2)
    queue.restart()
    controller.sq_head = controller.cq_tail = controller.cq_head = 0
    controller.phase = 1
    assert queue.free_slots == 3
    assert queue.wait(queue.submit(2), 1)[1] == 0


def test_prp_list_pages_return_when_the_command_completes() -> None:
    queue, controller = new_queue(8)
    space = controller.space
    pool = ListPool(space, 4096, chunk=4)
    queue._pool = pool
    _prp1, _prp2, pages = build_prps(0x2000_0000, 64 * 4096, pool)
    cid = queue.submit(2)
    queue.attach_list(cid, pages)
    assert pool.free_pages == 3
    queue.ring()
    controller.complete(cid)
    queue.poll()
    assert pool.free_pages == 4


def test_close_frees_the_memory() -> None:
    queue, controller = new_queue(8)
    queue.close()
    queue.close()
    assert controller.space.buffers == {}


def test_queue_sizes_out_of_range_are_refused() -> None:
    for entries in (1, 65537):
        with pytest.raises(UsageError):
            new_queue(entries)


# -- interrupts and asyncio -----------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["interrupts", "polling"])
def vector(request):
    made = Vector(LinuxKernel(), "vector 1") if request.param else None
    yield made
    if made is not None:
        made.close()


def signal(vector: Vector | None) -> None:
    if vector is not None:
        LinuxKernel().eventfd_write(vector.fileno())


def test_many_tasks_wait_on_one_queue(vector) -> None:
    queue, controller = new_queue(6, vector=vector)

    async def one(number: int) -> int:
        await queue.room_async(5)
        cid = queue.submit(2, 1, 0, 0, number)
        return (await queue.wait_async(cid, 5))[2]

    async def answer() -> None:
        for _ in range(200):
            await asyncio.sleep(0.001)
            while controller.fetched:
                command = controller.fetched.pop()
                controller.complete(command[2], 0, command[8])
            signal(vector)

    async def run() -> list[int]:
        background = asyncio.create_task(answer())
        results = await asyncio.gather(*(one(number) for number in range(40)))
        background.cancel()
        return results

    assert asyncio.run(run()) == list(range(40))
    assert queue.free_slots == 5


def test_async_wait_times_out_and_drops_the_late_completion(vector) -> None:
    queue, controller = new_queue(6, vector=vector)

    async def run() -> None:
        cid = queue.submit(2)
        with pytest.raises(DeviceTimeoutError):
            await queue.wait_async(cid, 0.02)
        controller.complete(cid)
        signal(vector)
        fresh = queue.submit(2)
        queue.ring()
        controller.complete(fresh, 0, 3)
        assert await queue.wait_async(fresh, 1) == (fresh, 0, 3)

    asyncio.run(run())
    assert queue.free_slots == 5


def test_room_that_never_comes_times_out(vector) -> None:
    queue, _controller = new_queue(2, vector=vector)
    queue.submit(2)
    with pytest.raises(DeviceTimeoutError, match="free slot"):
        asyncio.run(queue.room_async(0.02))


def test_restart_ends_async_waits(vector) -> None:
    queue, _controller = new_queue(4, vector=vector)

    async def run() -> None:
        task = asyncio.create_task(queue.wait_async(queue.submit(2), 5))
        await asyncio.sleep(0.01)
        queue.restart()
        with pytest.raises(DriverError, match="reset"):
            await task

    asyncio.run(run())
