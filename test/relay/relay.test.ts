/**
 * The local side: addresses, one connection of QEMU in both ways of reading, listeners, the dialler. Peers are plain
 * net.Sockets, so nothing of the code under test makes the bytes or judges them.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomFillSync } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, existsSync, lstatSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { isProxyError, ProxyError } from '../../src/errors.ts'
import {
  type Address,
  DEFAULT_TARGET,
  expandRange,
  formatAddress,
  isLoopback,
  isLoopbackIp,
  isRange,
  parseAddress,
  parseNamedAddress,
  RANGE_PORTS_MAX,
  targetAtPort,
  targetOf,
} from '../../src/relay/address.ts'
import { dial } from '../../src/relay/dialer.ts'
import { fileMode, groupId } from '../../src/relay/group.ts'
import { type Accepted, isServed, listen, listenSockets } from '../../src/relay/listener.ts'
import {
  acceptQemuSocket,
  type QemuSocket,
  type ReadMode,
  type SocketClosed,
  type SocketSink,
} from '../../src/relay/qemu-socket.ts'
import { ownHost } from '../helpers/own-host.ts'
import { until } from '../helpers/until.ts'

t.setTimeout(590_000) // the machine may be busy

const MODES: readonly ReadMode[] = ['onread', 'data']
const LOOPBACK = parseAddress('tcp:127.0.0.1:0')
const folder = mkdtempSync(join(tmpdir(), 'pageferry-relay-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

const hasIpv6 = await new Promise<boolean>(resolve => {
  const probe = net.createServer().listen(0, '::1', () => probe.close(() => resolve(true)))
  probe.on('error', () => resolve(false))
})

/** The error of a promise or function that must fail, and must fail as a ProxyError. */
async function failure(run: () => unknown): Promise<ProxyError> {
  try {
    await run()
  } catch (error) {
    if (error instanceof ProxyError) return error
    throw error
  }
  throw new Error('it did not fail')
}

/** Has a process stand still; settles once it does. */
async function stop(child: ChildProcess): Promise<void> {
  child.kill('SIGSTOP')
  await until('the process to stand still', () => /\) T /.test(readFileSync(`/proc/${child.pid}/stat`, 'utf8')))
}

/** A sink that keeps all it gets, with as many slots as it is told to have. */
class Keeper implements SocketSink {
  readonly slotBytes: number
  free = Number.POSITIVE_INFINITY
  got: Buffer[] = []
  events: string[] = []
  closed: SocketClosed | undefined
  asked = 0
  private slot: Uint8Array | undefined

  constructor(slotBytes = 65536) {
    this.slotBytes = slotBytes
  }

  nextSlot(): Uint8Array | undefined {
    this.asked++
    if (this.free <= 0) return undefined
    this.free--
    this.slot = new Uint8Array(this.slotBytes).fill(0xee)
    return this.slot
  }

  onBytes(count: number): void {
    if (!this.slot || count < 1 || count > this.slot.length) throw new Error(`${count} bytes without a slot for them`)
    this.got.push(Buffer.from(this.slot.subarray(0, count)))
    this.slot = undefined
    this.events.push('bytes')
  }

  onEnd(): void {
    this.events.push('end')
  }

  onClosed(closed: SocketClosed): void {
    if (this.closed) throw new Error('closed twice')
    this.closed = closed
    this.events.push(closed.how)
  }

  get bytes(): Buffer {
    return Buffer.concat(this.got)
  }

  /** Without the 'bytes', of which there are as many as the kernel likes. */
  get story(): string {
    return this.events.filter(event => event !== 'bytes').join(' ')
  }
}

/** A connection: the peer as a plain socket, our end as a QemuSocket. */
interface Pair {
  readonly peer: net.Socket
  readonly ours: QemuSocket
  readonly close: () => Promise<void>
}

const CLOSERS: (() => Promise<void>)[] = []
t.teardown(async () => {
  for (const close of CLOSERS) await close()
})

/** Our end accepted the connection. */
async function acceptedPair(mode: ReadMode, address: Address = LOOPBACK): Promise<Pair> {
  const accepted: QemuSocket[] = []
  const listener = await listen(address, socket => accepted.push(socket), { readMode: mode })
  const at = listener.addresses[0]!
  const peer = net.connect({
    ...(at.kind === 'tcp' ? { host: at.host, port: at.port } : { path: (at as { path: string }).path }),
    allowHalfOpen: true,
  })
  peer.on('error', () => {})
  await once(peer, 'connect')
  await until('accept', () => accepted.length === 1)
  const ours = accepted[0]!
  const close = async (): Promise<void> => {
    peer.destroy()
    ours.reset()
    await listener.close()
  }
  CLOSERS.push(close)
  return { peer, ours, close }
}

/** Our end dialled. */
async function dialledPair(mode: ReadMode, path?: string): Promise<Pair> {
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true })
  if (path === undefined) server.listen(0, '127.0.0.1')
  else server.listen(path)
  await once(server, 'listening')
  const came = once(server, 'connection')
  const port = (server.address() as net.AddressInfo).port
  const ours = await dial(
    path === undefined ? { kind: 'tcp', host: '127.0.0.1', port, portTo: port } : { kind: 'unix', path },
    { readMode: mode },
  )
  const [peer] = (await came) as [net.Socket]
  peer.on('error', () => {})
  const close = async (): Promise<void> => {
    peer.destroy()
    ours.reset()
    server.close()
  }
  CLOSERS.push(close)
  return { peer, ours, close }
}

function write(socket: QemuSocket, bytes: Uint8Array): Promise<NodeJS.ErrnoException | undefined> {
  return new Promise(resolve => socket.write(bytes, resolve))
}

