/** Main streams. Traces as test/qemu-wire/harness.ts writes them. */
import type { WireVector } from './notation.ts'

export interface MainVector extends WireVector {
  /** Parse as a recovery, after a stream with the one RAMBlock pc.ram of 1 MiB and ram as section 2. */
  readonly recovery?: boolean
}

const header = '"QEVM" 00000003 @version 07 0000000e "pc-i440fx-10.0"'
const ramStart = "01 00000002 'ram' 00000000 00000004 @ram"
const pcRam = "'pc.ram' 0000000000100000"
const oneBlock = `${ramStart} 0000000000100004 ${pcRam}`
const eos = '0000000000000010'
const flush = '0000000000000200'
const footer = '7e 00000002'
const part = '02 00000002'
const end = '03 00000002'
/** Header, one RAMBlock of 1 MiB, and into the first PART. */
const begin = `${header} ${oneBlock} ${eos} ${footer} ${part}`
const beginTrace = ['phase header 8', 'phase ram-start @ram', 'block 0 pc.ram 1048576']
const stop = `${eos} ${footer} ${end} ${eos} ${footer} @end`
const stopTrace = ['phase ram-end @end']
const named = (bytes: string) => `0000000000000002 'pc.ram' ${bytes}`

/** A stream whose first PART holds these bytes and is not understood at @bad. */
function bad(name: string, why: string, input: string, reason: string, before: readonly string[] = []): MainVector {
  return { name, why, input: `${begin} ${input} ff*40`, trace: [...beginTrace, ...before, `degraded @bad ${reason}`] }
}

/** A stream with these bytes behind its magic and version. */
function badHeader(name: string, why: string, input: string, trace: readonly string[]): MainVector {
  return { name, why, input: `"QEVM" 00000003 ${input}`, trace: ['phase header 8', ...trace] }
}

/** One RAMBlock, then the head of the START of an unknown section 7, which begins at `mark`. */
const unknownAt = (mark: string) =>
  `${header} ${oneBlock} ${eos} ${footer} @${mark} 01 00000007 'new' 00000000 00000001`
const strayTrace = [...beginTrace, 'strayed @body unknown section "new"']

