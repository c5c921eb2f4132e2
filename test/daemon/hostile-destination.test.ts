/** A destination proxy gone bad, against a source proxy whose QEMU reads nothing, as QEMU does where it awaits no answer. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { SourceDaemon } from '../../src/daemon/source-daemon.ts'
import { PIECES_MAX } from '../../src/limits.ts'
import { readHello } from '../../src/link/greeting.ts'
import type { Link } from '../../src/link/link.ts'
import { LinkServer } from '../../src/link/server.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { encodeFrame, FrameDecoder } from '../../src/wan/frames.ts'
import { clientHelloOf, encodeServerHello } from '../../src/wan/hello.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { until } from '../helpers/until.ts'
import { TestLog } from '../link/harness.ts'
import { MAIN, MULTIFD } from './daemons.ts'

t.setTimeout(120_000)

/** Pieces that are handed in at a time, and when there are none to be expected any more: the sockets' own buffers take some. */
const STEP = 1000
const PIECES_ENOUGH = 1_000_000

function sourceOf(port: number, at: string): SourceDaemon {
  return new SourceDaemon({
    listen: [{ name: 'default', address: parseAddress(`unix:${at}`) }],
    beyondLoopback: false,
    peer: { host: '127.0.0.1', port },
    credentials: undefined,
    store: undefined,
    ...{ ringPages: 256, places: 4096, effort: 3, connections: 1, rate: Number.POSITIVE_INFINITY },
    ...{ queueTargetMs: 50, patienceMs: 5000, events: new Events() },
  })
}

t.test('answers of one byte, each a frame', async t => {
  const links: Link[] = []
  let pieces = 0
  const server = new LinkServer({
    plaintext: true,
    logger: new TestLog(),
    accept: hello => ({
      ...{ sets: [], ring: hello.ring, places: hello.places, targets: [] },
      serve: link => {
        links.push(link)
        const nothing = (): void => {}
        const flows: number[] = []
        const send = (): void => {
          for (const flow of flows) {
            for (let i = 0; i < STEP && pieces < PIECES_ENOUGH; i++) {
              if (link.session.dataRoom(flow, STEP) === 0) break
              link.session.sendData(flow, Uint8Array.of(0))
              pieces++
            }
          }
        }
        return {
          ...{
            onTaken: nothing,
            onRefused: nothing,
            onFin: nothing,
            onReset: nothing,
            onEnd: nothing,
            onDrain: nothing,
            onBye: nothing,
            onDead: nothing,
          },
          ...{ onData: nothing, onWant: nothing, onPage: nothing, onCredit: send, onWork: send },
          onOpen: number => flows.push(number),
          onBatch: (number, _parts, rawLength) => link.session.consumed(number, rawLength),
        }
      },
    }),
  })
  const { port } = await server.listen({ host: '127.0.0.1', port: 0 })
  t.teardown(() => server.close(0))
  // a Unix socket, because it has small buffers
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const at = join(folder, 'source.sock')
  const source = sourceOf(port, at)
  await source.start()
  t.teardown(async () => {
    await source.abort()
    await source.ended
  })
  for (const start of [MAIN, MULTIFD, MULTIFD]) {
    const qemu = net.connect(at)
    qemu.on('error', () => {})
    t.teardown(() => qemu.destroy())
    await once(qemu, 'connect')
    qemu.pause()
    qemu.write(start)
  }
  await until('the session to end', () => links[0]?.over === true || pieces === PIECES_ENOUGH, 60_000)
  t.comment(`${pieces} pieces`)
  t.ok(links[0]!.over, 'it ends')
  const error = await links[0]!.ended
  t.equal(error, undefined, 'by a BYE of the source')
  t.ok(pieces > PIECES_MAX / 2, 'not before')
})

t.test('sessions that are ended as soon as they are open', async t => {
  /** When each began. */
  const sessions: number[] = []
  const nothing = (): void => {}
  const server = new LinkServer({
    plaintext: true,
    logger: new TestLog(),
    accept: hello => ({
      ...{ sets: [], ring: hello.ring, places: hello.places, targets: [] },
      serve: link => {
        sessions.push(performance.now())
        setImmediate(() => void link.close())
        return {
          ...{
            onTaken: nothing,
            onRefused: nothing,
            onOpen: nothing,
            onData: nothing,
            onBatch: nothing,
            onFin: nothing,
            onReset: nothing,
            onEnd: nothing,
          },
          ...{ onCredit: nothing, onWant: nothing, onPage: nothing, onDrain: nothing, onBye: nothing, onDead: nothing },
          onWork: nothing,
        }
      },
    }),
  })
  const { port } = await server.listen({ host: '127.0.0.1', port: 0 })
  t.teardown(() => server.close(0))
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const source = sourceOf(port, join(folder, 'source.sock'))
  await source.start()
  t.teardown(async () => {
    await source.abort()
    await source.ended
  })
  await until('some sessions', () => sessions.length >= 8)
  // a busy machine makes some of them long, not all
  const apart = sessions.slice(1).map((ms, i) => ms - sessions[i]!)
  t.ok(Math.min(...apart) > 95, `${apart.map(ms => ms.toFixed(0))} ms from one session to the next`)
})

