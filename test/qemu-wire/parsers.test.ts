import fc from 'fast-check'
import t from 'tap'
import { ByteWriter } from '../../scripts/harness/byte-writer.ts'
import {
  multifdHello,
  multifdPacket,
  pageRequest,
  receivedBitmap,
  returnPathMessage,
  StreamEmitter,
  syntheticStream,
} from '../../scripts/harness/qemu/stream-emitter.ts'
import { readU16, readU32, readU64 } from '../../src/bytes/big-endian.ts'
import { latin1, latin1Bytes } from '../../src/bytes/copy.ts'
import { RAM_BLOCKS_MAX, SECTION_SEARCH_BYTES_MAX } from '../../src/limits.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import { channelKind, channelStart } from '../../src/qemu/channel-kind.ts'
import { MainStreamParser, type ParserMemory } from '../../src/qemu/main-stream.ts'
import { MultifdParser } from '../../src/qemu/multifd-channel.ts'
import { PreemptParser } from '../../src/qemu/preempt-channel.ts'
import { ReturnPathParser } from '../../src/qemu/return-path.ts'
import * as wire from '../../src/qemu/wire.ts'
import { RETURN_PATH } from '../../src/qemu/wire.ts'
import { readsOf } from '../helpers/reads-of.ts'
import { type MainVector, mainVectors } from '../vectors/qemu/main-stream.ts'
import { type WireVector, wireBytes, wireTrace } from '../vectors/qemu/notation.ts'
import { multifdVectors, preemptVectors, returnPathVectors } from '../vectors/qemu/other-channels.ts'
import { type AnyParser, cutsThatDiffer, TraceSink, traceOf } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

const memory: ParserMemory = {
  blocks: [{ idstr: 'pc.ram', lengthBytes: 1 << 20 }],
  blocksComplete: true,
  sections: [{ id: 2, idstr: 'ram' }],
  machineType: 'pc-i440fx-10.0',
}
const main = (sink: TraceSink) => new MainStreamParser(sink)
const recovery = (sink: TraceSink) => new MainStreamParser(sink, { recovery: memory })
const multifd = (sink: TraceSink) => new MultifdParser(sink)
const preempt = (sink: TraceSink) => new PreemptParser(sink, new BlockTable(memory.blocks, true))
const returnPath = (sink: TraceSink) => new ReturnPathParser(sink)

function vectors(
  name: string,
  table: readonly WireVector[],
  make: (vector: WireVector) => (sink: TraceSink) => AnyParser,
) {
  t.test(name, t => {
    t.ok(table.length > 0, 'there are vectors')
    for (const vector of table) {
      const { bytes, marks } = wireBytes(vector.input)
      const trace = wireTrace(vector.trace, marks)
      t.same(traceOf(bytes, [], make(vector), true), trace, vector.name)
      t.same(cutsThatDiffer(bytes, trace, make(vector)), [], 'the same trace wherever it is cut')
    }
    t.end()
  })
}

vectors('main streams', mainVectors, vector => ((vector as MainVector).recovery ? recovery : main))
vectors('multifd channels', multifdVectors, () => multifd)
vectors('preempt channels', preemptVectors, () => preempt)
vectors('return paths', returnPathVectors, () => returnPath)

t.test('every vector, cut off at every byte, starts as the whole one and ends without a throw', t => {
  const tables: [readonly WireVector[], (vector: WireVector) => (sink: TraceSink) => AnyParser][] = [
    [mainVectors, vector => ((vector as MainVector).recovery ? recovery : main)],
    [multifdVectors, () => multifd],
    [preemptVectors, () => preempt],
    [returnPathVectors, () => returnPath],
  ]
  const differ: string[] = []
  for (const [table, make] of tables) {
    for (const vector of table) {
      const { bytes } = wireBytes(vector.input)
      const whole = traceOf(bytes, [], make(vector))
      for (let length = 0; length < bytes.length; length++) {
        const lines = traceOf(bytes.subarray(0, length), [], make(vector))
        if (lines.some((line, i) => line !== whole[i])) differ.push(`${vector.name} at ${length}`)
      }
    }
  }
  t.same(differ, [])
  t.end()
})

t.test('finish says how a stream ended', t => {
  const end = (input: Uint8Array) => {
    const sink = new TraceSink()
    const parser = new MainStreamParser(sink)
    sink.pushedTo = input.length
    parser.push(input, 0, input.length)
    return parser.finish()
  }
  const whole = wireBytes(mainVectors[0]!.input).bytes
  t.same(end(whole), { cut: false, ramComplete: true, degradedAt: undefined }, 'precopy')
  t.same(end(whole.subarray(0, 12634)), { cut: false, ramComplete: true, degradedAt: undefined }, 'behind END of ram')
  for (const length of [0, 1, 9, 30, 57, 70, 200, 208, 213, 220, 300, 4331, 12633]) {
    t.same(end(whole.subarray(0, length)), { cut: true, ramComplete: false, degradedAt: undefined }, `cut at ${length}`)
  }
  for (const length of [8, 27, 32, 41, 211, 12611]) {
    t.same(
      end(whole.subarray(0, length)),
      { cut: false, ramComplete: false, degradedAt: undefined },
      `ends early at ${length}`,
    )
  }
  const postcopy = wireBytes(mainVectors.find(vector => vector.name === 'postcopy')!.input).bytes
  t.same(end(postcopy), { cut: false, ramComplete: true, degradedAt: undefined }, 'postcopy')
  t.same(
    end(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8)),
    { cut: false, ramComplete: false, degradedAt: 0 },
    'not understood',
  )

  const channel = new MultifdParser(new TraceSink())
  t.same(channel.finish(), { cut: false, degradedAt: undefined }, 'a multifd channel that was never used')
  t.end()
})

