/**
 * Reassembles TCP: segments in the order of a capture in, each direction's bytes in order out. Each direction of a
 * connection is a flow of its own. Flows that are no channel of a migration cost an entry, not their bytes.
 */
import { type ChannelKind, channelKind } from '../qemu/channel-kind.ts'
import { MULTIFD } from '../qemu/wire.ts'
import { HeldSegments } from './held-segments.ts'
import { CHANNELS_MAX, FLOWS_MAX, HEADLESS_LENGTH_MAX, RELIEF_SHARE, REORDER_LENGTH_MAX } from './limits.ts'
import type { Segment } from './link.ts'

/** Takes the channels of migrations that a capture holds. */
export interface ChannelSink {
  /** A channel begins. `channel` counts from 0; `name` says which connection it is. */
  open(channel: number, kind: ChannelKind, name: string): void
  /** Its next bytes, `length` from `at`, until return. */
  bytes(channel: number, chunk: Buffer, at: number, length: number): void
  /**
   * Bytes are missing: `lengthBytes` from `position` on, where its next bytes would stand. What comes then stands behind.
   *
   * @param reason what the capture lacks
   */
  gap(channel: number, position: number, lengthBytes: number, reason: string): void
  /** It was closed, or the capture ended, behind `position` bytes, missing ones counted. */
  end(channel: number, position: number): void
}

/** A flow without SYN that turned out to be no channel, as far as can be seen. */
export interface HeadlessFlow {
  readonly name: string
  /** Payload bytes seen. */
  readonly lengthBytes: number
  /** Its SYN came all the same, behind them: the packets are in no order. */
  readonly beginsLate: boolean
}

/** The kinds that carry pages, whose connections are taken as channels. */
const CHANNEL_KINDS: readonly ChannelKind[] = ['main', 'multifd', 'recovery']
/** Bytes beyond which sequence numbers are not a window away but nonsense. */
const SEQUENCE_WINDOW = 2 ** 30

const FLOW = {
  /** No SYN and no opening bytes yet: segments are held. */
  Headless: 0,
  /** The beginning is known, not yet what it is. */
  Unclassified: 1,
  /** Handed to the sink. */
  Channel: 2,
  /** Nothing we want: no bytes are kept. */
  Ignored: 3,
} as const

class Flow {
  readonly name: string
  state: number
  channel = -1
  /** First sequence number, where a SYN told it; -1 otherwise. */
  initial: number
  /** Sequence number of the next byte. */
  next = 0
  /** Bytes in order so far: the position in the stream, beyond 2^32 too. */
  position = 0
  /** Segments ahead of `next`. */
  held = new HeldSegments()
  /** Sequence number behind the last byte, -1 before a FIN told it. */
  end = -1
  /** First bytes, as long as they do not tell the kind. */
  opening: Buffer = Buffer.alloc(0)
  /** Payload bytes seen while headless. */
  seenLength = 0
  /** Lowest sequence number seen before a SYN; -1 before any. */
  lowest = -1
  /** Packets of which the capture holds a part only. */
  cutPackets = 0

  constructor(name: string, initial: number) {
    this.name = name
    this.initial = initial
    this.next = initial
    this.state = initial < 0 ? FLOW.Headless : FLOW.Unclassified
  }
}

export class TcpReassembler {
  /** Flows of TLS: a migration over TLS cannot be read. */
  tlsFlows = 0
  private readonly sink: ChannelSink
  private readonly flows = new Map<string, Flow>()
  private channels = 0
  /** What all flows' held segments cost, in bytes. */
  private heldCost = 0
  private largestHeadless: HeadlessFlow | undefined

  constructor(sink: ChannelSink) {
    this.sink = sink
  }

