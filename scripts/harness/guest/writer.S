/*
 * A guest that writes: a floppy disk's boot sector that at each timer tick (18.2 a second) increments a word in so many
 * pages, each any of a range (xorshift32), and writes a line end on the serial port. The two figures stand at its end.
 *
 *   as --32 writer.S -o writer.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o writer.bin writer.o
 *   head -c 250 writer.bin | xxd -p -c 50
 *
 * gives the bytes in writer.ts.
 */
.include "boot.inc"
.globl _start
_start:
  enter_protected_mode
  movl $0x9e3779b9,%ebx
pass:
  movl pages,%ecx
  jecxz 2f
1: next_random
  andl mask,%eax
  shll $12,%eax
  incl 0x200000(%eax)
  loop 1b
2: movw $0x3f8,%dx
  movl $'\n',%eax
  outb %al,%dx
  sti
  hlt
  cli
  jmp pass
  protected_mode_data
.org 502
/* of the range, from 2 MiB on: a power of two, less one */
mask: .long 0
/* each tick */
pages: .word 0, 0
.org 510
.word 0xaa55
