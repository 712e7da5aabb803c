# SPDX-License-Identifier: MIT
# A guest's NVMe driver, from real mode to a thousand reads.
# origin: 0x8000
# Loaded at 0x8000 and entered there in real mode; src/vfiokit/vmm/nvme_guest.py writes the parameter
# block and reads the results. What it does: long mode with identity maps, configuration scan by
# 0xcf8/0xcfc, BAR 0 sized and assigned, the MSI-X capability found, the controller disabled,
# configured and enabled, Identify, one pair of I/O queues, reads of one page each, as many at a time
# as `depth` says. It sleeps in HLT; interrupts wake it. The handlers consume completions, write the
# head doorbell and the EOI register.
#
# Sources: Intel SDM volume 3 (9.8.5 long mode, 10.8.5 EOI); PCI Local Bus 3.0 (3.2.2.3.2, 6.2.5,
# 6.8.2); NVM Express Base 2.0 (3.5.1 initialization, 4.1 queues).

        .intel_syntax noprefix
        .set    PML4,     0x1000        # page tables: low 512 GiB, and the 512 GiB of the queues
        .set    PDPT_LOW, 0x2000
        .set    PDPT_DMA, 0x3000
        .set    IDT,      0x6000
        .set    STACK,    0x18000
        .set    PARAM,    0x7000
        # parameters
        .set    p_reads,   PARAM + 0x08 # u64, number of reads
        .set    p_lba,     PARAM + 0x10 # u64, first logical block
        .set    p_blocks,  PARAM + 0x18 # u32, logical blocks in a page
        .set    p_nsid,    PARAM + 0x1c # u32
        .set    p_queues,  PARAM + 0x20 # u64, five pages: ASQ, ACQ, SQ, CQ, Identify
        .set    p_data,    PARAM + 0x28 # u64, pages that are read into, in turn
        .set    p_pages,   PARAM + 0x30 # u32, how many
        .set    p_depth,   PARAM + 0x34 # u32, reads on the way at a time
        .set    p_bar,     PARAM + 0x38 # u64, where BAR 0 goes
        .set    p_entries, PARAM + 0x40 # u32, entries of the I/O queues
        .set    p_actions, PARAM + 0x44 # u32, number of actions
        .set    actions,   PARAM + 0x100
        # results
        .set    r_stage,   PARAM + 0x80 # u32
        .set    r_status,  PARAM + 0x84 # u32, status field of the command that failed first
        .set    r_done,    PARAM + 0x88 # u64, reads completed
        .set    r_irqs,    PARAM + 0x90 # u64, interrupts of the I/O queue
        .set    r_empty,   PARAM + 0x98 # u64, interrupts without a completion
        .set    r_errors,  PARAM + 0xa0 # u64, completions with a status
        .set    r_sum,     PARAM + 0xa8 # u64, sum of the first and last words of what was read
        .set    r_cap,     PARAM + 0xb0 # u64
        .set    r_version, PARAM + 0xb8 # u32
        .set    r_where,   PARAM + 0xbc # u32, configuration address of the function
        .set    r_stride,  PARAM + 0xc0 # u32, of the doorbells, bytes
        .set    r_size,    PARAM + 0xc4 # u32, of BAR 0, bytes
        .set    r_sent,    PARAM + 0xc8 # u64, reads submitted
        .set    r_fault,   PARAM + 0xd0 # u64, exception, and where
        .set    r_rip,     PARAM + 0xd8 # u64
        .set    r_admin,   PARAM + 0xe0 # u64, interrupts of the admin queue
        # the driver's own
        .set    v_asq,     PARAM + 0xe8 # u32, tail of the admin queue
        .set    v_acq,     PARAM + 0xec # u32, head, bit 16: phase
        .set    v_sq,      PARAM + 0xf0
        .set    v_cq,      PARAM + 0xf4
        .set    v_reply,   PARAM + 0xf8 # u32, status word of the last admin completion, bit 31: none

        .set    APIC_SVR,  0xfee000f0
        .set    APIC_EOI,  0xfee000b0
        .set    VECTOR_ADMIN, 0x50
        .set    VECTOR_IO,    0x51

        .code16
        .globl  _start
