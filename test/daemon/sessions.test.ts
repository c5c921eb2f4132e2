/** Both daemons over loopback, with plain sockets for QEMUs: what must hold from one session to the next, and at ends. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import type { SourceSession } from '../../src/daemon/source-session.ts'
import { ProxyError } from '../../src/errors.ts'
import { FairShares, type Share } from '../../src/fair-shares.ts'
import { STATE } from '../../src/kernel/layout.ts'
import type { Link } from '../../src/link/link.ts'
import type { DialQueue } from '../../src/migration/dial-queue.ts'
import type { TemplateStore } from '../../src/store/template-store.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import { type Pool, Pools } from '../../src/transfer/pool.ts'
import { ALPN, MAGIC } from '../../src/wan/wire.ts'
import { clientHello } from '../helpers/client-hello.ts'
import { until } from '../helpers/until.ts'
import { migration, multifdChannel, PAGE, page, random } from '../template/makers.ts'
import { closed, Daemons, MAIN, MULTIFD, runOf, Target } from './daemons.ts'

/** Where a connection waits for the next session, which takes its time on a busy machine. */
const UNHURRIED = { patienceMs: 60_000 }

t.setTimeout(590_000) // proxies as processes: on a busy machine each takes seconds to start

t.test('connections without a migration outlive a lost session', async t => {
  await using pair = await Daemons.start(UNHURRIED)
  await until('a session', () => pair.count('session open') === 2)
  const waiting = await pair.dial() // its main has not come yet
  waiting.write(MULTIFD)
  const silent = await pair.dial()
  await sleep(50)
  await pair.loseSession()
  await until('another session', () => pair.count('session open') === 4)
  const main = await pair.dial()
  main.write(MAIN)
  await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
  await until('multifd', () => pair.target.received[1]?.equals(MULTIFD) === true)
  await sleep(300)
  t.equal(pair.target.sockets.length, 2, 'the silent one is not dialled')
  await pair.loseSession()
  for (const socket of [main, waiting, silent]) {
    await closed(socket.resume())
  }
  t.pass('with a migration that the other side knows they end')
  await until('an end', () => pair.summaries.length === 1 && pair.arrivals.length === 1)
})

t.test('a session is told of when its ring is committed, or when a QEMU comes that does not wait for that', async t => {
  for (const comes of [false, true]) {
    const held: (() => void)[] = []
    let holds = true
    const soon = (then: () => void): void => void (holds ? held.push(then) : EVENT_LOOP.soon(then))
    await using pair = await Daemons.start({ pools: new Pools({ loop: { ...EVENT_LOOP, soon } }) })
    const { source, destination } = pair
    await until('a session', () => source.status().session !== undefined && destination.status().sessions.length === 1)
    t.equal(pair.count('session open'), 1, 'the destination tells of it, the source does not yet')
    if (comes) {
      const main = await pair.dial()
      main.write(MAIN)
      await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
      t.equal(pair.count('connection waits for a session'), 0)
    } else {
      holds = false
      for (const then of held.splice(0)) then()
    }
    await until('both tell of it', () => pair.count('session open') === 2)
    holds = false
    for (const then of held.splice(0)) then()
  }
})

t.test('a connection whose server would speak first, as NBD, does not wait for ever', async t => {
  await using pair = await Daemons.start()
  const refused = [await pair.dial(), await pair.dial()]
  await until('the refusals', () => pair.count('connection refused') === 2)
  await Promise.all(refused.map(closed))
  const next = await pair.dial()
  const silent = await pair.dial() // beside a migration: a preempt channel, perhaps
  next.write(MAIN)
  await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
  await sleep(5500)
  t.notOk(silent.destroyed)
  t.equal(pair.target.sockets.length, 1)
  t.equal(pair.count('connection refused'), 2)
})

