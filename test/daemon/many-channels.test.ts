/** Guests with as many multifd channels as QEMU takes, several at once, over one session. */
import { randomBytes } from 'node:crypto'
import type net from 'node:net'
import t from 'tap'
import { GATHERING_MS } from '../../src/migration/channel-places.ts'
import { until } from '../helpers/until.ts'
import { closed, Daemons, MAIN, MULTIFD } from './daemons.ts'

t.setTimeout(590_000)

const MULTIFD_CHANNELS = 255

t.test('four guests with 255 multifd channels each, and a fifth that is refused at its first', async t => {
  await using pair = await Daemons.start({ gates: 5 })
  await until('a session', () => pair.count('session open') === 2)
  /** All bytes that a channel was sent, by its first 32. */
  const sent = new Map<string, Buffer>()
  const start = async (gate: number, first: Buffer, bytes: number): Promise<net.Socket> => {
    const socket = await pair.dial(gate)
    const whole = Buffer.concat([first, randomBytes(bytes)])
    sent.set(whole.subarray(0, 100).toString('hex'), whole)
    socket.write(whole)
    return socket.resume()
  }
  const arrived = (): number =>
    pair.target.received.filter(bytes => sent.get(bytes.subarray(0, 100).toString('hex'))?.equals(bytes)).length

  for (let gate = 0; gate < 4; gate++) {
    await start(gate, MAIN, 100_000)
    for (let i = 0; i < MULTIFD_CHANNELS; i++) await start(gate, MULTIFD, 20_000)
  }
  await until(
    () => `all channels: ${arrived()} of ${sent.size}`,
    () => arrived() === 4 * (1 + MULTIFD_CHANNELS),
  )
  t.pass('every byte of 1,024 channels')
  t.equal(pair.count('migration starts'), 4)
  t.equal(pair.count('connection refused'), 0)

  await new Promise(done => setTimeout(done, GATHERING_MS)) // its channels could all have come
  const fifth = await pair.dial(4)
  fifth.write(MAIN)
  await closed(fifth.resume())
  t.equal(pair.count('connection refused'), 1, 'no room for all of another: its first channel says so')
  const late = await start(0, MULTIFD, 1000)
  await until('a further channel of one that runs', () => arrived() === sent.size)
  t.notOk(late.destroyed)
})

t.test('guests that begin in the same moment wait for each other, and none is refused', async t => {
  const gates = 8
  await using pair = await Daemons.start({ gates })
  await until('a session', () => pair.count('session open') === 2)
  for (let gate = 0; gate < gates; gate++) (await pair.dial(gate)).write(MAIN)
  await until('all of them', () => pair.target.received.filter(bytes => bytes.equals(MAIN)).length === gates)
  t.equal(pair.count('connection refused'), 0)
  t.equal(pair.count('migration starts'), gates)
})
