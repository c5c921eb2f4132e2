/*
 * The smallest guest worth migrating: a floppy disk's boot sector that fills 352 KB with noise, text, nearly equal and
 * equal pages, then at each timer tick (18.2 a second) dirties 17 pages: 8 in one word, 3 altogether, 4 with what they
 * held, 2 between zero and full, and writes a line end on the serial port. invlpg makes QEMU before 9.0 see every write
 * under TCG (the stack, which it may miss, holds the same words at every hlt).
 *
 *   as --32 boot-sector.S -o boot.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o boot.bin boot.o
 *   xxd -p -c 50 boot.bin
 *
 * gives the bytes in boot-sector.ts.
 */
.include "boot.inc"
.globl _start
_start:
  enter_protected_mode
  cld
  movl $0x9e3779b9,%ebx
  /* 24 pages of noise at 1 MB */
  movl $0x100000,%edi
  movl $24*1024,%ecx
1: call random
  stosl
  loop 1b
  /* 32 pages of text: sixteen letters */
  movl $32*1024,%ecx
1: call random
  andl $0x0f0f0f0f,%eax
  addl $0x61616161,%eax
  stosl
  loop 1b
  /* 16 pages like the first noise page but for one word; 16 equal to the second */
  movl $32,%edx
1: movl $0x100000,%esi
  cmpl $16,%edx
  ja 2f
  movl $0x101000,%esi
2: movl $1024,%ecx
  rep movsl
  cmpl $16,%edx
  jbe 3f
  movl %edx,-1600(%edi)
3: decl %edx
  jnz 1b
  /* for ever, one pass a timer tick (18.2 a second) */
  xorl %ebp,%ebp
pass:
  invlpg -4(%esp)
  incl %ebp
  movl $0x160000,%edi
  /* 8 pages: one word each changes */
  movl $8,%ecx
1: movl %ebp,%eax
  imull $68,%eax,%eax
  andl $0xffc,%eax
  incl (%edi,%eax)
  call next
  loop 1b
  /* 3 pages: new noise */
  movl $3,%edx
1: movl $1024,%ecx
  invlpg (%edi)
2: call random
  stosl
  loop 2b
  decl %edx
  jnz 1b
  /* 4 pages: written, but with what they held */
  movl $4,%ecx
1: movl (%edi),%eax
  movl %eax,(%edi)
  call next
  loop 1b
  /* 2 pages: zero and full by turns */
  movl %ebp,%eax
  andl $1,%eax
  negl %eax
  movl $2048,%ecx
  invlpg (%edi)
  invlpg 0x1000(%edi)
  rep stosl
  movw $0x3f8,%dx
  movl $'\n',%eax
  outb %al,%dx
  invlpg -4(%esp)
  sti
  hlt
  jmp pass
next:
  invlpg (%edi)
  addl $0x1000,%edi
  ret
random:
  next_random
  ret
  protected_mode_data
.org 510
.word 0xaa55
