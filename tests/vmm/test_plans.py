"""Plans A to D: exits counted one by one, data that arrives, and harm where it is expected."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import pytest
from nvme_rig import BAR, booted, job

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme import MemoryStore
from vfiokit.vmm import nvme_guest
from vfiokit.vmm.machine import Stop
from vfiokit.vmm.nvme_guest import ADMIN_VECTOR, PAGE, QUEUE_PAGES, Stage
from vfiokit.vmm.plan import PLANS, Bars, Plan, PlanPolicy, find_plans
from vfiokit.vmm.plan_host import PlanHost
from vfiokit.vmm.plan_run import PlanRun, boot_on, budget, build_job, run_plan
from vfiokit.vmm.policy import Delivery
from vfiokit.vmm.trap_map import Access

READS = 20
CONFIG, TABLE, ADMIN = 26, 8, 3
"""IN and OUT of the driver's scan; writes of two MSI-X entries; admin commands."""


def plan(letter: str) -> Plan:
    return find_plans([letter])[0]


@cache
def done(letter: str, reads: int = READS) -> PlanRun:
    return run_plan(plan(letter), PlanHost(pages=reads), reads)


# -- counts -----------------------------------------------------------------------------------


def test_trapping_everything_costs_five_exits_a_read() -> None:
    found = done("A")
    each = READS + ADMIN
    assert found.exits == {
        "config": CONFIG,
        "msix": TABLE,
        # CAP, VS, CC twice, CSTS twice, AQA, ASQ, ACQ; two doorbells for each command.
        "bar": 9 + 2 * each,
        "hlt": each + 1,  # and the one that it rests in
        "inject": each,
        "eoi": each,
        "apic": 1,  # the spurious interrupt vector register
    }
    assert found.mapped_accesses == 0
    assert found.events == {}


def test_posting_leaves_the_exits_of_the_setup() -> None:
    found = done("D")
    each = READS + ADMIN
    assert found.exits == {"config": CONFIG, "msix": TABLE}
    assert found.events == {"hlt": each + 1, "posted": each}
    assert found.mapped_accesses == 9 + 2 * each + each + 1


def test_injecting_by_software_costs_three_exits_a_read() -> None:
    found = done("D-injected")
    each = READS + ADMIN
    assert found.exits == {
        "config": CONFIG,
        "msix": TABLE,
        "hlt": each + 1,
        "inject": each,
        "eoi": each,
        "apic": 1,
    }
    assert found.mapped_accesses == 9 + 2 * each


def test_a_thousand_reads() -> None:
    everything, posted = done("A", 1000), done("D", 1000)
    assert everything.correct
    assert posted.correct
    assert everything.total == 5060
    assert posted.total == 34
    assert everything.sha256_read == posted.sha256_read


def test_a_thousand_reads_with_interrupts_by_software() -> None:
    found = done("D-injected", 1000)
    assert found.correct
    assert found.total == 3045


@pytest.mark.parametrize("letter", ["A", "D", "D-injected"])
def test_exits_grow_with_reads_as_the_plan_says(letter: str) -> None:
    few, many = done(letter, 3), done(letter)
    per_read = {"A": 5, "D": 0, "D-injected": 3}[letter]
    assert many.total - few.total == per_read * (READS - 3)


def test_several_reads_at_a_time_share_doorbells_and_interrupts() -> None:
    one = run_plan(plan("A"), PlanHost(pages=READS), READS, depth=10)
    assert one.correct
    assert one.total == done("A").total - 5 * (READS - 2)


# -- A and D work -----------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["A", "D", "D-injected"])
def test_what_works_reads_what_the_drive_holds(letter: str) -> None:
    host = PlanHost(pages=READS)
    found = run_plan(plan(letter), host, READS)
    assert found.stop is Stop.IDLE
    assert found.outcome.done
    assert found.sha256_read == hashlib.sha256(host.content).hexdigest()
    assert found.correct
    assert found.plan.works


@pytest.mark.parametrize("letter", ["A", "D", "D-injected"])
def test_what_works_harms_nobody_at_the_same_addresses(letter: str) -> None:
    found = done(letter)
    assert found.damaged == ()
    assert found.stolen == ()
    assert found.device_says == ""


