"""What an instruction does with flags and memory, as far as a whole block has to know."""

from __future__ import annotations

from typing import Any, Final

from iced_x86 import Mnemonic, OpKind, RegisterExt

_WHOLE: Final = frozenset(
    getattr(Mnemonic, name)
    for name in ("ADD", "SUB", "CMP", "AND", "OR", "XOR", "TEST", "NEG", "XADD", "CMPXCHG")
)
_ALL_BUT_CARRY: Final = frozenset({Mnemonic.INC, Mnemonic.DEC})
_SHIFTS: Final = frozenset({Mnemonic.SHL, Mnemonic.SAL, Mnemonic.SHR, Mnemonic.SAR})
_NEUTRAL: Final = frozenset(
    getattr(Mnemonic, name)
    for name in (
        "MOV",
        "LEA",
        "MOVZX",
        "MOVSX",
        "MOVSXD",
        "NOT",
        "XCHG",
        "BSWAP",
        "CBW",
        "CWDE",
        "CDQE",
        "CWD",
        "CDQ",
        "CQO",
        "NOP",
    )
)


def overwrites(instruction: Any) -> tuple[bool, bool]:  # noqa: ANN401 - iced has no types
    """Whether an instruction surely sets all flags but the carry, and the carry."""
    mnemonic = instruction.mnemonic
    if mnemonic in _WHOLE:
        return True, True
    if mnemonic in _SHIFTS and instruction.op_kind(1) != OpKind.REGISTER:
        counted = bool(instruction.immediate(1) & 31)
        return counted, counted
    return mnemonic in _ALL_BUT_CARRY, False


def shows_flags(instruction: Any) -> bool:  # noqa: ANN401
    """Whether the flags before an instruction can be seen in it or by what it may raise."""
    mnemonic = instruction.mnemonic
    if mnemonic not in _SILENT:
        return True
    if mnemonic in _SHIFTS and instruction.op_kind(1) == OpKind.REGISTER:
        return True  # a count of 0 leaves them
    kinds = [instruction.op_kind(each) for each in range(instruction.op_count)]
    if OpKind.MEMORY in kinds and mnemonic != Mnemonic.LEA:
        return True
    return is_system_move(instruction)


def modifies_memory(instruction: Any) -> bool:  # noqa: ANN401
    """Whether an instruction loads its first operand from memory and stores it again."""
    return instruction.mnemonic in _MODIFYING and instruction.op_kind(0) == OpKind.MEMORY


def is_system_move(instruction: Any) -> bool:  # noqa: ANN401
    """Whether a MOV is from or to a segment, control or debug register."""
    return instruction.mnemonic == Mnemonic.MOV and any(
        instruction.op_kind(number) == OpKind.REGISTER
        and not RegisterExt.is_gpr(instruction.op_register(number))
        for number in range(instruction.op_count)
    )


_MODIFYING: Final = frozenset(
    getattr(Mnemonic, name)
    for name in (
        "ADD",
        "ADC",
        "SUB",
        "SBB",
        "AND",
        "OR",
        "XOR",
        "INC",
        "DEC",
        "NEG",
        "NOT",
        "XADD",
        "CMPXCHG",
        "XCHG",
        "SHL",
        "SAL",
        "SHR",
        "SAR",
        "ROL",
        "ROR",
        "RCL",
        "RCR",
        "SHLD",
        "SHRD",
        "BTS",
        "BTR",
        "BTC",
    )
)
_SILENT: Final = _WHOLE | _ALL_BUT_CARRY | _SHIFTS | _NEUTRAL