t.test('nothing but what begins as a channel of QEMU reaches a destination QEMU', async t => {
  await using pair = await Daemons.start()
  await until('a session', () => pair.count('session open') === 2)
  const hello = Buffer.alloc(255)
  hello.write('16030100fa010000f60303', 'hex')
  const probes: [string, Buffer][] = [
    ['an HTTP request', Buffer.from('GET / HTTP/1.0\r\n\r\n')],
    ['a banner', Buffer.from('SSH-2.0-probe\r\n')],
    ['a line', Buffer.from('\n')],
    ['zeros', Buffer.alloc(100)],
    ['an older stream', Buffer.from('5145564d00000002', 'hex')],
    ['a NBD client', Buffer.from('0000000349484156454f5054', 'hex')],
    ['another proxy', await clientHello({ ALPNProtocols: [ALPN] })],
    ['another proxy, in clear', Buffer.from(MAGIC)],
  ]
  for (const [i, [what, bytes]] of probes.entries()) {
    const probe = await pair.dial()
    probe.write(bytes)
    await closed(probe.resume())
    t.equal(pair.count('connection refused'), i + 1, `${what} is refused`)
  }
  const half = await pair.dial()
  half.end(MAIN.subarray(0, 7))
  await closed(half.resume())
  const main = await pair.dial()
  main.write(MAIN)
  await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
  const beside = await pair.dial()
  beside.write(hello)
  await closed(beside.resume())
  t.equal(pair.count('connection refused'), probes.length + 1, 'TLS beside plain text is refused')
  t.equal(pair.target.sockets.length, 1, 'no QEMU was dialled for any of them')
  t.equal(pair.count('migration starts'), 1)
})

t.test('a source proxy that means harm cannot have a QEMU dialled for what is none', async t => {
  await using pair = await Daemons.start()
  await until('a session', () => pair.count('session open') === 2)
  const { session } = runOf(pair.source)!.client
  const refused = async (kind: string, ...pieces: Buffer[]): Promise<void> => {
    const before = pair.count('target refused')
    const flow = session.openFlow({ target: 'default', migration: 9, kind })
    for (const piece of pieces) session.sendData(flow, piece)
    if (pieces.length > 0) session.finFlow(flow)
    await until('the refusal', () => pair.count('target refused') === before + 1)
    session.resetFlow(flow, 0, '')
    await until('its end', () => session.flowCount === 0)
  }
  await refused('main', Buffer.from('GET / HTTP/1.0\r\n\r\n'))
  await refused('main', ...[...'QEVX'].map(letter => Buffer.from(letter)))
  await refused('unknown', Buffer.alloc(64))
  await refused('main', MAIN.subarray(0, 7)) // and its end
  await refused('preempt') // without a main
  await refused('multifd', MULTIFD) // a target would take it for one
  const flow = session.openFlow({ target: 'default', migration: 9, kind: 'any' })
  for (const byte of MAIN) session.sendData(flow, Buffer.of(byte))
  await until('what begins as it should', () => pair.target.received[0]?.equals(MAIN) === true)
  t.equal(pair.target.sockets.length, 1, 'no other was dialled')
})

t.test('a destination that closes its direction first gets every byte all the same', async t => {
  await using pair = await Daemons.start()
  pair.target.onConnection = socket => socket.end()
  const main = await pair.dial()
  const bytes = Buffer.concat([MAIN, Buffer.alloc(3_000_000, 'all that the source sends ')])
  main.write(MAIN)
  await once(main.resume(), 'end')
  main.end(bytes.subarray(MAIN.length))
  await until('both ends', () => pair.summaries.length === 1 && pair.arrivals.length === 1)
  await until('all bytes', () => pair.target.received[0]!.length === bytes.length)
  t.ok(pair.target.received[0]!.equals(bytes))
  await until('a clean end', () => pair.target.sockets[0]!.readableEnded)
})

t.test('a channel that is seen after its main has ended', async t => {
  await using pair = await Daemons.start()
  const main = await pair.dial()
  main.end(MAIN)
  await until('the end of main', () => pair.target.sockets[0]?.readableEnded === true)
  const late = await pair.dial()
  late.write(MULTIFD)
  await until('its channel', () => pair.target.received[1]?.equals(MULTIFD) === true)
  const early = await pair.dial() // of the next migration
  const next = await pair.dial()
  early.write(MULTIFD)
  next.write(MAIN) // in the same turn: 200 ms later it would be too late
  await until('the next main', () => pair.target.received[2]?.equals(MAIN) === true)
  await until('its channel', () => pair.target.received[3]?.equals(MULTIFD) === true)
  t.equal(pair.count('migration starts'), 2)
})

