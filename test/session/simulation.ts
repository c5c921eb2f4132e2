/**
 * Two sessions joined by connections that fail, in virtual time. Everything follows from the seed: the traffic, the
 * links, the faults, and where each chunk is cut. A run fails with a text that says what was not kept: bytes in = bytes
 * out for each flow in order, batches in one order over all flows, progress (no deadlock), memory within bounds.
 */
import { crc32 } from 'node:zlib'
import { Random } from '../../scripts/harness/random.ts'
import { laidBytes, layBatch } from '../../src/codec/laid-batch.ts'
import { ProxyError } from '../../src/errors.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { CREDIT_FLOW_BYTES_MAX, WINDOW_BYTES_MIN } from '../../src/limits.ts'
import type { FlowSink, TransportSink } from '../../src/session/api.ts'
import { Session } from '../../src/session/session.ts'
import { WarmUp } from '../../src/session/warm-up.ts'
import { FrameDecoder } from '../../src/wan/frames.ts'
import { Agenda } from '../helpers/virtual-time.ts'
import type { Planter } from './plants.ts'

/** What a run came to. */
export interface Outcome {
  readonly seed: number
  /** What went wrong; null: nothing. */
  readonly failure: string | null
  /** How the session ended: 'bye' (in order), or the error code that a fault may end it with. */
  readonly end: string
  readonly virtualMs: number
  readonly bytes: number
  readonly faults: readonly string[]
}

class Failure extends Error {}

function fail(what: string): never {
  throw new Failure(what)
}

/** One direction of a flow. */
class Lane {
  readonly key: number
  readonly total: number
  /** Part of the pieces that are batches. */
  readonly batches: number
  /** Bytes that the QEMU at the sending end has written. */
  available = 0
  handed = 0
  finHanded = false
  arrived = 0
  consumed = 0
  finArrived = false
  /** The QEMU at the receiving end takes nothing before this time. */
  heldUntil = 0
  /** It takes this many bytes at once, this often; 0: all, at once. */
  slowMs = 0
  consuming = false
  /**
   * Its sender reads QEMU's socket a piece at a time, hands it in, and touches neither again before the session tells
   * of room, as DestinationFlow does. The others look at all their bytes whenever anything happens.
   */
  readonly told: boolean
  /** What such a sender has read and not handed in. */
  back = 0

  constructor(key: number, total: number, batches: number, told: boolean) {
    this.key = key
    this.total = total
    this.batches = batches
    this.told = told
  }
}

class Flow {
  readonly id: number
  readonly migration: number
  /** Client to server, server to client. */
  readonly lanes: readonly [Lane, Lane]
  number = 0
  reset = false
  /** The client knows that the server took it. */
  taken = false
  /** Which ends tore it down. */
  readonly resetBy = [false, false]
  /** Which ends have been told that it is over. */
  readonly ended = [false, false]
  /** Which ends know it. */
  readonly known = [false, false]
  held = false

  constructor(id: number, migration: number, up: Lane, down: Lane) {
    this.id = id
    this.migration = migration
    this.lanes = [up, down]
  }
}

/** One direction of a connection. */
interface Pipe {
  latencyMs: number
  bytesPerMs: number
  busyUntil: number
  /** Bytes in the sender's socket, and how many fit. */
  buffered: number
  readonly socketBytes: number
  arrivesAt: number
  stalledUntil: number
  /** Bytes vanish, and nobody is told. */
  blackhole: boolean
  sent: number
  arrived: number
  /** After so many bytes the connection breaks. */
  cutAt: number
  /** What is under way. */
  readonly chunks: Uint8Array[]
  /** The byte with this count is damaged. */
  damageAt: number
}

/** One connection. Ends: 0 client, 1 server; pipe of an end: what that end sends. */
class Wire {
  readonly number: number
  readonly ends: readonly [End, End]
  readonly pipes: readonly [Pipe, Pipe]
  readonly open = [true, true]
  readonly attached = [false, false]
  readonly decoders: [FrameDecoder | null, FrameDecoder | null] = [null, null]

  constructor(number: number, ends: readonly [End, End], pipes: [Pipe, Pipe]) {
    this.number = number
    this.ends = ends
    this.pipes = pipes
  }
}

/** Bytes that a lane carries: a mistake of one byte in place shows, since the period is a prime. */
const PERIOD = 65521
const PATTERN = new Uint8Array(PERIOD + 65536)
for (let i = 0; i < PATTERN.length; i++) PATTERN[i] = Math.imul((i % PERIOD) + 1, 0x9e3779b1) >>> 24

/** @param length at most 65536 */
function pattern(key: number, offset: number, length: number): Uint8Array {
  const start = (key * 7919 + offset) % PERIOD
  return PATTERN.subarray(start, start + length)
}

class End {
  readonly side: 0 | 1
  readonly session: Session
  readonly byNumber = new Map<number, Flow>()
  wires: (Wire | null)[] = []
  /** Client: connections whose hello has not come back yet. */
  dialing: (Wire | null)[] = []
  work = true
  lingers = false
  timerAt = Number.POSITIVE_INFINITY
  batchesOut = 0
  batchesIn = 0
  dead: ProxyError | null = null
  bye = -1

  constructor(side: 0 | 1, make: (end: End) => Session) {
    this.side = side
    this.session = make(this)
  }
}

/** How a batch of this simulation looks: format, raw length, its number, its lane's offset, filler, and a sum of it. */
function makeBatch(random: Random, rawLength: number, number: number, offset: number, packed: number): Uint8Array[] {
  const head: number[] = [1]
  let value = rawLength
  while (value > 127) {
    head.push((value & 127) | 128)
    value >>>= 7
  }
  head.push(value)
  const bytes = new Uint8Array(head.length + 12 + packed)
  bytes.set(head)
  const view = new DataView(bytes.buffer)
  view.setUint32(head.length, number)
  view.setUint32(head.length + 4, offset)
  bytes.set(pattern(number, 0, packed), head.length + 12)
  view.setUint32(head.length + 8, crc32(bytes))
  // In parts, as columns come.
  if (random.chance(0.5) || bytes.length < 40) return [bytes]
  const a = random.int(1, 20)
  const b = random.int(a, bytes.length - 1)
  return [bytes.subarray(0, a), bytes.subarray(a, b), new Uint8Array(0), bytes.subarray(b)]
}

function readBatch(parts: readonly Uint8Array[]): { number: number; offset: number; intact: boolean } {
  let length = 0
  for (const part of parts) length += part.length
  const bytes = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  let head = 1
  while (bytes[head]! > 127) head++
  head++
  if (bytes.length < head + 12) return { number: 0, offset: 0, intact: false }
  const view = new DataView(bytes.buffer)
  const sum = view.getUint32(head + 8)
  view.setUint32(head + 8, 0)
  const intact = sum === crc32(bytes)
  return { number: view.getUint32(head), offset: view.getUint32(head + 4), intact }
}

/** Runs one seed to its end. */
export function simulate(seed: number, planter?: Planter): Outcome {
  return new Simulation(seed, planter).run()
}

class Simulation {
  private readonly seed: number
  private readonly random: Random
  private readonly agenda = new Agenda()
  private now = 0
  private ends: [End, End]
  private readonly makeEnds: () => [End, End]
  private flows: Flow[] = []
  /** The server takes no new migrations. */
  private drained = false
  /** Flows that it refused, or was not asked to take: they go to another session, from their first byte. */
  private again: Flow[] = []
  private flowsToOpen = 0
  /** The last flow opens when all the others have ended: on a session that was used. */
  private openLast: (() => void) | undefined
  /** Credit that flows to each end begin with. */
  private readonly credits: readonly [number, number]
  private readonly budget: FairShares
  private readonly connections: number
  private readonly tls: boolean
  private readonly faults: string[] = []
  private faultsLeft: number
  private damaged = false
  /** The link is down between these times: dials fail. */
  private outage: [number, number] = [0, 0]
  private outageKills = false
  private closing = false
  /** The end that closes, and whether it does so with its last bytes just handed in. */
  private readonly closer: 0 | 1
  private closeEarly: boolean
  private checked = 0
  private holdUntil = 0
  private readonly resets: boolean
  private bytes = 0

  constructor(seed: number, planter: Planter | undefined) {
    this.seed = seed
    const random = new Random(seed)
    this.random = random
    this.connections = random.pick([1, 1, 2, 2, 3, 4])
    this.tls = random.chance(0.6)
    this.faultsLeft = random.chance(0.2) ? 0 : random.int(1, 6)
    this.closer = random.chance(0.5) ? 0 : 1
    this.closeEarly = random.chance(0.2)
    this.resets = random.chance(0.3)
    this.credits = [0, 1].map(() => random.pick([32_768, 65_536, 65_536, 1 << 20, random.int(32_768, 300_000)])) as [
      number,
      number,
    ]
    this.budget = new FairShares(random.pick([0, 200_000, 2 << 20, 512 << 20]))
    const rate = random.chance(0.15) ? random.int(50_000, 5_000_000) : Number.POSITIVE_INFINITY
    const isWarmed = seed % 3 === 0
    const warmUp = new WarmUp()
    const make = (end: End) => {
      const role = end.side === 0 ? ('client' as const) : ('server' as const)
      const sink = this.sinkOf(end)
      const plant = planter?.(random, sink)
      const session = new Session({
        role,
        transport: sink,
        rate,
        queueTargetMs: random.pick([50, 50, 5, 200]),
        initialCredit: this.credits[end.side],
        memory: this.budget.share(role),
        ...(role === 'client' && isWarmed && { warmUp }),
        ...(plant?.parts && { parts: plant.parts }),
      })
      session.serve(sink)
      plant?.wrap?.(session)
      return session
    }
    this.makeEnds = () => [new End(0, make), new End(1, make)]
    this.ends = this.makeEnds()
  }

  run(): Outcome {
    let failure: string | null = null
    try {
      this.plan()
      this.loop()
      this.verify()
      if (this.again.length > 0 && this.ends.every(end => end.dead === null)) {
        this.renew()
        this.loop()
        this.verify()
      }
    } catch (error) {
      // A ProxyError out of the session is a defect too: what peers and links do must not throw.
      failure = error instanceof Failure ? error.message : `${error instanceof Error ? error.stack : error}`
    }
    const [client, server] = this.ends
    const dead = client.dead ?? server.dead
    return {
      seed: this.seed,
      failure,
      end: dead ? dead.code : 'bye',
      virtualMs: this.now,
      bytes: this.bytes,
      faults: this.faults,
    }
  }

  // Plan --------------------------------------------------------------------------------------------------------------

