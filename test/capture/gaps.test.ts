/** Captures that lack packets: a lost packet costs what was lost, whatever its place, and what is missing is said. */
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { HeldSegments } from '../../src/capture/held-segments.ts'
import { REORDER_LENGTH_MAX } from '../../src/capture/limits.ts'
import { MendedBytes } from '../../src/capture/mended-bytes.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { pageferry } from '../template/cli-harness.ts'
import {
  ACK,
  connection,
  failure,
  migration,
  multifdChannel,
  PAGE,
  type Packet,
  page,
  pcap,
  random,
  scratch,
} from '../template/makers.ts'
import { pageNumbers } from './page-numbers.ts'

t.setTimeout(590_000) // the machine may be busy
const { folder, put } = scratch(t.teardown)

/** The numbers of the pages that a capture gives; what it tells beside them goes to `notes`. */
function pagesOf(bytes: Buffer, notes: string[] = []): Promise<number[]> {
  return pageNumbers(put('input', bytes), { note: ({ text }) => void notes.push(text) })
}

const IDS = Array.from({ length: 600 }, (_, i) => i + 1)
const STREAM = migration(IDS.map(page))
/** Where the page of each id stands in the stream. */
const PLACES = new Map(IDS.map(id => [id, STREAM.indexOf(page(id))]))

/** The ids of pages whose record, head and all, has no byte in a hole. */
function whole(holes: readonly (readonly [from: number, to: number])[], head = 8): number[] {
  return IDS.filter(id => {
    const at = PLACES.get(id)!
    return holes.every(([from, to]) => at + PAGE <= from || at - head >= to)
  })
}

t.test('a lost packet of a main stream costs the pages that it is part of', async t => {
  let lostPackets = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 100, max: 20_000 }), { minLength: 1, maxLength: 4 }),
      fc.array(fc.double({ min: 0.01, max: 0.9, noNaN: true }), { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      async (lengths, lost, initial) => {
        const packets = connection(STREAM, { lengths, initial })
        // Far enough from each other that records between them confirm each other.
        const holes: [number, number][] = []
        for (const share of lost.toSorted((a, b) => a - b)) {
          const index = Math.max(2, Math.floor(share * packets.length))
          const from = (packets[index]!.sequence - initial) >>> 0
          const to = from + (packets[index]!.payload?.length ?? 0)
          if (from < 5000 || from - (holes.at(-1)?.[1] ?? 0) < 60_000) continue
          holes.push([from, to])
          packets.splice(index, 1)
        }
        lostPackets += holes.length
        const found = await pagesOf(pcap(packets))
        return found.join() === whole(holes).join()
      },
    ),
    { numRuns: 60 },
  )
  t.ok(lostPackets > 60, `any packet but the first: ${lostPackets} of them`)
})

t.test('what is missing is said, once', async t => {
  const without = (...indices: number[]): Packet[] => connection(STREAM).filter((_, i) => !indices.includes(i))
  const notes: string[] = []
  const found = await pagesOf(pcap(without(100, 400, 401)), notes)
  t.ok(found.length >= 600 - 6 && found.length < 600, `${found.length} pages`)
  t.equal(notes.length, 1)
  t.match(
    notes[0],
    /^10.0.0.1:50000 > .*: 4,344 bytes are missing in 2 places, the first at byte 143,352: the capture lacks packets/,
  )

  const first = pcap(without(1))
  t.equal(await failure(() => pagesOf(first)), 'CAPTURE_GAP at 0', 'without its beginning nothing can be read')
  const early = connection(STREAM, { lengths: [30] }).filter((_, i) => i !== 3)
  t.match(await failure(() => pagesOf(pcap(early))), /^CAPTURE_GAP at 60/, 'nor without the list of RAMBlocks')
  const cut = connection(STREAM).map(packet => ({ ...packet, snap: 96 }))
  t.match(await failure(() => pagesOf(pcap(cut))), /^CAPTURE_GAP/, 'a capture of heads')
  const rotated = connection(STREAM).slice(0, 300)
  const error = await pagesOf(pcap(rotated)).catch(caught => caught)
  t.match(error, { code: 'QEMU_TRUNCATED', action: /mergecap/ }, 'the first file of several')
})

