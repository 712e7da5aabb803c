"""A virtual machine: memory, processors, what they can reach, and the loop that runs them.

Every exit is counted by what it was for. What the guest does without an exit is counted apart.
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio import AddressSpace, Device
from vfiokit.vfio.owner import Closing
from vfiokit.vmm import snapshot
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.bus import UNCLAIMED, GuestBus
from vfiokit.vmm.bypass import Bypass
from vfiokit.vmm.chipset import HostBridge, IsaBridge
from vfiokit.vmm.cpuid import cpuid
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.guest_function import GuestFunction, Placed
from vfiokit.vmm.hotplug import (
    EVENT_PORT,
    EVENT_PORTS,
    HOTPLUG_PORT,
    HOTPLUG_PORTS,
    SCI,
    HotPlug,
    Notice,
)
from vfiokit.vmm.io_apic import IO_APIC_BASE, IO_APIC_SIZE
from vfiokit.vmm.irqchip import IrqChip
from vfiokit.vmm.local_apic import APIC_BASE, APIC_SIZE, EOI, LocalApic
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.pin_routing import PinRouter
from vfiokit.vmm.policy import Delivery, Policy
from vfiokit.vmm.root_port import RootPort
from vfiokit.vmm.sideband import Sideband
from vfiokit.vmm.trap_map import Access, Handler, Strength, TrapMap, Wish
from vfiokit.vmm.vcpu import Bus, Vcpu

SLICE = 20_000
"""Instructions between two looks at the interrupts."""
WINDOW_SLICE = 50
"""The same while an interrupt waits for the guest to take interrupts."""
CONSOLE = 1 << 20
_APIC_BASE_MSR = 0x1B
_MOST_MSRS = 4096
_X2APIC_MSRS = range(0x800, 0x840)

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
    apic: LocalApic
    halted: bool = False


class PortDispatch:
    """What the machine itself has at I/O ports: a debug console."""

    def __init__(self) -> None:
        self.console = bytearray()
        """What the guest wrote to port 0xe9, the last :data:`CONSOLE` bytes at least."""

    def read(self, offset: int, width: int) -> int:
        """The port reads its own number, as Bochs and QEMU have it."""
        del offset
        return 0xE9 & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """One character."""
        del offset, width
        self.console.append(value & 0xFF)
        if len(self.console) >= 2 * CONSOLE:
            del self.console[:CONSOLE]


class VirtualMachine(Closing):
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
        self.msrs: dict[int, int] = {_APIC_BASE_MSR: APIC_BASE | 0x900}
        self.bypass: Bypass | None = None
        """Set before devices are assigned, it takes their messages to the guest by itself."""
        self.failure = ""
        """Why a processor could not run."""
        self._processors: list[_Running] = []
        self._stop: Stop | None = None
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._closing = ExitStack()
        self._closing.callback(memory.close)
        self.debug = PortDispatch()
        self.irqchip = IrqChip()
        self.pci = PciBus(self.traps, self.ports, self._overlay)
        self.pci.host = self
        self.host_bridge, self.isa_bridge = HostBridge(), IsaBridge()
        self.pci.add(self.host_bridge)
        self.pci.add(self.isa_bridge)
        self.pins = PinRouter(self.pci, self.isa_bridge, self.irqchip.io_apic)
        self.notices: list[Notice] = []
        """What happened to devices from outside the guest, in order."""
        self.hotplug = HotPlug(self.pci, self._set_sci, self.remove, self.notices.append)
        self._sidebands: dict[GuestFunction, Sideband] = {}
        self._place_platform()

    def _place_platform(self) -> None:
        """Memory, interrupt controllers and the console, stronger than any device's wish."""
        self.add_ports(0xE9, 1, "debug console", self.debug, counter="console")
        for each in self.memory.ranges:
            ram = Wish(each.gpa, each.length, Access.RAM, Strength.RAM, "pc.ram", counter="ram")
            self.traps.ask(("ram", each.gpa), [ram])
        slots, events = self.hotplug.slots, self.hotplug.events
        self.add_ports(HOTPLUG_PORT, HOTPLUG_PORTS, "acpi-pci-hotplug", slots)
        self.add_ports(EVENT_PORT, EVENT_PORTS, "acpi-gpe0", events)
        chip, posted = self.irqchip, self.policy.delivery is Delivery.POSTED
        # Hardware that posts interrupts also serves the local page by itself.
        access = Access.DIRECT if posted else Access.TRAP
        self.traps.ask(
            "interrupt controllers",
            [
                Wish(APIC_BASE, APIC_SIZE, access, Strength.PLATFORM, "apic-msi", chip, 0, "apic"),
                Wish(
                    IO_APIC_BASE,
                    IO_APIC_SIZE,
                    Access.TRAP,
                    Strength.PLATFORM,
                    "ioapic",
                    chip.io_apic,
                    counter="ioapic",
                ),
            ],
        )
        if posted:
            chip.io_apic.on_end.append(self._count_level_end)

    def _set_sci(self, level: bool) -> None:
        self.irqchip.io_apic.set_input(SCI, "acpi", level)

    def _count_level_end(self, gsi: int) -> None:
        del gsi
        self.exits["eoi"] += 1

    # -- building -----------------------------------------------------------------------------

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The processors, by number."""
        return tuple(each.vcpu for each in self._processors)

    def add_vcpu(self, engine: Engine) -> Vcpu:
        """Make one more processor; ``engine`` gets the memory and the bus."""
        vcpu = engine(self.memory, self.bus)
        self._processors.append(_Running(vcpu, self.irqchip.add_processor()))
        invalidate = getattr(vcpu, "invalidate", None)
        if invalidate is not None:
            self.memory.listen(invalidate)
        return vcpu

    def assign(
        self,
        device: Device,
        bdf: Bdf | str = "0000:00:04.0",
        *,
        below: RootPort | None = None,
        no_map: frozenset[int] = frozenset(),
        msix_relocation: str = "off",
    ) -> AssignedFunction:
        """Give the guest ``device``, at ``bdf`` of its root bus or of the bus below a port.

        The guest's memory is mapped for it, if the policy translates. The machine closes it in
        the end. Raises :class:`UsageError` and :class:`KernelError`, and leaves it open and
        without the guest's memory then.
        """
        place = Bdf.parse(bdf) if isinstance(bdf, str) else bdf
        with ExitStack() as undo:
            if self.policy.translate:
                self.memory.map_for(device.address_space)
                undo.callback(self._unmap_unused, device.address_space)
            function = AssignedFunction(
                device,
                place,
                on_root_bus=below is None,
                delivery=self.policy.delivery,
                no_map=no_map,
                msix_relocation=msix_relocation,
                page_size=self.traps.page_size,
            )
            self.pci.add(function, below)
            undo.pop_all()
        self._sidebands[function] = Sideband(
            function, self, self.hotplug, self.notices.append, self._fail
        )
        self.hotplug.came(function)
        return function

    def _unmap_unused(self, space: AddressSpace, but: GuestFunction | None = None) -> None:
        """Take the guest's memory from ``space``, unless another function does DMA in it."""
        if not any(each.device.address_space is space for each in self._assigned(but)):
            self.memory.unmap_from(space)

    def unplug(self, function: GuestFunction, *, consent: bool = True) -> None:
        """Ask the guest to let ``function`` go, or take it: see :attr:`notices` for the outcome.

        Raises :class:`UsageError` when it is not on the guest's bus.
        """
        if consent:
            self.hotplug.ask(function)
        else:
            self.hotplug.take(function)

    def remove(self, function: GuestFunction) -> None:
        """Take ``function`` out at once and tell the guest nothing; its device is closed."""
        sideband = self._sidebands.pop(function, None)
        if sideband is not None:
            sideband.close()
        if isinstance(function, AssignedFunction):
            with suppress(OSError):
                function.device.set_bus_master(False)
            self._unmap_unused(function.device.address_space, function)
        self.pci.remove(function)

    def _assigned(self, but: GuestFunction | None = None) -> list[AssignedFunction]:
        every = self.pci.functions()
        return [each for each in every if isinstance(each, AssignedFunction) and each is not but]

    def _fail(self, why: str) -> None:
        self.failure = why
        self._stop = Stop.FAILED

    def _overlay(self, function: GuestFunction, placed: Placed) -> Iterator[Wish]:
        if isinstance(function, AssignedFunction):
            yield from self.policy.wishes(function.as_policy_sees(placed))

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
        self._stop = None
        while True:
            self.poll_interrupts()
            if self._stop is not None:
                return self._stop
            ready = [each for each in self._processors if not each.halted]
            if not ready and not self._wake(idle_s):
                return Stop.IDLE
            share = SLICE if left is None else min(SLICE, left)
            for each in ready:
                stop = self._run_slice(each, share)
                if stop is not None:
                    return stop
            if left is not None:
                left -= share
                if left <= 0:
                    return Stop.BUDGET

    def stop(self) -> None:
        """Let :meth:`run` come back after the exit at hand."""
        self._stop = Stop.ASKED

    def _run_slice(self, running: _Running, share: int) -> Stop | None:
        start = running.vcpu.instructions
        self.irqchip.current = running.apic.id
        while True:
            # A processor that cannot take what waits is asked again soon.
            waits = self._deliver(running)
            exit_ = running.vcpu.run(min(share, WINDOW_SLICE) if waits else share)
            stop = self.handle(running.vcpu, exit_)
            if exit_.reason is ExitReason.HLT:
                running.halted = True
            if stop is None and self._stop is None:
                self.poll_interrupts()
            if stop is not None or self._stop is not None:
                return stop or self._stop
            if running.halted and not self._wakes(running):
                return None
            if running.vcpu.instructions - start >= share:
                return None
            if exit_.reason is ExitReason.INTR and not waits:
                return None

    # -- interrupts ---------------------------------------------------------------------------

    def poll_interrupts(self, timeout_s: float = 0.0) -> int:
        """Take what devices signalled and deliver it; how many signalled."""
        if not self._watched:
            return 0
        ready = self._poll.poll(timeout_s * 1000)
        for fd, _events in ready:
            callback = self._watched.get(fd)  # one callback may end another
            if callback is not None:
                callback()
        return len(ready)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` is readable and the machine looks."""
        self._watched[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop that. Idempotent."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def message(self, function: GuestFunction, address: int, data: int) -> None:
        """A message of a device, already masked and unmasked as the guest wants it."""
        del function
        deliver = self.irqchip.message if self.bypass is None else self.bypass.message
        if deliver(address, data):
            posted = self.policy.delivery is Delivery.POSTED
            (self.events if posted else self.exits)["posted" if posted else "inject"] += 1

    def line(self, function: GuestFunction, level: bool) -> None:
        """The pin of a function changed; levels are never posted."""
        if level:
            self.exits["inject"] += 1
        self.pins.set_level(function, level)

    def _deliver(self, running: _Running) -> bool:
        """Give the processor its next interrupt; whether one waits that it cannot take."""
        if running.apic.next_vector() is None:
            return False
        if not running.vcpu.interruptible:
            return True
        running.vcpu.inject(running.apic.take())
        return False

    def _wakes(self, running: _Running) -> bool:
        if running.apic.next_vector() is not None and running.vcpu.interruptible:
            running.halted = False
        return not running.halted

    def _wake(self, idle_s: float) -> bool:
        """Wait for an interrupt; whether a processor woke."""
        deadline = time.monotonic() + idle_s
        while True:
            awake = [each for each in self._processors if self._wakes(each)]
            if awake:
                return True
            left = deadline - time.monotonic()
            if left <= 0 or not self.poll_interrupts(left):
                return False

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
            vcpu.complete(self._read_msr(exit_.address))
        elif reason is ExitReason.WRMSR:
            self.exits["msr"] += 1
            self._write_msr(exit_.address, exit_.value)
        elif reason is ExitReason.CPUID:
            self.exits["cpuid"] += 1
            count = len(self._processors)
            vcpu.complete(*cpuid(exit_.address, self.irqchip.current, count))
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
        if counter == "apic" and exit_.write and exit_.address % APIC_SIZE == EOI:
            counter = "eoi"
        self.exits[nobody if counter == UNCLAIMED else counter] += 1
        if not exit_.write:
            vcpu.complete(value)

    def _read_msr(self, number: int) -> int:
        if number in _X2APIC_MSRS:
            return self.irqchip.read((number - _X2APIC_MSRS.start) << 4, 4)
        return self.msrs.get(number, 0)

    def _write_msr(self, number: int, value: int) -> None:
        if number in _X2APIC_MSRS:
            self.irqchip.write((number - _X2APIC_MSRS.start) << 4, 4, value & 0xFFFF_FFFF)
        elif number in self.msrs or len(self.msrs) < _MOST_MSRS:
            self.msrs[number] = value

    def _hypercall(self, vcpu: Vcpu, exit_: Exit) -> int:
        answer = self.hypercalls.get(exit_.address)
        if answer is None:
            return (1 << 64) - 1000  # -KVM_ENOSYS
        return answer(self, vcpu, exit_.arguments) & (1 << 64) - 1

    # -- state --------------------------------------------------------------------------------

    @property
    def halted(self) -> list[bool]:
        """Which processors wait for an interrupt."""
        return [each.halted for each in self._processors]

    def set_halted(self, halted: list[bool]) -> None:
        """Let processors wait or not."""
        for running, value in zip(self._processors, halted, strict=True):
            running.halted = value

    def state(self, *, in_place: bool = False) -> dict[str, Any]:
        """All of it as plain data: see :func:`vfiokit.vmm.snapshot.save`."""
        return snapshot.save(self, in_place=in_place)

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described: see :func:`vfiokit.vmm.snapshot.load`."""
        snapshot.load(self, state)

    # -- end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close devices and memory. Idempotent."""
        for function in self._assigned():
            self.remove(function)
        for running in self._processors:
            close = getattr(running.vcpu, "close", None)
            if close is not None:
                close()
        self._processors.clear()
        self._closing.close()
