"""Admin commands. Source: NVM Express Base Specification 2.0 §5."""

from __future__ import annotations

from vfiokit.driver.nvme.prp import ListPool, build_prps
from vfiokit.driver.nvme.queue import Completion, QueuePair
from vfiokit.driver.nvme.spec import (
    CREATE_CONTIGUOUS,
    CREATE_INTERRUPTS,
    AdminOpcode,
    AsyncEvent,
    ControllerIdentity,
    ErrorLogEntry,
    Feature,
    Identify,
    LogPage,
    NamespaceIdentity,
    SmartLog,
)
from vfiokit.driver.nvme.status import status_name
from vfiokit.errors import NvmeCommandError, UsageError
from vfiokit.vfio.address_space import AddressSpace

ALL_NAMESPACES = 0xFFFFFFFF
_IDENTIFY_SIZE = 4096


def check_status(operation: str, opcode: int, completion: Completion) -> int:
    """Dword 0 of a completion; raises :class:`NvmeCommandError` unless it reports success."""
    status = completion[1]
    if status & 0x7FF:
        status_type, code = status >> 8 & 7, status & 0xFF
        raise NvmeCommandError(
            operation,
            opcode,
            status_type,
            code,
            bool(status >> 14),
            name=status_name(status_type, code),
        )
    return completion[2]


