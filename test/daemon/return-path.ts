/**
 * Answers of a destination QEMU over fresh pairs of daemons and real sockets: each pair carries bytes one way and an
 * answer of any size the other, cut at random; in plain or by TLS, over a link of 0 or 40 ms, as the seed says. Whatever does not arrive within `STALLED_MS` has stalled.
 *
 *   node test/daemon/return-path.ts [pairs] [seed]
 */
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Random } from '../../scripts/harness/random.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { RelayLink } from '../../scripts/harness/wan/relay-link.ts'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events } from '../../src/daemon/events.ts'
import { SourceDaemon } from '../../src/daemon/source-daemon.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { credentials, makeCredentials } from '../link/harness.ts'

const ANSWER_BYTES_MAX = 8 << 20
/** No byte for so long: even a machine that does ten other things moves one. */
const STALLED_MS = 60_000
/** What a main channel begins with. */
const MAIN = Buffer.from('5145564d00000003', 'hex')
/** A prime: bytes out of their place show. */
const PERIOD = 65521
const PATTERN = Buffer.alloc(PERIOD + ANSWER_BYTES_MAX)
for (let i = 0; i < PATTERN.length; i++) PATTERN[i] = Math.imul((i % PERIOD) + 1, 0x9e3779b1) >>> 24

const events = new Events()

/** Sizes around every bound that an answer can meet, and any other up to 8 MiB. */
function answerBytes(random: Random): number {
  const around = random.pick([1, 8, 4096, 16_368, 65_536, 131_072, 140_000, 1 << 20, ANSWER_BYTES_MAX])
  if (random.chance(0.5)) return Math.min(ANSWER_BYTES_MAX, Math.max(1, around + random.int(-20, 20)))
  return random.int(1, random.pick([1000, 100_000, 300_000, 2_000_000, ANSWER_BYTES_MAX]))
}

/** Writes bytes in pieces of any size, with and without pauses, as fast as they are taken. */
async function writeCut(socket: net.Socket, bytes: Buffer, random: Random): Promise<void> {
  const atOnce = random.chance(0.3)
  const pieceMax = random.pick([8, 1000, 32_768, 200_000, bytes.length])
  // Tiny pieces only where they are few.
  const least = Math.ceil(bytes.length / 500)
  for (let at = 0; at < bytes.length; ) {
    const take = atOnce ? bytes.length : Math.max(least, random.int(1, pieceMax))
    if (!socket.write(bytes.subarray(at, at + take))) await once(socket, 'drain')
    at += take
    if (random.chance(0.1)) await new Promise(done => setImmediate(done))
  }
}

/** Directory of the keys of all pairs, made once. */
let keys: Promise<string> | undefined

function keysOnce(): Promise<string> {
  keys ??= makeCredentials('x509', { teardown: remove => process.once('exit', remove) })
  return keys
}

/**
 * One fresh pair and its answers, one behind the other on channels of their own. Four seeds that follow each other are
 * the four ways: plain or TLS, 0 or 40 ms.
 * @returns bytes of the answers
 * @throws Error where one stalls or differs
 */
