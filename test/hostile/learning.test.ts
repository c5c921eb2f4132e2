/**
 * A peer whose guests have pages without end, each a few bytes on the WAN: what is learned takes no more of the disk than
 * `--learn-size`, and other peers' sets stay. How shares are made: docs/adr/0009-learning.md.
 */
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readOwners } from '../../src/learning/set-owners.ts'
import { setFileName } from '../../src/template/wire.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { packed } from '../codec/costly-batches.ts'
import { until } from '../helpers/until.ts'
import { Credit, greedyTarget } from './greedy.ts'
import { Siege, unharmed } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

/** The attack lasts so long, and for so many bytes of pages: on a busy machine longer. */
const ATTACK_MS = 6000
const LEARN_MB = 16
const PAGE_BYTES_MIN = 2 * LEARN_MB * 1e6
const PAGE = 4096
const PAGES_PER_BATCH = 14
const RECORD = 8 + PAGE

/** Bytes on the disk of all that a process learned: sets, and files without a name. */
function bytesOnDisk(store: string, pid: number): number {
  let bytes = 0
  for (const name of readdirSync(store)) bytes += statSync(join(store, name), { throwIfNoEntry: false })?.size ?? 0
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${fd}`
    try {
      if (readlinkSync(path).startsWith(`${store}/.put-`)) bytes += statSync(path).size
    } catch {
      // closed meanwhile
    }
  }
  return bytes
}

t.test('sets and spools of a peer that sends pages without end', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-learned-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const stores = ['source', 'destination'].map(name => join(folder, name))
  for (const store of stores) mkdirSync(store)
  const learns = (store: string) => ['--store', store, '--learn', 'all', '--learn-size', `${LEARN_MB}MB`]
  await using target = await greedyTarget()
  await using siege = await Siege.start({
    destinationArguments: [...learns(stores[1]!), '--target', `greedy=${target.address}`],
    sourceArguments: learns(stores[0]!),
  })
  const store = stores[1]!
  const owners = () => readOwners(store)
  await until('a set of the honest peer', async () => (await owners()).size > 0)
  const [honest] = (await owners()).values()
  /** Bytes of the honest peer's sets; it goes on learning, and its newest displace its oldest. */
  const held = async () => {
    let bytes = 0
    for (const [digest, owner] of await owners())
      if (owner === honest) bytes += statSync(join(store, setFileName(digest)), { throwIfNoEntry: false })?.size ?? 0
    return bytes
  }
  const heldBefore = await held()

  let number = 0
  /** Pages that nobody has seen, numbered from `page` on. */
  const batchOf = (page: number): Buffer => {
    const gives = Buffer.alloc(PAGES_PER_BATCH * RECORD)
    const pages = Buffer.alloc(PAGES_PER_BATCH * PAGE)
    for (let i = 0; i < PAGES_PER_BATCH; i++) {
      pages.writeDoubleBE(++number, i * PAGE)
      gives.writeBigUInt64BE((BigInt(page + i) << 12n) | 0x28n, i * RECORD)
      pages.copy(gives, i * RECORD + 8, i * PAGE, (i + 1) * PAGE)
    }
    return packed({ rawLength: gives.length, columns: { 0: [0x40 | PAGES_PER_BATCH], 3: pages } }, gives, true)
  }
  let most = 0
  let wanBytes = 0
  const look = setInterval(() => {
    most = Math.max(most, bytesOnDisk(store, siege.destinationPid))
  }, 20)
  let migrations = 0
  const figures = await siege.under(async () => {
    const endMs = performance.now() + ATTACK_MS
    const goesOn = (): boolean => performance.now() < endMs || number * PAGE <= PAGE_BYTES_MIN
    while (goesOn()) {
      const peer = await siege.peer()
      const credit = new Credit(peer)
      // between two migrations a session may be asked to go (DRAIN): it takes no other then
      const isOver = (): boolean => peer.isClosed || peer.counts.has(FRAME.RESET) || !goesOn()
      for (let flow = 1; flow <= 3 && !isOver(); flow++) {
        peer.open(flow, 'greedy', flow)
        let page = 0
        while (page < 2000 && !isOver()) {
          const batch = batchOf(page)
          while (!credit.send(flow, PAGES_PER_BATCH * RECORD, batch) && !isOver())
            await credit.changed(performance.now() + 1000)
          wanBytes += batch.length
          page += PAGES_PER_BATCH
        }
        peer.send(FRAME.FIN, undefined, flow)
        while (!isOver() && (peer.counts.get(FRAME.END) ?? 0) < flow) await credit.changed(performance.now() + 1000)
        migrations++
      }
      // a session that breaks off would keep its place
      const closed = peer.isClosed || once(peer.socket, 'close')
      peer.send(FRAME.BYE, Buffer.alloc(2))
      await closed
    }
  })
  clearInterval(look)
  t.comment(`${number} pages, ${migrations} migrations, ${wanBytes} bytes on the WAN, ${most} bytes on the disk`)
  t.ok(number * PAGE > PAGE_BYTES_MIN, 'they are more than --learn-size')
  t.ok(
    [...(await owners()).values()].some(owner => owner !== honest),
    'sets were made of them',
  )
  t.ok(most <= LEARN_MB * 1e6, `${most} bytes on the disk`)
  // an even share of what is for sets, less the set that was one too many
  const leastKept = Math.min(heldBefore, (LEARN_MB * 1e6) / 4 - (LEARN_MB * 1e6) / 8)
  const kept = await held()
  t.ok(kept >= leastKept, `the honest peer has sets of ${kept} bytes, ${heldBefore} before`)
  // docs/security.md: counts of a session, and pages on their way to the disk
  unharmed(t, figures, { grownBytesMax: (28 + 128 + 64) << 20 })
})
