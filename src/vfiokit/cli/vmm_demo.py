"""``vfiokit vmm demo1`` and ``demo2``: the talk's demonstrations, step by step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from vfiokit.vmm.demo import Demonstration, Step

DESCRIPTION = """\
Virtualization from one register and one instruction. demo1 runs 'mov $7, %rax' once;
demo2 runs it many times, which costs the hypervisor nothing, and then what a guest
cannot do by itself: a port, a device's register, HLT. Each of these traps.
"""
EPILOG = """\
examples:
  vfiokit vmm demo1
  vfiokit vmm demo2 --times 1000000
  vfiokit vmm demo2 --engine kvm

engines: interpreter (needs nothing), kvm (this machine's /dev/kvm), auto (kvm where it runs
64-bit guests)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument(
        "--engine",
        choices=("interpreter", "kvm", "auto"),
        default="interpreter",
        help="what runs the guest (default: interpreter)",
    )
    parser.add_argument(
        "--times", type=int, default=10_000, metavar="N", help="how often demo2 runs it"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Run and tell."""
    from vfiokit.kernel.linux import LinuxKernel
    from vfiokit.vmm.demo import demo1, demo2

    output = Output(json=arguments.json)
    kernel = LinuxKernel()  # memory, and /dev/kvm: a twin has no processors
    if arguments.action == "demo1":
        shown = demo1(arguments.engine, kernel)
    else:
        shown = demo2(arguments.engine, kernel, arguments.times)
    if output.json:
        output.document("vmm-demo", session.host, shown.document())
    else:
        _print(output, shown)
    return exit_code.DONE


def _print(output: Output, shown: Demonstration) -> None:
    output.heading(f"Demo {shown.number}: engine {shown.engine}, {shown.mode} mode")
    if shown.note:
        output.line(shown.note)
    output.line("the guest's program:")
    output.lines(f"  {line}" for line in shown.listing)
    for number, step in enumerate(shown.steps, 1):
        output.line()
        output.heading(f"{number}. {step.title}")
        output.line(f"  before      {_registers(step.before)}")
        output.line(f"  after       {_registers(step.after)}")
        output.line(f"  exit        {step.exit_text}")
        output.line(f"  hypervisor  {step.answer}")
        output.line(f"  cost        {_cost(step)}")
    output.line()
    ran = sum(step.instructions for step in shown.steps)
    output.line(f"{ran} instructions, {len(shown.steps)} exit(s): only those went through here.")
    if shown.engine == "interpreter":
        output.line("The interpreter translates code when it first meets it: the cost has that in.")


def _registers(values: dict[str, int]) -> str:
    return "  ".join(f"{name}={value:#x}" for name, value in values.items())


def _cost(step: Step) -> str:
    micros = step.seconds * 1e6
    each = step.seconds / step.instructions * 1e9
    return f"{micros:.1f} µs for {step.instructions} instruction(s), {each:.0f} ns each"
