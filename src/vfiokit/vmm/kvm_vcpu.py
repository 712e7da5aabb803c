"""One processor of KVM as :class:`vfiokit.vmm.vcpu.Vcpu`."""

from __future__ import annotations

import errno
import signal
import struct
import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

from vfiokit.abi import kvm
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.kvm_registers import Registers
from vfiokit.vmm.vcpu import Bus

_MICROSECONDS_A_LOOK: Final = 5_000
"""Between two looks at the clock."""
_SIGNAL: Final = signal.SIGRTMIN + 6
_IS_WRITE = 8 * (kvm.KVM_RUN_mmio_is_write - kvm.KVM_RUN_mmio_len)
_NEVER: Final = 1 << 62


class KvmVcpu:
    """A processor that the hardware runs.

    KVM counts no instructions: ``instructions`` is 0, and a budget is a time, one microsecond for
    each instruction, kept to 5 ms by a signal (``SIGRTMIN+6``) whose handler the main thread has to
    install: the first :meth:`run` there does. Hypercalls and
    CPUID are answered by the kernel and are no exits. Interrupts are injected where the kernel has
    no interrupt controller; where it has (``irqchip``), use irqfds and messages, and HLT waits in
    the kernel.
    """

    def __init__(
        self, kernel: Kernel, fd: int, run_size: int, bus: Bus, *, irqchip: bool = False
    ) -> None:
        self._kernel = kernel
        self.fd = fd
        """Descriptor of the processor."""
        self._run = kernel.mmap(fd, run_size, 0)
        self._bus = bus
        self._irqchip = irqchip
        self._registers = Registers(kernel, fd)
        self._alarm = _Alarm()
        self._pending: set[int] = set()
        self._waiting: Exit | None = None
        self._answer: Callable[[int], None] | None = None
        self._more: deque[tuple[Exit, Callable[[int], None] | None]] = deque()
        self._unfinished = False
        """An access was answered, and the kernel has not yet used the answer."""
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            self._registers.write(name, 0)
            self._registers.write(f"{name}.base", 0)
        self._registers.write("rip", 0)

    def close(self) -> None:
        """Unmap the shared page, end the clock. Idempotent."""
        self._alarm.close()
        self._run.close()

    # -- the protocol ---------------------------------------------------------------------------

    @property
    def instructions(self) -> int:
        """0: KVM does not count them."""
        return 0

    @property
    def interruptible(self) -> bool:
        """Whether the guest took an interrupt at the last exit."""
        ready = self._run.read8(kvm.KVM_RUN_ready_for_interrupt_injection)
        enabled = self._run.read8(kvm.KVM_RUN_if_flag)
        return bool(ready and enabled) and not self._unfinished and self._waiting is None

    def inject(self, vector: int) -> None:
        """Deliver an external interrupt once the guest takes them."""
        if not 0 <= vector <= 255:
            raise UsageError(f"vector {vector} is none of an external interrupt (0 to 255)")
        if self._irqchip:
            raise UsageError("the kernel has the interrupt controller: use irqfd or signal_msi")
        self._pending.add(vector)

    def complete(self, *values: int) -> None:
        """Finish the last exit with its value; :class:`UsageError` when it takes none."""
        if self._waiting is None or self._answer is None:
            raise UsageError("the last exit needs no answer")
        if len(values) != 1:
            raise UsageError(f"{self._waiting.reason.value} is answered by 1 value(s)")
        self._answer(values[0])
        self._waiting = self._answer = None

    def read_register(self, name: str) -> int:
        """A register's value; ``KeyError`` for a name that there is not."""
        self._settle()
        return self._registers.read(name)

    def write_register(self, name: str, value: int) -> None:
        """Set a register; KVM checks all of them together with the next :meth:`run`.

        Where they make no sense, that is a ``FAIL_ENTRY``.
        """
        self._settle()
        self._registers.write(name, value)

    def state(self) -> dict[str, Any]:
        """Registers and what waits, as plain data; :class:`UsageError` while an answer is due."""
        if self._waiting is not None or self._more:
            raise UsageError("complete the last exit first: the kernel keeps half an instruction")
        self._settle()
        return {
            "engine": "kvm",
            "registers": self._registers.state(),
            "pending": sorted(self._pending),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; :class:`UsageError` for another engine's."""
        if state.get("engine") != "kvm":
            raise UsageError(f"not the state of a KVM processor: {state.get('engine')}")
        self._settle()
        self._waiting = self._answer = None
        self._more.clear()
        self._registers.load(state["registers"])
        self._pending = set(state["pending"])

    # -- running --------------------------------------------------------------------------------

    def run(self, budget: int) -> Exit:
        """Run until something has to be decided outside, or the time for ``budget`` is over."""
        if self._waiting is not None:
            detail = f"{self._waiting.reason.value} awaits complete()"
            return Exit(ExitReason.FAIL_ENTRY, detail=detail)
        if self._more:
            return self._leave(*self._more.popleft())
        if self._registers.changed:
            try:
                self._registers.flush()
            except OSError as error:
                return Exit(ExitReason.FAIL_ENTRY, detail=f"KVM refuses the registers: {error}")
        if budget <= 0:
            return Exit(ExitReason.INTR)
        alarm = self._alarm
        alarm.start(budget)
        try:
            while True:
                found = self._run_once()
                if found is not None:
                    if found[1] is not None:
                        return self._leave(*found)
                    return found[0]
                if alarm.rang:
                    return Exit(ExitReason.INTR)
        finally:
            alarm.looks = _NEVER

    def _leave(self, leaving: Exit, answer: Callable[[int], None] | None) -> Exit:
        if answer is not None:
            self._waiting, self._answer = leaving, answer
        return leaving

    def _run_once(self) -> tuple[Exit, Callable[[int], None] | None] | None:
        run = self._run
        if self._pending:
            self._offer_interrupt()
        try:
            self._kernel.ioctl(self.fd, kvm.KVM_RUN)
        except InterruptedError:
            self._after_run()
            return Exit(ExitReason.INTR), None
        except OSError as error:
            self._after_run()
            return Exit(ExitReason.FAIL_ENTRY, detail=f"KVM_RUN: {error}"), None
        self._unfinished = False
        self._registers.forget()
        reason = run.read32(kvm.KVM_RUN_exit_reason)
        if reason == kvm.KVM_EXIT_MMIO:
            return self._mmio()
        if reason == kvm.KVM_EXIT_IO:
            return self._io()
        if reason == kvm.KVM_EXIT_IRQ_WINDOW_OPEN:
            return None
        if reason == kvm.KVM_EXIT_HLT and self._pending and self.interruptible:
            return None  # what waits ends it
        return self._other(reason), None

    def _after_run(self) -> None:
        self._unfinished = False
        self._registers.forget()

    def _offer_interrupt(self) -> None:
        """Inject the highest vector, or ask for an exit as soon as the guest takes one."""
        run = self._run
        vector = max(self._pending)
        if run.read8(kvm.KVM_RUN_ready_for_interrupt_injection) and run.read8(kvm.KVM_RUN_if_flag):
            self._kernel.ioctl(self.fd, kvm.KVM_INTERRUPT, bytearray(struct.pack("<I", vector)))
            self._pending.discard(vector)
        run.write8(kvm.KVM_RUN_request_interrupt_window, 1 if self._pending else 0)

    def _settle(self) -> None:
        """Let the kernel finish an answered access, without running the guest further.

        Source: Documentation/virt/kvm/api.rst, 5: registers are not consistent before that.
        """
        if not self._unfinished or self._waiting is not None or self._more:
            return
        self._run.write8(kvm.KVM_RUN_immediate_exit, 1)
        try:
            self._kernel.ioctl(self.fd, kvm.KVM_RUN)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise KernelError("KVM_RUN", "a processor", error.errno or 0) from None
        finally:
            self._run.write8(kvm.KVM_RUN_immediate_exit, 0)
        self._after_run()

    # -- exits ----------------------------------------------------------------------------------

    def _mmio(self) -> tuple[Exit, Callable[[int], None] | None] | None:
        run = self._run
        self._unfinished = True
        gpa = run.read64(kvm.KVM_RUN_mmio_phys_addr)
        # Length and direction lie in one word; each load costs a hundredth of the exit.
        shape = run.read64(kvm.KVM_RUN_mmio_len)
        width = shape & 0xFFFFFFFF
        mask = (1 << 8 * width) - 1
        if shape >> _IS_WRITE & 0xFF:
            value = run.read64(kvm.KVM_RUN_mmio_data) & mask
            if self._bus.write(gpa, width, value):
                return None
            return Exit(ExitReason.MMIO, gpa, width, True, value), None

        def answer(value: int) -> None:
            run.write64(kvm.KVM_RUN_mmio_data, value & mask)

        found = self._bus.read(gpa, width)
        if found is None:
            return Exit(ExitReason.MMIO, gpa, width), answer
        answer(found)
        return None

    def _io(self) -> tuple[Exit, Callable[[int], None] | None]:
        """A port, once or (string instructions) several times in a row."""
        run = self._run
        self._unfinished = True
        width = run.read8(kvm.KVM_RUN_io_size)
        port = run.read16(kvm.KVM_RUN_io_port)
        start = run.read64(kvm.KVM_RUN_io_data_offset)
        out = run.read8(kvm.KVM_RUN_io_direction) == kvm.KVM_EXIT_IO_OUT
        for number in range(run.read32(kvm.KVM_RUN_io_count)):
            place = start + number * width
            if out:
                value = self._load(place, width)
                self._more.append((Exit(ExitReason.IO, port, width, write=True, value=value), None))
            else:
                self._more.append((Exit(ExitReason.IO, port, width), self._answer_at(place, width)))
        return self._more.popleft()

    def _load(self, offset: int, width: int) -> int:
        read = {1: self._run.read8, 2: self._run.read16, 4: self._run.read32}[width]
        return read(offset)

    def _answer_at(self, offset: int, width: int) -> Callable[[int], None]:
        write = {1: self._run.write8, 2: self._run.write16, 4: self._run.write32}[width]
        mask = (1 << 8 * width) - 1
        return lambda value: write(offset, value & mask)

    def _other(self, reason: int) -> Exit:
        run = self._run
        if reason == kvm.KVM_EXIT_HLT:
            return Exit(ExitReason.HLT)
        if reason in (kvm.KVM_EXIT_SHUTDOWN, kvm.KVM_EXIT_SYSTEM_EVENT):
            return Exit(ExitReason.SHUTDOWN, detail="KVM reports a triple fault")
        if reason == kvm.KVM_EXIT_INTR:
            return Exit(ExitReason.INTR)
        if reason == kvm.KVM_EXIT_FAIL_ENTRY:
            code = run.read64(kvm.KVM_RUN_fail_entry_hardware_entry_failure_reason)
            return Exit(ExitReason.FAIL_ENTRY, detail=f"the hardware refuses to enter: {code:#x}")
        if reason == kvm.KVM_EXIT_INTERNAL_ERROR:
            code = run.read32(kvm.KVM_RUN_internal_suberror)
            return Exit(ExitReason.FAIL_ENTRY, detail=f"KVM's internal error {code}")
        return Exit(ExitReason.FAIL_ENTRY, detail=f"exit {reason} of KVM has no meaning here")


class _Alarm:
    """Ends KVM_RUN after a time: a thread looks at the clock and signals the one that runs.

    Nothing is armed for a single run, which would cost as much as an exit. The signal's handler
    does nothing; it can only be installed from the main thread, and without it no alarm rings.
    """

    def __init__(self) -> None:
        self.looks = _NEVER
        """Looks at the clock until it rings."""
        self.rang = False
        self._target = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, budget: int) -> None:
        """Let it ring after ``budget`` microseconds for the calling thread."""
        if self._thread is None:
            self._begin()
        self.rang = False
        self._target = get_ident()
        self.looks = budget // _MICROSECONDS_A_LOOK

    def _begin(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(_SIGNAL, _nothing)
        self._thread = threading.Thread(target=self._watch, name="vcpu alarm", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(_MICROSECONDS_A_LOOK / 1e6):
            self.looks -= 1
            # Again at every look: a signal that comes just before KVM_RUN is lost.
            if self.looks < 0 and signal.getsignal(_SIGNAL) is _nothing:
                self.rang = True
                signal.pthread_kill(self._target, _SIGNAL)

    def close(self) -> None:
        """End the thread."""
        self.looks = _NEVER
        self._closed.set()
        if self._thread is not None:
            self._thread.join()


def _nothing(number: int, frame: object) -> None:
    """A signal that only interrupts a system call."""
    del number, frame