  private plan(): void {
    const { random } = this
    this.flowsToOpen = random.chance(0.1) ? random.int(10, 30) : random.int(1, 6)
    const hold = random.chance(0.25)
    for (let i = 0; i < this.flowsToOpen; i++) {
      const at = i === 0 ? 0 : random.next() * random.pick([5, 200, 3000])
      const held = hold && i === 0
      if (held) {
        this.holdUntil = 60_000
        this.faultsLeft = Math.min(this.faultsLeft, 3)
      }
      if (!hold && i > 0 && i === this.flowsToOpen - 1 && random.chance(0.3))
        this.openLast = () => this.openFlow(i + 1, held)
      else this.agenda.add(at, () => this.openFlow(i + 1, held))
    }
    for (let i = 0; i < this.connections; i++) this.dial(i)
    if (random.chance(0.25)) this.agenda.add(random.next() * random.pick([5, 200, 3000]), () => this.drain())
    let at = random.next() * 50
    for (let i = 0; i < this.faultsLeft; i++) {
      this.agenda.add(at, () => this.fault())
      at += random.next() * random.pick([20, 500, 4000])
    }
    // Now and then the link stays away for longer than the patience.
    if (!hold && random.chance(0.03)) {
      this.outageKills = true
      this.agenda.add(random.next() * 100, () => this.breakFor(400_000))
    }
  }

  /** Both daemons go on with another session: what was refused begins again there. */
  private renew(): void {
    const { random, again } = this
    this.again = []
    this.flows = []
    this.ends = this.makeEnds()
    this.drained = false
    this.closing = false
    this.closeEarly = false
    this.holdUntil = 0
    this.openLast = undefined
    this.flowsToOpen = again.length
    this.faultsLeft = random.chance(0.5) ? 0 : random.int(1, 3)
    for (let i = 0; i < this.connections; i++) this.dial(i)
    for (let i = 0; i < this.faultsLeft; i++) this.agenda.add(this.now + random.next() * 500, () => this.fault())
    for (const { id, migration, lanes } of again) {
      const [up, down] = lanes.map(({ key, total, batches, told }) => new Lane(key, total, batches, told)) as [
        Lane,
        Lane,
      ]
      this.agenda.add(this.now + random.next() * 20, () => this.begin(new Flow(id, migration, up, down)))
    }
  }

  private loop(): void {
    this.settle()
    for (let steps = 0; ; steps++) {
      if (steps > 200_000) fail(`no end after ${steps} events: ${this.describe()}`)
      const event = this.agenda.take()
      if (!event) break
      this.now = Math.max(this.now, event.at)
      if (this.now > 1_000_000) fail(`no end after a quarter of an hour: ${this.describe()}`)
      event.run()
      this.settle()
      if (this.over) break
    }
  }

  private get over(): boolean {
    return this.ends.every(end => end.session.state === 'closed' && end.wires.every(wire => !wire))
  }

  private verify(): void {
    const [client, server] = this.ends
    if (!this.over) fail(`nothing goes on: ${this.describe()}`)
    // The one that gave up first; the other may have found nobody there any more.
    const dead =
      [client.dead, server.dead].find(error => error && error.code !== 'PEER_LOST') ?? client.dead ?? server.dead
    if (dead) {
      const allowed =
        (dead.code === 'PEER_LOST' && this.outageKills) || (dead.code === 'BATCH_CHECKSUM' && this.damaged && !this.tls)
      // BATCH_FORMAT and the like: damage in the part of a batch that the session reads itself.
      const damage = this.damaged && !this.tls && (dead.code === 'BATCH_FORMAT' || dead.code === 'LIMIT_EXCEEDED')
      const credit = this.damaged && !this.tls && dead.code === 'PROTOCOL_STATE' && dead.what.includes('credit')
      // The link took the BYE itself, after all was delivered.
      const late = this.closing && this.faults.length > 0 && dead.code === 'PEER_LOST'
      if (allowed || damage || credit) return
      if (!late) fail(`the session died: ${dead.message}`)
    } else {
      const byes = this.ends.map(end => end.bye)
      if (byes[this.closer === 0 ? 1 : 0] !== 0) fail(`no BYE 0 at the other end: ${byes}`)
    }
    for (const flow of this.flows) {
      for (const lane of flow.lanes) {
        if (flow.reset || (this.closeEarly && lane !== flow.lanes[this.closer])) continue
        if (this.closeEarly && this.drained && !flow.known[1]) continue // closed before the refusal came
        if (lane.arrived !== lane.handed) fail(`flow ${flow.id}: ${lane.handed} bytes in, ${lane.arrived} out`)
        if (!this.closeEarly && (lane.arrived !== lane.total || !lane.finArrived)) fail(`flow ${flow.id} is not whole`)
      }
      if (!this.closeEarly && !flow.reset && !flow.taken) fail(`nobody said that flow ${flow.id} was taken`)
      if (!this.closeEarly && !flow.ended.every(Boolean)) fail(`flow ${flow.id} ended at one end only`)
    }
    if (!this.closeEarly && this.flows.length !== this.flowsToOpen) fail('not all flows were opened')
  }

  private describe(): string {
    const ends = this.ends.map(end => {
      const { flows, connections, ...rest } = end.session.stats()
      return JSON.stringify({ ...rest, flows, connections: connections.length, next: end.session.nextTickMs })
    })
    return `at ${this.now.toFixed(1)} ms, faults ${this.faults.join(', ')}\n  ${ends.join('\n  ')}`
  }

  // After each event: hand in, pull, arm timers ----------------------------------------------------------------------

