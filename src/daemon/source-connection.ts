/**
 * One connection of the source QEMU, which may outlive a session: what came of it is kept until the other proxy has
 * taken its flow, so that it can begin again on another session, and QEMU sees nothing but a pause.
 */
import { copyRange } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
import { AHEAD_BYTES, KEPT_BYTES_MAX } from '../limits.ts'
import type { OwedWrites } from '../migration/summary.ts'
import type { QemuSocket, SocketClosed, SocketSink, WriteDone } from '../relay/qemu-socket.ts'

/** Takes what a connection delivers, and what else it says. */
export interface ConnectionSink extends SocketSink {
  /** QEMU has closed it, behind bytes for which the sink has no room yet. */
  onEndBehind(): void
}

/** What a flow has of its connection. */
export interface FlowConnection {
  readonly peer: string
  /** The host of `peer`. */
  readonly peerHost: string
  readonly isClosed: boolean
  /** The connection by itself, which may go on in another session. */
  readonly kept: SourceConnection
  /** Where a disk's writes are answered here. */
  readonly owed?: OwedWrites
  /** Gives it to a flow: first all that came before. */
  start(sink: ConnectionSink): void
  /** Takes it from its flow, which the other proxy never heard of, for another one. */
  detach(): void
  /** The other proxy has taken the flow: nothing is kept any more. */
  settle(): void
  resume(): void
  write(view: Uint8Array, done: WriteDone): void
  finish(): void
  reset(): void
}

/** Looks to a flow like the socket, and to the socket like the flow. */
export class SourceConnection implements SocketSink, FlowConnection {
  /** When it came, for the patience. */
  readonly bornMs: number
  private readonly socket: QemuSocket
  /** The flow that has it now; undefined between two sessions. */
  private sink: ConnectionSink | undefined
  private started = false
  /** Where bytes land until the flow is taken: memory of no session, because the socket may still write to it then. */
  private own: Uint8Array | undefined
  /** Bytes in it, and how many of them the present flow was given. */
  private keptBytes = 0
  private poured = 0
  private pouring = false
  /** The last slot that the socket was given lies in `own`. */
  private lentOwn = false
  private taken = false
  private ended = false
  private endTold = false
  private closed: SocketClosed | undefined

  constructor(socket: QemuSocket, nowMs: number) {
    this.socket = socket
    this.bornMs = nowMs
  }

  // --- for flows and the daemon

  get peer(): string {
    return this.socket.peer
  }

  get peerHost(): string {
    return this.peer.slice(0, Math.max(0, this.peer.lastIndexOf(':')))
  }

  get isClosed(): boolean {
    return this.closed !== undefined || this.socket.isClosed
  }

  get kept(): this {
    return this
  }

  start(sink: ConnectionSink): void {
    assert(!this.sink, 'a connection has one flow')
    this.sink = sink
    if (!this.started) {
      this.started = true
      this.socket.start(this)
      return
    }
    const { closed } = this
    // that QEMU has closed it before others came is told now, what came of it when all have come that go on together
    if (this.ended && !closed) sink.onEndBehind()
    process.nextTick(() => {
      if (this.sink !== sink) return
      if (closed) sink.onClosed(closed)
      else {
        this.resume()
        this.tellEndBehind()
      }
    })
  }

  detach(): void {
    assert(!this.taken, 'a flow that was taken stays where it is')
    this.sink = undefined
    this.poured = 0
    this.endTold = false
  }

  settle(): void {
    if (this.taken) return
    this.taken = true
    this.resume()
  }

  resume(): void {
    this.pour()
    this.socket.resume()
  }

  write(view: Uint8Array, done: WriteDone): void {
    this.socket.write(view, done)
  }

  finish(): void {
    this.socket.finish()
  }

  reset(): void {
    this.socket.reset()
  }

  // --- SocketSink

  nextSlot(): Uint8Array | undefined {
    if (this.taken && this.poured === this.keptBytes) {
      this.lentOwn = false
      this.own = undefined
      this.keptBytes = 0
      this.poured = 0
      return this.sink?.nextSlot()
    }
    // what the flow has no room for stays with QEMU, but for so much that an end behind it is seen
    const waits = this.keptBytes - this.poured
    const room = waits > 0 ? 0 : (this.sink?.nextSlot()?.length ?? 0)
    const ahead = this.taken ? 0 : AHEAD_BYTES - waits
    const take = Math.min(Math.max(room, ahead), KEPT_BYTES_MAX - this.keptBytes)
    if (take <= 0) return undefined
    this.lentOwn = true
    const own = this.roomFor(this.keptBytes + take)
    return own.subarray(this.keptBytes, this.keptBytes + take)
  }

  onBytes(count: number): void {
    if (!this.lentOwn) {
      this.sink?.onBytes(count)
      return
    }
    this.keptBytes += count
    this.pour()
  }

  onEnd(): void {
    this.ended = true
    this.pour()
    this.tellEndBehind()
  }

  onClosed(closed: SocketClosed): void {
    this.closed = closed
    this.sink?.onClosed(closed)
  }

  /** Memory for so many bytes that are kept, with what is there. */
  private roomFor(bytes: number): Uint8Array {
    const { own } = this
    if (own && own.length >= bytes) return own
    const room = new Uint8Array(Math.min(KEPT_BYTES_MAX, Math.max(bytes, 2 * (own?.length ?? 0))))
    if (own) room.set(own.subarray(0, this.keptBytes))
    this.own = room
    return room
  }

  private tellEndBehind(): void {
    if (this.ended && !this.endTold) this.sink?.onEndBehind()
  }

  /** Gives the flow what it has not had yet, as far as it has room. */
  private pour(): void {
    if (this.pouring) return
    this.pouring = true
    while (this.sink && this.poured < this.keptBytes) {
      const slot = this.sink.nextSlot()
      if (!slot) break
      const count = Math.min(slot.length, this.keptBytes - this.poured)
      copyRange(this.own!, this.poured, this.poured + count, slot, 0)
      this.poured += count
      this.sink.onBytes(count)
    }
    this.pouring = false
    if (!this.sink || !this.ended || this.endTold || this.poured < this.keptBytes) return
    this.endTold = true
    this.sink.onEnd()
  }
}
