# The second demonstration for processors that run real mode only. CX says how many times; at
# DS:BX there is no RAM.
# origin: 0x1000
        .code16
again:  mov     ax, 7
        dec     cx
        jnz     again
        out     0x10, al
        in      al, 0x10
        mov     [bx], eax
        mov     eax, [bx]
        hlt
