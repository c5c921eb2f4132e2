/** Flows that use their credit and are torn down, over and over: what waits of them to be expanded is paid for all the same. */
import t from 'tap'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events } from '../../src/daemon/events.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { ExpandQueue } from '../../src/transfer/expand-queue.ts'
import { Turns } from '../../src/transfer/turns.ts'
import { until } from '../helpers/until.ts'
import { begun, CHANNEL_START, greedyTarget, plainBatch, sendBatch } from './greedy.ts'
import { Peer } from './peer.ts'

t.setTimeout(590_000) // the machine may be busy

const BUDGET_BYTES = 64 << 20
const RAW_LENGTH = 500_000
/** Fewer than a client may open at once. */
const FLOWS = 200

t.test('batches of flows that were torn down are paid for while they wait', async t => {
  // others have the turns, as long as it takes
  let goOn = (): void => {}
  const turn = new Promise<void>(done => {
    goOn = done
  })
  t.teardown(() => goOn())
  t.intercept(Turns.prototype, 'hasTime', { get: () => false })
  t.capture(Turns.prototype, 'next', () => turn)
  let waiting = 0
  let most = 0
  const { push, next } = ExpandQueue.prototype
  t.capture(ExpandQueue.prototype, 'push', function (this: ExpandQueue<unknown>, ...args: Parameters<typeof push>) {
    for (const part of args[1]) waiting += part.length
    most = Math.max(most, waiting)
    return push.apply(this, args)
  })
  t.capture(ExpandQueue.prototype, 'next', function (this: ExpandQueue<unknown>) {
    const job = next.call(this)
    if (job && 'parts' in job) waiting -= job.packedBytes
    return job
  })
  await using target = await greedyTarget()
  const memory = new FairShares(BUDGET_BYTES)
  const destination = new DestinationDaemon({
    ...{ listen: [{ host: '127.0.0.1', port: 0 }], credentials: undefined, store: undefined, memory },
    targets: new Map([['default', parseAddress(target.address)]]),
    ...{ ringPagesMax: 256, placesMax: 4096, queueTargetMs: 50, patienceMs: 60_000, events: new Events() },
  })
  await destination.start()
  t.teardown(() => destination.abort())
  const way = { port: destination.addresses[0]!.port, credentials: undefined }
  const { peer, credit } = await begun(() => Peer.dial(way), 'default')
  t.teardown(() => peer.close())
  const batch = plainBatch(new Uint8Array(RAW_LENGTH))
  for (let flow = 1; flow <= FLOWS && !peer.isClosed; flow++) {
    if (flow > 1) peer.open(flow, 'default', flow)
    while (credit.of(flow) === 0 && !peer.isClosed) await credit.changed(Number.POSITIVE_INFINITY)
    sendBatch(peer, flow, plainBatch(CHANNEL_START))
    for (let left = credit.of(flow) - CHANNEL_START.length; left >= RAW_LENGTH; left -= RAW_LENGTH)
      sendBatch(peer, flow, batch)
    peer.reset(flow)
    await peer.flushed()
  }
  await until('all is read, or the session has ended', () => peer.isClosed || waiting >= FLOWS * RAW_LENGTH)
  t.comment(`${waiting} bytes wait, ${memory.used} of ${BUDGET_BYTES} are taken; ${peer.goodbye}`)
  t.ok(most <= BUDGET_BYTES / 2 + (16 << 20), `${most} bytes waited, of one peer, and ${memory.used} are paid for`)
})
