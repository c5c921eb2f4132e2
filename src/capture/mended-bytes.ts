/**
 * A channel as a stream that can be parsed although a capture lacks bytes of it: pages with holes have zeros in them, what
 * lies between a hole over heads and the next record is left out, and where that held the end of a section or the head of
 * the next one, one of our own stands there. Not what QEMU sent, but as much like it as can be had.
 */
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { type FeedWatcher, MendedChannel, type Missing } from './mended-channel.ts'

const nothing = (): void => {}
/** The parser is only asked where fields begin and end. */
const NO_EVENTS = {
  block: nothing,
  zeroRecord: nothing,
  pageRecord: nothing,
  opaquePage: nothing,
  phase: nothing,
  degraded: nothing,
  hello: nothing,
  packet: nothing,
  zeroPage: nothing,
  pageBody: nothing,
  compressed: nothing,
}

export class MendedBytes implements FeedWatcher {
  private readonly channel: MendedChannel
  private readonly sink: (bytes: Buffer) => void
  /** Bytes of an unfinished field: they go out with its rest, or not at all. */
  private held: Buffer = Buffer.alloc(0)

  /** @param sink takes the bytes in order, in memory of their own */
  constructor(kind: ChannelKind, sink: (bytes: Buffer) => void) {
    this.channel = new MendedChannel(kind, NO_EVENTS, this)
    this.sink = sink
  }

  get missing(): Missing {
    return this.channel.missing
  }

  push(chunk: Buffer, at: number, length: number): void {
    this.channel.push(chunk, at, length)
  }

  gap(lengthBytes: number, reason: string): void {
    this.channel.gap(lengthBytes, reason)
  }

  end(): void {
    this.channel.end()
    if (this.held.length > 0) this.sink(this.held)
    this.held = Buffer.alloc(0)
  }

  feeding(): void {}

  fed(chunk: Buffer, at: number, length: number, understood: number): void {
    const taken = Buffer.concat([this.held, chunk.subarray(at, at + length)])
    const bytes = taken.subarray(0, Math.max(0, this.held.length + understood))
    const whole = bytes.length - this.channel.parser.pending
    if (whole > 0) this.sink(bytes.subarray(0, whole))
    this.held = bytes.subarray(Math.max(0, whole))
  }

  dropped(lead: Uint8Array): void {
    this.held = Buffer.from(lead)
  }
}