_start: cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, IDT + 0x1000        # for two calls; the IDT is written afterwards
        mov     edi, PML4               # three tables of 512 entries
        mov     cx, 3 * 4096 / 4
        xor     eax, eax
        rep stosd
        mov     dword ptr [PML4], PDPT_LOW | 3
        mov     edi, PDPT_LOW
        xor     ebx, ebx
        call    gigabytes
        mov     eax, [p_queues + 4]
        shr     eax, 7                  # bits 47:39
        jz      1f
        mov     ebx, eax
        shl     ebx, 7
        mov     dword ptr [eax * 8 + PML4], PDPT_DMA | 3
        mov     edi, PDPT_DMA
        call    gigabytes
1:      lgdt    [gdt_pointer]
        mov     eax, cr4
        or      eax, 1 << 5             # PAE
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xc0000080         # EFER
        rdmsr
        or      eax, 1 << 8             # LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31 | 1        # paging and protection at once
        mov     cr0, eax
        .byte   0x66, 0xea              # far jump, 32-bit offset
        .long   long_mode
        .word   0x08

# 512 entries of 1 GiB each at EDI; EBX: the addresses' upper half of the first.
gigabytes:
        xor     ecx, ecx
2:      mov     eax, ecx
        shl     eax, 30
        or      eax, 0x83               # present, writable, large
        mov     [edi], eax
        mov     eax, ecx
        shr     eax, 2
        or      eax, ebx
        mov     [edi + 4], eax
        add     edi, 8
        inc     ecx
        cmp     ecx, 512
        jb      2b
        ret

        .balign 8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # 0x08: code, long
        .quad   0x00cf93000000ffff      # 0x10: data
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   4095
        .quad   IDT

        .code64
long_mode:
        mov     ax, 0x10
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, STACK
        mov     dword ptr [r_stage], 1
        mov     ecx, 32                 # exceptions, all alike
        mov     edi, IDT
        mov     eax, offset exception
3:      call    set_gate
        loop    3b
        mov     edi, IDT + 16 * VECTOR_ADMIN
        mov     eax, offset admin_interrupt
        call    set_gate
        mov     eax, offset io_interrupt
        call    set_gate
        lidt    [idt_pointer]
        mov     esi, APIC_SVR
        mov     dword ptr [rsi], 0x1ff

# -- find it ---------------------------------------------------------------------------------------
        mov     r8d, 0x80000000         # enable, bus 0, device 0
4:      mov     al, 0x08                # class and revision
        call    config_read
        shr     eax, 8
        cmp     eax, 0x010802
        je      5f
        add     r8d, 1 << 11            # the next device
        cmp     r8d, 0x80010000
        jb      4b
        mov     al, 0x81                # no NVMe controller
        jmp     stop
5:      mov     [r_where], r8d
        mov     dword ptr [r_stage], 2

# -- BAR 0 -----------------------------------------------------------------------------------------
        mov     al, 0x10
        mov     edx, -1
        call    config_write
        in      eax, dx                 # DX is 0xcfc still, and the address too
        and     eax, -16
        neg     eax
        mov     [r_size], eax
        mov     eax, [p_bar]
        out     dx, eax
        mov     al, 0x14
        mov     edx, [p_bar + 4]
        call    config_write
        mov     rbx, [p_bar]            # RBX: the registers, from here on
        mov     al, 0x04
        mov     edx, 6                  # memory decoding, bus mastering
        call    config_write
        mov     dword ptr [r_stage], 3

# -- MSI-X -----------------------------------------------------------------------------------------
        mov     al, 0x34
        call    config_read
6:      movzx   r9d, al                 # R9: where in configuration space
        and     r9d, 0xfc
        jnz     7f
        mov     al, 0x82                # no MSI-X
        jmp     stop
7:      mov     eax, r9d
        call    config_read
        cmp     al, 0x11
        je      8f
        mov     al, ah
        jmp     6b
