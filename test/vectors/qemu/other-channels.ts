/** Multifd channels, preempt channels and return paths. Traces as test/qemu-wire/harness.ts writes them. */
import type { WireVector } from './notation.ts'

const hello = '11223344 00000001 00*16 01 00*39'
/** 36 bytes: magic to zero_pages; then reserved, name, and offsets of which `offsets` are given, 8 bytes each. */
const packet = (flags: string, alloc: string, n: string, size: string, z: string, name: string, offsets: string) => {
  const nameBytes = name === '' ? '00*256' : `"${name}" 00*${256 - name.length}`
  const count = (offsets.match(/[0-9a-f]{16}/g) ?? []).length
  return `11223344 00000001 ${flags} ${alloc} ${n} ${size} 0000000000000006 ${z} 00*28 ${nameBytes} ${offsets}
    00*${(128 - count) * 8}`
}
const sync = packet('00000001', '00000000', '00000000', '00000000', '00000000', '', '')

export const multifdVectors: readonly WireVector[] = [
  {
    name: 'hello, SYNC, pages and zero pages, SYNC',
    why: 'as QEMU 10.0.13 sends them: qemu-wire-format 7; normal offsets descend',
    input: `#0 ${hello} #64 ${sync} #1408
      ${packet('00000000', '00000080', '00000002', '00002000', '00000003', 'pc.ram', '00000000000ff000 00000000000fe000 0000000000001000 0000000000005000 0000000000003000')}
      #2752 11*4096 #6848 22*4096 #10944 ${sync} #12288`,
    trace: [
      'hello 1 64',
      'packet 64-1408 n=0 z=0 flags=0x1 -1',
      'block 0 pc.ram 0',
      'packet 1408-2752 n=2 z=3 flags=0x0 0',
      'zero page 0 0x1000',
      'zero page 0 0x5000',
      'zero page 0 0x3000',
      'page 2752-6848 0 0xff000',
      'page 6848-10944 0 0xfe000',
      'packet 10944-12288 n=0 z=0 flags=0x1 -1',
    ],
  },
  {
    name: 'SYNC with a page, then an empty packet with stale fields',
    why: 'QEMU 7.2: qemu-wire-format 4.2, 7, 9.11 and 9.12; size, name and offsets mean nothing where n is 0',
    input: `${hello} @a ${packet('00000001', '00000080', '00000001', '00001000', '00000000', 'pc.ram', '0000000000007000')}
      @b 33*4096 @c ${packet('00000000', '00000080', '00000000', '00001000', '00000000', 'old', 'ffffffffffffffff')} @d
      ${packet('00000000', '00000080', '00000001', '00001000', '00000000', 'vga.vram', '0000000000008000')} @e 44*4096 @f`,
    trace: [
      'hello 1 64',
      'block 0 pc.ram 0',
      'packet @a-@b n=1 z=0 flags=0x1 0',
      'page @b-@c 0 0x7000',
      'packet @c-@d n=0 z=0 flags=0x0 -1',
      'block 1 vga.vram 0',
      'packet @d-@e n=1 z=0 flags=0x0 1',
      'page @e-@f 1 0x8000',
    ],
  },
  {
    name: 'zero pages alone bring no data',
    why: 'qemu-wire-format 4.2: data follows iff n > 0, whatever the size says',
    input: `${hello} @a ${packet('00000000', '00000080', '00000000', '00005000', '00000001', 'pc.ram', '0000000000009000')} @b
      ${sync} @c`,
    trace: [
      'hello 1 64',
      'block 0 pc.ram 0',
      'packet @a-@b n=0 z=1 flags=0x0 0',
      'zero page 0 0x9000',
      'packet @b-@c n=0 z=0 flags=0x1 -1',
    ],
  },
  {
    name: 'compressed packets',
    why: 'their data has the length of next_packet_size; told once',
    input: `${hello} @a ${packet('00000004', '00000080', '00000002', '00000005', '00000000', 'pc.ram', '0000000000001000 0000000000002000')}
      @b 28b52ffd00 @c ${packet('00000004', '00000080', '00000001', '00000002', '00000001', 'pc.ram', '0000000000003000 0000000000004000')}
      @d abcd @e ${sync} @f`,
    trace: [
      'hello 1 64',
      'block 0 pc.ram 0',
      'packet @a-@b n=2 z=0 flags=0x4 0',
      'compressed zstd @a',
      'opaque 0 0x1000',
      'opaque 0 0x2000',
      'packet @c-@d n=1 z=1 flags=0x4 0',
      'zero page 0 0x4000',
      'opaque 0 0x3000',
      'packet @e-@f n=0 z=0 flags=0x1 -1',
    ],
  },
  {
    name: 'device state has a header of 276 bytes',
    why: 'QEMU 10.0, VFIO, only read in source: qemu-wire-format 4.6',
    input: `${hello} 11223344 00000001 00000040 "0000:00:02.0/vfio" 00*239 00000000 00000007 11223344000000 @a ${sync} @b`,
    trace: ['hello 1 64', 'packet @a-@b n=0 z=0 flags=0x1 -1'],
  },
  {
    name: 'an empty channel of QEMU',
    why: 'hello alone is a normal stream',
    input: hello,
    trace: ['hello 1 64'],
  },
  { name: 'not a hello', why: 'probe', input: '11223345 00*60', trace: ['degraded 0 not a multifd packet'] },
  {
    name: 'multifd version 2',
    why: 'unknown layout',
    input: '11223344 00000002 00*56',
    trace: ['degraded 4 unknown multifd version'],
  },
  {
    name: 'a packet of another magic',
    why: 'data was longer or shorter than believed',
    input: `${hello} @bad 00*1344`,
    trace: ['hello 1 64', 'degraded @bad not a multifd packet'],
  },
  {
    name: 'unknown flags',
    why: 'another layout, like DEVICE_STATE',
    input: `${hello} 11223344 00000001 @bad 00000080 00*1332`,
    trace: ['hello 1 64', 'degraded @bad unknown multifd flags 0x80'],
  },
  {
    name: 'two methods at once',
    why: 'a method of a later QEMU',
    input: `${hello} 11223344 00000001 @bad 00000006 00*1332`,
    trace: ['hello 1 64', 'degraded @bad unknown multifd flags 0x6'],
  },
  {
    name: 'more pages than a packet has',
    why: 'offsets end at 128',
    input: `${hello} 11223344 00000001 00000000 00000080 @bad 00000080 00080000 00*8 00000001 00*1308`,
    trace: ['hello 1 64', 'degraded @bad too many pages in a multifd packet'],
  },
  {
    name: 'four billion pages in a packet',
    why: 'counts meet their limit when they are read',
    input: `${hello} 11223344 00000001 00000000 00000080 @bad ffffffff fffff000 00*8 ffffffff 00*1308`,
    trace: ['hello 1 64', 'degraded @bad too many pages in a multifd packet'],
  },
  {
    name: 'pages of another size',
    why: 'target pages of 16 KiB have another header, too',
    input: `${hello} 11223344 00000001 00000000 00000020 00000001 @bad 00004000 00*8 00000000 00*28 "pc.ram" 00*1274`,
    trace: ['hello 1 64', 'degraded @bad multifd packet does not hold pages of 4096 bytes'],
  },
  {
    name: 'pages without a RAMBlock',
    why: 'stale names are legal only where there are no pages',
    input: `${hello} 11223344 00000001 00000000 00000080 00000001 00001000 00*8 00000000 00*28 @bad 00*1280`,
    trace: ['hello 1 64', 'degraded @bad unknown RAMBlock ""'],
  },
  {
    name: 'an offset that is no page',
    why: 'no QEMU sends it',
    input: `${hello} ${packet('00000000', '00000080', '00000001', '00001000', '00000001', 'pc.ram', '0000000000001000 @bad 0000000000001001')}`,
    trace: ['hello 1 64', 'degraded @bad multifd page beyond its RAMBlock'],
  },
  {
    name: 'an offset of 2^53',
    why: 'numbers are exact below that',
    input: `${hello} ${packet('00000000', '00000080', '00000001', '00001000', '00000000', 'pc.ram', '@bad 0020000000000000')}`,
    trace: ['hello 1 64', 'degraded @bad multifd page beyond its RAMBlock'],
  },
]

