"""A virtual machine: memory, processors, what they can reach, and the loop that runs them.

Every exit is counted by what it was for. What the guest does without an exit is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vmm.bus import UNCLAIMED, GuestBus
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.policy import Delivery, Policy
from vfiokit.vmm.trap_map import Access, Handler, Strength, TrapMap, Wish
from vfiokit.vmm.vcpu import Bus, Vcpu

SLICE = 20_000
"""Instructions between two looks at the interrupts."""
WINDOW_SLICE = 50
"""The same while an interrupt waits for the guest to take interrupts."""

Engine = Callable[[GuestMemory, Bus], Vcpu]
"""Makes a processor."""
Hypercall = Callable[["VirtualMachine", Vcpu, tuple[int, ...]], int]
"""Answers a hypercall from RBX, RCX, RDX, RSI; the result becomes RAX."""


class Stop(Enum):
    """Why :meth:`VirtualMachine.run` came back."""

    BUDGET = "budget"
    """The instructions granted are used up."""
    IDLE = "idle"
    """Every processor waits for an interrupt, and none came in time."""
    ASKED = "asked"
    """Somebody called :meth:`VirtualMachine.stop`."""
    SHUTDOWN = "shutdown"
    """A triple fault, or the guest turned itself off."""
    FAILED = "failed"
    """A processor could not run; see :attr:`VirtualMachine.failure`."""


@dataclass(slots=True)
class _Running:
    """A processor and what the machine knows of it."""

    vcpu: Vcpu
    halted: bool = False


class PortDispatch:
    """What the machine itself has at I/O ports: a debug console."""

    def __init__(self) -> None:
        self.console = bytearray()
        """What the guest wrote to port 0xe9."""

    def read(self, offset: int, width: int) -> int:
        """The port reads its own number, as Bochs and QEMU have it."""
        del offset
        return 0xE9 & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """One character."""
        del offset, width
        self.console.append(value & 0xFF)


class VirtualMachine:
    """A guest; use it in a ``with`` block.

    ``memory`` is closed with it. Processors are added by :meth:`add_vcpu`.
    """

    def __init__(
        self, kernel: Kernel, memory: GuestMemory, *, policy: Policy | None = None
    ) -> None:
        self.kernel = kernel
        self.memory = memory
        self.policy = policy if policy is not None else Policy()
        self.traps = TrapMap(kernel.page_size)
        """Who answers at which guest-physical address."""
        self.ports = TrapMap(1)
        """Who answers at which I/O port; every access of those traps."""
        self.bus = GuestBus(self.traps)
        self.port_bus = GuestBus(self.ports)
        self.exits: Counter[str] = Counter()
        """Exits by what they were for."""
        self.events: Counter[str] = Counter()
        """What happened without an exit: interrupts posted, halts without one."""
        self.hypercalls: dict[int, Hypercall] = {}
        """By number (RAX)."""
        self.msrs: dict[int, int] = {}
        self.failure = ""
        """Why a processor could not run."""
        self._processors: list[_Running] = []
        self._asked = False
        self._closing = ExitStack()
        self._closing.callback(memory.close)
        self.debug = PortDispatch()
        self.add_ports(0xE9, 1, "debug console", self.debug, counter="console")
        for each in memory.ranges:
            ram = Wish(each.gpa, each.length, Access.RAM, Strength.RAM, "pc.ram", counter="ram")
            self.traps.ask(("ram", each.gpa), [ram])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- building -----------------------------------------------------------------------------

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The processors, by number."""
        return tuple(each.vcpu for each in self._processors)

    def add_vcpu(self, engine: Engine) -> Vcpu:
        """Make one more processor; ``engine`` gets the memory and the bus."""
        vcpu = engine(self.memory, self.bus)
        self._processors.append(_Running(vcpu))
        return vcpu

    def add_ports(
        self, port: int, count: int, name: str, handler: Handler, *, counter: str = "io"
    ) -> None:
        """Let ``handler`` answer at ``count`` I/O ports from ``port`` on."""
        wish = Wish(port, count, Access.TRAP, Strength.PLATFORM, name, handler, counter=counter)
        self.ports.ask(("ports", port), [wish])

    # -- running ------------------------------------------------------------------------------

    def run(self, budget: int | None = None, *, idle_s: float = 0.0) -> Stop:
        """Run the guest until one of :class:`Stop` happens.

        ``budget`` is about how many instructions each processor may run; ``idle_s`` is how long
        to wait for an interrupt when every processor halts.
        """
        if not self._processors:
            raise UsageError("the virtual machine has no processor", hint="call add_vcpu first")
        left = budget
        self._asked = False
        while True:
            self.poll_interrupts()
            ready = [each for each in self._processors if not each.halted]
            if not ready and not self._wake(idle_s):
                return Stop.IDLE
            share = SLICE if left is None else min(SLICE, left)
            for each in ready:
                stop = self._run_slice(each, share)
                if stop is not None:
                    return stop
            if self._asked:
                return Stop.ASKED
            if left is not None:
                left -= share
                if left <= 0:
                    return Stop.BUDGET

    def stop(self) -> None:
        """Let :meth:`run` come back after the exit at hand."""
        self._asked = True

    def poll_interrupts(self) -> int:
        """Take what devices signalled and deliver it; how many there were."""
        return 0

    def _wake(self, idle_s: float) -> bool:
        """Wait for an interrupt; whether a processor woke."""
        del idle_s
        return False

    def _run_slice(self, running: _Running, share: int) -> Stop | None:
        start = running.vcpu.instructions
        while True:
            exit_ = running.vcpu.run(share)
            stop = self.handle(running.vcpu, exit_)
            if stop is not None or self._asked:
                return stop
            if exit_.reason is ExitReason.INTR:
                return None
            if exit_.reason is ExitReason.HLT:
                running.halted = not running.vcpu.interruptible or not self.poll_interrupts()
                if running.halted:
                    return None
            if running.vcpu.instructions - start >= share:
                return None

    # -- exits --------------------------------------------------------------------------------

    def handle(self, vcpu: Vcpu, exit_: Exit) -> Stop | None:
        """Do what ``exit_`` asks for; a reason to stop, if it is one."""
        reason = exit_.reason
        if reason is ExitReason.IO:
            self._access(self.port_bus, vcpu, exit_, "io")
        elif reason is ExitReason.MMIO:
            self._access(self.bus, vcpu, exit_, UNCLAIMED)
        elif reason is ExitReason.HLT:
            quiet = self.policy.delivery is Delivery.POSTED
            (self.events if quiet else self.exits)["hlt"] += 1
        elif reason is ExitReason.RDMSR:
            self.exits["msr"] += 1
            vcpu.complete(self.msrs.get(exit_.address, 0))
        elif reason is ExitReason.WRMSR:
            self.exits["msr"] += 1
            self.msrs[exit_.address] = exit_.value
        elif reason is ExitReason.CPUID:
            self.exits["cpuid"] += 1
            vcpu.complete(0, 0, 0, 0)
        elif reason is ExitReason.HYPERCALL:
            self.exits["hypercall"] += 1
            vcpu.complete(self._hypercall(vcpu, exit_))
        elif reason is ExitReason.SHUTDOWN:
            self.failure = exit_.detail
            return Stop.SHUTDOWN
        elif reason is ExitReason.FAIL_ENTRY:
            self.failure = exit_.detail
            return Stop.FAILED
        return None

    def _access(self, bus: GuestBus, vcpu: Vcpu, exit_: Exit, nobody: str) -> None:
        if exit_.write:
            counter = bus.trapped_write(exit_.address, exit_.width, exit_.value)
        else:
            value, counter = bus.trapped_read(exit_.address, exit_.width)
        self.exits[nobody if counter == UNCLAIMED else counter] += 1
        if not exit_.write:
            vcpu.complete(value)

    def _hypercall(self, vcpu: Vcpu, exit_: Exit) -> int:
        answer = self.hypercalls.get(exit_.address)
        if answer is None:
            return (1 << 64) - 1000  # -KVM_ENOSYS
        return answer(self, vcpu, exit_.arguments) & (1 << 64) - 1

    # -- end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close devices and memory. Idempotent."""
        self._processors.clear()
        self._closing.close()
