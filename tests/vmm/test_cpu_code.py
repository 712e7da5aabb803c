"""Code that changes: by the guest itself, by DMA, by other mappings."""

from __future__ import annotations

import pytest
from cpu_rig import CODE, MAPPED, Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.vmm.exit import ExitReason


def test_a_store_into_code_ahead_in_the_same_block_is_seen() -> None:
    rig = Rig("mov byte ptr [rip + patch + 1], 7; nop; patch: mov al, 1; hlt")
    rig.until(ExitReason.HLT)
    assert rig["al"] == 7


def test_a_loop_that_changes_itself_each_time_round() -> None:
    rig = Rig("mov ecx, 5; 1: add eax, 1; inc byte ptr [rip + 1b + 2]; dec ecx; jnz 1b; hlt")
    rig.until(ExitReason.HLT)
    assert rig["rax"] == 1 + 2 + 3 + 4 + 5


def test_an_instruction_that_overwrites_itself_completes_first() -> None:
    rig = Rig("1: mov dword ptr [rip + 1b], 0x90909090; mov al, 3; hlt")
    rig.until(ExitReason.HLT)
    assert rig["al"] == 3
    assert rig.number(CODE, 4) == 0x90909090


def test_code_changed_through_another_mapping_is_seen() -> None:
    # 0x201000 is mapped to itself: make it lead to the page of the code
    rig = Rig("mov rbx, 0x201000; mov byte ptr [rbx + patch - 0x1000 + 1], 9; patch: mov al, 1;"
              "hlt")  # fmt: skip
    directory = 0x10000 + 4096 * 3
    assert rig.number(directory + 8) & ~0xFFF == 0x200000
    rig.store(directory + 8, 0x83)
    rig.until(ExitReason.HLT)
    assert rig["al"] == 9


def test_a_string_store_into_code_is_seen() -> None:
    rig = Rig("lea rdi, [rip + patch]; mov al, 0x90; mov ecx, 2; rep stosb; patch: mov bl, 1; hlt")
    rig.until(ExitReason.HLT)
    assert rig["bl"] == 0


def test_dma_into_code_between_two_runs_is_seen() -> None:
    rig = Rig("1: mov al, 1; out 0x10, al; jmp 1b")
    for value in (1, 2, 3):
        rig.ram[CODE + 1] = value
        assert rig.until(ExitReason.IO).value == value


def test_dma_into_code_by_a_doorbell_is_seen_at_the_next_instruction() -> None:
    rig = Rig(f"mov rbx, {MAPPED:#x}; mov [rbx], eax; patch: mov al, 1; hlt")

    def dma(gpa: int, value: int) -> None:
        rig.ram[CODE + len(rig.code) - 2] = 5

    rig.bus.on_write = dma
    for _ in range(2):  # the second time with everything translated
        rig["rip"] = CODE
        rig.until(ExitReason.HLT)
        assert rig["al"] == 5


def test_data_beside_code_in_its_page_does_not_cost_the_translation() -> None:
    rig = Rig("mov ecx, 100; 1: mov [rip + 2f], rcx; dec ecx; jnz 1b; hlt; nop; nop; 2: .quad 0")
    rig.until(ExitReason.HLT)
    before = dict(rig.cpu._mmu.blocks)
    rig["rip"] = CODE
    rig.until(ExitReason.HLT)
    assert dict(rig.cpu._mmu.blocks) == before


def test_an_instruction_across_two_pages_is_watched_in_both() -> None:
    rig = Rig("hlt")
    rig.ram[0x1FFE:0x2004] = b"\xb8\x01\x02\x03\x04\xf4"  # mov eax, 0x04030201; hlt
    for value in (2, 9):
        rig.ram[0x2000] = value
        rig["rip"] = 0x1FFE
        rig.until(ExitReason.HLT)
        assert rig["rax"] == 0x0403_0001 | value << 8


def test_invalidate_forgets_the_page() -> None:
    rig = Rig("mov al, 1; hlt")
    rig.until(ExitReason.HLT)
    assert rig.cpu._mmu.blocks
    rig.cpu.invalidate(CODE + 5, 1)
    assert not rig.cpu._mmu.blocks


def test_close_lets_go_of_the_memory() -> None:
    rig = Rig("mov rax, [0x5000]; mov [0x5000], rax; hlt")
    rig.until(ExitReason.HLT)
    rig.cpu.close()
    rig.view.release()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 255)), min_size=1, max_size=12))
def test_stores_to_random_places_of_a_loop_do_as_a_fresh_processor(
    stores: list[tuple[int, int]],
) -> None:
    """Immediates of twenty instructions change between rounds; a fresh processor agrees."""
    text = "".join(f"add eax, {number:#x}; rol eax, 3;" for number in range(0x10, 0x24)) + "hlt"
    rig = Rig(text)
    assert rig.code[2] == 0x10
    places = [CODE + 2 + 6 * number for number in range(20)]
    for place, value in stores:
        rig.ram[places[place]] = value & 0x7F
        rig["rip"], rig["rax"] = CODE, 1
        rig.until(ExitReason.HLT)
        fresh = Rig(text)
        fresh.ram[CODE : CODE + len(rig.code)] = rig.ram[CODE : CODE + len(rig.code)]
        fresh["rax"] = 1
        fresh.until(ExitReason.HLT)
        assert rig["rax"] == fresh["rax"]


@pytest.mark.parametrize("bits", [16, 64])
def test_every_opcode_runs_or_faults_and_never_breaks_the_interpreter(bits: int) -> None:
    """One byte, 0F and one byte, in front of zeros: a Python exception would fail this."""
    rig = Rig("hlt", bits)
    for start in [bytes((first,)) for first in range(256)] + [
        bytes((0x0F, second)) for second in range(256)
    ]:
        modrm = 0x00 if start[-1] & 1 else 0xF9
        rig.ram[CODE : CODE + 18] = start + bytes((modrm,)) + bytes(17 - len(start))
        for name in ("rcx", "rbx", "rax", "rdx"):
            rig[name] = 0x5000
        rig["rsp"] = 0x9000
        rig["rip"] = CODE
        rig.run(1)