t.test('channel kinds', t => {
  const kinds: [string, string | undefined][] = [
    ['51', undefined],
    ['51 45 56', undefined],
    ['51 45 56 4d', 'main'],
    ['51 45 56 4e', 'unknown'],
    ['11 22 33', undefined],
    ['11 22 33 44 00', 'multifd'],
    ['11 23', 'unknown'],
    ['16', undefined],
    ['16 03', undefined],
    ['16 03 00', 'tls'],
    ['16 03 01', 'tls'],
    ['16 03 04', 'tls'],
    ['16 03 05', 'unknown'],
    ['16 02', 'unknown'],
    ['08', undefined],
    ['08 00', undefined],
    ['08 00 0a', 'recovery'],
    ['08 00 01', 'unknown'],
    ['00', undefined],
    ['00 00', 'preempt'],
    ['00 00 00 00 00 00 00 10', 'preempt'],
    ['00 01', 'unknown'],
    ['47 45 54 20', 'unknown'],
    ['ff', 'unknown'],
  ]
  t.equal(channelKind(new Uint8Array(0)), undefined, 'no byte')
  for (const [text, kind] of kinds) t.equal(channelKind(wireBytes(text).bytes), kind, text)
  const padded = wireBytes('ff 00 51 45 56 4d 11').bytes
  t.equal(channelKind(padded, 2, 4), 'main', 'in the middle of a chunk')
  t.equal(channelKind(padded, 2, 3), undefined)
  t.end()
})

t.test('how channels of QEMU begin', t => {
  const kinds: [string, string | undefined][] = [
    ['51', undefined],
    ['51 45 56 4d 00 00 00', undefined],
    ['51 45 56 4d 00 00 00 03', 'main'],
    ['51 45 56 4d 00 00 00 02', 'unknown'], // a version that every destination refuses
    ['51 45 56 4e', 'unknown'],
    ['11 22 33', undefined],
    ['11 22 33 44 00', undefined],
    ['11 22 33 44 00 00 00 01', 'multifd'],
    ['11 22 33 44 00 00 00 02', 'unknown'],
    ['11 23', 'unknown'],
    ['16', undefined],
    ['16 03 01 02 00 01', undefined],
    ['16 03 00 02 00 01 00', 'tls'],
    ['16 03 01 02 00 01 00', 'tls'],
    ['16 03 04 00 2d 01 00', 'tls'],
    ['16 03 04 00 2c 01 00', 'unknown'], // no ClientHello is so short
    ['16 03 01 40 01 01 00', 'unknown'], // nor a record so long
    ['16 03 01 02 00 02', 'unknown'], // a ServerHello
    ['16 03 05', 'unknown'],
    ['16 02', 'unknown'],
    ['08', undefined],
    ['08 00 0a 00 07', undefined],
    ['08 00 0a 00 07 06', 'recovery'],
    ['08 00 0a 01 00 ff', 'recovery'],
    ['08 00 0a 00 07 07', 'unknown'],
    ['08 00 0a 00 01 00', 'unknown'],
    ['08 00 01', 'unknown'],
    ['00', undefined],
    ['00 00 00 00 00 00 00', undefined],
    ['00 00 00 00 00 00 00 10', 'preempt'],
    ['00 00 00 00 00 06 00 08 06', 'preempt'],
    ['00 00 00 00 00 06 00 02', 'preempt'],
    ['00 00 00 00 00 00 00 00', 'unknown'],
    ['00 00 00 00 00 00 00 0a', 'unknown'],
    ['00 00 00 00 00 00 02 00', 'unknown'], // MULTIFD_FLUSH: on main alone
    ['00 01', 'unknown'],
    ['47 45 54 20', 'unknown'],
    ['ff', 'unknown'],
  ]
  t.equal(channelStart(new Uint8Array(0)), undefined, 'no byte')
  for (const [text, kind] of kinds) t.equal(channelStart(wireBytes(text).bytes), kind, text)
  const padded = wireBytes('ff 00 51 45 56 4d 00 00 00 03 11').bytes
  t.equal(channelStart(padded, 2, 8), 'main', 'in the middle of a chunk')
  t.equal(channelStart(padded, 2, 7), undefined)
  t.end()
})

