/** Real streams of QEMU 7.2 and 10: pcap-fixtures/, and those of the guest lab where it has run. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { BlockTable } from '../../src/qemu/block-table.ts'
import { channelKind } from '../../src/qemu/channel-kind.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { MultifdParser } from '../../src/qemu/multifd-channel.ts'
import { PreemptParser } from '../../src/qemu/preempt-channel.ts'
import { ReturnPathParser } from '../../src/qemu/return-path.ts'
import { type TraceSink, traceOf } from './harness.ts'
import { simpleMain, simpleMultifd, simplePreempt } from './simple-decoder.ts'

interface FixtureNote {
  readonly name: string
  readonly capabilities: readonly string[]
  readonly streams: readonly { readonly channel: string; readonly file: string }[]
}

const folder = fileURLToPath(new URL('../../pcap-fixtures/', import.meta.url))
const labFolder = fileURLToPath(new URL('../../.cache/lab/streams/', import.meta.url))

/** Cuts of all sizes from a byte to 100 KB, the same each time. */
function someCuts(input: Uint8Array): number[] {
  const cuts: number[] = []
  let seed = input.length
  for (let at = 0; ; ) {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
    at += 1 + (seed % 10 ** (1 + ((seed >>> 28) % 5)))
    if (at >= input.length) return cuts
    cuts.push(at)
  }
}

const recordLines = (lines: readonly string[]) => lines.filter(line => /^(block|zero|page|opaque)/.test(line))
const unlike = (a: readonly string[], b: readonly string[]) => {
  const i = Math.max(a.length, b.length)
  for (let at = 0; at < i; at++) if (a[at] !== b[at]) return `line ${at}: ${a[at]} | ${b[at]}`
  return ''
}

t.test(
  'fixtures',
  { skip: existsSync(`${folder}index.json`) ? false : 'pcap-fixtures/ is empty: make fixtures' },
  t => {
    const notes: FixtureNote[] = JSON.parse(readFileSync(`${folder}index.json`, 'utf8'))
    const seen = new Set<string>()
    for (const note of notes) {
      const blocks = new BlockTable()
      let names: readonly string[] = []
      const streams = [...note.streams].sort((a, b) => a.channel.localeCompare(b.channel)) // main before the others
      for (const { channel, file } of streams) {
        if (!file || seen.has(file)) continue
        seen.add(file)
        const input = zstdDecompressSync(readFileSync(folder + file))
        if (channel === 'main') {
          t.equal(channelKind(input), 'main')
          let parser: MainStreamParser | undefined
          const make = (sink: TraceSink) => {
            parser = new MainStreamParser(sink)
            return parser
          }
          const lines = traceOf(input, someCuts(input), make, true)
          const simple = simpleMain(input)
          names = simple.names
          t.equal(unlike(recordLines(lines), simple.lines), '', `${file}: ${simple.lines.length} records`)
          t.equal(
            lines.find(line => line.startsWith('phase ram-end')),
            `phase ram-end ${simple.ramEnd}`,
          )
          t.same(parser!.finish(), { cut: false, ramComplete: true, degradedAt: undefined })
          for (const name of names) {
            const { lengthBytes } = parser!.memory().blocks.find(block => block.idstr === name)!
            blocks.declare(Buffer.from(name, 'latin1'), 0, name.length, lengthBytes)
          }
          blocks.complete = true
          const { records } = parser!.counts
          const { capabilities } = note
          t.equal(records.xbzrle > 0, capabilities.includes('xbzrle'))
          t.equal(records.compress > 0, capabilities.includes('compress'))
          t.equal(
            lines.includes(`phase eof ${input.length}`),
            capabilities.includes('postcopy-ram'),
            'EOF ends postcopy',
          )
        } else if (channel === 'multifd') {
          t.equal(channelKind(input), 'multifd')
          let parser: MultifdParser | undefined
          const make = (sink: TraceSink) => {
            parser = new MultifdParser(sink, blocks)
            return parser
          }
          const lines = traceOf(input, someCuts(input), make)
          const simple = simpleMultifd(input)
          const bare = lines
            .filter(line => !line.startsWith('block'))
            .map(line => line.replace(/^(packet .*) -?\d+$/, '$1').replace(/^(zero page|page \S+) \d+ /, '$1 '))
          t.equal(unlike(bare, simple), '', `${file}: ${simple.length} lines`)
          t.same(parser!.finish(), { cut: false, degradedAt: undefined })
          t.ok(parser!.counts.syncs > 0)
        } else if (channel === 'preempt') {
          t.equal(channelKind(input), 'preempt')
          const lines = traceOf(input, someCuts(input), sink => new PreemptParser(sink, blocks))
          const found = lines.filter(line => !line.startsWith('block'))
          t.equal(unlike(found, simplePreempt(input, names)), '', `${file}: ${found.length} records`)
        } else {
          let parser: ReturnPathParser | undefined
          const make = (sink: TraceSink) => {
            parser = new ReturnPathParser(sink)
            return parser
          }
          const lines = traceOf(input, someCuts(input), make)
          t.match(lines.at(-1), /^shut 0 /, `${file}: ${lines.length} messages`)
          t.notOk(parser!.midMessage || parser!.raw)
        }
      }
    }
    t.ok(seen.size > 0, `${seen.size} streams`)
    t.end()
  },
)

const labStreams = existsSync(labFolder) ? readdirSync(labFolder).filter(file => file.endsWith('.stream')) : []
t.test('streams of the lab', { skip: labStreams.length > 0 ? false : 'no .cache/lab/streams/: see scripts/lab' }, t => {
  for (const file of labStreams) {
    const input = readFileSync(labFolder + file)
    const counted = { zero: 0, page: 0, from: 0, bytes: 0 }
    const parser = new MainStreamParser({
      block: () => {},
      zeroRecord: (start, end) => {
        counted.zero++
        counted.bytes += end - start
        if (start < counted.from) throw new Error('overlap')
        counted.from = end
      },
      pageRecord: (start, end) => {
        counted.page++
        counted.bytes += end - start
        if (start < counted.from) throw new Error('overlap')
        counted.from = end
      },
      opaquePage: () => {},
      phase: () => {},
      degraded: (position, reason) => t.fail(`${file}: ${reason} at ${position}`),
    })
    for (let at = 0; at < input.length; at += 65536) parser.push(input, at, Math.min(65536, input.length - at))
    t.same(parser.finish(), { cut: false, ramComplete: true, degradedAt: undefined }, file)
    t.same([parser.counts.records.zero, parser.counts.records.page], [counted.zero, counted.page])
    t.ok(counted.bytes > 0.98 * input.length, 'nearly all of it is records')
  }
  t.end()
})
