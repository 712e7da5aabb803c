"""Arithmetic flags, worked out only when somebody looks.

An instruction leaves ``(code, a, b, result)`` behind: what it did to which operands. Most of
these are overwritten before anything reads a flag. Carry has its own such tuple, because INC and
DEC leave it alone. Source: Intel SDM volume 1, 3.4.3, and the instructions' pages in volume 2.
"""

from __future__ import annotations

from typing import Final, TypeAlias

CF: Final = 0x001
PF: Final = 0x004
AF: Final = 0x010
ZF: Final = 0x040
SF: Final = 0x080
TF: Final = 0x100
IF: Final = 0x200
DF: Final = 0x400
OF: Final = 0x800
IOPL: Final = 0x3000
NT: Final = 0x4000
RF: Final = 0x1_0000
VM: Final = 0x2_0000
AC: Final = 0x4_0000
ID: Final = 0x20_0000

ARITHMETIC: Final = CF | PF | AF | ZF | SF | OF
"""The flags kept lazily; the others are ordinary bits."""
WRITABLE: Final = 0x24_7FD5
"""Flags POPF and IRET may load (without VM, RF, VIF, VIP)."""

Lazy: TypeAlias = tuple[int, int, int, int]

EXPLICIT: Final = 0
"""``a`` is the flags themselves."""
ADD: Final = 1
SUB: Final = 2
LOGIC: Final = 3
SHL: Final = 4
SHR: Final = 5
SAR: Final = 6

WIDTHS: Final = {1: 0, 2: 1, 4: 2, 8: 3}
_PARITY: Final = tuple(0 if bin(value).count("1") & 1 else PF for value in range(256))


def code(kind: int, width: int) -> int:
    """``kind`` with the width in bytes folded in."""
    return kind << 2 | WIDTHS[width]


def carry(lazy: Lazy) -> int:
    """CF, 0 or 1.

    Carry out of an addition is where both operands have the top bit, or one has it and the sum has
    not; this holds with a carry in as well, and with the first operand inverted for a borrow.
    """
    kind, a, b, x = lazy
    if kind == EXPLICIT:
        return a & CF
    top = (8 << (kind & 3)) - 1
    kind >>= 2
    if kind == ADD:
        return ((a & b) | ((a | b) & ~x)) >> top & 1
    if kind == SUB:
        return ((~a & b) | ((~a | b) & x)) >> top & 1
    if kind == LOGIC:
        return 0
    if kind == SHL:
        return a >> (top + 1 - b) & 1 if b <= top + 1 else 0
    if kind == SAR and a >> top:
        a |= -1 << top  # the sign goes on for ever
    return a >> (b - 1) & 1


def arithmetic(lazy: Lazy) -> int:
    """PF, AF, ZF, SF and OF of the last instruction that set them."""
    kind, a, b, x = lazy
    if kind == EXPLICIT:
        return a & ARITHMETIC & ~CF
    top = (8 << (kind & 3)) - 1
    flags = _PARITY[x & 0xFF]
    if not x:
        flags |= ZF
    elif x >> top:
        flags |= SF
    kind >>= 2
    if kind == ADD:
        flags |= (a ^ b ^ x) & AF
        return flags | (OF if (a ^ x) & (b ^ x) & 1 << top else 0)
    if kind == SUB:
        flags |= (a ^ b ^ x) & AF
        return flags | (OF if (a ^ b) & (a ^ x) & 1 << top else 0)
    if kind == SHL:
        last = a >> (top + 1 - b) & 1 if b <= top + 1 else 0
        return flags | (OF if (x >> top & 1) ^ last else 0)
    if kind == SHR and a >> top:
        return flags | OF
    return flags


def shift(kind: int, a: int, count: int, width: int) -> int:
    """SHL, SHR or SAR of ``a``, ``width`` bytes, by a count that is already masked."""
    mask = (1 << 8 * width) - 1
    if kind == SHL:
        return a << count & mask
    if kind == SAR and a >> 8 * width - 1:
        return (a - mask - 1) >> count & mask
    return a >> count


def rotate(left: bool, a: int, count: int, width: int, flags: int) -> tuple[int, int]:
    """ROL or ROR by a masked count that is not 0: the result, and the flags after it."""
    bits = 8 * width
    mask = (1 << bits) - 1
    turn = count % bits
    flags &= ~(CF | OF)
    if left:
        x = (a << turn | a >> bits - turn) & mask
        cf = x & 1
        of = x >> bits - 1 ^ cf
    else:
        x = (a >> turn | a << bits - turn) & mask
        cf = x >> bits - 1
        of = cf ^ x >> bits - 2 & 1
    return x, flags | cf | (OF if of else 0)


def rotate_through_carry(left: bool, a: int, count: int, width: int, flags: int) -> tuple[int, int]:
    """RCL or RCR by a masked count that is not 0: the result, and the flags after it."""
    bits = 8 * width
    turn = count % (bits + 1)
    whole = (flags & CF) << bits | a
    if not left:
        turn = bits + 1 - turn
    whole = (whole << turn | whole >> bits + 1 - turn) & (1 << bits + 1) - 1
    x, cf = whole & (1 << bits) - 1, whole >> bits
    top = x >> bits - 1
    of = top ^ cf if left else top ^ x >> bits - 2 & 1
    return x, flags & ~(CF | OF) | cf | (OF if of else 0)


def double_shift(
    left: bool, a: int, filler: int, count: int, width: int, flags: int
) -> tuple[int, int]:
    """SHLD or SHRD by a masked count that is not 0: the result, and the flags after it."""
    bits = 8 * width
    mask = (1 << bits) - 1
    if count > bits:  # undefined for 16 bits; processors turn the pair around
        count -= bits
        a, filler = filler, a
    if left:
        x = (a << count | filler >> bits - count) & mask
        cf = a >> bits - count & 1
    else:
        x = (a >> count | filler << bits - count) & mask
        cf = a >> count - 1 & 1
    lazy = arithmetic((code(LOGIC, width), x, 0, x))
    changed = OF if (a ^ x) >> bits - 1 & 1 else 0
    return x, flags & ~ARITHMETIC | lazy & ~OF | cf | changed