  private settle(): void {
    for (let again = true; again; ) {
      again = false
      for (const end of this.ends) {
        if (!end.work) continue
        end.work = false
        again = true
        this.feed(end)
        for (const wire of end.wires) if (wire) this.pump(end, wire)
      }
    }
    for (const end of this.ends) {
      this.arm(end)
      if (end.session.state !== 'closed' || end.lingers) continue
      // A socket that does not even take the BYE is not waited for.
      end.lingers = true
      this.agenda.add(this.now + 2000, () => {
        for (const wire of end.wires) if (wire) this.drop(end, wire)
      })
    }
    const { openLast } = this
    if (openLast && this.flows.length === this.flowsToOpen - 1 && this.flows.every(flow => flow.ended.every(Boolean))) {
      this.openLast = undefined
      openLast()
    }
    if (!this.closing && this.canClose) this.close()
  }

  private arm(end: End): void {
    const next = end.session.nextTickMs
    if (next >= end.timerAt) return
    end.timerAt = next
    this.agenda.add(next, () => {
      if (end.timerAt !== next) return
      end.timerAt = Number.POSITIVE_INFINITY
      if (end.session.nextTickMs <= this.now) {
        end.session.tick(this.now)
        if (end.session.nextTickMs <= this.now) fail(`tick leaves the past: ${this.describe()}`)
      }
    })
  }

  private get canClose(): boolean {
    if (this.ends.some(end => end.session.state === 'closed' || end.session.state === 'opening')) return false
    if (this.closeEarly)
      return this.flows.length === this.flowsToOpen && this.flows.every(flow => flow.number > 0 || flow.reset)
    return this.flows.length === this.flowsToOpen && this.flows.every(flow => flow.ended.every(Boolean))
  }

  private close(): void {
    this.closing = true
    this.faultsLeft = 0
    const end = this.ends[this.closer]
    if (this.closeEarly) {
      // The last words: they must arrive although the session is closed right behind them.
      for (const flow of this.flows) {
        const lane = flow.lanes[end.side]
        if (flow.reset || !flow.known[end.side] || lane.finHanded) continue
        lane.available = lane.total
        const room = Math.min(8, lane.total - lane.handed, end.session.credit(flow.number))
        if (room > 0) this.handData(end, flow, lane, room)
      }
      // The other end may have bytes under way that nobody waits for: what it handed in later is not owed.
      for (const flow of this.flows) if (!flow.reset) flow.lanes[end.side === 0 ? 1 : 0].heldUntil = -1
    }
    end.session.close(this.now)
  }

  private feed(end: End): void {
    const { session, side } = end
    if (session.state === 'closed' || (this.closing && this.closeEarly)) return
    // Several times, so that data and batches of a flow stand in turns behind each other.
    for (let rounds = this.random.pick([1, 2, 5]); rounds > 0; rounds--) this.handIn(end)
    for (const flow of this.flows) {
      const lane = flow.lanes[side]
      if (flow.reset || !flow.known[side] || lane.finHanded) continue
      // Now and then the QEMU goes in the middle of its bytes, while some of them wait.
      if (this.resets && lane.handed > 0 && this.random.chance(0.02)) this.reset(end, flow)
      if (flow.reset || lane.handed < lane.total) continue
      lane.finHanded = true
      session.finFlow(flow.number)
    }
  }

  private handIn(end: End): void {
    const { session, side } = end
    const candidates: number[] = []
    for (const flow of this.flows) {
      if (flow.reset || !flow.known[side] || flow.ended[side]) continue
      const lane = flow.lanes[side]
      if (lane.told) continue
      while (lane.handed < lane.available) {
        if (this.random.chance(lane.batches)) {
          if (session.credit(flow.number) > 0) candidates.push(flow.number)
          break
        }
        const room = session.dataRoom(flow.number, lane.available - lane.handed)
        if (room === 0) {
          if (lane.batches > 0 && session.credit(flow.number) > 0) candidates.push(flow.number)
          break
        }
        this.handData(end, flow, lane, Math.min(room, this.random.int(1, this.random.pick([10, 3000, 40_000]))))
      }
    }
    while (candidates.length > 0 && session.bulkRoom(this.now) > 0) {
      if (!Number.isInteger(session.bulkRoom(this.now))) fail(`bulkRoom gives ${session.bulkRoom(this.now)} bytes`)
      const number = session.pickFlow(candidates, this.now)
      const flow = end.byNumber.get(number) ?? fail(`picked flow ${number}`)
      const lane = flow.lanes[side]
      const mixed = lane.batches < 1
      const raw = Math.min(
        lane.available - lane.handed,
        session.credit(number),
        this.random.int(1, mixed ? 4000 : 1 << 20),
      )
      const packed = Math.min(raw, this.random.int(0, this.random.pick([50, 500, 5000, 5000, 40_000])))
      const parts = makeBatch(this.random, raw, end.batchesOut++, lane.handed, packed)
      // every second one lies as its frames go out
      const total = parts.reduce((sum, { length }) => sum + length, 0)
      const memory = end.batchesOut % 2 === 0 ? new Uint8Array(laidBytes(total)) : undefined
      if (memory) session.sendBatch(number, raw, layBatch(parts, memory), () => this.reuse([memory]), true)
      else session.sendBatch(number, raw, parts, () => this.reuse(parts))
      lane.handed += raw
      this.bytes += packed
      const more = lane.handed < lane.available && session.credit(number) > 0
      if (!more || this.random.chance(1 - lane.batches)) candidates.splice(candidates.indexOf(number), 1)
    }
  }

  /** A sender that is told: its QEMU wrote, or the session says that there is room. */
  private sendBack(end: End, flow: Flow): void {
    const lane = flow.lanes[end.side]
    while (!flow.reset && flow.known[end.side] && !this.closing && end.session.state !== 'closed') {
      if (lane.back === 0) lane.back = Math.min(lane.available - lane.handed, this.random.int(1, 65_536))
      if (lane.back === 0) return
      const take = end.session.dataRoom(flow.number, lane.back)
      if (take === 0) return
      this.handData(end, flow, lane, take)
      lane.back -= take
      if (lane.back > 0) return
    }
  }