t.test('integers at the edge', t => {
  const bytes = wireBytes('ff 00 1f ffffffffffff 0020 000000000000 ffffffffffffffff').bytes
  t.equal(readU16(bytes, 1), 0x001f)
  t.equal(readU32(bytes, 3), 0xffffffff)
  t.equal(readU64(bytes, 1), Number.MAX_SAFE_INTEGER, '2^53 - 1')
  t.equal(readU64(bytes, 9), -1, '2^53')
  t.equal(readU64(bytes, 17), -1, '2^64 - 1')
  for (const value of [0, 1, 0xffffffff, 0x100000000, 0x123456789abc, Number.MAX_SAFE_INTEGER]) {
    t.equal(readU64(new ByteWriter().u8(9).u64(value).bytes(), 1), value)
  }
  const text = String.fromCharCode(...Array.from({ length: 256 }, (_, i) => i))
  t.equal(latin1(latin1Bytes(text), 0, 256), text, 'latin1 keeps every byte')
  t.end()
})

t.test('many RAMBlocks', t => {
  const entries = (count: number) =>
    Array.from({ length: count }, (_, i) => ({ idstr: `mem${i}`, lengthBytes: 4096 * (i + 1) }))
  const parse = (count: number) => {
    const input = new StreamEmitter().header().ramStart(2, entries(count)).eos().footer(2).sectionPart(2)
    return traceOf(input.zero(0, 'mem7').eos().footer(2).bytes(), [], main, true)
  }
  const most = parse(RAM_BLOCKS_MAX)
  t.equal(most.length, 2 + RAM_BLOCKS_MAX + 1)
  t.match(most.at(-1), /^zero \d+-\d+ 7 0x0 named$/)
  t.match(parse(RAM_BLOCKS_MAX + 1).at(-1), /^degraded \d+ RAMBlock listed twice, or too many RAMBlocks$/)

  const table = new BlockTable()
  const names = new StreamEmitter()
  for (let i = 0; i <= RAM_BLOCKS_MAX; i++) names.zero(0, `mem${i}`)
  const lines = traceOf(names.bytes(), [], sink => new PreemptParser(sink, table))
  t.match(lines.at(-1), /^degraded \d+ unknown RAMBlock "mem4096"$/, 'and where there is no list')

  const sections = new StreamEmitter().header()
  for (let i = 0; i <= 1024; i++) sections.sectionStart(i, 'dirty-bitmap').raw(Uint8Array.of(1)).footer(i)
  t.match(traceOf(sections.bytes(), [], main).at(-1), /^degraded \d+ too many sections$/)
  t.end()
})

t.test('a RAMBlock is found in one step, however many there are', t => {
  const table = new BlockTable()
  const reads = readsOf(table, 'names')
  // As long as names may be, and they differ at their ends.
  const name = (i: number) => Buffer.from(`${'n'.repeat(250)}${String(i).padStart(5, '0')}`)
  for (let i = 0; i < RAM_BLOCKS_MAX; i++) if (table.resolve(name(i), 0, 255) !== i) t.fail(`${i} is another`)
  const made = reads()
  t.ok(made < 10, `${made} names were read to find that each is new: two may have the same hash by chance`)
  for (let i = 0; i < RAM_BLOCKS_MAX; i++) if (table.find(name(i), 0, 255) !== i) t.fail(`${i} is another`)
  const found = reads()
  t.ok(found >= RAM_BLOCKS_MAX && found < RAM_BLOCKS_MAX + 10, `${found} reads for as many lookups`)
  t.end()
})

t.test('commands on a way back count as all others do', t => {
  const commands = new StreamEmitter()
    .command(11)
    .command(6, wireBytes("00 'pc.ram' 00 0000000000010000 0000000000010000").bytes)
    .ping(2)
    .packaged(new StreamEmitter().command(4).ping(3).command(5).bytes())
    .ping(4)
  const countsOf = (section: Uint8Array) => {
    const out = new StreamEmitter()
      .header()
      .ramStart(5, [{ idstr: 'pc.ram', lengthBytes: 1 << 20 }])
      .eos()
      .footer(5)
    const input = out.raw(section).raw(commands.bytes()).sectionPart(5).zero(0, 'pc.ram').eos().footer(5).bytes()
    const sink = new TraceSink()
    const parser = new MainStreamParser(sink)
    sink.pushedTo = input.length
    parser.push(input, 0, input.length)
    t.notOk(parser.raw)
    return { commands: parser.counts.commands, packagedBytes: parser.counts.packagedBytes }
  }
  const plain = countsOf(new Uint8Array(0))
  t.equal(plain.packagedBytes, 19)
  t.same(plain.commands, [0, 0, 2, 0, 0, 0, 1, 1, 0, 0, 0, 1], 'those in the package are its own')
  const unknown = new StreamEmitter().sectionStart(7, 'new').raw(new Uint8Array(9)).footer(7).bytes()
  t.same(countsOf(unknown), plain)
  t.end()
})

t.test('names stay when the memory that they came in is written again', t => {
  const table = new BlockTable()
  const chunk = Buffer.from('pc.ram') // as a file or a socket gives it: its slice is a view
  t.equal(table.resolve(chunk, 0, 6), 0)
  chunk.write('pc.rom')
  t.equal(table.resolve(chunk, 0, 6), 1, 'another name')
  t.equal(table.resolve(Buffer.from('pc.ram'), 0, 6), 0, 'the first is still known')
  t.end()
})

