"""A guest saved while its commands are on the way in the drive: none is lost, none done twice."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_rig import DATA, Guest, booted, checksum, expected, job

from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.nvme_guest import PAGE, Stage
from vfiokit.vmm.plan import find_plans
from vfiokit.vmm.policy import Policy

READS = 24


def change_processor(guest: Guest) -> None:
    """Save the guest, and let a new processor go on where the old one was."""
    machine = guest.machine
    state = machine.state(in_place=True)
    old = machine.vcpus[0]
    machine._processors[0].vcpu = Interpreter(machine.memory, machine.bus)
    old.close()
    machine.load(state)


def finish_in_steps(guest: Guest, dice: random.Random) -> tuple[int, int]:
    """Run in pieces, the drive's clock by hand; saves, and saves with commands on the way."""
    clock = guest.host.machine.clock
    clock.auto = False
    saves = busy = 0
    for _ in range(3000):
        guest.machine.run(dice.randrange(1, 1500))
        if dice.random() < 0.3:
            saves += 1
            busy += clock.pending
            change_processor(guest)
        if dice.random() < 0.5:
            # A command takes 10 µs, enabling 1 ms.
            clock.advance(dice.choice((5_000, 12_000, 300_000)))
        if guest.outcome.stage >= Stage.DONE:
            return saves, busy
    raise AssertionError(f"{guest.outcome} after {saves} saves")


@pytest.mark.parametrize("letter", ["A", "D"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1 << 30), depth=st.sampled_from([1, 3, 8]))
def test_commands_on_the_way_survive(letter: str, seed: int, depth: int) -> None:
    work = job(READS, depth=depth)
    with booted(work, policy=find_plans([letter])[0].policy) as guest:
        guest.tracer.stop()
        finish_in_steps(guest, random.Random(seed))
        found = guest.outcome
        assert found.done
        assert (found.completed, found.submitted, found.errors) == (READS, READS, 0)
        assert found.checksum == checksum(work)
        assert guest.machine.memory.read(DATA, work.pages * PAGE) == expected(work)


def test_the_saves_do_meet_commands_on_the_way() -> None:
    with booted(job(READS, depth=2)) as guest:
        saves, busy = finish_in_steps(guest, random.Random(5))
        assert saves > busy > 5


def test_saving_is_no_exit_and_no_access() -> None:
    counts = []
    for saving in (False, True):
        with booted(job(READS), policy=Policy()) as guest:
            while guest.outcome.stage < Stage.DONE:
                guest.machine.run(500)
                if saving:
                    change_processor(guest)
            counts.append((dict(guest.machine.exits), guest.tracer.counts))
    assert counts[0] == counts[1]


def test_a_state_is_plain_data() -> None:
    with booted(job(READS)) as guest:
        guest.machine.run(14_000)
        state = guest.machine.state(in_place=True)

    def plain(value: object) -> object:
        return value.hex() if isinstance(value, bytes) else repr(value)

    assert json.loads(json.dumps(state, default=plain))