t.test("a channel whose QEMU gave up before its main came is not the next migration's", async t => {
  await using pair = await Daemons.start()
  await until('a session', () => pair.count('session open') === 2)
  const given = await pair.dial()
  given.end(MULTIFD)
  // nothing is told of it yet: its main may be there, unread
  const half = runOf(pair.source)!.session as unknown as { channels: { gates: { due: { what: string }[] } } }
  await until('its end', () => half.channels.gates.due.some(({ what }) => what === 'closed'))
  const main = await pair.dial()
  main.write(MAIN)
  await until('the refusal', () => pair.count('connection refused') === 1)
  const multifd = await pair.dial()
  multifd.write(Buffer.concat([MULTIFD, Buffer.alloc(100_000, 7)]))
  await until('its bytes', () => pair.target.received[1]?.length === MULTIFD.length + 100_000)
  t.same(pair.target.received.length, 2)
  t.ok(pair.target.received[0]!.equals(MAIN))
})

t.test('a migration that crosses DRAIN goes on with the next session, and the running one where it is', async t => {
  await using pair = await Daemons.start(UNHURRIED)
  const running = await pair.dial()
  running.write(MAIN)
  await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
  pair.drainUnsaid()
  const late = await pair.dial()
  const bytes = Buffer.concat([MAIN, randomBytes(3_000_000)])
  late.write(bytes.subarray(0, 700_000)) // more than is kept
  const multifd = await pair.dial()
  multifd.write(MULTIFD)
  await until('a refusal', () => pair.count('connections wait for another session') > 0)
  late.end(bytes.subarray(700_000))
  running.write('on it goes')
  await until('the running one', () => pair.target.received[0]!.length > MAIN.length)
  t.equal(pair.count('session open'), 2, 'the session goes on')
  t.equal(pair.target.sockets.length, 1)
  running.end()
  pair.target.sockets[0]!.end()
  await until('another session', () => pair.count('session open') === 4)
  await until('all of the late one', () => pair.target.received[1]?.length === bytes.length)
  t.ok(pair.target.received[1]!.equals(bytes), 'every byte, once')
  await until('its other channel', () => pair.target.received[2]?.equals(MULTIFD) === true)
  t.equal(pair.target.sockets.length, 3)
  t.equal(pair.summaries.length, 1, 'one migration has ended')
})

t.test('a running migration has further channels while the destination stops', async t => {
  await using pair = await Daemons.start()
  const main = await pair.dial()
  main.write(MAIN)
  await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
  const stopped = pair.destination.stop()
  await until('DRAIN', () => pair.count('peer drains: it takes no new migrations') === 1)
  const multifd = await pair.dial()
  multifd.write(MULTIFD)
  await until('its other channel', () => pair.target.received[1]?.equals(MULTIFD) === true)
  for (const socket of [main, multifd, ...pair.target.sockets]) socket.end()
  await stopped
  t.same([pair.summaries.length, pair.arrivals.length], [1, 1])
})

t.test('a migration that a dead peer never heard of goes on with the next session', async t => {
  await using pair = await Daemons.start(UNHURRIED)
  await until('a session', () => pair.count('session open') === 2)
  pair.wan.still = true // and nobody knows yet
  const main = await pair.dial()
  const bytes = Buffer.concat([MAIN, randomBytes(500_000)])
  main.write(bytes)
  await sleep(100)
  await pair.link.abort(new ProxyError('PEER_LOST', 'the proxy was restarted', undefined, 'test'))
  pair.wan.still = false
  pair.wan.cut()
  await until('all of it', () => pair.target.received[0]?.length === bytes.length)
  t.ok(pair.target.received[0]!.equals(bytes), 'every byte, once')
  t.same([pair.target.sockets.length, pair.count('session open')], [1, 4])
})