t.test('channels of one migration share their RAMBlocks', t => {
  const blocks = new BlockTable()
  const channel = new TraceSink()
  const early = wireBytes(multifdVectors[1]!.input).bytes
  channel.pushedTo = early.length
  new MultifdParser(channel, blocks).push(early, 0, early.length)
  t.same(
    blocks.list(),
    [
      { idstr: 'pc.ram', lengthBytes: 0 },
      { idstr: 'vga.vram', lengthBytes: 0 },
    ],
    'the multifd channel was faster than the block list',
  )

  const start = new StreamEmitter().header().ramStart(2, [
    { idstr: 'new', lengthBytes: 4096 },
    { idstr: 'vga.vram', lengthBytes: 65536 },
    { idstr: 'pc.ram', lengthBytes: 1 << 20 },
  ])
  const lines = traceOf(start.eos().footer(2).bytes(), [], sink => new MainStreamParser(sink, { blocks }))
  t.same(lines.slice(2), ['block 2 new 4096', 'block 1 vga.vram 65536', 'block 0 pc.ram 1048576'])

  const urgent = new StreamEmitter().zero(0x8000, 'vga.vram').zero(0x10000).bytes()
  t.same(
    traceOf(urgent, [], sink => new PreemptParser(sink, blocks)),
    ['block 1 vga.vram 65536', 'zero 0-18 1 0x8000 named', 'degraded 18 RAM record beyond its RAMBlock'],
  )
  const beyond = multifdPacket({ normal: [0x100000], idstr: 'pc.ram', data: new Uint8Array(4096) })
  const input = new ByteWriter().raw(multifdHello(3)).raw(beyond).bytes()
  t.same(
    traceOf(input, [], sink => new MultifdParser(sink, blocks)),
    ['hello 3 64', 'degraded 384 multifd page beyond its RAMBlock'],
  )
  t.end()
})

t.test('a recovery goes on where the first connection learned', t => {
  const first = wireBytes(mainVectors.find(vector => vector.name === 'postcopy')!.input).bytes
  // The first connection breaks inside the page behind the package.
  const parser = new MainStreamParser(new TraceSink())
  const sink = new TraceSink()
  const broken = new MainStreamParser(sink)
  sink.pushedTo = first.length
  broken.push(first, 0, first.length - 2000)
  t.same(parser.memory(), { blocks: [], blocksComplete: false, sections: [], machineType: '' })
  const learned = JSON.parse(JSON.stringify(broken.memory()))
  t.same(learned, memory)
  const again = wireBytes(mainVectors.find(vector => vector.recovery)!.input).bytes
  const lines = traceOf(again, [], sink => new MainStreamParser(sink, { recovery: learned }), true)
  t.same(
    lines.filter(line => line.startsWith('degraded')),
    [],
  )
  t.equal(lines.at(-1), `phase eof ${again.length}`)
  t.same(
    traceOf(
      again,
      [],
      sink => new MainStreamParser(sink, { recovery: learned, blocks: new BlockTable(learned.blocks) }),
    ),
    lines,
  )
  t.end()
})

// ---- properties ----

const idstrs = ['pc.ram', '0000:00:02.0/vga.vram', '/rom@etc/acpi/tables', 'n'.repeat(255)]
const lengthBytes = 64 * 4096

/** One thing to emit in PARTs of ram. */
const record = fc.record({
  kind: fc.constantFrom(
    'zero',
    'zero',
    'page',
    'page',
    'filled',
    'xbzrle',
    'compress',
    'flush',
    'section',
    'other',
    'unknown',
  ),
  block: fc.nat({ max: idstrs.length - 1 }),
  page: fc.nat({ max: 63 }),
  fill: fc.nat({ max: 255 }),
  length: fc.nat({ max: 300 }),
  rename: fc.boolean(),
})

type RecordPlan = typeof record extends fc.Arbitrary<infer Plan> ? Plan : never

interface Emitted {
  readonly input: Uint8Array
  readonly lines: readonly string[]
}

/** A stream of these records, and its trace as the emitter's positions tell it. */
function emit(records: readonly RecordPlan[]): Emitted {
  const blocks = idstrs.map(idstr => ({ idstr, lengthBytes }))
  const out = new StreamEmitter().header('q35')
  const lines = ['phase header 8']
  out.sectionStart(5, 'ram', 0, 4)
  lines.push(`phase ram-start ${out.position}`, ...idstrs.map((idstr, i) => `block ${i} ${idstr} ${lengthBytes}`))
  out.memSize(blocks).eos().footer(5)
  out.sectionStart(6, 'dirty-bitmap').raw(Uint8Array.of(1)).footer(6)
  lines.push(`strayed ${out.position} unknown section "new"`)
  out.sectionStart(7, 'new').raw(new Uint8Array(20)).footer(7)
  out.sectionPart(5)
  let current = -1
  for (const { kind, block, page, fill, length, rename } of records) {
    if (kind === 'flush') out.multifdFlush()
    else if (kind === 'section') out.eos().footer(5).sectionPart(5)
    else if (kind === 'other') {
      out.eos().footer(5).sectionPart(6)
      out
        .raw(wireBytes('40 0000000000000000 00000800 0000000000000005 7e 00 00 00 06 01').bytes)
        .footer(6)
        .sectionPart(5)
    } else if (kind === 'unknown') {
      out.eos().footer(5).sectionPart(7).raw(new Uint8Array(length).fill(fill)).footer(7).sectionPart(5)
    } else {
      const name = rename || block !== current ? idstrs[block] : undefined
      current = block
      const offset = page * 4096
      const start = out.position
      const body = new Uint8Array(4096).fill(fill)
      if (kind === 'zero') out.zero(offset, name)
      else if (kind === 'page') out.page(offset, body, name)
      else if (kind === 'filled') out.zero(offset, name, 1 + (fill % 255))
      else if (kind === 'xbzrle') out.xbzrle(offset, body.subarray(0, length), name)
      else out.compressPage(offset, body.subarray(0, length), name)
      const at = `${block} 0x${offset.toString(16)}`
      if (kind !== 'zero' && kind !== 'page') lines.push(`opaque ${at}`)
      else lines.push(`${kind} ${start}-${out.position} ${at}${name === undefined ? '' : ' named'}`)
    }
  }
  out.eos().footer(5).sectionEnd(5).eos().footer(5)
  lines.push(`phase ram-end ${out.position}`)
  return { input: out.raw(new Uint8Array(50).fill(0x28)).bytes(), lines }
}