  /** The session says that nobody needs these bytes: other columns come to lie there. */
  private reuse(parts: readonly Uint8Array[]): void {
    for (const part of parts) part.fill(0xee)
  }

  private handData(end: End, flow: Flow, lane: Lane, length: number): void {
    if (!Number.isInteger(length)) fail(`dataRoom gives ${length} bytes`)
    end.session.sendData(flow.number, pattern(lane.key, lane.handed, length))
    lane.handed += length
    this.bytes += length
  }

  private pump(end: End, wire: Wire): void {
    if (!wire.open[end.side] || !wire.attached[end.side]) return
    const pipe = wire.pipes[end.side]
    while (pipe.buffered < pipe.socketBytes) {
      const out: Uint8Array[] = []
      const max = this.random.pick([100, 20_000, 65_536, 200_000])
      const bytes = end.session.pull(wire.number, Math.min(max, pipe.socketBytes - pipe.buffered), this.now, out)
      if (bytes === 0) break
      const chunk = new Uint8Array(bytes)
      let at = 0
      for (const view of out) {
        chunk.set(view, at)
        at += view.length
      }
      if (at !== bytes) fail(`pull says ${bytes} bytes and gives ${at}`)
      this.send(end, wire, chunk)
    }
    this.checkMemory(end)
    if (end.session.isDone(wire.number)) this.shut(end, wire)
  }

  private checkMemory(end: End): void {
    if (this.checked++ % 16 !== 0 || end.session.state === 'closed') return
    const stats = end.session.stats()
    for (const { inFlight, window } of stats.connections) {
      // A window may shrink while more is under way; fresh ones are seen before they do.
      if (inFlight > 64 * 1024 * 1024 + 16400 + window / 4) fail(`${inFlight} bytes under way`)
    }
    if (stats.unacked > 64 * 1024 * 1024) fail(`${stats.unacked} bytes unacknowledged`)
    if (stats.reordered > 64 * 1024 * 1024) fail(`${stats.reordered} bytes held`)
    for (const flow of this.flows) {
      const lane = flow.lanes[end.side === 0 ? 1 : 0]
      if (lane.arrived - lane.consumed > CREDIT_FLOW_BYTES_MAX) fail(`flow ${flow.id}: too much unconsumed`)
    }
    const queuedMax = 1.1 * (stats.window + WINDOW_BYTES_MIN * (1 + this.flows.length)) + (1 << 20) + 40_000
    if (stats.queued > queuedMax && stats.state === 'live') fail(`${stats.queued} bytes queued, window ${stats.window}`)
  }

  // Flows -------------------------------------------------------------------------------------------------------------

  private openFlow(id: number, held: boolean): void {
    const { random } = this
    const client = this.ends[0]
    if (client.session.state === 'closed' || this.closing) {
      this.flowsToOpen--
      return
    }
    const batches = random.pick([0, 0.5, 1])
    const size = () => random.int(0, random.pick([0, 100, 3000, 20_000, 60_000]))
    const upSize = batches > 0 && random.chance(0.3) ? random.int(1 << 20, 6 << 20) : size()
    // With batches some bytes of it may still go as data: keep what is really sent small.
    const upBatches = held || (batches > 0 && upSize > 200_000) ? 1 : batches
    const up = new Lane(id * 2, held ? 3 << 20 : upSize, upBatches, upBatches === 0 && random.chance(0.5))
    // Answers of any size, also such as fill every window and queue on their way.
    const downBatches = random.chance(0.2) ? 0.5 : 0
    const downSize = downBatches === 0 && random.chance(0.15) ? random.int(60_000, 400_000) : size()
    const down = new Lane(id * 2 + 1, downSize, downBatches, downBatches === 0 && random.chance(0.8))
    const flow = new Flow(id, random.int(1, 3), up, down)
    flow.held = held
    if (held) up.heldUntil = this.holdUntil
    this.begin(flow)
    if (flow.reset) return
    if (!held && random.chance(0.15)) {
      const end = random.pick(this.ends)
      this.agenda.add(this.now + random.next() * random.pick([1, 50, 500]), () => this.reset(end, flow))
    }
  }

  /** The QEMUs connect. */
  private begin(flow: Flow): void {
    const { random } = this
    const client = this.ends[0]
    for (const lane of flow.lanes) {
      if (random.chance(0.3)) lane.slowMs = random.int(1, 20)
      if (random.chance(0.5) && !lane.told) lane.available = lane.total
      else this.agenda.add(this.now + random.next() * 20, () => this.write(flow, lane))
    }
    this.flows.push(flow)
    try {
      flow.number = client.session.openFlow({ target: 'vm', migration: flow.migration, kind: `${flow.id}` })
    } catch (error) {
      if (!(error instanceof ProxyError) || !this.drained) throw error
      this.goElsewhere(flow)
      return
    }
    if (client.byNumber.has(flow.number)) fail(`flow number ${flow.number} is given twice`)
    client.byNumber.set(flow.number, flow)
    flow.known[0] = true
    if (random.chance(0.1)) client.session.setUrgent(flow.number, true)
    client.work = true
  }

  private drain(): void {
    const { session } = this.ends[1]
    if (session.state === 'closed' || this.closing) return
    this.drained = true
    session.drain()
  }

