"""``vfiokit vmm run``: a guest's driver reads from a drive, on a twin or on this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.cli.vmm_plans import chosen_plans
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.kernel.port import Kernel
    from vfiokit.pci.address import Bdf
    from vfiokit.vmm.nvme_run import GuestRun

DESCRIPTION = """\
Boot a guest that has an NVMe drive, and let its own driver read from it. The guest is
machine code, run by a processor in Python; it never writes to the drive. With --host live
the drive is this machine's, and must be bound to vfio-pci ('vfiokit apply').
"""
EPILOG = """\
examples:
  vfiokit vmm run
  vfiokit vmm run --reads 1000 --depth 16
  vfiokit vmm run --host live --device 0000:01:00.0 --block-size 4096

exit codes: 0 every read arrived, 3 not every one
"""
_MOST_READS = 100_000
_BLOCK_SIZES = (512, 1024, 2048, 4096)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--reads", type=int, default=100, metavar="N", help="pages of 4 KiB (default: 100)"
    )
    parser.add_argument("--lba", type=int, default=0, metavar="N", help="first block (default: 0)")
    parser.add_argument("--depth", type=int, default=1, metavar="N", help="reads at a time")
    parser.add_argument("--nsid", type=int, default=1, metavar="N", help="namespace (default: 1)")
    parser.add_argument(
        "--block-size",
        type=int,
        choices=_BLOCK_SIZES,
        help="bytes of a block (default: 512; a twin knows)",
    )
    parser.add_argument("--plan", default="D", metavar="A|D|D-injected", help="default: D")
    parser.add_argument("--device", default="nvme", help="which drive")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="give up after S seconds"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Boot, wait, print."""
    from vfiokit.vmm.nvme_run import build_job, run_guest

    if not 1 <= arguments.reads <= _MOST_READS or arguments.lba < 0 or arguments.nsid < 1:
        raise UsageError(f"--reads is 1 to {_MOST_READS}, --lba not negative, --nsid at least 1")
    (plan,) = chosen_plans([arguments.plan])
    kernel, bdf, block_size = _drive(arguments, session)
    job = build_job(
        arguments.reads,
        lba=arguments.lba,
        block_size=block_size,
        nsid=arguments.nsid,
        depth=arguments.depth,
    )
    found = run_guest(plan, kernel, bdf, job, timeout_s=arguments.timeout)
    output = Output(json=arguments.json)
    if output.json:
        output.document("vmm-run", session.host, {"device": str(bdf), **found.to_json()})
    else:
        _print(output, bdf, found)
    return exit_code.DONE if found.done else exit_code.NO


def _drive(arguments: argparse.Namespace, session: Session) -> tuple[Kernel, Bdf, int]:
    """Kernel, address and block size of the drive: of this host, or of a fresh twin."""
    if session.host == "live":
        from vfiokit.pci.selector import select_one

        function = select_one(session.topology(), arguments.device)
        return session.kernel, function.bdf, arguments.block_size or _BLOCK_SIZES[0]
    from vfiokit.vmm.plan_host import PlanHost

    host = PlanHost(session.host, arguments.device, pages=min(arguments.reads, 1024))
    return host.twin.kernel, host.bdf, arguments.block_size or host.block_size


def _print(output: Output, bdf: Bdf, found: GuestRun) -> None:
    listed = ", ".join(f"{count} {name}" for name, count in found.exits.items()) or "none"
    events = ", ".join(f"{count} {name}" for name, count in found.events.items())
    output.line(f"{bdf}, plan {found.plan.letter}: {found.outcome}")
    output.line(
        f"{found.outcome.completed} reads in {found.seconds:.2f} s, "
        f"{found.outcome.errors} with errors; {found.instructions} instructions"
    )
    output.line(f"{sum(found.exits.values())} exits: {listed}")
    quiet = f"{found.mapped_accesses} mapped accesses" + (f", {events}" if events else "")
    output.line(f"without an exit: {quiet}")
    output.line(f"sha256 of the guest's pages {found.sha256}")
    if found.failure:
        output.line(f"the processor stopped: {found.failure}")