/** With the RAMBlock pc.ram of 1 MiB known from the main channel. */
export const preemptVectors: readonly WireVector[] = [
  {
    name: 'records, then the EOS of machine types up to 7.2',
    why: 'qemu-wire-format 5.3',
    input: `@a 0000000000004008 'pc.ram' 55*4096 @b 0000000000005022 00 @c 0000000000006028 66*4096 @d 0000000000000010`,
    trace: ['block 0 pc.ram 1048576', 'page @a-@b 0 0x4000 named', 'zero @b-@c 0 0x5000', 'page @c-@d 0 0x6000'],
  },
  { name: 'EOS alone', why: 'QEMU 7.2 without any urgent page', input: '0000000000000010', trace: [] },
  {
    name: 'CONTINUE first',
    why: 'its state is not that of main',
    input: '0000000000004028 55*4096',
    trace: ['degraded 0 RAM record with CONTINUE before any RAMBlock'],
  },
  {
    name: 'a block list',
    why: 'only main has one',
    input: "@a 0000000000004002 'pc.ram' 00 @b 0000000000100004 'pc.ram' 0000000000100000",
    trace: ['block 0 pc.ram 1048576', 'zero @a-@b 0 0x4000 named', 'degraded @b block list on a preempt channel'],
  },
]

export const returnPathVectors: readonly WireVector[] = [
  {
    name: 'precopy',
    why: 'qemu-wire-format 7: PONG 1, SHUT 0; SWITCHOVER_ACK may come first',
    input: '#0 0007 0000 #4 0002 0004 00000001 #12 0001 0004 00000000 #20',
    trace: ['message 7 0-4', 'pong 1 4-12', 'shut 0 12-20'],
  },
  {
    name: 'postcopy with requests',
    why: 'REQ_PAGES means the RAMBlock named last; a destination that fails sends a status',
    input: `@a 0003 0013 0000000000002000 00001000 'pc.ram' @b 0004 000c 0000000123456000 00200000 @c
      0001 0004 ffffffff @d`,
    trace: ['request pc.ram 0x2000 4096 @a-@b', 'request pc.ram 0x123456000 2097152 @b-@c', 'shut 4294967295 @c-@d'],
  },
  {
    name: 'recovery',
    why: 'the bitmap lies outside the length, and looks like messages: qemu-wire-format 5.1, 9.10',
    input: `@a 0005 0007 'pc.ram' 0000000000000010 0001000400000000 0001000400000000 0123456789abcdef @b
      0005 0002 'a' 0000000000000000 0123456789abcdef @c 0006 0004 00000001 @d`,
    trace: ['message 5 @a-@b', 'message 5 @b-@c', 'message 6 @c-@d'],
  },
  {
    name: 'a message of a later QEMU',
    why: 'its bytes may lie outside its length',
    input: '0002 0004 00000001 @bad 0008 0000 0001 0004 00000000',
    trace: ['pong 1 0-8', 'degraded @bad unknown return path message 8'],
  },
  {
    name: 'a SHUT of another length',
    why: 'then it is none',
    input: '0001 @bad 0008 00*8',
    trace: ['degraded @bad return path message 1 of 8 bytes'],
  },
  {
    name: 'a request of 64 KiB',
    why: 'a length meets its limit when it is read',
    input: '0003 @bad ffff 00*40',
    trace: ['degraded @bad return path message 3 of 65535 bytes'],
  },
  {
    name: 'a request whose idstr does not end with it',
    why: 'then it is none',
    input: "@bad 0003 0014 0000000000002000 00001000 'pc.ram' 00",
    trace: ['degraded @bad idstr that does not end with its return path message'],
  },
  {
    name: 'a bitmap of nothing',
    why: 'no idstr at all',
    input: '@bad 0005 0000 00*20',
    trace: ['degraded @bad idstr that does not end with its return path message'],
  },
  {
    name: 'a bitmap without its end mark',
    why: 'its size was wrong',
    input: "0005 0002 'a' 0000000000000008 ff*8 @bad 00*8",
    trace: ['degraded @bad bitmap without its end mark'],
  },
  {
    name: 'a bitmap of 2^53 bytes',
    why: 'numbers are exact below that',
    input: "0005 0002 'a' @bad 0020000000000000 ff*8",
    trace: ['degraded @bad bitmap size beyond 2^53'],
  },
  {
    name: 'a request beyond 2^53',
    why: 'numbers are exact below that',
    input: '0004 000c @bad 0020000000000000 00001000',
    trace: ['degraded @bad page request beyond 2^53'],
  },
]
