/*
 * A program for the busybox guest that measures page faults from inside. It takes 64 MiB, half of each page noise, says
 * `touch ready`, and writes a word of every page again and again. Once /run/go is there it says `touch goes` and touches
 * (reads) one page every 10 ms, each of the 16384 once, in an order that jumps about, and writes `touch MICROSECONDS`
 * for each: behind a switch to postcopy that is the time that it waited for the page. Huge pages, where the guest has
 * them, keep page tables out of the figure.
 *
 *   as touch.S -o touch.o && ld -Ttext 0x400000 --oformat binary -o touch touch.o && xxd -p -c 50 touch
 *
 * gives the bytes in touch.ts: a whole ELF file, its head written by hand below.
 */
.globl _start
.set PAGES, 16384
.text
file:
  .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
  .short 2, 62
  .long 1
  .quad _start, 64, 0
  .long 0
  .short 64, 56, 1, 0, 0, 0
  /* the one segment: this file, to read, write and run */
  .long 1, 7
  .quad 0, file, file, end - file, end - file, 4096
_start:
  /* mmap(0, 64 MiB, read and write, private and anonymous, -1, 0) */
  xorl %edi,%edi
  movl $PAGES*4096,%esi
  movl $3,%edx
  movl $0x22,%r10d
  orq $-1,%r8
  xorl %r9d,%r9d
  movl $9,%eax
  syscall
  movq %rax,%rbx
  /* madvise(.., MADV_HUGEPAGE) */
  movq %rax,%rdi
  movl $PAGES*4096,%esi
  movl $14,%edx
  movl $28,%eax
  syscall
  /* noise (xorshift32) in the first half of each page */
  movq %rbx,%rdi
  movl $0x9e3779b9,%eax
  movl $PAGES,%edx
1: movl $512,%ecx
2: movl %eax,%esi
  shll $13,%esi
  xorl %esi,%eax
  movl %eax,%esi
  shrl $17,%esi
  xorl %esi,%eax
  movl %eax,%esi
  shll $5,%esi
  xorl %esi,%eax
  stosl
  loop 2b
  addq $2048,%rdi
  decl %edx
  jnz 1b
  subq $64,%rsp
  leaq ready(%rip),%rsi
  movl $12,%edx
  call print
  /* one word of every page, until access("/run/go", F_OK) finds it */
dirty:
  movq %rbx,%rdi
  movl $PAGES,%ecx
1: incl 8(%rdi)
  addq $4096,%rdi
  loop 1b
  movl $100000000,%eax
  call pause
  leaq go(%rip),%rdi
  xorl %esi,%esi
  movl $21,%eax
  syscall
  testl %eax,%eax
  jnz dirty
  leaq goes(%rip),%rsi
  movl $11,%edx
  call print
  xorl %r12d,%r12d
touch:
  /* a full period modulo 2^14: the factor is 1 modulo 4, what is added is odd */
  imull $4053,%r12d,%r12d
  addl $12289,%r12d
  andl $PAGES-1,%r12d
  movl %r12d,%ebp
  shll $12,%ebp
  call now
  movq %rax,%r13
  movb 8(%rbx,%rbp),%cl
  call now
  subq %r13,%rax
  xorl %edx,%edx
  movl $1000,%ecx
  divq %rcx
  /* decimal, backwards from a line end; at most 12 digits */
  leaq 40(%rsp),%rdi
  movb $'\n',(%rdi)
  movl $10,%ecx
1: xorl %edx,%edx
  divq %rcx
  addb $'0',%dl
  decq %rdi
  movb %dl,(%rdi)
  testq %rax,%rax
  jnz 1b
  subq $6,%rdi
  movl ready(%rip),%eax
  movl %eax,(%rdi)
  movw $0x2068,4(%rdi)
  movq %rdi,%rsi
  leaq 41(%rsp),%rdx
  subq %rdi,%rdx
  call print
  movl $10000000,%eax
  call pause
  jmp touch
/* nanosleep: so many nanoseconds */
pause:
  movq $0,8(%rsp)
  movq %rax,16(%rsp)
  leaq 8(%rsp),%rdi
  xorl %esi,%esi
  movl $35,%eax
  syscall
  ret
/* clock_gettime(CLOCK_MONOTONIC) in nanoseconds */
now:
  leaq 8(%rsp),%rsi
  movl $1,%edi
  movl $228,%eax
  syscall
  imulq $1000000000,8(%rsp),%rax
  addq 16(%rsp),%rax
  ret
/* write(1, rsi, rdx) */
print:
  movl $1,%edi
  movl $1,%eax
  syscall
  ret
ready: .ascii "touch ready\n"
goes: .ascii "touch goes\n"
go: .asciz "/run/go"
end:
