"""Random instruction sequences for comparing engines, in 16-bit and 64-bit code."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from iced_x86 import Decoder, Instruction, Mnemonic, Register

CODE = 0x1000
DATA = 0x4000
"""RSI, RDI and RBP point into the page at DATA, RSP to its end."""
SIZE = 0x8000
FLAGS = 0x8D5
"""CF, PF, AF, ZF, SF and OF."""
REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)

_STRINGS = (0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF)
_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000,
                0xFFFFFFFF, 1 << 63, (1 << 63) - 1, (1 << 64) - 1)  # fmt: skip


class Program(NamedTuple):
    """A sequence and the state it begins with."""

    code: bytes
    count: int
    registers: dict[str, int]
    flags: int
    data: bytes
    undefined: int
    """Flags that no processor has to agree on at the end."""
    text: str


class Generator:
    """Makes programs for ``bits`` (16 or 64) from one random source."""

    def __init__(self, bits: int, random: Random) -> None:
        self.bits = bits
        self.random = random

    def program(self, length: int) -> Program:
        """About ``length`` instructions."""
        random = self.random
        undefined = 0
        pieces: list[bytes] = []
        texts: list[str] = []
        count = 0
        while len(pieces) < length:
            piece = self._piece()
            made = list(Decoder(self.bits, piece, ip=CODE))
            allowed = _flow_of_undefined(made, undefined)
            if allowed is None:
                continue
            before, undefined = undefined, allowed
            if random.randrange(6) == 0 and not before and len(made) == 1:
                # a jump over it: the flags it writes may or may not be written
                if undefined:
                    undefined = before
                    continue
                piece = bytes([0x70 | random.randrange(16), len(piece)]) + piece
                made = list(Decoder(self.bits, piece, ip=CODE))
            pieces.append(piece)
            count += len(made)
            texts += [str(each) for each in made]
        return Program(
            b"".join(pieces), count, self._registers(), random.getrandbits(12) & FLAGS,
            random.randbytes(4096), undefined, "; ".join(texts),
        )  # fmt: skip

    def _registers(self) -> dict[str, int]:
        random = self.random
        values = {
            name: random.choice(_INTERESTING)
            if random.randrange(3) == 0
            else random.getrandbits(64)
            for name in REGISTERS
        }
        if self.bits == 16:
            values = {name: value & 0xFFFFFFFF for name, value in values.items()}
            values |= dict.fromkeys(REGISTERS[8:], 0)
        for name in ("rsi", "rdi", "rbp"):
            values[name] = DATA + random.randrange(0x400, 0x800)
        values["rsp"] = DATA + 0xF00
        return values

    # -- one instruction ------------------------------------------------------------------------

    def _piece(self) -> bytes:
        while True:
            piece = self._candidate()
            made = list(Decoder(self.bits, piece, ip=CODE))
            total = sum(each.len for each in made)
            if total == len(piece) and all(map(_usable, made)):
                return piece

    def _candidate(self) -> bytes:
        random = self.random
        prefix = b"\x66" if random.randrange(4) == 0 else b""
        wide = 4 if (self.bits == 16) is bool(prefix) else 2
        if self.bits == 64 and random.randrange(2):
            rex = 0x40 | random.randrange(16) & 0b1101  # no index register
            prefix += bytes([rex])
            if rex & 8:
                wide = 4
        return random.choice(_KINDS)(self, prefix, wide)

    def modrm(self, reg: int | None = None, *, memory: bool = True, byte: bool = False) -> bytes:
        """Registers that may change, or memory that RSI, RDI or RBP and 8 bits reach."""
        random = self.random
        if reg is None:
            reg = random.randrange(8 if byte else 4)
        if memory and random.randrange(2):
            # with REX.B the base is another register: leave those to registers
            rm = random.choice((4, 5, 6) if self.bits == 16 else (5, 6, 7))
            return bytes([0x40 | reg << 3 | rm, random.randrange(256)])
        return bytes([0xC0 | reg << 3 | random.randrange(8 if byte else 4)])

    def immediate(self, width: int) -> bytes:
        """Random bytes, often of interest."""
        value = self.random.choice(_INTERESTING) if self.random.randrange(2) else None
        if value is None:
            return self.random.randbytes(width)
        return (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def _usable(instruction: Instruction) -> bool:
    """Valid, and in memory only where the data is: REX.B turns a base into another register."""
    return instruction.mnemonic != Mnemonic.INVALID and (
        instruction.is_string_instruction or instruction.memory_base not in _OTHER_BASES
    )


_OTHER_BASES = frozenset(
    getattr(Register, f"R{number}{letter}") for number in range(8, 16) for letter in ("", "D")
)


def _flow_of_undefined(made: list[Instruction], undefined: int) -> int | None:
    """Undefined flags after these instructions; ``None`` where one of them is read."""
    for each in made:
        if _arithmetic(each.rflags_read) & undefined:
            return None
        written = _arithmetic(each.rflags_written | each.rflags_cleared | each.rflags_set)
        left = _arithmetic(each.rflags_undefined)
        if each.mnemonic in _SHIFTS:
            left |= 1 | 0x800  # CF beyond the width; OF but for a count of 1
            written = 0  # a count of 0 writes nothing
        if each.is_string_instruction:
            written = 0
        undefined = undefined & ~written | left
    return undefined


_SHIFTS = frozenset(
    getattr(Mnemonic, name)
    for name in ("SHL", "SAL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR", "SHLD", "SHRD")
)


def _arithmetic(bits: int) -> int:
    """Flags from iced's numbering (OF, SF, ZF, AF, CF, PF from bit 0 on) to the register's."""
    places = (0x800, 0x80, 0x40, 0x10, 1, 4)
    return sum(place for number, place in enumerate(places) if bits >> number & 1)


# -- kinds of instructions: each makes the bytes after the prefixes -----------------------------


def _alu(g: Generator, prefix: bytes, wide: int) -> bytes:
    operation, form = g.random.randrange(8), g.random.randrange(6)
    if form < 4:
        return prefix + bytes([operation << 3 | form]) + g.modrm(byte=not form & 1)
    return prefix + bytes([operation << 3 | form]) + g.immediate(1 if form == 4 else wide)


def _alu_immediate(g: Generator, prefix: bytes, wide: int) -> bytes:
    opcode = g.random.choice((0x80, 0x81, 0x83))
    operand = g.modrm(g.random.randrange(8), byte=opcode == 0x80)
    return prefix + bytes([opcode]) + operand + g.immediate(wide if opcode == 0x81 else 1)


def _unary(g: Generator, prefix: bytes, wide: int) -> bytes:
    opcode = g.random.choice((0xF6, 0xF7, 0xFE, 0xFF))
    operation = g.random.choice((0, 1) if opcode >= 0xFE else (0, 2, 3, 4, 5, 6, 7))
    made = prefix + bytes([opcode]) + g.modrm(operation, byte=not opcode & 1)
    if operation == 0 and opcode < 0xFE:
        made += g.immediate(1 if opcode == 0xF6 else wide)
    return made


def _move(g: Generator, prefix: bytes, wide: int) -> bytes:
    opcode = g.random.choice((0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0xC6, 0xC7))
    if opcode >= 0xC6:
        operand = g.modrm(0, byte=opcode == 0xC6)
        return prefix + bytes([opcode]) + operand + g.immediate(1 if opcode == 0xC6 else wide)
    return prefix + bytes([opcode]) + g.modrm(byte=not opcode & 1)


def _lea(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    operand = g.modrm()
    while operand[0] >= 0xC0:
        operand = g.modrm()
    return prefix + b"\x8d" + operand


def _shift(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    opcode = g.random.choice((0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3))
    made = (
        prefix
        + bytes([opcode])
        + g.modrm(g.random.choice((0, 1, 2, 3, 4, 5, 7)), byte=not opcode & 1)
    )
    return made + (g.immediate(1) if opcode < 0xD0 else b"")


def _two_byte(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    bytes_too = (0xB0, 0xB6, 0xBE, 0xC0)
    opcode = g.random.choice(
        (0xA3, 0xAB, 0xAF, 0xB0, 0xB1, 0xB3, 0xB6, 0xB7, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF, 0xC0, 0xC1)
    )
    # a bit's number in a register reaches far beyond the operand in memory
    memory = opcode not in (0xA3, 0xAB, 0xB3, 0xBB)
    return (
        prefix
        + bytes([0x0F, opcode])
        + g.modrm(memory=memory, byte=opcode in bytes_too and opcode in (0xB0, 0xC0))
    )


def _bit_immediate(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    return prefix + b"\x0f\xba" + g.modrm(g.random.randrange(4, 8)) + g.immediate(1)


def _condition(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    code = g.random.randrange(16)
    if g.random.randrange(2):
        return prefix + bytes([0x0F, 0x90 | code]) + g.modrm(0, byte=True)
    return prefix + bytes([0x0F, 0x40 | code]) + g.modrm()


def _product(g: Generator, prefix: bytes, wide: int) -> bytes:
    opcode = g.random.choice((0x69, 0x6B))
    return prefix + bytes([opcode]) + g.modrm() + g.immediate(1 if opcode == 0x6B else wide)


def _double_shift(g: Generator, prefix: bytes, wide: int) -> bytes:
    # counts beyond 16 bits are undefined: constant ones only
    opcode = g.random.choice((0xA4, 0xAC))
    del wide
    return prefix + bytes([0x0F, opcode]) + g.modrm() + bytes([g.random.randrange(16)])


def _stack(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    prefix = prefix[:1] if prefix[:1] == b"\x66" else b""
    form = g.random.randrange(4)
    if form == 0:
        return prefix + bytes([0x50 | g.random.randrange(4)])
    if form == 1:
        return prefix + bytes([0x58 | g.random.randrange(4)])
    if form == 2:
        return prefix + b"\x6a" + g.immediate(1)
    return prefix + b"\xff" + g.modrm(6)


def _plain(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    return prefix + bytes([g.random.choice((0x98, 0x99, 0xF5, 0xF8, 0xF9, 0x90, 0xFC, 0xFD))])


def _exchange(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    if g.random.randrange(2) and prefix[:1] != b"\x66" and g.bits == 64:
        return prefix + bytes([0x0F, 0xC8 | g.random.randrange(4)])
    return prefix + bytes([0x90 | g.random.randrange(4)])


def _string(g: Generator, prefix: bytes, wide: int) -> bytes:
    del wide
    opcode = g.random.choice(_STRINGS)
    repeat = g.random.choice((b"", b"\xf3", b"\xf2" if opcode in (0xA6, 0xA7, 0xAE, 0xAF) else b""))
    set_count = b"\xb9" + g.random.randrange(12).to_bytes(2 if g.bits == 16 else 4, "little")
    return (set_count if repeat else b"") + repeat + prefix + bytes([opcode])


def _bit_string(g: Generator, prefix: bytes, wide: int) -> bytes:
    """BT and its kin on memory, with a bit number in CX that reaches beyond the operand."""
    low = -2000 if wide == 4 and not (prefix and prefix[-1] & 8) and g.bits == 64 else 0
    number = g.random.randrange(low, 2000)
    size = 2 if g.bits == 16 else 4
    count = b"\xb9" + (number & (1 << 8 * size) - 1).to_bytes(size, "little")
    operand = g.modrm(1)
    while operand[0] >= 0xC0:
        operand = g.modrm(1)
    plain = prefix[:1] if prefix[:1] == b"\x66" else b""
    return count + plain + bytes([0x0F, g.random.choice((0xA3, 0xAB, 0xB3, 0xBB))]) + operand


def _call(g: Generator, prefix: bytes, wide: int) -> bytes:
    """A routine that only returns, jumped over afterwards; or LOOP and JCXZ to what follows.

    Not LOOPE and LOOPNE: Unicorn's lose the carry of what is before them.
    """
    del prefix, wide
    if g.random.randrange(2):
        return bytes([g.random.choice((0xE2, 0xE3)), 0])
    distance = b"\x02\x00" if g.bits == 16 else b"\x02\x00\x00\x00"
    return b"\xe8" + distance + b"\xeb\x01\xc3"


def _flags(g: Generator, prefix: bytes, wide: int) -> bytes:
    """PUSHF, SAHF, LAHF."""
    del prefix, wide
    return bytes([g.random.choice((0x9C, 0x9E, 0x9F))])


_KINDS = (
    *(_bit_string, _call, _flags),
    *(_alu, _alu, _alu_immediate, _alu_immediate, _unary, _move, _move, _lea, _shift, _shift),
    *(_two_byte, _two_byte, _bit_immediate, _condition, _condition, _product, _double_shift),
    *(_stack, _plain, _exchange, _string),
)
