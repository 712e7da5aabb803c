# SPDX-License-Identifier: MIT
# Decides by itself about pairs of functions: reads all configuration space, then does what Linux's
# calc_map_type_and_dist() does on what it saw.
# origin: 0x8000
# Entered in 64-bit mode; src/vfiokit/vmm/p2p_guest.py writes the parameters and reads the results.
#
# Source of the rule and of the list of host bridges: Linux 7.2 drivers/pci/p2pdma.c.

        .intel_syntax noprefix
        .code64
        .set    PARAM,    0x7000        # u32, number of pairs
        .set    p_zen,    PARAM + 0x04  # u8, the processor is AMD Zen
        .set    p_ecam,   PARAM + 0x08  # u64, where configuration space lies in memory
        .set    p_roots,  PARAM + 0x10  # u32, number of root buses
        .set    r_found,  PARAM + 0x14  # u32, functions found
        .set    root_bus, PARAM + 0x20  # u8 each, as firmware tells them
        .set    PAIRS,    PARAM + 0x100 # u32 provider, u32 client, u64 result
        .set    EINVAL,   22

# What was found, 16 bytes a function, in the order of the scan.
        .set    TABLE,    0x10000
        .set    f_rid,    0             # u16, requester ID
        .set    f_redir,  3             # u8, an ACS redirect is set
        .set    f_ids,    4             # u32, device and vendor
        .set    f_type,   8             # u8, type of PCI Express port, 0xff conventional
        .set    f_root,   9             # u8, root bus
        .set    f_above,  12            # u32, the bridge above, 0 on a root bus

        .set    ROOT_PORT, 4
        .set    REDIRECTS, 0x2c         # request, completion, egress control
        .set    NOT_SUPPORTED, 1
        .set    BUS_ADDR, 2
        .set    THRU_HOST_BRIDGE, 3

        .globl  _start
_start: cld
        mov     r15d, TABLE             # end of the table
        xor     r12d, r12d
roots:  cmp     r12d, [p_roots]
        jae     answers
        movzx   r13d, byte ptr [r12 + root_bus]
        mov     edi, r13d
        xor     esi, esi
        call    scan_bus
        inc     r12d
        jmp     roots

# -- looking --------------------------------------------------------------------------------------

# EDI: bus, ESI: the bridge above, R13D: root bus. Keeps RBP, R12, R13, R14.
scan_bus:
        push    rbp
        push    r12
        push    r14
        mov     r14d, esi
        mov     r12d, edi
        shl     r12d, 8
        xor     ebp, ebp                # device and function
1:      lea     ebx, [r12 + rbp]
        shl     rbx, 12
        add     rbx, [p_ecam]
        mov     eax, [rbx]
        cmp     eax, -1
        je      5f
        lea     ecx, [r12 + rbp]
        mov     [r15 + f_rid], cx
        mov     byte ptr [r15 + f_redir], 0
        mov     [r15 + f_ids], eax
        mov     byte ptr [r15 + f_type], 0xff
        mov     [r15 + f_root], r13b
        mov     [r15 + f_above], r14d
        call    capabilities
        movzx   r8d, byte ptr [rbx + 0x0e]
        mov     esi, r15d
        add     r15d, 16
        mov     eax, r8d
        and     eax, 0x7f
        cmp     eax, 1
        jne     2f
        movzx   edi, byte ptr [rbx + 0x19]
        mov     eax, r12d
        shr     eax, 8
        cmp     edi, eax                # a bus below has a higher number
        jbe     2f
        push    r8
        call    scan_bus
        pop     r8
2:      test    ebp, 7
        jnz     3f
        test    r8b, 0x80               # more than one function
        jz      6f
3:      inc     ebp
4:      cmp     ebp, 256
        jb      1b
        pop     r14
        pop     r12
        pop     rbp
        ret
5:      test    ebp, 7
        jnz     3b
6:      add     ebp, 8                  # the next device
        jmp     4b

# RBX: configuration space, R15: entry. Changes EAX, ECX, EDX.
capabilities:
        test    byte ptr [rbx + 0x06], 0x10
        jz      9f
        movzx   ecx, byte ptr [rbx + 0x34]
        mov     edx, 48                 # a list is no longer than that
1:      and     ecx, 0xfc
        jz      9f
        movzx   eax, word ptr [rbx + rcx]
        cmp     al, 0x10
        je      2f
        movzx   ecx, ah
        dec     edx
        jnz     1b
9:      ret
2:      movzx   eax, word ptr [rbx + rcx + 2]
        shr     eax, 4
        and     eax, 15
        mov     [r15 + f_type], al
        mov     ecx, 0x100
        mov     edx, 96