const cutsOf = (input: Uint8Array, seeds: readonly number[]) =>
  [...new Set(seeds.map(seed => seed % (input.length + 1)))].sort((a, b) => a - b)

t.test('property: whatever is emitted is parsed, wherever it is cut', t => {
  fc.assert(
    fc.property(fc.array(record, { maxLength: 60 }), fc.array(fc.nat(), { maxLength: 40 }), (records, seeds) => {
      const { input, lines } = emit(records)
      const trace = traceOf(input, cutsOf(input, seeds), main, true)
      if (trace.join('\n') !== lines.join('\n'))
        throw new Error(`${trace.join('\n')}\n--- expected\n${lines.join('\n')}`)
    }),
    { numRuns: 400 },
  )
  t.pass()
  t.end()
})

t.test('property: a caller that keeps what pending says has every record contiguous', t => {
  // As the encoder works: one small memory, records read from it by position when their event comes.
  fc.assert(
    fc.property(fc.array(record, { maxLength: 40 }), fc.array(fc.integer({ min: 1, max: 9000 })), (records, sizes) => {
      const { input } = emit(records)
      const window = new Uint8Array(9000 + 4400)
      const rebuilt = input.slice()
      let kept = 0 // bytes at the start of the window, of the stream from `from` on
      let from = 0
      const take = (start: number, end: number, emitted: Uint8Array) => {
        const here = window.subarray(start - from, end - from)
        if (Buffer.compare(here, emitted) !== 0) throw new Error(`${start}-${end} is not in the window`)
        rebuilt.fill(0, start, end).set(emitted, start)
      }
      const names: string[] = []
      const parser = new MainStreamParser({
        block: (block, idstr) => {
          names[block] = idstr
        },
        zeroRecord: (start, end, block, offset, named) =>
          take(start, end, new StreamEmitter().zero(offset, named ? names[block] : undefined).bytes()),
        pageRecord: (start, end, block, offset, named) => {
          const body = window.slice(end - 4096 - from, end - from)
          take(start, end, new StreamEmitter().page(offset, body, named ? names[block] : undefined).bytes())
        },
        opaquePage: () => {},
        phase: () => {},
        degraded: () => {},
      })
      for (let at = 0, i = 0; at < input.length; i++) {
        const take = Math.min(sizes[i % sizes.length] ?? 5000, input.length - at)
        window.set(input.subarray(at, at + take), kept)
        parser.push(window, kept, take)
        at += take
        const pending = parser.pending
        window.copyWithin(0, kept + take - pending, kept + take)
        kept = pending
        from = at - pending
      }
      if (Buffer.compare(rebuilt, input) !== 0) throw new Error('rebuilt bytes differ')
    }),
    { numRuns: 300 },
  )
  t.pass()
  t.end()
})

