/** What the simulation must catch: sites that get one thing wrong, each in a class of its own. */
import type { DestinationFlow } from '../../src/daemon/destination-flow.ts'
import type { DestinationSessionOptions } from '../../src/daemon/destination-parts.ts'
import { DestinationSession } from '../../src/daemon/destination-session.ts'
import { SourceConnection } from '../../src/daemon/source-connection.ts'
import type { Migration, Moved, SourceFlow } from '../../src/daemon/source-flow.ts'
import type { SourceSessionOptions } from '../../src/daemon/source-parts.ts'
import { SourceSession } from '../../src/daemon/source-session.ts'
import { Departures } from '../../src/migration/departures.ts'
import {
  DESTINATION_TABLE,
  type DestinationInput,
  type DestinationState,
  type DestinationStep,
  type DestinationTable,
} from '../../src/migration/destination-life.ts'
import { DialQueue } from '../../src/migration/dial-queue.ts'
import { Gate, isOpen } from '../../src/migration/gate.ts'
import { Gates } from '../../src/migration/gates.ts'
import type { MigrationDeparture } from '../../src/migration/migration-departure.ts'
import { Reception } from '../../src/migration/reception.ts'
import {
  SOURCE_TABLE,
  type SourceInput,
  type SourceState,
  type SourceStep,
  type SourceTable,
} from '../../src/migration/source-life.ts'
import { Inbox } from '../../src/session/inbox.ts'
import { Outbox } from '../../src/session/outbox.ts'
import { ReceiveWindow } from '../../src/session/receive-window.ts'
import type { InboundChannel } from '../../src/transfer/inbound.ts'
import { CODE, FRAME, KIND_DISK } from '../../src/wan/wire.ts'
import { type Packing, SlowPacker, SlowUnpacker } from './codec.ts'
import type { SiteParts } from './sites.ts'

/** The table of channels at the destination with one pair changed. */
function destination(state: DestinationState, input: DestinationInput, step: DestinationStep): DestinationTable {
  return { ...DESTINATION_TABLE, [state]: { ...DESTINATION_TABLE[state], [input]: step } }
}

/** The same of channels at the source. */
function source(state: SourceState, input: SourceInput, step: SourceStep): SourceTable {
  return { ...SOURCE_TABLE, [state]: { ...SOURCE_TABLE[state], [input]: step } }
}

const SourceGates = Gates<SourceFlow, MigrationDeparture<SourceFlow>, Migration>

