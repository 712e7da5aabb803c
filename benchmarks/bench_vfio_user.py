"""What does a request over vfio-user cost, next to a bare ping-pong on such a socket?

Both ends on one CPU, in two processes; blocks of each question take turns with blocks of the floor:
36 bytes there and back, ``send`` and ``recv`` in Python and nothing else. Each block has its
median, and the best of the blocks counts, as neighbours come and go. What is read is
``CSTS`` of the NVMe controller; what is written is the liveness register of edu, as a write that
an NVMe controller acts on takes longer than the message. Goals, which the C library (libvfio-user)
about meets with a device of no registers:

- a 4-byte read takes at most 1.35 times the floor;
- reads sent 32 at a time run at least 2.2 times as often as those waited for;
- posted writes at least 4.5 times, the read that they end with counted in;
- ``DMA_MAP`` of a page of a memfd takes at most 2.2 times the floor.

    python benchmarks/bench_vfio_user.py [--check]
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from collections.abc import Callable

from vfiokit.kernel import linux
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.function import Function
from vfiokit.pci.address import Bdf
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.function import FunctionDevice
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap, RegionAccess
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities
from vfiokit.vfio_user.wire import Command

READ_GOAL, PIPELINED_GOAL, POSTED_GOAL, MAP_GOAL = 1.35, 2.2, 4.5, 2.2
BLOCKS = 60
CALLS = 100
DEPTH = 32
POSTED = 256
BDF = Bdf.parse("0000:00:00.0")
CSTS = 0x1C
CONFIG = 7
LIVENESS = 0x04


def echo(sock: socket.socket) -> None:
    while data := sock.recv(64):
        sock.send(data)


def spawn(serve: Callable[[socket.socket], object]) -> socket.socket:
    """A process that serves the other end of the socket returned."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        try:
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def connect(function: Function) -> Client:
    server = Server(FunctionDevice(function))
    return Client(spawn(server.serve), offer=Capabilities(max_msg_fds=16))


class Samples:
    """Microseconds by question, the median of each block."""

    def __init__(self) -> None:
        self.medians: dict[str, list[float]] = {}

    def block(self, name: str, calls: list[Callable[[], object]], per_call: int = 1) -> None:
        """Time each call; ``per_call`` requests make one."""
        taken = []
        clock = time.perf_counter_ns
        for call in calls:
            start = clock()
            call()
            taken.append((clock() - start) / 1000 / per_call)
        self.medians.setdefault(name, []).append(statistics.median(taken))

    def best(self, name: str) -> float:
        """Of the blocks' medians."""
        return min(self.medians[name])


def measure() -> Samples:
    floor = spawn(echo)
    nvme, edu = connect(NvmeFunction.synthetic(BDF)), connect(EduFunction(BDF))
    fd = linux.memory_file("bench", 4096)
    packed = RegionAccess(CSTS, 0, 4).pack()
    commands = [(Command.REGION_READ, packed)] * DEPTH

    def ping() -> None:
        floor.send(bytes(36))
        floor.recv(64)

    def posted() -> None:
        for _ in range(POSTED):
            edu.region_write(0, LIVENESS, bytes(4), posted=True)
        edu.region_read(0, LIVENESS, 4)

    pages = [0x1000 * number for number in range(CALLS)]
    maps = [lambda iova=iova: nvme.dma_map(DmaMap(iova, 4096), fd) for iova in pages]
    unmaps = [lambda iova=iova: nvme.dma_unmap(DmaUnmap(iova, 4096)) for iova in pages]
    samples = Samples()
    for _ in range(BLOCKS):
        samples.block("floor", [ping] * CALLS)
        samples.block("read", [lambda: nvme.region_read(0, CSTS, 4)] * CALLS)
        samples.block("read of edu", [lambda: edu.region_read(0, 0, 4)] * CALLS)
        samples.block("read of config", [lambda: nvme.region_read(CONFIG, 0, 4)] * CALLS)
        samples.block("pipelined", [lambda: nvme.pipeline(commands)] * (CALLS // 10), DEPTH)
        samples.block("posted", [posted] * 4, POSTED)
        samples.block("map", maps)
        samples.block("unmap", unmaps)
    nvme.close()
    edu.close()
    floor.close()
    linux.close(fd)
    return samples


def main() -> int:
    """Measure and print."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    samples = measure()
    floor, read = samples.best("floor"), samples.best("read")
    print(f"{'floor':<16} {floor:6.2f} us")
    good = True
    rows = (
        ("read", floor, READ_GOAL, "floor"),
        ("read of edu", floor, 0.0, "floor"),
        ("read of config", floor, 0.0, "floor"),
        ("pipelined", read, PIPELINED_GOAL, "rate"),
        ("posted", samples.best("read of edu"), POSTED_GOAL, "rate"),
        ("map", floor, MAP_GOAL, "floor"),
        ("unmap", floor, 0.0, "floor"),
    )
    for name, against, goal, kind in rows:
        taken = samples.best(name)
        ratio = against / taken if kind == "rate" else taken / against
        what = f"{ratio:5.2f}x the " + ("rate of reads" if kind == "rate" else "floor")
        sign = ">=" if kind == "rate" else "<="
        print(f"{name:<16} {taken:6.2f} us  {what}" + (f" (goal {sign} {goal}x)" if goal else ""))
        good = good and (not goal or (ratio >= goal if kind == "rate" else ratio <= goal))
    return 1 if "--check" in sys.argv and not good else 0


if __name__ == "__main__":
    sys.exit(main())