t.test('property: damaged streams parse or degrade, the same wherever they are cut', t => {
  const corpus: { input: Uint8Array; make: (sink: TraceSink) => AnyParser }[] = [
    ...mainVectors.map(vector => ({ input: wireBytes(vector.input).bytes, make: vector.recovery ? recovery : main })),
    ...multifdVectors.map(vector => ({ input: wireBytes(vector.input).bytes, make: multifd })),
    ...preemptVectors.map(vector => ({ input: wireBytes(vector.input).bytes, make: preempt })),
    ...returnPathVectors.map(vector => ({ input: wireBytes(vector.input).bytes, make: returnPath })),
  ]
  const damage = fc.record({
    at: fc.nat(),
    bytes: fc.uint8Array({ maxLength: 12 }),
    kind: fc.constantFrom('overwrite', 'flip', 'insert', 'remove', 'repeat', 'splice'),
    other: fc.nat(),
  })
  fc.assert(
    fc.property(
      fc.nat({ max: corpus.length - 1 }),
      fc.array(damage, { minLength: 1, maxLength: 5 }),
      fc.array(fc.nat(), { maxLength: 10 }),
      (index, damages, seeds) => {
        const { input: whole, make } = corpus[index]!
        let input: Uint8Array = whole
        for (const { at: seed, bytes, kind, other } of damages) {
          // Bodies are most of a stream and their damage goes unseen: aim at the first bytes twice as often.
          const at = seed % (seed % 2 === 0 ? input.length + 1 : Math.min(input.length + 1, 300))
          const before = input.subarray(0, at)
          if (kind === 'overwrite') input = Buffer.concat([before, bytes, input.subarray(at + bytes.length)])
          else if (kind === 'flip') {
            input = input.slice()
            if (at < input.length) input[at]! ^= 1 << (other % 8)
          } else if (kind === 'insert') input = Buffer.concat([before, bytes, input.subarray(at)])
          else if (kind === 'remove') input = Buffer.concat([before, input.subarray(at + 1 + (other % 20))])
          else if (kind === 'repeat') input = Buffer.concat([before, input.subarray(Math.max(0, at - (other % 600)))])
          else input = Buffer.concat([before, corpus[other % corpus.length]!.input.subarray(seed % 97)])
        }
        const trace = traceOf(input, [], make, true)
        const cut = traceOf(input, cutsOf(input, seeds), make)
        if (trace.join('\n') !== cut.join('\n')) throw new Error(`${trace.join('\n')}\n--- cut\n${cut.join('\n')}`)
      },
    ),
    { numRuns: 10_000 },
  )
  t.pass()
  t.end()
})

t.test('property: noise behind a header', t => {
  const starts = [wireBytes('"QEVM" 00000003').bytes, emit([]).input.subarray(0, 450), new Uint8Array(0)]
  fc.assert(
    fc.property(
      fc.constantFrom(...starts),
      fc.uint8Array({ maxLength: 400 }),
      fc.array(fc.nat()),
      (start, noise, seeds) => {
        // Mostly small numbers, as on the wire.
        const input = Buffer.concat([start, noise.map(byte => (byte < 128 ? byte % 16 : byte))])
        for (const make of [main, recovery, multifd, preempt, returnPath]) {
          const cut = traceOf(input, cutsOf(input, seeds), make)
          if (traceOf(input, [], make, true).join() !== cut.join()) throw new Error('cuts matter')
        }
      },
    ),
    { numRuns: 2000 },
  )
  t.pass()
  t.end()
})

t.test('property: bodies of unknown sections that look like anything', t => {
  // Pieces of the wire in any order: some make a way back that is none, and none may make an event of what is not there.
  const piece = fc.oneof(
    fc.constantFrom(
      ...[
        '7e',
        '7e 00000007',
        '7e 00000005',
        '7e 00000007 02 00000005',
        '7e 00000007 03 00000005',
        '01 00000008',
        '00*9',
      ],
      ...[
        "01 00000008 'other' 00000000 00000001",
        "04 00000009 'early' 00000000 00000001",
        '02 00000008',
        '02 00000006',
      ],
      ...['08 0002 0004 00000001', '08 0007 0004 00000009', '08 0006 0014 00', '0000000000000010', '0000000000000200'],
      ...[
        '0000000000001022 00',
        '0000000000002028',
        "0000000000003008 'pc.ram'",
        "0000000000004002 'pc.ram' 00",
        '11*4096',
      ],
    ),
    fc.uint8Array({ maxLength: 6 }).map(bytes => Buffer.from(bytes).toString('hex') || '00'),
  )
  const rest = new StreamEmitter()
    .sectionPart(5)
    .page(0x5000, new Uint8Array(4096), 'pc.ram')
    .zero(0x6000)
    .eos()
    .footer(5)
  rest.sectionEnd(5).eos().footer(5)
  let whole = 0
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 25 }),
      fc.boolean(),
      fc.array(fc.nat(), { maxLength: 10 }),
      (body, off, cuts) => {
        const footer = (id: number) => (off ? new Uint8Array(0) : new StreamEmitter().footer(id).bytes())
        const out = new StreamEmitter()
          .header()
          .ramStart(5, [{ idstr: 'pc.ram', lengthBytes: 1 << 20 }])
          .eos()
          .raw(footer(5))
        out
          .sectionStart(7, 'new')
          .raw(wireBytes(body.join(' ') || '00').bytes)
          .raw(footer(7))
        const input = Buffer.concat([out.bytes(), rest.bytes()])
        const trace = traceOf(input, [], main, true)
        const cut = traceOf(input, cutsOf(input, cuts), main, true)
        if (trace.join('\n') !== cut.join('\n')) throw new Error(`${trace.join('\n')}\n--- cut\n${cut.join('\n')}`)
        if (trace.at(-1) === `phase ram-end ${input.length}`) whole++
      },
    ),
    { numRuns: 5000 },
  )
  t.ok(whole > 1000, `${whole} of 5000 end as they should`)
  t.end()
})