/** Reads a plain socket to its end or error. */
async function drain(peer: net.Socket): Promise<{ bytes: Buffer; how: string }> {
  const got: Buffer[] = []
  peer.on('data', (chunk: Buffer) => got.push(chunk))
  peer.resume() // an accepted one is paused
  const how = await new Promise<string>(resolve => {
    if (peer.readableEnded) resolve('end')
    peer.once('end', () => resolve('end'))
    peer.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'error'))
    peer.once('close', () => resolve('close'))
  })
  return { bytes: Buffer.concat(got), how }
}

t.test('addresses', async t => {
  const good: readonly [string, Address][] = [
    ['tcp:127.0.0.1:4444', { kind: 'tcp', host: '127.0.0.1', port: 4444, portTo: 4444 }],
    ['tcp:example.org:65535', { kind: 'tcp', host: 'example.org', port: 65535, portTo: 65535 }],
    ['tcp::4444', { kind: 'tcp', host: '', port: 4444, portTo: 4444 }],
    ['tcp:0:4444', { kind: 'tcp', host: '0', port: 4444, portTo: 4444 }],
    ['tcp:[::1]:4444', { kind: 'tcp', host: '::1', port: 4444, portTo: 4444 }],
    ['tcp:[fe80::1%eth0]:4444', { kind: 'tcp', host: 'fe80::1%eth0', port: 4444, portTo: 4444 }],
    ['tcp:127.0.0.1:0', { kind: 'tcp', host: '127.0.0.1', port: 0, portTo: 0 }],
    ['tcp:127.0.0.1:49152-49215', { kind: 'tcp', host: '127.0.0.1', port: 49152, portTo: 49215 }],
    ['tcp:[::]:49152-49153', { kind: 'tcp', host: '::', port: 49152, portTo: 49153 }],
    ['unix:/run/q.sock', { kind: 'unix', path: '/run/q.sock' }],
    ['unix:a=b,c:d', { kind: 'unix', path: 'a=b,c:d' }],
    [`unix:/${'x'.repeat(106)}`, { kind: 'unix', path: `/${'x'.repeat(106)}` }],
    ['fd:qemu', { kind: 'fd', name: 'qemu' }],
  ]
  for (const [text, value] of good) {
    if (text === 'tcp:0:4444') continue // QEMU's 0 is 0.0.0.0; refused below
    t.same(parseAddress(text), value, text)
    t.equal(formatAddress(value), text, `${text} again`)
  }
  t.same(parseAddress('tcp:localhost:7-7'), { kind: 'tcp', host: 'localhost', port: 7, portTo: 7 }, 'a range of one')

  const bad: readonly [string, RegExp][] = [
    ['', /tcp:HOST:PORT/],
    ['4444', /tcp:HOST:PORT/],
    ['127.0.0.1:4444', /put tcp: in front/],
    ['/run/q.sock', /unix:PATH/],
    ['tcp://127.0.0.1:4444', /slashes/],
    ['unix:///run/q.sock', /slashes/],
    ['exec:cat', /only tcp: and unix:/],
    ['rdma:host:1', /only tcp: and unix:/],
    ['tcp:', /tcp:HOST:PORT/],
    ['tcp:host', /tcp:HOST:PORT/],
    ['tcp:host:', /a number/],
    ['tcp:host:http', /a number/],
    ['tcp:host:-1', /a number/],
    ['tcp:host:1-', /a number/],
    ['tcp:host:65536', /65535/],
    ['tcp:host:0-5', /lower port/],
    ['tcp:host:9-8', /lower port/],
    [`tcp:host:1-${RANGE_PORTS_MAX + 1}`, /at most/],
    ['tcp:::1:4444', /brackets/],
    ['tcp:fe80::1:4444', /brackets/],
    ['tcp:[::1:4444', /tcp:HOST:PORT/],
    ['tcp:[1.2.3.4]:4444', /tcp:HOST:PORT/],
    ['tcp:[]:4444', /tcp:HOST:PORT/],
    ['tcp:1.2.3:4444', /tcp:HOST:PORT/],
    ['tcp:256.1.1.1:4444', /tcp:HOST:PORT/],
    ['tcp:0:4444', /tcp:HOST:PORT/],
    ['tcp:a b:4444', /tcp:HOST:PORT/],
    ['tcp:host:4444,ipv4=on', /leave them out/],
    ['unix:', /unix:PATH/],
    ['unix:a\0b', /abstract/],
    [`unix:/${'x'.repeat(107)}`, /107 at most/],
    ['fd:', /FileDescriptorName/],
    ['fd:a:b', /FileDescriptorName/],
    ['fd:a b', /FileDescriptorName/],
  ]
  for (const [text, hint] of bad) {
    const error = await failure(() => parseAddress(text))
    t.equal(error.code, 'ADDRESS', JSON.stringify(text))
    t.match(error.action, hint, `${JSON.stringify(text)}: the hint`)
  }

  t.same(parseNamedAddress('db=tcp:h:1'), { name: 'db', address: parseAddress('tcp:h:1') })
  t.same(parseNamedAddress('tcp:h:1'), { name: DEFAULT_TARGET, address: parseAddress('tcp:h:1') })
  t.same(parseNamedAddress('unix:/a=b'), { name: DEFAULT_TARGET, address: parseAddress('unix:/a=b') })
  t.same(parseNamedAddress('x.y-z_1=unix:/a=b'), { name: 'x.y-z_1', address: parseAddress('unix:/a=b') })
  t.equal((await failure(() => parseNamedAddress('a b=tcp:h:1'))).code, 'ADDRESS')
  t.equal((await failure(() => parseNamedAddress('=tcp:h:1'))).code, 'ADDRESS')

  const loopback: readonly [string, boolean][] = [
    ['tcp:127.0.0.1:1', true],
    ['tcp:127.255.0.3:1', true],
    ['tcp:localhost:1', true],
    ['tcp:LocalHost:1', true],
    ['tcp:[::1]:1', true],
    ['tcp:[0:0:0:0:0:0:0:1]:1', true],
    ['tcp:[::ffff:127.0.0.1]:1', true],
    ['tcp:[::ffff:7f00:1]:1', true],
    ['unix:/x', true],
    ['tcp::1', false],
    ['tcp:0.0.0.0:1', false],
    ['tcp:[::]:1', false],
    ['tcp:[::ffff:10.0.0.1]:1', false],
    ['tcp:[fe80::1%lo]:1', false],
    ['tcp:128.0.0.1:1', false],
    ['tcp:127.0.0.1.example.org:1', false],
    ['fd:x', false],
  ]
  for (const [text, is] of loopback)
    t.equal(isLoopback(parseAddress(text)), is, `${text} is ${is ? '' : 'not '}loopback`)
  t.equal(isLoopbackIp('localhost'), false, 'a name is no literal')

  const range = parseAddress('tcp:h:10-12')
  t.ok(isRange(range))
  t.notOk(isRange(parseAddress('tcp:h:10')))
  t.same(expandRange(range).map(formatAddress), ['tcp:h:10', 'tcp:h:11', 'tcp:h:12'])
  t.same(expandRange(parseAddress('unix:/x')), [{ kind: 'unix', path: '/x' }])
  t.equal(formatAddress(targetAtPort(range, 11)), 'tcp:h:11', 'the same port at the other side')
  for (const port of [9, 13, 10.5, undefined]) {
    t.equal((await failure(() => targetAtPort(range, port))).code, 'TARGET_REFUSED', `port ${port}`)
  }
  t.equal(formatAddress(targetAtPort(parseAddress('tcp:h:5'), 11)), 'tcp:h:5', 'a single target takes any port')
  t.equal(formatAddress(targetAtPort(parseAddress('unix:/x'), undefined)), 'unix:/x')

  const targets = new Map([
    ['default', parseAddress('tcp:h:5')],
    ['many', range],
  ])
  t.equal(formatAddress(targetOf('default', targets)), 'tcp:h:5')
  t.equal(formatAddress(targetOf('many:12', targets)), 'tcp:h:12')
  for (const name of ['many', 'many:13', 'many:x', 'other', 'other:5', '', ':5', 'default ']) {
    t.equal((await failure(() => targetOf(name, targets))).code, 'TARGET_REFUSED', JSON.stringify(name))
  }
})