  /** Takes a segment whose payload lies in `bytes`, and keeps copies only. */
  push(segment: Segment, bytes: Buffer): void {
    let flow = this.flows.get(segment.key)
    if (segment.syn) {
      // The same SYN again is a retransmission; another one opens a new connection between the same ports.
      if (flow !== undefined && (flow.initial === segment.sequence || this.beginsLate(flow, segment.sequence))) return
      if (flow !== undefined) this.finish(flow)
      flow = this.add(segment.key, segment.sequence)
    } else if (flow === undefined) {
      if (segment.length + segment.missing === 0) return
      flow = this.add(segment.key, -1)
    }
    if (flow.initial < 0 && (flow.lowest < 0 || ((segment.sequence - flow.lowest) | 0) < 0))
      flow.lowest = segment.sequence
    if (flow.state === FLOW.Ignored) return
    if (segment.missing > 0) flow.cutPackets++
    if (segment.fin && flow.end < 0) {
      const end = (segment.sequence + segment.length + segment.missing) >>> 0
      // A stray FIN of an earlier connection would make a gap out of nothing.
      const ahead = (end - flow.next) | 0
      if (ahead >= 0 && ahead < SEQUENCE_WINDOW) flow.end = end
    }
    if (segment.length > 0) this.take(flow, segment.sequence, bytes, segment.at, segment.length)
    if (flow.state === FLOW.Channel && flow.end >= 0 && flow.next === flow.end) this.finish(flow)
  }

  /** The capture ended: ends all channels. */
  end(): void {
    for (const flow of this.flows.values()) this.finish(flow)
  }

  /** The largest flow whose beginning the capture lacks, for the message where no channel was found. */
  get headless(): HeadlessFlow | undefined {
    return this.largestHeadless
  }

  /** A SYN behind bytes of its connection, which begin exactly where it says. @returns whether it is one */
  private beginsLate(flow: Flow, sequence: number): boolean {
    if (flow.initial >= 0 || flow.lowest !== sequence) return false
    flow.initial = sequence
    if (flow.state === FLOW.Headless) {
      flow.state = FLOW.Unclassified
      flow.next = sequence
      this.release(flow)
    }
    const headless = this.largestHeadless
    if (headless?.name === flow.name) this.largestHeadless = { ...headless, beginsLate: true }
    return true
  }

  private add(name: string, initial: number): Flow {
    if (this.flows.size >= FLOWS_MAX) this.forgetOne()
    const flow = new Flow(name, initial)
    this.flows.set(name, flow)
    return flow
  }

  private forgetOne(): void {
    for (const flow of this.flows.values()) {
      if (flow.state !== FLOW.Channel) {
        this.finish(flow)
        this.flows.delete(flow.name)
        return
      }
    }
  }

  private take(flow: Flow, sequence: number, bytes: Buffer, at: number, length: number): void {
    if (flow.state === FLOW.Headless) {
      this.takeHeadless(flow, sequence, bytes, at, length)
      return
    }
    const ahead = (sequence - flow.next) | 0
    if (ahead > 0) {
      if (ahead < SEQUENCE_WINDOW) this.hold(flow, sequence, bytes, at, length)
      return
    }
    // Bytes from before `next` came already; the first copy counts, as in any TCP.
    if (ahead + length > 0) {
      this.deliver(flow, bytes, at - ahead, length + ahead)
      this.release(flow)
    }
  }

  /** Without a SYN the beginning shows itself by its bytes, perhaps after later segments. */
  private takeHeadless(flow: Flow, sequence: number, bytes: Buffer, at: number, length: number): void {
    flow.seenLength += length
    const kind = channelKind(bytes, at, length)
    if (kind === 'main' || (kind === 'multifd' && isHello(bytes, at, length))) {
      flow.state = FLOW.Unclassified
      flow.next = sequence
      // What was held from before this beginning belongs to something else.
      const { held } = flow
      this.dropHeld(flow)
      while (!held.empty) {
        const early = held.first
        const bytes = held.take()
        if (((early - sequence) | 0) > 0) this.hold(flow, early, bytes, 0, bytes.length)
        if ((flow.state as number) === FLOW.Ignored) return
      }
      this.deliver(flow, bytes, at, length)
      this.release(flow)
      return
    }
    if (flow.seenLength > HEADLESS_LENGTH_MAX) this.ignore(flow)
    else this.hold(flow, sequence, bytes, at, length)
  }

  private hold(flow: Flow, sequence: number, bytes: Buffer, at: number, length: number): void {
    const { held } = flow
    this.heldCost -= held.cost
    held.add(sequence, bytes.subarray(at, at + length))
    this.heldCost += held.cost
    if (this.heldCost > REORDER_LENGTH_MAX) this.relieve()
  }

  private dropHeld(flow: Flow): void {
    this.heldCost -= flow.held.cost
    flow.held = new HeldSegments()
  }

