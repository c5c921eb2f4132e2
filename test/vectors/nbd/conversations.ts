/**
 * Conversations of an NBD client and server, one step a line: `C` or `S`, then bytes in the notation of the QEMU vectors.
 * Marks count positions of their direction. Traces as test/nbd-wire/harness.ts writes them.
 */
import { wireBytes } from '../qemu/notation.ts'

export interface NbdVector {
  readonly name: string
  /** Why it exists, or where the bytes are from. */
  readonly why: string
  readonly steps: readonly string[]
  /** One line an event, with @marks. */
  readonly trace: readonly string[]
}

/** The steps of a vector, and the marks of both directions. */
export function conversation(steps: readonly string[]) {
  const marksOf = (letter: string) => {
    const words = steps.filter(step => step[0] === letter).map(step => step.slice(1))
    return words.length > 0 ? wireBytes(words.join(' ')).marks : []
  }
  const marks = new Map([...marksOf('C'), ...marksOf('S')])
  return {
    steps: steps.map(step => ({
      from: step[0] === 'C' ? ('client' as const) : ('server' as const),
      bytes: wireBytes(step.slice(1)).bytes,
    })),
    marks,
  }
}

const S_HELLO = 'S "NBDMAGIC" "IHAVEOPT" 0003'
const C_FLAGS = 'C 00000003'
const option = (number: string, length: string, data = '') => `C "IHAVEOPT" 000000${number} ${length} ${data}`
const answer = (number: string, type: string, length: string, data = '') =>
  `S 0003e889045565a9 000000${number} ${type} ${length} ${data}`
const ack = (number: string) => answer(number, '00000001', '00000000')
const INFO_1M = '0000 0000000000100000 0ded'

/** Into transmission, with an export "d" of 1 MiB: by EXPORT_NAME, and simple replies. */
const simple = [S_HELLO, `${C_FLAGS} "IHAVEOPT" 00000001 00000001 "d" @c`, 'S 0000000000100000 0ded @s']
const simpleTrace = ['option 1 4-21', "begins simple 'd' 1048576 0xded 0/0/0"]
const go = [option('07', '00000007', '00000001 "d" 0000 @c'), answer('07', '00000003', '0000000c', INFO_1M)]
/** The same by GO, with chunks. */
const structured = [S_HELLO, C_FLAGS, option('08', '00000000'), ack('08'), ...go, `${ack('07')} @s`]
const structuredTrace = [
  'option 8 4-20',
  'answer 8 0x1 final 18-38',
  'option 7 20-43',
  'answer 7 0x3 38-70',
  'answer 7 0x1 final 70-90',
  "begins structured 'd' 1048576 0xded 0/0/0",
]
/** The same with extended headers. */
const extended = [S_HELLO, C_FLAGS, option('0b', '00000000'), ack('0b'), ...go, `${ack('07')} @s`]
const extendedTrace = [
  'option 11 4-20',
  'answer 11 0x1 final 18-38',
  ...structuredTrace.slice(2, 5),
  "begins extended 'd' 1048576 0xded 0/0/0",
]

/** A conversation that begins well and goes on with these steps. */
const after = (
  begin: readonly string[],
  trace: readonly string[],
  name: string,
  why: string,
  steps: readonly string[],
  rest: readonly string[],
): NbdVector => ({ name, why, steps: [...begin, ...steps], trace: [...trace, ...rest] })
const inSimple = after.bind(undefined, simple, simpleTrace)
const inStructured = after.bind(undefined, structured, structuredTrace)
const inExtended = after.bind(undefined, extended, extendedTrace)

/** One that ends in raw before transmission. */
const handshake = (name: string, why: string, steps: readonly string[], trace: readonly string[]): NbdVector => ({
  name,
  why,
  steps,
  trace,
})

/** Compact requests and replies of cookie 1, 2, ... */
const cookie = (n: number) => `00000000000000${n.toString(16).padStart(2, '0')}`
const request = (type: string, n: number, offset: string, length: string, flags = '0000') =>
  `25609513 ${flags} ${type} ${cookie(n)} ${offset.padStart(16, '0')} ${length}`
const wide = (type: string, n: number, offset: string, length: string, flags = '0000') =>
  `21e41c71 ${flags} ${type} ${cookie(n)} ${offset.padStart(16, '0')} ${length.padStart(16, '0')}`
const reply = (n: number, error = '00000000') => `67446698 ${error} ${cookie(n)}`
const chunk = (n: number, flags: string, type: string, length: string, data = '') =>
  `668e33ef ${flags} ${type} ${cookie(n)} ${length} ${data}`
const wideChunk = (n: number, flags: string, type: string, offset: string, length: string, data = '') =>
  `6e8a278c ${flags} ${type} ${cookie(n)} ${offset.padStart(16, '0')} ${length.padStart(16, '0')} ${data}`

const c = (n: number) => cookie(n)

