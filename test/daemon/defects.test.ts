/**
 * Defects of ours that a dial, a QEMU, a timer or a promise finds, at either side: they end the session that met them. The
 * process lives, and what comes next goes through.
 */
import type net from 'node:net'
import t, { type Test } from 'tap'
import { ColumnPacker } from '../../src/compression/column-packer.ts'
import { LinkClient } from '../../src/link/client.ts'
import { Arrivals } from '../../src/migration/arrivals.ts'
import { Departure } from '../../src/migration/departure.ts'
import { MigrationDeparture } from '../../src/migration/migration-departure.ts'
import { Patience } from '../../src/migration/patience.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { ReturnPathParser } from '../../src/qemu/return-path.ts'
import { QemuSocket } from '../../src/relay/qemu-socket.ts'
import { Session } from '../../src/session/session.ts'
import { Sender } from '../../src/transfer/sender.ts'
import { SendingChannel } from '../../src/transfer/sending-channel.ts'
import { until } from '../helpers/until.ts'
import { closed, Daemons, MAIN } from './daemons.ts'

t.setTimeout(590_000)

/** Makes the method throw when it is called next by whom it is meant for, once. */
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

/** Lets this happen once the destination QEMU has a connection. */
function onceDialled(run: (pair: Daemons) => void): (pair: Daemons, source: net.Socket) => void {
  return (pair, source) => {
    pair.target.onConnection = () => {
      pair.target.onConnection = () => {}
      run(pair)
    }
    source.write(MAIN)
  }
}

/** A defect that is found when a session ends, or once it has. */
function whenLost(plantIt: () => void): (pair: Daemons, source: net.Socket) => void {
  return onceDialled(pair => {
    plantIt()
    void pair.loseSession()
  })
}

t.test('what a source QEMU sends', t =>
  survives(t, (_pair, source) => {
    plant(t, MainStreamParser.prototype, 'push', () => true)
    source.write(MAIN)
  }),
)

t.test('a source QEMU that closes', t =>
  survives(t, (_pair, source) => {
    plant(t, SendingChannel.prototype, 'ends', () => true)
    source.end(MAIN)
  }),
)

t.test('a source QEMU that stops within a record', t =>
  survives(t, (_pair, source) => {
    plant(t, Sender.prototype, 'tick', () => true)
    source.write(Buffer.from('5145564d000000030700', 'hex'))
  }),
)

t.test('a batch that is packed', t =>
  survives(t, (_pair, source) => {
    plant(t, MigrationDeparture.prototype, 'sent', () => true)
    source.write(MAIN)
  }),
)

t.test('bytes that a source QEMU took', t =>
  survives(t, (pair, source) => {
    plant(t, Session.prototype, 'consumed', self => self !== pair.link.session)
    pair.target.onConnection = socket => socket.write('answer')
    source.write(MAIN)
  }),
)

t.test('what becomes of connections when their session ends', t =>
  survives(
    t,
    whenLost(() => plant(t, Departure.prototype, 'isKnown', () => true)),
  ),
)

t.test('threads of a session that has ended', t =>
  survives(
    t,
    whenLost(() => plant(t, ColumnPacker.prototype, 'close', () => true)),
  ),
)

t.test('the next session', t =>
  survives(
    t,
    whenLost(() => plant(t, LinkClient.prototype, 'open', () => true)),
  ),
)

t.test('a WAN connection that closes', t =>
  survives(
    t,
    onceDialled(pair => {
      plant(t, Patience.prototype, 'wan', () => true)
      pair.wan.cut()
    }),
  ),
)