t.test('a migration that a peer took, and then died before anybody knew, reaches a QEMU once', async t => {
  await using pair = await Daemons.start(UNHURRIED)
  await until('a session', () => pair.count('session open') === 2)
  pair.wan.mute = true
  const main = await pair.dial()
  main.write(MAIN)
  const { runs } = pair.destination as unknown as {
    runs: ReadonlyMap<Link, { session: { unconfirmed?: ReadonlySet<unknown> } }>
  }
  const hasCome = (): boolean => [...runs.values()].some(({ session }) => session.unconfirmed?.size === 1)
  await until('main, at the destination', () => hasCome() || pair.target.sockets.length > 0)
  await pair.link.abort(new ProxyError('PEER_LOST', 'the proxy was restarted', undefined, 'test'))
  pair.wan.mute = false
  pair.wan.cut()
  await until('the next session', () => pair.count('session open') === 4)
  await until('its bytes', () => pair.target.received.some(bytes => bytes.equals(MAIN)))
  main.write('more')
  await until('all of it', () => pair.target.received.some(bytes => bytes.length === MAIN.length + 4))
  t.equal(pair.target.sockets.length, 1, 'whoever listened there before heard nothing')
})

t.test('a QEMU that gives up between two sessions', async t => {
  await using pair = await Daemons.start()
  const running = await pair.dial()
  running.write(MAIN)
  await until('main', () => pair.target.received[0]?.equals(MAIN) === true)
  pair.drainUnsaid()
  const late = await pair.dial()
  late.write(MAIN)
  await until('a refusal', () => pair.count('connections wait for another session') > 0)
  late.resetAndDestroy()
  running.end()
  pair.target.sockets[0]!.end()
  await until('another session', () => pair.count('session open') === 4)
  const next = await pair.dial()
  next.write(MAIN)
  await until('the next one', () => pair.target.received[1]?.equals(MAIN) === true)
  t.equal(pair.target.sockets.length, 2, 'its target was not dialled')
})

t.test('all sessions of a process take of one memory, at the source too', async t => {
  const memory = new FairShares(64 << 20)
  await using pair = await Daemons.start({ memory })
  await until('a session', () => pair.count('session open') === 2)
  const shareOf = ({ session }: Link): Share => (session as unknown as { memory: Share }).memory
  const shares = [shareOf(runOf(pair.source)!.link), shareOf(pair.link)]
  for (const share of shares) t.ok(share.take(1 << 20))
  t.equal(memory.used, 2 << 20)
  await pair.loseSession()
  await until('another session', () => pair.count('session open') === 4)
  t.equal(memory.used, 0, 'a session that ends gives back what it had')
})

t.test('a source proxy that means harm takes bounded memory', async t => {
  await using pair = await Daemons.start()
  await until('a session', () => pair.count('session open') === 2)
  const { session } = runOf(pair.source)!.client
  const info = { target: 'default', migration: 9, kind: 'main' }
  session.openFlow(info) // is silent, and so holds up the dials of those behind it
  const { link } = pair
  for (let i = 0; i < 1000; i++) {
    const flow = session.openFlow(info)
    session.resetFlow(flow, 1, 'again')
    while (session.flowCount > 500) await sleep(1)
  }
  await until('all to have passed', () => session.flowCount === 1)
  const { runs } = pair.destination as unknown as {
    runs: Map<Link, { session: { dials: DialQueue<object>; options: { pieces: Share } } }>
  }
  const half = runs.get(link)!.session
  t.equal(half.dials.waiting, 1, 'who is gone waits for no dial')
  const second = session.openFlow(info)
  session.sendData(second, MAIN)
  for (let i = 1; i < 1000; i++) session.sendData(second, Buffer.alloc(1))
  await until('its pieces', () => half.options.pieces.held === 1000)
  session.resetFlow(second, 1, 'again')
  await until('them to be let go', () => half.options.pieces.held === 0)
  const third = session.openFlow(info)
  session.sendData(third, MAIN)
  for (let i = 0; i < 100_000 && !link.over; i++) {
    session.sendData(third, Buffer.alloc(1))
    if (i % 1000 === 0) await sleep(1)
  }
  await until('the end of the session', () => link.over)
  t.match(await link.ended, { code: 'LIMIT_EXCEEDED', what: /^65536 pieces/ })
  await until('the next session', () => pair.count('session open') === 4)
})

