/**
 * A WAN link inside this process: relays TCP connections with the rate, delay and outages of a Link, and with faults on
 * command. For where packet links are not to be had, and for tests of what a proxy does when its connection breaks at
 * an exact byte.
 *
 *   await using link = await RelayLink.open(parseLink('100Mbit,40ms'), { host: '127.0.0.1', port: 7000 })
 *   connect(link.port) ... link.cut({ reset: true })
 *
 * TCP runs from each side to the relay and not across it, so loss is modelled by its effect, a round trip's wait, an
 * outage stalls, and only faults break connections. All connections share the rate, each direction by itself.
 */
import { createServer, type Server, Socket } from 'node:net'
import { resetSocket } from '../../../src/relay/reset-socket.ts'
import { formatLink, type Link } from './link.ts'
import { type Measurement, probe, serveMeasurements } from './measure.ts'
import { PathModel } from './path-model.ts'

/** Where the relay hands on to. */
export interface RelayTarget {
  readonly host: string
  readonly port: number
}

/** Towards the target, or back from it. */
export type Direction = 'forward' | 'back'

/** How connections are cut. */
export interface Cut {
  /** By RST at once; otherwise by FIN after what is under way has arrived. */
  readonly reset: boolean
}

/** Bytes handed over at the far end of each direction. */
export interface RelayCounters {
  readonly forwardBytes: number
  readonly backBytes: number
}

// Pieces of this size are timed by themselves: 64 KB would arrive as one burst.
const pieceBytes = 16_384

/** A relay that behaves like a link. */
export class RelayLink implements AsyncDisposable {
  readonly link: Link
  /** Where it listens, on 127.0.0.1 unless told otherwise. */
  readonly host: string
  readonly port: number
  /** Connections so far, those that have ended among them. */
  connections = 0
  private readonly server: Server
  private readonly target: RelayTarget
  private readonly models: Readonly<Record<Direction, PathModel>>
  private readonly pairs = new Set<Pair>()
  private readonly counts = { forward: 0, back: 0 }
  private readonly cutAt: { direction: Direction; bytes: number; cut: Cut; done: () => void }[] = []
  private dead = false
  private refusing = false

  private constructor(link: Link, server: Server, target: RelayTarget) {
    this.link = link
    this.server = server
    this.target = target
    const address = server.address() as { address: string; port: number }
    this.host = address.address
    this.port = address.port
    const nowMs = performance.now()
    this.models = { forward: new PathModel(link, 0, nowMs), back: new PathModel(link, 1, nowMs) }
    server.on('connection', near => this.accept(near))
  }