t.test('the stream that an estimate reads on goes on behind a hole anywhere', async t => {
  // Two RAMBlocks, the small one last: names, ends and heads of sections are what a hole may take.
  const small = { idstr: 'vga.vram', lengthBytes: 8 * PAGE }
  const blocks = [{ idstr: 'pc.ram', lengthBytes: 300 * PAGE }, small]
  const stream = new StreamEmitter().header().ramStart(2, blocks).eos().footer(2)
  for (let pass = 0; pass < 2; pass++) {
    for (const first of [1, 101, 201]) {
      stream.sectionPart(2)
      for (let id = first; id < first + 20; id++) stream.page(id * PAGE, page(id), id === 1 ? 'pc.ram' : undefined)
      stream.eos().footer(2)
    }
    stream.sectionPart(2)
    for (let i = 0; i < 8; i++) stream.page(i * PAGE, page(500 + i), i === 0 ? small.idstr : undefined)
    stream.eos().footer(2)
  }
  stream.sectionEnd(2).eos().footer(2).sectionFull(5, 'timer', 0, 2).raw(Buffer.alloc(900, 1)).footer(5).eof('{}')
  const bytes = Buffer.from(stream.bytes())

  const quiet = { block() {}, zeroRecord() {}, opaquePage() {}, phase() {} }
  let least = Number.POSITIVE_INFINITY
  const wrong: string[] = []
  // Where pages meet, and so where sections do; the block list has to be there, and two records that show the way behind.
  const meetings: number[] = []
  const lookout = new MainStreamParser({ ...quiet, degraded() {}, pageRecord: start => meetings.push(start) })
  lookout.push(bytes, 0, bytes.length)
  for (const meeting of meetings.slice(0, -10)) {
    for (const [before, length] of [
      [0, 5],
      [5, 5],
      [10, 5],
      [10, 20],
      [18, 4200],
      [4000, 12_000],
    ] as const) {
      const from = Math.max(meeting - before, meetings[0]!)
      const out: Buffer[] = []
      const mended = new MendedBytes('main', piece => out.push(piece))
      mended.push(bytes, 0, from)
      mended.gap(length, 'test')
      mended.push(bytes, from + length, bytes.length - from - length)
      mended.end()
      const result = Buffer.concat(out)
      let pages = 0
      const degraded: string[] = []
      const reader = new MainStreamParser({
        ...quiet,
        degraded: (at, reason) => degraded.push(`${at}: ${reason}`),
        pageRecord: (_start, end) => {
          if (page(result.readUInt32LE(end - PAGE + 8)).equals(result.subarray(end - PAGE, end))) pages++
        },
      })
      reader.push(result, 0, result.length)
      const cost = meetings.length - pages - Math.ceil(length / PAGE)
      if (degraded.length > 0 || cost > 3 || result.length > bytes.length + 30) {
        wrong.push(`${from} + ${length}: ${pages} pages, ${result.length} bytes, ${degraded}`)
      }
      least = Math.min(least, pages)
    }
  }
  t.same(wrong, [], 'it is understood to its end, and nothing stands in it twice')
  t.ok(least > meetings.length - 8, `${least} of ${meetings.length} pages at least`)
})

t.test('memory that looks like records', async t => {
  // Pages of a file that is itself a stream: zero records one after the other.
  const decoy = Buffer.alloc(PAGE)
  for (let at = 0, i = 0; at + 9 <= PAGE; at += 9, i++) decoy.writeBigUInt64BE(BigInt(i * PAGE + 0x22), at)
  const bodies = IDS.map(id => (id % 50 > 40 ? decoy : page(id)))
  const stream = migration(bodies)
  let most = 0
  for (let index = 60; index < 200; index++) {
    const packets = connection(stream, { lengths: [12_000] }).filter((_, i) => i !== index)
    const input = await PageInput.open(put('decoys', pcap(packets)))
    let good = 0
    for await (const batch of input.pages()) {
      for (let i = 0; i < batch.count; i++) {
        const bytes = batch.bytes.subarray(i * PAGE, (i + 1) * PAGE)
        const id = bytes.readUInt32LE(8)
        if (id >= 1 && id <= 600 && id % 50 <= 40 && page(id).equals(bytes)) good++
      }
      batch.release()
    }
    most = Math.max(most, bodies.filter(body => body !== decoy).length - good)
  }
  t.ok(most < 40, `a false start costs the pages up to the next true one: ${most} at most`)
})

