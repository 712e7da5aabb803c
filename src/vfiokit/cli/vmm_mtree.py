"""``vfiokit vmm mtree``: what of a function a guest has mapped, and what traps."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.errors import SourceError, UsageError

if TYPE_CHECKING:
    from vfiokit.vmm.listing import Comparison, FunctionMap
    from vfiokit.vmm.mtree import Line

DESCRIPTION = """\
Give a function of a host's twin to a guest, and list its BARs as QEMU's 'info mtree -f' does:
ramd reaches the device without an exit, i/o traps. With --compare, put the BARs where a real
QEMU has them, and say where the two differ.
"""
EPILOG = """\
examples:
  vfiokit vmm mtree 0000:05:00.0
  vfiokit vmm mtree nvme --page-size 65536
  vfiokit vmm mtree 0000:03:00.3 --msix-relocation bar2 --at 0=0xfe000000
  vfiokit vmm mtree 0000:05:00.0 --compare mtree.txt

exit codes: 0 listed, or the same; 3 the listings differ
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    from vfiokit.vmm.bar_layout import RELOCATIONS

    parser.add_argument("device", help="which function: an address, or any selector of one")
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="BAR=ADDRESS",
        help="where a BAR is in the guest; may be repeated",
    )
    parser.add_argument(
        "--page-size", type=int, default=4096, metavar="BYTES", help="of the host (default: 4096)"
    )
    parser.add_argument(
        "--msix-relocation", choices=RELOCATIONS, default="off", help="as QEMU's x-msix-relocation"
    )
    parser.add_argument(
        "--no-map",
        action="append",
        type=int,
        default=[],
        metavar="BAR",
        help="trap this BAR; may be repeated",
    )
    parser.add_argument(
        "--old-kernel",
        action="store_true",
        help="a kernel before 4.16, which does not let the MSI-X table be mapped along",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="what a real QEMU's 'info mtree -f' printed"
    )
    parser.add_argument("--explain", action="store_true", help="say why each range traps")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """List, or compare."""
    output = Output(json=arguments.json)
    places = dict(_place(text) for text in arguments.at)
    listed = None if arguments.compare is None else _read_listing(arguments.compare)
    result = None
    with _function_map(arguments, session) as found:
        if listed is None:
            found.place(places)
        else:
            result = found.compare(listed)
        if output.json:
            output.document("vmm-mtree", session.host, _document(found, result))
        elif result is not None:
            _print_comparison(result, output)
        else:
            _print_listing(found, output, explained=arguments.explain)
    return exit_code.NO if result is not None and result.differences else exit_code.DONE


def _read_listing(path: Path) -> tuple[Line, ...]:
    from vfiokit.vmm import mtree

    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    views = mtree.parse(text)
    # A cut-out may not name its address spaces.
    view = mtree.memory_view(views) if any(each.spaces for each in views) else views[0]
    return view.lines


def _document(found: FunctionMap, result: Comparison | None) -> dict[str, object]:
    from vfiokit.vmm import mtree
    from vfiokit.vmm.listing import explain

    differences = () if result is None else result.differences
    return {
        "function": found.function.name,
        "ranges": [_range(line) for line in mtree.lines(found.flat)],
        "reasons": list(explain(found.flat)),
        "compared": result is not None,
        "theirs": [_range(line) for line in (() if result is None else result.theirs)],
        "differences": [
            {
                "start": each.start,
                "last": each.last,
                "ours": each.one and _range(each.one),
                "theirs": each.other and _range(each.other),
            }
            for each in differences
        ],
    }


def _print_listing(found: FunctionMap, output: Output, *, explained: bool) -> None:
    from vfiokit.vmm import mtree
    from vfiokit.vmm.listing import explain

    output.lines(mtree.render(found.flat).splitlines())
    if explained:
        output.line()
        output.lines(explain(found.flat))


def _print_comparison(result: Comparison, output: Output) -> None:
    from vfiokit.vmm.mtree import line_text

    output.lines(line_text(line, kvm=False) for line in result.theirs)
    if not result.differences:
        output.line("the same: addresses, kinds and names")
    for each in result.differences:
        output.line(f"differs at {each.start:#x}-{each.last:#x}")
        output.line(f"  ours:   {'nothing' if each.one is None else each.one.kind_and_name}")
        output.line(f"  theirs: {'nothing' if each.other is None else each.other.kind_and_name}")


@contextmanager
def _function_map(arguments: argparse.Namespace, session: Session) -> Iterator[FunctionMap]:
    """The function on a twin of the host, bound to vfio-pci and opened."""
    from vfiokit.cli.vmm_plans import check_host
    from vfiokit.pci.selector import select_one
    from vfiokit.vfio import open_device
    from vfiokit.vmm.listing import FunctionMap, bind_on_twin

    check_host(session)
    bdf = select_one(session.topology(), arguments.device).bdf
    twin = bind_on_twin(session.tree, bdf)
    device = open_device(twin.kernel, bdf)
    try:
        made = FunctionMap(
            device,
            page_size=arguments.page_size,
            msix_relocation=arguments.msix_relocation,
            no_map=frozenset(arguments.no_map),
            msix_mappable=not arguments.old_kernel,
        )
    except BaseException:
        device.close()
        raise
    with closing(made):
        yield made


def _place(text: str) -> tuple[int, int]:
    bar, _, address = text.partition("=")
    try:
        return int(bar), int(address, 0)
    except ValueError:
        raise UsageError(
            f"--at {text!r} names no BAR and address", hint="write it as 0=0xfe000000"
        ) from None


def _range(line: Line) -> dict[str, object]:
    return {**line._asdict(), "traps": line.traps}
