"""A processor that plays back exits, and devices on a twin for a guest to have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vfiokit.vmm.exit import Exit, ExitReason


class ScriptedVcpu:
    """Implements ``Vcpu``: runs out of a list of exits, then spends its budget.

    ``completed`` are the values given for reads, ``taken`` the vectors delivered in order.
    """

    def __init__(self, exits: Iterable[Exit] = ()) -> None:
        self.script = list(exits)
        self.completed: list[tuple[int, ...]] = []
        self.waiting: list[int] = []
        self.taken: list[int] = []
        self.interruptible = True
        self.instructions = 0
        self.registers: dict[str, int] = {}

    def run(self, budget: int) -> Exit:
        if self.interruptible:
            self.taken += sorted(self.waiting, reverse=True)
            self.waiting.clear()
        if self.script:
            self.instructions += 1
            return self.script.pop(0)
        self.instructions += budget
        return Exit(ExitReason.INTR)

    def complete(self, *values: int) -> None:
        self.completed.append(values)

    def inject(self, vector: int) -> None:
        if vector not in self.waiting:
            self.waiting.append(vector)

    def read_register(self, name: str) -> int:
        return self.registers[name]

    def write_register(self, name: str, value: int) -> None:
        self.registers[name] = value

    def state(self) -> dict[str, Any]:
        return {"registers": dict(self.registers), "waiting": list(self.waiting)}

    def load(self, state: dict[str, Any]) -> None:
        self.registers = dict(state["registers"])
        self.waiting = list(state["waiting"])


def load(gpa: int, width: int = 4) -> Exit:
    return Exit(ExitReason.MMIO, gpa, width)


def store(gpa: int, value: int, width: int = 4) -> Exit:
    return Exit(ExitReason.MMIO, gpa, width, True, value)


def port_in(port: int, width: int = 4) -> Exit:
    return Exit(ExitReason.IO, port, width)


def port_out(port: int, value: int, width: int = 4) -> Exit:
    return Exit(ExitReason.IO, port, width, True, value)