/** Slots in shared WebAssembly memory between two connections: what arrives on one leaves by the other. */
function relay(
  from: QemuSocket,
  to: QemuSocket,
  slotBytes: number,
  slots: number,
  seen: { pausesMax: number },
): SocketSink {
  const memory = new WebAssembly.Memory({
    initial: Math.ceil((slotBytes * slots) / 65536),
    maximum: Math.ceil((slotBytes * slots) / 65536),
    shared: true,
  })
  const ring = Array.from({ length: slots }, (_, i) => new Uint8Array(memory.buffer, i * slotBytes, slotBytes))
  let next = 0
  let busy = 0
  let given = false
  return {
    nextSlot() {
      if (given) throw new Error('a second slot before the first came back')
      if (busy === slots) {
        seen.pausesMax++
        return undefined
      }
      given = true
      return ring[next]
    },
    onBytes(count) {
      const view = ring[next]!.subarray(0, count)
      given = false
      busy++
      next = (next + 1) % slots
      to.write(view, error => {
        if (error) throw error
        view.fill(0xdd) // whoever still reads from here shows it in the digest
        busy--
        from.resume()
      })
    },
    onEnd: () => to.finish(),
    onClosed: () => {},
  }
}

/** Sends `total` random bytes and then FIN; gives their digest. */
async function sendRandom(socket: net.Socket, total: number, pieceBytes: () => number): Promise<string> {
  const digest = createHash('sha256')
  const block = Buffer.alloc(1 << 20)
  let left = total
  while (left > 0) {
    const piece = block.subarray(0, Math.min(left, pieceBytes()))
    randomFillSync(piece)
    digest.update(piece)
    left -= piece.length
    await new Promise<void>((resolve, reject) => socket.write(piece, error => (error ? reject(error) : resolve())))
  }
  socket.end()
  return digest.digest('hex')
}

/** Reads to FIN with a pause now and then; gives the digest. */
async function receive(socket: net.Socket, pauseEvery: number): Promise<{ digest: string; bytes: number }> {
  const digest = createHash('sha256')
  let bytes = 0
  let untilPause = pauseEvery
  socket.on('data', (chunk: Buffer) => {
    digest.update(chunk)
    bytes += chunk.length
    untilPause -= chunk.length
    if (untilPause < 0) {
      untilPause = pauseEvery
      socket.pause()
      setTimeout(() => socket.resume(), 20)
    }
  })
  socket.resume()
  await once(socket, 'end')
  return { digest: digest.digest('hex'), bytes }
}