export const PLANTS: Record<string, Partial<SiteParts>> = {
  'channels do not wait for their main': {
    Gates: class extends SourceGates {
      override known(channel: SourceFlow, nowMs: number): void {
        const { kind, gate } = channel
        if (kind === 'multifd' && !isOpen(gate.migration)) channel.kind = 'main'
        super.known(channel, nowMs)
      }
    },
  },
  'an unknown protocol is dialled': {
    Gates: class extends SourceGates {
      override known(channel: SourceFlow, nowMs: number): void {
        if (channel.kind === 'unknown') channel.kind = isOpen(channel.gate.migration) ? 'multifd' : 'main'
        super.known(channel, nowMs)
      }
    },
  },
  'postcopy is not heard of: silent channels are never dialled': {
    Gates: class extends SourceGates {
      override advised(): void {}
    },
  },
  'what QEMU closed waits for whoever comes next': {
    Gates: class extends SourceGates {
      override closed(): void {}
    },
  },
  'who is gone stays at its gate': {
    Gates: class extends SourceGates {
      override left(): void {}
    },
  },
  'a migration that has ended stays at its gate': {
    Gates: class extends SourceGates {
      override ended(migration: MigrationDeparture<SourceFlow>): void {
        const { gate } = migration
        super.ended(migration)
        gate.migration = migration
      }
    },
  },
  'a migration that the other side refused is broken, not moved': {
    SourceSession: class extends SourceSession {
      override onRefused(number: number, text: string): void {
        this.onReset(number, CODE.SHUTDOWN, text)
      }
    },
  },
  'what came before a connection moved is forgotten': {
    SourceConnection: class extends SourceConnection {
      private moved = false

      override detach(): void {
        super.detach()
        this.moved = true
      }

      override start(sink: Parameters<SourceConnection['start']>[0]): void {
        const { moved } = this
        super.start({ ...sink, onBytes: count => void (moved || sink.onBytes(count)) })
      }
    },
  },
  'what the other side has taken goes on in another session': {
    Departures: class extends Departures<SourceFlow> {
      override part(): ReturnType<Departures<SourceFlow>['part']> {
        return { lost: [], goOn: [...this.connections] }
      }
    },
  },
  'what the other side never heard of ends with its session': {
    Departures: class extends Departures<SourceFlow> {
      override part(): ReturnType<Departures<SourceFlow>['part']> {
        return { lost: [...this.connections], goOn: [] }
      }
    },
  },
  'nobody waits for ever: a broken WAN is given up at once': {
    Departures: class extends Departures<SourceFlow> {
      override wan(up: boolean, nowMs: number): void {
        super.wan(up, up ? nowMs : nowMs - 3_600_000)
      }
    },
  },
  'what is not acknowledged at once is given up': {
    Departures: class extends Departures<SourceFlow> {
      override stalled(sinceMs: number, nowMs: number): string | undefined {
        return super.stalled(sinceMs - 3_600_000, nowMs)
      }
    },
  },
  'FIN overtakes what waits': { sourceTable: source('ending', 'packed', ['finished', 'fin']) },
  'the end of a source QEMU is kept for itself': { sourceTable: source('ending', 'emptied', ['finished']) },
  'a source QEMU that broke off is not told': { sourceTable: source('breaking', 'emptied', ['broken']) },
  'the source QEMU does not hear that its flow was torn down': {
    sourceTable: source('open', 'reset', ['breaking', 'drop']),
  },
  'what a session loses is left alone': { sourceTable: source('open', 'lost', ['over', 'leave', 'free']) },
  'a connection that broke stays at its gate': { sourceTable: source('unopened', 'broke', ['over', 'leave', 'free']) },
  'a place at the source is never given back': { sourceTable: source('over', 'closed', ['over']) },
  'a channel without a flow breaks where it could go on': {
    sourceTable: source('unopened', 'outlives', ['over', 'ungate', 'break', 'leave', 'free']),
  },
  'what a session gave back is forgotten': {
    Reception: class extends Reception<Moved> {
      override back(): readonly Moved[] {
        super.back([], true)
        return []
      }
    },
  },
  'a session that is drained gets what it gave back': {
    Reception: class extends Reception<Moved> {
      override drain(): void {}

      override back(connections: readonly Moved[]): readonly Moved[] {
        const left = super.back(connections, true)
        this.opens()
        return left
      }
    },
  },
  'a drained session is kept': {
    Reception: class extends Reception<Moved> {
      override get isDone(): boolean {
        return false
      }
    },
  },
  'the end of a return path is not handed on': {
    SourceSession: class extends SourceSession {
      override onFin(): void {}
    },
  },
  'a flow that the peer tore down is not torn down here': {
    SourceSession: class extends SourceSession {
      override onReset(): void {}
    },
  },
  'the same at the destination': {
    DestinationSession: class extends DestinationSession {
      override onReset(): void {}
    },
  },
  'QEMUs at the destination outlive their session': {
    DestinationSession: class extends DestinationSession {
      override end(): void {}
    },
  },
  'what QEMU took is not counted out': {
    DestinationSession: class extends DestinationSession {
      override letGo(): void {}
    },
  },
  'targets are not dialled in turn': {
    DialQueue: class extends DialQueue<DestinationFlow> {
      private opened = 0

      override add(flow: DestinationFlow, address: string): void {
        super.add(flow, `${address} ${this.opened++}`)
      }
    },
  },
  'FIN that came before its connection is forgotten': {
    destinationTable: destination('said', 'connected', ['open', 'start']),
  },
  'the end of a QEMU is kept for itself': { destinationTable: destination('ending', 'sent', ['finished']) },
  'END cuts off what a QEMU is owed': {
    destinationTable: destination('finished', 'ended', ['over', 'break', 'leave']),
  },
  'completed is told while a QEMU has the last of it coming': {
    destinationTable: {
      ...destination('finished', 'ended', ['owed', 'owe', 'leave']),
      owed: {
        ...DESTINATION_TABLE.owed,
        ...{ closed: ['over', 'settle'], broke: ['over', 'settle'] },
        ...{ lost: ['over', 'break', 'settle'], overdue: ['over', 'break', 'settle'] },
      },
    },
  },
  'a broken QEMU passes for one that has ended': { destinationTable: destination('open', 'broke', ['leaving']) },
  'a source that broke off is not told to its QEMU': {
    destinationTable: destination('open', 'reset', ['broken', 'reset']),
  },
  'a flow that is gone stays in the queue of dials': {
    DialQueue: class extends DialQueue<DestinationFlow> {
      override gone(): void {}
    },
  },
  'batches go out as they are packed': {
    Packer: class extends SlowPacker {
      protected override out(): Packing {
        return this.jobs.splice(this.jobs.length - 1, 1)[0]!
      }
    },
  },
  'bytes are packed from memory that was given back': {
    Packer: class extends SlowPacker {
      protected override copy(at: number, length: number): Uint8Array {
        return this.pool.kernel.bytes.subarray(at, at + length)
      }
    },
  },
  'memory of a batch is given back before QEMU has it': {
    Unpacker: class extends SlowUnpacker {
      protected override give(channel: InboundChannel, bytes: Uint8Array, release: () => void): void {
        channel.expanded(bytes, () => {})
        release()
      }
    },
  },
  'memory of a batch is never given back': {
    Unpacker: class extends SlowUnpacker {
      protected override give(channel: InboundChannel, bytes: Uint8Array): void {
        channel.expanded(bytes, () => {})
      }
    },
  },
  'what a lost connection carried is forgotten': {
    sourceLink: {
      Outbox: class extends Outbox {
        override lost(): void {}
      },
    },
  },
  'no credit for answers': {
    sourceLink: {
      ReceiveWindow: class extends ReceiveWindow {
        override consume(): void {}
      },
    },
  },
  'no credit for batches': {
    destinationLink: {
      ReceiveWindow: class extends ReceiveWindow {
        override consume(): void {}
      },
    },
  },
  'it wakes itself in every turn': {
    SourceSession: class extends SourceSession {
      override onWork(): void {
        super.onWork()
        this.wake()
      }
    },
  },
}

