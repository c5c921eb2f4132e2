/**
 * Batches made by hand from docs/protocol.md §4 to §7 and §9, in the notation of ../qemu/notation.ts; `sum` in a whole batch
 * stands for 8 bytes that test/codec fills in by the second decoder's checksum, everything else is literal.
 */

export const COLUMN_NAMES = [
  'ops',
  'numbers',
  'other',
  'pages',
  'dense',
  'lengths',
  'sources',
  'shifts',
  'headers',
  'words',
  'cold',
] as const
export type ColumnName = (typeof COLUMN_NAMES)[number]
export type Columns = Partial<Record<ColumnName, string>>

/** What both sides agreed on; one page in notation for each template. */
export interface VectorPool {
  readonly templates?: readonly string[]
  readonly ring?: number
  readonly places?: number
  /** One page for each cold one. */
  readonly cold?: readonly string[]
  /** It carries disks. */
  readonly disks?: boolean
}

export interface BatchVector {
  readonly name: string
  readonly pool?: VectorPool
  /** Of one session, in their order; flow 1 of migration 1 unless they say. */
  readonly batches: readonly {
    readonly flow?: number
    readonly migration?: number
    readonly columns: Columns
    readonly gives: string
  }[]
  /** State of the pool afterwards: cursor, marks by ring slot, pages by ring slot, slots by place ('-': none). */
  readonly cursor?: number
  readonly marks?: string
  readonly ring?: readonly string[]
  readonly places?: string
}

export interface WholeVector {
  readonly name: string
  readonly why: string
  readonly batches: readonly { readonly batch: string; readonly gives: string }[]
}

export interface BadVector {
  readonly name: string
  readonly pool?: VectorPool
  /** Comes first, and is good. */
  readonly before?: { readonly columns: Columns; readonly gives: string }
  readonly columns: Columns
  /** By default 4104: a page with its head. */
  readonly rawLength?: number
  readonly what: RegExp
  /** Where in the column. */
  readonly offset?: number
}

/** The u64 that opens a record. */
const head = (page: number, flag: number) => ((BigInt(page) << 12n) | BigInt(flag)).toString(16).padStart(16, '0')
const ZERO = 0x22
const PAGE = 0x28
const records = (flag: number, body: string, from: number, count: number) =>
  Array.from({ length: count }, (_, i) => `${head(from + i, flag)} ${body}`).join(' ')
const zeros = (from: number, count: number) => records(ZERO, '00', from, count)
const pages = (body: string, from: number, count = 1) => records(PAGE, body, from, count)
/** Little-endian words, modulo 2^32. */
const counting = (count: number, word: (i: number) => number) =>
  Array.from({ length: count }, (_, i) => {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(word(i) % 2 ** 32)
    return bytes.toString('hex')
  }).join(' ')
/** Three template pages that no copy can mix up. */
const three = ['a0*4096', 'a1*4096', 'a2*4096']
/** A multifd header: flags 0, these pages of pc.ram; `offsets` is 1024 bytes. */
const packet = (normal: string, dataBytes: string, offsets: string) =>
  `11223344 00000001 00000000 00000080 ${normal} ${dataBytes} 0000000000000007 00000000 00*28 "pc.ram" 00*250 ${offsets}`

/** A session that carries disks; block p of export 5 in migration 1 has place p mod 8. */
const DISKS = { disks: true, ring: 4, places: 8 }

/** A WRITE of blocks 0 and 1 of export 5 that brings neither. */
const owingBlocks = {
  columns: { ops: '01 02 01 03', numbers: '01 05 21 02 808001' },
  gives: '25609513 0000 0001 0000000000000001 0000000000000000 00002000',
}

export const wholeVectors: readonly WholeVector[] = [
  {
    name: 'one byte',
    why: 'the smallest batch, every byte of it',
    batches: [
      {
        batch: `
          #0 01  #1 01  #2 801faa5b8fc6d3d9
          #10 02  #11 00 00 01  #14 02 00 01
          #17 81  #18 41`,
        gives: '41',
      },
    ],
  },
  {
    name: 'an LZ4 column',
    why: 'a match that overlaps itself, and the literals that end every block',
    batches: [
      {
        batch: `
          #0 01  #1 30  #2 sum  #10 02
          #11 00 00 02  #14 02 01 30 0b
          #18 80 20
          #20 1f 41 0100 17  50 41*5`,
        gives: '41*48',
      },
    ],
  },
  {
    name: 'zstd columns',
    why: 'a stream goes on from batch to batch, one column of it; method 3 starts again',
    batches: [
      {
        batch: `
          01 08 sum 02  00 00 01  02 03 08 10
          #18 88
          #19 28b52ffd 00 40  180000 "abc"  2a0000 "Z"  #35`,
        gives: '"abcZZZZZ"',
      },
      { batch: '01 02 sum 02  00 00 01  02 02 02 05  82  100000 "yz"', gives: '"yz"' },
      { batch: '01 01 sum 02  00 00 01  02 00 01  81  "-"', gives: '"-"' },
      { batch: '01 8101 sum 02  00 00 02  02 02 8101 04  80 71  0a0400 "x"', gives: '78*129' },
      { batch: '01 02 sum 02  00 00 01  02 03 02 0b  82  28b52ffd 00 40  100000 "ok"', gives: '"ok"' },
      { batch: '01 02 sum 02  00 00 01  02 02 02 05  82  100000 "go"', gives: '"go"' },
    ],
  },
]