  /** Listens, on a free port of loopback unless told otherwise. The clock of the outages starts now. */
  static async open(link: Link, target: RelayTarget, listen: Partial<RelayTarget> = {}): Promise<RelayLink> {
    const server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true })
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject).listen(listen.port ?? 0, listen.host ?? '127.0.0.1', resolve)
    })
    return new RelayLink(link, server, target)
  }

  /** Measures a link of this description by one TCP connection through a relay of its own. */
  static async measure(link: Link, sendMs = Math.max(500, link.roundTripMs * 10)): Promise<Measurement> {
    const server = await serveMeasurements('127.0.0.1')
    await using relay = await RelayLink.open({ ...link, outages: [] }, { host: '127.0.0.1', port: server.port })
    try {
      return await probe('127.0.0.1', relay.port, sendMs)
    } finally {
      server.close()
    }
  }

  /** Its description. */
  get description(): string {
    return formatLink(this.link)
  }

  /** Connections that are open now. */
  get openConnections(): number {
    return this.pairs.size
  }

  /** What was handed over at the far ends so far. */
  counters(): RelayCounters {
    return { forwardBytes: this.counts.forward, backBytes: this.counts.back }
  }

  /** Starts the clock of the outages again, at 0. */
  startClock(): void {
    this.models.forward.clockStartMs = this.models.back.clockStartMs = performance.now()
    this.wake()
  }

  /** Cuts every open connection. New ones are welcome. */
  cut(cut: Cut = { reset: true }): void {
    for (const pair of [...this.pairs]) pair.cut(cut)
  }

  /**
   * Cuts every open connection once `bytes` bytes, counted from the link's beginning, have been handed over in one
   * direction: exactly so many are, and not one more. (A reset can overtake the last of them in the kernel, where the
   * far end reads slowly; FIN cannot.)
   * @returns a promise for that moment
   */
  cutAfter(direction: Direction, bytes: number, cut: Cut = { reset: true }): Promise<void> {
    return new Promise(resolve => {
      this.cutAt.push({ direction, bytes, cut, done: resolve })
    })
  }

  /** Holds everything back, until resume(): nothing is lost, nobody is told. */
  stall(): void {
    this.models.forward.down = this.models.back.down = true
  }

  /** Ends stall(). */
  resume(): void {
    this.models.forward.down = this.models.back.down = false
    this.wake()
  }

  /**
   * Loses every open connection without a word, as when a firewall forgets them: what is under way vanishes, both sides
   * hear nothing more. Connections made meanwhile are accepted and lost too, until restore(); those that were lost stay
   * so.
   */
  drop(): void {
    this.dead = true
    for (const pair of this.pairs) pair.lose()
  }

  /** New connections work again after drop() and refuse(). */
  restore(): void {
    this.dead = false
    this.refusing = false
  }

  /** Resets new connections at once. */
  refuse(): void {
    this.refusing = true
  }

  /** Ends everything. */
  async close(): Promise<void> {
    this.server.close()
    for (const pair of [...this.pairs]) pair.cut({ reset: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  private accept(near: Socket): void {
    near.on('error', () => {})
    if (this.refusing) {
      near.resetAndDestroy()
      return
    }
    this.connections++
    const pair = new Pair(near, this.target, this.models, this.link, {
      ended: () => this.pairs.delete(pair),
      allowance: direction => this.allowance(direction),
      handedOver: (direction, bytes) => this.handedOver(direction, bytes),
    })
    this.pairs.add(pair)
    if (this.dead) pair.lose()
  }

  /** How many bytes may be handed over before a cut is due. */
  private allowance(direction: Direction): number {
    const counted = this.counts[direction]
    return Math.min(
      ...this.cutAt.filter(at => at.direction === direction).map(at => Math.max(0, at.bytes - counted)),
      Infinity,
    )
  }

  private handedOver(direction: Direction, bytes: number): void {
    this.counts[direction] += bytes
    for (const at of [...this.cutAt]) {
      if (at.direction !== direction || this.counts[direction] < at.bytes) continue
      this.cutAt.splice(this.cutAt.indexOf(at), 1)
      this.cut(at.cut)
      at.done()
    }
  }

  private wake(): void {
    for (const pair of this.pairs) pair.wake()
  }
}

interface Owner {
  readonly ended: () => void
  readonly allowance: (direction: Direction) => number
  readonly handedOver: (direction: Direction, bytes: number) => void
}

/** One relayed connection. */
class Pair {
  private readonly near: Socket
  private readonly far: Socket
  private readonly owner: Owner
  private readonly ways: readonly Way[]
  private over = false
  private dial: NodeJS.Timeout
  private lost = false

  constructor(
    near: Socket,
    target: RelayTarget,
    models: Readonly<Record<Direction, PathModel>>,
    link: Link,
    owner: Owner,
  ) {
    this.near = near
    this.owner = owner
    this.far = new Socket({ allowHalfOpen: true }).setNoDelay(true)
    const forward = new Way('forward', near, this.far, models.forward, link, owner)
    const back = new Way('back', this.far, near, models.back, link, owner)
    this.ways = [forward, back]
    // A SYN takes half a round trip, and passes when the link is up; until then bytes wait in the kernel.
    const dial = () => {
      const waitMs = models.forward.upAtMs(performance.now()) - performance.now()
      if (waitMs <= 0) this.far.connect(target)
      else this.dial = setTimeout(dial, Math.min(waitMs, 50))
    }
    this.dial = setTimeout(dial, link.roundTripMs / 2)
    this.far.once('connect', () => {
      for (const way of this.ways) way.start()
    })
    for (const socket of [near, this.far]) {
      socket.on('error', () => {
        if (!this.lost) this.cut({ reset: true }) // a reset on one side is one on the other
      })
      socket.on('close', () => {
        if (near.destroyed && this.far.destroyed) this.end()
      })
    }
  }

  cut({ reset }: Cut): void {
    if (this.over) return
    if (reset) {
      this.end()
      for (const socket of [this.near, this.far]) resetSocket(socket)
    } else for (const way of this.ways) way.finish()
  }

  lose(): void {
    this.lost = true
    clearTimeout(this.dial)
    for (const way of this.ways) way.lose()
  }

  wake(): void {
    for (const way of this.ways) way.deliver()
  }

  private end(): void {
    if (this.over) return
    this.over = true
    clearTimeout(this.dial)
    for (const way of this.ways) way.lose()
    this.owner.ended()
  }
}

/** One direction of one connection. */
class Way {
  private readonly direction: Direction
  private readonly from: Socket
  private readonly to: Socket
  private readonly model: PathModel
  private readonly owner: Owner
  private readonly windowBytes: number
  private readonly pieces: { readonly bytes: Buffer; readonly arrivalMs: number }[] = []
  private underWayBytes = 0
  private finAtMs = -1
  private started = false
  private lost = false
  /** Takes no more bytes: they end, or were cut. */
  private closing = false
  private timer: NodeJS.Timeout | undefined

  constructor(direction: Direction, from: Socket, to: Socket, model: PathModel, link: Link, owner: Owner) {
    this.direction = direction
    this.from = from
    this.to = to
    this.model = model
    this.owner = owner
    // What TCP would have under way and queued; more stays with the sender.
    const underWay = link.bitsPerSecond === Infinity ? 64e6 : (link.bitsPerSecond * link.roundTripMs) / 16_000
    this.windowBytes = Math.max(4 * pieceBytes, underWay + link.queueBytes)
  }

  start(): void {
    this.started = true
    this.from.on('data', chunk => {
      if (this.lost || this.closing) return
      const nowMs = performance.now()
      for (let at = 0; at < chunk.length; at += pieceBytes) {
        const bytes = chunk.subarray(at, at + pieceBytes)
        this.pieces.push({ bytes, arrivalMs: this.model.sendStream(nowMs, bytes.length) })
        this.underWayBytes += bytes.length
      }
      if (this.underWayBytes > this.windowBytes) this.from.pause()
      this.deliver()
    })
    this.from.on('end', () => this.finish())
    this.to.on('drain', () => this.deliver())
    this.from.resume()
    this.deliver() // the FIN of a cut that came first
  }

  /** Nothing more is taken, and FIN follows what is under way. */
  finish(): void {
    if (this.finAtMs >= 0) return
    this.closing = true
    this.from.resume()
    this.finAtMs = this.model.sendStream(performance.now(), 0)
    this.deliver()
  }

  /** Forgets what is under way, and all that comes. The sender is read on, and hears nothing. */
  lose(): void {
    this.lost = true
    this.pieces.length = 0
    clearTimeout(this.timer)
    this.from.resume()
  }

  /** Hands over what is due, and comes back for the rest. */
  deliver(): void {
    clearTimeout(this.timer)
    if (this.lost || !this.started) return
    const nowMs = performance.now()
    const upMs = this.model.upAtMs(nowMs)
    if (upMs > nowMs) {
      if (upMs < Infinity) this.timer = setTimeout(() => this.deliver(), upMs - nowMs + 1)
      return
    }
    while (this.pieces.length > 0 && this.pieces[0]!.arrivalMs <= nowMs + 0.5) {
      if (this.to.writableNeedDrain) return // drain comes back here
      const { bytes } = this.pieces.shift()!
      this.underWayBytes -= bytes.length
      const allowed = Math.min(bytes.length, this.owner.allowance(this.direction))
      if (allowed < bytes.length) {
        // The cut comes in the middle of this piece: as much as is allowed leaves this process before it.
        this.closing = true
        this.pieces.length = 0
        this.underWayBytes = 0
        const cut = () => this.owner.handedOver(this.direction, allowed)
        if (allowed > 0) this.to.write(bytes.subarray(0, allowed), cut)
        else cut()
        return
      }
      this.to.write(bytes)
      this.owner.handedOver(this.direction, bytes.length)
      if (this.lost) return
    }
    if (this.underWayBytes <= this.windowBytes && !this.closing) this.from.resume()
    const [next] = this.pieces
    if (next) this.timer = setTimeout(() => this.deliver(), Math.max(1, next.arrivalMs - nowMs))
    else if (this.finAtMs > nowMs) this.timer = setTimeout(() => this.deliver(), Math.max(1, this.finAtMs - nowMs))
    else if (this.finAtMs >= 0) this.to.end()
  }
}
