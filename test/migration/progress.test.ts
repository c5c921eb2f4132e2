/** How far a migration is said to be, and how long it will take, over a model of QEMU's passes whose facts are known. */
import t from 'tap'
import { PAGE_SIZE } from '../../src/codec/wire.ts'
import { type MigrationProgress, Progress } from '../../src/migration/progress.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'

/** 400 MB and a small RAMBlock behind it. */
const PAGES = [100_000, 1000]
const ALL = PAGES[0]! + PAGES[1]!
const BATCH = 256

const guest = (): BlockTable =>
  new BlockTable(
    PAGES.map((pages, i) => ({ idstr: `b${i}`, lengthBytes: pages * PAGE_SIZE })),
    true,
  )

interface Said {
  readonly ms: number
  readonly status: MigrationProgress
  readonly isLine: boolean
}

/**
 * A guest of which QEMU sends `pagesPerMs`, and that dirties pages evenly over its memory: in each pass of QEMU as many
 * as `dirty` says of the time that the pass before took, until `passes` are over.
 */
function run(passes: number, dirty: (ms: number) => number, channels = 1, pagesPerMs = 10): Said[] {
  const progress = new Progress<object>(1000)
  const lanes = Array.from({ length: channels }, () => ({}))
  const counted = { pages: 0, rawBytes: 0, packedBytes: 0 }
  const said: Said[] = []
  let ms = 1000
  let batches = 0
  let pages = ALL
  for (let pass = 1; pass <= passes; pass++) {
    const beganMs = ms
    for (let sent = 0; sent < pages; ) {
      const take = Math.min(BATCH, pages - sent)
      sent += take
      ms += take / pagesPerMs
      counted.pages += take
      counted.rawBytes += take * 4104
      counted.packedBytes += take * 1000
      const last = Math.floor(((sent - 1) / pages) * ALL)
      const place = last < PAGES[0]! ? { block: 0, page: last } : { block: 1, page: last - PAGES[0]! }
      const isLine = progress.sent(lanes[batches++ % channels]!, place, GUEST, counted, ms)
      said.push({ ms, status: progress.status(counted, ms)!, isLine })
    }
    pages = Math.floor(dirty(ms - beganMs))
  }
  return said
}
const GUEST = guest()
const endMs = (said: readonly Said[]): number => said.at(-1)!.ms
/** As it was said when so much of the pass was done. */
const when = (said: readonly Said[], pass: number, share: number): Said =>
  said.find(({ status }) => status.pass === pass && status.share >= share)!

t.test('the first pass: its share, its rates, what is left of it', t => {
  const said = run(1, () => 0)
  t.equal(
    said.every(({ status }) => status.pass === 1),
    true,
  )
  const half = when(said, 1, 0.5)
  t.ok(Math.abs(half.status.share - 0.5) < 0.01)
  t.ok(Math.abs(half.status.bytesPerSecond / 41_040_000 - 1) < 0.05, `${half.status.bytesPerSecond} bytes a second`)
  t.ok(Math.abs(half.status.wanBytesPerSecond / 10_000_000 - 1) < 0.05)
  const left = (endMs(said) - half.ms) / 1000
  t.ok(Math.abs(half.status.passSeconds! / left - 1) < 0.05, `${half.status.passSeconds} of ${left} s`)
  t.notOk('seconds' in half.status, 'what the guest writes is not known')
  t.equal(said[0]!.status.passSeconds, undefined, 'nothing is said of a moment')
  t.end()
})

for (const channels of [1, 8]) {
  t.test(`passes that shrink, over ${channels} channels`, t => {
    // a guest that dirties 4 pages a millisecond, of 10 that cross: each pass is 0.4 of the one before
    const said = run(9, ms => 4 * ms, channels)
    t.same([...new Set(said.map(({ status }) => status.pass))].slice(0, 5), [1, 2, 3, 4, 5])
    const half = when(said, 2, 0.5)
    t.equal(half.status.converges, true)
    // QEMU stops the guest at 0.3 s of pages: pass 1 takes 10.1 s, so the sixth (0.1 s) is not begun
    const stop = said.findLast(({ status }) => status.pass <= 4)!
    const left = (stop.ms - half.ms) / 1000
    t.ok(Math.abs(half.status.seconds! / left - 1) < 0.15, `${half.status.seconds} of ${left} s`)
    t.end()
  })
}

t.test('passes that do not shrink', t => {
  const said = run(4, ms => 10.5 * ms)
  const half = when(said, 2, 0.5).status
  t.equal(half.converges, false)
  t.notOk('seconds' in half)
  t.ok(half.passSeconds! > 0)
  t.end()
})

t.test('a guest that begins to write', t => {
  const said = run(4, ms => (ms < 10_200 ? 2 * ms : 0), 1)
  t.equal(when(said, 2, 0.5).status.converges, true)
  t.end()
})

t.test('lines: a tenth of a pass apart, and ten seconds', t => {
  const fast = run(1, () => 0, 1, 100).filter(({ isLine }) => isLine)
  t.equal(fast.length, 0, 'nothing of a second')
  const slow = run(2, ms => ms / 2, 1, 0.5).filter(({ isLine }) => isLine)
  t.ok(slow.length >= 12 && slow.length <= 22, `${slow.length} lines`)
  slow.slice(1).forEach(({ ms, status }, i) => {
    const before = slow[i]!
    if (ms - before.ms < 10_000) t.fail('sooner')
    if (status.pass === before.status.pass && Math.floor(status.share * 10) === Math.floor(before.status.share * 10))
      t.fail('the same tenth')
  })
  t.end()
})

t.test('a link that stands still', t => {
  const progress = new Progress<object>(0)
  const counted = { pages: 256, rawBytes: 1 << 20, packedBytes: 1 << 19 }
  progress.sent({}, { block: 0, page: 50_000 }, GUEST, counted, 1000)
  const rate = (ms: number): number => progress.status(counted, ms)!.bytesPerSecond
  t.equal(rate(1000), 1 << 20)
  t.ok(rate(60_000) < 20_000, 'its rate falls')
  t.end()
})

t.test('where the memory is not known nothing is said', t => {
  const progress = new Progress<object>(0)
  const counted = { pages: 256, rawBytes: 1 << 20, packedBytes: 1 << 19 }
  const growing = guest()
  growing.complete = false
  progress.sent({}, { block: 0, page: 1 }, growing, counted, 1000)
  progress.sent({}, undefined, GUEST, counted, 1000)
  t.equal(progress.status(counted, 2000), undefined)
  t.end()
})
