# The deck's second program: the instruction many times, then one that only the hypervisor can do.
# CX says how many times. The result goes out by port 0x10.
# origin: 0x1000
        .code16
again:
        mov     ax, 7
        dec     cx
        jnz     again
        out     0x10, al
        hlt
