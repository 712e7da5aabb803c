"""Capabilities as text for people: every register and field, from the descriptions.

A layout is compiled once into a plan: which bytes hold its registers, what the names in front of
them are, and a table of the texts already made. A register that reads the same in a thousand
functions is put into words once, so that a whole machine is a matter of looking up and joining.

A line is ``name value: fields``. A flag is its name with ``+`` or ``-``, other fields are their
name and value, in the words of the specification where the value has a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.capability.register import Capability, Field, Layout, Register, Repeated
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.quantity import size_text

WIDTH = 100
"""Columns of a line, where what it says can be broken."""
_SHORT = 72
_MARGIN = "      "
_REMEMBERED = 512
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_COUNTED = ("count", "vfs", "number", "stride", "offset", "size", "length", "index", "depth")
_NAMED = ", as named"


class Style(NamedTuple):
    """How much is said, and the marks of a terminal around it."""

    full: bool = False
    """Also the section of the specification, reserved bits, and the raw bytes."""
    strong: tuple[str, str] = ("", "")
    """Around the names of capabilities."""
    faint: tuple[str, str] = ("", "")
    """Around raw values."""


PLAIN = Style()
FULL = Style(full=True)


def field_text(field: Field, value: int) -> str:
    """One field: ``enable+``, ``max_payload_size 256 bytes``, ``vector 0x1f40``."""
    bits = field.high - field.low + 1
    meaning = field.meaning.get(value)
    if bits == 1 and meaning is None and not field.unit:
        return f"{field.name}{'+' if value else '-'}"
    if meaning is not None:
        return f"{field.name} {meaning}{_unit_of(meaning, field)},"
    if field.unit:
        unit = field.unit.replace(_NAMED, " code")
        times = "× " if unit[0].isdigit() else ""
        return f"{field.name} {value} {times}{unit},"
    hexadecimal = bits >= 12 and value > 9 and not field.name.endswith(_COUNTED)
    return f"{field.name} {value:#x}," if hexadecimal else f"{field.name} {value},"


def _unit_of(meaning: str, field: Field) -> str:
    """The unit that a named value lacks: ``256`` of ``bytes, as named`` is 256 bytes."""
    unit = field.unit.removesuffix(_NAMED).removeprefix("log2 ")
    return f" {unit}" if unit and meaning[-1:].isdigit() and not unit[0].isdigit() else ""


def reserved(register: Register) -> tuple[tuple[int, int], ...]:
    """The runs of bits, ``(high, low)`` from the top, that no field of ``register`` describes."""
    known = 0
    for field in register.fields:
        known |= field.mask
    found: list[tuple[int, int]] = []
    bit = 8 * register.width - 1
    while bit >= 0:
        high = bit
        while bit >= 0 and not known >> bit & 1:
            bit -= 1
        if bit < high:
            found.append((high, bit + 1))
        bit -= 1
    return tuple(found)


def register_text(register: Register, raw: int, style: Style = PLAIN) -> str:
    """What follows a register's name: its value, and its fields on this line or the next ones."""
    before, after = style.faint
    text = f"{before}{raw:#0{2 + 2 * register.width}x}{after}"
    if style.full and register.spec:
        text += f" {before}({register.spec}){after}"
    words = [field_text(field, field.extract(raw)) for field in register.fields]
    if style.full and register.fields:
        words += [
            f"reserved[{high}:{low}] {raw >> low & (1 << high - low + 1) - 1:#x},"
            for high, low in reserved(register)
        ]
    if not words:
        return text
    words[-1] = words[-1].removesuffix(",")
    if sum(map(len, words)) + len(words) <= _SHORT:
        return f"{text}: {' '.join(words)}"
    return f"{text}:\n{_wrapped(words)}"


def _wrapped(words: Iterable[str]) -> str:
    lines: list[str] = []
    line = _MARGIN
    for word in words:
        if len(line) + len(word) + 1 > WIDTH and line != _MARGIN:
            lines.append(line)
            line = _MARGIN
        line += f" {word}" if line != _MARGIN else f"  {word}"
    lines.append(line)
    return "\n".join(lines)


class _Remembered:
    """The texts of one register, by value."""

    __slots__ = ("_register", "_style", "_texts")

    def __init__(self, register: Register, style: Style) -> None:
        self._register = register
        self._style = style
        self._texts: dict[int, str] = {}

    def text(self, raw: int) -> str:
        """What :func:`register_text` says of ``raw``."""
        found = self._texts.get(raw)
        if found is None:
            if len(self._texts) >= _REMEMBERED:
                self._texts.clear()
            found = self._texts[raw] = register_text(self._register, raw, self._style)
        return found


_Step = tuple[Register, str, _Remembered]
"""A register, the start of its line, and its texts."""


class _Plan:
    """A layout, ready to be written for any instance of it."""

    def __init__(self, layout: Layout, style: Style) -> None:
        self.layout = layout
        self.style = style
        self.steps = tuple(
            (register, f"    {register.name} ", _Remembered(register, style))
            for register in layout.registers
        )
        # ``None`` where registers depend on the instance, or do not follow each other.
        self.together = _together(layout) if layout.present is None else None
        self._repeated = tuple(
            (repeated, tuple(_Remembered(register, style) for register in repeated.registers))
            for repeated in layout.repeated
        )

    def write(self, capability: Capability, lines: list[str]) -> None:
        """Append the lines of every register that ``capability`` has."""
        if self.together is None or not self._write_together(capability, lines):
            present, config, start = self.layout.present, capability.config, capability.offset
            space = 4096 if capability.extended else 256
            for register, name, texts in self.steps:
                at, width = start + register.offset, register.width
                if at + width > space or not config.has(at, width):
                    continue
                if present is None or _is_present(present, capability, register):
                    lines.append(name + texts.text(config.read(at, width)))
        for repeated, remembered in self._repeated:
            lines += _element_lines(capability, repeated, remembered)

    def _write_together(self, capability: Capability, lines: list[str]) -> bool:
        """All fixed registers with one read; whether that was possible."""
        structure, start = self.together, capability.offset
        if structure is None or not capability.config.has(start, structure.size):
            return False
        if start + structure.size > (4096 if capability.extended else 256):
            return False
        values = structure.unpack_from(capability.config.data, start)
        for (_, name, texts), raw in zip(self.steps, values, strict=True):
            lines.append(name + texts.text(raw))
        return True


