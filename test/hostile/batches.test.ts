/**
 * Batches that cost as much CPU time as the protocol allows, and more, from a peer whose target takes everything: other
 * peers do not notice. The rules: protocol.md §4; the worst that they allow: test/codec/work.test.ts.
 */
import { once } from 'node:events'
import t from 'tap'
import { mixture, op, packed } from '../codec/costly-batches.ts'
import { varint } from '../codec/hand-batch.ts'
import { Credit, greedyTarget, sendBatch } from './greedy.ts'
import { Siege, unharmed } from './harness.ts'
import type { Peer } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

/** The attack lasts so long, and for so many batches: on a busy machine longer. */
const ATTACK_MS = 4000
const FLOWS = 16
const BATCHES_MIN = FLOWS * 20
/** Within the credit that a flow begins with. */
const RAW_LENGTH = 60_000

/** Sends the same batch on all flows as fast as their credit allows. @returns batches that were sent */
async function flood(peer: Peer, batch: Buffer): Promise<number> {
  const credit = new Credit(peer)
  for (let flow = 1; flow <= FLOWS; flow++) peer.open(flow, 'greedy')
  const endMs = performance.now() + ATTACK_MS
  let sent = 0
  while ((performance.now() < endMs || sent < BATCHES_MIN) && !peer.isClosed) {
    const before = sent
    for (let flow = 1; flow <= FLOWS; flow++) {
      if (credit.send(flow, RAW_LENGTH, batch)) sent++
    }
    await peer.flushed()
    if (sent === before) await credit.changed(sent < BATCHES_MIN ? Number.POSITIVE_INFINITY : endMs)
  }
  return sent
}

t.test('the most expensive batches without a pause', async t => {
  await using target = await greedyTarget()
  await using siege = await Siege.start({ destinationArguments: ['--target', `greedy=${target.address}`] })
  const gives = Buffer.alloc(RAW_LENGTH)
  const batch = packed(
    mixture(
      RAW_LENGTH,
      [
        ['skip', 100],
        ['other', 20_000],
      ],
      false,
    ),
    gives,
    true,
  )
  let sent = 0
  let closed = false
  const figures = await siege.under(async () => {
    const peer = await siege.peer()
    sent = await flood(peer, batch)
    closed = peer.isClosed
  })
  t.notOk(closed, 'they break no rule')
  t.ok(sent >= BATCHES_MIN, `${sent} batches of ${batch.length} bytes`)
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
})

t.test('operations without output, and packets that name the last of many RAMBlocks', async t => {
  await using target = await greedyTarget()
  await using siege = await Siege.start({ destinationArguments: ['--target', `greedy=${target.address}`] })
  const endless = packed({ rawLength: 1, columns: { 0: Buffer.alloc(1 << 20, 0x91) } }, undefined, true)
  const name = (i: number) => Buffer.from(`${'n'.repeat(250)}${String(i).padStart(5, '0')}`)
  const defined = Array.from({ length: 400 }, (_, i) => name(i))
  const names = packed(
    {
      rawLength: RAW_LENGTH,
      columns: {
        0: [...Buffer.alloc(defined.length, 0xc1), ...op(8, RAW_LENGTH)],
        1: defined.flatMap(() => varint(255)),
        2: Buffer.concat([...defined, Buffer.alloc(RAW_LENGTH)]),
      },
    },
    Buffer.alloc(RAW_LENGTH),
    true,
  )
  let ended = 0
  const figures = await siege.under(async () => {
    const end = performance.now() + ATTACK_MS
    while (performance.now() < end) {
      for (const batch of [endless, names]) {
        const peer = await siege.peer()
        const closed = once(peer.socket, 'close')
        peer.open(1, 'greedy')
        sendBatch(peer, 1, batch)
        await closed
        ended++
      }
    }
  })
  t.ok(ended >= 2, `${ended} sessions ended for it`)
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
})
