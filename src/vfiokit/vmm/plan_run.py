"""Run the guest's NVMe driver under a plan, and say what came of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio import open_device
from vfiokit.vmm import nvme_guest
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.exit import Exit
from vfiokit.vmm.machine import Stop, VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.nvme_guest import Action, Job, Outcome
from vfiokit.vmm.plan import Plan
from vfiokit.vmm.trace_nvme import status_text
from vfiokit.vmm.vcpu import Vcpu

if TYPE_CHECKING:
    from vfiokit.vmm.plan_host import DamagedPage, HostVector, PlanHost

GUEST_ADDRESS = "0000:00:01.0"
"""Where the guest finds the drive."""
LOW_MEMORY = 1 << 20
"""Bytes of RAM from address 0 on."""
_MOST_PAGES = 1024
_BUDGET_FOR_READ = 2_000
_BUDGET = 10_000_000


class MeasuredMachine(VirtualMachine):
    """A virtual machine that notes how long it takes over each kind of exit."""

    def __init__(self, kernel: Kernel, memory: GuestMemory, plan: Plan) -> None:
        super().__init__(kernel, memory, policy=plan.policy)
        self.handling_ns: Counter[str] = Counter()
        """Nanoseconds spent on exits, by reason as KVM names it."""

    def handle(self, vcpu: Vcpu, exit_: Exit) -> Stop | None:
        """As usual, with a stopwatch."""
        begun = time.perf_counter_ns()
        stop = super().handle(vcpu, exit_)
        self.handling_ns[exit_.reason.value] += time.perf_counter_ns() - begun
        return stop


@dataclass(frozen=True)
class PlanRun:
    """What one plan came to."""

    plan: Plan
    reads: int
    stop: Stop
    outcome: Outcome
    exits: dict[str, int]
    """By what they were for."""
    events: dict[str, int]
    """What happened without an exit: posted interrupts, halts."""
    mapped_accesses: int
    """Loads and stores that reached the device without an exit."""
    instructions: int
    seconds: float
    """Of the whole run."""
    exit_seconds: float
    """Of them, spent on exits."""
    sha256_expected: str
    """Of what the drive holds."""
    sha256_read: str
    """Of what the guest finds in its pages."""
    damaged: tuple[DamagedPage, ...]
    """Pages of another process of the host that the device wrote to."""
    stolen: tuple[tuple[int, HostVector], ...]
    """Vectors of the host that the device raised, and whose they were."""
    interrupts_redirected: int
    """Interrupts that reached the guest's interrupt controller."""
    device_says: str
    """Why the controller stopped, in its own words; empty while it runs."""
    queues: int
    """Guest-physical address of the driver's queues."""

    @property
    def total(self) -> int:
        """All exits."""
        return sum(self.exits.values())

    @property
    def correct(self) -> bool:
        """Whether every byte came to where the guest wanted it, and nothing else was touched."""
        return (
            self.outcome.done
            and self.outcome.completed == self.reads
            and self.sha256_read == self.sha256_expected
            and not self.damaged
            and not self.stolen
        )

    def explain(self) -> list[str]:
        """Why it works or fails, a sentence a line."""
        return list(_explain(self))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "plan": self.plan.letter,
            "title": self.plan.title,
            "correct": self.correct,
            "reads": self.reads,
            "completed": self.outcome.completed,
            "stage": self.outcome.stage.name.lower(),
            "exits": self.exits,
            "exits_total": self.total,
            "without_exit": {**self.events, "mapped": self.mapped_accesses},
            "instructions": self.instructions,
            "seconds": self.seconds,
            "exit_seconds": self.exit_seconds,
            "sha256_expected": self.sha256_expected,
            "sha256_read": self.sha256_read,
            "guest_interrupts": self.outcome.interrupts + self.outcome.admin_interrupts,
            "damaged_pages": [
                {
                    "hpa": page.hpa,
                    "sha256_before": page.sha256_before,
                    "sha256_after": page.sha256_after,
                    "offset": page.first,
                    "bytes": page.changed,
                }
                for page in self.damaged
            ],
            "host_vectors_raised": [
                {"vector": vector, "owner": each.owner, "count": each.fired}
                for vector, each in self.stolen
            ],
            "device_says": self.device_says,
            "why": self.explain(),
        }


def build_job(
    block_size: int, reads: int, queues: int, *, depth: int = 1, actions: Sequence[Action] = ()
) -> Job:
    """The work of the guest's driver: ``reads`` pages into as many of its own, up to 4 MiB.

    ``queues`` is where its RAM for queues and data begins.
    """
    return Job(
        reads=reads,
        queues=queues,
        data=queues + nvme_guest.QUEUE_PAGES * nvme_guest.PAGE,
        pages=page_count(reads),
        block_size=block_size,
        depth=depth,
        actions=actions,
    )


def page_count(reads: int) -> int:
    """Pages that so many reads are spread over."""
    return max(1, min(reads, _MOST_PAGES))


