# The deck's first demonstration: one instruction, once, for processors that run real mode only. (HLT gives control back.)
# origin: 0x1000
        .code16
        mov     ax, 7
        hlt
