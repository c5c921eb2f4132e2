/** Names with several addresses, some of them dead. */
import type { LookupAddress } from 'node:dns'
import { EventEmitter } from 'node:events'
import net from 'node:net'
import t from 'tap'
import { DIAL_HEAD_START_MS } from '../../src/limits.ts'
import { systemClock } from '../../src/link/api.ts'
import { Dialer } from '../../src/link/dial.ts'

t.setTimeout(590_000) // the machine may be busy

/** Sockets that a test makes answer. */
class Dialled extends EventEmitter {
  destroyed = false
  readonly host: string
  constructor(host: string) {
    super()
    this.host = host
  }
  destroy(): void {
    this.destroyed = true
  }
}

const of = (...addresses: string[]): LookupAddress[] =>
  addresses.map(address => ({ address, family: net.isIP(address) }))

function dialer(addresses: LookupAddress[]) {
  const dialled: Dialled[] = []
  const timers: { ms: number; run: () => void; gone: boolean }[] = []
  const one = new Dialer({
    host: 'far.example',
    port: 7,
    clock: {
      now: () => 0,
      after: (ms, run) => {
        const timer = { ms, run, gone: false }
        timers.push(timer)
        return () => {
          timer.gone = true
        }
      },
    },
    resolve: () => Promise.resolve(addresses),
    connect: ({ host }) => {
      const socket = new Dialled(host!)
      dialled.push(socket)
      return socket as unknown as net.Socket
    },
  })
  /** The head start of the latest attempt is over. */
  const wait = (): void => {
    const timer = timers.pop()!
    t.equal(timer.ms, DIAL_HEAD_START_MS)
    if (!timer.gone) timer.run()
  }
  return { one, dialled, wait, hosts: () => dialled.map(({ host }) => host) }
}

const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

t.test('dead addresses in front: the next is tried beside them', async t => {
  const { one, dialled, wait, hosts } = dialer(of('192.0.2.1', '192.0.2.2', '2001:db8::1', '192.0.2.3'))
  const { connected } = one.dial()
  await turn()
  t.same(hosts(), ['192.0.2.1'])
  wait()
  t.same(hosts(), ['192.0.2.1', '2001:db8::1'], 'families in turn')
  dialled[1]!.emit('error', new Error('no route'))
  t.same(hosts(), ['192.0.2.1', '2001:db8::1', '192.0.2.2'], 'one that is refused: the next at once')
  wait()
  t.equal(dialled.length, 4)
  dialled[2]!.emit('connect')
  t.equal((await connected).address, '192.0.2.2')
  t.same(
    dialled.map(({ destroyed }) => destroyed),
    [true, false, false, true],
    'the others are given up',
  )
  dialled[0]!.emit('error', new Error('late'))
})

t.test('a long way: the first that answers is taken, however late', async t => {
  const { one, dialled, wait } = dialer(of('192.0.2.1', '192.0.2.2'))
  const { connected } = one.dial()
  await turn()
  wait()
  dialled[0]!.emit('connect')
  t.equal((await connected).address, '192.0.2.1')
})

t.test('all dead; given up; no address', async t => {
  const dead = dialer(of('192.0.2.1', '192.0.2.2'))
  const { connected } = dead.one.dial()
  await turn()
  dead.dialled[0]!.emit('error', new Error('first'))
  dead.dialled[1]!.emit('error', new Error('last'))
  await t.rejects(connected, { message: 'last' })
  const slow = dialer(of('192.0.2.1'))
  const attempt = slow.one.dial()
  await turn()
  attempt.cancel()
  attempt.cancel()
  await t.rejects(attempt.connected, { code: 'PEER_LOST' })
  t.ok(slow.dialled[0]!.destroyed)
  await t.rejects(dialer([]).one.dial().connected, { code: 'PEER_LOST', what: /has no address/ })
})

t.test('an address where somebody else answers comes last from then on', async t => {
  const { one, dialled, hosts } = dialer(of('192.0.2.1', '192.0.2.2', '192.0.2.3'))
  const first = async (): Promise<string> => {
    const { connected } = one.dial()
    await turn()
    dialled.at(-1)!.emit('connect')
    return (await connected).address
  }
  one.failed(await first())
  t.ok(one.hasOther)
  one.failed(await first())
  one.failed(await first())
  t.same(hosts(), ['192.0.2.1', '192.0.2.2', '192.0.2.3'])
  t.notOk(one.hasOther)
  one.worked(await first())
  t.same(hosts().at(-1), '192.0.2.1', 'all failed: the one that failed first')
})

t.test('real sockets', async t => {
  const server = net.createServer(socket => socket.end())
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as net.AddressInfo
  const resolve = (): Promise<LookupAddress[]> => Promise.resolve(of('127.0.0.9', '127.0.0.1'))
  const { connected } = new Dialer({ host: 'far.example', port, clock: systemClock, resolve }).dial()
  const { socket, address } = await connected
  t.equal(address, '127.0.0.1')
  socket.destroy()
  const literal = await new Dialer({ host: '127.0.0.1', port, clock: systemClock }).dial().connected
  literal.socket.destroy()
})
