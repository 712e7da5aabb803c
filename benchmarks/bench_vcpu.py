"""What do a guest's instructions and its exits cost?

Instructions of the interpreter (goal: a million a second at least), a trap of it against a direct
Python call, and an exit of KVM handled in Python against the same loop in C, compiled here (goal:
at most 1.3 times). The guest of the exits stores to an address without RAM, for ever. Python's and
C's turns alternate; the best stretch of a few hundred exits of each counts, as on a busy machine
the average says more of the neighbours.

    python benchmarks/bench_vcpu.py [--check]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vfiokit.kernel.linux import LinuxKernel
from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.demo import NoDevices
from vfiokit.vmm.kvm import KvmMachine, probe

CODE = 0x1000
GOAL_MINSN = 1.0
GOAL_RATIO = 1.3
EXITS = 200
STRETCHES = 20
ROUNDS = 7

LOOPS = {
    # mov ecx, 1000000; 1: dec ecx; jnz 1b; hlt
    "count down": bytes.fromhex("b940420f00ffc975fcf4"),
    # mov esi, 0x5000; mov ecx, 1000000; 1: mov rax, [rsi]; add rax, rcx; mov [rsi+8], rax;
    # dec rcx; jnz 1b; hlt
    "load and store": bytes.fromhex("be00500000b940420f00488b064801c84889460848ffc975f1f4"),
    # mov ecx, 200000; 1: call 2f; dec ecx; jnz 1b; hlt; 2: push rax; pop rbx; ret
    "call and return": bytes.fromhex("b9400d0300e805000000ffc975f7f4505bc3"),
}

C_LOOP = r"""
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
int main(void) {
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    unsigned char *ram = mmap(0, 0x20000, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(ram + 0x1000, "\x66\x89\x07\xeb\xfb", 5);
    struct kvm_userspace_memory_region region = {0, 0, 0, 0x20000, (uintptr_t)ram};
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 3, MAP_SHARED, cpu, 0);
    struct kvm_sregs sregs; struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    ioctl(cpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0; sregs.ds.base = 0xf0000000;
    ioctl(cpu, KVM_SET_SREGS, &sregs); ioctl(cpu, KVM_SET_REGS, &regs);
    uint64_t sum = 0;
    struct timespec start, end;
    double best = 1e18;
    for (int stretch = 0; stretch < STRETCHES; stretch++) {
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (int i = 0; i < EXITS; i++) {
            if (ioctl(cpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_MMIO) return 1;
            uint32_t value; memcpy(&value, run->mmio.data, 4);
            sum += run->mmio.phys_addr + value + run->mmio.is_write;
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        double spent = (end.tv_sec - start.tv_sec) * 1e9 + end.tv_nsec - start.tv_nsec;
        if (spent / EXITS < best) best = spent / EXITS;
    }
    printf("%f\n", best);
    return sum == 0;
}
"""


def instructions_per_second(code: bytes) -> float:
    """Millions, best of three runs."""
    ram = memoryview(bytearray(0x20000))
    ram[CODE : CODE + len(code)] = code
    vcpu = Interpreter([(0, ram)], NoDevices())
    best = 0.0
    for _ in range(3):
        enter_long_mode(vcpu, ram, CODE, tables=0x10000, stack=0x9000, mapped=1 << 21)
        before, start = vcpu.instructions, time.perf_counter()
        vcpu.run(1 << 40)
        best = max(best, (vcpu.instructions - before) / (time.perf_counter() - start) / 1e6)
    return best


def _stretches(once: Callable[[], object]) -> float:
    """Nanoseconds of one call, in the best of some stretches."""
    best = float("inf")
    for _ in range(STRETCHES):
        start = time.perf_counter()
        for _ in range(EXITS):
            once()
        best = min(best, time.perf_counter() - start)
    return best / EXITS * 1e9


def trap_of_interpreter() -> float:
    """Nanoseconds from one trapped store to the next."""
    ram = memoryview(bytearray(0x20000))
    ram[CODE : CODE + 5] = bytes.fromhex("668907ebfb")
    vcpu = Interpreter([(0, ram)], NoDevices())
    enter_real_mode(vcpu, CODE)
    vcpu.write_register("ds.base", 0xF000_0000)
    vcpu.run(10)
    return _stretches(lambda: vcpu.run(10))


def direct_call() -> float:
    """Nanoseconds of calling a device's routine from Python."""
    bus = NoDevices()
    return _stretches(lambda: bus.write(0xF000_0000, 4, 7))


def exits_of_kvm() -> tuple[float, float | None]:
    """Nanoseconds of an exit in Python, and in C (``None`` without a compiler)."""
    kernel = LinuxKernel()
    memory = kernel.allocate(0x20000)
    memory.view[CODE : CODE + 5] = bytes.fromhex("668907ebfb")
    best, best_c = float("inf"), float("inf")
    with tempfile.TemporaryDirectory() as folder, KvmMachine(kernel, [(0, memory.view)]) as machine:
        program = Path(folder, "loop")
        compiled = shutil.which("gcc") is not None
        if compiled:
            source = program.with_suffix(".c")
            source.write_text(C_LOOP)
            command = [
                "gcc",
                "-O2",
                f"-DEXITS={EXITS}",
                f"-DSTRETCHES={STRETCHES}",
                "-o",
                str(program),
                str(source),
            ]
            subprocess.run(command, check=True)
        vcpu = machine.create_vcpu(NoDevices())
        enter_real_mode(vcpu, CODE)
        vcpu.write_register("ds.base", 0xF000_0000)
        for _ in range(ROUNDS):
            best = min(best, _stretches(lambda: vcpu.run(20_000)))
            if compiled:
                out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
                best_c = min(best_c, float(out))
    memory.close()
    return best, best_c if compiled else None


def main() -> int:
    """Measure and print."""
    missed = False
    for name, code in LOOPS.items():
        speed = instructions_per_second(code)
        missed |= speed < GOAL_MINSN
        print(f"{name:<16} {speed:6.2f} million instructions/s (goal >= {GOAL_MINSN:.0f})")
    trap, call = trap_of_interpreter(), direct_call()
    print(f"{'trap':<16} {trap:6.0f} ns, a direct call {call:.0f} ns: {trap / call:.0f}x")
    report = probe(LinuxKernel())
    if not report.real_mode:
        print(f"KVM: {report.detail}")
        return 1 if "--check" in sys.argv and missed else 0
    python, c_loop = exits_of_kvm()
    if c_loop is None:
        print(f"KVM exit         {python / 1000:6.2f} µs; no compiler to compare with")
    else:
        ratio = python / c_loop
        missed |= ratio > GOAL_RATIO
        print(
            f"KVM exit         {python / 1000:6.2f} µs, in C {c_loop / 1000:.2f} µs: {ratio:.2f}x "
            f"(goal <= {GOAL_RATIO}x)"
        )
    return 1 if "--check" in sys.argv and missed else 0


if __name__ == "__main__":
    sys.exit(main())
