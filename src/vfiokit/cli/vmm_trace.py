"""``vfiokit vmm trace``: what a guest's driver did to its device, by the registers' names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.cli.vmm_plans import check_host, chosen_plans
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.vmm.trace_run import TraceRun

DESCRIPTION = """\
Run a guest's NVMe driver and list what it did to the drive: which accesses were mapped,
which trapped, which reached nobody, by the names of registers, doorbells and MSI-X
entries. For every write that had no effect it says why. Mistakes that drivers make can be
made on purpose.
"""
EPILOG = """\
examples:
  vfiokit vmm trace
  vfiokit vmm trace --mistake not-a-doorbell --mistake no-queue --findings
  vfiokit vmm trace --write bar0+0x120=1@queues
  vfiokit vmm trace --write config+0x4=2@end --write bar0+0x1008=5@end
  vfiokit vmm trace --list

A write is bar0+OFFSET, config+OFFSET or gpa+ADDRESS, = VALUE, /1 /2 or /4 bytes (4), and @ the
moment: placed (BAR 0 is), enabled (the controller is), queues (exist), end (all is read).

exit codes: 0 every write had an effect, 3 some had none
"""
_MOST_READS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--reads", type=int, default=2, metavar="N", help="pages to read (default: 2)"
    )
    parser.add_argument("--plan", default="D", metavar="A|B|C|D", help="the plan (default: D)")
    parser.add_argument(
        "--mistake",
        dest="mistakes",
        action="append",
        default=[],
        metavar="NAME",
        help="let the driver make it; may be repeated, 'all' for all of them",
    )
    parser.add_argument(
        "--write",
        dest="writes",
        action="append",
        default=[],
        metavar="WHERE=VALUE@MOMENT",
        help="one more write of the driver; may be repeated",
    )
    parser.add_argument("--findings", action="store_true", help="only the writes without effect")
    parser.add_argument("--list", action="store_true", help="list the mistakes, and run nothing")
    parser.add_argument("--device", default="nvme", help="which NVMe controller of the host")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Run the driver, print its accesses and what had no effect."""
    from vfiokit.vmm.trace_mistake import MISTAKES, parse_write

    output = Output(json=arguments.json)
    if arguments.list:
        if output.json:
            raise UsageError("--list has no document")
        output.table(
            ("mistake", "what the driver does"), [(k, m.title) for k, m in MISTAKES.items()]
        )
        return exit_code.DONE
    if not 0 <= arguments.reads <= _MOST_READS:
        raise UsageError(f"--reads is 0 to {_MOST_READS}")
    mistakes = list(MISTAKES) if "all" in arguments.mistakes else arguments.mistakes
    actions = [parse_write(text) for text in arguments.writes]
    (plan,) = chosen_plans([arguments.plan])
    check_host(session)

    from vfiokit.vmm.plan_host import PlanHost
    from vfiokit.vmm.trace_run import run_trace

    host = PlanHost(session.host, arguments.device, pages=max(arguments.reads, 1))
    found = run_trace(plan, host, reads=arguments.reads, mistakes=mistakes, actions=actions)
    if output.json:
        output.document("vmm-trace", session.host, found.to_json())
    else:
        _print(output, found, findings_only=arguments.findings)
    return exit_code.NO if found.findings else exit_code.DONE


def _print(output: Output, found: TraceRun, *, findings_only: bool) -> None:
    if not findings_only:
        for access in found.accesses:
            mark = "  <- no effect" if access.reason else ""
            output.line(f"{access}{mark}")
        kinds: dict[str, int] = {}
        for (kind, _name, _write), count in found.counts.items():
            kinds[kind.value] = kinds.get(kind.value, 0) + count
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        output.line(f"{found.total} accesses: {listed}")
    output.line(f"{found.outcome}")
    if found.findings:
        output.line()
        output.heading("Writes without effect")
        for access in found.findings:
            output.line(f"{access.number:5} {access.place}: {access.name} = {access.value:#x}")
            output.line(f"      {access.reason}")