t.test('a search ends: behind so many bytes, and at the end of the stream', t => {
  const start = new StreamEmitter()
    .header()
    .ramStart(5, [{ idstr: 'pc.ram', lengthBytes: 1 << 20 }])
    .eos()
    .footer(5)
  const lostAt = start.position
  start.sectionStart(7, 'new')
  const input = start.bytes()
  const sink = new TraceSink()
  const parser = new MainStreamParser(sink)
  const push = (bytes: Uint8Array, at = 0, length = bytes.length) => {
    sink.pushedTo += length
    parser.push(bytes, at, length)
  }
  push(input)
  const lookalikes = wireBytes('7e 00000007 02 00000005 0000000000000028 ').bytes
  const chunk = new Uint8Array(lookalikes.length * 60_000).map((_, i) => lookalikes[i % lookalikes.length]!)
  const most = SECTION_SEARCH_BYTES_MAX
  for (let left = most - 1; left > 0; left -= chunk.length) push(chunk, 0, Math.min(left, chunk.length))
  t.same(parser.finish(), { cut: false, ramComplete: false, degradedAt: lostAt })
  t.notOk(parser.raw)
  push(Uint8Array.of(0))
  t.ok(parser.raw)
  t.equal(sink.lines.at(-1), `degraded ${lostAt} unknown section "new", and no end of it found`)
  t.same(parser.finish(), { cut: false, ramComplete: false, degradedAt: lostAt })
  t.end()
})

t.test('a recovery knows the sections that the first connection could not read', t => {
  const first = new StreamEmitter()
    .header()
    .ramStart(5, [{ idstr: 'pc.ram', lengthBytes: 1 << 20 }])
    .eos()
    .footer(5)
  const before = traceOf(first.sectionStart(7, 'new').raw(new Uint8Array(9)).footer(7).bytes(), [], main)
  t.match(before.at(-1), /^strayed/)
  const sink = new TraceSink()
  sink.pushedTo = first.position
  const parser = new MainStreamParser(sink)
  parser.push(first.bytes(), 0, first.position)
  const memory = JSON.parse(JSON.stringify(parser.memory())) as ParserMemory
  t.same(
    memory.sections.map(({ id, idstr }) => [id, idstr]),
    [
      [5, 'ram'],
      [7, 'new'],
    ],
  )
  const again = new StreamEmitter()
    .command(10, wireBytes("'pc.ram'").bytes)
    .sectionPart(7)
    .raw(new Uint8Array(9))
    .footer(7)
  const at = again.sectionPart(5).position
  t.same(
    traceOf(again.zero(0, 'pc.ram').bytes(), [], sink => new MainStreamParser(sink, { recovery: memory })),
    [
      'phase recovery 0',
      'strayed 12 unknown section "new"',
      'block 0 pc.ram 1048576',
      `zero ${at}-${at + 16} 0 0x0 named`,
    ],
  )
  t.end()
})

t.test('synthetic streams are whole', t => {
  const body = new Uint8Array(4096).fill(7)
  const input = syntheticStream(
    [
      { idstr: 'pc.ram', lengthBytes: 1 << 20 },
      { idstr: 'pc.bios', lengthBytes: 8192 },
    ],
    [
      [
        { idstr: 'pc.ram', offset: 0, body },
        { idstr: 'pc.ram', offset: 4096, body: undefined },
        { idstr: 'pc.bios', offset: 4096, body },
      ],
      [],
      [{ idstr: 'pc.bios', offset: 0, body }],
    ],
  )
  const sink = new TraceSink(input)
  const parser = new MainStreamParser(sink)
  sink.pushedTo = input.length
  parser.push(input, 0, input.length)
  t.same(parser.finish(), { cut: false, ramComplete: true, degradedAt: undefined })
  t.same(parser.counts.records, {
    page: 3,
    zero: 1,
    zeroFilled: 0,
    xbzrle: 0,
    compress: 0,
    named: 2,
    eos: 5,
    flush: 0,
    pagesByBlock: [2, 2],
  })
  t.same(parser.counts.sections, { start: 1, part: 3, end: 1, full: 0 })
  const messages = new ByteWriter().raw(pageRequest(4096, 8192, 'pc.ram')).raw(pageRequest(0, 4096))
  messages.raw(receivedBitmap('pc.ram', new Uint8Array(32))).raw(returnPathMessage(RETURN_PATH.SHUT, new Uint8Array(4)))
  t.same(traceOf(messages.bytes(), [], returnPath), [
    'request pc.ram 0x1000 8192 0-23',
    'request pc.ram 0x0 4096 23-39',
    'message 5 39-98',
    'shut 0 98-106',
  ])
  t.end()
})