/** All of a pool that both sides must have alike: what passed, which of it may be named, and what each place holds. */
function digestOf({ kernel }: Pool): string {
  const { bytes, layout } = kernel
  const hash = createHash('sha256')
  for (const [at, length] of [
    [layout.state + 4 * STATE.CURSOR, 8], // and USED
    [layout.ringMark, layout.ringPages],
    [layout.placeTable, layout.places * 4],
    [layout.ring, layout.ringPages * PAGE],
  ] as const)
    hash.update(bytes.subarray(at, at + length))
  return hash.digest('hex')
}

t.test('both pools are alike after any order of channels, cancels and reconnects', async t => {
  for (let seed = 1; seed <= 4; seed++) {
    const next = random(seed)
    await using pair = await Daemons.start()
    const { source, target } = pair
    target.onConnection = socket => {
      socket.on('end', () => socket.end())
      if (next(6) === 0) setTimeout(() => socket.resetAndDestroy(), next(40)) // the destination QEMU gives up
    }
    let cancelled = 0
    const sockets: net.Socket[] = []
    const send = async (bytes: Buffer): Promise<void> => {
      const socket = await pair.dial()
      socket.resume()
      const end = next(5) === 0 ? next(bytes.length) : bytes.length
      for (let at = 0; at < end && !socket.destroyed; ) {
        const take = Math.min(end - at, 1 + next(80_000))
        socket.write(bytes.subarray(at, at + take))
        at += take
        if (next(8) === 0) pair.wan.cut()
        if (next(3) === 0) await sleep(next(10))
      }
      if (end === bytes.length) socket.end()
      else {
        cancelled++
        socket.resetAndDestroy()
      }
      sockets.push(socket)
    }
    const session = (): SourceSession => runOf(source)!.session!
    await until('a session', () => pair.count('session open') === 2)
    const first = session()
    for (let round = 0; round < 6; round++) {
      const pages = (count: number): Buffer[] => Array.from({ length: count }, () => page(1 + next(600)))
      const channels = [migration(pages(next(300))), ...[0, 1].map(id => multifdChannel(id, pages(next(150))))]
      await Promise.all(channels.map(send))
      interface Half {
        readonly channelCount: number
        readonly inbound: { readonly pool: Pool; readonly waiting: number; readonly running: boolean }
      }
      const { runs } = pair.destination as unknown as { runs: Map<Link, { session: Half }> }
      await sleep(100)
      await until('the end of all channels', () => session().channelCount === 0)
      const far = [...runs.values()][0]!.session
      await until('the last batch', () => far.channelCount === 0 && far.inbound.waiting === 0 && !far.inbound.running)
      for (const socket of sockets.splice(0)) socket.destroy() // a channel whose main was cancelled waits for another
      const digest = digestOf(session().options.pool)
      t.equal(digestOf(far.inbound.pool), digest, `seed ${seed}, round ${round}`)
    }
    t.equal(session(), first, `all of it in one session, ${cancelled} channels cancelled`)
    t.ok(pair.count('WAN connection lost') > 0, 'and the WAN broke')
  }
})

t.test('a stop while sets are looked through', async t => {
  const store = {
    fingerprint: () => sleep(100, 'no sets'),
    list: () => sleep(300, []),
    dropTables: () => {},
  } as unknown as TemplateStore
  await using pair = await Daemons.start({ store })
  await sleep(150)
  await pair.source.stop()
  await pair.source.ended // or the time of the test is up
  t.pass('the proxy ends')
})

/** A proxy as operators run it. */
class Running implements AsyncDisposable {
  readonly child: ChildProcess
  readonly exit: Promise<unknown[]>
  lines: string[] = []

