"""``vfiokit serve``: a device over vfio-user, for QEMU or any other client."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.doctor import parse_size
from vfiokit.cli.render import Output, note
from vfiokit.cli.session import Session
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.vfio_user.device import Device
    from vfiokit.vfio_user.server import Observer
    from vfiokit.vfio_user.session import Capabilities

DESCRIPTION = """\
Serve a PCI device at a socket by the vfio-user protocol, so that QEMU, or another client,
has it as if it were hardware: an NVMe disk whose blocks are a file, QEMU's educational
device, or a device of your own in Python. The device keeps its state while clients come
and go, one at a time. SIGTERM and Ctrl-C end it.
"""
EPILOG = """\
devices:
  nvme            an NVMe controller: --backing, --size, --read-only, --msix, --cmb, --serial
  edu             QEMU's educational device: --dma-bits
  FILE.py:NAME    a class or function in a file of your own (docs/own-device.md);
                  --set NAME=VALUE gives it arguments, as text

examples:
  vfiokit serve nvme --socket /tmp/disk.sock --backing disk.img --size 1G
  vfiokit serve edu --socket /tmp/edu.sock --trace
  vfiokit serve mydevice.py:Timer --socket /tmp/timer.sock --set period=10

and for the first of them, memory that both share:
  qemu-system-x86_64 -M q35,memory-backend=m0 -m 1G \\
    -object memory-backend-memfd,id=m0,size=1G,share=on \\
    -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/disk.sock"}}'

exit codes: 0 ended by a signal, or after the only client with --once
"""

_OPTIONS = {
    "nvme": ("backing", "size", "read_only", "msix", "cmb", "serial"),
    "edu": ("dma_bits",),
    "FILE.py:NAME": ("set",),
}
"""Options that belong to one kind of device."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("device", metavar="DEVICE", help="nvme, edu, or FILE.py:NAME")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--socket",
        "--socket-path",
        metavar="PATH",
        help="listen at this socket, made with mode 0600",
    )
    where.add_argument(
        "--fd",
        type=int,
        metavar="N",
        help="an open socket that was inherited: listening or connected",
    )
    parser.add_argument("--once", action="store_true", help="end when the first client is gone")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="print accesses by register name, DMA and interrupts; with --json a document each",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say what was refused, and why"
    )
    disk = parser.add_argument_group("nvme")
    disk.add_argument(
        "--backing", metavar="FILE", help="file of the blocks, made if missing; memory"
    )
    disk.add_argument("--size", type=parse_size, metavar="SIZE", help="of the disk (default 1G)")
    disk.add_argument("--read-only", action="store_true", help="refuse writes")
    disk.add_argument("--msix", type=int, metavar="N", help="interrupt vectors (default 17)")
    disk.add_argument("--cmb", type=parse_size, metavar="SIZE", help="controller memory buffer")
    disk.add_argument("--serial", metavar="TEXT", help="serial number")
    parser.add_argument_group("edu").add_argument(
        "--dma-bits", type=int, metavar="N", help="address bits of its DMA (default 28)"
    )
    parser.add_argument_group("FILE.py:NAME").add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="an argument; may be repeated"
    )
    limits = parser.add_argument_group("limits, of what a client may ask for")
    limits.add_argument("--max-dma-maps", type=int, metavar="N", help="mappings (default 65535)")
    limits.add_argument(
        "--max-transfer", type=parse_size, metavar="SIZE", help="data in one message (default 1M)"
    )
    limits.add_argument(
        "--max-fds", type=int, metavar="N", help="descriptors with one message (default 16)"
    )
    limits.add_argument(
        "--dma-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="for an answer to a request of the device's (default 30)",
    )
    limits.add_argument(
        "--no-twin", action="store_true", help="offer no second socket for the device's requests"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 1e6 seconds")
    return value


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Serve until a signal, or until the only client is gone."""
    del session
    from vfiokit.vfio_user.listen import Listener, allow_many_files, bind, inherited, notify
    from vfiokit.vfio_user.server import Server

    device = _device(arguments)
    with contextlib.ExitStack() as held:
        if hasattr(device, "close"):
            held.callback(device.close)
        server = Server(
            device,
            limits=_limits(arguments),
            observer=_observer(arguments, device),
            dma_timeout=arguments.dma_timeout,
        )
        sock = inherited(arguments.fd) if arguments.socket is None else bind(arguments.socket)
        listener = Listener(server, sock, once=arguments.once, path=arguments.socket)
        held.enter_context(_logging(verbose=arguments.verbose))
        held.enter_context(listener.stopping_at(signal.SIGTERM, signal.SIGINT))
        allow_many_files()
        note(f"serving {device.name} at {arguments.socket or f'descriptor {arguments.fd}'}")
        notify("READY=1")
        listener.run()
        notify("STOPPING=1")
    return exit_code.DONE


def _observer(arguments: argparse.Namespace, device: Device) -> Observer | None:
    """Prints what happens, with ``--trace``: a line each, or a JSON document each."""
    if not arguments.trace:
        return None
    from vfiokit.vfio_user.trace import Event, Trace

    output = Output(json=arguments.json)

    watched = True

    def show(event: Event) -> None:
        nonlocal watched
        if not watched:
            return
        try:
            if arguments.json:
                output.document("serve-event", "live", event.document(), one_line=True)
            else:
                output.line(str(event))
            sys.stdout.flush()  # whoever watches wants it now
        except BrokenPipeError:  # whoever watched has left; the device goes on
            watched = False

    return Trace(device, show)


def _device(arguments: argparse.Namespace) -> Device:
    """The device that the command line names; options of another kind of device are refused."""
    from vfiokit.vfio_user import catalogue

    kind = arguments.device if arguments.device in ("nvme", "edu") else "FILE.py:NAME"
    for other, names in _OPTIONS.items():
        for name in names:
            if other != kind and getattr(arguments, name):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is for {other}, not for {arguments.device}")
    if kind == "edu":
        return catalogue.edu(dma_bits=28 if arguments.dma_bits is None else arguments.dma_bits)
    if kind == "nvme":
        return catalogue.nvme(
            backing=arguments.backing,
            size=arguments.size,
            read_only=arguments.read_only,
            vectors=17 if arguments.msix is None else arguments.msix,
            cmb_size=arguments.cmb or 0,
            serial=arguments.serial,
        )
    return catalogue.from_file(arguments.device, _values(arguments.set or ()))


def _values(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {text!r}", hint="write --set NAME=VALUE")
        found[name] = value
    return found


def _limits(arguments: argparse.Namespace) -> Capabilities:
    """What a client may ask for; :class:`UsageError` outside what the protocol can say."""
    from dataclasses import replace

    from vfiokit.vfio_user.server import DEFAULT

    given = {
        "max_dma_maps": (arguments.max_dma_maps, 1, 1 << 24),
        "max_data_xfer_size": (arguments.max_transfer, 4096, 64 << 20),
        "max_msg_fds": (arguments.max_fds, 1, 253),
    }
    values = {}
    for name, (value, least, most) in given.items():
        if value is None:
            continue
        if not least <= value <= most:
            raise UsageError(f"a limit of {value}", hint=f"between {least} and {most}")
        values[name] = value
    return replace(DEFAULT, twin_socket=not arguments.no_twin, **values)


@contextlib.contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    """What the server has to say goes to standard error, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("vfiokit.vfio_user")
    before = logger.level
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