# -- B and C do not ---------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["B", "C"])
def test_untranslated_dma_writes_a_completion_into_a_page_of_the_host(letter: str) -> None:
    found = done(letter)
    assert not found.correct
    (page,) = found.damaged
    assert page.hpa == found.queues + PAGE  # the guest's ACQ, by the host's addresses
    assert (page.first, page.changed) == (0, 16)
    before = _neighbour(1)
    assert page.sha256_before == hashlib.sha256(before).hexdigest()
    assert page.sha256_after == hashlib.sha256(page.now + before[16:]).hexdigest()
    # SQ 0, and the identifier is of the text "page 0 of …" that was taken for a command.
    assert page.now[12:14] == _neighbour(0)[2:4]
    assert int.from_bytes(page.now[14:16], "little") >> 1 & 0x7FF == 0x01  # Invalid Opcode


def _neighbour(index: int) -> bytes:
    return f"page {index} of another process on the host. ".encode().ljust(64, b".") * 64


def test_untouched_messages_go_to_the_driver_that_has_the_vector_on_the_host() -> None:
    found = done("B")
    ((vector, owner),) = found.stolen
    assert vector == ADMIN_VECTOR
    assert owner.fired == 1
    assert " of 0000:" in owner.owner
    assert found.interrupts_redirected == 0
    assert found.outcome.admin_interrupts == 0


def test_redirected_interrupts_reach_a_guest_that_finds_nothing() -> None:
    found = done("C")
    assert found.stolen == ()
    assert found.interrupts_redirected == 1
    assert (found.outcome.admin_interrupts, found.outcome.empty_interrupts) == (1, 1)


@pytest.mark.parametrize("letter", ["B", "C"])
def test_the_driver_waits_for_its_first_command(letter: str) -> None:
    found = done(letter)
    assert found.stop is Stop.IDLE
    assert found.outcome.stage is Stage.ENABLED
    assert found.outcome.completed == 0
    assert found.sha256_read == hashlib.sha256(bytes(READS * PAGE)).hexdigest()


@pytest.mark.parametrize(("letter", "exits"), [("B", 28), ("C", 39)])
def test_what_fails_fails_cheaply(letter: str, exits: int) -> None:
    found = done(letter)
    assert found.total == exits
    assert found.exits["config"] == CONFIG
    assert found.exits.get("msix", 0) == (TABLE if letter == "C" else 0)
    assert "bar" not in found.exits


@pytest.mark.parametrize("letter", ["B", "C"])
def test_an_iommu_contains_what_is_not_translated(letter: str) -> None:
    host = PlanHost(pages=READS)
    host.switch_iommu_off = lambda: None  # type: ignore[method-assign]
    found = run_plan(plan(letter), host, READS)
    assert not found.correct
    assert found.damaged == ()
    assert found.stolen == ()
    assert "cannot be read" in found.device_says
    assert host.iommu.faults.total


def test_interrupt_remapping_blocks_a_message_that_the_guest_made_up() -> None:
    host = PlanHost(pages=1)
    interrupts = host.twin.machine.interrupts

    def dma_only() -> None:
        for unit in host.twin.machine.iommus:
            unit.disable_translation()

    host.switch_iommu_off = dma_only  # type: ignore[method-assign]
    found = run_plan(plan("B"), host, 1)
    assert not found.correct
    assert len(found.damaged) == 1
    assert found.stolen == ()
    assert interrupts.blocked == 1


# -- the policies -----------------------------------------------------------------------------


def _kinds(letter: str) -> dict[str, set[Access]]:
    """What becomes of accesses to each part of BAR 0, once the guest has placed it."""
    with booted(job(0), policy=plan(letter).policy) as guest:
        guest.run()
        traps, place = guest.machine.traps, guest.function.msix_place
        assert place is not None
        table = place.table
        found: dict[str, set[Access]] = {"registers": set(), "table": set()}
        for offset in range(0, table.offset + table.length, 4):
            mapped = traps.maps(BAR + offset, 4)
            part = "registers" if offset < table.offset else "table"
            found[part].add(Access.DIRECT if mapped else Access.TRAP)
        return found


