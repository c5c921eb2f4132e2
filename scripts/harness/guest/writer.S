/*
 * A guest that writes: a floppy disk's boot sector that at each timer tick (18.2 a second) increments a word in so many
 * pages, each any of a range (xorshift32), and writes a line end on the serial port. The two figures stand at its end.
 *
 *   as --32 writer.S -o writer.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o writer.bin writer.o
 *   head -c 250 writer.bin | xxd -p -c 50
 *
 * gives the bytes in writer.ts.
 */
.code16
.globl _start
_start:
  cli
  xorw %ax,%ax
  movw %ax,%ds
  inb $0x92,%al
  orb $2,%al
  outb %al,$0x92
  lgdtl gdtr
  movl %cr0,%eax
  orb $1,%al
  movl %eax,%cr0
  ljmpl $8,$pm
.code32
pm:
  movw $16,%ax
  movw %ax,%ds
  movw %ax,%es
  movw %ax,%ss
  movl $0x7000,%esp
  /* vector 8, where the BIOS left IRQ 0: acknowledge and go on */
  movl $0x6000+64,%edi
  movl $tick,%eax
  movl %eax,(%edi)
  movw $8,2(%edi)
  movl $0x8e00,4(%edi)
  lidt idtr
  movl $0x9e3779b9,%ebx
pass:
  movl pages,%ecx
  jecxz 2f
1: movl %ebx,%eax
  shll $13,%eax
  xorl %eax,%ebx
  movl %ebx,%eax
  shrl $17,%eax
  xorl %eax,%ebx
  movl %ebx,%eax
  shll $5,%eax
  xorl %eax,%ebx
  movl %ebx,%eax
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
tick:
  pushl %eax
  movb $0x20,%al
  outb %al,$0x20
  popl %eax
  iret
gdtr: .word 23
  .long gdt
idtr: .word 71
  .long 0x6000
  .balign 8
gdt: .quad 0
  .quad 0x00cf9a000000ffff
  .quad 0x00cf92000000ffff
.org 502
/* of the range, from 2 MiB on: a power of two, less one */
mask: .long 0
/* each tick */
pages: .word 0, 0
.org 510
.word 0xaa55
