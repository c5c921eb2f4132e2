/** A disk that is larger than the ring, and the memory behind it, through both daemons that keep its blocks. */
import { createHash, randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { syntheticStream } from '../../scripts/harness/qemu/stream-emitter.ts'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import type { KeptBlocks } from '../../src/transfer/cold/kept-blocks.ts'
import { KeptSpace } from '../../src/transfer/cold/kept-space.ts'
import type { OpenPool } from '../../src/transfer/pool.ts'
import { until } from '../helpers/until.ts'
import { Daemons, type DaemonsOptions } from './daemons.ts'
import { NBD_SKIP, Nbdkit, nbdcopy } from './nbd.ts'

t.setTimeout(590_000)

const PAGE = 4096
/** A ring of 1 MiB, a disk of 8. */
const RING_PAGES = 256
const BLOCKS = 2048
const disk = randomBytes(BLOCKS * PAGE)

/** A page cache: half of the disk, in another order. */
const stream = syntheticStream(
  [{ idstr: 'pc.ram', lengthBytes: disk.length }],
  [
    Array.from({ length: BLOCKS / 2 }, (_, i) => {
      const block = (i * 37) % BLOCKS
      return { idstr: 'pc.ram', offset: i * PAGE, body: disk.subarray(block * PAGE, (block + 1) * PAGE) }
    }),
  ],
)

const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
/** So many blocks for one session, in a folder. */
const space = (folder: string, blocks = 4 * BLOCKS): KeptSpace =>
  new KeptSpace(folder, 2 * blocks * PAGE, () => 1e12, 1)

interface Run {
  readonly session: { readonly options: { readonly pool: OpenPool } }
}

/** What both halves of the session have kept. */
function keptOf({ source, destination }: Daemons): readonly (KeptBlocks | undefined)[] {
  const { runs } = source as unknown as { runs: { all: readonly Run[] } }
  const far = destination as unknown as { runs: Map<unknown, Run> }
  return [runs.all[0]!, [...far.runs.values()][0]!].map(({ session }) => session.options.pool.cold?.kept)
}

/** Memories whose disks are waited for, however busy the machine is. */
const PATIENT = { setBytes: 1e9, farSetBytes: 1e9 }
/** A link that is waited for: else nothing is kept. */
const SLOW = 4e6
const NONE = [0, 0] as const
/** Those that were cut while their client paused went as they are. */
const MOST = 0.9 * BLOCKS
const ALL = [MOST, MOST] as const
const KEPT_NOT = 'blocks of disks are not kept'

interface Moved {
  /** That one of them keeps nothing. */
  readonly warned: readonly string[]
  /** Of the memory: bytes on the WAN as the link saw them, and pages that were found. */
  readonly wanBytes: number
  readonly found: number
}

/** Moves the disk, then the memory; both arrive as they are. @param written blocks that each side's disk takes */
async function move(
  t: Test,
  options: DaemonsOptions,
  written: readonly [number, number],
  between?: (pair: Daemons) => void,
): Promise<Moved> {
  const near = join(t.testdir(), 'near')
  writeFileSync(near, disk)
  const warned: string[] = []
  const events = new Events()
  events.subscribe(({ level, event }: SiteEvent) => level === 'warn' && event === KEPT_NOT && warned.push(event))
  await using kit = await Nbdkit.start('memory', String(disk.length))
  await using pair = await Daemons.start({
    disks: `unix:${kit.socket}`,
    ringPages: RING_PAGES,
    effort: 3,
    rate: SLOW,
    ...PATIENT,
    events,
    ...options,
  })
  await nbdcopy(near, `nbd://127.0.0.1:${pair.diskPort}`, '--connections=1', '--flush')
  await until('both summaries', () => pair.disksEnded.length === 2)
  const available = () => keptOf(pair).map(kept => kept?.available ?? 0)
  await until(
    () => `${written} blocks to be written: ${available()} are`,
    () => available().every((count, side) => count >= written[side]!),
  )
  const before = pair.wan.bytes
  const qemu = await pair.dial()
  qemu.resume()
  if (between) {
    qemu.write(stream.subarray(0, stream.length / 2))
    await until('some of it', () => (pair.target.received[0]?.length ?? 0) > stream.length / 4)
    between(pair)
    qemu.end(stream.subarray(stream.length / 2))
  } else qemu.end(stream)
  await until('the stream', () => pair.target.received[0]?.length === stream.length)
  t.equal(digest(pair.target.received[0]!), digest(stream), 'the memory is what it was')
  pair.target.sockets[0]!.end()
  const summary = await until('its summary', () => pair.summaries[0])
  return { warned, wanBytes: pair.wan.bytes - before, found: summary.pages.earlier }
}

t.test('memory finds blocks that have left the ring long ago', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const without = await move(t, {}, NONE)
  t.ok(without.wanBytes > 0.8 * stream.length, `${without.wanBytes} of ${stream.length} without`)
  const { wanBytes, found, warned } = await move(t, { kept: space(folder), farKept: space(folder) }, ALL)
  t.ok(wanBytes < 0.3 * stream.length, `${wanBytes} of ${stream.length} with`)
  t.ok(found > 0.7 * (BLOCKS / 2), `${found} pages`)
  t.same(warned, [])
})

t.test('one side alone keeps nothing', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  for (const options of [{ kept: space(folder) }, { farKept: space(folder) }]) {
    const { found, warned } = await move(t, options, NONE)
    t.ok(found < 200, `${found} pages`)
    t.same(warned, [])
  }
})

t.test('fewer than the disk has: the last ones are found', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  // what comes before the threads that write have started has no room: on a busy host that takes seconds
  const { found } = await move(t, { kept: space(folder, 1024), farKept: space(folder), rate: 5e5 }, [256, 256])
  t.ok(found > 20 && found < 600, `${found} pages`)
})

t.test('a WAN that is cut meanwhile', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const options = { kept: space(folder), farKept: space(folder), rate: 2e6 }
  const { found } = await move(t, options, ALL, pair => pair.wan.cut())
  t.ok(found > 0.2 * (BLOCKS / 2), `${found} pages`)
})

t.test('a destination that cannot write gets them from the source', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const { found, wanBytes, warned } = await move(t, { kept: space(folder), farKept: space('/nowhere') }, [MOST, 0])
  t.ok(found > 0, `${found} pages`)
  t.ok(wanBytes > 0.5 * stream.length)
  t.same([...new Set(warned)], [KEPT_NOT])
})

t.test('a source that cannot write names none', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const { found, warned } = await move(t, { kept: space('/nowhere'), farKept: space(folder) }, [0, MOST])
  t.ok(found < 200, `${found} pages`)
  t.same(warned, [KEPT_NOT])
})
