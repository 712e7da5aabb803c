"""Interrupts and exceptions: when they come, what the handler finds."""

from __future__ import annotations

import pytest
from cpu_rig import CODE, MAPPED, STACK, TABLES, Rig
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.vmm.exit import ExitReason

HANDLER = "hlt\n.quad 0x1122334455667788\ninc r15; pop r14; hlt\n"
"""A handler behind a marker; R14 is what was pushed last."""
MARK = 0x1122334455667788


def test_an_interrupt_waits_for_sti_and_one_more_instruction() -> None:
    rig = Rig("inc rax; sti; inc rbx; inc rcx;" + HANDLER)
    rig.gate(0x40, rig.label(MARK))
    rig.cpu.inject(0x40)
    assert not rig.cpu.interruptible
    rig.until(ExitReason.HLT)
    assert (rig["rax"], rig["rbx"], rig["rcx"], rig["r15"]) == (1, 1, 0, 1)


def test_sti_hlt_sleeps_before_the_interrupt_comes() -> None:
    rig = Rig("sti; hlt; inc rax; hlt; .quad 0x1122334455667788; inc r15; iretq")
    rig.gate(0x40, rig.label(MARK))
    rig.until(ExitReason.HLT)
    assert rig.cpu.interruptible
    rig.cpu.inject(0x40)
    rig.until(ExitReason.HLT)
    assert (rig["r15"], rig["rax"]) == (1, 1)
    assert rig["rsp"] == STACK
    assert rig["rflags"] & 0x200


def test_the_handler_finds_an_aligned_frame_and_interrupts_off() -> None:
    rig = Rig("sub rsp, 3; sti; nop; nop;" + HANDLER.replace("pop r14;", ""))
    rig.gate(0x40, rig.label(MARK))
    rig.cpu.inject(0x40)
    rig.until(ExitReason.HLT)
    frame = [rig.number(rig["rsp"] + 8 * number) for number in range(5)]
    assert frame[0] == CODE + 6  # after one NOP
    assert frame[1] == 8
    assert frame[2] & 0x202 == 0x202
    assert frame[3:] == [STACK - 3, 0x10]
    assert rig["rsp"] % 16 == 8
    assert not rig["rflags"] & 0x200


def test_the_highest_vector_comes_first_and_each_once() -> None:
    rig = Rig("sti; 1: hlt; jmp 1b")
    for vector in (0x30, 0x50, 0x40):
        rig.gate(vector, 0x2000 + vector)
        rig.ram[0x2000 + vector : 0x2000 + vector + 2] = bytes((0xE6, vector))  # out vector, al
    for vector in (0x40, 0x50, 0x30, 0x40):
        rig.cpu.inject(vector)
    assert rig.cpu.pending == (0x50, 0x40, 0x30)
    rig.until(ExitReason.HLT)  # the shadow of STI
    seen = []
    for _ in range(3):
        seen.append(rig.until(ExitReason.IO).address)
        rig["rip"], rig["rflags"] = CODE + 1, 0x202
    assert seen == [0x50, 0x40, 0x30]


@pytest.mark.parametrize("vector", [-1, 0, 31, 256])
def test_vectors_of_exceptions_are_not_injected(vector: int) -> None:
    with pytest.raises(UsageError, match="32 to 255"):
        Rig("hlt").cpu.inject(vector)


def test_an_interrupt_that_a_device_raises_comes_before_the_next_instruction() -> None:
    rig = Rig(f"sti; mov rbx, {MAPPED:#x}; nop; mov [rbx], eax; inc rcx; inc rcx;" + HANDLER)
    rig.gate(0x40, rig.label(MARK))
    rig.bus.on_write = lambda gpa, value: rig.cpu.inject(0x40)
    rig.until(ExitReason.HLT)
    assert (rig["r15"], rig["rcx"]) == (1, 0)