class AdminCommands:
    """The commands of the admin queue; each waits for its completion.

    All raise :class:`NvmeCommandError` for an error status, :class:`DeviceTimeoutError` after
    ``timeout_s`` seconds, :class:`ControllerFatalError` when the controller died.
    """

    def __init__(
        self,
        queue: QueuePair,
        space: AddressSpace,
        pool: ListPool,
        name: str,
        timeout_s: float,
    ) -> None:
        self.queue = queue
        self._pool = pool
        self._space = space
        self._name = name
        self._timeout_s = timeout_s
        self._scratch = space.allocate(_IDENTIFY_SIZE, alignment=pool.page_size)
        self._event_commands: list[int] = []

    def restart(self) -> None:
        """Forget what was outstanding, after the controller was disabled."""
        self.queue.restart()
        self._event_commands.clear()

    def close(self) -> None:
        """Free the queue and the scratch memory. Idempotent."""
        self.queue.close()
        self._scratch.close()

    def execute(self, operation: str, opcode: int, nsid: int = 0, *words: int) -> int:
        """Any admin command: ``words`` are PRP1, PRP2, cdw10 … cdw15; returns dword 0."""
        return check_status(
            f"{operation} of {self._name}",
            opcode,
            self.queue.execute(self._timeout_s, opcode, nsid, *words),
        )

    # -- identify -----------------------------------------------------------------------------

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        """The 4096-byte data structure ``cns``."""
        self.execute("Identify", AdminOpcode.IDENTIFY, nsid, self._scratch.iova, 0, cns)
        return bytes(self._scratch.view[:_IDENTIFY_SIZE])

    def identify_controller(self) -> ControllerIdentity:
        """Identify Controller."""
        return ControllerIdentity.decode(self.identify(Identify.CONTROLLER))

    def identify_namespace(self, nsid: int) -> NamespaceIdentity:
        """Identify Namespace; all zero for an inactive one."""
        return NamespaceIdentity.decode(self.identify(Identify.NAMESPACE, nsid))

    def active_namespaces(self) -> tuple[int, ...]:
        """Every active namespace id, ascending."""
        found: list[int] = []
        while True:
            data = self.identify(Identify.ACTIVE_NAMESPACES, found[-1] if found else 0)
            page = [nsid for nsid in memoryview(data).cast("I") if nsid]
            # A list that does not ascend would keep us asking for ever.
            if found and page and page[0] <= found[-1]:
                return tuple(found)
            found += page
            if len(page) < _IDENTIFY_SIZE // 4:
                return tuple(found)

    # -- log pages ----------------------------------------------------------------------------

    def log_page(
        self,
        page: int,
        length: int,
        nsid: int = ALL_NAMESPACES,
        *,
        offset: int = 0,
        retain: bool = False,
    ) -> bytes:
        """``length`` bytes of a log page (a multiple of 4) from ``offset`` on.

        ``retain`` leaves the asynchronous event that names the page uncleared.
        """
        if length < 4 or length % 4 or offset % 4:
            raise UsageError(f"a log page is read in dwords, not {length} bytes at {offset}")
        dwords = length // 4 - 1
        with self._space.allocate(length, alignment=self._pool.page_size) as buffer:
            prp1, prp2, pages = build_prps(buffer.iova, length, self._pool)
            cid = self.queue.submit(
                AdminOpcode.GET_LOG_PAGE,
                nsid,
                prp1,
                prp2,
                (dwords & 0xFFFF) << 16 | int(retain) << 15 | page,
                dwords >> 16,
                offset & 0xFFFFFFFF,
                offset >> 32,
            )
            self.queue.attach_list(cid, pages)
            done = self.queue.wait(cid, self._timeout_s)
            check_status(f"Get Log Page {page:#x} of {self._name}", AdminOpcode.GET_LOG_PAGE, done)
            return bytes(buffer.view[:length])

    def smart(self, nsid: int = ALL_NAMESPACES) -> SmartLog:
        """SMART / Health Information."""
        return SmartLog.decode(self.log_page(LogPage.SMART, 512, nsid))

    def errors(self, count: int = 16) -> tuple[ErrorLogEntry, ...]:
        """The newest error log entries, at most ``count``."""
        return ErrorLogEntry.decode_all(self.log_page(LogPage.ERROR, 64 * count))

    # -- features -----------------------------------------------------------------------------

    def get_feature(self, feature: int, nsid: int = 0, *, select: int = 0) -> int:
        """A feature's value: current (``select`` 0), default (1), saved (2)."""
        words = (0, 0, select << 8 | feature)
        return self.execute(f"Get Features {feature:#x}", AdminOpcode.GET_FEATURES, nsid, *words)

    def set_feature(self, feature: int, value: int, nsid: int = 0, *, save: bool = False) -> int:
        """Set a feature whose value fits dword 11; returns dword 0."""
        words = (0, 0, int(save) << 31 | feature, value)
        return self.execute(f"Set Features {feature:#x}", AdminOpcode.SET_FEATURES, nsid, *words)

    def set_number_of_queues(self, count: int) -> tuple[int, int]:
        """Ask for ``count`` I/O queues each way; returns how many of each were granted."""
        result = self.set_feature(Feature.NUMBER_OF_QUEUES, (count - 1) << 16 | (count - 1))
        return (result & 0xFFFF) + 1, (result >> 16) + 1

    # -- queues -------------------------------------------------------------------------------

    def create_completion_queue(
        self, queue_id: int, entries: int, iova: int, *, vector: int | None
    ) -> None:
        """Create an I/O completion queue; ``vector`` ``None`` leaves its interrupts off."""
        flags = CREATE_CONTIGUOUS
        if vector is not None:
            flags |= CREATE_INTERRUPTS | vector << 16
        words = (iova, 0, (entries - 1) << 16 | queue_id, flags)
        self.execute(f"Create CQ {queue_id}", AdminOpcode.CREATE_CQ, 0, *words)

    def create_submission_queue(
        self, queue_id: int, entries: int, iova: int, *, completion_queue_id: int
    ) -> None:
        """Create an I/O submission queue that completes to ``completion_queue_id``."""
        flags = completion_queue_id << 16 | CREATE_CONTIGUOUS
        words = (iova, 0, (entries - 1) << 16 | queue_id, flags)
        self.execute(f"Create SQ {queue_id}", AdminOpcode.CREATE_SQ, 0, *words)

    def delete_submission_queue(self, queue_id: int) -> None:
        """Delete an I/O submission queue; the controller aborts what it holds."""
        self.execute(f"Delete SQ {queue_id}", AdminOpcode.DELETE_SQ, 0, 0, 0, queue_id)

    def delete_completion_queue(self, queue_id: int) -> None:
        """Delete an I/O completion queue, after its submission queues."""
        self.execute(f"Delete CQ {queue_id}", AdminOpcode.DELETE_CQ, 0, 0, 0, queue_id)

    def abort(self, queue_id: int, command_id: int) -> bool:
        """Ask for a command to be aborted; whether it was."""
        words = (0, 0, command_id << 16 | queue_id)
        return not self.execute("Abort", AdminOpcode.ABORT, 0, *words) & 1

    # -- asynchronous events ------------------------------------------------------------------

    def request_events(self, count: int = 1) -> None:
        """Leave ``count`` Asynchronous Event Requests with the controller."""
        for _ in range(count):
            self._event_commands.append(self.queue.submit(AdminOpcode.ASYNC_EVENT_REQUEST))
        self.queue.ring()

    def poll_event(self) -> AsyncEvent | None:
        """The next event if one arrived; its request is left anew. Clear it by its log page."""
        done = self.queue.take_any(self._event_commands)
        return None if done is None else self._event(done)

    def wait_event(self, timeout_s: float) -> AsyncEvent:
        """As :meth:`poll_event`, but wait; :class:`DeviceTimeoutError` after ``timeout_s``."""
        if not self._event_commands:
            self.request_events()
        return self._event(self.queue.wait_any(self._event_commands, timeout_s))

    def _event(self, done: Completion) -> AsyncEvent:
        self._event_commands.remove(done[0])
        result = check_status(
            f"Asynchronous Event Request of {self._name}", AdminOpcode.ASYNC_EVENT_REQUEST, done
        )
        self.request_events()
        return AsyncEvent.decode(result)
