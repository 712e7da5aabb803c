"""``vfiokit lab``: run a command on a real Linux kernel in QEMU, with devices made to order."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vfiokit.lab.equipment import Equipment
    from vfiokit.lab.guest_run import Result
    from vfiokit.lab.laboratory import Lab

TIMED_OUT = 124
"""The guest was stopped because its time was over, as ``timeout(1)`` says it."""
LAB_FAILED = 125
"""The lab itself failed, as container tools say it; anything else is the command's status."""

DESCRIPTION = """\
Boot a real Linux kernel in QEMU, with an IOMMU and PCI devices made to order, run a
command in it, and bring back its output, files and exit status. Needs neither hardware
nor privilege nor KVM nor an image: the guest sees this host's files, writes into memory,
and is gone when the command ends.
"""
EPILOG = """\
examples:
  vfiokit lab run -- lspci -nn
  vfiokit lab run --topology 'rp0(edu:dev)' --iommu intel -- ./my-vfio-test
  vfiokit lab run --topology machine.txt --files 'report*.xml' -- python3 -m pytest tests/vfio
  vfiokit lab shell --topology 'rp0(sw acs(nvme:a cmb=16, nvme:b))'
  vfiokit lab check

exit codes of run: the command's own; 124 its time was over, 125 the lab itself failed
"""
TOPOLOGY_HELP = """\
topology: items separated by commas, each a kind with an optional :name, options, and in
parentheses what is below it
  rp [noacs] [speed=16] [width=8]      root port, holds one thing
  sw [acs]                             switch: each child below a downstream port of its own
  port [acs|noacs]                     such a port, to say more about one
  slot                                 one device of several functions
  pcie-pci-bridge, pci-bridge          conventional buses
  hb [bus=0x40]                        another host bridge, holds root ports
  edu [dma_bits=28]                    DMA, MSI, INTx: the device to learn on
  nvme [size=64M] [cmb=16M] [vfs=4]    storage
  igb, e1000e, virtio-net              network; igb has 7 VFs
  virtio-blk [size=64M]                storage
  pci-testdev [membar=1M], ivshmem [size=1M]   plain memory in a BAR
Devices on a root or conventional bus take at=1c, a device number. The command finds their
addresses in $VFIOKIT_LAB_DEVICES ("dev=0000:01:00.0 ...").

files: what the command writes to $VFIOKIT_LAB_OUTPUT comes back to --output
kernel: --kernel, else $VFIOKIT_LAB_KERNEL, else this host's own from /boot
QEMU: $VFIOKIT_LAB_QEMU (a program, or the root folder of an unpacked system), else PATH
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = _add(actions, "run", "run a command and return its exit status")
    run_parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="stop the guest after S seconds"
    )
    run_parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where files from the guest go (default: here)"
    )
    run_parser.add_argument(
        "--files",
        action="append",
        default=[],
        metavar="PATTERN",
        help="also bring back files that match, relative to the folder; may be repeated",
    )
    run_parser.add_argument(
        "--stdin", action="store_true", help="hand over standard input, read to its end first"
    )
    run_parser.add_argument(
        "--console", action="store_true", help="show the kernel's console on standard error"
    )
    run_parser.add_argument(
        "-v", "--verbose", action="store_true", help="say how long each phase took"
    )
    run_parser.add_argument("words", nargs="+", metavar="COMMAND", help="after --")
    shell_parser = _add(actions, "shell", "a shell in the guest, on this terminal")
    shell_parser.add_argument("words", nargs="*", metavar="COMMAND", help="instead of $SHELL")
    _add(actions, "check", "what would be booted, and whether it can be")


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=TOPOLOGY_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--topology", metavar="TEXT|FILE", help="devices; default: an edu, an nvme")
    parser.add_argument(
        "--iommu",
        default="intel",
        metavar="KIND",
        help="intel (default), intel-fsts, intel-pt, amd, virtio, none or noiommu",
    )
    parser.add_argument(
        "--cpu", default="zen", help="zen (default), intel, pre-zen, or a model of QEMU's"
    )
    parser.add_argument("--kernel", default="", metavar="FILE", help="image to boot")
    parser.add_argument("--modules", default="", metavar="DIR", help="where its modules are")
    parser.add_argument(
        "--append", action="append", default=[], metavar="WORDS", help="more kernel parameters"
    )
    parser.add_argument(
        "--needs",
        action="append",
        default=[],
        metavar="OPTION",
        help="insist on a kernel option, such as IOMMUFD or PCI_P2PDMA; may be repeated",
    )
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="default: 1024")
    parser.add_argument("--smp", type=int, default=1, metavar="CPUS", help="default: 1")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable in the guest, or pass one on; may be repeated",
    )
    parser.add_argument(
        "--root",
        default="auto",
        metavar="KIND",
        help="files that the guest sees: host (this host's), image (a few of them, for kernels "
        "without 9p), or auto (default: the host's where the kernel can)",
    )
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="NAME",
        help="also put this file, folder or installed Python package into an image; may be "
        "repeated",
    )
    parser.add_argument("-C", "--folder", metavar="DIR", help="where to run it (default: here)")
    return parser


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Do it; returns the exit status of the guest's command."""
    del session  # the lab is always on this host
    from vfiokit.lab.failure import GuestTimeoutError, LabError

    try:
        return _ACTIONS[arguments.action](arguments)
    except LabError as error:
        sys.stderr.write(f"vfiokit: error: {error}\n")
        if error.hint:
            sys.stderr.write(f"vfiokit: hint: {error.hint}\n")
        return TIMED_OUT if isinstance(error, GuestTimeoutError) else LAB_FAILED


