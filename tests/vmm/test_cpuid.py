"""What a guest learns of its processor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vfiokit.vmm.cpuid import SIGNATURE, cpuid


def test_hypervisor_signs_its_leaf() -> None:
    answer = cpuid(0x4000_0000)
    text = b"".join(word.to_bytes(4, "little") for word in (answer.ebx, answer.ecx, answer.edx))
    assert text == SIGNATURE
    assert cpuid(1).ecx >> 31


def test_long_mode_and_apic_are_announced() -> None:
    assert cpuid(0x8000_0001).edx >> 29 & 1
    assert cpuid(1).edx >> 9 & 1
    assert cpuid(1).edx >> 6 & 1
    assert cpuid(1, processor=3, processors=4).ebx == 3 << 24 | 4 << 16


def test_vendor_is_spelt_across_three_registers() -> None:
    answer = cpuid(0)
    text = b"".join(word.to_bytes(4, "little") for word in (answer.ebx, answer.edx, answer.ecx))
    assert text == b"VfiokitGuest"


@given(st.integers(0, 0xFFFF_FFFF))
def test_every_leaf_has_an_answer_of_four_dwords(leaf) -> None:
    assert all(0 <= word <= 0xFFFF_FFFF for word in cpuid(leaf))
