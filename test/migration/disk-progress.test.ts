/** How far a disk's clients are, of the places where they write. */
import t from 'tap'
import { Random } from '../../scripts/harness/random.ts'
import { EXPORTS_TOLD_MAX } from '../../src/limits.ts'
import { DiskProgress, WriteOrder } from '../../src/migration/disk-progress.ts'

const MIB = 1 << 20
const DISK = 10_000 * MIB

/** Requests of a mirror: in order but for those under way, of which any comes first. */
function mirrored(count: number, random: Random, underWay = 16): number[] {
  const offsets: number[] = []
  const next = Array.from({ length: count }, (_, i) => i * MIB)
  while (next.length > 0) offsets.push(next.splice(random.below(Math.min(underWay, next.length)), 1)[0]!)
  return offsets
}

t.test('a mirror is followed from its beginning to its end, and into the next pass', t => {
  const progress = new DiskProgress<object>()
  const connection = {}
  t.equal(progress.exported(connection, 'vda', DISK), 'vda')
  const status = (nowMs: number) => progress.status(nowMs)[0]!
  t.same(status(0), { name: 'vda', bytes: DISK, bytesWritten: 0 })
  let worst = 0
  let ms = 0
  for (const [i, offset] of mirrored(10_000, new Random(1)).entries()) {
    progress.wrote(connection, offset, MIB)
    progress.seen(connection, ++ms)
    if (i < 63) t.notOk('share' in status(ms), 'of a few requests nothing is known')
    if (i < 100) continue
    const { share, pass, passSeconds } = status(ms)
    if (pass !== 1 || share === undefined) t.fail(`request ${i}: pass ${pass}, share ${share}`)
    worst = Math.max(worst, Math.abs(share! - i / 10_000))
    const left = (10_000 - i) / 1000
    if (i > 1000 && Math.abs(passSeconds! - left) > 0.1 + 0.04 * left) t.fail(`request ${i}: ${passSeconds} s`)
  }
  t.ok(worst < 0.0035, `off by ${worst} at most: some requests`)
  t.equal(status(ms).bytesWritten, DISK)
  let unknown = 0
  for (let i = 0; i < 400; i++) {
    progress.wrote(connection, i * 20 * MIB, MIB)
    progress.seen(connection, ++ms)
    if (status(ms).share === undefined) unknown++
  }
  t.match(status(ms), { pass: 2 })
  t.ok(Math.abs(status(ms).share! - 0.8) < 0.04, `${status(ms).share}: what is passed over counts as done`)
  t.ok(unknown > 0 && unknown < 80, `${unknown}: in between it is not in order`)
  t.end()
})

t.test('writes of the guest in between', t => {
  for (const [part, seed] of [
    [0.05, 1],
    [0.15, 2],
    [0.25, 3],
  ] as const) {
    const random = new Random(seed)
    const progress = new DiskProgress<object>()
    const connection = {}
    progress.exported(connection, 'vda', DISK)
    let known = 0
    let worst = 0
    for (const [i, offset] of mirrored(10_000, random).entries()) {
      progress.wrote(connection, offset, MIB)
      if (random.below(1000) < 1000 * part) progress.wrote(connection, random.below(10_000) * MIB, MIB)
      const { share, pass } = progress.status(0)[0]!
      if (share === undefined) continue
      known++
      worst = Math.max(worst, Math.abs(share - i / 10_000))
      if (pass !== 1) t.fail(`request ${i} begins pass ${pass}`)
    }
    t.ok(known > (part < 0.2 ? 9500 : 8000), `${part} of the requests: known at ${known} of 10000`)
    t.ok(worst < 0.01, `off by ${worst} at most`)
  }
  t.end()
})

t.test('who writes here and there has no share', t => {
  const random = new Random(7)
  const progress = new DiskProgress<object>()
  const connection = {}
  progress.exported(connection, 'vda', DISK)
  let known = 0
  for (let i = 0; i < 40_000; i++) {
    progress.wrote(connection, random.below(10_000) * MIB, 65536)
    if (progress.status(0)[0]!.share !== undefined) known++
  }
  t.ok(known < 200, `${known} of 40000`)
  t.equal(progress.status(0)[0]!.bytesWritten, 40_000 * 65536)
  t.end()
})

t.test('one that goes down, and one that writes the same place', t => {
  const down = new WriteOrder()
  const same = new WriteOrder()
  for (let i = 1000; i > 0; i--) {
    down.wrote(i * MIB)
    same.wrote(MIB)
  }
  t.equal(down.place, undefined)
  t.equal(same.place, undefined)
  t.end()
})

t.test('several connections share a disk: the one that is least far counts', t => {
  const progress = new DiskProgress<object>()
  const connections = [{}, {}, {}, {}]
  for (const connection of connections) progress.exported(connection, '', 1024 * MIB)
  // as nbdcopy does: 128 MiB each, then the next ones
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < 128; i++)
      for (const [n, connection] of connections.entries())
        if (n < 3 || (round === 0 && i < 10)) progress.wrote(connection, (round * 512 + n * 128 + i) * MIB, MIB)
  }
  const { share = 0, pass } = progress.status(0)[0]!
  t.equal(pass, 1)
  t.ok(Math.abs(share - 0.625) < 0.02, `${share}: the first one; the one with ten requests says nothing`)
  const random = new Random(1)
  for (let i = 0; i < 100; i++) progress.wrote(connections[3]!, random.below(1024) * MIB, MIB)
  t.notOk('share' in progress.status(0)[0]!, 'one that is not in order: nobody knows')
  progress.forget(connections[3]!)
  t.equal(progress.status(0)[0]!.share, share, 'until it has gone')
  for (const connection of connections) progress.forget(connection)
  t.same(Object.keys(progress.status(0)[0]!), ['name', 'bytes', 'bytesWritten'])
  t.end()
})

t.test('what is told is bounded, and an empty disk has no share', t => {
  const progress = new DiskProgress<object>()
  const connections = Array.from({ length: 100 }, () => ({}))
  const told = connections.filter((connection, i) => progress.exported(connection, `v${i}`, i) !== undefined)
  t.equal(told.length, EXPORTS_TOLD_MAX)
  t.equal(progress.status(0).length, EXPORTS_TOLD_MAX)
  for (const connection of connections) for (let i = 0; i < 100; i++) progress.wrote(connection, i, 1)
  const [empty, small] = progress.status(0)
  t.same(empty, { name: 'v0', bytes: 0, bytesWritten: 100 })
  t.equal(small!.share, 1, 'behind the end is the end')
  t.end()
})
