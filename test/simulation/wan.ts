/**
 * The WAN in virtual time: sessions with their connections, as src/link has them, over pipes that cut, stall, swallow and
 * are away. Whoever owns a link end moves its bytes by `flush`.
 */
import type { Random } from '../../scripts/harness/random.ts'
import { ProxyError } from '../../src/errors.ts'
import { LINGER_MS } from '../../src/limits.ts'
import type { LinkSink } from '../../src/link/api.ts'
import type { SessionOptions, TransportSink } from '../../src/session/api.ts'
import { Session } from '../../src/session/session.ts'
import { FrameDecoder } from '../../src/wan/frames.ts'
import type { Process, VirtualTime } from '../helpers/virtual-time.ts'

const BACKOFF_MIN_MS = 100
const BACKOFF_MAX_MS = 5000
const HELLO_TIMEOUT_MS = 10_000
/** Bytes that a socket takes. */
const SOCKET_BYTES = 128 * 1024
/** A turn of the event loop that brings about the next one at once: so many in a row are a defect. */
const TURNS_MAX = 2000

/** One direction of a connection. */
class Pipe {
  private readonly wan: Wan
  private readonly latencyMs: number
  private readonly bytesPerMs: number
  private freeMs = 0
  private lastMs = 0
  stalledUntilMs = 0
  /** Bytes in the sender's socket. */
  waiting = 0

  constructor(wan: Wan, latencyMs: number, bytesPerMs: number) {
    this.wan = wan
    this.latencyMs = latencyMs
    this.bytesPerMs = bytesPerMs
  }

  /** @param sent the sender's socket has room again */
  send(bytes: number, arrives: () => void, sent: () => void = () => {}): void {
    const { time } = this.wan
    this.waiting += bytes
    this.freeMs = Math.max(this.freeMs, time.nowMs) + bytes / this.bytesPerMs
    this.lastMs = Math.max(this.lastMs, this.freeMs + this.latencyMs, this.stalledUntilMs)
    time.afterAs(undefined, this.freeMs - time.nowMs, () => {
      this.waiting -= bytes
      sent()
    })
    time.afterAs(undefined, this.lastMs - time.nowMs, arrives)
  }
}

/** One connection of a session, seen from both ends. */
export class Wire {
  readonly number: number
  readonly up: Pipe
  readonly down: Pipe
  client: LinkEnd | undefined
  server: LinkEnd | undefined
  /** Bytes vanish, and nobody is told. */
  swallows = false
  /** Closed at the client's end, and the server's. */
  readonly closed = { client: false, server: false }
  /** What is still under way is lost. */
  cutOff = false

  constructor(wan: Wan, number: number) {
    const { random } = wan
    const pipe = (): Pipe => new Pipe(wan, wan.latencyMs * (0.5 + random.next()), wan.bytesPerMs)
    this.number = number
    this.up = pipe()
    this.down = pipe()
  }
}

/** Whom a client's hello reaches. */
export interface WanServer {
  readonly process: Process
  /** @param resumes the client has had an answer before @returns the session's end, or why not */
  hello(id: string, client: Process, resumes: boolean): LinkEnd | string
}

/** The path between two sites. */
export class Wan {
  readonly time: VirtualTime
  readonly random: Random
  readonly latencyMs: number
  readonly bytesPerMs: number
  /** Who listens; undefined: nobody. */
  server: WanServer | undefined
  readonly wires = new Set<Wire>()
  /** Nobody is reached before this time. */
  awayUntilMs = 0
  /** When a client last heard of its session, or got one; and when a hello was last given up. */
  heardMs = 0
  helloLostMs = 0
  /** Link ends that have work to do in this turn. */
  readonly awake = new Set<LinkEnd>()

  constructor(time: VirtualTime, random: Random) {
    this.time = time
    this.random = random
    this.latencyMs = random.pick([0.1, 2, 20, 80])
    this.bytesPerMs = random.pick([500, 5000, 100_000])
  }

  get isAway(): boolean {
    return this.time.nowMs < this.awayUntilMs
  }

  /** Ends of turns. @returns what spins, '' where nothing does */
  settle(): string {
    for (let turns = 0; this.awake.size > 0; turns++) {
      if (turns > TURNS_MAX) return `a link wakes itself without end: ${[...this.awake].map(({ id }) => id)}`
      for (const end of [...this.awake]) {
        this.awake.delete(end)
        if (end.process.alive) this.time.as(end.process, () => end.flush())
      }
    }
    return ''
  }

  /** Closes a connection at one end, or on its way; the other sees it when what is under way has come. */
  close(wire: Wire, by: 'client' | 'server' | 'path'): void {
    this.wires.delete(wire)
    const ends = by === 'path' ? (['client', 'server'] as const) : [by]
    for (const end of ends) this.closeEnd(wire, end, by === 'path')
  }

  private closeEnd(wire: Wire, end: 'client' | 'server', isMishap: boolean): void {
    if (wire.closed[end]) return
    wire.closed[end] = true
    wire[end]?.wireClosed(wire, isMishap)
    const other = end === 'client' ? 'server' : 'client'
    const pipe = end === 'client' ? wire.up : wire.down
    if (!wire.swallows) pipe.send(0, () => this.closeEnd(wire, other, !wire[other]?.session.isDone(wire.number)))
  }