export const batchVectors: readonly BatchVector[] = [
  {
    name: 'writes to a disk: bytes before and behind whole blocks, blocks of zeroes, blocks that were there, two connections',
    pool: DISKS,
    batches: [
      {
        columns: {
          ops: '01 02 01 03  80 50 42 84',
          numbers: '01 05  29 02 c03e c88101',
          other: '11*96 22*4',
          pages: 'a0*4096 a1*4096',
        },
        gives: '25609513 0000 0001 0000000000000001 0000000000000fa0 00002064  11*96 a0*4096 a1*4096 22*4',
      },
      {
        columns: { ops: '01 03 80 ec1f 11 80 58', numbers: '00', other: '33*4092 44*104' },
        gives: '25609513 0000 0001 0000000000000002 0000000000003004 00002064  33*4092 00*4096 44*104',
      },
      {
        columns: { ops: '01 03 32', numbers: '28 cf8102 c701' },
        gives: '25609513 0000 0001 0000000000000003 0000000000001000 00002000  a0*4096 a1*4096',
      },
      {
        flow: 2,
        columns: { ops: '01 02 01 03 31', numbers: '02 05  29 82808002 808001 8040' },
        gives: '21e41c71 0020 0001 0000000000000001 0000000000002000 0000000000001000  a1*4096',
      },
    ],
    cursor: 2,
    marks: '1100',
    places: '-,0,1,-,-,-,-,-',
  },
  {
    name: 'messages without data in a row, and an offset that carries',
    pool: DISKS,
    batches: [
      {
        columns: { ops: '01 02 03 03', numbers: '01 05 01 06 00 00' },
        gives: [1, 2, 3]
          .map(cookie => `25609513 0000 0003 000000000000000${cookie} 0000000000000000 00000000`)
          .join(' '),
      },
      {
        flow: 2,
        columns: { ops: '01 02 02 03', numbers: '02 05  69 08 01 02 04  00' },
        gives: `21e41c71 0000 0004 0000000000000001 00000000ffffffff 0000000200000001
          21e41c71 0000 0004 0000000000000002 0000000300000000 0000000200000001`,
      },
      {
        // another connection: nothing is as it was
        flow: 2,
        columns: { ops: '01 02 01 03', numbers: '02 06 00' },
        gives: '21e41c71 0000 0000 0000000000000001 0000000000000000 0000000000000000',
      },
    ],
  },
  {
    name: 'a length of 2^32 in an extended chunk: 8 bytes are its offset',
    pool: DISKS,
    batches: [
      {
        columns: { ops: '01 02 01 03', numbers: '05 05  20 0f' },
        gives: '6e8a278c 0000 0000 0000000000000001 0000000000000000 0000000100000000 0000000000000000',
      },
    ],
  },
  {
    name: 'replies with data: simple, a chunk, an extended chunk of a part of its request',
    pool: DISKS,
    batches: [
      {
        columns: { ops: '01 02 01 03 41', numbers: '03 05  20 8040', pages: 'b0*4096' },
        gives: '67446698 00000000 0000000000000001  b0*4096',
      },
      {
        flow: 2,
        columns: { ops: '01 02 01 03 31', numbers: '04 05  21 828008 8040' },
        gives: '668e33ef 0001 0001 0000000000000001 00001008 0000000000000000  b0*4096',
      },
      {
        flow: 3,
        columns: { ops: '01 02 01 03 71', numbers: '05 05  a901 828008 8040 8040 ff3f  55' },
        gives: '6e8a278c 0001 0001 0000000000000001 0000000000000000 0000000000001008 0000000000001000  55*4096',
      },
    ],
    places: '0,-,-,-,-,-,-,-',
  },
  {
    name: 'blocks of which nothing is said, and blocks in later batches than their head',
    pool: DISKS,
    batches: [
      owingBlocks,
      { flow: 2, columns: { ops: '41', pages: 'c9*4096' }, gives: pages('c9*4096', 0) },
      { columns: { ops: '81', other: '01' }, gives: '01' },
      { columns: { ops: 'e1 80 ef1f 41', other: '02*4095', pages: 'c1*4096' }, gives: '02*4095 c1*4096' },
      {
        columns: { ops: '01 03 12', numbers: '00' },
        gives: '25609513 0000 0001 0000000000000002 0000000000002000 00002000 00*8192',
      },
    ],
    cursor: 2,
    places: '-,1,-,0,-,-,-,-',
  },
  {
    name: 'the last block that has a number, from a set on the disk',
    pool: { ...DISKS, cold: ['c0*4096'] },
    batches: [
      {
        columns: { ops: '01 02 01 03 01 00', numbers: '01 05  39 02 ff3f feff7f 8040', cold: '00 00' },
        gives: '25609513 0000 0001 0000000000000001 000ffffffffff000 00001000  c0*4096',
      },
    ],
    places: '-,-,-,-,-,-,-,0',
  },
  {
    name: 'EXPORT and MESSAGE take back that the next head says a name',
    pool: DISKS,
    batches: [
      {
        columns: { ops: 'c1 b1 01 02 41', numbers: '01 00 01 05', other: '"x"', pages: 'd0*4096' },
        gives: pages('d0*4096', 0),
      },
      {
        columns: { ops: 'b1 01 03 42', numbers: '00 21 02 8040', pages: 'd1*4096 d2*4096' },
        gives: `25609513 0000 0001 0000000000000001 0000000000000000 00001000  d1*4096 ${pages('d2*4096', 1)}`,
      },
    ],
    places: '1,2,-,-,-,-,-,-',
  },
  {
    name: 'ZERO: runs, a count of 16, a count of 17, two ops in a row',
    batches: [
      { columns: { ops: '1f' }, gives: zeros(0, 15) },
      { columns: { ops: '10 00' }, gives: zeros(15, 16) },
      { columns: { ops: '10 01 12' }, gives: zeros(31, 19) },
      { columns: { ops: '10 f0 01' }, gives: zeros(50, 256) },
    ],
  },
  {
    name: 'SKIP and SEEK: forth, back, to the last page number and behind it',
    batches: [
      { columns: { ops: '91 11 90 10 11' }, gives: `${zeros(1, 1)} ${zeros(34, 1)}` },
      // -30, as 2 * 30 - 1
      { columns: { ops: 'a1 11', numbers: '3b' }, gives: zeros(5, 1) },
      { columns: { ops: 'a1 11', numbers: 'f2 ff ff ff ff 3f' }, gives: zeros(2 ** 40 - 1, 1) },
      { columns: { ops: 'a1 11', numbers: 'ff ff ff ff ff 3f' }, gives: zeros(0, 1) },
    ],
  },
  {
    name: 'DEFINE and BLOCK: named and not, a page number of its own',
    batches: [
      {
        columns: { ops: 'c1 b1 12 c1 b1 93 11 b2 91 11', numbers: '06 00 01 01 00', other: '"pc.ram" "v"' },
        gives: `${head(0, 2)} 'pc.ram' 00 ${zeros(1, 1)}  ${head(3, 2)} 'v' 00  ${zeros(1, 1)}`,
      },
      { columns: { ops: 'b1 41', numbers: '01', pages: '77*4096' }, gives: `${head(0, 8)} 'v' 77*4096` },
      // the last BLOCK counts
      { columns: { ops: 'b1 b2 11', numbers: '01 00' }, gives: zeros(0, 1) },
      { columns: { ops: 'b2 b1 11', numbers: '00 01' }, gives: `${head(0, 2)} 'v' 00` },
      // a name of 255 bytes, and the same name once more
      {
        columns: { ops: 'c1 c1 b1 12', numbers: 'ff 01 01 02', other: `65*255 "v"` },
        gives: `${head(0, 2)} ff 65*255 00 ${zeros(1, 1)}`,
      },
    ],
  },
  {
    name: 'OTHER between records leaves the predictions alone',
    batches: [
      {
        columns: { ops: '12 83 11 80 01', other: '"abc" 2d*17' },
        gives: `${zeros(0, 2)} "abc" ${zeros(2, 1)} 2d*17`,
      },
    ],
  },
  {
    name: 'COLD: runs and operations are cut each in its own way; pages enter the ring',
    pool: { templates: three, cold: ['c0*4095 01', 'c1*4095 02', 'c2*4095 03', 'c3*4095 04'], ring: 3, places: 8 },
    batches: [
      // pages 1 and 2, then 0: runs of 2 and 1, operations of 1 and 2 with a template between
      {
        columns: { ops: '01 00 21 02 00', numbers: '00', cold: '02 01 05 00' },
        gives: `${pages('c1*4095 02', 0)} ${pages('a0*4096', 1)} ${pages('c2*4095 03', 2)} ${pages('c0*4095 01', 3)}`,
      },
      // what passed is known: by its place, and in the ring
      { columns: { ops: 'a1 31 21', numbers: '07 01' }, gives: `${pages('c1*4095 02', 0)} ${pages('c1*4095 02', 1)}` },
      // the flow goes on behind its last run; another flow begins at 0
      { columns: { ops: '01 00', cold: '00 00' }, gives: pages('c1*4095 02', 2) },
      { flow: 2, columns: { ops: '95 01 00', cold: '06 00' }, gives: pages('c3*4095 04', 5) },
    ],
    // the first ring slot was touched, so the one behind it was next
    cursor: 0,
    marks: '000',
    ring: ['c1*4095 02', 'c1*4095 02', 'c3*4095 04'],
    places: '5,-,-,3,3,4,5,-',
  },
  {
    name: 'COLD_ONCE: the ring stays as it is, the place has nothing',
    pool: { cold: ['c0*4095 01', 'c1*4095 02'], ring: 2, places: 8 },
    batches: [
      {
        columns: { ops: '41 a1 01 01 01 00', numbers: '01', pages: '11*4096', cold: '00 01' },
        gives: `${pages('11*4096', 0)} ${pages('c0*4095 01', 0)} ${pages('c1*4095 02', 1)}`,
      },
    ],
    cursor: 0,
    ring: ['11*4096', 'c1*4095 02'],
    places: '-,-,-,-,1,-,-,-',
  },
  {
    name: 'COLD: seventeen times, without a ring; a packet of multifd',
    pool: { cold: Array.from({ length: 17 }, (_, i) => `${(16 + i).toString(16)}*4096`) },
    batches: [
      {
        columns: { ops: '00 01 00', cold: '00 10' },
        gives: Array.from({ length: 17 }, (_, i) => pages(`${(16 + i).toString(16)}*4096`, i)).join(' '),
      },
      {
        flow: 2,
        columns: { ops: 'd1 01 00', headers: packet('00000001', '00001000', '00*1024'), cold: '04 00' },
        gives: `${packet('00000001', '00001000', '00*1024')} 12*4096`,
      },
    ],
  },
  {
    name: 'REF: runs of a template, each region with its own next slot',
    pool: { templates: three, ring: 2, places: 8 },
    batches: [
      // slot 0 three times in a row is slots 0, 1, 2
      {
        columns: { ops: '23', numbers: '00' },
        gives: `${pages('a0*4096', 0)} ${pages('a1*4096', 1)} ${pages('a2*4096', 2)}`,
      },
      // back by 2 (3 in zigzag, region 0)
      { columns: { ops: '21', numbers: '06' }, gives: pages('a1*4096', 3) },
      // region 1: slot 3, never written
      { columns: { ops: '21', numbers: '01' }, gives: pages('00*4096', 4) },
      { columns: { ops: '21 21', numbers: '00 01' }, gives: `${pages('a2*4096', 5)} ${pages('00*4096', 6)}` },
    ],
    marks: '11',
    cursor: 0,
    // 0x85ebca6b mod 8 = 3: page 0 is place 3
    places: '2,4,-,0,1,2,1,3',
  },
  {
    name: 'SAME: what the place has, whichever flow and op put it there',
    pool: { templates: three, ring: 4, places: 4 },
    batches: [
      {
        columns: { ops: '42 21', numbers: '04', pages: '11*4096 22*4096' },
        gives: `${pages('11*4096', 0)} ${pages('22*4096', 1)} ${pages('a1*4096', 2)}`,
      },
      {
        columns: { ops: 'a1 33', numbers: '05' },
        gives: `${pages('11*4096', 0)} ${pages('22*4096', 1)} ${pages('a1*4096', 2)}`,
      },
      // a second flow: page 0 of its own, the places of the same migration
      { flow: 2, columns: { ops: '31' }, gives: pages('11*4096', 0) },
      // FILL leaves the place as it is
      {
        flow: 2,
        columns: { ops: 'a1 71 a1 31', numbers: '01 ff 01 01' },
        gives: `${pages('ff*4096', 0)} ${pages('11*4096', 0)}`,
      },
      // another migration has other places: 0x85ebca6b mod 4 = 3, times 2 is 2; page 3 is place 1
      { flow: 3, migration: 2, columns: { ops: '93 31' }, gives: pages('a1*4096', 3) },
    ],
    cursor: 2,
    marks: '1100',
    ring: ['11*4096', '22*4096', '00*4096', '00*4096'],
    places: '4,1,-,3',
  },
  {
    name: 'places: RAMBlock and migration move them, the table wraps',
    pool: { ring: 8, places: 8 },
    batches: [
      {
        // block 1 is 0x9e3779b1 mod 8 = 1, migration 1 is 0x85ebca6b mod 8 = 3: page 5 of block 1 is place 1
        columns: { ops: 'c1 c1 b1 95 41', numbers: '01 01 01', other: '"ab"', pages: '55*4096' },
        gives: `${head(5, 8)} 'b' 55*4096`,
      },
      // page 6 of block 0 is place 1 as well
      { columns: { ops: 'b2 96 31', numbers: '00' }, gives: pages('55*4096', 6) },
      // a run over the end of the table: pages 3 to 6 are places 6, 7, 0, 1
      {
        columns: { ops: 'a1 44 a1 34', numbers: '07 07', pages: '01*4096 02*4096 03*4096 04*4096' },
        gives: `${pages('01*4096', 3)} ${pages('02*4096', 4)} ${pages('03*4096', 5)} ${pages('04*4096', 6)}
          ${pages('01*4096', 3)} ${pages('02*4096', 4)} ${pages('03*4096', 5)} ${pages('04*4096', 6)}`,
      },
    ],
    cursor: 5,
    marks: '11111000',
    places: '3,4,-,-,-,-,1,2',
  },
  {
    name: 'NEW and DENSE: two columns, one ring',
    pool: { ring: 4, places: 0 },
    batches: [
      {
        columns: { ops: '41 51 41', pages: '11*4096 33*4096', dense: '22*4096' },
        gives: `${pages('11*4096', 0)} ${pages('22*4096', 1)} ${pages('33*4096', 2)}`,
      },
    ],
    cursor: 3,
    marks: '0000',
    ring: ['11*4096', '22*4096', '33*4096', '00*4096'],
  },
  {
    name: 'WORDS: bytes apart, differences of neighbours, of words 3 apart and 1023 apart',
    pool: { ring: 4, places: 0 },
    batches: [
      {
        columns: { ops: 'f1', numbers: '00', words: '11*1024 22*1024 33*1024 44*1024' },
        gives: pages(
          counting(1024, () => 0x44332211),
          0,
        ),
      },
      {
        // the first word is 0xffffff00, then 255 more each: it turns over
        columns: { ops: 'f1', numbers: '01', words: '00 ff*1023 ff 00*1023 ff 00*1023 ff 00*1023' },
        gives: pages(
          counting(1024, i => 0xffffff00 + 255 * i),
          1,
        ),
      },
      {
        columns: { ops: 'f1 f1', numbers: '03 ff07', words: '01 02 03 10*1021 00*3072 05 00*1022 06 00*3072' },
        gives: `${pages(
          counting(1024, i => 1 + (i % 3) + 16 * Math.floor(i / 3)),
          2,
        )} ${pages('05000000 00*4088 0b000000', 3)}`,
      },
    ],
    cursor: 0,
    marks: '0000',
  },
  {
    name: 'the ring wraps; what was touched gets a second chance',
    pool: { ring: 3, places: 0 },
    batches: [
      {
        columns: { ops: '43', pages: '11*4096 22*4096 33*4096' },
        gives: `${pages('11*4096', 0)} ${pages('22*4096', 1)} ${pages('33*4096', 2)}`,
      },
      // touch slots 0 and 1: the next page takes slot 2
      {
        columns: { ops: '22 41', numbers: '01', pages: '44*4096' },
        gives: `${pages('11*4096', 3)} ${pages('22*4096', 4)} ${pages('44*4096', 5)}`,
      },
      // their marks are gone: slot 0
      { columns: { ops: '41', pages: '55*4096' }, gives: pages('55*4096', 6) },
      // all marked (e1 is 2): once around, then where it began
      {
        columns: { ops: '21 22 41', numbers: '01 0b', pages: '66*4096' },
        gives: `${pages('44*4096', 7)} ${pages('55*4096', 8)} ${pages('22*4096', 9)} ${pages('66*4096', 10)}`,
      },
    ],
    cursor: 2,
    marks: '000',
    ring: ['55*4096', '66*4096', '44*4096'],
  },
  {
    name: 'a ring of one page',
    pool: { ring: 1, places: 1 },
    batches: [
      { columns: { ops: '42', pages: '11*4096 22*4096' }, gives: `${pages('11*4096', 0)} ${pages('22*4096', 1)}` },
      {
        columns: { ops: '31 41 31', pages: '33*4096' },
        gives: `${pages('22*4096', 2)} ${pages('33*4096', 3)} ${pages('33*4096', 4)}`,
      },
    ],
    cursor: 0,
    marks: '1',
    ring: ['33*4096'],
    places: '0',
  },
  {
    name: 'no ring: new pages go nowhere, and take away what the place had',
    pool: { templates: three, ring: 0, places: 1 },
    batches: [
      { columns: { ops: '21 31', numbers: '04' }, gives: `${pages('a1*4096', 0)} ${pages('a1*4096', 1)}` },
      { columns: { ops: '41', pages: '11*4096' }, gives: pages('11*4096', 2) },
    ],
    places: '-',
  },
  {
    name: 'PATCH: from a template, its next slot, and the rest as literal',
    pool: { templates: three, ring: 2, places: 2 },
    batches: [
      {
        // 4 literal, 4000 of slot 1 from byte 96 on, 92 literal
        columns: { ops: '61', lengths: '04 a01f 5c', sources: '05', shifts: '60', pages: '"head" 74*92' },
        gives: pages('"head" a1*4000 74*92', 0),
      },
      // the next of region 0 is slot 2
      { columns: { ops: '21', numbers: '00' }, gives: pages('a2*4096', 1) },
    ],
    cursor: 1,
    marks: '00',
    ring: ['"head" a1*4000 74*92', '00*4096'],
    places: '2,3',
  },
  {
    name: 'PATCH: the displacement of the place, and of the copy before',
    pool: { templates: ['00*2048 a0*2048', 'b0*2048 b1*2048', 'c0*4096'], ring: 2, places: 1 },
    batches: [
      { columns: { ops: '21', numbers: '04' }, gives: pages('b0*2048 b1*2048', 0) },
      {
        // 2040 of the place's page, 16 literal, 2040 more of it: bytes 2056 on
        columns: { ops: '61', lengths: '00 f80f 10 f80f', sources: '00 00', pages: '2a*16' },
        gives: pages('b0*2040 2a*16 b1*2040', 1),
      },
      {
        // 96 of slot 0 from byte 2000 on, 4 literal, then as before: byte 2100 on; e0 was 2
        columns: { ops: '61', lengths: '00 60 04 9c1f', sources: '07 00', shifts: 'd00f', pages: '2b*4' },
        gives: pages('00*48 a0*48 2b*4 a0*1996 b0*2000', 2),
      },
    ],
    cursor: 0,
    marks: '00',
    places: '4',
  },
  {
    name: 'PATCH: a copy from the ring marks the slot of its first byte, over the edge of its page',
    pool: { templates: ['a0*4096'], ring: 3, places: 0 },
    batches: [
      { columns: { ops: '42', pages: '11*4096 22*4096' }, gives: `${pages('11*4096', 0)} ${pages('22*4096', 1)}` },
      {
        // slot 0 + 4095: one byte of the template, 4095 of ring slot 0; then the last byte out of slot 2 (region 1, e1 = 1)
        columns: { ops: '61', lengths: '00 ff1f 00 01', sources: '01 06', shifts: 'ff1f ff1f' },
        gives: pages('a0 11*4094 22', 2),
      },
      // e1 is 3 now
      { columns: { ops: '21', numbers: '01' }, gives: pages('a0 11*4094 22', 3) },
    ],
    cursor: 0,
    marks: '011',
    ring: ['11*4096', '22*4096', 'a0 11*4094 22'],
  },
  {
    name: 'PATCH: all literal, all copy, and the pool as it was before',
    pool: { ring: 1, places: 0 },
    batches: [
      { columns: { ops: '61', lengths: '8020', pages: '11*4096' }, gives: pages('11*4096', 0) },
      { columns: { ops: '61', lengths: '00 8020', sources: '02', shifts: '00' }, gives: pages('11*4096', 1) },
      // ring slot 0 turned by one byte, out of itself
      {
        columns: { ops: '61', lengths: '01 ff1f', sources: '04', shifts: '00', pages: '22' },
        gives: pages('22 11*4095', 2),
      },
    ],
    cursor: 0,
    marks: '0',
    ring: ['22 11*4095'],
  },
  {
    name: 'PACKET: pages without heads, in the order of its offsets',
    pool: { templates: three, ring: 2, places: 8 },
    batches: [
      {
        columns: {
          ops: '80 30 d1 21 41 71 84',
          numbers: '04 07',
          other: '2e*64 "tail"',
          pages: '11*4096',
          headers: packet(
            '00000003',
            '00003000',
            '0000000000003000 ffffffffffffe000 0000000000001000 ffffffffffffe000 00*992',
          ),
        },
        gives: `2e*64 ${packet('00000003', '00003000', '0000000000003000 0000000000001000 0000000000002000 00*1000')}
          a1*4096 11*4096 07*4096 "tail"`,
      },
      // no pages: what follows has heads, and page 3 comes behind page 2
      {
        columns: { ops: 'd1 11', headers: packet('00000000', 'ffffffff', '00*1024') },
        gives: `${packet('00000000', 'ffffffff', '00*1024')} ${zeros(3, 1)}`,
      },
      // 129 pages are none of ours; the name is known
      {
        columns: { ops: 'd1 b1 11', numbers: '00', headers: packet('00000081', '00000000', '00*1024') },
        gives: `${packet('00000081', '00000000', '00*1024')} ${head(0, 2)} 'pc.ram' 00`,
      },
    ],
    cursor: 1,
    // migration 1 is place 3: page 3 is 6, page 1 is 4
    places: '-,-,-,-,3,-,1,-',
  },
  {
    name: 'PACKET: two in a batch lie byte by byte beside each other; PASS, and pages in the next batch',
    pool: { ring: 2, places: 0 },
    batches: [
      {
        columns: {
          ops: 'd1 e1 d1 41 85 e1 41',
          other: '"owing"',
          pages: '11*4096 22*4096',
          // both alike but for their numbers of pages (1 and 4) and data bytes
          headers: `1111 2222 3333 4444 000000000000 0101 0000000000000000 000000000000 8080 000000000000 0104
            0000 0000 1040 0000 00*14 0707 00*8 00*56 "ppcc..rraamm" 00*500 00*2048`,
        },
        gives: `11223344 00000001 00000000 00000080 00000001 00001000 0000000000000007 00000000 00*28 "pc.ram" 00*250 00*1024
          11223344 00000001 00000000 00000080 00000004 00004000 0000000000000007 00000000 00*28 "pc.ram" 00*250 00*1024
          11*4096 "owing" 22*4096`,
      },
      // one is still owed
      { columns: { ops: '71 41', numbers: '09', pages: '33*4096' }, gives: `09*4096 ${pages('33*4096', 1)}` },
    ],
    cursor: 1,
    ring: ['33*4096', '22*4096'],
  },
  {
    name: 'FILL: a number for each page',
    batches: [{ columns: { ops: '72', numbers: '01 ff01' }, gives: `${pages('01*4096', 0)} ${pages('ff*4096', 1)}` }],
  },
  {
    name: 'pages before any RAMBlock has a name are pages of block 0',
    pool: { ring: 2, places: 8 },
    batches: [
      { columns: { ops: '91 41', pages: '11*4096' }, gives: pages('11*4096', 1) },
      {
        // its name comes afterwards: the place stays
        columns: { ops: 'c1 b1 91 31', numbers: '01 00', other: '"x"' },
        gives: `${head(1, 8)} 'x' 11*4096`,
      },
    ],
    places: '-,-,-,-,0,-,-,-',
  },
  {
    name: 'operations without output behind the last byte count for the next batch',
    batches: [
      { columns: { ops: '11 94' }, gives: zeros(0, 1) },
      { columns: { ops: '11 c1 b1', numbers: '01 00', other: '"y"' }, gives: zeros(5, 1) },
      { columns: { ops: 'a1 11 a1', numbers: '04 04' }, gives: `${head(2, 2)} 'y' 00` },
      { columns: { ops: '11' }, gives: zeros(5, 1) },
      {
        columns: {
          ops: 'd1 80 f01f e1',
          other: '2e*4096',
          headers: packet('00000001', '00001000', '0000000000009000 ffffffffffff7000 00*1008'),
        },
        gives: `${packet('00000001', '00001000', '0000000000009000 00*1016')} 2e*4096`,
      },
      // PASS left p alone
      { columns: { ops: 'b2 91 11', numbers: '00' }, gives: zeros(1, 1) },
    ],
  },
  {
    name: 'p is one more behind the last page of a packet',
    pool: { ring: 2, places: 0 },
    batches: [
      {
        columns: {
          ops: 'd1 72 11',
          numbers: '01 02',
          headers: packet('00000002', '00002000', '0000000000009000 ffffffffffff9000 ffffffffffffe000 00*1000'),
        },
        gives: `${packet('00000002', '00002000', '0000000000009000 0000000000002000 00*1008')} 01*4096 02*4096 ${zeros(3, 1)}`,
      },
    ],
  },
  {
    name: 'as many operations as the bytes pay for: 256 and one for each three',
    batches: [{ columns: { ops: '91*258 11' }, gives: zeros(258, 1) }],
  },
  {
    name: 'PATCH of 512 copies',
    pool: { templates: three, ring: 2, places: 0 },
    batches: [
      {
        columns: { ops: '61', lengths: `${'00 01 '.repeat(511)} 00 811c`, sources: '01 00*511', shifts: '00' },
        gives: pages('a0*4096', 0),
      },
    ],
  },
  {
    name: 'named heads wait while a packet owes pages',
    pool: { ring: 1, places: 0 },
    batches: [
      {
        columns: {
          ops: 'c1 b1 d1 41 11',
          numbers: '01 00',
          other: '"x"',
          pages: '11*4096',
          headers: packet('00000001', '00001000', '0000000000005000 ffffffffffffb000 00*1008'),
        },
        // b is the packet's now, p is behind its page
        gives: `${packet('00000001', '00001000', '0000000000005000 00*1016')} 11*4096 ${head(6, 2)} 'pc.ram' 00`,
      },
    ],
  },
]

