"""What every engine of a virtual processor offers."""

from __future__ import annotations

from typing import Any, Protocol

from vfiokit.vmm.exit import Exit


class Bus(Protocol):
    """How an engine reaches guest-physical memory.

    RAM is the engine's to reach by itself; everything else comes here. The bus knows which ranges
    are mapped to a device (an access of those is no exit) and which trap.
    """

    def read(self, gpa: int, width: int) -> int | None:
        """A load that is no RAM: the value where the range is mapped, ``None`` where it traps."""
        ...

    def write(self, gpa: int, width: int, value: int) -> bool:
        """A store that is no RAM: whether the range is mapped; false where it traps."""
        ...


class Vcpu(Protocol):
    """One virtual processor.

    ``registers`` are by their names in lower case (``rax`` … ``r15``, ``rip``, ``rflags``, ``cr0``,
    ``cr2``, ``cr3``, ``cr4``, ``efer``, ``cs`` …); reading and setting them is cheap enough for
    exits, not for instructions.
    """

    @property
    def instructions(self) -> int:
        """Instructions retired so far; 0 where the engine cannot count."""
        ...

    def run(self, budget: int) -> Exit:
        """Run until something has to be decided outside, or ``budget`` instructions are done.

        ``INTR`` is the exit of a spent budget. An interrupt that was injected is delivered first,
        when the guest's flags allow it.
        """
        ...

    def complete(self, *values: int) -> None:
        """Finish the last exit: the value of a read, RAX to RDX of ``CPUID``, RAX of a
        ``HYPERCALL``.
        """
        ...

    def inject(self, vector: int) -> None:
        """Deliver an external interrupt with ``vector`` (32 to 255) once the guest takes them.

        Several wait in the order of their priority, the same one once. It ends a ``HLT``.
        """
        ...

    @property
    def interruptible(self) -> bool:
        """Whether an interrupt would be taken at once."""
        ...

    def read_register(self, name: str) -> int:
        """A register's value; ``KeyError`` for a name that there is not."""
        ...

    def write_register(self, name: str, value: int) -> None:
        """Set a register; takes effect with the next ``run``."""
        ...

    def state(self) -> dict[str, Any]:
        """All of the processor as plain data."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        ...
