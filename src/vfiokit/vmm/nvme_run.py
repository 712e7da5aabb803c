"""Let the guest's driver read from a drive that is bound to vfio-pci: a twin's, or this host's."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vmm import nvme_guest
from vfiokit.vmm.machine import Stop
from vfiokit.vmm.nvme_guest import Job, Outcome, Stage
from vfiokit.vmm.plan import Plan
from vfiokit.vmm.plan_run import LOW_MEMORY, boot, budget

_LOOK_S = 0.05


class GuestRun(NamedTuple):
    """What came of it."""

    plan: Plan
    outcome: Outcome
    exits: dict[str, int]
    """By what they were for."""
    events: dict[str, int]
    mapped_accesses: int
    instructions: int
    seconds: float
    sha256: str
    """Of the guest's pages: what it read last."""
    failure: str
    """Why the processor could not go on; empty otherwise."""

    @property
    def done(self) -> bool:
        """Whether every read arrived."""
        return self.outcome.done

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "plan": self.plan.letter,
            "done": self.done,
            "driver": str(self.outcome),
            "completed": self.outcome.completed,
            "errors": self.outcome.errors,
            "checksum": self.outcome.checksum,
            "exits": self.exits,
            "exits_total": sum(self.exits.values()),
            "without_exit": {**self.events, "mapped": self.mapped_accesses},
            "instructions": self.instructions,
            "seconds": self.seconds,
            "sha256": self.sha256,
            "failure": self.failure,
        }


def build_job(reads: int, *, lba: int, block_size: int, nsid: int, depth: int) -> Job:
    """The work: ``reads`` pages from block ``lba`` on, into up to 1024 pages above low memory."""
    return Job(
        reads=reads,
        queues=LOW_MEMORY,
        data=LOW_MEMORY + nvme_guest.QUEUE_PAGES * nvme_guest.PAGE,
        pages=max(1, min(reads, 1024)),
        lba=lba,
        block_size=block_size,
        nsid=nsid,
        depth=depth,
    )


def run_guest(
    plan: Plan, kernel: Kernel, bdf: Bdf, job: Job, *, timeout_s: float = 30.0
) -> GuestRun:
    """Boot a guest with the drive at ``bdf``, wait until its driver is done or time is over.

    It only reads. Raises :class:`UsageError` for a plan that gives the device the guest's own
    addresses, and what opening a device raises.
    """
    if not plan.works:
        raise UsageError(
            f"plan {plan.letter} lets the device use the guest's addresses as its host's",
            hint="'vfiokit vmm plans' shows on a twin what comes of it",
        )
    with boot(plan, kernel, bdf, job) as machine:
        begun = time.perf_counter()
        left = budget(job)
        while True:
            # The drive is another machine: it may interrupt at any time.
            stop = machine.run(left, idle_s=_LOOK_S)
            over = time.perf_counter() - begun > timeout_s
            finished = nvme_guest.outcome(machine.memory).stage >= Stage.DONE
            if stop is not Stop.IDLE or finished or over:
                break
        seconds = time.perf_counter() - begun
        read = machine.memory.slice(job.data, job.pages * nvme_guest.PAGE)
        digest = hashlib.sha256(read).hexdigest()
        read.release()
        return GuestRun(
            plan,
            nvme_guest.outcome(machine.memory),
            dict(machine.exits.most_common()),
            dict(machine.events.most_common()),
            machine.bus.mapped_accesses,
            sum(vcpu.instructions for vcpu in machine.vcpus),
            seconds,
            digest,
            machine.failure,
        )
