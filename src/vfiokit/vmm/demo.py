"""The talk's two demonstrations: an instruction run once, run many times, and one that must trap.

"To Trap or Not To Trap: The PCI Passthrough" (Dongli Zhang, 2021) begins virtualization with one
register, RAX, and one instruction, ``mov $7, %rax``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
from vfiokit.vmm.engine import chosen, open_vcpu
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.vcpu import Vcpu

CODE: Final = 0x1000
_RAM: Final = 0x20000
_TABLES: Final = 0x10000
_STACK: Final = 0x9000
DEVICE: Final = 0xF000_0000
"""A guest-physical address without RAM."""
ANSWER: Final = 42
"""What the hypervisor lets port 0x10 read."""
_BUDGET: Final = 10_000_000
_MOST_REAL: Final = 0xFFFF
_SHOWN: Final = ("rax", "rbx", "rcx", "rip")


class Step(NamedTuple):
    """One stretch of the guest, from entering it to its exit."""

    title: str
    before: dict[str, int]
    after: dict[str, int]
    leaving: Exit
    answer: str
    """What the hypervisor did about it."""
    seconds: float
    instructions: int
    """What the guest did in between, as the program has it."""

    @property
    def exit_text(self) -> str:
        """The exit in words."""
        return describe(self.leaving)

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "title": self.title,
            "before": self.before,
            "after": self.after,
            "exit": self.leaving.reason.value,
            "exit_text": self.exit_text,
            "hypervisor": self.answer,
            "seconds": self.seconds,
            "instructions": self.instructions,
        }


class Demonstration(NamedTuple):
    """What was run, on what, and its steps."""

    number: int
    engine: str
    mode: str
    """``64-bit`` or ``real``."""
    note: str
    """Why this engine and mode, where that is not plain."""
    listing: tuple[str, ...]
    steps: tuple[Step, ...]

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "demo": self.number,
            "engine": self.engine,
            "mode": self.mode,
            "note": self.note,
            "listing": list(self.listing),
            "steps": [step.document() for step in self.steps],
        }


def describe(leaving: Exit) -> str:
    """An exit in words."""
    place = {ExitReason.IO: "port", ExitReason.MMIO: "gpa"}.get(leaving.reason)
    if place is None:
        return leaving.reason.name + (f": {leaving.detail}" if leaving.detail else "")
    action = f"writes {leaving.value:#x} to" if leaving.write else "reads"
    return f"{leaving.reason.name}: {leaving.width} byte(s), {action} {place} {leaving.address:#x}"


class NoDevices:
    """A bus on which everything traps (:class:`vfiokit.vmm.vcpu.Bus`)."""

    def read(self, gpa: int, width: int) -> int | None:
        """Traps."""
        del gpa, width
        return None

    def write(self, gpa: int, width: int, value: int) -> bool:
        """Traps."""
        del gpa, width, value
        return False


def demo1(engine: str, kernel: Kernel) -> Demonstration:
    """Run the instruction once. Raises as :func:`vfiokit.vmm.engine.open_vcpu`."""
    with _guest("demo1", engine, kernel) as (vcpu, facts):
        step = _step(vcpu, "run the instruction once", 2)
        return Demonstration(1, *facts, (step,))


def demo2(engine: str, kernel: Kernel, times: int = 10_000) -> Demonstration:
    """Run the instruction ``times`` times, then what must trap.

    :class:`UsageError` for no times at all, or more than the guest can count.
    """
    if times < 1:
        raise UsageError("the instruction has to run at least once")
    with _guest("demo2", engine, kernel) as (vcpu, facts):
        if facts[1] == "real":
            if times > _MOST_REAL:
                raise UsageError(f"in real mode the guest counts to {_MOST_REAL}")
            vcpu.write_register("ds.base", DEVICE)
        else:
            vcpu.write_register("rbx", DEVICE)
        vcpu.write_register("rcx", times)
        steps = [_step(vcpu, f"run the instruction {times} times", 3 * times + 1)]
        steps.append(_step(vcpu, "OUT gave control back; enter again", 1))
        steps.append(_step(vcpu, "the port has answered; a store to a device", 2))
        steps.append(_step(vcpu, "the store is emulated; a load from the device", 1))
        steps.append(_step(vcpu, "the load has its value; HLT", 2))
        return Demonstration(2, *facts, tuple(steps))


@contextmanager
def _guest(
    program: str, engine: str, kernel: Kernel
) -> Iterator[tuple[Vcpu, tuple[str, str, str, tuple[str, ...]]]]:
    """A processor about to run ``program``; engine, mode, note and listing."""
    name, mode, note = _choose(engine, kernel)
    file = program if mode == "64-bit" else f"{program}_real"
    folder = resources.files("vfiokit.vmm") / "guest"
    code = (folder / f"{file}.bin").read_bytes()
    listing = (folder / f"{file}.lst").read_text().splitlines()
    memory = kernel.allocate(_RAM)
    try:
        memory.view[CODE : CODE + len(code)] = code
        with open_vcpu(name, [(0, memory.view)], NoDevices(), kernel=kernel) as vcpu:
            if mode == "64-bit":
                enter_long_mode(vcpu, memory.view, CODE, tables=_TABLES, stack=_STACK)
            else:
                enter_real_mode(vcpu, CODE, stack=_STACK)
            shown = tuple(line[5:].expandtabs() for line in listing if not _aside(line))
            yield vcpu, (name, mode, note, shown)
    finally:
        memory.close()


def _aside(line: str) -> bool:
    return "#" in line or ".code" in line


def _choose(engine: str, kernel: Kernel) -> tuple[str, str, str]:
    if engine == "interpreter":
        return engine, "64-bit", ""
    from vfiokit.vmm.kvm import probe

    report = probe(kernel)
    name = chosen(engine, kernel)
    if name == "kvm" and report.available and not report.long_mode:
        return name, "real", f"KVM here: {report.detail}"
    return name, "64-bit", f"KVM here: {report.detail}"


def _step(vcpu: Vcpu, title: str, instructions: int) -> Step:
    before = {name: vcpu.read_register(name) for name in _SHOWN}
    start = time.perf_counter()
    leaving = vcpu.run(_BUDGET)
    seconds = time.perf_counter() - start
    answer = _emulate(vcpu, leaving)
    # A read is finished by the next run: until then the register is as it was.
    after = {name: vcpu.read_register(name) for name in _SHOWN}
    return Step(title, before, after, leaving, answer, seconds, instructions)


def _emulate(vcpu: Vcpu, leaving: Exit) -> str:
    if leaving.reason in (ExitReason.IO, ExitReason.MMIO):
        if leaving.write:
            return f"a device is told {leaving.value:#x}; nothing else to do"
        vcpu.complete(ANSWER)
        return f"a device is asked; it says {ANSWER}"
    if leaving.reason is ExitReason.HLT:
        return "the guest has nothing more to do"
    return "the demonstration ends here"
