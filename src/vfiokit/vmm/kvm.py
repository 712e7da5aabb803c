"""A virtual machine of the host's KVM: memory slots, eventfds for stores and interrupts.

Everything goes through the kernel seam. What a machine's KVM can run is found by trying
(:func:`probe`): some, nested in other hypervisors, run real mode only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from vfiokit.abi import kvm
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.linux import address_of
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.owner import Closing
from vfiokit.vmm.kvm_vcpu import KvmVcpu
from vfiokit.vmm.vcpu import Bus

NODE: Final = "/dev/kvm"
_TSS: Final = 0xFFFB_D000
"""Three pages below the ROM that Intel processors need for real mode."""
_IDENTITY_MAP: Final = 0xFFFB_C000
_CPUID_ENTRIES: Final = 256
_CPUID_ENTRY_SIZE: Final = 40


class KvmMachine(Closing):
    """One virtual machine; use it in a ``with`` block.

    ``memory`` are ``(gpa, view)`` pairs of RAM, page aligned in this process as well
    (:class:`UsageError` otherwise): each becomes a slot. With ``irqchip`` the kernel has the
    interrupt controllers, which irqfds need; HLT is no exit then. Raises :class:`KernelError`
    where there is no KVM, or it refuses.
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: Iterable[tuple[int, memoryview]],
        *,
        irqchip: bool = False,
    ) -> None:
        self._kernel = kernel
        self.irqchip = irqchip
        """Whether the kernel has the interrupt controllers."""
        self._routes: dict[int, tuple[int, int]] = {}
        with ExitStack() as opening:
            self._system = self._open(opening)
            self.fd = self._call(self._system, kvm.KVM_CREATE_VM, 0, "KVM_CREATE_VM")
            """Descriptor of the virtual machine."""
            opening.callback(kernel.close, self.fd)
            with suppress(OSError):  # only Intel's need, and have, them
                kernel.ioctl(
                    self.fd,
                    kvm.KVM_SET_IDENTITY_MAP_ADDR,
                    bytearray(struct.pack("<Q", _IDENTITY_MAP)),
                )
                kernel.ioctl(self.fd, kvm.KVM_SET_TSS_ADDR, _TSS)
            if irqchip:
                self._call(self.fd, kvm.KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP")
            for slot, (gpa, view) in enumerate(memory):
                self._set_memory(slot, gpa, view)
            self._run_size = self._call(
                self._system, kvm.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE"
            )
            self._closing = opening.pop_all()
        self._count = 0

    def _open(self, opening: ExitStack) -> int:
        try:
            fd = self._kernel.open(NODE)
        except OSError as error:
            raise KernelError(
                "open", NODE, error.errno or 0, hint="use the interpreter: --engine interpreter"
            ) from None
        opening.callback(self._kernel.close, fd)
        version = self._call(fd, kvm.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")
        if version != kvm.KVM_API_VERSION:
            raise UsageError(f"this KVM speaks version {version}, not {kvm.KVM_API_VERSION}")
        return fd

    def _call(self, fd: int, request: int, argument: int | bytearray, what: str) -> int:
        try:
            return self._kernel.ioctl(fd, request, argument)
        except OSError as error:
            raise KernelError(what, NODE, error.errno or 0) from None

    def _set_memory(self, slot: int, gpa: int, view: memoryview) -> None:
        vaddr = address_of(view)
        if (gpa | vaddr | len(view)) % self._kernel.page_size:
            raise UsageError(
                f"RAM at gpa {gpa:#x} has to be whole pages, page aligned in this process",
                hint="allocate it by the kernel seam: kernel.allocate(length)",
            )
        region = kvm.kvm_userspace_memory_region(
            slot=slot, guest_phys_addr=gpa, memory_size=len(view), userspace_addr=vaddr
        )
        self._call(
            self.fd, kvm.KVM_SET_USER_MEMORY_REGION, region.pack(), "KVM_SET_USER_MEMORY_REGION"
        )

    def close(self) -> None:
        """Close its processors and itself. Idempotent."""
        self._closing.close()

    def create_vcpu(self, bus: Bus) -> KvmVcpu:
        """A processor, as after reset but for its segments, which begin at 0 as RIP does."""
        fd = self._call(self.fd, kvm.KVM_CREATE_VCPU, self._count, "KVM_CREATE_VCPU")
        self._count += 1
        self._closing.callback(self._kernel.close, fd)
        self._set_cpuid(fd)
        vcpu = KvmVcpu(self._kernel, fd, self._run_size, bus, irqchip=self.irqchip)
        self._closing.callback(vcpu.close)
        return vcpu

    def _set_cpuid(self, fd: int) -> None:
        """Let the guest have all that this KVM supports: 64-bit mode is checked against it."""
        buffer = bytearray(8 + _CPUID_ENTRIES * _CPUID_ENTRY_SIZE)
        buffer[:4] = struct.pack("<I", _CPUID_ENTRIES)
        self._call(self._system, kvm.KVM_GET_SUPPORTED_CPUID, buffer, "KVM_GET_SUPPORTED_CPUID")
        self._call(fd, kvm.KVM_SET_CPUID2, buffer, "KVM_SET_CPUID2")

    def extension(self, number: int) -> int:
        """KVM_CHECK_EXTENSION."""
        return self._call(self.fd, kvm.KVM_CHECK_EXTENSION, number, "KVM_CHECK_EXTENSION")

    # -- eventfds -------------------------------------------------------------------------------

    def ioeventfd(
        self,
        gpa: int,
        width: int,
        eventfd: int,
        *,
        value: int | None = None,
        port: bool = False,
        remove: bool = False,
    ) -> None:
        """Let a store of ``width`` bytes at ``gpa`` (or a port) signal ``eventfd``: no exit.

        Only for ``value`` where one is given. ``remove`` takes it back.
        """
        flags = kvm.KVM_IOEVENTFD_FLAG_PIO if port else 0
        if value is not None:
            flags |= kvm.KVM_IOEVENTFD_FLAG_DATAMATCH
        if remove:
            flags |= kvm.KVM_IOEVENTFD_FLAG_DEASSIGN
        request = kvm.kvm_ioeventfd(
            addr=gpa, len=width, fd=eventfd, flags=flags, datamatch=value or 0
        )
        self._call(self.fd, kvm.KVM_IOEVENTFD, request.pack(), "KVM_IOEVENTFD")

    def route_msi(self, gsi: int, address: int, data: int) -> None:
        """Let ``gsi`` be this message; routes of other GSIs stay, the first drops the default."""
        self._routes[gsi] = (address, data)
        buffer = bytearray(struct.pack("<II", len(self._routes), 0))
        for number, (target, payload) in self._routes.items():
            entry = kvm.kvm_irq_routing_msi_entry(
                gsi=number, type=kvm.KVM_IRQ_ROUTING_MSI,
                address_lo=target & 0xFFFF_FFFF, address_hi=target >> 32, data=payload,
            )  # fmt: skip
            buffer += entry.pack()
        self._call(self.fd, kvm.KVM_SET_GSI_ROUTING, buffer, "KVM_SET_GSI_ROUTING")

    def irqfd(self, eventfd: int, gsi: int, *, remove: bool = False) -> None:
        """Let ``eventfd`` raise ``gsi`` without this process; needs ``irqchip``."""
        flags = kvm.KVM_IRQFD_FLAG_DEASSIGN if remove else 0
        request = kvm.kvm_irqfd(fd=eventfd, gsi=gsi, flags=flags)
        self._call(self.fd, kvm.KVM_IRQFD, request.pack(), "KVM_IRQFD")

    def signal_msi(self, address: int, data: int) -> bool:
        """Deliver a message now; whether a processor took it. Needs ``irqchip``."""
        request = kvm.kvm_msi(address_lo=address & 0xFFFF_FFFF, address_hi=address >> 32, data=data)
        return self._call(self.fd, kvm.KVM_SIGNAL_MSI, request.pack(), "KVM_SIGNAL_MSI") > 0


class KvmReport(NamedTuple):
    """What the KVM of a host can run, found by trying."""

    available: bool
    real_mode: bool
    long_mode: bool
    detail: str
    """What was found, in words."""


_REAL: Final = b"\xb8\x07\x00\xf4"
"""mov ax, 7; hlt"""
_LONG: Final = b"\x48\xc7\xc0\x07\x00\x00\x00\xf4"
"""mov rax, 7; hlt"""
_TRIAL_BUDGET: Final = 100_000


def probe(kernel: Kernel) -> KvmReport:
    """Run two instructions in real mode and in 64-bit mode, and say what came of it."""
    real, detail = _try(kernel, _REAL, long_mode=False)
    if real is None:
        return KvmReport(False, False, False, detail)
    if not real:
        return KvmReport(True, False, False, f"a real-mode guest does not run: {detail}")
    long_mode, detail = _try(kernel, _LONG, long_mode=True)
    if not long_mode:
        return KvmReport(True, True, False, f"real-mode guests run; 64-bit ones do not: {detail}")
    return KvmReport(True, True, True, "real-mode and 64-bit guests run")


def _try(kernel: Kernel, program: bytes, *, long_mode: bool) -> tuple[bool | None, str]:
    """Whether ``program`` ran, ``None`` where there is no KVM; and what happened instead."""
    from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
    from vfiokit.vmm.exit import ExitReason

    memory = kernel.allocate(0x20000)
    try:
        memory.view[0x1000 : 0x1000 + len(program)] = program
        try:
            machine = KvmMachine(kernel, [(0, memory.view)])
        except (KernelError, UsageError) as error:
            return None, str(error)
        with machine:
            vcpu = machine.create_vcpu(_Nothing())
            if long_mode:
                enter_long_mode(vcpu, memory.view, 0x1000, tables=0x8000, stack=0x8000)
            else:
                enter_real_mode(vcpu, 0x1000, stack=0x8000)
            leaving = vcpu.run(_TRIAL_BUDGET)
            if leaving.reason is ExitReason.HLT and vcpu.read_register("rax") & 0xFFFF == 7:
                return True, ""
            said = f": {leaving.detail}" if leaving.detail else ""
            return False, f"the first run ended with {leaving.reason.value}{said}"
    except KernelError as error:
        return False, str(error)
    finally:
        memory.close()


class _Nothing:
    """A bus without devices."""

    def read(self, gpa: int, width: int) -> int | None:
        """Traps."""
        del gpa, width
        return None

    def write(self, gpa: int, width: int, value: int) -> bool:
        """Traps."""
        del gpa, width, value
        return False
