/**
 * One session with its connections: moves bytes between sockets and Session, runs its clock, and ends connections.
 * Knows nothing of how connections come to be: client.ts dials them, server.ts accepts them.
 */
import type net from 'node:net'
import { CHUNKS } from '../bytes/chunks.ts'
import { defectOf, ProxyError } from '../errors.ts'
import { LINGER_MS } from '../limits.ts'
import type { Role, TransportSink } from '../session/api.ts'
import { Served } from '../session/served.ts'
import { Session } from '../session/session.ts'
import { type Frame, FrameDecoder } from '../wan/frames.ts'
import { FRAME } from '../wan/wire.ts'
import type { Clock, LinkLogger, LinkSink, SessionTuning } from './api.ts'
import { EndOfTurn } from './end-of-turn.ts'
import { Intake, readInto } from './intake.ts'
import { KeyUse } from './key-use.ts'
import { type Wire, Wires } from './wires.ts'

/**
 * A connection is given more bytes only while fewer than this wait in Node's memory: what waits there can no longer be
 * overtaken by an urgent frame.
 */
const WRITE_BUFFER_BYTES_MAX = 128 * 1024
/**
 * One write: eight full frames. With TLS each write costs a turn of the event loop; half of this takes a fifth more of the
 * sender's CPU time, and twice as much gains nothing (test/link/link-bench.ts).
 */
const PULL_BYTES = 128 * 1024
/** A write of less is made one piece: a copy costs less than the views of a batch of references (test/daemon/pair-bench.ts). */
const JOIN_BYTES_MAX = 4096
const EMPTY = new Uint8Array(0)

export interface LinkOptions {
  readonly role: Role
  /** 32 hex digits. */
  readonly id: string
  readonly session?: SessionTuning
  readonly logger: LinkLogger
  readonly clock: Clock
  /** For logs: who the peer is. */
  readonly identity: string
  /** TLS records that a connection may carry. Default TLS_RECORDS_MAX. */
  readonly recordsMax?: number | undefined
}

/** A live session. What flows through it goes by `session`; `link` is about connections and ending. */
export class Link implements TransportSink {
  readonly role: Role
  /** 32 hex digits, the same on both sides: name it in logs. */
  readonly id: string
  readonly session: Session
  /** Settles when the session has ended and every socket is closed. Never rejects: the error is its value. */
  readonly ended: Promise<ProxyError | undefined>
  /** Who the peer is, for logs. */
  identity: string
  /** A frame of the peer has arrived on some connection: it has our hello. */
  heard = false
  /** When bytes of the peer came last, on the link's own clock. */
  heardMs = Number.NEGATIVE_INFINITY
  /** Why the last attempt to connect came to nothing, where this side dials. */
  trouble = ''
  readonly #logger: LinkLogger
  readonly #clock: Clock
  readonly #served = new Served<LinkSink>()
  readonly #recordsMax: number | undefined
  readonly #wires = new Wires()
  readonly #work: EndOfTurn
  readonly #out: Uint8Array[] = []
  #resolveEnded: (error: ProxyError | undefined) => void = () => {}
  #error: ProxyError | undefined
  #over = false
  /** Since when there is no flow. */
  #idleSinceMs: number | undefined

  constructor(options: LinkOptions) {
    this.role = options.role
    this.id = options.id
    this.identity = options.identity
    this.#logger = options.logger
    this.#clock = options.clock
    this.#recordsMax = options.recordsMax
    this.#work = new EndOfTurn(options.clock, isDue => this.#guard(() => this.#flush(isDue)))
    this.ended = new Promise(resolve => {
      this.#resolveEnded = resolve
    })
    this.session = new Session({
      ...options.session,
      role: options.role,
      transport: this,
    })
  }

  /**
   * Who gets what arrives, from now on; once. What may come before anybody serves (what the peer says of the session, and
   * its end) is told now. A server's session is served before its first connection, a client's before its first flow.
   */
  serve(sink: LinkSink): void {
    this.session.serve(sink)
    this.#served.begin(sink)
    this.wake()
  }

  /** Connections that stand now. */
  get connections(): number {
    return this.#wires.count
  }

  /** For how long there has been no flow; 0 while there is one. */
  idleMs(nowMs: number): number {
    return this.session.flowCount > 0 || this.#idleSinceMs === undefined ? 0 : nowMs - this.#idleSinceMs
  }

  /** True once the session is over: nothing is dialled or attached any more. */
  get over(): boolean {
    return this.#over || this.session.state === 'closed'
  }

