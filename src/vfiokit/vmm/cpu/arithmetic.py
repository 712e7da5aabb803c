"""Python source for instructions that move and compute.

An instruction changes nothing before the last of its accesses to memory that can fail, so that it
can be repeated from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from iced_x86 import Mnemonic, OpKind, Register

from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.source import MASKS, REGISTERS, SIGNS, Source

Emitter: TypeAlias = Callable[[Source], None]

_SEGMENT_REGISTERS: Final = {
    getattr(Register, name): number
    for number, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS"))
}
_CONTROL: Final = {getattr(Register, f"CR{number}"): number for number in range(16)}
_DEBUG: Final = {getattr(Register, f"DR{number}"): number for number in range(8)}


def _mov(s: Source) -> None:
    ins = s.instruction
    if ins.op_kind(0) == OpKind.REGISTER and ins.op_register(0) not in REGISTERS:
        target = ins.op_register(0)
        if target in _SEGMENT_REGISTERS:
            value = s.read(1, "v", 2)
            s.add(f"sy.load_segment({_SEGMENT_REGISTERS[target]}, {value} & 0xFFFF)")
            return s.stay()
        if target in _CONTROL:
            s.add(f"sy.write_control({_CONTROL[target]}, {s.read(1, 'v')})")
            return s.stay()
        if target in _DEBUG:
            s.add(f"sy.write_debug({_DEBUG[target]}, {s.read(1, 'v')})")
            return s.stay()
    if ins.op_kind(1) == OpKind.REGISTER:
        source = ins.op_register(1)
        if source in _SEGMENT_REGISTERS:
            s.add(f"v = sy.selector({_SEGMENT_REGISTERS[source]})")
        elif source in _CONTROL:
            s.add(f"v = sy.read_control({_CONTROL[source]})")
        elif source in _DEBUG:
            s.add(f"v = sy.read_debug({_DEBUG[source]})")
        else:
            s.add(f"v = {s.register(source)}")
        if s.is_memory(0):
            s.address()
            return s.store(2 if source in _SEGMENT_REGISTERS else s.width(0), "v")
        return s.set_register(ins.op_register(0), "v")
    value = s.read(1, "v")
    if s.is_memory(0):
        s.address()
    s.write(0, value)
    return None


def _lea(s: Source) -> None:
    width = s.width(0)
    s.add(f"v = {s.effective()} & {MASKS[width]}")
    s.set_register(s.instruction.op_register(0), "v")


def _movzx(s: Source) -> None:
    s.write(0, s.read(1, "v"))


def _movsx(s: Source) -> None:
    sign = SIGNS[s.width(1)]
    value = s.read(1, "v")
    s.add(f"v = ({value} ^ {sign}) - {sign} & {MASKS[s.width(0)]}")
    s.write(0, "v")


def _xchg(s: Source) -> None:
    memory = 0 if s.is_memory(0) else 1
    first = s.read(memory, "v")
    second = s.read(1 - memory, "w")
    s.write(memory, second)
    s.write(1 - memory, first)


def _bswap(s: Source) -> None:
    width = s.width(0)
    s.add(f"v = int.from_bytes(({s.read(0, 'v')}).to_bytes({width}, 'little'), 'big')")
    s.write(0, "v")


def _extend_accumulator(width: int) -> Emitter:
    """CBW, CWDE, CDQE: to ``width`` bytes from half of it."""

    def emit(s: Source) -> None:
        sign = SIGNS[width // 2]
        s.add(f"v = ({s.number(0, width // 2)} ^ {sign}) - {sign} & {MASKS[width]}")
        s.set_number(0, width, "v")

    return emit


def _sign_to_rdx(width: int) -> Emitter:
    """CWD, CDQ, CQO."""

    def emit(s: Source) -> None:
        s.add(f"v = {MASKS[width]} if r[0] & {SIGNS[width]} else 0")
        s.set_number(2, width, "v")

    return emit


# -- arithmetic and logic -----------------------------------------------------------------------


def _binary(expression: str, kind: int, *, store: bool = True) -> Emitter:
    """``expression`` of a and b; masked here where it may leave the width."""

    def emit(s: Source) -> None:
        i, width = s.index, s.width(0)
        _two_operands(s)
        if "C" in expression:
            s.add("f = carry(c.C)")
        made = expression.replace("C", "f").replace("a", f"a{i}").replace("b", f"b{i}")
        s.add(f"x{i} = {made}" + (f" & {MASKS[width]}" if kind != fl.LOGIC else ""))
        if store:
            s.write(0, f"x{i}")
        s.set_lazy(kind, width, f"a{i}", f"b{i}", f"x{i}")
        if "C" in expression:
            s.setter = None  # with a carry in, comparing the operands says nothing

    return emit


def _two_operands(s: Source) -> None:
    i = s.index
    if s.is_memory(1):  # the address is needed afterwards only for operand 0
        second = s.read(1, f"b{i}")
        first = s.read(0, f"a{i}")
    else:
        first = s.read(0, f"a{i}")
        second = s.read(1, f"b{i}")
    if first != f"a{i}":
        s.add(f"a{i} = {first}")
    if second != f"b{i}":
        s.add(f"b{i} = {second}")


def _unary(expression: str, kind: int) -> Emitter:
    """INC, DEC and NEG."""

    def emit(s: Source) -> None:
        i, width = s.index, s.width(0)
        s.read(0, f"a{i}")
        s.add(f"b{i} = 1" if expression != "-a" else f"b{i}, a{i} = a{i}, 0")
        made = f"-b{i}" if expression == "-a" else expression.replace("a", f"a{i}")
        s.add(f"x{i} = {made} & {MASKS[width]}")
        s.write(0, f"x{i}")
        s.set_lazy(kind, width, f"a{i}", f"b{i}", f"x{i}", carry=expression == "-a")

    return emit


def _not(s: Source) -> None:
    s.read(0, "v")
    s.add(f"v ^= {MASKS[s.width(0)]}")
    s.write(0, "v")


def _xadd(s: Source) -> None:
    i, width = s.index, s.width(0)
    s.read(0, f"a{i}")
    s.read(1, f"b{i}")
    s.add(f"x{i} = a{i} + b{i} & {MASKS[width]}")
    if s.is_memory(0):
        s.write(0, f"x{i}")
        s.write(1, f"a{i}")
    else:
        s.write(1, f"a{i}")
        s.write(0, f"x{i}")
    s.set_lazy(fl.ADD, width, f"a{i}", f"b{i}", f"x{i}")


def _cmpxchg(s: Source) -> None:
    i, width = s.index, s.width(0)
    s.add(f"a{i} = {s.number(0, width)}")
    s.read(0, f"b{i}")
    s.read(1, "v")
    s.add(f"x{i} = a{i} - b{i} & {MASKS[width]}")
    s.add(f"w = b{i} if x{i} else v")
    s.write(0, "w")  # the processor writes in both cases
    s.add(f"if x{i}:")
    s.indent += 1
    s.set_number(0, width, f"b{i}")
    s.indent -= 1
    s.set_lazy(fl.SUB, width, f"a{i}", f"b{i}", f"x{i}")


# -- shifts -------------------------------------------------------------------------------------


def _shift(kind: int) -> Emitter:
    def emit(s: Source) -> None:
        i, width = s.index, s.width(0)
        limit = 63 if width == 8 else 31
        constant = _shift_count(s)
        if constant is not None and not constant & limit:
            s.read(0, "v")
            s.write(0, "v")
            return
        s.read(0, f"a{i}")
        s.add(f"b{i} = " + (f"{constant & limit}" if constant is not None else f"r[1] & {limit}"))
        if kind == fl.SHL:
            s.add(f"x{i} = a{i} << b{i} & {MASKS[width]}")
        elif kind == fl.SHR:
            s.add(f"x{i} = a{i} >> b{i}")
        else:
            sign = SIGNS[width]
            s.add(f"x{i} = (a{i} ^ {sign}) - {sign} >> b{i} & {MASKS[width]}")
        s.write(0, f"x{i}")
        if constant is None:
            s.add(f"if b{i}: c.L = c.C = ({fl.code(kind, width)}, a{i}, b{i}, x{i})")
            s.setter = None
        else:
            s.set_lazy(kind, width, f"a{i}", f"b{i}", f"x{i}")

    return emit


def _shift_count(s: Source, operand: int = 1) -> int | None:
    """The constant count of a shift; ``None`` when it is in CL."""
    if s.instruction.op_kind(operand) == OpKind.REGISTER:
        return None
    return s.immediate(operand, 1)


def _rotate(function: str, *, left: bool) -> Emitter:
    def emit(s: Source) -> None:
        width = s.width(0)
        constant = _shift_count(s)
        count = "r[1]" if constant is None else f"{constant}"
        s.read(0, "v")
        s.add(f"w = {count} & {63 if width == 8 else 31}")
        s.add("f = c.flags()")
        s.add(f"if w: v, f = {function}({left}, v, w, {width}, f)")
        s.write(0, "v")
        s.add("if w: c.set_flags(f)")
        s.setter = None

    return emit


def _double_shift(*, left: bool) -> Emitter:
    def emit(s: Source) -> None:
        width = s.width(0)
        constant = _shift_count(s, 2)
        count = "r[1]" if constant is None else f"{constant}"
        s.read(0, "v")
        s.add(f"w = {count} & {63 if width == 8 else 31}")
        s.add("f = c.flags()")
        other = s.register(s.instruction.op_register(1))
        s.add(f"if w: v, f = double_shift({left}, v, {other}, w, {width}, f)")
        s.write(0, "v")
        s.add("if w: c.set_flags(f)")
        s.setter = None

    return emit


# -- multiply and divide ------------------------------------------------------------------------


def _mul(s: Source) -> None:
    _wide_product(s, signed=False)


def _imul(s: Source) -> None:
    if s.instruction.op_count == 1:
        return _wide_product(s, signed=True)
    width, sign = s.width(0), SIGNS[s.width(0)]
    first = s.instruction.op_count - 2
    s.add(f"v = {s.read(first, 'v')}")
    s.add(f"w = {s.read(first + 1, 'w')}")
    s.add(f"v = ((v ^ {sign}) - {sign}) * ((w ^ {sign}) - {sign})")
    s.add(f"w = v & {MASKS[width]}")
    s.write(0, "w")
    return _product_flags(s, f"v != (w ^ {sign}) - {sign}", width)


def _wide_product(s: Source, *, signed: bool) -> None:
    width, sign = s.width(0), SIGNS[s.width(0)]
    s.read(0, "v")
    s.add(f"w = {s.number(0, width)}")
    if signed:
        s.add(f"v = ((v ^ {sign}) - {sign}) * ((w ^ {sign}) - {sign})")
    else:
        s.add("v *= w")
    s.add(f"w = v & {MASKS[width]}")
    if width == 1:
        s.set_number(0, 2, "v & 0xFFFF")
    else:
        s.set_number(0, width, "w")
        s.set_number(2, width, f"v >> {8 * width} & {MASKS[width]}")
    _product_flags(s, f"v != (w ^ {sign}) - {sign}" if signed else "v != w", width)


def _product_flags(s: Source, overflow: str, width: int) -> None:
    # SF, ZF, AF and PF are undefined; they follow the low half, as on many processors.
    s.add(f"f = fl_arithmetic(({fl.code(fl.LOGIC, width)}, w, 0, w))")
    s.add(f"c.set_flags(f | {fl.CF | fl.OF} if {overflow} else f)")
    s.setter = None


def _divide(function: str) -> Emitter:
    def emit(s: Source) -> None:
        width = s.width(0)
        s.read(0, "v")
        if width == 1:
            s.add(f"v, w = {function}({s.number(0, 2)}, v, 1)")
            s.set_number(0, 2, "w << 8 | v")
        else:
            high = s.number(2, width)
            s.add(f"v, w = {function}({high} << {8 * width} | {s.number(0, width)}, v, {width})")
            s.set_number(0, width, "v")
            s.set_number(2, width, "w")

    return emit


# -- bits ---------------------------------------------------------------------------------------


def _bit(change: str) -> Emitter:
    """BT, BTS, BTR and BTC; ``change`` makes the new value of v from the bit w."""

    def emit(s: Source) -> None:
        width = s.width(0)
        if s.is_memory(0):
            s.address()
        if s.is_memory(0) and s.instruction.op_kind(1) == OpKind.REGISTER:
            # The offset is signed and reaches any distance from the operand.
            sign = SIGNS[width]
            s.add(f"w = ({s.register(s.instruction.op_register(1))} ^ {sign}) - {sign}")
            s.add(f"m = m + (w >> {width.bit_length() + 2}) * {width} & {MASKS[s.address_width()]}")
            s.add(f"w &= {8 * width - 1}")
        elif s.instruction.op_kind(1) == OpKind.REGISTER:
            s.add(f"w = {s.register(s.instruction.op_register(1))} & {8 * width - 1}")
        else:
            s.add(f"w = {s.immediate(1, 1) & 8 * width - 1}")
        if s.is_memory(0):
            s.load("v", width)
        else:
            s.read(0, "v")
        s.add("f = c.flags() & -2 | v >> w & 1")
        if change:
            s.add(f"v = {change}")
            s.write(0, "v")
        s.add("c.set_flags(f)")
        s.setter = None

    return emit


def _bit_scan(expression: str) -> Emitter:
    """BSF and BSR: the target keeps its value, extended, when the source is 0."""

    def emit(s: Source) -> None:
        s.read(1, "v")
        s.read(0, "w")
        s.add("f = c.flags() & -65 | (0 if v else 64)")
        s.add(f"if v: w = {expression}")
        s.write(0, "w")
        s.add("c.set_flags(f)")
        s.setter = None

    return emit


def _popcnt(s: Source) -> None:
    s.read(1, "v")
    s.add("v = v.bit_count()")
    s.write(0, "v")
    s.add("c.set_flags(0 if v else 64)")
    s.setter = None


# -- conditions and single flags ----------------------------------------------------------------


def _setcc(s: Source) -> None:
    s.add(f"v = 1 if {s.condition(s.instruction.condition_code - 1)} else 0")
    if s.is_memory(0):
        s.address()
    s.write(0, "v")


def _cmovcc(s: Source) -> None:
    # The load happens in any case, and a 32-bit target is extended in any case.
    s.read(1, "v")
    s.read(0, "w")
    s.add(f"if not ({s.condition(s.instruction.condition_code - 1)}): v = w")
    s.write(0, "v")


def _carry(expression: str) -> Emitter:
    def emit(s: Source) -> None:
        s.add(f"c.set_flags({expression})")
        s.setter = None

    return emit


def _lahf(s: Source) -> None:
    s.add("f = c.flags() & 0xD5 | 2")
    s.set_register(Register.AH, "f")


def _sahf(s: Source) -> None:
    s.add("c.set_flags(c.flags() & 0x800 | r[0] >> 8 & 0xD5)")
    s.setter = None


def _direction(expression: str) -> Emitter:
    def emit(s: Source) -> None:
        s.add(f"c.system_flags {expression}")

    return emit


def _nothing(s: Source) -> None:
    s.add("pass")


_CONDITIONS = (
    "O",
    "NO",
    "B",
    "AE",
    "E",
    "NE",
    "BE",
    "A",
    "S",
    "NS",
    "P",
    "NP",
    "L",
    "GE",
    "LE",
    "G",
)

EMITTERS: Final[dict[int, Emitter]] = {
    Mnemonic.MOV: _mov,
    Mnemonic.LEA: _lea,
    Mnemonic.MOVZX: _movzx,
    Mnemonic.MOVSX: _movsx,
    Mnemonic.MOVSXD: _movsx,
    Mnemonic.XCHG: _xchg,
    Mnemonic.BSWAP: _bswap,
    Mnemonic.CBW: _extend_accumulator(2),
    Mnemonic.CWDE: _extend_accumulator(4),
    Mnemonic.CDQE: _extend_accumulator(8),
    Mnemonic.CWD: _sign_to_rdx(2),
    Mnemonic.CDQ: _sign_to_rdx(4),
    Mnemonic.CQO: _sign_to_rdx(8),
    Mnemonic.ADD: _binary("a + b", fl.ADD),
    Mnemonic.ADC: _binary("a + b + C", fl.ADD),
    Mnemonic.SUB: _binary("a - b", fl.SUB),
    Mnemonic.SBB: _binary("a - b - C", fl.SUB),
    Mnemonic.CMP: _binary("a - b", fl.SUB, store=False),
    Mnemonic.AND: _binary("a & b", fl.LOGIC),
    Mnemonic.OR: _binary("a | b", fl.LOGIC),
    Mnemonic.XOR: _binary("a ^ b", fl.LOGIC),
    Mnemonic.TEST: _binary("a & b", fl.LOGIC, store=False),
    Mnemonic.INC: _unary("a + 1", fl.ADD),
    Mnemonic.DEC: _unary("a - 1", fl.SUB),
    Mnemonic.NEG: _unary("-a", fl.SUB),
    Mnemonic.NOT: _not,
    Mnemonic.XADD: _xadd,
    Mnemonic.CMPXCHG: _cmpxchg,
    Mnemonic.SHL: _shift(fl.SHL),
    Mnemonic.SAL: _shift(fl.SHL),
    Mnemonic.SHR: _shift(fl.SHR),
    Mnemonic.SAR: _shift(fl.SAR),
    Mnemonic.ROL: _rotate("rotate", left=True),
    Mnemonic.ROR: _rotate("rotate", left=False),
    Mnemonic.RCL: _rotate("rotate_through_carry", left=True),
    Mnemonic.RCR: _rotate("rotate_through_carry", left=False),
    Mnemonic.SHLD: _double_shift(left=True),
    Mnemonic.SHRD: _double_shift(left=False),
    Mnemonic.MUL: _mul,
    Mnemonic.IMUL: _imul,
    Mnemonic.DIV: _divide("divide"),
    Mnemonic.IDIV: _divide("divide_signed"),
    Mnemonic.BT: _bit(""),
    Mnemonic.BTS: _bit("v | 1 << w"),
    Mnemonic.BTR: _bit("v & ~(1 << w)"),
    Mnemonic.BTC: _bit("v ^ 1 << w"),
    Mnemonic.BSF: _bit_scan("(v & -v).bit_length() - 1"),
    Mnemonic.BSR: _bit_scan("v.bit_length() - 1"),
    Mnemonic.POPCNT: _popcnt,
    Mnemonic.CLC: _carry("c.flags() & -2"),
    Mnemonic.STC: _carry("c.flags() | 1"),
    Mnemonic.CMC: _carry("c.flags() ^ 1"),
    Mnemonic.LAHF: _lahf,
    Mnemonic.SAHF: _sahf,
    Mnemonic.CLD: _direction("&= -1025"),
    Mnemonic.STD: _direction("|= 1024"),
    Mnemonic.NOP: _nothing,
    Mnemonic.PAUSE: _nothing,
    Mnemonic.ENDBR64: _nothing,
    Mnemonic.ENDBR32: _nothing,
    Mnemonic.MFENCE: _nothing,
    Mnemonic.LFENCE: _nothing,
    Mnemonic.SFENCE: _nothing,
    Mnemonic.PREFETCHT0: _nothing,
    Mnemonic.PREFETCHT1: _nothing,
    Mnemonic.PREFETCHT2: _nothing,
    Mnemonic.PREFETCHNTA: _nothing,
    Mnemonic.PREFETCHW: _nothing,
}
EMITTERS.update({getattr(Mnemonic, f"SET{name}"): _setcc for name in _CONDITIONS})
EMITTERS.update({getattr(Mnemonic, f"CMOV{name}"): _cmovcc for name in _CONDITIONS})
