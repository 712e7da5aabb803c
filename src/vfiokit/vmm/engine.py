"""Choosing the engine of a virtual processor."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vmm.vcpu import Bus, Vcpu

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINES: Final = ("interpreter", "kvm", "auto")


def open_vcpu(
    engine: str,
    memory: Iterable[tuple[int, memoryview]],
    bus: Bus,
    *,
    kernel: Kernel | None = None,
    long_mode: bool = True,
) -> AbstractContextManager[Vcpu]:
    """A processor of ``engine`` (``interpreter``, ``kvm``, ``auto``) over ``memory``.

    ``auto`` takes KVM where it runs what the guest needs (``long_mode``: 64-bit code), found by
    trying, and the interpreter otherwise. ``kernel`` is the host's by default. Raises
    :class:`UsageError` for another engine, :class:`KernelError` where ``kvm`` does not work.
    """
    if engine not in ENGINES:
        raise UsageError(f"no engine {engine!r}", hint=f"engines: {', '.join(ENGINES)}")
    return _open(chosen(engine, kernel, long_mode=long_mode), tuple(memory), bus, kernel)


def chosen(engine: str, kernel: Kernel | None = None, *, long_mode: bool = True) -> str:
    """``interpreter`` or ``kvm``, for what ``auto`` would take as well."""
    if engine != "auto":
        return engine
    from vfiokit.vmm.kvm import probe

    report = probe(kernel or _host())
    return "kvm" if (report.long_mode if long_mode else report.real_mode) else "interpreter"


@contextmanager
def _open(
    engine: str, memory: tuple[tuple[int, memoryview], ...], bus: Bus, kernel: Kernel | None
) -> Iterator[Vcpu]:
    if engine == "kvm":
        from vfiokit.vmm.kvm import KvmMachine

        with KvmMachine(kernel or _host(), memory) as machine:
            yield machine.create_vcpu(bus)
        return
    from vfiokit.vmm.cpu import Interpreter

    vcpu = Interpreter(memory, bus)
    try:
        yield vcpu
    finally:
        vcpu.close()


def _host() -> Kernel:
    from vfiokit.kernel.linux import LinuxKernel

    return LinuxKernel()