  /** The path breaks for a while: what stands on it is not told. */
  away(ms: number): void {
    this.awayUntilMs = this.time.nowMs + ms
    for (const wire of this.wires) wire.swallows = true
  }
}

/** One session at one side, with its connections: src/link/link.ts. */
export class LinkEnd implements TransportSink {
  readonly wan: Wan
  readonly process: Process
  readonly role: 'client' | 'server'
  readonly id: string
  readonly session: Session
  private sink: LinkSink | undefined
  private isGone = false
  heardMs = Number.NEGATIVE_INFINITY
  error: ProxyError | undefined
  private readonly wires = new Map<number, Wire>()
  private readonly open = new Set<Wire>()
  private readonly leaving = new Set<Wire>()
  private timerMs = Number.POSITIVE_INFINITY
  private readonly ended: (error: ProxyError | undefined) => void

  constructor(
    wan: Wan,
    process: Process,
    role: 'client' | 'server',
    id: string,
    options: Omit<SessionOptions, 'role' | 'transport'>,
    ended: (error: ProxyError | undefined) => void,
  ) {
    this.wan = wan
    this.process = process
    this.role = role
    this.id = id
    this.ended = ended
    this.session = new Session({ ...options, role, transport: this })
  }

  /** Before anything of a flow comes. */
  serve(sink: LinkSink): void {
    this.sink = sink
    this.session.serve(sink)
  }

  onBye(code: number, text: string): void {
    this.sink?.onBye(code, text)
    this.wake()
  }

  onDead(error: ProxyError): void {
    this.error ??= error
    this.sink?.onDead(error)
    this.wake()
  }

  onLost(connection: number): void {
    const wire = this.wires.get(connection)
    if (!wire) return
    this.forget(wire)
    this.wan.close(wire, this.role)
    this.tell(connection, false, new Error('given up'))
  }

  onWork(): void {
    this.wake()
  }

  get connections(): number {
    return this.wires.size
  }

  get over(): boolean {
    return this.isGone || this.session.state === 'closed'
  }

  wake(): void {
    if (!this.isGone) this.wan.awake.add(this)
  }

  /** The hellos are exchanged. */
  attach(wire: Wire, peerReceived: number): void {
    const before = this.wires.get(wire.number)
    if (before) {
      this.forget(before)
      this.wan.close(before, this.role)
    }
    this.wires.set(wire.number, wire)
    this.open.add(wire)
    this.tell(wire.number, true)
    this.session.attach(wire.number, peerReceived, this.wan.time.nowMs)
    this.wake()
  }

  /** A decoder of what comes on a connection. */
  receives(wire: Wire): (bytes: Uint8Array) => void {
    const { time, random } = this.wan
    const decoder = new FrameDecoder(frame => {
      if (this.wires.get(wire.number) === wire) this.session.receive(wire.number, frame, time.nowMs)
    })
    return bytes => {
      if (this.wires.get(wire.number) !== wire) return
      this.heardMs = time.nowMs
      const cut = random.chance(0.3) ? random.int(0, bytes.length) : 0
      if (cut > 0) decoder.push(bytes.slice(0, cut))
      if (cut < bytes.length) decoder.push(bytes.slice(cut))
    }
  }

  /** Its connection is closed. */
  wireClosed(wire: Wire, isMishap: boolean): void {
    this.open.delete(wire)
    if (!this.process.alive) return
    this.wan.time.as(this.process, () => {
      if (this.wires.get(wire.number) === wire) {
        this.forget(wire)
        this.session.detach(wire.number, this.wan.time.nowMs)
        this.tell(wire.number, false, isMishap ? new Error('closed by the peer') : undefined)
      }
      this.lost(wire)
      this.wake()
    })
  }

  /** A client dials again. */
  protected lost(_wire: Wire): void {}

  private forget(wire: Wire): void {
    if (this.wires.get(wire.number) === wire) this.wires.delete(wire.number)
  }

  private tell(connection: number, up: boolean, error?: Error): void {
    this.sink?.onConnection(connection, up, this.wires.size, error)
  }

  close(): void {
    this.session.close(this.wan.time.nowMs)
    this.wake()
  }

  abort(error: ProxyError): void {
    this.session.abort(error, this.wan.time.nowMs)
    this.wake()
  }

  flush(): void {
    const { session, wan } = this
    const { nowMs } = wan.time
    if (session.nextTickMs <= nowMs) session.tick(nowMs)
    if (session.state !== 'closed') this.sink?.onWork()
    for (const wire of [...this.wires.values()]) this.write(wire)
    this.arm()
    if (session.state !== 'closed' || this.open.size > 0 || this.isGone) return
    this.isGone = true
    this.ended(this.error)
  }