  /** The server will never tell its QEMU of this flow. */
  private goElsewhere(flow: Flow): void {
    if (flow.known[1]) fail(`flow ${flow.id} was told to the QEMU, and refused`)
    flow.reset = true
    flow.ended[1] = true
    if (flow.number === 0) flow.ended[0] = true
    this.again.push(flow)
  }

  private write(flow: Flow, lane: Lane): void {
    if (!this.flows.includes(flow)) return // its session is over, and another goes on
    const all = lane.told && this.random.chance(0.5)
    lane.available = all ? lane.total : Math.min(lane.total, lane.available + this.random.int(1, 1 + lane.total))
    if (lane.told) {
      // What was read before comes first, and that waits until it is told.
      if (lane.back === 0) this.sendBack(this.ends[lane === flow.lanes[0] ? 0 : 1], flow)
    } else {
      this.ends[0].work = true
      this.ends[1].work = true
    }
    if (lane.available < lane.total) {
      this.agenda.add(this.now + this.random.next() * 20, () => this.write(flow, lane))
    }
  }

  private reset(end: End, flow: Flow): void {
    if (!flow.known[end.side] || flow.ended[end.side] || end.session.state === 'closed' || this.closing) return
    flow.reset = true
    flow.resetBy[end.side] = true
    end.session.resetFlow(flow.number, 1, 'QEMU is gone')
  }

  private sinkOf(end: End): FlowSink & TransportSink {
    const other = end.side === 0 ? 1 : 0
    const flowOf = (number: number) => end.byNumber.get(number) ?? fail(`told of unknown flow ${number}`)
    return {
      onOpen: (number, info) => {
        const flow = this.flows.find(one => one.id === Number(info.kind)) ?? fail(`unknown flow ${info.kind} opened`)
        if (flow.known[1]) fail(`flow ${flow.id} is opened twice`)
        if (flow.number !== number || flow.migration !== info.migration) fail(`flow ${flow.id} opens as another`)
        if (end.byNumber.has(number)) fail(`flow number ${number} is still in use`)
        flow.known[1] = true
        end.byNumber.set(number, flow)
        end.work = true
        const back = flow.lanes[1]
        if (back.told) this.agenda.add(this.now + this.random.pick([0, 1, 20]), () => this.sendBack(end, flow))
      },
      onData: (number, payload) => {
        const flow = flowOf(number)
        const lane = flow.lanes[other]
        if (lane.finArrived) fail(`flow ${flow.id}: data after FIN`)
        if (Buffer.compare(payload, pattern(lane.key, lane.arrived, payload.length)) !== 0) {
          fail(`flow ${flow.id}: wrong bytes at ${lane.arrived}`)
        }
        this.arrive(end, flow, lane, payload.length)
      },
      onBatch: (number, parts, rawLength) => {
        const batch = readBatch(parts)
        if (!batch.intact) {
          if (!this.damaged || this.tls) fail('a damaged batch')
          const error = new ProxyError('BATCH_CHECKSUM', 'simulated', undefined, 'the session ends')
          return end.session.abort(error, this.now)
        }
        if (batch.number !== end.batchesIn++) fail(`batch ${batch.number} came as number ${end.batchesIn - 1}`)
        const flow = end.byNumber.get(number)
        if (!flow || flow.resetBy[end.side]) return
        const lane = flow.lanes[other]
        if (batch.offset !== lane.arrived) fail(`flow ${flow.id}: batch for ${batch.offset} at ${lane.arrived}`)
        if (lane.finArrived) fail(`flow ${flow.id}: batch after FIN`)
        this.arrive(end, flow, lane, rawLength)
      },
      onFin: number => {
        const flow = flowOf(number)
        const lane = flow.lanes[other]
        if (lane.finArrived) fail(`flow ${flow.id}: FIN twice`)
        if (lane.arrived !== lane.total && !flow.reset) fail(`flow ${flow.id}: FIN at ${lane.arrived} of ${lane.total}`)
        lane.finArrived = true
      },
      onReset: (number, code, text) => {
        const flow = flowOf(number)
        if (!flow.reset || code !== 1 || text !== 'QEMU is gone') fail(`flow ${flow.id}: RESET ${code} ${text}`)
        this.resetInTurn(end, number)
      },
      onTaken: number => {
        const flow = flowOf(number)
        if (end.side === 1 || !flow.known[1]) fail(`flow ${flow.id} was taken by nobody`)
        if (flow.taken) fail(`flow ${flow.id} was taken twice`)
        flow.taken = true
      },
      onRefused: number => {
        const flow = flowOf(number)
        if (flow.taken) fail(`flow ${flow.id} was taken, and refused`)
        if (!this.drained && !this.closing) fail(`flow ${flow.id} was refused without need`)
        this.goElsewhere(flow)
        this.resetInTurn(end, number)
      },
      onEnd: number => {
        const flow = flowOf(number)
        if (flow.ended[end.side]) fail(`flow ${flow.id} ends twice`)
        if (!flow.reset && flow.lanes.some(lane => !lane.finHanded)) fail(`flow ${flow.id} ends before its FINs`)
        flow.ended[end.side] = true
        if (!flow.known[1]) flow.ended[1] = true // refused, and reset by the client meanwhile
        end.byNumber.delete(number)
        if (!flow.held && this.holdUntil > 0 && this.now > this.holdUntil)
          fail(`flow ${flow.id} waited for the held one`)
      },
      onCredit: number => {
        const flow = flowOf(number)
        if (flow.lanes[end.side].told) this.sendBack(end, flow)
        else end.work = true
      },
      onWant: () => fail('WANT that nobody sent'),
      onPage: () => fail('PAGE that nobody sent'),
      onStalled: () => {},
      onDrain: () => {
        if (!this.drained || end.side === 1) fail('DRAIN that nobody sent')
      },
      onBye: code => {
        end.bye = code
        end.work = true
      },
      onDead: error => {
        end.dead = error
        end.work = true
      },
      onLost: number => {
        const wire = end.wires[number]
        if (wire) this.drop(end, wire)
      },
      onWork: () => {
        end.work = true
      },
    }
  }