/** Of a real QEMU, beyond its switch to postcopy. */
const POSTCOPY = zstdDecompressSync(
  readFileSync(new URL('../vectors/qemu/streams/10-hugepages-postcopy.0-main.zst', import.meta.url)),
).subarray(0, -100)

/** Patience before the switch to postcopy, and behind it, in seconds: the session's is the greater one. */
const PATIENCES = [
  { precopy: 3, postcopy: 3, stream: MAIN },
  { precopy: 3, postcopy: 300, stream: MAIN },
  { precopy: 300, postcopy: 3, stream: POSTCOPY },
] as const

for (const { precopy, postcopy, stream } of PATIENCES)
  t.test(
    `a destination that acknowledges nothing, --patience ${precopy}s --patience-postcopy ${postcopy}s`,
    async t => {
      let bytes = 0
      const server = net.createServer(async socket => {
        socket.on('error', () => {})
        const { body } = await readHello(socket)
        const { ring, places } = clientHelloOf(body)
        const none = { sets: [], targets: ['default'], agent: 'hostile' }
        socket.write(encodeServerHello({ ...none, ring, places, token: '0'.repeat(64), received: 0, credit: 65536 }))
        let sequence = 0
        const decoder = new FrameDecoder(({ type, flow, payload }) => {
          const say = (answer: number, said: Uint8Array): void => {
            socket.write(
              encodeFrame(
                answer,
                0,
                answer === FRAME.CREDIT ? flow : 0,
                answer === FRAME.CREDIT ? ++sequence : 0,
                said,
              ),
            )
          }
          if (type === FRAME.PING) say(FRAME.PONG, payload.slice())
          if (type === FRAME.OPEN) say(FRAME.CREDIT, Buffer.from('0000000010000000', 'hex'))
          bytes += payload.length
        })
        socket.on('data', chunk => decoder.push(chunk)).resume()
      })
      await once(server.listen(0, '127.0.0.1'), 'listening')
      const { port } = server.address() as net.AddressInfo
      const folder = mkdtempSync(join(tmpdir(), 'pageferry-'))
      const at = join(folder, 'source.sock')
      const source = spawn(
        fileURLToPath(new URL('../../bin/pageferry', import.meta.url)),
        [
          ...[
            'source',
            '--json',
            '--plaintext',
            '--patience',
            `${precopy}s`,
            '--patience-postcopy',
            `${postcopy}s`,
            '--pool-memory',
            '1MiB',
          ],
          ...['--listen', `unix:${at}`, '--peer', `127.0.0.1:${port}`],
        ],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      )
      t.teardown(() => {
        source.kill('SIGKILL')
        server.close()
        rmSync(folder, { recursive: true, force: true })
      })
      const lines: { msg: string; outcome?: string; reason?: string }[] = []
      createInterface({ input: source.stdout! }).on('line', line => lines.push(JSON.parse(line)))
      await until('a session', () => lines.some(({ msg }) => msg === 'session open'))
      const qemu = net.connect({ path: at })
      qemu.on('error', () => {})
      const gone = once(qemu, 'close')
      qemu.write(stream)
      qemu.write(Buffer.alloc(1 << 20, 1))
      const fromMs = performance.now()
      await gone
      qemu.destroy()
      const seconds = (performance.now() - fromMs) / 1000
      t.ok(seconds > 2.5 && seconds < 60, `given up after ${seconds.toFixed(1)} s`)
      t.ok(bytes > 0, 'it took what came')
      await until('the end of the migration', () => lines.some(({ msg }) => msg === 'migration ended'))
      t.match(
        lines.find(({ msg }) => msg === 'migration ended'),
        { outcome: 'failed' },
        'the guest goes on at the source',
      )
      t.equal(source.exitCode, null, 'and so does the proxy')
    },
  )