8:      lea     eax, [r9 + 4]
        call    config_read             # table offset and BAR
        and     eax, -8
        lea     rdi, [rbx + rax]        # RDI: the table, taken to be in BAR 0
        mov     eax, VECTOR_ADMIN
        call    msix_entry
        mov     eax, VECTOR_IO
        call    msix_entry
        mov     eax, r9d
        mov     edx, 0x80000000 | 0x11  # enable; the lower half is read-only
        call    config_write
        mov     al, 0
        call    act

# -- the controller --------------------------------------------------------------------------------
        mov     rax, [rbx]              # CAP
        mov     [r_cap], rax
        shr     rax, 32
        and     eax, 15
        mov     ecx, eax
        mov     eax, 4
        shl     eax, cl
        mov     [r_stride], eax
        mov     eax, [rbx + 8]          # VS
        mov     [r_version], eax
        mov     dword ptr [rbx + 0x14], 0       # CC: disable
        xor     edx, edx
        call    wait_ready
        mov     dword ptr [r_stage], 4
        mov     dword ptr [rbx + 0x24], 63 << 16 | 63   # AQA
        mov     rax, [p_queues]
        mov     [rbx + 0x28], rax       # ASQ
        add     rax, 0x1000
        mov     [rbx + 0x30], rax       # ACQ
        mov     dword ptr [v_acq], 1 << 16
        mov     dword ptr [v_cq], 1 << 16
        mov     dword ptr [rbx + 0x14], 4 << 20 | 6 << 16 | 1   # CC: entry sizes, enable
        mov     edx, 1
        call    wait_ready
        mov     dword ptr [r_stage], 5
        mov     al, 1
        call    act

# -- Identify, and the queues ----------------------------------------------------------------------
        mov     rsi, [p_queues]
        lea     rdx, [rsi + 0x4000]
        mov     eax, 0x06               # Identify
        mov     r10d, 1                 # CNS: controller
        xor     r11d, r11d
        call    admin
        mov     dword ptr [r_stage], 6
        mov     r10d, [p_entries]
        dec     r10d
        shl     r10d, 16
        or      r10d, 1                 # size, queue 1
        mov     rsi, [p_queues]
        lea     rdx, [rsi + 0x3000]
        mov     eax, 0x05               # Create I/O Completion Queue
        mov     r11d, 1 << 16 | 3       # vector 1, interrupts, contiguous
        call    admin
        mov     dword ptr [r_stage], 7
        mov     rsi, [p_queues]
        lea     rdx, [rsi + 0x2000]
        mov     eax, 0x01               # Create I/O Submission Queue
        mov     r11d, 1 << 16 | 1       # completions to queue 1, contiguous
        call    admin
        mov     dword ptr [r_stage], 8
        mov     al, 2
        call    act

# -- reads -----------------------------------------------------------------------------------------
        mov     dword ptr [r_stage], 9
        mov     r14, [p_lba]
        xor     r15d, r15d              # R15: page of the next read
next:   cli                             # what the handler changes is looked at
        mov     rax, [r_sent]
        mov     rcx, [r_done]
        cmp     rcx, [p_reads]
        jae     finished
        mov     r13d, [p_depth]
        add     rcx, r13
        cmp     rcx, [p_reads]
        cmova   rcx, [p_reads]          # how far submission may go
        cmp     rax, rcx
        jae     sleep
9:      call    submit
        inc     qword ptr [r_sent]
        inc     rax
        cmp     rax, rcx
        jb      9b
        mov     edx, [r_stride]
        mov     eax, [v_sq]
        mov     [rbx + rdx * 2 + 0x1000], eax   # tail doorbell of queue 1
sleep:  sti                             # takes effect after HLT began
        hlt
        jmp     next
finished:
        sti
        mov     al, 3
        call    act
        mov     al, 10
stop:   movzx   eax, al
        mov     [r_stage], eax
        cli
rest:   hlt
        jmp     rest

