import { assert } from '../errors.ts'
import type { Dialogue } from './dialogue.ts'
import { Head } from './head.ts'
import { RequestFields } from './requests.ts'
import type { Direction, NbdSink } from './sink.ts'

/** The state in which nothing is looked at any more; all others are a direction's own, and not negative. */
const RAW = -1

/**
 * What the parsers of both directions of a connection have in common: one message after the other, each of a head that is
 * read and of bytes that are passed. A parser says which head comes next, and what a head means. It keeps no reference to a
 * chunk, and never throws on what a peer sends.
 */
export abstract class DirectionParser {
  protected readonly sink: NbdSink
  protected readonly dialogue: Dialogue
  protected readonly head: Head
  /** Filled in anew for each event that brings one. */
  protected readonly request = new RequestFields()
  /** What the next byte, or the one behind what is passed, belongs to. */
  protected state = 0
  private readonly direction: Direction
  private streamPosition = 0

  /** @param firstLength bytes of the direction's first head, which is that of state 0 */
  constructor(direction: Direction, firstLength: number, sink: NbdSink, dialogue: Dialogue) {
    this.direction = direction
    this.head = new Head(firstLength)
    this.sink = sink
    this.dialogue = dialogue
  }

  /** Bytes of the direction taken so far. */
  get position(): number {
    return this.streamPosition
  }

  /**
   * Bytes at the end of what was taken that belong to an incomplete head. In transmission 31 at most from the client, 43
   * from the server: a caller that keeps them in front of its next chunk has every head in one piece when it is told.
   */
  get pending(): number {
    return this.head.have
  }

  /** Bytes to come that are a payload's, or of an option or a reply to it that is not looked at. */
  get passable(): number {
    return this.head.skip
  }

  /** True where everything from here on is not looked at. */
  get raw(): boolean {
    return this.state === RAW
  }

  /** True inside a message: a direction that ends here was cut. */
  get midMessage(): boolean {
    return this.head.have > 0 || this.head.skip > 0
  }

  /** Takes the next `length` bytes of the direction, which lie in `chunk` from `at`, cut anywhere. */
  push(chunk: Uint8Array, at: number, length: number): void {
    const end = at + length
    assert(at >= 0 && length >= 0 && end <= chunk.length, 'bytes outside their chunk')
    const base = this.streamPosition - at
    const { head } = this
    while (at < end && !this.raw) {
      if (head.skip > 0) {
        at = head.pass(at, end)
        if (head.skip === 0) this.passed(base + at)
        continue
      }
      if (head.have === 0 && !this.mayBegin(base + at)) break
      at = head.read(chunk, at, end, base)
      if (head.have === head.need) this.step(base + at)
    }
    this.streamPosition = base + end
  }

  /** A message begins at `position`. @returns false where it must not: the direction was given up */
  protected abstract mayBegin(position: number): boolean

  /** So much of the head is there as was asked for, up to `position`. */
  protected abstract step(position: number): void

  /** The last byte to pass ended at `position`. */
  protected abstract passed(position: number): void

  /** From `position` on nothing is looked at. */
  protected giveUp(position: number, reason: string): undefined {
    this.state = RAW
    this.head.next(0, 0)
    this.dialogue.lost[this.direction] = true
    this.sink.raw(this.direction, position, reason)
  }
}
