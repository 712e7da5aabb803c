"""Why a virtual processor gave control back: the exits, named as KVM names them.

Source: Linux ``include/uapi/linux/kvm.h`` (``KVM_EXIT_*``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ExitReason(Enum):
    """The kinds of exit; values are the words used in reports."""

    IO = "io"
    """IN or OUT."""
    MMIO = "mmio"
    """A load or store to guest-physical memory that is no RAM of the guest, or is trapped."""
    HLT = "hlt"
    """HLT: the processor waits for an interrupt."""
    RDMSR = "rdmsr"
    WRMSR = "wrmsr"
    CPUID = "cpuid"
    HYPERCALL = "hypercall"
    """VMCALL or VMMCALL."""
    FAIL_ENTRY = "fail-entry"
    """The processor could not begin: its state makes no sense."""
    SHUTDOWN = "shutdown"
    """A triple fault."""
    INTR = "intr"
    """The budget is spent, or somebody outside wants the processor to stop."""


@dataclass(slots=True)
class Exit:
    """One exit. Which fields mean something depends on ``reason``.

    A read (``write`` false) of ``IO``, ``MMIO`` or ``RDMSR``, and a ``CPUID`` or ``HYPERCALL``, is
    finished by :meth:`~vfiokit.vmm.vcpu.Vcpu.complete` before the next ``run``.
    """

    reason: ExitReason
    address: int = 0
    """Port of ``IO``, guest-physical address of ``MMIO``, number of an MSR, leaf of ``CPUID``,
    number of a ``HYPERCALL`` (RAX)."""
    width: int = 0
    """Bytes of an access."""
    write: bool = False
    value: int = 0
    """What is written; subleaf of ``CPUID``."""
    arguments: tuple[int, ...] = ()
    """RBX, RCX, RDX, RSI of a ``HYPERCALL``, as KVM's hypercalls take them."""
    detail: str = ""
    """For ``FAIL_ENTRY``, ``SHUTDOWN`` and what the engine cannot do: why, in words."""
