/** A connection that went to another session: what the peer of the one before still says of its flow is not for it. */
import { once } from 'node:events'
import t from 'tap'
import type { LinkSink } from '../../src/link/api.ts'
import { CODE } from '../../src/wan/wire.ts'
import { until } from '../helpers/until.ts'
import { Daemons, MAIN, runOf, runsOf } from './daemons.ts'

t.setTimeout(590_000)

/** What of a source's half this looks into. */
type Half = LinkSink & { readonly channels: { readonly flows: ReadonlyMap<number, unknown> } }

t.test('a peer that refuses a flow and then takes it, answers and resets it', async t => {
  await using daemons = await Daemons.start()
  const { reception } = runsOf(daemons.source)
  const half = (): Half | undefined => runOf(daemons.source)?.session as unknown as Half | undefined
  await until('a session', () => half() !== undefined)
  daemons.wan.still = true // nothing is taken
  const qemu = await daemons.dial()
  let answered = 0
  qemu.on('data', chunk => {
    answered += chunk.length
  })
  qemu.write(MAIN)
  await until('a flow', () => half()?.channels.flows.size === 1)
  const session = half()!
  // a batch of it is still being packed, so that it is not reset yet
  const [[number, flow]] = [...session.channels.flows] as [[number, { sending: { settle(): void } }]]
  flow.sending.settle = () => {}
  session.onRefused(number, 'takes no new migrations')
  t.equal(reception.waiting.length, 1)
  session.onTaken(number)
  session.onData(number, Buffer.from('answer'))
  session.onFin(number)
  session.onReset(number, CODE.TARGET_REFUSED, 'no')
  t.doesNotThrow(() => reception.waiting[0]!.socket.detach(), 'it may still go to another session')
  await new Promise(done => setImmediate(done))
  t.notOk(qemu.destroyed, 'the connection lives')
  t.equal(answered, 0)
  const gone = once(qemu, 'close')
  qemu.destroy()
  await gone
})

t.test('DRAIN between a connection and its first bytes', async t => {
  await using daemons = await Daemons.start({ gates: 2, patienceMs: 60_000 })
  const running = await daemons.dial(0) // keeps the session
  running.write(MAIN)
  await until('its bytes at the destination', () => daemons.target.received[0]?.equals(MAIN) === true)
  const late = await daemons.dial(1)
  await until('the connection', () => runOf(daemons.source)?.session?.connectionCount === 2)
  daemons.link.session.drain()
  await until('DRAIN', () => daemons.count('peer drains: it takes no new migrations') === 1)
  late.write(MAIN)
  await until('its move', () => daemons.count('connections wait for another session') === 1)
  t.equal(daemons.count('link.defect'), 0)
  running.destroy()
  daemons.target.sockets[0]!.destroy()
  await until('its bytes, in another session', () => daemons.target.received[1]?.equals(MAIN) === true)
})
