"""What CPUID tells a guest: a plain 64-bit processor below a hypervisor.

Source: Intel SDM volume 2, CPUID; Linux ``Documentation/virt/kvm/x86/cpuid.rst`` for the leaves
from 0x40000000 on, here with a signature of our own. Only what an engine in Python runs is
announced. KVM answers by itself.
"""

from __future__ import annotations

from typing import NamedTuple

SIGNATURE = b"vfiokit-vmm\0"
_VENDOR = b"VfiokitGuest"
_HYPERVISOR = 0x4000_0000
_EXTENDED = 0x8000_0000
_HIGHEST = 1
_HIGHEST_EXTENDED = _EXTENDED + 8
_FAMILY_6 = 0x0000_0600
# FPU, TSC, MSR, PAE, CX8, APIC, CMOV
_FEATURES = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 15
_BELOW_HYPERVISOR = 1 << 31
_NX, _LARGE_PAGES, _LONG_MODE = 1 << 20, 1 << 26, 1 << 29
_PHYSICAL_BITS, _VIRTUAL_BITS = 48, 48


class CpuidAnswer(NamedTuple):
    """The four registers."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def cpuid(leaf: int, processor: int = 0, processors: int = 1) -> CpuidAnswer:
    """The answer to ``leaf`` on ``processor`` of ``processors``; all zeros where there is none."""
    if leaf == 0:
        ebx, edx, ecx = _words(_VENDOR)
        return CpuidAnswer(_HIGHEST, ebx, ecx, edx)
    if leaf == 1:
        ebx = processor << 24 | processors << 16
        return CpuidAnswer(_FAMILY_6, ebx, _BELOW_HYPERVISOR, _FEATURES)
    if leaf == _HYPERVISOR:
        return CpuidAnswer(_HYPERVISOR, *_words(SIGNATURE))
    if leaf == _EXTENDED:
        return CpuidAnswer(_HIGHEST_EXTENDED)
    if leaf == _EXTENDED + 1:
        return CpuidAnswer(edx=_NX | _LARGE_PAGES | _LONG_MODE)
    if leaf == _EXTENDED + 8:
        return CpuidAnswer(_VIRTUAL_BITS << 8 | _PHYSICAL_BITS)
    return CpuidAnswer()


def _words(text: bytes) -> tuple[int, int, int]:
    one, two, three = (int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8))
    return one, two, three
