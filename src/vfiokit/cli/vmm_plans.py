"""``vfiokit vmm plans``: plans A to D, run with the same guest and counted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.vmm.plan import Plan
    from vfiokit.vmm.plan_run import PlanRun

DESCRIPTION = """\
Give an NVMe drive to a guest in four ways, and let the guest's own driver read from it:
A traps everything; B maps all BARs; C traps configuration space and the MSI-X table and
redirects interrupts; D has the IOMMU translate DMA and post interrupts as well. The same
machine code runs each time; exits are counted by what they were for. B and C do harm: to
the host's twin, where it is shown.
"""
EPILOG = """\
examples:
  vfiokit vmm plans
  vfiokit vmm plans --reads 100 --plan A --plan D
  vfiokit vmm plans --exit-us 1.5             price an exit as your processor does
  vfiokit vmm plans --json | jq '.plans[].exits'

exit codes: 0 every plan did what it should, 3 one did not
"""
COUNTERS = ("config", "bar", "msix", "hlt", "inject", "eoi")
_MOST_READS = 20_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--reads", type=int, default=1000, metavar="N", help="pages to read (default: 1000)"
    )
    parser.add_argument(
        "--depth", type=int, default=1, metavar="N", help="reads on the way at a time (default: 1)"
    )
    parser.add_argument(
        "--plan",
        dest="plans",
        action="append",
        metavar="A|B|C|D|D-injected",
        help="only this one; may be repeated",
    )
    parser.add_argument("--device", default="nvme", help="which NVMe controller of the host")
    parser.add_argument(
        "--exit-us", type=float, metavar="US", help="what an exit costs, for a column of costs"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Run the plans, print counts and reasons."""
    from vfiokit.vmm.plan_host import PlanHost
    from vfiokit.vmm.plan_run import run_plan

    if not 1 <= arguments.reads <= _MOST_READS:
        raise UsageError(f"--reads is 1 to {_MOST_READS}")
    plans = chosen_plans(arguments.plans)
    check_host(session)
    runs: list[PlanRun] = []
    for plan in plans:
        note(f"plan {plan.letter}: {plan.title}")
        host = PlanHost(session.host, arguments.device, pages=arguments.reads)
        runs.append(run_plan(plan, host, arguments.reads, depth=arguments.depth))
    output = Output(json=arguments.json)
    if output.json:
        body = {"reads": arguments.reads, "plans": [each.to_json() for each in runs]}
        output.document("vmm-plans", session.host, body)
    else:
        _print(output, runs, arguments.exit_us)
    expected = all(each.correct == each.plan.works for each in runs)
    return exit_code.DONE if expected else exit_code.NO


def chosen_plans(letters: list[str] | None) -> tuple[Plan, ...]:
    """The plans of these letters, all of them by default; :class:`UsageError` for others."""
    from vfiokit.vmm.plan import PLANS, find_plans

    if letters is None:
        return PLANS
    try:
        return find_plans(letters)
    except KeyError as error:
        known = ", ".join(plan.letter for plan in PLANS)
        raise UsageError(f"there is no plan {error}", hint=f"there are {known}") from None


def check_host(session: Session) -> None:
    """Refuse to take this machine's own devices: :class:`UsageError`."""
    if session.host == "live":
        raise UsageError(
            "the guests run on a twin, not on this machine",
            hint="capture this machine first: vfiokit capture FILE, then --host FILE",
        )


def _print(output: Output, runs: list[PlanRun], exit_us: float | None) -> None:
    headers = ["plan", "exits", *COUNTERS, "other", "no exit", "time in exits", "reads", "result"]
    if exit_us is not None:
        headers.insert(-2, f"at {exit_us:g} µs")
    rows = []
    for each in runs:
        listed = [each.exits.get(name, 0) for name in COUNTERS]
        row = [
            each.plan.letter,
            str(each.total),
            *map(str, listed),
            str(each.total - sum(listed)),
            str(each.mapped_accesses + sum(each.events.values())),
            f"{1000 * each.exit_seconds:.1f} ms",
            f"{each.outcome.completed}/{each.reads}",
            "right" if each.correct else "WRONG",
        ]
        if exit_us is not None:
            row.insert(-2, f"{each.total * exit_us / 1000:.2f} ms")
        rows.append(row)
    output.table(headers, rows)
    for each in runs:
        output.line()
        output.heading(f"{each.plan.letter}: {each.plan.title}")
        output.lines(f"  {line}" for line in each.explain())