@given(st.integers(1, 60))
def test_an_interrupt_between_runs_comes_at_exactly_that_instruction(budget: int) -> None:
    rig = Rig("sti; 1: inc rax; inc rbx; dec rcx; jmp 1b;" + HANDLER)
    rig.gate(0x40, rig.label(MARK))
    rig.until(ExitReason.INTR, budget + 1)
    rig.cpu.inject(0x40)
    rig.until(ExitReason.HLT)
    assert rig["rax"] == (budget + 3) // 4
    assert rig["rbx"] == (budget + 2) // 4
    assert (-rig["rcx"]) % 2**64 == (budget + 1) // 4


@pytest.mark.parametrize(
    ("text", "vector"),
    [
        ("xor ecx, ecx; div ecx", 0),
        ("mov edx, 1; mov ecx, 1; div ecx", 0),
        ("mov eax, 0x80000000; cdq; mov ecx, -1; idiv ecx", 0),
        ("mov al, 0x80; cbw; mov cl, -1; idiv cl", 0),
        ("int3", 3),
        ("ud2", 6),
        ("fldz", 6),
        ("movaps xmm0, xmm1", 6),
        ("int 0x21", 0x21),
    ],
)
def test_exceptions_without_a_code_enter_their_handler(text: str, vector: int) -> None:
    rig = Rig(text + ";" + HANDLER)
    rig.gate(vector, rig.label(MARK))
    rig.until(ExitReason.HLT)
    assert rig["r15"] == 1
    end = CODE + rig.code.index(b"\xf4" + MARK.to_bytes(8, "little"))
    after = vector in (3, 0x21)
    assert rig["r14"] == end if after else CODE <= rig["r14"] < end


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mov ax, 0x123; mov ds, ax", 0x120),
        ("mov rbx, 0x8000000000000000; mov rax, [rbx]", 0),
        ("int 0x22", 0x22 * 8 + 2),
        ("xor eax, eax; mov cr0, rax", 0),
        ("mov ecx, 0xc0000080; mov eax, 2; xor edx, edx; wrmsr", 0),
    ],
)
def test_general_protection_pushes_its_code(text: str, code: int) -> None:
    rig = Rig(text + ";" + HANDLER)
    rig.gate(13, rig.label(MARK))
    rig.until(ExitReason.HLT)
    assert rig["r14"] == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mov rax, [rbx]", 0),
        ("mov [rbx], rax", 2),
        ("jmp rbx", 0),  # NXE is off: a fetch is not told apart
        ("push qword ptr [rbx]", 0),
        ("add [rbx], rax", 2),
        ("lock xadd [rbx], rax", 2),
        ("shl qword ptr [rbx], 3", 2),
        ("cmp [rbx], rax", 0),
    ],
)
def test_a_page_fault_has_code_and_address(text: str, code: int) -> None:
    rig = Rig("mov rbx, 0x7f0000001234;" + text + ";" + HANDLER)
    rig.gate(14, rig.label(MARK))
    rig.until(ExitReason.HLT)
    assert (rig["r14"], rig["cr2"]) == (code, 0x7F00_0000_1234)


def test_a_fault_changes_no_register_and_repeats_after_repair() -> None:
    text = """
        mov rbx, 0x7f0000000ff8
        mov rsi, 0x5000
        mov edi, 0
        xadd [rbx], rsi
        hlt
        .quad 0x1122334455667788
        add rsp, 8
        inc r15
        out 0x10, al
        iretq
    """
    rig = Rig(text)
    rig.gate(14, rig.label(MARK))
    rig.until(ExitReason.IO)
    assert rig["rsi"] == 0x5000
    # the missing page: PML4 entry 0xfe → the same lower tables as entry 0
    root = TABLES + 4096
    rig.store(root + 8 * 0xFE, rig.number(root))
    rig.store(0xFF8, 42)
    rig.until(ExitReason.HLT)
    assert (rig["rsi"], rig.number(0xFF8)) == (42, 0x5000 + 42)