  private write(wire: Wire): void {
    const { session, wan } = this
    const pipe = this.role === 'client' ? wire.up : wire.down
    const other = this.role === 'client' ? 'server' : 'client'
    while (pipe.waiting < SOCKET_BYTES && !this.leaving.has(wire)) {
      const out: Uint8Array[] = []
      if (session.pull(wire.number, 65536, wan.time.nowMs, out) === 0) break
      const bytes = Buffer.concat(out)
      const arrives = (): void => {
        if (wire.swallows || wire.cutOff || wire.closed[other]) return
        const far = wire[other]
        if (far?.process.alive) wan.time.as(far.process, () => this.deliver(wire, far, bytes))
      }
      pipe.send(bytes.length, arrives, () => this.wake())
    }
    if (!session.isDone(wire.number) && session.state !== 'closed') return
    if (this.leaving.has(wire)) return
    this.leaving.add(wire)
    // the peer reads what is under way, closes, or is not waited for
    pipe.send(0, () => wan.close(wire, this.role))
    wan.time.afterAs(this.process, LINGER_MS, () => wan.close(wire, this.role))
  }

  private readonly decoders = new WeakMap<Wire, (bytes: Uint8Array) => void>()

  private deliver(wire: Wire, far: LinkEnd, bytes: Uint8Array): void {
    if (far.role === 'client') this.wan.heardMs = this.wan.time.nowMs
    let take = far.decoders.get(wire)
    if (!take) {
      take = far.receives(wire)
      far.decoders.set(wire, take)
    }
    take(bytes)
  }

  private arm(): void {
    const { session, wan } = this
    const due = session.nextTickMs
    if (due >= this.timerMs) return
    this.timerMs = due
    wan.time.afterAs(this.process, Math.max(0, due - wan.time.nowMs), () => {
      if (this.timerMs !== due) return
      this.timerMs = Number.POSITIVE_INFINITY
      this.wake()
    })
  }
}

/** The side that dials: src/link/client.ts. */
export class ClientEnd extends LinkEnd {
  private readonly backoffMs = new Map<number, number>()
  private readonly dialling = new Set<number>()
  /** The server has answered once. */
  private known = false
  private readonly opened: () => void
  private readonly connectionsWanted: number

  constructor(
    wan: Wan,
    process: Process,
    id: string,
    connections: number,
    options: Omit<SessionOptions, 'role' | 'transport'>,
    opened: () => void,
    ended: (error: ProxyError | undefined) => void,
  ) {
    super(wan, process, 'client', id, options, ended)
    this.connectionsWanted = connections
    this.opened = opened
    this.dial(0)
  }

  protected override lost(wire: Wire): void {
    this.again(wire.number)
  }

  private again(number: number): void {
    if (this.over || this.dialling.has(number)) return
    this.dialling.add(number)
    const wait = this.backoffMs.get(number) ?? BACKOFF_MIN_MS
    this.backoffMs.set(number, Math.min(BACKOFF_MAX_MS, 2 * wait))
    this.wan.time.afterAs(this.process, wait, () => {
      this.dialling.delete(number)
      this.dial(number)
    })
  }

  private dial(number: number): void {
    const { wan, process } = this
    const { time, random } = wan
    if (this.over) return
    this.dialling.add(number)
    let over = false
    const failed = (): void => {
      if (over) return
      over = true
      this.dialling.delete(number)
      this.again(number)
    }
    const { server } = wan
    if (wan.isAway || !server?.process.alive) {
      // nobody answers, or somebody says no
      time.afterAs(process, wan.isAway && random.chance(0.5) ? HELLO_TIMEOUT_MS : 10, failed)
      return
    }
    const wire = new Wire(wan, number)
    wan.wires.add(wire)
    wire.client = this
    time.afterAs(process, HELLO_TIMEOUT_MS, () => {
      if (over) return
      wan.helloLostMs = time.nowMs
      wan.close(wire, 'client')
      failed()
    })
    const { received } = this.session
    const resumes = this.known
    wire.up.send(300, () => {
      if (wire.swallows || wire.closed.server || !server.process.alive) return
      time.as(server.process, () => {
        const end = server.hello(this.id, process, resumes)
        if (typeof end === 'string') {
          wire.down.send(100, () => {
            if (!wire.swallows) time.as(process, () => process.alive && !over && this.refused(wire, end, failed))
          })
          return
        }
        wire.server = end
        const serverReceived = end.session.received
        wire.down.send(300, () => {
          if (wire.swallows || wire.closed.client || over || !process.alive) return
          over = true
          this.dialling.delete(number)
          time.as(process, () => this.answered(wire, number, serverReceived))
        })
        end.attach(wire, received)
      })
    })
  }

  private refused(wire: Wire, why: string, failed: () => void): void {
    this.wan.close(wire, 'client')
    if (!this.known && why !== 'unknown session') failed()
    else this.abort(new ProxyError('PEER_LOST', `the server refuses: ${why}`, undefined, 'the session is over'))
  }

  private answered(wire: Wire, number: number, serverReceived: number): void {
    if (this.over) {
      this.wan.close(wire, 'client')
      return
    }
    this.backoffMs.delete(number)
    this.wan.heardMs = this.wan.time.nowMs
    const first = !this.known
    this.known = true
    if (first) this.opened()
    this.attach(wire, serverReceived)
    if (first) for (let i = 1; i < this.connectionsWanted; i++) this.dial(i)
  }
}