for (const mode of MODES) {
  t.test(`reading by ${mode}`, async t => {
    t.test('200 MB each way at once, byte for byte, against back-pressure', async t => {
      const near = await acceptedPair(mode)
      const far = await dialledPair(mode)
      const seen = { pausesMax: 0 }
      // 512 KiB slots one way; few and odd ones the other way, so that every edge of a slot is met.
      near.ours.start(relay(near.ours, far.ours, 524288, 4, seen))
      far.ours.start(relay(far.ours, near.ours, 10007, 3, seen))
      const total = 200_000_000
      const back = mode === 'onread' ? total : 20_000_000
      let size = 1
      const sizes = (): number => {
        size = (size * 16807) % 2147483647
        return 1 + (size % (1 << (size % 21)))
      }
      const [there, arrived, answer, answered] = await Promise.all([
        sendRandom(near.peer, total, () => 1 << 20),
        receive(far.peer, 40_000_000),
        sendRandom(far.peer, back, sizes),
        receive(near.peer, 40_000_000),
      ])
      t.same(arrived, { digest: there, bytes: total }, 'there')
      t.same(answered, { digest: answer, bytes: back }, 'back')
      t.ok(seen.pausesMax > 0, `slots ran out ${seen.pausesMax} times`)
      t.equal(near.ours.readMode, mode)
      t.equal(far.ours.readMode, mode)
      t.equal(near.ours.bytesRead, total)
      t.equal(far.ours.bytesWritten, total)
      await until('both closed', () => near.ours.isClosed && far.ours.isClosed)
      t.equal(far.ours.pendingWriteBytes + near.ours.pendingWriteBytes, 0)
    })

    t.test('bytes of every length around the edges of bridge and slot', async t => {
      for (const slotBytes of [1, 100, 4095, 4096, 4097, 9000]) {
        const { peer, ours, close } = await acceptedPair(mode)
        const keeper = new Keeper(slotBytes)
        ours.start(keeper)
        const sent: Buffer[] = []
        for (const length of [1, 4095, 4096, 4097, 8192, 1, 65536, 4096, 20000]) {
          const piece = randomFillSync(Buffer.alloc(length))
          sent.push(piece)
          peer.write(piece)
          await until(`${length} bytes`, () => ours.bytesRead === sent.reduce((sum, b) => sum + b.length, 0))
        }
        t.ok(keeper.bytes.equals(Buffer.concat(sent)), `slots of ${slotBytes} bytes`)
        await close()
      }
    })

    t.test('bytes are given at once, and a silent connection holds no slot', async t => {
      const { peer, ours } = await acceptedPair(mode)
      const keeper = new Keeper()
      ours.start(keeper)
      await sleep(20)
      t.equal(keeper.asked, 0, 'no slot before there are bytes')
      peer.write('QEVM')
      await until('4 bytes', () => ours.bytesRead === 4)
      t.equal(keeper.bytes.toString(), 'QEVM')
      const before = performance.now()
      peer.write(Buffer.alloc(4096, 1))
      await until('4096 bytes', () => ours.bytesRead === 4100)
      t.ok(performance.now() - before < 5000, 'as many bytes as the bridge has do not wait for the next')
    })

    t.test('without a slot nothing is read, and nothing is lost', async t => {
      const { peer, ours } = await acceptedPair(mode)
      const keeper = new Keeper(1000)
      keeper.free = 0
      ours.start(keeper)
      const sent = randomFillSync(Buffer.alloc(30_000_000))
      peer.write(sent)
      peer.end()
      await until('pause', () => ours.isPaused)
      await sleep(50)
      t.equal(ours.bytesRead, 0)
      t.ok(peer.writableLength > 0, 'the peer feels it')
      keeper.free = 3
      ours.resume()
      await until('3 slots', () => keeper.free === 0 && ours.isPaused)
      t.equal(ours.bytesRead, 3000)
      t.equal(keeper.story, '', 'no end before the bytes')
      keeper.free = Number.POSITIVE_INFINITY
      ours.resume()
      await until('end', () => ours.isEnded)
      t.ok(keeper.bytes.equals(sent))
      t.equal(keeper.story, 'end')
    })

    t.test('half-close: the peer first, then we', async t => {
      const { peer, ours } = await acceptedPair(mode)
      const keeper = new Keeper()
      ours.start(keeper)
      const theirs = drain(peer)
      peer.end('last words')
      await until('end', () => ours.isEnded)
      t.equal(keeper.bytes.toString(), 'last words')
      t.notOk(ours.isClosed)
      const answer = randomFillSync(Buffer.alloc(5_000_000))
      t.equal(await write(ours, answer), undefined, 'we may still write')
      ours.finish()
      const got = await theirs
      t.equal(got.how, 'end')
      t.ok(got.bytes.equals(answer))
      await until('closed', () => ours.isClosed)
      t.equal(keeper.story, 'end finished')
    })

    t.test('half-close: we first, then the peer', async t => {
      const { peer, ours } = await dialledPair(mode)
      const keeper = new Keeper()
      ours.start(keeper)
      const sent = randomFillSync(Buffer.alloc(9_000_000))
      let done = 0
      for (let at = 0; at < sent.length; at += 1_000_000) ours.write(sent.subarray(at, at + 1_000_000), () => done++)
      t.ok(ours.pendingWriteBytes > 0, 'back-pressure shows')
      ours.finish()
      t.equal((await write(ours, sent))?.code, 'EPIPE', 'no write behind FIN')
      const got = await drain(peer)
      t.ok(got.bytes.equals(sent), 'FIN comes behind all bytes')
      t.equal(got.how, 'end')
      t.equal(done, 9)
      await sleep(20)
      t.equal(keeper.story, '', 'their direction lives on')
      peer.end('SHUT')
      await until('closed', () => ours.isClosed)
      t.equal(keeper.story, 'end finished')
      t.equal(keeper.bytes.toString(), 'SHUT')
    })

    t.test('RST arrives as RST, behind the bytes that came before it', async t => {
      const { peer, ours } = await acceptedPair(mode)
      const keeper = new Keeper()
      ours.start(keeper)
      peer.write('bytes')
      await until('bytes', () => ours.bytesRead === 5)
      peer.resetAndDestroy()
      await until('closed', () => ours.isClosed)
      t.equal(keeper.story, 'reset')
      t.equal(keeper.closed?.error?.code, 'ECONNRESET')
      t.equal((await write(ours, Buffer.alloc(1)))?.code, 'EPIPE', 'a write to a closed connection')
    })

    t.test('RST before the start is told at the start', async t => {
      const { peer, ours } = await acceptedPair(mode)
      peer.resetAndDestroy()
      await sleep(20)
      const keeper = new Keeper()
      ours.start(keeper)
      await until('closed', () => ours.isClosed)
      t.equal(keeper.story, 'reset')
    })

    t.test('bytes and FIN before the start are told at the start', async t => {
      const { peer, ours } = await dialledPair(mode)
      peer.end(Buffer.alloc(100_000, 7))
      await sleep(20)
      const keeper = new Keeper()
      ours.start(keeper)
      await until('end', () => ours.isEnded)
      t.equal(keeper.bytes.length, 100_000)
      t.equal(keeper.story, 'end')
    })

    for (const when of [
      'idle',
      'with writes under way',
      'just after finish',
      'after FIN was sent',
      'from inside onBytes',
    ] as const) {
      t.test(`reset() is an RST: ${when}`, async t => {
        const { peer, ours } = await acceptedPair(mode)
        const keeper = new Keeper()
        if (when === 'from inside onBytes') {
          const onBytes = keeper.onBytes.bind(keeper)
          keeper.onBytes = count => {
            onBytes(count)
            ours.reset()
          }
        }
        ours.start(keeper)
        const dones: (string | undefined)[] = []
        if (when === 'with writes under way') {
          peer.pause()
          for (let i = 0; i < 20; i++)
            ours.write(Buffer.alloc(1_000_000), error => dones.push(error ? 'lost' : 'taken'))
          await sleep(20)
          t.ok(ours.pendingWriteBytes > 0)
        }
        if (when === 'just after finish' || when === 'after FIN was sent') ours.finish()
        if (when === 'after FIN was sent') await sleep(50)
        const theirs = drain(peer)
        if (when === 'from inside onBytes') peer.write(Buffer.alloc(1_000_000))
        else ours.reset()
        ours.reset()
        await until('closed', () => ours.isClosed)
        t.equal(keeper.story, 'local')
        const got = await theirs
        // With bytes or a FIN under way the plain peer may meet those first, and the RST when it touches the connection
        // again.
        if (got.how === 'end') {
          peer.write('x')
          const [error] = (await once(peer, 'error')) as [NodeJS.ErrnoException]
          t.match(error.code, /ECONNRESET|EPIPE/, 'an RST behind the FIN')
        } else t.match(got.how, /ECONNRESET|EPIPE/)
        if (when === 'with writes under way') {
          t.equal(dones.length, 20, 'every write was answered')
          t.ok(dones.includes('lost'))
          t.equal(ours.pendingWriteBytes, 0)
        }
      })
    }

    t.test('a peer that went away is found by the write; what it had sent is delivered all the same', async t => {
      // The destination QEMU sends SHUT and closes with bytes of ours unread: its kernel answers with RST.
      for (const paused of [false, true]) {
        const { peer, ours } = await dialledPair(mode)
        const keeper = new Keeper()
        if (paused) keeper.free = 0
        await write(ours, Buffer.alloc(10_000))
        await sleep(10)
        await new Promise<void>(resolve => peer.write(Buffer.from('0001000400000000', 'hex'), () => resolve()))
        await sleep(10)
        peer.destroy()
        await sleep(10)
        // Not read yet: to the write the RST is the first news.
        if (paused) ours.start(keeper)
        const errors: (string | undefined)[] = []
        for (let i = 0; i < 4; i++) errors.push((await write(ours, Buffer.alloc(100_000)))?.code)
        if (paused) {
          t.notOk(ours.isClosed, 'a failed write does not end the reading')
          keeper.free = 10
          ours.resume()
        } else ours.start(keeper)
        await until('closed', () => ours.isClosed)
        t.match(errors.at(-1), /ECONNRESET|EPIPE/)
        t.equal(keeper.bytes.toString('hex'), '0001000400000000', `SHUT arrives${paused ? ', also after a pause' : ''}`)
        t.equal(keeper.story, 'reset', 'and no FIN is made up')
        t.match(keeper.closed?.error?.code, /ECONNRESET|EPIPE/)
        t.equal(ours.pendingWriteBytes, 0)
      }
    })

    t.test('a peer that sent FIN and then closed: FIN is told, then that writing failed', async t => {
      const { peer, ours } = await acceptedPair(mode)
      const keeper = new Keeper()
      ours.start(keeper)
      peer.end('bye')
      await until('end', () => ours.isEnded)
      peer.destroy()
      await sleep(10)
      for (let i = 0; i < 3 && !ours.isClosed; i++) {
        await write(ours, Buffer.alloc(10))
        await sleep(5)
      }
      await until('closed', () => ours.isClosed)
      t.equal(keeper.story, 'end reset')
      t.equal(keeper.bytes.toString(), 'bye')
    })

    t.test('Unix sockets: bytes, half-close, reset', async t => {
      const path = join(folder, `pair-${mode}`)
      const { peer, ours } = await acceptedPair(mode, { kind: 'unix', path })
      t.equal(ours.peer, '')
      const keeper = new Keeper()
      ours.start(keeper)
      const sent = randomFillSync(Buffer.alloc(3_000_000))
      const theirs = drain(peer)
      peer.end(sent)
      await until('end', () => ours.isEnded)
      t.ok(keeper.bytes.equals(sent))
      await write(ours, sent)
      ours.finish()
      t.ok((await theirs).bytes.equals(sent))
      await until('closed', () => ours.isClosed)
      t.equal(keeper.story, 'end finished')

      const second = await dialledPair(mode, join(folder, `dial-${mode}`))
      const other = new Keeper()
      second.ours.start(other)
      second.ours.reset()
      await until('closed', () => second.ours.isClosed)
      t.equal(other.story, 'local')
      t.match((await drain(second.peer)).how, /end|ECONNRESET/)
    })

    t.test('a close before every write was taken: each done is called once, before onClosed', async t => {
      const { peer, ours } = await acceptedPair(mode)
      const keeper = new Keeper()
      let atClose = -1
      keeper.onClosed = closed => {
        keeper.closed = closed
        atClose = ours.pendingWriteBytes
      }
      ours.start(keeper)
      peer.pause()
      let dones = 0
      for (let i = 0; i < 30; i++) ours.write(Buffer.alloc(500_000), () => dones++)
      await sleep(20)
      peer.resetAndDestroy()
      await until('closed', () => keeper.closed !== undefined)
      t.equal(atClose, 0, 'no memory is lent any more when onClosed comes')
      t.equal(dones, 30)
      t.equal(keeper.closed?.how, 'reset')
    })
  })
}

