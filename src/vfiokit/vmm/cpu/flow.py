"""Python source for jumps, the stack, strings and everything privileged."""

from __future__ import annotations

from typing import Final

from iced_x86 import Code, Mnemonic, OpKind, Register

from vfiokit.vmm.cpu.arithmetic import Emitter
from vfiokit.vmm.cpu.core import CS, SS
from vfiokit.vmm.cpu.source import MASKS, REGISTERS, Source

_SEGMENTS: Final = {
    getattr(Register, name): number
    for number, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS"))
}


def _operand_width(s: Source) -> int:
    """Bytes of the operand size, 8 for near branches and the stack in 64-bit mode."""
    size: int = s.instruction.op_code().operand_size
    return size // 8


def _branch_width(s: Source) -> int:
    return 8 if s.mode.bits == 64 else _operand_width(s)


# -- the stack ----------------------------------------------------------------------------------


def _push_address(s: Source, width: int) -> None:
    """Put the linear address below the top of the stack into ``p``."""
    mask = MASKS[s.mode.stack_bits // 8]
    s.add(f"q = r[4] - {width} & {mask}")
    s.add(f"p = {s.linear(SS, 'q')}")


def _push(s: Source, value: str, width: int) -> None:
    _push_address(s, width)
    s.store(width, value, "p")
    s.set_number(4, s.mode.stack_bits // 8, "q")


def _pop(s: Source, target: str, width: int, extra: int = 0) -> None:
    """Load the top of the stack into ``target``; the pointer after it is in ``q``."""
    stack = s.mode.stack_bits // 8
    s.add(f"q = {s.number(4, stack)}")
    s.add(f"p = {s.linear(SS, 'q')}")
    s.load(target, width, "p")
    s.add(f"q = q + {width + extra} & {MASKS[stack]}")


def _set_stack_pointer(s: Source) -> None:
    s.set_number(4, s.mode.stack_bits // 8, "q")


def _push_operand(s: Source) -> None:
    ins = s.instruction
    width = -ins.stack_pointer_increment
    if ins.op_kind(0) == OpKind.REGISTER and ins.op_register(0) in _SEGMENTS:
        s.add(f"v = sy.selector({_SEGMENTS[ins.op_register(0)]})")
        value = "v"
    else:
        value = s.read(0, "v", width)
    _push(s, value, width)


def _pop_operand(s: Source) -> None:
    ins = s.instruction
    width = ins.stack_pointer_increment
    if ins.op_kind(0) == OpKind.REGISTER and ins.op_register(0) in _SEGMENTS:
        _pop(s, "v", width)
        s.add(f"sy.load_segment({_SEGMENTS[ins.op_register(0)]}, v & 0xFFFF)")
        _set_stack_pointer(s)
        s.stay()
        return
    _pop(s, "v", width)
    if s.is_memory(0):  # an address with RSP in it means the RSP after the pop
        s.add("w = r[4]")
        _set_stack_pointer(s)
        s.address()
        s.add("r[4] = w")
        s.store(width, "v")
        _set_stack_pointer(s)
    else:
        _set_stack_pointer(s)
        s.write(0, "v")


def _pushf(s: Source) -> None:
    width = -s.instruction.stack_pointer_increment
    s.add(f"v = c.rflags & {'0xFCFFFF' if width > 2 else '0xFFFF'}")
    _push(s, "v", width)


def _popf(s: Source) -> None:
    width = s.instruction.stack_pointer_increment
    _pop(s, "v", width)
    s.add(f"sy.load_flags(v, {width})")
    _set_stack_pointer(s)
    s.stay()


def _leave(s: Source) -> None:
    stack = s.mode.stack_bits // 8
    width = 8 if s.mode.bits == 64 else _operand_width(s)
    s.add(f"q = {s.number(5, stack)}")
    s.add(f"p = {s.linear(SS, 'q')}")
    s.load("v", width, "p")
    s.add(f"q = q + {width} & {MASKS[stack]}")
    _set_stack_pointer(s)
    s.set_number(5, width, "v")


def _push_all(s: Source) -> None:
    s.add(f"sy.push_all({_operand_width(s)})")
    s.stay()


def _pop_all(s: Source) -> None:
    s.add(f"sy.pop_all({_operand_width(s)})")
    s.stay()


# -- jumps --------------------------------------------------------------------------------------


def _target(s: Source) -> int:
    target: int = s.instruction.near_branch_target
    return target & ((1 << 8 * _branch_width(s)) - 1)


def _jump_if(s: Source, condition: str) -> None:
    s.add(f"if {condition}:")
    s.indent += 1
    s.go(f"{_target(s):#x}", known=_target(s))
    s.indent -= 1
    s.stay()


def _jcc(s: Source) -> None:
    _jump_if(s, s.condition(s.instruction.condition_code - 1))


def _jmp(s: Source) -> None:
    s.ended = True
    if s.instruction.op_kind(0) in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
        s.add(f"sy.far_jump({s.instruction.far_branch_selector}, {_far_offset(s):#x})")
        s.add(f"return n - {s.index + 1}")
    elif _is_far(s):
        _far_pointer(s)
        s.add("sy.far_jump(w, v)")
        s.add(f"return n - {s.index + 1}")
    elif s.instruction.op_kind(0) in (OpKind.REGISTER, OpKind.MEMORY):
        s.go(s.read(0, "v"))
    else:
        s.go(f"{_target(s):#x}", known=_target(s))


def _call(s: Source) -> None:
    ins, width = s.instruction, _branch_width(s)
    s.ended = True
    if ins.op_kind(0) in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
        selector, offset = f"{ins.far_branch_selector}", f"{_far_offset(s):#x}"
        s.add(f"sy.far_call({selector}, {offset}, {_operand_width(s)}, {s.next()})")
        s.add(f"return n - {s.index + 1}")
        return
    if _is_far(s):
        _far_pointer(s)
        s.add(f"sy.far_call(w, v, {_operand_width(s)}, {s.next()})")
        s.add(f"return n - {s.index + 1}")
        return
    if ins.op_kind(0) in (OpKind.REGISTER, OpKind.MEMORY):
        target = s.read(0, "v")
    else:
        target = f"{_target(s):#x}"
    _push(s, s.next(), width)
    s.go(target)


def _ret(s: Source) -> None:
    width = _branch_width(s)
    extra = s.immediate(0, 2) if s.instruction.op_count else 0
    _pop(s, "v", width, extra)
    _set_stack_pointer(s)
    s.go("v")
    s.ended = True


def _is_far(s: Source) -> bool:
    ins = s.instruction
    return bool(ins.is_jmp_far_indirect or ins.is_call_far_indirect)


def _far_offset(s: Source) -> int:
    ins = s.instruction
    offset: int = ins.far_branch16 if ins.op_kind(0) == OpKind.FAR_BRANCH16 else ins.far_branch32
    return offset


def _far_pointer(s: Source) -> None:
    """Load offset and selector from memory into ``v`` and ``w``."""
    width = _operand_width(s)
    s.address()
    s.add(f"v = ldl(m, {width})")
    s.add(f"w = ldl(m + {width}, 2)")


def _counter(s: Source) -> tuple[int, int]:
    """Number and width of the register that LOOP and JCXZ look at."""
    name = next(key for key, value in vars(Code).items() if value == s.instruction.code)
    register = name.rpartition("_")[2] if name.startswith("LOOP") else name.partition("_")[0][1:-1]
    width = {"CX": 2, "ECX": 4, "RCX": 8}[register]
    return 1, width


def _jcxz(s: Source) -> None:
    _jump_if(s, f"not {s.number(*_counter(s))}")


def _loop(s: Source) -> None:
    number, width = _counter(s)
    s.add(f"v = {s.number(number, width)} - 1 & {MASKS[width]}")
    s.set_number(number, width, "v")
    wanted = {Mnemonic.LOOPE: " and c.flags() & 64", Mnemonic.LOOPNE: " and not c.flags() & 64"}
    _jump_if(s, "v" + wanted.get(s.instruction.mnemonic, ""))


# -- calls into the processor -------------------------------------------------------------------


def _leaving(call: str) -> Emitter:
    """A routine that sets the instruction pointer itself; {next}, {width} are filled in."""

    def emit(s: Source) -> None:
        s.add(call.format(next=s.next(), width=_operand_width(s), here=f"{s.instruction.ip:#x}"))
        s.add(f"return n - {s.index + 1}")
        s.ended = True

    return emit


def _routine(call: str) -> Emitter:
    """A routine after which the next instruction follows, in another block."""

    def emit(s: Source) -> None:
        s.add(call)
        s.stay()

    return emit


def _retf(s: Source) -> None:
    extra = s.immediate(0, 2) if s.instruction.op_count else 0
    s.add(f"sy.far_return({_operand_width(s)}, {extra})")
    s.add(f"return n - {s.index + 1}")
    s.ended = True


def _int(s: Source) -> None:
    vector = s.immediate(0, 1) if s.instruction.op_count else 3
    s.add(f"sy.software_interrupt({vector}, {s.next()})")
    s.add(f"return n - {s.index + 1}")
    s.ended = True


def _with_address(call: str) -> Emitter:
    def emit(s: Source) -> None:
        s.address()
        s.add(call)
        s.stay()

    return emit


def _with_operand(call: str, width: int) -> Emitter:
    def emit(s: Source) -> None:
        value = s.read(0, "v", width)
        s.add(call.format(value=value))
        s.stay()

    return emit


def _store_result(call: str) -> Emitter:
    def emit(s: Source) -> None:
        s.add(f"v = {call}")
        if s.is_memory(0):
            s.address()
        s.write(0, "v")
        s.stay()

    return emit


def _port(s: Source, operand: int) -> str:
    if s.instruction.op_kind(operand) == OpKind.REGISTER:
        return "r[2] & 0xFFFF"
    return f"{s.immediate(operand, 1)}"


def _in(s: Source) -> None:
    width = s.width(0)
    s.add(f"v = sy.port_in({_port(s, 1)}, {width})")
    s.write(0, "v")
    s.stay()


def _out(s: Source) -> None:
    width = s.width(1)
    s.add(f"sy.port_out({_port(s, 0)}, {width}, {s.number(0, width)})")
    s.stay()


_STRING_SIZES: Final = {"B": 1, "W": 2, "D": 4, "Q": 8}


def _string(name: str, width: int) -> Emitter:
    def emit(s: Source) -> None:
        ins = s.instruction
        rep = 2 if ins.has_repne_prefix else 1 if ins.has_repe_prefix or ins.has_rep_prefix else 0
        segment = 3
        address = s.mode.bits // 8
        for operand in range(ins.op_count):
            kind = ins.op_kind(operand)
            if kind in _STRING_KINDS:
                address = _STRING_KINDS[kind]
            if kind in _SOURCE_KINDS:
                segment = _SEGMENTS[ins.memory_segment]
        s.add(f"v = ss.{name}({width}, {rep}, {segment}, {address})")
        if rep:
            s.add(f"c.rip = {s.next()} if v else {ins.ip:#x}")
            s.add(f"return n - {s.index + 1}")
            s.ended = True
        else:
            s.stay()

    return emit


_SOURCE_KINDS: Final = frozenset(
    getattr(OpKind, f"MEMORY_SEG_{name}") for name in ("SI", "ESI", "RSI", "DI", "EDI", "RDI")
)
_STRING_KINDS: Final = {
    getattr(OpKind, name): width
    for width, names in (
        (2, ("MEMORY_SEG_SI", "MEMORY_ESDI")),
        (4, ("MEMORY_SEG_ESI", "MEMORY_ESEDI")),
        (8, ("MEMORY_SEG_RSI", "MEMORY_ESRDI")),
    )
    for name in names
}

EMITTERS: Final[dict[int, Emitter]] = {
    Mnemonic.PUSH: _push_operand,
    Mnemonic.POP: _pop_operand,
    Mnemonic.PUSHF: _pushf,
    Mnemonic.PUSHFD: _pushf,
    Mnemonic.PUSHFQ: _pushf,
    Mnemonic.POPF: _popf,
    Mnemonic.POPFD: _popf,
    Mnemonic.POPFQ: _popf,
    Mnemonic.PUSHA: _push_all,
    Mnemonic.PUSHAD: _push_all,
    Mnemonic.POPA: _pop_all,
    Mnemonic.POPAD: _pop_all,
    Mnemonic.LEAVE: _leave,
    Mnemonic.JMP: _jmp,
    Mnemonic.CALL: _call,
    Mnemonic.RET: _ret,
    Mnemonic.RETF: _retf,
    Mnemonic.JCXZ: _jcxz,
    Mnemonic.JECXZ: _jcxz,
    Mnemonic.JRCXZ: _jcxz,
    Mnemonic.LOOP: _loop,
    Mnemonic.LOOPE: _loop,
    Mnemonic.LOOPNE: _loop,
    Mnemonic.INT: _int,
    Mnemonic.INT3: _int,
    Mnemonic.IRET: _leaving("sy.interrupt_return({width})"),
    Mnemonic.IRETD: _leaving("sy.interrupt_return({width})"),
    Mnemonic.IRETQ: _leaving("sy.interrupt_return({width})"),
    Mnemonic.SYSCALL: _leaving("sy.system_call({next})"),
    Mnemonic.SYSRET: _leaving("sy.system_return({width})"),
    Mnemonic.SYSRETQ: _leaving("sy.system_return(8)"),
    Mnemonic.UD2: _routine("sy.undefined()"),
    Mnemonic.CLI: _routine("sy.clear_interrupts()"),
    Mnemonic.STI: _routine("sy.set_interrupts()"),
    Mnemonic.HLT: _routine("sy.halt()"),
    Mnemonic.CPUID: _routine("sy.cpuid()"),
    Mnemonic.RDMSR: _routine("sy.read_msr()"),
    Mnemonic.WRMSR: _routine("sy.write_msr()"),
    Mnemonic.RDTSC: _routine("sy.read_tsc(n)"),
    Mnemonic.VMCALL: _routine("sy.hypercall()"),
    Mnemonic.VMMCALL: _routine("sy.hypercall()"),
    Mnemonic.WBINVD: _routine("sy.privileged()"),
    Mnemonic.INVD: _routine("sy.privileged()"),
    Mnemonic.CLTS: _routine("sy.clear_task_switched()"),
    Mnemonic.SWAPGS: _routine("sy.swap_gs()"),
    Mnemonic.INVLPG: _with_address("sy.invalidate_page(m)"),
    Mnemonic.LGDT: _with_address("sy.load_table('gdt', m)"),
    Mnemonic.LIDT: _with_address("sy.load_table('idt', m)"),
    Mnemonic.SGDT: _with_address("sy.store_table('gdt', m)"),
    Mnemonic.SIDT: _with_address("sy.store_table('idt', m)"),
    Mnemonic.LTR: _with_operand("sy.load_task({value} & 0xFFFF)", 2),
    Mnemonic.LLDT: _with_operand("sy.load_ldt({value} & 0xFFFF)", 2),
    Mnemonic.LMSW: _with_operand("sy.load_machine_status({value})", 2),
    Mnemonic.STR: _store_result("c.tr.selector"),
    Mnemonic.SLDT: _store_result("c.ldt.selector"),
    Mnemonic.SMSW: _store_result("c.cr0 & 0xFFFF"),
    Mnemonic.IN: _in,
    Mnemonic.OUT: _out,
}
for _name in (
    *("JO", "JNO", "JB", "JAE", "JE", "JNE", "JBE", "JA", "JS", "JNS", "JP", "JNP"),
    *("JL", "JGE", "JLE", "JG"),
):
    EMITTERS[getattr(Mnemonic, _name)] = _jcc
for _name in ("movs", "stos", "lods", "cmps", "scas", "ins", "outs"):
    for _letter, _width in _STRING_SIZES.items():
        _mnemonic = getattr(Mnemonic, f"{_name}{_letter}".upper(), None)
        if _mnemonic is not None:
            EMITTERS[_mnemonic] = _string(_name, _width)

__all__ = ["CS", "EMITTERS", "REGISTERS"]
