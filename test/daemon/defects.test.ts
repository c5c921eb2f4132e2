/**
 * Defects of ours that a dial, a QEMU or a timer of the destination finds: they end the session that met them. The process
 * lives, and what comes next goes through.
 */
import type net from 'node:net'
import t, { type Test } from 'tap'
import { Arrivals } from '../../src/migration/arrivals.ts'
import { ReturnPathParser } from '../../src/qemu/return-path.ts'
import { QemuSocket } from '../../src/relay/qemu-socket.ts'
import { Session } from '../../src/session/session.ts'
import { until } from '../helpers/until.ts'
import { closed, Daemons, MAIN } from './daemons.ts'

t.setTimeout(120_000)

/** Makes the method throw when the destination calls it next, once. */
function plant<T extends object>(t: Test, of: T, method: keyof T & string, isMeant: (self: object) => boolean): void {
  const whole = of[method] as (...given: unknown[]) => unknown
  const put = (value: unknown): void => {
    Object.defineProperty(of, method, { value, configurable: true, writable: true })
  }
  put(function (this: object, ...given: unknown[]) {
    if (!isMeant(this)) return whole.apply(this, given)
    put(whole)
    throw new TypeError('planted')
  })
  t.teardown(() => put(whole))
}

/** A migration that goes through: its bytes arrive, and both ends are heard of. */
async function migrates(t: Test, pair: Daemons): Promise<void> {
  const before = pair.target.sockets.length
  const source = await pair.dial()
  source.resume()
  source.end(MAIN)
  await until('the bytes at the destination', () => pair.target.received[before]?.length === MAIN.length)
  pair.target.sockets[before]!.end()
  await closed(source)
  t.ok(pair.target.received[before]!.equals(MAIN), 'what comes next goes through')
}

async function survives(t: Test, find: (pair: Daemons, source: net.Socket) => void): Promise<void> {
  await using pair = await Daemons.start({ patienceMs: 800 })
  const source = await pair.dial()
  source.resume()
  find(pair, source)
  await Promise.all([closed(source), until('what is said of it', () => pair.count('link.defect') === 1)])
  pair.wan.restore()
  await until('another session', () => pair.count('session open') === 4)
  await migrates(t, pair)
  t.equal(pair.count('link.defect'), 1)
}

t.test('a connection that was made', t =>
  survives(t, (pair, source) => {
    const { port } = pair.target
    plant(t, QemuSocket.prototype, 'start', self => (self as QemuSocket).peer.endsWith(`:${port}`))
    source.write(MAIN)
  }),
)

t.test('what QEMU answers', t =>
  survives(t, (pair, source) => {
    plant(t, ReturnPathParser.prototype, 'push', () => true) // the destination's is the first that hears it
    pair.target.onConnection = socket => socket.write('answer')
    source.write(MAIN)
  }),
)

t.test('bytes that QEMU took', t =>
  survives(t, (_pair, source) => {
    plant(t, Session.prototype, 'consumed', () => true) // nothing goes back
    source.write(MAIN)
  }),
)

t.test('a QEMU that closes', t =>
  survives(t, (pair, source) => {
    plant(t, Session.prototype, 'finFlow', self => self === pair.link.session)
    pair.target.onConnection = socket => socket.end()
    source.write(MAIN)
  }),
)

t.test('time that passes', t =>
  survives(t, (pair, source) => {
    plant(t, Arrivals.prototype, 'tick', () => true)
    pair.target.onConnection = () => pair.wan.cut(true)
    source.write(MAIN)
  }),
)
