/** The map of a guest's memory: cells by hand, of any size, and recorded streams page by page against a simple decoder. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { MAP_CELLS, MAPPED, MemoryMap } from '../../src/codec/memory-map.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { simpleMain, simpleMultifd } from '../qemu-wire/simple-decoder.ts'
import { poolOf, Sender, SIMD, templatePages } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

const PAGE = 4096
const { EMPTY, KNOWN, SENT } = MAPPED

function mapOf(pages: readonly number[]): MemoryMap {
  const blocks = pages.map((count, i) => ({ idstr: `b${i}`, lengthBytes: count * PAGE }))
  return new MemoryMap(new BlockTable(blocks, true))
}

const sum = (shares: readonly number[]): number => shares.reduce((a, b) => a + b, 0)

t.test('cells are filled by what became of their pages', t => {
  const map = mapOf([MAP_CELLS * 4 - 2, 1])
  t.match(map.status(), { bytes: (MAP_CELLS * 4 - 1) * PAGE, cellBytes: 4 * PAGE }, 'nothing yet')
  t.equal(map.status()!.empty.length, MAP_CELLS)
  map.add(0, 0, 2, EMPTY)
  map.add(0, 2, 1, KNOWN)
  map.add(0, 3, 1, SENT)
  map.add(0, 6, 12, EMPTY) // from the middle of one cell to that of another
  map.add(0, 3, 1, SENT) // again
  map.add(1, 0, 1, KNOWN)
  map.add(0, MAP_CELLS * 4 - 3, 1, SENT)
  const { empty, known, sent } = map.status()!
  t.same(empty.slice(0, 6), [50, 50, 100, 100, 50, 0])
  t.same(known.slice(0, 3), [25, 0, 0])
  t.same(sent.slice(0, 3), [50, 0, 0])
  t.same(
    [empty.at(-1), known.at(-1), sent.at(-1)],
    [0, 33, 34],
    'the last has three pages; rounded so that sums are true',
  )
  t.end()
})

t.test('as a plain count has it, whatever comes in whatever order', t => {
  const rand = random(41)
  for (let round = 0; round < 200; round++) {
    const sizes = Array.from({ length: 1 + rand(4) }, () => rand(3) * rand(3000))
    const map = mapOf(sizes)
    const total = sum(sizes)
    if (total === 0) {
      map.add(0, 0, 1, SENT)
      t.equal(map.status(), undefined, 'no memory')
      continue
    }
    const plain = [EMPTY, KNOWN, SENT].map(() => new Uint32Array(total))
    for (let i = 0; i < 300; i++) {
      const block = rand(sizes.length)
      if (sizes[block] === 0) continue
      const page = rand(sizes[block]!)
      const count = 1 + rand(Math.min(sizes[block]! - page, rand(4) === 0 ? 3000 : 5))
      const kind = rand(3)
      const from = sum(sizes.slice(0, block)) + page
      for (let at = from; at < from + count; at++) plain[kind]![at]!++
      map.add(block, page, count, kind)
    }
    const { cellBytes, empty, known, sent } = map.status()!
    const of = cellBytes / PAGE
    const wrong = empty.flatMap((_, cell) => {
      const size = Math.min(of, total - cell * of)
      const shares = plain.map(counts => (100 * sum([...counts.subarray(cell * of, cell * of + of)])) / size)
      const rounded = [0, 1, 2].map(kind => Math.round(sum(shares.slice(0, kind + 1))))
      const want = [rounded[0], rounded[1]! - rounded[0]!, rounded[2]! - rounded[1]!]
      const got = [empty[cell], known[cell], sent[cell]]
      return want.join() === got.join() ? [] : [`round ${round}, cell ${cell}: ${got}, not ${want}`]
    })
    if (wrong.length > 0) t.same(wrong, [])
  }
  t.end()
})

t.test('a guest of any size takes as much room', t => {
  for (const bytes of [PAGE, 64 * PAGE, 2 ** 32, 2 ** 47, 2 ** 53 - PAGE]) {
    const blocks = Array.from({ length: 20 }, (_, i) => ({ idstr: `b${i}`, lengthBytes: bytes }))
    const map = new MemoryMap(new BlockTable(blocks, true))
    for (const [block, page] of [
      [0, 0],
      [19, bytes / PAGE - 1],
      [19, 2 ** 41], // behind the end of it
      [300, 2 ** 41], // of no RAMBlock
    ] as const)
      map.add(block, page, 2 ** 30, SENT)
    const { empty, known, sent } = map.status()!
    t.ok((empty.length <= MAP_CELLS && empty.length > MAP_CELLS / 2 - 1) || bytes < 2 ** 20, `${empty.length} cells`)
    t.equal(sent.length, empty.length)
    t.ok(sum(sent) >= 0 && sum(known) === 0 && sent.every(Number.isSafeInteger))
  }
  const table = new BlockTable()
  const map = new MemoryMap(table)
  map.add(0, 0, 1, SENT)
  t.equal(map.status(), undefined, 'the block list has not come')
  const name = Buffer.from('pc.ram')
  table.declare(name, 0, name.length, 8 * PAGE)
  table.complete = true
  map.add(0, 7, 1, SENT)
  t.same(map.status()!.sent, [0, 0, 0, 0, 0, 0, 0, 100])
  t.end()
})

// --- through the encoder

const stream = (name: string): Buffer =>
  zstdDecompressSync(readFileSync(fileURLToPath(new URL(`../../pcap-fixtures/streams/${name}.zst`, import.meta.url))))

/** Which pages it was told of, each as 'block offset'. */
class Told extends MemoryMap {
  readonly told: [string, number][] = []
  override add(block: number, page: number, count: number, kind: number): void {
    for (let i = 0; i < count; i++) this.told.push([`${block} 0x${((page + i) * PAGE).toString(16)}`, kind])
    super.add(block, page, count, kind)
  }
}