export const nbdVectors: readonly NbdVector[] = [
  {
    name: 'a mirror of QEMU 7.2, shortened',
    why: 'what it sends, as it was recorded (docs/nbd-wire.md 5); a WRITE of 16 bytes in place of 1 MiB',
    steps: [
      S_HELLO,
      C_FLAGS,
      option('08', '00000000'),
      ack('08'),
      option('0a', '0000001f', '00000004 "disk" 00000001 0000000f "base:allocation"'),
      answer('0a', '00000004', '00000013', '00000000 "base:allocation"'),
      ack('0a'),
      option('07', '0000000c', '00000004 "disk" 0001 0003'),
      answer('07', '00000003', '0000000e', '0003 00000001 00001000 02000000'),
      answer('07', '00000003', '0000000c', '0000 0000000008000000 0ded'),
      ack('07'),
      'C @a 25609513 0000 0006 000055d0c0ffee00 0000000001000000 01000000 @b',
      'C @d 25609513 0000 0001 000055d0c0ffee01 0000000000100000 00000010 @e ab*16 @f',
      'S @r 67446698 00000000 000055d0c0ffee01 @q 67446698 00000000 000055d0c0ffee00 @t',
      'C 25609513 0000 0003 000055d0c0ffee00 0000000000000000 00000000 @g',
      'S 67446698 00000000 000055d0c0ffee00 @u',
      'C 25609513 0000 0002 000055d0c0ffee00 0000000000000000 00000000 @h',
    ],
    trace: [
      'option 8 4-20',
      'answer 8 0x1 final 18-38',
      'option 10 20-67',
      'answer 10 0x4 38-77',
      'answer 10 0x1 final 77-97',
      'option 7 67-95',
      'answer 7 0x3 97-131',
      'answer 7 0x3 131-163',
      'answer 7 0x1 final 163-183',
      "begins structured 'disk' 134217728 0xded 1/4096/33554432 0=base:allocation",
      'request 000055d0c0ffee00 6 flags=0x0 16777216 16777216+0 @a-@b',
      'request 000055d0c0ffee01 1 flags=0x0 1048576 16+16 @d-@e',
      'write 000055d0c0ffee01 @e-@f 1048576',
      'reply 000055d0c0ffee01 0 @r-@q',
      'reply 000055d0c0ffee00 0 @q-@t',
      'request 000055d0c0ffee00 3 flags=0x0 0 0+0 @f-@g',
      'reply 000055d0c0ffee00 0 @t-@u',
      'request 000055d0c0ffee00 2 flags=0x0 0 0+0 @g-@h',
    ],
  },
  inExtended(
    'a mirror of QEMU 10, shortened',
    'extended requests with the flag of the payload, chunks of nothing as answers',
    [
      `C ${wide('0006', 1, '0', '100000', '0002')} @d ${wide('0001', 2, '1000', '4', '0020')} @e 01020304 @f`,
      `S ${wideChunk(1, '0001', '0000', '0', '0')} @t ${wideChunk(2, '0001', '0000', '1000', '0')} @u`,
      `C ${wide('0003', 3, '0', '0')} @g`,
      `S ${wideChunk(3, '0001', '0000', '0', '0')} @v`,
      `C ${wide('0002', 4, '0', '0')} @h`,
    ],
    [
      `request ${c(1)} 6 flags=0x2 0 1048576+0 @c-@d`,
      `request ${c(2)} 1 flags=0x20 4096 4+4 @d-@e`,
      `write ${c(2)} @e-@f 4096`,
      `chunk ${c(1)} 0x0 +0 done @s-@t`,
      `chunk ${c(2)} 0x0 +0 done @t-@u`,
      `request ${c(3)} 3 flags=0x0 0 0+0 @f-@g`,
      `chunk ${c(3)} 0x0 +0 done @u-@v`,
      `request ${c(4)} 2 flags=0x0 0 0+0 @g-@h`,
    ],
  ),
  inSimple(
    'simple replies, out of order: data only behind a READ that went well',
    'how long a reply is, its request alone tells',
    [
      `C ${request('0000', 1, '1000', '00000005')} @a ${request('0001', 2, '2000', '00000003')} @b 010203 @d
        ${request('0000', 3, '3000', '00000007')} @e`,
      `S ${reply(2)} @p ${reply(3, '00000005')} @q ${reply(1)} @r 67446698ff @t`,
      `C ${request('0000', 2, '0', '00000000')} @f`,
      `S ${reply(2)} @u`,
    ],
    [
      `request ${c(1)} 0 flags=0x0 4096 5+0 @c-@a`,
      `request ${c(2)} 1 flags=0x0 8192 3+3 @a-@b`,
      `write ${c(2)} @b-@d 8192`,
      `request ${c(3)} 0 flags=0x0 12288 7+0 @d-@e`,
      `reply ${c(2)} 0 @s-@p`,
      `reply ${c(3)} 5 @p-@q`,
      `reply ${c(1)} 0 @q-@r`,
      `read ${c(1)} @r-@t 4096`,
      `request ${c(2)} 0 flags=0x0 0 0+0 @e-@f`,
      `reply ${c(2)} 0 @t-@u`,
    ],
  ),
  inSimple(
    'every command without a payload',
    'FLUSH, TRIM with FUA, CACHE, WRITE_ZEROES, RESIZE of the extension; a WRITE of nothing',
    [
      `C ${request('0003', 1, '0', '00000000')} @a ${request('0004', 2, '1000', '00001000', '0001')} @b
        ${request('0005', 3, '0', '00000200')} @d ${request('0006', 4, '0', 'ffffffff', '0012')} @e
        ${request('0008', 5, '200000', '00000000')} @f ${request('0001', 6, '0', '00000000')} @g`,
      `S ${reply(1)} ${reply(2)} @p ${reply(3, '00000016')} @q ${reply(4, '0000005f')} @r ${reply(5)} ${reply(6)}`,
    ],
    [
      `request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`,
      `request ${c(2)} 4 flags=0x1 4096 4096+0 @a-@b`,
      `request ${c(3)} 5 flags=0x0 0 512+0 @b-@d`,
      `request ${c(4)} 6 flags=0x12 0 4294967295+0 @d-@e`,
      `request ${c(5)} 8 flags=0x0 2097152 0+0 @e-@f`,
      `request ${c(6)} 1 flags=0x0 0 0+0 @f-@g`,
      `reply ${c(1)} 0 28-44`,
      `reply ${c(2)} 0 44-60`,
      `reply ${c(3)} 22 60-76`,
      `reply ${c(4)} 95 76-92`,
      `reply ${c(5)} 0 92-108`,
      `reply ${c(6)} 0 108-124`,
    ],
  ),
  {
    name: 'EXPORT_NAME of a client that does not know NO_ZEROES',
    why: '124 zeroes behind size and flags; the name is latin1 of whatever bytes',
    steps: [
      S_HELLO,
      'C 00000001',
      option('01', '00000003', 'c3a9 2f'),
      'S 0000000000000200 0001 00*124',
      `C ${request('0002', 1, '0', '00000000')} @h`,
    ],
    trace: ['option 1 4-23', "begins simple 'Ã©/' 512 0x1 0/0/0", `request ${c(1)} 2 flags=0x0 0 0+0 23-@h`],
  },
  {
    name: 'newstyle that is not fixed',
    why: 'nbd-server before 2.9.22: EXPORT_NAME is the only option; the default export',
    steps: ['S "NBDMAGIC" "IHAVEOPT" 0000', 'C 00000000', option('01', '00000000'), 'S 0000000000000200 0003 00*124'],
    trace: ['option 1 4-20', "begins simple '' 512 0x3 0/0/0"],
  },
  handshake(
    'options that lead nowhere, and errors',
    'LIST with two exports, INFO, LIST_META_CONTEXT, an unknown option, and GO that is refused; then ABORT',
    [
      S_HELLO,
      C_FLAGS,
      option('03', '00000000'),
      `${answer('03', '00000002', '00000005', '00000001 "a"')} ${answer('03', '00000002', '00000008', '00000001 "b" "old"').slice(1)}`,
      ack('03'),
      option('06', '0000000b', '00000001 "a" 0002 0001 0003'),
      `${answer('06', '00000003', '00000003', '0001 "a"')} ${answer('06', '00000003', '0000000c', INFO_1M).slice(1)}`,
      answer('06', '00000003', '00000005', '0009 010203'),
      ack('06'),
      option('09', '00000009', '00000001 "a" 00000000'),
      answer('09', '00000004', '0000000a', '00000000 "base:x"'),
      ack('09'),
      option('63', '00000003', '616263'),
      answer('63', '80000001', '00000005', '"sorry"'),
      option('07', '00000006', '00000000 0000'),
      answer('07', '00000003', '00000003', '0001 "a"'),
      answer('07', '80000006', '00000000'),
      option('02', '00000000'),
      ack('02'),
    ],
    [
      'option 3 4-20',
      'answer 3 0x2 18-43',
      'answer 3 0x2 43-71',
      'answer 3 0x1 final 71-91',
      'option 6 20-47',
      'answer 6 0x3 91-114',
      'answer 6 0x3 114-146',
      'answer 6 0x3 146-171',
      'answer 6 0x1 final 171-191',
      'option 9 47-72',
      'answer 9 0x4 191-221',
      'answer 9 0x1 final 221-241',
      'option 99 72-91',
      'answer 99 0x80000001 final 241-266',
      'option 7 91-113',
      'answer 7 0x3 266-289',
      'answer 7 0x80000006 final 289-309',
      'option 2 113-129',
      'answer 2 0x1 final 309-329',
    ],
  ),
  handshake(
    'contexts that were chosen are replaced, also by an error',
    'SET_META_CONTEXT counts from its beginning',
    [
      S_HELLO,
      C_FLAGS,
      option('08', '00000000'),
      ack('08'),
      option('0a', '00000010', '00000000 00000001 00000004 "a:bc"'),
      answer('0a', '00000004', '00000008', '00000007 "a:bc"'),
      ack('0a'),
      option('0a', '00000008', '00000000 00000000'),
      answer('0a', '00000004', '00000007', '00000005 "a:d"'),
      answer('0a', '80000009', '00000000'),
      option('0a', '00000008', '00000000 00000000'),
      answer('0a', '00000004', '00000007', '00000006 "a:e"'),
      ack('0a'),
      ...go,
      ack('07'),
    ],
    [
      'option 8 4-20',
      'answer 8 0x1 final 18-38',
      'option 10 20-52',
      'answer 10 0x4 38-66',
      'answer 10 0x1 final 66-86',
      'option 10 52-76',
      'answer 10 0x4 86-113',
      'answer 10 0x80000009 final 113-133',
      'option 10 76-100',
      'answer 10 0x4 133-160',
      'answer 10 0x1 final 160-180',
      'option 7 100-123',
      'answer 7 0x3 180-212',
      'answer 7 0x1 final 212-232',
      "begins structured 'd' 1048576 0xded 0/0/0 6=a:e",
    ],
  ),
  handshake(
    'options that are answered before all of them has come',
    'nbdkit that wants TLS reads heads alone before it refuses (recorded); one that agrees so early has not heard the name',
    [
      S_HELLO,
      `${C_FLAGS} "IHAVEOPT" 00000006 0000000c`,
      answer('06', '80000005', '00000000'),
      'C 00000004 "disk" 0001',
      'C 0003',
      'C "IHAVEOPT" 00000007 00000007 00000001',
      `${answer('07', '00000003', '0000000c', INFO_1M)}`,
      `${ack('07')}`,
      'C "d"',
      'C 0000 25',
    ],
    [
      'answer 6 0x80000005 final 18-38',
      'option 6 4-32',
      'answer 7 0x3 38-70',
      'answer 7 0x1 final 70-90',
      'raw server 90 an export before it was asked for',
      'option 7 32-55',
      'raw client 55 the server is not understood',
    ],
  ),
  handshake(
    'an export before its name has come',
    'the same for EXPORT_NAME',
    [S_HELLO, `${C_FLAGS} "IHAVEOPT" 00000001 00000002 "d"`, 'S 0000000000000200 0001', 'C "d"'],
    ['raw server 18 an export before it was asked for', 'option 1 4-22'],
  ),
  handshake(
    'contexts of an option that failed',
    'they are none, though they were named',
    [
      ...structured.slice(0, 4),
      option('0a', '00000008', '00000000 00000000'),
      answer('0a', '00000004', '00000007', '00000005 "a:d"'),
      answer('0a', '80000009', '00000000'),
      ...go,
      ack('07'),
    ],
    [
      ...structuredTrace.slice(0, 2),
      'option 10 20-44',
      'answer 10 0x4 38-65',
      'answer 10 0x80000009 final 65-85',
      'option 7 44-67',
      'answer 7 0x3 85-117',
      'answer 7 0x1 final 117-137',
      "begins structured 'd' 1048576 0xded 0/0/0",
    ],
  ),
  inStructured(
    'chunks of a READ, between those of another one',
    'data, a hole, an error at an offset with its text, nothing; done with the last one',
    [
      `C ${request('0000', 1, '1000', '00000010')} @a ${request('0000', 2, '0', '00000004')} @b`,
      `S ${chunk(1, '0000', '0001', '0000000c', '0000000000001004')} @p aabbccdd
        @q ${chunk(2, '0001', '0002', '0000000c', '0000000000000000 00000004')} @r
        ${chunk(1, '0000', '0002', '0000000c', '0000000000001000 00000004')} @t
        ${chunk(1, '0000', '8002', '00000010', '00000005 0002')} @u "io" 0000000000001008
        @v ${chunk(1, '0001', '0000', '00000000')} @w`,
      `C ${request('0007', 1, '0', '00001000')} @d`,
      `S ${chunk(1, '0001', '8001', '00000006', '00000016 0000')} @x`,
    ],
    [
      `request ${c(1)} 0 flags=0x0 4096 16+0 @c-@a`,
      `request ${c(2)} 0 flags=0x0 0 4+0 @a-@b`,
      `chunk ${c(1)} 0x1 +4 @s-@p`,
      `read ${c(1)} @p-@q 4100`,
      `chunk ${c(2)} 0x2 +0 done @q-@r`,
      `hole ${c(2)} 0 4`,
      `chunk ${c(1)} 0x2 +0 @r-@t`,
      `hole ${c(1)} 4096 4`,
      `chunk ${c(1)} 0x8002 +10 error 5 @t-@u`,
      `chunk ${c(1)} 0x0 +0 done @v-@w`,
      `request ${c(1)} 7 flags=0x0 0 4096+0 @b-@d`,
      `chunk ${c(1)} 0x8001 +0 error 22 done @w-@x`,
    ],
  ),
  inStructured(
    'status of two contexts, a chunk of an unknown type, an unknown error',
    'their lengths tell where the next one begins; a simple reply may answer what is not READ',
    [
      `C ${request('0007', 1, '0', '00002000', '0008')} @a ${request('0005', 2, '0', '00002000')} @b`,
      `S ${chunk(1, '0000', '0005', '0000000c', '00000001')} @p 00002000 00000003
        @q ${chunk(1, '0001', '0005', '00000014', '00000002')} @r 00001000 00000000 00001000 00000001
        @t ${chunk(2, '0000', '0077', '00000003')} @u 010203 @v ${chunk(2, '0001', '80ff', '00000009', '0000005f 0001')} @w 61ffff`,
      `C ${request('0003', 2, '0', '00000000')} @d`,
      `S @x ${reply(2)} @y`,
    ],
    [
      `request ${c(1)} 7 flags=0x8 0 8192+0 @c-@a`,
      `request ${c(2)} 5 flags=0x0 0 8192+0 @a-@b`,
      `chunk ${c(1)} 0x5 +8 @s-@p`,
      `chunk ${c(1)} 0x5 +16 done @q-@r`,
      `chunk ${c(2)} 0x77 +3 @t-@u`,
      `chunk ${c(2)} 0x80ff +3 error 95 done @v-@w`,
      `request ${c(2)} 3 flags=0x0 0 0+0 @b-@d`,
      `reply ${c(2)} 0 @x-@y`,
    ],
  ),
  inExtended(
    'extended requests with payloads that are not data, and an unknown command',
    'the flag says how long a request is, whatever it is; BLOCK_STATUS with a list of contexts',
    [
      `C ${wide('0007', 1, '1000', 'c', '0020')} @a 0000000000001000 00000000
        @b ${wide('0063', 2, '0', '3', '0020')} @d 010203 @e ${wide('0064', 3, '7', '1fffffffff0000')} @f`,
      `S ${wideChunk(1, '0001', '0006', '1000', '18', '00000000 00000001')} @p 0000000000001000 0000000000000003
        @q ${wideChunk(2, '0001', '8001', '0', '8', '00000016 0002')} @r "no"
        @t ${wideChunk(3, '0001', '8001', '7', '6', '00000016 0000')} @u`,
      `C ${wide('0000', 9, '0', '1000')} @g`,
      `S ${wideChunk(9, '0000', '0001', '0', 'a', '0000000000000ffe')} @v ffff
        @w ${wideChunk(9, '0001', '0002', '0', 'c', '0000000000000000 00000ffe')} @x`,
    ],
    [
      `request ${c(1)} 7 flags=0x20 4096 0+12 @c-@a`,
      `request ${c(2)} 99 flags=0x20 0 0+3 @b-@d`,
      `request ${c(3)} 100 flags=0x0 7 9007199254675456+0 @e-@f`,
      `chunk ${c(1)} 0x6 +16 done @s-@p`,
      `chunk ${c(2)} 0x8001 +2 error 22 done @q-@r`,
      `chunk ${c(3)} 0x8001 +0 error 22 done @t-@u`,
      `request ${c(9)} 0 flags=0x0 0 4096+0 @f-@g`,
      `chunk ${c(9)} 0x1 +2 @u-@v`,
      `read ${c(9)} @v-@w 4094`,
      `chunk ${c(9)} 0x2 +0 done @w-@x`,
      `hole ${c(9)} 0 4094`,
    ],
  ),
  handshake(
    'TLS that is refused, then agreed',
    'an error to STARTTLS changes nothing; behind its ACK neither direction can be read',
    [
      S_HELLO,
      C_FLAGS,
      option('05', '00000000'),
      answer('05', '80000002', '00000000'),
      option('05', '00000000'),
      ack('05'),
      'C @tls 16030100',
      'S 16030100',
    ],
    [
      'option 5 4-20',
      'answer 5 0x80000002 final 18-38',
      'option 5 20-36',
      'answer 5 0x1 final 38-58',
      'raw server 58 TLS',
      'raw client @tls the server is not understood',
    ],
  ),

  // ---- what ends it
  handshake(
    'oldstyle',
    'a handshake of size and flags at once',
    ['S "NBDMAGIC" 0000420281861253 00*140', 'C 25*28'],
    ['raw server 8 oldstyle handshake', 'raw client 0 the server is not understood'],
  ),
  handshake(
    'no NBD server',
    'whatever else listens there',
    ['S "SSH-2.0-OpenSSH_9.2p1!"'],
    ['raw server 0 not an NBD server'],
  ),
  handshake(
    'another magic behind the first',
    'neither handshake',
    ['S "NBDMAGIC" "IHAVEOPX" 0003'],
    ['raw server 8 unknown handshake'],
  ),
  handshake(
    'flags that nobody knows',
    'they may change all that follows',
    ['S "NBDMAGIC" "IHAVEOPT" 0007', C_FLAGS],
    ['raw server 16 unknown handshake flags 0x7', 'raw client 0 the server is not understood'],
  ),
  handshake(
    'a client that speaks first',
    'no NBD client does',
    ['C 00000003', S_HELLO, 'S 00'],
    ['raw client 0 the client spoke before the server', 'raw server 18 the client is not understood'],
  ),
  handshake(
    'flags that were not offered',
    'whether zeroes follow EXPORT_NAME would be a guess',
    ['S "NBDMAGIC" "IHAVEOPT" 0001', C_FLAGS],
    ['raw client 0 flags of the client that were not offered: 0x3'],
  ),
  handshake(
    'an option of another magic',
    'the place is lost',
    [S_HELLO, `${C_FLAGS} "IHAVEOPX" 00000003 00000000`],
    ['raw client 4 not an option'],
  ),
  handshake(
    'an option too long',
    'a limit before it is passed',
    [S_HELLO, `${C_FLAGS} "IHAVEOPT" 00000063 00010001`],
    ['raw client 4 an option of 65537 bytes'],
  ),
  handshake(
    'a name too long',
    'a limit before memory',
    [S_HELLO, `${C_FLAGS} "IHAVEOPT" 00000001 00001001 61*4097`],
    ['raw client 4 a name of 4097 bytes'],
  ),
  handshake(
    'a name longer than its option',
    'a server refuses it, or not',
    [S_HELLO, `${C_FLAGS} "IHAVEOPT" 00000007 00000007 00000002 "d"`],
    ['raw client 4 a name of 2 bytes in an option of 7'],
  ),
  handshake(
    'a GO without room for a name',
    'the same',
    [S_HELLO, `${C_FLAGS} "IHAVEOPT" 00000007 00000005`],
    ['raw client 4 option 7 of 5 bytes'],
  ),
  handshake(
    'an option to a server that is not fixed',
    'it closes, or answers in its own way',
    ['S "NBDMAGIC" "IHAVEOPT" 0000', 'C 00000000', option('08', '00000000')],
    ['raw client 4 option 8 to a server that knows one alone'],
  ),
  handshake(
    'EXPORT_NAME behind EXTENDED_HEADERS',
    'the protocol forbids it',
    [...extended.slice(0, 4), option('01', '00000000')],
    [...extendedTrace.slice(0, 2), 'raw client 20 EXPORT_NAME behind EXTENDED_HEADERS'],
  ),
  handshake(
    'a client that does not wait',
    'what is said next depends on the answer',
    [S_HELLO, C_FLAGS, option('08', '00000000'), option('0b', '00000000'), ack('08')],
    [
      'option 8 4-20',
      'raw client 20 the client did not wait for the answer to an option',
      'raw server 18 the client is not understood',
    ],
  ),
  handshake(
    'an answer to nothing',
    'the place is lost',
    [S_HELLO, C_FLAGS, ack('08')],
    ['raw server 18 a reply without an option'],
  ),
  handshake(
    'an answer to another option',
    'the place is lost',
    [S_HELLO, C_FLAGS, option('08', '00000000'), ack('0b')],
    ['option 8 4-20', 'raw server 18 a reply to option 11, and 8 was asked'],
  ),
  handshake(
    'an answer of another magic',
    'the place is lost',
    [S_HELLO, C_FLAGS, option('08', '00000000'), 'S 00*20', 'C 00'],
    ['option 8 4-20', 'raw server 18 not a reply to an option', 'raw client 20 the server is not understood'],
  ),
  handshake(
    'an answer too long',
    'a limit before it is passed',
    [S_HELLO, C_FLAGS, option('03', '00000000'), answer('03', '00000002', '00010001')],
    ['option 3 4-20', 'raw server 18 a reply of 65537 bytes to an option'],
  ),
  handshake(
    'an export of another length',
    'size and flags are not where they are looked for',
    [S_HELLO, C_FLAGS, go[0]!, answer('07', '00000003', '0000000b', '0000 00*9')],
    ['option 7 4-27', 'raw server 18 an export of a length that is none'],
  ),
  handshake(
    'an export beyond 2^53',
    'a number does not hold its places',
    [S_HELLO, C_FLAGS, go[0]!, answer('07', '00000003', '0000000c', '0000 0020000000000000 0001')],
    ['option 7 4-27', 'raw server 18 an export of a length that is none'],
  ),
  handshake(
    'block sizes of another length',
    'the same for them',
    [S_HELLO, C_FLAGS, go[0]!, answer('07', '00000003', '0000000d', '0003 00*11')],
    ['option 7 4-27', 'raw server 18 block sizes of a length that is none'],
  ),
  handshake(
    'information without a number',
    'two bytes are the least',
    [S_HELLO, C_FLAGS, go[0]!, answer('07', '00000003', '00000001', '00')],
    ['option 7 4-27', 'raw server 18 information of 1 bytes'],
  ),
  handshake(
    'GO without an export',
    'transmission cannot be understood without',
    [S_HELLO, C_FLAGS, go[0]!, ack('07'), 'C 25'],
    [
      'option 7 4-27',
      'answer 7 0x1 final 18-38',
      'raw server 38 an export without a size',
      'raw client 27 the server is not understood',
    ],
  ),
  handshake(
    'a context with too long a name',
    'a limit before memory',
    [S_HELLO, C_FLAGS, option('0a', '00000008', '00*8'), answer('0a', '00000004', '00001005', '61*4101')],
    ['option 10 4-28', 'raw server 18 a metadata context of 4101 bytes'],
  ),
  handshake(
    'an export by name beyond 2^53',
    'a number does not hold its places',
    [...simple.slice(0, 2), 'S ffffffffffffffff 0001'],
    ['option 1 4-21', 'raw server 18 an export beyond 2^53'],
  ),
  handshake(
    'no zeroes where they belong',
    'a server that leaves them out, or fills them',
    [S_HELLO, 'C 00000001', option('01', '00000000'), 'S 0000000000000200 0001 00*16 67 00*107'],
    ['option 1 4-20', 'raw server 44 not zeroes behind an export'],
  ),
  handshake(
    'bytes behind ABORT',
    'the client said that it goes',
    [S_HELLO, C_FLAGS, option('02', '00000000'), ack('02'), 'C 00', 'S 00'],
    [
      'option 2 4-20',
      'answer 2 0x1 final 18-38',
      'raw client 20 bytes behind ABORT',
      'raw server 38 the client is not understood',
    ],
  ),
  inSimple(
    'bytes behind DISC',
    'the client said that it goes; the server may still answer',
    [`C ${request('0003', 1, '0', '00000000')} @a ${request('0002', 2, '0', '00000000')} @b 00`, `S ${reply(1)} @t`],
    [
      `request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`,
      `request ${c(2)} 2 flags=0x0 0 0+0 @a-@b`,
      'raw client @b bytes behind DISC',
      `reply ${c(1)} 0 @s-@t`,
    ],
  ),
  inSimple(
    'an extended request that was not agreed',
    'another length',
    [`C ${wide('0003', 1, '0', '0')}`],
    ['raw client @c not a request'],
  ),
  inExtended(
    'a compact request where extended ones were agreed',
    'another length',
    [`C ${request('0003', 1, '0', '00000000')} 00*4`],
    ['raw client @c not a request'],
  ),
  inSimple(
    'an unknown command',
    'nobody says whether it has a payload',
    [`C ${request('0009', 1, '0', '00000000')}`],
    ['raw client @c command 9, which may have a payload'],
  ),
  inExtended(
    'a WRITE without the flag of its payload',
    'QEMU 10.0 sends it so, though the protocol wants the flag',
    [`C ${wide('0001', 1, '0', '4')} @a 01020304 @b`, `S ${wideChunk(1, '0001', '0000', '0', '0')} @t`],
    [`request ${c(1)} 1 flags=0x0 0 4+4 @c-@a`, `write ${c(1)} @a-@b 0`, `chunk ${c(1)} 0x0 +0 done @s-@t`],
  ),
  inExtended(
    'a payload beyond 32 bits',
    'no server takes it',
    [`C ${wide('0001', 1, '0', '100000000', '0020')}`],
    ['raw client @c a payload of 4294967296 bytes'],
  ),
  inSimple(
    'a place beyond 2^53',
    'a number does not hold it',
    [`C ${request('0000', 1, '20000000000000', '00000001')}`],
    ['raw client @c a place beyond 2^53'],
  ),
  inSimple(
    'an end beyond 2^53',
    'the same',
    [`C ${request('0000', 1, '1ffffffffffff0', '00000010')}`],
    ['raw client @c a place beyond 2^53'],
  ),
  inExtended(
    'a length beyond 2^53',
    'the same',
    [`C ${wide('0004', 1, '0', '20000000000000')}`],
    ['raw client @c a place beyond 2^53'],
  ),
  inSimple(
    'a cookie that is under way',
    'its answers could not be told apart',
    [`C ${request('0003', 1, '0', '00000000')} @a ${request('0003', 1, '0', '00000000')}`],
    [`request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`, 'raw client @a a cookie that is under way'],
  ),
  inSimple(
    'a reply without a request',
    'how long it is cannot be known; requests are still read, and not remembered',
    [`C ${request('0003', 1, '0', '00000000')} @a`, `S ${reply(2)}`, `C ${request('0003', 1, '0', '00000000')} @b`],
    [
      `request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`,
      'raw server @s a reply without a request',
      `request ${c(1)} 3 flags=0x0 0 0+0 @a-@b`,
    ],
  ),
  inSimple(
    'a reply that was given already',
    'a cookie ends with its answer',
    [`C ${request('0003', 1, '0', '00000000')} @a`, `S ${reply(1)} @t ${reply(1)}`],
    [`request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`, `reply ${c(1)} 0 @s-@t`, 'raw server @t a reply without a request'],
  ),
  inSimple(
    'chunks that were not agreed',
    'the place is lost',
    [`C ${request('0003', 1, '0', '00000000')} @a`, `S ${chunk(1, '0001', '0000', '00000000')}`],
    [`request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`, 'raw server @s not a reply, or one of a kind that was not agreed'],
  ),
  inExtended(
    'a simple reply where chunks were agreed',
    'the protocol forbids it',
    [`C ${wide('0003', 1, '0', '0')} @a`, `S ${reply(1)}`],
    [`request ${c(1)} 3 flags=0x0 0 0+0 @c-@a`, 'raw server @s not a reply, or one of a kind that was not agreed'],
  ),
  inStructured(
    'data in a simple reply, where chunks were agreed',
    'whether data follows would be a guess',
    [`C ${request('0000', 1, '0', '00000004')} @a`, `S ${reply(1)} 00*4`],
    [`request ${c(1)} 0 flags=0x0 0 4+0 @c-@a`, 'raw server @s data in a simple reply, and chunks were agreed'],
  ),
  ...(
    [
      [
        'a chunk too short for its type',
        '0000',
        chunk(1, '0001', '0001', '00000007', '00*7'),
        'a chunk of type 1 and 7 bytes',
      ],
      [
        'nothing with a payload',
        '0000',
        chunk(1, '0001', '0000', '00000001', '00'),
        'a chunk of nothing with a payload',
      ],
      [
        'data before its request',
        '0000',
        chunk(1, '0001', '0001', '00000009', '0000000000000fff 00'),
        'data outside its request',
      ],
      [
        'data behind its request',
        '0000',
        chunk(1, '0001', '0001', '0000000a', '000000000000100f 0000'),
        'data outside its request',
      ],
      [
        'data beyond 2^53',
        '0000',
        chunk(1, '0001', '0001', '00000009', 'ffffffffffffffff 00'),
        'data outside its request',
      ],
      [
        'a hole behind its request',
        '0000',
        chunk(1, '0001', '0002', '0000000c', '0000000000001000 00000011'),
        'data outside its request',
      ],
      [
        'a hole of another length',
        '0000',
        chunk(1, '0001', '0002', '0000000d', '0000000000001000 00000001 00'),
        'a hole of 13 bytes',
      ],
      [
        'data for a FLUSH',
        '0003',
        chunk(1, '0001', '0001', '00000009', '0000000000001000 00'),
        'data that was not asked for',
      ],
      ['a status for a READ', '0000', chunk(1, '0001', '0005', '0000000c', '00*12'), 'a status that was not asked for'],
      [
        'an extended status for a READ',
        '0000',
        chunk(1, '0001', '0006', '00000018', '00*24'),
        'a status that was not asked for',
      ],
      ['a status of no extent', '0007', chunk(1, '0001', '0005', '00000004', '00*4'), 'a status of 4 bytes'],
      ['a status of half an extent', '0007', chunk(1, '0001', '0005', '00000010', '00*16'), 'a status of 16 bytes'],
      [
        'an extended status that counts wrong',
        '0007',
        chunk(1, '0001', '0006', '00000018', '00000000 00000002 00*16'),
        'an extended status of 24 bytes',
      ],
      [
        'an error that is none',
        '0003',
        chunk(1, '0001', '8001', '00000006', '00000000 0000'),
        'an error chunk without an error',
      ],
      [
        'an error without room for its text',
        '0003',
        chunk(1, '0001', '8001', '00000007', '00000005 0002 00'),
        'an error chunk too short for its text',
      ],
      [
        'an error without room for its offset',
        '0003',
        chunk(1, '0001', '8002', '0000000e', '00000005 0001 00*8'),
        'an error chunk too short for its text',
      ],
    ] as const
  ).map(([name, type, bytes, reason]) =>
    inStructured(
      name,
      'its place or its meaning is not what it says',
      [`C ${request(type, 1, '1000', '00000010')} @a`, `S ${bytes}`],
      [`request ${c(1)} ${Number.parseInt(type, 16)} flags=0x0 4096 16+0 @c-@a`, `raw server @s ${reason}`],
    ),
  ),
  inExtended(
    'a chunk beyond 32 bits',
    'no server sends it',
    [`C ${wide('0000', 1, '0', '10')} @a`, `S ${wideChunk(1, '0001', '0001', '0', '100000000')}`],
    [`request ${c(1)} 0 flags=0x0 0 16+0 @c-@a`, 'raw server @s a chunk beyond 2^32'],
  ),
]