t.test('a lost packet of a multifd channel', async t => {
  const main = connection(migration([]), { from: 1 })
  const bytes = multifdChannel(0, IDS.map(page))
  const next = random(5)
  for (let round = 0; round < 40; round++) {
    const packets = connection(bytes, { from: 2, lengths: [1000 + next(5000)] })
    const index = 2 + next(packets.length - 4)
    const from = packets[index]!.sequence - 1000
    const to = from + packets[index]!.payload!.length
    packets.splice(index, 1)
    const found = await pagesOf(pcap([...main, ...packets]))
    // A packet of the channel has a header of 1344 bytes and 128 pages.
    const lost = IDS.filter(id => {
      const place = 64 + Math.floor((id - 1) / 128) * (1344 + 128 * PAGE)
      const body = place + 1344 + ((id - 1) % 128) * PAGE
      const headerHit = from < place + 1344 && to > place
      return headerHit || (from < body + PAGE && to > body)
    })
    const expected = IDS.filter(id => !lost.includes(id))
    if (found.join() !== expected.join()) t.fail(`[${from}, ${to}): ${found.length} pages, not ${expected.length}`)
  }
  t.pass('costs torn pages, or the pages whose header it had')
})

t.test('an estimate of a capture that lacks packets', async t => {
  const path = put('lossy.pcap', pcap(connection(STREAM).filter((_, i) => i % 150 !== 75)))
  const { status, out, err } = await pageferry('estimate', path, '--json')
  t.equal(status, 0)
  const [{ qemuBytes, degraded, pages }] = JSON.parse(out)
  t.equal(degraded, undefined, 'is understood to the end')
  t.ok(qemuBytes > STREAM.length * 0.97 && qemuBytes < STREAM.length, `${qemuBytes} of ${STREAM.length} bytes`)
  t.ok(pages.compressed + pages.incompressible + pages.patched + pages.earlier > 560)
  t.match(err, /bytes are missing in \d+ places/)
  const encode = await pageferry('encode', path, '-o', join(folder, 'out'))
  t.equal(encode.status, 3, 'what is encoded is the stream to the byte, or nothing')
  t.match(encode.err, /bytes are missing.*\nhint: capture again/)
})

t.test('segments in any order cost the same', async t => {
  const held = new HeldSegments()
  const count = 200_000
  for (let i = count - 1; i >= 0; i--) held.add((2 ** 32 - 100_000 + i) >>> 0, Buffer.of(i & 255))
  held.add(50, Buffer.of(1, 2, 3))
  held.add(50, Buffer.of(1, 2))
  let wrong = 0
  for (let i = 0; i < count; i++) {
    if (held.first !== (2 ** 32 - 100_000 + i) >>> 0 || held.take()[0] !== (i === 100_050 ? 1 : i & 255)) wrong++
  }
  t.same([wrong, held.empty, held.cost], [0, true, 0], 'ascending, across the wrap; twins once')

  const small = Array.from({ length: 30_000 }, (_, i): Packet => {
    return { from: 9, to: 4444, sequence: 2000 + 2 * i, flags: ACK, payload: Buffer.of(1) }
  })
  const opened = connection(STREAM.subarray(0, 1000), { from: 9, fin: false })
  const before = process.memoryUsage().rss
  await failure(() => pagesOf(pcap([...opened, ...small.toReversed()])))
  t.ok(process.memoryUsage().rss - before < 4 * REORDER_LENGTH_MAX, 'small segments count with what they cost')
  const reversed = connection(STREAM, { lengths: [700] })
  const found = await pagesOf(pcap([reversed[0]!, ...reversed.slice(1).toReversed()]))
  t.same(found, IDS, 'a capture in reverse order')
})