@contextmanager
def boot(plan: Plan, kernel: Kernel, bdf: Bdf, job: Job) -> Iterator[MeasuredMachine]:
    """A guest that has the drive at ``bdf`` and the driver, about to run its first instruction.

    Its RAM for queues and data begins at ``job.queues``. Raises what :func:`open_device` does.
    """
    pages = nvme_guest.QUEUE_PAGES + job.pages
    layout = [(0, LOW_MEMORY), (job.queues, pages * nvme_guest.PAGE)]
    device = open_device(kernel, bdf)
    try:
        memory = GuestMemory(kernel, layout)
        machine = MeasuredMachine(kernel, memory, plan)
    except BaseException:
        device.close()
        raise
    with machine:
        try:
            machine.assign(device, GUEST_ADDRESS)
        except BaseException:
            device.close()
            raise
        nvme_guest.load(memory, job)
        machine.add_vcpu(Interpreter).write_register("rip", nvme_guest.ENTRY)
        yield machine


@contextmanager
def boot_on(plan: Plan, host: PlanHost, job: Job) -> Iterator[MeasuredMachine]:
    """:func:`boot` on a twin, whose IOMMU is switched off for a plan that does without."""
    with boot(plan, host.twin.kernel, host.bdf, job) as machine:
        if not plan.policy.translate:
            host.switch_iommu_off()
        yield machine


def budget(job: Job) -> int:
    """Instructions that are more than enough for ``job``."""
    return _BUDGET + job.reads * _BUDGET_FOR_READ


def run_plan(plan: Plan, host: PlanHost, reads: int, *, depth: int = 1) -> PlanRun:
    """Boot the guest on ``host``, which serves one run, and let it read ``reads`` pages.

    The guest's RAM for queues and data has the guest-physical addresses that are the
    host-physical ones of another process' pages.
    """
    queues = host.neighbours(nvme_guest.QUEUE_PAGES + page_count(reads))
    job = build_job(host.block_size, reads, queues, depth=depth)
    with boot_on(plan, host, job) as machine:
        begun = time.perf_counter()
        stop = machine.run(budget(job))
        return _result(plan, host, job, machine, stop, time.perf_counter() - begun)


def _result(
    plan: Plan, host: PlanHost, job: Job, machine: MeasuredMachine, stop: Stop, seconds: float
) -> PlanRun:
    read = bytes(machine.memory.slice(job.data, job.pages * nvme_guest.PAGE))
    expected = host.expected(job.reads, job.pages)
    return PlanRun(
        plan=plan,
        reads=job.reads,
        stop=stop,
        outcome=nvme_guest.outcome(machine.memory),
        exits=dict(machine.exits.most_common()),
        events=dict(machine.events.most_common()),
        mapped_accesses=machine.bus.mapped_accesses,
        instructions=sum(vcpu.instructions for vcpu in machine.vcpus),
        seconds=seconds,
        exit_seconds=sum(machine.handling_ns.values()) / 1e9,
        sha256_expected=hashlib.sha256(expected).hexdigest(),
        sha256_read=hashlib.sha256(read).hexdigest(),
        damaged=host.damage(),
        stolen=tuple((number, each) for number, each in host.vectors.items() if each.fired),
        interrupts_redirected=sum(machine.irqchip.delivered.values()),
        device_says=host.function.controller.fatal_reason,
        queues=job.queues,
    )


def _explain(run: PlanRun) -> Iterator[str]:
    yield _verdict(run)
    if not run.plan.policy.translate:
        yield (
            "the device takes the guest's addresses for the host's: it looked for commands at "
            f"host address {run.queues:#x}, in a page of another process"
        )
    yield from _explain_damage(run)
    yield from _explain_interrupts(run)
    if run.device_says:
        yield f"the controller stopped: {run.device_says}"


def _verdict(run: PlanRun) -> str:
    if not run.correct:
        return f"fails: {run.outcome}"
    each = run.total / max(run.reads, 1)
    share = "those of its set-up alone" if each < 1 else f"{each:.1f} for each read"
    return f"works: {run.reads} reads arrived in the guest; the {run.total} exits are {share}"


def _explain_damage(run: PlanRun) -> Iterator[str]:
    for page in run.damaged:
        yield (
            f"host page {page.hpa:#x}: {page.changed} bytes changed from offset {page.first:#x} "
            f"on, sha256 {page.sha256_before[:12]} became {page.sha256_after[:12]}"
        )
        if page.hpa == run.queues + nvme_guest.PAGE:
            status = int.from_bytes(page.now[14:16], "little") >> 1
            yield (
                "they are a completion: the text of the page before was taken for a command; "
                f"result: {status_text(status)}"
            )


def _explain_interrupts(run: PlanRun) -> Iterator[str]:
    for vector, each in run.stolen:
        yield (
            f"the guest's vector {vector:#x} is the host's: {each.owner} got {each.fired} "
            "interrupt(s) that it never asked for, and the guest got none"
        )
    if run.outcome.empty_interrupts:
        yield (
            f"{run.outcome.empty_interrupts} interrupt(s) reached the guest's handler, which found "
            "no completion in its queue"
        )