@pytest.mark.parametrize(
    ("letter", "registers", "table"),
    [
        ("A", Access.TRAP, Access.TRAP),
        ("B", Access.DIRECT, Access.DIRECT),
        ("C", Access.DIRECT, Access.TRAP),
        ("D", Access.DIRECT, Access.TRAP),
    ],
)
def test_what_is_mapped_and_what_traps(letter: str, registers: Access, table: Access) -> None:
    found = _kinds(letter)
    assert found["registers"] == {registers}
    assert found["table"] == {table}


def test_the_plans_differ_in_one_step_each() -> None:
    facts = {
        each.letter: (each.policy.bars, each.policy.delivery, each.policy.translate)
        for each in PLANS
    }
    assert facts == {
        "A": (Bars.NONE, Delivery.INJECTED, True),
        "B": (Bars.ALL, Delivery.UNTOUCHED, False),
        "C": (Bars.DATA, Delivery.INJECTED, False),
        "D-injected": (Bars.DATA, Delivery.INJECTED, True),
        "D": (Bars.DATA, Delivery.POSTED, True),
    }
    assert [each.letter for each in PLANS if each.works] == ["A", "D-injected", "D"]
    assert PlanPolicy().bars is Bars.DATA


def test_plans_are_found_by_letter_in_any_case() -> None:
    assert [each.letter for each in find_plans(["d", "A", "d-INJECTED"])] == [
        "D",
        "A",
        "D-injected",
    ]
    with pytest.raises(KeyError):
        find_plans(["E"])


# -- the host ---------------------------------------------------------------------------------


def test_a_host_without_such_a_drive_is_refused() -> None:
    with pytest.raises(UsageError, match="NVMe"):
        PlanHost(device="gpu", pages=1)


def test_a_drive_that_is_too_small_is_refused() -> None:
    host = PlanHost(pages=1)
    host.function.controller.namespace.store = MemoryStore(PAGE)
    with pytest.raises(UsageError, match="too small"):
        host._write(bytes(2 * PAGE))


def test_pages_in_turn_keep_what_was_read_last() -> None:
    host = PlanHost(pages=5)
    pages = [host.content[at : at + PAGE] for at in range(0, 5 * PAGE, PAGE)]
    assert host.expected(5, 2) == pages[4] + pages[3]
    assert host.expected(1, 3) == pages[0] + bytes(2 * PAGE)


def test_more_reads_than_pages_wrap_around() -> None:
    host = PlanHost(pages=7)
    work = build_job(host.block_size, 7, host.neighbours(QUEUE_PAGES + 3))._replace(pages=3)
    with boot_on(plan("D"), host, work) as machine:
        machine.run(budget(work))
        found = nvme_guest.outcome(machine.memory)
        assert found.done
        assert machine.memory.read(work.data, 3 * PAGE) == host.expected(7, 3)


# -- the command ------------------------------------------------------------------------------


def test_the_command_prints_counts_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "plans", "--reads", "3", "--exit-us", "2"]) == exit_code.DONE
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["D"][1] == "34"
    assert lines["A"][1] == str(60 + 15)
    assert "0.07" in lines["D"]  # 34 exits of 2 µs, in ms
    assert "WRONG" in lines["B"]
    assert "never asked for" in out
    assert "found no completion" in out


def test_the_document_has_the_harm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "plans", "--reads", "1", "--plan", "b", "--json"]) == exit_code.DONE
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert found["plan"] == "B"
    assert not found["correct"]
    assert found["damaged_pages"][0]["bytes"] == 16
    assert found["host_vectors_raised"][0]["vector"] == ADMIN_VECTOR


@pytest.mark.parametrize(
    "words",
    [
        ["--reads", "0"],
        ["--reads", "999999"],
        ["--plan", "E"],
        ["--depth", "64", "--reads", "1"],
        ["--host", "live"],
        ["--device", "gpu"],
    ],
)
def test_what_cannot_be_done_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "plans", *words]) == exit_code.USAGE
    assert "error" in capsys.readouterr().err