const FOUR = { cold: ['c0*4096', 'c1*4096', 'c2*4096', 'c3*4096'] }
const T3 = { templates: three, ring: 2, places: 2 }
/** A varint of 2^53 - 17: with the 16 of a long count the highest there is. */
const MOST = 'efffffffffffff0f'
const owing = {
  columns: { ops: 'd1', headers: packet('00000002', '00002000', '00*1024') },
  gives: packet('00000002', '00002000', '00*1024'),
}

/** Columns of which each breaks the grammar in one way. All are BATCH_FORMAT. */
export const badVectors: readonly BadVector[] = [
  {
    name: 'a message where no disks were agreed',
    columns: { ops: '01 03' },
    what: /extended operation 3: the peer speaks a later version/,
  },
  { name: 'extended operation 4', pool: DISKS, columns: { ops: '01 04' }, what: /extended operation 4: the peer/ },
  { name: 'EXPORT of the form 0', pool: DISKS, columns: { ops: '01 02', numbers: '00 00' }, what: /the form 0/ },
  { name: 'EXPORT of the form 6', pool: DISKS, columns: { ops: '01 02', numbers: '06 00' }, what: /the form 6/ },
  {
    name: 'EXPORT of the number 2^31',
    pool: DISKS,
    columns: { ops: '01 02', numbers: '01 8080808008' },
    what: /the number 2147483648/,
  },
  {
    name: 'EXPORT with a count',
    pool: DISKS,
    columns: { ops: '02 02', numbers: '01 00 01 00' },
    what: /EXPORT with the count 2/,
  },
  {
    name: 'EXPORT without a number',
    pool: DISKS,
    columns: { ops: '01 02', numbers: '01' },
    what: /numbers ends early/,
    offset: 1,
  },
  { name: 'MESSAGE before EXPORT', pool: DISKS, columns: { ops: '01 03', numbers: '00' }, what: /before EXPORT/ },
  ...[
    { form: 1, bits: '40' },
    { form: 2, bits: '8001' },
    { form: 3, bits: '40' },
    { form: 4, bits: '40' },
    { form: 5, bits: '8004' },
    { form: 1, bits: '80808080 8008' },
  ].map(({ form, bits }) => ({
    name: `a message of the form ${form} with the words ${bits}`,
    pool: DISKS,
    columns: { ops: '01 02 01 03', numbers: `0${form} 00 ${bits} 00*20` },
    what: /words that it does not have/,
  })),
  {
    name: 'a difference of more than a word',
    pool: DISKS,
    columns: { ops: '01 02 01 03', numbers: '01 00 01 8080808010' },
    what: /a difference of 4294967296/,
  },
  {
    name: 'a message without its numbers',
    pool: DISKS,
    columns: { ops: '01 02 01 03', numbers: '01 00 21 02' },
    what: /numbers ends early/,
  },
  {
    name: 'a message longer than its batch',
    pool: DISKS,
    columns: { ops: '01 02 01 03', numbers: '01 00 00' },
    rawLength: 27,
    what: /more bytes than it says/,
  },
  {
    name: 'data behind the last block that has a number',
    pool: DISKS,
    columns: { ops: '01 02 01 03', numbers: '01 00 39 02 ff3f feff7f 8240' },
    what: /where no block has a number/,
  },
  {
    name: 'data at the end of all offsets',
    pool: DISKS,
    columns: { ops: '01 02 01 03', numbers: '01 00 39 02 01 01 02' },
    what: /where no block has a number/,
  },
  {
    name: 'ZERO of more blocks than are owed',
    pool: DISKS,
    before: owingBlocks,
    columns: { ops: '13' },
    rawLength: 3 * 4096,
    what: /ZERO of more blocks/,
  },
  {
    name: 'PASS of more blocks than are owed',
    pool: DISKS,
    before: owingBlocks,
    columns: { ops: 'e3' },
    what: /PASS of more blocks/,
  },
  ...[
    { name: 'SKIP', ops: '91' },
    { name: 'SEEK', ops: 'a1' },
    { name: 'BLOCK', ops: 'b2' },
    { name: 'PACKET', ops: 'd1' },
    { name: 'EXPORT', ops: '01 02' },
    { name: 'MESSAGE', ops: '01 03' },
  ].map(({ name, ops }) => ({
    name: `${name} while blocks are owed`,
    pool: DISKS,
    before: owingBlocks,
    columns: {
      ops: `41 ${ops}`,
      numbers: '01 00',
      pages: '11*4096',
      headers: packet('00000000', '00000000', '00*1024'),
    },
    what: /cannot stand within a packet or message/,
  })),
  {
    name: 'a message that follows one which brings blocks',
    pool: DISKS,
    columns: { ops: '01 02 02 03', numbers: '01 05 21 02 808001 00' },
    what: /cannot stand within a packet or message/,
  },
  { name: 'operation 0 that ends early', columns: { ops: '01' }, what: /extended operation that does not say which/ },
  {
    name: 'extended operation 2',
    columns: { ops: '01 02' },
    what: /extended operation 2: the peer speaks a later version/,
  },
  { name: 'COLD without a page', pool: FOUR, columns: { ops: '01 00' }, what: /cold ends early/ },
  {
    name: 'COLD of more pages than are named',
    pool: FOUR,
    columns: { ops: '02 00', cold: '00 00' },
    what: /cold ends/,
  },
  {
    name: 'a cold page that is not used',
    pool: FOUR,
    columns: { ops: '41', pages: '00*4096', cold: '00 00' },
    what: /longer than its operations use/,
  },
  { name: 'a cold page of no set', columns: { ops: '01 00', cold: '00 00' }, what: /page 0 of 0/ },
  { name: 'a cold page behind the last', pool: FOUR, columns: { ops: '01 00', cold: '08 00' }, what: /page 4 of 4/ },
  { name: 'a cold page before the first', pool: FOUR, columns: { ops: '01 00', cold: '01 00' }, what: /page -1 of 4/ },
  {
    name: 'a run over the last cold page',
    pool: FOUR,
    columns: { ops: '02 00', cold: '06 01' },
    rawLength: 2 * 4104,
    what: /page 3 of 4/,
  },
  {
    name: 'more cold pages than the batch can hold',
    pool: FOUR,
    columns: { ops: '01 00', cold: '00 00 00 00' },
    what: /more than the 1 pages/,
  },
  { name: 'a cold run without a length', pool: FOUR, columns: { ops: '01 00', cold: '00' }, what: /cold ends early/ },
  {
    name: 'more than 4096 bytes of cold runs',
    pool: FOUR,
    columns: { ops: '01 00', cold: '00*4098' },
    rawLength: 1 << 20,
    what: /column 10 of 4098/,
  },
  { name: 'WORDS without a lag', columns: { ops: 'f1', words: '00*4096' }, what: /numbers ends early/ },
  {
    name: 'WORDS with a lag of a page',
    columns: { ops: 'f1', numbers: '8008', words: '00*4096' },
    what: /WORDS with the lag 1024/,
  },
  {
    name: 'WORDS of a page that is cut',
    columns: { ops: 'f1', numbers: '00', words: '00*4095' },
    what: /words ends early/,
  },
  {
    name: 'WORDS that nothing uses',
    columns: { ops: '41', pages: '00*4096', words: '00*4096' },
    what: /longer than its operations use/,
  },
  { name: 'a count that is cut', columns: { ops: '10' }, what: /ops ends early/ },
  { name: 'a count of 9 bytes', columns: { ops: '10 80*8 01' }, what: /more than 8 bytes/ },
  { name: 'a count of 2^53', columns: { ops: '10 80*7 10' }, what: /shortest form/ },
  { name: 'a count in a longer form', columns: { ops: '10 80 00' }, what: /shortest form/ },
  ...(
    [
      ['ZERO', '10', {}, /more bytes than/],
      ['REF', '20', { numbers: '00' }, /outside its region/],
      ['SAME', '30', {}, /more bytes than|received nothing/],
      ['NEW', '40', {}, /pages ends early/],
      ['DENSE', '50', {}, /dense ends early/],
      ['PATCH', '60', {}, /lengths ends early/],
      ['WORDS', 'f0', { numbers: '00' }, /words ends early/],
      ['FILL', '70', {}, /numbers ends early/],
      ['OTHER', '80', {}, /other ends early/],
      ['SKIP', '90', {}, /page number/],
      ['SEEK', 'a0', {}, /SEEK with the count/],
      ['BLOCK', 'b0', {}, /BLOCK with the count/],
      ['DEFINE', 'c0', {}, /DEFINE with the count/],
      ['PACKET', 'd0', {}, /PACKET with the count/],
      ['PASS', 'e0', {}, /more pages than the packet owes/],
    ] as const
  ).map(([name, op, columns, what]) => ({
    name: `${name}, as often as it can be said`,
    pool: T3,
    columns: { ops: `${op} ${MOST}`, ...columns },
    what,
  })),
  { name: 'ZERO gives more than the batch', columns: { ops: '12' }, rawLength: 17, what: /more bytes than/ },
  {
    name: 'a named ZERO gives more than the batch',
    columns: { ops: 'c1 b1 11', numbers: '02 00', other: '"ab"' },
    rawLength: 11,
    what: /more bytes than/,
  },
  {
    name: 'a page gives more than the batch',
    pool: T3,
    columns: { ops: '21', numbers: '00' },
    rawLength: 4103,
    what: /more bytes than/,
  },
  {
    name: 'a named page gives more than the batch',
    pool: T3,
    columns: { ops: 'c1 b1 21', numbers: '01 00 00', other: '"a"' },
    rawLength: 4105,
    what: /more bytes than/,
  },
  {
    name: 'OTHER gives more than the batch',
    columns: { ops: '82', other: '"ab"' },
    rawLength: 1,
    what: /more bytes than/,
  },
  {
    name: 'PACKET gives more than the batch',
    columns: { ops: 'd1', headers: '00*1344' },
    rawLength: 1343,
    what: /more bytes than/,
  },
  { name: 'operations give less than the batch', columns: { ops: '11' }, rawLength: 10, what: /1 bytes less/ },
  { name: 'no operations', columns: {}, rawLength: 1, what: /1 bytes less/ },
  {
    name: 'numbers behind the last operation',
    columns: { ops: '11', numbers: '00' },
    rawLength: 9,
    what: /longer than/,
  },
  { name: 'other behind the last operation', columns: { ops: '11', other: '00' }, rawLength: 9, what: /longer than/ },
  { name: 'pages behind the last operation', columns: { ops: '11', pages: '00' }, rawLength: 9, what: /longer than/ },
  {
    name: 'dense behind the last operation',
    columns: { ops: '10 b801', dense: '00*4096' },
    rawLength: 1800,
    what: /longer than/,
  },
  {
    name: 'lengths behind the last operation',
    columns: { ops: '11', lengths: '00' },
    rawLength: 9,
    what: /longer than/,
  },
  {
    name: 'sources behind the last operation',
    columns: { ops: '11', sources: '00' },
    rawLength: 9,
    what: /longer than/,
  },
  { name: 'shifts behind the last operation', columns: { ops: '11', shifts: '00' }, rawLength: 9, what: /longer than/ },
  {
    name: 'headers behind the last operation',
    columns: { ops: '10 04', headers: '00*1344' },
    rawLength: 180,
    what: /longer than/,
  },
  {
    name: 'headers that end within one',
    columns: { ops: '10 04', headers: '00*1343' },
    rawLength: 180,
    what: /within a header/,
  },
  { name: 'PACKET without its header', columns: { ops: 'd1' }, rawLength: 1344, what: /headers ends early/ },
  { name: 'REF before slot 0', pool: T3, columns: { ops: '21', numbers: '02' }, what: /slot -1/ },
  { name: 'REF of a template behind the last', pool: T3, columns: { ops: '21', numbers: '0c' }, what: /slot 3/ },
  {
    name: 'REF that runs from the templates into the ring',
    pool: T3,
    columns: { ops: '24', numbers: '00' },
    rawLength: 16416,
    what: /slot 0, outside/,
  },
  {
    name: 'REF of the ring before its first',
    pool: T3,
    columns: { ops: '21', numbers: '03' },
    what: /slot 2, outside/,
  },
  { name: 'REF of the ring behind its last', pool: T3, columns: { ops: '21', numbers: '09' }, what: /slot 5/ },
  { name: 'REF where there are no templates', columns: { ops: '21', numbers: '00' }, what: /slot 0/ },
  { name: 'REF of slot 2^51', pool: T3, columns: { ops: '21', numbers: 'fcffffffffffff0f' }, what: /slot \d{16}/ },
  { name: 'SAME at a place that received nothing', pool: T3, columns: { ops: '31' }, what: /received nothing/ },
  { name: 'SAME without places', columns: { ops: '31' }, what: /received nothing/ },
  {
    name: 'SAME behind a page that no ring took',
    pool: { places: 1 },
    columns: { ops: '41 31', pages: '11*4096' },
    rawLength: 8208,
    what: /received nothing/,
  },
  { name: 'NEW with a part of a page', columns: { ops: '41', pages: '00*4095' }, what: /pages ends early/ },
  { name: 'DENSE out of the other column', columns: { ops: '51', pages: '00*4096' }, what: /dense ends early/ },
  { name: 'FILL with 256', columns: { ops: '71', numbers: '8002' }, what: /FILL with 256/ },
  { name: 'OTHER beyond its column', columns: { ops: '83', other: '"ab"' }, what: /other ends early/ },
  { name: 'SKIP beyond 2^40', columns: { ops: '90 f1ffffffff1f 11' }, what: /page number 1099511627777/ },
  {
    name: 'a page numbered 2^40',
    columns: { ops: '90 f0ffffffff1f 11' },
    rawLength: 9,
    what: /page number 1099511627777/,
  },
  { name: 'SEEK before page 0', columns: { ops: 'a1', numbers: '01' }, what: /page number -1/ },
  { name: 'SEEK twice', columns: { ops: 'a2', numbers: '02 02' }, what: /SEEK with the count 2/ },
  { name: 'BLOCK that has no name', columns: { ops: 'b1', numbers: '00' }, what: /BLOCK 0 of 0/ },
  {
    name: 'BLOCK behind the last name',
    columns: { ops: 'c1 b2', numbers: '01 01', other: '"a"' },
    what: /BLOCK 1 of 1/,
  },
  {
    name: 'BLOCK of a third kind',
    columns: { ops: 'c1 b3', numbers: '01 00', other: '"a"' },
    what: /BLOCK with the count 3/,
  },
  { name: 'DEFINE of no bytes', columns: { ops: 'c1', numbers: '00' }, what: /DEFINE of 0/ },
  { name: 'DEFINE of 256 bytes', columns: { ops: 'c1', numbers: '8002', other: '61*256' }, what: /DEFINE of 256/ },
  { name: 'DEFINE beyond its column', columns: { ops: 'c1', numbers: '03', other: '"ab"' }, what: /DEFINE of 3/ },
  { name: 'DEFINE twice', columns: { ops: 'c2', numbers: '01 01', other: '"ab"' }, what: /DEFINE with the count 2/ },
  {
    // a name of one byte counts 33: 992 of them are 32736
    name: 'DEFINE of a 993rd name',
    columns: { ops: 'c1*993', numbers: '01*993', other: '61*993' },
    what: /more names of RAMBlocks/,
  },
  {
    name: 'PACKET that names one RAMBlock too many',
    before: {
      columns: { ops: 'c1*992 80 e02e', numbers: '01*992', other: '62*992 2d*6000' },
      gives: '2d*6000',
    },
    columns: { ops: 'd1', headers: packet('00000001', '00001000', '00*1024') },
    rawLength: 1344,
    what: /more names of RAMBlocks/,
  },
  {
    name: 'more operations than the bytes pay for',
    columns: { ops: '91*257 11' },
    rawLength: 5,
    what: /more than 257 operations for 5 bytes/,
  },
  {
    name: 'operations without output as often as a column can hold them',
    columns: { ops: '91*1026' },
    rawLength: 1,
    what: /more than 256 operations for 1 bytes/,
  },
  {
    name: 'PATCH of 513 copies',
    pool: T3,
    columns: { ops: '61', lengths: `${'00 01 '.repeat(512)} 00 801c`, sources: '01 00*512', shifts: '00' },
    what: /more than 512 copies/,
  },
  { name: 'PASS without a packet', columns: { ops: 'e1' }, what: /more pages than the packet owes/ },
  { name: 'PASS of one too many', before: owing, columns: { ops: 'e3' }, what: /more pages than the packet owes/ },
  {
    name: 'PACKET twice',
    columns: { ops: 'd2', headers: '00*2688' },
    rawLength: 2688,
    what: /PACKET with the count 2/,
  },
  {
    name: 'PACKET while one owes pages',
    before: owing,
    columns: { ops: 'd1', headers: '00*1344' },
    rawLength: 1344,
    what: /within a packet/,
  },
  {
    name: 'ZERO while a packet owes pages',
    before: owing,
    columns: { ops: '11' },
    rawLength: 9,
    what: /within a packet/,
  },
  { name: 'SKIP while a packet owes pages', before: owing, columns: { ops: 'e1 91' }, what: /within a packet/ },
  {
    name: 'SEEK while a packet owes pages',
    before: owing,
    columns: { ops: 'a1', numbers: '02' },
    what: /within a packet/,
  },
  {
    name: 'BLOCK while a packet owes pages',
    before: owing,
    columns: { ops: 'b1', numbers: '00' },
    what: /within a packet/,
  },
  {
    name: 'a packet owes two pages: the third has a head',
    before: owing,
    columns: { ops: '73', numbers: '01 02 03' },
    rawLength: 12288,
    what: /more bytes than/,
  },
  {
    name: 'PATCH with a literal beyond its page',
    columns: { ops: '61', lengths: '8120', pages: '00*4097' },
    what: /literal beyond/,
  },
  {
    name: 'PATCH with a literal beyond its column',
    columns: { ops: '61', lengths: '8020', pages: '00*4095' },
    what: /literal beyond/,
  },
  {
    name: 'PATCH with a second literal beyond its page',
    pool: T3,
    columns: { ops: '61', lengths: '01 01 ff1f', sources: '01', shifts: '00', pages: '00*4096' },
    what: /literal beyond/,
  },
  {
    name: 'PATCH with a copy of nothing',
    pool: T3,
    columns: { ops: '61', lengths: '01 00', sources: '01', shifts: '00', pages: '00' },
    what: /copy of 0 bytes at 1/,
  },
  {
    name: 'PATCH with a copy beyond its page',
    pool: T3,
    columns: { ops: '61', lengths: '01 8020', sources: '01', shifts: '00', pages: '00' },
    what: /copy of 4096 bytes at 1/,
  },
  {
    name: 'PATCH from a place that received nothing',
    pool: T3,
    columns: { ops: '61', lengths: '00 8020', sources: '00' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH from its place where there are no places',
    pool: { templates: three },
    columns: { ops: '61', lengths: '00 8020', sources: '00' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH from a slot before the pool',
    pool: T3,
    columns: { ops: '61', lengths: '00 8020', sources: '03', shifts: '00' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH from a slot behind the pool',
    pool: T3,
    columns: { ops: '61', lengths: '00 8020', sources: '15', shifts: '00' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH that runs out of the pool',
    pool: T3,
    columns: { ops: '61', lengths: '00 8020', sources: '06', shifts: '01' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH from an empty pool',
    columns: { ops: '61', lengths: '00 8020', sources: '01', shifts: '00' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH with a shift of a page',
    pool: T3,
    columns: { ops: '61', lengths: '00 8020', sources: '01', shifts: '8020' },
    what: /outside the pool/,
  },
  {
    name: 'PATCH whose displacement leads behind the pool',
    pool: { templates: ['00*4096'] },
    columns: { ops: '61', lengths: '00 10 00 f01f', sources: '01 00', shifts: '01' },
    what: /outside the pool/,
  },
  { name: 'PATCH without sources', pool: T3, columns: { ops: '61', lengths: '00 8020' }, what: /sources ends early/ },
  {
    name: 'PATCH without shifts',
    pool: T3,
    columns: { ops: '61', lengths: '00 8020', sources: '01' },
    what: /shifts ends early/,
  },
  { name: 'a varint that is cut', columns: { ops: 'a1', numbers: '80' }, what: /numbers ends early/ },
  { name: 'a varint in a longer form', columns: { ops: 'a1', numbers: '8000' }, what: /shortest form/ },
  { name: 'a varint of 2^53', columns: { ops: 'a1', numbers: '80*7 10' }, what: /shortest form/, offset: 0 },
  { name: 'a varint of 9 bytes', columns: { ops: 'a1', numbers: '80*8 01' }, what: /more than 8 bytes/ },
]

/** Whole batches that are wrong before their first operation; `sum` is of no bytes. */
export const badHeads: readonly {
  readonly name: string
  readonly batch: string
  readonly what: RegExp
  readonly offset?: number
}[] = [
  { name: 'nothing', batch: '', what: /unknown batch format none/, offset: 0 },
  { name: 'another format', batch: '02 01 sum 00', what: /unknown batch format 2/, offset: 0 },
  { name: 'a raw length that is cut', batch: '01 80', what: /head ends early/ },
  { name: 'no bytes', batch: '01 00 sum 00', what: /a batch of 0 bytes/, offset: 1 },
  { name: '2^20 + 1 bytes', batch: '01 818040 sum 00', what: /a batch of 1048577 bytes/, offset: 1 },
  { name: '2^53 - 1 bytes', batch: '01 ff*7 0f sum 00', what: /a batch of 9007199254740991 bytes/, offset: 1 },
  { name: '2^53 bytes', batch: '01 80*7 10 sum 00', what: /shortest form/ },
  { name: 'a checksum that is cut', batch: '01 01 00*7', what: /head ends early/, offset: 2 },
  { name: 'no number of columns', batch: '01 01 sum', what: /head ends early/, offset: 2 },
  { name: '12 columns', batch: '01 01 sum 0c', what: /12 columns/, offset: 10 },
  { name: '255 columns', batch: '01 01 sum ff', what: /255 columns/, offset: 10 },
  { name: 'a table that is cut', batch: '01 01 sum 01 00 00', what: /table ends early/, offset: 11 },
  { name: 'column 11', batch: '01 01 sum 01 0b 00 01 00', what: /column 11 after -1/, offset: 11 },
  { name: 'a column twice', batch: '01 01 sum 02 02 00 01 02 00 01 41 41', what: /column 2 after 2/, offset: 14 },
  { name: 'columns out of order', batch: '01 01 sum 02 02 00 01 00 00 01 41 81', what: /column 0 after 2/, offset: 14 },
  { name: 'method 4', batch: '01 01 sum 01 00 04 01 01 11', what: /unknown method 4/, offset: 12 },
  {
    name: 'a column longer than its batch pays for',
    batch: '01 01 sum 01 00 00 83 08',
    what: /column 0 of 1027 bytes/,
    offset: 13,
  },
  {
    name: 'a column packed to far more than it is',
    batch: '01 01 sum 01 02 01 05 46 00*70',
    what: /column 2 of 70 packed bytes/,
    offset: 13,
  },
  { name: 'lane 1', batch: '01 01 sum 01 00 10 01 81', what: /lane 1 of a column/, offset: 12 },
  { name: 'lane 15, LZ4', batch: '01 01 sum 01 00 f1 01 01 11', what: /lane 15 of a column/, offset: 12 },
  { name: 'a column of no bytes', batch: '01 01 sum 01 00 00 00', what: /column 0 of 0 bytes/, offset: 13 },
  { name: 'an LZ4 column of no bytes', batch: '01 01 sum 01 00 01 00 00', what: /column 0 of 0 bytes/, offset: 13 },
  {
    name: 'a column longer than a batch can need',
    batch: '01 808040 sum 01 00 01 81 80 40 01 00',
    what: /column 0 of 1048577 bytes/,
    offset: 15,
  },
  {
    name: 'a column of 4 GiB',
    batch: '01 01 sum 01 03 01 80 80 80 80 10 01 00',
    what: /column 3 of 4294967296 bytes/,
    offset: 13,
  },
  {
    name: 'a column of 2^53 - 1 bytes',
    batch: '01 01 sum 01 03 03 ff*7 0f 01 00',
    what: /column 3 of 9007199254740991 bytes/,
    offset: 13,
  },
  {
    name: '4 GiB packed',
    batch: '01 01 sum 01 03 01 01 80 80 80 80 10 00',
    what: /4294967296 packed bytes/,
    offset: 13,
  },
  {
    name: '2^53 - 1 bytes packed',
    batch: '01 01 sum 01 03 02 01 ff*7 0f 00',
    what: /9007199254740991 packed bytes/,
    offset: 13,
  },
  {
    name: 'a stored column that is cut',
    batch: '01 05 sum 02 00 00 01 02 00 05 85 "four"',
    what: /column 2 ends early/,
    offset: 18,
  },
  {
    name: 'a packed column that is cut',
    batch: '01 05 sum 02 00 00 01 02 01 05 06 85 "five-"',
    what: /column 2 ends early/,
    offset: 19,
  },
  {
    name: 'bytes behind the last column',
    batch: '01 01 sum 02 00 00 01 02 00 01 81 41 00',
    what: /behind the last column/,
    offset: 19,
  },
]

/** Columns that do not unpack: method and bytes of `other`, which promises `raw` bytes. All are BATCH_FORMAT. */
export const badColumns: readonly {
  readonly name: string
  readonly method: number
  readonly raw: number
  readonly packed: string
  readonly what: RegExp
}[] = [
  { name: 'LZ4 of no bytes', method: 1, raw: 5, packed: '', what: /LZ4/ },
  { name: 'LZ4 garbage', method: 1, raw: 64, packed: 'ff*40', what: /LZ4/ },
  { name: 'LZ4 that gives too little', method: 1, raw: 6, packed: '50 "abcde"', what: /LZ4/ },
  { name: 'LZ4 that gives too much', method: 1, raw: 4, packed: '50 "abcde"', what: /LZ4/ },
  { name: 'LZ4 with literals beyond its end', method: 1, raw: 8, packed: '80 "abcde"', what: /LZ4/ },
  { name: 'LZ4 with a match before its start', method: 1, raw: 64, packed: '1f 41 0200 27 50 41*5', what: /LZ4/ },
  { name: 'LZ4 with a match at distance 0', method: 1, raw: 48, packed: '1f 41 0000 17 50 41*5', what: /LZ4|expand/ },
  {
    name: 'LZ4 with a length of a thousand bytes',
    method: 1,
    raw: 1048576,
    packed: '1f 41 0100 ff*1000 00 50 41*5',
    what: /LZ4/,
  },
  { name: 'zstd that never began', method: 2, raw: 3, packed: '180000 "abc"', what: /never began/ },
  { name: 'zstd of no bytes', method: 3, raw: 3, packed: '', what: /zstd/ },
  { name: 'zstd garbage', method: 3, raw: 3, packed: 'ff*40', what: /zstd piece is damaged/ },
  {
    name: 'zstd that gives too little',
    method: 3,
    raw: 4,
    packed: '28b52ffd 00 40 180000 "abc"',
    what: /3 bytes instead of 4/,
  },
  {
    name: 'zstd that gives too much',
    method: 3,
    raw: 2,
    packed: '28b52ffd 00 40 180000 "abc"',
    what: /more than 2 bytes/,
  },
  { name: 'zstd that is not flushed', method: 3, raw: 3, packed: '28b52ffd 00 40 180000 "ab"', what: /instead of 3/ },
  {
    name: 'zstd that gives 16 MiB out of 600 bytes',
    method: 3,
    raw: 1048576,
    packed: `28b52ffd 00 40 ${'02001041 '.repeat(128)}`,
    what: /more than 1048576 bytes/,
  },
  {
    name: 'zstd with a window of 512 KiB where there are no pages',
    method: 3,
    raw: 3,
    packed: '28b52ffd 00 48 180000 "abc"',
    what: /zstd piece is damaged/,
  },
  {
    name: 'zstd with a window of 16 MiB',
    method: 3,
    raw: 3,
    packed: '28b52ffd 00 70 180000 "abc"',
    what: /zstd piece is damaged/,
  },
  {
    name: 'zstd with a window of 2^41',
    method: 3,
    raw: 3,
    packed: '28b52ffd 00 f8 180000 "abc"',
    what: /zstd piece is damaged/,
  },
  {
    name: 'zstd with a dictionary',
    method: 3,
    raw: 3,
    packed: '28b52ffd 01 58 07 180000 "abc"',
    what: /zstd piece is damaged/,
  },
  {
    name: 'zstd of 2^56 bytes, by its own word',
    method: 3,
    raw: 3,
    packed: '28b52ffd e0 00*7 01 180000 "abc"',
    what: /zstd/,
  },
  { name: 'zstd that ends and goes on', method: 3, raw: 6, packed: '28b52ffd 00 40 190000 "abc" ff*9', what: /zstd/ },
  {
    name: 'zstd with a block of the reserved type',
    method: 3,
    raw: 3,
    packed: '28b52ffd 00 40 1e0000 "abc"',
    what: /zstd piece is damaged/,
  },
]
