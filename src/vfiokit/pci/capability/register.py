"""Declarative descriptions of capability registers.

A capability is described once, as data: its registers, their fields, access, units and the
section of the specification. Decoding, JSON, text, the software machine's register models and
the documentation all read the same description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.capability import catalog
from vfiokit.pci.config import ConfigSpace


class Field(NamedTuple):
    """Bits ``[high:low]`` of a register."""

    name: str
    high: int
    low: int
    access: str = "ro"
    """``ro``, ``rw``, ``rw1c``, ``hwinit`` or ``rsvd``, as the specification says."""
    meaning: Mapping[int, str] = {}
    """Names of the values that have one."""
    unit: str = ""
    """Unit of the decoded value, such as ``bytes``; empty for plain numbers and flags."""
    doc: str = ""

    def extract(self, raw: int) -> int:
        """The field's value in the register value ``raw``."""
        return raw >> self.low & (1 << (self.high - self.low + 1)) - 1

    @property
    def mask(self) -> int:
        """The field's bits, in place."""
        return ((1 << (self.high - self.low + 1)) - 1) << self.low


def flag(name: str, bit: int, access: str = "ro", doc: str = "") -> Field:
    """A one-bit field."""
    return Field(name, bit, bit, access, doc=doc)


class Register(NamedTuple):
    """A register at ``offset`` bytes from the capability's header, ``width`` bytes wide."""

    name: str
    offset: int
    width: int
    fields: tuple[Field, ...] = ()
    spec: str = ""

    def field(self, name: str) -> Field:
        """The field called ``name``; ``KeyError`` if there is none."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise KeyError(f"register {self.name} has no field {name}")

    def decode(self, raw: int) -> dict[str, int]:
        """The whole as ``value``, and every field by name."""
        return {"value": raw} | {field.name: field.extract(raw) for field in self.fields}

    def writable(self, access: str = "rw") -> int:
        """Mask of the bits whose access is ``access``: what a register model lets through."""
        mask = 0
        for candidate in self.fields:
            if candidate.access == access:
                mask |= candidate.mask
        return mask


class Repeated(NamedTuple):
    """Registers that a capability has once for each channel, lane, link, stream or BAR."""

    label: str
    """What one is, such as ``vc``: element 2's ``control`` is the register ``vc2_control``."""
    registers: tuple[Register, ...]
    """The registers of one element, at offsets from its start."""
    places: Callable[[Capability], Iterable[tuple[str, int]]]
    """``(number, offset from the capability's header)`` of each element of an instance."""

    def expand(self, capability: Capability) -> Iterable[Register]:
        """The registers of every element of ``capability``."""
        for number, start in self.places(capability):
            for register in self.registers:
                yield register._replace(
                    name=f"{self.label}{number}_{register.name}", offset=start + register.offset
                )


class Variant(NamedTuple):
    """A more exact description, for the instances it applies to."""

    applies: Callable[[Capability], bool]
    layout: Layout


class Layout(NamedTuple):
    """What one capability looks like."""

    name: str
    """Short stable name for JSON and code, such as ``msix``."""
    title: str
    """The specification's name, such as ``MSI-X``."""
    cap_id: int
    extended: bool
    registers: tuple[Register, ...]
    spec: str
    size: Callable[[Capability], int]
    """Bytes the capability occupies, header included."""
    present: Callable[[Capability, Register], bool] | None = None
    """Whether a register exists in this instance (versions, 64-bit forms); ``None``: always."""
    derive: Callable[[Capability], Mapping[str, object]] | None = None
    """Facts computed from several registers, such as a table's BAR and length."""
    repeated: tuple[Repeated, ...] = ()
    """What there is as often as the instance says."""
    variants: tuple[Variant, ...] = ()
    """Other layouts under the same id: the first that applies describes the instance."""

    def register(self, name: str) -> Register:
        """The register called ``name``; ``KeyError`` if there is none."""
        for candidate in self.registers:
            if candidate.name == name:
                return candidate
        raise KeyError(f"capability {self.name} has no register {name}")


def fixed(length: int) -> Callable[[Capability], int]:
    """The size of a capability that always has ``length`` bytes."""
    return lambda _: length


