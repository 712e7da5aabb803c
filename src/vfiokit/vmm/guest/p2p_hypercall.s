# SPDX-License-Identifier: MIT
# Asks the host about pairs of functions by hypercall.
# origin: 0x8000
# Entered in 64-bit mode; src/vfiokit/vmm/p2p_guest.py writes the parameters and reads the results.

        .intel_syntax noprefix
        .code64
        .set    PARAM,  0x7000          # u32, number of pairs
        .set    PAIRS,  PARAM + 0x100   # u32 provider, u32 client, u64 result
        .set    NUMBER, 0x7032          # of the hypercall

        .globl  _start
_start: mov     edi, PAIRS
        mov     ebp, [PARAM]
1:      test    ebp, ebp
        jz      2f
        mov     eax, NUMBER
        mov     ebx, [rdi]
        mov     ecx, [rdi + 4]
        xor     edx, edx                # no flags
        xor     esi, esi
        vmcall
        mov     [rdi + 8], rax
        add     edi, 16
        dec     ebp
        jmp     1b
2:      hlt
        jmp     2b
