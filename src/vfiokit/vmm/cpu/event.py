"""What interrupts the run of guest instructions."""

from __future__ import annotations

from typing import Final

from vfiokit.vmm.exit import Exit

DE: Final = 0
DB: Final = 1
BP: Final = 3
OVERFLOW: Final = 4
UD: Final = 6
NM: Final = 7
DF: Final = 8
TS: Final = 10
NP: Final = 11
SS: Final = 12
GP: Final = 13
PF: Final = 14

WITH_ERROR_CODE: Final = frozenset({DF, TS, NP, SS, GP, PF, 17, 21})
_CONTRIBUTORY: Final = frozenset({DE, TS, NP, SS, GP})


class GuestEvent(Exception):  # noqa: N818 - not an error: the guest goes on
    """Base: the current instruction did not complete."""


class Fault(GuestEvent):
    """An exception of the processor, to be delivered to the guest."""

    def __init__(self, vector: int, error_code: int = 0, address: int | None = None) -> None:
        super().__init__()
        self.vector = vector
        self.error_code = error_code
        self.address = address
        """What goes to CR2 with a page fault."""

    def doubles(self, second: Fault) -> bool:
        """Whether ``second``, met while this one is delivered, is a double fault.

        Source: Intel SDM volume 3, table 6-5.
        """
        if self.vector == PF:
            return second.vector in _CONTRIBUTORY or second.vector == PF
        return self.vector in _CONTRIBUTORY and second.vector in _CONTRIBUTORY


class Trap(GuestEvent):
    """Something outside has to decide; the instruction is repeated with the answer."""

    def __init__(self, leaving: Exit, *, answered: bool) -> None:
        super().__init__()
        self.leaving = leaving
        self.answered = answered
        """Whether the repeated instruction needs no value from outside."""


class Restart(GuestEvent):
    """The instruction has to be the last of its block: it reaches a device or changes code."""