def test_a_fault_while_delivering_becomes_a_double_fault() -> None:
    rig = Rig("ud2;" + HANDLER)
    rig.gate(13, rig.label(MARK), kind=0x0E)  # not present: #NP while delivering #GP
    rig.gate(8, rig.label(MARK))
    rig["idt.limit"] = 0xFFF
    rig.code = rig.code
    rig.store(0x3000 + 16 * 6, 0)  # no gate for #UD: #GP
    rig.until(ExitReason.HLT)
    assert (rig["r15"], rig["r14"]) == (1, 0)  # the code of a double fault is 0


def test_user_code_is_kept_from_privileged_instructions_and_comes_back() -> None:
    text = """
        push 0x23; push 0x8000; push 0x202; push 0x1b; lea rax, [rip + user]; push rax
        iretq
user:   mov eax, 1
        cli
        hlt
        .quad 0x1122334455667788
        inc r15; pop r14; mov r13, [rsp + 8]; mov r12, rsp; hlt
    """
    rig = Rig(text)
    rig.store(TABLES + 0x18, 0x00AF_FB00_0000_FFFF)
    rig.store(TABLES + 0x20, 0x00CF_F300_0000_FFFF)
    rig["gdt.limit"] = 0x27
    rig["tr.base"], rig["tr.limit"] = 0x7000, 0x67
    rig.store(0x7004, 0x8800)  # RSP0
    rig.gate(13, rig.label(MARK))
    rig.until(ExitReason.HLT)
    assert (rig["rax"] & 0xFFFFFFFF, rig["r15"], rig["r14"], rig["r13"]) == (rig["rax"], 1, 0, 0x1B)
    assert rig["r12"] == 0x8800 - 40
    assert rig["cpl"] == 0


def test_an_interrupt_stack_is_used_where_the_gate_says_so() -> None:
    rig = Rig("ud2;" + HANDLER.replace("pop r14", "mov r14, rsp"))
    rig.gate(6, rig.label(MARK), ist=2)
    rig["tr.base"], rig["tr.limit"] = 0x7000, 0x67
    rig.store(0x7000 + 0x24 + 8, 0x6800)
    rig.until(ExitReason.HLT)
    assert rig["r14"] == 0x6800 - 40


def test_real_mode_uses_the_vector_table() -> None:
    rig = Rig("sti; nop; int 0x21; hlt", 16)
    rig.store(0x21 * 4, 0x0000_2000, 4)
    rig.store(8 * 4, 0x0200_0010, 4)  # 0200:0010
    rig.ram[0x2000:0x2003] = b"\x43\xfb\xcf"  # inc bx; sti; iret
    rig.ram[0x2010:0x2012] = b"\x41\xcf"  # inc cx; iret
    rig.cpu.inject(8)
    rig.until(ExitReason.HLT)
    assert (rig["rbx"], rig["rcx"], rig["rsp"], rig["cs"]) == (1, 1, STACK, 0)
    assert rig["rflags"] & 0x200


def test_the_way_from_real_to_long_mode_and_back_to_a_call() -> None:
    text = """
        cli
        lgdt    [0x6000]
        mov     eax, 0x20
        mov     cr4, eax
        mov     eax, 0x11000
        mov     cr3, eax
        mov     ecx, 0xc0000080
        mov     eax, 0x100
        xor     edx, edx
        wrmsr
        mov     eax, 0x80000001
        mov     cr0, eax
        .byte   0x66, 0xea
        .long   long
        .word   8
        .code64
long:   mov     ax, 16
        mov     ss, ax
        mov     rsp, 0x9000
        mov     rbx, 0x123456789abcdef
        call    next
        hlt
next:   push    rbx
        pop     rcx
        ret
    """
    other = Rig("hlt")
    rig = Rig(text, 16)
    rig.ram[TABLES : TABLES + 0x8000] = other.ram[TABLES : TABLES + 0x8000]
    rig.store(0x6000, 0x17, 2)
    rig.store(0x6002, TABLES, 4)
    rig.until(ExitReason.HLT)
    assert rig["rcx"] == 0x123456789ABCDEF
    assert rig["efer"] & 0x400
    assert rig["cs.access"] & 0x2000
