"""Writing the Python source of a block: operands, addresses, flags and where they are needed."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from iced_x86 import MemorySizeExt, OpKind, Register, RegisterExt

from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.core import CS, FS, Mode

MASKS: Final = {1: "0xFF", 2: "0xFFFF", 4: "0xFFFFFFFF", 8: "0xFFFFFFFFFFFFFFFF"}
SIGNS: Final = {width: f"{1 << 8 * width - 1:#x}" for width in MASKS}
READERS: Final = {1: "rb", 2: "rw", 4: "rd", 8: "rq"}
WRITERS: Final = {1: "wb", 2: "ww", 4: "wd", 8: "wq"}
_SEGMENTS: Final = {
    getattr(Register, name): number
    for number, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS"))
}
_HIGH_BYTES: Final[dict[int, int]] = {
    Register.AH: 0,
    Register.CH: 1,
    Register.DH: 2,
    Register.BH: 3,
}
_IMMEDIATES: Final = range(OpKind.IMMEDIATE8, OpKind.IMMEDIATE32TO64 + 1)


def _registers() -> dict[int, tuple[int, int]]:
    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")
    numbers = {getattr(Register, name): number for number, name in enumerate(names)}
    numbers |= {getattr(Register, f"R{number}"): number for number in range(8, 16)}
    found: dict[int, tuple[int, int]] = {}
    for register in (value for name, value in vars(Register).items() if name.isupper()):
        if RegisterExt.is_gpr(register) and register not in _HIGH_BYTES:
            full = RegisterExt.full_register(register)
            found[register] = (numbers[full], RegisterExt.size(register))
    return found


REGISTERS: Final = _registers()
"""Register of iced-x86 → number, width in bytes; without AH, CH, DH and BH."""


class Setter(NamedTuple):
    """The last instruction of the block that set all flags (or, ``carry`` false, all but CF)."""

    kind: int
    width: int
    number: int
    """Its operands and result are the variables a, b and x with this suffix."""
    carry: bool


class Source:
    """The lines of one block.

    ``instruction`` is the current one, ``index`` its number; ``last`` says that nothing follows
    it, ``modifies`` that what it loads it stores again, ``needed`` whether anything reads the flags
    (and the carry) that it sets.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.lines: list[str] = []
        self.indent = 1
        self.instruction: Any = None
        self.index = 0
        self.count = 0
        self.last = False
        self.modifies = False
        self.needed = (True, True)
        self.setter: Setter | None = None
        self.start = 0
        self.loops = False
        self.ended = False

    def add(self, line: str) -> None:
        """One line, at the present depth."""
        self.lines.append(" " * self.indent + line)

    # -- registers ------------------------------------------------------------------------------

    def register(self, register: int) -> str:
        """Expression for a register's value."""
        if register in REGISTERS:
            number, width = REGISTERS[register]
            return f"r[{number}]" if width == 8 else f"(r[{number}] & {MASKS[width]})"
        return f"(r[{_HIGH_BYTES[register]}] >> 8 & 0xFF)"

    def set_register(self, register: int, value: str) -> None:
        """Store ``value``, an expression that fits the width."""
        if register not in REGISTERS:
            number = _HIGH_BYTES[register]
            self.add(f"r[{number}] = r[{number}] & 0xFFFFFFFFFFFF00FF | ({value}) << 8")
            return
        self.set_number(*REGISTERS[register], value)

    def set_number(self, number: int, width: int, value: str) -> None:
        """Store the low ``width`` bytes of general register ``number``."""
        if width >= 4:
            self.add(f"r[{number}] = {value}")
        else:
            keep = {1: "0xFFFFFFFFFFFFFF00", 2: "0xFFFFFFFFFFFF0000"}[width]
            self.add(f"r[{number}] = r[{number}] & {keep} | ({value})")

    def number(self, number: int, width: int) -> str:
        """Expression for the low ``width`` bytes of general register ``number``."""
        return f"r[{number}]" if width == 8 else f"(r[{number}] & {MASKS[width]})"

    # -- memory ---------------------------------------------------------------------------------

    def effective(self) -> str:
        """Expression for the offset of the memory operand in its segment."""
        ins = self.instruction
        base, index = ins.memory_base, ins.memory_index
        displacement = ins.memory_displacement
        if base in (Register.RIP, Register.EIP):
            return f"{displacement:#x}"
        size = ins.memory_displ_size
        width = self.address_width()
        terms = []
        for register, scale in ((base, 1), (index, ins.memory_index_scale)):
            if register == Register.NONE:
                continue
            name = self.register(register)
            terms.append(f"{name} * {scale}" if scale > 1 else name)
        if (displacement and size) or not terms:
            top = 1 << 8 * width - 1
            displacement &= 2 * top - 1
            if displacement & top and terms:
                displacement -= 2 * top
            terms.append(f"{displacement:#x}" if displacement >= 0 else f"({displacement:#x})")
        if len(terms) == 1 and "*" not in terms[0]:
            return terms[0]
        return f"({' + '.join(terms)} & {MASKS[width]})"

    def address_width(self) -> int:
        """Bytes of an address of the current instruction."""
        ins = self.instruction
        for register in (ins.memory_base, ins.memory_index):
            if register in REGISTERS:
                return REGISTERS[register][1]
            if register == Register.RIP:
                return 8
            if register == Register.EIP:
                return 4
        size: int = ins.memory_displ_size
        return size or self.mode.bits // 8

    def linear(self, segment: int, offset: str) -> str:
        """Expression for a linear address in segment number ``segment``."""
        if self.mode.bits == 64:
            if segment < FS:
                return offset
            return f"(B[{segment}] + {offset} & {MASKS[8]})"
        return f"(B[{segment}] + {offset} & {MASKS[4]})"

    def address(self) -> str:
        """Put the linear address of the memory operand into ``m``."""
        segment = _SEGMENTS[self.instruction.memory_segment]
        self.add(f"m = {self.linear(segment, self.effective())}")
        return "m"

    def load(self, target: str, width: int, address: str = "m") -> None:
        """Load into variable ``target`` from the linear address in variable ``address``."""
        slow = ("ldm" if self.modifies else "ld") + ("l" if self.last else "")
        reader = READERS[width]
        page = f"(e := {reader}.get({address} >> 12)) is not None"
        if width == 1:
            fast = f"e[{address} & 4095] if {page}"
        else:
            shift = {2: 1, 4: 2, 8: 3}[width]
            fast = f"e[({address} & 4095) >> {shift}] if not {address} & {width - 1} and {page}"
        self.add(f"{target} = {fast} else {slow}({address}, {width})")

    def store(self, width: int, value: str, address: str = "m") -> None:
        """Store ``value`` (a name or a constant) at the linear address in ``address``."""
        slow = "stl" if self.last else "st"
        self.add(f"e = {WRITERS[width]}.get({address} >> 12)")
        misaligned = f" or {address} & {width - 1}" if width > 1 else ""
        shift = {1: "", 2: " >> 1", 4: " >> 2", 8: " >> 3"}[width]
        self.add(f"if e is None{misaligned}: {slow}({address}, {width}, {value})")
        self.add(f"else: e[({address} & 4095){shift}] = {value}")

    # -- operands -------------------------------------------------------------------------------

    def width(self, operand: int = 0) -> int:
        """Bytes of an operand."""
        ins = self.instruction
        kind = ins.op_kind(operand)
        if kind == OpKind.REGISTER:
            return RegisterExt.size(ins.op_register(operand))
        return MemorySizeExt.size(ins.memory_size)

    def is_memory(self, operand: int) -> bool:
        """Whether an operand is in memory."""
        found: bool = self.instruction.op_kind(operand) == OpKind.MEMORY
        return found

    def read(self, operand: int, target: str, width: int | None = None) -> str:
        """A name or constant with an operand's value; memory and registers go into ``target``."""
        ins = self.instruction
        kind = ins.op_kind(operand)
        if kind == OpKind.REGISTER:
            self.add(f"{target} = {self.register(ins.op_register(operand))}")
            return target
        if kind == OpKind.MEMORY:
            self.address()
            self.load(target, width or self.width(operand))
            return target
        return f"{self.immediate(operand, width or self.width(0)):#x}"

    def immediate(self, operand: int, width: int) -> int:
        """An immediate operand, extended to ``width`` bytes."""
        ins = self.instruction
        if ins.op_kind(operand) not in _IMMEDIATES:
            raise NotImplementedError
        value: int = ins.immediate(operand)
        return value & (1 << 8 * width) - 1

    def write(self, operand: int, value: str) -> None:
        """Store ``value``, a name or constant; the address in ``m`` is there from reading."""
        ins = self.instruction
        if ins.op_kind(operand) == OpKind.REGISTER:
            self.set_register(ins.op_register(operand), value)
        else:
            self.store(self.width(operand), value)

    # -- flags ----------------------------------------------------------------------------------

    def set_lazy(
        self, kind: int, width: int, a: str, b: str, x: str, *, carry: bool = True
    ) -> None:
        """Leave the flags to be worked out, where anything needs them."""
        flags, carries = self.needed
        targets = ("c.L = " if flags else "") + ("c.C = " if carries and carry else "")
        if targets:
            self.add(f"{targets}({fl.code(kind, width)}, {a}, {b}, {x})")
        plain = (a, b, x) == (f"a{self.index}", f"b{self.index}", f"x{self.index}")
        self.setter = Setter(kind, width, self.index, carry) if plain else None

    def condition(self, number: int) -> str:
        """Expression for a condition by its number in the encoding (0 = O, 1 = NO, 2 = B …)."""
        fast = self._fast_condition(number >> 1)
        if fast is None:
            self.add("f = c.flags()")
            fast = _CONDITIONS[number >> 1]
        return f"not ({fast})" if number & 1 else fast

    def _fast_condition(self, pair: int) -> str | None:
        setter = self.setter
        if setter is None:
            return None
        kind, width, index, carry = setter
        a, b, x = f"a{index}", f"b{index}", f"x{index}"
        sign = SIGNS[width]
        if pair == 2:
            return f"not {x}"
        if pair == 4:
            return f"{x} & {sign}"
        if kind == fl.SUB and carry:
            signed = f"({a} ^ {sign}) {{}} ({b} ^ {sign})"
            return {
                1: f"{a} < {b}",
                3: f"{a} <= {b}",
                6: signed.format("<"),
                7: signed.format("<="),
            }.get(pair)
        if kind == fl.LOGIC:
            return {
                0: "0",
                1: "0",
                3: f"not {x}",
                6: f"{x} & {sign}",
                7: f"not {x} or {x} & {sign}",
            }.get(pair)
        return None

    # -- end ------------------------------------------------------------------------------------

    def go(self, target: str, *, known: int | None = None) -> None:
        """Leave the block for ``target``; ``known`` is that address where it is constant."""
        if known is not None and known == self.start and self.count == self.index + 1:
            self.loops = True
            self.add(f"n -= {self.count}")
            self.add(f"if n >= {self.count}: continue")
            self.add(f"c.rip = {target}")
            self.add("return n")
            return
        self.add(f"c.rip = {target}")
        self.add(f"return n - {self.index + 1}")

    def next(self) -> str:
        """The address of the instruction after this one, as a constant."""
        return f"{self.next_rip():#x}"

    def next_rip(self) -> int:
        """The address of the instruction after this one."""
        found: int = self.instruction.next_ip
        return found & (1 << self.mode.bits) - 1

    def stay(self) -> None:
        """End the block behind this instruction."""
        self.go(self.next())
        self.ended = True


_CONDITIONS: Final = (
    "f & 0x800",
    "f & 1",
    "f & 0x40",
    "f & 0x41",
    "f & 0x80",
    "f & 4",
    "(f >> 7 ^ f >> 11) & 1",
    "f & 0x40 or (f >> 7 ^ f >> 11) & 1",
)
__all__ = ["CS", "MASKS", "READERS", "REGISTERS", "SIGNS", "WRITERS", "Setter", "Source"]
