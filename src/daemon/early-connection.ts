/**
 * A connection of a disk's client whose writes are answered here (docs/adr/0020-early-answers.md): between the connection and
 * its flow, and to each what the other one is. What is answered when, its engine says (src/nbd/early-answers.ts).
 */
import type { ProxyError } from '../errors.ts'
import type { Share } from '../fair-shares.ts'
import { JOURNAL_FREE_BYTES } from '../limits.ts'
import type { OwedWrites } from '../migration/summary.ts'
import { EarlyAnswers, type EarlySink } from '../nbd/early-answers.ts'
import { guardedSink } from '../relay/guarded-sink.ts'
import type { SocketClosed, SocketSink, WriteDone } from '../relay/qemu-socket.ts'
import { WrittenPieces } from '../relay/written-pieces.ts'
import type { ConnectionSink, FlowConnection, SourceConnection } from './source-connection.ts'

export interface EarlyConnectionHost {
  /** Of the memory that is shared; closed with the connection. */
  readonly memory: Share
  readonly now: () => number
  /** One of ours: the session ends. */
  defect(error: unknown): void
  /** A write that was answered early has failed: every request is answered with its error. */
  refuses(error: ProxyError): void
  /** It has to be reset, and its flow with it. */
  breaks(error: ProxyError): void
}

export class EarlyConnection implements FlowConnection, SocketSink, EarlySink {
  readonly kept: SourceConnection
  private readonly host: EarlyConnectionHost
  private readonly engine: EarlyAnswers
  private flow: ConnectionSink | undefined
  /** Where the client's bytes land. */
  private intake: Uint8Array | undefined
  private clientEnded = false
  private endTold = false
  private pumping = false
  private over = false
  /** Writes of what the server said, of the call that is under way. */
  private relaying: WrittenPieces | undefined

  constructor(connection: SourceConnection, host: EarlyConnectionHost) {
    this.kept = connection
    this.host = host
    this.engine = new EarlyAnswers(host.memory, this)
  }

  // --- for its flow

  get peer(): string {
    return this.kept.peer
  }

  get peerHost(): string {
    return this.kept.peerHost
  }

  get isClosed(): boolean {
    return this.kept.isClosed
  }

  get owed(): OwedWrites {
    return this.engine.journalled
  }

  start(flow: ConnectionSink): void {
    this.flow = flow
    const sink = guardedSink(this, error => this.host.defect(error))
    this.kept.start({ ...sink, onEndBehind: () => this.flow?.onEndBehind() })
  }

  detach(): void {
    this.kept.detach()
    this.flow = undefined
    this.close()
  }

  settle(): void {
    this.kept.settle()
  }

  /** The flow may have room: what lies in the journal goes first. */
  resume(): void {
    this.pump()
    this.kept.resume()
  }

  /** What the server said. */
  write(view: Uint8Array, done: WriteDone): void {
    const relayed = new WrittenPieces(done)
    this.relaying = relayed
    this.engine.fromServer(view)
    this.relaying = undefined
    relayed.all()
    this.resume()
  }

  /** The server has closed. */
  finish(): void {
    if (this.engine.serverEnds()) this.kept.finish()
  }

  reset(): void {
    this.kept.reset()
    this.close()
  }

  // --- what the engine orders

  answers(bytes: Uint8Array): void {
    this.kept.write(bytes, () => {
      try {
        this.engine.read(bytes.length)
        this.resume()
      } catch (error) {
        this.host.defect(error)
      }
    })
  }

  relays(bytes: Uint8Array): void {
    // what was held back of an earlier call is written in another one, which the flow need not hear of
    this.kept.write(bytes, this.relaying?.piece() ?? (() => {}))
  }

  refuses(error: ProxyError): void {
    this.host.refuses(error)
  }

  breaks(error: ProxyError): void {
    this.host.breaks(error)
  }

  // --- SocketSink

  nextSlot(): Uint8Array | undefined {
    const room = this.engine.room(this.host.now())
    if (room === 0) return undefined
    this.intake ??= new Uint8Array(JOURNAL_FREE_BYTES)
    return this.intake.subarray(0, room)
  }

  onBytes(count: number): void {
    this.engine.fromClient(this.intake!.subarray(0, count), this.host.now())
    this.pump()
  }

  onEnd(): void {
    this.clientEnded = true
    this.engine.clientEnds()
    this.pump()
  }

  onClosed(closed: SocketClosed): void {
    this.close()
    this.flow?.onClosed(closed)
  }

  /** Gives the flow what may go, as far as it has room; and the client's end behind all of it. */
  private pump(): void {
    if (this.pumping || this.over) return
    this.pumping = true
    for (let slot = this.flow?.nextSlot(); slot && !this.over; slot = this.flow?.nextSlot()) {
      const count = this.engine.pull(slot)
      if (count === 0) break
      this.flow!.onBytes(count)
    }
    this.pumping = false
    if (this.over || !this.flow || !this.clientEnded || this.endTold || !this.engine.isDrained) return
    this.endTold = true
    this.flow.onEnd()
  }

  /** Nothing more is answered or sent; its flow still hears how the connection ends. */
  private close(): void {
    this.over = true
    this.engine.close()
    this.host.memory.close()
  }
}
