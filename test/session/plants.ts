/** What the simulation must catch: sessions each of which gets one thing wrong. */
import type { Random } from '../../scripts/harness/random.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { AnswerRoom } from '../../src/session/answer-room.ts'
import type { FlowSink } from '../../src/session/api.ts'
import type { Flow } from '../../src/session/flow.ts'
import { Inbox } from '../../src/session/inbox.ts'
import { Outbox } from '../../src/session/outbox.ts'
import type { SessionParts } from '../../src/session/parts.ts'
import { Path } from '../../src/session/path.ts'
import { ReceiveWindow } from '../../src/session/receive-window.ts'
import type { Session } from '../../src/session/session.ts'
import { FRAME } from '../../src/wan/wire.ts'

/** A mistake: in a part of one session, or around its calls. */
export interface Plant {
  readonly parts?: Partial<SessionParts>
  readonly wrap?: (session: Session) => void
}

/** Makes the mistake for one fresh session. */
export type Planter = (random: Random, sink: FlowSink) => Plant

export const PLANTS: Record<string, Planter> = {
  'resumes one frame too far': () => ({
    wrap: session => {
      const attach = session.attach.bind(session)
      let first = true
      session.attach = (connection, peerReceived, nowMs, peerCredit) => {
        attach(connection, first || peerReceived === 0 ? peerReceived : peerReceived + 1, nowMs, peerCredit)
        first = false
      }
    },
  }),
  'forgets what a lost connection carried': () => ({
    parts: {
      Outbox: class extends Outbox {
        override lost(): void {}
      },
    },
  }),
  'gives memory back that a lost connection carried': () => ({
    parts: {
      Outbox: class extends Outbox {
        private readonly kept = new Set<() => void>()
        override enqueue(...entry: Parameters<Outbox['enqueue']>): number {
          const [type, flow, parts, release] = entry
          if (release) this.kept.add(release)
          return super.enqueue(type, flow, parts, release && (() => this.kept.delete(release) && release()))
        }
        override lost(path: Path): void {
          super.lost(path)
          for (const release of this.kept) release()
          this.kept.clear()
        }
      },
    },
  }),
  'loses a frame now and then': random => ({
    wrap: session => {
      const receive = session.receive.bind(session)
      session.receive = (connection, frame, nowMs) => {
        if (frame.sequence > 0 && random.chance(0.01)) return
        receive(connection, frame, nowMs)
      }
    },
  }),
  'delivers frames that arrive twice': () => ({
    parts: {
      Inbox: class extends Inbox {
        override take(...frame: Parameters<Inbox['take']>): ReturnType<Inbox['take']> {
          const [type, flags, flow, sequence, payload] = frame
          const twice = sequence <= this.received
          const refused = super.take(...frame)
          if (twice) this.deliver(type, flags, flow, payload)
          return refused
        }
      },
    },
  }),
  'delivers frames in the order in which they arrive': () => ({
    parts: {
      Inbox: class extends Inbox {
        override take(...frame: Parameters<Inbox['take']>): ReturnType<Inbox['take']> {
          const sequence = frame[3]
          if (sequence > this.received) this.received = sequence - 1
          return super.take(...frame)
        }
      },
    },
  }),
  'tells of room only where there was none at all': () => ({
    parts: {
      AnswerRoom: class extends AnswerRoom {
        override room(flow: Flow, wanted: number, laneBytes: number): number {
          const room = super.room(flow, wanted, laneBytes)
          if (room > 0) this.forget(flow)
          return room
        }
      },
    },
  }),
  'tells of room only what left the lanes, not what was acknowledged': () => ({
    parts: {
      AnswerRoom: class extends AnswerRoom {
        override acknowledged(): void {}
      },
    },
  }),
  'gives no credit': () => ({
    parts: {
      ReceiveWindow: class extends ReceiveWindow {
        override consume(): void {}
      },
    },
  }),
  'acknowledges what is only held': () => ({
    parts: {
      Inbox: class extends Inbox {
        override get acknowledged(): number {
          return this.heldBytes > 0 ? this.received + 1 : this.received
        }
      },
    },
  }),
  'one held flow holds all': () => {
    const waits = new Map<ReceiveWindow, number>()
    const waiting: (() => void)[] = []
    const Counting = class extends ReceiveWindow {
      override arrive(bytes: number): number {
        waits.set(this, (waits.get(this) ?? 0) + bytes)
        return super.arrive(bytes)
      }

      override consume(bytes: number, rttMs: number, nowMs: number): void {
        waits.set(this, waits.get(this)! - bytes)
        super.consume(bytes, rttMs, nowMs)
      }

      override close(): void {
        waits.delete(this)
        super.close()
      }
    }
    return {
      parts: { ReceiveWindow: Counting },
      wrap: session => {
        const receive = session.receive.bind(session)
        session.receive = (connection, frame, nowMs) => {
          const run = (): void => receive(connection, { ...frame }, nowMs)
          const stuck = [...waits.values()].some(bytes => bytes > FRAME_PAYLOAD_BYTES_MAX * 32)
          if (frame.sequence > 0 && (stuck || waiting.length > 0)) waiting.push(run)
          else run()
          if (!stuck) for (const one of waiting.splice(0)) one()
        }
      },
    }
  },
  'says BYE before all is delivered': () => ({
    parts: {
      Outbox: class extends Outbox {
        override get isFlushed(): boolean {
          const { acked } = this
          this.acked = this.lastSequence
          const flushed = super.isFlushed
          this.acked = acked
          return flushed
        }
      },
    },
  }),
  'lets FIN overtake batches': () => ({
    parts: {
      Outbox: class extends Outbox {
        override enqueue(type: number, flow: Flow, parts: readonly Uint8Array[]): number {
          const { bulkEntries } = flow
          if (type === FRAME.FIN) flow.bulkEntries = 0
          const bytes = super.enqueue(type, flow, parts)
          if (type === FRAME.FIN) flow.bulkEntries = bulkEntries
          return bytes
        }
      },
    },
  }),
  'leaves data out before a batch when a flow is reset': () => ({
    parts: {
      Outbox: class extends Outbox {
        override enqueue(type: number, flow: Flow, parts: readonly Uint8Array[]): number {
          const bytes = super.enqueue(type, flow, parts)
          if (type === FRAME.RESET) flow.queuedBatches = 0
          return bytes
        }
      },
    },
  }),
  'tells its QEMU of a flow that it refuses': (_random, sink) => ({
    parts: {
      Outbox: class extends Outbox {
        override enqueue(type: number, flow: Flow, parts: readonly Uint8Array[]): number {
          if (type === FRAME.RESET && flow.untold) sink.onOpen(flow.number, flow.info)
          return super.enqueue(type, flow, parts)
        }
      },
    },
  }),
  'forgets the heartbeat': () => ({
    parts: {
      Path: class extends Path {
        override get deadMs(): number {
          return Number.POSITIVE_INFINITY
        }

        override get stuckMs(): number {
          return Number.POSITIVE_INFINITY
        }
      },
    },
  }),
}
