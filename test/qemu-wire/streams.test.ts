/**
 * Real streams of QEMU 7.2 and 10: test/vectors/qemu/streams/ (record-streams.ts makes them), pcap-fixtures/streams/, and
 * those of the guest lab where it has run.
 */

import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import { channelStart } from '../../src/qemu/channel-kind.ts'
import { MainStreamParser, type ParserMemory } from '../../src/qemu/main-stream.ts'
import { MultifdParser } from '../../src/qemu/multifd-channel.ts'
import { PreemptParser } from '../../src/qemu/preempt-channel.ts'
import { ReturnPathParser } from '../../src/qemu/return-path.ts'
import { doctored } from './doctored.ts'
import { type AnyParser, type TraceSink, traceOf } from './harness.ts'
import { LOADED_AT, loadedPages } from './loaded-pages.ts'
import { simpleMain, simpleMultifd, simplePreempt } from './simple-decoder.ts'

t.setTimeout(590_000) // the machine may be busy

/** What both index.json files say of a migration. */
interface MigrationNote {
  readonly name: string
  readonly capabilities: readonly string[]
  readonly streams: readonly {
    readonly channel: string
    readonly file?: string
    readonly lengthBytes: number
    readonly broken?: boolean
  }[]
}

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))

/** Cuts of all sizes from a byte to 100 KB, the same each time. */
function someCuts(input: Uint8Array): number[] {
  const cuts: number[] = []
  const rand = random(input.length)
  for (let at = 0; ; ) {
    at += 1 + rand(10 ** (1 + rand(5)))
    if (at >= input.length) return cuts
    cuts.push(at)
  }
}

/** Where two traces part, or ''. */
function unlike(a: readonly string[], b: readonly string[]): string {
  for (let at = 0; at < Math.max(a.length, b.length); at++) {
    if (a[at] !== b[at]) return `line ${at}: ${a[at]} | ${b[at]}`
  }
  return ''
}

/** The first 16 MB of the RAMBlock that holds the guest's RAM, as the lines of its channels rebuild them. */
class Rebuilt {
  /** Not zero, so that ZERO records count. */
  readonly ram = new Uint8Array(16 << 20).fill(0xcc)
  apply(lines: readonly string[], input: Uint8Array): void {
    let block = -1
    for (const line of lines) {
      const named = /^block (\d+) (pc\.ram|mem0) /.exec(line)
      if (named) block = Number(named[1])
      const page = /^(page|zero) (?:\d+-(\d+)|page) (\d+) 0x([0-9a-f]+)/.exec(line)
      if (!page || Number(page[3]) !== block) continue
      const offset = Number.parseInt(page[4]!, 16)
      const end = Number(page[2])
      if (page[1] === 'page') this.ram.set(input.subarray(end - 4096, end), offset)
      else this.ram.fill(0, offset, offset + 4096)
    }
  }
}

