"""The guest program ``guest/nvme.s``, an NVMe driver: its parameters and what it leaves behind.

The addresses are those of the assembly source. The guest needs RAM from 0 to 128 KiB, and wherever
its queues and pages are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from importlib.resources import files
from typing import Final, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.vmm.memory import GuestMemory

ENTRY: Final = 0x8000
"""Where it is loaded, and entered in real mode."""
PARAMETERS: Final = 0x7000
LOW_MEMORY: Final = 0x20000
"""Bytes of RAM from address 0 on that it needs."""
PAGE: Final = 4096
QUEUE_PAGES: Final = 5
"""Pages at ``queues``: ASQ, ACQ, submission queue, completion queue, Identify."""
ADMIN_VECTOR: Final = 0x50
MOST_ENTRIES: Final = 64
MOST_ACTIONS: Final = (PAGE - 0x100) // 16
_PARAMETER_FORMAT: Final = struct.Struct("<4sIQQIIQQIIQII")
_RESULTS: Final = 0x80
_RESULT_FORMAT: Final = struct.Struct("<IIQQQQQQIIIIQQQQ")
_ACTIONS: Final = 0x100
_ACTION_FORMAT: Final = struct.Struct("<BBBxIQ")


class Stage(IntEnum):
    """How far the driver came."""

    NOT_STARTED = 0
    LONG_MODE = 1
    FOUND = 2
    BAR_ASSIGNED = 3
    DISABLED = 4
    ENABLED = 5
    IDENTIFIED = 6
    COMPLETION_QUEUE = 7
    SUBMISSION_QUEUE = 8
    READING = 9
    DONE = 10
    NO_CONTROLLER = 0x81
    NO_MSIX = 0x82
    TIMEOUT = 0x83
    FATAL = 0x84
    COMMAND_FAILED = 0x85
    EXCEPTION = 0x86


_STAGE_TEXTS: Final = {
    Stage.NOT_STARTED: "did not start",
    Stage.LONG_MODE: "reached long mode, and stopped in its scan of configuration space",
    Stage.FOUND: "found the controller, and stopped while it placed its BAR",
    Stage.BAR_ASSIGNED: "placed BAR 0, and stopped before the controller was disabled",
    Stage.DISABLED: "disabled the controller, and waits for it to come up",
    Stage.ENABLED: "enabled the controller, and waits for its answer to Identify",
    Stage.IDENTIFIED: "identified the controller, and waits for its completion queue",
    Stage.COMPLETION_QUEUE: "made a completion queue, and waits for its submission queue",
    Stage.SUBMISSION_QUEUE: "made both queues, and stopped before the first read",
    Stage.READING: "waits for reads to complete",
    Stage.DONE: "did all it was asked for",
    Stage.NO_CONTROLLER: "found no NVMe controller on bus 0",
    Stage.NO_MSIX: "found no MSI-X capability",
    Stage.TIMEOUT: "gave up on CSTS.RDY",
    Stage.FATAL: "met CSTS.CFS: the controller stopped",
    Stage.COMMAND_FAILED: "had an admin command refused",
    Stage.EXCEPTION: "ended in an exception",
}


class Moment(IntEnum):
    """When the driver performs an :class:`Action`."""

    PLACED = 0
    """BAR 0 is placed, MSI-X enabled, the controller not yet."""
    ENABLED = 1
    """CSTS.RDY is set; no queue but the admin queue."""
    QUEUES = 2
    """Both I/O queues exist, nothing was read."""
    END = 3
    """All reads are complete."""


class Space(IntEnum):
    """What the address of an :class:`Action` is."""

    BAR = 0
    """Offset in BAR 0."""
    MEMORY = 1
    """Guest-physical."""
    CONFIG = 2
    """Offset in the function's configuration space; 4 bytes, aligned."""


class Action(NamedTuple):
    """One write that the driver performs on top of its own."""

    moment: Moment
    space: Space
    address: int
    value: int
    width: int = 4
    """1, 2 or 4 bytes."""


class Job(NamedTuple):
    """What the driver is to do."""

    reads: int
    """How many pages are read, one after the other from ``lba`` on."""
    queues: int
    """Guest-physical address of :data:`QUEUE_PAGES` pages."""
    data: int
    """Guest-physical address of the pages read into."""
    pages: int
    """How many there are, up to 65536; they are used in turn."""
    bar: int = 0xFEB0_0000
    """Where BAR 0 goes: below 4 GiB, at a multiple of its size."""
    lba: int = 0
    block_size: int = 512
    """Bytes of a logical block; a power of two up to a page."""
    nsid: int = 1
    depth: int = 1
    """Reads on the way at a time; less than ``entries``."""
    entries: int = 64
    """Of the I/O queues, 2 to 64."""
    actions: Sequence[Action] = ()


class Outcome(NamedTuple):
    """What the driver left in memory."""

    stage: Stage
    status: int
    """Status field of the first admin or last I/O command that failed: SCT and SC."""
    completed: int
    """Reads that were completed."""
    interrupts: int
    """Of the I/O queue."""
    empty_interrupts: int
    """Interrupts of either queue that found no completion."""
    errors: int
    """Reads completed with an error."""
    checksum: int
    """Sum of the first and last 8 bytes of every page read, modulo 2**64."""
    capabilities: int
    """The CAP register."""
    version: int
    where: int
    """What it wrote to 0xcf8 to find the function."""
    stride: int
    """Bytes from doorbell to doorbell."""
    bar_size: int
    submitted: int
    """Reads that were submitted."""
    fault: int
    fault_rip: int
    """The two words on the exception's stack."""
    admin_interrupts: int

    @property
    def done(self) -> bool:
        """Whether all went well."""
        return self.stage is Stage.DONE and not self.errors

    def __str__(self) -> str:
        return f"the guest's driver {_STAGE_TEXTS[self.stage]}"


def image() -> bytes:
    """The machine code, as assembled from ``guest/nvme.s``."""
    return (files("vfiokit.vmm") / "guest" / "nvme.bin").read_bytes()


def load(memory: GuestMemory, job: Job) -> None:
    """Put program and parameters into the guest's RAM; :class:`UsageError` for what cannot be."""
    _check(memory, job)
    blocks = PAGE // job.block_size
    memory.write(ENTRY, image())
    block = bytearray(PAGE)
    _PARAMETER_FORMAT.pack_into(
        block,
        0,
        b"NVMe",
        1,
        job.reads,
        job.lba,
        blocks,
        job.nsid,
        job.queues,
        job.data,
        job.pages,
        job.depth,
        job.bar,
        job.entries,
        len(job.actions),
    )
    for index, each in enumerate(job.actions):
        offset = _ACTIONS + index * _ACTION_FORMAT.size
        _ACTION_FORMAT.pack_into(
            block, offset, each.moment, each.space, each.width, each.value, each.address
        )
    memory.write(PARAMETERS, bytes(block))


def outcome(memory: GuestMemory) -> Outcome:
    """What the driver has noted so far."""
    raw = memory.read(PARAMETERS + _RESULTS, _RESULT_FORMAT.size)
    (stage, status, done, interrupts, empty, errors, checksum, cap, *rest) = _RESULT_FORMAT.unpack(
        raw
    )
    version, where, stride, size, sent, fault, rip, admin = rest
    return Outcome(
        Stage(stage),
        status,
        done,
        interrupts,
        empty,
        errors,
        checksum,
        cap,
        version,
        where,
        stride,
        size,
        sent,
        fault,
        rip,
        admin,
    )


def _check(memory: GuestMemory, job: Job) -> None:
    if not memory.contains(0, LOW_MEMORY):
        raise UsageError(f"the NVMe driver needs {LOW_MEMORY:#x} bytes of RAM from 0 on")
    wanted = ((job.queues, QUEUE_PAGES, "queues"), (job.data, job.pages, "pages"))
    for gpa, pages, what in wanted:
        if gpa % PAGE or not memory.contains(gpa, pages * PAGE):
            raise UsageError(f"no RAM for {pages} pages of {what} at gpa {gpa:#x}")
    if job.reads < 0 or not 0 < job.pages <= 1 << 16:
        raise UsageError(f"{job.reads} reads into {job.pages} pages cannot be")
    if not 2 <= job.entries <= MOST_ENTRIES or not 0 < job.depth < job.entries:
        raise UsageError(
            f"{job.depth} reads at a time in a queue of {job.entries} entries",
            hint=f"entries are 2 to {MOST_ENTRIES}, and one of them stays empty",
        )
    if job.depth > job.pages:
        raise UsageError(f"{job.depth} reads at a time need as many pages, not {job.pages}")
    if PAGE % job.block_size:
        raise UsageError(f"blocks of {job.block_size} bytes do not fill a page")
    if job.bar % 0x4000 or not 0 < job.bar < 1 << 32:
        raise UsageError(f"BAR 0 cannot go to {job.bar:#x}")
    if len(job.actions) > MOST_ACTIONS:
        raise UsageError(f"at most {MOST_ACTIONS} actions, not {len(job.actions)}")