# One read of a page; RAX and RCX are kept.
submit: mov     edi, [v_sq]
        mov     edx, edi
        inc     edx
        cmp     edx, [p_entries]
        jb      1f
        xor     edx, edx
1:      mov     [v_sq], edx
        shl     edi, 6
        add     rdi, [p_queues]
        add     rdi, 0x2000
        mov     edx, r15d
        shl     edx, 16                 # command identifier: the page's number
        or      edx, 0x02               # Read
        mov     [rdi], edx
        mov     edx, [p_nsid]
        mov     [rdi + 4], edx
        mov     edx, r15d
        shl     rdx, 12
        add     rdx, [p_data]
        mov     [rdi + 24], rdx         # PRP1
        mov     qword ptr [rdi + 32], 0
        mov     [rdi + 40], r14         # SLBA
        mov     edx, [p_blocks]
        add     r14, rdx
        dec     edx
        mov     [rdi + 48], edx         # blocks, less one
        inc     r15d
        cmp     r15d, [p_pages]
        jb      2f
        xor     r15d, r15d
2:      ret

# An admin command: EAX opcode, RDX PRP1, R10D and R11D dwords 10 and 11. Comes back when it is
# complete, or not at all when it failed.
admin:  mov     edi, [v_asq]
        mov     ecx, edi
        inc     ecx
        and     ecx, 63
        mov     [v_asq], ecx
        mov     r8d, edi
        shl     r8d, 16                 # command identifier: the slot
        or      eax, r8d
        shl     edi, 6
        add     rdi, [p_queues]
        mov     [rdi], eax
        mov     [rdi + 24], rdx
        mov     [rdi + 40], r10d
        mov     [rdi + 44], r11d
        bts     dword ptr [v_reply], 31
        mov     [rbx + 0x1000], ecx     # tail doorbell of the admin queue
1:      cli
        bt      dword ptr [v_reply], 31
        jnc     2f
        sti
        hlt
        jmp     1b
2:      sti
        mov     eax, [v_reply]
        test    eax, eax
        jz      3f
        mov     [r_status], eax
        mov     al, 0x85                # a command failed
        jmp     stop
3:      ret

# Wait until CSTS.RDY is EDX.
wait_ready:
        mov     ecx, 1000000
1:      mov     eax, [rbx + 0x1c]       # CSTS
        test    al, 2
        jnz     2f
        and     eax, 1
        cmp     eax, edx
        je      3f
        pause
        dec     ecx
        jnz     1b
        mov     al, 0x83                # it takes too long
        jmp     stop
2:      mov     al, 0x84                # fatal
        jmp     stop
3:      ret

# -- actions ---------------------------------------------------------------------------------------
# What a test wants written at moment AL: 16 bytes each, {u8 moment, u8 kind, u8 width, u8, u32 value,
# u64 address}; kind 0: offset in BAR 0, 1: guest-physical, 2: configuration space.
act:    mov     r12d, offset actions
        mov     r13d, [p_actions]
        mov     r11d, eax
1:      dec     r13d
        js      5f
        cmp     r11b, [r12]
        jne     4f
        mov     edx, [r12 + 4]
        mov     rdi, [r12 + 8]
        cmp     byte ptr [r12 + 1], 1
        je      2f
        ja      3f
        add     rdi, rbx
2:      cmp     byte ptr [r12 + 2], 2
        jb      6f
        je      7f
        mov     [rdi], edx
        jmp     4f
6:      mov     [rdi], dl
        jmp     4f
7:      mov     [rdi], dx
        jmp     4f
3:      mov     r8d, [r_where]
        mov     eax, edi
        call    config_write
4:      add     r12, 16
        jmp     1b
5:      ret

# -- interrupts ------------------------------------------------------------------------------------
admin_interrupt:
        push    rax
        push    rcx
        push    rdx
        push    rdi
        inc     qword ptr [r_admin]
        mov     edx, [v_acq]
        movzx   edi, dx                 # head
        shl     edi, 4
        add     rdi, [p_queues]
        movzx   eax, word ptr [rdi + 0x1000 + 14]       # status and phase
        mov     ecx, edx
        shr     ecx, 16
        xor     ecx, eax
        test    cl, 1
        jnz     1f
        shr     eax, 1
        mov     [v_reply], eax
        inc     edx
        and     edx, 0x1003f
        test    edx, 0x3f
        jnz     2f
        btc     edx, 16                 # around: the other phase