/** Parses all channels of a migration in cuts, against the simple decoder. */
function checkMigration(t: Tap, note: MigrationNote, folder: string): Rebuilt {
  const blocks = new BlockTable()
  const rebuilt = new Rebuilt()
  let names: string[] = []
  let ram = -1
  let memory: ParserMemory | undefined
  const order = ['main', 'recovery', 'multifd', 'preempt', 'return']
  const streams = note.streams.filter(stream => stream.file)
  streams.sort((a, b) => order.indexOf(a.channel) - order.indexOf(b.channel))
  const { capabilities } = note
  const postcopy = capabilities.includes('postcopy-ram')
  for (const { channel, file, broken, lengthBytes } of streams) {
    const input = zstdDecompressSync(readFileSync(folder + file))
    t.equal(input.length, lengthBytes, `all of ${file}`)
    if (channel !== 'return' && input.length > 0) t.equal(channelStart(input), channel)
    const cuts = someCuts(input)
    let parser: AnyParser | undefined
    const trace = <P extends AnyParser>(make: (sink: TraceSink) => P, compare = false): [P, string[]] => {
      const lines = traceOf(
        input,
        cuts,
        sink => {
          parser = make(sink)
          return parser
        },
        compare,
      )
      t.same(
        lines.filter(line => line.startsWith('degraded')),
        [],
        `${file} is understood`,
      )
      return [parser as P, lines]
    }
    if (channel === 'main' || channel === 'recovery') {
      const recovery = channel === 'recovery'
      const options = recovery ? { recovery: memory!, blocks } : { blocks }
      const [main, lines] = trace(sink => new MainStreamParser(sink, options), true)
      const layout = {
        ...(capabilities.includes('x-ignore-shared') ? { each: 8 } : {}),
        ...(note.name.includes('hugepages') ? { first: 8 } : {}),
      }
      const simple = simpleMain(input, layout, recovery ? { names, ram } : undefined)
      const found = lines.filter(line => (recovery ? /^(zero|page|opaque)/ : /^(block|zero|page|opaque)/).test(line))
      t.equal(unlike(found, simple.lines), '', `${found.length} records are the same in both decoders`)
      names = simple.names
      ram = simple.ram
      memory = main.memory()
      if (broken) t.match(main.finish(), { ramComplete: false, degradedAt: undefined })
      else {
        t.same(main.finish(), { cut: false, ramComplete: true, degradedAt: undefined })
        const end = capabilities.includes('background-snapshot') ? 'snapshot-devices' : 'ram-end'
        t.equal(
          lines.find(line => line.startsWith(`phase ${end}`)),
          `phase ${end} ${simple.ramEnd}`,
        )
        t.equal(lines.includes(`phase eof ${input.length}`), postcopy, 'EOF is seen in postcopy')
      }
      const { records, commands } = main.counts
      t.equal(records.xbzrle > 0, capabilities.includes('xbzrle'))
      t.equal(records.compress > 0, capabilities.includes('compress'))
      t.equal(commands[7], postcopy && !recovery ? 1 : 0)
      rebuilt.apply(lines, input)
    } else if (channel === 'multifd') {
      const [multifd, lines] = trace(sink => new MultifdParser(sink, blocks))
      if (multifd.counts.opaqueBytes === 0) {
        const bare = lines
          .filter(line => !line.startsWith('block'))
          .map(line => line.replace(/^(packet .*) -?\d+$/, '$1').replace(/^(zero page|page \S+) \d+ /, '$1 '))
        t.equal(unlike(bare, simpleMultifd(input)), '', `${bare.length} lines are the same in both decoders`)
        rebuilt.apply(lines, input)
      } else t.ok(lines.some(line => line.startsWith('compressed')))
      t.same(multifd.finish(), { cut: false, degradedAt: undefined })
      t.equal(multifd.counts.syncs > 0, true)
    } else if (channel === 'preempt') {
      const [, lines] = trace(sink => new PreemptParser(sink, blocks), true)
      const found = lines.filter(line => !line.startsWith('block'))
      t.equal(unlike(found, simplePreempt(input, names)), '', `${found.length} records are the same in both decoders`)
      rebuilt.apply(lines, input)
    } else {
      const [returnPath, lines] = trace(sink => new ReturnPathParser(sink))
      t.match(lines.at(-1), broken ? /^pong / : /^shut 0 /, `${lines.length} messages`)
      t.notOk(returnPath.midMessage)
    }
  }
  return rebuilt
}

type Tap = Pick<typeof t, 'equal' | 'same' | 'match' | 'ok' | 'notOk'>

t.test('recordings', t => {
  const folder = here('../vectors/qemu/streams/')
  const notes: MigrationNote[] = JSON.parse(readFileSync(`${folder}index.json`, 'utf8'))
  t.ok(notes.length > 0)
  const loaded = loadedPages()
  for (const note of notes) {
    t.test(note.name, t => {
      const { ram } = checkMigration(t, note, folder)
      // What was loaded into the guest must come out, unless it is compressed or not sent.
      if (/zlib|zstd|ignore-shared/.test(note.name)) return t.end()
      t.equal(Buffer.compare(ram.subarray(LOADED_AT, LOADED_AT + loaded.length), loaded), 0, 'the loaded pages')
      t.notOk(
        ram.subarray(LOADED_AT + loaded.length, 8 << 20).some(byte => byte !== 0),
        'zero pages behind them',
      )
      t.end()
    })
  }
  t.end()
})

const fixtures = here('../../pcap-fixtures/')
t.test('fixtures', { skip: existsSync(`${fixtures}index.json`) ? false : 'no pcap-fixtures/: make fixtures' }, t => {
  const notes: MigrationNote[] = JSON.parse(readFileSync(`${fixtures}index.json`, 'utf8'))
  t.ok(notes.length > 0)
  for (const note of notes) {
    t.test(note.name, t => {
      checkMigration(t, note, fixtures)
      t.end()
    })
  }
  t.end()
})

t.test('unknown sections between those of ram', t => {
  const rand = random(1)
  const folders = [here('../vectors/qemu/streams/'), fixtures].filter(folder => existsSync(`${folder}index.json`))
  let streams = 0
  for (const folder of folders) {
    const notes: MigrationNote[] = JSON.parse(readFileSync(`${folder}index.json`, 'utf8'))
    for (const { name, capabilities, streams: channels } of notes) {
      // The layout of these block lists is told to the simple decoder, not found; and footers are what it goes by.
      if (/ignore-shared|hugepages|no-footers/.test(name)) continue
      const file = channels.find(stream => stream.channel === 'main' && stream.file && !stream.broken)?.file
      if (!file) continue
      const whole = zstdDecompressSync(readFileSync(folder + file))
      const input = doctored(whole, rand)
      const simple = simpleMain(input)
      let parser: MainStreamParser | undefined
      const lines = traceOf(
        input,
        someCuts(input),
        sink => {
          parser = new MainStreamParser(sink)
          return parser
        },
        true,
      )
      const found = lines.filter(line => /^(block|zero|page|opaque)/.test(line))
      t.equal(unlike(found, simple.lines), '', `${name}: ${found.length} records are the same in both decoders`)
      const before = simpleMain(whole)
      t.equal(simple.lines.length, before.lines.length, 'as many as without')
      t.match(parser!.finish(), { ramComplete: true, degradedAt: undefined })
      t.match(lines.filter(line => line.startsWith('strayed')).length, /^[12]$/, 'told once each')
      const end = capabilities.includes('background-snapshot') ? 'snapshot-devices' : 'ram-end'
      t.ok(lines.includes(`phase ${end} ${simple.ramEnd}`))
      const hostile = doctored(whole, rand, true)
      traceOf(hostile, someCuts(hostile), sink => new MainStreamParser(sink), true) // throws where an event is wrong
      streams++
    }
  }
  t.ok(streams > 10, `${streams} streams`)
  t.end()
})

t.test('sections of real QEMUs under names that nobody knows', t => {
  const folder = here('../vectors/qemu/streams/')
  const notes: MigrationNote[] = JSON.parse(readFileSync(`${folder}index.json`, 'utf8'))
  const names: [string, string][] = [
    ['7.2-dirty-bitmaps', 'dirty-bitmap'],
    ['10-dirty-bitmaps-postcopy', 'dirty-bitmap'],
    ['7.2-block', 'block'],
    ['10-virtio-mem', 'virtio-mem-device-early'],
  ]
  for (const [name, idstr] of names) {
    const main = notes.find(note => note.name === name)!.streams.find(({ channel }) => channel === 'main')!
    const input = zstdDecompressSync(readFileSync(folder + main.file!))
    const known = traceOf(input, [], sink => new MainStreamParser(sink))
    const at = input.indexOf(idstr)
    t.ok(at > 0, `${name} has a section of ${idstr}`)
    input[at] = 'x'.charCodeAt(0)
    const lines = traceOf(input, someCuts(input), sink => new MainStreamParser(sink), true)
    const strayed = lines.filter(line => line.startsWith('strayed'))
    t.match(strayed.join(), new RegExp(`^strayed \\d+ .*x${idstr.slice(1)}"`), 'told once')
    const rest = lines.filter(line => !line.startsWith('strayed'))
    // Behind END of ram, in postcopy, nobody looks for EOF any more.
    const wanted = name.includes('postcopy') ? known.filter(line => !line.startsWith('phase eof')) : known
    t.equal(unlike(rest, wanted), '', 'and all else as where it is known')
  }
  t.end()
})

const lab = here('../../.cache/lab/streams/')
t.test('lab', { skip: existsSync(`${lab}manifest.json`) ? false : 'no streams of scripts/lab/' }, t => {
  const { streams } = JSON.parse(readFileSync(`${lab}manifest.json`, 'utf8')) as {
    streams: { name: string; file: string; bytes: number }[]
  }
  const chunk = new Uint8Array(1 << 20)
  for (const { name, file, bytes } of streams) {
    if (!existsSync(lab + file)) continue
    const counted = { zero: 0, page: 0, end: 0, bytes: 0 }
    const count = (start: number, end: number) => {
      if (start < counted.end) throw new Error(`${start} lies before ${counted.end}`)
      counted.end = end
      counted.bytes += end - start
    }
    const parser = new MainStreamParser({
      block: () => {},
      zeroRecord: (start, end) => {
        counted.zero++
        count(start, end)
      },
      pageRecord: (start, end) => {
        counted.page++
        count(start, end)
      },
      opaquePage: () => {},
      phase: () => {},
      degraded: (position, reason) => t.fail(`${reason} at ${position}`),
    })
    const descriptor = openSync(lab + file, 'r')
    for (let length = 1; length > 0; ) {
      length = readSync(descriptor, chunk)
      parser.push(chunk, 0, length)
    }
    closeSync(descriptor)
    t.equal(parser.position, bytes, name)
    t.same(parser.finish(), { cut: false, ramComplete: true, degradedAt: undefined })
    t.same([parser.counts.records.zero, parser.counts.records.page], [counted.zero, counted.page])
    t.ok(counted.bytes > 0.98 * bytes, 'nearly all of it is records')
  }
  t.end()
})