export const mainVectors: readonly MainVector[] = [
  {
    name: 'the worked example',
    why: 'real bytes of QEMU 10.0.13, pc-i440fx-10.0, return-path: qemu-wire-format 7, its middle left out',
    input: `
      #0 51 45 56 4d  00 00 00 03
      #8 07  00 00 00 0e  "pc-i440fx-10.0"
      #27 08 00 01 00 00
      #32 08 00 02 00 04  00 00 00 01
      #41 01  00 00 00 01  03 "ram"  00 00 00 00  00 00 00 04
      #58 00 00 00 00 01 08 20 04
      #66 06 "pc.ram"  00 00 00 00 01 00 00 00
      #81 14 "/rom@etc/acpi/tables"  00 00 00 00 00 02 00 00
      #110 07 "pc.bios" 00 00 00 00 00 04 00 00  06 "pc.rom" 00 00 00 00 00 02 00 00
      15 "/rom@etc/table-loader" 00 00 00 00 00 00 10 00  12 "/rom@etc/acpi/rsdp" 00 00 00 00 00 00 10 00
      #198 00 00 00 00 00 00 00 10
      #206 7e  00 00 00 01
      #211 02  00 00 00 01
      #216 00 00 00 00 00 00 00 08  06 "pc.ram"
      #231 53 ff 00 f0 53 ff 00*4090
      #4327 00 00 00 00 00 00 10 22  00
      #4336 00 00 00 00 00 00 20 22  00  00 00 00 00 00 00 30 22  00
      00 00 00 00 00 00 40 22  00  00 00 00 00 00 00 50 22  00
      #4372 00 00 00 00 00 00 60 28  11*4096
      #8476 00 00 00 00 00 00 00 10  7e 00 00 00 01
      #8489 02 00 00 00 01  00 00 00 00 00 00 70 28  22*4096
      #12598 00 00 00 00 00 00 00 10  7e 00 00 00 01
      #12611 08 00 0b 00 00
      #12616 03 00 00 00 01  00 00 00 00 00 00 00 10  7e 00 00 00 01
      #12634 04 00 00 00 00 05 "timer" 00000000 00000002 77*24 7e 00000000
      #12682 00
      #12683 06 00 01 82 e0  "{" 20*64`,
    trace: [
      'phase header 8',
      'phase return-path 32',
      'phase ram-start 58',
      'block 0 pc.ram 16777216',
      'block 1 /rom@etc/acpi/tables 131072',
      'block 2 pc.bios 262144',
      'block 3 pc.rom 131072',
      'block 4 /rom@etc/table-loader 4096',
      'block 5 /rom@etc/acpi/rsdp 4096',
      'page 216-4327 0 0x0 named',
      'zero 4327-4336 0 0x1000',
      'zero 4336-4345 0 0x2000',
      'zero 4345-4354 0 0x3000',
      'zero 4354-4363 0 0x4000',
      'zero 4363-4372 0 0x5000',
      'page 4372-8476 0 0x6000',
      'page 8494-12598 0 0x7000',
      'phase switchover 12616',
      'phase ram-end 12634',
    ],
  },
  {
    name: 'XBZRLE and compress stay raw and make their page opaque',
    why: 'records of qemu-wire-format 7: XBZRLE of 10.0, COMPRESS_PAGE of 7.2; flags 0x60, 0x40, 0x120, 0x100',
    input: `${begin} @a ${named('00')} @b
      0000000000010060 01 0008 00 01 4a ff 0f 02 b6 5e
      0000000000012040 'pc.ram' 01 0003 00 01 4a
      0000000000013120 00000003 78 01 63
      0000000000014100 'pc.ram' 00000005 78 01 63 60 00
      @c 0000000000015022 00 @d ${stop}`,
    trace: [
      ...beginTrace,
      'zero @a-@b 0 0x0 named',
      'opaque 0 0x10000',
      'opaque 0 0x12000',
      'opaque 0 0x13000',
      'opaque 0 0x14000',
      'zero @c-@d 0 0x15000',
      ...stopTrace,
    ],
  },
  {
    name: 'deltas and deflated pages of the greatest and least length',
    why: 'limits of the length fields: XBZRLE 4096, compress 4110; an empty delta changes nothing and is legal',
    input: `${begin} @a ${named('00')} @b 0000000000001060 01 1000 ab*4096 0000000000002060 01 0000
      0000000000003120 0000100e cd*4110 0000000000004120 00000000 @c 0000000000005028 ee*4096 @d ${stop}`,
    trace: [
      ...beginTrace,
      'zero @a-@b 0 0x0 named',
      'opaque 0 0x1000',
      'opaque 0 0x2000',
      'opaque 0 0x3000',
      'opaque 0 0x4000',
      'page @c-@d 0 0x5000',
      ...stopTrace,
    ],
  },
  {
    name: 'CONTINUE outlives EOS, footer and other sections',
    why: 'qemu-wire-format 9.2; also empty PARTs, a page in END, and flags 0x200 between them',
    input: `${header} 01 00000007 'ram' 00000000 00000004 @ram 0000000000003004 'a' 0000000000001000
      '/b@c:d' 0000000000002000 0000000000000200 ${eos} 7e 00000007
      02 00000007 @a 0000000000001002 '/b@c:d' 00 @b ${eos} 7e 00000007
      02 00000007 ${eos} 7e 00000007 08 0002 0004 00000063
      02 00000007 @c 0000000000000028 99*4096 @d 0000000000000200 ${eos} 7e 00000007
      03 00000007 @e 0000000000001022 00 @f @g 0000000000000008 'a' 7e*4096 @h ${eos} 7e 00000007 @end
      04 00000003 'timer' 00000000 00000002 02 00000007 00000000 00000022 00`,
    trace: [
      'phase header 8',
      'phase ram-start @ram',
      'block 0 a 4096',
      'block 1 /b@c:d 8192',
      'zero @a-@b 1 0x1000 named',
      'page @c-@d 1 0x0',
      'zero @e-@f 1 0x1000',
      'page @g-@h 0 0x0 named',
      'phase ram-end @end',
    ],
  },
  {
    name: 'a fill other than zero is no ZERO record of ours',
    why: 'QEMU never sends it and 8.2 refuses it, but the bytes must pass and the page is not zero',
    input: `${begin} @0 ${named('00')} @a 0000000000001022 00 @b 0000000000002022 01 ${named('ff')} @c 0000000000003022 00
      @d ${stop}`,
    trace: [
      ...beginTrace,
      'zero @0-@a 0 0x0 named',
      'zero @a-@b 0 0x1000',
      'opaque 0 0x2000',
      'opaque 0 0x0',
      'zero @c-@d 0 0x3000',
      ...stopTrace,
    ],
  },
  {
    name: 'offsets beyond 4 GiB, and an idstr of 255 bytes',
    why: 'the high half of the u64 counts; the longest record head there is',
    input: `${header} ${ramStart} 0000020000000004 ff 78*255 0000020000000000 ${eos} ${footer} ${part}
      @a 0000012345678008 ff 78*255 aa*4096 @b @c 000001ffffff f022 00 @d ${stop}`,
    trace: [
      'phase header 8',
      'phase ram-start @ram',
      `block 0 ${'x'.repeat(255)} 2199023255552`,
      'page @a-@b 0 0x12345678000 named',
      'zero @c-@d 0 0x1fffffff000',
      ...stopTrace,
    ],
  },
  {
    name: 'configuration with capabilities and uuid, guest addresses in the block list',
    why: 'bytes of 7.2 in qemu-wire-format 7; x-ignore-shared adds a u64 to each entry',
    input: `"QEVM" 00000003 07 0000000d "pc-i440fx-7.2" 05 1a "configuration/capabilities" 00000001 00000001
      0f "x-ignore-shared" 05 12 "configuration/uuid" 00000001 5a*16 ${ramStart} 0000000000003004
      'pc.ram' 0000000000002000 0000000000000000 'pc.bios' 0000000000001000 00000000fffc0000 ${eos} ${footer}
      ${part} @a 0000000000000002 'pc.bios' 00 @b ${stop}`,
    trace: [
      'phase header 8',
      'phase ram-start @ram',
      'block 0 pc.ram 8192',
      'block 1 pc.bios 4096',
      'zero @a-@b 1 0x0 named',
      ...stopTrace,
    ],
  },
  {
    name: 'target-page-bits of 12',
    why: 'arm virt machines always send it',
    input: `"QEVM" 00000003 07 00000009 "virt-10.0" 05 'configuration/target-page-bits' 00000001 0000000c
      ${oneBlock} ${eos} ${footer} ${part} @a ${named('00')} @b ${stop}`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'machine types up to 2.3: no configuration, no footers',
    why: 'qemu-wire-format 2.1, 2.2',
    input: `"QEVM" 00000003 ${oneBlock} ${eos} ${part} @a ${named('00')} @b ${eos} ${part} @c 0000000000001022 00 @d
      ${eos} ${end} ${eos} @end 04 00000000 'timer' 00000000 00000002`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', 'zero @c-@d 0 0x1000', ...stopTrace],
  },
  {
    name: 'page sizes in the block list, with hugepages and postcopy',
    why: 'nothing announces them: qemu-wire-format 3.2; here for the first, a middle and the last RAMBlock',
    input: `${header} 08 0003 0010 0000000000201000 0000000000001000 @advise ${ramStart} 0000000000803004
      'mem0' 0000000000400000 0000000000200000 'a' 0000000000001000 'mem1' 0000000000200000 0000000000200000
      'b' 0000000000002000 'mem2' 0000000000200000 0000000000200000 ${eos} ${footer}
      ${part} @a 0000000000000002 'mem2' 00 @b ${stop}`,
    trace: [
      'phase header 8',
      'phase postcopy-advise @advise',
      'phase ram-start @ram',
      'block 0 mem0 4194304',
      'block 1 a 4096',
      'block 2 mem1 2097152',
      'block 3 b 8192',
      'block 4 mem2 2097152',
      'zero @a-@b 4 0x0 named',
      ...stopTrace,
    ],
  },
  {
    name: 'postcopy',
    why: 'qemu-wire-format 2.5: DISCARD, PINGs, a package whose bytes look like anything, pages behind it, EOF',
    input: `${header} 08 0001 0000 @rp 08 0002 0004 00000001 08 0003 0010 0000000000001000 0000000000001000 @advise
      ${oneBlock} ${eos} ${footer} ${part} @a ${named('00')} @b ${eos} ${footer}
      08 000b 0000 @switch 08 0006 0029 00 'pc.ram' 00 0000000000010000 0000000000010000 0000000000025000 0000000000001000
      08 0002 0004 00000002 08 0007 0004 00000040 @post 08 0004 0000 02 00000002 ${eos} 7e 00000002 00 ff*40
      08 0002 0004 00000004 ${part} @c 0000000000010008 'pc.ram' 42*4096 @d @e 0000000000011022 00 @f ${eos} ${footer}
      ${part} ${eos} ${footer} ${end} ${eos} ${footer} @end 00 @eof`,
    trace: [
      'phase header 8',
      'phase return-path @rp',
      'phase postcopy-advise @advise',
      'phase ram-start @ram',
      'block 0 pc.ram 1048576',
      'zero @a-@b 0 0x0 named',
      'phase switchover @switch',
      'phase postcopy @post',
      'page @c-@d 0 0x10000 named',
      'zero @e-@f 0 0x11000',
      'phase ram-end @end',
      'phase eof @eof',
    ],
  },
  {
    name: 'recovery of a postcopy',
    why: 'qemu-wire-format 2.6: no header, no START; ids and RAMBlocks are those of the first connection',
    recovery: true,
    input: `08 000a 0007 'pc.ram' 08 0009 0000 ${part} @a 0000000000002008 'pc.ram' 43*4096 @b @c 0000000000003022 00 @d
      ${eos} ${footer} ${end} ${eos} ${footer} @end 00 @eof`,
    trace: [
      'phase recovery 0',
      'block 0 pc.ram 1048576',
      'page @a-@b 0 0x2000 named',
      'zero @c-@d 0 0x3000',
      'phase ram-end @end',
      'phase eof @eof',
    ],
  },
  {
    name: 'recovery: CONTINUE before any idstr',
    why: 'the state of the broken connection is gone on both sides',
    recovery: true,
    input: `08 000a 0007 'pc.ram' 08 0009 0000 ${part} @bad 0000000000002028 43*4096`,
    trace: ['phase recovery 0', 'degraded @bad RAM record with CONTINUE before any RAMBlock'],
  },
  {
    name: 'recovery without what the first connection taught',
    why: 'a proxy that was started in between: nothing but raw is safe',
    input: `08 000a 0007 'pc.ram' 08 0009 0000`,
    trace: ['degraded 0 not a migration stream'],
  },
  {
    name: 'background snapshot: device state without END of ram',
    why: 'qemu-wire-format 2.4; the state itself looks like records',
    input: `${begin} @a ${named('00')} @b ${eos} ${footer} 04 00000000 'timer' 00000000 00000002 @devices
      ${part} ${named('00')} 7e 00000000 00 06 00000002 "{}"`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', 'phase snapshot-devices @devices'],
  },
  {
    name: 'virtio-mem sends a FULL before the first PART',
    why: '52 bytes seen on QEMU 10 for 256 MiB in blocks of 2 MiB: qemu-wire-format 2.7',
    input: `${header} ${oneBlock} ${eos} ${footer}
      04 0000002a '0000:00:04.0/virtio-mem-device-early' 00000000 00000001 0000000140000000 0000000010000000
      0000000000200000 00000000 0000000008000000 ff*16 7e 0000002a
      ${part} @a ${named('00')} @b ${stop}`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'dirty bitmaps between the PARTs of ram',
    why: 'qemu-wire-format 2.7: all chunks; empty PARTs of both; ADVISE of length 0 is no postcopy of RAM',
    input: `${header} 08 0003 0000 ${oneBlock} ${eos} ${footer}
      01 00000009 'dirty-bitmap' 00000000 00000001 1c 'drive0' 'b0' 00010000 01 01 7e 00000009
      ${part} @a ${named('00')} @b ${eos} ${footer} 02 00000009 01 7e 00000009 ${part} ${eos} ${footer}
      02 00000009 4c 'drive0' 'b0' 0000000000000000 00000800 0000000000000005 7e 00 00 00 09
      44 'b0' 0000000000000800 00000800 0000000000000000 42 0000000000001000 00000800 01 7e 00000009
      ${part} @c 0000000000001022 00 @d ${stop} 03 00000009 2c 'drive0' 'b0' 01 7e 00000009`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', 'zero @c-@d 0 0x1000', ...stopTrace],
  },
  {
    name: 'dirty bitmaps in postcopy go on behind END of ram',
    why: 'qemu-wire-format 2.5',
    recovery: true,
    input: `${end} ${eos} ${footer} @end 01 00000009 'dirty-bitmap' 00000000 00000001 01 7e 00000009
      02 00000009 4c 'd' 'b' 0000000000000000 00000800 0000000000000002 abcd 01 7e 00000009
      03 00000009 21 7e 00000009 00 @eof`,
    trace: ['phase recovery 0', 'phase ram-end @end', 'phase eof @eof'],
  },
  {
    name: 'block migration',
    why: 'up to 9.0, only read in source: qemu-wire-format 2.7; a chunk of 1 MiB is too long for every cut, so zeros',
    input: `${header} 01 00000001 'block' 00000000 00000001 0000000000000002 7e 00000001 ${oneBlock} ${eos} ${footer}
      02 00000001 0000000000000009 'drive0' 0000000000000804 0000000000000002 7e 00000001
      ${part} @a ${named('00')} @b ${stop}`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'vfio, s390 storage attributes and the hash table of ppc64',
    why: 'only read in source: qemu-wire-format 2.7',
    input: `${header} ${oneBlock} ${eos} ${footer}
      01 00000021 '0000:00:02.0/vfio' 00000000 00000001 ffffffffef100003 ffffffffef100001 7e 00000021
      01 00000022 's390-storage_attributes' 00000000 00000000 0000000000000001 7e 00000022
      01 00000023 'spapr/htab' 00000000 00000001 00000018 7e 00000023 ${part} @a ${named('00')} @b ${eos} ${footer}
      02 00000021 ffffffffef100004 0000000000000003 7e7e7e ffffffffef100005 7e 00000021
      02 00000022 0000000000001002 0000000000000004 01020304 0000000000000008 0000000000000001 7e 00000022
      02 00000023 00000000 00000010 0002 0001 cc*32 00000000 0000 0001 00000000 0000 0000 7e 00000023
      ${part} @c 0000000000001022 00 @d ${eos} ${footer} 03 00000021 ffffffffef100001 7e 00000021
      03 00000023 00000000 00000000 0000 0000 7e 00000023 ${end} ${eos} ${footer} @end`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', 'zero @c-@d 0 0x1000', ...stopTrace],
  },
  {
    name: 'x-colo: checkpoints behind END of ram stay raw',
    why: 'qemu-wire-format 2.4',
    input: `${header} 08 0008 0000 @colo ${oneBlock} ${eos} ${footer} ${part} @a ${named('00')} @b ${stop}
      ${part} 0000000000001022 00 ${eos} ${footer}`,
    trace: [
      'phase header 8',
      'phase colo @colo',
      'phase ram-start @ram',
      'block 0 pc.ram 1048576',
      'zero @a-@b 0 0x0 named',
      ...stopTrace,
    ],
  },
  {
    name: 'a command of a later QEMU',
    why: 'its length is framed, so RAM goes on behind it',
    input: `${header} 08 0063 0005 08 0007 0004 ${oneBlock} ${eos} ${footer} ${part} @a ${named('00')} @b ${stop}`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'a stream without RAM',
    why: 'the first 00 where an element may stand is EOF, and a description may follow: qemu-wire-format 9.21, 9.22',
    input: `${header} 00 @eof 06 00000005 "{000}" @bad 00`,
    trace: ['phase header 8', 'phase eof @eof', 'degraded @bad bytes behind the end of the stream'],
  },

  // ---- what is not understood, and where ----

  {
    name: 'no migration stream',
    why: 'a port probe, or HTTP',
    input: '"GET" 20 "/" 20 "HTTP/1.1" 0d0a0d0a',
    trace: ['degraded 0 not a migration stream'],
  },
  {
    name: 'version 2 of the stream',
    why: 'obsolete since 2006',
    input: '"QEVM" 00000002 01 00000000',
    trace: ['degraded 4 unknown version of the migration stream'],
  },
  badHeader(
    'a machine type of 4 GiB',
    'the length meets its limit before its bytes are awaited',
    '@bad 07 ffffffff 00*20',
    ['degraded @bad machine type name too long'],
  ),
  badHeader(
    'an unknown subsection',
    'its body has no length',
    "07 00000001 41 @bad 05 'configuration/new' 00000001 00*20",
    ['degraded @bad unknown configuration subsection "configuration/new"'],
  ),
  badHeader(
    'target pages of 16 KiB',
    'loongarch of 7.2; records have other masks',
    '07 00000004 "virt" 05 \'configuration/target-page-bits\' 00000001 @bad 0000000e 00*20',
    ['degraded @bad target page size 16384'],
  ),
  badHeader(
    'target pages of 1 KiB, in ADVISE',
    'old arm boards',
    '07 00000004 "tosa" 08 0003 0010 0000000000000400 @bad 0000000000000400 00*20',
    ['degraded @bad target page size 1024'],
  ),
  badHeader(
    'a billion capabilities',
    'a count meets its limit when it is read',
    "07 00000001 41 05 'configuration/capabilities' 00000001 @bad 3b9aca00 'a' 'b'",
    ['degraded @bad too many capabilities'],
  ),
  badHeader(
    'mapped-ram',
    'only in files; its block list has a layout of its own',
    "07 00000001 41 05 'configuration/capabilities' 00000001 00000002 'x-ignore-shared' @bad 'mapped-ram' 00*20",
    ['degraded @bad mapped-ram on a socket'],
  ),
  badHeader(
    'a subsection behind the header',
    'element 05 belongs into bodies',
    '07 00000001 41 08 0001 0000 @rp @bad 05 00*20',
    ['phase return-path @rp', 'degraded @bad unknown element 0x5'],
  ),
  badHeader('a configuration behind the header', 'element 07 comes once', '07 00000001 41 @bad 07 00*20', [
    'degraded @bad unknown element 0x7',
  ]),
  badHeader('a description before EOF', 'element 06', '07 00000001 41 @bad 06 00*20', [
    'degraded @bad unknown element 0x6',
  ]),
  badHeader('a footer without a section', 'element 7e', '07 00000001 41 @bad 7e 00*20', [
    'degraded @bad unknown element 0x7e',
  ]),
  badHeader('an iterable of a later QEMU', 'its body has no length', "@bad 01 00000001 'new' 00000000 00000001 00*20", [
    'strayed @bad unknown section "new"',
  ]),
  badHeader('ram of version 5', 'the only one is 4', "@bad 01 00000001 'ram' 00000000 00000005 00*20", [
    'degraded @bad unknown version of the ram section',
  ]),
  badHeader('a second instance of ram', 'there is one', "@bad 01 00000001 'ram' 00000001 00000004 00*20", [
    'degraded @bad unknown version of the ram section',
  ]),
  badHeader('device state before RAM', 'it has no length', "@bad 04 00000001 'timer' 00000000 00000002 00*20", [
    'strayed @bad device state "timer" before the end of RAM',
  ]),
  badHeader('a PART without START', 'nothing says what it is', '@bad 02 00000001 00*20', [
    'degraded @bad section id that no SECTION_START announced',
  ]),
  badHeader('PACKAGED of another length', 'the length of the package is in there', '@bad 08 0007 0008 00*20', [
    'degraded @bad PACKAGED of an unknown length',
  ]),
  badHeader(
    'a block list that names less than its total',
    'it ends by sum alone: the next record is read as an entry, and its idstr is empty',
    `${ramStart} 0000000000200004 ${pcRam} @bad ${eos} ${footer} ${part}`,
    ['phase ram-start @ram', 'block 0 pc.ram 1048576', 'degraded @bad RAMBlock with an empty idstr'],
  ),
  badHeader(
    'a block list that names more than its total',
    'the length meets its limit when it is read',
    `${ramStart} 0000000000081004 @bad ${pcRam} ${eos}`,
    ['phase ram-start @ram', 'degraded @bad block list does not sum up to its total'],
  ),
  badHeader(
    'a RAMBlock of no length',
    'a list of these would never end',
    `${ramStart} 0000000000001004 @bad 'a' 00*8`,
    ['phase ram-start @ram', 'degraded @bad block list does not sum up to its total'],
  ),
  badHeader(
    'a RAMBlock of 2^53 bytes',
    'numbers are exact below that',
    `${ramStart} 001ffffffffff004 @bad 'a' 0020000000000000`,
    ['phase ram-start @ram', 'degraded @bad block list does not sum up to its total'],
  ),
  badHeader(
    'a RAMBlock listed twice',
    'an idstr means one RAMBlock',
    `${ramStart} 0000000000200004 ${pcRam} @bad ${pcRam} ${eos}`,
    ['phase ram-start @ram', 'block 0 pc.ram 1048576', 'degraded @bad RAMBlock listed twice, or too many RAMBlocks'],
  ),
  badHeader('a page before the block list', 'CONTINUE of nothing', `${ramStart} @bad 0000000000001022 00 00*20`, [
    'phase ram-start @ram',
    'degraded @bad RAM record with CONTINUE before any RAMBlock',
  ]),
  badHeader(
    'the footer of another section',
    'then this is no footer',
    `${oneBlock} ${eos} @bad 7e 00000003 ${part} 00*20`,
    ['phase ram-start @ram', 'block 0 pc.ram 1048576', 'degraded @bad footer of another section'],
  ),
  badHeader(
    'a virtio-mem block size of 0',
    'a division by it',
    `${oneBlock} ${eos} ${footer} 04 00000003 '/virtio-mem-device-early' 00000000 00000001 @bad 00*40`,
    ['phase ram-start @ram', 'block 0 pc.ram 1048576', 'strayed @bad virtio-mem sizes out of range'],
  ),
  badHeader(
    'a dirty bitmap of 2^53 bytes',
    'numbers are exact below that',
    "01 00000009 'dirty-bitmap' 00000000 00000001 @bad 40 0000000000000000 00000800 0020000000000000 00*20",
    ['strayed @bad length beyond 2^53'],
  ),
  badHeader(
    'dirty-bitmap flags of two bytes',
    'QEMU never sent them',
    "01 00000009 'dirty-bitmap' 00000000 00000001 @bad 80 00*20",
    ['strayed @bad dirty-bitmap chunk with extra flags'],
  ),
  badHeader(
    'an unknown vfio tag',
    'device-specific bytes follow',
    "01 00000009 'x/vfio' 00000000 00000001 @bad ffffffffef100002",
    ['strayed @bad unknown vfio tag'],
  ),
  badHeader(
    'an error of s390 storage attributes',
    'flag 04',
    "01 00000009 's390-storage_attributes' 00000000 00000000 @bad 0000000000000004",
    ['strayed @bad unknown storage attributes chunk'],
  ),
  badHeader('an unknown chunk of block', 'no flag set', "01 00000009 'block' 00000000 00000001 @bad 0000000000000200", [
    'strayed @bad unknown block chunk',
  ]),
  bad('flags that nobody knows', 'they could mean a body', '@bad 0000000000000800', 'unknown RAM flags 0x800'),
  bad('no flags', 'every record has one', '@bad 0000000000001000', 'unknown RAM flags 0x0'),
  bad('CONTINUE alone', 'a modifier, no record', '@bad 0000000000001020', 'unknown RAM flags 0x20'),
  bad('HOOK', 'RDMA only', '@bad 0000000000000080', 'unknown RAM flags 0x80'),
  bad('FULL', 'obsolete since 2009', '@bad 0000000000000001', 'unknown RAM flags 0x1'),
  bad(
    'two kinds at once',
    'exactly one bit says the kind',
    `@a ${named('00')} @b @bad 000000000000102a`,
    'unknown RAM flags 0x2a',
    ['zero @a-@b 0 0x0 named'],
  ),
  bad('EOS with CONTINUE', 'no page, no RAMBlock', '@bad 0000000000000030', 'unknown RAM flags 0x30'),
  bad(
    'EOS with an address',
    'no page, no address',
    '@bad 0000000000001010',
    'RAM record without a page has an address',
  ),
  bad(
    'FLUSH with an address',
    'no page, no address',
    '@bad 0000000000001200',
    'RAM record without a page has an address',
  ),
  bad(
    'a second block list',
    'only START has one',
    `@bad 0000000000100004 ${pcRam}`,
    'block list outside the START of ram',
  ),
  bad(
    'an idstr that the list does not have',
    'QEMU refuses it',
    "@bad 0000000000000002 'pc.rom' 00",
    'unknown RAMBlock "pc.rom"',
  ),
  bad('an empty idstr', 'QEMU sends none', '@bad 0000000000000002 00 00', 'RAM record with an empty idstr'),
  bad(
    'a page beyond its RAMBlock',
    'used_length is 1 MiB',
    "@bad 0000000000100008 'pc.ram'",
    'RAM record beyond its RAMBlock',
  ),
  bad(
    'a page beyond its RAMBlock, with CONTINUE',
    'used_length is 1 MiB',
    `@a ${named('00')} @b @bad 0000000000100022 00`,
    'RAM record beyond its RAMBlock',
    ['zero @a-@b 0 0x0 named'],
  ),
  bad(
    'an address of 2^53',
    'numbers are exact below that',
    "@bad 0020000000000008 'pc.ram'",
    'RAM address beyond 2^53',
  ),
  bad(
    'an XBZRLE record longer than a page',
    'QEMU refuses it',
    "@bad 0000000000000040 'pc.ram' 01 1001",
    'XBZRLE record longer than a page',
  ),
  bad('an unknown delta', 'the encoding is 1', "@bad 0000000000000040 'pc.ram' 02 0001", 'unknown XBZRLE encoding'),
  bad(
    'a compressed page of 4 GiB',
    'QEMU refuses more than compressBound',
    "@bad 0000000000000100 'pc.ram' ffffffff",
    'COMPRESS_PAGE record longer than a page can be',
  ),
  bad(
    'no footer where others had one',
    'the body did not end here',
    `${eos} @bad 02 00000002`,
    'section without footer',
  ),
  {
    name: 'recovery: device state',
    why: 'behind the switch to postcopy none is sent outside a package',
    recovery: true,
    input: `${part} ${eos} ${footer} @bad 04 00000000 'timer' 00000000 00000002 00`,
    trace: ['phase recovery 0', 'strayed @bad device state "timer" before the end of RAM'],
  },
  // ---- sections that nobody here can read: qemu-wire-format 2.7 ----
  {
    name: 'pbs-state of Proxmox VE',
    why: 'one START behind that of ram: a length and so many bytes, which may look like anything',
    input: `${header} ${oneBlock} ${eos} ${footer}
      01 00000003 'pbs-state' 00000000 00000001 000000000000001d 7e 00000003 ${part} ${eos} ${footer} ${part} ff 7e 00000003
      ${part} @a ${named('00')} @b ${stop}`,
    trace: [...beginTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'an unknown section behind the START of ram',
    why: 'its footer, and a PART of ram with a record',
    input: `${unknownAt('body')} 00*30 7e 00000007 ${part} @a ${named('00')} @b @c 0000000000001028 42*4096 @d ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x0 named', 'page @c-@d 0 0x1000', ...stopTrace],
  },
  {
    name: 'an unknown section whose body is full of footers',
    why: 'what follows them is no element, no announced section, no length of a command, no record, no RAMBlock',
    input: `${unknownAt('body')} 7e*9 00000007 7e 00000007 7e 00000007 00 7e 00000007 09 7e 00000007 02 00000008 00
      7e 00000007 08 0002 0005 7e 00000007 08 000c 0000 7e 00000007 ${part} 0000000000100022 7e 00000007 ${part}
      0000000000000008 'other' 7e 00000007 ${part} 0000000000000004 7e 00000007 ${part} 0020000000000022
      7e 00000007 ${part} ${eos} 7e 00000007 ${part} 0000000000000200 0000000000000800 7e 00000007 7e 00000007
      7e 00000007 ${part} @a 0000000000002002 'pc.ram' 00 @b ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x2000 named', ...stopTrace],
  },
  {
    name: 'an unknown section whose body has ways back that are none',
    why: 'behind footers: a section that is not there, PING of five bytes, a name no section has, ram once more',
    input: `${unknownAt('body')} 7e 00000099 ${part} ${named('00')} 7e 00000007 08 0002 0005 0000000001 ${part} ${named('00')}
      7e 00000007 01 00000008 03 610762 00000000 00000001 7e 00000008 ${part} ${named('00')}
      7e 00000007 01 00000009 'ram' 00000000 00000004 0000000000000000 ${part} ${named('00')}
      7e 00000007 ${part} @a ${named('00')} @b ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'MULTIFD_FLUSH is no way back: what follows it has to be one',
    why: 'a word without a page could be chance; more of them than wrong ways are followed, then one before a record',
    input: `${unknownAt('body')} ${`7e 00000007 ${part} ${flush} ff*8 `.repeat(20)}
      7e 00000007 ${part} ${flush} ${flush} @a ${named('00')} @b ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'an empty PART of ram ends in the footer of ram, or is none',
    why: 'the footer of a section that is not there, and a byte that is no footer, each before what looks like a record',
    input: `${unknownAt('body')} 7e 00000007 ${part} ${eos} 7e 00000006 ${part} ${named('00')}
      7e 00000007 ${part} ${eos} 7f 00000002 ${part} ${named('00')}
      7e 00000007 ${part} @a 0000000000001002 'pc.ram' 00 @b ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x1000 named', ...stopTrace],
  },
  {
    name: 'a PACKAGED of another length is no way back',
    why: 'its length is four bytes that say how long the package is',
    input: `${unknownAt('body')} 7e 00000007 08 0007 0003 00000000 ${part} ${named('00')}
      7e 00000007 08 0007 0005 00000000 ${part} ${named('00')}
      7e 00000007 08 0007 0004 00000000 @post ${part} @a 0000000000001002 'pc.ram' 00 @b ${eos} ${footer}`,
    trace: [...strayTrace, 'phase postcopy @post', 'zero @a-@b 0 0x1000 named'],
  },
  {
    name: 'the way back through commands, at the switch to postcopy',
    why: 'END of an unknown section stands right before it: SWITCHOVER_START, DISCARD, PING, PACKAGED, then ram',
    input: `${unknownAt('body')} 01 7e 00000007 ${part} @a ${named('00')} @b ${eos} ${footer} 03 00000007 7e 08 00 7e 00000007
      08 000b 0000 @switch 08 0006 0019 00 'pc.ram' 00 0000000000010000 0000000000010000
      08 0002 0004 00000002 08 0007 0004 00000020 @post 08 0004 0000 02 00000002 ${eos} 7e 00000002 00 ff*8
      08 0002 0004 00000004 ${part} @c 0000000000010008 'pc.ram' 42*4096 @d ${eos} ${footer}
      ${end} ${eos} ${footer} @end 00 @eof`,
    trace: [
      ...strayTrace,
      'zero @a-@b 0 0x0 named',
      'phase switchover @switch',
      'phase postcopy @post',
      'page @c-@d 0 0x10000 named',
      'phase ram-end @end',
      'phase eof @eof',
    ],
  },
  {
    name: 'unknown sections of which one is announced within what is passed',
    why: 'virtio-net by upstream plans: a START a device, then PARTs between those of ram',
    input: `${unknownAt('body')} 11*9 7e 00000007 01 00000008 '0000:00:03.0/virtio-net' 00000000 0000000b 22*9 7e 00000008
      ${part} @a ${named('00')} @b ${eos} ${footer} @two 02 00000008 33*9 7e 00000008 02 00000007 7e 00000007
      ${part} @c 0000000000001022 00 @d ${eos} ${footer} 02 00000007 7e 00000007 ${stop}`,
    trace: [
      ...strayTrace,
      'zero @a-@b 0 0x0 named',
      'strayed @two unknown section "0000:00:03.0/virtio-net"',
      'zero @c-@d 0 0x1000',
      ...stopTrace,
    ],
  },
  {
    name: 'an unknown section, then one that is known',
    why: 'the grammar of dirty-bitmap is not needed to pass it, and serves again later',
    input: `${unknownAt('body')} 11*9 7e 00000007 01 00000009 'dirty-bitmap' 00000000 00000001 1c 'd' 'b' 00010000 01 01
      7e 00000009 ${part} @a ${named('00')} @b ${eos} ${footer}
      02 00000009 4c 'd' 'b' 0000000000000000 00000800 0000000000000005 7e 00 00 00 09 01 7e 00000009
      ${part} @c 0000000000001022 00 @d ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x0 named', 'zero @c-@d 0 0x1000', ...stopTrace],
  },
  {
    name: 'empty PARTs and an END of ram behind unknown sections',
    why: 'EOS and footer are as good as a record; behind END of ram all is raw',
    input: `${unknownAt('body')} 11*9 7e 00000007 ${part} ${eos} ${footer} 02 00000007 22*9 7e 00000007 ${part}
      0000000000000200 ${eos} ${footer} ${part} @a ${named('00')} @b ${eos} ${footer}
      03 00000007 33*9 7e 00000007 ${end} ${eos} ${footer} @end 04 00000000 'timer' 00000000 00000002 7e*20`,
    trace: [...strayTrace, 'zero @a-@b 0 0x0 named', ...stopTrace],
  },
  {
    name: 'an unknown section before ram',
    why: 'the START of ram is the way back',
    input: `${header} @body 01 00000001 'new' 00000000 00000001 7e 00000001 01 00000002 'ram' 00000000 00000005
      7e 00000001 01 00000003 'rom' 00000000 00000004 11*5 7e 00000003 ${oneBlock} ${eos} ${footer}
      ${part} @a ${named('00')} @b ${eos} ${footer} @two 02 00000003 7e 00000003 ${part} @c 0000000000001022 00 @d ${stop}`,
    trace: [
      'phase header 8',
      'strayed @body unknown section "new"',
      'phase ram-start @ram',
      'block 0 pc.ram 1048576',
      'zero @a-@b 0 0x0 named',
      'strayed @two unknown section "rom"',
      'zero @c-@d 0 0x1000',
      ...stopTrace,
    ],
  },
  {
    name: 'unknown device state between the START and the first PART of ram',
    why: 'as that of virtio-mem, of another device; and a second one, whose id nobody announced',
    input: `${header} ${oneBlock} ${eos} ${footer} @body 04 0000002a 'new-early' 00000000 00000001 11*40 7e 0000002a
      04 0000002b 'x' 00000000 00000001 22*9 7e 0000002b ${part} @a ${named('00')} @b ${stop}`,
    trace: [
      ...beginTrace,
      'strayed @body device state "new-early" before the end of RAM',
      'zero @a-@b 0 0x0 named',
      ...stopTrace,
    ],
  },
  {
    name: 'a known section whose body is of a later version',
    why: 'its grammar ends, its footer does not; told where it could not be read on, and once',
    input: `${header} ${oneBlock} ${eos} ${footer} 01 00000021 'a/vfio' 00000000 00000001 ffffffffef100001 7e 00000021
      ${part} @a ${named('00')} @b ${eos} ${footer} 02 00000021 @body ffffffffef100009 1234 7e 00000021
      ${part} @c 0000000000001022 00 @d ${eos} ${footer} 02 00000021 ffffffffef100009 7e 00000021
      ${part} @e 0000000000002022 00 @f ${eos} ${footer} 02 00000021 ffffffffef100001 ff 7e 00000021
      ${part} @g 0000000000003022 00 @h ${stop}`,
    trace: [
      ...beginTrace,
      'zero @a-@b 0 0x0 named',
      'strayed @body unknown vfio tag',
      'zero @c-@d 0 0x1000',
      'zero @e-@f 0 0x2000',
      'zero @g-@h 0 0x3000',
      ...stopTrace,
    ],
  },
  {
    name: 'a body that holds a whole stream',
    why: 'its records are told, for they stand there; where it ends the search goes on',
    input: `${unknownAt('body')} 7e 00000007 ${part} @x ${named('00')} @y ${eos} ${footer} ${part} ${eos} ${footer} ff*50
      7e 00000007 ${part} @a 0000000000001002 'pc.ram' 00 @b ${stop}`,
    trace: [...strayTrace, 'zero @x-@y 0 0x0 named', 'zero @a-@b 0 0x1000 named', ...stopTrace],
  },
  {
    name: 'the right footer within what a wrong way takes for a field',
    why: 'a START with a long idstr, and a word of RAM: their bytes are looked at again',
    input: `${unknownAt('body')} 7e 00000007 ${part} ${eos} ${footer} 02 7e 00000007 ${part} @a ${named('00')} @b ${eos}
      ${footer} 02 00000007 7e 00000007 ${part} ${eos} ${footer} ${part} 7e 00000007 02 00000002 @c 0000000000001022 00 @d
      ${stop}`,
    trace: [...strayTrace, 'zero @a-@b 0 0x0 named', 'zero @c-@d 0 0x1000', ...stopTrace],
  },
  {
    name: 'too many wrong ways',
    why: 'someone makes them: 16 are followed, and the 17th is the last',
    input: `${unknownAt('body')} ${`7e 00000007 ${part} ${eos} ${footer} ff `.repeat(16)} 7e 00000007 ${part} ${eos} ${footer}
      @bad ff 7e 00000007 ${part} ${named('00')}`,
    trace: [...strayTrace, 'degraded @bad unknown element 0xff'],
  },
  {
    name: 'an unknown section where there are no footers',
    why: 'two records that follow each other, of which the second is told; one could be chance',
    input: `"QEVM" 00000003 ${oneBlock} ${eos} ${part} @a ${named('00')} @b ${eos} @start 01 00000007 'new' 00000000 00000001
      ${part} 0000000000003022 00 0000000000003040 ${part} ${eos} ${part} 0000000000004028 11*4096 0000000000000001
      ${part} 0000000000005022 00 @c 0000000000006022 00 @d ${eos} ${part} @e 0000000000007028 42*4096 @f ${eos} ${end} ${eos}
      @end 04 00000000 'timer' 00000000 00000002`,
    trace: [
      ...beginTrace,
      'zero @a-@b 0 0x0 named',
      'strayed @start unknown section "new"',
      'zero @c-@d 0 0x6000',
      'page @e-@f 0 0x7000',
      ...stopTrace,
    ],
  },
  {
    name: 'MULTIFD_FLUSH on the way back where there are no footers',
    why: 'it stands before and between the two records, and is none of them',
    input: `"QEVM" 00000003 ${oneBlock} ${eos} ${part} @a ${named('00')} @b ${eos} @start 01 00000007 'new' 00000000 00000001
      11*9 ${part} ${flush} 0000000000005022 00 ${flush} @c 0000000000006022 00 @d ${eos} ${end} ${eos}
      @end 04 00000000 'timer' 00000000 00000002`,
    trace: [
      ...beginTrace,
      'zero @a-@b 0 0x0 named',
      'strayed @start unknown section "new"',
      'zero @c-@d 0 0x6000',
      ...stopTrace,
    ],
  },
  {
    name: 'an unknown section before ram where there may be no footers',
    why: 'the START of ram alone is not enough to go by',
    input: `"QEVM" 00000003 01 00000003 'pbs-state' 00000000 00000001 0000000000000001 aa @bad 01 00000001 'new' 00000000
      00000001 7e 00000001 ${oneBlock} ${eos} ${part} ${named('00')}`,
    trace: ['phase header 8', 'degraded @bad unknown section "new"'],
  },
  {
    name: 'recovery: an unknown section behind END of ram',
    why: 'postcopy of something else may go on there; nothing can be saved any more, so nothing is told',
    recovery: true,
    input: `${end} ${eos} ${footer} @end 01 00000007 'new' 00000000 00000001 11*9 7e 00000007 00`,
    trace: ['phase recovery 0', 'phase ram-end @end'],
  },
  {
    name: 'recovery: an unknown section between PARTs of ram',
    why: 'ids of the first connection, without a START here',
    recovery: true,
    input: `08 000a 0007 'pc.ram' 08 0009 0000 ${part} @a ${named('00')} @b ${eos} ${footer} @body 01 00000007 'new' 00000000
      00000001 7e 00000007 7e 00000007 ${part} @c 0000000000003022 00 @d ${eos} ${footer} ${end} ${eos} ${footer} @end 00 @eof`,
    trace: [
      'phase recovery 0',
      'block 0 pc.ram 1048576',
      'zero @a-@b 0 0x0 named',
      'strayed @body unknown section "new"',
      'zero @c-@d 0 0x3000',
      'phase ram-end @end',
      'phase eof @eof',
    ],
  },
]