const offsetOf = (place: string): string => place.replace(/^\d+ /, '')

const CHANNELS: readonly { readonly kind: ChannelKind; readonly name: string }[][] = [
  [{ kind: 'main', name: 'qemu-7.2-precopy.main' }],
  [{ kind: 'main', name: 'qemu-10-return-path.main' }],
  [{ kind: 'main', name: 'qemu-10-xbzrle.main' }],
  [{ kind: 'main', name: 'qemu-7.2-compress.main' }],
  [
    { kind: 'main', name: 'qemu-10-multifd.main' },
    { kind: 'multifd', name: 'qemu-10-multifd.2-multifd' },
    { kind: 'multifd', name: 'qemu-10-multifd.3-multifd' },
  ],
]

for (const channels of CHANNELS) {
  t.test(`${channels[0]!.name}: each page that passed, where it lies, whatever the batches are`, t => {
    for (const seed of [1, 2, 3]) {
      const rand = random(seed)
      const pool = poolOf('encoder', SIMD, { templates: templatePages(8), ring: 512, places: 4096 })
      const sender = new Sender(pool, EFFORTS[3]!)
      let map: Told | undefined
      const wanted: string[] = []
      for (const { kind, name } of channels) {
        const bytes = stream(name)
        const lines = kind === 'main' ? simpleMain(bytes).lines : simpleMultifd(bytes)
        const pages = lines.flatMap(
          line => /^(?:zero|page|opaque) (?:page |\d+-\d+ )?(.*?)(?: named)?$/.exec(line) ?? [],
        )
        // a packet says its RAMBlock, which the simple decoder leaves out
        const places = pages.filter((_, i) => i % 2 === 1)
        wanted.push(...(channels.length > 1 ? places.map(offsetOf) : places))
        const channel = sender.open(kind)
        map ??= new Told(sender.blocksOf(1))
        channel.flow.map = map
        for (let at = 0; at < bytes.length; ) {
          const take = Math.min(1 + rand(rand(3) === 0 ? 200 : 200_000), channel.room, bytes.length - at)
          channel.push(bytes.subarray(at, at + take))
          at += take
          // released: cut in the middle of a record, of which the rest goes raw
          sender.sendNow(channel, at === bytes.length || rand(3) === 0)
        }
        t.match(channel.flow.waiting, 0)
      }
      t.same(
        map!.told.map(([place]) => (channels.length > 1 ? offsetOf(place) : place)).sort(),
        wanted.sort(),
        `${wanted.length} pages`,
      )
      const { empty, known, sent } = map!.status()!
      const kinds = new Set(map!.told.map(([, kind]) => kind))
      t.ok(kinds.has(EMPTY) && kinds.has(SENT) && sum(empty) > 0 && sum(sent) > 0)
      t.equal(sum(known) > 0, kinds.has(KNOWN))
    }
    t.end()
  })
}
