# The first process of a lab guest: an interpreter of a table of system calls.
#
# The table follows at TABLE, one step of 64 bytes each:
#   +0  u64  number of the system call (x86-64)
#   +8  u64  six arguments
#   +56 u32  kind: 0 must succeed, 1 may fail, 2 fork, 3 wait
#   +60 u32  fork: address of the step at which the parent goes on
#
# fork:   the child goes on with the next step, the parent at the address given.
# wait:   repeats the call (wait4) until it returns the child forked last.
# A step that must succeed and does not prints "init: step 0xNNN error 0xNNN"; the first process
# then restarts the machine, a child exits with 127.
#
# Rebuild after a change: python -m vfiokit.lab.assemble

        .intel_syntax noprefix
        .equ TABLE, 0x402000

        .text
        .globl _start
_start: mov     ebx, TABLE
        xor     r12d, r12d              # the child forked last
        xor     r14d, r14d              # 1 in a child
step:   mov     eax, [rbx]
        mov     rdi, [rbx + 8]
        mov     rsi, [rbx + 16]
        mov     rdx, [rbx + 24]
        mov     r10, [rbx + 32]
        mov     r8,  [rbx + 40]
        mov     r9,  [rbx + 48]
        mov     ebp, [rbx + 56]
        syscall
        cmp     ebp, 1
        je      next
        cmp     ebp, 2
        je      forked
        cmp     ebp, 3
        je      waited
        test    rax, rax
        js      failed
next:   add     rbx, 64
        jmp     step

forked: test    rax, rax
        js      failed
        jz      child
        mov     r12, rax
        mov     ebx, [rbx + 60]
        jmp     step
child:  inc     r14d
        jmp     next

waited: cmp     rax, r12
        je      next
        cmp     rax, -10                # ECHILD: it is gone already
        je      next
        jmp     step                    # an orphan's end, or EINTR

failed: neg     eax
        lea     rdi, [rip + error_end]
        call    hexadecimal
        mov     eax, ebx
        sub     eax, TABLE
        shr     eax, 6
        lea     rdi, [rip + step_end]
        call    hexadecimal
        mov     eax, 1                  # write(2, message, length)
        mov     edi, 2
        lea     rsi, [rip + message]
        mov     edx, OFFSET message_end - message
        syscall
        test    r14d, r14d
        jz      broken
        mov     eax, 231                # exit_group(127)
        mov     edi, 127
        syscall
broken: mov     eax, 169                # reboot: QEMU ends instead
        mov     edi, 0xfee1dead
        mov     esi, 0x28121969
        mov     edx, 0x01234567
        syscall
        ud2

hexadecimal:                            # three digits of eax, the last one before rdi
        mov     ecx, 3
digit:  mov     edx, eax
        and     edx, 15
        add     edx, 48
        cmp     edx, 57
        jbe     store
        add     edx, 39
store:  dec     rdi
        mov     [rdi], dl
        shr     eax, 4
        loop    digit
        ret

        .data
message:
        .ascii  "init: step 0x000"
step_end:
        .ascii  " error 0x000"
error_end:
        .ascii  "\n"
message_end:
