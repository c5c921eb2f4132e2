/** What the encoder makes of bytes, push by push: the columns of each batch, by hand. Empty where there is no batch. */
import type { Columns, VectorPool } from './batches.ts'

export interface EncodeVector {
  readonly name: string
  readonly kind: 'main' | 'multifd' | 'preempt'
  readonly pool?: VectorPool
  /** raw: nobody looks what it is. */
  readonly pushes: readonly {
    readonly input: string
    readonly release?: boolean
    readonly raw?: boolean
    readonly columns: Columns
  }[]
}

const start = `"QEVM" 00000003 01 00000002 'ram' 00000000 00000004 0000000000300004 'pc.ram' 0000000000200000
  'v' 0000000000100000 0000000000000010 7e 00000002`
/** Bytes of `start`: they come as OTHER. */
const length = 8 + 5 + 4 + 8 + 8 + 15 + 10 + 8 + 5
const other = `${(length - 16).toString(16)}`

export const encodeVectors: readonly EncodeVector[] = [
  {
    name: 'zero pages: a named one, a run, a gap, a step back',
    kind: 'main',
    pushes: [
      {
        input: `${start} 02 00000002 0000000000000002 'pc.ram' 00 0000000000001022 00 0000000000002022 00
          0000000000007022 00 0000000000001022 00`,
        columns: {
          ops: `80 ${(length + 5 - 16).toString(16)} c1 b1 13 94 11 a1 11`,
          numbers: '06 00 0d',
          other: `${start} 02 00000002 "pc.ram"`,
        },
      },
      { input: '0000000000002022 00', columns: { ops: '11' } },
    ],
  },
  {
    name: 'SKIP up to 255 pages, SEEK from there on',
    kind: 'preempt',
    pushes: [
      {
        input: "0000000000000002 'a' 00 0000000000100022 00 0000000000201022 00 0000000000201022 00",
        // from 1 to 256, from 257 to 513, from 514 back to 513
        columns: { ops: 'c1 b1 11 90 ef01 11 a1 11 a1 11', numbers: '01 00 8004 01', other: '"a"' },
      },
    ],
  },
  {
    name: 'an incomplete record waits; released, its rest is OTHER, too',
    kind: 'main',
    pushes: [
      { input: start, columns: { ops: `80 ${other}`, other: start } },
      {
        input: "02 00000002 0000000000000002 'pc.ram' 00 000000000000",
        columns: { ops: '85 c1 b1 11', numbers: '06 00', other: '02 00000002 "pc.ram"' },
      },
      { input: '10', columns: {} },
      { input: '22', release: true, columns: { ops: '88', other: '0000000000001022' } },
      { input: '00 0000000000002022 00', columns: { ops: '81 91 11', other: '00' } },
    ],
  },
  {
    name: 'pages: a template, one of a single byte, a new one, the same again, the same elsewhere',
    kind: 'main',
    pool: { templates: ['00*2048 a0*2048', '00*2048 b0*2048'], ring: 2, places: 16 },
    pushes: [
      {
        input: `${start} 02 00000002 0000000000000008 'v' 00*2048 b0*2048 0000000000001028 ee*4096
          0000000000002028 11*4095 12 0000000000002028 11*4095 12 0000000000009028 11*4095 12`,
        columns: {
          ops: `80 ${(length + 5 - 16).toString(16)} c1 b1 21 71 41 a1 31 96 21`,
          numbers: '01 00 04 ee01 01 01',
          other: `${start} 02 00000002 "v"`,
          pages: '11*4095 12',
        },
      },
    ],
  },
  {
    name: 'pages of a set on the disk: a run, one that a template is too, one again, one step back',
    kind: 'preempt',
    pool: {
      templates: ['00*2048 a0*2048'],
      cold: ['00*2048 c0*2048', '00*2048 a0*2048', '00*2048 c2*2048', '00*2048 c3*2048'],
      ring: 8,
      places: 16,
    },
    pushes: [
      {
        input: `0000000000000008 'a' 00*2048 c2*2048 0000000000001028 00*2048 c3*2048 0000000000002028 00*2048 a0*2048
          0000000000003028 00*2048 c2*2048 0000000000003028 00*2048 c2*2048 0000000000004028 00*2048 c0*2048`,
        columns: {
          // REF of the template: v = 0, in region 0; REF of the ring: the first page, v = 1
          ops: 'c1 b1 02 00 21 21 a1 31 01 00',
          numbers: '01 00 00 01 01',
          other: '"a"',
          cold: '04 01 07 00',
        },
      },
    ],
  },
  {
    name: 'RAMBlocks by turns: named again, defined once',
    kind: 'main',
    pushes: [
      {
        input: `${start} 02 00000002 0000000000003002 'v' 00 0000000000000002 'pc.ram' 00 0000000000003002 'v' 00`,
        columns: {
          ops: `80 ${(length + 5 - 16).toString(16)} c1 b1 93 11 c1 b1 11 b1 93 11`,
          numbers: '01 00 06 01 00',
          other: `${start} 02 00000002 "vpc.ram"`,
        },
      },
    ],
  },
  {
    name: 'a multifd packet: header, page; released in the middle of a page, that page is passed',
    kind: 'multifd',
    pool: { ring: 2, places: 16 },
    pushes: [
      {
        input: `11223344 00000001 00*16 00 00*39 11223344 00000001 00000000 00000080 00000003 00003000 0000000000000007
          00000000 00*28 "pc.ram" 00*250 0000000000003000 0000000000001000 0000000000002000 00*1000 11*4095 12 ab*1000`,
        release: true,
        columns: {
          ops: '80 30 d1 41 80 d807',
          other: '11223344 00000001 00*16 00 00*39 ab*1000',
          pages: '11*4095 12',
          headers: `11223344 00000001 00000000 00000080 00000003 00003000 0000000000000007 00000000 00*28 "pc.ram" 00*250
            0000000000003000 ffffffffffffe000 0000000000001000 ffffffffffffe000 00*992`,
        },
      },
      // the packet's second page is passed, its third is a page
      { input: 'ab*3096 11*4095 12', columns: { ops: '80 8818 e1 21', numbers: '01', other: 'ab*3096' } },
    ],
  },
  {
    name: 'raw batches: no page of theirs is known behind them, and what a place had it still has',
    kind: 'preempt',
    pool: { ring: 2, places: 16 },
    pushes: [
      {
        input: "0000000000001008 'a' 11*4095 12",
        raw: true,
        columns: { ops: '80 fa1f', other: "0000000000001008 'a' 11*4095 12" },
      },
      { input: '0000000000002028 11*4095 12', columns: { ops: '92 41', pages: '11*4095 12' } },
      { input: '0000000000002028 33*4096', raw: true, columns: { ops: '80 f81f', other: '0000000000002028 33*4096' } },
      // not what the guest has there now: what its place received in a batch that was looked at
      { input: '0000000000002028 11*4095 12', columns: { ops: 'a1 31', numbers: '01' } },
      { input: '0000000000004022 00', raw: true, columns: { ops: '89', other: '0000000000004022 00' } },
    ],
  },
  {
    name: 'a raw batch of multifd: packets are said, and their pages passed',
    kind: 'multifd',
    pool: { ring: 2, places: 16 },
    pushes: [
      {
        input: `11223344 00000001 00*16 00 00*39 11223344 00000001 00000000 00000080 00000003 00003000 0000000000000007
          00000000 00*28 "pc.ram" 00*250 0000000000003000 0000000000001000 0000000000002000 00*1000 11*4095 12`,
        columns: {
          ops: '80 30 d1 41',
          other: '11223344 00000001 00*16 00 00*39',
          pages: '11*4095 12',
          headers: `11223344 00000001 00000000 00000080 00000003 00003000 0000000000000007 00000000 00*28 "pc.ram" 00*250
            0000000000003000 ffffffffffffe000 0000000000001000 ffffffffffffe000 00*992`,
        },
      },
      { input: 'cd*4096', raw: true, columns: { ops: 'e1 80 f01f', other: 'cd*4096' } },
      { input: '11*4095 12', columns: { ops: '21', numbers: '01' } },
      {
        input: `11223344 00000001 00000000 00000080 00000001 00001000 0000000000000008 00000000 00*28 "pc.ram" 00*250
          0000000000005000 00*1016 cd*4096`,
        raw: true,
        columns: {
          ops: 'd1 e1 80 f01f',
          other: 'cd*4096',
          headers: `11223344 00000001 00000000 00000080 00000001 00001000 0000000000000008 00000000 00*28 "pc.ram" 00*250
            0000000000005000 ffffffffffffb000 00*1008`,
        },
      },
    ],
  },
]