def build_lab(arguments: argparse.Namespace) -> Lab:
    """The lab that the command line describes."""
    from vfiokit.lab.laboratory import DEFAULT_TOPOLOGY, Lab

    text = arguments.topology
    if text is None:
        text = DEFAULT_TOPOLOGY
    elif os.path.isfile(text):
        text = Path(text).read_text(encoding="utf-8")
    return Lab(
        topology=text,
        iommu=arguments.iommu,
        cpu=arguments.cpu,
        kernel=arguments.kernel,
        modules=arguments.modules,
        memory_mib=arguments.memory,
        smp=arguments.smp,
        append=tuple(word for words in arguments.append for word in words.split()),
        needs=tuple(arguments.needs),
        root=arguments.root,
        include=tuple(arguments.include),
        timeout_s=getattr(arguments, "timeout", 0.0),
        environment=_variables(arguments.env),
    )


def _variables(words: list[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in words)
    return {
        name: value if equals else os.environ.get(name, "")
        for name, equals, value in pairs
        if equals or name in os.environ
    }


def _run(arguments: argparse.Namespace) -> int:
    lab = build_lab(arguments)
    stdin = sys.stdin.buffer.read() if arguments.stdin else b""

    def forward(name: str, data: bytes) -> None:
        if name == "console" and not arguments.console:
            return
        stream = sys.stdout if name == "stdout" else sys.stderr
        stream.buffer.write(data)
        stream.flush()

    result = lab.run(
        arguments.words,
        folder=arguments.folder,
        stdin=stdin,
        fetch=arguments.files,
        output=arguments.output or Path(),
        on_output=None if arguments.json else forward,
    )
    if arguments.json:
        Output(json=True).document("lab-run", "lab", _document(result))
    for left_out in result.left_out:
        note(f"lab: {left_out}")
    if result.image:
        note(f"lab: {image_sizes(result.image)}")
    if arguments.verbose:
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.phases.items())
        note(f"lab: {result.seconds:.2f} s: {phases}")
    return result.status


def image_sizes(sizes: Mapping[str, int]) -> str:
    """How large an image is, and what makes it so."""
    parts = sorted(sizes.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in parts if size >= 50_000)
    return f"image of {sum(sizes.values()) / 1e6:.1f} MB: {listed}"


def _document(result: Result) -> dict[str, object]:
    return {
        "status": result.status,
        "stdout": result.stdout.decode("utf-8", "replace"),
        "stderr": result.stderr.decode("utf-8", "replace"),
        "console": result.console,
        "seconds": round(result.seconds, 3),
        "image": dict(result.image),
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
    }


def _shell(arguments: argparse.Namespace) -> int:
    lab = build_lab(arguments)
    note("lab: leave the shell to end the guest; Ctrl-A X ends it at once, Ctrl-A Ctrl-A is Ctrl-A")
    return lab.shell(arguments.words, folder=arguments.folder)


def _check(arguments: argparse.Namespace) -> int:
    equipment = build_lab(arguments).check()
    from vfiokit.lab.qemu_arguments import build

    hardware = build(equipment.blueprint, equipment.qemu, "DISKS")
    command = equipment.qemu_command(hardware, Path("WORK"), "stdio")
    places = {name: str(place.bdf) for name, place in equipment.blueprint.places().items()}
    facts = {
        "qemu": f"{equipment.qemu.program} {equipment.qemu.version}",
        "kernel": str(equipment.kernel.image),
        "release": equipment.kernel.release,
        "files": _files(equipment),
        "modules": " ".join(module.name for module in equipment.modules()) or "none needed",
        "topology": str(equipment.blueprint) or "nothing",
    }
    output = Output(json=arguments.json)
    if output.json:
        body = {**facts, "devices": places, "command": list(command)}
        output.document("lab-check", "lab", body)
        return 0
    for key, value in facts.items():
        output.line(f"{key:<10}{value}")
    for name, address in places.items():
        output.line(f"{'':<10}{address}  {name}")
    output.line(f"{'command':<10}{shlex.join(command)}")
    return 0


def _files(equipment: Equipment) -> str:
    if equipment.root.shared:
        return "this host's, over 9p"
    reason = equipment.root.reason
    return "a few, in an image" + (f", because {reason}" if reason else "")


_ACTIONS = {"run": _run, "shell": _shell, "check": _check}
