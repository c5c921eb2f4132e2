/**
 * The honest side of a siege, in a process of its own, so that an attack's work in the test's process does not count as
 * harm: a QEMU that migrates again and again, the QEMU that takes it, a peer whose PINGs are timed, and a look at the
 * destination proxy's memory. Started and asked by harness.ts.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { Worker } from 'node:worker_threads'
import { zstdDecompressSync } from 'node:zlib'
import { Credentials } from '../../src/link/credentials.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { corelessMs } from '../helpers/own-time.ts'
import { migration, page } from '../template/makers.ts'
import type { HonestFigures, HonestTask } from './harness.ts'
import { Peer } from './peer.ts'

/** What the destination QEMU says when it has it all: MIG_RP_MSG_SHUT. docs/protocol.md knows nothing of it. */
const SHUT = Buffer.from('0001000400000000', 'hex')
const PING_PAUSE_MS = 20
const ROUND_PAUSE_MS = 50
/** A migration of a few MB that takes longer is not slow any more. */
const ROUND_MS_MAX = 60_000
/** Pages of the made-up guest: 6 MB, new ones each round. */
const PAGES = 1500

const task: HonestTask = JSON.parse(process.argv[2]!)

interface Span {
  readonly fromMs: number
  readonly toMs: number
  /** Of this time those who take part were ready to go on and had no core. */
  readonly corelessMs: number
}

/** Of both ends of a PING: what other programs of this machine take from it is not the attack's doing. */
const pingCorelessMs = (): number => corelessMs(task.destinationPid) + corelessMs(process.pid)

/** Round trips one after the other. */
class Metronome {
  readonly spans: Span[] = []
  private sentMs = 0
  private sentCorelessMs = 0
  private readonly corelessMs: () => number

  /** @param corelessMs counter of the time that those who take part were kept from a core */
  constructor(send: () => void, corelessMs: () => number) {
    this.corelessMs = corelessMs
    this.beat = () => {
      this.sentCorelessMs = corelessMs()
      this.sentMs = performance.now()
      send()
    }
    this.beat()
  }

  private readonly beat: () => void

  /** One has been sent and is not answered. */
  get isWaiting(): boolean {
    return this.sentMs > 0
  }

  readonly answered = (): void => {
    this.spans.push(this.open())
    this.sentMs = 0
    setTimeout(this.beat, PING_PAUSE_MS)
  }

  private open(): Span {
    return { fromMs: this.sentMs, toMs: performance.now(), corelessMs: this.corelessMs() - this.sentCorelessMs }
  }

  /** Round trips that were under way at `fromMs` or later, the one that is not answered yet among them. */
  since(fromMs: number): Span[] {
    const open = this.sentMs > 0 ? [this.open()] : []
    return [...this.spans, ...open].filter(span => span.toMs >= fromMs)
  }
}

const mistakes: string[] = []
/** How often the PINGs went on to another session. */
let moves = 0

/** A thread of this process that only sends back what it gets: what it is late by, this machine is late by. */
async function control(): Promise<Metronome> {
  const worker = new Worker(
    `const net = require('node:net')
     const server = net.createServer({ noDelay: true }, socket => socket.pipe(socket))
     server.listen(0, '127.0.0.1', () => require('node:worker_threads').parentPort.postMessage(server.address().port))`,
    { eval: true },
  )
  const port = await new Promise<number>(resolve => worker.once('message', resolve))
  const socket = net.connect({ port, host: '127.0.0.1', noDelay: true })
  const metronome = new Metronome(
    () => socket.write('x'),
    () => corelessMs(process.pid),
  )
  socket.on('data', metronome.answered)
  return metronome
}

/**
 * An idle session whose ring others want is asked to go (DRAIN), and closed if it has not gone five seconds later. A source
 * proxy opens another one then, and so do the PINGs.
 */
async function pinger(): Promise<Metronome> {
  const credentials = task.credentials
    ? new Credentials({ role: 'client', directory: task.credentials, peerName: task.peerName })
    : undefined
  const dial = (): Promise<Peer> => Peer.dial({ port: task.port, credentials }, { agent: 'honest' })
  let peer = await dial()
  /** Where the PING went that is to be answered. */
  let pinged = peer
  const ping = (): void => {
    pinged = peer
    pinged.send(FRAME.PING, Buffer.from('pinged..'))
  }
  const metronome = new Metronome(ping, pingCorelessMs)
  const attend = (one: Peer): void => {
    let isAsked = false
    const leave = (): void => {
      if (one === peer || one === pinged) return
      one.send(FRAME.BYE, Buffer.alloc(2))
      one.socket.end()
    }
    const move = async (): Promise<void> => {
      peer = await dial()
      attend(peer)
      moves++
      // the last PING may still be answered where it went, but not by a session that is no more
      if (!metronome.isWaiting || one.isClosed) pinged = peer
      if (metronome.isWaiting && one.isClosed) ping()
      leave()
    }
    one.socket.on('close', () => {
      if (!isAsked) mistakes.push(`the connection of the PINGs was closed: ${one.goodbye}`)
      else if (metronome.isWaiting && one === pinged && one !== peer) ping()
    })
    one.onFrame = ({ type }) => {
      if (type === FRAME.PONG && one === pinged) {
        pinged = peer
        metronome.answered()
        leave()
      }
      if (type !== FRAME.DRAIN || isAsked) return
      isAsked = true
      move().catch(error => mistakes.push(`no other connection for the PINGs: ${error.message}`))
    }
  }
  attend(peer)
  return metronome
}

