/*
 * A guest that writes to its disk: a floppy disk's boot sector that at each timer tick (18.2 a second) writes so many times
 * to the first hard disk, by the BIOS: 1 to 16 sectors anywhere in a range (xorshift32), of a count, or of zeroes every
 * eighth time. What it writes lies in one of eight buffers of 8 KiB from 64 KiB on, so its memory changes too. A line end
 * on the serial port is a tick, E a write that failed. The two figures stand at its end.
 *
 *   as --32 disk-writer.S -o w.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o w.bin w.o
 *   head -c 250 w.bin | xxd -p -c 50
 *
 * gives the bytes in disk-writer.ts.
 */
.include "boot.inc"
.code16
.globl _start
_start:
  cli
  xorw %ax,%ax
  movw %ax,%ds
  movw %ax,%ss
  movw $0x7000,%sp
  cld
  movl $0x9e3779b9,%ebx
  xorl %ebp,%ebp
pass:
  movw writes,%cx
  jcxz 4f
1: pushw %cx
  incl %ebp
  next_random
  andl mask,%eax
  movl %eax,packet+8
  movl %ebx,%eax
  shrl $28,%eax
  incw %ax
  movw %ax,packet+2
  /* a buffer: 64 KiB + 8 KiB * (count & 7) */
  movw %bp,%ax
  andw $7,%ax
  shlw $9,%ax
  addw $0x1000,%ax
  movw %ax,packet+6
  movw %ax,%es
  xorw %di,%di
  movl %ebp,%eax
  testw $7,%ax
  jnz 2f
  xorl %eax,%eax
2: movw $2048,%cx
  rep stosl
  movw $packet,%si
  movw $0x4300,%ax
  movb $0x80,%dl
  pushl %ebx
  pushl %ebp
  sti
  int $0x13
  cli
  popl %ebp
  popl %ebx
  movw $0,%ax
  movw %ax,%ds
  jnc 3f
  movw $0x3f8,%dx
  movb $'E',%al
  outb %al,%dx
3: popw %cx
  loop 1b
4: movw $0x3f8,%dx
  movb $'\n',%al
  outb %al,%dx
  sti
  hlt
  cli
  jmp pass
  .balign 4
packet: .byte 16, 0
  .word 0
  .word 0, 0
  .long 0, 0
.org 502
/* sectors of the range, from the first on: a power of two, less one */
mask: .long 0
/* each tick */
writes: .word 0, 0
.org 510
.word 0xaa55