export async function answerOnce(seed: number): Promise<number> {
  const random = new Random(seed)
  const directory = seed & 1 ? await keysOnce() : undefined
  const some = (length: number): Buffer => {
    const start = random.int(0, PERIOD - 1)
    return PATTERN.subarray(start, start + length)
  }
  const talks: { question: Buffer; answer: Buffer }[] = []
  for (let i = random.pick([1, 1, 1, 2]); i > 0; i--) {
    const more = random.chance(0.3) ? random.int(1, random.pick([100_000, 2_000_000])) : 0
    talks.push({ question: Buffer.concat([MAIN, some(more)]), answer: some(answerBytes(random)) })
  }
  const given = talks.values()
  const target = net.createServer({ allowHalfOpen: true }, socket => {
    socket.on('error', () => {})
    const { question, answer } = given.next().value!
    let heard = 0
    let answered: Promise<void> | undefined
    socket.on('data', chunk => {
      if (!chunk.equals(question.subarray(heard, heard + chunk.length))) socket.destroy()
      answered ??= writeCut(socket, answer, random)
      answered.catch(() => {}) // the other end tells
      heard += chunk.length
    })
    // Its FIN says that it has heard all.
    socket.on('end', () => heard === question.length && answered?.then(() => socket.end()))
  })
  // Not a port: whoever dials one that it believes to be free would be taken for the source.
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-return-'))
  const path = join(folder, 'qemu.sock')
  await once(target.listen(path), 'listening')
  const destination = new DestinationDaemon({
    listen: [{ host: '127.0.0.1', port: 0 }],
    targets: new Map([['default', parseAddress(`unix:${path}`)]]),
    credentials:
      directory === undefined ? undefined : credentials(`${directory}/site-b`, { role: 'server', peerName: 'site-a' }),
    store: undefined,
    ringPagesMax: 16,
    placesMax: 16,
    queueTargetMs: 50,
    patienceMs: 5000,
    events,
  })
  await destination.start()
  const wan = { host: '127.0.0.1', port: destination.addresses[0]!.port }
  const relay = seed & 2 ? await RelayLink.open(parseLink('1Gbit,40ms'), wan) : undefined
  const source = new SourceDaemon({
    listen: [{ name: 'default', address: parseAddress('tcp:127.0.0.1:0') }],
    beyondLoopback: false,
    peer: { host: '127.0.0.1', port: relay?.port ?? wan.port },
    credentials: directory === undefined ? undefined : credentials(`${directory}/site-a`, { peerName: 'site-b' }),
    store: undefined,
    ringPages: 16,
    places: 16,
    effort: 1,
    connections: random.pick([1, 1, 2]),
    rate: Number.POSITIVE_INFINITY,
    queueTargetMs: 50,
    patienceMs: 5000,
    events,
  })
  await source.start()
  try {
    const [address] = source.addresses
    for (const talk of talks) await ask(address!.kind === 'tcp' ? address!.port : 0, talk, random)
  } finally {
    target.close()
    await source.abort()
    await source.ended
    await destination.abort()
    await relay?.[Symbol.asyncDispose]()
    rmSync(folder, { recursive: true, force: true })
  }
  return talks.reduce((sum, { answer }) => sum + answer.length, 0)
}

/** A source QEMU: says what it has to say and reads the answer to its end. */
async function ask(port: number, talk: { question: Buffer; answer: Buffer }, random: Random): Promise<void> {
  const { question, answer } = talk
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  void writeCut(socket, question, random)
    .then(() => socket.end())
    .catch(() => {}) // 'error' tells
  let have = 0
  await new Promise<void>((done, failed) => {
    let timer: NodeJS.Timeout
    const wait = (): void => {
      clearTimeout(timer)
      timer = setTimeout(() => failed(new Error(`stalled: ${have} of ${answer.length} bytes came back`)), STALLED_MS)
    }
    wait()
    socket.on('data', chunk => {
      wait()
      const same = chunk.equals(answer.subarray(have, have + chunk.length))
      if (!same) failed(new Error(`other bytes from ${have} on`))
      have += chunk.length
    })
    socket.on('end', () => (have === answer.length ? done() : failed(new Error(`${have} of ${answer.length} bytes`))))
    socket.on('error', failed)
    socket.on('close', () => clearTimeout(timer))
  }).finally(() => socket.destroy())
}

if (import.meta.main) {
  const pairs = Number(process.argv[2] ?? 500)
  const seed = Number(process.argv[3] ?? 1)
  let bytes = 0
  for (let i = 0; i < pairs; i++) {
    try {
      bytes += await answerOnce(seed + i)
    } catch (error) {
      console.error(`seed ${seed + i}: ${(error as Error).message}`)
      process.exitCode = 1
    }
  }
  console.log(`${pairs} fresh pairs, ${(bytes / 1e6).toFixed(0)} MB of answers`)
}
