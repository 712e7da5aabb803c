"""Configuration registers of one function, read twice: which fields differ, by name.

Only registers that both readings have are compared. Sources of the names: the descriptions in
:mod:`vfiokit.pci.header` and :mod:`vfiokit.pci.capability`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vfiokit.host.partial import PartialConfig
from vfiokit.pci import header
from vfiokit.pci.capability.register import Capability, Field, Register
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function

HEADER = "Header"


class FieldChange(NamedTuple):
    """One field of a register, or the whole register where it has no fields."""

    name: str
    before: int
    after: int
    is_flag: bool

    def text(self) -> str:
        """``aspm 2 → 0``."""
        return f"{self.name.replace('_', ' ')} {self.before:#x} → {self.after:#x}"


class RegisterChange(NamedTuple):
    """One register that reads differently."""

    capability: str
    """Title of the capability; :data:`HEADER` for the standard header."""
    capability_id: int | None
    """``None`` in the header; extended ids have bit 16 set."""
    register: str
    offset: int
    """In the first reading's configuration space."""
    width: int
    before: int
    after: int
    fields: tuple[FieldChange, ...]


class ListChange(NamedTuple):
    """A capability that only one of two readings shows."""

    capability: str
    in_before: bool


EXTENDED = 1 << 16
"""Set in :attr:`RegisterChange.capability_id` of an extended capability."""


def register_changes(
    before: Function, after: Function
) -> tuple[tuple[RegisterChange, ...], tuple[ListChange, ...]]:
    """Registers that differ, in the order of the first reading, and capabilities of one only."""
    if before.config == after.config:
        return (), ()
    found = list(_header_changes(before.config, after.config))
    lists: list[ListChange] = []
    mine, theirs = _keyed(before), _keyed(after)
    for key in mine.keys() | theirs.keys():
        if key not in mine and _shows_lists(before.config, key[0]):
            lists.append(ListChange(theirs[key].title, False))
        elif key not in theirs and _shows_lists(after.config, key[0]):
            lists.append(ListChange(mine[key].title, True))
    for key, capability in mine.items():
        if key in theirs:
            found += _capability_changes(capability, theirs[key])
    return tuple(found), tuple(sorted(lists))


def _shows_lists(config: ConfigSpace, extended: bool) -> bool:
    """Whether the list of capabilities would have been seen."""
    return config.has(0x100, 4) if extended else config.has(0x34, 1) and len(config) >= 0x100


def _keyed(function: Function) -> dict[tuple[bool, int, int], Capability]:
    """Capabilities by list, id, and which of those with that id."""
    found: dict[tuple[bool, int, int], Capability] = {}
    for capability in function.capabilities:
        index = 0
        while (capability.extended, capability.id, index) in found:
            index += 1
        found[capability.extended, capability.id, index] = capability
    return found


def _header_changes(before: ConfigSpace, after: ConfigSpace) -> Iterator[RegisterChange]:
    known = {register.name: register for register in header.registers(after)}
    for register in header.registers(before):
        if register != known.get(register.name):
            continue
        values = (
            before.read(register.offset, register.width),
            after.read(register.offset, register.width),
        )
        if register == header.HEADER_TYPE and PartialConfig in (type(before), type(after)):
            values = values[0] & 0x7F, values[1] & 0x7F  # no text tells bit 7
        if values[0] != values[1]:
            yield _change(HEADER, None, register, register.offset, values)


def _capability_changes(before: Capability, after: Capability) -> Iterable[RegisterChange]:
    number = before.id | (EXTENDED if before.extended else 0)
    known = {register.name: register for register in after.registers()}
    for register in before.registers():
        other = known.get(register.name)
        if other is None:
            continue
        values = before.value(register), after.value(other)
        if values[0] != values[1]:
            place = before.offset + register.offset
            yield _change(before.title, number, register, place, values)


def _change(
    title: str, number: int | None, register: Register, offset: int, values: tuple[int, int]
) -> RegisterChange:
    fields = tuple(
        FieldChange(field.name, *found, field.high == field.low)
        for field in register.fields or _whole(register)
        if (found := (field.extract(values[0]), field.extract(values[1])))[0] != found[1]
    )
    return RegisterChange(title, number, register.name, offset, register.width, *values, fields)


def _whole(register: Register) -> tuple[Field, ...]:
    return (Field(register.name, register.width * 8 - 1, 0),)
