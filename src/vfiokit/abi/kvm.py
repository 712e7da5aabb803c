"""``linux/kvm.h`` and x86's ``asm/kvm.h``: what a small hypervisor needs of them, C names verbatim.

Of ``struct kvm_run``, which is a union mapped into the process, only offsets are here, as
``KVM_RUN_<member>_<field>``. Arrays are spelled out by their elements.

Source: Linux 6.1 ``include/uapi/linux/kvm.h``, ``arch/x86/include/uapi/asm/kvm.h``;
``tests/abi/test_kvm.py`` asks a compiler for every name.
"""

from __future__ import annotations

from vfiokit.abi._layout import CStruct, s32, u8, u16, u32, u64

KVM_API_VERSION = 12

# /dev/kvm.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05

# A virtual machine.
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
KVM_CREATE_IRQCHIP = 0xAE60
KVM_SET_GSI_ROUTING = 0x4008AE6A
KVM_IRQFD = 0x4020AE76
KVM_IOEVENTFD = 0x4040AE79
KVM_SIGNAL_MSI = 0x4020AEA5

# A virtual processor.
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_INTERRUPT = 0x4004AE86
KVM_GET_LAPIC = 0x8400AE8E
KVM_SET_LAPIC = 0x4400AE8F
KVM_SET_CPUID2 = 0x4008AE90

# Extensions: answers of KVM_CHECK_EXTENSION.
KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_IRQFD = 32
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_IMMEDIATE_EXIT = 136

# Reasons of an exit.
KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_MEM_LOG_DIRTY_PAGES = 1
KVM_MEM_READONLY = 2

KVM_IOEVENTFD_FLAG_DATAMATCH = 1
KVM_IOEVENTFD_FLAG_PIO = 2
KVM_IOEVENTFD_FLAG_DEASSIGN = 4
KVM_IRQFD_FLAG_DEASSIGN = 1
KVM_IRQFD_FLAG_RESAMPLE = 2
KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2

# Offsets in struct kvm_run.
KVM_RUN_request_interrupt_window = 0
KVM_RUN_immediate_exit = 1
KVM_RUN_exit_reason = 8
KVM_RUN_ready_for_interrupt_injection = 12
KVM_RUN_if_flag = 13
KVM_RUN_io_direction = 32
KVM_RUN_io_size = 33
KVM_RUN_io_port = 34
KVM_RUN_io_count = 36
KVM_RUN_io_data_offset = 40
KVM_RUN_mmio_phys_addr = 32
KVM_RUN_mmio_data = 40
KVM_RUN_mmio_len = 48
KVM_RUN_mmio_is_write = 52
KVM_RUN_hypercall_nr = 32
KVM_RUN_hypercall_args = 40
KVM_RUN_hypercall_ret = 88
KVM_RUN_fail_entry_hardware_entry_failure_reason = 32
KVM_RUN_internal_suberror = 32


class kvm_userspace_memory_region(CStruct):
    """A slot: guest-physical memory that is memory of this process."""

    slot: u32 = 0
    flags: u32 = 0
    guest_phys_addr: u64 = 0
    memory_size: u64 = 0
    userspace_addr: u64 = 0


class kvm_regs(CStruct):
    """General registers."""

    rax: u64 = 0
    rbx: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    rsp: u64 = 0
    rbp: u64 = 0
    r8: u64 = 0
    r9: u64 = 0
    r10: u64 = 0
    r11: u64 = 0
    r12: u64 = 0
    r13: u64 = 0
    r14: u64 = 0
    r15: u64 = 0
    rip: u64 = 0
    rflags: u64 = 0


class kvm_segment(CStruct):
    """A segment register with its hidden part; eight of them begin ``struct kvm_sregs``."""

    base: u64 = 0
    limit: u32 = 0
    selector: u16 = 0
    type: u8 = 0
    present: u8 = 0
    dpl: u8 = 0
    db: u8 = 0
    s: u8 = 0
    l: u8 = 0  # noqa: E741 - the C name
    g: u8 = 0
    avl: u8 = 0
    unusable: u8 = 0
    padding: u8 = 0


class kvm_dtable(CStruct):
    """GDTR or IDTR; two of them follow the segments in ``struct kvm_sregs``."""

    base: u64 = 0
    limit: u16 = 0
    padding0: u16 = 0
    padding1: u16 = 0
    padding2: u16 = 0


KVM_SREGS_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
KVM_SREGS_TABLES = ("gdt", "idt")
KVM_SREGS_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
KVM_SREGS_SIZE = 312
"""``sizeof(struct kvm_sregs)``: the above in this order, then ``__u64 interrupt_bitmap[4]``."""


class kvm_ioeventfd(CStruct):
    """A store that signals an eventfd instead of an exit."""

    datamatch: u64 = 0
    addr: u64 = 0
    len: u32 = 0
    fd: s32 = 0
    flags: u32 = 0
    pad: u32 = 0
    pad1: u64 = 0
    pad2: u64 = 0
    pad3: u64 = 0
    pad4: u32 = 0
    pad5: u32 = 0


class kvm_irqfd(CStruct):
    """An eventfd that raises a GSI."""

    fd: u32 = 0
    gsi: u32 = 0
    flags: u32 = 0
    resamplefd: u32 = 0
    pad0: u64 = 0
    pad1: u64 = 0


class kvm_msi(CStruct):
    """A message for KVM_SIGNAL_MSI."""

    address_lo: u32 = 0
    address_hi: u32 = 0
    data: u32 = 0
    flags: u32 = 0
    devid: u32 = 0
    pad0: u32 = 0
    pad1: u32 = 0
    pad2: u32 = 0


class kvm_irq_routing_msi_entry(CStruct):
    """``struct kvm_irq_routing_entry`` with its union as ``struct kvm_irq_routing_msi``."""

    gsi: u32 = 0
    type: u32 = 0
    flags: u32 = 0
    pad: u32 = 0
    address_lo: u32 = 0
    address_hi: u32 = 0
    data: u32 = 0
    devid: u32 = 0
    rest0: u64 = 0
    rest1: u64 = 0