t.test('the private field: taken where it is, done without where it is not', async t => {
  const got: net.Socket[] = []
  const listener = await listenSockets(LOOPBACK, socket => got.push(socket))
  const at = listener.addresses[0] as { host: string; port: number }
  const peers = [net.connect(at.port, at.host), net.connect(at.port, at.host)]
  await until('accept', () => got.length === 2)
  const real = acceptQemuSocket(got[0]!)
  t.equal(real.readMode, 'onread', `Node ${process.version} has it`)
  // A Node that has moved it: the handle cannot be told to use our memory.
  const handle = (got[1] as unknown as { _handle: object })._handle
  Object.defineProperty(handle, 'useUserBuffer', { value: undefined })
  const fallback = acceptQemuSocket(got[1]!)
  t.equal(fallback.readMode, 'data')
  const keepers = [new Keeper(), new Keeper()]
  real.start(keepers[0]!)
  fallback.start(keepers[1]!)
  for (const peer of peers) peer.end('hello')
  await until('both', () => real.isEnded && fallback.isEnded)
  t.same(
    keepers.map(k => k.bytes.toString()),
    ['hello', 'hello'],
  )
  real.finish()
  fallback.finish()
  await until('closed', () => real.isClosed && fallback.isClosed)
  await listener.close()
})