def _element_lines(
    capability: Capability, repeated: Repeated, remembered: tuple[_Remembered, ...]
) -> Iterator[str]:
    config = capability.config
    space = 4096 if capability.extended else 256
    try:
        places = list(repeated.places(capability))
    except ConfigRangeError:  # even how many there are was not captured
        return
    for number, start in places:
        for register, texts in zip(repeated.registers, remembered, strict=True):
            at = capability.offset + start + register.offset
            if at + register.width <= space and config.has(at, register.width):
                text = texts.text(config.read(at, register.width))
                yield f"    {repeated.label}{number}_{register.name} {text}"


def _is_present(
    present: Callable[[Capability, Register], bool], capability: Capability, register: Register
) -> bool:
    try:
        return present(capability, register)
    except ConfigRangeError:
        return False


def _together(layout: Layout) -> Struct | None:
    """One structure of all fixed registers in order, gaps included; ``None`` where none fits."""
    code, end = "<", 0
    for register in layout.registers:
        if register.offset < end or register.width not in _FORMATS:
            return None
        code += f"{register.offset - end}x{_FORMATS[register.width]}"
        end = register.offset + register.width
    return Struct(code) if end else None


_plans: dict[tuple[str, Style], _Plan] = {}


def _plan(layout: Layout, style: Style) -> _Plan:
    key = (layout.name, style)
    found = _plans.get(key)
    if found is None or found.layout is not layout:
        found = _plans[key] = _Plan(layout, style)
    return found


def capability_lines(capability: Capability, style: Style = PLAIN) -> list[str]:
    """The capability as lines of text: what it is, its registers, what follows from them.

    With ``style.full`` also the sections of the specification, the bits that no field describes
    and the raw bytes. Never raises: registers that were not captured are left out.
    """
    layout, (before, after) = capability.layout, style.strong
    head = f"  {before}{capability.title} at {capability.offset:#x}{after}"
    if capability.extended:
        head += f", version {capability.version}"
    if style.full and layout is not None and layout.spec:
        head += f" ({layout.spec})"
    lines = [head]
    if layout is not None:
        _plan(layout, style).write(capability, lines)
        if layout.derive is not None:
            lines += _derived(capability, layout.derive)
    if style.full:
        lines += raw_lines(capability, style)
    return lines


def header_lines(config: ConfigSpace, style: Style = PLAIN) -> list[str]:
    """The registers of the header as lines of text.

    Those with fields (command, status, bridge control …); with ``style.full`` all of them.
    """
    kind = config.u8(0x0E) & 0x7F if config.has(0x0E, 1) else 0
    steps = _headers.get((kind, style))
    if steps is None:
        from vfiokit.pci import header

        steps = _headers[kind, style] = tuple(
            (register, f"    {register.name} ", _Remembered(register, style))
            for register in header.described(kind)
            if style.full or any(field.high == field.low for field in register.fields)
        )
    lines = [f"  {style.strong[0]}Header{style.strong[1]}"]
    for register, name, texts in steps:
        if config.has(register.offset, register.width):
            lines.append(name + texts.text(config.read(register.offset, register.width)))
    return lines


_headers: dict[tuple[int, Style], tuple[_Step, ...]] = {}


def raw_lines(capability: Capability, style: Style = PLAIN) -> Iterator[str]:
    """The capability's bytes, 16 a line; none where not all of them are known."""
    start = capability.offset
    data = capability.config.data[start : start + capability.size]
    if not capability.config.has(start, len(data)):
        return
    before, after = style.faint
    for at in range(0, len(data), 16):
        yield f"    {before}raw {start + at:03x}: {data[at : at + 16].hex(' ')}{after}"


def _derived(capability: Capability, derive: Callable[[Capability], object]) -> Iterator[str]:
    """What follows from several registers, a line each, those that say nothing left out."""
    try:
        found = derive(capability)
    except ConfigRangeError as error:
        yield f"    = truncated: {error}"
        return
    if isinstance(found, dict):
        for name, value in found.items():
            if value not in ([], (), {}, None):
                yield from _fact(name, value)


def _fact(name: str, value: object) -> Iterator[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        for number, item in enumerate(value):
            yield f"    = {name}[{number}]: {_value_text(name, item)}"
    else:
        yield f"    = {name} {_value_text(name, value)}"


def _value_text(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value_text(key, item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_value_text(name, item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 1024 and name.endswith(_SIZES):
        return size_text(value)
    if isinstance(value, int) and value > 9 and name.endswith(_PLACES):
        return f"{value:#x}"
    return str(value)


_PLACES = ("address", "base", "limit", "offset", "length", "groups", "data")
"""Endings of the names of values that people read in hexadecimal."""
_SIZES = ("size", "sizes")
"""Endings of the names of values in bytes that are powers of two."""