  private resetInTurn(end: End, number: number): void {
    if (this.random.chance(0.5)) end.session.resetFlow(number, 1, 'in turn')
    else this.agenda.add(this.now + this.random.next() * 50, () => end.session.resetFlow(number, 1, 'in turn'))
  }

  private arrive(end: End, flow: Flow, lane: Lane, bytes: number): void {
    lane.arrived += bytes
    this.consume(end, flow, lane)
  }

  /** The QEMU at this end takes what it will. */
  private consume(end: End, flow: Flow, lane: Lane): void {
    if (lane.consuming || lane.consumed === lane.arrived || flow.ended[end.side]) return
    const wait = Math.max(lane.slowMs, lane.heldUntil - this.now)
    if (wait <= 0) {
      const bytes = lane.arrived - lane.consumed
      lane.consumed = lane.arrived
      end.session.consumed(flow.number, bytes)
      return
    }
    lane.consuming = true
    this.agenda.add(this.now + wait, () => {
      lane.consuming = false
      if (flow.ended[end.side] || flow.reset || end.session.state === 'closed') return
      const bytes = Math.min(lane.arrived - lane.consumed, this.random.int(1, 1 << 20))
      lane.consumed += bytes
      end.session.consumed(flow.number, bytes)
      this.consume(end, flow, lane)
    })
  }

  // Connections -------------------------------------------------------------------------------------------------------

  private dial(number: number): void {
    const [client, server] = this.ends
    if (client.session.state === 'closed') return
    if (this.now >= this.outage[0] && this.now < this.outage[1]) {
      this.agenda.add(this.now + 1000, () => this.dial(number))
      return
    }
    const { random } = this
    const pipe = (): Pipe => ({
      latencyMs: random.pick([0.05, 0.5, 5, 40]) * (0.5 + random.next()),
      bytesPerMs: random.pick([500, 10_000, 1_000_000]),
      busyUntil: 0,
      buffered: 0,
      socketBytes: random.pick([3000, 20_000, 131_072]),
      arrivesAt: 0,
      stalledUntil: 0,
      blackhole: false,
      sent: 0,
      arrived: 0,
      cutAt: Number.POSITIVE_INFINITY,
      chunks: [],
      damageAt: Number.POSITIVE_INFINITY,
    })
    const wire = new Wire(number, this.ends, [pipe(), pipe()])
    client.dialing[number] = wire
    const received = client.session.received
    const [up, down] = wire.pipes
    up.arrivesAt = this.now + up.latencyMs * 2
    this.agenda.add(up.arrivesAt, () => {
      if (!wire.open[1] || up.blackhole) return
      const old = server.wires[number]
      if (old && old !== wire) this.drop(server, old, false)
      server.wires[number] = wire
      wire.attached[1] = true
      wire.decoders[1] = this.decoderOf(server, wire)
      // A server may remember a session that has ended, and say BYE again, or not.
      const refuse = server.session.state === 'closed' && (server.bye >= 0 || random.chance(0.5))
      const serverReceived = server.session.received
      if (refuse) wire.attached[1] = false
      else server.session.attach(number, received, this.now, this.credits[0])
      // The server's hello stands in front of its frames.
      down.arrivesAt = Math.max(down.stalledUntil, this.now + down.latencyMs)
      this.agenda.add(down.arrivesAt, () => {
        if (!wire.open[0] || down.blackhole) return
        if (client.dialing[number] !== wire) return this.drop(client, wire)
        if (refuse) {
          // Another connection may still carry the BYE.
          if (!client.wires.some(one => one !== null)) {
            client.session.abort(new ProxyError('PEER_LOST', 'refused', undefined, 'the session is over'), this.now)
          }
          return this.drop(client, wire)
        }
        client.dialing[number] = null
        const old = client.wires[number]
        client.wires[number] = wire
        if (old) this.drop(client, old)
        wire.attached[0] = true
        wire.decoders[0] = this.decoderOf(client, wire)
        client.session.attach(number, serverReceived, this.now, this.credits[1])
      })
    })
    // A dial that leads nowhere is given up.
    this.agenda.add(this.now + 10_000, () => {
      if (wire.open[0] && !wire.attached[0]) this.drop(client, wire)
    })
  }

  private decoderOf(end: End, wire: Wire): FrameDecoder {
    return new FrameDecoder(frame => {
      if (end.wires[wire.number] === wire) end.session.receive(wire.number, frame, this.now)
    })
  }

  private send(end: End, wire: Wire, chunk: Uint8Array): void {
    const pipe = wire.pipes[end.side]
    pipe.buffered += chunk.length
    pipe.busyUntil = Math.max(pipe.busyUntil, this.now) + chunk.length / pipe.bytesPerMs
    pipe.arrivesAt = Math.max(pipe.arrivesAt, pipe.busyUntil + pipe.latencyMs, pipe.stalledUntil)
    pipe.sent += chunk.length
    if (!pipe.blackhole) {
      this.agenda.add(pipe.busyUntil, () => {
        pipe.buffered -= chunk.length
        if (wire.open[end.side]) end.work = true
      })
    }
    pipe.chunks.push(chunk)
    this.agenda.add(pipe.arrivesAt, () => this.arriveChunk(wire.ends[end.side === 0 ? 1 : 0], wire, pipe))
  }