t.test('listeners', async t => {
  t.test('connections come in accept order, with their port, before a byte is read', async t => {
    const got: { socket: QemuSocket; at: Accepted }[] = []
    const listener = await listen(LOOPBACK, (socket, at) => got.push({ socket, at }))
    const at = listener.addresses[0] as { host: string; port: number }
    const peers: net.Socket[] = []
    for (let i = 0; i < 20; i++) {
      const peer = net.connect(at.port, at.host)
      await once(peer, 'connect')
      peer.on('error', () => {})
      peers.push(peer)
    }
    await until('accept', () => got.length === 20)
    t.same(
      got.map(g => g.socket.peer),
      peers.map(p => `127.0.0.1:${p.localPort}`),
    )
    t.ok(got.every(g => g.at.port === at.port))
    for (const g of got) g.socket.reset()
    await listener.close()
    const gone = net.connect(at.port, at.host)
    const [error] = (await once(gone, 'error')) as [NodeJS.ErrnoException]
    t.equal(error.code, 'ECONNREFUSED', 'closed is closed')
  })

  t.test('connections live on when their listener closes', async t => {
    const got: QemuSocket[] = []
    const listener = await listen(LOOPBACK, socket => got.push(socket))
    const ours = await dial(listener.addresses[0]!)
    await until('accept', () => got.length === 1)
    await listener.close()
    const keeper = new Keeper()
    got[0]!.start(keeper)
    await write(ours, Buffer.from('on'))
    await until('bytes', () => got[0]!.bytesRead === 2)
    t.equal(keeper.bytes.toString(), 'on')
    ours.reset()
    got[0]!.reset()
  })

  t.test('an address that is taken', async t => {
    const first = await listen(LOOPBACK, () => {})
    const error = await failure(() => listen(first.addresses[0]!, () => {}))
    t.equal(error.code, 'IO')
    t.match(error.message, /EADDRINUSE.*another program/)
    await first.close()
  })

  t.test('nothing listens beyond loopback without being told to', async t => {
    for (const text of ['tcp:0.0.0.0:0', 'tcp::0', 'tcp:[::]:0']) {
      const error = await failure(() => listen(parseAddress(text), () => {}))
      t.equal(error.code, 'ADDRESS', text)
      t.match(error.action, /127\.0\.0\.1/)
    }
    const wide = await listen(parseAddress('tcp::0'), () => {}, { beyondLoopback: true })
    const { port } = wide.addresses[0] as { port: number }
    const peer = net.connect(port, '127.0.0.1')
    await once(peer, 'connect')
    peer.destroy()
    await wide.close()
    const named = await listen(parseAddress('tcp:localhost:0'), () => {})
    t.ok(isLoopback(named.addresses[0]!), 'localhost is')
    await named.close()
    t.equal((await failure(() => listen(parseAddress('tcp:no.such.host.invalid:1'), () => {}))).code, 'IO')
    t.match(
      (await failure(() => listen(parseAddress('tcp:192.0.2.1:0'), () => {}, { beyondLoopback: true }))).action,
      /interface/,
    )
  })

  t.test('IPv6', { skip: hasIpv6 ? false : 'no ::1 here' }, async t => {
    const got: QemuSocket[] = []
    const listener = await listen(parseAddress('tcp:[::1]:0'), socket => got.push(socket))
    const ours = await dial(listener.addresses[0]!)
    await until('accept', () => got.length === 1)
    t.match(got[0]!.peer, /^\[::1\]:\d+$/)
    t.equal(ours.peer, formatAddress(listener.addresses[0]!).slice(4))
    const keeper = new Keeper()
    got[0]!.start(keeper)
    await write(ours, Buffer.from('six'))
    await until('bytes', () => got[0]!.bytesRead === 3)
    ours.reset()
    got[0]!.reset()
    await listener.close()
  })

  t.test('a range of ports: each is told apart; all or none', async t => {
    const host = ownHost()
    const from = 40010
    const got: Accepted[] = []
    const listener = await listen(parseAddress(`tcp:${host}:${from}-${from + 7}`), (socket, at) => {
      got.push(at)
      socket.reset()
    })
    t.same(
      listener.addresses.map(a => (a.kind === 'tcp' ? a.port : -1)),
      [0, 1, 2, 3, 4, 5, 6, 7].map(i => from + i),
    )
    for (const offset of [3, 0, 7]) {
      const peer = net.connect(from + offset, host)
      peer.on('error', () => {})
      await until('reset', () => peer.destroyed)
    }
    t.same(
      got.map(at => at.port),
      [from + 3, from, from + 7],
    )
    const overlap = parseAddress(`tcp:${host}:${from - 2}-${from + 1}`)
    const error = await failure(() => listen(overlap, () => {}))
    t.match(error.message, /EADDRINUSE/)
    t.match(error.what, new RegExp(`:${from} `), 'the port that is taken is named')
    const free = net.createServer().listen(from - 2, host)
    await once(free, 'listening')
    free.close()
    await listener.close()
  })

  t.test('a range of which a port is taken: the others work, and it is tried again', async t => {
    const host = ownHost()
    const other = net.createServer().listen(40001, host)
    await once(other, 'listening')
    const range = parseAddress(`tcp:${host}:40000-40002`)
    const refused = await failure(() => listen(range, () => {}))
    t.match(refused.action, /ip_local_reserved_ports=40000-40002/, 'what keeps connections off the range is named')
    let isFree = (_port: number): void => {}
    const free = new Promise<number>(done => {
      isFree = done
    })
    const taken: (readonly number[])[] = []
    const got: Accepted[] = []
    const listener = await listen(
      range,
      (socket, at) => {
        got.push(at)
        socket.reset()
      },
      { onPortsTaken: ports => taken.push(ports), onPortFree: isFree, portRetryMs: 20 },
    )
    t.same(taken, [[40001]])
    const ports = (): number[] => listener.addresses.map(a => (a.kind === 'tcp' ? a.port : -1))
    t.same(ports(), [40000, 40002])
    other.close()
    t.equal(await free, 40001)
    t.same(ports(), [40000, 40002, 40001])
    for (const port of [40001, 40002]) {
      const peer = net.connect(port, host).on('error', () => {})
      await until('reset', () => peer.destroyed)
    }
    t.same(
      got.map(({ port }) => port),
      [40001, 40002],
    )
    await listener.close()

    const all = net.createServer().listen(40001, host)
    await once(all, 'listening')
    const one = parseAddress(`tcp:${host}:40001-40001`)
    t.match((await failure(() => listen(one, () => {}, { onPortsTaken: () => {} }))).message, /EADDRINUSE/)
    all.close()
  })

  t.test(
    "a Unix socket for QEMU's group",
    { skip: process.getuid?.() !== 0 && 'gives files away: as root only' },
    async t => {
      const path = join(folder, 'shared.sock')
      t.equal(groupId('root'), 0)
      t.equal(groupId('4711'), 4711)
      for (const wrong of ['no such group', 'no-such-group-here', '--help', ''])
        t.equal((await failure(() => groupId(wrong))).code, 'USAGE', wrong)
      t.equal(fileMode('0660'), 0o660)
      for (const wrong of ['660g', '01660', '888', '', '0o660'])
        t.equal((await failure(() => fileMode(wrong))).code, 'USAGE', wrong)
      const listener = await listen({ kind: 'unix', path }, () => {}, { mode: 0o660, group: 4711 })
      const { mode, gid, uid } = statSync(path)
      t.same({ mode: mode & 0o777, gid, uid }, { mode: 0o660, gid: 4711, uid: 0 })
      await listener.close()
    },
  )

  t.test('Unix sockets: mode, removal, stale, served, not a socket', async t => {
    const path = join(folder, 'q.sock')
    const address: Address = { kind: 'unix', path }
    const first = await listen(address, socket => socket.reset())
    t.equal(statSync(path).mode & 0o777, 0o600)
    t.same(first.addresses, [address])
    const served = await failure(() => listen(address, () => {}))
    t.equal(served.code, 'IO')
    t.match(served.message, /EADDRINUSE/)
    t.ok(existsSync(path), 'the one that is served stays')
    await first.close()
    await until('removal', () => !existsSync(path))

    const open = await listen(address, () => {}, { mode: 0o660 })
    t.equal(statSync(path).mode & 0o777, 0o660)
    await open.close()

    // A process that was killed leaves its socket behind.
    const victim = spawn(process.execPath, [
      '-e',
      `require('net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`,
    ])
    await once(victim.stdout!, 'data')
    t.ok(isServed(path))
    t.equal((await failure(() => listen(address, () => {}))).code, 'IO')
    victim.kill('SIGKILL')
    await once(victim, 'close')
    t.ok(lstatSync(path).isSocket(), 'stale')
    t.notOk(isServed(path))
    const again = await listen(address, () => {})
    t.same(again.addresses, [address], 'replaced')
    await again.close()

    writeFileSync(path, 'a file')
    t.match((await failure(() => listen(address, () => {}))).message, /no socket/)
    t.ok(existsSync(path), 'a file is never removed')
    t.match(
      (await failure(() => listen({ kind: 'unix', path: join(folder, 'no', 'such') }, () => {}))).message,
      /ENOENT|EACCES/,
    )

    const table = [
      'Num       RefCount Protocol Flags    Type St Inode Path',
      '0000000000000000: 00000002 00000000 00010000 0001 01 34567 /run/a b.sock',
      '0000000000000000: 00000003 00000000 00000000 0001 03 34568 /run/connected.sock',
      '0000000000000000: 00000002 00000000 00010000 0001 01 34569 @/run/abstract.sock',
      '0000000000000000: 00000002 00000000 00010000 0001 01 34570 rel/relative.sock',
      '0000000000000000: 00000002 00000000 00010000 0001 01 34571',
    ].join('\n')
    t.ok(isServed('/run/a b.sock', table))
    t.notOk(isServed('/run/connected.sock', table), 'an accepted connection bears the path of its listener')
    t.notOk(isServed('/run/abstract.sock', table))
    t.ok(isServed('/somewhere/relative.sock', table), 'a relative path: to be safe')
    t.notOk(isServed('/run/other.sock', table))
  })

  t.test('a descriptor that systemd did not pass', async t => {
    const none = await failure(() => listen(parseAddress('fd:qemu'), () => {}))
    t.equal(none.code, 'ADDRESS')
    t.match(none.action, /FileDescriptorName/)
    const other = await failure(() => listen(parseAddress('fd:qemu'), () => {}, { fds: new Map([['wan', [3]]]) }))
    t.match(other.action, /fd:wan/)
  })
})

