# The deck's second demonstration: the instruction many times without the hypervisor, then
# instructions that the guest cannot carry out by itself. RCX says how many times, RBX is an
# address at which there is no RAM.
# origin: 0x1000
        .code64
again:  mov     rax, 7
        dec     rcx
        jnz     again
        out     0x10, al
        in      al, 0x10
        mov     [rbx], eax
        mov     eax, [rbx]
        hlt