  /**
   * Takes a connection whose hellos are exchanged; the link owns the socket from now on.
   * @param hello what the peer's hello says of the session
   * @param rest bytes that came behind the peer's hello
   * @param gone called once when the connection is no more, with `heard`: whether anything came after the hello
   * @param worn called once when its keys are nearly used up: another one with the same number is to take its place
   */
  attach(
    socket: net.Socket,
    connection: number,
    hello: { readonly received: number; readonly credit: number },
    rest: Uint8Array,
    peer: string,
    gone: (heard: boolean, error: Error | undefined) => void = () => {},
    worn?: () => void,
  ): void {
    const before = this.#wires.get(connection)
    if (before) {
      // The session detaches it by itself when the new one is attached.
      before.attached = false
      this.#wires.remove(before)
      before.socket.destroy()
      before.gone(before, undefined)
    }
    const wire: Wire = {
      connection,
      socket,
      peer,
      attached: true,
      ending: false,
      heard: false,
      gone: (w, error) => gone(w.heard, error),
      keys: 'encrypted' in socket ? new KeyUse(this.#recordsMax) : undefined,
      worn,
      leaving: false,
    }
    const isBack = this.#wires.add(wire)
    let now = this.#clock.now()
    const decoder = new FrameDecoder(frame => {
      if (!wire.attached) return // what is left of a chunk after the connection was given up
      wire.heard = true
      this.heard = true
      keepView(frame)
      this.session.receive(connection, frame, now)
    })
    let failure: Error | undefined
    const intake = new Intake((chunk, from, end) => {
      if (!wire.attached) return end
      now = this.#clock.now()
      this.heardMs = now
      wire.keys?.received()
      this.#checkKeys(wire)
      try {
        return decoder.take(chunk, from, end)
      } catch (error) {
        failure = error as Error
        // what is no frame ends the connection; what a session cannot take it ends by itself
        if (error instanceof ProxyError && error.where?.stream === 'connection') this.#down(wire, error)
        else this.#defect(error)
        return end
      }
    }, CHUNKS)
    socket.on('error', error => {
      failure ??= error
    })
    socket.on('close', () => {
      this.#wires.closed(wire)
      this.#guard(() => this.#down(wire, failure ?? (wire.ending ? undefined : new Error('closed by the peer'))))
      this.wake()
    })
    // that there is a session is told above, with the connections that it begins with
    this.#logger[isBack ? 'info' : 'debug']('link.up', { ...this.#named, connection, peer })
    this.#served.maybe?.onConnection(connection, true, this.#wires.count)
    this.session.attach(connection, hello.received, now, hello.credit)
    intake.push(rest)
    intake.push((socket.read() as Uint8Array | null) ?? EMPTY)
    if (!readInto(socket, intake)) socket.on('data', (chunk: Uint8Array) => intake.push(chunk))
    socket.resume()
    this.wake()
  }

  /** Opens and takes no new flows from now on; running ones go on. */
  drain(): void {
    this.session.drain()
  }

  /**
   * Ends in order: delivers all that was handed in, then BYE. Settles with `ended`.
   * @param why told to the peer
   */
  close(why?: string): Promise<ProxyError | undefined> {
    this.session.close(this.#clock.now(), why)
    this.wake()
    return this.ended
  }

  /** Ends at once: every flow is gone on both sides. A defect of ours is told with its stack. */
  abort(error: ProxyError): Promise<ProxyError | undefined> {
    if (error.code === 'INTERNAL') {
      const { stack } = (error.cause ?? error) as Error
      this.#logger.error('link.defect', { ...this.#named, stack })
    }
    this.session.abort(error, this.#clock.now())
    this.wake()
    return this.ended
  }

  /** Milliseconds on the link's own clock, for calls of `session` that want the time. */
  now(): number {
    return this.#clock.now()
  }

  // --- TransportSink

  onBye(code: number, text: string): void {
    this.#logger.info('link.bye', { ...this.#named, code, text })
    this.#served.tell(sink => sink.onBye(code, text))
    this.wake()
  }

  onDead(ended: ProxyError): void {
    const error = this.#withTrouble(ended)
    this.#error ??= error
    this.#logger.warn('link.dead', { ...this.#named, code: error.code, reason: error.what })
    this.#served.tell(sink => sink.onDead(error))
    this.wake()
  }

  onLost(connection: number, error: ProxyError): void {
    const wire = this.#wires.get(connection)
    if (!wire) return
    wire.attached = false // the session knows
    this.#remove(wire, error)
  }

  onWork(): void {
    this.wake()
  }

  // --- its own

  /** A patience that ran out says why nothing came of it: a name in a certificate is mended elsewhere than a route. */
  #withTrouble(error: ProxyError): ProxyError {
    if (error.code !== 'PEER_LOST' || this.trouble === '') return error
    const what = `${error.what}; the last attempt: ${this.trouble}`
    return new ProxyError(error.code, what, error.where, error.action, { cause: error })
  }

  /**
   * A defect of ours that this session's bytes found: it ends, the others go on. Where not even that is possible the
   * process ends: its QEMUs' connections would stay as they are.
   */
  #defect(error: unknown): void {
    if (this.#over) throw error
    void this.abort(defectOf(error))
  }

  #guard(run: () => void): void {
    try {
      run()
    } catch (error) {
      this.#defect(error)
    }
  }

  /** What every event of a link has. */
  get #named(): { readonly link: string; readonly identity: string } {
    return { link: this.id.slice(0, 8), identity: this.identity }
  }