t.test('the dialler', async t => {
  t.test('nobody there', async t => {
    const port = await claimPort()
    const error = await failure(() => dial(parseAddress(`tcp:127.0.0.1:${port}`)))
    t.equal(error.code, 'TARGET_REFUSED')
    t.match(error.what, new RegExp(`tcp:127.0.0.1:${port} refused`))
    t.match(error.action, /-incoming/)
    t.equal((error.cause as NodeJS.ErrnoException).code, 'ECONNREFUSED')
    const unix = await failure(() => dial({ kind: 'unix', path: join(folder, 'nobody') }))
    t.match(unix.message, /ENOENT.*-incoming/)
    writeFileSync(join(folder, 'file'), '')
    t.match((await failure(() => dial({ kind: 'unix', path: join(folder, 'file') }))).code, 'TARGET_REFUSED')
    t.match((await failure(() => dial(parseAddress('tcp:no.such.host.invalid:1')))).message, /ENOTFOUND|EAI_AGAIN/)
  })

  t.test('what cannot be dialled', async t => {
    for (const text of ['tcp:h:1-3', 'fd:x', 'tcp:h:0']) {
      t.equal((await failure(() => dial(parseAddress(text)))).code, 'ADDRESS', text)
    }
  })

  t.test('nobody answers in time', async t => {
    // A listener whose queue is full drops further SYNs: the same silence as a firewall's.
    const deaf = spawn(process.execPath, [
      '-e',
      `const net = require('net'); const s = net.createServer(() => {}).listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
         console.log(s.address().port) })`,
    ])
    t.teardown(() => deaf.kill('SIGKILL'))
    const [line] = (await once(deaf.stdout!, 'data')) as [Buffer]
    const port = Number(line.toString())
    await stop(deaf)
    const fillers = Array.from({ length: 4 }, () => net.connect(port, '127.0.0.1').on('error', () => {}))
    t.teardown(() => {
      for (const filler of fillers) filler.destroy()
    })
    await sleep(100)
    const before = performance.now()
    const error = await failure(() => dial(parseAddress(`tcp:127.0.0.1:${port}`), { timeoutMs: 300 }))
    t.equal(error.code, 'TARGET_REFUSED')
    t.match(error.what, /within 0.3 s/)
    t.ok(performance.now() - before < 8000, 'not the 10 s that it waits by itself')
    const abort = new AbortController()
    setTimeout(() => abort.abort(), 100)
    t.match(
      (await failure(() => dial(parseAddress(`tcp:127.0.0.1:${port}`), { signal: abort.signal }))).what,
      /given up/,
    )
    t.match(
      (await failure(() => dial(parseAddress(`tcp:127.0.0.1:${port}`), { signal: abort.signal }))).what,
      /given up/,
    )
  })

  t.test('one dial is one connection, also where a name has several addresses', async t => {
    let count = 0
    const server = net.createServer(socket => {
      count++
      socket.on('error', () => {})
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as net.AddressInfo
    for (const host of ['localhost', '', '127.0.0.1']) {
      const ours = await dial({ kind: 'tcp', host, port, portTo: port })
      await sleep(30)
      ours.reset()
    }
    await until('all to be accepted', () => count >= 3)
    t.equal(count, 3)
    const from = await dial({ kind: 'tcp', host: '127.0.0.1', port, portTo: port }, { localAddress: '127.0.0.5' })
    await until('accept', () => count === 4)
    from.reset()
    server.close()
  })

  t.test('a Unix socket whose queue is full is tried again, within the time', async t => {
    const path = join(folder, 'full')
    const busy = spawn(process.execPath, [
      '-e',
      `const net = require('net'); const s = net.createServer(c => c.on('error', () => {}))
       s.listen({ path: ${JSON.stringify(path)}, backlog: 1 }, () => {
         console.log('up') })`,
    ])
    t.teardown(() => busy.kill('SIGKILL'))
    await once(busy.stdout!, 'data')
    await stop(busy)
    let taken = 0
    const dials = Array.from({ length: 6 }, () => dial({ kind: 'unix', path }).finally(() => taken++))
    await sleep(300)
    t.ok(taken < 6, 'more than the queue holds')
    busy.kill('SIGCONT')
    const many = await Promise.all(dials)
    t.equal(many.length, 6)
    for (const socket of many) socket.reset()
  })

  t.test('no right to open the socket', { skip: process.getuid?.() === 0 ? 'root may open all' : false }, async t => {
    const path = join(folder, 'closed')
    const server = net.createServer().listen(path)
    await once(server, 'listening')
    chmodSync(path, 0)
    t.match((await failure(() => dial({ kind: 'unix', path }))).action, /owner and mode/)
    server.close()
  })
})

t.test('errors are typed', async t => {
  t.ok(isProxyError(await failure(() => parseAddress('x')), 'ADDRESS'))
})
