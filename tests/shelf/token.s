# A livelock of a plain guest: two vCPUs hand a token to each other for ever, and nothing else comes of it.
        .globl  _start
        .text
_start: lea     token(%rip), %rbx       # RDI: number of this vCPU
        mov     %edi, %edx
        xor     $1, %edx
wait:   pause
        cmp     %edi, (%rbx)
        jne     wait
        mov     %edx, (%rbx)            # to the other one
        jmp     wait

        .data
        .balign 64
        .type   token, @object
        .size   token, 4
token:  .long   0
