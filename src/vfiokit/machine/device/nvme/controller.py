"""The controller: registers, enable, reset, shutdown, and the state its commands work on.

Life cycle (NVM Express Base Specification 2.0 §3.5, §3.6, §3.7):

========================  =======================================================================
CC.EN 0 → 1               check AQA, ASQ, ACQ and CC; ready ``enable_latency_ns`` later, or CFS
CC.EN 1 → 0               controller reset: queues, features, events, registers; AQA, ASQ, ACQ,
                          CMBMSC and the health counters stay
CC.SHN set                commands stop; SHST = 10b ``enable_latency_ns`` later, medium flushed
function-level, bus, PM   as a controller reset, and every register at its power-on value
========================  =======================================================================

CSTS.CFS is set, and nothing runs until a reset, when the controller is enabled with an admin queue
of one entry, a queue base that is not page aligned, a page size outside CAP.MPSMIN..MPSMAX, a
command set or arbitration that CAP does not offer, or when a submission queue cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme import log
from vfiokit.machine.device.nvme.arbiter import Arbiter
from vfiokit.machine.device.nvme.backing import Buffer
from vfiokit.machine.device.nvme.command import Command
from vfiokit.machine.device.nvme.event import NAMESPACE_CHANGED, TEMPERATURE_THRESHOLD, EventQueue
from vfiokit.machine.device.nvme.feature import Features
from vfiokit.machine.device.nvme.identify import EVENT_REQUEST_LIMIT, Identity
from vfiokit.machine.device.nvme.interrupt import Interrupts
from vfiokit.machine.device.nvme.membuffer import BufferedMemory, MemoryBuffer
from vfiokit.machine.device.nvme.namespace import Namespace
from vfiokit.machine.device.nvme.prp import Extent, extents
from vfiokit.machine.device.nvme.queue import CompletionQueue, SubmissionQueue
from vfiokit.machine.device.nvme.registers import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CMBMSC,
    CSTS,
    DOORBELLS,
    INTMC,
    INTMS,
    VS,
    RegisterFile,
    compose,
    extract,
)
from vfiokit.machine.device.nvme.shadow import ShadowDoorbells
from vfiokit.machine.device.nvme.status import CommandFailedError, Status
from vfiokit.machine.function import Dma, Function

_SHUTDOWN_OCCURRING = 1
_SHUTDOWN_COMPLETE = 2
_NO_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class Limits:
    """What the controller offers, and how long things take on the virtual clock."""

    queue_pairs: int = 32
    """I/O queue pairs."""
    queue_entries: int = 1024
    """Entries of the largest I/O queue, 2 to 65536."""
    doorbell_stride: int = 0
    """CAP.DSTRD: doorbells are ``4 << n`` bytes apart."""
    page_size_max: int = 4
    """CAP.MPSMAX: host pages up to ``2 ** (12 + n)`` bytes."""
    command_latency_ns: int = 10_000
    """From a doorbell to the round that serves it, and between rounds."""
    enable_latency_ns: int = 1_000_000
    """From CC.EN to CSTS.RDY, and from CC.SHN to CSTS.SHST = 10b."""
    shadow_doorbells: bool = False
    """Whether Doorbell Buffer Config is offered."""

    def __post_init__(self) -> None:
        if not (
            1 <= self.queue_pairs <= 65535
            and 2 <= self.queue_entries <= 65536
            and 0 <= self.doorbell_stride <= 15
            and 0 <= self.page_size_max <= 15
        ):
            raise UsageError(f"no controller has such limits: {self}")

    @property
    def doorbell_size(self) -> int:
        """Bytes of all doorbells, the admin pair included."""
        return (self.queue_pairs + 1) * 2 * (4 << self.doorbell_stride)


class Controller:
    """An NVMe controller with one namespace, on the bus through ``function``."""

    def __init__(
        self,
        function: Function,
        identity: Identity,
        namespace: Namespace,
        limits: Limits,
        buffer: MemoryBuffer | None = None,
    ) -> None:
        self._function = function
        self.buffer = buffer
        """The Controller Memory Buffer, if there is one."""
        self._buffered = None if buffer is None else BufferedMemory(function, buffer)
        self.identity = identity
        self.namespace = namespace
        self.limits = limits
        self.registers = RegisterFile()
        self.submission: dict[int, SubmissionQueue] = {}
        self.completion: dict[int, CompletionQueue] = {}
        self.interrupts = Interrupts(function, self.completion.values)
        self.features = Features(limits.queue_pairs, lambda: self.interrupts.vector_count)
        self.events = EventQueue(EVENT_REQUEST_LIMIT)
        self.health = log.Health()
        self.arbiter = Arbiter(self, limits.command_latency_ns)
        self.page_size = 4096
        """Host memory page size in force since the controller was enabled."""
        self.transfer_limit = 4096 << identity.mdts if identity.mdts else _NO_LIMIT
        """Bytes of the largest data transfer (MDTS)."""
        self.namespace_changed = False
        self.fatal_reason = ""
        """Why CSTS.CFS is set, in words; empty while it is not."""
        self.power_on()

    # -- what commands need -------------------------------------------------------------------

    @property
    def memory(self) -> Dma:
        """How the controller reaches host memory, and its own buffer where it is addressable."""
        return self._function.dma if self._buffered is None else self._buffered

    @property
    def running(self) -> bool:
        """Ready, not failed, not shut down."""
        return self.registers.get(CSTS) & 0xF == 1

    @property
    def max_queue_entries(self) -> int:
        """Entries of the largest I/O queue."""
        return self.limits.queue_entries

    @property
    def shadow_offered(self) -> bool:
        """Whether Doorbell Buffer Config is supported."""
        return self.limits.shadow_doorbells

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Schedule on the machine's virtual clock."""
        self._function.clock.after(delay_ns, action)

    def send(self, command: Command, data: Buffer) -> None:
        """Data phase to the host: ``data`` into the memory of the command's PRPs."""
        memory = self.memory
        pieces = self._extents(command, len(data))
        if len(pieces) == 1:
            memory.write(pieces[0].iova, data)
            return
        view = memoryview(data)
        done = 0
        for iova, length in pieces:
            memory.write(iova, view[done : done + length])
            done += length

    def receive(self, command: Command, length: int) -> bytearray:
        """Data phase from the host; raises :class:`~vfiokit.machine.txn.DmaError`."""
        memory = self.memory
        data = bytearray(length)
        view = memoryview(data)
        done = 0
        for iova, count in self._extents(command, length):
            memory.read_into(iova, view[done : done + count])
            done += count
        return data

    def _extents(self, command: Command, length: int) -> list[Extent]:
        return extents(command.prp1, command.prp2, length, self.page_size, self.memory.read)

    def check_entry_size(self, field: str, expected: int) -> None:
        """Refuse to create an I/O queue before CC says its entry size, or with another one."""
        if self.registers.field(CC, field) != expected:
            raise CommandFailedError(Status.INVALID_QUEUE_SIZE)

    def owe(self, cid: int, status: Status) -> None:
        """Complete an admin command that was fetched earlier."""
        self.arbiter.owe(cid, status)

    def set_shadow_doorbells(self, shadow_iova: int, event_iova: int) -> None:
        """Take doorbells from memory from now on."""
        stride = 4 << self.limits.doorbell_stride
        self.arbiter.shadow = ShadowDoorbells(self.memory, shadow_iova, event_iova, stride)

    def critical_warning(self) -> int:
        """The Critical Warning byte of the health log."""
        return log.critical_warning(
            self.health,
            over=self.features.temperature_over,
            under=self.features.temperature_under,
            read_only=self.namespace.store.read_only,
        )

    # -- what happens around the device -------------------------------------------------------

    def replace_namespace(self, namespace: Namespace) -> None:
        """Exchange the medium under a running controller; the host learns it by an event."""
        self.namespace = namespace
        self.namespace_changed = True
        if self.features.event_enabled(8):
            self.arbiter.report(NAMESPACE_CHANGED)

    def set_temperature(self, kelvin: int) -> None:
        """Change the composite temperature; outside the thresholds the host learns it."""
        self.health.temperature = kelvin
        self.report_temperature()

    def report_temperature(self) -> None:
        """Report a temperature outside its thresholds, if the host asked for that event."""
        if self.critical_warning() & 1 << 1 and self.features.event_enabled(1):
            self.arbiter.report(TEMPERATURE_THRESHOLD)

    def fail(self, reason: str) -> None:
        """Set Controller Fatal Status; only a reset helps."""
        self.fatal_reason = reason
        self._set_status("cfs", 1)

    # -- software's view ----------------------------------------------------------------------

    def mmio_read(self, offset: int, width: int) -> int:
        """A load; doorbells read zero."""
        return self.registers.read(offset, width) if offset < DOORBELLS else 0

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store to a register or a doorbell; of a wrong width or alignment it is dropped."""
        if offset >= DOORBELLS:
            index, rest = divmod(offset - DOORBELLS, 4 << self.limits.doorbell_stride)
            if width == 4 and not rest and offset < DOORBELLS + self.limits.doorbell_size:
                self.arbiter.ring(index, value)
            return
        before = self.registers.get(CC)
        register = self.registers.write(offset, width, value)
        if register is CC:
            self._configured(before, self.registers.get(CC))
        elif register is CMBMSC:
            self._configure_buffer()
        elif register is INTMS:
            self._mask(value, masked=True)
        elif register is INTMC:
            self._mask(value, masked=False)

    def _mask(self, bits: int, *, masked: bool) -> None:
        if masked:
            self.interrupts.mask_vectors(bits)
        else:
            self.interrupts.unmask_vectors(bits)
        for register in (INTMS, INTMC):
            self.registers.set(register, self.interrupts.mask)

    def _configured(self, before: int, now: int) -> None:
        if extract(CC, now, "en") and not extract(CC, before, "en"):
            self._enable()
        elif extract(CC, before, "en") and not extract(CC, now, "en"):
            self._reset(keep_admin_queue=True)
            self.registers.set(CC, now)
        if extract(CC, now, "shn") and not extract(CC, before, "shn"):
            self._shut_down()

    # -- life cycle ---------------------------------------------------------------------------

    def power_on(self) -> None:
        """Every register and all state as after power-on; the medium and counters stay."""
        if self.buffer is not None:
            self.buffer.clear()
        self._reset(keep_admin_queue=False)

    def resume(self) -> None:
        """Continue an enable or a shutdown that a snapshot caught half way."""
        registers = self.registers
        status = registers.get(CSTS)
        if registers.field(CC, "en") and not status & 3:
            self._later(lambda: self._set_status("rdy", 1))
        if extract(CSTS, status, "shst") == _SHUTDOWN_OCCURRING:
            self._later(self._shutdown_done)
        self.interrupts.refresh()

    def _reset(self, *, keep_admin_queue: bool) -> None:
        self.arbiter.reset()
        self.submission.clear()
        self.completion.clear()
        self.events.clear()
        self.features.reset()
        self.interrupts.reset()
        self.fatal_reason = ""
        self.registers.clear(keep=(AQA, ASQ, ACQ, CMBMSC) if keep_admin_queue else ())
        limits = self.limits
        self.registers.set(
            CAP,
            compose(
                CAP,
                mqes=limits.queue_entries - 1,
                cqr=1,
                to=min(max(1, -(-limits.enable_latency_ns // 250_000_000)), 255),
                dstrd=limits.doorbell_stride,
                css=1,
                mpsmax=limits.page_size_max,
                cmbs=0 if self.buffer is None else 1,
            ),
        )
        self.registers.set(VS, self.identity.version)
        self._configure_buffer()

    def _configure_buffer(self) -> None:
        if self.buffer is None:
            self.registers.set(CMBMSC, 0)
        else:
            self.buffer.configure(self.registers)

    def _enable(self) -> None:
        self.arbiter.reset()
        problem = self._configuration_problem()
        if problem:
            self.fail(problem)
            return
        registers = self.registers
        registers.set(CSTS, 0)  # a shutdown before enabling is over
        self.page_size = 4096 << registers.field(CC, "mps")
        completions = CompletionQueue(
            0,
            registers.get(ACQ),
            registers.field(AQA, "acqs") + 1,
            vector=0,
            interrupt_enabled=True,
        )
        completions.submitters.add(0)
        self.completion[0] = completions
        self.submission[0] = SubmissionQueue(
            0, registers.get(ASQ), registers.field(AQA, "asqs") + 1, completions
        )
        self._later(lambda: self._set_status("rdy", 1))

    def _configuration_problem(self) -> str:
        registers = self.registers
        page_shift = registers.field(CC, "mps")
        if page_shift > self.limits.page_size_max:
            return f"CC.MPS {page_shift} is beyond CAP.MPSMAX {self.limits.page_size_max}"
        if registers.field(CC, "css"):
            return f"CC.CSS {registers.field(CC, 'css')} is not offered"
        if registers.field(CC, "ams"):
            return f"CC.AMS {registers.field(CC, 'ams')} is not offered"
        if not registers.field(AQA, "asqs") or not registers.field(AQA, "acqs"):
            return f"AQA {registers.get(AQA):#x}: an admin queue has at least 2 entries"
        for register in (ASQ, ACQ):
            if registers.get(register) & (4096 << page_shift) - 1:
                return f"{register.name} {registers.get(register):#x} is not page aligned"
        return ""

    def _shut_down(self) -> None:
        self._set_status("shst", _SHUTDOWN_OCCURRING)
        self._later(self._shutdown_done)

    def _shutdown_done(self) -> None:
        try:
            self.namespace.flush()
        except CommandFailedError as error:
            self.fail(f"the medium could not be flushed at shutdown: {error.__cause__}")
        self._set_status("shst", _SHUTDOWN_COMPLETE)

    def _later(self, action: Callable[[], None]) -> None:
        """Run ``action`` after the enable latency, unless a reset comes first."""
        epoch = self.arbiter.epoch
        self.after(
            self.limits.enable_latency_ns,
            lambda: action() if epoch == self.arbiter.epoch else None,
        )

    def _set_status(self, field: str, value: int) -> None:
        status = self.registers.get(CSTS)
        kept = status & ~CSTS.field(field).mask
        self.registers.set(CSTS, kept | compose(CSTS, **{field: value}))
