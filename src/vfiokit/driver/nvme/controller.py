"""An NVMe controller: enabling, queues, shutdown, reset.

Source: NVM Express Base Specification 2.0 §3.5 (initialization), §3.6 (shutdown), §3.7 (reset),
§3.9 (interrupts). Admin commands proper are in :mod:`vfiokit.driver.nvme.admin`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from vfiokit.driver.nvme.admin import AdminCommands
from vfiokit.driver.nvme.namespace import Namespace
from vfiokit.driver.nvme.prp import ListPool
from vfiokit.driver.nvme.queue import QueuePair
from vfiokit.driver.nvme.spec import (
    ALL_ONES,
    CC_CSS_SHIFT,
    CC_ENABLE,
    CC_ENTRY_SIZES,
    CC_MPS_SHIFT,
    CC_SHUTDOWN_MASK,
    CC_SHUTDOWN_NORMAL,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUTDOWN_COMPLETE,
    CSTS_SHUTDOWN_MASK,
    DOORBELLS,
    Capabilities,
    ControllerIdentity,
    ControllerRegisters,
)
from vfiokit.errors import ControllerFatalError, DeviceTimeoutError, DriverError, UsageError
from vfiokit.kernel.port import Mapping
from vfiokit.vfio import Device, IrqIndex, Region, Vectors

_ADMIN_ENTRIES = 64
_LEAST_TIMEOUT_S = 0.5
_SHUTDOWN_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.001

_T = TypeVar("_T")


class NvmeController:
    """A controller at work between ``start`` and ``close``, or in a ``with`` block.

    ``io_queues`` pairs of ``queue_entries`` slots are asked for; the controller may grant fewer.
    With ``interrupts`` every queue has a vector of its own as far as there are enough (admin:
    vector 0); without, or where the function has neither MSI-X nor MSI, waits poll. Every
    command has ``timeout_s`` seconds. The device stays the caller's to close.
    """

    def __init__(
        self,
        device: Device,
        *,
        io_queues: int = 1,
        queue_entries: int = 256,
        interrupts: bool = True,
        timeout_s: float = 10.0,
    ) -> None:
        if io_queues < 1 or queue_entries < 2:
            raise UsageError("at least one I/O queue of two entries is needed")
        self.device = device
        self.timeout_s = timeout_s
        self._wanted_queues = io_queues
        self._wanted_entries = queue_entries
        self._interrupts = interrupts
        self._irq: IrqIndex | None = None
        self._vectors: Vectors | None = None
        self._window: Mapping | Region | None = None
        self._registers: ControllerRegisters | None = None
        self._admin_queue: QueuePair | None = None
        self._admin: AdminCommands | None = None
        self._pool: ListPool | None = None
        self._capabilities: Capabilities | None = None
        self._identity: ControllerIdentity | None = None
        self._io_queues: list[QueuePair] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NvmeController {self.device} io_queues={len(self._io_queues)}>"

    # -- what is known ------------------------------------------------------------------------

    @property
    def registers(self) -> ControllerRegisters:
        """The registers; :class:`UsageError` before ``start`` and after ``close``."""
        return self._started(self._registers)

    @property
    def capabilities(self) -> Capabilities:
        """CAP, decoded."""
        return self._started(self._capabilities)

    @property
    def identity(self) -> ControllerIdentity:
        """Identify Controller, as of the last start or reset."""
        return self._started(self._identity)

    @property
    def admin(self) -> AdminCommands:
        """Admin commands."""
        return self._started(self._admin)

    @property
    def list_pool(self) -> ListPool:
        """Pages for PRP lists."""
        return self._started(self._pool)

    @property
    def io_queues(self) -> tuple[QueuePair, ...]:
        """The I/O queue pairs that the controller granted."""
        return tuple(self._io_queues)

    @property
    def version(self) -> tuple[int, int, int]:
        """Version of the specification that the controller claims."""
        value = self.registers.VS
        return value >> 16, value >> 8 & 0xFF, value & 0xFF

    @property
    def page_size(self) -> int:
        """Memory page size in use (CC.MPS), bytes: the smallest the controller has."""
        return self.capabilities.min_page_size

    @property
    def max_transfer(self) -> int | None:
        """Most bytes that one command may move (MDTS); ``None`` without a limit."""
        exponent = self.identity.max_transfer_exponent
        return self.capabilities.min_page_size << exponent if exponent else None

    def namespace(self, nsid: int, *, queue: int = 0) -> Namespace:
        """The namespace ``nsid`` as seen through I/O queue number ``queue`` (0 is the first).

        Raises :class:`NvmeCommandError` for an invalid one, :class:`UsageError` for an inactive
        one.
        """
        if not 0 <= queue < len(self._io_queues):
            raise UsageError(f"there are I/O queues 0 to {len(self._io_queues) - 1}")
        return Namespace(self, nsid, self._io_queues[queue])

    def namespaces(self) -> tuple[Namespace, ...]:
        """Every active namespace, through the first queue."""
        return tuple(self.namespace(nsid) for nsid in self.admin.active_namespaces())

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring the controller from any state to ready, with its queues. Undone on failure.

        Raises :class:`ControllerFatalError`, :class:`DeviceTimeoutError`,
        :class:`NvmeCommandError`, :class:`KernelError`.
        """
        if self._registers is not None:
            raise UsageError(f"{self.device} is started already")
        try:
            self._prepare()
            self._disable()
            self._enable()
            self._create_io_queues()
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Delete queues, shut down in order, free everything. Idempotent.

        A controller that is dead or does not answer is disabled instead; nothing is raised for it,
        because its memory is unmapped and its bus mastering off afterwards either way.
        """
        if self._registers is None:
            return
        with contextlib.suppress(DriverError):
            self.check("closing")
            self._delete_io_queues()
            self._shut_down()
        self._release()

    def reset(self) -> None:
        """Controller reset: disable, enable, queues anew. Outstanding commands are lost.

        Queue pairs, namespaces and the admin commands stay valid objects.
        """
        self._disable()
        self.admin.restart()
        self._enable()
        granted = self._grant(len(self._io_queues))
        if granted < len(self._io_queues):
            raise DriverError(f"{self.device} grants {granted} queues after the reset, fewer")
        for queue in self._io_queues:
            queue.restart()
            self._create(queue)

    # -- registers ----------------------------------------------------------------------------

    def check(self, doing: str) -> str:
        """CSTS in words; raises :class:`ControllerFatalError` when the controller is dead."""
        status = self.registers.CSTS
        if status == ALL_ONES:
            raise ControllerFatalError(
                f"{self.device}: registers read all ones while {doing}",
                hint="the function left the bus or its memory decoding is off",
            )
        if status & CSTS_FATAL:
            raise ControllerFatalError(
                f"{self.device}: CSTS {status:#x} reports a fatal status while {doing}",
                hint="reset the controller, or the function",
            )
        return f"CSTS {status:#x} ({'ready' if status & CSTS_READY else 'not ready'})"

    def _prepare(self) -> None:
        device = self.device
        region = device.region(0)
        self._window = region.window()
        self._registers = registers = ControllerRegisters(self._window)
        self._capabilities = capabilities = Capabilities.decode(registers.CAP)
        last_doorbell = DOORBELLS + 2 * capabilities.doorbell_stride
        if registers.VS in (0, ALL_ONES) or region.size < last_doorbell:
            raise DriverError(
                f"{device} is no NVMe controller: VS {registers.VS:#x}, "
                f"BAR 0 of {region.size:#x} bytes"
            )
        device.set_bus_master(True)
        if self._interrupts:
            self._enable_interrupts()
        page_size = capabilities.min_page_size
        self._pool = ListPool(device.address_space, page_size)
        self._admin_queue = self._make_queue(0, min(_ADMIN_ENTRIES, capabilities.max_entries))
        self._admin = AdminCommands(
            self._admin_queue, device.address_space, self._pool, str(device), self.timeout_s
        )

    def _enable_interrupts(self) -> None:
        for irq in (self.device.msix, self.device.msi):
            if irq.count:
                self._irq = irq
                self._vectors = irq.enable(min(self._wanted_queues + 1, irq.count))
                return

    def _disable(self) -> None:
        registers = self.registers
        control = registers.CC
        if control == ALL_ONES:
            self.check("disabling")
        if control & CC_ENABLE:
            if not registers.CSTS & (CSTS_READY | CSTS_FATAL):
                # CC.EN may not be cleared while the controller is still becoming ready.
                with contextlib.suppress(DeviceTimeoutError):
                    self._wait_status(CSTS_READY, CSTS_READY, "becoming ready", fatal=False)
            registers.CC = control & ~CC_ENABLE
        self._wait_status(CSTS_READY, 0, "disabling", fatal=False)

    def _enable(self) -> None:
        registers, queue = self.registers, self._started(self._admin_queue)
        last = queue.entries - 1
        registers.AQA = last << 16 | last
        registers.ASQ = queue.sq_iova
        registers.ACQ = queue.cq_iova
        sets = self.capabilities.command_sets
        # NVM alone where offered; else all I/O sets, else admin only.
        choice = 0 if sets & 1 else 6 if sets & 0x40 else 7 if sets & 0x80 else 0
        size_code = self.page_size.bit_length() - 13
        control = choice << CC_CSS_SHIFT | size_code << CC_MPS_SHIFT | CC_ENTRY_SIZES
        # Configuration first, enabling second: the fields may not change while enabled.
        registers.CC = control
        registers.CC = control | CC_ENABLE
        self._wait_status(CSTS_READY, CSTS_READY, "enabling")
        if self._vectors is None:
            # Admin completions assert the pin unless masked; nobody would ever serve it.
            registers.INTMS = ALL_ONES
        self._identity = self.admin.identify_controller()

    def _ready_timeout_s(self) -> float:
        """CAP.TO, or what CRTO says with media access, whichever is longer."""
        limit = max(self.capabilities.ready_timeout_s, _LEAST_TIMEOUT_S)
        if self.capabilities.ready_modes:
            limit = max(limit, (self.registers.CRTO & 0xFFFF) * 0.5)
        return limit

    def _wait_status(self, mask: int, wanted: int, doing: str, *, fatal: bool = True) -> None:
        self._wait_for(
            lambda status: status & mask == wanted, self._ready_timeout_s(), doing, fatal
        )

    def _wait_for(
        self, reached: Callable[[int], bool], timeout_s: float, doing: str, fatal: bool
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.registers.CSTS
            if status == ALL_ONES or (fatal and status & CSTS_FATAL):
                self.check(doing)
            if reached(status):
                return
            if time.monotonic() >= deadline:
                raise DeviceTimeoutError(
                    f"{self.device}: {doing} not done within {timeout_s} s, CSTS {status:#x}, "
                    f"CC {self.registers.CC:#x}"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _shut_down(self) -> None:
        registers = self.registers
        registers.CC = registers.CC & ~CC_SHUTDOWN_MASK | CC_SHUTDOWN_NORMAL
        latency_s = self._identity.shutdown_latency_us / 1e6 if self._identity else 0
        self._wait_for(
            lambda status: status & CSTS_SHUTDOWN_MASK == CSTS_SHUTDOWN_COMPLETE,
            max(latency_s, _SHUTDOWN_TIMEOUT_S),
            "shutting down",
            fatal=True,
        )

    # -- queues -------------------------------------------------------------------------------

    def _vector_number(self, queue_id: int) -> int:
        return queue_id % len(self._vectors) if self._vectors else 0

    def _make_queue(self, queue_id: int, entries: int) -> QueuePair:
        return QueuePair(
            self.device.address_space,
            self.registers.registers,
            queue_id,
            entries,
            doorbell_stride=self.capabilities.doorbell_stride,
            page_size=self.capabilities.min_page_size,
            vector=self._vectors[self._vector_number(queue_id)] if self._vectors else None,
            pool=self._pool,
            check=self.check,
        )

    def _grant(self, wanted: int) -> int:
        """Set Features 07h; the controller may also grant more than asked, which is not used."""
        return min(wanted, *self.admin.set_number_of_queues(wanted))

    def _create_io_queues(self) -> None:
        stride = self.capabilities.doorbell_stride
        room = (self.device.region(0).size - DOORBELLS) // (2 * stride) - 1
        if room < 1:
            raise DriverError(f"BAR 0 of {self.device} has no doorbells for an I/O queue")
        count = self._grant(min(self._wanted_queues, room))
        entries = min(self._wanted_entries, self.capabilities.max_entries)
        for queue_id in range(1, count + 1):
            queue = self._make_queue(queue_id, entries)
            try:
                self._create(queue)
            except BaseException:
                queue.close()
                raise
            self._io_queues.append(queue)

    def _create(self, queue: QueuePair) -> None:
        number = self._vector_number(queue.queue_id) if self._vectors else None
        self.admin.create_completion_queue(
            queue.queue_id, queue.entries, queue.cq_iova, vector=number
        )
        try:
            self.admin.create_submission_queue(
                queue.queue_id, queue.entries, queue.sq_iova, completion_queue_id=queue.queue_id
            )
        except BaseException:
            with contextlib.suppress(DriverError):
                self.admin.delete_completion_queue(queue.queue_id)
            raise

    def _delete_io_queues(self) -> None:
        for queue in self._io_queues:
            self.admin.delete_submission_queue(queue.queue_id)
            self.admin.delete_completion_queue(queue.queue_id)

    def _release(self) -> None:
        """Silence the device, then free what it used."""
        with contextlib.ExitStack() as stack:
            if self._window is not None:
                stack.callback(self._window.close)
            if self._pool is not None:
                stack.callback(self._pool.close)
            if self._admin is not None:
                stack.callback(self._admin.close)
            for queue in self._io_queues:
                stack.callback(queue.close)
            if self._irq is not None:
                stack.callback(self._irq.disable)
            stack.callback(self.device.set_bus_master, False)
            if self._registers is not None and self._admin is not None:
                with contextlib.suppress(DriverError):
                    self._disable()
        self._window = self._registers = self._admin_queue = self._admin = self._pool = None
        self._capabilities = self._identity = self._irq = self._vectors = None
        self._io_queues.clear()

    def _started(self, value: _T | None) -> _T:
        if value is None:
            raise UsageError(f"the NVMe driver of {self.device} is not started")
        return value
