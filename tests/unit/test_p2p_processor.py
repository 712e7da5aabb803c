"""The processor from /proc/cpuinfo, as several architectures print it."""

from __future__ import annotations

import pytest

from vfiokit.host.processor import Cpu, read_cpu
from vfiokit.host.tree import RecordedTree

X86 = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: Some Processor
stepping\t: 1

processor\t: 1
vendor_id\t: Second
cpu family\t: 99
model\t\t: 9
"""
ARM = "processor\t: 0\nBogoMIPS\t: 2000.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
POWER = "processor\t: 0\ncpu\t\t: POWER9, altivec supported\nrevision\t: 2.2\n"
RISCV = "processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64imafdc\n"
S390 = "vendor_id       : IBM/S390\n# processors    : 4\nprocessor 0: version = FF\n"


@pytest.mark.parametrize(
    ("text", "expected", "zen"),
    [
        (X86.format(vendor="AuthenticAMD", family=25, model=1), ("AuthenticAMD", 25, 1), True),
        (X86.format(vendor="AuthenticAMD", family=23, model=49), ("AuthenticAMD", 23, 49), True),
        (X86.format(vendor="AuthenticAMD", family=22, model=0), ("AuthenticAMD", 22, 0), False),
        (X86.format(vendor="HygonGenuine", family=24, model=0), ("HygonGenuine", 24, 0), False),
        (X86.format(vendor="GenuineIntel", family=6, model=143), ("GenuineIntel", 6, 143), False),
        (X86.format(vendor="AuthenticAMD", family="odd", model=""), ("AuthenticAMD", 0, 0), False),
        (ARM, ("0x41", 0, 0), False),
        (POWER, ("POWER9, altivec supported", 0, 0), False),
        (RISCV, ("other", 0, 0), False),
        (S390, ("IBM/S390", 0, 0), False),
    ],
)
def test_the_first_processor_s_vendor_family_and_model_are_read(text, expected, zen):
    cpu = Cpu.from_cpuinfo(text)
    assert cpu == expected
    assert cpu is not None
    assert cpu.is_zen == zen
    assert expected[0] in str(cpu)


@pytest.mark.parametrize("text", ["", "\n\n", "no colon here\n", "model name: alone\n"])
def test_a_text_without_a_processor_tells_none(text):
    assert Cpu.from_cpuinfo(text) is None


def test_the_host_s_file_is_read_where_there_is_one():
    content = X86.format(vendor="AuthenticAMD", family=26, model=2).encode()
    assert read_cpu(RecordedTree({"/proc/cpuinfo": content}, {})) == ("AuthenticAMD", 26, 2)
    assert read_cpu(RecordedTree({"/proc/version": b""}, {})) is None
    assert read_cpu(RecordedTree({"/proc/cpuinfo": b"\xff\xfe: \x80"}, {})) is None