  /** Delivers what is no longer ahead. */
  private release(flow: Flow): void {
    while (!flow.held.empty) {
      const { held } = flow
      const { first } = held
      const ahead = (first - flow.next) | 0
      if (ahead > 0) return
      this.heldCost -= held.cost
      const bytes = held.take()
      this.heldCost += held.cost
      if (ahead + bytes.length > 0) this.deliver(flow, bytes, -ahead, bytes.length + ahead)
    }
  }

  /** The flows that hold most wait for segments that the capture does not have: they go on without. */
  private relieve(): void {
    const holding = [...this.flows.values()].filter(flow => !flow.held.empty)
    holding.sort((a, b) => b.held.cost - a.held.cost)
    for (const flow of holding) {
      const enough = flow.held.cost / 2
      do this.skipHole(flow)
      while (flow.held.cost > enough)
      if (this.heldCost <= REORDER_LENGTH_MAX * (1 - RELIEF_SHARE)) return
    }
  }

  /** Goes on at the first held segment, whatever is missing before it. */
  private skipHole(flow: Flow): void {
    if (flow.state !== FLOW.Channel) {
      // Its beginning is what is missing.
      flow.seenLength = Math.max(flow.seenLength, flow.held.cost)
      flow.state = FLOW.Headless
      this.ignore(flow)
      return
    }
    this.skipTo(flow, flow.held.first)
    this.release(flow)
  }

  private skipTo(flow: Flow, sequence: number): void {
    const missing = (sequence - flow.next) | 0
    this.sink.gap(flow.channel, flow.position, missing, gapReason(flow))
    flow.next = sequence
    flow.position += missing
  }

  private deliver(flow: Flow, bytes: Buffer, at: number, length: number): void {
    flow.next = (flow.next + length) >>> 0
    if (flow.state === FLOW.Unclassified) {
      flow.opening = Buffer.concat([flow.opening, bytes.subarray(at, at + length)])
      const kind = channelKind(flow.opening)
      if (kind === undefined) return
      if (kind === 'tls') this.tlsFlows++
      if (!CHANNEL_KINDS.includes(kind) || this.channels === CHANNELS_MAX) {
        this.ignore(flow)
        return
      }
      flow.state = FLOW.Channel
      flow.channel = this.channels++
      const opening = flow.opening
      flow.opening = Buffer.alloc(0)
      flow.position = opening.length
      this.sink.open(flow.channel, kind, flow.name)
      this.sink.bytes(flow.channel, opening, 0, opening.length)
      return
    }
    flow.position += length
    this.sink.bytes(flow.channel, bytes, at, length)
  }

  /** The flow ends here, whatever the reason; later segments of it are none of ours. */
  private finish(flow: Flow): void {
    // What is held from behind its end is none of it.
    while (!flow.held.empty && (flow.end < 0 || ((flow.held.first - flow.end) | 0) < 0)) this.skipHole(flow)
    if (flow.state === FLOW.Channel) {
      const missing = flow.end < 0 ? 0 : (flow.end - flow.next) | 0
      if (missing > 0) this.skipTo(flow, flow.end)
      this.sink.end(flow.channel, flow.position)
    }
    this.ignore(flow)
  }

  private ignore(flow: Flow): void {
    if (flow.state === FLOW.Headless && flow.seenLength > (this.largestHeadless?.lengthBytes ?? 0)) {
      this.largestHeadless = { name: flow.name, lengthBytes: flow.seenLength, beginsLate: false }
    }
    flow.state = FLOW.Ignored
    this.dropHeld(flow)
    flow.opening = Buffer.alloc(0)
  }
}

function gapReason(flow: Flow): string {
  return flow.cutPackets > 0 ? 'the capture holds only the first bytes of packets' : 'the capture lacks packets'
}

/** Every multifd packet opens with the hello's magic; this tells whether it is the hello. */
function isHello(bytes: Buffer, at: number, length: number): boolean {
  if (length < MULTIFD.HELLO_LENGTH) return false
  for (let i = MULTIFD.HELLO_ID_AT + 1; i < MULTIFD.HELLO_LENGTH; i++) if (bytes[at + i] !== 0) return false
  // Then comes a UUID, zero or random, where a packet has its flags, which are small, and its sizes.
  const uuid = bytes.subarray(at + MULTIFD.FLAGS_AT, at + MULTIFD.HELLO_ID_AT)
  return uuid.every(byte => byte === 0) || uuid[0] !== 0 || uuid[1] !== 0 || uuid[2] !== 0
}