  /** A socket closed or brought what is no frame. */
  #down(wire: Wire, error: Error | undefined): void {
    if (wire.attached) {
      wire.attached = false
      this.session.detach(wire.connection, this.#clock.now())
      this.#remove(wire, error)
    }
    wire.socket.destroy()
  }

  /** A worn connection is replaced; one that could not be in time is closed. */
  #checkKeys(wire: Wire): void {
    if (!wire.keys?.isWorn) return
    wire.worn?.()
    wire.worn = undefined
    if (!wire.keys.isSpent) return
    const what = 'its TLS keys have encrypted as many records as they may'
    this.#down(wire, new ProxyError('PEER_LOST', what, undefined, 'another connection takes its place'))
  }

  #remove(wire: Wire, error: Error | undefined): void {
    this.#wires.remove(wire)
    wire.socket.destroy()
    const reason = error instanceof ProxyError ? error.what : error?.message
    // The other side closes a worn connection as soon as it has the fresh one: often before we have it.
    const isMishap = error !== undefined && !this.over && wire.keys?.isWorn !== true
    this.#logger[isMishap ? 'warn' : 'debug']('link.down', {
      ...this.#named,
      connection: wire.connection,
      peer: wire.peer,
      reason,
    })
    this.#served.maybe?.onConnection(wire.connection, false, this.#wires.count, isMishap ? error : undefined)
    wire.gone(wire, error)
    this.wake()
  }

  /** Does the session's work and the sink's (`onWork`) at the end of this turn: once, however often it is asked for. */
  wake(): void {
    this.#work.ask()
  }

  #flush(isDue: boolean): void {
    if (isDue) this.session.tick(this.#clock.now())
    if (this.session.state !== 'closed') this.#served.maybe?.onWork()
    const now = this.#clock.now()
    // every socket is filled to its bound
    this.#wires.serve(wire => this.#write(wire, now))
    this.#work.askAt(this.session.nextTickMs)
    if (this.session.flowCount > 0) this.#idleSinceMs = undefined
    else this.#idleSinceMs ??= now
    if (this.session.state === 'closed' && this.#wires.isClosed && !this.#over) {
      this.#over = true
      this.#work.stop()
      this.#resolveEnded(this.#error)
    }
  }

  /** @returns true where something was pulled: there may be more */
  #write(wire: Wire, now: number): boolean {
    const socket = wire.socket
    if (this.session.state === 'closed') this.#leave(wire)
    if (wire.ending || socket.destroyed || socket.writableLength >= WRITE_BUFFER_BYTES_MAX) return false
    const out = this.#out
    const bytes = this.session.pull(wire.connection, PULL_BYTES, now, out)
    if (bytes > 0) {
      if (bytes <= JOIN_BYTES_MAX && out.length > 1) out.splice(0, out.length, Buffer.concat(out, bytes))
      const last = out.length - 1
      // One writev: a TLS record, or a segment, for many small views. What lies in one piece is not copied to be encrypted.
      if (last > 0) socket.cork()
      for (let i = 0; i < last; i++) socket.write(out[i]!)
      socket.write(out[last]!, () => this.wake())
      if (last > 0) socket.uncork()
      out.length = 0
      wire.keys?.sent(bytes)
      this.#checkKeys(wire)
    }
    if (this.session.isDone(wire.connection) || (bytes === 0 && this.session.state === 'closed')) {
      wire.ending = true
      socket.end()
      return false
    }
    return bytes > 0
  }

  /** The peer still reads what is under way, and our BYE behind it; it closes then. One that does not is not waited for. */
  #leave(wire: Wire): void {
    if (wire.leaving) return
    wire.leaving = true
    const cancel = this.#clock.after(LINGER_MS, () => wire.socket.destroy())
    wire.socket.once('close', cancel)
  }
}

/**
 * What becomes of a frame's payload, said before the session has it: a batch's parts are given back by who expands it, ACK and
 * CREDIT are read at once, PADs never, and of all others nobody asks.
 */
function keepView({ type, payload }: Frame): void {
  if (type === FRAME.BATCH) CHUNKS.lend(payload)
  else if (type !== FRAME.ACK && type !== FRAME.CREDIT && type !== FRAME.PAD) CHUNKS.pin(payload)
}
