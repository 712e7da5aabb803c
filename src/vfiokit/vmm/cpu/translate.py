"""Guest instructions into a Python function for a whole basic block."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Final

from iced_x86 import Decoder, Mnemonic, OpKind, RegisterExt

from vfiokit.vmm.cpu import arithmetic, flow, traits
from vfiokit.vmm.cpu import flags as fl
from vfiokit.vmm.cpu.block import Block
from vfiokit.vmm.cpu.core import Core
from vfiokit.vmm.cpu.mmu import Mmu
from vfiokit.vmm.cpu.source import READERS, WRITERS, Source
from vfiokit.vmm.cpu.strings import Strings
from vfiokit.vmm.cpu.system import System, divide, divide_signed

_EMITTERS: Final = {**arithmetic.EMITTERS, **flow.EMITTERS}
_LONGEST: Final = 15
"""Bytes of an instruction at most."""
_MOST: Final = 32
"""Instructions of a block at most."""


@lru_cache(maxsize=8192)
def _compile(source: str) -> CodeType:
    """Code of the function; the same block of another guest is not compiled again."""
    module = compile(source, "<guest block>", "exec", dont_inherit=True, optimize=2)
    return next(each for each in module.co_consts if isinstance(each, CodeType))


class Translator:
    """Makes blocks for one processor."""

    def __init__(self, core: Core, mmu: Mmu, system: System, strings: Strings) -> None:
        self._core = core
        self._mmu = mmu
        self._names: dict[str, Any] = {
            "R": core.R, "B": core.B, "c": core, "sy": system, "ss": strings,
            "ld": mmu.load, "ldl": mmu.load_last,
            "ldm": mmu.load_modify, "ldml": mmu.load_modify_last,
            "st": mmu.store, "stl": mmu.store_last,
            "carry": fl.carry, "fl_arithmetic": fl.arithmetic, "rotate": fl.rotate,
            "rotate_through_carry": fl.rotate_through_carry, "double_shift": fl.double_shift,
            "divide": divide, "divide_signed": divide_signed,
            **{READERS[width]: table for width, table in mmu.readers.items()},
            **{WRITERS[width]: table for width, table in mmu.writers.items()},
        }  # fmt: skip

    def block(self, most: int = _MOST) -> Block:
        """The block at the present instruction pointer, of ``most`` instructions at most.

        Raises :class:`~vfiokit.vmm.cpu.event.GuestEvent` when it cannot be fetched.
        """
        core = self._core
        address, page = self._mmu.fetch(core.linear_rip)
        key = (core.rip, core.mode, address, most == 1)
        known = self._mmu.blocks.get(key)
        if known is not None:
            return known
        instructions, pieces = self._decode(core.rip, address, page, most)
        block = self._make(key, instructions, address, pieces)
        self._mmu.keep(block)
        return block

    def _decode(
        self, rip: int, address: int, page: memoryview, most: int
    ) -> tuple[list[Any], tuple[tuple[int, int], ...]]:
        """Instructions up to the end of the page, a jump, or one that has to be last."""
        offset = address & 4095
        found: list[Any] = []
        at = offset
        bits = self._core.mode.bits
        for instruction in Decoder(bits, bytes(page[offset:]), ip=rip):
            if instruction.mnemonic == Mnemonic.INVALID:
                break
            found.append(instruction)
            at += instruction.len
            ends = _ends(instruction) or address + (at - offset) - instruction.len in (
                self._mmu.sites
            )
            if ends or len(found) == most:
                return found, ((address, at - offset),)
        if found:
            return found, ((address, at - offset),)
        return self._decode_across(rip, address, page)

    def _decode_across(
        self, rip: int, address: int, page: memoryview
    ) -> tuple[list[Any], tuple[tuple[int, int], ...]]:
        """One instruction that is not valid within this page alone."""
        start = bytes(page[address & 4095 :])[:_LONGEST]
        pieces = [(address, len(start))]
        if len(start) < _LONGEST:
            instruction = next(iter(Decoder(self._core.mode.bits, start, ip=rip)))
            if instruction.len < len(start):  # bad as it is
                return [instruction], tuple(pieces)
            second, following = self._mmu.fetch(self._core.linear_rip + len(start))
            more = bytes(following[: _LONGEST - len(start)])
            start += more
            pieces.append((second, len(more)))
        return [next(iter(Decoder(self._core.mode.bits, start, ip=rip)))], tuple(pieces)

    def _make(
        self,
        key: tuple[object, ...],
        instructions: list[Any],
        address: int,
        pieces: tuple[tuple[int, int], ...],
    ) -> Block:
        source = Source(self._core.mode)
        source.lines = ["def block(n):", " r = R"]
        source.start = instructions[0].ip
        source.count = len(instructions)
        jumps_back = _jumps_to(instructions[-1], source.start)
        if jumps_back:
            source.add("while True:")
            source.indent = 2
        lines = []
        for instruction, needed in zip(instructions, _needs(instructions), strict=True):
            source.instruction = instruction
            source.last = source.index == source.count - 1
            source.needed = needed
            source.modifies = traits.modifies_memory(instruction)
            lines.append(len(source.lines) + 1)
            _emitter(instruction)(source)
            source.index += 1
        if not source.ended:
            source.index -= 1
            source.go(source.next())
        text = "\n".join(source.lines)
        function = FunctionType(_compile(text), self._names)
        return Block(
            key, function, len(instructions), tuple(each.ip for each in instructions),
            tuple(address + each.ip - source.start for each in instructions), tuple(lines),
            source.loops, pieces,
        )  # fmt: skip


def _emitter(instruction: Any) -> Callable[[Source], None]:  # noqa: ANN401 - iced has no types
    if instruction.has_lock_prefix and instruction.mnemonic not in _EMITTERS:
        return _undefined
    return _EMITTERS.get(instruction.mnemonic, _undefined)


def _undefined(source: Source) -> None:
    source.add("sy.undefined()")
    source.stay()


def _ends(instruction: Any) -> bool:  # noqa: ANN401
    """Whether nothing can follow an instruction in its block."""
    mnemonic = instruction.mnemonic
    if mnemonic in _IN_A_ROW:
        return False
    if mnemonic == Mnemonic.POP and instruction.op_kind(0) == OpKind.REGISTER:
        return not RegisterExt.is_gpr(instruction.op_register(0))
    if mnemonic in flow.EMITTERS or mnemonic not in arithmetic.EMITTERS:
        return True
    return mnemonic == Mnemonic.MOV and traits.is_system_move(instruction)


_IN_A_ROW: Final = frozenset(
    {Mnemonic.PUSH, Mnemonic.PUSHF, Mnemonic.PUSHFD, Mnemonic.PUSHFQ, Mnemonic.LEAVE}
)
"""Of the routines in ``flow``, those after which the row goes on."""


def _jumps_to(instruction: Any, target: int) -> bool:  # noqa: ANN401
    """Whether an instruction is a direct jump to ``target``."""
    jumps = (
        instruction.is_jcc_short_or_near
        or instruction.is_jmp_short_or_near
        or instruction.is_loop
        or instruction.is_loopcc
        or instruction.is_jcx_short
    )
    return bool(jumps) and instruction.near_branch_target == target


def _needs(instructions: list[Any]) -> list[tuple[bool, bool]]:
    """For every instruction, whether the flags and the carry it leaves can be seen later."""
    flags = carry = True
    found = []
    for instruction in reversed(instructions):
        found.append((flags, carry))
        if traits.shows_flags(instruction):
            flags = carry = True
        else:
            sets_flags, sets_carry = traits.overwrites(instruction)
            flags, carry = flags and not sets_flags, carry and not sets_carry
    return found[::-1]