def counted(
    first: int, length: int, count: Callable[[Capability], int]
) -> Callable[[Capability], Iterable[tuple[str, int]]]:
    """Places of ``count`` elements of ``length`` bytes each, one after the other."""
    return lambda capability: [
        (str(number), first + length * number) for number in range(count(capability))
    ]


class Capability:
    """One capability found in a configuration space."""

    __slots__ = ("_layout", "config", "extended", "id", "offset", "siblings", "version")

    def __init__(
        self,
        config: ConfigSpace,
        offset: int,
        cap_id: int,
        *,
        extended: bool,
        version: int,
        siblings: Sequence[Capability] = (),
    ) -> None:
        self.config = config
        self.offset = offset
        self.id = cap_id
        self.extended = extended
        self.version = version
        """Version field of an extended capability's header; 0 for a standard capability."""
        self.siblings = siblings
        """All capabilities of the same function: the form of one may depend on another."""
        self._layout: Layout | bool | None = False

    @property
    def layout(self) -> Layout | None:
        """The description, loaded when it is first asked for; ``None`` for an unknown id."""
        if isinstance(self._layout, bool):
            self._layout = self._describe()
        return self._layout

    def _describe(self) -> Layout | None:
        base = catalog.layout(self.id, extended=self.extended)
        for variant in base.variants if base is not None else ():
            try:
                if variant.applies(self):
                    return variant.layout
            except ConfigRangeError:
                continue
        return base

    @property
    def name(self) -> str:
        """Short stable name; ``ext-0x0024`` style for capabilities without a description."""
        if self.layout is not None:
            return self.layout.name
        return f"ext-{self.id:#06x}" if self.extended else f"cap-{self.id:#04x}"

    @property
    def title(self) -> str:
        """The specification's name, or the number where it is not described."""
        if self.layout is not None:
            return self.layout.title
        kind = "Extended Capability" if self.extended else "Capability"
        return f"{kind} ID {self.id:#06x}" if self.extended else f"{kind} ID {self.id:#04x}"

    @property
    def size(self) -> int:
        """Bytes the capability says it occupies, at least its header's.

        The bare header where more is not known or captured.
        """
        header = 4 if self.extended else 2
        if self.layout is None:
            return header
        try:
            return max(self.layout.size(self), header)
        except ConfigRangeError:
            return header

    def raw(self, relative: int, width: int) -> int:
        """``width`` bytes at ``relative`` from the header (:class:`ConfigRangeError`)."""
        return self.config.read(self.offset + relative, width)

    def value(self, register: Register) -> int:
        """The register's raw value; raises :class:`ConfigRangeError` where not captured."""
        return self.config.read(self.offset + register.offset, register.width)

    def field(self, register: Register, name: str) -> int:
        """One field of a register; raises :class:`ConfigRangeError` where not captured."""
        return register.field(name).extract(self.value(register))

    def registers(self) -> tuple[Register, ...]:
        """The registers that exist in this instance and were captured."""
        layout = self.layout
        if layout is None:
            return ()
        found = [
            register
            for register in layout.registers
            if self._captured(register)
            and (layout.present is None or self._present(layout.present, register))
        ]
        for repeated in layout.repeated:
            try:
                found += filter(self._captured, repeated.expand(self))
            except ConfigRangeError:  # even how many there are was not captured
                continue
        return tuple(found)

    def _captured(self, register: Register) -> bool:
        # A standard capability cannot reach into the extended space, whatever its pointer says.
        start = self.offset + register.offset
        end = start + register.width
        return end <= (4096 if self.extended else 256) and self.config.has(start, register.width)

    def _present(self, present: Callable[[Capability, Register], bool], register: Register) -> bool:
        try:
            return present(self, register)
        except ConfigRangeError:
            return False

    def decode(self) -> dict[str, object]:
        """Everything known about the capability as plain data, ready for JSON.

        Never raises: registers that were not captured are left out.
        """
        decoded: dict[str, object] = {
            "id": self.id,
            "name": self.name,
            "title": self.title,
            "offset": self.offset,
            "version": self.version,
            "registers": {
                register.name: register.decode(self.value(register))
                for register in self.registers()
            },
        }
        if self.layout is not None and self.layout.derive is not None:
            try:
                decoded.update(self.layout.derive(self))
            except ConfigRangeError as error:
                decoded["truncated"] = str(error)
        return decoded

    def __repr__(self) -> str:
        return f"<Capability {self.name} at {self.offset:#x}>"
