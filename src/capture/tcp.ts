/**
 * Reassembles TCP: segments in the order of a capture in, each direction's bytes in order out. Each direction of a
 * connection is a flow of its own. Flows that are no channel of a migration cost an entry, not their bytes.
 */
import { type ChannelKind, channelKind } from '../qemu/channel-kind.ts'
import { MULTIFD } from '../qemu/wire.ts'
import { CHANNELS_MAX, FLOWS_MAX, HEADLESS_LENGTH_MAX, REORDER_LENGTH_MAX } from './limits.ts'
import type { Segment } from './link.ts'

/** Takes the channels of migrations that a capture holds. */
export interface ChannelSink {
  /** A channel begins. `channel` counts from 0; `name` says which connection it is. */
  open(channel: number, kind: ChannelKind, name: string): void
  /** Its next bytes, `length` from `at`, until return. */
  bytes(channel: number, chunk: Buffer, at: number, length: number): void
  /**
   * It ends, for one of these reasons: it was closed, the capture ended, or bytes are missing from `position` on.
   *
   * @param gap why bytes are missing; undefined where none are
   */
  end(channel: number, position: number, gap: string | undefined): void
}

/** A flow without SYN that turned out to be no channel, as far as can be seen. */
export interface HeadlessFlow {
  readonly name: string
  /** Payload bytes seen. */
  readonly lengthBytes: number
}

/** The kinds that carry pages, whose connections are taken as channels. */
const CHANNEL_KINDS: readonly ChannelKind[] = ['main', 'multifd', 'recovery']
/** Bytes beyond which sequence numbers are not a window away but nonsense. */
const SEQUENCE_WINDOW = 2 ** 30

interface HeldSegment {
  readonly sequence: number
  readonly bytes: Buffer
}

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
  /** Segments ahead of `next`, ascending. */
  held: HeldSegment[] = []
  heldLength = 0
  /** Sequence number behind the last byte, -1 before a FIN told it. */
  end = -1
  /** First bytes, as long as they do not tell the kind. */
  opening: Buffer = Buffer.alloc(0)
  /** Payload bytes seen while headless. */
  seenLength = 0
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
  private heldLength = 0
  private largestHeadless: HeadlessFlow | undefined

  constructor(sink: ChannelSink) {
    this.sink = sink
  }

  /** Takes a segment whose payload lies in `bytes`, and keeps copies only. */
  push(segment: Segment, bytes: Buffer): void {
    let flow = this.flows.get(segment.key)
    if (segment.syn) {
      // The same SYN again is a retransmission; another one opens a new connection between the same ports.
      if (flow !== undefined && flow.initial === segment.sequence) return
      if (flow !== undefined) this.finish(flow)
      flow = this.add(segment.key, segment.sequence)
    } else if (flow === undefined) {
      if (segment.length + segment.missing === 0) return
      flow = this.add(segment.key, -1)
    }
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
      for (const early of flow.held.filter(held => ((held.sequence - sequence) | 0) < 0)) this.drop(flow, early)
      this.deliver(flow, bytes, at, length)
      this.release(flow)
      return
    }
    if (flow.seenLength > HEADLESS_LENGTH_MAX) this.ignore(flow)
    else this.hold(flow, sequence, bytes, at, length)
  }

  private hold(flow: Flow, sequence: number, bytes: Buffer, at: number, length: number): void {
    const { held } = flow
    let place = held.length
    while (place > 0 && ((held[place - 1]!.sequence - sequence) | 0) > 0) place--
    const before = held[place - 1]
    if (before !== undefined && before.sequence === sequence && before.bytes.length >= length) return
    held.splice(place, 0, { sequence, bytes: Buffer.from(bytes.subarray(at, at + length)) })
    flow.heldLength += length
    this.heldLength += length
    if (this.heldLength > REORDER_LENGTH_MAX) this.giveUpWorst()
  }

  private drop(flow: Flow, segment: HeldSegment): void {
    flow.held.splice(flow.held.indexOf(segment), 1)
    flow.heldLength -= segment.bytes.length
    this.heldLength -= segment.bytes.length
  }

  /** Delivers what is no longer ahead. */
  private release(flow: Flow): void {
    const { held } = flow
    let count = 0
    while (count < held.length && flow.state !== FLOW.Ignored) {
      const { sequence, bytes } = held[count]!
      const ahead = (sequence - flow.next) | 0
      if (ahead > 0) break
      count++
      flow.heldLength -= bytes.length
      this.heldLength -= bytes.length
      if (ahead + bytes.length > 0) this.deliver(flow, bytes, -ahead, bytes.length + ahead)
    }
    // Ignoring a flow drops what it holds by itself.
    if (flow.held === held) held.splice(0, count)
  }

  /** The flow that holds most waits for a segment that the capture does not have. */
  private giveUpWorst(): void {
    let worst: Flow | undefined
    for (const flow of this.flows.values()) if (flow.heldLength > (worst?.heldLength ?? 0)) worst = flow
    if (worst !== undefined) this.finish(worst)
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
    if (flow.state === FLOW.Channel) {
      const missing = flow.held.length > 0 || (flow.end >= 0 && flow.end !== flow.next)
      this.sink.end(flow.channel, flow.position, missing ? gapReason(flow) : undefined)
    }
    this.ignore(flow)
  }

  private ignore(flow: Flow): void {
    if (flow.state === FLOW.Headless && flow.seenLength > (this.largestHeadless?.lengthBytes ?? 0)) {
      this.largestHeadless = { name: flow.name, lengthBytes: flow.seenLength }
    }
    flow.state = FLOW.Ignored
    this.heldLength -= flow.heldLength
    flow.heldLength = 0
    flow.held = []
    flow.opening = Buffer.alloc(0)
  }
}

function gapReason(flow: Flow): string {
  return flow.cutPackets > 0 ? 'the capture holds only the first bytes of each packet' : 'the capture lacks a packet'
}

/** Every multifd packet opens with the hello's magic; this tells whether it is the hello. */
function isHello(bytes: Buffer, at: number, length: number): boolean {
  if (length < MULTIFD.HELLO_LENGTH) return false
  for (let i = MULTIFD.HELLO_ID_AT + 1; i < MULTIFD.HELLO_LENGTH; i++) if (bytes[at + i] !== 0) return false
  // Then comes a UUID, zero or random, where a packet has its flags, which are small, and its sizes.
  const uuid = bytes.subarray(at + MULTIFD.FLAGS_AT, at + MULTIFD.HELLO_ID_AT)
  return uuid.every(byte => byte === 0) || uuid[0] !== 0 || uuid[1] !== 0 || uuid[2] !== 0
}
