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
import { LinkServer } from '../../src/link/server.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { SilentSink } from '../helpers/silent-sink.ts'
import { until } from '../helpers/until.ts'
import { AcknowledgesNothing, OneByteAnswers } from '../hostile/destinations.ts'
import { TestLog } from '../link/harness.ts'
import { MAIN, MULTIFD } from './daemons.ts'

t.setTimeout(590_000)

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
  await using hostile = await OneByteAnswers.start()
  const { port } = hostile
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
  await until('the session to end', () => hostile.isOver, 60_000)
  t.comment(`${hostile.pieces} pieces`)
  t.ok(hostile.links[0]!.over, 'it ends')
  const error = await hostile.links[0]!.ended
  t.equal(error, undefined, 'by a BYE of the source')
  t.ok(hostile.pieces > PIECES_MAX / 2, 'not before')
})

t.test('sessions that are ended as soon as they are open', async t => {
  /** When each began. */
  const sessions: number[] = []
  const server = new LinkServer({
    plaintext: true,
    logger: new TestLog(),
    accept: hello => ({
      ...{ sets: [], ring: hello.ring, places: hello.places, targets: [] },
      serve: link => {
        sessions.push(performance.now())
        setImmediate(() => void link.close())
        return new SilentSink()
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
      await using hostile = await AcknowledgesNothing.start()
      const { port } = hostile
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
      t.ok(hostile.bytes > 0, 'it took what came')
      await until('the end of the migration', () => lines.some(({ msg }) => msg === 'migration ended'))
      t.match(
        lines.find(({ msg }) => msg === 'migration ended'),
        { outcome: 'failed' },
        'the guest goes on at the source',
      )
      t.equal(source.exitCode, null, 'and so does the proxy')
    },
  )