  constructor(...args: string[]) {
    const pageferry = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
    this.child = spawn(pageferry, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    this.exit = once(this.child, 'exit')
    createInterface({ input: this.child.stdout! }).on('line', line => this.lines.push(line))
  }

  count(text: string): number {
    return this.lines.filter(line => line.includes(text)).length
  }

  said(text: string, times = 1): Promise<true> {
    return until(
      () => `"${text}" in ${this.lines.join('\n')}`,
      () => this.count(text) >= times,
    )
  }

  /** The port that it says it listens at. */
  async port(text: string): Promise<number> {
    await this.said(text)
    return Number(/:(\d+)"?$/.exec(this.lines.find(line => line.includes(text))!)![1])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL')
    await this.exit
  }
}

for (const command of ['source', 'serve']) {
  t.test(`${command}: SIGHUP changes the rate of a running migration`, async t => {
    const folder = t.testdir()
    await using target = new Target()
    target.server.listen(0, '127.0.0.1')
    await once(target.server, 'listening')
    let received = 0
    target.onConnection = socket => socket.on('data', chunk => (received += chunk.length))
    const to = `tcp:127.0.0.1:${target.port}`
    await using destination = new Running('destination', '--plaintext', '--listen', 'tcp:127.0.0.1:0', '--target', to)
    const peer = `127.0.0.1:${await destination.port('listening for source proxies')}`
    const file = `${folder}/settings`
    const local = await claimPort()
    const setRate = (rate: string, caps: string, more = ''): void => {
      const site = `plaintext: true
effort: 0
peers: { far: { address: "${peer}", ${caps} } }
listeners: [{ at: "tcp:127.0.0.1:${local}", peer: far }]
${more}`
      writeFileSync(file, command === 'source' ? `${rate} # of 100\n` : site)
    }
    setRate('4Mbit', 'rate: 4Mbit')
    await using source =
      command === 'source'
        ? new Running(
            'source',
            '--plaintext',
            '--listen',
            `tcp:127.0.0.1:${local}`,
            '--peer',
            peer,
            '--effort',
            '0',
            '--rate-file',
            file,
          )
        : new Running('serve', '--config', file)
    await source.said('session open')
    const qemu = net.connect(local, '127.0.0.1')
    t.teardown(() => qemu.destroy())
    qemu.on('error', () => {})
    qemu.write(MAIN)
    const feed = (): void => {
      while (qemu.write(randomBytes(1 << 16)));
      qemu.once('drain', feed)
    }
    feed()
    const measured = async (): Promise<number> => {
      await sleep(500) // what the rate before has put on its way
      const from = received
      const fromMs = performance.now()
      await sleep(1500)
      return ((received - from) * 8) / 1e3 / (performance.now() - fromMs)
    }
    // what a busy machine has kept back comes at once: less than the rate or more, but not for long. A rate that is not kept
    // fails by the test's time.
    const between = async (least: number, most: number): Promise<number> => {
      for (;;) {
        const found = await measured()
        if (found > least && found < most) return found
      }
    }
    const before = await between(0, 5)
    const always = 'mon-sun 0:00-24:00 16Mbit' // a schedule, which does not change while we look
    // at serve of all peers together: of its own this one has more
    setRate(always, 'rate: 1Gbit', `rate: 1Mbit\nrate-schedule: "${always}"\npatience: 60s`)
    source.child.kill('SIGHUP')
    await source.said(`rate bytesPerSecond=2000000 by=schedule peer=${command === 'serve' ? 'all' : peer}`)
    await source.said('settings read again')
    const after = await between(6, 18)
    t.pass(`4 Mbit/s: ${before.toFixed(1)}, then 16: ${after.toFixed(1)}`)
    if (command === 'serve') await source.said('a restart is needed for changed settings settings=')
    writeFileSync(file, 'rate: fast')
    source.child.kill('SIGHUP')
    await source.said('settings not read: the old ones stay')
    t.equal(source.child.exitCode, null, 'a mistake ends nothing')
  })
}

t.test('SIGTERM while a migration runs: at the destination, then at the source', async t => {
  await using target = new Target()
  target.server.listen(0, '127.0.0.1')
  await once(target.server, 'listening')
  const [wan, local] = [await claimPort(), await claimPort()]
  const to = `tcp:127.0.0.1:${target.port}`
  const startDestination = () =>
    new Running('destination', '--plaintext', '--listen', `tcp:127.0.0.1:${wan}`, '--target', to)
  await using destination = startDestination()
  await destination.said('listening for source proxies')
  const peer = `127.0.0.1:${wan}`
  await using source = new Running('source', '--plaintext', '--listen', `tcp:127.0.0.1:${local}`, '--peer', peer)
  await source.said('session open')
  const qemus: net.Socket[] = []
  t.teardown(() => {
    for (const qemu of qemus) qemu.destroy()
  })
  const dial = (bytes: Buffer): net.Socket => {
    const qemu = net.connect({ port: local, host: '127.0.0.1', allowHalfOpen: true })
    qemus.push(qemu)
    qemu.on('error', () => {})
    qemu.write(bytes)
    return qemu
  }
  const arrived = (channel: number, bytes: Buffer): Promise<true> =>
    until(`channel ${channel}`, () => target.received[channel]?.equals(bytes) === true)
  /** Ends channels on both sides. */
  const finish = (channels: readonly number[]): void => {
    for (const channel of channels) for (const socket of [qemus[channel]!, target.sockets[channel]!]) socket.end()
  }

  const first = Buffer.concat([MAIN, randomBytes(2_000_000)])
  const main = dial(first.subarray(0, 1_000_000))
  await arrived(0, first.subarray(0, 1_000_000)) // else nothing runs there, and the migration waits for the next session
  destination.child.kill('SIGTERM')
  await source.said('peer drains')
  main.write(first.subarray(1_000_000))
  dial(MULTIFD) // a further channel of the running migration
  await Promise.all([arrived(0, first), arrived(1, MULTIFD)])
  t.equal(destination.child.exitCode, null, 'it waits for the migration')
  finish([0, 1])
  t.same(await destination.exit, [0, null])
  await source.said('migration 1 ended')

  const second = Buffer.concat([MAIN, randomBytes(300_000)])
  dial(second) // waits
  await using restarted = startDestination()
  await restarted.said('listening for source proxies')
  await arrived(2, second)
  source.child.kill('SIGTERM')
  await source.said('running migrations finish first')
  dial(MULTIFD)
  await arrived(3, MULTIFD)
  t.equal(source.child.exitCode, null, 'it waits for the migration')
  finish([2, 3])
  t.same(await source.exit, [0, null])
  await restarted.said('migration 2 ended')
  t.equal(target.sockets.length, 4)
})

t.test('wrong credentials are said once, their warnings too', async t => {
  const folder = t.testdir({ here: {}, there: {} })
  const [here, there] = [`${folder}/here`, `${folder}/there`]
  for (const directory of [here, there])
    writeFileSync(`${directory}/keys.psk`, `a:${randomBytes(32).toString('hex')}\n`)
  chmodSync(`${here}/keys.psk`, 0o644)
  chmodSync(`${there}/keys.psk`, 0o600)
  const listen = ['--listen', 'tcp:127.0.0.1:0']
  await using destination = new Running('destination', '--tls-creds', there, ...listen, '--target', 'tcp:127.0.0.1:1')
  const peer = `127.0.0.1:${await destination.port('listening for source proxies')}`
  await using source = new Running('source', '--tls-creds', here, ...listen, '--peer', peer)
  await destination.said('link.refused', 3) // three tries
  t.same([source.count('link.'), source.count('no session')], [2, 1], source.lines.join('\n'))
  t.equal(source.count('others can reach this secret'), 1)
  writeFileSync(`${here}/keys.psk`, readFileSync(`${there}/keys.psk`)) // its mode stays
  source.child.kill('SIGHUP')
  await source.said('session open')
  t.match(
    source.lines.find(line => line.includes('session open')),
    /failedBefore=\d/,
  )
  t.equal(source.count('others can reach this secret'), 2, 'again with the new files')
})

t.test('a reader of the log that goes away ends no proxy', async t => {
  const pageferry = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
  const args = ['source', '--plaintext', '--listen', 'tcp:127.0.0.1:0', '--peer', '127.0.0.1:1']
  const child = spawn(pageferry, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  const exit = once(child, 'exit')
  let said = ''
  child.stdout.on('data', chunk => {
    said += chunk
  })
  await until('the proxy', () => said.includes('listening for QEMU'))
  child.stdout.destroy()
  await sleep(50)
  child.kill('SIGHUP') // a line of the log
  t.equal(await Promise.race([exit.then(() => 'ended'), sleep(1000, 'runs')]), 'runs')
  child.kill('SIGTERM')
  t.same(await exit, [0, null])
})
