# SPDX-License-Identifier: MIT
# A driver for the virtio P2P device: finds it, starts it, asks about pairs of functions, one after
# the other, and looks for the answers without interrupts.
# origin: 0x8000
# Entered in 64-bit mode, BARs placed by firmware below 4 GiB; src/vfiokit/vmm/p2p_guest.py writes
# the parameters and reads the results. Sources: VIRTIO 1.2 (3.1.1, 4.1), docs/virtio-p2p.md.

        .intel_syntax noprefix
        .code64
        .set    PARAM,   0x7000         # u32, number of pairs
        .set    r_error, PARAM + 0x18   # u32, why it gave up
        .set    PAIRS,   PARAM + 0x100  # u32 provider, u32 client, u64 result
        .set    DESC,    0x40000
        .set    AVAIL,   0x41000
        .set    USED,    0x42000
        .set    REQUEST, 0x43000
        .set    REPLY,   0x43100
        .set    ENTRIES, 8

        .set    IDS,     0x107f1af4
        .set    c_device_select, 0
        .set    c_device_features, 4
        .set    c_driver_select, 8
        .set    c_driver_features, 12
        .set    c_status, 20
        .set    c_queue, 22
        .set    c_size,  24
        .set    c_enable, 28
        .set    c_notify_off, 30
        .set    c_desc,  32
        .set    c_avail, 40
        .set    c_used,  48

        .set    NO_DEVICE, 1
        .set    NO_VERSION_1, 2
        .set    REFUSED, 3
        .set    NO_VERSION, 4
        .set    BROKEN,  5

        .globl  _start
_start: mov     ebx, 0x80000000         # function 0 of every device of bus 0
1:      xor     ecx, ecx
        call    read_config
        cmp     eax, IDS
        je      found
        add     ebx, 0x800
        cmp     ebx, 0x80010000
        jb      1b
        mov     eax, NO_DEVICE
        jmp     fail

found:  mov     ecx, 0x04
        call    read_config
        or      eax, 0x0006             # memory, bus master
        and     eax, 0xffff             # status bits are cleared by ones
        mov     r8d, eax
        call    write_config
        mov     ecx, 0x34
        call    read_config
        movzx   r9d, al
capability:
        mov     ecx, r9d
        call    read_config
        mov     r10d, eax
        cmp     al, 0x09
        jne     1f
        lea     ecx, [r9 + 4]
        call    read_config
        movzx   ecx, al
        lea     ecx, [rcx * 4 + 0x10]
        call    read_config             # the BAR
        and     eax, -16
        mov     r11d, eax
        lea     ecx, [r9 + 8]
        call    read_config
        add     r11d, eax
        mov     eax, r10d
        shr     eax, 24
        cmp     eax, 1
        cmove   r12d, r11d              # common configuration
        cmp     eax, 4
        cmove   r14d, r11d              # the device's own
        cmp     eax, 2
        jne     1f
        mov     r13d, r11d              # notifications
        lea     ecx, [r9 + 16]
        call    read_config
        mov     ebp, eax
1:      mov     eax, r10d
        shr     eax, 8
        movzx   r9d, al
        test    r9d, r9d
        jnz     capability

        mov     byte ptr [r12 + c_status], 0
2:      cmp     byte ptr [r12 + c_status], 0
        jne     2b
        mov     byte ptr [r12 + c_status], 1
        mov     byte ptr [r12 + c_status], 3
        mov     dword ptr [r12 + c_device_select], 1
        test    dword ptr [r12 + c_device_features], 1
        mov     eax, NO_VERSION_1
        jz      fail
        mov     dword ptr [r12 + c_driver_select], 0
        mov     dword ptr [r12 + c_driver_features], 0
        mov     dword ptr [r12 + c_driver_select], 1
        mov     dword ptr [r12 + c_driver_features], 1
        mov     byte ptr [r12 + c_status], 0x0b
        test    byte ptr [r12 + c_status], 8
        mov     eax, REFUSED
        jz      fail
        cmp     word ptr [r14], 1       # later versions take the requests of earlier ones
        mov     eax, NO_VERSION
        jb      fail

        mov     edi, DESC               # two descriptors: request and reply
        mov     qword ptr [rdi], REQUEST
        mov     dword ptr [rdi + 8], 16
        mov     dword ptr [rdi + 12], 1 << 16 | 1
        mov     qword ptr [rdi + 16], REPLY
        mov     dword ptr [rdi + 24], 16
        mov     dword ptr [rdi + 28], 2
        xor     eax, eax                # rings: head 0 everywhere
        mov     edi, AVAIL
        mov     ecx, 8
        rep stosd
        mov     edi, USED
        mov     ecx, 20
        rep stosd
        mov     word ptr [AVAIL], 1     # no interrupts
        mov     word ptr [r12 + c_queue], 0
        mov     word ptr [r12 + c_size], ENTRIES
        mov     dword ptr [r12 + c_desc], DESC
        mov     dword ptr [r12 + c_desc + 4], 0
        mov     dword ptr [r12 + c_avail], AVAIL
        mov     dword ptr [r12 + c_avail + 4], 0
        mov     dword ptr [r12 + c_used], USED
        mov     dword ptr [r12 + c_used + 4], 0
        movzx   eax, word ptr [r12 + c_notify_off]
        imul    eax, ebp
        add     r13d, eax
        mov     word ptr [r12 + c_enable], 1
        mov     byte ptr [r12 + c_status], 0x0f

        mov     r8d, PAIRS
        mov     r15d, [PARAM]
query:  test    r15d, r15d
        jz      stop
        mov     dword ptr [REQUEST], 1 << 16 | 1
        mov     dword ptr [REQUEST + 4], 0
        mov     rax, [r8]
        mov     [REQUEST + 8], rax
        inc     word ptr [AVAIL + 2]
        mfence
        mov     word ptr [r13], 0
1:      movzx   eax, word ptr [USED + 2]
        cmp     ax, [AVAIL + 2]
        je      2f
        pause
        test    byte ptr [r12 + c_status], 0x40
        jz      1b
        mov     eax, BROKEN
        jmp     fail
2:      movzx   eax, word ptr [REPLY]
        shl     rax, 56
        mov     edx, [REPLY + 8]
        shl     rdx, 8
        or      rax, rdx
        mov     edx, [REPLY + 4]
        or      rax, rdx
        mov     [r8 + 8], rax
        add     r8d, 16
        dec     r15d
        jmp     query

fail:   mov     [r_error], eax
stop:   hlt
        jmp     stop

# EBX: function, ECX: register, aligned. EAX: its value. Changes EDX.
read_config:
        lea     eax, [rbx + rcx]
        mov     edx, 0xcf8
        out     dx, eax
        mov     edx, 0xcfc
        in      eax, dx
        ret

# The same, R8D is what is written. Changes EAX, EDX.
write_config:
        lea     eax, [rbx + rcx]
        mov     edx, 0xcf8
        out     dx, eax
        mov     eax, r8d
        mov     edx, 0xcfc
        out     dx, eax
        ret