/** SourceReplies, from within. */
interface RepliesInside {
  readonly entries: Map<number, { readonly pending: number }>
  readonly inbound: SlowUnpacker
  behind(number: number, then: () => void): void
}

/** The same beside disks. */
export const DISK_PLANTS: Record<string, Partial<SiteParts>> = {
  'a FLUSH overtakes the batches of its own flow': {
    sourceLink: {
      Outbox: class extends Outbox {
        override enqueue(...[type, flow, parts]: Parameters<Outbox['enqueue']>): number {
          const asIfNone = Object.create(flow, { bulkEntries: { value: 0, writable: true } }) as typeof flow
          return super.enqueue(type, type === FRAME.DATA ? asIfNone : flow, parts)
        }
      },
    },
  },
  'a FLUSH overtakes what is being expanded': {
    DestinationSession: class extends DestinationSession {
      override onData(...data: Parameters<DestinationSession['onData']>): void {
        const { inbound } = this as unknown as { inbound: SlowUnpacker }
        const { mark } = inbound
        inbound.mark = then => then()
        super.onData(...data)
        inbound.mark = mark
      }
    },
  },
  "a disk's target is looked for among those of guests": {
    DestinationSession: class extends DestinationSession {
      constructor(options: DestinationSessionOptions) {
        super({ ...options, disks: options.disks && options.targets })
      }
    },
  },
  "a guest's target is looked for among those of disks": {
    DestinationSession: class extends DestinationSession {
      constructor(options: DestinationSessionOptions) {
        super({ ...options, targets: options.disks ?? options.targets })
      }
    },
  },
  "a disk's connection comes in as one of memory": {
    SourceSession: class extends SourceSession {
      override accept(...[socket, gate]: Parameters<SourceSession['accept']>): void {
        super.accept(socket, gate.kind === 'disk' ? new Gate(gate.target) : gate)
      }
    },
  },
  'a share is lost where the flow of a disk is torn down': {
    SourceSession: class extends SourceSession {
      override onReset(...reset: Parameters<SourceSession['onReset']>): void {
        if (this.channels.get(reset[0])?.kind === KIND_DISK) this.options.pieces.take(1)
        super.onReset(...reset)
      }
    },
  },
  'a disk takes a slot more than it gives back': {
    SourceSession: class extends SourceSession {
      constructor(options: SourceSessionOptions) {
        super(options)
        const { sender } = this
        const take = sender.takeSlot.bind(sender)
        sender.takeSlot = at => {
          if (at === 'disk') take(at)
          return take(at)
        }
      }
    },
  },
  'an answer is delivered again after a resume': {
    sourceLink: {
      Inbox: class extends Inbox {
        override take(...frame: Parameters<Inbox['take']>): ReturnType<Inbox['take']> {
          const [type, flags, flow, sequence, payload] = frame
          const isAnswer = type === FRAME.DATA || type === FRAME.BATCH
          if (isAnswer && sequence <= this.received) this.deliver(type, flags, flow, payload)
          return super.take(...frame)
        }
      },
    },
  },
  'what a client says is delivered again after a resume': {
    destinationLink: {
      Inbox: class extends Inbox {
        override take(...frame: Parameters<Inbox['take']>): ReturnType<Inbox['take']> {
          const [type, flags, flow, sequence, payload] = frame
          if (type === FRAME.BATCH && sequence <= this.received) this.deliver(type, flags, flow, payload)
          return super.take(...frame)
        }
      },
    },
  },
  'a session is not left while it has disks': {
    Reception: class extends Reception<Moved> {
      override get isLeft(): boolean {
        return false
      }
    },
  },
  'a session that is left keeps what has no flow yet': {
    SourceSession: class extends SourceSession {
      constructor(options: SourceSessionOptions) {
        super(options)
        this.channels.leave = () => {}
      }
    },
  },
  'a session that is left has its disks moved': {
    SourceSession: class extends SourceSession {
      constructor(options: SourceSessionOptions) {
        super(options)
        this.channels.leave = () => this.move([...this.channels.connections])
      }
    },
  },
  'a session that is left stays when its disks have gone': {
    SourceSession: class extends SourceSession {
      constructor(options: SourceSessionOptions) {
        super({ ...options, onIdle: () => {} })
      }
    },
  },
  'what is read goes out as it is packed': {
    ReplyPacker: class extends SlowPacker {
      protected override out(): Packing {
        return this.jobs.splice(this.jobs.length - 1, 1)[0]!
      }
    },
  },
  'an answer overtakes what is being expanded': {
    ReplyUnpacker: class extends SlowUnpacker {
      override mark(then: () => void): void {
        then()
      }
    },
  },
  "an answer overtakes one that waits behind another disk's": {
    SourceSession: class extends SourceSession {
      constructor(options: SourceSessionOptions) {
        super(options)
        const { replies } = this as unknown as { replies?: RepliesInside }
        if (!replies) return
        replies.behind = (number, then) => {
          if ((replies.entries.get(number)?.pending ?? 0) > 0) replies.inbound.mark(then)
          else then()
        }
      }
    },
  },
  'memory of an answer is given back before its client has it': {
    ReplyUnpacker: class extends SlowUnpacker {
      protected override give(channel: InboundChannel, bytes: Uint8Array, release: () => void): void {
        channel.expanded(bytes, () => {})
        release()
      }
    },
  },
}
