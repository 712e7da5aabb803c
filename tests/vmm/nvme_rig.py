"""A guest with an NVMe controller and the guest's driver for it, without a twin around them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from device_rig import Host

from vfiokit.machine.device.nvme import Limits, NvmeFunction
from vfiokit.machine.function import Function
from vfiokit.pci.address import Bdf
from vfiokit.vmm import nvme_guest
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.nvme_guest import PAGE, QUEUE_PAGES, Job
from vfiokit.vmm.policy import Policy
from vfiokit.vmm.trace import Tracer

QUEUES = 0x40000
DATA = QUEUES + QUEUE_PAGES * PAGE
BAR = 0xFEB0_0000
RAM = 1 << 20
PLACE = "0000:00:01.0"
CONTENT = random.Random(1).randbytes(256 * PAGE)


class Guest(NamedTuple):
    machine: VirtualMachine
    function: AssignedFunction
    model: NvmeFunction
    host: Host
    tracer: Tracer
    """Listens from the first instruction on."""

    def run(self, budget: int = 3_000_000):
        return self.machine.run(budget)

    @property
    def outcome(self) -> nvme_guest.Outcome:
        return nvme_guest.outcome(self.machine.memory)

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.tracer.findings]

    def store(self, offset: int, value: int, width: int = 4) -> None:
        """A store to BAR 0, as the processor brings it."""
        bus = self.machine.bus
        if not bus.write(BAR + offset, width, value):
            bus.trapped_write(BAR + offset, width, value)

    def read(self, offset: int, width: int = 4) -> int:
        value = self.machine.bus.read(BAR + offset, width)
        if value is None:
            return self.machine.bus.trapped_read(BAR + offset, width)[0]
        return value


def controller(bdf: Bdf, **wishes: object) -> Function:
    made = NvmeFunction.synthetic(bdf, **wishes)
    made.controller.namespace.store.write(0, CONTENT)
    return made


def job(reads: int, **wishes: object) -> Job:
    values: dict[str, object] = {"pages": max(1, min(reads, 64)), "queues": QUEUES, "data": DATA}
    return Job(reads=reads, **(values | wishes))


@contextmanager
def booted(
    work: Job, *, policy: Policy | None = None, limits: Limits | None = None, **wishes: object
) -> Iterator[Guest]:
    """A guest about to run its first instruction."""
    host = Host(lambda bdf: controller(bdf, limits=limits, **wishes))
    memory = GuestMemory(host.kernel, [(0, RAM)])
    with VirtualMachine(host.kernel, memory, policy=policy) as machine:
        function = machine.assign(host.open(), PLACE)
        nvme_guest.load(memory, work)
        machine.add_vcpu(Interpreter).write_register("rip", nvme_guest.ENTRY)
        model = host.functions[0]
        assert isinstance(model, NvmeFunction)
        yield Guest(machine, function, model, host, Tracer(machine))


def expected(work: Job) -> bytes:
    """What the guest's pages hold when all is read."""
    found = bytearray(work.pages * PAGE)
    start = work.lba * work.block_size
    for index in range(work.reads):
        at = index % work.pages * PAGE
        found[at : at + PAGE] = CONTENT[start + index * PAGE : start + (index + 1) * PAGE]
    return bytes(found)


def checksum(work: Job) -> int:
    """What the driver adds up."""
    start = work.lba * work.block_size
    total = 0
    for index in range(work.reads):
        page = CONTENT[start + index * PAGE : start + (index + 1) * PAGE]
        total += int.from_bytes(page[:8], "little") + int.from_bytes(page[-8:], "little")
    return total & (1 << 64) - 1