  private arriveChunk(end: End, wire: Wire, pipe: Pipe): void {
    if (!wire.open[end.side] || pipe.blackhole || !wire.decoders[end.side]) return
    if (pipe.stalledUntil > this.now) {
      this.agenda.add(pipe.stalledUntil, () => this.arriveChunk(end, wire, pipe))
      return
    }
    // The oldest, whichever of them this event was planned for.
    let bytes = pipe.chunks.shift()!
    let cut = false
    if (pipe.arrived + bytes.length > pipe.cutAt) {
      bytes = bytes.subarray(0, Math.max(0, pipe.cutAt - pipe.arrived))
      cut = true
    }
    if (pipe.damageAt >= pipe.arrived && pipe.damageAt < pipe.arrived + bytes.length) {
      if (this.tls) {
        bytes = bytes.subarray(0, pipe.damageAt - pipe.arrived) // TLS gives nothing of a damaged record
        cut = true
      } else {
        this.damaged = true
        bytes = bytes.slice()
        bytes[pipe.damageAt - pipe.arrived]! ^= 1 << this.random.int(0, 7)
      }
    }
    pipe.arrived += bytes.length
    let at = 0
    while (at < bytes.length && wire.open[end.side]) {
      const take = this.random.chance(0.6) ? bytes.length - at : this.random.int(1, Math.min(bytes.length - at, 20_000))
      try {
        wire.decoders[end.side]!.push(bytes.slice(at, at + take))
      } catch (error) {
        if (!(error instanceof ProxyError)) throw error
        if (!this.damaged) fail(`undamaged frames are refused: ${error.message}`)
        cut = true
        break
      }
      at += take
    }
    if (cut) this.drop(end, wire)
  }

  /** This end closes the connection; the other sees it when what is under way has arrived or is lost. */
  private drop(end: End, wire: Wire, detach = true): void {
    if (!wire.open[end.side]) return
    const other = wire.ends[end.side === 0 ? 1 : 0]
    wire.open[end.side] = false
    wire.decoders[end.side] = null
    if (end.wires[wire.number] === wire) {
      end.wires[wire.number] = null
      if (detach && wire.attached[end.side]) end.session.detach(wire.number, this.now)
    }
    if (end.side === 0) {
      if (end.dialing[wire.number] === wire) end.dialing[wire.number] = null
      const backoff = this.random.pick([10, 100, 1000])
      this.agenda.add(this.now + backoff, () => {
        if (end === this.ends[0] && !end.wires[wire.number] && !end.dialing[wire.number]) this.dial(wire.number)
      })
    }
    const pipe = wire.pipes[end.side]
    if (!pipe.blackhole && wire.open[other.side]) {
      this.agenda.add(this.now + pipe.latencyMs, () => this.drop(other, wire))
    }
    end.work = true
  }

  /** This end has said BYE: it closes once the other has it. */
  private shut(end: End, wire: Wire): void {
    if (!wire.open[end.side]) return
    const other = wire.ends[end.side === 0 ? 1 : 0]
    const pipe = wire.pipes[end.side]
    wire.open[end.side] = false
    if (end.wires[wire.number] === wire) {
      end.wires[wire.number] = null
      end.session.detach(wire.number, this.now)
    }
    this.agenda.add(Math.max(this.now, pipe.arrivesAt), () => this.drop(other, wire))
  }

  // Faults ------------------------------------------------------------------------------------------------------------

  private fault(): void {
    if (this.faultsLeft <= 0) return
    this.faultsLeft--
    const { random } = this
    const wires = this.ends[0].wires.concat(this.ends[1].wires).filter(wire => wire !== null)
    if (wires.length === 0) return
    const wire = random.pick(wires)
    const end = random.pick(this.ends)
    const pipe = wire.pipes[end.side]
    const kind = random.pick(['reset', 'cut', 'cut', 'stall', 'drop', 'drop half', 'duplicate', 'damage', 'outage'])
    this.faults.push(`${kind} of ${wire.number} at ${this.now.toFixed(1)}`)
    const soon = () => pipe.arrived + random.int(0, Math.max(20_000, pipe.sent - pipe.arrived))
    switch (kind) {
      case 'reset':
        this.drop(end, wire)
        break
      case 'cut':
        pipe.cutAt = soon()
        break
      case 'stall':
        pipe.stalledUntil = this.now + random.next() * random.pick([50, 3000, 9000])
        break
      case 'drop':
        for (const half of wire.pipes) half.blackhole = true
        break
      case 'drop half':
        pipe.blackhole = true
        break
      case 'duplicate':
        if (this.ends[0].wires[wire.number] === wire) {
          // The client dials the same number again; the old one is closed when the new one is up, or by the server.
          if (random.chance(0.5)) this.drop(this.ends[0], wire)
          this.dial(wire.number)
        }
        break
      case 'damage':
        pipe.damageAt = soon()
        break
      case 'outage':
        this.breakFor(random.next() * 20_000)
    }
  }

  private breakFor(ms: number): void {
    this.outage = [this.now, this.now + ms]
    for (const wire of this.ends[0].wires.concat(this.ends[1].wires)) {
      if (wire) for (const pipe of wire.pipes) pipe.blackhole = true
    }
  }
}