3:      mov     eax, [rbx + rcx]
        test    eax, eax
        jz      9b
        cmp     eax, -1
        je      9b
        cmp     ax, 0x0d
        je      4f
        shr     eax, 20
        and     eax, 0xffc
        mov     ecx, eax
        cmp     ecx, 0x100
        jb      9b
        dec     edx
        jnz     3b
        ret
4:      test    byte ptr [rbx + rcx + 6], REDIRECTS
        setnz   byte ptr [r15 + f_redir]
        ret

# -- deciding -------------------------------------------------------------------------------------

answers:
        mov     eax, r15d
        sub     eax, TABLE
        shr     eax, 4
        mov     [r_found], eax
        xor     r12d, r12d
1:      cmp     r12d, [PARAM]
        jae     3f
        mov     r14d, r12d
        shl     r14d, 4
        add     r14d, PAIRS
        mov     eax, [r14]
        call    find
        mov     r8d, ecx
        mov     eax, [r14 + 4]
        call    find
        mov     r9d, ecx
        mov     rax, -EINVAL
        test    r8d, r8d
        jz      2f
        test    r9d, r9d
        jz      2f
        call    decide
2:      mov     [r14 + 8], rax
        inc     r12d
        jmp     1b
3:      hlt
        jmp     3b

# EAX: guest address. ECX: its entry, or 0. Changes EDX.
find:   mov     ecx, TABLE
1:      cmp     ecx, r15d
        jae     2f
        movzx   edx, word ptr [rcx + f_rid]
        cmp     edx, eax
        je      3f
        add     ecx, 16
        jmp     1b
2:      xor     ecx, ecx
3:      ret

# R8D: provider, R9D: client. RAX: distance << 8 | map type.
decide: xor     ebx, ebx                # a redirect was seen
        xor     esi, esi                # steps from the provider
        mov     r10d, r8d
1:      or      bl, [r10 + f_redir]
        mov     r11d, r9d
        xor     edi, edi                # steps from the client
2:      cmp     r10d, r11d
        je      3f
        mov     r11d, [r11 + f_above]
        inc     edi
        test    r11d, r11d
        jnz     2b
        mov     r10d, [r10 + f_above]
        inc     esi
        test    r10d, r10d
        jnz     1b
        jmp     host_bridge             # no bridge in common: redirects do not matter
3:      mov     r11d, r9d
4:      cmp     r11d, r10d
        je      5f
        or      bl, [r11 + f_redir]
        mov     r11d, [r11 + f_above]
        jmp     4b
5:      mov     eax, BUS_ADDR
        test    bl, bl
        jz      answer
host_bridge:
        mov     eax, THRU_HOST_BRIDGE
        test    byte ptr [p_zen], 1
        jnz     answer
        movzx   ecx, byte ptr [r8 + f_root]
        movzx   edx, byte ptr [r9 + f_root]
        cmp     ecx, edx
        sete    r10b
        call    trusted
        cmp     eax, NOT_SUPPORTED
        je      answer
        mov     ecx, edx
        call    trusted
answer: add     esi, edi
        shl     esi, 8
        or      eax, esi
        ret

# CL: root bus, R10B: both functions are below it. EAX: map type. Changes RBX, R11.
trusted:
        mov     r11d, TABLE             # its first function
1:      cmp     r11d, r15d
        jae     8f
        cmp     [r11 + f_root], cl
        jne     2f
        cmp     dword ptr [r11 + f_above], 0
        je      3f
2:      add     r11d, 16
        jmp     1b
3:      cmp     byte ptr [r11 + f_rid], 0
        je      4f                      # 00.0
        cmp     byte ptr [r11 + f_type], ROOT_PORT
        jne     8f
4:      mov     eax, [r11 + f_ids]
        cmp     ax, 0x1ae0              # Google: every one
        je      7f
        mov     ebx, offset bridges
5:      mov     r11d, [rbx]
        test    r11d, r11d
        jz      8f
        cmp     r11d, eax
        je      6f
        add     ebx, 8
        jmp     5b
6:      cmp     dword ptr [rbx + 4], 0
        je      7f
        test    r10b, r10b
        jz      8f
7:      mov     eax, THRU_HOST_BRIDGE
        ret
8:      mov     eax, NOT_SUPPORTED
        ret

# Device and vendor; 1: for functions below the same host bridge only.
        .balign 8
bridges:
        .long   0x3c008086, 1, 0x3c018086, 1, 0x2f008086, 1, 0x2f018086, 1
        .long   0x20308086, 0, 0x20318086, 0, 0x20328086, 0, 0x20338086, 0, 0x20208086, 0
        .long   0x09a28086, 0, 0x0b258086, 0, 0x0cfe8086, 0, 0x11fb8086, 0
        .long   0x12128086, 0, 0x12168086, 0
        .long   0x49408086, 0, 0x49428086, 0, 0x49448086, 0, 0x49468086, 0, 0x49488086, 0
        .long   0, 0