/** Streams by turns: one of a real QEMU, and one of pages that nobody has seen. */
const recorded = zstdDecompressSync(
  readFileSync(new URL('../vectors/qemu/streams/7.2-no-footers.0-main.zst', import.meta.url)),
)

function streamOf(round: number): Buffer {
  if (round % 2 === 0) return recorded
  return migration(Array.from({ length: PAGES }, (_, i) => page(1 + round * PAGES + i)))
}

interface Round extends Pick<Span, 'fromMs' | 'toMs'> {
  readonly wrong: string | undefined
}
const rounds: Round[] = []

/** The target: tells the first difference to what is awaited, at the latest at the end. */
let arrived: (wrong: string | undefined) => void = () => {}
let awaited: Buffer = Buffer.alloc(0)
const target = net.createServer({ allowHalfOpen: true }, socket => {
  const want = awaited
  const tell = arrived
  let at = 0
  let wrong: string | undefined
  socket.on('error', error => tell(`the target's connection: ${error.message}`))
  socket.on('data', chunk => {
    if (wrong === undefined && !chunk.equals(want.subarray(at, at + chunk.length)))
      wrong = `wrong bytes between ${at} and ${at + chunk.length}`
    at += chunk.length
  })
  socket.on('end', () => {
    socket.end(SHUT)
    tell(wrong ?? (at === want.length ? undefined : `${at} of ${want.length} bytes arrived`))
  })
})

async function migrate(round: number): Promise<void> {
  const fromMs = performance.now()
  awaited = streamOf(round)
  const wrong = await new Promise<string | undefined>(resolve => {
    const timer = setTimeout(() => resolve(`no end after ${ROUND_MS_MAX / 1000} s`), ROUND_MS_MAX)
    let at: string | undefined | null = null
    let back: Buffer = Buffer.alloc(0)
    const source = net.connect({ path: task.source, allowHalfOpen: true })
    const over = (found: string | undefined): void => {
      clearTimeout(timer)
      source.destroy()
      resolve(found)
    }
    arrived = found => {
      at = found
      if (found !== undefined) over(found)
    }
    source.on('error', error => over(`the source's connection: ${error.message}`))
    source.on('data', chunk => {
      back = Buffer.concat([back, chunk])
    })
    source.on('end', () => {
      if (at === null) over('ended before the stream had arrived')
      else over(back.equals(SHUT) ? undefined : `${back.length} bytes came back: ${back.toString('hex', 0, 40)}`)
    })
    source.end(awaited)
  })
  rounds.push({ fromMs, toMs: performance.now(), wrong })
}

/** Bytes of the destination proxy in memory, now and at most since `forget`. */
function resident(): { nowBytes: number; peakBytes: number } {
  const status = readFileSync(`/proc/${task.destinationPid}/status`, 'latin1')
  const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1])
  return { nowBytes: kib('VmRSS') * 1024, peakBytes: kib('VmHWM') * 1024 }
}

/** CPU time of the destination proxy so far, in ticks of 10 ms. Source: proc(5), utime and stime. */
function cpuSeconds(): number {
  const fields = readFileSync(`/proc/${task.destinationPid}/stat`, 'latin1')
    .replace(/^.*\) /, '')
    .split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

let fromMs = 0
let cpuBefore = 0
let before = { nowBytes: 0, peakBytes: 0 }

function begin(): void {
  writeFileSync(`/proc/${task.destinationPid}/clear_refs`, '5') // forgets VmHWM. Source: Linux fs/proc/task_mmu.c
  before = resident()
  cpuBefore = cpuSeconds()
  fromMs = performance.now()
}

function figures(pings: Metronome, controls: Metronome): HonestFigures {
  const trips = pings.since(fromMs)
  const checks = controls.since(fromMs)
  let pingLateMs = 0
  for (const trip of trips) {
    const beside = checks.filter(check => check.fromMs <= trip.toMs && check.toMs >= trip.fromMs)
    const stallMs = Math.max(0, ...beside.map(check => check.toMs - check.fromMs))
    pingLateMs = Math.max(pingLateMs, trip.toMs - trip.fromMs - Math.max(stallMs, trip.corelessMs))
  }
  const ended = rounds.filter(round => round.toMs >= fromMs)
  return {
    seconds: (performance.now() - fromMs) / 1000,
    migrations: ended.length,
    wholeMigrations: ended.filter(round => round.fromMs >= fromMs && round.wrong === undefined).length,
    longestMigrationMs: Math.max(0, ...ended.map(round => round.toMs - round.fromMs)),
    mistakes: [...mistakes, ...ended.flatMap(round => (round.wrong === undefined ? [] : [round.wrong]))],
    pings: trips.length,
    moves,
    pingMs: Math.max(0, ...trips.map(trip => trip.toMs - trip.fromMs)),
    pingLateMs,
    controlMs: Math.max(0, ...checks.map(check => check.toMs - check.fromMs)),
    cpuSeconds: cpuSeconds() - cpuBefore,
    residentBeforeBytes: before.nowBytes,
    residentPeakBytes: resident().peakBytes,
  }
}

target.listen(task.target)
const controls = await control()
const pings = await pinger()
process.on('message', (message: string) => {
  if (message === 'begin') begin()
  process.send!(figures(pings, controls))
})
process.on('disconnect', () => process.exit())
for (let round = 0; ; round++) {
  await migrate(round)
  await new Promise(resolve => setTimeout(resolve, ROUND_PAUSE_MS))
  if (round === 3) process.send!('warm')
}
