"""Run the guest's NVMe driver with a tracer, mistakes and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vfiokit.vmm import nvme_guest
from vfiokit.vmm.machine import Stop
from vfiokit.vmm.nvme_guest import Action, Outcome
from vfiokit.vmm.plan import Plan
from vfiokit.vmm.plan_run import boot_on, budget, build_job, page_count
from vfiokit.vmm.trace import Access, Kind, Tracer
from vfiokit.vmm.trace_mistake import find_mistake

if TYPE_CHECKING:
    from vfiokit.vmm.plan_host import PlanHost

_BAR: int = nvme_guest.Job._field_defaults["bar"]


class TraceRun(NamedTuple):
    """What the tracer saw of one run."""

    plan: Plan
    stop: Stop
    outcome: Outcome
    accesses: tuple[Access, ...]
    """The first of them."""
    findings: tuple[Access, ...]
    """Writes that had no effect."""
    total: int
    """All accesses."""
    counts: dict[tuple[Kind, str, bool], int]
    """By kind, register, and whether it is a write."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "plan": self.plan.letter,
            "driver": str(self.outcome),
            "done": self.outcome.done,
            "total": self.total,
            "accesses": [_access_json(each) for each in self.accesses],
            "without_effect": [_access_json(each) for each in self.findings],
            "counts": [
                {"kind": kind.value, "register": name, "write": write, "count": count}
                for (kind, name, write), count in self.counts.items()
            ],
        }


def _access_json(access: Access) -> dict[str, Any]:
    return {
        "number": access.number,
        "kind": access.kind.value,
        "place": access.place,
        "register": access.name,
        "write": access.write,
        "width": access.width,
        "value": access.value,
        "meaning": access.meaning,
        "reason": access.reason,
    }


def run_trace(
    plan: Plan,
    host: PlanHost,
    *,
    reads: int = 2,
    mistakes: Sequence[str] = (),
    actions: Sequence[Action] = (),
    limit: int = 10_000,
) -> TraceRun:
    """Boot the guest on ``host``, which serves one run, and note its accesses.

    ``mistakes`` are names of :data:`~vfiokit.vmm.trace_mistake.MISTAKES`. Raises
    :class:`UsageError` for others.
    """
    table, end = host.msix_table, _BAR + host.bar_size
    chosen = [find_mistake(name).build(table, end) for name in mistakes]
    wanted = [action for made in chosen for action in made] + list(actions)
    queues = host.neighbours(nvme_guest.QUEUE_PAGES + page_count(reads))
    job = build_job(host.block_size, reads, queues, actions=wanted)
    with boot_on(plan, host, job) as machine:
        tracer = Tracer(machine, limit=limit)
        stop = machine.run(budget(job))
        return TraceRun(
            plan,
            stop,
            nvme_guest.outcome(machine.memory),
            tuple(tracer.accesses),
            tuple(tracer.findings),
            tracer.total,
            dict(tracer.counts),
        )