2:      mov     [v_acq], edx
        movzx   eax, dx
        mov     ecx, [r_stride]
        mov     [rbx + rcx + 0x1000], eax       # head doorbell of the admin queue
        jmp     3f
1:      inc     qword ptr [r_empty]
3:      mov     edi, APIC_EOI
        mov     dword ptr [rdi], 0
        pop     rdi
        pop     rdx
        pop     rcx
        pop     rax
        iretq

io_interrupt:
        push    rax
        push    rcx
        push    rdx
        push    rsi
        push    rdi
        inc     qword ptr [r_irqs]
        xor     esi, esi                # completions of this interrupt
        mov     edx, [v_cq]
1:      movzx   edi, dx
        shl     edi, 4
        add     rdi, [p_queues]
        add     rdi, 0x3000
        mov     ecx, [rdi + 12]         # identifier, phase, status
        mov     eax, edx
        xor     eax, ecx
        bt      eax, 16                 # the phases agree?
        jc      4f
        inc     esi
        mov     eax, ecx
        shr     eax, 17
        jz      2f
        inc     qword ptr [r_errors]
        mov     [r_status], eax
        jmp     3f
2:      movzx   edi, cx                 # the page that was read into
        shl     rdi, 12
        add     rdi, [p_data]
        mov     rax, [rdi]
        add     rax, [rdi + 4088]
        add     [r_sum], rax
3:      inc     edx
        cmp     dx, [p_entries]
        jb      1b
        and     edx, 0x10000
        btc     edx, 16
        jmp     1b
4:      mov     [v_cq], edx
        add     [r_done], rsi
        test    esi, esi
        jz      5f
        movzx   eax, dx
        mov     ecx, [r_stride]
        lea     ecx, [rcx + rcx * 2]
        mov     [rbx + rcx + 0x1000], eax       # head doorbell of queue 1
        jmp     6f
5:      inc     qword ptr [r_empty]
6:      mov     edi, APIC_EOI
        mov     dword ptr [rdi], 0
        pop     rdi
        pop     rsi
        pop     rdx
        pop     rcx
        pop     rax
        iretq

exception:
        mov     rax, [rsp]              # where, or the error code
        mov     [r_fault], rax
        mov     rax, [rsp + 8]
        mov     [r_rip], rax
        mov     al, 0x86
        jmp     stop

# -- small things ----------------------------------------------------------------------------------
# A gate at RDI for the handler at EAX (below 4 GiB); RDI goes on to the next.
set_gate:
        mov     [rdi], ax
        mov     word ptr [rdi + 2], 0x08
        mov     word ptr [rdi + 4], 0x8e00      # present, interrupt gate
        mov     edx, eax
        shr     edx, 16
        mov     [rdi + 6], dx
        mov     qword ptr [rdi + 8], 0
        add     rdi, 16
        ret

# An MSI-X entry at RDI: vector EAX at processor 0, not masked; RDI goes on to the next.
msix_entry:
        mov     dword ptr [rdi], 0xfee00000
        mov     dword ptr [rdi + 4], 0
        mov     [rdi + 8], eax
        mov     dword ptr [rdi + 12], 0
        add     rdi, 16
        ret

# Configuration space of the function R8D: the dword at AL to EAX; EDX to the dword at AL. DX is
# 0xcfc afterwards.
config_read:
        movzx   eax, al
        or      eax, r8d
        mov     dx, 0xcf8
        out     dx, eax
        mov     dl, 0xfc
        in      eax, dx
        ret
config_write:
        mov     ecx, edx
        movzx   eax, al
        or      eax, r8d
        mov     dx, 0xcf8
        out     dx, eax
        mov     dl, 0xfc
        mov     eax, ecx
        out     dx, eax
        ret