t.test('the numbers that QEMU fixes', t => {
  // Literals on purpose: nobody changes one of these by accident.
  t.same(
    [wire.PAGE_SIZE, wire.PAGE_BITS, wire.FILE_MAGIC, wire.FILE_VERSION, wire.RAM_FLAG_MASK, wire.UUID_LENGTH],
    [4096, 12, 0x5145564d, 3, 0xfff, 16],
  )
  t.same(wire.ELEMENT, {
    EOF: 0,
    SECTION_START: 1,
    SECTION_PART: 2,
    SECTION_END: 3,
    SECTION_FULL: 4,
    SUBSECTION: 5,
    VMDESCRIPTION: 6,
    CONFIGURATION: 7,
    COMMAND: 8,
    SECTION_FOOTER: 0x7e,
  })
  t.same(wire.COMMAND, {
    OPEN_RETURN_PATH: 1,
    PING: 2,
    POSTCOPY_ADVISE: 3,
    POSTCOPY_LISTEN: 4,
    POSTCOPY_RUN: 5,
    POSTCOPY_RAM_DISCARD: 6,
    PACKAGED: 7,
    ENABLE_COLO: 8,
    POSTCOPY_RESUME: 9,
    RECV_BITMAP: 10,
    SWITCHOVER_START: 11,
  })
  t.same([wire.POSTCOPY_ADVISE_LENGTH, wire.PACKAGED_LENGTH], [16, 4])
  t.same(
    wire.COMMAND_LENGTH.map(lengths => lengths?.join()),
    [undefined, '0,0', '4,4', '0,16', '0,0', '0,0', '20,450', '4,4', '0,0', '0,0', '2,256', '0,0'],
  )
  t.same(wire.CONFIGURATION_SUBSECTION, {
    TARGET_PAGE_BITS: 'configuration/target-page-bits',
    CAPABILITIES: 'configuration/capabilities',
    UUID: 'configuration/uuid',
  })
  t.same([wire.CAPABILITY_IGNORE_SHARED, wire.CAPABILITY_MAPPED_RAM], ['x-ignore-shared', 'mapped-ram'])
  t.same(wire.RAM_SECTION, { IDSTR: 'ram', INSTANCE: 0, VERSION: 4 })
  t.same(wire.RAM_FLAG, {
    FULL: 1,
    ZERO: 2,
    MEM_SIZE: 4,
    PAGE: 8,
    EOS: 0x10,
    CONTINUE: 0x20,
    XBZRLE: 0x40,
    HOOK: 0x80,
    COMPRESS_PAGE: 0x100,
    MULTIFD_FLUSH: 0x200,
  })
  t.same([wire.XBZRLE_ENCODING, wire.XBZRLE_LENGTH_MAX, wire.COMPRESS_LENGTH_MAX], [1, 4096, 4110])
  t.same(wire.OTHER_SECTION, {
    DIRTY_BITMAP: 'dirty-bitmap',
    BLOCK: 'block',
    S390_STORAGE_ATTRIBUTES: 's390-storage_attributes',
    SPAPR_HTAB: 'spapr/htab',
    PBS_STATE: 'pbs-state',
    VFIO_SUFFIX: '/vfio',
    VIRTIO_MEM_EARLY_SUFFIX: '/virtio-mem-device-early',
  })
  t.same(wire.DIRTY_BITMAP_FLAG, {
    EOS: 1,
    ZEROES: 2,
    BITMAP_NAME: 4,
    DEVICE_NAME: 8,
    START: 0x10,
    COMPLETE: 0x20,
    BITS: 0x40,
    EXTRA_FLAGS: 0x80,
  })
  t.same(wire.BLOCK_FLAG, { DEVICE_BLOCK: 1, EOS: 2, PROGRESS: 4, ZERO_BLOCK: 8, MASK: 0x1ff })
  t.same([wire.BLOCK_CHUNK_SIZE, wire.HASH_PTE_SIZE], [1048576, 16])
  t.same(wire.VFIO_TAG, {
    HIGH: 0xffffffff,
    END_OF_STATE: 0xef100001,
    SETUP_STATE: 0xef100003,
    DATA_STATE: 0xef100004,
    INIT_DATA_SENT: 0xef100005,
  })
  t.same(wire.S390_FLAG, { EOS: 1, MORE: 2, ERROR: 4, DONE: 8, MASK: 0xfff })
  t.same(wire.RETURN_PATH, {
    SHUT: 1,
    PONG: 2,
    REQ_PAGES_ID: 3,
    REQ_PAGES: 4,
    RECV_BITMAP: 5,
    RESUME_ACK: 6,
    SWITCHOVER_ACK: 7,
  })
  t.same(wire.RECV_BITMAP_END, { HIGH: 0x01234567, LOW: 0x89abcdef })
  t.same(wire.MULTIFD, {
    MAGIC: 0x11223344,
    VERSION: 1,
    HELLO_LENGTH: 64,
    HELLO_UUID_AT: 8,
    HELLO_ID_AT: 24,
    PREFIX_LENGTH: 12,
    FLAGS_AT: 8,
    PAGES_ALLOC_AT: 12,
    NORMAL_PAGES_AT: 16,
    NEXT_PACKET_SIZE_AT: 20,
    PACKET_NUM_AT: 24,
    ZERO_PAGES_AT: 32,
    BLOCK_AT: 64,
    BLOCK_LENGTH: 256,
    OFFSETS_AT: 320,
    PAGES_MAX: 128,
    HEADER_LENGTH: 1344,
    DEVICE_STATE_HEADER_LENGTH: 276,
    DEVICE_STATE_SIZE_AT: 272,
  })
  t.same(wire.MULTIFD_FLAG, {
    SYNC: 1,
    METHOD_MASK: 0x3e,
    ZLIB: 2,
    ZSTD: 4,
    QPL: 8,
    UADK: 0x10,
    QATZIP: 0x20,
    DEVICE_STATE: 0x40,
  })
  t.end()
})
