"""Whatever bytes a guest executes, the processor runs, faults or leaves; it never breaks.

Run with ``python tests/fuzz/fuzz_cpu.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

from fuzzing import fuzz

_RAM = 0x20000
_CODE = 0x1000
_TABLES = 0x10000
_STACK = 0x9000
_MAPPED = 0xE000_0000
_PLACES = (0, 5, 0x5000, _MAPPED, 0xF000_0000, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000_0000, _CODE)
_NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8")


class _Bus:
    """Registers that read their own address; beyond them everything traps."""

    def read(self, gpa: int, width: int) -> int | None:
        """A register, or a trap."""
        return gpa & (1 << 8 * width) - 1 if _MAPPED <= gpa < 0xF000_0000 else None

    def write(self, gpa: int, width: int, value: int) -> bool:
        """Taken, or a trap."""
        del width, value
        return _MAPPED <= gpa < 0xF000_0000


def one_input(data: bytes) -> None:
    """Byte 0: mode and budget; eight bytes: registers; the rest is code. At most twelve exits."""
    from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
    from vfiokit.vmm.cpu import Interpreter
    from vfiokit.vmm.exit import ExitReason

    data = data.ljust(9, b"\0")
    ram = memoryview(bytearray(b"\xf4" * _RAM))
    code = data[9 : 9 + 512]
    ram[_CODE : _CODE + len(code)] = code
    vcpu = Interpreter([(0, ram)], _Bus())
    if data[0] & 1:
        enter_long_mode(vcpu, ram, _CODE, tables=_TABLES, stack=_STACK, mapped=1 << 21)
    else:
        enter_real_mode(vcpu, _CODE, stack=_STACK)
    for name, choice in zip(_NAMES, data[1:9], strict=True):
        vcpu.write_register(name, _PLACES[choice % len(_PLACES)])
    for turn in range(12):
        leaving = vcpu.run(1 + (data[0] >> 1))
        assert leaving.reason is not ExitReason.FAIL_ENTRY
        if leaving.reason is ExitReason.SHUTDOWN:
            break
        asked = leaving.reason in (ExitReason.IO, ExitReason.MMIO) and leaving.width
        if leaving.reason is ExitReason.CPUID:
            vcpu.complete(1, 2, 3, 4)
        elif leaving.reason in (ExitReason.RDMSR, ExitReason.HYPERCALL) or (
            asked and not leaving.write
        ):
            vcpu.complete(turn)
        else:
            vcpu.inject(32 + data[turn % len(data)] % 224)
    state = vcpu.state()
    vcpu.load(state)
    assert vcpu.state() == state


if __name__ == "__main__":
    fuzz(one_input)
