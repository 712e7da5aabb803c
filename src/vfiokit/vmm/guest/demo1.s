# The deck's first program: one instruction.
# origin: 0x1000
        .code16
        mov     ax, 7
