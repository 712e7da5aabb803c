# The deck's first demonstration: one instruction, once. (HLT gives control back.)
# origin: 0x1000
        .code64
        mov     rax, 7
        hlt
